"""A run of training, as a directory that it can be gone on with.

It holds

    config.json  history.jsonl  best.safetensors  last/state.safetensors  samples/*.png  loss.png

and `init.safetensors`, a copy of the checkpoint that it started from, if it did; and belongs to the
config that was first written there. Every file is whole or absent, and what a killed run had logged
after its last save is dropped, so that one that goes on ends the same. Damage of any bit is found
where it is read, but for the history's, which is for people: nothing but a picture is made of it.

What people see of a run at work comes last: `loss.png` and, if asked for, TensorBoard, which needs
the extra `train`. It changes nothing that is learned, nor a byte of the other files.
"""

import contextlib
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from s2f import visualize
from s2f.checkpoint import is_finite
from s2f.errors import CheckpointError, DependencyError, UsageError
from s2f.files import atomic_path, atomic_write, sealed, unsealed, unwritable, write_bytes
from s2f.images import encode, to_image

DAMAGED = (SafetensorError, LookupError, OSError, RuntimeError, TypeError, ValueError)
INIT = "init.safetensors"
LOGS = (".log", ".txt", ".out", ".err")  # that may stand in a new run's folder
# Settings that runs did not tell before there was a choice, and the option that gives what they had
# then; none where the options that they were begun with have come to mean something else.
UNTOLD = {"identity_target": "--identity-target drawn", "clips": "", "compared": ""}
# Fields of `Run` in the saved state, in this order, before the calibrated weights.
SAVED = "step best best_step best_losses best_running running logged bad ended".split()
UNSOLVED = "best best_step best_losses best_running best_recall logged".split()
# Fields that are saved where they have something, after those of `SAVED`.
SOMETIMES = ("loss_weights", "unsolved", "best_recall")
# What tells of the data: how much there is to learn from, and which files. Runs that were begun
# before the last were told lack them.
FILES = ("train_files", "val_files")
OF_DATA = ("photos", "recordings", "train_pack", "val_pack", *FILES)
UNKNOWN = "0" * 64  # in the place of the SHA-256 of a state, as long as it is made
LENGTHENED = "lengthened_from"  # key of a config: numbers of steps that its schedule had before
DTYPES = {  # as safetensors names them
    "torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16",
    "torch.bfloat16": "BF16", "torch.int64": "I64", "torch.int32": "I32", "torch.uint8": "U8",
    "torch.bool": "BOOL",
}  # fmt: skip

REST = 10  # times as long as `loss.png` took that it is left alone: short runs are not slowed

