"""Finding a speaker's face by the voice: who is nearer to a query than its own identity is.

`place_queries` counts those once; recalls over the full gallery or over random candidates, and
matching among a few faces, all follow from that, exactly and without drawing. Below stand the
distances between embeddings that it counts by, and last the sections of a report.

Source: Oh et al. 2019, Tables 2 and 3; Wen et al. 2019 for matching.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from s2f.device import computing
from s2f.errors import UsageError
from s2f.evaluation_data import WHOLE, Case, Samples
from s2f.metrics import compare_embeddings, estimate
from s2f.report import Curves, Row, Section, Table

Metric = Literal["cosine", "l1", "l2"]
METRICS: tuple[Metric, ...] = ("cosine", "l1", "l2")
LARGEST = 1e15  # value of an embedding; squares of larger ones may sum to infinity in float32

QUERIES = 1024  # placed at a time
PHOTOS = 2048  # of the gallery, compared at a time
CELLS = 2**27  # queries x identities, marked at a time
PAIRS = 64  # compared exactly at a time, in cache

KS = (1, 2, 5, 10)  # depths, in the report
CANDIDATES = 100
WAYS = (2, 5, 10)
ANGLE = "angle, degrees"
AGAIN = "face drawn from the voice, embedded"

Who = NDArray[np.integer[Any]]
Embeddings = NDArray[np.floating[Any]]
Rows = NDArray[np.float32]
Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Placement:
    """How many other identities are as near to each query as its own, or nearer."""

    better: Whole  # [q]
    others: int  # identities beside the own one


def place_queries(
    queries: Embeddings, truth: Who, gallery: Embeddings, owners: Who, *, metric: Metric = "cosine"
) -> Placement:
    """Count the identities that are nearer to each query [q d] than its own, `truth` [q].

    The gallery [g d] of photos, whose owners are [g], may be mapped: it is read in pieces, once per
    1024 queries. An identity is as near as its nearest photo, and as near as the own one counts
    against it. L1 and L2 are of the embeddings as they are. Distances are those of float32 values,
    summed in float64 wherever rounding could matter: neither the order nor the number of queries
    and photos changes a count. Raises UsageError if shapes do not fit, a value is not finite, or an
    identity has no photo.
    """
    if metric not in METRICS:
        raise UsageError(f"there is no metric {metric!r}", hint=f"choose of {', '.join(METRICS)}")
    q, t, g, o = shapes = [list(side.shape) for side in (queries, truth, gallery, owners)]
    if len(q) != 2 or len(g) != 2 or (t, o, q[1:]) != (q[:1], g[:1], g[1:]):
        said = "queries {} of {} and a gallery {} of {} do not fit".format(*shapes)
        raise UsageError(f"{said}; wanted [q d] of [q] and [g d] of [g]")
    people, photos = np.unique(owners, return_inverse=True)
    if len(missing := np.setdiff1d(truth, people)):
        message = f"identity {missing[0]} is asked for, but has no photo in the gallery"
        raise UsageError(message, hint="leave its queries out, or add a photo of it")
    own = np.searchsorted(people, truth)  # from here on identities are their places in `people`
    better = np.zeros(len(queries), np.int64)
    step = max(1, min(QUERIES, CELLS // max(1, len(people))))
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        rows, mine = _take(queries, block), own[block]
        limits = _own_distances(rows, mine, gallery, photos, metric)
        nearer = np.zeros((len(people), len(rows)), bool)
        for first in range(0, len(gallery), PHOTOS):
            part = _take(gallery, slice(first, first + PHOTOS))
            near = _as_near(part, rows, limits, metric)
            for k, who in enumerate(photos[first : first + PHOTOS]):
                nearer[who] |= near[k]
        nearer[mine, np.arange(len(rows))] = False
        better[block] = np.count_nonzero(nearer, axis=0)
    return Placement(better, len(people) - 1)


def recall(placed: Placement, k: int) -> Floats:
    """Tell whether each query's own identity is among the k nearest of the gallery: [q], 0 or 1."""
    return (placed.better < k).astype(np.float64)


def recall_of_candidates(placed: Placement, k: int, candidates: int = CANDIDATES) -> Floats:
    """Average `recall` [q] over all galleries of some identities that hold the query's own.

    Exact, as the number of nearer ones among candidates drawn at random is hypergeometric. The
    gallery holds all identities where there are fewer than asked for.
    """
    return _at_most(k - 1, placed, min(candidates - 1, placed.others))


