"""Training: one loop for the face encoder, the face decoder and the voice encoder.

What is to be learned is a `Task`; how, says `TrainConfig`. `train` has the loop: learning rate,
step, log, and every so often a validation and a save; `rehearse` tries two steps of each stage.
What it has reached lies in a run directory, and everything random follows from the seed and the
sample's number, so that a run that was killed goes on as if nothing had happened, and several
processes, or parts of a batch that are computed one after the other, do what one would.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from s2f import losses, run_dir
from s2f.console import Progress, silent
from s2f.dataloader import Item, Key, load_batches, naming_dead_workers, plan_steps
from s2f.device import check_precision, interruptible, keep_memory, rounding
from s2f.distributed import ALONE, Ranks, synchronise_batch_norm
from s2f.errors import (
    DatasetError,
    DependencyError,
    InputError,
    S2FError,
    UsageError,
    together,
)
from s2f.files import alone_in, remove_rests
from s2f.run_dir import UNSOLVED, Run

Note = Callable[[str], None]  # what takes a sentence for people
Batches = Generator[tuple[list[Key], Item], None, None]  # each with its keys
BEST = "best.safetensors"
SOLVED = "solved"  # folder of what was solved for, where that is not the best
ROUNDING = 1e-6  # of a score: what is solved for and not measured must not make it worse than so
OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
SCHEDULES = ("cosine", "paper", "constant")
TRAINED_IN = ("fp32", "tf32", "bf16")
# Fields that a run may change when it goes on: when it stops, and not what is learned. The first
# are not told; the others are, as they are last. More `steps` it may have, too.
OF_THE_MACHINE = ("workers", "max_bad")
OF_THE_COURSE = ("every", "patience")
CLIP, COARSE_EPS = 5.0, 1e-4  # the usual clip, and the eps from which on there is none
NOISE = "by sample"  # how what is random about a sample is drawn; a run tells it
SEEDS = 2**32  # so many seeds leave room for the step in torch's 64 bits
RECALLS = ("r1", "r5", "r10")  # that a task which judges gives
SHARE = 10  # times as many samples are learned from as are measured, where nothing is said
SHARED_AFTER = 90.0  # seconds in which a file that one node writes is seen by the others, at most
LET_GO_AFTER = 120.0  # seconds in which a network file system takes a lock from a dead node
SAVED_AFTER = 600.0  # seconds after which the state is saved, between validations too
MEASURED = 64  # samples of a batch in validation
LOOK = 20  # steps between two looks at losses, at most: a look waits for a GPU
PAUSE = 0.5  # seconds after which a CPU that is alone looks earlier


@dataclass(frozen=True)
class Group:
    """Parameters that are trained alike."""

    parameters: Sequence[nn.Parameter]
    start: int = 0  # step from which they are trained; before it they are frozen
    lr: float = 1.0  # their share of the learning rate


class Task(Protocol):
    """What is learned: networks, data, and how a batch becomes losses."""

    name: str  # what is learned, in a word
    settings: dict[str, object]  # what tells it from others of its name; all of a run has the same
    notes: list[str]  # what people should know of the data before they are trained on
    loss_weights: dict[str, float]  # of each loss, where the config names no other
    # Each task has its own kinds of these, which attributes of a protocol may not be.
    # Fields of the config, by name, that it would rather have than the general ones; `epochs` too.
    defaults: Any
    network: Any  # what is trained, a module
    solves: Any  # whether some of it is solved for in the end
    # What `losses` has networks compute, also those that stay as they are: (network, its method).
    computes: Any
    groups: Any  # which of its parameters, as `Group`s; the others stay as they are
    # What is learned from, and measured on: by `Key`, tensors by name, of equal names and shapes
    # for all keys of a step. They have a length, `name(index)`, as a person finds an item, and may
    # have `counts`, how many of what else there is, and `broken`, errors of files that they found
    # out when they were opened.
    train_data: Any
    val_data: Any

    # It may have `init`, the path of the checkpoint that it starts from: a run keeps a copy of it.
    # And it may judge: `embedded(batch)` gives what of a batch whose losses were computed last is
    # judged, tensors [b ...] by name; `judge(rows, batch_size=)` of all these, on the device, makes
    # losses that are no sample's own, and `RECALLS` with the numbers of `people` and `samples`.

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Turn a batch into losses, one value a sample; what is random by each one's `seed`."""

    def finish(self, batches: Callable[[int], Iterator[Item]]) -> None:
        """Solve for some of the network after the last step, where it `solves`.

        The network is then that of the best step; what is solved for is the result of the run if it
        is no worse in validation. `batches(k)` goes k times through the training data.
        """

    def sample(self, batch: Item) -> Tensor:
        """Draw what the network makes of a batch, as one picture [3 h w]."""

    def save(self, path: Path, storage: torch.dtype, metrics: Mapping[str, float]) -> None:
        """Write the network as a checkpoint."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train; a `UsageError` if a value is none of these, or not in its range."""

    steps: int = 10_000  # optimizer steps
    batch_size: int = 32  # samples a step, on all devices together
    # Parts of these that a device computes one after the other: BatchNorm normalises over each of
    # them, InfoNCE contrasts all, for which they are computed twice.
    accumulate: int = 1
    optimizer: str = "adamw"  # `adamw`, or `adam`, whose weight decay is part of the gradient
    lr: float = 1e-3  # peak learning rate
    betas: tuple[float, float] = (0.9, 0.999)  # the optimizer's; the paper uses (0.5, 0.999)
    eps: float = 1e-8  # the optimizer's; the paper uses 1e-4
    weight_decay: float = 1e-4  # the optimizer's
    schedule: str = "cosine"  # after a warm-up; `paper`: x 0.95 every 10,000 steps; `constant`
    # Largest gradient norm; 0: any. None: 5, but any where eps is 1e-4 or more: where gradients are
    # long, as those of sums over layers are, clipping would push their squares below that eps.
    clip: float | None = None
    # `fp32`; `tf32`: a GPU multiplies float32 in fewer bits; `bf16`: networks compute in bfloat16
    # where that is safe, and losses in float32.
    precision: str = "fp32"
    compile: bool = False  # whether the networks are compiled
    deterministic: bool = False  # whether a GPU repeats itself exactly; slower
    seed: int = 0  # of everything random
    every: int = 500  # steps between validations, samples and saves
    # Samples of the validation data that are measured, spread evenly; None: all.
    val_samples: int | None = None
    best_by: str | None = None  # the recall that the best has most of; None: least of the losses
    patience: int | None = None  # validations without a better score that end it; None: never
    max_bad: int = 0  # items that may be unreadable before training ends
    loss_weights: Mapping[str, float] = field(default_factory=dict)  # one for each loss of the task
    calibrate_at: int | None = None  # steps after which the weights are found anew; None: never
    augment: bool = True  # whether training inputs are disturbed
    half: bool = False  # whether best.safetensors stores half precision
    workers: int = 0  # processes that read data, a device; 0 reads in the training process

    def __post_init__(self) -> None:
        if self.clip is None:
            object.__setattr__(self, "clip", 0.0 if self.eps >= COARSE_EPS else CLIP)
        for names, fits, wanted in (
            ("steps batch_size accumulate every", lambda n: n >= 1, "1 or more"),
            ("patience val_samples", lambda n: n is None or n >= 1, "1 or more"),
            ("best_by", lambda name: name in (None, *RECALLS), f"one of {', '.join(RECALLS)}"),
            ("max_bad", lambda n: n >= 0, "0 or more"),
            ("lr eps", lambda x: 0 < x < math.inf, "a number above 0"),
            ("clip", lambda x: 0 <= x < math.inf, "a number above 0, or 0 for no bound"),
            ("betas", lambda two: all(0 <= b < 1 for b in two), "two of 0 or more, and below 1"),
            ("seed", lambda n: 0 <= n < SEEDS, f"0 to {SEEDS - 1}"),
            ("optimizer", OPTIMIZERS.__contains__, f"one of {', '.join(OPTIMIZERS)}"),
            ("schedule", SCHEDULES.__contains__, f"one of {', '.join(SCHEDULES)}"),
            ("precision", TRAINED_IN.__contains__, f"one of {', '.join(TRAINED_IN)}"),
        ):
            for name in names.split():
                if not fits(getattr(self, name)):
                    raise UsageError(f"{name} {getattr(self, name)!r}: wanted {wanted}")
        if self.calibrate_at is not None and not 0 <= self.calibrate_at < self.steps:
            when = f"at step {self.calibrate_at} of {self.steps}"
            hint = "give a --calibrate-at below --steps"
            raise UsageError(f"weights calibrated {when} are never used", hint=hint)


