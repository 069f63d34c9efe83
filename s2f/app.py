"""The page: what it looks like (`page.html`, `.css`, `.js`), and what it is answered.

What a visitor sends becomes an answer in JSON whose pictures lie in it: no file is written, and
nothing is kept between two answers, but for a voice that is being spoken (`live`): what was
embedded of it is kept until nothing has come for two seconds. A face's embedding is with the
visitor, who moves it by sliders and asks to have it drawn.

Answers that take a while come line by line: how many are before, what happens now, then the answer
or the sentence that refuses. Where the page lives and what may be sent is for `app_server`.
"""

import asyncio
import base64
import contextlib
import copy
import functools
import gc
import io
import itertools
import json
import logging
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jinja2
import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from PIL import Image

from s2f import app_server
from s2f.app_server import App, Message, Settings
from s2f.audio import RECORDING_SUFFIXES, SAMPLE_RATE, FloatArray, Heard, hear, hear_beginnings
from s2f.augment import moved
from s2f.checkpoint import Checkpoint, Choice, choose, entries, models_in
from s2f.console import Progress, one_line, silent
from s2f.errors import (
    AudioError,
    CheckpointError,
    ImageError,
    InputError,
    S2FError,
    UsageError,
    WorkerError,
)
from s2f.face_detection import cut_face, installed_detector
from s2f.images import FRAME, encode, open_photo, provenance
from s2f.pipeline import Face, Listener, SpeechToFace
from s2f.spectrogram import HOP_LENGTH, spectrogram
from s2f.visualize import ContactSheet, animate, draw_spectrogram
from s2f.workers import Worker

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MOMENTS = (1.0, 3.0, 6.0)  # seconds from the beginning, whose faces stand beside that of all
MOST_PIXELS = 50_000_000  # of a photo: a small file may unfold to very many
WAITING = 32  # visitors in the queue, beside the one who is answered
SPEAKERS = 32  # whose faces form at a time
GONE = 1.5  # seconds without sound, after which a speaker is forgotten: before two are over
SEMITONES = 6  # by which a slider makes a voice higher or lower
SHAPE_AXES = 3  # along which sliders change the shape of a face
SHAPE_PIXELS = 3.0  # root mean square that landmarks move by, at the end of such a slider
FRAMES, FRAME_SECONDS = 48, 0.06  # of an animation
MOST_SAVED = {"face": 1, "animation": 300, "sheet": 12}  # embeddings that a file is made of
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
KINDS = {".css": "text/css", ".js": "text/javascript", ".wav": "audio/wav", ".png": "image/png"}
Loaders = Mapping[str, Callable[[], tuple[SpeechToFace, str | None]]]
"""Of each model that is offered, by its name, what loads it and its evaluation; the first first."""

# Decoders may crash or hang in what strangers send: of one process, which is not that of the page.
DECODING_SECONDS = 60.0
_decode = Worker(["s2f.audio", "s2f.images", "av", "soundfile", "soxr"], DECODING_SECONDS)
T = TypeVar("T")
Answer = dict[str, Any]  # of what JSON can say
Note = Callable[[str], object]


@contextlib.contextmanager
def serving(
    models: Loaders, settings: Settings, listening: socket.socket, note: Note = lambda text: None
) -> Iterator[str]:
    """Serve the page, as `app_server.serve`; the first model is loaded and warmed up before.

    `note` is told of each model that is loaded.
    """
    with contextlib.closing(_decode):
        page = Page(models, settings, note)
        page.model("")
        _decode(_hear, "the recording", _second(), (1.0,))  # which starts its process
        gc.collect()
        gc.freeze()  # what is there now stays: only what answers leave is looked through
        with app_server.serve(page.app(), settings, listening) as address:
            yield address


