"""Training: one loop for the face encoder, the face decoder and the voice encoder.

What is to be learned is a `Task`: networks, and a batch to losses. The loop knows nothing else
about it. A run directory holds

    config.json  history.jsonl  best.safetensors  last/state.safetensors  samples/*.png

and everything random follows from the seed and the step, so that a run that was killed goes on
as if nothing had happened.
"""

import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from s2f import losses
from s2f.dataset import Careful, Item, Order, collate
from s2f.errors import CheckpointError, S2FError, UsageError
from s2f.images import encode_png, to_image
from s2f.runtime import Progress, atomic_write, silent


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


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: the best checkpoint, its validation losses and the step it is from."""

    run: Path
    best: Path
    step: int
    losses: Mapping[str, float]


class Task(Protocol):
    """What is learned: networks, data, and how a batch becomes losses."""

    @property
    def name(self) -> str:
        """What is learned, in a word."""
        ...

    @property
    def settings(self) -> Mapping[str, object]:
        """What tells this task from others of its name: a run goes on only where it is equal."""
        ...

    @property
    def network(self) -> nn.Module:
        """What is trained."""
        ...

    @property
    def train_data(self) -> Dataset[Item]:
        """Items by (index, seed), to learn from."""
        ...

    @property
    def val_data(self) -> Dataset[Item]:
        """Items by (index, seed), to measure on."""
        ...

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each loss, where the config names no other."""
        ...

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Turn a batch into losses, one value a sample."""
        ...

    def finish(self, batches: Callable[[int], Iterator[Item]]) -> None:
        """Improve the network in one go after the last step, if there is a way.

        `batches(k)` goes k times through the training data.
        """
        ...

    def sample(self, batch: Item) -> Tensor:
        """Draw what the network makes of a batch, as one picture [3 h w]."""
        ...

    def save(self, path: Path, storage: torch.dtype, metrics: Mapping[str, float]) -> None:
        """Write the network as a checkpoint."""
        ...


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
) -> TrainResult:
    """Train a task in a run directory, going on from where it stopped if it was begun there.

    SIGTERM and Ctrl-C save before they end the run.

    Raises:
        UsageError: if the directory holds a run with another config, or the training diverges.
        DatasetError: if an item cannot be read.
        CheckpointError: if the state of that run is damaged.
        OutputError: if the directory cannot be written.
        KeyboardInterrupt: if it was interrupted, once the state is saved.
    """
    config = dataclasses.replace(config, loss_weights=task.loss_weights | dict(config.loss_weights))
    network = task.network.to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
    )
    _claim(run, task, config)
    state = _Run(run)
    if state.file.is_file():
        state.restore(network, optimizer, device)
    n = len(task.train_data)  # type: ignore[arg-type]
    order = Order(n, config.batch_size, seed=config.seed, start=state.step, steps=config.steps)
    batches = _batches(task.train_data, order, config, device)
    storage = torch.float16 if config.half else torch.float32
    started, first = time.perf_counter(), state.step
    network.train()
    with _interruptible() as interrupted:
        for batch in batches:
            rate = lr_at(state.step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(config.seed * 1_000_003 + state.step)  # augmentation and dropout
            values = task.losses(batch, augmented=config.augment)
            loss = losses.total(values, config.loss_weights)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained, config.clip)
            optimizer.step()
            state.step += 1
            state.note(values)
            speed = (state.step - first) / (time.perf_counter() - started)
            progress(state.step, config.steps, f"{state.summary()}  {speed:.1f} steps/s")
            ended = state.step == config.steps
            if ended:
                torch.manual_seed(config.seed)
                task.finish(lambda k: _passes(task, config, device, k))
            if state.step % config.every == 0 or ended:
                measured = evaluate(task, config, device)
                score = float(losses.total(measured, config.loss_weights))
                if not math.isfinite(score):
                    raise UsageError(
                        f"{run}: the training diverged: at step {state.step} the loss is {score}",
                        hint=f"use a lower --lr than {config.lr:g} and another folder",
                    )
                state.log(rate, {name: float(value.mean()) for name, value in measured.items()})
                if score < state.best:
                    state.best, state.best_step = score, state.step
                    state.best_losses = {k: float(v.mean()) for k, v in measured.items()}
                    task.save(run / "best.safetensors", storage, state.best_losses)
                picture = encode_png(to_image(task.sample(_sample_batch(task, device))), {})
                with atomic_write(run / "samples" / f"{state.step:07d}.png") as file:
                    file.write(picture)
                state.save(network, optimizer)
            if interrupted() and not ended:
                state.save(network, optimizer)
                raise KeyboardInterrupt
    return TrainResult(run, run / "best.safetensors", state.best_step, state.best_losses)


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


def _claim(run: Path, task: Task, config: TrainConfig) -> None:
    """Write the config of a new run, or make sure that an old one is the same."""
    # Through JSON, so that tuples compare equal to the lists that they are read back as.
    mine = {"task": task.name, **task.settings, **dataclasses.asdict(config)}
    mine = json.loads(json.dumps(mine))
    mine.pop("workers")  # a matter of the machine, not of the result
    path = run / "config.json"
    if not path.is_file():
        with atomic_write(path) as file:
            file.write(json.dumps(mine, indent=1).encode())
        return
    try:
        theirs = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: is not the config of a run: {error}", hint="give another folder with -o"
        ) from error
    for key in mine | theirs:
        if mine.get(key) != theirs.get(key):
            raise UsageError(
                f"{run}: holds a run with {key} {theirs.get(key)}; this one has {mine.get(key)}",
                hint="give the same options to go on with it, or another folder with -o",
            )


class _Run:
    """Everything that a run needs to go on: step, best score, running losses; and its files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "last" / "state.safetensors"
        self.step, self.best, self.best_step = 0, math.inf, 0
        self.best_losses: dict[str, float] = {}
        self.running: dict[str, float] = {}
        self.logged = 0

    def note(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            now = float(value.detach().mean())
            self.running[name] = 0.98 * self.running.get(name, now) + 0.02 * now

    def summary(self) -> str:
        return "  ".join(f"{name} {value:.4g}" for name, value in self.running.items())

    def log(self, rate: float, measured: Mapping[str, float]) -> None:
        record = {"step": self.step, "lr": rate, "train": self.running, "val": measured}
        path = self.folder / "history.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        # Steps after the last save are trained again after a kill: drop what they had logged.
        lines = lines[: self.logged]
        self.logged += 1
        with atomic_write(path) as file:
            file.write("".join(f"{line}\n" for line in [*lines, json.dumps(record)]).encode())

    def save(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        tensors = {f"network.{k}": v.contiguous() for k, v in network.state_dict().items()}
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v.contiguous() for k, v in values.items()}
        numbers = {
            "step": self.step,
            "best": self.best,
            "best_step": self.best_step,
            "best_losses": self.best_losses,
            "running": self.running,
            "logged": self.logged,
        }
        with atomic_write(self.file) as file:
            file.write(safetensors.torch.save(tensors, {"run": json.dumps(numbers)}))

    def restore(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> None:
        try:
            with safetensors.safe_open(self.file, framework="pt", device=str(device)) as file:
                numbers = json.loads(file.metadata()["run"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            weights: dict[str, Tensor] = {}
            moments: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                part, rest = name.split(".", 1)
                if part == "network":
                    weights[rest] = tensor
                else:
                    index, key = rest.split(".", 1)
                    # AdamW keeps its step counts on the CPU
                    moments.setdefault(int(index), {})[key] = (
                        tensor.cpu() if key == "step" else tensor
                    )
            network.load_state_dict(weights)
            optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
        except (safetensors.SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.file}: is not a state of this run: {error}",
                hint=f"remove {self.folder} to train anew",
            ) from error
        self.step, self.best = numbers["step"], numbers["best"]
        self.best_step, self.best_losses = numbers["best_step"], numbers["best_losses"]
        self.running, self.logged = numbers["running"], numbers["logged"]


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and Ctrl-C into a flag that the loop reads between two steps."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    seen: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    before = {s: signal.signal(s, remember) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
