"""Many files made of many files: plan, work in other processes, keep a journal, report.

The commands `s2f prep ...` differ only in their `Step`. From top to bottom: what a step is;
`prepare`, which brings a tree of outputs up to date, or a `StepShard` of it; and `make_outputs`,
the engine that a pack's files go through too. Knows nothing of sound or pictures.
"""

import contextlib
import errno
import functools
import itertools
import os
import secrets
import time
import unicodedata
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from s2f import files, stores
from s2f.console import Progress, silent
from s2f.errors import DatasetError, InputError, OutputError, S2FError, UsageError, WorkerError
from s2f.files import File, PassedOver
from s2f.journal import Item, Journal, StepShard
from s2f.stores import Place, Store, open_journal
from s2f.workers import ITEM_SECONDS, RayCluster, run_in_workers

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
    # In this process, or in actors of a cluster: picklable, and loads when it is called first. On
    # several sources at once: a network on its device. Gives one value a source, or an `S2FError`
    # that is its failure alone; one that it raises ends the run.
    net: Callable[[list[Any]], list[Any]] | None = None
    save: Callable[[Any, Path], None] | None = None  # writes a value of `net` to a temporary file
    batch_size: int = 1  # of `net`
    device: str = "cpu"  # of `net`, as `choose_device` takes it
    preload: tuple[str, ...] = ()  # modules that `work` needs, imported once for all workers
    has_twins: bool = False  # whether trees hold one source in several formats: see `prefer`


class Failure(NamedTuple):
    """A source of which nothing was made, and why."""

    source: Place
    error: S2FError


@dataclass(frozen=True)
class PrepReport:
    """What became of the sources."""

    out: Place  # the folder of the outputs
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
    shard: StepShard | None = None  # what all of this is of, but for `passed_over`


