"""Reports: what they hold, numbers as people read them, pages, files, and two side by side."""

import base64
import dataclasses
import io
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from s2f import report
from s2f.errors import DatasetError, OutputError, UsageError
from s2f.report import Curves, Matrix, Picture, Report, Section, Table

HOSTILE = "</style><script>alert('a\"b')</script>\n| &lt; \u202e \udcff http://x.y"
LONGEST, MISSING = report.LONGEST, report.MISSING
SVG = "{http://www.w3.org/2000/svg}"


def of(*parts: Any) -> Report:
    return Report("r", {}, (Section("s", (), parts),))


def full(name: str = "voice") -> Report:
    """A report with every kind of part, all of whose texts hold a name."""
    file = io.BytesIO()
    Image.new("RGB", (7, 5), "red").save(file, format="PNG")
    rows = ((f"cosine {name}", 0.10923, 5000, 1.5), (None, math.nan, 100, None))
    heads = ("metric", "R@1 %", "N", f"of {name}")
    table = Table(f"Retrieval of {name}", heads, rows, note=f"Chance of {name}")
    matrix = Matrix(f"Sex of {name}", (f"F {name}", "M", "none"), ((9, 1, 0), (3, 1, 0), (0, 0, 0)))
    picture = Picture(f"Best of {name}", file.getvalue(), f"faces of {name}")
    lines = {name: [(k, k / 100) for k in range(1, 101)], "chance": [(1, 0.01)]}
    curves = Curves(f"Recall of {name}", "K", f"recall of {name} %", lines)
    tables = Section(f"Tables of {name}", (f"What {name} is.",), (table, matrix))
    sections = (tables, Section("Pictures", (), (picture, curves)))
    facts = {"model": name, "data": "vox", f"key {name}": "value"}
    samples = {f"recall {name}": {f"id {name}": 0.25, "id2": 1.0}, "angle": {"id2": 45.75}}
    return Report(f"Evaluation of {name}", facts, sections, samples, frozenset({"angle"}))


SHOWN: list[tuple[Any, str]] = [
    *[(45.754, "45.8"), (9.9996, "10.0"), (99.963, "100"), (0.5, "0.500"), (-0.0321, "-0.0321")],
    *[(45.75, "45.75"), (9.999, "9.999"), (-0.3125, "-0.3125"), (0.1 + 0.02, "0.120")],
    *[(1234.5, "1,234"), (0.0005, "0.000500"), (0.00005, "5.00e-05"), (0.0, "0")],
    *[(5000, "5,000"), (np.int64(7), "7"), (np.float32(0.25), "0.250"), ("as it is", "as it is")],
    *[(None, MISSING), (math.nan, MISSING), (math.inf, MISSING)],
]


@given(st.floats(-1e12, 1e12))
def test_numbers_have_three_digits_or_all_four_and_shares_are_in_percent(number: float) -> None:
    assert float(report.show(number).replace(",", "")) == pytest.approx(number, rel=5.1e-3)
    assert [report.show(value) for value, _ in SHOWN] == [shown for _, shown in SHOWN]
    shares = [report.show(share, "R@1 %") for share in (0.10923, 0.5969, 1, 0, 0.9, None)]
    assert shares == ["10.9", "59.69", "100", "0", "90.0", MISSING]


def test_the_table_of_curves_has_a_few_points_with_both_ends() -> None:
    lines = {"a": [(k, k / 2) for k in range(1, 1001)], "b": [(1, 7.0), (1000, 8.0)]}
    table = Curves("c", "K", "recall %", lines).table()
    assert table.heads == ("K", "a %", "b %")
    xs = [row[0] for row in table.rows]
    assert len(xs) == report.POINTS and (xs[0], xs[-1]) == (1, 1000)
    assert all(row[1] == row[0] / 2 for row in table.rows)  # type: ignore[operator]
    assert [row[2] for row in table.rows] == [7, *[None] * (report.POINTS - 2), 8]
    line = [(0, 1.0), (1, math.nan), (2, 2.0), (math.inf, 3.0)]
    assert Curves("c", "x", "y", {"a": line}).drawn() == {"a": [(0, 1.0), (2, 2.0)]}
    assert Curves("c", "x", "y", {}).table().rows == ()
    with pytest.raises(ValueError, match="2 cells under 1 heads"):
        Table("t", ("a",), ((1, 2),))
    with pytest.raises(ValueError, match=r"\[2 2\]"):
        Matrix("m", ("a", "b"), ((1, 2),))


