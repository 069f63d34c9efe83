"""The networks of one model at work: speech or a photo in, a face out.

recording -> clips -> spectrograms -> voice encoder -> mean embedding -> face decoder -> face
photo     -> face encoder                           -> embedding      -> face decoder -> face

While somebody speaks, a `Listener` has the face that forms. Sound comes in pieces and is not kept:
what is embedded stays as a sum, and of the sound itself only the last clip. Each new face costs
one clip and one drawing, however long it has been going on. A microphone does not wait for that:
`Forming` draws beside the recording.

Knows nothing of batches of files, of what they are called, or of the command line.
"""

import concurrent.futures
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from s2f.audio import SAMPLE_RATE, FloatArray, Heard, Waveform, clips, hear
from s2f.checkpoint import KINDS, Choice, Model, choose, load_model
from s2f.console import Progress, silent
from s2f.device import check_precision, choose_device, computing, one_thread
from s2f.errors import AudioError, CheckpointError, InputError, UsageError
from s2f.face_decoder import FAR, draw_faces
from s2f.files import write_bytes
from s2f.images import FRAME, encode, fit_frame, is_grey, provenance, to_image
from s2f.landmarks import draw_landmarks, implausible
from s2f.spectrogram import FrontEnd, spectrogram

if TYPE_CHECKING:
    from s2f.face_detection import PhotoSource

UNSURE = 0.8  # how likely the likelier sex of a voice is, below which that is remarked on
FIRST_SECONDS = 1.0  # of sound before the first face
STEP_SECONDS = 0.2  # of new sound, at least, for a new face
FRAME_SECONDS = 0.1  # that sound or are silent together
PAUSE_FRAMES = 2  # of what is silent between two that sound, at most, belong to the speech
QUIET = 1e-3  # of the power of the loudest second: 30 dB below it is silence, as in `audio.hear`
RATES = range(8_000, 192_001)  # Hz, of microphones
BATCH = 16  # clips that a GPU embeds together, and an LSTM; other networks are best with 1 on a CPU
Embedding = NDArray[np.float32]
Recording = str | Path | BinaryIO | Waveform | tuple[NDArray[Any], int]
SpeechSource = Recording | Heard


class Part(TypedDict, total=False):
    """Which part of a recording is heard, as `audio.hear` takes it; by default all."""

    start: float  # seconds
    duration: float | None  # seconds
    trim_silence: float | None  # dB: silence at both ends further below the loudest is left out
    track: int | None  # of several sound tracks, from 1; by default the first that sounds


class Framing(TypedDict, total=False):
    """How the face in a photo is found."""

    align: bool  # whether the largest is found, and framed as training's (default), or it is framed
    detector: str | None  # `dlib` or `face-alignment`; by default the one that is there


@dataclass(frozen=True)
class Face:
    """A face that a model drew."""

    image: Image.Image  # RGB, 224 x 224
    landmarks: NDArray[np.float32]  # [68 2] xy pixels in the image, iBUG order
    embedding: Embedding  # [d] that it was drawn from
    source: str  # what it was made from: `speech`, `a photo` or `an embedding`
    clips: int  # of speech that were averaged; 0 if it was not made from speech
    model: str  # its name
    networks: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of those used, by kind
    remarks: tuple[str, ...] = ()  # what is to be said of the input, a short sentence each
    # What the voice encoder says of the voice besides, if it does: `speaker_encoder.ATTRIBUTES`.
    voice: Mapping[str, float] = field(default_factory=dict)

    def save(self, path: str | Path, *, size: int | None = None) -> None:
        """Write it as a .png, .jpg or .webp of `size` pixels a side, by default 224.

        Raises a UsageError if the name ends otherwise, an OutputError if it cannot be written.
        """
        write_bytes(Path(path), self.encoded(Path(path).suffix, size=size))

    def encoded(
        self,
        suffix: str = ".png",
        *,
        size: int | None = None,
        overlay: bool = False,
        facts: Mapping[str, str] | None = None,
    ) -> bytes:
        """Encode it as a picture whose metadata says what made it; the same face, the same bytes.

        It is a .png, .jpg or .webp of `size` pixels a side, with the landmarks drawn on it if it is
        an `overlay`. Its metadata has more `facts`, if any are given.
        """
        image = self.sized(size)
        if overlay:
            scale = image.width / self.image.width
            image = draw_landmarks(image, (self.landmarks + 0.5) * scale - 0.5)
        made = provenance(self.model, self.source, self.networks)
        return encode(image, suffix, made | dict(facts or {}))

    def sized(self, size: int | None) -> Image.Image:
        """Resize the image to `size` pixels a side, or leave it."""
        if size in (None, self.image.width):
            return self.image
        return self.image.resize((size, size), Image.Resampling.LANCZOS)


