"""A tree of identities dealt out to train, val and test: no identity in two of them.

In order: `split_tree`, which places the files and leaves the record that guards them; the shares;
`labels_of`, which reads each identity's labels from a csv file; `deal_out`, which says who goes
where by equal labels (a stratum), exact shares and chance from a seed; and `apportion`, which says
how many of each stratum. Knows nothing of what is in a file.
"""

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from s2f import files
from s2f.console import Progress, silent
from s2f.errors import DatasetError, InputError, OutputError, UsageError
from s2f.files import Folder, Link, read_table
from s2f.layout import SPLIT_FOLDERS, SPLITS, refuse_levels
from s2f.names import composed, key

RECORD = "split.json"
MANY = 10  # values of a column; with more it must be shown that they are groups

Values = tuple[str | None, ...]
"""An identity's labels, one a column, None where it has none. Equal ones are a stratum."""


@dataclass(frozen=True)
class Stratum:
    """People of equal labels (None: unlabelled), and how many of them are in each split."""

    labels: Mapping[str, str | None]
    counts: Mapping[str, int]


@dataclass(frozen=True)
class SplitReport:
    """What became of the identities."""

    out: Path  # the folder of the splits
    splits: Mapping[str, tuple[str, ...]]  # the identities of each, sorted
    strata: tuple[Stratum, ...]  # sorted by their labels
    unlabelled: tuple[str, ...]  # identities without any label
    strangers: tuple[str, ...]  # names in the labels that are no identity's
    empty: tuple[str, ...]  # identities without a file: in no split
    loose: tuple[str, ...]  # files beside the identities: in no split
    made: int  # files that were placed
    kept: int  # files that were there
    failed: tuple[InputError, ...]  # files that could not be placed


