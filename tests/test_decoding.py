"""Tests of s2f.audio; each expected value says where it comes from."""

import io
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import pytest
import soundfile
from recordings import write_av

from s2f.audio import SAMPLE_RATE, scan
from s2f.errors import AudioError

SECONDS = 1.5
HERTZ = 440
AMPLITUDE = 0.3


def tone(rate: int = SAMPLE_RATE, seconds: float = SECONDS, n_channels: int = 1) -> np.ndarray:
    """A sine [n c]."""
    wave = AMPLITUDE * np.sin(2 * np.pi * HERTZ * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[:, np.newaxis], n_channels, axis=1).astype(np.float32)


def noise(n: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


def assert_is_the_tone(waveform: np.ndarray, seconds: float = SECONDS) -> None:
    """Codecs pad by up to 0.1 s; Windows Media alone loses some samples."""
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert seconds - 0.02 <= waveform.size / SAMPLE_RATE <= seconds + 0.1
    middle = waveform[SAMPLE_RATE // 4 :][: SAMPLE_RATE // 2]  # 0.5 s: bins 2 Hz apart
    assert abs(2 * np.argmax(np.abs(np.fft.rfft(middle))) - HERTZ) <= 2
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(AMPLITUDE / np.sqrt(2), rel=0.05)


def decode(file: BinaryIO, name: str) -> np.ndarray:
    return np.concatenate(list(scan(file, name).blocks()))


def read(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        return decode(file, str(path))


# Reading


@pytest.mark.parametrize(
    ("name", "subtype", "rate", "n_channels"),
    [
        ("a.wav", "PCM_16", 16_000, 1),
        ("a.wav", "PCM_16", 44_100, 2),
        ("a.wav", "PCM_24", 48_000, 1),
        ("a.wav", "PCM_U8", 8_000, 1),
        ("a.wav", "FLOAT", 22_050, 1),
        ("a.wav", "ULAW", 8_000, 1),
        ("a.flac", "PCM_16", 44_100, 6),
        ("a.ogg", "VORBIS", 44_100, 2),
        ("a.opus", "OPUS", 48_000, 1),
        ("a.mp3", "MPEG_LAYER_III", 44_100, 2),
        ("a.aiff", "PCM_16", 44_100, 1),
        ("a.caf", "PCM_16", 44_100, 1),
    ],
)
def test_what_libsndfile_writes_is_read(tmp_path, name, subtype, rate, n_channels):
    kind = {".opus": "OGG"}.get(Path(name).suffix, Path(name).suffix[1:].upper())
    soundfile.write(
        tmp_path / name, tone(rate, n_channels=n_channels), rate, format=kind, subtype=subtype
    )
    assert_is_the_tone(read(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "codec", "rate", "n_channels"),
    [
        ("a.m4a", "aac", 44_100, 1),
        ("a.m4a", "aac", 44_100, 2),
        ("a.m4a", "alac", 44_100, 2),
        ("a.aac", "aac", 48_000, 2),
        ("a.mp3", "libmp3lame", 44_100, 1),
        ("a.opus", "libopus", 48_000, 1),
        ("a.webm", "libopus", 48_000, 2),
        ("a.wma", "wmav2", 44_100, 1),
        ("a.mkv", "flac", 44_100, 1),
        ("a.mkv", "pcm_u8", 44_100, 2),
        ("a.mkv", "pcm_s16le", 44_100, 2),
        ("a.mkv", "pcm_s32le", 44_100, 2),
        ("a.mkv", "pcm_f64le", 44_100, 2),
        ("a.wav", "pcm_s64le", 44_100, 2),
    ],
)
def test_what_ffmpeg_writes_is_read(tmp_path, name, codec, rate, n_channels):
    path = write_av(tmp_path / name, tone(rate, n_channels=n_channels), codec, rate)
    assert_is_the_tone(read(path))


@pytest.mark.parametrize("layout", ["5.1", "6.1", "7.1", "hexadecagonal"])
def test_sound_of_many_channels_is_read(tmp_path, layout):
    """In planes, from 8 channels on, PyAV crashes; the file has only one that is not silent."""
    path, n_channels = tmp_path / "a.mkv", av.AudioLayout(layout).nb_channels
    codec = "aac" if n_channels <= 8 else "wavpack"
    samples = np.zeros((66_150, n_channels), np.float32)
    samples[:, -1] = tone(44_100)[:, 0]
    with av.open(str(path), "w") as container:
        sound = container.add_stream(codec, rate=44_100, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = 44_100, 0, Fraction(1, 44_100)
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    assert_is_the_tone(n_channels * read(path))


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
def test_the_sound_track_of_a_video_is_read(tmp_path, name):
    path = write_av(tmp_path / name, tone(44_100, n_channels=2), video=True)
    assert_is_the_tone(read(path))


@pytest.mark.parametrize("name", ["a.wav", "a.m4a", "a"])
def test_the_content_and_not_the_suffix_tells_the_format(tmp_path, name):
    (tmp_path / name).write_bytes(write_av(tmp_path / "right.mkv", tone(44_100)).read_bytes())
    assert_is_the_tone(read(tmp_path / name))


def test_an_open_file_is_read():
    file = io.BytesIO()
    soundfile.write(file, tone(), SAMPLE_RATE, format="WAV")
    assert_is_the_tone(decode(file, "standard input"))


def test_a_recording_may_change_its_sample_rate(tmp_path):
    slow = write_av(tmp_path / "slow.aac", tone(22_050), rate=22_050).read_bytes()
    fast = write_av(tmp_path / "fast.aac", tone(44_100)).read_bytes()
    (tmp_path / "a.aac").write_bytes(slow + fast)
    waveform = read(tmp_path / "a.aac")
    assert_is_the_tone(waveform[: round(SECONDS * SAMPLE_RATE)])
    assert_is_the_tone(waveform[-round(SECONDS * SAMPLE_RATE) :])
    assert waveform.size / SAMPLE_RATE == pytest.approx(2 * SECONDS, abs=0.2)


def test_a_tag_that_is_not_utf8_is_no_obstacle(tmp_path):
    path = write_av(tmp_path / "a.m4a", tone(44_100), title="BJORK")
    content = path.read_bytes()
    assert b"BJORK" in content
    path.write_bytes(content.replace(b"BJORK", b"BJ\xd6RK"))  # Latin-1
    assert_is_the_tone(read(path))


def test_broken_packets_are_passed_over(tmp_path):
    path = write_av(tmp_path / "a.aac", tone(44_100, 6.0))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = noise(75).tobytes()
    path.write_bytes(content)
    assert read(path).size / SAMPLE_RATE == pytest.approx(6.0, abs=0.3)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.m4a", "aac", {}),
        ("a.m4a", "aac", {"movflags": "faststart"}),  # the index comes first
        ("a.flac", "flac", {}),
        ("a.webm", "libopus", {}),
    ],
)
def test_a_truncated_recording_is_read_in_part_or_refused(tmp_path, name, codec, options, share):
    path = write_av(tmp_path / name, tone(48_000), codec, 48_000, options=options)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    try:
        waveform = read(path)
    except AudioError as error:
        assert name in error.message
    else:
        assert 0 < waveform.size <= (SECONDS + 0.1) * SAMPLE_RATE
        assert np.isfinite(waveform).all()


# Damaged


def whole(folder: Path, name: str) -> bytes:
    path = folder / name
    if name in ("a.wav", "a.flac", "a.ogg"):
        seconds = 20 if name == "a.ogg" else 0.5  # its pages have checksums: some must be whole
        soundfile.write(path, noise(round(seconds * SAMPLE_RATE)), SAMPLE_RATE)
    else:
        codec = {"a.m4a": "aac", "a.mp3": "libmp3lame", "a.webm": "libopus", "a.mkv": "pcm_s32le"}
        write_av(path, tone(48_000, 0.5), codec[name], 48_000)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.m4a", "a.mp3", "a.webm", "a.mkv"])
def test_a_damaged_recording_is_decoded_or_refused(tmp_path, name):
    """Bytes overwritten, taken out and put in; half of the damage is in the first 200 bytes."""
    content, rng = whole(tmp_path, name), np.random.default_rng(0)
    outcomes = []
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(rng.integers(1, 6)):
            end = 200 if rng.random() < 0.5 else len(damaged)
            at, n = int(rng.integers(end)), int(rng.integers(1, 9))
            new = rng.bytes(n) if rng.random() < 0.7 else bytes([255] * n)
            damaged[at : at + int(rng.choice([0, n, n, n, 2 * n]))] = new
        try:
            recording = scan(io.BytesIO(bytes(damaged)), name, kept_samples=0)
            assert sum(map(len, recording.blocks())) == recording.stop
            outcomes.append(True)
        except AudioError as error:
            assert error.message.startswith(name)
            outcomes.append(False)
    assert len(set(outcomes)) == 2


# Refusing


def empty(folder: Path) -> Path:
    (folder / "a.wav").touch()
    return folder / "a.wav"


def text(folder: Path) -> Path:
    (folder / "a.wav").write_text("Dear diary, today I spoke to nobody.\n" * 50)
    return folder / "a.wav"


def picture(folder: Path) -> Path:
    return write_av(folder / "a.mp4", None, video=True)


def unknown_codec(folder: Path) -> Path:
    path = write_av(folder / "a.mkv", tone(44_100))
    path.write_bytes(path.read_bytes().replace(b"A_AAC", b"A_ZZZ"))
    return path


def rubble(folder: Path) -> Path:
    path = write_av(folder / "a.m4a", tone(44_100), options={"movflags": "faststart"})
    content = path.read_bytes()
    start = content.index(b"mdat") + 4
    path.write_bytes(content[:start] + b"\xff" * (len(content) - start))
    return path


def no_samples(folder: Path) -> Path:
    soundfile.write(folder / "a.wav", np.empty(0, np.float32), SAMPLE_RATE)
    return folder / "a.wav"


def not_a_number(folder: Path) -> Path:
    samples = noise(SAMPLE_RATE)
    samples[100] = np.nan
    soundfile.write(folder / "a.wav", samples, SAMPLE_RATE, subtype="FLOAT")
    return folder / "a.wav"


def infinite(folder: Path) -> Path:
    samples = np.stack([noise(SAMPLE_RATE)] * 2, axis=1)
    samples[100] = [np.inf, -np.inf]
    soundfile.write(folder / "a.wav", samples, 44_100, subtype="FLOAT")
    return folder / "a.wav"


def false_rate(folder: Path) -> Path:
    soundfile.write(folder / "a.wav", noise(SAMPLE_RATE), 1)
    return folder / "a.wav"


def playlist(folder: Path, name: str, content: str) -> Path:
    soundfile.write(folder / "private.wav", tone(), SAMPLE_RATE)
    (folder / name).write_text(content)
    return folder / name


def ffconcat_mp3(folder: Path) -> Path:
    return playlist(folder, "a.mp3", "ffconcat version 1.0\nfile 'private.wav'\n")


def ffconcat_mp4(folder: Path) -> Path:
    return playlist(folder, "a.mp4", "ffconcat version 1.0\nfile 'private.wav'\n")


def m3u8(folder: Path) -> Path:
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.5,\nprivate.wav\n#EXT-X-ENDLIST\n"
    return playlist(folder, "a.m3u8", head)


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (empty, "a.wav is empty (0 bytes)"),
        (text, "a.wav holds no sound that can be decoded (Invalid data"),
        (picture, "a.mp4 has no sound track that can be decoded, only video"),
        (unknown_codec, "a.mkv has no sound track that can be decoded"),
        (rubble, "a.m4a is damaged: none of its sound can be decoded"),
        (no_samples, "a.wav holds no samples"),
        (not_a_number, "a.wav holds samples that are NaN or infinite"),
        (infinite, "a.wav holds samples that are NaN or infinite"),
        (false_rate, "a.wav claims 1 samples a second; wanted 4000 to 768000"),
        (ffconcat_mp3, "a.mp3 holds no sound that can be decoded"),
        (ffconcat_mp4, "a.mp4 holds no sound that can be decoded"),
        (m3u8, "a.m3u8 holds no sound that can be decoded"),
    ],
)
def test_what_is_no_recording_is_refused_by_name_with_a_cure(tmp_path, make, part):
    with pytest.raises(AudioError) as caught:
        read(make(tmp_path))
    assert str(tmp_path) in caught.value.message
    assert part in caught.value.message
    assert caught.value.hint


def test_a_refusal_keeps_its_cause(tmp_path):
    with pytest.raises(AudioError) as caught:
        read(text(tmp_path))
    assert caught.value.__cause__ is not None
