"""`kill -9` at twenty random moments of `s2f prep audio`, then a run to the end.

    python benchmarks/prep_kill.py [RECORDINGS]

Half of the kills take the whole group of processes, half the parent alone. Fails if the tree
differs in a byte from that of an unbroken run, or a temporary file is left.
"""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

KILLS = 20
BOUNDS = {"trees that differ": 0, "temporary files left": 0}
VOICES = Path(__file__).parents[2] / "shared/data/voices"


def figures(source: Path = VOICES) -> dict[str, float]:
    """Kill, run again, and compare."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        whole, out = Path(folder) / "whole", Path(folder) / "out"
        subprocess.run(command(source, whole), check=True)
        outputs = len(list(whole.rglob("*.npy")))
        done = [0]
        for kill in range(KILLS):
            process = subprocess.Popen(command(source, out), start_new_session=True)
            # A run gets at most about a twentieth of the work done, so that all are killed at it.
            goal = done[-1] + rng.integers(0, outputs // KILLS + 1)
            while process.poll() is None and len(list(out.rglob("*.npy"))) <= goal:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.02))
            if kill % 2:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
            done.append(len(list(out.rglob("*.npy"))))
        subprocess.run(command(source, out), check=True)
        return {
            "runs that were killed at work": sum(a < b for a, b in itertools.pairwise(done)),
            "outputs at the last kill": done[-1],
            "outputs in all": outputs,
            "trees that differ": float(digest(whole) != digest(out)),
            "temporary files left": len(files(out)) - len(files(whole)),
        }


def command(source: Path, out: Path) -> list[str]:
    """Name the command that is killed; its only result is the name of the folder."""
    return [sys.executable, "-m", "s2f", "prep", "audio", str(source), str(out), "--quiet"]


def files(folder: Path) -> list[Path]:
    """List every file, hidden ones too."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def digest(folder: Path) -> str:
    """Hash the names and bytes of every file."""
    hashed = hashlib.sha256()
    for path in files(folder):
        hashed.update(str(path.relative_to(folder)).encode())
        hashed.update(path.read_bytes())
    return hashed.hexdigest()


def main() -> None:
    """Print the figures."""
    measured = figures(Path(sys.argv[1]) if len(sys.argv) > 1 else VOICES)
    print(json.dumps({name: round(value, 2) for name, value in measured.items()}, indent=1))
    missed = [name for name, bound in BOUNDS.items() if measured[name] > bound]
    if missed:
        raise SystemExit(f"over the bound: {', '.join(missed)}")


if __name__ == "__main__":
    main()
