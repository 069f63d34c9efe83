"""The commands that train: `s2f train encoder`, `decoder`, `voice`, `model` and `demo`.

Each says what its task is made of; devices, the run and what is told are the same for the first
three. What is not given is for `TrainConfig`, or for the task's own defaults, to decide.
"""

import contextlib
import dataclasses
import functools
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from s2f.console import Console, count, duration, size
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
    gather,
    given,
    option,
)

if TYPE_CHECKING:
    import torch

    from s2f.checkpoint import Checkpoint
    from s2f.distributed import Ranks
    from s2f.train import Task, TrainResult

app = typer.Typer(help="Train the networks.", **GROUP)
# What each of several nodes may give as it likes; of paths, which may be URLs too, only it knows.
OWN = {*"data workers device devices max_bad pretrained tensorboard as_json quiet".split()}
_in, _model, _how, _run, _out = (
    functools.partial(option, panel) for panel in ("Input", "Model", "Training", "Run", "Output")
)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options that the training commands share; those of `TrainConfig` have its names."""

    steps: Annotated[
        int | None, _how("Optimizer steps (10000, or the preset's epochs).", min=1)
    ] = None
    epochs: Annotated[float | None, _how("Times through the data, instead of --steps.")] = None
    batch_size: Annotated[int | None, _how("Samples a step, of all devices.", min=1)] = None
    accumulate: Annotated[int | None, _how("Parts a device computes them in.", min=1)] = None
    optimizer: Annotated[str | None, _how("adam or adamw.")] = None
    lr: Annotated[float | None, _how("Peak learning rate.", min=0)] = None
    betas: Annotated[tuple[float, float] | None, _how("The optimizer's two.")] = None
    eps: Annotated[float | None, _how("The optimizer's.", min=0)] = None
    weight_decay: Annotated[float | None, _how("The optimizer's.", min=0)] = None
    schedule: Annotated[str | None, _how("cosine, constant, or paper: x 0.95 every 10,000.")] = None
    clip: Annotated[
        float | None, _how("Largest gradient norm, 0 for any (5; 0 where eps is 1e-4).", min=0)
    ] = None
    patience: Annotated[int | None, _how("End after so many validations in vain.", min=1)] = None
    loss_weight: Annotated[list[str] | None, _how("Of one loss.", metavar="NAME=VALUE")] = None
    seed: SeedOpt = None
    every: Annotated[int | None, _run("Steps between validations and saves (500).", min=1)] = None
    val_samples: Annotated[
        int | None, _run("Validation samples measured (a tenth of those learned from).", min=1)
    ] = None
    resume: Annotated[bool, _run("Go on with a run that is there (default).")] = True
    dry_run: Annotated[bool, _run("Try a batch, and tell what it would take.", "--dry-run")] = False
    max_bad: Annotated[int | None, _run("Unreadable items to go on without (0).", min=0)] = None
    workers: Annotated[int | None, _run("Processes a device that read; 0: its own.", min=0)] = None
    device: DeviceOpt = "auto"
    devices: Annotated[int | None, _run("Devices here to train on together.", min=1)] = None
    precision: Annotated[str | None, _run("fp32 (default), tf32 or bf16.")] = None
    compile: Annotated[bool | None, _run("Compile the networks.", "--compile")] = None
    deterministic: Annotated[bool | None, _run("A GPU repeats itself.", "--deterministic")] = None
    tensorboard: Annotated[bool, _out("TensorBoard's files too.", "--tensorboard")] = False
    half: Annotated[bool | None, _out("Store the best in half precision.", "--half")] = None
    as_json: JsonOpt = False
    quiet: QuietOpt = False

    def config(self) -> dict[str, Any]:
        """Give the fields of `TrainConfig` that were said, or raise a `UsageError`."""
        from s2f.train import TrainConfig

        if self.epochs is not None and self.steps is not None:
            raise UsageError("--epochs and --steps say the same", hint="give one of them")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            message = f"--epochs {self.epochs}: is not above 0"
            raise UsageError(message, hint="give for instance --epochs 3")
        weights: dict[str, float] = {}
        for assignment in self.loss_weight or ():
            name, _, value = assignment.partition("=")
            weights[name] = math.nan
            with contextlib.suppress(ValueError):
                weights[name] = float(value)
            if not 0 <= weights[name] < math.inf:
                message = f"--loss-weight {assignment}: is not NAME=VALUE with a value of 0 or more"
                raise UsageError(message, hint="give for instance --loss-weight texture/mae=10")
        names = {field.name for field in dataclasses.fields(TrainConfig)} & set(vars(self))
        return given(**{name: getattr(self, name) for name in names}, loss_weights=weights)


def _trains(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, behind its own options, those of `TrainOptions`, which it gets as one."""
    shared = dataclasses.fields(TrainOptions)

    @functools.wraps(command)
    def call(**options: Any) -> None:
        own = {f.name: options.pop(f.name) for f in shared}
        command(**options, options=TrainOptions(**own))

    signature, kind = inspect.signature(command), inspect.Parameter.KEYWORD_ONLY
    taken = [p.replace(kind=kind) for n, p in signature.parameters.items() if n != "options"]
    taken += [inspect.Parameter(f.name, kind, default=f.default, annotation=f.type) for f in shared]
    call.__signature__ = signature.replace(parameters=taken)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in taken}
    return call


