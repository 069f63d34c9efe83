"""What lies between a mouth and a file: room, other sounds, microphone, telephone and codec.

Waveforms [n] at 16 kHz, float32, in and out. What is random is drawn from a generator. A voice's
sex, pitch and timbre are to be heard through all of it, so that ranges are those of usable
recordings. And a voice itself can be moved: its pitch without its formants, or the other way round.
"""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from s2f.audio import SAMPLE_RATE, FloatArray

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
KNOTS = (50, 100, 200, 400, 800, 1_600, 3_200, 8_000)  # Hz, of a microphone's curve


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
    heights = rng.normal(0, rng.uniform(1, 6), len(KNOTS))
    curve = np.interp(np.log(np.maximum(hertz, 20)), np.log(KNOTS), heights)  # dB
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
