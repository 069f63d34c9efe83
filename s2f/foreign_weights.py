"""A function in a fresh process that may take so much memory and time, and no more.

For files that others made: what reads them may crash, hang or be lied to about sizes, and costs
this process neither its life nor its memory. The process inherits no open file and answers by a
file of JSON. Memory is limited on Linux and processor time on every system but Windows; the time
on the clock is limited everywhere. This is no sandbox: it guards against accidents of parsers.

Tensors on their way out of a foreign file: declared, checked, then written piece by piece.

What a file declares is bounded by the file's own size before anything is allocated. A piece is a
few megabytes, so that the largest file takes no more memory than the smallest.

Keras weights in HDF5, with h5py alone: `save_weights`, `save` and `.weights.h5` alike.

Runs in a process of its own (see `confined`). Two layouts, told apart by what the file holds:

- legacy: the attribute `layer_names` at the root or in `model_weights`, a group a layer with the
  attribute `weight_names`, and datasets at those names. The order is that of the attributes.
- Keras 3 (and `.weights.h5` of Keras 2): `layers/KEY/vars/0`, `/1` ..., where KEY is the class
  with a number (`conv2d`, `conv2d_1`, `conv2d_10`); Keras 3 notes the layer's name at `vars`. The
  order of the model is lost: layers come by class, alphabetically, and by number within a class.

Links are followed only where they lie in the file and cannot lead out of it, datasets are read
only where their bytes lie in the file, and both are checked before any value is read.

Source: files written by Keras 2.15 and 3.15.

Weights in `.pt` files of PyTorch: plain tensors, and never a line of code.

Runs in a process of its own (see `confined`). The zip archive is checked before PyTorch opens it;
`torch.load` then unpickles with `weights_only`, maps the file, and copies nothing. A tensor is read
only if its values lie in the file as often as it says.

Weights that others published, read without trust: Keras's HDF5 and PyTorch's `.pt`.

A file is known by its first bytes, not by its name, and opened in a process of its own with limits
on memory and time (`confined`). The values come over in a temporary file that this process maps.
Knows nothing of networks: names and layouts are those of the file.
"""

import ctypes
import importlib
import json
import math
import mmap
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor

from s2f.errors import CheckpointError, OutputError, S2FError

START_SECONDS = 60.0  # on the clock, to import what the function needs from a slow disk
ANSWER = "answer.json"
ERRORS: Mapping[str, type[S2FError]] = {
    "CheckpointError": CheckpointError,
    "OutputError": OutputError,
}
HINT = "copy or download the file again; it may be damaged, or made to do harm"
# Threads reserve memory, plugins are code beside the file, and neither is needed.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HDF5_PLUGIN_PRELOAD": "::"}


