"""Processes that work for this one, in which a crash costs one item."""

import contextlib
import importlib
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from s2f.console import hush_libraries
from s2f.device import keep_memory, shortage, starting_processes
from s2f.errors import S2FError, WorkerError

if TYPE_CHECKING:
    from pebble import ProcessPool

ITEM_SECONDS = 900.0  # more than a day of sound takes; a decoder may hang in a damaged file


def run_in_workers(
    function: Callable[..., Any],
    items: Iterable[tuple[Any, ...]],
    *,
    workers: int,
    preload: Sequence[str] = (),
    seconds: float = ITEM_SECONDS,
) -> Generator[tuple[int, Any]]:
    """Call a picklable function on each item, in as many processes at a time as `workers`.

    A decoder that crashes, or a kernel that is out of memory and kills a process, costs the item
    that this process held and nothing else; so does one that takes more than `seconds`. An item is
    the function's arguments, of which the first names it in messages; it is taken from `items` only
    when a worker is free for it. `preload` are modules to import once for all processes, where the
    system can. Yields, in the order in which they end, the place of an item and what the function
    returned, the `S2FError` that it raised, or else a `WorkerError`.
    """
    waiting = enumerate(items)
    # A pool a worker: in one for all, a process that dies while it holds the pool's lock or
    # before it has told of its item would cost the others theirs.
    idle: list[ProcessPool] = []
    running: dict[Future[Any], tuple[int, Any, ProcessPool]] = {}

    def hand_out() -> None:
        while len(running) < workers and (taken := next(waiting, None)):
            place, item = taken
            pool = idle.pop() if idle else _new_pool(preload)
            future = pool.schedule(_attempt, (function, item), timeout=seconds)
            running[future] = place, item[0], pool

    try:
        hand_out()
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                place, name, pool = running.pop(future)
                error = future.exception()
                if error is None:
                    idle.append(pool)
                else:
                    _end_pools([pool])
                yield place, _death(name, error, seconds) if error else future.result()
                hand_out()  # when the result was dealt with: a kill costs a worker one item
    finally:
        _end_pools([*idle, *(pool for _, _, pool in running.values())])


class Worker:
    """A process that is kept for one call after the other, where `run_in_workers` has many at once.

    Whatever kills it costs the one call. It is started by the first, and again where it died.
    """

    def __init__(self, preload: Sequence[str] = (), seconds: float = ITEM_SECONDS) -> None:
        """Choose modules to import, and how long a call may take."""
        self._preload, self._seconds = preload, seconds
        self._pools: list[ProcessPool] = []

    def __call__(self, function: Callable[..., Any], *item: Any) -> Any:
        """Call a picklable function on an item, of which the first value names it in messages.

        Raises the `S2FError` that the function raised, or else a `WorkerError`.
        """
        pool = self._pools[0] if self._pools else _new_pool(self._preload)
        self._pools = [pool]
        try:
            future = pool.schedule(_attempt, (function, item), timeout=self._seconds)
            while not future.done():  # never, where another thread stopped the pool too early
                wait([future], timeout=1)
                if pool not in self._pools:
                    raise CancelledError
            error = future.exception()
        except (CancelledError, RuntimeError) as closed:  # by another thread
            error = closed
        if error:
            self.close()
            raise _death(item[0], error, self._seconds)
        value = future.result()
        if isinstance(value, S2FError):
            raise value
        return value

    def close(self) -> None:
        """End the process, if there is one."""
        pools, self._pools = self._pools, []
        _end_pools(pools)


def _new_pool(preload: Sequence[str]) -> "ProcessPool":
    """Make a pool of one process: forked from one that is small, has no threads and is ready."""
    from pebble import ProcessPool  # takes a while, and most commands do without

    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload([*preload])
    with starting_processes():
        pool = ProcessPool(max_workers=1, initializer=_begin, initargs=(preload,), context=context)
    with _sigint_blocked(), starting_processes():
        assert pool.active  # starts it
    return pool


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Start processes that never see Ctrl-C: it is for this one alone, which then ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # first: starting it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(preload: Sequence[str]) -> None:
    hush_libraries()
    keep_memory()
    for module in preload:
        with contextlib.suppress(ImportError):  # the item that needs it says so better
            importlib.import_module(module)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # there is a worker a core


def _attempt(function: Callable[..., Any], item: tuple[Any, ...]) -> Any:
    try:
        return function(*item)
    except S2FError as error:
        return error
    except MemoryError:
        return WorkerError(f"{item[0]}: needs more memory than there is", hint="check the file")
    except Exception as error:  # a bug on one file must not cost the other million
        if isinstance(error, ImportError) and (short := shortage(error)):
            return short  # of every file
        last = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{item[0]}: {type(error).__name__} in {last.name}:{last.lineno}: {error}"
        hint = "this is a bug of s2f: report it, with the file if you can"
        return WorkerError(message, hint=hint)


def _death(name: object, error: BaseException, seconds: float) -> WorkerError:
    if isinstance(error, TimeoutError):
        hint = "check the file; it may be damaged"
        return WorkerError(f"{name}: took more than {seconds:g} s", hint=hint)
    code = getattr(error, "exitcode", None)
    how = repr(error) if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"
    cure = "the system may be out of memory: give fewer --workers"
    hint = cure if code == -signal.SIGKILL else "check the file"
    return WorkerError(f"{name}: the process that read it died ({how})", hint=hint)


def _end_pools(pools: Sequence["ProcessPool"]) -> None:
    for pool in pools:
        pool.stop()  # type: ignore[no-untyped-call]
    for pool in pools:
        pool.join()
