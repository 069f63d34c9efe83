"""File -> waveform -> loudness -> clips -> spectrogram.

Knows nothing of models: which front end a checkpoint was trained with travels in the checkpoint
as a `FrontEnd`. Below, in pipeline order: `load`, `normalise_loudness`, `clips`, `read_clips`
(those three in one call) and `spectrogram`; `find` lists the recordings of a folder.
"""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from s2f.decoding import SAMPLE_RATE, FloatArray, decode, unusable

N_FFT = 512
N_FREQS = N_FFT // 2 + 1  # 257
HOP_LENGTH = SAMPLE_RATE // 100  # 160 samples, 10 ms
WIN_LENGTH = SAMPLE_RATE // 40  # 400 samples, 25 ms
N_MELS = 128

LOUDNESS_DBFS = -23.0  # RMS
SILENCE_DBFS = -90.0  # RMS: below the quantisation noise of 16-bit audio
MIN_SECONDS = 0.5

POWER = 0.3  # of the compression
POWER_KNEE = 1e-8  # below the rounding noise of a float32 FFT of audible sound
MEL_FLOOR = 1.192092955078125e-07  # Kaldi's: the float32 epsilon

SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .mp3 .m4a .aac .opus .webm "
    ".mp4 .m4v .mkv .mov .avi .3gp .wma .aif .aiff .amr .caf".split()
)


@dataclass(frozen=True)
class FrontEnd:
    """How a model wants its speech: part of its checkpoint, never an option of a command.

    Attributes:
        kind: `paper` (Oh et al. 2019), `seed` (its public reimplementation) or `ast`.
        clip_samples: length of a clip, in samples at `SAMPLE_RATE`.
        mean: of the log-mel features the model was trained on; `ast` only.
        std: likewise; features become (x - mean) / (2 std), so 0 and 0.5 change nothing.
    """

    kind: Literal["paper", "seed", "ast"]
    clip_samples: int = 6 * SAMPLE_RATE
    mean: float = 0.0
    std: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in ("paper", "seed", "ast"):
            raise ValueError(f"kind is {self.kind!r}; wanted paper, seed or ast")
        if self.clip_samples < WIN_LENGTH or not self.std > 0:
            raise ValueError(f"wanted clips of {WIN_LENGTH} samples or more and std > 0: {self}")

    @property
    def n_channels(self) -> int:
        """Channels of the spectrogram."""
        return 1 if self.kind == "ast" else 2

    @property
    def n_freqs(self) -> int:
        """Frequency rows of the spectrogram."""
        return N_MELS if self.kind == "ast" else N_FREQS

    def n_frames(self, n_samples: int) -> int:
        """Return the time columns of the spectrogram of `n_samples`, 0 if too short for one."""
        if self.kind == "seed":
            return 1 + n_samples // HOP_LENGTH
        return max(0, 1 + (n_samples - WIN_LENGTH) // HOP_LENGTH)


FRONT_ENDS: dict[str, FrontEnd] = {
    "paper": FrontEnd("paper"),  # [2 257 598]
    "seed": FrontEnd("seed"),  # [2 257 601]
    # 10.26 s are the 1024 frames of AST's position table; mean and std are AudioSet's.
    "ast": FrontEnd("ast", clip_samples=164_160, mean=-4.2677393, std=4.5689974),  # [1 128 1024]
}


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
    found: list[Path] = []
    for path in paths:
        if not os.path.exists(path):
            raise unusable(path, "does not exist", hint="Check its path.")
        inside = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in SUFFIXES
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
            and file.is_file()
        )
        if path.is_dir() and not inside:
            wanted = "files ending in " + " ".join(sorted(SUFFIXES))
            raise unusable(path, "holds no recording", wanted, "Name the folder of the speech.")
        found += inside if path.is_dir() else [path]
    return list(dict.fromkeys(found))


