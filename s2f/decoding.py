"""File, stream or array -> blocks of samples, as they are there.

`read_with_soundfile` lets libsndfile read what it knows, and `read_with_av` lets FFmpeg read the
rest; `read_array` reads arrays. Which is asked, and what becomes of the blocks, `recording` knows.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from s2f.errors import AudioError

SAMPLE_RATE = 16_000  # Hz: of every waveform, once a recording is read
_BLOCK_VALUES = 1 << 16  # that are read at once, all channels together

# FFmpeg would also open playlists (ffconcat, m3u8), which make it read other files of this machine.
_AV_FORMATS = "aac,aiff,amr,asf,avi,caf,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,wav"
_BLOCK_FRAMES = 64  # that FFmpeg decodes, about 1,000 samples each, before they are used
_CHANNELS = 64  # of an array; more is one whose channels come first
_16_BIT = frozenset({"PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW"})  # what FFmpeg decodes to that
_RECORDING = "a recording such as WAV, FLAC, OGG, MP3 or M4A, or a video with sound"
_SAVE_AGAIN = "Play it to check it, then save it again as WAV."

FloatArray = npt.NDArray[np.float32]


class Waveform(NamedTuple):
    """Sound that is an array already: of a microphone, or of other Python code.

    Attributes:
        samples: [n] or [n c], floating point of about -1..1, or integers of the whole range of
            their type.
        rate: samples a second.
    """

    samples: npt.NDArray[Any]
    rate: int


class Block(NamedTuple):
    """Samples [n c] as they are in the file, about -1..1.

    Attributes:
        rate: samples a second.
        is_16_bit: whether they are decoded to integers of 16 bits, as FFmpeg does.
        samples: [n c].
    """

    rate: int
    is_16_bit: bool
    samples: FloatArray


def read_with_soundfile(data: BinaryIO, name: str) -> Iterator[Block]:
    """Yield the blocks of a file in one of libsndfile's formats.

    Raises:
        soundfile.LibsndfileError: if it is in none of them, damaged, or says that it is empty.
    """
    import soundfile

    data.seek(0)
    with soundfile.SoundFile(data) as file:
        # FFmpeg reads on where nobody came back to write the length; and libmpg123, which gives the
        # same samples, writes to the terminal what it finds odd.
        if not file.frames or file.format == "MP3":
            raise soundfile.LibsndfileError(1)
        n, is_16_bit = max(1, _BLOCK_VALUES // file.channels), file.subtype in _16_BIT
        while len(block := file.read(n, dtype="float32", always_2d=True)):
            yield Block(file.samplerate, is_16_bit, block)


def read_with_av(data: BinaryIO, name: str) -> Iterator[Block]:
    """Yield the blocks of a file, or of the sound track of a video, that FFmpeg knows.

    Broken packets are passed over.

    Raises:
        AudioError: if it is not sound, has no sound track, or none of it can be decoded.
    """
    import av

    for (rate, n_channels, _), frames in itertools.groupby(_frames(data, name), key=_kind):
        while batch := list(itertools.islice(frames, _BLOCK_FRAMES)):
            queue = av.AudioFifo()  # for speed: arrays are made of all frames at once
            for frame in batch:
                frame.pts = None  # which the queue would want without gaps
                queue.write(frame)
            if (joined := queue.read()) is not None:
                yield as_block(rate, _array(joined, n_channels))


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


def read_array(waveform: Waveform, name: str) -> Iterator[Block]:
    """Yield the blocks that a file of the same samples gives.

    Raises:
        AudioError: if it is not an array of numbers [n] or [n c].
    """
    samples, rate = waveform
    wanted = "a NumPy array [n] or [n c] of integers, or of floating point of about -1..1"
    if not isinstance(samples, np.ndarray):
        raise unusable(name, f"is of type {type(samples).__name__}", wanted, "Convert it.")
    if samples.dtype.kind not in "iuf":
        raise unusable(name, f"is an array of {samples.dtype}", wanted, "Convert it.")
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[1] > _CHANNELS):
        hint = "Give one recording at a time, with its samples along the first dimension."
        raise unusable(name, f"is an array {list(samples.shape)}", wanted, hint)
    if not samples.size:
        return
    samples = samples.reshape(len(samples), -1)
    n = max(1, _BLOCK_VALUES // samples.shape[1])
    for start in range(0, len(samples), n):
        yield as_block(rate, samples[start : start + n])


def as_block(rate: int, samples: npt.NDArray[Any]) -> Block:
    """Make a block of samples [n c] of any type: integers are brought to -1..1."""
    is_integer = samples.dtype.kind in "iu"
    is_16_bit = is_integer and samples.itemsize <= 2
    if is_integer:
        full_scale = 2.0 ** (8 * samples.itemsize - 1)
        samples = samples / full_scale - (samples.dtype.kind == "u")
    with np.errstate(over="ignore"):  # it becomes infinite, which is refused later
        return Block(rate, is_16_bit, samples.astype(np.float32))


def unusable(
    name: Path | str, found: str, wanted: str = _RECORDING, hint: str = _SAVE_AGAIN
) -> AudioError:
    """Return the error of a recording: what was found, what was wanted, and the cure."""
    return AudioError(f"{name} {found}; wanted {wanted}", hint=hint)
