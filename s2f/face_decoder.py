"""The face decoder: an embedding becomes landmarks and a texture, and these the finished face.

The texture is the face in the mean-shape frame; `draw_faces` warps it to the landmarks. One class
for Cole et al.'s decoder, the seed's and the bundled one, whose parts are in `appearance_model`.
Source: Cole et al. 2017; Oh et al. 2019.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from s2f.appearance_model import Detail, LocalTexture, PartsCode, Windows, before_ground, placed
from s2f.landmarks import MAP_72

# Deviations from the mean face beyond which `FaceDecoder.distance` is no usual photo's: the most of
# 252 photos of 9 people whom the bundled model's training never saw (`benchmarks/RESULTS.md`).
FAR = 1.7
FOREIGN_RIDGE = 0.1  # of a start from the code of other faces; chosen on validation people
INNER = (0.3, 0.7), (0.3, 0.8)  # of the frame, across and down: from brows to mouth, no hair

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
    opacity: bool = False  # whether the texture has a fourth channel, of `opacity`
    detail: bool = False  # whether what is fainter than in photos is amplified, as `Detail` does
    # (channels, kernel, stride) of each transposed convolution; the last gives RGB, without a ReLU
    stages: tuple[tuple[int, int, int], ...] = STAGES
    batch_norm: bool = False  # in the trunk and the landmark head (the seed's)
    output: Literal["sigmoid", "linear"] = "sigmoid"  # linear: around a learned mean texture
    is_face: bool = False  # whether the texture is the face, with nothing to warp (the seed's)
    # One (i, j, w) for each of the 68 points of iBUG order, which is (1 - w) P_i + w P_j of the
    # predicted ones; empty where they are the 68.
    landmarks_68: tuple[tuple[int, int, float], ...] = ()

    def __post_init__(self) -> None:
        if self.windows:
            if self.embedding <= self.windows**2 * self.axes:
                parts = f"{self.windows}² windows of {self.axes} values and a shape"
                raise ValueError(f"an embedding of {self.embedding} has no room for {parts}")
        elif self.opacity:
            raise ValueError("only textures that are drawn in windows have an opacity")
        elif not self.stages or self.stages[-1][0] != 3:
            raise ValueError(f"the last stage gives no RGB: {self.stages}")
        elif not all(kernel >= stride > 0 for _, kernel, stride in self.stages):
            raise ValueError(f"a stage's kernel is narrower than its stride: {self.stages}")
        if any(max(i, j) >= self.landmarks for i, j, _ in self.landmarks_68):
            raise ValueError(f"landmarks_68 names points beyond the {self.landmarks}")

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
        opacity=True,
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
            channels = 4 if config.opacity else 3
            self.mean_texture = nn.Parameter(torch.full((channels, size, size), 0.5))
        if config.detail:
            self.detail = Detail(size)
        if config.windows:
            windows = Windows(size, config.windows)
            self.local = LocalTexture(windows, config.axes, len(self.mean_texture))
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

    def first_layers(self, embedding: Tensor, layers: int = 1) -> Tensor:
        """What a voice's embedding is compared by: features of the trunk's first layers.

        [b d] to [b w]; of all its layers where it has no more, and the embedding where it has none.
        """
        return self.trunk[:layers](embedding)  # type: ignore[no-any-return]

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Decode embeddings [b d] to landmarks [b k 2] and textures [b 3 s s], or [b 4 s s].

        Landmarks are xy pixels in the frame, textures RGB about 0..1 (not clamped where the
        config's output is linear) and, where the config has it, the channel of `opacity`. Both
        float32 under autocast too: half precision has no parts of a pixel.
        """
        landmarks, texture = self.plain(embedding)
        if self.config.detail:
            with torch.autocast(texture.device.type, enabled=False):
                texture = torch.cat([self.detail(texture[:, :3]), texture[:, 3:]], 1)
        return landmarks, texture

    def plain(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Decode embeddings as `forward` does, without amplified detail: what is trained."""
        x = self.trunk(embedding)
        local = self.config.windows**2 * self.config.axes
        landmarks = self._points(x)
        if local:  # of the difference from the mean texture
            texture = self.local(x[:, :local].unflatten(1, (-1, self.config.axes)))
        else:
            side = self.config.seed_size
            texture = self.seed(x).unflatten(1, (-1, side, side))
            texture = texture.relu() if self.config.seed_relu else texture
            for stage in self.stages[:-1]:
                texture = stage(texture).relu()
            texture = self.stages[-1](texture)
        texture = texture.to(self.mean_landmarks.dtype)
        linear = self.config.output == "linear"
        return landmarks, texture + self.mean_texture if linear else texture.sigmoid()

    def points(self, embedding: Tensor) -> Tensor:
        """Decode embeddings [b d] to landmarks [b k 2] alone."""
        return self._points(self.trunk(embedding))

    def _points(self, features: Tensor) -> Tensor:
        local = self.config.windows**2 * self.config.axes
        offsets: Tensor = self.landmarks(features[:, local:]).unflatten(1, (-1, 2))
        return self.mean_landmarks + offsets.to(self.mean_landmarks.dtype)

    def landmarks_68(self, landmarks: Tensor) -> Tensor:
        """The 68 points of iBUG order from the predicted ones, [b k 2] to [b 68 2]."""
        if not self.config.landmarks_68:
            return landmarks
        i, j, weight = zip(*self.config.landmarks_68, strict=True)
        w = torch.tensor(weight, dtype=landmarks.dtype, device=landmarks.device)[:, None]
        return (1 - w) * landmarks[:, i] + w * landmarks[:, j]

    @torch.no_grad()
    def distance(self, embeddings: Tensor) -> Tensor | None:
        """How far embeddings [b d] lie from the mean face, in deviations of training's faces: [b].

        None where embeddings are no `PartsCode`, and nothing is known of them. It is the root mean
        square of the shape's values or, if that is larger, of those of the windows from brows to
        mouth, where photos show what training's faces do; each in terms of its own spread, which
        the length of its axis tells. `FAR` says what is usual.
        """
        config = self.config
        if not config.windows or config.trunk or config.landmark_hidden:
            return None
        last = self.landmarks[-1]
        assert isinstance(last, nn.Linear)
        local = config.windows**2 * config.axes
        values = embeddings.to(last.weight.device).float()
        shape = _standard(values[:, local:], last.weight.float().norm(dim=0))
        centres = (torch.arange(config.windows, device=values.device) + 0.5) / config.windows
        across, down = ((centres > low) & (centres < high) for low, high in INNER)
        inner = (down[:, None] & across).flatten()
        lengths = self.local.axes.float().norm(dim=2)
        texture = _standard(values[:, :local].view(-1, *lengths.shape), lengths)[:, inner]
        squares = [x.square().flatten(1).sum(1) / max(1, x[0].numel()) for x in (shape, texture)]
        return torch.maximum(*squares).sqrt()

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
            self.detail.fit(textures[:, :3])
        return code

    @torch.no_grad()
    def draw_from(self, embeddings: Tensor, textures: Tensor, landmarks: Tensor) -> None:
        """Have a linear start draw faces from embeddings [n d] that are a code of other faces.

        The same windows of both codes show the same of a face, but along other axes: those of the
        textures [n c s s] and landmarks [n k 2] by them are found by ridge regression, with
        `FOREIGN_RIDGE` for each value, in units of its variance.
        """
        config = self.config
        windows = Windows(config.image_size, config.windows)
        local = config.windows**2 * config.axes
        mean = embeddings.mean(0)
        x = embeddings - mean
        away, fade = textures - self.mean_texture, windows.fade().repeat(1, textures.shape[1])
        axes = []
        for k, values in enumerate(torch.split(x[:, :local], config.axes, dim=1)):
            axes.append(_regress(values, windows.one(away, k) * fade[k]) * fade[k])
        self.local.fit(torch.stack(axes))
        last = self.landmarks[-1]
        assert isinstance(last, nn.Linear)
        moved = (landmarks - self.mean_landmarks).flatten(1)
        last.weight.copy_(_regress(x[:, local:], moved).T)
        last.bias.copy_(-last.weight @ mean[local:])
        usual: Tensor = self.local(mean[:local].view(1, -1, config.axes))
        self.mean_texture.sub_(usual[0])


def _regress(x: Tensor, y: Tensor) -> Tensor:
    """Regress y [n v] on centred x [n a]: what a unit of each adds, [a v]."""
    x, y = x.double(), y.double()
    products, spread = x.T @ x, x.square().sum(0)
    products.diagonal().add_(FOREIGN_RIDGE * spread + 1e-6 * spread.mean() + 1e-12)
    solved: Tensor = torch.linalg.solve(products, x.T @ y)
    return solved.float()


def _standard(values: Tensor, lengths: Tensor) -> Tensor:
    """Values of a `PartsCode` in terms of their spreads, from the lengths of their axes.

    Both are proportional: an axis of deviation d is as long as the root of d times the mean, and
    its values spread as the root of d over the mean. Axes of nothing count as nothing.
    """
    real = lengths > 1e-6 * lengths.max()
    spread = lengths / lengths[real].square().mean().sqrt()
    return torch.where(real, values / spread.where(real, 1), 0)


def draw_faces(decoder: FaceDecoder, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Draw the faces of embeddings [b d]: landmarks [b k 2], xy pixels, and faces [b 3 s s], RGB.

    Faces are 0..1 where the decoder's textures are warped, else as the decoder gives them.
    """
    points, texture = decoder(embeddings)
    faces = finished(decoder, texture, points)
    return points, faces if decoder.config.is_face else faces.clamp(0, 1)


def finished(decoder: FaceDecoder, texture: Tensor, points: Tensor) -> Tensor:
    """Bring a decoder's textures to landmarks [b k 2], where they are not faces yet: [b 3 s s]."""
    if decoder.config.is_face:
        return before_ground(texture)
    return placed(texture, decoder.mean_landmarks[None], points)


def sheet(*rows: Tensor) -> Tensor:
    """Lay rows of pictures [b 3 h w] one below the other, as one picture [3 H W]."""
    return torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
