"""Splitting a tree: every file in one split, the same again; and dealing people out, exactly."""

import hashlib
import json
import math
import os
import shutil
import unicodedata
from fractions import Fraction
from unittest.mock import DEFAULT, Mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from trees import contents, grow

from s2f import files
from s2f.errors import DatasetError, OutputError, UsageError
from s2f.files import Link
from s2f.names import composed
from s2f.split import RECORD, apportion, deal_out, labels_of, shares, split_tree


@pytest.fixture
def tree(tmp_path):
    """20 people, 5 of each label and 5 without, and a file of nobody."""
    people = [f"p{k:02}" for k in range(20)]
    grow(tmp_path / "tree", [f"{name}/{path}" for name in people for path in ("1.jpg", "x/2.npy")])
    rows = [f"{name},{'FMF'[k % 3]}" for k, name in enumerate(people[:15])]
    (tmp_path / "tree/people.csv").write_text("\n".join(["person,sex", *rows, "eve,F"]))
    return tmp_path / "tree"


@pytest.mark.parametrize("link", Link)
def test_every_file_is_in_exactly_one_split_and_a_second_run_changes_nothing(link, tree, tmp_path):
    def progress(done, total, what):
        with pytest.raises(UsageError, match="another s2f is at work there"):
            split_tree(tree, out, link=link)

    out = tmp_path / "out"
    report = split_tree(tree, out, link=link, progress=progress)
    sizes = {name: len(people) for name, people in report.splits.items()}
    assert sizes == {"train": 16, "val": 2, "test": 2}
    assert {name: tuple(files.folders(out / name)) for name in files.folders(out)} == report.splits
    below = {path.split("/", 1)[1]: data for path, data in contents(out).items() if "/" in path}
    assert below == {path: data for path, data in contents(tree).items() if "/" in path}
    assert (report.made, report.loose) == (40, ("people.csv",))
    before = {path: os.lstat(path).st_mtime_ns for path in out.glob("*/**/*")}
    again = split_tree(tree, out, link=link)
    assert {path: os.lstat(path).st_mtime_ns for path in out.glob("*/**/*")} == before
    assert (again.made, again.kept, again.splits) == (0, report.made, report.splits)


def test_strata_and_strangers_are_reported(tree, tmp_path):
    (tree / "nobody").mkdir()
    report = split_tree(tree, tmp_path / "out", by=tree / "people.csv", train=0.6)
    sizes = {stratum.labels["sex"]: sum(stratum.counts.values()) for stratum in report.strata}
    assert sizes == {"F": 10, "M": 5, None: 5}
    assert {s.labels["sex"]: s.counts["train"] for s in report.strata} == {"F": 6, "M": 3, None: 3}
    assert report.unlabelled == tuple(f"p{k}" for k in range(15, 20))
    assert (report.strangers, report.empty) == (("eve",), ("nobody",))
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert (record["seed"], record["labels"]) == (0, ["sex"])
    assert record["shares"] == {"train": 0.6, "val": 0.2, "test": 0.2}
    assert record["members"] == {name: list(people) for name, people in report.splits.items()}


def test_an_output_of_other_arguments_is_refused(tree, tmp_path):
    split_tree(tree, tmp_path / "out")
    before = contents(tmp_path / "out")
    others = [{"seed": 1}, {"train": 0.5}, {"link": Link.COPY}, {"val": 0.2}]
    for other in [*others, {"by": tree / "people.csv"}]:
        with pytest.raises(UsageError, match="other people or with other options"):
            split_tree(tree, tmp_path / "out", **other)
        assert contents(tmp_path / "out") == before
    (tmp_path / "out" / RECORD).unlink()  # as if it had been killed
    with pytest.raises(UsageError, match="not in this split"):
        split_tree(tree, tmp_path / "out", seed=1)
    (tmp_path / "out" / RECORD).write_text("{")
    with pytest.raises(OutputError, match=RECORD):
        split_tree(tree, tmp_path / "out")


@pytest.mark.parametrize("link", Link)
def test_a_killed_run_is_finished_by_the_same_run(link, tree, tmp_path, monkeypatch):
    split_tree(tree, tmp_path / "whole", link=link)
    for left in (0, 1, 17, 39):
        dying = Mock(wraps=files.place_file, side_effect=[DEFAULT] * left + [KeyboardInterrupt])
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(files, "place_file", dying)
            split_tree(tree, tmp_path / "killed", link=link)
        assert not (tmp_path / "killed" / RECORD).exists()
        split_tree(tree, tmp_path / "killed", link=link)
        assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
        shutil.rmtree(tmp_path / "killed")


@pytest.mark.parametrize(
    ("paths", "error", "why"),
    [
        (["loose.jpg"], DatasetError, "no identity"),
        (["train/a/1", "val/b/1"], UsageError, "split already"),
        (
            ["id1/1", "wav/id2/1", "dev/1"],
            DatasetError,
            "tree: 'dev', 'wav' are parts of a data set",
        ),
        *((two, DatasetError, "two spellings") for two in (["é/1", "e\u0301/1"], ["Al/1", "al/1"])),
    ],
)
def test_a_tree_that_cannot_be_split_is_refused(paths, error, why, tmp_path):
    grow(tmp_path / "tree", paths)
    with pytest.raises(error, match=why):
        split_tree(tmp_path / "tree", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shares_are_exact_and_refused_if_they_cannot_be():
    cases = {(0.8, None): "4/5 1/10 1/10", (0.7, 0.1): "7/10 1/10 1/5"}
    cases |= {(1, None): "1 0 0", (0.9, 0.1): "9/10 1/10 0"}
    for pair, wanted in cases.items():
        assert list(shares(*pair).values()) == [Fraction(share) for share in wanted.split()]
    for pair in ((1.1, None), (-0.1, None), (0.9, 0.2), (0.5, math.nan)):
        with pytest.raises(UsageError, match="shares"):
            shares(*pair)


SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=25)
PARTS = st.tuples(*3 * [st.integers(0, 20)]).filter(any)


