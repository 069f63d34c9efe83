"""Where and how a program runs: the device, its precision, threads, memory and signals.

Importing this does not import torch, which is slow, and which most that write files do without.
"""

import contextlib
import ctypes
import errno
import functools
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2f.errors import DeviceError, OutputError, UsageError

if TYPE_CHECKING:
    import torch

# Names of dtypes of torch; `tf32` is float32, of whose bits a GPU multiplies 19.
PRECISIONS = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}
AGAIN = 0.5  # seconds in which a signal that comes again is the same one
SOCKET_FOLDER = 50  # bytes of its path, at most: 104 of a socket on macOS, less some 50 of its name
_ONE_AT_A_TIME = threading.Lock()


def choose_device(name: str = "auto") -> "torch.device":
    """Turn `auto`, `cpu`, `cuda`, `cuda:N` or `mps` into a device, or raise a DeviceError."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name.partition(":")[0] in ("cpu", "cuda", "mps"):  # torch knows many more
        with contextlib.suppress(RuntimeError, AssertionError):
            torch.empty(0, device=name)
            return torch.device(name)
    message = f"device {name!r} is not available here"
    raise DeviceError(message, hint="use --device auto, or --device cpu")


def check_precision(precision: str, device: "torch.device") -> None:
    """Raise a UsageError if there is no such precision, a DeviceError if the device lacks it."""
    if precision not in PRECISIONS:
        hint = f"choose one of {', '.join(PRECISIONS)}"
        raise UsageError(f"there is no precision {precision!r}", hint=hint)
    if precision == "fp16" and device.type == "cpu":
        raise DeviceError("a CPU does not compute in fp16", hint="use fp32, bf16 or --device cuda")
    if precision == "tf32" and device.type != "cuda":
        raise DeviceError(f"{device} does not compute in tf32", hint="use fp32 or --device cuda")


@contextlib.contextmanager
def rounding(precision: str) -> Iterator[None]:
    """Have a GPU round what it multiplies in float32 to TF32, if that is the precision.

    Convolutions and products alike; torch alone would round those of cuDNN and not the others.
    """
    import torch

    backends: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = precision == "tf32"
        yield
    finally:
        for backend, old in zip(backends, before, strict=True):
            backend.allow_tf32 = old


@contextlib.contextmanager
def computing(device: "torch.device", precision: str = "fp32") -> Iterator[None]:
    """Compute without gradients, in a precision where that is safe, and the same way each time.

    Raises a DeviceError if the device has too little memory.
    """
    import torch

    dtype = getattr(torch, PRECISIONS[precision])
    cudnn = torch.backends.cudnn
    fixed = {"enabled": cudnn.enabled, "benchmark": False, "deterministic": True}
    try:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
            cudnn.flags(**fixed),
            rounding(precision),
        ):
            yield
    except torch.OutOfMemoryError as error:
        message = f"{device}: has too little memory: {str(error).splitlines()[0]}"
        raise DeviceError(message, hint="end what else uses it, or use --device cpu") from error


def shortage(error: BaseException) -> DeviceError | None:
    """Tell where too little memory ended something; None for other errors."""
    told = (str(error) or type(error).__name__).splitlines()[0]
    kinds = ImportError | RuntimeError
    is_said = isinstance(error, kinds) and any(sign in told for sign in NO_MEMORY)
    is_full = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or is_said or is_full:
        hint = "end what else uses it, raise the limit (ulimit -v), or give fewer --workers"
        return DeviceError(f"there is too little memory: {told}", hint=hint)
    return None


NO_MEMORY = (  # as the loader of libraries, the C library and torch say it
    "failed to map segment", "annot allocate memory", "can't allocate memory", "not enough memory",
)  # fmt: skip


@contextlib.contextmanager
def starting_processes() -> Iterator[None]:
    """Raise a DeviceError where processes cannot be started, or what they share cannot be made."""
    from concurrent.futures import BrokenExecutor

    try:
        _place_sockets()
        yield
    except (OSError, BrokenExecutor) as error:
        cause = error.__cause__ if isinstance(error, BrokenExecutor) else error
        if cause and (short := shortage(cause)):
            raise short from error
        message = f"no processes can be started: {cause or error}"
        hint = "they need a /dev/shm that can be written (docker run --shm-size 1g)"
        number = getattr(cause, "errno", None)
        if number == errno.EAGAIN:  # as many as this user may have
            hint = "let there be more (ulimit -u), or give fewer --workers"
        elif number in (errno.EMFILE, errno.ENFILE):
            hint = "let more files be open (ulimit -n 1024), or give fewer --workers"
        elif any(sign in str(cause) for sign in ("temporary directory", "AF_UNIX path")):
            hint = "set TMPDIR to a folder that can be written and has a short path"
        raise DeviceError(message, hint=hint) from error


@functools.cache
def _place_sockets() -> None:
    """Have multiprocessing put its sockets where their names are short enough, and nothing is left.

    Of a process that is killed, or that Ray ends, the next one deletes them; Python's own it leaves
    there. What comes of this process has its sockets in the same folder.
    """
    from multiprocessing import process

    from s2f.files import lasting_scratch

    about: dict[str, object] = process.current_process()._config  # type: ignore[attr-defined]
    if os.name == "posix" and "tempdir" not in about:
        with contextlib.suppress(OSError, OutputError):  # what starts processes tells of it
            about["tempdir"] = str(lasting_scratch(place_of_sockets()))


def place_of_sockets() -> Path:
    """Name the folder of temporary files, or /tmp where the name of a socket in it is too long.

    Names have some 100 bytes, and a scheduler's folders more. Python does so itself from 3.14 on;
    before, no process started, or one that sent a batch was waited for without end.
    """
    folder = tempfile.gettempdir()
    return Path(folder if len(os.fsencode(folder)) <= SOCKET_FOLDER else "/tmp")


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


def keep_memory(*, largest: int | None = 2**25, spare: int = 2**28) -> None:
    """Let glibc keep what is freed: giving arrays back and getting them anew costs more than them.

    Arrays of up to `largest` bytes (None: all) are kept, `spare` bytes at most (-1: no limit), by
    the whole process from here on. Other C libraries are left as they are.

    Source: mallopt(3): M_TRIM_THRESHOLD (-1), M_MMAP_THRESHOLD (-3) and M_MMAP_MAX (-4).
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(*((-4, 0) if largest is None else (-3, largest)))
        mallopt(-1, spare)


