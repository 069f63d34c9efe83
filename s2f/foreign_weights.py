"""Weights that others published, read without trust: Keras's HDF5 and PyTorch's `.pt`.

    read_foreign, inspect -> call_confined -> unpack -> keras_tensors or torch_tensors

A file is known by its first bytes, not by its name, and read in a process of its own that may take
so much memory (on Linux), processor time (not on Windows) and time on the clock and no more: what
reads it may crash, hang or be lied to about sizes. This is no sandbox: it guards against accidents
of parsers. A script that reads weights guards its start with `if __name__ == "__main__"`, as for
all of `multiprocessing`. What a file declares is bounded by its own size before it is allocated.

Source: files written by Keras 2.15 and 3.15 and by PyTorch's `torch.save`.
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
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

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
OTHER = "is it the file of another network? See s2f convert inspect"

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


def read_foreign(path: Path, kind: str) -> dict[str, "Tensor"]:
    """Read the weights of a file of Keras or torch (`kind`, as in `FORMATS`) as they lie in it.

    Returns plain, contiguous tensors by their own names, in the file's order and layout: floats of
    any size as float32, integers and booleans as they are. A name is LAYER/WEIGHT with WEIGHT one
    of kernel, bias, gamma ... (keras), or the key of the state dict (torch).

    Raises a `CheckpointError` if the file is missing, of another type, damaged, larger than it may
    be, holds code, or values that are no numbers; an `OutputError` if the folder for temporary
    files has no room for the values.
    """
    import torch

    found = _kind(path)
    if found == "safetensors":
        raise CheckpointError(f"{path}: is a safetensors file, and no foreign weights", hint=WANTED)
    if found != kind:
        seen = f"{path}: holds weights of {FORMATS[found]}; wanted those of {FORMATS[kind]}"
        raise CheckpointError(seen, hint=OTHER)
    with tempfile.TemporaryDirectory(prefix="s2f-", ignore_cleanup_errors=True) as folder:
        data = Path(folder, "tensors.bin")
        listed = _unpack_confined(path, kind, data).tensors
        flat = torch.from_file(str(data), size=data.stat().st_size, dtype=torch.uint8)
    tensors, end = {}, 0
    for tensor in listed:
        dtype = getattr(torch, tensor.dtype)
        start = -(-end // ALIGN) * ALIGN
        end = start + dtype.itemsize * math.prod(tensor.shape)
        tensors[tensor.name] = flat[start:end].view(dtype).view(tensor.shape)
    return tensors


def inspect(path: Path) -> Inspection:
    """List what a foreign or safetensors file holds, not the values; raises as `read_foreign`."""
    kind = _kind(path)
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
        seen = "is a bare pickle or a tar archive, as PyTorch wrote before 1.6; it may hold code"
        hint = "load it where it was made, and save it again with torch.save"
        raise CheckpointError(f"{path}: {seen}", hint=hint)
    seen = f"is neither HDF5 nor an archive of PyTorch; it starts with {start[:8]!r}"
    raise CheckpointError(f"{path}: {seen if start else 'is empty'}", hint=WANTED)


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
    it adds the path, and a `CheckpointError` if the process died or took too much.
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
Contents = tuple[list[Declared], dict[str, Any]]  # of a file: its tensors, and what else it says


def unpack(path: Path, kind: str, target: Path | None) -> Inspection:
    """List the tensors of a file, and write the values into `target` where that is given.

    Whatever the file does, it does to this process. Raises a `CheckpointError`, which lacks the
    path, if the file is not to be trusted or declares more than it can hold, two tensors have one
    name, or a value is NaN or infinite; an `OutputError` if there is no room for the values.
    """
    declared, values = (keras_tensors if kind == "keras" else torch_tensors)(path)
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
    return Inspection(path, kind, tuple(tensors.values()), values)


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
    if "layer_names" in model.attrs or "layer_names0" in model.attrs:
        if values.get("backend") == "theano":
            hint = "load it with Keras on TensorFlow, and save it again"
            raise _wrong("was written by Theano, which flips the kernels of convolutions", hint)
        found = _legacy_weights(model)
    elif any(name in file for name in LAYERS):
        found = _new_weights(file)
    else:
        raise _wrong("is an HDF5 file, but holds no Keras weights")
    tensors = [_declared(name, dataset) for name, dataset in found]
    if not tensors:
        raise _wrong("holds no weights")
    return tensors, values


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


STATES = ("model_state_dict", "state_dict")  # keys of a training checkpoint's weights
KEPT = ("int64", "int32", "int16", "int8", "uint8", "bool")  # as they are
FLOATS = ("float32", "float64", "float16", "bfloat16")  # they become float32
MAX_ENTRIES = 100_000  # of the archive: three a parameter with Adam's state
MAX_VALUE = 1_000_000  # characters of a top-level value as JSON


def torch_tensors(path: Path) -> Contents:
    """List the tensors of a state dict, bare or in a training checkpoint, and what is plain beside.

    The zip archive is checked before PyTorch opens it; `torch.load` then unpickles with
    `weights_only`, maps the file, and copies nothing. A tensor is taken only if its values lie in
    the file as often as it says, else this raises a `CheckpointError`, as for all that is not to
    be trusted. Other tensors, such as an optimizer's, are left out.
    """
    import torch

    _check_archive(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+\w)", str(error))
        seen = f" (it asks for {asked[1]})" if asked else ""
        raise _wrong(f"holds more than plain tensors and values{seen}", RESAVE) from error
    if not isinstance(loaded, Mapping):
        raise _wrong(f"holds a {type(loaded).__name__}; wanted a state dict", RESAVE)
    key = next((name for name in STATES if isinstance(loaded.get(name), Mapping)), None)
    tensors = []
    for name, tensor in (loaded if key is None else loaded[key]).items():
        if isinstance(tensor, torch.Tensor):
            tensors.append(_tensor(str(name), tensor))
        elif key is not None:
            raise _wrong(f"{name!r} in {key} is no tensor but a {type(tensor).__name__}")
    if not tensors:
        raise _wrong("holds no tensors under names", RESAVE)
    beside = {str(name): value for name, value in loaded.items() if name != key}
    return tensors, {name: value for name, value in beside.items() if _is_plain(value)}


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
        if "model.weights.h5" in names:
            raise _wrong("is a .keras archive", "unzip it, and give the model.weights.h5 in it")
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
        if f"{folder}/constants.pkl" in names:
            raise _wrong("is a TorchScript program; wanted a state dict", RESAVE)
        folders = {name.partition("/")[0] for name in names}
        if len(folders) > 1 or f"{folder}/data.pkl" not in names:
            raise _wrong("is a zip archive, but none of torch.save", RESAVE)
        order = f"{folder}/byteorder"  # files before torch 2.1 have none
        if order in names and archive.read(order).decode() != sys.byteorder:
            raise _wrong("was written on a machine of another byte order", RESAVE)


def _tensor(name: str, tensor: "Tensor") -> Declared:
    """Make sure that a tensor is of numbers, and that the file holds them all."""
    dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    if str(tensor.layout) != "torch.strided" or tensor.device.type != "cpu" or tensor.is_quantized:
        raise _wrong(f"tensor {name!r} is sparse, quantised or has no values", RESAVE)
    if dtype not in (*FLOATS, *KEPT):
        raise _wrong(f"tensor {name!r} holds {dtype}; wanted numbers", RESAVE)
    declared, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
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
