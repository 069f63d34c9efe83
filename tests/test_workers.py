"""Workers: every item is answered once, whatever happens to the process that holds it."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s2f import workers
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
    results = dict(workers.run(act, items, workers=n, **options))
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
        ("hang", "item1: took more than 0.5 s", "damaged"),
    ],
)
def test_what_goes_wrong_costs_its_own_item_only(what: str, message: str, hint: str) -> None:
    a, error, b, c = outcomes("a", what, "b", "c", seconds=0.5)
    assert (a, b, c) == ("A", "B", "C")
    with pytest.raises(WorkerError, match=message) as raised:
        raise error
    assert hint in str(raised.value.hint)


def test_all_workers_may_die() -> None:
    results = outcomes("kill", "kill", "kill", "a")
    assert [isinstance(result, WorkerError) for result in results] == [True, True, True, False]


def test_a_worker_holds_one_item() -> None:
    """Items are taken when a worker is free: what was taken and not answered is at most n."""
    taken: list[int] = []

    def items() -> Iterator[tuple[str, str]]:
        for k in range(20):
            taken.append(k)
            yield f"item{k}", "a"

    for answered, _ in enumerate(workers.run(act, items(), workers=3), start=1):
        assert len(taken) <= answered + 3


def note_and_wait(name: str, folder: str) -> None:
    Path(folder, name).write_text(str(os.getpid()))
    time.sleep(60)


def test_leaving_early_ends_the_processes(tmp_path: Path) -> None:
    run = workers.run(
        note_and_wait, [("a", str(tmp_path)), ("b", str(tmp_path))], workers=2, seconds=0.3
    )
    next(run)
    run.close()
    for file in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)


def test_there_is_a_core() -> None:
    assert 1 <= workers.count() <= (os.cpu_count() or 1)
