"""A face from speech, and a face from a photo.

recording -> clips -> spectrograms -> voice encoder -> mean embedding -> face decoder -> face
photo     -> face encoder                           -> embedding      -> face decoder -> face
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from s2f.alignment import Photo, open_face
from s2f.catalogue import KINDS, Choice, choose
from s2f.checkpoint import AnyVoiceEncoder, Checkpoint, Model, load_model
from s2f.drawing import draw_faces
from s2f.errors import CheckpointError, InputError, UsageError
from s2f.face import Face
from s2f.face_decoder import FaceDecoder
from s2f.face_encoder import FaceEncoder
from s2f.fast_conv import accelerate
from s2f.images import called, fit_frame, to_image
from s2f.precision import check_precision, computing
from s2f.runtime import Progress, choose_device, one_thread, silent
from s2f.voice_embedder import BATCH, Speech, VoiceEmbedder

Embedding = NDArray[np.float32]


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

    Attributes:
        model: its checkpoints, by kind.
        device: that it runs on.
        precision: `fp32`, `bf16` or `fp16`, that its networks compute in where that is safe.
    """

    def __init__(self, model: Model, device: torch.device, precision: str | None = None) -> None:
        self.model, self.device = model, device
        networks = [checkpoint.network.to(device) for checkpoint in model.checkpoints.values()]
        half = any(p.dtype == torch.float16 for network in networks for p in network.parameters())
        self.precision = precision or ("fp16" if half else "fp32")
        if device.type == "cpu":
            for network in networks:
                accelerate(network)

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
        """Load a model.

        Args:
            model: name of a bundled model or of one in the cache, or a directory of checkpoints.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            precision: `fp32`, `bf16` or `fp16`; by default `fp32`, but on a CUDA device `fp16`
                where a file is stored so.
            kinds: networks to load; `reconstruct` needs no voice, `generate` no face encoder.
            files: single checkpoints in the place of the model's, by kind.

        Raises:
            CheckpointError: if the model is not there, damaged, or its networks do not fit.
            DeviceError: if the device is not there, or cannot compute in this precision.
            UsageError: if there is no such precision.
        """
        chosen = choose_device(device)
        check_precision(precision or "fp32", chosen)
        if not isinstance(model, Choice):
            model = choose(model, kinds, files=files)
        keep_half = chosen.type == "cuda" and precision in (None, "fp16")
        return cls(load_model(model, keep_half=keep_half), chosen, precision)

    def generate(
        self,
        speech: Speech,
        *,
        start: float = 0.0,
        duration: float | None = None,
        trim_silence: float | None = None,
        progress: Progress = silent,
    ) -> Face:
        """Generate the face that the speech in a recording suggests.

        Longer recordings are cut into clips, and the embeddings of the clips averaged. They are
        read as they are needed: hours take no more memory than a minute.

        Args:
            speech: a file, a binary stream, or a `Waveform`: samples [n] or [n c], and their rate.
            start: where the speech starts in it, seconds.
            duration: of the speech, seconds; by default to the end.
            trim_silence: dB; silence at both ends that is further below the loudest is left out.
            progress: told of each clip.

        Raises:
            AudioError: if the recording cannot be read or holds no usable speech.
            UsageError: if `start` or `duration` are no times.
        """
        (face,) = self.generate_all(
            [speech], start=start, duration=duration, trim_silence=trim_silence, progress=progress
        )
        if isinstance(face, InputError):
            raise face
        return face

    def generate_all(
        self,
        speeches: Iterable[Speech],
        *,
        start: float = 0.0,
        duration: float | None = None,
        trim_silence: float | None = None,
        progress: Progress = silent,
    ) -> Iterator[Face | InputError]:
        """Generate the faces of many recordings, whose clips share batches.

        Args:
            speeches: as `generate` takes them.
            start: of the part of each that is wanted, seconds.
            duration: of that part, seconds.
            trim_silence: as `generate` takes it.
            progress: told of each clip of a recording.

        Yields:
            The face, or what is wrong with the recording, in order.

        Raises:
            UsageError: as `generate`.
        """
        for embedded in self.voice_embedder().embed(
            speeches, start=start, duration=duration, trim_silence=trim_silence, progress=progress
        ):
            yield embedded.error or self._draw(embedded.embedding, "speech", embedded.clips)

    def reconstruct(self, photo: Photo, *, align: bool = True, detector: str | None = None) -> Face:
        """Draw the face of a photo from its embedding.

        Args:
            photo: a file, a binary stream, an image, or an array [h w 3] of RGB.
            align: whether its largest face is found, and framed as training's faces are. Otherwise

            detector: that finds it: `dlib` or `face-alignment`; by default the one that is there.

        Raises:
            ImageError: if the photo cannot be read, or no face is found.
            DependencyError: if no detector is installed.
        """
        return self._draw(self.embed_face(photo, align=align, detector=detector), "a photo", 0)

    def reconstruct_all(
        self,
        photos: Iterable[Photo],
        *,
        align: bool = True,
        detector: str | None = None,
        progress: Progress = silent,
    ) -> Iterator[Face | InputError]:
        """Draw the faces of many photos.

        Args:
            photos: as `reconstruct` takes them.
            align: as `reconstruct` takes it.
            detector: likewise.
            progress: told of each photo.

        Yields:
            The face, or what is wrong with the photo, in order.
        """
        for photo in photos:
            progress(0, 1, photo if isinstance(photo, str) else called(photo))
            try:
                yield self.reconstruct(photo, align=align, detector=detector)
            except InputError as error:
                yield error

    def embed_voice(
        self,
        speech: Speech,
        *,
        start: float = 0.0,
        duration: float | None = None,
        trim_silence: float | None = None,
        progress: Progress = silent,
    ) -> Embedding:
        """Embed speech, [d]: as `generate`, without the drawing.

        Raises:
            AudioError, UsageError: as `generate`.
        """
        (embedded,) = self.voice_embedder().embed(
            [speech], start=start, duration=duration, trim_silence=trim_silence, progress=progress
        )
        if embedded.error:
            raise embedded.error
        return embedded.embedding

    def embed_face(
        self, photo: Photo, *, align: bool = True, detector: str | None = None
    ) -> Embedding:
        """Embed the face of a photo, [d]: as `reconstruct`, without the drawing.

        Raises:
            ImageError, DependencyError: as `reconstruct`.
        """
        encoder = self._checkpoint("face_encoder").network
        assert isinstance(encoder, FaceEncoder)
        framed = open_face(photo, align=align, detector=detector, device=str(self.device))
        pixels = fit_frame(framed, encoder.preprocessing.fit)
        with one_thread(), computing(self.device, self.precision):  # as in `_draw`
            embedding: Tensor = encoder(pixels[None].to(self.device).float() / 255)[0]
            return embedding.float().cpu().numpy()

    def decode(self, embedding: ArrayLike) -> Face:
        """Draw the face of an embedding [d].

        Raises:
            UsageError: if it is not of the model's size, or holds values that are not finite.
        """
        return self._draw(self._vector(embedding), "an embedding", 0)

    def morph(self, first: ArrayLike, last: ArrayLike, frames: int) -> Iterator[Face]:
        """Draw the faces from one embedding [d] to another, in even steps; both are among them.

        Raises:
            UsageError: as `decode`; if there are fewer than two frames.
        """
        a, b = self._vector(first), self._vector(last)
        if frames < 2:
            raise UsageError(f"{frames} frames cannot show two faces", hint="give 2 or more")
        for share in np.linspace(0, 1, frames, dtype=np.float32):
            yield self.decode((1 - share) * a + share * b)

    def _checkpoint(self, kind: str) -> Checkpoint:
        if kind not in self.model.checkpoints:
            raise UsageError(f"the {kind} was not loaded", hint=f"give {kind!r} to load's kinds")
        return self.model.checkpoints[kind]

    def _decoder(self) -> FaceDecoder:
        decoder = self._checkpoint("face_decoder").network
        assert isinstance(decoder, FaceDecoder)
        return decoder

    def _vector(self, embedding: ArrayLike) -> Embedding:
        vector = np.asarray(embedding, np.float32)
        wanted = self._decoder().config.embedding
        if vector.shape != (wanted,) or not np.isfinite(vector).all():
            raise UsageError(
                f"an embedding {list(vector.shape)} cannot be drawn",
                hint=f"give {wanted} finite values, as embed_voice and embed_face do",
            )
        return vector

    def voice_embedder(self) -> VoiceEmbedder:
        """The voice encoder with its front end: what embeds recordings.

        Raises:
            UsageError: if it was not loaded.
        """
        checkpoint = self._checkpoint("voice_encoder")
        assert isinstance(checkpoint.network, AnyVoiceEncoder) and checkpoint.front_end
        size = BATCH if self.device.type == "cuda" else 1
        network, front_end = checkpoint.network, checkpoint.front_end
        return VoiceEmbedder(network, front_end, self.device, self.precision, size)

    def _draw(self, embedding: Embedding, source: str, clips: int) -> Face:
        decoder = self._decoder()
        if not np.isfinite(embedding).all():  # half precision has no large numbers
            raise CheckpointError(
                f"{self.model.name}: gives an embedding that is not finite in {self.precision}",
                hint="use --precision fp32, or another model",
            )
        with one_thread(), computing(self.device, self.precision):  # threads would share sums
            vector = torch.from_numpy(embedding).to(self.device)
            points, faces = draw_faces(decoder, vector[None])
            marks: NDArray[np.float32] = decoder.landmarks_68(points)[0].cpu().numpy()
            return Face(to_image(faces[0]), marks, embedding, source, clips, self.model.name)
