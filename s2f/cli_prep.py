"""The commands `s2f prep ...`: data made file by file, then trees made of trees.

What the functions do not get has their own defaults.
"""

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from s2f.console import Console, described
from s2f.errors import InputError, S2FError, UsageError
from s2f.files import Link, by_suffix
from s2f.options import (
    GROUP,
    DeviceOpt,
    JsonOpt,
    QuietOpt,
    SeedOpt,
    WorkersOpt,
    choose_console,
    examples,
    finish,
    given,
    option,
)

if TYPE_CHECKING:
    from s2f.prep import Failure, PrepReport, Step
    from s2f.stores import Place

SHOWN = 20  # files with remarks

app = typer.Typer(
    help="Prepare training data. A run that was stopped goes on; what is up to date is kept.",
    **GROUP,
)

# Texts: paths, or URLs of object stores.
Folder = Annotated[
    str, typer.Argument(help="Folder, or URL, for the same tree, prepared.", metavar="OUT")
]
Photos = Annotated[str, typer.Argument(help="A folder of photos, or one; or a URL.", metavar="SRC")]
ReplaceOpt = Annotated[
    bool, option("Output", "Replace what it did not make, even SRC's own files.", "--overwrite")
]
FaceEncoderOpt = Annotated[Path, option("Model", "Its checkpoint (.safetensors).")]
EmbeddedOpt = Annotated[
    Path | None, option("Model", "Checkpoint of what makes embeddings.", "--face-encoder")
]
DetectorOpt = Annotated[
    Literal["dlib", "face-alignment"] | None,
    option("Model", "dlib or face-alignment (default: the first one installed)."),
]
ByOpt = Annotated[
    Path | None, option("Input", "csv of labels, and a column of identities. Ages become decades.")
]
ColumnsOpt = Annotated[str | None, option("Input", "Labels of --by, with commas between (all).")]
DryRunOpt = Annotated[bool, option("Run", "Change nothing; show what would be done.", "--dry-run")]
PreferOpt = Annotated[
    str | None,
    option("Input", "Of files that differ in their suffix only: wav, or m4a, for instance."),
]
ShardOpt = Annotated[
    str | None, option("Run", "i/n: the i-th of n parts, beside others; see s2f prep status.")
]
ExecutorOpt = Annotated[
    Literal["local", "ray"], option("Run", "Who works: this machine (local), or ray: a cluster.")
]
RayAddressOpt = Annotated[
    str | None, option("Run", "auto, or host:port of Ray's head (default: Ray is started here).")
]
LinkOpt = Annotated[Link | None, option("Output", "How files get there (hard).")]


class _Once(TyperCommand):
    """A command that has no shards, and says what to do instead."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse --shard with its cure; all else is as ever."""
        if any(arg.partition("=")[0] == "--shard" for arg in args):
            hint = "run it once, when s2f prep status finds all shards of its sources whole"
            raise UsageError(f"s2f prep {self.name} makes one thing, and no shards", hint=hint)
        return super().parse_args(ctx, args)


