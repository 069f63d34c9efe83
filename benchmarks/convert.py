"""Time and memory of converting a full-size VGG-Face (145 M values, 580 MB), on this machine.

    python benchmarks/convert.py [--verify] [FOLDER]

Writes random weights as Keras does, once serengil's and once rcmalli's layout, and converts each
three times; the smallest wall time counts, as noise only ever adds. Memory, that of the command and
of the processes that it starts together, is sampled in another run, which that slows. Fails where
a bound is missed; with --verify, which asks TensorFlow, there is none.
"""

import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

RUNS = 3
BOUNDS = {"seconds": 10.0, "MB": 1600.0}
NAMES = (
    *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"),
    *("conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3", "fc6", "fc7", "fc8"),
)
CHANNELS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def write(path: Path, origin: str) -> Path:
    """Write random weights of the size of trained ones in Keras' legacy layout."""
    shapes = [(3, 3, i, o) for i, o in itertools.pairwise(CHANNELS)]
    if origin == "serengil":
        shapes += [(7, 7, 512, 4096), (1, 1, 4096, 4096), (1, 1, 4096, 2622)]
    else:
        shapes += [(25088, 4096), (4096, 4096), (4096, 2622)]
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in NAMES]
        for name, shape in zip(NAMES, shapes, strict=True):
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/kernel:0".encode(), f"{name}/bias:0".encode()]
            kernel = rng.standard_normal(shape, np.float32)
            kernel *= np.float32((2 / np.prod(shape[:-1])) ** 0.5)
            group[f"{name}/kernel:0"] = kernel
            group[f"{name}/bias:0"] = 0.1 * rng.standard_normal(shape[-1], np.float32)
    return path


def duration(command: list[str]) -> float:
    """Wall time of a command, seconds."""
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def peak(command: list[str]) -> float:
    """Largest memory of a command's process tree, MB."""
    largest = 0.0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while (status := process.poll()) is None:
        largest = max(largest, sum(memory(pid) for pid in tree(process.pid)))
        time.sleep(0.02)
    if status:
        raise SystemExit(f"{command} failed")
    return largest / 1024


def tree(pid: int) -> list[int]:
    """The process and all that it started."""
    children: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return [pid, *(other for child in children for other in tree(child))]


def memory(pid: int) -> float:
    """Resident memory of a process, kB; pages that several share are shared out (PSS)."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return float(line.split()[1])
    return 0.0


def main(arguments: list[str]) -> None:
    """Print the figures."""
    verify = "--verify" in arguments
    folders = [argument for argument in arguments if argument != "--verify"]
    figures = {}
    with tempfile.TemporaryDirectory(dir=folders[0] if folders else None) as folder:
        for origin in ("serengil", "rcmalli"):
            source = write(Path(folder) / f"{origin}.h5", origin)
            command = [sys.executable, "-m", "s2f", "convert", origin, str(source), "-q"]
            command += [
                "-o",
                str(Path(folder) / "out"),
                "--overwrite",
                *(["--verify"] if verify else []),
            ]
            seconds = min(duration(command) for _ in range(RUNS))
            figures[origin] = {"seconds": round(seconds, 2), "MB": round(peak(command))}
            source.unlink()
    print(json.dumps(figures, indent=1))
    for origin, figure in figures.items():
        missed = [name for name, bound in BOUNDS.items() if figure[name] > bound and not verify]
        if missed:
            raise SystemExit(f"{origin}: over the bound: {', '.join(missed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
