"""Many files made of many files: plan, work in other processes, keep a journal, report.

The commands `s2f prep ...` differ only in their `Step`; everything else about a tree of a million
files is here and in what this imports: `listing`, `workers`, `journal`. Knows nothing of sound or
pictures.
"""

import contextlib
import errno
import functools
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from s2f import listing
from s2f import workers as processes
from s2f.errors import DatasetError, InputError, S2FError, UsageError, WorkerError
from s2f.journal import Journal, not_ours
from s2f.listing import File
from s2f.runtime import Progress, silent, unwritable
from s2f.step import Step


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
        with contextlib.closing(run.make(due, workers or processes.count())) as names:
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
        sources = listing.files(source, step.wants, without=out if inside else None)
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
            return self._fail(item, not_ours(target))
        return not (there and same and entry and entry.event == "done")

    def make(self, due: list[_Item], workers: int) -> Generator[str]:
        """Make what is due; yields the name of each source as it is dealt with."""
        step = self.step
        batch: list[tuple[_Item, Path, Any]] = []
        function = functools.partial(_work, step.work, step.net is None and step.rename is not None)
        results = processes.run(
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