def prepare(
    step: Step,
    source: Place,
    out: Place,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    prefer: str | None = None,
    places: Mapping[str, str] | None = None,
    shard: StepShard | None = None,
    cluster: RayCluster | None = None,
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

    With `shard` only that part of the outputs is made; what may stop the run is judged by all of
    them. Such runs need no lock: others of the same and of other shards may be at work in `out`
    meanwhile, on other machines, and may be killed and repeated. A run without `shard` after them
    does what is left, and leaves the bytes that it would have left without them.

    Where sources are objects of a `Store` other than `memory://`, workers fetch them; where `out`
    is one, they put outputs there, and every run is as those of shards are: see `StoreJournal`.

    With `cluster` it is the nodes of that which work, on a file system that they share; this
    process keeps the journal. `workers` are then all cores by default, and a batch of each is made
    twice at most. What is made has the same bytes where nodes have the same packages and devices.

    Raises, before anything is made, a `DatasetError` if there is no source, a folder cannot be
    read, or two sources would become one output, and a `UsageError` if outputs would replace their
    sources, `prefer` is no suffix of sources, another run is at work in `out` (a shard's, or if
    this is one, one with other settings or sources), or the step has no shards. The run ends with
    an `OutputError` where an output cannot be written, and with any `S2FError` of the step that is
    no fault of a source.
    """
    started = time.perf_counter()
    progress(0, 0, "listing")
    stores.refuse_memory(source, out)
    if cluster and step.net and isinstance(out, Store):
        hint = "give a folder that all nodes share, or leave --executor ray out"
        raise UsageError(f"{out}: {step.name} of a cluster puts nothing into a store", hint=hint)
    if shard and step.rename is None:
        hint = "leave --shard out, and run it once"
        raise UsageError(f"the step {step.name} makes notes only, and no shards", hint=hint)
    plan, passed_over = _plan(step, source, out, prefer, places)
    is_tree = source.is_dir()
    root = source if is_tree else source.parent
    beside = step.rename is not None and _is_same(out, root)
    if beside and plan[0].output == plan[0].source.path and not overwrite:
        message = f"{out}: its {step.sources} would be replaced by what is made of them"
        raise UsageError(message, hint="give another folder, or --overwrite to replace them")
    in_shards = shard is not None or isinstance(out, Store)
    if beside and in_shards and any(item.output == item.source.path for item in plan):
        message = f"{out}: its {step.sources} would be replaced, which "
        message += "shards do not" if shard else "is done on disks alone"
        hint = "give another folder" + (", or leave --shard out" if shard else "")
        raise UsageError(message, hint=hint)
    failed: dict[str, S2FError] = {}  # by `Item.given`
    with open_journal(out, step.name, step.settings, root, shard) as journal:
        if beside:
            passed_over -= _made_beside(step, journal)
        _refuse_collisions(plan, journal.parts)
        items = plan.only(lambda item: shard.has(item.output)) if shard else plan

        def fail(item: Item, error: S2FError) -> None:
            journal.fail(item, error)
            failed[item.given] = error

        refused: dict[str, S2FError] = {}

        def is_due(item: Item) -> bool:
            try:
                is_file = step.rename is not None
                return journal.is_due(
                    item, overwrite, is_file=is_file, is_chosen=prefer is not None
                )
            except (InputError, UsageError) as error:
                refused[item.given] = error
                return False

        due = items.only(is_due)
        if refused:  # which other runs may have made since their journals were read
            again = items.only(lambda item: item.given in refused)
            refused.clear()
            journal.read_again()
            due = due.joined(again.only(is_due))
        for item in items if refused else ():
            if item.given in refused:
                fail(item, refused[item.given])
        done = (total := len(items)) - len(due)
        skipped = done - len(failed)
        journal.tell(items=total, of=len(plan), kept=skipped)
        progress(done, total, step.name)
        writes = step.net is None and step.rename is not None
        work = functools.partial(_of_path, step.work)
        if isinstance(source, Store) or (isinstance(out, Store) and writes):
            name = functools.partial(_output_of, plan.prefix, plan.name)
            to = out if isinstance(out, Store) and writes else None
            work = functools.partial(stores.work_on_objects, step.work, name, to, bool(step.net))
        results = make_outputs(
            journal,
            due,
            work,
            writes=writes and not isinstance(out, Store),  # else a worker puts what it has written
            workers=workers,
            preload=(*step.preload, *stores.packages_of(source, out)),
            cluster=cluster,
            net_of=step if step.net else None,
        )
        with contextlib.closing(results):
            for item, part, value in results:
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
                progress(done, total, item.source.path)
        faults = {name: e for name, e in failed.items() if isinstance(e, InputError | WorkerError)}
        bad = [item.output for item in items if item.given in faults] if faults else []
        stale = _stale(journal, plan, bad, step, shard, whole=is_tree)
        journal.finish()
    failures, notes, unmade = [], {}, set()
    for item in items if failed else ():
        if item.given in failed:
            failures.append(Failure(stores.given_place(item.given), failed[item.given]))
            unmade.add(item.output)
    for output in items.outputs():
        entry = journal.entries.get(output)
        if entry and entry.event == "done" and entry.note is not None and output not in unmade:
            notes[output] = entry.note
    made = total - skipped - len(failures)
    seconds = time.perf_counter() - started
    passed = dict(passed_over)
    return PrepReport(out, made, skipped, tuple(failures), seconds, notes, passed, stale, shard)


def _of_path(work: Callable[[Path, Path], Any], given: str, part: Path) -> Any:
    return work(Path(given), part)


class _Items(Sequence[Item]):
    """Items as columns, made one by one when they are looked at: a million take 100 MB."""

    def __init__(
        self, prefix: str, name: Callable[[str], str], sources: Iterable[tuple[str, int, int]]
    ) -> None:
        """Take sources, what stands before their paths, and what makes outputs of these."""
        self.prefix, self.name = prefix, name
        self.paths: list[str] = []
        self._sizes = array("q")
        self._times: array[int] | list[int] = array("q")
        for path, size, mtime_ns in sources:
            self.paths.append(path)
            self._sizes.append(size)
            try:
                self._times.append(mtime_ns)
            except OverflowError:  # of a file from after the year 2262
                self._times = [*self._times, mtime_ns]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: Any) -> Any:
        path = self.paths[k]
        return Item(self.name(path), File(path, self._sizes[k], self._times[k]), self.prefix + path)

    def __iter__(self) -> Iterator[Item]:
        # As above, in a third of the time: no line of Python is run for an item.
        new_file: Callable[..., File] = functools.partial(tuple.__new__, File)
        new_item: Callable[..., Item] = functools.partial(tuple.__new__, Item)
        sources = map(new_file, zip(self.paths, self._sizes, self._times, strict=True))
        given = map(self.prefix.__add__, self.paths)
        return map(new_item, zip(self.outputs(), sources, given, strict=True))

    def outputs(self) -> Iterator[str]:
        """Give the outputs alone, in a fifth of the time."""
        return map(self.name, self.paths)

    def only(self, wanted: Callable[[Item], bool]) -> "_Items":
        """Keep some items: as most runs want all or none of a million, these cost no copy."""
        kept = [wanted(item) for item in self]
        if all(kept):
            return self
        sources = itertools.compress(zip(self.paths, self._sizes, self._times, strict=True), kept)
        return _Items(self.prefix, self.name, sources)

    def joined(self, others: "_Items") -> "_Items":
        """Put others behind them, of the same tree."""
        both = (item.source for item in itertools.chain(self, others))
        return _Items(self.prefix, self.name, both)


def _plan(
    step: Step, source: Place, out: Place, prefer: str | None, places: Mapping[str, str] | None
) -> tuple[_Items, PassedOver]:
    prefer = files.preferred(prefer, step.wants, step.sources)
    if isinstance(source, Path) and not os.path.exists(source):
        raise DatasetError(f"{source}: does not exist", hint="check its path")
    folder, passed_over = source, PassedOver()
    sources: Iterable[File]
    is_tree = source.is_dir()
    if isinstance(source, Store):
        inside = isinstance(out, Store) and step.rename is not None and out != source
        without_objects = out if inside and isinstance(out, Store) else None
        sources = source.walk(step.wants, without=without_objects, passed_over=passed_over)
        if not is_tree:
            folder, sources = source.parent, [source.file()]
    elif is_tree:
        inside = step.rename is not None and isinstance(out, Path) and out.is_dir()
        without = out if inside and isinstance(out, Path) and not source.samefile(out) else None
        sources = files.walk(source, step.wants, without=without, passed_over=passed_over)
    else:
        folder, status = source.parent, source.stat()
        size = status.st_size if source.is_file() else -1
        sources = [File(source.name, size, status.st_mtime_ns)]
    name = step.rename or str
    if places is not None:
        if is_tree:
            sources = (file for file in sources if file.path in places)
        name = functools.partial(_placed, name, places)
    items = _Items(str(folder / "file").removesuffix("file"), name, sources)
    if not items:
        raise files.holds_none(source, step.sources, passed_over, DatasetError)
    name_of = str if step.rename else files.stem
    named = zip(map(name_of, items.outputs()), items.paths, strict=True)
    dropped = files.drop_twins(named, source, passed_over, prefer=prefer, is_asked=step.has_twins)
    if dropped:
        items = items.only(lambda item: item.source.path not in dropped)
    return items, passed_over


def _output_of(prefix: str, name: Callable[[str], str], given: str) -> str:
    return name(given.removeprefix(prefix))


def _is_same(out: Place, root: Place) -> bool:
    """Tell whether two folders are one that is there."""
    if isinstance(out, Path) and isinstance(root, Path):
        return out.exists() and out.samefile(root)
    return out == root


def _placed(rename: Callable[[str], str], places: Mapping[str, str], path: str) -> str:
    return rename(places.get(path, path))


def _made_beside(step: Step, journal: Journal) -> PassedOver:
    """Count the step's outputs that stand among its sources: they were listed, and passed over."""
    outputs = (name for name in journal.entries if not step.wants(name.rpartition("/")[2]))
    there = (name for name in outputs if journal.is_there(name))
    return PassedOver(PurePosixPath(name).suffix.lower() for name in there)


def _stale(
    journal: Journal,
    plan: _Items,
    bad: Iterable[str],
    step: Step,
    shard: StepShard | None,
    *,
    whole: bool,
) -> tuple[str, ...]:
    """List what was made earlier of sources that are bad now or, in a whole tree, gone."""
    gone: set[str] = set()
    if whole:
        gone.update(journal.entries)
        gone.difference_update(plan.outputs())
        gone = {name for name in gone if journal.is_ours(name)}
    if step.rename is None:
        journal.forget(gone)  # nothing stands there
        return tuple(sorted(gone))
    if shard:
        gone = {name for name in gone if shard.has(name)}
    old = gone.union(name for name in bad if journal.is_ours(name))
    return tuple(sorted(name for name in old if journal.is_there(name)))


def _refuse_collisions(items: _Items, folder: Path) -> None:
    """Refuse outputs that would be folders of others, or, where the file system folds, A and a.

    It may also take an accent with its letter for one with it.
    """
    with files.writing(folder / "case"):
        (folder / "case").touch()
    folds_case, composes = os.path.exists(folder / "CASE"), files.composes(folder)

    def fold(name: str) -> str:
        name = unicodedata.normalize("NFC", name) if composes else name
        return name.casefold() if folds_case else name

    clash = ""
    if folds_case or composes:  # else no two outputs are one: twins were refused
        makers: dict[str, str] = {}
        for output, path in zip(items.outputs(), items.paths, strict=True):
            other = makers.setdefault(fold(output), path)
            if other != path and not clash:
                clash = f"{output}: would be made of both {other} and {path}"
    folders: set[str] = set()
    for output in items.outputs() if not clash else ():
        folder_of = fold(output).rpartition("/")[0]
        while folder_of and folder_of not in folders:
            folders.add(folder_of)
            folder_of = folder_of.rpartition("/")[0]
    for output, path in zip(items.outputs(), items.paths, strict=True) if folders else ():
        if not clash and fold(output) in folders:
            clash = f"{fold(output)}: would be made of {path}, and be a folder"
    if clash:
        raise DatasetError(clash, hint="rename or remove one of the two")


def make_outputs(
    journal: Journal,
    items: Sequence[Item],
    work: Callable[[Any, Path], Any],
    *,
    writes: bool = True,
    workers: int | None = None,
    preload: Sequence[str] = (),
    seconds: float = ITEM_SECONDS,
    cluster: RayCluster | None = None,
    net_of: Step | None = None,
) -> Generator[tuple[Item, str, Any]]:
    """Work on items in other processes; each is noted in the journal when it is begun.

    `work` is picklable, and called with `Item.given` and a temporary file; if it `writes` that,
    it is on the disk before this goes on, and `Journal.place` gives it its name. There is a
    worker a core by default; the rest is as in `run_in_workers`, or with a `cluster` as in
    `RayCluster.run`. What `work` returns goes through the net of `net_of`, if there is one, and is
    saved. Yields an item, its temporary file, and what `work` returned (None if there is a net), or
    an `InputError` or `WorkerError` that costs this item only. Any other `S2FError` of `work` is
    raised: a full disk, a package that is missing.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux: the cores that this process may use
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1

    journal.claim(items)
    begun: dict[int, tuple[Item, str]] = {}
    parts = str(journal.parts)

    def begin() -> Iterator[tuple[Any, str]]:
        for place, item in enumerate(items):
            journal.note("start", item.output, item.source)
            part = f"{parts}{os.sep}{place}{files.suffix(item.output)}"
            begun[place] = item, part
            yield item.given, part

    function = functools.partial(_work, work, writes)
    options: dict[str, Any] = {"preload": preload, "seconds": seconds}
    if cluster:
        options |= {"total": len(items), "workers": workers}
        if net_of:
            options |= {
                "finish": functools.partial(_finish, net_of.net, net_of.save),
                "device": net_of.device,
                "batch_size": net_of.batch_size,
            }
        results = cluster.run(function, begin(), **options)
    else:
        workers = min(workers or cores, len(items))
        results = run_in_workers(function, begin(), workers=workers, **options)
        if net_of:
            results = _finish_here(net_of, results, begun, journal.folder)
    with contextlib.closing(results):
        for place, value in results:
            if isinstance(value, S2FError) and not isinstance(value, InputError | WorkerError):
                raise value
            yield *begun.pop(place), value


def _finish_here(
    step: Step,
    results: Generator[tuple[int, Any]],
    begun: Mapping[int, tuple[Item, str]],
    folder: Path,
) -> Generator[tuple[int, Any]]:
    with contextlib.closing(results):
        while batch := list(itertools.islice(results, step.batch_size)):
            parts = [begun[place] for place, _ in batch]
            given = [(item.given, part) for item, part in parts]
            names = [folder / item.output for item, _ in parts]
            values = _finish(step.net, step.save, [value for _, value in batch], given, names)
            yield from zip((place for place, _ in batch), values, strict=True)


def _finish(
    net: Callable[[list[Any]], list[Any]] | None,
    save: Callable[[Any, Path], None] | None,
    values: list[Any],
    items: list[tuple[Any, str]],
    names: Sequence[Path] = (),
) -> list[Any]:
    """Put what `_work` gave of a batch through the net, and save it; failures pass.

    What cannot be written is told by its name, or else by that of its temporary file.
    """
    assert net and save
    read = [value for value in values if not isinstance(value, S2FError)]
    made, outcomes = iter(net(read) if read else ()), []
    parts = [Path(part) for _, part in items]
    for value, (given, _), part, name in zip(values, items, parts, names or parts, strict=True):
        outcome = value if isinstance(value, S2FError) else next(made)
        if stores.is_object(given):
            outcome = stores.let_go(given, part, outcome)
        if not isinstance(outcome, S2FError):
            with files.writing(name), _whole(part) as own:
                save(outcome, own)
            outcome = None
        outcomes.append(outcome)
    return outcomes


def _work(work: Callable[[Any, Path], Any], writes: bool, given: Any, name: str) -> Any:
    part = Path(name)
    with files.writing(part):  # reading has errors of its own
        if not writes:
            return work(given, part)
        with _whole(part) as own:
            return work(given, own)


@contextlib.contextmanager
def _whole(part: Path) -> Iterator[Path]:
    """Give a name to write a temporary file under; it gets its own when it is on the disk.

    Of a cluster's workers one that is thought lost may still write when another does its work.
    """
    own = part.with_name(f"{secrets.token_hex(4)}-{part.name}")
    yield own
    with own.open("rb+") as file:
        os.fsync(file.fileno())
    own.replace(part)
