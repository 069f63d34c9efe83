"""What a visitor of the page is answered: from the bytes of a recording or a photo to faces.

Knows nothing of the page: takes streams, gives faces and what there is to say about them. Nothing
is kept between two answers.

Answers in HTML: pictures that lie in the page itself, each with words for who cannot see it.

No file is written for a picture, and none has to be deleted. What strangers wrote is escaped.

The web page: its words, its layout, and what its buttons do.

What a visitor sends becomes an answer in `answers`, which `answer_html` shows; what may be sent,
and when it is deleted, is for `visits`. Where the page lives is for `hosting`.

Where the web page lives: an address and a port, a folder for what is sent, a warm model.

What is on the page is for `app`; what may be sent, and when it is deleted, for `visits`.
"""

import base64
import contextlib
import contextvars
import dataclasses
import errno
import importlib.util
import io
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from s2f import app_server
from s2f.audio import SAMPLE_RATE, read_speech
from s2f.console import Progress, silent
from s2f.errors import (
    AudioError,
    DependencyError,
    DeviceError,
    ImageError,
    InputError,
    S2FError,
    UsageError,
)
from s2f.face_detection import SIDE, choose_detector, cut_face
from s2f.images import FRAME, encode, open_photo
from s2f.pipeline import Face, SpeechToFace
from s2f.spectrogram import spectrogram
from s2f.visualize import draw_spectrogram

if TYPE_CHECKING:
    import gradio as gr

    from s2f.checkpoint import Checkpoint


MOMENTS = (1.0, 3.0, 6.0)  # seconds from the beginning, whose faces stand beside that of all
MOST_PIXELS = 50_000_000  # of a photo: a small file may unfold to very many
STEPS = 21  # faces from one voice to the other, both among them


@dataclass(frozen=True)
class Heard:
    """What a recording gave.

    Attributes:
        face: that all of it suggests, as far as it was heard.
        beginnings: seconds from the beginning and the face that they suggest, for each of
            `MOMENTS` that is shorter than the recording; None where they hold no speech.
        sound: the spectrogram that the model heard, drawn.
        seconds: that were heard.
        clip_seconds: of a clip, that shorter speech is repeated to fill.
        is_cut: whether the recording goes on after what was heard.
    """

    face: Face
    beginnings: tuple[tuple[float, Face | None], ...]
    sound: Image.Image
    seconds: float
    clip_seconds: float
    is_cut: bool


@dataclass(frozen=True)
class Seen:
    """What a photo gave.

    Attributes:
        photo: RGB, as the model saw it.
        face: that was drawn from it.
    """

    photo: Image.Image
    face: Face


def hear_voice(
    model: SpeechToFace,
    speech: BinaryIO,
    *,
    max_seconds: float,
    progress: Progress = silent,
) -> Heard:
    """Draw the face that a recording suggests, and those that its beginning does.

    Args:
        model: with a voice encoder and a face decoder.
        speech: a seekable stream of any recording.
        max_seconds: that are heard; what comes after them is not even decoded.
        progress: told of each face.

    Raises:
        AudioError: as `SpeechToFace.generate`.
    """
    progress(0, len(MOMENTS) + 2, "listening")
    # A frame of 10 ms more tells whether it goes on.
    whole = read_speech(speech, duration=max_seconds + 0.01).waveform()
    limit = round(max_seconds * SAMPLE_RATE)
    waveform, is_cut = whole[:limit], len(whole) > limit
    seconds = len(waveform) / SAMPLE_RATE
    front_end = model.front_end
    shown = np.resize(waveform, max(len(waveform), front_end.clip_samples))  # repeats
    columns = spectrogram(torch.from_numpy(shown)[None], front_end)[0].numpy()
    sound = draw_spectrogram(columns[:, :, : front_end.n_frames(len(waveform))], front_end)
    progress(1, len(MOMENTS) + 2, "drawing the face")
    face = model.generate(speech, duration=max_seconds)
    beginnings: list[tuple[float, Face | None]] = []
    for k, moment in enumerate(MOMENTS):
        progress(k + 2, len(MOMENTS) + 2, f"drawing the face of the first {moment:g} s")
        if moment < seconds:
            beginnings.append((moment, _beginning(model, speech, moment)))
    clip_seconds = front_end.clip_samples / SAMPLE_RATE
    return Heard(face, tuple(beginnings), sound, seconds, clip_seconds, is_cut)


