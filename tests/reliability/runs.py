"""Runs of `s2f` in processes that are forked when torch is imported, and end in many ways.

`Runs` starts one process, `serve`, which forks another for each run: so a run takes as long as its
work, and a hundred can be killed in a minute. The moment of a kill is a number of seconds, or the
k-th time that the run touches a file below a folder (opens, renames, links, makes or removes it),
as Python's audit events tell: the same one every time.
"""

import ctypes
import dataclasses
import errno
import fcntl
import json
import mmap
import multiprocessing
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
EVENTS = {"open": 1, "os.rename": 2, "os.link": 2, "os.symlink": 2, "os.mkdir": 1}
EVENTS |= {"os.remove": 1, "os.rmdir": 1, "os.truncate": 1, "os.utime": 1, "os.scandir": 1}
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18


@dataclasses.dataclass
class Run:
    """A command, and what becomes of it."""

    args: Sequence[object]
    root: Path | None = None  # below which its touches are counted
    kill_at: int | None = None  # touch at which it is killed, with its processes
    kill_after: float | None = None  # or seconds
    alone: bool = False  # it is killed without its processes
    hold_at: int | None = None  # touch at which it waits, until the next run has ended
    ranks: int = 1  # processes that train together
    locks: str = "true"  # or "none": flock says that there are none; "false": it does nothing
    forks: bool = True  # whether its workers are forked from it, which takes no time
    limits: dict[str, int] = dataclasses.field(default_factory=dict)  # of resources
    full: list[Any] | None = None  # a folder that is a disk of so many bytes, with these files
    hidden: list[str] = dataclasses.field(default_factory=list)  # folders that are read-only
    gone: list[str] = dataclasses.field(default_factory=list)  # folders that are not there
    again: bool = False  # on the disk, with room, it is run a second time
    kept: str = ""  # where that disk's files are copied to, before and after the second run
    cwd: str = ""  # "gone": one that was deleted
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    powerless: bool = False  # root, if it is, has no more rights than permissions give
    seconds: float = 120.0  # that it may take


@dataclasses.dataclass
class Ended:
    """How a run ended."""

    code: int  # or minus the signal
    touches: int
    seconds: float
    out: str
    err: str
    hung: bool = False


class Runs:
    """The process that forks, for a `with`."""

    def __init__(self, models: Path) -> None:
        self._command = [sys.executable, __file__, str(models)]

    def __enter__(self) -> "Runs":
        paths = [str(TESTS.parent), str(TESTS), str(TESTS / "reliability")]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(self._command, env=env, text=True, **pipes)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes what it reads: it ends

    def warm(self) -> None:
        """Import what takes long, before many runs."""
        assert self() == []

    def __call__(self, *runs: Run) -> Any:
        """Run one, or several of which each is held while the next runs."""
        told = json.dumps([dataclasses.asdict(run) for run in runs], default=str)
        self._process.stdin.write(told + "\n")
        self._process.stdin.flush()
        ended = [Ended(**one) for one in json.loads(self._process.stdout.readline())]
        assert not any(one.hung for one in ended), ended
        return ended[0] if len(runs) == 1 else ended


def serve(models: Path) -> None:
    """Read runs, a line of JSON at a time, and write how they ended."""
    answers = os.dup(1)
    os.dup2(2, 1)
    prepare(models)
    for line in sys.stdin:
        runs = [Run(**one) for one in json.loads(line)]
        if not runs:
            warm()
        told = json.dumps([dataclasses.asdict(one) for one in _nested(runs)] if runs else [])
        os.write(answers, told.encode() + b"\n")


