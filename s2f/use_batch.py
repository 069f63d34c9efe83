"""What `s2f generate` and `s2f reconstruct` do once it is known what they draw, and how."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import s2f
from s2f.batch import FACE, PICTURES, Find, Outcome, Product, is_batch, plan, run
from s2f.console import Console, described
from s2f.errors import InputError, OutputError, S2FError, UsageError
from s2f.options import PARTLY_FAILED, given
from s2f.runtime import Progress, atomic_write, ended_by_sigterm, lasting_imports
from s2f.workers import keep_memory

if TYPE_CHECKING:
    from PIL.Image import Image

    from s2f.face import Face
    from s2f.infer import SpeechToFace
    from s2f.sheets import ContactSheet

FRAMES = 24  # of a morph, unless others are asked for
FRAME_SECONDS = 0.06

Params = Mapping[str, Any]
Faces = Callable[["SpeechToFace", Iterable[Path], Progress], "Iterator[Face | InputError]"]


def draw(
    console: Console,
    params: Params,
    sources: Sequence[Path],
    find: Find,
    kinds: Sequence[str],
    faces: Faces,
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
    networks = functools.cache(functools.partial(load, params, kinds))
    wanted = [name for name in ("landmarks", "embedding", "compare") if params.get(name)]
    planned = plan(
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
        for outcome in run(make, planned, overwrite=overwrite, skip=many, progress=progress):
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
    model = load(params, ("voice_encoder", "face_decoder"))
    from s2f.face import facts
    from s2f.images import FRAME
    from s2f.sheets import animate

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


def load(params: Params, kinds: Sequence[str]) -> "SpeechToFace":
    """Load the networks of some kinds, as the options of a command say it."""
    from s2f.catalogue import KINDS, choose

    files = given(**{kind: params.get(kind) for kind in KINDS})
    # Checks the files while torch is imported, which takes longer.
    choice = choose(params["model"] or "demo", kinds, files=files)
    with lasting_imports():
        from s2f.infer import SpeechToFace
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

    from s2f.alignment import open_face
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
    from s2f.face import facts
    from s2f.images import FRAME, encode
    from s2f.sheets import compare

    size = params["size"] or FRAME
    contents = {FACE: face.encoded(suffix, size=size)}
    if "landmarks" in wanted:
        contents["landmarks"] = face.encoded(suffix, size=size, overlay=True)
    if "embedding" in wanted:
        contents["embedding"] = face.encoded_embedding()
    if "compare" in wanted:
        sheet = compare([*columns, ("from the voice", face.sized(size))])
        contents["compare"] = encode(sheet, suffix, facts(model.model.name, "speech and a photo"))
    return Product(contents, face.clips)


def _plan_sheet(params: Params, n: int) -> "ContactSheet":
    from s2f.sheets import ContactSheet

    _check_new(params["sheet"], params["overwrite"], PICTURES)
    return ContactSheet(n)


def _lay_out(sheet: "ContactSheet", outcomes: Sequence[Outcome], params: Params) -> list[S2FError]:
    """Lay all faces that there are on the sheet, and write it; return what cannot be read."""
    from s2f.face import facts
    from s2f.images import encode, open_photo

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
