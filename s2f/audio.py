"""File, stream or array -> blocks of samples, as they are there.

`read_with_soundfile` lets libsndfile read what it knows, and `read_with_av` lets FFmpeg read the
rest; `read_array` reads arrays. Which is asked, and what becomes of the blocks, `recording` knows.

Recording -> mono samples at 16 kHz, whatever the format, the length and the rate.

`open_recording` reads a recording, or a part of it, once to measure it, and gives a `Recording`
whose `blocks` are then there to be used. Which files are recordings, and what becomes of their
samples, is for `audio`.

File, stream or array -> waveform -> loudness -> clips.

Knows nothing of spectrograms, which `front_end` makes. `open_speech` reads a recording of any
length, or a part of it, in blocks or clips at the loudness that every model is trained with, and
`read_speech` at once; `load` leaves it as recorded, and `find` lists the recordings of a folder.

Microphone -> waveform.

Needs the optional package sounddevice, and PortAudio, which it comes with except on Linux.
"""

import contextlib
import functools
import io
import itertools
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from s2f import files
from s2f.console import Progress, silent
from s2f.errors import AudioError, DependencyError, DeviceError, OutputError, UsageError
from s2f.layout import is_array

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


def read_waveform(waveform: Waveform, name: str) -> Iterator[Block]:
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


FRAME_SAMPLES = SAMPLE_RATE // 100  # 160 samples, 10 ms: what powers are measured in
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
        return measured(read_waveform)
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
        powers.append(np.add.reduceat(squares, np.arange(0, len(squares), FRAME_SAMPLES)))
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
        whole = len(held) - len(held) % FRAME_SAMPLES
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


LOUDNESS_DBFS = -23.0  # RMS
SILENCE_DBFS = -90.0  # RMS: below the quantisation noise of 16-bit audio
MIN_SECONDS = 0.5

SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .mp3 .m4a .aac .opus .webm "
    ".mp4 .m4v .mkv .mov .avi .3gp .wma .aif .aiff .amr .caf".split()
)


def find_recordings(paths: Sequence[Path]) -> list[Path]:
    """List the recordings among files and folders.

    Args:
        paths: files, kept whatever their suffix, and folders, searched at every depth for
            `SUFFIXES`; hidden files and folders in them are passed over.

    Returns:
        The recordings in the order of `paths`, sorted within a folder, each once.

    Raises:
        AudioError: if a path is missing or a folder holds no recording.
    """
    return files.find_files(paths, is_recording, "recordings", AudioError)


def is_recording(name: str) -> bool:
    """Tell by a file's name whether it is a recording, or a video with sound."""
    return Path(name).suffix.lower() in SUFFIXES


def is_voice(name: str) -> bool:
    """Tell by a file's name whether it is a recording, or an array made of one."""
    return is_recording(name) or is_array(name)


def load_audio(path: Path) -> FloatArray:
    """Read the sound of any recording or video.

    Returns:
        waveform: mono [n], n >= 1, as recorded (about -1..1), at 16 kHz; the mean of the channels.

    Raises:
        AudioError: as in `open_recording`.
    """
    with open_recording(path, kept_samples=sys.maxsize) as recording:
        return np.concatenate(list(recording.blocks()))


