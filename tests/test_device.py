"""Devices, what they compute in, and signals."""

import contextlib
import errno
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
import torch
from trees import interruptible

from s2f import device as place
from s2f.errors import DeviceError, UsageError
from s2f.files import sweep

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


def test_convolutions_and_products_are_rounded_to_tf32_alike() -> None:
    """As a GPU would; torch's own defaults are that cuDNN's are, and others are not."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    assert before == [True, False]
    for precision, rounded in (("fp32", False), ("tf32", True), ("bf16", False)):
        for how in (place.rounding(precision), place.computing(CPU, precision)):
            with how:
                assert [backend.allow_tf32 for backend in backends] == [rounded, rounded]
            assert [backend.allow_tf32 for backend in backends] == before
    with pytest.raises(DeviceError, match="cpu does not compute in tf32"):
        place.check_precision("tf32", CPU)


def test_too_little_memory_is_told() -> None:
    with pytest.raises(DeviceError, match="cpu: has too little memory: CUDA out of memory"):
        with place.computing(CPU):
            raise torch.OutOfMemoryError("CUDA out of memory\nand a page of figures")


def test_one_thread_is_for_a_while() -> None:
    before = torch.get_num_threads()
    with place.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


BUSY = """
import hashlib, os, pathlib, sys, time
from s2f.device import end_by_signals
end_by_signals(pathlib.Path(sys.argv[1]).touch)
if not (fork := os.fork()):
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        os._exit(0)
print(fork, flush=True)
try:
    if sys.argv[2] == "deep":  # in C, which no signal ends
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", os.waitpid(fork, 0)[1], flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["", "deep"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_for_putting_away_and_a_second_one_ends_at_once(tmp_path, number, how) -> None:
    away = tmp_path / "away"
    command = [sys.executable, "-c", BUSY, away, how]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    group = {"start_new_session": True, "preexec_fn": interruptible}
    with subprocess.Popen(command, **pipes, **group) as process:
        fork = int(process.stdout.readline())
        time.sleep(0.3)  # until that runs too
        if not how:  # one to the whole group, as of a terminal, is one
            os.killpg(process.pid, number)
            left = 0 if number == signal.SIGINT else int(number)
            assert process.stdout.readline() == f"interrupted {left}\n"
            assert process.poll() is None and not away.exists()
        else:
            process.send_signal(number)
        for _ in range(2):  # the same again is no second one
            time.sleep(0.1)
            process.send_signal(number)
        time.sleep(place.AGAIN)
        assert process.poll() is None and not away.exists()
        started = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=30) == 128 + number
        assert time.monotonic() - started < 2
        with contextlib.suppress(ProcessLookupError):
            os.kill(fork, signal.SIGKILL)
        assert away.exists() and "Traceback" not in process.stderr.read()


def test_what_is_ignored_stays_so() -> None:
    code = "import os, signal; from s2f.device import end_by_signals; end_by_signals(print)\n"
    code += "os.kill(os.getpid(), signal.SIGHUP); print(signal.getsignal(signal.SIGHUP).name)"
    command = f"trap '' HUP; {shlex.join([sys.executable, '-c', code])}"  # as nohup does
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout == "SIG_IGN\n"


def test_a_signal_is_remembered_for_a_loop() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        before = signal.getsignal(number)
        with place.interruptible() as interrupted:
            assert not interrupted()
            os.kill(os.getpid(), number)
            assert interrupted()
        assert signal.getsignal(number) is before
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with place.interruptible() as interrupted:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupted()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_end_at_once_is_one_also_where_nothing_can_be_put_away() -> None:
    code = "import os, signal, time; from s2f.device import end_by_signals\n"
    code += "end_by_signals(lambda: 1 / 0)\n"
    code += "for number in (signal.SIGTERM, signal.SIGHUP):\n"
    code += "    try:\n        os.kill(os.getpid(), number); time.sleep(9)\n"
    code += "    except KeyboardInterrupt:\n        pass"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == 128 + signal.SIGHUP


STARTED = """
    import multiprocessing, os, signal, sys
    from multiprocessing import util
    from s2f.device import starting_processes

    def run():
        with starting_processes():
            context = multiprocessing.get_context("forkserver")
            process = context.Process(target=print, args=("started",), kwargs={"flush": True})
            process.start()
        process.join()

    if __name__ == "__main__":
        run()
        print(util.get_temp_dir(), flush=True)
        if sys.argv[1] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="its pipes have names in no folder")
def test_sockets_are_where_they_have_names_and_do_not_stay(tmp_path) -> None:
    (script := tmp_path / "started.py").write_text(textwrap.dedent(STARTED))
    (long := tmp_path / ("job" * 40)).mkdir()

    def started(how: str, folder: Path) -> Path:
        command, env = [sys.executable, str(script), how], os.environ | {"TMPDIR": str(folder)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (-9 if how == "killed" else 0, "")
        said, used = done.stdout.splitlines()
        assert said == "started"
        return Path(used)

    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # pytest's have long ones
        short = Path(name)
        assert started("killed", short).parent == short
        assert len(list(short.glob(".s2f-*"))) == 1
        assert not started("ends", short).exists()
        assert not list(short.glob(".s2f-*"))
    left = started("killed", long)
    assert left.parent == Path("/tmp")
    sweep(left.parent)
    assert not left.exists() and not list(long.iterdir())


def test_where_nothing_temporary_can_be_the_cure_is_told() -> None:
    said = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/gone']")
    with (
        pytest.raises(DeviceError, match="No usable temporary") as told,
        place.starting_processes(),
    ):
        raise said
    assert "TMPDIR" in str(told.value.hint)
