"""The bundled model's face encoder: landmarks are found, the photo registered, its parts read.

A photo is warped so that its landmarks come to rest on the mean shape; there, its embedding is the
`PartsCode` of what each window shows, and of the shape. What the landmarks miss, the windows show:
the decoder draws the one warped by the other, and errors of the landmarks cancel.

Source: Cootes et al. 1998, "Active Appearance Models"; Jaderberg et al. 2015, "Spatial
Transformer Networks" (a network that registers its own input).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from s2f.landmark_finder import LandmarkFinder
from s2f.parts import PartsCode, Windows
from s2f.preprocessing import Preprocessing
from s2f.warp import warp

REDUCED = 2  # times: faces are found, and parts read, in pictures that much smaller
CERTAIN = 0.02  # deviation of a pixel, 0..1, from which on it is mostly heeded
RIDGE = 1e-3  # of reading the code in reduced pictures, in units of a window's mean variance
LEAST_APART = 8.0  # pixels between the eyes
EYES_68 = (range(36, 42), range(42, 48))


@dataclass(frozen=True)
class PartsEncoderConfig:
    """The shape of the encoder.

    Attributes:
        embedding: values of the embedding: `windows`² times `axes`, and those of the shape.
        landmarks: points that are found: 189 of the template, or 68 of iBUG order.
        windows: a side.
        axes: values a window.
        finder: channels of the `LandmarkFinder`.
        architecture: tells its checkpoints from those of VGG-Face.
    """

    embedding: int = 1024
    landmarks: int = 189
    windows: int = 7
    axes: int = 20
    finder: tuple[int, ...] = (24, 32, 64, 96, 128, 96, 64)
    architecture: str = "parts"

    image_size: ClassVar[int] = 224  # pixels: the frame that landmarks are in
    identities: ClassVar[int] = 0
    final_relu: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.shape_axes < 1:
            raise ValueError(
                f"an embedding of {self.embedding} has no room for {self.windows}² windows of "
                f"{self.axes} values and a shape"
            )

    @property
    def shape_axes(self) -> int:
        """Values of the shape."""
        return self.embedding - self.windows**2 * self.axes


CONFIGS = {"compact": PartsEncoderConfig()}


class PartsEncoder(nn.Module):
    """A photo to its embedding: `forward` takes [b 3 224 224] RGB 0..1 and returns [b d].

    Attributes:
        finder: of the landmarks, in pictures of half the side.
        mean_landmarks: [k 2], the shape that photos are registered to.
        mean_texture: [3 112 112].
        reading: [n² a 3·w·w], what the windows' values are read by.
        shape_axes, shape_code: [m 2k], as `PartsCode` has them.
        neutral: what is added to the code that was read: a smile is taken off. Zero at first.
    """

    mean_landmarks: Tensor
    mean_texture: Tensor
    shape_axes: Tensor
    shape_code: Tensor
    reading: Tensor

    def __init__(self, config: PartsEncoderConfig, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.config, self.preprocessing = config, preprocessing
        self.finder = LandmarkFinder(config.landmarks, config.finder)
        self.windows = Windows(config.image_size // REDUCED, config.windows)
        values = 3 * (2 * self.windows.pitch) ** 2
        m, k = config.shape_axes, config.landmarks
        shapes = {
            "mean_landmarks": (k, 2),
            "mean_texture": (3, self.windows.size, self.windows.size),
            "shape_axes": (m, 2 * k),
            "shape_code": (m, 2 * k),
            "reading": (config.windows**2, config.axes, values),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))
        self.neutral = nn.Linear(config.embedding, config.embedding)
        nn.init.zeros_(self.neutral.weight)
        nn.init.zeros_(self.neutral.bias)

    def resize(self, faces: Tensor) -> Tensor:
        """Bring [b 3 h w] to this network's input size by averaging.

        Raises:
            ValueError: if their size is no multiple of it.
        """
        ratio, rest = divmod(faces.shape[-1], self.config.image_size)
        if rest:
            raise ValueError(
                f"{faces.shape[-1]} pixels are no multiple of {self.config.image_size}"
            )
        return functional.avg_pool2d(faces, ratio) if ratio > 1 else faces

    def forward(self, faces: Tensor) -> Tensor:
        """Embed faces: [b 3 h w] RGB 0..1 to [b d]; float32 under autocast too."""
        read = self.read(faces)
        with torch.autocast(faces.device.type, enabled=False):
            # The weight may have stayed half, for the autocast that is off here.
            weight, bias = self.neutral.weight.to(read.dtype), self.neutral.bias
            return read + functional.linear(read, weight, bias)

    @torch.no_grad()
    def embed_each(self, faces: Tensor) -> Tensor:
        """Embed faces one by one: the same bits, whatever faces they come with."""
        faces = faces.to(self.mean_texture.device)
        return torch.cat([self(face) for face in torch.split(faces, 1)])

    def find(self, faces: Tensor) -> Tensor:
        """Find landmarks [b k 2] in faces [b 3 h w], xy pixels of the 224 frame."""
        small: Tensor = self.finder(functional.avg_pool2d(self.resize(faces), REDUCED))
        return in_frame(small)

    def read(self, faces: Tensor) -> Tensor:
        """Read the code of faces as they look: [b 3 h w] to [b d]."""
        faces = self.resize(faces)
        points = self.find(faces)
        with torch.autocast(faces.device.type, enabled=False):
            faces = faces.to(points.dtype)
            eyes, usual = _eyes(points), _eyes(self.mean_landmarks[None])
            framed = _moved(points, eyes, usual)
            shape = (framed - self.mean_landmarks).flatten(1) @ self.shape_code.T
            # The windows look where the code of the shape says, so that they show the rest.
            framed = self.mean_landmarks + (shape @ self.shape_axes).view_as(framed)
            points = _moved(framed, usual, eyes)
            registered = warp(faces, points, self.mean_landmarks[None])
            small = functional.avg_pool2d(registered, REDUCED) - self.mean_texture
            parts = torch.einsum("bnv,nav->bna", self.windows.cut(small), self.reading)
            return torch.cat([parts.flatten(1), shape], 1)

    @torch.no_grad()
    def fit(self, code: PartsCode, textures: Tensor) -> None:
        """Learn to read a code from reduced pictures, by ridge regression in each window.

        Where training's textures do not vary, as before a plain background, a photo may show
        anything: what is there is not heeded.

        Args:
            code: of textures of the full size.
            textures: registered, [n 3 224 224].
        """
        small = functional.avg_pool2d(textures, REDUCED)
        mean = functional.avg_pool2d(code.mean_texture[None], REDUCED)[0]
        self.mean_landmarks.copy_(code.mean_landmarks)
        self.mean_texture.copy_(mean)
        self.shape_axes.copy_(code.shape_axes)
        self.shape_code.copy_(code.shape_code)
        small, away = small - mean, textures - code.mean_texture
        varies = small.var(0, correction=0, keepdim=True)
        heeded = self.windows.cut((varies / (varies + CERTAIN**2)).sqrt())[0]
        for k, faded in enumerate(self.windows.fade().repeat(1, 3) * heeded):
            values = (code.windows.one(away, k) @ code.texture_code[k].T).double()  # [n a]
            rows = (self.windows.one(small, k) * faded).double()
            products = rows @ rows.T
            products.diagonal().add_(RIDGE * products.diagonal().mean() + 1e-9)
            factor = torch.linalg.cholesky(products)
            weight = rows.T @ torch.cholesky_solve(values, factor)
            self.reading[k] = weight.T.float() * faded


def in_frame(points: Tensor) -> Tensor:
    """Bring landmarks from the reduced pictures to the 224 frame."""
    return (points + 0.5) * REDUCED - 0.5


def _moved(points: Tensor, given: Tensor, wanted: Tensor) -> Tensor:
    """Turn, scale and move landmarks [b k 2] as brings two given points to two wanted, [b 2]."""
    apart = given[:, 1] - given[:, 0]
    # An untrained finder puts all in one place, and nothing can be scaled by that.
    apart = torch.where(apart.abs() > LEAST_APART, apart, wanted[:, 1] - wanted[:, 0])
    turn = (wanted[:, 1] - wanted[:, 0]) / apart
    z = (torch.view_as_complex(points.contiguous()) - given[:, :1]) * turn[:, None]
    return torch.view_as_real(z + wanted[:, :1])


def _eyes(points: Tensor) -> Tensor:
    """Both pupils of landmarks [b k 2] as complex numbers [b 2]."""
    z = torch.view_as_complex(points.contiguous())
    if points.shape[1] == 68:
        return torch.stack([z[:, list(eye)].mean(1) for eye in EYES_68], 1)
    return z[:, :2]  # the template begins with them