@app.command(
    "dataset",
    cls=_Once,
    no_args_is_help=True,
    epilog=examples(
        "s2f prep dataset my/faces my/voices data",
        "s2f prep dataset HQ-VoxCeleb VoxCeleb data --meta vox1_meta.csv --meta full_vox2_meta.csv",
        "s2f prep dataset faces voices data --face-encoder vgg.safetensors --pack --split 0.9,0.05",
    ),
)
def _dataset(
    ctx: typer.Context,
    faces: Annotated[Path, typer.Argument(help="Photos, a folder a person.", metavar="FACES")],
    voices: Annotated[Path, typer.Argument(help="Recordings, likewise.", metavar="VOICES")],
    out: Annotated[Path, typer.Argument(help="New folder for the data set.", metavar="OUT")],
    metas: Annotated[
        list[Path] | None,
        option("Input", "csv of VoxCeleb or VGGFace2 (those in or beside the folders).", "--meta"),
    ] = None,
    prefer: PreferOpt = None,
    by: ByOpt = None,
    columns: ColumnsOpt = None,
    split: Annotated[
        str | None, option("Run", "Shares of train and val (0.8,0.1), or SF2F's splits: sf2f.")
    ] = None,
    seed: SeedOpt = None,
    detector: DetectorOpt = None,
    face_encoder: EmbeddedOpt = None,
    pack: Annotated[bool, option("Output", "Pack it too, for quick training.", "--pack")] = False,
    link: LinkOpt = None,
    workers: WorkersOpt = None,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Do all that follows in one run: from photos and recordings to trees for training."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.dataset import prepare_dataset

    options = given(
        metas=metas,
        prefer=prefer,
        by=by,
        columns=_names_in(columns),
        shares=None if split is None else _shares(split),
        seed=seed,
        detector=detector,
        face_encoder=face_encoder,
        link=link,
        workers=workers,
    )
    with console.progress("preparing", "files") as progress:
        report = prepare_dataset(
            *(faces, voices, out),
            pack=pack,
            device=device,
            progress=progress,
            note=console.note,
            **options,
        )
    console.line(out / "split")
    if pack:
        console.line(out / "pack")
    amounts = [(name, of) for name, of in [*report.splits.items(), ("all", report.whole)]]
    rows = [
        [n, str(a.people), str(a.photos), str(a.recordings), f"{a.hours:.2f}"] for n, a in amounts
    ]
    console.table(rows, ["", "people", "photos", "recordings", "hours"])
    for why, names in report.people_left_out.items():
        _list(console, f"people left out, {why}", names)
    for what, suffixes in report.passed_over.items():
        if suffixes:
            console.note(f"passed over among the {what}: {by_suffix(suffixes)}")
    if report.remarks:
        console.note(f"remarks on {len(report.remarks)} recordings")
    _list(console, "files are made of what is gone: remove them, or begin anew", report.stale)
    console.note(f"all of it is told in {out / 'report.md'}")
    errors = [InputError(f"{one.file}: {one.why}", hint=one.hint) for one in report.files_left_out]
    of = report.whole
    total = of.photos + of.recordings + len(errors)
    finish(console, {"out": out, **dataclasses.asdict(report)}, errors, total)


def _shares(split: str) -> tuple[float, float | None] | Literal["sf2f"]:
    """Read `0.8` or `0.8,0.1`, where a third share may say what is left, or a rule's name."""
    if split == "sf2f":
        return "sf2f"
    try:
        train, *others = [float(Fraction(share)) for share in split.split(",")]
        if len(others) == 2 and Fraction(str(train)) + sum(map(Fraction, map(str, others))) != 1:
            raise ValueError
        if len(others) > 2:
            raise ValueError
    except (ValueError, ZeroDivisionError) as error:
        message = f"--split {split}: wanted shares of train and val, such as 0.8,0.1"
        raise UsageError(message, hint="what is left is for test; or give sf2f") from error
    return train, others[0] if others else None


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
        str, typer.Argument(help="A recording or video, or a folder; or a URL.", metavar="SRC")
    ],
    out: Folder,
    store: Annotated[
        Literal["waveform", "spectrogram"] | None,
        option("Output", "waveform: int16 (default); or spectrogram (with --preset)."),
    ] = None,
    preset: Annotated[
        Literal["paper", "seed", "ast", "speaker"] | None,
        option("Model", "Front end of spectrograms: paper, seed, ast or speaker."),
    ] = None,
    stats: Annotated[Path | None, option("Model", "Mean and std for ast, from prep stats.")] = None,
    trim_silence: Annotated[
        float | None, option("Input", "Cut ends this many dB below the loudest.", min=1)
    ] = None,
    track: Annotated[
        int | None, option("Input", "Sound track (the first that sounds).", min=1)
    ] = None,
    prefer: PreferOpt = None,
    workers: WorkersOpt = None,
    shard: ShardOpt = None,
    executor: ExecutorOpt = "local",
    ray_address: RayAddressOpt = None,
    overwrite: ReplaceOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Turn recordings (4 h at most) into waveforms at 16 kHz and -23 dBFS, or into spectrograms."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.prep_audio import audio_step

    store = store or ("spectrogram" if preset or stats else "waveform")
    options = given(preset=preset, stats=stats, trim_silence=trim_silence, track=track)
    step = audio_step(store=store, **options)
    _run(console, step, src, out, workers, overwrite, shard, executor, ray_address, prefer=prefer)


