"""What training learns: networks and data, and how a batch of it becomes losses.

How to train: the config of a run, its learning rate, and its optimizer.

What a run has to keep an eye on: losses that are no numbers, items that cannot be read.

A look at losses waits for a GPU, so several steps are looked at together; and all processes look
together, so that they decide the same.

What learns: a network with its optimizer, and one step of it on this process's part of a batch.

Knows neither when to measure nor when to stop; that is for `train`.

Training: one loop for the face encoder, the face decoder and the voice encoder.

What is to be learned is a `Task`; the loop knows nothing else about it. What it has reached lies
in a run directory (`run`), and everything random follows from the seed, the step and the place in
its batch, so that a run that was killed goes on as if nothing had happened, and so that several
processes (`ranks`) do what one would.

A training tried out: what it reads, holds and takes, found by two real steps of each stage.

Nothing is written, and the network is worth nothing afterwards. `train` does the same steps.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from s2f import console, losses, training_log
from s2f.console import Progress, silent
from s2f.dataloader import Item, Key, Order, load_batches, naming_dead_workers
from s2f.device import interruptible
from s2f.distributed import ALONE, Ranks, synchronise_batch_norm
from s2f.errors import DatasetError, DependencyError, S2FError, UsageError
from s2f.files import alone_in
from s2f.prep import keep_memory
from s2f.run_dir import Run
from s2f.training_log import Note

"""What takes a sentence for people."""


@dataclass(frozen=True)
class Group:
    """Parameters that are trained alike.

    Attributes:
        parameters: which.
        start: step from which they are trained; before it they are frozen.
        lr: their share of the learning rate.
    """

    parameters: Sequence[nn.Parameter]
    start: int = 0
    lr: float = 1.0


class Data(Protocol):
    """Samples by key."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, key: Key) -> Item:
        """Read one: tensors by name, equal names and shapes for all keys of a step."""

    def name(self, index: int) -> str:
        """Name one, as a person finds it."""


class Task(Protocol):
    """What is learned: networks, data, and how a batch becomes losses."""

    @property
    def name(self) -> str:
        """What is learned, in a word."""

    @property
    def settings(self) -> Mapping[str, object]:
        """What tells this task from others of its name: a run goes on only where it is equal."""

    @property
    def defaults(self) -> Mapping[str, object]:
        """Fields of the config that this task would rather have than the general ones."""

    @property
    def notes(self) -> Sequence[str]:
        """What people should know of the data before they are trained on."""

    @property
    def network(self) -> nn.Module:
        """What is trained."""

    @property
    def groups(self) -> Sequence[Group]:
        """Which of its parameters, and from when on; the others stay as they are."""

    @property
    def train_data(self) -> Data:
        """Items to learn from."""

    @property
    def val_data(self) -> Data:
        """Items to measure on."""

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each loss, where the config names no other."""

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Turn a batch into losses, one value a sample."""

    def finish(self, batches: Callable[[int], Iterator[Item]]) -> bool:
        """Solve for some of the network in one go after the last step, if there is a way.

        `batches(k)` goes k times through the training data. Returns whether there was one: what
        it gives then is the result of the run.
        """

    def sample(self, batch: Item) -> Tensor:
        """Draw what the network makes of a batch, as one picture [3 h w]."""

    def save(self, path: Path, storage: torch.dtype, metrics: Mapping[str, float]) -> None:
        """Write the network as a checkpoint."""


OPTIMIZERS = ("adamw", "adam")
SCHEDULES = ("cosine", "paper", "constant")
TRAINED_IN = ("fp32", "bf16")
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
            ("precision", TRAINED_IN),
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


