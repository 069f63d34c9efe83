"""The web page: its words, its layout, and what its buttons do.

What a visitor sends becomes an answer in `answers`, which `answer_html` shows; what may be sent,
and when it is deleted, is for `visits`. Where the page lives is for `hosting`.
"""

import contextvars
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO

from s2f import answer_html, answers, visits
from s2f.errors import InputError, S2FError
from s2f.runtime import Progress

if TYPE_CHECKING:
    import gradio as gr

    from s2f.infer import SpeechToFace

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


def build(
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
        heard = answers.hear(model, sent[0], max_seconds=max_seconds, progress=progress)
        return answer_html.heard(heard, max_seconds)

    def between(sent: list[BinaryIO], progress: Progress) -> str:
        faces = answers.between(model, *sent, max_seconds=max_seconds, progress=progress)
        return answer_html.between(faces)

    def look(sent: list[BinaryIO], progress: Progress) -> str:
        progress(0, 1, "drawing")
        seen = answers.look(model, sent[0], align=detector is not None, detector=detector)
        return answer_html.seen(seen)

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
            visits.hand_over(photo)
            _add("Draw the face again", [photo], "photo", look)
        gr.Markdown(CARD.format(name=model.model.name))
        gr.HTML(answer_html.card(model.model.checkpoints))
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
    visits.hand_over(sound)
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
            return answer_html.refusal(nothing), *(gr.skip() for _ in paths)
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
        return answer(visits.take(*paths), tell)
    except S2FError as error:
        return answer_html.refusal(error)
    except Exception:
        logging.getLogger(__name__).exception("an answer failed")
        sorry = S2FError(
            "something went wrong here, and it is not your fault",
            hint="try another recording or photo",
        )
        return answer_html.refusal(sorry)
