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

from s2f import prep_audio
from s2f import spectrogram as statistics
from s2f.audio import SAMPLE_RATE, clips, read_speech
from s2f.errors import DatasetError, InputError, OutputError, UsageError
from s2f.prep import Failure, PrepReport, Step
from s2f.prep_audio import audio_step, log_mel_stats, stats_step
from s2f.spectrogram import FRONT_ENDS, FrontEnd, RunningMoments, spectrogram


def made(step: Step, source: Path) -> np.ndarray:
    """What a step stores of a source, after a journey to another process."""
    part = source.with_name("part.npy")
    assert pickle.loads(pickle.dumps(step.work))(source, part) is None
    return np.load(part)


def write(path: Path, seconds: float, seed: int = 0) -> Path:
    soundfile.write(path, noise(seconds, seed), SAMPLE_RATE)
    return path


def test_a_waveform_is_the_whole_recording_as_ffmpeg_normalize_stores_it(tmp_path):
    source = write(tmp_path / "a.wav", 21.0)
    stored = made(audio_step(store="waveform"), source)
    assert stored.dtype == np.int16
    expected = ffmpeg_normalize(soundfile.read(source, dtype="int16")[0])
    np.testing.assert_array_equal(stored, expected)


@pytest.mark.parametrize("preset", FRONT_ENDS)
@pytest.mark.parametrize("seconds", [0.7, 25.0])
def test_a_spectrogram_is_that_of_the_first_clip(tmp_path, preset, seconds):
    source, front_end = write(tmp_path / "a.wav", seconds), FRONT_ENDS[preset]
    clip = torch.from_numpy(clips(read_speech(source), front_end.clip_samples)[0])
    stored = made(audio_step(store="spectrogram", preset=preset), source)
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, spectrogram(clip[None], front_end)[0])


def check_seed(folder: Path, samples: np.ndarray) -> None:
    """Compare with the seed's recipe: normalised int16, 6 s, looped, librosa's centred transform.

    Rounding to 16 bits adds noise of variance 1/12 a sample, in units of 1/32768; a bin sums it
    under the squared window (150): its error is Rayleigh with a mean square of 12.5, and of 154,457
    bins the largest is below 18.6 with a probability of 1 - 1.5e-7.
    """
    soundfile.write(folder / "a.wav", samples, SAMPLE_RATE)
    looped = np.resize(ffmpeg_normalize(samples).astype(np.float32) / 32768, 96_000)
    expected = librosa.stft(looped, n_fft=512, hop_length=160, win_length=400)
    magnitude, phase = made(audio_step(store="spectrogram", preset="seed"), folder / "a.wav")
    angle = np.sign(phase) * np.abs(phase) ** (1 / 0.3)
    error = np.abs(magnitude ** (1 / 0.3) * np.exp(1j * angle) - expected) * 32768
    assert error.max() < 18.6
    assert np.sqrt(np.mean(error**2)) == pytest.approx(np.sqrt(12.5), rel=0.05)


DATA = [pytest.param(reader, marks=pytest.mark.data) for reader in READERS[:2]]


@pytest.mark.parametrize("sound", [1.3, 14.0, *DATA])
def test_the_seed_preset_is_the_recipe_of_the_seed_to_16_bits(tmp_path, sound):
    source = real(sound) if isinstance(sound, str) else write(tmp_path / "a.wav", sound)
    check_seed(tmp_path, soundfile.read(source, dtype="int16")[0])


def test_what_changes_the_output_changes_the_settings(tmp_path):
    statistics.write_stats(tmp_path / "stats.json", RunningMoments(128, -6.0, 128.0), files=1)
    steps = [audio_step(store="waveform"), audio_step(store="waveform", trim_silence=40)]
    steps += [audio_step(store="spectrogram", preset=preset) for preset in FRONT_ENDS]
    steps.append(audio_step(store="spectrogram", preset="ast", stats=tmp_path / "stats.json"))
    steps.append(stats_step())
    assert len({json.dumps(step.settings, sort_keys=True) for step in steps}) == len(steps)


