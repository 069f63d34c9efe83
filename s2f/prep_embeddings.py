"""The step of `s2f prep embeddings`: a photo becomes its embedding, NAME_embedding.npy.

Photos are read in the workers, as the checkpoint's preprocessing wants them, and embedded here in
batches. Planning reads the checkpoint's header; its network is loaded when the first batch comes.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2f import checkpoint, embeddings, layout
from s2f.arrays import save_array
from s2f.errors import CheckpointError, DatasetError
from s2f.face_encoder import FaceEncoder, batch_embedder
from s2f.header import read_header
from s2f.images import Fit, load_face
from s2f.runtime import choose_device
from s2f.step import Step


@dataclass(frozen=True)
class Space:
    """What the embeddings of a face encoder are, by the header of its checkpoint.

    Attributes:
        sha256: the embedding space.
        embedding: values of an embedding.
        fit: how photos are brought to its input.
        preprocessing: all of it, plain JSON.
    """

    sha256: str
    embedding: int
    fit: Fit
    preprocessing: Mapping[str, Any]


def read_space(checkpoint_path: Path) -> Space:
    """Read what the embeddings of a face encoder are, without its weights.

    Raises:
        CheckpointError: if it is not the checkpoint of a face encoder.
    """
    header = read_header(checkpoint_path, "face_encoder")
    config, preprocessing = header["config"], header["preprocessing"]
    try:
        values, fit = int(config["embedding"]), preprocessing["fit"]
    except (KeyError, TypeError, ValueError) as error:
        raise _undescribed(checkpoint_path, f"{error!r}") from error
    if fit not in get_args(Fit):
        raise _undescribed(checkpoint_path, f"fit {fit!r}")
    return Space(header["embedding_space"], values, fit, preprocessing)


def _undescribed(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: its header does not describe a face encoder: {what}",
        hint="it was made by another version of s2f",
    )


def embeddings_step(checkpoint_path: Path, device: str = "auto", batch_size: int = 32) -> Step:
    """Describe how photos become embeddings, float32 [d].

    Args:
        checkpoint_path: of a face encoder; what it makes depends on its weights and its
            preprocessing, and hardly on the device.
        device: as `runtime.choose_device` takes it.
        batch_size: photos at a time.

    Raises:
        CheckpointError: if it is not the checkpoint of a face encoder.
        DeviceError: if the device is not there.
    """
    space = read_space(checkpoint_path)
    net = Embedder(checkpoint_path, choose_device(device), batch_size)
    return Step(
        name="embeddings",
        wants=layout.is_photo,
        sources="photos",
        rename=functools.partial(layout.renamed, ending=layout.EMBEDDING),
        settings={"embedding_space": space.sha256, "preprocessing": space.preprocessing},
        work=functools.partial(read_photo, fit=space.fit),
        net=net,
        save=save_array,
        batch_size=batch_size,
        preload=(__name__,),
    )


class Embedder:
    """Embeds photos; reads its checkpoint when it gets the first ones."""

    def __init__(self, path: Path, device: torch.device, batch_size: int) -> None:
        self.path, self.device, self.batch_size = path, device, batch_size
        self._embed: Callable[[Tensor], Tensor] | None = None

    def __call__(self, photos: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Embed up to `batch_size` photos [3 h w], RGB, as `read_photo` gives them.

        Returns:
            An embedding [d] for each.

        Raises:
            CheckpointError: if the checkpoint is damaged.
        """
        if self._embed is None:
            self._embed = _embedder(self.path, self.device, self.batch_size)
        faces = torch.from_numpy(np.stack(photos)).to(self.device).float() / 255
        return list(self._embed(faces).cpu().numpy())


def _embedder(path: Path, device: torch.device, batch_size: int) -> Callable[[Tensor], Tensor]:
    network = checkpoint.load(path, "face_encoder").network
    assert isinstance(network, FaceEncoder)
    return batch_embedder(network, device=device, batch_size=batch_size)


def read_photo(path: Path, part: Path | None = None, *, fit: Fit) -> NDArray[np.uint8]:
    """Read a photo as the face encoder wants it: [3 224 224] RGB.

    Raises:
        ImageError: if it cannot be read.
    """
    return np.ascontiguousarray(load_face(path, fit=fit).numpy())


def check_embeddings(paths: Sequence[Path], checkpoint_path: Path) -> None:
    """Make sure that a face encoder made the embeddings beside photos, as `embeddings.check`.

    Args:
        paths: of the embeddings.
        checkpoint_path: of the face encoder.

    Raises:
        DatasetError: if one has no photo beside it, or cannot be read.
        ImageError: if none of their photos can be read.
        CheckpointError: if another face encoder made one.
    """
    space = read_space(checkpoint_path)
    embed = _embedder(checkpoint_path, torch.device("cpu"), embeddings.BATCH)
    maker = embeddings.Maker(str(checkpoint_path), space.embedding, space.fit, embed)
    embeddings.check(maker, paths, _photo)


def _photo(embedding: Path) -> Path:
    stem = embedding.name.removesuffix(layout.EMBEDDING)
    beside = sorted(path for path in embedding.parent.iterdir() if path.stem == stem)
    for path in beside:
        if layout.is_photo(path.name):
            return path
    raise DatasetError(
        f"{embedding}: has no photo beside it to check it with",
        hint=f"keep NAME.jpg, for instance, beside NAME{layout.EMBEDDING}",
    )
