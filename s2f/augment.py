"""Faces and voices, disturbed the way cameras, rooms and telephones disturb them.

What is learned must not change with the disturbance (identity and landmarks of faces, sex and pitch
rank of voices), so every range here is mild. Tensors in, tensors out. What is random is drawn from
a `Noise`, for each sample by a seed of its own.
"""

import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor
from torch.nn import functional

from s2f.errors import UsageError

# Of voices: coloured noise, 5 to 40 dB below the speech; -6 to 3 dB; pitch, formants and tempo by
# at most 2 %; a telephone's band, for a quarter; bands and spells of the spectrogram hidden.
WAYS = ("noise", "gain", "speed", "band", "spec")
KNOTS, BEND = 7, 0.01  # a side; the largest deviation of a knot, of the picture's side
MASKS = 2  # of bands, and as many of spells, on a spectrogram
MASKED_FREQS, MASKED_FRAMES = 0.125, 0.1  # the widest mask: a share of all bands or frames


# The constants of SplitMix64, as the signed numbers that have their bits: what a state grows by,
# and shifts and factors of what becomes of it.
_STEP = -0x61C8864680B583EB
_MIXING = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1))
_ON_CPU, _ON_GPU = 2**16, 2**26  # numbers that are drawn at a time: few stay in a CPU's cache


class Noise:
    """Random numbers for the samples of a batch, which follow from the seed [b] of each alone.

    So they depend on no other sample, on no device, and not on how a batch is split: on nothing but
    what the sample has drawn before.

    Source: Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators", of which
    SplitMix64's k-th number is a function of the seed and of k. Box and Muller 1958.
    """

    def __init__(self, seeds: Tensor) -> None:
        self.state = _mixed(seeds.long() + _STEP)  # neighbours among the seeds are none any more
        self.drawn = 0

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Draw from `low` to below `high`: [b *shape], float32."""
        return self._draw(shape, math.prod(shape), lambda x: low + (high - low) * _share(x, 40))

    def normal(self, *shape: int) -> Tensor:
        """Draw by the standard normal distribution: [b *shape], float32."""

        def normal(x: Tensor) -> Tensor:
            radius = (-2 * (_share(x, 40) + 2**-24).log()).sqrt()
            angle = 2 * math.pi * _share(x, 16)
            return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)

        return self._draw(shape, -(-math.prod(shape) // 2), normal)

    def _draw(self, shape: tuple[int, ...], n: int, of: Callable[[Tensor], Tensor]) -> Tensor:
        """Make [b *shape] `of` the next n numbers of each sample, int64 [b n]."""
        at_once = _ON_CPU if self.state.device.type == "cpu" else _ON_GPU
        steps = _STEP * torch.arange(self.drawn + 1, self.drawn + n + 1, device=self.state.device)
        self.drawn += n
        states = torch.split(self.state[:, None], max(1, at_once // max(1, n)))
        values = torch.cat([of(_mixed(some + steps)) for some in states])
        return values[:, : math.prod(shape)].reshape(-1, *shape)


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finish of states, int64 of any shape, which are written over."""
    for shift, factor in _MIXING:
        x ^= (x >> shift).bitwise_and_(2 ** (64 - shift) - 1)  # as if there were no sign
        if factor != 1:
            x *= factor
    return x


def _share(x: Tensor, low: int) -> Tensor:
    """Make 24 bits of numbers, from bit `low` on, float32 from 0 to below 1."""
    return (x >> low & 0xFFFFFF).float() * 2**-24


def _turn(noise: Noise, radians: float, zoom: float) -> Tensor:
    """Matrices [b 2 2] that turn either way and scale around 1, by at most so much."""
    angle = noise.uniform(-radians, radians)
    scale = noise.uniform(1 - zoom, 1 + zoom)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    return turn * scale[:, None, None]


def faces(pictures: Tensor, noise: Noise) -> Tensor:
    """Change framing, light, colour and sharpness of [b 3 h w] RGB 0..1."""
    turn, shift = _turn(noise, 0.05, 0.05), noise.uniform(-0.03, 0.03, 2)
    matrix = torch.cat([turn, shift[:, :, None]], dim=2)
    grid = functional.affine_grid(matrix, list(pictures.shape), align_corners=False)
    moved = functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    return lit(moved, noise)


def lit(pictures: Tensor, noise: Noise) -> Tensor:
    """Change light, colour and sharpness of [b 3 h w] RGB 0..1; everything stays in its place."""
    x, small = pictures, functional.avg_pool2d(pictures, 2)
    blurred = functional.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    x = torch.lerp(x, blurred, noise.uniform(0, 1, 1, 1, 1).square())
    x = x.clamp_min(1e-4) ** noise.uniform(0.85, 1.18, 1, 1, 1)
    x = x * noise.uniform(0.88, 1.12, 1, 1, 1) * noise.uniform(0.95, 1.05, 3, 1, 1)
    x = x + noise.normal(*x.shape[1:]) * noise.uniform(0, 0.03, 1, 1, 1)
    return x.clamp(0, 1)


