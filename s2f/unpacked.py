"""Tensors on their way out of a foreign file: declared, checked, then written piece by piece.

What a file declares is bounded by the file's own size before anything is allocated. A piece is a
few megabytes, so that the largest file takes no more memory than the smallest.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from s2f.errors import CheckpointError, OutputError

DATA = "tensors.bin"
PIECE = 8 * 2**20  # bytes of one piece, about
ALIGN = 64  # bytes at whose multiples tensors start in the data
SPARE = 16 * 2**20  # bytes that any file may declare: constants compress to nothing
RATIO = 4  # of bytes that come out to bytes in the file: half and compressed floats grow
MAX_BYTES = 2 * 2**30  # of the values of a file: VGG-Face takes 0.6; a sparse file costs nothing
MAX_TENSORS = 20_000
KEPT = ("int64", "int32", "int16", "int8", "uint8", "bool")  # as they are; floats become float32


class Unpacked:
    """The tensors of one file: their list, and their values in `folder` if these are wanted.

    Attributes:
        tensors: name, type, shape and place in the data, in the order of declaration.
    """

    def __init__(self, path: Path, folder: Path, write: bool) -> None:
        self.path = path
        self.tensors: list[tuple[str, str, list[int], int]] = []
        self._names: set[str] = set()
        self._size = path.stat().st_size
        self._end = 0
        self._target = folder / DATA if write else None
        self._file = self._target.open("wb") if self._target else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file:
            self._file.close()

    def refuse(self, why: str, hint: str | None = None) -> CheckpointError:
        """Return the error of this file."""
        return CheckpointError(f"{self.path}: {why}", hint=hint or "wanted a file of plain weights")

    def declare(self, name: str, dtype: str, shape: Sequence[int]) -> bool:
        """Take a tensor into the list, before anything of it is read.

        Args:
            name: that no other tensor of the file has.
            dtype: `float32`, or one of `KEPT`.
            shape: as the file declares it.

        Returns:
            Whether its values are wanted.

        Raises:
            CheckpointError: if it is listed already, or the file cannot hold so much.
        """
        if name in self._names:
            raise self.refuse(f"holds {name!r} twice")
        self._names.add(name)
        start = -(-self._end // ALIGN) * ALIGN
        self._end = start + math.prod(shape) * np.dtype(dtype).itemsize
        limit = RATIO * self._size + SPARE
        if self._file:
            limit = min(limit, MAX_BYTES)
        if self._end > limit or len(self._names) > MAX_TENSORS:
            raise self.refuse(
                f"declares {len(self._names)} tensors of {self._end} bytes so far, {name!r} "
                f"{tuple(shape)} the last; its {self._size} bytes may declare {limit}, and "
                f"{MAX_TENSORS} tensors",
            )
        self.tensors.append((name, dtype, [int(n) for n in shape], start))
        return self._file is not None

    def write(self, pieces: Iterable[np.ndarray[Any, Any]]) -> None:
        """Write the values of the tensor that was declared last.

        Args:
            pieces: arrays whose values follow each other in the tensor.

        Raises:
            CheckpointError: if a value is NaN or infinite, or there are not as many as declared.
            OutputError: if there is no room for them.
        """
        assert self._file and self._target
        name, dtype, shape, start = self.tensors[-1]
        missing = math.prod(shape)
        self._file.seek(start)
        for piece in pieces:
            missing -= piece.size
            if missing < 0:
                break
            values = piece.astype(dtype, copy=False)
            if not np.isfinite(values).all():
                raise self.refuse(
                    f"tensor {name!r} holds values that are no numbers (NaN or infinite)",
                    "the training that made it went wrong, or the file is damaged",
                )
            try:
                values.tofile(self._file)
            except OSError as error:
                raise OutputError(
                    f"{self._target}: cannot be written: {error.strerror or error}",
                    hint="free some space, or set TMPDIR to a folder that has some",
                ) from error
        if missing:
            raise self.refuse(f"tensor {name!r} holds fewer or more values than it declares")
