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

_Identity = tuple[int, int]  # of a folder, however it was reached: device and inode


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
    return [_file(entry, path) for entry, path in _below(str(folder), "", wants, passed)]


def names(folder: Path, wants: Wants = lambda name: True) -> Iterator[str]:
    """List the paths that `files` gives, without a look at the files.

    Raises:
        DatasetError: if a folder cannot be read.
    """
    return (path for _, path in _below(str(folder), "", wants, []))


def folders(folder: Path) -> list[str]:
    """List the names of the folders in a folder, sorted, but for those that `files` passes over.

    Raises:
        DatasetError: if it cannot be read.
    """
    return [entry.name for entry in _scan(str(folder), ())[1] if _is_folder(entry)]


def is_seen(name: str) -> bool:
    """Tell whether a file or folder of this name counts, and is not passed over."""
    return not name.startswith(".") and name != "__MACOSX"


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


def _identity(folder: str | Path) -> _Identity:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def _below(
    folder: str, inside: str, wants: Wants, passed: Sequence[_Identity]
) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Yield the files of a folder, whose place in the tree is `inside`, except `passed` ones."""
    identity, entries = _scan(folder, passed)
    for entry in entries:
        path = inside + entry.name
        if _is_folder(entry):
            yield from _below(entry.path, f"{path}/", wants, [*passed, identity])
        elif wants(entry.name):
            yield entry, path


def _scan(folder: str, passed: Sequence[_Identity]) -> tuple[_Identity, list[os.DirEntry[str]]]:
    """List a folder itself, sorted; one that is `passed` is empty."""
    try:
        identity = _identity(folder)
        if identity in passed:
            return identity, []
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(
            f"{folder}: cannot be listed: {error.strerror or error}",
            hint="check its permissions, or remove it",
        ) from error
    return identity, [entry for entry in entries if is_seen(entry.name)]


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