def bent(pictures: Tensor, points: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """Turn, scale, move and gently bend pictures [b 3 s s], and points on them [b k 2] along.

    So that there are more shapes than people: what is learned of a point is what is around it.
    """
    with torch.autocast(pictures.device.type, enabled=False):  # bfloat16 has no parts of pixels
        return _bent(pictures, points, noise)


def _bent(pictures: Tensor, points: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    b, _, size, _ = pictures.shape
    turn = _turn(noise, 0.08, 0.08)
    shift = noise.uniform(-0.04, 0.04, 2)[:, None] * size
    knots = noise.normal(2, KNOTS, KNOTS) * noise.uniform(0, BEND * size, 1, 1, 1)
    side = size // 4 + 1
    bend = functional.interpolate(knots, (side, side), mode="bicubic", align_corners=True)
    centre = (size - 1) / 2

    def source(places: Tensor) -> Tensor:
        """Where in the pictures what comes to places [b m 2] is."""
        grid = (places / centre - 1)[:, :, None]
        by = functional.grid_sample(bend, grid, padding_mode="border", align_corners=True)
        return (places - centre) @ turn.mT + centre + shift + by[..., 0].mT

    x = torch.arange(size, dtype=pictures.dtype, device=pictures.device)
    everywhere = torch.stack(torch.meshgrid(x, x, indexing="xy"), -1).view(1, -1, 2)
    grid = (source(everywhere.expand(b, -1, -1)) / centre - 1).view(b, size, size, 2)
    moved = functional.grid_sample(pictures, grid, padding_mode="border", align_corners=True)
    back, places = torch.linalg.inv(turn).mT, points
    for _ in range(8):  # the bend is gentle: each round leaves a fraction of the error
        places = places - (source(places) - points) @ back
    return moved, places


def read_ways(text: str) -> tuple[str, ...]:
    """Read some of `WAYS`, in their order, from names with commas between, `all` or `none`.

    Raises a UsageError if one is another name.
    """
    chosen = {"all": list(WAYS), "none": []}.get(text, text.split(","))
    for name in chosen:
        if name not in WAYS:
            message = f"--augment {name!r}: is none of {', '.join(WAYS)}"
            hint = f"give some of them, for instance {WAYS[0]},{WAYS[-1]}, or all or none"
            raise UsageError(message, hint=hint)
    return tuple(name for name in WAYS if name in chosen)


def voices(waveforms: Tensor, ways: Collection[str], noise: Noise) -> Tensor:
    """Disturb waveforms [b n], each otherwise, in some of `WAYS`; `spec` is `masked`."""
    x = waveforms
    if "speed" in ways:
        x = _resampled(x, noise.uniform(0.98, 1.02))
    if "band" in ways:
        x = _telephoned(x, noise)
    if "noise" in ways:
        x = _noisy(x, noise)
    if "gain" in ways:
        x = x * 10 ** (noise.uniform(-6, 3, 1) / 20)
    return x


def _resampled(x: Tensor, rate: Tensor) -> Tensor:
    """Play [b n] at `rate` [b] times its speed (pitch and formants follow), looped to length."""
    n = x.shape[1]
    place = (torch.arange(n, device=x.device) * rate[:, None]) % (n - 1)
    low = place.floor().long()
    return torch.lerp(x.gather(1, low), x.gather(1, low + 1), (place - low).to(x.dtype))


def _telephoned(x: Tensor, noise: Noise, share: float = 0.25) -> Tensor:
    """Limit some of the waveforms [b n] to a band of about 300 to 3400 Hz at 16 kHz."""
    spectrum = torch.fft.rfft(x)
    hertz = torch.linspace(0, 8000, spectrum.shape[1], device=x.device)
    low, high = noise.uniform(80, 350, 1), noise.uniform(3200, 7500, 1)
    band = torch.sigmoid((hertz - low) / 25) * torch.sigmoid((high - hertz) / 100)
    narrow = torch.fft.irfft(spectrum * band, n=x.shape[1])
    return torch.where(noise.uniform(0, 1, 1) < share, narrow, x)


def _noisy(x: Tensor, noise: Noise, quiet: float = 0.3) -> Tensor:
    """Add coloured noise at 5 to 40 dB below the speech, and leave a share `quiet` alone."""
    spectrum = torch.fft.rfft(noise.normal(x.shape[1]))
    bins = torch.arange(1, spectrum.shape[1] + 1, device=x.device, dtype=x.dtype)
    added = torch.fft.irfft(spectrum * bins ** -noise.uniform(0, 1, 1), n=x.shape[1])
    below = 10 ** (-noise.uniform(5, 40, 1) / 20)
    level = x.square().mean(1, keepdim=True).sqrt()
    added = added * level * below / added.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)
    return x + torch.where(noise.uniform(0, 1, 1) < quiet, 0.0, added)


def masked(spectrograms: Tensor, noise: Noise, behind: float | None = None) -> Tensor:
    """Hide bands and spells of spectrograms [b c f t] behind a value, `MASKS` of each.

    That is their channel's mean unless told otherwise.

    Source: Park et al. 2019, "SpecAugment", without its warp of time; the widths are ours.
    """
    shown = torch.ones_like(spectrograms[:, :1], dtype=torch.bool)
    for _ in range(MASKS):
        for axis, share in ((2, MASKED_FREQS), (3, MASKED_FRAMES)):
            size = spectrograms.shape[axis]
            width = noise.uniform(0, share * size, 1)
            start = noise.uniform(0, 1, 1) * (size - width)
            place = torch.arange(size, device=spectrograms.device)
            hidden = (place >= start) & (place + 1 <= start + width)  # [b size]
            shown = shown & ~hidden[:, None].unsqueeze(5 - axis)
    if behind is not None:
        return torch.where(shown, spectrograms, behind)
    return torch.where(shown, spectrograms, spectrograms.mean((2, 3), keepdim=True))
