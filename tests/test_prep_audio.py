"""Tests of s2f.prep_audio; each expected value says where it comes from."""

import dataclasses
import json
import pickle
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch
from conftest import noise
from recordings import READERS, ffmpeg_normalize, real

from s2f import audio, prep_audio
from s2f.audio import SAMPLE_RATE
from s2f.errors import AudioError, DatasetError, OutputError, S2FError, UsageError
from s2f.prep import Failure, PrepReport, Step
from s2f.prep_audio import audio_step, log_mel_stats, stats_step
from s2f.spectrogram import (
    FRONT_ENDS,
    FrontEnd,
    RunningMoments,
    moments,
    read_stats,
    spectrogram,
    write_stats,
)


def made(step: Step, source: Path) -> np.ndarray:
    """What a step stores of a source, after a journey to another process."""
    part = source.with_name("part.npy")
    assert pickle.loads(pickle.dumps(step.work))(source, part) is None
    return np.load(part)


def write(path: Path, seconds: float, seed: int = 0, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, noise(seconds, seed), SAMPLE_RATE, subtype=subtype)
    return path


# Waveforms


@pytest.mark.parametrize("seconds", [0.5, 3.7, 21.0])
def test_a_waveform_is_the_whole_recording_as_ffmpeg_normalize_stores_it(tmp_path, seconds):
    source = write(tmp_path / "a.wav", seconds)
    samples, _ = soundfile.read(source, dtype="int16")
    stored = made(audio_step(store="waveform"), source)
    assert stored.dtype == np.int16
    np.testing.assert_array_equal(stored, ffmpeg_normalize(samples))


def test_a_bad_recording_is_refused_by_name_and_nothing_is_written(tmp_path):
    source = write(tmp_path / "a.wav", 0.2)
    for step in (audio_step(store="waveform"), audio_step(store="spectrogram"), stats_step()):
        with pytest.raises(AudioError, match=r"a\.wav lasts 0\.20 s"):
            step.work(source, tmp_path / "part.npy")
    assert not (tmp_path / "part.npy").exists()


# Spectrograms


@pytest.mark.parametrize("preset", FRONT_ENDS)
@pytest.mark.parametrize("seconds", [0.7, 25.0])
def test_a_spectrogram_is_that_of_the_first_clip(tmp_path, preset, seconds):
    source, front_end = write(tmp_path / "a.wav", seconds), FRONT_ENDS[preset]
    clip = audio.clips(audio.read_speech(source).waveform(), front_end.clip_samples)[:1]
    stored = made(audio_step(store="spectrogram", preset=preset), source)
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, spectrogram(torch.from_numpy(clip), front_end)[0])


def seed_recipe(samples: np.ndarray) -> np.ndarray:
    """What the seed computes of 16-bit samples [n], before its compression: complex [257 601].

    Its recipe in our words: a normalised int16 temporary file, librosa's loading and centred
    transform, the first 6 s, looped.
    """
    waveform = ffmpeg_normalize(samples).astype(np.float32) / 32768
    looped = np.tile(waveform, -(-96_000 // len(waveform)))[:96_000]
    return librosa.stft(looped, n_fft=512, hop_length=160, win_length=400)


def check_seed(source: Path) -> None:
    """Compare complex values, as the phase of what is nearly 0 is arbitrary.

    Rounding to 16 bits adds noise of variance 1/12 a sample, in units of 1/32768; a bin sums it
    under the squared window (150), so that the absolute value of its error is Rayleigh with a
    mean square of 12.5: of 154,457 bins the largest is expected at 12.2 and below 18.6 with a
    probability of 1 - 1.5e-7.
    """
    samples, _ = soundfile.read(source, dtype="int16")
    expected = seed_recipe(samples)
    magnitude, phase = made(audio_step(store="spectrogram", preset="seed"), source)
    angle = np.sign(phase) * np.abs(phase) ** (1 / 0.3)
    error = np.abs(magnitude ** (1 / 0.3) * np.exp(1j * angle) - expected) * 32768
    assert error.max() < 18.6
    assert np.sqrt(np.mean(error**2)) == pytest.approx(np.sqrt(12.5), rel=0.05)


@pytest.mark.parametrize("seconds", [1.3, 14.0])
def test_the_seed_preset_is_the_recipe_of_the_seed_to_16_bits(tmp_path, seconds):
    check_seed(write(tmp_path / "a.wav", seconds))


@pytest.mark.data
@pytest.mark.parametrize("reader", READERS[:2])
def test_real_speech_gets_the_spectrogram_of_the_seed_to_16_bits(tmp_path, reader):
    samples, rate = soundfile.read(real(reader), dtype="int16")
    soundfile.write(tmp_path / "a.wav", samples, rate)
    check_seed(tmp_path / "a.wav")


# Settings


def test_what_changes_the_output_changes_the_settings(tmp_path):
    total = RunningMoments(128, -6.0, 128.0)
    write_stats(tmp_path / "stats.json", total, files=1)
    steps = [
        audio_step(store="waveform"),
        audio_step(store="waveform", trim_silence=40),
        *(audio_step(store="spectrogram", preset=preset) for preset in FRONT_ENDS),
        audio_step(store="spectrogram", preset="ast", stats=tmp_path / "stats.json"),
        stats_step(),
    ]
    settings = [json.dumps(step.settings, sort_keys=True) for step in steps]
    assert len(set(settings)) == len(steps)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"store": "spectrogram", "preset": "mfcc"}, "'mfcc' is no preset"),
        ({"store": "spectrogram", "stats": Path("a")}, "statistics do not go into"),
        ({"store": "waveform", "preset": "ast", "stats": Path("a")}, "statistics do not go into"),
        ({"store": "waveform", "trim_silence": 0.0}, "wanted more than 0 dB"),
        ({"store": "waveform", "trim_silence": float("nan")}, "wanted more than 0 dB"),
    ],
)
def test_options_that_contradict_are_refused(options, part):
    with pytest.raises(UsageError, match=part) as caught:
        audio_step(**options)
    assert caught.value.hint


