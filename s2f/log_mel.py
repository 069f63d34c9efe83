"""The mean and the standard deviation of the log-mel over a training set, and their file.

Knows nothing of trees: blocks of waveforms in, `Moments` out, whose sum becomes `LogMelStats`.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from s2f.audio import LOUDNESS_DBFS
from s2f.decoding import SAMPLE_RATE, FloatArray
from s2f.errors import DatasetError
from s2f.front_end import HOP_LENGTH, N_MELS, FrontEnd, spectrogram
from s2f.runtime import write

PLAIN = FrontEnd("ast")  # the log-mel itself
KIND = {"kind": "s2f log-mel statistics", "version": 1}
OF = {"n_mels": N_MELS, "sample_rate": SAMPLE_RATE, "loudness_dbfs": LOUDNESS_DBFS}


@dataclass(frozen=True)
class Moments:
    """The count, the mean and the sum of the squared deviations of some numbers.

    Their sum is that of all the numbers together. Source: Chan, Golub and LeVeque's formula.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        if not count:
            return self
        step = other.mean - self.mean
        mean = self.mean + step * other.count / count
        m2 = self.m2 + other.m2 + step**2 * self.count * other.count / count
        return Moments(count, mean, m2)


@dataclass(frozen=True)
class LogMelStats:
    """Of the natural logarithm of the mel energies over a training set.

    Attributes:
        mean: over all bands of all frames of whole utterances.
        std: likewise, over the population.
        frames: that were counted.
        files: likewise.
    """

    mean: float
    std: float
    frames: int
    files: int


def moments(blocks: Iterable[FloatArray]) -> Moments:
    """Measure the log-mel of a whole waveform that comes in blocks [n], without padding."""
    import torch

    total, held = Moments(), np.empty(0, np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        n_frames = PLAIN.n_frames(len(held))
        if n_frames:
            log_mel = spectrogram(torch.from_numpy(held)[None], PLAIN).double()
            mean = float(log_mel.mean())
            total += Moments(log_mel.numel(), mean, float((log_mel - mean).square().sum()))
            held = held[n_frames * HOP_LENGTH :]
    return total


def write_stats(path: Path, total: Moments, *, files: int) -> LogMelStats:
    """Write the statistics of a training set as JSON.

    Raises:
        OutputError: if it cannot be written.
    """
    std = math.sqrt(total.m2 / total.count)
    stats = LogMelStats(total.mean, std, total.count // N_MELS, files)
    write(path, json.dumps({**KIND, "of": OF, **asdict(stats)}, indent=1).encode() + b"\n")
    return stats


def read_stats(path: Path) -> LogMelStats:
    """Read what `write_stats` wrote.

    Raises:
        DatasetError: if it cannot be read, or is something else.
    """
    hint = "make one with s2f prep stats"
    try:
        content = json.loads(path.read_bytes())
        known = {**KIND, "of": OF}
        if {name: content.pop(name, None) for name in known} != known:
            raise DatasetError(f"{path}: is no statistics of a log-mel of this version", hint=hint)
        stats = LogMelStats(**content)
        if not (math.isfinite(stats.mean) and 0 < stats.std < math.inf):
            raise DatasetError(f"{path}: has mean {stats.mean} and std {stats.std}", hint=hint)
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror or error}"
        raise DatasetError(message, hint=hint) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path}: is no statistics of a log-mel", hint=hint) from error
    return stats
