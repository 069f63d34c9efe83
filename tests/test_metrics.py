"""Means with intervals, similarity, correlation, proportions. Oracles: SciPy, and known laws."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from s2f import metrics
from s2f.errors import UsageError
from s2f.metrics import compare_embeddings, correlation, craniofacial, estimate


def grouped(seed: int, people: int = 60, each: int = 5) -> tuple[np.ndarray, ...]:
    """Samples that are alike within a person: two variances, of 1 each."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(people), each)
    return rng.standard_normal(people)[who] + rng.standard_normal(len(who)), who


def test_a_mean_is_of_the_samples_and_its_interval_of_the_people() -> None:
    values = np.array([1.0, 2, 3, 10, np.nan])
    found = estimate(values, ["a", "a", "a", "b", "c"])  # NaN says nothing
    assert (found.value, found.n) == (4, 4)
    assert found.deviation == pytest.approx(values[:4].std())
    assert (found.low, found.high) == (2, 10)  # means of a twice, and of b twice
    assert estimate(np.array([1.0, 3]), ["a", "a"]) == metrics.Estimate(2, 2, 2, 1, 1, 2)
    nothing = estimate(np.array([np.nan]), ["a"])
    assert math.isnan(nothing.value) and (nothing.n, nothing.p) == (0, 1)
    nought = estimate(np.zeros(300), np.arange(300) // 5)
    assert (nought.value, nought.low, nought.high, nought.p) == (0, 0, 0, 1)
    one = estimate(np.ones(300), np.arange(300) // 5, rounds=500)
    assert one.p == 1 / 500  # no more certain than that


def test_the_interval_holds_the_truth_as_often_as_it_says_and_p_is_even() -> None:
    found = [estimate(*grouped(seed), rounds=400) for seed in range(200)]
    assert 0.88 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.99
    p = np.array([one.p for one in found])
    assert 0.01 <= np.mean(p < 0.05) <= 0.12  # 5 %, three errors of 1.5 %
    assert 0.39 <= np.mean(p < 0.5) <= 0.61


def test_a_difference_is_found_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    _, who = grouped(5)
    gain = 0.3 + np.random.default_rng(9).standard_normal(len(who)) / 2
    better, order = estimate(gain, who), np.random.default_rng(0).permutation(len(who))
    assert better.low > 0 and better.p < 0.01 and estimate(-gain, who).p == better.p
    assert estimate(gain[order], who[order]) == better
    monkeypatch.setattr(metrics, "CELLS", 1000)  # fewer rounds at once
    assert estimate(gain, [f"id{k:03}" for k in who]) == better


def test_values_that_do_not_belong_together_are_refused() -> None:
    for measure in (estimate, correlation):
        for values, why in ((np.zeros(3), r"\[3\] and \[2\]"), (np.full(2, np.inf), "not finite")):
            with pytest.raises(UsageError, match=why):
                measure(values, np.zeros(2))
    for a, why in ((np.zeros((3, 2)), "cannot be compared"), (np.full((2, 3), np.nan), "finite")):
        with pytest.raises(UsageError, match=why):
            compare_embeddings(a, np.zeros((2, 3)))


@pytest.mark.parametrize("degrees", [0, 1e-6, 1e-3, 45, 90, 179.999, 180 - 1e-6, 180])
def test_an_angle_is_exact_near_both_ends(degrees: float) -> None:
    turn = math.radians(degrees)
    true, predicted = np.array([[3.0, 0]]), 5 * np.array([[math.cos(turn), math.sin(turn)]])
    found = compare_embeddings(true, predicted)
    assert found["angle"][0] == pytest.approx(degrees, rel=1e-9, abs=1e-12)
    assert found["l2"][0] == pytest.approx(2 * math.sin(turn / 2), rel=1e-9, abs=1e-12)
    wanted = abs(1 - math.cos(turn)) + math.sin(turn)
    assert found["l1"][0] == pytest.approx(wanted, rel=1e-6, abs=1e-12)


def test_similarity_is_of_each_pair_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    true, predicted = np.random.default_rng(0).standard_normal((2, 50, 64)).astype(np.float32)
    whole = compare_embeddings(true, predicted)
    monkeypatch.setattr(metrics, "ROWS", 7)
    for name, values in compare_embeddings(true, predicted).items():
        np.testing.assert_array_equal(values, whole[name])
    assert compare_embeddings(np.zeros((1, 3)), np.ones((1, 3)))["angle"].tolist() == [90]


def test_a_correlation_is_that_of_scipy_and_always_a_number() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 10))
    wanted = stats.pearsonr(a, b)
    found = correlation(np.r_[a, np.nan], np.r_[b, 7])
    assert found == (wanted.statistic, wanted.pvalue, 10)
    line = np.arange(5.0)
    assert correlation(line, np.full(5, 0.1)) == (0, 1, 5)
    assert correlation(line, 0.1 + np.array([0, 0, 1e-17, 0, 0]))[1] == 1
    assert correlation(np.zeros(0), np.zeros(0)) == (0, 1, 0)
    assert correlation(line[:2], line[:2]) == pytest.approx((1, 1, 2))
    assert correlation(line, -2 * line) == pytest.approx((-1, 0, 5), abs=1e-9)


