"""The tensors of a checkpoint as bytes: hashed, written and listed, in safetensors' format.

One tensor at a time, so that saving a network needs no second copy of it in memory; safetensors'
own writers either return the whole file or put another file in the place of the one they are given.
A file is hashed from its bytes, without torch: that may take a while, and can be done meanwhile.

Source: the format is safetensors' (8 bytes of header length, a JSON header, the data).
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, NoReturn

if TYPE_CHECKING:
    from torch import Tensor

# By torch's names: those of safetensors, and bytes a value; in the order that it writes them.
_TYPES = {
    "int64": ("I64", 8), "float64": ("F64", 8), "float32": ("F32", 4), "int32": ("I32", 4),
    "bfloat16": ("BF16", 2), "float16": ("F16", 2), "int16": ("I16", 2),
    "int8": ("I8", 1), "uint8": ("U8", 1), "bool": ("BOOL", 1),
}  # fmt: skip
_ORDER = list(_TYPES)
_NAMES = {short: (name, n_bytes) for name, (short, n_bytes) in _TYPES.items()}
_MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
_BUFFER = 1 << 22  # bytes read at once: smaller ones wait for the lock of a busy interpreter


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in a file.

    Attributes:
        dtype: as torch calls it, `float32`.
        shape: of the tensor; () for a scalar.
        start: its first byte in the file.
        n_bytes: of its data.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    n_bytes: int


@dataclass(frozen=True)
class Contents:
    """What the header of a file says: texts, and tensors by name."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Stored]


def payload_sha256(tensors: "Mapping[str, Tensor]") -> str:
    """Hash names, types, shapes and values of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(_title(name, _type(tensor), tuple(tensor.shape)))
        digest.update(_data(tensor))
    return digest.hexdigest()


def file_sha256(path: Path, told: Callable[[int], object] | None = None) -> str:
    """Hash the tensors in a file as `payload_sha256` hashes them, in bounded memory.

    Args:
        path: of a safetensors file.
        told: called with the bytes of tensors hashed so far, now and then.

    Raises:
        ValueError: if it is not such a file, whole and with nothing more in it.
        OSError: if it cannot be read.
    """
    digest = hashlib.sha256()
    # Read, not mapped: pages of a map would count as this process's memory.
    buffer = memoryview(bytearray(_BUFFER))
    done = 0
    with path.open("rb", buffering=0) as file:
        tensors = read_contents(file).tensors
        for name in sorted(tensors):
            tensor = tensors[name]
            digest.update(_title(name, tensor.dtype, tensor.shape))
            file.seek(tensor.start)
            left = tensor.n_bytes
            while left:
                n = file.readinto(buffer[:left])
                if not n:
                    raise ValueError("it became shorter while it was read")
                digest.update(buffer[:n])
                left -= n
                done += n
                if told:
                    told(done)
    return digest.hexdigest()


def read_contents(file: BinaryIO | IO[bytes]) -> Contents:
    """Read the header of a safetensors file, and check that the data are as long as it says.

    Args:
        file: open for reading, at its beginning.

    Raises:
        ValueError: if it is not such a file, or not whole.
    """
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise ValueError("it does not begin with the length of a header")
    text = file.read(length)
    if not text.startswith(b"{"):
        raise ValueError("it has no header in JSON")
    try:
        header = json.loads(
            text.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except RecursionError as error:
        raise ValueError("its header is nested too deep") from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata are not texts")
    for words in metadata.items():
        "".join(words).encode()  # half a surrogate pair is no text
    tensors = {name: _stored(name, entry, 8 + length) for name, entry in header.items()}
    end = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].n_bytes)):
        if tensor.start != end:
            raise ValueError(f"tensor {name!r} does not begin where the one before it ends")
        end += tensor.n_bytes
    if end != size:
        raise ValueError(f"it has {size} bytes; its header wants {end}")
    return Contents(metadata, tensors)


def write(file: IO[bytes], tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata as one safetensors file, the same bytes as safetensors writes."""
    names = sorted(tensors, key=lambda name: (_ORDER.index(_type(tensors[name])), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _TYPES[_type(tensor)][0],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        file.write(_data(tensors[name]))


def _title(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    """What is hashed of a tensor before its data."""
    return f"{name} torch.{dtype} {shape}\n".encode()


def _type(tensor: "Tensor") -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _data(tensor: "Tensor") -> memoryview:
    import torch  # slow, and most that hash files do without

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data: memoryview = flat.view(torch.uint8).numpy().data
    return data


def _stored(name: str, entry: Any, base: int) -> Stored:
    """Read what a header says of one tensor whose data begin after byte `base`."""
    try:
        short, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        dtype, n_bytes = _NAMES[short]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its header does not describe the tensor {name!r}") from error
    numbers = [start, end, *shape] if isinstance(shape, list) else [None]
    if not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        raise ValueError(f"its header does not give the place of the tensor {name!r}")
    if end - start != n_bytes * math.prod(shape):
        raise ValueError(f"tensor {name!r} has {end - start} bytes: not what its shape needs")
    name.encode()  # half a surrogate pair is no name
    return Stored(dtype, tuple(shape), base + start, end - start)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("its header names something twice")
    return names


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"its header holds {name}")
