"""What is printed where, in each mode."""

import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from s2f.console import Console, Mode, count, duration, size
from s2f.errors import AudioError, InputError, together

Captured = pytest.CaptureFixture[str]
ERROR = AudioError("a.wav holds only silence", hint="Record again.")
DESCRIBED = {"error": "AudioError", "message": "a.wav holds only silence", "hint": "Record again."}
CURE = "cure: Record again."
ROWS = [("run", "[red]a[/red]\n.png"), ("steps", "300")]


@pytest.mark.parametrize(("mode", "note"), [("human", "[bold]hello\n"), ("quiet", "")])
def test_results_are_lines_on_stdout_and_notes_are_for_people(
    mode: Mode, note: str, capsys: Captured
) -> None:
    console = Console(mode)
    console.line(Path("[red]a[/red].png"))
    console.note("[bold]hello")
    console.summary({"faces": 2})
    assert capsys.readouterr() == ("[red]a[/red].png\n", note)
    console.error(ERROR)
    console.interrupted("interrupted; saved in run", "go on")
    console.failures([ERROR, AudioError("b.wav is empty", hint="Record again.")], 10)
    out, err = capsys.readouterr()
    cured = ["error: a.wav holds only silence", "cure: Record again."]
    stopped = ["error: interrupted; saved in run", "cure: go on"]
    failed = ["error: 2 of 10 failed", "  a.wav holds only silence", "  b.wav is empty", cured[1]]
    assert (out, err.splitlines()) == ("", [*cured, *stopped, *failed])


def test_json_is_one_object_alone(capsys: Captured) -> None:
    console = Console("json")
    console.line("a.png")
    console.note("hello")
    console.table(ROWS)
    console.failures([ERROR], 10)  # the results say it
    console.summary({"face": Path("a.png"), "clips": (1, float("nan")), "best": float("inf")})
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"face": "a.png", "clips": [1, None], "best": None}, "")
    assert out.count("\n") == 1
    console.error(ERROR)
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == (DESCRIBED, "")
    both = together("of 9 files", [ERROR, ERROR])
    console.error(both)
    out, _ = capsys.readouterr()
    assert json.loads(out)["details"] == [ERROR.message] * 2
    Console().error(both)
    told = [
        "error: of 9 files 2 cannot be used",
        *[f"  {ERROR.message}"] * 2,
        "cure: Record again.",
    ]
    assert capsys.readouterr().err.splitlines() == told


def test_odd_names_do_no_harm(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    Console().error(InputError("a\nb\x1b[2J\udcff.wav: é is fine"))
    assert capsys.readouterr().err == "error: a\\nb\\x1b[2J\\udcff.wav: é is fine\n"
    raw = io.BytesIO()  # where a name that is not text comes back as bytes
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))
    Console().line("a\udcff.png")
    Console().line("b.png")
    assert raw.getvalue() == b"a\xff.png\nb.png\n"


def test_a_table_is_for_people_and_aligned(capsys: Captured) -> None:
    path = "/".join(["folder"] * 20)  # stays whole
    Console("quiet").table(ROWS)
    Console().table([], ("loss",))
    Console().table([*ROWS, ("written", path)])
    out, err = capsys.readouterr()
    lines = [line.split() for line in err.splitlines()]
    assert out == ""
    assert lines == [["run", "[red]a[/red]\\n.png"], ["steps", "300"], ["written", path]]
    starts = [line.index(cells[1]) for line, cells in zip(err.splitlines(), lines, strict=True)]
    assert len(set(starts)) == 1


def test_a_table_with_heads_has_its_numbers_to_the_right(capsys: Captured) -> None:
    Console().table([("embedding/l2", "1.5", "x"), ("a", "-12.25", "long")], ("loss", "value", "y"))
    printed = [line.rstrip() for line in capsys.readouterr().err.splitlines() if line.strip()]
    head, _, *rows = printed
    assert head.split() == ["loss", "value", "y"]
    assert [row.split() for row in rows] == [["embedding/l2", "1.5", "x"], ["a", "-12.25", "long"]]
    assert rows[0].index("5 ") == rows[1].index("5 ")
    assert rows[0].index("x") == rows[1].index("long")


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


def test_progress_is_for_people_at_a_terminal_which_may_be_small(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Console().progress("drawing") as progress:
        progress(1, 2, "a.wav")
    assert capsys.readouterr() == ("", "")
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with Console("quiet").progress("drawing") as progress:
        progress(1, 2, "a.wav")
    assert terminal.getvalue() == ""
    losses = "  ".join(f"loss/number{k} 0.123{k}" for k in range(4))
    with Console().progress("training decoder", "steps") as progress:
        for done in range(3):  # of a part before, which counts for itself
            progress(done, 10, f"[red]{done}.wav")
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


@pytest.mark.parametrize("is_terminal", [False, True])
def test_results_go_to_stdout_while_there_is_a_bar(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But on a terminal above the bar, which is drawn on stderr."""
    terminal, stdout = io.StringIO(), io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(stdout, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setenv("TERM", "xterm")
    with Console().progress("drawing"):
        Console().line("a.png")
    found = (stdout.getvalue(), "a.png" in terminal.getvalue())
    assert found == (("", True) if is_terminal else ("a.png\n", False))


def test_libraries_write_nothing_and_are_heard_only_when_asked_for() -> None:
    code = "import logging, warnings; from s2f.console import hush_libraries; hush_libraries()\n"
    code += "warnings.warn('old'); logging.getLogger('library').error('odd')\n"
    code += "logging.getLogger('s2f.app').error('ours')"
    for options, wanted in (((), "ours\n"), (("-W", "default"), "UserWarning: old")):
        command = [sys.executable, *options, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert wanted in done.stderr and "odd" not in done.stderr
        assert options or done.stderr == wanted


def test_quantities_have_two_or_three_digits() -> None:
    times = {0.1234: "0.12 s", 9.94: "9.9 s", 9.96: "10 s", 59.4: "59 s", 59.6: "1 min 0 s"}
    times |= {200: "3 min 20 s", 3599.7: "1 h 0 min", 18_200: "5 h 3 min", 187_300: "2 d 4 h"}
    assert {seconds: duration(seconds) for seconds in times} == times
    numbers = {0: "0", 999: "999", 1000: "1 k", 17_150: "17.1 k", 999_600: "1 M"}
    numbers |= {148_100_000: "148 M", 1_130_000_000: "1.13 G"}
    assert {n: count(n) for n in numbers} == numbers
    assert (size(12), size(17_150), size(592_400_000)) == ("12 B", "17.1 kB", "592 MB")
