"""Finding people in a gallery: how many are nearer to a query than its own identity is.

`place` counts them once; recalls over the full gallery or over random candidates, and matching
among a few faces, all follow from that, exactly and without drawing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2f.distances import LARGEST, METRICS, Metric, exact, quick
from s2f.errors import UsageError
from s2f.runtime import Progress, silent

QUERIES = 1024  # placed at a time
PHOTOS = 2048  # of the gallery, compared at a time
CELLS = 2**27  # queries x identities, marked at a time
PAIRS = 64  # compared exactly at a time, in cache

Embeddings = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Placed:
    """What is known of queries in a gallery.

    Attributes:
        better: other identities that are as near as the query's own or nearer, [q].
        others: identities in the gallery beside the query's own, [q].
        better_within: `better`, of those in the own identity's group, [q]; None without groups.
        others_within: `others`, of those in the own identity's group, [q]; None without groups.
    """

    better: Whole
    others: Whole
    better_within: Whole | None = None
    others_within: Whole | None = None


def place(
    queries: Embeddings,
    truth: NDArray[np.integer[Any]],
    gallery: Embeddings,
    owners: NDArray[np.integer[Any]],
    *,
    metric: Metric = "cosine",
    groups: NDArray[np.integer[Any]] | None = None,
    progress: Progress = silent,
) -> Placed:
    """Count the identities that are nearer to each query than its own.

    An identity is as near as its nearest photo, and as near as the own one counts against it: a
    query that is as far from all finds nobody. L1 and L2 are of the embeddings as they are; brought
    to length 1, L2 would place as the cosine does. The cosine of zeros is 0.

    Distances are those of float32 values, summed in float64 wherever rounding could matter, so
    that neither the order nor the number of queries and photos changes a count.

    Args:
        queries: [q d].
        truth: whose each query is, [q].
        gallery: [g d], in memory or mapped; read in pieces, once per 1024 queries.
        owners: whose each photo is, [g].
        metric: what near means.
        groups: of each identity, indexed by it; one with a negative group is in none.
        progress: told of photos compared.

    Raises:
        UsageError: if shapes do not fit, a value is not finite, there is no such metric, or an
            identity has no photo or no group.
    """
    people, own, photos = _number(queries, truth, gallery, owners, metric)
    sides = None if groups is None else _sides(np.asarray(groups), people)
    better = np.zeros(len(queries), np.int64)
    within = np.zeros(len(queries), np.int64)
    step = max(1, min(QUERIES, CELLS // max(1, len(people))))
    total = -(-len(queries) // step) * len(gallery)
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        before = start // step * len(gallery)

        def tell(done: int, before: int = before) -> None:
            progress(before + done, total, f"comparing photos by {metric}")

        nearer = np.zeros((len(people), len(own[block])), bool)
        limits = _own_distances(_take(queries, block), own[block], gallery, photos, metric)
        _mark(nearer, _take(queries, block), limits, gallery, photos, metric, tell)
        nearer[own[block], np.arange(nearer.shape[1])] = False
        better[block] = np.count_nonzero(nearer, axis=0)
        if sides is not None:
            mine = sides[own[block]]
            for side in np.unique(mine[mine >= 0]):
                rows, columns = np.flatnonzero(sides == side), np.flatnonzero(mine == side)
                within[start + columns] = np.count_nonzero(nearer[np.ix_(rows, columns)], axis=0)
    others = np.full(len(queries), len(people) - 1, np.int64)
    if sides is None:
        return Placed(better, others)
    mine, sizes = sides[own], np.bincount(sides[sides >= 0], minlength=1)
    return Placed(better, others, within, np.where(mine >= 0, sizes[mine] - 1, 0))


def recall(placed: Placed, k: int) -> Floats:
    """Tell whether each query's own identity is among the k nearest of the gallery: [q], 0 or 1."""
    return (placed.better < k).astype(np.float64)


def recall_of_candidates(placed: Placed, k: int, candidates: int = 100) -> tuple[Floats, int]:
    """Average `recall` over all galleries of some identities that hold the query's own.

    Exact, as the number of nearer ones among candidates drawn at random is hypergeometric.

    Returns:
        The average of each query [q], 0..1, and the identities in such a gallery: all, where there
        are fewer than asked for.
    """
    n = _size(placed, candidates)
    return _at_most(k - 1, placed.others, placed.better, n - 1), n


def chance(placed: Placed, k: int, candidates: int | None = None) -> float:
    """Give the recall of a random order, 0..1: of the full gallery, or of candidates."""
    return min(1.0, k / _size(placed, candidates))


def matching(placed: Placed, ways: int, *, within: bool = False) -> Floats:
    """Give the chance that the true face is the nearest of some, the others drawn at random.

    Args:
        placed: the queries.
        ways: faces to choose from; a random choice is right in 1 of them.
        within: draw from the own identity's group.

    Returns:
        [q], 0..1; NaN where the gallery, or the group, holds too few.

    Raises:
        UsageError: if there is no choice, or there are no groups.

    Source: Wen et al. 2019, voice-to-face matching.
    """
    better = placed.better_within if within else placed.better
    others = placed.others_within if within else placed.others
    if better is None or others is None:
        raise UsageError("there are no groups to match within", hint="place with groups")
    if ways < 2:
        raise UsageError(f"a face is matched among 2 or more, not {ways}")
    found = np.full(len(better), np.nan)
    enough = others >= ways - 1
    found[enough] = _at_most(0, others[enough], better[enough], ways - 1)
    return found


