"""Many sources, some files each.

`plan` names the files of every recording or photo before anything is made, and refuses two that
would fall together; `run` has them made, skips what is up to date, and goes on past sources that
cannot be used. What a file holds is the caller's to say.

What `s2f generate` and `s2f reconstruct` do once it is known what they draw, and how.
"""

import dataclasses
import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import s2f
from s2f.console import Console, Progress, described, silent
from s2f.device import ended_by_sigterm, lasting_imports
from s2f.errors import InputError, OutputError, S2FError, UsageError
from s2f.files import atomic_write
from s2f.options import PARTLY_FAILED, given
from s2f.prep import keep_memory

if TYPE_CHECKING:
    from PIL.Image import Image

    from s2f.pipeline import Face, SpeechToFace
    from s2f.visualize import ContactSheet


PICTURES = (".png", ".jpg", ".webp")
FACE = "face"  # what a source is first of all made into
STDIN, RECORDED = Path("-"), Path("<microphone>")
LIVE = {
    STDIN: "stdin",
    RECORDED: "recording",
}  # sources that are no files, and what is made of them

Find = Callable[[Sequence[Path]], list[Path]]


@dataclass(frozen=True)
class Outcome:
    """What became of one source of a batch.

    Attributes:
        source: the recording or photo.
        files: what was written, was there already, or would have been: paths by what they hold,
            `FACE` first. Empty where there is no such source.
        status: `planned`; then `made`, `skipped` (there already, and newer than the source) or
            `failed`.
        error: why it failed.
        clips: clips of speech that were averaged.
        seconds: that it took.
    """

    source: Path
    files: Mapping[str, Path] = field(default_factory=dict)
    status: str = "planned"
    error: S2FError | None = None
    clips: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Product:
    """What was made of one source.

    Attributes:
        contents: of its files, by what they hold.
        clips: clips of speech that were averaged.
    """

    contents: Mapping[str, bytes]
    clips: int = 0


MakeFaces = Callable[[Iterable[Path], Progress], Iterator[Product | InputError]]
"""Get ready, then make each of some sources, in order; tell the progress within them."""


def plan_outputs(
    sources: Sequence[Path],
    output: Path | None,
    find: Find,
    *,
    suffix: str | None = None,
    endings: Mapping[str, str] | None = None,
    sheet: Path | None = None,
    inputs: Sequence[Path] = (),
) -> list[Outcome]:
    """Decide which source becomes which files, before anything is made.

    A file that is named twice is made once, and what an earlier run wrote in a folder is not read.
    A file NAME.* becomes NAME.png in the output folder (by default the current one), a folder's
    files keep their places below it; where two would become the same picture, both keep their
    suffix (NAME.wav.png). One source may also be given its picture's own name. Other files lie
    beside the picture.

    Args:
        sources: files and folders, or one of `LIVE`.
        output: a picture's name for one source, or a folder.
        find: lists the files of a folder, and refuses what is not there.
        suffix: of the pictures; by default that of `output`, or .png.
        endings: what else is written: what it holds, and what is put in the place of the
            picture's suffix. One without a suffix gets the picture's.
        sheet: a file that is made of all of them.
        inputs: files that are read besides.

    Returns:
        One outcome a source: `planned`, or `failed` where `find` refused.

    Raises:
        UsageError: if the output is neither a picture nor a folder, one file would be made of
            several sources, or in the place of one that is read.
    """
    found: list[tuple[Path, Path] | Outcome] = []
    known: set[str] = set()
    for source in dict.fromkeys(sources):
        try:
            if source in LIVE:
                found.append((source, Path()))
                continue
            for path in find([source]):
                inside = path.relative_to(source).parent if source.is_dir() else Path()
                place = os.path.abspath(path)  # noqa: PTH100 (a link is a file of its own)
                if place not in known and not _is_ours(path, source, output, sheet):
                    known.add(place)
                    found.append((path, inside))
        except InputError as error:
            found.append(Outcome(source, status="failed", error=error))
    named = _is_picture(output, suffix)
    if named and is_batch(sources):
        raise UsageError(
            f"{output}: is one picture, but there may be several recordings or photos",
            hint="give a folder to -o",
        )
    suffix = suffix or (output.suffix.lower() if named and output else PICTURES[0])
    folder = Path() if output is None else output
    places = [folder / f[1] / f"{_stem(f[0])}{suffix}" for f in found if isinstance(f, tuple)]
    crowd = Counter(str(place).casefold() for place in places)  # some file systems fold case
    outcomes = []
    for item in found:
        if isinstance(item, tuple):
            path, inside = item
            target = output if named and output else folder / inside / f"{_stem(path)}{suffix}"
            if crowd[str(target).casefold()] > 1:
                target = target.with_name(f"{path.name}{suffix}")
            files = {what: _beside(target, end) for what, end in (endings or {}).items()}
            item = Outcome(path, {FACE: target, **files})
        outcomes.append(item)
    _refuse_collisions(outcomes, sheet)
    _refuse_loss(outcomes, sheet, inputs)
    return outcomes


