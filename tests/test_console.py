"""What is printed where, in each mode."""

import io
import json
import re
import sys
import time
from pathlib import Path

import pytest

from s2f.console import Console, Mode, count, duration, size
from s2f.errors import AudioError, InputError

Captured = pytest.CaptureFixture[str]
MODES: list[Mode] = ["human", "quiet", "json"]
ERROR = AudioError("a.wav holds only silence", hint="Record again.")
DESCRIBED = {"error": "AudioError", "message": "a.wav holds only silence", "hint": "Record again."}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("mode", ["human", "quiet"])
def test_results_are_lines_on_stdout(mode: Mode, capsys: Captured) -> None:
    console = Console(mode)
    console.line(Path("a.png"))
    console.line("b.png")
    console.summary({"faces": 2})
    assert capsys.readouterr() == ("a.png\nb.png\n", "")


def test_a_json_result_is_one_object_alone(capsys: Captured) -> None:
    console = Console("json")
    console.line("a.png")
    console.summary({"face": Path("a.png"), "clips": (1, 2), "error": None})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"face": "a.png", "clips": [1, 2], "error": None}
    assert out.count("\n") == 1
    assert err == ""


def test_numbers_that_json_lacks_become_null(capsys: Captured) -> None:
    Console("json").summary({"loss": float("nan"), "best": float("inf"), "step": 2})
    assert json.loads(capsys.readouterr().out) == {"loss": None, "best": None, "step": 2}


@pytest.mark.parametrize(("mode", "seen"), [("human", "hello\n"), ("quiet", ""), ("json", "")])
def test_notes_are_for_people(mode: Mode, seen: str, capsys: Captured) -> None:
    Console(mode).note("hello")
    assert capsys.readouterr() == ("", seen)


@pytest.mark.parametrize("mode", ["human", "quiet"])
def test_an_error_is_a_line_and_a_cure_on_stderr(mode: Mode, capsys: Captured) -> None:
    Console(mode).error(ERROR)
    assert capsys.readouterr() == ("", "error: a.wav holds only silence\ncure: Record again.\n")
    Console(mode).error(InputError("no"))
    assert capsys.readouterr().err == "error: no\n"


def test_an_error_under_json_is_an_object_on_stdout(capsys: Captured) -> None:
    Console("json").error(ERROR)
    out, err = capsys.readouterr()
    assert json.loads(out) == DESCRIBED
    assert err == ""


def test_an_interruption_says_what_is_kept(capsys: Captured) -> None:
    Console().interrupted("interrupted; saved in run", "go on")
    assert capsys.readouterr().err == "error: interrupted; saved in run\ncure: go on\n"


def test_failures_of_a_batch_are_named_and_cured_once(capsys: Captured) -> None:
    Console().failures([ERROR, AudioError("b.wav is empty", hint="Record again.")], 10)
    assert capsys.readouterr() == (
        "",
        "error: 2 of 10 failed\n  a.wav holds only silence\n  b.wav is empty\n"
        "cure: Record again.\n",
    )
    Console("json").failures([ERROR], 10)  # its results say it
    assert capsys.readouterr() == ("", "")


def test_a_path_that_looks_like_markup_is_printed_as_it_is(capsys: Captured) -> None:
    Console().line("[red]a[/red].png")
    Console().note("[bold]b.png")
    assert capsys.readouterr() == ("[red]a[/red].png\n", "[bold]b.png\n")


def test_an_error_cannot_command_the_terminal(capsys: Captured) -> None:
    Console().error(InputError("a\nb\x1b[2J\udcff.wav: é is fine"))
    assert capsys.readouterr().err == "error: a\\nb\\x1b[2J\\udcff.wav: é is fine\n"


def test_a_name_that_is_not_text_comes_back_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))
    Console().line("a\udcff.png")
    Console().line("b.png")
    assert raw.getvalue() == b"a\xff.png\nb.png\n"


ROWS = [("run", "[red]a[/red]\n.png"), ("steps", "300")]


