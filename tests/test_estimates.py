"""Means with intervals, differences, similarity and correlation. Oracles: SciPy, and known laws."""

import math

import numpy as np
import pytest
from scipy import stats

from s2f import metrics
from s2f.errors import UsageError
from s2f.metrics import compare_embeddings, compare_means, correlation, estimate


def grouped(seed: int, people: int = 60, each: int = 5, shift: float = 0) -> tuple[np.ndarray, ...]:
    """Samples that are alike within a person: two variances, of 1 each."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(people), each)
    own = rng.standard_normal(people)[who]
    return own + rng.standard_normal(len(who)) + shift, who


def test_the_mean_and_deviation_are_of_the_samples() -> None:
    values = np.array([1.0, 2, 3, 10])
    found = estimate(values, ["a", "a", "a", "b"])
    assert (found.value, found.n) == (4, 4)
    assert found.deviation == pytest.approx(values.std())
    assert (found.low, found.high) == (2, 10)  # means of a twice, and of b twice


def test_the_interval_is_as_wide_as_people_make_it() -> None:
    values, who = grouped(0, 400)
    found = estimate(values, who)
    per_person = values.reshape(400, 5).mean(1)  # as many samples each: their mean is the mean
    error = per_person.std(ddof=1) / 20
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    alone = estimate(values, np.arange(2000))
    assert alone.high - alone.low < 0.7 * (found.high - found.low)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(200):
        found = estimate(*grouped(seed))
        inside += found.low <= 0 <= found.high
    assert 0.88 <= inside / 200 <= 0.99


def test_the_order_of_samples_does_not_matter() -> None:
    values, who = grouped(1)
    order = np.random.default_rng(0).permutation(len(values))
    assert estimate(values[order], who[order]) == estimate(values, who)
    other = values**2
    shuffled = compare_means(values[order], other[order], who[order])
    assert shuffled == compare_means(values, other, who)


def test_names_are_as_good_as_numbers() -> None:
    values, who = grouped(2)
    assert estimate(values, [f"id{k:03}" for k in who]) == estimate(values, who)


def test_rounds_in_parts_are_the_same_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    values, who = grouped(3)
    whole = estimate(values, who)
    monkeypatch.setattr(metrics, "CELLS", 1000)
    assert estimate(values, who) == whole


def test_another_seed_gives_another_interval_about_as_wide() -> None:
    values, who = grouped(4)
    one, two = estimate(values, who), estimate(values, who, seed=1)
    assert one.low != two.low
    assert one.high - one.low == pytest.approx(two.high - two.low, rel=0.2)


def test_one_person_has_no_interval() -> None:
    found = estimate(np.array([1.0, 3]), ["a", "a"])
    assert (found.value, found.low, found.high, found.n) == (2, 2, 2, 2)
    assert compare_means(np.zeros(2), np.ones(2), ["a", "a"]).p == 1


def test_samples_that_say_nothing_are_left_out() -> None:
    found = estimate(np.array([1.0, np.nan, 3]), ["a", "c", "b"])
    assert (found.value, found.n) == (2, 2)
    assert compare_means(np.array([1.0, np.nan]), np.array([np.nan, 2]), ["a", "b"]).p == 1
    nothing = estimate(np.array([np.nan]), ["a"])
    assert math.isnan(nothing.value) and nothing.n == 0


def test_values_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\[3\] and \[2\]"):
        estimate(np.zeros(3), ["a", "b"])
    with pytest.raises(UsageError, match=r"\[3\] and \[2\]"):
        compare_means(np.zeros(3), np.zeros(2), ["a", "b", "c"])
    with pytest.raises(UsageError, match=r"\[3\] and \[2\]"):
        correlation(np.zeros(3), np.zeros(2))
    with pytest.raises(UsageError, match="not finite"):
        estimate(np.array([1, np.inf]), ["a", "b"])
    with pytest.raises(UsageError, match="cannot be compared"):
        compare_embeddings(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(UsageError, match="not finite"):
        compare_embeddings(np.full((2, 3), np.nan), np.zeros((2, 3)))


def test_a_difference_is_found_and_none_is_not() -> None:
    values, who = grouped(5)
    noise = np.random.default_rng(9).standard_normal(len(values)) / 2
    better = compare_means(values, values + 0.3 + noise, who)
    assert better.low > 0 and better.p < 0.01
    assert better.value == pytest.approx(0.3, abs=0.1)
    back = compare_means(values + 0.3 + noise, values, who)
    assert back.value == pytest.approx(-better.value) and back.p == better.p
    same = compare_means(values, values, who)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_a_certain_difference_is_no_more_certain_than_the_rounds() -> None:
    values, who = grouped(6)
    assert compare_means(values, values + 1, who, rounds=500).p == 1 / 500


def test_without_a_difference_p_is_even() -> None:
    p = [compare_means(np.zeros(300), *grouped(seed), rounds=400).p for seed in range(200)]
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.12  # 5 %, three errors of 1.5 %
    assert 0.39 <= np.mean(np.array(p) < 0.5) <= 0.61


@pytest.mark.parametrize("degrees", [0, 1e-6, 1e-3, 45, 90, 179.999, 180 - 1e-6, 180])
def test_an_angle_is_exact_near_both_ends(degrees: float) -> None:
    turn = math.radians(degrees)
    true, predicted = np.array([[3.0, 0]]), 5 * np.array([[math.cos(turn), math.sin(turn)]])
    found = compare_embeddings(true, predicted)
    assert found["angle"][0] == pytest.approx(degrees, rel=1e-9, abs=1e-12)
    assert found["l2"][0] == pytest.approx(2 * math.sin(turn / 2), rel=1e-9, abs=1e-12)
    wanted = abs(1 - math.cos(turn)) + math.sin(turn)
    assert found["l1"][0] == pytest.approx(wanted, rel=1e-6, abs=1e-12)


def test_similarity_does_not_depend_on_what_else_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    true, predicted = rng.standard_normal((2, 50, 64)).astype(np.float32)
    whole = compare_embeddings(true, predicted)
    monkeypatch.setattr(metrics, "ROWS", 7)
    for name, values in compare_embeddings(true, predicted).items():
        np.testing.assert_array_equal(values, whole[name])
    assert whole["angle"].mean() == pytest.approx(90, abs=5)  # of random directions


def test_zeros_are_at_a_right_angle_to_all() -> None:
    assert compare_embeddings(np.zeros((1, 3)), np.ones((1, 3)))["angle"].tolist() == [90]


@pytest.mark.parametrize("n", [3, 4, 10, 1000])
def test_a_correlation_is_that_of_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    a = rng.standard_normal(n)
    b = 0.2 * a + rng.standard_normal(n)
    wanted = stats.pearsonr(a, b)
    found = correlation(a, b)
    assert (found.r, found.p) == pytest.approx((wanted.statistic, wanted.pvalue), rel=1e-9)
    assert found.n == n


def test_a_correlation_is_always_a_number() -> None:
    line = np.arange(5.0)
    assert correlation(line, np.full(5, 0.1)) == metrics.Correlation(0, 1, 5)
    assert correlation(line, 0.1 + np.array([0, 0, 1e-17, 0, 0])).p == 1
    assert correlation(np.zeros(0), np.zeros(0)) == metrics.Correlation(0, 1, 0)
    two = correlation(line[:2], line[:2])
    assert two.r == pytest.approx(1) and (two.p, two.n) == (1, 2)
    exact = correlation(line, -2 * line)
    assert exact.r == pytest.approx(-1) and exact.p < 1e-9
    assert correlation(np.r_[line, np.nan], np.r_[line, 7]).n == 5
