"""Dealing people out: exact, within one in each stratum, and by nothing but seed and names."""

import hashlib
import math
import random
import unicodedata
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s2f import split
from s2f.errors import DatasetError, UsageError

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=25)
PARTS = st.tuples(*3 * [st.integers(0, 20)]).filter(any)


def as_shares(parts: tuple[int, ...]) -> list[Fraction]:
    return [Fraction(part, sum(parts)) for part in parts]


@given(SIZES, PARTS)
@example([2, 3], (5, 3, 4))  # one stratum must give way to another
def test_strata_are_whole_and_within_one_of_their_share(
    sizes: list[int], parts: tuple[int, ...]
) -> None:
    shares = as_shares(parts)
    counts = split.apportion(sizes, shares)
    for size, row in zip(sizes, counts, strict=True):
        assert sum(row) == size
        for count, share in zip(row, shares, strict=True):
            assert math.floor(size * share) <= count <= math.ceil(size * share)


@given(SIZES, PARTS)
def test_splits_have_the_size_that_largest_remainder_gives_the_whole(
    sizes: list[int], parts: tuple[int, ...]
) -> None:
    shares, total = as_shares(parts), sum(sizes)
    counts = [sum(column) for column in zip(*split.apportion(sizes, shares), strict=True)]
    assert sum(counts) == total
    rests = [total * share - count for share, count in zip(shares, counts, strict=True)]
    assert all(abs(rest) < 1 for rest in rests)
    raised = [rest + 1 for rest in rests if rest < 0]  # remainders of those rounded up
    lowered = [rest for rest in rests if rest >= 0]
    assert min(raised, default=1) >= max(lowered, default=0)


LABELS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4).map(
        lambda name: unicodedata.normalize("NFC", name)
    ),
    st.tuples(st.sampled_from(["F", "M", None])),
    min_size=1,
    max_size=60,
)
SHARES = {"train": Fraction(4, 5), "val": Fraction(1, 10), "test": Fraction(1, 10)}


@given(LABELS, st.integers(0, 5))
def test_everybody_is_in_exactly_one_split(values: dict[str, split.Values], seed: int) -> None:
    splits, counts = split.deal_out(values, SHARES, seed)
    assert sorted(name for people in splits.values() for name in people) == sorted(values)
    for labels, row in counts.items():
        members = {name for name, own in values.items() if own == labels}
        assert row == {split: len(members & set(people)) for split, people in splits.items()}


@given(LABELS, st.randoms(use_true_random=False))
def test_the_order_of_a_listing_does_not_matter(
    values: dict[str, split.Values], chance: random.Random
) -> None:
    items = list(values.items())
    chance.shuffle(items)
    shuffled = {unicodedata.normalize("NFD", name): labels for name, labels in items}
    composed = {
        split: sorted(unicodedata.normalize("NFC", name) for name in people)
        for split, people in split.deal_out(shuffled, SHARES, 3)[0].items()
    }
    drawn = split.deal_out(values, SHARES, 3)[0]
    assert composed == {split: sorted(people) for split, people in drawn.items()}


def test_the_seed_decides_and_machines_agree() -> None:
    """Sorted by the SHA-256 of `[seed, "name"]`, the first people train and the last test."""
    values: dict[str, split.Values] = {f"p{k:02}": () for k in range(40)}
    drawn = [split.deal_out(values, SHARES, seed)[0] for seed in range(3)]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]
    order = sorted(values, key=lambda name: hashlib.sha256(f'[0, "{name}"]'.encode()).digest())
    assert drawn[0]["test"] == tuple(sorted(order[36:])) == ("p02", "p11", "p24", "p34")


def test_no_stratum_is_preferred_by_its_label() -> None:
    """With one person a stratum, the labels' order must not decide who is tested on."""
    values: dict[str, split.Values] = {f"p{k}": (f"{k:03}",) for k in range(200)}
    tested = [
        int(values[name][0] or 0)
        for seed in range(20)
        for name in split.deal_out(values, SHARES, seed)[0]["test"]
    ]
    assert len(tested) == 400
    mean, error = sum(tested) / len(tested), 57.7 / 20  # of a uniform draw from 0..199
    assert abs(mean - 99.5) < 4 * error


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


PEOPLE = ("ann", "bob", "Zydrunas_S", "dan")


@pytest.mark.parametrize(
    "text",
    [
        "person,sex\nann,F\nbob,M\nŽydrūnas S,M\neve,F\n",
        "sex\tspeaker\nF\tann\nM\tbob\nM\tZ\u030cydru\u0304nas_S\nF\teve\n",
    ],
)
def test_labels_are_found_in_any_dialect_and_spelling(text: str, tmp_path: Path) -> None:
    found = split.labels_of(write(tmp_path / "l.csv", text), PEOPLE)
    assert found.columns == ("sex",)
    assert [found.of(name) for name in PEOPLE] == [("F",), ("M",), ("M",), (None,)]
    assert found.strangers == ("eve",)


def test_ages_become_decades_and_blanks_stay_unknown(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", "id,speaker_age,sex\nann,29,F\nbob,30.5,\ndan,,M\n")
    found = split.labels_of(path, PEOPLE)
    assert [found.of(name) for name in PEOPLE] == [
        ("20-29", "F"),
        ("30-39", None),
        (None, None),
        (None, "M"),
    ]
    assert split.labels_of(path, PEOPLE, ["sex"]).columns == ("sex",)


@pytest.mark.parametrize(
    ("text", "columns", "error", "why"),
    [
        ("id,sex\nx,F\n", None, DatasetError, "no column names a folder"),
        ("id,sex\nann,F\nann,M\n", None, DatasetError, "line 3.*'ann'"),
        ("id,sex\nann,F\n", ["age"], UsageError, "'age'"),
        ("id,hz\n" + "".join(f"p{k},{k / 7}\n" for k in range(20)), None, DatasetError, "'hz'"),
        ("id,word\n" + "".join(f"p{k},w{k}\n" for k in range(20)), None, DatasetError, "'word'"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(
    text: str, columns: list[str] | None, error: type[Exception], why: str, tmp_path: Path
) -> None:
    people = [*PEOPLE, *(f"p{k}" for k in range(20))]
    with pytest.raises(error, match=why):
        split.labels_of(write(tmp_path / "l.csv", text), people, columns)


def test_a_row_that_says_the_same_again_is_no_contradiction(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", "id,sex\nann,F\nann,F\n")
    assert split.labels_of(path, PEOPLE).of("ann") == ("F",)


def test_a_row_that_may_mean_two_folders_means_none(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", "id,sex\nJosè,F\nJosé,M\n")
    found = split.labels_of(path, ["José", "Jose"])
    assert (found.of("José"), found.of("Jose"), found.strangers) == (("M",), (None,), ("Josè",))
