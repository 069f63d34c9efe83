"""A generated face, and how it is written: as a picture that says what made it, and as an array."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import s2f
from s2f import landmarks
from s2f.images import FRAME, encode
from s2f.runtime import atomic_write


@dataclass(frozen=True)
class Face:
    """A face that a model drew.

    Attributes:
        image: RGB, 224 x 224.
        landmarks: [68 2] xy pixels in the image, iBUG order.
        embedding: [d] that it was drawn from.
        source: what it was made from: `speech`, `a photo` or `an embedding`.
        clips: clips of speech that were averaged; 0 if it was not made from speech.
        model: name of the model.
    """

    image: Image.Image
    landmarks: NDArray[np.float32]
    embedding: NDArray[np.float32]
    source: str
    clips: int
    model: str

    def save(self, path: str | Path, *, size: int = FRAME) -> None:
        """Write it as a .png, .jpg or .webp of `size` pixels a side.

        Raises:
            UsageError: if its name ends otherwise.
            OutputError: if it cannot be written.
        """
        path = Path(path)
        with atomic_write(path) as file:
            file.write(self.encoded(path.suffix, size=size))

    def encoded(self, suffix: str = ".png", *, size: int = FRAME, overlay: bool = False) -> bytes:
        """Encode it as a picture whose metadata says what made it; the same face, the same bytes.

        Args:
            suffix: .png, .jpg or .webp.
            size: side of the picture, pixels.
            overlay: whether the landmarks are drawn on it.
        """
        image = self.sized(size)
        if overlay:
            scale = size / self.image.width
            image = landmarks.draw(image, (self.landmarks + 0.5) * scale - 0.5)
        return encode(image, suffix, facts(self.model, self.source))

    def sized(self, size: int) -> Image.Image:
        """Resize the image to `size` pixels a side."""
        if size == self.image.width:
            return self.image
        return self.image.resize((size, size), Image.Resampling.LANCZOS)

    def encoded_embedding(self) -> bytes:
        """Encode the embedding [d] as a .npy file."""
        buffer = io.BytesIO()
        np.save(buffer, self.embedding)
        return buffer.getvalue()


def facts(model: str, source: str) -> dict[str, str]:
    """Say in a picture's metadata what made it, and what it is not."""
    return {
        "Software": f"s2f {s2f.__version__}",
        "Model": model,
        "Source": f"made from {source}",
        "Comment": "Synthetic face: an average impression, not the likeness of a person.",
    }
