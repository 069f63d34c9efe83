"""Reports: what they hold, numbers as people read them, pages, files, and two side by side."""

import base64
import dataclasses
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from s2f.errors import DatasetError, OutputError, UsageError
from s2f.report import (
    LEVEL,
    LIGHT,
    LONGEST,
    MISSING,
    POINTS,
    ROUNDS,
    Curves,
    Matrix,
    Picture,
    Report,
    Section,
    Table,
    compare_reports,
    draw_curves,
    from_json,
    numeric,
    read_report,
    show,
    to_html,
    to_json,
    to_markdown,
    write_report,
)

HOSTILE = "</style><script>alert('a\"b')</script>\n| &lt; \u202e \udcff http://x.y"


def png(width: int = 6, height: int = 4) -> bytes:
    """A red picture."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, format="PNG")
    return file.getvalue()


def full(name: str = "voice") -> Report:
    """A report with every kind of part, all of whose texts hold a name."""
    table = Table(
        f"Retrieval of {name}",
        ("metric", "R@1 %", "N", f"of {name}"),
        ((f"cosine {name}", 0.1092, 5000, 1.5), (None, float("nan"), 100, None)),
        note=f"Chance of {name}",
    )
    matrix = Matrix(f"Sex of {name}", (f"F {name}", "M", "none"), ((9, 1, 0), (3, 6, 0), (0, 0, 0)))
    picture = Picture(f"Best of {name}", png(), f"faces of {name}")
    line = [(k, k / 100) for k in range(1, 101)]
    curves = Curves(
        f"Recall of {name}", "K", f"recall of {name} %", {name: line, "chance": [(1, 0.01)]}
    )
    return Report(
        f"Evaluation of {name}",
        {"model": name, "data": "vox", f"key {name}": "value"},
        (
            Section(f"Tables of {name}", (f"What {name} is.",), (table, matrix)),
            Section("Pictures", (), (picture, curves)),
        ),
        samples={f"recall {name}": {f"id {name}": 0.25, "id2": 1.0}, "angle": {"id2": 45.75}},
        lower=frozenset({"angle"}),
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (45.754, "45.8"),
        (9.999, "10.0"),
        (99.96, "100"),
        (0.5, "0.500"),
        (-0.0321, "-0.0321"),
        (1234.5, "1,234"),  # every digit before the point, though they are four
        (0.0005, "0.000500"),
        (0.00005, "5.00e-05"),
        (0.0, "0"),
        (5000, "5,000"),
        (123456, "123,456"),
        (np.int64(7), "7"),
        (np.float32(0.25), "0.250"),
        ("as it is", "as it is"),
        (None, MISSING),
        (math.nan, MISSING),
        (math.inf, MISSING),
    ],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert show(value) == shown


@pytest.mark.parametrize(
    ("share", "shown"), [(0.1092, "10.9"), (1, "100"), (0, "0"), (0.9, "90.0")]
)
def test_a_share_is_shown_in_percent(share: float, shown: str) -> None:
    assert show(share, "R@1 %") == shown
    assert show(None, "R@1 %") == MISSING


@given(st.floats(-1e12, 1e12))
def test_what_is_shown_is_the_number_to_three_digits(value: float) -> None:
    assert float(show(value).replace(",", "")) == pytest.approx(value, rel=5.1e-3)


def test_rows_and_counts_that_do_not_fit_are_bugs() -> None:
    with pytest.raises(ValueError, match="2 cells under 1 heads"):
        Table("t", ("a",), ((1, 2),))
    with pytest.raises(ValueError, match=r"\[2 2\]"):
        Matrix("m", ("a", "b"), ((1, 2),))


def test_a_column_of_numbers_holds_nothing_else() -> None:
    table = Table("t", ("a", "b", "c", "d"), (("x", 1, None, 1), ("y", None, None, "z")))
    assert [numeric(table, k) for k in range(4)] == [False, True, False, False]


def test_the_table_of_a_matrix_has_the_shares_of_its_rows() -> None:
    table = Matrix("m", ("F", "M", "X"), ((9, 1, 0), (3, 6, 0), (0, 0, 0)), "note").table()
    assert table.heads == ("true", "F %", "M %", "X %", "N")
    assert table.rows[0] == ("F", 0.9, 0.1, 0, 10)
    assert sum(table.rows[1][1:4]) == pytest.approx(1)  # type: ignore[arg-type]
    assert table.rows[2] == ("X", None, None, None, 0)
    assert table.note == "note"


def test_the_table_of_curves_has_a_few_points_with_both_ends() -> None:
    lines = {"a": [(k, k / 2) for k in range(1, 1001)], "b": [(1, 7.0), (1000, 8.0)]}
    table = Curves("c", "K", "recall %", lines).table()
    assert table.heads == ("K", "a %", "b %")
    xs = [row[0] for row in table.rows]
    assert len(xs) == POINTS and (xs[0], xs[-1]) == (1, 1000)
    assert all(row[1] == row[0] / 2 for row in table.rows)  # type: ignore[operator]
    assert [row[2] for row in table.rows] == [7, *[None] * (POINTS - 2), 8]
    line = [(0, 1.0), (1, math.nan), (2, 2.0), (math.inf, 3.0)]
    assert Curves("c", "x", "y", {"a": line}).drawn() == {"a": [(0, 1.0), (2, 2.0)]}
    assert Curves("c", "x", "y", {}).table().rows == ()


VOID = {"meta", "img"}  # elements without an end


class Page(HTMLParser):
    """A page as a parser reads it, which insists that all elements are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""  # of all but the style
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open  # HTML's own elements do not end themselves
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.mark.parametrize("name", ["voice", HOSTILE, "", "<b>", '" onerror="x'])
def test_the_page_is_well_formed_and_needs_nothing_else(name: str) -> None:
    html = to_html(full(name))
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    html.encode()  # no half of a surrogate pair
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "base", "form", "b"}
    for _, attributes in page.elements:
        assert not any(key.startswith("on") for key in attributes)
        for key in ("src", "href"):
            assert (attributes.get(key) or "#").startswith(("#", "data:image/png;base64,"))
    style = html.split("<style>")[1].split("</style>")[0]
    assert not re.search(r"https?:|url\(|@import|<", style)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_part_is_there_with_its_title_and_note() -> None:
    page = Page(to_html(full()))
    for wanted in (
        "Evaluation of voice",
        "Retrieval of voice",
        "Chance of voice",
        "What voice is.",
    ):
        assert wanted in page.text
    for wanted in ("10.9", "5,000", "90.0 %", "vox"):  # 0.1092 as a share, 9 of 10
        assert wanted in page.text
    assert len(page.all("figure")) == len(page.all("figcaption")) == 4
    assert len(page.all("svg")) == 1
    links = [link["href"] for link in page.all("a")]
    assert links == [f"#{heading['id']}" for heading in page.all("h2")] == ["#s1", "#s2"]
    heads = [head for head in page.all("th") if head.get("scope") == "col"][:4]
    assert [head.get("class") for head in heads] == [None, "n", "n", "n"]
    assert {head.get("scope") for head in page.all("th")} == {"col", "row"}
    assert Page(to_html(Report("nothing"))).all("h1") == [{}]
    assert to_html(full()) == to_html(full())


