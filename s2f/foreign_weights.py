"""Weights that others published, read without trust: Keras's HDF5 and PyTorch's `.pt`.

    read_foreign, inspect -> call_confined -> unpack -> keras_tensors or torch_tensors

A file is known by its first bytes, not by its name, and read in a process of its own that may take
so much memory (on Linux), processor time (not on Windows) and time on the clock and no more: what
reads it may crash, hang or be lied to about sizes. This is no sandbox: it guards against accidents
of parsers. A script that reads weights guards its start with `if __name__ == "__main__"`, as for
all of `multiprocessing`. What a file declares is bounded by its own size before it is allocated.

Source: files written by Keras 2.15 and 3.15 and by PyTorch's `torch.save`, of both its formats.
"""

import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import pickle
import re
import signal
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import h5py
import numpy as np

from s2f.device import starting_processes
from s2f.errors import CheckpointError, OutputError, S2FError

if TYPE_CHECKING:  # the process that reads HDF5 would only wait for it
    from torch import Tensor

MEGABYTES = 448  # that reading may take beyond what the libraries take
SECONDS, BYTES_PER_SECOND = 6.0, 25e6  # that reading may take, in all and for the size
START_SECONDS = 60.0  # on the clock, to import the libraries from a slow disk
MAX_BYTES = 2 * 2**30  # of the values of a file: VGG-Face takes 0.6; a sparse file costs nothing
MAX_TENSORS = 20_000
SPARE = 16 * 2**20  # bytes that any file may declare: constants compress to nothing
RATIO = 4  # of bytes that come out to bytes in the file: half and compressed floats grow
ALIGN = 64  # bytes at whose multiples tensors start in the data

FORMATS = {"keras": "Keras (.h5)", "torch": "torch (.pt)"}
WANTED = "wanted Keras weights (.h5), or a .pt of torch.save"
DAMAGED = "copy or download the file again; it may be damaged, or made to do harm"
RESAVE = "load it where it was made, and save model.state_dict() with torch.save"
FROM_KERAS = "load it with Keras where it was made, and save_weights to a .weights.h5"
VGG_FACE = (
    "VGG-Face is also published as Keras weights: vgg_face_weights.h5 of serengil/deepface, "
    "rcmalli_vggface_tf_vgg16.h5 of rcmalli/keras-vggface"
)
CHANNELS_LAST = "take the file for TensorFlow (tf in its name), channels last; or make it by Keras"
OTHER = "is it the file of another network? See s2f convert inspect"

MAX_START, MAX_TAIL = 2**16, 2**20  # bytes that are looked at to recognise a file
MAX_HEADER = 10**8  # bytes of a safetensors file's
WEIGHTS = (".h5", ".hdf5", ".keras", ".pt", ".pth", ".bin", ".safetensors", ".ckpt", ".mat")
_PACKED = "unpack it, and give the weights in it"
OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j"  # begins a file of torch.save before 1.6: pickles
# What is taken for weights, by its first bytes, or else by its name: what it is, and the cure.
MAGIC = (
    (b"\x80", "a bare pickle; it may hold code", RESAVE),
    (b"MATLAB", "a file of MATLAB (.mat)", VGG_FACE),
    (b"\x93NUMPY", "an array of NumPy (.npy)", WANTED),
    (b"\x1f\x8b", "packed with gzip", _PACKED),
    (b"BZh", "packed with bzip2", _PACKED),
    (b"\xfd7zXZ", "packed with xz", _PACKED),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", _PACKED),
    (b"7z\xbc\xaf", "a 7z archive", _PACKED),
    (b"Rar!", "a rar archive", _PACKED),
    (b"GGUF", "a GGUF model", WANTED),
)  # fmt: skip
ENDED = (
    (r"\.onnx$", "an ONNX model", f"take the weights that it was made of: {WANTED}"),
    (r"\.pb$", "a graph of TensorFlow", FROM_KERAS),
    (r"\.(index|meta|data-\d+-of-\d+)$", "a checkpoint of TensorFlow", FROM_KERAS),
    (r"\.(mat|t7|caffemodel)$", "of MATLAB, Torch 7 or Caffe", VGG_FACE),
)

