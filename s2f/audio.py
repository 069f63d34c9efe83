"""File, stream or array -> waveform -> loudness -> clips.

Knows nothing of spectrograms, which `front_end` makes. `open_speech` reads a recording of any
length, or a part of it, in blocks or clips at the loudness that every model is trained with, and
`read_speech` at once; `load` leaves it as recorded, and `find` lists the recordings of a folder.
"""

import contextlib
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from s2f import listing
from s2f.decoding import SAMPLE_RATE, FloatArray, Waveform, unusable
from s2f.errors import AudioError, UsageError
from s2f.layout import is_array
from s2f.recording import FRAME, Recording, open_recording

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
    first, stop = round(start * 100) * FRAME, None
    if duration is not None:
        stop = first + round(duration * 100) * FRAME
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
        frames = slice((first - recording.start) // FRAME, -((recording.start - last) // FRAME))
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
    last = recording.start + (int(loud[-1]) + 1) * FRAME
    return recording.start + int(loud[0]) * FRAME, min(last, recording.stop)


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