def configure(
    task: Task,
    chosen: Mapping[str, Any],
    *,
    epochs: float | None = None,
    begun: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """Make the config of a task: what was `chosen`, before its defaults, before the general ones.

    `epochs` through its training data, or those that it would rather have where no steps are
    chosen, become steps. Where weights are to be calibrated and no step is chosen, a run of fewer
    than ten times as many steps as usual has a tenth of them; one that was `begun` with a config
    keeps its step, also when it is lengthened. Of the validation data as many samples are measured
    as are a tenth of those learned from in between, but 64 at least, or as were. Raises a
    UsageError as `TrainConfig`.
    """
    fields = {**task.defaults, **chosen}
    usual = fields.pop("epochs", None)
    if epochs is None and "steps" not in chosen:
        epochs = usual
    if epochs is not None:
        batch_size = fields.get("batch_size", TrainConfig.batch_size)
        fields["steps"] = math.ceil(epochs * len(task.train_data) / batch_size)
    if "calibrate_at" not in chosen and "calibrate_at" in fields:
        tenth = fields.get("steps", TrainConfig.steps) // 10
        own = (begun or {}).get("calibrate_at")
        fields["calibrate_at"] = min(fields["calibrate_at"], tenth) if own is None else own
    if begun and "val_samples" not in chosen:
        fields["val_samples"] = begun.get("val_samples")
    config = TrainConfig(**fields)
    usual = max(MEASURED, config.every * config.batch_size // SHARE)
    most = usual if not begun and "val_samples" not in chosen else config.val_samples
    if most is not None and most >= len(task.val_data):
        most = None  # which is all of them
    return dataclasses.replace(config, val_samples=most)


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


def _complete(task: Task, config: TrainConfig, ranks: Ranks, device: torch.device) -> TrainConfig:
    """Take the task's weights of losses where the config names none, and see that all fits."""
    for split, data in (("train", task.train_data), ("val", task.val_data)):
        if not len(data):
            raise DatasetError(f"there is nothing in {split}", hint="add to it, or split anew")
    broken = [e for data in (task.train_data, task.val_data) for e in getattr(data, "broken", ())]
    if len(broken) > config.max_bad:
        error = together("of the waveforms to be trained on", broken)
        hint = f"{error.hint}; or go on without: --max-bad {len(broken)}"
        raise DatasetError(error.message, hint=hint, details=error.details)
    for name in config.loss_weights:
        if name not in task.loss_weights:
            wanted = (
                f"is no loss of this task; wanted one of {', '.join(sorted(task.loss_weights))}"
            )
            raise UsageError(f"--loss-weight {name}: {wanted}", hint="correct the name")
    weights, size = task.loss_weights | dict(config.loss_weights), config.batch_size
    calibrated = config.calibrate_at is not None
    losses.check_weights(task, weights, batch_size=size, calibrated=calibrated)
    if not any(weights.values()):
        message = f"nothing is learned: all losses have weight 0: {', '.join(weights)}"
        raise UsageError(message, hint="give one of them another --loss-weight")
    latest = max(group.start for group in task.groups)
    if latest >= config.steps:
        never = f"on never are: there are {config.steps} steps"
        hint = "raise --steps, lower --head-steps, or train the head alone: --unfreeze 0 instead"
        raise UsageError(f"layers that are trained from step {latest} {never}", hint=hint)
    parts = ranks.size * config.accumulate
    if size % parts:
        split = f"for {ranks.size} devices, each in {config.accumulate} parts"
        hint = f"give a --batch-size that is a multiple of {parts}"
        raise UsageError(f"a batch of {size} cannot be split evenly {split}", hint=hint)
    part = size // config.accumulate  # on all devices: BatchNorm is synchronised
    if part < 2 and has_batch_norm(task.network):
        hint = "give a --batch-size of 2 or more for each part that --accumulate asks for"
        raise UsageError(f"BatchNorm cannot normalise over a batch of {part}", hint=hint)
    if config.best_by and not hasattr(task, "judge"):
        message = f"--best-by {config.best_by}: there is no recall of what this task learns"
        raise UsageError(message, hint="leave it out: the best is that of the least losses")
    check_precision(config.precision, device)
    if config.compile and device.type == "cpu" and not (shutil.which("g++") or "CXX" in os.environ):
        message = "compiling a network for the CPU needs g++, which is not installed"
        raise DependencyError(message, hint="install it, or leave --compile out")
    config = dataclasses.replace(config, loss_weights=weights)
    ranks.agree(_told(task, config))
    return config


def _told(task: Task, config: TrainConfig) -> dict[str, object]:
    """Tell all that decides what is learned."""
    told = {"task": task.name, **task.settings, **dataclasses.asdict(config)}
    return {k: v for k, v in told.items() if k not in OF_THE_MACHINE} | {"noise": NOISE}


def _share(state: Run, ranks: Ranks) -> None:
    """Wait until all processes see what the first does of a run: networks tell it late.

    Raises a UsageError if one does not: it would go on from another step, or from none.
    """
    if ranks.size == 1:
        return
    deadline = time.monotonic() + SHARED_AFTER
    while True:
        over = time.monotonic() > deadline
        (_, first, over), *others = ranks.gather((platform.node(), state.seen(), over))
        late = [(k, node) for k, (node, seen, _) in enumerate(others, 1) if seen != first]
        if not late:
            return
        if over:
            rank, node = late[0]
            message = f"{state.folder}: process {rank} on {node} does not see what the first wrote "
            hint = "give a folder with -o that all nodes share"
            raise UsageError(f"{message}there", hint=hint)
        time.sleep(1)


def has_batch_norm(network: nn.Module) -> bool:
    """Tell whether a network normalises over batches."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    run: Path  # its directory
    best: Path  # the best checkpoint
    step: int  # that it is of; the last, where some of it was solved for
    losses: Mapping[str, float]  # its validation losses
    train_losses: Mapping[str, float]  # the running training losses then
    loss_weights: Mapping[str, float]  # in the end
    steps: int  # that were done in all
    samples: int  # that were learned from in these
    bad: int  # items that could not be read
    recall: Mapping[str, float]  # of the best in validation, where the task judges; else {}
    validation_seconds: float = field(compare=False)  # of this session's, with their pictures
    seconds: float = field(compare=False)  # that this session took; of one that went on, only its
    samples_per_second: float = field(compare=False)  # in this session, with all in between


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

    SIGTERM and Ctrl-C save, between two steps, and end it with a KeyboardInterrupt. Raises a
    UsageError if the directory holds a run with another config or another run is at work there,
    the config does not fit the task or the devices, or the training diverges; an InputError if
    there are no items, or more cannot be read than may; a CheckpointError if the state of that run
    is damaged; a DependencyError if a compiler or TensorBoard is wanted and not installed; a
    DeviceError if a process that reads the data has died; or an OutputError.
    """
    config = _complete(task, config, ranks, device)
    if tensorboard:
        run_dir.require_tensorboard()
    began = time.perf_counter()
    state, board = Run(run, writes=ranks.first), None
    with contextlib.ExitStack() as stack:
        if ranks.first:
            stack.enter_context(alone_in(run, wait=LET_GO_AFTER if ranks.restarted else 0.0))
            told = _told(task, config)
            # Parts of a batch are the same for the result, but for BatchNorm.
            parts = () if has_batch_norm(task.network) else ("accumulate",)
            planned = config.schedule == "cosine"
            for text in state.claim(told, (*OF_THE_COURSE, *parts), planned=planned):
                note(text)
            remove_rests(run)  # now that it is known to be a run
            if init := getattr(task, "init", None):
                state.keep(init)
        ranks.gather("claimed")
        _share(state, ranks)
        if config.accumulate > 1 and has_batch_norm(task.network):
            of = f"of {config.batch_size // config.accumulate} samples"
            note(f"BatchNorm normalises over each part {of}: --accumulate changes what is learned")
        stack.enter_context(naming_dead_workers())
        interrupted = stack.enter_context(interruptible())
        training = _Training(task, config, state, device, ranks, note)
        stack.callback(training.close)
        if state.file.is_file():
            state.restore(training.network, training.optimizer, device)
            if state.ended and state.step < config.steps:
                training.reopen()
        for text in _changes(state, config):
            note(text)
        if tensorboard and ranks.first:
            log = run_dir.open_board(run / "tensorboard", after=state.step)
            board = stack.enter_context(log)
        batches = training.read_steps(range(state.step, config.steps))
        # Closed, or its processes would hold the directory for a while.
        stack.enter_context(contextlib.closing(batches))
        stages = {group.start: "more layers" for group in task.groups if group.start}
        stages |= {config.calibrate_at: "weights calibrated"} if config.calibrate_at else {}
        first, started, look_again, redraw = state.step, time.perf_counter(), 0.0, 0.0
        saved = time.monotonic()
        training.network.train()
        while not state.ended:
            training.step(batches)
            due = state.step % config.every == 0 or state.step == config.steps
            alone = ranks.size == 1 and time.monotonic() < look_again
            if state.step % LOOK and not due and (device.type == "cuda" or alone):
                continue
            stop = training.look(interrupted() or ranks.orphaned)
            look_again = time.monotonic() + PAUSE

            rate = (state.step - first) * config.batch_size / (time.perf_counter() - started)
            running = "  ".join(f"{name} {value:#.4g}" for name, value in state.running.items())
            progress(state.step, config.steps, f"{rate:.1f} samples/s  {running}")
            if board and (due or state.step % LOOK == 0):
                values = {f"train/{name}": value for name, value in state.running.items()}
                groups = enumerate(training.optimizer.param_groups)
                values |= {f"lr/group{k}": group["lr"] for k, group in groups}
                board(state.step, values | {"speed/samples_per_second": rate}, None)

            if due:
                with training.timed():
                    training.validate(board)
                if state.step == config.steps or _in_vain(state, config):
                    state.ended = True
                    if task.solves:
                        training.solve(interrupted, board)
                with training.timed():
                    training.show(board)
                stop = training.look(interrupted() or ranks.orphaned)
            if due or stop or time.monotonic() >= saved + SAVED_AFTER:
                state.save(training.network, training.optimizer)
                saved = time.monotonic()
            if due and time.monotonic() >= redraw:
                redraw = run_dir.renew_loss_curves(state, stages)
            if stop:
                break
        run_dir.renew_loss_curves(state, stages)
        if not state.ended:
            raise KeyboardInterrupt
        seconds = time.perf_counter() - began
        return TrainResult(
            *(run, run / BEST, state.best_step, state.best_losses, state.best_running),
            loss_weights=training.weights,
            steps=state.step,
            samples=state.step * config.batch_size,
            bad=len(state.bad),
            recall=state.best_recall,
            validation_seconds=training.validating,
            seconds=seconds,
            samples_per_second=(state.step - first) * config.batch_size / seconds,
        )


def _in_vain(state: Run, config: TrainConfig) -> bool:
    """Tell whether patience is at its end."""
    stale = (state.step - state.best_step) // config.every
    return config.patience is not None and stale >= config.patience


def _changes(state: Run, config: TrainConfig) -> Iterator[str]:
    """Tell of a run that goes on what is no longer as it was."""
    for name, before in state.changed.items():
        yield f"{name} {getattr(config, name)}, which was {before}"
    if (steps := state.changed.get("steps")) is None:
        return
    if state.ended:
        patience = f"--patience {config.patience} ended it at step {state.step}"
        yield f"more steps change nothing: {patience}; give more, or leave it out, to go on"
        return
    if config.schedule == "cosine":
        before = lr_at(state.step, dataclasses.replace(config, steps=steps, calibrate_at=None))
        after = lr_at(state.step, config)
        yield (
            f"the learning rate is that of a cosine of {config.steps} steps from here on: at step "
            f"{state.step} it goes from {before:.3g} to {after:.3g}, and the end is not that of a "
            f"run of {config.steps} steps; of --schedule constant or paper it would be"
        )
    if state.step == steps and steps % config.every:
        yield f"step {steps} was validated as the last, and counts"


class _Losses(nn.Module):
    """The losses of a batch as a module, as DistributedDataParallel wants them."""

    require_backward_grad_sync = True  # as it has it, too

    def __init__(self, task: Task, config: TrainConfig, device: torch.device) -> None:
        super().__init__()
        self.network, self.task, self.augment = task.network, task, config.augment
        self.bf16 = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")

    def forward(self, batch: Item) -> dict[str, Tensor]:
        """Give the losses, float32, one value a sample."""
        with self.bf16:
            values = self.task.losses(batch, augmented=self.augment and self.network.training)
        return {name: value.float() for name, value in values.items()}


class _Training:
    """A network that is taught, and the steps and unreadable items that nobody has looked at."""

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        run: Run,
        device: torch.device,
        ranks: Ranks,
        note: Note,
    ) -> None:
        self.task, self.config, self.state = task, config, run
        self.device, self.ranks, self.note = device, ranks, note
        self.network: nn.Module = task.network
        for network in (self.network, *(network for network, _ in task.computes)):
            network.to(device).to(memory_format=torch.channels_last)
        if ranks.size > 1:
            synchronise_batch_norm(self.network, device)
        if config.compile:
            for network, name in task.computes:
                setattr(network, name, torch.compile(getattr(network, name)))
        elif device.type == "cpu":
            keep_memory(largest=None, spare=-1)
        groups = [{"params": list(group.parameters)} for group in task.groups]
        chosen = {name: getattr(config, name) for name in ("lr", "betas", "eps", "weight_decay")}
        fused = device.type in ("cpu", "cuda")
        self.optimizer = OPTIMIZERS[config.optimizer](groups, fused=fused, **chosen)
        self.losses = _Losses(task, config, device)
        self.model: _Losses | DistributedDataParallel | None = None  # made at the first step
        # Which of the parts that a step is split into are this process's. Those that all processes
        # compute at a time are neighbours: BatchNorm counts the same samples for any number.
        self.parts = range(ranks.rank, ranks.size * config.accumulate, ranks.size)
        self.validating = 0.0  # seconds so far
        self.unseen: list[tuple[list[Key], dict[str, Tensor], Tensor]] = []
        self.bad: dict[str, S2FError] = {}
        self.rounding = contextlib.ExitStack()
        self.rounding.enter_context(rounding(config.precision))
        self.deterministic = torch.are_deterministic_algorithms_enabled()  # before
        if config.deterministic:  # or an error, where a GPU cannot repeat itself
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)

    def close(self) -> None:
        """Let go of what averages gradients: it must not outlive the group of the processes."""
        self.model = None
        self.rounding.close()
        torch.use_deterministic_algorithms(self.deterministic)

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the losses, as they are now."""
        return {**self.config.loss_weights, **self.state.loss_weights}

    def read(self, data: Any, keys: Iterable[list[Key]]) -> Batches:
        """Read batches, each with its keys, and remember what could not be read."""
        workers, limit = self.config.workers, self.config.max_bad
        for loaded in load_batches(data, keys, self.device, workers=workers, max_bad=limit):
            self.bad |= {error.message: error for error in loaded.bad}
            if loaded.items is None:
                error = loaded.bad[-1]
                raise self._too_many(error) if isinstance(error, InputError) else error
            yield loaded.keys, loaded.items

    def read_steps(self, steps: range) -> Batches:
        """Read this process's parts of steps."""
        config, n = self.config, len(self.task.train_data)
        parts = self.ranks.size * config.accumulate
        keys = plan_steps(
            n, config.batch_size, seed=config.seed, steps=steps, parts=parts, mine=self.parts
        )
        return self.read(self.task.train_data, keys)

    def step(self, batches: Iterator[tuple[list[Key], Item]]) -> None:
        """Take one step of the optimizer."""
        config, state, step = self.config, self.state, self.state.step
        model = self._thawed(step)
        for group, plan in zip(self.optimizer.param_groups, self.task.groups, strict=True):
            group["lr"] = lr_at(step, config) * plan.lr
        n, contrast = len(self.parts), None
        parts: Iterable[tuple[list[Key], Item]] = itertools.islice(batches, n)
        several = n > 1 and losses.CONTRASTIVE in self.weights
        if several or step == config.calibrate_at:
            parts = list(parts)
            contrast = self._look_ahead([batch for _, batch in parts], several)
        seen: list[Key] = []
        values: list[dict[str, Tensor]] = []
        with contrast.over_parts() if contrast else contextlib.nullcontext():
            for k, (keys, batch) in enumerate(parts):
                # Processes average their gradients only where the last part adds its own.
                model.require_backward_grad_sync = k == n - 1
                found = self._found(model, k, batch)
                loss = losses.total(found, self.weights) / n
                loss.backward()  # type: ignore[no-untyped-call]
                seen += keys
                values.append({name: value.detach() for name, value in found.items()})
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        joined = {name: torch.cat([found[name] for found in values]) for name in values[0]}
        self.unseen.append((seen, joined, norm))

    def _found(self, model: nn.Module, k: int, batch: Item) -> dict[str, Tensor]:
        """Compute the losses of this process's k-th part of the step."""
        # Of what a network draws from torch's own generator: in a run that goes on as in another.
        torch.manual_seed(self.config.seed * 1_000_003 + self.state.step + (self.parts[k] << 40))
        found: dict[str, Tensor] = model(batch)
        return found

    def _look_ahead(self, batches: Sequence[Item], several: bool) -> losses.Contrast | None:
        """Compute all parts of a step before one is learned from, where all have to be known.

        That is where the weights are calibrated, and for InfoNCE where there are several parts.
        """
        state, contrast = self.state, losses.Contrast() if several else None
        before = [buffer.clone() for buffer in self.network.buffers()]  # BatchNorm's statistics
        found = (self._found(self.losses, k, batch) for k, batch in enumerate(batches))
        with contrast.over_parts() if contrast else contextlib.nullcontext():
            if state.step == self.config.calibrate_at:
                state.loss_weights = losses.calibrate(self.task, found, self.ranks)
                if self.config.best_by is None:  # others do not compare
                    state.best, state.best_step = math.inf, state.step
                text = losses.weights_text(self.weights)
                self.note(f"loss weights from step {state.step} on: {text}")
            for _ in found:  # that nobody has asked for
                pass
        for buffer, value in zip(self.network.buffers(), before, strict=True):
            buffer.copy_(value)
        if contrast:
            contrast.join()
        return contrast

    def _clip(self) -> Tensor:
        """Clip the gradient, if that is wanted, and give the norm that it had."""
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.config.clip:
            nn.utils.clip_grads_with_norm_(self.network.parameters(), self.config.clip, norm)
        return norm

    def _thawed(self, step: int) -> "_Losses | DistributedDataParallel":
        """Give gradients to what is trained from this step on, and to nothing else."""
        groups = self.task.groups
        if self.model is None or any(step == group.start for group in groups):
            self.network.requires_grad_(False)
            for group in groups:
                for parameter in group.parameters:
                    parameter.requires_grad_(step >= group.start)
            self.model = self.losses
            if self.ranks.size > 1:
                ids = [self.device] if self.device.type == "cuda" else None
                self.model = DistributedDataParallel(
                    self.losses, device_ids=ids, gradient_as_bucket_view=True
                )
        return self.model

    def look(self, interrupted: bool = False) -> bool:
        """Look at the losses of the last steps and at items that could not be read since.

        A look waits for a GPU, so several steps are looked at together; and all processes look
        together, so that they decide the same. Returns whether one of them was interrupted.
        """
        state, unseen = self.state, self.unseen
        rows = [torch.stack([*(v.mean() for v in now.values()), norm]) for _, now, norm in unseen]
        table = torch.stack(rows).cpu().double() if rows else torch.empty(0)
        tables, bad, stops = zip(*self.ranks.gather((table, self.bad, interrupted)), strict=True)
        means = torch.stack(tables).mean(0).tolist()
        self.unseen, self.bad = [], {}
        first = state.step - len(rows) + 1
        for step, (*row, norm), (keys, values, _) in zip(itertools.count(first), means, unseen):
            now = dict(zip(values, row, strict=True))
            if not all(map(math.isfinite, [*row, norm])):
                finite = losses.per_sample(values, self.weights).isfinite().tolist()
                broken = [key for key, fine in zip(keys, finite, strict=True) if not fine] or keys
                mine = [self.task.train_data.name(key.item) for key in broken]
                names = [name for theirs in self.ranks.gather(mine) for name in theirs]
                found = ", ".join(f"{name} {value:g}" for name, value in now.items())
                some = ", ".join(names[:4]) + " and others" * (len(names) > 4)
                raise self._diverged(
                    f"step {step} the loss is {found}, the gradient {norm:g}, for {some}"
                )
            for name, value in now.items():
                state.running[name] = 0.98 * state.running.get(name, value) + 0.02 * value
        for message, error in itertools.chain(*(theirs.items() for theirs in bad)):
            if message not in state.bad:
                state.bad.append(message)
                if len(state.bad) > self.config.max_bad:
                    raise self._too_many(error)
                self.note(f"left out: {message}")
        return any(stops)

    def _diverged(self, where: str) -> UsageError:
        lower = f"use a lower --lr than {self.config.lr:g} and another folder"
        return UsageError(
            f"{self.state.folder}: the training diverged: at {where}",
            hint=f"{lower}; what was saved before is kept",
        )

    def _too_many(self, error: S2FError) -> S2FError:
        limit = self.config.max_bad
        if limit == 0:
            hint = f"{error.hint or 'make it again'}; or go on without it: --max-bad 1"
            return type(error)(error.message, hint=hint)
        message = f"more than {limit} items cannot be read; the last: {error.message}"
        return DatasetError(message, hint="mend them, or raise --max-bad")

    def measure(self, keys: list[list[Key]]) -> list[tuple[Item, Item]]:
        """Compute the losses of batches of the validation data, undisturbed, and what is judged."""
        embedded: Callable[[Item], Item] = getattr(self.task, "embedded", lambda batch: {})
        self.network.eval()
        found = []
        with torch.no_grad():
            for _, batch in self.read(self.task.val_data, keys):
                both = self.losses(batch), embedded(batch)
                values, rows = ({k: v.cpu() for k, v in some.items()} for some in both)
                found.append((values, rows))
        self.network.train()
        return found

    def validate(self, board: run_dir.Board | None, *, solved: bool = False) -> None:
        """Measure; keep what is better than all before, or solved for and no worse."""
        state, ranks = self.state, self.ranks
        keys = undisturbed(len(self.task.val_data), self.config.val_samples)
        told = ranks.gather(self.measure(keys[ranks.rank :: ranks.size]))
        found = [told[k % ranks.size][k // ranks.size] for k in range(len(keys))]
        joined, rows = (
            {k: torch.cat([one[part][k] for one in found]) for k in found[0][part]}
            for part in (0, 1)
        )
        measured = {k: float(values.mean()) for k, values in joined.items()}
        recall: dict[str, float] = {}
        if rows and all(map(math.isfinite, measured.values())):
            on_device = {k: v.to(self.device) for k, v in rows.items()}
            judge = getattr(self.task, "judge")  # noqa: B009 (which not all tasks have)
            more, recall = judge(on_device, batch_size=self.config.batch_size)
            measured |= more
        score = sum(self.weights[name] * value for name, value in measured.items())
        if not math.isfinite(score):
            raise self._diverged(f"step {state.step} the validation losses are {measured}")
        if by := self.config.best_by:
            score = -recall[by]
        elif state.best_losses and state.best_losses.keys() != measured.keys():
            state.best = math.inf  # of a run that an earlier s2f began, which measured less
        slack = abs(state.best) * ROUNDING if solved else 0.0
        kept = score <= state.best + slack if solved else score < state.best
        rate = lr_at(state.step - 1, self.config)
        state.log(rate, measured, recall, kept=kept if solved else None)
        if board:
            group = "solved" if solved else "val"
            values = {f"{group}/{name}": value for name, value in (measured | recall).items()}
            board(state.step, values, None)
        path = state.folder / BEST
        if kept:
            state.best, state.best_step, state.best_recall = score, state.step, recall
            state.best_losses, state.best_running = measured, dict(state.running)
        elif solved:
            path = state.folder / SOLVED / BEST
            self.note(
                f"what was solved for is worse in validation ({abs(score):.6g}) than step "
                f"{state.best_step} ({abs(state.best):.6g}), which stays the best: it is in {path}"
            )
        if kept or solved:
            self._write_best(path, measured | recall)
        if solved and not kept:
            self.network.load_state_dict(state.best_weights)
        elif kept and not solved and self.task.solves:
            state.best_weights = {k: v.clone() for k, v in self.network.state_dict().items()}

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Count the seconds of what is validation."""
        began = time.perf_counter()
        yield
        self.validating += time.perf_counter() - began

    def _write_best(self, path: Path, measured: Mapping[str, float]) -> None:
        """Write the network as a checkpoint, with what was measured of it."""
        if self.ranks.first:
            storage = torch.float16 if self.config.half else torch.float32
            self.task.save(path, storage, {f"val/{name}": x for name, x in measured.items()})

    def reopen(self) -> None:
        """Go back to before the end of a run that is lengthened, and to what was not solved for."""
        state = self.state
        if self.task.solves:
            if not state.unsolved:
                message = f"{state.folder}: cannot be lengthened: an earlier s2f has finished it, "
                message += "and did not keep what its last layers were before they were solved for"
                hint = f"start another run from it: --init {state.folder / BEST}"
                raise UsageError(message, hint=hint)
            ended = dataclasses.replace(state, **state.unsolved)
            if _in_vain(ended, self.config):
                return
            for name, value in state.unsolved.items():
                setattr(state, name, value)
            state.unsolved = {}
            last = {k: v.clone() for k, v in self.network.state_dict().items()}
            self.network.load_state_dict(state.best_weights)
            self._write_best(state.folder / BEST, state.best_losses | state.best_recall)
            self.network.load_state_dict(last)
            if self.ranks.first:
                (state.folder / SOLVED / BEST).unlink(missing_ok=True)
        state.ended = _in_vain(state, self.config)

    def solve(self, interrupted: Callable[[], bool], board: run_dir.Board | None) -> None:
        """Solve for what the task can, of the network that was best in validation, and measure."""
        state = self.state
        state.unsolved = {name: getattr(state, name) for name in UNSOLVED}
        state.last_weights = {k: v.clone() for k, v in self.network.state_dict().items()}
        if state.best_weights:  # a run that was begun before these were kept has none
            self.network.load_state_dict(state.best_weights)
        else:
            state.best_weights = state.last_weights
        self.task.finish(lambda passes: self.passes(passes, interrupted))
        self.validate(board, solved=True)

    def passes(self, k: int, interrupted: Callable[[], bool]) -> Iterator[Item]:
        """Go k times through the training data, in another order than the steps did."""
        config, n = self.config, len(self.task.train_data)
        steps = range(-(-k * n // config.batch_size))
        keys = plan_steps(n, config.batch_size, seed=config.seed + config.steps, steps=steps)
        for _, batch in self.read(self.task.train_data, keys):
            if any(self.ranks.gather(interrupted() or self.ranks.orphaned)):
                raise KeyboardInterrupt  # from the last save it is not far to here
            yield batch

    def show(self, board: run_dir.Board | None) -> None:
        """Draw up to eight samples of the validation data."""
        if not self.ranks.first:
            return
        n = len(self.task.val_data)
        keys = [Key(i, i) for i in range(0, n, n // 8 | 1)][:8]
        ((_, batch),) = self.read(self.task.val_data, [keys])
        picture = self.task.sample(batch)
        self.state.show(picture)
        if board:
            board(self.state.step, {}, picture)


def undisturbed(n: int, most: int | None = None) -> list[list[Key]]:
    """Ask for n items as they are measured: in batches, nothing random that changes.

    For `most` of them, where there are more: spread evenly, as people come one after the other.
    """
    m = n if most is None else min(n, most)
    keys = [Key(i, i) for i in (k * n // m for k in range(m))]
    return [keys[k : k + MEASURED] for k in range(0, m, MEASURED)]


def rehearse(
    task: Task, run: Path, config: TrainConfig, *, device: torch.device, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Take two steps of each stage of a training, and tell by name what the whole would take.

    Nothing is written, and the network is worth nothing afterwards. Of `ranks`, all rehearse, and
    bytes and seconds are those of the one that has most; `run` is there for messages. Raises a
    UsageError if the config does not fit the task or the devices, or a loss is not finite; an
    InputError if more items of the batches cannot be read than may; a DependencyError if the
    network is to be compiled and there is no compiler.
    """
    config = _complete(task, config, ranks, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    own = dataclasses.replace(config, workers=0)  # reads alone, so that the time can be told
    training = _Training(task, own, Run(run, writes=False), device, ranks, note=lambda text: None)
    state, network = training.state, training.network
    starts = sorted({group.start for group in task.groups})
    stages: list[dict[str, Any]] = []
    gradients = activations = 0
    first: dict[str, float] = {}
    with contextlib.closing(training):
        batches = training.read_steps(range(2 * len(starts)))
        network.train()
        for start, end in itertools.pairwise([*starts, config.steps]):
            state.step = start
            for _ in range(2):  # the first of them warms up
                began = time.perf_counter()
                parts = [next(batches) for _ in training.parts]
                read = time.perf_counter()
                training.step(iter(parts))
                training.look()  # waits for a GPU
                reading, computing = read - began, time.perf_counter() - read
                first = first or dict(state.running)
            trained = [p for p in network.parameters() if p.requires_grad]
            computing = max(ranks.gather(computing))  # all have to wait for the slowest
            stage = {"start": start, "steps": end - start, "seconds": computing}  # of one step
            stages.append(stage | {"trained": sum(p.numel() for p in trained)})
            gradients = max(gradients, _bytes(trained))
            activations = max(activations, _kept(training, parts[0][1]))
        chunks = undisturbed(len(task.val_data), config.val_samples)
        began = time.perf_counter()
        training.measure(chunks[:1])
        validation = (time.perf_counter() - began) * -(-len(chunks) // ranks.size)
    weights = [*network.parameters(), *network.buffers()]
    moments = [v for values in training.optimizer.state.values() for v in values.values()]
    memory = {"weights": _bytes(weights), "gradients": gradients, "optimizer": _bytes(moments)}
    memory |= {"activations": activations, "peak": _peak(device)}
    told = ranks.gather([reading, validation, *memory.values()])
    reading, validation, *numbers = (max(values) for values in zip(*told, strict=True))
    spent = 0.0
    for stage in stages:  # processes of their own read while a step computes
        computing, readers = stage["seconds"], config.workers
        once = max(computing, reading / readers) if readers else computing + reading
        spent += stage["steps"] * once
    samples, storage = config.steps * config.batch_size, 2 if config.half else 4
    splits = {"train": task.train_data, "val": task.val_data}
    return {
        "task": task.name,
        "device": str(device),
        "devices": ranks.size,  # processes that train together
        "data": {k: {"samples": len(v), **getattr(v, "counts", {})} for k, v in splits.items()},
        "notes": task.notes,
        "batch_size": config.batch_size,
        "steps": config.steps,
        "epochs": samples / len(task.train_data),
        "parameters": sum(p.numel() for p in network.parameters()),
        "stages": stages,  # steps that train the same parameters, so many
        "losses": first,  # of the first batch, before any training
        "bad": state.bad,  # why items of the batches could not be read
        "read_seconds": reading,  # that it takes to read a batch, in one process
        "validation_seconds": validation,  # that one validation takes
        "validations": -(-config.steps // config.every),
        # Estimates: of the whole, without what is solved for at the end; between validations.
        "seconds": spent + -(-config.steps // config.every) * validation,
        "samples_per_second": samples / spent,
        "checkpoint_bytes": sum(
            t.numel() * (storage if t.is_floating_point() else t.element_size()) for t in weights
        ),
        "state_bytes": _bytes([*weights, *moments]),  # of what a run goes on from
        # Weights, gradients and optimizer exactly; activations that one part of a batch keeps for
        # its gradients, counted; the peak measured, with all code on a CPU; 0 is not known.
        "memory": dict(zip(memory, map(int, numbers), strict=True)),
    }


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _kept(training: _Training, batch: Item) -> int:
    """Count the bytes that the losses of a batch keep for the gradients, apart from weights."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        # What is no number or follows from the network; the rest is other networks' weights.
        if tensor.requires_grad or not tensor.is_floating_point():
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        training.losses(batch)
    for own in (*training.network.parameters(), *training.network.buffers()):
        kept.pop(own.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def _peak(device: torch.device) -> int:
    """Tell the most memory that was held so far: of a GPU, or of this process; else 0."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "cpu" and sys.platform == "linux":
        # Of this program alone, where `resource` knows its parent's too.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return sum(1024 * int(n) for n in re.findall(r"VmHWM:\s*(\d+) kB", status))
    if device.type == "cpu" and sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 0