def offered(
    model: str,
    folder: Path | None = None,
    *,
    files: Mapping[str, Path] | None = None,
    device: str = "auto",
    precision: str | None = None,
    note: Note = lambda text: None,
) -> Loaders:
    """Find the models that the page offers: one, first, and all in a folder of models.

    Of the folder, `note` is told of models that lack a network. Raises CheckpointError as `choose`,
    and if the folder holds no model that is whole.
    """

    def load(choice: Choice, evaluation: str | None) -> tuple[SpeechToFace, str | None]:
        return SpeechToFace.load(choice, device=device, precision=precision), evaluation

    chosen = choose(model, files=files)
    # What was measured is of the model as it is, and not of another with files of its own.
    evaluation = None if files else entries(model)[0].evaluation
    found = {chosen.name: functools.partial(load, chosen, evaluation)}
    if not folder:
        return found
    whole = 0
    for name, path in models_in(folder).items():
        try:
            name.encode()
            choice = choose(path)
        except CheckpointError as error:
            note(f"not offered: {error.message}")
            continue
        except UnicodeEncodeError:  # no page could show it
            note(f"not offered: {path}: its name is no UTF-8")
            continue
        whole += 1
        if choice.sha256 != chosen.sha256:  # else it is the first one
            (entry,) = entries(path)
            names = (f"{name} ({n})" for n in itertools.count(2))  # no path, which is private
            unique = next(n for n in itertools.chain([name], names) if n not in found)
            found[unique] = functools.partial(load, choice, entry.evaluation)
    if not whole:
        message = f"{folder}: holds no model with all three networks"
        raise CheckpointError(message, hint="give a folder of folders such as train model makes")
    return found


@dataclass
class Visit:
    """Somebody who is speaking."""

    listener: Listener
    seen: float  # when something came last, by `time.monotonic`
    received: float = 0.0  # seconds of sound
    is_busy: bool = False


