"""Many files made of many files: plan, work in other processes, keep a journal, report.

The commands `s2f prep ...` differ only in their `Step`. From top to bottom: what a step is;
`prepare`, which brings a tree of outputs up to date; `make_outputs`, the engine that a pack's
shards go through too; the workers, in which a crash costs one item; and the journal, by which a run
that was killed goes on where it stopped. Knows nothing of sound or pictures.
"""

import contextlib
import errno
import filecmp
import functools
import importlib
import itertools
import json
import multiprocessing
import os
import secrets
import shutil
import signal
import sys
import time
import traceback
import unicodedata
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from s2f import files
from s2f.console import Progress, hush_libraries, silent
from s2f.device import keep_memory, shortage, starting_processes
from s2f.errors import DatasetError, InputError, OutputError, S2FError, UsageError, WorkerError
from s2f.files import File, PassedOver, unwritable

if TYPE_CHECKING:
    from pebble import ProcessPool

ITEM_SECONDS = 900.0  # more than a day of sound takes; a decoder may hang in a damaged file
FOLDER = ".s2f"  # in a folder of outputs: its journals, and the temporary files of a run
VERSION = 1  # of the journal's format

_NAME_ERRORS = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)  # of one output


@dataclass(frozen=True)
class Step:
    """What a command makes of each source file: one output a source.

    Without `net`, `work` writes the temporary file that it is given, which has the output's suffix,
    and may return plain JSON for the journal; with `net`, it returns what that takes of a source.
    It raises an `InputError` for a source that cannot be used; any other `S2FError`, and an
    `OSError` from writing (of `save` too), ends the run.
    """

    name: str  # `audio`; names its journal
    wants: Callable[[str], bool]  # whether a file in a folder, by its name, is a source
    sources: str  # what these are, for messages: `recordings`
    # A source's path below the source folder, with slashes, to its output's; None for a step that
    # makes no file a source, only notes in the journal.
    rename: Callable[[str], str] | None
    settings: Mapping[str, Any]  # what outputs depend on besides their sources: plain JSON
    work: Callable[[Path, Path], Any]  # of source and temporary file, in another process: picklable
    # In this process, on several sources at once: a network on its device. Gives one value a
    # source, or an `S2FError` that is its failure alone; one that it raises ends the run.
    net: Callable[[list[Any]], list[Any]] | None = None
    save: Callable[[Any, Path], None] | None = None  # writes a value of `net` to a temporary file
    batch_size: int = 1  # of `net`
    preload: tuple[str, ...] = ()  # modules that `work` needs, imported once for all workers
    has_twins: bool = False  # whether trees hold one source in several formats: see `prefer`


class Item(NamedTuple):
    """One output to be made."""

    output: str  # its path below the folder of the outputs, with slashes
    source: File  # what the journal is told of its source
    given: Any  # what `work` gets besides a temporary file; as text it names the item in messages


class Failure(NamedTuple):
    """A source of which nothing was made, and why."""

    source: Path
    error: S2FError


@dataclass(frozen=True)
class PrepReport:
    """What became of the sources."""

    out: Path  # the folder of the outputs
    made: int  # outputs written now
    skipped: int  # outputs that were up to date
    failed: tuple[Failure, ...]  # sources that could not be used
    seconds: float  # that it took
    # What `work` returned for each output that is up to date now, by its path below `out` (by the
    # source's for a step without outputs), in the order of the sources.
    notes: Mapping[str, Any]
    # Other files in the source folder, by suffix; what the step made beside its sources is none.
    passed_over: Mapping[str, int] = field(default_factory=dict)
    # Outputs of an earlier run that are kept, though their sources went bad or away since, by their
    # paths below `out`; for a step without outputs the sources that went away.
    stale: tuple[str, ...] = ()


