"""A run of training, as a directory that it can be gone on with.

It holds

    config.json  history.jsonl  best.safetensors  last/state.safetensors  samples/*.png

and belongs to the config that was first written there. Every file is whole or absent, and what a
killed run had logged after its last save is dropped, so that one that goes on ends the same.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from s2f.errors import CheckpointError, UsageError
from s2f.images import encode_png, to_image
from s2f.runtime import atomic_write


class Run:
    """Everything that a run needs to go on: step, best score, running losses; and its files.

    Attributes:
        folder: the run directory.
        file: the state of networks and optimizer after the last save.
        best_file: the best checkpoint.
        step: optimizer steps done.
        best: lowest score so far, of `best_step`, with its `best_losses`.
        running: mean training losses, the older the fainter.
        logged: lines of the history that the last save knows of.
        weights: of the losses, where they were calibrated; else empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "last" / "state.safetensors"
        self.best_file = folder / "best.safetensors"
        self.step, self.best, self.best_step = 0, math.inf, 0
        self.best_losses: dict[str, float] = {}
        self.running: dict[str, float] = {}
        self.logged = 0
        self.weights: dict[str, float] = {}

    def claim(self, config: Mapping[str, object]) -> None:
        """Write the config of a new run, or make sure that an old one is the same.

        Raises:
            UsageError: if the directory holds a run with another config, or without one.
            CheckpointError: if its config cannot be read.
            OutputError: if the directory cannot be written.
        """
        # Through JSON, so that tuples compare equal to the lists that they are read back as.
        mine = json.loads(json.dumps(config))
        path = self.folder / "config.json"
        if not path.is_file():
            if self.file.exists():
                raise UsageError(
                    f"{self.folder}: holds the state of a run and no config.json",
                    hint="remove it, or give another folder with -o",
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
        for key in mine | theirs:
            if mine.get(key) != theirs.get(key):
                raise UsageError(
                    f"{self.folder}: holds a run with {key} {theirs.get(key)}; "
                    f"this one has {mine.get(key)}",
                    hint="give the same options to go on with it, or another folder with -o",
                )

    def note(self, values: Mapping[str, Tensor]) -> None:
        """Take the losses of a step, one value a sample, into the running ones."""
        for name, value in values.items():
            now = float(value.detach().mean())
            self.running[name] = 0.98 * self.running.get(name, now) + 0.02 * now

    def summary(self) -> str:
        """Tell the running losses in a line."""
        return "  ".join(f"{name} {value:.4g}" for name, value in self.running.items())

    def reweigh(self, weights: Mapping[str, float]) -> None:
        """Take over calibrated weights of losses; scores under others cannot be the best."""
        self.weights, self.best = dict(weights), math.inf

    def log(self, rate: float, measured: Mapping[str, float]) -> None:
        """Add this step's learning rate and losses to the history."""
        record = {"step": self.step, "lr": rate, "train": self.running, "val": measured}
        if self.weights:
            record["loss_weights"] = self.weights
        path = self.folder / "history.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        # Steps after the last save are trained again after a kill: drop what they had logged.
        lines = lines[: self.logged]
        self.logged += 1
        with atomic_write(path) as file:
            file.write("".join(f"{line}\n" for line in [*lines, json.dumps(record)]).encode())

    def show(self, picture: Tensor) -> None:
        """Write the sample [3 h w] of this step."""
        png = encode_png(to_image(picture), {})
        with atomic_write(self.folder / "samples" / f"{self.step:07d}.png") as file:
            file.write(png)

    def save(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write everything that `restore` needs.

        Raises:
            OutputError: if it cannot be written.
        """
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
        if self.weights:
            numbers["loss_weights"] = self.weights
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
            self.step, self.best = numbers["step"], numbers["best"]
            self.best_step, self.best_losses = numbers["best_step"], numbers["best_losses"]
            self.running, self.logged = numbers["running"], numbers["logged"]
            self.weights = dict(numbers.get("loss_weights", {}))
        except (
            *(safetensors.SafetensorError, OSError, KeyError),
            *(TypeError, ValueError, RuntimeError),
        ) as error:
            raise CheckpointError(
                f"{self.file}: is not a state of this run: {error}",
                hint=f"remove {self.folder} to train anew",
            ) from error