def page_of(whole: Report) -> ElementTree.Element:
    """A page as a strict parser of XML reads it, all but the elements that HTML never ends."""
    html = report.to_html(whole)
    assert html.startswith("<!DOCTYPE html>")
    return ElementTree.fromstring(re.sub(r"<((?:meta|img)\b[^>]*)>", r"<\1/>", html))


@pytest.mark.parametrize("name", ["voice", HOSTILE, "", "<b>", '" onerror="x'])
def test_the_page_is_well_formed_and_needs_nothing_else(name: str) -> None:
    page = page_of(full(name))
    barred = {"script", "link", "iframe", "object", "base", "form", "b"}
    assert not {element.tag for element in page.iter()} & barred
    for element in page.iter():
        assert not any(key.startswith("on") for key in element.attrib)
        for key in ("src", "href"):
            assert element.get(key, "#").startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"https?:|url\(|@import|<", page.findtext("head/style", "https:"))
    ids = [element.attrib["id"] for element in page.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))
    shown = name.replace("\n", "\\n").replace("\u202e", "\\u202e").replace("\udcff", "\\udcff")
    assert f"What {shown} is." in "".join(page.itertext())


def test_every_part_is_on_the_page_with_its_title_and_note() -> None:
    page = page_of(full())
    text = "".join(page.itertext())  # with 0.10923 as a share, and 9 of 10
    wanted = ("Evaluation of voice", "Chance of voice", "10.9", "5,000", "90.0 %", "vox")
    assert all(one in text for one in wanted)
    assert [len(list(page.iter(tag))) for tag in ("figure", "figcaption", f"{SVG}svg")] == [4, 4, 1]
    links = [link.get("href") for link in page.iter("a")]
    assert links == [f"#{heading.get('id')}" for heading in page.iter("h2")] == ["#s1", "#s2"]
    heads = [head for head in page.iter("th") if head.get("scope") == "col"]
    assert [head.get("class") for head in heads[:4]] == [None, "n", "n", "n"]
    (image,) = page.iter("img")
    assert [image.get(key) for key in ("width", "height", "alt")] == ["7", "5", "faces of voice"]
    picture: Any = full().sections[1].parts[0]
    assert base64.b64decode(image.get("src", "").split(",")[1]) == picture.png
    shades = [cell.get("style", "") for cell in page.iter("td") if cell.get("style")]
    shares = ("0.450", "0.050", "0.000", "0.375", "0.125", *["0.000"] * 4)  # halves of the rows'
    assert shades == [f"background:rgba(52,120,246,{share})" for share in shares]
    assert report.to_html(full()) == report.to_html(full())
    assert page_of(Report("nothing")).findtext(".//h1") == "nothing"


@pytest.mark.parametrize("name", ["_$x^", HOSTILE])
def test_a_chart_names_its_axes_and_lines_and_takes_the_colours_of_the_page(name: str) -> None:
    lines = {f"{name} {k}": [(0, 0.0), (9, float(k))] for k in range(20)}
    svg = report.draw_curves(Curves(name, "K", "recall %", {**lines, "w" * 99: [(0, 2.0)]}))
    parsed = ElementTree.fromstring(svg)
    shown = name.replace("\n", "\\n").replace("\u202e", "\\u202e").replace("\udcff", "\\udcff")
    assert parsed.attrib["aria-label"] == shown and parsed.attrib["role"] == "img"
    texts = [text.text or "" for text in parsed.iter(f"{SVG}text")]
    assert {"K", "recall %", "w" * (LONGEST - 1) + "…"} <= set(texts)
    named = [f"{shown} {k}" for k in range(20)]
    short = [one if len(one) <= LONGEST else f"{one[: LONGEST - 1]}…" for one in named]
    assert [text for text in texts if text.startswith(shown[:9])] == short
    assert "currentColor" in svg and "#000000" not in svg
    assert not any(colour in re.sub(r"var\(--line\d,#\w+\)", "", svg) for colour in report.LIGHT)
    styles = [path.attrib["style"] for path in parsed.iter(f"{SVG}path")]
    looks = [s for s in styles if "fill: none; stroke" in s and "var" in s]
    # As many of the lines, and the same of the legend.
    assert len({look.replace("stroke-linecap: square", "") for look in looks}) == 21
    # Few points are marked, many are not, and nothing is said to be none.
    for n, marks in ((1, 2), (3, 4), (100, 0)):  # with one in the legend
        svg = report.draw_curves(Curves("c", "x", "y", {"a": [(k, float(k)) for k in range(n)]}))
        assert svg.count("<use") == marks
    for lines in ({}, {"a": [(math.nan, 1.0)]}):
        assert "nothing to draw" in report.draw_curves(Curves("c", "x", "y", lines))


