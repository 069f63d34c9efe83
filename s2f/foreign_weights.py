"""Weights that others published, read without trust: Keras's HDF5 and PyTorch's `.pt`.

A file is known by its first bytes, not by its name, and opened in a process of its own that may
take so much memory and time and no more: what reads it may crash, hang or be lied to about sizes,
and costs this process neither its life nor its memory. This is no sandbox: it guards against
accidents of parsers. Memory is limited on Linux and processor time on every system but Windows;
the time on the clock is limited everywhere.

    read_foreign, inspect -> call_confined -> unpack_keras or unpack_torch -> Unpacked -> Weights

The process answers by a file of JSON and a file of values, which this one maps. What a file
declares is bounded by its own size before anything is allocated. Knows nothing of networks: names
and layouts are those of the file.

Source: files written by Keras 2.15 and 3.15 and by PyTorch's `torch.save`.
"""

import ctypes
import importlib
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from s2f.errors import CheckpointError, OutputError, S2FError

if TYPE_CHECKING:  # the process that reads HDF5 would only wait for it
    from torch import Tensor

MEGABYTES = 448  # that reading may take beyond what the libraries take
SECONDS, BYTES_PER_SECOND = 6.0, 25e6  # that reading may take, in all and for the size
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
            `unpack_keras`; empty for torch.
        values: what else the file says and is plain: `backend` and `keras_version` (keras), or
            what stands beside the state dict (torch: `epoch`, `fine_tune_epoch_start` ...).
    """

    kind: str
    tensors: Mapping[str, "Tensor"]
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


def read_foreign(path: Path) -> Weights:
    """Read the weights of a foreign file; its type is found by its content.

    Args:
        path: HDF5 that Keras wrote, or a zip archive that `torch.save` wrote.

    Raises:
        CheckpointError: if the file is missing, of another type, damaged, larger than it may be,
            holds code, or values that are no numbers.
        OutputError: if the folder for temporary files has no room for the values.
    """
    import torch

    with tempfile.TemporaryDirectory(prefix="s2f-", ignore_cleanup_errors=True) as folder:
        answer = _unpacked(path, Path(folder), write=True)
        data = Path(folder, DATA)
        flat = torch.from_file(str(data), size=data.stat().st_size, dtype=torch.uint8)
    tensors = {}
    for name, dtype_name, shape, start in answer["tensors"]:
        dtype = getattr(torch, dtype_name)
        n_bytes = dtype.itemsize * math.prod(shape)
        tensors[name] = flat[start : start + n_bytes].view(dtype).view(shape)
    return Weights(answer["kind"], tensors, tuple(answer["order"]), answer["values"])


def inspect(path: Path) -> Inspection:
    """Find out what a file holds without reading the values of its tensors.

    Args:
        path: as in `read_foreign`, or a safetensors file, such as a checkpoint of ours.

    Raises:
        CheckpointError: as `read_foreign`; what only the values show stays unknown.
    """
    if _kind(path) == "safetensors":
        return _inspect_safetensors(path)
    with tempfile.TemporaryDirectory(prefix="s2f-") as folder:
        answer = _unpacked(path, Path(folder), write=False)
    listed = (TensorInfo(name, dtype, tuple(shape)) for name, dtype, shape, _ in answer["tensors"])
    return Inspection(path, answer["kind"], tuple(listed), answer["values"])


def _unpacked(path: Path, folder: Path, *, write: bool) -> dict[str, Any]:
    kind = _kind(path)
    if kind == "safetensors":
        raise CheckpointError(f"{path}: is a safetensors file, and no foreign weights", hint=WANTED)
    size = path.stat().st_size
    return call_confined(
        f"s2f.foreign_weights:unpack_{kind}",
        path,
        folder,
        write=write,
        # one tensor may be all of the file, and PyTorch maps the file too
        megabytes=MEGABYTES + (2 if kind == "torch" else 1) * min(size, MAX_BYTES) // 2**20,
        seconds=SECONDS + min(size, MAX_BYTES) / BYTES_PER_SECOND,
    )


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
    if start[:1] == b"\x80" or start[257:262] == b"ustar":
        raise CheckpointError(
            f"{path}: is a bare pickle or a tar archive, as PyTorch wrote before 1.6; it may hold "
            "code",
            hint="load it where it was made, and save it again with torch.save",
        )
    seen = f"is neither HDF5 nor an archive of PyTorch; it starts with {start[:8]!r}"
    raise CheckpointError(f"{path}: {seen if start else 'is empty'}", hint=WANTED)


def _inspect_safetensors(path: Path) -> Inspection:
    from safetensors import SafetensorError, safe_open

    listed = []
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            for name in file.keys():
                tensor = file.get_slice(name)
                dtype = SAFETENSORS_TYPES.get(tensor.get_dtype(), tensor.get_dtype())
                listed.append(TensorInfo(name, dtype, tuple(tensor.get_shape())))
        header = json.loads(metadata["s2f"]) if "s2f" in metadata else None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: is a damaged safetensors file: {error}", hint="copy or download it again"
        ) from error
    if header is None:
        return Inspection(path, "safetensors", tuple(listed), metadata)
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
        raise CheckpointError(
            f"{path}: its header does not say what kind of checkpoint it is",
            hint="it was not written by s2f as it stands",
        )
    return Inspection(path, header.pop("kind"), tuple(listed), header)


START_SECONDS = 60.0  # on the clock, to import what the function needs from a slow disk
ANSWER = "answer.json"
ERRORS: Mapping[str, type[S2FError]] = {
    "CheckpointError": CheckpointError,
    "OutputError": OutputError,
}
HINT = "copy or download the file again; it may be damaged, or made to do harm"
# Threads reserve memory, plugins are code beside the file, and neither is needed.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HDF5_PLUGIN_PRELOAD": "::"}


def call_confined(
    function: str, path: Path, folder: Path, *, write: bool, megabytes: int, seconds: float
) -> dict[str, Any]:
    """Call a function (path, folder, write) in a process of its own, with limits.

    The process inherits no open file, imports nothing from the current folder, prints nowhere,
    and on Linux ends with this one even if that is killed.

    Args:
        function: MODULE:NAME; imported there only.
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
    request = [function, str(path), str(folder), write, megabytes, seconds, os.getpid()]
    places = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    late = CheckpointError(f"{path}: took more than {seconds:g} s to read", hint=HINT)
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
        raise late from error
    try:
        answer = json.loads((folder / ANSWER).read_bytes())
    except (OSError, ValueError):
        code = done.returncode
        if os.name == "posix" and code == -signal.SIGXCPU:
            raise late from None
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
        said = f": {last}" if last else ""
        raise CheckpointError(
            f"{path}: the process that read it died ({how}){said}", hint=HINT
        ) from None
    if "error" in answer:
        raise ERRORS[answer["error"]](answer["message"], hint=answer["hint"])
    return dict(answer["result"])