SAFETENSORS_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """What a file says of one tensor; foreign floats are float32, which they become."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Inspection:
    """What a file holds, as it says itself."""

    path: Path
    kind: str  # keras, torch or safetensors; of a checkpoint of ours, its kind of network
    tensors: tuple[TensorInfo, ...]  # in the order of the file
    # What else it says and is plain: `backend` and `keras_version` (keras), what stands beside the
    # state dict (torch), or the header of a checkpoint of ours.
    values: Mapping[str, Any]
    wrapper: str = ""  # keys that the state dict lies under, as in `model.state_dict` (torch)


def read_foreign(path: Path, kind: str) -> tuple[dict[str, "Tensor"], Inspection]:
    """Read the weights of a file of Keras or torch (`kind`, as in `FORMATS`) as they lie in it.

    Returns them by their own names, and what `inspect` does. They are plain and contiguous, in the
    file's order and layout: floats of any size as float32, integers and booleans as they are. A
    name is LAYER/WEIGHT with WEIGHT one of kernel, bias, gamma ... (keras), or the key of the state
    dict (torch).

    Raises a `CheckpointError` if the file is missing, of another type, damaged, larger than it may
    be, holds code, or values that are no numbers; an `OutputError` if the folder for temporary
    files has no room for the values.
    """
    import torch

    holds = recognise(path)
    if holds == "safetensors":
        own = inspect(path).kind
        if own != holds:
            hint = "use it as it is: s2f verify says whether it is whole"
            raise CheckpointError(f"{path}: is a checkpoint of s2f already, a {own}", hint=hint)
        hint = "read it with safetensors.torch.load_file, and torch.save that to a .pt"
        raise CheckpointError(f"{path}: is a safetensors file, and no foreign weights", hint=hint)
    if holds != kind:
        seen = f"{path}: holds weights of {FORMATS[holds]}; wanted those of {FORMATS[kind]}"
        raise CheckpointError(seen, hint=OTHER)
    with tempfile.TemporaryDirectory(prefix="s2f-", ignore_cleanup_errors=True) as folder:
        data = Path(folder, "tensors.bin")
        found = _unpack_confined(path, kind, data)
        flat = torch.from_file(str(data), size=data.stat().st_size, dtype=torch.uint8)
    tensors, end = {}, 0
    for tensor in found.tensors:
        dtype = getattr(torch, tensor.dtype)
        start = -(-end // ALIGN) * ALIGN
        end = start + dtype.itemsize * math.prod(tensor.shape)
        tensors[tensor.name] = flat[start:end].view(dtype).view(tensor.shape)
    return tensors, found


def inspect(path: Path) -> Inspection:
    """List what a foreign or safetensors file holds, not the values; raises as `read_foreign`."""
    kind = recognise(path)
    if kind != "safetensors":
        return _unpack_confined(path, kind)
    from safetensors import SafetensorError, safe_open

    listed = []
    try:
        with safe_open(path, framework="numpy") as file:
            values: dict[str, Any] = file.metadata() or {}
            for name in file.keys():
                tensor = file.get_slice(name)
                dtype = SAFETENSORS_TYPES.get(tensor.get_dtype(), tensor.get_dtype())
                listed.append(TensorInfo(name, dtype, tuple(tensor.get_shape())))
    except (SafetensorError, OSError) as error:
        seen = f"{path}: is a damaged safetensors file: {error}"
        raise CheckpointError(seen, hint="copy or download it again") from error
    if "s2f" in values:  # of any version, as it says itself
        try:
            values = dict(json.loads(values["s2f"]))
            kind = str(values.pop("kind"))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            seen = f"{path}: its header does not say what kind of checkpoint it is"
            raise CheckpointError(seen, hint="it was not written by s2f as it stands") from error
    return Inspection(path, kind, tuple(listed), values)


def recognise(path: Path) -> str:
    """Tell by its first bytes what a file is: `keras` (any HDF5), `torch` or `safetensors`.

    Raises a `CheckpointError` that says what else it is, with the cure for that. Reads little, and
    nothing that a file could do harm by.
    """
    tail = b""
    try:
        if not path.is_file():  # a pipe would be waited for
            what = "is a folder" if path.is_dir() else "no such file"
            if (path / "saved_model.pb").is_file():
                raise CheckpointError(f"{path}: is a SavedModel of TensorFlow", hint=FROM_KERAS)
            raise CheckpointError(f"{path}: {what}", hint=WANTED)
        with path.open("rb") as file:
            start = file.read(MAX_START)
            if start.startswith(b"PK"):
                file.seek(-min(path.stat().st_size, MAX_TAIL), os.SEEK_END)
                tail = file.read(MAX_TAIL)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}", hint=WANTED) from error
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "keras"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER:
        return "safetensors"
    if start.startswith(OLD_TORCH):
        return "torch"
    archive = start.startswith((b"PK\x03\x04", b"PK\x05\x06"))
    told = _named_archive(tail) if archive else _named(path.name, start)
    if told is None:
        return "torch"
    seen, cure = told
    raise CheckpointError(f"{path}: {seen}", hint=cure)


def _named_archive(tail: bytes) -> tuple[str, str] | None:
    """Say what a zip archive is that is none of torch.save, by the end of the file, and its cure.

    There is the list of its entries: the last of them, if there are very many.
    """
    if b"PK\x05\x06" not in tail:
        return "is a damaged zip archive: it has no end", "download it again, whole"
    lengths = {place.end(): place[1] for place in re.finditer(rb"PK\x01\x02.{24}(..)", tail, re.S)}
    starts = {end + 16: int.from_bytes(length, "little") for end, length in lengths.items()}
    names = [tail[k : k + n].decode(errors="replace") for k, n in starts.items()]
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        cure = "load it with torch.jit.load where it was made, and torch.save its state_dict()"
        return "is a TorchScript program; wanted a state dict", cure
    if any(name.endswith("archive_format") for name in names):
        return "is a program of torch.export; wanted a state dict", RESAVE
    if "model.weights.h5" in names:
        return "is a .keras archive", "unzip it, and give the model.weights.h5 in it"
    if any(re.fullmatch(r"[^/]+/(data\.pkl|data/\d+)", name) for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "is a file of NumPy's arrays (.npz)", WANTED
    weights = [name for name in names if name.endswith(WEIGHTS)]
    if weights:
        return f"is a zip archive that holds {weights[0]!r}", "unzip it, and give that file"
    some = f", and holds {names[0]!r}" if names else ""
    return f"is a zip archive, but none of torch.save{some}", WANTED


def _named(name: str, start: bytes) -> tuple[str, str]:
    """Say what a file is that is neither HDF5 nor an archive, and its cure."""
    if not start.strip(b"\0"):
        return "begins with zeros" if start else "is empty", "download it again, whole"
    for magic, what, cure in MAGIC:
        if start.startswith(magic):
            return f"is {what}", cure
    if start[257:262] == b"ustar":
        return "is a tar archive", f"unpack it, and give the weights in it; or else {RESAVE}"
    if not re.search(rb"[\x00-\x08\x0e-\x1f]", start[:1024]):
        return _named_text(start.decode(errors="replace"))
    length = int.from_bytes(start[3:4])
    text = start[2:3] == b"\x12" and re.match(rb"[ -~]+", start[4 : 4 + length])
    if start[:1] == b"\x08" and text and len(text[0]) == length:  # who made it, in words
        return "is an ONNX model", f"take the weights that it was made of: {WANTED}"
    if start[:3] == b"\x08\x01\x12":
        return "is a SavedModel of TensorFlow (.pb)", FROM_KERAS
    for ending, what, cure in ENDED:
        if re.search(ending, name.lower()):
            return f"is {what}, by its name", cure
    seen = f"is neither HDF5 nor an archive of PyTorch; it starts with {start[:8]!r}"
    return seen, WANTED


def _named_text(text: str) -> tuple[str, str]:
    first = " ".join(text[:200].split())[:40]
    if text.startswith("version https://git-lfs"):
        cure = "run git lfs pull where it was cloned, or download the file itself"
        return "is a pointer of Git LFS, and not the file that it stands for", cure
    if "/annex/objects/" in text[:1024]:
        return "is a pointer of git-annex, and not the file", "run git annex get on it"
    if not re.match(r"\ufeff?\s*(<!doctype|<html|<head|<\?xml|<!--)", text, re.I):
        kind = "a JSON text" if first.startswith(("{", "[")) else "a text"
        cure = "download the file of weights itself; this says something of it"
        return f"is {kind} and neither HDF5 nor an archive of PyTorch: {first!r}", cure
    title = re.search(r"<title[^>]*>(.*?)</title>", text, re.I | re.S)
    said = " ".join(title[1].split())[:80] if title else first
    cure = "download the file itself, not the page about it"
    if re.search("quota exceeded|too many users", text, re.I):
        cure = (
            "try again tomorrow: Google Drive gives it to no more people today, or copy it to yours"
        )
    elif re.search("virus scan", text, re.I):
        cure = "download it with a browser: Google Drive asks before it gives a large file"
    return f"is a web page: {said!r}", cure


def _unpack_confined(path: Path, kind: str, target: Path | None = None) -> Inspection:
    size = min(path.stat().st_size, MAX_BYTES)
    # one tensor may be all of the file, and PyTorch maps the file too
    megabytes = MEGABYTES + (2 if kind == "torch" else 1) * size // 2**20
    seconds = SECONDS + size / BYTES_PER_SECOND
    found: Inspection
    found = call_confined(unpack, path, kind, target, megabytes=megabytes, seconds=seconds)
    return found


def call_confined(
    function: Callable[..., Any], path: Path, *arguments: Any, megabytes: int, seconds: float
) -> Any:
    """Call a picklable function, which reads the file `path`, in a process of its own, with limits.

    It may take `megabytes` and `seconds` of processor time beyond what its imports take. It
    inherits no open file, imports nothing from the current folder, prints nowhere, and ends with
    this one even if that is killed. Raises the function's `S2FError`s, to whose `CheckpointError`s
    it adds the path, a `CheckpointError` if the process died or took too much, and a `DeviceError`
    if none can be started.
    """
    # No pool: pebble's takes 0.2 s more, as long as all else that is done for a small file.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    given = sender, function, path, arguments, (megabytes, seconds)
    process = context.Process(target=_serve, args=given)  # type: ignore[attr-defined]
    before = os.environ.get("PYTHONSAFEPATH", "")
    os.environ["PYTHONSAFEPATH"] = "1"  # the user may be in a folder of a stranger's modules
    try:
        with starting_processes():
            process.start()
    finally:
        os.environ["PYTHONSAFEPATH"] = before  # "" is as if it were not set
    sender.close()  # so that the other end's death ends the waiting
    answer: Any = CheckpointError(f"{path}: took more than {seconds:g} s to read", hint=DAMAGED)
    try:
        if receiver.poll(START_SECONDS + seconds):
            answer = receiver.recv()
    except (EOFError, OSError):
        process.join()
        code = process.exitcode
        if os.name != "posix" or code != -signal.SIGXCPU:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            died = f"{path}: the process that read it died ({how})"
            answer = CheckpointError(died, hint=DAMAGED)
    finally:
        receiver.close()
        process.kill()
        process.join()
    if isinstance(answer, S2FError):
        raise answer
    return answer


def _serve(
    sender: Connection, function: Any, path: Path, arguments: Any, limits: tuple[int, float]
) -> None:
    """In the process: limit it, call the function, send what it returns or raises."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if "torch" in arguments:
        import torch  # its memory and time are not the file's

        torch.set_num_threads(1)  # threads reserve memory
    _limit(*limits)
    try:
        answer = function(path, *arguments)
    except CheckpointError as error:
        answer = CheckpointError(f"{path}: {error.message}", hint=error.hint)
    except S2FError as error:
        answer = error
    except MemoryError:
        answer = CheckpointError(f"{path}: needs more than {limits[0]} MB to read", hint=DAMAGED)
    except Exception as error:  # libraries raise anything at all on bytes made to confuse them
        first = (str(error).strip().splitlines() or [""])[0][:200]
        why = f"cannot be read: {type(error).__name__}: {first}"
        answer = CheckpointError(f"{path}: {why}", hint=DAMAGED)
    sender.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _limit(megabytes: int, seconds: float) -> None:
    if os.name != "posix":
        return
    import resource  # there is none on Windows

    used = resource.getrusage(resource.RUSAGE_SELF)
    limits = {resource.RLIMIT_CPU: round(used.ru_utime + used.ru_stime + seconds + 0.5)}
    limits[resource.RLIMIT_CORE] = 0
    with suppress(FileNotFoundError):  # only Linux has it, and only Linux minds the limit
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limits[resource.RLIMIT_AS] = pages * os.sysconf("SC_PAGE_SIZE") + megabytes * 2**20
    for kind, limit in limits.items():
        hard = resource.getrlimit(kind)[1]  # that of the user's shell, which none may raise
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (soft, hard))


