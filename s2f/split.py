"""A tree of identities dealt out to train, val and test: no identity in two of them.

Who goes where is for `strata`; here are the trees, and the record that guards them.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from s2f import links, listing, runtime, strata
from s2f.errors import DatasetError, InputError, OutputError, UsageError
from s2f.layout import SPLIT_FOLDERS
from s2f.links import Folder, Link
from s2f.runtime import Progress, alone_in, silent
from s2f.spelling import composed

RECORD = "split.json"
_ELSEWHERE = "choose another folder, or remove this one"


@dataclass(frozen=True)
class Stratum:
    """People of equal labels (None: unlabelled), and how many of them are in each split."""

    labels: Mapping[str, str | None]
    counts: Mapping[str, int]


@dataclass(frozen=True)
class SplitReport:
    """What became of the identities.

    Attributes:
        out: the folder of the splits.
        splits: the identities of each, sorted.
        strata: sorted by their labels.
        unlabelled: identities without any label.
        strangers: names in the labels that are no identity's.
        empty: identities without a file: in no split.
        loose: files beside the identities: in no split.
        made: files that were placed.
        kept: files that were there.
        failed: files that could not be placed.
    """

    out: Path
    splits: Mapping[str, tuple[str, ...]]
    strata: tuple[Stratum, ...]
    unlabelled: tuple[str, ...]
    strangers: tuple[str, ...]
    empty: tuple[str, ...]
    loose: tuple[str, ...]
    made: int
    kept: int
    failed: tuple[InputError, ...]


def shares(train: float, val: float | None = None) -> dict[str, Fraction]:
    """Give each split its share, exact in the decimals as they are written.

    Args:
        train: 0 to 1.
        val: 0 to 1 - train; None for half of what training leaves.

    Raises:
        UsageError: if a share is out of range.
    """
    given = [share for share in (train, val) if share is not None]
    if all(math.isfinite(share) and share >= 0 for share in given):
        first, *second = (Fraction(str(share)) for share in given)
        rest = 1 - first
        half = second[0] if second else rest / 2
        if 0 <= half <= rest:
            return {"train": first, "val": half, "test": rest - half}
    raise UsageError(
        f"shares of {' and '.join(map(str, given))} cannot be",
        hint="give --train and --val from 0 to 1, together at most 1; what is left is for test",
    )


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
    progress: Progress = silent,
) -> SplitReport:
    """Deal the identities of a tree out to `out/train`, `out/val` and `out/test`.

    All files of an identity go along. The sizes are exact (largest remainder), every stratum is
    within one of its share, and people without labels are a stratum of their own. The same
    arguments give the same splits anywhere, and a second run changes nothing; `out` of other
    arguments is refused, by the record `split.json` that is written last, and by who is there.

    Args:
        tree: a folder an identity.
        out: new folder, or one of the same split.
        train: share of the identities, 0 to 1.
        val: share; None for half of what training leaves.
        by: csv file of labels to stratify by; None for one stratum.
        columns: which labels; None for all.
        seed: of who goes where.
        link: how files get their places.
        progress: told of files.

    Raises:
        DatasetError: if the tree has no identity, one in two spellings, or the labels cannot
            be used.
        UsageError: if the shares cannot be, the folders overlap, the tree is split already, or
            `out` holds another split.
        OutputError: if `out` cannot be written.
    """
    share = shares(train, val)
    links.refuse_overlap(tree, out)
    files, loose = _identities(tree)
    found = strata.labels(by, files, columns) if by else strata.Labels()
    values = {identity: found.of(identity) for identity in files}
    splits, counts = strata.draw(values, share, seed)
    record = {
        "seed": seed,
        "shares": {name: float(part) for name, part in share.items()},
        "labels": list(found.columns),
        "link": str(link),
        "counts": {name: len(people) for name, people in splits.items()},
        "members": {name: list(people) for name, people in splits.items()},
    }
    with alone_in(out):
        is_done = _refuse_another(out, record)
        placed = links.place_all(
            [
                Folder(str(tree / identity), str(out / name / identity), tuple(files[identity]))
                for name, people in splits.items()
                for identity in people
            ],
            link,
            progress=progress,
        )
        if not is_done:
            runtime.write(out / RECORD, json.dumps(record, indent=1).encode())
    return SplitReport(
        out=out,
        splits=splits,
        strata=tuple(
            Stratum(dict(zip(found.columns, labels, strict=True)), row)
            for labels, row in counts.items()
        ),
        unlabelled=tuple(sorted(who for who, labels in values.items() if not any(labels))),
        strangers=found.strangers,
        empty=tuple(name for name in listing.folders(tree) if name not in files),
        loose=loose,
        made=placed.made,
        kept=placed.kept,
        failed=placed.failed,
    )


def _identities(tree: Path) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """List the files of each identity, below its folder, and those of none."""
    files: dict[str, list[str]] = defaultdict(list)
    loose = []
    for path in listing.names(tree):
        identity, slash, name = path.partition("/")
        if slash:
            files[identity].append(name)
        else:
            loose.append(path)
    if not files:
        raise DatasetError(f"{tree}: holds no identity", hint="wanted a folder of files a person")
    if set(files) <= set(SPLIT_FOLDERS):
        raise UsageError(f"{tree}: is split already", hint="give the tree it was made of")
    spellings: dict[str, str] = {}
    for identity in files:
        other = spellings.setdefault(composed(identity).casefold(), identity)
        if other != identity:
            raise DatasetError(
                f"{tree}: {other!r} and {identity!r} are one name in two spellings",
                hint="join them with s2f prep names --merge, or rename one",
            )
    return dict(files), tuple(loose)


def _refuse_another(out: Path, record: Mapping[str, object]) -> bool:
    """Tell whether `out` has this record already; refuse one that has another, or other people."""
    path = out / RECORD
    try:
        there = json.loads(path.read_bytes())
    except FileNotFoundError:
        there = None
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: is no record of a split: {error}", hint=_ELSEWHERE) from error
    if there is not None and there != json.loads(json.dumps(record)):
        raise UsageError(
            f"{out}: holds a split of other people or with other options", hint=_ELSEWHERE
        )
    members = record["members"]
    assert isinstance(members, dict)
    for name, people in members.items():
        if (out / name).is_dir():
            strangers = set(listing.folders(out / name)) - set(people)
            if strangers:
                raise UsageError(
                    f"{out / name / min(strangers)}: is not in this split", hint=_ELSEWHERE
                )
    return there is not None
