"""Tests of s2f.audio; each expected value says where it comes from."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import ffmpeg_normalize, real, repeat_av, write_av

from s2f import audio
from s2f.audio import SAMPLE_RATE, Waveform
from s2f.errors import AudioError, UsageError

REPOSITORY = Path(__file__).parents[1]


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
    np.testing.assert_array_equal(audio.load_audio(tmp_path / "a.wav"), samples)


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
        audio.load_audio(make(tmp_path))
    assert str(tmp_path) in caught.value.message
    assert part in caught.value.message
    assert caught.value.hint


def test_a_refusal_keeps_its_cause(tmp_path):
    with pytest.raises(AudioError) as caught:
        audio.load_audio(missing(tmp_path))
    assert caught.value.__cause__ is not None


def test_silence_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE)
    with pytest.raises(AudioError, match=r"a\.wav holds only silence .*-90 dBFS"):
        audio.read_speech(tmp_path / "a.wav")


def test_speech_of_a_fifth_of_a_second_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(seconds=0.2), SAMPLE_RATE)
    with pytest.raises(AudioError, match=r"a\.wav lasts 0\.20 s; wanted 0\.5 s"):
        audio.read_speech(tmp_path / "a.wav")


def test_an_error_of_who_reads_is_not_taken_for_one_of_the_recording(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(), SAMPLE_RATE)
    with pytest.raises(OSError, match="No space"), audio.open_speech(tmp_path / "a.wav"):
        raise OSError(28, "No space left on device")


def test_speech_is_read_in_blocks_or_at_once_or_from_its_start(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(10 * SAMPLE_RATE), SAMPLE_RATE)
    with audio.open_speech(tmp_path / "a.wav") as speech:
        whole = speech.waveform()
        assert whole.size == speech.n_samples == 10 * SAMPLE_RATE
        np.testing.assert_array_equal(np.concatenate(list(speech.blocks())), whole)
        np.testing.assert_array_equal(speech.waveform(96_001), whole[:96_001])
        np.testing.assert_array_equal(speech.waveform(whole.size + 1), whole)


# Finding


def test_a_folder_is_searched_at_every_depth_in_order(tmp_path):
    for name in ("b.wav", "a/z.FLAC", "a/b/c.m4a", "notes.txt", ".hidden.wav", ".cache/a.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    expected = [tmp_path / name for name in ("a/b/c.m4a", "a/z.FLAC", "b.wav")]
    assert audio.find_recordings([tmp_path]) == expected


def test_a_named_file_is_kept_whatever_its_suffix_and_only_once(tmp_path):
    odd, wav = tmp_path / "x.dat", tmp_path / "a.wav"
    odd.touch()
    wav.touch()
    assert audio.find_recordings([odd, wav, tmp_path]) == [odd, wav]


def test_a_hidden_folder_that_is_named_is_searched(tmp_path):
    (tmp_path / ".voices").mkdir()
    (tmp_path / ".voices/a.wav").touch()
    assert audio.find_recordings([tmp_path / ".voices"]) == [tmp_path / ".voices/a.wav"]


def test_a_folder_without_speech_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(AudioError, match="holds no recordings"):
        audio.find_recordings([tmp_path])


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(AudioError, match="nowhere: does not exist"):
        audio.find_recordings([tmp_path / "nowhere"])


# Loudness


def rms_db(waveform: np.ndarray) -> float:
    return 20 * np.log10(np.sqrt(np.mean(waveform.astype(np.float64) ** 2)))


def stored(path: Path) -> np.ndarray:
    return audio.to_int16(audio.read_speech(path))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(8_000, 40_000),
    scale=st.floats(1e-3, 2),
    subtype=st.sampled_from(["PCM_16", "FLOAT"]),
)
def test_the_samples_are_those_of_ffmpeg_normalize(seed, n, scale, subtype):
    """Up to a scale of 2, where half of them are clipped."""
    samples = (scale * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)
    if subtype == "PCM_16":
        samples = np.rint(samples * 32768).clip(-32768, 32767).astype(np.int16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.wav"
        soundfile.write(path, samples, SAMPLE_RATE, subtype=subtype)
        np.testing.assert_array_equal(stored(path), ffmpeg_normalize(samples))


@pytest.mark.parametrize("peak", [0.4, 0.999])
def test_clipped_peaks_are_those_of_ffmpeg_normalize(tmp_path, peak):
    samples = np.zeros(SAMPLE_RATE, np.float32)
    samples[::2000], samples[1000::2000] = peak, -peak
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE, subtype="FLOAT")
    ours = stored(tmp_path / "a.wav")
    np.testing.assert_array_equal(ours, ffmpeg_normalize(samples))
    assert (ours.min(), ours.max()) == (-32768, 32767)


@pytest.mark.data
@pytest.mark.parametrize("reader", ["103", "1034", "1040", "118", "19"])
def test_real_recordings_get_the_samples_of_ffmpeg_normalize(reader):
    (path,) = real(reader)
    samples, _ = soundfile.read(path, dtype="int16")
    np.testing.assert_array_equal(stored(path), ffmpeg_normalize(samples))


@pytest.mark.parametrize(("subtype", "full_scale"), [("PCM_16", 32767), ("PCM_24", 32768)])
def test_only_sources_of_16_bits_are_measured_against_32767(tmp_path, subtype, full_scale):
    """ENGINES.md, 1d: what FFmpeg's astats divides by."""
    samples = np.rint(noise(SAMPLE_RATE) * 32768) / 32768
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE, subtype=subtype)
    with audio.open_speech(tmp_path / "a.wav") as speech:
        level = round(rms_db(samples * (32768 / full_scale)), 6)
        assert speech.gain == np.float32(10 ** ((-23 - level) / 20))


