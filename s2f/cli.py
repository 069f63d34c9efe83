"""The command line: parse, call one function of the library, report, exit.

Here is the root: `s2f` itself, what an error exits with, and the commands that use a model. The
groups of commands are `cli_prep`, `cli_convert` and `cli_train`; what all share is in `options`.

No command knows how anything is done, and importing these modules imports neither torch nor any
module that does: each command imports what it needs, so that `s2f --help` answers at once.
"""

import dataclasses
import errno
import json
import os
import textwrap
import threading
import webbrowser
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

import s2f
from s2f import cli_convert, cli_prep, cli_train
from s2f import generate as jobs
from s2f.app_server import MAX_MB, MAX_SECONDS
from s2f.console import Console, count, described, duration, hush_libraries, one_line, size
from s2f.device import end_by_signals, keep_memory, shortage
from s2f.errors import CheckpointError, DependencyError, InputError, S2FError, UsageError
from s2f.files import FULL, by_suffix, put_away, unwritable
from s2f.options import (
    GIVEN,
    GROUP,
    INTERRUPTED,
    DeviceOpt,
    JsonOpt,
    OverwriteOpt,
    QuietOpt,
    choose_console,
    examples,
    finish,
    gather,
    given,
    option,
)

if TYPE_CHECKING:
    from s2f.checkpoint import Entry, Facts

WHERE = "A picture for one file, or a folder"
OPEN = """whoever reaches this machine reaches the page; browsers record only on this machine \
itself or over https, and take files everywhere"""


# What is wrong with a path that cannot even be looked at, and not with the program or the machine.
UNREACHABLE = [errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE]
UNREACHABLE += [errno.ENOENT, errno.ENOTDIR]


def _is_given(path: str, parameters: Mapping[str, object]) -> bool:
    """Tell whether a path is one of a command's parameters, or below or above one."""
    lists = [v if isinstance(v, list | tuple) else [v] for v in parameters.values()]
    values = [value for values in lists for value in values if isinstance(value, str | Path)]
    own, given = Path(path).absolute(), [Path(value).absolute() for value in values]
    return bool(path) and any(own in (one, *one.parents) or one in own.parents for one in given)


def _caused(error: Exception, parameters: Mapping[str, object]) -> S2FError | None:
    """Say what the machine, or a path that a command was given, has caused; None for a bug."""
    if (short := shortage(error)) or not isinstance(error, OSError):
        return short
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    if error.errno in FULL:
        return unwritable(path or "a file", error)
    if error.errno in UNREACHABLE and _is_given(path, parameters):
        hint = "check its name, and the permissions of the folders above it"
        return InputError(f"{path}: cannot be reached: {error.strerror}", hint=hint)
    return None


class _Group(TyperGroup):
    """Turns errors that a user, a file or a machine caused into a report and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; whatever else goes wrong is a bug and keeps its traceback."""
        try:
            return super().invoke(ctx)
        except S2FError as error:
            failure = error
        except Exception as error:
            if (caused := _caused(error, ctx.meta.get(GIVEN, {}))) is None:
                raise
            failure = caused
        except KeyboardInterrupt:
            (ctx.obj or Console()).interrupted("interrupted; what was finished is kept")
            raise typer.Exit(INTERRUPTED) from None
        (ctx.obj or Console()).error(failure)
        raise typer.Exit(failure.exit_code)


app = typer.Typer(
    cls=_Group,
    pretty_exceptions_enable=False,
    help="Speech to face: prepare data, train, and generate the face that a voice suggests.",
    epilog="Start with: `s2f generate examples/speech.wav -o face.png`",
    **GROUP,
)


def main() -> None:
    """Run the program: what the command `s2f` starts."""
    hush_libraries()
    # torchrun hands on to a process of several what the terminal has sent to that already. RANK
    # may be another's: jobs of clusters have it too, whatever they run.
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        end_by_signals(put_away)
    app(prog_name="s2f")


