"""Figures with what they are worth: means, similarity, correlation, and the proportions of a face.

Samples of one person are alike, so chance is drawn over people: a bootstrap over identities, in
which all samples of a drawn one come along. A sample that is NaN says nothing and is left out.
Knows nothing of models, files and reports.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2f.errors import UsageError

CELLS = 2**22  # identities drawn at a time, in all rounds together
ROWS = 1024  # embeddings compared at a time
ALIKE = 2e-13  # deviation over size, below which values differ by rounding alone

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over samples, and what it is worth."""

    value: float  # NaN without samples
    low: float  # end of the 95 % interval
    high: float
    deviation: float  # of the samples
    p: float  # two-sided, of a mean of 0; 1 where it cannot be told
    n: int  # samples


def estimate(
    values: NDArray[Any], identities: Sequence[Any] | NDArray[Any], *, rounds: int = 1000
) -> Estimate:
    """Average samples [n] of identities [n], with a 95 % interval over identities.

    The percentiles of a bootstrap, too narrow for few identities: where all samples are equal, and
    with less than two identities, the interval is the value itself. p is twice the share of
    resampled means that are 0 or on its other side, at least 1 / rounds. Whether one model is
    better than another, the differences of their samples tell. The order of samples does not
    matter, to the bit. Raises UsageError for sides of other lengths and for infinite values.
    """
    from scipy.stats import bootstrap

    samples, people = np.asarray(values, np.float64), np.asarray(identities)
    _check_equal_length(samples, people)
    kept = ~np.isnan(samples)
    samples, n = _finite(samples[kept]), int(kept.sum())
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, np.nan, 1.0, 0)
    people = np.unique(people[kept], return_inverse=True)[1].reshape(-1)
    order = np.lexsort((samples, people))  # sums do not depend on how the samples came
    samples, people = samples[order], people[order]
    mean, deviation = float(samples.mean()), float(samples.std())
    counts, sums = np.bincount(people), np.bincount(people, samples)
    if len(counts) < 2:
        return Estimate(mean, mean, mean, deviation, 1.0, n)
    drawn = bootstrap(
        (sums, counts),  # of each person, drawn together
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=rounds,
        batch=max(1, CELLS // len(counts)),
        method="percentile",
        random_state=np.random.default_rng(0),
    )
    low, high = map(float, drawn.confidence_interval)
    means = drawn.bootstrap_distribution
    p = 2 * min(float(np.mean(means <= 0)), float(np.mean(means >= 0)))
    return Estimate(mean, low, high, deviation, min(1.0, max(1 / rounds, p)), n)


def compare_embeddings(true: NDArray[Any], predicted: NDArray[Any]) -> dict[str, Floats]:
    """Measure how far predicted embeddings [n d], in memory or mapped, are from the true ones.

    Gives `angle` [n] in degrees, 0..180, exact near both ends; `l1` [n]; and `l2` [n], 0..2.
    Lengths of embeddings do not count: all are brought to length 1, and one of zeros stays, at 90
    degrees from any. Oh et al. print L1 and L2 on a scale that they do not state, and that is not
    this one: only the angle compares with their table. Raises UsageError unless both are finite
    and of one shape.

    Source: Oh et al. 2019, Table 2; the angle as Kahan has it.
    """
    if true.ndim != 2 or true.shape != predicted.shape:
        shapes = f"{list(true.shape)} and {list(predicted.shape)}"
        raise UsageError(f"embeddings {shapes} cannot be compared; wanted two of [n d]")
    found = {name: np.empty(len(true)) for name in ("angle", "l1", "l2")}
    for start in range(0, len(true), ROWS):
        rows = slice(start, start + ROWS)
        a, b = _unit(true[rows]), _unit(predicted[rows])
        apart = np.linalg.norm(a - b, axis=1)
        found["angle"][rows] = np.degrees(2 * np.arctan2(apart, np.linalg.norm(a + b, axis=1)))
        found["l1"][rows] = np.abs(a - b).sum(1)
        found["l2"][rows] = apart
    return found


def correlation(a: NDArray[Any], b: NDArray[Any]) -> tuple[float, float, int]:
    """Correlate pairs [n] and [n]; one of which either side is NaN is left out.

    Gives Pearson's r, 0 where either side is constant; its two-sided p by Student's t, 1 where it
    cannot be told; and the pairs. Raises UsageError as `estimate`.
    """
    from scipy.stats import pearsonr

    _check_equal_length(a, b)
    kept = ~(np.isnan(a) | np.isnan(b))
    sides, n = [_finite(np.asarray(side[kept], np.float64)) for side in (a, b)], int(kept.sum())
    if n < 2 or any(np.ptp(side) <= ALIKE * np.abs(side).max() for side in sides):
        return 0.0, 1.0, n
    found = pearsonr(*sides)
    return float(found.statistic), float(found.pvalue), n


def _unit(rows: NDArray[Any]) -> Floats:
    exact = _finite(np.asarray(rows, np.float64))
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    return exact / np.where(norms > 0, norms, 1)


def _check_equal_length(a: NDArray[Any], b: NDArray[Any]) -> None:
    if a.ndim != 1 or a.shape != b.shape:
        shapes = f"{list(a.shape)} and {list(b.shape)}"
        raise UsageError(f"samples {shapes} do not belong together; wanted two of [n]")


def _finite(values: Floats) -> Floats:
    if not np.isfinite(values).all():
        raise UsageError("values are not finite", hint="look for what made them so")
    return values


def craniofacial(points: NDArray[np.floating]) -> dict[str, Floats]:
    """Measure the proportions of faces by landmarks [n 68 2] in iBUG order, left as in the picture.

    Gives each measure [n]; NaN where the points that it is divided by coincide. Size, place and
    turn in the picture do not count; a face that is turned to the side has other proportions. Of
    the anthropometrist's points the 68 hold some only about: nasion (the first point of the bridge,
    level with the eyes), gonion and zygion (the outline at the mouth's height, and just below the
    eyes), subalare, and the lip's border below it. Stomion is two points where the lips part, and
    alare is not there: the ends of the nostrils' base lie inside the wings' widest place.

    Source: the measures are those of Oh et al. 2019, fig. 5, with the philtrum's width, which they
    measured and did not print. They give names only; the definitions are those of Farkas 1994,
    "Anthropometry of the Head and Face". The labio-oral region, which is a region there, is taken
    for the one width measured in it that is not there under another name, the mouth's; the nose's
    area, for the outline of the nose from nasion over the nostrils' base.
    """
    p = np.asarray(points, np.float64)

    def length(i: int, j: int) -> Floats:
        apart: Floats = np.linalg.norm(p[:, i] - p[:, j], axis=-1)
        return apart

    eyes, mouth, jaw = length(36, 45), length(48, 54), length(4, 12)
    nose, height = length(31, 35), length(27, 33)
    x, y = np.moveaxis(p[:, [27, 31, 32, 33, 34, 35]], -1, 0)  # the nose's outline
    area = np.abs((x * np.roll(y, -1, axis=1) - y * np.roll(x, -1, axis=1)).sum(1)) / 2
    shares = {  # of lengths between anthropometrists' points
        "upper lip height": (length(33, 62), eyes),  # sn - sto / ex - ex
        "lateral upper lip heights": ((length(31, 49) + length(35, 53)) / 2, eyes),  # sbal - ls'
        "jaw width": (jaw, eyes),  # go - go
        "nose height": (height, eyes),  # n - sn
        "nose width": (nose, eyes),  # al - al
        "labio-oral region": (mouth, eyes),  # ch - ch
        "mandibular index": (length(66, 8), jaw),  # sto - gn / go - go
        "intercanthal index": (length(39, 42), eyes),  # en - en
        "nasal index": (nose, height),  # al - al / n - sn
        "vermilion height index": (length(51, 62), length(66, 57)),  # ls - sto / sto - li
        "mouth-face width index": (mouth, length(1, 15)),  # ch - ch / zy - zy
        "nose area": (area, eyes**2),  # of n, al, sn, al
        "philtrum width": (length(50, 52), eyes),  # cph - cph
    }
    return {
        name: np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
        for name, (part, whole) in shares.items()
    }