# Statistics


def run(step: Step, tree: Path) -> PrepReport:
    """Do a step in this process, in an order that is not sorted."""
    notes, failed = {}, []
    for source in sorted(filter(Path.is_file, tree.rglob("*")), reverse=True):
        if step.wants(source.name):
            try:
                notes[str(source.relative_to(tree))] = step.work(source, tree / "part")
            except S2FError as error:
                failed.append(Failure(source, error))
    notes = json.loads(json.dumps(notes))  # as the journal does
    return PrepReport(tree, len(notes), 0, tuple(failed), 1.0, notes)


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prep_audio, "prepare", lambda step, tree, out, **_: run(step, tree))


def tree_of(folder: Path) -> tuple[Path, np.ndarray]:
    """A tree of stored waveforms and recordings, and all the log-mel of it [128 t]."""
    (folder / "tree/id0").mkdir(parents=True)
    step, waveforms = audio_step(store="waveform"), []
    for k, seconds in enumerate([0.6, 3.0, 9.3]):
        source = write(folder / "source.wav", seconds, seed=k)
        waveforms.append(made(step, source).astype(np.float32) / 32768)
        (folder / "part.npy").rename(folder / f"tree/id0/{k}.npy")
    waveforms.append(audio.read_speech(write(folder / "tree/a.flac", 5.0, seed=3)).waveform())
    mels = [spectrogram(torch.from_numpy(w)[None], FrontEnd("log_mel"))[0, 0] for w in waveforms]
    return folder / "tree", torch.cat(mels, dim=1).double().numpy()


@pytest.mark.usefixtures("inline")
def test_the_statistics_are_those_of_all_frames_together(tmp_path):
    """NumPy over the log-mel of the whole utterances, end to end."""
    tree, mel = tree_of(tmp_path)
    stats, report = log_mel_stats(tree, tmp_path / "stats.json")
    assert stats.mean == pytest.approx(mel.mean(), abs=1e-6)
    assert stats.std == pytest.approx(mel.std(), abs=1e-6)
    assert (stats.frames, stats.files, report.failed) == (mel.shape[1], 4, ())
    assert read_stats(tmp_path / "stats.json") == stats
    step = audio_step(store="spectrogram", preset="ast", stats=tmp_path / "stats.json")
    front_end = dataclasses.replace(FRONT_ENDS["ast"], mean=stats.mean, std=stats.std)
    assert step.settings["front_end"] == dataclasses.asdict(front_end)


@pytest.mark.usefixtures("inline")
def test_statistics_are_brought_up_to_date_but_nothing_else_is_overwritten(tmp_path):
    tree, _ = tree_of(tmp_path)
    out = tmp_path / "stats.json"
    log_mel_stats(tree, out)
    assert log_mel_stats(tree, out)[0] is not None
    out.write_text("my notes")
    with pytest.raises(OutputError, match="something else already"):
        log_mel_stats(tree, out)
    assert log_mel_stats(tree, out, overwrite=True)[0] == read_stats(out)


@pytest.mark.usefixtures("inline")
def test_without_a_usable_file_no_statistics_are_written(tmp_path):
    (tmp_path / "tree").mkdir()
    write(tmp_path / "tree/a.wav", 0.2)
    stats, report = log_mel_stats(tmp_path / "tree", tmp_path / "stats.json")
    assert stats is None
    assert [failure.source.name for failure in report.failed] == ["a.wav"]
    assert not (tmp_path / "stats.json").exists()


@pytest.mark.parametrize("dtype", ["int16", "float16", "float32", "float64"])
def test_stored_waveforms_of_every_type_are_measured_alike(tmp_path, dtype):
    samples = noise(6)
    stored = samples * 32768 if dtype == "int16" else samples
    np.save(tmp_path / "a.npy", stored.astype(dtype))
    measured = stats_step().work(tmp_path / "a.npy", tmp_path / "part")
    expected = moments(iter([samples]))
    assert measured["count"] == expected.count
    assert measured["mean"] == pytest.approx(expected.mean, abs=0.01)


@pytest.mark.parametrize(
    ("array", "part"),
    [
        (np.zeros((2, 257, 598), np.float32), "wanted a waveform"),
        (np.zeros(4096, np.float32), "holds 4096 samples at 16 kHz; wanted 0.5 s"),
        (np.zeros(100_000, np.int16), "holds only silence"),
        (np.full(100_000, np.nan, np.float32), "NaN or infinite"),
        (np.zeros(100_000, np.int64), "wanted a waveform"),
    ],
)
def test_an_array_that_is_no_speech_is_refused_by_name(tmp_path, array, part):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DatasetError, match=part) as caught:
        stats_step().work(tmp_path / "a.npy", tmp_path / "part")
    assert "a.npy" in caught.value.message
    assert caught.value.hint
