"""The commands that train a network: `s2f train ...`."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s2f.console import Console
from s2f.errors import S2FError, UsageError
from s2f.options import GROUP, INTERRUPTED, choose_console, examples, option
from s2f.train_options import (
    DataArg,
    EncoderPreset,
    EncoderPresetOpt,
    Preset,
    PresetOpt,
    prepare,
    trains,
)
from s2f.voice_options import (
    Arch,
    ArchOpt,
    CalibrateAtOpt,
    ContrastiveOpt,
    DisturbOpt,
    HeadStepsOpt,
    LossSetOpt,
    MinSecondsOpt,
    Pairing,
    PairingOpt,
    PerIdentityOpt,
    PretrainedOpt,
    RandomInitOpt,
    StatsOpt,
    UnfreezeOpt,
)

if TYPE_CHECKING:
    import torch

    from s2f.checkpoint import Card
    from s2f.ranks import Ranks
    from s2f.runtime import Progress
    from s2f.task import Task

app = typer.Typer(help="Train one of the three networks.", **GROUP)

Build = Callable[["Card", "torch.device", "Progress"], "Task"]


RunOpt = Annotated[Path, option("Output", "Run folder; one begun there goes on.", "--output", "-o")]
FaceEncoderOpt = Annotated[
    Path, option("Input", "Checkpoint that defines the embedding.", "--face-encoder")
]
FaceDecoderOpt = Annotated[
    Path, option("Input", "Checkpoint made for that encoder.", "--face-decoder")
]
StartOpt = Annotated[
    Path | None, option("Input", "Face decoder to go on from, not a new one.", "--start")
]
NoAugmentOpt = Annotated[
    bool | None, option("Training", "Leave inputs undisturbed.", " /--no-augment")
]
MorphOpt = Annotated[
    float, option("Training", "Share of samples that are morphs of two near faces (0).", "--morph")
]
NoWarpOpt = Annotated[bool, option("Model", "Draw the face itself, without a warp.", "--no-warp")]


@app.command("encoder", epilog=examples("s2f train encoder data/demo/faces -o runs/encoder"))
@trains
def _train_encoder(
    ctx: typer.Context,
    data: DataArg,
    output: RunOpt = Path("runs/encoder"),
    preset: EncoderPresetOpt = EncoderPreset.COMPACT,
    augment: NoAugmentOpt = None,
    **shared: Any,
) -> None:
    """Train a face encoder: photos to the embedding that a decoder can draw them from."""

    def task(card: "Card", device: "torch.device", progress: "Progress") -> "Task":
        from s2f.encoder_task import FaceEncoderTask

        return FaceEncoderTask(data, preset.value, card)

    _train(ctx, task, **shared)


@app.command(
    "decoder",
    epilog=examples(
        "s2f train decoder data/demo/faces --face-encoder runs/encoder/best.safetensors",
        "s2f train decoder faces --face-encoder vgg.safetensors --preset paper --morph 0.5",
    ),
)
@trains
def _train_decoder(
    ctx: typer.Context,
    data: DataArg,
    face_encoder: FaceEncoderOpt,
    start: StartOpt = None,
    output: RunOpt = Path("runs/decoder"),
    preset: PresetOpt = Preset.COMPACT,
    no_warp: NoWarpOpt = False,
    morph: MorphOpt = 0.0,
    augment: NoAugmentOpt = None,
    **shared: Any,
) -> None:
    """Train a face decoder: embeddings to landmarks and texture."""

    def task(card: "Card", device: "torch.device", progress: "Progress") -> "Task":
        from s2f.checkpoint import load
        from s2f.decoder_task import FaceDecoderTask

        encoder = load(face_encoder, "face_encoder")
        decoder = None if start is None else load(start, "face_decoder")
        return FaceDecoderTask(
            *(data, preset.value, encoder, decoder, card),
            device=device,
            morph=morph,
            no_warp=no_warp,
            progress=progress,
        )

    _train(ctx, task, **shared)


@app.command(
    "voice",
    epilog=examples(
        "s2f train voice data/demo/voices --face-encoder runs/encoder/best.safetensors"
        " --face-decoder runs/decoder/best.safetensors"
    ),
)
@trains
def _train_voice(
    ctx: typer.Context,
    data: DataArg,
    face_encoder: FaceEncoderOpt,
    face_decoder: FaceDecoderOpt,
    output: RunOpt = Path("runs/voice"),
    pairing: PairingOpt = Pairing.ALL_TO_ALL,
    per_identity: PerIdentityOpt = None,
    preset: PresetOpt = Preset.COMPACT,
    arch: ArchOpt = Arch.CONV,
    pretrained: PretrainedOpt = None,
    random_init: RandomInitOpt = False,
    stats: StatsOpt = None,
    head_steps: HeadStepsOpt = None,
    unfreeze: UnfreezeOpt = None,
    min_seconds: MinSecondsOpt = None,
    disturb: DisturbOpt = None,
    loss_set: LossSetOpt = None,
    calibrate_at: CalibrateAtOpt = None,
    contrastive: ContrastiveOpt = None,
    **shared: Any,
) -> None:
    """Train a voice encoder: speech to the embedding of the speaker's face."""
    choose_console(ctx, shared["as_json"], shared["quiet"])  # before torch, and before errors
    from s2f.balance import calibration_step

    ctx.params["calibrate_at"] = calibration_step(
        loss_set, calibrate_at, shared["loss_weights"] or ()
    )

    def task(card: "Card", device: "torch.device", progress: "Progress") -> "Task":
        from s2f.checkpoint import load
        from s2f.voice_presets import HEAD_STEPS, VoiceOptions
        from s2f.voice_task import VoiceEncoderTask

        encoder = load(face_encoder, "face_encoder")
        decoder = load(face_decoder, "face_decoder")
        return VoiceEncoderTask(
            *(data, preset.value, encoder, decoder, card),
            device=device,
            options=VoiceOptions(
                arch=arch.value,
                pretrained=pretrained,
                random_init=random_init,
                head_steps=head_steps if head_steps is not None else HEAD_STEPS * bool(pretrained),
                unfreeze=unfreeze,
                stats=stats,
                augment=disturb,
                min_seconds=min_seconds,
            ),
            loss_weights=loss_set,
            contrastive=contrastive,
            pairing=pairing.value,
            per_identity=per_identity,
            progress=progress,
        )

    _train(ctx, task, **shared)


def _train(ctx: typer.Context, build: Build, **shared: Any) -> None:
    """Train what `build` gives, on one device or with others."""
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
