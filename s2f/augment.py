"""Faces and voices, disturbed the way cameras, rooms and telephones disturb them.

What is learned must not change with the disturbance (identity and landmarks of faces, sex and pitch
rank of voices), so every range here is mild. Tensors in, tensors out. What is random is drawn from
a `Noise`, for each sample by a seed of its own.

Below that stands what lies between a mouth and a file: room, other sounds, microphone, telephone
and codec. Waveforms [n] at 16 kHz, float32, in and out. What is random there is drawn from a
generator. A voice's sex, pitch and timbre are to be heard through all of it, so that ranges are
those of usable recordings. And a voice itself can be moved: its pitch without its formants, or the
other way round.
"""

import io
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from s2f.audio import SAMPLE_RATE, FloatArray
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


_Array = NDArray[np.float64]
ENVELOPE = 40  # samples of the cepstrum, 2.5 ms, that show formants and no pitch below 400 Hz
# Encoder, container, samples a second, and bits a second: from and to, or one of some.
CODECS: dict[str, tuple[str, str, int, tuple[int, ...]]] = {
    "opus": ("libopus", "ogg", 16_000, (6_000, 24_000)),
    "aac": ("aac", "adts", 16_000, (12_000, 32_000)),
    "mp3": ("libmp3lame", "mp3", 16_000, (8_000, 32_000)),
    "amr": ("libopencore_amrnb", "amr", 8_000, (4_750, 5_900, 7_400, 10_200, 12_200)),
    "mu-law": ("pcm_mulaw", "wav", 8_000, ()),
    "a-law": ("pcm_alaw", "wav", 8_000, ()),
    "g722": ("g722", "wav", 16_000, ()),
}
CURVE_HZ = (50, 100, 200, 400, 800, 1_600, 3_200, 8_000)  # knots of a microphone's curve


def moved(waveform: FloatArray, pitch: float = 1.0, formants: float = 1.0) -> FloatArray:
    """Multiply the pitch and the formants of a voice, each by a factor of its own.

    It is played at `pitch` times its speed, which moves both and changes its length; then the
    envelope of its spectrum is stretched. Source: Noll 1967, the cepstrum, for the envelope.
    """
    n = len(waveform)
    played: FloatArray = np.asarray(
        np.interp(np.arange(0, n - 1, pitch), np.arange(n), waveform), np.float32
    )
    if formants == pitch:
        return played
    how: dict[str, Any] = {"n_fft": 1024, "hop_length": 256, "window": torch.hann_window(1024)}
    sound = torch.from_numpy(played)
    spectrum = torch.stft(sound, pad_mode="constant", return_complex=True, **how).numpy()
    cepstrum = np.fft.irfft(np.log(np.abs(spectrum) + 1e-5), axis=0)
    cepstrum[ENVELOPE : 1 - ENVELOPE] = 0
    envelope = np.fft.rfft(cepstrum, axis=0).real  # [f t], logarithmic
    last = len(envelope) - 1
    place = np.minimum(np.arange(last + 1) * pitch / formants, last)
    low = place.astype(int)
    share = (place - low)[:, None]
    wanted = (1 - share) * envelope[low] + share * envelope[np.minimum(low + 1, last)]
    stretched = spectrum * np.exp(np.clip(wanted - envelope, -4, 4))
    moved_back = torch.from_numpy(stretched.astype(np.complex64))
    made: FloatArray = torch.istft(moved_back, length=len(played), **how).numpy()
    return made


def in_room(waveform: FloatArray, rng: Generator) -> FloatArray:
    """Let it sound in a room: 0.15 to 0.9 s of reverberation, 15 dB below the voice to 3 above.

    The impulse response is noise that dies away after a few reflections. Source: Polack 1988.
    """
    from scipy import signal

    seconds = rng.uniform(0.15, 0.9)  # to -60 dB
    t = np.arange(round(SAMPLE_RATE * seconds)) / SAMPLE_RATE
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / seconds)
    tail[: round(SAMPLE_RATE * rng.uniform(0.001, 0.012))] = 0
    tail = signal.lfilter(*signal.butter(1, rng.uniform(1_500, 7_500), fs=SAMPLE_RATE), tail)
    for _ in range(rng.integers(3, 8)):
        place = round(SAMPLE_RATE * rng.uniform(0.001, 0.03))
        tail[place] += rng.choice([-1, 1]) * rng.uniform(0.4, 1.6) * np.abs(tail).max()
    tail *= _gain(-rng.uniform(-3, 15)) / np.sqrt(np.square(tail).sum())
    tail[0] += 1
    return np.asarray(signal.fftconvolve(waveform, tail)[: len(waveform)], np.float32)


