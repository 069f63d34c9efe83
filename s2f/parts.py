"""The parts of registered faces: a code that is read and drawn window by window.

A texture is seen through overlapping windows that fade to their edges. What faces look like
through one varies along few axes, those of its principal components; a face's values on the axes of
all windows, and on those of its shape, are its code. Unlike axes of whole faces, those of parts
can be put together to a person who resembles nobody that they were found from.

Tensors in, tensors out. Source: Cootes et al. 1998, "Active Appearance Models", for whole faces.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

BLOCK_CHANNELS = 48  # patterns that blocks of 8 x 8 pixels are drawn from


@dataclass(frozen=True)
class Windows:
    """Where the windows lie: a grid, each twice as wide as its pitch.

    Attributes:
        size: side of the picture, pixels.
        count: windows a side.

    Raises:
        ValueError: if that does not divide the size into parts of an even length.
    """

    size: int
    count: int

    def __post_init__(self) -> None:
        if self.size % (2 * self.count):
            raise ValueError(f"{self.count} windows a side do not fit into {self.size}: not even")

    @property
    def pitch(self) -> int:
        """Pixels from one window to the next."""
        return self.size // self.count

    def one(self, pictures: Tensor, number: int) -> Tensor:
        """Cut one window out of pictures [b c s s], as `cut` does: [b c·w·w]."""
        pitch, size = self.pitch, self.size
        y, x = (at * pitch - pitch // 2 for at in divmod(number, self.count))
        inside = pictures[..., max(y, 0) : y + 2 * pitch, max(x, 0) : x + 2 * pitch]
        left, right, above, below = (
            max(over, 0) for at in (x, y) for over in (-at, at + 2 * pitch - size)
        )
        return functional.pad(inside, (left, right, above, below)).flatten(1)

    def cut(self, pictures: Tensor) -> Tensor:
        """Cut pictures [b c s s] into windows [b n² c·w·w], w twice the pitch; zeros outside."""
        pitch = self.pitch
        return functional.unfold(pictures, 2 * pitch, padding=pitch // 2, stride=pitch).mT

    def join(self, windows: Tensor) -> Tensor:
        """Add windows [b n² c·w·w] up to pictures [b c s s]."""
        pitch = self.pitch
        return functional.fold(windows.mT, self.size, 2 * pitch, padding=pitch // 2, stride=pitch)

    def fade(self) -> Tensor:
        """Weights [n² w·w] of the windows' pixels; their squares add up to 1 in each pixel."""
        x = (torch.arange(2 * self.pitch) + 0.5) / self.pitch
        tent = torch.minimum(x, 2 - x)
        total = self.join((tent[:, None] * tent).flatten().expand(1, self.count**2, -1))
        share = self.cut(1 / total)[0]
        return ((tent[:, None] * tent).flatten() * share).sqrt()


