"""Recordings or photos in, pictures out: the work of `s2f generate` and `s2f reconstruct`.

`run` names the files of every source before anything is made, loads the networks if anything is
missing, and goes on past sources that cannot be used. What to draw, from what and to where comes as
`GenerateOptions`. Knows nothing of networks or of what is printed.
"""

import functools
import gc
import io
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2f.console import Progress, silent
from s2f.errors import InputError, OutputError, S2FError, UsageError
from s2f.files import write_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

    from s2f.pipeline import Face, Framing, Part, SpeechToFace
    from s2f.visualize import ContactSheet

    Columns = list[tuple[str, Image]]  # of a comparison: captions and pictures
    Faces = Iterator[Face | InputError]

PICTURES = (".png", ".jpg", ".webp")
FACE = "face"  # what a source is first of all made into
ENDINGS = {"landmarks": "_landmarks", "embedding": "_embedding.npy", "compare": "_compare"}
STDIN, RECORDED = Path("-"), Path("<microphone>")
LIVE = {STDIN: "stdin", RECORDED: "recording"}  # sources that are no files, and what they become
FRAMES, FRAME_SECONDS = 24, 0.06  # of a morph
Note = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """What is drawn, from what, with what, and what is written: the options of the commands.

    Raises a UsageError if there is not one thing to draw from, or options have no use for it.
    """

    sources: Sequence[Path] = ()  # recordings, or photos, folders of them, or `STDIN`
    photos: bool = False
    record: float | None = None  # seconds from the microphone, in the place of sources
    morph: tuple[Path, Path] | None = None  # recordings, in the place of sources
    start: float = 0.0  # of the part of a recording that is heard, seconds
    duration: float | None = None
    trim_silence: float | None = None  # dB below the loudest
    align: bool = True
    detector: str | None = None
    model: str | None = None  # name or folder; None for the bundled one
    voice_encoder: Path | None = None  # these three: in the place of the model's
    face_encoder: Path | None = None
    face_decoder: Path | None = None
    device: str = "auto"
    precision: str | None = None
    output: Path | None = None  # a picture's name for one source, or a folder
    format: str | None = None  # without a dot; None for that of `output`, or png
    size: int | None = None  # side of the pictures, pixels; None for 224
    landmarks: bool = False
    embedding: bool = False
    compare: Path | None = None  # a photo
    sheet: Path | None = None
    frames: int | None = None  # of the morph
    overwrite: bool = False
    is_batch: bool = field(init=False)  # whether there may be more than one source

    def __post_init__(self) -> None:
        given = {"speech": self.sources, "record": self.record is not None, "morph": self.morph}
        ways = [way for way, is_given in given.items() if is_given]
        if len(ways) != 1:
            hint = "name recordings, or give --record SECONDS, or --morph A B"
            found = " and ".join(ways) or "nothing"
            raise UsageError(f"there is {found} to generate a face from", hint=hint)
        how = "with" if self.morph else "without"
        pictures = ("format", "landmarks", "embedding", "compare", "sheet")
        for name in pictures if self.morph else ("frames",):
            if getattr(self, name):
                raise UsageError(f"--{name} does not go {how} --morph", hint=f"leave --{name} out")
        if not self.photos and self.compare is None and (self.detector or not self.align):
            message = "--detector and --no-align are for the photo of --compare"
            raise UsageError(message, hint="leave them out")
        files = [source for source in self.sources if source not in LIVE]
        is_batch = len(set(self.sources)) > 1 or any(map(os.path.isdir, files))
        object.__setattr__(self, "is_batch", is_batch)

    @property
    def part(self) -> "Part":
        """The part of recordings that is heard."""
        return {"start": self.start, "duration": self.duration, "trim_silence": self.trim_silence}

    @property
    def framing(self) -> "Framing":
        """How faces are found in photos."""
        return {"align": self.align, "detector": self.detector}


@dataclass(frozen=True)
class Outcome:
    """What became of one source, a recording or a photo."""

    source: Path
    files: Mapping[str, Path] = field(default_factory=dict)  # by what they hold, `FACE` first
    status: str = "planned"  # then `made`, `skipped` (there, and newer than the source) or `failed`
    error: S2FError | None = None
    clips: int = 0  # of speech, that were averaged
    seconds: float = 0.0  # that it took


