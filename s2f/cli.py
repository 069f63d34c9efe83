"""The options that `s2f generate` and `s2f reconstruct` share.

The commands that use a model: `s2f generate` and `s2f reconstruct`.

The command that serves the web page: `s2f app`.

The commands that say what models there are: `s2f models` and `s2f verify`.

The command that judges a model: `s2f evaluate`.

The command line: parse, call one function of the library, report, exit.

Here is the root: `s2f` itself, its groups, and what an error exits with. The commands live in

- `cli_use`: what uses a model, at the root: `s2f generate`, `s2f reconstruct`;
- `cli_app`: what shows a model to visitors: `s2f app`;
- `cli_models`: what says which models there are: `s2f models`, `s2f verify`;
- `cli_evaluate`: what judges a model: `s2f evaluate`;
- `cli_prep` and `cli_trees`: what makes training data, of files and of trees: `s2f prep ...`;
- `cli_convert`: what reads weights that others published: `s2f convert ...`;
- `cli_train`: what trains a network: `s2f train ...`;

and what they share in `options`. None of these knows how anything is done, and importing them
imports neither torch nor any module that does: each command imports what it needs, so that
`s2f --help` answers at once.
"""

import dataclasses
import json
import os
import sys
import textwrap
import threading
import webbrowser
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

import s2f
from s2f import cli_convert, cli_prep, cli_train
from s2f.app_server import MAX_MB, MAX_SECONDS
from s2f.console import Console, count, described, one_line, size
from s2f.device import ended_by_sigterm
from s2f.errors import CheckpointError, InputError, S2FError, UsageError
from s2f.generate import FRAMES, RECORDED, STDIN, draw_and_report, draw_morph, load_networks
from s2f.options import (
    GROUP,
    INTERRUPTED,
    PARTLY_FAILED,
    DeviceOpt,
    JsonOpt,
    QuietOpt,
    choose_console,
    examples,
    given,
    option,
    sharing,
)
from s2f.prep import keep_memory

if TYPE_CHECKING:
    from s2f.checkpoint import Entry, Facts
    from s2f.console import Progress
    from s2f.pipeline import Face, SpeechToFace
    from s2f.report import Report


_WHERE = "A picture for one file, or a folder (default: this one) that mirrors the input's."
OutputOpt = Annotated[Path | None, option("Output", _WHERE, "--output", "-o")]
FormatOpt = Annotated[
    Literal["png", "jpg", "webp"] | None,
    option("Output", "Of the pictures: png (default), jpg or webp.", "--format"),
]
SizeOpt = Annotated[int | None, option("Output", "Side, pixels.", "--size", min=16, max=4096)]
LandmarksOpt = Annotated[
    bool, option("Output", "Also NAME_landmarks: the 68 points drawn on it.", "--landmarks")
]
EmbeddingOpt = Annotated[
    bool, option("Output", "Also NAME_embedding.npy: what it was drawn from.", "--embedding")
]
SheetOpt = Annotated[
    Path | None, option("Output", "Also a contact sheet of all faces.", "--sheet", metavar="FILE")
]
OverwriteOpt = Annotated[bool, option("Output", "Replace files that are there.", "--overwrite")]
ModelOpt = Annotated[
    str | None, option("Model", "A name that s2f models knows, or a folder.", "--model")
]
VoiceEncoderOpt = Annotated[
    Path | None, option("Model", "In the place of the model's.", "--voice-encoder", metavar="FILE")
]
FaceEncoderOpt = Annotated[
    Path | None, option("Model", "In the place of the model's.", "--face-encoder", metavar="FILE")
]
FaceDecoderOpt = Annotated[
    Path | None, option("Model", "In the place of the model's.", "--face-decoder", metavar="FILE")
]
DetectorOpt = Annotated[
    Literal["face-alignment", "dlib"] | None,
    option(
        "Input", "Of faces in photos: dlib (default, if installed), face-alignment.", "--detector"
    ),
]
AlignOpt = Annotated[
    bool,
    option("Input", "Find and frame the face in a photo (default), or not.", "--align/--no-align"),
]
PrecisionOpt = Annotated[
    Literal["fp32", "bf16", "fp16"] | None,
    option("Run", "fp32 (default; on a GPU the files' own), bf16 or fp16.", "--precision"),
]