def is_batch(sources: Sequence[Path]) -> bool:
    """Tell whether sources are more than one file."""
    return len(set(sources)) > 1 or (sources[0] not in LIVE and sources[0].is_dir())


def _is_picture(output: Path | None, suffix: str | None) -> bool:
    """Tell whether an output names one picture, and not a folder."""
    if output is None or os.path.isdir(output):
        return False
    if not (output.suffix or os.path.exists(output)):
        return False
    seen = ".jpg" if output.suffix.lower() == ".jpeg" else output.suffix.lower()
    if seen not in PICTURES:
        raise UsageError(
            f"{output}: is neither a .png, .jpg or .webp file nor a folder",
            hint="give -o NAME.png for one picture, or a folder; make one with a dot first",
        )
    if suffix not in (None, seen):
        raise UsageError(
            f"{output}: does not end as --format {suffix and suffix[1:]} does",
            hint="the ending alone is enough: leave --format out",
        )
    return True


def _stem(source: Path) -> str:
    return LIVE.get(source, source.stem)


def _is_ours(path: Path, source: Path, output: Path | None, sheet: Path | None) -> bool:
    """Tell whether an earlier run put a file into the folder it was found in: the source."""
    if path == source:
        return False
    real, top = os.path.realpath(path), os.path.realpath(source)
    ours = [os.path.realpath(place) for place in (output, sheet) if place is not None]
    below = (place for place in ours if place.startswith(top + os.sep))
    return any(real == place or real.startswith(place + os.sep) for place in below)


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(f"{target.stem}{ending if '.' in ending else ending + target.suffix}")


def _refuse_collisions(planned: Sequence[Outcome], sheet: Path | None) -> None:
    makers: dict[str, object] = {str(sheet).casefold(): "all of them"} if sheet else {}
    for item in planned:
        for path in item.files.values():
            other = makers.setdefault(str(path).casefold(), item.source)
            if other != item.source:
                raise UsageError(
                    f"{path}: would be made of both {other} and {item.source}",
                    hint="give the folder above both, so that the tree is mirrored, or rename one",
                )


