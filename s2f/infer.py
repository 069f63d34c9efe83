"""A face from speech, and a face from a photo.

recording -> clips -> spectrograms -> voice encoder -> mean embedding -> face decoder -> face
photo     -> face encoder                           -> embedding      -> face decoder -> face
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import s2f
from s2f import landmarks
from s2f.audio import read_clips
from s2f.checkpoint import AnyVoiceEncoder, Model, load_model
from s2f.drawing import draw_faces
from s2f.face_decoder import FaceDecoder
from s2f.face_encoder import VGGFace
from s2f.front_end import spectrogram
from s2f.images import FRAME, encode_png, load_face, to_image
from s2f.runtime import atomic_write, choose_device

BATCH = 16  # clips that go through the voice encoder together


@dataclass(frozen=True)
class Face:
    """A generated face.

    Attributes:
        image: RGB, 224 x 224.
        landmarks: [68 2] xy pixels in the image, iBUG order.
        embedding: [d] that it was drawn from.
        source: the recording or photo.
        clips: clips of speech that were averaged; 0 for a photo.
        model: name of the model.
    """

    image: Image.Image
    landmarks: NDArray[np.float32]
    embedding: NDArray[np.float32]
    source: Path
    clips: int
    model: str

    def save(self, path: str | Path, *, size: int = FRAME) -> None:
        """Write a PNG of `size` pixels a side, whose text chunks say what made it.

        Raises:
            OutputError: if it cannot be written.
        """
        _save(self._sized(size), Path(path), self._text())

    def save_overlay(self, path: str | Path, *, size: int = FRAME) -> None:
        """Write a PNG with the landmarks drawn on the face.

        Raises:
            OutputError: if it cannot be written.
        """
        image = self._sized(size)
        points = (self.landmarks + 0.5) * (image.width / self.image.width) - 0.5
        _save(landmarks.draw(image, points), Path(path), self._text())

    def _sized(self, size: int) -> Image.Image:
        if size == self.image.width:
            return self.image
        return self.image.resize((size, size), Image.Resampling.LANCZOS)

    def _text(self) -> dict[str, str]:
        return {
            "Software": f"s2f {s2f.__version__}",
            "Model": self.model,
            "Source": f"made from {'speech' if self.clips else 'a photo'}",
            "Comment": "Synthetic face: an average impression, not the likeness of a person.",
        }


def _save(image: Image.Image, path: Path, text: dict[str, str]) -> None:
    png = encode_png(image, text)
    with atomic_write(path) as file:
        file.write(png)


class SpeechToFace:
    """The networks of one model, ready to generate and to reconstruct.

    Example:
        `SpeechToFace.load().generate("speech.wav").image.save("face.png")`
    """

    def __init__(self, model: Model, device: torch.device) -> None:
        self.model, self.device = model, device
        for checkpoint in model.checkpoints.values():
            checkpoint.network.to(device)

    @classmethod
    def load(
        cls,
        model: str | Path = "demo",
        *,
        device: str = "auto",
        kinds: tuple[str, ...] = ("voice_encoder", "face_encoder", "face_decoder"),
    ) -> "SpeechToFace":
        """Load a model.

        Args:
            model: name of a bundled model, or a directory of checkpoints.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            kinds: networks to load; `generate` needs voice encoder and face decoder,
                `reconstruct` face encoder and face decoder.

        Raises:
            CheckpointError: if the model is not there, damaged, or its networks do not fit.
            DeviceError: if the device is not there.
        """
        return cls(load_model(model, kinds), choose_device(device))

    def generate(self, speech: str | Path) -> Face:
        """Generate the face that the speech in a recording suggests.

        Longer recordings are cut into clips, and the embeddings of the clips averaged.

        Raises:
            AudioError: if the recording cannot be read or holds no usable speech.
        """
        path = Path(speech)
        checkpoint = self.model.checkpoints["voice_encoder"]
        encoder, front_end = checkpoint.network, checkpoint.front_end
        assert isinstance(encoder, AnyVoiceEncoder) and front_end is not None
        clips = torch.from_numpy(read_clips(path, front_end.clip_samples))
        with torch.inference_mode():
            parts = [
                encoder(spectrogram(batch.to(self.device), front_end))
                for batch in torch.split(clips, BATCH)
            ]
            embedding = torch.cat(parts).mean(0)
        return self._draw(embedding, path, len(clips))

    def reconstruct(self, photo: str | Path) -> Face:
        """Draw the face of a photo from its embedding.

        The photo must be framed: eyes level, 27 % of the width apart, at 46 % of the height.

        Raises:
            ImageError: if the photo cannot be read.
        """
        path = Path(photo)
        encoder = self.model.checkpoints["face_encoder"].network
        assert isinstance(encoder, VGGFace)
        with torch.inference_mode():
            pixels = load_face(path, fit=encoder.preprocessing.fit)
            face = pixels.to(self.device).float() / 255
            embedding = encoder(face[None])[0]
        return self._draw(embedding, path, 0)

    @torch.inference_mode()
    def _draw(self, embedding: Tensor, source: Path, clips: int) -> Face:
        decoder = self.model.checkpoints["face_decoder"].network
        assert isinstance(decoder, FaceDecoder)
        points, faces = draw_faces(decoder, embedding[None])
        marks: NDArray[np.float32] = decoder.landmarks_68(points)[0].cpu().numpy()
        vector: NDArray[np.float32] = embedding.cpu().numpy()
        return Face(to_image(faces[0]), marks, vector, source, clips, self.model.name)