def _shared(
    *,
    detector: DetectorOpt = None,
    align: AlignOpt = True,
    model: ModelOpt = None,
    face_encoder: FaceEncoderOpt = None,
    face_decoder: FaceDecoderOpt = None,
    output: OutputOpt = None,
    format: FormatOpt = None,
    size: SizeOpt = None,
    landmarks: LandmarksOpt = False,
    embedding: EmbeddingOpt = False,
    sheet: SheetOpt = None,
    overwrite: OverwriteOpt = False,
    device: DeviceOpt = "auto",
    precision: PrecisionOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Only its signature counts."""


draws = sharing(_shared)

use_app = typer.Typer()


@use_app.command(
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
    from s2f.audio import check_part, check_seconds, find_recordings
    from s2f.face_detection import choose_detector

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
    draw_and_report(console, ctx.params, sources, find_recordings, kinds, faces)


@use_app.command(
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
    from s2f.face_detection import choose_detector
    from s2f.layout import find_photos

    if shared["align"]:
        choose_detector(shared["detector"])
    framing: dict[str, Any] = {"align": shared["align"], "detector": shared["detector"]}

    def faces(
        model: "SpeechToFace", sources: Iterable[Path], progress: "Progress"
    ) -> "Iterator[Face | InputError]":
        photos = (_opened(source, None, console, progress) for source in sources)
        return model.reconstruct_all(photos, progress=progress, **framing)

    draw_and_report(
        console, ctx.params, photo, find_photos, ["face_encoder", "face_decoder"], faces
    )


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
        from s2f.audio import record as record_sound

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


page_app = typer.Typer()


@page_app.command(
    "app",
    rich_help_panel="Use",
    epilog=examples(
        "s2f app", "s2f app --open --max-seconds 30", "s2f app --host 0.0.0.0 --port 0"
    ),
)
def _app(
    ctx: typer.Context,
    host: Annotated[
        str, option("Run", "Address to serve at (127.0.0.1: this machine alone).", "--host")
    ] = "127.0.0.1",
    port: Annotated[
        int, option("Run", "Port (7860); 0: any that is free.", "--port", min=0, max=65535)
    ] = 7860,
    share: Annotated[
        bool, option("Run", "Also a public link, through servers of Gradio's.", "--share")
    ] = False,
    browser: Annotated[bool, option("Run", "Open the page in the browser.", "--open")] = False,
    max_mb: Annotated[
        float, option("Input", "Of a file that is sent, MB (25).", "--max-mb", min=0.1, max=1000)
    ] = MAX_MB,
    max_seconds: Annotated[
        float,
        option("Input", "Heard of a recording, seconds (60).", "--max-seconds", min=1, max=600),
    ] = MAX_SECONDS,
    align: AlignOpt = True,
    detector: DetectorOpt = None,
    model: ModelOpt = None,
    voice_encoder: VoiceEncoderOpt = None,
    face_encoder: FaceEncoderOpt = None,
    face_decoder: FaceDecoderOpt = None,
    device: DeviceOpt = "auto",
    precision: PrecisionOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Serve a web page: record a voice or give a photo, and see the faces. Ctrl-C ends it."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.app import Settings, check_settings, serving, warm
    from s2f.checkpoint import KINDS
    from s2f.face_detection import choose_detector

    settings = check_settings(
        Settings(
            host=host,
            port=port,
            share=share,
            max_mb=max_mb,
            max_seconds=max_seconds,
            align=align,
            detector=detector,
        )
    )
    if align and detector:
        choose_detector(detector)
    networks = load_networks(ctx.params, KINDS)
    keep_memory(largest=2**22, spare=2**25)  # a server lives long, and has many threads
    console.note("warming up")
    warm(networks, settings)
    try:
        with ended_by_sigterm(), serving(networks, settings, _evaluation(ctx.params)) as addresses:
            url, public = addresses
            if public:
                console.note(
                    "the public link works for anyone who has it, for up to a week; what visitors "
                    "send passes through servers of Gradio's"
                )
            elif host not in ("127.0.0.1", "localhost", "::1"):
                console.note(
                    "whoever reaches this machine reaches the page; browsers record only on this "
                    "machine itself or over https, and take files everywhere"
                )
            for address in addresses:
                if address:
                    console.line(address)
            console.note("Ctrl-C ends it")
            console.summary(
                {
                    "s2f": s2f.__version__,
                    "url": url,
                    "public_url": public,
                    "model": networks.model.name,
                    "device": str(networks.device),
                    "max_mb": max_mb,
                    "max_seconds": max_seconds,
                }
            )
            if browser:
                webbrowser.open(url)
            threading.Event().wait()
    except KeyboardInterrupt:
        console.note("closed; nothing of its visitors is kept")
        raise typer.Exit(INTERRUPTED) from None


def _evaluation(params: Mapping[str, Any]) -> str | None:
    """Read what was measured of the model, unless files take the place of its networks."""
    from s2f.checkpoint import KINDS, entries

    if any(params[kind] for kind in KINDS):
        return None
    (entry,) = entries(params["model"] or "demo")
    return entry.evaluation


models_app = typer.Typer()
MEGABYTE = 1_000_000
LICENCE = 20  # characters of one that the table shows; the card has all


@models_app.command(
    "models",
    rich_help_panel="Use",
    epilog=examples("s2f models", "s2f models demo", "s2f models --json"),
)
def _models(
    ctx: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Argument(help="Names or folders of models, whose cards to show.", metavar="MODEL"),
    ] = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """List the models that are bundled or in the cache, or show the cards of some.

    The cache is the folder $S2F_MODELS, else s2f/models in $XDG_CACHE_HOME or ~/.cache. A folder of
    checkpoints put there is a model, and --model knows it by its name.
    """
    console = choose_console(ctx, as_json, quiet)
    from s2f import checkpoint

    entries = checkpoint.entries(*(model or ()))
    errors = [error for entry in entries for error in entry.errors.values()]
    if model:
        for entry in entries:
            _show(console, entry)
    else:
        console.table(
            [row for entry in entries for row in _rows(entry)],
            ("model", "where", "network", "parameters", "size", "licence"),
        )
        for entry in entries:
            console.line(entry.name)
        for error in errors:
            console.note(error.message)
    value = {"cache": checkpoint.cache(), "models": [_record(entry) for entry in entries]}
    n_files = sum(len(entry.networks) + len(entry.errors) for entry in entries)
    _finish_models(console, value, errors if model else [], n_files)


@models_app.command(
    "verify",
    no_args_is_help=True,
    rich_help_panel="Use",
    epilog=examples(
        "s2f verify runs/voice/best.safetensors",
        "s2f verify models/pietkun models/mine",
    ),
)
def _verify(
    ctx: typer.Context,
    file: Annotated[
        list[Path],
        typer.Argument(help="Checkpoints, or folders of them.", metavar="FILE"),
    ],
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Check that checkpoints are whole: every value hashed, and compared with the header.

    The networks of a model folder must also have been made for one face encoder.
    """
    console = choose_console(ctx, as_json, quiet)
    from s2f import checkpoint

    groups = {source: _checkpoints(source) for source in dict.fromkeys(file)}
    sizes = {p: p.stat().st_size for paths in groups.values() for p in paths if p.is_file()}
    total, done = sum(sizes.values()), 0
    results: list[dict[str, object]] = []
    errors: list[CheckpointError] = []

    def failed(path: Path, error: CheckpointError) -> None:
        errors.append(error)
        results.append({"path": path, "status": "failed", "error": described(error)})

    with console.progress("verifying", "MB") as progress:

        def told(hashed: int) -> None:
            progress((done + hashed) // MEGABYTE, -(-total // MEGABYTE), str(path))

        for source, paths in groups.items():
            whole: list[Facts] = []
            for path in paths:
                try:
                    facts = checkpoint.verify(path, told)
                except CheckpointError as error:
                    failed(path, error)
                else:
                    whole.append(facts)
                    results.append({**dataclasses.asdict(facts), "status": "ok", "error": None})
                    console.line(f"{path}: ok: {facts.kind}, sha256 {facts.sha256[:12]}")
                done += sizes.get(path, 0)
            try:
                checkpoint.check_space([f for f in whole if f.path.stem == f.kind])  # of a model
            except CheckpointError as error:
                failed(source, error)
            if not paths:
                failed(source, _empty(source))
    _finish_models(console, {"results": results}, errors, len(results))


def _checkpoints(source: Path) -> list[Path]:
    """List the checkpoints that a path stands for: itself, or those in it."""
    return sorted(source.glob("*.safetensors")) if source.is_dir() else [source]


def _empty(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{folder}: holds no checkpoints",
        hint="give .safetensors files, or the folder that they are in",
    )


def _finish_models(
    console: Console, value: Mapping[str, object], errors: list[CheckpointError], total: int
) -> None:
    """Print the JSON, and exit as a batch does if anything of it failed."""
    if errors and total == 1:
        raise errors[0]
    console.summary({"s2f": s2f.__version__, **value})
    if errors:
        console.failures(errors, total)
        raise typer.Exit(PARTLY_FAILED)


def _rows(entry: "Entry") -> list[tuple[str, ...]]:
    """Make a row of the table for each network of a model."""
    rows: list[tuple[str, ...]] = []
    for facts in entry.networks.values():
        licence = textwrap.shorten(str(facts.card.get("licence", "")), LICENCE, placeholder=" ...")
        n_parameters, n_bytes = count(facts.parameters), size(facts.n_bytes)
        rows.append((entry.name, entry.where, facts.kind, n_parameters, n_bytes, licence))
    return rows + [(entry.name, entry.where, kind, "", "", "damaged") for kind in entry.errors]


def _show(console: Console, entry: "Entry") -> None:
    """Print what the files of a model say, cards and all; escaped, for strangers wrote it."""
    console.line(f"{entry.name} ({entry.where}): {entry.folder}")
    for kind, facts in entry.networks.items():
        console.line("")
        console.line(
            f"{kind}: {count(facts.parameters)} parameters, {size(facts.n_bytes)}, {facts.storage}"
        )
        console.line(f"  embedding space: {one_line(facts.embedding_space)}")
        console.line(f"  sha256: {one_line(facts.sha256)}")
        for name, value in facts.card.items():
            if isinstance(value, Mapping):
                console.line(f"  {one_line(name)}:")
                for key, figure in value.items():
                    console.line(f"    {one_line(key)}: {one_line(str(figure))}")
            elif value:
                console.line(f"  {one_line(name)}: {one_line(str(value))}")
    for line in (entry.evaluation or "").splitlines():
        console.line(one_line(line))


def _record(entry: "Entry") -> dict[str, object]:
    return {
        "name": entry.name,
        "folder": entry.folder,
        "where": entry.where,
        "evaluation": entry.evaluation,
        "networks": {kind: dataclasses.asdict(facts) for kind, facts in entry.networks.items()},
        "errors": {kind: described(error) for kind, error in entry.errors.items()},
    }


evaluate_app = typer.Typer()


@evaluate_app.command(
    "evaluate",
    no_args_is_help=True,
    rich_help_panel="Use",
    epilog=examples(
        "s2f evaluate data/demo -o reports/demo",
        "s2f evaluate data/split --model runs/model --labels labels.csv --columns sex,age",
        "s2f evaluate --compare reports/demo reports/mine -o reports/both",
    ),
)
def _evaluate(
    ctx: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(
            help="A voice tree with a test split, or a folder of voices and faces.", metavar="DATA"
        ),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        option("Input", "Reports of two models, side by side.", "--compare", metavar="A B"),
    ] = None,
    split: Annotated[
        Literal["test", "val", "train"], option("Input", "test (default), val or train.", "--split")
    ] = "test",
    labels: Annotated[
        list[Path] | None,
        option("Input", "A csv of people (default: those in DATA); repeatable.", "--labels"),
    ] = None,
    columns: Annotated[
        str | None, option("Input", "Which labels (default: sex, age, ...).", "--columns")
    ] = None,
    per_identity: Annotated[
        int | None,
        option("Input", "Recordings and photos of a person (5).", "--per-identity", min=1),
    ] = None,
    model: ModelOpt = None,
    classifier: Annotated[
        Path | None,
        option("Model", "A face encoder with logits, for the VGGFace score.", "--classifier"),
    ] = None,
    detector: DetectorOpt = None,
    output: Annotated[
        Path, option("Output", "Folder of the report (default: report).", "--output", "-o")
    ] = Path("report"),
    overwrite: Annotated[bool, option("Output", "Replace a report there.", "--overwrite")] = False,
    device: DeviceOpt = "auto",
    precision: PrecisionOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Measure a model on people kept out of training: the papers' tables, as one page."""
    console = choose_console(ctx, as_json, quiet)
    if (data is None) == (compare is None):
        raise UsageError(
            "there is nothing to evaluate" if data is None else "both DATA and --compare are given",
            hint="name DATA, or give --compare A B",
        )
    if compare is not None:
        for name in ("labels", "columns", "per_identity", "model", "classifier", "detector"):
            if ctx.params[name]:
                raise UsageError(
                    f"--{name.replace('_', '-')} does not go with --compare",
                    hint="two reports are compared as they are",
                )
    from s2f import report

    report.check_new(output, overwrite=overwrite)
    if compare is not None:
        from s2f.report import compare_reports as side_by_side

        first, last = (report.read_report(path) for path in compare)
        made = side_by_side(first, last, str(compare[0]), str(compare[1]))
        _finish_evaluation(console, made, output, overwrite)
        return
    assert data is not None
    from s2f.checkpoint import choose
    from s2f.face_detection import installed_detector

    choice = choose(model or "demo")
    from s2f.checkpoint import load
    from s2f.evaluate import evaluate
    from s2f.face_detection import load_detector
    from s2f.pipeline import SpeechToFace

    # dlib needs nothing but its package; the other one is for who asks for it.
    finder = detector or ("dlib" if installed_detector() == "dlib" else None)
    networks = SpeechToFace.load(choice, device=device, precision=precision)
    with console.progress("evaluating") as progress:
        made = evaluate(
            networks,
            data,
            split=split,
            labels=labels or (),
            columns=[name.strip() for name in (columns or "").split(",") if name.strip()],
            classifier=load(classifier, "face_encoder") if classifier else None,
            detector=load_detector(finder, "cpu" if finder == "dlib" else device)
            if finder
            else None,
            progress=progress,
            **given(per_identity=per_identity),
        )
    _finish_evaluation(console, made, output, overwrite)


def _finish_evaluation(console: Console, made: "Report", output: Path, overwrite: bool) -> None:
    """Write a report, and tell where and what is in it."""
    from s2f.report import Table, show, to_json, write_report

    for path in write_report(made, output, overwrite=overwrite):
        console.line(path)
    for section in made.sections:
        for part in section.parts:
            if isinstance(part, Table):
                console.note(part.title)
                cells = [[*map(show, row, part.heads)] for row in part.rows]
                console.table(cells, part.heads)
    console.summary({"s2f": s2f.__version__, "output": output, **json.loads(to_json(made))})


class _Group(TyperGroup):
    """Turns errors that a user, a file or a machine caused into a report and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; whatever else goes wrong is a bug and keeps its traceback."""
        try:
            return super().invoke(ctx)
        except S2FError as error:
            (ctx.obj or Console()).error(error)
            raise typer.Exit(error.exit_code) from None
        except OSError as error:  # of a path that cannot even be looked at
            if error.filename is None:
                raise
            unreachable = InputError(
                f"{os.fsdecode(error.filename)}: cannot be reached: {error.strerror}",
                hint="check its name, and the permissions of the folders above it",
            )
            (ctx.obj or Console()).error(unreachable)
            raise typer.Exit(unreachable.exit_code) from None
        except KeyboardInterrupt:
            (ctx.obj or Console()).interrupted("interrupted; what was finished is kept")
            raise typer.Exit(INTERRUPTED) from None


def _version(wanted: bool) -> None:
    if wanted:
        Console().line(f"s2f {s2f.__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Group,
    pretty_exceptions_enable=False,
    help="Speech to face: prepare data, train, and generate the face that a voice suggests.",
    epilog="Start with: `s2f generate examples/speech.wav -o face.png`",
    **GROUP,
)
app.add_typer(use_app)
app.add_typer(page_app)
app.add_typer(evaluate_app)
app.add_typer(models_app)
cli_prep.app.add_typer(cli_prep.trees_app)
app.add_typer(cli_prep.app, name="prep", rich_help_panel="Prepare data")
app.add_typer(cli_convert.app, name="convert", rich_help_panel="Prepare data")
app.add_typer(cli_train.app, name="train", rich_help_panel="Train")


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the program: what the command `s2f` starts."""
    app(prog_name="s2f")
