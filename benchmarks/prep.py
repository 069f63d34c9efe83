"""Speed, memory and fidelity of `s2f prep`, as ratios and differences in one run on this machine.

    python benchmarks/prep.py VOICES [--only SECTION]

VOICES is a folder of recordings at 16 kHz, such as LibriSpeech's. The seed's recipe, which the
section `audio` is compared with, needs the programs ffmpeg and ffmpeg-normalize on the PATH.
Prints the figures of each section and fails where a bound is missed.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import prep_embeddings
import prep_kill
import prep_listing

WORKERS = 2
RECORDINGS = 40
REPEATS = 10  # of each recording for us, so that it takes long enough to be measured
TURNS = 5
MINUTES = {"10 min": 10, "3 h": 180}
AT_LEAST = {"prep audio over the seed's recipe": 100.0, **prep_embeddings.BOUNDS}
AT_MOST = {
    **prep_listing.BOUNDS,
    **prep_kill.BOUNDS,
    "samples that differ from ffmpeg-normalize's": 0.0,
    "prep audio, 3 h over 10 min, peak MB": 100.0,
}

Figures = dict[str, float]


def write_m4a(path: Path, samples: np.ndarray, length: int | None = None) -> None:
    """Encode int16 samples [n] at 16 kHz, repeated up to a length, as AAC."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono", bit_rate=64_000)
        length = length or len(samples)
        for start in range(0, length, 1 << 20):
            # Never whole in memory: a new process starts with the peak of the one that started it.
            positions = np.arange(start, min(start + (1 << 20), length))
            block = samples.take(positions, mode="wrap")[np.newaxis]
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16_000, start, Fraction(1, 16_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_recordings(voices: Path, folder: Path) -> list[Path]:
    """Write real recordings, one half as WAV and the other as m4a."""
    import soundfile

    written = []
    for k, source in enumerate(sorted(voices.rglob("*.flac"))[:RECORDINGS]):
        samples, rate = soundfile.read(source, dtype="int16")
        path = folder / f"{k:02}{('.wav', '.m4a')[k % 2]}"
        if k % 2:
            write_m4a(path, samples)
        else:
            soundfile.write(path, samples, rate)
        written.append(path)
    return written


def program(*command: str | Path) -> None:
    """Run a program that is to say nothing."""
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


def seed_recipe(source: Path) -> None:
    """Make a spectrogram as the seed does: three processes and two temporary files beside it."""
    import librosa

    plain, loud = (source.with_suffix(f".{name}.wav") for name in ("plain", "loud"))
    program("ffmpeg", "-y", "-i", source, "-ac", "1", "-ar", "16000", plain)
    program("ffmpeg-normalize", plain, "-nt", "rms", "-t", "-23", "-f", "-o", loud)
    waveform, _ = librosa.load(loud, sr=16_000)
    while len(waveform) < 96_000:
        waveform = np.concatenate([waveform, waveform])
    spectrum = librosa.stft(waveform[:96_000], n_fft=512, hop_length=160, win_length=400)
    angle = np.angle(spectrum)
    compressed = [np.abs(spectrum) ** 0.3, np.sign(angle) * np.abs(angle) ** 0.3]
    np.save(source.with_suffix(".npy"), np.stack(compressed))
    plain.unlink()
    loud.unlink()


def speeds(recordings: list[Path], folder: Path) -> tuple[float, float, float]:
    """Files a second of the seed's recipe and of `s2f prep audio`; seconds until ours starts.

    In turns, the best of each, when the workers have started.
    """
    for repeat in range(REPEATS):
        (folder / f"tree/{repeat}").mkdir(parents=True)
        for path in recordings:
            os.link(path, folder / f"tree/{repeat}/{path.stem}{path.suffix[1:]}{path.suffix}")
    recipe, ours, starts = [], [], []
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        pool.map(seed_recipe, recordings[:WORKERS], chunksize=1)
        for turn in range(TURNS):
            some = recordings[turn::TURNS]
            started = time.perf_counter()
            pool.map(seed_recipe, some, chunksize=1)
            recipe.append(len(some) / (time.perf_counter() - started))
            rate, start = our_speed(folder / "tree", folder / f"out{turn}")
            ours.append(rate)
            starts.append(start)
    return max(recipe), max(ours), min(starts)


def our_speed(tree: Path, out: Path) -> tuple[float, float]:
    """Files a second from the first output to the last, and seconds until the first."""
    from s2f.prep import prepare
    from s2f.prep_audio import audio_step

    times: list[float] = []

    def progress(done: int, total: int, what: str) -> None:
        if done:
            times.append(time.perf_counter())

    started = time.perf_counter()
    step = audio_step(store="spectrogram", preset="seed")
    report = prepare(step, tree, out, workers=WORKERS, progress=progress)
    if report.failed or report.made != REPEATS * RECORDINGS:
        raise SystemExit(f"prep audio failed: {report.failed[:1]}")
    return (len(times) - 1) / (times[-1] - times[0]), times[0] - started


def peak_memory(source: Path, out: Path) -> float:
    """MB that a worker of `s2f prep audio --store waveform` takes for one recording."""
    from s2f.prep_audio import audio_step

    audio_step(store="waveform").work(source, out)
    peak = float(resource_peak())
    out.unlink()
    return peak


def resource_peak() -> float:
    """Largest memory of this process so far, MB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if sys.platform == "linux" else 1024**2)


def in_new_process(work: Callable[..., float], *arguments: object) -> float:
    """Call a function of this module in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def different_samples(source: Path, folder: Path) -> int:
    """Samples that `s2f prep audio` stores otherwise than ffmpeg-normalize, of a WAV file."""
    import soundfile

    from s2f.prep_audio import audio_step

    audio_step(store="waveform").work(source, folder / "ours.npy")
    # It would store what comes from floating point in 32 bits.
    options = ("-nt", "rms", "-t", "-23", "-c:a", "pcm_s16le", "-f")
    program("ffmpeg-normalize", source, *options, "-o", folder / "f.wav")
    theirs, _ = soundfile.read(folder / "f.wav", dtype="int16")
    ours = np.load(folder / "ours.npy")
    if ours.shape != theirs.shape:
        raise SystemExit(f"{source}: {ours.shape} samples, ffmpeg-normalize has {theirs.shape}")
    return int(np.count_nonzero(ours != theirs))


def audio(voices: Path, folder: Path) -> Figures:
    """The seed's recipe and ours on the same recordings; memory of long ones; equality."""
    import soundfile

    for name in ("ffmpeg", "ffmpeg-normalize"):
        if shutil.which(name) is None:
            raise SystemExit(f"{name} is not on the PATH; the seed's recipe needs it")
    recordings = write_recordings(voices, folder)
    wavs = [path for path in recordings if path.suffix == ".wav"]
    floats = folder / "float"
    floats.mkdir()
    for path in wavs:
        samples, rate = soundfile.read(path, dtype="float32")
        soundfile.write(floats / path.name, samples * 0.9, rate, subtype="FLOAT")
    differ = sum(different_samples(path, folder) for path in [*wavs, *floats.iterdir()])

    recipe, ours, start = speeds(recordings, folder)

    joined = np.concatenate([soundfile.read(path, dtype="int16")[0] for path in wavs])
    peaks = {}
    for name, minutes in MINUTES.items():
        write_m4a(folder / "long.m4a", joined, minutes * 60 * 16_000)
        peaks[name] = in_new_process(peak_memory, folder / "long.m4a", folder / "long.npy")
    return {
        "seed's recipe, files a second": recipe,
        "prep audio, files a second": ours,
        "prep audio, start, s": start,
        "prep audio over the seed's recipe": ours / recipe,
        "samples that differ from ffmpeg-normalize's": differ,
        **{f"prep audio, {name}, peak MB": peak for name, peak in peaks.items()},
        "prep audio, 3 h over 10 min, peak MB": peaks["3 h"] - peaks["10 min"],
    }


SECTIONS: dict[str, Callable[[Path, Path], Figures]] = {
    "audio": audio,
    "embeddings": lambda voices, folder: prep_embeddings.figures(),
    "listing": lambda voices, folder: prep_listing.figures(),
    "kill": lambda voices, folder: prep_kill.figures(voices),
}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("voices", type=Path)
    parser.add_argument("--only", choices=SECTIONS)
    options = parser.parse_args()
    figures: Figures = {}
    for name, section in SECTIONS.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                figures |= section(options.voices, Path(folder))
    print(json.dumps({name: float(f"{value:.3g}") for name, value in figures.items()}, indent=1))
    missed = [name for name, bound in AT_LEAST.items() if figures.get(name, bound) < bound]
    missed += [name for name, bound in AT_MOST.items() if figures.get(name, bound) > bound]
    if missed:
        raise SystemExit(f"bounds missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
