"""Markdown: tables of even width, and no name is markup."""

import re

import pytest
from reports import HOSTILE, full

from s2f.report import Report, Section, Table, to_markdown


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


def test_numbers_are_those_of_the_page() -> None:
    markdown = to_markdown(full())
    assert "| cosine voice |  10.9 | 5,000 |     1.50 |" in markdown
    assert "| ------------ | ----: | ----: | -------: |" in markdown


def test_it_has_every_title_fact_paragraph_and_note() -> None:
    markdown = to_markdown(full())
    for wanted in (
        "# Evaluation of voice\n",
        "- data: vox\n",
        "## Tables of voice\n",
        "What voice is.\n",
        "### Retrieval of voice\n",
        "Chance of voice\n",
        "### Best of voice\n\n(picture: faces of voice)\n",
    ):
        assert wanted in markdown


def test_hostile_names_are_text() -> None:
    markdown = to_markdown(full(HOSTILE))
    assert not re.search(r"(?<!\\)[<>&]", markdown)
    markdown.encode()


def test_a_table_without_rows_keeps_its_header() -> None:
    report = Report("r", {}, (Section("s", (), (Table("t", ("a", "long head"), ()),)),))
    assert tables(to_markdown(report)) == [["| a   | long head |", "| --- | --------- |"]]
