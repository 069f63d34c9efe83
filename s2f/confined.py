"""A function in a fresh process that may take so much memory and time, and no more.

For files that others made: what reads them may crash, hang or be lied to about sizes, and costs
this process neither its life nor its memory. The process inherits no open file and answers by a
file of JSON. Memory is limited on Linux and processor time on every system but Windows; the time
on the clock is limited everywhere. This is no sandbox: it guards against accidents of parsers.
"""

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from s2f.errors import CheckpointError, OutputError, S2FError

START_SECONDS = 60.0  # on the clock, to import what the function needs from a slow disk
ANSWER = "answer.json"
ERRORS: Mapping[str, type[S2FError]] = {
    "CheckpointError": CheckpointError,
    "OutputError": OutputError,
}
HINT = "copy or download the file again; it may be damaged, or made to do harm"
# Threads reserve memory, plugins are code beside the file, and neither is needed.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HDF5_PLUGIN_PRELOAD": "::"}


def call(
    module: str, path: Path, folder: Path, *, write: bool, megabytes: int, seconds: float
) -> dict[str, Any]:
    """Call `unpack(path, folder, write)` of a module in a process of its own.

    Args:
        module: its full name; imported there only.
        path: the file that it reads; named in messages.
        folder: an empty one for what it writes.
        write: handed on.
        megabytes: that it may take beyond what its imports take.
        seconds: of processor time that it may take beyond its imports.

    Returns:
        What the function returned: a dict of what JSON has.

    Raises:
        CheckpointError: if the process died or took too much, or the function raised it.
        OutputError: if the function raised it.
    """
    request = [module, str(path), str(folder), write, megabytes, seconds, os.getpid()]
    package = str(Path(__file__).parents[1])
    places = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        done = subprocess.run(
            # -P: nothing is imported from the folder that the user happens to be in
            [sys.executable, "-P", "-m", "s2f.confined", json.dumps(request)],
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(places)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=START_SECONDS + seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(f"{path}: took more than {seconds:g} s to read", hint=HINT) from error
    try:
        answer = json.loads((folder / ANSWER).read_bytes())
    except (OSError, ValueError):
        raise _death(path, done.returncode, done.stderr, seconds) from None
    if "error" in answer:
        raise ERRORS[answer["error"]](answer["message"], hint=answer["hint"])
    return dict(answer["result"])


def _death(path: Path, code: int, stderr: bytes, seconds: float) -> CheckpointError:
    if os.name == "posix" and code == -signal.SIGXCPU:
        return CheckpointError(f"{path}: took more than {seconds:g} s to read", hint=HINT)
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    last = stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
    said = f": {last}" if last else ""
    return CheckpointError(f"{path}: the process that read it died ({how}){said}", hint=HINT)


def _serve(request: str) -> None:
    """Work in the process: limit it, call the function, leave the answer."""
    module, source, folder, write, megabytes, seconds, parent = json.loads(request)
    _die_with(parent)
    function = importlib.import_module(module).unpack
    _limit(megabytes, seconds)
    path, answer = Path(source), Path(folder, ANSWER)
    told: dict[str, Any]
    try:
        told = {"result": function(path, Path(folder), write)}
    except S2FError as error:
        told = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    except MemoryError:
        message = f"{path}: needs more than {megabytes} MB to read"
        told = {"error": "CheckpointError", "message": message, "hint": HINT}
    except Exception as error:  # libraries raise anything at all on bytes made to confuse them
        first = (str(error).strip().splitlines() or [""])[0][:200]
        message = f"{path}: cannot be read: {type(error).__name__}: {first}"
        told = {"error": "CheckpointError", "message": message, "hint": HINT}
    answer.write_text(json.dumps(told), encoding="utf-8")


def _die_with(parent: int) -> None:
    """End when the process that asked ends, even if it is killed; only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def _limit(megabytes: int, seconds: float) -> None:
    if os.name != "posix":
        return
    import resource  # there is none on Windows

    def lower(kind: int, soft: int, hard: int) -> None:
        bound = resource.getrlimit(kind)[1]  # that of the user's shell, which none may raise
        if bound != resource.RLIM_INFINITY:
            soft, hard = min(soft, bound), min(hard, bound)
        resource.setrlimit(kind, (soft, hard))

    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = round(used.ru_utime + used.ru_stime + seconds + 0.5)
    lower(resource.RLIMIT_CPU, cpu, cpu + 1)
    lower(resource.RLIMIT_CORE, 0, 0)
    with suppress(FileNotFoundError):  # only Linux has it, and only Linux minds the limit
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        room = pages * os.sysconf("SC_PAGE_SIZE") + megabytes * 2**20
        lower(resource.RLIMIT_AS, room, room)


if __name__ == "__main__":
    _serve(sys.argv[1])
