"""What embeddings and faces tell about people: linear probes of any label, and confusion.

A probe is fitted to examples whose label is known and then says what others look like to it. One
reads embeddings; the other reads pixels of real photos and knows nothing of any network, so that
it can judge the networks' faces. Labels are strings: sex, decade of age, or any other groups.

Labels of faces, as linear judges see them: a section of a report.

One judge reads embeddings; another, independent one reads pixels, and was fitted on photos only.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s2f.errors import UsageError
from s2f.evaluation_data import WHOLE, Case, Samples
from s2f.image_quality import INNER
from s2f.images import FRAME
from s2f.report import Matrix, Row, Section, Table

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


Vector = NDArray[np.float64]

_ROWS = 2048  # embeddings that are read at once
_SMALL = (32, 40)  # width and height in which the inner face is judged, pixels
_COMPONENTS, _FOLDS = 40, 12  # that it is judged on, and that the judge is measured by


@dataclass(frozen=True)
class Confusion:
    """What was taken for what.

    Attributes:
        classes: the labels, in the order of the counts.
        counts: [c c]: row true, column predicted.
    """

    classes: tuple[str, ...]
    counts: NDArray[np.int64]

    @property
    def shares(self) -> Vector:
        """Shares of each row [c c]; a class without examples has zeros."""
        return np.asarray(self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1))

    @property
    def agreement(self) -> float:
        """Share of all examples that were taken for what they are."""
        return float(np.trace(self.counts) / self.counts.sum())

    @property
    def balanced(self) -> float:
        """Mean over the classes that have examples of the share that was taken for it.

        Guessing gives one over their number, however unequal they are.
        """
        return float(self.shares.diagonal()[self.counts.sum(1) > 0].mean())


def confusion(
    true: Sequence[str], predicted: Sequence[str], classes: Sequence[str] | None = None
) -> Confusion:
    """Count what was taken for what.

    Args:
        true: labels.
        predicted: what the same examples were taken for.
        classes: the labels there are, in the order that is wanted; None for those that occur.

    Raises:
        UsageError: if there are no examples, or a label is none of the classes.
    """
    if not len(true):
        raise UsageError("there are no labels to compare", hint="give at least one example")
    named = tuple(dict.fromkeys(classes) if classes else sorted({*true, *predicted}))
    at = {name: k for k, name in enumerate(named)}
    if strangers := sorted({*true, *predicted} - set(named)):
        raise UsageError(
            f"the label {strangers[0]!r} is none of the classes {', '.join(named)}",
            hint="name all classes that occur",
        )
    counts = np.zeros((len(named), len(named)), np.int64)
    for a, b in zip(true, predicted, strict=True):
        counts[at[a], at[b]] += 1
    return Confusion(named, counts)


@dataclass(frozen=True)
class EmbeddingProbe:
    """A linear classifier of embeddings.

    Attributes:
        classes: the labels, sorted.
        weight: [d c].
        bias: [c].
    """

    classes: tuple[str, ...]
    weight: Vector
    bias: Vector

    @classmethod
    def fit(cls, embeddings: NDArray[np.floating], labels: Sequence[str]) -> "EmbeddingProbe":
        """Fit a linear discriminant: for any size of embedding, few examples or a hundred thousand.

        Features keep their scale: the small ones of a space of embeddings are mostly noise, and
        in standardised ones it counts as much as the rest. The covariance within classes is shrunk
        towards a multiple of the identity by as much as Ledoit and Wolf 2004 find best for so
        many examples. All classes are taken to be as frequent, so that a rare one is not lost,
        and what the mean of few examples owes to chance is taken off (Moran and Murphy 1979).
        Memory: some matrices [d d], whatever the number of examples.

        Args:
            embeddings: [n d], which may be mapped from a file.
            labels: [n].

        Raises:
            UsageError: if there is one class only, or one has a single example.
        """
        from scipy.linalg import cho_factor, cho_solve

        names = _classes(labels, "examples")
        at = np.array([names.index(label) for label in labels])
        n, d = embeddings.shape
        parts = [slice(start, start + _ROWS) for start in range(0, n, _ROWS)]
        sums = np.zeros((len(names), d))
        for part in parts:
            sums += np.eye(len(names))[at[part]].T @ np.asarray(embeddings[part], np.float64)
        counts = np.bincount(at)
        centre = sums.sum(0) / n
        means = sums / counts[:, None]  # [c d]
        within, fourth = np.zeros((d, d)), 0.0
        for part in parts:
            z = (np.asarray(embeddings[part], np.float64) - means[at[part]]).astype(np.float32)
            within += z.T @ z
            fourth += float((np.square(z, dtype=np.float64).sum(1) ** 2).sum())
        within /= n
        factor = cho_factor(_shrunk(within, fourth, n))
        means -= centre
        weight = cho_solve(factor, means.T)  # [d c]
        chance = float(np.trace(cho_solve(factor, within))) / counts
        bias = -((weight * means.T).sum(0) - chance) / 2
        return cls(names, weight, bias - centre @ weight)

    def predict(self, embeddings: NDArray[np.floating]) -> list[str]:
        """Tell the class of embeddings [n d]."""
        found: list[str] = []
        for start in range(0, len(embeddings), _ROWS):
            x = np.asarray(embeddings[start : start + _ROWS], np.float64)
            found += [self.classes[k] for k in (x @ self.weight + self.bias).argmax(1)]
        return found


def _shrunk(covariance: Vector, fourth: float, n: int) -> Vector:
    """Shrink a covariance [d d] of n examples; `fourth` sums the fourth powers of their norms."""
    d = len(covariance)
    level = np.trace(covariance) / d
    size = float(np.square(covariance).sum())
    spread = size - level**2 * d  # from a multiple of the identity, squared
    noise = (fourth / n - size) / n
    share = min(1.0, max(0.0, noise / spread)) if spread > 0 else 1.0
    shrunk = (1 - share) * covariance
    # Never singular, though features that hang together may hide how little they vary.
    shrunk.flat[:: d + 1] += share * level + 1e-4 * (level or 1.0)
    return shrunk


@dataclass(frozen=True)
class PixelProbe:
    """A classifier of faces by their pixels.

    Attributes:
        classes: the labels, sorted.
        held_out: what the photos it was fitted to are taken for by probes that were not fitted
            to the same people.
        model: the probe fitted to all photos.
    """

    classes: tuple[str, ...]
    held_out: Confusion
    model: "Pipeline"

    @classmethod
    def fit(
        cls, photos: Iterable[Image.Image], labels: Sequence[str], groups: Sequence[Hashable]
    ) -> "PixelProbe":
        """Fit a probe to real photos.

        It reads the inner face (brows to chin, no hair) in 32 x 40 pixels, each photo brought to
        mean 0 and deviation 1: 40 principal components, and a shrunk linear discriminant.

        Args:
            photos: of faces in the 224 frame, or in larger ones of the same framing.
            labels: one a photo.
            groups: who is on each photo: people are never split in measuring the accuracy.

        Raises:
            UsageError: if there is one class only, or all photos of one show one person.
        """
        from sklearn.model_selection import GroupKFold

        seen = dict.fromkeys(zip(labels, groups, strict=True))
        names = _classes([label for label, _ in seen], "people")
        order = {who: k for k, who in enumerate(dict.fromkeys(groups))}
        of, y = np.array([order[who] for who in groups]), np.asarray(labels)
        x = _stack(photos)
        folds = GroupKFold(min(_FOLDS, len(order)))
        predicted = np.empty_like(y)
        for train, test in folds.split(x, y, of):
            predicted[test] = _predict(x[train], y[train], x[test])
        held_out = confusion(y.tolist(), predicted.tolist(), names)
        return cls(names, held_out, _judge(len(x)).fit(x, y))

    @property
    def accuracy(self) -> float:
        """Share of photos it is right on, of people that it was not fitted to."""
        return self.held_out.agreement

    @property
    def balanced(self) -> float:
        """The same as a mean over classes."""
        return self.held_out.balanced

    def predict(self, images: Sequence[Image.Image]) -> list[str]:
        """Tell the class of faces."""
        return list(self.model.predict(_stack(images)).tolist()) if images else []

    def score(self, images: Sequence[Image.Image]) -> Vector:
        """How much faces are of the second of two classes rather than of the first, [n].

        Raises:
            UsageError: if there are more than two classes.
        """
        if len(self.classes) != 2:
            raise UsageError(
                f"a score needs two classes, and there are {', '.join(self.classes)}",
                hint="use predict",
            )
        scores: Vector = self.model.decision_function(_stack(images)) if images else np.zeros(0)
        return scores


def _judge(n: int) -> "Pipeline":
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.pipeline import make_pipeline

    return make_pipeline(
        PCA(min(_COMPONENTS, n - 1), random_state=0),
        LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1),
    )


def _predict(x: Vector, y: NDArray[np.str_], others: Vector) -> NDArray[np.str_]:
    """Fit a probe to some photos and tell the class of others."""
    counts = Counter(y.tolist())
    keep = np.array([counts[label] > 1 for label in y])
    if len(set(y[keep].tolist())) < 2:
        return np.full(len(others), counts.most_common(1)[0][0])
    found: NDArray[np.str_] = _judge(int(keep.sum())).fit(x[keep], y[keep]).predict(others)
    return found


def _stack(faces: Iterable[Image.Image]) -> Vector:
    """Inner faces [n 3840] of pictures, each of mean 0 and deviation 1."""
    rows = []
    for face in faces:
        small = face.convert("RGB").resize((FRAME, FRAME), Image.Resampling.LANCZOS)
        small = small.resize(_SMALL, Image.Resampling.BOX, INNER)
        pixels = np.asarray(small, np.float64).ravel()
        rows.append((pixels - pixels.mean()) / (pixels.std() or 1.0))
    return np.stack(rows)


def _classes(labels: Sequence[str], what: str) -> tuple[str, ...]:
    """Name the classes, sorted, if there are some to tell apart."""
    counts = Counter(labels)
    if len(counts) < 2:
        raise UsageError(
            f"nothing can be told apart by a label of {len(counts)} class: "
            f"{', '.join(counts) or 'there are no examples'}",
            hint="leave the label out",
        )
    if few := sorted(name for name, count in counts.items() if count < 2):
        raise UsageError(
            f"a class needs 2 {what} at least, and {few[0]!r} has one",
            hint="leave the label out, or its rare classes",
        )
    return tuple(sorted(counts))


LabelsOf = Mapping[str, Mapping[str, str]]


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
    labels: LabelsOf
    photos: Sequence[Image.Image]
    shown: Sequence[str]
    photo_labels: LabelsOf
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
