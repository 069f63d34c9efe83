"""What a folder of outputs remembers of them: the journal.

By it a run that was killed goes on where it stopped, and runs of shards, on other machines perhaps,
know of each other. From top to bottom: what is made, in which shard; the journal; the lines in
it; and `read_status`, which adds up what they say. A million items are kept as columns and
strings, never as paths.
"""

import contextlib
import errno
import filecmp
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import time
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as _quoted
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Self

from s2f import files
from s2f.errors import DatasetError, InputError, OutputError, S2FError, UsageError
from s2f.files import File, unwritable

FOLDER = ".s2f"  # in a folder of outputs: its journals, and the temporary files of a run
VERSION = 1  # of the journal's format
CHUNK = 65536  # bytes of lines of a journal that are read at once
READS = 300  # of the journals of other runs, which may be taken over meanwhile


class Item(NamedTuple):
    """One output to be made."""

    output: str  # its path below the folder of the outputs, with slashes
    source: File  # what the journal is told of its source
    given: Any  # what `work` gets besides a temporary file; as text it names the item in messages


@dataclass(frozen=True, order=True)
class StepShard:
    """A part of a step's outputs: those whose paths hash to its number; its text is `3/8`."""

    number: int  # from 1
    count: int  # of the shards

    @classmethod
    def parse(cls, text: str) -> "StepShard":
        """Read `3/8`, or raise a `UsageError`."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        number, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            hint = "the first of four is 1/4, the last 4/4"
            raise UsageError(f"--shard {text}: wanted a number of a shard and how many", hint=hint)
        return cls(number, count)

    def has(self, output: str) -> bool:
        """Tell whether an output, by its path below the folder of outputs, is in this shard.

        It is in number 1 + h modulo the count, where h is the BLAKE2b hash of 8 bytes, the first
        the highest, of the path's NFC in UTF-8: the same on every machine.
        """
        name = unicodedata.normalize("NFC", output).encode(errors="surrogatepass")
        digest = hashlib.blake2b(name, digest_size=8).digest()
        return 1 + int.from_bytes(digest, "big") % self.count == self.number

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


Event = Literal["start", "done", "due"]
_EVENTS: dict[str, Event] = {"start": "start", "done": "done", "due": "due"}  # each is one string


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

    Each run of a shard has a journal and a folder of its own beside these, `STEP.3-of-8.RUN`, and
    holds nothing: it appends to the one, which nobody else writes, and the folder is there as long
    as it is at work. The first line also has its `turn`, one more than that of any run whose
    journal was there, and the way to its `root`; of an output the last turn counts. An output
    stands under its name only when its `start` can be read on every machine. Lines more tell
    of the plan, of what `failed` and why, and that the run has come to its `end`. A run without a
    shard takes over what those journals say, and removes them. It is refused while such a run is at
    work: one whose folder is there, that is not known to be gone from this machine, and whose shard
    no run has ended since. So no clock and no lock of another machine is asked.
    """

    def __init__(
        self,
        folder: Path,
        step: str,
        settings: Mapping[str, Any],
        root: Path | str | None = None,
        shard: StepShard | None = None,
    ) -> None:
        """Open the journal; what was made with other settings (plain JSON) is due.

        Sources are told by their paths below `root`, and not from others below another folder; a
        text, such as a URL, names that from everywhere.

        Raises a `UsageError` if another run has it open, or is at work that must not be so
        meanwhile, and a `DatasetError` if it is damaged.
        """
        self.folder = folder
        self.entries: dict[str, JournalEntry] = {}
        self._own, self._step, self._shard = folder / FOLDER, step, shard
        self._root = files.way(folder, root) if isinstance(root, Path) else root
        self._origins: dict[str, str] = {}  # by the suffixes of sources
        self._header = json.dumps({"version": VERSION, "step": step, "settings": {**settings}})
        self._is_compact = True
        self._unsynced: set[str] = set()  # outputs whose start another machine may not see
        with contextlib.ExitStack() as stack:
            if shard:
                self._begin(shard, stack)
            else:
                self._hold(stack)
            self._close = stack.pop_all().close

    def _hold(self, stack: contextlib.ExitStack) -> None:
        """Be alone in the folder, and take over what shards have done."""
        self.path = self._own / f"{self._step}.journal"
        self.parts = self._own / self._step / secrets.token_hex(4)
        stack.enter_context(files.alone_in(self.folder, self.path.with_suffix(".lock")))
        with files.writing(self.path):
            self._file = self.path.open("a+b")
            stack.callback(self._shut)
            runs = _list_runs(self._own, self._step)
            self._refuse_beside(runs)
            shutil.rmtree(self.parts.parent, ignore_errors=True)  # of a run that was killed
            self.parts.mkdir(parents=True)
            stack.callback(shutil.rmtree, self.parts.parent, ignore_errors=True)
            whole = self._read_main(self._file)
            self._file.truncate(whole)
            if not whole:
                self._append(self._header.encode() + b"\n")
            is_merged = self._is_of_others or bool(runs)
            for run in runs:
                self._read_run(run)
            if is_merged:
                self._is_compact = False
                self.finish()
            for run in runs:  # in the order of their turns: what is left may be read again
                run.journal.unlink(missing_ok=True)
                shutil.rmtree(run.parts, ignore_errors=True)
        self.read_again()  # a shard that began meanwhile knew nothing of this run's settings

    def _begin(self, shard: StepShard, stack: contextlib.ExitStack) -> None:
        """Begin a journal of this run's own, seen by others before theirs are read."""
        place = f"{shard.number}-of-{shard.count}"
        self.parts = self._own / f"{self._step}.{place}.{files.run_name()}"
        self.path = self._own / f"{self.parts.name}.journal"
        with files.writing(self.path):
            self.parts.mkdir(parents=True)
            stack.enter_context(files.put_away_at_the_end(self.parts))
            turn = 1 + max((run.turn for run in _list_runs(self._own, self._step)), default=0)
            self._file = self.path.open("x+b")
            stack.callback(self._shut)
            try:
                header = {**json.loads(self._header), "turn": turn, "root": self._root}
                self._append(_sealed(header))
                os.fsync(self._file.fileno())
                self.read_again()
            except BaseException:  # there was no such run
                self.path.unlink(missing_ok=True)
                raise

    def _read_main(self, file: IO[bytes]) -> int:
        """Read the journal of runs without a shard; gives the length of what is whole in it."""
        file.seek(0)
        first = file.readline()
        self._is_of_others = False
        if not first.endswith(b"\n"):  # new, or its run was killed while it wrote this
            self._is_compact = False
            return 0
        whole = len(first)
        path = self._own / f"{self._step}.journal"
        self._is_of_others = first.rstrip(b"\n") != self._header.encode()
        for fields, length in _lines(file, path):
            self._take(fields, path, is_of_others=self._is_of_others)
            whole += length
        return whole

    def _read_run(self, run: "_Run") -> None:
        """Read the journal of a run of a shard, over what is known."""
        is_of_others = run.settings != self._header
        for fields, _ in run.lines():
            if isinstance(fields, list) and fields[:1] != ["failed"]:
                self._take(fields, run.journal, is_of_others=is_of_others)

    def _take(self, fields: Any, path: Path, *, is_of_others: bool) -> None:
        try:
            event, output, *rest = fields
            if not isinstance(output, str):
                raise ValueError(output)
            files.refuse_outside(self.folder, output, path)
            entry = _entry(_EVENTS[event], *rest)
        except (ValueError, TypeError, KeyError) as error:
            raise _damaged(path, json.dumps(fields).encode()) from error
        self._is_compact &= event != "start"
        self.entries[output] = entry._replace(event="due", note=None) if is_of_others else entry

    def read_again(self) -> None:
        """Read what the journals of other runs say by now; it raises what opening raises."""
        with files.writing(self._own):
            if not self._shard:
                self._read_new()
                return
            for left in reversed(range(READS)):
                try:
                    self._read_all()
                    break
                except OSError as error:
                    # One was taken over meanwhile: another says what it said.
                    if not left or error.errno not in (errno.ENOENT, errno.ESTALE):
                        raise
                    time.sleep(0.01)

    def _read_new(self) -> None:
        """Read, in a run without a shard, what shards have done that began since it did."""
        runs = _list_runs(self._own, self._step)
        self._refuse_beside(runs)
        for run in runs:
            self._read_run(run)
            self._is_compact = False

    def _read_all(self) -> None:
        self.entries.clear()
        self._is_of_others = False
        runs = [run for run in _list_runs(self._own, self._step) if run.parts != self.parts]
        with contextlib.suppress(FileNotFoundError):  # there was no run without a shard
            with (self._own / f"{self._step}.journal").open("rb") as file:
                self._read_main(file)
        self._refuse_beside(runs)
        for run in runs:
            self._read_run(run)

    def _refuse_beside(self, runs: "Sequence[_Run]") -> None:
        """Refuse to be at work beside runs that would undo this one's work, or it theirs."""
        hint = "wait until it has ended; if it was killed, "
        if not self._shard:
            ended = {run.shard: run.turn for run in runs if run.has_ended()}  # the last of each
            working = [run for run in runs if run.is_at_work()]
            others = [r for r in working if not 0 < r.turn <= ended.get(r.shard, 0)]
            if others:
                which = ", ".join(str(one) for one in sorted({run.shard for run in others}))
                message = f"{self.folder}: {self._step} is at work there in shards: {which}"
                cure = f"{hint}run that shard again, or remove {others[0].parts}"
                raise UsageError(message, hint=cure)
            return
        if self._is_of_others and (self._own / self._step).is_dir():
            message = f"{self.folder}: another run is at work there, with other settings"
            raise UsageError(message, hint=f"{hint}run it again")
        for run in runs:
            is_same = (run.settings, run.root) == (self._header, self._root or "")
            if run.turn and not is_same and run.is_at_work():
                what = "of other sources" if run.settings == self._header else "with other settings"
                message = f"{self.folder}: a run {what} is at work there: {run.parts.name}"
                raise UsageError(message, hint=f"{hint}remove {run.parts}")

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
        there = not is_file or self.is_there(item.output)
        entry = self.entries.get(item.output)
        if entry is None:
            if is_file and there and not overwrite:
                path = f"{self.folder}/{item.output}"
                hint = "give --overwrite to replace it, or another folder"
                message = f"{path}: exists already, and was not made by this command"
                raise UsageError(message, hint=hint)
            return True
        origin = self._origin(item.source)
        other = self._other_source(entry, item, origin, is_chosen=is_chosen)
        if is_file and there and other and not overwrite:
            path = f"{self.folder}/{item.output}"
            hint = "give another folder, or --overwrite to replace it"
            raise UsageError(f"{path}: was made of {other}, not of {item.given}", hint=hint)
        made_of = ("done", item.source.size, item.source.mtime_ns)
        if not there or other or entry[:3] != made_of:
            return True
        if entry.origin != origin:  # the tree was moved
            self.entries[item.output] = entry._replace(origin=origin)
            self._is_compact = False
        return False

    def is_there(self, output: str) -> bool:
        """Tell whether anything stands where an output is to be."""
        return os.path.lexists(f"{self.folder}/{output}")

    def claim(self, items: Sequence[Item]) -> None:
        """Hear which outputs will be made, before any is begun: here their starts will say it."""

    def is_ours(self, output: str) -> bool:
        """Tell whether an output was made of a source in the same folder as this run's."""
        entry = self.entries.get(output)
        return entry is not None and entry.origin.rpartition("*")[0] == f"{self._root}/"

    def _origin(self, source: File) -> str:
        suffix = files.suffix(source.path)
        if (known := self._origins.get(suffix)) is None:
            known = sys.intern(f"{self._root}/*{suffix}") if self._root else ""
            self._origins[suffix] = known
        return known

    def _other_source(
        self, entry: JournalEntry, item: Item, own: str, *, is_chosen: bool
    ) -> str | None:
        """Name the file that an output was made of, if that is another than its source now.

        Its source's origin is its `own`.
        """
        if entry.origin in ("", own):
            return None
        root, _, suffix = entry.origin.rpartition("*")
        name = f"{root}{files.stem(item.source.path)}{suffix}"
        before = Path(self.folder, name)  # of an object, nothing is there
        is_same_tree = root == own.rpartition("*")[0]
        size, mtime_ns = item.source.size, item.source.mtime_ns
        try:
            if (is_same_tree and is_chosen) or before.samefile(item.given):
                return None
            is_same = size == before.stat().st_size
            is_same = is_same and filecmp.cmp(before, item.given, shallow=False)
        except OSError:  # it is gone: replaced in its tree, or moved with it
            is_same = is_same_tree or (size, mtime_ns) == (entry.size, entry.mtime_ns)
        return None if is_same else name if "://" in root else os.path.normpath(before)

    def note(self, event: Event, output: str, source: File, note: Any = None) -> None:
        """Note what became of an output, with plain JSON of it where it is done."""
        self._is_compact = False
        _, size, mtime_ns = source
        there = self.entries.get(output) if event != "done" else None
        # Else, what stands there is of what it was made of.
        origin = there.origin if there else self._origin(source)
        entry = self.entries[output] = JournalEntry(event, size, mtime_ns, note, origin)
        self._append(_line(output, entry))
        if self._shard and event == "start":
            self._unsynced.add(output)

    def fail(self, item: Item, error: S2FError) -> None:
        """Note that an output was not made; of a shard why, too, for `read_status`."""
        entry = self.entries.get(item.output)
        if entry and entry.event == "start":
            self.note("due", item.output, item.source)
        if self._shard:
            fields = [item.output, item.source.size, item.source.mtime_ns, error.message]
            self._append(_sealed(["failed", *fields]))

    def tell(self, **facts: int) -> None:
        """Note what the run of a shard has planned, for `read_status`."""
        if self._shard:
            self._append(_sealed(facts))

    def forget(self, outputs: Iterable[str]) -> None:
        """Drop what is known of outputs, so that it is gone when this run finishes."""
        for output in outputs:
            del self.entries[output]
            self._is_compact = False

    def place(self, item: Item, part: str, note: Any = None, *, over_source: bool = False) -> None:
        """Give the temporary file `part` of an output its name, and note that it is done.

        With `over_source` it replaces its source, and so is the next run's.
        """
        target, source = self.folder / item.output, item.source
        with files.writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if item.output in self._unsynced:
                os.fsync(self._file.fileno())
                self._unsynced.clear()
            if over_source:  # noted first: as long as it differs, it is due
                status = Path(part).stat()
                source = File(source.path, status.st_size, status.st_mtime_ns)
                self.note("done", item.output, source, note)
            Path(part).replace(target)
        if not over_source:
            self.note("done", item.output, source, note)

    def _append(self, line: bytes) -> None:
        left, raw = line, self._file.raw
        try:  # and no context, and no buffer: of two million lines
            while left := left[raw.write(left) :]:  # on a full disk it writes a part
                pass
        except OSError as error:
            with contextlib.suppress(OSError):  # or what came after it would be one line with it
                raw.truncate(raw.seek(0, os.SEEK_END) - len(line) + len(left))
            raise unwritable(self.path, error) from error

    def _shut(self) -> None:
        with contextlib.suppress(OSError):  # of what `finish` could not write, and said so
            self._file.close()

    def finish(self) -> None:
        """Leave one line an output, sorted; of a shard, note that it has come to its end."""
        if self._shard:
            self._append(_END)
            with files.writing(self.path):
                os.fsync(self._file.fileno())
            return
        if self._is_compact:
            return
        part = self.parts / self.path.name
        with files.writing(self.path):
            self._file.close()
            self._file = part.open("a+b")
            self._file.write(self._header.encode() + b"\n")
            for output in sorted(self.entries):
                self._file.write(_line(output, self.entries[output]))
            self._file.flush()
            os.fsync(self._file.fileno())
            part.replace(self.path)
        self._is_compact = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        is_taken_over = self._shard is not None and not self.parts.exists()
        self._close()
        if is_taken_over and isinstance(error, OutputError):
            message = f"{self.folder}: another run has taken over what this one was at work on"
            raise UsageError(message, hint="nothing is lost: run it again") from error


