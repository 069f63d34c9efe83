"""Tests of s2f.audio; each expected value says where it comes from."""

import io
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import write_av

from s2f import audio
from s2f.audio import FRAME_SAMPLES, SAMPLE_RATE, Recording, Waveform, open_recording, scan
from s2f.errors import AudioError, OutputError


def noise(n: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


def tone(seconds: float = 1.5, n_channels: int = 1) -> np.ndarray:
    """A sine [n c]."""
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE)
    return np.repeat(wave[:, np.newaxis], n_channels, axis=1).astype(np.float32)


def read(source: Path | io.BytesIO | Waveform, **options: int) -> np.ndarray:
    with open_recording(source, **options) as opened:
        return np.concatenate(list(opened.blocks()))


# Mono at 16 kHz


@pytest.mark.parametrize("name", ["a.wav", "a.mkv"])
def test_channels_are_averaged(tmp_path, name):
    samples = tone(n_channels=2) * np.array([1, 0], np.float32)
    if name == "a.wav":
        soundfile.write(tmp_path / name, samples, SAMPLE_RATE, subtype="FLOAT")
    else:
        write_av(tmp_path / name, samples, "pcm_f32le", SAMPLE_RATE)
    np.testing.assert_array_equal(read(tmp_path / name), samples[:, 0] / 2)


def test_speech_at_16_khz_keeps_its_samples(tmp_path):
    samples = np.round(noise(SAMPLE_RATE) * 32768) / 32768
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE)
    np.testing.assert_array_equal(read(tmp_path / "a.wav"), samples)


def test_blocks_resample_as_the_whole_does(tmp_path):
    samples = noise(200_000)
    soundfile.write(tmp_path / "a.wav", samples, 44_100, subtype="FLOAT")
    whole = soxr.resample(samples, 44_100, SAMPLE_RATE, "HQ")
    np.testing.assert_allclose(read(tmp_path / "a.wav"), whole, atol=1e-6)


# In blocks


def scanned(path: Path, start: int, stop: int | None, **options: int) -> tuple[Recording, list]:
    with path.open("rb") as file:
        measured = scan(file, str(path), **options)
        return measured, list(measured.blocks(start, stop))


@pytest.mark.parametrize("name", ["a.wav", "a.m4a", "a.webm"])
@pytest.mark.parametrize("kept_samples", [0, 10**9])
@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 96_000), (70_123, 70_124), (1, 99_999)])
def test_the_blocks_are_the_waveform_in_memory_or_decoded_again(
    tmp_path, name, kept_samples, start, stop
):
    samples = noise(10 * 44_100)[:, np.newaxis]
    if name == "a.wav":
        soundfile.write(tmp_path / name, samples, 44_100)
    else:
        codec, rate = ("aac", 44_100) if name == "a.m4a" else ("libopus", 48_000)
        write_av(tmp_path / name, samples, codec, rate)
    whole = read(tmp_path / name)
    measured, blocks = scanned(tmp_path / name, start, stop, kept_samples=kept_samples)
    np.testing.assert_array_equal(np.concatenate(blocks), whole[start:stop])
    assert measured.stop - measured.start == len(whole)


@pytest.mark.parametrize("n", [1, 159, 160, 161, 100_003])
def test_powers_are_the_sums_of_the_squares_of_frames(tmp_path, n):
    """Summed over the padded waveform, in rows."""
    soundfile.write(tmp_path / "a.wav", noise(n), SAMPLE_RATE, subtype="FLOAT")
    measured, _ = scanned(tmp_path / "a.wav", 0, None)
    rows = np.pad(noise(n).astype(np.float64), (0, -n % FRAME_SAMPLES)).reshape(-1, FRAME_SAMPLES)
    np.testing.assert_allclose(measured.powers, (rows**2).sum(1), rtol=1e-12)
    assert (measured.start, measured.stop) == (0, n)


