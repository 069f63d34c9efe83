"""The options of `s2f train voice` that say how a voice encoder is made and what it hears.

The options that the training commands share, said once.

A command that is decorated with `trains` has its own options and these; what is not given is for
`TrainConfig`, or for the task's own defaults, to decide.

What every training command does once it knows its task: devices, a run, and what is told.

The commands that train a network: `s2f train ...`.
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s2f.console import Console
from s2f.errors import S2FError, UsageError
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
    sharing,
)

if TYPE_CHECKING:
    import torch

    from s2f.checkpoint import Card
    from s2f.console import Progress
    from s2f.distributed import Ranks
    from s2f.train import Task, TrainConfig


class Arch(StrEnum):
    """Architectures of voice encoders."""

    CONV = "conv"
    AST = "ast"


class PairingChoice(StrEnum):
    """Ways to pair recordings with faces."""

    ALL_TO_ALL = "all-to-all"
    ONE_TO_ONE = "one-to-one"
    ALL_TO_ONE = "all-to-one"
    SAME_CLIP = "same-clip"


ArchOpt = Annotated[Arch, option("Model", "conv (default), or ast: a transformer.", "--arch")]
PretrainedOpt = Annotated[
    str | None,
    option("Model", "Where AST starts: a folder or id of Hugging Face.", "--pretrained"),
]
RandomInitOpt = Annotated[bool, option("Model", "Start AST at random.", "--random-init")]
StatsOpt = Annotated[
    Path | None, option("Model", "Mean and std of the log-mel, from prep stats.", "--stats")
]
HeadStepsOpt = Annotated[
    int | None,
    option("Training", "Steps of a pretrained AST's head alone (1000).", "--head-steps", min=0),
]
UnfreezeOpt = Annotated[
    int | None,
    option("Training", "Last layers of it that are trained after that (all).", "--unfreeze", min=0),
]
PairingOpt = Annotated[
    PairingChoice,
    option(
        "Input",
        "Which face a recording comes with: any of the person's (all-to-all, default), one each, "
        "always the first, or that of the same clip.",
        "--pairing",
    ),
]
PerIdentityOpt = Annotated[
    int | None,
    option("Input", "Recordings of a person, at most.", "--per-identity", min=1),
]
MinSecondsOpt = Annotated[
    float | None, option("Training", "Shortest clips (compact: 2; not for ast).", "--min-seconds")
]
DisturbOpt = Annotated[
    str | None,
    option("Training", "all, none, or of noise,gain,speed,band,spec.", "--augment", metavar="LIST"),
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


class Preset(StrEnum):
    """Shapes of networks that can be trained."""

    PAPER = "paper"
    SEED = "seed"
    COMPACT = "compact"


class EncoderPreset(StrEnum):
    """Shapes of face encoders that can be trained."""

    PAPER = "paper"
    COMPACT = "compact"


DataArg = Annotated[Path, typer.Argument(help="Folder that holds train and val.")]
PresetOpt = Annotated[
    Preset, option("Model", "Shape of the network (default: compact).", "--preset")
]
EncoderPresetOpt = Annotated[
    EncoderPreset, option("Model", "Shape of the network (default: compact).", "--preset")
]
StepsOpt = Annotated[int | None, option("Training", "Optimizer steps (10000).", "--steps", min=1)]
EpochsOpt = Annotated[
    float | None, option("Training", "Times through the data, instead of --steps.", "--epochs")
]
BatchSizeOpt = Annotated[
    int | None,
    option("Training", "Samples a step, of all devices.", "--batch-size", min=1),
]
AccumulateOpt = Annotated[
    int | None, option("Training", "Parts that a device computes them in.", "--accumulate", min=1)
]
OptimizerOpt = Annotated[str | None, option("Training", "adam or adamw.", "--optimizer")]
LrOpt = Annotated[float | None, option("Training", "Peak learning rate.", "--lr", min=0)]
BetasOpt = Annotated[
    tuple[float, float] | None, option("Training", "The optimizer's two.", "--betas")
]
EpsOpt = Annotated[float | None, option("Training", "The optimizer's.", "--eps", min=0)]
WeightDecayOpt = Annotated[
    float | None, option("Training", "The optimizer's.", "--weight-decay", min=0)
]
_SCHEDULES = "cosine, constant, or paper: x 0.95 every 10,000 steps."
ScheduleOpt = Annotated[str | None, option("Training", _SCHEDULES, "--schedule")]
ClipOpt = Annotated[float | None, option("Training", "Largest gradient norm (5).", "--clip", min=0)]
PatienceOpt = Annotated[
    int | None,
    option("Training", "End after so many validations without a better one.", "--patience", min=1),
]
LossWeightOpt = Annotated[
    list[str] | None,
    option("Training", "Of a loss; may be repeated.", "--loss-weight", metavar="NAME=VALUE"),
]
EveryOpt = Annotated[
    int | None, option("Run", "Steps between validations and saves (500).", "--every", min=1)
]
ResumeOpt = Annotated[
    bool,
    option("Run", "Go on with a run that is there (default).", "--resume/--no-resume"),
]
DryRunOpt = Annotated[
    bool, option("Run", "Try a batch, tell what training would take, and end.", "--dry-run")
]
MaxBadOpt = Annotated[
    int | None, option("Run", "Unreadable items to go on without (0).", "--max-bad", min=0)
]
WorkersOpt = Annotated[
    int | None, option("Run", "Processes a device that read; 0: its own.", "--workers", min=0)
]
DevicesOpt = Annotated[
    int | None, option("Run", "Devices of this machine to train on together.", "--devices", min=1)
]
PrecisionOpt = Annotated[str | None, option("Run", "fp32 (default) or bf16.", "--precision")]
CompileOpt = Annotated[bool | None, option("Run", "Compile the network.", "--compile")]
DeterministicOpt = Annotated[
    bool | None, option("Run", "Have a GPU repeat itself exactly.", "--deterministic")
]
TensorBoardOpt = Annotated[
    bool, option("Output", "Write TensorBoard's files too.", "--tensorboard")
]
HalfOpt = Annotated[bool | None, option("Output", "Store the best in half precision.", "--half")]


def _shared(
    *,
    steps: StepsOpt = None,
    epochs: EpochsOpt = None,
    batch_size: BatchSizeOpt = None,
    accumulate: AccumulateOpt = None,
    optimizer: OptimizerOpt = None,
    lr: LrOpt = None,
    betas: BetasOpt = None,
    eps: EpsOpt = None,
    weight_decay: WeightDecayOpt = None,
    schedule: ScheduleOpt = None,
    clip: ClipOpt = None,
    patience: PatienceOpt = None,
    loss_weights: LossWeightOpt = None,
    seed: SeedOpt = None,
    every: EveryOpt = None,
    resume: ResumeOpt = True,
    dry_run: DryRunOpt = False,
    max_bad: MaxBadOpt = None,
    workers: WorkersOpt = None,
    device: DeviceOpt = "auto",
    devices: DevicesOpt = None,
    precision: PrecisionOpt = None,
    compile: CompileOpt = None,
    deterministic: DeterministicOpt = None,
    tensorboard: TensorBoardOpt = False,
    half: HalfOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Only its signature counts."""


