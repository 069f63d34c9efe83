"""Many sources, some files each.

`plan` names the files of every recording or photo before anything is made, and refuses two that
would fall together; `run` has them made, skips what is up to date, and goes on past sources that
cannot be used. What a file holds is the caller's to say.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from s2f.errors import InputError, OutputError, S2FError, UsageError
from s2f.runtime import Progress, atomic_write, silent

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


Make = Callable[[Iterable[Path], Progress], Iterator[Product | InputError]]
"""Get ready, then make each of some sources, in order; tell the progress within them."""


def plan(
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


def run(
    make: Make,
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