RANGED = Table(
    "Recall",
    ("query", "R@1 %", "low %", "high %", "angle", "low", "low", "high"),
    (("voice", 0.1, 0.05, 0.2, 45.0, 1, 2, 3), ("chance", 0.01, None, math.inf, None, 4, None, 5)),
)


def test_an_interval_stands_in_the_cell_of_its_figure_and_apart_in_the_data() -> None:
    heads, rows = report.shown(RANGED)
    assert heads == ["query", "R@1 % (95 %)", "angle", "low (95 %)"]
    assert rows == [
        ["voice", "10.0 (5.00 to 20.0)", "45.0", "1 (2 to 3)"],
        ["chance", "1.00", MISSING, f"4 ({MISSING} to 5)"],
    ]
    page = page_of(of(RANGED))
    texts = [" ".join("".join(cell.itertext()).split()) for cell in page.iter("td")]
    assert texts[:3] == ["10.0 5.00 to 20.0", "45.0", "1 2 to 3"]
    assert "| 10.0 (5.00 to 20.0) |" in report.to_markdown(of(RANGED))
    back = report.from_json(report.to_json(of(RANGED)), "").sections[0].parts[0]
    assert isinstance(back, Table) and back.rows[0] == RANGED.rows[0]
    alone = Table("t", ("a", "low", "x: low", "y: high", "low", "high"), ())
    assert report.columns(alone) == [(0, False), (1, False), (2, False), (3, True)]


def test_two_tables_have_each_interval_with_its_figure() -> None:
    other = dataclasses.replace(RANGED, rows=(("voice", 0.2, 0.1, 0.3, 45.0, 1, 2, 3),))
    (section,) = compared((RANGED,), (other,))
    (table,) = section.parts
    assert isinstance(table, Table)
    wanted = ["query", "old: R@1 % (95 %)", "new: R@1 % (95 %)"]
    assert report.shown(table)[0][:3] == wanted
    assert report.shown(table)[1][0][1:3] == ["10.0 (5.00 to 20.0)", "20.0 (10.0 to 30.0)"]


def test_a_report_opens_with_figures_of_all_sections_a_curve_and_faces() -> None:
    whole = full()
    row = ("R@1, %", 10.9, 8.0, 14.0, 1.0, "10.9 (Oh et al.)")
    tables, pictures = whole.sections
    tables, picture = dataclasses.replace(tables, figures=(row,)), pictures.parts[0]
    assert isinstance(picture, Picture)
    first, *others = report.glance([tables, pictures], picture)
    assert others == list(whole.sections)
    headline, curve, sheet = first.parts
    assert isinstance(headline, Table) and headline.rows == (row,)
    assert (curve, sheet) == (pictures.parts[1], picture)
    page = page_of(dataclasses.replace(whole, sections=(first, *others)))
    sections = list(page.iter("section"))
    assert [one.get("class") for one in sections] == ["glance", None, None]
    text = "".join(sections[0].itertext())
    assert all(one in text for one in ("8.00 to 14.0", "10.9 (Oh et al.)"))
    bare = report.glance([Section("s")], picture)
    assert bare == (Section(report.GLANCE, (), (picture,)), Section("s"))


def test_a_report_of_before_is_read(tmp_path: Path) -> None:
    data = json.loads(report.to_json(full()))
    for section in data["sections"]:
        del section["figures"]
    assert report.from_json(json.dumps(data), "").sections[0].figures == ()


@pytest.mark.parametrize("name", ["voice", HOSTILE])
def test_markdown_tables_are_aligned_and_of_one_width(name: str) -> None:
    markdown = report.to_markdown(full(name))
    assert not re.search(r"(?<!\\)[<>&]", markdown) and markdown.encode()
    blocks = [block.splitlines() for block in markdown.split("\n\n")]
    found = [block for block in blocks if block[0].startswith("|")]
    assert [len(lines) for lines in found] == [4, 5, 10]  # with header and rule
    for lines in found:
        assert len({len(line) for line in lines}) == 1
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        assert set(lines[1]) <= set("|-: ")