@pytest.mark.parametrize(
    ("name", "codec", "expected"),
    [
        ("a.wav", "PCM_16", True),
        ("a.wav", "PCM_U8", True),
        ("a.wav", "PCM_24", False),
        ("a.wav", "FLOAT", False),
        ("a.flac", "PCM_16", True),
        ("a.ogg", "VORBIS", False),
        ("a.mkv", "pcm_s16le", True),
        ("a.mkv", "pcm_u8", True),
        ("a.mkv", "pcm_s32le", False),
        ("a.mkv", "flac", True),
        ("a.m4a", "aac", False),
    ],
)
def test_sources_of_16_bits_are_known(tmp_path, name, codec, expected):
    path = tmp_path / name
    if codec.isupper():
        soundfile.write(path, tone(), SAMPLE_RATE, subtype=codec)
    else:
        write_av(path, tone(), codec, SAMPLE_RATE)
    assert scanned(path, 0, None)[0].is_16_bit is expected


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
def test_a_recording_that_shrinks_between_the_readings_is_refused(form):
    file = io.BytesIO()
    soundfile.write(file, noise(5 * SAMPLE_RATE), SAMPLE_RATE, format=form)
    measured = scan(file, "a.wav", kept_samples=0)
    file.truncate(50_000)
    with pytest.raises(AudioError, match=r"a\.wav changed while it was read"):
        list(measured.blocks())


def test_a_recording_that_grows_between_the_readings_is_read_as_it_was():
    file = io.BytesIO()
    soundfile.write(file, noise(5 * SAMPLE_RATE), SAMPLE_RATE, format="AIFF")
    measured = scan(file, "a.aiff", kept_samples=0)
    file.seek(0)
    soundfile.write(file, noise(9 * SAMPLE_RATE), SAMPLE_RATE, format="AIFF")
    assert sum(map(len, measured.blocks())) == measured.stop == 5 * SAMPLE_RATE


def test_damage_found_midway_hands_the_whole_file_to_ffmpeg(tmp_path, monkeypatch):
    """libsndfile gives a block, then fails: what it gave must not be there twice."""
    soundfile.write(tmp_path / "a.wav", noise(5 * SAMPLE_RATE), SAMPLE_RATE)

    def failing(data, name, read=audio.read_with_soundfile):
        yield next(read(data, name))
        raise soundfile.LibsndfileError(1)

    expected = read(tmp_path / "a.wav")
    monkeypatch.setattr(audio, "read_with_soundfile", failing)
    np.testing.assert_array_equal(read(tmp_path / "a.wav"), expected)
    _, blocks = scanned(tmp_path / "a.wav", 0, None, kept_samples=0)
    np.testing.assert_array_equal(np.concatenate(blocks), expected)


def test_only_short_recordings_stay_in_memory(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.tile(noise(16_000), 300), SAMPLE_RATE)
    peaks = {}
    for kept_samples in (0, 10**9):
        with (tmp_path / "a.flac").open("rb") as file:
            tracemalloc.start()
            measured = scan(file, "a.flac", kept_samples=kept_samples)
            for _ in measured.blocks():
                pass
            peaks[kept_samples] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert peaks[0] < 3e6 < 4 * 300 * 16_000 < peaks[10**9]