trains = sharing(_shared)


def read_loss_weights(assignments: Sequence[str]) -> dict[str, float]:
    """Read NAME=VALUE options.

    Raises:
        UsageError: if one is something else.
    """
    weights: dict[str, float] = {}
    for assignment in assignments:
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


def check_epochs(epochs: float | None, steps: int | None) -> None:
    """Make sure that --epochs is a number, and the only one.

    Raises:
        UsageError: if it is not.
    """
    if epochs is not None and steps is not None:
        raise UsageError("--epochs and --steps say the same", hint="give one of them")
    if epochs is not None and not 0 < epochs < math.inf:
        raise UsageError(f"--epochs {epochs}: is not above 0", hint="give for instance --epochs 3")


def prepare_task(
    params: Mapping[str, Any], build: "Callable[[], Task]"
) -> "tuple[Task, TrainConfig]":
    """Make the task and its config.

    Args:
        params: the options, by name.
        build: makes the task; the random state is that of the seed.

    Raises:
        UsageError: if an option is wrong or contradicts another.
    """
    import torch

    from s2f.train import TrainConfig

    fields = (field.name for field in dataclasses.fields(TrainConfig))
    options = given(**{name: params.get(name) for name in fields})
    options["loss_weights"] = read_loss_weights(options.get("loss_weights", ()))
    epochs = params["epochs"]
    check_epochs(epochs, params["steps"])
    # What is wrong with it is better known before the data are read.
    torch.manual_seed(TrainConfig(**options).seed)  # of the new network's weights
    task = build()
    options = {**task.defaults, **options}
    if epochs is not None:
        size = options.get("batch_size", TrainConfig.batch_size)
        options["steps"] = math.ceil(epochs * len(task.train_data) / size)
    config = TrainConfig(**options)
    for name in config.loss_weights:
        if name not in task.loss_weights:
            raise UsageError(
                f"--loss-weight {name}: is no loss of this task; "
                f"wanted one of {', '.join(sorted(task.loss_weights))}",
                hint="correct the name",
            )
    return task, config


Build = Callable[["Card", "torch.device", "Progress"], "Task"]


def train_with(ctx: typer.Context, build: Build, **shared: Any) -> None:
    """Train what `build` gives, on one device or with others.

    Args:
        ctx: of the command, whose parameters hold all options.
        build: makes the task.
        shared: the options that training commands share.
    """
    console = choose_console(ctx, shared["as_json"], shared["quiet"])
    from s2f.device import choose_device
    from s2f.distributed import is_first, join_ranks, launch, world_size

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
        with join_ranks(own) as (ranks, device):
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
        task, config = prepare_task(ctx.params, lambda: build(card, device, progress))
    if ctx.params["dry_run"]:
        from s2f.train import rehearse

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
            from s2f.train_faces import PartsEncoderTask

            return PartsEncoderTask(data, preset.value, card)
        from s2f.train_faces import FaceEncoderTask

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
        from s2f.train_faces import FaceDecoderTask

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
    pairing: PairingOpt = PairingChoice.ALL_TO_ALL,
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
    from s2f.losses import calibration_step

    ctx.params["calibrate_at"] = calibration_step(
        loss_set, calibrate_at, shared["loss_weights"] or ()
    )

    def task(card: "Card", device: "torch.device", progress: "Progress") -> "Task":
        from s2f.checkpoint import load
        from s2f.train_voice import HEAD_STEPS, VoiceEncoderTask, VoiceOptions

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
    from s2f.demo import train_demo
    from s2f.device import choose_device

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