def _refuse_loss(planned: Sequence[Outcome], sheet: Path | None, inputs: Sequence[Path]) -> None:
    """Refuse to write what is read, by whatever name."""
    read = [item.source for item in planned if item.source not in LIVE]
    known = {_identity(path) for path in [*read, *inputs]} - {None}
    for path in [
        *(p for item in planned for p in item.files.values()),
        *([sheet] if sheet else []),
    ]:
        if _identity(path) in known:
            raise UsageError(
                f"{path}: is read, and would be written too", hint="give another place with -o"
            )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def make_files(
    make: MakeFaces,
    planned: Sequence[Outcome],
    *,
    overwrite: bool = False,
    skip: bool = True,
    progress: Progress = silent,
) -> Iterator[Outcome]:
    """Have the planned files made, going on past sources and places that cannot be used.

    Args:
        make: makes what is planned; it is asked for nothing if all is there.
        planned: as `plan` returns them.
        overwrite: whether a file that is there already is replaced, instead of refused.
        skip: whether files that are newer than their source are kept, and only others made,
            instead of refused: for batches.
        progress: told of each source; of what happens within it where there is only one.

    Yields:
        What became of each source, as soon as it is known, in order.
    """
    looked = [item if item.error else _look(item, overwrite, skip) for item in planned]
    wanted = [item for item in looked if item.status == "planned"]
    done = 0

    def tell(part: int, parts: int, what: str) -> None:
        if len(planned) == 1:
            progress(part, parts, what)
        else:
            progress(done, len(planned), what)

    products = make((item.source for item in wanted), tell) if wanted else iter(())
    for item in looked:
        progress(*((0, 1) if len(planned) == 1 else (done, len(planned))), item.source.name)
        if item.status == "planned":
            item = _made(item, products, overwrite)
        yield item
        done += 1
    progress(len(planned), len(planned), "done")


def _look(item: Outcome, overwrite: bool, skip: bool) -> Outcome:
    """Find what of an item is there already."""
    there = [path for path in item.files.values() if os.path.lexists(path)]
    if overwrite or not there:
        return item
    if skip and item.source not in LIVE:
        oldest = min(path.lstat().st_mtime for path in there)
        if oldest >= item.source.stat().st_mtime:
            return replace(item, status="skipped") if len(there) == len(item.files) else item
    error = UsageError(
        f"{there[0]}: exists already",
        hint="give --overwrite to replace it, or another place with -o",
    )
    return replace(item, status="failed", error=error)


def _made(item: Outcome, products: Iterator[Product | InputError], overwrite: bool) -> Outcome:
    """Take what was made of an item, and write what is not there and up to date."""
    started = time.perf_counter()
    product = next(products)
    if isinstance(product, InputError):
        return replace(item, status="failed", error=product)
    try:
        for what, path in item.files.items():
            if overwrite or not os.path.lexists(path):
                with atomic_write(path) as file:
                    file.write(product.contents[what])
    except OutputError as error:
        return replace(item, status="failed", error=error)
    seconds = time.perf_counter() - started
    return replace(item, status="made", clips=product.clips, seconds=seconds)


FRAMES = 24  # of a morph, unless others are asked for
FRAME_SECONDS = 0.06

Params = Mapping[str, Any]
FacesOf = Callable[["SpeechToFace", Iterable[Path], Progress], "Iterator[Face | InputError]"]


