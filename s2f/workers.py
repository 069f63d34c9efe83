"""Processes that work for this one, in which a crash costs one item.

From top to bottom: those of this machine, many at once or one, and what they do; and those of a Ray
cluster, in each of which one of these works.
"""

import contextlib
import functools
import importlib
import itertools
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

import s2f
from s2f import files
from s2f.console import hush_libraries
from s2f.device import keep_memory, place_of_sockets, shortage, starting_processes
from s2f.errors import DependencyError, DeviceError, S2FError, UsageError, WorkerError

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

    def __init__(
        self, preload: Sequence[str] = (), seconds: float = ITEM_SECONDS, tries: int = 1
    ) -> None:
        """Choose modules to import, how long a call may take, and how often its process may die."""
        self._preload, self._seconds, self._tries = preload, seconds, tries
        self._pools: list[ProcessPool] = []

    def __call__(self, function: Callable[..., Any], *item: Any) -> Any:
        """Call a picklable function on an item, of which the first value names it in messages.

        Raises the `S2FError` that the function raised, or else a `WorkerError`.
        """
        from pebble import ProcessExpired

        for _ in range(self._tries):
            value = self._call(function, item)
            if not isinstance(value, ProcessExpired):
                break
        if isinstance(value, S2FError):
            raise value
        if isinstance(value, BaseException):
            raise _death(item[0], value, self._seconds)
        return value

    def _call(self, function: Callable[..., Any], item: tuple[Any, ...]) -> Any:
        """Give what a call gave, or what it ended with."""
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
        except BaseException:  # the one that waits is ended: so is what it waits for
            self.close()
            raise
        if error:
            self.close()
            return error
        return future.result()

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
    threading.Thread(target=_end_with_parent, daemon=True).start()
    hush_libraries()
    keep_memory()
    for module in preload:
        with contextlib.suppress(ImportError):  # the item that needs it says so better
            importlib.import_module(module)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # there is a worker a core


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()  # returns when it is gone, however it ended
        os._exit(1)


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


BATCH = 16  # items that a process of a cluster is given at once, at most
AHEAD = 2  # batches on their way for each of its cores, so that none waits for this process
LOSSES = 10  # of a batch, and then of one of its items: processes and nodes that go away
DEATHS = 3  # of an item's process, while that of the cluster goes on
CALL_SECONDS = 10.0  # to reach a cluster
RAY_FOLDER = 35  # bytes of TMPDIR, at most: of the 107 of a socket's path Ray takes some 70
END_SECONDS = 5.0  # in which what is at work ends when it is told to, or it is killed


