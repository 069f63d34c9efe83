"""Waveforms -> what a voice encoder sees, and the statistics of it over a training set.

Which front end a model was trained with travels in its checkpoint as a `FrontEnd`. Imports torch
only to transform, so that a command may plan by `FRONT_ENDS` without it.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from s2f.audio import LOUDNESS_DBFS, SAMPLE_RATE, SILENCE_DBFS, FloatArray
from s2f.errors import DatasetError, DependencyError
from s2f.files import sealed, unsealed, write_bytes

if TYPE_CHECKING:
    from torch import Tensor

N_FFT = 512
N_FREQS = N_FFT // 2 + 1  # 257
HOP_LENGTH = SAMPLE_RATE // 100  # 160 samples, 10 ms
WIN_LENGTH = SAMPLE_RATE // 40  # 400 samples, 25 ms
N_MELS = 128
MEL_LOW = 20.0  # Hz, the lower end of the lowest filter
N_BANDS = 40  # mel bands of `speaker`
# Of a speaker encoder, in frames: 1.6 s, and 1.3 a second.
WINDOW_FRAMES, WINDOW_STEP, WINDOW_LEAST = 160, 77, 120
SPEAKER_DBFS = -30.0  # RMS

POWER = 0.3  # of the compression
POWER_KNEE = 1e-8  # below the rounding noise of a float32 FFT of audible sound
MEL_FLOOR = 1.192092955078125e-07  # Kaldi's: the float32 epsilon


@dataclass(frozen=True)
class FrontEnd:
    """How a model wants its speech: part of its checkpoint, never an option of a command.

    Log-mel features become (x - mean) / (2 std), mean and std being those of the training set.
    """

    kind: Literal["paper", "seed", "log_mel", "ast", "speaker"]  # as `spectrogram` describes them
    clip_samples: int = 6 * SAMPLE_RATE
    mean: float = 0.0
    std: float = 0.5  # with which nothing changes

    def __post_init__(self) -> None:
        if self.kind not in ("paper", "seed", "log_mel", "ast", "speaker"):
            raise ValueError(f"kind is {self.kind!r}; wanted paper, seed, log_mel, ast or speaker")
        if self.clip_samples < WIN_LENGTH or not self.std > 0:
            raise ValueError(f"wanted clips of {WIN_LENGTH} samples or more and std > 0: {self}")

    @property
    def is_log_mel(self) -> bool:
        """Whether it gives log-mel energies, and not a compressed spectrum."""
        return self.kind in ("log_mel", "ast")

    @property
    def n_channels(self) -> int:
        """Channels of the spectrogram."""
        return 2 if self.kind in ("paper", "seed") else 1

    @property
    def n_freqs(self) -> int:
        """Frequency rows of the spectrogram."""
        if self.kind == "speaker":
            return N_BANDS
        return N_MELS if self.is_log_mel else N_FREQS

    @property
    def is_centred(self) -> bool:
        """Whether its frames are centred, so that the first and last reach beyond the ends."""
        return self.kind in ("seed", "speaker")

    def n_frames(self, n_samples: int) -> int:
        """Return the time columns of the spectrogram of `n_samples`, 0 if too short for one."""
        if not self.is_centred:
            return max(0, 1 + (n_samples - WIN_LENGTH) // HOP_LENGTH)
        frames = 1 + n_samples // HOP_LENGTH
        if self.kind == "speaker":  # a last window that is three quarters full is filled
            steps = max(0, (frames - 1 - WINDOW_LEAST) // WINDOW_STEP)
            frames = max(frames, WINDOW_FRAMES + steps * WINDOW_STEP)
        return frames

    def row(self, hertz: float) -> float:
        """Return the frequency row of the spectrogram in which a tone of 20 Hz to 8 kHz lies."""
        if self.kind == "speaker":
            return float(np.interp(hertz, _band_edges(), np.arange(-1, N_BANDS + 1)))
        if not self.is_log_mel:
            return hertz * N_FFT / SAMPLE_RATE
        low, high, tone = _mel([MEL_LOW, SAMPLE_RATE / 2, hertz])
        return float((tone - low) / (high - low) * (N_MELS + 1) - 1)


FRONT_ENDS: dict[str, FrontEnd] = {
    "paper": FrontEnd("paper"),  # [2 257 598]
    "seed": FrontEnd("seed"),  # [2 257 601]
    # 10.26 s are the 1024 frames of AST's position table; mean and std are AudioSet's.
    "ast": FrontEnd("ast", clip_samples=164_160, mean=-4.2677393, std=4.5689974),  # [1 128 1024]
    # 6.21 s are 7 windows to the sample: none ends in zeros.
    "speaker": FrontEnd("speaker", clip_samples=99_360),  # [1 40 622]
}


def spectrogram(waveforms: Tensor, front_end: FrontEnd) -> Tensor:
    """Transform mono waveforms [b n], -1..1, n >= 400, into what a voice encoder sees: [b c f t].

    In float32 or float64, on any device. Differentiable, with gradients finite in silence. Raises a
    `DependencyError` if torchaudio, which `ast` needs, cannot be imported.

    - `paper`: frames of 400 samples every 160, each under a periodic Hann window and followed by
      zeros to 512 as in TensorFlow, none beyond the ends; compressed real and imaginary parts.
    - `seed`: librosa's centred frames over zero padding; compressed magnitude and phase.
    - `log_mel`: Kaldi's log-mel filter bank over the frames of `paper`, then (x - mean) / (2 std).
    - `ast`: the same features, by torchaudio.
    - `speaker`: librosa's mel spectrogram of 40 bands, in power, of the waveform at an RMS of -30
      dBFS, followed by zeros to the end of the last window of a speaker encoder (1.6 s, every 0.77
      s) that is to three quarters of the speech. Resemblyzer raises what is softer and leaves what
      is louder; what is heard here has lost its loudness before, and is brought to it either way.

    Source: Oh et al. 2019; the seed; transformers' ASTFeatureExtractor, without its padding;
    Resemblyzer, without its voice detector.
    """
    import torch

    if front_end.kind == "speaker":
        with torch.autocast(waveforms.device.type, enabled=False):
            return _bands(waveforms, front_end).transpose(1, 2).unsqueeze(1)
    if front_end.is_log_mel:
        with torch.autocast(waveforms.device.type, enabled=False):  # bfloat16 spoils energies
            bands = (_log_mel if front_end.kind == "log_mel" else _kaldi)(waveforms)
        return (bands.transpose(1, 2).unsqueeze(1) - front_end.mean) / (2 * front_end.std)
    window = torch.hann_window(WIN_LENGTH, dtype=torch.float64).to(waveforms)
    if front_end.kind == "paper":
        # Not torch.stft, which would put the window in the middle of the 512 and lose a frame.
        frames = waveforms.unfold(-1, WIN_LENGTH, HOP_LENGTH) * window  # [b t 400]
        spectrum = torch.fft.rfft(frames, n=N_FFT).transpose(1, 2)  # [b f t]
        return _compress(torch.stack([spectrum.real, spectrum.imag], dim=1))
    margin = (N_FFT - WIN_LENGTH) // 2
    padded = torch.nn.functional.pad(waveforms, 2 * [N_FFT // 2])
    frames = padded.unfold(-1, N_FFT, HOP_LENGTH) * torch.nn.functional.pad(window, 2 * [margin])
    spectrum = torch.fft.rfft(frames)  # [b t f]
    # An FFT may write -0 for 0, and the phase of -1 - 0i is -pi, of -0 + 0i pi: adding 0 gives +0.
    real, imag = spectrum.real + 0.0, spectrum.imag + 0.0
    power = real.square() + imag.square()  # quicker than abs and angle
    silent = power == 0  # where a root and an arc have no gradient: 1 is added, and taken away
    magnitude = (power + silent).sqrt() - silent.to(power)
    phase = torch.atan2(imag, real + silent)
    channels = [_compress(x).transpose(1, 2) for x in (magnitude, phase)]
    return torch.stack(channels, dim=1)


def _compress(x: Tensor) -> Tensor:
    """Return sgn(x) |x|^0.3, but linear within +-1e-8, where its gradient would be infinite."""
    scale = (x.abs().clamp_min(POWER_KNEE).log2() * (POWER - 1)).exp2()  # faster than a power
    return x * scale


def _kaldi(waveforms: Tensor) -> Tensor:
    """Return torchaudio's log-mel energies of waveforms [b n] as [b t 128]."""
    import torch

    try:
        from torchaudio.compliance.kaldi import fbank
    except (ImportError, OSError) as error:  # OSError: a library of CUDA's that is not there
        found = f"the front end ast needs torchaudio, which cannot be imported: {error}"
        hint = "pip install 's2f[ast]'; on Linux with the torch of pip, not one for CPUs only"
        raise DependencyError(found, hint=hint) from error
    kaldi = {"num_mel_bins": N_MELS, "window_type": "hanning", "htk_compat": True}
    rates = {"sample_frequency": SAMPLE_RATE, "low_freq": MEL_LOW}
    return torch.stack([fbank(waveform[None], **kaldi, **rates) for waveform in waveforms])


