"""The page: what visitors are answered, its words, and that faces are those of `generate`."""

import base64
import ctypes
import io
import logging
import re
import time
from html import unescape
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

import numpy as np
import pytest
import soundfile
from conftest import noise, write_photo, write_speech, write_turned
from PIL import Image
from visitors import pixels

from s2f import SpeechToFace, app, face_detection
from s2f.app import STEPS, answer_photo, answer_voice, answer_voices
from s2f.app_server import Settings
from s2f.audio import SAMPLE_RATE, hear
from s2f.checkpoint import Card, Checkpoint
from s2f.console import Progress
from s2f.errors import AudioError, ImageError, OutputError, WorkerError
from s2f.face_detection import FoundFace
from s2f.prep import Worker


@pytest.fixture(scope="module")
def model(models: Path) -> SpeechToFace:
    return SpeechToFace.load(models / "demo", device="cpu")


class Page:
    """What an answer holds: its text, and its pictures' attributes by what stands for them."""

    def __init__(self, html: str) -> None:
        self.html, self.text = html, unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)))
        found = re.findall("<img .*?>", html)
        tags = [dict(re.findall(r'([\w-]+)="([^"]*)"', tag)) for tag in found]
        self.pictures = {unescape(tag["alt"]): tag for tag in tags}  # in every answer
        assert all(self.pictures) and "http" not in html
        assert all(tag["src"].startswith("data:image/") for tag in tags)

    def picture(self, alt: str) -> bytes:
        (found,) = [tag["src"] for name, tag in self.pictures.items() if name.startswith(alt)]
        return base64.b64decode(found.partition("base64,")[2])


def speech() -> io.BytesIO:
    content = io.BytesIO()
    soundfile.write(content, noise(1), SAMPLE_RATE, format="WAV")
    return content


def opened(path: Path) -> io.BytesIO:
    return io.BytesIO(path.read_bytes())


def test_the_faces_are_those_that_generate_draws(model, tmp_path):
    path = write_speech(tmp_path / "a.wav", 7)
    page, face = Page(answer_voice(model, opened(path), max_seconds=60)), model.generate(path)
    assert page.picture("Face that the voice suggests") == face.encoded()
    assert page.picture("The same face with its 68 landmarks") == face.encoded(overlay=True)
    for seconds, words in ((1, "second"), (3, "3 seconds"), (6, "6 seconds")):
        face = model.generate(path, duration=seconds)
        assert page.picture(f"Face after: the first {words}") == face.encoded()
    assert pixels(page.picture("Spectrogram of the speech, 7 seconds long: time")).shape[1] > 100
    assert "The model heard 7 seconds of speech. A face here is an average" in page.text
    assert "never a likeness" in page.text


@pytest.mark.parametrize(
    ("seconds", "moments", "said"),
    [
        (0.9, 0, "heard 0.9 seconds of speech. It is shorter than the 1 second that"),
        (1, 0, "The model heard 1 second of"),
        (2.5, 1, "heard 2.5 seconds of speech. A face"),
        (6, 2, "All 6 seconds"),
        (9.1, 3, "Only the first 9 seconds of the recording were heard."),
    ],
)
def test_what_was_heard_is_said_and_beginnings_are_shorter(model, tmp_path, seconds, moments, said):
    path = write_speech(tmp_path / "a.wav", seconds)
    page = Page(answer_voice(model, opened(path), max_seconds=9))
    assert said in page.text
    assert len([alt for alt in page.pictures if "Face after: " in alt]) == moments
    face = model.generate(path, duration=9)
    assert page.picture("Face that the voice suggests") == face.encoded()


def here(monkeypatch):
    """Have this process decode, where it can be looked at."""
    monkeypatch.setattr(app, "_decode", lambda function, *item: function(*item))


def test_hours_are_not_even_decoded_and_the_rest_is_once(model, monkeypatch):
    """FLAC of an hour, of which soundfile is asked for no more than the limit and a block."""
    here(monkeypatch)
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
    assert sum(counted) <= 2 * SAMPLE_RATE + 2 * max(counted)


def crash(name: str, *_: object) -> None:
    ctypes.string_at(0)


def hang(name: str, *_: object) -> None:
    time.sleep(60)


