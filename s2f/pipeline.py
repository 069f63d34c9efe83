"""The networks of one model at work: speech or a photo in, a face out.

recording -> clips -> spectrograms -> voice encoder -> mean embedding -> face decoder -> face
photo     -> face encoder                           -> embedding      -> face decoder -> face

Knows nothing of batches of files, of what they are called, or of the command line.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

import s2f
from s2f.audio import FloatArray, Waveform, clips, read_speech
from s2f.checkpoint import KINDS, Choice, Model, choose, load_model
from s2f.console import Progress, silent
from s2f.device import check_precision, choose_device, computing, one_thread
from s2f.errors import CheckpointError, InputError, UsageError
from s2f.face_decoder import draw_faces
from s2f.files import write_bytes
from s2f.images import encode, fit_frame, to_image
from s2f.landmarks import draw_landmarks
from s2f.spectrogram import FrontEnd, spectrogram

if TYPE_CHECKING:
    from s2f.face_detection import PhotoSource

BATCH = 16  # clips that a GPU embeds together; a CPU is quickest with one
Embedding = NDArray[np.float32]
SpeechSource = str | Path | BinaryIO | Waveform | tuple[NDArray[Any], int]


class Part(TypedDict, total=False):
    """Which part of a recording is heard, as `audio.read_speech` takes it; by default all."""

    start: float  # seconds
    duration: float | None  # seconds
    trim_silence: float | None  # dB: silence at both ends further below the loudest is left out


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

    def save(self, path: str | Path, *, size: int | None = None) -> None:
        """Write it as a .png, .jpg or .webp of `size` pixels a side, by default 224.

        Raises a UsageError if the name ends otherwise, an OutputError if it cannot be written.
        """
        write_bytes(Path(path), self.encoded(Path(path).suffix, size=size))

    def encoded(
        self, suffix: str = ".png", *, size: int | None = None, overlay: bool = False
    ) -> bytes:
        """Encode it as a picture whose metadata says what made it; the same face, the same bytes.

        It is a .png, .jpg or .webp of `size` pixels a side, with the landmarks drawn on it if it is
        an `overlay`.
        """
        image = self.sized(size)
        if overlay:
            scale = image.width / self.image.width
            image = draw_landmarks(image, (self.landmarks + 0.5) * scale - 0.5)
        return encode(image, suffix, provenance(self.model, self.source))

    def sized(self, size: int | None) -> Image.Image:
        """Resize the image to `size` pixels a side, or leave it."""
        if size in (None, self.image.width):
            return self.image
        return self.image.resize((size, size), Image.Resampling.LANCZOS)


def provenance(model: str, source: str) -> dict[str, str]:
    """Say in a picture's metadata what made it, and what it is not."""
    return {
        "Software": f"s2f {s2f.__version__}",
        "Model": model,
        "Source": f"made from {source}",
        "Comment": "Synthetic face: an average impression, not the likeness of a person.",
    }


@dataclass
class Embedded:
    """What became of a recording."""

    clips: int = 0  # of speech, whose embeddings are averaged
    error: InputError | None = None  # why it has none
    total: NDArray[np.float64] | float = 0.0  # [d]: the sum of those that are embedded yet

    @property
    def embedding(self) -> Embedding:
        """The mean of its clips' embeddings, [d]."""
        return np.asarray(self.total / self.clips, np.float32)


