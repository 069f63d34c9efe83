"""Clips a second that `s2f train voice` learns from, with the full-size network, in one run.

    python benchmarks/train.py [--batch-size N] [--turns N] [--json]
    python benchmarks/train.py --device cuda [--batch-size N] [--json]

On the CPU beside a plain eager loop: `nn` layers, NCHW, float32, Adam, spectrograms from disk, the
same losses. Each has a process of its own; they take turns, a step each, and the best step of
each counts, as noise only ever takes away. On a GPU (bf16, as many clips as fit) against the
roofline of an H200, with the share of the time in which the GPU is busy, eager and compiled; and
whether two runs with `--deterministic` end with the same bytes. The data are made, the weights are
random, and saving is left out of what is timed. Fails where a bound is missed.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from s2f import face_decoder, face_encoder, losses, voice_encoder
from s2f.audio import SAMPLE_RATE
from s2f.checkpoint import Card, Checkpoint
from s2f.images import PREPROCESSING
from s2f.spectrogram import FRONT_ENDS, spectrogram
from s2f.train import LOOK, configure, train
from s2f.train_voice import VoiceEncoderTask

IDENTITIES = 8
# 989 bf16 TFLOP/s of an H200, by three forward passes of 179.1 GFLOP a clip.
ROOFLINE = 989e12 / (3 * 179.1e9)
GPU_MEMORY = 0.5e9  # bytes a clip, a little above an estimate of its activations
WEIGHTS = {"decoder/l1": 1.0, "embedding/l2": 0.025, "encoder/distill": 200.0}  # the paper's
RATE, PLAIN, RATIO = "clips/s", "clips/s of the plain loop", "times the plain loop"
MEDIAN = "times the plain loop, median of the turns"
PROCESSOR = "times the plain loop, by processor time"  # steadier where others compute, too
MEMORY, PLAIN_MEMORY = "peak memory, GB", "peak memory of the plain loop, GB"
BATCH, SHARE, BUSY = "batch size", "share of the roofline", "GPU busy"
COMPILED = ", compiled"  # behind the names of what is measured of compiled networks
SAME = "deterministic runs that are equal"
BOUNDS = {RATIO: 1.5, SHARE: 0.45, BUSY: 0.9, SAME: 1.0}  # at least; of compiled ones none
Turn = Callable[[], None]


def make_voices(folder: Path, clips: int) -> None:
    """Write a voice tree of noise, and what the plain loop reads: spectrograms and embeddings."""
    rng = np.random.default_rng(0)
    for k in range(clips + 1):
        identity = folder / ("train" if k < clips else "val") / f"id{k % IDENTITIES}"
        for inside in ("audios", "images"):
            (identity / inside).mkdir(parents=True, exist_ok=True)
        waveform = 0.1 * rng.standard_normal(6 * SAMPLE_RATE, dtype=np.float32)
        np.save(identity / "audios" / f"{k}.npy", waveform)
        pixels = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(identity / "images" / "a.png")
    (folder / "plain").mkdir()
    for k, path in enumerate(sorted((folder / "train").rglob("audios/*.npy"))[:16]):
        waveforms = torch.from_numpy(np.load(path))[None]
        made = spectrogram(waveforms, FRONT_ENDS["paper"])[0]
        np.save(folder / "plain" / f"{k}_spectrogram.npy", made.numpy())
        embedding = rng.standard_normal(4096, dtype=np.float32).clip(0)
        np.save(folder / "plain" / f"{k}_embedding.npy", embedding)


def frozen() -> tuple[face_encoder.VGGFace, face_decoder.FaceDecoder]:
    """Make the two networks that are not trained."""
    encoder = face_encoder.VGGFace(face_encoder.CONFIGS["paper"], PREPROCESSING["paper"])
    decoder = face_decoder.FaceDecoder(face_decoder.CONFIGS["paper"])
    return encoder.eval().requires_grad_(False), decoder.eval().requires_grad_(False)


class Spectrograms(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Spectrograms and embeddings, a file each."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*_spectrogram.npy"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path = self.paths[index]
        target = path.with_name(path.name.replace("spectrogram", "embedding"))
        return torch.from_numpy(np.load(path)), torch.from_numpy(np.load(target))


def plain(folder: Path, settings: dict[str, Any], turn: Turn) -> None:
    """Train as the field would write it."""
    encoder, decoder = frozen()
    network = voice_encoder.VoiceEncoder(voice_encoder.CONFIGS["paper"]).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.5, 0.999), eps=1e-4)
    loader = torch.utils.data.DataLoader(
        Spectrograms(folder / "plain"), batch_size=settings["batch_size"], shuffle=True
    )
    while True:
        for heard, target in loader:
            predicted = network(heard)
            loss = (
                WEIGHTS["decoder/l1"]
                * nn.functional.l1_loss(
                    decoder.first_layers(predicted), decoder.first_layers(target), reduction="sum"
                )
                / len(heard)
                + WEIGHTS["embedding/l2"] * losses.embedding_l2(predicted, target).mean()
            )
            distill = losses.encoder_distill(encoder.logits(predicted), encoder.logits(target))
            loss += WEIGHTS["encoder/distill"] * distill.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            turn()


def ours(folder: Path, settings: dict[str, Any], turn: Turn, run: str = "run") -> None:
    """Train with `s2f.train`."""
    device = torch.device(settings["device"])
    encoder, decoder = (
        Checkpoint(folder, kind, network, None, "made", Card("made"), "made")
        for kind, network in zip(("face_encoder", "face_decoder"), frozen(), strict=True)
    )
    task = VoiceEncoderTask(folder, "paper", encoder, decoder, Card("made"), device=device)
    assert task.loss_weights == WEIGHTS
    chosen = {"steps": 10**6, "every": 10**6, "calibrate_at": None, **settings}
    del chosen["device"]
    config = configure(task, chosen)
    train(task, folder / run, config, device=device, progress=lambda *_: turn())


def serve(
    loop: Callable[..., None], folder: Path, settings: dict[str, Any], pipe: Connection
) -> None:
    """Run a loop step by step: each waits to be asked for, and its seconds are the answer."""
    torch.manual_seed(0)
    started = time.perf_counter(), time.process_time()

    def turn() -> None:
        nonlocal started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        pipe.send((time.perf_counter() - started[0], time.process_time() - started[1], peak))
        pipe.recv()
        started = time.perf_counter(), time.process_time()

    with contextlib.suppress(EOFError):  # no more steps are wanted
        loop(folder, settings, turn)


@contextlib.contextmanager
def beginning(
    loop: Callable[..., None], folder: Path, settings: dict[str, Any]
) -> Iterator[Connection]:
    """Start a loop in a process of its own, and end it afterwards."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=serve, args=(loop, folder, settings, far))
    process.start()
    far.close()
    try:
        near.recv()  # the first step, which is slower
        yield near
    finally:
        near.close()
        process.join()


