"""Finding a speaker's face by the voice: who is nearer to a query than its own identity is.

`place_queries` counts those once; recalls over the full gallery or over random candidates, and
matching among a few faces, all follow from that, exactly and without drawing. Below stand the
distances between embeddings that it counts by, and last the protocols: a section of a report each,
with what was published beside it. A protocol that has a paper's name does what the paper does.

Source: Oh et al. 2019, Tables 2 and 3; Bai et al. 2022 (SF2F); Wen et al. 2019.
"""

import math
from collections.abc import Callable, Mapping, Sequence
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
from s2f.evaluation_data import HQ_COUNTS, WHOLE, Case, Chosen, Embeddings, Samples, pieces
from s2f.metrics import estimate
from s2f.report import Cell, Curves, Part, Row, Section, Table

Metric = Literal["cosine", "l1", "l2"]
METRICS: tuple[Metric, ...] = ("cosine", "l1", "l2")
LARGEST = 1e15  # value of an embedding; squares of larger ones may sum to infinity in float32

QUERIES = 1024  # placed at a time
PHOTOS = 512  # of the gallery, compared at a time
CELLS = 2**27  # queries x identities, marked at a time
PAIRS = 64  # compared exactly at a time, in cache

KS = (1, 2, 5, 10)  # depths, in the report
CANDIDATES, GALLERIES = 100, 3
WAYS = (2, 5, 10)
ANGLE = "angle, degrees"
AGAIN = "face drawn from the voice, embedded"
OTHERS = "voice and face of different people"

Who = NDArray[np.integer[Any]]
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

    Queries and the gallery [g d] of photos, whose owners are [g], are read in pieces, the gallery
    once per 1024 queries. An identity is as near as its nearest photo, and as near as the own one
    counts against it. L1 and L2 are of the embeddings as they are. Distances are those of float32
    values, summed in float64 wherever rounding could matter: neither the order nor the number of
    queries and photos changes a count. Raises UsageError if shapes do not fit, a value is not
    finite, or an identity has no photo.
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
    is_large = math.prod(queries.shape) * len(gallery) >= LARGE
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        rows, mine = _take(queries, block), own[block]
        limits = _own_distances(rows, mine, gallery, photos, metric)
        nearer = np.zeros((len(people), len(rows)), bool)
        for first in range(0, len(gallery), PHOTOS):
            part = _take(gallery, slice(first, first + PHOTOS))
            near = _as_near(part, rows, limits, metric, is_large=is_large)
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
    limits, last, mine = np.empty(len(queries)), -1, queries[:0]
    for k, who in enumerate(own):
        if who != last:  # queries of one person come together
            mine, last = _take(gallery, np.flatnonzero(photos == who)), who
        limits[k] = exact_distances(queries[k : k + 1], mine, metric).min()
    return limits


def _as_near(
    part: Rows, queries: Rows, limits: Floats, metric: Metric, *, is_large: bool
) -> NDArray[np.bool_]:
    """Tell which photos are as near to a query as its limit, or nearer, [p q].

    Quick distances settle most pairs; those too close to the limit are computed exactly.
    """
    distances, slack = quick_distances(part, queries, metric, limits, is_large=is_large)
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


def quick_distances(
    a: Rows, b: Rows, metric: Metric, limits: Floats, *, is_large: bool = False
) -> tuple[Rows, Floats]:
    """Measure all rows [p d] against all rows [q d]: [p q], by a metric as in `exact_distances`.

    With them comes, for each limit [q] that they will be compared with, how far from it one has to
    be, so that the exact one lies on the same side: ten times the largest rounding error seen, or
    more. Sums of d products err by about the root of d in roundoffs of their largest possible
    value; those of L1 by no more. What is part of a large whole is worth compiling for.
    """
    error = SLACK * a.shape[1] ** 0.5 * float(np.finfo(np.float32).eps) / 2
    p, q = torch.from_numpy(a), torch.from_numpy(b)
    with computing(torch.device("cpu")):
        if metric == "l1":
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