class _Run(NamedTuple):
    """A run of a shard, by its journal and its folder of temporary files; either may lack."""

    turn: int  # 0: its first line is not written
    settings: str  # that line as a journal without a shard has it
    root: str  # "": not told
    parts: Path
    shard: StepShard

    @property
    def journal(self) -> Path:
        """Name its journal."""
        return self.parts.with_name(f"{self.parts.name}.journal")

    def has_ended(self) -> bool:
        """Tell whether it came to its end."""
        try:
            with self.journal.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - len(_END) - 1))
                return file.read() == b"\n" + _END
        except FileNotFoundError:
            return False

    def is_at_work(self) -> bool:
        """Tell whether it is at work, as far as this machine knows."""
        return not self.has_ended() and self.parts.is_dir() and not files.is_left(self.parts.name)

    def lines(self) -> Iterator[tuple[Any, int]]:
        """Read what is behind the first line, as `_lines` does."""
        if self.turn:
            with self.journal.open("rb") as file:
                file.readline()
                # Of one at work on another machine, lines may arrive before those above them.
                yield from _lines(file, self.journal, is_written=self.is_at_work())


_OF_RUN = re.compile(r"([a-z]+)\.([0-9]+)-of-([0-9]+)\.[0-9a-f]+-[0-9]+-[0-9a-f]+")


