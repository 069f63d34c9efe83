"""The commands that make training data: `s2f prep ...`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from s2f.options import (
    GROUP,
    JsonOpt,
    QuietOpt,
    SeedOpt,
    choose_console,
    examples,
    given,
    option,
)

app = typer.Typer(help="Prepare training data.", **GROUP)


@app.command("demo", epilog=examples("s2f prep demo sources/faces sources/voices data/demo"))
def _prep_demo(
    ctx: typer.Context,
    faces: Annotated[Path, typer.Argument(help="people.csv and a folder a person.")],
    voices: Annotated[Path, typer.Argument(help="speakers.csv and a folder a reader.")],
    out: Annotated[Path, typer.Argument(help="New folder for the training trees.")],
    identities: Annotated[
        int | None, option("Run", "Synthetic people.", "--identities", min=1)
    ] = None,
    seed: SeedOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Make the training trees of the bundled model from its two sources."""
    console = choose_console(ctx, as_json, quiet)
    from s2f import demo

    with console.progress("preparing", "identities") as progress:
        report = demo.prepare(
            faces, voices, out, progress=progress, **given(identities=identities, seed=seed)
        )
    console.line(report.out)
    console.summary(dataclasses.asdict(report))
