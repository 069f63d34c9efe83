"""How networks compute: the precision, and that it comes out the same each time."""

import contextlib
from collections.abc import Iterator

import torch

from s2f.errors import DeviceError, UsageError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str, device: torch.device) -> None:
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
def computing(device: torch.device, precision: str = "fp32") -> Iterator[None]:
    """Compute without gradients, in a precision where that is safe, and the same way each time.

    `fp32` is that on a GPU too, where convolutions are otherwise rounded to TF32.

    Raises:
        DeviceError: if the device has too little memory.
    """
    dtype = PRECISIONS[precision]
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
