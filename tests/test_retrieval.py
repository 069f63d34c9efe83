"""Retrieval: planted answers, chance, sorting of all with all, and SciPy's distances."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from evaluation_cases import case_of
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from s2f import retrieval
from s2f.errors import UsageError
from s2f.evaluation_data import WHOLE, Case
from s2f.report import Curves, Section, Table
from s2f.retrieval import METRICS, Metric, Placement, matching, place_queries, recall

SCIPY = {"cosine": "cosine", "l1": "cityblock", "l2": "sqeuclidean"}
Arrays = tuple[np.ndarray, ...]


def oracle(a: np.ndarray, b: np.ndarray, metric: Metric) -> np.ndarray:
    """Distances of all pairs [p q], in float64."""
    found = cdist(a.astype(np.float64), b.astype(np.float64), SCIPY[metric])
    return found - 1 if metric == "cosine" else found


def sort_all(case: Arrays, metric: Metric) -> list[int]:
    """Count by sorting the identities of each query by distance, the own one last of its equals."""
    (queries, truth, gallery, owners), better = case, []
    for distances, own in zip(oracle(queries, gallery, metric), truth, strict=True):
        nearest = {who: distances[owners == who].min() for who in set(owners.tolist())}
        better.append(sorted(nearest, key=lambda who: (nearest[who], who == own)).index(own))
    return better


# Whole numbers: many ties, and sums without rounding whatever their order.
@st.composite
def cases(draw: st.DrawFn) -> Arrays:
    people = draw(st.integers(1, 6))
    extra = draw(st.lists(st.integers(0, people - 1), max_size=8))
    owners = np.array(draw(st.permutations([*range(people), *extra])))
    truth = np.array(draw(st.lists(st.integers(0, people - 1), min_size=1, max_size=5)))
    d = draw(st.integers(1, 4))

    def rows(n: int) -> np.ndarray:
        flat = draw(st.lists(st.integers(-2, 2), min_size=n * d, max_size=n * d))
        return np.array(flat, np.float32).reshape(n, d)

    return rows(len(truth)), truth, rows(len(owners)), owners


@given(cases(), st.sampled_from(["l1", "l2"]))
def test_counts_are_those_of_sorting(case: Arrays, metric: Metric) -> None:
    placed = place_queries(*case, metric=metric)
    assert placed.better.tolist() == sort_all(case, metric)
    assert placed.others == len(set(case[3].tolist())) - 1


def random_case(d: int = 20) -> Arrays:
    """Forty queries in a gallery of 150 photos of 60 people."""
    rng = np.random.default_rng(0)
    owners = rng.permutation(np.r_[np.arange(60), rng.integers(0, 60, 90)])
    queries, gallery = (rng.standard_normal((n, d), np.float32) for n in (40, 150))
    return queries, rng.integers(0, 60, 40), gallery, owners


def duplicates(d: int) -> Arrays:
    """Photos that several people share, and queries near them: ties but for rounding."""
    rng = np.random.default_rng(1)
    faces = rng.standard_normal((40, d), np.float32)
    owners = rng.permutation(np.repeat(np.arange(50), 4))
    queries = faces[rng.integers(0, 40, 30)] * np.float32(1.1)
    return queries, rng.integers(0, 50, 30), faces[rng.integers(0, 40, 200)], owners


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("make", [random_case, duplicates])
def test_neither_order_nor_batches_nor_the_kind_of_gallery_matter(
    metric: Metric, make: Callable[[int], Arrays], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, truth, gallery, owners = make(300)
    gallery = gallery.astype(np.float16)
    np.save(tmp_path / "gallery.npy", gallery)
    whole = sort_all((queries, truth, gallery, owners), metric)
    order = np.random.default_rng(2).permutation(len(gallery))
    again = [place_queries(queries, truth, gallery[order], owners[order], metric=metric)]
    for photos in (gallery.astype(float), np.load(tmp_path / "gallery.npy", mmap_mode="r")):
        again.append(place_queries(queries, truth, photos, owners, metric=metric))
    for rows, photos, pairs in [(1, 1, 1), (7, 13, 5), (1000, 64, 3)]:
        at_once = {"QUERIES": rows, "PHOTOS": photos, "PAIRS": pairs, "CELLS": 100 * rows}
        for name, value in at_once.items():
            monkeypatch.setattr(retrieval, name, value)
        again.append(place_queries(queries, truth, gallery, owners, metric=metric))
    assert all(placed.better.tolist() == whole for placed in again)
    assert place_queries(queries[:0], truth[:0], gallery, owners).better.shape == (0,)
    same = place_queries(0 * queries + 1, truth, 0 * gallery + 1, owners, metric=metric)
    assert (same.better == same.others).all()  # who says the same of all finds nobody


def test_candidates_are_averaged_over_all_galleries() -> None:
    for others, drawn, k in ((5, 2, 1), (6, 3, 2), (7, 7, 3), (6, 1, 1)):
        found = retrieval.recall_of_candidates(
            Placement(np.arange(others + 1), others), k, drawn + 1
        )
        galleries = list(itertools.combinations(range(others), drawn))
        for better, value in enumerate(found):
            hits = sum(sum(who < better for who in gallery) < k for gallery in galleries)
            assert value == pytest.approx(hits / len(galleries), abs=1e-12)
    better = np.array([0, 10, 5000, 99_000])
    placed = Placement(better, 99_999)
    wanted = [math.comb(99_999 - b, 99) / math.comb(99_999, 99) for b in better.tolist()]
    found = retrieval.recall_of_candidates(placed, 1)
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-30)
    np.testing.assert_allclose(matching(placed, 2), 1 - better / 99_999, rtol=1e-8)
    placed = place_queries(*random_case())
    np.testing.assert_array_equal(retrieval.recall_of_candidates(placed, 5, 100), recall(placed, 5))
    assert np.isnan(matching(placed, 61)).all() and np.isfinite(matching(placed, 60)).all()


def test_what_does_not_fit_and_is_no_embedding_is_refused() -> None:
    for metric, value, side in itertools.product(METRICS, (np.nan, np.inf, 1e16), (0, 2)):
        broken = random_case()
        broken[side][7, 3] = value
        with pytest.raises(UsageError, match="not finite"):
            place_queries(*broken, metric=metric)
    case = queries, truth, gallery, owners = random_case()
    for side, wrong in ((0, queries[1:]), (2, gallery[1:]), (0, queries[:, 1:]), (0, queries[0])):
        with pytest.raises(UsageError, match="do not fit"):
            place_queries(*case[:side], wrong, *case[side + 1 :])
    with pytest.raises(UsageError, match="no metric 'l3'"):
        place_queries(*case, metric="l3")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="identity 60 is asked for"):
        place_queries(queries, np.where(truth == truth[0], 60, truth), gallery, owners)
    with pytest.raises(UsageError, match="2 or more"):
        matching(Placement(np.array([1]), 9), 1)


def random_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d), np.float32)


@pytest.mark.parametrize("metric", METRICS)
def test_exact_distances_are_those_of_scipy_and_of_each_pair_alone(metric: Metric) -> None:
    a, b = random_rows(33, 1000), random_rows(33, 1000, 1)
    found = retrieval.exact_distances(a, b, metric)
    np.testing.assert_allclose(found, oracle(a, b, metric).diagonal(), rtol=1e-12, atol=1e-14)
    alone = [retrieval.exact_distances(a[k : k + 1], b[k : k + 1], metric)[0] for k in range(33)]
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
    found, slack = retrieval.quick_distances(a, b, metric, limits)
    assert found.shape == (p, q) and slack.shape == (q,)
    sure = np.abs(found - limits) > slack
    assert (np.sign(found - limits)[sure] == np.sign(wanted - limits)[sure]).all()
    assert (np.abs(found - limits) <= slack)[0].all()  # the limits are distances of row 0
    if metric == "cosine":
        assert np.abs(found - wanted).max() <= slack.min()


def test_the_cosine_of_zeros_is_0_and_of_small_embeddings_that_of_large_ones() -> None:
    a, b = np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)
    for p, q in ((a, b), (b, a)):
        assert retrieval.exact_distances(p, q, "cosine") == [0]
        assert retrieval.quick_distances(p, q, "cosine", np.zeros(1))[0] == [[0]]
    a, b = random_rows(3, 50), random_rows(2, 50, 1)
    limits, scale = np.zeros(2), np.float32(2.0**-80)  # its square is 0 in float32
    found = retrieval.quick_distances(a * scale, b, "cosine", limits)[0]
    np.testing.assert_array_equal(found, retrieval.quick_distances(a, b, "cosine", limits)[0])


PEOPLE, D, EACH = 150, 16, 2
FACES = random_rows(PEOPLE, D)
PERFECT = case_of(FACES, np.repeat(2 * FACES, EACH, axis=0))


def guessing(seed: int) -> Case:
    return case_of(FACES, random_rows(PEOPLE * EACH, D, seed))


def rows_of(made: tuple[Section, object], title: str = "") -> dict[tuple[object, ...], tuple]:
    """The rows of the one table whose title starts so, by their first two cells."""
    tables = [part for part in made[0].parts if isinstance(part, Table)]
    (found,) = [table for table in tables if table.title.startswith(title)]
    return {row[:2]: row for row in found.rows}


def test_a_perfect_encoder_is_at_no_angle_and_finds_everyone() -> None:
    made = retrieval.similarity_section(PERFECT)
    angles = dict([*rows_of(made)])
    assert angles[WHOLE] == pytest.approx(0, abs=1e-3)
    assert angles["another person's voice"] == pytest.approx(90, abs=3)
    assert set(made[1][retrieval.ANGLE]) == set(PERFECT.people.names)
    made = retrieval.retrieval_section(PERFECT)
    for title in ("Recall among all", "Recall among 100 candidates"):
        assert rows_of(made, title)[f"voice, {WHOLE}", "cosine"][2:14:3] == (1, 1, 1, 1)
    assert set(made[1]["R@1, %"].values()) == {100.0}
    rows = rows_of(retrieval.matching_section(PERFECT))
    assert {row[2] for row in rows.values()} == {1}
    assert {others for others, _ in rows} == {"anyone", "of the same sex"}


def test_guessing_finds_and_matches_as_many_as_chance_says() -> None:
    held = []
    for seed in range(8):
        made = retrieval.retrieval_section(guessing(10 + seed))
        for title, n in (("Recall among all", PEOPLE), ("Recall among 100 candidates", 100)):
            rows = rows_of(made, title)
            chance, row = rows["chance", ""], rows[f"voice, {WHOLE}", "cosine"]
            wanted = (1 / n, 2 / n, 5 / n, 10 / n, n)
            assert (*chance[2:14:3], chance[-1]) == pytest.approx(wanted)
            held.append(row[12] <= chance[11] <= row[13])  # R@10, in its interval of 95 %
    assert np.mean(held) > 0.75
    (curves,) = [part for part in made[0].parts if isinstance(part, Curves)]
    assert curves.lines["chance"][-1][0] == 100
    for row in rows_of(retrieval.matching_section(guessing(1))).values():
        assert row[3] <= row[5] <= row[4]
    angles = rows_of(retrieval.similarity_section(guessing(1)))
    assert [row[3] < 90 < row[4] for row in angles.values() if row[0] == WHOLE] == [True]


def test_a_face_of_the_same_sex_is_any_of_those_whose_sex_is_known() -> None:
    """By sorting each sex alone: 9 people, of whom 4 are men, 3 women, and 2 not known."""
    faces, voices = random_rows(9, 4), random_rows(18, 4, 1)
    sexes = {f"{k:02}": "MFMFMFM"[k] for k in range(7)}
    case = dataclasses.replace(case_of(faces, voices), labels={"Sex": sexes})
    right: list[float] = []
    for mine in (np.arange(0, 7, 2), np.arange(1, 7, 2)):
        truth = np.repeat(mine, EACH)
        heard = voices.reshape(9, EACH, 4)[mine].reshape(-1, 4)
        better = np.array(sort_all((heard, truth, faces[mine], mine), "cosine"))
        right += (1 - better / (len(mine) - 1)).tolist()
    rows = rows_of(retrieval.matching_section(case))
    assert [ways for others, ways in rows if others != "anyone"] == [2, 3]
    assert rows["of the same sex", 2][2::4] == pytest.approx((np.mean(right), 14))