def test_hostile_names_are_text() -> None:
    page = Page(to_html(full(HOSTILE)))
    assert "<script>alert('a\"b')</script>\\n| &lt; \\u202e \\udcff http://x.y" in page.text
    markdown = to_markdown(full(HOSTILE))
    assert not re.search(r"(?<!\\)[<>&]", markdown)
    markdown.encode()


def test_a_picture_is_inside_with_its_size_and_what_it_shows() -> None:
    picture = Picture("Best", png(7, 5), 'a "face"')
    (image,) = Page(to_html(Report("r", {}, (Section("s", (), (picture,)),)))).all("img")
    assert (image["width"], image["height"], image["alt"]) == ("7", "5", 'a "face"')
    assert base64.b64decode(str(image["src"]).split(",")[1]) == picture.png


def test_a_matrix_is_shaded_by_the_shares_of_its_rows() -> None:
    matrix = Matrix("m", ("F", "M"), ((3, 1), (0, 0)))
    page = Page(to_html(Report("r", {}, (Section("s", (), (matrix,)),))))
    assert [cell["style"] for cell in page.all("td")] == [
        f"background:rgba(52,120,246,{share})" for share in ("0.375", "0.125", "0.000", "0.000")
    ]
    assert "75.0 %" in page.text


@pytest.mark.parametrize("name", ["line", "_$x^", HOSTILE])
def test_a_chart_names_its_axes_and_lines_and_takes_the_colours_of_the_page(name: str) -> None:
    lines = {f"{name} {k}": [(0, 0.0), (9, float(k))] for k in range(20)}
    svg = draw_curves(Curves(name, "K", "recall %", {**lines, "w" * 99: [(0, 2.0)]}))
    parsed = ElementTree.fromstring(svg)
    shown = name.replace("\n", "\\n").replace("\u202e", "\\u202e").replace("\udcff", "\\udcff")
    assert parsed.attrib["aria-label"] == shown and parsed.attrib["role"] == "img"
    texts = [text.text or "" for text in parsed.iter("{http://www.w3.org/2000/svg}text")]
    assert {"K", "recall %", "w" * (LONGEST - 1) + "…"} <= set(texts)
    assert [text for text in texts if text.startswith(shown[:9])] == [
        f"{shown} {k}"[: LONGEST - 1] + ("…" if len(f"{shown} {k}") > LONGEST else "")
        for k in range(20)
    ]
    assert "currentColor" in svg and "#000000" not in svg
    assert not any(colour in re.sub(r"var\(--line\d,#\w+\)", "", svg) for colour in LIGHT)
    styles = [path.attrib["style"] for path in parsed.iter("{http://www.w3.org/2000/svg}path")]
    looks = [
        s.replace("stroke-linecap: square", "")
        for s in styles
        if "fill: none; stroke" in s and "var" in s
    ]
    assert len(set(looks)) == 21  # of the lines, and the same of the legend


