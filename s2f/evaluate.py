"""The papers' measures of a model, on people who were kept out of its training.

voices and photos of a split -> faces, once -> the sections of a report
"""

import platform
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

import s2f
from s2f.attributes import attributes_section
from s2f.checkpoint import Checkpoint
from s2f.console import Progress, silent
from s2f.device import computing
from s2f.embeddings import Maker
from s2f.errors import UsageError
from s2f.evaluation_data import (
    CMU_COUNTS,
    HQ_COUNTS,
    People,
    Stored,
    build_case,
    embed_images,
    face_encoder_of,
    find_sources,
    gather_dataset,
    read_examples,
    read_labels,
    read_people,
)
from s2f.files import scratch_folder
from s2f.image_quality import (
    contact_sheet,
    faces_section,
    geometry_section,
    quality_section,
    search_faces,
    vgg_face_score,
)
from s2f.images import FRAME, open_photo
from s2f.pipeline import SpeechToFace
from s2f.report import Report, Row, Section, Table, glance
from s2f.retrieval import ANGLE, PROTOCOLS, sf2f_section

if TYPE_CHECKING:
    from s2f.face_detection import Detector

PER_IDENTITY = 5
NOBODY = "nobody"  # was left out


def evaluate(
    model: SpeechToFace,
    data: Path,
    *,
    protocols: Collection[str] = tuple(PROTOCOLS),
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
    The protocols are keys of `PROTOCOLS`: all by default, as they share all that takes long, and so
    that no figure stands beside a published one that was measured otherwise. A person has at most
    `per_identity` recordings and photos, but for `sf2f`'s and `wen`'s mean of all photos. The
    classifier, a face encoder with logits, gives the VGGFace score; the detector looks for
    landmarks in generated faces.

    Raises DatasetError as `read_people`, UsageError if there is no such label or the classifier
    has no logits, CheckpointError if stored embeddings are of another face encoder, and OutputError
    where nothing temporary can be written.
    """
    judge = None if classifier is None else _logits_of(classifier, model.device)
    sources = voices, _, tables = find_sources(data, labels)
    maker = face_encoder_of(model)
    # Whose people are the mean of all of their photos, also where one protocol alone is asked for.
    every = not {"sf2f", "wen"}.isdisjoint(protocols)
    how: dict[str, Any] = {"most": per_identity, "every": every, "progress": progress}
    with scratch_folder() as folder:
        people = read_people(voices, split, maker, folder, **how)
        notes: list[str] = []
        known = read_labels(tables, people.names, columns, notes)
        examples = read_examples(sources, columns, maker, split, people, folder, progress)
        case = build_case(model, people, known, maker, folder, progress)  # takes long
        logits = None
        if judge:
            logits = Stored(folder / "logits", (judge.width,))
            for row in embed_images(judge, (face.image for face in case.from_voices)):
                logits.append(row)
        photos = examples.fresh.images
        searched = search_faces(case, photos, detector)
        told = dict(PROTOCOLS)
        if logits:
            told["sf2f"] = partial(sf2f_section, score=vgg_face_score(logits))
        measured = [
            *(protocol(case) for name, protocol in told.items() if name in protocols),
            geometry_section(case, searched),
            attributes_section(case, examples, notes),
            quality_section(case, photos, searched, logits),
            faces_section(case),
        ]
        sheet = contact_sheet(case)
    return Report(
        f"Evaluation of {model.model.name}",
        _facts(model, data, split, case.people),
        (*glance([section for section, _ in measured], sheet), _cards(model)),
        {name: values for _, samples in measured for name, values in samples.items()},
        frozenset({ANGLE, f"Oh: {ANGLE}"}),
    )


def evaluate_dataset(
    model: SpeechToFace,
    dataset: str,
    root: Path,
    *,
    split: str = "test",
    per_identity: int = PER_IDENTITY,
    framing: str | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Report:
    """Measure a model on a public data set as it is downloaded, one of `DATASETS`, below a root.

    `hq-voxceleb` has SF2F's splits, `hq-voxceleb-cmu` those of Wen et al.; recordings are heard as
    `s2f prep audio` does, and faces cut out of photos by the detector `framing`, by default the one
    that is installed, but for photos that are 224 x 224 and so framed already. Options, and what
    else it raises, are as for `evaluate`.

    Raises DatasetError and UsageError as `gather_dataset`, and DependencyError if no detector is
    installed and there is a photo to frame.
    """
    from s2f.face_detection import choose_detector, cut_face

    def frame(path: Path) -> Image.Image:
        photo = open_photo(path, enough=None)
        if photo.size == (FRAME, FRAME):
            return photo
        return cut_face(path, detector=choose_detector(framing), device=str(model.device))

    with scratch_folder() as tree:
        notes = gather_dataset(
            dataset, root, tree, split, most=per_identity, frame=frame, progress=progress
        )
        report = evaluate(
            model, tree, split=split, per_identity=per_identity, progress=progress, **options
        )
    facts = {name: fact.replace(f"{tree}/", "") for name, fact in report.facts.items()}
    facts["data"] = f"{root.resolve().name}, {split} of {dataset}"
    people, photos, segments = HQ_COUNTS[split]
    facts["published"] = f"{people} people, {photos} photos, {segments:,} segments of speech"
    if dataset == "hq-voxceleb-cmu":
        facts["published"] = f"{CMU_COUNTS['test']} test and {CMU_COUNTS['val']} val people"
        if split == "train":
            facts["published"] = f"{CMU_COUNTS['train']} people"
    said = [] if facts["left out"] == NOBODY else [facts["left out"]]
    facts["left out"] = "; ".join([*notes, *said]) or NOBODY
    return replace(report, facts=facts)


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
    facts |= {name: f"{len(some):,}" for name, some in counted.items()}
    return facts | {"left out": "; ".join(people.notes) or NOBODY}


def _cards(model: SpeechToFace) -> Section:
    """Tell what the networks' cards say, and what all was made with."""
    rows: list[Row] = []
    for name in ("description", "data", "licence", "limits"):
        said: dict[str, list[str]] = {}  # most cards of a model say the same
        for kind, checkpoint in model.model.checkpoints.items():
            said.setdefault(getattr(checkpoint.card, name) or "not said", []).append(kind)
        rows += [(f"{name}, {' and '.join(kinds)}", text) for text, kinds in said.items()]
    versions = f"s2f {s2f.__version__}, torch {torch.__version__}"
    where = f"Python {platform.python_version()}, {model.device}, {model.precision}"
    rows.append(("made with", f"{versions}, {where}"))
    return Section("Cards", (), (Table("Cards of the networks", ("of", "said"), tuple(rows)),))
