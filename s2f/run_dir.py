"""A run of training, as a directory that it can be gone on with.

It holds

    config.json  history.jsonl  best.safetensors  last/state.safetensors  samples/*.png  loss.png

and belongs to the config that was first written there. Every file is whole or absent, and what a
killed run had logged after its last save is dropped, so that one that goes on ends the same.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from s2f.errors import CheckpointError, UsageError
from s2f.files import atomic_write
from s2f.images import encode, to_image

LOGS = (".log", ".txt", ".out", ".err")  # that may stand in a new run's folder
SAVED = (  # fields of `Run` in the saved state, in this order, before the calibrated weights
    *("step", "best", "best_step", "best_losses", "best_running"),
    *("running", "logged", "bad", "ended"),
)


@dataclass
class Run:
    """Everything that a run needs to go on: step, best score, running losses; and its files.

    Attributes:
        folder: the run directory.
        writes: whether this is the process that writes, of several that share the directory.
        step: optimizer steps done.
        best: lowest score so far, of `best_step`, with its validation losses `best_losses` and
            the running ones then, `best_running`.
        running: mean training losses, the older the fainter.
        logged: lines of the history that the last save knows of.
        bad: why items could not be read.
        ended: whether there is nothing left to train.
        loss_weights: where they were calibrated; else empty.
    """

    folder: Path
    writes: bool = True
    step: int = 0
    best: float = math.inf
    best_step: int = 0
    best_losses: dict[str, float] = field(default_factory=dict)
    best_running: dict[str, float] = field(default_factory=dict)
    running: dict[str, float] = field(default_factory=dict)
    logged: int = 0
    bad: list[str] = field(default_factory=list)
    ended: bool = False
    loss_weights: dict[str, float] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """The state of networks and optimizer after the last save."""
        return self.folder / "last" / "state.safetensors"

    @property
    def best_file(self) -> Path:
        """The best checkpoint."""
        return self.folder / "best.safetensors"

    @property
    def log_file(self) -> Path:
        """The history, one JSON object a line."""
        return self.folder / "history.jsonl"

    def claim(self, config: Mapping[str, object]) -> None:
        """Write the config of a new run, or make sure that an old one is the same.

        Raises:
            UsageError: if the directory holds a run with another config, or no run; logs apart.
            CheckpointError: if its config cannot be read.
            OutputError: if the directory cannot be written.
        """
        # Through JSON, so that tuples compare equal to the lists that they are read back as.
        mine = json.loads(json.dumps(config))
        path = self.folder / "config.json"
        if not path.is_file():
            strangers = [p.name for p in self.folder.glob("[!.]*") if p.suffix not in LOGS]
            if strangers:
                raise UsageError(
                    f"{self.folder}: is no run: it holds {min(strangers)} and no config.json",
                    hint="give another folder with -o",
                )
            with atomic_write(path) as file:
                file.write(json.dumps(mine, indent=1).encode())
            return
        try:
            theirs = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: is not the config of a run: {error}", hint="give another folder with -o"
            ) from error
        if "task" not in theirs:
            raise UsageError(
                f"{path}: is the config of something else than a run",
                hint="give another folder with -o",
            )
        for key in mine | theirs:
            if mine.get(key) != theirs.get(key):
                raise UsageError(
                    f"{self.folder}: holds a run with {key} {theirs.get(key)}; "
                    f"this one has {mine.get(key)}",
                    hint="give the same options to go on with it, or another folder with -o",
                )

    def log(self, rate: float, measured: Mapping[str, float], *, solved: bool = False) -> None:
        """Add this step's learning rate and losses to the history."""
        record = {"step": self.step, "lr": rate, "train": self.running, "val": measured}
        if self.loss_weights:
            record["loss_weights"] = self.loss_weights
        if solved:
            record["solved"] = True
        path, known = self.log_file, self.logged
        self.logged += 1
        if not self.writes:
            return
        lines = path.read_bytes().splitlines() if path.is_file() else []
        # Steps after the last save are trained again after a kill: drop what they had logged.
        lines = [*lines[:known], json.dumps(record).encode()]
        with atomic_write(path) as file:
            file.write(b"".join(line + b"\n" for line in lines))

    def history(self) -> list[dict[str, Any]]:
        """Read what was logged.

        Raises:
            CheckpointError: if it cannot be read.
        """
        try:
            lines = self.log_file.read_text(encoding="utf-8").splitlines()[: self.logged]
            return [json.loads(line) for line in lines]
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.log_file}: is not the history of a run: {error}",
                hint=f"remove {self.folder} to train anew",
            ) from error

    def show(self, picture: Tensor) -> None:
        """Write the sample [3 h w] of this step."""
        png = encode(to_image(picture), ".png", {})
        with atomic_write(self.folder / "samples" / f"{self.step:07d}.png") as file:
            file.write(png)

    def save(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write everything that `restore` needs.

        Raises:
            OutputError: if it cannot be written.
        """
        if not self.writes:
            return
        tensors = {f"network.{k}": v.contiguous() for k, v in network.state_dict().items()}
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v.contiguous() for k, v in values.items()}
        numbers = {name: getattr(self, name) for name in SAVED}
        if self.loss_weights:
            numbers["loss_weights"] = self.loss_weights
        with atomic_write(self.file) as file:
            file.write(safetensors.torch.save(tensors, {"run": json.dumps(numbers)}))

    def restore(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> None:
        """Go back to where the last save was.

        Raises:
            CheckpointError: if what was saved is damaged, or of another network.
        """
        try:
            with safetensors.safe_open(self.file, framework="pt", device=str(device)) as file:
                numbers = json.loads(file.metadata()["run"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            weights: dict[str, Tensor] = {}
            moments: dict[int, dict[str, Tensor]] = {}
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            for name, tensor in tensors.items():
                part, rest = name.split(".", 1)
                if part == "network":
                    weights[rest] = tensor
                else:
                    index, key = rest.split(".", 1)
                    # In the parameter's memory format: a fused optimizer looks at neither's.
                    like = trained[int(index)]
                    moments.setdefault(int(index), {})[key] = (
                        torch.empty_like(like).copy_(tensor)
                        if tensor.shape == like.shape
                        else tensor
                    )
            network.load_state_dict(weights)
            optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
            for name in SAVED:
                setattr(self, name, numbers[name])
            self.loss_weights = numbers.get("loss_weights", {})
        except (
            *(safetensors.SafetensorError, OSError, KeyError),
            *(TypeError, ValueError, RuntimeError),
        ) as error:
            raise CheckpointError(
                f"{self.file}: is not a state of this run: {error}",
                hint=f"remove {self.folder} to train anew",
            ) from error