@dataclass(frozen=True)
class Ending:
    """What a run leaves, when all its sources are done."""

    seconds: float  # that it took
    model: "SpeechToFace | None"  # that drew; None if there was nothing to draw
    written: Path | None = None  # the sheet or the morph
    errors: Sequence[S2FError] = ()  # why faces are not on the sheet, or it was not written


def run(
    options: GenerateOptions, *, progress: Progress = silent, note: Note = lambda text: None
) -> Iterator[Outcome | Ending]:
    """Draw the face of each source and write its files, then the sheet of all; or animate a morph.

    Yields what became of each source, in order, as soon as it is known; last how it ended.
    `progress` is told of each source, or of what happens within the only one, and `note` when the
    microphone listens. Raises a UsageError as `plan_outputs`, or for a part, sheet or morph that
    cannot be, and first of all what is wrong with model, device, detector, photo or morphed voices.
    """
    started = time.perf_counter()
    if options.start or (options.duration, options.trim_silence) != (None, None):
        from s2f.audio import check_part

        check_part(**options.part)
    if options.record is not None:
        from s2f.audio import check_seconds

        check_seconds(options.record)
    if options.align and (options.photos or options.compare):
        from s2f.face_detection import choose_detector

        choose_detector(options.detector)
    if options.morph:
        yield Ending(time.perf_counter() - started, *_animate(options, options.morph, progress))
        return
    planned = plan_outputs(options)
    model, sheet = None, None
    if options.sheet:
        from s2f.visualize import ContactSheet

        _check_new(options.sheet, options, PICTURES)
        sheet = ContactSheet(len(planned))
    wanted = [item.source for item in planned if item.status == "planned"]
    is_single = len(planned) == 1  # then its clips are what progress tells
    columns: Columns = []
    faces: Faces = iter(())
    if wanted:
        model = _load(options)
        columns = _columns(model, options)
        faces = _draw(model, wanted, options, progress if is_single else silent, note)
    done: list[Outcome] = []
    for item in planned:
        if not is_single:
            progress(len(done), len(planned), item.source.name)
        if item.status == "planned":
            item = _make(item, faces, options, columns)
        done.append(item)
        yield item
    written, errors = _write_sheet(sheet, done, options) if sheet else (None, [])
    yield Ending(time.perf_counter() - started, model, written, errors)


def plan_outputs(options: GenerateOptions) -> list[Outcome]:
    """Decide which source becomes which files, and which are there, before anything is made.

    A file that is named twice is made once, and what an earlier run wrote in a folder is not read.
    A file NAME.* becomes NAME.png in the output folder (by default the current one), a folder's
    files keep their places below it; where two would become the same picture, both keep their
    suffix (NAME.wav.png). One source may also be given its picture's own name. Other files lie
    beside the picture. The outcomes are `planned`, `skipped`, or `failed` where there is no such
    source, or what it would become. Raises a UsageError if the output is neither a picture nor a
    folder, one file would be made of several sources, or in the place of one that is read.
    """
    suffix, named = _suffix(options)
    folder = options.output or Path()
    ours = [place.resolve() for place in (options.output, options.sheet) if place]
    known: set[str] = set()
    found: list[tuple[Path, Path | InputError]] = []  # sources and their pictures
    sources = [RECORDED] if options.record is not None else options.sources
    if options.photos:
        from s2f.layout import find_photos as find
    else:
        from s2f.audio import find_recordings as find

    for source in dict.fromkeys(sources):
        try:
            paths = [source] if source in LIVE else find([source])
        except InputError as error:
            found.append((source, error))
            continue
        top = source.resolve()
        inner = [place for place in ours if top in place.parents]  # where earlier runs wrote
        for path in paths:
            place = os.path.abspath(path)  # noqa: PTH100 (a link is a file of its own)
            if place in known or any(path.resolve().is_relative_to(own) for own in inner):
                continue
            known.add(place)
            inside = path.relative_to(source).parent if path != source else Path()
            name = f"{LIVE.get(path, path.stem)}{suffix}"
            found.append((path, named or folder / inside / name))
    crowd = Counter(str(target).casefold() for _, target in found)  # some file systems fold case
    planned = []
    for path, target in found:
        if isinstance(target, InputError):
            planned.append(Outcome(path, status="failed", error=target))
            continue
        if crowd[str(target).casefold()] > 1:
            target = target.with_name(f"{path.name}{suffix}")
        files = {FACE: target}
        for what, ending in ENDINGS.items():
            if getattr(options, what):
                ending = ending if "." in ending else ending + target.suffix
                files[what] = target.with_name(f"{target.stem}{ending}")
        planned.append(Outcome(path, files))
    written: list[tuple[object, Path]] = [("all of them", options.sheet)] if options.sheet else []
    written += [(item.source, path) for item in planned for path in item.files.values()]
    read = (*dict(found), options.compare)
    _refuse_loss(written, [path for path in read if path and path not in LIVE])
    return [_look(item, options) for item in planned]


