"""Faces that look alike: the photos nearest to a photo, by the embeddings of a face encoder.

`directions` embeds the photos, `nearest` compares all with all, some rows at a time.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from s2f import layout
from s2f.arrays import read_array
from s2f.errors import DatasetError, ImageError
from s2f.face_encoder import FaceEncoder, batch_embedder
from s2f.images import load_face
from s2f.runtime import Progress, silent

BATCH = 32  # photos embedded at a time
CELLS = 2**24  # cosines held at a time


def directions(
    photos: Sequence[Path],
    network: FaceEncoder,
    *,
    device: torch.device,
    progress: Progress = silent,
) -> tuple[Tensor, list[ImageError]]:
    """Embed photos, or read the `NAME_embedding.npy` beside them where there is one.

    Args:
        photos: one a row.
        network: the face encoder, as `batch_embedder` takes it.
        device: to embed on.
        progress: told of each photo.

    Returns:
        Embeddings [n d] of length 1, on the CPU; zeros for photos that cannot be read, and the
        errors of these.

    Raises:
        DatasetError: if a stored embedding is not one of this encoder's length.
    """
    embed = batch_embedder(network, device=device, batch_size=BATCH)
    found = torch.zeros(len(photos), network.config.embedding)
    rows: list[int] = []
    faces: list[Tensor] = []
    bad: list[ImageError] = []
    for row, photo in enumerate(photos):
        stored = layout.beside(photo.with_suffix(""), layout.EMBEDDING)
        if stored.is_file():
            found[row] = _stored(stored, found.shape[1])
        else:
            try:
                faces.append(load_face(photo, fit=network.preprocessing.fit))
                rows.append(row)
            except ImageError as error:
                bad.append(error)
        if len(rows) == BATCH or (rows and row == len(photos) - 1):
            found[rows] = embed(torch.stack(faces).to(device).float() / 255).cpu()
            rows, faces = [], []
        progress(row + 1, len(photos), f"embedding {photo.name}")
    return functional.normalize(found, dim=1, out=found), bad


def _stored(path: Path, d: int) -> Tensor:
    found = read_array(path)
    numbers = found.dtype.kind == "f" and np.isfinite(found).all()
    if found.size != d or not numbers:
        raise DatasetError(
            f"{path}: holds an array {list(found.shape)} of {found.dtype}; wanted {[d]} finite "
            "values, as the face encoder gives them",
            hint="give the face encoder that made the embeddings, or make them again",
        )
    return torch.from_numpy(found.astype(np.float32).reshape(d))


@torch.no_grad()
def nearest(directions: Tensor, groups: Tensor, k: int, *, cells: int = CELLS) -> Tensor:
    """Find for each row the rows of other groups with the largest cosines.

    Args:
        directions: rows of length 1, [n d].
        groups: [n] int64; a row with a negative one is nobody's neighbour.
        k: how many, where there are as many rows outside the largest group.
        cells: cosines held at a time.

    Returns:
        Rows [n k], the nearest first.
    """
    sizes = torch.bincount(groups[groups >= 0])
    k = min(k, int(sizes.sum() - sizes.max()))
    rows = max(1, cells // len(groups))
    found = []
    for part, own in zip(torch.split(directions, rows), torch.split(groups, rows), strict=True):
        cosines = part @ directions.T
        cosines.masked_fill_((own[:, None] == groups) | (groups < 0), -torch.inf)
        found.append(cosines.topk(k, dim=1).indices)
    return torch.cat(found)