@dataclass
class Embedded:
    """What became of a recording."""

    clips: int = 0  # of speech, whose embeddings are averaged
    error: InputError | None = None  # why it has none
    remarks: tuple[str, ...] = ()  # what is to be said of it all the same, a short sentence each
    total: NDArray[np.float64] | float = 0.0  # [d]: the sum of those that are embedded yet
    said: NDArray[np.float64] | float = 0.0  # [3]: the sum of `speaker_encoder.ATTRIBUTES` of them

    @property
    def embedding(self) -> Embedding:
        """The mean of its clips' embeddings, [d]."""
        return np.asarray(self.total / self.clips, np.float32)

    @property
    def voice(self) -> dict[str, float]:
        """What was said of the voice, on the mean of its clips; nothing by most encoders."""
        if not isinstance(self.said, np.ndarray):
            return {}
        from s2f.speaker_encoder import ATTRIBUTES

        return dict(zip(ATTRIBUTES, (self.said / self.clips).tolist(), strict=True))


class SpeechToFace:
    """The networks of one model, ready to generate and to reconstruct.

    The same speech or photo gives the same bits each time on one machine, in any company. A framed
    photo and an embedding do so on any number of threads, as they are computed on one; speech too,
    where a recurrent encoder hears it, as in the bundled model. Convolutions and transformers want
    the same number: they use all, and on some processors their library adds in another order for
    another number (seen: 1,161 of a face's 150,528 values differed).

    Example:
        >>> from s2f import SpeechToFace, Waveform
        >>> model = SpeechToFace.load(device="cpu")
        >>> face = model.generate("examples/speech.wav")
        >>> face.image.size, face.landmarks.shape, face.embedding.shape, face.clips
        ((224, 224), (68, 2), (1024,), 1)
        >>> import soundfile
        >>> samples, rate = soundfile.read("examples/speech.wav")
        >>> again = model.generate(Waveform(samples, rate))
        >>> bool(abs(again.embedding - face.embedding).max() < 1e-3)
        True
        >>> model.decode(face.embedding).landmarks.tolist() == face.landmarks.tolist()
        True
    """

    model: Model  # its checkpoints, by kind
    device: torch.device
    precision: str  # `fp32`, `bf16` or `fp16`, that its networks compute in where that is safe
    batch_size: int  # clips that are embedded together
    shares_batches: bool  # whether they may be of several recordings

    def __init__(self, model: Model, device: torch.device, precision: str | None = None) -> None:
        self.model, self.device = model, device
        networks = [checkpoint.network.to(device) for checkpoint in model.checkpoints.values()]
        half = any(p.dtype == torch.float16 for network in networks for p in network.parameters())
        self.precision = precision or ("fp16" if half else "fp32")
        voice = model.checkpoints.get("voice_encoder")
        recurs = voice is not None and hasattr(voice.network, "lstm")
        self.batch_size = BATCH if device.type == "cuda" or recurs else 1
        # A batch that is shared is filled, for the same bits in any company: a GPU does not mind.
        self.shares_batches = device.type == "cuda" or not recurs
        if device.type == "cpu":
            for network in networks:  # the order of maps in memory that convolutions like
                network.to(memory_format=torch.channels_last)

    @classmethod
    def load(
        cls,
        model: str | Path | Choice = "demo",
        *,
        device: str = "auto",
        precision: str | None = None,
        kinds: Sequence[str] = KINDS,
        files: Mapping[str, Path] | None = None,
    ) -> "SpeechToFace":
        """Load a model: a bundled one or one in the cache by its name, or a folder of checkpoints.

        `device` is as for `choose_device`; `precision` `fp32`, `bf16` or `fp16`, by default `fp32`,
        but on a CUDA device `fp16` where a file is stored so. Of `kinds`, `reconstruct` needs no
        voice encoder, `generate` no face encoder. `files` take the place of the model's, by kind.

        Raises a CheckpointError if the model is not there, damaged, or its networks do not fit; a
        DeviceError if the device or the precision is not there; a UsageError if there can be none.
        """
        chosen = choose_device(device)
        check_precision(precision or "fp32", chosen)
        if not isinstance(model, Choice):
            model = choose(model, kinds, files=files)
        keep_half = chosen.type == "cuda" and precision in (None, "fp16")
        return cls(load_model(model, keep_half=keep_half), chosen, precision)

    def generate(
        self, speech: SpeechSource, *, progress: Progress = silent, **part: Unpack[Part]
    ) -> Face:
        """Generate the face that the speech in a recording suggests.

        It is a file, a binary stream, a `Waveform`: samples [n] or [n c], and their rate; or what
        `hear` heard, of which no part is taken any more. Longer ones are cut into clips, and the
        embeddings of the clips averaged; `progress` is told of each. Raises an AudioError if it
        cannot be read or holds no usable speech, a UsageError if there can be no such part.
        """
        (face,) = self.generate_all([speech], progress=progress, **part)
        if isinstance(face, InputError):
            raise face
        return face

    def generate_all(
        self, speeches: Iterable[SpeechSource], *, progress: Progress = silent, **part: Unpack[Part]
    ) -> Iterator[Face | InputError]:
        """Yield the face of each recording, or what is wrong with it, in order; as `generate`."""
        for embedded in self.embed_voices(speeches, progress=progress, **part):
            if embedded.error:
                yield embedded.error
                continue
            face = self._draw(embedded.embedding, "speech", embedded.clips)
            remarks = embedded.remarks + _doubts(embedded.voice) + face.remarks
            yield replace(face, remarks=remarks, voice=embedded.voice)

    def embed_voice(
        self, speech: SpeechSource, *, progress: Progress = silent, **part: Unpack[Part]
    ) -> Embedding:
        """Embed speech, [d]: as `generate`, without the drawing."""
        (embedded,) = self.embed_voices([speech], progress=progress, **part)
        if embedded.error:
            raise embedded.error
        return embedded.embedding

    def embed_voices(
        self, speeches: Iterable[SpeechSource], *, progress: Progress = silent, **part: Unpack[Part]
    ) -> Iterator[Embedded]:
        """Yield what became of each recording, in order, as soon as its clips are embedded.

        Where they share batches, no more recordings are read than fill one; as `generate`.
        """
        clip_samples = self.front_end.clip_samples
        unfinished: deque[Embedded] = deque()
        batch: list[tuple[Embedded, FloatArray]] = []
        for source in speeches:
            item = Embedded()
            name = str(source) if isinstance(source, str | Path) else "the recording"
            unfinished.append(item)
            try:
                heard = source if isinstance(source, Heard) else hear(_recording(source), **part)
                item.remarks = heard.remarks
                wanted = clips(heard.waveform, clip_samples)
                for clip in wanted:
                    progress(item.clips, len(wanted), name)
                    item.clips += 1
                    batch.append((item, clip))
                    if len(batch) == self.batch_size:
                        self._embed(batch)
                        batch.clear()
            except InputError as error:
                item.error = error
            if batch and not self.shares_batches:
                self._embed(batch)
                batch.clear()
            while unfinished and not (batch and unfinished[0] is batch[0][0]):
                yield unfinished.popleft()
        if batch:
            self._embed(batch)
        yield from unfinished

    def _embed(self, batch: Sequence[tuple[Embedded, FloatArray]]) -> None:
        """Embed the clips of a batch, of which there may be fewer than fill it."""
        front_end, encoder = self.front_end, self._network("voice_encoder")
        waveforms = torch.from_numpy(np.stack([clip for _, clip in batch])).to(self.device)
        if self.shares_batches:  # those of one size are computed in one way, whoever shares them
            waveforms = torch.nn.functional.pad(waveforms, (0, 0, 0, self.batch_size - len(batch)))
        with one_thread(), computing(self.device):  # threads would share the transform's sums
            spectrograms = spectrogram(waveforms, front_end)
        # So would those of an LSTM, which gains nothing by them.
        threads = one_thread() if hasattr(encoder, "lstm") else contextlib.nullcontext()
        with computing(self.device, self.precision):
            with threads:
                features = encoder.features(spectrograms)
            with one_thread():  # as above
                rows = encoder.from_features(features)
                says = getattr(encoder, "attributes", None)
                said = None if says is None else says(features).cpu().double().numpy()
        for k, embedding in enumerate(rows.cpu().double().numpy()[: len(batch)]):
            item = batch[k][0]
            item.total = item.total + embedding
            if said is not None:
                item.said = item.said + said[k]

    def reconstruct(self, photo: "PhotoSource", **framing: Unpack[Framing]) -> Face:
        """Draw the face of a photo: a file, a binary stream, an image, or an array [h w 3] of RGB.

        Raises an ImageError if the photo cannot be read or no face is found, a DependencyError if
        no detector is installed.
        """
        from s2f.face_detection import open_face

        self._network("face_encoder")  # or a photo is read for nothing
        framed = open_face(photo, device=str(self.device), **framing)
        face = self._draw(self._embed_framed(framed), "a photo", 0)
        if is_grey(framed):
            grey = "is black and white: of the colours of skin, hair and eyes nothing can be known"
            face = replace(face, remarks=(grey, *face.remarks))
        return face

    def embed_face(self, photo: "PhotoSource", **framing: Unpack[Framing]) -> Embedding:
        """Embed the face of a photo, [d]: as `reconstruct`, without the drawing."""
        from s2f.face_detection import open_face

        self._network("face_encoder")  # or a photo is read for nothing
        return self._embed_framed(open_face(photo, device=str(self.device), **framing))

    def _embed_framed(self, framed: Image.Image) -> Embedding:
        encoder = self._network("face_encoder")
        pixels = fit_frame(framed, encoder.preprocessing.fit)
        with one_thread(), computing(self.device, self.precision):  # as in `_draw`
            rows = encoder(pixels[None].to(self.device).float() / 255)
            embedding: Embedding = rows[0].float().cpu().numpy()
            return embedding

    def decode(self, embedding: ArrayLike) -> Face:
        """Draw the face of an embedding [d].

        Raises a UsageError if it is not the model's, or so far from a face that none can be drawn;
        what is far is remarked on.
        """
        return self._draw(self._vector(embedding), "an embedding", 0)

    def morph(self, first: ArrayLike, last: ArrayLike, frames: int) -> Iterator[Face]:
        """Draw the faces from one embedding [d] to another, in even steps; both are among them.

        Raises a UsageError as `decode`, or if there are fewer than two frames.
        """
        a, b = self._vector(first), self._vector(last)
        if frames < 2:
            raise UsageError(f"{frames} frames cannot show two faces", hint="give 2 or more")
        for share in np.linspace(0, 1, frames, dtype=np.float32):
            yield self._draw((1 - share) * a + share * b, "an embedding", 0)

    @property
    def front_end(self) -> FrontEnd:
        """What its voice encoder hears with; raises a UsageError if that was not loaded."""
        self._network("voice_encoder")
        front_end = self.model.checkpoints["voice_encoder"].front_end
        assert front_end
        return front_end

    def _network(self, kind: str) -> Any:
        if kind not in self.model.checkpoints:
            raise UsageError(f"the {kind} was not loaded", hint=f"give {kind!r} to load's kinds")
        return self.model.checkpoints[kind].network

    def _vector(self, embedding: ArrayLike) -> Embedding:
        try:
            with np.errstate(over="ignore"):  # to infinity, which is refused
                vector = np.asarray(embedding, np.float32)
        except (TypeError, ValueError):  # no numbers, or rows of many lengths
            vector = np.zeros(0, np.float32)
        wanted = self._network("face_decoder").config.embedding
        if vector.shape != (wanted,) or not np.isfinite(vector).all():
            hint = f"give {wanted} finite values, as embed_voice and embed_face do"
            raise UsageError(f"an embedding {list(vector.shape)} cannot be drawn", hint=hint)
        return vector

    def _draw(self, embedding: Embedding, source: str, clips: int) -> Face:
        decoder = self._network("face_decoder")
        name = self.model.name
        if not np.isfinite(embedding).all():  # half precision has no large numbers
            message = f"{name}: gives an embedding that is not finite in {self.precision}"
            raise CheckpointError(message, hint="use --precision fp32, or another model")
        with one_thread(), computing(self.device, self.precision):  # threads would share sums
            points, faces = draw_faces(decoder, torch.from_numpy(embedding).to(self.device)[None])
            marks = decoder.landmarks_68(points)[0].cpu().numpy()
            if not (np.isfinite(marks).all() and faces.isfinite().all()):
                if source == "an embedding":
                    message = f"an embedding {list(embedding.shape)} lies too far off to be drawn"
                    raise UsageError(message, hint="give one as embed_voice and embed_face do")
                message = f"{name}: draws a face that is not finite in {self.precision}"
                raise CheckpointError(message, hint="use --precision fp32, or another model")
        encoder = {"speech": "voice_encoder", "a photo": "face_encoder"}.get(source)
        used = [kind for kind in (encoder, "face_decoder") if kind]
        networks = {kind: self.model.checkpoints[kind].sha256 for kind in used}
        remarks = self._remarks(embedding, marks, source)
        return Face(to_image(faces[0]), marks, embedding, source, clips, name, networks, remarks)

    def _remarks(
        self, embedding: Embedding, marks: NDArray[np.float32], source: str
    ) -> tuple[str, ...]:
        """Say where a face is hardly one that the model knows."""
        said = []
        if source != "speech":  # with that nothing can be told by it: `benchmarks/RESULTS.md`
            far = self._network("face_decoder").distance(torch.from_numpy(embedding)[None])
            if far is not None and far > FAR:
                what = (
                    f"{float(far):.1f} deviations from their mean, usual photos {FAR:.1f} at most"
                )
                said.append(f"lies far from the faces that {self.model.name} knows: {what}")
        if why := implausible(marks, FRAME):
            said.append(f"its landmarks {why}: the face is hardly one")
        return tuple(said)