def load(path: Path) -> FloatArray:
    """Read the sound of any recording or video.

    Returns:
        waveform: mono [n], n >= 1, as recorded (about -1..1), at 16 kHz; the mean of the channels.

    Raises:
        AudioError: if the file is missing or cannot be read, and as in `decode`.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            found = "is a folder" if path.is_dir() else "is not a regular file"
            raise unusable(path, found, hint="Name a recording.")
        with path.open("rb") as file:
            return decode(file, str(path))
    except OSError as error:
        found = f"cannot be read ({error.strerror or error})"
        raise unusable(path, found, hint="Check its path and its permissions.") from error


def normalise_loudness(waveform: FloatArray, name: str = "the waveform") -> FloatArray:
    """Bring speech to an RMS of -23 dBFS; what then exceeds full scale is clipped.

    Args:
        waveform: mono [n].
        name: what the error message calls it.

    Returns:
        waveform: mono [n], -1..1.

    Raises:
        AudioError: if the RMS is below -90 dBFS, silence to 16-bit audio.

    Source: `ffmpeg-normalize -nt rms -t -23`, which the seed applies: RMS over all samples in
        double precision, gain in single precision, no limiter. We skip its rounding to int16.
    """
    power = np.mean(np.square(waveform, dtype=np.float64)) if waveform.size else 0.0
    if power < 10 ** (SILENCE_DBFS / 10):
        found = f"holds only silence (RMS below {SILENCE_DBFS:g} dBFS)"
        raise unusable(name, found, "speech", "Check the microphone and record again.")
    gain = np.float32(10 ** (LOUDNESS_DBFS / 20) / np.sqrt(power))
    loud: FloatArray = np.clip(waveform * gain, -1.0, 1.0)
    return loud


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


def read_clips(path: Path, front_end: FrontEnd) -> FloatArray:
    """Read a recording as a model wants it: 16 kHz, -23 dBFS, in clips of one length.

    Returns:
        [m clip_samples], m >= 1, -1..1.

    Raises:
        AudioError: as in `load` and `normalise_loudness`, or if it is shorter than 0.5 s.
    """
    waveform = load(path)
    seconds = waveform.size / SAMPLE_RATE
    if seconds < MIN_SECONDS:
        wanted = f"{MIN_SECONDS:g} s of speech or more"
        raise unusable(path, f"lasts {seconds:.2f} s", wanted, "Record a sentence or two.")
    return clips(normalise_loudness(waveform, str(path)), front_end.clip_samples)


def spectrogram(waveforms: Tensor, front_end: FrontEnd) -> Tensor:
    """Transform waveforms into what a voice encoder sees; same code on every device.

    Differentiable, with gradients that stay finite in silence.

    - `paper`: frames of 400 samples every 160, each under a periodic Hann window and followed by
      zeros to 512 as in TensorFlow, none beyond the ends; compressed real and imaginary parts.
    - `seed`: librosa's centred frames over zero padding; compressed magnitude and phase.
    - `ast`: Kaldi's log-mel filter bank over the frames of `paper`, then (x - mean) / (2 std).

    Args:
        waveforms: mono [b n], -1..1 at 16 kHz, n >= 400, float32 or float64.
        front_end: the model's.

    Returns:
        [b c f t] with c, f and t as `front_end` says.

    Source: Oh et al. 2019; the seed's audio_spectrograms.py; transformers'
        ASTFeatureExtractor, without its padding (clips have their full length).
    """
    if front_end.kind == "ast":
        return (_log_mel(waveforms) - front_end.mean) / (2 * front_end.std)
    window = torch.hann_window(WIN_LENGTH, dtype=torch.float64).to(waveforms)
    if front_end.kind == "paper":
        # Not torch.stft, which would put the window in the middle of the 512 and lose a frame.
        frames = waveforms.unfold(-1, WIN_LENGTH, HOP_LENGTH) * window  # [b t 400]
        spectrum = torch.fft.rfft(frames, n=N_FFT).transpose(1, 2)  # [b f t]
        return _compress(torch.stack([spectrum.real, spectrum.imag], dim=1))
    spectrum = torch.stft(
        waveforms, N_FFT, HOP_LENGTH, WIN_LENGTH, window, pad_mode="constant", return_complex=True
    )
    # An FFT may write -0 for 0, and the phase of -1 - 0i is -pi, of -0 + 0i pi: adding 0 gives +0.
    spectrum = spectrum + 0.0
    return _compress(torch.stack([spectrum.abs(), spectrum.angle()], dim=1))


def _compress(x: Tensor) -> Tensor:
    """Return sgn(x) |x|^0.3, but linear within +-1e-8, where its gradient would be infinite."""
    scale: Tensor = x.abs().clamp_min(POWER_KNEE) ** (POWER - 1)
    return x * scale


def _log_mel(waveforms: Tensor) -> Tensor:
    """Return Kaldi's log-mel energies of waveforms [b n] as [b 1 128 t]."""
    window = torch.hann_window(WIN_LENGTH, periodic=False, dtype=torch.float64).to(waveforms)
    frames = waveforms.unfold(-1, WIN_LENGTH, HOP_LENGTH)  # [b t 400]
    frames = frames - frames.mean(dim=-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    spectrum = torch.fft.rfft((frames - 0.97 * previous) * window, n=N_FFT)  # pre-emphasised
    power = spectrum.real.square() + spectrum.imag.square()  # [b t 257]
    with torch.autocast(waveforms.device.type, enabled=False):  # bfloat16 would spoil the energies
        mel = torch.matmul(power, torch.from_numpy(_mel_filters()).to(power))
    return mel.clamp_min(MEL_FLOOR).log().transpose(1, 2).unsqueeze(1)


@functools.cache
def _mel_filters() -> npt.NDArray[np.float64]:
    """Return Kaldi's triangles [257 128]: straight-sided in mel, 20 Hz to 8 kHz, height 1."""

    def mel(hertz: npt.ArrayLike) -> npt.NDArray[np.float64]:
        return 1127.0 * np.log1p(np.asarray(hertz, np.float64) / 700.0)

    edges = np.linspace(mel(20.0), mel(SAMPLE_RATE / 2), N_MELS + 2)
    bins = mel(np.arange(N_FREQS) * SAMPLE_RATE / N_FFT)[:, np.newaxis]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))
