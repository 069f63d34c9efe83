"""What people see of a run at work: samples, `loss.png` and, if asked for, TensorBoard.

Nothing here changes what is learned, or a byte of the other files of the run.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from s2f import plots
from s2f.board import Board
from s2f.errors import DependencyError
from s2f.run import Run
from s2f.runtime import atomic_write
from s2f.task import Note

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
            png = plots.draw_losses(state.history(), best=state.best_step, stages=self.stages)
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
