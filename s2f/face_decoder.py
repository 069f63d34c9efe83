"""The face decoder: an embedding becomes landmarks and a texture.

The texture is the face in the mean-shape frame; `warp` brings it to the landmarks. One class for
Cole et al.'s decoder, the seed's and the bundled one. Knows nothing of files or losses.

Source: Cole et al. 2017, section 3.1; Oh et al. 2019, section 3.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FaceDecoderConfig:
    """The shape of a face decoder. The defaults are the paper's.

    Attributes:
        embedding: values of the embedding.
        trunk: widths of the layers that both heads share; the first is the losses' `first_layers`.
        landmarks: points that the decoder predicts.
        landmark_hidden: widths of the landmark head's hidden layers.
        seed_size: side of the texture head's first map.
        seed_channels: channels of that map.
        seed_relu: whether a ReLU follows that map.
        rank: width of a linear bottleneck before that map; 0 is none.
        stages: (channels, kernel, stride) of each transposed convolution; the last gives RGB and
            has no ReLU.
        batch_norm: BatchNorm in the trunk and the landmark head (the seed's).
        output: `sigmoid`, or `linear` around a learned mean texture.
        is_face: whether the texture already is the face, with nothing to warp (the seed's).
        landmarks_68: one (i, j, weight) for each of the 68 points of iBUG order: the point is
            (1 - weight) P_i + weight P_j of the predicted ones. Empty where they are the 68.
    """

    embedding: int = 4096
    trunk: tuple[int, ...] = (1000,)
    landmarks: int = 68
    landmark_hidden: tuple[int, ...] = (512, 256)
    seed_size: int = 14
    seed_channels: int = 256
    seed_relu: bool = True
    rank: int = 0
    stages: tuple[tuple[int, int, int], ...] = (
        (128, 5, 2),
        (64, 5, 2),
        (32, 5, 2),
        (32, 5, 2),
        (3, 1, 1),
    )
    batch_norm: bool = False
    output: str = "sigmoid"
    is_face: bool = False
    landmarks_68: tuple[tuple[int, int, float], ...] = ()

    def __post_init__(self) -> None:
        if self.stages[-1][0] != 3:
            raise ValueError(f"the last stage gives {self.stages[-1][0]} channels; RGB has 3")

    @property
    def image_size(self) -> int:
        """Side of the texture, pixels."""
        size = self.seed_size
        for _, _, stride in self.stages:
            size *= stride
        return size


CONFIGS: dict[str, FaceDecoderConfig] = {
    "paper": FaceDecoderConfig(),
    "seed": FaceDecoderConfig(
        trunk=(3072, 2048),
        landmarks=72,
        landmark_hidden=(1024, 512, 256),
        batch_norm=True,
        is_face=True,
    ),
    # A wide trunk, then 40 shared 16x16 patterns laid over each other every 8 pixels: near the
    # linear model of registered faces, which needs about this many (and learns in minutes).
    "compact": FaceDecoderConfig(
        embedding=256,
        trunk=(512,),
        landmarks=189,
        landmark_hidden=(256,),
        seed_size=28,
        seed_channels=40,
        seed_relu=False,
        rank=144,
        stages=((3, 16, 8),),
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

    Attributes:
        mean_landmarks: [k 2] xy pixels: the shape that the texture is drawn in. Set from the
            training set before training; part of the checkpoint.
    """

    mean_landmarks: Tensor

    def __init__(self, config: FaceDecoderConfig) -> None:
        super().__init__()
        self.config = config
        size, width = config.image_size, config.trunk[-1]
        self.trunk = _mlp([config.embedding, *config.trunk], batch_norm=config.batch_norm)
        hidden = [width, *config.landmark_hidden]
        self.landmarks = _mlp(hidden, batch_norm=config.batch_norm)
        self.landmarks.append(nn.Linear(hidden[-1], 2 * config.landmarks))
        seed = config.seed_channels * config.seed_size**2
        self.seed = nn.Sequential(nn.Linear(config.rank or width, seed))
        if config.rank:
            self.seed.insert(0, nn.Linear(width, config.rank))
        self.stages = nn.ModuleList()
        channels = config.seed_channels
        for out, kernel, stride in config.stages:
            # padding and output padding that make each side exactly `stride` times as long
            padding = (kernel - stride + 1) // 2
            extra = stride - kernel + 2 * padding
            self.stages.append(nn.ConvTranspose2d(channels, out, kernel, stride, padding, extra))
            channels = out
        self.register_buffer("mean_landmarks", torch.zeros(config.landmarks, 2))
        if config.output == "linear":
            self.mean_texture = nn.Parameter(torch.full((3, size, size), 0.5))

    def first_layers(self, embedding: Tensor) -> Tensor:
        """The trunk's first layer, [b d] to [b w]: what the voice encoder's L1 compares."""
        first: Tensor = self.trunk[0](embedding)
        return first

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Decode embeddings [b d].

        Returns:
            landmarks [b k 2], xy pixels in the frame, and texture [b 3 s s], RGB about 0..1
            (not clamped where the config's output is linear).
        """
        x = self.trunk(embedding)
        offsets = self.landmarks(x).unflatten(1, (-1, 2))
        texture = self.seed(x).unflatten(1, (-1, self.config.seed_size, self.config.seed_size))
        if self.config.seed_relu:
            texture = texture.relu()
        for i, stage in enumerate(self.stages, start=1):
            texture = stage(texture)
            if i < len(self.stages):
                texture = texture.relu()
        if self.config.output == "linear":
            texture = texture + self.mean_texture
        else:
            texture = texture.sigmoid()
        return self.mean_landmarks + offsets, texture

    def landmarks_68(self, landmarks: Tensor) -> Tensor:
        """The 68 points of iBUG order from the predicted ones, [b k 2] to [b 68 2]."""
        if not self.config.landmarks_68:
            return landmarks
        i, j, weight = zip(*self.config.landmarks_68, strict=True)
        w = torch.tensor(weight, dtype=landmarks.dtype, device=landmarks.device)[:, None]
        return (1 - w) * landmarks[:, i] + w * landmarks[:, j]