def compare_with_others(
    targets: Embeddings, rows: Embeddings, owners: Who
) -> tuple[dict[str, Floats], dict[str, float]]:
    """Average what `compare_embeddings` measures over all people but a row's own.

    Targets [n d] are of people, rows [q d] of theirs, `owners` [q]; it gives the means of `angle`,
    `l1` and `l2` [q], and the deviation of each over all pairs, not over some.
    """
    found = {name: np.zeros(len(rows)) for name in ("angle", "l1", "l2")}
    squared = dict.fromkeys(found, 0.0)
    is_large = math.prod(rows.shape) * len(targets) >= LARGE
    for start, part in pieces(rows):
        block = slice(start, start + len(part))
        mine = functional.normalize(torch.from_numpy(part).double(), dim=1)
        for first, some in pieces(targets):
            people = functional.normalize(torch.from_numpy(some).double(), dim=1)
            cosines = (mine @ people.T).clamp(-1, 1)
            squares = mine.square().sum(1, keepdim=True) + people.square().sum(1) - 2 * cosines
            p, q = (side.float().numpy() for side in (people, mine))
            l1 = quick_distances(p, q, "l1", np.zeros(1), is_large=is_large)[0].T.astype(np.float64)
            apart = {
                "angle": cosines.arccos().rad2deg().numpy(),
                "l1": l1,
                "l2": squares.clamp(0).sqrt().numpy(),
            }
            own = owners[block] - first
            there = np.flatnonzero((own >= 0) & (own < len(some)))
            for name, values in apart.items():
                values[there, own[there]] = 0
                found[name][block] += values.sum(1) / (len(targets) - 1)
                squared[name] += float(np.square(values).sum()) / (len(targets) - 1) / len(rows)
    variances = {name: squared[name] - float(one.mean()) ** 2 for name, one in found.items()}
    return found, {name: max(0.0, one) ** 0.5 for name, one in variances.items()}


