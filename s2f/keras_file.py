"""Keras weights in HDF5, with h5py alone: `save_weights`, `save` and `.weights.h5` alike.

Runs in a process of its own (see `confined`). Two layouts, told apart by what the file holds:

- legacy: the attribute `layer_names` at the root or in `model_weights`, a group a layer with the
  attribute `weight_names`, and datasets at those names. The order is that of the attributes.
- Keras 3 (and `.weights.h5` of Keras 2): `layers/KEY/vars/0`, `/1` ..., where KEY is the class
  with a number (`conv2d`, `conv2d_1`, `conv2d_10`); Keras 3 notes the layer's name at `vars`. The
  order of the model is lost: layers come by class, alphabetically, and by number within a class.

Links are followed only where they lie in the file and cannot lead out of it, datasets are read
only where their bytes lie in the file, and both are checked before any value is read.

Source: files written by Keras 2.15 and 3.15.
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from s2f.unpacked import PIECE, Unpacked

LAYERS = ("layers", "_layer_checkpoint_dependencies")  # containers of the new layout
ENDINGS = {"W": "kernel", "b": "bias"}  # of old names, as in conv1_1_W
VARIABLES = {  # names that the new layout leaves out, by class of layer and number of weights
    ("conv2d", 1): ("kernel",),
    ("conv2d", 2): ("kernel", "bias"),
    ("dense", 1): ("kernel",),
    ("dense", 2): ("kernel", "bias"),
    ("batch_normalization", 4): ("gamma", "beta", "moving_mean", "moving_variance"),
}
FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
MAX_CHUNK = 64 * 2**20  # bytes of a chunk once unpacked
MAX_ATTRIBUTE = 16 * 2**20  # bytes of one
MAX_DEPTH = 16  # models within models
MAX_GROUPS = 100_000


def unpack(path: Path, folder: Path, write: bool) -> dict[str, Any]:
    """List the tensors of a file, in the order of its layers, and write their values if wanted.

    Returns:
        `kind`, `tensors` as `Unpacked` has them, `order` of the layers, and `values`: the
        attributes `backend` and `keras_version`, where there are such.

    Raises:
        CheckpointError: if the file is no such file, or not to be trusted.
    """
    with Unpacked(path, folder, write) as out, h5py.File(path, "r", locking=False) as file:
        reader = _Reader(out)
        model = reader.at(file, "model_weights") if "model_weights" in file.keys() else file
        if "layer_names" in model.attrs or "layer_names0" in model.attrs:
            order = reader.read_legacy(model)
        elif any(name in file.keys() for name in LAYERS):
            order = reader.read_layers(file)
        else:
            raise out.refuse("is an HDF5 file, but holds no Keras weights")
        if not order:
            raise out.refuse("holds no weights")
        return {
            "kind": "keras",
            "tensors": out.tensors,
            "order": order,
            "values": reader.facts(model),
        }


class _Reader:
    def __init__(self, out: Unpacked) -> None:
        self._out = out
        self._groups = 0

    def read_legacy(self, model: h5py.Group) -> list[str]:
        """Read the layers that `layer_names` lists; returns those with weights."""
        if self.facts(model).get("backend") == "theano":
            raise self._out.refuse(
                "was written by Theano, which flips the kernels of convolutions",
                "load it with Keras on TensorFlow, and save it again",
            )
        layers = self._names(model, "layer_names")
        if "top_level_model_weights" in model.keys():  # of the model itself; it is no layer
            layers.append("top_level_model_weights")
        order = []
        for layer in layers:
            group = self.at(model, layer)
            paths = self._names(group, "weight_names")
            for path, weight in zip(paths, _weights(layer, paths), strict=True):
                self._read(f"{layer}/{weight}", self.at(group, path))
            if paths:
                order.append(layer)
        return order

    def read_layers(self, group: h5py.Group, within: str = "", depth: int = 0) -> list[str]:
        """Read the layers of a model in the new layout, those of models within it too."""
        if depth > MAX_DEPTH:
            raise self._out.refuse(f"nests groups more than {MAX_DEPTH} deep")
        order = []
        for container in (name for name in LAYERS if name in group.keys()):
            layers = self.at(group, container)
            for key in sorted(layers.keys(), key=_by_number):
                layer = self.at(layers, key)
                name = f"{within}{key}"
                if "vars" in layer.keys():
                    variables = self.at(layer, "vars")
                    if "name" in variables.attrs:
                        name = f"{within}{self._text(variables, 'name')}"
                    order += self._variables(name, _by_number(key)[0], variables)
                order += self.read_layers(layer, f"{name}/", depth + 1)
        return order

    def _variables(self, layer: str, kind: str, group: h5py.Group) -> list[str]:
        numbers = sorted(group.keys(), key=_by_number)
        names = VARIABLES.get((kind, len(numbers)), numbers)
        for number, name in zip(numbers, names, strict=True):
            self._read(f"{layer}/{name}", self.at(group, number))
        return [layer] if numbers else []

    def facts(self, model: h5py.Group) -> dict[str, str]:
        """Read what the file says of the program that wrote it."""
        names = ("backend", "keras_version")
        return {name: self._text(model, name) for name in names if name in model.attrs}

    def at(self, group: h5py.Group, path: str) -> Any:
        """Go down a path that stays in the file.

        Raises:
            CheckpointError: if it does not, or leads nowhere.
        """
        for part in filter(None, path.split("/")):
            self._groups += 1
            link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
            if link is None or self._groups > MAX_GROUPS:
                raise self._out.refuse(f"lists {path!r} but holds no such group or dataset")
            if not isinstance(link, h5py.HardLink):
                raise self._out.refuse(
                    f"{path!r} is a link to elsewhere ({type(link).__name__})",
                    "wanted a file that holds its weights itself",
                )
            group = group[part]
        return group

    def _text(self, group: h5py.Group, name: str) -> str:
        value = self._attribute(group, name)
        if not isinstance(value, str | bytes):
            raise self._out.refuse(f"its attribute {name!r} is not text")
        return _decoded(value)

    def _names(self, group: h5py.Group, attribute: str) -> list[str]:
        """Read a list of names, which Keras splits into several attributes if it is long."""
        attributes = [attribute]
        if attribute not in group.attrs:
            if f"{attribute}0" not in group.attrs:
                raise self._out.refuse(f"{group.name!r} has no attribute {attribute!r}")
            attributes = []
            while (part := f"{attribute}{len(attributes)}") in group.attrs:
                attributes.append(part)
        found: list[str] = []
        for part in attributes:
            values = np.asarray(self._attribute(group, part))
            if values.size and values.dtype.kind not in "OSU":
                raise self._out.refuse(f"its attribute {part!r} is not a list of names")
            found += [_decoded(value) for value in values.reshape(-1).tolist()]
        if len(set(found)) < len(found):
            raise self._out.refuse(f"its attribute {attribute!r} lists a name twice")
        return found

    def _attribute(self, group: h5py.Group, name: str) -> Any:
        declared = group.attrs.get_id(name)
        if math.prod(declared.shape or ()) * declared.dtype.itemsize > MAX_ATTRIBUTE:
            raise self._out.refuse(f"its attribute {name!r} declares {declared.shape} values")
        return group.attrs[name]

    def _read(self, name: str, dataset: Any) -> None:
        """Check one dataset, and write its values if they are wanted."""
        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
            raise self._out.refuse(f"{name!r} is no array")
        dtype = dataset.dtype
        if dtype.kind == "f" and dtype.itemsize <= 8:
            kept = "float32"
        elif dtype.kind in "iu":
            kept = dtype.newbyteorder("=").name
        else:
            raise self._out.refuse(f"{name!r} holds {dtype}; wanted numbers")
        self._check_storage(name, dataset)
        if self._out.declare(name, kept, dataset.shape):
            self._out.write(_pieces(dataset))

    def _check_storage(self, name: str, dataset: h5py.Dataset) -> None:
        """Make sure that all bytes of a dataset lie in this file and unpack to what it says."""
        declared = math.prod(dataset.shape) * dataset.dtype.itemsize
        plan = dataset.id.get_create_plist()
        layout, size = plan.get_layout(), self._out.path.stat().st_size
        if layout == h5py.h5d.VIRTUAL or plan.get_external_count():
            raise self._out.refuse(
                f"{name!r} lies in other files", "wanted a file that holds its weights itself"
            )
        if layout != h5py.h5d.CHUNKED:
            held = dataset.id.get_storage_size()
            start = dataset.id.get_offset() if layout == h5py.h5d.CONTIGUOUS else 0
            if declared and (held != declared or start is None or start + held > size):
                raise self._out.refuse(
                    f"{name!r} declares {declared} bytes, {tuple(dataset.shape)}, and holds "
                    f"{min(held, size)} of them",
                    "the file is cut off: copy or download it again",
                )
            return
        chunk = math.prod(dataset.chunks) * dataset.dtype.itemsize
        if chunk > MAX_CHUNK:
            raise self._out.refuse(f"{name!r} has chunks of {chunk} bytes; wanted {MAX_CHUNK}")
        filters = [plan.get_filter(k)[0] for k in range(plan.get_nfilters())]
        if unknown := set(filters) - set(FILTERS):
            raise self._out.refuse(
                f"{name!r} is packed with filter {min(unknown)}; "
                f"wanted none, or {', '.join(FILTERS.values())}"
            )


def _weights(layer: str, paths: Sequence[str]) -> list[str]:
    """Name the weights of a layer as Keras names them today, whatever the scopes before that."""
    names = [re.sub(r":\d+$", "", path).rpartition("/")[2] for path in paths]
    if len(set(names)) < len(names):  # of a model within the model: its layers tell them apart
        return [re.sub(r":\d+$", "", path).removeprefix(f"{layer}/") for path in paths]
    plain = [name.removeprefix(f"{layer}_") for name in names]
    return [ENDINGS.get(name, name) for name in plain]


def _by_number(key: str) -> tuple[str, int]:
    """Split `conv2d_10` into its class and number, `conv2d` is number 0; `12` is a number."""
    if key.isdecimal():
        return "", int(key)
    kind, _, number = key.rpartition("_")
    return (kind, int(number)) if kind and number.isdecimal() else (key, 0)


def _decoded(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _pieces(dataset: h5py.Dataset) -> Iterator[np.ndarray[Any, Any]]:
    """Read a dataset in its order, some rows at a time: whole rows of chunks where it has them."""
    if not dataset.shape:
        yield dataset[()]
        return
    row = max(1, math.prod(dataset.shape[1:]) * dataset.dtype.itemsize)
    step = max(1, PIECE // row)
    if dataset.chunks:
        step = -(-step // dataset.chunks[0]) * dataset.chunks[0]
    for start in range(0, dataset.shape[0], step):
        yield dataset[start : start + step]