def _beginning(model: SpeechToFace, speech: BinaryIO, seconds: float) -> Face | None:
    """Draw the face of a beginning, unless it is silent: the recording as a whole is not."""
    try:
        return model.generate(speech, duration=seconds)
    except AudioError:
        return None


def look_at_photo(
    model: SpeechToFace, photo: BinaryIO, *, align: bool = True, detector: str | None = None
) -> Seen:
    """Draw the face of a photo from its embedding.

    Photos of more than 2048 pixels a side are made smaller before a face is looked for, and those
    of more than 50 million refused: a visitor's photo must not keep all others waiting.

    Args:
        model: with a face encoder and a face decoder.
        photo: a seekable stream of a picture.
        align: whether its face is found and framed; otherwise the photo is framed already.
        detector: that finds it; by default the one that is installed.

    Raises:
        ImageError: as `SpeechToFace.reconstruct`, or if it has too many pixels.
        DependencyError: as `SpeechToFace.reconstruct`.
    """
    with contextlib.suppress(OSError, SyntaxError, ValueError), Image.open(photo) as opened:
        if opened.width * opened.height > MOST_PIXELS:
            raise ImageError(
                f"the photo has {opened.width} x {opened.height} pixels; at most "
                f"{MOST_PIXELS // 10**6} million are looked at",
                hint="send a smaller one",
            )
    photo.seek(0)
    framed = open_photo(photo, enough=SIDE if align else FRAME)
    if align:
        chosen = choose_detector(detector)
        framed.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
        framed = cut_face(framed, detector=chosen, device=str(model.device), name="the photo")
    return Seen(framed, model.reconstruct(framed, align=False))


def hear_between(
    model: SpeechToFace,
    first: BinaryIO,
    second: BinaryIO,
    *,
    max_seconds: float,
    progress: Progress = silent,
) -> list[Face]:
    """Draw the faces from that of one voice to that of another, in `STEPS` even steps.

    Args:
        model: with a voice encoder and a face decoder.
        first: a seekable stream of a recording.
        second: likewise.
        max_seconds: that are heard of each.
        progress: told of each recording and each face.

    Raises:
        AudioError: as `SpeechToFace.generate`, with `first:` or `second:` before it.
    """
    voices = []
    for k, (name, speech) in enumerate((("first", first), ("second", second))):
        progress(k, STEPS + 2, f"listening to the {name} voice")
        try:
            voices.append(model.embed_voice(speech, duration=max_seconds))
        except AudioError as error:
            raise AudioError(f"The {name} voice: {error.message}", hint=error.hint) from error
    faces = []
    for k, face in enumerate(model.morph(voices[0], voices[1], STEPS)):
        progress(k + 2, STEPS + 2, "drawing the faces between them")
        faces.append(face)
    return faces


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


def heard_html(answer: Heard, max_seconds: float) -> str:
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


def seen_html(answer: Seen) -> str:
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


def between_html(faces: Sequence[Face]) -> str:
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


def card_html(checkpoints: "Mapping[str, Checkpoint]") -> str:
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