def is_run(name: str) -> bool:
    """Tell whether a run of a shard may be called so."""
    return _OF_RUN.fullmatch(name) is not None


def _list_runs(own: Path, step: str) -> list[_Run]:
    """List the runs of a step's shards, in the order of their turns."""
    runs = []
    for name in {path.name.removesuffix(".journal") for path in own.glob(f"{step}.*-of-*")}:
        if found := _OF_RUN.fullmatch(name):
            shard = StepShard(int(found[2]), int(found[3]))
            runs.append(_Run(*_first_line(own / f"{name}.journal"), own / name, shard))
    return sorted(runs)


def _first_line(path: Path) -> tuple[int, str, str]:
    """Read of what turn, settings and root a run of a shard is; 0 if it has not said so yet."""
    line = b""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        line = file.readline()
    if not line.endswith(b"\n"):
        return 0, "", ""
    try:
        header = _fields(line)
        settings = json.dumps({name: header[name] for name in ("version", "step", "settings")})
        return int(header["turn"]), settings, str(header["root"] or "")
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise _damaged(path, line) from error


def _lines(file: IO[bytes], path: Path, *, is_written: bool = False) -> Iterator[tuple[Any, int]]:
    """Read the lines of a journal, each with its length; one that is cut off ends them.

    Damaged ones are passed over in a journal that is being written.
    """
    while lines := file.readlines(CHUNK):
        try:
            yield from zip(_fields_of_all(lines), map(len, lines), strict=True)
            continue
        except ValueError:  # one of them: which is found below
            pass
        for line in lines:
            if not line.endswith(b"\n"):  # its run was killed while it wrote this
                return
            try:
                fields = _fields(line)
            except ValueError as error:
                if is_written:
                    continue
                raise _damaged(path, line) from error
            yield fields, len(line)