@contextlib.contextmanager
def _joined(
    ctx: typer.Context, options: TrainOptions
) -> "Iterator[tuple[Console, Ranks, torch.device]]":
    """Join the processes that train together, or start them and end; the first of them speaks."""
    console = choose_console(ctx, options.as_json, options.quiet)
    from s2f.distributed import join_ranks, launch, world_size

    devices, others = options.devices or 0, world_size()
    first = not others or os.environ["RANK"] == "0"
    if devices > 1 and not others:
        raise typer.Exit(launch(devices, options.device, sys.argv[1:], console.note))
    if not first:
        console = ctx.find_root().obj = Console("quiet")
    try:
        with join_ranks(options.device) as (ranks, device):
            if devices and devices != ranks.size:
                message = f"--devices {devices}: torchrun has started {ranks.size} processes"
                raise UsageError(message, hint="leave --devices out under torchrun")
            # Where data lie each node knows; and those of another command would wait for ever.
            said = {k: v for k, v in ctx.params.items() if not isinstance(v, Path)}
            ranks.agree(
                {k: v for k, v in said.items() if k not in OWN} | {"command": ctx.info_name}
            )
            yield console, ranks, device
    except (S2FError, KeyboardInterrupt) as reason:
        if first:
            raise
        raise typer.Exit(getattr(reason, "exit_code", INTERRUPTED)) from None  # the first says it


def _learn(
    ctx: typer.Context, options: TrainOptions, output: Path, make: "Callable[..., Task]", **own: Any
) -> None:
    """Train what `make(device=, ranks=, progress=)` gives, or rehearse it.

    `own` are fields of `TrainConfig` that the command has options of its own for.
    """
    with _joined(ctx, options) as (console, ranks, device):
        import torch

        from s2f.run_dir import Run
        from s2f.train import TrainConfig, configure, rehearse, train

        chosen, begun = own | options.config(), ranks.gather(Run(output).config())[0]
        if begun and not (options.resume or options.dry_run or ranks.restarted):
            hint = "leave it out to go on with the run, or give another folder with -o"
            raise UsageError(f"{output}: holds a run, and --no-resume was given", hint=hint)
        # What is wrong with it is better known before the data are read.
        early = {k: v for k, v in chosen.items() if k != "calibrate_at"}  # steps may be epochs
        torch.manual_seed(TrainConfig(**early).seed)  # of the new network's weights
        with console.progress("reading the data") as progress:
            task = make(device=device, ranks=ranks, progress=progress)
        config = configure(task, chosen, epochs=options.epochs, begun=begun)
        if options.dry_run:
            rehearsal = rehearse(task, output, config, device=device, ranks=ranks)
            if ranks.first:
                for name, value in _rehearsed(rehearsal):
                    console.line(f"{name:<12}  {value}")
                console.summary(rehearsal)
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
                    tensorboard=options.tensorboard,
                    progress=progress,
                    note=console.note,
                )
        except KeyboardInterrupt:
            if not (output / "last").is_dir():
                raise  # before there was anything to save
            if ranks.first:
                _say_interrupted(console, output)
            raise typer.Exit(INTERRUPTED) from None
        if ranks.first:
            _tell(console, result)


