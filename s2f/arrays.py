"""Arrays in .npy files: written, read, or mapped into memory; others are refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2f.errors import DatasetError


def read_array(path: Path, *, mmap: bool = False) -> NDArray[np.generic]:
    """Read a .npy file.

    Raises:
        DatasetError: if it cannot be read.
    """
    try:
        array: NDArray[np.generic] = np.load(path, mmap_mode="r" if mmap else None)
    except (OSError, ValueError, EOFError) as error:
        why = getattr(error, "strerror", None) or str(error)
        if "pickle" in why:  # NumPy's guess at any file that is not its own
            why = "it is no .npy file of numbers"
        raise DatasetError(
            f"{path}: cannot be read as an array: {why}",
            hint="make the file again",
        ) from error
    return array


def save_array(array: NDArray[Any], path: Path) -> None:
    """Write a .npy file; `path` ends in that."""
    np.save(path, array)


def map_waveform(path: Path) -> NDArray[np.generic]:
    """Map a stored waveform into memory: [n], n >= 1, int16 or floating point.

    Raises:
        DatasetError: if it cannot be read, or is no waveform.
    """
    samples = read_array(path, mmap=True)
    known = samples.dtype in (np.int16, np.float16, np.float32, np.float64)
    if samples.ndim != 1 or len(samples) == 0 or not known:
        raise DatasetError(
            f"{path}: holds {samples.dtype} values {list(samples.shape)}; wanted a waveform "
            "[n], int16 or floating point",
            hint="save it as int16 or float32, one channel, 16 kHz",
        )
    return samples