def _doubts(voice: Mapping[str, float]) -> tuple[str, ...]:
    """Say where a voice encoder that says what it hears is not sure of it."""
    if not voice:
        return ()
    if voice["voice"] < 0.5:
        return (f"sounds like no voice: one is {voice['voice']:.0%} likely",)
    likely = max(voice["male"], 1 - voice["male"])
    if likely < UNSURE:
        return (f"does not tell the sex ({likely:.0%} sure): the face lies between",)
    return ()


def _recording(speech: Recording) -> Path | BinaryIO | Waveform:
    if isinstance(speech, str):
        return Path(speech)
    if isinstance(speech, tuple) and len(speech) == 2:
        return Waveform(*speech)
    if isinstance(speech, Path) or hasattr(speech, "read"):
        return speech
    hint = "give a path, a binary stream, or Waveform(samples, rate)"
    raise UsageError(f"speech cannot be read from {type(speech).__name__}", hint=hint)


class Listener:
    """Hears one speaker piece by piece, and draws the face of what was heard so far.

    Silence is left out as it comes, so it changes nothing, but for a pause of up to 0.2 s, which
    belongs to the speech as soon as that goes on. The embedding is the mean of the clips
    that have passed and of the last clip's length of sound, which counts by its share that is new:
    it moves evenly, and where a clip ends it is the mean of the clips, as `SpeechToFace.generate`
    takes it. That hears the whole recording at once, its loudness and pauses, and has the last
    word. Not for several threads at once.

    Example:
        >>> import soundfile
        >>> from s2f import SpeechToFace
        >>> samples, rate = soundfile.read("examples/speech.wav", dtype="int16")
        >>> listener = Listener(SpeechToFace.load(device="cpu"), rate)
        >>> listener.feed(samples[: rate // 2])
        >>> listener.draw() is None  # not yet
        True
        >>> listener.feed(samples[rate // 2 : 2 * rate])
        >>> listener.draw().image.size
        (224, 224)
        >>> listener.feed(0 * samples)
        >>> listener.draw() is None  # silence has no face, and changes none
        True
    """

    def __init__(self, model: SpeechToFace, rate: int) -> None:
        """Listen at so many samples a second, 8,000 to 192,000, else raise a `UsageError`."""
        if rate not in RATES:
            message = f"sound of {rate} samples a second is to be heard; wanted {RATES[0]}"
            raise UsageError(f"{message} to {RATES[-1]}", hint="most microphones have 48000")
        self.model, self.rate = model, rate
        self._clip = round(model.front_end.clip_samples / SAMPLE_RATE * rate)
        self._frame = round(FRAME_SECONDS * rate)
        self._rest: FloatArray = np.empty(0, np.float32)  # less than a frame
        self._levels: list[float] = []  # powers of the last second's frames
        self._loudest = 0.0  # power of a second
        self._pause: list[FloatArray] = []  # frames since one that sounded
        self._sound: FloatArray = np.empty(0, np.float32)  # the last clip's length
        self._n = 0  # samples that sounded, of all that came
        self._new = 0  # since the last whole clip
        self._undrawn = 0  # and since the last face
        self._total: NDArray[np.floating] | float = 0.0
        self._clips = 0

    @property
    def seconds(self) -> float:
        """How much sounded, of all that came."""
        return self._n / self.rate

    def feed(self, samples: NDArray[np.int16] | FloatArray) -> None:
        """Take the next samples [n], integers of 16 bits or float32 of -1..1."""
        scale = np.float32(32768 if samples.dtype == np.int16 else 1)
        waiting = np.concatenate([self._rest, samples.astype(np.float32) / scale])
        whole = len(waiting) // self._frame * self._frame
        self._rest = waiting[whole:]
        sounding: list[FloatArray] = []
        for frame in waiting[:whole].reshape(-1, self._frame):
            if self._sounds(frame):
                sounding += [*self._pause, frame]
                self._pause = []
            elif (self._n or sounding) and len(self._pause) < PAUSE_FRAMES:
                self._pause.append(frame)
        if sounding:
            self._hear(np.concatenate(sounding))

    def _sounds(self, frame: FloatArray) -> bool:
        """Tell whether a frame is no silence."""
        power = float(np.mean(np.square(np.nan_to_num(frame), dtype=np.float64)))
        self._levels = [*self._levels[1 - round(1 / FRAME_SECONDS) :], power]
        self._loudest = max(self._loudest, sum(self._levels) * FRAME_SECONDS)
        return power > max(QUIET * self._loudest, 1e-9)

    def _hear(self, sound: FloatArray) -> None:
        """Keep what sounds, and embed each clip that is full."""
        for part in np.split(sound, range(self._clip - self._new, len(sound), self._clip)):
            self._sound = np.concatenate([self._sound, part])[-self._clip :]
            self._new += len(part)
            self._undrawn += len(part)
            self._n += len(part)
            if self._new == self._clip:
                if (heard := self._embed()) is not None:
                    self._total = self._total + heard
                    self._clips += 1
                self._new = 0

    def _embed(self) -> Embedding | None:
        """Embed the last clip's length of sound; None if it is no voice."""
        try:
            heard = hear(Waveform(self._sound, self.rate), name="what was said")
        except AudioError:
            return None
        if heard.is_steady:
            return None
        (embedded,) = self.model.embed_voices([heard])
        if embedded.error or embedded.voice.get("voice", 1.0) < 0.5:
            return None
        return embedded.embedding

    def draw(self) -> Face | None:
        """Draw the face of what was heard so far; None if nothing new is to be seen.

        So it is in the first second of sound, after less than 0.2 s that are new, and where what is
        new is no voice.
        """
        if self.seconds < FIRST_SECONDS or self._undrawn < STEP_SECONDS * self.rate:
            return None
        self._undrawn = 0
        last = self._embed()
        if last is None:
            return None
        share = self._new / self._clip if self._clips else 1.0
        mean = (self._total + share * last) / (self._clips + share)
        return self.model.decode(np.asarray(mean, np.float32))