def matching(placed: Placement, ways: int) -> Floats:
    """Give the chance [q] that the true face is the nearest of `ways`, the others drawn at random.

    NaN where the gallery holds too few. Raises UsageError if there is no choice.

    Source: Wen et al. 2019, voice-to-face matching.
    """
    if ways < 2:
        raise UsageError(f"a face is matched among 2 or more, not {ways}")
    if placed.others < ways - 1:
        return np.full(len(placed.better), np.nan)
    return _at_most(0, placed, ways - 1)


def _at_most(k: int, placed: Placement, drawn: int) -> Floats:
    """Give the chance that at most k of those drawn from the others are better ones: [q].

    By logarithms of factorials: `scipy.stats.hypergeom` takes a hundred times as long.
    """
    from scipy.special import gammaln

    def ln_choose(n: Whole | int, m: int) -> Floats:  # -inf where n < m
        chosen: Floats = gammaln(np.add(n, 1)) - gammaln(m + 1) - gammaln(np.subtract(n, m - 1))
        return chosen

    better, others = placed.better, placed.others
    found = np.zeros(len(better))
    for j in range(min(k, drawn) + 1):
        ln_good, ln_rest = ln_choose(better, j), ln_choose(others - better, drawn - j)
        found += np.exp(ln_good + ln_rest - ln_choose(others, drawn))
    found[(better <= k) | (drawn <= k)] = 1
    return np.minimum(found, 1)


def _take(rows: Embeddings, which: slice | NDArray[np.intp]) -> Rows:
    """Copy some embeddings as float32 [n d]."""
    with np.errstate(over="ignore"):  # found on the next line
        taken = np.array(rows[which], np.float32, order="C")
    if not (np.abs(taken) < LARGEST).all():
        hint = "look for the model that made them: its training may have diverged"
        message = f"embeddings have values that are not finite, or {LARGEST:g} or more"
        raise UsageError(message, hint=hint)
    return taken


def _own_distances(
    queries: Rows, own: NDArray[np.intp], gallery: Embeddings, photos: Whole, metric: Metric
) -> Floats:
    """Give the exact distance [q] from each query to the nearest photo of its own identity."""
    limits = np.empty(len(queries))
    for k, who in enumerate(own):
        mine = _take(gallery, np.flatnonzero(photos == who))
        limits[k] = exact_distances(queries[k : k + 1], mine, metric).min()
    return limits


def _as_near(part: Rows, queries: Rows, limits: Floats, metric: Metric) -> NDArray[np.bool_]:
    """Tell which photos are as near to a query as its limit, or nearer, [p q].

    Quick distances settle most pairs; those too close to the limit are computed exactly.
    """
    distances, slack = quick_distances(part, queries, metric, limits)
    near = distances <= (limits + slack).astype(np.float32)
    close = near & (distances >= (limits - slack).astype(np.float32))
    rows, columns = np.nonzero(close)
    for start in range(0, len(rows), PAIRS):
        i, j = rows[start : start + PAIRS], columns[start : start + PAIRS]
        near[i, j] = exact_distances(queries[j], part[i], metric) <= limits[j]
    return near


