"""Who goes to which split: strata of equal labels, exact shares, and chance from a seed.

In order: `labels` reads each identity's from a csv file, `draw` deals the identities out, with
`apportion` to say how many of each stratum. Pure data: knows nothing of trees.
"""

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from s2f import tables
from s2f.errors import DatasetError, UsageError
from s2f.spelling import composed, key

MANY = 10  # values of a column; with more it must be shown that they are groups

Values = tuple[str | None, ...]
"""An identity's labels, one a column, None where it has none. Equal ones are a stratum."""


@dataclass(frozen=True)
class Labels:
    """What a csv file says of some identities.

    Attributes:
        columns: the labels' names.
        values: those of the identities that have a row.
        strangers: names in the file that are no identity's.
    """

    columns: tuple[str, ...] = ()
    values: Mapping[str, Values] | None = None
    strangers: tuple[str, ...] = ()

    def of(self, identity: str) -> Values:
        """Give an identity's labels; without a row it has none of them."""
        return (self.values or {}).get(identity, (None,) * len(self.columns))


def labels(path: Path, identities: Collection[str], columns: Sequence[str] | None = None) -> Labels:
    """Read the labels of identities.

    The column that names the most identities is taken for their names, which are compared as
    folders and meta files are (see `spelling`). A column whose last word is age, of numbers only,
    becomes decades. Others must be groups already: more than 10 different values that are numbers,
    or that less than two people share on average, are refused.

    Args:
        path: a csv file with a header.
        identities: their names.
        columns: which labels; None for all columns but the names.

    Raises:
        DatasetError: if the file cannot be read, names no identity, gives one identity different
            labels, or a column is no label.
        UsageError: if a column is not there.
    """
    table = tables.read(path)
    match = _matcher(identities)
    found = [[match(cell) for cell in table.column(k)] for k in range(len(table.columns))]
    names = max(range(len(found)), key=lambda k: len(set(found[k]) - {None}))
    if not set(found[names]) - {None}:
        raise DatasetError(
            f"{path}: no column names a folder, such as {min(identities)!r}",
            hint="give the identities' folder names in one column",
        )
    others = [name for name in table.columns if name != table.columns[names]]
    chosen = others if columns is None else list(dict.fromkeys(columns))
    for name in chosen:
        if name not in others:
            raise UsageError(
                f"{path}: has no label {name!r}", hint=f"it has {', '.join(others) or 'none'}"
            )
    cells = [_groups(path, name, table.column(table.columns.index(name))) for name in chosen]
    values: dict[str, Values] = {}
    for k, identity in enumerate(found[names]):
        if identity is not None:
            row = tuple(column[k] or None for column in cells)
            if values.setdefault(identity, row) != row:
                raise DatasetError(
                    f"{path}: line {table.lines[k]} gives {identity!r} other labels than a line "
                    f"before: {row} and {values[identity]}",
                    hint="give each identity one row, or choose labels with --columns",
                )
    column = table.column(names)
    strangers = {column[k] for k, who in enumerate(found[names]) if who is None and column[k]}
    return Labels(tuple(chosen), values, tuple(sorted(strangers)))


def _matcher(identities: Collection[str]) -> Callable[[str], str | None]:
    exact = {composed(name): name for name in identities}
    alike: dict[str, list[str]] = defaultdict(list)
    for name in identities:
        alike[key(name)].append(name)

    def match(cell: str) -> str | None:
        rivals = alike.get(key(cell), [])
        return exact.get(composed(cell)) or (rivals[0] if len(rivals) == 1 else None)

    return match


def _groups(path: Path, name: str, cells: Sequence[str]) -> list[str]:
    """Turn ages into decades, and refuse what groups nobody."""
    some = [cell for cell in cells if cell]
    numbers = all(re.fullmatch(r"[+-]?\d+(\.\d*)?", cell) for cell in some)
    words = re.findall("[a-z]+", name.lower())
    if numbers and words[-1:] == ["age"]:
        tens = [math.floor(float(cell) / 10) * 10 if cell else None for cell in cells]
        return ["" if ten is None else f"{ten}-{ten + 9}" for ten in tens]
    n_values = len(set(some))
    if n_values > MANY and (numbers or 2 * n_values > len(some)):
        raise DatasetError(
            f"{path}: column {name!r} has {n_values} different values in {len(some)} rows, "
            "and is no label that people share",
            hint="choose labels with --columns, or put a column of groups into the file",
        )
    return list(cells)


