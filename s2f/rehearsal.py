"""A training tried out: what it reads, holds and takes, found by two real steps of each stage.

Nothing is written, and the network is worth nothing afterwards. `train` does the same steps.
"""

import contextlib
import dataclasses
import itertools
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from s2f import units
from s2f.feed import Item
from s2f.learner import Learner, undisturbed
from s2f.ranks import ALONE, Ranks
from s2f.recipe import TrainConfig, check, repeatable
from s2f.run import Run
from s2f.task import Task
from s2f.watch import Watch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


@runtime_checkable
class Counted(Protocol):
    """Data that can tell more of itself than its length.

    Attributes:
        counts: how many of what there is.
    """

    counts: Mapping[str, int]


@dataclass(frozen=True)
class Stage:
    """Steps that train the same parameters.

    Attributes:
        start: the first.
        steps: how many.
        trained: parameters that are trained.
        seconds: that one step computes.
    """

    start: int
    steps: int
    trained: int
    seconds: float


@dataclass(frozen=True)
class Rehearsal:
    """What a training would take. Bytes and seconds are those of the process that has most.

    Attributes:
        task: what is learned.
        device: that it is learned on, and how many of these.
        devices: processes that train together.
        data: how many of what there is, of each split.
        notes: what people should know of the data.
        batch_size: samples of a step.
        steps: of the training.
        epochs: times that these go through the training data.
        parameters: of the network.
        stages: of the training.
        losses: of the first batch, before any training.
        bad: items of the batches that could not be read.
        read_seconds: that it takes to read a batch, in one process.
        validation_seconds: that one validation takes.
        seconds: an estimate of the whole, without what is solved for at the end.
        samples_per_second: an estimate of the speed between validations, on average.
        checkpoint_bytes: of the network as a checkpoint has it.
        state_bytes: of the state that a run goes on from.
        memory: bytes: exactly, `weights` `gradients` `optimizer`; `activations`, what one part of a
            batch keeps for its gradients, counted; `peak`, the most that was held at once, by the
            GPU or else by the process with all its code, measured; where there is no telling, 0.
    """

    task: str
    device: str
    devices: int
    data: Mapping[str, Mapping[str, int]]
    notes: Sequence[str]
    batch_size: int
    steps: int
    epochs: float
    parameters: int
    stages: Sequence[Stage]
    losses: Mapping[str, float]
    bad: Sequence[str]
    read_seconds: float
    validation_seconds: float
    seconds: float
    samples_per_second: float
    checkpoint_bytes: int
    state_bytes: int
    memory: Mapping[str, int]

    def facts(self) -> list[tuple[str, str]]:
        """Tell people, in names and values."""
        rows = [("device", self.device + (f" x {self.devices}" if self.devices > 1 else ""))]
        for split, counts in self.data.items():
            rows.append((split, ", ".join(f"{n:,} {what}" for what, n in counts.items())))
        rows.append(("parameters", units.count(self.parameters)))
        for stage in self.stages:
            trained = f"{units.count(stage.trained)} trained"
            if len(self.stages) > 1:
                trained += f" from step {stage.start:,}"
            rows.append(("", f"{trained}, {units.duration(stage.seconds)} a step"))
        memory = {name: units.size(n) for name, n in self.memory.items() if n}
        peak = memory.pop("peak", None)
        rows += [
            ("steps", f"{self.steps:,} of {self.batch_size} samples, {self.epochs:.3g} epochs"),
            ("reading", f"{units.duration(self.read_seconds)} a batch, in one process"),
            ("validation", f"{units.duration(self.validation_seconds)} each"),
            ("speed", f"about {self.samples_per_second:.3g} samples/s"),
            ("in all", f"about {units.duration(self.seconds)}"),
            ("memory", ", ".join(f"{name} {n}" for name, n in memory.items())),
            *([("at its peak", f"{peak}, measured")] if peak else []),
            ("checkpoint", f"{units.size(self.checkpoint_bytes)}"),
            ("saved state", f"{units.size(self.state_bytes)}"),
            ("losses", ", ".join(f"{name} {value:.4g}" for name, value in self.losses.items())),
        ]
        return [*rows, *(("left out", text) for text in (*self.notes, *self.bad))]


