"""What training learns: networks and data, and how a batch of it becomes losses."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from s2f.feed import Item, Key

Note = Callable[[str], None]
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
