"""Labels of faces, as linear judges see them: a section of a report.

One judge reads embeddings; another, independent one reads pixels, and was fitted on photos only.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s2f.errors import UsageError
from s2f.evaluation_case import WHOLE, Case, Samples
from s2f.probes import Confusion, EmbeddingProbe, PixelProbe, confusion
from s2f.report import Matrix, Row, Section, Table

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
        own: photos of the people that are evaluated, and whose they are.
        fresh: photos of the evaluated split's faces, and whose they are; with a face tree those
            are other people than `own`.
        notes: sentences on what is missing.
    """

    names: Sequence[str]
    embeddings: NDArray[np.float32]
    labels: Labels
    photos: Sequence[Image.Image]
    shown: Sequence[str]
    photo_labels: Labels
    own: tuple[Sequence[Image.Image], Sequence[str]]
    fresh: tuple[Sequence[Image.Image], Sequence[str]]
    notes: tuple[str, ...] = ()


def attributes(case: Case, learnt: Learnt) -> tuple[Section, Samples]:
    """Judge labels of true faces, of the faces from photos and of those from voices."""
    rows: list[Row] = []
    matrices: list[Matrix] = []
    samples: dict[str, dict[str, float]] = {}
    notes: list[str] = []
    for label in case.labels:
        for judge, judged in _judges(case, learnt, label, notes):
            cells: list[float | None] = []
            fair: list[float | None] = [None, None]
            for source, (people, values, found) in judged.items():
                there = [k for k, who in enumerate(people) if who in values]
                if not there:
                    cells.append(None)
                    continue
                true = [values[people[k]] for k in there]
                result = confusion(true, [found[k] for k in there])
                cells.append(result.agreement)
                if source == "voice":
                    commonest = max(Counter(true).values()) / len(true)
                    fair = [result.balanced, commonest]
                matrices.append(_matrix(label, judge, source, result))
                if judge == "pixels" and source == "voice":
                    right: dict[str, list[float]] = {}
                    for k in there:
                        right.setdefault(people[k], []).append(
                            100 * (found[k] == values[people[k]])
                        )
                    samples[f"{label} agrees, %"] = {k: float(np.mean(v)) for k, v in right.items()}
            rows.append((label, judge, *cells, *fair))
    heads: tuple[str, ...] = ("label", "judge of", "true face %", "from photo %", "from voice %")
    heads += ("balanced, from voice %", "commonest label %")
    table = Table(
        "Agreement with the true label",
        heads,
        tuple(rows),
        "From photo is the ceiling: what the decoder keeps of a true embedding. A judge of "
        "embeddings sees those; a judge of pixels was fitted on photos only, and sees faces. "
        "Balanced is the mean over the labels; whoever always says the commonest is right as often "
        "as the last column says.",
    )
    text = (
        "Linear judges, fitted on people of the training split, name a label of each face.",
        *learnt.notes,
        *notes,
    )
    if not case.labels:
        text = ("No label of these people is known; --labels gives a csv file of them.",)
    return Section("Attributes", text, (table, *matrices) if rows else ()), samples


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
                    "face": (learnt.own[1], true, pixels.predict(learnt.own[0])),
                    "photo": (names, true, pixels.predict([f.image for f in case.from_photos])),
                    "voice": (speakers, true, pixels.predict([f.image for f in case.from_voices])),
                },
            )
        )
        note = (
            f"The judge of pixels, {label}: fitted on {len(there)} photos, right on "
            f"{100 * pixels.accuracy:.1f} % of those of people left out of the fit"
        )
        labels = learnt.photo_labels[label]
        fresh = [k for k, who in enumerate(learnt.fresh[1]) if who in labels]
        if fresh:
            said = pixels.predict([learnt.fresh[0][k] for k in fresh])
            result = confusion([labels[learnt.fresh[1][k]] for k in fresh], said)
            note += f", and on {100 * result.agreement:.1f} % of {len(fresh)} photos of new people"
        notes.append(f"{note}.")
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