@pytest.mark.parametrize("gain", [1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("rate", [SAMPLE_RATE, 44_100])
def test_loudness_becomes_minus_23_dbfs(tmp_path, gain, rate):
    soundfile.write(tmp_path / "a.wav", tone(rate) * gain, rate, subtype="FLOAT")
    assert rms_db(audio.read_speech(tmp_path / "a.wav")) == pytest.approx(-23, abs=1e-5)


def test_loudness_is_idempotent(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(SAMPLE_RATE), SAMPLE_RATE, subtype="FLOAT")
    once = audio.read_speech(tmp_path / "a.wav")
    soundfile.write(tmp_path / "b.wav", once, SAMPLE_RATE, subtype="FLOAT")
    np.testing.assert_allclose(audio.read_speech(tmp_path / "b.wav"), once, atol=1e-6)


def test_peaks_beyond_full_scale_are_clipped(tmp_path):
    samples = np.zeros(SAMPLE_RATE, np.float32)
    samples[::2000] = 0.5
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE, subtype="FLOAT")
    loud = audio.read_speech(tmp_path / "a.wav")
    assert loud.max() == 1.0
    assert loud.dtype == np.float32


@pytest.mark.parametrize(
    ("x", "expected"), [(1.0, 32767), (-1.0, -32768), (0.5 / 32768, 0), (1.5 / 32768, 2)]
)
def test_integers_are_rounded_half_to_even_and_clipped(x, expected):
    assert audio.to_int16(np.array([x], np.float32)) == expected


# Silence at the ends


def pauses(before: float, after: float, floor: float = 1e-4) -> np.ndarray:
    """A second of a tone between pauses of some seconds that are nearly silent."""
    ends = [round(s * SAMPLE_RATE) for s in (before, after)]
    quiet = np.random.default_rng(0).standard_normal(SAMPLE_RATE + sum(ends))
    samples = (floor * quiet).astype(np.float32)
    samples[ends[0] : ends[0] + SAMPLE_RATE] += tone(seconds=1)
    return samples


def trimmed(path: Path, samples: np.ndarray, trim_silence: float | None) -> np.ndarray:
    """What is left of some samples, at the loudness they have."""
    soundfile.write(path, samples, SAMPLE_RATE, subtype="FLOAT")
    with audio.open_speech(path, trim_silence=trim_silence) as speech:
        return speech.waveform() / speech.gain


@pytest.mark.parametrize("ends", [(0.5, 0.3), (0.0, 1.0), (2.0, 0.0), (0.0, 0.0)])
def test_silence_at_both_ends_is_trimmed_to_the_frame(tmp_path, ends):
    samples = pauses(*ends)
    left = trimmed(tmp_path / "a.wav", samples, 40)
    start = round(ends[0] * SAMPLE_RATE)
    np.testing.assert_allclose(left, samples[start : start + SAMPLE_RATE], atol=1e-6)


def test_a_pause_within_speech_is_kept(tmp_path):
    samples = np.concatenate([pauses(0.2, 0.5), pauses(0.5, 0.2)])
    assert trimmed(tmp_path / "a.wav", samples, 40).size == 3 * SAMPLE_RATE


def test_the_loudness_is_measured_after_trimming(tmp_path):
    soundfile.write(tmp_path / "a.wav", pauses(3, 3), SAMPLE_RATE, subtype="FLOAT")
    with audio.open_speech(tmp_path / "a.wav", trim_silence=40) as speech:
        assert rms_db(speech.waveform()) == pytest.approx(-23, abs=1e-5)


def test_what_is_left_after_trimming_may_be_too_short(tmp_path):
    soundfile.write(tmp_path / "a.wav", pauses(2, 2)[: round(2.2 * SAMPLE_RATE)], SAMPLE_RATE)
    match = r"a\.wav lasts 0\.20 s without its silence; wanted 0\.5 s"
    with (
        pytest.raises(AudioError, match=match),
        audio.open_speech(tmp_path / "a.wav", trim_silence=40),
    ):
        pass


def test_silence_cannot_be_trimmed_away(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE)
    with pytest.raises(AudioError, match="only silence"):
        with audio.open_speech(tmp_path / "a.wav", trim_silence=40):
            pass


@settings(deadline=None, max_examples=20)
@given(before=st.floats(0, 1), after=st.floats(0, 1), trim_silence=st.floats(20, 60))
def test_trimming_agrees_with_librosa_within_its_frame(before, after, trim_silence):
    """librosa.effects.trim, whose frames of 400 are centred every 160 samples."""
    samples = pauses(before, after, floor=1e-5)
    _, (start, stop) = librosa.effects.trim(
        samples, top_db=trim_silence, frame_length=400, hop_length=160
    )
    with tempfile.TemporaryDirectory() as folder:
        soundfile.write(Path(folder) / "a.wav", samples, SAMPLE_RATE, subtype="FLOAT")
        with audio.open_speech(Path(folder) / "a.wav", trim_silence=trim_silence) as speech:
            ours = speech.start, speech.start + speech.n_samples
    assert abs(ours[0] - start) <= 400 and abs(ours[1] - stop) <= 400


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


@settings(deadline=None, max_examples=60)
@given(seconds=st.floats(0.5, 30), clip_samples=st.integers(100, 200_000))
def test_the_clips_of_a_stream_are_those_of_the_waveform(seconds, clip_samples):
    sound = Waveform(noise(round(seconds * SAMPLE_RATE)), SAMPLE_RATE)
    with audio.open_speech(sound) as speech:
        streamed = list(speech.clips(clip_samples))
        assert speech.n_clips(clip_samples) == len(streamed)
        np.testing.assert_array_equal(streamed, audio.clips(speech.waveform(), clip_samples))


@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=20), clip_samples=lengths)
def test_clips_do_not_depend_on_the_blocks(sizes, clip_samples):
    waveform = np.arange(sum(sizes), dtype=np.float32)
    blocks = np.split(waveform, np.cumsum(sizes)[:-1])
    cut = list(audio._cut(blocks, clip_samples))
    np.testing.assert_array_equal(cut, audio.clips(waveform, clip_samples))


