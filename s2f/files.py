"""Files and folders: whole or not at all, held against other runs, listed, linked; .npy and csv.

Every command that takes a folder lists it here, so that all agree on what is passed over, in which
order files come, and where links lead; what is passed over is counted, so that every file is told
of, but for hidden ones. What is placed may be placed again, after a kill.
"""

import contextlib
import csv
import errno
import functools
import hashlib
import io
import json
import math
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import threading
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self

from s2f.console import Progress, silent
from s2f.errors import DatasetError, InputError, OutputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Name a temporary file beside `path` that takes its name only when all went well.

    Several processes may write `path` at once; what one leaves that is killed, the next that writes
    in the folder deletes. Raises an `OutputError` if the folder or the file cannot be written.
    """
    with writing(path), put_away_at_the_end(_temporary(path)) as temporary:
        temporary.touch(exist_ok=False)  # mkstemp's would be private
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open the temporary file of `atomic_path` for writing; it raises the same."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file as `atomic_path` does, which raises the same."""
    with atomic_write(path) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Make a temporary folder beside `path` that takes its name only when all went well.

    There may be an empty folder of that name; one that holds something gives way to `replace`.
    Killed while the two change places, the old one gets its name again by whatever writes beside it
    next. Raises an `OutputError` if it cannot be made.
    """
    with writing(path), put_away_at_the_end(_temporary(path)) as temporary:
        new, old = temporary / "new" / path.name, temporary / OLD / path.name
        new.mkdir(parents=True)
        old.parent.mkdir()
        yield new
        with _TAKING_ITS_PLACE:
            try:
                if replace and path.exists():
                    path.replace(old)
                new.replace(path)
            finally:
                _put_back(temporary)


_TAKING_ITS_PLACE = threading.Lock()  # or the process might end between the two
# NumPy evaluates an array's header, which Python 3.11 cannot in two threads (gh-106905).
_PARSING = threading.Lock()
_TEMPORARY: set[Path] = set()  # files and folders
_LASTING: set[Path] = set()  # folders, as long as the process
_SWEPT: set[int] = set()  # hashes of folders without what others left
OLD = "old"  # folder in a temporary one: what gives way
_RUN = re.compile(r"([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}\Z")
_REST = re.compile(rf"\.s2f-{_RUN.pattern}")


def _temporary(path: Path) -> Path:
    """Name something temporary beside `path`, without what processes left there that are gone."""
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    if hash(folder) not in _SWEPT:
        _SWEPT.add(hash(folder))
        sweep(folder)
    return folder / f".s2f-{run_name()}"


def sweep(folder: Path) -> None:
    """Delete what processes of this machine left in a folder that are gone."""
    with contextlib.suppress(PermissionError):  # who may write there need not see what there is
        for name in os.listdir(folder):
            if _REST.fullmatch(name) and is_left(name):
                _remove_rest(folder / name)


def run_name() -> str:
    """Name a run of this process as no other is, on any machine."""
    return f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"


def is_left(name: str) -> bool:
    """Tell whether what ends with the name of a run is left of a process of this machine.

    What is held by `put_away_at_the_end` is not. Of other machines nothing is known.
    """
    run = _RUN.search(name)
    return run is not None and run[1] == _machine() and _is_gone(int(run[2]), name)


def remove_rests(folder: Path) -> None:
    """Delete what runs left at any depth, on whichever machine, of a folder that is held alone."""
    for path in sorted(folder.rglob(".s2f-*")):
        if _REST.fullmatch(path.name):  # the others are the user's
            _remove_rest(path)


def _remove_rest(path: Path) -> None:
    if not (path.is_symlink() or (path / OLD).is_symlink()):  # what those lead to is not ours
        try:
            _put_back(path)
        except OSError:  # what gave way is still in it
            return
    _delete(path)


def _put_back(temporary: Path) -> None:
    """Give folders that were giving way their names again, where nothing took them."""
    for old in (temporary / OLD).glob("*"):
        place = temporary.parent / old.name
        if not os.path.lexists(place):
            os.replace(old, place)


@functools.cache
def _machine() -> str:
    """Name where a process has one number: a container, or a machine since it was started."""
    told = [platform.node()]
    with contextlib.suppress(OSError):  # Linux
        told.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        told.append(os.readlink("/proc/self/ns/pid"))
    return f"{zlib.crc32(repr(told).encode()):08x}"


def _is_gone(process: int, temporary: str) -> bool:
    if process == os.getpid():  # or another's: in a container that is started again, they recur
        return temporary not in {path.name for path in [*_TEMPORARY, *_LASTING]}
    if os.name != "posix":  # where `kill` knows no 0, and kills
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's
        return False
    return False


@contextlib.contextmanager
def put_away_at_the_end(path: Path) -> Iterator[Path]:
    """Delete a file or folder at the end, if it is there then; `put_away` does it before."""
    _TEMPORARY.add(path)
    try:
        yield path
    finally:
        _delete(path)
        _TEMPORARY.discard(path)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder on this machine for what is temporary, which is deleted at the end."""
    with put_away_at_the_end(_temporary(Path(tempfile.gettempdir(), "scratch"))) as folder:
        with writing(folder):
            folder.mkdir(mode=0o700)
        yield folder