def test_a_decoder_that_crashes_or_hangs_costs_one_answer(model, monkeypatch, tmp_path):
    sound, photo = write_speech(tmp_path / "a.wav"), write_photo(tmp_path / "a.png")
    monkeypatch.setattr(app, "_decode", Worker(seconds=1))
    for broken, said in ((crash, "signal 11"), (hang, "took more than 1 s")):
        with monkeypatch.context() as patch:
            patch.setattr(app, "_hear", broken)
            patch.setattr(app, "_look", broken)
            with pytest.raises(WorkerError, match=f"the recording: .*{said}"):
                answer_voice(model, opened(sound), max_seconds=9)
            with pytest.raises(WorkerError, match=f"the photo: .*{said}"):
                answer_photo(model, opened(photo), detector=None)
    monkeypatch.setattr(app._decode, "_seconds", 60)
    assert "The face" in answer_voice(model, opened(sound), max_seconds=9)
    app._decode.close()


def test_a_visitor_is_told_of_no_option(model, monkeypatch):
    cure = "the system may be out of memory: give fewer --workers"
    monkeypatch.setattr(app.app_server, "take", lambda *paths: paths)
    failing = mock.Mock(side_effect=WorkerError("the photo: died (signal 9)", hint=cure))
    said = app.reply(["a.png"], failing, lambda *_, **__: None)
    assert "signal 9" in said and "Try again" in said and "--workers" not in said


def test_what_was_left_out_or_cut_off_is_said(model):
    late, pause = io.BytesIO(), np.zeros(9 * SAMPLE_RATE, np.float32)
    soundfile.write(late, np.concatenate([pause, noise(3)]), SAMPLE_RATE, format="FLAC")
    heard = hear(late)
    page = Page(answer_voice(model, late, max_seconds=60))
    assert heard.remarks and f"Of the recording: {'; '.join(heard.remarks)}." in page.text
    assert "The model heard 3.3 seconds" in page.text  # of the pause 0.25 s stay at its end
    assert page.text.count("no speech in it yet") == 3
    both = Page(answer_voices(model, late, speech(), max_seconds=60))
    assert f"Of the recordings: first voice: {heard.remarks[0]}" in both.text


def test_a_silent_beginning_has_no_face(model):
    late, silence = io.BytesIO(), np.zeros(round(1.5 * SAMPLE_RATE), np.float32)
    soundfile.write(late, np.concatenate([silence, noise(3)]), SAMPLE_RATE, format="WAV")
    page = Page(answer_voice(model, late, max_seconds=60))
    assert "The first second: no speech in it yet, so no face." in page.text
    assert page.picture("Face after: the first 3 seconds")


def test_the_slider_goes_from_one_voice_to_the_other(model, tmp_path):
    paths = [write_speech(tmp_path / f"{k}.wav", seed=k) for k in (0, 1)]
    told: list[Any] = []
    how = {"max_seconds": 9, "progress": lambda *what: told.append(what)}
    page = Page(answer_voices(model, *map(opened, paths), **how))
    for path, name in zip(paths, ("first", "second"), strict=True):
        end = pixels(page.picture(f"Face of the {name} voice"))
        assert np.array_equal(end, pixels(model.generate(path).encoded()))
    (slider,) = re.findall(r"<input (.*?)>", page.html, re.DOTALL)
    for setting in ('min="0"', f'max="{STEPS - 1}"', 'value="0"', 'text="the first voice"'):
        assert setting in slider
    moving = [tag["data-place"] for tag in page.pictures.values() if "data-place" in tag]
    assert moving[:2] == ["the first voice", "5 % of the way to the second voice"]
    assert len(moving) == STEPS == page.html.count(" hidden>") + 1
    assert told and all(done < total and what for done, total, what in told)
    with pytest.raises(AudioError, match="The second voice: "):
        answer_voices(model, opened(paths[0]), io.BytesIO(b"nothing"), max_seconds=9)


def test_a_photo_is_drawn_again(model, tmp_path):
    photo = write_photo(tmp_path / "a.png")
    page = Page(answer_photo(model, opened(photo), detector=None))
    face = model.reconstruct(photo, align=False)
    assert page.picture("Face drawn from the photo") == face.encoded()
    own = pixels(page.picture("The photo, framed"))
    assert np.abs(pixels(photo.read_bytes()) - own).mean() < 4  # it is a WebP


