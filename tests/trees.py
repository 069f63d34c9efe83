"""Small trees of made files, and what is in a tree."""

import os
import signal
from collections.abc import Iterable
from pathlib import Path


def grow(root: Path, paths: Iterable[str], data: bytes | None = None) -> Path:
    """Write files below a folder; without data each holds its own path."""
    for path in paths:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(os.fsencode(path) if data is None else data)
    return root


def contents(root: Path) -> dict[str, bytes]:
    """Give all files below a folder, hidden and linked ones too, but for locks."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def interruptible() -> None:
    """Give SIGINT its default action in a child: one of a job in the background ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