def lasting_scratch(place: Path) -> Path:
    """Make a folder in `place` that is deleted when this process ends; it raises an `OutputError`.

    If it is killed, or ends at once, the next one that makes something there deletes it.
    """
    from multiprocessing import util

    folder = _temporary(place / "scratch")
    with writing(folder):
        folder.mkdir(mode=0o700)
    _LASTING.add(folder)
    util.Finalize(None, _delete, (folder,), exitpriority=-100)  # after processes that were started
    return folder


def put_away() -> None:
    """Delete what is temporary, because the process ends at once."""
    with _TAKING_ITS_PLACE:
        for path in list(_TEMPORARY):
            _delete(path)


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Tell of any `OSError` as an `OutputError`: something is being written to `path`."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def check_writable(path: Path) -> None:
    """Raise an `OutputError` if nothing can be made at `path`: before hours of work for it.

    What is tried is a file in that folder or, where there is none yet, in the one that it would be
    made in.
    """
    folder = path if path.is_dir() else path.absolute().parent
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        with put_away_at_the_end(_temporary(folder / "file")) as tried:
            tried.touch(exist_ok=False)
    except OSError as error:
        raise unwritable(path, error) from error


FULL = (errno.ENOSPC, errno.EDQUOT)  # of the disk, or of what one user may have of it


def composes(folder: Path) -> bool:
    """Tell whether a letter and its accent are one name with the letter that has it, as on a Mac.

    Asked is the folder, or the next above that is there; one that cannot be written says no.
    """
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    with contextlib.suppress(OSError), put_away_at_the_end(_temporary(folder / "probe")) as place:
        place.mkdir()
        (place / "e\N{COMBINING ACUTE ACCENT}").touch()
        return os.path.exists(place / "\N{LATIN SMALL LETTER E WITH ACUTE}")
    return False


def unwritable(path: Path | str, error: OSError) -> OutputError:
    """Return the error of a file or folder that cannot be written, with the cure."""
    hint = "choose another place"
    if error.errno in FULL:
        hint = "free some space, or choose another place"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR):
        hint = "a folder is needed where a file is; choose another place"
    return OutputError(f"{path}: cannot be written: {error.strerror or error}", hint=hint)