def _rehearsed(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Tell people what a training would take, in names and values."""
    yield "device", told["device"] + (f" x {told['devices']}" if told["devices"] > 1 else "")
    for split, counts in told["data"].items():
        yield split, ", ".join(f"{n:,} {what}" for what, n in counts.items())
    yield "parameters", count(told["parameters"])
    for stage in told["stages"]:
        start = f" from step {stage['start']:,}" if len(told["stages"]) > 1 else ""
        yield "", f"{count(stage['trained'])} trained{start}, {duration(stage['seconds'])} a step"
    samples = f"{told['batch_size']} samples, {told['epochs']:.3g} epochs"
    yield "steps", f"{told['steps']:,} of {samples}"
    yield "reading", f"{duration(told['read_seconds'])} a batch, in one process"
    each = told["validation_seconds"]
    share = told["validations"] * each / told["seconds"]
    yield "validation", f"{duration(each)} each, {share:.0%} of the time"
    yield "speed", f"about {told['samples_per_second']:.3g} samples/s"
    yield "in all", f"about {duration(told['seconds'])}"
    memory = {name: size(n) for name, n in told["memory"].items() if n}
    peak = memory.pop("peak", None)
    yield "memory", ", ".join(f"{name} {n}" for name, n in memory.items())
    if peak:
        yield "at its peak", f"{peak}, measured"
    yield "checkpoint", size(told["checkpoint_bytes"])
    yield "saved state", size(told["state_bytes"])
    yield "losses", ", ".join(f"{name} {value:.4g}" for name, value in told["losses"].items())
    for text in (*told["notes"], *told["bad"]):
        yield "left out", text


def _tell(console: Console, result: "TrainResult") -> None:
    """Tell how a training ended, and the losses of its best step."""
    from s2f.train import RECALLS

    share = result.validation_seconds / result.seconds
    speed = f"{duration(result.seconds)}, {result.samples_per_second:.1f} samples/s"
    speed += f", {share:.0%} of it validation"
    written = [result.best, result.run / "loss.png", result.run / "samples"]
    rows = [
        ("steps", f"{result.steps:,}, best at {result.step:,}"),
        ("samples", f"{result.samples:,}"),
        ("time", speed if result.samples_per_second else "there was nothing left to do"),
    ]
    if found := result.recall:
        each = ", ".join(f"R@{name[1:]} {found[name]:.1%}" for name in RECALLS)
        rows += [("recall", f"{each}, among {found['people']:,} people")]
    rows += [("bad items", f"{result.bad:,}")] if result.bad else []
    there = [str(path) for path in written if path.exists()]
    console.table([*rows, *zip(("written", "", ""), there, strict=False)])
    columns = result.loss_weights, result.train_losses, result.losses
    losses = [
        (name, *(f"{values[name]:.4g}" if name in values else "" for values in columns))
        for name in result.loss_weights
    ]
    console.table(losses, ("loss", "weight", "training", "validation"))
    console.line(result.best)
    console.summary(dataclasses.asdict(result))


def _say_interrupted(console: Console, output: Path) -> None:
    message = f"interrupted; the state of the training is saved in {output}"
    console.interrupted(message, "give the same command to go on")


def _initial(output: Path, init: Path | None, kind: str) -> "Checkpoint | None":
    """Read what a network starts from; where that is gone, the copy that the run keeps of it."""
    from s2f.checkpoint import load
    from s2f.run_dir import INIT

    kept = output / INIT
    if (init is None or not init.is_file()) and kept.is_file():
        init = kept
    return None if init is None else load(init, kind)


DataArg = Annotated[Path, typer.Argument(help="Folder that holds train and val.")]
RunOpt = Annotated[Path, _out("Run folder; one begun there goes on.", "--output", "-o")]
PRESET = _model("Shape of the network (default: compact).")
PresetOpt = Annotated[
    Literal["paper", "seed", "compact"], _model("The network and its recipe (default: compact).")
]
FaceEncoderOpt = Annotated[Path, _in("Checkpoint that defines the embedding.")]
NoAugmentOpt = Annotated[bool | None, _how("Leave inputs undisturbed.", " /--no-augment")]


@app.command("encoder", epilog=examples("s2f train encoder data/demo/faces -o runs/encoder"))
@_trains
def _encoder(
    ctx: typer.Context,
    data: DataArg,
    output: RunOpt = Path("runs/encoder"),
    preset: Annotated[Literal["paper", "compact"], PRESET] = "compact",
    augment: NoAugmentOpt = None,
    *,
    options: TrainOptions,
) -> None:
    """Train a face encoder: photos to the embedding that a decoder can draw them from."""

    def task(**where: Any) -> "Task":
        from s2f.checkpoint import Card
        from s2f.train_faces import FaceEncoderTask, PartsEncoderTask

        kind = PartsEncoderTask if preset == "compact" else FaceEncoderTask
        return kind(data, preset, Card.of_data(data, output.resolve().name), where["ranks"])

    _learn(ctx, options, output, task, **given(augment=augment))


@app.command(
    "decoder",
    epilog=examples(
        "s2f train decoder data/demo/faces --face-encoder runs/encoder/best.safetensors",
        "s2f train decoder faces --face-encoder vgg.safetensors --preset paper --morph 0.5",
    ),
)
@_trains
def _decoder(
    ctx: typer.Context,
    data: DataArg,
    face_encoder: FaceEncoderOpt,
    init: Annotated[
        Path | None, _in("Face decoder to start from, not a new one.", "--init", "--start")
    ] = None,
    output: RunOpt = Path("runs/decoder"),
    preset: PresetOpt = "compact",
    no_warp: Annotated[bool, _model("Draw the face itself: no warp.", "--no-warp")] = False,
    morph: Annotated[
        float | None, _how("Share of samples that are morphs of two near faces (0; paper: 0.5).")
    ] = None,
    identity_target: Annotated[
        Literal["photo", "drawn"],
        _how("Whose embedding a drawing's is to be: photo (default), or its texture warped."),
    ] = "photo",
    augment: NoAugmentOpt = None,
    *,
    options: TrainOptions,
) -> None:
    """Train a face decoder: embeddings to landmarks and texture.

    `--preset paper` is the decoder of Cole et al. 2017 as far as it is published: its losses of
    landmarks, of the texture in the mean-shape frame, and of the embedding of the warped face
    against that of the photo; photos as they are, and morphs of near faces. Not published, as far
    as we know, and ours: the weights of the losses, the share of morphs, optimizer, learning rate,
    batch and length, and the widths of the landmarks' layers.

    A photo's embedding also knows what no drawing can show, such as detail that a warp blurs:
    `--identity-target drawn` compares with the photo's own texture, warped as the drawing's is,
    whose embedding the decoder can reach.
    """

    def task(**where: Any) -> "Task":
        from s2f.checkpoint import Card, load
        from s2f.train_faces import FaceDecoderTask

        card = Card.of_data(data, output.resolve().name)
        encoder = load(face_encoder, "face_encoder")
        start = _initial(output, init, "face_decoder")
        return FaceDecoderTask(
            *(data, preset, encoder, start, card),
            morph=morph,
            no_warp=no_warp,
            identity_target=identity_target,
            **where,
        )

    _learn(ctx, options, output, task, **given(augment=augment))


@app.command(
    "voice",
    epilog=examples(
        "s2f train voice data/demo/voices --face-encoder runs/encoder/best.safetensors"
        " --face-decoder runs/decoder/best.safetensors",
        "s2f train voice data/demo/voices --face-encoder runs/encoder/best.safetensors"
        " --face-decoder runs/decoder/best.safetensors --arch speaker"
        " --pretrained speaker.safetensors -o runs/speaker",
    ),
)
@_trains
def _voice(
    ctx: typer.Context,
    data: Annotated[str, typer.Argument(help="Folder of train and val, or the URL of a pack.")],
    face_encoder: FaceEncoderOpt,
    face_decoder: Annotated[Path, _in("Checkpoint made for that encoder.")],
    output: RunOpt = Path("runs/voice"),
    stage: Annotated[
        Path | None,
        _in("Copy the pack here first (one in a store: to ~/.cache/s2f/packs).", metavar="DIR"),
    ] = None,
    pairing: Annotated[
        Literal["all-to-all", "one-to-one", "all-to-one", "same-clip"],
        _in("Face of a recording: any of the person's, one each, the first, of the same clip."),
    ] = "all-to-all",
    per_identity: Annotated[int | None, _in("Recordings of a person, at most.", min=1)] = None,
    preset: PresetOpt = "compact",
    arch: Annotated[
        Literal["conv", "ast", "speaker"],
        _model("conv (default), a transformer, or a speaker encoder with a head."),
    ] = "conv",
    pretrained: Annotated[
        str | None,
        _model("Start of ast: folder or Hugging Face's id; of speaker: a checkpoint of one."),
    ] = None,
    random_init: Annotated[
        bool, _model("Start ast or speaker at random.", "--random-init")
    ] = False,
    init: Annotated[
        Path | None, _in("Voice encoder to start from; its head may be another.")
    ] = None,
    hidden: Annotated[
        int | None, _model("Values of a hidden layer in speaker's head (linear).", min=1)
    ] = None,
    stats: Annotated[Path | None, _model("Mean and std of the log-mel, of prep stats.")] = None,
    head_steps: Annotated[
        int | None, _how("Of a pretrained one's head alone, at first (1000).", min=0)
    ] = None,
    unfreeze: Annotated[
        int | None, _how("Its last layers trained then (ast: all; speaker: none).", min=0)
    ] = None,
    min_seconds: Annotated[float | None, _how("Shortest clips (compact: 2; not for ast).")] = None,
    augment: Annotated[str | None, _how("all, none, or of noise,gain,speed,band,spec.")] = None,
    loss_weights: Annotated[
        str | None,
        _how("auto (equal gradients; paper's own), published, seed, seed-ast, or NAME=VALUE,..."),
    ] = None,
    calibrate_at: Annotated[
        int | None, _how("Step of auto's weights (1000, or a tenth of a shorter run).", min=0)
    ] = None,
    contrastive: Annotated[float | None, _how("Add InfoNCE with this weight.", metavar="W")] = None,
    best_by: Annotated[
        Literal["loss", "r1", "r5", "r10"],
        _how("What the best is best in, in validation: loss (default), or recall among people."),
    ] = "loss",
    *,
    options: TrainOptions,
) -> None:
    """Train a voice encoder: speech to the embedding of the speaker's face.

    `--preset paper` is the recipe of Oh et al. 2019: their front end, layers and three losses, each
    recording's first 6 s (of a pack the first clip), Adam (0.5, 0.999), eps 1e-4, lr 1e-3 x 0.95
    every 10,000 steps, batches of 8, 3 epochs, no clipping. The losses weigh 1, 0.025 and 200, as
    published, until step 1000, and from there on as the paper found these: so that their gradients
    by the embedding are equally long. `--loss-weights published` keeps the published ones. Ours are
    the loudness of what is heard and, of what is not published, Adam's second beta. For a face of
    the same clip, as there: `--pairing same-clip`. With `--arch ast` only the losses, and how they
    are weighed, are the paper's.

    `--arch speaker` learns from little: a network that others trained to tell speakers apart stays
    as it is, and a head leads from its d-vectors to the face; `compact`, its only preset, solves a
    linear one by ridge regression. `s2f convert resemblyzer` makes what `--pretrained` wants;
    `--unfreeze 3` trains all of it along. Its clips have 6.21 s, or those of a pack where these are
    shorter and have 1.59 s or more.
    """
    choose_console(ctx, options.as_json, options.quiet)  # before torch, and before errors
    from s2f import losses, train_voice
    from s2f.stores import parse_place

    place = parse_place(data)
    usual = "calibrate_at" in train_voice.choose_preset(arch, preset).training
    single = options.loss_weight or ()
    calibration = losses.calibration(loss_weights, calibrate_at, single, usual=usual)

    def task(**where: Any) -> "Task":
        from s2f.checkpoint import Card, load
        from s2f.pack import staged

        tree = staged(place, stage, progress=where["progress"])
        card = Card.of_data(tree, output.resolve().name)
        encoder, decoder = load(face_encoder, "face_encoder"), load(face_decoder, "face_decoder")
        chosen = gather(ctx, train_voice.VoiceOptions)
        return train_voice.VoiceEncoderTask(
            *(tree, preset, encoder, decoder, card),
            init=_initial(output, init, "voice_encoder"),
            options=chosen,
            **where,
        )

    best = given(best_by=None if best_by == "loss" else best_by)
    _learn(ctx, options, output, task, **calibration, **best)


@app.command(
    "model",
    epilog=examples(
        "s2f train model data -o runs/mine",
        "s2f train model data/split --arch speaker --pretrained speaker.safetensors -o runs/mine",
        "s2f train model data/split --face-encoder vgg.safetensors --preset paper --devices 8",
    ),
)
def _whole(
    ctx: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder that prep dataset or prep split made.")],
    face_encoder: Annotated[
        Path | None, _in("Checkpoint that defines the embedding (the bundled model's).")
    ] = None,
    output: Annotated[Path, _out("Folder of the model.", "--output", "-o")] = Path("runs/model"),
    preset: PresetOpt = "compact",
    arch: Annotated[
        Literal["conv", "ast", "speaker"], _model("The voice encoder's, as train voice has it.")
    ] = "conv",
    pretrained: Annotated[
        str | None, _model("Its start, as train voice --pretrained has it.")
    ] = None,
    decoder_steps: Annotated[
        int | None, _how("Steps of the decoder (compact: 100; else the preset's).", min=1)
    ] = None,
    voice_steps: Annotated[
        int | None, _how("Steps of the voice encoder (compact: 300; else the preset's).", min=1)
    ] = None,
    seed: Annotated[int, _how("Of everything random (0).", min=0)] = 0,
    workers: Annotated[int | None, _run("Processes a device that read; 0: its own.", min=0)] = None,
    device: DeviceOpt = "auto",
    devices: Annotated[int | None, _run("Devices here to train on together.", min=1)] = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Train a whole model: decoder, then voice encoder, then its measures on validation.

    OUTPUT becomes a model folder, which `s2f generate --model` takes, with the runs `decoder` and
    `voice` and the `report` in it. The same command goes on with what was stopped. A face encoder
    of your own has to be that of the data's embeddings. For other options train the parts alone.
    """
    options = TrainOptions(device=device, devices=devices, as_json=as_json, quiet=quiet)
    with _joined(ctx, options) as (console, ranks, on):
        from s2f.train_model import ModelOptions, train_model

        try:
            with console.progress("training a model") as progress:
                chosen, note = gather(ctx, ModelOptions), console.note
                made = train_model(
                    *(data, output, chosen),
                    device=on,
                    ranks=ranks,
                    progress=progress,
                    note=note,
                )
        except KeyboardInterrupt:
            if not (output / "config.json").is_file():
                raise  # before there was anything to save
            if ranks.first:
                _say_interrupted(console, output)
            raise typer.Exit(INTERRUPTED) from None
        if made:
            for name, result in (("decoder", made.decoder), ("voice", made.voice)):
                console.note(f"{name}: {result.steps:,} steps, best at {result.step:,}")
            rows = [(name, f"{value:.4g}") for name, value in made.figures.items()]
            console.table(rows, (f"mean of {made.people} people of validation", ""))
            console.line(made.model)
            console.summary(dataclasses.asdict(made))


@app.command("demo", epilog=examples("s2f train demo data/demo -o runs/demo"))
def _demo(
    ctx: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder that s2f prep demo has made.")],
    output: Annotated[Path, _out("Folder of the runs and the model.", "--output", "-o")] = Path(
        "runs/demo"
    ),
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
            on, note = choose_device(device), console.note
            made = train_demo(data, output, device=on, progress=progress, note=note)
    except KeyboardInterrupt:
        _say_interrupted(console, output)
        raise typer.Exit(INTERRUPTED) from None
    console.line(made.model)
    console.summary(dataclasses.asdict(made))
