"""Names of identities: plain ASCII by transliteration, and folders renamed to it.

In order: how a name is spelled (`plain`, what an identity's folder is called; `key`, what a folder
and a row of a meta file are compared by), and `rename_identities`, which renames the folders of a
tree without losing a file. Plain names stay as they are, so that a new name is either free or
taken by an identity that keeps it: a collision, never a chain. Knows nothing of what is in a file.
"""

import filecmp
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from s2f.console import Progress, silent
from s2f.errors import DatasetError, OutputError
from s2f.files import folders
from s2f.layout import SPLIT_FOLDERS, refuse_levels

MAX_BYTES = 255  # of one name, on the file systems in use
_RESERVED = '/\\:*?"<>|'  # not in a name on every file system
_MISSING = {"\N{ARABIC LETTER ALEF}": "a", "\N{ARABIC TATWEEL}": ""}  # anyascii has none for these
_SOUNDLESS = ("Mn", "Mc", "Me", "Cf", "Sk")  # marks, joiners, directions: no letters of their own


def composed(name: str) -> str:
    """Give the one spelling (NFC) of all that differ only in how their accents are stored."""
    return unicodedata.normalize("NFC", name)


def plain(name: str) -> str:
    r"""Spell a name in ASCII that every file system takes, by transliteration.

    Every letter, digit and sign becomes one or more ASCII characters: `Žydrūnas_Savickas` is
    `Zydrunas_Savickas`, whether its accents are stored composed or not. White space, control
    characters and / \ : * ? " < > | become underscores; all other ASCII stays. A name is never
    made hidden: one that would begin with a dot begins with an underscore. Plain names are their
    own plain names. A `DatasetError` refuses one that is not text (bytes that are no UTF-8), has a
    character without an ASCII form, of which nothing is left, or that gets longer than 255 bytes.
    """
    from anyascii import anyascii

    pieces = []
    for character in composed(name):
        piece = _MISSING.get(character, anyascii(character))
        category = unicodedata.category(character)
        if category == "Cs":
            raise _unspeakable(name, "is not text: its bytes are no UTF-8")
        if category in ("Cc", "Zl", "Zp"):
            piece = "_"
        elif not piece and character not in _MISSING and category not in _SOUNDLESS:
            raise _unspeakable(name, f"has a character without an ASCII form, {character!a}")
        pieces.append("".join("_" if c.isspace() or c in _RESERVED else c for c in piece))
    spelled = "".join(pieces)
    if not spelled:
        raise _unspeakable(name, "leaves nothing in ASCII")
    if spelled.startswith(".") and not name.startswith("."):
        spelled = f"_{spelled}"
    if len(spelled) > MAX_BYTES:
        raise _unspeakable(name, f"is {len(spelled)} characters long in ASCII, over {MAX_BYTES}")
    return spelled


def bare(name: str) -> str:
    """Spell a name plain and without commas, which some lists of people have and others lack.

    Where it would begin with a dot, it begins with an underscore: it is to be seen, and no `..`.
    Raises as `plain`, and a `DatasetError` for a name of commas only.
    """
    spelled = plain(name).replace(",", "")
    if not spelled:
        raise _unspeakable(name, "is nothing but commas")
    return f"_{spelled}" if spelled.startswith(".") else spelled


def key(name: str) -> str:
    """Give what all spellings of a name have in common: bare, in small letters.

    A name that has no bare form is only equal to itself.
    """
    try:
        return bare(name).casefold()
    except DatasetError:
        return composed(name)


def _unspeakable(name: str, why: str) -> DatasetError:
    return DatasetError(f"{name}: {why}", hint="rename it by hand")


@dataclass(frozen=True)
class Renaming:
    """Folders that get one name: one of them is renamed, several are merged."""

    parent: Path  # the folder they are in
    old: tuple[str, ...]  # their names, sorted
    new: str  # the plain name


@dataclass(frozen=True)
class NamesReport:
    """What became of the identities' names."""

    tree: Path
    renamed: tuple[Renaming, ...]  # single folders with a new name
    merged: tuple[Renaming, ...]  # folders that became one
    failed: tuple[DatasetError, ...]  # no plain name, or a collision: these keep their names
    unchanged: int  # folders whose names were plain
    dry_run: bool  # whether this only says what would be done


