"""What people see of a run at work: samples, `loss.png` and, if asked for, TensorBoard.

Nothing here changes what is learned, or a byte of the other files of the run.

A run as TensorBoard shows it: scalars and pictures by step. Needs the extra `train`.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Self

import torch
from torch import Tensor

from s2f import visualize
from s2f.errors import DependencyError
from s2f.files import atomic_write, unwritable
from s2f.run_dir import Run

Note = Callable[[str], None]

LOSSES = "loss.png"
OFTEN = 20  # steps between two that TensorBoard is told of
REST = 10  # times as long as `loss.png` took that it is left alone: short runs are not slowed


class Display:
    """The pictures of a run, on the process that writes; on others it shows nothing."""

    def __init__(
        self, state: Run, stages: Mapping[int, str], note: Note, *, tensorboard: bool = False
    ) -> None:
        """Show a run that goes on from where `state` is.

        Args:
            state: of the run.
            stages: by step, what begins there.
            note: is told if `loss.png` cannot be drawn.
            tensorboard: whether there is to be a folder `tensorboard`.

        Raises:
            DependencyError: if TensorBoard is not installed.
            OutputError: if its folder cannot be written.
        """
        self.state, self.stages, self.note = state, stages, note
        self.draws = state.writes
        self.drawn = state.logged if _is_newer(state.folder / LOSSES, state.log_file) else 0
        self.due = 0.0  # when it may be drawn again
        self.board: Board | None = None
        if tensorboard and state.writes:
            self.board = Board(state.folder / "tensorboard", after=state.step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.draw(now=True)
        if self.board is not None:
            self.board.close()

    def stepped(self, rates: Sequence[float], samples_per_second: float) -> None:
        """Tell TensorBoard of a step: running losses, learning rates and speed.

        Raises:
            OutputError: if it cannot be written.
        """
        if self.board is None:
            return
        values = {f"train/{name}": value for name, value in self.state.running.items()}
        values |= {f"lr/group{k}": rate for k, rate in enumerate(rates)}
        values["speed/samples_per_second"] = samples_per_second
        self.board.scalars(self.state.step, values)

    def validated(self, picture: Tensor) -> None:
        """Show the sample [3 h w] of a validation, and tell TensorBoard of its losses.

        Raises:
            OutputError: if a file cannot be written.
        """
        state = self.state
        state.show(picture)
        if self.board is None:
            return
        for record in state.history():
            if record["step"] == state.step:
                group = "solved" if record.get("solved") else "val"
                values = {f"{group}/{name}": value for name, value in record["val"].items()}
                self.board.scalars(state.step, values)
        self.board.picture(state.step, picture)

    def draw(self, *, now: bool = False) -> None:
        """Renew `loss.png`, unless that was a moment ago, or say once why there is none.

        A killed run does not miss it: where the last is not of the end, the next session draws it.

        Args:
            now: whether it is drawn, if it is out of date, even if that was a moment ago.

        Raises:
            OutputError: if it cannot be written.
        """
        state, began = self.state, time.monotonic()
        if not self.draws or self.drawn == state.logged or (began < self.due and not now):
            return
        try:
            png = visualize.draw_losses(state.history(), best=state.best_step, stages=self.stages)
        except DependencyError as error:
            self.draws = False
            self.note(f"{error.message}: {error.hint}")
            return
        with atomic_write(state.folder / LOSSES) as file:
            file.write(png)
        self.drawn, ended = state.logged, time.monotonic()
        self.due = ended + REST * (ended - began)


def _is_newer(path: Path, than: Path) -> bool:
    """Tell whether a file is there and was written after another, which may be missing."""
    if not path.is_file():
        return False
    return not than.is_file() or path.stat().st_mtime_ns >= than.stat().st_mtime_ns


class Board:
    """TensorBoard's files of one session of a run."""

    def __init__(self, folder: Path, *, after: int) -> None:
        """Open a file in a folder; what was told of steps beyond `after` counts no more.

        Raises:
            DependencyError: if TensorBoard is not installed.
            OutputError: if the folder cannot be written.
        """
        require_tensorboard()
        # Or it would import TensorFlow, where that is installed, to make files.
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        try:
            self.writer = SummaryWriter(folder, purge_step=after + 1)
        except OSError as error:
            raise unwritable(folder, error) from error

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Tell numbers of a step, by name; the part before the first slash groups them.

        Raises:
            OutputError: if they cannot be written.
        """
        try:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def picture(self, step: int, picture: Tensor) -> None:
        """Show the sample [3 h w], 0..1, of a step, and bring all to the disk.

        Raises:
            OutputError: if it cannot be written.
        """
        pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8)
        try:
            self.writer.add_image("samples", pixels, step)
            self.writer.flush()
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def close(self) -> None:
        """Write what is left, and end.

        Raises:
            OutputError: if it cannot be written.
        """
        try:
            self.writer.close()
        except OSError as error:
            raise unwritable(self.folder, error) from error


def require_tensorboard() -> None:
    """Make sure that TensorBoard is there.

    Raises:
        DependencyError: if it is not installed.
    """
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            "--tensorboard needs TensorBoard", hint="pip install 's2f[train]'"
        ) from error
