"""One tree of files made of another's without reading them: links or copies.

Everything here may be repeated: a link or copy that is there and right is kept, so that a run
that was killed is finished by running it again, and no partial file is ever seen under its name.
"""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from s2f.errors import InputError, OutputError, UsageError
from s2f.runtime import Progress, part, silent, unwritable

_EVERY = 256  # files between two reports of progress


class Link(StrEnum):
    """How a file gets a second place."""

    HARD = "hard"
    COPY = "copy"
    SYMLINK = "symlink"


@dataclass(frozen=True)
class Folder:
    """Files to be placed: those of one folder, by their names below it, under another."""

    source: str
    target: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Placed:
    """What became of files: how many were placed, were there, and which could not be."""

    made: int
    kept: int
    failed: tuple[InputError, ...]


def _holds(folder: str, places: Sequence[str]) -> bool:
    """Tell whether any of some places is a folder or in it."""
    return any(os.path.commonpath([folder, place]) == folder for place in places)


def refuse_overlap(tree: Path, out: Path) -> None:
    """Refuse an output that lies in its own source, or the other way round.

    Raises:
        UsageError: if one of the folders is or holds the other.
    """
    one, other = os.path.realpath(tree), os.path.realpath(out)
    if _holds(one, [other]) or _holds(other, [one]):
        raise UsageError(f"{out}: overlaps with {tree}", hint="choose a folder outside of it")


def place_all(
    plan: Sequence[Folder], link: Link = Link.HARD, *, progress: Progress = silent
) -> Placed:
    """Place all files of a plan; one that cannot be used costs itself only.

    Raises:
        OutputError: if nothing can be placed there.
    """
    total = sum(len(folder.names) for folder in plan)
    made = kept = 0
    failed: list[InputError] = []
    for folder in plan:
        for name in folder.names:
            if not (made + kept + len(failed)) % _EVERY:
                progress(made + kept + len(failed), total, folder.source)
            try:
                if place(
                    os.path.join(folder.source, name), os.path.join(folder.target, name), link
                ):
                    made += 1
                else:
                    kept += 1
            except InputError as error:
                failed.append(error)
    progress(total, total, "done")
    return Placed(made, kept, tuple(failed))


def place(source: str, target: str, link: Link) -> bool:
    """Give a file a second place; folders on the way are made.

    What is there already is kept if it is right: the same file for a hard link, the same size and
    time for a copy, a link to the same place for a symlink. It is replaced if it is older than the
    source. Symlinks are relative, so that both trees can be moved together.

    Returns:
        Whether it was placed; False if it was there.

    Raises:
        InputError: if the source is gone or no regular file, or something else is at the target.
        OutputError: if the target's folder takes no such file.
    """
    try:
        from_ = os.stat(source)
    except OSError as error:
        raise _unusable(source, f"cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(from_.st_mode):
        raise _unusable(source, "is no regular file")
    try:
        there = os.lstat(target)
    except FileNotFoundError:
        there = None
    except OSError as error:
        raise _refused(target, error) from error
    if there is not None:
        if _is_right(source, from_, target, there, link):
            return False
        if not stat.S_ISREG(there.st_mode) or there.st_mtime_ns >= from_.st_mtime_ns:
            raise InputError(f"{source}: another file is at {target}", hint="move that one away")
    try:
        if there is None and link is not Link.COPY:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            _LINK[link](source, target)
        else:
            with part(Path(target)) as temporary:
                _LINK[link](source, str(temporary))
    except OSError as error:
        raise _refused(target, error) from error
    return True


def _is_right(
    source: str, from_: os.stat_result, target: str, there: os.stat_result, link: Link
) -> bool:
    if link is Link.SYMLINK:
        return stat.S_ISLNK(there.st_mode) and os.readlink(target) == _way(source, target)
    same = os.path.samestat(from_, there)
    if link is Link.HARD:
        return same
    figures = (there.st_size, there.st_mtime_ns) == (from_.st_size, from_.st_mtime_ns)
    return stat.S_ISREG(there.st_mode) and figures and not same


def _hard(source: str, target: str) -> None:
    os.link(os.path.realpath(source) if os.path.islink(source) else source, target)


def _copy(source: str, target: str) -> None:
    try:
        file = open(source, "rb")
    except OSError as error:
        raise _unusable(source, f"cannot be read: {error.strerror}") from error
    with file, open(target, "wb") as copy:
        shutil.copyfileobj(file, copy, 1 << 20)
        copy.flush()
        os.fsync(copy.fileno())
    times = os.stat(source)
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))


def _symlink(source: str, target: str) -> None:
    os.symlink(_way(source, target), target)


def _way(source: str, target: str) -> str:
    """Path from a target's folder to its source."""
    folder, name = os.path.split(source)
    start = os.path.realpath(os.path.dirname(target))
    return os.path.join(os.path.relpath(os.path.realpath(folder), start), name)


_LINK: dict[Link, Callable[[str, str], None]] = {
    Link.HARD: _hard,
    Link.COPY: _copy,
    Link.SYMLINK: _symlink,
}


def _unusable(source: str, why: str) -> InputError:
    return InputError(f"{source}: {why}", hint="repair it or take it away")


def _refused(target: str, error: OSError) -> InputError | OutputError:
    """Tell what one name costs from what all would cost."""
    message = f"{target}: cannot be written: {error.strerror}"
    if error.errno == errno.ENAMETOOLONG:
        return InputError(message, hint="shorten the name")
    if error.errno == errno.EXDEV:
        return OutputError(
            f"{target}: a hard link cannot reach another file system",
            hint="give --link copy or --link symlink, or choose a place beside the source",
        )
    if error.errno in (errno.EPERM, errno.EMLINK, errno.ENOTSUP):
        return OutputError(message, hint="this file system refuses the link; give --link copy")
    return unwritable(Path(target), error)