def test_few_points_are_marked_many_are_not_and_nothing_is_said_to_be_none() -> None:
    for n, marks in ((1, 1), (3, 3), (100, 0)):
        svg = draw_curves(Curves("c", "x", "y", {"a": [(k, float(k)) for k in range(n)]}))
        assert svg.count("<use") == marks + (1 if marks else 0)  # one in the legend
    for lines in ({}, {"a": [(math.nan, 1.0)]}):
        assert "nothing to draw" in draw_curves(Curves("c", "x", "y", lines))


def tables(markdown: str) -> list[list[str]]:
    """The lines of each table."""
    blocks = [block.splitlines() for block in markdown.split("\n\n")]
    return [block for block in blocks if block[0].startswith("|")]


@pytest.mark.parametrize("name", ["voice", HOSTILE])
def test_tables_are_aligned_and_of_one_width(name: str) -> None:
    found = tables(to_markdown(full(name)))
    assert [len(lines) for lines in found] == [4, 5, 10]  # with header and rule
    for lines in found:
        assert len({len(line) for line in lines}) == 1
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        assert set(lines[1]) <= set("|-: ")


def test_markdown_has_the_numbers_titles_facts_and_notes_of_the_page() -> None:
    markdown = to_markdown(full())
    for wanted in (
        "| cosine voice |  10.9 | 5,000 |     1.50 |",
        "| ------------ | ----: | ----: | -------: |",
        "# Evaluation of voice\n",
        "- data: vox\n",
        "## Tables of voice\n",
        "What voice is.\n",
        "### Retrieval of voice\n",
        "Chance of voice\n",
        "### Best of voice\n\n(picture: faces of voice)\n",
    ):
        assert wanted in markdown


