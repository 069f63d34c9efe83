"""Foreign files, from end to end: values come over, everything else is one line that names it."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from foreign_files import (
    Calls,
    pickled,
    some_layers,
    write_archive,
    write_layers,
    write_legacy,
)

from s2f import checkpoint, foreign_weights
from s2f.errors import CheckpointError
from s2f.foreign_weights import Weights, inspect, read_foreign


@pytest.fixture
def state() -> dict[str, Any]:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(2, 3, 4), torch.nn.BatchNorm2d(3)).state_dict()


def test_keras_weights_come_over(tmp_path: Path) -> None:
    layers = some_layers(3)
    weights = read_foreign(
        write_legacy(tmp_path / "w.bin", layers, keras_version=b"2.1", backend=b"jax")
    )
    assert (weights.kind, weights.order) == ("keras", tuple(layers))
    assert weights.values == {"backend": "jax", "keras_version": "2.1"}
    for layer, arrays in layers.items():
        for name, value in arrays.items():
            tensor = weights.tensors[f"{layer}/{name.split('/')[1].split(':')[0]}"]
            torch.testing.assert_close(tensor, torch.from_numpy(value), rtol=0, atol=0)
            assert tensor.is_contiguous()


def test_torch_weights_come_over(tmp_path: Path, state: dict[str, Any]) -> None:
    torch.save({"model_state_dict": state, "epoch": 7}, tmp_path / "w.pth.tar")
    weights = read_foreign(tmp_path / "w.pth.tar")
    assert (weights.kind, weights.order, weights.values) == ("torch", (), {"epoch": 7})
    assert list(weights.tensors) == list(state)
    for name, tensor in state.items():
        torch.testing.assert_close(weights.tensors[name], tensor, rtol=0, atol=0)


def test_the_values_outlive_the_file_and_may_be_changed(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "w.h5", some_layers(2))
    weights = read_foreign(path)
    path.unlink()
    weights.tensors["a_dense/bias"].fill_(3)
    assert weights.tensors["a_dense/bias"].tolist() == [3, 3]


def test_nothing_temporary_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    read_foreign(write_legacy(tmp_path / "w.h5", some_layers(2)))
    inspect(tmp_path / "w.h5")
    with pytest.raises(CheckpointError):
        read_foreign(write_legacy(tmp_path / "v.h5", {"a": {"a/b": np.float32("nan")}}))
    assert list((tmp_path / "tmp").iterdir()) == []


def test_inspecting_lists_what_reading_gives(tmp_path: Path, state: dict[str, Any]) -> None:
    torch.save({"model_state_dict": state, "epoch": 7}, tmp_path / "w.pt")
    paths = [
        write_legacy(tmp_path / "w.h5", some_layers(3)),
        write_layers(tmp_path / "w.weights.h5", some_layers(3)),
        tmp_path / "w.pt",
    ]
    for path in paths:
        found, weights = inspect(path), read_foreign(path)
        assert (found.path, found.kind, found.values) == (path, weights.kind, weights.values)
        assert [(t.name, t.dtype, t.shape) for t in found.tensors] == [
            (name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in weights.tensors.items()
        ]


def test_inspecting_a_checkpoint_of_ours_gives_its_header(models: Path) -> None:
    path = models / "demo" / "face_encoder.safetensors"
    found, loaded = inspect(path), checkpoint.load(path, "face_encoder")
    assert found.kind == "face_encoder"
    assert found.values["card"] == dataclasses.asdict(loaded.card)
    assert found.values["embedding_space"] == loaded.embedding_space
    assert {t.name: t.shape for t in found.tensors} == {
        name: tuple(tensor.shape) for name, tensor in loaded.network.state_dict().items()
    }


def test_inspecting_reads_no_values(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "w.h5", {"a": {"a/b": np.array([np.nan], np.float32)}})
    assert inspect(path).tensors == (foreign_weights.TensorInfo("a/bias", "float32", (1,)),)


def test_a_safetensors_file_of_others_is_listed_and_not_converted(tmp_path: Path) -> None:
    import safetensors.torch

    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2, dtype=torch.float16)}, path, {"by": "me"})
    found = inspect(path)
    assert (found.kind, found.values) == ("safetensors", {"by": "me"})
    assert found.tensors == (foreign_weights.TensorInfo("a", "float16", (2,)),)
    with pytest.raises(CheckpointError, match="no foreign weights"):
        read_foreign(path)


@pytest.mark.parametrize("header", ["[]", "{}", '{"kind": 3}', "{", "[" * 100_000])
def test_a_checkpoint_with_a_broken_header_is_refused(tmp_path: Path, header: str) -> None:
    import safetensors.torch

    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "w", {"s2f": header})
    with pytest.raises(CheckpointError, match=r"header|damaged"):
        inspect(tmp_path / "w")


def test_a_checkpoint_that_is_cut_off_is_refused(tmp_path: Path, models: Path) -> None:
    data = (models / "demo" / "face_encoder.safetensors").read_bytes()
    (tmp_path / "w").write_bytes(data[:-10])
    with pytest.raises(CheckpointError, match="damaged safetensors"):
        inspect(tmp_path / "w")


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as file:
        file.add(__file__, "pickle")


def nested(path: Path) -> None:
    inner = write_archive(path.with_name("inner"), pickled({"a": Calls(os.mkdir, "canary")}))
    with zipfile.ZipFile(path, "w") as file:
        file.write(inner, "archive.pt")


def terabytes(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"a"]
        group = file.create_group("a")
        group.attrs["weight_names"] = [b"w"]
        group.create_dataset("w", (10**6, 10**6), "f4")


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("archive/data.pkl", pickled({}))
        with file.open("archive/data/0", "w") as entry:
            for _ in range(600):
                entry.write(bytes(2**20))


def chunked_bomb(path: Path) -> None:
    """Chunks of zeros that unpack to a thousand times their size, within what is allowed."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"a"]
        group = file.create_group("a")
        group.attrs["weight_names"] = [b"w"]
        data = group.create_dataset(
            "w", (200_000_000,), "f4", chunks=(10_000_000,), compression="gzip", compression_opts=1
        )
        data[:20_000_000] = 0


