"""Files and folders: written whole or not at all, held against other runs, listed, linked; .npy.

Every command that takes a folder lists it here, so that all agree on what is passed over, in which
order files come, and where links lead. What is placed may be placed again, after a kill.
"""

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from s2f.console import Progress, silent
from s2f.errors import DatasetError, InputError, OutputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Name a temporary file beside `path` that takes its name only when all went well.

    Several processes may write `path` at once; a run that is killed leaves the temporary file.
    Raises an `OutputError` if the folder or the file cannot be written.
    """
    with _writing(path):
        descriptor, name = tempfile.mkstemp(prefix=".s2f-", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
            umask = os.umask(0)  # there is no other way to ask for it
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp's are private
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


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
    Raises an `OutputError` if it cannot be made.
    """
    with _writing(path), contextlib.ExitStack() as stack:
        options: Any = {"dir": path.parent, "ignore_cleanup_errors": True}
        inside = stack.enter_context(tempfile.TemporaryDirectory(prefix=".s2f-", **options))
        new, old = Path(inside, "new"), Path(inside, "old")
        new.mkdir()
        try:
            yield new
            if replace and path.exists():
                path.replace(old)
            new.replace(path)
        finally:
            if old.exists() and not path.exists():
                old.replace(path)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> OutputError:
    """Return the error of a file or folder that cannot be written, with the cure."""
    hint = "choose another place"
    if error.errno == errno.ENOSPC:
        hint = "free some space, or choose another place"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR):
        hint = "a folder is needed where a file is; choose another place"
    return OutputError(f"{path}: cannot be written: {error.strerror or error}", hint=hint)


@contextlib.contextmanager
def alone_in(folder: Path, lock: Path | None = None) -> Iterator[None]:
    """Make a folder, and hold it against other runs that would; a run that is killed lets go.

    What they hold is the file `lock`, by default `.lock` in the folder. Raises a `UsageError` if
    another run holds it, and an `OutputError` if it cannot be made.
    """
    from filelock import FileLock, Timeout  # slow to import

    path = lock or folder / ".lock"
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Whoever may write in the folder may go on there.
            stack.enter_context(FileLock(path, timeout=0, mode=0o666))
        except Timeout as error:
            hint = "wait until it has ended, or choose another folder"
            raise UsageError(f"{folder}: another s2f is at work there", hint=hint) from error
        except OSError as error:
            # Over a network there may be no locks. A journal, whose lock is given, needs one.
            if lock or error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise unwritable(folder, error) from error
        yield


Wants = Callable[[str], bool]
"""Whether a file is wanted, by its name without folders."""

_Identity = tuple[int, int]  # of a folder, however it was reached: device and inode


class File(NamedTuple):
    """A file of a tree."""

    path: str  # below the folder that was listed, with slashes
    size: int  # bytes; -1 if it is no regular file, or a link that leads nowhere
    mtime_ns: int


def list_files(folder: Path, wants: Wants, *, without: Path | None = None) -> list[File]:
    """List the wanted files of a folder, but for those `without`, at every depth, sorted.

    Links to folders are followed, but not to a folder that they lie in. Hidden files and folders
    and `__MACOSX` are passed over. Raises a `DatasetError` if a folder cannot be read.
    """
    passed = [_identity(without)] if without else []
    found = []
    for entry, path in _below(str(folder), "", wants, passed):
        try:
            status = entry.stat()
        except OSError:  # a link that leads nowhere
            found.append(File(path, -1, 0))
        else:
            size = status.st_size if stat.S_ISREG(status.st_mode) else -1
            found.append(File(path, size, status.st_mtime_ns))
    return found


def names(folder: Path, wants: Wants = lambda name: True) -> Iterator[str]:
    """List the paths that `list_files` gives, without a look at the files; it raises the same."""
    return (path for _, path in _below(str(folder), "", wants, []))


def folders(folder: Path) -> list[str]:
    """List the names of the folders in a folder as `list_files` does, which raises the same."""
    return [entry.name for entry in _scan(str(folder))[1] if _is_folder(entry)]


def is_seen(name: str) -> bool:
    """Tell whether a file or folder of this name counts, and is not passed over."""
    return not name.startswith(".") and name != "__MACOSX"


def find_files(
    paths: Sequence[Path], wants: Wants, sources: str, error: type[InputError]
) -> list[Path]:
    """List the wanted files among files, kept whatever their names, and folders, sorted; each once.

    Raises an `error` that tells of `sources` if a path is missing or a folder holds none.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not os.path.exists(path):
            raise error(f"{path}: does not exist", hint="check its path")
        inside = [path]
        if os.path.isdir(path):
            inside = [path / file.path for file in list_files(path, wants)]
        if not inside:
            raise error(f"{path}: holds no {sources}", hint=f"name the folder of the {sources}")
        found |= dict.fromkeys(inside)
    return list(found)


def _below(
    folder: str, inside: str, wants: Wants, passed: Sequence[_Identity]
) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Yield the files of a folder, whose place in the tree is `inside`, unless it is `passed`."""
    identity, entries = _scan(folder)
    for entry in entries if identity not in passed else ():
        path = inside + entry.name
        if _is_folder(entry):
            yield from _below(entry.path, f"{path}/", wants, [*passed, identity])
        elif wants(entry.name):
            yield entry, path


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
    start = os.path.realpath(os.path.dirname(target))
    return os.path.join(os.path.relpath(os.path.realpath(folder), start), name)


def read_array(path: Path, *, mmap: bool = False) -> "NDArray[np.generic]":
    """Read a .npy file, or raise a `DatasetError`."""
    import numpy as np

    try:
        array: NDArray[np.generic] = np.load(path, mmap_mode="r" if mmap else None)
    except (OSError, ValueError, EOFError) as error:
        why = getattr(error, "strerror", None) or str(error)
        if "pickle" in why:  # NumPy's guess at any file that is not its own
            why = "it is no .npy file of numbers"
        message = f"{path}: cannot be read as an array: {why}"
        raise DatasetError(message, hint="make the file again") from error
    return array


def save_array(array: "NDArray[Any]", path: Path) -> None:
    """Write a .npy file; `path` ends in that."""
    import numpy as np

    np.save(path, array)


def map_waveform(path: Path) -> "NDArray[np.generic]":
    """Map a stored waveform [n], n >= 1, int16 or floating point, or raise a `DatasetError`."""
    import numpy as np

    samples = read_array(path, mmap=True)
    known = samples.dtype in (np.int16, np.float16, np.float32, np.float64)
    if samples.ndim != 1 or len(samples) == 0 or not known:
        found = f"{path}: holds {samples.dtype} values {list(samples.shape)}"
        hint = "save it as int16 or float32, one channel, 16 kHz"
        raise DatasetError(f"{found}; wanted a waveform [n], int16 or floating point", hint=hint)
    return samples
