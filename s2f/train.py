"""Training: one loop for the face encoder, the face decoder and the voice encoder.

What is to be learned is a `Task`: networks, and a batch to losses. The loop knows nothing else
about it. What it has reached lies in a run directory (`run`), and everything random follows from
the seed and the step, so that a run that was killed goes on as if nothing had happened.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from s2f import balance, losses
from s2f.dataset import Careful, Item, Order, collate
from s2f.errors import S2FError, UsageError
from s2f.run import Run
from s2f.runtime import Progress, interruptible, silent


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: optimizer steps.
        batch_size: samples a step.
        lr: peak learning rate.
        schedule: `cosine` after a warm-up, or `paper`: x 0.95 every 10,000 steps.
        weight_decay: AdamW's.
        betas: AdamW's; the paper uses (0.5, 0.999).
        clip: largest gradient norm.
        seed: of everything random.
        every: steps between validations, samples and saves.
        loss_weights: one for each loss of the task.
        calibrate_at: steps after which `balance` finds the weights anew; None for never.
        augment: whether training inputs are disturbed.
        half: whether best.safetensors stores half precision.
        workers: processes that read data; 0 reads in this one.
    """

    steps: int = 10_000
    batch_size: int = 32
    lr: float = 1e-3
    schedule: str = "cosine"
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 5.0
    seed: int = 0
    every: int = 500
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    calibrate_at: int | None = None
    augment: bool = True
    half: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.every) < 1:
            raise UsageError("steps, batch size and every must be at least 1")
        if self.schedule not in ("cosine", "paper"):
            raise UsageError(f"schedule {self.schedule!r} is neither cosine nor paper")
        if not 0 < self.lr < math.inf:
            raise UsageError(f"learning rate {self.lr} is not above 0")
        if self.calibrate_at is not None and not 0 <= self.calibrate_at < self.steps:
            raise UsageError(
                f"weights calibrated at step {self.calibrate_at} of {self.steps} are never used",
                hint="give a --calibrate-at below --steps",
            )


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: the best checkpoint, its step and validation losses; the losses' weights."""

    run: Path
    best: Path
    step: int
    losses: Mapping[str, float]
    loss_weights: Mapping[str, float]


class Task(Protocol):
    """What is learned: networks, data, and how a batch becomes losses."""

    @property
    def name(self) -> str:
        """What is learned, in a word."""

    @property
    def settings(self) -> Mapping[str, object]:
        """What tells this task from others of its name: a run goes on only where it is equal."""

    @property
    def network(self) -> nn.Module:
        """What is trained."""

    @property
    def train_data(self) -> Dataset[Item]:
        """Items by (index, seed), to learn from."""

    @property
    def val_data(self) -> Dataset[Item]:
        """Items by (index, seed), to measure on."""

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


def lr_at(step: int, config: TrainConfig) -> float:
    """Learning rate of a step."""
    if config.schedule == "paper":
        return config.lr * 0.95 ** (step // 10_000)
    warmup = min(200, config.steps // 10)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
    return float(config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))))