class Page:
    """What the page asks for, and the answers."""

    def __init__(self, models: Loaders, settings: Settings, note: Note = lambda text: None) -> None:
        self.settings, self._loaders, self._note = settings, models, note
        self._models: dict[str, tuple[SpeechToFace, str | None]] = {}
        self.visits: dict[str, Visit] = {}
        self._waiting: dict[object, None] = {}  # in order
        self._turn = asyncio.Lock()  # of what takes long: who is speaking waits for one at most
        # Torch and the C library keep memory for every thread that has ever computed something.
        self._computing, self._decoding = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def model(self, name: str) -> SpeechToFace:
        """Give a model, which is loaded when it is first asked for; by default the first."""
        return self._model(name)[0]

    def _model(self, name: str) -> tuple[SpeechToFace, str | None]:
        name = name or next(iter(self._loaders))
        if name not in self._models:
            if name not in self._loaders:
                raise _unknown(name)
            model, evaluation = self._loaders[name]()
            self._note(f"{one_line(name)} is loaded; warming up")
            warm(model, self.settings)
            self._models[name] = model, evaluation
        return self._models[name]

    def app(self) -> "Starlette":
        """The page as an ASGI app."""
        from starlette.applications import Starlette
        from starlette.responses import Response
        from starlette.routing import Route

        async def forget(_: object) -> AsyncIterator[None]:
            async def now_and_then() -> None:
                while True:
                    await asyncio.sleep(GONE / 6)
                    self.forget()

            task = asyncio.ensure_future(now_and_then())
            yield
            task.cancel()
            for executor in (self._computing, self._decoding):
                executor.shutdown(wait=False, cancel_futures=True)

        async def file(name: str, _: "Request") -> "Response":
            return _file(name)

        async def home(request: "Request") -> "Response":
            chosen = request.query_params.get("model", "")
            if chosen and chosen not in self._loaders:
                return _plain(404, sentence(_unknown(chosen)))
            return Response(self.home(chosen), media_type="text/html")

        routes = [Route("/", home)]
        routes += [Route(f"/{name}", functools.partial(file, name)) for name in FILES]
        routes.append(Route("/about", self._about))
        for name in ("voice", "photo", "live", "draw", "save"):
            routes.append(Route(f"/{name}", getattr(self, f"_{name}"), methods=["POST"]))
        app = Starlette(routes=routes, lifespan=contextlib.asynccontextmanager(forget))
        app.router.redirect_slashes = False  # to wherever a visitor says that this is
        return app

    def home(self, chosen: str = "") -> str:
        """Lay out the page, with a model chosen if there are several."""
        facts = {"models": list(self._loaders), "chosen": chosen, "settings": self.settings}
        facts |= {"suffixes": ",".join(sorted(RECORDING_SUFFIXES))}
        facts |= {"finds": bool(finder(self.settings))}
        return str(_templates().get_template("page.html").render(facts))

    def forget(self) -> None:
        """Forget speakers of whom nothing came for a while."""
        now = time.monotonic()
        for name, visit in list(self.visits.items()):
            if not visit.is_busy and now - visit.seen > GONE:
                del self.visits[name]

    async def _compute(self, function: Callable[..., T], *values: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._computing, function, *values)

    async def _compute_in_turn(self, function: Callable[..., T], *values: Any) -> T:
        async with self._turn:
            return await self._compute(function, *values)

    async def _soon(
        self, request: "Request", make: Callable[[], T], respond: Callable[[T], "Response"]
    ) -> "Response":
        """Answer when it has its turn, unless the visitor has gone by then."""
        if len(self._waiting) > WAITING:
            return _plain(503, BUSY)
        place = object()
        self._waiting[place] = None
        try:
            async with self._turn:
                if await request.is_disconnected():
                    return _plain(408, "Nobody waits for this.")
                return respond(await self._compute(make))
        except S2FError as error:
            return _plain(400, refusal(error))
        finally:
            del self._waiting[place]

    async def _about(self, request: "Request") -> "Response":
        """What a model says of itself, and how it was measured: HTML."""
        from starlette.responses import HTMLResponse

        name = request.query_params.get("model", "")
        try:
            model, evaluation = await self._compute(self._model, name)
        except S2FError as error:
            return _plain(404, refusal(error))
        return HTMLResponse(about(model, evaluation))

    async def _voice(self, request: "Request") -> App:
        """The face of a recording."""
        content, name = await request.body(), request.query_params.get("model", "")
        longest = self.settings.max_seconds

        def answer(heard: list[Heard], progress: Progress) -> Answer:
            return answer_voice(self.model(name), heard, longest, progress)

        return self._in_turn(functools.partial(decode_recording, content, longest), answer)

    async def _photo(self, request: "Request") -> App:
        """The face of a photo."""
        content, name = await request.body(), request.query_params.get("model", "")
        detector = finder(self.settings)

        def answer(photo: Image.Image, progress: Progress) -> Answer:
            progress(0, 1, "drawing")
            return answer_photo(self.model(name), photo, detector)

        return self._in_turn(functools.partial(decode_photo, content, detector), answer)

    def _in_turn(self, decode: Callable[[], T], answer: Callable[[T, Progress], Answer]) -> App:
        """Answer line by line, when all who came before are answered."""
        from starlette.responses import StreamingResponse

        if len(self._waiting) > WAITING:
            return _plain(503, BUSY)
        place = object()
        lines = self._lines(decode, answer, place)
        response = StreamingResponse(lines, media_type="application/x-ndjson")

        async def respond(scope: Message, receive: Any, send: Any) -> None:
            self._waiting[place] = None  # now: of a crowd that comes at once, no more may wait
            try:
                await response(scope, receive, send)
            finally:  # also where he goes before the first line
                self._waiting.pop(place, None)

        return respond

    async def _lines(
        self, decode: Callable[[], T], answer: Callable[[T, Progress], Answer], place: object
    ) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[Answer] = asyncio.Queue()

        def tell(done: int, total: int, what: str) -> None:
            loop.call_soon_threadsafe(told.put_nowait, {"done": done, "of": total, "now": what})

        async def work() -> Answer:
            # A decoder may hang for a while: those who are speaking do not wait for it.
            decoded = await loop.run_in_executor(self._decoding, decode)
            return await self._compute_in_turn(finished, decoded)

        def finished(decoded: T) -> Answer:
            try:
                return answer(decoded, tell)
            finally:
                gc.collect()  # a drawing of matplotlib's holds itself, and would wait for many more

        task = asyncio.ensure_future(work())
        task.add_done_callback(lambda _: told.put_nowait({}))  # so that its end is no wait
        before = -1
        try:
            while not task.done():
                ahead = list(self._waiting).index(place)
                if ahead != before:
                    before = ahead
                    yield _line({"before": before})
                news: Answer = {}
                with contextlib.suppress(TimeoutError):
                    news = await asyncio.wait_for(told.get(), 0.5)
                if news:
                    yield _line(news)
            del self._waiting[place]  # nobody waits until this one has read the answer
            try:
                yield _line({"answer": task.result()})
            except Exception as error:
                yield _line({"refused": refusal(error)})
        finally:
            task.cancel()  # of one who has gone; what is being computed already is finished

    async def _live(self, request: "Request") -> "Response":
        """The newest face of somebody who is speaking: samples of 16 bits come, as they are spoken.

        Nothing comes back where there is nothing new to be seen.
        """
        from starlette.responses import JSONResponse

        asked = request.query_params
        content, name = await request.body(), asked.get("visit", "")
        if not re.fullmatch("[0-9a-f]{32}", name) or len(content) % 2:
            return _plain(400, "This is no sound of a visitor's.")
        visit = self.visits.get(name)
        try:
            if visit is None:
                rate = asked.get("rate", "")
                if not re.fullmatch("[0-9]{1,9}", rate):
                    return _plain(400, "This is no sound of a visitor's.")
                model = await self._compute(self.model, asked.get("model", ""))
                if len(self.visits) >= SPEAKERS:  # now: others may have come meanwhile
                    return _plain(503, "Too many are speaking. Try again in a minute.")
                new = Visit(Listener(model, int(rate)), time.monotonic())
                visit = self.visits.setdefault(name, new)
            if visit.is_busy:
                return _plain(409, "One piece of sound comes after the other.")
            samples = np.frombuffer(content, "<i2").astype(np.int16)
            visit.received += len(samples) / visit.listener.rate
            if visit.received > self.settings.max_seconds + 1:
                return _plain(413, f"Only {self.settings.max_seconds:g} seconds are heard.")
            visit.is_busy = True
            try:
                face = await self._compute(_hear_on, visit.listener, samples)
            finally:
                visit.is_busy, visit.seen = False, time.monotonic()
        except S2FError as error:
            return _plain(400, refusal(error))
        return JSONResponse({"seconds": visit.listener.seconds, **(drawn(face) if face else {})})

    async def _draw(self, request: "Request") -> "Response":
        """The face of an embedding."""
        from starlette.responses import JSONResponse

        content, name = await request.body(), request.query_params.get("model", "")
        draw = functools.partial(self._drawn, content, name)
        return await self._soon(request, draw, JSONResponse)

    def _drawn(self, content: bytes, name: str) -> Answer:
        model = self.model(name)
        (embedding,) = vectors(model, content, 1)
        return drawn(model.decode(embedding))

    async def _save(self, request: "Request") -> "Response":
        """Embeddings as a file: the face of one, an animation of several, or a sheet of them."""
        from starlette.responses import Response

        asked, content = request.query_params, await request.body()
        form = asked.get("as", "")
        if form not in SAVED:
            return _plain(404, "There is nothing here.")
        save = functools.partial(self._saved, content, asked.get("model", ""), form)
        respond = functools.partial(Response, media_type=SAVED[form])
        return await self._soon(request, functools.partial(save, asked.getlist("name")), respond)

    def _saved(self, content: bytes, name: str, form: str, names: Sequence[str]) -> bytes:
        model = self.model(name)
        embeddings = vectors(model, content, MOST_SAVED[form])
        if form == "face":
            return model.decode(embeddings[0]).encoded()
        if form == "sheet" and len(names) != len(embeddings):
            raise UsageError(f"{len(embeddings)} faces have {len(names)} names")
        if form == "sheet":
            sheet = ContactSheet(len(embeddings))
            for caption, embedding in zip(names, embeddings, strict=True):
                sheet.add(caption[:100], model.decode(embedding).image)
            return encode(sheet.image(), ".png", _made(model))
        frames = (model.decode(embedding).image for embedding in evenly(embeddings, FRAMES))
        return animate(frames, seconds=FRAMES * FRAME_SECONDS, text=_made(model))


