"""A run as TensorBoard shows it: scalars and pictures by step. Needs the extra `train`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from s2f.errors import DependencyError
from s2f.runtime import unwritable


class Board:
    """TensorBoard's files of one session of a run."""

    def __init__(self, folder: Path, *, after: int) -> None:
        """Open a file in a folder; what was told of steps beyond `after` counts no more.

        Raises:
            DependencyError: if TensorBoard is not installed.
            OutputError: if the folder cannot be written.
        """
        require()
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


def require() -> None:
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
