"""The commands that make training data file by file: `s2f prep audio` and the like."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from s2f.console import Console, described
from s2f.options import (
    GROUP,
    PARTLY_FAILED,
    DeviceOpt,
    JsonOpt,
    QuietOpt,
    WorkersOpt,
    choose_console,
    examples,
    given,
    option,
)

if TYPE_CHECKING:
    from s2f.prep import PrepReport
    from s2f.step import Step

app = typer.Typer(
    help="Prepare training data. A run that was stopped goes on; what is up to date is kept.",
    **GROUP,
)

OutArg = Annotated[Path, typer.Argument(help="Folder for the same tree, prepared.", metavar="OUT")]
PhotosArg = Annotated[Path, typer.Argument(help="A folder of photos, or one.", metavar="SRC")]
OverwriteOpt = Annotated[
    bool,
    option(
        "Output", "Replace what this command did not make, even SRC's own files.", "--overwrite"
    ),
]
DetectorOpt = Annotated[
    Literal["face-alignment", "dlib"],
    option("Model", "face-alignment (default) or dlib.", "--detector"),
]


@app.command(
    "audio",
    epilog=examples(
        "s2f prep audio voxceleb/wav data/voices",
        "s2f prep audio recordings features --preset ast --stats stats.json",
    ),
)
def _audio(
    ctx: typer.Context,
    src: Annotated[
        Path, typer.Argument(help="A folder of recordings or videos, or one.", metavar="SRC")
    ],
    out: OutArg,
    store: Annotated[
        Literal["waveform", "spectrogram"] | None,
        option("Output", "waveform: int16 (default); or spectrogram (with --preset).", "--store"),
    ] = None,
    preset: Annotated[
        Literal["paper", "seed", "ast"] | None,
        option("Model", "Front end of spectrograms: paper, seed or ast.", "--preset"),
    ] = None,
    stats: Annotated[
        Path | None, option("Model", "Mean and std for ast, from prep stats.", "--stats")
    ] = None,
    trim_silence: Annotated[
        float | None,
        option("Input", "Cut ends this many dB below the loudest.", "--trim-silence", min=1),
    ] = None,
    workers: WorkersOpt = None,
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Turn recordings into waveforms at 16 kHz and -23 dBFS, or into spectrograms."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.prep_audio import audio_step

    store = store or ("spectrogram" if preset or stats else "waveform")
    options = given(preset=preset, stats=stats, trim_silence=trim_silence)
    _run(console, audio_step(store=store, **options), src, out, workers, overwrite)


@app.command("stats", epilog=examples("s2f prep stats data/voices/train -o stats.json"))
def _stats(
    ctx: typer.Context,
    tree: Annotated[Path, typer.Argument(help="Prepared waveforms, or recordings.")],
    output: Annotated[
        Path, option("Output", "A .json file (default: stats.json).", "--output", "-o")
    ] = Path("stats.json"),
    workers: WorkersOpt = None,
    overwrite: Annotated[
        bool, option("Output", "Replace the file if it is something else.", "--overwrite")
    ] = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Measure the mean and the standard deviation of the log-mel features of a training set."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.prep_audio import log_mel_stats

    with console.progress("measuring", "files") as progress:
        stats, report = log_mel_stats(
            tree, output, workers=workers, overwrite=overwrite, progress=progress
        )
    result: dict[str, object] = {"output": None}
    if stats:
        console.line(output)
        result = {"output": output, **dataclasses.asdict(stats)}
    _report(console, report, result, single=not tree.is_dir())


@app.command(
    "faces",
    epilog=examples(
        "s2f prep faces hq-voxceleb data/faces",
        "s2f prep faces my/photos my/faces --detector dlib",
    ),
)
def _faces(
    ctx: typer.Context,
    src: PhotosArg,
    out: OutArg,
    detector: DetectorOpt = "face-alignment",
    workers: WorkersOpt = None,
    device: DeviceOpt = "auto",
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Find the largest face of each photo, align its eyes, and crop it to 224 x 224."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.prep_photos import faces_step

    _run(console, faces_step(detector, device), src, out, workers, overwrite)


@app.command("resize", epilog=examples("s2f prep resize photos faces --size 224"))
def _resize(
    ctx: typer.Context,
    src: PhotosArg,
    out: OutArg,
    size: Annotated[
        int | None, option("Output", "Side, pixels (default 224).", "--size", min=16, max=4096)
    ] = None,
    workers: WorkersOpt = None,
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Squash photos to a square, as they are framed."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.prep_photos import resize_step

    _run(console, resize_step(**given(size=size)), src, out, workers, overwrite)


@app.command("landmarks", epilog=examples("s2f prep landmarks data/faces data/faces"))
def _landmarks(
    ctx: typer.Context,
    src: PhotosArg,
    out: OutArg,
    detector: DetectorOpt = "face-alignment",
    workers: WorkersOpt = None,
    device: DeviceOpt = "auto",
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Find the 68 landmarks of faces: NAME_landmarks.npy, beside the photos where OUT is SRC."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.prep_photos import landmarks_step

    _run(console, landmarks_step(detector, device), src, out, workers, overwrite)


@app.command(
    "embeddings",
    epilog=examples("s2f prep embeddings data/faces data/faces --face-encoder encoder.safetensors"),
)
def _embeddings(
    ctx: typer.Context,
    src: PhotosArg,
    out: OutArg,
    face_encoder: Annotated[
        Path, option("Model", "Its checkpoint (.safetensors).", "--face-encoder")
    ],
    batch_size: Annotated[
        int | None, option("Run", "Photos at a time.", "--batch-size", min=1)
    ] = None,
    workers: WorkersOpt = None,
    device: DeviceOpt = "auto",
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Embed framed photos: NAME_embedding.npy, beside the photos where OUT is SRC."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.prep_embeddings import embeddings_step

    step = embeddings_step(face_encoder, device, **given(batch_size=batch_size))
    _run(console, step, src, out, workers, overwrite)


def _run(
    console: Console, step: "Step", src: Path, out: Path, workers: int | None, overwrite: bool
) -> None:
    """Prepare a tree, report what became of it, and exit with that."""
    from s2f.prep import prepare

    with console.progress(step.name, step.sources) as progress:
        report = prepare(step, src, out, workers=workers, overwrite=overwrite, progress=progress)
    if report.made or report.skipped:
        console.line(report.out)
    _report(console, report, {"out": report.out}, single=not src.is_dir())


def _report(
    console: Console, report: "PrepReport", result: dict[str, object], *, single: bool
) -> None:
    failed = report.failed
    if single and failed:
        raise failed[0].error
    console.note(
        f"made {report.made}, up to date {report.skipped}, failed {len(failed)} "
        f"in {report.seconds:.1f} s"
    )
    console.summary(
        {
            **result,
            "made": report.made,
            "skipped": report.skipped,
            "failed": [{"source": f.source, **described(f.error)} for f in failed],
            "seconds": round(report.seconds, 3),
        }
    )
    if failed:
        console.failures(
            [failure.error for failure in failed], report.made + report.skipped + len(failed)
        )
        raise typer.Exit(PARTLY_FAILED)