OH_HEARD = "6 s"  # of a recording: what Oh et al. print first
OH_ANGLES: tuple[Row, ...] = (  # Table 2: as a row of the table below
    ("published: 3 s, AVSpeech", 48.43, None, None, 6.01, 0.19, 0.03, 9.81, 1.74, 5000),
    ("published: 6 s, AVSpeech", 45.75, None, None, 5.09, 0.18, 0.02, 9.42, 1.54, 5000),
)
OH_RECALLS: tuple[tuple[str, str, tuple[float, ...]], ...] = (  # Table 3: by `KS`
    ("published: 3 s, AVSpeech", "cosine", (0.0854, 0.1364, 0.2480, 0.3854)),
    ("published: 3 s, AVSpeech", "l1", (0.0622, 0.0992, 0.1894, 0.2870)),
    ("published: 3 s, AVSpeech", "l2", (0.0586, 0.1002, 0.1898, 0.2892)),
    ("published: 6 s, AVSpeech", "cosine", (0.1092, 0.1700, 0.3060, 0.4582)),
    ("published: 6 s, AVSpeech", "l1", (0.0834, 0.1370, 0.2466, 0.3622)),
    ("published: 6 s, AVSpeech", "l2", (0.0828, 0.1366, 0.2466, 0.3584)),
    ("published: chance", "", (0.01, 0.02, 0.05, 0.10)),
)
OH_GALLERY = 100  # people, by the chance that Oh et al. print; they state 5,000
# Of a report on GitHub, whose speakers may be those that it was trained on: R@1, R@5, R@10, videos.
TALLURI = (
    ("published: saiteja-talluri, test videos, speakers not kept apart", 0.51, 0.61, 0.66, 600),
    ("published: saiteja-talluri, videos of training", 0.45, 0.52, 0.55, 4800),
)
HQ_PEOPLE = HQ_COUNTS["test"][0]
HQ_VOXCELEB: tuple[tuple[str, float | None, float | None, float | None, float, float | None], ...]
HQ_VOXCELEB = (  # cosine, L2, R@5, R@10 and VGGFace score by Vox2Face, Table 2; its ablations
    ("published: Speech-to-face, VE (Pietkun et al.)", 0.213, 1.20, 0.046, 0.087, 13.43),
    ("published: Speech-to-face, AST_165 (Pietkun et al.)", 0.216, 1.17, 0.057, 0.105, 13.78),
    ("published: Voice2Face (Wen et al.)", 0.259, 1.26, 0.087, 0.123, 15.03),
    ("published: SF2F", 0.295, 1.14, 0.146, 0.298, 18.82),
    ("published: Vox2Face", 0.322, 1.09, 0.173, 0.321, 23.21),
    ("published: Vox2Face, plain cosine regression", 0.317, None, None, 0.225, None),
    ("published: Vox2Face, without ArcFace alignment", 0.242, None, None, 0.256, None),
    ("published: Vox2Face, without diffusion", 0.296, None, None, 0.304, 21.87),
    (f"chance among {HQ_PEOPLE}", None, None, 5 / HQ_PEOPLE, 10 / HQ_PEOPLE, None),  # computed
)
SF2F_SCORES = (  # VGGFace scores of SF2F's own page, and their deviations
    ("published: voice2face, 64 px, by SF2F", 15.47, 0.67),
    ("published: SF2F without fuser, 64 px", 18.59, 0.87),
    ("published: SF2F, 64 px", 19.49, 0.59),
    ("published: SF2F without fuser, 128 px", 19.31, 0.65),
    ("published: SF2F, 128 px", 20.10, 0.47),
)
WEN_MATCHING = (  # 1:2, among anyone and within one sex
    ("published: Wen et al., people of training", 0.9683, 0.9398),
    ("published: Wen et al., test", 0.7607, 0.5969),
    ("published: SVHF, test", 0.8100, 0.6520),
    ("published: DIMNet-I, test", 0.8345, 0.7091),
    ("published: DIMNet-G, test", 0.7290, 0.5032),
)
IDENTIFIED = (  # top-1, top-5, and among how many
    ("published: Wen et al., people of training", 0.617, 0.823, 924),
    ("published: wav2pix, speech of training", 0.7681, None, 10),
    ("published: wav2pix, other speech of these people", 0.5008, None, 10),
    *((f"chance among {n}", 1 / n, 5 / n, n) for n in (924, 10)),
)

ALL, SAME = "anyone", "of the same sex"
RECALLS = tuple(head for k in KS for head in (f"R@{k} %", "low %", "high %"))
JUDGE = (
    "Embeddings of faces are the model's own face encoder's; {theirs}: published figures compare "
    "as far as the two tell people apart equally well."
)
Made = tuple[Section, Samples]


