"""The commands that train a network: `s2f train ...`."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from s2f.console import Console
from s2f.errors import UsageError
from s2f.options import (
    GROUP,
    INTERRUPTED,
    DeviceOpt,
    JsonOpt,
    QuietOpt,
    SeedOpt,
    choose_console,
    examples,
    given,
    option,
)

if TYPE_CHECKING:
    import torch

    from s2f.checkpoint import Card
    from s2f.train import Task

app = typer.Typer(help="Train one of the three networks.", **GROUP)


class Preset(StrEnum):
    """Shapes of networks that can be trained."""

    PAPER = "paper"
    COMPACT = "compact"


# What is not given is for TrainConfig to decide.
DataArg = Annotated[Path, typer.Argument(help="Folder that holds train and val.")]
RunOpt = Annotated[Path, option("Output", "Run folder; one begun there goes on.", "--output", "-o")]
HalfOpt = Annotated[bool | None, option("Output", "Store the best in half precision.", "--half")]
FaceEncoderOpt = Annotated[
    Path, option("Input", "Checkpoint that defines the embedding.", "--face-encoder")
]
FaceDecoderOpt = Annotated[
    Path, option("Input", "Checkpoint made for that encoder.", "--face-decoder")
]
StartOpt = Annotated[
    Path | None, option("Input", "Face decoder to go on from, not a new one.", "--start")
]
PresetOpt = Annotated[
    Preset, option("Model", "Shape of the network (default: compact).", "--preset")
]
StepsOpt = Annotated[int | None, option("Training", "Optimizer steps.", "--steps", min=1)]
BatchSizeOpt = Annotated[int | None, option("Training", "Samples a step.", "--batch-size", min=1)]
LrOpt = Annotated[float | None, option("Training", "Peak learning rate.", "--lr", min=0)]
_SCHEDULES = "cosine, or paper: x 0.95 every 10,000 steps."
ScheduleOpt = Annotated[str | None, option("Training", _SCHEDULES, "--schedule")]
WeightDecayOpt = Annotated[float | None, option("Training", "AdamW's.", "--weight-decay", min=0)]
LossWeightOpt = Annotated[
    list[str] | None,
    option("Training", "Of a loss; may be repeated.", "--loss-weight", metavar="NAME=VALUE"),
]
LossSetOpt = Annotated[
    str | None,
    option(
        "Training",
        "Which losses: paper, seed, seed-ast, auto (equal gradients), or NAME=VALUE,...",
        "--loss-weights",
        metavar="SET",
    ),
]
CalibrateAtOpt = Annotated[
    int | None,
    option("Training", "Step at which auto finds weights (1000).", "--calibrate-at", min=0),
]
ContrastiveOpt = Annotated[
    float | None, option("Training", "Add InfoNCE with this weight.", "--contrastive", metavar="W")
]
NoAugmentOpt = Annotated[
    bool | None, option("Training", "Leave inputs undisturbed.", " /--no-augment")
]
EveryOpt = Annotated[
    int | None, option("Run", "Steps between validations and saves.", "--every", min=1)
]
WorkersOpt = Annotated[
    int | None, option("Run", "Processes that read; 0: this one.", "--workers", min=0)
]


@app.command("encoder", epilog=examples("s2f train encoder data/demo/faces -o runs/encoder"))
def _train_encoder(
    ctx: typer.Context,
    data: DataArg,
    output: RunOpt = Path("runs/encoder"),
    preset: PresetOpt = Preset.COMPACT,
    steps: StepsOpt = None,
    batch_size: BatchSizeOpt = None,
    lr: LrOpt = None,
    schedule: ScheduleOpt = None,
    weight_decay: WeightDecayOpt = None,
    loss_weights: LossWeightOpt = None,
    augment: NoAugmentOpt = None,
    seed: SeedOpt = None,
    every: EveryOpt = None,
    workers: WorkersOpt = None,
    device: DeviceOpt = "auto",
    half: HalfOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Train a face encoder: photos to the embedding that a decoder can draw them from."""

    def task(card: "Card", device: "torch.device") -> "Task":
        from s2f.face_tasks import FaceEncoderTask

        return FaceEncoderTask(data, preset.value, card)

    _train(ctx, choose_console(ctx, as_json, quiet), task, data, output, device)


