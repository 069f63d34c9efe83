"""What a command of `s2f prep` makes of each file: all that tells one of them from another.

What a step has made in a folder: so that a run that was killed goes on where it stopped.

`OUT/.s2f/STEP.journal` has a line of JSON for each event: first the settings, then `start` when
an output is begun, `done` when it stands under its name, `due` when its source failed. A run that
ends leaves one line an output, sorted: the same sources and settings give the same bytes, killed
or not. `OUT/.s2f/STEP/` holds the temporary files of a run, and is removed with it; those of each
run in a folder of its own, as a worker may outlive a run that was killed, and write until the next.

A function on many items in several processes, any of which may die.

A decoder that crashes, or a kernel that is out of memory and kills a process, costs the item that
this process held and nothing else. Knows nothing of files.

Many files made of many files: plan, work in other processes, keep a journal, report.

The commands `s2f prep ...` differ only in their `Step`; everything else about a tree of a million
files is here and in what this imports: `listing`, `workers`, `journal`. Knows nothing of sound or
pictures.
"""

import contextlib
import ctypes
import errno
import functools
import json
import multiprocessing
import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, Literal, NamedTuple, Self

from s2f import files
from s2f.console import Progress, silent
from s2f.errors import DatasetError, InputError, S2FError, UsageError, WorkerError
from s2f.files import File, unwritable


@dataclass(frozen=True)
class Step:
    """What a command makes of each source file: one output a source.

    Attributes:
        name: of the step, `audio`; names its journal.
        wants: whether a file in a folder, by its name, is a source.
        sources: what these are, for messages: `recordings`.
        rename: turns a source's path below the source folder, with slashes, into its output's;
            None for a step that makes no file a source, only notes in the journal.
        settings: what the outputs depend on besides their sources: plain JSON. With other
            settings everything is made again.
        work: runs in another process, so that it must be picklable (a top-level function, or a
            `functools.partial` of one). Called with the source and the path of a temporary file
            that has the output's suffix. Without `net` it writes that file, and may return plain
            JSON for the journal. With `net` it returns what `net` takes of this source. Raises
            an `InputError` for a source that cannot be used; any other `S2FError`, and an
            `OSError` from writing, ends the run.
        net: runs in this process, on several sources at once: a network on its device. Gives one
            value a source, or an `S2FError` that is the failure of this source alone; one that
            it raises ends the run.
        save: writes a value of `net` to the temporary file; an `OSError` ends the run.
        batch_size: of `net`.
        preload: modules that `work` needs, imported once for all workers.
    """

    name: str
    wants: Callable[[str], bool]
    sources: str
    rename: Callable[[str], str] | None
    settings: Mapping[str, Any]
    work: Callable[[Path, Path], Any]
    net: Callable[[list[Any]], list[Any]] | None = None
    save: Callable[[Any, Path], None] | None = None
    batch_size: int = 1
    preload: tuple[str, ...] = ()


try:
    import fcntl
except ImportError:  # Windows: two runs at once are not noticed there
    fcntl = None  # type: ignore[assignment]

FOLDER = ".s2f"
VERSION = 1


class JournalEntry(NamedTuple):
    """The last that is known of an output.

    Attributes:
        event: `start`; `done`; or `due`: to be made again, and over what stands there.
        size: of its source then, bytes.
        mtime_ns: of its source then.
        note: what was said when it was done; plain JSON.
    """

    event: Literal["start", "done", "due"]
    size: int
    mtime_ns: int
    note: Any = None


