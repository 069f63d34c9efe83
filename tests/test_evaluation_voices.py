"""Similarity, retrieval and matching of planted embeddings, whose figures are known."""

from pathlib import Path

import numpy as np
import pytest

from s2f.evaluation_data import WHOLE, Case, People
from s2f.report import Curves, Table
from s2f.retrieval import ANGLE, matched, retrieval, similarity

N, D, EACH = 150, 16, 2


def case(voices: np.ndarray, faces: np.ndarray) -> Case:
    """People with two recordings and one photo each; men and women take turns."""
    speakers = np.repeat(np.arange(N), EACH)
    people = People(
        tuple(f"{k:03}" for k in range(N)),
        tuple(Path(f"{k}.npy") for k in range(N * EACH)),
        speakers,
        (None,) * N,
        faces,
        np.arange(N),
        (),
    )
    sexes = {"sex": {name: "FM"[k % 2] for k, name in enumerate(people.names)}}
    return Case(people, sexes, {"3 s": voices, WHOLE: voices}, [], [], voices, faces)


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)


@pytest.fixture(scope="module")
def perfect(faces: np.ndarray) -> Case:
    return case(np.repeat(2 * faces, EACH, axis=0), faces)


@pytest.fixture(scope="module")
def guessing(faces: np.ndarray) -> Case:
    rng = np.random.default_rng(1)
    return case(rng.standard_normal((N * EACH, D)).astype(np.float32), faces)


def table(parts: tuple, title: str) -> Table:
    (found,) = [part for part in parts if isinstance(part, Table) and part.title.startswith(title)]
    return found


def test_a_perfect_encoder_is_at_no_angle(perfect: Case, guessing: Case) -> None:
    section, samples = similarity(perfect)
    (part,) = section.parts
    assert isinstance(part, Table)
    by_name = {row[0]: row for row in part.rows}
    assert by_name[WHOLE][1] == pytest.approx(0, abs=1e-3)
    assert by_name["another person's voice"][1] == pytest.approx(90, abs=3)
    assert set(samples[ANGLE]) == set(perfect.people.names)
    row = {row[0]: row for row in similarity(guessing)[0].parts[0].rows}[WHOLE]
    assert row[3] < 90 < row[4]  # within the interval


def test_a_perfect_encoder_finds_everyone(perfect: Case) -> None:
    section, samples = retrieval(perfect)
    for title in ("Recall among all", "Recall among 100 candidates"):
        rows = {row[:2]: row for row in table(section.parts, title).rows}
        assert rows[f"voice, {WHOLE}", "cosine"][2:14:3] == (1, 1, 1, 1)
    assert set(samples["R@1, %"].values()) == {100.0}


def test_guessing_finds_as_many_as_chance_says(faces: np.ndarray) -> None:
    held = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        section, _ = retrieval(case(rng.standard_normal((N * EACH, D)).astype(np.float32), faces))
        for title, n in (("Recall among all", N), ("Recall among 100 candidates", 100)):
            rows = {row[:2]: row for row in table(section.parts, title).rows}
            chance = rows["chance", ""]
            assert chance[2:14:3] == pytest.approx([1 / n, 2 / n, 5 / n, 10 / n])
            assert chance[-1] == n
            row = rows[f"voice, {WHOLE}", "cosine"]
            held.append(row[12] <= chance[11] <= row[13])  # R@10, in its interval of 95 %
    assert np.mean(held) > 0.75
    (curves,) = [part for part in section.parts if isinstance(part, Curves)]
    assert curves.lines["chance"][-1][0] == 100


def test_matching_is_right_if_perfect_and_at_chance_if_guessing(
    perfect: Case, guessing: Case
) -> None:
    for row in matched(perfect)[0].parts[0].rows:
        assert row[2] == 1
    for row in matched(guessing)[0].parts[0].rows:
        assert row[3] <= row[5] <= row[4]
    others = {row[0] for row in matched(perfect)[0].parts[0].rows}
    assert others == {"anyone", "of the same sex"}


def test_within_a_sex_knowing_the_sex_is_of_no_help(faces: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    sexed = faces.copy()
    sexed[:, 0] = np.where(np.arange(N) % 2, 30, -30)
    voices = rng.standard_normal((N * EACH, D)).astype(np.float32)
    voices[:, 0] = np.repeat(sexed[:, 0], EACH)
    rows = {row[:2]: row for row in matched(case(voices, sexed))[0].parts[0].rows}
    assert rows["anyone", 2][2] == pytest.approx(0.75, abs=0.03)  # half of the others are ruled out
    assert rows["of the same sex", 2][3] <= 0.5 <= rows["of the same sex", 2][4]
