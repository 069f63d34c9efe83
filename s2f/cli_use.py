"""The commands that use a model: `s2f generate` and `s2f reconstruct`."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s2f.batch import RECORDED, STDIN
from s2f.console import Console
from s2f.errors import UsageError
from s2f.options import choose_console, examples, option
from s2f.use_batch import FRAMES, draw, draw_morph
from s2f.use_options import VoiceEncoderOpt, draws

if TYPE_CHECKING:
    from s2f.errors import InputError
    from s2f.face import Face
    from s2f.infer import SpeechToFace
    from s2f.runtime import Progress

app = typer.Typer()


@app.command(
    "generate",
    no_args_is_help=True,
    rich_help_panel="Use",
    epilog=examples(
        "s2f generate examples/speech.wav -o face.png",
        "s2f generate recordings -o faces --landmarks --sheet sheet.png",
        "s2f generate examples/speech.wav --start 2 --duration 6 -o part.webp --size 448",
        "s2f generate --morph examples/speech.wav recordings/ann/hello.wav -o morph.webp",
    ),
)
@draws
def _generate(
    ctx: typer.Context,
    speech: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Recordings, videos with sound, folders of them, or - for standard input.",
            metavar="SPEECH",
            readable=False,
        ),
    ] = None,
    record: Annotated[
        float | None,
        option("Input", "Record so many seconds.", "--record", metavar="SECONDS"),
    ] = None,
    start: Annotated[
        float, option("Input", "Where speech starts in a recording, seconds.", "--start")
    ] = 0,
    duration: Annotated[
        float | None, option("Input", "Of the speech, seconds (default: all).", "--duration")
    ] = None,
    trim_silence: Annotated[
        float | None,
        option("Input", "Cut ends this many dB below the loudest.", "--trim-silence"),
    ] = None,
    voice_encoder: VoiceEncoderOpt = None,
    compare: Annotated[
        Path | None,
        option(
            "Output",
            "Also NAME_compare: this photo, the face from it, and the one from the voice.",
            "--compare",
            metavar="PHOTO",
        ),
    ] = None,
    morph: Annotated[
        tuple[Path, Path] | None,
        option("Output", "Animate from one voice's face to another's.", "--morph", metavar="A B"),
    ] = None,
    frames: Annotated[
        int | None, option("Output", f"Of --morph (default: {FRAMES}).", "--frames", min=2, max=500)
    ] = None,
    **shared: Any,
) -> None:
    """Generate the face that speech suggests: an average impression, never a likeness."""
    console = choose_console(ctx, shared["as_json"], shared["quiet"])
    _check_sources(ctx.params)
    from s2f.alignment import choose_detector
    from s2f.audio import check_part, find
    from s2f.microphone import check_seconds

    cut: dict[str, Any] = {"start": start, "duration": duration, "trim_silence": trim_silence}
    check_part(**cut)
    if morph is not None:
        draw_morph(console, ctx.params, cut)
        return

    def faces(
        model: "SpeechToFace", sources: Iterable[Path], progress: "Progress"
    ) -> "Iterator[Face | InputError]":
        speeches = (_opened(source, record, console, progress) for source in sources)
        return model.generate_all(speeches, progress=progress, **cut)

    if compare is not None and shared["align"]:
        choose_detector(shared["detector"])
    kinds = ["voice_encoder", *(["face_encoder"] if compare else []), "face_decoder"]
    if record is not None:
        check_seconds(record)
    sources = [RECORDED] if record is not None else [*(speech or [])]
    draw(console, ctx.params, sources, find, kinds, faces)


@app.command(
    "reconstruct",
    no_args_is_help=True,
    rich_help_panel="Use",
    epilog=examples(
        "s2f reconstruct photo.jpg -o face.png --no-align",
        "s2f reconstruct photos -o faces --size 448 --no-align",
    ),
)
@draws
def _reconstruct(
    ctx: typer.Context,
    photo: Annotated[
        list[Path],
        typer.Argument(
            help="Photos of faces, folders of them, or - for standard input.",
            metavar="PHOTO",
            readable=False,
        ),
    ],
    **shared: Any,
) -> None:
    """Draw the face of a photo from its embedding: what the decoder makes of it at best."""
    console = choose_console(ctx, shared["as_json"], shared["quiet"])
    from s2f.alignment import choose_detector
    from s2f.layout import find_photos

    if shared["align"]:
        choose_detector(shared["detector"])
    framing: dict[str, Any] = {"align": shared["align"], "detector": shared["detector"]}

    def faces(
        model: "SpeechToFace", sources: Iterable[Path], progress: "Progress"
    ) -> "Iterator[Face | InputError]":
        photos = (_opened(source, None, console, progress) for source in sources)
        return model.reconstruct_all(photos, progress=progress, **framing)

    draw(console, ctx.params, photo, find_photos, ["face_encoder", "face_decoder"], faces)


def _check_sources(params: Mapping[str, Any]) -> None:
    """Make sure that what is to be generated from is said once.

    Raises:
        UsageError: if it is not, or `--morph` is given what it has no use for.
    """
    ways = [name for name in ("speech", "record", "morph") if params[name]]
    if len(ways) != 1:
        raise UsageError(
            f"there is {' and '.join(ways) or 'nothing'} to generate a face from",
            hint="name recordings, or give --record SECONDS, or --morph A B",
        )
    idle: tuple[str, ...] = ("format", "landmarks", "embedding", "compare", "sheet")
    if params["morph"] is None:
        idle = ("frames",)
    for name in idle:
        if params[name]:
            raise UsageError(
                f"--{name} does not go {'with' if params['morph'] else 'without'} --morph",
                hint=f"leave --{name} out",
            )
    if params["compare"] is None and (params["detector"] or not params["align"]):
        raise UsageError(
            "--detector and --no-align are for the photo of --compare", hint="leave them out"
        )


def _opened(source: Path, record: float | None, console: Console, progress: "Progress") -> Any:
    """Give what is read for a source: standard input, the microphone, or the file itself."""
    if record is not None:
        from s2f.microphone import record as record_sound

        told: list[str] = []

        def tell(done: int, total: int, what: str) -> None:
            if not told:  # by now it does record
                console.note(f"{what}, {record:g} s: speak now")
            told.append(what)
            progress(done, total, what)

        return record_sound(record, progress=tell)
    if source != STDIN:
        return source
    if sys.stdin is None:
        raise UsageError("standard input is closed", hint="pipe something into it")
    return sys.stdin.buffer