SAVED = {"face": "image/png", "animation": "image/webp", "sheet": "image/png"}
BUSY = "Too many are waiting. Try again in a minute."
FILES = ("page.css", "page.js", "capture.js", "example.wav", "example.png")


def _made(model: SpeechToFace) -> Mapping[str, str]:
    networks = {"face_decoder": model.model.checkpoints["face_decoder"].sha256}
    return provenance(model.model.name, "an embedding", networks)


def _file(name: str) -> "Response":
    from starlette.responses import Response

    path = example(name) if name.startswith("example") else Path(__file__).with_name(name)
    return Response(path.read_bytes(), media_type=KINDS[path.suffix])


def example(name: str) -> Path:
    """Find one of the examples: beside the package in a checkout, in it where it is installed."""
    known = {"example.wav": "speech.wav", "example.png": "face.png"}[name]
    folders = (Path(__file__).parent / "examples", Path(__file__).parents[1] / "examples")
    return next(folder / known for folder in folders if (folder / known).is_file())


def _unknown(name: str) -> UsageError:
    return UsageError(f"there is no model {name} here", hint="choose one that is offered")


def _plain(status: int, text: str) -> "Response":
    from starlette.responses import PlainTextResponse

    return PlainTextResponse(text, status)


def _line(answer: Answer) -> str:
    return json.dumps(answer) + "\n"


