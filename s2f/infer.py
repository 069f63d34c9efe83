"""A face from speech, and a face from a photo.

recording -> clips -> spectrograms -> voice encoder -> mean embedding -> face decoder -> face
photo     -> face encoder                           -> embedding      -> face decoder -> face
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import s2f
from s2f import landmarks
from s2f.audio import read_clips, spectrogram
from s2f.checkpoint import Model, load_model
from s2f.errors import InputError, S2FError, UsageError
from s2f.face_decoder import FaceDecoder
from s2f.face_encoder import VGGFace
from s2f.images import FRAME, encode_png, load_face, to_image
from s2f.runtime import Progress, atomic_write, choose_device, silent
from s2f.voice_encoder import VoiceEncoder
from s2f.warp import warp

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

    def save(self, path: Path, *, size: int = FRAME) -> None:
        """Write a PNG of `size` pixels a side, whose text chunks say what made it.

        Raises:
            OutputError: if it cannot be written.
        """
        _save(self._sized(size), path, self._text())

    def save_overlay(self, path: Path, *, size: int = FRAME) -> None:
        """Write a PNG with the landmarks drawn on the face.

        Raises:
            OutputError: if it cannot be written.
        """
        image = self._sized(size)
        points = (self.landmarks + 0.5) * (image.width / self.image.width) - 0.5
        _save(landmarks.draw(image, points), path, self._text())

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
        assert isinstance(encoder, VoiceEncoder) and front_end is not None
        clips = torch.from_numpy(read_clips(path, front_end))
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
            face = load_face(path).to(self.device).float() / 255
            embedding = encoder(face[None])[0]
        return self._draw(embedding, path, 0)

    @torch.inference_mode()
    def _draw(self, embedding: Tensor, source: Path, clips: int) -> Face:
        decoder = self.model.checkpoints["face_decoder"].network
        assert isinstance(decoder, FaceDecoder)
        points, face = decoder(embedding[None])
        if not decoder.config.is_face:
            face = warp(face, decoder.mean_landmarks[None], points)
        marks: NDArray[np.float32] = decoder.landmarks_68(points)[0].cpu().numpy()
        vector: NDArray[np.float32] = embedding.cpu().numpy()
        return Face(to_image(face[0]), marks, vector, source, clips, self.model.name)


@dataclass(frozen=True)
class Outcome:
    """What became of one file of a batch.

    Attributes:
        source: the recording or photo.
        target: the picture that was written, was there already, or would have been written.
        overlay: the picture with landmarks, if it was asked for and written.
        status: `made`, `skipped` (there already, and newer than its source) or `failed`.
        error: why it failed.
        clips: clips of speech that were averaged.
        seconds: that it took.
    """

    source: Path
    target: Path | None
    status: str
    overlay: Path | None = None
    error: S2FError | None = None
    clips: int = 0
    seconds: float = 0.0


Find = Callable[[Sequence[Path]], list[Path]]


def plan(sources: Sequence[Path], output: Path | None, find: Find) -> list[Outcome]:
    """Decide which file becomes which picture, before anything is made.

    A file NAME.* becomes NAME.png in the output folder (by default the current one), a directory's
    files keep their places below it; where two would become the same picture, both keep their
    suffix (NAME.wav.png). One file may also be given its picture's own name.

    Args:
        sources: files and directories.
        output: a picture's name ending in .png for one file, or a folder.
        find: lists the files of a directory, and refuses what is not there.

    Returns:
        One outcome a file: `planned`, or `failed` where `find` refused.

    Raises:
        UsageError: if the output is neither a .png nor a folder, or one picture would be made of
            several files.
    """
    found: list[tuple[Path, Path] | Outcome] = []
    for source in dict.fromkeys(sources):
        try:
            for path in find([source]):
                inside = path.relative_to(source).parent if source.is_dir() else Path()
                found.append((path, inside))
        except InputError as error:
            found.append(Outcome(source, None, "failed", error=error))
    if output is not None and not output.is_dir() and (output.suffix or output.exists()):
        if output.suffix.lower() != ".png":
            raise UsageError(
                f"{output}: is neither a .png file nor a folder",
                hint="give -o NAME.png for one picture, or a folder",
            )
        if len(found) > 1 or sources[0].is_dir():
            raise UsageError(
                f"{output}: is one picture, but there are {len(found)} recordings or photos",
                hint="give a folder to -o",
            )
        return [
            item if isinstance(item, Outcome) else Outcome(item[0], output, "planned")
            for item in found
        ]
    folder = Path() if output is None else output
    places = [folder / f[1] / f"{f[0].stem}.png" for f in found if isinstance(f, tuple)]
    crowd = Counter(str(place).casefold() for place in places)  # some file systems fold case
    outcomes = []
    for item in found:
        if isinstance(item, tuple):
            path, inside = item
            target = folder / inside / f"{path.stem}.png"
            if crowd[str(target).casefold()] > 1:
                target = target.with_name(f"{path.name}.png")
            item = Outcome(path, target, "planned")
        outcomes.append(item)
    _refuse_collisions(outcomes)
    return outcomes


def _refuse_collisions(planned: Sequence[Outcome]) -> None:
    makers: dict[str, Path] = {}
    for item in planned:
        if item.target is None:
            continue
        for path in (item.target, _overlay(item.target)):
            other = makers.setdefault(str(path).casefold(), item.source)
            if other != item.source:
                raise UsageError(
                    f"{path}: would be made of both {other} and {item.source}",
                    hint="give the folder above both, so that the tree is mirrored, or one by one",
                )


def _overlay(target: Path) -> Path:
    return target.with_name(f"{target.stem}_landmarks.png")


def run(
    make: Callable[[Path], Face],
    planned: Sequence[Outcome],
    *,
    size: int = FRAME,
    overlay: bool = False,
    overwrite: bool = False,
    skip: bool = True,
    progress: Progress = silent,
) -> Iterator[Outcome]:
    """Make the planned pictures, going on past files that cannot be used.

    Args:
        make: `SpeechToFace.generate` or `SpeechToFace.reconstruct`.
        planned: as `plan` returns them.
        size: side of the pictures, pixels.
        overlay: whether NAME_landmarks.png is written beside NAME.png.
        overwrite: whether a picture that is there already is replaced, instead of refused.
        skip: whether one that is newer than its source is skipped, instead of refused: for
            batches.
        progress: told of each file.

    Yields:
        What became of each file, as soon as it is known.

    Raises:
        OutputError: if a picture cannot be written.
    """
    for k, item in enumerate(planned):
        progress(k, len(planned), item.source.name)
        started = time.perf_counter()
        if item.target is None:
            yield item
            continue
        marks = _overlay(item.target) if overlay else None
        wanted = [path for path in (item.target, marks) if path is not None]
        there = [path for path in wanted if os.path.lexists(path)]
        try:
            if there and not overwrite:
                fresh = min(p.lstat().st_mtime for p in there) >= item.source.stat().st_mtime
                if skip and fresh and there == wanted:
                    yield Outcome(item.source, item.target, "skipped", overlay=marks)
                    continue
                raise UsageError(
                    f"{there[0]}: exists already",
                    hint="give --overwrite to replace it, or another place with -o",
                )
            face = make(item.source)
        except (InputError, UsageError) as error:
            yield Outcome(item.source, item.target, "failed", error=error)
            continue
        face.save(item.target, size=size)
        if marks is not None:
            face.save_overlay(marks, size=size)
        seconds = time.perf_counter() - started
        yield Outcome(item.source, item.target, "made", marks, None, face.clips, seconds)
    progress(len(planned), len(planned), "done")
