"""The commands that use a model: `s2f generate` and `s2f reconstruct`."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import s2f
from s2f.console import Console, described
from s2f.options import (
    PARTLY_FAILED,
    DeviceOpt,
    JsonOpt,
    QuietOpt,
    choose_console,
    examples,
    given,
    option,
)

if TYPE_CHECKING:
    from s2f.batch import Find, Outcome
    from s2f.infer import Face, SpeechToFace

app = typer.Typer()

_WHERE = "A .png for one file, or a folder (default: this one) that mirrors the input's."
OutputOpt = Annotated[Path | None, option("Output", _WHERE, "--output", "-o")]
SizeOpt = Annotated[int | None, option("Output", "Side, pixels.", "--size", min=16, max=4096)]
LandmarksOpt = Annotated[
    bool, option("Output", "Write NAME_landmarks.png beside it.", "--landmarks")
]
OverwriteOpt = Annotated[
    bool, option("Output", "Replace pictures that are there already.", "--overwrite")
]
ModelOpt = Annotated[str | None, option("Model", "A bundled model's name, or a folder.", "--model")]


@app.command(
    "generate",
    no_args_is_help=True,
    rich_help_panel="Use",
    epilog=examples(
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
    console = choose_console(ctx, as_json, quiet)
    from s2f.audio import find
    from s2f.infer import SpeechToFace

    kinds = ("voice_encoder", "face_decoder")
    _draw(ctx, console, find, speech, output, kinds, SpeechToFace.generate)


@app.command(
    "reconstruct",
    no_args_is_help=True,
    rich_help_panel="Use",
    epilog=examples(
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
    console = choose_console(ctx, as_json, quiet)
    from s2f.infer import SpeechToFace
    from s2f.layout import find_photos

    kinds = ("face_encoder", "face_decoder")
    _draw(ctx, console, find_photos, photo, output, kinds, SpeechToFace.reconstruct)


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
    from s2f.batch import plan, run
    from s2f.infer import SpeechToFace

    options = ctx.params

    @functools.cache  # read once, and only when there is a picture to make
    def networks() -> SpeechToFace:
        model = given(model=options["model"])
        return SpeechToFace.load(device=options["device"], kinds=kinds, **model)

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
            **given(size=options["size"]),
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