def warm(model: SpeechToFace, settings: Settings) -> None:
    """Answer once to nobody, so that the first visitor does not wait for what is made only once."""
    heard = hear(io.BytesIO(_second()))  # in no other process, which may be at work for a visitor
    answer_voice(model, [heard], settings.max_seconds)
    blank = Image.new("RGB", (FRAME, FRAME), "grey")
    model.reconstruct(blank, align=False)
    if finder(settings) == "dlib":  # the other one may want a network
        with contextlib.suppress(ImageError):  # there is no face
            model.reconstruct(blank, detector="dlib")


def _second() -> bytes:
    """A recording of a second of noise."""
    sound = io.BytesIO()
    noise = 0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)
    soundfile.write(sound, noise, SAMPLE_RATE, format="WAV")
    return sound.getvalue()


def finder(settings: Settings) -> str | None:
    """Name the detector of faces in photos; None if they have to be framed already."""
    return (settings.detector or installed_detector()) if settings.align else None


def refusal(error: Exception) -> str:
    """Say why there is no answer, whatever it was that went wrong.

    What is no fault of a visitor's is told to who serves the page alone: it names files of his.
    """
    if isinstance(error, WorkerError):  # its cure is for who prepares many files
        error = WorkerError(error.message, hint="try again, or another recording or photo")
    if not isinstance(error, InputError | UsageError | WorkerError):
        logging.getLogger(__name__).error("an answer failed", exc_info=error)
        sorry = "something went wrong here, and it is not your fault"
        error = S2FError(sorry, hint="try another recording or photo")
    return sentence(error)


def sentence(error: S2FError) -> str:
    """Say what went wrong, and the cure: each a sentence, with a capital and a full stop."""
    said = [text for text in (error.message, error.hint) if text]
    return " ".join(f"{s[:1].upper()}{s[1:].rstrip('.')}." for s in said)


def decode_recording(content: bytes, max_seconds: float) -> list[Heard]:
    """Hear a recording: all of it, and its first `MOMENTS`, of which those without speech are left.

    What comes after `max_seconds` is not even decoded, and the rest once. Raises AudioError as
    `hear`, and WorkerError if a decoder crashes or hangs.
    """
    moments = [moment for moment in MOMENTS if moment < max_seconds]
    # A frame of 10 ms more tells whether it goes on.
    found: list[Heard | AudioError] = _decode(
        _hear, "the recording", content, (max_seconds + 0.01, max_seconds, *moments)
    )
    longer, heard, *firsts = found
    for one in (longer, heard):
        if isinstance(one, AudioError):
            raise one
    assert isinstance(longer, Heard) and isinstance(heard, Heard)
    heard.declared = heard.declared if longer.seconds <= max_seconds else 0.0
    heard.seconds = longer.seconds
    return [
        heard,
        *(one for one in firsts if isinstance(one, Heard) and one.seconds < heard.seconds),
    ]


