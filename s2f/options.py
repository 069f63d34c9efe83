"""What the commands share: how they speak, their options in common, and how these are gathered.

An option that one command has lives with it; here are those of several.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from s2f.console import Console
from s2f.errors import S2FError, UsageError

PARTLY_FAILED, INTERRUPTED = 6, 130  # exit codes that no error has
Panel = Literal["Input", "Model", "Training", "Run", "Output"]
GIVEN = "given"  # in what a context's parents see too: the parameters of the command that runs
GROUP: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": "markdown"}  # of commands
Job = TypeVar("Job")


def choose_console(ctx: typer.Context, as_json: bool, quiet: bool) -> Console:
    """Decide once how this command speaks, where errors find it too.

    Raises a UsageError if the working folder is gone, where torch ends the program with no word,
    or a path is the URL of an object store: what may be one is a text.
    """
    console = Console("json" if as_json else "quiet" if quiet else "human")
    ctx.find_root().obj = console
    ctx.meta[GIVEN] = ctx.params
    try:
        Path.cwd()
    except OSError as error:
        message = f"the working folder cannot be used: {error.strerror}"
        raise UsageError(message, hint="cd to a folder that is there") from error
    for name, value in ctx.params.items():
        for path in value if isinstance(value, list | tuple) else [value]:
            if isinstance(path, Path) and re.match("[a-zA-Z][a-zA-Z0-9+.-]+:/", str(path)):
                url = str(path).replace(":/", "://", 1)
                message = f"{url}: {ctx.command.name} takes no URL of an object store here ({name})"
                hint = "copy it to a disk first, or write to one and copy it then; a folder that "
                raise UsageError(message, hint=f"{hint}is called so is given by its whole path")
    return console


def finish(
    console: Console, result: Mapping[str, object], errors: Sequence[S2FError], total: int
) -> None:
    """Give all results as JSON, if that was asked for, and exit as a batch if any of it failed."""
    console.summary(result)
    if errors:
        console.failures(errors, total)
        raise typer.Exit(PARTLY_FAILED)


def gather(ctx: typer.Context, job: type[Job], **more: Any) -> Job:
    """Make the dataclass that a job takes of the command's options of the same names, and more."""
    names = {field.name for field in dataclasses.fields(job)}  # type: ignore[arg-type]
    return job(**{name: value for name, value in ctx.params.items() if name in names} | more)


def given(**options: object) -> dict[str, Any]:
    """Keep the options that were given; the function that gets them has its own defaults."""
    return {name: value for name, value in options.items() if value is not None}


def examples(*commands: str) -> str:
    """Make an epilog; blank lines keep markdown from joining the commands."""
    return "\n\n".join(["Examples:", *(f"`{command}`" for command in commands)])


def option(panel: Panel, help: str, *names: str, **settings: Any) -> Any:
    """Make an option, in one of the panels of a command's help."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **settings)


JsonOpt = Annotated[bool, option("Output", "Print one JSON object, errors too.", "--json")]
QuietOpt = Annotated[bool, option("Output", "Print results and errors only.", "--quiet", "-q")]
OverwriteOpt = Annotated[bool, option("Output", "Replace files that are there.", "--overwrite")]
DeviceOpt = Annotated[str, option("Run", "auto (default), cpu, cuda, cuda:N or mps.")]
SeedOpt = Annotated[int | None, option("Run", "Of everything random.", min=0)]
WorkersOpt = Annotated[int | None, option("Run", "Processes (default: one a core).", min=1)]
