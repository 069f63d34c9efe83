"""Training: one loop for the face encoder, the face decoder and the voice encoder.

What is to be learned is a `Task`; the loop knows nothing else about it. What it has reached lies
in a run directory (`run`), and everything random follows from the seed, the step and the place in
its batch, so that a run that was killed goes on as if nothing had happened, and so that several
processes (`ranks`) do what one would.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from s2f import board, display, units
from s2f.errors import UsageError
from s2f.feed import Item, Key, Order, naming_dead_workers
from s2f.learner import Learner, undisturbed
from s2f.ranks import ALONE, Ranks
from s2f.recipe import TrainConfig, check, lr_at, repeatable, told
from s2f.run import Run
from s2f.runtime import Progress, alone_in, interruptible, silent
from s2f.task import Note, Task
from s2f.watch import Watch

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
        paths = [self.best, self.run / display.LOSSES, self.run / "samples"]
        written = [str(path) for path in paths if path.exists()]
        speed = f"{units.duration(self.seconds)}, {self.samples_per_second:.1f} samples/s"
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
            `balance.check_weights` and `balance.calibrate`.
        InputError: if more items cannot be read than may.
        CheckpointError: if the state of that run is damaged.
        DependencyError: if the network is to be compiled and there is no compiler, or if
            TensorBoard is wanted and not installed.
        OutputError: if the directory cannot be written.
        DeviceError: if a process that reads the data has died.
        KeyboardInterrupt: if it was interrupted, once the state is saved.
    """
    config = dataclasses.replace(config, loss_weights=task.loss_weights | dict(config.loss_weights))
    check(task, config, ranks, device)
    if tensorboard:
        board.require()
    started = time.perf_counter()
    state = Run(run, writes=ranks.first)
    with contextlib.ExitStack() as stack:
        if ranks.first:
            stack.enter_context(alone_in(run))
            state.claim(told(task, config))
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
        show = stack.enter_context(display.Display(state, stages, note, tensorboard=tensorboard))
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
        self, task: Task, config: TrainConfig, state: Run, learner: Learner, show: display.Display
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
            if due or state.step % display.OFTEN == 0:
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
