"""Faces and voices, disturbed the way cameras, rooms and telephones disturb them.

What is learned must not change with the disturbance (identity and landmarks of faces, sex and pitch
rank of voices), so every range here is mild. Tensors in, tensors out; randomness comes from torch's
global generator, which the training loop seeds anew for every step.
"""

from collections.abc import Collection

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


def _uniform(like: Tensor, low: float, high: float, *shape: int) -> Tensor:
    """Random values, one row for each item of a batch, that broadcast over its other axes."""
    size = (len(like), *shape)
    return low + (high - low) * torch.rand(size, dtype=like.dtype, device=like.device)


def _turn(like: Tensor, radians: float, zoom: float) -> Tensor:
    """Matrices [b 2 2] that turn either way and scale around 1, by at most so much."""
    angle = _uniform(like, -radians, radians)
    scale = _uniform(like, 1 - zoom, 1 + zoom)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    return turn * scale[:, None, None]


def faces(pictures: Tensor) -> Tensor:
    """Change framing, light, colour and sharpness of [b 3 h w] RGB 0..1."""
    turn, shift = _turn(pictures, 0.05, 0.05), _uniform(pictures, -0.03, 0.03, 2)
    matrix = torch.cat([turn, shift[:, :, None]], dim=2)
    grid = functional.affine_grid(matrix, list(pictures.shape), align_corners=False)
    return lit(functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False))


def lit(pictures: Tensor) -> Tensor:
    """Change light, colour and sharpness of [b 3 h w] RGB 0..1; everything stays in its place."""
    x, small = pictures, functional.avg_pool2d(pictures, 2)
    blurred = functional.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    x = torch.lerp(x, blurred, _uniform(x, 0, 1, 1, 1, 1).square())
    x = x.clamp_min(1e-4) ** _uniform(x, 0.85, 1.18, 1, 1, 1)
    x = x * _uniform(x, 0.88, 1.12, 1, 1, 1) * _uniform(x, 0.95, 1.05, 3, 1, 1)
    x = x + torch.randn_like(x) * _uniform(x, 0, 0.03, 1, 1, 1)
    return x.clamp(0, 1)


def bent(pictures: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Turn, scale, move and gently bend pictures [b 3 s s], and points on them [b k 2] along.

    So that there are more shapes than people: what is learned of a point is what is around it.
    """
    with torch.autocast(pictures.device.type, enabled=False):  # bfloat16 has no parts of pixels
        return _bent(pictures, points)


def _bent(pictures: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    b, _, size, _ = pictures.shape
    turn = _turn(pictures, 0.08, 0.08)
    shift = _uniform(pictures, -0.04, 0.04, 2)[:, None] * size
    knots = torch.randn(b, 2, KNOTS, KNOTS, dtype=pictures.dtype, device=pictures.device)
    knots *= _uniform(pictures, 0, BEND * size, 1, 1, 1)
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


def voices(waveforms: Tensor, ways: Collection[str]) -> Tensor:
    """Disturb waveforms [b n], each otherwise, in some of `WAYS`; `spec` is `masked`."""
    x = waveforms
    if "speed" in ways:
        x = _resampled(x, _uniform(x, 0.98, 1.02))
    if "band" in ways:
        x = _telephoned(x)
    if "noise" in ways:
        x = _noisy(x)
    if "gain" in ways:
        x = x * 10 ** (_uniform(x, -6, 3, 1) / 20)
    return x


def _resampled(x: Tensor, rate: Tensor) -> Tensor:
    """Play [b n] at `rate` [b] times its speed (pitch and formants follow), looped to length."""
    n = x.shape[1]
    place = (torch.arange(n, device=x.device) * rate[:, None]) % (n - 1)
    low = place.floor().long()
    return torch.lerp(x.gather(1, low), x.gather(1, low + 1), (place - low).to(x.dtype))


def _telephoned(x: Tensor, share: float = 0.25) -> Tensor:
    """Limit some of the waveforms [b n] to a band of about 300 to 3400 Hz at 16 kHz."""
    spectrum = torch.fft.rfft(x)
    hertz = torch.linspace(0, 8000, spectrum.shape[1], device=x.device)
    low, high = _uniform(x, 80, 350, 1), _uniform(x, 3200, 7500, 1)
    band = torch.sigmoid((hertz - low) / 25) * torch.sigmoid((high - hertz) / 100)
    narrow = torch.fft.irfft(spectrum * band, n=x.shape[1])
    return torch.where(_uniform(x, 0, 1, 1) < share, narrow, x)


def _noisy(x: Tensor, quiet: float = 0.3) -> Tensor:
    """Add coloured noise at 5 to 40 dB below the speech, and leave a share `quiet` alone."""
    spectrum = torch.fft.rfft(torch.randn_like(x))
    bins = torch.arange(1, spectrum.shape[1] + 1, device=x.device, dtype=x.dtype)
    noise = torch.fft.irfft(spectrum * bins ** -_uniform(x, 0, 1, 1), n=x.shape[1])
    below = 10 ** (-_uniform(x, 5, 40, 1) / 20)
    level = x.square().mean(1, keepdim=True).sqrt()
    noise = noise * level * below / noise.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)
    return x + torch.where(_uniform(x, 0, 1, 1) < quiet, 0.0, noise)


def masked(spectrograms: Tensor) -> Tensor:
    """Hide bands and spells of spectrograms [b c f t] behind their channel's mean, `MASKS` of each.

    Source: Park et al. 2019, "SpecAugment", without its warp of time; the widths are ours.
    """
    shown = torch.ones_like(spectrograms[:, :1], dtype=torch.bool)
    for _ in range(MASKS):
        for axis, share in ((2, MASKED_FREQS), (3, MASKED_FRAMES)):
            size = spectrograms.shape[axis]
            width = _uniform(spectrograms, 0, share * size, 1)
            start = _uniform(spectrograms, 0, 1, 1) * (size - width)
            place = torch.arange(size, device=spectrograms.device)
            hidden = (place >= start) & (place + 1 <= start + width)  # [b size]
            shown = shown & ~hidden[:, None].unsqueeze(5 - axis)
    return torch.where(shown, spectrograms, spectrograms.mean((2, 3), keepdim=True))
