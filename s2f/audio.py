"""Any recording -> mono at 16 kHz -> the loudness that models are trained at -> clips.

`read_speech` reads a file, a stream or an array of any format, length and rate at -23 dBFS, and
`Speech.clips` cuts it; `load_audio` leaves the sound as recorded, and `record` takes it from the
microphone. libsndfile decodes what it knows, FFmpeg the rest. Sound is held in memory whole, 230 MB
an hour. Knows nothing of spectrograms.
"""

import contextlib
import io
import itertools
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    """Sound that is an array already: of a microphone, or of other Python code.

    Attributes:
        samples: [n] or [n c], floating point of about -1..1, or integers of their type's range.
        rate: samples a second.
    """

    samples: npt.NDArray[Any]
    rate: int


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


@dataclass(frozen=True)
class Speech:
    """A recording, or a part of it, that is heard at -23 dBFS.

    Attributes:
        name: what error messages call it.
        start: where it starts in the recording, samples at 16 kHz.
        recorded: [n], n >= 8,000: mono at 16 kHz as recorded, about -1..1.
        gain: what its samples are multiplied by.
    """

    name: str
    start: int
    recorded: FloatArray
    gain: np.float32

    @property
    def n_samples(self) -> int:
        """Its length."""
        return len(self.recorded)

    def waveform(self, start: int = 0, stop: int | None = None) -> FloatArray:
        """Return its samples from `start` to `stop` (default: the end): mono [n], -1..1."""
        samples: FloatArray = np.clip(self.recorded[start:stop] * self.gain, -1.0, 1.0)
        return samples

    def blocks(self) -> Iterator[FloatArray]:
        """Yield all of its samples, some at a time: mono [n], -1..1."""
        for start in range(0, self.n_samples, _BLOCK_VALUES):
            yield self.waveform(start, start + _BLOCK_VALUES)

    def clips(self, clip_samples: int) -> Iterator[FloatArray]:
        """Yield each clip [clip_samples] that `clips` cuts, one at a time."""
        for start in _starts(self.n_samples, clip_samples):
            yield np.resize(self.waveform(start, start + clip_samples), clip_samples)

    def n_clips(self, clip_samples: int) -> int:
        """Return how many clips there are, at least 1."""
        return len(_starts(self.n_samples, clip_samples))


def read_speech(
    source: Path | BinaryIO | Waveform,
    *,
    name: str | None = None,
    start: float = 0.0,
    duration: float | None = None,
    trim_silence: float | None = None,
) -> Speech:
    """Read a recording of any format to hear it at an RMS of -23 dBFS.

    What exceeds full scale at that loudness is clipped. In 16 bits (`to_int16`), sound that is
    mono at 16 kHz has the very samples of FFmpeg; other sound is measured after it became that.

    Args:
        source: path of a recording or video; a stream of its bytes, of which one that cannot seek
            is copied to a temporary file first; or an array.
        name: what error messages call it; default: the path, else "the recording".
        start: of the part that is wanted, seconds; rounded to 10 ms.
        duration: of that part, seconds; rounded to 10 ms. It ends with the recording at the
            latest, and what comes after it is not read. Default: to the end.
        trim_silence: dB; frames of 10 ms that are further below the loudest one are cut from both
            ends of the part before the loudness is measured. Default: nothing is cut.

    Raises:
        UsageError: if `start`, `duration` or `trim_silence` makes no sense.
        AudioError: if it is missing, a folder or a pipe, empty, not sound, without a sound track or
            samples, holds NaN or infinite samples, or is an array that is no sound; if it ends
            before `start`, if the part lasts less than 0.5 s, or if its RMS is below -90 dBFS,
            silence to 16-bit audio.
        OutputError: if there is no room for the copy of a stream.

    Source: `ffmpeg-normalize -nt rms -t -23`, which the seed applies: FFmpeg's filter astats over
        all samples in double precision, to 6 decimals of a dB and with 16-bit samples divided by
        32767; then its filter volume in single precision, no limiter.
    """
    check_part(start, duration, trim_silence)
    name = name or (str(source) if isinstance(source, Path) else "the recording")
    first, stop = round(start * 100) * FRAME_SAMPLES, sys.maxsize
    if duration is not None:
        stop = first + round(duration * 100) * FRAME_SAMPLES
    recorded, is_16_bit = _read(source, name, first, stop)
    powers = _powers(recorded, name)
    if trim_silence is not None:
        loud = np.flatnonzero(powers >= powers.max() * 10 ** (-trim_silence / 10))
        sounding = slice(int(loud[0]), int(loud[-1]) + 1)
        first += sounding.start * FRAME_SAMPLES
        recorded = recorded[sounding.start * FRAME_SAMPLES : sounding.stop * FRAME_SAMPLES]
        powers = powers[sounding]
    seconds = len(recorded) / SAMPLE_RATE
    if seconds < MIN_SECONDS:
        where = f" from {start:g} s on" if start else ""
        where += " without its silence" if trim_silence else ""
        cure = "Start earlier." if start else "Record a sentence or two."
        wanted = f"{MIN_SECONDS:g} s of speech or more"
        raise _unusable(name, f"lasts {seconds:.2f} s{where}", wanted, cure)
    power = float(powers.sum()) / len(recorded)
    if power < 10 ** (SILENCE_DBFS / 10):
        found = f"holds only silence (RMS below {SILENCE_DBFS:g} dBFS)"
        raise _unusable(name, found, "speech", "Check the microphone and record again.")
    rms = math.sqrt(power) * (32768 / 32767 if is_16_bit else 1)
    gain = np.float32(10 ** ((LOUDNESS_DBFS - round(20 * math.log10(rms), 6)) / 20))
    return Speech(name, first, recorded, gain)


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


