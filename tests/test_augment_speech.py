"""Ways from a mouth to a file, on waveforms whose pitch, formants and levels are known."""

import numpy as np
import pytest

from s2f import augment
from s2f.audio import SAMPLE_RATE
from s2f.demo import median_pitch

N = 2 * SAMPLE_RATE


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def vowel(pitch: float, formant: float) -> np.ndarray:
    """A waveform [n] of harmonics, the strongest of which are around a formant, Hz."""
    t = np.arange(N) / SAMPLE_RATE
    tones = [pitch * k for k in range(1, int(4_000 / pitch))]
    parts = [np.exp(-((f - formant) ** 2) / 2 / 300**2) * np.sin(2 * np.pi * f * t) for f in tones]
    return (0.2 * np.sum(parts, axis=0)).astype(np.float32)


def centre(waveform: np.ndarray) -> float:
    """Centre of mass of the power of a waveform, Hz."""
    power = np.abs(np.fft.rfft(waveform)) ** 2
    return float((power * np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE)).sum() / power.sum())


@pytest.mark.parametrize(("pitch", "formants"), [(1.2, 1.0), (1.0, 1.1), (0.85, 1.05), (1.1, 1.1)])
def test_pitch_moves_without_formants_and_formants_without_pitch(pitch, formants):
    voice = vowel(130, 1_200)
    moved = augment.moved(voice, pitch, formants)
    assert median_pitch(moved) == pytest.approx(130 * pitch, rel=0.02)
    assert centre(moved) == pytest.approx(centre(voice) * formants, rel=0.04)


@pytest.mark.parametrize("codec", augment.CODECS)
def test_a_codec_keeps_the_voice_and_not_the_samples(codec):
    voice = vowel(150, 900)
    bits = augment.CODECS[codec][3]
    heard = augment.coded(voice, codec, bits[0] if bits else None)
    assert 0.9 * N <= len(heard) <= 1.15 * N and heard.dtype == np.float32
    assert median_pitch(heard) == pytest.approx(150, rel=0.02)
    # A level of its own within 3 dB, and not the same samples: something was lost.
    assert abs(np.log10(augment.level(heard) / augment.level(voice))) < 0.15
    assert np.abs(heard[:N][: len(voice)] - voice[: len(heard)]).max() > 1e-4


def test_noise_is_as_loud_as_it_is_said_to_be(rng):
    voice = vowel(150, 900)
    noise = augment.noisy(voice, augment.coloured(N, rng, 0.5), 10) - voice
    assert 20 * np.log10(augment.level(voice) / augment.level(noise)) == pytest.approx(10, abs=0.01)


@pytest.mark.parametrize(("colour", "slope"), [(0.0, 0.0), (0.5, -3.0), (1.0, -6.0)])
def test_noise_has_its_colour(rng, colour, slope):
    """Decibels an octave, between 500 Hz and 4 kHz: 0 is white, -3 pink, -6 brown."""
    power = np.abs(np.fft.rfft(augment.coloured(2**17, rng, colour))) ** 2
    low, high = (power[f * 8 : f * 16].mean() for f in (500, 4_000))  # 8 bins a Hz
    assert 10 * np.log10(high / low) / 3 == pytest.approx(slope, abs=0.3)


def test_a_room_goes_on_when_the_voice_has_ended(rng):
    voice = np.concatenate([vowel(150, 900), np.zeros(SAMPLE_RATE, np.float32)])
    heard = augment.in_room(voice, rng)
    assert len(heard) == len(voice)
    tail = heard[N:]
    assert augment.level(tail[:1600]) > 10 * augment.level(tail[-1600:])
    assert augment.level(tail[:1600]) > 0.01 * augment.level(voice)


def test_a_telephone_hears_its_band_alone(rng):
    heard = augment.by_telephone(augment.coloured(N, rng, 0.0).astype(np.float32), rng)
    power = np.abs(np.fft.rfft(heard)) ** 2
    low, within, high = (
        power[a * 2 : b * 2].mean() for a, b in ((0, 80), (500, 2500), (5000, 8000))
    )
    assert max(low, high) < 0.01 * within


def test_of_a_clipped_voice_the_loudest_are_alike(rng):
    voice = vowel(150, 900)
    heard = augment.clipped(voice, rng)
    share = (np.abs(voice) > np.abs(heard).max()).mean()
    assert 0.004 < share < 0.081


def test_a_way_follows_from_the_generator_and_is_mostly_another(rng):
    voice, others = vowel(150, 900), [vowel(120, 700), vowel(220, 1_500)]
    ways = [augment.recorded(voice, np.random.default_rng(k), others) for k in (*range(8), 0)]
    np.testing.assert_array_equal(ways[0], ways[-1])
    assert len({x.tobytes() for x in ways}) >= 6
    assert all(np.isfinite(x).all() and x.dtype == np.float32 for x in ways)


def test_where_nobody_speaks_there_is_sound(rng):
    for _ in range(10):
        made = augment.no_voice(SAMPLE_RATE, rng)
        assert np.isfinite(made).all() and augment.level(made) > 1e-3