def _damaged(path: Path, line: bytes) -> DatasetError:
    hint = "remove it, and run the command again with --overwrite"
    return DatasetError(f"{path}: is damaged: {line[:60]!r}", hint=hint)


def _sealed(value: Any) -> bytes:
    text = json.dumps(value).encode()
    return b"%s %s\n" % (text, _check(text))


def _line(output: str, entry: JournalEntry) -> bytes:
    """Write what `_sealed` would of these as a list, in half of the time: there are millions."""
    event, size, mtime_ns, note, origin = entry
    text = f'["{event}", {_quoted(output)}, {size}, {mtime_ns}'
    if origin:
        noted = "null" if note is None else json.dumps(note)
        line = f"{text}, {noted}, {_quoted(origin)}]".encode()
    else:
        line = (f"{text}]" if note is None else f"{text}, {json.dumps(note)}]").encode()
    return b"%s %08x\n" % (line, zlib.crc32(line))


def _check(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)


def _fields_of_all(lines: Sequence[bytes]) -> list[Any]:
    """Read lines that all are as `_line` writes them, in half of the time; else a `ValueError`."""
    texts = []
    for line in lines:
        text, check = line[:-10], line[-10:]
        if check != b" %08x\n" % zlib.crc32(text):
            raise ValueError(line)
        texts.append(text)
    fields = json.loads((b"[%s]" % b",".join(texts)).decode())
    if len(fields) != len(lines):
        raise ValueError(fields)
    return list(fields)