def by_microphone(waveform: FloatArray, rng: Generator) -> FloatArray:
    """Change its spectrum by a smooth curve, and cut off what is low, or high, at times."""
    hertz = np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE)
    heights = rng.normal(0, rng.uniform(1, 6), len(CURVE_HZ))
    curve = np.interp(np.log(np.maximum(hertz, 20)), np.log(CURVE_HZ), heights)  # dB
    if rng.random() < 0.4:
        curve -= 10 * np.log10(1 + (rng.uniform(60, 350) / np.maximum(hertz, 1)) ** 4)
    if rng.random() < 0.3:
        curve -= 10 * np.log10(1 + (hertz / rng.uniform(2_800, 7_500)) ** 8)
    spectrum = np.fft.rfft(waveform) * 10 ** (curve / 20)
    return np.fft.irfft(spectrum, len(waveform)).astype(np.float32)


def by_telephone(waveform: FloatArray, rng: Generator) -> FloatArray:
    """Limit it to the band of a telephone, about 300 to 3400 Hz."""
    from scipy import signal

    band = rng.uniform(150, 350), rng.uniform(3_000, 3_800)
    filters = signal.butter(4, band, "bandpass", fs=SAMPLE_RATE, output="sos")
    return np.asarray(signal.sosfilt(filters, waveform), np.float32)


def clipped(waveform: FloatArray, rng: Generator) -> FloatArray:
    """Cut off the loudest 0.5 to 8 % of its samples."""
    level = np.quantile(np.abs(waveform), 1 - rng.uniform(0.005, 0.08))
    return np.clip(waveform, -level, level)


def coded(waveform: FloatArray, codec: str, bits: int | None = None) -> FloatArray:
    """Encode and decode it by one of `CODECS`, at so many bits a second where it has a choice.

    What encoders add at the ends stays. Raises a `KeyError` if there is no such codec.
    """
    import av
    import soxr

    name, container, rate, _ = CODECS[codec]
    peak = max(float(np.abs(waveform).max()), 1e-9) / 0.7
    samples = soxr.resample(waveform / peak, SAMPLE_RATE, rate)
    frame = av.AudioFrame.from_ndarray(
        np.rint(samples * 32767).astype(np.int16)[None], "s16", "mono"
    )
    frame.sample_rate = rate
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream: Any = out.add_stream(name, rate=rate, layout="mono")  # of sound, as the codec is
        if bits:
            stream.bit_rate = bits
        wanted = stream.codec_context.codec.audio_formats
        resampler = av.AudioResampler(wanted[0].name if wanted else "s16", "mono", rate)
        for piece in (*resampler.resample(frame), None):
            out.mux(stream.encode(piece))
    file.seek(0)
    resampler = av.AudioResampler("fltp", "mono", SAMPLE_RATE)
    decoded = []
    with av.open(file, "r") as source:
        for piece in (*source.decode(audio=0), None):
            if piece is not None:
                piece.pts = None
            decoded += [part.to_ndarray()[0] for part in resampler.resample(piece)]
    return np.concatenate(decoded).astype(np.float32) * np.float32(peak)


def by_codec(waveform: FloatArray, rng: Generator) -> FloatArray:
    """Encode and decode it by any of `CODECS`, at any of its rates."""
    codec = str(rng.choice(list(CODECS)))
    bits = CODECS[codec][3]
    if not bits:
        return coded(waveform, codec)
    if len(bits) == 2:
        return coded(waveform, codec, int(rng.integers(bits[0], bits[1])))
    return coded(waveform, codec, int(rng.choice(bits)))


def coloured(n: int, rng: Generator, colour: float) -> _Array:
    """Make noise [n] whose amplitude falls with the frequency to the power of `colour`.

    It is white with 0, pink with 0.5 and brown with 1.
    """
    spectrum = np.fft.rfft(rng.standard_normal(n))
    return np.fft.irfft(spectrum * np.arange(1, len(spectrum) + 1.0) ** -colour, n)


def ambience(n: int, rng: Generator) -> _Array:
    """Make the noise [n] of places and machines: hiss and rumble, hums, clicks and knocks."""
    from scipy import signal

    made = coloured(n, rng, rng.uniform(0, 1.2))
    made /= level(made)
    t = np.arange(n) / SAMPLE_RATE
    if rng.random() < 0.5:
        hertz = rng.choice([50, 60, 100, 120, rng.uniform(80, 1_000)])
        parts = [np.sin(2 * np.pi * hertz * k * t + rng.uniform(0, 6)) / k for k in range(1, 8)]
        made += rng.uniform(0.2, 2) * np.sum(parts, axis=0)
    if rng.random() < 0.5:
        clicks = np.zeros(n)
        places = rng.integers(0, n, rng.integers(2, 40))
        clicks[places] = rng.standard_normal(len(places)) * rng.uniform(5, 60)
        ring = np.exp(-t[:1600] * rng.uniform(30, 300))
        ring *= np.sin(2 * np.pi * rng.uniform(200, 4_000) * t[:1600])
        made += signal.fftconvolve(clicks, ring)[:n]
    if rng.random() < 0.5:
        made *= 1 + 0.9 * np.sin(2 * np.pi * rng.uniform(0.1, 4) * t)
    return made