def _number(
    queries: Embeddings,
    truth: NDArray[Any],
    gallery: Embeddings,
    owners: NDArray[Any],
    metric: str,
) -> tuple[NDArray[Any], NDArray[np.intp], NDArray[np.intp]]:
    """Give the identities of the gallery, and by their places those of queries and photos."""
    if metric not in METRICS:
        raise UsageError(f"there is no metric {metric!r}", hint=f"choose of {', '.join(METRICS)}")
    shapes = [list(side.shape) for side in (queries, truth, gallery, owners)]
    fits = [len(shape) for shape in shapes] == [2, 1, 2, 1] and (
        len(queries) == len(truth) and len(gallery) == len(owners)
    )
    if not fits or queries.shape[1] != gallery.shape[1]:
        raise UsageError(
            f"queries {shapes[0]} of {shapes[1]} and a gallery {shapes[2]} of {shapes[3]} do not "
            "fit; wanted [q d] of [q] and [g d] of [g]"
        )
    people, photos = np.unique(owners, return_inverse=True)
    missing = np.setdiff1d(truth, people)
    if len(missing):
        raise UsageError(
            f"identity {missing[0]} is asked for, but has no photo in the gallery",
            hint="leave its queries out, or add a photo of it",
        )
    return people, np.searchsorted(people, truth), photos.reshape(-1)


def _sides(groups: NDArray[Any], people: NDArray[Any]) -> NDArray[np.int64]:
    """Number the groups of the gallery's identities from 0; -1 without."""
    if len(people) and (people[0] < 0 or people[-1] >= len(groups)):
        raise UsageError(
            f"there are groups of {len(groups)} identities, and none of identity "
            f"{people[0] if people[0] < 0 else people[-1]}"
        )
    sides = np.full(len(people), -1, np.int64)
    known = groups[people] >= 0
    sides[known] = np.unique(groups[people][known], return_inverse=True)[1].reshape(-1)
    return sides


def _take(rows: Embeddings, which: slice | NDArray[np.intp]) -> NDArray[np.float32]:
    """Copy some embeddings as float32 [n d]."""
    with np.errstate(over="ignore"):  # found on the next line
        taken = np.array(rows[which], np.float32, order="C")
    if not (np.abs(taken) < LARGEST).all():
        raise UsageError(
            f"embeddings have values that are not finite, or {LARGEST:g} or more",
            hint="look for the model that made them: its training may have diverged",
        )
    return taken


def _own_distances(
    queries: NDArray[np.float32],
    own: NDArray[np.intp],
    gallery: Embeddings,
    photos: NDArray[np.intp],
    metric: Metric,
) -> Floats:
    """Give the exact distance [q] from each query to the nearest photo of its own identity."""
    order = np.argsort(photos, kind="stable")
    firsts = np.searchsorted(photos, own, sorter=order)
    counts = np.searchsorted(photos, own, side="right", sorter=order) - firsts
    limits = np.full(len(queries), np.inf)
    rows = np.repeat(np.arange(len(queries)), counts)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = order[np.repeat(firsts, counts) + places]
    for part in _pieces(len(rows)):
        found = exact(queries[rows[part]], _take(gallery, chosen[part]), metric)
        np.minimum.at(limits, rows[part], found)
    return limits


def _mark(
    nearer: NDArray[np.bool_],
    queries: NDArray[np.float32],
    limits: Floats,
    gallery: Embeddings,
    photos: NDArray[np.intp],
    metric: Metric,
    tell: Callable[[int], None],
) -> None:
    """Mark in [identities q] who has a photo as near to a query as its limit, or nearer.

    Quick distances settle most pairs; those too close to the limit are computed exactly.
    """
    for start in range(0, len(gallery), PHOTOS):
        part = _take(gallery, slice(start, start + PHOTOS))
        distances, slack = quick(part, queries, metric, limits)
        near = distances <= (limits + slack).astype(np.float32)
        close = near & (distances >= (limits - slack).astype(np.float32))
        rows, columns = np.nonzero(close)
        for pairs in _pieces(len(rows)):
            i, j = rows[pairs], columns[pairs]
            near[i, j] = exact(queries[j], part[i], metric) <= limits[j]
        for k, who in enumerate(photos[start : start + PHOTOS]):
            nearer[who] |= near[k]
        tell(start + len(part))


def _pieces(n: int) -> Iterator[slice]:
    return (slice(k, k + PAIRS) for k in range(0, n, PAIRS))


def _size(placed: Placed, candidates: int | None) -> int:
    """Give the identities in a gallery of candidates, or in the full one."""
    n = int(placed.others.min(initial=np.iinfo(np.int64).max - 1)) + 1
    return n if candidates is None else min(n, candidates)


def _at_most(k: int, others: Whole, better: Whole, drawn: int) -> Floats:
    """Give the chance that at most k of those drawn from the others are better ones: [q]."""
    from scipy.special import gammaln

    def ln_choose(n: Whole, m: Whole | int) -> Floats:
        chosen: Floats = gammaln(n + 1) - gammaln(np.add(m, 1)) - gammaln(n - m + 1)
        return chosen

    found = np.zeros(len(better))
    for j in range(min(k, drawn) + 1):
        can = (better >= j) & (others - better >= drawn - j)
        all_of, good = others[can], better[can]
        found[can] += np.exp(
            ln_choose(good, j) + ln_choose(all_of - good, drawn - j) - ln_choose(all_of, drawn)
        )
    found[(better <= k) | (drawn <= k)] = 1
    return np.minimum(found, 1)