def _fields(line: bytes) -> Any:
    """Read what `_line` wrote, or s2f of before there were checksums; else a `ValueError`."""
    if line.endswith(b"]\n"):
        return json.loads(line)
    text, _, check = line[:-1].rpartition(b" ")
    if check != _check(text):
        raise ValueError(line)
    return json.loads(text.decode())


_END = _sealed({"end": True})


@dataclass(frozen=True)
class ShardStatus:
    """How far a shard is, by the last of its runs.

    What an earlier one, still at work, has done since that one began is not counted.
    """

    shard: str  # `3/8`
    state: Literal["ended", "at work", "stopped"]  # as far as this machine knows
    items: int
    done: int
    failed: int
    begun: int  # and not done
    missing: int  # not begun


@dataclass(frozen=True)
class StepStatus:
    """How far a step is: by its shards, if any have begun since all of it was run at once.

    The journal of a run without shards knows no plan, and not why something was not made.
    """

    step: str
    items: int  # of the plan; without shards, that its journal knows
    done: int
    failed: int  # of shards
    begun: int
    missing: int  # without shards, that have to be made anew
    shards: tuple[ShardStatus, ...]  # that have begun
    absent: tuple[str, ...]  # shards that have not
    failures: Mapping[str, str]  # of shards, why, by output
    is_whole: bool  # nothing is left to be done, or to be tried again