# Takes a step, its numbers by name (what is before the first slash groups them), and perhaps the
# sample [3 h w], 0..1, of a validation.
Board = Callable[[int, Mapping[str, float], Tensor | None], None]


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
    best_recall: dict[str, float] = field(default_factory=dict)  # its recall, where there is one
    running: dict[str, float] = field(default_factory=dict)  # mean losses, the older the fainter
    logged: int = 0  # lines of the history that the last save knows of
    bad: list[str] = field(default_factory=list)  # why items could not be read
    ended: bool = False  # whether there is nothing left to train
    loss_weights: dict[str, float] = field(default_factory=dict)  # where they were calibrated
    # Of the best step, where the rest is to be solved for in the end.
    best_weights: dict[str, Tensor] = field(default_factory=dict, compare=False)
    # Where it was solved for: what the fields of `UNSOLVED` were before, and the weights of the
    # last step, from which a run goes on that is lengthened.
    unsolved: dict[str, Any] = field(default_factory=dict)
    last_weights: dict[str, Tensor] = field(default_factory=dict, compare=False)
    # Of a config that was there, what has changed since, which may: by key, as it was.
    changed: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def file(self) -> Path:
        """The state of networks and optimizer after the last save."""
        return self.folder / "last" / "state.safetensors"

    @property
    def log_file(self) -> Path:
        """The history, one JSON object a line."""
        return self.folder / "history.jsonl"

    def config(self) -> dict[str, Any]:
        """Read the config of a run that is there, {} if none is; raises as `claim`."""
        path, cure = self.folder / "config.json", "give another folder with -o"
        if not path.is_file():
            return {}
        try:
            theirs = unsealed(path.read_bytes())
        except (OSError, TypeError, ValueError) as error:
            message = f"{path}: is not the config of a run: {error}"
            raise CheckpointError(message, hint=cure) from error
        if "task" not in theirs:
            raise UsageError(f"{path}: is the config of something else than a run", hint=cure)
        return theirs

    def claim(
        self,
        config: Mapping[str, object],
        may_change: Collection[str] = (),
        *,
        planned: bool = True,
    ) -> list[str]:
        """Write the config of a new run, or make sure that an old one is the same.

        What is in `may_change` need not be, and `steps` may be more than they were; the config then
        is as it is now, `changed` has what was, and of a run whose learning rate was `planned` for
        its number of steps the config also lists the numbers before.

        Returns what should be known of an old one: a run that does not tell how its `noise` is
        drawn may have been begun when that was another way. Raises a UsageError if the directory
        holds a run with another config, or no run but other files than logs; a CheckpointError if
        its config cannot be read; or an OutputError.
        """
        # Through JSON, so that tuples compare equal to the lists that they are read back as.
        mine, path = json.loads(json.dumps(config)), self.folder / "config.json"
        cure, theirs = "give another folder with -o", self.config()
        if not theirs:
            strangers = [p.name for p in self.folder.glob("[!.]*") if p.suffix not in LOGS]
            if strangers:
                holds = f"it holds {min(strangers)} and no config.json"
                raise UsageError(f"{self.folder}: is no run: {holds}", hint=cure)
            write_bytes(path, sealed(mine))
            return []
        for key in mine | theirs:
            there, here = theirs.get(key), mine.get(key)
            is_old = key == LENGTHENED or (key in ("noise", *FILES) and key not in theirs)
            counts = key == "steps" and isinstance(there, int) and isinstance(here, int)
            longer = counts and there < here
            if there != here and (longer or key in may_change):
                self.changed[key] = there
            elif there != here and not is_old:
                what = f"holds a run with {key} {there}; this one has {here}"
                same = "the same options" if key in theirs else UNTOLD.get(key, "the same options")
                hint = f"give {same} to go on with it, or another folder with -o"
                if not same:
                    hint = f"{cure}: that run has other options, or is of an earlier s2f"
                if key in OF_DATA and key in mine and key in theirs:
                    what = f"learned from {there} {key}; this one has {here}"
                    if "_" in key:
                        what = f"was begun with other files in {key.partition('_')[0]}"
                    hint = "give the data and options that it was begun with, or another folder "
                    hint += "with -o; --init starts that from what was learned here"
                raise UsageError(f"{self.folder}: {what}", hint=hint)
        if self.changed:
            theirs |= {key: mine.get(key) for key in self.changed}
            if planned and "steps" in self.changed:
                theirs.setdefault(LENGTHENED, []).append(self.changed["steps"])
            write_bytes(path, sealed(theirs))
        if "noise" in theirs or "noise" not in mine:
            return []
        return [
            f"{self.folder} was begun before runs told how noise is drawn: its disturbances and "
            "dropout may go on as others, and it may not end as if it had not been stopped"
        ]

    def seen(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Give the config and what the saved state tells of itself, each {} if there is none.

        By this, processes of several machines know whether all see the same folder. Raises as
        `config`, or a `CheckpointError` if the state is damaged.
        """
        told: dict[str, str] = {}
        try:
            with safe_open(self.file, framework="pt") as file:
                told = file.metadata() or {}
        except FileNotFoundError:
            pass
        except DAMAGED as error:
            raise self._damaged(f"{self.file}: is not a state of this run", error) from error
        return self.config(), told

    def keep(self, start: Path) -> None:
        """Copy the checkpoint that the run starts from, once: it goes on without the original."""
        kept = self.folder / INIT
        if not kept.is_file():
            with atomic_path(kept) as temporary:
                shutil.copyfile(start, temporary)

    def log(
        self,
        rate: float,
        measured: Mapping[str, float],
        recall: Mapping[str, float] | None = None,
        *,
        kept: bool | None = None,
    ) -> None:
        """Add this step's learning rate, losses and recall, if there is one, to the history.

        Where they are of what was solved for, `kept` says whether that is the best.
        """
        record = {"step": self.step, "lr": rate, "train": self.running, "val": measured}
        record |= {"recall": recall} if recall else {}
        record |= {"loss_weights": self.loss_weights} if self.loss_weights else {}
        record |= {} if kept is None else {"solved": True, "kept": kept}
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
        """Write everything that `restore` needs, tensor by tensor: there is no second copy of it.

        The format is that of safetensors: the length of a header, the header, and the tensors, the
        widest types first, which aligns them. The header has the SHA-256 of the file, made with
        zeros in its place.
        """
        if not self.writes:
            return
        weights = self.last_weights or network.state_dict()
        tensors = {f"network.{k}": v for k, v in weights.items()}
        tensors |= {f"best.{k}": v for k, v in self.best_weights.items()}
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in values.items()}
        numbers = {name: getattr(self, name) for name in SAVED}
        for name in SOMETIMES:
            numbers |= {name: getattr(self, name)} if getattr(self, name) else {}
        metadata = {"sha256": UNKNOWN, "run": json.dumps(numbers)}
        header: dict[str, object] = {"__metadata__": metadata}
        names, end = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)), 0
        for name in names:
            tensor, start = tensors[name], end
            end = start + tensor.nbytes
            described = {"dtype": DTYPES[str(tensor.dtype)], "shape": list(tensor.shape)}
            header[name] = described | {"data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with atomic_write(self.file) as file:
            head = len(text).to_bytes(8, "little") + text
            file.write(head)
            sha256 = hashlib.sha256(head)
            # One buffer for all: freed copies would leave holes that the next does not fit in.
            room = torch.empty(
                max((t.nbytes for t in tensors.values()), default=0), dtype=torch.uint8
            )
            for name in names:
                tensor = tensors[name].detach()
                values = room[: tensor.nbytes]
                values.view(tensor.dtype).view(tensor.shape).copy_(tensor)
                file.write(values.numpy().data)
                sha256.update(values.numpy().data)
            file.seek(head.index(UNKNOWN.encode()))
            file.write(sha256.hexdigest().encode())

    def restore(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> None:
        """Go back to the last save; a `CheckpointError` if it is damaged or of another network."""
        try:
            with safe_open(self.file, framework="pt", device=str(device)) as file:
                metadata = file.metadata()
                numbers = json.loads(metadata["run"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            # Another name may be a damaged `sha256`, which states of before there was one lack.
            said = metadata.get("sha256")
            if metadata.keys() - {"run", "sha256"} or said not in (None, _sha256(self.file, said)):
                raise ValueError("its SHA-256 is another")
            if broken := next((k for k, v in tensors.items() if not is_finite(v)), None):
                raise ValueError(f"{broken!r} holds values that are no numbers (NaN or infinite)")
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            weights: dict[str, Tensor] = {}
            best_weights: dict[str, Tensor] = {}
            moments: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                kind, _, key = name.partition(".")
                if kind in ("network", "best"):
                    (weights if kind == "network" else best_weights)[key] = tensor
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
            for name in SOMETIMES:
                setattr(self, name, numbers.get(name, {}))
            self.best_weights = best_weights
        except DAMAGED as error:
            raise self._damaged(f"{self.file}: is not a state of this run", error) from error


def _sha256(path: Path, said: str | None) -> str | None:
    """Hash a state as it was when its SHA-256, which is `said` to be in it, was not yet."""
    if said is None:
        return None
    with path.open("rb") as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
        sha256 = hashlib.sha256(length + header.replace(said.encode(), UNKNOWN.encode(), 1))
        while block := file.read(2**20):
            sha256.update(block)
    return sha256.hexdigest()


def renew_loss_curves(run: Run, stages: Mapping[int, str]) -> float:
    """Renew a run's `loss.png` where it is older than the history; `stages` begin at these steps.

    A killed run does not miss it: where the last is not of the end, the next session draws it.
    Returns when it may be drawn again, by the monotonic clock; raises as `Run.history`.
    """
    began, path = time.monotonic(), run.folder / "loss.png"
    drawn = path.stat().st_mtime_ns if path.is_file() else -1
    if not run.writes or not run.logged or drawn >= run.log_file.stat().st_mtime_ns:
        return began
    write_bytes(path, visualize.draw_losses(run.history(), best=run.best_step, stages=stages))
    ended = time.monotonic()
    return ended + REST * (ended - began)


@contextlib.contextmanager
def open_board(folder: Path, *, after: int) -> Iterator[Board]:
    """Open TensorBoard's file of one session of a run in a folder; gives what takes the steps.

    What was told before of steps `after` the one that the session goes on from counts no more.
    Raises an `OutputError`, also when a step is told.
    """
    # Or it would import TensorFlow, where that is installed, to make files.
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
    from torch.utils.tensorboard import SummaryWriter

    def tell(step: int, values: Mapping[str, float], picture: Tensor | None) -> None:
        with _writing(folder):
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            if picture is not None:
                pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8)
                writer.add_image("samples", pixels, step)
                writer.flush()

    with _writing(folder):
        writer = SummaryWriter(folder, purge_step=after + 1)
    try:
        yield tell
    finally:
        with _writing(folder):
            writer.close()


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(folder, error) from error


def require_tensorboard() -> None:
    """Raise a `DependencyError` if TensorBoard is not installed."""
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        cure = "pip install 's2f[train]'"
        raise DependencyError("--tensorboard needs TensorBoard", hint=cure) from error
