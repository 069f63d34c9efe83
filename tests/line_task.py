"""A training that is small enough to be checked by hand, and processes to run it in."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from s2f.dataloader import Item, Key
from s2f.distributed import Ranks
from s2f.errors import DatasetError
from s2f.train import Group, TrainConfig

CPU = torch.device("cpu")
TESTS = Path(__file__).parent
ENV = os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"}


class Two(Ranks):
    """One of two processes, which are threads here."""

    room: ClassVar[list[object]] = [None, None]
    meeting: ClassVar = threading.Barrier(2)

    def gather(self, value):
        self.room[self.rank] = value
        self.meeting.wait(10)
        told = list(self.room)
        self.meeting.wait(10)
        return told


class Line(Dataset[Item]):
    """Points of y = 2 x + 1, of which some cannot be read, and one has no finite loss."""

    def __init__(self, bad: Sequence[int] = (), poisoned: int | None = None) -> None:
        self.bad, self.poisoned = bad, poisoned

    def __len__(self) -> int:
        return 16

    def name(self, index: int) -> str:
        return f"point {index}"

    def __getitem__(self, key: Key) -> Item:
        if key.item in self.bad:
            raise DatasetError(f"item {key.item} is broken", hint="make it again")
        x = torch.tensor([key.item / 16])
        return {"x": x, "y": 2 * x + (torch.nan if key.item == self.poisoned else 1)}


class LineTask:
    """Find the line; with dropout, so that the random state counts."""

    name = "line"
    solves = False

    def __init__(self, data=None, *, val=None, network=None, dropout=0.1, **settings) -> None:
        self.settings = settings
        torch.manual_seed(0)
        layers = nn.Linear(1, 16), nn.Dropout(dropout), nn.Linear(16, 1)
        self.network = network or nn.Sequential(*layers)
        self.computes = [(self.network, "forward")]
        self.train_data, self.val_data = data or Line(), Line() if val is None else val
        self.defaults: dict[str, object] = {}
        self.notes: list[str] = []
        self.groups = [Group(list(self.network.parameters()))]
        self.loss_weights = {"mse": 1.0}

    def in_stages(self) -> "LineTask":
        """Train the last layer, and the first from step 15 on, more slowly."""
        body, _, head = self.network
        self.groups = [Group(list(head.parameters())), Group(list(body.parameters()), 15, 0.1)]
        return self

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        return {"mse": (self.network(batch["x"]) - batch["y"]).square().mean(1)}

    def finish(self, batches: object) -> None:
        raise AssertionError("there is nothing to solve for")

    def sample(self, batch: Item) -> Tensor:
        return torch.zeros(3, 4, 8)

    def save(self, path: Path, storage: torch.dtype, metrics: object) -> None:
        tensors = {k: v.to(storage) for k, v in self.network.state_dict().items()}
        path.parent.mkdir(exist_ok=True)
        safetensors.torch.save_file(tensors, path)


def config(**changes: object) -> TrainConfig:
    base: dict[str, object] = {"steps": 40, "batch_size": 4, "lr": 0.02, "every": 10}
    return TrainConfig(**(base | changes))  # type: ignore[arg-type]


KEPT = ("best.safetensors", "last/state.safetensors", "history.jsonl", "config.json")


def assert_same_run(one: Path, other: Path) -> None:
    """What a run keeps is equal to the byte."""
    for file in KEPT:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


class Killed(Exception):
    """The end of a process, as a test has it."""


def killing(at: int) -> Callable[[int, int, str], None]:
    """Make a `progress` that ends the training after a step."""

    def tell(done: int, total: int, what: str) -> None:
        if done == at:
            raise Killed

    return tell


def start(size: int, script: str, *arguments: object) -> subprocess.Popen[str]:
    """Run a script, under torchrun if in more than one process."""
    command = [sys.executable, "-c"]
    if size > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
        command = [sys.executable, *torchrun, "--no-python", *command]
    command += [textwrap.dedent(script), *map(str, arguments)]
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, env=ENV, text=True, start_new_session=True, **pipes)


def free_port() -> int:
    """Find a port that nobody has, below those that Linux gives out by itself (from 32768 on).

    Of these another process could get it meanwhile; or, as on loopback who connects to one before
    its server is there may be connected with himself, the one that asks.
    """
    while True:
        port = 20_000 + secrets.randbelow(10_000)  # not as any test has seeded others
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
