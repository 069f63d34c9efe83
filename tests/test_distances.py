"""Distances between embeddings. The oracle is SciPy, in float64."""

import sys

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from s2f import retrieval
from s2f.retrieval import METRICS, TASK, TILE, WIDTH, Metric, exact, quick

SCIPY = {"cosine": "cosine", "l1": "cityblock", "l2": "sqeuclidean"}


def random_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d), np.float32)


def oracle(a: np.ndarray, b: np.ndarray, metric: Metric) -> np.ndarray:
    found = cdist(a.astype(np.float64), b.astype(np.float64), SCIPY[metric])
    return found - 1 if metric == "cosine" else found


@pytest.mark.parametrize("metric", METRICS)
def test_exact_distances_are_those_of_scipy(metric: Metric) -> None:
    a, b = random_rows(20, 300), random_rows(20, 300, 1)
    found = exact(a, b, metric)
    np.testing.assert_allclose(found, oracle(a, b, metric).diagonal(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("metric", METRICS)
def test_an_exact_distance_does_not_depend_on_other_pairs(metric: Metric) -> None:
    a, b = random_rows(33, 1000), random_rows(33, 1000, 1)
    alone = [exact(a[k : k + 1], b[k : k + 1], metric)[0] for k in range(33)]
    assert exact(a, b, metric).tolist() == alone


@pytest.fixture(params=["small", "compiled", "without numba"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "small":
        monkeypatch.setattr(retrieval, "LARGE", 0)
    if request.param == "without numba":
        monkeypatch.setattr(retrieval, "_compiled", lambda: None)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shift", [0, 30])  # far from the origin, differences of squares cancel
@pytest.mark.parametrize("d", [1, 3, WIDTH, 2 * WIDTH + 7])
def test_a_quick_distance_is_off_by_less_than_it_says(metric: Metric, d: int, shift: int) -> None:
    a, b = (
        random_rows(2 * TASK + 3, d) + np.float32(shift),
        random_rows(TILE + 6, d, 1) + np.float32(shift),
    )
    wanted = oracle(a, b, metric)
    limits = wanted[0]
    found, slack = quick(a, b, metric, limits)
    assert found.shape == (2 * TASK + 3, TILE + 6) and slack.shape == (TILE + 6,)
    sure = np.abs(found - limits) > slack
    assert (np.sign(found - limits)[sure] == np.sign(wanted - limits)[sure]).all()
    assert (np.abs(found - limits) <= slack)[0].all()  # the limits are distances of row 0
    if metric == "cosine":
        assert np.abs(found - wanted).max() <= slack.min()


def test_without_numba_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)  # so that importing it fails
    assert retrieval._compiled.__wrapped__() is None


def test_zeros_have_no_direction() -> None:
    a, b = np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)
    assert exact(a, b, "cosine").tolist() == exact(b, a, "cosine").tolist() == [0]
    assert quick(a, b, "cosine", np.zeros(1))[0].tolist() == [[0]]


def test_the_cosine_of_small_embeddings_is_that_of_large_ones() -> None:
    a, b = random_rows(3, 50), random_rows(2, 50, 1)
    limits, scale = np.zeros(2), np.float32(2.0**-80)  # its square is 0 in float32
    found = quick(a * scale, b, "cosine", limits)[0]
    np.testing.assert_array_equal(found, quick(a, b, "cosine", limits)[0])