def test_markdown_has_the_numbers_titles_facts_and_notes_of_the_page() -> None:
    markdown = re.sub(" +", " ", report.to_markdown(full()))
    for wanted in (
        *("# Evaluation of voice\n", "- data: vox\n", "\n## Tables of voice\n\nWhat voice is.\n"),
        "\n\nChance of voice\n\n### Sex of voice\n",
        "\n### Best of voice\n\n(picture: faces of voice)\n",
        "\n| cosine voice | 10.9 | 5,000 | 1.50 |\n",
        "\n| true | F voice % | M % | none % | N |\n",
        "\n| M | 75.0 | 25.0 | 0 | 4 |\n",
    ):
        assert wanted in markdown


@pytest.mark.parametrize("name", ["voice", HOSTILE])
def test_a_report_comes_back_without_its_pictures(name: str) -> None:
    whole, text = full(name), report.to_json(full(name))
    text.encode("ascii")
    tables, pictures = whole.sections
    pictures = dataclasses.replace(pictures, parts=pictures.parts[1:])
    wanted = dataclasses.replace(whole, sections=(tables, pictures))
    assert repr(report.from_json(text, "report.json")) == repr(wanted).replace("nan", "None")


@given(st.floats(), st.integers(), st.text())
def test_numbers_and_texts_come_back_to_the_bit_but_null_for_what_is_not_finite(
    x: float, n: int, name: str
) -> None:
    wanted = (x if math.isfinite(x) else None, n, name, None, 3, 0.5)
    row = (x, n, name, math.inf, np.int64(3), np.float32(0.5))
    tables = [Table("t", tuple("abcdef"), (cells,)) for cells in (row, wanted)]
    curves = Curves("c", "", "", {"a": [(np.int64(1), np.float32(math.nan))]})
    text = report.to_json(
        dataclasses.replace(of(tables[0], curves), samples={"m": {"id": math.nan}})
    )
    back = report.from_json(text, "")
    assert back.sections[0].parts[0] == tables[1] and math.isnan(back.samples["m"]["id"])
    assert json.loads(text)["sections"][0]["parts"][1]["lines"] == {"a": [[1, None]]}


def broken(**changes: Any) -> str:
    return json.dumps(json.loads(report.to_json(full())) | changes)


def of_part(**part: str) -> str:
    return broken(sections=[{"title": "", "text": [], "parts": [part]}])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *(("", "Expecting value"), ("[]", "list"), ("null", "NoneType"), ("[" * 100_000, "")),
        *(("{}", "'format' is missing"), (of_part(), "'kind' is missing")),
        (of_part(kind="x", title="", note=""), "'x' is no part"),
        (broken(format=2), "its format is 2, and 1 was wanted"),
        *((broken(title=3), "3 where a text"), (broken(facts={"a": 1}), "1 where a text")),
        *((broken(facts=None), ""), (broken(lower="abc"), "'abc' where a list")),
        *((broken(samples={"a": {"b": v}}), f"{v!r} where a number") for v in ("c", True)),
        (re.sub('"N",', "", report.to_json(full()), count=1), "4 cells under 3"),
    ],
)
def test_what_is_no_report_is_refused_by_name(text: str, why: str) -> None:
    with pytest.raises(DatasetError, match=r"old/report\.json: is not a report") as caught:
        report.from_json(text, "old/report.json")
    assert why in caught.value.message and caught.value.hint


def test_three_files_are_written_and_replaced_only_on_demand(tmp_path: Path) -> None:
    new = tmp_path / "new"
    paths = report.write_report(full(HOSTILE), new)
    assert paths == [new / "report.html", new / "report.md", new / "report.json"]
    assert report.read_report(new) == report.read_report(paths[2])
    paths[0].unlink()
    with pytest.raises(UsageError, match=r"report\.md: exists already"):
        report.write_report(full(), new)
    assert not paths[0].exists()
    report.write_report(full(), new, overwrite=True)
    assert report.read_report(new).title == "Evaluation of voice"
    refusals = {"is a file": (UsageError, ""), "cannot be written": (OutputError, "below")}
    for why, (kind, name) in refusals.items():
        with pytest.raises(kind, match=why):
            report.write_report(full(), paths[0] / name)
    with pytest.raises(DatasetError, match="is no report that can be read"):
        report.read_report(tmp_path / "nowhere")


N = 200


def measured(values: np.ndarray, data: str = "vox", lower: bool = False, first: int = 0) -> Report:
    samples = {"m": {f"id{first + k}": float(value) for k, value in enumerate(values)}}
    return Report("r", {"data": data}, (), samples, frozenset({"m"} if lower else ()))


