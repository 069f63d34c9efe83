"""Recording -> mono samples at 16 kHz, whatever the format, the length and the rate.

`open_recording` reads a recording, or a part of it, once to measure it, and gives a `Recording`
whose `blocks` are then there to be used. Which files are recordings, and what becomes of their
samples, is for `audio`.
"""

import contextlib
import functools
import io
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from s2f.decoding import (
    SAMPLE_RATE,
    Block,
    FloatArray,
    Waveform,
    read_array,
    read_with_av,
    read_with_soundfile,
    unusable,
)
from s2f.errors import AudioError, OutputError

FRAME = SAMPLE_RATE // 100  # 160 samples, 10 ms: what powers are measured in
KEPT_SAMPLES = 600 * SAMPLE_RATE  # 38 MB: longer recordings are decoded twice instead
_COPIED = 1 << 20  # bytes of a stream that are read at once
_RATES = range(4_000, 768_001)  # Hz; a false 1 Hz would resample to 16,000 times the file's size


@dataclass(frozen=True)
class Recording:
    """What a first reading found; good for as long as the file is open.

    Attributes:
        name: what error messages call it.
        start: the first of its samples at 16 kHz that was measured.
        stop: one more than the last of them.
        powers: float64 [t], the sum of the squares of each 160 samples; the last may be fewer.
        is_16_bit: whether it is decoded to integers of 16 bits, as FFmpeg does.
    """

    name: str
    start: int
    stop: int
    powers: npt.NDArray[np.float64]
    is_16_bit: bool
    _read: Callable[[], Iterator[FloatArray]]

    def blocks(self, start: int | None = None, stop: int | None = None) -> Iterator[FloatArray]:
        """Yield the samples from `start` to `stop` (default: all measured) in blocks: mono [n].

        Raises:
            AudioError: if the file changed since it was measured.
        """
        import soundfile

        start = self.start if start is None else start
        missing = (self.stop if stop is None else stop) - start
        first = start - self.start
        try:
            for piece in _between(self._read(), first, first + missing):
                missing -= len(piece)
                yield piece
        except (soundfile.LibsndfileError, OSError) as error:
            raise self._changed() from error
        if missing:
            raise self._changed()

    def _changed(self) -> AudioError:
        hint = "Use it when nothing writes to it any more."
        return unusable(self.name, "changed while it was read", "a finished recording", hint)


@contextlib.contextmanager
def open_recording(
    source: Path | BinaryIO | Waveform,
    *,
    name: str | None = None,
    start: int = 0,
    stop: int | None = None,
    kept_samples: int = KEPT_SAMPLES,
) -> Iterator[Recording]:
    """Open a recording and measure it, or the part of it that is wanted.

    Args:
        source: path of a recording or video; a stream of its bytes, of which one that cannot seek
            is copied to a temporary file first; or an array.
        name: what error messages call it; default: the path, else "the recording".
        start: as in `scan`, like the rest.
        stop: where the part stops.
        kept_samples: up to what length the samples stay in memory.

    Raises:
        AudioError: if it is missing, a folder or a pipe, or cannot be read, and as in `scan`.
        OutputError: if there is no room for the temporary file.
    """
    name = name or (str(source) if isinstance(source, Path) else "the recording")
    with contextlib.ExitStack() as stack:
        with _readable(name):
            if isinstance(source, Path):
                source = stack.enter_context(_opened(source, name))
            elif not isinstance(source, Waveform) and not source.seekable():
                source = stack.enter_context(_copied(source, name))
            part = scan(source, name, start=start, stop=stop, kept_samples=kept_samples)
        yield part


