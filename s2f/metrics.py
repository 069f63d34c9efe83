"""Figures with what they are worth: means, similarity, correlation, and the proportions of a face.

Samples of one person are alike, so chance is of people: all samples of one are drawn, or changed,
together. A sample that is NaN says nothing and is left out. Knows nothing of models, files and
reports. `benchmarks/intervals.py` simulates how often the intervals hold the truth, and how often
a difference is found where there is none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2f.errors import UsageError

CELLS = 2**22  # pairs whose signs are drawn at a time, in all rounds together
DRAWN = 2**18  # identities drawn at a time; the draws are the same whatever this is
ROWS = 1024  # embeddings compared at a time
ALIKE = 2e-13  # deviation over size, below which values differ by rounding alone
TAIL = 0.025  # beyond each end of an interval
ROUNDS = 1999  # of drawing; with the figure itself, a whole number lies in each tail
FLIPS = 9999  # of signs; the same ones always, so that fewer would shift all p a little one way
MANY = 4000  # identities, above which the time that BCa takes, their square, buys nothing

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over samples, and what it is worth."""

    value: float  # NaN without samples
    low: float  # end of the 95 % interval; NaN of one identity, from which nothing follows
    high: float
    deviation: float  # of the samples
    n: int  # samples


@dataclass(frozen=True)
class Difference:
    """A mean difference of pairs, and whether it is more than chance."""

    value: float
    low: float  # end of the 95 % interval; infinite where five pairs or fewer tell nothing
    high: float
    p: float  # two-sided, of no difference
    n: int  # pairs


def estimate(
    values: NDArray[Any], identities: Sequence[Any] | NDArray[Any], *, share: bool = False
) -> Estimate:
    """Average samples [n] of identities [n], with a 95 % interval over identities.

    A mean of a `share`, samples 0..1, has Wilson's interval, any other mean the BCa bootstrap's,
    which is the value itself where all identities have the same. The order of samples does not
    matter, to the bit. Raises UsageError for sides of other lengths, for infinite values, and for
    shares that are none.
    """
    samples, people = np.asarray(values, np.float64), np.asarray(identities)
    _check_equal_length(samples, people)
    kept = ~np.isnan(samples)
    samples, n = _finite(samples[kept]), int(kept.sum())
    if share and ((samples < 0) | (samples > 1)).any():
        raise UsageError("shares are from 0 to 1", hint="divide percents by 100")
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, np.nan, 0)
    people = np.unique(people[kept], return_inverse=True)[1].reshape(-1)
    order = np.lexsort((samples, people))  # sums do not depend on how the samples came
    samples, people = samples[order], people[order]
    mean, deviation = float(samples.mean()), float(samples.std())
    of_each = (np.bincount(people, samples), np.bincount(people))
    sums, counts = (np.asarray(one, np.float64) for one in of_each)
    ends = (np.nan, np.nan)
    if len(counts) > 1:
        hits = bool(np.isin(samples, (0, 1)).all())
        ends = _wilson(sums, counts, hits=hits) if share else _bca(sums, counts)
    return Estimate(mean, *ends, deviation, n)


def _wilson(sums: Floats, counts: Floats, *, hits: bool) -> tuple[float, float]:
    """Bound a share by the sums [i] and numbers [i] of the samples of each identity.

    Wilson's score interval with the correction for continuity, without which it holds rates such as
    0.03 of 17 too rarely. Samples of one identity count as one, as all, or in between, as the
    spread between identities says; t stands for z, as that is known of few identities only. Samples
    that are not hits, 0 or 1, but shares themselves, as means over draws, count for more. How much
    they spread is then seen with two identities more, of nothing and of all: few that are as good
    as 1 do not tell how rare a 0 is.

    Source: Newcombe 1998, "Two-sided confidence intervals for the single proportion", method 4;
    the effective number of samples is that of Korn and Graubard 1998.
    """
    from scipy.special import stdtrit

    k, n = len(counts), float(counts.sum())
    p = float(sums.sum()) / n
    fewest = n**2 / float(np.square(counts).sum())
    if not hits:
        known = _worth(np.append(sums, [0, n / k]), np.append(counts, [n / k, n / k]))
        n = max(known * k / (k + 2), fewest)
    elif p in (0, 1):  # so nothing is known of the spread
        n = fewest
    else:
        n = min(max(_worth(sums, counts), fewest), n)
    z = -float(stdtrit(k - 1, TAIL))

    def low(p: float) -> float:
        root = math.sqrt(z * z - 2 - 1 / n + 4 * p * (n * (1 - p) + 1))
        return max(0.0, (2 * n * p + z * z - 1 - z * root) / (2 * (n + z * z))) if p > 0 else 0.0

    return low(p), 1 - low(1 - p)


