"""Where and how a program runs: device, threads, signals, and files that are whole or absent."""

import contextlib
import errno
import functools
import gc
import hashlib
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING

from s2f.errors import DeviceError, OutputError, UsageError

try:
    import fcntl
except ImportError:  # Windows: two runs at once are not noticed there
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int, str], None]
"""What a job reports to: (done, total, what happens now)."""


DEVICES = ("cpu", "cuda", "mps")
_ONE_AT_A_TIME = threading.Lock()


def silent(done: int, total: int, what: str) -> None:
    """Report nothing: the default progress."""


def choose_device(name: str = "auto") -> "torch.device":
    """Turn `auto`, `cpu`, `cuda`, `cuda:N` or `mps` into a device that is there.

    Raises:
        DeviceError: if the name is not a device or this machine lacks it.
    """
    import torch  # slow, and most that write files do without

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    missing = DeviceError(
        f"device {name!r} is not available here", hint="use --device auto, or --device cpu"
    )
    try:
        device = torch.device(name)
        if device.type not in DEVICES:
            raise missing
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise missing from error
    return device


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Have SIGTERM end what runs as Ctrl-C does, with everything put away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def lasting_imports() -> Iterator[None]:
    """Import modules that stay until the program ends: no garbage is looked for in them.

    Of torch that takes a third of a second, most of it when the program ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Have torch compute on one thread: several may add in another order, and so to other bits."""
    import torch

    with _ONE_AT_A_TIME:  # or another would find one thread, and leave it so
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` that takes its name only when all went well.

    Several processes may write `path` at once; a run that is killed leaves the temporary file.

    Raises:
        OutputError: if the folder or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".s2f-", dir=path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's are private
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Make a temporary folder beside `path` that takes its name only when all went well.

    Args:
        path: of the folder; there may be an empty one.
        replace: whether a folder that holds something gives way.

    Raises:
        OutputError: if it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".s2f-", dir=path.parent))
        temporary.chmod(0o777 & ~_umask())
    except OSError as error:
        raise unwritable(path, error) from error
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        yield temporary
        try:
            if replace and path.exists():
                path.replace(old)
            temporary.replace(path)
        except OSError as error:
            raise unwritable(path, error) from error
    finally:
        if old.exists() and not path.exists():
            old.replace(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def part(target: Path) -> Iterator[Path]:
    """Name a temporary file beside `target` that takes its place only when all went well.

    Its name follows from the target's: a run that was killed leaves none behind when it is
    repeated. Only where one process at a time writes the target.
    """
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:20]
    temporary = target.with_name(f".{digest}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, data: bytes) -> None:
    """Write a file at once, by way of its `part`.

    Raises:
        OutputError: if it cannot be written.
    """
    try:
        with part(path) as temporary, temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error) from error


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a folder, and hold it against other runs that would; a run that is killed lets go.

    Raises:
        UsageError: if another run holds it.
        OutputError: if it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if fcntl is not None:
                descriptor = os.open(folder, os.O_RDONLY)
                held = [descriptor]
                stack.callback(_close, held)
                # Processes that are forked meanwhile, and outlive this one, would hold it too.
                os.register_at_fork(after_in_child=functools.partial(_close, held))
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{folder}: another s2f is at work there",
                hint="wait until it has ended, or choose another folder",
            ) from error
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP):  # over a network
                raise unwritable(folder, error) from error
        yield


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def _umask() -> int:
    umask = os.umask(0)  # there is no other way to ask for it
    os.umask(umask)
    return umask


def unwritable(path: Path, error: OSError) -> OutputError:
    """Return the error of a file or folder that cannot be written, with the cure."""
    hint = "choose another place"
    if error.errno == errno.ENOSPC:
        hint = "free some space, or choose another place"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR):
        hint = "a folder is needed where a file is; choose another place"
    return OutputError(f"{path}: cannot be written: {error.strerror or error}", hint=hint)


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and Ctrl-C into a flag that a loop reads between two steps."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    seen: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    before = {s: signal.signal(s, remember) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