def draw_and_report(
    console: Console,
    params: Params,
    sources: Sequence[Path],
    find: Find,
    kinds: Sequence[str],
    faces: FacesOf,
) -> None:
    """Make the files of each source, report them, and exit with what became of them.

    Args:
        console: to report to.
        params: the options, by name.
        sources: files, folders, or `STDIN`.
        find: lists the files of a folder, and refuses what is not there.
        kinds: of the networks that are needed.
        faces: draws the faces of sources with them.
    """
    started = time.perf_counter()
    networks = functools.cache(functools.partial(load_networks, params, kinds))
    wanted = [name for name in ("landmarks", "embedding", "compare") if params.get(name)]
    planned = plan_outputs(
        sources,
        params["output"],
        find,
        suffix=params["format"] and f".{params['format']}",
        endings={name: "_embedding.npy" if name == "embedding" else f"_{name}" for name in wanted},
        sheet=params["sheet"],
        inputs=[params["compare"]] if params.get("compare") else [],
    )
    suffix = next((item.files[FACE].suffix for item in planned if item.files), "")
    sheet = _plan_sheet(params, len(planned)) if params["sheet"] else None

    def make(paths: Iterable[Path], tell: Progress) -> Iterator[Product | InputError]:
        model = networks()
        product = functools.partial(
            _product, model, params, wanted, suffix, _columns(model, params)
        )
        drawn = faces(model, paths, tell)
        return (f if isinstance(f, InputError) else product(f) for f in drawn)

    many = is_batch(sources)
    outcomes = []
    with console.progress("drawing", "files" if many else "clips") as progress, ended_by_sigterm():
        overwrite = params["overwrite"]
        for outcome in make_files(make, planned, overwrite=overwrite, skip=many, progress=progress):
            outcomes.append(outcome)
            if outcome.status == "made":
                for path in outcome.files.values():
                    console.line(path)
            elif outcome.status == "skipped":
                face = outcome.files[FACE]
                console.note(f"skipped {outcome.source}: {face} is there, and newer")
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if errors and len(outcomes) == 1:
        raise errors[0]
    shown = None
    if sheet is not None:
        errors += _lay_out(sheet, outcomes, params)
        if sheet.added and not any(isinstance(error, OutputError) for error in errors):
            shown = params["sheet"]
            console.line(shown)
    model = networks() if networks.cache_info().currsize else None
    _sum_up(
        console,
        model,
        started,
        sheet=shown,
        results=[_record(outcome) for outcome in outcomes],
    )
    if errors:
        console.failures(errors, len(outcomes))
        raise typer.Exit(PARTLY_FAILED)


def draw_morph(console: Console, params: Params, cut: Mapping[str, Any]) -> None:
    """Animate from the face of one voice to that of another, and report it."""
    started = time.perf_counter()
    first, last = params["morph"]
    n = params["frames"] or FRAMES
    target = params["output"] or Path("morph.webp")
    if target.is_dir():
        target /= "morph.webp"
    _check_new(target, params["overwrite"], (".webp",))
    for path in (first, last):
        if target.exists() and path.exists() and target.samefile(path):
            raise UsageError(f"{target}: is read, and would be written too", hint="give another -o")
    model = load_networks(params, ("voice_encoder", "face_decoder"))
    from s2f.images import FRAME
    from s2f.pipeline import facts
    from s2f.visualize import animate

    with console.progress("listening", "clips") as progress, ended_by_sigterm():
        ends = [model.embed_voice(path, progress=progress, **cut) for path in (first, last)]
    with console.progress("drawing", "frames") as progress, ended_by_sigterm():

        def pictures() -> "Iterator[Image]":
            for k, face in enumerate(model.morph(ends[0], ends[1], n)):
                progress(k, n, target.name)
                yield face.sized(params["size"] or FRAME)

        text = facts(model.model.name, "speech of two recordings")
        content = animate(pictures(), seconds=FRAME_SECONDS * n, text=text)
    with atomic_write(target) as file:
        file.write(content)
    console.line(target)
    _sum_up(console, model, started, sources=[first, last], morph=target, frames=n)


def load_networks(params: Params, kinds: Sequence[str]) -> "SpeechToFace":
    """Load the networks of some kinds, as the options of a command say it."""
    from s2f.checkpoint import KINDS, choose

    files = given(**{kind: params.get(kind) for kind in KINDS})
    # Checks the files while torch is imported, which takes longer.
    choice = choose(params["model"] or "demo", kinds, files=files)
    with lasting_imports():
        from s2f.pipeline import SpeechToFace
    keep_memory(largest=2**27, spare=2**27)

    return SpeechToFace.load(choice, device=params["device"], precision=params["precision"])