def check_config(task: Task, config: TrainConfig, ranks: Ranks, device: torch.device) -> None:
    """Make sure that a config fits its task and the devices.

    Raises:
        UsageError: if it does not, or as `losses.check_weights`.
        DatasetError: if there is nothing to train or to validate on.
        DependencyError: if the network is to be compiled and there is no compiler.
    """
    for split, data in (("train", task.train_data), ("val", task.val_data)):
        if not len(data):
            raise DatasetError(f"there is nothing in {split}", hint="add to it, or split anew")
    calibrated = config.calibrate_at is not None
    size, weights = config.batch_size, config.loss_weights
    losses.check_weights(task, weights, batch_size=size, calibrated=calibrated)
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


def settings_in_common(task: Task, config: TrainConfig) -> dict[str, object]:
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


@dataclass(frozen=True)
class Done:
    """A step that nobody has looked at yet.

    Attributes:
        step: its number.
        keys: of the samples, those of this process.
        values: their losses [b].
        total: the weighted sums [b] of these.
        norm: of the gradient [].
    """

    step: int
    keys: list[Key]
    values: Mapping[str, Tensor]
    total: Tensor
    norm: Tensor


class Watch:
    """Batches on their way in, and the steps on their way out."""

    def __init__(self, data: Data, config: TrainConfig, state: Run, ranks: Ranks) -> None:
        """Watch the training of `data`; what is seen goes into `state`."""
        self.data, self.config, self.state, self.ranks = data, config, state, ranks
        self.unseen: list[Done] = []
        self.bad: dict[str, S2FError] = {}  # items that could not be read, since the last look

    def add(self, done: Done) -> None:
        """Take in a step."""
        self.unseen.append(done)

    def look(self, interrupted: bool, note: Note) -> bool:
        """Look at the losses of the last steps and at items that could not be read since.

        Returns:
            Whether the run shall stop.

        Raises:
            UsageError: if one is not finite.
            InputError: if more items cannot be read than may.
        """
        rows = [
            torch.stack([*(value.mean() for value in done.values.values()), done.norm])
            for done in self.unseen
        ]
        table = torch.stack(rows).cpu().double() if rows else torch.empty(0)
        told = self.ranks.gather((table, self.bad, interrupted))
        table = torch.stack([theirs for theirs, _, _ in told]).mean(0)
        for number, (done, row) in enumerate(zip(self.unseen, table.tolist(), strict=True)):
            if not all(map(math.isfinite, row)):
                self._diverged(done, table[number])
            self.state.note(dict(zip(done.values, row[:-1], strict=True)))
        self.unseen, self.bad = [], {}
        for _, bad, _ in told:
            for message, error in bad.items():
                if message not in self.state.bad:
                    self.state.bad.append(message)
                    if len(self.state.bad) > self.config.max_bad:
                        raise self._too_many(error)
                    note(f"left out: {message}")
        return any(flag for _, _, flag in told)

    def _diverged(self, done: Done, row: Tensor) -> None:
        """Raise for a step whose losses are not finite, with the names of its worst items."""
        total = done.total.tolist()
        broken = [k.item for k, v in zip(done.keys, total, strict=True) if not math.isfinite(v)]
        names = [self.data.name(item) for item in broken or [key.item for key in done.keys]]
        names = [name for theirs in self.ranks.gather(names) for name in theirs]
        *values, norm = row.tolist()
        found = [f"{name} {value:g}" for name, value in zip(done.values, values, strict=True)]
        raise UsageError(
            f"{self.state.folder}: the training diverged: at step {done.step} the loss is "
            f"{', '.join(found)}, the gradient {norm:g}, for {', '.join(names[:4])}"
            f"{' and others' if len(names) > 4 else ''}",
            hint=f"use a lower --lr than {self.config.lr:g} and another folder; what was saved "
            "before is kept",
        )

    def _too_many(self, error: S2FError) -> S2FError:
        if self.config.max_bad == 0:
            hint = f"{error.hint or 'make it again'}; or go on without it: --max-bad 1"
            return type(error)(error.message, hint=hint)
        return DatasetError(
            f"more than {self.config.max_bad} items cannot be read; the last: {error.message}",
            hint="mend them, or raise --max-bad",
        )

    def read(
        self, data: Data, keys: Iterable[list[Key]], device: torch.device
    ) -> Generator[tuple[list[Key], Item], None, None]:
        """Read batches, and remember what could not be read.

        Raises:
            InputError: if a batch cannot be made up.
        """
        for loaded in load_batches(
            data, keys, device, workers=self.config.workers, max_bad=self.config.max_bad
        ):
            self.bad |= {error.message: error for error in loaded.bad}
            if loaded.items is None:
                raise self._too_many(loaded.bad[-1])
            yield loaded.keys, loaded.items


