"""Weights that others published, read without trust: Keras's HDF5 and PyTorch's `.pt`.

A file is known by its first bytes, not by its name, and opened in a process of its own with limits
on memory and time (`confined`). The values come over in a temporary file that this process maps.
Knows nothing of networks: names and layouts are those of the file.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor

from s2f import confined
from s2f.errors import CheckpointError
from s2f.unpacked import DATA, MAX_BYTES

MEGABYTES = 448  # that reading may take beyond what the libraries take
SECONDS, BYTES_PER_SECOND = 6.0, 25e6  # that reading may take, in all and for the size
READERS = {"keras": "s2f.keras_file", "torch": "s2f.torch_file"}
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


def read(path: Path, *, megabytes: int = MEGABYTES, seconds: float | None = None) -> Weights:
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
    return confined.call(
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
