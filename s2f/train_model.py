"""A whole model of one data folder: decoder, then voice encoder, then its measures on validation.

Each part is a run as `train` makes it, in a folder of its own below the model's, and finished parts
are not trained again; the model's folder holds the three networks, as `--model` takes them.
"""

import filecmp
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from s2f import files, layout
from s2f.checkpoint import EVALUATION, KINDS, Card, Checkpoint, choose, load, read_header
from s2f.console import Progress, silent
from s2f.distributed import ALONE, Ranks
from s2f.embeddings import check_embeddings
from s2f.errors import CheckpointError, DatasetError, UsageError
from s2f.evaluate import evaluate
from s2f.face_detection import installed_detector, load_detector
from s2f.files import alone_in, atomic_folder, atomic_path, write_bytes
from s2f.names import key
from s2f.pack import is_pack, read_index
from s2f.pipeline import SpeechToFace
from s2f.prep_faces import maker_of
from s2f.report import read_report, write_report
from s2f.run_dir import Run
from s2f.train import LET_GO_AFTER, Note, TrainConfig, TrainResult, configure, train
from s2f.train_faces import FaceDecoderTask
from s2f.train_voice import VoiceEncoderTask, VoiceOptions, plan_voice

REPORT = "report"  # folder of the evaluation
NETWORKS = "networks.json"  # in it: what was evaluated, by the SHA-256 of each network
# Of the compact parts, where another than `train decoder` and `train voice` have: what two cores do
# in half an hour. A decoder starts as the linear model of its faces, and is only refined.
COMPACT: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"steps": 100, "batch_size": 8, "lr": 1e-4, "every": 50},
    "voice": {"steps": 300, "every": 100},
}


@dataclass(frozen=True)
class ModelOptions:
    """What can be said of a model; the parts' own commands say more."""

    face_encoder: Path | None = None  # None: the bundled model's
    preset: Literal["compact", "paper", "seed"] = "compact"  # of both parts
    arch: Literal["conv", "ast", "speaker"] = "conv"  # of the voice encoder
    pretrained: str | None = None  # as `VoiceOptions` has it
    decoder_steps: int | None = None
    voice_steps: int | None = None
    seed: int = 0
    workers: int | None = None  # processes a device that read


@dataclass(frozen=True)
class TrainedModel:
    """A model, and how its parts were trained."""

    model: Path  # its folder
    report: Path  # the evaluation's folder
    decoder: TrainResult
    voice: TrainResult
    people: int  # of validation, whom it was measured on
    figures: Mapping[str, float]  # by the name of a measure: the mean of these people's


def train_model(
    data: Path,
    out: Path,
    options: ModelOptions,
    *,
    device: torch.device,
    ranks: Ranks = ALONE,
    progress: Progress = silent,
    note: Note = lambda text: None,
) -> TrainedModel | None:
    """Train a decoder and a voice encoder on train of a folder of pairs, and measure them on val.

    `data` holds `train` and `val` of people with `audios` and `images`, as `s2f prep split` makes
    it; or it is the folder of `s2f prep dataset`, whose `pack` is heard if there is one. In `out`
    are then the three networks, the runs `decoder` and `voice`, and the evaluation, also as the
    model's `evaluation.md`. Goes on where it was stopped, and ends with the same bytes. All `ranks`
    train; the first of them measures, and the others are given None. Raises a UsageError if `out`
    holds something else, a DatasetError if validation has not two people or the pack is of another
    split, a CheckpointError if
    their embeddings are of another face encoder, and as `train`, the two tasks and `evaluate`.
    """
    given = None if options.face_encoder is None else {"face_encoder": options.face_encoder}
    source = choose(kinds=["face_encoder"], files=given).paths["face_encoder"]
    name, packed, tree = data.resolve().name, data / "pack", layout.tree_of(data)
    voices = packed if tree != data and packed.is_dir() else tree
    data = tree
    val = layout.split(data, "val")
    if (n := len(layout.identities(val))) < 2:
        hint = "wanted two people or more, who can be told apart: give prep dataset --split "
        hint += "0.6,0.2, or prep split --train 0.6, and another OUT"
        raise DatasetError(f"{val}: has {n} people to measure a model on", hint=hint)
    learned = {key(one.name) for one in layout.identities(layout.split(data, "train"))}
    both = [one.name for one in layout.identities(val) if key(one.name) in learned]
    if both and ranks.first:
        some = f"{len(both)} of the people in {val}, such as {both[0]}, are in train too"
        note(f"{some}: what is measured on them is no measure of others")
    encoder = load(source, "face_encoder")
    voice_options = VoiceOptions(arch=options.arch, pretrained=options.pretrained)
    # What is wrong is better known before a decoder is trained.
    plan_voice(options.preset, voice_options, embedding=encoder.embedding)
    _check_embeddings(voices, encoder, device)
    _check_people(voices, tree)
    with ExitStack() as stack:
        if ranks.first:
            wait = LET_GO_AFTER if ranks.restarted else 0.0
            stack.enter_context(_claimed(name, out, source, options, wait))
        ranks.gather("claimed")
        run: dict[str, Any] = {"device": device, "ranks": ranks, "progress": progress, "note": note}

        def decoder_task() -> FaceDecoderTask:
            card = Card.of_data(data, f"{_name(out)} decoder")
            where: dict[str, Any] = {"device": device, "ranks": ranks, "progress": progress}
            return FaceDecoderTask(data, options.preset, encoder, None, card, **where)

        def voice_task() -> VoiceEncoderTask:
            card = Card.of_data(data, f"{_name(out)} voice")
            drawing = load(decoder.best, "face_decoder")
            where: dict[str, Any] = {"device": device, "ranks": ranks, "progress": progress}
            return VoiceEncoderTask(
                voices, options.preset, encoder, drawing, card, options=voice_options, **where
            )

        decoder = _part("decoder", decoder_task, out, options.decoder_steps, options, run)
        voice = _part("voice", voice_task, out, options.voice_steps, options, run)
        if not ranks.first:
            return None
        made = {"face_encoder": source, "face_decoder": decoder.best, "voice_encoder": voice.best}
        for kind in KINDS:
            _place(made[kind], out / f"{kind}.safetensors")
        _measure(data, out, device=device, progress=progress, note=note)
        report = read_report(out / REPORT)
    figures = {
        name: sum(some.values()) / len(some) for name, some in report.samples.items() if some
    }
    people = len({who for some in report.samples.values() for who in some})
    return TrainedModel(out, out / REPORT, decoder, voice, people, figures)


