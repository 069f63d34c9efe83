"""Time and memory of planning faces of 1,000,000 recordings, before any is drawn.

    python benchmarks/generate_folder.py [RECORDINGS]

Empty files stand for recordings: a shard that holds none or one of them is planned by the names of
all, and one that is there is told as broken. Fails where a bound is missed.
"""

import json
import sys
import tempfile
from pathlib import Path

from prep_listing import FOLDERS, grow

N = 1_000_000
BOUNDS = {"s": 60, "MB": 400}

PLAN = """
import json, resource, sys, time
from pathlib import Path
from s2f.generate import GenerateOptions, run
from s2f.journal import StepShard
started, worked = time.perf_counter(), time.process_time()
shard = StepShard.parse("1/999983")
list(run(GenerateOptions(sources=[Path(sys.argv[1])], output=Path(sys.argv[2]), shard=shard)))
seconds, processor = time.perf_counter() - started, time.process_time() - worked
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
peak /= 1024 if sys.platform == "linux" else 1024**2
print(json.dumps({"s": seconds, "processor, s": processor, "MB": peak}))
"""


def main() -> None:
    """Print the figures."""
    import subprocess

    n = int(sys.argv[1]) if len(sys.argv) > 1 else N
    with tempfile.TemporaryDirectory() as folder:
        grow(source := Path(folder) / "source", n, min(n, FOLDERS))
        command = [sys.executable, "-c", PLAN, str(source), str(Path(folder) / "out")]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    print(json.dumps({"recordings": n} | {k: round(v, 1) for k, v in measured.items()}))
    if missed := [name for name, bound in BOUNDS.items() if measured[name] > bound]:
        raise SystemExit(f"over the bound: {', '.join(missed)}")


if __name__ == "__main__":
    main()