@app.command(
    "decoder",
    epilog=examples(
        "s2f train decoder data/demo/faces --face-encoder runs/encoder/best.safetensors"
    ),
)
def _train_decoder(
    ctx: typer.Context,
    data: DataArg,
    face_encoder: FaceEncoderOpt,
    start: StartOpt = None,
    output: RunOpt = Path("runs/decoder"),
    preset: PresetOpt = Preset.COMPACT,
    steps: StepsOpt = None,
    batch_size: BatchSizeOpt = None,
    lr: LrOpt = None,
    schedule: ScheduleOpt = None,
    weight_decay: WeightDecayOpt = None,
    loss_weights: LossWeightOpt = None,
    augment: NoAugmentOpt = None,
    seed: SeedOpt = None,
    every: EveryOpt = None,
    workers: WorkersOpt = None,
    device: DeviceOpt = "auto",
    half: HalfOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Train a face decoder: embeddings to landmarks and texture."""

    def task(card: "Card", device: "torch.device") -> "Task":
        from s2f.checkpoint import load
        from s2f.face_tasks import FaceDecoderTask

        encoder = load(face_encoder, "face_encoder")
        decoder = None if start is None else load(start, "face_decoder")
        return FaceDecoderTask(data, preset.value, encoder, decoder, card)

    _train(ctx, choose_console(ctx, as_json, quiet), task, data, output, device)


@app.command(
    "voice",
    epilog=examples(
        "s2f train voice data/demo/voices --face-encoder runs/encoder/best.safetensors"
        " --face-decoder runs/decoder/best.safetensors"
    ),
)
def _train_voice(
    ctx: typer.Context,
    data: DataArg,
    face_encoder: FaceEncoderOpt,
    face_decoder: FaceDecoderOpt,
    output: RunOpt = Path("runs/voice"),
    preset: PresetOpt = Preset.COMPACT,
    steps: StepsOpt = None,
    batch_size: BatchSizeOpt = None,
    lr: LrOpt = None,
    schedule: ScheduleOpt = None,
    weight_decay: WeightDecayOpt = None,
    loss_weights: LossWeightOpt = None,
    loss_set: LossSetOpt = None,
    calibrate_at: CalibrateAtOpt = None,
    contrastive: ContrastiveOpt = None,
    augment: NoAugmentOpt = None,
    seed: SeedOpt = None,
    every: EveryOpt = None,
    workers: WorkersOpt = None,
    device: DeviceOpt = "auto",
    half: HalfOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Train a voice encoder: speech to the embedding of the speaker's face."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.balance import calibration_step

    ctx.params["calibrate_at"] = calibration_step(loss_set, calibrate_at, loss_weights or ())

    def task(card: "Card", device: "torch.device") -> "Task":
        from s2f.checkpoint import load
        from s2f.voice_task import VoiceEncoderTask

        encoder = load(face_encoder, "face_encoder")
        decoder = load(face_decoder, "face_decoder")
        return VoiceEncoderTask(
            *(data, preset.value, encoder, decoder, card),
            device=device,
            loss_weights=loss_set,
            contrastive=contrastive,
        )

    _train(ctx, console, task, data, output, device)


def _train(
    ctx: typer.Context,
    console: Console,
    build: "Callable[[Card, torch.device], Task]",
    data: Path,
    output: Path,
    device_name: str,
) -> None:
    """Train what `build` gives, with the options that are named as TrainConfig's fields."""
    import torch

    from s2f.checkpoint import Card
    from s2f.runtime import choose_device
    from s2f.train import TrainConfig, train

    fields = (field.name for field in dataclasses.fields(TrainConfig))
    options = given(**{name: ctx.params.get(name) for name in fields})
    options["loss_weights"] = _loss_weights(options.get("loss_weights", ()))
    config = TrainConfig(**options)
    device = choose_device(device_name)
    torch.manual_seed(config.seed)  # of the new network's weights
    task = build(Card.of_data(data, output.resolve().name), device)
    for name in config.loss_weights:
        if name not in task.loss_weights:
            raise UsageError(
                f"--loss-weight {name}: is no loss of this task; "
                f"wanted one of {', '.join(sorted(task.loss_weights))}",
                hint="correct the name",
            )
    begun = (output / "last").is_dir()
    console.note(f"{'going on with' if begun else 'training in'} {output} on {device}")
    try:
        with console.progress(f"training {task.name}") as progress:
            result = train(
                task, output, config, device=device, progress=progress, note=console.note
            )
    except KeyboardInterrupt:
        if not (output / "last").is_dir():
            raise  # before there was anything to save
        message = f"interrupted; the state of the training is saved in {output}"
        console.interrupted(message, "give the same command to go on")
        raise typer.Exit(INTERRUPTED) from None
    measured = "  ".join(f"{name} {value:.4g}" for name, value in result.losses.items())
    console.note(f"best at step {result.step}: {measured}")
    console.line(result.best)
    console.summary(dataclasses.asdict(result))


def _loss_weights(options: Sequence[str]) -> dict[str, float]:
    """Read NAME=VALUE options."""
    weights = {}
    for assignment in options:
        name, _, value = assignment.partition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            weights[name] = math.nan
        if not 0 <= weights[name] < math.inf:
            raise UsageError(
                f"--loss-weight {assignment}: is not NAME=VALUE with a value of 0 or more",
                hint="give for instance --loss-weight texture/mae=10",
            )
    return weights
