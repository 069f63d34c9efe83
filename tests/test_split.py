"""Splitting a tree: every file in one split, the same again, and never a mixture of two splits."""

import json
import os
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
from trees import contents, grow

from s2f import files
from s2f.errors import DatasetError, OutputError, S2FError, UsageError
from s2f.files import Link
from s2f.split import RECORD, shares, split_tree

DATA = Path(__file__).parents[2] / "shared/data"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """20 people, 5 of each label and 5 without, and a file of nobody."""
    people = [f"p{k:02}" for k in range(20)]
    grow(tmp_path / "tree", [f"{name}/{path}" for name in people for path in ("1.jpg", "x/2.npy")])
    rows = [f"{name},{'FMF'[k % 3]}" for k, name in enumerate(people[:15])]
    (tmp_path / "tree/people.csv").write_text("\n".join(["person,sex", *rows, "eve,F"]))
    return tmp_path / "tree"


def places(out: Path) -> dict[str, set[str]]:
    return {name: set(files.folders(out / name)) for name in files.folders(out)}


def test_two_runs_at_once_into_one_folder_are_refused(tree: Path, tmp_path: Path) -> None:
    def progress(done: int, total: int, what: str) -> None:
        with pytest.raises(UsageError, match="another s2f is at work there"):
            split_tree(tree, tmp_path / "out", link=Link.COPY)

    assert split_tree(tree, tmp_path / "out", link=Link.COPY, progress=progress).made == 40


@pytest.mark.parametrize("link", Link)
def test_every_file_is_in_exactly_one_split(link: Link, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = split_tree(tree, out, link=link)
    assert {name: len(people) for name, people in report.splits.items()} == {
        "train": 16,
        "val": 2,
        "test": 2,
    }
    assert places(out) == {name: set(people) for name, people in report.splits.items()}
    below = {path.split("/", 1)[1]: data for path, data in contents(out).items() if "/" in path}
    assert below == {path: data for path, data in contents(tree).items() if "/" in path}
    assert (report.made, report.loose) == (40, ("people.csv",))


def test_a_second_run_changes_nothing(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = split_tree(tree, out, by=tree / "people.csv")
    before = {path: os.lstat(path) for path in out.rglob("*")}
    again = split_tree(tree, out, by=tree / "people.csv")
    assert {path: os.lstat(path) for path in out.rglob("*")} == before
    assert (again.made, again.kept, again.splits) == (0, first.made, first.splits)


def test_strata_and_strangers_are_reported(tree: Path, tmp_path: Path) -> None:
    report = split_tree(tree, tmp_path / "out", by=tree / "people.csv", train=0.6)
    sizes = {stratum.labels["sex"]: sum(stratum.counts.values()) for stratum in report.strata}
    assert sizes == {"F": 10, "M": 5, None: 5}
    assert {s.labels["sex"]: s.counts["train"] for s in report.strata} == {"F": 6, "M": 3, None: 3}
    assert report.unlabelled == tuple(f"p{k}" for k in range(15, 20))
    assert report.strangers == ("eve",)


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"train": 0.5}, {"link": Link.COPY}, {"val": 0.2}, {"by": "people.csv"}]
)
def test_an_output_of_other_arguments_is_refused(
    other: dict[str, object], tree: Path, tmp_path: Path
) -> None:
    split_tree(tree, tmp_path / "out")
    before = contents(tmp_path / "out")
    if "by" in other:
        other = {"by": tree / "people.csv"}
    with pytest.raises(UsageError, match="out"):
        split_tree(tree, tmp_path / "out", **other)  # type: ignore[arg-type]
    assert contents(tmp_path / "out") == before


def test_a_killed_run_of_another_split_is_refused_too(tree: Path, tmp_path: Path) -> None:
    split_tree(tree, tmp_path / "out")
    (tmp_path / "out" / RECORD).unlink()
    with pytest.raises(UsageError, match="not in this split"):
        split_tree(tree, tmp_path / "out", seed=1)


