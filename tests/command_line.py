"""Running commands as users do, and what a refusal must look like."""

import json
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from s2f.cli import app


class Done:
    """What a command left: exit code, stdout and stderr, and the exception if it was a bug."""

    def __init__(self, *args: object, stdin: bytes = b"") -> None:
        result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr
        self.exception = result.exception

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def commands(group: Any = None, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    group = group or typer.main.get_command(app)
    found = []
    for name, command in group.commands.items():
        nested = hasattr(command, "commands")
        found += commands(command, (*path, name)) if nested else [((*path, name), command)]
    return found


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def assert_refused(done: Done, code: int, name: object) -> None:
    """One line that names the file, perhaps a cure, and no traceback."""
    assert done.code == code
    assert done.out == ""
    message, *rest = done.err.splitlines()
    assert message.startswith("error: ")
    assert str(name) in message
    assert len(rest) <= 1
    assert all(line.startswith("cure: ") for line in rest)
    assert "Traceback" not in done.err


def assert_wrong_usage(done: Done) -> None:
    """Typer's own report: on stderr, and no traceback."""
    assert done.code == 2
    assert done.out == ""
    assert done.err
    assert "Traceback" not in done.err