class LocalTexture(nn.Module):
    """Draws pictures [b 3 s s] from the values [b n² a] of their windows' axes.

    The pictures are made of blocks of 8 x 8 pixels, and those of some patterns.

    Attributes:
        axes: [n² a c·v·v]: for each axis of a window, the patterns of its v x v blocks.
        patterns: [c 3 8 8].
    """

    BLOCK = 8

    def __init__(self, windows: Windows, axes: int) -> None:
        super().__init__()
        self.blocks = Windows(windows.size // self.BLOCK, windows.count)
        values = BLOCK_CHANNELS * (2 * self.blocks.pitch) ** 2
        self.axes = nn.Parameter(torch.zeros(windows.count**2, axes, values))
        self.patterns = nn.Parameter(torch.zeros(BLOCK_CHANNELS, 3, self.BLOCK, self.BLOCK))

    def forward(self, values: Tensor) -> Tensor:
        """Draw pictures."""
        windows = torch.einsum("bna,nav->bnv", values, self.axes)
        blocks = self.blocks.join(windows)
        return functional.conv_transpose2d(blocks, self.patterns, stride=self.BLOCK)

    @torch.no_grad()
    def fit(self, axes: Tensor, windows: Windows) -> None:
        """Find the patterns that show axes [n² a 3·w·w] best, and show them by these."""
        n, a, _ = axes.shape
        side, block = 2 * windows.pitch, self.BLOCK
        cut = axes.view(n, a, 3, side // block, block, side // block, block)
        cut = cut.permute(0, 1, 3, 5, 2, 4, 6).flatten(4)  # [n² a v v 3·8·8]
        flat = cut.flatten(0, 3)
        patterns = torch.linalg.eigh((flat.T @ flat).double())[1].flip(1)[:, :BLOCK_CHANNELS]
        patterns = patterns.float()
        self.patterns.copy_(patterns.T.reshape(self.patterns.shape))
        self.axes.copy_((cut @ patterns).permute(0, 1, 4, 2, 3).flatten(2))


@dataclass(frozen=True)
class PartsCode:
    """What registered faces vary along: in each window, and in shape.

    A value of the code is one of a principal component, between whitened and not: its variance
    goes with the root of the component's, so that plain distances between codes heed large
    differences more, and do not drown in them. The texture's values come first.

    Attributes:
        windows: of the textures.
        mean_texture: [3 s s].
        mean_landmarks: [k 2].
        texture_axes: [n² a 3·w·w]: what one unit adds to a window.
        texture_code: [n² a 3·w·w]: what a window's difference from the mean is read by.
        shape_axes: [m 2k]: what one unit adds to the landmarks.
        shape_code: [m 2k].
    """

    windows: Windows
    mean_texture: Tensor
    mean_landmarks: Tensor
    texture_axes: Tensor
    texture_code: Tensor
    shape_axes: Tensor
    shape_code: Tensor

    @classmethod
    def fit(
        cls, textures: Tensor, landmarks: Tensor, windows: Windows, axes: int, shape_axes: int
    ) -> "PartsCode":
        """Find the axes of registered textures [n 3 s s] and landmarks [n k 2].

        Args:
            textures: what the windows cut.
            landmarks: of the same faces.
            windows: where they lie.
            axes: in each window.
            shape_axes: of the landmarks.
        """
        fade = windows.fade().repeat(1, 3)  # [n² 3·w·w]
        # Summed exactly: a mean that is rounded is an offset that a plain background varies by.
        mean_texture, mean_landmarks = (
            x.mean(0, dtype=torch.double).float() for x in (textures, landmarks)
        )
        away = textures - mean_texture
        found = [_components(windows.one(away, k) * fade[k], axes) for k in range(len(fade))]
        deviations, directions = (torch.stack(part) for part in zip(*found, strict=True))
        to, back = _scaled(deviations, directions)
        shape = _components((landmarks - mean_landmarks).flatten(1), shape_axes)
        shape_to, shape_back = _scaled(*shape)
        return cls(
            windows,
            mean_texture,
            mean_landmarks,
            to * fade[:, None],
            back * fade[:, None],
            shape_to,
            shape_back,
        )

    def __call__(self, textures: Tensor, landmarks: Tensor) -> Tensor:
        """Code [b n²·a+m] of textures [b 3 s s] and landmarks [b k 2]; float32 under autocast."""
        with torch.autocast(textures.device.type, enabled=False):
            cut = self.windows.cut(textures - self.mean_texture)
            values = torch.einsum("bnv,nav->bna", cut, self.texture_code).flatten(1)
            shape = (landmarks - self.mean_landmarks).flatten(1) @ self.shape_code.T
            return torch.cat([values, shape], 1)


def _components(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Deviations [count] and directions [count v] of rows [n v]; zeros beyond what there is."""
    # through the [n n] products: the pixels may be many more than the faces
    variances, vectors = torch.linalg.eigh(rows.double() @ rows.T.double() / len(rows))
    deviations = variances.flip(0)[:count].clamp_min(0).sqrt()
    # n faces vary in at most n - 1 ways, and a plain background in none
    real = deviations > max(1e-4 * float(deviations[0]), 1e-6)
    deviations, vectors = deviations[real], vectors.flip(1)[:, :count][:, real]
    directions = (rows.T.double() @ vectors) / len(rows) ** 0.5 / deviations
    missing = count - len(deviations)
    deviations = functional.pad(deviations, (0, missing))
    return deviations.float(), functional.pad(directions.T, (0, 0, 0, missing)).float()


def _scaled(deviations: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Axes for one unit of the code, and what reads the code: of the same shape as directions."""
    real = deviations > 0
    scale = (deviations / deviations[real].mean()).sqrt() if real.any() else deviations
    to = torch.where(real, deviations / scale, 0)[..., None] * directions
    back = torch.where(real, scale / deviations, 0)[..., None] * directions
    return to, back
