"""The page: valid, self-contained, and no name in it is ever markup."""

import base64
import re
from html.parser import HTMLParser

import pytest
from reports import HOSTILE, full, png

from s2f.report import SHADE, Matrix, Picture, Report, Section, to_html

VOID = {"meta", "img"}  # elements without an end


class Page(HTMLParser):
    """A page as a parser reads it, which insists that all elements are closed in order.

    Attributes:
        elements: name and attributes of each.
        text: of all but the style.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
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


def test_hostile_names_are_text() -> None:
    page = Page(to_html(full(HOSTILE)))
    assert "<script>alert('a\"b')</script>\\n| &lt; \\u202e \\udcff http://x.y" in page.text


def test_a_picture_is_inside_with_its_size_and_what_it_shows() -> None:
    picture = Picture("Best", png(7, 5), 'a "face"')
    (image,) = Page(to_html(Report("r", {}, (Section("s", (), (picture,)),)))).all("img")
    assert (image["width"], image["height"], image["alt"]) == ("7", "5", 'a "face"')
    assert base64.b64decode(str(image["src"]).split(",")[1]) == picture.png


def test_a_matrix_is_shaded_by_the_shares_of_its_rows() -> None:
    matrix = Matrix("m", ("F", "M"), ((3, 1), (0, 0)))
    page = Page(to_html(Report("r", {}, (Section("s", (), (matrix,)),))))
    assert [cell["style"] for cell in page.all("td")] == [
        f"background:rgba({SHADE},0.375)",
        f"background:rgba({SHADE},0.125)",
        f"background:rgba({SHADE},0.000)",
        f"background:rgba({SHADE},0.000)",
    ]
    assert "75.0 %" in page.text


def test_numbers_are_aligned_right_and_headers_name_rows_and_columns() -> None:
    page = Page(to_html(full()))
    heads = [head for head in page.all("th") if head.get("scope") == "col"][:4]
    assert [head.get("class") for head in heads] == [None, "n", "n", "n"]
    assert {head.get("scope") for head in page.all("th")} == {"col", "row"}


def test_a_report_of_nothing_is_a_page() -> None:
    assert Page(to_html(Report("nothing"))).all("h1") == [{}]


def test_the_same_report_gives_the_same_page() -> None:
    assert to_html(full()) == to_html(full())