def _check_embeddings(voices: Path, encoder: Checkpoint, device: torch.device) -> None:
    """Raise a CheckpointError if embeddings that stand there are of another face encoder."""
    val = layout.split(voices, "val")
    if is_pack(val):
        if read_index(val).embedding_space != encoder.embedding_space:
            message = f"{val}: its embeddings are not by the face encoder {encoder.path}"
            hint = "give --face-encoder, the one that it was packed with, or pack the tree again"
            raise CheckpointError(message, hint=hint)
        return
    photos = {
        val / face.embedding: val / face.photo
        for speaker in layout.speakers(val)[0]
        for face in speaker.faces
        if face.embedding and face.photo
    }
    check_embeddings(maker_of(encoder.path, device), list(photos), photos.__getitem__)


def _check_people(voices: Path, tree: Path) -> None:
    """Raise a DatasetError if a pack has others in a split than the tree: it is of another one.

    Who is heard in training might be measured on.
    """
    for name in ("train", "val"):
        heard, seen = layout.split(voices, name), layout.split(tree, name)
        if is_pack(heard):
            known = map(os.fsdecode, read_index(heard).identities.names)
            others = {*known} - {*files.folders(seen)}
            if others:
                message = f"{heard}: holds {min(others)}, who is not in {seen}: they were not made "
                hint = f"pack the tree again (s2f prep dataset --pack), or remove {voices}"
                raise DatasetError(f"{message}of one split", hint=hint)


def _name(out: Path) -> str:
    return out.resolve().name


@contextmanager
def _claimed(
    name: str, out: Path, encoder: Path, options: ModelOptions, wait: float
) -> Iterator[None]:
    """Hold the model's folder, which is new or of the same options, without a killed one's rests.

    How many steps are to be taken, and on what, each part's own run knows.
    """
    with alone_in(out, wait=wait):
        told: dict[str, object] = {"task": "model", "data": name}
        told |= {"face_encoder": read_header(encoder, "face_encoder")["sha256"]}
        told |= {"preset": options.preset, "arch": options.arch, "seed": options.seed}
        Run(out).claim(told)
        files.remove_rests(out)
        yield


def _part(
    name: str, make: Any, out: Path, steps: int | None, options: ModelOptions, run: dict[str, Any]
) -> TrainResult:
    """Train a part, or go on with it, in a folder of its name; all wait until it is there."""
    folder = out / name
    run["note"](f"{'going on with' if folder.is_dir() else 'training'} {name} in {folder}")
    torch.manual_seed(options.seed)  # of the new network's weights
    task = make()
    for text in task.notes:
        run["note"](text)
    usual = COMPACT[name] if options.preset == "compact" else {}
    said = {"steps": steps, "workers": options.workers, "seed": options.seed}
    chosen = {**usual, **{key: value for key, value in said.items() if value is not None}}
    config: TrainConfig = configure(task, chosen)
    before = Run(folder).config().get("steps", config.steps)
    if name == "decoder" and before < config.steps and (out / "voice/config.json").is_file():
        message = f"{out / 'voice'}: learned with the decoder of {before} steps, and cannot go on "
        message += f"with one of {config.steps}"
        hint = f"give --decoder-steps {before}, or remove {out / 'voice'} to train both on"
        raise UsageError(message, hint=hint)
    result = train(task, folder, config, **run)
    run["ranks"].gather(name)
    return result


def _place(source: Path, target: Path) -> None:
    """Copy a file, unless there is an equal one."""
    if not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
        with atomic_path(target) as new:
            shutil.copyfile(source, new)


def _measure(
    data: Path, out: Path, *, device: torch.device, progress: Progress, note: Note
) -> None:
    """Evaluate the model on validation, unless its report is of these very networks."""
    told = {kind: read_header(out / f"{kind}.safetensors", kind)["sha256"] for kind in KINDS}
    file = out / REPORT / NETWORKS
    known = json.dumps(told, indent=1).encode()
    if not (file.is_file() and file.read_bytes() == known):
        note(f"measuring {out} on val of {data}")
        model = SpeechToFace.load(out, device=str(device))
        finder = load_detector("dlib", "cpu") if installed_detector() == "dlib" else None
        report = evaluate(model, data, split="val", detector=finder, progress=progress)
        with atomic_folder(out / REPORT, replace=True) as folder:
            write_report(report, folder)
            write_bytes(folder / NETWORKS, known)
    _place(out / REPORT / "report.md", out / EVALUATION)