def test_options_that_contradict_are_refused():
    for part, options in {
        "'mfcc' is no preset": {"preset": "mfcc"},
        "do not go into a spectrogram of preset paper": {"stats": Path("a")},
        "do not go into a waveform": {"store": "waveform", "preset": "ast", "stats": Path("a")},
        "wanted more than 0 dB": {"trim_silence": 0.0},
    }.items():
        with pytest.raises(UsageError, match=part):
            audio_step(**{"store": "spectrogram", **options})


# Statistics


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do steps in this process, in an order that is not sorted."""

    def run(step: Step, tree: Path, out: Path, **_: object) -> PrepReport:
        notes, failed = {}, []
        for source in sorted(filter(Path.is_file, tree.rglob("*")), reverse=True):
            try:
                notes[str(source.relative_to(tree))] = step.work(source, tree / "part")
            except InputError as error:
                failed.append(Failure(source, error))
        notes = json.loads(json.dumps(notes))  # as the journal does
        return PrepReport(tree, len(notes), 0, tuple(failed), 1.0, notes)

    monkeypatch.setattr(prep_audio, "prepare", run)


def test_the_statistics_are_those_of_all_frames_together(tmp_path):
    """NumPy over the log-mel of whole utterances, stored waveforms and a recording, end to end."""
    tree, out, waveforms = tmp_path / "tree", tmp_path / "stats.json", []
    tree.mkdir()
    write(tree / "short.wav", 0.2)
    stats, report = log_mel_stats(tree, out)  # no file can be used
    assert stats is None and not out.exists()
    assert [failure.source.name for failure in report.failed] == ["short.wav"]
    (tree / "id0").mkdir()
    for k, seconds in enumerate([0.6, 3.0, 9.3]):
        source = write(tmp_path / "source.wav", seconds, seed=k)
        waveforms.append(made(audio_step(store="waveform"), source).astype(np.float32) / 32768)
        (tmp_path / "part.npy").rename(tree / f"id0/{k}.npy")
    waveforms.append(read_speech(write(tree / "a.flac", 5.0, seed=3)))
    mels = [spectrogram(torch.from_numpy(w)[None], FrontEnd("log_mel"))[0, 0] for w in waveforms]
    mel = torch.cat(mels, dim=1).double().numpy()
    stats, report = log_mel_stats(tree, out)
    assert stats.mean == pytest.approx(mel.mean(), abs=1e-6)
    assert stats.std == pytest.approx(mel.std(), abs=1e-6)
    assert (stats.frames, stats.files, len(report.failed)) == (mel.shape[1], 4, 1)
    step = audio_step(store="spectrogram", preset="ast", stats=out)
    front_end = dataclasses.replace(FRONT_ENDS["ast"], mean=stats.mean, std=stats.std)
    assert step.settings["front_end"] == dataclasses.asdict(front_end)
    assert log_mel_stats(tree, out)[0] == stats == statistics.read_stats(out)  # made anew
    out.write_text("my notes")
    with pytest.raises(OutputError, match="something else already"):
        log_mel_stats(tree, out)
    assert log_mel_stats(tree, out, overwrite=True)[0] == statistics.read_stats(out)


def test_stored_waveforms_of_every_type_are_measured_alike(tmp_path):
    samples = noise(6)
    expected = statistics.moments(samples)
    for dtype, scale in {"int16": 32768, "float16": 1, "float32": 1, "float64": 1}.items():
        np.save(tmp_path / "a.npy", (samples * scale).astype(dtype))
        measured = stats_step().work(tmp_path / "a.npy", tmp_path / "part")
        assert measured["count"] == expected.count
        assert measured["mean"] == pytest.approx(expected.mean, abs=0.01)


@pytest.mark.parametrize(
    ("array", "part"),
    [
        (np.zeros((2, 257, 598), np.float32), "wanted a waveform"),
        (np.zeros(4096, np.float32), r"lasts 0\.26 s; wanted 0\.5 s"),
        (np.full(100_000, np.nan, np.float32), "NaN or infinite"),
    ],
)
def test_an_array_that_is_no_speech_is_refused_by_name(tmp_path, array, part):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DatasetError, match=rf"a\.npy:? .*{part}") as caught:
        stats_step().work(tmp_path / "a.npy", tmp_path / "part")
    assert caught.value.hint
