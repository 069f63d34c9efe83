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
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from s2f.errors import CheckpointError, UsageError
from s2f.files import write_bytes
from s2f.images import encode, to_image

DAMAGED = (SafetensorError, LookupError, OSError, RuntimeError, TypeError, ValueError)
LOGS = (".log", ".txt", ".out", ".err")  # that may stand in a new run's folder
# Fields of `Run` in the saved state, in this order, before the calibrated weights.
SAVED = "step best best_step best_losses best_running running logged bad ended".split()


@dataclass
class Run:
    """Everything that a run needs to go on: step, best score, running losses; and its files."""

    folder: Path
    writes: bool = True  # whether this process writes, of several that share the folder
    step: int = 0  # optimizer steps done
    best: float = math.inf  # lowest score so far
    best_step: int = 0  # that it is of
    best_losses: dict[str, float] = field(default_factory=dict)  # its validation losses
    best_running: dict[str, float] = field(default_factory=dict)  # the running ones then
    running: dict[str, float] = field(default_factory=dict)  # mean losses, the older the fainter
    logged: int = 0  # lines of the history that the last save knows of
    bad: list[str] = field(default_factory=list)  # why items could not be read
    ended: bool = False  # whether there is nothing left to train
    loss_weights: dict[str, float] = field(default_factory=dict)  # where they were calibrated

    @property
    def file(self) -> Path:
        """The state of networks and optimizer after the last save."""
        return self.folder / "last" / "state.safetensors"

    @property
    def log_file(self) -> Path:
        """The history, one JSON object a line."""
        return self.folder / "history.jsonl"

    def claim(self, config: Mapping[str, object]) -> None:
        """Write the config of a new run, or make sure that an old one is the same.

        Raises a UsageError if the directory holds a run with another config, or no run but other
        files than logs; a CheckpointError if its config cannot be read; or an OutputError.
        """
        # Through JSON, so that tuples compare equal to the lists that they are read back as.
        mine, path = json.loads(json.dumps(config)), self.folder / "config.json"
        cure = "give another folder with -o"
        if not path.is_file():
            strangers = [p.name for p in self.folder.glob("[!.]*") if p.suffix not in LOGS]
            if strangers:
                holds = f"it holds {min(strangers)} and no config.json"
                raise UsageError(f"{self.folder}: is no run: {holds}", hint=cure)
            write_bytes(path, json.dumps(mine, indent=1).encode())
            return
        try:
            theirs = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            message = f"{path}: is not the config of a run: {error}"
            raise CheckpointError(message, hint=cure) from error
        if "task" not in theirs:
            raise UsageError(f"{path}: is the config of something else than a run", hint=cure)
        for key in mine | theirs:
            there, here = theirs.get(key), mine.get(key)
            if there != here:
                what = f"holds a run with {key} {there}; this one has {here}"
                hint = "give the same options to go on with it, or another folder with -o"
                raise UsageError(f"{self.folder}: {what}", hint=hint)

    def log(self, rate: float, measured: Mapping[str, float], *, solved: bool = False) -> None:
        """Add this step's learning rate and losses to the history."""
        record = {"step": self.step, "lr": rate, "train": self.running, "val": measured}
        record |= {"loss_weights": self.loss_weights} if self.loss_weights else {}
        record |= {"solved": True} if solved else {}
        if self.writes:
            path = self.log_file
            lines = path.read_bytes().splitlines() if path.is_file() else []
            # Steps after the last save are trained again after a kill: drop what they had logged.
            lines = [*lines[: self.logged], json.dumps(record).encode()]
            write_bytes(path, b"".join(line + b"\n" for line in lines))
        self.logged += 1

    def history(self) -> list[dict[str, Any]]:
        """Read what was logged, or raise a `CheckpointError`."""
        try:
            lines = self.log_file.read_text(encoding="utf-8").splitlines()[: self.logged]
            return [json.loads(line) for line in lines]
        except (OSError, ValueError) as error:
            raise self._damaged(f"{self.log_file}: is not the history of a run", error) from error

    def _damaged(self, what: str, error: Exception) -> CheckpointError:
        return CheckpointError(f"{what}: {error}", hint=f"remove {self.folder} to train anew")

    def show(self, picture: Tensor) -> None:
        """Write the sample [3 h w], 0..1, of this step."""
        path = self.folder / "samples" / f"{self.step:07d}.png"
        write_bytes(path, encode(to_image(picture), ".png", {}))

    def save(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write everything that `restore` needs."""
        if not self.writes:
            return
        tensors = {f"network.{k}": v.contiguous() for k, v in network.state_dict().items()}
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v.contiguous() for k, v in values.items()}
        numbers = {name: getattr(self, name) for name in SAVED}
        numbers |= {"loss_weights": self.loss_weights} if self.loss_weights else {}
        write_bytes(self.file, safetensors.torch.save(tensors, {"run": json.dumps(numbers)}))

    def restore(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> None:
        """Go back to the last save; a `CheckpointError` if it is damaged or of another network."""
        try:
            with safe_open(self.file, framework="pt", device=str(device)) as file:
                numbers = json.loads(file.metadata()["run"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            weights: dict[str, Tensor] = {}
            moments: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                kind, _, key = name.partition(".")
                if kind == "network":
                    weights[key] = tensor
                else:
                    index, _, key = key.partition(".")
                    # In the parameter's memory format: a fused optimizer looks at neither's.
                    like = trained[int(index)]
                    same = tensor.shape == like.shape
                    value = torch.empty_like(like).copy_(tensor) if same else tensor
                    moments.setdefault(int(index), {})[key] = value
            network.load_state_dict(weights)
            optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
            for name in SAVED:
                setattr(self, name, numbers[name])
            self.loss_weights = numbers.get("loss_weights", {})
        except DAMAGED as error:
            raise self._damaged(f"{self.file}: is not a state of this run", error) from error
