"""Retrieval: planted answers, chance, and a comparison of all with all by sorting.

The oracle of the distances is SciPy, in float64.
"""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from evaluation_cases import case_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from s2f import retrieval
from s2f.errors import UsageError
from s2f.evaluation_data import WHOLE
from s2f.metrics import estimate
from s2f.report import Curves, Table
from s2f.retrieval import (
    ANGLE,
    METRICS,
    Metric,
    Placement,
    exact_distances,
    matching,
    matching_section,
    place_queries,
    quick_distances,
    recall,
    recall_of_candidates,
    retrieval_section,
    similarity_section,
)

SEEDS = range(5)


SCIPY = {"cosine": "cosine", "l1": "cityblock", "l2": "sqeuclidean"}


def oracle(a: np.ndarray, b: np.ndarray, metric: Metric) -> np.ndarray:
    """Distances of all pairs [p q]."""
    found = cdist(a.astype(np.float64), b.astype(np.float64), SCIPY[metric])
    return found - 1 if metric == "cosine" else found


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
    for distances, own in zip(oracle(queries, gallery, metric), truth, strict=True):
        nearest = {who: distances[owners == who].min() for who in set(owners.tolist())}
        ranked = sorted(nearest, key=lambda who: (nearest[who], who == own))
        before = ranked[: ranked.index(own)]
        better.append(len(before))
        within.append(len([who for who in before if groups[who] == groups[own] >= 0]))
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
def test_galleries_of_other_kinds_are_read(metric: Metric, tmp_path: Path) -> None:
    queries, truth, gallery, owners = random_case()
    groups = np.arange(60) % 3 - 1
    gallery = gallery.astype(np.float16)
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    better, within = sort_all(queries, truth, gallery, owners, metric, groups)
    for photos in (gallery, gallery.astype(np.float64), mapped):
        placed = place_queries(queries, truth, photos, owners, metric=metric, groups=groups)
        assert placed.better.tolist() == better
        assert placed.better_within is not None and placed.better_within.tolist() == within


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
        monkeypatch.setattr(retrieval, "CELLS", 100 * rows)
        again.append(place_queries(queries, truth, gallery, owners, metric=metric, groups=groups))
    assert whole.better_within is not None
    for other in again:
        assert other.better_within is not None
        np.testing.assert_array_equal(other.better, whole.better)
        np.testing.assert_array_equal(other.better_within, whole.better_within)


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
        for values, expected in [
            (recall(placed, 10), 10 / 200),
            (recall_of_candidates(placed, 5), 5 / 100),
            (matching(placed, 2), 1 / 2),
            (matching(placed, 10), 1 / 10),
            (matching(placed, 2, within=True), 1 / 2),
        ]:
            found = estimate(values, truth)
            assert abs(found.value - expected) < 0.1
            inside.append(found.low <= expected <= found.high)
    assert np.mean(inside) > 0.7  # 95 % of them if they were independent


@pytest.mark.parametrize(("others", "drawn", "k"), [(5, 2, 1), (6, 3, 2), (7, 7, 3), (6, 1, 1)])
def test_candidates_are_averaged_over_all_galleries(others: int, drawn: int, k: int) -> None:
    counts = np.arange(others + 1)
    placed = Placement(counts, np.full(others + 1, others))
    found = recall_of_candidates(placed, k, drawn + 1)
    for better, value in zip(counts, found, strict=True):
        galleries = list(itertools.combinations(range(others), drawn))
        hits = sum(sum(who < better for who in gallery) < k for gallery in galleries)
        assert value == pytest.approx(hits / len(galleries), abs=1e-12)


def test_candidates_of_a_large_gallery_are_exact() -> None:
    better = np.array([0, 10, 5000, 99_000])
    placed = Placement(better, np.full(4, 99_999))
    wanted = [math.comb(99_999 - b, 99) / math.comb(99_999, 99) for b in better.tolist()]
    np.testing.assert_allclose(recall_of_candidates(placed, 1), wanted, rtol=1e-8, atol=1e-30)
    np.testing.assert_allclose(matching(placed, 2), 1 - better / 99_999, rtol=1e-8)


def test_fewer_identities_than_candidates_are_all_taken() -> None:
    placed = place_queries(*random_case(60))
    np.testing.assert_array_equal(recall_of_candidates(placed, 5, 100), recall(placed, 5))
    queries, truth, gallery, owners = random_case()
    assert place_queries(queries[:0], truth[:0], gallery, owners).better.shape == (0,)


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


def random_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d), np.float32)


@pytest.mark.parametrize("metric", METRICS)
def test_exact_distances_are_those_of_scipy_and_of_each_pair_alone(metric: Metric) -> None:
    a, b = random_rows(33, 1000), random_rows(33, 1000, 1)
    found = exact_distances(a, b, metric)
    np.testing.assert_allclose(found, oracle(a, b, metric).diagonal(), rtol=1e-12, atol=1e-14)
    alone = [exact_distances(a[k : k + 1], b[k : k + 1], metric)[0] for k in range(33)]
    assert found.tolist() == alone


