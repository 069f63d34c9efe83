"""Tests of s2f.audio; each expected value says where it comes from.

`record` is tested with a mock of sounddevice 0.5.6, as its source has it: importing it raises
OSError without PortAudio; `query_devices` raises PortAudioError where there is no device and
ValueError where the default one has no input; `read(n)` gives [n c] and whether some were dropped.
"""

import io
import itertools
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import av
import librosa
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from recordings import READERS, ffmpeg_normalize, noise, real, write_av

from s2f import audio
from s2f.audio import SAMPLE_RATE, Waveform, clips, read_speech, record
from s2f.errors import AudioError, DatasetError, DependencyError, DeviceError, UsageError

REPOSITORY = Path(__file__).parents[1]
EXACT, LOSSY = 0.999, 0.97  # what keeps 16 bits or more; 8 bits, and codecs of music
NARROW, PHONE = 0.85, 0.4  # rates below 16 kHz, or few bits a channel; models of a throat
Make = Callable[[Path, np.ndarray], Path]


def tone(rate: int = SAMPLE_RATE, seconds: float = 1.5, n_channels: int = 1) -> np.ndarray:
    """A sine [n c]."""
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[:, np.newaxis], n_channels, axis=1).astype(np.float32)


def as_recorded(source: Path | io.BytesIO | Waveform, **options: float) -> np.ndarray:
    return read_speech(source, as_recorded=True, **options)


def rms_db(waveform: np.ndarray) -> float:
    return 20 * np.log10(np.sqrt(np.mean(waveform.astype(np.float64) ** 2)))


def run(code: str, *arguments: Path, **options: bytes) -> bytes:
    """What a program prints that reads in a process of its own."""
    command = [sys.executable, "-c", f"import resource, sys; from s2f import audio\n{code}"]
    options |= {"capture_output": True, "check": True, "cwd": REPOSITORY}
    done = subprocess.run([*command, *arguments], **options)
    assert done.stderr == b""
    return done.stdout


# Heard, or refused by name


@pytest.fixture(scope="module")
def voice() -> np.ndarray:
    """What stands for somebody speaking for 3 s: mono [n], 16 kHz."""
    rng, times = np.random.default_rng(0), np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    buzz = sum(np.sin(2 * np.pi * 120 * k * times) / k for k in range(1, 20))
    syllables = np.sin(2 * np.pi * 2 * times) ** 2 * (1 + 0.3 * np.sin(2 * np.pi * 0.7 * times))
    return (0.1 * buzz * syllables + 0.001 * rng.standard_normal(len(times))).astype(np.float32)


def recording(
    name, codec="", rate=SAMPLE_RATE, c=1, *, first="", change=np.array, edit=bytes, **options
) -> Make:
    """A file of the voice, changed, that libsndfile (upper case) or FFmpeg encodes; then edited."""

    def make(folder: Path, voice: np.ndarray) -> Path:
        path = folder / (first or name)
        samples = soxr.resample(change(voice), SAMPLE_RATE, rate, "HQ")
        samples = np.repeat(samples[:, np.newaxis], c, axis=1)
        if codec.isupper():
            soundfile.write(path, samples, rate, subtype=codec)
        elif codec and codec not in av.codecs_available:
            pytest.skip(f"this PyAV has no {codec}")
        elif codec:
            video = "video" in options
            write_av(path, samples, codec, rate, video, {} if video else options)
        (folder / name).write_bytes(edit(path.read_bytes() if codec else b""))
        return folder / name

    return make


def lengths(n: int) -> Callable[[bytes], bytes]:
    """False lengths of a WAV, which a program writes that cannot seek back."""

    def edit(content: bytes) -> bytes:
        false, place = struct.pack("<I", n), content.index(b"data") + 4
        return content[:4] + false + content[8:place] + false + content[place + 4 :]

    return edit


def picture(_: bytes = b"") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(file, "JPEG")
    return file.getvalue()


def tagged(content: bytes) -> bytes:
    """An ID3v2.3 tag with a cover, in front: sizes of 7 bits a byte in the tag, 8 in the frame."""
    body = b"\0image/jpeg\0\3\0" + picture()
    frame = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    size = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frame + content


