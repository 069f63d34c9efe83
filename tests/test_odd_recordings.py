"""Recordings as people have them: each is heard, or refused by name.

What is heard has the loudness that models want, and is the voice that was written: the correlation
with it, at the best shift, is near 1. What a format may lose is its own.
"""

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr
from PIL import Image
from recordings import VOICES, real, write_av

from s2f.audio import SAMPLE_RATE, open_speech
from s2f.errors import AudioError

EXACT, LOSSY = 0.999, 0.97  # what keeps 16 bits or more; 8 bits, and codecs of music
NARROW, PHONE = 0.85, 0.4  # rates below 16 kHz, or few bits a channel; models of a throat
SECONDS = 3
Make = Callable[[Path, np.ndarray], Path]


@pytest.fixture(scope="module")
def voice() -> np.ndarray:
    """Somebody speaking, or what stands for it: mono [n], 16 kHz."""
    if VOICES.is_dir():
        samples, _ = soundfile.read(real("103")[0], dtype="float32")
        return samples[SAMPLE_RATE:][: SECONDS * SAMPLE_RATE]
    rng, times = np.random.default_rng(0), np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    buzz = sum(np.sin(2 * np.pi * 120 * k * times) / k for k in range(1, 20))
    syllables = np.sin(2 * np.pi * 2 * times) ** 2 * (1 + 0.3 * np.sin(2 * np.pi * 0.7 * times))
    noise = 0.001 * rng.standard_normal(len(times))
    return (0.1 * buzz * syllables + noise).astype(np.float32)


def at(rate: int, voice: np.ndarray, n_channels: int = 1) -> np.ndarray:
    """The voice at another rate, in the same way in all channels: [n c]."""
    samples = soxr.resample(voice, SAMPLE_RATE, rate, "HQ")
    return np.repeat(samples[:, np.newaxis], n_channels, axis=1)


def written(
    name: str, form: str, subtype: str, rate: int = SAMPLE_RATE, n_channels: int = 1
) -> Make:
    """A file that libsndfile writes."""

    def make(folder: Path, voice: np.ndarray) -> Path:
        samples = at(rate, voice, n_channels)
        soundfile.write(folder / name, samples, rate, format=form, subtype=subtype)
        return folder / name

    return make


def encoded(
    name: str, codec: str, rate: int = 44_100, n_channels: int = 1, video: bool = False, **options
) -> Make:
    """A file that FFmpeg writes."""

    def make(folder: Path, voice: np.ndarray) -> Path:
        if codec not in av.codecs_available:
            pytest.skip(f"this PyAV has no {codec}")
        samples = at(rate, voice, n_channels)
        return write_av(folder / name, samples, codec, rate, video=video, options=options)

    return make


def edited(name: str, make: Make, edit: Callable[[bytes], bytes]) -> Make:
    """What another maker makes, its bytes changed, under another name."""

    def made(folder: Path, voice: np.ndarray) -> Path:
        content = make(folder, voice).read_bytes()
        (folder / name).write_bytes(edit(content))
        return folder / name

    return made


wav = written("plain.wav", "WAV", "PCM_16")
m4a = encoded("plain.m4a", "aac")


def false_lengths(riff: int, data: int) -> Callable[[bytes], bytes]:
    """What a program writes that cannot seek back: lengths that nobody knew yet."""

    def edit(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[4:8] = struct.pack("<I", riff)
        place = changed.index(b"data") + 4
        changed[place : place + 4] = struct.pack("<I", data)
        return bytes(changed)

    return edit


def with_chunk(content: bytes) -> bytes:
    """A chunk of odd length, which is padded, before the samples."""
    place = content.index(b"data")
    chunk = b"LIST" + struct.pack("<I", 7) + b"INFOabc" + b"\0"
    return content[:place] + chunk + content[place:]


def first_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(file, "JPEG")
    return file.getvalue()


def tagged(content: bytes) -> bytes:
    """An ID3v2.3 tag with a cover, in front: sizes of 7 bits a byte in the tag, 8 in the frame."""
    body = b"\0image/jpeg\0\3\0" + picture()
    frame = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    size = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frame + content


def covered_m4a(folder: Path, voice: np.ndarray) -> Path:
    """As music shops sell them: the cover is a video stream of one picture."""
    path, rate = folder / "cover.m4a", 44_100
    samples = at(rate, voice)
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=rate, layout="mono")
        cover = container.add_stream("mjpeg", rate=1, width=64, height=64, pix_fmt="yuvj420p")
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        container.mux(cover.encode())
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout="mono")
        frame.sample_rate = rate
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return path


