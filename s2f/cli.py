"""The command line: parse, call one function of floor 4, report, exit.

Nothing here knows how anything is done, and importing this module imports neither torch nor any
module that does: each command imports what it needs, so that `s2f --help` answers at once.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

import s2f
from s2f.console import Console, described
from s2f.errors import S2FError, UsageError

if TYPE_CHECKING:
    import torch

    from s2f.checkpoint import Card
    from s2f.infer import Face, Find, Outcome, SpeechToFace
    from s2f.train import Task

PARTLY_FAILED, INTERRUPTED = 6, 130  # exit codes that no error has


class Preset(StrEnum):
    """Shapes of networks that can be trained."""

    PAPER = "paper"
    COMPACT = "compact"


class _Group(TyperGroup):
    """Turns errors that a user, a file or a machine caused into a report and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; whatever else goes wrong is a bug and keeps its traceback."""
        try:
            return super().invoke(ctx)
        except S2FError as error:
            (ctx.obj or Console()).error(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            (ctx.obj or Console()).interrupted("interrupted; what was finished is kept")
            raise typer.Exit(INTERRUPTED) from None


def _console(ctx: typer.Context, as_json: bool, quiet: bool) -> Console:
    """Decide once how this command speaks, where errors find it too."""
    console = Console("json" if as_json else "quiet" if quiet else "human")
    ctx.find_root().obj = console
    return console


def _version(wanted: bool) -> None:
    if wanted:
        Console().line(f"s2f {s2f.__version__}")
        raise typer.Exit


_SETTINGS: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": "markdown"}
app = typer.Typer(
    cls=_Group,
    pretty_exceptions_enable=False,
    help="Speech to face: prepare data, train, and generate the face that a voice suggests.",
    epilog="Start with: `s2f generate examples/speech.wav -o face.png`",
    **_SETTINGS,
)
prep_app = typer.Typer(help="Prepare training data.", **_SETTINGS)
train_app = typer.Typer(help="Train one of the three networks.", **_SETTINGS)
app.add_typer(prep_app, name="prep", rich_help_panel="Prepare data")
app.add_typer(train_app, name="train", rich_help_panel="Train")


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def _examples(*commands: str) -> str:
    """Make an epilog; blank lines keep markdown from joining the commands."""
    return "\n\n".join(["Examples:", *(f"`{command}`" for command in commands)])


def _option(panel: str, help: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **settings)


_input, _model, _training, _run, _output = (
    functools.partial(_option, panel) for panel in ("Input", "Model", "Training", "Run", "Output")
)

JsonOpt = Annotated[bool, _output("Print one JSON object, errors too.", "--json")]
QuietOpt = Annotated[bool, _output("Print results and errors only.", "--quiet", "-q")]
DeviceOpt = Annotated[str, _run("auto (default), cpu, cuda, cuda:N or mps.", "--device")]
SeedOpt = Annotated[int | None, _run("Of everything random.", "--seed", min=0)]

# `generate` and `reconstruct`
_WHERE = "A .png for one file, or a folder (default: this one) that mirrors the input's."
OutputOpt = Annotated[Path | None, _output(_WHERE, "--output", "-o")]
SizeOpt = Annotated[int | None, _output("Side, pixels.", "--size", min=16, max=4096)]
LandmarksOpt = Annotated[bool, _output("Write NAME_landmarks.png beside it.", "--landmarks")]
OverwriteOpt = Annotated[bool, _output("Replace pictures that are there already.", "--overwrite")]
ModelOpt = Annotated[str | None, _model("A bundled model's name, or a folder.", "--model")]

# `train`; what is not given is for TrainConfig to decide
DataArg = Annotated[Path, typer.Argument(help="Folder that holds train and val.")]
RunOpt = Annotated[Path, _output("Run folder; one begun there goes on.", "--output", "-o")]
HalfOpt = Annotated[bool | None, _output("Store the best in half precision.", "--half")]
FaceEncoderOpt = Annotated[Path, _input("Checkpoint that defines the embedding.", "--face-encoder")]
FaceDecoderOpt = Annotated[Path, _input("Checkpoint made for that encoder.", "--face-decoder")]
StartOpt = Annotated[Path | None, _input("Face decoder to go on from, not a new one.", "--start")]
PresetOpt = Annotated[Preset, _model("Shape of the network (default: compact).", "--preset")]
StepsOpt = Annotated[int | None, _training("Optimizer steps.", "--steps", min=1)]
BatchSizeOpt = Annotated[int | None, _training("Samples a step.", "--batch-size", min=1)]
LrOpt = Annotated[float | None, _training("Peak learning rate.", "--lr", min=0)]
_SCHEDULES = "cosine, or paper: x 0.95 every 10,000 steps."
ScheduleOpt = Annotated[str | None, _training(_SCHEDULES, "--schedule")]
WeightDecayOpt = Annotated[float | None, _training("AdamW's.", "--weight-decay", min=0)]
LossWeightOpt = Annotated[
    list[str] | None,
    _training("Of a loss; may be repeated.", "--loss-weight", metavar="NAME=VALUE"),
]
NoAugmentOpt = Annotated[bool | None, _training("Leave inputs undisturbed.", " /--no-augment")]
EveryOpt = Annotated[int | None, _run("Steps between validations and saves.", "--every", min=1)]
WorkersOpt = Annotated[int | None, _run("Processes that read; 0: this one.", "--workers", min=0)]


@prep_app.command("demo", epilog=_examples("s2f prep demo sources/faces sources/voices data/demo"))
def _prep_demo(
    ctx: typer.Context,
    faces: Annotated[Path, typer.Argument(help="people.csv and a folder a person.")],
    voices: Annotated[Path, typer.Argument(help="speakers.csv and a folder a reader.")],
    out: Annotated[Path, typer.Argument(help="New folder for the training trees.")],
    identities: Annotated[int | None, _run("Synthetic people.", "--identities", min=1)] = None,
    seed: SeedOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Make the training trees of the bundled model from its two sources."""
    console = _console(ctx, as_json, quiet)
    from s2f import demo

    with console.progress("preparing", "identities") as progress:
        report = demo.prepare(
            faces, voices, out, progress=progress, **_given(identities=identities, seed=seed)
        )
    console.line(report.out)
    console.summary(dataclasses.asdict(report))


