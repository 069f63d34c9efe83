"""Devices, what they compute in, and signals."""

import os
import signal

import pytest
import torch

from s2f import device as place
from s2f.errors import DeviceError, UsageError

CPU = torch.device("cpu")


def test_a_device_that_is_there_is_found() -> None:
    assert place.choose_device("cpu") == CPU
    assert torch.zeros(1, device=place.choose_device()).item() == 0


@pytest.mark.parametrize("name", ["banana", "meta", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_refused_by_name(name: str) -> None:
    with pytest.raises(DeviceError, match=name):
        place.choose_device(name)


def test_a_cpu_computes_in_single_precision_and_bfloat16() -> None:
    x = torch.ones(2, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        place.check_precision(precision, CPU)
        with place.computing(CPU, precision):
            assert (x @ x).dtype == dtype
    with pytest.raises(DeviceError, match="fp16"):
        place.check_precision("fp16", CPU)
    with pytest.raises(UsageError, match="'int8'"):
        place.check_precision("int8", CPU)


def test_too_little_memory_is_told() -> None:
    with pytest.raises(DeviceError, match="cpu: has too little memory: CUDA out of memory"):
        with place.computing(CPU):
            raise torch.OutOfMemoryError("CUDA out of memory\nand a page of figures")


def test_one_thread_is_for_a_while() -> None:
    before = torch.get_num_threads()
    with place.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_sigterm_ends_as_ctrl_c_does_or_is_remembered() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), place.ended_by_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    with place.interruptible() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupted()
    assert signal.getsignal(signal.SIGTERM) is before
