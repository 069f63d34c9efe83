"""Memory and time of `s2f evaluate` as recordings, and people, grow: all of it, but the networks.

    python benchmarks/evaluate.py [RECORDINGS ...]

A tree of people of five recordings and five stored embeddings each, of 1024 values, is evaluated by
all protocols, each size in a process of its own; a model that hears and draws noise stands for the
networks. The bound is the memory of the first size.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SIZES = (1_000, 4_000, 16_000)
VALUES, EACH = 1024, 5
TIMES, MORE = 1.3, 100  # of the first peak, or MB above it: what the largest may take

ALONE = """
import json, resource, sys, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import torch
from PIL import Image
import s2f.evaluate
from s2f.embeddings import Maker
from s2f.pipeline import Embedded, Face
from s2f.report import to_html, to_json

d = int(sys.argv[2])
rng = np.random.default_rng(0)
pixels = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
points = rng.uniform(60, 180, (68, 2)).astype(np.float32)
wide = torch.from_numpy(rng.standard_normal((224, d), np.float32))

class Noise:
    model = SimpleNamespace(name="noise", checkpoints={})
    device, precision = torch.device("cpu"), "fp32"
    def embed_voices(self, waveforms):
        for _ in waveforms:
            yield Embedded(1, total=rng.standard_normal(d))
    def decode(self, embedding):
        image = Image.fromarray(np.roll(pixels, int(1000 * abs(embedding[0])), axis=0))
        here = points + embedding[:136].reshape(68, 2)
        return Face(image, here, embedding, "an embedding", 0, "noise", {"face_decoder": "0" * 64})

maker = Maker("noise", d, "squash", lambda some: some.mean((1, 3)) @ wide)
s2f.evaluate.face_encoder_of = lambda model: maker
started = time.perf_counter()
report = s2f.evaluate.evaluate(Noise(), Path(sys.argv[1]))
text = to_json(report), to_html(report)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
peak /= 1024 if sys.platform == "linux" else 1024**2
if len(sys.argv) > 3:
    Path(sys.argv[3]).write_text(text[0])
print(json.dumps({"MB": peak, "s": time.perf_counter() - started}))
"""


def write_people(tree: Path, recordings: int) -> None:
    """Write people of test, and some of training for judges of embeddings, with a table of sex."""
    import numpy as np

    rng = np.random.default_rng(1)
    tree.mkdir(parents=True)
    waveform = rng.standard_normal(16_000).astype(np.float32) / 10
    rows = ["name,sex"]
    for split, people in (("test", recordings // EACH), ("train", 200)):
        for k in range(people):
            name, sound = f"{split}{k:06}", tree / f"{split}{k // 1000}.npy"
            if k % 1000 == 0:  # a file has 65,000 names at most
                np.save(sound, waveform)
            rows.append(f"{name},{'FM'[k % 2]}")
            for kind in ("audios", "images"):
                (tree / split / name / kind).mkdir(parents=True)
            for n in range(EACH):
                (tree / split / name / f"audios/{n}.npy").hardlink_to(sound)
                embedding = rng.standard_normal(VALUES, np.float32)
                np.save(tree / split / name / f"images/{n}_embedding.npy", embedding)
    (tree / "labels.csv").write_text("\n".join(rows))


def cost(recordings: int, report: Path | None = None) -> dict[str, float]:
    """Give peak memory, MB, and wall time, seconds, of one evaluation; its report may be kept."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "people"
        write_people(tree, recordings)
        command = [sys.executable, "-c", ALONE, str(tree), str(VALUES)]
        done = subprocess.run(
            [*command, str(report)] if report else command, stdout=subprocess.PIPE, check=True
        )
    measured: dict[str, float] = json.loads(done.stdout)
    return {name: round(value, 1) for name, value in measured.items()}


def main() -> None:
    """Print the figures."""
    sizes = [int(size) for size in sys.argv[1:]] or SIZES
    found = {}
    for size in sizes:
        found[size] = cost(size)
        print(json.dumps({"recordings": size, **found[size]}), flush=True)
    first, largest = (found[size]["MB"] for size in (sizes[0], max(sizes)))
    if largest > max(TIMES * first, MORE + first):
        raise SystemExit(f"over the bound: {largest} MB, of {first}")


if __name__ == "__main__":
    main()
