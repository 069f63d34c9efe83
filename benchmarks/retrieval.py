"""Time and memory of placing 1,000 queries in a gallery of 100,000 embeddings of 4096 values.

    python benchmarks/retrieval.py

By each metric, on two threads, in a process of its own that holds the whole gallery as float32
(1.6 GB of the peak); making the gallery is not timed. Queries are photos with noise, so that some
are found and some are not. Fails where a bound is missed.
"""

import json
import subprocess
import sys

QUERIES, PHOTOS, VALUES = 1_000, 100_000, 4_096
BOUNDS = {"seconds": 30.0, "MB": 3_000.0}

PLACE = """
import json, resource, sys, time
import numpy as np
import torch
from s2f.retrieval import place_queries, recall
torch.set_num_threads(2)
q, g, d = map(int, sys.argv[2:])
rng = np.random.default_rng(0)
gallery = np.empty((g, d), np.float32)
for start in range(0, g, 1000):
    gallery[start : start + 1000] = rng.standard_normal((1000, d), np.float32)
truth = rng.choice(g, q, replace=False)
noise = rng.standard_normal((q, d), np.float32)
queries = 0.06 * gallery[truth] + noise
started = time.perf_counter()
placed = place_queries(queries, truth, gallery, np.arange(g), metric=sys.argv[1])
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
peak /= 1024 if sys.platform == "linux" else 1024**2
print(json.dumps({"seconds": seconds, "MB": peak, "R@10": recall(placed, 10).mean()}))
"""


def cost(metric: str) -> dict[str, float]:
    """Wall time, seconds, and peak memory, MB, by one metric."""
    command = [sys.executable, "-c", PLACE, metric, *map(str, (QUERIES, PHOTOS, VALUES))]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return {name: round(value, 3) for name, value in measured.items()}


def main() -> None:
    """Print the figures."""
    figures = {metric: cost(metric) for metric in ("cosine", "l1", "l2")}
    print(json.dumps(figures, indent=1))
    for metric, figure in figures.items():
        missed = [name for name, bound in BOUNDS.items() if figure[name] > bound]
        if missed:
            raise SystemExit(f"{metric}: over the bound: {', '.join(missed)}")


if __name__ == "__main__":
    main()