@train_app.command("encoder", epilog=_examples("s2f train encoder data/demo/faces -o runs/encoder"))
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
        from s2f.tasks import FaceEncoderTask

        return FaceEncoderTask(data, preset.value, card)

    _train(ctx, _console(ctx, as_json, quiet), task, data, output, device)


@train_app.command(
    "decoder",
    epilog=_examples(
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
        from s2f.tasks import FaceDecoderTask

        encoder = load(face_encoder, "face_encoder")
        decoder = None if start is None else load(start, "face_decoder")
        return FaceDecoderTask(data, preset.value, encoder, decoder, card)

    _train(ctx, _console(ctx, as_json, quiet), task, data, output, device)


@train_app.command(
    "voice",
    epilog=_examples(
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

    def task(card: "Card", device: "torch.device") -> "Task":
        from s2f.checkpoint import load
        from s2f.tasks import VoiceEncoderTask

        encoder = load(face_encoder, "face_encoder")
        decoder = load(face_decoder, "face_decoder")
        return VoiceEncoderTask(data, preset.value, encoder, decoder, card, device=device)

    _train(ctx, _console(ctx, as_json, quiet), task, data, output, device)


@app.command(
    "generate",
    no_args_is_help=True,
    rich_help_panel="Use",
    epilog=_examples(
        "s2f generate examples/speech.wav -o face.png",
        "s2f generate recordings -o faces --landmarks",
    ),
)
def _generate(
    ctx: typer.Context,
    speech: Annotated[
        list[Path],
        typer.Argument(help="Recordings, videos with sound, or folders of them.", metavar="SPEECH"),
    ],
    output: OutputOpt = None,
    model: ModelOpt = None,
    size: SizeOpt = None,
    landmarks: LandmarksOpt = False,
    overwrite: OverwriteOpt = False,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Generate the face that speech suggests: an average impression, never a likeness."""
    console = _console(ctx, as_json, quiet)
    from s2f.audio import find
    from s2f.infer import SpeechToFace

    kinds = ("voice_encoder", "face_decoder")
    _draw(ctx, console, find, speech, output, kinds, SpeechToFace.generate)


@app.command(
    "reconstruct",
    no_args_is_help=True,
    rich_help_panel="Use",
    epilog=_examples(
        "s2f reconstruct photo.jpg -o face.png",
        "s2f reconstruct photos -o faces --size 448",
    ),
)
def _reconstruct(
    ctx: typer.Context,
    photo: Annotated[
        list[Path],
        typer.Argument(help="Framed photos of faces, or folders of them.", metavar="PHOTO"),
    ],
    output: OutputOpt = None,
    model: ModelOpt = None,
    size: SizeOpt = None,
    landmarks: LandmarksOpt = False,
    overwrite: OverwriteOpt = False,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Draw the face of a photo from its embedding: what the decoder makes of it at best."""
    console = _console(ctx, as_json, quiet)
    from s2f.infer import SpeechToFace
    from s2f.layout import find_photos

    kinds = ("face_encoder", "face_decoder")
    _draw(ctx, console, find_photos, photo, output, kinds, SpeechToFace.reconstruct)


def _given(**options: object) -> dict[str, Any]:
    """Keep the options that were given; the function that gets them has its own defaults."""
    return {name: value for name, value in options.items() if value is not None}


def _draw(
    ctx: typer.Context,
    console: Console,
    find: "Find",
    sources: list[Path],
    output: Path | None,
    kinds: tuple[str, ...],
    method: "Callable[[SpeechToFace, Path], Face]",
) -> None:
    """Make a picture of each source, report them, and exit with what became of them."""
    from s2f.infer import SpeechToFace, plan, run

    options = ctx.params

    @functools.cache  # read once, and only when there is a picture to make
    def networks() -> SpeechToFace:
        given = _given(model=options["model"])
        return SpeechToFace.load(device=options["device"], kinds=kinds, **given)

    planned = plan(sources, output, find)
    many = len(sources) > 1 or sources[0].is_dir()
    bar = console.progress("drawing", "files") if many else contextlib.nullcontext(_silent)
    outcomes = []
    with bar as progress:
        for outcome in run(
            lambda path: method(networks(), path),
            planned,
            overlay=options["landmarks"],
            overwrite=options["overwrite"],
            skip=many,
            progress=progress,
            **_given(size=options["size"]),
        ):
            outcomes.append(outcome)
            if outcome.status == "made":
                console.line(outcome.target)
                if outcome.overlay:
                    console.line(outcome.overlay)
            elif outcome.status == "skipped":
                console.note(f"skipped {outcome.source}: {outcome.target} is up to date")
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if errors and len(outcomes) == 1:
        raise errors[0]
    model = networks().model if networks.cache_info().currsize else None
    console.summary(
        {
            "s2f": s2f.__version__,
            "model": model
            and {
                "name": model.name,
                "cards": {
                    kind: dataclasses.asdict(checkpoint.card)
                    for kind, checkpoint in model.checkpoints.items()
                },
            },
            "results": [_record(outcome) for outcome in outcomes],
        },
    )
    if errors:
        console.failures(errors, len(outcomes))
        raise typer.Exit(PARTLY_FAILED)


def _silent(done: int, total: int, what: str) -> None:
    pass


def _record(outcome: "Outcome") -> dict[str, object]:
    error = outcome.error
    return {
        "source": outcome.source,
        "face": outcome.target,
        "landmarks": outcome.overlay,
        "status": outcome.status,
        "clips": outcome.clips,
        "seconds": round(outcome.seconds, 3),
        "error": error and described(error),
    }


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
    options = _given(**{name: ctx.params.get(name) for name in fields})
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
            result = train(task, output, config, device=device, progress=progress)
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
    for option in options:
        name, _, value = option.partition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            weights[name] = math.nan
        if not 0 <= weights[name] < math.inf:
            raise UsageError(
                f"--loss-weight {option}: is not NAME=VALUE with a value of 0 or more",
                hint="give for instance --loss-weight texture/mae=10",
            )
    return weights


def main() -> None:
    """Run the program: what the command `s2f` starts."""
    app(prog_name="s2f")
