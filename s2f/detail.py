"""Brings back the fine detail that averaging takes from a texture.

A face that is a weighted sum of many has their shades, but pores, lashes and hairs of different
people cancel. Here a texture is split into bands; where a band is fainter than it usually is in
that place in photos, as a share of the brightness there, it is made as strong. Nothing is
invented: what is there is amplified.

Source: Tiddeman, Burt and Perrett 2001, "Prototyping and Transforming Facial Textures for
Perception Research" (the idea). Ours: a Laplacian pyramid without subsampling.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

DEVIATIONS = (0.7, 1.4, 2.8)  # of the blurs between the bands, pixels
AROUND = 6.0  # of the blur that a band's strength in a place is measured by
WARPED = 1.4  # times as strong as in photos: what the warp to the landmarks takes again
MOST = 4.0  # times that a band is amplified
CELL = 8  # pixels; strengths change slowly, and are stored one a cell
FAINT = 1e-4  # strength that counts as nothing
AT_ONCE = 32  # textures that are measured at a time
PLAIN = 0.03  # deviation of a pixel, 0..1, below which it is background
RIM = 12  # pixels
DARK = 0.1  # added to the brightness that strengths are shares of


class Detail(nn.Module):
    """Textures [b 3 s s] to textures with the detail of photos.

    Attributes:
        strengths: [bands s/8 s/8], of photos. Zero, as at first, leaves all as it is.
    """

    strengths: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        cells = size // CELL
        self.register_buffer("strengths", torch.zeros(len(DEVIATIONS), cells, cells))

    @torch.no_grad()
    def fit(self, textures: Tensor) -> None:
        """Learn how strong the bands of photos are, from registered ones [n 3 s s].

        Nothing is amplified near a background that all share, where heads would get a rim.
        """
        mean = torch.zeros(len(DEVIATIONS), *textures.shape[-2:], device=textures.device)
        for some in torch.split(textures, AT_ONCE):
            bands, whole = _bands(some)
            mean += torch.cat([_strength(band, whole) for band in bands], 1).sum(0) / len(textures)
        plain = (textures.var(0, correction=0).mean(0) < PLAIN**2).to(mean)[None]
        near = functional.max_pool2d(plain, 2 * RIM + 1, stride=1, padding=RIM)
        self.strengths.copy_(functional.avg_pool2d(WARPED * mean * (1 - near), CELL))

    def forward(self, textures: Tensor) -> Tensor:
        """Amplify what is fainter than in photos."""
        size = textures.shape[-2:]
        usual = functional.interpolate(
            self.strengths[:, None], size=size, mode="bilinear", align_corners=False
        )
        bands, whole = _bands(textures)
        drawn = whole
        for band, wanted in zip(bands, usual, strict=True):
            gain = ((wanted + FAINT) / (_strength(band, whole) + FAINT)).clamp(1, MOST)
            drawn = drawn + band * gain
        return drawn


def _bands(textures: Tensor) -> tuple[list[Tensor], Tensor]:
    """The bands, finest first, and the rest; they add up to the textures."""
    bands = []
    for deviation in DEVIATIONS:
        blurred = _blur(textures, deviation)
        bands.append(textures - blurred)
        textures = blurred
    return bands, textures


def _strength(band: Tensor, whole: Tensor) -> Tensor:
    """Root of the mean square around each pixel, as a share of the brightness: [b 1 h w]."""
    root = _blur(band.square().mean(1, keepdim=True), AROUND).clamp_min(0).add(1e-12).sqrt()
    return root / (whole.mean(1, keepdim=True).clamp_min(0) + DARK)


def _blur(x: Tensor, deviation: float) -> Tensor:
    reach = round(3 * deviation)
    steps = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-steps.square() / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    x = functional.pad(x, (reach,) * 4, mode="replicate")
    x = functional.conv2d(x, kernel, groups=x.shape[1])
    return functional.conv2d(x, kernel.mT.contiguous(), groups=x.shape[1])