def of(*parts: Any) -> Report:
    return Report("r", {}, (Section("s", (), parts),))


@pytest.mark.parametrize("name", ["voice", HOSTILE])
def test_a_report_comes_back_without_its_pictures(name: str) -> None:
    report, text = full(name), to_json(full(name))
    text.encode("ascii")
    tables, pictures = report.sections
    pictures = dataclasses.replace(pictures, parts=pictures.parts[1:])
    wanted = repr(dataclasses.replace(report, sections=(tables, pictures)))
    assert repr(from_json(text, "report.json")) == wanted.replace("nan", "None")


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(), st.text())
def test_numbers_and_texts_come_back_to_the_bit(x: float, n: int, text: str) -> None:
    report = of(Table("t", ("a", "b", "c", "d"), ((x, n, text, None),)))
    assert from_json(to_json(report), "") == report


def test_what_is_not_finite_is_null_and_numbers_of_numpy_are_numbers() -> None:
    row = (math.nan, math.inf, np.int64(3), np.float32(0.5))
    report = dataclasses.replace(
        of(Table("t", tuple("abcd"), (row,))), samples={"m": {"id": math.nan}}
    )
    assert "NaN" not in to_json(report) and "Infinity" not in to_json(report)
    back = from_json(to_json(report), "")
    assert back.sections[0].parts[0].rows == ((None, None, 3, 0.5),)  # type: ignore[union-attr]
    assert math.isnan(back.samples["m"]["id"])
    line = {"a": [(np.int64(1), np.float32(math.nan))]}
    assert json.loads(to_json(of(Curves("c", "", "", line))))["sections"][0]["parts"] == [
        {
            "kind": "curves",
            "title": "c",
            "x_label": "",
            "y_label": "",
            "lines": {"a": [[1, None]]},
            "note": "",
        }
    ]


def broken(**changes: Any) -> str:
    return json.dumps(json.loads(to_json(full())) | changes)


def of_part(part: dict[str, str]) -> str:
    return broken(sections=[{"title": "", "text": [], "parts": [part]}])


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
        (of_part({}), "'kind' is missing"),
        (of_part({"kind": "x", "title": "", "note": ""}), "'x' is no part"),
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


N = 200
METRICS = ("metric", "old", "new", "difference", "from", "to", "p", "N", "new is")


def measured(
    values: np.ndarray, *, data: str = "vox", lower: bool = False, first: int = 0
) -> Report:
    """A report of one metric, by identity."""
    samples = {"m": {f"id{first + k}": float(value) for k, value in enumerate(values)}}
    return Report("r", {"data": data}, (), samples, frozenset({"m"} if lower else ()))


def found(a: Report, b: Report) -> dict[str, object]:
    """The row of the one metric."""
    table = compare_reports(a, b, "old", "new").sections[0].parts[0]
    assert isinstance(table, Table) and table.heads == METRICS
    (row,) = table.rows
    return dict(zip(METRICS, row, strict=True))


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=N)


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("shift", [-0.3, 0.3])
def test_a_planted_difference_is_found(shift: float, lower: bool) -> None:
    """0.3 is some 6 standard errors of the mean of 200 paired differences of deviation 0.7."""
    old = noise(0)
    new = old + shift + 0.7 * noise(1)
    row = found(measured(old, lower=lower), measured(new, lower=lower))
    assert row["new is"] == ("better" if (shift > 0) != lower else "worse")
    assert row["difference"] == pytest.approx(np.mean(new - old))
    assert (row["old"], row["new"]) == pytest.approx((old.mean(), new.mean()))
    assert row["p"] == 1 / ROUNDS and row["N"] == N


def test_the_interval_is_that_of_the_normal_approximation() -> None:
    """With 200 normal differences: the mean, 1.96 standard errors to each side."""
    old, new = noise(0), noise(1)
    row = found(measured(old), measured(new))
    gains = new - old
    error = 1.96 * gains.std() / math.sqrt(N)
    assert row["from"] == pytest.approx(gains.mean() - error, abs=0.1 * error)
    assert row["to"] == pytest.approx(gains.mean() + error, abs=0.1 * error)


