"""Any recording -> mono at 16 kHz -> the loudness that models are trained at -> clips.

libsndfile decodes what it knows, FFmpeg the rest. Sound is held in memory whole, 230 MB an hour.
"""

import contextlib
import io
import itertools
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from s2f import files
from s2f.console import Progress, silent
from s2f.errors import AudioError, DependencyError, DeviceError, OutputError, UsageError

SAMPLE_RATE = 16_000  # Hz: of every waveform, once a recording is read
FRAME_SAMPLES = SAMPLE_RATE // 100  # 10 ms: what powers are measured in; no front end's hop
LOUDNESS_DBFS = -23.0  # RMS
SILENCE_DBFS = -90.0  # RMS: below the quantisation noise of 16-bit audio
MIN_SECONDS, MAX_RECORDED_SECONDS = 0.5, 600.0

RECORDING_SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .mp3 .m4a .aac .opus .webm "
    ".mp4 .m4v .mkv .mov .avi .3gp .wma .aif .aiff .amr .caf".split()
)

# FFmpeg would also open playlists (ffconcat, m3u8), which make it read other files of this machine.
_AV_FORMATS = "aac,aiff,amr,asf,avi,caf,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,wav"
_BLOCK_VALUES = 1 << 16  # that are treated at once, all channels together
_CHANNELS = 64  # of an array; more is one whose channels come first
_16_BIT = frozenset({"PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW"})  # what FFmpeg decodes to that
_RATES = range(4_000, 768_001)  # Hz; a false 1 Hz would resample to 16,000 times the file's size
_RECORDING = "a recording such as WAV, FLAC, OGG, MP3 or M4A, or a video with sound"
_SAVE_AGAIN = "Play it to check it, then save it again as WAV."

FloatArray = npt.NDArray[np.float32]


class Waveform(NamedTuple):
    """Sound that is an array already: of a microphone, or of other Python code."""

    samples: npt.NDArray[Any]  # [n] or [n c]: of about -1..1, or integers of their type's range
    rate: int  # samples a second


def find_recordings(paths: Sequence[Path]) -> list[Path]:
    """List the recordings among files and folders; raises an `AudioError` as `files.find_files`."""
    return files.find_files(paths, is_recording, "recordings", AudioError)


def is_recording(name: str) -> bool:
    """Tell by a file's name whether it is a recording, or a video with sound."""
    return Path(name).suffix.lower() in RECORDING_SUFFIXES


def is_voice(name: str) -> bool:
    """Tell by a file's name whether it is a recording, or an array made of one."""
    from s2f.layout import is_array  # who only reads recordings needs no trees

    return is_recording(name) or is_array(name)