class Journal:
    """The journal of one step in one folder, locked against another run while it is open."""

    def __init__(self, folder: Path, step: str, settings: dict[str, Any]) -> None:
        """Open the journal; what was made with other settings is due.

        Args:
            folder: of the outputs.
            step: its name.
            settings: plain JSON.

        Raises:
            UsageError: if another run has it open.
            DatasetError: if it is damaged.
            OutputError: if it cannot be written.
        """
        self.path = folder / FOLDER / f"{step}.journal"
        self.parts = folder / FOLDER / step / secrets.token_hex(4)
        self._header = json.dumps({"version": VERSION, "step": step, "settings": settings})
        self._entries: dict[str, JournalEntry] = {}
        self._is_compact = True
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
            try:
                shutil.rmtree(self.parts.parent, ignore_errors=True)  # of a run that was killed
                self.parts.mkdir(parents=True)
                self._read()
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _open(self) -> IO[bytes]:
        while True:
            file = self.path.open("a+b")
            try:
                _lock(file)
            except BlockingIOError as error:
                file.close()
                raise UsageError(
                    f"{self.path.parent.parent}: another s2f is at work there",
                    hint="wait until it has ended, or choose another folder",
                ) from error
            if fcntl is None or os.path.samestat(self.path.stat(), os.fstat(file.fileno())):
                return file
            file.close()  # a run that ended just now has put another file in its place

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
            self._enter(line)
            whole += len(line)
        self._file.truncate(whole)
        if first.rstrip(b"\n") != self._header.encode():
            for output, entry in self._entries.items():
                self._entries[output] = JournalEntry("due", entry.size, entry.mtime_ns)
            self._rewrite()

    def _enter(self, line: bytes) -> None:
        try:
            event, output, *rest = json.loads(line)
            if not isinstance(output, str) or event not in ("start", "done", "due"):
                raise ValueError(line)
            self._entries[output] = JournalEntry(event, *rest)
        except (ValueError, TypeError) as error:
            raise DatasetError(
                f"{self.path}: is damaged: {line[:60]!r}",
                hint="remove it, and run the command again with --overwrite",
            ) from error
        self._is_compact &= event != "start"

    def _append(self, line: str) -> None:
        try:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise unwritable(self.path, error) from error

    def known(self, output: str) -> JournalEntry | None:
        """Return the last that is known of an output, by its path below the folder."""
        return self._entries.get(output)

    def start(self, output: str, source: File) -> None:
        """Note that an output is begun: what stands under its name from now on is ours."""
        self._event(output, JournalEntry("start", source.size, source.mtime_ns))

    def due(self, output: str, source: File) -> None:
        """Note that an output could not be made."""
        self._event(output, JournalEntry("due", source.size, source.mtime_ns))

    def done(self, output: str, source: File, note: Any = None) -> None:
        """Note that an output stands under its name."""
        self._event(output, JournalEntry("done", source.size, source.mtime_ns, note))

    def _event(self, output: str, entry: JournalEntry) -> None:
        self._is_compact = False
        self._entries[output] = entry
        self._append(_line(output, entry))

    def finish(self) -> None:
        """Leave one line an output, sorted.

        Raises:
            OutputError: if it cannot be written.
        """
        if not self._is_compact:
            self._rewrite()

    def _rewrite(self) -> None:
        part = self.parts / self.path.name
        try:
            old, self._file = self._file, part.open("a+b")
            _lock(self._file)  # before others can find it
            self._file.write(self._header.encode() + b"\n")
            for output, entry in sorted(self._entries.items()):
                self._file.write(_line(output, entry).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            part.replace(self.path)
            old.close()
        except OSError as error:
            raise unwritable(self.path, error) from error
        self._is_compact = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.parts.parent, ignore_errors=True)
        with contextlib.suppress(OSError):  # of a line that `_append` could not write, and said so
            self._file.close()


def not_in_journal(path: Path) -> UsageError:
    """Return the error of a file that is where an output would be, and in no journal."""
    return UsageError(
        f"{path}: exists already, and was not made by this command",
        hint="give --overwrite to replace it, or another folder",
    )


def _lock(file: IO[bytes]) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _line(output: str, entry: JournalEntry) -> str:
    event, size, mtime_ns, note = entry
    return json.dumps([event, output, size, mtime_ns, *([] if note is None else [note])])


ITEM_SECONDS = 900.0  # more than a day of sound takes; a decoder may hang in a damaged file


class _Job(NamedTuple):
    process: BaseProcess
    place: int
    name: object
    deadline: float


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_in_workers(
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


@dataclass(frozen=True)
class Failure:
    """A source of which nothing was made, and why."""

    source: Path
    error: S2FError


@dataclass(frozen=True)
class PrepReport:
    """What became of the sources.

    Attributes:
        out: the folder of the outputs.
        made: outputs written now.
        skipped: outputs that were up to date.
        failed: sources that could not be used.
        seconds: that it took.
        notes: what `work` returned for each output that is up to date now, by its path below
            `out` (by the source's for a step without outputs), in the order of the sources.
    """

    out: Path
    made: int
    skipped: int
    failed: tuple[Failure, ...]
    seconds: float
    notes: Mapping[str, Any] = field(default_factory=dict)


_IRREGULAR = "{}: is no regular file, or a link that leads nowhere"
_MEND = "remove it, or mend the link"
_ONE_OF_TWO = "rename or remove one of the two"
_RENAME = "rename the source, shorter if need be, or what is in the way"
_NAME_ERRORS = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)  # of one output