def give_memory_back() -> None:
    """Have glibc give the system what it keeps of what was freed; source: malloc_trim(3)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def end_by_signals(put_away: Callable[[], object]) -> None:
    """Have SIGTERM, and a terminal that closes, end this process as Ctrl-C does; a second at once.

    The first raises a KeyboardInterrupt, whatever else handles it. The second, from whichever
    handler the first went to, is seen by a thread of its own, also while the main one is deep in a
    library: it calls `put_away` and ends with 128 and the signal's number. The first may come twice
    (`timeout` sends it to its command and to the group, a shell passes a terminal's on): within
    `AGAIN` that is one. A signal that whoever started the process has it ignore (nohup, a job in
    the background) it goes on ignoring.
    """
    numbers = _not_ignored(signal.SIGINT, signal.SIGTERM, *_OF_TERMINALS)
    seen: list[int] = []

    def end(number: int, frame: object) -> None:
        if not seen:  # the others are for the thread
            seen.append(number)
            raise KeyboardInterrupt

    def watch(told: socket.socket) -> None:
        first, arrived = 0, 0.0
        while sent := told.recv(1):
            number = sent[0]
            if number not in numbers:
                continue
            if not first:
                first, arrived = number, time.monotonic()
            elif number != first or time.monotonic() - arrived > AGAIN:
                try:
                    put_away()
                finally:
                    os._exit(128 + number)

    def leave() -> None:  # in a process that is forked: what it is sent is no matter of this one
        signal.set_wakeup_fd(-1)
        for number in numbers:
            if signal.getsignal(number) == end:
                is_ctrl_c = number == signal.SIGINT
                signal.signal(number, signal.default_int_handler if is_ctrl_c else signal.SIG_DFL)

    for number in numbers:
        signal.signal(number, end)
    tell, told = socket.socketpair()
    tell.setblocking(False)
    signal.set_wakeup_fd(tell.detach(), warn_on_full_buffer=False)
    threading.Thread(target=watch, args=(told,), daemon=True).start()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=leave)


_OF_TERMINALS = [signal.SIGHUP] if os.name == "posix" else []


def _not_ignored(*numbers: signal.Signals) -> list[signal.Signals]:
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM, Ctrl-C and a terminal that closes into a flag, read between two steps."""
    seen: list[int] = []
    numbers = [signal.SIGINT, signal.SIGTERM, *_not_ignored(*_OF_TERMINALS)]
    with _handling(lambda number, frame: seen.append(number), *numbers):
        yield lambda: bool(seen)


@contextlib.contextmanager
def _handling(handler: Callable[[int, Any], Any], *signals: signal.Signals) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which alone may
        signals = ()
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