@pytest.mark.parametrize("link", Link)
def test_a_killed_run_is_finished_by_the_same_run(
    link: Link, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split_tree(tree, tmp_path / "whole", link=link)

    class KillError(BaseException):
        pass

    real = files.place_file
    for left in (0, 1, 17, 39):
        placed = 0

        def dying(source: str, target: str, link: Link, left: int = left) -> bool:
            nonlocal placed
            if placed == left:
                raise KillError
            placed += 1
            return real(source, target, link)

        with monkeypatch.context() as patch, pytest.raises(KillError):
            patch.setattr(files, "place_file", dying)
            split_tree(tree, tmp_path / "killed", link=link)
        assert not (tmp_path / "killed" / RECORD).exists()
        split_tree(tree, tmp_path / "killed", link=link)
        assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
        shutil.rmtree(tmp_path / "killed")


def test_the_record_says_who_is_where(tree: Path, tmp_path: Path) -> None:
    report = split_tree(tree, tmp_path / "out", seed=7)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["seed"] == 7
    assert record["shares"] == {"train": 0.8, "val": 0.1, "test": 0.1}
    assert record["members"] == {name: list(people) for name, people in report.splits.items()}


def test_a_record_that_is_none_is_refused(tree: Path, tmp_path: Path) -> None:
    grow(tmp_path, [f"out/{RECORD}"], b"{")
    with pytest.raises(OutputError, match=RECORD):
        split_tree(tree, tmp_path / "out")


def test_people_without_files_are_reported_and_in_no_split(tree: Path, tmp_path: Path) -> None:
    (tree / "nobody").mkdir()
    report = split_tree(tree, tmp_path / "out")
    assert report.empty == ("nobody",)
    assert "nobody" not in {name for people in report.splits.values() for name in people}


@pytest.mark.parametrize(
    ("paths", "error", "why"),
    [
        (["loose.jpg"], DatasetError, "no identity"),
        (["train/a/1", "val/b/1"], UsageError, "split already"),
        (["é/1", "e\u0301/1"], DatasetError, "two spellings"),
        (["Ann/1", "ann/1"], DatasetError, "two spellings"),
    ],
)
def test_a_tree_that_cannot_be_split_is_refused(
    paths: list[str], error: type[S2FError], why: str, tmp_path: Path
) -> None:
    grow(tmp_path / "tree", paths)
    with pytest.raises(error, match=why):
        split_tree(tmp_path / "tree", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_in_the_tree_is_refused(tree: Path) -> None:
    with pytest.raises(UsageError, match="overlaps"):
        split_tree(tree, tree / "out")


@pytest.mark.parametrize(
    ("train", "val", "wanted"),
    [
        (0.8, None, ("4/5", "1/10", "1/10")),
        (0.7, 0.1, ("7/10", "1/10", "1/5")),
        (1, None, ("1", "0", "0")),
        (0.9, 0.1, ("9/10", "1/10", "0")),
    ],
)
def test_shares_are_exact(train: float, val: float | None, wanted: tuple[str, ...]) -> None:
    assert list(shares(train, val).values()) == [Fraction(share) for share in wanted]


@pytest.mark.parametrize("given", [(1.1, None), (-0.1, None), (0.9, 0.2), (0.5, float("nan"))])
def test_shares_that_cannot_be_are_refused(given: tuple[float, float | None]) -> None:
    with pytest.raises(UsageError, match="shares"):
        shares(*given)


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="the real faces are not beside the repository")
def test_the_84_real_people_are_stratified_by_sex_and_decade(tmp_path: Path) -> None:
    report = split_tree(
        DATA / "faces", tmp_path / "out", by=DATA / "faces/people.csv", link=Link.SYMLINK
    )
    assert {name: len(people) for name, people in report.splits.items()} == {
        "train": 67,
        "val": 9,
        "test": 8,
    }
    assert (report.unlabelled, report.strangers, report.failed) == ((), (), ())
    for stratum in report.strata:
        size = sum(stratum.counts.values())
        for name, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
            assert abs(stratum.counts[name] - size * share) < 1
