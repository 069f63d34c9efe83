"""Weights as others publish them, written by hand: both layouts of Keras, and archives."""

import io
import os
import pickle
import signal
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from s2f.errors import CheckpointError, OutputError

Layers = Mapping[str, Mapping[str, Any]]  # layer -> name of a weight as in the file -> array


def some_layers(n: int = 12) -> Layers:
    """Convolutions and a dense layer whose values differ in every axis."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    names = ["conv2d", *(f"conv2d_{k}" for k in range(1, n))]
    layers = {
        name: {f"{name}/kernel:0": normal(3, 2, 4, 5), f"{name}/bias:0": normal(5)}
        for name in names
    }
    return {**layers, "a_dense": {"a_dense/kernel:0": normal(6, 2), "a_dense/bias:0": normal(2)}}


def write_legacy(
    path: Path, layers: Layers, *, root: str = "", split: bool = False, **attributes: Any
) -> Path:
    """Write a file as `save_weights` of Keras 2 does; `save` has `model_weights` as root."""
    with h5py.File(path, "w") as file:
        model = file.create_group(root) if root else file
        for name, value in attributes.items():
            model.attrs[name] = value
        names = [name.encode() for name in layers]
        if split:
            for k in range(0, len(names), 2):
                model.attrs[f"layer_names{k // 2}"] = names[k : k + 2]
        else:
            model.attrs["layer_names"] = names
        for layer, weights in layers.items():
            group = model.require_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in weights]
            for name, value in weights.items():
                group[name] = value
    return path


def write_layers(path: Path, layers: Layers, container: str = "layers") -> Path:
    """Write a `.weights.h5` as Keras 3 does: by class and number, the values without names."""
    with h5py.File(path, "w") as file:
        for layer, weights in layers.items():
            variables = file.create_group(f"{container}/{layer}/vars")
            for k, value in enumerate(weights.values()):
                variables[str(k)] = value
    return path


def write_archive(path: Path, pickled: bytes, method: int = zipfile.ZIP_STORED) -> Path:
    """Write an archive as `torch.save` does, around any pickle at all."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", bytes(16))
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    return path


class Calls:
    """Pickled, calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def pickled(value: Any) -> bytes:
    """Pickle as `torch.save` does, in the protocol that its reader of plain tensors knows."""
    buffer = io.BytesIO()
    pickle.Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def obey(path: Path) -> Any:
    """Do what a file says, as a reader that is lied to or crashes."""
    what, held = path.read_text(), []
    if what == "refuse":
        raise CheckpointError("is wrong", hint="mend it")
    if what == "full":
        raise OutputError("disk full", hint="free some")
    if what == "bug":
        raise ZeroDivisionError("of all\nthings")
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "exit":
        os._exit(3)
    if what == "memory":
        held.append(bytearray(300_000_000))
    while what == "slowly more memory":
        held.append(bytearray(1_000_000))
    while what == "busy":
        pass
    if what == "note":
        path.with_name("note").write_text(str(os.getpid()))
    if what in ("asleep", "note"):
        time.sleep(60)
    sys.stderr.write("noise")
    os.write(1, b"noise")
    fds = Path("/proc/self/fd")
    return path.name, [str(fd.readlink()) for fd in fds.iterdir() if fd.is_symlink()]
