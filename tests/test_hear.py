"""What `hear` makes of recordings that are not one voice from end to end: each case made anew.

Each stands for a kind that people reported of programs like this one. Where a figure is compared,
the clean recording is the oracle; mixes are FFmpeg's.
"""

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from command_line import Done
from conftest import noise
from recordings import VOICES, write_av

from s2f import SpeechToFace, audio
from s2f.audio import SAMPLE_RATE, Waveform, find_recordings, hear, is_recording
from s2f.errors import AudioError, UsageError
from s2f.prep_audio import audio_step

RATE = SAMPLE_RATE
SPEECH = noise(6)  # loud and soft by turns, at about -23 dBFS


def silence(seconds: float, level: float = 0.0) -> np.ndarray:
    """Digital silence, or the hiss of a quiet room."""
    hiss = np.random.default_rng(1).standard_normal(round(seconds * RATE))
    return (level * hiss).astype(np.float32)


def joined(*parts: np.ndarray) -> Waveform:
    return Waveform(np.concatenate(parts), RATE)


def level(samples: np.ndarray) -> float:
    return float(20 * np.log10(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))))


def wav(path: Path, samples: np.ndarray, rate: int = RATE, **options: str) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


# Silence


@pytest.mark.parametrize("hiss", [0.0, 1e-4, 3e-3])
def test_pauses_are_left_out_and_speech_is_as_loud_as_without_them(hiss: float) -> None:
    clean = hear(joined(SPEECH))
    for before, between, after in [(50, 0, 0), (0, 20, 0), (0, 0, 9), (5, 5, 5)]:
        half = len(SPEECH) // 2
        parts = [silence(before), SPEECH[:half], silence(between), SPEECH[half:], silence(after)]
        waveform = np.concatenate(parts)
        heard = hear(joined(waveform + silence(len(waveform) / RATE, hiss)))
        kept = 6 + 0.3 * (bool(before) + 2 * bool(between) + bool(after))
        assert len(heard.waveform) / RATE == pytest.approx(kept, abs=0.15)
        assert heard.silence == pytest.approx(6 + before + between + after - kept, abs=0.15)
        assert heard.remarks == (f"{heard.silence:.1f} s of silence are left out",)
        loudest = np.sort(np.abs(heard.waveform))[-RATE:]  # of the speech alone
        assert level(loudest) - level(np.sort(np.abs(clean.waveform))[-RATE:]) == pytest.approx(
            0, abs=0.8
        )


def test_what_sounds_all_through_and_short_pauses_stay_as_they_are() -> None:
    """A pause of less than 2 s is speech; without any, all samples are but scaled."""
    parts = [SPEECH, silence(1.9), SPEECH[: 2 * RATE]]
    heard = hear(joined(*parts))
    assert (len(heard.waveform), heard.remarks) == (sum(map(len, parts)), ())
    gain = heard.waveform[0] / parts[0][0]
    np.testing.assert_allclose(heard.waveform, np.concatenate(parts) * gain, rtol=1e-5, atol=1e-7)
    assert level(heard.waveform) == pytest.approx(-23, abs=0.01)