@contextlib.contextmanager
def alone_in(folder: Path, lock: Path | None = None, *, wait: float = 0.0) -> Iterator[None]:
    """Make a folder, and hold it against other runs that would; a run that is killed lets go.

    What they hold is the file `lock`, by default `.lock` in the folder; on a file system without
    locks, a second file beside it that tells of the process. Raises a `UsageError` if another run
    holds it, after so many seconds to `wait`, and an `OutputError` if it cannot be made.
    """
    from filelock import FileLock, SoftFileLock, Timeout  # slow to import

    path = lock or folder / ".lock"
    told = path.with_name(f"{path.name}-held")
    hint = "wait until it has ended, or choose another folder"
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                # Whoever may write in the folder may go on there.
                held = FileLock(path, timeout=wait, mode=0o666, fallback_to_soft=False)
                is_held = stack.enter_context(held).is_locked and _keeps_others_out(path)
            except OSError as error:  # as some networks have it
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
                is_held = False
            if not is_held:
                hint += f"; if it was killed on another machine, remove {told}"
                # What a killed one told is taken over here, at a second look.
                stack.enter_context(SoftFileLock(told, timeout=max(0.5, wait), mode=0o644))
        except Timeout as error:
            raise UsageError(f"{folder}: another s2f is at work there", hint=hint) from error
        except OSError as error:
            raise unwritable(folder, error) from error
        yield


def _keeps_others_out(path: Path) -> bool:
    """Tell whether the lock of this process on a file is one: some networks only say so."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    with path.open("r+b") as again:
        try:
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


Wants = Callable[[str], bool]
"""Whether a file is wanted, by its name without folders."""

PassedOver = Counter[str]
"""How many files in folders were not wanted, by their suffixes in small letters."""

_Identity = tuple[int, int]  # of a folder, however it was reached: device and inode


class File(NamedTuple):
    """A file of a tree."""

    path: str  # below the folder that was listed, with slashes
    size: int  # bytes; -1 if it is no regular file, or a link that leads nowhere
    mtime_ns: int


def list_files(
    folder: Path,
    wants: Wants,
    *,
    without: Path | None = None,
    passed_over: PassedOver | None = None,
) -> list[File]:
    """List the wanted files of a folder, but for those `without`, at every depth, sorted.

    Links to folders are followed, but not to a folder that they lie in. Hidden files and folders
    and `__MACOSX` do not count; all other files that are not wanted are added to `passed_over`.
    Raises a `DatasetError` if a folder cannot be read.
    """
    return list(walk(folder, wants, without=without, passed_over=passed_over))


def walk(
    folder: Path,
    wants: Wants,
    *,
    without: Path | None = None,
    passed_over: PassedOver | None = None,
) -> Iterator[File]:
    """Give the files of `list_files` one by one; it raises the same."""
    passed = [_identity(without)] if without else []
    for entry, path in _below(str(folder), "", wants, passed, passed_over):
        try:
            status = entry.stat()
        except OSError:  # a link that leads nowhere
            yield File(path, -1, 0)
        else:
            size = status.st_size if stat.S_ISREG(status.st_mode) else -1
            yield File(path, size, status.st_mtime_ns)


def names(
    folder: Path, wants: Wants = lambda name: True, *, passed_over: PassedOver | None = None
) -> Iterator[str]:
    """List the paths that `list_files` gives, without a look at the files; it raises the same."""
    return (path for _, path in _below(str(folder), "", wants, [], passed_over))


def folders(folder: Path) -> list[str]:
    """List the names of the folders in a folder as `list_files` does, which raises the same."""
    return [entry.name for entry in _scan(str(folder))[1] if _is_folder(entry)]


def is_seen(name: str) -> bool:
    """Tell whether a file or folder of this name counts, and is not hidden."""
    return not name.startswith(".") and name != "__MACOSX"


def by_suffix(passed_over: Mapping[str, int], shown: int = 8) -> str:
    """Tell how many files were passed over, the most frequent first: `6 (.heic 4, .txt 2)`."""
    order = sorted(passed_over, key=lambda suffix: (-passed_over[suffix], suffix))
    kinds = [f"{suffix or 'no suffix'} {passed_over[suffix]}" for suffix in order[:shown]]
    if others := sum(passed_over[suffix] for suffix in order[shown:]):
        kinds.append(f"others {others}")
    return f"{sum(passed_over.values())} ({', '.join(kinds)})"


def holds_none(
    folder: object, sources: str, passed_over: Mapping[str, int], error: type[InputError]
) -> InputError:
    """Return the error of a folder without `sources`, which tells what there is instead."""
    what = f"; passed over: {by_suffix(passed_over)}" if passed_over else ""
    message = f"{folder}: holds no {sources}{what}"
    return error(message, hint=f"name the folder of the {sources}")


def find_files(
    paths: Sequence[Path],
    wants: Wants,
    sources: str,
    error: type[InputError],
    *,
    passed_over: PassedOver | None = None,
) -> list[Path]:
    """List the wanted files among files, kept whatever their names, and folders, sorted; each once.

    The others in the folders are added to `passed_over`. Raises an `error` that tells of `sources`
    if a path is missing or a folder holds none.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not os.path.exists(path):
            raise error(f"{path}: does not exist", hint="check its path")
        inside, others = [path], PassedOver()
        if os.path.isdir(path):
            listed = list_files(path, wants, passed_over=others)
            inside = [path / file.path for file in listed]
        if not inside:
            raise holds_none(path, sources, others, error)
        found |= dict.fromkeys(inside)
        if passed_over is not None:
            passed_over += others
    return list(found)


