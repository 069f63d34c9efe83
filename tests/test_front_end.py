"""Tests of s2f.spectrogram; each expected value says where it comes from."""

import dataclasses
import json
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2f.audio import SAMPLE_RATE
from s2f.spectrogram import FRONT_ENDS, FrontEnd, spectrogram

REPOSITORY = Path(__file__).parents[1]


def noise(n: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


# Front ends


@pytest.mark.parametrize(
    ("name", "shape"),
    [("paper", (2, 257, 598)), ("seed", (2, 257, 601)), ("ast", (1, 128, 1024))],
)
def test_the_shapes_are_those_of_the_published_models(name, shape):
    front_end = FRONT_ENDS[name]
    waveforms = torch.from_numpy(noise(2 * front_end.clip_samples)).reshape(2, -1)
    assert spectrogram(waveforms, front_end).shape == (2, *shape)


@settings(deadline=None)
@given(kind=st.sampled_from(["paper", "seed", "ast"]), n=st.integers(400, 3000))
def test_a_front_end_foretells_the_shape(kind, n):
    front_end = FrontEnd(kind)
    expected = (1, front_end.n_channels, front_end.n_freqs, front_end.n_frames(n))
    assert spectrogram(torch.zeros(1, n), front_end).shape == expected


@pytest.mark.parametrize("kind", ["paper", "seed", "ast"])
@pytest.mark.parametrize("hertz", [250, 1000, 4000])
def test_a_tone_lies_in_the_row_that_is_foretold(kind, hertz):
    waveform = torch.sin(2 * torch.pi * hertz * torch.arange(16_000) / SAMPLE_RATE)[None]
    columns = spectrogram(waveform, FrontEnd(kind))[0]
    loud = columns.norm(dim=0) if kind == "paper" else columns[0]
    assert loud.mean(dim=1).argmax().item() == pytest.approx(FrontEnd(kind).row(hertz), abs=1)


def test_less_than_a_frame_has_no_frames():
    assert [FrontEnd("paper").n_frames(n) for n in (0, 399, 400)] == [0, 0, 1]


@pytest.mark.parametrize("front_end", FRONT_ENDS.values(), ids=FRONT_ENDS)
def test_a_front_end_survives_json(front_end):
    assert FrontEnd(**json.loads(json.dumps(dataclasses.asdict(front_end)))) == front_end


@pytest.mark.parametrize(
    "wrong", [{"kind": "mfcc"}, {"kind": "seed", "clip_samples": 399}, {"kind": "ast", "std": 0.0}]
)
def test_an_impossible_front_end_is_refused(wrong):
    with pytest.raises(ValueError, match="wanted"):
        FrontEnd(**wrong)


# Spectrograms


def compressed(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.abs(x) ** 0.3


def spectrogram_of(waveform: np.ndarray, front_end: FrontEnd) -> np.ndarray:
    return spectrogram(torch.from_numpy(waveform)[None], front_end)[0].numpy()


def test_paper_is_the_compressed_fft_of_frames_cut_by_hand():
    """NumPy in float64; frames are zero-padded at the end, as tf.signal.stft does."""
    waveform = noise(16_000)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = [waveform[s : s + 400] * window for s in range(0, 16_000 - 399, 160)]
    spectrum = np.fft.rfft(np.pad(frames, ((0, 0), (0, 112)))).T
    ours = spectrogram_of(waveform.astype(np.float64), FrontEnd("paper"))
    np.testing.assert_allclose(ours[0], compressed(spectrum.real), atol=1e-4)
    # The imaginary part of the first and last bin is 0 but for rounding.
    np.testing.assert_allclose(ours[1], compressed(spectrum.imag), atol=1e-4)
    single = spectrogram_of(waveform, FrontEnd("paper"))
    back = np.sign(single) * np.abs(single) ** (1 / 0.3)
    np.testing.assert_allclose(back, np.stack([spectrum.real, spectrum.imag]), atol=1e-4)


def test_seed_is_librosa_with_compressed_magnitude_and_phase():
    waveform = noise(96_000)
    waveform[20_000:30_000] = 0
    spectrum = librosa.stft(waveform, n_fft=512, hop_length=160, win_length=400)
    magnitude, phase = spectrogram_of(waveform, FrontEnd("seed"))
    np.testing.assert_allclose(magnitude, np.abs(spectrum) ** 0.3, atol=1e-4)
    # Near 0 the root, and near pi the sign, blow up the rounding of the phase.
    expected = np.angle(spectrum)
    clear = (np.abs(expected) > 1e-3) & (np.abs(expected) < np.pi - 1e-3) | (expected == 0)
    assert clear.mean() > 0.98
    np.testing.assert_allclose(phase[clear], compressed(expected)[clear], atol=1e-3)
    np.testing.assert_allclose(phase[[0, 256]], compressed(expected)[[0, 256]], atol=1e-6)


def test_ast_is_the_kaldi_filter_bank_written_out():
    """Kaldi's recipe in float64 NumPy: DC out, pre-emphasis, Hann, power, mel triangles, log."""
    waveform = noise(16_000)
    waveform[5000:8000] = 0
    n = np.arange(400)
    mel = 1127 * np.log(1 + np.arange(257) * 31.25 / 700)
    low, high = 1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + 8000 / 700)
    width = (high - low) / 129
    filters = [np.clip(1 - np.abs(mel - low - (i + 1) * width) / width, 0, 1) for i in range(128)]
    columns = []
    for start in range(0, 16_000 - 399, 160):
        frame = waveform[start : start + 400].astype(np.float64)
        frame -= frame.mean()
        frame = np.append(0.03 * frame[0], frame[1:] - 0.97 * frame[:-1])
        frame *= 0.5 - 0.5 * np.cos(2 * np.pi * n / 399)
        energies = np.array(filters) @ np.abs(np.fft.rfft(frame, 512)) ** 2
        columns.append(np.log(np.maximum(energies, 2.0**-23)))
    expected = (np.stack(columns, axis=1) - -4.2677393) / (2 * 4.5689974)
    np.testing.assert_allclose(spectrogram_of(waveform, FRONT_ENDS["ast"])[0], expected, atol=1e-3)


@pytest.mark.filterwarnings("ignore:At least one mel filter")  # as in Kaldi: 128 are many
@pytest.mark.parametrize("gain", [1e-3, 1.0, 5.0])
def test_ast_is_what_transformers_extracts(gain):
    transformers = pytest.importorskip("transformers")
    waveform = gain * noise(164_160)
    extract = transformers.ASTFeatureExtractor()
    expected = extract(waveform, sampling_rate=SAMPLE_RATE, return_tensors="np")["input_values"][0]
    ours = spectrogram_of(waveform, FRONT_ENDS["ast"])[0]
    np.testing.assert_allclose(ours.T, expected, atol=1e-3)


def test_without_mean_and_std_ast_is_the_plain_log_mel():
    plain, scaled = FrontEnd("ast"), FrontEnd("ast", mean=-4.0, std=2.0)
    expected = (spectrogram_of(noise(4000), plain) + 4.0) / 4.0
    np.testing.assert_allclose(spectrogram_of(noise(4000), scaled), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["paper", "seed", "ast"])
def test_a_batch_is_its_waveforms_one_by_one(kind):
    waveforms = torch.from_numpy(noise(8000)).reshape(2, -1)
    together = spectrogram(waveforms, FrontEnd(kind))
    apart = torch.cat([spectrogram(one[None], FrontEnd(kind)) for one in waveforms])
    torch.testing.assert_close(together, apart, atol=1e-3, rtol=1e-3)


def test_the_compression_is_odd():
    up = spectrogram_of(noise(4000), FrontEnd("paper"))
    np.testing.assert_array_equal(spectrogram_of(-noise(4000), FrontEnd("paper")), -up)


@pytest.mark.parametrize("kind", ["paper", "seed"])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_silence_stays_silent(kind, zero):
    assert not spectrogram(torch.full((1, 4000), zero), FrontEnd(kind)).any()


def test_a_negative_zero_from_an_fft_does_not_turn_the_phase(monkeypatch):
    spectrum = torch.complex(torch.tensor([[[-1.0, -0.0]]]), torch.tensor([[[-0.0, -0.0]]]))
    monkeypatch.setattr(torch.fft, "rfft", lambda *_, **__: spectrum)
    phase = spectrogram(torch.zeros(1, 400), FrontEnd("seed"))[0, 1, :, 0]
    torch.testing.assert_close(phase, torch.tensor([np.pi**0.3, 0.0]).float())


@pytest.mark.parametrize("kind", ["paper", "seed", "ast"])
def test_gradients_stay_finite_in_silence(kind):
    waveforms = torch.from_numpy(noise(4000))[None]
    waveforms[:, 1000:3000] = 0
    waveforms.requires_grad_()
    spectrogram(waveforms, FrontEnd(kind)).sum().backward()
    assert waveforms.grad.isfinite().all()
    assert waveforms.grad.any()


@pytest.mark.parametrize("kind", ["paper", "seed", "ast"])
def test_gradients_are_those_of_finite_differences(kind):
    generator = torch.Generator().manual_seed(0)
    waveform = torch.randn(1, 560, generator=generator, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(1, 560, generator=generator, dtype=torch.float64)
    front_end = FrontEnd(kind)
    # A smooth target: the square undoes the infinite slope of the root at 0.
    shape = spectrogram(waveform, front_end).shape
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    weights[:, :, [0, -1]] = 0  # where the imaginary part is 0 but for rounding

    def value(x):
        y = spectrogram(x, front_end)
        return (weights * y.abs() ** 5).sum()

    (gradient,) = torch.autograd.grad(value(waveform), waveform)
    step = 1e-6
    with torch.no_grad():
        ahead, behind = value(waveform + step * direction), value(waveform - step * direction)
    slope = (ahead - behind) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-6)


def test_autocast_does_not_coarsen_the_log_mel():
    waveforms = torch.from_numpy(noise(4000))[None]
    expected = spectrogram(waveforms, FRONT_ENDS["ast"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = spectrogram(waveforms, FRONT_ENDS["ast"])
    torch.testing.assert_close(ours, expected)
