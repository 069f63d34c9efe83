"""Figures of a model with what they are worth: intervals, differences, similarity, correlation.

Samples of one person are alike, so chance is drawn over people: a bootstrap over identities, in
which all samples of a drawn one come along. A sample that is NaN says nothing and is left out.

Craniofacial measures of faces from their 68 landmarks: what the shape of a face is compared by.

Points in iBUG order, left and right as in the picture. The anthropometrist's points, and where
the 68 hold them:

| point | where | is it? |
|---|---|---|
| n nasion | 27 | about: the first point of the bridge, level with the eyes |
| sn subnasale | 33 | yes |
| al alare | 31, 35 | no: the ends of the nostrils' base, inside the wings' widest place |
| sbal subalare | 31, 35 | about |
| ls, li middle of the lips' borders | 51, 57 | yes |
| ls' border of the upper lip under sbal | 49, 53 | about: between corner and peak |
| cph crista philtri | 50, 52 | yes: the peaks of the upper lip |
| sto stomion | 62, 66 | two points where the lips part: the edge of the lip that is measured |
| ch cheilion | 48, 54 | yes |
| gn gnathion | 8 | yes, if the chin's outline is its lower edge |
| go gonion | 4, 12 | about: the outline at the mouth's height |
| zy zygion | 1, 15 | about: the outline just below the eyes |
| en, ex endo-, exocanthion | 39, 42; 36, 45 | yes |

All are distances in the picture, so a face that is turned has other ones.

Source: the measures are those of Oh et al. 2019, fig. 5, with the philtrum's width, which they
measured and did not print. They give names only; the definitions are those of Farkas 1994,
"Anthropometry of the Head and Face". The labio-oral region, which is a region there, is taken
for the one width measured in it that is not there under another name, the mouth's; the nose's
area, for the outline of the nose from nasion over the nostrils' base.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2f.errors import UsageError

CELLS = 2**22  # identities drawn at a time, in all rounds together
ROWS = 1024  # embeddings compared at a time
ALIKE = 1e-13  # deviation over size, below which values differ by rounding alone

Floats = NDArray[np.float64]
Identities = Sequence[str] | Sequence[int] | NDArray[Any]


@dataclass(frozen=True)
class Estimate:
    """A mean over samples.

    Attributes:
        value: the mean; NaN without samples.
        low: lower end of the 95 % interval.
        high: upper end.
        deviation: of the samples, divided by their number.
        n: samples.
    """

    value: float
    low: float
    high: float
    deviation: float
    n: int


@dataclass(frozen=True)
class Difference:
    """How much larger a mean is than another of the same samples.

    Attributes:
        value: the mean difference; NaN without samples.
        low: lower end of the 95 % interval.
        high: upper end.
        p: two-sided; 1 where it cannot be told.
    """

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Correlation:
    """A Pearson correlation.

    Attributes:
        r: -1..1; 0 where either side is constant.
        p: two-sided, of no correlation; 1 where it cannot be told.
        n: pairs.
    """

    r: float
    p: float
    n: int


def estimate(
    values: NDArray[Any], identities: Identities, *, rounds: int = 1000, seed: int = 0
) -> Estimate:
    """Average samples, with a 95 % interval over identities.

    The percentiles of a bootstrap, which are too narrow for few identities: where all samples are
    equal, and with less than two identities, the interval is the value itself.

    Args:
        values: [n]; the order of the samples does not matter, to the bit.
        identities: whose each is, [n].
        rounds: bootstrap resamples.
        seed: of the resamples.

    Raises:
        UsageError: if there are not as many identities as values, or a value is infinite.
    """
    samples, people = _sorted(np.asarray(values, np.float64), identities)
    if not len(samples):
        return Estimate(np.nan, np.nan, np.nan, np.nan, 0)
    means = _resample(samples, people, rounds, seed)
    low, high = np.percentile(means, (2.5, 97.5))
    return Estimate(
        float(samples.mean()), float(low), float(high), float(samples.std()), len(samples)
    )


def compare_means(
    a: NDArray[Any],
    b: NDArray[Any],
    identities: Identities,
    *,
    rounds: int = 2000,
    seed: int = 0,
) -> Difference:
    """Tell by how much the mean of b is larger than that of a, sample by sample.

    Args:
        a: [n].
        b: [n], of the same samples; a pair of which one is NaN is left out.
        identities: whose each is, [n].
        rounds: bootstrap resamples of the identities.
        seed: of the resamples.

    Returns:
        The difference; its p is twice the share of resampled differences that are 0 or on the
        other side of 0, and at least 1 / rounds.

    Raises:
        UsageError: as `estimate`, or if there are not as many a as b.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    _check_equal_length(first, second)
    samples, people = _sorted(second - first, identities)
    if not len(samples):
        return Difference(np.nan, np.nan, np.nan, 1.0)
    means = _resample(samples, people, rounds, seed)
    low, high = np.percentile(means, (2.5, 97.5))
    p = 1.0
    if people[-1] > 0:
        p = 2 * min(float(np.mean(means <= 0)), float(np.mean(means >= 0)))
    return Difference(
        float(samples.mean()), float(low), float(high), float(np.clip(p, 1 / rounds, 1))
    )