class RayCluster:
    """A cluster that this process is connected to, by `connected_to_ray`."""

    def __init__(self, ray: Any) -> None:
        """Take the package ray, which is connected."""
        self._ray = ray

    def run(
        self,
        function: Callable[..., Any],
        items: Iterable[tuple[Any, ...]],
        *,
        total: int,
        workers: int | None = None,
        preload: Sequence[str] = (),
        seconds: float = ITEM_SECONDS,
        finish: Callable[[list[Any], list[tuple[Any, ...]]], list[Any]] | None = None,
        device: str = "cpu",
        batch_size: int = BATCH,
    ) -> Generator[tuple[int, Any]]:
        """Do what `run_in_workers` does, on the cluster: its tasks take batches of the items.

        `total` is how many items there are, `workers` how many batches are at work at a time: by
        default as many as keep all cores busy. In a task an item has a process of its own, as with
        `run_in_workers`; if that dies, the item is tried again, `DEATHS` times in all. A task whose
        process or node goes away is tried again by Ray, then its items one by one, as often.

        With `finish`, picklable, what the function returned goes through that in actors, which load
        what it needs once: one for each GPU that is free, or if `device` (auto, cpu, cuda or mps)
        does not want any, one a node. It gets the values of a batch of `batch_size`, errors among
        them, and their items; gives a value for each; and an `S2FError` that it raises ends the
        run. Paths are those of the folder that this process works in, which all nodes must have.

        Raises a `DeviceError` if the cluster lacks the device.
        """
        ray, here = self._ray, (s2f.__version__, str(Path.cwd()))
        read = ray.remote(max_retries=LOSSES)(_work_on_batch)
        actors = self._actors(finish, device) if finish else []
        idle = [*actors]
        waiting = enumerate(items)
        left = total
        alone: deque[tuple[int, Any]] = deque()  # the items of batches that were lost
        reading: dict[Any, list[tuple[int, Any]]] = {}  # batches by what Ray promises of them
        done_reading: deque[tuple[Any, list[tuple[int, Any]]]] = deque()
        finishing: dict[Any, tuple[list[tuple[int, Any]], Any]] = {}

        def hand_out() -> None:
            nonlocal left
            cores = int(ray.cluster_resources().get("CPU", 1)) or 1  # nodes come and go
            most = workers or AHEAD * cores
            while len(reading) + len(done_reading) < most:
                size = min(batch_size, max(1, left // most))  # all end at about one time
                batch = [alone.popleft()] if alone else [*itertools.islice(waiting, size)]
                if not batch:
                    break
                left -= len(batch)
                given = [item for _, item in batch]
                reading[read.remote(function, given, preload, seconds, here)] = batch
            while idle and done_reading:
                values, batch = done_reading.popleft()
                actor, given = idle.pop(), [item for _, item in batch]
                finishing[actor.finish.remote(values, given, here)] = batch, actor

        try:
            hand_out()
            while reading or finishing:
                (promise,), _ = ray.wait([*reading, *finishing], num_returns=1, fetch_local=False)
                if promise in finishing:
                    batch, actor = finishing.pop(promise)
                    idle.append(actor)
                else:
                    batch = reading.pop(promise)
                    if finish:
                        done_reading.append((promise, batch))
                        hand_out()
                        continue
                values = self._values(promise, batch)
                if values is None:
                    alone.extend(batch)
                    left += len(batch)
                hand_out()
                for (place, _), value in zip(batch, values or (), strict=values is not None):
                    yield place, value
        finally:
            self._end([*reading, *finishing], actors)

    def _actors(self, finish: Callable[..., Any], device: str) -> list[Any]:
        ray = self._ray
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if device.startswith("cuda") and not gpus:
            hint = "use --device cpu, or start Ray on nodes that have one"
            raise DeviceError("no node of the Ray cluster has a GPU", hint=hint)
        if device.startswith("cuda:"):
            hint = "use --device cuda: Ray gives each of its GPUs to one process"
            raise UsageError(f"--device {device} is of one machine, not of a cluster", hint=hint)
        on_gpu = gpus > 0 and device in ("auto", "cuda")
        if on_gpu:
            count = max(1, int(ray.available_resources().get("GPU", 0)))
        else:
            nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
            count = max(1, len(nodes))
        kind = ray.remote(
            num_cpus=0,  # or a cluster of one core would have none to read with
            num_gpus=int(on_gpu),
            max_restarts=-1,
            max_task_retries=LOSSES,
            scheduling_strategy="SPREAD",
        )(_Finisher)
        threads = os.environ.get("OMP_NUM_THREADS")
        return [kind.remote(finish, on_gpu, threads) for _ in range(count)]

    def _values(self, promise: Any, batch: list[tuple[int, Any]]) -> list[Any] | None:
        """Get the values of a batch; None if it was lost, and has items to be tried alone."""
        ray = self._ray.exceptions
        try:
            values: list[Any] | S2FError = self._ray.get(promise)
        except ray.RayError as error:
            cause = getattr(error, "cause", error)  # of a RayTaskError: what else went wrong there
            gone = ray.WorkerCrashedError | ray.NodeDiedError | ray.ObjectLostError
            gone |= ray.RayActorError | ray.OutOfMemoryError
            if not isinstance(cause, gone) or getattr(cause, "actor_init_failed", False):
                if isinstance(error, ray.RayTaskError) and not isinstance(cause, ray.RayError):
                    raise  # a bug of ours
                last = (str(error).strip() or repr(error)).splitlines()[-1]
                hint = "install the same s2f, and what this command needs, on every node"
                message = f"a node of the Ray cluster cannot begin: {last}"
                raise DeviceError(message, hint=hint) from error
            if len(batch) > 1:
                return None
            why = _first_line(cause)
            if isinstance(cause, ray.OutOfMemoryError):
                why = "its node ran out of memory"
            message = f"{batch[0][1][0]}: the process that read it was lost each time: {why}"
            return [WorkerError(message, hint="check the file, and the nodes' memory")]
        if isinstance(values, S2FError):
            raise values
        return values

    def _end(self, promises: list[Any], actors: list[Any]) -> None:
        """End what is at work, and wait for it: it writes beside what is removed next."""
        ray = self._ray
        for actor in actors:
            ray.kill(actor)
        for force in (False, True):
            for promise in promises:
                with contextlib.suppress(ray.exceptions.RayError, ValueError):
                    ray.cancel(promise, force=force)
            if promises:
                n = len(promises)
                _, promises = ray.wait(promises, num_returns=n, timeout=END_SECONDS)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _go_to(here: tuple[str, str]) -> None:
    """Work where the command was started: paths, and what messages say, are the same there."""
    version, folder = here
    node = platform.node()
    if version != s2f.__version__:
        message = f"{node}: has s2f {s2f.__version__}, and this command is of {version}"
        raise DependencyError(message, hint="install the same s2f on every node")
    try:
        os.chdir(folder)
    except OSError as error:
        message = f"{node}: cannot work in {folder}: {error.strerror}"
        hint = "start the command in a folder that every node of the cluster has"
        raise DeviceError(message, hint=hint) from error


def _work_on_batch(
    function: Callable[..., Any],
    items: list[tuple[Any, ...]],
    preload: Sequence[str],
    seconds: float,
    here: tuple[str, str],
) -> list[Any] | S2FError:
    """Work, in a task of Ray's, on a batch: in a process more, which alone a decoder may crash."""
    try:
        _go_to(here)
    except S2FError as error:
        return error
    worker, values = _kept_worker(tuple(preload), seconds), []
    for item in items:
        try:
            values.append(worker(_in_folder, item[0], here[1], function, item))
        except S2FError as error:
            values.append(error)
    return values


def _in_folder(name: Any, folder: str, function: Callable[..., Any], item: tuple[Any, ...]) -> Any:
    os.chdir(folder)
    return function(*item)


@functools.cache
def _kept_worker(preload: tuple[str, ...], seconds: float) -> Worker:
    """Make the process of a process of Ray's, once: it imports as much as a task takes."""
    vars(sys.modules["__main__"]).pop("__file__", None)  # or it would run Ray's own program first
    return Worker(preload, seconds, tries=DEATHS)


class _Finisher:
    """An actor of Ray's: it keeps what `finish` has loaded."""

    def __init__(self, finish: Callable[..., list[Any]], on_gpu: bool, threads: str | None) -> None:
        vars(sys.modules["__main__"]).pop("__file__", None)  # as for tasks
        hush_libraries()
        if not on_gpu:  # nor one that Ray has given to others
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if "torch" in sys.modules:  # Ray says one thread
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
            sys.modules["torch"].set_num_threads(int(threads or cores or os.cpu_count() or 1))
        self._finish = finish

    def finish(
        self, values: list[Any] | S2FError, items: list[tuple[Any, ...]], here: tuple[str, str]
    ) -> list[Any] | S2FError:
        try:
            _go_to(here)
            return values if isinstance(values, S2FError) else self._finish(values, items)
        except S2FError as error:
            return error


@contextlib.contextmanager
def connected_to_ray(
    address: str | None = None, *, workers: int | None = None
) -> Iterator[RayCluster]:
    """Connect to a Ray cluster: `auto`, the one of this machine, or host:port of its head.

    Without an address one of this machine alone is started, of as many processes at a time as
    `workers` (by default, one a core), and ended in the end. Raises a `DependencyError` if Ray is
    not installed, a `UsageError` for what is no address, and a `DeviceError` if no cluster is
    there, or none can be started.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is sent
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # of 40 s, to reach a head: 20 of them
    # Of processes that Ray ended because their node ran out of memory: without a limit there.
    os.environ.setdefault("RAY_task_oom_retries", str(DEATHS))
    if address not in (None, "auto"):
        _reach(address)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray: Any = importlib.import_module("ray")  # takes seconds
            driver: Any = importlib.import_module("ray._private.worker")
    except ImportError as error:
        message = f"the executor ray needs the package ray, which cannot be imported: {error}"
        raise DependencyError(message, hint="pip install 's2f[cluster]'") from error
    # It would print of each worker that was lost, on stdout, and has no option for that.
    driver.print_to_stdstream = _say_nothing
    affinity = getattr(os, "sched_getaffinity", None)
    cores = workers or (len(affinity(0)) if affinity else None)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
    if address is None:
        options |= {"num_cpus": cores, "include_dashboard": False}
        is_long = len(os.fsencode(os.environ.get("TMPDIR", ""))) > RAY_FOLDER
        if sys.platform == "linux" and is_long and "RAY_TMPDIR" not in os.environ:
            options |= {"_temp_dir": str(Path("/tmp", "ray"))}
    before = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = ray.init(address or "local", **options)
    except Exception as error:
        ray.shutdown()
        hint = "see whether there is memory, and room in /tmp and /dev/shm"
        message = f"no Ray can be started on this machine: {_first_line(error)}"
        if address is not None:
            hint = "start one with ray start --head, and join it from here with ray start --address"
            message = f"--ray-address {address}: cannot connect to Ray: {_first_line(error)}"
        raise DeviceError(message, hint=hint) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray has one of its own
    try:
        yield RayCluster(ray)
    finally:
        ray.shutdown()
        if address is None:
            shutil.rmtree(found.address_info["session_dir"], ignore_errors=True)
            files.sweep(place_of_sockets())  # of its processes, which Ray ends as if killed


def _say_nothing(*_: object, **__: object) -> None:
    pass


def _reach(address: str) -> None:
    """See that something listens at host:port, which Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        hint = "give auto, or host:port as ray start --head has printed it"
        raise UsageError(f"--ray-address {address}: wanted host:port of a Ray cluster", hint=hint)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CALL_SECONDS).close()
    except (OSError, OverflowError) as error:
        hint = "start one with ray start --head, and join it from here with ray start --address"
        message = f"--ray-address {address}: no Ray cluster answers there: {error}"
        raise DeviceError(message, hint=hint) from error