def exact_distances(a: Rows, b: Rows, metric: Metric) -> Floats:
    """Measure each pair of rows [n d], or [1 d] against all, and [n d]: [n].

    Gives sums of absolute differences (l1), of squared ones (l2), or minus the cosines, which are
    0 of a row of zeros; summed in float64, so that those of a pair never depend on other pairs.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    if metric == "cosine":
        norms = np.sqrt(np.square(x).sum(1) * np.square(y).sum(1))
        cosines: Floats = (x * y).sum(1) / np.where(norms > 0, norms, 1)
        return -cosines
    y -= x
    found: Floats = (np.abs(y, out=y) if metric == "l1" else np.square(y, out=y)).sum(1)
    return found


SLACK = 8.0  # times the root of d: roundoffs that a quick distance may be off
LARGE = 2**30  # absolute differences that take `cdist` as long as compiling takes
TILE, WIDTH = 64, 512  # rows and values of them that L1 sums at a time, in cache
TASK = 64  # rows that a thread does at a time


def quick_distances(a: Rows, b: Rows, metric: Metric, limits: Floats) -> tuple[Rows, Floats]:
    """Measure all rows [p d] against all rows [q d]: [p q], by a metric as in `exact_distances`.

    With them comes, for each limit [q] that they will be compared with, how far from it one has to
    be, so that the exact one lies on the same side: ten times the largest rounding error seen, or
    more. Sums of d products err by about the root of d in roundoffs of their largest possible
    value; those of L1 by no more.
    """
    error = SLACK * a.shape[1] ** 0.5 * float(np.finfo(np.float32).eps) / 2
    p, q = torch.from_numpy(a), torch.from_numpy(b)
    with computing(torch.device("cpu")):
        if metric == "l1":
            is_large = len(a) * b.size >= LARGE
            return _l1(a, b) if is_large else torch.cdist(p, q, p=1).numpy(), error * limits
        if metric == "l2":
            sizes, own = p.square().sum(1), q.square().sum(1)
            distances = torch.addmm(sizes[:, None] + own, p, q.T, alpha=-2)
            return distances.numpy(), error * (sizes.max() + own).double().numpy()
        # Scaled first, so that squares of the smallest values do not vanish; zeros stay.
        tops = [rows.abs().amax(1, keepdim=True) for rows in (p, q)]
        p, q = (rows / top.where(top > 0, 1) for rows, top in zip((p, q), tops, strict=True))
        cosines = functional.normalize(p, dim=1) @ -functional.normalize(q, dim=1).T
        return cosines.numpy(), np.full(len(limits), error)


def _l1(a: Rows, b: Rows) -> Rows:
    """Sum absolute differences [p q], compiled: a dozen times as fast as `cdist`."""
    p, q = (np.pad(rows, ((0, len(rows) % 2), (0, 0))) for rows in (a, b))
    sums = np.zeros((len(p), len(q)), np.float32)
    add = _compiled()
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        work = [slice(start, start + TASK) for start in range(0, len(p), TASK)]
        list(threads.map(lambda some: add(p[some], q, sums[some]), work))
    return sums[: len(a), : len(b)]


@cache
def _compiled() -> Callable[[Rows, Rows, Rows], None]:
    """Compile `_add_apart`, which takes a second."""
    import numba

    rows = numba.float32[:, ::1]
    kernel = numba.njit([numba.void(rows, rows, rows)], nogil=True, fastmath=True)
    compiled: Callable[[Rows, Rows, Rows], None] = kernel(_add_apart)
    return compiled


def _add_apart(p: Rows, q: Rows, sums: Rows) -> None:
    """Add the absolute differences of even rows [p d] and [q d] to sums [p q].

    Two rows by two at once, so that four sums do not wait for themselves, and in pieces that
    stay in cache.
    """
    for j0 in range(0, len(q), TILE):
        for k0 in range(0, p.shape[1], WIDTH):
            for i in range(0, len(p), 2):
                x0, x1 = p[i, k0 : k0 + WIDTH], p[i + 1, k0 : k0 + WIDTH]
                for j in range(j0, min(j0 + TILE, len(q)), 2):
                    y0, y1 = q[j, k0 : k0 + WIDTH], q[j + 1, k0 : k0 + WIDTH]
                    s00 = s01 = s10 = s11 = np.float32(0)
                    for k in range(len(x0)):
                        s00 += abs(x0[k] - y0[k])
                        s01 += abs(x0[k] - y1[k])
                        s10 += abs(x1[k] - y0[k])
                        s11 += abs(x1[k] - y1[k])
                    sums[i, j] += s00
                    sums[i, j + 1] += s01
                    sums[i + 1, j] += s10
                    sums[i + 1, j + 1] += s11


def similarity_section(case: Case) -> tuple[Section, Samples]:
    """Angle and distances between true embeddings and those of voices."""
    people = case.people
    means = people.means()
    true, strangers = (means[(people.speakers + k) % len(people.names)] for k in (0, 1))
    compared = {
        **{name: compare_embeddings(true, heard) for name, heard in case.heard.items()},
        AGAIN: compare_embeddings(true, case.voices_again),
        "another person's voice": compare_embeddings(strangers, case.heard[WHOLE]),
    }
    rows: list[Row] = []
    for name, values in compared.items():
        angle, l2, l1 = (estimate(values[k], people.speakers) for k in ("angle", "l2", "l1"))
        cells = (angle.value, angle.deviation, angle.low, angle.high)
        rows.append((name, *cells, l2.value, l2.deviation, l1.value, l1.deviation, angle.n))
    table = Table(
        "Embeddings of voices and of faces",
        ("heard", ANGLE, "deviation", "low", "high", "L2", "deviation", "L1", "deviation", "N"),
        tuple(rows),
        "Angle between a voice's embedding and the mean embedding of the person's photos; low and "
        "high bound 95 % by bootstrap over people. L2 and L1 are of vectors of length 1.",
    )
    text = (
        "How near the embedding of a voice is to that of the speaker's face. 3 s and 6 s are the "
        "first seconds of each recording, looped to the length that the model hears.",
    )
    samples = {ANGLE: case.by_person(compared[WHOLE]["angle"])}
    return Section("Similarity", text, (table,)), samples


def retrieval_section(case: Case) -> tuple[Section, Samples]:
    """Recall of the speaker's face among the faces of all people."""
    people, n = case.people, len(case.people.names)
    some, gallery = min(n, CANDIDATES), (people.embeddings, people.owners)
    depth = range(1, some + 1)
    voice = f"voice, {WHOLE}"
    queries = {f"voice, {name}": rows for name, rows in case.heard.items()}
    queries[AGAIN] = case.voices_again
    tables: dict[int, list[Row]] = {n: [], some: []}  # by the size of the gallery
    lines: dict[str, list[tuple[float, float]]] = {}
    samples: Samples = {}
    for query, rows in queries.items():
        for metric in METRICS:
            placed = place_queries(rows, people.speakers, *gallery, metric=metric)
            for size, found in tables.items():
                hits = [recall_of_candidates(placed, k, size) for k in KS]
                means = [estimate(values, people.speakers) for values in hits]
                cells = [cell for item in means for cell in (item.value, item.low, item.high)]
                found.append((query, metric, *cells, len(rows), size))
            if metric == "cosine" and query in (voice, AGAIN):
                lines[query] = [(k, float(recall(placed, k).mean())) for k in depth]
            if metric == "cosine" and query == voice:
                samples = {f"R@{k}, %": case.by_person(100 * recall(placed, k)) for k in (1, 10)}
    for size, found in tables.items():
        by_chance = [cell for k in KS for cell in (min(1.0, k / size), None, None)]
        found.append(("chance", "", *by_chance, None, size))
    lines["chance"] = [(k, k / n) for k in depth]
    recalls = [head for k in KS for head in (f"R@{k} %", "low %", "high %")]
    heads = ("query", "metric", *recalls, "queries", "N")
    parts: list[Table | Curves] = [Table(f"Recall among all {n} people", heads, tuple(tables[n]))]
    if n > some:
        note = f"The exact mean over all galleries of {some} people that hold the speaker."
        title = f"Recall among {some} candidates, averaged"
        parts.append(Table(title, heads, tuple(tables[some]), note))
    parts.append(Curves("Recall by depth, cosine", "k", "R@k %", lines))
    text = (
        "The speaker's own face is looked for among the faces of all people, by the distance "
        "between embeddings. A person is as near as the nearest of their photos. N is the size of "
        "the gallery in people: chance is k of N. Low and high bound 95 % by bootstrap over people."
        + ("" if n > some else f" With {CANDIDATES} people or fewer, all are the candidates.")
    )
    return Section("Retrieval", (text,), tuple(parts)), samples