HEARD: dict[str, tuple[Make, float]] = {
    "8 bit": (written("a.wav", "WAV", "PCM_U8"), LOSSY),
    "16 bit": (wav, EXACT),
    "24 bit": (written("a.wav", "WAV", "PCM_24"), EXACT),
    "32 bit": (written("a.wav", "WAV", "PCM_32"), EXACT),
    "float": (written("a.wav", "WAV", "FLOAT"), EXACT),
    "double": (written("a.wav", "WAV", "DOUBLE"), EXACT),
    "mu-law": (written("a.wav", "WAV", "ULAW", 8_000), NARROW),
    "A-law": (written("a.wav", "WAV", "ALAW", 8_000), NARROW),
    "GSM": (written("a.wav", "WAV", "GSM610", 8_000), PHONE),
    "ADPCM": (written("a.wav", "WAV", "IMA_ADPCM"), LOSSY),
    "Microsoft ADPCM": (written("a.wav", "WAV", "MS_ADPCM"), LOSSY),
    "8 kHz": (written("a.wav", "WAV", "PCM_16", 8_000), NARROW),
    "11 kHz": (written("a.wav", "WAV", "PCM_16", 11_025), NARROW),
    "22 kHz": (written("a.wav", "WAV", "PCM_16", 22_050), LOSSY),
    "44.1 kHz stereo": (written("a.wav", "WAV", "PCM_16", 44_100, 2), LOSSY),
    "48 kHz": (written("a.wav", "WAV", "PCM_16", 48_000), LOSSY),
    "96 kHz": (written("a.wav", "WAV", "PCM_24", 96_000, 2), LOSSY),
    "192 kHz": (written("a.wav", "WAV", "PCM_32", 192_000), LOSSY),
    "3 channels": (written("a.wav", "WAV", "PCM_16", n_channels=3), EXACT),
    "8 channels": (written("a.wav", "WAV", "FLOAT", 48_000, 8), LOSSY),
    "WAVEX": (written("a.wav", "WAVEX", "PCM_24", n_channels=2), EXACT),
    "RF64": (written("a.wav", "RF64", "PCM_16"), EXACT),
    "Wave64": (written("a.w64", "W64", "PCM_16"), EXACT),
    "AIFF": (written("a.aiff", "AIFF", "PCM_16"), EXACT),
    "AIFF 8 bit": (written("a.aif", "AIFF", "PCM_S8"), LOSSY),
    "AIFF-C float": (written("a.aifc", "AIFF", "FLOAT"), EXACT),
    "CAF": (written("a.caf", "CAF", "PCM_24"), EXACT),
    "CAF ALAC": (written("a.caf", "CAF", "ALAC_16"), EXACT),
    "Sun": (written("a.au", "AU", "ULAW", 8_000), NARROW),
    "NIST": (written("a.sph", "NIST", "PCM_16"), EXACT),
    "FLAC": (written("a.flac", "FLAC", "PCM_16"), EXACT),
    "FLAC 24 bit": (written("a.flac", "FLAC", "PCM_24", 48_000, 2), LOSSY),
    "Vorbis": (written("a.ogg", "OGG", "VORBIS", 44_100, 2), LOSSY),
    "Opus": (written("a.opus", "OGG", "OPUS", 48_000), LOSSY),
    "MP3": (written("a.mp3", "MP3", "MPEG_LAYER_III", 44_100), LOSSY),
    "MP3 of FFmpeg": (encoded("a.mp3", "libmp3lame", 44_100, 2), LOSSY),
    "M4A": (m4a, LOSSY),
    "M4A, index first": (encoded("a.m4a", "aac", movflags="faststart"), LOSSY),
    "M4A in fragments": (encoded("a.m4a", "aac", movflags="frag_keyframe+empty_moov"), LOSSY),
    "M4A 5.1": (encoded("a.m4a", "aac", 48_000, 6), NARROW),
    "M4A 7.1": (encoded("a.m4a", "aac", 48_000, 8), NARROW),
    "ALAC": (encoded("a.m4a", "alac", 44_100), LOSSY),
    "ADTS": (encoded("a.aac", "aac", 48_000), LOSSY),
    "WebM": (encoded("a.webm", "libopus", 48_000), LOSSY),
    "Windows Media": (encoded("a.wma", "wmav2"), LOSSY),
    "AMR": (encoded("a.amr", "libopencore_amrnb", 8_000), PHONE),
    "3GP": (encoded("a.3gp", "aac", 22_050), LOSSY),
    "MP4 video": (encoded("a.mp4", "aac", video=True), LOSSY),
    "Matroska video": (encoded("a.mkv", "libopus", 48_000, 2, video=True), LOSSY),
    "QuickTime video": (encoded("a.mov", "pcm_s16le", 44_100, 2, video=True), LOSSY),
    "AVI video": (encoded("a.avi", "libmp3lame", 44_100, 2, video=True), LOSSY),
    "MPEG transport stream": (encoded("a.ts", "aac", video=True), LOSSY),
    "Flash video": (encoded("a.flv", "aac"), LOSSY),
    "wrong suffix": (edited("a.mp3", wav, bytes), EXACT),
    "wrong suffix of video": (edited("a.wav", m4a, bytes), LOSSY),
    "no suffix": (edited("recording", m4a, bytes), LOSSY),
    "odd name": (edited("-Grüße 'x' $HOME %s.WAV", wav, bytes), EXACT),
    "cover in M4A": (covered_m4a, LOSSY),
    "cover in MP3": (
        edited("cover.mp3", written("b.mp3", "MP3", "MPEG_LAYER_III"), tagged),
        LOSSY,
    ),
    "lengths of 0": (edited("a.wav", wav, false_lengths(0, 0)), EXACT),
    "lengths of -1": (edited("a.wav", wav, false_lengths(2**32 - 1, 2**32 - 1)), EXACT),
    "length too long": (edited("a.wav", wav, false_lengths(10**9, 10**9)), EXACT),
    "chunk of odd length": (edited("a.wav", wav, with_chunk), EXACT),
    "trailing garbage": (edited("a.flac", wav, lambda content: content + b"garbage" * 99), EXACT),
    "truncated WAV": (edited("a.wav", wav, first_half), EXACT),
    "truncated MP3": (edited("a.mp3", encoded("b.mp3", "libmp3lame"), first_half), LOSSY),
    "quiet": (lambda folder, voice: wav_of(folder, voice / 300), LOSSY),
    "offset": (lambda folder, voice: wav_of(folder, voice + 1e-3), LOSSY),
    "clipped": (lambda folder, voice: wav_of(folder, np.clip(20 * voice, -1, 1)), 0.7),
}


