"""Where and how a program runs: the device, its precision, threads, memory and signals.

Importing this does not import torch, which is slow, and which most that write files do without.
"""

import contextlib
import ctypes
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from s2f.errors import DeviceError, UsageError

if TYPE_CHECKING:
    import torch

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # names of dtypes of torch
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


@contextlib.contextmanager
def computing(device: "torch.device", precision: str = "fp32") -> Iterator[None]:
    """Compute without gradients, in a precision where that is safe, and the same way each time.

    `fp32` is that on a GPU too, where convolutions are otherwise rounded to TF32. Raises a
    DeviceError if the device has too little memory.
    """
    import torch

    dtype = getattr(torch, PRECISIONS[precision])
    cudnn = torch.backends.cudnn
    fixed = {"enabled": cudnn.enabled, "benchmark": False, "deterministic": True}
    try:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
            cudnn.flags(**fixed, allow_tf32=False),
        ):
            yield
    except torch.OutOfMemoryError as error:
        message = f"{device}: has too little memory: {str(error).splitlines()[0]}"
        raise DeviceError(message, hint="end what else uses it, or use --device cpu") from error


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


def ended_by_sigterm() -> contextlib.AbstractContextManager[None]:
    """Have SIGTERM end what runs as Ctrl-C does, with everything put away."""
    return _handling(signal.default_int_handler, signal.SIGTERM)


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and Ctrl-C into a flag that a loop reads between two steps."""
    seen: list[int] = []
    with _handling(lambda number, frame: seen.append(number), signal.SIGINT, signal.SIGTERM):
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
