"""The recipe of the bundled model, second half: its networks, from the trees of `s2f prep demo`."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from s2f.catalogue import KINDS
from s2f.checkpoint import Card, load
from s2f.errors import DatasetError
from s2f.parts_task import PartsEncoderTask
from s2f.recipe import TrainConfig
from s2f.runtime import Progress, atomic_folder, silent
from s2f.task import Note, Task
from s2f.train import TrainResult, train
from s2f.voice_task import VoiceEncoderTask

FACES = TrainConfig(steps=1500, batch_size=32, lr=0.002, every=300, half=True)
VOICES = TrainConfig(steps=300, lr=0.001, weight_decay=0.05, every=100, half=True)


Build = Callable[[Path, Card], Task]


@dataclass(frozen=True)
class DemoModel:
    """A model that was trained: its folder, and what the two runs found."""

    model: Path
    encoder: TrainResult
    voice: TrainResult


def train_demo(
    data: Path,
    out: Path,
    *,
    device: torch.device,
    progress: Progress = silent,
    note: Note = lambda text: None,
) -> DemoModel:
    """Train the face encoder with its decoder, then the voice encoder, and put them together.

    Goes on where it was stopped: what is trained already is not trained again.

    Args:
        data: the trees `faces` and `voices` that `demo.prepare` makes.
        out: the runs `encoder` and `voice`, and at the end the folder `model`.
        device: to train on.
        progress: told of each step.
        note: takes a sentence for people.

    Raises:
        DatasetError: if `data` has not both trees.
        UsageError, InputError, OutputError, KeyboardInterrupt: as `train`.
    """
    for name in ("faces", "voices"):
        if not (data / name).is_dir():
            raise DatasetError(
                f"{data}: has no folder {name}", hint="make it with s2f prep demo FACES VOICES OUT"
            )

    def run(name: str, tree: str, config: TrainConfig, build: Build) -> TrainResult:
        note(f"training {name} in {out / name} on {device}")
        torch.manual_seed(config.seed)
        task = build(data / tree, Card.of_data(data / tree, f"demo {name}"))
        for text in task.notes:
            note(text)
        return train(task, out / name, config, device=device, progress=progress, note=note)

    def encoder_task(tree: Path, card: Card) -> Task:
        return PartsEncoderTask(tree, "compact", card)

    encoder = run("encoder", "faces", FACES, encoder_task)
    files = encoder.best, encoder.best.with_name("decoder.safetensors")

    def voice_task(tree: Path, card: Card) -> Task:
        networks = load(files[0], "face_encoder"), load(files[1], "face_decoder")
        return VoiceEncoderTask(tree, "compact", *networks, card, device=device, progress=progress)

    voice = run("voice", "voices", VOICES, voice_task)
    sources = {"face_encoder": files[0], "face_decoder": files[1], "voice_encoder": voice.best}
    with atomic_folder(out / "model", replace=True) as folder:
        for kind in KINDS:
            shutil.copyfile(sources[kind], folder / f"{kind}.safetensors")
    return DemoModel(out / "model", encoder, voice)
