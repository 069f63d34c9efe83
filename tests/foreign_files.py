"""Weights as others publish them, written by hand: both layouts of Keras, and archives."""

import itertools
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

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


def old_parts(path: Path) -> list[bytes]:
    """Split a file of `torch.save` of before 1.6: five pickles, and the values."""
    data, ends = path.read_bytes(), [0]
    for _ in range(5):
        *_, (_, _, stop) = pickletools.genops(data[ends[-1] :])
        ends.append(ends[-1] + int(stop or 0) + 1)
    return [data[i:j] for i, j in itertools.pairwise([*ends, len(data)])]


def obey(path: Path) -> Any:
    """Do what a file says, as a reader that is lied to or crashes; returns its `answer`."""
    tools = "import os, signal, sys, time\nfrom s2f.errors import CheckpointError, OutputError\n"
    scope: dict[str, Any] = {"path": path, "Path": Path}
    exec(tools + path.read_text(), scope)
    return scope.get("answer")


def zipped(*names: str) -> Any:
    """Write a zip archive of entries that hold little."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"little")

    return write


def bytes_of(data: bytes) -> Any:
    return lambda path: path.write_bytes(data)


def cut(path: Path) -> None:
    """The first half of what `torch.save` wrote: a download that broke off."""
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


def script(path: Path) -> None:
    with warnings.catch_warnings():  # it goes out of use
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(path))


def page(title: str, text: str = "") -> Any:
    return bytes_of(f"<!DOCTYPE html><html><head><title>{title}</title>{text}".encode())


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 580070376\n"
QUOTA = page("Google Drive - Quota exceeded", "Sorry, too many users have viewed this file")
# What people have in the place of weights: how it comes to be, what it is called, and the cure.
NOT_WEIGHTS: dict[str, tuple[Any, str, str]] = {
    "quota page": (QUOTA, "is a web page: 'Google Drive - Quota exceeded'", "try again tomorrow"),
    "virus page": (page("Google Drive - Virus scan warning"), "is a web page", "with a browser"),
    "other page": (page("deepface at main"), "a web page: 'deepface at main'", "not the page"),
    "refusal": (bytes_of(b"<?xml version='1.0'?><Error>AccessDenied"), "web page", "the file"),
    "LFS": (bytes_of(LFS), "is a pointer of Git LFS", "git lfs pull"),
    "annex": (bytes_of(b"/annex/objects/SHA256E-s5--00.h5\n"), "of git-annex", "git annex get"),
    "JSON": (bytes_of(b'{"weight_map": {}}'), "is a JSON text", "file of weights itself"),
    "TorchScript": (script, "is a TorchScript program", "torch.jit.load"),
    "program": (zipped("m/archive_format", "m/models/model.json"), "torch.export", "state_dict"),
    "npz": (zipped("a.npy", "b.npy"), "NumPy's arrays", "wanted Keras"),
    "zip": (zipped("vgg/README", "vgg/vgg.h5"), "holds 'vgg/vgg.h5'", "unzip it"),
    "other zip": (zipped("word/document.xml"), "none of torch.save, and holds", "wanted"),
    "keras": (zipped("config.json", "model.weights.h5"), "a .keras archive", "model.weights.h5"),
    "cut off": (cut, "is a damaged zip archive: it has no end", "download it again"),
    "empty": (bytes_of(b""), "is empty", "download it again"),
    "zeros": (bytes_of(bytes(5000)), "begins with zeros", "download it again"),
    "MATLAB 5": (bytes_of(b"MATLAB 5.0 MAT-file, Platform"), "MATLAB", "vgg_face_weights.h5"),
    "MATLAB 7": (
        bytes_of(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n"), "MATLAB", "published",
    ),
    "NumPy": (bytes_of(b"\x93NUMPY\x01\x00"), "is an array of NumPy", "wanted Keras"),
    "gzip": (bytes_of(b"\x1f\x8b\x08\x00"), "packed with gzip", "unpack it"),
    "tar": (bytes_of(b"vgg.h5".ljust(257, b"\0") + b"ustar"), "is a tar archive", "unpack it"),
    "pickle": (bytes_of(pickle.dumps([1])), "a bare pickle", "model.state_dict()"),
    "ONNX": (bytes_of(b"\x08\x07\x12\x07pytorch\x1a\x03"), "is an ONNX model", "made of"),
    "SavedModel": (bytes_of(b"\x08\x01\x12\xd0\x01\n\x02"), "SavedModel of TensorFlow", "Keras"),
    "a graph.pb": (bytes_of(b"\n\x0a\n\x03\x00"), "graph of TensorFlow, by its name", "Keras"),
    "a.t7": (bytes_of(b"\x04\0\0\0\x01"), "Torch 7", "VGG-Face is also published"),
}  # fmt: skip
