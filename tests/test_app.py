"""The page: what visitors are answered, by the same faces as from the command line, and its words.

What is expected of a face is what `generate` draws, to the byte.
"""

import base64
import io
import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import soundfile
from conftest import noise, write_photo, write_speech
from PIL import Image

from s2f import SpeechToFace, app
from s2f.app import STEPS, answer_photo, answer_voice, answer_voices
from s2f.app_server import Settings
from s2f.audio import SAMPLE_RATE
from s2f.checkpoint import Card, Checkpoint
from s2f.console import Progress
from s2f.errors import AudioError, ImageError
from s2f.pipeline import Face


@pytest.fixture(scope="module")
def model(models: Path) -> SpeechToFace:
    return SpeechToFace.load(models / "demo", device="cpu")


class Page(HTMLParser):
    """What an answer holds: elements with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.text = " ".join(self.text.split())
        for picture in self.named("img"):  # in every answer
            assert picture["alt"] and (picture["src"] or "").startswith("data:image/")
        assert "http" not in html

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]

    def picture(self, alt: str) -> bytes:
        (found,) = [p["src"] or "" for p in self.named("img") if p["alt"] == alt]
        return base64.b64decode(found.partition("base64,")[2])


def opened(path: Path) -> io.BytesIO:
    return io.BytesIO(path.read_bytes())


def test_the_faces_are_those_that_generate_draws(model: SpeechToFace, tmp_path: Path) -> None:
    path = write_speech(tmp_path / "a.wav", 7)
    page = Page(answer_voice(model, opened(path), max_seconds=60))
    face = model.generate(path)
    assert page.picture("Face that the voice suggests") == face.encoded()
    assert page.picture("The same face with its 68 landmarks drawn on it") == face.encoded(
        overlay=True
    )
    for seconds, words in ((1, "second"), (3, "3 seconds"), (6, "6 seconds")):
        face = model.generate(path, duration=seconds)
        assert page.picture(f"Face after: the first {words}") == face.encoded()
    with Image.open(
        io.BytesIO(
            page.picture(
                "Spectrogram of the speech, 7 seconds long: time to the right, pitch upwards, "
                "light where it is loud"
            )
        )
    ) as sound:
        assert sound.width > 100
    assert "The model heard 7 seconds of speech. A face here is an average" in page.text
    assert "never a likeness" in page.text


@pytest.mark.parametrize(
    ("seconds", "moments", "said"),
    [
        (0.9, 0, "heard 0.9 seconds of speech. It is shorter than the 1 second that"),
        (1, 0, "The model heard 1 second of"),
        (2.5, 1, "heard 2.5 seconds of speech. A face"),
        (6, 2, "All 6 seconds"),
    ],
)
def test_what_was_heard_is_said_and_beginnings_are_shorter(
    model: SpeechToFace, tmp_path: Path, seconds: float, moments: int, said: str
) -> None:
    speech = opened(write_speech(tmp_path / "a.wav", seconds))
    page = Page(answer_voice(model, speech, max_seconds=60))
    assert said in page.text
    assert len([p for p in page.named("img") if "Face after: " in (p["alt"] or "")]) == moments


def test_what_comes_after_the_limit_is_not_heard(model: SpeechToFace, tmp_path: Path) -> None:
    path = write_speech(tmp_path / "a.wav", 5)
    page = Page(answer_voice(model, opened(path), max_seconds=2))
    assert "Only the first 2 seconds of the recording were heard." in page.text
    face = model.generate(path, duration=2)
    assert page.picture("Face that the voice suggests") == face.encoded()
    exact = answer_voice(model, opened(write_speech(tmp_path / "b.wav", 2)), max_seconds=2)
    assert "The model heard 2 seconds" in Page(exact).text


def test_hours_are_not_even_decoded(model: SpeechToFace, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLAC of an hour, of which soundfile is asked for no more than the limit and a block."""
    hours = io.BytesIO()
    with soundfile.SoundFile(hours, "w", SAMPLE_RATE, 1, format="FLAC") as file:
        for _ in range(60):
            file.write(noise(60))
    read, counted = soundfile.SoundFile.read, []

    def reading(*args: object, **options: object) -> np.ndarray:
        block = read(*args, **options)
        counted.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", reading)
    assert "Only the first 2 seconds" in answer_voice(model, hours, max_seconds=2)
    times = 1 + 1 + 1  # for the spectrogram, the face, the first second
    assert sum(counted) <= times * (2 * SAMPLE_RATE + max(counted))


