"""The face decoder: an embedding becomes landmarks and a texture, and these the finished face.

The texture is the face in the mean-shape frame; `draw_faces` warps it to the landmarks. One class
for Cole et al.'s decoder, the seed's and the bundled one, whose parts are in `appearance_model`.
Source: Cole et al. 2017; Oh et al. 2019.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s2f.appearance_model import Detail, LocalTexture, PartsCode, Windows
from s2f.landmarks import MAP_72
from s2f.warp import warp

STAGES = ((128, 5, 2), (64, 5, 2), (32, 5, 2), (32, 5, 2), (3, 1, 1))  # of the paper


@dataclass(frozen=True)
class FaceDecoderConfig:
    """The shape of a face decoder. The defaults are the paper's."""

    embedding: int = 4096  # values
    trunk: tuple[int, ...] = (1000,)  # widths of the layers that both heads share
    landmarks: int = 68  # points that the decoder predicts
    landmark_hidden: tuple[int, ...] = (512, 256)  # widths of the landmark head's hidden layers
    seed_size: int = 14  # side of the texture head's first map, or of its map of 8 x 8 blocks
    seed_channels: int = 256  # of that map
    seed_relu: bool = True  # whether a ReLU follows that map
    # Windows a side, where the embedding is a `PartsCode`: the texture is drawn in them, without
    # stages. `axes` are the values of the embedding a window; what is left of it are the shape's.
    windows: int = 0
    axes: int = 0
    detail: bool = False  # whether what is fainter than in photos is amplified, as `Detail` does
    # (channels, kernel, stride) of each transposed convolution; the last gives RGB, without a ReLU
    stages: tuple[tuple[int, int, int], ...] = STAGES
    batch_norm: bool = False  # in the trunk and the landmark head (the seed's)
    output: str = "sigmoid"  # or `linear`, around a learned mean texture
    is_face: bool = False  # whether the texture is the face, with nothing to warp (the seed's)
    # One (i, j, w) for each of the 68 points of iBUG order, which is (1 - w) P_i + w P_j of the
    # predicted ones; empty where they are the 68.
    landmarks_68: tuple[tuple[int, int, float], ...] = ()

    def __post_init__(self) -> None:
        if self.windows:
            if self.embedding <= self.windows**2 * self.axes:
                parts = f"{self.windows}² windows of {self.axes} values and a shape"
                raise ValueError(f"an embedding of {self.embedding} has no room for {parts}")
        elif self.stages[-1][0] != 3:
            raise ValueError(f"the last stage gives {self.stages[-1][0]} channels; RGB has 3")

    @property
    def first_width(self) -> int:
        """Values of the trunk's first layer, or of the embedding where there is no trunk."""
        return self.trunk[0] if self.trunk else self.embedding

    @property
    def image_size(self) -> int:
        """Side of the texture, pixels."""
        if self.windows:
            return self.seed_size * LocalTexture.BLOCK
        return self.seed_size * math.prod(stride for _, _, stride in self.stages)


CONFIGS: dict[str, FaceDecoderConfig] = {
    "paper": FaceDecoderConfig(),
    "seed": FaceDecoderConfig(
        trunk=(3072, 2048),
        landmarks=72,
        landmark_hidden=(1024, 512, 256),
        batch_norm=True,
        is_face=True,
        landmarks_68=MAP_72,
    ),
    # A linear model of registered faces: the embedding is its code (`start_linear`).
    "compact": FaceDecoderConfig(
        embedding=1024,
        trunk=(),
        landmarks=189,
        landmark_hidden=(),
        seed_size=28,
        windows=7,
        axes=20,
        stages=(),
        detail=True,
        output="linear",
    ),
}


