"""File -> waveform -> loudness -> clips.

Knows nothing of spectrograms, which `front_end` makes. `open_speech` reads a recording of any
length in blocks at the loudness that every model is trained with, `read_speech` at once, and
`read_clips` in clips of one length; `load` leaves it as recorded, and `find` lists the recordings
of a folder.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from s2f import listing
from s2f.decoding import FRAME, SAMPLE_RATE, FloatArray, Recording, decode, scan, unusable
from s2f.errors import AudioError
from s2f.layout import is_array

LOUDNESS_DBFS = -23.0  # RMS
SILENCE_DBFS = -90.0  # RMS: below the quantisation noise of 16-bit audio
MIN_SECONDS = 0.5

SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .mp3 .m4a .aac .opus .webm "
    ".mp4 .m4v .mkv .mov .avi .3gp .wma .aif .aiff .amr .caf".split()
)


def find(paths: Sequence[Path]) -> list[Path]:
    """List the recordings among files and folders.

    Args:
        paths: files, kept whatever their suffix, and folders, searched at every depth for
            `SUFFIXES`; hidden files and folders in them are passed over.

    Returns:
        The recordings in the order of `paths`, sorted within a folder, each once.

    Raises:
        AudioError: if a path is missing or a folder holds no recording.
    """
    return listing.find(paths, is_recording, "recordings", AudioError)


def is_recording(name: str) -> bool:
    """Tell by a file's name whether it is a recording, or a video with sound."""
    return Path(name).suffix.lower() in SUFFIXES


def is_voice(name: str) -> bool:
    """Tell by a file's name whether it is a recording, or an array made of one."""
    return is_recording(name) or is_array(name)


def load(path: Path) -> FloatArray:
    """Read the sound of any recording or video.

    Returns:
        waveform: mono [n], n >= 1, as recorded (about -1..1), at 16 kHz; the mean of the channels.

    Raises:
        AudioError: if the file is missing or cannot be read, and as in `decode`.
    """
    with _readable(path), path.open("rb") as file:
        return decode(file, str(path))


@dataclass(frozen=True)
class Speech:
    """A recording at -23 dBFS; good for as long as its file is open.

    Attributes:
        start: where it starts in the recording, samples at 16 kHz: 0 unless silence was trimmed.
        n_samples: its length, at least 0.5 s.
        gain: what its samples are multiplied by.
    """

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


@contextlib.contextmanager
def open_speech(path: Path, *, trim_silence: float | None = None) -> Iterator[Speech]:
    """Open a recording of any length to read it at an RMS of -23 dBFS.

    What exceeds full scale at that loudness is clipped. In 16 bits (`to_int16`), sound that is
    mono at 16 kHz has the very samples of FFmpeg; other sound is measured after it became that.

    Args:
        path: of a recording or video.
        trim_silence: dB; frames of 10 ms that are further below the loudest one are cut from both
            ends before the loudness is measured. Default: nothing is cut.

    Raises:
        AudioError: as in `load`, if it lasts less than 0.5 s, or if its RMS is below -90 dBFS,
            silence to 16-bit audio.

    Source: `ffmpeg-normalize -nt rms -t -23`, which the seed applies: FFmpeg's filter astats over
        all samples in double precision, to 6 decimals of a dB and with 16-bit samples divided by
        32767; then its filter volume in single precision, no limiter.
    """
    with contextlib.ExitStack() as stack:
        with _readable(path):
            recording = scan(stack.enter_context(path.open("rb")), str(path))
        start, stop = 0, recording.n_samples
        if trim_silence is not None:
            start, stop = _sounding(recording, trim_silence)
        seconds = (stop - start) / SAMPLE_RATE
        if seconds < MIN_SECONDS:
            found = f"lasts {seconds:.2f} s" + (" without its silence" if trim_silence else "")
            wanted = f"{MIN_SECONDS:g} s of speech or more"
            raise unusable(path, found, wanted, "Record a sentence or two.")
        powers = recording.powers[start // FRAME : -(-stop // FRAME)]
        gain = _gain(float(powers.sum()) / (stop - start), recording)
        yield Speech(start, stop - start, gain, recording)


def _sounding(recording: Recording, trim_silence: float) -> tuple[int, int]:
    """Return where the first frame that is no silence starts and the last one stops, samples."""
    loud = np.flatnonzero(recording.powers >= recording.powers.max() * 10 ** (-trim_silence / 10))
    return int(loud[0]) * FRAME, min((int(loud[-1]) + 1) * FRAME, recording.n_samples)


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
    if waveform.size < clip_samples:
        return np.resize(waveform, (1, clip_samples))  # np.resize repeats
    m, rest = divmod(waveform.size, clip_samples)
    consecutive = waveform[: m * clip_samples].reshape(m, clip_samples)
    if 2 * rest < clip_samples:
        return consecutive
    return np.concatenate([consecutive, waveform[np.newaxis, -clip_samples:]])


def read_speech(path: Path) -> FloatArray:
    """Read a recording at -23 dBFS: mono [n], -1..1 at 16 kHz.

    Raises:
        AudioError: as in `open_speech`.
    """
    with open_speech(path) as speech:
        return speech.waveform()


def read_clips(path: Path, clip_samples: int) -> FloatArray:
    """Read a recording as a model wants it: 16 kHz, -23 dBFS, in clips of one length.

    Returns:
        [m clip_samples], m >= 1, -1..1.

    Raises:
        AudioError: as in `open_speech`.
    """
    return clips(read_speech(path), clip_samples)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what the system says of a file that cannot be read into an `AudioError`."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            found = "is a folder" if path.is_dir() else "is not a regular file"
            raise unusable(path, found, hint="Name a recording.")
        yield
    except OSError as error:
        found = f"cannot be read ({error.strerror or error})"
        raise unusable(path, found, hint="Check its path and its permissions.") from error