@dataclass(frozen=True)
class Speech:
    """A recording at -23 dBFS; good for as long as its file is open.

    Attributes:
        name: what error messages call it.
        start: where it starts in the recording, samples at 16 kHz.
        n_samples: its length, at least 0.5 s.
        gain: what its samples are multiplied by.
    """

    name: str
    start: int
    n_samples: int
    gain: np.float32
    _recording: Recording

    def blocks(self, n_samples: int | None = None) -> Iterator[FloatArray]:
        """Yield the first `n_samples` (default: all) in blocks: mono [n], -1..1.

        Raises:
            AudioError: if the file changed since it was measured.
        """
        n_samples = self.n_samples if n_samples is None else min(n_samples, self.n_samples)
        for block in self._recording.blocks(self.start, self.start + n_samples):
            yield np.clip(block * self.gain, -1.0, 1.0)

    def waveform(self, n_samples: int | None = None) -> FloatArray:
        """Return the first `n_samples` (default: all) at once: mono [n], -1..1."""
        return np.concatenate(list(self.blocks(n_samples)))

    def clips(self, clip_samples: int) -> Iterator[FloatArray]:
        """Yield each clip [clip_samples] that `clips` cuts; only about two are in memory.

        Raises:
            AudioError: as in `blocks`.
        """
        return _cut(self.blocks(), clip_samples)

    def n_clips(self, clip_samples: int) -> int:
        """Return how many clips there are, at least 1."""
        return max(1, (2 * self.n_samples + clip_samples) // (2 * clip_samples))  # half: up


@contextlib.contextmanager
def open_speech(
    source: Path | BinaryIO | Waveform,
    *,
    name: str | None = None,
    start: float = 0.0,
    duration: float | None = None,
    trim_silence: float | None = None,
) -> Iterator[Speech]:
    """Open a recording of any length to read it at an RMS of -23 dBFS.

    What exceeds full scale at that loudness is clipped. In 16 bits (`to_int16`), sound that is
    mono at 16 kHz has the very samples of FFmpeg; other sound is measured after it became that.

    Args:
        source: as in `open_recording`.
        name: what error messages call it; default: the path, else "the recording".
        start: of the part that is wanted, seconds; rounded to 10 ms.
        duration: of that part, seconds; rounded to 10 ms. It ends with the recording at the
            latest, and what comes after it is not read. Default: to the end.
        trim_silence: dB; frames of 10 ms that are further below the loudest one are cut from both
            ends of the part before the loudness is measured. Default: nothing is cut.

    Raises:
        UsageError: if `start`, `duration` or `trim_silence` makes no sense.
        AudioError: as in `open_recording`, if it ends before `start`, if the part lasts less than
            0.5 s, or if its RMS is below -90 dBFS, silence to 16-bit audio.
        OutputError: if there is no room for the copy of a stream.

    Source: `ffmpeg-normalize -nt rms -t -23`, which the seed applies: FFmpeg's filter astats over
        all samples in double precision, to 6 decimals of a dB and with 16-bit samples divided by
        32767; then its filter volume in single precision, no limiter.
    """
    check_part(start, duration, trim_silence)
    first, stop = round(start * 100) * FRAME_SAMPLES, None
    if duration is not None:
        stop = first + round(duration * 100) * FRAME_SAMPLES
    with open_recording(source, name=name, start=first, stop=stop) as recording:
        first, last = recording.start, recording.stop
        if trim_silence is not None:
            first, last = _sounding(recording, trim_silence)
        seconds = (last - first) / SAMPLE_RATE
        if seconds < MIN_SECONDS:
            found = f"lasts {seconds:.2f} s"
            found += f" from {start:g} s on" if start else ""
            found += " without its silence" if trim_silence else ""
            wanted = f"{MIN_SECONDS:g} s of speech or more"
            cure = "Start earlier." if start else "Record a sentence or two."
            raise unusable(recording.name, found, wanted, cure)
        frames = slice(
            (first - recording.start) // FRAME_SAMPLES, -((recording.start - last) // FRAME_SAMPLES)
        )
        gain = _gain(float(recording.powers[frames].sum()) / (last - first), recording)
        yield Speech(recording.name, first, last - first, gain, recording)


def check_part(
    start: float = 0.0, duration: float | None = None, trim_silence: float | None = None
) -> None:
    """Make sure that there can be such a part of a recording, as `open_speech` takes it.

    Raises:
        UsageError: if there cannot.
    """
    if not 0 <= start < math.inf:
        message = f"speech is to start at {start:g} s; wanted 0 s or later"
        raise UsageError(message, hint="leave it out to start at the beginning")
    if duration is not None and not MIN_SECONDS <= duration < math.inf:
        message = f"speech is to last {duration:g} s; wanted {MIN_SECONDS:g} s or more"
        raise UsageError(message, hint="leave it out to use all of a recording")
    if trim_silence is not None and not 0 < trim_silence < math.inf:
        message = f"silence is to be trimmed {trim_silence:g} dB below the loudest frame"
        raise UsageError(f"{message}; wanted more than 0 dB", hint="60 is usual")


def _sounding(recording: Recording, trim_silence: float) -> tuple[int, int]:
    """Return where the first frame that is no silence starts and the last one stops, samples."""
    loud = np.flatnonzero(recording.powers >= recording.powers.max() * 10 ** (-trim_silence / 10))
    last = recording.start + (int(loud[-1]) + 1) * FRAME_SAMPLES
    return recording.start + int(loud[0]) * FRAME_SAMPLES, min(last, recording.stop)


def _gain(power: float, recording: Recording) -> np.float32:
    """Return what brings sound of a mean square to -23 dBFS."""
    if power < 10 ** (SILENCE_DBFS / 10):
        found = f"holds only silence (RMS below {SILENCE_DBFS:g} dBFS)"
        raise unusable(recording.name, found, "speech", "Check the microphone and record again.")
    rms = math.sqrt(power) * (32768 / 32767 if recording.is_16_bit else 1)
    return np.float32(10 ** ((LOUDNESS_DBFS - round(20 * math.log10(rms), 6)) / 20))


def to_int16(waveform: FloatArray) -> npt.NDArray[np.int16]:
    """Turn samples of -1..1 into integers of 16 bits: x 32768, rounded half to even, clipped."""
    samples: npt.NDArray[np.int16] = (
        np.rint(waveform * np.float32(32768)).clip(-32768, 32767).astype(np.int16)
    )
    return samples


def clips(waveform: FloatArray, clip_samples: int) -> FloatArray:
    """Cut speech into clips of one length.

    Shorter speech is looped. Longer speech gives consecutive clips; a rest of half a clip or more
    becomes a clip too, filled with the speech before it, and a shorter rest is dropped.

    Args:
        waveform: mono [n], n >= 1.
        clip_samples: length of a clip.

    Returns:
        [m clip_samples], m >= 1.
    """
    if not waveform.size:
        raise ValueError("an empty waveform cannot be looped")
    return np.stack(list(_cut([waveform], clip_samples)))


def _cut(blocks: Iterable[FloatArray], clip_samples: int) -> Iterator[FloatArray]:
    """Cut blocks of speech, at least one sample, into clips, as `clips` says it."""
    before: FloatArray | None = None
    rest = np.empty(0, np.float32)
    for block in blocks:
        rest = np.concatenate([rest, block]) if rest.size else block
        while len(rest) >= clip_samples:
            before, rest = rest[:clip_samples], rest[clip_samples:]
            yield before
    if before is None:
        yield np.resize(rest, clip_samples)  # np.resize repeats
    elif 2 * len(rest) >= clip_samples:
        yield np.concatenate([before[len(rest) :], rest])


def read_speech(path: Path) -> FloatArray:
    """Read a recording at -23 dBFS: mono [n], -1..1 at 16 kHz.

    Raises:
        AudioError: as in `open_speech`.
    """
    with open_speech(path) as speech:
        return speech.waveform()


MIN_RECORDED_SECONDS, MAX_SECONDS = 0.5, 600.0
_BLOCK_SECONDS = 0.1  # so that Ctrl-C does not wait long


def record(seconds: float, *, progress: Progress = silent) -> Waveform:
    """Record from the default input device, at that device's own rate.

    Where the computer cannot keep up, the device drops samples: what is there is joined, and
    recorded until it lasts `seconds`.

    Args:
        seconds: of sound, 0.5 to 600.
        progress: what to report to, in seconds.

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
        return _record(sounddevice, seconds, progress)
    # ValueError is what sounddevice says of a default device that has no input.
    except (sounddevice.PortAudioError, ValueError) as error:
        raise DeviceError(
            f"no sound can be recorded: {error}",
            hint="connect a microphone, and choose it in the system's sound settings",
        ) from error


def check_seconds(seconds: float) -> None:
    """Raise a `UsageError` if so many are not recorded."""
    if not MIN_RECORDED_SECONDS <= seconds <= MAX_SECONDS:
        message = (
            f"{seconds:g} s are to be recorded; wanted {MIN_RECORDED_SECONDS:g} to {MAX_SECONDS:g}"
        )
        raise UsageError(message, hint="6 s are one clip of speech")


def _record(sounddevice: Any, seconds: float, progress: Progress) -> Waveform:
    device = sounddevice.query_devices(kind="input")
    rate = round(device["default_samplerate"])
    n, block, total = round(seconds * rate), round(_BLOCK_SECONDS * rate), math.ceil(seconds)
    samples: FloatArray = np.empty(n, np.float32)
    stream = sounddevice.InputStream(samplerate=rate, channels=1, dtype="float32")
    what = f"recording from {device['name']}"
    with contextlib.closing(stream):  # also when it does not start, which `with stream` leaves open
        stream.start()
        for start in range(0, n, block):
            progress(start // rate, total, what)
            piece, _ = stream.read(min(block, n - start))  # the other: whether samples were dropped
            samples[start : start + block] = piece[:, 0]
    progress(total, total, what)
    return Waveform(samples, rate)


def _sounddevice() -> Any:
    try:
        import sounddevice
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
    return sounddevice
