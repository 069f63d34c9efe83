"""Retrieval: planted answers, chance, sorting of all with all, and SciPy's distances."""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from evaluation_cases import case_of, with_photos
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from s2f import evaluation_data, retrieval
from s2f.errors import UsageError
from s2f.evaluation_data import WHOLE, Case
from s2f.metrics import compare_embeddings
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


@pytest.mark.parametrize("is_large", [True, False])  # L1 is compiled, or not
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shift", [0, 30])  # far from the origin, differences of squares cancel
@pytest.mark.parametrize("d", [1, 3, retrieval.WIDTH, 2 * retrieval.WIDTH + 7])
def test_a_quick_distance_is_off_by_less_than_it_says(
    metric: Metric, d: int, shift: int, is_large: bool
) -> None:
    p, q = 2 * retrieval.TASK + 3, retrieval.TILE + 6
    a, b = (rows + np.float32(shift) for rows in (random_rows(p, d), random_rows(q, d, 1)))
    wanted = oracle(a, b, metric)
    limits = wanted[0]
    found, slack = retrieval.quick_distances(a, b, metric, limits, is_large=is_large)
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


def table_of(made: tuple[Section, object], title: str) -> Table:
    """The one table whose title starts so."""
    tables = [part for part in made[0].parts if isinstance(part, Table)]
    (found,) = [table for table in tables if table.title.startswith(title)]
    return found


def rows_of(made: tuple[Section, object], title: str = "") -> dict[tuple[object, ...], tuple]:
    """The rows of the one table whose title starts so, by their first two cells."""
    return {row[:2]: row for row in table_of(made, title).rows}


ANGLES, MATCHED = "Ours: embeddings", "Ours: one voice"


def test_a_perfect_encoder_is_at_no_angle_and_finds_everyone() -> None:
    made = retrieval.our_section(PERFECT)
    angles = dict([*rows_of(made, ANGLES)])
    assert angles[f"voice, {WHOLE}"] == pytest.approx(0, abs=1e-3)
    assert angles[retrieval.OTHERS] == pytest.approx(90, abs=3)
    assert set(made[1][retrieval.ANGLE]) == set(PERFECT.people.names)
    for title in ("Ours: recall among all", "Ours: recall among 100 candidates"):
        assert rows_of(made, title)[f"voice, {WHOLE}", "cosine"][2:14:3] == (1, 1, 1, 1)
    assert set(made[1]["R@1, %"].values()) == {100.0}
    rows = rows_of(made, MATCHED)
    assert {row[2] for row in rows.values()} == {1}
    assert {others for others, _ in rows} == {"anyone", "of the same sex"}