@given(SIZES, PARTS)
@example([2, 3], (5, 3, 4))  # one stratum must give way to another
def test_strata_are_within_one_of_their_share_and_splits_of_the_largest_remainder(sizes, parts):
    shares, total = [Fraction(part, sum(parts)) for part in parts], sum(sizes)
    counts = apportion(sizes, shares)
    for size, row in zip(sizes, counts, strict=True):
        assert sum(row) == size
        for count, share in zip(row, shares, strict=True):
            assert math.floor(size * share) <= count <= math.ceil(size * share)
    sums = [sum(column) for column in zip(*counts, strict=True)]
    rests = [total * share - count for share, count in zip(shares, sums, strict=True)]
    assert sum(sums) == total and all(abs(rest) < 1 for rest in rests)
    raised = [rest + 1 for rest in rests if rest < 0]  # remainders of those rounded up
    assert min(raised, default=1) >= max([rest for rest in rests if rest >= 0], default=0)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4).map(composed)
PEOPLE = st.dictionaries(NAMES, st.sampled_from([("F",), ("M",), (None,)]), min_size=1, max_size=60)
SHARES = {"train": Fraction(4, 5), "val": Fraction(1, 10), "test": Fraction(1, 10)}


@given(PEOPLE, st.integers(0, 5), st.randoms(use_true_random=False))
def test_everybody_is_in_exactly_one_split_whatever_the_order_of_a_listing(values, seed, chance):
    splits, counts = deal_out(values, SHARES, seed)
    assert sorted(name for people in splits.values() for name in people) == sorted(values)
    for labels, row in counts.items():
        members = {name for name, own in values.items() if own == labels}
        assert row == {name: len(members & set(people)) for name, people in splits.items()}
    items = list(values.items())
    chance.shuffle(items)
    shuffled = {unicodedata.normalize("NFD", name): labels for name, labels in items}
    for split, people in deal_out(shuffled, SHARES, seed)[0].items():
        assert sorted(map(composed, people)) == sorted(splits[split])


def test_the_seed_decides_machines_agree_and_no_label_is_preferred():
    """Sorted by the SHA-256 of `[seed, "name"]`, the first people train and the last test."""
    values = {f"p{k:02}": () for k in range(40)}
    drawn = [deal_out(values, SHARES, seed)[0] for seed in range(3)]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]
    order = sorted(values, key=lambda name: hashlib.sha256(f'[0, "{name}"]'.encode()).digest())
    assert drawn[0]["test"] == tuple(sorted(order[36:])) == ("p02", "p11", "p24", "p34")
    values = {f"p{k}": (f"{k:03}",) for k in range(200)}  # one person a stratum
    drawn = [deal_out(values, SHARES, seed)[0]["test"] for seed in range(20)]
    tested = [int(values[name][0]) for names in drawn for name in names]
    error = 57.7 / 20  # of the mean of 400 uniform draws from 0..199
    assert len(tested) == 400 and abs(sum(tested) / len(tested) - 99.5) < 4 * error


FOLDERS = ("ann", "bob", "Zydrunas_S", "dan")


def test_labels_are_found_in_any_spelling_and_what_is_not_clear_stays_unknown(tmp_path):
    path = tmp_path / "l.csv"
    path.write_text("sex\tspeaker\nF\tann\nM\tbob\nM\tŽydrūnas S\nF\teve\n")
    found = labels_of(path, FOLDERS)
    assert (found.columns, found.strangers) == (("sex",), ("eve",))
    assert [found.of(name) for name in FOLDERS] == [("F",), ("M",), ("M",), (None,)]
    path.write_text("id,speaker_age,sex\nann,29,F\nbob,30.5,\ndan,,M\n")  # ages become decades
    found = labels_of(path, FOLDERS)
    wanted = [("20-29", "F"), ("30-39", None), (None, None), (None, "M")]
    assert [found.of(name) for name in FOLDERS] == wanted
    assert labels_of(path, FOLDERS, ["sex"]).columns == ("sex",)
    path.write_text("id,sex\nJosè,F\nJosé,M\nJosé,M\n")  # a row that may mean two folders
    found = labels_of(path, ["José", "Jose"])
    assert (found.of("José"), found.of("Jose"), found.strangers) == (("M",), (None,), ("Josè",))


@pytest.mark.parametrize(
    ("text", "columns", "error", "why"),
    [
        ("id,sex\nx,F\n", None, DatasetError, "no column names a folder"),
        ("id,sex\nann,F\nann,M\n", None, DatasetError, "line 3.*'ann'"),
        ("id,sex\nann,F\n", ["age"], UsageError, "'age'"),
        ("id,word\n" + "".join(f"p{k},w{k}\n" for k in range(20)), None, DatasetError, "'word'"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(text, columns, error, why, tmp_path):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(error, match=why):
        labels_of(tmp_path / "l.csv", [*FOLDERS, *(f"p{k}" for k in range(20))], columns)