class _Item(NamedTuple):
    source: File
    output: str


def prepare(
    step: Step,
    source: Path,
    out: Path,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> PrepReport:
    """Bring a tree of outputs up to date with a tree of sources.

    An output is made if it is not there, if its source changed since, or if it was made with
    other settings. A source that cannot be used costs itself only. Killed at any moment and run
    again, it leaves the same bytes as if it had never been killed, and makes at most one output
    a worker and one more (or one batch of a network) twice.

    Args:
        step: what to make of each source.
        source: a folder, or one file.
        out: the folder of the outputs; the same folder gets them beside their sources.
        workers: processes; by default one a core.
        overwrite: whether files that the step did not make are replaced, the sources too where
            outputs have their names; otherwise they are refused, one by one.
        progress: told of each source.

    Raises:
        DatasetError: if there is no source, a folder cannot be read, or two sources would become
            one output: before anything is made.
        UsageError: if outputs would replace their sources, or another run is at work in `out`.
        OutputError: if an output cannot be written: the run ends there.
        S2FError: whatever is no fault of a source, of the step: the run ends there too.
    """
    started = time.perf_counter()
    progress(0, 0, "listing")
    folder = source if source.is_dir() else source.parent
    items = _plan(step, source, out)
    beside = out.exists() and out.samefile(folder)
    replaces = step.rename is not None and items[0].output == items[0].source.path
    if beside and replaces and not overwrite:
        raise UsageError(
            f"{out}: its {step.sources} would be replaced by what is made of them",
            hint="give another folder, or --overwrite to replace them",
        )
    with Journal(out, step.name, dict(step.settings)) as journal:
        _refuse_collisions(items, journal.parts)
        run = _Run(step, folder, out, journal, beside, overwrite)
        due = [item for item in items if run.is_due(item)]
        skipped = len(items) - len(due) - len(run.failures)
        done = len(items) - len(due)
        progress(done, len(items), step.name)
        with contextlib.closing(run.make(due, workers or usable_cores())) as names:
            for name in names:
                done += 1
                progress(done, len(items), name)
        journal.finish()
        known = ((item.output, journal.known(item.output)) for item in items)
        done_now = {name: entry for name, entry in known if entry and entry.event == "done"}
        notes = {name: e.note for name, e in done_now.items() if e.note is not None}
    paths = (item.source.path for item in items)
    failed = tuple(Failure(folder / p, run.failures[p]) for p in paths if p in run.failures)
    return PrepReport(out, run.made, skipped, failed, time.perf_counter() - started, notes)


def _plan(step: Step, source: Path, out: Path) -> list[_Item]:
    """List the sources and name their outputs."""
    if not os.path.exists(source):
        raise DatasetError(f"{source}: does not exist", hint="check its path")
    if source.is_dir():
        inside = step.rename is not None and out.is_dir() and not source.samefile(out)
        sources = files.files(source, step.wants, without=out if inside else None)
        if not sources:
            raise DatasetError(
                f"{source}: holds no {step.sources}", hint=f"name the folder of the {step.sources}"
            )
    else:
        status = source.stat()
        sources = [
            File(source.name, status.st_size if source.is_file() else -1, status.st_mtime_ns)
        ]
    rename = step.rename or (lambda path: path)
    return [_Item(file, rename(file.path)) for file in sources]


def _refuse_collisions(items: list[_Item], folder: Path) -> None:
    """Refuse two sources of one output; a file system may also take A for a."""
    probe = folder / "case"
    try:
        probe.touch()
    except OSError as error:
        raise unwritable(probe, error) from error
    fold = str.casefold if os.path.exists(folder / "CASE") else str
    makers: dict[str, str] = {}
    for source, output in items:
        other = makers.setdefault(fold(output), source.path)
        if other != source.path:
            raise DatasetError(
                f"{output}: would be made of both {other} and {source.path}", hint=_ONE_OF_TWO
            )
    folders = {output.rpartition("/")[0] for output in makers}
    while folders:
        if taken := sorted(folders & makers.keys()):
            raise DatasetError(
                f"{taken[0]}: would be made of {makers[taken[0]]}, and be a folder",
                hint=_ONE_OF_TWO,
            )
        folders = {inside.rpartition("/")[0] for inside in folders if inside}


class _Run:
    """One run of a step: what is due, and making it."""

    def __init__(
        self, step: Step, folder: Path, out: Path, journal: Journal, beside: bool, overwrite: bool
    ) -> None:
        self.step, self.folder, self.out = step, folder, out
        self.journal, self.beside, self.overwrite = journal, beside, overwrite
        self.made = 0
        self.failures: dict[str, S2FError] = {}
        self.folders: set[Path] = set()

    def is_due(self, item: _Item) -> bool:
        """Decide whether an output has to be made; what is refused is a failure."""
        file, output = item
        target = self.out / output
        entry = self.journal.known(output)
        same = entry is not None and (entry.size, entry.mtime_ns) == (file.size, file.mtime_ns)
        there = self.step.rename is None or os.path.lexists(target)
        if file.size < 0:
            return self._fail(
                item, InputError(_IRREGULAR.format(self.folder / file.path), hint=_MEND)
            )
        if there and entry is None and self.step.rename and not self.overwrite:
            return self._fail(item, not_in_journal(target))
        return not (there and same and entry and entry.event == "done")

    def make(self, due: list[_Item], workers: int) -> Generator[str]:
        """Make what is due; yields the name of each source as it is dealt with."""
        step = self.step
        batch: list[tuple[_Item, Path, Any]] = []
        function = functools.partial(_work, step.work, step.net is None and step.rename is not None)
        results = run_in_workers(
            function, self._begin(due), workers=min(workers, len(due)), preload=step.preload
        )
        with contextlib.closing(results):
            for place, value in results:
                item = due[place]
                if isinstance(value, InputError | WorkerError):
                    self._fail(item, value)
                elif isinstance(value, S2FError):  # a full disk, a package that is missing
                    raise value
                elif step.net is None:
                    self._end(item, self._part(place, item), value)
                else:
                    batch.append((item, self._part(place, item), value))
                    if len(batch) == step.batch_size:
                        self._net(batch)
                        batch = []
                yield item.source.path
        if batch:
            self._net(batch)

    def _begin(self, due: list[_Item]) -> Iterator[tuple[Path, Path]]:
        for place, item in enumerate(due):
            self.journal.start(item.output, item.source)
            yield self.folder / item.source.path, self._part(place, item)

    def _part(self, place: int, item: _Item) -> Path:
        return self.journal.parts / f"{place}{PurePosixPath(item.output).suffix}"

    def _net(self, batch: list[tuple[_Item, Path, Any]]) -> None:
        step = self.step
        assert step.net is not None
        assert step.save is not None
        values = step.net([value for _, _, value in batch])
        for (item, part, _), value in zip(batch, values, strict=True):
            if isinstance(value, S2FError):
                self._fail(item, value)
                continue
            try:
                step.save(value, part)
                _flush(part)
            except OSError as error:
                raise unwritable(self.out / item.output, error) from error
            self._end(item, part, None)

    def _end(self, item: _Item, part: Path, note: Any) -> None:
        """Give an output its name."""
        file = item.source
        if self.step.rename is not None:
            target = self.out / item.output
            try:
                if target.parent not in self.folders:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self.folders.add(target.parent)
                if self.beside and item.output == file.path:  # the next run's source
                    status = part.stat()
                    file = File(file.path, status.st_size, status.st_mtime_ns)
                    self.journal.done(item.output, file, note)  # as long as it differs, it is due
                part.replace(target)
            except OSError as error:
                refused = unwritable(target, error)
                if error.errno not in _NAME_ERRORS:
                    raise refused from error
                self._fail(item, InputError(refused.message, hint=_RENAME))
                return
        if file is item.source:
            self.journal.done(item.output, file, note)
        self.made += 1

    def _fail(self, item: _Item, error: S2FError) -> Literal[False]:
        entry = self.journal.known(item.output)
        if entry and entry.event == "start":
            self.journal.due(item.output, item.source)
        self.failures[item.source.path] = error
        return False


def _work(work: Callable[[Path, Path], Any], writes: bool, source: Path, part: Path) -> Any:
    """Run `Step.work` in a worker; what it wrote is on the disk afterwards."""
    try:
        value = work(source, part)
        if writes:
            _flush(part)
    except OSError as error:  # reading has errors of its own
        raise unwritable(part, error) from error
    return value


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
