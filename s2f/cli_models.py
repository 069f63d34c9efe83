"""The commands that say what models there are: `s2f models` and `s2f verify`."""

import dataclasses
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import s2f
from s2f.console import Console, described, one_line
from s2f.errors import CheckpointError
from s2f.options import PARTLY_FAILED, JsonOpt, QuietOpt, choose_console, examples
from s2f.units import count, size

if TYPE_CHECKING:
    from s2f.catalogue import Entry
    from s2f.header import Facts

app = typer.Typer()
MEGABYTE = 1_000_000
LICENCE = 20  # characters of one that the table shows; the card has all


@app.command(
    "models",
    rich_help_panel="Use",
    epilog=examples("s2f models", "s2f models demo", "s2f models --json"),
)
def _models(
    ctx: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Argument(help="Names or folders of models, whose cards to show.", metavar="MODEL"),
    ] = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """List the models that are bundled or in the cache, or show the cards of some.

    The cache is the folder $S2F_MODELS, else s2f/models in $XDG_CACHE_HOME or ~/.cache. A folder of
    checkpoints put there is a model, and --model knows it by its name.
    """
    console = choose_console(ctx, as_json, quiet)
    from s2f import catalogue

    entries = catalogue.entries(*(model or ()))
    errors = [error for entry in entries for error in entry.errors.values()]
    if model:
        for entry in entries:
            _show(console, entry)
    else:
        console.table(
            [row for entry in entries for row in _rows(entry)],
            ("model", "where", "network", "parameters", "size", "licence"),
        )
        for entry in entries:
            console.line(entry.name)
        for error in errors:
            console.note(error.message)
    value = {"cache": catalogue.cache(), "models": [_record(entry) for entry in entries]}
    n_files = sum(len(entry.networks) + len(entry.errors) for entry in entries)
    _finish(console, value, errors if model else [], n_files)


@app.command(
    "verify",
    no_args_is_help=True,
    rich_help_panel="Use",
    epilog=examples(
        "s2f verify runs/voice/best.safetensors",
        "s2f verify models/pietkun models/mine",
    ),
)
def _verify(
    ctx: typer.Context,
    file: Annotated[
        list[Path],
        typer.Argument(help="Checkpoints, or folders of them.", metavar="FILE"),
    ],
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Check that checkpoints are whole: every value hashed, and compared with the header.

    The networks of a model folder must also have been made for one face encoder.
    """
    console = choose_console(ctx, as_json, quiet)
    from s2f import header

    groups = {source: _checkpoints(source) for source in dict.fromkeys(file)}
    sizes = {p: p.stat().st_size for paths in groups.values() for p in paths if p.is_file()}
    total, done = sum(sizes.values()), 0
    results: list[dict[str, object]] = []
    errors: list[CheckpointError] = []

    def failed(path: Path, error: CheckpointError) -> None:
        errors.append(error)
        results.append({"path": path, "status": "failed", "error": described(error)})

    with console.progress("verifying", "MB") as progress:

        def told(hashed: int) -> None:
            progress((done + hashed) // MEGABYTE, -(-total // MEGABYTE), str(path))

        for source, paths in groups.items():
            whole: list[Facts] = []
            for path in paths:
                try:
                    facts = header.verify(path, told)
                except CheckpointError as error:
                    failed(path, error)
                else:
                    whole.append(facts)
                    results.append({**dataclasses.asdict(facts), "status": "ok", "error": None})
                    console.line(f"{path}: ok: {facts.kind}, sha256 {facts.sha256[:12]}")
                done += sizes.get(path, 0)
            try:
                header.check_space([f for f in whole if f.path.stem == f.kind])  # of a model
            except CheckpointError as error:
                failed(source, error)
            if not paths:
                failed(source, _empty(source))
    _finish(console, {"results": results}, errors, len(results))


def _checkpoints(source: Path) -> list[Path]:
    """List the checkpoints that a path stands for: itself, or those in it."""
    return sorted(source.glob("*.safetensors")) if source.is_dir() else [source]


def _empty(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{folder}: holds no checkpoints",
        hint="give .safetensors files, or the folder that they are in",
    )


def _finish(
    console: Console, value: Mapping[str, object], errors: list[CheckpointError], total: int
) -> None:
    """Print the JSON, and exit as a batch does if anything of it failed."""
    if errors and total == 1:
        raise errors[0]
    console.summary({"s2f": s2f.__version__, **value})
    if errors:
        console.failures(errors, total)
        raise typer.Exit(PARTLY_FAILED)


def _rows(entry: "Entry") -> list[tuple[str, ...]]:
    """Make a row of the table for each network of a model."""
    rows: list[tuple[str, ...]] = []
    for facts in entry.networks.values():
        licence = textwrap.shorten(str(facts.card.get("licence", "")), LICENCE, placeholder=" ...")
        n_parameters, n_bytes = count(facts.parameters), size(facts.n_bytes)
        rows.append((entry.name, entry.where, facts.kind, n_parameters, n_bytes, licence))
    return rows + [(entry.name, entry.where, kind, "", "", "damaged") for kind in entry.errors]


def _show(console: Console, entry: "Entry") -> None:
    """Print what the files of a model say, cards and all; escaped, for strangers wrote it."""
    console.line(f"{entry.name} ({entry.where}): {entry.folder}")
    for kind, facts in entry.networks.items():
        console.line("")
        console.line(
            f"{kind}: {count(facts.parameters)} parameters, {size(facts.n_bytes)}, {facts.storage}"
        )
        console.line(f"  embedding space: {one_line(facts.embedding_space)}")
        console.line(f"  sha256: {one_line(facts.sha256)}")
        for name, value in facts.card.items():
            if isinstance(value, Mapping):
                console.line(f"  {one_line(name)}:")
                for key, figure in value.items():
                    console.line(f"    {one_line(key)}: {one_line(str(figure))}")
            elif value:
                console.line(f"  {one_line(name)}: {one_line(str(value))}")
    for line in (entry.evaluation or "").splitlines():
        console.line(one_line(line))


def _record(entry: "Entry") -> dict[str, object]:
    return {
        "name": entry.name,
        "folder": entry.folder,
        "where": entry.where,
        "evaluation": entry.evaluation,
        "networks": {kind: dataclasses.asdict(facts) for kind, facts in entry.networks.items()},
        "errors": {kind: described(error) for kind, error in entry.errors.items()},
    }