def prepare(
    step: Step,
    source: Path,
    out: Path,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    prefer: str | None = None,
    places: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> PrepReport:
    """Bring a tree of outputs up to date with a tree of sources, or with one file.

    An output is made if it is not there, if its source changed since, or if it was made with
    other settings. A source that cannot be used costs itself only. Killed at any moment and run
    again, it leaves the same bytes as if it had never been killed, and makes at most one output
    a worker (by default, one a core), and one batch of a network, twice. `out` may be
    the source folder: the outputs lie beside the sources. Files there that the step did not make,
    or made of another file (one of the same path below another folder, which was not merely moved),
    are refused one by one, or replaced with `overwrite`, sources too where outputs have their
    names. Of sources that would become one output, as 1.m4a and 1.wav, `prefer` (`wav`) chooses.
    With `places` only the sources that it has, by their paths below `source`, are prepared, and
    each output is named as if its source lay at the path that it gives.

    Raises, before anything is made, a `DatasetError` if there is no source, a folder cannot be
    read, or two sources would become one output, and a `UsageError` if outputs would replace their
    sources, `prefer` is no suffix of sources, or another run is at work in `out`. The run ends with
    an `OutputError` where an output cannot be written, and with any `S2FError` of the step that is
    no fault of a source.
    """
    started = time.perf_counter()
    progress(0, 0, "listing")
    items, passed_over = _plan(step, source, out, prefer, places)
    beside = out.exists() and out.samefile(source if source.is_dir() else source.parent)
    if beside and step.rename and items[0].output == items[0].source.path and not overwrite:
        message = f"{out}: its {step.sources} would be replaced by what is made of them"
        raise UsageError(message, hint="give another folder, or --overwrite to replace them")
    failed: dict[Path, S2FError] = {}
    root = source if source.is_dir() else source.parent
    with Journal(out, step.name, step.settings, root) as journal:
        if beside and step.rename:
            passed_over -= _made_beside(step, journal)

        def fail(item: Item, error: S2FError) -> None:
            entry = journal.entries.get(item.output)
            if entry and entry.event == "start":
                journal.note("due", item.output, item.source)
            failed[item.given] = error

        _refuse_collisions(items, journal.parts)
        due = []
        for item in items:
            try:
                is_file = step.rename is not None
                if journal.is_due(item, overwrite, is_file=is_file, is_chosen=prefer is not None):
                    due.append(item)
            except (InputError, UsageError) as error:
                fail(item, error)
        done = len(items) - len(due)
        skipped = done - len(failed)
        progress(done, len(items), step.name)
        writes = step.net is None and step.rename is not None
        results = make_outputs(
            journal, due, step.work, writes=writes, workers=workers, preload=step.preload
        )
        with contextlib.closing(results):
            for item, part, value in _infer(step, results, out) if step.net else results:
                try:
                    if isinstance(value, S2FError):
                        fail(item, value)
                    elif step.rename is None:
                        journal.note("done", item.output, item.source, value)
                    else:
                        over_source = beside and item.output == item.source.path
                        journal.place(item, part, value, over_source=over_source)
                except OutputError as error:
                    if getattr(error.__cause__, "errno", None) not in _NAME_ERRORS:
                        raise
                    hint = "rename the source, shorter if need be, or what is in the way"
                    fail(item, InputError(error.message, hint=hint))
                done += 1
                progress(done, len(items), item.source.path)
        bad = [i for i in items if isinstance(failed.get(i.given), InputError | WorkerError)]
        stale = _stale(journal, items, bad, step, whole=source.is_dir())
        journal.finish()
    good = (item.output for item in items if item.given not in failed)
    entries = [(name, journal.entries.get(name)) for name in good]
    notes = {name: e.note for name, e in entries if e and e.event == "done" and e.note is not None}
    failures = tuple(Failure(i.given, failed[i.given]) for i in items if i.given in failed)
    made = len(items) - skipped - len(failures)
    seconds = time.perf_counter() - started
    return PrepReport(out, made, skipped, failures, seconds, notes, dict(passed_over), stale)


def _plan(
    step: Step, source: Path, out: Path, prefer: str | None, places: Mapping[str, str] | None
) -> tuple[list[Item], PassedOver]:
    prefer = files.preferred(prefer, step.wants, step.sources)
    if not os.path.exists(source):
        raise DatasetError(f"{source}: does not exist", hint="check its path")
    folder, passed_over = source, PassedOver()
    if source.is_dir():
        inside = step.rename is not None and out.is_dir() and not source.samefile(out)
        without = out if inside else None
        sources = files.list_files(source, step.wants, without=without, passed_over=passed_over)
        if places is not None:
            sources = [file for file in sources if file.path in places]
        if not sources:
            raise files.holds_none(source, step.sources, passed_over, DatasetError)
    else:
        folder, status = source.parent, source.stat()
        size = status.st_size if source.is_file() else -1
        sources = [File(source.name, size, status.st_mtime_ns)]
    rename, places = step.rename or str, places or {}
    items = [
        Item(rename(places.get(file.path, file.path)), file, folder / file.path) for file in sources
    ]
    name_of = str if step.rename else files.stem
    named = ((name_of(item.output), item.source.path) for item in items)
    dropped = files.drop_twins(named, source, passed_over, prefer=prefer, is_asked=step.has_twins)
    return [item for item in items if item.source.path not in dropped], passed_over


def _made_beside(step: Step, journal: "Journal") -> PassedOver:
    """Count the step's outputs that stand among its sources: they were listed, and passed over."""
    outputs = (name for name in journal.entries if not step.wants(name.rpartition("/")[2]))
    there = (name for name in outputs if os.path.exists(journal.folder / name))
    return PassedOver(PurePosixPath(name).suffix.lower() for name in there)


def _stale(
    journal: "Journal", items: Sequence[Item], bad: Sequence[Item], step: Step, *, whole: bool
) -> tuple[str, ...]:
    """List what was made earlier of sources that are bad now or, in a whole tree, gone."""
    planned = {item.output for item in items}
    entries = journal.entries
    gone = [n for n in entries if n not in planned and journal.is_ours(n)] if whole else []
    if step.rename is None:
        journal.forget(gone)  # nothing stands there
        return tuple(sorted(gone))
    old = [*gone, *(item.output for item in bad if journal.is_ours(item.output))]
    return tuple(sorted(name for name in old if os.path.lexists(journal.folder / name)))


def _refuse_collisions(items: list[Item], folder: Path) -> None:
    """Refuse outputs that would be folders of others, or, where the file system folds, A and a.

    It may also take an accent with its letter for one with it.
    """
    with _writing(folder / "case") as probe:
        probe.touch()
    folds_case, composes = os.path.exists(folder / "CASE"), files.composes(folder)

    def fold(name: str) -> str:
        name = unicodedata.normalize("NFC", name) if composes else name
        return name.casefold() if folds_case else name

    makers: dict[str, str] = {}
    clashes = [
        f"{output}: would be made of both {other} and {source.path}"
        for output, source, _ in items
        if (other := makers.setdefault(fold(output), source.path)) != source.path
    ]
    folders = {output.rpartition("/")[0] for output in makers}
    while folders and not clashes:
        taken = sorted(folders & makers.keys())
        clashes = [f"{one}: would be made of {makers[one]}, and be a folder" for one in taken]
        folders = {inside.rpartition("/")[0] for inside in folders if inside}
    if clashes:
        raise DatasetError(clashes[0], hint="rename or remove one of the two")


def _infer(
    step: Step, results: Iterator[tuple[Item, Path, Any]], out: Path
) -> Iterator[tuple[Item, Path, Any]]:
    """Put what `work` returned through the net, in batches, and save it; failures pass."""
    assert step.net and step.save
    while batch := list(itertools.islice(results, step.batch_size)):
        read = [value for _, _, value in batch if not isinstance(value, S2FError)]
        values = iter(step.net(read) if read else ())
        for item, part, value in batch:
            outcome = value if isinstance(value, S2FError) else next(values)
            if not isinstance(outcome, S2FError):
                with _writing(out / item.output):
                    step.save(outcome, part)
                    _flush(part)
                outcome = None
            yield item, part, outcome


def make_outputs(
    journal: "Journal",
    items: Sequence[Item],
    work: Callable[[Any, Path], Any],
    *,
    writes: bool = True,
    workers: int | None = None,
    preload: Sequence[str] = (),
    seconds: float = ITEM_SECONDS,
) -> Generator[tuple[Item, Path, Any]]:
    """Work on items in other processes; each is noted in the journal when it is begun.

    `work` is picklable, and called with `Item.given` and a temporary file; if it `writes` that,
    it is on the disk before this goes on, and `Journal.place` gives it its name. There is a
    worker a core by default; the rest is as in `run_in_workers`. Yields an item, its temporary
    file, and what `work` returned, or an `InputError` or `WorkerError` that costs this item only.
    Any other `S2FError` of `work` is raised: a full disk, a package that is missing.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux: the cores that this process may use
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1

    def part(place: int) -> Path:
        return journal.parts / f"{place}{PurePosixPath(items[place].output).suffix}"

    def begin() -> Iterator[tuple[Any, Path]]:
        for place, item in enumerate(items):
            journal.note("start", item.output, item.source)
            yield item.given, part(place)

    results = run_in_workers(
        functools.partial(_work, work, writes),
        begin(),
        workers=min(workers or cores, len(items)),
        preload=preload,
        seconds=seconds,
    )
    with contextlib.closing(results):
        for place, value in results:
            if isinstance(value, S2FError) and not isinstance(value, InputError | WorkerError):
                raise value
            yield items[place], part(place), value


def _work(work: Callable[[Any, Path], Any], writes: bool, given: Any, part: Path) -> Any:
    with _writing(part):  # reading has errors of its own
        value = work(given, part)
        if writes:
            _flush(part)
    return value


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    try:
        yield path
    except OSError as error:
        raise unwritable(path, error) from error


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


Event = Literal["start", "done", "due"]


class JournalEntry(NamedTuple):
    """The last that is known of an output, its source then, and what was noted when it was done."""

    event: Event
    size: int
    mtime_ns: int
    note: Any = None
    # The folder of the sources, from that of the outputs, and the source's suffix, as one pattern:
    # `../wav/*.wav`. Of what stands there now, also where it is to be made again; "": not known.
    origin: str = ""


class Journal:
    """What a step has made in a folder, locked against another run while it is open.

    `OUT/.s2f/STEP.journal` has a line of JSON for each event, and its CRC-32: first, without one,
    the settings, then `start` when an output is begun, `done` when it stands under its name, `due`
    when it has to be made again, over what stands there. A run that ends leaves one line an output,
    sorted: the same sources and settings give the same bytes, killed or not. `OUT/.s2f/STEP/` holds
    the temporary files of a run, each run's in a folder of its own, `parts`, as a worker may
    outlive a run that was killed. `entries` has the last that is known of each output, by its path
    below the folder. What cannot be written is an `OutputError`.
    """

    def __init__(
        self, folder: Path, step: str, settings: Mapping[str, Any], root: Path | None = None
    ) -> None:
        """Open the journal; what was made with other settings (plain JSON) is due.

        Sources are told by their paths below `root`, and not from others below another folder.

        Raises a `UsageError` if another run has it open, a `DatasetError` if it is damaged.
        """
        self.folder = folder
        self.path = folder / FOLDER / f"{step}.journal"
        self.parts = folder / FOLDER / step / secrets.token_hex(4)
        self.entries: dict[str, JournalEntry] = {}
        self._root = files.way(folder, root) if root else None
        self._header = json.dumps({"version": VERSION, "step": step, "settings": {**settings}})
        self._is_compact = True
        with contextlib.ExitStack() as stack:
            stack.enter_context(files.alone_in(folder, self.path.with_suffix(".lock")))
            with _writing(self.path):
                self._file = self.path.open("a+b")
                stack.callback(lambda: self._file.close())
                shutil.rmtree(self.parts.parent, ignore_errors=True)  # of a run that was killed
                self.parts.mkdir(parents=True)
                self._read()
            self._close = stack.pop_all().close

    def _read(self) -> None:
        self._file.seek(0)
        first = self._file.readline()
        whole = self._file.tell()
        if not first.endswith(b"\n"):  # new, or its run was killed while it wrote this
            self._file.truncate(0)
            self._append(self._header)
            self._is_compact = False
            return
        for line in self._file:
            if not line.endswith(b"\n"):  # likewise
                break
            try:
                event, output, *rest = _fields(line)
                if not isinstance(output, str) or event not in ("start", "done", "due"):
                    raise ValueError(line)
                files.inside(self.folder, output, self.path)
                self.entries[output] = _entry(event, *rest)
            except (ValueError, TypeError) as error:
                hint = "remove it, and run the command again with --overwrite"
                raise DatasetError(f"{self.path}: is damaged: {line[:60]!r}", hint=hint) from error
            self._is_compact &= event != "start"
            whole += len(line)
        self._file.truncate(whole)
        if first.rstrip(b"\n") != self._header.encode():
            for output, entry in self.entries.items():
                self.entries[output] = entry._replace(event="due", note=None)
            self._is_compact = False
            self.finish()

    def is_due(
        self,
        item: Item,
        overwrite: bool = False,
        *,
        is_file: bool = True,
        is_chosen: bool = False,
    ) -> bool:
        """Tell whether an output, a file or a note, is missing or not of its source as that is now.

        Raises an `InputError` if its source is no regular file, and a `UsageError` if what stands
        there is in no journal, or was made of another file, and is not to be overwritten. That this
        source `is_chosen` of those of its name is no such fault.
        """
        if item.source.size < 0:
            why = f"{item.given}: is no regular file, or a link that leads nowhere"
            raise InputError(why, hint="remove it, or mend the link")
        path = self.folder / item.output
        there = not is_file or os.path.lexists(path)
        entry = self.entries.get(item.output)
        if entry is None:
            if is_file and there and not overwrite:
                hint = "give --overwrite to replace it, or another folder"
                message = f"{path}: exists already, and was not made by this command"
                raise UsageError(message, hint=hint)
            return True
        other = self._other_source(entry, item, is_chosen=is_chosen)
        if is_file and there and other and not overwrite:
            hint = "give another folder, or --overwrite to replace it"
            raise UsageError(f"{path}: was made of {other}, not of {item.given}", hint=hint)
        made_of = ("done", item.source.size, item.source.mtime_ns)
        if not there or other or entry[:3] != made_of:
            return True
        if entry.origin != self._origin(item.source):  # the tree was moved
            self.entries[item.output] = entry._replace(origin=self._origin(item.source))
            self._is_compact = False
        return False

    def is_ours(self, output: str) -> bool:
        """Tell whether an output was made of a source in the same folder as this run's."""
        entry = self.entries.get(output)
        return entry is not None and entry.origin.rpartition("*")[0] == f"{self._root}/"

    def _origin(self, source: File) -> str:
        suffix = source.path[len(files.stem(source.path)) :]
        return sys.intern(f"{self._root}/*{suffix}") if self._root else ""

    def _other_source(self, entry: JournalEntry, item: Item, *, is_chosen: bool) -> Path | None:
        """Name the file that an output was made of, if that is another than its source now."""
        if entry.origin in ("", own := self._origin(item.source)):
            return None
        root, _, suffix = entry.origin.rpartition("*")
        before = Path(self.folder, f"{root}{files.stem(item.source.path)}{suffix}")
        is_same_tree = root == own.rpartition("*")[0]
        size, mtime_ns = item.source.size, item.source.mtime_ns
        try:
            if (is_same_tree and is_chosen) or before.samefile(item.given):
                return None
            is_same = size == before.stat().st_size
            is_same = is_same and filecmp.cmp(before, item.given, shallow=False)
        except OSError:  # it is gone: replaced in its tree, or moved with it
            is_same = is_same_tree or (size, mtime_ns) == (entry.size, entry.mtime_ns)
        return None if is_same else Path(os.path.normpath(before))

    def note(self, event: Event, output: str, source: File, note: Any = None) -> None:
        """Note what became of an output, with plain JSON of it where it is done."""
        self._is_compact = False
        there, origin = self.entries.get(output), self._origin(source)
        if there and event != "done":  # what stands there is of what it was made of
            origin = there.origin
        self.entries[output] = JournalEntry(event, source.size, source.mtime_ns, note, origin)
        self._append(_line(output, self.entries[output]))

    def forget(self, outputs: Iterable[str]) -> None:
        """Drop what is known of outputs, so that it is gone when this run finishes."""
        for output in outputs:
            del self.entries[output]
            self._is_compact = False

    def place(self, item: Item, part: Path, note: Any = None, *, over_source: bool = False) -> None:
        """Give the temporary file `part` of an output its name, and note that it is done.

        With `over_source` it replaces its source, and so is the next run's.
        """
        target, source = self.folder / item.output, item.source
        with _writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if over_source:  # noted first: as long as it differs, it is due
                status = part.stat()
                source = File(source.path, status.st_size, status.st_mtime_ns)
                self.note("done", item.output, source, note)
            part.replace(target)
        if not over_source:
            self.note("done", item.output, source, note)

    def _append(self, line: str) -> None:
        with _writing(self.path):
            self._file.write(line.encode() + b"\n")
            self._file.flush()

    def finish(self) -> None:
        """Leave one line an output, sorted."""
        if self._is_compact:
            return
        part = self.parts / self.path.name
        with _writing(self.path):
            self._file.close()
            self._file = part.open("a+b")
            self._file.write(self._header.encode() + b"\n")
            for output, entry in sorted(self.entries.items()):
                self._file.write(_line(output, entry).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            part.replace(self.path)
        self._is_compact = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.parts.parent, ignore_errors=True)
        with contextlib.suppress(OSError):  # of a line that `_append` could not write, and said so
            self._close()


def _line(output: str, entry: JournalEntry) -> str:
    event, size, mtime_ns, note, origin = entry
    more = [note, origin] if origin else [] if note is None else [note]
    text = json.dumps([event, output, size, mtime_ns, *more])
    return f"{text} {_check(text.encode())}"


def _check(text: bytes) -> str:
    return f"{zlib.crc32(text):08x}"


def _fields(line: bytes) -> Any:
    """Read what `_line` wrote, or s2f of before there were checksums; else a `ValueError`."""
    if line.endswith(b"]\n"):
        return json.loads(line)
    text, _, check = line[:-1].rpartition(b" ")
    if check != _check(text).encode():
        raise ValueError(line)
    return json.loads(text)


def _entry(
    event: Event, size: int, mtime_ns: int, note: Any = None, origin: str = ""
) -> JournalEntry:
    return JournalEntry(event, size, mtime_ns, note, sys.intern(origin))
