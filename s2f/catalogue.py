"""What models there are and where: bundled, in the cache, in a folder. Without torch.

A model is a folder of checkpoints, KIND.safetensors each. The cache is a folder of models.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from s2f.errors import CheckpointError, UsageError
from s2f.header import KINDS as KINDS
from s2f.header import Facts, hash_file, read_facts, read_header

MODELS = Path(__file__).parent / "models"  # the bundled ones, a folder each
EVALUATION = "evaluation.md"
Where = Literal["bundled", "cache", "folder"]


@dataclass(frozen=True)
class Choice:
    """The files that a model is to be loaded from: there, of their kinds, not yet checked whole.

    Attributes:
        name: of the model.
        paths: of the checkpoints, by kind.
        hashes: of their tensors; threads work at them since the choice was made.
    """

    name: str
    paths: Mapping[str, Path]
    hashes: Mapping[str, "Future[str]"]


@dataclass(frozen=True)
class Entry:
    """A model and what the files in its folder say.

    Attributes:
        name: that `choose` knows it by.
        folder: where its checkpoints are.
        where: `bundled`, in the `cache`, or a `folder` elsewhere.
        networks: by kind; it may have only some.
        errors: what is wrong with the checkpoints that cannot be read, by kind.
        evaluation: what `s2f evaluate` found, its report.md, if it lies there as `EVALUATION`.
    """

    name: str
    folder: Path
    where: Where
    networks: Mapping[str, Facts]
    errors: Mapping[str, CheckpointError]
    evaluation: str | None


def cache() -> Path:
    """Name the folder of models that are not bundled; it need not be there."""
    if own := os.environ.get("S2F_MODELS"):
        return Path(own)
    # A user without a home has no cache, which is no error: `~` then stays as it is.
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(caches, "s2f", "models")


def choose(
    model: str | Path = "demo",
    kinds: Sequence[str] = KINDS,
    *,
    files: Mapping[str, Path] | None = None,
) -> Choice:
    """Find the checkpoints of a model, and begin to hash them.

    The threads that hash end with the program, whatever becomes of it.

    Args:
        model: a name, of a bundled model or else of one in the cache; or the path of a folder.
        kinds: networks that are wanted, as in `KINDS`.
        files: checkpoints by kind that take the place of the model's own. With one for every
            kind the model is not looked at.

    Raises:
        CheckpointError: if there is no such model, it lacks a network, or a file is not a
            checkpoint of its kind.
        UsageError: if a file is given of a kind that is not wanted.
    """
    given = {kind: Path(path) for kind, path in (files or {}).items()}
    for kind in given:
        if kind not in kinds:
            raise UsageError(
                f"{given[kind]}: is given as {kind}; only {' and '.join(kinds)} are used here",
                hint="leave it out",
            )
    mixed = [f"{kind} of {path.absolute().parent.name}/{path.name}" for kind, path in given.items()]
    name, paths = " + ".join(mixed), given
    if given.keys() != set(kinds):
        own, folder, _ = _find(model)
        name = f"{own}, but {name}" if given else own
        paths = {kind: given.get(kind, folder / f"{kind}.safetensors") for kind in kinds}
    for kind, path in paths.items():
        read_header(path, kind)  # refused now, not after a second of importing torch
    return Choice(name, paths, {kind: _hash(path) for kind, path in paths.items()})


def entries(*models: str | Path) -> list[Entry]:
    """List what some models hold; by default all that are bundled or in the cache.

    Raises:
        CheckpointError: if there is no such model; a damaged file is listed instead.
    """
    found = [_find(model) for model in models]
    if not models:
        found = [(name, folder, "bundled") for name, folder in _models(MODELS).items()]
        bundled = {name for name, _, _ in found}
        for name, folder in _models(cache()).items():  # behind a bundled name, by its path alone
            found.append((str(folder) if name in bundled else name, folder, "cache"))
    listed = []
    for name, folder, where in found:
        networks, errors = {}, {}
        for kind in _kinds(folder):
            try:
                networks[kind] = read_facts(folder / f"{kind}.safetensors", kind)
            except CheckpointError as error:
                errors[kind] = error
        text = folder / EVALUATION
        evaluation = text.read_text(encoding="utf-8", errors="replace") if text.is_file() else None
        listed.append(Entry(name, folder, where, networks, errors, evaluation))
    return listed


def _find(model: str | Path) -> tuple[str, Path, Where]:
    """Find the name, the folder and the kind of place of a model."""
    bundled = _models(MODELS)
    if model in bundled:
        return str(model), MODELS / model, "bundled"
    cached = _models(cache())
    if model in cached:
        return str(model), cached[str(model)], "cache"
    if os.path.isdir(model):
        return Path(model).resolve().name, Path(model), "folder"
    raise CheckpointError(
        f"{model}: is neither a bundled model ({', '.join(bundled)}), nor one in the cache "
        f"{cache()} ({', '.join(cached) or 'none'}), nor a folder of checkpoints",
        hint=f"a model folder holds {', '.join(f'{kind}.safetensors' for kind in KINDS)}",
    )


def _models(folder: Path) -> dict[str, Path]:
    """List the models in a folder of models by name; one is a folder with a checkpoint."""
    if not os.path.isdir(folder):
        return {}
    return {p.name: p for p in sorted(folder.iterdir()) if p.name[0] != "." and _kinds(p)}


def _kinds(folder: Path) -> list[str]:
    return [kind for kind in KINDS if os.path.lexists(folder / f"{kind}.safetensors")]


def _hash(path: Path) -> "Future[str]":
    """Hash a file in a thread that nobody waits for when the program ends: no executor's."""
    future: Future[str] = Future()

    def work() -> None:
        try:
            future.set_result(hash_file(path))
        except BaseException as error:  # whoever asks for the result gets it
            future.set_exception(error)

    threading.Thread(target=work, name=f"hash {path.name}", daemon=True).start()
    return future