def _log_mel(waveforms: Tensor) -> Tensor:
    """Return the same as Kaldi's compute-fbank-feats has it: many at once, with torch alone."""
    import torch

    window = torch.hann_window(WIN_LENGTH, periodic=False, dtype=torch.float64).to(waveforms)
    frames = waveforms.unfold(-1, WIN_LENGTH, HOP_LENGTH)  # [b t 400]
    frames = frames - frames.mean(dim=-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    spectrum = torch.fft.rfft((frames - 0.97 * previous) * window, n=N_FFT)  # pre-emphasised
    power = spectrum.real.square() + spectrum.imag.square()  # [b t 257]
    mel = torch.matmul(power, torch.from_numpy(_mel_filters()).to(power))
    return mel.clamp_min(MEL_FLOOR).log()


def _bands(waveforms: Tensor, front_end: FrontEnd) -> Tensor:
    """Return the power [b t 40] in the mel bands of waveforms [b n], all of one loudness."""
    import torch

    power = waveforms.square().mean(dim=1, keepdim=True)
    gain = 10 ** (SPEAKER_DBFS / 20) / power.clamp_min(10 ** (SILENCE_DBFS / 10)).sqrt()
    n, margin = waveforms.shape[1], WIN_LENGTH // 2
    end = HOP_LENGTH * (front_end.n_frames(n) - 1) + margin  # of the last frame
    padded = torch.nn.functional.pad(waveforms * gain, (margin, end - n))
    window = torch.hann_window(WIN_LENGTH, dtype=torch.float64).to(waveforms)
    spectrum = torch.fft.rfft(padded.unfold(-1, WIN_LENGTH, HOP_LENGTH) * window)  # [b t 201]
    energies = spectrum.real.square() + spectrum.imag.square()
    return torch.matmul(energies, torch.from_numpy(_band_filters()).to(energies))


@functools.cache
def _mel_filters() -> npt.NDArray[np.float64]:
    """Return Kaldi's triangles [257 128]: straight-sided in mel, 20 Hz to 8 kHz, height 1."""
    low, high = _mel([MEL_LOW, SAMPLE_RATE / 2])
    edges = np.linspace(float(low), float(high), N_MELS + 2)
    return _triangles(edges, _mel(np.arange(N_FREQS) * SAMPLE_RATE / N_FFT))


@functools.cache
def _band_filters() -> npt.NDArray[np.float64]:
    """Return librosa's triangles [201 40]: straight-sided in Hz, 0 Hz to 8 kHz, of equal area."""
    edges = _band_edges()
    bins = np.arange(WIN_LENGTH // 2 + 1) * SAMPLE_RATE / WIN_LENGTH
    return _triangles(edges, bins) * (2 / (edges[2:] - edges[:-2]))


def _triangles(
    edges: npt.NDArray[np.float64], bins: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return triangles [f m] of height 1 at the places of bins [f], between edges [m + 2]."""
    rising = (bins[:, np.newaxis] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, np.newaxis]) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


def _band_edges() -> npt.NDArray[np.float64]:
    """Return the edges [42], in Hz, of 40 bands that are even in Slaney's mel up to 8 kHz.

    Source: Slaney 1998, "Auditory Toolbox": 200/3 Hz a mel up to 1 kHz, 27 mel for 1 to 6.4 kHz.
    """
    linear = 1000 * 3 / 200
    each = math.log(6.4) / 27
    mels = np.linspace(0, linear + math.log(SAMPLE_RATE / 2 / 1000) / each, N_BANDS + 2)
    return np.where(mels < linear, mels * 200 / 3, 1000 * np.exp((mels - linear) * each))


def _mel(hertz: npt.ArrayLike) -> npt.NDArray[np.float64]:
    mel: npt.NDArray[np.float64] = 1127.0 * np.log1p(np.asarray(hertz, np.float64) / 700.0)
    return mel


STATS_OF = {"n_mels": N_MELS, "sample_rate": SAMPLE_RATE, "loudness_dbfs": LOUDNESS_DBFS}
STATS_KIND = {"kind": "s2f log-mel statistics", "version": 1, "of": STATS_OF}


@dataclass(frozen=True)
class RunningMoments:
    """The count, the mean and the sum of the squared deviations of some numbers.

    Their sum is that of all the numbers together. Source: Chan, Golub and LeVeque's formula.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def __add__(self, other: RunningMoments) -> RunningMoments:
        count = self.count + other.count
        if not count:
            return self
        step = other.mean - self.mean
        mean = self.mean + step * other.count / count
        m2 = self.m2 + other.m2 + step**2 * self.count * other.count / count
        return RunningMoments(count, mean, m2)


@dataclass(frozen=True)
class LogMelStats:
    """Of the natural logarithm of all mel energies of all frames of a training set."""

    mean: float
    std: float
    frames: int
    files: int


def moments(waveform: FloatArray) -> RunningMoments:
    """Measure the log-mel of a whole waveform [n], n >= 400, a piece at a time, without padding."""
    import torch

    plain, total = FrontEnd("log_mel"), RunningMoments()
    step = 400 * HOP_LENGTH
    for start in range(0, len(waveform) - WIN_LENGTH + 1, step):
        piece = torch.from_numpy(waveform[start : start + step + WIN_LENGTH - HOP_LENGTH])
        log_mel = spectrogram(piece[None], plain).double()
        mean = float(log_mel.mean())
        total += RunningMoments(log_mel.numel(), mean, float((log_mel - mean).square().sum()))
    return total


def write_stats(path: Path, total: RunningMoments, *, files: int) -> LogMelStats:
    """Write the statistics of a training set as JSON, or raise an `OutputError`."""
    std = math.sqrt(total.m2 / total.count)
    stats = LogMelStats(total.mean, std, total.count // N_MELS, files)
    write_bytes(path, sealed({**STATS_KIND, **asdict(stats)}))
    return stats


def read_stats(path: Path) -> LogMelStats:
    """Read what `write_stats` wrote, or raise a `DatasetError`."""
    hint = "make one with s2f prep stats"
    try:
        content = unsealed(path.read_bytes())
        if {name: content.pop(name, None) for name in STATS_KIND} != STATS_KIND:
            raise DatasetError(f"{path}: is no statistics of a log-mel of this version", hint=hint)
        stats = LogMelStats(**content)
        if not (math.isfinite(stats.mean) and 0 < stats.std < math.inf):
            raise DatasetError(f"{path}: has mean {stats.mean} and std {stats.std}", hint=hint)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}", hint=hint) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path}: is no statistics of a log-mel", hint=hint) from error
    return stats
