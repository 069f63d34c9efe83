"""The papers' measures of a model, on people who were kept out of its training.

voices and photos of a split -> faces, once -> the sections of a report
"""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
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
from s2f.pipeline import SpeechToFace
from s2f.report import Report
from s2f.retrieval import ANGLE, matching_section, retrieval_section, similarity_section

if TYPE_CHECKING:
    from s2f.face_detection import Detector

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
    """Measure a model, with all three networks, on a split of its data.

    DATA is a voice tree, or a folder of `voices` and `faces`; labels are csv files of the people,
    by default those that lie there, of which columns are taken, by default sex, age and the like.
    A person has at most `per_identity` recordings and photos. The classifier, a face encoder with
    logits, gives the VGGFace score; the detector looks for landmarks in generated faces.

    Raises DatasetError as `read_people`, UsageError if there is no such label or the classifier
    has no logits, and CheckpointError if stored embeddings are of another face encoder.
    """
    judge = None if classifier is None else _logits_of(classifier, model.device)
    sources = voices, _, tables = find_sources(data, labels)
    maker = face_encoder_of(model)
    people = read_people(voices, split, maker, most=per_identity, progress=progress)
    notes: list[str] = []
    known = read_labels(tables, people.names, columns, notes)
    examples = read_examples(sources, columns, maker, split, people, progress)
    case = build_case(model, people, known, maker, progress)  # takes long: all else is known by now
    logits = embed_images(judge, [face.image for face in case.from_voices]) if judge else None
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


def _logits_of(classifier: Checkpoint, device: torch.device) -> Maker:
    """Make a face classifier ready to say who faces are, [n i]."""
    from s2f.face_encoder import VGGFace

    network = classifier.network
    if not isinstance(network, VGGFace) or not network.config.identities:
        hint = "give a face encoder that was trained to tell people apart, such as VGG-Face"
        raise UsageError(f"{classifier.path}: has no logits", hint=hint)
    network = network.to(device)

    def logits(pictures: Tensor) -> Tensor:
        with computing(device):
            return network.logits(network(pictures.to(device)))

    return Maker("the classifier", network.config.identities, network.preprocessing.fit, logits)


def _facts(model: SpeechToFace, data: Path, split: str, people: People) -> dict[str, str]:
    facts = {"model": model.model.name, "data": f"{data.resolve().name}, {split}"}
    counted = {"people": people.names, "recordings": people.recordings, "photos": people.photos}
    facts |= {name: f"{len(some)}" for name, some in counted.items()}
    for name in ("description", "data", "licence", "limits"):
        said: dict[str, list[str]] = {}  # most cards of a model say the same
        for kind, checkpoint in model.model.checkpoints.items():
            said.setdefault(getattr(checkpoint.card, name) or "not said", []).append(kind)
        facts |= {f"{name}, {' and '.join(kinds)}": text for text, kinds in said.items()}
    facts["left out"] = "; ".join(people.notes) or "nobody"
    versions = f"s2f {s2f.__version__}, torch {torch.__version__}"
    where = f"Python {platform.python_version()}, {model.device}, {model.precision}"
    facts["made with"] = f"{versions}, {where}"
    return facts
