"""Where and how a program runs: the device, its precision, threads, memory and signals.

Importing this does not import torch, which is slow, and which most that write files do without.
"""

import contextlib
import ctypes
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from s2f.errors import DeviceError, UsageError

if TYPE_CHECKING:
    import torch

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # names of dtypes of torch


def check_precision(precision: str, device: "torch.device") -> None:
    """Make sure that a device computes in a precision.

    Raises:
        UsageError: if there is no such precision.
        DeviceError: if the device does not.
    """
    if precision not in PRECISIONS:
        raise UsageError(
            f"there is no precision {precision!r}", hint=f"choose one of {', '.join(PRECISIONS)}"
        )
    if precision == "fp16" and device.type == "cpu":
        raise DeviceError(
            "a CPU does not compute in fp16", hint="use fp32 or bf16, or --device cuda"
        )


@contextlib.contextmanager
def computing(device: "torch.device", precision: str = "fp32") -> Iterator[None]:
    """Compute without gradients, in a precision where that is safe, and the same way each time.

    `fp32` is that on a GPU too, where convolutions are otherwise rounded to TF32.

    Raises:
        DeviceError: if the device has too little memory.
    """
    import torch

    dtype = getattr(torch, PRECISIONS[precision])
    cudnn = torch.backends.cudnn
    try:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
            cudnn.flags(
                enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
            ),
        ):
            yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"{device}: has too little memory: {str(error).splitlines()[0]}",
            hint="end what else uses it, or use --device cpu",
        ) from error


DEVICES = ("cpu", "cuda", "mps")
_ONE_AT_A_TIME = threading.Lock()


def choose_device(name: str = "auto") -> "torch.device":
    """Turn `auto`, `cpu`, `cuda`, `cuda:N` or `mps` into a device that is there.

    Raises:
        DeviceError: if the name is not a device or this machine lacks it.
    """
    import torch

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


def keep_memory(*, largest: int | None = 2**25, spare: int = 2**28) -> None:
    """Let glibc keep what is freed: giving arrays back and getting them anew costs more than them.

    It holds for the whole process from here on. Other C libraries are left as they are.

    Args:
        largest: arrays of up to so many bytes are kept; None for all of them.
        spare: bytes that are kept at most; -1 for no limit.

    Source: mallopt(3): M_TRIM_THRESHOLD (-1), M_MMAP_THRESHOLD (-3) and M_MMAP_MAX (-4).
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        if largest is None:
            mallopt(-4, 0)
        else:
            mallopt(-3, largest)
        mallopt(-1, spare)


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