def wav_of(folder: Path, samples: np.ndarray, name: str = "a.wav") -> Path:
    soundfile.write(folder / name, samples, SAMPLE_RATE, subtype="PCM_24")
    return folder / name


def correlation(heard: np.ndarray, voice: np.ndarray) -> float:
    """At the shift, up to 0.2 s in steps of an eighth of a sample, where it is largest.

    What a truncated recording lacks does not count.
    """
    n, fine = len(heard) + len(voice), 8
    spectrum = np.fft.rfft(heard, n) * np.conj(np.fft.rfft(voice, n))
    product = fine * np.fft.irfft(spectrum, fine * n)
    most = fine * SAMPLE_RATE // 5
    same = voice[: len(heard)]
    largest = max(product[:most].max(), product[-most:].max())
    return float(largest / np.linalg.norm(heard) / np.linalg.norm(same))


@pytest.mark.parametrize("kind", HEARD)
def test_an_odd_recording_is_heard(tmp_path, voice, kind):
    make, wanted = HEARD[kind]
    with open_speech(make(tmp_path, voice)) as speech:
        heard = speech.waveform().astype(np.float64)
    assert 20 * np.log10(np.sqrt(np.mean(heard**2))) == pytest.approx(-23, abs=0.05)
    assert correlation(heard, voice) >= wanted


