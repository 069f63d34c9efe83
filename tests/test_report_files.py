"""Reports as files: JSON there and back, what is no report, and what would be lost."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import HOSTILE, full

from s2f.errors import DatasetError, OutputError, UsageError
from s2f.report import Curves, Picture, Report, Section, Table, from_json, to_json, write_report


def without_pictures(report: Report) -> Report:
    sections = tuple(
        dataclasses.replace(s, parts=tuple(p for p in s.parts if not isinstance(p, Picture)))
        for s in report.sections
    )
    return dataclasses.replace(report, sections=sections)


def of(*parts: Any) -> Report:
    return Report("r", {}, (Section("s", (), parts),))


@pytest.mark.parametrize("name", ["voice", HOSTILE])
def test_a_report_comes_back_without_its_pictures(name: str) -> None:
    report = full(name)
    text = to_json(report)
    back = from_json(text, "report.json")
    assert back.sections[0].parts[0].rows[1] == (None, None, 100, None)  # type: ignore[union-attr]
    assert repr(back) == repr(without_pictures(report)).replace("nan", "None")
    assert to_json(back) == text
    text.encode("ascii")


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(), st.text())
def test_numbers_and_texts_come_back_to_the_bit(x: float, n: int, text: str) -> None:
    report = of(
        Table("t", ("a", "b", "c", "d"), ((x, n, text, None),)),
        Curves("c", "", "", {text: [(x, n)]}),
    )
    assert from_json(to_json(report), "") == report


def test_what_is_not_finite_is_null_and_comes_back_as_none_or_nan() -> None:
    report = dataclasses.replace(
        of(Table("t", ("a", "b"), ((math.nan, math.inf),))), samples={"m": {"id": math.nan}}
    )
    assert "NaN" not in to_json(report) and "Infinity" not in to_json(report)
    back = from_json(to_json(report), "")
    assert back.sections[0].parts[0].rows == ((None, None),)  # type: ignore[union-attr]
    assert math.isnan(back.samples["m"]["id"])


def test_numbers_of_numpy_are_numbers() -> None:
    row = (np.int64(3), np.float32(0.5), np.float64(0.1))
    assert from_json(to_json(of(Table("t", ("a", "b", "c"), (row,)))), "") == of(
        Table("t", ("a", "b", "c"), ((3, 0.5, 0.1),))
    )


def broken(**changes: Any) -> str:
    return json.dumps(json.loads(to_json(full())) | changes)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[]", "list"),
        ("null", "NoneType"),
        ("{}", "'format' is missing"),
        ("[" * 100_000, ""),
        (broken(format=2), "its format is 2, and 1 was wanted"),
        (broken(title=3), "3 where a text"),
        (broken(facts={"a": 1}), "1 where a text"),
        (broken(facts=None), ""),
        (broken(samples={"a": {"b": "c"}}), "'c' where a number"),
        (broken(samples={"a": {"b": True}}), "True where a number"),
        (broken(lower="abc"), "'abc' where a list"),
        (broken(sections=[{"title": "s", "text": [], "parts": [{}]}]), "'title' is missing"),
        (
            broken(
                sections=[
                    {"title": "", "text": [], "parts": [{"kind": "x", "title": "", "note": ""}]}
                ]
            ),
            "'x' is no part",
        ),
        (to_json(of(Table("t", ("a",), ((1,),)))).replace('"a"', '"a", "b"'), "1 cells under 2"),
    ],
)
def test_what_is_no_report_is_refused_by_name(text: str, why: str) -> None:
    with pytest.raises(DatasetError, match=r"old/report\.json: is not a report") as caught:
        from_json(text, "old/report.json")
    assert why in caught.value.message and caught.value.hint


def test_three_files_are_written(tmp_path: Path) -> None:
    paths = write_report(full(HOSTILE), tmp_path / "new")
    assert [path.name for path in paths] == ["report.html", "report.md", "report.json"]
    assert sorted((tmp_path / "new").iterdir()) == sorted(paths)
    assert paths[0].read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert from_json(paths[2].read_text(encoding="utf-8"), "").title.startswith("Evaluation of")


def test_what_is_there_is_replaced_only_on_demand(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match=r"report\.json: exists already"):
        write_report(full(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    write_report(full(), tmp_path, overwrite=True)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_is_a_file_or_lies_in_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        write_report(full(), tmp_path / "file")
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(full(), tmp_path / "file/below")