def call(
    module: str, path: Path, folder: Path, *, write: bool, megabytes: int, seconds: float
) -> dict[str, Any]:
    """Call `unpack(path, folder, write)` of a module in a process of its own.

    Args:
        module: its full name; imported there only.
        path: the file that it reads; named in messages.
        folder: an empty one for what it writes.
        write: handed on.
        megabytes: that it may take beyond what its imports take.
        seconds: of processor time that it may take beyond its imports.

    Returns:
        What the function returned: a dict of what JSON has.

    Raises:
        CheckpointError: if the process died or took too much, or the function raised it.
        OutputError: if the function raised it.
    """
    request = [module, str(path), str(folder), write, megabytes, seconds, os.getpid()]
    package = str(Path(__file__).parents[1])
    places = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        done = subprocess.run(
            # -P: nothing is imported from the folder that the user happens to be in
            [sys.executable, "-P", "-m", "s2f.foreign_weights", json.dumps(request)],
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(places)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=START_SECONDS + seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(f"{path}: took more than {seconds:g} s to read", hint=HINT) from error
    try:
        answer = json.loads((folder / ANSWER).read_bytes())
    except (OSError, ValueError):
        raise _death(path, done.returncode, done.stderr, seconds) from None
    if "error" in answer:
        raise ERRORS[answer["error"]](answer["message"], hint=answer["hint"])
    return dict(answer["result"])


def _death(path: Path, code: int, stderr: bytes, seconds: float) -> CheckpointError:
    if os.name == "posix" and code == -signal.SIGXCPU:
        return CheckpointError(f"{path}: took more than {seconds:g} s to read", hint=HINT)
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    last = stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
    said = f": {last}" if last else ""
    return CheckpointError(f"{path}: the process that read it died ({how}){said}", hint=HINT)


def _serve(request: str) -> None:
    """Work in the process: limit it, call the function, leave the answer."""
    module, source, folder, write, megabytes, seconds, parent = json.loads(request)
    _die_with(parent)
    function = importlib.import_module(module).unpack
    _limit(megabytes, seconds)
    path, answer = Path(source), Path(folder, ANSWER)
    told: dict[str, Any]
    try:
        told = {"result": function(path, Path(folder), write)}
    except S2FError as error:
        told = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    except MemoryError:
        message = f"{path}: needs more than {megabytes} MB to read"
        told = {"error": "CheckpointError", "message": message, "hint": HINT}
    except Exception as error:  # libraries raise anything at all on bytes made to confuse them
        first = (str(error).strip().splitlines() or [""])[0][:200]
        message = f"{path}: cannot be read: {type(error).__name__}: {first}"
        told = {"error": "CheckpointError", "message": message, "hint": HINT}
    answer.write_text(json.dumps(told), encoding="utf-8")


def _die_with(parent: int) -> None:
    """End when the process that asked ends, even if it is killed; only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def _limit(megabytes: int, seconds: float) -> None:
    if os.name != "posix":
        return
    import resource  # there is none on Windows

    def lower(kind: int, soft: int, hard: int) -> None:
        bound = resource.getrlimit(kind)[1]  # that of the user's shell, which none may raise
        if bound != resource.RLIM_INFINITY:
            soft, hard = min(soft, bound), min(hard, bound)
        resource.setrlimit(kind, (soft, hard))

    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = round(used.ru_utime + used.ru_stime + seconds + 0.5)
    lower(resource.RLIMIT_CPU, cpu, cpu + 1)
    lower(resource.RLIMIT_CORE, 0, 0)
    with suppress(FileNotFoundError):  # only Linux has it, and only Linux minds the limit
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        room = pages * os.sysconf("SC_PAGE_SIZE") + megabytes * 2**20
        lower(resource.RLIMIT_AS, room, room)


if __name__ == "__main__":
    _serve(sys.argv[1])

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


def unpack_keras(path: Path, folder: Path, write: bool) -> dict[str, Any]:
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
            self._out.write(_keras_pieces(dataset))

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


def _keras_pieces(dataset: h5py.Dataset) -> Iterator[np.ndarray[Any, Any]]:
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


STATES = ("model_state_dict", "state_dict")  # keys of a training checkpoint's weights
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # they become float32
MAX_ENTRIES = 100_000  # of the archive: three a parameter with Adam's state
MAX_VALUE = 1_000_000  # characters of a top-level value as JSON
RESAVE = "load it where it was made, and save model.state_dict() with torch.save"


def unpack_torch(path: Path, folder: Path, write: bool) -> dict[str, Any]:
    """List the tensors of a state dict, bare or in a training checkpoint, and write their values.

    Returns:
        `kind`, `tensors` as `Unpacked` has them, `order` (empty: a state dict has no layers), and
        `values`: what stands beside the state dict and is plain. Other tensors, such as an
        optimizer's, are left out.

    Raises:
        CheckpointError: if the file is no such file, or not to be trusted.
    """
    with Unpacked(path, folder, write) as out:
        _check_archive(out)
        loaded = _load(out)
        key = next((name for name in STATES if isinstance(loaded.get(name), Mapping)), None)
        state = loaded if key is None else loaded[key]
        for name, tensor in state.items():
            if isinstance(tensor, Tensor):
                _read(out, str(name), tensor)
            elif key is not None:
                raise out.refuse(f"{name!r} in {key} is no tensor but a {type(tensor).__name__}")
        if not out.tensors:
            raise out.refuse("holds no tensors under names", RESAVE)
        values = {
            str(name): value
            for name, value in loaded.items()
            if name != key and not isinstance(value, Tensor) and _is_plain(value)
        }
        return {"kind": "torch", "tensors": out.tensors, "order": [], "values": values}


def _load(out: Unpacked) -> Mapping[Any, Any]:
    try:
        loaded = torch.load(out.path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+\w)", str(error))
        seen = f" (it asks for {asked[1]})" if asked else ""
        raise out.refuse(f"holds more than plain tensors and values{seen}", RESAVE) from error
    if not isinstance(loaded, Mapping):
        raise out.refuse(f"holds a {type(loaded).__name__}; wanted a state dict", RESAVE)
    return loaded


def _check_archive(out: Unpacked) -> None:
    """Make sure that the archive is one of `torch.save` and unpacks to no more than it is."""
    try:
        with zipfile.ZipFile(out.path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as error:
        raise out.refuse(
            f"is a damaged zip archive: {error}", "copy or download it again"
        ) from error
    names = [entry.filename for entry in entries]
    if len(names) > MAX_ENTRIES or len(set(names)) < len(names):
        raise out.refuse(f"holds {len(names)} entries, {len(set(names))} of different names")
    if "model.weights.h5" in names:
        raise out.refuse("is a .keras archive", "unzip it, and give the model.weights.h5 in it")
    size = out.path.stat().st_size
    total = 0
    for entry in entries:
        total += entry.file_size
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise out.refuse(f"{entry.filename!r} in it is compressed; torch.save never does that")
        if entry.flag_bits & 1 or total > size or entry.header_offset + entry.file_size > size:
            raise out.refuse(f"{entry.filename!r} in it is encrypted, or larger than the file")
        if not re.fullmatch(r"[^/\\]+(/[^/\\]+)+", entry.filename) or ".." in entry.filename:
            raise out.refuse(f"{entry.filename!r} in it is no name that torch.save gives", RESAVE)
    kinds = {name.partition("/")[2] for name in names}
    if "constants.pkl" in kinds:
        raise out.refuse("is a TorchScript program; wanted a state dict", RESAVE)
    if "data.pkl" not in kinds or len({name.partition("/")[0] for name in names}) > 1:
        raise out.refuse("is a zip archive, but none of torch.save", RESAVE)
    _check_order(out, next(entry for entry in names if entry.endswith("/data.pkl")))


def _check_order(out: Unpacked, pickled: str) -> None:
    name = f"{pickled.partition('/')[0]}/byteorder"  # files before torch 2.1 have none
    with zipfile.ZipFile(out.path) as archive:
        if name in archive.namelist() and archive.read(name).decode() != sys.byteorder:
            raise out.refuse("was written on a machine of another byte order", RESAVE)


def _read(out: Unpacked, name: str, tensor: Tensor) -> None:
    """Check one tensor, and write its values if they are wanted."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise out.refuse(f"tensor {name!r} is sparse, quantised or has no values", RESAVE)
    if tensor.dtype not in FLOATS and dtype not in KEPT:
        raise out.refuse(f"tensor {name!r} holds {dtype}; wanted numbers", RESAVE)
    declared, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if declared > held:
        raise out.refuse(
            f"tensor {name!r} declares {declared} bytes, {tuple(tensor.shape)}, and holds {held}"
        )
    kept = "float32" if tensor.dtype in FLOATS else dtype
    if out.declare(name, kept, tensor.shape):
        out.write(_torch_pieces(tensor.detach()))


def _torch_pieces(tensor: Tensor) -> Iterator[np.ndarray[Any, Any]]:
    """Read a tensor in its order, some rows at a time."""
    rows = tensor if tensor.dim() else tensor[None]
    row = max(1, math.prod(rows.shape[1:]) * rows.element_size())
    step = max(1, PIECE // row)
    for start in range(0, len(rows), step):
        piece = rows[start : start + step]
        yield (piece.float() if piece.dtype in FLOATS else piece).numpy()
        if piece.is_contiguous():
            _release(piece)


def _release(tensor: Tensor) -> None:
    """Give back the memory of a mapped piece of the file; read again, it comes back."""
    if sys.platform != "linux":
        return
    page, advice = mmap.PAGESIZE, 4  # MADV_DONTNEED
    first = -(-tensor.data_ptr() // page) * page
    last = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // page * page
    if last > first:
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), advice)


def _is_plain(value: object) -> bool:
    """Tell whether a value is what JSON has, and not too much of it."""
    try:
        length = 0
        for piece in json.JSONEncoder().iterencode(value):  # lists of one list grow without end
            length += len(piece)
            if length > MAX_VALUE:
                return False
        return True
    except (TypeError, ValueError, RecursionError):
        return False


MEGABYTES = 448  # that reading may take beyond what the libraries take
SECONDS, BYTES_PER_SECOND = 6.0, 25e6  # that reading may take, in all and for the size
READERS = {"keras": "s2f.foreign_weights", "torch": "s2f.foreign_weights"}
WANTED = "wanted Keras weights (.h5), or a .pt of torch.save"
SAFETENSORS_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """Foreign weights as they lie in their file: plain tensors under their own names.

    Attributes:
        kind: `keras` or `torch`.
        tensors: by name; float32 where the file has floats of any size, integers and booleans as
            they are; in the file's own layout, each contiguous. The names are `LAYER/WEIGHT` with
            WEIGHT one of kernel, bias, gamma ... (keras), or the keys of the state dict (torch).
        order: the layers that have weights, in the order that the file gives (keras), see
            `keras_file`; empty for torch.
        values: what else the file says and is plain: `backend` and `keras_version` (keras), or
            what stands beside the state dict (torch: `epoch`, `fine_tune_epoch_start` ...).
    """

    kind: str
    tensors: Mapping[str, Tensor]
    order: tuple[str, ...]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class TensorInfo:
    """What a file says of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Inspection:
    """What a file holds, as it says itself.

    Attributes:
        kind: `keras`, `torch` or `safetensors`; of a checkpoint of ours `voice_encoder`,
            `face_encoder` or `face_decoder`.
        tensors: in the order of the file; foreign floats are listed as float32, which they become.
        values: as in `Weights`; of a checkpoint of ours, its header: `config`, `preprocessing`,
            `embedding_space`, `card`, `sha256` and versions.
    """

    path: Path
    kind: str
    tensors: tuple[TensorInfo, ...]
    values: Mapping[str, Any]


def read_foreign(
    path: Path, *, megabytes: int = MEGABYTES, seconds: float | None = None
) -> Weights:
    """Read the weights of a foreign file; its type is found by its content.

    Args:
        path: HDF5 that Keras wrote, or a zip archive that `torch.save` wrote.
        megabytes: that reading may take beyond what the libraries, and mapping the file, take.
        seconds: of processor time that reading may take; by default, by the file's size.

    Raises:
        CheckpointError: if the file is missing, of another type, damaged, larger than it may be,
            holds code, or values that are no numbers.
        OutputError: if the folder for temporary files has no room for the values.
    """
    with tempfile.TemporaryDirectory(prefix="s2f-", ignore_cleanup_errors=True) as folder:
        answer = _unpack(path, _foreign_kind(path), Path(folder), True, megabytes, seconds)
        data = Path(folder, DATA)
        flat = torch.from_file(str(data), size=data.stat().st_size, dtype=torch.uint8)
    tensors = {}
    for name, dtype_name, shape, start in answer["tensors"]:
        dtype = getattr(torch, dtype_name)
        n_bytes = dtype.itemsize * torch.Size(shape).numel()
        tensors[name] = flat[start : start + n_bytes].view(dtype).view(shape)
    return Weights(answer["kind"], tensors, tuple(answer["order"]), answer["values"])


def inspect(path: Path, *, megabytes: int = MEGABYTES, seconds: float | None = None) -> Inspection:
    """Find out what a file holds without reading the values of its tensors.

    Args:
        path: as in `read`, or a safetensors file, such as a checkpoint of ours.
        megabytes: as in `read`.
        seconds: as in `read`.

    Raises:
        CheckpointError: as `read`; what only the values show stays unknown.
    """
    if _kind(path) == "safetensors":
        return _inspect_safetensors(path)
    with tempfile.TemporaryDirectory(prefix="s2f-") as folder:
        answer = _unpack(path, _foreign_kind(path), Path(folder), False, megabytes, seconds)
    listed = tuple(
        TensorInfo(name, dtype, tuple(shape)) for name, dtype, shape, _ in answer["tensors"]
    )
    return Inspection(path, answer["kind"], listed, answer["values"])


def _unpack(
    path: Path, kind: str, folder: Path, write: bool, megabytes: int, seconds: float | None
) -> dict[str, Any]:
    size = path.stat().st_size
    if kind == "torch":
        megabytes += size // 2**20 + 1  # PyTorch maps the file, which counts
    return call(
        READERS[kind],
        path,
        folder,
        write=write,
        megabytes=megabytes,
        seconds=SECONDS + min(size, MAX_BYTES) / BYTES_PER_SECOND if seconds is None else seconds,
    )


def _foreign_kind(path: Path) -> str:
    kind = _kind(path)
    if kind not in READERS:
        raise CheckpointError(f"{path}: is a safetensors file, and no foreign weights", hint=WANTED)
    return kind


def _kind(path: Path) -> str:
    """Tell what a file is by its first bytes."""
    try:
        if not path.is_file():  # a pipe would be waited for
            what = "is a folder" if path.is_dir() else "no such file"
            raise CheckpointError(f"{path}: {what}", hint=WANTED)
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}", hint=WANTED) from error
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "keras"
    if start.startswith(b"PK\x03\x04"):
        return "torch"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size:
        return "safetensors"
    if not start:
        seen = "is empty"
    elif start[:1] == b"\x80" or start[257:262] == b"ustar":
        seen = "is a bare pickle or a tar archive, as PyTorch wrote before 1.6; it may hold code"
        raise CheckpointError(
            f"{path}: {seen}", hint="load it where it was made, and save it again with torch.save"
        )
    else:
        seen = f"is neither HDF5 nor an archive of PyTorch; it starts with {start[:8]!r}"
    raise CheckpointError(f"{path}: {seen}", hint=WANTED)


def _inspect_safetensors(path: Path) -> Inspection:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}
            listed = tuple(
                TensorInfo(
                    name, SAFETENSORS_TYPES.get(s.get_dtype(), s.get_dtype()), tuple(s.get_shape())
                )
                for name, s in slices.items()
            )
        header = json.loads(metadata["s2f"]) if "s2f" in metadata else None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: is a damaged safetensors file: {error}", hint="copy or download it again"
        ) from error
    if header is None:
        return Inspection(path, "safetensors", listed, metadata)
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
        raise CheckpointError(
            f"{path}: its header does not say what kind of checkpoint it is",
            hint="it was not written by s2f as it stands",
        )
    kind = header.pop("kind")
    return Inspection(path, kind, listed, header)
