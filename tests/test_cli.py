"""The root of the command line: help, version, exit codes, and the program itself."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from command_line import Done, assert_refused, assert_wrong_usage, commands

import s2f
from s2f import cli, generate

pytestmark = pytest.mark.usefixtures("bundled")


def test_no_arguments_show_the_help() -> None:
    done = Done()
    assert done.code == 2
    assert "generate" in done.out + done.err


def test_the_version_is_the_packages() -> None:
    done = Done("--version")
    assert (done.code, done.out) == (0, f"s2f {s2f.__version__}\n")


def test_the_panels_of_the_help_are_the_three_jobs() -> None:
    out = Done("--help").out
    assert all(panel in out for panel in ("Prepare data", "Train", "Use"))


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    done = Done(*path, "--help")
    assert done.code == 0
    assert f"s2f {' '.join(path)}" in done.out.split("Examples:")[1]


@pytest.mark.parametrize(("path", "command"), commands())
def test_every_example_in_the_help_parses(path: tuple[str, ...], command: Any) -> None:
    lines = [line.strip("`") for line in command.epilog.splitlines() if line.startswith("`s2f")]
    assert lines
    for line in lines:
        program, *words = shlex.split(line)
        assert (program, *words[: len(path)]) == ("s2f", *path)
        command.make_context("s2f", words[len(path) :])


def test_an_unknown_command_exits_2() -> None:
    assert_wrong_usage(Done("nonsense"))


def test_a_bug_keeps_its_traceback(speech: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **options: object) -> NoReturn:
        raise ZeroDivisionError

    monkeypatch.setattr(generate, "plan_outputs", broken)
    done = Done("generate", speech)
    assert done.code == 1
    assert isinstance(done.exception, ZeroDivisionError)


def test_a_path_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / ("x" * 300), tmp_path / ("y/" * 2500)):
        for arguments in ((path, tmp_path / "out"), (tmp_path, path)):
            assert_refused(Done("prep", "resize", *arguments), 3, path)


def test_an_interruption_exits_130(speech: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "plan_outputs", interrupted)
    done = Done("generate", speech)
    assert done.code == 130
    assert done.err.startswith("error: interrupted")


def program(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "s2f", *(str(arg) for arg in args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_the_program_generates(speech: Path, tmp_path: Path, models: Path) -> None:
    done = program("generate", speech, "-o", tmp_path / "f.png", "--model", models / "demo")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'f.png'}\n", "")


def test_the_program_says_what_is_wrong_in_two_lines(tmp_path: Path, models: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    done = program("generate", "text.wav", "--model", models / "demo", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stdout == ""
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "cure"]


@pytest.mark.parametrize("command", ["audio", "faces --detector dlib", "pack --verify"])
def test_without_a_working_folder_nothing_begins(tmp_path: Path, command: str) -> None:
    gone = f"mkdir gone; cd gone; rmdir ../gone; {sys.executable} -m s2f prep {command} --json"
    done = subprocess.run(
        f"{gone} {tmp_path} {tmp_path / 'out'}", cwd=tmp_path, shell=True, capture_output=True
    )
    assert done.returncode == 2
    assert json.loads(done.stdout)["message"].startswith("the working folder cannot be used")
    assert not (tmp_path / "out").exists()


def test_the_program_is_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["anything", "--version"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