def test_the_clips_of_integers_are_integers():
    assert audio.clips(np.arange(250, dtype=np.int16), 100).dtype == np.int16


def test_the_clips_of_speech_are_loud(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(44_100, 10.0), 44_100)
    with audio.open_speech(tmp_path / "a.wav") as speech:
        cut = np.stack(list(speech.clips(96_000)))
    assert cut.shape == (2, 96_000)
    assert rms_db(cut) == pytest.approx(-23, abs=0.01)


# A part


def opened(source: Path | Waveform, **options: float | None) -> tuple[int, np.ndarray]:
    """Where speech starts in a recording, and its waveform."""
    with audio.open_speech(source, **options) as speech:
        waveform = speech.waveform()
        assert speech.n_samples == len(waveform)
        return speech.start, waveform


@settings(deadline=None, max_examples=40)
@given(start=st.floats(0, 2), duration=st.floats(0.5, 5) | st.none())
def test_a_part_is_as_loud_as_if_it_were_all(start, duration):
    """As a file that holds nothing but the part, whose ends are rounded to 10 ms."""
    samples = noise(3 * SAMPLE_RATE) * np.linspace(0.1, 2, 3 * SAMPLE_RATE, dtype=np.float32)
    frames = (round(100 * start), None if duration is None else round(100 * duration))
    first = 160 * frames[0]
    part = samples[first : None if frames[1] is None else first + 160 * frames[1]]
    at, waveform = opened(Waveform(samples, SAMPLE_RATE), start=start, duration=duration)
    assert at == first
    np.testing.assert_array_equal(waveform, opened(Waveform(part, SAMPLE_RATE))[1])