# Torch and the C library keep memory for every thread that has ever computed something.
_ONE_THREAD = ThreadPoolExecutor(1)
Answer = Callable[[list[BinaryIO], Progress], str]
TITLE = "The face behind a voice"
WAITING = 32  # visitors in the queue, beside the one who is answered
INTRODUCTION = """# The face behind a voice

Say a few sentences, or give a recording, and see the face that such a voice suggests to a
computer model. It is an **average impression**: it is never a likeness of the speaker, and it must
not be used to identify, profile or judge anyone.

"""
LIMITS = """A recording may have up to {max_mb:g} MB, and its first {max_seconds:g} seconds are
heard; a photo may have up to {max_mb:g} MB. **Nothing that you send is kept**: it is deleted before
the answer is drawn, or after ten minutes if you never ask for one. The pictures are in this page
alone.
"""
VOICE = """Record at least a second, better six or more; or switch to the upload below the field,
and drop a sound file. Then press the button.
"""
PHOTO = """A photo of one face that looks at the camera. The model turns it into a row of numbers,
and draws a face from these numbers alone: the best that it can draw of anyone. {detector}
"""
FINDS = "The largest face is found and framed."
FINDS_NOT = """No face is looked for here, so the photo has to be framed already: a square, with the
face in its middle.
"""
VOICES = "Two voices, two faces, and the faces on the way from the one to the other."
CARD = """## What this is, and what it does not know

A voice carries something of age, sex and build, and nothing of most of what makes a face. The model
has learned which faces go with which voices *on average*, from the recordings and photos that are
named below, and it repeats that average, with all that is one-sided in it. Two people with similar
voices get similar faces, whoever they are. What it was never shown it does not know, and it does
not say so: any sound gives a face.

What the networks of the model `{name}` say of themselves:
"""
STYLE = """
.gradio-container {max-width: 60rem !important; margin: 0 auto !important}
.s2f-answer {overflow-wrap: anywhere; line-height: 1.5}
.s2f-answer, .s2f-answer :is(p, h2, h3, dt, dd, figcaption, label, output), .s2f-error p
  {color: var(--body-text-color) !important}
.s2f-answer :is(p, h2, h3) {margin: .75rem 0}
.s2f-answer :is(h2, h3, dt) {font-weight: 600; font-size: 1rem}
.s2f-answer dd {margin: 0 0 .5rem 1rem}
.s2f-answer a {color: var(--body-text-color); text-decoration: underline}
.s2f-row {display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start}
.s2f-answer figure {margin: 0; flex: 0 1 9.5rem; min-width: 0; max-width: 100%}
.s2f-answer figure:is(.s2f-face, .s2f-face + figure, .s2f-between) {flex-basis: 14rem}
.s2f-answer figure.s2f-sound {max-width: 30rem}
.s2f-answer figure img {width: 100%; height: auto; border-radius: .25rem; display: block}
.s2f-answer figure img[hidden] {display: none}
.s2f-answer label, .s2f-answer input[type=range], .s2f-answer output {display: block; width: 100%}
.s2f-error {border: 2px solid #b3261e; border-radius: .5rem; padding: .5rem 1rem}
.s2f-answer a:focus-visible, .s2f-answer input:focus-visible, button:focus-visible,
[role=tab]:focus-visible, summary:focus-visible, input:focus-visible
  {outline: 3px solid #2563eb !important; outline-offset: 2px}
.dark :focus-visible {outline-color: #93c5fd !important}
.dark [role=tab][aria-selected=true] {color: #93c5fd !important}
.source-selection {height: auto !important; flex-wrap: wrap; padding: .25rem; gap: .5rem}
.source-selection button {width: max-content !important; display: flex; align-items: center;
  gap: .4rem; padding: 0 .4rem; color: var(--body-text-color) !important}
.source-selection button::after {content: attr(aria-label); white-space: nowrap}
.source-selection button svg {flex: none; width: 1.1rem; height: 1.1rem}
.s2f-tables {overflow-x: auto}
"""
HEAD = """<script>
// What browsers do to speech so that people understand it better, the model was not trained with.
const devices = navigator.mediaDevices;
if (devices) {  // which is there on this machine itself, and over https
  const ask = devices.getUserMedia.bind(devices);
  const plain = {echoCancellation: false, noiseSuppression: false, autoGainControl: false};
  devices.getUserMedia = wanted => ask(wanted && wanted.audio
    ? {...wanted, audio: {...(wanted.audio === true ? {} : wanted.audio), ...plain}} : wanted);
}
</script>"""
THEME = {  # of the base theme what is not dark enough on light, or light enough on dark
    "button_primary_background_fill": "*primary_700",
    "button_primary_background_fill_hover": "*primary_800",
    "button_primary_background_fill_dark": "*primary_700",
    "button_primary_background_fill_hover_dark": "*primary_800",
    "color_accent": "*primary_700",
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_300",
    "block_label_text_color": "*neutral_700",
    "block_label_text_color_dark": "*neutral_200",
}