def canary_pickle(path: Path) -> None:
    path.write_bytes(pickled({"a": Calls(os.mkdir, str(path.with_name("canary")))}))


def canary_archive(path: Path) -> None:
    write_archive(path, pickled({"a": Calls(os.mkdir, str(path.with_name("canary")))}))


def greedy(path: Path) -> None:
    write_archive(path, pickled({"a": Calls(bytearray, 2 * 10**9)}))


WRONG: dict[str, tuple[Any, str]] = {
    "missing": (lambda path: None, "no such file"),
    "a folder": (Path.mkdir, "is a folder"),
    "empty": (Path.touch, "is empty"),
    "a text": (lambda path: path.write_text("weights, honestly"), "neither HDF5 nor"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), "neither HDF5"),
    "a pipe": (os.mkfifo, "no such file"),
    "an HDF5 signature": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "cannot be read"),
    "a zip signature": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(9)), "damaged zip"),
    "an old pickle": (
        lambda path: torch.save({}, path, _use_new_zipfile_serialization=False), "bare pickle",
    ),
    "a pickle that runs code": (canary_pickle, "bare pickle"),
    "an archive that runs code": (canary_archive, r"asks for posix\.mkdir"),
    "a tar": (tar, "tar archive"),
    "an archive in an archive": (nested, "no name that torch.save gives"),
    "terabytes": (terabytes, "declares 4000000000000 bytes"),
    "a bomb": (bomb, "is compressed"),
    "a bomb of chunks": (chunked_bomb, "may declare"),
    "a pickle that asks for memory": (greedy, "needs more than|cannot be read|no tensors"),
}  # fmt: skip