# A face 100 wide between the outer corners of the eyes; what no measure uses stays at (50, 50).
DRAWN = {
    1: (-10, 20), 15: (140, 20), 4: (-5, 72), 12: (85, 72), 8: (50, 117),
    36: (0, 0), 39: (30, 0), 42: (70, 0), 45: (100, 0), 27: (50, 0),
    31: (35, 40), 32: (42.5, 45), 33: (50, 50), 34: (57.5, 45), 35: (65, 40),
    48: (30, 72), 49: (35, 68), 50: (45, 65), 52: (55, 65), 53: (65, 72), 54: (75, 72),
    51: (50, 66), 62: (50, 70), 66: (50, 72), 57: (50, 80),
}  # fmt: skip
FACE = np.array([DRAWN.get(k, (50, 50)) for k in range(68)], float)
EXPECTED = {  # by hand from the numbers above; the nose is a kite: half the product of diagonals
    "upper lip height": 20 / 100, "lateral upper lip heights": (28 + 32) / 2 / 100,
    "jaw width": 90 / 100, "nose height": 50 / 100, "nose width": 30 / 100,
    "labio-oral region": 45 / 100, "mandibular index": 45 / 90, "intercanthal index": 40 / 100,
    "nasal index": 30 / 50, "vermilion height index": 4 / 8, "mouth-face width index": 45 / 150,
    "nose area": 50 * 30 / 2 / 100**2, "philtrum width": 10 / 100,
}  # fmt: skip
PLACES = st.floats(-1e3, 1e3)


@given(st.floats(0.01, 100), st.floats(-np.pi, np.pi), PLACES, PLACES, st.booleans())
def test_a_face_has_the_measures_it_was_drawn_to_whatever_its_size_turn_and_place(
    size: float, turn: float, x: float, y: float, mirrored: bool
) -> None:
    cos, sin = np.cos(turn), np.sin(turn)
    moved = FACE * [-1 if mirrored else 1, 1] @ [[cos, sin], [-sin, cos]] * size + [x, y]
    found = craniofacial(np.stack([moved, FACE]))  # each by itself
    assert list(found) == list(EXPECTED)
    for name, values in found.items():
        np.testing.assert_allclose(values, EXPECTED[name], rtol=1e-6, err_msg=name)


def test_what_cannot_be_divided_is_not_a_number_and_the_rest_stays() -> None:
    face = FACE[None].copy()
    face[:, 57] = face[:, 66]  # no lower lip
    found = craniofacial(face)
    assert np.isnan(found.pop("vermilion height index")).all()
    for name, values in found.items():
        np.testing.assert_allclose(values, [EXPECTED[name]], err_msg=name)
    assert all(np.isnan(values).all() for values in craniofacial(np.zeros((1, 68, 2))).values())
    assert all(values.shape == (0,) for values in craniofacial(np.empty((0, 68, 2))).values())