def found(a: Report, b: Report) -> dict[str, Any]:
    table: Any = report.compare_reports(a, b, "old", "new").sections[0].parts[0]
    assert len(table.rows) == 1
    return dict(zip(table.heads, table.rows[0], strict=True))


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=N)


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("shift", [-0.3, 0.3])
def test_a_planted_difference_is_found(shift: float, lower: bool) -> None:
    """0.3 is some 6 standard errors of 200 paired differences; of these the interval has 1.96."""
    old = noise(0)
    gains = shift + 0.7 * noise(1)
    row = found(measured(old, lower=lower), measured(old + gains, lower=lower))
    assert row["new is"] == ("better" if (shift > 0) != lower else "worse")
    assert (row["old"], row["new"]) == pytest.approx((old.mean(), (old + gains).mean()))
    assert row["p"] < 0.002 and row["N"] == N
    error, mean = 1.96 * gains.std() / math.sqrt(N), gains.mean()
    wanted = (mean, mean - error, mean + error)
    assert (row["difference"], row["low"], row["high"]) == pytest.approx(wanted, abs=0.1 * error)
    assert row["difference"] == pytest.approx(mean)


def test_no_more_of_many_metrics_is_called_a_difference_than_of_one() -> None:
    """The p of the planted one of 9 is 0.02: one alone differs, and beside eight others none."""
    gains = np.random.default_rng(2).normal(size=60)
    gains += 0.3 - gains.mean()
    metrics = {f"m{k}": {f"id{n}": 0.0 for n in range(60)} for k in range(9)}
    old = Report("r", {}, (), metrics)
    new = {name: dict(values) for name, values in metrics.items()}
    new["m0"] = {f"id{n}": float(gain) for n, gain in enumerate(gains)}

    def words(*names: str) -> list[Any]:
        a, b = (
            dataclasses.replace(old, samples={name: some[name] for name in names})
            for some in (metrics, new)
        )
        table: Any = report.compare_reports(a, b, "old", "new").sections[0].parts[0]
        assert 0.006 < table.rows[0][6] < 0.05
        return [row[-1] for row in table.rows]

    assert words("m0") == ["better"] and set(words(*metrics)) == {"no difference"}


def test_only_common_identities_with_numbers_are_compared_and_other_data_told() -> None:
    values = noise(0)
    values[:10] = math.nan
    old, new = measured(values), measured(noise(1), data="other", first=5)
    assert found(old, new)["N"] == N - 10
    differences = report.compare_reports(old, new, "old", "new")
    assert "different data" in differences.sections[0].text[0]
    assert differences.facts == {"data (old)": "vox", "data (new)": "other"}
    assert report.from_json(report.to_json(differences), "") == differences
    assert report.compare_reports(old, old, "old", "new").sections[0].text == ()
    row = found(measured(np.zeros(1)), measured(np.ones(1)))
    assert (row["difference"], row["new is"]) == (1, "no difference") and row["p"] > 0.9
    with pytest.raises(UsageError, match="no identity has a metric in both"):
        report.compare_reports(old, measured(noise(0), first=N), "old", "new")


def compared(*tables: tuple[Table, ...]) -> list[Section]:
    whole = measured(noise(0))
    old, new = (dataclasses.replace(whole, sections=(Section("s", (), part),)) for part in tables)
    return [*report.compare_reports(old, new, "old", "new").sections[1:]]


def test_tables_stand_side_by_side_and_equal_columns_once() -> None:
    heads = ("metric", "R@1 %", "N")
    a = Table("t", heads, (("cos", 0.1, 50), ("l2", 0.2, 50), ("cos", 0.3, 50)), "note")
    b = Table("t", heads, (("cos", 0.4, 50), ("cos", 0.5, 50), ("l2", 0.6, 50)), "note")
    rows = (("cos", 0.1, 0.4, 50), ("l2", 0.2, 0.6, 50), ("cos", 0.3, 0.5, 50))
    both = Table("t", ("metric", "old: R@1 %", "new: R@1 %", "N"), rows, "note")
    assert compared((a, Table("Alone", ("x",), ())), (b,)) == [Section("s", (), (both,))]
    assert compared((a,), (Table("t", ("metric",), ()),)) == []
    one, two = (Table("t", ("x", "y"), ((name, 1.0),)) for name in "ab")
    (table,) = compared((one,), (two,))[0].parts
    assert isinstance(table, Table) and table.rows == (("a", 1.0, None), ("b", None, 1.0))