def oh_section(case: Case) -> Made:
    """Measure as Oh et al. 2019 do: one frame a person is the target, and the whole gallery.

    Source: Tables 2 and 3. Their voices are embedded; no face is drawn.
    """
    people, frame = case.people, _frames(case)[0]
    targets = Chosen(people.embeddings, frame)
    table, compared = _angles("Oh", case, targets, case.heard, OH_ANGLES)
    published: list[Row] = [
        (name, metric, *_apart(recalls), None, OH_GALLERY) for name, metric, recalls in OH_RECALLS
    ]
    for name, first, *rest, videos in TALLURI:
        published.append((name, "", *_apart([first, None, *rest]), None, videos))
    tables, placed = _recalls("Oh", case, case.heard, targets, np.arange(len(frame)), published)
    some = min(len(people.names), CANDIDATES)
    at = next(heard for heard in (OH_HEARD, WHOLE) if heard in case.heard)
    found = recall_of_candidates(placed[at, "cosine"], 10, some)
    samples = {
        f"Oh: {ANGLE}": case.by_person(compared[at]["angle"]),
        f"Oh: R@10 of {some}, %": case.by_person(100 * found),
    }
    text = (
        "As Oh et al. 2019: the embedding of a voice against that of one photo of the speaker, the "
        "first by its name. L1 and L2 of the first table are of vectors of length 1; the paper's "
        "are on a scale that it does not state, so that only its angle compares. The paper states "
        f"a gallery of 5,000 and prints the chance of one of {OH_GALLERY}: its rows have the N of "
        "the latter. " + JUDGE.format(theirs="the paper's were VGG-Face's")
    )
    theirs = f"published: {OH_HEARD}, AVSpeech"
    angle = _figure(f"Oh: {at}, {ANGLE}", table, ANGLE, (at,), (OTHERS,), (theirs,), "Oh")
    starts = (at, "cosine"), ("chance",), (theirs, "cosine")
    by = f"Oh, chance {1000 / OH_GALLERY:.3g}"
    figures = angle, _figure(f"Oh: {at}, R@10 among {some}, %", tables[-1], "R@10 %", *starts, by)
    return Section("Oh et al. 2019", (text,), (table, *tables), figures), samples


