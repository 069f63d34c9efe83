"""The networks of the bundled model: a face is a code of its parts, which is read and drawn.

Unlike axes of whole faces (Cootes et al. 1998, "Active Appearance Models"), those of parts can be
put together to a person who resembles nobody that they were found from. `LocalTexture` draws a
`PartsCode`, `Detail` gives back what averaging takes from a texture, and `PartsEncoder` reads the
code of a photo, whose landmarks its `LandmarkFinder` finds. `face_decoder` puts the drawing half
together. Tensors in, tensors out.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from s2f.images import FRAME, Preprocessing
from s2f.warp import warp

BLOCK_CHANNELS = 48  # patterns that blocks of 8 x 8 pixels are drawn from


@dataclass(frozen=True)
class Windows:
    """A grid of windows, each twice as wide as its pitch; ValueError if that is not even."""

    size: int  # side of the picture, pixels
    count: int  # windows a side

    def __post_init__(self) -> None:
        if self.size % (2 * self.count):
            raise ValueError(f"{self.count} windows a side do not fit into {self.size}: not even")

    @property
    def pitch(self) -> int:
        """Pixels from one window to the next."""
        return self.size // self.count

    def cut(self, pictures: Tensor) -> Tensor:
        """Cut pictures [b c s s] into windows [b n² c·w·w], w twice the pitch; zeros outside."""
        pitch = self.pitch
        return functional.unfold(pictures, 2 * pitch, padding=pitch // 2, stride=pitch).mT

    def one(self, pictures: Tensor, number: int) -> Tensor:
        """Cut one window out of pictures [b c s s], as `cut` does, without a copy of them all."""
        pitch = self.pitch
        y, x = (at * pitch - pitch // 2 for at in divmod(number, self.count))
        inside = pictures[..., max(y, 0) : y + 2 * pitch, max(x, 0) : x + 2 * pitch]
        margins = [max(m, 0) for at in (x, y) for m in (-at, at + 2 * pitch - self.size)]
        return functional.pad(inside, margins).flatten(1)

    def join(self, windows: Tensor) -> Tensor:
        """Add windows [b n² c·w·w] up to pictures [b c s s]."""
        pitch = self.pitch
        return functional.fold(windows.mT, self.size, 2 * pitch, padding=pitch // 2, stride=pitch)

    def fade(self) -> Tensor:
        """Weights [n² w·w] of the windows' pixels; their squares add up to 1 in each pixel."""
        x = (torch.arange(2 * self.pitch) + 0.5) / self.pitch
        side = torch.minimum(x, 2 - x)
        tent = (side[:, None] * side).flatten()
        total = self.join(tent.expand(1, self.count**2, -1))
        return (tent * self.cut(1 / total)[0]).sqrt()


@dataclass(frozen=True)
class PartsCode:
    """What registered faces vary along: in each window, and in shape.

    A value of the code is one of a principal component, between whitened and not: its variance goes
    with the root of the component's, so that plain distances between codes heed large differences
    more, and do not drown in them. The texture's values come first.
    """

    windows: Windows  # of the textures
    mean_texture: Tensor  # [c s s], RGB and, if there is one, the opacity
    mean_landmarks: Tensor  # [k 2]
    texture_axes: Tensor  # [n² a c·w·w]: what one unit adds to a window
    texture_code: Tensor  # [n² a c·w·w]: what a window's difference from the mean is read by
    shape_axes: Tensor  # [m 2k]: what one unit adds to the landmarks
    shape_code: Tensor  # [m 2k]

    @classmethod
    def fit(
        cls, textures: Tensor, landmarks: Tensor, windows: Windows, axes: int, shape_axes: int
    ) -> "PartsCode":
        """Find `axes` a window of textures [n c s s], and `shape_axes` of landmarks [n k 2]."""
        # Summed exactly: a mean that is rounded is an offset that a plain background varies by.
        mean, middle = (x.mean(0, dtype=torch.double).float() for x in (textures, landmarks))
        away = textures - mean
        fade = windows.fade().repeat(1, textures.shape[1])  # [n² c·w·w]
        found = [_components(windows.one(away, k) * fade[k], axes) for k in range(len(fade))]
        # All windows' values share one scale.
        to, back = _scaled(*(torch.stack(part) for part in zip(*found, strict=True)))
        shape = _scaled(*_components((landmarks - middle).flatten(1), shape_axes))
        fade = fade[:, None]
        return cls(windows, mean, middle, to * fade, back * fade, *shape)

    def __call__(self, textures: Tensor, landmarks: Tensor) -> Tensor:
        """Code [b n²·a+m] of textures [b c s s] and landmarks [b k 2]; float32 under autocast."""
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