def _suffix(options: GenerateOptions) -> tuple[str, Path | None]:
    """Find the suffix of the pictures, and the picture that the output names, if it names one."""
    output, wanted = options.output, options.format and f".{options.format}"
    if output is None or os.path.isdir(output) or not (output.suffix or os.path.exists(output)):
        return wanted or PICTURES[0], None
    seen = ".jpg" if output.suffix.lower() == ".jpeg" else output.suffix.lower()
    if seen not in PICTURES:
        hint = "give -o NAME.png for one picture, or a folder; make one with a dot first"
        raise UsageError(f"{output}: is neither a .png, .jpg or .webp file nor a folder", hint=hint)
    if wanted not in (None, seen):
        hint = "the ending alone is enough: leave --format out"
        raise UsageError(f"{output}: does not end as --format {options.format}", hint=hint)
    if options.is_batch:
        hint = "there may be several recordings or photos: give a folder to -o"
        raise UsageError(f"{output}: is one picture", hint=hint)
    return seen, output


def _refuse_loss(written: Sequence[tuple[object, Path]], read: Iterable[Path]) -> None:
    """Refuse two files of one name, each behind its maker, and to write what is read."""
    known = set(map(_identity, read)) - {None}
    makers: dict[str, object] = {}
    for maker, path in written:
        other = makers.setdefault(str(path).casefold(), maker)
        if other != maker:
            hint = "give the folder above both, so that the tree is mirrored, or rename one"
            raise UsageError(f"{path}: would be made of both {other} and {maker}", hint=hint)
        if _identity(path) in known:
            raise UsageError(f"{path}: is read, and would be written too", hint="give another -o")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _look(item: Outcome, options: GenerateOptions) -> Outcome:
    """Find what of an item is there already: a batch skips it if it is newer than its source."""
    there = [path for path in item.files.values() if os.path.lexists(path)]
    if options.overwrite or not there:
        return item
    if options.is_batch and item.source not in LIVE:
        oldest = min(path.lstat().st_mtime for path in there)
        if oldest >= item.source.stat().st_mtime:
            return replace(item, status="skipped") if len(there) == len(item.files) else item
    hint = "give --overwrite to replace it, or another place with -o"
    return replace(
        item, status="failed", error=UsageError(f"{there[0]}: exists already", hint=hint)
    )