@pytest.mark.parametrize("at_once", [3, 1024])
def test_others_are_all_others_and_not_one_neighbour(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a loop over all pairs of different people; the next one alone would be elsewhere."""
    monkeypatch.setattr(evaluation_data, "ROWS", at_once)
    targets, rows = random_rows(7, 5), random_rows(20, 5, 1)
    owners = np.random.default_rng(0).integers(0, 7, 20)
    found, deviations = retrieval.compare_with_others(targets, rows, owners)
    every: dict[str, list[np.ndarray]] = {"angle": [], "l1": [], "l2": []}
    for k, own in enumerate(owners):
        others = np.delete(targets, own, axis=0)
        pairs = compare_embeddings(others, np.broadcast_to(rows[k], others.shape))
        for name, values in pairs.items():
            assert found[name][k] == pytest.approx(values.mean(), rel=1e-5)
            every[name].append(values)
    assert deviations == pytest.approx({k: np.std(v) for k, v in every.items()}, rel=1e-4)
    far, near = np.eye(3, dtype=np.float32)[:2], np.array([[1, 0.1, 0]], np.float32)
    case = case_of(np.concatenate([far, near]), np.concatenate([far, near]))
    table = table_of(retrieval.our_section(case), ANGLES)
    (others,) = [row for row in table.rows if row[0] == retrieval.OTHERS]
    of_pairs = 2 * [90, math.degrees(math.atan(0.1)), math.degrees(math.atan(10))]
    assert others[1] == pytest.approx(60, abs=1e-3)
    assert others[4] == pytest.approx(np.std(of_pairs), abs=1e-3)  # not of each voice's mean


def test_guessing_finds_and_matches_as_many_as_chance_says() -> None:
    held = []
    for seed in range(8):
        made = retrieval.our_section(guessing(10 + seed))
        for title, n in (("Ours: recall among all", PEOPLE), ("Ours: recall among 100", 100)):
            rows = rows_of(made, title)
            chance, row = rows["chance", ""], rows[f"voice, {WHOLE}", "cosine"]
            wanted = (1 / n, 2 / n, 5 / n, 10 / n, n)
            assert (*chance[2:14:3], chance[-1]) == pytest.approx(wanted)
            held.append(row[12] <= chance[11] <= row[13])  # R@10, in its interval of 95 %
    assert np.mean(held) > 0.75
    (curves,) = [part for part in made[0].parts if isinstance(part, Curves)]
    assert curves.lines["chance"][-1][0] == 100
    made = retrieval.our_section(guessing(1))
    for row in rows_of(made, MATCHED).values():
        assert row[3] <= row[5] <= row[4]
    angles = rows_of(made, ANGLES)
    assert [row[2] < 90 < row[3] for row in angles.values() if row[0] == f"voice, {WHOLE}"] == [
        True
    ]


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
    for made, title in (
        (retrieval.our_section(case), MATCHED),
        (retrieval.wen_section(case), "Wen: one"),
    ):
        rows = [row for row in rows_of(made, title).values() if "published" not in row[0]]
        within = {row[1]: row for row in rows if row[0] != "anyone"}
        assert [*within] == [2, 3] and within[2][2::4] == pytest.approx((np.mean(right), 14))


AXES = np.eye(12, dtype=np.float32)
NEXT = np.roll(AXES, 1, axis=0)


def test_oh_has_one_frame_a_person_where_ours_has_the_nearest_and_the_mean() -> None:
    """Each of 12 people has a first photo and two more; voices are the first one, or the second."""
    case = with_photos(case_of(AXES, AXES), np.stack([AXES, -AXES, NEXT], axis=1))
    made, ours = retrieval.oh_section(case), retrieval.our_section(case)
    angles = rows_of(made, "Oh: embeddings")
    assert [row[1] for row in angles.values() if row[0] == WHOLE] == pytest.approx([0], abs=1e-3)
    wanted = np.degrees(np.arccos(0))  # of e_k and (e_k - e_k + e_j) / 3
    found = [row[1] for row in rows_of(ours, ANGLES).values() if row[0] == f"voice, {WHOLE}"]
    assert found == pytest.approx([wanted], abs=1e-3)
    for metric in METRICS:
        assert rows_of(made, "Oh: recall")[WHOLE, metric][2] == 1
    others = with_photos(case_of(AXES, NEXT), np.stack([AXES, NEXT, NEXT], axis=1))
    assert rows_of(retrieval.oh_section(others), "Oh: recall")[WHOLE, "cosine"][2] == 0
    shared = with_photos(case_of(AXES, 3 * NEXT), np.stack([AXES, 2.9 * NEXT], axis=1))
    rows = rows_of(retrieval.our_section(shared), "Ours: recall")
    assert rows[f"voice, {WHOLE}", "l2"][2] == 1  # the second photo is theirs alone by size
    assert retrieval.oh_section(case)[1]["Oh: R@10 of 12, %"] == dict.fromkeys(
        case.people.names, 100
    )


def test_oh_has_a_gallery_of_all_and_all_galleries_of_100() -> None:
    """By sorting, and by Pascal's numbers: of 130 people 100 are drawn, one's own among them."""
    faces, voices = random_rows(130, 6), random_rows(260, 6, 1)
    made = retrieval.oh_section(case_of(faces, voices))
    truth = np.repeat(np.arange(130), 2)
    for metric in METRICS:
        better = np.array(sort_all((voices, truth, faces, np.arange(130)), metric))
        row = rows_of(made, "Oh: recall among all 130")[WHOLE, metric]
        assert row[2:14:3] == tuple(np.mean(better < k) for k in (1, 2, 5, 10))
        assert row[-2:] == (260, 130)
        row = rows_of(made, "Oh: recall among 100 candidates")[WHOLE, metric]
        first = [math.comb(129 - b, 99) / math.comb(129, 99) for b in better.tolist()]
        assert row[2] == pytest.approx(np.mean(first)) and row[-1] == 100
    assert rows_of(made, "Oh: recall among 100 c")["chance", ""][2:14:3] == (0.01, 0.02, 0.05, 0.1)


@pytest.mark.parametrize(("n", "galleries", "size"), [(310, 3, 100), (250, 2, 100), (30, 1, 30)])
def test_sf2f_averages_galleries_of_means_of_all_photos(n: int, galleries: int, size: int) -> None:
    """By the loop of its evaluator, over people in order: voices are noise, faces are not."""
    photos = random_rows(3 * n, 8).reshape(n, 3, 8) * np.array([1, 20, 0.1], np.float32)[:, None]
    again = photos.mean(1) + random_rows(n, 8, 1)
    case = dataclasses.replace(case_of(photos[:, 0], random_rows(n, 8, 2)), voices_again=again)
    made = retrieval.sf2f_section(with_photos(case, photos), score=(7.0, 0.5))

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    mean, drawn = unit(photos).mean(1), unit(again)
    recalls = []
    for start in range(0, galleries * size, size):
        cosines = drawn[start : start + size] @ unit(mean[start : start + size]).T
        order = np.argsort(-cosines, axis=1)
        recalls.append([np.mean([i in order[i, :k] for i in range(size)]) for k in (1, 2, 5, 10)])
    title = f"SF2F: recall in galleries of {size}, mean of {galleries}"
    (row, chance) = table_of(made, title).rows
    assert row[1:13:3] == pytest.approx(tuple(np.mean(recalls, axis=0)))
    assert row[-2:] == (galleries * size, size) and chance[1] == 1 / size
    own, cosines = np.arange(n), drawn @ unit(mean).T
    better = (cosines > cosines[own, own][:, None]).sum(1)
    row, strangers, *_ = table_of(made, "SF2F: generated faces").rows
    assert row[1] == pytest.approx(cosines[own, own].mean(), abs=1e-6)
    assert row[4:6] == pytest.approx(
        (np.linalg.norm(drawn - mean, axis=1).mean(), np.abs(drawn - mean).sum(1).mean()), rel=1e-5
    )
    assert row[6:10:3] == pytest.approx(((better < 5).mean(), (better < 10).mean()))
    assert row[-3:] == (7.0, 0.5, n)
    assert strangers[1] == pytest.approx((cosines.sum() - cosines.trace()) / n / (n - 1), abs=1e-6)


def test_sf2f_counts_each_person_once() -> None:
    """One person of 11 recordings, none of which finds anybody, and four of one, which do."""
    faces = np.eye(5, dtype=np.float32)
    people = dataclasses.replace(
        case_of(faces, faces).people, speakers=np.array([0] * 11 + [1, 2, 3, 4])
    )
    again = np.concatenate([np.tile(faces[1], (11, 1)), faces[1:]])
    case = dataclasses.replace(
        case_of(faces, faces), people=people, voices_again=again, heard={WHOLE: again}
    )
    assert table_of(retrieval.sf2f_section(case), "SF2F: recall").rows[0][1] == 0.8


def test_wen_matches_the_generated_face_with_one_photo_each() -> None:
    """By all draws: 6 people of 3 photos, of whom voices say nothing, and faces something."""
    photos, voices = random_rows(18, 5).reshape(6, 3, 5), random_rows(12, 5, 1)
    again = np.repeat(photos.mean(1), 2, axis=0) + 0.7 * random_rows(12, 5, 2)
    case = dataclasses.replace(case_of(photos[:, 0], voices), voices_again=again)
    made = retrieval.wen_section(with_photos(case, photos))
    far = oracle(again, photos.reshape(-1, 5), "cosine").reshape(12, 6, 3)
    for sexes, name in ((1, "anyone"), (2, "of the same sex")):
        right = [
            np.mean([far[q, who, r] < far[q, q // 2, r] for r in range(3)]) * -1 + 1
            for q in range(12)
            for who in range(6)
            if who != q // 2 and who % sexes == q // 2 % sexes
        ]
        assert rows_of(made, "Wen: one")[name, 2][2] == pytest.approx(np.mean(right))
    rows = rows_of(made, "Wen: one")
    right = [
        np.mean([far[q, :, r].argmin() == q // 2 for r in range(3)]) for q in range(12)
    ]  # among all
    assert rows["anyone", 5][5] == 0.2 and rows["anyone", 6][2] == pytest.approx(np.mean(right))
    assert rows_of(retrieval.our_section(case), MATCHED)["anyone", 2][2] != rows["anyone", 2][2]


def test_wen_identifies_among_all_by_generated_faces() -> None:
    """Of 8 people the faces of 5 are their own, of one it is second, of two it is the last."""
    faces = np.eye(8, dtype=np.float32)
    again = faces.copy()
    again[5] = faces[0] + 0.5 * faces[5]
    again[6:] = faces[0] - faces[6:]
    case = dataclasses.replace(case_of(faces, random_rows(8, 8)), voices_again=again)
    row, chance, published, *_ = table_of(retrieval.wen_section(case), "Wen: closed").rows
    assert row[1:7:3] == (5 / 8, 6 / 8) and row[-2:] == (8, 8)
    assert chance[1:7:3] == (1 / 8, 5 / 8) and published[-1] == 924


@pytest.mark.parametrize("n", [150, 12])
@pytest.mark.parametrize("protocol", retrieval.PROTOCOLS)
def test_each_table_says_its_protocol_its_n_and_chance(protocol: str, n: int) -> None:
    """Chance is k of the N of its row, one of as many faces, or what all other people give."""
    faces = FACES[:n]
    section, _ = retrieval.PROTOCOLS[protocol](case_of(faces, np.repeat(faces, EACH, axis=0)))
    tables = [part for part in section.parts if isinstance(part, Table)]
    assert tables
    for table in tables:
        assert table.title.lower().startswith(f"{protocol}: ")
        rows = [dict(zip(table.heads, row, strict=True)) for row in table.rows]
        first = table.heads[0]
        # Beside published rows stands the chance in theirs, "among" so many.
        own = [row for row in rows if not re.search("published|among", row[first])]
        chance = [row for row in rows if "chance" in row[first]]
        depths = {
            head: re.findall(r"\d+", head) for head in table.heads if head[:2] in ("R@", "to")
        }
        if "chance %" in table.heads:
            assert all(row["chance %"] == 1 / row["faces"] for row in rows)
            assert {row["voices"] for row in own} == {EACH * n}
            continue
        assert all(row["N"] for row in rows)
        if not depths:
            (others,) = [row for row in own if row[first] == retrieval.OTHERS]
            assert others[retrieval.ANGLE] == pytest.approx(90, abs=5)
            assert {row["N"] for row in own} == {EACH * n}
            continue
        sizes = {row["N"] for row in own}
        assert len(sizes) == 1 and sizes <= {n, min(n, 100)} and str(*sizes) in table.title + str(n)
        assert sizes < {row["N"] for row in chance} | {0} and len(chance) > 0
        for row, (head, (k,)) in itertools.product(chance, depths.items()):
            assert row[head] == pytest.approx(min(1, int(k) / row["N"])), (table.title, head)
