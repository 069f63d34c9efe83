"""Many files, one picture each.

`plan` names the picture of every file before anything is made, and refuses two that would fall
together; `run` makes them one after the other, skips what is up to date, and goes on past files
that cannot be used. How a picture is made is the caller's to say.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from s2f.errors import InputError, S2FError, UsageError
from s2f.images import FRAME
from s2f.runtime import Progress, silent


@dataclass(frozen=True)
class Outcome:
    """What became of one file of a batch.

    Attributes:
        source: the recording or photo.
        target: the picture that was written, was there already, or would have been written.
        overlay: the picture with landmarks, if it was asked for and written.
        status: `planned`; then `made`, `skipped` (there already, and newer than its source) or
            `failed`.
        error: why it failed.
        clips: clips of speech that were averaged.
        seconds: that it took.
    """

    source: Path
    target: Path | None
    status: str
    overlay: Path | None = None
    error: S2FError | None = None
    clips: int = 0
    seconds: float = 0.0


class Picture(Protocol):
    """What is made of one file: it knows how it is saved, and of how much speech it is made."""

    @property
    def clips(self) -> int:
        """Clips of speech that were averaged; 0 for a photo."""

    def save(self, path: Path, *, size: int) -> None:
        """Write it as a PNG of `size` pixels a side."""

    def save_overlay(self, path: Path, *, size: int) -> None:
        """Write it with its landmarks drawn on it."""


Find = Callable[[Sequence[Path]], list[Path]]


def plan(sources: Sequence[Path], output: Path | None, find: Find) -> list[Outcome]:
    """Decide which file becomes which picture, before anything is made.

    A file NAME.* becomes NAME.png in the output folder (by default the current one), a directory's
    files keep their places below it; where two would become the same picture, both keep their
    suffix (NAME.wav.png). One file may also be given its picture's own name.

    Args:
        sources: files and directories.
        output: a picture's name ending in .png for one file, or a folder.
        find: lists the files of a directory, and refuses what is not there.

    Returns:
        One outcome a file: `planned`, or `failed` where `find` refused.

    Raises:
        UsageError: if the output is neither a .png nor a folder, or one picture would be made of
            several files.
    """
    found: list[tuple[Path, Path] | Outcome] = []
    for source in dict.fromkeys(sources):
        try:
            for path in find([source]):
                inside = path.relative_to(source).parent if source.is_dir() else Path()
                found.append((path, inside))
        except InputError as error:
            found.append(Outcome(source, None, "failed", error=error))
    is_folder = output is not None and os.path.isdir(output)
    if output is not None and not is_folder and (output.suffix or os.path.exists(output)):
        if output.suffix.lower() != ".png":
            raise UsageError(
                f"{output}: is neither a .png file nor a folder",
                hint="give -o NAME.png for one picture, or a folder; make one with a dot first",
            )
        if len(found) > 1 or sources[0].is_dir():
            raise UsageError(
                f"{output}: is one picture, but there are {len(found)} recordings or photos",
                hint="give a folder to -o",
            )
        return [
            item if isinstance(item, Outcome) else Outcome(item[0], output, "planned")
            for item in found
        ]
    folder = Path() if output is None else output
    places = [folder / f[1] / f"{f[0].stem}.png" for f in found if isinstance(f, tuple)]
    crowd = Counter(str(place).casefold() for place in places)  # some file systems fold case
    outcomes = []
    for item in found:
        if isinstance(item, tuple):
            path, inside = item
            target = folder / inside / f"{path.stem}.png"
            if crowd[str(target).casefold()] > 1:
                target = target.with_name(f"{path.name}.png")
            item = Outcome(path, target, "planned")
        outcomes.append(item)
    _refuse_collisions(outcomes)
    return outcomes


def _refuse_collisions(planned: Sequence[Outcome]) -> None:
    makers: dict[str, Path] = {}
    for item in planned:
        if item.target is None:
            continue
        for path in (item.target, _overlay(item.target)):
            other = makers.setdefault(str(path).casefold(), item.source)
            if other != item.source:
                raise UsageError(
                    f"{path}: would be made of both {other} and {item.source}",
                    hint="give the folder above both, so that the tree is mirrored, or one by one",
                )


def _overlay(target: Path) -> Path:
    return target.with_name(f"{target.stem}_landmarks.png")


def run(
    make: Callable[[Path], Picture],
    planned: Sequence[Outcome],
    *,
    size: int = FRAME,
    overlay: bool = False,
    overwrite: bool = False,
    skip: bool = True,
    progress: Progress = silent,
) -> Iterator[Outcome]:
    """Make the planned pictures, going on past files that cannot be used.

    Args:
        make: `SpeechToFace.generate` or `SpeechToFace.reconstruct`.
        planned: as `plan` returns them.
        size: side of the pictures, pixels.
        overlay: whether NAME_landmarks.png is written beside NAME.png.
        overwrite: whether a picture that is there already is replaced, instead of refused.
        skip: whether one that is newer than its source is skipped, instead of refused: for
            batches.
        progress: told of each file.

    Yields:
        What became of each file, as soon as it is known.

    Raises:
        OutputError: if a picture cannot be written.
    """
    for k, item in enumerate(planned):
        progress(k, len(planned), item.source.name)
        started = time.perf_counter()
        if item.target is None:
            yield item
            continue
        marks = _overlay(item.target) if overlay else None
        wanted = [path for path in (item.target, marks) if path is not None]
        there = [path for path in wanted if os.path.lexists(path)]
        try:
            if there and not overwrite:
                fresh = min(p.lstat().st_mtime for p in there) >= item.source.stat().st_mtime
                if skip and fresh and there == wanted:
                    yield Outcome(item.source, item.target, "skipped", overlay=marks)
                    continue
                raise UsageError(
                    f"{there[0]}: exists already",
                    hint="give --overwrite to replace it, or another place with -o",
                )
            face = make(item.source)
        except (InputError, UsageError) as error:
            yield Outcome(item.source, item.target, "failed", error=error)
            continue
        face.save(item.target, size=size)
        if marks is not None:
            face.save_overlay(marks, size=size)
        seconds = time.perf_counter() - started
        yield Outcome(item.source, item.target, "made", marks, None, face.clips, seconds)
    progress(len(planned), len(planned), "done")