@pytest.mark.parametrize("detector", [None, "dlib"])
def test_a_phone_photo_is_drawn_as_it_stands_upright(model, tmp_path, monkeypatch, detector):
    """EXIF's eight orientations, with a finder in whose place a face is all of the photo."""
    whole = np.float32([[0, 0], [223, 223]] * 34)
    whole[36:42], whole[42:48] = (82.5, 104.8), (142.5, 104.8)  # about where eyes are framed
    face = FoundFace(np.float32([0, 0, 224, 224]), whole)
    monkeypatch.setattr(face_detection, "load_detector", lambda *_: lambda photos: [[face]])
    x, y = np.meshgrid(np.arange(224), np.arange(224))
    upright = Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))
    answers = []
    for path in write_turned(tmp_path, upright).values():
        page = Page(answer_photo(model, opened(path), detector=detector))
        assert np.abs(pixels(page.picture("The photo, framed")) - upright).mean() < 4
        answers.append(page.picture("Face drawn from the photo"))
    assert len(set(answers)) == 1


def test_what_is_no_photo_or_of_too_many_pixels_is_refused(model):
    bomb = io.BytesIO()
    Image.new("1", (8000, 8000)).save(bomb, "PNG")
    with pytest.raises(ImageError, match="8000 x 8000 pixels; at most 50 mega"):
        answer_photo(model, bomb, detector="dlib")
    for content in (b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(99)):
        with pytest.raises(ImageError, match="the photo: "):
            answer_photo(model, io.BytesIO(content), detector=None)


def test_what_decodes_ends_where_nothing_is_served(model, monkeypatch):
    decode = mock.Mock(side_effect=lambda function, *item: function(*item))
    monkeypatch.setattr(app, "_decode", decode)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model, "reconstruct", mock.Mock(side_effect=KeyboardInterrupt))
        app.warm(model, Settings())
    assert decode.close.call_count == 1
    app.warm(model, Settings(align=False))
    assert decode.close.call_count == 1
    refused = mock.Mock(side_effect=OutputError("no folder can be made"))
    monkeypatch.setattr(app.app_server, "serve", refused)
    with pytest.raises(OutputError), app.serving(model, Settings()):
        pass
    assert decode.close.call_count == 2


def test_the_page_is_warmed_up_with_every_answer(model, monkeypatch):
    asked: list[dict[str, Any]] = []

    def reconstruct(photo: Image.Image, **framing: Any) -> None:
        asked.append(framing)
        if framing.get("align", True):
            raise ImageError("no face")

    monkeypatch.setattr(model, "reconstruct", reconstruct)
    for detector in ("dlib", "face-alignment"):
        app.warm(model, Settings(detector=detector))
    assert asked == [{"align": False}, {"detector": "dlib"}, {"align": False}]
    for installed in ("dlib", None):  # faces are looked for with what is there
        monkeypatch.setattr(app, "installed_detector", lambda name=installed: name)
        assert app.finder(Settings()) == installed
        assert app.finder(Settings(detector="face-alignment")) == "face-alignment"
        assert app.finder(Settings(align=False)) is None


def test_a_card_is_escaped_and_the_same_words_are_said_once(model):
    checkpoints = dict(model.model.checkpoints)
    (only,) = re.findall("<h3>(.*?)</h3>", app.show_cards(checkpoints))
    assert only.startswith("The network that listens and the network that looks")
    own = checkpoints["voice_encoder"]
    strange = Card("x", limits="<script>alert(1)</script>")
    checkpoints["voice_encoder"] = Checkpoint(**{**vars(own), "card": strange})
    html = app.show_cards(checkpoints)
    assert len(re.findall("<h3>", html)) == 2
    assert "<script>" not in html and "alert(1)" in html


@pytest.mark.parametrize(
    ("error", "said", "logged"),
    [
        (None, "sound", ""),
        (AudioError("it is <b>", hint="send it again"), "It is &lt;b&gt;. Send it again.", ""),
        (ZeroDivisionError("division"), "Something went wrong here", "ZeroDivisionError"),
    ],
)
def test_the_file_is_gone_before_any_answer(tmp_path, monkeypatch, caplog, error, said, logged):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    path = tmp_path / "a.wav"
    path.write_bytes(b"sound")
    told: list[Any] = []

    def answer(sent: BinaryIO, *, progress: Progress) -> str:
        assert not path.exists()
        progress(0, 2, "listening")
        if error:
            raise error
        return sent.read().decode()

    with caplog.at_level(logging.ERROR):
        html = app.reply([str(path)], answer, lambda share, desc: told.append((share, desc)))
    assert not path.exists() and told == [((0, 2), "listening")]
    assert said in html and "division" not in html and "<b>" not in html
    assert ('role="alert"' in html) == bool(error)
    assert logged in caplog.text and bool(logged) == bool(caplog.records)
