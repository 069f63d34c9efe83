"""Tests of s2f.spectrogram; each expected value says where it comes from."""

import dataclasses
import itertools
import json
import sys

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import noise

from s2f import spectrogram as statistics
from s2f.audio import SAMPLE_RATE
from s2f.errors import DatasetError, DependencyError
from s2f.spectrogram import FRONT_ENDS, FrontEnd, RunningMoments, moments, spectrogram

KINDS = ("paper", "seed", "log_mel", "ast", "speaker")


def spectrogram_of(waveform: np.ndarray, front_end: FrontEnd) -> np.ndarray:
    return spectrogram(torch.from_numpy(waveform)[None], front_end)[0].numpy()


def compressed(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.abs(x) ** 0.3


# Front ends


@settings(deadline=None)
@given(kind=st.sampled_from(KINDS), n=st.integers(400, 3000))
def test_a_front_end_foretells_the_shape_of_a_batch_and_of_one(kind, n):
    front_end, waveforms = FrontEnd(kind), torch.from_numpy(noise(2 * n)).reshape(2, -1)
    together = spectrogram(waveforms, front_end)
    expected = (2, front_end.n_channels, front_end.n_freqs, front_end.n_frames(n))
    assert together.shape == expected
    apart = torch.cat([spectrogram(one[None], front_end) for one in waveforms])
    torch.testing.assert_close(together, apart, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hertz", [250, 1000, 4000])
def test_a_tone_lies_in_the_row_that_is_foretold(kind, hertz):
    waveform = torch.sin(2 * torch.pi * hertz * torch.arange(16_000) / SAMPLE_RATE)[None]
    columns = spectrogram(waveform, FrontEnd(kind))[0]
    loud = columns.norm(dim=0) if kind == "paper" else columns[0]
    assert loud.mean(dim=1).argmax().item() == pytest.approx(FrontEnd(kind).row(hertz), abs=1)


def test_presets_have_the_shapes_of_the_published_models_and_an_impossible_one_is_refused():
    shapes = {"paper": (2, 257, 598), "seed": (2, 257, 601), "ast": (1, 128, 1024)}
    shapes["speaker"] = (1, 40, 622)
    for name, f in FRONT_ENDS.items():
        assert (f.n_channels, f.n_freqs, f.n_frames(f.clip_samples)) == shapes[name]
    for wrong in (("mfcc",), ("seed", 399), ("ast", 400, 0.0, 0.0)):
        with pytest.raises(ValueError, match="wanted"):
            FrontEnd(*wrong)


# Spectrograms


def test_paper_is_the_compressed_fft_of_frames_cut_by_hand():
    """NumPy in float64; frames are zero-padded at the end, as tf.signal.stft does."""
    waveform = noise(16_000)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = [waveform[s : s + 400] * window for s in range(0, 16_000 - 399, 160)]
    spectrum = np.fft.rfft(np.pad(frames, ((0, 0), (0, 112)))).T
    ours = spectrogram_of(waveform.astype(np.float64), FrontEnd("paper"))
    np.testing.assert_allclose(ours[0], compressed(spectrum.real), atol=1e-4)
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


@pytest.mark.parametrize("gain", [1e-4, 1.0, 5.0])
def test_log_mel_is_torchaudios_kaldi_filter_bank(gain):
    """torchaudio.compliance.kaldi.fbank, with a pause, and a loudness of speech and beyond."""
    waveform = gain * noise(16_000).astype(np.float64)
    waveform[5000:8000] = 0
    theirs = spectrogram_of(waveform, FRONT_ENDS["ast"])
    ours = spectrogram_of(waveform, dataclasses.replace(FRONT_ENDS["ast"], kind="log_mel"))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("error", ["ImportError", "OSError"])
def test_without_torchaudio_ast_names_its_extra_and_log_mel_works(tmp_path, monkeypatch, error):
    """A package that cannot be imported stands for one that is not there, or lacks a library."""
    (tmp_path / "torchaudio.py").write_text(f"raise {error}('libcudart.so.13')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        monkeypatch.delitem(sys.modules, name)
    assert spectrogram(torch.zeros(1, 400), FrontEnd("log_mel")).shape == (1, 1, 128, 1)
    with pytest.raises(DependencyError, match=r"ast needs torchaudio, .* libcudart") as caught:
        spectrogram(torch.zeros(1, 400), FrontEnd("ast"))
    assert "pip install 's2f[ast]'" in caught.value.hint


@pytest.mark.filterwarnings("ignore:At least one mel filter")  # as in Kaldi: 128 are many
@pytest.mark.parametrize("gain", [1e-3, 1.0, 5.0])
def test_ast_is_what_transformers_extracts(gain):
    transformers = pytest.importorskip("transformers")
    waveform = gain * noise(164_160)
    extract = transformers.ASTFeatureExtractor()
    expected = extract(waveform, sampling_rate=SAMPLE_RATE, return_tensors="np")["input_values"][0]
    ours = spectrogram_of(waveform, FRONT_ENDS["ast"])[0]
    np.testing.assert_allclose(ours.T, expected, atol=1e-3)


@pytest.mark.parametrize("gain", [1e-3, 1.0, 5.0])
def test_speaker_is_librosas_mel_spectrogram_at_one_loudness(gain):
    """librosa in float64, of the waveform brought to -30 dBFS by hand, whatever loudness it has."""
    waveform = gain * noise(99_360).astype(np.float64)
    waveform[40_000:60_000] = 0
    level = waveform * 10 ** (-30 / 20) / np.sqrt(np.mean(waveform**2))
    sizes = {"n_fft": 400, "hop_length": 160, "n_mels": 40}
    expected = librosa.feature.melspectrogram(y=level, sr=SAMPLE_RATE, **sizes)
    ours = spectrogram_of(waveform, FRONT_ENDS["speaker"])[0]
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-12)
    single = spectrogram_of(waveform.astype(np.float32), FRONT_ENDS["speaker"])[0]
    np.testing.assert_allclose(single, expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize(
    ("n", "frames"),  # by hand: 77 frames a step, 120 frames of speech make a window of 160
    [(400, 160), (25_599, 160), (25_600, 161), (31_519, 197), (31_520, 237), (37_920, 238)],
)
def test_speaker_fills_a_last_window_that_is_three_quarters_full(n, frames):
    ours = spectrogram_of(noise(n), FRONT_ENDS["speaker"])[0]
    assert ours.shape == (40, frames)
    reached = -(-(n + 200) // 160)  # frames that a sample lies in
    assert ours[:, : min(frames, reached)].any(axis=0).all() and not ours[:, reached:].any()


def test_a_negative_zero_from_an_fft_does_not_turn_the_phase(monkeypatch):
    spectrum = torch.complex(torch.tensor([[[-1.0, -0.0]]]), torch.tensor([[[-0.0, -0.0]]]))
    monkeypatch.setattr(torch.fft, "rfft", lambda *_, **__: spectrum)
    phase = spectrogram(torch.zeros(1, 400), FrontEnd("seed"))[0, 1, :, 0]
    torch.testing.assert_close(phase, torch.tensor([np.pi**0.3, 0.0]).float())


@pytest.mark.parametrize("kind", KINDS)
def test_silence_stays_silent_gradients_finite_in_it_and_autocast_coarsens_nothing(kind):
    waveforms = torch.from_numpy(noise(4000))[None]
    waveforms[:, 1000:3000] = 0
    waveforms.requires_grad_()
    expected = spectrogram(waveforms, FrontEnd(kind))
    expected.sum().backward()
    assert waveforms.grad.isfinite().all() and waveforms.grad.any()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(spectrogram(waveforms, FrontEnd(kind)), expected)
    for zero in (0.0, -0.0) if kind in ("paper", "seed", "speaker") else ():
        assert not spectrogram(torch.full((1, 4000), zero), FrontEnd(kind)).any()


# Statistics


def moments_of(values: np.ndarray | list[float]) -> RunningMoments:
    x = np.array(values, np.float64)
    return RunningMoments(x.size, float(x.mean()), float(((x - x.mean()) ** 2).sum()))


@given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=20), min_size=1, max_size=5))
def test_the_sum_of_moments_is_the_moments_of_all_numbers(parts):
    total = sum(map(moments_of, parts), start=RunningMoments())
    expected = moments_of(list(itertools.chain(*parts)))
    assert total.count == expected.count
    assert total.mean == pytest.approx(expected.mean, abs=1e-9)
    assert total.m2 == pytest.approx(expected.m2, abs=1e-6)
    # Sums of squares in place of squared deviations would lose all digits far from zero.
    assert (moments_of([1e9, 1e9 + 1]) + moments_of([1e9 + 2, 1e9 + 3])).m2 == pytest.approx(5.0)


@pytest.mark.parametrize("n", [400, 63_999, 64_240, 64_399, 64_400, 200_000])
def test_pieces_measure_as_the_whole_does(n):
    waveform = noise(n)
    total, whole = moments(waveform), moments_of(spectrogram_of(waveform, FrontEnd("log_mel")))
    assert total.count == whole.count
    assert total.mean == pytest.approx(whole.mean, abs=1e-5)
    assert total.m2 == pytest.approx(whole.m2, rel=1e-5)


def test_statistics_survive_their_file_and_something_else_is_refused_with_a_cure(tmp_path):
    path = tmp_path / "a/stats.json"
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        statistics.read_stats(path)
    written = statistics.write_stats(path, RunningMoments(256, -6.5, 1024.0), files=3)
    assert written == statistics.LogMelStats(mean=-6.5, std=2.0, frames=2, files=3)
    assert statistics.read_stats(path) == written
    for change, part in [
        ("", "is no statistics"),
        ({"of": {"n_mels": 64}}, "of this version"),
        ({"std": 0.0}, "has mean -6.0 and std 0.0"),
        ({"mean": float("nan")}, "has mean nan"),
        ({"median": -6.0}, "is no statistics"),
    ]:
        statistics.write_stats(path, RunningMoments(128, -6.0, 512.0), files=1)
        told = json.loads(path.read_text())
        assert len(told.pop("sha256")) == 64  # or all of these would only be damaged
        path.write_text(json.dumps(told | change) if change else "")
        with pytest.raises(DatasetError, match=rf"stats\.json: .*{part}") as caught:
            statistics.read_stats(path)
        assert "s2f prep stats" in caught.value.hint
