"""Which device computes in which precision."""

import pytest
import torch

from s2f.device import check_precision, computing
from s2f.errors import DeviceError, UsageError

CPU = torch.device("cpu")


def test_a_cpu_computes_in_single_precision_and_bfloat16() -> None:
    for precision in ("fp32", "bf16"):
        check_precision(precision, CPU)
    with pytest.raises(DeviceError, match="fp16"):
        check_precision("fp16", CPU)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="'int8'"):
        check_precision("int8", CPU)


def test_products_are_of_the_precision() -> None:
    x = torch.ones(2, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with computing(CPU, precision):
            assert (x @ x).dtype == dtype


def test_too_little_memory_is_told() -> None:
    with pytest.raises(DeviceError, match="cpu: has too little memory: CUDA out of memory"):
        with computing(CPU):
            raise torch.OutOfMemoryError("CUDA out of memory\nand a page of figures")
