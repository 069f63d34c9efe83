"""Recordings for tests: encoded ones, and what FFmpeg makes of them."""

import contextlib
import itertools
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import numpy as np
import pytest

from s2f.audio import SAMPLE_RATE, find_recordings

VOICES = Path(__file__).parents[2] / "shared/data/voices"
# What `audio.record` uses of sounddevice 0.5.
MICROPHONE = """
import pathlib, time
import numpy as np

PortAudioError = type("PortAudioError", (Exception,), {})
samples = np.load(pathlib.Path(__file__).with_name("samples.npy"))


def query_devices(kind):
    return {"name": "a test", "default_samplerate": float(RATE)}


class InputStream:
    def __init__(self, **options):
        self.at = 0

    def start(self):
        pass

    def close(self):
        pathlib.Path(__file__).with_name("closed").touch()

    def read(self, n):
        time.sleep(n / RATE / PACE)
        self.at += n
        return samples[self.at - n : self.at, None], False
"""
READERS = ["103", "1069", "1081", "118", "1183"]  # some, who pause for less than 2 s


def noise(n: int) -> np.ndarray:
    """Noise [n] that is loud and soft by turns, as speech is, and has no pause."""
    loudness = np.where(np.arange(n) // 3000 % 2, 0.02, 0.1)
    return (loudness * np.random.default_rng(0).standard_normal(n)).astype(np.float32)


def real(reader: str) -> Path:
    """The one recording of a reader."""
    if not VOICES.is_dir():
        pytest.skip("the real voices (shared/data/voices) are not beside the repository")
    (path,) = find_recordings([VOICES / reader])
    return path


def write_av(
    path: Path,
    samples: np.ndarray | None,
    codec: str = "aac",
    rate: int = 44_100,
    video: bool = False,
    options: dict[str, str] | None = None,
    **metadata: str,
) -> Path:
    """Encode samples [n c], or none, beside some grey frames if asked, with PyAV."""
    with av.open(str(path), "w", options=options or {}) as container:
        container.metadata.update(metadata)
        if video:
            picture = container.add_stream("mpeg4", rate=10, width=32, height=32, pix_fmt="yuv420p")
        if samples is not None:
            layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[samples.shape[1]]
            sound = container.add_stream(codec, rate=rate, layout=layout, bit_rate=128_000)
        if video:
            grey = np.full((32, 32, 3), 128, np.uint8)
            for _ in range(15):
                container.mux(picture.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            container.mux(picture.encode())
        if samples is not None:
            packed = samples.reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            container.mux(sound.encode(frame))
            container.mux(sound.encode())
    return path


def write_microphone(
    folder: Path, samples: np.ndarray, rate: int = SAMPLE_RATE, *, pace: float = 1
) -> Path:
    """Write a module sounddevice whose microphone hears samples [n], so much faster than time."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "samples.npy", samples)
    (folder / "sounddevice.py").write_text(f"PACE, RATE = {pace}, {rate}\n{MICROPHONE}")
    return folder


def filtered(samples: np.ndarray, *filters: tuple[str, str]) -> list[av.AudioFrame]:
    """Send mono samples [n] through filters of FFmpeg itself."""
    graph, time_base = av.filter.Graph(), Fraction(1, SAMPLE_RATE)
    form = {"int16": "s16", "float32": "flt"}[samples.dtype.name]
    source = graph.add_abuffer(
        sample_rate=SAMPLE_RATE, format=form, layout="mono", time_base=time_base
    )
    chain = [source, *(graph.add(*named) for named in filters), graph.add("abuffersink")]
    for before, after in itertools.pairwise(chain):
        before.link_to(after)
    graph.configure()
    frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format=form, layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, 0, time_base
    source.push(frame)
    source.push(None)
    frames = []
    with contextlib.suppress(av.EOFError):
        while True:
            frames.append(chain[-1].pull())
    return frames


def ffmpeg_normalize(samples: np.ndarray) -> np.ndarray:
    """What `ffmpeg-normalize -nt rms -t -23` stores of mono samples [n], by FFmpeg's own filters.

    Source: ffmpeg_normalize/_streams.py, 1.43, parse_astats and get_second_pass_opts_peakrms.
    """
    measured = filtered(samples, ("astats", "metadata=1:measure_overall=Peak_level+RMS_level"))
    level = float(measured[-1].metadata["lavfi.astats.Overall.RMS_level"])
    volume, form = ("volume", f"{-23 - level}dB"), ("aformat", "sample_fmts=s16")
    frames = filtered(samples, volume, form)
    return np.concatenate([frame.to_ndarray() for frame in frames], axis=1)[0]