def refusal(job: Any, path: Path) -> str:
    """Read a wrong file, in time and without letting it do anything; returns what is said."""
    start = time.monotonic()
    with pytest.raises(CheckpointError) as raised:
        job(path)
    assert time.monotonic() - start < 10
    assert raised.value.hint
    message = raised.value.message
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert not path.with_name("canary").exists()
    return message


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_files_are_refused_in_time(tmp_path: Path, kind: str) -> None:
    make, said = WRONG[kind]
    make(tmp_path / "w.h5")  # for most of them a false name
    assert re.search(said, refusal(read_foreign, tmp_path / "w.h5"))


@pytest.mark.parametrize("kind", ["empty", "terabytes", "a bomb", "an archive that runs code"])
def test_inspecting_refuses_them_too(tmp_path: Path, kind: str) -> None:
    make, said = WRONG[kind]
    make(tmp_path / "w.pth.tar")
    assert re.search(said, refusal(inspect, tmp_path / "w.pth.tar"))


PEAK = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, *sys.argv[1:]], stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


def peak_megabytes(reader: str, path: Path) -> int:
    """Read a file in a confined process whose parent is tiny; returns the most it ever took."""
    with tempfile.TemporaryDirectory() as folder:
        size = path.stat().st_size // 2**20 + 1 if reader == "s2f.foreign_weights" else 0
        request = json.dumps([reader, str(path), folder, True, foreign_weights.MEGABYTES + size, 9])
        command = [sys.executable, "-c", PEAK, "-P", "-m", "s2f.foreign_weights", request]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout)


@functools.cache
def base_megabytes(reader: str) -> int:
    """What reading next to nothing takes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w")
        if reader == "s2f.foreign_weights":
            write_legacy(path, some_layers(2))
        else:
            torch.save({"a": torch.ones(2)}, path)
        return peak_megabytes(reader, path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory")
@pytest.mark.parametrize(
    ("reader", "make"),
    [
        ("s2f.foreign_weights", terabytes),
        ("s2f.foreign_weights", chunked_bomb),
        ("s2f.foreign_weights", bomb),
        ("s2f.foreign_weights", greedy),
        ("s2f.foreign_weights", canary_archive),
    ],
)
def test_a_wrong_file_takes_half_a_gigabyte_at_most(tmp_path: Path, reader: str, make: Any) -> None:
    make(tmp_path / "w")
    assert peak_megabytes(reader, tmp_path / "w") - base_megabytes(reader) < 512


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["keras", "torch"])
@pytest.mark.parametrize("last", [1.0, float("nan")])
def test_a_full_size_file_is_read_in_seconds_and_little_memory(
    tmp_path: Path, kind: str, last: float
) -> None:
    """The sizes of VGG-Face: 580 MB, of which one kernel is 411 MB."""
    rng = np.random.default_rng(0)
    arrays = {f"conv2d_{k}": rng.standard_normal((3, 3, 512, 512), np.float32) for k in range(5)}
    arrays["fc6"] = rng.standard_normal((7, 7, 512, 4096), np.float32)
    arrays["fc7"] = rng.standard_normal((4096, 4096), np.float32)
    arrays["fc8"] = rng.standard_normal((4096, 2622), np.float32)
    arrays["fc8"][-1, -1] = last
    path = tmp_path / "w"
    if kind == "keras":
        write_legacy(path, {name: {f"{name}/kernel:0": a} for name, a in arrays.items()})
    else:
        torch.save({f"{name}/kernel": torch.from_numpy(a) for name, a in arrays.items()}, path)
    assert path.stat().st_size > 560e6
    assert peak_megabytes(f"s2f.{kind}_file", path) < 512
    start = time.monotonic()
    if last == 1:
        weights: Weights = read_foreign(path)
        assert time.monotonic() - start < 10
        for name, array in arrays.items():
            assert np.array_equal(weights.tensors[f"{name}/kernel"].numpy(), array)
    else:
        with pytest.raises(CheckpointError, match="'fc8/kernel' holds values that are no numbers"):
            read_foreign(path)
        assert time.monotonic() - start < 10