def train(
    task: Task,
    run: Path,
    config: TrainConfig,
    *,
    device: torch.device,
    progress: Progress = silent,
    note: Callable[[str], None] = lambda text: None,
) -> TrainResult:
    """Train a task in a run directory, going on from where it stopped if it was begun there.

    SIGTERM and Ctrl-C save before they end the run, between two steps.

    Raises:
        UsageError: if the directory holds a run with another config, the training diverges, or
            as `balance.check_weights` and `balance.calibrate`.
        DatasetError: if an item cannot be read.
        CheckpointError: if the state of that run is damaged.
        OutputError: if the directory cannot be written.
        KeyboardInterrupt: if it was interrupted, once the state is saved.
    """
    config = dataclasses.replace(config, loss_weights=task.loss_weights | dict(config.loss_weights))
    weights, calibrated = dict(config.loss_weights), config.calibrate_at is not None
    balance.check_weights(task, weights, batch_size=config.batch_size, calibrated=calibrated)
    network = task.network.to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
    )
    state = Run(run)
    state.claim(_told(task, config))
    if state.file.is_file():
        state.restore(network, optimizer, device)
    weights |= state.weights
    n = len(task.train_data)  # type: ignore[arg-type]
    order = Order(n, config.batch_size, seed=config.seed, start=state.step, steps=config.steps)
    batches = _batches(task.train_data, order, config, device)
    storage = torch.float16 if config.half else torch.float32
    started, first = time.perf_counter(), state.step
    network.train()
    with interruptible() as interrupted:
        for batch in batches:
            rate = lr_at(state.step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(config.seed * 1_000_003 + state.step)  # augmentation and dropout
            values = task.losses(batch, augmented=config.augment)
            if state.step == config.calibrate_at:
                state.reweigh(balance.calibrate(task, values))
                weights |= state.weights
                note(f"loss weights from step {state.step} on: {balance.told(weights)}")
            loss = losses.total(values, weights)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained, config.clip)
            optimizer.step()
            state.step += 1
            _check_finite(float(loss.detach()), run, state.step, config)
            state.note(values)
            speed = (state.step - first) / (time.perf_counter() - started)
            progress(state.step, config.steps, f"{state.summary()}  {speed:.1f} steps/s")
            ended = state.step == config.steps
            solved = False
            if ended:
                torch.manual_seed(config.seed)
                solved = task.finish(lambda k: _passes(task, config, device, k))
            if state.step % config.every == 0 or ended:
                measured = evaluate(task, config, device)
                score = float(losses.total(measured, weights))
                _check_finite(score, run, state.step, config)
                state.log(rate, {name: float(value.mean()) for name, value in measured.items()})
                if score < state.best or solved:
                    state.best, state.best_step = score, state.step
                    state.best_losses = {k: float(v.mean()) for k, v in measured.items()}
                    task.save(state.best_file, storage, state.best_losses)
                state.show(task.sample(_sample_batch(task, device)))
                state.save(network, optimizer)
            if interrupted() and not ended:
                state.save(network, optimizer)
                raise KeyboardInterrupt
    return TrainResult(run, state.best_file, state.best_step, state.best_losses, weights)


def _told(task: Task, config: TrainConfig) -> dict[str, object]:
    """What a run must have in common with one that goes on with it."""
    told = {"task": task.name, **task.settings, **dataclasses.asdict(config)}
    del told["workers"]  # a matter of the machine, not of the result
    if config.calibrate_at is None:  # as in runs that are older than the option
        del told["calibrate_at"]
    return told


def _check_finite(loss: float, run: Path, step: int, config: TrainConfig) -> None:
    if not math.isfinite(loss):
        raise UsageError(
            f"{run}: the training diverged: at step {step} the loss is {loss}",
            hint=f"use a lower --lr than {config.lr:g} and another folder",
        )


@torch.no_grad()
def evaluate(task: Task, config: TrainConfig, device: torch.device) -> dict[str, Tensor]:
    """Losses [n] over the validation data, undisturbed."""
    n = len(task.val_data)  # type: ignore[arg-type]
    keys = [[(i, i) for i in range(k, min(k + 64, n))] for k in range(0, n, 64)]
    was_training = task.network.training
    task.network.eval()
    batches = _batches(task.val_data, keys, config, device)
    measured = [task.losses(batch, augmented=False) for batch in batches]
    task.network.train(was_training)
    return {name: torch.cat([values[name] for values in measured]) for name in measured[0]}


def _passes(task: Task, config: TrainConfig, device: torch.device, k: int) -> Iterator[Item]:
    """Go k times through the training data, in another order than the steps did."""
    n = len(task.train_data)  # type: ignore[arg-type]
    steps = -(-k * n // config.batch_size)
    order = Order(n, config.batch_size, seed=config.seed + config.steps, start=0, steps=steps)
    return _batches(task.train_data, order, config, device)


def _batches(
    data: Dataset[Item],
    keys: Iterable[list[tuple[int, int]]],
    config: TrainConfig,
    device: torch.device,
) -> Iterator[Item]:
    loader: DataLoader[Any] = DataLoader(
        Careful(data), batch_sampler=keys, num_workers=config.workers, collate_fn=collate
    )
    for batch in loader:
        yield _to(batch, device)


def _sample_batch(task: Task, device: torch.device) -> Item:
    n = len(task.val_data)  # type: ignore[arg-type]
    items = [task.val_data[i, i] for i in range(0, n, n // 8 | 1)][:8]
    return _to(collate(list(items)), device)


def _to(batch: Item | S2FError, device: torch.device) -> Item:
    if isinstance(batch, S2FError):
        raise batch
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    # Pictures travel as bytes and are 0..1 from here on.
    return {k: v.float() / 255 if v.dtype == torch.uint8 else v for k, v in moved.items()}
