"""File or stream -> samples at 16 kHz, whatever the format.

libsndfile reads what it knows, and FFmpeg the rest. Which files are recordings, and what becomes
of their samples, is for `audio`.
"""

import io
import itertools
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from s2f.errors import AudioError

SAMPLE_RATE = 16_000  # Hz

# FFmpeg would also open playlists (ffconcat, m3u8), which make it read other files of this machine.
_AV_FORMATS = "aac,aiff,amr,asf,avi,caf,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,wav"
_BLOCK_SAMPLES = 1 << 16
_RATES = range(4_000, 768_001)  # Hz; a false 1 Hz would resample to 16,000 times the file's size
_RECORDING = "a recording such as WAV, FLAC, OGG, MP3 or M4A, or a video with sound"
_SAVE_AGAIN = "Play it to check it, then save it again as WAV."

FloatArray = npt.NDArray[np.float32]


def decode(data: BinaryIO, name: str) -> FloatArray:
    """Read the sound of a seekable file, whose content tells its format.

    Args:
        data: the file, opened in binary mode.
        name: what error messages call it.

    Returns:
        waveform: mono [n], n >= 1, as recorded (about -1..1), at 16 kHz.

    Raises:
        AudioError: if it is empty, not sound, without a sound track or samples, or holds NaN or
            infinite samples.
    """
    import soundfile

    if not data.seek(0, io.SEEK_END):
        raise unusable(name, "is empty (0 bytes)", hint="Copy or record it again.")
    try:
        return _resample(_read_with_soundfile(data), name)
    except soundfile.LibsndfileError:
        # Not one of libsndfile's formats, or damaged: FFmpeg knows more and skips broken packets.
        return _resample(_read_with_av(data, name), name)


def unusable(
    name: Path | str, found: str, wanted: str = _RECORDING, hint: str = _SAVE_AGAIN
) -> AudioError:
    """Return the error of a recording: what was found, what was wanted, and the cure."""
    return AudioError(f"{name} {found}; wanted {wanted}", hint=hint)


def _read_with_soundfile(data: BinaryIO) -> Iterator[tuple[int, FloatArray]]:
    """Yield the sample rate and a block [n c], again and again."""
    import soundfile

    data.seek(0)
    with soundfile.SoundFile(data) as file:
        while len(block := file.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)):
            yield file.samplerate, block


def _read_with_av(data: BinaryIO, name: str) -> Iterator[tuple[int, FloatArray]]:
    """Yield the sample rate and a block [n c], again and again."""
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
                yield frame.sample_rate, _samples(frame)
        if damage and not decoded:
            raise unusable(name, "is damaged: none of its sound can be decoded") from damage


def _samples(frame: Any) -> FloatArray:
    """Return an `av.AudioFrame` as [n c], full scale -1..1."""
    samples: npt.NDArray[Any] = frame.to_ndarray()  # planar [c n], packed [1 n*c]
    samples = samples.T if frame.format.is_planar else samples.reshape(frame.samples, -1)
    if samples.dtype.kind in "iu":
        full_scale = 2.0 ** (8 * samples.itemsize - 1)
        samples = samples / full_scale - (samples.dtype.kind == "u")
    return samples.astype(np.float32)


def _resample(blocks: Iterator[tuple[int, FloatArray]], name: str) -> FloatArray:
    """Mix blocks [n c] down to mono [n] at 16 kHz; the rate may change between blocks."""
    import soxr

    pieces = [np.empty(0, np.float32)]
    for rate, group in itertools.groupby(blocks, key=itemgetter(0)):
        if rate not in _RATES:
            wanted = f"{_RATES[0]} to {_RATES[-1]}"
            raise unusable(name, f"claims {rate} samples a second", wanted)
        stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        for _, block in group:
            with np.errstate(over="ignore", invalid="ignore"):  # inf - inf: refused just below
                mono = block.mean(axis=1)
            if not np.isfinite(mono).all():
                raise unusable(name, "holds samples that are NaN or infinite", "finite ones")
            pieces.append(stream.resample_chunk(mono))
        pieces.append(stream.resample_chunk(np.empty(0, np.float32), last=True))
    waveform = np.concatenate(pieces)
    if not waveform.size:
        raise unusable(name, "holds no samples")
    return waveform
