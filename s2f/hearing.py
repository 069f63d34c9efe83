"""A spectrogram as a picture: what a voice encoder hears, with its times and pitches."""

import itertools

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from s2f.decoding import SAMPLE_RATE
from s2f.front_end import HOP_LENGTH, FrontEnd

PLOT = (448, 200)  # pixels: width and height of the spectrogram itself
LEFT, TOP, RIGHT, BOTTOM = 68, 10, 14, 48  # pixels around it
LETTERS = 17  # legible still where a phone shows it at half its size
INK = (40, 40, 40)
PITCHES = (100, 300, 1000, 3000, 8000)  # Hz
_GAP = 20  # pixels that two numbers at an axis need
# From silence to the loudest: each lighter than the one before, also for those who see no colours.
_COLOURS = (
    *((13, 8, 50), (72, 20, 110), (160, 42, 100)),
    *((225, 90, 60), (250, 170, 50), (252, 253, 190)),
)


def draw(spectrogram: NDArray[np.float32], front_end: FrontEnd) -> Image.Image:
    """Draw a spectrogram: time to the right, pitch upwards, light where it is loud.

    Args:
        spectrogram: [c f t], as `front_end.spectrogram` gives it.
        front_end: that made it.

    Returns:
        RGB, 530 x 258.
    """
    width, height = PLOT
    loudness = _loudness(spectrogram, front_end)[::-1]
    grey = Image.fromarray(np.round(255 * loudness).astype(np.uint8))
    grey = grey.resize(PLOT, Image.Resampling.BOX if grey.width > width else None)
    picture = Image.new("RGB", (LEFT + width + RIGHT, TOP + height + BOTTOM), "white")
    picture.paste(Image.fromarray(_palette()[np.asarray(grey)]), (LEFT, TOP))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(LETTERS)
    bottom, last = TOP + height, float("inf")
    for hertz in PITCHES:
        y = bottom - (front_end.row(hertz) + 0.5) / front_end.n_freqs * height
        if last - y >= _GAP:
            last = y
            label = f"{hertz / 1000:g} kHz" if hertz >= 1000 else f"{hertz} Hz"
            pen.line((LEFT - 5, y, LEFT - 1, y), fill=INK)
            pen.text((LEFT - 8, max(y, TOP + 8)), label, fill=INK, font=font, anchor="rm")
    seconds = spectrogram.shape[2] * HOP_LENGTH / SAMPLE_RATE
    step = next(s for s in (0.5, 1, 2, 5, 10, 20, 50, 100, 1e9) if seconds / s <= 10)
    for k in itertools.takewhile(lambda k: k * step <= seconds, itertools.count()):
        x = LEFT + k * step / seconds * width
        pen.line((x, bottom, x, bottom + 4), fill=INK)
        pen.text((x, bottom + 6), f"{k * step:g}", fill=INK, font=font, anchor="ma")
    pen.text((LEFT + width / 2, bottom + 26), "seconds", fill=INK, font=font, anchor="ma")
    return picture


def _loudness(spectrogram: NDArray[np.float32], front_end: FrontEnd) -> NDArray[np.float64]:
    """Return how loud each pitch is at each time, [f t]: 0 for the softest, 1 for the loudest."""
    if front_end.kind == "paper":  # the compressed real and imaginary parts
        loud = np.hypot(spectrogram[0], spectrogram[1]).astype(np.float64)
    else:
        loud = spectrogram[0].astype(np.float64)
    low, high = np.percentile(loud, 5), loud.max()  # digital silence would darken all the rest
    scaled: NDArray[np.float64] = np.clip((loud - low) / max(high - low, 1e-9), 0.0, 1.0)
    return scaled


def _palette() -> NDArray[np.uint8]:
    """The colours of 256 loudnesses, [256 3]."""
    stops = np.linspace(0, 255, len(_COLOURS))
    mixed = [np.interp(np.arange(256), stops, channel) for channel in zip(*_COLOURS, strict=True)]
    return np.stack(mixed, axis=1).round().astype(np.uint8)
