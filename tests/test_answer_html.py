"""Answers in HTML: every picture has words, and what strangers wrote is escaped."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from s2f import SpeechToFace, app
from s2f.app import STEPS, Heard, Seen, hear_between, hear_voice
from s2f.checkpoint import Card, Checkpoint
from s2f.errors import AudioError
from s2f.pipeline import Face

pytestmark = pytest.mark.usefixtures("bundled")


class Page(HTMLParser):
    """The elements of a page: name, attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


@pytest.fixture
def face(speech: Path) -> Face:
    return SpeechToFace.load(device="cpu").generate(speech)


def heard(face: Face, **changes: object) -> Heard:
    sound = Image.new("RGB", (9, 9))
    facts = {"beginnings": ((1.0, face), (3.0, None)), "seconds": 4.0, "clip_seconds": 6.0}
    return Heard(face=face, sound=sound, **{**facts, "is_cut": False, **changes})


def test_every_picture_has_words_and_lies_in_the_page(face: Face) -> None:
    answers = [
        app.heard_html(heard(face), 60),
        app.seen_html(Seen(Image.new("RGB", (900, 600)), face)),
        app.between_html([face, face, face]),
    ]
    for answer in answers:
        pictures = Page(answer).named("img")
        assert pictures
        for picture in pictures:
            assert picture["alt"]
            assert (picture["src"] or "").startswith("data:image/")
        assert answer.count("http") == 0


def test_the_picture_is_the_very_file_that_generate_writes(face: Face) -> None:
    (first, *_) = Page(app.heard_html(heard(face), 60)).named("img")
    content = base64.b64decode((first["src"] or "").removeprefix("data:image/png;base64,"))
    assert content == face.encoded()


def test_what_was_heard_is_said(face: Face) -> None:
    said = Page(app.heard_html(heard(face), 60)).text
    assert "The model heard 4 seconds of speech." in said
    assert "shorter than the 6 seconds" in said
    assert "The first 3 seconds: no speech in it yet" in said
    assert "never a likeness" in said
    cut = Page(app.heard_html(heard(face, seconds=60.0, is_cut=True), 60)).text
    assert "Only the first 60 seconds of the recording were heard." in cut
    assert "shorter than" not in cut


def test_one_second_is_no_plural(face: Face) -> None:
    assert "heard 1 second of" in app.heard_html(heard(face, seconds=1.0), 60)


def test_the_slider_tells_where_it_is(model_faces: list[Face]) -> None:
    page = Page(app.between_html(model_faces))
    (slider,) = page.named("input")
    assert (slider["min"], slider["max"], slider["value"]) == ("0", str(STEPS - 1), "0")
    assert slider["aria-valuetext"] == "the first voice"
    moving = [picture for picture in page.named("img") if "data-place" in picture]
    assert len(moving) == STEPS
    assert [picture["alt"] for picture in moving if "hidden" not in picture] == [
        "Face: the first voice"
    ]


@pytest.fixture
def model_faces(speech: Path) -> list[Face]:
    model = SpeechToFace.load(device="cpu")
    with speech.open("rb") as first, speech.open("rb") as second:
        hear_voice(model, first, max_seconds=9)
        return hear_between(model, first, second, max_seconds=9)


def test_a_refusal_is_sentences_that_are_read_out() -> None:
    html = app.refusal(AudioError("the recording is <b>", hint="record it again"))
    page = Page(html)
    assert page.named("div")[0]["role"] == "alert"
    assert page.text == "The recording is <b>. Record it again."
    assert page.named("b") == []


def test_a_card_is_escaped_and_the_same_words_are_said_once(bundled: Path) -> None:
    checkpoints = dict(SpeechToFace.load(device="cpu").model.checkpoints)
    (only,) = re.findall("<h3>(.*?)</h3>", app.card_html(checkpoints))
    assert only.startswith("The network that listens and the network that looks")
    own = checkpoints["voice_encoder"]
    strange = Card("x", limits="<script>alert(1)</script>")
    checkpoints["voice_encoder"] = Checkpoint(**{**vars(own), "card": strange})
    html = app.card_html(checkpoints)
    assert len(re.findall("<h3>", html)) == 2
    assert "<script>" not in html
    assert "alert(1)" in html