def rename_identities(
    tree: Path, *, merge: bool = False, dry_run: bool = False, progress: Progress = silent
) -> NamesReport:
    """Give the folders of a tree of identities, or of splits of them, plain names.

    Each folder is renamed at once. Merging moves file by file, each at once, so that a run that
    was killed is finished by the same run. Folders that get one name are reported, or become one
    with `merge`: files of one name in them are one file if their bytes are equal; if not, these
    folders stay as they are and are reported. Raises a `DatasetError` if a folder of identities
    cannot be listed, or holds folders that are no people (`wav`, `dev`), and an `OutputError` if
    one cannot be renamed.
    """
    planned, failed, unchanged = _plan(tree)
    done: list[Renaming] = []
    for k, item in enumerate(planned):
        progress(k, len(planned), item.new)
        try:
            if len(item.old) > 1 and not merge:
                raise _collision(item, "would all be", "look at them, then give --merge")
            owners = _owners(item) if len(item.old) > 1 else {}
        except DatasetError as error:
            failed.append(error)
            continue
        if not dry_run:
            _apply(item, owners)
        done.append(item)
    progress(len(planned), len(planned), "done")
    renamed = tuple(item for item in done if len(item.old) == 1)
    merged = tuple(item for item in done if len(item.old) > 1)
    return NamesReport(tree, renamed, merged, tuple(failed), unchanged, dry_run)


def _plan(tree: Path) -> tuple[list[Renaming], list[DatasetError], int]:
    """Decide what is renamed, what cannot be, and how many stay; those of each split by itself."""
    inside = folders(tree)
    is_split = inside and set(inside) <= set(SPLIT_FOLDERS)
    renamings, failed, unchanged = [], [], 0
    for parent in [tree / name for name in inside] if is_split else [tree]:
        groups: dict[str, dict[str, str]] = defaultdict(dict)
        identities = folders(parent)
        refuse_levels(parent, identities)
        for old in identities:
            try:
                new = plain(old)
            except DatasetError as error:
                failed.append(DatasetError(f"{parent}{os.sep}{error.message}", hint=error.hint))
            else:
                groups[new.casefold()][old] = new  # what differs in case only collides too
        for members in groups.values():
            item = Renaming(parent, tuple(members), min(members.values()))
            if item.old == (item.new,):
                unchanged += 1
            elif item.new not in item.old and os.path.lexists(parent / item.new):
                what = "would be what is there and no folder,"
                failed.append(_collision(item, what, "remove that"))
            else:
                renamings.append(item)
    return renamings, failed, unchanged


def _collision(item: Renaming, what: str, hint: str) -> DatasetError:
    old = ", ".join(map(repr, item.old))
    return DatasetError(f"{item.parent}: {old} {what} {item.new!r}", hint=hint)


def _owners(item: Renaming) -> dict[str, list[str]]:
    """Find which folders have which file, hidden ones too, and refuse what cannot be merged."""
    if any((item.parent / old).is_symlink() for old in item.old):
        raise _collision(item, "are links, and cannot be merged to", "rename or remove the link")
    owners: dict[str, list[str]] = defaultdict(list)
    try:
        for old in item.old:
            for name in sorted(_contents(item.parent / old)):
                owners[name].append(old)
        for name, those in owners.items():
            first, *others = (item.parent / old / name for old in those)
            is_folder = any(_is_real_folder(item.parent / old / name) for old in item.old)
            if is_folder or not all(_same(first, other) for other in others):
                what = f"have different files {name!r} and cannot be merged to"
                raise _collision(item, what, "rename or remove one of these files")
    except OSError as error:
        message = f"{error.filename}: cannot be read: {error.strerror}"
        raise DatasetError(message, hint="check its permissions") from error
    return owners


def _contents(folder: Path) -> Iterator[str]:
    """List all that is no folder, hidden files too; links to folders are not followed."""

    def refuse(error: OSError) -> None:
        raise error

    for here, names, files in os.walk(folder, onerror=refuse):
        for path in (Path(here, name) for name in (*files, *names)):
            if not _is_real_folder(path):
                yield str(path.relative_to(folder))


def _is_real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _same(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and one.readlink() == other.readlink()
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def _apply(item: Renaming, owners: dict[str, list[str]]) -> None:
    """Rename the first folder, where none has the name, and move the others' files there."""
    final = item.parent / item.new
    first = item.new if item.new in item.old else item.old[0]
    try:
        if first != item.new:
            (item.parent / first).replace(final)
        for name, those in owners.items():
            target = final / name
            for source in (item.parent / old / name for old in those if old != item.new):
                if os.path.lexists(target):
                    source.unlink(missing_ok=True)  # the same bytes
                else:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    source.replace(target)
        for old in item.old:
            if old not in (first, item.new):
                for here, _, _ in os.walk(item.parent / old, topdown=False):
                    Path(here).rmdir()
    except OSError as error:
        message = f"{error.filename or final}: cannot be moved to {final}: {error.strerror}"
        hint = "check that the tree can be written, and what is in it"
        raise OutputError(message, hint=hint) from error
