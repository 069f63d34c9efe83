"""`.pt` files: plain tensors come over as they are, and no file gets anything else done."""

import builtins
import importlib
import io
import operator
import os
import pickle
import posixpath
import runpy
import shutil
import subprocess
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_files import Calls, mutate, pickled, write_archive

from s2f import foreign_weights, prep
from s2f.errors import CheckpointError, S2FError, WorkerError
from s2f.foreign_weights import DATA


def unpack(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a file in this process; returns what is told and the arrays by name."""
    folder = path.with_suffix(".out")
    folder.mkdir()
    told = foreign_weights.unpack_torch(path, folder, True)
    data = (folder / DATA).read_bytes()
    arrays = {
        name: np.frombuffer(data, dtype, int(np.prod(shape)), start).reshape(shape)
        for name, dtype, shape, start in told["tensors"]
    }
    return told, arrays


def some_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 4), torch.nn.BatchNorm2d(3))
    return net.state_dict()


def save(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def test_a_bare_state_dict_comes_over_as_it_is(tmp_path: Path) -> None:
    state = some_state()
    told, found = unpack(save(tmp_path / "w.pt", state))
    assert (told["kind"], told["order"], told["values"]) == ("torch", [], {})
    assert list(found) == list(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), strict=True)


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict"])
def test_a_training_checkpoint_gives_its_model_and_what_is_plain(tmp_path: Path, key: str) -> None:
    state = some_state()
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}}
    beside = {"epoch": 3, "history": [0.5, 0.25], "optimizer_state_dict": optimizer}
    told, found = unpack(save(tmp_path / "w.pt", {key: state, **beside}))
    assert list(found) == list(state)
    assert told["values"] == {"epoch": 3, "history": [0.5, 0.25]}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_size_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.tensor([1.5, -2, 0.25])
    _, found = unpack(save(tmp_path / "w.pt", {"a": value.to(dtype)}))
    np.testing.assert_array_equal(found["a"], value.numpy(), strict=True)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integers_stay_as_they_are(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.tensor([1, 0, 7]).to(dtype)
    _, found = unpack(save(tmp_path / "w.pt", {"a": value}))
    np.testing.assert_array_equal(found["a"], value.numpy(), strict=True)


def test_views_tied_and_empty_tensors_and_parameters_hold_their_values(tmp_path: Path) -> None:
    base = torch.arange(4_000_000.0).reshape(2000, 2000)
    state = OrderedDict(
        whole=base, turned=base.t(), part=base[1:, 2:], tied=base, empty=torch.empty(0, 3),
        scalar=torch.tensor(5), parameter=torch.nn.Parameter(torch.ones(2)),
    )  # fmt: skip
    _, found = unpack(save(tmp_path / "w.pt", state))
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name], tensor.detach().numpy(), strict=True)


REFUSED: dict[str, tuple[Any, str]] = {
    "no names": ([torch.ones(2)], "holds a list"),
    "a tensor": (torch.ones(2), "holds a Tensor"),
    "no tensors": ({"epoch": 3}, "no tensors"),
    "NaN": ({"a.weight": torch.tensor([1, float("nan")])}, "'a.weight' holds values"),
    "infinite": ({"a.weight": torch.tensor([1, float("inf")])}, "'a.weight' holds values"),
    "complex": ({"a": torch.ones(2, dtype=torch.complex64)}, "complex64"),
    "sparse": ({"a": torch.ones(2, 2).to_sparse()}, "sparse"),
    "meta": ({"a": torch.ones(2, device="meta")}, "has no values"),
    "expanded": ({"a": torch.ones(1).expand(10**12)}, "declares 4000000000000 bytes"),
    "expanded inside": ({"a": torch.ones(9, 1).expand(9, 10**11)}, "and holds 36"),
    "overlapping": ({"a": torch.ones(9).as_strided((9, 9), (0, 1))}, "and holds 36"),
    "no tensor in the state": ({"state_dict": {"a": torch.ones(2), "b": 3}}, "'b' in state_dict"),
    "two of a name": ({"1": torch.ones(2), 1: torch.ones(2)}, "'1' twice"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_plain_tensor_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    value, said = REFUSED[kind]
    with pytest.raises(CheckpointError, match=said):
        unpack(save(tmp_path / "w.pt", value))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_quantised_tensor_is_refused(tmp_path: Path) -> None:
    value = torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.qint8)
    with pytest.raises(CheckpointError, match="quantised"):
        unpack(save(tmp_path / "w.pt", {"a": value}))


def gadgets(canary: str) -> dict[str, Any]:
    """Objects that would call what they name if they were unpickled; most write a file."""
    touch, code = f"touch {canary}", f"open({canary!r}, 'w').close()"
    opened = Calls(builtins.open, canary, "w")
    return {
        "os.system": Calls(os.system, touch),
        "os.popen": Calls(os.popen, touch),
        "os.open": Calls(os.open, canary, os.O_CREAT),
        "os.mkdir": Calls(os.mkdir, canary),
        "os.execl": Calls(os.execl, "/usr/bin/touch", "touch", canary),
        "os.spawnl": Calls(os.spawnl, os.P_WAIT, "/usr/bin/touch", "touch", canary),
        "eval": Calls(builtins.eval, code),
        "exec": Calls(builtins.exec, code),
        "compile": Calls(builtins.exec, Calls(builtins.compile, code, "c", "exec")),
        "open": opened,
        "import": Calls(builtins.__import__, "antigravity"),
        "getattr": Calls(builtins.getattr, Calls(importlib.import_module, "os"), "system"),
        "attrgetter": Calls(operator.attrgetter("system"), Calls(importlib.import_module, "os")),
        "methodcaller": Calls(operator.methodcaller("touch"), Path(canary)),
        "map": Calls(builtins.list, Calls(builtins.map, os.mkdir, [canary])),
        "subprocess.Popen": Calls(subprocess.Popen, ["touch", canary]),
        "subprocess.run": Calls(subprocess.run, ["touch", canary]),
        "subprocess.getoutput": Calls(subprocess.getoutput, touch),
        "runpy": Calls(runpy.run_path, canary),
        "shutil": Calls(shutil.copy, "/etc/hostname", canary),
        "tarfile": Calls(tarfile.open, canary, "w"),
        "zipfile": Calls(zipfile.ZipFile, canary, "w"),
        "pathlib": Calls(Path.touch, Path(canary)),
        "path": Calls(posixpath.expanduser, canary),
        "pickle": Calls(pickle.loads, pickled(opened)),
        "torch.load": Calls(torch.load, canary),
        "torch.save": Calls(torch.save, {}, canary),
        "torch.hub": Calls(torch.hub.load, canary, "x"),
        "numpy.save": Calls(np.save, canary, 1),
        "numpy.load": Calls(np.load, canary),
        "io.open": Calls(io.FileIO, canary, "w"),
    }  # fmt: skip


NAMES = list(gadgets("canary"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["value", "tensor", "key beside", "optimizer"])
def test_a_pickle_that_runs_code_is_refused_and_runs_none(
    tmp_path: Path, name: str, where: str
) -> None:
    canary = tmp_path / "canary"
    gadget = gadgets(str(canary))[name]
    value = {
        "value": gadget,
        "tensor": {"a.weight": gadget},
        "key beside": {"model_state_dict": {}, "epoch": gadget},
        "optimizer": {"model_state_dict": {}, "optimizer_state_dict": {"state": [gadget]}},
    }[where]
    with pytest.raises(CheckpointError, match="holds more than plain tensors"):
        unpack(write_archive(tmp_path / "w.pt", pickled(value)))
    assert not canary.exists()


def test_the_message_names_what_a_pickle_asks_for(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "w.pt", pickled({"a": Calls(os.mkdir, "canary")}))
    with pytest.raises(CheckpointError, match=r"it asks for (posix|nt)\.mkdir\)"):
        unpack(path)


def test_the_gadgets_would_work(tmp_path: Path) -> None:
    """Else the tests above would show nothing."""
    worked = set()
    for name in ("os.system", "eval", "exec", "open", "pickle", "subprocess.run", "pathlib"):
        canary = tmp_path / name
        made = pickle.loads(pickled(gadgets(str(canary))[name]))
        if hasattr(made, "close"):
            made.close()
        worked |= {name} if canary.exists() else set()
    assert len(worked) == 7


@pytest.mark.parametrize("value", [Calls(bytearray, 10**13), Calls(torch.FloatTensor, 10**12)])
def test_allowed_calls_that_ask_for_terabytes_fail(tmp_path: Path, value: Any) -> None:
    with pytest.raises((S2FError, MemoryError, RuntimeError)):
        unpack(write_archive(tmp_path / "w.pt", pickled({"a": value})))


def archive(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path


STATE = pickled({})
ARCHIVES: dict[str, tuple[dict[str, bytes], str]] = {
    "no pickle": ({"a/data/0": b""}, "none of torch.save"),
    "two folders": ({"a/data.pkl": STATE, "b/data.pkl": STATE}, "none of torch.save"),
    "upwards": ({"a/data.pkl": STATE, "a/../../x": b""}, "no name that torch.save gives"),
    "absolute": ({"a/data.pkl": STATE, "/etc/x": b""}, "no name that torch.save gives"),
    "backslash": ({"a/data.pkl": STATE, "a\\..\\x": b""}, "no name that torch.save gives"),
    "a script": ({"a/data.pkl": STATE, "a/constants.pkl": STATE}, "TorchScript"),
    "a .keras": ({"config.json": b"{}", "model.weights.h5": b""}, "unzip it|.keras archive"),
    "big-endian": ({"a/data.pkl": STATE, "a/byteorder": b"big"}, "byte order"),
    "another zip": ({"word/document.xml": b"<x/>"}, "none of torch.save"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_other_archives_are_refused(tmp_path: Path, kind: str) -> None:
    entries, said = ARCHIVES[kind]
    with pytest.raises(CheckpointError, match=said):
        unpack(archive(tmp_path / "w.pt", entries))


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "w.pt", {"a/data.pkl": STATE, "a/data/0": bytes(10**8)}, zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 200_000
    with pytest.raises(CheckpointError, match=r"'a/data.pkl' in it is compressed"):
        unpack(path)


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """As in bombs of overlapping entries: together they say more than the file has."""
    path = archive(tmp_path / "w.pt", {"a/data.pkl": STATE, "a/data/0": bytes(1000)})
    data = bytearray(path.read_bytes())
    record = data.rindex(b"PK\x01\x02")
    data[record + 20 : record + 28] = (10**6).to_bytes(4, "little") * 2
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="encrypted, or larger than the file"):
        unpack(path)


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        for _ in range(2):
            file.writestr("a/data.pkl", STATE)
    with pytest.raises(CheckpointError, match="of different names"):
        unpack(path)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.95])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, keep: float) -> None:
    path = save(tmp_path / "w.pt", some_state())
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(CheckpointError, match="damaged zip archive"):
        unpack(path)


def test_a_storage_that_is_not_in_the_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", {"a": torch.ones(4)})
    data = path.read_bytes()
    assert b"K\x04t" in data  # numel 4, the last element of the storage's persistent id
    path.write_bytes(data.replace(b"K\x04t", b"K\xfft", 1).replace(b"K\x04\x85", b"K\xff\x85", 1))
    with pytest.raises((S2FError, RuntimeError)):
        unpack(path)


def read_mutated(name: str, original: bytes, seed: int, folder: str) -> str:
    """Read a mutation of a file; says what came of it."""
    path = Path(folder, f"{seed}.pt")
    path.write_bytes(mutate(original, seed))
    (Path(folder) / name).mkdir()
    try:
        told = foreign_weights.unpack_torch(path, Path(folder) / name, True)
    except Exception as error:  # any is fine that leaves the process alive
        return f"refused: {type(error).__name__}"
    written = Path(folder, name, DATA).stat().st_size
    assert written < 2 * len(original), told
    return "read"


def test_damaged_files_are_refused_even_where_they_crash_the_reader(tmp_path: Path) -> None:
    original = save(tmp_path / "w.pt", {"model_state_dict": some_state()}).read_bytes()
    items = [(f"m{seed}", original, seed, str(tmp_path)) for seed in range(300)]
    came = dict(prep.run_in_workers(read_mutated, items, workers=2, preload=["torch"], seconds=20))
    crashed = [seed for seed, result in came.items() if isinstance(result, WorkerError)]
    assert len(came) == 300
    assert sum(str(result).startswith("refused") for result in came.values()) > 50
    assert len(crashed) < 5
    for seed in crashed:
        with pytest.raises(CheckpointError, match=f"{seed}.pt: "):
            foreign_weights.read_foreign(tmp_path / f"{seed}.pt")


def test_a_list_of_lists_of_one_list_is_left_out_in_no_time(tmp_path: Path) -> None:
    value: list[Any] = [0] * 10
    for _ in range(12):
        value = [value] * 10
    answer, _ = unpack(save(tmp_path / "w.pt", {"state_dict": {"a": torch.ones(2)}, "h": value}))
    assert answer["values"] == {}