def test_a_silent_beginning_has_no_face(model: SpeechToFace) -> None:
    late = io.BytesIO()
    silence = np.zeros(round(1.5 * SAMPLE_RATE), np.float32)
    soundfile.write(late, np.concatenate([silence, noise(3)]), SAMPLE_RATE, format="WAV")
    page = Page(answer_voice(model, late, max_seconds=60))
    assert "The first second: no speech in it yet, so no face." in page.text
    assert page.picture("Face after: the first 3 seconds")


def test_the_slider_goes_from_one_voice_to_the_other(model: SpeechToFace, tmp_path: Path) -> None:
    paths = [write_speech(tmp_path / f"{k}.wav", seed=k) for k in (0, 1)]
    told: list[tuple[int, int, str]] = []
    page = Page(
        answer_voices(
            model, *map(opened, paths), max_seconds=9, progress=lambda *what: told.append(what)
        )
    )
    for path, name in zip(paths, ("first", "second"), strict=True):
        with Image.open(io.BytesIO(page.picture(f"Face of the {name} voice"))) as end:
            assert end.tobytes() == model.generate(path).image.tobytes()
    (slider,) = page.named("input")
    assert (slider["min"], slider["max"], slider["value"]) == ("0", str(STEPS - 1), "0")
    moving = [picture for picture in page.named("img") if "data-place" in picture]
    assert len(moving) == STEPS
    (seen,) = [picture for picture in moving if "hidden" not in picture]
    assert slider["aria-valuetext"] == seen["data-place"] == "the first voice"
    assert moving[1]["alt"] == "Face: 5 % of the way to the second voice"
    assert told and all(done < total and what for done, total, what in told)


def test_the_voice_that_cannot_be_used_is_named(model: SpeechToFace, speech: Path) -> None:
    with pytest.raises(AudioError, match="The second voice: "):
        answer_voices(model, opened(speech), io.BytesIO(b"nothing"), max_seconds=9)


def test_a_photo_is_drawn_again(model: SpeechToFace, tmp_path: Path) -> None:
    photo = write_photo(tmp_path / "a.png")
    page = Page(answer_photo(model, opened(photo), detector=None))
    face = model.reconstruct(photo, align=False)
    assert page.picture("Face drawn from the photo") == face.encoded()
    with (
        Image.open(photo) as sent,
        Image.open(io.BytesIO(page.picture("The photo, framed"))) as own,
    ):
        assert np.abs(np.asarray(sent, float) - np.asarray(own, float)).mean() < 4  # it is a WebP


def test_a_photo_is_framed_first_but_only_a_smaller_copy_of_a_large_one(
    model: SpeechToFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[tuple[int, int]] = []

    def cut(photo: Image.Image, *, detector: str, **others: object) -> Image.Image:
        searched.append(photo.size)
        return photo.crop((0, 0, 224, 224))

    monkeypatch.setattr(app, "cut_face", cut)
    large = io.BytesIO()
    Image.new("RGB", (6000, 3000), "grey").save(large, "PNG")
    assert "Drawn again" in answer_photo(model, large, detector="dlib")
    assert searched == [(2048, 1024)]


def test_a_photo_of_too_many_pixels_is_refused(model: SpeechToFace) -> None:
    bomb = io.BytesIO()
    Image.new("1", (8000, 8000)).save(bomb, "PNG")
    with pytest.raises(ImageError, match="8000 x 8000 pixels; at most 50 million"):
        answer_photo(model, bomb, detector="dlib")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(99)])
