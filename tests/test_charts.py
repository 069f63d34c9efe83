"""Curves as SVG: well formed, every point in its place, all names legible."""

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import HOSTILE

from s2f import report
from s2f.report import Curves

VALUES = st.floats(-1e9, 1e9).map(lambda x: round(x, 6))


def parse(curves: Curves) -> ElementTree.Element:
    return ElementTree.fromstring(report.draw_curves(curves))


def lines(svg: ElementTree.Element) -> list[list[tuple[float, float]]]:
    """Points of the lines in the plot; below them stand those of the legend."""
    found = []
    for line in svg.iter("polyline"):
        points = [point.split(",") for point in line.attrib["points"].split()]
        found.append([(float(x), float(y)) for x, y in points])
    return found[: len(found) // 2]


def texts(svg: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in svg.iter("text")]


@pytest.mark.parametrize("log_x", [False, True])
@given(data=st.data())
def test_every_point_lies_inside_the_plot(log_x: bool, data: st.DataObject) -> None:
    xs = st.floats(1e-6, 1e9) if log_x else VALUES
    line = st.lists(st.tuples(xs, VALUES), min_size=1, max_size=20)
    given_lines = data.draw(st.dictionaries(st.text("abc", max_size=5), line, min_size=1))
    drawn = lines(parse(Curves("c", "x", "y", given_lines, log_x=log_x)))
    assert [len(points) for points in drawn] == [len(points) for points in given_lines.values()]
    left, top, right, bottom = report.PLOT
    for x, y in (point for points in drawn for point in points):
        assert left - 0.1 <= x <= right + 0.1 and top - 0.1 <= y <= bottom + 0.1


def test_points_stand_where_the_axes_say() -> None:
    """A line from 0 % to 100 % leads from corner to corner, its middle through the middle."""
    left, top, right, bottom = report.PLOT
    line = [(1, 0.0), (10, 0.5), (100, 1.0)]
    svg = parse(Curves("c", "K", "recall %", {"a": line}, log_x=True))
    wanted = [(left, bottom), ((left + right) / 2, (top + bottom) / 2), (right, top)]
    assert lines(svg) == [wanted]
    assert {"0", "100", "1", "10"} <= set(texts(svg))
    places = {text.text: float(text.attrib["x"]) for text in svg.iter("text")}
    assert places["10"] == pytest.approx((left + right) / 2, abs=0.1)


@given(low=VALUES, span=st.floats(1e-3, 1e9))
def test_an_axis_has_three_to_twelve_ticks(low: float, span: float) -> None:
    svg = parse(Curves("c", "", "", {"": [(0, low), (1, low + span)]}))
    levels = {g.attrib["d"] for g in svg.iter("path") if "H" in g.attrib["d"]}
    assert 3 <= len(levels) <= 12


def test_each_line_has_its_own_look_and_its_name_in_the_legend() -> None:
    names = [f"line {k}" for k in range(20)]
    svg = parse(Curves("c", "x", "y", {n: [(0, 0.0), (1, k)] for k, n in enumerate(names)}))
    looks = [(p.attrib["class"], p.get("stroke-dasharray")) for p in svg.iter("polyline")]
    assert len(set(looks)) == 20 and looks[:20] == looks[20:]
    assert texts(svg)[-20:] == names
    height = float(svg.attrib["viewBox"].split()[3])
    assert max(float(text.attrib["y"]) for text in svg.iter("text")) < height


def test_few_points_are_marked_and_many_are_not() -> None:
    def marks(n: int) -> int:
        line = [(k, float(k)) for k in range(n)]
        return len(list(parse(Curves("c", "x", "y", {"a": line})).iter("circle")))

    assert [marks(n) for n in (0, 1, 3, 100)] == [0, 1, 3, 0]


@pytest.mark.parametrize("points", [[], [(math.nan, 1.0)]])
def test_a_chart_of_nothing_says_so(points: list[tuple[float, float]]) -> None:
    assert "nothing to draw" in texts(parse(Curves("c", "x", "y", {"a": points})))
    assert "nothing to draw" in texts(parse(Curves("c", "x", "y", {})))


def test_names_are_escaped_and_cut() -> None:
    svg = parse(Curves(HOSTILE, HOSTILE, HOSTILE, {HOSTILE: [(0, 1.0)], "w" * 99: [(0, 2.0)]}))
    assert {element.tag for element in svg.iter()} <= {"svg", "text", "path", "circle", "polyline"}
    assert texts(svg)[-1] == "w" * (report.LONGEST - 1) + "…"