class LocalTexture(nn.Module):
    """Draws pictures [b c s s], of blocks of 8 x 8 pixels, from the values [b n² a] of windows."""

    BLOCK = 8

    def __init__(self, windows: Windows, axes: int, channels: int = 3) -> None:
        super().__init__()
        self.blocks = Windows(windows.size // self.BLOCK, windows.count)
        values = BLOCK_CHANNELS * (2 * self.blocks.pitch) ** 2
        # For each axis of a window, the patterns of its v x v blocks: [n² a c·v·v].
        self.axes = nn.Parameter(torch.zeros(windows.count**2, axes, values))
        self.patterns = nn.Parameter(torch.zeros(BLOCK_CHANNELS, channels, self.BLOCK, self.BLOCK))

    def forward(self, values: Tensor) -> Tensor:
        """Draw pictures."""
        blocks = self.blocks.join(torch.einsum("bna,nav->bnv", values, self.axes))
        drawn = self.patterns.flatten(1).T @ blocks.flatten(2)  # [b c·8·8 blocks]
        drawn = drawn.view(*drawn.shape[:2], *blocks.shape[2:])
        return functional.pixel_shuffle(drawn, self.BLOCK)

    @torch.no_grad()
    def fit(self, axes: Tensor) -> None:
        """Find the patterns that show axes [n² a c·w·w] best, and show them by these."""
        n, a, _ = axes.shape
        side, block = 2 * self.blocks.pitch, self.BLOCK
        cut = axes.view(n, a, -1, side, block, side, block)
        cut = cut.permute(0, 1, 3, 5, 2, 4, 6).flatten(4)  # [n² a v v c·8·8]
        flat = cut.flatten(0, 3)
        vectors = torch.linalg.eigh((flat.T @ flat).double())[1].flip(1)
        patterns = vectors[:, :BLOCK_CHANNELS].float()
        self.patterns.copy_(patterns.T.reshape(self.patterns.shape))
        self.axes.copy_((cut @ patterns).permute(0, 1, 4, 2, 3).flatten(2))


NEAR_OUTLINE = 8.0  # pixels within which the distance from the outline tells
OPACITY_SPREAD = 0.3  # of the channel of opacity around 0.5: as much as colours vary
SHARP = 9.0  # rise of the opacity, a value of its channel
GROUND_COLOUR = (0.845, 0.858, 0.855)  # what faces are drawn before: a studio's grey


def opacity(channel: Tensor) -> Tensor:
    """How opaque a texture is, 0..1, by its fourth channel, which is 0.5 on the outline.

    The channel tells how far inside or outside a place is: so a mix of two faces has an outline
    between theirs, where one of their opacities would be half transparent twice.
    """
    return (0.5 + SHARP * (channel - 0.5)).clamp(0, 1)


def depth(distance: Tensor) -> Tensor:
    """The fourth channel of a texture, by the distance within the outline, pixels."""
    return 0.5 + OPACITY_SPREAD * (distance / NEAR_OUTLINE).tanh()


def before_ground(textures: Tensor) -> Tensor:
    """Put textures that have an opacity, [b 4 h w], before the ground: [b 3 h w]; others are so."""
    if textures.shape[1] == 3:
        return textures
    ground = textures.new_tensor(GROUND_COLOUR).view(3, 1, 1)
    return torch.lerp(ground, textures[:, :3], opacity(textures[:, 3:]))


ABOVE = 7  # the part of a frame, a seventh, that textures go on for above it
SLOPE = 8  # rows below a frame's upper border by which a head goes on above it
JOINT = 4  # pixels of the cells in which it is told what is joined
STEPS = 64  # cells that are gone from the middle of the face, at most
FAINTEST = 0.6  # opacity of a cell that joins


def placed(textures: Tensor, mean_landmarks: Tensor, landmarks: Tensor) -> Tensor:
    """Bring textures [b c s s] to landmarks, both point sets [b k 2], before the ground: [b 3 s s].

    Where there is an opacity, what is not joined to the face is not drawn: it is what reading took
    for hair in a corner.
    """
    if textures.shape[1] == 3:
        return warp(textures, mean_landmarks, landmarks)
    channel = torch.minimum(textures[:, 3:], _joined(textures[:, 3:]))
    whole = torch.cat([textures[:, :3], channel], 1)
    return before_ground(warp_head(whole, mean_landmarks, landmarks))


def warp_head(textures: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Warp textures with an opacity, [b 4 h w], as `warp` does, and show what is above the frame.

    Hair that the border cuts goes on there as in a mirror, and ends in an arch. At the other
    borders a mirror would show ears and chins again: they are repeated.
    """
    above = textures.shape[-1] // ABOVE
    whole = functional.pad(textures, (0, 0, above, 0), mode="reflect")
    row, channel = textures[:, 3, :1], textures[:, 3]
    whole[:, 3, :above] = torch.minimum(row, depth(arch(opacity(channel), above)))
    down = torch.tensor([0, above]).to(target)
    return warp(whole, source + down, target + down)[..., above:, :]


def arch(opaque: Tensor, height: int) -> Tensor:
    """How far within its outline a head goes on above a frame: pixels [b height w].

    Of how opaque the frame is, [b h w], 0..1. The top is that of the circle through where its first
    row and the `SLOPE`th below end, or flatter, so that it ends well within `height`.
    """
    x = torch.arange(opaque.shape[-1]).to(opaque)
    ends = opaque[:, [0, SLOPE]]  # [b 2 w]
    half, lower = (ends.sum(2)[:, :, None, None] / 2).unbind(1)  # [b 1 1]
    first = ends[:, :1]
    middle = (first * x).sum(2, keepdim=True) / first.sum(2, keepdim=True).clamp_min(1e-3)
    fall = (lower.square() - half.square()) / SLOPE + SLOPE
    highest = 0.6 * height
    fall = torch.maximum(fall, half.square() / highest - highest).clamp_min(1)
    up = torch.arange(height, 0, -1).to(opaque)[:, None]
    away = x - middle
    level = half.square() - fall * up - up.square() - away.square()
    return level / (4 * away.square() + (fall + 2 * up).square()).sqrt()  # by its gradient


@torch.no_grad()
def _joined(channel: Tensor) -> Tensor:
    """Where what an opacity [b 1 s s] shows is joined to the face, and near that: 0..1."""
    there = (functional.avg_pool2d(opacity(channel), JOINT) > FAINTEST).to(channel)
    reached = torch.zeros_like(there)
    middle = slice(there.shape[-1] * 3 // 7, there.shape[-1] * 4 // 7)
    reached[..., middle, middle] = 1
    # A cell and its neighbours on a side; products with it are quicker than pooling.
    beside = torch.ones(there.shape[-2:]).tril(1).triu(-1).to(there)
    for _ in range(STEPS):
        reached = (beside @ reached @ beside).clamp(max=1) * there
    near = functional.max_pool2d(reached, 3, 1, 1)
    return functional.interpolate(near, scale_factor=JOINT, mode="bilinear")


DEVIATIONS = (0.7, 1.4, 2.8)  # of the blurs between the bands, pixels
AROUND = 6.0  # of the blur that a band's strength in a place is measured by
# Times as strong as in photos, of each band: what the warp to the landmarks takes again.
WARPED = 1.9, 1.4, 1.4
FACE = (0.5, 0.62), (0.3, 0.36)  # an ellipse: its middle and half axes, in terms of the frame
AROUND_FACE = 0.6  # of that strength: hair of many, amplified, is wool
MOST = 4.0  # times that a band is amplified
CELL = 8  # pixels; strengths change slowly, and are stored one a cell
FAINT = 1e-4  # strength that counts as nothing
AT_ONCE = 32  # textures that are measured at a time
PLAIN = 0.03  # deviation of a pixel, 0..1, below which it is background
RIM = 12  # pixels
DARK = 0.1  # added to the brightness that strengths are shares of


class Detail(nn.Module):
    """Textures [b 3 s s] to textures with the detail of photos.

    A face that is a weighted sum of many has their shades, but pores, lashes and hairs of different
    people cancel. A texture is split into bands; where one is fainter than it usually is in that
    place in photos, as a share of the brightness there, it is made as strong. Nothing is invented.

    Source: Tiddeman, Burt and Perrett 2001, "Prototyping and Transforming Facial Textures for
    Perception Research" (the idea). Ours: a Laplacian pyramid without subsampling.
    """

    strengths: Tensor  # [bands s/8 s/8], of photos; zero, as at first, leaves all as it is

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("strengths", torch.zeros(len(DEVIATIONS), size // CELL, size // CELL))

    @torch.no_grad()
    def fit(self, textures: Tensor) -> None:
        """Learn how strong the bands of photos are, from registered ones [n 3 s s].

        Nothing is amplified near a background that all share, where heads would get a rim, and
        hair less than the face.
        """
        mean = torch.zeros(len(DEVIATIONS), *textures.shape[-2:], device=textures.device)
        for some in torch.split(textures, AT_ONCE):
            bands, whole = _bands(some)
            mean += _strengths(bands, whole).sum(0) / len(textures)
        plain = (textures.var(0, correction=0).mean(0) < PLAIN**2).to(mean)[None]
        near = functional.max_pool2d(plain, 2 * RIM + 1, stride=1, padding=RIM)
        wanted = functional.avg_pool2d(mean * (1 - near), CELL)
        across, down = ((torch.arange(n) + 0.5).to(wanted) / n for n in reversed(wanted.shape[1:]))
        (x, y), (a, b) = FACE
        away = (((across - x) / a).square() + ((down[:, None] - y) / b).square()).sqrt()
        face = AROUND_FACE + (1 - AROUND_FACE) * ((1.15 - away) / 0.3).clamp(0, 1)
        self.strengths.copy_(wanted * face * torch.tensor(WARPED).to(wanted)[:, None, None])

    def forward(self, textures: Tensor) -> Tensor:
        """Amplify what is fainter than in photos."""
        size = textures.shape[-2:]
        usual = functional.interpolate(self.strengths[:, None], size, mode="bilinear")
        bands, whole = _bands(textures)
        gains = ((usual[:, 0] + FAINT) / (_strengths(bands, whole) + FAINT)).clamp(1, MOST)
        drawn = whole
        for band, gain in zip(bands, gains.unbind(1), strict=True):
            drawn = drawn + band * gain[:, None]
        return drawn


def _bands(textures: Tensor) -> tuple[list[Tensor], Tensor]:
    """The bands, finest first, and the rest; they add up to the textures."""
    bands = []
    for deviation in DEVIATIONS:
        blurred = _blur(textures, deviation)
        bands.append(textures - blurred)
        textures = blurred
    return bands, textures


def _strengths(bands: list[Tensor], whole: Tensor) -> Tensor:
    """Roots of the mean squares around each pixel, as shares of the brightness: [b bands h w]."""
    squares = torch.stack([band.square().mean(1) for band in bands], 1)
    roots = _blur(squares, AROUND).clamp_min(0).add(1e-12).sqrt()
    return roots / (whole.mean(1, keepdim=True).clamp_min(0) + DARK)


def _blur(x: Tensor, deviation: float) -> Tensor:
    reach = round(3 * deviation)
    steps = torch.arange(-reach, reach + 1, dtype=x.dtype)
    kernel = torch.exp(-steps.square() / (2 * deviation**2))
    first, *rest = (kernel / kernel.sum()).tolist()
    # Shifted copies are summed: a convolution of so few channels takes twice as long.
    for dim, margins in ((-1, (reach, reach, 0, 0)), (-2, (0, 0, reach, reach))):
        n, wide = x.shape[dim], functional.pad(x, margins, mode="replicate")
        x = first * wide.narrow(dim, 0, n)
        for k, share in enumerate(rest, 1):
            x.add_(wide.narrow(dim, k, n), alpha=share)
    return x


REACH = 1.2  # of the frame's side that places span: some points lie outside the frame


class LandmarkFinder(nn.Module):
    """Faces [b 3 s s], RGB 0..1, to landmarks [b k 2], xy pixels of these pictures.

    One map of likelihood a point, and its centre of mass: a point is found by what surrounds it,
    not by what faces are like on average, so that what sets a face apart is not lost. The side s is
    a multiple of 16. Points may lie outside by a twelfth of it. `channels` are those of the first
    convolution, of four stages at a half to a sixteenth of the side, and of two on the way back to
    a quarter.

    Source: Ronneberger et al. 2015, "U-Net" (the shape of the network); Sun et al. 2018, "Integral
    Human Pose Regression" (the centre of mass, which knows parts of a pixel and has gradients).
    """

    def __init__(self, landmarks: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        first, half, quarter, eighth, sixteenth, back_eighth, back_quarter = channels
        stages = [nn.Sequential(_conv(3, first, 5, 2), _conv(first, half))]
        for a, b in ((half, quarter), (quarter, eighth), (eighth, sixteenth)):
            stages.append(nn.Sequential(_conv(a, b), _conv(b, b)))
        self.down = nn.ModuleList(stages)
        back = (sixteenth + eighth, back_eighth), (back_eighth + quarter, back_quarter)
        self.up = nn.ModuleList(_conv(a, b) for a, b in back)
        self.maps = nn.Conv2d(back_quarter, landmarks, 1)

    def forward(self, faces: Tensor) -> Tensor:
        """Find the landmarks of faces; in float32 at least."""
        size = faces.shape[-1]
        x = (faces * 4 - 2).contiguous(memory_format=torch.channels_last)
        kept = []
        for i, stage in enumerate(self.down):
            x = stage(functional.max_pool2d(x, 2) if i else x)
            kept.append(x)
        for stage, beside in zip(self.up, (kept[2], kept[1]), strict=True):
            x = stage(torch.cat([functional.interpolate(x, scale_factor=2), beside], 1))
        maps = self.maps(x)
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32)).contiguous()
        n = maps.shape[-1]
        places = (torch.arange(n, device=maps.device, dtype=maps.dtype) + 0.5) / n - 0.5
        places = (0.5 + places * REACH) * size - 0.5
        share = maps.flatten(2).softmax(-1).view_as(maps)
        return torch.stack([(share.sum(2) * places).sum(-1), (share.sum(3) * places).sum(-1)], -1)


def _conv(a: int, b: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(a, b, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(b), nn.ReLU(inplace=True))


REDUCED = 2  # times: faces are found, and parts read, in pictures that much smaller
CERTAIN = 0.02  # deviation of a pixel, 0..1, from which on it is mostly heeded
# Of reading the code in reduced pictures, in units of a window's mean variance; the second, where
# reading is learned in many lights: less, and heads get pieces of others' hair.
RIDGE, OPACITY_RIDGE = 1e-3, 0.2
# Light in which reading is learned: exponents, gains of all colours and of each, noise.
GAMMA, GAIN, CAST, NOISE = (0.95, 1.05), (0.97, 1.03), (0.98, 1.02), 0.02
GROUND = 0.08  # how far from the ground's colour what is there is as likely a person as not
UNEVEN = 0.04  # from which deviation on a ground is not plain
NOBODY = 0.08  # share of training's people who may be where the ground is looked for
SKIN = 2.0  # deviations of the skin's colour beyond which it is the light's
RELIT = 0.25  # the most that is taken off of that, in logs of a channel
LEAST_APART = 8.0  # pixels between the eyes


@dataclass(frozen=True)
class PartsEncoderConfig:
    """The shape of the encoder."""

    embedding: int = 1024  # values: `windows`² times `axes`, and those of the shape
    landmarks: int = 189  # points that are found: 189 of the template, or 68 of iBUG order
    windows: int = 7  # a side
    axes: int = 20  # values a window
    finder: tuple[int, ...] = (24, 32, 64, 96, 128, 96, 64)  # channels of the `LandmarkFinder`
    opacity: bool = False  # whether codes are of textures with an opacity, read before any ground
    architecture: str = "parts"  # tells its checkpoints from those of VGG-Face

    image_size: ClassVar[int] = FRAME
    identities: ClassVar[int] = 0
    final_relu: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.shape_axes < 1:
            parts = f"{self.windows}² windows of {self.axes} values and a shape"
            raise ValueError(f"an embedding of {self.embedding} has no room for {parts}")

    @property
    def shape_axes(self) -> int:
        """Values of the shape: those that the windows leave."""
        return self.embedding - self.windows**2 * self.axes


CONFIGS = {"compact": PartsEncoderConfig(opacity=True)}


def averaged_down(faces: Tensor, size: int) -> Tensor:
    """Average faces [b 3 h w] down to a network's size; ValueError if theirs is no multiple."""
    ratio, rest = divmod(faces.shape[-1], size)
    if rest:
        raise ValueError(f"{faces.shape[-1]} pixels are no multiple of {size}")
    return functional.avg_pool2d(faces, ratio) if ratio > 1 else faces


class PartsEncoder(nn.Module):
    """A photo to its embedding: `forward` takes [b 3 224 224] RGB 0..1 and returns [b d].

    Landmarks are found, and the photo is warped so that they come to rest on the mean shape; there,
    its embedding is the `PartsCode` of what each window shows, and of the shape. What the landmarks
    miss, the windows show: the decoder draws the one warped by the other, and errors cancel.

    Source: Jaderberg et al. 2015, "Spatial Transformer Networks" (registering one's own input).
    """

    mean_landmarks: Tensor  # [k 2], the shape that photos are registered to
    mean_texture: Tensor  # [c 112 112]: what is seen of training's faces on average
    shape_axes: Tensor  # [m 2k], as `PartsCode` has them, and the next
    shape_code: Tensor
    reading: Tensor  # [n² a c·w·w], what the windows' values are read by
    ground: Tensor  # bool [112 112], where the plain ground behind a person is looked for
    within: Tensor  # bool [112 112], where everybody is
    skin: Tensor  # bool [112 112], where the colour of the skin is looked for
    skin_mean: Tensor  # [3], log of the skin's colour
    skin_axes: Tensor  # [3 3], how it varies: what one deviation adds

    def __init__(self, config: PartsEncoderConfig, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.config, self.preprocessing = config, preprocessing
        self.finder = LandmarkFinder(config.landmarks, config.finder)
        self.windows = Windows(config.image_size // REDUCED, config.windows)
        channels, size = 4 if config.opacity else 3, self.windows.size
        values = channels * (2 * self.windows.pitch) ** 2
        m, k = config.shape_axes, config.landmarks
        self.register_buffer("mean_landmarks", torch.zeros(k, 2))
        self.register_buffer("mean_texture", torch.zeros(channels, size, size))
        if config.opacity:
            for name, whole in (("ground", True), ("within", False), ("skin", True)):
                self.register_buffer(name, torch.full((size, size), whole))
            self.register_buffer("skin_mean", torch.zeros(3))
            # Not `torch.eye`, for which torch imports its compilers where a checkpoint is loaded.
            self.register_buffer("skin_axes", torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]))
        self.register_buffer("shape_axes", torch.zeros(m, 2 * k))
        self.register_buffer("shape_code", torch.zeros(m, 2 * k))
        self.register_buffer("reading", torch.zeros(config.windows**2, config.axes, values))
        # Added to the code that was read: a smile is taken off. Nothing, at first.
        self.neutral = nn.Linear(config.embedding, config.embedding)
        nn.init.zeros_(self.neutral.weight)
        nn.init.zeros_(self.neutral.bias)

    def forward(self, faces: Tensor) -> Tensor:
        """Embed faces: [b 3 h w] RGB 0..1 to [b d]; float32 under autocast too."""
        read = self.read(faces)
        with torch.autocast(faces.device.type, enabled=False):
            # The weight may have stayed half, for the autocast that is off here.
            weight, bias = self.neutral.weight.to(read.dtype), self.neutral.bias
            return read + functional.linear(read, weight, bias)

    @torch.no_grad()
    def one_by_one(self, faces: Tensor) -> Tensor:
        """Embed faces as `forward`, to the bit the same whatever shares their batch."""
        return torch.cat([self(face) for face in torch.split(faces.to(self.reading.device), 1)])

    def reads(self, code: PartsCode) -> bool:
        """Tell whether it was fitted to a code, and not to that of other faces."""
        own, other = self.shape_code.cpu(), code.shape_code
        return own.shape == other.shape and torch.allclose(own, other, rtol=1e-2, atol=1e-4)

    def read(self, faces: Tensor) -> Tensor:
        """Read the code of faces as they look: [b 3 h w] to [b d]."""
        faces = averaged_down(faces, self.config.image_size)
        points = in_frame(self.finder(functional.avg_pool2d(faces, REDUCED)))
        with torch.autocast(faces.device.type, enabled=False):
            faces = faces.to(points.dtype)
            eyes, usual = _eyes(points), _eyes(self.mean_landmarks[None])
            framed = _moved(points, eyes, usual)
            shape = (framed - self.mean_landmarks).flatten(1) @ self.shape_code.T
            # The windows look where the code of the shape says, so that they show the rest.
            framed = self.mean_landmarks + (shape @ self.shape_axes).view_as(framed)
            points = _moved(framed, usual, eyes)
            registered = warp(faces, points, self.mean_landmarks[None])
            small = functional.avg_pool2d(registered, REDUCED)
            if self.config.opacity:
                small = self.seen(small)
            small = small - self.mean_texture
            parts = torch.einsum("bnv,nav->bna", self.windows.cut(small), self.reading)
            return torch.cat([parts.flatten(1), shape], 1)

    def seen(self, pictures: Tensor) -> Tensor:
        """Tell what registered pictures [b 3 s s] show of people: [b 4 s s].

        It is their colours in usual light, and how sure it is that they are there. What is not like
        the plain ground around a person is the person; where the ground is not plain, it is not
        known where the person ends. Light beyond what skins vary by is taken off.
        """
        behind, uneven = self._ground(pictures)
        away = (pictures - behind).square().sum(1, keepdim=True).square()
        there = away / (away + GROUND**4)
        plain = (uneven < UNEVEN).to(there)
        there = there * plain + self.mean_texture[3:] * (1 - plain)
        there = torch.where(self.within, 1.0, there)
        log = pictures[..., self.skin].clamp_min(1e-3).log().mean(2)  # [b 3]
        mean, axes = self.skin_mean.to(log), self.skin_axes.to(log)
        scores = torch.linalg.solve(axes.T, (log - mean)[..., None])[..., 0]
        usual = mean + scores.clamp(-SKIN, SKIN) @ axes
        gain = (usual - log).clamp(-RELIT, RELIT).exp()
        lit = pictures * gain[..., None, None]
        return torch.cat([lit * there, there], 1)

    def _ground(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The ground behind people in pictures [b 3 s s], a polynomial of the place, as large.

        With it [b 1 1 1], the usual difference from it where the ground is looked for.
        """
        size = pictures.shape[-1]
        place = torch.linspace(-1, 1, size).to(pictures)
        x, y = place.expand(size, -1), place[:, None].expand(-1, size)
        terms = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y])  # [6 s s]
        seen, rows = pictures[..., self.ground], terms[:, self.ground]  # [b 3 m], [6 m]
        away = seen - seen.median(2, keepdim=True).values
        flat = torch.diag(torch.tensor([0.0, *[1e-3] * 2, *[1e-2] * 3])).to(pictures)
        for _ in range(4):  # hair that is seen there counts little
            weight = GROUND**2 / (away.square().sum(1, keepdim=True) + GROUND**2)
            weighted = rows * weight  # [b 6 m]
            products = weighted @ rows.T / rows.shape[1] + flat + 1e-6 * torch.eye(6).to(flat)
            sums = weighted @ seen.mT / rows.shape[1]  # [b 6 3]
            polynomial = torch.linalg.solve(products, sums)
            away = seen - polynomial.mT @ rows
        uneven = away.abs().amax(1).median(1).values[:, None, None, None]
        return (polynomial.mT @ terms.flatten(1)).view_as(pictures), uneven

    @torch.no_grad()
    def fit(self, code: PartsCode, textures: Tensor) -> None:
        """Learn to read the code of textures [n c 224 224] from reduced ones, by ridge regression.

        Where training's textures do not vary, as before a plain background, a photo may show
        anything: what is there is not heeded.
        """
        self.mean_landmarks.copy_(code.mean_landmarks)
        self.shape_axes.copy_(code.shape_axes)
        self.shape_code.copy_(code.shape_code)
        away = textures - code.mean_texture
        if self.config.opacity:
            small = self._fit_seen(textures)
        else:
            small = functional.avg_pool2d(textures, REDUCED)
        self.mean_texture.copy_(small.mean(0))
        small -= self.mean_texture
        varies = small.var(0, correction=0, keepdim=True)
        heeded = self.windows.cut((varies / (varies + CERTAIN**2)).sqrt())[0]
        faded = self.windows.fade().repeat(1, small.shape[1]) * heeded
        for k, weights in enumerate(faded):
            values = (code.windows.one(away, k) @ code.texture_code[k].T).double()  # [n a]
            rows = (self.windows.one(small, k) * weights).double()
            products = rows @ rows.T
            ridge = OPACITY_RIDGE if self.config.opacity else RIDGE
            products.diagonal().add_(ridge * products.diagonal().mean() + 1e-9)
            weight = rows.T @ torch.cholesky_solve(values, torch.linalg.cholesky(products))
            self.reading[k] = weight.T.float() * weights

    def _fit_seen(self, textures: Tensor) -> Tensor:
        """Learn where people and grounds are, and what is seen of textures [n 4 224 224]."""
        alpha = opacity(textures[:, 3:])
        small, cover = (functional.avg_pool2d(x, REDUCED) for x in (textures[:, :3], alpha))
        usual = cover.mean(0)[0]
        self.ground.copy_(usual < NOBODY)
        self.within.copy_(cover.amin(0)[0] > 0.99)
        y, x = torch.meshgrid(*(torch.arange(small.shape[-1]) + 0.5,) * 2, indexing="ij")
        eyes = _eyes(self.mean_landmarks[None])[0] / REDUCED
        apart = (eyes[1] - eyes[0]).abs()
        # both cheeks: half the distance of the eyes below them, a fifth of it wide
        cheeks = [((x - e.real).square() + (y - e.imag - 0.55 * apart).square()) for e in eyes]
        self.skin.copy_(torch.minimum(*cheeks) < (0.2 * apart).square())
        log = small[..., self.skin].clamp_min(1e-3).log().mean(2)
        self.skin_mean.copy_(log.mean(0))
        _, deviations, axes = torch.linalg.svd(log - log.mean(0), full_matrices=False)
        self.skin_axes.copy_(deviations[:, None] / len(log) ** 0.5 * axes)
        return self.seen(_photographed(small, cover))


def _photographed(colours: Tensor, cover: Tensor) -> Tensor:
    """Put people [n 3 s s] before grounds of many greys, in light of many colours."""
    draw = torch.Generator().manual_seed(0)
    n, size = len(colours), colours.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=draw).to(colours)

    place = torch.linspace(-1, 1, size).to(colours)
    ground = torch.tensor(GROUND_COLOUR).to(colours).view(3, 1, 1) * uniform(0.8, 1.1, 1, 1, 1)
    for along in (place, place[:, None]):
        ground = ground + uniform(-0.06, 0.06, 1, 1, 1) * along
    x = torch.lerp(ground, colours, cover).clamp(1e-3, 1) ** uniform(*GAMMA, 1, 1, 1)
    x = x * uniform(*GAIN, 1, 1, 1) * uniform(*CAST, 3, 1, 1)
    noise = torch.randn(x.shape, generator=draw).to(x)
    return (x + NOISE * noise).clamp(0, 1)


def in_frame(points: Tensor) -> Tensor:
    """Bring landmarks from the reduced pictures to the 224 frame."""
    return (points + 0.5) * REDUCED - 0.5


def _eyes(points: Tensor) -> Tensor:
    """Both pupils of landmarks [b k 2] as complex numbers [b 2]."""
    z = torch.view_as_complex(points.contiguous())
    if points.shape[1] == 68:
        return torch.stack([z[:, 36:42].mean(1), z[:, 42:48].mean(1)], 1)
    return z[:, :2]  # the template begins with them


def _moved(points: Tensor, given: Tensor, wanted: Tensor) -> Tensor:
    """Turn, scale and move landmarks [b k 2] as brings two given points to two wanted, [b 2]."""
    apart = given[:, 1] - given[:, 0]
    # An untrained finder puts all in one place, and nothing can be scaled by that.
    apart = torch.where(apart.abs() > LEAST_APART, apart, wanted[:, 1] - wanted[:, 0])
    turn = (wanted[:, 1] - wanted[:, 0]) / apart
    z = (torch.view_as_complex(points.contiguous()) - given[:, :1]) * turn[:, None]
    return torch.view_as_real(z + wanted[:, :1])
