"""Tests of s2f.audio; each expected value says where it comes from."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2f import audio
from s2f.audio import FRONT_ENDS, FrontEnd
from s2f.decoding import SAMPLE_RATE
from s2f.errors import AudioError

REPOSITORY = Path(__file__).parents[1]
VOICES = Path(__file__).parents[2] / "shared/data/voices"


def tone(rate: int = SAMPLE_RATE, seconds: float = 1.5) -> np.ndarray:
    """A sine [n]."""
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    return wave.astype(np.float32)


def noise(n: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


# Loading


def test_load_reads_what_a_file_holds(tmp_path):
    samples = np.round(noise(SAMPLE_RATE) * 32768) / 32768
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE)
    np.testing.assert_array_equal(audio.load(tmp_path / "a.wav"), samples)


def missing(folder: Path) -> Path:
    return folder / "a.wav"


def directory(folder: Path) -> Path:
    return folder


def pipe(folder: Path) -> Path:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(folder / "a.wav")
    return folder / "a.wav"


def text(folder: Path) -> Path:
    (folder / "a.wav").write_text("Dear diary, today I spoke to nobody.\n" * 50)
    return folder / "a.wav"


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (missing, "a.wav cannot be read (No such file or directory); wanted a recording"),
        (directory, "is a folder; wanted a recording"),
        (pipe, "a.wav is not a regular file"),
        (text, "a.wav holds no sound that can be decoded (Invalid data"),
    ],
)
def test_what_is_no_recording_is_refused_by_name_with_a_cure(tmp_path, make, part):
    with pytest.raises(AudioError) as caught:
        audio.load(make(tmp_path))
    assert str(tmp_path) in caught.value.message
    assert part in caught.value.message
    assert caught.value.hint


def test_a_refusal_keeps_its_cause(tmp_path):
    with pytest.raises(AudioError) as caught:
        audio.load(missing(tmp_path))
    assert caught.value.__cause__ is not None


def test_silence_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE)
    with pytest.raises(AudioError, match=r"a\.wav holds only silence .*-90 dBFS"):
        audio.read_clips(tmp_path / "a.wav", FRONT_ENDS["paper"])


def test_speech_of_a_fifth_of_a_second_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(seconds=0.2), SAMPLE_RATE)
    with pytest.raises(AudioError, match=r"a\.wav lasts 0\.20 s; wanted 0\.5 s"):
        audio.read_clips(tmp_path / "a.wav", FRONT_ENDS["paper"])


# Finding


def test_a_folder_is_searched_at_every_depth_in_order(tmp_path):
    for name in ("b.wav", "a/z.FLAC", "a/b/c.m4a", "notes.txt", ".hidden.wav", ".cache/a.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    expected = [tmp_path / name for name in ("a/b/c.m4a", "a/z.FLAC", "b.wav")]
    assert audio.find([tmp_path]) == expected


def test_a_named_file_is_kept_whatever_its_suffix_and_only_once(tmp_path):
    odd, wav = tmp_path / "x.dat", tmp_path / "a.wav"
    odd.touch()
    wav.touch()
    assert audio.find([odd, wav, tmp_path]) == [odd, wav]


def test_a_hidden_folder_that_is_named_is_searched(tmp_path):
    (tmp_path / ".voices").mkdir()
    (tmp_path / ".voices/a.wav").touch()
    assert audio.find([tmp_path / ".voices"]) == [tmp_path / ".voices/a.wav"]


def test_a_folder_without_speech_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(AudioError, match=r"holds no recording; wanted files ending in \.3gp \.aac"):
        audio.find([tmp_path])


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(AudioError, match="nowhere does not exist"):
        audio.find([tmp_path / "nowhere"])


# Loudness


def rms_db(waveform: np.ndarray) -> float:
    return 20 * np.log10(np.sqrt(np.mean(waveform.astype(np.float64) ** 2)))


@pytest.mark.parametrize("gain", [1e-3, 0.1, 1.0, 30.0])
def test_loudness_becomes_minus_23_dbfs(gain):
    assert rms_db(audio.normalise_loudness(tone() * gain)) == pytest.approx(-23, abs=1e-4)


def test_loudness_is_idempotent():
    once = audio.normalise_loudness(noise(SAMPLE_RATE))
    np.testing.assert_allclose(audio.normalise_loudness(once), once, atol=1e-6)


def test_peaks_beyond_full_scale_are_clipped():
    waveform = np.zeros(SAMPLE_RATE, np.float32)
    waveform[::2000] = 0.5
    loud = audio.normalise_loudness(waveform)
    assert loud.max() == 1.0
    assert loud.dtype == np.float32


def test_normalising_leaves_its_argument_alone():
    waveform = noise(1000)
    audio.normalise_loudness(waveform)
    np.testing.assert_array_equal(waveform, noise(1000))


# Clips

lengths = st.integers(1, 300)


@given(n=lengths, clip_samples=lengths)
def test_every_clip_has_the_length(n, clip_samples):
    cut = audio.clips(np.arange(n, dtype=np.float32), clip_samples)
    assert cut.ndim == 2
    assert len(cut) >= 1
    assert cut.shape[1] == clip_samples
    assert cut.dtype == np.float32


@given(n=lengths, clip_samples=lengths)
def test_shorter_speech_is_looped(n, clip_samples):
    n = min(n, clip_samples)
    cut = audio.clips(np.arange(n, dtype=np.float32), clip_samples)
    np.testing.assert_array_equal(cut, [np.arange(clip_samples) % n])


@given(n=lengths, clip_samples=lengths)
def test_longer_speech_is_cut_in_a_row_and_its_rest_kept_from_half_a_clip_on(n, clip_samples):
    n = max(n, clip_samples)
    cut = audio.clips(np.arange(n, dtype=np.float32), clip_samples)
    starts = [start for start in range(0, n, clip_samples) if start + clip_samples <= n]
    if n % clip_samples >= clip_samples / 2:
        starts.append(n - clip_samples)
    np.testing.assert_array_equal(cut, [np.arange(s, s + clip_samples) for s in starts])


@pytest.mark.parametrize(("n", "m"), [(149, 1), (150, 2), (200, 2), (249, 2), (250, 3)])
def test_exactly_half_a_clip_is_kept(n, m):
    assert len(audio.clips(noise(n), 100)) == m


def test_an_empty_waveform_cannot_be_cut():
    with pytest.raises(ValueError, match="empty"):
        audio.clips(np.empty(0, np.float32), 100)


def test_read_clips_gives_loud_clips_of_the_front_end(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(44_100, 10.0), 44_100)
    cut = audio.read_clips(tmp_path / "a.wav", FrontEnd("paper"))
    assert cut.shape == (2, 96_000)
    assert rms_db(cut) == pytest.approx(-23, abs=0.01)


# Front ends


@pytest.mark.parametrize(
    ("name", "shape"),
    [("paper", (2, 257, 598)), ("seed", (2, 257, 601)), ("ast", (1, 128, 1024))],
)
def test_the_shapes_are_those_of_the_published_models(name, shape):
    front_end = FRONT_ENDS[name]
    waveforms = torch.from_numpy(noise(2 * front_end.clip_samples)).reshape(2, -1)
    assert audio.spectrogram(waveforms, front_end).shape == (2, *shape)


@settings(deadline=None)
@given(kind=st.sampled_from(["paper", "seed", "ast"]), n=st.integers(400, 3000))
def test_a_front_end_foretells_the_shape(kind, n):
    front_end = FrontEnd(kind)
    expected = (1, front_end.n_channels, front_end.n_freqs, front_end.n_frames(n))
    assert audio.spectrogram(torch.zeros(1, n), front_end).shape == expected


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
    return audio.spectrogram(torch.from_numpy(waveform)[None], front_end)[0].numpy()


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
    together = audio.spectrogram(waveforms, FrontEnd(kind))
    apart = torch.cat([audio.spectrogram(one[None], FrontEnd(kind)) for one in waveforms])
    torch.testing.assert_close(together, apart, atol=1e-3, rtol=1e-3)


def test_the_compression_is_odd():
    up = spectrogram_of(noise(4000), FrontEnd("paper"))
    np.testing.assert_array_equal(spectrogram_of(-noise(4000), FrontEnd("paper")), -up)


@pytest.mark.parametrize("kind", ["paper", "seed"])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_silence_stays_silent(kind, zero):
    assert not audio.spectrogram(torch.full((1, 4000), zero), FrontEnd(kind)).any()


def test_a_negative_zero_from_an_fft_does_not_turn_the_phase(monkeypatch):
    spectrum = torch.complex(torch.tensor([[[-1.0, -0.0]]]), torch.tensor([[[-0.0, -0.0]]]))
    monkeypatch.setattr(torch, "stft", lambda *_, **__: spectrum)
    phase = audio.spectrogram(torch.zeros(1, 400), FrontEnd("seed"))[0, 1, 0]
    torch.testing.assert_close(phase, torch.tensor([np.pi**0.3, 0.0]).float())


@pytest.mark.parametrize("kind", ["paper", "seed", "ast"])
def test_gradients_stay_finite_in_silence(kind):
    waveforms = torch.from_numpy(noise(4000))[None]
    waveforms[:, 1000:3000] = 0
    waveforms.requires_grad_()
    audio.spectrogram(waveforms, FrontEnd(kind)).sum().backward()
    assert waveforms.grad.isfinite().all()
    assert waveforms.grad.any()


@pytest.mark.parametrize("kind", ["paper", "seed", "ast"])
def test_gradients_are_those_of_finite_differences(kind):
    generator = torch.Generator().manual_seed(0)
    waveform = torch.randn(1, 560, generator=generator, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(1, 560, generator=generator, dtype=torch.float64)
    front_end = FrontEnd(kind)
    # A smooth target: the square undoes the infinite slope of the root at 0.
    shape = audio.spectrogram(waveform, front_end).shape
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    weights[:, :, [0, -1]] = 0  # where the imaginary part is 0 but for rounding

    def value(x):
        y = audio.spectrogram(x, front_end)
        return (weights * y.abs() ** 5).sum()

    (gradient,) = torch.autograd.grad(value(waveform), waveform)
    step = 1e-6
    with torch.no_grad():
        ahead, behind = value(waveform + step * direction), value(waveform - step * direction)
    slope = (ahead - behind) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-6)


def test_autocast_does_not_coarsen_the_log_mel():
    waveforms = torch.from_numpy(noise(4000))[None]
    expected = audio.spectrogram(waveforms, FRONT_ENDS["ast"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = audio.spectrogram(waveforms, FRONT_ENDS["ast"])
    torch.testing.assert_close(ours, expected)


# The whole


def test_the_example_is_speech_for_one_clip():
    cut = audio.read_clips(REPOSITORY / "examples/speech.wav", FRONT_ENDS["paper"])
    assert cut.shape == (1, 96_000)
    assert np.isfinite(spectrogram_of(cut[0], FRONT_ENDS["paper"])).all()


@pytest.mark.data
@pytest.mark.parametrize("reader", ["103", "1034", "1040", "118", "19"])
def test_real_recordings_become_spectrograms(reader):
    if not VOICES.is_dir():
        pytest.skip("the real voices (shared/data/voices) are not beside the repository")
    (path,) = audio.find([VOICES / reader])
    for front_end in FRONT_ENDS.values():
        cut = audio.read_clips(path, front_end)
        ours = audio.spectrogram(torch.from_numpy(cut), front_end)
        assert cut.shape[1] == front_end.clip_samples
        assert ours.isfinite().all()
        assert ours.std() > 0.1


def test_importing_the_module_loads_no_decoder():
    heavy = "{'av', 'librosa', 'scipy', 'soundfile', 'soxr'}"
    code = f"import sys, s2f.audio; print({heavy} & set(sys.modules))"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "set()\n"