def on_cpu(folder: Path, batch_size: int, turns: int) -> dict[str, float]:
    """Measure both loops in turns."""
    make_voices(folder, 16)
    settings = {"batch_size": batch_size}
    seconds: dict[str, list[float]] = {PLAIN: [], RATE: []}
    busy: dict[str, list[float]] = {PLAIN: [], RATE: []}
    peaks = {}
    with (
        beginning(plain, folder, settings) as one,
        beginning(ours, folder, settings | {"device": "cpu"}) as other,
    ):
        for _ in range(turns):
            for name, pipe in ((PLAIN, one), (RATE, other)):
                pipe.send(None)
                taken, processor, peaks[name] = pipe.recv()
                seconds[name].append(taken)
                busy[name].append(processor)
    ratios = [a / b for a, b in zip(seconds[PLAIN], seconds[RATE], strict=True)]
    return {
        RATE: batch_size / min(seconds[RATE]),
        PLAIN: batch_size / min(seconds[PLAIN]),
        RATIO: min(seconds[PLAIN]) / min(seconds[RATE]),
        MEDIAN: statistics.median(ratios),
        PROCESSOR: min(busy[PLAIN]) / min(busy[RATE]),
        MEMORY: peaks[RATE],
        PLAIN_MEMORY: peaks[PLAIN],
    }


class EndOfRunError(Exception):
    """Enough steps were taken."""


def on_gpu(folder: Path, batch_size: int | None, steps: int) -> dict[str, float]:
    """Measure our loop against the roofline, eager and compiled, and that it repeats itself."""
    free, _ = torch.cuda.mem_get_info()
    batch_size = batch_size or int((free - 8e9) / GPU_MEMORY)  # 8e9: weights and their moments
    make_voices(folder, 4 * batch_size)
    found = timed(folder, batch_size, steps, compile=False)
    compiled = timed(folder, batch_size, steps, compile=True)
    found |= {f"{name}{COMPILED}": value for name, value in compiled.items() if name != BATCH}
    return found | {SAME: float(repeats(folder, "cuda", min(8, batch_size)))}


def repeats(folder: Path, device: str, batch_size: int) -> bool:
    """Tell whether two runs of four steps, as `--deterministic` has them, end alike."""
    settings = {"batch_size": batch_size, "deterministic": True, "steps": 4, "every": 4}
    made = []
    for name in ("one", "two"):
        torch.manual_seed(0)
        ours(folder, settings | {"device": device}, lambda: None, run=name)
        made.append((folder / name / "last/state.safetensors").read_bytes())
    return made[0] == made[1]


def timed(folder: Path, batch_size: int, steps: int, *, compile: bool) -> dict[str, float]:
    """Measure our loop: `steps` to warm up, to time, and to profile.

    It tells of every `LOOK`th step.
    """
    activities = [torch.profiler.ProfilerActivity.CUDA]
    profiler = torch.profiler.profile(activities=activities)
    times: list[float] = []

    def turn() -> None:
        if len(times) % steps == 0:
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        if len(times) == 2 * steps + 1:
            profiler.start()
        if len(times) == 3 * steps + 1:
            profiler.stop()
            raise EndOfRunError

    settings = {"batch_size": batch_size, "device": "cuda", "precision": "bf16"}
    settings |= {"workers": min(8, os.cpu_count() or 1), "compile": compile}
    with contextlib.suppress(EndOfRunError):
        ours(folder, settings, turn, run=f"compile{compile}")
    rate = batch_size * steps * LOOK / (times[2 * steps] - times[steps])
    busy = sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6
    return {
        BATCH: batch_size,
        RATE: rate,
        SHARE: rate / ROOFLINE,
        BUSY: busy / (times[3 * steps] - times[2 * steps]),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-size", type=int, help="clips a step; on the CPU 2")
    parser.add_argument("--turns", type=int, default=8, help="steps that are timed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.device == "cuda":
            measured = on_gpu(Path(name), options.batch_size, options.turns)
        else:
            measured = on_cpu(Path(name), options.batch_size or 2, options.turns)
    rounded = {name: float(f"{value:.3g}") for name, value in measured.items()}
    if options.json:
        print(json.dumps(rounded))
    else:
        print("\n".join(f"{value:10} {name}" for name, value in rounded.items()))
    missed = [name for name, bound in BOUNDS.items() if measured.get(name, bound) < bound]
    if missed:
        raise SystemExit(f"below the bound: {', '.join(missed)}")


if __name__ == "__main__":
    main()