def test_chance_is_called_a_difference_as_often_as_said() -> None:
    """Of 100 comparisons without a difference about 5 seem to have one; 0 to 11 in 99 %."""
    rows = [found(measured(noise(2 * k)), measured(noise(2 * k + 1))) for k in range(100)]
    ps = [float(str(row["p"])) for row in rows]
    seen = [row["new is"] != "no difference" for row in rows]
    assert seen == [p < LEVEL for p in ps]
    assert sum(seen) <= 11
    assert 0.35 < np.mean(ps) < 0.65  # evenly spread over 0..1


def test_many_identities_take_bounded_memory_and_the_same_draws() -> None:
    values = np.tile(noise(0), 100)
    row = found(measured(values), measured(values + 1))
    assert row["difference"] == pytest.approx(1) == row["from"]


def test_equal_runs_or_one_identity_prove_nothing() -> None:
    row = found(measured(noise(0)), measured(noise(0)))
    assert (row["difference"], row["from"], row["to"], row["p"]) == (0, 0, 0, 1)
    assert row["new is"] == "no difference"
    row = found(measured(np.zeros(1)), measured(np.ones(1)))
    assert (row["difference"], row["p"], row["new is"]) == (1, 1, "no difference")


def test_only_common_identities_with_numbers_are_compared() -> None:
    values = noise(0)
    values[:10] = math.nan
    row = found(measured(values), measured(noise(1), data="other", first=5))
    assert row["N"] == N - 10


def test_different_data_are_told() -> None:
    same, other = measured(noise(0)), measured(noise(0), data="other", first=50)
    assert compare_reports(same, same, "old", "new").sections[0].text == ()
    differences = compare_reports(same, other, "old", "new")
    assert "different data" in differences.sections[0].text[0]
    assert differences.facts == {"data (old)": "vox", "data (new)": "other"}
    with pytest.raises(UsageError, match="no identity has a metric in both"):
        compare_reports(same, measured(noise(0), first=N), "old", "new")


def with_tables(*tables: Table) -> Report:
    return dataclasses.replace(measured(noise(0)), sections=(Section("s", (), tables),))


def test_tables_stand_side_by_side_and_equal_columns_once() -> None:
    heads = ("metric", "R@1 %", "N")
    a = Table("t", heads, (("cos", 0.1, 50), ("l2", 0.2, 50), ("cos", 0.3, 50)), "note")
    b = Table("t", heads, (("cos", 0.4, 50), ("cos", 0.5, 50), ("l2", 0.6, 50)), "note")
    old, new = with_tables(a, Table("Alone", ("x",), ())), with_tables(b)
    rows = (("cos", 0.1, 0.4, 50), ("l2", 0.2, 0.6, 50), ("cos", 0.3, 0.5, 50))
    both = Table("t", ("metric", "old: R@1 %", "new: R@1 %", "N"), rows, "note")
    assert compare_reports(old, new, "old", "new").sections[1] == Section("s", (), (both,))
    other = with_tables(Table("t", ("metric",), ()))
    assert len(compare_reports(old, other, "old", "new").sections) == 1
    one, two = (with_tables(Table("t", ("x", "y"), ((name, 1.0),))) for name in "ab")
    (table,) = compare_reports(one, two, "old", "new").sections[1].parts
    assert isinstance(table, Table) and table.rows == (("a", 1.0, None), ("b", None, 1.0))


def test_reports_from_files_compare_and_are_reports_again(tmp_path: Path) -> None:
    write_report(full(), tmp_path)
    back = read_report(tmp_path)
    assert back == read_report(tmp_path / "report.json")
    both = compare_reports(back, back, "old", "new")
    assert "no difference" in to_html(both)
    assert from_json(to_json(both), "") == both
    with pytest.raises(DatasetError, match="is no report that can be read"):
        read_report(tmp_path / "nowhere")
