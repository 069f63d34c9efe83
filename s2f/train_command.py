"""What every training command does once it knows its task: devices, a run, and what is told."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from s2f.console import Console
from s2f.errors import S2FError, UsageError
from s2f.options import INTERRUPTED, choose_console
from s2f.train_options import prepare

if TYPE_CHECKING:
    import torch

    from s2f.checkpoint import Card
    from s2f.ranks import Ranks
    from s2f.runtime import Progress
    from s2f.task import Task

Build = Callable[["Card", "torch.device", "Progress"], "Task"]


def train_with(ctx: typer.Context, build: Build, **shared: Any) -> None:
    """Train what `build` gives, on one device or with others.

    Args:
        ctx: of the command, whose parameters hold all options.
        build: makes the task.
        shared: the options that training commands share.
    """
    console = choose_console(ctx, shared["as_json"], shared["quiet"])
    from s2f.launch import launch
    from s2f.ranks import is_first, join, world_size
    from s2f.runtime import choose_device

    devices, others = shared["devices"] or 0, world_size()
    if devices > 1 and not others:
        raise typer.Exit(launch(devices, shared["device"], sys.argv[1:]))
    if devices and others and devices != others:
        raise UsageError(
            f"--devices {devices}: torchrun has started {others} processes",
            hint="leave --devices out under torchrun",
        )
    if not is_first():
        console = ctx.find_root().obj = Console("quiet")
    own = choose_device(shared["device"])
    try:
        with join(own) as (ranks, device):
            _train_here(ctx, console, build, device, ranks)
    except (S2FError, KeyboardInterrupt) as reason:
        if is_first():
            raise
        raise typer.Exit(getattr(reason, "exit_code", INTERRUPTED)) from None  # the first says it


def _train_here(
    ctx: typer.Context, console: Console, build: Build, device: "torch.device", ranks: "Ranks"
) -> None:
    """Train with the options that are named as TrainConfig's fields."""
    from s2f.checkpoint import Card
    from s2f.train import train

    data, output = Path(ctx.params["data"]), Path(ctx.params["output"])
    begun = (output / "config.json").is_file()
    if begun and not ctx.params["resume"] and not ctx.params["dry_run"]:
        raise UsageError(
            f"{output}: holds a run, and --no-resume was given",
            hint="leave it out to go on with the run, or give another folder with -o",
        )
    card = Card.of_data(data, output.resolve().name)
    with console.progress("reading the data") as progress:
        task, config = prepare(ctx.params, lambda: build(card, device, progress))
    if ctx.params["dry_run"]:
        from s2f.rehearsal import rehearse

        rehearsal = rehearse(task, output, config, device=device, ranks=ranks)
        if ranks.first:
            for name, value in rehearsal.facts():
                console.line(f"{name:<12}  {value}")
            console.summary(dataclasses.asdict(rehearsal))
        return
    for text in task.notes:
        console.note(text)
    console.note(f"{'going on with' if begun else 'training in'} {output} on {device}")
    try:
        with console.progress(f"training {task.name}") as progress:
            result = train(
                *(task, output, config),
                device=device,
                ranks=ranks,
                tensorboard=ctx.params["tensorboard"],
                progress=progress,
                note=console.note,
            )
    except KeyboardInterrupt:
        if not (output / "last").is_dir():
            raise  # before there was anything to save
        message = f"interrupted; the state of the training is saved in {output}"
        if ranks.first:
            console.interrupted(message, "give the same command to go on")
        raise typer.Exit(INTERRUPTED) from None
    if ranks.first:
        console.table(result.facts())
        console.table(result.compared(), ("loss", "weight", "training", "validation"))
        console.line(result.best)
        console.summary(dataclasses.asdict(result))