def theme() -> "gr.themes.Base":
    """Choose the colours, and letters that every machine has."""
    import gradio as gr

    base = gr.themes.Base(
        primary_hue="blue",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    base.set(**THEME)
    return base


def build_page(
    model: "SpeechToFace",
    *,
    max_mb: float,
    max_seconds: float,
    detector: str | None,
    evaluation: str | None = None,
) -> "gr.Blocks":
    """Lay the page out.

    Args:
        model: with all three networks.
        max_mb: of a file that is sent.
        max_seconds: that are heard of a recording.
        detector: of faces in photos; without one they have to be framed already.
        evaluation: of the model, Markdown.
    """
    import gradio as gr

    def hear(sent: list[BinaryIO], progress: Progress) -> str:
        heard = hear_voice(model, sent[0], max_seconds=max_seconds, progress=progress)
        return heard_html(heard, max_seconds)

    def between(sent: list[BinaryIO], progress: Progress) -> str:
        faces = hear_between(model, *sent, max_seconds=max_seconds, progress=progress)
        return between_html(faces)

    def look(sent: list[BinaryIO], progress: Progress) -> str:
        progress(0, 1, "drawing")
        seen = look_at_photo(model, sent[0], align=detector is not None, detector=detector)
        return seen_html(seen)

    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION + LIMITS.format(max_mb=max_mb, max_seconds=max_seconds))
        with gr.Tab("A voice"):
            gr.Markdown(VOICE)
            _add("Show the face", [_sound("A voice")], "voice", hear)
        with gr.Tab("Two voices"):
            gr.Markdown(VOICES)
            with gr.Row():
                voices = [_sound(f"The {name} voice") for name in ("first", "second")]
            _add("Show both faces", voices, "voices", between)
        with gr.Tab("A photo"):
            gr.Markdown(PHOTO.format(detector=FINDS if detector else FINDS_NOT))
            photo = gr.Image(label="A photo", type="filepath", sources=["upload", "webcam"])
            app_server.hand_over(photo)
            _add("Draw the face again", [photo], "photo", look)
        gr.Markdown(CARD.format(name=model.model.name))
        gr.HTML(card_html(model.model.checkpoints))
        if evaluation:
            with gr.Accordion("How it was measured, and how well it does", open=False):
                gr.Markdown(evaluation, elem_classes="s2f-tables")
    page.queue(max_size=WAITING, api_open=False)  # by the queue, or not at all
    laid_out: gr.Blocks = page
    return laid_out


def _sound(label: str) -> Any:
    import gradio as gr

    sound = gr.Audio(
        label=label,
        type="filepath",
        sources=["microphone", "upload"],
        editable=False,
        buttons=[],
    )
    app_server.hand_over(sound)
    return sound


def _add(label: str, inputs: list[Any], name: str, answer: Answer) -> None:
    """Add a button, and below it what it answers to what is in some components.

    These are emptied: what was in them is deleted.
    """
    import gradio as gr

    def answered(*paths: str | None, progress: Any = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
        if None in paths:
            nothing = InputError(
                "there is nothing to look at or to listen to yet",
                hint="record it, or choose a file, above",
            )
            return refusal(nothing), *(gr.skip() for _ in paths)
        context = contextvars.copy_context()  # by which Gradio knows whose progress it is
        html = _ONE_THREAD.submit(context.run, reply, paths, answer, progress).result()
        return html, *(None for _ in paths)

    button = gr.Button(label, variant="primary")
    shown = gr.HTML()
    button.click(
        answered,
        inputs,
        [shown, *inputs],
        api_name=name,
        scroll_to_output=True,
        show_progress_on=shown,
        concurrency_id="model",
        concurrency_limit=1,
    )


def reply(paths: Any, answer: Answer, progress: Callable[..., object]) -> str:
    """Answer to what a visitor sent, whatever it is: with sentences, if it cannot be used.

    Args:
        paths: of what was sent; it is deleted.
        answer: makes the answer of it.
        progress: Gradio's, called with what is done of what, and what happens now.
    """

    def tell(done: int, total: int, what: str) -> None:
        progress((done, total), desc=what)

    try:
        return answer(app_server.take(*paths), tell)
    except S2FError as error:
        return refusal(error)
    except Exception:
        logging.getLogger(__name__).exception("an answer failed")
        sorry = S2FError(
            "something went wrong here, and it is not your fault",
            hint="try another recording or photo",
        )
        return refusal(sorry)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where the page is served, and what a visitor may send.

    Attributes:
        host: address that is listened at.
        port: there; 0 for one that is free.
        share: whether Gradio's servers give it a public address too.
        max_mb: of a file.
        max_seconds: that are heard of a recording.
        align: whether faces are found in photos, and framed.
        detector: that finds them; by default the one that is installed.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False
    max_mb: float = app_server.MAX_MB
    max_seconds: float = app_server.MAX_SECONDS
    align: bool = True
    detector: str | None = None

    @property
    def finder(self) -> str | None:
        """The detector of faces in photos; None if they have to be framed already."""
        from s2f.face_detection import installed_detector

        return (self.detector or installed_detector()) if self.align else None


def check_settings(settings: Settings) -> Settings:
    """Make sure that the page can be served, before anything slow is done; choose a port for 0.

    Raises:
        DependencyError: if Gradio is not installed.
        UsageError: if nothing can listen there.
    """
    if importlib.util.find_spec("gradio") is None:
        raise DependencyError(
            "the page needs the package gradio, which is not installed",
            hint="pip install 's2f[app]'",
        )
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            trial.listen(1)
            found = int(trial.getsockname()[1])
    except OSError as error:
        place, hint = f"port {port} of {host}", "choose another with --port, or --port 0"
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"{place} is taken by another program", hint=hint) from error
        if error.errno == errno.EACCES:
            raise UsageError(f"{place} may not be used", hint=f"{hint}, 1024 or more") from error
        raise UsageError(
            f"{host} is no address of this machine ({error.strerror or error})",
            hint="--host 127.0.0.1 is for this machine alone, --host 0.0.0.0 for the whole network",
        ) from error
    return dataclasses.replace(settings, port=found)