@pytest.mark.parametrize("rate", [8_000, SAMPLE_RATE, 44_100])
@pytest.mark.parametrize("position", [0, 1, 30_000, -2, -1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_one_sample_that_is_not_finite_is_found_wherever_it_is(tmp_path, rate, position, value):
    samples = noise(2 * rate)
    samples[position % len(samples)] = value
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    if np.isfinite(value):
        assert np.isfinite(read(tmp_path / "a.wav")).all()
    else:
        with pytest.raises(AudioError, match="NaN or infinite"):
            read(tmp_path / "a.wav")


# A part


@settings(deadline=None, max_examples=40)
@given(
    rate=st.sampled_from([SAMPLE_RATE, 44_100]),
    start=st.integers(0, 250),
    length=st.none() | st.integers(1, 250),
    kept_samples=st.sampled_from([0, 10**9]),
)
def test_a_part_is_that_of_the_whole(rate, start, length, kept_samples):
    """3 s, cut at frames of 10 ms after it was read whole; soxr's blocks are the same."""
    sound = Waveform(noise(3 * rate), rate)
    first, last = (
        start * FRAME_SAMPLES,
        None if length is None else (start + length) * FRAME_SAMPLES,
    )
    with open_recording(sound) as all_of_it:
        whole, powers = np.concatenate(list(all_of_it.blocks())), all_of_it.powers
    with open_recording(sound, start=first, stop=last, kept_samples=kept_samples) as part:
        for _ in range(2):
            np.testing.assert_array_equal(np.concatenate(list(part.blocks())), whole[first:last])
        assert (part.start, part.stop) == (first, min(len(whole), last or len(whole)))
        inner = np.concatenate(list(part.blocks(first + 7, first + 107)))
        np.testing.assert_array_equal(inner, whole[first + 7 : first + 107])
    np.testing.assert_array_equal(
        part.powers, powers[start : None if length is None else start + length]
    )


def test_a_part_beyond_the_end_is_refused_with_the_length():
    match = r"a lasts 2\.00 s; wanted more than 2 s, to start there"
    with pytest.raises(AudioError, match=match):
        scan(Waveform(noise(2 * SAMPLE_RATE), SAMPLE_RATE), "a", start=2 * SAMPLE_RATE)


class Counted(io.BytesIO):
    """Counts the bytes that are read."""

    n_read = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.n_read += len(data)
        return data

    def readinto(self, buffer) -> int:  # what libsndfile's reader may take instead
        n = super().readinto(buffer)
        self.n_read += n
        return n


@pytest.mark.parametrize("form", ["flac", "m4a"])
def test_what_comes_after_the_part_is_not_read(tmp_path, form):
    """7 s of two minutes, twice; a block is 4 s, and FFmpeg looks at the first seconds besides."""
    samples = np.tile(noise(60 * SAMPLE_RATE), 2)[:, np.newaxis]
    if form == "flac":
        path = tmp_path / "a.flac"
        soundfile.write(path, samples, SAMPLE_RATE)
    else:
        path = write_av(tmp_path / "a.m4a", samples, "aac", SAMPLE_RATE)
    file = Counted(path.read_bytes())
    measured = scan(file, "a", start=2 * SAMPLE_RATE, stop=7 * SAMPLE_RATE, kept_samples=0)
    assert sum(map(len, measured.blocks())) == 5 * SAMPLE_RATE
    assert file.n_read < 0.3 * len(file.getvalue())


# Arrays


@pytest.mark.parametrize(
    ("dtype", "subtype"),
    [("float32", "FLOAT"), ("float64", "DOUBLE"), ("int16", "PCM_16"), ("int32", "PCM_32")],
)
@pytest.mark.parametrize("rate", [SAMPLE_RATE, 44_100])
@pytest.mark.parametrize("n_channels", [0, 1, 2, 6])  # 0: [n]
def test_an_array_gives_the_very_samples_of_a_file(tmp_path, dtype, subtype, rate, n_channels):
    samples = noise(100_000 * max(1, n_channels)).astype(np.float64)
    if dtype.startswith("int"):
        samples = np.rint(samples * np.iinfo(dtype).max * 0.5)
    samples = samples.astype(dtype)
    if n_channels:
        samples = samples.reshape(-1, n_channels)
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype=subtype)
    with (
        open_recording(tmp_path / "a.wav") as file,
        open_recording(Waveform(samples, rate)) as array,
    ):
        np.testing.assert_array_equal(*(np.concatenate(list(r.blocks())) for r in (file, array)))
        np.testing.assert_array_equal(file.powers, array.powers)
        assert file.is_16_bit is array.is_16_bit


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("uint8", [0, 128, 255], [-1, 0, 127 / 128]),
        ("int8", [-128, 0, 64], [-1, 0, 0.5]),
        ("uint16", [0, 32768, 49152], [-1, 0, 0.5]),
        ("int64", [-(2**63), 0, 2**62], [-1, 0, 0.5]),
        (">i2", [-32768, 0, 16384], [-1, 0, 0.5]),
        (">f4", [-1, 0, 0.5], [-1, 0, 0.5]),
        ("float16", [-1, 0, 0.5], [-1, 0, 0.5]),
    ],
)
def test_integers_have_the_scale_of_their_type(dtype, values, expected):
    samples = np.array(values, dtype)
    np.testing.assert_array_equal(read(Waveform(samples, SAMPLE_RATE)), expected)
    assert samples.tolist() == values


@pytest.mark.parametrize("step", [2, -1])
def test_an_array_may_be_a_view(step):
    samples = noise(1_000)
    view = Waveform(samples[::step], SAMPLE_RATE)
    np.testing.assert_array_equal(read(view), samples[::step])


