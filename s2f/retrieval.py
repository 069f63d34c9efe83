"""Distances between embeddings: quick ones of all pairs, exact ones of some, and how they differ.

Exact ones are sums in float64 of float32 values: those of a pair never depend on other pairs.

Finding people in a gallery: how many are nearer to a query than its own identity is.

`place` counts them once; recalls over the full gallery or over random candidates, and matching
among a few faces, all follow from that, exactly and without drawing.

How well voices lead to faces: similarity, retrieval and matching, as sections of a report.

Source: Oh et al. 2019, Tables 2 and 3; Wen et al. 2019 for matching.
"""

import importlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from s2f.console import Progress, silent
from s2f.errors import UsageError
from s2f.evaluation_data import WHOLE, Case, Samples
from s2f.metrics import compare_embeddings as compare_embeddings
from s2f.metrics import estimate
from s2f.report import Curves, Section, Table

if TYPE_CHECKING:
    import torch


Metric = Literal["cosine", "l1", "l2"]
METRICS: tuple[Metric, ...] = ("cosine", "l1", "l2")
LARGEST = 1e15  # value of an embedding; squares of larger ones may sum to infinity in float32

TILE, WIDTH = 64, 512  # rows and values of them that L1 sums at a time, in cache
TASK = 64  # rows that a thread does at a time
LARGE = 2**30  # absolute differences that take `cdist` as long as compiling takes
SLACK = 8.0  # times the root of d: roundoffs that a quick distance may be off

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]


def exact(a: Rows, b: Rows, metric: Metric) -> Floats:
    """Measure each pair of rows [n d] and [n d]: [n].

    Returns:
        Sums of absolute differences (l1), of squared ones (l2), or minus the cosines, which are 0
        of a row of zeros.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    if metric == "cosine":
        norms = np.sqrt(np.square(x).sum(1) * np.square(y).sum(1))
        cosines: Floats = (x * y).sum(1) / np.where(norms > 0, norms, 1)
        return -cosines
    apart: Floats = np.subtract(x, y, out=x)
    apart = np.abs(apart, out=x) if metric == "l1" else np.square(apart, out=x)
    found: Floats = apart.sum(1)
    return found


def quick(a: Rows, b: Rows, metric: Metric, limits: Floats) -> tuple[Rows, Floats]:
    """Measure all rows [p d] against all rows [q d].

    Sums of d products err by about the root of d in roundoffs of their largest possible value;
    those of L1 by no more.

    Args:
        a: [p d].
        b: [q d].
        metric: as in `exact`.
        limits: [q]; what the distances will be compared with.

    Returns:
        Distances [p q], and for each limit how far from it a distance [q] has to be, so that
        the exact one lies on the same side: ten times the largest rounding error seen, or more.
    """
    import torch

    from s2f.device import computing

    error = SLACK * a.shape[1] ** 0.5 * float(np.finfo(np.float32).eps) / 2
    with computing(torch.device("cpu")):
        if metric == "l1":
            return _l1(a, b), error * limits
        p, q = torch.from_numpy(a), torch.from_numpy(b)
        if metric == "l2":
            sizes, own = p.square().sum(1), q.square().sum(1)
            distances = torch.addmm(sizes[:, None] + own, p, q.T, alpha=-2)
            return distances.numpy(), error * (sizes.max() + own).double().numpy()
        return (_unit(p) @ -_unit(q).T).numpy(), np.full(len(limits), error)


def _l1(a: Rows, b: Rows) -> Rows:
    """Sum absolute differences [p q]: compiled where that pays."""
    import torch

    compiled = _compiled() if len(a) * b.size >= LARGE else None
    if compiled is None:
        found: Rows = torch.cdist(torch.from_numpy(a), torch.from_numpy(b), p=1).numpy()
        return found
    p, q = (np.pad(rows, ((0, -len(rows) % 4), (0, 0))) for rows in (a, b))
    sums = np.zeros((len(p), len(q)), np.float32)

    def work(start: int) -> None:
        compiled(p[start : start + TASK], q, sums[start : start + TASK])

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(work, range(0, len(p), TASK)))
    return sums[: len(a), : len(b)]


@cache
def _compiled() -> Callable[[Rows, Rows, Rows], None] | None:
    """Compile `_add_apart` in a second, for a dozen times the rate of `cdist`; None without numba.

    librosa brings numba.
    """
    try:
        numba = importlib.import_module("numba")
    except ImportError:
        return None
    rows = numba.float32[:, ::1]
    compiled: Callable[[Rows, Rows, Rows], None] = numba.njit(
        [numba.void(rows, rows, rows)], nogil=True, fastmath=True
    )(_add_apart)
    return compiled


def _add_apart(p: Rows, q: Rows, sums: Rows) -> None:
    """Add the absolute differences of even rows [p d] and fourfold rows [q d] to sums [p q].

    Two rows by four at once, so that eight sums do not wait for themselves, and in pieces that
    stay in cache.
    """
    for j0 in range(0, len(q), TILE):
        for k0 in range(0, p.shape[1], WIDTH):
            k1 = min(k0 + WIDTH, p.shape[1])
            for i in range(0, len(p), 2):
                x0, x1 = p[i, k0:k1], p[i + 1, k0:k1]
                for j in range(j0, min(j0 + TILE, len(q)), 4):
                    y0, y1, y2, y3 = q[j, k0:k1], q[j + 1, k0:k1], q[j + 2, k0:k1], q[j + 3, k0:k1]
                    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = np.float32(0)
                    for k in range(k1 - k0):
                        u, v = x0[k], x1[k]
                        s00 += abs(u - y0[k])
                        s01 += abs(u - y1[k])
                        s02 += abs(u - y2[k])
                        s03 += abs(u - y3[k])
                        s10 += abs(v - y0[k])
                        s11 += abs(v - y1[k])
                        s12 += abs(v - y2[k])
                        s13 += abs(v - y3[k])
                    sums[i, j] += s00
                    sums[i, j + 1] += s01
                    sums[i, j + 2] += s02
                    sums[i, j + 3] += s03
                    sums[i + 1, j] += s10
                    sums[i + 1, j + 1] += s11
                    sums[i + 1, j + 2] += s12
                    sums[i + 1, j + 3] += s13


def _unit(rows: "torch.Tensor") -> "torch.Tensor":
    """Bring rows to length 1, however small they are; zeros stay."""
    from torch.nn import functional

    largest = rows.abs().amax(1, keepdim=True)
    return functional.normalize(rows / largest.where(largest > 0, 1), dim=1)


QUERIES = 1024  # placed at a time
PHOTOS = 2048  # of the gallery, compared at a time
CELLS = 2**27  # queries x identities, marked at a time
PAIRS = 64  # compared exactly at a time, in cache

Embeddings = NDArray[np.floating[Any]]
Whole = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Placement:
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


def place_queries(
    queries: Embeddings,
    truth: NDArray[np.integer[Any]],
    gallery: Embeddings,
    owners: NDArray[np.integer[Any]],
    *,
    metric: Metric = "cosine",
    groups: NDArray[np.integer[Any]] | None = None,
    progress: Progress = silent,
) -> Placement:
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
        return Placement(better, others)
    mine, sizes = sides[own], np.bincount(sides[sides >= 0], minlength=1)
    return Placement(better, others, within, np.where(mine >= 0, sizes[mine] - 1, 0))


def recall(placed: Placement, k: int) -> Floats:
    """Tell whether each query's own identity is among the k nearest of the gallery: [q], 0 or 1."""
    return (placed.better < k).astype(np.float64)


