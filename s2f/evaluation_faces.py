"""What the faces show: geometry, attributes and quality, as sections of a report.

Source: Oh et al. 2019, Figure 5 and section 4; SF2F for the VGGFace score.
"""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s2f import craniofacial, face_quality
from s2f.detection import Detector
from s2f.errors import UsageError
from s2f.estimates import correlation, similarity
from s2f.evaluation_case import WHOLE, Case, Samples
from s2f.probes import Confusion, EmbeddingProbe, PixelProbe, confusion
from s2f.report import Matrix, Picture, Section, Table

SHOWN = 8  # faces in a row of a picture
SHUFFLES = 100
SIDE = 112  # pixels of a face there

Row = tuple[str | float | int | None, ...]
Labels = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Learnt:
    """What probes are fitted on: people of the training split, and photos.

    Attributes:
        names: whose each embedding is.
        embeddings: of faces, [m d].
        labels: of these people.
        photos: real ones, to judge pixels by.
        shown: who is on each photo.
        photo_labels: of those people.
        fresh: photos of people that no probe saw, and whose they are: the judge's own test.
        notes: sentences on what is missing.
    """

    names: Sequence[str]
    embeddings: NDArray[np.float32]
    labels: Labels
    photos: Sequence[Image.Image]
    shown: Sequence[str]
    photo_labels: Labels
    fresh: tuple[Sequence[Image.Image], Sequence[str]]
    notes: tuple[str, ...] = ()


def geometry(case: Case) -> tuple[Section, Samples]:
    """Correlate measures of the faces from voices with those of the faces from photos."""
    speakers = case.people.speakers
    heard = craniofacial.measure(np.stack([face.landmarks for face in case.from_voices]))
    seen = craniofacial.measure(np.stack([face.landmarks for face in case.from_photos]))
    rng = np.random.default_rng(0)
    shuffled = [rng.permutation(len(case.people.names))[speakers] for _ in range(SHUFFLES)]
    rows: list[Row] = []
    for name, values in heard.items():
        got = correlation(seen[name][speakers], values)
        by_chance = np.mean([correlation(seen[name][other], values).r for other in shuffled])
        rows.append((name, got.r, got.p, float(by_chance), got.n))
    means = np.array([[row[1], row[3]] for row in rows], float).mean(0)
    rows.append(("mean", float(means[0]), None, float(means[1]), len(speakers)))
    table = Table(
        "Craniofacial measures: the face from a voice and the face from the speaker's photos",
        ("measure", "Pearson r", "p", "r of shuffled people", "N"),
        tuple(rows),
        "Lengths are relative to the distance of the outer eye corners. The landmarks are those "
        "that the decoder drew.",
    )
    text = ("Whether a voice gives away the proportions of the face, as far as the decoder goes.",)
    return Section("Geometry", text, (table,)), {}


def attributes(case: Case, learnt: Learnt) -> tuple[Section, Samples]:
    """Judge labels of true faces, of the faces from photos and of those from voices."""
    rows: list[Row] = []
    matrices: list[Matrix] = []
    samples: dict[str, dict[str, float]] = {}
    notes: list[str] = []
    for label in case.labels:
        for judge, judged in _judges(case, learnt, label, notes):
            cells: list[float | None] = []
            for source, (people, values, found) in judged.items():
                there = [k for k, who in enumerate(people) if who in values]
                if not there:
                    cells.append(None)
                    continue
                true = [values[people[k]] for k in there]
                result = confusion(true, [found[k] for k in there], _classes(true, found))
                cells.append(result.agreement)
                matrices.append(_matrix(label, judge, source, result))
                if judge == "pixels" and source == "voice":
                    right: dict[str, list[float]] = {}
                    for k in there:
                        right.setdefault(people[k], []).append(
                            100 * (found[k] == values[people[k]])
                        )
                    samples[f"{label} agrees, %"] = {k: float(np.mean(v)) for k, v in right.items()}
            rows.append((label, judge, *cells))
    heads = ("label", "judge of", "true face %", "from photo %", "from voice %")
    table = Table(
        "Agreement with the true label",
        heads,
        tuple(rows),
        "From photo is the ceiling: what the decoder keeps of a true embedding. A judge of "
        "embeddings sees those; a judge of pixels was fitted on real photos only, and sees faces.",
    )
    text = (
        "Linear judges, fitted on people of the training split, name a label of each face.",
        *learnt.notes,
        *notes,
    )
    return Section("Attributes", text, (table, *matrices) if rows else ()), samples


def _classes(true: Sequence[str], found: Sequence[str]) -> list[str]:
    return sorted({*true, *found})


def _matrix(label: str, judge: str, source: str, result: Confusion) -> Matrix:
    title = f"{label}, judge of {judge}: true and from {source}"
    counts = tuple(tuple(int(n) for n in row) for row in result.counts)
    return Matrix(title, result.classes, counts)


Judged = Mapping[str, tuple[Sequence[str], Mapping[str, str], Sequence[str]]]
"""By what was judged: whose it was, the true labels of people, and what the judge said."""


