"""Two reports side by side, and whether one model is better than the other."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from s2f import estimates
from s2f.errors import UsageError
from s2f.report import Cell, Report, Section, Table

LEVEL = 0.05  # of significance
ROUNDS = 2000  # of the bootstrap


def compare(a: Report, b: Report, name_a: str, name_b: str) -> Report:
    """Compare two reports: what differs, whether by more than chance, and their tables in one.

    Metrics are compared over the identities that both reports have, by a paired bootstrap over
    identities. Tables are compared that both have, with one title and one header, in sections of
    one title; their rows are matched by the first cell.

    Args:
        a: a report.
        b: another.
        name_a: what to call the first.
        name_b: what to call the second.

    Raises:
        UsageError: if no identity has a metric in both.
    """
    sections = [_differences(a, b, name_a, name_b)]
    theirs = {section.title: section for section in b.sections}
    for section in a.sections:
        if section.title in theirs:
            there = {t.title: t for t in theirs[section.title].parts if isinstance(t, Table)}
            pairs = [(t, there.get(t.title)) for t in section.parts if isinstance(t, Table)]
            parts = [
                _side_by_side(one, other, name_a, name_b)
                for one, other in pairs
                if other is not None and one.heads == other.heads
            ]
            if parts:
                sections.append(Section(section.title, (), tuple(parts)))
    facts = {}
    for key in dict.fromkeys([*a.facts, *b.facts]):
        if a.facts.get(key) == b.facts.get(key):
            facts[key] = a.facts[key]
        else:
            named = ((name_a, a), (name_b, b))
            facts |= {f"{key} ({name})": r.facts[key] for name, r in named if key in r.facts}
    return Report(f"{name_a} and {name_b}", facts, tuple(sections))


def _differences(a: Report, b: Report, name_a: str, name_b: str) -> Section:
    """Compare all metrics that both reports have."""
    rows: list[tuple[Cell, ...]] = []
    for metric in a.samples:
        pair = _paired(a.samples[metric], b.samples.get(metric, {}))
        if not len(pair):
            continue
        found = estimates.compare(pair[:, 0], pair[:, 1], np.arange(len(pair)), rounds=ROUNDS)
        is_gain = (found.value > 0) != (metric in a.lower)
        word = "better" if is_gain else "worse"
        if found.p >= LEVEL:
            word = "no difference"
        interval = (found.value, found.low, found.high, found.p)
        rows.append((metric, *map(float, pair.mean(axis=0)), *interval, len(pair), word))
    if not rows:
        raise UsageError(
            f"{name_a} and {name_b} cannot be compared: no identity has a metric in both",
            hint="evaluate both models on the same data",
        )
    heads = ("metric", name_a, name_b, "difference", "from", "to", "p", "N", f"{name_b} is")
    note = (
        f"Means over the N identities that both have; the difference is {name_b} - {name_a}, with "
        f"its 95 % interval and p by a paired bootstrap over identities ({ROUNDS} rounds; the "
        f"smallest p is {1 / ROUNDS:g}). Better and worse are said where p < {LEVEL:g}: of 20 "
        "metrics without any difference, about one seems to differ."
    )
    text: tuple[str, ...] = ()
    same = ("data", "people", "recordings", "photos")
    if any(a.facts.get(name) != b.facts.get(name) for name in same):
        text = (
            "The two were evaluated on different data: only people that both have are compared "
            "here, and recalls and matching, which depend on everyone else, do not compare.",
        )
    return Section("Differences", text, (Table("Metrics", heads, tuple(rows), note),))


def _paired(a: Mapping[str, float], b: Mapping[str, float]) -> NDArray[np.float64]:
    """List the values of the identities that both have [n 2], in the order of their names."""
    values = np.array([(a[name], b[name]) for name in sorted(a.keys() & b.keys())], np.float64)
    values = values.reshape(-1, 2)
    finite: NDArray[np.float64] = values[np.isfinite(values).all(axis=1)]
    return finite


def _side_by_side(a: Table, b: Table, name_a: str, name_b: str) -> Table:
    """Put the columns of two tables beside each other; those that are equal stay one."""
    ours, theirs = _by_name(a), _by_name(b)
    keys = list(dict.fromkeys([*ours, *theirs]))
    nothing: tuple[Cell, ...] = (None,) * len(a.heads)
    heads: list[str] = [a.heads[0]]
    columns: list[list[Cell]] = [[name for name, _ in keys]]
    for k, head in enumerate(a.heads[1:], start=1):
        left = [ours.get(key, nothing)[k] for key in keys]
        right = [theirs.get(key, nothing)[k] for key in keys]
        if left == right:
            heads, columns = [*heads, head], [*columns, left]
        else:
            heads += [f"{name_a}: {head}", f"{name_b}: {head}"]
            columns += [left, right]
    note = " ".join(dict.fromkeys(note for note in (a.note, b.note) if note))
    return Table(a.title, tuple(heads), tuple(zip(*columns, strict=True)), note)


def _by_name(table: Table) -> dict[tuple[Cell, int], Sequence[Cell]]:
    """Find rows by their first cell, and by how many before have the same."""
    rows: dict[tuple[Cell, int], Sequence[Cell]] = {}
    for row in table.rows:
        n = 0
        while (row[0], n) in rows:
            n += 1
        rows[row[0], n] = row
    return rows