@app.command(
    "landmarks",
    help="Find the 68 landmarks of faces: NAME_landmarks.npy, beside the photos where OUT is SRC.",
    epilog=examples("s2f prep landmarks data/faces data/faces"),
)
@app.command(
    "faces",
    help="Find the largest face of each photo, align its eyes, and crop it to 224 x 224.",
    epilog=examples("s2f prep faces hq-voxceleb data/faces --detector dlib"),
)
def _detect(
    ctx: typer.Context,
    src: Photos,
    out: Folder,
    detector: DetectorOpt = None,
    workers: WorkersOpt = None,
    device: DeviceOpt = "auto",
    shard: ShardOpt = None,
    executor: ExecutorOpt = "local",
    ray_address: RayAddressOpt = None,
    overwrite: ReplaceOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    console = choose_console(ctx, as_json, quiet)
    from s2f.face_detection import choose_detector
    from s2f.prep_faces import faces_step, landmarks_step

    describe = faces_step if ctx.info_name == "faces" else landmarks_step
    step = describe(choose_detector(detector), device)
    _run(console, step, src, out, workers, overwrite, shard, executor, ray_address)


@app.command("resize", epilog=examples("s2f prep resize photos faces --size 224"))
def _resize(
    ctx: typer.Context,
    src: Photos,
    out: Folder,
    size: Annotated[
        int | None, option("Output", "Side, pixels (default 224).", min=16, max=4096)
    ] = None,
    workers: WorkersOpt = None,
    shard: ShardOpt = None,
    executor: ExecutorOpt = "local",
    ray_address: RayAddressOpt = None,
    overwrite: ReplaceOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Squash photos to a square, as they are framed."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.prep_faces import resize_step

    step = resize_step(**given(size=size))
    _run(console, step, src, out, workers, overwrite, shard, executor, ray_address)


@app.command(
    "embeddings", epilog=examples("s2f prep embeddings faces faces --face-encoder e.safetensors")
)
def _embeddings(
    ctx: typer.Context,
    src: Photos,
    out: Folder,
    face_encoder: FaceEncoderOpt,
    batch_size: Annotated[int | None, option("Run", "Photos at a time.", min=1)] = None,
    workers: WorkersOpt = None,
    device: DeviceOpt = "auto",
    shard: ShardOpt = None,
    executor: ExecutorOpt = "local",
    ray_address: RayAddressOpt = None,
    overwrite: ReplaceOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Embed framed photos: NAME_embedding.npy, beside the photos where OUT is SRC."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.prep_faces import embeddings_step

    is_here = executor == "local"
    step = embeddings_step(face_encoder, device, **given(batch_size=batch_size), is_here=is_here)
    _run(console, step, src, out, workers, overwrite, shard, executor, ray_address)


def _run(
    console: Console,
    step: "Step",
    src: str,
    out: str,
    workers: int | None,
    overwrite: bool,
    shard: str | None,
    executor: str,
    ray_address: str | None,
    *,
    prefer: str | None = None,
) -> None:
    """Prepare a tree, or a shard of it, and report what became of it."""
    if ray_address is not None and executor != "ray":
        raise UsageError("--ray-address is for --executor ray", hint="give both, or neither")
    from s2f.journal import StepShard
    from s2f.prep import prepare
    from s2f.stores import parse_place
    from s2f.workers import connected_to_ray

    source, target = (parse_place(text) for text in (src, out))
    options: dict[str, Any] = {"workers": workers, "overwrite": overwrite, "prefer": prefer}
    if shard is not None:
        options["shard"] = StepShard.parse(shard)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(console.progress(step.name, step.sources))
        if executor == "ray":
            progress(0, 0, "connecting to Ray" if ray_address else "starting Ray")
            cluster = stack.enter_context(connected_to_ray(ray_address, workers=workers))
            options["cluster"] = cluster
        report = prepare(step, source, target, progress=progress, **options)
    if report.made or report.skipped:
        console.line(report.out)
    result: dict[str, Any] = {"out": report.out}
    if report.shard:
        result["shard"] = str(report.shard)
    if step.name == "audio":  # whose notes are remarks
        result["remarks"] = report.notes
        for name, remarks in list(report.notes.items())[:SHOWN]:
            console.note(f"{name}: {'; '.join(remarks)}")
        if len(report.notes) > SHOWN:
            console.note(f"remarks on {len(report.notes) - SHOWN} files more: see --json")
    _report(console, report, source, result)


def _report(
    console: Console,
    report: "PrepReport",
    src: "Place",
    result: dict[str, Any],
    stale: str = "old outputs kept, whose sources went bad or away",
) -> None:
    """Tell what became of sources; a single one that failed exits with its own error."""
    failed, done = report.failed, report.made + report.skipped
    if failed and not src.is_dir():
        raise failed[0].error
    of = f"shard {report.shard}: " if report.shard else ""
    said = f"{of}made {report.made}, up to date {report.skipped}, failed {len(failed)}"
    _list(console, stale, report.stale)
    console.note(f"{said} in {report.seconds:.1f} s{_others(report.passed_over)}")
    result |= {"made": report.made, "skipped": report.skipped, "failed": _sources(failed)}
    result |= {"passed_over": report.passed_over, "stale": report.stale}
    errors = [one.error for one in failed]
    finish(console, {**result, "seconds": round(report.seconds, 3)}, errors, done + len(errors))


def _others(passed_over: Mapping[str, int]) -> str:
    """Tell of the files that were none for the command, at the end of a line."""
    return f"; passed over: {by_suffix(passed_over)}" if passed_over else ""


def _sources(failed: "Sequence[Failure]") -> list[dict[str, object]]:
    return [{"source": one.source, **described(one.error)} for one in failed]


@app.command("status", epilog=examples("s2f prep status data/voices"))
def _status(
    ctx: typer.Context,
    out: Annotated[
        str, typer.Argument(help="Folder, or URL, that shards are made in.", metavar="OUT")
    ],
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Add up what shards have done: exit code 0 if all is there, 1 if some is missing or failed.

    It asks the journals in OUT alone, from any machine and at any time. When it says that all is
    there, the same command without --shard makes one journal of them.
    """
    console = choose_console(ctx, as_json, quiet)
    from s2f.stores import parse_place, status_of

    steps = status_of(parse_place(out))
    for step in steps:
        has = f"{step.done} of {step.items} done, {step.failed} failed"
        console.line(f"{step.step}: {has}, {step.begun} begun, {step.missing} missing")
        left = [one for one in step.shards if one.state != "ended" or one.done != one.items]
        names = [field.name for field in dataclasses.fields(left[0])] if left else []
        rows = [[str(getattr(one, name)) for name in names] for one in left]
        console.table(rows[:SHOWN], names)
        if len(rows) > SHOWN:
            console.note(f"{len(rows) - SHOWN} shards more are not whole: see --json")
        _list(console, f"shards of {step.step} have not begun", step.absent)
        for name, why in list(step.failures.items())[:SHOWN]:
            console.note(f"{name}: {why}")
    console.summary({"out": out, "steps": [dataclasses.asdict(step) for step in steps]})
    if not all(step.is_whole for step in steps):
        raise typer.Exit(1)


@app.command(
    "names", cls=_Once, no_args_is_help=True, epilog=examples("s2f prep names data/faces --dry-run")
)
def _names(
    ctx: typer.Context,
    tree: Annotated[Path, typer.Argument(help="A folder an identity, or train, val and test.")],
    merge: Annotated[
        bool, option("Run", "Make one folder of those that get one name; see --dry-run.", "--merge")
    ] = False,
    dry_run: DryRunOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Rename identity folders to plain ASCII, by transliteration."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.names import rename_identities

    with console.progress("renaming", "folders") as progress:
        report = rename_identities(tree, merge=merge, dry_run=dry_run, progress=progress)
    for item in (*report.renamed, *report.merged):
        inside = item.parent.relative_to(tree)
        old = " + ".join(repr(str(inside / name)) for name in item.old)
        console.line(f"{old} -> {str(inside / item.new)!r}")
    does = "would be" if dry_run else "were"
    n_renamed, n_merged, n_plain = len(report.renamed), len(report.merged), report.unchanged
    console.note(f"{n_renamed} {does} renamed, {n_merged} {does} merged, {n_plain} are plain")
    _finish_tree(console, report, n_renamed + n_merged + n_plain)


def _finish_tree(console: Console, report: Any, done: int) -> None:
    result = {**dataclasses.asdict(report), "failed": [described(one) for one in report.failed]}
    finish(console, result, report.failed, done + len(report.failed))


@app.command(
    "pair",
    cls=_Once,
    no_args_is_help=True,
    epilog=examples(
        "s2f prep pair --faces HQ-VoxCeleb/vox1/masked_faces --voices vox1/wav"
        " --meta vox1_meta.csv data/pairs",
        "s2f prep pair --faces my/faces --voices my/voices data/pairs",
    ),
)
def _pair(
    ctx: typer.Context,
    out: Annotated[Path, typer.Argument(help="New folder, for IDENTITY/audios and /images.")],
    faces: Annotated[list[Path], option("Input", "Photos, a folder a person; may be repeated.")],
    voices: Annotated[list[Path], option("Input", "Recordings or .npy files; may be repeated.")],
    metas: Annotated[
        list[Path] | None,
        option("Input", "csv of VoxCeleb or VGGFace2; may be repeated.", "--meta"),
    ] = None,
    prefer: PreferOpt = None,
    link: LinkOpt = None,
    dry_run: DryRunOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Bring faces and voices of the same people together, by meta files or equal names."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.pair import pair_identities

    with console.progress("pairing", "files") as progress:
        options = given(metas=metas, prefer=prefer, link=link)
        report = pair_identities(faces, voices, out, dry_run=dry_run, progress=progress, **options)
    if dry_run:
        for pair in report.pairs:
            has = f"{pair.n_voices} voices, {pair.n_faces} files of faces"
            console.line(f"{pair.identity}: {has}, by {pair.how}")
    else:
        console.line(out)
    for name, counts in report.datasets.items():
        if any(counts.values()):
            console.note(f"{name}: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    left_out = defaultdict(list)
    for one in report.unmatched:
        left_out[f"{one.kind} folders left out, {one.why}"].append(one.name)
    for what, names in left_out.items():
        _list(console, what, names)
    _list(console, "in both VoxCelebs, made one", report.shared)
    _list(console, "different people of one name, kept apart", report.collisions)
    if report.passed_over:
        console.note(f"passed over: {by_suffix(report.passed_over)}")
    _finish_tree(console, report, report.made + report.kept)


@app.command(
    "split",
    cls=_Once,
    no_args_is_help=True,
    epilog=examples(
        "s2f prep split data/pairs data/split --train 0.8",
        "s2f prep split faces data/split --by people.csv --columns sex,age --link symlink",
    ),
)
def _split(
    ctx: typer.Context,
    tree: Annotated[Path, typer.Argument(help="A folder an identity.")],
    out: Annotated[Path, typer.Argument(help="New folder, for train, val and test.")],
    train: Annotated[
        float | None, option("Run", "Share of the identities (0.8).", min=0, max=1)
    ] = None,
    val: Annotated[float | None, option("Run", "Share (half of the rest).", min=0, max=1)] = None,
    by: ByOpt = None,
    columns: ColumnsOpt = None,
    seed: SeedOpt = None,
    link: LinkOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Split a tree into train, val and test by identity, stratified by labels."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.split import split_tree

    options = given(train=train, val=val, by=by, columns=_names_in(columns), seed=seed, link=link)
    with console.progress("splitting", "files") as progress:
        report = split_tree(tree, out, progress=progress, **options)
    for name, people in report.splits.items():
        console.line(f"{out / name} {len(people)}")
    if by:
        console.note(f"{len(report.strata)} strata")
        _list(console, "people without labels", report.unlabelled)
    _list(console, "rows without a folder", report.strangers)
    _list(console, "identities without a file", report.empty)
    _list(console, "files of no identity, left out", report.loose)
    _finish_tree(console, report, report.made + report.kept)


def _names_in(columns: str | None) -> list[str] | None:
    return None if columns is None else [name.strip() for name in columns.split(",")]


def _list(console: Console, what: str, names: Sequence[str], shown: int = 5) -> None:
    """Tell of some names, if there are any; --json has them all."""
    if names:
        more = ", ..." if len(names) > shown else ""
        console.note(f"{len(names)} {what}: {', '.join(names[:shown])}{more}")


@app.command("stats", cls=_Once, epilog=examples("s2f prep stats data/voices/train -o stats.json"))
def _stats(
    ctx: typer.Context,
    tree: Annotated[str, typer.Argument(help="Prepared waveforms, or recordings; or a URL.")],
    output: Annotated[
        Path, option("Output", "A .json file (default: stats.json).", "--output", "-o")
    ] = Path("stats.json"),
    prefer: PreferOpt = None,
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
    from s2f.stores import parse_place

    source = parse_place(tree)
    with console.progress("measuring", "files") as progress:
        options: dict[str, Any] = {"workers": workers, "overwrite": overwrite, "prefer": prefer}
        stats, report = log_mel_stats(source, output, progress=progress, **options)
    if stats:
        console.line(output)
    result = {"output": output, **dataclasses.asdict(stats)} if stats else {"output": None}
    _report(console, report, source, result, "files of an earlier run are gone")


@app.command(
    "pack",
    cls=_Once,
    epilog=examples(
        "s2f prep pack data/split data/pack --face-encoder encoder.safetensors",
        "s2f prep pack data/pack --verify",
    ),
)
def _pack(
    ctx: typer.Context,
    tree: Annotated[
        str, typer.Argument(help="A voice tree, or train, val and test of one.", metavar="TREE")
    ],
    out: Annotated[
        str | None, typer.Argument(help="Folder, or URL, for the pack.", metavar="OUT")
    ] = None,
    face_encoder: EmbeddedOpt = None,
    clip_seconds: Annotated[
        float | None, option("Output", "Of the clips (6).", min=0.5, max=600)
    ] = None,
    verify: Annotated[
        bool, option("Run", "Read all files of the pack again and check them.", "--verify")
    ] = False,
    workers: WorkersOpt = None,
    overwrite: Annotated[
        bool,
        option("Output", "Replace a pack of another tree or settings.", "--overwrite"),
    ] = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Pack waveforms and embeddings for quick training; with --verify and no OUT, check a pack."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.pack import pack_tree, verify_pack
    from s2f.stores import Store, parse_place

    if (out is None) == (face_encoder is not None) or (out is None and not verify):
        message = "packing takes TREE, OUT and --face-encoder; checking takes a pack and --verify"
        raise UsageError(message, hint="see s2f prep pack --help")
    result: dict[str, Any] = {}
    errors: list[S2FError] = []
    done = 0
    source = parse_place(tree)
    target = source if out is None else parse_place(out)
    if out is not None and face_encoder is not None:
        if isinstance(source, Store):
            hint = "copy it to a disk first; the pack may be written to a store from there"
            raise UsageError(
                f"{source}: is in a store, and a tree is packed from a disk", hint=hint
            )
        options = given(clip_seconds=clip_seconds, workers=workers)
        options |= {"face_encoder": face_encoder, "overwrite": overwrite}
        with console.progress("packing", "files") as progress:
            report = pack_tree(source, target, progress=progress, **options)
        console.line(out)
        has = f"{report.identities} identities, {report.clips} clips"
        console.note(f"{has}, {report.embeddings} embeddings{_others(report.passed_over)}")
        if report.unchecked:
            what = "embeddings without a photo: nothing tells who made them"
            console.note(f"{report.unchecked} {what}")
        result = {
            **dataclasses.asdict(report),
            "out": str(report.out),
            "failed": _sources(report.failed),
        }
        errors, done = [one.error for one in report.failed], report.identities
    if verify:
        with console.progress("checking", "files") as progress:
            checked = verify_pack(target, progress=progress)
        console.note(f"{checked.files} files checked, {len(checked.damaged)} damaged")
        errors += checked.damaged
        done += checked.files - len(checked.damaged)
        result["damaged"] = [described(error) for error in checked.damaged]
    finish(console, result, errors, done + len(errors))


@app.command(
    "index",
    cls=_Once,
    epilog=examples(
        "s2f prep index data/split",
        "s2f prep index data/split --face-encoder vgg.safetensors",
        "s2f prep index data/split --verify",
    ),
)
def _index(
    ctx: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder of train, val and test.", metavar="DATA")],
    face_encoder: Annotated[
        Path | None, option("Input", "Also find who looks alike, by embeddings of this one.")
    ] = None,
    verify: Annotated[
        bool, option("Run", "Make nothing: read the index again and check it.", "--verify")
    ] = False,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Look at all landmarks once, so that training on faces starts without: for large trees.

    What it finds is written to DATA/.s2f/index; training uses it while no folder has changed. With
    a face encoder, whose embeddings are there, morphs' neighbours are found too. Training compares
    its files with their hashes, but for those of more than 128 MiB, which --verify does.
    """
    console = choose_console(ctx, as_json, quiet)
    from s2f.device import choose_device
    from s2f.face_data import index_faces, verify_index
    from s2f.prep_faces import maker_of, read_space

    if verify:
        if face_encoder is not None:
            hint = "give one of the two, or one after the other"
            raise UsageError("--verify makes nothing, and takes no --face-encoder", hint=hint)
        with console.progress("checking", "files") as progress:
            checked = verify_index(data, progress=progress)
        console.note(f"{checked.files} files checked, {len(checked.damaged)} damaged")
        result = {"damaged": [described(error) for error in checked.damaged]}
        finish(console, result, list(checked.damaged), checked.files)
        return

    on, maker, space = choose_device(device), None, ""
    if face_encoder is not None:
        maker, space = maker_of(face_encoder, on), read_space(face_encoder).sha256
    with console.progress("indexing") as progress:
        report = index_faces(data, maker, space, device=on, progress=progress)
    for name, n in report.photos.items():
        has = f"{n:,} photos, {report.landmarks[name]:,} with landmarks, of"
        console.note(f"{name}: {has} {report.people[name]:,} people")
    if maker is not None:
        console.note(f"{report.alike:,} photos of train know whom they are like")
    console.line(report.data / ".s2f" / "index")
    console.summary(dataclasses.asdict(report))


@app.command(
    "demo",
    epilog=examples(
        "s2f prep demo sources/faces sources/voices speaker.safetensors data/demo --more others"
    ),
)
def _demo(
    ctx: typer.Context,
    faces: Annotated[Path, typer.Argument(help="people.csv and a folder a person.")],
    voices: Annotated[Path, typer.Argument(help="speakers.csv and a folder a reader.")],
    speaker: Annotated[Path, typer.Argument(help="What s2f convert resemblyzer has written.")],
    out: Annotated[Path, typer.Argument(help="New folder for the training trees.")],
    more: Annotated[
        Path | None, option("Run", "speakers.csv of recordings by other people, and these.")
    ] = None,
    identities: Annotated[int | None, option("Run", "Synthetic people.", min=1)] = None,
    seed: SeedOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Make the training trees of the bundled model from its sources."""
    console = choose_console(ctx, as_json, quiet)
    from s2f import demo

    with console.progress("preparing", "identities") as progress:
        report = demo.prepare_demo(
            *(faces, voices, speaker, out),
            progress=progress,
            **given(more=more, identities=identities, seed=seed),
        )
    console.line(report.out)
    console.summary(dataclasses.asdict(report))