def test_clicks_are_no_speech_and_a_pop_does_not_make_a_voice_faint() -> None:
    clicks = silence(30)
    clicks[:: 3 * RATE // 2] = 0.5
    assert len(hear(joined(clicks, SPEECH)).waveform) / RATE == pytest.approx(6.25, abs=0.1)
    faint = (0.1 * SPEECH).astype(np.float32)
    pop = faint.copy()
    pop[RATE : RATE + 160] = 1.0
    heard, clean = hear(joined(pop)).waveform, hear(joined(faint)).waveform
    assert level(heard[2 * RATE :]) - level(clean[2 * RATE :]) == pytest.approx(0, abs=1.5)


@pytest.mark.parametrize("start", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("lasts", [(1,), (3,), (1.4, 1.4), (1, 1, 1, 1)])
def test_beeps_are_not_what_a_faint_message_is_measured_by(start: float, lasts: Any) -> None:
    beep = (0.7 * np.sin(2 * np.pi * 1000 * np.arange(3 * RATE) / RATE)).astype(np.float32)
    message = SPEECH * np.where(np.arange(len(SPEECH)) // 3200 % 2, 0.015, 0.05)
    message = message.astype(np.float32)
    parts = [message[len(message) - round(start * RATE) :]]
    for seconds in lasts:
        parts += [beep[: round(seconds * RATE)], message]
    heard = hear(joined(*parts))
    assert (len(heard.waveform), heard.silence) == (sum(map(len, parts)), 0)
    assert level(heard.waveform[-len(message) :]) > -38  # the plain RMS leaves it below -49
    (remark,) = heard.remarks
    assert remark.endswith("s are far louder than the speech: beeps or laughter")
    assert heard.events == pytest.approx(sum(lasts), abs=0.15 * len(lasts))


@pytest.mark.parametrize("room", [1e-4, 3e-3])
def test_a_word_before_a_long_room_is_no_event(room: float) -> None:
    """3 s of speech, 30 s of a room 30 or 60 dB below, and nothing: the speech is what sounds."""
    heard = hear(joined(SPEECH[: 3 * RATE], silence(30, room), silence(9)))
    assert len(heard.waveform) / RATE == pytest.approx(3.25, abs=0.1)


@pytest.mark.parametrize("level", [10 ** (-52 / 20), 10 ** (-44 / 20)])
def test_digital_silence_does_not_hide_a_room(level: float) -> None:
    """A muted microphone beside a room that is 20 dB below the speech: both are pauses."""
    for muted in (0, 15):
        heard = hear(joined(silence(60, level), SPEECH, silence(muted)))
        assert len(heard.waveform) / RATE == pytest.approx(6.25 + 0.25 * bool(muted), abs=0.3)


@pytest.mark.parametrize("bits", [np.int16, np.float32])
def test_silence_alone_is_refused(bits: type) -> None:
    with pytest.raises(AudioError, match="holds only silence"):
        hear(Waveform(np.zeros(5 * RATE, bits), RATE))
    with pytest.raises(AudioError, match=r"lasts 0\.\d\d s without its silence; wanted 0\.5 s"):
        hear(joined(silence(9), SPEECH[: RATE // 8]))


def test_a_spectrogram_and_a_waveform_are_of_what_sounds(tmp_path: Path) -> None:
    source = wav(tmp_path / "a.wav", joined(silence(50), SPEECH).samples)
    clean = wav(tmp_path / "b.wav", joined(silence(0.29), SPEECH).samples)
    for store in ("waveform", "spectrogram"):
        made = []
        for path in (source, clean):
            audio_step(store=store).work(path, tmp_path / "part.npy")
            made.append(np.load(tmp_path / "part.npy").astype(float))
        np.testing.assert_allclose(*made, atol=2e-3 * np.abs(made[0]).max())


# Constants, damage and noise


def test_a_constant_is_taken_off_before_loudness_is_measured() -> None:
    faint = (SPEECH * 10 ** ((-40 - level(SPEECH)) / 20)).astype(np.float32)
    heard = hear(joined(faint + np.float32(0.05)))
    assert heard.remarks == ("a constant of 0.05 (DC) is taken off",)
    np.testing.assert_allclose(heard.waveform, hear(joined(faint)).waveform, atol=2e-3)
    assert hear(joined(faint + np.float32(0.0005))).constant == 0  # 26 dB below: nothing changes
    rest = np.concatenate([silence(20) + np.float32(0.2), faint])  # a step after a pause
    ramp = np.concatenate([silence(20), faint]) + np.linspace(0, 0.2, 26 * RATE, dtype=np.float32)
    for drifting in (rest, ramp):
        heard = hear(joined(drifting))
        assert heard.constant == pytest.approx(0.2, abs=0.01)
        assert len(heard.waveform) / RATE == pytest.approx(6.3, abs=1)


def test_samples_far_beyond_full_scale_are_damage_and_many_are_integers() -> None:
    samples = SPEECH.copy()
    samples[RATE] = 1e30
    heard = hear(joined(samples))
    assert heard.remarks == ("samples far beyond full scale are silenced: 1",)
    np.testing.assert_allclose(heard.waveform[:RATE], hear(joined(SPEECH)).waveform[:RATE], 1e-3)
    with pytest.raises(AudioError, match=r"samples of up to [\d.]+; wanted -1 to 1") as caught:
        hear(joined(SPEECH * 20_000))
    assert "32768" in str(caught.value.hint)


def test_what_is_steady_is_said_to_be_no_voice() -> None:
    heard = hear(Waveform(np.random.default_rng(0).normal(0, 0.03, 6 * RATE), RATE))
    assert heard.remarks == ("its loudness hardly changes: this may be noise, and no voice",)
    assert not hear(joined(SPEECH)).is_steady


# Channels and tracks


@pytest.mark.parametrize("codec", ["wav", "m4a"])
def test_channels_that_cancel_are_not_mixed(tmp_path: Path, codec: str) -> None:
    both = np.stack([SPEECH, -0.97 * SPEECH], axis=1).astype(np.float32)
    if codec == "wav":
        path = wav(tmp_path / "a.wav", both)
    else:
        path = write_av(tmp_path / "a.m4a", both, rate=RATE)
    heard = hear(path)
    assert heard.remarks == ("its channels cancel each other: channel 1 alone is heard",)
    clean = hear(joined(SPEECH)).waveform
    assert np.corrcoef(heard.waveform[: len(clean)], clean)[0, 1] > 0.99
    partly = both.copy()
    partly[: 4 * RATE, 1] *= -1
    heard = hear(Waveform(partly, RATE))
    assert (heard.channel, len(heard.waveform)) == (1, len(SPEECH))
    aligned = np.stack([SPEECH, 0.5 * SPEECH], axis=1)
    assert hear(Waveform(aligned, RATE)).channel is None


def test_six_channels_are_mixed_as_ffmpeg_mixes_them(tmp_path: Path) -> None:
    """The oracle is swresample's own 5.1 to mono, before loudness."""
    rng = np.random.default_rng(0)
    six = (rng.standard_normal((3 * RATE, 6)) * [0.1, 0.1, 0.05, 0.2, 0.1, 0.1]).astype(np.float32)
    path = wav(tmp_path / "a.flac", six, subtype="PCM_24")
    frame = av.AudioFrame.from_ndarray(six.reshape(1, -1), format="flt", layout="5.1")
    frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
    resampler = av.AudioResampler("flt", "mono")
    pieces = [one.to_ndarray()[0] for part in (frame, None) for one in resampler.resample(part)]
    expected = np.concatenate(pieces)
    for source in (path, Waveform(six, RATE)):
        found = hear(source, as_recorded=True).waveform
        scale = float(found @ expected / (expected @ expected))
        np.testing.assert_allclose(found, scale * expected, atol=1e-4)


def tracks(path: Path, *sounds: np.ndarray) -> Path:
    """Write a video with several sound tracks, as OBS does."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("aac", rate=RATE, layout="mono") for _ in sounds]
        for stream, sound in zip(streams, sounds, strict=True):
            frame = av.AudioFrame.from_ndarray(sound[None], format="flt", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_the_first_track_that_sounds_is_heard_or_the_one_that_is_named(
    tmp_path: Path, suffix: str
) -> None:
    tone = noise(6, seed=2)
    path = tracks(tmp_path / f"a{suffix}", silence(6), SPEECH, tone)
    for track, expected, said in ((None, SPEECH, 2), (3, tone, 3)):
        heard = hear(path, track=track)
        assert heard.remarks == (f"sound track {said} of 3 is heard",)
        found, wanted = heard.waveform[: 5 * RATE], expected[: 5 * RATE]
        spectra = [np.abs(np.fft.rfft(x)) for x in (found, wanted)]
        assert np.corrcoef(*spectra)[0, 1] > 0.9
    with pytest.raises(AudioError, match="sound tracks: 3; wanted track 4"):
        hear(path, track=4)
    with pytest.raises(AudioError, match="only silence"):
        hear(path, track=1)
    with pytest.raises(AudioError, match="sound tracks: 1; wanted track 2"):
        hear(wav(tmp_path / "a.wav", SPEECH), track=2)
    click = silence(6)
    click[RATE] = 0.5
    hiss = silence(6, 5e-4)
    for first in (click, hiss, SPEECH[:4000]):  # none of which is speech
        assert hear(tracks(tmp_path / "b.mp4", first, SPEECH)).track == 2
    with pytest.raises(UsageError, match="track 0"):
        hear(path, track=0)


# Containers


@pytest.mark.parametrize("rates", [(48_000, 48_000), (48_000, 24_000)])
@pytest.mark.parametrize("kind", ["OGG/OPUS", "OGG/VORBIS", "FLAC/PCM_16"])
def test_recordings_in_a_row_are_read_to_the_end_of_the_last(
    tmp_path: Path, kind: str, rates: tuple[int, int]
) -> None:
    form, subtype = kind.split("/")
    content = b""
    for rate in rates:
        samples = np.repeat(SPEECH[: 3 * RATE // 2], 2 * rate // RATE)
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, rate, format=form, subtype=subtype)
        content += buffer.getvalue()
    (tmp_path / "a.ogg").write_bytes(content)
    heard = hear(tmp_path / "a.ogg")
    assert len(heard.waveform) / RATE == pytest.approx(6, abs=0.05)
    assert heard.remarks == ()
    part = hear(io.BytesIO(content), start=4, duration=1.5).waveform
    assert len(part) == 1.5 * RATE


def test_a_header_within_a_block_of_a_flac_begins_no_other_recording(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, SPEECH, RATE)
    content = path.read_bytes()
    block = b"test" + bytes(100) + content[:42] + bytes(500)  # an application's own
    head = b"\2" + len(block).to_bytes(3, "big") + block
    (tmp_path / "b.flac").write_bytes(content[:42] + head + content[42:])
    np.testing.assert_array_equal(hear(tmp_path / "b.flac").waveform, hear(path).waveform)


@pytest.mark.parametrize(
    "kind",
    ["WAV/PCM_16", "WAV/IMA_ADPCM", "AIFF/PCM_16", "RF64/PCM_16", "CAF/PCM_16", "FLAC/PCM_16"],
)
def test_a_tag_before_a_recording_costs_no_sample(tmp_path: Path, kind: str) -> None:
    form, subtype = kind.split("/")
    plain = tmp_path / "plain"
    soundfile.write(plain, SPEECH, RATE, format=form, subtype=subtype)
    n = 60_000
    size = bytes((n >> shift) & 127 for shift in (21, 14, 7, 0))
    (tmp_path / "tagged").write_bytes(b"ID3\4\0\0" + size + bytes(n) + plain.read_bytes())
    expected = hear(plain)
    heard = hear(tmp_path / "tagged")
    np.testing.assert_array_equal(heard.waveform, expected.waveform)
    assert heard.remarks == expected.remarks == ()


def test_a_recording_that_was_cut_off_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    sources = [
        wav(tmp_path / "a.wav", SPEECH),
        wav(tmp_path / "a.aiff", SPEECH),
        write_av(tmp_path / "a.mp3", SPEECH[:, None], "libmp3lame", rate=RATE),
        write_av(tmp_path / "a.mp4", SPEECH[:, None], rate=RATE, options={"movflags": "faststart"}),
        *(
            wav(tmp_path / f"a.{form}", SPEECH, format=form)
            for form in ("W64", "RF64", "CAF", "AU")
        ),
        wav(tmp_path / "a.sph", SPEECH, format="NIST"),
    ]
    six = np.repeat(SPEECH[:, None], 6, 1)  # more than two channels are for FFmpeg
    sources += [wav(tmp_path / f"six.{form}", six, format=form) for form in ("WAV", "AIFF", "AU")]
    for source in sources:
        assert hear(source).remarks == ()
        source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
        heard = hear(source)
        assert len(heard.waveform) / RATE == pytest.approx(3, abs=0.6)
        (remark,) = heard.remarks
        assert remark == f"only {heard.seconds:.1f} of 6.0 s can be decoded"
        if source.suffix != ".mp4":  # decoded in one go with its damage
            assert hear(source, duration=2).remarks == ()  # of which all is there


def test_a_flac_that_does_not_say_how_long_it_is_lacks_nothing(tmp_path: Path) -> None:
    """As FFmpeg writes it to a pipe: the number of samples and their hash are zeros."""
    path = wav(tmp_path / "a.flac", SPEECH)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:42] = bytes(20)
    path.write_bytes(content)
    heard = hear(path)
    assert heard.seconds == 6 and heard.remarks == ()


def test_more_sound_than_can_be_held_is_refused_but_for_a_part(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.flac"
    with soundfile.SoundFile(path, "w", 4_000, 1) as file:
        for seconds in (10, *[600] * 25):
            file.write(noise(seconds)[::4] if seconds == 10 else np.zeros(seconds * 4_000))
    with pytest.raises(AudioError, match=r"says that it lasts 4\.1\d+ h; wanted 4 h at most"):
        hear(path)
    assert len(hear(path, duration=10).waveform) == 10 * RATE
    with pytest.raises(UsageError, match="14401 s; wanted 14400 s or less"):
        hear(path, duration=14_401)


def test_a_container_that_was_cut_off_is_said_to_be_damaged(tmp_path: Path) -> None:
    """Where no header tells how long the sound is, the last page or packet is not all there."""
    sources = [wav(tmp_path / "a.ogg", SPEECH), wav(tmp_path / "b.ogg", SPEECH, subtype="OPUS")]
    for name in ("a.mkv", "a.avi"):
        sources.append(write_av(tmp_path / name, SPEECH[:, None], "libmp3lame", RATE, video=True))
    streams = {"a.ts": "aac", "a.mpg": "mp2", "a.mp2": "mp2", "a.ac3": "ac3", "a.eac3": "eac3"}
    for name, codec in ({**streams, "a.voc": "pcm_s16le"}).items():
        fast = np.repeat(SPEECH, 3)[:, None]  # not all have codecs for 16 kHz
        sources.append(write_av(tmp_path / name, fast, codec, 48_000))
    for source in sources:
        assert hear(source).remarks == ()
        content = source.read_bytes()
        source.write_bytes(content[: len(content) // 2 + 101])  # hardly between packets
        heard = hear(source)
        assert heard.seconds < 5 and heard.damaged
        said = f"is damaged: what can be decoded of its {heard.seconds:.1f} s is heard"
        assert heard.remarks == (said,)
        assert hear(source, duration=1).remarks == ()


def test_damage_in_the_middle_is_said(tmp_path: Path) -> None:
    path = write_av(tmp_path / "a.aac", SPEECH[:, None], rate=RATE)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 600] = np.random.default_rng(0).bytes(600)
    path.write_bytes(content)
    heard = hear(path)
    assert heard.damaged and "is damaged: what can be decoded" in heard.remarks[0]


def test_start_and_duration_go_by_the_clock_of_a_player(tmp_path: Path) -> None:
    """Sound that starts 3 s after the picture, and goes on after a gap of 5 s."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=10, width=32, height=32, pix_fmt="yuv420p")
        sound = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        grey = np.full((32, 32, 3), 128, np.uint8)
        for _ in range(20):
            container.mux(picture.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(picture.encode())
        for start, part in ((3, SPEECH[: 2 * RATE]), (10, SPEECH[2 * RATE : 4 * RATE])):
            values = np.rint(part * 32768).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(values, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, start * RATE, Fraction(1, RATE)
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    assert hear(path).seconds == pytest.approx(12, abs=0.01)
    late = hear(path, start=10, duration=2, as_recorded=True).waveform
    np.testing.assert_allclose(late, SPEECH[2 * RATE : 4 * RATE], atol=2e-3)
    early = hear(path, start=3, duration=2, as_recorded=True).waveform
    np.testing.assert_allclose(early, SPEECH[: 2 * RATE], atol=2e-3)
    with pytest.raises(AudioError, match="holds only silence"):
        hear(path, start=6, duration=3)


def test_a_header_that_leads_before_the_file_is_no_trace(tmp_path: Path) -> None:
    """A CAF whose chunks have sizes below nothing."""
    path = tmp_path / "a.caf"
    soundfile.write(path, SPEECH[:RATE], RATE, format="CAF", subtype="PCM_16")
    content = path.read_bytes()
    at = content.index(b"data") + 4
    for size in (-1, -(2**63), -4096, 2**62):
        path.write_bytes(content[:at] + struct.pack(">q", size) + content[at + 8 :])
        try:
            assert len(hear(path).waveform) >= RATE // 2
        except AudioError as error:
            assert "a.caf" in error.message


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        *((".mka", "flac"), (".m4b", "aac"), (".flv", "libmp3lame"), (".mpg", "mp2")),
        *((".ts", "aac"), (".wmv", "wmav2"), (".ac3", "ac3"), (".tta", "tta"), (".wv", "wavpack")),
        *((".ogv", "libopus"), (".weba", "libopus"), (".3g2", "aac"), (".mp2", "mp2")),
        *((".vob", "ac3"), (".m2ts", "ac3"), (".au", "pcm_s16be"), (".w64", "pcm_s16le")),
    ],
)
def test_every_suffix_that_is_listed_is_read(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"a{suffix}"
    form = {".weba": "webm", ".m4b": "mp4", ".vob": "vob", ".m2ts": "mpegts", ".wmv": "asf"}
    samples = np.repeat(np.repeat(SPEECH, 3)[:, None], 2, axis=1)
    with av.open(str(path), "w", format=form.get(suffix)) as container:
        stream = container.add_stream(codec, rate=48_000, layout="stereo", bit_rate=128_000)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert is_recording(path.name) and is_recording(path.name.upper())
    heard = hear(path)
    assert len(heard.waveform) / RATE == pytest.approx(6, abs=0.15)
    assert heard.remarks == ()


# Entrances


def test_remarks_come_with_the_face_the_line_the_json_and_the_report(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    path = wav(folder / "a.wav", joined(silence(9), SPEECH).samples)
    said = "8.7 s of silence are left out"
    doubt = "sounds like no voice"  # nor is it one: it was synthesised
    model = SpeechToFace.load(device="cpu")
    for source in (path, io.BytesIO(path.read_bytes()), joined(silence(9), SPEECH)):
        first, second = model.generate(source).remarks
        assert first == said and second.startswith(doubt)
    done = Done("generate", path, "-o", tmp_path / "a.png")
    assert f"{path}: {said}" in done.err
    done = Done("generate", folder, "-o", tmp_path / "faces", "--json")
    first, second = done.json["results"][0]["remarks"]
    assert first == said and second.startswith(doubt)
    done = Done("prep", "audio", folder, tmp_path / "out", "--workers", 1)
    assert f"a.npy: {said}" in done.err
    done = Done("prep", "audio", folder, tmp_path / "out", "--workers", 1, "--json")
    assert done.json["remarks"] == {"a.npy": [said]}  # kept, and told again
    movie = tracks(tmp_path / "b.mp4", silence(3), SPEECH)
    done = Done("generate", movie, "-o", tmp_path / "b.png", "--track", 1)
    assert (done.code, "only silence" in done.err) == (3, True)
    done = Done("prep", "audio", movie, tmp_path / "b", "--track", 2, "--json")
    assert done.json["remarks"] == {"b.npy": ["sound track 2 of 2 is heard"]}
    assert Done("prep", "audio", movie, tmp_path / "b", "--track", 1).code == 3
    done = Done("generate", "--morph", movie, path, "-o", tmp_path / "b.webp")
    assert f"{movie}: sound track 2 of 2 is heard" in done.err


# Real voices


def own_first(clean: list[np.ndarray], damaged: list[np.ndarray]) -> int:
    """Of how many readers the damaged recording lies nearest to the same reader's clean one."""
    distances = np.linalg.norm(np.stack(damaged)[:, None] - np.stack(clean)[None], axis=-1)
    return int((distances.argmin(axis=1) == np.arange(len(clean))).sum())


@pytest.mark.data
@pytest.mark.slow
def test_of_24_readers_the_damaged_recording_is_nearest_to_the_clean_one(tmp_path: Path) -> None:
    """At least 20. Nothing was chosen by these readers."""
    if not VOICES.is_dir():
        pytest.skip("the real voices (shared/data/voices) are not beside the repository")
    model = SpeechToFace.load(device="cpu")
    readers = sorted(VOICES.iterdir())[4::9][:24]
    assert len(readers) == 24
    voices = [soundfile.read(find_recordings([one])[0], dtype="float32")[0] for one in readers]
    clips = [np.resize(voice, min(len(voice), 6 * RATE)) for voice in voices]
    clean = [model.embed_voice(Waveform(clip, RATE)) for clip in clips]

    def paused(before: float, between: float, after: float, hiss: float) -> list[Waveform]:
        made = []
        for clip in clips:
            half = len(clip) // 2
            parts = [silence(before), clip[:half], silence(between), clip[half:], silence(after)]
            whole = np.concatenate(parts)
            rms = np.sqrt(np.mean(np.square(clip)))
            made.append(Waveform(whole + silence(len(whole) / RATE, hiss * rms), RATE))
        return made

    damaged = {
        f"pauses {where} at {hiss} of speech": paused(*where, hiss)
        for where in ((50, 0, 0), (0, 20, 0), (0, 0, 30), (10, 10, 10))
        for hiss in (0.0, 0.01, 0.03)
    }
    faint = [clip * (0.01 / np.sqrt(np.mean(np.square(clip)))) for clip in clips]
    damaged["DC"] = [Waveform(clip + np.float32(0.05), RATE) for clip in faint]
    pairs = [np.stack([clip, -0.98 * clip], axis=1) for clip in clips]
    damaged["antiphase"] = [Waveform(pair, RATE) for pair in pairs]
    movies = [
        tracks(tmp_path / f"{k}.mp4", silence(6), clip.astype(np.float32))
        for k, clip in enumerate(clips)
    ]
    found = {what: own_first(clean, [*map(model.embed_voice, d)]) for what, d in damaged.items()}
    found["tracks"] = own_first(clean, [*map(model.embed_voice, movies)])
    assert min(found.values()) >= 20, found


def element(name: str, *content: bytes) -> bytes:
    whole = b"".join(content)
    return bytes.fromhex(name) + b"\x01" + len(whole).to_bytes(7) + whole


TAGS = element("1254c367", bytes.fromhex("7373 88 67c8 85 45a3 82 4141") * 1000)  # of 11 kB
NAMED = element("466e", b"a"), element("4660", b"font/ttf"), element("46ae", b"1")
MATROSKA = {  # what stands before a Matroska file's own elements, and whether it can be heard
    "no tags, and much else": (element("1254c367") + element("ec", bytes(50_000)), True),
    "a font": (element("1941a469", element("61a7", *NAMED, element("465c", bytes(50_000)))), True),
    "tags": (TAGS, False),
    "tags in what is skipped": (
        element("114d9b74", element("4dbb", element("53ab", TAGS[:4]), element("53ac", b"\x38")))
        + element("ec", TAGS),
        False,
    ),
    "tags behind a file longer than what it is in": (
        element("1941a469", element("61a7", element("465c", TAGS)[:10]), TAGS),
        False,
    ),
    "many files": (element("1941a469", 1000 * element("61a7")), False),
    "a seek head that names itself, twice": (
        element("114d9b74", 2 * element("4dbb", element("53ab"), element("53ac", b"\0"))),
        True,
    ),
}


@pytest.mark.parametrize("case", MATROSKA)
def test_headers_of_matroska_have_a_limit_wherever_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(audio, "_MOST_HEADERS", 5_000)
    before, is_heard = MATROSKA[case]
    data = write_av(tmp_path / "a.mka", noise(3)[:, None]).read_bytes()
    start = data.index(bytes.fromhex("18538067")) + 12
    place = before.find(TAGS[:4] + TAGS[4:5])
    assert case != "tags in what is skipped" or place == 0x38  # of the segment, as is said
    whole = data[: start - 8] + bytes.fromhex("01ffffffffffffff") + before + data[start:]
    if is_heard:
        assert hear(io.BytesIO(whole)).seconds == pytest.approx(48_000 / 44_100, abs=0.1)
    else:
        with pytest.raises(AudioError, match="of headers; wanted"):
            hear(io.BytesIO(whole))


def tagged(n: int) -> bytes:
    """An MP3 behind n tags of names of their own (ID3v2.3, 3.1 and 4.10: frames TXXX)."""
    sound = io.BytesIO()
    soundfile.write(sound, noise(1), RATE, format="MP3")
    texts = [b"\0%06d\0v" % k for k in range(n)]
    frames = b"".join(b"TXXX" + struct.pack(">IH", len(text), 0) + text for text in texts)
    size = bytes(len(frames) >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frames + sound.getvalue()


def test_a_file_of_very_many_tags_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(audio, "OPEN_SECONDS", 0.02)
        with pytest.raises(AudioError, match=r"more than 0\.02 s to open: it may have very many"):
            hear(io.BytesIO(tagged(8_000)))  # more than a second of work
    assert hear(io.BytesIO(tagged(100))).seconds == pytest.approx(1, abs=0.1)  # meanwhile
