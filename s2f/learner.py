"""What learns: a network with its optimizer, and one step of it on this process's part of a batch.

Knows neither when to measure nor when to stop; that is for `train`.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from s2f import balance, losses
from s2f.fast_conv import accelerate
from s2f.feed import Item, Key, Order
from s2f.ranks import Ranks, synchronise_batch_norm
from s2f.recipe import TrainConfig, lr_at, make_optimizer
from s2f.run import Run
from s2f.task import Note, Task
from s2f.watch import Done
from s2f.workers import keep_memory

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
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if ranks.size > 1:
            synchronise_batch_norm(self.network, device)
        if config.compile:
            self.network.compile()
        elif device.type == "cpu":
            keep_memory(largest=None, spare=-1)
            accelerate(self.network)
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
                    self.state.reweigh(balance.calibrate(self.task, found, self.ranks))
                    note(f"loss weights from step {step} on: {balance.told(self.weights)}")
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