class SpeechToFace:
    """The networks of one model, ready to generate and to reconstruct.

    The same speech or photo gives the same bits on one machine, in any company, on any threads.

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
    batch_size: int  # clips that are embedded together, whosever they are

    def __init__(self, model: Model, device: torch.device, precision: str | None = None) -> None:
        self.model, self.device = model, device
        networks = [checkpoint.network.to(device) for checkpoint in model.checkpoints.values()]
        half = any(p.dtype == torch.float16 for network in networks for p in network.parameters())
        self.precision = precision or ("fp16" if half else "fp32")
        self.batch_size = BATCH if device.type == "cuda" else 1
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

        It is a file, a binary stream, or a `Waveform`: samples [n] or [n c], and their rate. Longer
        ones are cut into clips, and the embeddings of the clips averaged; `progress` is told of
        each. Raises an AudioError if it cannot be read or holds no usable speech, a UsageError if
        there can be no such part.
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
            yield embedded.error or self._draw(embedded.embedding, "speech", embedded.clips)

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

        Clips share batches, and no more recordings are read than fill one; as `generate`.
        """
        clip_samples = self.front_end.clip_samples
        unfinished: deque[Embedded] = deque()
        batch: list[tuple[Embedded, FloatArray]] = []
        for source in speeches:
            item = Embedded()
            name = str(source) if isinstance(source, str | Path) else "the recording"
            unfinished.append(item)
            try:
                heard = clips(read_speech(_recording(source), **part), clip_samples)
                for clip in heard:
                    progress(item.clips, len(heard), name)
                    item.clips += 1
                    batch.append((item, clip))
                    if len(batch) == self.batch_size:
                        self._embed(batch)
                        batch.clear()
            except InputError as error:
                item.error = error
            while unfinished and not (batch and unfinished[0] is batch[0][0]):
                yield unfinished.popleft()
        if batch:
            self._embed(batch)
        yield from unfinished

    def _embed(self, batch: Sequence[tuple[Embedded, FloatArray]]) -> None:
        """Embed the clips of a batch, of which there may be fewer than fill it."""
        front_end, encoder = self.front_end, self._network("voice_encoder")
        waveforms = torch.from_numpy(np.stack([clip for _, clip in batch])).to(self.device)
        # Batches of one size are computed in one way, whoever shares them.
        waveforms = torch.nn.functional.pad(waveforms, (0, 0, 0, self.batch_size - len(batch)))
        with one_thread(), computing(self.device):  # threads would share the transform's sums
            spectrograms = spectrogram(waveforms, front_end)
        with computing(self.device, self.precision):
            features = encoder.features(spectrograms)
            with one_thread():  # as above
                rows = encoder.from_features(features)
        for (item, _), embedding in zip(batch, rows.cpu().double().numpy(), strict=False):
            item.total = item.total + embedding

    def reconstruct(self, photo: "PhotoSource", **framing: Unpack[Framing]) -> Face:
        """Draw the face of a photo: a file, a binary stream, an image, or an array [h w 3] of RGB.

        Raises an ImageError if the photo cannot be read or no face is found, a DependencyError if
        no detector is installed.
        """
        return self._draw(self.embed_face(photo, **framing), "a photo", 0)

    def embed_face(self, photo: "PhotoSource", **framing: Unpack[Framing]) -> Embedding:
        """Embed the face of a photo, [d]: as `reconstruct`, without the drawing."""
        from s2f.face_detection import open_face

        encoder = self._network("face_encoder")
        framed = open_face(photo, device=str(self.device), **framing)
        pixels = fit_frame(framed, encoder.preprocessing.fit)
        with one_thread(), computing(self.device, self.precision):  # as in `_draw`
            rows = encoder(pixels[None].to(self.device).float() / 255)
            embedding: Embedding = rows[0].float().cpu().numpy()
            return embedding

    def decode(self, embedding: ArrayLike) -> Face:
        """Draw the face of an embedding [d], or raise a UsageError if it is not the model's."""
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
        vector = np.asarray(embedding, np.float32)
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
            return Face(to_image(faces[0]), marks, embedding, source, clips, name)


def _recording(speech: SpeechSource) -> Path | BinaryIO | Waveform:
    if isinstance(speech, str):
        return Path(speech)
    if isinstance(speech, tuple) and len(speech) == 2:
        return Waveform(*speech)
    if isinstance(speech, Path) or hasattr(speech, "read"):
        return speech
    hint = "give a path, a binary stream, or Waveform(samples, rate)"
    raise UsageError(f"speech cannot be read from {type(speech).__name__}", hint=hint)
