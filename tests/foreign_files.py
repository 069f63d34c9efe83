"""Weights as others publish them, written by hand: both layouts of Keras, and archives."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Layers = Mapping[str, Mapping[str, Any]]  # layer -> name of a weight as in the file -> array


def some_layers(n: int = 12) -> Layers:
    """Convolutions and a dense layer whose values differ in every axis."""
    rng = np.random.default_rng(0)
    layers = {}
    for name in ("conv2d", *(f"conv2d_{k}" for k in range(1, n)), "a_dense"):
        shapes = ((6, 2), (2,)) if name == "a_dense" else ((3, 2, 4, 5), (5,))
        kernel, bias = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
        layers[name] = {f"{name}/kernel:0": kernel, f"{name}/bias:0": bias}
    return layers


def write_legacy(
    path: Path, layers: Layers, *, root: str = "", split: bool = False, **attributes: Any
) -> Path:
    """Write a file as `save_weights` of Keras 2 does; `save` has `model_weights` as root."""
    with h5py.File(path, "w") as file:
        model = file.create_group(root) if root else file
        model.attrs.update(attributes)
        names = [name.encode() for name in layers]
        parts = {f"layer_names{k}": names[2 * k : 2 * k + 2] for k in range(len(names) // 2 + 1)}
        model.attrs.update(parts if split else {"layer_names": names})
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


def write_archive(path: Path, pickled: bytes) -> Path:
    """Write an archive as `torch.save` does, around any pickle at all."""
    parts = {"data.pkl": pickled, "data/0": bytes(16), "byteorder": b"little", "version": b"3\n"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(f"archive/{name}", data)
    return path


class Calls:
    """Pickled, calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def pickled(value: Any) -> bytes:
    """Pickle as `torch.save` does, in the protocol that its reader of plain tensors knows."""
    return pickle.dumps(value, protocol=2)


def obey(path: Path) -> Any:
    """Do what a file says, as a reader that is lied to or crashes; returns its `answer`."""
    tools = "import os, signal, sys, time\nfrom s2f.errors import CheckpointError, OutputError\n"
    scope: dict[str, Any] = {"path": path, "Path": Path}
    exec(tools + path.read_text(), scope)
    return scope.get("answer")