def read_speech(
    source: Path | BinaryIO | Waveform,
    *,
    name: str | None = None,
    start: float = 0.0,
    duration: float | None = None,
    trim_silence: float | None = None,
    as_recorded: bool = False,
) -> FloatArray:
    """Read a recording or a video of any format as mono [n], -1..1 at 16 kHz, n >= 8,000.

    It is heard at an RMS of -23 dBFS, clipped at full scale, or `as_recorded` (then about -1..1).
    A stream that cannot seek is copied to a temporary file first. Error messages call it `name`.
    Only the part from `start` that lasts `duration` is wanted, seconds rounded to 10 ms; what comes
    after it is not read. Frames of 10 ms more than `trim_silence` dB below the loudest one are cut
    from both ends of it. Raises a `UsageError` if these make no sense; an `AudioError` if it is
    missing, no regular file, empty, no sound or NaN, if it ends before `start`, or if the part
    lasts less than 0.5 s or is silence to 16 bits, below -90 dBFS; and an `OutputError` if there is
    no room for the copy of a stream.

    Source: `ffmpeg-normalize -nt rms -t -23`, which the seed applies: FFmpeg's filter astats over
        all samples in double precision, to 6 decimals of a dB and with 16-bit samples divided by
        32767; then its filter volume in single precision, no limiter. `to_int16` of sound that is
        mono at 16 kHz has its very samples; other sound is measured after it became that.
    """
    check_part(start, duration, trim_silence)
    name = name or (str(source) if isinstance(source, Path) else "the recording")
    first, stop = round(start * 100) * FRAME_SAMPLES, sys.maxsize
    if duration is not None:
        stop = first + round(duration * 100) * FRAME_SAMPLES
    waveform, is_16_bit = _read(source, name, first, stop)
    powers = _powers(waveform, name)
    if trim_silence is not None:
        loud = np.flatnonzero(powers >= powers.max() * 10 ** (-trim_silence / 10))
        waveform = waveform[loud[0] * FRAME_SAMPLES : (loud[-1] + 1) * FRAME_SAMPLES]
        powers = powers[loud[0] : loud[-1] + 1]
    seconds, power = len(waveform) / SAMPLE_RATE, float(powers.sum()) / len(waveform)
    if seconds < MIN_SECONDS:
        where = f" from {start:g} s on" if start else ""
        where += " without its silence" if trim_silence else ""
        cure = "Start earlier." if start else "Record a sentence or two."
        wanted = f"{MIN_SECONDS:g} s of speech or more"
        raise _unusable(name, f"lasts {seconds:.2f} s{where}", wanted, cure)
    if power < 10 ** (SILENCE_DBFS / 10):
        found = f"holds only silence (RMS below {SILENCE_DBFS:g} dBFS)"
        raise _unusable(name, found, "speech", "Check the microphone and record again.")
    if not as_recorded:
        rms = math.sqrt(power) * (32768 / 32767 if is_16_bit else 1)
        gain = np.float32(10 ** ((LOUDNESS_DBFS - round(20 * math.log10(rms), 6)) / 20))
        np.clip(np.multiply(waveform, gain, out=waveform), -1.0, 1.0, out=waveform)
    return waveform


def check_part(
    start: float = 0.0, duration: float | None = None, trim_silence: float | None = None
) -> None:
    """Raise a `UsageError` if `read_speech` takes no such part of a recording."""
    if not 0 <= start < math.inf:
        message = f"speech is to start at {start:g} s; wanted 0 s or later"
        raise UsageError(message, hint="leave it out to start at the beginning")
    if duration is not None and not MIN_SECONDS <= duration < math.inf:
        message = f"speech is to last {duration:g} s; wanted {MIN_SECONDS:g} s or more"
        raise UsageError(message, hint="leave it out to use all of a recording")
    if trim_silence is not None and not 0 < trim_silence < math.inf:
        message = f"silence is to be trimmed {trim_silence:g} dB below the loudest frame"
        raise UsageError(f"{message}; wanted more than 0 dB", hint="60 is usual")


def clips(waveform: npt.NDArray[Any], clip_samples: int) -> list[npt.NDArray[Any]]:
    """Cut speech [n], n >= 1, into clips [clip_samples], one or more, which are views of it.

    Shorter speech is looped. Longer speech gives consecutive clips; a rest of half a clip or more
    becomes a clip too, filled with the speech before it, and a shorter rest is dropped.
    """
    n = len(waveform)
    if n < clip_samples:
        return [np.resize(waveform, clip_samples)]
    starts = list(range(0, n - clip_samples + 1, clip_samples))
    if 2 * (n % clip_samples) >= clip_samples:
        starts.append(n - clip_samples)
    return [waveform[start : start + clip_samples] for start in starts]


def to_int16(waveform: FloatArray) -> npt.NDArray[np.int16]:
    """Turn samples of -1..1 into integers of 16 bits: x 32768, rounded half to even, clipped."""
    scaled: FloatArray = np.rint(waveform * np.float32(32768))
    return scaled.clip(-32768, 32767).astype(np.int16)


