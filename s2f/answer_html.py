"""Answers in HTML: pictures that lie in the page itself, each with words for who cannot see it.

No file is written for a picture, and none has to be deleted. What strangers wrote is escaped.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from s2f.answers import Heard, Seen
from s2f.errors import S2FError
from s2f.face import Face
from s2f.images import encode

if TYPE_CHECKING:
    from s2f.checkpoint import Checkpoint

MIME = {".png": "image/png", ".webp": "image/webp"}
IMPRESSION = (
    "A face here is an average impression of such a voice, never a likeness of the speaker."
)
NETWORKS = {
    "voice_encoder": "the network that listens",
    "face_encoder": "the network that looks at photos",
    "face_decoder": "the network that draws",
}
FIELDS = {
    "description": "What it is",
    "data": "What it learned from",
    "limits": "What it knows, and what it does not",
    "licence": "Licence",
}
_SLIDE = (  # what moves the slider shows another of the pictures beside it
    "const box=this.closest('.s2f-between');const all=box.querySelectorAll('img');"
    "all.forEach((picture,k)=>{picture.hidden=k!=this.value});"
    "this.setAttribute('aria-valuetext',all[this.value].dataset.place);"
    "box.querySelector('output').textContent=all[this.value].dataset.place"
)


def heard(answer: Heard, max_seconds: float) -> str:
    """Show what a recording gave.

    Args:
        answer: to show.
        max_seconds: that are heard of a recording at most.
    """
    seconds = _seconds(answer.seconds)
    listened = f"The model heard {seconds} of speech."
    if answer.is_cut:  # what people expect of a long recording, once they are told
        listened = f"Only the first {max_seconds:g} seconds of the recording were heard."
    shorter = ""
    if answer.seconds < answer.clip_seconds:
        shorter = (
            f" It is shorter than the {answer.clip_seconds:g} seconds that the model listens to "
            "at once, so it was heard again and again until those were full."
        )
    face = answer.face
    overlay = _url(face.encoded(overlay=True), ".png")
    pictures = [
        _figure(_face(face), "Face that the voice suggests", "The face", "s2f-face"),
        _figure(overlay, "The same face with its 68 landmarks drawn on it", "Its landmarks"),
    ]
    rows = [
        f'<p role="status">{listened}{shorter} {IMPRESSION}</p>',
        _row(pictures),
        f'<p><a href="{_face(face)}" download="face.png">Save the face as a picture</a></p>',
        "<h2>What the model heard</h2>",
        _figure(
            _url(encode(answer.sound, ".png", {}), ".png"),
            f"Spectrogram of the speech, {seconds} long: time to the right, pitch upwards, "
            "light where it is loud",
            "Time goes to the right, pitch upwards; what is light is loud.",
            "s2f-sound",
        ),
        "<h2>The more it hears</h2>",
        "<p>The face after the beginning of the recording alone, and after all that was heard.</p>",
    ]
    steps = []
    for moment, beginning in answer.beginnings:
        first = "The first second" if moment == 1 else f"The first {moment:g} seconds"
        if beginning is None:
            steps.append(f"<p>{first}: no speech in it yet, so no face.</p>")
        else:
            steps.append(_figure(_face(beginning), f"Face after: {first.lower()}", first))
    steps.append(_figure(_face(face), f"Face after all {seconds}", f"All {seconds}"))
    return _answer([*rows, _row(steps)])


def seen(answer: Seen) -> str:
    """Show what a photo gave."""
    photo = answer.photo.copy()
    photo.thumbnail((448, 448))
    pictures = [
        _figure(_url(encode(photo, ".webp", {}), ".webp"), "The photo, framed", "Your photo"),
        _figure(_face(answer.face), "Face drawn from the photo", "Drawn again", "s2f-face"),
    ]
    rows = [
        '<p role="status">The photo became a row of numbers, and the face was drawn from these '
        "numbers alone. What is lost on the way is what the model does not know.</p>",
        _row(pictures),
        f'<p><a href="{_face(answer.face)}" download="face.png">Save the face as a picture</a></p>',
    ]
    return _answer(rows)


def between(faces: Sequence[Face]) -> str:
    """Show the faces from one voice to the other, with a slider; the first is seen first."""
    last, pictures = len(faces) - 1, []
    for k, face in enumerate(faces):
        place = f"{100 * k / last:.0f} % of the way to the second voice"
        place = {0: "the first voice", last: "the second voice"}.get(k, place)
        pictures.append(
            f'<img src="{_url(face.encoded(".webp"), ".webp")}" width="224" height="224" '
            f'alt="Face: {place}" data-place="{place}"{" hidden" if k else ""}>'
        )
    ends = [
        _figure(_face(face), f"Face of the {name} voice", f"The {name} voice")
        for name, face in (("first", faces[0]), ("second", faces[-1]))
    ]
    slider = (
        f'<figure class="s2f-between">{"".join(pictures)}<figcaption>'
        f'<label>From the first voice to the second <input type="range" min="0" max="{last}" '
        f'value="0" step="1" aria-valuetext="the first voice" oninput="{_SLIDE}"></label>'
        "<output>the first voice</output></figcaption></figure>"
    )
    said = f'<p role="status">Move the slider from one face to the other. {IMPRESSION}</p>'
    return _answer([said, _row([ends[0], slider, ends[1]])])


def refusal(error: S2FError) -> str:
    """Say what went wrong, and the cure."""
    sentences = [_sentence(error.message), *([_sentence(error.hint)] if error.hint else [])]
    return f'<div class="s2f-error" role="alert"><p>{escape(" ".join(sentences))}</p></div>'


def card(checkpoints: "Mapping[str, Checkpoint]") -> str:
    """Show what the networks of a model say of themselves; those that say the same, together."""
    said: dict[str, list[str]] = {}
    for kind, title in NETWORKS.items():
        if kind in checkpoints:
            own = checkpoints[kind].card
            rows = ((name, getattr(own, field)) for field, name in FIELDS.items())
            inside = "".join(
                f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in rows if text
            )
            said.setdefault(inside, []).append(title)
    titles = {inside: " and ".join(parts).capitalize() for inside, parts in said.items()}
    return _answer([f"<h3>{title}</h3><dl>{inside}</dl>" for inside, title in titles.items()])


def _face(face: Face) -> str:
    """Give the address of a face: of the very bytes that `s2f generate` writes of it."""
    return _url(face.encoded(), ".png")


def _url(content: bytes, suffix: str) -> str:
    return f"data:{MIME[suffix]};base64,{base64.b64encode(content).decode()}"


def _figure(url: str, alt: str, caption: str, name: str = "") -> str:
    look = f' class="{name}"' if name else ""
    return f'<figure{look}><img src="{url}" alt="{alt}"><figcaption>{caption}</figcaption></figure>'


def _row(parts: Sequence[str]) -> str:
    return f'<div class="s2f-row">{"".join(parts)}</div>'


def _answer(parts: Sequence[str]) -> str:
    return f'<div class="s2f-answer" lang="en">{"".join(parts)}</div>'


def _seconds(seconds: float) -> str:
    number = f"{seconds:.1f}".removesuffix(".0")
    return "1 second" if number == "1" else f"{number} seconds"


def _sentence(text: str) -> str:
    """Make a message of ours a sentence: a capital, and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