def matching_section(case: Case) -> tuple[Section, Samples]:
    """Share of voices whose face is chosen among a few, of anyone and of the speaker's sex."""
    people = case.people
    groups = {"anyone": np.full(len(people.names), "all")}
    for label, sexes in case.labels.items():
        from s2f.labels import canonical

        if canonical(label) in ("sex", "gender"):
            known = np.array([sexes.get(name, "") for name in people.names])
            groups.setdefault("of the same sex", known)
    rows: list[Row] = []
    samples: Samples = {}
    for others, group in groups.items():
        placed: list[tuple[NDArray[np.bool_], Placement]] = []  # whose voices, by group
        for one in {*group.tolist()} - {""}:
            voices, photos = group[people.speakers] == one, group[people.owners] == one
            gallery = (people.embeddings[photos], people.owners[photos])
            found = place_queries(case.heard[WHOLE][voices], people.speakers[voices], *gallery)
            placed.append((voices, found))
        most = max(2, 1 + min(found.others for _, found in placed))  # as there are of the rarer sex
        for ways in dict.fromkeys((*WAYS, most)):
            right = np.full(len(people.speakers), np.nan)
            for voices, found in placed:
                right[voices] = matching(found, ways)
            got = estimate(right, people.speakers)
            if got.n:
                rows.append((others, ways, got.value, got.low, got.high, 1 / ways, got.n))
                if ways == WAYS[0]:
                    samples[f"1:{ways} matching, {others}, %"] = case.by_person(100 * right)
    heads = ("other faces", "faces", "right %", "low %", "high %", "chance %", "voices")
    text = (
        "How often the speaker's face is nearer to the voice than all of some other faces, drawn "
        "at random: the exact mean over all draws. Within one sex, sex alone is of no help."
        + ("" if len(groups) > 1 else " No label says who is of which sex.")
    )
    return Section(
        "Matching", (text,), (Table("One voice, some faces", heads, tuple(rows)),)
    ), samples
