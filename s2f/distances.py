"""Distances between embeddings: quick ones of all pairs, exact ones of some, and how they differ.

Exact ones are sums in float64 of float32 values: those of a pair never depend on other pairs.
"""

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

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

    from s2f.precision import computing

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
