"""The commands that train a network: `s2f train ...`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s2f.options import (
    GROUP,
    INTERRUPTED,
    DeviceOpt,
    JsonOpt,
    QuietOpt,
    choose_console,
    examples,
    option,
)
from s2f.train_command import train_with
from s2f.train_options import (
    DataArg,
    EncoderPreset,
    EncoderPresetOpt,
    Preset,
    PresetOpt,
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
    from s2f.runtime import Progress
    from s2f.task import Task

app = typer.Typer(help="Train the networks.", **GROUP)

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
        if preset is EncoderPreset.COMPACT:
            from s2f.parts_task import PartsEncoderTask

            return PartsEncoderTask(data, preset.value, card)
        from s2f.encoder_task import FaceEncoderTask

        return FaceEncoderTask(data, preset.value, card)

    train_with(ctx, task, **shared)


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

    train_with(ctx, task, **shared)


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

    train_with(ctx, task, **shared)


@app.command("demo", epilog=examples("s2f train demo data/demo -o runs/demo"))
def _train_demo(
    ctx: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder that s2f prep demo has made.")],
    output: Annotated[
        Path, option("Output", "Folder of the runs and the model.", "--output", "-o")
    ] = Path("runs/demo"),
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Train the bundled model anew: its three networks, by its recipe, into OUTPUT/model."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.demo_training import train_demo
    from s2f.runtime import choose_device

    try:
        with console.progress("training the demo") as progress:
            made = train_demo(
                data, output, device=choose_device(device), progress=progress, note=console.note
            )
    except KeyboardInterrupt:
        message = f"interrupted; the state of the training is saved in {output}"
        console.interrupted(message, "give the same command to go on")
        raise typer.Exit(INTERRUPTED) from None
    console.line(made.model)
    console.summary(dataclasses.asdict(made))
