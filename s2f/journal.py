"""What a step has made in a folder: so that a run that was killed goes on where it stopped.

`OUT/.s2f/STEP.journal` has a line of JSON for each event: first the settings, then `start` when
an output is begun, `done` when it stands under its name, `due` when its source failed. A run that
ends leaves one line an output, sorted: the same sources and settings give the same bytes, killed
or not. `OUT/.s2f/STEP/` holds the temporary files of a run, and is removed with it; those of each
run in a folder of its own, as a worker may outlive a run that was killed, and write until the next.
"""

import contextlib
import json
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, NamedTuple, Self

from s2f.errors import DatasetError, UsageError
from s2f.listing import File
from s2f.runtime import unwritable

try:
    import fcntl
except ImportError:  # Windows: two runs at once are not noticed there
    fcntl = None  # type: ignore[assignment]

FOLDER = ".s2f"
VERSION = 1


class Entry(NamedTuple):
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
        self._entries: dict[str, Entry] = {}
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
                self._entries[output] = Entry("due", entry.size, entry.mtime_ns)
            self._rewrite()

    def _enter(self, line: bytes) -> None:
        try:
            event, output, *rest = json.loads(line)
            if not isinstance(output, str) or event not in ("start", "done", "due"):
                raise ValueError(line)
            self._entries[output] = Entry(event, *rest)
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

    def known(self, output: str) -> Entry | None:
        """Return the last that is known of an output, by its path below the folder."""
        return self._entries.get(output)

    def start(self, output: str, source: File) -> None:
        """Note that an output is begun: what stands under its name from now on is ours."""
        self._event(output, Entry("start", source.size, source.mtime_ns))

    def due(self, output: str, source: File) -> None:
        """Note that an output could not be made."""
        self._event(output, Entry("due", source.size, source.mtime_ns))

    def done(self, output: str, source: File, note: Any = None) -> None:
        """Note that an output stands under its name."""
        self._event(output, Entry("done", source.size, source.mtime_ns, note))

    def _event(self, output: str, entry: Entry) -> None:
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


def not_ours(path: Path) -> UsageError:
    """Return the error of a file that is where an output would be, and in no journal."""
    return UsageError(
        f"{path}: exists already, and was not made by this command",
        hint="give --overwrite to replace it, or another folder",
    )


def _lock(file: IO[bytes]) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _line(output: str, entry: Entry) -> str:
    event, size, mtime_ns, note = entry
    return json.dumps([event, output, size, mtime_ns, *([] if note is None else [note])])
