"""All that the program says, to people and to programs: the only module that prints.

Results go to stdout and everything else to stderr; quantities as people read them, in three digits.
Knows nothing of commands or networks.
"""

import contextlib
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from s2f.errors import OutputError, S2FError

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.segment import Segment

Progress = Callable[[int, int, str], None]
"""What a job reports to: (done, total, what happens now)."""

Mode = Literal["human", "json", "quiet"]
PICTURE_LINES = 16  # of a terminal, or as many as it has beside the bar
_UNITS = ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


def silent(done: int, total: int, what: str) -> None:
    """Report nothing: the default progress."""


@dataclass
class Console:
    """One command's output, in one of three modes.

    | mode | stdout | stderr |
    |---|---|---|
    | `human` | results, one a line | notes, errors and, on a terminal, progress |
    | `quiet` | results, one a line | errors |
    | `json` | one JSON object, an error too | nothing |
    """

    mode: Mode = "human"
    _live: Any = field(default=None, init=False, repr=False)  # the bar, while there is one
    _picture: Any = field(default=None, init=False, repr=False)  # that `show` was given last
    _shown: Any = field(default=None, init=False, repr=False)  # what the terminal was sent for it

    def line(self, text: object) -> None:
        """Print a result as soon as it is there; under json it waits for `summary`.

        It is as it is, but on a terminal, which a file's name could tell what to do.
        """
        if self.mode != "json":
            is_seen = sys.stdout is not None and sys.stdout.isatty()
            _write(sys.stdout, one_line(str(text)) if is_seen else str(text))

    def summary(self, value: Mapping[str, object]) -> None:
        """Print all that the command made as JSON, if that was asked for.

        Paths become strings, NaN and infinity null.
        """
        if self.mode == "json":
            _write(sys.stdout, json.dumps(jsonable(value)))

    def note(self, text: str) -> None:
        """Tell people something that is no result."""
        if self.mode == "human":
            _write(sys.stderr, one_line(text))

    def table(self, rows: Sequence[Sequence[str]], heads: Sequence[str] = ()) -> None:
        """Tell people facts in rows of equal length, aligned: under heads, numbers to the right."""
        if self.mode != "human" or not rows:
            return
        # rich is slow to import and only needed here.
        from rich import box
        from rich.console import Console as Terminal
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD if heads else None, show_header=bool(heads))
        for k in range(len(rows[0])):
            right = heads and any(row[k].lstrip("-+")[:1].isdigit() for row in rows)
            head = Text(heads[k]) if heads else ""
            table.add_column(head, justify="right" if right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(one_line(value)) for value in row))
        # Where nobody looks at a window, paths need not be broken.
        Terminal(stderr=True, width=None if sys.stderr.isatty() else 200).print(table)

    def error(self, error: S2FError) -> None:
        """Report why the command failed, and the cure."""
        self.summary(described(error))
        self._fail(error.message, [error.hint], error.details)

    def interrupted(self, message: str, hint: str | None = None) -> None:
        """Report that the user stopped the command, and what there is of its work."""
        self.summary({"error": "Interrupted", "message": message, "hint": hint})
        self._fail(message, [hint])

    def failures(self, errors: Sequence[S2FError], total: int) -> None:
        """Name each file of a batch that failed; under json the results say it already."""
        details = [error.message for error in errors]
        self._fail(f"{len(errors)} of {total} failed", [e.hint for e in errors], details)

    def _fail(self, message: str, hints: Iterable[str | None], details: Iterable[str] = ()) -> None:
        cures = [f"cure: {one_line(hint)}" for hint in dict.fromkeys(hints) if hint]
        lines = [f"error: {one_line(message)}", *(f"  {one_line(d)}" for d in details), *cures]
        for line in lines if self.mode != "json" else ():
            _write(sys.stderr, line)

    @contextlib.contextmanager
    def progress(self, title: str, unit: str | None = None) -> Iterator[Progress]:
        """Show a bar while a job runs: done of total, rate, time left, and what happens now.

        Only for people at a terminal; otherwise the callable that is yielded does nothing. `unit`
        is of what is counted, for the rate; None if the job tells its rate itself. In the end the
        bar is gone, and the last picture of `show` stays.
        """
        if self.mode != "human" or not sys.stderr.isatty():
            yield silent
            return
        # rich is slow to import and only needed here.
        from rich import progress as bars
        from rich.console import Console as Terminal
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text

        bar = bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(bar_width=30),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[rate]}"),
            bars.TimeRemainingColumn(),
            speed_estimate_period=120,
        )
        task = bar.add_task(title, total=1, rate="")
        # What happens now has a line of its own: in one with the bar it would make both jump.
        now = Text(no_wrap=True, overflow="ellipsis")

        def report(done: int, total: int, what: str) -> None:
            if bar.tasks[0].total != total:  # the next part of a job counts anew
                bar.reset(task, total=total)
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, rate=f"{speed:.1f} {unit}/s" if unit and speed else "")
            now.plain = one_line(what)

        terminal = Terminal(stderr=True)
        self._live = Live(
            get_renderable=lambda: Group(*filter(None, [self._shown]), bar, now),
            console=terminal,
            transient=True,
            refresh_per_second=4,
            # By this a result goes above the bar: to stderr, which is right on a terminal alone.
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        with self._live:
            yield report
        if self._shown:
            terminal.print(self._shown)
        self._live = self._picture = self._shown = None

    def can_show(self) -> bool:
        """Tell whether `show` can show pictures; not while there is a bar.

        The terminal is asked, which takes up to 2 s if it does not answer. If a package is missing
        for it, people are told so.
        """
        ends = (sys.stdin, sys.stderr)  # by which it answers, and is asked
        if self.mode != "human" or not all(end is not None and end.isatty() for end in ends):
            return False
        if 0 in os.get_terminal_size(sys.stderr.fileno()):  # a serial line's
            return False
        from PIL.Image import new
        from rich.console import Console as Terminal

        try:
            with _as_stdout():  # it asks as it is imported
                from textual_image import renderable

                if renderable.Image not in (renderable.SixelImage, renderable.TGPImage):
                    return False
                Terminal(stderr=True).measure(renderable.Image(new("RGB", (1, 1))))  # and here
                return True
        except ImportError:
            self.note("to see pictures in a terminal that can show them: pip install 's2f[live]'")
            return False
        except UnicodeDecodeError:  # somebody typed meanwhile
            pass
        return False

    def show(self, picture: "Image") -> None:
        """Show a square picture above the bar of `progress`, in the place of the one before.

        Only if it `can_show` them.
        """
        # rich is slow to import and only needed here.
        from rich.segment import Segments
        from textual_image.renderable import Image

        terminal, before = self._live.console, self._picture
        lines = max(1, min(PICTURE_LINES, terminal.height - 4))
        self._picture = Image(picture, "auto", lines)
        with _as_stdout():
            # Only now: the bar moves, and a picture need not be encoded each time.
            self._shown = Segments(_in_full_colour(terminal.render(self._picture)))
            self._live.refresh()
            if before:
                before.cleanup()


def _in_full_colour(segments: "Iterable[Segment]") -> "Iterator[Segment]":
    """Keep colours from what TERM and NO_COLOR make of them: kitty finds a picture by one."""
    from rich.segment import ControlType, Segment

    as_it_is = [(ControlType.CURSOR_FORWARD, 0)]  # what is a control is
    for text, style, control in segments:
        if style is None or style.color is None:
            yield Segment(text, style, control)
            continue
        begin, end = (f"\x1b[{code}m" for code in (";".join(style.color.get_ansi_codes()), "39"))
        yield Segment(begin, None, as_it_is)
        yield Segment(text)
        yield Segment(end, None, as_it_is)


@contextlib.contextmanager
def _as_stdout() -> Iterator[None]:
    """Have a library that takes `sys.__stdout__` for the terminal find stderr there."""
    before = sys.__stdout__
    sys.__stdout__ = sys.__stderr__  # type: ignore[misc]
    try:
        yield
    finally:
        sys.__stdout__ = before  # type: ignore[misc]


def hush_libraries() -> None:
    """Keep what libraries warn of and log from this process's stderr, which is for what we say.

    Warnings stay if Python was asked for them (`-W`, PYTHONWARNINGS), and so do our own logs.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    # Torch, when it is imported, and so in the processes that are started.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.getLogger().addHandler(logging.NullHandler())
    logging.getLogger("s2f").addHandler(logging.StreamHandler())


def described(error: S2FError) -> dict[str, Any]:
    """Give an error as JSON has it: `error`, its kind; `message`; `hint`, the cure; `details`."""
    told = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    return told | ({"details": list(error.details)} if error.details else {})


def one_line(text: str) -> str:
    """Escape what a path may hold and a terminal would obey: line ends, escape sequences."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _write(stream: TextIO | None, line: str) -> None:
    if stream is None:  # whoever started the program closed it
        return
    try:
        try:
            stream.write(f"{line}\n")
        except UnicodeEncodeError:  # a path whose bytes are not text: give it back as it came
            stream.flush()
            stream.buffer.write(os.fsencode(f"{line}\n"))
        stream.flush()
    except OSError as error:
        with contextlib.suppress(OSError), Path(os.devnull).open("wb") as nowhere:
            # What is left in the stream would fail again as the program ends: exit code 120.
            os.dup2(nowhere.fileno(), stream.fileno())
        message = f"{stream.name}: cannot be written: {error.strerror}"
        raise OutputError(message, hint="look at what it leads to") from error


def jsonable(value: object) -> Any:
    """Turn mappings, sequences, paths and numbers, NumPy's too, into what JSON has."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Real):
        number = int(value) if isinstance(value, Integral) else float(value)
        return number if math.isfinite(number) else None
    return str(value)


def duration(seconds: float) -> str:
    """Write a time: `0.12 s`, `45 s`, `3 min 20 s`, `5 h 3 min`, `2 d 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    for larger, name, smaller, below in _UNITS:
        if whole >= larger:
            return f"{whole // larger} {name} {whole % larger // smaller} {below}"
    return f"{whole} s"


def count(n: int) -> str:
    """Write a number: `999`, `17.2 k`, `148 M`, `1.13 G`, in powers of 1000."""
    value, prefix = float(n), ""
    for larger in "kMGT":
        if value < 999.5:
            break
        value, prefix = value / 1000, f" {larger}"
    return f"{value:.3g}{prefix}"


def size(n: int) -> str:
    """Write a number of bytes: `999 B`, `17.2 kB`, `148 MB`."""
    number, _, prefix = count(n).partition(" ")
    return f"{number} {prefix}B"
