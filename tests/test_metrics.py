"""Means with intervals, similarity, correlation, proportions. Oracles: SciPy, and known laws."""

import math

import intervals
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from s2f import metrics
from s2f.errors import UsageError
from s2f.metrics import (
    compare_embeddings,
    correlate_people,
    craniofacial,
    estimate,
    paired_difference,
)


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
    for share in (False, True):
        one, none = (estimate(np.array(v), ["a"] * len(v), share=share) for v in ([0.5, 1], []))
        assert (one.value, one.n) == (0.75, 2) and np.isnan([one.low, one.high]).all()
        assert np.isnan(none.value) and none.n == 0
    alike = estimate(np.tile([1.0, 3], 50), np.arange(100) // 2)
    assert (alike.value, alike.low, alike.high) == (2, 2, 2)


@pytest.mark.parametrize("each", [[5], [1, 2, 3, 4, 5]])
def test_an_interval_of_a_mean_is_students_where_values_are_normal(each: list[int]) -> None:
    """Over 40 draws of 17 people, whose own bootstrap would be too narrow by 13 %, and more.

    Deviations from a mean of weights w leave 1 - 2 S3 / S2 + S2 of the variance, Sn = sum w**n, and
    Satterthwaite's degrees of freedom.
    """
    counts = np.resize(each, 17)
    who, w = np.repeat(np.arange(17), counts), counts / counts.sum()
    left = 1 - 2 * (w**3).sum() / (w**2).sum() + (w**2).sum()
    t = stats.t.ppf(0.975, (w**2).sum() ** 2 / (w**4).sum() - 1)
    ratios = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        values = rng.standard_normal(17)[who] + rng.standard_normal(len(who))
        found = estimate(values, who)
        apart = np.bincount(who, values - values.mean()) / len(who)
        width = 2 * t * math.sqrt(np.square(apart).sum() / left)
        ratios.append((found.high - found.low) / width)
    assert 0.95 < np.mean(ratios) < 1.05


@pytest.mark.parametrize("people", [6, 17, 400])
def test_a_share_has_the_interval_of_scipy_by_as_many_samples_as_it_is_worth(people: int) -> None:
    """By t for z. Two samples of one that always agree are one; those that never do, two."""
    level = 1 - 2 * stats.norm.cdf(-stats.t.ppf(0.975, people - 1))
    for hits in {0, 1, people // 2, people}:
        values = np.repeat([1.0, 0], [hits, people - hits])

        def bounds(k: int, n: int) -> tuple[float, float]:
            found = stats.binomtest(k, n).proportion_ci(level, "wilsoncc")
            return pytest.approx((found.low, found.high), abs=1e-12)

        for each in (1, 2):
            found = estimate(values.repeat(each), np.arange(people).repeat(each), share=True)
            assert (found.low, found.high) == bounds(hits, people)
    never = estimate(np.tile([1.0, 0], people), np.arange(people).repeat(2), share=True)
    assert (never.low, never.high) == bounds(people, 2 * people)
    # Shares themselves: all 1/2 with a 0 and a 1 more are worth k (k + 1) / 2 hits.
    same = estimate(np.full(people, 0.5), np.arange(people), share=True)
    n, z = people * (people + 1) / 2, -stats.t.ppf(0.025, people - 1)
    half = (z * math.sqrt(z * z - 1 / n + n) + 1) / 2 / (n + z * z)
    assert (same.low, same.high) == pytest.approx((0.5 - half, 0.5 + half))
    # What is as good as 1 tells no more than hits do.
    nearly = estimate(np.append(np.full(people - 1, 1 - 1e-9), 1), np.arange(people), share=True)
    assert nearly.low == pytest.approx(estimate(np.ones(people), np.arange(people), share=True).low)
    with pytest.raises(UsageError, match="from 0 to 1"):
        estimate(np.array([50.0]), ["a"], share=True)


def test_an_estimate_does_not_depend_on_order_names_and_how_many_are_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values, who = grouped(5)
    order = np.random.default_rng(0).permutation(len(who))
    found = {share: estimate(v, who, share=share) for share, v in ((0, values), (1, values > 0))}
    monkeypatch.setattr(metrics, "CELLS", 1000)  # fewer rounds at once
    for share, some in ((0, values), (1, values > 0)):
        assert estimate(some[order], who[order], share=bool(share)) == found[share]
        assert estimate(some, [f"id{k:03}" for k in who], share=bool(share)) == found[share]
    monkeypatch.setattr(metrics, "MANY", 10)  # percentiles, near those of BCa here
    plain = estimate(values, who)
    assert plain.low == pytest.approx(found[0].low, abs=0.1)


def test_a_difference_is_that_of_the_sign_flip_test() -> None:
    """SciPy's, of all 4,096 ways to turn 12 pairs; ours draws, with errors of 2.2 % at most.

    The interval is that of the shifts that the test would allow.
    """
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.3, 0.8):
        first, second = rng.standard_normal((2, 12))
        second += shift
        found = paired_difference(np.r_[first, np.nan], np.r_[second, 1])
        assert found.value == pytest.approx((second - first).mean()) and found.n == 12

        def p(gains: np.ndarray) -> float:
            tested = stats.permutation_test(
                (gains,),
                lambda x, axis: x.mean(axis),
                permutation_type="samples",
                vectorized=True,
            )
            return float(tested.pvalue)

        assert found.p == pytest.approx(p(second - first), abs=0.07)
        assert p(second - first - found.low) == pytest.approx(0.05, abs=0.025)
        assert p(second - first - found.high) == pytest.approx(0.05, abs=0.025)
        other = paired_difference(second, first)
        assert (other.p, other.value) == (found.p, -found.value)
        assert (other.low, other.high) == (-found.high, -found.low)
        order = rng.permutation(12)
        assert paired_difference(first[order], second[order]) == found


def test_a_difference_is_none_of_equal_ones_and_not_told_of_few() -> None:
    assert paired_difference(np.ones(9), np.ones(9)) == metrics.Difference(0, 0, 0, 1, 9)
    few = paired_difference(np.zeros(5), np.arange(1.0, 6))
    assert few.value == 3 and few.p > 0.05 and (few.low, few.high) == (-math.inf, math.inf)
    six = paired_difference(np.zeros(6), np.arange(1.0, 7))  # 2 of 64 ways
    assert six.p == pytest.approx(1 / 32, abs=0.01) and six.low >= 1
    thirds = np.array([100 / 3, 100, 200 / 3] * 9)  # whose differences cancel, but for rounding
    assert paired_difference(thirds, np.roll(thirds, 1)).p > 0.7
    assert paired_difference(np.array([np.nan]), np.array([1.0])).n == 0


def test_holms_rule_is_that_of_his_steps() -> None:
    """Each p times the number of those that are no smaller, and none below one before."""
    assert metrics.holm([0.01, 0.04, 0.03, 0.6]) == pytest.approx([0.04, 0.09, 0.09, 0.6])
    assert metrics.holm([0.3, 0.9]) == pytest.approx([0.6, 0.9]) and metrics.holm([]) == []


@pytest.mark.slow
def test_intervals_hold_the_truth_and_chance_is_no_difference_as_often_as_said() -> None:
    """A few of the cells of `benchmarks/intervals.py`, which has all: 93 %, and 6 %."""
    for people, rate, alike in ((17, 0.02, 1.0), (17, 0.03, 0.0), (44, 0.95, 0.3), (400, 0.5, 0.3)):
        assert intervals.share_coverage(people, rate, alike, rounds=1000) >= 0.93
    for people, told, lost in ((17, 0.8, 0.0), (44, 6.0, 0.1), (100, 0.0, 0.0)):
        assert intervals.matching_coverage(people, told, lost, 2, rounds=500) >= 0.93
    for shape in intervals.SHAPES:
        assert intervals.mean_coverage(17, shape, rounds=600) >= 0.92  # 93 %, an error of 1 %
    for people, rate in ((17, 0.2), (44, None), (100, 0.02)):
        assert intervals.false_alarms(people, rate, rounds=400) <= 0.06


def test_values_that_do_not_belong_together_are_refused() -> None:
    for measure in (estimate, paired_difference):
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


def test_a_correlation_is_that_of_scipy_and_chance_that_of_other_people() -> None:
    """Of 60 people with up to five samples each; by a loop over shuffled people, drawn anew."""
    rng = np.random.default_rng(0)
    owners = np.arange(60).repeat(np.resize([1, 2, 5], 60))
    own, noise = rng.standard_normal((2, 60))
    samples = own[owners] + 0.2 * rng.standard_normal(len(owners))
    figures = 1e6 + 0.3 * own + noise
    figures[4], samples[0], samples[9] = np.nan, np.nan, np.nan
    known = ~np.isnan(samples) & ~np.isnan(figures[owners])
    found = correlate_people(figures, samples, owners)
    assert found.n == known.sum()
    assert found.r == pytest.approx(stats.pearsonr(figures[owners][known], samples[known])[0])
    shuffled = []
    for _ in range(1000):
        given = rng.permutation(figures)[owners]
        pairs = ~np.isnan(samples) & ~np.isnan(given)
        shuffled.append(abs(stats.pearsonr(given[pairs], samples[pairs])[0]))
    for share in (0.5, 0.95):
        wanted = np.quantile(shuffled, share)
        assert np.quantile(np.abs(found.by_chance), share) == pytest.approx(wanted, rel=0.12)
    assert found.p == pytest.approx(np.mean(np.array(shuffled) >= abs(found.r)), abs=0.05)
    assert stats.pearsonr(figures[owners][known], samples[known])[1] < found.p  # takes all as new


def test_a_correlation_is_always_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    line, each = np.arange(30.0), np.arange(30)
    for other in (np.full(30, 0.1), 0.1 + 1e-17 * line, np.full(30, np.nan)):
        found = correlate_people(line, other, each)
        assert (found.r, found.p) == (0, 1) and not found.by_chance.any()
    for slope in (2, -2):
        found = correlate_people(line, slope * line, each)
        assert found.r == pytest.approx(slope / 2) and found.p == 1 / (metrics.ROUNDS + 1)
        monkeypatch.setattr(metrics, "CELLS", 1000)  # fewer rounds at once
        again = correlate_people(line, slope * line, each)
        assert again.r == found.r and again.by_chance.std() == pytest.approx(0.19, abs=0.02)
    none = correlate_people(np.zeros(0), np.zeros(0), np.zeros(0, int))
    assert (none.r, none.p, none.n) == (0, 1, 0)


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