def _mlp(widths: list[int], *, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        norm = [nn.BatchNorm1d(b)] if batch_norm else []
        layers.append(nn.Sequential(nn.Linear(a, b), *norm, nn.ReLU()))
    return nn.Sequential(*layers)


class FaceDecoder(nn.Module):
    """Embedding to landmarks and texture.

    `mean_landmarks` [k 2], xy pixels, is the shape that the texture is drawn in: set from the
    training set before training, and part of the checkpoint.
    """

    mean_landmarks: Tensor
    seed: nn.Sequential
    stages: nn.ModuleList
    local: LocalTexture
    detail: Detail

    def __init__(self, config: FaceDecoderConfig) -> None:
        super().__init__()
        self.config = config
        size = config.image_size
        self.trunk = _mlp([config.embedding, *config.trunk], batch_norm=config.batch_norm)
        width = [config.embedding, *config.trunk][-1]
        local = config.windows**2 * config.axes
        hidden = [width - local, *config.landmark_hidden]
        self.landmarks = _mlp(hidden, batch_norm=config.batch_norm)
        self.landmarks.append(nn.Linear(hidden[-1], 2 * config.landmarks))
        self.register_buffer("mean_landmarks", torch.zeros(config.landmarks, 2))
        if config.output == "linear":
            self.mean_texture = nn.Parameter(torch.full((3, size, size), 0.5))
        if config.detail:
            self.detail = Detail(size)
        if config.windows:
            self.local = LocalTexture(Windows(size, config.windows), config.axes)
            return
        self.seed = nn.Sequential(nn.Linear(width, config.seed_channels * config.seed_size**2))
        self.stages = nn.ModuleList()
        channels = config.seed_channels
        for out, kernel, stride in config.stages:
            # padding and output padding that make each side exactly `stride` times as long
            padding = (kernel - stride + 1) // 2
            extra = stride - kernel + 2 * padding
            self.stages.append(nn.ConvTranspose2d(channels, out, kernel, stride, padding, extra))
            channels = out

    def first_layers(self, embedding: Tensor) -> Tensor:
        """The trunk's first layer, [b d] to [b w], or the embedding: what the voice's L1 sees."""
        return self.trunk[:1](embedding)  # type: ignore[no-any-return]

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Decode embeddings [b d] to landmarks [b k 2] and textures [b 3 s s].

        Landmarks are xy pixels in the frame, textures RGB about 0..1 (not clamped where the
        config's output is linear). Both float32 under autocast too: half precision has no parts of
        a pixel.
        """
        landmarks, texture = self.plain(embedding)
        if self.config.detail:
            with torch.autocast(texture.device.type, enabled=False):
                texture = self.detail(texture)
        return landmarks, texture

    def plain(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Decode embeddings as `forward` does, without amplified detail: what is trained."""
        x = self.trunk(embedding)
        local = self.config.windows**2 * self.config.axes
        offsets: Tensor = self.landmarks(x[:, local:]).unflatten(1, (-1, 2))
        if local:  # of the difference from the mean texture
            texture = self.local(x[:, :local].unflatten(1, (-1, self.config.axes)))
        else:
            side = self.config.seed_size
            texture = self.seed(x).unflatten(1, (-1, side, side))
            texture = texture.relu() if self.config.seed_relu else texture
            for stage in self.stages[:-1]:
                texture = stage(texture).relu()
            texture = self.stages[-1](texture)
        dtype = self.mean_landmarks.dtype
        offsets, texture = offsets.to(dtype), texture.to(dtype)
        linear = self.config.output == "linear"
        texture = texture + self.mean_texture if linear else texture.sigmoid()
        return self.mean_landmarks + offsets, texture

    def landmarks_68(self, landmarks: Tensor) -> Tensor:
        """The 68 points of iBUG order from the predicted ones, [b k 2] to [b 68 2]."""
        if not self.config.landmarks_68:
            return landmarks
        i, j, weight = zip(*self.config.landmarks_68, strict=True)
        w = torch.tensor(weight, dtype=landmarks.dtype, device=landmarks.device)[:, None]
        return (1 - w) * landmarks[:, i] + w * landmarks[:, j]

    @torch.no_grad()
    def start_linear(self, textures: Tensor, landmarks: Tensor) -> PartsCode:
        """Set the weights to the linear model of the parts of some registered faces.

        The faces are textures [n 3 s s] and landmarks [n k 2]. The embedding then is their code,
        which is given back: what an encoder has to learn. What the blocks' patterns cannot show is
        left out. Raises ValueError if the config is not one that can be linear, as `compact` is.
        """
        config = self.config
        if not config.windows or config.trunk or config.landmark_hidden:
            raise ValueError("this decoder's config has no linear form")
        windows = Windows(config.image_size, config.windows)
        shape_axes = config.embedding - config.windows**2 * config.axes
        code = PartsCode.fit(textures, landmarks, windows, config.axes, shape_axes)
        self.local.fit(code.texture_axes)
        last = self.landmarks[-1]
        assert isinstance(last, nn.Linear)
        last.weight.copy_(code.shape_axes.T)
        last.bias.zero_()
        self.mean_landmarks.copy_(code.mean_landmarks)
        self.mean_texture.copy_(code.mean_texture)
        if config.detail:
            self.detail.fit(textures)
        return code


def draw_faces(decoder: FaceDecoder, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Draw the faces of embeddings [b d]: landmarks [b k 2], xy pixels, and faces [b 3 s s], RGB.

    Faces are 0..1 where the decoder's textures are warped, else as the decoder gives them.
    """
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
