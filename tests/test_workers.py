"""Workers: every item is answered once, whatever happens to the process that holds it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s2f import prep
from s2f.errors import InputError, WorkerError


def act(name: str, what: str) -> Any:
    """Do what the item says."""
    if what == "refuse":
        raise InputError(f"{name}: is wrong", hint="mend it")
    if what == "bug":
        raise ValueError("unforeseen")
    if what == "memory":
        raise MemoryError
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        os._exit(3)
    if what == "hang":
        time.sleep(60)
    return what.upper()


def outcomes(*whats: str, n: int = 2, **options: float) -> list[Any]:
    items = [(f"item{k}", what) for k, what in enumerate(whats)]
    results = dict(prep.run_in_workers(act, items, workers=n, **options))
    assert sorted(results) == list(range(len(whats)))
    return [results[k] for k in range(len(whats))]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_every_item_is_answered_under_its_place(n: int) -> None:
    assert outcomes(*"abcdefgh", n=n) == list("ABCDEFGH")


def test_no_items_are_no_work() -> None:
    assert outcomes() == []


def test_our_errors_come_back_whole() -> None:
    (error,) = outcomes("refuse")
    assert isinstance(error, InputError)
    assert (error.message, error.hint) == ("item0: is wrong", "mend it")


@pytest.mark.parametrize(
    ("what", "message", "hint"),
    [
        ("kill", r"item1: the process that read it died \(signal 9\)", "fewer --workers"),
        ("exit", r"item1: the process that read it died \(exit code 3\)", "check the file"),
        ("bug", r"item1: ValueError in act:\d+: unforeseen", "report it"),
        ("memory", "item1: needs more memory", "check the file"),
        ("hang", "item1: took more than 5 s", "damaged"),
    ],
)
def test_what_goes_wrong_costs_its_own_item_only(what: str, message: str, hint: str) -> None:
    a, error, b, c = outcomes("a", what, "b", "c", seconds=5)
    assert (a, b, c) == ("A", "B", "C")
    with pytest.raises(WorkerError, match=message) as raised:
        raise error
    assert hint in str(raised.value.hint)


def test_all_workers_may_die() -> None:
    results = outcomes("kill", "kill", "kill", "a")
    assert [isinstance(result, WorkerError) for result in results] == [True, True, True, False]


def test_a_worker_holds_one_item() -> None:
    """Items are taken when a worker is free: what was taken and not answered is at most n.

    Also where several have ended at once.
    """
    taken: list[int] = []

    def items() -> Iterator[tuple[str, str]]:
        for k in range(20):
            taken.append(k)
            yield f"item{k}", "a"

    for answered, _ in enumerate(prep.run_in_workers(act, items(), workers=3), start=1):
        assert len(taken) <= answered + 3
        time.sleep(0.05)


def note_and_wait(name: str, folder: str) -> None:
    """Note the process; `b` never ends, and `a` when `b` is there."""
    Path(folder, name).write_text(str(os.getpid()))
    while name == "b" or not (Path(folder, "b").exists() and Path(folder, "b").read_text()):
        time.sleep(0.01)


def test_leaving_early_ends_the_processes(tmp_path: Path) -> None:
    run = prep.run_in_workers(
        note_and_wait, [("a", str(tmp_path)), ("b", str(tmp_path))], workers=2
    )
    assert next(run) == (0, None)
    run.close()
    for name in "ab":
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / name).read_text()), 0)


SLOW_START = """
import time
print(flush=True)
time.sleep(3)
"""
INTERRUPTED = """
from s2f import workers
try:
    list(workers.run(print, [(1,)], workers=1, preload=["slow_start"]))
except KeyboardInterrupt:
    pass
"""


def test_an_interruption_while_processes_start_is_for_the_parent_alone(tmp_path: Path) -> None:
    (tmp_path / "slow_start.py").write_text(SLOW_START)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout
    process.stdout.readline()  # the module is being imported
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (0, b"")


def test_there_is_a_core() -> None:
    assert 1 <= prep.usable_cores() <= (os.cpu_count() or 1)
