"""Batches of faces and voices, disturbed the way cameras, rooms and telephones disturb them.

What is learned from them must not change with the disturbance: identity and landmarks for faces,
sex and pitch rank for voices, so every range here is mild. Tensors in, tensors out; randomness
comes from torch's global generator, which the training loop seeds anew for every step.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def _uniform(like: Tensor, low: float, high: float, *shape: int) -> Tensor:
    """Random values, one row for each item of a batch, that broadcast over its other axes."""
    size = (len(like), *shape)
    return low + (high - low) * torch.rand(size, dtype=like.dtype, device=like.device)


def faces(pictures: Tensor) -> Tensor:
    """Change framing, light, colour and sharpness of [b 3 h w] RGB 0..1."""
    b = len(pictures)
    angle = _uniform(pictures, -0.05, 0.05)  # radians
    scale = _uniform(pictures, 0.95, 1.05)
    shift = _uniform(pictures, -0.03, 0.03, 2)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(b, 2, 2)
    matrix = torch.cat([turn * scale.view(b, 1, 1), shift.view(b, 2, 1)], dim=2)
    grid = functional.affine_grid(matrix, list(pictures.shape), align_corners=False)
    x = functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    blurred = functional.interpolate(
        functional.avg_pool2d(x, 2), scale_factor=2, mode="bilinear", align_corners=False
    )
    x = torch.lerp(x, blurred, _uniform(x, 0, 1, 1, 1, 1).square())
    x = x.clamp_min(1e-4) ** _uniform(x, 0.85, 1.18, 1, 1, 1)
    x = x * _uniform(x, 0.88, 1.12, 1, 1, 1) * _uniform(x, 0.95, 1.05, 3, 1, 1)
    x = x + torch.randn_like(x) * _uniform(x, 0, 0.03, 1, 1, 1)
    return x.clamp(0, 1)


def voices(waveforms: Tensor) -> Tensor:
    """Change pitch and formants a little, band, noise and gain of waveforms [b n]."""
    x = _resampled(waveforms, _uniform(waveforms, 0.98, 1.02))
    x = _telephoned(x)
    return _noisy(x) * 10 ** (_uniform(x, -6, 3, 1) / 20)


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


def random_length(n: int, low: int) -> int:
    """Draw a length between `low` and `n`, even in its logarithm."""
    return round(math.exp(math.log(low) + float(torch.rand(())) * math.log(n / low)))
