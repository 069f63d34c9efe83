"""File or stream -> samples at 16 kHz, whatever the format and the length.

libsndfile reads what it knows, and FFmpeg the rest. `scan` reads once from end to end, to measure,
and gives a `Recording` whose `blocks` are then there to be used; `decode` gives them as one
waveform. Which files are recordings, and what becomes of their samples, is for `audio`.
"""

import io
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from s2f.errors import AudioError

SAMPLE_RATE = 16_000  # Hz
FRAME = SAMPLE_RATE // 100  # 160 samples, 10 ms: what powers are measured in
KEPT_SAMPLES = 600 * SAMPLE_RATE  # 38 MB: longer recordings are decoded twice instead

# FFmpeg would also open playlists (ffconcat, m3u8), which make it read other files of this machine.
_AV_FORMATS = "aac,aiff,amr,asf,avi,caf,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,wav"
_BLOCK_VALUES = 1 << 16  # that libsndfile reads at once, all channels together
_BLOCK_FRAMES = 64  # that FFmpeg decodes, about 1,000 samples each, before they are used
_RATES = range(4_000, 768_001)  # Hz; a false 1 Hz would resample to 16,000 times the file's size
_16_BIT = frozenset({"PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW"})  # what FFmpeg decodes to that
_RECORDING = "a recording such as WAV, FLAC, OGG, MP3 or M4A, or a video with sound"
_SAVE_AGAIN = "Play it to check it, then save it again as WAV."

FloatArray = npt.NDArray[np.float32]


class _Block(NamedTuple):
    """Samples [n c] as they are in the file."""

    rate: int
    is_16_bit: bool
    samples: FloatArray


_Reader = Callable[[BinaryIO, str], Iterator[_Block]]


@dataclass(frozen=True)
class Recording:
    """What a first reading found; good for as long as the file is open.

    Attributes:
        name: what error messages call it.
        n_samples: its length at 16 kHz, at least 1.
        powers: float64 [t], the sum of the squares of each 160 samples; the last may be fewer.
        is_16_bit: whether it is decoded to integers of 16 bits, as FFmpeg does.
    """

    name: str
    n_samples: int
    powers: npt.NDArray[np.float64]
    is_16_bit: bool
    _read: Callable[[], Iterator[FloatArray]]

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[FloatArray]:
        """Yield the samples from `start` to `stop` (default: the end) in blocks: mono [n].

        Raises:
            AudioError: if the file changed since it was measured.
        """
        import soundfile

        stop, position = self.n_samples if stop is None else stop, 0
        try:
            for block in self._read():
                piece = block[max(0, start - position) : max(0, stop - position)]
                position += len(block)
                if piece.size:
                    yield piece
                if position >= stop:
                    return
        except (soundfile.LibsndfileError, OSError) as error:
            raise self._changed() from error
        raise self._changed()

    def _changed(self) -> AudioError:
        hint = "Prepare it when nothing writes to it any more."
        return unusable(self.name, "changed while it was read", "a finished recording", hint)


def scan(data: BinaryIO, name: str, *, kept_samples: int = KEPT_SAMPLES) -> Recording:
    """Read a seekable file, whose content tells its format, from end to end, and measure it.

    Args:
        data: the file, opened in binary mode.
        name: what error messages call it.
        kept_samples: up to this length the samples stay in memory; a longer recording takes none
            but those of a block, and is decoded again by `Recording.blocks`.

    Raises:
        AudioError: if it is empty, not sound, without a sound track or samples, or holds NaN or
            infinite samples.
    """
    import soundfile

    if not data.seek(0, io.SEEK_END):
        raise unusable(name, "is empty (0 bytes)", hint="Copy or record it again.")
    try:
        return _scan(_read_with_soundfile, data, name, kept_samples)
    except soundfile.LibsndfileError:
        # Not one of libsndfile's formats, or damaged: FFmpeg knows more and skips broken packets.
        return _scan(_read_with_av, data, name, kept_samples)


def decode(data: BinaryIO, name: str) -> FloatArray:
    """Read the sound of a seekable file, whose content tells its format.

    Returns:
        waveform: mono [n], n >= 1, as recorded (about -1..1), at 16 kHz.

    Raises:
        AudioError: as in `scan`.
    """
    return np.concatenate(list(scan(data, name, kept_samples=sys.maxsize).blocks()))


def unusable(
    name: Path | str, found: str, wanted: str = _RECORDING, hint: str = _SAVE_AGAIN
) -> AudioError:
    """Return the error of a recording: what was found, what was wanted, and the cure."""
    return AudioError(f"{name} {found}; wanted {wanted}", hint=hint)