def music(n: int, rng: Generator) -> _Array:
    """Make music [n]: chords of a major or a minor key, a melody above them at times, and drums."""
    made = np.zeros(n)
    scale = (0, 2, 4, 5, 7, 9, 11) if rng.random() < 0.5 else (0, 2, 3, 5, 7, 8, 10)
    beat, root, dull = rng.uniform(0.25, 0.8), rng.integers(36, 60), rng.uniform(0.5, 3)
    vibrato = rng.uniform(0, 0.01)
    has_drums, has_melody = rng.random(2) < (0.6, 0.7)
    start = 0
    while start < n:
        length = min(n - start, round(SAMPLE_RATE * beat * rng.choice([1, 1, 2])))
        t = np.arange(length) / SAMPLE_RATE
        degree = rng.integers(7)
        notes = [root + scale[(degree + k) % 7] + 12 * ((degree + k) // 7) for k in (0, 2, 4)]
        if has_melody:
            notes.append(root + 24 + scale[rng.integers(7)])
        part = made[start : start + length]
        for note in notes:
            hertz = 440 * 2 ** ((note - 69) / 12)
            phase = 2 * np.pi * hertz * (t + vibrato / 5 * np.sin(2 * np.pi * 5 * t))
            harmonics = range(1, min(12, 1 + int(7_500 / hertz)))
            sound = np.sum([np.sin(k * phase) / k**dull for k in harmonics], axis=0)
            part += sound * np.minimum(1, t / 0.01) * np.exp(-t * rng.uniform(0.3, 6))
        if has_drums:
            hit = rng.standard_normal(length) * np.exp(-t * rng.uniform(15, 60))
            part += hit * rng.uniform(0.2, 1.5)
            if rng.random() < 0.5:
                part += 2 * np.sin(2 * np.pi * 60 * t * np.exp(-t * 3)) * np.exp(-t * 12)
        start += round(SAMPLE_RATE * (beat if rng.random() < 0.7 else beat / 2))
    return made


def babble(n: int, rng: Generator, others: Sequence[FloatArray]) -> _Array:
    """Let 3 to 8 of other voices speak at once, [n]."""
    made = np.zeros(n)
    for _ in range(rng.integers(3, 9)):
        other = others[int(rng.integers(len(others)))]
        made += np.resize(np.roll(other, -rng.integers(len(other))), n) / level(other)
    return made


def noisy(waveform: FloatArray, noise: _Array, below: float) -> FloatArray:
    """Add noise [n] whose level is so many dB below the voice's."""
    scale = _gain(-below) * level(waveform) / level(noise)
    return (waveform + scale * noise).astype(np.float32)


def recorded(waveform: FloatArray, rng: Generator, others: Sequence[FloatArray]) -> FloatArray:
    """Lead a voice to a file by a way that the generator chooses; `others` may speak beside it."""
    x, n = waveform, len(waveform)
    chances = rng.random(6) < (0.35, 0.6, 0.5, 0.1, 0.15, 0.45)
    if chances[0]:
        x = in_room(x, rng)
    if chances[1]:
        kind = rng.choice(["noise", "ambience", "music", "babble"], p=[0.35, 0.15, 0.25, 0.25])
        if kind == "noise":
            other = coloured(n, rng, rng.uniform(0, 1))
        elif kind == "babble":
            other = babble(n, rng, others)
        else:
            other = ambience(n, rng) if kind == "ambience" else music(n, rng)
        x = noisy(x, other, rng.uniform(7 if kind == "babble" else 4, 30))
    for chance, way in zip(
        chances[2:], (by_microphone, clipped, by_telephone, by_codec), strict=True
    ):
        if chance:
            x = way(x, rng)
    return x


def no_voice(n: int, rng: Generator) -> FloatArray:
    """Make a recording [n] in which nobody speaks: noise, a place, or music."""
    kind = rng.integers(5)
    made = coloured(n, rng, rng.uniform(0, 1.2)) if kind == 0 else ambience(n, rng)
    if kind > 1:
        made = music(n, rng) + made * (level(made) and rng.uniform(0, 0.3) * (kind == 2))
    x = np.asarray(made / np.abs(made).max(), np.float32)
    for share, way in ((0.3, in_room), (0.5, by_microphone), (0.4, by_codec)):
        if rng.random() < share:
            x = way(x, rng)
    return x


def level(waveform: NDArray[np.floating]) -> float:
    """Measure the RMS of [n]; above 0."""
    return math.sqrt(float(np.mean(np.square(waveform, dtype=np.float64)))) + 1e-9


def _gain(decibels: float) -> float:
    return float(10 ** (decibels / 20))