def preferred(prefer: str | None, wants: Wants, sources: str) -> str | None:
    """Give the suffix that `drop_twins` prefers as `wav`, also where it came as `.WAV`.

    Raises a UsageError if it is none of the `sources` that are wanted.
    """
    if prefer is None:
        return None
    suffix = prefer.lower().removeprefix(".")
    if not wants(f"name.{suffix}"):
        message = f"{prefer!r} is no suffix of {sources}"
        raise UsageError(message, hint="give one such as --prefer wav")
    return suffix


def drop_twins(
    named: Iterable[tuple[str, str]],
    folder: object,
    passed_over: PassedOver,
    *,
    prefer: str | None = None,
    is_asked: bool = True,
) -> set[str]:
    """Find which paths to leave out so that there is one of each name, as of 1.m4a and 1.wav.

    `named` are names and paths. That with the suffix `prefer` (`wav`, without a dot) stays; the
    others are `passed_over`. Raises a `DatasetError` that counts all names in the `folder` of which
    this does not leave one; its cure is `prefer`, where the user `is_asked`.
    """
    first: dict[str, str] = {}
    several: dict[str, list[str]] = {}
    for name, path in named:
        other = first.setdefault(name, path)
        if other != path:
            several.setdefault(name, [other]).append(path)
    dropped: set[str] = set()
    undecided = []
    for twins in several.values():
        chosen = [path for path in twins if _kind(path) == f".{prefer}"]
        if len(chosen) == 1:
            dropped.update(path for path in twins if path != chosen[0])
        else:
            undecided.append(twins)
    if undecided:
        kinds = Counter(" beside ".join(map(_kind, twins)) for twins in undecided)
        counted = ", ".join(f"{kind} {n}" for kind, n in kinds.most_common())
        such = " and ".join(undecided[0])
        n_names = f"{len(undecided)} name{'s have' if len(undecided) > 1 else ' has'}"
        message = f"{folder}: {n_names} more than one file ({counted}), such as {such}"
        hint = "rename or remove all but one of each name"
        known = {_kind(path)[1:] for path in undecided[0]} - {"", prefer}
        if is_asked and len(known) > 1:
            hint = f"give --prefer {' or --prefer '.join(sorted(known, reverse=True))}"
        raise DatasetError(message, hint=hint)
    passed_over.update(map(_kind, dropped))
    return dropped


