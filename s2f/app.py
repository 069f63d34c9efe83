"""The web page: its words, its layout, and what its buttons answer.

What a visitor sends, a stream, becomes an answer in HTML (`answers.html.j2`; its looks are in
`app.css`), whose pictures lie in it: no file is written for one, and nothing is kept between two
answers. What may be sent, when it is deleted and where the page lives is for `app_server`.
"""

import base64
import contextlib
import contextvars
import functools
import gc
import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import jinja2
import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from PIL import Image

from s2f import app_server
from s2f.app_server import Settings
from s2f.audio import RECORDING_SUFFIXES, SAMPLE_RATE, Heard, hear_beginnings
from s2f.checkpoint import Checkpoint
from s2f.console import Progress, silent
from s2f.errors import AudioError, ImageError, InputError, S2FError, WorkerError
from s2f.face_detection import cut_face, installed_detector
from s2f.images import FRAME, encode, open_photo
from s2f.pipeline import SpeechToFace
from s2f.prep import Worker
from s2f.spectrogram import HOP_LENGTH, spectrogram
from s2f.visualize import draw_spectrogram

if TYPE_CHECKING:
    import gradio as gr

MOMENTS = (1.0, 3.0, 6.0)  # seconds from the beginning, whose faces stand beside that of all
MOST_PIXELS = 50_000_000  # of a photo: a small file may unfold to very many
STEPS = 21  # faces from one voice to the other, both among them
WAITING = 32  # visitors in the queue, beside the one who is answered
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

TITLE = "The face behind a voice"
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
and drop a sound file or a video. Then press the button.
"""
PHOTO = """A photo of one face that looks at the camera. The model turns it into a row of numbers,
and draws a face from these numbers alone: the best that it can draw of anyone. {detector}
"""
FINDS = "The largest face is found and framed."
FINDS_NOT = "It has to be framed already: a square, with the face in its middle."
VOICES = "Two voices, two faces, and the faces on the way from the one to the other."
CARD = """## What this is, and what it does not know

A voice carries something of age, sex and build, and nothing of most of what makes a face. The model
has learned which faces go with which voices *on average*, from the recordings and photos that are
named below, and it repeats that average, with all that is one-sided in it. Two people with similar
voices get similar faces, whoever they are. What it was never shown it does not know, and it does
not say so: any sound gives a face.