def apportion(sizes: Sequence[int], shares: Sequence[Fraction]) -> list[list[int]]:
    """Share out strata, exactly over all of them and to within one in each.

    Args:
        sizes: of the strata.
        shares: of at most three splits; their sum is 1.

    Returns:
        Counts [strata splits]: rows add up to the sizes, columns to the shares of the whole by
        largest remainder, and each count is the stratum's share rounded up or down. Such counts
        always exist: any one or two of three splits can be filled to their share of the whole
        rounded up, as whole people can where parts of people can.
    """
    counts = [[math.floor(size * share) for share in shares] for size in sizes]
    parted = [{k for k, share in enumerate(shares) if (size * share) % 1} for size in sizes]
    raised: list[set[int]] = [set() for _ in sizes]
    needs = [
        total - sum(row[k] for row in counts)
        for k, total in enumerate(_largest_remainder(sum(sizes), shares))
    ]
    for stratum, size in enumerate(sizes):
        for _ in range(size - sum(counts[stratum])):
            _raise_one(stratum, parted, raised, needs)
    return [
        [count + (k in up) for k, count in enumerate(row)]
        for row, up in zip(counts, raised, strict=True)
    ]


def _largest_remainder(size: int, shares: Sequence[Fraction]) -> list[int]:
    counts = [math.floor(size * share) for share in shares]
    order = sorted(range(len(shares)), key=lambda k: (counts[k] - size * shares[k], k))
    for k in order[: size - sum(counts)]:
        counts[k] += 1
    return counts


def _raise_one(
    stratum: int, parted: list[set[int]], raised: list[set[int]], needs: list[int]
) -> None:
    """Round one more share of a stratum up; where the split is full, another stratum moves on."""
    came: dict[int, tuple[int, int | None]] = {}  # split: the stratum that enters, and from where
    pending: list[tuple[int, int | None]] = [(stratum, None)]
    for mover, left in pending:  # grows: an augmenting path, breadth first
        for split in sorted(
            parted[mover] - raised[mover] - set(came), key=lambda k: (-needs[k], k)
        ):
            came[split] = mover, left
            if needs[split]:
                needs[split] -= 1
                at: int | None = split
                while at is not None:
                    enters, before = came[at]
                    raised[enters] = raised[enters] - {before} | {at}
                    at = before
                return
            pending += [(other, split) for other, up in enumerate(raised) if split in up]
    raise AssertionError("three splits can always be filled")


def draw(
    values: Mapping[str, Values], shares: Mapping[str, Fraction], seed: int
) -> tuple[dict[str, tuple[str, ...]], dict[Values, dict[str, int]]]:
    """Deal identities out to splits.

    Chance is a hash of the seed and the name, so that neither the order of a listing nor the
    machine matters; one identity more or less may move a few others.

    Args:
        values: the labels of each identity.
        shares: of at most three splits; their sum is 1.
        seed: of the hash.

    Returns:
        The identities of each split, sorted, and the counts of each stratum, sorted.
    """
    strata: dict[Values, list[str]] = defaultdict(list)
    for identity, labelled in values.items():
        strata[labelled].append(identity)
    order = sorted(strata, key=lambda stratum: _chance(seed, *stratum))
    counts = apportion([len(strata[stratum]) for stratum in order], list(shares.values()))
    splits: dict[str, list[str]] = {name: [] for name in shares}
    for stratum, row in zip(order, counts, strict=True):
        people = sorted(strata[stratum], key=lambda name: _chance(seed, composed(name)))
        for name, count in zip(shares, row, strict=True):
            splits[name] += people[:count]
            people = people[count:]
    table = {
        stratum: dict(zip(shares, row, strict=True))
        for stratum, row in zip(order, counts, strict=True)
    }
    by_labels = sorted(
        table, key=lambda stratum: [(label is None, label or "") for label in stratum]
    )
    return (
        {name: tuple(sorted(people)) for name, people in splits.items()},
        {stratum: table[stratum] for stratum in by_labels},
    )


def _chance(seed: int, *what: str | None) -> bytes:
    return hashlib.sha256(json.dumps([seed, *what]).encode()).digest()