def warm(model: "SpeechToFace", settings: Settings) -> None:
    """Answer once to nobody, so that the first visitor does not wait for what is made only once."""
    import numpy as np
    import soundfile
    from PIL import Image

    from s2f.audio import SAMPLE_RATE

    longest = settings.max_seconds
    rng = np.random.default_rng(0)
    sound = io.BytesIO()
    soundfile.write(sound, 0.1 * rng.standard_normal(SAMPLE_RATE), SAMPLE_RATE, format="WAV")
    heard_html(hear_voice(model, sound, max_seconds=longest), longest)
    blank = Image.new("RGB", (224, 224), "grey")
    model.reconstruct(blank, align=False)
    if settings.finder == "dlib":  # the other one may want a network
        with contextlib.suppress(ImageError):  # there is no face
            model.reconstruct(blank, detector="dlib")


@contextlib.contextmanager
def serving(
    model: "SpeechToFace", settings: Settings, evaluation: str | None = None
) -> Iterator[tuple[str, str | None]]:
    """Serve the page for as long as the context lasts.

    Args:
        model: with all three networks.
        settings: that `check` gave back.
        evaluation: of the model, Markdown.

    Yields:
        The address of the page, and its public one if it is shared.

    Raises:
        OutputError: as `app_server.private_folder`.
        DeviceError: if the page cannot be shared.
    """
    with app_server.private_folder() as folder:
        # Gradio reads these when it is imported.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        for name in ("NO_PROXY", "no_proxy"):  # it asks its own address whether all is well
            known = os.environ.get(name, "")
            os.environ[name] = ",".join(
                filter(None, [known, "127.0.0.1", "localhost", settings.host])
            )
        from starlette.middleware import Middleware

        app_server.name_uploads_apart()
        app_server.forget_answers()
        page = build_page(
            model,
            max_mb=settings.max_mb,
            max_seconds=settings.max_seconds,
            detector=settings.finder,
            evaluation=evaluation,
        )
        max_bytes = round(settings.max_mb * 2**20)  # as Gradio counts
        guard = Middleware(
            app_server.Guard,
            max_bytes=2 * max_bytes,
            room=lambda: app_server.has_room(folder, app_server.TOGETHER * max_bytes),
        )
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # ours is for results
                page.launch(
                    server_name=settings.host,
                    server_port=settings.port,
                    share=settings.share,
                    prevent_thread_lock=True,
                    quiet=True,
                    footer_links=[],
                    run_history=False,
                    enable_monitoring=False,
                    mcp_server=False,
                    ssr_mode=False,
                    pwa=False,
                    state_session_capacity=app_server.SESSIONS,
                    max_file_size=max_bytes,
                    app_kwargs={"middleware": [guard]},
                    css=STYLE,
                    head=HEAD,
                    theme=theme(),
                )
            if settings.share and not page.share_url:
                raise DeviceError(
                    "no public link could be made: the servers of Gradio's cannot be reached",
                    hint="look at the network, or leave --share out",
                )
            yield str(page.local_url), page.share_url
        finally:
            if page.is_running:
                # Pages that are open would hold it for seconds; that they are cut off is no news.
                page.server.force_exit = True
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            page.close(verbose=False)