def clips(waveform: FloatArray, clip_samples: int) -> FloatArray:
    """Cut speech [n], n >= 1, into clips [m clip_samples], m >= 1.

    Shorter speech is looped. Longer speech gives consecutive clips; a rest of half a clip or more
    becomes a clip too, filled with the speech before it, and a shorter rest is dropped.
    """
    if not waveform.size:
        raise ValueError("an empty waveform cannot be looped")
    starts = _starts(len(waveform), clip_samples)
    return np.stack([np.resize(waveform[s : s + clip_samples], clip_samples) for s in starts])


def _starts(n_samples: int, clip_samples: int) -> list[int]:
    """Where the clips of speech start; one that is shorter is to be repeated."""
    starts = list(range(0, n_samples - clip_samples + 1, clip_samples))
    if starts and 2 * (n_samples % clip_samples) >= clip_samples:
        starts.append(n_samples - clip_samples)
    return starts or [0]


def to_int16(waveform: FloatArray) -> npt.NDArray[np.int16]:
    """Turn samples of -1..1 into integers of 16 bits: x 32768, rounded half to even, clipped."""
    samples: npt.NDArray[np.int16] = (
        np.rint(waveform * np.float32(32768)).clip(-32768, 32767).astype(np.int16)
    )
    return samples


def load_audio(path: Path) -> FloatArray:
    """Read the sound of any recording or video.

    Returns:
        waveform: mono [n], n >= 1, as recorded (about -1..1), at 16 kHz; the mean of the channels.

    Raises:
        AudioError: as in `read_speech`, but for its length and its silence.
    """
    waveform, _ = _read(path, str(path), 0, sys.maxsize)
    _powers(waveform, str(path))
    return waveform


def _powers(waveform: FloatArray, name: str) -> npt.NDArray[np.float64]:
    """The sums of the squares of each `FRAME_SAMPLES`; the last may be fewer. They are finite."""
    powers = np.empty(-(-len(waveform) // FRAME_SAMPLES))
    for frame in range(0, len(powers), 400):
        part = waveform[frame * FRAME_SAMPLES : (frame + 400) * FRAME_SAMPLES]
        starts = np.arange(0, len(part), FRAME_SAMPLES)
        sums = np.add.reduceat(np.square(part, dtype=np.float64), starts)
        if not np.isfinite(sums).all():
            raise _unusable(name, "holds samples that are NaN or infinite", "finite ones")
        powers[frame : frame + 400] = sums
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
            reason = error.strerror or error
            raise OutputError(
                f"{name} cannot be copied to the folder for temporary files ({reason})",
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
    # libsndfile reads a file by a descriptor of its own: it would swallow a Ctrl-C or SIGTERM that
    # comes while it calls back for a stream's bytes.
    # A page's visitor's file has no name any more when it is read, and is read by its stream.
    name: Any = getattr(data, "name", None)
    is_file = isinstance(data, io.BufferedReader) and isinstance(name, str) and os.path.exists(name)
    opened: Any = data
    if is_file and os.path.samestat(Path(name).stat(), os.fstat(data.fileno())):
        opened = os.open(name, os.O_RDONLY)
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
    name: Path | str, found: str, wanted: str = _RECORDING, hint: str = _SAVE_AGAIN
) -> AudioError:
    return AudioError(f"{name} {found}; wanted {wanted}", hint=hint)


def record(seconds: float, *, progress: Progress = silent) -> Waveform:
    """Record from the default input device, at that device's own rate.

    Where the computer cannot keep up, the device drops samples: what is there is joined, and
    recorded until it lasts `seconds`, 0.5 to 600. Progress is told in seconds.

    Returns:
        Mono, float32 of -1..1.

    Raises:
        UsageError: if `seconds` is out of range.
        DependencyError: if sounddevice or PortAudio is not installed.
        DeviceError: if there is no input device, or it refuses to record.
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
        raise DeviceError(
            f"no sound can be recorded: {error}",
            hint="connect a microphone, and choose it in the system's sound settings",
        ) from error
    progress(total, total, what)
    return Waveform(samples, rate)


def check_seconds(seconds: float) -> None:
    """Raise a `UsageError` if so many are not recorded."""
    if not MIN_SECONDS <= seconds <= MAX_RECORDED_SECONDS:
        wanted = f"{MIN_SECONDS:g} to {MAX_RECORDED_SECONDS:g}"
        message = f"{seconds:g} s are to be recorded; wanted {wanted}"
        raise UsageError(message, hint="6 s are one clip of speech")


def _sounddevice() -> Any:
    try:
        import sounddevice

        return sounddevice
    except ImportError as error:
        raise DependencyError(
            "recording needs the package sounddevice, which is not installed",
            hint="pip install 's2f[record]'",
        ) from error
    except OSError as error:
        raise DependencyError(
            f"recording needs PortAudio, which cannot be loaded ({error})",
            hint="install it: on Debian and Ubuntu, apt install libportaudio2",
        ) from error
    except Exception as error:  # a PortAudioError, whose class is lost with the module
        raise DeviceError(
            f"the sound system of this machine cannot be used: {error}",
            hint="record with another program, and give the file",
        ) from error