What the networks of the model `{name}` say of themselves:
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
// A double click is one question, and so is a key that is held.
const first = (name, handle) => document.addEventListener(name, handle, true);
first('click', press => {
  const button = press.target.closest('button.s2f-ask');
  if (!button) return;
  if (press.timeStamp - button.dataset.asked < 1000) press.stopImmediatePropagation();
  button.dataset.asked = press.timeStamp;
});
// What a browser calls video, or does not know, the fields would refuse by its name: the server
// listens to it.
const kind = field => field.accept.includes('audio/') ? 'audio' : 'image';
const known = (file, field) => file.type.startsWith(kind(field) + '/');
const renamed = (files, field) => {
  const carrier = new DataTransfer();
  for (const file of files) carrier.items.add(known(file, field) ? file
    : new File([file], file.name, {type: kind(field) + '/any'}));
  return carrier;
};
first('click', press => {
  if (press.target.matches('input[type=file]') && kind(press.target) == 'audio')
    press.target.accept = 'audio/*,video/*,SUFFIXES';
});
first('change', chosen => {
  const field = chosen.target;
  if (field.matches('input[type=file]')) field.files = renamed(field.files, field).files;
});
first('drop', dropped => {
  const field = dropped.target.closest('.upload-container')?.querySelector('input[type=file]');
  if (!field || [...dropped.dataTransfer.files].every(file => known(file, field))) return;
  dropped.preventDefault();
  dropped.stopImmediatePropagation();
  const dataTransfer = renamed(dropped.dataTransfer.files, field);
  dropped.target.dispatchEvent(new DragEvent('drop', {dataTransfer, bubbles: true}));
});
</script>""".replace("SUFFIXES", ",".join(sorted(RECORDING_SUFFIXES)))
FONTS, MONO = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # on every machine
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

# Torch and the C library keep memory for every thread that has ever computed something.
_ONE_THREAD = ThreadPoolExecutor(1)
# Decoders may crash or hang in what strangers send: of one process, which is not that of the page.
DECODING_SECONDS = 60.0
_decode = Worker(["s2f.audio", "s2f.images", "av", "soundfile", "soxr"], DECODING_SECONDS)
Answer = Callable[..., str]  # to what was sent, streams; it tells its progress


@contextlib.contextmanager
def serving(
    model: SpeechToFace, settings: Settings, evaluation: str | None = None
) -> Iterator[tuple[str, str | None]]:
    """Serve the page of a model with all networks, and Markdown on it, as `app_server.serve`."""

    def lay_out() -> "tuple[gr.Blocks, Mapping[str, Any]]":
        import gradio as gr

        page = _build_page(model, settings, evaluation)
        gc.freeze()  # what is there now stays: only what answers leave is looked through
        theme = gr.themes.Base(primary_hue="blue", font=FONTS, font_mono=MONO).set(**THEME)
        style = Path(__file__).with_name("app.css").read_text(encoding="utf-8")
        return page, {"css": style, "head": HEAD, "theme": theme}

    # Before the page, so that no answer is waited for; at the latest where there is none.
    decoding = contextlib.closing(_decode)
    with decoding, app_server.serve(lay_out, settings) as addresses, decoding:
        yield addresses


def warm(model: SpeechToFace, settings: Settings) -> None:
    """Answer once to nobody, so that the first visitor does not wait for what is made only once."""
    with contextlib.ExitStack() as stack:
        stack.callback(_decode.close)  # which the first answer starts
        sound = io.BytesIO()
        noise = 0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)
        soundfile.write(sound, noise, SAMPLE_RATE, format="WAV")
        answer_voice(model, sound, max_seconds=settings.max_seconds)
        blank = Image.new("RGB", (FRAME, FRAME), "grey")
        model.reconstruct(blank, align=False)
        if finder(settings) == "dlib":  # the other one may want a network
            with contextlib.suppress(ImageError):  # there is no face
                model.reconstruct(blank, detector="dlib")
        stack.pop_all()


def finder(settings: Settings) -> str | None:
    """Name the detector of faces in photos; None if they have to be framed already."""
    return (settings.detector or installed_detector()) if settings.align else None


def _build_page(model: SpeechToFace, settings: Settings, evaluation: str | None) -> "gr.Blocks":
    import gradio as gr

    detector, longest = finder(settings), settings.max_seconds
    voice = functools.partial(answer_voice, model, max_seconds=longest)
    voices = functools.partial(answer_voices, model, max_seconds=longest)
    photo = functools.partial(answer_photo, model, detector=detector)

    def sound(label: str) -> Any:
        sources: Any = ["microphone", "upload"]
        return gr.Audio(label=label, type="filepath", sources=sources, editable=False, buttons=[])

    page: gr.Blocks
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION + LIMITS.format(max_mb=settings.max_mb, max_seconds=longest))
        with gr.Tab("A voice"):
            gr.Markdown(VOICE)
            _add("Show the face", [sound("A voice")], "voice", voice)
        with gr.Tab("Two voices"):
            gr.Markdown(VOICES)
            with gr.Row():
                both = [sound(f"The {name} voice") for name in ("first", "second")]
            _add("Show both faces", both, "voices", voices)
        with gr.Tab("A photo"):
            gr.Markdown(PHOTO.format(detector=FINDS if detector else FINDS_NOT))
            picture = gr.Image(label="A photo", type="filepath", sources=["upload", "webcam"])
            _add("Draw the face again", [picture], "photo", photo)
        gr.Markdown(CARD.format(name=model.model.name))
        gr.HTML(show_cards(model.model.checkpoints))
        if evaluation:
            with gr.Accordion("How it was measured, and how well it does", open=False):
                gr.Markdown(evaluation, elem_classes="s2f-tables")
    page.queue(max_size=WAITING, api_open=False)  # by the queue, or not at all
    return page


def _add(label: str, inputs: list[Any], name: str, answer: Answer) -> None:
    """Add a button, and below it what it answers to what is in components, which are emptied."""
    import gradio as gr

    def answered(*paths: str | None, progress: Any = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
        if None in paths:
            hint = "record it, or choose a file, above"
            nothing = InputError("there is nothing to look at or to listen to yet", hint=hint)
            return refusal(nothing), *(gr.skip() for _ in paths)
        context = contextvars.copy_context()  # by which Gradio knows whose progress it is
        html = _ONE_THREAD.submit(context.run, reply, paths, answer, progress).result()
        return html, *(None for _ in paths)

    for component in inputs:
        app_server.hand_over(component)
    button, shown = gr.Button(label, variant="primary", elem_classes="s2f-ask"), gr.HTML()
    how: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_name": name}
    how |= {"scroll_to_output": True, "show_progress_on": shown}
    button.click(answered, inputs, [shown, *inputs], **how)


def reply(paths: Iterable[Any], answer: Answer, progress: Callable[..., object]) -> str:
    """Answer to what a visitor sent, whatever it is: with sentences, if it cannot be used.

    The files are deleted. Gradio's `progress` is told what is done of what, and what happens now.
    """

    def tell(done: int, total: int, what: str) -> None:
        progress((done, total), desc=what)

    try:
        return answer(*app_server.take(*paths), progress=tell)
    except WorkerError as error:  # its cure is for who prepares many files
        cure = "try again, or another recording or photo"
        return refusal(WorkerError(error.message, hint=cure))
    except S2FError as error:
        return refusal(error)
    except Exception:
        logging.getLogger(__name__).exception("an answer failed")
        sorry = "something went wrong here, and it is not your fault"
        return refusal(S2FError(sorry, hint="try another recording or photo"))
    finally:
        gc.collect()  # a drawing of matplotlib's holds itself, and would wait for many more


def refusal(error: S2FError) -> str:
    """Say what went wrong, and the cure: each a sentence, with a capital and a full stop."""
    said = [text for text in (error.message, error.hint) if text]
    return _html("refusal", text=" ".join(f"{s[:1].upper()}{s[1:].rstrip('.')}." for s in said))


def answer_voice(
    model: SpeechToFace, speech: BinaryIO, *, max_seconds: float, progress: Progress = silent
) -> str:
    """Show the face that a recording suggests, what was heard of it, and faces of its beginning.

    Of the seekable stream, what comes after `max_seconds` is not even decoded, and the rest once.
    Raises AudioError as `SpeechToFace.generate`, and WorkerError if a decoder crashes or hangs.
    """
    steps = len(MOMENTS) + 2
    progress(0, steps, "listening")
    # A frame of 10 ms more tells whether it goes on.
    longer, heard, *firsts = _listen(speech, max_seconds + 0.01, max_seconds, *MOMENTS)
    for found in (longer, heard):
        if isinstance(found, AudioError):
            raise found
    assert isinstance(longer, Heard) and isinstance(heard, Heard)
    waveform, front_end = heard.waveform, model.front_end
    shown = np.resize(waveform, max(len(waveform), front_end.clip_samples))  # repeats
    columns = spectrogram(torch.from_numpy(shown)[None], front_end)[0].numpy()
    last = min(front_end.n_frames(len(waveform)), 1 + len(waveform) // HOP_LENGTH)  # of the sound
    sound = draw_spectrogram(columns[:, :, :last], front_end)
    progress(1, steps, "drawing the face")
    face = model.generate(heard)
    pictures = {"face": _url(face.encoded()), "overlay": _url(face.encoded(overlay=True))}
    pictures["sound"] = _url(encode(sound, ".png", {}))
    beginnings = []
    for k, (moment, first) in enumerate(zip(MOMENTS, firsts, strict=True)):
        progress(k + 2, steps, f"drawing the face of the first {moment:g} s")
        if moment < min(longer.seconds, max_seconds):
            name = f"beginning{k}"
            if not isinstance(first, AudioError):  # it is silent: the whole is not
                pictures[name] = _url(model.generate(first).encoded())
            beginnings.append((moment, name if name in pictures else None))
    return _html(
        "voice",
        pictures,
        heard=len(waveform) / SAMPLE_RATE,
        clip=front_end.clip_samples / SAMPLE_RATE,
        cut_at=max_seconds if longer.seconds > max_seconds else None,
        beginnings=beginnings,
        remarks=face.remarks,
    )


def answer_voices(
    model: SpeechToFace, *voices: BinaryIO, max_seconds: float, progress: Progress = silent
) -> str:
    """Show the faces from that of one voice to that of another, in `STEPS` even steps.

    Of each seekable stream `max_seconds` are heard. Raises as `answer_voice`, an AudioError with
    `The first voice:` or `second` before it.
    """
    embeddings: list[NDArray[np.float32]] = []
    remarks: list[str] = []
    for k, (name, speech) in enumerate(zip(("first", "second"), voices, strict=True)):
        progress(k, STEPS + 2, f"listening to the {name} voice")
        (heard,) = _listen(speech, max_seconds)
        if isinstance(heard, AudioError):
            raise AudioError(f"The {name} voice: {heard.message}", hint=heard.hint)
        embeddings.append(model.embed_voice(heard))
        remarks += (f"{name} voice: {remark}" for remark in heard.remarks)
    places, pictures = [], {}
    for k, face in enumerate(model.morph(embeddings[0], embeddings[1], STEPS)):
        progress(k + 2, STEPS + 2, "drawing the faces between them")
        place = f"{100 * k / (STEPS - 1):.0f} % of the way to the second voice"
        if k in (0, STEPS - 1):
            place = "the second voice" if k else "the first voice"
            pictures["last" if k else "first"] = _url(face.encoded())
        places.append(place)
        pictures[str(k)] = _url(face.encoded(".webp"), "webp")
    return _html("voices", pictures, places=places, remarks=remarks)


def answer_photo(
    model: SpeechToFace, photo: BinaryIO, *, detector: str | None, progress: Progress = silent
) -> str:
    """Show a photo, a seekable stream, and the face that is drawn from its embedding.

    Without a detector the photo is framed already. Those of more than 50 million pixels are
    refused: a visitor's photo must not keep all others waiting. Raises ImageError for these, what
    `cut_face` does, and WorkerError as `answer_voice`.
    """
    progress(0, 1, "drawing")
    photo.seek(0)
    framed = _decode(_look, "the photo", photo.read(), None if detector else FRAME)
    if detector:
        framed = cut_face(framed, detector=detector, device=str(model.device), name="the photo")
    face = model.reconstruct(framed, align=False)
    framed.thumbnail((2 * FRAME, 2 * FRAME))
    pictures = {"photo": _url(encode(framed, ".webp", {}), "webp"), "face": _url(face.encoded())}
    return _html("photo", pictures, remarks=face.remarks)


def _listen(speech: BinaryIO, *moments: float) -> list[Heard | AudioError]:
    speech.seek(0)
    found: list[Heard | AudioError] = _decode(_hear, "the recording", speech.read(), moments)
    return found


def _hear(name: str, content: bytes, moments: Sequence[float]) -> list[Heard | AudioError]:
    return hear_beginnings(io.BytesIO(content), moments, name=name)


def _look(name: str, content: bytes, enough: int | None) -> Image.Image:
    return open_photo(io.BytesIO(content), enough=enough, most=MOST_PIXELS, name=name)


def show_cards(checkpoints: Mapping[str, Checkpoint]) -> str:
    """Show what the networks of a model say of themselves; those that say the same, together."""
    said: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for kind, title in NETWORKS.items():
        if kind in checkpoints:
            own = checkpoints[kind].card
            rows = ((name, getattr(own, field)) for field, name in FIELDS.items())
            said.setdefault(tuple(row for row in rows if row[1]), []).append(title)
    return _html("cards", said=said.items())


def _url(content: bytes, form: str = "png") -> str:
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"


def _html(macro: str, pictures: Mapping[str, str] | None = None, **facts: object) -> str:
    """Fill in one of the macros of `answers.html.j2`, and then the pictures: it would copy them."""
    html = str(getattr(_answers(), macro)(**facts))
    return re.sub(r'"@(\w+)"', lambda found: f'"{(pictures or {})[found[1]]}"', html)


@functools.cache
def _answers() -> Any:
    def seconds(n: float) -> str:
        number = f"{n:.1f}".removesuffix(".0")
        return "1 second" if number == "1" else f"{number} seconds"

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True)
    environment.filters["seconds"] = seconds
    return environment.get_template("answers.html.j2").module
