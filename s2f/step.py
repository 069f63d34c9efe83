"""What a command of `s2f prep` makes of each file: all that tells one of them from another."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Step:
    """What a command makes of each source file: one output a source.

    Attributes:
        name: of the step, `audio`; names its journal.
        wants: whether a file in a folder, by its name, is a source.
        sources: what these are, for messages: `recordings`.
        rename: turns a source's path below the source folder, with slashes, into its output's;
            None for a step that makes no file a source, only notes in the journal.
        settings: what the outputs depend on besides their sources: plain JSON. With other
            settings everything is made again.
        work: runs in another process, so that it must be picklable (a top-level function, or a
            `functools.partial` of one). Called with the source and the path of a temporary file
            that has the output's suffix. Without `net` it writes that file, and may return plain
            JSON for the journal. With `net` it returns what `net` takes of this source. Raises
            an `InputError` for a source that cannot be used; any other `S2FError`, and an
            `OSError` from writing, ends the run.
        net: runs in this process, on several sources at once: a network on its device. Gives one
            value a source, or an `S2FError` that is the failure of this source alone; one that
            it raises ends the run.
        save: writes a value of `net` to the temporary file; an `OSError` ends the run.
        batch_size: of `net`.
        preload: modules that `work` needs, imported once for all workers.
    """

    name: str
    wants: Callable[[str], bool]
    sources: str
    rename: Callable[[str], str] | None
    settings: Mapping[str, Any]
    work: Callable[[Path, Path], Any]
    net: Callable[[list[Any]], list[Any]] | None = None
    save: Callable[[Any, Path], None] | None = None
    batch_size: int = 1
    preload: tuple[str, ...] = ()