ODD = b"LIST\7\0\0\0INFOabc\0data"  # 7 bytes, and one that fills up
MUSIC, OPUS = ("aac", 44_100), ("libopus", 48_000)
HEARD: dict[str, tuple[Make, float]] = {
    "16 bit": (recording("a.wav", "PCM_16"), EXACT),
    "mu-law": (recording("a.wav", "ULAW", 8_000), NARROW),
    "GSM": (recording("a.wav", "GSM610", 8_000), PHONE),
    "ADPCM": (recording("a.wav", "IMA_ADPCM"), LOSSY),
    "44.1 kHz stereo": (recording("a.wav", "PCM_16", 44_100, 2), LOSSY),
    "192 kHz": (recording("a.wav", "PCM_32", 192_000), LOSSY),
    "AIFF": (recording("a.aiff", "PCM_16"), EXACT),
    "MP3": (recording("a.mp3", "MPEG_LAYER_III", 44_100), LOSSY),
    "M4A": (recording("a.m4a", *MUSIC), LOSSY),
    "M4A in fragments": (recording("a.m4a", *MUSIC, movflags="frag_keyframe+empty_moov"), LOSSY),
    "M4A 5.1": (recording("a.m4a", "aac", 48_000, 6), NARROW),
    "ALAC": (recording("a.m4a", "alac", 44_100), LOSSY),
    "WebM": (recording("a.webm", *OPUS), LOSSY),
    "AMR": (recording("a.amr", "libopencore_amrnb", 8_000), PHONE),
    "MP4 video": (recording("a.mp4", *MUSIC, video=True), LOSSY),
    "Matroska video": (recording("a.mkv", *OPUS, 2, video=True), LOSSY),
    "AVI video": (recording("a.avi", "libmp3lame", 44_100, 2, video=True), LOSSY),
    "MPEG transport stream": (recording("a.ts", *MUSIC, video=True), LOSSY),
    "no suffix": (recording("recording", *MUSIC, first="b.m4a"), LOSSY),
    "odd name": (recording("-Grüße 'x' $HOME %s.WAV", "PCM_16"), EXACT),
    "cover in MP3": (recording("a.mp3", "MPEG_LAYER_III", edit=tagged), LOSSY),
    "lengths of 0": (recording("a.wav", "PCM_16", edit=lengths(0)), EXACT),
    "length too long": (recording("a.wav", "PCM_16", edit=lengths(10**9)), EXACT),
    "odd chunk": (recording("a.wav", "PCM_16", edit=lambda c: c.replace(b"data", ODD, 1)), EXACT),
    "trailing": (recording("a.flac", "PCM_16", first="b.wav", edit=lambda c: c + b"x" * 99), EXACT),
    "truncated WAV": (recording("a.wav", "PCM_16", edit=lambda c: c[: len(c) // 2]), EXACT),
    "clipped": (recording("a.wav", "PCM_24", change=lambda v: np.clip(20 * v, -1, 1)), 0.7),
}


def correlation(heard: np.ndarray, voice: np.ndarray) -> float:
    """At the best shift, up to 0.2 s in eighths of a sample; what a cut one lacks is left out."""
    n, fine = len(heard) + len(voice), 8
    spectrum = np.fft.rfft(heard, n) * np.conj(np.fft.rfft(voice, n))
    product = fine * np.fft.irfft(spectrum, fine * n)
    most = fine * SAMPLE_RATE // 5
    largest = max(product[:most].max(), product[-most:].max())
    return float(largest / np.linalg.norm(heard) / np.linalg.norm(voice[: len(heard)]))


@pytest.mark.parametrize("kind", HEARD)
def test_an_odd_recording_is_heard(tmp_path, voice, kind):
    make, wanted = HEARD[kind]
    heard = read_speech(make(tmp_path, voice)).astype(np.float64)
    assert rms_db(heard) == pytest.approx(-23, abs=0.05)
    assert correlation(heard, voice) >= wanted


def rubble(content: bytes) -> bytes:
    return content[: content.index(b"mdat") + 4].ljust(len(content), b"\xff")


# Both name a recording, which would be opened.
PLAYLIST, CONCAT = b"#EXTM3U\nown.wav\n", b"ffconcat version 1.0\nfile 'own.wav'\n"
NOT_SOUND = "holds no sound that can be decoded"
DIARY = b"Dear diary, today I spoke to nobody.\n" * 50
REFUSED: dict[str, tuple[Make, str]] = {
    "missing": (lambda folder, _: folder / "a.wav", "cannot be read (No such file"),
    "empty": (recording("a.wav"), "is empty (0 bytes)"),
    "text": (recording("a.wav", edit=lambda _: DIARY), NOT_SOUND),
    "picture": (recording("a.jpg", edit=picture), NOT_SOUND),
    "header only": (recording("a.wav", "PCM_16", edit=lambda c: c[:44]), "holds no samples"),
    "start of M4A": (recording("a.m4a", *MUSIC, edit=lambda c: c[:9_000]), "holds no sound"),
    "silence": (recording("a.wav", "PCM_16", change=np.zeros_like), "holds only silence"),
    "no number": (recording("a.wav", "FLOAT", change=lambda v: v * np.nan), "holds samples that"),
    "short": (recording("a.wav", "PCM_16", change=lambda v: v[:7_000]), "lasts 0.44 s; wanted 0.5"),
    "video": (lambda folder, _: write_av(folder / "a.mp4", None, video=True), "has no sound track"),
    "rubble": (recording("a.m4a", *MUSIC, edit=rubble, movflags="faststart"), "is damaged: none"),
    "playlist": (recording("a.m3u", "PCM_16", first="own.wav", edit=lambda _: PLAYLIST), NOT_SOUND),
    "concat": (recording("a.mp3", "PCM_16", first="own.wav", edit=lambda _: CONCAT), NOT_SOUND),
    "rate": (recording("a.wav", "PCM_16", edit=lambda c: c[:24] + b"\3\0" + c[26:]), "claims 3 "),
    "channels": (
        recording("a.wav", "PCM_16", edit=lambda c: c[:22] + b"\x81\0" + c[24:]),
        "holds sound of 129 channels",
    ),
    "folder": (lambda folder, _: folder, "is a folder"),
    "pipe": (lambda folder, _: os.mkfifo(folder / "a.wav") or folder / "a.wav", "is not a regular"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_heard_is_refused_by_name(tmp_path, voice, kind):
    make, part = REFUSED[kind]
    path = make(tmp_path, voice)
    with pytest.raises(AudioError) as caught:
        read_speech(path)
    assert caught.value.message.startswith(f"{path} {part}")
    assert caught.value.hint


# Decoding


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s32le", "pcm_f64le", "pcm_s64le"])
def test_ffmpegs_samples_of_every_type_are_brought_to_one_scale(tmp_path, codec):
    name = "a.wav" if codec == "pcm_s64le" else "a.mkv"
    path = write_av(tmp_path / name, tone(n_channels=2), codec, SAMPLE_RATE)
    np.testing.assert_allclose(as_recorded(path), tone()[:, 0], atol=1 / 128)


def test_a_recording_may_change_its_sample_rate_and_broken_packets_are_passed_over(tmp_path):
    slow = write_av(tmp_path / "slow.aac", tone(22_050), rate=22_050).read_bytes()
    fast = write_av(tmp_path / "fast.aac", tone(44_100, 6.0)).read_bytes()
    (tmp_path / "a.aac").write_bytes(slow + fast[:9_000] + noise(75).tobytes() + fast[9_300:])
    waveform = as_recorded(tmp_path / "a.aac")
    assert waveform.size / SAMPLE_RATE == pytest.approx(7.5, abs=0.3)
    for second in (waveform[:SAMPLE_RATE], waveform[-SAMPLE_RATE:]):
        assert abs(np.argmax(np.abs(np.fft.rfft(second))) - 440) <= 1  # bins of 1 Hz


DAMAGED = "a.wav PCM_16,a.flac PCM_16,a.ogg VORBIS,a.m4a aac,a.mp3 libmp3lame,a.webm libopus"


@pytest.mark.parametrize("kind", [*DAMAGED.split(","), "a.mkv pcm_s32le"])
def test_a_damaged_recording_is_decoded_or_refused(tmp_path, kind):
    """Cut short, and bytes overwritten, taken out and put in, half of it in the first 200."""
    (name, codec), rng = kind.split(), np.random.default_rng(0)
    seconds = 20 if name == "a.ogg" else 1  # its pages have checksums: some must be whole
    make = recording(name, codec, SAMPLE_RATE if codec.isupper() else 48_000)
    content = make(tmp_path, noise(seconds * SAMPLE_RATE)).read_bytes()
    outcomes = []
    for k in range(100):
        damaged = bytearray(content)
        for _ in range(rng.integers(1, 6)):
            end = 200 if rng.random() < 0.5 else len(damaged)
            at, n = int(rng.integers(end)), int(rng.integers(1, 9))
            new = rng.bytes(n) if rng.random() < 0.7 else bytes([255] * n)
            damaged[at : at + int(rng.choice([0, n, n, n, 2 * n]))] = new
        if k % 10 == 0:
            damaged = damaged[: len(damaged) * k // 100]
        (tmp_path / name).write_bytes(damaged)
        try:
            assert np.isfinite(read_speech(tmp_path / name)).all()
            outcomes.append(True)
        except AudioError as error:
            assert name in error.message
            outcomes.append(False)
    assert len(set(outcomes)) == 2


def test_damage_found_midway_hands_the_whole_file_to_ffmpeg(tmp_path, monkeypatch):
    """libsndfile gives a block, then fails: what it gave must not be there twice."""
    soundfile.write(tmp_path / "a.wav", noise(5 * SAMPLE_RATE), SAMPLE_RATE)
    expected, whole = as_recorded(tmp_path / "a.wav"), soundfile.SoundFile.read

    def failing(file, *args, **kwargs):
        if file.tell():
            raise soundfile.LibsndfileError(1)
        return whole(file, *args, **kwargs)

    monkeypatch.setattr(soundfile.SoundFile, "read", failing)
    np.testing.assert_array_equal(as_recorded(tmp_path / "a.wav"), expected)


# Mono at 16 kHz


def test_channels_are_averaged_and_blocks_resample_as_the_whole_does(tmp_path):
    samples = tone(n_channels=2) * np.array([1, 0], np.float32)
    path = write_av(tmp_path / "a.mkv", samples, "pcm_f32le", SAMPLE_RATE)
    np.testing.assert_array_equal(as_recorded(path), samples[:, 0] / 2)
    whole = soxr.resample(noise(200_000), 44_100, SAMPLE_RATE, "HQ")
    found = as_recorded(Waveform(noise(200_000), 44_100))
    np.testing.assert_allclose(found, whole, atol=1e-6)


@pytest.mark.parametrize("rate", [SAMPLE_RATE, 44_100])
@pytest.mark.parametrize("position", [0, 30_000, -1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_sample_that_is_not_finite_is_found_wherever_it_is(rate, position, value):
    samples = np.repeat(noise(4 * rate)[:, np.newaxis], 2, axis=1)
    samples[position] = 3e38, -3e38
    assert np.isfinite(as_recorded(Waveform(samples, rate))).all()
    samples[position] = value, -value
    with pytest.raises(AudioError, match="NaN or infinite"):
        as_recorded(Waveform(samples, rate))


# Loudness


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(8_000, 40_000), st.floats(1e-3, 2), st.booleans())
def test_the_samples_are_those_of_ffmpeg_normalize(seed, n, scale, whole):
    """Up to a scale of 2, where half of them are clipped."""
    samples, file = (scale * np.random.default_rng(seed).standard_normal(n)), io.BytesIO()
    samples = audio.to_int16(samples) if whole else samples.astype(np.float32)
    soundfile.write(file, samples, SAMPLE_RATE, "PCM_16" if whole else "FLOAT", format="WAV")
    file.seek(0)
    np.testing.assert_array_equal(audio.to_int16(read_speech(file)), ffmpeg_normalize(samples))


@pytest.mark.data
@pytest.mark.parametrize("reader", READERS)
def test_real_recordings_get_the_samples_of_ffmpeg_normalize(reader):
    samples, _ = soundfile.read(real(reader), dtype="int16")
    ours = audio.to_int16(read_speech(real(reader)))
    np.testing.assert_array_equal(ours, ffmpeg_normalize(samples))


SIXTEEN = "a.wav PCM_16,a.wav PCM_U8,a.flac PCM_16,a.mkv pcm_s16le,a.mkv pcm_u8,a.mkv flac"
OTHER = "a.wav PCM_24,a.wav FLOAT,a.ogg VORBIS,a.mkv pcm_s32le,a.m4a aac"


@pytest.mark.parametrize("kind", f"{SIXTEEN},{OTHER}".split(","))
def test_only_sources_of_16_bits_are_measured_against_32767(tmp_path, kind):
    """What FFmpeg's astats divides by; the two gains are 0.00027 dB apart."""
    path = recording(*kind.split())(tmp_path, tone()[:, 0])
    recorded = as_recorded(path)
    level = round(rms_db(recorded * (1 if kind in OTHER else 32768 / 32767)), 6)
    gain = np.float32(10 ** ((-23 - level) / 20))
    np.testing.assert_array_equal(read_speech(path), recorded * gain)


# A part, and silence at its ends


def pauses(before: float, after: float, floor: float = 1e-4) -> np.ndarray:
    """A second of a tone between pauses of some seconds that are nearly silent."""
    ends = [round(s * SAMPLE_RATE) for s in (before, after)]
    quiet = np.random.default_rng(0).standard_normal(SAMPLE_RATE + sum(ends))
    samples = (floor * quiet).astype(np.float32)
    samples[ends[0] : ends[0] + SAMPLE_RATE] += tone(seconds=1)[:, 0]
    return samples


def test_silence_at_both_ends_is_trimmed_to_the_frame_and_a_pause_within_kept():
    def trimmed(samples: np.ndarray) -> np.ndarray:
        return as_recorded(Waveform(samples, SAMPLE_RATE), trim_silence=40)

    for before, after in [(0.5, 0.3), (0.0, 1.0), (2.0, 0.0), (0.0, 0.0)]:
        samples, start = pauses(before, after), round(before * SAMPLE_RATE)
        np.testing.assert_array_equal(trimmed(samples), samples[start : start + SAMPLE_RATE])
    assert trimmed(np.concatenate([pauses(0.2, 0.5), pauses(0.5, 0.2)])).size == 3 * SAMPLE_RATE
    with pytest.raises(AudioError, match=r"lasts 0\.20 s without its silence; wanted 0\.5 s"):
        trimmed(pauses(2, 2)[: round(2.2 * SAMPLE_RATE)])


@settings(max_examples=15)
@given(before=st.floats(0, 1), after=st.floats(0, 1), trim_silence=st.floats(20, 60))
def test_trimming_agrees_with_librosa_within_its_frame(before, after, trim_silence):
    """librosa.effects.trim, whose frames of 400 are centred every 160 samples."""
    samples = pauses(before, after, floor=1e-5)
    samples[round((before + 0.5) * SAMPLE_RATE)] = 0.9  # a click tells where the rest lies
    _, ends = librosa.effects.trim(samples, top_db=trim_silence, frame_length=400, hop_length=160)
    left = as_recorded(Waveform(samples, SAMPLE_RATE), trim_silence=trim_silence)
    first = samples.argmax() - left.argmax()
    assert abs(first - ends[0]) <= 400 and abs(first + len(left) - ends[1]) <= 400


@settings(max_examples=30)
@given(start=st.floats(0, 2), duration=st.floats(0.5, 5) | st.none())
def test_a_part_is_as_loud_as_if_it_were_all(start, duration):
    """As a file that holds nothing but the part, whose ends are rounded to 10 ms."""
    samples = noise(3 * SAMPLE_RATE) * np.linspace(0.1, 2, 3 * SAMPLE_RATE, dtype=np.float32)
    first = 160 * round(100 * start)
    part = samples[first : None if duration is None else first + 160 * round(100 * duration)]
    found = read_speech(Waveform(samples, SAMPLE_RATE), start=start, duration=duration)
    np.testing.assert_array_equal(found, read_speech(Waveform(part, SAMPLE_RATE)))


def test_a_part_that_is_not_there_is_refused_by_name():
    for start, message in {
        3.0: r"take 3 lasts 3\.00 s; wanted more than 3 s, to start there",
        1e6: r"take 3 lasts 3\.00 s; wanted more than 1e\+06 s",
        2.75: r"take 3 lasts 0\.25 s from 2\.75 s on; wanted 0\.5 s",
    }.items():
        with pytest.raises(AudioError, match=message):
            read_speech(Waveform(noise(3 * SAMPLE_RATE), SAMPLE_RATE), name="take 3", start=start)


@pytest.mark.parametrize("value", [-1e-9, 0.0, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("option", ["start", "duration", "trim_silence"])
def test_a_part_that_makes_no_sense_is_refused_before_anything_is_read(option, value):
    options = {"duration": 0.4} if (option, value) == ("start", 0.0) else {option: value}
    with pytest.raises(UsageError, match="wanted"):
        read_speech(Path("nowhere.wav"), **options)


@pytest.mark.parametrize("kind", [("a.flac", "PCM_16"), ("a.m4a", "aac")])
def test_what_comes_after_the_part_is_not_read(tmp_path, kind):
    """7 s of two minutes; a block is 4 s, and FFmpeg looks at the first seconds besides."""
    path = recording(*kind)(tmp_path, np.tile(noise(60 * SAMPLE_RATE), 2))
    file, n_read = io.BytesIO(path.read_bytes()), []
    counted = mock.Mock(wraps=file)
    counted.read = lambda size=-1: n_read.append(len(data := file.read(size))) or data
    counted.readinto = lambda buffer: n_read.append(len(buffer)) or file.readinto(buffer)
    assert len(read_speech(counted, start=2, duration=5)) == 5 * SAMPLE_RATE
    assert 0 < sum(n_read) < 0.2 * len(file.getvalue())


# Clips


@given(n=st.integers(1, 300), size=st.integers(1, 300))
def test_shorter_speech_is_looped_longer_is_cut_and_its_rest_kept_from_half_a_clip_on(n, size):
    starts = [start for start in range(0, n, size) if start + size <= n]
    if starts and n % size >= size / 2:
        starts.append(n - size)
    expected = [np.arange(s, s + size) for s in starts] or [np.arange(size) % n]
    np.testing.assert_array_equal(clips(np.arange(n, dtype=np.int16), size), expected)


# Arrays


@pytest.mark.parametrize(
    "kind", ["float32 FLOAT", "float64 DOUBLE", "int16 PCM_16", "int32 PCM_32"]
)
@pytest.mark.parametrize("rate", [SAMPLE_RATE, 44_100])
@pytest.mark.parametrize("n_channels", [0, 1, 6])  # 0: [n]
def test_an_array_gives_the_very_speech_of_a_file(tmp_path, kind, rate, n_channels):
    dtype, subtype = kind.split()
    samples = noise(100_000 * max(1, n_channels)).astype(np.float64)
    if dtype.startswith("int"):
        samples = np.rint(samples * np.iinfo(dtype).max * 0.5)
    samples = samples.astype(dtype).reshape((-1, n_channels) if n_channels else -1)
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype=subtype)
    array = Waveform(samples, rate)
    np.testing.assert_array_equal(read_speech(tmp_path / "a.wav"), read_speech(array))
    np.testing.assert_array_equal(as_recorded(tmp_path / "a.wav"), as_recorded(array))


def test_integers_have_the_scale_of_their_type_and_are_not_changed_themselves():
    samples = np.array([1.0, -1.0, 0.5 / 32768, 1.5 / 32768], np.float32)
    assert audio.to_int16(samples).tolist() == [32767, -32768, 0, 2]  # half to even, clipped
    for kind, values, last in [
        ("uint8", [0, 128, 255], 127 / 128),
        ("int64", [-(2**63), 0, 2**63 - 2**40], 1 - 2**-23),
        (">i2", [-32768, 0, 32767], 1 - 2**-15),
        (">f4 float16", [-1, 0, 1], 1.0),
    ]:
        for dtype in kind.split():
            sound = Waveform(np.resize(np.array(values, dtype), SAMPLE_RATE), SAMPLE_RATE)
            expected = np.resize([-1, 0, last], SAMPLE_RATE)
            np.testing.assert_array_equal(as_recorded(sound), expected)
            read_speech(sound)
            assert sound.samples[:3].tolist() == values


def test_an_array_that_is_no_sound_is_refused_by_name():
    for samples, rate, part in [
        (np.empty(0), 16_000, "holds no samples"),
        (np.array([0.1, 1e300]), 16_000, "holds samples that are NaN or infinite"),
        (np.array(0.1), 16_000, r"is an array \[\]; wanted a NumPy array \[n\] or \[n c\]"),
        (np.zeros((2, 99)), 16_000, r"is an array \[2, 99\]"),
        (np.zeros(9, bool), 16_000, "is an array of bool"),
        ([0, 1, 2], 16_000, "is of type list"),
        (np.zeros(9), 0, "claims 0 samples a second; wanted 4000 to 768000"),
        (np.zeros(9), float("nan"), "claims nan samples"),
        (np.zeros(9), "16000", "claims 16000 samples"),
    ]:
        with pytest.raises(AudioError, match=f"take 3 {part}"):
            read_speech(Waveform(samples, rate), name="take 3")


# Streams


class Pipe(io.BytesIO):
    """A stream that cannot seek."""

    seekable = mock.Mock(return_value=False)
    seek = mock.Mock(side_effect=io.UnsupportedOperation("seek"))


@pytest.mark.parametrize("kind", ["in memory", "of a pipe", "of a file that lost its name"])
@pytest.mark.parametrize("name", ["16 bit", "cover in MP3", "M4A"])
def test_a_stream_is_read_as_its_file_is(tmp_path, voice, kind, name):
    """A page's visitor's file is deleted while it is open; another may have its name by then."""
    path = HEARD[name][0](tmp_path, voice)
    expected, content = read_speech(path), path.read_bytes()
    with path.open("rb") as file:
        path.unlink()
        streams = {"in memory": io.BytesIO(content), "of a pipe": Pipe(content)}
        stream = streams.get(kind, file)
        np.testing.assert_array_equal(read_speech(stream), expected)
        if stream is file:
            path.write_bytes(DIARY)
            file.read(99)  # which leaves some bytes in its buffer
            np.testing.assert_array_equal(read_speech(file), expected)
        assert not stream.closed


def test_a_stream_that_is_no_recording_is_refused_by_name():
    broken = Pipe()
    broken.read = mock.Mock(side_effect=OSError(5, "Input/output error"))
    streams = {Pipe(): "is empty", io.BytesIO(): "is empty", broken: "cannot be read"}
    streams |= {Pipe(b"hello"): "holds no sound", io.BytesIO(b"hello"): "holds no sound"}
    for stream, part in streams.items():
        with pytest.raises(AudioError, match=f"standard input {part}"):
            read_speech(stream, name="standard input")


def test_the_copy_of_a_stream_is_gone_afterwards_and_a_full_disk_named(tmp_path, monkeypatch):
    """A limit of the size of files stands for that, in a process of its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    file = io.BytesIO()
    soundfile.write(file, noise(50_000), SAMPLE_RATE, format="WAV")
    read_speech(Pipe(file.getvalue()))
    assert not list(tmp_path.iterdir())
    pytest.importorskip("resource")
    code = (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))\n"
        "try: audio.read_speech(sys.stdin.buffer, name='standard input')\n"
        "except audio.OutputError as error: print(error, error.hint, error.exit_code)"
    )
    said = run(code, input=bytes(4_000_000))
    assert said.startswith(b"standard input cannot be copied to the folder for temporary files")
    assert b"TMPDIR" in said and said.endswith(b" 2\n")


# Memory and imports


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_three_hours_take_the_memory_of_their_samples(tmp_path):
    """691 MB of float32, 659 MiB, and the powers of 1,080,000 frames: 9."""
    code = (
        "from pathlib import Path\nspeech = audio.read_speech(Path(sys.argv[1]))\n"
        "print(sum(len(clip) for clip in audio.clips(speech, 96_000)))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    peaks, minute = {}, noise(60 * SAMPLE_RATE)
    for minutes in (1, 180):
        with soundfile.SoundFile(tmp_path / "a.wav", "w", SAMPLE_RATE, 1) as file:
            for _ in range(minutes):
                file.write(minute)
        n_samples, peaks[minutes] = map(int, run(code, tmp_path / "a.wav").split())
        assert n_samples == minutes * 60 * SAMPLE_RATE
    (tmp_path / "a.wav").unlink()  # pytest keeps folders
    assert peaks[180] - peaks[1] <= 700, peaks


def test_importing_the_module_loads_no_decoder():
    heavy = "{'av', 'librosa', 'scipy', 'sounddevice', 'soundfile', 'soxr', 'torch'}"
    assert run(f"print({heavy} & set(sys.modules))") == b"set()\n"


# The microphone


PortAudioError = type("PortAudioError", (Exception,), {})


@pytest.fixture
def microphone(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """A sounddevice whose samples are numbers that count up, some dropped after each piece."""
    fake = mock.Mock(PortAudioError=PortAudioError)
    fake.query_devices.return_value = {"name": "USB microphone", "default_samplerate": 44_100.0}
    numbers = itertools.count()

    def read(n: int) -> tuple[np.ndarray, bool]:
        return np.array([[next(numbers)] for _ in range(n)], np.float32) / 2**24, True

    fake.InputStream.return_value.read.side_effect = read
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


@pytest.mark.parametrize("rate", [16_000.0, 44_100.0])
@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.5, "000001"), (2.345, 10 * "0" + 10 * "1" + "22223")]
)
def test_the_samples_of_the_device_are_recorded_in_a_row(microphone, rate, seconds, shown):
    for wrong in (0.49, 600.1, float("nan"), float("inf")):  # before anything is opened
        with pytest.raises(UsageError, match=r"wanted 0\.5 to 600"):
            record(wrong)
    assert not microphone.mock_calls
    microphone.query_devices.return_value["default_samplerate"], told = rate, []
    pieces: list[Waveform] = []
    waveform = record(seconds, progress=lambda *now: told.append(now), heard=pieces.append)
    microphone.InputStream.assert_called_once_with(samplerate=rate, channels=1, dtype="float32")
    microphone.InputStream.return_value.close.assert_called_once_with()
    assert waveform.rate == rate and isinstance(waveform.rate, int)
    assert waveform.samples.dtype == np.float32
    np.testing.assert_array_equal(waveform.samples * 2**24, np.arange(round(seconds * rate)))
    assert told == [(int(n), int(shown[-1]), "recording from USB microphone") for n in shown]
    assert {piece.rate for piece in pieces} == {rate} and len(pieces) == len(told) - 1
    np.testing.assert_array_equal(np.concatenate([p.samples for p in pieces]), waveform.samples)


def test_a_sound_system_that_does_not_start_is_named(monkeypatch, tmp_path):
    """PortAudio is started by the import, which fails then with an exception of the module."""
    monkeypatch.syspath_prepend(tmp_path)
    own = "type('Own', (Exception,), {})('Host')"
    for reason, error, said in [
        ("ImportError", DependencyError, "needs the package sounddevice.* 's2f.record.'"),
        ("OSError('no library')", DependencyError, "no library.* apt install libportaudio2"),
        (own, DeviceError, "be used: Host.* another program"),
    ]:
        monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        (tmp_path / "sounddevice.py").write_text(f"raise {reason}")
        with pytest.raises(error) as caught:
            record(1)
        assert re.search(said, f"{caught.value} {caught.value.hint}")


@pytest.mark.parametrize("at", range(4), ids=["query", "open", "start", "read"])
@pytest.mark.parametrize("kind", [PortAudioError, ValueError, KeyboardInterrupt])
def test_a_device_that_is_not_there_or_refuses_is_named_and_closed(microphone, at, kind):
    """And one that records is closed by Ctrl-C."""
    stream = microphone.InputStream.return_value
    steps = [microphone.query_devices, microphone.InputStream, stream.start, stream.read]
    steps[at].side_effect = kind("Device unavailable [PaErrorCode -9985]")
    wanted = kind if kind is KeyboardInterrupt else DeviceError
    with pytest.raises(wanted, match="Device unavailable"):
        record(2)
    assert stream.close.called is (at >= 2)


# Stored waveforms


def test_a_stored_waveform_is_mapped_as_it_is_and_what_is_none_is_named(tmp_path):
    path = tmp_path / "a.npy"
    for dtype in (np.int16, np.float16, np.float32, np.float64):
        np.save(path, np.arange(9000).astype(dtype))
        waveform = audio.map_waveform(path)
        assert waveform.dtype == dtype and isinstance(waveform, np.memmap)
    for values in (np.zeros(0), np.zeros((2, 9000)), np.zeros(9000, np.int32), np.zeros(7999)):
        np.save(path, values)
        with pytest.raises(DatasetError, match=r"a\.npy: (holds|lasts|cannot)"):
            audio.map_waveform(path)


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_what_sounds_of_a_stored_waveform_is_what_is_not_30_db_below_its_loudest_second(dtype):
    """2 s of speech, a pause, 1 s of speech 20 dB down, a pause: by hand, in frames of 10 ms."""
    rng = np.random.default_rng(0)
    levels = np.repeat([0.1, 0.0005, 0.01, 0.0005], [200, 300, 100, 50])  # -20 to -66 dBFS
    samples = rng.standard_normal(len(levels) * 160) * np.repeat(levels, 160)
    stored = (samples * 32768).astype(dtype) if dtype == np.int16 else samples.astype(dtype)
    sounds = audio.sounding(audio.stored_powers(stored))
    wanted = levels > 0.001
    assert len(sounds) == len(levels) and (sounds != wanted).sum() <= 20  # 50 ms beside each edge
    audio.check_waveform(stored, "a")
    parts = audio.clips_that_sound(stored, 16_000)
    assert [len(part) for part in parts] == [16_000] * 4  # the last holds 0.5 s that sound
    np.testing.assert_array_equal(np.concatenate(parts[:2]), stored[:32_000])


@pytest.mark.parametrize("suffix", ["flac", "aac"])
def test_what_does_not_say_how_long_it_is_is_counted_and_then_held(tmp_path, monkeypatch, suffix):
    """The same is heard as where all of it is held at once."""
    path, left = tmp_path / f"a.{suffix}", noise(3 * 44_100)
    both = np.stack([left, -left], axis=1)
    if suffix == "flac":
        soundfile.write(path, both, 44_100)
        data = bytearray(path.read_bytes())
        data[21:26] = bytes([data[21] & 0xF0, 0, 0, 0, 0])  # its length
        path.write_bytes(data)
    else:
        write_av(path, both)
    wanted, cut = audio.hear(path), audio.hear(path, start=0.5, duration=4)
    assert wanted.channel == {"flac": 1}.get(suffix)  # AAC does not cancel so well
    assert wanted.seconds == pytest.approx(3, abs=0.1)
    monkeypatch.setattr(audio, "UNTOLD_HOURS", 1 / 3600)
    heard = audio.hear(path)
    assert np.array_equal(heard.waveform, wanted.waveform) and heard.remarks == wanted.remarks
    assert np.array_equal(audio.hear(path, start=0.5).waveform, cut.waveform)
    monkeypatch.setattr(audio, "MAX_HOURS", 2 / 3600)
    with pytest.raises(AudioError, match="lasts longer than"):
        audio.hear(path)