def sf2f_section(case: Case, score: tuple[float, float] | None = None) -> Made:
    """Measure as SF2F does: generated faces against the mean embedding of all photos of a person.

    There are three galleries of 100 identities, in order of their names, whose recalls are
    averaged; and the one of all, with cosine, L2 and L1 to one's own. The score is VGGFace's of the
    faces from voices, and its deviation. Embeddings are brought to length 1 before they are
    averaged, as FaceNet's are; the mean is left as it is. Of a person's recordings SF2F draws one:
    here it is the mean over all.

    Source: Bai et al. 2022, `utils/s2f_evaluator.py` and `test.py`; for the gallery of all,
    Vox2Face, Table 2.
    """
    people, n = case.people, len(case.people.names)
    centres, everyone = people.centres, np.arange(n)
    size = min(n, CANDIDATES)
    galleries = min(GALLERIES, n // size)
    better = np.full(len(people.speakers), -1)
    for first in range(0, galleries * size, size):
        there = slice(first, first + size)
        mine = np.flatnonzero((people.speakers // size * size) == first)
        chosen = Chosen(case.voices_again, mine)
        placed = place_queries(chosen, people.speakers[mine], centres[there], everyone[there])
        better[mine] = placed.better
    asked, placed = better >= 0, Placement(better, size - 1)
    hits = [np.where(asked, recall(placed, k), np.nan) for k in KS]
    title = f"SF2F: recall in galleries of {size}, mean of {galleries}"
    found: tuple[Row, ...] = (
        (AGAIN, *_shares(case, hits, each=True), size),
        ("chance", *_chance(size), None, size),
    )
    recalls = Table(title, ("query", *RECALLS, "people", "N"), found)

    near = _to_centres(case)
    whole = place_queries(case.voices_again, people.speakers, centres, everyone)
    depths = [recall(whole, k) for k in (5, 10)]
    cosine, l2, l1, others = (_of_people(case, values) for values in near)
    mean = estimate(*cosine)
    cells = (mean.value, mean.low, mean.high, float(l2[0].mean()), float(l1[0].mean()))
    shares = _shares(case, depths, each=True)[:-1]
    rows: list[Row] = [(AGAIN, *cells, *shares, *(score or (None, None)), n)]
    by_chance = [min(1.0, k / n) for k in (5, 10)]
    strangers = (float(others[0].mean()), None, None, None, None)
    strange = "chance: faces of different people"
    rows.append((strange, *strangers, *_apart(by_chance), None, None, n))
    for name, cos, far, *recalled, vfs in HQ_VOXCELEB:
        rows.append((name, cos, None, None, far, None, *_apart(recalled), vfs, None, HQ_PEOPLE))
    nothing = [None] * 11
    rows += [(name, *nothing, vfs, spread, HQ_PEOPLE) for name, vfs, spread in SF2F_SCORES]
    depths_told = [head for k in (5, 10) for head in (f"R@{k} %", "low %", "high %")]
    firsts, lasts = ("cosine", "low", "high", "L2", "L1"), ("VGGFace score", "deviation", "N")
    heads = ("faces", *firsts, *depths_told, *lasts)
    faces = len(case.voices_again)
    note = (
        f"Published figures are of HQ-VoxCeleb's test people ({HQ_PEOPLE}): those of recall and "
        "distance by Vox2Face, which does not say whether a person's photos are averaged. A "
        "VGGFace score is the mean of five parts of the faces, none of which can reach more than "
        f"the faces, or people, that it holds: {-(-faces // 5)} of {faces} here."
    )
    table = Table(f"SF2F: generated faces among all {n} people", heads, tuple(rows), note)
    text = (
        "As SF2F (Bai et al. 2022): the face drawn from a voice is embedded and looked for, by the "
        "cosine, among people, each of whom is the mean embedding of all of their photos that are "
        f"read. There are {GALLERIES} galleries of {CANDIDATES} people in order of their names"
        + (f"; these are {galleries} of {size}, as there are {n}" if n < GALLERIES * size else "")
        + ". Figures are means over people. "
        + JUDGE.format(theirs="SF2F's were FaceNet's, Vox2Face's ArcFace's")
    )
    samples = {"SF2F: R@10, %": case.by_person(100 * hits[-1])}
    starts = (AGAIN,), (strange,), ("published: SF2F",)
    by = f"SF2F, chance {1000 / HQ_PEOPLE:.3g}"
    figure = _figure(f"SF2F: R@10 among {n}, %", table, "R@10 %", *starts, by)
    return Section("SF2F (Bai et al. 2022)", (text,), (recalls, table), (figure,)), samples


def wen_section(case: Case) -> Made:
    """Measure as Wen et al. 2019 do: faces drawn from voices are matched, and identified.

    One photo a person is in a gallery: with several, each takes its turn, and galleries are
    averaged. Within one sex, too. Identification is among all people, by their mean embeddings.

    Source: matching by the embedding of the generated face as its authors say in issue 10 of
    cmu-mlsp/reconstructing_faces_from_voices.
    """
    people, n = case.people, len(case.people.names)
    published: list[Row] = []
    for name, *rights in WEN_MATCHING:
        for others, right in zip((ALL, SAME), rights, strict=True):
            published.append((f"{others}; {name}", WAYS[0], right, None, None, 1 / WAYS[0], None))
    table, samples = _matching("Wen", case, case.voices_again, _frames(case), published)
    placed = place_queries(case.voices_again, people.speakers, people.centres, np.arange(n))
    tops = [recall(placed, k) for k in (1, 5)]
    by_chance = _apart([min(1.0, k / n) for k in (1, 5)])
    rows: list[Row] = [(AGAIN, *_shares(case, tops), n), ("chance", *by_chance, None, n)]
    rows += [(name, *_apart(known), None, classes) for name, *known, classes in IDENTIFIED]
    heads = ("faces", "top-1 %", "low %", "high %", "top-5 %", "low %", "high %", "queries", "N")
    note = (
        "Among N people, by the cosine to the mean embedding of each: chance is k of N. The "
        "paper's are the people of its training: --split train evaluates those; wav2pix (Duarte et "
        "al. 2019) knows ten."
    )
    identified = Table("Wen: closed-set identification", heads, tuple(rows), note)
    text = (
        "As Wen et al. 2019: the face drawn from a voice is embedded, and a photo of the speaker "
        "has to be nearer to it, by the cosine, than those of some others; the mean over all draws "
        "of the others. One photo of each person takes part, in turn. Within one sex, sex alone is "
        "of no help. " + JUDGE.format(theirs="the paper's were those of a network of its authors")
    )
    theirs = next(rights for name, *rights in WEN_MATCHING if name == "published: Wen et al., test")
    figures = tuple(
        (f"Wen: 1 of {WAYS[0]}{added}, %", *_percents(row[2:6]), f"{100 * seen:.4g} (Wen)")
        for row in table.rows
        for others, added, seen in zip((ALL, SAME), ("", ", same sex"), theirs, strict=True)
        if row[:2] == (others, WAYS[0])
    )
    text += _sexless(case)
    return Section("Wen et al. 2019", (text,), (table, identified), figures), samples


def our_section(case: Case) -> Made:
    """Measure what the papers do not: voices and generated faces by all photos that are read.

    The target of a voice is the mean embedding of the person's photos, and in a gallery a person is
    as near as the nearest of them.
    """
    people = case.people
    queries = {f"voice, {name}": rows for name, rows in case.heard.items()}
    queries[AGAIN] = case.voices_again
    voice = f"voice, {WHOLE}"
    table, compared = _angles("Ours", case, people.means(), queries)
    tables, placed = _recalls("Ours", case, queries, people.embeddings, people.owners)
    matched, samples = _matching(
        "Ours", case, case.heard[WHOLE], [np.arange(len(people.owners))], ()
    )
    n = len(people.names)
    lines: dict[str, list[tuple[float, float]]] = {}
    for query in (voice, AGAIN):
        hits = ((k, recall(placed[query, "cosine"], k)) for k in range(1, min(n, CANDIDATES) + 1))
        lines[query] = [(k, float(values.mean())) for k, values in hits]
    lines["chance"] = [(k, k / n) for k, _ in lines[voice]]
    curves = Curves("Ours: recall by depth, cosine", "k", "R@k %", lines)
    samples = {
        ANGLE: case.by_person(compared[voice]["angle"]),
        **{f"R@{k}, %": case.by_person(100 * recall(placed[voice, "cosine"], k)) for k in (1, 10)},
        **{name.removeprefix("Ours: "): values for name, values in samples.items()},
    }
    text = (
        "What no paper measures so: a person has several photos; their mean embedding is the "
        "target of the first table, and in galleries a person is as near as the nearest of them. "
        "L1 and L2 of the first table are of vectors of length 1. 3 s and 6 s are the first "
        "seconds of each recording, looped to the length that the model hears. Matching is by the "
        "embedding of the voice."
    )
    parts: list[Part] = [table, *tables, curves, matched]
    name = f"Ours: R@10 among {n}, %"
    figure = _figure(name, tables[0], "R@10 %", (voice, "cosine"), ("chance",))
    return Section("Ours", (text + _sexless(case),), tuple(parts), (figure,)), samples


def _angles(
    protocol: str,
    case: Case,
    targets: Embeddings,
    queries: Mapping[str, Embeddings],
    published: Sequence[Row] = (),
) -> tuple[Table, dict[str, dict[str, Floats]]]:
    """Compare voices with the targets [n d] of their speakers, and of all other people."""
    speakers = case.people.speakers
    compared = {query: case.compare(targets, rows) for query, rows in queries.items()}
    deviations = {
        query: {name: float(one.std()) for name, one in values.items()}
        for query, values in compared.items()
    }
    others, deviations[OTHERS] = compare_with_others(targets, case.heard[WHOLE], speakers)
    rows: list[Row] = []
    for query, values in {**compared, OTHERS: others}.items():
        angle, apart = estimate(values["angle"], speakers), deviations[query]
        cells: list[Cell] = [angle.value, angle.low, angle.high, apart["angle"]]
        for name in ("l2", "l1"):
            cells += [float(values[name].mean()), apart[name]]
        rows.append((query, *cells, angle.n))
    heads = (ANGLE, "low", "high", "deviation", "L2", "deviation", "L1", "deviation", "N")
    title = f"{protocol}: embeddings of voices and of faces"
    note = (
        f"What chance gives is the row {OTHERS!r}: mean and deviation over all pairs. Low and high "
        "bound 95 % by the BCa bootstrap over people."
    )
    return Table(title, ("heard", *heads), (*rows, *published), note), compared


def _recalls(
    name: str,
    case: Case,
    queries: Mapping[str, Embeddings],
    gallery: Embeddings,
    owners: Who,
    published: Sequence[Row] = (),
) -> tuple[list[Table], dict[tuple[str, str], Placement]]:
    """Look for speakers among all people, and among 100; published rows stand beside the latter."""
    n = len(case.people.names)
    some = min(n, CANDIDATES)
    placed: dict[tuple[str, str], Placement] = {}
    for query, rows in queries.items():
        for metric in METRICS:
            found = place_queries(rows, case.people.speakers, gallery, owners, metric=metric)
            placed[query, metric] = found
    tables = []
    for size in dict.fromkeys((n, some)):
        made: list[Row] = []
        for which, one in placed.items():
            hits = [recall_of_candidates(one, k, size) for k in KS]
            made.append((*which, *_shares(case, hits), size))
        made.append(("chance", "", *_chance(size), None, size))
        is_all, is_some = size == n, size == some
        title = f"all {n} people" if is_all else f"{some} candidates, averaged"
        note = "N are the people of the gallery (saiteja-talluri's are videos): chance is k of N."
        if not is_all:
            note += f" The exact mean over all galleries of {some} people that hold the speaker."
        heads = ("query", "metric", *RECALLS, "queries", "N")
        made += published if is_some else ()
        tables.append(Table(f"{name}: recall among {title}", heads, tuple(made), note))
    return tables, placed


def _matching(
    name: str,
    case: Case,
    queries: Embeddings,
    galleries: Sequence[NDArray[np.int64]],
    published: Sequence[Row],
) -> tuple[Table, Samples]:
    """Match queries [q d] with galleries of some of the people's photos, which are averaged."""
    people = case.people
    groups = {ALL: np.full(len(people.names), "all")}
    if sexes := _sexes(case):
        groups[SAME] = np.array([sexes.get(one, "") for one in people.names])
    rows: list[Row] = []
    samples: Samples = {}
    for others, group in groups.items():
        placed: list[tuple[NDArray[np.int64], Placement]] = []  # which queries
        for one in sorted({*group.tolist()} - {""}):
            mine = np.flatnonzero(group[people.speakers] == one)
            for photos in galleries:
                owners = people.owners[photos]
                there = group[owners] == one
                gallery = Chosen(people.embeddings, photos[there])
                voices = Chosen(queries, mine)
                found = place_queries(voices, people.speakers[mine], gallery, owners[there])
                placed.append((mine, found))
        if not placed:
            continue
        most = max(2, 1 + min(found.others for _, found in placed))  # as there are of the rarer sex
        for ways in dict.fromkeys((*WAYS, most)):
            right = np.full(len(people.speakers), np.nan)
            for mine, found in placed:
                right[mine] = np.nan_to_num(right[mine]) + matching(found, ways) / len(galleries)
            right = np.minimum(right, 1)
            got = estimate(right, people.speakers, share=True)
            if got.n:
                rows.append((others, ways, got.value, got.low, got.high, 1 / ways, got.n))
                if ways == WAYS[0]:
                    samples[f"{name}: 1:{ways} matching, {others}, %"] = case.by_person(100 * right)
    heads = ("other faces", "faces", "right %", "low %", "high %", "chance %", "voices")
    title = f"{name}: one voice, some faces"
    return Table(title, heads, (*rows, *published)), samples


def _figure(
    measure: str,
    table: Table,
    head: str,
    row: Row,
    chance: Row,
    published: Row | None = None,
    by: str = "",
) -> Row:
    """Take a figure, its interval, what chance gives and what was published out of a table.

    Rows are given by what they begin with.
    """
    k = table.heads.index(head)
    found, *others = (
        next(r for r in table.rows if r[: len(start)] == start)
        for start in (row, chance, published)
        if start
    )
    cells: Row = (*found[k : k + 3], *(other[k] for other in others))
    first, low, high, by_chance, *seen = _percents(cells) if head.endswith("%") else cells
    told = [f"{one:.4g} ({by})" for one in seen]
    return (measure, first, low, high, by_chance, told[0] if told else None)


def _percents(shares: Sequence[Cell]) -> Row:
    return tuple(100 * cell if isinstance(cell, float) else None for cell in shares)


def _sexes(case: Case) -> Mapping[str, str]:
    from s2f.files import canonical

    known = (v for label, v in case.labels.items() if canonical(label) in ("sex", "gender"))
    return next(known, {})


def _sexless(case: Case) -> str:
    return "" if _sexes(case) else " No label says who is of which sex."


def _frames(case: Case) -> list[NDArray[np.int64]]:
    """Choose one photo of each person, [n] places among the photos, as often as one has photos."""
    owners = case.people.owners
    mine = [np.flatnonzero(owners == k) for k in range(len(case.people.names))]
    return [np.array([some[k % len(some)] for some in mine]) for k in range(max(map(len, mine)))]


def _to_centres(case: Case) -> tuple[Floats, Floats, Floats, Floats]:
    """Compare generated faces with their people's centres: cosine, L2, L1; and others' cosine."""
    people, found = case.people, np.empty((4, len(case.people.speakers)))
    everyone = np.zeros((0, people.centres.shape[1]))  # their sum, [1 d]
    for _, some in pieces(people.centres):
        everyone = np.concatenate([everyone, _directions(some)]).sum(0, keepdims=True)
    for start, part in pieces(case.voices_again):
        centres = people.centres[people.speakers[start : start + len(part)]]
        mine = _directions(part)
        cosines = (mine * _directions(centres)).sum(1)
        others = (mine @ everyone[0] - cosines) / (len(people.centres) - 1)
        apart = mine - centres.astype(np.float64)
        l1, l2 = np.abs(apart).sum(1), np.linalg.norm(apart, axis=1)
        found[:, start : start + len(part)] = cosines, l2, l1, others
    return found[0], found[1], found[2], found[3]


def _directions(rows: Rows) -> Floats:
    """Bring rows [n d] to length 1."""
    directions: Floats = functional.normalize(torch.from_numpy(rows).double(), dim=1).numpy()
    return directions


def _of_people(case: Case, values: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Average values of recordings [q] by person: means, and whose they are; NaN is left out."""
    known = ~np.isnan(values)
    there, at = np.unique(case.people.speakers[known], return_inverse=True)
    return np.bincount(at, values[known]) / np.bincount(at), there


def _shares(case: Case, hits: Sequence[Floats], *, each: bool = False) -> list[Cell]:
    """Give mean, low and high of shares [q], and at last how many there are.

    `each` counts every person as one, however many their recordings.
    """
    cells: list[Cell] = []
    n = 0
    for values in hits:
        found = _of_people(case, values) if each else (values, case.people.speakers)
        mean = estimate(*found, share=True)
        cells += [mean.value, mean.low, mean.high]
        n = mean.n
    return [*cells, n]


def _apart(values: Sequence[float | None]) -> list[Cell]:
    """Give values without an interval in the columns of those that have one."""
    return [cell for value in values for cell in (value, None, None)]


def _chance(size: int) -> list[Cell]:
    return _apart([min(1.0, k / size) for k in KS])


PROTOCOLS: dict[str, Callable[[Case], Made]] = {
    "oh": oh_section,
    "sf2f": sf2f_section,
    "wen": wen_section,
    "ours": our_section,
}