def test_a_table_is_for_people_and_aligned(capsys: Captured) -> None:
    Console().table(ROWS)
    out, err = capsys.readouterr()
    lines = [line.split() for line in err.splitlines()]
    assert (out, lines) == ("", [["run", "[red]a[/red]\\n.png"], ["steps", "300"]])
    assert (
        len({line.index(cells[1]) for line, cells in zip(err.splitlines(), lines, strict=True)})
        == 1
    )


def test_a_table_with_heads_has_its_numbers_to_the_right(capsys: Captured) -> None:
    Console().table([("embedding/l2", "1.5", "x"), ("a", "-12.25", "long")], ("loss", "value", "y"))
    head, _, *rows = [
        line.rstrip() for line in capsys.readouterr().err.splitlines() if line.strip()
    ]
    assert head.split() == ["loss", "value", "y"]
    assert [row.split() for row in rows] == [["embedding/l2", "1.5", "x"], ["a", "-12.25", "long"]]
    assert len({row.index(end) for row, end in zip(rows, ("5 ", "5 "), strict=True)}) == 1
    assert len({row.index(word) for row, word in zip(rows, ("x", "long"), strict=True)}) == 1


def test_a_path_in_a_table_stays_whole(capsys: Captured) -> None:
    path = "/".join(["folder"] * 20)
    Console().table([("written", path)])
    assert path in capsys.readouterr().err


def test_an_empty_table_or_another_mode_shows_nothing(capsys: Captured) -> None:
    Console().table([], ("loss",))
    for mode in MODES[1:]:
        Console(mode).table(ROWS)
    assert capsys.readouterr() == ("", "")


def screen(text: str, width: int) -> list[str]:
    """What a terminal shows in the end, of text that moves up and clears lines only."""
    rows, row = [""], 0
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)", text):
        if part == "\n":
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            rows[row] = ""
        elif part and not part.startswith("\x1b") and part != "\r":
            rows[row] += part
            assert len(rows[row]) <= width, "the terminal would break the line"
    return [line.rstrip() for line in rows if line.strip()]


def test_a_long_line_of_losses_fits_a_small_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    losses = "  ".join(f"loss/number{k} 0.123{k}" for k in range(4))
    with Console().progress("training decoder") as progress:
        progress(99, 100_000, f"123.4 samples/s  {losses}")
        Console().note("left out: " + "a long path " * 10)
        progress(100, 100_000, f"123.5 samples/s  {losses}")
        time.sleep(0.6)  # until it has been drawn
        seen = screen(terminal.getvalue(), 80)
    assert seen[-2].startswith("training decoder") and "   100/100000" in seen[-2]
    assert seen[-1].startswith("123.5 samples/s  loss/number0 0.1230")
    assert seen[-1].endswith("…") and len(seen[-1]) <= 80
    assert [line for line in seen if line.startswith("training")] == seen[-2:-1]  # no leftovers
    assert sum("a long path" in line for line in seen) == 2


def test_progress_shows_title_count_rate_and_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Console().progress("drawing", "files") as progress:
        for done in range(4):
            progress(done, 10, f"[red]{done}.wav")
        progress(1, 20, "the next part counts anew")
    seen = terminal.getvalue()
    for part in ("drawing", "1/20", "counts anew"):
        assert part in seen


def test_progress_is_for_people_at_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    with Console().progress("drawing") as progress:
        progress(1, 2, "a.wav")
    assert capsys.readouterr() == ("", "")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for mode in MODES[1:]:
        with Console(mode).progress("drawing") as progress:
            progress(1, 2, "a.wav")
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.1234, "0.12 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (18_200, "5 h 3 min"),
        (187_300, "2 d 4 h"),
    ],
)
def test_times(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (17_150, "17.1 k"),
        (999_600, "1 M"),
        (148_100_000, "148 M"),
        (1_130_000_000, "1.13 G"),
    ],
)
def test_numbers(n: int, text: str) -> None:
    assert count(n) == text


@pytest.mark.parametrize(
    ("n", "text"), [(12, "12 B"), (17_150, "17.1 kB"), (592_400_000, "592 MB")]
)
def test_bytes(n: int, text: str) -> None:
    assert size(n) == text
