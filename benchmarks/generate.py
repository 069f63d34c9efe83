"""Time and memory of `s2f generate`, as ratios and differences in one run on this machine.

    python benchmarks/generate.py [RECORDING]

Each command is run alone, five times; the smallest wall time counts, as noise only ever adds.
Fails where a bound is missed.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 5
BOUNDS = {
    "s2f --help, s": 0.3,
    "s2f generate over import torch, s": 1.0,
    "s2f generate, peak MB": 900,
}
EXAMPLE = Path(__file__).parents[1] / "examples" / "speech.wav"


def cost(command: list[str]) -> tuple[float, float]:
    """Smallest wall time of a command, seconds, and its peak memory, MB."""
    best, peak = float("inf"), 0.0
    for _ in range(RUNS):
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        best = min(best, time.perf_counter() - started)
        peak = usage.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
        if status:
            raise SystemExit(f"{command} failed")
    return best, peak


def main() -> None:
    """Print the figures."""
    recording = sys.argv[1] if len(sys.argv) > 1 else str(EXAMPLE)
    with tempfile.TemporaryDirectory() as folder:
        face = str(Path(folder) / "face.png")
        torch, _ = cost([sys.executable, "-c", "import torch"])
        helped, _ = cost([sys.executable, "-m", "s2f", "--help"])
        command = [sys.executable, "-m", "s2f", "generate", recording, "-o", face, "--overwrite"]
        generated, memory = cost(command)
    figures = {
        "import torch, s": torch,
        "s2f --help, s": helped,
        "s2f generate, s": generated,
        "s2f generate over import torch, s": generated - torch,
        "s2f generate, peak MB": memory,
        "warm clips of 6 s a second": warm(recording),
    }
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}, indent=1))
    missed = [name for name, bound in BOUNDS.items() if figures[name] > bound]
    if missed:
        raise SystemExit(f"over the bound: {', '.join(missed)}")


def warm(recording: str) -> float:
    """Clips a second of a loaded model, file reading included."""
    from s2f import SpeechToFace

    model = SpeechToFace.load()
    clips = model.generate(recording).clips
    started, n = time.perf_counter(), 20
    for _ in range(n):
        model.generate(recording)
    return n * clips / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
