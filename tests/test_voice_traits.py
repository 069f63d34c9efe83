"""What a voice carries: pitch and timbre, on tones and on numbers."""

import numpy as np
import pytest

from s2f import audio, demo


def tone(pitch: float, harmonics: int = 8) -> np.ndarray:
    """A waveform [n] of two seconds."""
    t = np.arange(32_000) / audio.SAMPLE_RATE
    parts = [np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, harmonics + 1)]
    return (sum(parts) * 0.1).astype(np.float32)


def test_the_pitch_of_a_tone_is_its_frequency() -> None:
    assert demo.median_pitch(tone(150)) == pytest.approx(150, rel=0.01)


def test_a_brighter_tone_has_more_of_the_upper_spectrum() -> None:
    dull, bright = (demo.timbre_of(tone(150, harmonics)) for harmonics in (2, 20))
    assert dull.shape == bright.shape == (128,)
    assert bright[64:].mean() > dull[64:].mean()


def test_silence_between_words_does_not_change_the_timbre() -> None:
    speech = tone(150)
    paused = np.concatenate([speech, np.zeros(len(speech) // 2, np.float32)])
    a, b = demo.timbre_of(speech), demo.timbre_of(paused)
    assert np.abs(a - b).mean() < 0.1 * a.std()


def voices(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Timbres [n 128] that follow pitch in part, and pitches [n], Hz."""
    rng = np.random.default_rng(0)
    pitch = rng.uniform(80, 250, n)
    return rng.standard_normal((n, 128)) + 10 * np.log(pitch)[:, None], pitch


def test_scores_of_timbre_are_normal_and_free_of_pitch() -> None:
    timbres, pitch = voices(200)
    scores = demo.normal_scores(timbres, pitch, np.arange(200))
    assert scores.shape == (200, demo.TIMBRE_AXES)
    np.testing.assert_allclose(scores.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(scores.std(0), 1, atol=0.05)
    for axis in scores.T:
        assert abs(np.corrcoef(axis, np.log(pitch))[0, 1]) < 0.1


def test_a_score_does_not_depend_on_who_else_was_not_fitted() -> None:
    timbres, pitch = voices(60)
    fitted = np.arange(40)
    all_of_them = demo.normal_scores(timbres, pitch, fitted)
    fewer = demo.normal_scores(timbres[:50], pitch[:50], fitted)
    np.testing.assert_allclose(all_of_them[:50], fewer)