def test_what_is_no_photo_is_refused(model: SpeechToFace, content: bytes) -> None:
    with pytest.raises(ImageError, match="the photo: "):
        answer_photo(model, io.BytesIO(content), detector=None)


def test_the_page_is_warmed_up_with_every_answer(
    model: SpeechToFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []

    def reconstruct(photo: Image.Image, *, align: bool = True, detector: str = "") -> Face:
        asked.append((detector, align))
        if align:
            raise ImageError("no face")
        return model.decode(np.zeros(8))

    monkeypatch.setattr(model, "reconstruct", reconstruct)
    app.warm(model, Settings(detector="dlib"))
    app.warm(model, Settings(detector="face-alignment"))
    assert asked == [("", False), ("dlib", True), ("", False)]


def test_faces_are_looked_for_with_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed in ("dlib", None):
        monkeypatch.setattr(app, "installed_detector", lambda name=installed: name)
        assert app.finder(Settings()) == installed
        assert app.finder(Settings(detector="face-alignment")) == "face-alignment"
        assert app.finder(Settings(align=False)) is None


def test_a_card_is_escaped_and_the_same_words_are_said_once(model: SpeechToFace) -> None:
    checkpoints = dict(model.model.checkpoints)
    (only,) = re.findall("<h3>(.*?)</h3>", app.show_cards(checkpoints))
    assert only.startswith("The network that listens and the network that looks")
    own = checkpoints["voice_encoder"]
    strange = Card("x", limits="<script>alert(1)</script>")
    checkpoints["voice_encoder"] = Checkpoint(**{**vars(own), "card": strange})
    html = app.show_cards(checkpoints)
    assert len(re.findall("<h3>", html)) == 2
    assert "<script>" not in html and "alert(1)" in html


def test_a_refusal_is_sentences_that_are_read_out() -> None:
    page = Page(app.refusal(AudioError("the recording is <b>", hint="record it again")))
    assert page.named("div")[0]["role"] == "alert"
    assert page.text == "The recording is <b>. Record it again."
    assert page.named("b") == []


def listened(sent: BinaryIO, *, progress: Progress) -> str:
    progress(0, 2, "listening")
    return sent.read().decode()


def broken(sent: BinaryIO, *, progress: Progress) -> str:
    progress(0, 2, "listening")
    raise AudioError("the recording is broken", hint="record it again")


def bug(sent: BinaryIO, *, progress: Progress) -> str:
    progress(0, 2, "listening")
    return str(1 / 0)


@pytest.mark.parametrize(
    ("answer", "said", "logged"),
    [
        (listened, "sound", ""),
        (broken, "The recording is broken. Record it again.", ""),
        (bug, "Something went wrong here", "ZeroDivisionError"),
    ],
)
def test_the_file_is_gone_before_the_answer_whatever_comes_of_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    answer: app.Answer,
    said: str,
    logged: str,
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    path = tmp_path / "a.wav"
    path.write_bytes(b"sound")
    told: list[Any] = []

    def checked(sent: BinaryIO, *, progress: Progress) -> str:
        assert not path.exists()
        return answer(sent, progress=progress)

    with caplog.at_level(logging.ERROR):
        html = app.reply([str(path)], checked, lambda share, desc: told.append((share, desc)))
    assert not path.exists() and told == [((0, 2), "listening")]
    assert said in html and "division" not in html
    assert logged in caplog.text and bool(logged) == bool(caplog.records)


def test_the_words_say_what_a_face_is_not() -> None:
    assert "never a likeness of the speaker" in app.INTRODUCTION
    limits = app.LIMITS.format(max_mb=10, max_seconds=7)
    assert "10 MB" in limits and "7 seconds" in limits