def _judges(case: Case, learnt: Learnt, label: str, notes: list[str]) -> list[tuple[str, Judged]]:
    names = case.people.names
    speakers = [names[k] for k in case.people.speakers]
    judges: list[tuple[str, Judged]] = []
    true = case.labels[label]
    known = _shared(label, learnt.labels.get(label, {}), notes)
    there = [k for k, who in enumerate(learnt.names) if who in known]
    try:
        if not there:
            raise UsageError(f"{label}: nobody of the training split has this label")
        probe = EmbeddingProbe.fit(
            learnt.embeddings[there], [known[learnt.names[k]] for k in there]
        )
        judges.append(
            (
                "embeddings",
                {
                    "face": (names, true, probe.predict(case.people.means())),
                    "photo": (names, true, probe.predict(case.photos_again)),
                    "voice": (speakers, true, probe.predict(case.heard[WHOLE])),
                },
            )
        )
    except UsageError as error:
        notes.append(f"Judge of embeddings left out: {error.message}.")
    known = _shared(label, learnt.photo_labels.get(label, {}), [], of=learnt.shown)
    there = [k for k, who in enumerate(learnt.shown) if who in known]
    try:
        if not there:
            raise UsageError(f"{label}: no photo of the training split has this label")
        who = [learnt.shown[k] for k in there]
        pixels = PixelProbe.fit([learnt.photos[k] for k in there], [known[w] for w in who], who)
        judges.append(
            (
                "pixels",
                {
                    "face": (
                        learnt.fresh[1],
                        learnt.photo_labels[label],
                        pixels.predict(learnt.fresh[0]),
                    ),
                    "photo": (names, true, pixels.predict([f.image for f in case.from_photos])),
                    "voice": (speakers, true, pixels.predict([f.image for f in case.from_voices])),
                },
            )
        )
        notes.append(
            f"The judge of pixels, {label}: fitted on {len(there)} photos, right on "
            f"{100 * pixels.accuracy:.1f} % of people left out of the fit."
        )
    except UsageError as error:
        notes.append(f"Judge of pixels left out: {error.message}.")
    return judges


def _shared(
    label: str, values: Mapping[str, str], notes: list[str], of: Sequence[str] | None = None
) -> dict[str, str]:
    """Leave out values that a single person has: of them nothing can be learnt."""
    people = values.keys() if of is None else values.keys() & set(of)
    counts = Counter(values[who] for who in people)
    rare = sorted(value for value, n in counts.items() if n < 2)
    if rare:
        notes.append(f"Left out of {label}, as one person has it: {', '.join(rare)}.")
    return {who: values[who] for who in people if values[who] not in rare}


def quality(
    case: Case,
    photos: Sequence[Image.Image],
    detector: Detector | None,
    logits: NDArray[np.float32] | None,
) -> tuple[Section, Samples]:
    """Measure generated faces as pictures.

    Args:
        case: whose faces.
        photos: real ones, which sharpness and diversity are relative to.
        detector: of landmarks.
        logits: of the faces from voices by a face classifier, [q i].
    """
    kinds = [photos, *([f.image for f in faces] for faces in (case.from_photos, case.from_voices))]
    sharp = [np.array([face_quality.sharpness(image) for image in images]) for images in kinds]
    relative = [values / sharp[0].mean() if photos else values for values in sharp]
    apart = [face_quality.diversity(images) for images in kinds]
    rows: list[Row] = [
        ("sharpness, that of real photos being 1", *_means(relative)),
        ("mean distance of two faces, of 255", *_means(apart)),
    ]
    if detector is not None:
        found = [face_quality.all_points_found(images, detector) for images in kinds]
        rows.append(("share with all 68 points found", *_means(found)))
    if logits is not None:
        score, deviation = face_quality.vgg_face_score(logits)
        rows.append(("VGGFace score", None, None, score))
        rows.append(("its deviation over five parts", None, None, deviation))
    rows.append(("faces", *map(len, kinds)))
    heads = ("measure", "real photos", "faces from photos", "faces from voices")
    table = Table("Faces as pictures", heads, tuple(rows))
    text = (
        "Sharpness is the deviation of the Laplacian of the inner face's brightness. "
        + ("" if detector else "No detector of landmarks is installed. ")
        + ("" if logits is not None else "The VGGFace score needs a face encoder with logits."),
    )
    return Section("Quality", text, (table,)), {"sharpness": case.by_person(relative[2])}


def _means(values: Sequence[NDArray[Any]]) -> list[float | None]:
    return [float(one.mean()) if len(one) else None for one in values]


def sheets(case: Case) -> Section:
    """Show the best, middling and worst voices by angle."""
    people = case.people
    true = people.means()[people.speakers]
    order = np.argsort(similarity(true, case.heard[WHOLE])["angle"], kind="stable")
    n = min(SHOWN, len(order))
    middle = (len(order) - n) // 2
    parts = {"best": order[:n], "middle": order[middle : middle + n], "worst": order[-n:]}
    pictures = []
    for name, which in parts.items():
        rows: list[list[Image.Image | None]] = [
            [_photo(case, int(people.speakers[q])) for q in which],
            [case.from_photos[int(people.speakers[q])].image for q in which],
            [case.from_voices[int(q)].image for q in which],
        ]
        alt = f"photo, face from the photo, face from the voice of the {n} {name} voices"
        pictures.append(Picture(f"The {name} {n}", _grid(rows), alt))
    text = (
        "Rows: a photo, the face drawn from the photos' embedding, and the face drawn from the "
        "voice; voices are ordered by the angle between the two embeddings.",
    )
    return Section("Faces", text, tuple(pictures))


def _photo(case: Case, person: int) -> Image.Image | None:
    for photo, owner in zip(case.people.photos, case.people.owners, strict=True):
        if owner == person and photo is not None:
            with Image.open(photo) as opened:
                return opened.convert("RGB")
    return None


def _grid(rows: Sequence[Sequence[Image.Image | None]]) -> bytes:
    """Lay pictures out in rows, as a PNG."""
    page = Image.new("RGB", (SIDE * len(rows[0]), SIDE * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            if picture is not None:
                small = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
                page.paste(small, (SIDE * x, SIDE * y))
    buffer = io.BytesIO()
    page.save(buffer, format="PNG")
    return buffer.getvalue()