class Forming:
    """Draws the faces of what is being recorded, in a thread: `feed` never waits for one.

    What comes while a face is drawn is heard together for the next, so faces never queue up. When
    the `with` ends, what is left is heard and drawn, and errors of drawing are raised; if another
    error ended it, only the face that is being drawn is waited for.
    """

    def __init__(self, model: SpeechToFace, take: Callable[[Face], object]) -> None:
        """Have `take` given each new face, in the thread."""
        self._model, self._take = model, take
        self._listener: Listener | None = None
        self._waiting: list[FloatArray] = []
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._drawing: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> "Forming":
        """Draw a face for nobody: what libraries load, they load before sound could be lost."""
        noise = 0.1 * np.random.default_rng(0).standard_normal(48_000)
        self._thread.submit(self._model.generate, Waveform(noise, 48_000)).result()
        return self

    def feed(self, sound: Waveform) -> None:
        """Take the next sound, all of one rate; raise a `UsageError` if a `Listener` refuses it."""
        self._listener = self._listener or Listener(self._model, sound.rate)
        self._waiting.append(sound.samples)
        drawing = self._drawing
        if drawing is None or (drawing.done() and not drawing.exception()):
            waiting, self._waiting = self._waiting, []
            self._drawing = self._thread.submit(self._draw, self._listener, waiting)

    def _draw(self, listener: Listener, waiting: list[FloatArray]) -> None:
        listener.feed(np.concatenate(waiting))
        face = listener.draw()
        if face is not None:
            self._take(face)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Wait for the thread."""
        with self._thread:
            if kind is None and self._drawing and self._listener:
                self._drawing.result()
                if self._waiting:
                    self._draw(self._listener, self._waiting)