def scan(
    source: BinaryIO | Waveform,
    name: str,
    *,
    start: int = 0,
    stop: int | None = None,
    kept_samples: int = KEPT_SAMPLES,
) -> Recording:
    """Read a recording from end to end, or to the end of the part that is wanted, and measure it.

    Args:
        source: a seekable file, opened in binary mode, whose content tells its format; or an array.
        name: what error messages call it.
        start: of the part that is wanted, samples at 16 kHz; a multiple of `FRAME`.
        stop: where the part stops, a multiple of `FRAME`; default: at the end.
        kept_samples: up to this length the samples stay in memory; a longer part takes none but
            those of a block, and is decoded again by `Recording.blocks`.

    Raises:
        AudioError: if it is empty, not sound, without a sound track or samples, holds NaN or
            infinite samples, is an array that is no sound, or ends before the part starts.
    """
    import soundfile

    def measured(reader: Callable[..., Iterator[Block]]) -> Recording:
        end = sys.maxsize if stop is None else stop
        return _scan(functools.partial(reader, source, name), name, start, end, kept_samples)

    if isinstance(source, Waveform):
        return measured(read_array)
    if not source.seek(0, io.SEEK_END):
        raise unusable(name, "is empty (0 bytes)", hint="Copy or record it again.")
    try:
        return measured(read_with_soundfile)
    except soundfile.LibsndfileError:
        # Not one of libsndfile's formats, or damaged: FFmpeg knows more and skips broken packets.
        return measured(read_with_av)


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn what the system says of a file that cannot be read into an `AudioError`."""
    try:
        yield
    except OSError as error:
        found = f"cannot be read ({error.strerror or error})"
        raise unusable(name, found, hint="Check its path and its permissions.") from error


def _opened(path: Path, name: str) -> BinaryIO:
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        found = "is a folder" if path.is_dir() else "is not a regular file"
        raise unusable(name, found, hint="Name a recording.")
    return path.open("rb")


def _copied(stream: BinaryIO, name: str) -> BinaryIO:
    """Copy a stream that cannot seek to a file without a name."""

    def block() -> bytes:
        with _readable(name):
            return stream.read(_COPIED)

    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(tempfile.TemporaryFile(prefix="s2f-"))
            while copied := block():
                file.write(copied)
            file.flush()
            stack.pop_all()
            return file
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(
            f"{name} cannot be copied to the folder for temporary files ({reason})",
            hint="Free some space there, or set TMPDIR to a folder on a larger disk.",
        ) from error


def _scan(
    read: Callable[[], Iterator[Block]], name: str, start: int, stop: int, kept_samples: int
) -> Recording:
    blocks = read()
    first = next(blocks, None)
    if first is None:
        raise unusable(name, "holds no samples")
    kept: list[FloatArray] = []
    powers: list[npt.NDArray[np.float64]] = []
    n_read = n_samples = 0

    def counted() -> Iterator[FloatArray]:
        nonlocal n_read
        for block in _mono(itertools.chain([first], blocks), name):
            n_read += len(block)
            yield block

    for block in _between(counted(), start, stop):
        squares = np.square(block, dtype=np.float64)
        powers.append(np.add.reduceat(squares, np.arange(0, len(squares), FRAME)))
        if not np.isfinite(powers[-1]).all():
            raise unusable(name, "holds samples that are NaN or infinite", "finite ones")
        n_samples += len(block)
        if n_samples <= kept_samples:
            kept.append(block)
        else:
            kept.clear()
    if not n_read:
        raise unusable(name, "holds no samples")
    if not n_samples:
        found, wanted = f"lasts {n_read / SAMPLE_RATE:.2f} s", f"{start / SAMPLE_RATE:g} s"
        raise unusable(name, found, f"more than {wanted}, to start there", "Start earlier.")

    def again() -> Iterator[FloatArray]:
        return iter(kept) if kept else _between(_mono(read(), name), start, stop)

    powers_of_all = np.concatenate(powers)
    return Recording(name, start, start + n_samples, powers_of_all, first.is_16_bit, again)


def _between(blocks: Iterator[FloatArray], start: int, stop: int) -> Iterator[FloatArray]:
    """Cut blocks down to the samples from `start` to `stop`, and read no further."""
    position = 0
    for block in blocks:
        piece = block[max(0, start - position) : max(0, stop - position)]
        position += len(block)
        if piece.size:
            yield piece
        if position >= stop:
            return


def _mono(blocks: Iterator[Block], name: str) -> Iterator[FloatArray]:
    """Mix blocks down to mono at 16 kHz, in whole frames; the rate may change between blocks."""
    held = np.empty(0, np.float32)
    for piece in _resampled(blocks, name):
        held = np.concatenate([held, piece])
        whole = len(held) - len(held) % FRAME
        if whole:
            yield held[:whole]
            held = held[whole:]
    if held.size:
        yield held


def _resampled(blocks: Iterator[Block], name: str) -> Iterator[FloatArray]:
    import soxr

    for rate, group in itertools.groupby(blocks, key=lambda block: block.rate):
        if rate not in _RATES:
            wanted = f"{_RATES[0]} to {_RATES[-1]}"
            raise unusable(name, f"claims {rate} samples a second", wanted)
        mono = (_mixed(block.samples) for block in group)
        if rate == SAMPLE_RATE:
            yield from mono
            continue
        stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        for piece in mono:
            yield stream.resample_chunk(piece)
        yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def _mixed(samples: FloatArray) -> FloatArray:
    """Mix [n c] down to [n]."""
    if samples.shape[1] == 1:
        return np.ascontiguousarray(samples[:, 0])
    with np.errstate(over="ignore", invalid="ignore"):  # inf - inf: `_scan` refuses it
        mono: FloatArray = samples.mean(axis=1)
    return mono