def _below(
    folder: str,
    inside: str,
    wants: Wants,
    passed: Sequence[_Identity],
    passed_over: PassedOver | None,
) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Yield the files of a folder, whose place in the tree is `inside`, unless it is `passed`."""
    identity, entries = _scan(folder)
    for entry in entries if identity not in passed else ():
        path = inside + entry.name
        if _is_folder(entry):
            yield from _below(entry.path, f"{path}/", wants, [*passed, identity], passed_over)
        elif wants(entry.name):
            yield entry, path
        elif passed_over is not None:
            passed_over[_kind(entry.name)] += 1


def stem(path: str) -> str:
    """Give a path without its suffix: what recordings of one thing in several formats share."""
    return path.removesuffix(suffix(path))


def suffix(path: str) -> str:
    """Give what `stem` leaves out, as it is written."""
    before, _, after = path.rpartition(".")
    if after.isalnum() and before[-1:] not in ("", ".", "/", "\\"):  # as most of a million are
        return f".{after}"
    return os.path.splitext(path)[1]


def _kind(path: str) -> str:
    return suffix(path).lower()


def _scan(folder: str) -> tuple[_Identity, list[os.DirEntry[str]]]:
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
        return _identity(folder), [entry for entry in entries if is_seen(entry.name)]
    except OSError as error:
        raise DatasetError(
            f"{folder}: cannot be listed: {error.strerror or error}",
            hint="check its permissions, or remove it",
        ) from error


def _identity(folder: str | Path) -> _Identity:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


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
class PlaceReport:
    """What became of files: how many were placed, were there, and which could not be."""

    made: int
    kept: int
    failed: tuple[InputError, ...]


def refuse_overlap(tree: Path, out: Path) -> None:
    """Raise a `UsageError` if an output is, holds or lies in its own source."""
    one, other = os.path.realpath(tree), os.path.realpath(out)
    if os.path.commonpath([one, other]) in (one, other):
        raise UsageError(f"{out}: overlaps with {tree}", hint="choose a folder outside of it")


def place_all(
    plan: Sequence[Folder], link: Link = Link.HARD, *, progress: Progress = silent
) -> PlaceReport:
    """Place all files of a plan as `place_file` does; one that cannot be used costs itself only."""
    total = sum(len(folder.names) for folder in plan)
    made, failed = 0, []
    for k, (folder, name) in enumerate((f, name) for f in plan for name in f.names):
        if not k % 256:
            progress(k, total, folder.source)
        source, target = os.path.join(folder.source, name), os.path.join(folder.target, name)
        try:
            made += place_file(source, target, link)
        except InputError as error:
            failed.append(error)
    progress(total, total, "done")
    return PlaceReport(made, total - made - len(failed), tuple(failed))


def place_file(source: str, target: str, link: Link) -> bool:
    """Give a file a second place; folders on the way are made. Return False if it was there.

    What is there is kept if it is right: the same file for a hard link, the same size and time for
    a copy, a link to the same place for a symlink (relative: both trees can be moved together). It
    is replaced if it is older. Raises an `InputError` if the source is no regular file or another
    is at the target, and an `OutputError` if the target's folder takes no such file.
    """
    with _reading(source):
        from_ = os.stat(source)
    if not stat.S_ISREG(from_.st_mode):
        raise InputError(f"{source}: is no regular file", hint="repair it or take it away")
    try:
        if os.path.lexists(target):
            there = os.lstat(target)
            is_right = os.path.samestat(from_, there)
            if link is Link.COPY:
                is_copy = stat.S_ISREG(there.st_mode) and not is_right
                wanted = from_.st_size, from_.st_mtime_ns
                is_right = is_copy and (there.st_size, there.st_mtime_ns) == wanted
            elif link is Link.SYMLINK:
                is_right = os.path.islink(target) and os.readlink(target) == _way(source, target)
            if is_right:
                return False
            if not stat.S_ISREG(there.st_mode) or there.st_mtime_ns >= from_.st_mtime_ns:
                hint = "move that one away"
                raise InputError(f"{source}: another file is at {target}", hint=hint)
            if link is not Link.COPY:
                os.unlink(target)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if link is Link.COPY:
            with _reading(source):
                file = open(source, "rb")
            with file, atomic_path(Path(target)) as temporary:
                with temporary.open("wb") as copy:
                    shutil.copyfileobj(file, copy, 1 << 20)
                times = os.stat(source)
                os.utime(temporary, ns=(times.st_atime_ns, times.st_mtime_ns))
        elif link is Link.SYMLINK:
            os.symlink(_way(source, target), target)
        else:
            os.link(os.path.realpath(source) if os.path.islink(source) else source, target)
    except OSError as error:
        message = f"{target}: cannot be written: {error.strerror}"
        if error.errno == errno.ENAMETOOLONG:  # costs this name only; the others cost all
            raise InputError(message, hint="shorten the name") from error
        if error.errno == errno.EXDEV:
            message = f"{target}: a hard link cannot reach another file system"
            hint = "give --link copy or --link symlink, or choose a place beside the source"
            raise OutputError(message, hint=hint) from error
        if error.errno in (errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            hint = "this file system refuses the link; give --link copy"
            raise OutputError(message, hint=hint) from error
        raise unwritable(Path(target), error) from error
    return True


@contextlib.contextmanager
def _reading(source: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"{source}: cannot be read: {error.strerror}"
        raise InputError(message, hint="repair it or take it away") from error


def _way(source: str, target: str) -> str:
    """Path from a target's folder to its source."""
    folder, name = os.path.split(source)
    return os.path.join(way(os.path.dirname(target), folder), name)


