"""What is printed where, in each mode."""

import io
import json
import sys
from pathlib import Path

import pytest

from s2f.console import Console, Mode
from s2f.errors import AudioError, InputError

MODES: list[Mode] = ["human", "quiet", "json"]
ERROR = AudioError("a.wav holds only silence", hint="Record again.")
DESCRIBED = {"error": "AudioError", "message": "a.wav holds only silence", "hint": "Record again."}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("mode", ["human", "quiet"])
def test_results_are_lines_on_stdout(mode: Mode, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(mode)
    console.line(Path("a.png"))
    console.line("b.png")
    console.summary({"faces": 2})
    assert capsys.readouterr() == ("a.png\nb.png\n", "")


def test_a_json_result_is_one_object_alone(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console("json")
    console.line("a.png")
    console.summary({"face": Path("a.png"), "clips": (1, 2), "error": None})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"face": "a.png", "clips": [1, 2], "error": None}
    assert out.count("\n") == 1
    assert err == ""


def test_numbers_that_json_lacks_become_null(capsys: pytest.CaptureFixture[str]) -> None:
    Console("json").summary({"loss": float("nan"), "best": float("inf"), "step": 2})
    assert json.loads(capsys.readouterr().out) == {"loss": None, "best": None, "step": 2}


@pytest.mark.parametrize(("mode", "seen"), [("human", "hello\n"), ("quiet", ""), ("json", "")])
def test_notes_are_for_people(mode: Mode, seen: str, capsys: pytest.CaptureFixture[str]) -> None:
    Console(mode).note("hello")
    assert capsys.readouterr() == ("", seen)


@pytest.mark.parametrize("mode", ["human", "quiet"])
def test_an_error_is_a_line_and_a_cure_on_stderr(
    mode: Mode, capsys: pytest.CaptureFixture[str]
) -> None:
    Console(mode).error(ERROR)
    assert capsys.readouterr() == ("", "error: a.wav holds only silence\ncure: Record again.\n")


def test_an_error_without_a_cure_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Console().error(InputError("no"))
    assert capsys.readouterr().err == "error: no\n"


def test_an_error_under_json_is_an_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    Console("json").error(ERROR)
    out, err = capsys.readouterr()
    assert json.loads(out) == DESCRIBED
    assert err == ""


def test_an_interruption_says_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    Console().interrupted("interrupted; saved in run", "go on")
    assert capsys.readouterr().err == "error: interrupted; saved in run\ncure: go on\n"


def test_failures_of_a_batch_are_counted_named_and_cured_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Console().failures([ERROR, AudioError("b.wav is empty", hint="Record again.")], 10)
    assert capsys.readouterr() == (
        "",
        "error: 2 of 10 failed\n  a.wav holds only silence\n  b.wav is empty\n"
        "cure: Record again.\n",
    )


def test_failures_of_a_batch_leave_json_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Console("json").failures([ERROR], 10)
    assert capsys.readouterr() == ("", "")


def test_a_path_that_looks_like_markup_is_printed_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Console().line("[red]a[/red].png")
    Console().note("[bold]b.png")
    assert capsys.readouterr() == ("[red]a[/red].png\n", "[bold]b.png\n")


def test_an_error_stays_on_one_line_and_cannot_command_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Console().error(InputError("a\nb\x1b[2J\udcff.wav: é is fine"))
    assert capsys.readouterr().err == "error: a\\nb\\x1b[2J\\udcff.wav: é is fine\n"


def test_a_file_name_that_is_not_text_comes_back_byte_for_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))
    Console().line("a\udcff.png")
    Console().line("b.png")
    assert raw.getvalue() == b"a\xff.png\nb.png\n"


def test_progress_shows_title_count_rate_and_what_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Console().progress("drawing", "files") as progress:
        for done in range(4):
            progress(done, 10, f"[red]{done}.wav")
    seen = terminal.getvalue()
    for part in ("drawing", "3/10", "files/s", "[red]3.wav"):
        assert part in seen


def test_progress_follows_a_job_whose_second_part_counts_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Console().progress("preparing") as progress:
        progress(500, 500, "faces")
        progress(1, 20, "voices")
    assert "1/20" in terminal.getvalue()


@pytest.mark.parametrize("mode", ["quiet", "json"])
def test_progress_is_for_people(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Console(mode).progress("drawing") as progress:
        progress(1, 2, "a.wav")
    assert terminal.getvalue() == ""


def test_progress_vanishes_where_stderr_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Console().progress("drawing") as progress:
        progress(1, 2, "a.wav")
    assert capsys.readouterr() == ("", "")