def _worth(sums: Floats, counts: Floats) -> float:
    """How many independent hits would tell a share as exactly as these sums do."""
    k, n = len(counts), float(counts.sum())
    p = float(sums.sum()) / n
    variance = k / (k - 1) * float(np.square(sums - counts * p).sum()) / n**2
    return p * (1 - p) / variance if variance > 0 else math.inf


def _bca(sums: Floats, counts: Floats) -> tuple[float, float]:
    """Bound a mean by the sums [i] and numbers [i] of the samples of each identity.

    The BCa bootstrap (Efron 1987). Resamples of few identities are too much alike, so the tails are
    those that make the interval of a normal mean Student's (Hesterberg 2015, "What teachers should
    know about the bootstrap", expanded percentiles); identities with more samples weigh more, which
    leaves fewer degrees of freedom, by Satterthwaite's rule (Bell and McCaffrey 2002).
    """
    from scipy.special import ndtr, stdtrit
    from scipy.stats import bootstrap

    k, means = len(counts), sums / counts
    if np.ptp(means) <= ALIKE * np.abs(means).max():
        return (float(sums.sum() / counts.sum()),) * 2
    weights = counts / counts.sum()
    two, three, four = (float((weights**power).sum()) for power in (2, 3, 4))
    left = 1 - 2 * three / two + two  # of the variance, by deviations from the mean itself
    tail = float(ndtr(stdtrit(two**2 / four - 1, TAIL) / math.sqrt(left)))
    drawn = bootstrap(
        (sums, counts),  # of each identity, drawn together
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=ROUNDS,
        batch=max(1, DRAWN // k),
        confidence_level=1 - 2 * max(tail, 1 / ROUNDS),
        method="BCa" if k <= MANY else "percentile",
        random_state=np.random.default_rng(0),
    )
    low, high = map(float, drawn.confidence_interval)
    return low, high


def paired_difference(first: NDArray[Any], second: NDArray[Any]) -> Difference:
    """Tell by how much the second of each pair [n] is larger on average, and whether by chance.

    p is that of the sign-flip test, which alarms falsely no more often than it says whatever the
    number of pairs, if each could as well be the other way round. The interval holds the
    differences that the test does not rule out. The order of pairs does not matter. Raises
    UsageError as `estimate`.

    Source: Fisher 1935, "The Design of Experiments", section 21. A sum with the signs of some pairs
    turned is no less than the sum itself where these have a mean of 0 or less, so that the means of
    random parts bound the difference: Hartigan 1969, "Using subsample values as typical values".
    """
    _check_equal_length(first, second)
    gains = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    gains = _finite(gains[~np.isnan(gains)])
    n = len(gains)
    if n == 0:
        return Difference(np.nan, -np.inf, np.inf, 1.0, 0)
    side = -1 if gains.sum() < 0 else 1  # so that it does not matter which of two is the first
    gains = np.sort(side * gains)
    step, both = max(1, CELLS // n), np.stack([gains, np.ones(n)], axis=1)
    parts = range(0, FLIPS, step)
    turned = [_turned(start, min(step, FLIPS - start), n) @ both for start in parts]
    sums, sizes = np.concatenate(turned).T
    sums[np.abs(sums) <= ALIKE * np.abs(gains).sum()] = 0
    means = np.divide(sums, sizes, out=np.full(FLIPS, np.nan), where=sizes > 0)
    # Nothing turned is no evidence for either side.
    below, above = (np.nan_to_num(means, nan=one) for one in (-np.inf, np.inf))
    far = round(TAIL * (FLIPS + 1))
    ends = side * float(np.sort(below)[far - 1]), side * float(np.sort(above)[-far])
    p = 2 * min(np.sum(below <= 0) + 1, np.sum(above >= 0) + 1) / (FLIPS + 1)
    mean = side * float(gains.mean())
    return Difference(mean, min(ends), max(ends), min(1.0, float(p)), n)


def _turned(seed: int, rounds: int, n: int) -> Floats:
    """Draw which of n pairs are turned round, 0 or 1 each: [rounds n]."""
    drawn = np.random.default_rng(seed).integers(0, 2, (rounds, n), dtype=bool)
    return drawn.astype(np.float64)


def holm(ps: Sequence[float]) -> list[float]:
    """Adjust the p of several tests, so that the chance of one false alarm among all is as said.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    order = np.argsort(ps, kind="stable")
    found = np.empty(len(ps))
    found[order] = np.maximum.accumulate(np.array(ps)[order] * np.arange(len(ps), 0, -1))
    return [float(p) for p in np.minimum(found, 1)]


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


@dataclass(frozen=True)
class Correlation:
    """How samples go with a figure of the person they are of, and how far by chance."""

    r: float  # Pearson's; 0 where either side is constant
    p: float  # two-sided, of people who have nothing to do with their samples
    by_chance: Floats  # r with people shuffled, [`ROUNDS`]; the same draws for the same people
    n: int  # samples


def correlate_people(
    of_people: NDArray[Any], samples: NDArray[Any], owners: NDArray[Any]
) -> Correlation:
    """Correlate samples [k] with a figure [n] of the people they are of, `owners` [k] of 0..n-1.

    Samples of one person are alike, and count for less than as many of different people: so chance
    is what comes of giving each person's samples to another one. A pair of which either side is NaN
    is left out. Raises UsageError as `estimate`.
    """
    _check_equal_length(samples, owners)
    y = np.asarray(samples, np.float64)
    kept = ~np.isnan(y)
    y, owner = _finite(y[kept]), np.asarray(owners)[kept]
    x = np.array(of_people, np.float64)
    known = ~np.isnan(x)
    x[~known] = 0
    paired = known[owner]
    x, y = (_centred(side, of) for side, of in ((_finite(x), x[owner][paired]), (y, y[paired])))
    x[~known] = 0
    n = len(x)
    count, once, twice = (np.bincount(owner, y**power, n) for power in (0, 1, 2))
    rng = np.random.default_rng(0)
    found = np.empty(1 + ROUNDS)
    step = max(1, DRAWN // max(1, n))
    for start in range(0, len(found), step):
        rounds = min(step, len(found) - start)
        order = rng.permuted(np.tile(np.arange(n), (rounds, 1)), axis=1)
        if start == 0:
            order[0] = np.arange(n)
        there, value = known[order].astype(np.float64), x[order]
        pairs = there @ count
        spread = (pairs * (np.square(value) @ count) - np.square(value @ count)) * (
            pairs * (there @ twice) - np.square(there @ once)
        )
        together = pairs * (value @ once) - (value @ count) * (there @ once)
        size = pairs**4 * ALIKE**2  # sides have a deviation of 1 or 0
        root = np.sqrt(np.maximum(spread, 0))
        found[start : start + rounds] = np.divide(
            together, root, out=np.zeros(rounds), where=spread > size
        )
    r, by_chance = float(found[0]), found[1:]
    far = int(np.sum(np.abs(by_chance) >= abs(r) * (1 - ALIKE)))
    return Correlation(r, (far + 1) / (ROUNDS + 1), by_chance, int(paired.sum()))


def _centred(values: Floats, of: Floats) -> Floats:
    """Take the mean of some values off, and their deviation; 0 where they are constant."""
    if len(of) < 2 or np.ptp(of) <= ALIKE * np.abs(of).max():
        return np.zeros_like(values)
    scaled: Floats = (values - of.mean()) / of.std()
    return scaled


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
