"""The papers' measures of a model, on people who were kept out of its training.

voices and photos of a split -> embeddings and faces, once -> the sections of a report
"""

import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import s2f
from s2f.attributes import Learnt, attributes
from s2f.checkpoint import Checkpoint
from s2f.console import Progress, silent
from s2f.device import computing
from s2f.embeddings import Maker
from s2f.errors import DatasetError, ImageError, UsageError
from s2f.evaluation_data import (
    Case,
    People,
    Sources,
    build_case,
    embed_images,
    find_sources,
    maker_of,
    photos_of,
    read_labels,
    read_people,
    split_names,
    spread,
)
from s2f.face_detection import Detector
from s2f.face_encoder import VGGFace
from s2f.image_quality import MOST, geometry, quality, sheets
from s2f.images import FRAME, open_photo
from s2f.pipeline import SpeechToFace
from s2f.report import Report, Section
from s2f.retrieval import ANGLE, matched, retrieval, similarity

PER_IDENTITY = 5
TRAINING_PEOPLE, TRAINING_PHOTOS = 1000, 3  # that a probe is fitted on; photos of each


def evaluate(
    model: SpeechToFace,
    data: Path,
    *,
    split: str = "test",
    labels: Sequence[Path] = (),
    columns: Sequence[str] = (),
    per_identity: int = PER_IDENTITY,
    classifier: Checkpoint | None = None,
    detector: Detector | None = None,
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
    check_classifier(classifier)
    sources = find_sources(data, labels)
    maker = maker_of(model)
    people = read_people(sources.voices, split, maker, most=per_identity, progress=progress)
    notes: list[str] = []
    known = read_labels(sources.labels, people.names, columns, notes=notes)
    learnt = _learn(sources, columns, maker, split, people, notes, progress)
    case = build_case(model, people, known, maker, progress)  # takes long: all else is known by now
    sections: list[Section] = []
    samples: dict[str, dict[str, float]] = {}
    for section, more in (
        similarity(case),
        retrieval(case),
        matched(case),
        geometry(case),
        attributes(case, learnt),
        quality(case, learnt.fresh[0], detector, _logits(classifier, case, model.device)),
    ):
        sections.append(section)
        samples |= {name: dict(values) for name, values in more.items()}
    sections.append(sheets(case))
    title = f"Evaluation of {model.model.name}"
    facts = _facts(model, data, split, case.people)
    return Report(title, facts, tuple(sections), samples, frozenset({ANGLE}))


def check_classifier(classifier: Checkpoint | None) -> None:
    """Make sure that a face encoder has identities to choose from.

    Raises:
        UsageError: if it has not.
    """
    if classifier is None:
        return
    network = classifier.network
    if not isinstance(network, VGGFace) or not network.config.identities:
        raise UsageError(
            f"{classifier.path}: has no logits",
            hint="give a face encoder that was trained to tell people apart, such as VGG-Face",
        )


def _logits(
    classifier: Checkpoint | None, case: Case, device: torch.device
) -> NDArray[np.float32] | None:
    if classifier is None:
        return None
    network = classifier.network.to(device)
    assert isinstance(network, VGGFace)

    def logits(faces: Tensor) -> Tensor:
        with computing(device):
            return network.logits(network(faces.to(device)))

    maker = Maker("the classifier", network.config.identities, network.preprocessing.fit, logits)
    return embed_images(maker, [face.image for face in case.from_voices])


def _learn(
    sources: Sources,
    columns: Sequence[str],
    maker: Maker,
    split: str,
    people: People,
    notes: list[str],
    progress: Progress,
) -> Learnt:
    """Read what the probes are fitted on: people of the training split, and labelled photos."""
    names: list[str] = []
    embeddings = np.empty((0, maker.width), np.float32)
    labels: dict[str, dict[str, str]] = {}
    fitted: list[tuple[Path, str]] = []
    of_photos: dict[str, dict[str, str]] = {}
    if split == "train":
        notes.append("No judges: they would be fitted on the very people that they judge.")
    else:
        try:
            training = read_people(
                sources.voices,
                "train",
                maker,
                most=TRAINING_PHOTOS,
                people=TRAINING_PEOPLE,
                progress=progress,
            )
        except DatasetError as error:
            notes.append(f"Nobody to fit a judge of embeddings on: {error.message}.")
        else:
            new = [
                k
                for k, who in enumerate(training.owners)
                if training.names[who] not in people.names
            ]
            names = [training.names[training.owners[k]] for k in new]
            embeddings = training.embeddings[new]
            labels = read_labels(sources.labels, training.names, columns, notes=[])
        seen = split_names(sources.faces, split) | set(people.names)
        everyone = split_names(sources.faces, "train") | seen
        of_photos = read_labels(sources.labels, sorted(everyone), columns, notes=[])
        labelled = {who for values in of_photos.values() for who in values} - seen
        fitted = spread(
            photos_of(sources.faces, "train", labelled, TRAINING_PHOTOS),
            TRAINING_PEOPLE * TRAINING_PHOTOS,
        )
    real = photos_of(sources.faces, split, split_names(sources.faces, split), TRAINING_PHOTOS)
    own = [
        (path, people.names[owner])
        for path, owner in zip(people.photos, people.owners, strict=True)
        if path is not None
    ]
    photos, shown = _framed(fitted, notes)
    return Learnt(
        names,
        embeddings,
        labels,
        photos,
        shown,
        of_photos,
        _framed(spread(own, MOST), notes),
        _framed(spread(real, MOST), notes),
        tuple(notes),
    )


def _framed(
    photos: Sequence[tuple[Path, str]], notes: list[str]
) -> tuple[list[Image.Image], list[str]]:
    """Open photos in the frame, and say who is on each; those that cannot be read are noted."""
    frame = (FRAME, FRAME)
    opened: list[Image.Image] = []
    names: list[str] = []
    for path, name in photos:
        try:
            photo = open_photo(path)
        except ImageError as error:
            notes.append(f"Left out: {error.message}.")
            continue
        resized = photo.size != frame
        opened.append(photo.resize(frame, Image.Resampling.LANCZOS) if resized else photo)
        names.append(name)
    return opened, names


def _facts(model: SpeechToFace, data: Path, split: str, people: People) -> dict[str, str]:
    cards = {kind: checkpoint.card for kind, checkpoint in model.model.checkpoints.items()}
    facts = {
        "model": model.model.name,
        "data": f"{data.resolve().name}, {split}",
        "people": f"{len(people.names)}",
        "recordings": f"{len(people.recordings)}",
        "photos": f"{len(people.photos)}",
    }
    for name in ("description", "data", "licence", "limits"):
        said: dict[str, list[str]] = {}  # most cards of a model say the same
        for kind, card in cards.items():
            said.setdefault(getattr(card, name) or "not said", []).append(kind)
        for text, kinds in said.items():
            facts[f"{name}, {' and '.join(kinds)}"] = text
    facts["left out"] = "; ".join(people.notes) or "nobody"
    facts["made with"] = (
        f"s2f {s2f.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{model.device}, {model.precision}"
    )
    return facts