def read_status(out: Path) -> tuple[StepStatus, ...]:
    """Add up what the journals in a folder of outputs say, by step, from any machine.

    Raises a `DatasetError` if there are none, or one is damaged or cannot be read.
    """
    try:
        try:
            return _status_of_all(out)
        except FileNotFoundError:  # one was taken over meanwhile: the first has it now
            return _status_of_all(out)
    except OSError as error:
        message = f"{error.filename or out}: cannot be read: {error.strerror or error}"
        raise DatasetError(message, hint="check its permissions, or try again") from error


def _status_of_all(out: Path) -> tuple[StepStatus, ...]:
    own = out / FOLDER
    names = {path.name.removesuffix(".journal") for path in own.glob("*.journal")}
    steps = {found[1] if (found := _OF_RUN.fullmatch(name)) else name for name in names}
    if not steps:
        hint = "name the OUT of a command such as s2f prep audio"
        raise DatasetError(f"{out}: holds no journal of what was prepared", hint=hint)
    return tuple(_status_of(own, step) for step in sorted(steps))


def _status_of(own: Path, step: str) -> StepStatus:
    if runs := _list_runs(own, step):
        return _shards_status(step, runs)
    path = own / f"{step}.journal"
    last: dict[str, str] = {}
    with path.open("rb") as file:
        file.readline()
        for event, output, _ in _events(_lines(file, path), path):
            last[output] = event
    events = Counter(last.values())
    n_begun, n_due = events["start"], events["due"]  # which may have failed, or be of new settings
    is_whole = not (n_due or n_begun or (own / step).is_dir())
    return StepStatus(step, len(last), events["done"], 0, n_begun, n_due, (), (), {}, is_whole)


def _shards_status(step: str, runs: Sequence[_Run]) -> StepStatus:
    count = runs[-1].shard.count  # those of another division were before
    last = {run.shard.number: run for run in runs if run.shard.count == count}
    shards, failures, of = [], {}, 0
    for _, run in sorted(last.items()):
        facts = {"items": 0, "of": 0, "kept": 0}
        events: dict[str, str] = {}
        for event, output, why in _events(run.lines(), run.journal, facts):
            events[output] = event
            if event == "failed":
                failures[output] = why
        counts = Counter(events.values())
        done, failed, begun = facts["kept"] + counts["done"], counts["failed"], counts["start"]
        state: Literal["ended", "at work", "stopped"] = "stopped"
        if run.has_ended() or run.is_at_work():
            state = "ended" if run.has_ended() else "at work"
        missing = facts["items"] - done - failed - begun
        name, n_items = str(run.shard), facts["items"]
        shards.append(ShardStatus(name, state, n_items, done, failed, begun, missing))
        of = max(of, facts["of"])
    absent = tuple(f"{k}/{count}" for k in range(1, count + 1) if k not in last)
    done, failed, begun = (sum(getattr(s, n) for s in shards) for n in ("done", "failed", "begun"))
    is_whole = not absent and all(s.state == "ended" and s.done == s.items for s in shards)
    numbers = (of, done, failed, begun, of - done - failed - begun)
    return StepStatus(step, *numbers, tuple(shards), absent, failures, is_whole)


def _events(
    lines: Iterable[tuple[Any, int]], path: Path, facts: dict[str, int] | None = None
) -> Iterator[tuple[str, str, str]]:
    """Give the events of a journal, their outputs, and why these failed; `facts` are added."""
    for fields, _ in lines:
        try:
            if isinstance(fields, dict):
                if facts is not None:
                    facts |= {name: int(value) for name, value in fields.items()}
                continue
            event, output, *more = fields
            yield str(event), str(output), str(more[2]) if event == "failed" else ""
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            raise _damaged(path, json.dumps(fields).encode()) from error


def _entry(
    event: Event, size: int, mtime_ns: int, note: Any = None, origin: str = ""
) -> JournalEntry:
    return JournalEntry(event, size, mtime_ns, note, sys.intern(origin))