def answer_voice(
    model: SpeechToFace, heard: Sequence[Heard], max_seconds: float, progress: Progress = silent
) -> Answer:
    """Show the face of what was heard, what it is like, and faces of its beginnings."""
    whole, *firsts = heard
    waveform, front_end = whole.waveform, model.front_end
    steps = len(firsts) + 3
    progress(0, steps, "drawing the face")
    face = model.generate(whole)
    beginnings = []
    for k, first in enumerate(firsts):
        progress(k + 1, steps, f"drawing the face of the first {first.seconds:g} s")
        beginnings.append({"seconds": first.seconds, **drawn(model.generate(first))})
    progress(steps - 2, steps, "listening to it higher and lower")
    axes = voice_axes(model, whole, face.embedding) + shape_axes(model, face.embedding)
    progress(steps - 1, steps, "drawing what was heard")
    shown = np.resize(waveform, max(len(waveform), front_end.clip_samples))  # repeats
    columns = spectrogram(torch.from_numpy(shown)[None], front_end)[0].numpy()
    last = min(front_end.n_frames(len(waveform)), 1 + len(waveform) // HOP_LENGTH)  # of the sound
    sound = encode(draw_spectrogram(columns[:, :, :last], front_end), ".png", {})
    remarks = list(face.remarks)
    if whole.seconds > max_seconds:
        remarks.append(f"only its first {max_seconds:g} s were heard")
    return {
        **drawn(face, ".png"),
        "heard": len(waveform) / SAMPLE_RATE,
        "clip": front_end.clip_samples / SAMPLE_RATE,
        "sound": _url(sound),
        "beginnings": beginnings,
        "axes": axes,
        "remarks": remarks,
        "voice": dict(face.voice),
    }


def decode_photo(content: bytes, detector: str | None) -> Image.Image:
    """Open a photo; without a detector in the size of a frame.

    Those of more than 50 million pixels are refused: a visitor's photo must not keep all others
    waiting. Raises ImageError for these and as `open_photo`, and WorkerError as `decode_recording`.
    """
    photo: Image.Image = _decode(_look, "the photo", content, None if detector else FRAME)
    return photo


def answer_photo(model: SpeechToFace, photo: Image.Image, detector: str | None) -> Answer:
    """Show a photo, and the face that is drawn from its embedding.

    Without a detector the photo is framed already. Raises as `cut_face`.
    """
    framed = photo
    if detector:
        framed = cut_face(photo, detector=detector, device=str(model.device), name="the photo")
    face = model.reconstruct(framed, align=False)
    framed.thumbnail((2 * FRAME, 2 * FRAME))
    return {
        **drawn(face, ".png"),
        "photo": _url(encode(framed, ".webp", {}), "webp"),
        "axes": shape_axes(model, face.embedding),
        "remarks": list(face.remarks),
    }


def drawn(face: Face, suffix: str = ".webp") -> Answer:
    """Show a face: its picture, its landmarks and its embedding, float32 in base64."""
    return {
        "face": _url(face.encoded(suffix), suffix[1:]),
        "landmarks": np.round(face.landmarks.astype(float), 1).tolist(),
        "embedding": _base64(face.embedding),
    }


def voice_axes(model: SpeechToFace, heard: Heard, embedding: NDArray[np.float32]) -> list[Answer]:
    """Axis from a voice lower to the voice higher: how its embedding moves where its pitch does.

    It is what the model hears in the recording itself when its pitch is moved without its formants
    by `SEMITONES` down, and up.
    """
    ends = []
    for factor in (2 ** (-SEMITONES / 12), 2 ** (SEMITONES / 12)):
        other = replace(heard, waveform=moved(heard.waveform, factor))
        ends.append(model.embed_voice(other) - embedding)
    names = (f"{SEMITONES} semitones lower", f"{SEMITONES} semitones higher")
    return [_axis("The voice", names, ends)]


def shape_axes(model: SpeechToFace, embedding: NDArray[np.float32]) -> list[Answer]:
    """Axes along which the shape of a face changes most, at an embedding.

    They are the first right singular vectors of the derivative of the decoder's landmarks; their
    ends move those by `SHAPE_PIXELS`. Of a linear decoder they are the shape's axes of its code.
    There are fewer where the shape changes in fewer ways.
    """
    decoder: Any = model.model.checkpoints["face_decoder"].network
    if any(p.dtype != torch.float32 for p in decoder.parameters()):  # half is too coarse for this
        decoder = copy.deepcopy(decoder).float()
    point = torch.from_numpy(embedding).to(model.device)
    n = decoder.points(point[None]).numel()
    # A row for each value. `torch.func` would import compilers, which make a folder in TMPDIR.
    points = point.repeat(n, 1).requires_grad_()
    values = decoder.points(points).flatten(1).diagonal()
    (slopes,) = torch.autograd.grad(values.sum(), points)  # [2k d]
    _, lengths, axes = torch.linalg.svd(slopes.cpu(), full_matrices=False)
    pixels = SHAPE_PIXELS * (len(slopes) / 2) ** 0.5
    found = []
    for k in range(min(SHAPE_AXES, int((lengths > 1e-4 * lengths[0]).sum()))):
        step = (axes[k] * pixels / lengths[k]).numpy()
        found.append(_axis(f"Shape, axis {k + 1}", ("one way", "the other way"), [-step, step]))
    return found


def _axis(name: str, ends: Sequence[str], steps: Sequence[NDArray[np.float32]]) -> Answer:
    return {"name": name, "ends": list(ends), "steps": [_base64(step) for step in steps]}


def vectors(model: SpeechToFace, content: bytes, most: int) -> NDArray[np.float32]:
    """Read embeddings [n d], 1 to `most`, that a visitor sent back; raises UsageError."""
    d = model.model.checkpoints["face_decoder"].network.config.embedding
    n, rest = divmod(len(content), 4 * d)
    if rest or not 1 <= n <= most:
        message = f"{len(content)} bytes are no embeddings of {d} values"
        raise UsageError(message, hint=f"1 to {most} can be drawn")
    found = np.frombuffer(content, "<f4").astype(np.float32).reshape(n, d)
    if not np.isfinite(found).all():
        raise UsageError("an embedding that is not finite cannot be drawn")
    return found


def evenly(embeddings: NDArray[np.float32], frames: int) -> FloatArray:
    """Interpolate embeddings [n d] to so many frames [f d], in even steps from first to last."""
    places = np.linspace(0, len(embeddings) - 1, frames)
    low = np.minimum(places.astype(int), max(len(embeddings) - 2, 0))
    high = np.minimum(low + 1, len(embeddings) - 1)
    share = (places - low).astype(np.float32)[:, None]
    between: FloatArray = (1 - share) * embeddings[low] + share * embeddings[high]
    return between


def about(model: SpeechToFace, evaluation: str | None) -> str:
    """What the networks of a model say of themselves, and its evaluation: HTML.

    Those networks that say the same, together.
    """
    from markdown_it import MarkdownIt

    said: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for kind, title in NETWORKS.items():
        checkpoint: Checkpoint | None = model.model.checkpoints.get(kind)
        if checkpoint:
            rows = ((name, getattr(checkpoint.card, field)) for field, name in FIELDS.items())
            said.setdefault(tuple(row for row in rows if row[1]), []).append(title)
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    measured = markdown.render(evaluation) if evaluation else ""
    # Which the page's policy forbids, as any style within HTML.
    measured = re.sub(r' style="text-align:(\w+)"', r' class="\1"', measured)
    template = _templates().get_template("about.html")
    return str(template.render(name=model.model.name, said=said.items(), measured=measured))


def _hear_on(listener: Listener, samples: NDArray[np.int16]) -> Face | None:
    listener.feed(samples)
    return listener.draw()


def _hear(name: str, content: bytes, moments: Sequence[float]) -> list[Heard | AudioError]:
    return hear_beginnings(io.BytesIO(content), moments, name=name)


def _look(name: str, content: bytes, enough: int | None) -> Image.Image:
    return open_photo(io.BytesIO(content), enough=enough, most=MOST_PIXELS, name=name)


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


def _url(content: bytes, form: str = "png") -> str:
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"


@functools.cache
def _templates() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(loader=loader, autoescape=True)
