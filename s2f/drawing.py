"""Drawing: embeddings become finished faces, and faces become a sheet.

A face decoder gives landmarks and a texture in the mean shape, or the face itself; here the one
becomes the other, for whoever shows a face: training's samples as well as a generated picture.
"""

import torch
from torch import Tensor

from s2f.face_decoder import FaceDecoder
from s2f.warp import warp


def draw_faces(decoder: FaceDecoder, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Draw the faces of embeddings [b d].

    Returns:
        landmarks [b k 2], xy pixels in the frame, and finished faces [b 3 s s], RGB: 0..1 where
        the decoder's textures are warped, else as the decoder gives them.
    """
    points: Tensor
    texture: Tensor
    points, texture = decoder(embeddings)
    faces = finished(decoder, texture, points)
    return points, faces if decoder.config.is_face else faces.clamp(0, 1)


def finished(decoder: FaceDecoder, texture: Tensor, points: Tensor) -> Tensor:
    """Bring a decoder's textures [b 3 s s] to landmarks [b k 2], where they are not faces yet."""
    if decoder.config.is_face:
        return texture
    return warp(texture, decoder.mean_landmarks[None], points)


def sheet(*rows: Tensor) -> Tensor:
    """Lay rows of pictures [b 3 h w] one below the other, as one picture [3 H W]."""
    return torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
