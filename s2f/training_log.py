"""What people see of a run at work: `loss.png` and, if asked for, TensorBoard.

Nothing here changes what is learned, or a byte of the other files of the run. Needs for
TensorBoard the extra `train`.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from s2f import visualize
from s2f.errors import DependencyError
from s2f.files import unwritable, write_bytes
from s2f.run_dir import Run

REST = 10  # times as long as `loss.png` took that it is left alone: short runs are not slowed

# Takes a step, its numbers by name (what is before the first slash groups them), and perhaps the
# sample [3 h w], 0..1, of a validation.
Board = Callable[[int, Mapping[str, float], Tensor | None], None]


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