Declared = tuple[TensorInfo, Callable[[], np.ndarray[Any, Any]]]  # and what gives its values
# Of a file: its tensors, what else it says, and what they are wrapped in.
Contents = tuple[list[Declared], dict[str, Any], str]


def unpack(path: Path, kind: str, target: Path | None) -> Inspection:
    """List the tensors of a file, and write the values into `target` where that is given.

    Whatever the file does, it does to this process. Raises a `CheckpointError`, which lacks the
    path, if the file is not to be trusted or declares more than it can hold, two tensors have one
    name, or a value is NaN or infinite; an `OutputError` if there is no room for the values.
    """
    declared, values, wrapper = (keras_tensors if kind == "keras" else torch_tensors)(path)
    size = path.stat().st_size
    limit = min(RATIO * size + SPARE, MAX_BYTES if target else math.inf)
    tensors: dict[str, TensorInfo] = {}
    end = 0
    with target.open("wb") if target else nullcontext() as file:
        for tensor, read in declared:
            name, dtype, shape = dataclasses.astuple(tensor)
            if name in tensors:
                raise _wrong(f"holds {name!r} twice")
            start = -(-end // ALIGN) * ALIGN
            end = start + math.prod(shape) * np.dtype(dtype).itemsize
            tensors[name] = tensor
            if end > limit or len(tensors) > MAX_TENSORS:
                seen = f"{len(tensors)} tensors of {end} bytes so far, {name!r} {shape} the last"
                may = f"its {size} bytes may declare {limit}, and {MAX_TENSORS} tensors"
                raise _wrong(f"declares {seen}; {may}")
            if not file:
                continue
            array = read().astype(dtype, copy=False)
            if not np.isfinite(array).all():
                hint = "the training that made it went wrong, or the file is damaged"
                raise _wrong(f"{name!r} holds values that are no numbers (NaN or infinite)", hint)
            try:
                file.seek(start)
                array.tofile(file)
            except OSError as error:
                hint = "free some space, or set TMPDIR to a folder that has some"
                why = f"{target}: cannot be written: {error.strerror or error}"
                raise OutputError(why, hint=hint) from error
    return Inspection(path, kind, tuple(tensors.values()), values, wrapper)


def _wrong(why: str, hint: str = "wanted a file of plain weights") -> CheckpointError:
    return CheckpointError(why, hint=hint)


LAYERS = ("layers", "_layer_checkpoint_dependencies")  # containers of the new layout
ENDINGS = {"W": "kernel", "b": "bias"}  # of old names, as in conv1_1_W
VARIABLES = {  # names that the new layout leaves out, by class of layer and number of weights
    **{(kind, 1): ("kernel",) for kind in ("conv2d", "dense")},
    **{(kind, 2): ("kernel", "bias") for kind in ("conv2d", "dense")},
    ("batch_normalization", 4): ("gamma", "beta", "moving_mean", "moving_variance"),
}
FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
MAX_CHUNK = 64 * 2**20  # bytes of a chunk once unpacked
MAX_ATTRIBUTE = 16 * 2**20  # bytes of one
MAX_DEPTH = 16  # models within models
ITSELF = "wanted a file that holds its weights itself"


def keras_tensors(path: Path) -> Contents:
    """List the tensors of a Keras file, and its attributes `backend` and `keras_version`.

    Two layouts, told apart by what the file holds, whichever function of Keras wrote it:

    - legacy: the attribute `layer_names` at the root or in `model_weights`, a group a layer with
      the attribute `weight_names`, and datasets at those names; in the order of the attributes.
    - Keras 3 (and `.weights.h5` of Keras 2): `layers/KEY/vars/0`, `/1` ..., where KEY is the class
      with a number (`conv2d`, `conv2d_1`, `conv2d_10`); Keras 3 notes the layer's name at `vars`.
      The order of the model is lost: by class, alphabetically, and by number within a class.

    Before any value is read it raises a `CheckpointError` for links and datasets that lead out of
    the file, and for all else that is not to be trusted.
    """
    file = h5py.File(path, "r", locking=False)  # stays open: its datasets are read later
    model = _at(file, "model_weights") if "model_weights" in file else file
    names = ("backend", "keras_version")
    values = {name: " ".join(_texts(model, name)) for name in names if name in model.attrs}
    config = " ".join(_texts(file, "model_config")) if "model_config" in file.attrs else ""
    if re.search(r'"(data_format": *"channels_first|dim_ordering": *"th)"', config):
        raise _wrong("is of a network with channels first", CHANNELS_LAST)
    if "layer_names" in model.attrs or "layer_names0" in model.attrs:
        if values.get("backend") == "theano":
            flips = "was written by Theano, which flips the kernels of convolutions"
            raise _wrong(f"{flips}, and has channels first", CHANNELS_LAST)
        found = _legacy_weights(model)
    elif any(name in file for name in LAYERS):
        found = _new_weights(file)
    else:
        raise _wrong("is an HDF5 file, but holds no Keras weights")
    tensors = [_declared(name, dataset) for name, dataset in found]
    if not tensors:
        raise _wrong("holds no weights")
    return tensors, values, ""


def _legacy_weights(model: h5py.Group) -> Iterator[tuple[str, Any]]:
    """List the weights of the layers that `layer_names` lists, LAYER/WEIGHT, and their datasets."""
    layers = _names(model, "layer_names")
    if "top_level_model_weights" in model:  # of the model itself; it is no layer
        layers.append("top_level_model_weights")
    for layer in layers:
        group = _at(model, layer)
        paths = _names(group, "weight_names")
        for path, weight in zip(paths, _weight_names(layer, paths), strict=True):
            yield f"{layer}/{weight}", _at(group, path)


def _new_weights(group: h5py.Group, within: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """List the weights in the new layout, those of models within the model too."""
    if depth > MAX_DEPTH:
        raise _wrong(f"nests groups more than {MAX_DEPTH} deep")
    for layers in (_at(group, container) for container in LAYERS if container in group):
        for key in sorted(layers, key=_by_number):
            layer, name = _at(layers, key), within + key
            if "vars" in layer:
                variables = _at(layer, "vars")
                if "name" in variables.attrs:
                    name = within + " ".join(_texts(variables, "name"))
                numbers = sorted(variables, key=_by_number)
                weights = VARIABLES.get((_by_number(key)[0], len(numbers)), numbers)
                for number, weight in zip(numbers, weights, strict=True):
                    yield f"{name}/{weight}", _at(variables, number)
            yield from _new_weights(layer, f"{name}/", depth + 1)


def _at(group: h5py.Group, path: str) -> Any:
    """Go down a path that stays in the file."""
    for part in filter(None, path.split("/")):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            raise _wrong(f"lists {path!r} but holds no such group or dataset")
        if not isinstance(link, h5py.HardLink):
            raise _wrong(f"{path!r} is a link to elsewhere ({type(link).__name__})", ITSELF)
        group = group[part]
    return group


def _texts(group: h5py.Group, attribute: str) -> list[str]:
    """Read an attribute that is a text or a list of texts."""
    declared = group.attrs.get_id(attribute)
    if math.prod(declared.shape or ()) * declared.dtype.itemsize > MAX_ATTRIBUTE:
        raise _wrong(f"its attribute {attribute!r} declares {declared.shape} values")
    values = np.asarray(group.attrs[attribute]).reshape(-1).tolist()
    if not all(isinstance(value, str | bytes) for value in values):
        raise _wrong(f"its attribute {attribute!r} is not text")
    return [value.decode() if isinstance(value, bytes) else value for value in values]


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """Read a list of names, which Keras splits into several attributes if it is long."""
    parts = [attribute]
    if attribute not in group.attrs:
        numbered = (f"{attribute}{n}" for n in itertools.count())
        parts = [*itertools.takewhile(group.attrs.__contains__, numbered)]
    if not parts:
        raise _wrong(f"{group.name!r} has no attribute {attribute!r}")
    names = [name for part in parts for name in _texts(group, part)]
    if len(set(names)) < len(names):
        raise _wrong(f"its attribute {attribute!r} lists a name twice")
    return names


def _declared(name: str, dataset: Any) -> Declared:
    """Make sure that a dataset is of numbers that lie in this file and unpack to what it says."""
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise _wrong(f"{name!r} is no array")
    dtype, shape = dataset.dtype, tuple(int(n) for n in dataset.shape)
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise _wrong(f"{name!r} holds {dtype}; wanted numbers")
    if dataset.is_virtual or dataset.external:
        raise _wrong(f"{name!r} lies in other files", ITSELF)
    if dataset.chunks:
        chunk = math.prod(dataset.chunks) * dtype.itemsize
        if chunk > MAX_CHUNK:
            raise _wrong(f"{name!r} has chunks of {chunk} bytes; wanted {MAX_CHUNK}")
        plan = dataset.id.get_create_plist()
        filters = {plan.get_filter(k)[0] for k in range(plan.get_nfilters())}
        if unknown := filters - FILTERS.keys():  # HDF5 would look for a library of its name
            wanted = f"wanted none, or {', '.join(FILTERS.values())}"
            raise _wrong(f"{name!r} is packed with filter {min(unknown)}; {wanted}")
    else:
        declared, held = math.prod(shape) * dtype.itemsize, dataset.id.get_storage_size()
        start = dataset.id.get_offset() or 0  # a small one lies in its header, and has none
        size = dataset.file.id.get_filesize()
        if declared and (held != declared or start + held > size):
            seen = f"declares {declared} bytes, {shape}, and holds {min(held, size)} of them"
            raise _wrong(f"{name!r} {seen}", "the file is cut off: copy or download it again")
    kept = "float32" if dtype.kind == "f" else dtype.newbyteorder("=").name
    return TensorInfo(name, kept, shape), lambda: dataset[()]


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


# Keys of a training checkpoint's weights, the likeliest first.
STATES = (
    *("model_state_dict", "model_state", "state_dict", "model", "net", "network", "module"),
    "weights",
    "checkpoint",  # which has another one in it
)
MAX_WRAPPERS = 4  # around one another
KEPT = ("int64", "int32", "int16", "int8", "uint8", "bool")  # as they are
FLOATS = ("float32", "float64", "float16", "bfloat16")  # they become float32
MAX_ENTRIES = 100_000  # of the archive: three a parameter with Adam's state
MAX_VALUE = 1_000_000  # characters of a top-level value as JSON


def torch_tensors(path: Path) -> Contents:
    """List the tensors of a state dict, bare or wrapped, what is plain beside, and the wrappers.

    The file is checked before PyTorch opens it; `torch.load` then unpickles with `weights_only`,
    maps a zip archive, and copies nothing; of a file of before 1.6, which is none, it copies all. A
    tensor is taken only if its values lie in the file as often as it says, else this raises a
    `CheckpointError`, as for all that is not to be trusted. Other tensors, such as an optimizer's,
    are left out.
    """
    import torch

    with path.open("rb") as file:
        is_old = file.read(len(OLD_TORCH)) == OLD_TORCH
    (_check_old if is_old else _check_archive)(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=not is_old)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+\w)", str(error))
        seen = f" (it asks for {asked[1]})" if asked else ""
        raise _wrong(f"holds more than plain tensors and values{seen}", RESAVE) from error
    if not isinstance(loaded, Mapping):
        raise _wrong(f"holds a {type(loaded).__name__}; wanted a state dict", RESAVE)
    values: dict[str, Any] = {}
    state, wrapper = loaded, ""
    for _ in range(MAX_WRAPPERS):
        key = _wrapping_key(state, torch.Tensor)
        if key is None:
            break
        beside = {str(name): value for name, value in state.items() if name != key}
        values |= {name: value for name, value in beside.items() if _is_plain(value)}
        state, wrapper = state[key], f"{wrapper}.{key}".removeprefix(".")
    tensors = []
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor):
            tensors.append(_tensor(str(name), tensor, mapped=not is_old))
        elif wrapper:
            raise _wrong(f"{name!r} in {wrapper} is no tensor but a {type(tensor).__name__}")
        elif _is_plain(tensor):
            values[str(name)] = tensor
    if not tensors:
        raise _wrong("holds no tensors under names", RESAVE)
    return tensors, values, wrapper


