"""What visitors are answered: the same faces as from the command line, within the limits."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import noise, write_speech
from PIL import Image

from s2f import SpeechToFace, app
from s2f.app import hear_between, hear_voice, look_at_photo
from s2f.audio import SAMPLE_RATE
from s2f.errors import AudioError, ImageError

pytestmark = pytest.mark.usefixtures("bundled")


@pytest.fixture
def model(bundled: Path) -> SpeechToFace:
    return SpeechToFace.load(device="cpu")


def opened(path: Path) -> io.BytesIO:
    return io.BytesIO(path.read_bytes())


def test_the_faces_are_those_that_generate_draws(model: SpeechToFace, tmp_path: Path) -> None:
    path = write_speech(tmp_path / "a.wav", 7)
    heard = hear_voice(model, opened(path), max_seconds=60)
    assert heard.face.encoded() == model.generate(path).encoded()
    assert [seconds for seconds, _ in heard.beginnings] == [1, 3, 6]
    for seconds, face in heard.beginnings:
        assert face and face.encoded() == model.generate(path, duration=seconds).encoded()
    assert (heard.seconds, heard.clip_seconds, heard.is_cut) == (7, 1, False)


@pytest.mark.parametrize(("seconds", "moments"), [(0.9, []), (2.5, [1]), (6, [1, 3])])
def test_beginnings_are_shorter_than_the_whole(
    model: SpeechToFace, tmp_path: Path, seconds: float, moments: list[float]
) -> None:
    heard = hear_voice(model, opened(write_speech(tmp_path / "a.wav", seconds)), max_seconds=60)
    assert [moment for moment, _ in heard.beginnings] == moments


def test_what_comes_after_the_limit_is_not_heard(model: SpeechToFace, tmp_path: Path) -> None:
    path = write_speech(tmp_path / "a.wav", 5)
    heard = hear_voice(model, opened(path), max_seconds=2)
    assert (heard.seconds, heard.is_cut) == (2, True)
    assert heard.face.encoded() == model.generate(path, duration=2).encoded()
    exact = hear_voice(model, opened(write_speech(tmp_path / "b.wav", 2)), max_seconds=2)
    assert (exact.seconds, exact.is_cut) == (2, False)


def test_hours_are_not_even_decoded(model: SpeechToFace, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLAC of two hours, of which soundfile is asked for no more than the limit and a block."""
    hours = io.BytesIO()
    with soundfile.SoundFile(hours, "w", SAMPLE_RATE, 1, format="FLAC") as file:
        for _ in range(720):
            file.write(noise(10))
    read, counted = soundfile.SoundFile.read, []

    def reading(*args: object, **options: object) -> np.ndarray:
        block = read(*args, **options)
        counted.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", reading)
    assert hear_voice(model, hours, max_seconds=2).is_cut
    times = 1 + 1 + 1  # for the spectrogram, the face, the first second
    assert sum(counted) <= times * (2 * SAMPLE_RATE + max(counted))


def test_a_silent_beginning_has_no_face(model: SpeechToFace) -> None:
    late = io.BytesIO()
    silence = np.zeros(round(1.5 * SAMPLE_RATE), np.float32)
    soundfile.write(late, np.concatenate([silence, noise(3)]), SAMPLE_RATE, format="WAV")
    first, second = hear_voice(model, late, max_seconds=60).beginnings
    assert first == (1, None)
    assert second[1] is not None


def test_progress_is_told(model: SpeechToFace, speech: Path) -> None:
    told: list[tuple[int, int, str]] = []
    hear_voice(model, opened(speech), max_seconds=9, progress=lambda *what: told.append(what))
    hear_between(
        model, opened(speech), opened(speech), max_seconds=9, progress=lambda *w: told.append(w)
    )
    assert all(done < total and what for done, total, what in told)


@pytest.mark.parametrize("content", [b"", b"no sound", bytes(1000)])
def test_what_is_no_recording_is_refused_without_a_path(
    model: SpeechToFace, content: bytes
) -> None:
    with pytest.raises(AudioError, match="the recording"):
        hear_voice(model, io.BytesIO(content), max_seconds=60)


def test_a_photo_gives_what_reconstruct_draws(model: SpeechToFace, photo: Path) -> None:
    seen = look_at_photo(model, opened(photo), align=False)
    assert seen.face.encoded() == model.reconstruct(photo, align=False).encoded()
    assert seen.photo.size == (224, 224)


def test_a_huge_photo_is_made_smaller_before_a_face_is_looked_for(
    model: SpeechToFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def cut(photo: Image.Image, **_: object) -> Image.Image:
        sizes.append(photo.size)
        return photo.resize((224, 224))

    monkeypatch.setattr(app, "cut_face", cut)
    monkeypatch.setattr(app, "choose_detector", lambda name: name or "dlib")
    huge = io.BytesIO()
    Image.new("RGB", (6000, 3000)).save(huge, "PNG")
    look_at_photo(model, huge)
    assert sizes == [(2048, 1024)]


def test_what_is_no_photo_is_refused_without_a_path(model: SpeechToFace) -> None:
    with pytest.raises(ImageError, match=r"^the photo"):
        look_at_photo(model, io.BytesIO(b"no photo"), align=False)


def test_two_voices_end_in_their_own_faces(model: SpeechToFace, tmp_path: Path) -> None:
    paths = [write_speech(tmp_path / f"{k}.wav", 1, seed=k) for k in (0, 1)]
    faces = hear_between(model, *map(opened, paths), max_seconds=60)
    assert len(faces) == app.STEPS
    for face, path in zip((faces[0], faces[-1]), paths, strict=True):
        assert face.image.tobytes() == model.generate(path).image.tobytes()
    assert faces[0].image.tobytes() != faces[-1].image.tobytes()


@pytest.mark.parametrize("which", ["first", "second"])
def test_the_voice_that_cannot_be_heard_is_named(
    model: SpeechToFace, speech: Path, which: str
) -> None:
    broken = io.BytesIO(b"no sound")
    voices = [broken, opened(speech)] if which == "first" else [opened(speech), broken]
    with pytest.raises(AudioError, match=f"^The {which} voice: "):
        hear_between(model, *voices, max_seconds=60)
