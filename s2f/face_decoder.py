"""The face decoder: an embedding becomes landmarks and a texture.

The texture is the face in the mean-shape frame; `warp` brings it to the landmarks. One class for
Cole et al.'s decoder, the seed's and the bundled one. Knows nothing of files or losses.

Source: Cole et al. 2017; Oh et al. 2019.
"""

import itertools
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional

from s2f.landmarks import MAP_72


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
        landmarks_68=MAP_72,
    ),
    # A trunk wide enough to pass the embedding on whole (ReLU of it and of its negative), then 48
    # patterns of 16x16 pixels, laid over each other every 8: enough for a linear model of
    # registered faces, from which this decoder starts (`start_linear`).
    "compact": FaceDecoderConfig(
        embedding=256,
        trunk=(512,),
        landmarks=189,
        landmark_hidden=(),
        seed_size=28,
        seed_channels=48,
        seed_relu=False,
        rank=132,
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
            (not clamped where the config's output is linear). Both float32 under autocast too:
            half precision has no parts of a pixel.
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
        offsets, texture = (x.to(self.mean_landmarks.dtype) for x in (offsets, texture))
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

    @torch.no_grad()
    def start_linear(self, textures: Tensor, landmarks: Tensor) -> "LinearCode":
        """Set the weights to the linear model of some registered faces.

        The embedding then is a code: first the textures' principal components, as many as the
        config's rank, then the landmarks'. What the stage's patterns cannot show is left out.

        Args:
            textures: [n 3 s s], registered.
            landmarks: [n k 2].

        Returns:
            The way from faces to the code: what an encoder has to learn.

        Raises:
            ValueError: if the config is not one that can be linear, as `compact` is.

        Source: Cootes et al. 1998, "Active Appearance Models".
        """
        config, d = self.config, self.config.embedding
        size, channels = config.seed_size, config.seed_channels
        (_, kernel, stride), *more = config.stages
        linear = config.output == "linear" and not (config.seed_relu or config.landmark_hidden)
        if not (linear and 0 < config.rank < d and config.trunk == (2 * d,) and not more):
            raise ValueError("this decoder's config has no linear form")
        code = LinearCode.fit(textures, landmarks, config.rank, d - config.rank)
        both = torch.cat([torch.eye(d), -torch.eye(d)])  # z = relu(z) - relu(-z)
        shape = torch.cat([torch.zeros(2 * config.landmarks, config.rank), code.landmark_axes], 1)
        # The best patterns are the principal axes of all the axes' patches, [r s s (3 p p)].
        patches = code.texture_axes.T.reshape(-1, 3, size, stride, size, stride)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)
        flat = patches.flatten(0, 2)
        patterns = torch.linalg.eigh(flat.T @ flat)[1].flip(1)[:, :channels]  # [(3 p p) c]
        inner = slice((kernel - stride) // 2, (kernel + stride) // 2)
        stage = torch.zeros(channels, 3, kernel, kernel)
        stage[:, :, inner, inner] = patterns.T.reshape(-1, 3, stride, stride)
        state = {name: torch.zeros_like(value) for name, value in self.state_dict().items()}
        state |= {
            "mean_landmarks": code.mean_landmarks,
            "mean_texture": code.mean_texture,
            "trunk.0.0.weight": both,
            "landmarks.0.weight": shape @ both.T,
            "seed.0.weight": both.T[: config.rank],
            "seed.1.weight": (patches @ patterns).permute(3, 1, 2, 0).flatten(0, 2),
            "stages.0.weight": stage,
        }
        self.load_state_dict(state)
        return code


@dataclass(frozen=True)
class LinearCode:
    """Principal components of registered faces, between whitened and not.

    A component's variance in the code goes with the root of its variance in the faces, on average
    1: so that plain distances between codes heed the large ones more, and do not drown in them.

    Attributes:
        mean_texture: [3 s s].
        mean_landmarks: [k 2].
        texture_axes: [3ss r]: what one unit of the code adds to a texture.
        landmark_axes: [2k m]: and to the landmarks.
        texture_code: [3ss r]: the way back, from a texture less the mean.
        landmark_code: [2k m].
    """

    mean_texture: Tensor
    mean_landmarks: Tensor
    texture_axes: Tensor
    landmark_axes: Tensor
    texture_code: Tensor
    landmark_code: Tensor

    @classmethod
    def fit(cls, textures: Tensor, landmarks: Tensor, rank: int, m: int) -> "LinearCode":
        """Find the components: `rank` of textures [n 3 s s], `m` of landmarks [n k 2]."""
        parts = []
        for values, count in ((textures, rank), (landmarks, m)):
            rows = (values - values.mean(0)).flatten(1)
            # through the [n n] products: the pixels are many more than the faces
            variances, vectors = torch.linalg.eigh((rows @ rows.T).double() / len(rows))
            deviation = variances.flip(0)[:count].clamp_min(0).sqrt()
            real = deviation > 1e-4 * deviation[0]  # n faces vary in at most n - 1 ways
            deviation, vectors = deviation[real], vectors.flip(1)[:, :count][:, real]
            axes = (rows.T.double() @ vectors) / len(rows) ** 0.5 / deviation
            scale = (deviation / deviation.mean()).sqrt()
            for way in (axes * deviation / scale, axes / deviation * scale):
                parts.append(functional.pad(way, (0, count - len(deviation))).float())
        texture_axes, texture_code, shape_axes, shape_code = parts
        means = textures.mean(0), landmarks.mean(0)
        return cls(*means, texture_axes, shape_axes, texture_code, shape_code)

    def __call__(self, textures: Tensor, landmarks: Tensor) -> Tensor:
        """Code [b r+m] of textures [b 3 s s] and landmarks [b k 2], float32 under autocast too."""
        with torch.autocast(textures.device.type, enabled=False):
            a = (textures - self.mean_texture).flatten(1) @ self.texture_code
            b = (landmarks - self.mean_landmarks).flatten(1) @ self.landmark_code
            return torch.cat([a, b], 1)

    def to(self, device: torch.device) -> "LinearCode":
        """The same on a device."""
        tensors = (getattr(self, field.name).to(device) for field in fields(self))
        return LinearCode(*tensors)