def _wrapping_key(state: Mapping[Any, Any], tensor: type) -> str | None:
    """Find what a state dict lies under: a usual name, or the one that alone holds tensors."""
    held = {
        key: value
        for key, value in state.items()
        if isinstance(value, Mapping) and isinstance(key, str)
    }
    if usual := next((key for key in STATES if held.get(key)), None):
        return usual
    if any(isinstance(value, tensor) for value in state.values()):
        return None
    states = [k for k, v in held.items() if any(isinstance(x, tensor) for x in v.values())]
    if len(states) > 1:
        why = f"holds several networks: {', '.join(states[:5])}"
        raise _wrong(why, "load it where it was made, and torch.save one of them alone")
    return states[0] if states else None


def _check_archive(path: Path) -> None:
    """Make sure that the archive is one of `torch.save` and unpacks to no more than it is."""
    size, total = path.stat().st_size, 0
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise _wrong(f"is a damaged zip archive: {error}", "copy or download it again") from error
    with archive:
        entries = archive.infolist()
        names = {entry.filename for entry in entries}
        if len(entries) > MAX_ENTRIES or len(names) < len(entries):
            raise _wrong(f"holds {len(entries)} entries, {len(names)} of different names")
        for entry in entries:
            name = entry.filename
            total += entry.file_size
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise _wrong(f"{name!r} in it is compressed; torch.save never does that")
            if entry.flag_bits & 1 or max(total, entry.header_offset + entry.file_size) > size:
                raise _wrong(f"{name!r} in it is encrypted, or larger than the file")
            if not re.fullmatch(r"[^/\\]+(/[^/\\]+)+", name) or ".." in name:
                raise _wrong(f"{name!r} in it is no name that torch.save gives", RESAVE)
        folder = min(names, default="").partition("/")[0]
        folders = {name.partition("/")[0] for name in names}
        if len(folders) > 1 or f"{folder}/data.pkl" not in names:
            raise _wrong("is a zip archive, but none of torch.save", RESAVE)
        order = f"{folder}/byteorder"  # files before torch 2.1 have none
        if order in names and archive.read(order).decode() != sys.byteorder:
            raise _wrong("was written on a machine of another byte order", RESAVE)