def _check_new(path: Path, overwrite: bool, suffixes: Sequence[str]) -> None:
    """Make sure that a file may be written.

    Raises:
        UsageError: if it is there already, a folder, or does not end as it should.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder", hint="give the name of a file")
    if path.suffix.lower() not in suffixes:
        raise UsageError(
            f"{path}: does not end in {' or '.join(suffixes)}", hint="give it such a name"
        )
    if not overwrite and path.exists():
        raise UsageError(
            f"{path}: exists already", hint="give --overwrite to replace it, or another name"
        )


def _columns(model: "SpeechToFace", params: Params) -> list[Any]:
    """The columns of `--compare` that all its sheets share: the photo, and the face from it."""
    if not params.get("compare"):
        return []
    from PIL import Image

    from s2f.face_detection import open_face
    from s2f.images import FRAME

    photo = open_face(params["compare"], align=params["align"], detector=params["detector"])
    face = model.reconstruct(photo, align=False)
    size = params["size"] or FRAME
    photo = photo.resize((size, size), Image.Resampling.LANCZOS)
    return [("photo", photo), ("from the photo", face.sized(size))]


def _product(
    model: "SpeechToFace",
    params: Params,
    wanted: Sequence[str],
    suffix: str,
    columns: Sequence[Any],
    face: "Face",
) -> Product:
    """Encode all that is wanted of a face."""
    from s2f.images import FRAME, encode
    from s2f.pipeline import facts
    from s2f.visualize import side_by_side

    size = params["size"] or FRAME
    contents = {FACE: face.encoded(suffix, size=size)}
    if "landmarks" in wanted:
        contents["landmarks"] = face.encoded(suffix, size=size, overlay=True)
    if "embedding" in wanted:
        contents["embedding"] = face.encoded_embedding()
    if "side_by_side" in wanted:
        sheet = side_by_side([*columns, ("from the voice", face.sized(size))])
        contents["side_by_side"] = encode(
            sheet, suffix, facts(model.model.name, "speech and a photo")
        )
    return Product(contents, face.clips)


def _plan_sheet(params: Params, n: int) -> "ContactSheet":
    from s2f.visualize import ContactSheet

    _check_new(params["sheet"], params["overwrite"], PICTURES)
    return ContactSheet(n)


def _lay_out(sheet: "ContactSheet", outcomes: Sequence[Outcome], params: Params) -> list[S2FError]:
    """Lay all faces that there are on the sheet, and write it; return what cannot be read."""
    from s2f.images import encode, open_photo
    from s2f.pipeline import facts

    path, folder = params["sheet"], params["output"] or Path()
    faces = [outcome.files[FACE] for outcome in outcomes if outcome.status in ("made", "skipped")]
    errors: list[S2FError] = []
    for face in faces:
        name = face.relative_to(folder) if folder in face.parents else Path(face.name)
        try:
            sheet.add(str(name.with_suffix("")), open_photo(face))
        except InputError as error:
            errors.append(error)
    text = facts(params["model"] or "demo", "speech or photos")
    try:
        if sheet.added:
            with atomic_write(path) as file:
                file.write(encode(sheet.image(), path.suffix, text))
    except OutputError as error:
        errors.append(error)
    return errors


def _sum_up(
    console: Console, model: "SpeechToFace | None", started: float, **record: object
) -> None:
    """Print what was made as JSON, if that was asked for."""
    checkpoints = model.model.checkpoints if model else {}
    console.summary(
        {
            "s2f": s2f.__version__,
            "model": model
            and {
                "name": model.model.name,
                "device": str(model.device),
                "precision": model.precision,
                "cards": {kind: dataclasses.asdict(c.card) for kind, c in checkpoints.items()},
            },
            "seconds": round(time.perf_counter() - started, 3),
            **record,
        },
    )


def _record(outcome: Outcome) -> dict[str, object]:
    error = outcome.error
    return {
        "source": outcome.source,
        **{name: outcome.files.get(name) for name in (FACE, "landmarks", "embedding", "compare")},
        "status": outcome.status,
        "clips": outcome.clips,
        "seconds": round(outcome.seconds, 3),
        "error": error and described(error),
    }
