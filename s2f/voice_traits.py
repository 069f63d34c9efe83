"""What a voice carries that the demo gives it a face by: its pitch and its timbre.

Waveforms in, numbers out: the median pitch of a recording, its mean spectrum, and where a voice
stands in timbre among others of its sex.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from s2f import decoding, front_end

TIMBRE_AXES = 8  # that timbres are compared on


def median_pitch(waveform: NDArray[np.float32]) -> float:
    """Median fundamental frequency, Hz, of the louder and voiced half of the frames of [n].

    Source: YIN (de Cheveigné and Kawahara 2002), as librosa has it, 60 to 400 Hz.
    """
    import librosa

    frame, hop = 1024, 256
    pitch = librosa.yin(
        waveform, fmin=60, fmax=400, sr=decoding.SAMPLE_RATE, frame_length=frame, hop_length=hop
    )
    level = librosa.feature.rms(y=waveform, frame_length=frame, hop_length=hop)[0]
    n = min(len(pitch), len(level))
    loud = level[:n] > np.quantile(level[:n], 0.5)
    edge = (pitch[:n] > 61) & (pitch[:n] < 395)  # YIN ends at the bounds where nothing is voiced
    return float(np.median(pitch[:n][loud & edge]))


def timbre(waveform: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean log-mel spectrum [128] of the louder half of the frames of a waveform [n]."""
    plain = front_end.FrontEnd("ast")
    log_mel = front_end.spectrogram(torch.from_numpy(waveform)[None], plain)[0, 0].double()
    level = log_mel.mean(0)
    mean: NDArray[np.float64] = log_mel[:, level > level.median()].mean(1).numpy()
    return mean


def normal_scores(
    timbres: NDArray[np.float64], pitch: NDArray[np.float64], fitted: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Timbres [n 128] on their largest axes within one sex, without what follows from pitch: [n a].

    Fitted on some rows, given for all: ranks among the fitted, as quantiles of a normal.
    """
    from scipy.stats import norm

    log_pitch = np.stack([np.log(pitch), np.ones(len(pitch))], axis=1)
    slope = np.linalg.lstsq(log_pitch[fitted], timbres[fitted], rcond=None)[0]
    rest = timbres - log_pitch @ slope
    axes = np.linalg.svd(rest[fitted], full_matrices=False)[2][:TIMBRE_AXES]
    on_axes = rest @ axes.T  # [n a]
    below = (on_axes[:, None] > on_axes[fitted][None]).mean(1)
    scores: NDArray[np.float64] = norm.ppf(np.clip(below, 0.02, 0.98))
    return scores