def _powers(waveform: FloatArray, name: str) -> npt.NDArray[np.float64]:
    """Return the sums of the squares of each `FRAME_SAMPLES`; the last may be fewer."""
    powers = np.empty(-(-len(waveform) // FRAME_SAMPLES))
    for frame in range(0, len(powers), 400):
        part = waveform[frame * FRAME_SAMPLES : (frame + 400) * FRAME_SAMPLES]
        starts = np.arange(0, len(part), FRAME_SAMPLES)
        powers[frame : frame + 400] = np.add.reduceat(np.square(part, dtype=np.float64), starts)
    if not np.isfinite(powers).all():
        raise _unusable(name, "holds samples that are NaN or infinite", "finite ones")
    return powers


class _Block(NamedTuple):
    """Samples [n c] as they are in the file, about -1..1."""

    rate: int
    is_16_bit: bool  # decoded to integers of 16 bits, as FFmpeg does
    samples: FloatArray


def _read(
    source: Path | BinaryIO | Waveform, name: str, start: int, stop: int
) -> tuple[FloatArray, bool]:
    """Return the samples from `start` to `stop` at 16 kHz, and whether they are of 16 bits."""
    if isinstance(source, Waveform):
        return _decoded(_array_blocks(source, name), name, start, stop)
    import soundfile

    try:
        with contextlib.ExitStack() as stack:
            if isinstance(source, Path):
                if source.exists() and not source.is_file():  # opening a pipe would wait for ever
                    found = "is a folder" if source.is_dir() else "is not a regular file"
                    raise _unusable(name, found, hint="Name a recording.")
                source = stack.enter_context(source.open("rb"))
            elif not source.seekable():
                source = _copied(source, name, stack)
            if not source.seek(0, io.SEEK_END):
                raise _unusable(name, "is empty (0 bytes)", hint="Copy or record it again.")
            try:
                return _decoded(_soundfile_blocks(source), name, start, stop)
            except soundfile.LibsndfileError:  # none of its formats, or damaged: FFmpeg knows more
                return _decoded(_av_blocks(source, name), name, start, stop)
    except OSError as error:
        found = f"cannot be read ({error.strerror or error})"
        raise _unusable(name, found, hint="Check its path and its permissions.") from error


def _copied(stream: BinaryIO, name: str, stack: contextlib.ExitStack) -> BinaryIO:
    """Copy a stream that cannot seek to a file without a name, which the stack closes."""
    file, piece = None, b""
    while file is None or piece:
        try:
            file = file or stack.enter_context(tempfile.TemporaryFile(prefix="s2f-"))
            file.write(piece)
            file.flush()
        except OSError as error:
            why = error.strerror or error
            raise OutputError(
                f"{name} cannot be copied to the folder for temporary files ({why})",
                hint="Free some space there, or set TMPDIR to a folder on a larger disk.",
            ) from error
        piece = stream.read(1 << 20)
    return file


def _decoded(blocks: Iterator[_Block], name: str, start: int, stop: int) -> tuple[FloatArray, bool]:
    """Mix blocks down to mono at 16 kHz, from `start` to `stop`, and read no further."""
    first = next(blocks, None)
    waveform, n_read = bytearray(), 0  # which grows in place: there is no second copy
    for piece in _resampled(itertools.chain([first], blocks), name) if first else ():
        waveform += piece[max(0, start - n_read) : max(0, stop - n_read)].tobytes()
        n_read += len(piece)
        if n_read >= stop:
            break
    if first is None or not n_read:
        raise _unusable(name, "holds no samples")
    if not waveform:
        found, wanted = f"lasts {n_read / SAMPLE_RATE:.2f} s", f"{start / SAMPLE_RATE:g} s"
        raise _unusable(name, found, f"more than {wanted}, to start there", "Start earlier.")
    return np.frombuffer(waveform, np.float32), first.is_16_bit


def _resampled(blocks: Iterator[_Block], name: str) -> Iterator[FloatArray]:
    """Yield the mean of the channels at 16 kHz; the rate may change between blocks."""
    import soxr

    for rate, group in itertools.groupby(blocks, key=lambda block: block.rate):
        if rate not in _RATES:
            wanted = f"{_RATES[0]} to {_RATES[-1]}"
            raise _unusable(name, f"claims {rate} samples a second", wanted)
        with np.errstate(over="ignore", invalid="ignore"):  # inf - inf: `_powers` refuses it
            mono = (block.samples.mean(axis=1) for block in group)
            if rate == SAMPLE_RATE:
                yield from mono
                continue
            stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
            for piece in mono:
                yield stream.resample_chunk(piece)
            yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def _soundfile_blocks(data: BinaryIO) -> Iterator[_Block]:
    """Yield the blocks of a file that libsndfile knows, else raise a `LibsndfileError`."""
    import soundfile

    data.seek(0)
    opened: Any = data
    # While libsndfile calls back for a stream's bytes it would swallow a Ctrl-C or SIGTERM. A file
    # it reads by a descriptor, which needs no name: a page's visitor's has none any more.
    if isinstance(getattr(data, "raw", None), io.FileIO):
        opened = os.dup(data.fileno())
        os.lseek(opened, 0, os.SEEK_SET)
    with soundfile.SoundFile(opened) as file:
        # FFmpeg reads on where nobody came back to write the length; and libmpg123, which gives the
        # same samples, writes to the terminal what it finds odd.
        if not file.frames or file.format == "MP3":
            raise soundfile.LibsndfileError(1)
        n, is_16_bit = max(1, _BLOCK_VALUES // file.channels), file.subtype in _16_BIT
        while len(block := file.read(n, dtype="float32", always_2d=True)):
            yield _Block(file.samplerate, is_16_bit, block)


def _av_blocks(data: BinaryIO, name: str) -> Iterator[_Block]:
    """Yield the blocks of a file, or of the sound track of a video, that FFmpeg knows."""
    import av

    def kind(frame: Any) -> tuple[int, int, str]:
        return frame.sample_rate, frame.layout.nb_channels, frame.format.name

    for (rate, n_channels, form), frames in itertools.groupby(_av_frames(data, name), key=kind):
        is_16_bit = form in ("u8", "u8p", "s16", "s16p")
        # Arrays of many frames at once are quicker; of 8 planes and more PyAV 18.1 makes none.
        resampler = av.AudioResampler("flt", frame_size=max(1, _BLOCK_VALUES // n_channels))
        for frame in itertools.chain(frames, [None]):
            for joined in resampler.resample(frame):
                packed: Any = joined.to_ndarray()  # [1 n*c]
                yield _Block(rate, is_16_bit, packed.reshape(-1, n_channels))


def _av_frames(data: BinaryIO, name: str) -> Iterator[Any]:
    """Yield each `av.AudioFrame`; broken packets are passed over."""
    import av

    data.seek(0, io.SEEK_END)  # forgets what Python believes of a descriptor that libsndfile moved
    data.seek(0)
    options = {"format_whitelist": _AV_FORMATS, "protocol_whitelist": "none"}
    try:  # with a tag that is not UTF-8, strict (the default) fails
        container = av.open(data, "r", metadata_errors="ignore", options=options)
    except av.FFmpegError as error:
        found = f"holds no sound that can be decoded ({error.strerror})"
        raise _unusable(name, found) from error
    with container:
        stream = container.streams.best("audio")
        if stream is None or stream.codec_context is None:  # decoding None crashes the process
            kinds = ", ".join(sorted({other.type for other in container.streams})) or "nothing"
            found = f"has no sound track that can be decoded, only {kinds}"
            raise _unusable(name, found, hint="Give the recording, or a video with sound.")
        packets, damage, decoded = container.demux(stream), None, False
        while True:
            try:
                frames: list[Any] = next(packets).decode()
            except StopIteration:
                break
            except av.FFmpegError as error:  # pass over this packet, as the ffmpeg command does
                damage, frames = error, []
            for frame in frames:
                decoded, frame.pts = True, None  # joined as they come, gaps or not
                yield frame
        if damage and not decoded:
            raise _unusable(name, "is damaged: none of its sound can be decoded") from damage


def _array_blocks(waveform: Waveform, name: str) -> Iterator[_Block]:
    """Yield the blocks that a file of the same samples gives."""
    samples, rate = waveform
    found, hint = "", "Convert it."
    if not isinstance(samples, np.ndarray):
        found = f"is of type {type(samples).__name__}"
    elif samples.dtype.kind not in "iuf":
        found = f"is an array of {samples.dtype}"
    elif samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[1] > _CHANNELS):
        found = f"is an array {list(samples.shape)}"
        hint = "Give one recording at a time, with its samples along the first dimension."
    if found:
        wanted = "a NumPy array [n] or [n c] of integers, or of floating point of about -1..1"
        raise _unusable(name, found, wanted, hint)
    if not samples.size:
        return
    samples = samples.reshape(len(samples), -1)
    n = max(1, _BLOCK_VALUES // samples.shape[1])
    is_integer = samples.dtype.kind in "iu"
    for start in range(0, len(samples), n):
        block = samples[start : start + n]
        if is_integer:
            full_scale = 2.0 ** (8 * samples.itemsize - 1)
            block = block / full_scale - (samples.dtype.kind == "u")
        with np.errstate(over="ignore"):  # it becomes infinite, which is refused later
            block = block.astype(np.float32)
        yield _Block(rate, is_integer and samples.itemsize <= 2, block)


def _unusable(
    name: str, found: str, wanted: str = _RECORDING, hint: str = _SAVE_AGAIN
) -> AudioError:
    return AudioError(f"{name} {found}; wanted {wanted}", hint=hint)


def record(seconds: float, *, progress: Progress = silent) -> Waveform:
    """Record mono float32, -1..1, from the default input device at that device's own rate.

    It lasts `seconds`, 0.5 to 600, else a `UsageError`; what the device dropped meanwhile is not in
    it. Progress is told in seconds. Raises a `DependencyError` without sounddevice or PortAudio,
    and a `DeviceError` if there is no input device or it refuses to record.
    """
    check_seconds(seconds)
    sounddevice = _sounddevice()
    try:
        device = sounddevice.query_devices(kind="input")
        rate = round(device["default_samplerate"])
        n, block = round(seconds * rate), round(0.1 * rate)  # Ctrl-C waits for a block
        total, what = math.ceil(seconds), f"recording from {device['name']}"
        samples: FloatArray = np.empty(n, np.float32)
        stream = sounddevice.InputStream(samplerate=rate, channels=1, dtype="float32")
        with contextlib.closing(stream):  # also if it does not start, unlike `with stream`
            stream.start()
            for start in range(0, n, block):
                progress(start // rate, total, what)
                piece, _ = stream.read(min(block, n - start))  # the other: whether some are lost
                samples[start : start + block] = piece[:, 0]
    # ValueError is what sounddevice says of a default device that has no input.
    except (sounddevice.PortAudioError, ValueError) as error:
        hint = "connect a microphone, and choose it in the system's sound settings"
        raise DeviceError(f"no sound can be recorded: {error}", hint=hint) from error
    progress(total, total, what)
    return Waveform(samples, rate)


def check_seconds(seconds: float) -> None:
    """Raise a `UsageError` if so many are not recorded."""
    if not MIN_SECONDS <= seconds <= MAX_RECORDED_SECONDS:
        message = f"{seconds:g} s are to be recorded; wanted {MIN_SECONDS:g} to"
        raise UsageError(f"{message} {MAX_RECORDED_SECONDS:g}", hint="6 s are one clip of speech")


def _sounddevice() -> Any:
    try:
        import sounddevice

        return sounddevice
    except ImportError as error:
        found = "recording needs the package sounddevice, which is not installed"
        raise DependencyError(found, hint="pip install 's2f[record]'") from error
    except OSError as error:
        found = f"recording needs PortAudio, which cannot be loaded ({error})"
        hint = "install it: on Debian and Ubuntu, apt install libportaudio2"
        raise DependencyError(found, hint=hint) from error
    except Exception as error:  # a PortAudioError, whose class is lost with the module
        found = f"the sound system of this machine cannot be used: {error}"
        raise DeviceError(found, hint="record with another program, and give the file") from error