def _version(wanted: bool) -> None:
    if wanted:
        Console().line(f"s2f {s2f.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _sources(what: str, name: str) -> Any:
    help = f"{what}, folders of them, or - for standard input."
    return typer.Argument(help=help, metavar=name, readable=False)


ModelOpt = Annotated[str | None, option("Model", "A name that s2f models knows, or a folder.")]
OwnOpt = Annotated[Path | None, option("Model", "In the place of the model's.", metavar="FILE")]
DetectorOpt = Annotated[
    Literal["face-alignment", "dlib"] | None,
    option("Input", "Of faces: dlib or face-alignment."),
]
AlignOpt = Annotated[bool, option("Input", "Find and frame the face in a photo (default), or not.")]
PrecisionOpt = Annotated[
    Literal["fp32", "tf32", "bf16", "fp16"] | None, option("Run", "fp32 (a GPU: the files' own).")
]
OutputOpt = Annotated[
    Path | None,
    option("Output", f"{WHERE} (default: this one) that mirrors the input's.", "--output", "-o"),
]
FormatOpt = Annotated[
    Literal["png", "jpg", "webp"] | None, option("Output", "Of the pictures (png).")
]
SizeOpt = Annotated[int | None, option("Output", "Side, pixels.", min=16, max=4096)]
LandmarksOpt = Annotated[bool, option("Output", "Also NAME_landmarks, marked.", "--landmarks")]
EmbeddingOpt = Annotated[bool, option("Output", "Also NAME_embedding.npy.", "--embedding")]
SheetOpt = Annotated[Path | None, option("Output", "Also all faces on one sheet.", metavar="FILE")]


@app.command(
    "generate",
    no_args_is_help=True,
    rich_help_panel="Use",
    epilog=examples(
        "s2f generate examples/speech.wav -o face.png",
        "s2f generate recordings -o faces --landmarks --sheet sheet.png",
        "s2f generate recordings -o faces --shard 3/64",
        "s2f generate recordings -o faces --devices 2",
        "s2f generate examples/speech.wav --start 2 --duration 6 -o part.webp --size 448",
        "s2f generate --record 6 --live -o me.png",
        "s2f generate --morph examples/speech.wav recordings/ann/hello.wav -o morph.webp",
    ),
)
def generate(
    ctx: typer.Context,
    *,
    speech: Annotated[list[Path] | None, _sources("Recordings, videos", "SPEECH")] = None,
    record: Annotated[float | None, option("Input", "Record so many seconds.")] = None,
    live: Annotated[
        bool,
        option("Output", "With --record: the face as it forms, here or in NAME_frames.", "--live"),
    ] = False,
    start: Annotated[float, option("Input", "Where speech starts in a recording, seconds.")] = 0.0,
    duration: Annotated[
        float | None, option("Input", "Of the speech, seconds (all, 4 h at most).")
    ] = None,
    trim_silence: Annotated[
        float | None, option("Input", "Cut ends this many dB below the loudest.")
    ] = None,
    track: Annotated[
        int | None, option("Input", "Sound track (the first that sounds).", min=1)
    ] = None,
    detector: DetectorOpt = None,
    align: AlignOpt = True,
    model: ModelOpt = None,
    voice_encoder: OwnOpt = None,
    face_encoder: OwnOpt = None,
    face_decoder: OwnOpt = None,
    output: OutputOpt = None,
    format: FormatOpt = None,
    size: SizeOpt = None,
    landmarks: LandmarksOpt = False,
    embedding: EmbeddingOpt = False,
    compare: Annotated[
        Path | None, option("Output", "Also NAME_compare: this photo, its face, the voice's.")
    ] = None,
    sheet: SheetOpt = None,
    morph: Annotated[
        tuple[Path, Path] | None, option("Output", "From A's face to B's.", metavar="A B")
    ] = None,
    frames: Annotated[
        int | None, option("Output", f"Of --morph (default: {jobs.FRAMES}).", min=2, max=500)
    ] = None,
    overwrite: OverwriteOpt = False,
    shard: Annotated[
        str | None, option("Run", "i/n: the i-th of n parts of the faces, beside others.")
    ] = None,
    devices: Annotated[int, option("Run", "Devices here to draw on together.", min=1)] = 1,
    device: DeviceOpt = "auto",
    precision: PrecisionOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Generate the face that speech suggests: an average impression, never a likeness.

    Shards may run at once, on machines that share OUT, be killed and repeated. When all have ended,
    the same command without --shard makes what is left, the sheet, and the report of the whole.
    """
    console = choose_console(ctx, as_json, quiet)
    from s2f.journal import StepShard

    part = None if shard is None else StepShard.parse(shard)
    _draw(console, gather(ctx, jobs.GenerateOptions, sources=speech or (), shard=part))


@app.command(
    "reconstruct",
    no_args_is_help=True,
    rich_help_panel="Use",
    epilog=examples(
        "s2f reconstruct photo.jpg -o face.png --no-align",
        "s2f reconstruct photos -o faces --size 448 --no-align",
    ),
)
def reconstruct(
    ctx: typer.Context,
    *,
    photo: Annotated[list[Path], _sources("Photos of faces", "PHOTO")],
    detector: DetectorOpt = None,
    align: AlignOpt = True,
    model: ModelOpt = None,
    face_encoder: OwnOpt = None,
    face_decoder: OwnOpt = None,
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
    """Draw the face of a photo from its embedding: what the decoder makes of it at best."""
    console = choose_console(ctx, as_json, quiet)
    _draw(console, gather(ctx, jobs.GenerateOptions, sources=photo, photos=True))


def _draw(console: Console, options: jobs.GenerateOptions) -> None:
    """Make the pictures of all sources, report them, and exit with what became of them."""
    results: list[dict[str, object]] = []
    errors: list[S2FError] = []
    n = Counter[str]()
    ending = None
    show = console.show if options.live and console.can_show() else None
    unit = "files" if options.is_batch else "frames" if options.morph else "clips"
    with console.progress("drawing", unit) as progress:
        for item in jobs.run(options, progress=progress, note=console.note, show=show):
            if isinstance(item, jobs.Ending):
                ending = item
                continue
            n[item.status] += 1
            if console.mode == "json":
                results.append(_result(item))
            if item.error:
                errors.append(item.error)
            elif item.status == "made":
                for path in item.files.values():
                    console.line(path)
            else:
                console.note(f"skipped {item.source}: {item.files[jobs.FACE]} is there, the same")
            for remark in item.remarks:
                console.note(f"{item.source}: {remark}")
    assert ending
    if options.is_batch or options.shard:
        of = f"shard {options.shard}: " if options.shard else ""
        said = f"{of}made {n['made']}, kept {n['skipped']}, failed {n['failed']}"
        others = ending.passed_over
        more = f"; passed over: {by_suffix(others)}" if others else ""
        console.note(f"{said} in {duration(ending.seconds)}{more}")
    if errors and n.total() == 1:
        raise errors[0]
    if ending.written:
        console.line(ending.written)
    if ending.kept:
        console.note(f"skipped {ending.kept}: it is there, the same")
    for remark in ending.remarks:
        console.note(remark)
    errors += ending.errors
    if console.mode != "json" and not errors:
        return
    seconds = round(ending.seconds, 3)
    told: dict[str, Any] = {"s2f": s2f.__version__, "model": ending.model or None}
    told |= {"seconds": seconds} | ({"shard": str(options.shard)} if options.shard else {})
    if options.morph:
        told |= {"sources": options.morph, "morph": ending.written or ending.kept}
        told |= {"frames": options.frames or jobs.FRAMES, "remarks": ending.remarks}
    else:
        told |= {"sheet": ending.written or ending.kept, "passed_over": ending.passed_over}
        told |= {"results": results, "remarks": ending.remarks}
    finish(console, told, errors, n.total())


def _result(outcome: jobs.Outcome) -> dict[str, object]:
    return {
        "source": outcome.source,
        **{name: outcome.files.get(name) for name in (jobs.FACE, *jobs.ENDINGS)},
        "frames": outcome.frames,
        "status": outcome.status,
        "clips": outcome.clips,
        "voice": {name: round(value, 3) for name, value in outcome.voice.items()},
        "remarks": outcome.remarks,
        "seconds": round(outcome.seconds, 3),
        "error": outcome.error and described(outcome.error),
    }


@app.command(
    "app",
    rich_help_panel="Use",
    epilog=examples(
        "s2f app", "s2f app --open --model runs/m", "s2f app --host 0.0.0.0 --port 0 --models runs"
    ),
)
def _app(
    ctx: typer.Context,
    host: Annotated[str, option("Run", "Address (127.0.0.1: this machine alone).")] = "127.0.0.1",
    port: Annotated[int, option("Run", "Port (7860); 0: any free.", min=0, max=65535)] = 7860,
    root_path: Annotated[str, option("Run", "Where a proxy has the page, such as /s2f.")] = "",
    browser: Annotated[bool, option("Run", "Open the page in the browser.", "--open")] = False,
    max_mb: Annotated[float, option("Input", "Of a file, MB (25).", min=0.1, max=1000)] = MAX_MB,
    max_seconds: Annotated[
        float, option("Input", "Heard of a recording, seconds (60).", min=1, max=600)
    ] = MAX_SECONDS,
    align: AlignOpt = True,
    detector: DetectorOpt = None,
    model: ModelOpt = None,
    models: Annotated[
        Path | None, option("Model", "Offer every model in this folder, too.", metavar="DIR")
    ] = None,
    voice_encoder: OwnOpt = None,
    face_encoder: OwnOpt = None,
    face_decoder: OwnOpt = None,
    device: DeviceOpt = "auto",
    precision: PrecisionOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Serve a web page that shows the face while you speak. Ctrl-C ends it."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.app import offered, serving
    from s2f.app_server import Settings, check_settings, is_here_alone, listen
    from s2f.face_detection import choose_detector

    settings = check_settings(gather(ctx, Settings))
    if align and detector:
        choose_detector(detector)
    files = given(voice_encoder=voice_encoder, face_encoder=face_encoder, face_decoder=face_decoder)
    how: dict[str, Any] = {"device": device, "precision": precision, "note": console.note}
    offer = offered(model or "demo", models, files=files, **how)
    keep_memory(largest=2**22, spare=2**25)  # a server lives long, and has many threads
    try:
        with listen(settings) as listening:
            with serving(offer, settings, listening, console.note) as url:
                if not is_here_alone(settings.host):
                    console.note(OPEN)
                console.line(url)
                console.note("Ctrl-C ends it")
                told: dict[str, object] = {"s2f": s2f.__version__, "url": url}
                told |= {"models": list(offer), "max_mb": max_mb, "max_seconds": max_seconds}
                console.summary(told)
                if browser:
                    webbrowser.open(url)
                threading.Event().wait()
    except KeyboardInterrupt:
        console.note("closed; nothing of its visitors is kept")
        raise typer.Exit(INTERRUPTED) from None


@app.command(
    "evaluate",
    no_args_is_help=True,
    rich_help_panel="Use",
    epilog=examples(
        "s2f evaluate data/demo -o reports/demo",
        "s2f evaluate data/split --model runs/model --labels labels.csv --columns sex,age",
        "s2f evaluate data/split --model runs/model --protocol oh -o reports/oh",
        "s2f evaluate --dataset hq-voxceleb VoxCeleb --model runs/model -o reports/hq",
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
        option("Input", "Reports of two models, side by side.", metavar="A B"),
    ] = None,
    dataset: Annotated[
        Literal["hq-voxceleb", "hq-voxceleb-cmu"] | None,
        option(
            "Input", "DATA is this data set as downloaded: SF2F's splits, or CMU's (names A-E)."
        ),
    ] = None,
    protocol: Annotated[
        Literal["oh", "sf2f", "wen", "ours"] | None,
        option("Input", "Whose measures: oh, sf2f, wen or ours (default: all four)."),
    ] = None,
    split: Annotated[
        Literal["test", "val", "train"], option("Input", "test (default), val or train.")
    ] = "test",
    labels: Annotated[
        list[Path] | None, option("Input", "A csv of people (default: those in DATA); repeatable.")
    ] = None,
    columns: Annotated[str | None, option("Input", "Which labels (sex, age, ...).")] = None,
    per_identity: Annotated[int | None, option("Input", "Files of a person (5).", min=1)] = None,
    model: ModelOpt = None,
    classifier: Annotated[Path | None, option("Model", "VGG-Face, for the VGGFace score.")] = None,
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
    if compare is None and data is None:
        hint = "name DATA, or give --compare A B"
        raise UsageError("there is nothing to evaluate", hint=hint)
    own = (
        "data",
        "dataset",
        "protocol",
        "labels",
        "columns",
        "per_identity",
        "model",
        "classifier",
        "detector",
    )
    for name in own:
        if compare and ctx.params[name]:
            named = "DATA" if name == "data" else f"--{name.replace('_', '-')}"
            hint = "two reports are compared as they are"
            raise UsageError(f"{named} does not go with --compare", hint=hint)
    import s2f.report as report

    report.check_new(output, overwrite=overwrite)
    if compare:
        first, last = map(report.read_report, compare)
        made = report.compare_reports(first, last, *map(str, compare))
    else:
        assert data
        from s2f.checkpoint import load
        from s2f.evaluate import evaluate, evaluate_dataset
        from s2f.face_detection import installed_detector, load_detector
        from s2f.pipeline import SpeechToFace

        networks = SpeechToFace.load(model or "demo", device=device, precision=precision)
        # dlib needs nothing but its package; the other one is for who asks for it.
        finder = detector or ("dlib" if installed_detector() == "dlib" else None)
        with console.progress("evaluating") as progress:
            chosen = given(protocols=protocol and [protocol], per_identity=per_identity)
            chosen |= {
                "split": split,
                "labels": labels or (),
                "columns": [name.strip() for name in (columns or "").split(",") if name.strip()],
                "classifier": load(classifier, "face_encoder") if classifier else None,
                "detector": finder and load_detector(finder, "cpu" if finder == "dlib" else device),
                "progress": progress,
            }
            if dataset:
                made = evaluate_dataset(networks, dataset, data, framing=detector, **chosen)
            else:
                made = evaluate(networks, data, **chosen)
    for path in report.write_report(made, output, overwrite=overwrite):
        console.line(path)
    for part in (part for section in made.sections for part in section.parts):
        if isinstance(part, report.Table):
            console.note(part.title)
            heads, cells = report.shown(part)
            console.table(cells, heads)
    told = json.loads(report.to_json(made))
    console.summary({"s2f": s2f.__version__, "output": output, **told})


@app.command(
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
    rows = []
    for entry in entries:
        if model:
            _show(console, entry)
            continue
        console.line(entry.name)
        for kind, facts in entry.networks.items():
            licence = textwrap.shorten(str(facts.card.get("licence", "")), 20, placeholder=" ...")
            figures = count(facts.parameters), size(facts.n_bytes)
            rows.append((entry.name, entry.where, kind, *figures, licence))
        rows += [(entry.name, entry.where, kind, "", "", "damaged") for kind in entry.errors]
    console.table(rows, ("model", "where", "network", "parameters", "size", "licence"))
    for error in () if model else errors:
        console.note(error.message)
    n_files = sum(len(entry.networks) + len(entry.errors) for entry in entries)
    if model and errors and n_files == 1:
        raise errors[0]
    listed = []
    for entry in entries:
        failed = {kind: described(error) for kind, error in entry.errors.items()}
        listed.append({**dataclasses.asdict(entry), "errors": failed})
    told = {"s2f": s2f.__version__, "cache": checkpoint.cache(), "models": listed}
    finish(console, told, errors if model else [], n_files)


def _show(console: Console, entry: "Entry") -> None:
    """Print what the files of a model say, cards and all; escaped, for strangers wrote it."""
    console.line(f"{entry.name} ({entry.where}): {entry.folder}")
    lines = []
    for kind, facts in entry.networks.items():
        figures = f"{count(facts.parameters)} parameters, {size(facts.n_bytes)}, {facts.storage}"
        lines += ["", f"{kind}: {figures}"]
        lines += [f"  embedding space: {facts.embedding_space}", f"  sha256: {facts.sha256}"]
        for name, value in facts.card.items():
            if isinstance(value, Mapping):
                lines.append(f"  {name}:")
                lines += [f"    {key}: {figure}" for key, figure in value.items()]
            elif value:
                lines.append(f"  {name}: {value}")
    for line in [*lines, *(entry.evaluation or "").splitlines()]:
        console.line(one_line(line))


@app.command(
    "verify",
    no_args_is_help=True,
    rich_help_panel="Use",
    epilog=examples(
        "s2f verify runs/voice/best.safetensors", "s2f verify models/pietkun models/mine"
    ),
)
def _verify(
    ctx: typer.Context,
    file: Annotated[
        list[Path], typer.Argument(help="Checkpoints, or folders of them.", metavar="FILE")
    ],
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Check that checkpoints are whole and can be used: every value hashed, and a number.

    The networks of a model folder must also have been made for one face encoder.
    """
    console = choose_console(ctx, as_json, quiet)
    from s2f import checkpoint

    groups = {
        source: sorted(source.glob("*.safetensors")) if source.is_dir() else [source]
        for source in dict.fromkeys(file)
    }
    total = sum(map(len, groups.values()))
    found: list[tuple[Path, Facts | S2FError]] = []
    with console.progress("verifying", "files") as progress:
        for source, paths in groups.items():
            model = []
            for path in paths:
                progress(len(found), total, str(path))
                try:
                    facts = checkpoint.verify(path)
                except (CheckpointError, DependencyError) as error:  # AST wants a package
                    found.append((path, error))
                else:
                    found.append((path, facts))
                    console.line(f"{path}: ok: {facts.kind}, sha256 {facts.sha256[:12]}")
                    if path.stem == facts.kind:
                        model.append(facts)
            try:
                checkpoint.check_space(model)
                if not paths:
                    hint = "give .safetensors files, or the folder that they are in"
                    raise CheckpointError(f"{source}: holds no checkpoints", hint=hint)
            except CheckpointError as error:
                found.append((source, error))
    errors = [what for _, what in found if isinstance(what, S2FError)]
    results = [
        {"path": path, "status": "failed", "error": described(what)}
        if isinstance(what, S2FError)
        else {**dataclasses.asdict(what), "status": "ok", "error": None}
        for path, what in found
    ]
    if errors and len(results) == 1:
        raise errors[0]
    finish(console, {"s2f": s2f.__version__, "results": results}, errors, len(results))


app.add_typer(cli_prep.app, name="prep", rich_help_panel="Prepare data")
app.add_typer(cli_convert.app, name="convert", rich_help_panel="Prepare data")
app.add_typer(cli_train.app, name="train", rich_help_panel="Train")
