"""How to train: the config of a run, its learning rate, and its optimizer."""

import contextlib
import dataclasses
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from s2f import balance
from s2f.errors import DatasetError, DependencyError, UsageError
from s2f.ranks import Ranks
from s2f.task import Group, Task

OPTIMIZERS = ("adamw", "adam")
SCHEDULES = ("cosine", "paper", "constant")
PRECISIONS = ("fp32", "bf16")
SEEDS = 2**32  # so many seeds leave room for the step in torch's 64 bits


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: optimizer steps.
        batch_size: samples a step, on all devices together.
        accumulate: parts that a device computes its samples of a step in, one after the other.
        optimizer: `adamw`, or `adam`, whose weight decay is part of the gradient.
        lr: peak learning rate.
        betas: the optimizer's; the paper uses (0.5, 0.999).
        eps: the optimizer's; the paper uses 1e-4.
        weight_decay: the optimizer's.
        schedule: `cosine` after a warm-up, `paper`: x 0.95 every 10,000 steps, or `constant`.
        clip: largest gradient norm.
        precision: `fp32`, or `bf16`: networks compute in bfloat16 where that is safe.
        compile: whether the network is compiled.
        deterministic: whether a GPU repeats itself exactly; slower.
        seed: of everything random.
        every: steps between validations, samples and saves.
        patience: validations without a better score after which training ends; None for never.
        max_bad: items that may be unreadable before training ends.
        loss_weights: one for each loss of the task.
        calibrate_at: steps after which `balance` finds the weights anew; None for never.
        augment: whether training inputs are disturbed.
        half: whether best.safetensors stores half precision.
        workers: processes that read data, a device; 0 reads in the training process.
    """

    steps: int = 10_000
    batch_size: int = 32
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    clip: float = 5.0
    precision: str = "fp32"
    compile: bool = False
    deterministic: bool = False
    seed: int = 0
    every: int = 500
    patience: int | None = None
    max_bad: int = 0
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    calibrate_at: int | None = None
    augment: bool = True
    half: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch_size": 1, "accumulate": 1, "every": 1, "max_bad": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UsageError(f"{name} {getattr(self, name)}: wanted {low} or more")
        for name, known in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in known:
                raise UsageError(
                    f"{name} {getattr(self, name)!r}: wanted one of {', '.join(known)}"
                )
        for name in ("lr", "eps", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} {getattr(self, name)} is not above 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"betas {self.betas}: wanted two of 0 or more, and below 1")
        if not 0 <= self.seed < SEEDS:
            raise UsageError(f"seed {self.seed}: wanted 0 to {SEEDS - 1}")
        if self.patience is not None and self.patience < 1:
            raise UsageError(f"patience {self.patience}: wanted 1 or more")
        if self.calibrate_at is not None and not 0 <= self.calibrate_at < self.steps:
            raise UsageError(
                f"weights calibrated at step {self.calibrate_at} of {self.steps} are never used",
                hint="give a --calibrate-at below --steps",
            )


# Fields that a run may change when it goes on: a matter of the machine, and a limit that says when
# to stop and not what is learned.
OF_THE_MACHINE = ("workers", "max_bad")


def lr_at(step: int, config: TrainConfig) -> float:
    """Learning rate of a step."""
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "paper":
        return config.lr * 0.95 ** (step // 10_000)
    warmup = min(200, config.steps // 10)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
    return float(config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))))


def make_optimizer(
    groups: Iterable[Group], config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    """Make the optimizer of all groups, those that start later too."""
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(
        [{"params": list(group.parameters)} for group in groups],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


def check(task: Task, config: TrainConfig, ranks: Ranks, device: torch.device) -> None:
    """Make sure that a config fits its task and the devices.

    Raises:
        UsageError: if it does not, or as `balance.check_weights`.
        DatasetError: if there is nothing to train or to validate on.
        DependencyError: if the network is to be compiled and there is no compiler.
    """
    for split, data in (("train", task.train_data), ("val", task.val_data)):
        if not len(data):
            raise DatasetError(f"there is nothing in {split}", hint="add to it, or split anew")
    calibrated = config.calibrate_at is not None
    size, weights = config.batch_size, config.loss_weights
    balance.check_weights(task, weights, batch_size=size, calibrated=calibrated)
    if not any(weights.values()):
        raise UsageError(
            f"nothing is learned: all losses have weight 0: {', '.join(weights)}",
            hint="give one of them another --loss-weight",
        )
    latest = max(group.start for group in task.groups)
    if latest >= config.steps:
        raise UsageError(
            f"layers that are trained from step {latest} on never are: there are {config.steps} "
            "steps",
            hint="raise --steps, lower --head-steps, or train the head alone: --unfreeze 0",
        )
    parts = ranks.size * config.accumulate
    if size % parts:
        raise UsageError(
            f"a batch of {size} cannot be split evenly for {ranks.size} devices, each in "
            f"{config.accumulate} parts",
            hint=f"give a --batch-size that is a multiple of {parts}",
        )
    together = size // config.accumulate  # on all devices: BatchNorm is synchronised
    if together < 2 and any(isinstance(m, _BatchNorm) for m in task.network.modules()):
        raise UsageError(
            f"BatchNorm cannot normalise over a batch of {together}",
            hint="give a --batch-size of 2 or more for each part that --accumulate asks for",
        )
    if config.compile and device.type == "cpu" and not (shutil.which("g++") or "CXX" in os.environ):
        raise DependencyError(
            "compiling a network for the CPU needs g++, which is not installed",
            hint="install it, or leave --compile out",
        )


def told(task: Task, config: TrainConfig) -> dict[str, object]:
    """Tell what a run must have in common with one that goes on with it."""
    told = {"task": task.name, **task.settings, **dataclasses.asdict(config)}
    return {name: value for name, value in told.items() if name not in OF_THE_MACHINE}


@contextlib.contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """Have GPUs repeat themselves exactly, or raise where they cannot."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