def prepare(models: Path) -> None:
    """Import what commands need, and put the tests' networks and finder of faces in its place."""
    import pytest

    patch = pytest.MonkeyPatch()
    import conftest
    import filelock  # noqa: F401
    import pebble  # noqa: F401
    from demo_sources import shrink_recipe
    from face_trees import Found
    from published_files import SPEAKER
    from typer.testing import CliRunner

    from s2f import (
        checkpoint,
        cli,
        dataset,
        face_detection,
        files,
        generate,  # noqa: F401
        prep_audio,  # noqa: F401
        prep_faces,
        speaker_encoder,
        train,
        train_model,
    )

    with tempfile.TemporaryDirectory() as folder, files.alone_in(Path(folder)):
        CliRunner().invoke(cli.app, ["prep", "pair", "--faces", folder, "--voices", folder, "-q"])
    conftest.shrink(patch)
    shrink_recipe(patch)
    patch.setitem(speaker_encoder.CONFIGS, "resemblyzer", SPEAKER)
    patch.setattr(train_model, "installed_detector", lambda: None)
    patch.setattr(checkpoint, "MODELS", models)
    patch.setenv("S2F_MODELS", str(models / "none"))
    patch.setattr(train, "PAUSE", 0)
    for module in (prep_faces, face_detection):
        patch.setattr(module, "load_detector", lambda *name_and_device: Found(), raising=False)
        patch.setattr(module, "check_detector", lambda name, device: None, raising=False)
    patch.setattr(face_detection, "choose_detector", lambda name: name or "face-alignment")
    patch.setattr(dataset, "choose_detector", lambda name: name or "face-alignment")


def warm() -> None:
    """Import what some commands need, and draw curves, which finds fonts."""
    import pydantic  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import torch._dynamo  # noqa: F401

    from s2f import report, visualize  # noqa: F401

    record = {"step": 1, "lr": 1.0, "train": {"a": 1.0}, "val": {"a": 1.0}}
    visualize.draw_losses([record], best=1, stages={})


def _nested(runs: Sequence[Run]) -> list[Ended]:
    """Start the first, and when it is held the others."""
    first, *others = runs
    count = mmap.mmap(-1, 16)  # touches, and whether it may go on
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        child = os.fork()
        if not child:
            _become(first, count, out.fileno(), err.fileno())
        ended: list[Ended] = []
        hung, code, hold = False, None, first.hold_at
        while code is None:
            gone, status = os.waitpid(child, os.WNOHANG)
            seconds = time.monotonic() - began
            touches = struct.unpack("qq", count[:16])[0]
            if gone:
                code = os.waitstatus_to_exitcode(status)
            elif hold is not None and touches >= hold:
                ended = _nested(others)
                count[8:16] = struct.pack("q", 1)
                hold = None
            elif first.kill_after is not None and seconds >= first.kill_after:
                os.kill(child, signal.SIGKILL) if first.alone else _kill_group(child)
                first.kill_after = None
            elif seconds > first.seconds:
                hung = True
                _kill_group(child)
            else:
                time.sleep(0.001)
        if code < 0 and not first.alone:
            _kill_group(child)  # who was being forked just then
        seconds = time.monotonic() - began
        told = []
        for file in (out, err):
            file.seek(0)
            told.append(file.read().decode(errors="replace"))
        touches = struct.unpack("qq", count[:16])[0]
        return [Ended(code, touches, seconds, *told, hung), *ended]


def _kill_group(child: int) -> None:
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _become(run: Run, count: mmap.mmap, out: int, err: int) -> None:
    """Be the process of a run; never returns."""
    code = 99
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.environ.update(run.env)
        tempfile.tempdir = None  # which may be told otherwise there
        if run.full or run.hidden or run.gone:
            _unshare()
        if run.full:
            folder, size, files = run.full
            Path(folder).mkdir(parents=True, exist_ok=True)
            _mount("tmpfs", folder, 0, f"size={size}")
            shutil.copytree(files, folder, dirs_exist_ok=True)
        for folder in run.hidden:
            _mount(folder, folder, MS_BIND | MS_REC)
            _mount("", folder, MS_BIND | MS_REMOUNT | MS_RDONLY)
        for folder in run.gone:
            _mount("/proc/self/ns", folder, MS_BIND)  # where nothing can be made
        if run.cwd == "gone":
            os.chdir(tempfile.mkdtemp())
            Path.cwd().rmdir()
        elif run.cwd:
            os.chdir(run.cwd)
        if run.full:
            code = _twice(run, count)
        else:
            code = _ranks(run, count)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _twice(run: Run, count: mmap.mmap) -> int:
    """Run on a full disk, and again with room; both in processes of their own."""
    folder = run.full[0]
    codes = []
    for turn in range(1 + run.again):
        if turn:
            _mount("tmpfs", folder, MS_REMOUNT, "size=1g")
        if not (child := os.fork()):
            code = 99
            try:
                code = _ranks(run, count)
            finally:
                sys.stdout.flush()
                os._exit(code)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        if run.kept:
            shutil.copytree(folder, f"{run.kept}/{turn}", symlinks=True)
    print(json.dumps(codes), file=sys.stderr)
    return codes[0]


