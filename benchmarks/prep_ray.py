"""Time that `s2f prep audio` takes by Ray, over that of the local pool, on two cores.

    python benchmarks/prep_ray.py VOICES [--store spectrogram] [--repeats N]

VOICES is a folder of real recordings, such as LibriSpeech's. Both work in turns, in one process
that has made each tree once before; what counts is the best turn of each, whole calls of `prepare`.
Fails if Ray takes more than a quarter longer, or if a tree differs in a byte.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

WORKERS = 2
TURNS = 3
AT_MOST = {"Ray over local": 1.25}


def contents(folder: Path) -> dict[str, bytes]:
    """Read every file below a folder, but for locks."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def figures(voices: Path, store: str, repeats: int) -> dict[str, float]:
    """Prepare each recording `repeats` times, by both in turns."""
    from s2f.prep import prepare
    from s2f.prep_audio import audio_step
    from s2f.workers import connected_to_ray

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recordings = sorted(voices.rglob("*.flac"))
        for k in range(repeats):
            (folder / f"tree/{k}").mkdir(parents=True)
            for path in recordings:
                (folder / f"tree/{k}/{path.name}").symlink_to(path.resolve())
        n = repeats * len(recordings)
        step = audio_step(store=store, **({"preset": "seed"} if store == "spectrogram" else {}))
        seconds: dict[str, list[float]] = {"local": [], "Ray": []}
        started = time.perf_counter()
        with connected_to_ray(workers=WORKERS) as cluster:
            start = time.perf_counter() - started
            for turn in range(TURNS + 1):
                trees = []
                for by, on in (("local", None), ("Ray", cluster)):
                    out, workers = folder / f"{by}-{turn}", None if on else WORKERS
                    report = prepare(step, folder / "tree", out, workers=workers, cluster=on)
                    if report.made != n:
                        raise SystemExit(f"{by}: {report.failed[:1]}")
                    seconds[by].append(report.seconds)
                    trees.append(contents(out))
                if trees[0] != trees[1]:
                    raise SystemExit("the trees differ")
    best = {by: min(times[1:]) for by, times in seconds.items()}
    rates = {f"recordings a second, {by}": n / best[by] for by in best}
    ratio = {"Ray over local": best["Ray"] / best["local"]}
    return {"recordings": n, "seconds until Ray is there": start, **rates, **ratio}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("voices", type=Path)
    parser.add_argument("--store", choices=["waveform", "spectrogram"], default="waveform")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    measured = figures(options.voices, options.store, options.repeats)
    print(json.dumps({name: float(f"{value:.3g}") for name, value in measured.items()}, indent=1))
    missed = [name for name, bound in AT_MOST.items() if measured[name] > bound]
    if missed:
        raise SystemExit(f"bounds missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