def recall_of_candidates(placed: Placement, k: int, candidates: int = 100) -> tuple[Floats, int]:
    """Average `recall` over all galleries of some identities that hold the query's own.

    Exact, as the number of nearer ones among candidates drawn at random is hypergeometric.

    Returns:
        The average of each query [q], 0..1, and the identities in such a gallery: all, where there
        are fewer than asked for.
    """
    n = _size(placed, candidates)
    return _at_most(k - 1, placed.others, placed.better, n - 1), n


def chance(placed: Placement, k: int, candidates: int | None = None) -> float:
    """Give the recall of a random order, 0..1: of the full gallery, or of candidates."""
    return min(1.0, k / _size(placed, candidates))


def matching(placed: Placement, ways: int, *, within: bool = False) -> Floats:
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


def _size(placed: Placement, candidates: int | None) -> int:
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


KS = (1, 2, 5, 10)
METRICS_SHOWN: tuple[Metric, ...] = ("cosine", "l1", "l2")
CANDIDATES = 100
WAYS = (2, 5, 10)
ANGLE = "angle, degrees"
AGAIN = "face drawn from the voice, embedded"


def similarity(case: Case) -> tuple[Section, Samples]:
    """Angle and distances between true embeddings and those of voices."""
    people = case.people
    true = people.means()[people.speakers]
    strangers = people.means()[(people.speakers + 1) % len(people.names)]
    rows: list[tuple[str | float | int | None, ...]] = []
    measured = {}
    queries = [(name, true, heard) for name, heard in case.heard.items()]
    queries += [
        (AGAIN, true, case.voices_again),
        ("another person's voice", strangers, case.heard[WHOLE]),
    ]
    for name, wanted, found in queries:
        values = compare_embeddings(wanted, found)
        cells: list[float] = []
        for measure in ("angle", "l2", "l1"):
            got = estimate(values[measure], people.speakers)
            cells += [got.value, got.deviation]
            if measure == "angle":
                cells += [got.low, got.high]
        rows.append((name, *cells, len(found)))
        measured[name] = values["angle"]
    heads: tuple[str, ...] = ("heard", "angle, degrees", "deviation", "low", "high")
    heads += ("L2", "deviation", "L1", "deviation", "N")
    table = Table(
        "Embeddings of voices and of faces",
        heads,
        tuple(rows),
        "Angle between a voice's embedding and the mean embedding of the person's photos; low and "
        "high bound 95 % by bootstrap over people. L2 and L1 are of vectors of length 1.",
    )
    text = (
        "How near the embedding of a voice is to that of the speaker's face. 3 s and 6 s are the "
        "first seconds of each recording, looped to the length that the model hears.",
    )
    return Section("Similarity", text, (table,)), {ANGLE: case.by_person(measured[WHOLE])}


