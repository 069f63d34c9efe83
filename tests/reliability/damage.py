"""Damage of many kinds to bytes, and the count of what became of damaged files."""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from s2f import workers
from s2f.errors import S2FError

KINDS = ("bits", "noise", "length", "cut", "splice", "more")


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage bytes in one of six ways, half of the time within the first 256; never to the same.

    Bits are flipped; a few bytes are noise; what may be a length is another; the end is cut off; a
    piece of the file stands in the place of another; more follows the end.
    """
    while (damaged := _damaged(data, rng)) == data:
        pass
    return damaged


def _damaged(data: bytes, rng: np.random.Generator) -> bytes:
    kind, new = rng.choice(KINDS), bytearray(data)
    end = min(len(data), 256) if rng.random() < 0.5 else len(data)
    at, n = int(rng.integers(end)), int(rng.choice([1, 2, 4, 8, 64]))
    if kind == "bits":
        for _ in range(rng.integers(1, 9)):
            new[rng.integers(end)] ^= 1 << int(rng.integers(8))
    elif kind == "noise":
        new[at : at + n] = rng.bytes(n)
    elif kind == "length":
        size = int(rng.choice([2, 4, 8]))
        sizes = [0, 1, len(data), len(data) + 1, 2**31 - 1, 2**31, 2**62, -1, rng.integers(2**40)]
        value = int(rng.choice(sizes)) % 2 ** (8 * size)
        new[at : at + size] = value.to_bytes(size, "big" if rng.random() < 0.5 else "little")
    elif kind == "cut":
        del new[at:]
    elif kind == "splice":
        start = int(rng.integers(len(data)))
        new[at : at + n * int(rng.integers(3))] = data[start : start + n * int(rng.integers(9))]
    else:
        new += data[at:] if rng.random() < 0.5 else rng.bytes(n)
    return bytes(new)


def in_this_process(function: Any, items: Any, **_: Any) -> Any:
    """In the place of `workers.run_in_workers`, which take a second or two to start."""
    for place, item in enumerate(items):
        yield place, workers._attempt(function, item)


class Took:
    """What something takes, while it is entered: seconds of this process, megabytes over before.

    Not `ru_maxrss`: that begins with what the process that started this one ever took.
    """

    def __enter__(self) -> "Took":
        with contextlib.suppress(OSError):  # only Linux has it
            Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
        self._base, self._start = self._peak(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.process_time() - self._start
        self.megabytes = self._peak() - self._base

    @staticmethod
    def _peak() -> float:
        with contextlib.suppress(OSError):
            status = Path("/proc/self/status").read_text()
            return int(status.partition("VmHWM:")[2].split()[0]) / 1024
        return 0.0


@dataclasses.dataclass
class Count:
    """What became of damaged or hostile files, to be printed."""

    tried: int = 0
    done: int = 0
    refused: int = 0  # by name
    lost: int = 0  # good ones beside them that were not done, or otherwise
    crashed: int = 0  # processes that died at a file, which was then refused by name
    slowest: float = 0.0  # seconds of processor time
    largest: float = 0.0  # megabytes, over what good files took

    def add(self, path: Path | str, error: S2FError | None, seconds: float = 0.0) -> None:
        """Count a file that was read, or that is refused, by its name."""
        self.tried += 1
        self.slowest = max(self.slowest, seconds)
        if error is None:
            self.done += 1
        else:
            assert str(path) in error.message, error.message
            assert "bug of s2f" not in str(error.hint), error.message
            self.refused += 1

    def read(self, path: Path, reader: object, *given: object) -> None:
        """Call a reader here, and count what comes of it."""
        start, failure = time.process_time(), None
        try:
            reader(path, *given)  # type: ignore[operator]
        except S2FError as error:
            failure = error
        self.add(path, failure, time.process_time() - start)

    def __str__(self) -> str:
        told = dataclasses.asdict(self)
        return ", ".join(f"{name} {round(value, 2):g}" for name, value in told.items())
