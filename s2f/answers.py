"""What a visitor of the page is answered: from the bytes of a recording or a photo to faces.

Knows nothing of the page: takes streams, gives faces and what there is to say about them. Nothing
is kept between two answers.
"""

import contextlib
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image

from s2f.alignment import SIDE, choose_detector, cut_face
from s2f.audio import open_speech
from s2f.decoding import SAMPLE_RATE
from s2f.errors import AudioError, ImageError
from s2f.face import Face
from s2f.front_end import spectrogram
from s2f.hearing import draw
from s2f.images import FRAME, open_photo
from s2f.infer import SpeechToFace
from s2f.runtime import Progress, silent

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


def hear(
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
    with open_speech(speech, duration=max_seconds + 0.01) as part:
        whole = part.waveform()
    limit = round(max_seconds * SAMPLE_RATE)
    waveform, is_cut = whole[:limit], len(whole) > limit
    seconds = len(waveform) / SAMPLE_RATE
    front_end = model.voice_embedder().front_end
    shown = np.resize(waveform, max(len(waveform), front_end.clip_samples))  # repeats
    columns = spectrogram(torch.from_numpy(shown)[None], front_end)[0].numpy()
    sound = draw(columns[:, :, : front_end.n_frames(len(waveform))], front_end)
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


def look(
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


def between(
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
