"""The command line: parse, call one function of the library, report, exit.

Here is the root: `s2f` itself, its groups, and what an error exits with. The commands live in

- `cli_use`: what uses a model, at the root: `s2f generate`, `s2f reconstruct`;
- `cli_app`: what shows a model to visitors: `s2f app`;
- `cli_models`: what says which models there are: `s2f models`, `s2f verify`;
- `cli_evaluate`: what judges a model: `s2f evaluate`;
- `cli_prep` and `cli_trees`: what makes training data, of files and of trees: `s2f prep ...`;
- `cli_convert`: what reads weights that others published: `s2f convert ...`;
- `cli_train`: what trains a network: `s2f train ...`;

and what they share in `options`. None of these knows how anything is done, and importing them
imports neither torch nor any module that does: each command imports what it needs, so that
`s2f --help` answers at once.
"""

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import s2f
from s2f import (
    cli_app,
    cli_convert,
    cli_evaluate,
    cli_models,
    cli_prep,
    cli_train,
    cli_trees,
    cli_use,
)
from s2f.console import Console
from s2f.errors import InputError, S2FError
from s2f.options import GROUP, INTERRUPTED


class _Group(TyperGroup):
    """Turns errors that a user, a file or a machine caused into a report and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; whatever else goes wrong is a bug and keeps its traceback."""
        try:
            return super().invoke(ctx)
        except S2FError as error:
            (ctx.obj or Console()).error(error)
            raise typer.Exit(error.exit_code) from None
        except OSError as error:  # of a path that cannot even be looked at
            if error.filename is None:
                raise
            unreachable = InputError(
                f"{os.fsdecode(error.filename)}: cannot be reached: {error.strerror}",
                hint="check its name, and the permissions of the folders above it",
            )
            (ctx.obj or Console()).error(unreachable)
            raise typer.Exit(unreachable.exit_code) from None
        except KeyboardInterrupt:
            (ctx.obj or Console()).interrupted("interrupted; what was finished is kept")
            raise typer.Exit(INTERRUPTED) from None


def _version(wanted: bool) -> None:
    if wanted:
        Console().line(f"s2f {s2f.__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Group,
    pretty_exceptions_enable=False,
    help="Speech to face: prepare data, train, and generate the face that a voice suggests.",
    epilog="Start with: `s2f generate examples/speech.wav -o face.png`",
    **GROUP,
)
app.add_typer(cli_use.app)
app.add_typer(cli_app.app)
app.add_typer(cli_evaluate.app)
app.add_typer(cli_models.app)
cli_prep.app.add_typer(cli_trees.app)
app.add_typer(cli_prep.app, name="prep", rich_help_panel="Prepare data")
app.add_typer(cli_convert.app, name="convert", rich_help_panel="Prepare data")
app.add_typer(cli_train.app, name="train", rich_help_panel="Train")


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the program: what the command `s2f` starts."""
    app(prog_name="s2f")
