"""Which recordings go with which faces: every pairing against one written out person by person."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2f.errors import UsageError
from s2f.layout import FaceFiles, Speaker
from s2f.voice_data import left_out, pair, pair_speakers, some

counts = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=6)
mosts = st.none() | st.integers(1, 6)
Item = tuple[int, int, list[int]]  # recording, person, faces


def items_of(pairs) -> list[Item]:
    rows = zip(pairs.recordings, pairs.people, pairs.faces, pairs.choices, strict=True)
    return [(int(r), int(p), list(range(f, f + n))) for r, p, f, n in rows]


def written_out(people: list[tuple[int, int]], pairing: str, most: int | None) -> list[Item]:
    """What the pairings mean, in plain loops."""
    items: list[Item] = []
    recording = face = 0
    for person, (n_recordings, n_faces) in enumerate(people):
        heard = range(recording, recording + n_recordings)
        seen = list(range(face, face + n_faces))
        mine: list[Item] = []
        if pairing == "all-to-all" and seen:
            mine = [(one, person, seen) for one in heard]
        elif pairing == "all-to-one" and seen:
            mine = [(one, person, seen[:1]) for one in heard]
        elif pairing == "one-to-one":
            both = range(min(n_recordings, n_faces))
            mine = [(heard[k], person, [seen[k]]) for k in both]
        if most is not None and len(mine) > most:
            mine = [mine[j * len(mine) // most] for j in range(most)]
        items += mine
        recording, face = recording + n_recordings, face + n_faces
    return items


@pytest.mark.parametrize("pairing", ["all-to-all", "one-to-one", "all-to-one"])
@given(people=counts, most=mosts)
def test_a_pairing_is_what_it_means(
    pairing: str, people: list[tuple[int, int]], most: int | None
) -> None:
    found = pair(*zip(*people, strict=True), pairing, per_identity=most)  # type: ignore[arg-type]
    expected = written_out(people, pairing, most)
    assert items_of(found) == expected
    assert found.all_faces() == sorted({face for _, _, faces in expected for face in faces})


def test_what_is_over_of_either_is_counted() -> None:
    assert pair([3, 1], [1, 4], "one-to-one").notes == [
        "2 recordings and 3 faces left out: the pairing is one-to-one"
    ]
    assert pair([3, 1], [1, 4], "all-to-one").notes == [
        "3 faces left out: the pairing is all-to-one"
    ]
    assert pair([2, 1], [2, 1], "one-to-one").notes == []
    assert pair([3, 1], [1, 4], "all-to-all").notes == []
    assert pair([30, 5], [1, 1], "all-to-all", per_identity=10).notes == [
        "20 recordings left out: at most 10 of a person"
    ]


@pytest.mark.parametrize("most", [0, -1])
def test_nobody_can_have_less_than_one_recording(most: int) -> None:
    with pytest.raises(UsageError, match="recordings of a person leaves none"):
        pair([3], [1], per_identity=most)


def speaker(identity: str, audios: list[str], faces: list[str]) -> Speaker:
    return Speaker(
        identity,
        tuple(f"{identity}/audios/{name}.npy" for name in audios),
        tuple(FaceFiles(f"{identity}/images/{name}", f"{name}.jpg", None) for name in faces),
    )


def test_a_clip_goes_with_the_face_of_its_name_and_person() -> None:
    ann = speaker("ann", ["v/1", "v/2", "w_1"], ["v_2", "w/1", "x"])
    bob = speaker("bob", ["v/1", "x"], ["v/1"])
    eve = speaker("eve", ["y"], ["z"])
    pairs = pair_speakers([ann, bob, eve], "same-clip")
    assert items_of(pairs) == [(1, 0, [0]), (2, 0, [1]), (3, 1, [3])]
    assert pairs.notes == ["3 recordings and 2 faces left out: the pairing is same-clip"]
    assert items_of(pair_speakers([ann, bob, eve], "same-clip", 1)) == [(1, 0, [0]), (3, 1, [3])]


def test_of_two_faces_of_one_clip_the_first_is_taken() -> None:
    pairs = pair_speakers([speaker("ann", ["v/1"], ["v/1", "v_1"])], "same-clip")
    assert items_of(pairs) == [(0, 0, [0])]


def test_who_is_left_out_is_named_but_not_for_ever() -> None:
    assert left_out({"without a voice": [], "without a face": []}) == []
    why = {"without a voice": ["a", "b"], "without a face": ["c"]}
    assert left_out(why) == [
        "3 identities left out: 2 without a voice (a, b), 1 without a face (c)"
    ]
    names = [f"p{k:02}" for k in range(17)]
    assert some(names) == "p00, p01, p02, p03, p04 and 12 more"
    assert some(names[:5]) == "p00, p01, p02, p03, p04"


def test_a_million_recordings_are_paired_in_no_time() -> None:
    started = time.perf_counter()
    pairs = pair([200] * 5650, [1] * 5650, "all-to-one", per_identity=100)
    assert time.perf_counter() - started < 1
    assert len(pairs.recordings) == 565_000
    assert np.array_equal(pairs.recordings[:4], [0, 2, 4, 6])
