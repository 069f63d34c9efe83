"""What files a tree holds: names, sizes and times, never contents.

Every command that takes a folder lists it here, so that all of them agree on what is passed over
(hidden files, `__MACOSX`), in which order files come, and where links lead.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from s2f.errors import DatasetError, InputError

Wants = Callable[[str], bool]
"""Whether a file is wanted, by its name without folders."""


class File(NamedTuple):
    """A file of a tree.

    Attributes:
        path: below the folder that was listed, with slashes.
        size: bytes; -1 if it is no regular file, or a link that leads nowhere.
        mtime_ns: when it was last changed.
    """

    path: str
    size: int
    mtime_ns: int


def files(folder: Path, wants: Wants, *, without: Path | None = None) -> list[File]:
    """List the wanted files of a folder at every depth, in the order of their names.

    Links to folders are followed, but not to a folder that they lie in. Hidden files and folders
    and `__MACOSX` are passed over.

    Args:
        folder: to list.
        wants: which files.
        without: a folder that is passed over.

    Raises:
        DatasetError: if a folder cannot be read.
    """
    passed = [_identity(without)] if without else []
    return list(_below(str(folder), "", wants, passed))


def find(paths: Sequence[Path], wants: Wants, sources: str, error: type[InputError]) -> list[Path]:
    """List the wanted files among files, kept whatever their names, and folders.

    Args:
        paths: files and folders.
        wants: which files of the folders.
        sources: what is looked for, for messages: `recordings`.
        error: to raise.

    Returns:
        The files in the order of `paths`, sorted within a folder, each once.

    Raises:
        InputError: `error`, if a path is missing or a folder holds none.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not os.path.exists(path):
            raise error(f"{path}: does not exist", hint="check its path")
        if not os.path.isdir(path):
            found[path] = None
            continue
        inside = files(path, wants)
        if not inside:
            raise error(f"{path}: holds no {sources}", hint=f"name the folder of the {sources}")
        found.update((path / file.path, None) for file in inside)
    return list(found)


def _identity(folder: str | Path) -> tuple[int, int]:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def _below(folder: str, inside: str, wants: Wants, passed: list[tuple[int, int]]) -> Iterator[File]:
    """Yield the files of a folder, whose place in the tree is `inside`, except `passed` ones."""
    try:
        identity = _identity(folder)
        if identity in passed:
            return
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(
            f"{folder}: cannot be listed: {error.strerror or error}",
            hint="check its permissions, or remove it",
        ) from error
    for entry in entries:
        name = entry.name
        if name.startswith(".") or name == "__MACOSX":
            continue
        if _is_folder(entry):
            yield from _below(entry.path, f"{inside}{name}/", wants, [*passed, identity])
        elif wants(name):
            yield _file(entry, inside + name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _file(entry: os.DirEntry[str], path: str) -> File:
    try:
        status = entry.stat()
    except OSError:  # a link that leads nowhere
        return File(path, -1, 0)
    return File(path, status.st_size if stat.S_ISREG(status.st_mode) else -1, status.st_mtime_ns)