def compare_embeddings(true: NDArray[Any], predicted: NDArray[Any]) -> dict[str, Floats]:
    """Measure how far predicted embeddings are from the true ones.

    Lengths of embeddings do not count: all are brought to length 1, and one of zeros stays, at 90
    degrees from any. Oh et al. print L1 and L2 on a scale that they do not state, and that is not
    this one: only the angle compares with their table.

    Args:
        true: [n d], in memory or mapped.
        predicted: [n d].

    Returns:
        `angle` [n] in degrees, 0..180, exact near both ends; `l1` [n]; `l2` [n], 0..2.

    Raises:
        UsageError: if they are not of one shape, or not finite.

    Source: Oh et al. 2019, Table 2; the angle as Kahan has it.
    """
    if true.ndim != 2 or true.shape != predicted.shape:
        raise UsageError(
            f"embeddings {list(true.shape)} and {list(predicted.shape)} cannot be compared; "
            "wanted two of [n d]"
        )
    found = {name: np.empty(len(true)) for name in ("angle", "l1", "l2")}
    for start in range(0, len(true), ROWS):
        rows = slice(start, start + ROWS)
        a, b = _unit(true[rows]), _unit(predicted[rows])
        apart = np.linalg.norm(a - b, axis=1)
        found["angle"][rows] = np.degrees(2 * np.arctan2(apart, np.linalg.norm(a + b, axis=1)))
        found["l1"][rows] = np.abs(a - b).sum(1)
        found["l2"][rows] = apart
    return found


def correlation(a: NDArray[Any], b: NDArray[Any]) -> Correlation:
    """Correlate pairs [n] and [n]: Pearson's r, and its p by Student's t.

    A pair of which one is NaN is left out.

    Raises:
        UsageError: if there are not as many of both, or a value is infinite.
    """
    from scipy.special import stdtr

    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    _check_equal_length(first, second)
    kept = ~(np.isnan(first) | np.isnan(second))
    first, second, n = first[kept], second[kept], int(kept.sum())
    _check_finite(first)
    _check_finite(second)
    if n < 2 or _is_constant(first) or _is_constant(second):
        return Correlation(0.0, 1.0, n)
    x, y = (side - side.mean() for side in (first, second))
    r = float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1, 1))
    if n < 3:
        return Correlation(r, 1.0, n)
    if abs(r) == 1:
        return Correlation(r, 0.0, n)
    t = abs(r) * ((n - 2) / ((1 - r) * (1 + r))) ** 0.5
    return Correlation(r, float(2 * stdtr(n - 2, -t)), n)


def _sorted(values: Floats, identities: Identities) -> tuple[Floats, NDArray[np.intp]]:
    """Order samples by identity and value, so that sums do not depend on how they came."""
    people = np.asarray(identities)
    _check_equal_length(values, people)
    kept = ~np.isnan(values)
    values = values[kept]
    _check_finite(values)
    codes = np.unique(people[kept], return_inverse=True)[1].reshape(-1)
    order = np.lexsort((values, codes))
    return values[order], codes[order]


