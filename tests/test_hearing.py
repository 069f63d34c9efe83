"""Spectrograms as pictures."""

import numpy as np
import pytest
import torch
from conftest import noise

from s2f import visualize
from s2f.audio import SAMPLE_RATE
from s2f.spectrogram import FRONT_ENDS, FrontEnd, spectrogram

KINDS = sorted(FRONT_ENDS)


def tone(hertz: float, seconds: float = 2) -> torch.Tensor:
    times = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return 0.3 * torch.sin(2 * torch.pi * hertz * times)


def drawn(waveform: torch.Tensor, front_end: FrontEnd) -> np.ndarray:
    """The lightness of the plot, [h w]."""
    picture = visualize.draw_spectrogram(
        spectrogram(waveform[None], front_end)[0].numpy(), front_end
    )
    width, height = visualize.PLOT
    box = (visualize.LEFT, visualize.TOP, visualize.LEFT + width, visualize.TOP + height)
    return np.asarray(picture.crop(box).convert("L"), np.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hertz", [300, 1000, 3000, 6000])
def test_a_tone_is_lightest_where_its_pitch_is_written(kind: str, hertz: int) -> None:
    front_end = FRONT_ENDS[kind]
    height = visualize.PLOT[1]
    lightest = height - 0.5 - drawn(tone(hertz), front_end).mean(axis=1).argmax()
    wanted = (front_end.row(hertz) + 0.5) / front_end.n_freqs * height
    assert lightest == pytest.approx(wanted, abs=3)


@pytest.mark.parametrize("kind", KINDS)
def test_time_goes_to_the_right(kind: str) -> None:
    quiet = 1e-3 * torch.from_numpy(noise(1))
    light = drawn(torch.cat([quiet, torch.from_numpy(noise(1))]), FRONT_ENDS[kind]).mean(axis=0)
    half = len(light) // 2
    assert light[half + 10 :].min() > light[: half - 10].max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seconds", [0.5, 60])
def test_every_length_gives_a_picture_of_one_size(kind: str, seconds: float) -> None:
    columns = spectrogram(torch.from_numpy(noise(seconds))[None], FRONT_ENDS[kind])[0].numpy()
    assert visualize.draw_spectrogram(columns, FRONT_ENDS[kind]).size == (530, 258)


def test_what_does_not_sound_is_drawn_all_the_same() -> None:
    assert (
        visualize.draw_spectrogram(np.zeros((1, 128, 100), np.float32), FRONT_ENDS["ast"]).mode
        == "RGB"
    )