MEASURED = 64  # samples of a batch in validation


def undisturbed(n: int) -> list[list[Key]]:
    """Ask for n items as they are measured: in batches, nothing random that changes."""
    return [[Key(i, i) for i in range(k, min(k + MEASURED, n))] for k in range(0, n, MEASURED)]


class Forward(nn.Module):
    """The losses of a batch as a module, as DistributedDataParallel wants them."""

    def __init__(self, task: Task, config: TrainConfig, device: torch.device) -> None:
        super().__init__()
        self.network = task.network
        self.task, self.augment = task, config.augment
        self.bf16 = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")

    def forward(self, batch: Item) -> dict[str, Tensor]:
        """Give the losses, float32, one value a sample."""
        with self.bf16:
            values = self.task.losses(batch, augmented=self.augment and self.network.training)
        return {name: value.float() for name, value in values.items()}


class Learner:
    """A network that is taught.

    Attributes:
        network: that is taught.
        optimizer: of it.
        forward: gives the losses of a batch.
        parts: which of the parts that a step is split into are this process's.
    """

    def __init__(
        self, task: Task, config: TrainConfig, state: Run, device: torch.device, ranks: Ranks
    ) -> None:
        """Bring the network to its device; `state` tells the step, and may be restored yet."""
        self.task, self.config, self.state, self.ranks = task, config, state, ranks
        self.device = device
        self.network = task.network.to(device)
        self.network.to(memory_format=torch.channels_last)
        if ranks.size > 1:
            synchronise_batch_norm(self.network, device)
        if config.compile:
            self.network.compile()
        elif device.type == "cpu":
            keep_memory(largest=None, spare=-1)
        self.optimizer = make_optimizer(task.groups, config, device)
        self.forward = Forward(task, config, device)
        self.wrapped: nn.Module | None = None  # in what averages gradients, from the first step on
        self.parts = range(ranks.rank * config.accumulate, (ranks.rank + 1) * config.accumulate)

    @property
    def weights(self) -> Mapping[str, float]:
        """Weights of the losses, as they are now."""
        return {**self.config.loss_weights, **self.state.weights}

    @property
    def rates(self) -> list[float]:
        """Learning rates of the last step, one a group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def order(self, first: int, steps: int) -> Order:
        """Tell what this process's parts of the steps from `first` to before `steps` are."""
        config = self.config
        return Order(
            *(len(self.task.train_data), config.batch_size),
            seed=config.seed,
            start=first,
            steps=steps,
            parts=self.ranks.size * config.accumulate,
            mine=self.parts,
        )

    def step(self, batches: Iterator[tuple[list[Key], Item]], note: Note) -> Done:
        """Take one step of the optimizer."""
        config, step = self.config, self.state.step
        wrapped = self._thaw(step)
        for group, plan in zip(self.optimizer.param_groups, self.task.groups, strict=True):
            group["lr"] = lr_at(step, config) * plan.lr
        seen: list[Key] = []
        values: list[dict[str, Tensor]] = []
        for part in self.parts:
            keys, batch = next(batches)
            # Of augmentation and dropout: the same wherever this part of the step is computed.
            torch.manual_seed(config.seed * 1_000_003 + step + (part << 40))
            with self._averaging(wrapped, part == self.parts[-1]):
                found = wrapped(batch)
                if step == config.calibrate_at and part == self.parts[0]:
                    self.state.reweigh(losses.calibrate(self.task, found, self.ranks))
                    note(f"loss weights from step {step} on: {losses.weights_text(self.weights)}")
                loss = losses.total(found, self.weights) / len(self.parts)
                loss.backward()  # type: ignore[no-untyped-call]
            seen += keys
            values.append({name: value.detach() for name, value in found.items()})
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1
        joined = {name: torch.cat([found[name] for found in values]) for name in values[0]}
        return Done(self.state.step, seen, joined, losses.per_sample(joined, self.weights), norm)

    def close(self) -> None:
        """Let go of what averages gradients: it must not outlive the group of the processes."""
        self.wrapped = None

    def _thaw(self, step: int) -> nn.Module:
        """See to it that what is trained from this step on has gradients, and nothing else."""
        groups = self.task.groups
        if self.wrapped is not None and step not in {group.start for group in groups}:
            return self.wrapped
        self.network.requires_grad_(False)
        for group in groups:
            for parameter in group.parameters:
                parameter.requires_grad_(step >= group.start)
        self.wrapped = self.ranks.wrap(self.forward, self.device)
        return self.wrapped

    def _averaging(self, wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
        """Average gradients over the processes only where the last part of a step adds its own."""
        if last or self.ranks.size == 1:
            return contextlib.nullcontext()
        assert isinstance(wrapped, nn.parallel.DistributedDataParallel)
        return wrapped.no_sync()


LOOK = 20  # steps of a GPU between two looks at its losses: a look waits for it


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        run: its directory.
        best: the best checkpoint.
        step: that it is of.
        losses: its validation losses.
        train_losses: the running training losses then.
        loss_weights: the losses' weights in the end.
        steps: that were done in all.
        samples: that were learned from in these.
        bad: items that could not be read.
        seconds: that this session took; of one that went on, only its own.
        samples_per_second: in this session, with all that was done in between.
    """

    run: Path
    best: Path
    step: int
    losses: Mapping[str, float]
    train_losses: Mapping[str, float]
    loss_weights: Mapping[str, float]
    steps: int
    samples: int
    bad: int
    seconds: float = field(compare=False)
    samples_per_second: float = field(compare=False)

    def facts(self) -> list[tuple[str, str]]:
        """Tell people how it ended, in names and values."""
        paths = [self.best, self.run / training_log.LOSSES, self.run / "samples"]
        written = [str(path) for path in paths if path.exists()]
        speed = f"{console.duration(self.seconds)}, {self.samples_per_second:.1f} samples/s"
        return [
            ("steps", f"{self.steps:,}, best at {self.step:,}"),
            ("samples", f"{self.samples:,}"),
            ("time", speed if self.samples_per_second else "there was nothing left to do"),
            *([("bad items", f"{self.bad:,}")] if self.bad else []),
            *(("" if k else "written", path) for k, path in enumerate(written)),
        ]

    def compared(self) -> list[tuple[str, ...]]:
        """Tell people the losses of the best step: name, weight, in training, in validation."""

        def value(values: Mapping[str, float], name: str) -> str:
            return f"{values[name]:.4g}" if name in values else ""

        return [
            (n, f"{w:.4g}", value(self.train_losses, n), value(self.losses, n))
            for n, w in self.loss_weights.items()
        ]


def train(
    task: Task,
    run: Path,
    config: TrainConfig,
    *,
    device: torch.device,
    ranks: Ranks = ALONE,
    tensorboard: bool = False,
    progress: Progress = silent,
    note: Note = lambda text: None,
) -> TrainResult:
    """Train a task in a run directory, going on from where it stopped if it was begun there.

    SIGTERM and Ctrl-C save before they end the run, between two steps.

    Raises:
        UsageError: if the directory holds a run with another config or another run is at work
            there, the config does not fit the task or the devices, the training diverges, or as
            `losses.check_weights` and `losses.calibrate`.
        InputError: if more items cannot be read than may.
        CheckpointError: if the state of that run is damaged.
        DependencyError: if the network is to be compiled and there is no compiler, or if
            TensorBoard is wanted and not installed.
        OutputError: if the directory cannot be written.
        DeviceError: if a process that reads the data has died.
        KeyboardInterrupt: if it was interrupted, once the state is saved.
    """
    config = dataclasses.replace(config, loss_weights=task.loss_weights | dict(config.loss_weights))
    check_config(task, config, ranks, device)
    if tensorboard:
        training_log.require_tensorboard()
    started = time.perf_counter()
    state = Run(run, writes=ranks.first)
    with contextlib.ExitStack() as stack:
        if ranks.first:
            stack.enter_context(alone_in(run))
            state.claim(settings_in_common(task, config))
        ranks.gather("claimed")
        stack.enter_context(repeatable(config.deterministic))
        stack.enter_context(naming_dead_workers())
        interrupted = stack.enter_context(interruptible())
        learner = Learner(task, config, state, device, ranks)
        stack.callback(learner.close)
        if state.file.is_file():
            state.restore(learner.network, learner.optimizer, device)
        first = state.step
        stages = _stages(task, config)
        show = stack.enter_context(
            training_log.Display(state, stages, note, tensorboard=tensorboard)
        )
        _Training(task, config, state, learner, show).run(
            lambda: interrupted() or ranks.orphaned, progress, note
        )
        seconds = time.perf_counter() - started
        return TrainResult(
            run=run,
            best=state.best_file,
            step=state.best_step,
            losses=state.best_losses,
            train_losses=state.best_running,
            loss_weights=learner.weights,
            steps=state.step,
            samples=state.step * config.batch_size,
            bad=len(state.bad),
            seconds=seconds,
            samples_per_second=(state.step - first) * config.batch_size / seconds,
        )


def _stages(task: Task, config: TrainConfig) -> dict[int, str]:
    """Tell what begins at which step, apart from the first."""
    stages = {group.start: "more layers" for group in task.groups if group.start}
    if config.calibrate_at:
        stages[config.calibrate_at] = "weights calibrated"
    return stages


class _Training:
    """A run at work."""

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        state: Run,
        learner: Learner,
        show: training_log.Display,
    ) -> None:
        self.task, self.config, self.state = task, config, state
        self.learner, self.show = learner, show
        self.network, self.device, self.ranks = learner.network, learner.device, learner.ranks
        self.watch = Watch(task.train_data, config, state, learner.ranks)

    def run(self, stopped: Callable[[], bool], progress: Progress, note: Note) -> None:
        """Train to the end."""
        order = self.learner.order(self.state.step, self.config.steps)
        batches = self.watch.read(self.task.train_data, order, self.device)
        with contextlib.closing(batches):  # or its processes would hold the directory for a while
            self._loop(batches, stopped, progress, note)

    def _loop(
        self,
        batches: Iterator[tuple[list[Key], Item]],
        stopped: Callable[[], bool],
        progress: Progress,
        note: Note,
    ) -> None:
        state, config, learner = self.state, self.config, self.learner
        first, started = state.step, time.perf_counter()
        look = LOOK if self.device.type == "cuda" else 1
        self.network.train()
        while not state.ended:
            self.watch.add(learner.step(batches, note))
            due = state.step % config.every == 0 or state.step == config.steps
            if not due and state.step % look:
                continue
            stop = self.watch.look(stopped(), note)
            rate = (state.step - first) * config.batch_size / (time.perf_counter() - started)
            progress(state.step, config.steps, f"{rate:.1f} samples/s  {state.summary()}")
            if due or state.step % training_log.OFTEN == 0:
                self.show.stepped(learner.rates, rate)
            if due:
                self._validate(stopped)
                stop = self.watch.look(stopped(), note)
            if due or stop:
                state.save(self.network, learner.optimizer)
            if due:
                self.show.draw()
            if stop and not state.ended:
                raise KeyboardInterrupt

    def _validate(self, stopped: Callable[[], bool]) -> None:
        """Measure; at the end, solve for what can be solved; draw samples."""
        state, config = self.state, self.config
        self._score()
        stale = (state.step - state.best_step) // config.every
        if state.step == config.steps or (config.patience and stale >= config.patience):
            state.ended = True
            torch.manual_seed(config.seed)
            if self.task.finish(lambda k: self._passes(k, stopped)):
                self._score(solved=True)
        if self.ranks.first:
            n = len(self.task.val_data)
            keys = [Key(i, i) for i in range(0, n, n // 8 | 1)][:8]
            ((_, batch),) = self.watch.read(self.task.val_data, [keys], self.device)
            self.show.validated(self.task.sample(batch))

    def _score(self, *, solved: bool = False) -> None:
        """Measure on the validation data; keep what is better than all before, or solved for.

        Raises:
            UsageError: if the score is not finite.
        """
        state, config = self.state, self.config
        measured = {name: float(v.mean()) for name, v in self._evaluate().items()}
        score = sum(self.learner.weights[name] * value for name, value in measured.items())
        if not math.isfinite(score):
            raise UsageError(
                f"{state.folder}: the training diverged: at step {state.step} the validation "
                f"losses are {measured}",
                hint=f"use a lower --lr than {config.lr:g} and another folder; what was saved "
                "before is kept",
            )
        state.log(lr_at(state.step - 1, config), measured, solved=solved)
        if score < state.best or solved:
            state.keep(score, measured)
            if self.ranks.first:
                storage = torch.float16 if config.half else torch.float32
                self.task.save(state.best_file, storage, measured)

    @torch.no_grad()
    def _evaluate(self) -> dict[str, Tensor]:
        """Losses [n] over the validation data, undisturbed."""
        keys, size = undisturbed(len(self.task.val_data)), self.ranks.size
        self.network.eval()
        batches = self.watch.read(self.task.val_data, keys[self.ranks.rank :: size], self.device)
        forward = self.learner.forward
        mine = [{k: v.cpu() for k, v in forward(batch).items()} for _, batch in batches]
        self.network.train()
        told = self.ranks.gather(mine)
        found = [told[k % size][k // size] for k in range(len(keys))]
        return {name: torch.cat([values[name] for values in found]) for name in found[0]}

    def _passes(self, k: int, stopped: Callable[[], bool]) -> Iterator[Item]:
        """Go k times through the training data, in another order than the steps did."""
        config, n = self.config, len(self.task.train_data)
        steps = -(-k * n // config.batch_size)
        seed = config.seed + config.steps
        order = Order(n, config.batch_size, seed=seed, start=0, steps=steps)
        for _, batch in self.watch.read(self.task.train_data, order, self.device):
            if stopped():
                raise KeyboardInterrupt  # from the last save it is not far to here
            yield batch


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
        rows.append(("parameters", console.count(self.parameters)))
        for stage in self.stages:
            trained = f"{console.count(stage.trained)} trained"
            if len(self.stages) > 1:
                trained += f" from step {stage.start:,}"
            rows.append(("", f"{trained}, {console.duration(stage.seconds)} a step"))
        memory = {name: console.size(n) for name, n in self.memory.items() if n}
        peak = memory.pop("peak", None)
        rows += [
            ("steps", f"{self.steps:,} of {self.batch_size} samples, {self.epochs:.3g} epochs"),
            ("reading", f"{console.duration(self.read_seconds)} a batch, in one process"),
            ("validation", f"{console.duration(self.validation_seconds)} each"),
            ("speed", f"about {self.samples_per_second:.3g} samples/s"),
            ("in all", f"about {console.duration(self.seconds)}"),
            ("memory", ", ".join(f"{name} {n}" for name, n in memory.items())),
            *([("at its peak", f"{peak}, measured")] if peak else []),
            ("checkpoint", f"{console.size(self.checkpoint_bytes)}"),
            ("saved state", f"{console.size(self.state_bytes)}"),
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
    check_config(task, config, ranks, device)
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