def bytes_of(name: str, content: bytes) -> Make:
    def make(folder: Path, voice: np.ndarray) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def without_sound(folder: Path, voice: np.ndarray) -> Path:
    return write_av(folder / "a.mp4", None, video=True)


def not_a_number(folder: Path, voice: np.ndarray) -> Path:
    samples = voice.copy()
    samples[len(samples) // 2] = np.nan
    soundfile.write(folder / "a.wav", samples, SAMPLE_RATE, subtype="FLOAT")
    return folder / "a.wav"


def fifo(folder: Path, voice: np.ndarray) -> Path:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(folder / "a.wav")
    return folder / "a.wav"


def loop(folder: Path, voice: np.ndarray) -> Path:
    (folder / "a.wav").symlink_to(folder / "a.wav")
    return folder / "a.wav"


def named_folder(folder: Path, voice: np.ndarray) -> Path:
    (folder / "a.wav").mkdir()
    return folder / "a.wav"


def playlist(name: str, content: str) -> Make:
    """One that names a recording, which would be opened."""

    def make(folder: Path, voice: np.ndarray) -> Path:
        wav_of(folder, voice, "private.wav")
        (folder / name).write_text(content)
        return folder / name

    return make


NOT_SOUND = "holds no sound that can be decoded"
REFUSED: dict[str, tuple[Make, str]] = {
    "missing": (lambda folder, voice: folder / "a.wav", "cannot be read (No such file"),
    "empty": (bytes_of("a.wav", b""), "is empty (0 bytes)"),
    "text": (bytes_of("a.wav", b"Dear diary, today I spoke to nobody.\n" * 50), NOT_SOUND),
    "a byte": (bytes_of("a.mp3", b"R"), NOT_SOUND),
    "picture": (bytes_of("a.jpg", picture()), NOT_SOUND),
    "archive": (bytes_of("a.wav", b"PK\3\4" + bytes(500)), NOT_SOUND),
    "web page": (bytes_of("a.mp3", b"<!DOCTYPE html><title>404</title>" * 20), NOT_SOUND),
    "zeros": (bytes_of("a.m4a", bytes(100_000)), NOT_SOUND),
    "header only": (edited("a.wav", wav, lambda content: content[:44]), "holds no samples"),
    "start of M4A": (edited("a.m4a", m4a, lambda content: content[:9_000]), "holds no sound"),
    "silence": (lambda folder, voice: wav_of(folder, 0 * voice), "holds only silence"),
    "nearly silence": (lambda folder, voice: wav_of(folder, 1e-5 * voice), "holds only silence"),
    "not a number": (not_a_number, "holds samples that are NaN or infinite"),
    "too short": (lambda folder, voice: wav_of(folder, voice[:7_000]), "lasts 0.44 s; wanted 0.5"),
    "video without sound": (without_sound, "has no sound track that can be decoded, only video"),
    "playlist": (playlist("a.m3u", "#EXTM3U\nprivate.wav\n"), NOT_SOUND),
    "segments": (playlist("a.m3u8", "#EXTM3U\n#EXTINF:3,\nprivate.wav\n"), NOT_SOUND),
    "concat": (playlist("a.mp3", "ffconcat version 1.0\nfile 'private.wav'\n"), NOT_SOUND),
    "false rate": (
        edited("a.wav", wav, lambda c: c[:24] + struct.pack("<I", 3) + c[28:]),
        "claims 3 samples a second",
    ),
    "folder": (named_folder, "is a folder"),
    "named pipe": (fifo, "is not a regular file"),
    "link to itself": (loop, "cannot be read ("),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_heard_is_refused_by_name(tmp_path, voice, kind):
    make, part = REFUSED[kind]
    path = make(tmp_path, voice)
    with pytest.raises(AudioError) as caught, open_speech(path):
        pass
    assert caught.value.message.startswith(f"{path} {part}")
    assert caught.value.hint


def test_there_are_enough_of_them() -> None:
    assert len(HEARD) >= 30 and len(REFUSED) >= 15