@pytest.mark.parametrize("large", [0, 2**30])  # from which on L1 is compiled
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shift", [0, 30])  # far from the origin, differences of squares cancel
@pytest.mark.parametrize("d", [1, 3, retrieval.WIDTH, 2 * retrieval.WIDTH + 7])
def test_a_quick_distance_is_off_by_less_than_it_says(
    metric: Metric, d: int, shift: int, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "LARGE", large)
    p, q = 2 * retrieval.TASK + 3, retrieval.TILE + 6
    a, b = (rows + np.float32(shift) for rows in (random_rows(p, d), random_rows(q, d, 1)))
    wanted = oracle(a, b, metric)
    limits = wanted[0]
    found, slack = quick_distances(a, b, metric, limits)
    assert found.shape == (p, q) and slack.shape == (q,)
    sure = np.abs(found - limits) > slack
    assert (np.sign(found - limits)[sure] == np.sign(wanted - limits)[sure]).all()
    assert (np.abs(found - limits) <= slack)[0].all()  # the limits are distances of row 0
    if metric == "cosine":
        assert np.abs(found - wanted).max() <= slack.min()


def test_the_cosine_of_zeros_is_0_and_of_small_embeddings_that_of_large_ones() -> None:
    a, b = np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)
    assert (
        exact_distances(a, b, "cosine").tolist() == exact_distances(b, a, "cosine").tolist() == [0]
    )
    assert quick_distances(a, b, "cosine", np.zeros(1))[0].tolist() == [[0]]
    a, b = random_rows(3, 50), random_rows(2, 50, 1)
    limits, scale = np.zeros(2), np.float32(2.0**-80)  # its square is 0 in float32
    found = quick_distances(a * scale, b, "cosine", limits)[0]
    np.testing.assert_array_equal(found, quick_distances(a, b, "cosine", limits)[0])


PEOPLE, D, EACH = 150, 16, 2
FACES = random_rows(PEOPLE, D)
PERFECT = case_of(FACES, np.repeat(2 * FACES, EACH, axis=0))
GUESSING = case_of(FACES, random_rows(PEOPLE * EACH, D, 1))


def rows_of(parts: tuple[object, ...], title: str = "") -> dict[tuple[object, ...], tuple]:
    """The rows of the one table whose title starts so, by their first two cells."""
    (found,) = [part for part in parts if isinstance(part, Table) and part.title.startswith(title)]
    return {row[:2]: row for row in found.rows}


def test_a_perfect_encoder_is_at_no_angle_and_finds_everyone() -> None:
    section, samples = similarity_section(PERFECT)
    by_name = {row[0]: row for row in rows_of(section.parts).values()}
    assert by_name[WHOLE][1] == pytest.approx(0, abs=1e-3)
    assert by_name["another person's voice"][1] == pytest.approx(90, abs=3)
    assert set(samples[ANGLE]) == set(PERFECT.people.names)
    by_name = {row[0]: row for row in rows_of(similarity_section(GUESSING)[0].parts).values()}
    assert by_name[WHOLE][3] < 90 < by_name[WHOLE][4]  # within the interval
    section, samples = retrieval_section(PERFECT)
    for title in ("Recall among all", "Recall among 100 candidates"):
        row = rows_of(section.parts, title)[f"voice, {WHOLE}", "cosine"]
        assert row[2:14:3] == (1, 1, 1, 1)
    assert set(samples["R@1, %"].values()) == {100.0}


def test_guessing_finds_as_many_as_chance_says() -> None:
    held = []
    for seed in range(8):
        section, _ = retrieval_section(case_of(FACES, random_rows(PEOPLE * EACH, D, 10 + seed)))
        for title, n in (("Recall among all", PEOPLE), ("Recall among 100 candidates", 100)):
            rows = rows_of(section.parts, title)
            chance = rows["chance", ""]
            assert chance[2:14:3] == pytest.approx([1 / n, 2 / n, 5 / n, 10 / n])
            assert chance[-1] == n
            row = rows[f"voice, {WHOLE}", "cosine"]
            held.append(row[12] <= chance[11] <= row[13])  # R@10, in its interval of 95 %
    assert np.mean(held) > 0.75
    (curves,) = [part for part in section.parts if isinstance(part, Curves)]
    assert curves.lines["chance"][-1][0] == 100


def test_matching_is_right_if_perfect_and_at_chance_if_guessing() -> None:
    rows = rows_of(matching_section(PERFECT)[0].parts)
    assert {row[2] for row in rows.values()} == {1}
    assert {others for others, _ in rows} == {"anyone", "of the same sex"}
    for row in rows_of(matching_section(GUESSING)[0].parts).values():
        assert row[3] <= row[5] <= row[4]


def test_within_a_sex_knowing_the_sex_is_of_no_help() -> None:
    faces, voices = FACES.copy(), random_rows(PEOPLE * EACH, D, 2)
    faces[:, 0] = np.where(np.arange(PEOPLE) % 2, 30, -30)
    voices[:, 0] = np.repeat(faces[:, 0], EACH)
    rows = rows_of(matching_section(case_of(faces, voices))[0].parts)
    assert rows["anyone", 2][2] == pytest.approx(0.75, abs=0.03)  # half of the others are ruled out
    assert rows["of the same sex", 2][3] <= 0.5 <= rows["of the same sex", 2][4]