def test_silence_is_trimmed_within_the_part():
    """Speech from 2 s to 3 s; its place is told in the whole recording."""
    sound = Waveform(pauses(2, 2), SAMPLE_RATE)
    at, waveform = opened(sound, start=1, duration=3, trim_silence=40)
    assert at == 2 * SAMPLE_RATE and len(waveform) == SAMPLE_RATE
    assert rms_db(waveform) == pytest.approx(-23, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"start": 3.0}, r"take 3 lasts 3\.00 s; wanted more than 3 s, to start there"),
        ({"start": 1e6}, r"take 3 lasts 3\.00 s; wanted more than 1e\+06 s"),
        ({"start": 2.75}, r"take 3 lasts 0\.25 s from 2\.75 s on; wanted 0\.5 s"),
    ],
)
def test_a_part_that_is_not_there_is_refused_by_name(options, match):
    sound = Waveform(noise(3 * SAMPLE_RATE), SAMPLE_RATE)
    with pytest.raises(AudioError, match=match):
        opened(sound, name="take 3", **options)


@pytest.mark.parametrize("value", [-1.0, -1e-9, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("option", ["start", "duration", "trim_silence"])
def test_a_part_that_makes_no_sense_is_refused_before_anything_is_read(option, value):
    with pytest.raises(UsageError, match="wanted"):
        opened(Path("nowhere.wav"), **{option: value})


def test_a_part_is_no_shorter_than_speech_may_be():
    with pytest.raises(UsageError, match=r"last 0\.4 s; wanted 0\.5 s or more"):
        opened(Path("nowhere.wav"), duration=0.4)


# Arrays and streams


@pytest.mark.parametrize(("dtype", "subtype"), [("float32", "FLOAT"), ("int16", "PCM_16")])
def test_an_array_becomes_the_very_speech_that_a_file_becomes(tmp_path, dtype, subtype):
    samples = noise(30_000) if dtype == "float32" else (noise(30_000) * 32768).astype(dtype)
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE, subtype=subtype)
    of_array = opened(Waveform(samples, SAMPLE_RATE))[1]
    np.testing.assert_array_equal(of_array, opened(tmp_path / "a.wav")[1])


def test_standard_input_is_read_from_a_pipe(tmp_path):
    """`cat a.flac | python`: the very samples of the file."""
    soundfile.write(tmp_path / "a.flac", noise(SAMPLE_RATE), SAMPLE_RATE)
    code = (
        "import sys; from s2f.audio import open_speech\n"
        "with open_speech(sys.stdin.buffer) as speech: sys.stdout.buffer.write(speech.waveform())"
    )
    data = (tmp_path / "a.flac").read_bytes()
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, input=data, capture_output=True, check=True, cwd=REPOSITORY)
    expected = audio.read_speech(tmp_path / "a.flac")
    np.testing.assert_array_equal(np.frombuffer(done.stdout, np.float32), expected)


# Memory

_PEAK = """
import resource, sys
from pathlib import Path
from s2f.audio import open_speech
with open_speech(Path(sys.argv[1])) as speech:
    print(sum(len(clip) for clip in speech.clips(96_000)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(path: Path) -> tuple[int, int]:
    """How many samples all clips of a recording have, and the most MB that reading them took."""
    run = [sys.executable, "-c", _PEAK, str(path)]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    n_samples, kilobytes = map(int, done.stdout.split())
    return n_samples, kilobytes // 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
@pytest.mark.parametrize("name", ["a.flac", "a.m4a"])
def test_three_hours_take_no_more_memory_than_a_minute(tmp_path, name):
    """Within 60 MB, of which the powers of 1,080,000 frames take twice 9."""
    peaks = {}
    minute = noise(60 * SAMPLE_RATE)
    for minutes in (1, 180):
        path = tmp_path / f"{minutes}{name}"
        if name == "a.flac":
            with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1) as file:
                for _ in range(minutes):
                    file.write(minute)
        else:
            write_av(tmp_path / name, minute[:, np.newaxis], rate=SAMPLE_RATE)
            repeat_av(tmp_path / name, minutes, path)
        n_samples, peaks[minutes] = peak(path)
        assert n_samples == pytest.approx(minutes * 60 * SAMPLE_RATE, rel=0.01)
    assert peaks[180] - peaks[1] <= 60, peaks


# The whole


def test_the_example_is_speech_for_one_clip():
    with audio.open_speech(REPOSITORY / "examples/speech.wav") as speech:
        assert speech.n_clips(96_000) == 1


def test_importing_the_module_loads_no_decoder():
    heavy = "{'av', 'librosa', 'scipy', 'soundfile', 'soxr'}"
    code = f"import sys, s2f.audio; print({heavy} & set(sys.modules))"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "set()\n"