def _ranks(run: Run, count: mmap.mmap) -> int:
    if run.ranks == 1:
        return _command(run, count)
    from line_task import free_port

    os.environ |= {"MASTER_ADDR": "localhost", "WORLD_SIZE": str(run.ranks)}
    os.environ["MASTER_PORT"] = str(free_port())
    children = []
    for rank in range(run.ranks):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        if not (child := os.fork()):
            code = 99
            try:
                code = _command(run if rank == 0 else dataclasses.replace(run, root=None), count)
            finally:
                sys.stdout.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return codes[0] or max(codes, key=abs)  # the first speaks for all


def _command(run: Run, count: mmap.mmap) -> int:
    """Do what typing the command does; gives its exit code."""
    import torch

    from s2f import cli

    # Renews torch's pool of threads, which is broken by a fork: where two threads do so at once,
    # as the first that they do, one finds none ("Invalid thread pool!").
    torch.set_num_threads(1)
    if run.forks:
        context = multiprocessing.get_context
        multiprocessing.get_context = lambda method=None: context("fork")
    if run.locks == "none":
        fcntl.flock = _no_lock
    elif run.locks == "false":
        fcntl.flock = lambda file, how: None
    if run.powerless:
        # Version 3 of the call, this process; and no capability of 64.
        head, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
        _libc("capset", head, none)
    for name, limit in run.limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(kind, (limit, limit))
    if run.root:
        _watch(run, count)
    sys.argv = ["s2f", *map(str, run.args)]
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _no_lock(file: object, how: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def _watch(run: Run, count: mmap.mmap) -> None:
    """Count touches of files below a folder, and be killed or wait at one of them."""
    root, me, busy = str(Path(run.root).absolute()), os.getpid(), []
    below = root + os.sep

    def hear(event: str, given: tuple[Any, ...]) -> None:
        if event not in EVENTS or os.getpid() != me or busy:
            return
        busy.append(event)
        try:
            paths = given[: EVENTS[event]]
            if event == "open" and not (isinstance(given[2], int) and given[2] & 3):
                return  # reads only
            for path in paths:
                if isinstance(path, str | bytes | os.PathLike):
                    name = str(Path(os.fsdecode(path)).absolute())
                    if name == root or name.startswith(below):
                        break
            else:
                return
            touches = struct.unpack("q", count[:8])[0] + 1
            count[:8] = struct.pack("q", touches)
            if touches == run.kill_at:
                if not run.alone:
                    os.killpg(0, signal.SIGKILL)
                os.kill(me, signal.SIGKILL)
            if touches == run.hold_at:
                while not struct.unpack("q", count[8:16])[0]:
                    time.sleep(0.005)
        finally:
            busy.pop()

    sys.addaudithook(hear)


def _libc(name: str, *given: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*given):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _unshare() -> None:
    """Be in a namespace of mounts of its own, as root or, where this is none, as if."""
    user, group = os.getuid(), os.getgid()
    if user == 0:
        _libc("unshare", CLONE_NEWNS)
    else:
        _libc("unshare", CLONE_NEWNS | CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _libc("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)


def _mount(source: str, target: str, flags: int, options: str = "") -> None:
    kind = b"tmpfs" if source == "tmpfs" else None
    given = os.fsencode(source), os.fsencode(target), kind, flags, os.fsencode(options) or None
    _libc("mount", *given)


def can_mount() -> bool:
    """Tell whether a process here can have mounts of its own."""
    if not sys.platform.startswith("linux"):
        return False
    if not (child := os.fork()):
        try:
            _unshare()
            _mount("tmpfs", "/mnt", 0, "size=4096")
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