def retrieval(case: Case) -> tuple[Section, Samples]:
    """Recall of the speaker's face among the faces of all people."""
    people = case.people
    queries = {**{f"voice, {name}": rows for name, rows in case.heard.items()}}
    queries[AGAIN] = case.voices_again
    full: list[tuple[str | float | int | None, ...]] = []
    some: list[tuple[str | float | int | None, ...]] = []
    placed: Placement | None = None
    lines: dict[str, list[tuple[float, float]]] = {}
    samples: dict[str, dict[str, float]] = {}
    n = len(people.names)
    depth = range(1, min(n, CANDIDATES) + 1)
    for query, rows in queries.items():
        for metric in METRICS_SHOWN:
            placed = place_queries(
                rows, people.speakers, people.embeddings, people.owners, metric=metric
            )
            full.append((query, metric, *_recalls(case, [recall(placed, k) for k in KS]), n))
            among = [recall_of_candidates(placed, k, CANDIDATES)[0] for k in KS]
            some.append((query, metric, *_recalls(case, among), min(n, CANDIDATES)))
            if metric == "cosine" and query in (f"voice, {WHOLE}", AGAIN):
                lines[query] = [(k, float(recall(placed, k).mean())) for k in depth]
            if metric == "cosine" and query == f"voice, {WHOLE}":
                for k in (1, 10):
                    samples[f"R@{k}, %"] = case.by_person(100 * recall(placed, k))
    assert placed is not None
    for rows_of, by_chance, size in (
        (full, [chance(placed, k) for k in KS], n),
        (some, [chance(placed, k, CANDIDATES) for k in KS], min(n, CANDIDATES)),
    ):
        cells = [cell for value in by_chance for cell in (value, None, None)]
        rows_of.append(("chance", "", *cells, None, size))
    lines["chance"] = [(k, chance(placed, k)) for k in depth]
    heads: tuple[str, ...] = ("query", "metric")
    heads += tuple(head for k in KS for head in (f"R@{k} %", "low %", "high %"))
    heads += ("queries", "N")
    parts: list[Table | Curves] = [Table(f"Recall among all {n} people", heads, tuple(full))]
    if n > CANDIDATES:
        note = f"The exact mean over all galleries of {CANDIDATES} people that hold the speaker."
        title = f"Recall among {CANDIDATES} candidates, averaged"
        parts.append(Table(title, heads, tuple(some), note))
    parts.append(Curves("Recall by depth, cosine", "k", "R@k %", lines))
    text = (
        "The speaker's own face is looked for among the faces of all people, by the distance "
        "between embeddings. A person is as near as the nearest of their photos. N is the size of "
        "the gallery in people: chance is k of N. Low and high bound 95 % by bootstrap over "
        "people."
        + (
            "" if n > CANDIDATES else f" With {CANDIDATES} people or fewer, all are the candidates."
        ),
    )
    return Section("Retrieval", text, tuple(parts)), samples


def _recalls(case: Case, hits: list[NDArray[np.float64]]) -> tuple[float | int, ...]:
    """Make the cells of the recalls of `KS`: each mean and its interval, and the queries."""
    found = [estimate(values, case.people.speakers) for values in hits]
    cells = [cell for item in found for cell in (item.value, item.low, item.high)]
    return (*cells, len(hits[0]))


def matched(case: Case) -> tuple[Section, Samples]:
    """Share of voices whose face is chosen among a few."""
    people, sexes = case.people, case.sexes
    placed = place_queries(
        case.heard[WHOLE],
        people.speakers,
        people.embeddings,
        people.owners,
        metric="cosine",
        groups=sexes,
    )
    rows: list[tuple[str | float | int | None, ...]] = []
    samples: dict[str, dict[str, float]] = {}
    for within in (False, True) if sexes is not None else (False,):
        others = "of the same sex" if within else "anyone"
        most = len(people.names)
        if within and sexes is not None:  # as many as there are of the rarer sex
            most = int(np.bincount(sexes[sexes >= 0]).min())
        for ways in dict.fromkeys((*WAYS, most)):
            if ways < 2:
                continue
            right = matching(placed, ways, within=within)
            there = ~np.isnan(right)
            if not there.any():
                continue
            got = estimate(right[there], people.speakers[there])
            row = (others, ways, got.value, got.low, got.high, 1 / ways, int(there.sum()))
            rows.append(row)
            if ways == WAYS[0]:
                samples[f"1:{WAYS[0]} matching, {others}, %"] = case.by_person(100 * right)
    heads = ("other faces", "faces", "right %", "low %", "high %", "chance %", "voices")
    table = Table("One voice, some faces", heads, tuple(rows))
    text = (
        "How often the speaker's face is nearer to the voice than all of some other faces, drawn "
        "at random: the exact mean over all draws. Within one sex, sex alone is of no help."
        + ("" if sexes is not None else " No label says who is of which sex."),
    )
    return Section("Matching", text, (table,)), samples