def _scan(read: _Reader, data: BinaryIO, name: str, kept_samples: int) -> Recording:
    blocks = read(data, name)
    first = next(blocks, None)
    if first is None:
        raise unusable(name, "holds no samples")
    kept: list[FloatArray] = []
    powers: list[npt.NDArray[np.float64]] = []
    n_samples = 0
    for block in _mono(itertools.chain([first], blocks), name):
        squares = np.square(block, dtype=np.float64)
        powers.append(np.add.reduceat(squares, np.arange(0, len(squares), FRAME)))
        if not np.isfinite(powers[-1]).all():
            raise unusable(name, "holds samples that are NaN or infinite", "finite ones")
        n_samples += len(block)
        if n_samples <= kept_samples:
            kept.append(block)
        else:
            kept.clear()
    if not n_samples:
        raise unusable(name, "holds no samples")

    def again() -> Iterator[FloatArray]:
        return iter(kept) if kept else _mono(read(data, name), name)

    return Recording(name, n_samples, np.concatenate(powers), first.is_16_bit, again)


def _read_with_soundfile(data: BinaryIO, name: str) -> Iterator[_Block]:
    import soundfile

    data.seek(0)
    with soundfile.SoundFile(data) as file:
        n, is_16_bit = max(1, _BLOCK_VALUES // file.channels), file.subtype in _16_BIT
        while len(block := file.read(n, dtype="float32", always_2d=True)):
            yield _Block(file.samplerate, is_16_bit, block)


def _read_with_av(data: BinaryIO, name: str) -> Iterator[_Block]:
    import av

    for (rate, n_channels, _), frames in itertools.groupby(_frames(data, name), key=_kind):
        while batch := list(itertools.islice(frames, _BLOCK_FRAMES)):
            queue = av.AudioFifo()  # for speed: arrays are made of all frames at once
            for frame in batch:
                frame.pts = None  # which the queue would want without gaps
                queue.write(frame)
            if (joined := queue.read()) is not None:
                samples = _array(joined, n_channels)
                is_16_bit = samples.dtype.kind in "iu" and samples.itemsize <= 2
                yield _Block(rate, is_16_bit, _full_scale(samples))


def _kind(frame: Any) -> tuple[int, int, str]:
    """Return what frames must share to be joined."""
    return frame.sample_rate, frame.layout.nb_channels, frame.format.name


def _array(frame: Any, n_channels: int) -> npt.NDArray[Any]:
    """Return an `av.AudioFrame` as [n c].

    PyAV 18.1 knows no integers of 64 bits. Of 8 planes and more it reads one too many and crashes:
    FFmpeg ends their list with a zero only up to 7, and PyAV counts up to that zero.
    """
    import av

    form = frame.format
    if form.name.startswith("s64") or (form.is_planar and n_channels >= 8):
        packed = "dbl" if form.name.startswith("s64") else form.packed
        (frame,) = av.AudioResampler(format=packed).resample(frame)
    samples: npt.NDArray[Any] = frame.to_ndarray()  # planar [c n], packed [1 n*c]
    return samples.T if frame.format.is_planar else samples.reshape(-1, n_channels)


def _frames(data: BinaryIO, name: str) -> Iterator[Any]:
    """Yield each `av.AudioFrame`."""
    import av

    data.seek(0)
    options = {"format_whitelist": _AV_FORMATS, "protocol_whitelist": "none"}
    try:  # with a tag that is not UTF-8, strict (the default) fails
        container = av.open(data, "r", metadata_errors="ignore", options=options)
    except av.FFmpegError as error:
        found = f"holds no sound that can be decoded ({error.strerror})"
        raise unusable(name, found) from error
    with container:
        stream = container.streams.best("audio")
        if stream is None or stream.codec_context is None:  # decoding None crashes the process
            kinds = ", ".join(sorted({other.type for other in container.streams})) or "nothing"
            raise unusable(
                name,
                f"has no sound track that can be decoded, only {kinds}",
                hint="Give the recording, or a video with sound.",
            )
        packets = container.demux(stream)
        damage, decoded = None, False
        while True:
            try:
                frames: list[Any] = next(packets).decode()
            except StopIteration:
                break
            except av.FFmpegError as error:  # pass over this packet, as the ffmpeg command does
                damage = error
                continue
            for frame in frames:
                decoded = True
                yield frame
        if damage and not decoded:
            raise unusable(name, "is damaged: none of its sound can be decoded") from damage


def _full_scale(samples: npt.NDArray[Any]) -> FloatArray:
    """Bring integers to -1..1."""
    if samples.dtype.kind in "iu":
        full_scale = 2.0 ** (8 * samples.itemsize - 1)
        samples = samples / full_scale - (samples.dtype.kind == "u")
    return samples.astype(np.float32)


def _mono(blocks: Iterator[_Block], name: str) -> Iterator[FloatArray]:
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


def _resampled(blocks: Iterator[_Block], name: str) -> Iterator[FloatArray]:
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