@pytest.mark.parametrize(
    ("samples", "rate", "part"),
    [
        (np.empty(0), 16_000, "holds no samples"),
        (np.empty((0, 2)), 16_000, "holds no samples"),
        (np.empty((9, 0)), 16_000, "holds no samples"),
        (np.array([0.1, np.nan]), 16_000, "holds samples that are NaN or infinite"),
        (np.array([0.1, np.inf]), 44_100, "holds samples that are NaN or infinite"),
        (np.array([0.1, 1e300]), 16_000, "holds samples that are NaN or infinite"),
        (np.array(0.1), 16_000, r"is an array \[\]; wanted a NumPy array \[n\] or \[n c\]"),
        (np.zeros((2, 99)), 16_000, r"is an array \[2, 99\]"),
        (np.zeros((9, 2, 1)), 16_000, r"is an array \[9, 2, 1\]"),
        (np.zeros(9, bool), 16_000, "is an array of bool"),
        (np.zeros(9, complex), 16_000, "is an array of complex128"),
        (np.array(["a"]), 16_000, "is an array of <U1"),
        ([0, 1, 2], 16_000, "is of type list"),
        (np.zeros(9), 0, "claims 0 samples a second; wanted 4000 to 768000"),
        (np.zeros(9), -1, "claims -1 samples"),
        (np.zeros(9), 10**9, "claims 1000000000 samples"),
        (np.zeros(9), float("nan"), "claims nan samples"),
        (np.zeros(9), "16000", "claims 16000 samples"),
    ],
)
def test_an_array_that_is_no_sound_is_refused_by_name(samples, rate, part):
    with pytest.raises(AudioError, match=f"take 3 {part}") as caught:
        read(Waveform(samples, rate), name="take 3")
    assert caught.value.hint


# Streams


class Pipe(io.BytesIO):
    """A stream that cannot seek."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise io.UnsupportedOperation("seek")


@pytest.mark.parametrize("kind", [io.BytesIO, Pipe])
@pytest.mark.parametrize("name", ["a.flac", "a.m4a"])
def test_a_stream_is_read_as_its_file_is(tmp_path, monkeypatch, kind, name):
    """Blocks of 1,000 bytes: a pipe gives what it has."""
    monkeypatch.setattr(audio, "_COPIED", 1_000)
    if name == "a.flac":
        soundfile.write(tmp_path / name, noise(50_000), SAMPLE_RATE)
    else:
        write_av(tmp_path / name, noise(50_000)[:, np.newaxis])
    stream = kind((tmp_path / name).read_bytes())
    np.testing.assert_array_equal(read(stream), read(tmp_path / name))
    assert not stream.closed


def test_a_stream_that_can_seek_is_read_from_its_start():
    file = io.BytesIO()
    soundfile.write(file, noise(50_000), SAMPLE_RATE, format="WAV", subtype="FLOAT")
    file.seek(1_000)
    np.testing.assert_array_equal(read(file), noise(50_000))


@pytest.mark.parametrize("kind", [io.BytesIO, Pipe])
@pytest.mark.parametrize(("data", "part"), [(b"", "is empty"), (b"hello", "holds no sound")])
def test_a_stream_that_is_no_recording_is_refused_by_name(kind, data, part):
    with pytest.raises(AudioError, match=f"standard input {part}"):
        read(kind(data), name="standard input")
    with pytest.raises(AudioError, match=f"the recording {part}"):
        read(kind(data))


def test_a_stream_that_fails_is_refused_by_name():
    class Failing(Pipe):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(AudioError, match=r"standard input cannot be read \(Input/output error\)"):
        read(Failing(), name="standard input")


def test_the_copy_of_a_stream_is_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    file = io.BytesIO()
    soundfile.write(file, noise(50_000), SAMPLE_RATE, format="WAV")
    with open_recording(Pipe(file.getvalue())):
        pass
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named():
    """A limit of the size of files stands for it, in a process of its own."""
    resource = pytest.importorskip("resource")
    code = (
        "import io, resource, sys; from s2f.audio import open_recording;"
        "from s2f.errors import OutputError;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))\n"
        "try: open_recording(sys.stdin.buffer, name='standard input').__enter__()\n"
        "except OutputError as error: print(error, error.hint, error.exit_code)"
    )
    assert resource
    done = subprocess.run(
        [sys.executable, "-c", code], input=bytes(4_000_000), capture_output=True, check=True
    )
    assert done.stdout.startswith(b"standard input cannot be copied to the folder for temporary")
    assert b"TMPDIR" in done.stdout and done.stdout.endswith(b" 2\n")
    assert done.stderr == b""


def test_no_folder_for_temporary_files_is_named(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "nowhere/at/all")
    with pytest.raises(OutputError, match="No such file"):
        read(Pipe(b"hello"))