def _serve(request: str) -> None:
    """Work in the process: limit it, call the function, leave the answer."""
    function_name, source, folder, write, megabytes, seconds, parent = json.loads(request)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end when the parent ends
        if os.getppid() != parent:
            os._exit(1)
    module, _, name = function_name.partition(":")
    function = getattr(importlib.import_module(module), name)
    if name == "unpack_torch":
        import torch  # noqa: F401  its memory and time are not the file's
    _limit(megabytes, seconds)
    path = Path(source)
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
    Path(folder, ANSWER).write_text(json.dumps(told), encoding="utf-8")


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


DATA = "tensors.bin"
ALIGN = 64  # bytes at whose multiples tensors start in the data
SPARE = 16 * 2**20  # bytes that any file may declare: constants compress to nothing
RATIO = 4  # of bytes that come out to bytes in the file: half and compressed floats grow
MAX_BYTES = 2 * 2**30  # of the values of a file: VGG-Face takes 0.6; a sparse file costs nothing
MAX_TENSORS = 20_000
KEPT = ("int64", "int32", "int16", "int8", "uint8", "bool")  # as they are; floats become float32
Array = np.ndarray[Any, Any]


class Unpacked:
    """The tensors of one file on their way out: their list, and their values in `folder`.

    Attributes:
        tensors: name, type, shape and place in the data, in the order of the file.
    """

    def __init__(self, path: Path, folder: Path, write: bool) -> None:
        self.path, self.size = path, path.stat().st_size
        self.tensors: list[tuple[str, str, list[int], int]] = []
        self._names: set[str] = set()
        self._end = 0
        self._target = folder / DATA
        self._file = self._target.open("wb") if write else None

    def close(self) -> None:
        """Close the file of values."""
        if self._file:
            self._file.close()

    def refuse(self, why: str, hint: str = "wanted a file of plain weights") -> CheckpointError:
        """Return the error of this file."""
        return CheckpointError(f"{self.path}: {why}", hint=hint)

    def add(self, name: str, dtype: str, shape: Sequence[int], read: Callable[[], Array]) -> None:
        """Take a tensor into the list, then, if they are wanted, its values into the data.

        Args:
            name: that no other tensor of the file has.
            dtype: `float32`, or one of `KEPT`.
            shape: as the file declares it.
            read: gives the values; called only if the file can hold so much.

        Raises:
            CheckpointError: if it is listed already, the file cannot hold so much, or a value is
                NaN or infinite.
            OutputError: if there is no room for the values.
        """
        if name in self._names:
            raise self.refuse(f"holds {name!r} twice")
        self._names.add(name)
        start = -(-self._end // ALIGN) * ALIGN
        self._end = start + math.prod(shape) * np.dtype(dtype).itemsize
        limit = RATIO * self.size + SPARE
        if self._file:
            limit = min(limit, MAX_BYTES)
        if self._end > limit or len(self._names) > MAX_TENSORS:
            raise self.refuse(
                f"declares {len(self._names)} tensors of {self._end} bytes so far, {name!r} "
                f"{tuple(shape)} the last; its {self.size} bytes may declare {limit}, and "
                f"{MAX_TENSORS} tensors",
            )
        self.tensors.append((name, dtype, [int(n) for n in shape], start))
        if not self._file:
            return
        values = read().astype(dtype, copy=False)
        if not np.isfinite(values).all():
            raise self.refuse(
                f"tensor {name!r} holds values that are no numbers (NaN or infinite)",
                "the training that made it went wrong, or the file is damaged",
            )
        self._file.seek(start)
        try:
            values.tofile(self._file)
        except OSError as error:
            raise OutputError(
                f"{self._target}: cannot be written: {error.strerror or error}",
                hint="free some space, or set TMPDIR to a folder that has some",
            ) from error


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
    """List the tensors of a Keras file in the order of its layers; write their values if wanted.

    Two layouts, told apart by what the file holds, whichever function of Keras wrote it:

    - legacy: the attribute `layer_names` at the root or in `model_weights`, a group a layer with
      the attribute `weight_names`, and datasets at those names; in the order of the attributes.
    - Keras 3 (and `.weights.h5` of Keras 2): `layers/KEY/vars/0`, `/1` ..., where KEY is the class
      with a number (`conv2d`, `conv2d_1`, `conv2d_10`); Keras 3 notes the layer's name at `vars`.
      The order of the model is lost: by class, alphabetically, and by number within a class.

    Links are followed only where they lie in the file and cannot lead out of it, datasets are read
    only where their bytes lie in the file, and both are checked before any value is read.

    Returns:
        `kind`, `tensors` as `Unpacked` has them, `order` of the layers, and `values`: the
        attributes `backend` and `keras_version`, where there are such.

    Raises:
        CheckpointError: if the file is no such file, or not to be trusted.
    """
    with (
        closing(Unpacked(path, folder, write)) as out,
        h5py.File(path, "r", locking=False) as file,
    ):
        reader = _KerasReader(out)
        model = reader.at(file, "model_weights") if "model_weights" in file.keys() else file
        values = {
            name: reader.text(model, name)
            for name in ("backend", "keras_version")
            if name in model.attrs
        }
        if "layer_names" in model.attrs or "layer_names0" in model.attrs:
            if values.get("backend") == "theano":
                raise out.refuse(
                    "was written by Theano, which flips the kernels of convolutions",
                    "load it with Keras on TensorFlow, and save it again",
                )
            order = reader.read_legacy(model)
        elif any(name in file.keys() for name in LAYERS):
            order = reader.read_layers(file)
        else:
            raise out.refuse("is an HDF5 file, but holds no Keras weights")
        if not order:
            raise out.refuse("holds no weights")
        return {"kind": "keras", "tensors": out.tensors, "order": order, "values": values}


class _KerasReader:
    def __init__(self, out: Unpacked) -> None:
        self._out = out
        self._groups = 0

    def read_legacy(self, model: h5py.Group) -> list[str]:
        """Read the layers that `layer_names` lists; returns those with weights."""
        layers = self._names(model, "layer_names")
        if "top_level_model_weights" in model.keys():  # of the model itself; it is no layer
            layers.append("top_level_model_weights")
        order = []
        for layer in layers:
            group = self.at(model, layer)
            paths = self._names(group, "weight_names")
            for path, weight in zip(paths, _weight_names(layer, paths), strict=True):
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
                        name = f"{within}{self.text(variables, 'name')}"
                    numbers = sorted(variables.keys(), key=_by_number)
                    weights = VARIABLES.get((_by_number(key)[0], len(numbers)), numbers)
                    for number, weight in zip(numbers, weights, strict=True):
                        self._read(f"{name}/{weight}", self.at(variables, number))
                    order += [name] if numbers else []
                order += self.read_layers(layer, f"{name}/", depth + 1)
        return order

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

    def text(self, group: h5py.Group, name: str) -> str:
        """Read an attribute that is a text."""
        value = self._attribute(group, name)
        if not isinstance(value, str | bytes):
            raise self._out.refuse(f"its attribute {name!r} is not text")
        return value.decode() if isinstance(value, bytes) else str(value)

    def _names(self, group: h5py.Group, attribute: str) -> list[str]:
        """Read a list of names, which Keras splits into several attributes if it is long."""
        attributes = [attribute]
        if attribute not in group.attrs:
            attributes = []
            while (part := f"{attribute}{len(attributes)}") in group.attrs:
                attributes.append(part)
            if not attributes:
                raise self._out.refuse(f"{group.name!r} has no attribute {attribute!r}")
        found: list[str] = []
        for part in attributes:
            values = np.asarray(self._attribute(group, part))
            if values.size and values.dtype.kind not in "OSU":
                raise self._out.refuse(f"its attribute {part!r} is not a list of names")
            for name in values.reshape(-1).tolist():
                found.append(name.decode() if isinstance(name, bytes) else str(name))
        if len(set(found)) < len(found):
            raise self._out.refuse(f"its attribute {attribute!r} lists a name twice")
        return found

    def _attribute(self, group: h5py.Group, name: str) -> Any:
        declared = group.attrs.get_id(name)
        if math.prod(declared.shape or ()) * declared.dtype.itemsize > MAX_ATTRIBUTE:
            raise self._out.refuse(f"its attribute {name!r} declares {declared.shape} values")
        return group.attrs[name]

    def _read(self, name: str, dataset: Any) -> None:
        """Check one dataset, and take it."""
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
        self._out.add(name, kept, dataset.shape, lambda: dataset[()])

    def _check_storage(self, name: str, dataset: h5py.Dataset) -> None:
        """Make sure that all bytes of a dataset lie in this file and unpack to what it says."""
        declared = math.prod(dataset.shape) * dataset.dtype.itemsize
        plan = dataset.id.get_create_plist()
        layout, size = plan.get_layout(), self._out.size
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


def _weight_names(layer: str, paths: Sequence[str]) -> list[str]:
    """Name the weights of a layer as Keras names them today, whatever the scopes before that."""
    paths = [re.sub(r":\d+$", "", path) for path in paths]
    names = [path.rpartition("/")[2] for path in paths]
    if len(set(names)) < len(names):  # of a model within the model: its layers tell them apart
        return [path.removeprefix(f"{layer}/") for path in paths]
    plain = [name.removeprefix(f"{layer}_") for name in names]
    return [ENDINGS.get(name, name) for name in plain]


def _by_number(key: str) -> tuple[str, int]:
    """Split `conv2d_10` into its class and number, `conv2d` is number 0; `12` is a number."""
    if key.isdecimal():
        return "", int(key)
    kind, _, number = key.rpartition("_")
    return (kind, int(number)) if kind and number.isdecimal() else (key, 0)


STATES = ("model_state_dict", "state_dict")  # keys of a training checkpoint's weights
FLOATS = ("float32", "float64", "float16", "bfloat16")  # they become float32
MAX_ENTRIES = 100_000  # of the archive: three a parameter with Adam's state
MAX_VALUE = 1_000_000  # characters of a top-level value as JSON
RESAVE = "load it where it was made, and save model.state_dict() with torch.save"


def unpack_torch(path: Path, folder: Path, write: bool) -> dict[str, Any]:
    """List the tensors of a state dict, bare or in a training checkpoint; write their values.

    The zip archive is checked before PyTorch opens it; `torch.load` then unpickles with
    `weights_only`, maps the file, and copies nothing. A tensor is read only if its values lie in
    the file as often as it says.

    Returns:
        `kind`, `tensors` as `Unpacked` has them, `order` (empty: a state dict has no layers), and
        `values`: what stands beside the state dict and is plain. Other tensors, such as an
        optimizer's, are left out.

    Raises:
        CheckpointError: if the file is no such file, or not to be trusted.
    """
    import torch

    with closing(Unpacked(path, folder, write)) as out:
        _check_archive(out)
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            asked = re.search(r"GLOBAL ([\w.]+\w)", str(error))
            seen = f" (it asks for {asked[1]})" if asked else ""
            raise out.refuse(f"holds more than plain tensors and values{seen}", RESAVE) from error
        if not isinstance(loaded, Mapping):
            raise out.refuse(f"holds a {type(loaded).__name__}; wanted a state dict", RESAVE)
        key = next((name for name in STATES if isinstance(loaded.get(name), Mapping)), None)
        state = loaded if key is None else loaded[key]
        for name, tensor in state.items():
            if isinstance(tensor, torch.Tensor):
                _read_tensor(out, str(name), tensor)
            elif key is not None:
                raise out.refuse(f"{name!r} in {key} is no tensor but a {type(tensor).__name__}")
        if not out.tensors:
            raise out.refuse("holds no tensors under names", RESAVE)
        values = {
            str(name): value
            for name, value in loaded.items()
            if name != key and not isinstance(value, torch.Tensor) and _is_plain(value)
        }
        return {"kind": "torch", "tensors": out.tensors, "order": [], "values": values}


def _check_archive(out: Unpacked) -> None:
    """Make sure that the archive is one of `torch.save` and unpacks to no more than it is."""
    try:
        with zipfile.ZipFile(out.path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as error:
        raise out.refuse(
            f"is a damaged zip archive: {error}", "copy or download it again"
        ) from error
    names = {entry.filename for entry in entries}
    if len(entries) > MAX_ENTRIES or len(names) < len(entries):
        raise out.refuse(f"holds {len(entries)} entries, {len(names)} of different names")
    if "model.weights.h5" in names:
        raise out.refuse("is a .keras archive", "unzip it, and give the model.weights.h5 in it")
    total = 0
    for entry in entries:
        total += entry.file_size
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise out.refuse(f"{entry.filename!r} in it is compressed; torch.save never does that")
        if entry.flag_bits & 1 or max(total, entry.header_offset + entry.file_size) > out.size:
            raise out.refuse(f"{entry.filename!r} in it is encrypted, or larger than the file")
        if not re.fullmatch(r"[^/\\]+(/[^/\\]+)+", entry.filename) or ".." in entry.filename:
            raise out.refuse(f"{entry.filename!r} in it is no name that torch.save gives", RESAVE)
    folder = min(names, default="").partition("/")[0]
    if f"{folder}/constants.pkl" in names:
        raise out.refuse("is a TorchScript program; wanted a state dict", RESAVE)
    if (
        not all(name.startswith(f"{folder}/") for name in names)
        or f"{folder}/data.pkl" not in names
    ):
        raise out.refuse("is a zip archive, but none of torch.save", RESAVE)
    order = f"{folder}/byteorder"  # files before torch 2.1 have none
    with zipfile.ZipFile(out.path) as archive:
        if order in names and archive.read(order).decode() != sys.byteorder:
            raise out.refuse("was written on a machine of another byte order", RESAVE)


def _read_tensor(out: Unpacked, name: str, tensor: "Tensor") -> None:
    """Check one tensor, and take it."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if str(tensor.layout) != "torch.strided" or tensor.device.type != "cpu" or tensor.is_quantized:
        raise out.refuse(f"tensor {name!r} is sparse, quantised or has no values", RESAVE)
    if dtype not in (*FLOATS, *KEPT):
        raise out.refuse(f"tensor {name!r} holds {dtype}; wanted numbers", RESAVE)
    declared, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if declared > held:
        raise out.refuse(
            f"tensor {name!r} declares {declared} bytes, {tuple(tensor.shape)}, and holds {held}"
        )
    kept = "float32" if dtype in FLOATS else dtype
    floats = dtype in FLOATS
    out.add(
        name, kept, tensor.shape, lambda: (tensor.float() if floats else tensor).detach().numpy()
    )


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


if __name__ == "__main__":
    _serve(sys.argv[1])
