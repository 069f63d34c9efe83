"""Photos a second of `s2f prep embeddings` with a full-size VGG-Face, as ratios in one run.

    python benchmarks/prep_embeddings.py

Compared with the plain way (for each photo: Pillow, one forward pass, one file) and with the most
that a large 3x3 convolution reaches here. They take turns, and the best of each counts, as noise
only ever takes away. Weights are random; loading them is left out on both sides. Fails where a
bound is missed.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from s2f import checkpoint
from s2f.face_encoder import CONFIGS, VGGFace
from s2f.images import PREPROCESSING
from s2f.prep import prepare
from s2f.prep_faces import embeddings_step

ROUNDS = 5
PHOTOS, PLAIN = 64, 8  # of each round
GFLOP = 30.9  # a photo to fc7: two for each multiplication of a direct convolution
RATE, EAGER, RATIO = "photos/s", "photos/s one at a time", "times one at a time"
PEAK, SHARE = "convolution peak, GFLOP/s", "share of the convolution peak"
DIFFERENCE = "relative difference of the embeddings"
BOUNDS = {RATIO: 2.5, SHARE: 0.6}  # at least


def make_photos(folder: Path) -> list[Path]:
    """Write smooth random photos."""
    rng = np.random.default_rng(0)
    paths = []
    for k in range(PHOTOS):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        paths.append(folder / f"{k:03}.jpg")
        Image.fromarray(pixels).resize((256, 256), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


@torch.no_grad()
def plain(network: VGGFace, photos: list[Path], out: Path) -> float:
    """Embed photos one at a time; photos a second."""
    started = time.perf_counter()
    for path in photos:
        photo = Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.LANCZOS)
        face = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float() / 255
        np.save(out / f"{path.stem}_embedding.npy", network(face)[0].numpy())
    return len(photos) / (time.perf_counter() - started)


def peak() -> float:
    """GFLOP/s of one large 3x3 convolution, the layer of VGG-16 that is quickest here."""
    conv = torch.nn.Conv2d(512, 512, 3, padding=1).requires_grad_(False)
    maps = torch.randn(8, 512, 28, 28).contiguous(memory_format=torch.channels_last)
    conv = conv.to(memory_format=torch.channels_last)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        conv(maps)
        seconds.append(time.perf_counter() - started)
    return 2 * 9 * 512 * 512 * 8 * 28 * 28 / min(seconds) / 1e9


def figures() -> dict[str, float]:
    """Measure."""
    torch.manual_seed(0)
    network = VGGFace(CONFIGS["paper"], PREPROCESSING["paper"]).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):  # so that embeddings depend on their photos
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    rates, eager, peaks = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for inside in ("photos", "few", "plain"):
            (folder / inside).mkdir()
        photos = make_photos(folder / "photos")
        weights = folder / "face_encoder.safetensors"
        checkpoint.save(weights, network, card=checkpoint.Card("random"))
        step = embeddings_step(weights, "cpu")
        prepare(step, photos[0], folder / "few")  # loads the weights
        for k in range(ROUNDS):
            peaks.append(peak())
            chosen = [photos[(k * PLAIN + i) % PHOTOS] for i in range(PLAIN)]
            eager.append(plain(network, chosen, folder / "plain"))
            report = prepare(step, folder / "photos", folder / f"out{k}")
            assert report.made == PHOTOS
            rates.append(PHOTOS / report.seconds)
        differences = []
        for path in (folder / "plain").iterdir():
            wanted, made = np.load(path), np.load(folder / "out0" / path.name)
            differences.append(np.linalg.norm(made - wanted) / np.linalg.norm(wanted))
    return {
        RATE: max(rates),
        EAGER: max(eager),
        RATIO: max(rates) / max(eager),
        PEAK: max(peaks),
        SHARE: max(rates) * GFLOP / max(peaks),
        DIFFERENCE: float(max(differences)),
    }


def main() -> None:
    """Print the figures."""
    measured = figures()
    print(json.dumps({name: float(f"{value:.3g}") for name, value in measured.items()}, indent=1))
    missed = [name for name, bound in BOUNDS.items() if measured[name] < bound]
    if missed:
        raise SystemExit(f"below the bound: {', '.join(missed)}")


if __name__ == "__main__":
    main()
