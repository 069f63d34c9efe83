"""The papers' measures of a model, on people who were kept out of its training.

voices and photos of a split -> faces, once -> the sections of a report
"""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import s2f
from s2f.attributes import attributes_section
from s2f.checkpoint import Checkpoint
from s2f.console import Progress, silent
from s2f.device import computing
from s2f.embeddings import Maker
from s2f.errors import UsageError
from s2f.evaluation_data import (
    People,
    build_case,
    embed_images,
    face_encoder_of,
    find_sources,
    read_examples,
    read_labels,
    read_people,
)
from s2f.image_quality import faces_section, geometry_section, quality_section
from s2f.pipeline import Face, SpeechToFace
from s2f.report import Report
from s2f.retrieval import ANGLE, matching_section, retrieval_section, similarity_section

if TYPE_CHECKING:
    from s2f.face_detection import Detector
    from s2f.face_encoder import VGGFace

PER_IDENTITY = 5


def evaluate(
    model: SpeechToFace,
    data: Path,
    *,
    split: str = "test",
    labels: Sequence[Path] = (),
    columns: Sequence[str] = (),
    per_identity: int = PER_IDENTITY,
    classifier: Checkpoint | None = None,
    detector: "Detector | None" = None,
    progress: Progress = silent,
) -> Report:
    """Measure a model on a split of its data.

    Args:
        model: with all three networks.
        data: a voice tree, or a folder of `voices` and `faces`.
        split: `test`, `val` or `train`.
        labels: csv files of the people; by default those that lie in the trees.
        columns: which labels; by default sex, age and the like.
        per_identity: recordings and photos of one person, at most.
        classifier: a face encoder with logits, for the VGGFace score.
        detector: of landmarks in generated faces.
        progress: told of photos, recordings and faces.

    Raises:
        DatasetError: as `evaluation_data.read_people`.
        UsageError: if there is no such label, or the classifier has no logits.
        CheckpointError: if stored embeddings are of another face encoder.
    """
    judge = None if classifier is None else _identities_of(classifier)
    sources = voices, _, tables = find_sources(data, labels)
    maker = face_encoder_of(model)
    people = read_people(voices, split, maker, most=per_identity, progress=progress)
    notes: list[str] = []
    known = read_labels(tables, people.names, columns, notes)
    examples = read_examples(sources, columns, maker, split, people, progress)
    case = build_case(model, people, known, maker, progress)  # takes long: all else is known by now
    logits = None if judge is None else _logits(judge, case.from_voices, model.device)
    measured = [
        similarity_section(case),
        retrieval_section(case),
        matching_section(case),
        geometry_section(case),
        attributes_section(case, examples, notes),
        quality_section(case, [photo for photo, _ in examples.fresh], detector, logits),
        faces_section(case),
    ]
    return Report(
        f"Evaluation of {model.model.name}",
        _facts(model, data, split, case.people),
        tuple(section for section, _ in measured),
        {name: values for _, samples in measured for name, values in samples.items()},
        frozenset({ANGLE}),
    )


def _identities_of(classifier: Checkpoint) -> "VGGFace":
    from s2f.face_encoder import VGGFace

    network = classifier.network
    if not isinstance(network, VGGFace) or not network.config.identities:
        raise UsageError(
            f"{classifier.path}: has no logits",
            hint="give a face encoder that was trained to tell people apart, such as VGG-Face",
        )
    return network


def _logits(network: "VGGFace", faces: Sequence[Face], device: torch.device) -> NDArray[np.float32]:
    """What a face classifier says of faces, [n i]."""
    network = network.to(device)

    def logits(pictures: Tensor) -> Tensor:
        with computing(device):
            return network.logits(network(pictures.to(device)))

    maker = Maker("the classifier", network.config.identities, network.preprocessing.fit, logits)
    return embed_images(maker, [face.image for face in faces])


def _facts(model: SpeechToFace, data: Path, split: str, people: People) -> dict[str, str]:
    facts = {
        "model": model.model.name,
        "data": f"{data.resolve().name}, {split}",
        "people": f"{len(people.names)}",
        "recordings": f"{len(people.recordings)}",
        "photos": f"{len(people.photos)}",
    }
    for name in ("description", "data", "licence", "limits"):
        said: dict[str, list[str]] = {}  # most cards of a model say the same
        for kind, checkpoint in model.model.checkpoints.items():
            said.setdefault(getattr(checkpoint.card, name) or "not said", []).append(kind)
        for text, kinds in said.items():
            facts[f"{name}, {' and '.join(kinds)}"] = text
    facts["left out"] = "; ".join(people.notes) or "nobody"
    facts["made with"] = (
        f"s2f {s2f.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{model.device}, {model.precision}"
    )
    return facts
