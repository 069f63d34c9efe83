"""Retrieval: planted answers, chance, and a comparison of all with all by sorting."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2f import retrieval
from s2f.errors import UsageError
from s2f.metrics import estimate
from s2f.retrieval import (
    METRICS,
    Metric,
    Placement,
    chance,
    matching,
    place_queries,
    recall,
    recall_of_candidates,
)

SEEDS = range(5)


def plain_distance(a: np.ndarray, b: np.ndarray, metric: Metric) -> float:
    x, y = a.astype(np.float32).astype(float), b.astype(np.float32).astype(float)
    if metric == "l1":
        return float(np.abs(x - y).sum())
    if metric == "l2":
        return float(((x - y) ** 2).sum())
    norm = float(((x @ x) * (y @ y)) ** 0.5)
    return -float(x @ y) / norm if norm else 0.0


def sort_all(
    queries: np.ndarray,
    truth: np.ndarray,
    gallery: np.ndarray,
    owners: np.ndarray,
    metric: Metric,
    groups: np.ndarray,
) -> tuple[list[int], list[int]]:
    """Count by sorting the identities of each query by distance, the own one last of its equals."""
    better, within = [], []
    for query, own in zip(queries, truth, strict=True):
        nearest = {
            who: min(
                plain_distance(query, photo, metric)
                for photo, owner in zip(gallery, owners, strict=True)
                if owner == who
            )
            for who in set(owners.tolist())
        }
        ranked = sorted(nearest, key=lambda who: (nearest[who], who == own))
        before = ranked[: ranked.index(own)]
        better.append(len(before))
        same = [who for who in before if groups[who] == groups[own] >= 0]
        within.append(len(same))
    return better, within


# Whole numbers: many ties, and sums without rounding whatever their order.
@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, ...]:
    people = draw(st.integers(1, 6))
    extra = draw(st.lists(st.integers(0, people - 1), max_size=8))
    owners = np.array(draw(st.permutations([*range(people), *extra])))
    truth = np.array(draw(st.lists(st.integers(0, people - 1), min_size=1, max_size=5)))
    d = draw(st.integers(1, 4))
    values = st.integers(-2, 2)

    def rows(n: int) -> np.ndarray:
        flat = draw(st.lists(values, min_size=n * d, max_size=n * d))
        return np.array(flat, np.float32).reshape(n, d)

    groups = np.array(draw(st.lists(st.integers(-1, 2), min_size=people, max_size=people)))
    return rows(len(truth)), truth, rows(len(owners)), owners, groups


@settings(deadline=None)
@given(cases(), st.sampled_from(["l1", "l2"]))
def test_counts_are_those_of_sorting(case: tuple[np.ndarray, ...], metric: Metric) -> None:
    queries, truth, gallery, owners, groups = case
    placed = place_queries(queries, truth, gallery, owners, metric=metric, groups=groups)
    better, within = sort_all(queries, truth, gallery, owners, metric, groups)
    assert placed.better.tolist() == better
    assert placed.better_within is not None and placed.others_within is not None
    assert placed.better_within.tolist() == within
    assert set(placed.others.tolist()) == {len(set(owners.tolist())) - 1}
    sizes = [int(np.sum(groups == groups[who])) - 1 if groups[who] >= 0 else 0 for who in truth]
    assert placed.others_within.tolist() == sizes
    assert (placed.better_within <= placed.better).all()


def random_case(
    people: int = 60, photos: int = 150, queries: int = 40, d: int = 20, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    owners = rng.permutation(np.r_[np.arange(people), rng.integers(0, people, photos - people)])
    gallery = rng.standard_normal((photos, d), np.float32)
    truth = rng.integers(0, people, queries)
    return rng.standard_normal((queries, d), np.float32), truth, gallery, owners


@pytest.mark.parametrize("metric", METRICS)
def test_counts_of_real_numbers_are_those_of_sorting(metric: Metric) -> None:
    queries, truth, gallery, owners = random_case()
    groups = np.arange(60) % 3 - 1
    placed = place_queries(queries, truth, gallery, owners, metric=metric, groups=groups)
    better, within = sort_all(queries, truth, gallery, owners, metric, groups)
    assert placed.better.tolist() == better
    assert placed.better_within is not None and placed.better_within.tolist() == within


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["float16", "float64", "memmap"])
def test_galleries_of_other_kinds_are_read(metric: Metric, kind: str, tmp_path: Path) -> None:
    queries, truth, gallery, owners = random_case()
    gallery = gallery.astype(np.float16)
    wanted = place_queries(queries, truth, gallery.astype(np.float32), owners, metric=metric).better
    if kind == "memmap":
        np.save(tmp_path / "gallery.npy", gallery)
        gallery = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    else:
        gallery = gallery.astype(kind)
    np.testing.assert_array_equal(
        place_queries(queries, truth, gallery, owners, metric=metric).better, wanted
    )


def duplicates(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Photos that several people share, and queries near them: ties but for rounding."""
    faces = rng.standard_normal((40, 300), np.float32)
    owners = rng.permutation(np.repeat(np.arange(50), 4))
    gallery = faces[rng.integers(0, 40, 200)]
    truth = rng.integers(0, 50, 30)
    return faces[rng.integers(0, 40, 30)] * np.float32(1.1), truth, gallery, owners


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("make", [lambda rng: random_case(d=300), duplicates])
def test_neither_order_nor_batches_matter(
    metric: Metric,
    make: Callable[[np.random.Generator], tuple[np.ndarray, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(1)
    queries, truth, gallery, owners = make(rng)
    groups = np.arange(60) % 2
    whole = place_queries(queries, truth, gallery, owners, metric=metric, groups=groups)
    order = rng.permutation(len(gallery))
    again = [
        place_queries(queries, truth, gallery[order], owners[order], metric=metric, groups=groups)
    ]
    for rows, photos, pairs in [(1, 1, 1), (7, 13, 5), (1000, 64, 3)]:
        monkeypatch.setattr(retrieval, "QUERIES", rows)
        monkeypatch.setattr(retrieval, "PHOTOS", photos)
        monkeypatch.setattr(retrieval, "PAIRS", pairs)
        again.append(place_queries(queries, truth, gallery, owners, metric=metric, groups=groups))
    assert whole.better_within is not None
    for other in again:
        assert other.better_within is not None
        np.testing.assert_array_equal(other.better, whole.better)
        np.testing.assert_array_equal(other.better_within, whole.better_within)


def test_many_identities_are_marked_for_few_queries_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = random_case()
    whole = place_queries(*case)
    monkeypatch.setattr(retrieval, "CELLS", 100)
    np.testing.assert_array_equal(place_queries(*case).better, whole.better)


@pytest.mark.parametrize("metric", METRICS)
def test_a_perfect_encoder_finds_everyone(metric: Metric) -> None:
    _, _, gallery, owners = random_case(people=120, photos=300)
    placed = place_queries(
        gallery, owners, gallery, owners, metric=metric, groups=np.arange(120) % 2
    )
    assert (recall(placed, 1) == 1).all()
    assert (recall_of_candidates(placed, 1)[0] == 1).all()
    assert (matching(placed, 2) == 1).all() and (matching(placed, 50, within=True) == 1).all()


@pytest.mark.parametrize("metric", METRICS)
def test_an_encoder_that_says_the_same_of_all_finds_nobody(metric: Metric) -> None:
    _, truth, _, owners = random_case()
    placed = place_queries(np.ones((40, 5)), truth, np.ones((150, 5)), owners, metric=metric)
    assert (placed.better == 59).all()
    assert not recall(placed, 10).any() and not matching(placed, 2).any()


@pytest.mark.parametrize("metric", METRICS)
def test_a_random_encoder_is_at_chance(metric: Metric) -> None:
    inside = []
    for seed in SEEDS:
        queries, truth, gallery, owners = random_case(200, 200, 600, seed=seed)
        placed = place_queries(
            queries, truth, gallery, owners, metric=metric, groups=np.arange(200) % 2
        )
        candidates, n = recall_of_candidates(placed, 5)
        for values, expected in [
            (recall(placed, 10), chance(placed, 10)),
            (candidates, chance(placed, 5, n)),
            (matching(placed, 2), 1 / 2),
            (matching(placed, 10), 1 / 10),
            (matching(placed, 2, within=True), 1 / 2),
        ]:
            found = estimate(values, truth)
            assert abs(found.value - expected) < 0.1
            inside.append(found.low <= expected <= found.high)
    assert np.mean(inside) > 0.7  # 95 % of them if they were independent


def test_chance_is_the_share_that_is_looked_at() -> None:
    placed = place_queries(*random_case(60))
    assert chance(placed, 1) == 1 / 60 and chance(placed, 60) == chance(placed, 70) == 1
    assert chance(placed, 2, 10) == 2 / 10
    assert chance(placed, 2, 100) == 2 / 60


@pytest.mark.parametrize(("others", "drawn", "k"), [(5, 2, 1), (6, 3, 2), (7, 7, 3), (6, 1, 1)])
def test_candidates_are_averaged_over_all_galleries(others: int, drawn: int, k: int) -> None:
    counts = np.arange(others + 1)
    placed = Placement(counts, np.full(others + 1, others))
    found, n = recall_of_candidates(placed, k, drawn + 1)
    assert n == drawn + 1
    for better, value in zip(counts, found, strict=True):
        galleries = list(itertools.combinations(range(others), drawn))
        hits = sum(sum(who < better for who in gallery) < k for gallery in galleries)
        assert value == pytest.approx(hits / len(galleries), abs=1e-12)


def test_candidates_of_a_large_gallery_are_exact() -> None:
    better = np.array([0, 10, 5000, 99_000])
    placed = Placement(better, np.full(4, 99_999))
    wanted = [math.comb(99_999 - b, 99) / math.comb(99_999, 99) for b in better.tolist()]
    np.testing.assert_allclose(recall_of_candidates(placed, 1)[0], wanted, rtol=1e-8, atol=1e-30)
    np.testing.assert_allclose(matching(placed, 2), 1 - better / 99_999, rtol=1e-8)


def test_fewer_identities_than_candidates_are_all_taken() -> None:
    placed = place_queries(*random_case(60))
    values, n = recall_of_candidates(placed, 5, 100)
    assert n == 60
    np.testing.assert_array_equal(values, recall(placed, 5))


def test_a_group_that_is_too_small_says_nothing() -> None:
    placed = Placement(np.array([1, 1]), np.array([9, 9]), np.array([1, 0]), np.array([4, 1]))
    np.testing.assert_allclose(matching(placed, 3, within=True), [1 / 2, np.nan])
    assert np.isnan(matching(placed, 11)).all()


def test_a_choice_that_is_none_is_refused() -> None:
    placed = Placement(np.array([1]), np.array([9]))
    with pytest.raises(UsageError, match="no groups"):
        matching(placed, 2, within=True)
    with pytest.raises(UsageError, match="2 or more"):
        matching(placed, 1)


def test_progress_ends_where_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "QUERIES", 15)
    monkeypatch.setattr(retrieval, "PHOTOS", 100)
    told: list[tuple[int, int]] = []
    place_queries(*random_case(), progress=lambda done, total, what: told.append((done, total)))
    assert told == [(done, 450) for done in (100, 150, 250, 300, 400, 450)]


def test_nobody_asked_for_is_no_error() -> None:
    queries, truth, gallery, owners = random_case()
    assert place_queries(queries[:0], truth[:0], gallery, owners).better.shape == (0,)


def test_an_identity_without_a_photo_is_named() -> None:
    queries, truth, gallery, owners = random_case()
    with pytest.raises(UsageError, match="identity 60 is asked for"):
        place_queries(queries, np.where(truth == truth[0], 60, truth), gallery, owners)
    with pytest.raises(UsageError, match="none of identity 59"):
        place_queries(queries, truth, gallery, owners, groups=np.zeros(59, int))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e16])
@pytest.mark.parametrize("metric", METRICS)
def test_values_that_are_no_embedding_are_refused(metric: Metric, value: float) -> None:
    queries, truth, gallery, owners = random_case()
    broken = gallery.copy()
    broken[7, 3] = value
    with pytest.raises(UsageError, match="not finite"):
        place_queries(queries, truth, broken, owners, metric=metric)
    queries[3, 2] = value
    with pytest.raises(UsageError, match="not finite"):
        place_queries(queries, truth, gallery, owners, metric=metric)


def test_what_does_not_fit_is_refused() -> None:
    queries, truth, gallery, owners = random_case()
    for wrong in [
        (queries[1:], truth, gallery, owners),
        (queries, truth, gallery[1:], owners),
        (queries[:, 1:], truth, gallery, owners),
        (queries[0], truth, gallery, owners),
    ]:
        with pytest.raises(UsageError, match="do not fit"):
            place_queries(*wrong)
    with pytest.raises(UsageError, match="no metric 'l3'"):
        place_queries(queries, truth, gallery, owners, metric="l3")  # type: ignore[arg-type]