def _check_new(path: Path, options: GenerateOptions, suffixes: Sequence[str]) -> None:
    """Refuse to write a folder, what is there already, or what does not end as it should."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder", hint="give the name of a file")
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{path}: does not end in {' or '.join(suffixes)}", hint="rename it")
    if not options.overwrite and path.exists():
        raise UsageError(f"{path}: exists already", hint="give --overwrite, or another name")


def _load(options: GenerateOptions) -> "SpeechToFace":
    """Load the networks that the options need; raises as `SpeechToFace.load`."""
    kinds = ["face_encoder" if options.photos else "voice_encoder", "face_decoder"]
    if options.compare:
        kinds.append("face_encoder")
    every = ("voice_encoder", "face_encoder", "face_decoder")
    files = {kind: path for kind in every if (path := getattr(options, kind))}
    gc.disable()  # of torch nothing is garbage: to look for it, now and in the end, takes 0.5 s
    from s2f.pipeline import SpeechToFace

    gc.enable()
    gc.freeze()
    model, device, precision = options.model or "demo", options.device, options.precision
    return SpeechToFace.load(model, device=device, precision=precision, kinds=kinds, files=files)


def _columns(model: "SpeechToFace", options: GenerateOptions) -> "Columns":
    """The columns of `--compare` that all its sheets share: the photo, and the face from it."""
    if not options.compare:
        return []
    from PIL.Image import Resampling

    from s2f.face_detection import open_face

    photo = open_face(options.compare, **options.framing)
    face = model.reconstruct(photo, align=False).sized(options.size)
    return [("photo", photo.resize(face.size, Resampling.LANCZOS)), ("from the photo", face)]


def _draw(
    model: "SpeechToFace",
    sources: Sequence[Path],
    options: GenerateOptions,
    progress: Progress,
    note: Note,
) -> "Faces":
    """Draw the face of each source, or say what is wrong with it."""
    opened = [_opened(source, options, progress, note) for source in sources]
    if not options.photos:
        yield from model.generate_all(opened, progress=progress, **options.part)
        return
    for source, photo in zip(sources, opened, strict=True):
        progress(0, 1, source.name)
        try:
            yield model.reconstruct(photo, **options.framing)
        except InputError as error:
            yield error


def _opened(source: Path, options: GenerateOptions, progress: Progress, note: Note) -> Any:
    """Give what is read for a source: standard input, the microphone, or the file itself."""
    if source == STDIN:
        if sys.stdin is None:
            raise UsageError("standard input is closed", hint="pipe something into it")
        return sys.stdin.buffer
    if options.record is None:
        return source
    from s2f.audio import record

    once = functools.cache(note)

    def tell(done: int, total: int, what: str) -> None:
        once(f"{what}, {options.record:g} s: speak now")  # by now it does record
        progress(done, total, what)

    return record(options.record, progress=tell)


def _make(item: Outcome, faces: "Faces", options: GenerateOptions, columns: "Columns") -> Outcome:
    """Draw the face of an item, and write what is not there and up to date."""
    started = time.perf_counter()
    face = next(faces)
    if isinstance(face, InputError):
        return replace(item, status="failed", error=face)
    try:
        for what, path in item.files.items():
            if options.overwrite or not os.path.lexists(path):
                write_bytes(path, _encoded(face, what, path.suffix, options.size, columns))
    except OutputError as error:
        return replace(item, status="failed", error=error)
    return replace(item, status="made", clips=face.clips, seconds=time.perf_counter() - started)


def _encoded(face: "Face", what: str, suffix: str, size: int | None, columns: "Columns") -> bytes:
    """Encode one of the files of a face."""
    if what == "embedding":
        import numpy as np

        buffer = io.BytesIO()
        np.save(buffer, face.embedding)
        return buffer.getvalue()
    if what == "compare":
        from s2f.images import encode
        from s2f.pipeline import provenance
        from s2f.visualize import side_by_side

        shown = side_by_side([*columns, ("from the voice", face.sized(size))])
        return encode(shown, suffix, provenance(face.model, "speech and a photo"))
    return face.encoded(suffix, size=size, overlay=what == "landmarks")


def _write_sheet(
    sheet: "ContactSheet", done: Sequence[Outcome], options: GenerateOptions
) -> tuple[Path | None, list[S2FError]]:
    """Lay all faces that there are on the sheet; return where it is written, and what is wrong."""
    from s2f.images import encode, open_photo
    from s2f.pipeline import provenance

    assert options.sheet
    folder = options.output or Path()
    errors: list[S2FError] = []
    for face in (item.files[FACE] for item in done if item.status in ("made", "skipped")):
        name = face.relative_to(folder) if folder in face.parents else Path(face.name)
        try:
            sheet.add(str(name.with_suffix("")), open_photo(face))
        except InputError as error:
            errors.append(error)
    text = provenance(options.model or "demo", "speech or photos")
    try:
        if sheet.added:
            write_bytes(options.sheet, encode(sheet.image(), options.sheet.suffix, text))
            return options.sheet, errors
    except OutputError as error:
        errors.append(error)
    return None, errors


def _animate(
    options: GenerateOptions, voices: tuple[Path, Path], progress: Progress
) -> "tuple[SpeechToFace, Path]":
    """Write an animated WebP; progress is told of each clip that is heard, then of each frame."""
    target = options.output or Path("morph.webp")
    if target.is_dir():
        target /= "morph.webp"
    _check_new(target, options, (".webp",))
    _refuse_loss([("the recordings", target)], voices)
    model = _load(options)
    from s2f.pipeline import provenance
    from s2f.visualize import animate

    embed = functools.partial(model.embed_voice, progress=progress, **options.part)
    first, last = map(embed, voices)
    n = options.frames or FRAMES

    def pictures() -> "Iterator[Image]":
        for k, face in enumerate(model.morph(first, last, n)):
            progress(k, n, target.name)
            yield face.sized(options.size)

    text = provenance(model.model.name, "speech of two recordings")
    write_bytes(target, animate(pictures(), seconds=FRAME_SECONDS * n, text=text))
    return model, target