def way(start: str | Path, folder: str | Path) -> str:
    """Path from a folder to another, both as they really lie: so both may be moved together."""
    folder = os.path.realpath(folder)
    try:
        return os.path.relpath(folder, os.path.realpath(start))
    except ValueError:  # on Windows, of another drive
        return folder


_PLAIN = re.compile(r"[\w-]+(?:[./][\w-]+)*", re.ASCII)  # leads nowhere but down


def inside(folder: Path, name: str, teller: Path, *, is_one: bool = False) -> Path:
    """Name what a file, the `teller`, calls so: a path below a folder, or with `is_one` just there.

    Raises a `DatasetError` if it leads out (`../a`, `/a`): who hands a file on may not choose what
    is read or written elsewhere. Links below the folder are who made them's to answer for.
    """
    refuse_outside(folder, name, teller, is_one=is_one)
    return folder / name


def refuse_outside(folder: Path, name: str, teller: object, *, is_one: bool = False) -> None:
    """Raise the `DatasetError` of `inside`, where no path is needed."""
    if not is_one and _PLAIN.fullmatch(name):  # as most of a million are
        return
    parts = name.replace(os.sep, "/").split("/")
    leads_out = ".." in parts or "\0" in name or os.path.isabs(name) or os.path.splitdrive(name)[0]
    if leads_out or (is_one and (len(parts) > 1 or name in ("", "."))):
        what = "no name of its own" if is_one and not leads_out else f"not below {folder}"
        message = f"{teller}: names {name!r}, which is {what}"
        raise DatasetError(message, hint="correct it by hand, if you trust who made this file")


def sealed(fields: Mapping[str, Any]) -> bytes:
    """Write plain JSON so that `unsealed` knows whether it is whole: with a SHA-256."""
    sha256 = hashlib.sha256(json.dumps({**fields}).encode()).hexdigest()
    return json.dumps({**fields, "sha256": sha256}, indent=1).encode() + b"\n"


def unsealed(content: bytes) -> dict[str, Any]:
    """Read what `sealed` wrote, or JSON without a SHA-256; a `ValueError` if it is damaged."""
    fields = json.loads(content)
    if not isinstance(fields, dict):
        raise ValueError(f"it holds a {type(fields).__name__}, and no object")
    if fields.pop("sha256", None) is not None and sealed(fields) != content:
        raise ValueError("its SHA-256 is another")
    return fields


def read_array(path: Path, *, mmap: bool = False) -> "NDArray[np.generic]":
    """Read a .npy file of numbers, or raise a `DatasetError`."""
    import numpy as np

    array: NDArray[np.generic]
    size = 0
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise ValueError("it is no regular file")
        with open(path, "rb") as file:
            size, head = os.fstat(file.fileno()).st_size, file.read(6)
        if not size:
            raise ValueError("it is empty (0 bytes)")
        if head[:2] == b"PK":
            raise ValueError("it is an archive of arrays (.npz); save one with numpy.save")
        if head != np.lib.format.MAGIC_PREFIX:
            raise ValueError("it is no .npy file of numbers")
        # Mapping holds what the header claims against the file; reading takes the memory first.
        with _PARSING:
            array = np.load(path, mmap_mode="r")
        if not mmap:
            array = np.array(array)
    except Exception as error:  # a header is evaluated, and fails in as many ways as Python
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if "object" in why and isinstance(error, ValueError):
            why = "it holds pickled objects, and no numbers"
        elif "max_header_size" in why:  # NumPy advises to trust the file
            why = "its header is longer than that of any array of numbers"
        elif "mmap length" in why or isinstance(error, OverflowError | MemoryError):
            why = f"its header claims more values than its {size} bytes can hold"
        message = f"{path}: cannot be read as an array: {why}"
        raise DatasetError(message, hint="make the file again") from error
    return array