def rehearse(
    task: Task,
    run: Path,
    config: TrainConfig,
    *,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> Rehearsal:
    """Take two steps of each stage of a training, and tell what the whole would take.

    Args:
        task: to learn.
        run: directory of the training, for messages: it is neither read nor written.
        config: how to train.
        device: to train on.
        ranks: the processes that train together; all of them rehearse.

    Raises:
        UsageError: if the config does not fit the task or the devices, or a loss is not finite.
        InputError: if more items of the batches cannot be read than may.
        DependencyError: if the network is to be compiled and there is no compiler.
    """
    config = dataclasses.replace(config, loss_weights=task.loss_weights | dict(config.loss_weights))
    check(task, config, ranks, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    learner = Learner(task, config, Run(run, writes=False), device, ranks)
    with repeatable(config.deterministic), contextlib.closing(learner):
        return _rehearse(learner)


def _rehearse(learner: Learner) -> Rehearsal:
    task, config, state = learner.task, learner.config, learner.state
    device, ranks = learner.device, learner.ranks
    # Whoever reads here reads alone, so that the time can be told.
    watch = Watch(task.train_data, dataclasses.replace(config, workers=0), state, ranks)
    starts = sorted({group.start for group in task.groups})
    batches = watch.read(task.train_data, learner.order(0, 2 * len(starts)), device)
    trained, computing, kept = [], [], []
    losses: dict[str, float] = {}
    learner.network.train()
    for state.step in starts:
        for _ in range(2):  # the first of them warms up
            began = time.perf_counter()
            parts = [next(batches) for _ in learner.parts]
            read = time.perf_counter()
            watch.add(learner.step(iter(parts), lambda text: None))
            watch.look(False, lambda text: None)  # waits for a GPU
            reading, seconds = read - began, time.perf_counter() - read
            losses = losses or dict(state.running)
        computing.append(seconds)
        trained.append([p for p in learner.network.parameters() if p.requires_grad])
        kept.append(_kept(learner, parts[0][1]))
    weights = [*learner.network.parameters(), *learner.network.buffers()]
    moments = [v for values in learner.optimizer.state.values() for v in values.values()]
    memory = {
        "weights": _bytes(weights),
        "gradients": max(map(_bytes, trained)),
        "optimizer": _bytes(moments),
        "activations": max(kept),
        "peak": _peak(device),
    }
    chunks = undisturbed(len(task.val_data))
    began = time.perf_counter()
    _measure(learner, watch.read(task.val_data, chunks[:1], device))
    validation = (time.perf_counter() - began) * -(-len(chunks) // ranks.size)
    # All have to wait for the slowest.
    told = ranks.gather([reading, validation, *computing, *memory.values()])
    reading, validation, *rest = (max(values) for values in zip(*told, strict=True))
    computing, numbers = rest[: len(starts)], rest[len(starts) :]
    lengths = [end - start for start, end in itertools.pairwise([*starts, config.steps])]
    spent = sum(
        n * (max(seconds, reading / config.workers) if config.workers else seconds + reading)
        for n, seconds in zip(lengths, computing, strict=True)
    )
    storage = 2 if config.half else 4
    return Rehearsal(
        task=task.name,
        device=str(device),
        devices=ranks.size,
        data={
            split: {"samples": len(data), **(data.counts if isinstance(data, Counted) else {})}
            for split, data in (("train", task.train_data), ("val", task.val_data))
        },
        notes=task.notes,
        batch_size=config.batch_size,
        steps=config.steps,
        epochs=config.steps * config.batch_size / len(task.train_data),
        parameters=sum(p.numel() for p in learner.network.parameters()),
        stages=[
            Stage(start, n, sum(p.numel() for p in parameters), seconds)
            for start, n, parameters, seconds in zip(
                starts, lengths, trained, computing, strict=True
            )
        ],
        losses=losses,
        bad=state.bad,
        read_seconds=reading,
        validation_seconds=validation,
        seconds=spent + -(-config.steps // config.every) * validation,
        samples_per_second=config.steps * config.batch_size / spent,
        checkpoint_bytes=sum(
            t.numel() * (storage if t.is_floating_point() else t.element_size()) for t in weights
        ),
        state_bytes=_bytes([*weights, *moments]),
        memory=dict(zip(memory, map(int, numbers), strict=True)),
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@torch.no_grad()
def _measure(learner: Learner, batches: Iterable[tuple[object, Item]]) -> None:
    """Validate on some batches, as far as that takes time."""
    learner.network.eval()
    for _, batch in batches:
        for value in learner.forward(batch).values():
            value.cpu()


def _kept(learner: Learner, batch: Item) -> int:
    """Count the bytes that the losses of a batch keep for the gradients, apart from weights."""
    weights = (*learner.network.parameters(), *learner.network.buffers())
    own = {tensor.untyped_storage().data_ptr() for tensor in weights}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        # What is no number or follows from the network; the rest is other networks' weights.
        if tensor.requires_grad or not tensor.is_floating_point():
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = learner.forward(batch)
    total = sum(n for pointer, n in kept.items() if pointer not in own)
    del losses  # no storage may be given back, and used again, before the sum
    return total


def _peak(device: torch.device) -> int:
    """Tell the most memory that was held so far: of a GPU, or of this process; else 0."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if device.type != "cpu":
        return 0
    if status.is_file():  # of this program alone, where `resource` knows its parent's too
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"))
        return 1024 * int(found[1]) if found else 0
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of macOS, in bytes
