"""A function on many items in several processes, any of which may die.

A decoder that crashes, or a kernel that is out of memory and kills a process, costs the item that
this process held and nothing else. Knows nothing of files.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from s2f.errors import S2FError, WorkerError

ITEM_SECONDS = 900.0  # more than a day of sound takes; a decoder may hang in a damaged file


class _Job(NamedTuple):
    process: BaseProcess
    place: int
    name: object
    deadline: float


def count() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(
    function: Callable[..., Any],
    items: Iterable[tuple[Any, ...]],
    *,
    workers: int,
    preload: Sequence[str] = (),
    seconds: float = ITEM_SECONDS,
) -> Generator[tuple[int, Any]]:
    """Call a function on each item, several at a time, each in a process of its own.

    An item is taken from `items` only when a worker is free for it, and a worker holds one.

    Args:
        function: picklable; called with the elements of an item.
        items: tuples; the first element names the item in messages.
        workers: processes at a time.
        preload: modules to import once for all processes, where the system can.
        seconds: that an item may take before its process is killed.

    Yields:
        The place of an item among `items` and what the function returned, or the `S2FError` that
        it raised; a `WorkerError` if it raised another one, its process died or took too long.
        In the order in which they end.
    """
    context = _context(preload)
    waiting = enumerate(items)
    jobs: dict[Connection, _Job] = {}
    idle: list[tuple[Connection, BaseProcess]] = []

    def hand_out() -> None:
        while len(jobs) < workers:
            taken = next(waiting, None)
            if taken is None:
                return
            place, item = taken
            connection, process = idle.pop() if idle else _start(context, function)
            with contextlib.suppress(OSError):  # it died meanwhile: its end is seen below
                connection.send(item)
            jobs[connection] = _Job(process, place, item[0], time.monotonic() + seconds)

    try:
        hand_out()
        while jobs:
            first = min(job.deadline for job in jobs.values())
            ready = wait(list(jobs), max(0.0, first - time.monotonic()))
            for connection in [c for c in list(jobs) if c in ready or _is_late(jobs[c])]:
                job = jobs.pop(connection)
                result: Any
                if connection in ready:
                    result = _receive(connection, job)
                else:
                    job.process.kill()
                    result = WorkerError(
                        f"{job.name}: took more than {seconds:g} s",
                        hint="check the file; it may be damaged",
                    )
                if job.process.is_alive() and not isinstance(result, WorkerError):
                    idle.append((connection, job.process))
                else:
                    _stop(connection, job.process)
                hand_out()  # before the result is dealt with, so that no worker waits for that
                yield job.place, result
    finally:
        for connection, process in [*idle, *((c, job.process) for c, job in jobs.items())]:
            _stop(connection, process)


def _is_late(job: _Job) -> bool:
    return time.monotonic() >= job.deadline


def _context(preload: Sequence[str]) -> Any:
    """Choose how processes start: forked from one that is small, has no threads and is ready."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*preload])
    # Control-C is for this process alone, which then ends the others: they inherit the mask. The
    # tracker comes first, as starting it would unblock the signal.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _start(context: Any, function: Callable[..., Any]) -> tuple[Connection, BaseProcess]:
    ours, its = context.Pipe()
    process = context.Process(target=_serve, args=(its, function), daemon=True)
    process.start()
    its.close()  # or the end of the process would not end the pipe
    return ours, process


def _stop(connection: Connection, process: BaseProcess) -> None:
    connection.close()
    process.kill()
    process.join()


def _receive(connection: Connection, job: _Job) -> Any:
    try:
        return connection.recv()
    except (EOFError, OSError):
        job.process.join()
        code = job.process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        cure = "check the file"
        if code == -signal.SIGKILL:
            cure = "the system may be out of memory: give fewer --workers"
        return WorkerError(f"{job.name}: the process that read it died ({how})", hint=cure)


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


def _serve(connection: Connection, function: Callable[..., Any]) -> None:
    """Work in a process: take an item, give back its result, until there are no more."""
    keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted and ends this
    while True:
        try:
            item = connection.recv()
        except (EOFError, OSError):  # the parent ended
            return
        with contextlib.suppress(BrokenPipeError):
            connection.send(_attempt(function, item))


def _attempt(function: Callable[..., Any], item: tuple[Any, ...]) -> Any:
    try:
        return function(*item)
    except S2FError as error:
        return error
    except MemoryError:
        return WorkerError(f"{item[0]}: needs more memory than there is", hint="check the file")
    except Exception as error:  # a bug on one file must not cost the other million
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}" if trace else "?"
        return WorkerError(
            f"{item[0]}: {type(error).__name__} in {where}: {error}",
            hint="this is a bug of s2f: report it, with the file if you can",
        )
