"""Disturbances: same shape and range, different every time, the same for the same seed."""

import math

import numpy as np
import pytest
import torch

from s2f import augment

TONE = torch.sin(torch.arange(48_000) * (2 * math.pi * 1000 / 16_000))[None] * 0.1


@pytest.mark.parametrize(
    ("disturb", "batch"),
    [(augment.faces, torch.rand(4, 3, 32, 32)), (augment.voices, TONE.expand(4, -1))],
)
def test_the_seed_decides_and_items_differ(disturb: object, batch: torch.Tensor) -> None:
    assert callable(disturb)
    torch.manual_seed(1)
    first = disturb(batch)
    torch.manual_seed(1)
    assert torch.equal(first, disturb(batch))
    assert not torch.equal(first, disturb(batch))
    assert first.shape == batch.shape and first.isfinite().all()


def test_faces_stay_within_white_and_black_and_near_themselves() -> None:
    picture = torch.nn.functional.interpolate(torch.rand(16, 3, 4, 4), size=64, mode="bilinear")
    disturbed = augment.faces(picture)
    assert 0 <= disturbed.min() and disturbed.max() <= 1
    assert (disturbed - picture).abs().mean() < 0.2


def test_pitch_moves_by_at_most_a_twentieth() -> None:
    torch.manual_seed(0)
    power = torch.fft.rfft(augment._resampled(TONE.expand(32, -1), torch.linspace(0.96, 1.04, 32)))
    peaks = power.abs().argmax(1) * 16_000 / 48_000
    np.testing.assert_allclose(peaks, np.linspace(960, 1040, 32), atol=2)


def test_noise_stays_at_least_5_db_below_the_speech() -> None:
    torch.manual_seed(0)
    speech = TONE.expand(64, -1)
    noise = augment._noisy(speech) - speech
    ratio = 10 * torch.log10(speech.square().mean(1) / noise.square().mean(1).clamp_min(1e-12))
    assert ratio.min() > 4.9
    assert (noise.abs().amax(1) == 0).any()  # some are left alone


def test_random_lengths_stay_in_range() -> None:
    lengths = [augment.random_length(100, 30) for _ in range(200)]
    assert min(lengths) >= 30 and max(lengths) <= 100 and len(set(lengths)) > 20