def split_tree(
    tree: Path,
    out: Path,
    *,
    train: float = 0.8,
    val: float | None = None,
    by: Path | None = None,
    columns: Sequence[str] | None = None,
    seed: int = 0,
    link: Link = Link.HARD,
    wants: Callable[[str], bool] = lambda path: True,
    members: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> SplitReport:
    """Deal the identities of a tree, a folder each, out to `out/train`, `out/val` and `out/test`.

    All files of an identity go along, or those whose paths below the tree it `wants`. Shares are of
    the identities, 0 to 1; without `val` it gets half of what training leaves. The sizes are exact
    (largest remainder); labels (`columns`, or all, of the csv file `by`) make strata, each within
    one of its share, and people without labels are a stratum of their own. The same arguments give
    the same splits anywhere, and a second run changes nothing; `out` of other arguments is refused,
    by the record `split.json` that is written last, and by who is there. With `members`, the split
    of each identity by its name, nothing is dealt: those it does not have are for training.

    Raises a `DatasetError` if the tree has no identity, one in two spellings, or folders that are
    no people (`wav`, `dev`), or the labels cannot be used; a `UsageError` if the shares cannot be,
    the folders overlap, the tree is split already, or `out` holds another split or another run is
    at work there; an `OutputError` if `out` cannot be written.
    """
    share = shares(train, val)
    files.refuse_overlap(tree, out)
    identities, loose = _identities(tree, wants)
    found = labels_of(by, identities, columns)
    values = {identity: found.of(identity) for identity in identities}
    splits, counts = deal_out(values, share, seed) if members is None else sort_out(values, members)
    record = {
        "seed": seed,
        "shares": {name: float(part) for name, part in share.items()} if members is None else None,
        "labels": list(found.columns),
        "link": str(link),
        "counts": {name: len(people) for name, people in splits.items()},
        "members": {name: list(people) for name, people in splits.items()},
    }
    with files.alone_in(out):
        is_done = _refuse_another(out, record, splits)
        plan = [
            Folder(str(tree / who), str(out / name / who), tuple(identities[who]))
            for name, people in splits.items()
            for who in people
        ]
        placed = files.place_all(plan, link, progress=progress)
        if not is_done:
            files.write_bytes(out / RECORD, json.dumps(record, indent=1).encode())
    return SplitReport(
        out=out,
        splits=splits,
        strata=tuple(
            Stratum(dict(zip(found.columns, labels, strict=True)), row)
            for labels, row in counts.items()
        ),
        unlabelled=tuple(sorted(who for who, labels in values.items() if not any(labels))),
        strangers=found.strangers,
        empty=tuple(name for name in files.folders(tree) if name not in identities),
        loose=loose,
        **vars(placed),
    )


def _refuse_another(
    out: Path, record: Mapping[str, object], splits: Mapping[str, Sequence[str]]
) -> bool:
    """Tell whether `out` has this record already; refuse one that has another, or other people."""
    path, hint = out / RECORD, "choose another folder, or remove this one"
    try:
        there = json.loads(path.read_bytes())
    except FileNotFoundError:
        there = None
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: is no record of a split: {error}", hint=hint) from error
    if there is not None and there != record:
        raise UsageError(f"{out}: holds a split of other people or with other options", hint=hint)
    for name, people in splits.items():
        others = set(files.folders(out / name)) - set(people) if (out / name).is_dir() else ()
        if others:
            raise UsageError(f"{out / name / min(others)}: is not in this split", hint=hint)
    return there is not None


def _identities(
    tree: Path, wants: Callable[[str], bool]
) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """List the wanted files of each identity, below its folder, and those of none."""
    identities: dict[str, list[str]] = defaultdict(list)
    loose = []
    for path in filter(wants, files.names(tree)):
        identity, slash, name = path.partition("/")
        if slash:
            identities[identity].append(name)
        else:
            loose.append(path)
    if not identities:
        raise DatasetError(f"{tree}: holds no identity", hint="wanted a folder of files a person")
    if set(identities) <= set(SPLIT_FOLDERS):
        raise UsageError(f"{tree}: is split already", hint="give the tree it was made of")
    refuse_levels(tree, identities)
    spellings: dict[str, str] = {}
    for identity in identities:
        other = spellings.setdefault(composed(identity).casefold(), identity)
        if other != identity:
            message = f"{tree}: {other!r} and {identity!r} are one name in two spellings"
            hint = "join them with s2f prep names --merge, or rename one"
            raise DatasetError(message, hint=hint)
    return identities, tuple(loose)


def shares(train: float, val: float | None = None) -> dict[str, Fraction]:
    """Give each split its share, exact in the decimals as they are written.

    Without `val` it gets half of what training leaves. Raises a `UsageError` if a share is not
    in 0 to 1, or both are more than 1 together.
    """
    given = [share for share in (train, val) if share is not None]
    if all(math.isfinite(share) and share >= 0 for share in given):
        first, *second = (Fraction(str(share)) for share in given)
        rest = 1 - first
        half = second[0] if second else rest / 2
        if 0 <= half <= rest:
            return {"train": first, "val": half, "test": rest - half}
    message = f"shares of {' and '.join(map(str, given))} cannot be"
    hint = "give those of train and val from 0 to 1, together at most 1; what is left is for test"
    raise UsageError(message, hint=hint)


@dataclass(frozen=True)
class LabelColumns:
    """What a csv file says of some identities."""

    columns: tuple[str, ...] = ()  # the labels' names
    values: Mapping[str, Values] = field(default_factory=dict)  # of the identities with a row
    strangers: tuple[str, ...] = ()  # names in the file that are no identity's

    def of(self, identity: str) -> Values:
        """Give an identity's labels; without a row it has none of them."""
        return self.values.get(identity, (None,) * len(self.columns))


def labels_of(
    path: Path | None, identities: Collection[str], columns: Sequence[str] | None = None
) -> LabelColumns:
    """Read labels of identities, the chosen columns or all, from a csv file with a header.

    The column that names the most identities is taken for their names, which are compared as
    folders and meta files are (see `names`). A column whose last word is age, of numbers only,
    becomes decades. Others must be groups already: more than 10 different values that are numbers,
    or that less than two people share on average, are refused. Raises a `DatasetError` if the file
    cannot be read, names no identity, gives one identity different labels, or a column is no label;
    a `UsageError` if a column is not there, or columns are chosen and there is no file.
    """
    if path is None:
        if columns is not None:
            message = f"--columns {','.join(columns)}: there is no file of labels to choose from"
            raise UsageError(message, hint="give it with --by, or leave --columns out")
        return LabelColumns()
    table = read_table(path)
    match = matcher(identities)
    found = [[match(cell) for cell in table.column(k)] for k in range(len(table.columns))]
    at = max(range(len(found)), key=lambda k: len(set(found[k]) - {None}))
    who = found[at]
    if not set(who) - {None}:
        message = f"{path}: no column names a folder, such as {min(identities)!r}"
        raise DatasetError(message, hint="give the identities' folder names in one column")
    others = [name for k, name in enumerate(table.columns) if k != at]
    chosen = others if columns is None else list(dict.fromkeys(columns))
    if missing := [name for name in chosen if name not in others]:
        hint = f"it has {', '.join(others) or 'none'}"
        raise UsageError(f"{path}: has no label {missing[0]!r}", hint=hint)
    cells = [_groups(path, name, table.column(table.columns.index(name))) for name in chosen]
    values: dict[str, Values] = {}
    for k, identity in enumerate(who):
        row = tuple(column[k] or None for column in cells)
        if identity is not None and values.setdefault(identity, row) != row:
            message = (
                f"{path}: line {table.lines[k]} gives {identity!r} other labels than a line "
                f"before: {row} and {values[identity]}"
            )
            hint = "give each identity one row, or choose labels with --columns"
            raise DatasetError(message, hint=hint)
    named = zip(table.column(at), who, strict=True)
    strangers = {name for name, identity in named if identity is None and name}
    return LabelColumns(tuple(chosen), values, tuple(sorted(strangers)))


def matcher(identities: Collection[str]) -> Callable[[str], str | None]:
    """Tell which identity a name is, in any spelling (see `names`); None if it is not clear."""
    exact = {composed(name): name for name in identities}
    alike: dict[str, list[str]] = defaultdict(list)
    for name in identities:
        alike[key(name)].append(name)

    def match(cell: str) -> str | None:
        rivals = alike.get(key(cell), [])
        return exact.get(composed(cell)) or (rivals[0] if len(rivals) == 1 else None)

    return match


def _groups(path: Path, name: str, cells: Sequence[str]) -> Sequence[str]:
    """Turn ages into decades, and refuse what groups nobody."""
    some = [cell for cell in cells if cell]
    numbers = all(re.fullmatch(r"[+-]?\d+(\.\d*)?", cell) for cell in some)
    words = re.findall("[a-z]+", name.lower())
    if numbers and words[-1:] == ["age"]:
        tens = [math.floor(float(cell) / 10) * 10 if cell else None for cell in cells]
        return ["" if ten is None else f"{ten}-{ten + 9}" for ten in tens]
    n_values = len(set(some))
    if n_values > MANY and (numbers or 2 * n_values > len(some)):
        message = f"{path}: column {name!r} has {n_values} different values in {len(some)} rows"
        hint = "choose labels with --columns, or put a column of groups into the file"
        raise DatasetError(f"{message}, and is no label that people share", hint=hint)
    return cells


def deal_out(
    values: Mapping[str, Values], shares: Mapping[str, Fraction], seed: int
) -> tuple[dict[str, tuple[str, ...]], dict[Values, dict[str, int]]]:
    """Deal identities, each with its labels, out to at most three splits, whose shares sum to 1.

    Chance is a hash of the seed and the name: neither the order of a listing nor the machine
    matters. Gives the identities of each split, and the counts of each stratum, sorted.
    """
    strata: dict[Values, list[str]] = defaultdict(list)
    for identity, labelled in values.items():
        strata[labelled].append(identity)
    order = sorted(strata, key=lambda stratum: _chance(seed, *stratum))
    counts = apportion([len(strata[stratum]) for stratum in order], list(shares.values()))
    splits: dict[str, list[str]] = {name: [] for name in shares}
    table: dict[Values, dict[str, int]] = {}
    for stratum, row in zip(order, counts, strict=True):
        table[stratum] = dict(zip(shares, row, strict=True))
        people = sorted(strata[stratum], key=lambda name: _chance(seed, composed(name)))
        for name, count in table[stratum].items():
            splits[name] += people[:count]
            people = people[count:]
    return (
        {name: tuple(sorted(people)) for name, people in splits.items()},
        {stratum: table[stratum] for stratum in _in_order(table)},
    )


def sort_out(
    values: Mapping[str, Values], members: Mapping[str, str]
) -> tuple[dict[str, tuple[str, ...]], dict[Values, dict[str, int]]]:
    """Put identities, each with its labels, into the splits that are said; as `deal_out` gives it.

    Those of whom nothing is said are for training.
    """
    where = {who: members.get(who, "train") for who in values}
    splits = {name: tuple(sorted(w for w in where if where[w] == name)) for name in SPLITS}
    table = {labels: dict.fromkeys(SPLITS, 0) for labels in _in_order(values.values())}
    for who, labels in values.items():
        table[labels][where[who]] += 1
    return splits, table


def _in_order(labels: Iterable[Values]) -> list[Values]:
    """Sort labels, each once, unknown ones last."""
    return sorted(set(labels), key=lambda row: [(one is None, one or "") for one in row])


def _chance(seed: int, *what: str | None) -> bytes:
    return hashlib.sha256(json.dumps([seed, *what]).encode()).digest()


def apportion(sizes: Sequence[int], shares: Sequence[Fraction]) -> list[list[int]]:
    """Share out strata, exactly over all of them and to within one in each: [strata splits].

    Rows add up to the sizes, columns to the shares of the whole by largest remainder, and each
    count is the stratum's share rounded up or down. Such counts always exist for at most three
    splits, whose shares sum to 1: any one or two of them can be filled to their share of the whole
    rounded up, as whole people can where parts of people can.
    """
    counts = [[math.floor(size * share) for share in shares] for size in sizes]
    parted = [{k for k, share in enumerate(shares) if (size * share) % 1} for size in sizes]
    raised: list[set[int]] = [set() for _ in sizes]
    whole = sum(sizes)
    totals = [math.floor(whole * share) for share in shares]
    order = sorted(range(len(shares)), key=lambda k: (totals[k] - whole * shares[k], k))
    for k in order[: whole - sum(totals)]:
        totals[k] += 1
    needs = [total - sum(row[k] for row in counts) for k, total in enumerate(totals)]
    for stratum, size in enumerate(sizes):
        for _ in range(size - sum(counts[stratum])):
            _raise_one(stratum, parted, raised, needs)
    return [
        [n + (k in up) for k, n in enumerate(row)] for row, up in zip(counts, raised, strict=True)
    ]


def _raise_one(at: int, parted: list[set[int]], raised: list[set[int]], needs: list[int]) -> None:
    """Round one more share of a stratum up; where the split is full, another stratum moves on."""
    came: dict[int, tuple[int, int | None]] = {}  # split: the stratum that enters, and from where
    pending: list[tuple[int, int | None]] = [(at, None)]
    for mover, left in pending:  # grows: an augmenting path, breadth first
        free = parted[mover] - raised[mover] - set(came)
        for split in sorted(free, key=lambda k: (-needs[k], k)):
            came[split] = mover, left
            if needs[split]:
                needs[split] -= 1
                to: int | None = split
                while to is not None:
                    enters, before = came[to]
                    raised[enters] = raised[enters] - {before} | {to}
                    to = before
                return
            pending += [(other, split) for other, up in enumerate(raised) if split in up]
    raise AssertionError("three splits can always be filled")