CHECKED = 2**27  # bytes of an array that is compared with its hash each time it is opened


class Names(Sequence[bytes]):
    """Names by number, as two arrays, so that a hundred million can be mapped."""

    def __init__(self, text: "NDArray[np.uint8]", starts: "NDArray[np.int64]") -> None:
        """Take the names one behind the other, each with a zero byte, and [n + 1] their starts."""
        self.text, self.starts = text, starts

    @classmethod
    def of(cls, names: Iterable[bytes]) -> Self:
        """Put names together."""
        import numpy as np

        text, starts = bytearray(), array("q", [0])
        for name in names:
            text += name + b"\0"
            starts.append(len(text))
        return cls(np.frombuffer(text, np.uint8), np.frombuffer(starts, np.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, k: Any) -> Any:
        if k < 0:
            raise IndexError(k)
        return self.text[self.starts[k] : self.starts[k + 1] - 1].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        return map(self.__getitem__, range(len(self)))


def write_arrays(arrays: "Mapping[str, NDArray[Any]]", folder: Path) -> dict[str, Any]:
    """Write arrays as NAME.npy into a folder; give what `map_arrays` is to be told of them.

    They are read once, a part at a time. A full disk is an `OSError` that says so.
    """
    import numpy as np

    told = {}
    for name, values in arrays.items():
        head, dtype, shape = io.BytesIO(), np.dtype(values.dtype), tuple(values.shape)
        fields = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(head, fields)
        digest = hashlib.sha256(head.getbuffer())
        rows = max(1, (1 << 24) // (dtype.itemsize * max(1, math.prod(shape[1:]))))
        with (folder / f"{name}.npy").open("wb") as file:
            file.write(head.getbuffer())
            for start in range(0, shape[0], rows):
                part = np.ascontiguousarray(values[start : start + rows], dtype).tobytes()
                file.write(part)
                digest.update(part)
            file.flush()
            os.fsync(file.fileno())
        told[name] = {"dtype": dtype.str, "shape": shape, "sha256": digest.hexdigest()}
    return told


def map_arrays(told: Mapping[str, Any], folder: Path, teller: Path) -> "dict[str, NDArray[Any]]":
    """Map the arrays of a folder that `write_arrays` told the `teller` of.

    Of those of more than `CHECKED` bytes, kind and shape are looked at, and `array_hashes` has the
    rest: to read them takes longer than to open them may. Raises a `ValueError` if one is another,
    and a `DatasetError` as `inside`.
    """
    import numpy as np

    arrays = {}
    for path, sha256 in array_hashes(told, folder, teller):
        what = told[path.stem]
        if os.stat(path).st_size <= CHECKED and hash_file(path) != sha256:
            raise ValueError(f"{path}: its SHA-256 is another")
        try:
            mapped = read_array(path, mmap=True)
        except DatasetError as error:
            raise ValueError(error.message) from error
        if mapped.dtype.str != what["dtype"] or [*mapped.shape] != [*what["shape"]]:
            raise ValueError(f"{path}: holds other values, {mapped.dtype} {[*mapped.shape]}")
        arrays[path.stem] = np.asarray(mapped)  # a view that is quicker to index
    return arrays


def array_hashes(told: Mapping[str, Any], folder: Path, teller: Path) -> list[tuple[Path, str]]:
    """List the files of `map_arrays`, which raises the same, with their SHA-256."""
    return [
        (inside(folder, f"{name}.npy", teller, is_one=True), what["sha256"])
        for name, what in told.items()
    ]


def hash_file(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class VerifyReport:
    """What became of files that were compared with their hashes."""

    files: int
    damaged: tuple[DatasetError, ...]


def verify_hashes(
    hashes: Sequence[tuple[Any, str]],
    hint: str,
    *,
    hash_of: Callable[[Any], str] = hash_file,
    progress: Progress = silent,
) -> VerifyReport:
    """Read files and compare them with their SHA-256; the `hint` is what cures a damaged one.

    `hash_of` gives that of a file, or of whatever stands for one: an `InputError` of it is told.
    """
    damaged = []
    for k, (path, wanted) in enumerate(hashes):
        progress(k, len(hashes), path.name)
        try:
            why = "" if hash_of(path) == wanted else "is damaged: its SHA-256 is another"
        except OSError as error:
            why = f"cannot be read: {error.strerror or error}"
        except InputError as error:
            damaged.append(DatasetError(error.message, hint=error.hint))
            continue
        if why:
            damaged.append(DatasetError(f"{path}: {why}", hint=hint))
    progress(len(hashes), len(hashes), "done")
    return VerifyReport(len(hashes), tuple(damaged))


def save_array(array: "NDArray[Any]", path: Path) -> None:
    """Write a .npy file, so that a full disk is an `OSError` that says so."""
    import numpy as np

    held = io.BytesIO()  # straight into a file, NumPy only says how many values were written
    np.save(held, array)
    path.write_bytes(held.getbuffer())


@dataclass(frozen=True)
class CsvTable:
    """A table: cells are stripped of blanks, and rows as long as the header."""

    columns: tuple[str, ...]  # the header
    rows: tuple[tuple[str, ...], ...]  # the cells below it
    lines: tuple[int, ...]  # line of the file on which each row ends, from 1

    def column(self, k: int) -> list[str]:
        """List the cells of a column."""
        return [row[k] for row in self.rows]


def canonical(column: str) -> str:
    """Reduce a column's name to its letters and digits: `VoxCeleb2 ID ` is `voxceleb2id`."""
    return re.sub(r"[^a-z0-9]", "", column.lower())


def read_table(path: Path) -> CsvTable:
    """Read a csv file with a header: UTF-8, separated by whatever its header has most of.

    That is a tab, a comma or a semicolon. Blanks around cells and empty cells at the end of a row
    mean nothing; empty lines are passed over. A `DatasetError` tells of a file that cannot be read,
    is not UTF-8, has no header or two columns of one name, a row longer than the header or a quote
    that is not closed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror}"
        raise DatasetError(message, hint="check the path") from error
    except UnicodeDecodeError as error:
        message = f"{path}: is not UTF-8 text (byte {error.start})"
        raise DatasetError(message, hint="save it again as UTF-8") from error
    header = text.split("\n", 1)[0]
    delimiter = max("\t,;", key=header.count)  # csv.Sniffer also guesses among letters
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    columns: list[str] = []
    rows, lines = [], []
    try:
        for cells in reader:
            row = [cell.strip() for cell in cells]
            while row and not row[-1]:
                row.pop()
            if any("\n" in cell for cell in row):
                raise csv.Error("a quote is not closed before it")
            if not columns:
                columns = row
            elif len(row) > len(columns):
                raise csv.Error(f"{len(row)} cells where the header has {len(columns)}")
            elif row:
                rows.append((*row, *[""] * (len(columns) - len(row))))
                lines.append(reader.line_num)
    except csv.Error as error:
        message = f"{path}: line {reader.line_num} cannot be read: {error}"
        hint = "put cells that hold the separator into double quotes"
        raise DatasetError(message, hint=hint) from error
    if not columns:
        raise DatasetError(f"{path}: is empty", hint="wanted a header and a row a person")
    for name, count in Counter(columns).items():
        if count > 1:
            raise DatasetError(f"{path}: has two columns {name!r}", hint="rename one of them")
    return CsvTable(tuple(columns), tuple(rows), tuple(lines))