class _Inert:
    """What a class or function of a file is while its storages are listed: it does nothing."""

    def __init__(self, *given: object) -> None:
        pass

    __setitem__ = __setstate__ = append = extend = add = __init__


class _Storages(pickle.Unpickler):
    """Lists the storages that a pickle of before PyTorch 1.6 declares, and calls nothing of it."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="utf-8")  # as PyTorch
        self.sizes: dict[str, int] = {}  # bytes, by key

    def find_class(self, module: str, name: str) -> Any:
        """Give nothing that can be called for storages and tensors: they would hold anything."""
        from torch.serialization import StorageType

        if name.endswith(("Storage", "Tensor")):
            with suppress(KeyError):
                return StorageType(name)  # type: ignore[no-untyped-call]
            return _made_up
        return _Inert

    def persistent_load(self, pid: Any) -> object:
        """Note the size of a storage: as PyTorch, the first that is told."""
        if pid[0] != "storage":
            raise _wrong("holds more than plain tensors and values", RESAVE)
        _, kind, key, _, length, _ = pid
        if type(key) is not str or type(length) is not int or length < 0:
            raise _wrong(f"names a storage {key!r} of {length!r} values")
        if self.sizes.get(key) == 0:  # PyTorch makes another of it, and never fills that
            raise _wrong(f"holds several tensors of the storage {key!r}, which has no values")
        self.sizes.setdefault(key, length * kind.dtype.itemsize)
        return _Inert()


def _check_old(path: Path) -> None:
    """Make sure that a file of before 1.6 holds all of the values that it declares, and no more.

    Five pickles, the fourth of what was saved and the fifth the list of the keys of its storages,
    and in the order of this each storage: how many values, in 8 bytes, and these. PyTorch gives
    whatever lay in memory for a storage that is not in the list.
    """
    with path.open("rb") as file:
        pickles = [_Storages(file) for _ in range(5)]
        loaded = [each.load() for each in pickles]
        rest = path.stat().st_size - file.tell()
    sizes = pickles[3].sizes
    listed = loaded[4] if isinstance(loaded[4], list) else []
    if len(listed) != len(sizes) or {*listed} != {*sizes}:
        seen = f"lists the values of {len(listed)} storages, which are not its {len(sizes)}"
        raise _wrong(seen, DAMAGED)
    if (declared := sum(8 + size for size in sizes.values())) != rest:
        raise _wrong(f"declares {declared} bytes of values, and holds {rest}", DAMAGED)


def _made_up(*given: object) -> None:
    raise _wrong("makes a tensor by a call: its values are not in the file", RESAVE)


def _tensor(name: str, tensor: "Tensor", *, mapped: bool) -> Declared:
    """Make sure that a tensor is of numbers, and that the file holds them all."""
    dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    if str(tensor.layout) != "torch.strided" or tensor.device.type != "cpu" or tensor.is_quantized:
        raise _wrong(f"tensor {name!r} is sparse, quantised or has no values", RESAVE)
    if dtype not in (*FLOATS, *KEPT):
        raise _wrong(f"tensor {name!r} holds {dtype}; wanted numbers", RESAVE)
    storage = tensor.untyped_storage()
    declared, held = tensor.numel() * tensor.element_size(), storage.nbytes()
    if mapped and held and storage.resizable():  # what lies in a mapped file cannot grow
        _made_up()
    if declared > held:
        raise _wrong(f"tensor {name!r} declares {declared} bytes, {shape}, and holds {held}")
    if dtype in KEPT:
        return TensorInfo(name, dtype, shape), tensor.numpy
    return TensorInfo(name, "float32", shape), lambda: tensor.detach().float().numpy()


def _is_plain(value: object) -> bool:
    """Tell whether a value is what JSON has, and not too much of it."""
    try:
        pieces = map(len, json.JSONEncoder().iterencode(value))
        # Lists of one list grow without end.
        return all(length <= MAX_VALUE for length in itertools.accumulate(pieces))
    except (TypeError, ValueError, RecursionError):
        return False
