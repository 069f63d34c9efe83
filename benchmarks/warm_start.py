"""A voice encoder that starts as a trained one, and one that starts at random, on real voices.

    python benchmarks/warm_start.py VOICES WORK [--steps 400] [--seed 0] [--json]

VOICES is `voices` of what `s2f prep demo` made, with the faces that it gives them; or a folder of
speakers, a recording or more each (`../shared/data/voices`), whose faces are those that the bundled
model gives the whole recordings, so that voice and face belong together. The people of training, or
all, are split at random (`--seed`): a half learn the start (`--steps`), 30 are new to learn from;
validation is that of VOICES, or the rest. Then `train voice` takes 500 steps from none, and 50
with --init. All in WORK; what is there is gone on with. Fails unless the 50 find more of the people
in validation: R@10.
"""

import argparse
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

from s2f import SpeechToFace, layout
from s2f.audio import read_speech, to_int16
from s2f.checkpoint import MODELS, Card, load
from s2f.files import atomic_folder
from s2f.train import TrainConfig, TrainResult, train
from s2f.train_voice import PRESETS, VoiceEncoderTask

NEW = 30  # people to learn from in the end
BATCH, RATE = 8, 1e-3


def make_trees(voices: Path, out: Path, seed: int) -> None:
    """Write `old` and `new`, trees of train and val: copies, or waveforms and embeddings."""
    made = (voices / "train").is_dir()  # by prep demo
    speakers = sorted(p for p in (voices / "train" if made else voices).iterdir() if p.is_dir())
    half = len(speakers) // 2
    order = np.random.default_rng(seed).permutation(len(speakers))
    parts = {
        "old/train": order[:half],
        "old/val": order[half : half + 5],
        "new/train": order[half + 5 : half + 5 + NEW],
        "new/val": order[half + 5 + NEW :],
    }
    if made:
        with atomic_folder(out) as folder:
            shutil.copytree(voices / "val", folder / "new/val")
            for name in ("old/train", "old/val", "new/train"):
                for k in parts[name].tolist():
                    shutil.copytree(speakers[k], folder / name / speakers[k].name)
        return
    model = SpeechToFace.load(device="cpu")
    with atomic_folder(out) as folder:
        for name, chosen in parts.items():
            for k in chosen.tolist():
                person = folder / name / speakers[k].name
                (person / "audios").mkdir(parents=True)
                (person / "images").mkdir()
                (path, *_) = sorted(speakers[k].glob("*.flac"))
                np.save(person / "audios/a.npy", to_int16(read_speech(path)))
                np.save(
                    layout.beside(person / "images/a", layout.EMBEDDING), model.embed_voice(path)
                )


def learn(data: Path, run: Path, steps: int, init: Path | None = None) -> TrainResult:
    """Train the compact preset on clips of 2 s, without what it solves for in the end."""
    usual = PRESETS["conv", "compact"]
    short = dataclasses.replace(usual.front_end, clip_samples=32_000)
    PRESETS["conv", "compact"] = dataclasses.replace(usual, front_end=short, shortest=None)
    kinds = ("face_encoder", "face_decoder")
    pair = [load(MODELS / f"demo/{kind}.safetensors", kind) for kind in kinds]
    torch.manual_seed(0)
    task = VoiceEncoderTask(
        *(data, "compact", *pair, Card(run.name)),
        device=torch.device("cpu"),
        init=None if init is None else load(init, "voice_encoder"),
    )
    task.solves = False
    config = TrainConfig(steps=steps, batch_size=BATCH, lr=RATE, every=steps)
    show = lambda done, total, text: print(run.name, done, text, file=sys.stderr)  # noqa: E731
    return train(task, run, config, device=torch.device("cpu"), progress=show)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("voices", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=400, help="that the start learns")
    parser.add_argument("--seed", type=int, default=0, help="by which people are split")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    data = options.work / "data"
    if not data.is_dir():
        make_trees(options.voices, data, options.seed)
    old = learn(data / "old", options.work / "old", options.steps)
    none = learn(data / "new", options.work / "none", 500)
    warm = learn(data / "new", options.work / "warm", 50, old.best)
    told = {"50 steps from --init": warm.recall, "500 steps from none": none.recall}
    chance = {f"r{k}": k / warm.recall["people"] for k in (1, 5, 10)}
    if options.json:
        print(json.dumps(told | {"chance": chance}))
    else:
        for name, found in (told | {"chance": chance}).items():
            each = "  ".join(f"R@{key[1:]} {found[key]:.3f}" for key in ("r1", "r5", "r10"))
            print(f"{name:20}  {each}  of {warm.recall['people']} people")
    if warm.recall["r10"] <= none.recall["r10"]:
        raise SystemExit("the start is worth nothing")


if __name__ == "__main__":
    main()