def _resample(values: Floats, people: NDArray[np.intp], rounds: int, seed: int) -> Floats:
    """Average the samples of people drawn with replacement, `rounds` times: [rounds]."""
    counts, sums = np.bincount(people), np.bincount(people, values)
    if len(counts) < 2:
        return np.full(rounds, values.mean())
    drawn = _draws(len(counts), rounds, seed)
    return np.concatenate([sums[who].sum(1) / counts[who].sum(1) for who in drawn])


def _draws(n: int, rounds: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Draw n out of n with replacement, some rounds [r n] at a time."""
    rng = np.random.default_rng(seed)
    step = max(1, CELLS // n)
    for start in range(0, rounds, step):
        yield rng.integers(0, n, (min(step, rounds - start), n))


def _unit(rows: NDArray[Any]) -> Floats:
    exact = np.asarray(rows, np.float64)
    _check_finite(exact)
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    return exact / np.where(norms > 0, norms, 1)


def _is_constant(values: Floats) -> bool:
    return bool(np.ptp(values) <= ALIKE * np.abs(values).max())


def _check_equal_length(a: NDArray[Any], b: NDArray[Any]) -> None:
    if a.ndim != 1 or a.shape != b.shape:
        raise UsageError(
            f"samples {list(a.shape)} and {list(b.shape)} do not belong together; wanted two of [n]"
        )


def _check_finite(values: Floats) -> None:
    if not np.isfinite(values).all():
        raise UsageError("values are not finite", hint="look for what made them so")


Measures = dict[str, NDArray[np.float64]]
_NOSE = (27, 31, 32, 33, 34, 35)


def measure(points: NDArray[np.floating]) -> Measures:
    """Measure faces, whatever their size, place and turn in the picture.

    Args:
        points: [n 68 2].

    Returns:
        By the measure's name, [n]. NaN where the points that it is divided by coincide.

        | measure | definition | unit |
        |---|---|---|
        | upper lip height | sn - sto | ex - ex |
        | lateral upper lip heights | sbal - ls', mean of both sides | ex - ex |
        | jaw width | go - go | ex - ex |
        | nose height | n - sn | ex - ex |
        | nose width | al - al | ex - ex |
        | labio-oral region | ch - ch | ex - ex |
        | mandibular index | sto - gn | go - go |
        | intercanthal index | en - en | ex - ex |
        | nasal index | al - al | n - sn |
        | vermilion height index | ls - sto | sto - li |
        | mouth-face width index | ch - ch | zy - zy |
        | nose area | of n, al, sn, al | (ex - ex) squared |
        | philtrum width | cph - cph | ex - ex |
    """
    p = np.asarray(points, np.float64)

    def length(i: int, j: int) -> NDArray[np.float64]:
        apart: NDArray[np.float64] = np.linalg.norm(p[:, i] - p[:, j], axis=-1)
        return apart

    eyes, mouth, jaw, nose = length(36, 45), length(48, 54), length(4, 12), length(31, 35)
    height = length(27, 33)
    return {
        "upper lip height": _over(length(33, 62), eyes),
        "lateral upper lip heights": _over((length(31, 49) + length(35, 53)) / 2, eyes),
        "jaw width": _over(jaw, eyes),
        "nose height": _over(height, eyes),
        "nose width": _over(nose, eyes),
        "labio-oral region": _over(mouth, eyes),
        "mandibular index": _over(length(66, 8), jaw),
        "intercanthal index": _over(length(39, 42), eyes),
        "nasal index": _over(nose, height),
        "vermilion height index": _over(length(51, 62), length(66, 57)),
        "mouth-face width index": _over(mouth, length(1, 15)),
        "nose area": _over(_area(p[:, list(_NOSE)]), eyes**2),
        "philtrum width": _over(length(50, 52), eyes),
    }


def _over(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    share: NDArray[np.float64] = np.divide(a, b, out=np.full_like(a, np.nan), where=b > 0)
    return share


def _area(outlines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area [n] inside closed outlines [n k 2]."""
    x, y = outlines[..., 0], outlines[..., 1]
    crossed = x * np.roll(y, -1, axis=-1) - y * np.roll(x, -1, axis=-1)
    area: NDArray[np.float64] = np.abs(crossed.sum(-1)) / 2
    return area
