"""What embeddings and faces tell about people, as linear judges of labels see them.

A judge is fitted to examples whose label is known and then says what others look like to it. One
reads embeddings; the other reads pixels of real photos and knows nothing of any network, so that
it can judge the networks' faces. Labels are strings: sex, decade of age, or any other groups.
Last stands the section of a report that both fill. Knows nothing of trees and networks.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s2f.errors import UsageError
from s2f.evaluation_data import WHOLE, Case, Embeddings, Examples, Samples, pieces
from s2f.image_quality import INNER
from s2f.images import FRAME
from s2f.metrics import estimate
from s2f.report import Cell, Matrix, Part, Row, Section, Table

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

Vector = NDArray[np.float64]

OH, OH_SEX = "published: Oh et al., Face++", 0.94
AGREEMENT: tuple[Row, ...] = (  # as rows of the first table below
    ("sex", OH, None, None, OH_SEX, None, None),
    ("sex", "published: Wen et al.", None, None, 0.9645, None, None),
)
# Oh et al. 2019, Figure 4 and supplement, by true label: from the photo and from the voice, and how
# often the face from the voice is told as that from the photo is.
BY_LABEL: tuple[Row, ...] = tuple(
    (label, name, OH, photo, voice, alike, None)
    for label, name, photo, voice, alike in (
        ("sex", "F", 0.89, 0.94, 0.96),
        ("sex", "M", 0.98, 0.94, 0.91),
        ("age", "10-19", None, 0.0, None),
        ("age", "20-29", 0.58, 0.26, None),
        ("age", "30-39", 0.42, 0.32, None),
        ("age", "40-49", 0.46, 0.33, None),
        ("age", "50-59", 0.52, 0.30, None),
        ("age", "60-69", 0.40, 0.16, None),
        ("age", "70-79", 0.61, 0.35, None),
        ("ethnicity", "Asian", 0.71, 0.50, None),
        ("ethnicity", "black", 0.41, 0.11, None),
        ("ethnicity", "India", 0.55, 0.13, None),
        ("ethnicity", "white", 0.76, 0.61, None),
    )
)

RIDGE = 1e-4  # of the mean variance: features that hang together may hide how little they vary
SMALL = (32, 40)  # width and height in which the inner face is judged, pixels
AT_ONCE = 256  # faces that are judged at a time
COMPONENTS, FOLDS = 40, 12  # that it is judged on, and that the judge is measured by


@dataclass(frozen=True)
class EmbeddingProbe:
    """A linear classifier of embeddings."""

    classes: tuple[str, ...]  # the labels, sorted
    weight: Vector  # [d c]
    bias: Vector  # [c]

    @classmethod
    def fit(cls, embeddings: NDArray[np.floating], labels: Sequence[str]) -> "EmbeddingProbe":
        """Fit a linear discriminant to embeddings [n d], of any size and few examples, and labels.

        Features keep their scale: the small ones of a space of embeddings are mostly noise. The
        covariance within classes is shrunk as Ledoit and Wolf 2004 find best. All classes are taken
        to be as frequent, and what the mean of few examples owes to chance is taken off (Moran and
        Murphy 1979); scikit-learn's discriminant does not, and takes a minute for 4096 values.
        Raises UsageError if there is one class only, or one has a single example.
        """
        from sklearn.covariance import ledoit_wolf_shrinkage

        names = _classes(labels, "examples")
        at = np.array([names.index(label) for label in labels])
        x, counts = np.array(embeddings, np.float64), np.bincount(at)
        centre, means = x.mean(0), np.stack([x[at == k].mean(0) for k in range(len(names))])
        for k, mean in enumerate(means):  # in place: x may be 100 MB
            x[at == k] -= mean
        means -= centre
        shrunk = float(ledoit_wolf_shrinkage(x, assume_centered=True))
        size = float(np.vdot(x, x)) / x.size
        ridge = shrunk * size + RIDGE * (size or 1.0)
        x *= math.sqrt((1 - shrunk) / len(x))
        weight, trace = _solve(x, ridge, means.T)  # [d c]
        # trace(S^-1 A'A / n) of the A that is not shrunk.
        chance = (trace / (1 - shrunk) if shrunk < 1 else x.shape[1] * size / ridge) / counts
        bias = -((weight * means.T).sum(0) - chance) / 2
        return cls(names, weight, bias - centre @ weight)

    def predict(self, embeddings: Embeddings) -> list[str]:
        """Tell the class of embeddings [n d]."""
        scores = (part @ self.weight + self.bias for _, part in pieces(embeddings))
        return [self.classes[k] for part in scores for k in part.argmax(1)]


def _solve(rows: Vector, ridge: float, sides: Vector) -> tuple[Vector, float]:
    """Solve S w = b of S = A'A + r I, rows A [n d], sides b [d c]; with it, trace(S^-1 A'A).

    By the smaller of A'A and AA': A'A of VGG-Face's 4096 values is 134 MB, and takes three of it.
    """
    from scipy.linalg import cho_factor, cho_solve

    n, d = rows.shape
    gram = rows @ rows.T if n < d else rows.T @ rows
    gram.flat[:: len(gram) + 1] += ridge
    factor = cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)
    if n < d:
        solved = (sides - rows.T @ cho_solve(factor, rows @ sides)) / ridge
    else:
        solved = cho_solve(factor, sides)
    inverse = cho_solve(factor, np.eye(len(gram)), overwrite_b=True, check_finite=False)
    return solved, len(gram) - ridge * float(inverse.trace())


@dataclass(frozen=True)
class PixelProbe:
    """A classifier of faces by their pixels: of the inner face, brows to chin, in 32 x 40."""

    accuracy: float  # share of photos that it is right on, of people that it was not fitted to
    model: "Pipeline"  # fitted to all photos

    @classmethod
    def fit(
        cls, photos: Iterable[Image.Image], labels: Sequence[str], groups: Sequence[str | int]
    ) -> "PixelProbe":
        """Fit a shrunk linear discriminant to 40 principal components of real photos.

        Each is in the 224 frame, or a larger one of the same framing, and has a label and a group,
        who is on it: people are never split in measuring the accuracy. Raises UsageError if there
        is one class only, or one of a single person.
        """
        from sklearn.model_selection import GroupKFold

        seen = dict.fromkeys(zip(labels, groups, strict=True))
        _classes([label for label, _ in seen], "people")
        x, y = _stack(photos), np.asarray(labels)
        said = np.empty_like(y)
        folds = GroupKFold(min(FOLDS, len({*groups})))
        for train, test in folds.split(x, y, groups):
            counts = Counter(y[train].tolist())
            train = train[[counts[label] > 1 for label in y[train]]]
            if len({*y[train]}) < 2:
                said[test] = counts.most_common(1)[0][0]
            else:
                said[test] = _fit_pixels(x[train], y[train]).predict(x[test])
        return cls(float(np.mean(said == y)), _fit_pixels(x, y))

    def predict(self, images: Iterable[Image.Image]) -> list[str]:
        """Tell the class of faces."""
        said, left = list[str](), iter(images)
        while some := list(islice(left, AT_ONCE)):
            said += self.model.predict(_stack(some)).tolist()
        return said

    def score(self, images: Sequence[Image.Image]) -> Vector:
        """How much faces are of the second of two classes rather than of the first, [n].

        Raises UsageError if there are more classes.
        """
        if len(self.model.classes_) > 2:
            found = f"a score needs two classes, and there are {', '.join(self.model.classes_)}"
            raise UsageError(found, hint="use predict")
        scores: Vector = self.model.decision_function(_stack(images)) if images else np.zeros(0)
        return scores


def _fit_pixels(x: Vector, y: NDArray[np.str_]) -> "Pipeline":
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.pipeline import make_pipeline

    components = PCA(min(COMPONENTS, len(x) - 1), random_state=0)
    judge = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1)
    return make_pipeline(components, judge).fit(x, y)


def _stack(faces: Iterable[Image.Image]) -> Vector:
    """Inner faces [n 3840] of pictures, each of mean 0 and deviation 1."""
    rows = []
    for face in faces:
        small = face.convert("RGB").resize((FRAME, FRAME), Image.Resampling.LANCZOS)
        small = small.resize(SMALL, Image.Resampling.BOX, INNER)
        pixels = np.asarray(small, np.float64).ravel()
        rows.append((pixels - pixels.mean()) / (pixels.std() or 1.0))
    return np.stack(rows)


def _classes(labels: Sequence[str], what: str) -> tuple[str, ...]:
    """Name the classes, sorted, if there are some to tell apart."""
    counts = Counter(labels)
    if len(counts) < 2:
        said = f"a label of {len(counts)} class: {', '.join(counts) or 'there are no examples'}"
        raise UsageError(f"nothing can be told apart by {said}", hint="leave the label out")
    if few := sorted(name for name, count in counts.items() if count < 2):
        message = f"a class needs 2 {what} at least, and {few[0]!r} has one"
        raise UsageError(message, hint="leave the label out, or its rare classes")
    return tuple(sorted(counts))


Judged = dict[str, tuple[Sequence[str], Sequence[str]]]
"""Of true faces (`face`), and those drawn of photos and voices: whose each is, what is said."""


def attributes_section(
    case: Case, examples: Examples, notes: Sequence[str] = ()
) -> tuple[Section, Samples]:
    """Judge labels of true faces, of those from photos and voices; notes are on missing labels."""
    from s2f.files import canonical

    rows: list[Row] = []
    by_label: list[Row] = []
    matrices: list[Matrix] = []
    samples: Samples = {}
    figures: list[Row] = []
    text = ["Linear judges, fitted on people of the training split, name a label of each face."]
    text += [*notes, *examples.notes]
    for label, values in case.labels.items():
        for judge, fit in (("embeddings", _judge_embeddings), ("pixels", _judge_pixels)):
            try:
                judged = fit(case, examples, label, text)
            except UsageError as error:
                text.append(f"Judge of {judge} left out: {error.message}.")
                continue
            cells: dict[str, Cell] = {}
            for source, (people, found) in judged.items():
                known = [k for k, who in enumerate(people) if who in values]
                if not known:
                    continue
                true = np.array([values[people[k]] for k in known])
                said = np.array([found[k] for k in known])
                right, kinds = true == said, sorted({*true.tolist()})
                title = f"{label}, judge of {judge}: true and from {source}"
                classes = tuple(sorted({*kinds, *said.tolist()}))
                pairs = [[int(np.sum(said[true == a] == b)) for b in classes] for a in classes]
                matrices.append(Matrix(title, classes, tuple(map(tuple, pairs))))
                cells[source] = float(right.mean())
                if source == "voice":
                    cells["balanced"] = float(np.mean([right[true == k].mean() for k in kinds]))
                    cells["commonest"] = max(float(np.mean(true == k)) for k in kinds)
                if source == "voice" and judge == "pixels":
                    agrees = np.full(len(people), np.nan)
                    agrees[known] = 100 * right
                    samples[f"{label} agrees, %"] = case.by_person(agrees)
                    whose = case.people.speakers[known]
                    share = estimate(right.astype(float), whose, share=True)
                    ends = (100 * share.value, 100 * share.low, 100 * share.high)
                    sexes = canonical(label) in ("sex", "gender")
                    published = f"{100 * OH_SEX:.4g} (Oh)" if sexes else None
                    commonest = 100 * max(float(np.mean(true == k)) for k in kinds)
                    figures.append((f"{label} agrees, %", *ends, commonest, published))
            shown = ("face", "photo", "voice", "balanced", "commonest")
            rows.append((label, judge, *map(cells.get, shown)))
            by_label += _by_label(label, judge, judged, values)
    heads = ("label", "judge of", "true face %", "from photo %", "from voice %")
    table = Table(
        "Agreement with the true label",
        (*heads, "balanced, from voice %", "commonest label %"),
        (*rows, *AGREEMENT),
        "From photo is the ceiling: what the decoder keeps of a true embedding. A judge of "
        "embeddings sees those; a judge of pixels was fitted on photos only, and sees faces. "
        "Balanced is the mean over the labels; whoever always says the commonest is right as often "
        "as the last column says.",
    )
    each = Table(
        "Agreement by true label",
        ("label", "true", "judge of", "from photo %", "from voice %", "voice as photo %", "N"),
        (*by_label, *BY_LABEL),
        "Voice as photo: of the recordings of those whose face from the photo is told to have the "
        "label, how many have a face from the voice that is told so, too. N counts recordings.",
    )
    if not case.labels:
        text = ["No label of these people is known; --labels gives a csv file of them."]
    parts: tuple[Part, ...] = (table, each, *matrices) if rows else ()
    return Section("Attributes", tuple(text), parts, tuple(figures)), samples


def _by_label(label: str, judge: str, judged: Judged, values: Mapping[str, str]) -> list[Row]:
    """Give rows of shares that are right, by the true label."""
    drawn, (speakers, said) = dict(zip(*judged["photo"], strict=True)), judged["voice"]
    heard = list(zip(speakers, said, strict=True))
    rows: list[Row] = []
    for name in sorted({values[who] for who in speakers if who in values}):
        told = (
            [one for who, one in drawn.items() if values.get(who) == name],
            [one for who, one in heard if values.get(who) == name],
            [one for who, one in heard if drawn[who] == name],
        )
        shares = (some.count(name) / len(some) if some else None for some in told)
        rows.append((label, name, judge, *shares, len(told[1])))
    return rows


def _judge_embeddings(case: Case, examples: Examples, label: str, notes: list[str]) -> Judged:
    """Fit a judge of embeddings, and ask it."""
    values = examples.labels.get(label, {})
    there, rare = _shared(values, examples.names)
    if rare:
        notes.append(f"Left out of {label}, as one person has it: {', '.join(rare)}.")
    if not there:
        raise UsageError(f"{label}: nobody of the training split has this label")
    known = [values[examples.names[k]] for k in there]
    ask = EmbeddingProbe.fit(examples.embeddings[there], known).predict
    names = case.people.names
    return {
        "face": (names, ask(case.people.means())),
        "photo": (names, ask(case.photos_again)),
        "voice": ([names[k] for k in case.people.speakers], ask(case.heard[WHOLE])),
    }


def _judge_pixels(case: Case, examples: Examples, label: str, notes: list[str]) -> Judged:
    """Fit a judge of pixels, note how good it is, and ask it."""
    values = examples.photo_labels.get(label, {})
    photos, fresh = examples.photos, examples.fresh
    there, _ = _shared(values, photos.who)
    if not there:
        raise UsageError(f"{label}: no photo of the training split has this label")
    who = [photos.who[k] for k in there]
    probe = PixelProbe.fit((photos.images[k] for k in there), [values[one] for one in who], who)
    ask, names = probe.predict, case.people.names
    note = (
        f"The judge of pixels, {label}: fitted on {len(there)} photos, right on "
        f"{100 * probe.accuracy:.1f} % of those of people left out of the fit"
    )
    if new := [k for k, one in enumerate(fresh.who) if one in values]:
        said = np.array(ask(fresh.images[k] for k in new))
        share = np.mean(said == [values[fresh.who[k]] for k in new])
        note += f", and on {100 * share:.1f} % of {len(new)} photos of new people"
    notes.append(f"{note}.")
    heard = [names[k] for k in case.people.speakers]
    return {
        "face": (examples.own.who, ask(examples.own.images)),
        "photo": (names, ask(face.image for face in case.from_photos)),
        "voice": (heard, ask(face.image for face in case.from_voices)),
    }


def _shared(values: Mapping[str, str], people: Sequence[str]) -> tuple[list[int], list[str]]:
    """Find those whose value another person has, too, and the values that one alone has."""
    counts = Counter(values[who] for who in {*people} if who in values)
    there = [k for k, who in enumerate(people) if who in values and counts[values[who]] > 1]
    return there, sorted(value for value, n in counts.items() if n == 1)
