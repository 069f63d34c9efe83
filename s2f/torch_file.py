"""Weights in `.pt` files of PyTorch: plain tensors, and never a line of code.

Runs in a process of its own (see `confined`). The zip archive is checked before PyTorch opens it;
`torch.load` then unpickles with `weights_only`, maps the file, and copies nothing. A tensor is read
only if its values lie in the file as often as it says.
"""

import ctypes
import json
import math
import mmap
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2f.unpacked import KEPT, PIECE, Unpacked

STATES = ("model_state_dict", "state_dict")  # keys of a training checkpoint's weights
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # they become float32
MAX_ENTRIES = 100_000  # of the archive: three a parameter with Adam's state
MAX_VALUE = 1_000_000  # characters of a top-level value as JSON
RESAVE = "load it where it was made, and save model.state_dict() with torch.save"


def unpack(path: Path, folder: Path, write: bool) -> dict[str, Any]:
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
        out.write(_pieces(tensor.detach()))


def _pieces(tensor: Tensor) -> Iterator[np.ndarray[Any, Any]]:
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
