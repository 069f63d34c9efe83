"""Foreign files: values come over as they are, everything else is one line that names the file.

Files are written by h5py as Keras lays them out, and by `torch.save`; Keras' own files are read in
`test_keras_check`. Attacks are lists: what is done to a file, and what must be said of it.
"""

import builtins
import dataclasses
import functools
import multiprocessing
import operator
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from foreign_files import (
    Calls,
    Layers,
    obey,
    pickled,
    some_layers,
    write_archive,
    write_layers,
    write_legacy,
)

from s2f import checkpoint, foreign_weights, prep
from s2f.errors import CheckpointError, OutputError, S2FError, WorkerError
from s2f.foreign_weights import (
    ALIGN,
    MAX_BYTES,
    RATIO,
    SPARE,
    Inspection,
    TensorInfo,
    inspect,
    read_foreign,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory")
multiprocessing.set_forkserver_preload(["torch", "h5py"])  # once, not for each file
CONVS = ["conv2d", *(f"conv2d_{k}" for k in range(1, 12))]
Found = dict[str, np.ndarray]


def unpack(path: Path) -> tuple[list[str], Inspection, Found]:
    """Read a file in this process; returns its layers, what it holds, and the arrays by name."""
    target = path.with_suffix(".out")
    kind = "keras" if h5py.is_hdf5(path) else "torch"
    told, order = foreign_weights.unpack(path, kind, target)
    data, end, arrays = target.read_bytes(), 0, {}
    for tensor in told.tensors:
        n, dtype = int(np.prod(tensor.shape)), np.dtype(tensor.dtype)
        start = -(-end // ALIGN) * ALIGN
        end = start + n * dtype.itemsize
        arrays[tensor.name] = np.frombuffer(data, dtype, n, start).reshape(tensor.shape)
    return order, told, arrays


def wanted(layers: Layers) -> Found:
    return {
        f"{layer}/{name.split('/')[-1].removesuffix(':0')}": value
        for layer, weights in layers.items()
        for name, value in weights.items()
    }


def assert_same(found: Any, expected: Any) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], np.asarray(value), strict=True)


def some_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 4), torch.nn.BatchNorm2d(3))
    return net.state_dict()


def save(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.parametrize("kind", ["legacy", "layers", "torch"])
def test_weights_come_over_as_they_are_and_are_listed(tmp_path: Path, kind: str) -> None:
    path, layers, state = tmp_path / "w.bin", some_layers(3), some_state()
    values: dict[str, Any] = {}
    if kind == "legacy":
        values = {"backend": "jax", "keras_version": "2.1"}
        write_legacy(path, layers, keras_version=b"2.1", backend=b"jax")
    elif kind == "layers":
        layers = {"dense" if name == "a_dense" else name: layers[name] for name in layers}
        write_layers(path, layers)
    else:
        values = {"epoch": 7}
        torch.save({"model_state_dict": state, "epoch": 7}, path)
    weights, listed = read_foreign(path), inspect(path)
    path.unlink()
    assert (weights.kind, weights.values) == ("torch" if kind == "torch" else "keras", values)
    assert weights.order == (() if kind == "torch" else tuple(layers))
    assert_same(weights.tensors, state if kind == "torch" else wanted(layers))
    assert (listed.path, listed.kind, listed.values) == (path, weights.kind, values)
    assert listed.tensors == tuple(
        TensorInfo(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in weights.tensors.items()
    )
    first = next(iter(weights.tensors.values()))
    assert first.is_contiguous() and bool((first.fill_(3) == 3).all())  # it may be changed


def test_nothing_temporary_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    inspect(write_legacy(tmp_path / "w.h5", some_layers(2)))
    path = write_legacy(tmp_path / "v.h5", {"a": {"a/b": np.full(1, np.nan, np.float32)}})
    with pytest.raises(CheckpointError):
        read_foreign(path)
    assert inspect(path).tensors == (TensorInfo("a/bias", "float32", (1,)),)  # reads no values
    assert list((tmp_path / "tmp").iterdir()) == []


def test_inspecting_a_checkpoint_of_ours_gives_its_header(models: Path) -> None:
    path = models / "demo" / "face_encoder.safetensors"
    found, loaded = inspect(path), checkpoint.load(path, "face_encoder")
    assert found.kind == "face_encoder"
    assert found.values["card"] == dataclasses.asdict(loaded.card)
    assert found.values["embedding_space"] == loaded.embedding_space
    assert {t.name: t.shape for t in found.tensors} == {
        name: tuple(tensor.shape) for name, tensor in loaded.network.state_dict().items()
    }


def test_a_safetensors_file_of_others_is_listed_and_not_converted(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2, dtype=torch.float16)}, path, {"by": "me"})
    found = inspect(path)
    assert (found.kind, found.values) == ("safetensors", {"by": "me"})
    assert found.tensors == (TensorInfo("a", "float16", (2,)),)
    with pytest.raises(CheckpointError, match="no foreign weights"):
        read_foreign(path)


@pytest.mark.parametrize("header", ["[]", "{}", '{"kind": 3}', "{", "[" * 100_000, "cut off"])
def test_a_checkpoint_with_a_broken_header_is_refused(tmp_path: Path, header: str) -> None:
    path = tmp_path / "w"
    safetensors.torch.save_file({"a": torch.ones(2)}, path, {"s2f": header})
    if header == "cut off":
        path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"header|damaged"):
        inspect(path)


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as file:
        file.add(__file__, "pickle")


def one_weight(path: Path, make: Callable[[h5py.Group], object]) -> None:
    """Write a file of one layer `a`, whose weight `w` is as some function makes it."""
    write_legacy(path, {"a": {}})
    with h5py.File(path, "a") as file:
        file["a"].attrs["weight_names"] = [b"w"]
        make(file)


def terabytes(file: h5py.File) -> None:
    file["a"].create_dataset("w", (10**6, 10**6), "f4")


def chunked_bomb(file: h5py.File) -> None:
    """Chunks of zeros that unpack to a thousand times their size, within what is allowed."""
    data = file["a"].create_dataset(
        "w", (200_000_000,), "f4", chunks=(10_000_000,), compression="gzip", compression_opts=1
    )
    data[:20_000_000] = 0


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("archive/data.pkl", pickled({}))
        with file.open("archive/data/0", "w") as entry:
            for _ in range(600):
                entry.write(bytes(2**20))


def greedy(path: Path) -> None:
    write_archive(path, pickled({"a": Calls(bytearray, 2 * 10**9)}))


def nested(path: Path) -> None:
    inner = write_archive(path.with_name("inner"), pickled({"a": Calls(os.mkdir, "canary")}))
    with zipfile.ZipFile(path, "w") as file:
        file.write(inner, "archive.pt")


def canary(path: Path) -> bytes:
    return pickled({"a": Calls(os.mkdir, str(path.with_name("canary")))})


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
    "a pickle that runs code": (lambda path: path.write_bytes(canary(path)), "bare pickle"),
    "an archive that runs code": (
        lambda path: write_archive(path, canary(path)), r"asks for posix\.mkdir",
    ),
    "a tar": (tar, "tar archive"),
    "an archive in an archive": (nested, "no name that torch.save gives"),
    "terabytes": (lambda path: one_weight(path, terabytes), "declares 4000000000000 bytes"),
    "a bomb": (bomb, "is compressed"),
    "a bomb of chunks": (lambda path: one_weight(path, chunked_bomb), "may declare"),
    "a pickle that asks for memory": (greedy, "needs more than|cannot be read|no tensors"),
}  # fmt: skip


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The first file waits for the modules above, all of torch, which no reader of HDF5 needs."""
    read_foreign(write_legacy(tmp_path_factory.mktemp("good") / "w.h5", some_layers(2)))


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_files_are_refused_in_time_and_do_nothing(tmp_path: Path, kind: str) -> None:
    make, said = WRONG[kind]
    path = tmp_path / "w.h5"  # for most of them a false name
    make(path)
    for job in (read_foreign, inspect):
        start = time.monotonic()
        with pytest.raises(CheckpointError, match=said) as raised:
            job(path)
        assert time.monotonic() - start < 10
        assert raised.value.hint
        assert raised.value.message.startswith(f"{path}: ")
        assert "\n" not in raised.value.message
        assert not (tmp_path / "canary").exists()


PEAK = """
import multiprocessing, resource, sys
from pathlib import Path
from s2f import foreign_weights
from s2f.errors import CheckpointError
multiprocessing.get_all_start_methods = lambda: ["spawn"]  # the reader is a child of this process
try:
    foreign_weights._unpack_confined(Path(sys.argv[1]), Path(sys.argv[2]))
    print("read")
except CheckpointError as error:
    print("refused")
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


def peak_megabytes(path: Path, outcome: str) -> int:
    """Read a file in a confined process whose parent is small; returns the most it ever took."""
    command = [sys.executable, "-c", PEAK, str(path), str(path.with_name("data"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    what, peak = done.stdout.split()
    assert what == outcome
    return int(peak)


@functools.cache
def base_megabytes(kind: str) -> int:
    """What reading next to nothing takes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w")
        if kind == "keras":
            write_legacy(path, some_layers(2))
        else:
            torch.save({"a": torch.ones(2)}, path)
        return peak_megabytes(path, "read")


@linux
@pytest.mark.parametrize(
    ("reader", "kind"),
    [
        ("keras", "terabytes"),
        ("keras", "a bomb of chunks"),
        ("torch", "a bomb"),
        ("torch", "a pickle that asks for memory"),
        ("torch", "an archive that runs code"),
    ],
)
def test_a_wrong_file_takes_half_a_gigabyte_at_most(tmp_path: Path, reader: str, kind: str) -> None:
    WRONG[kind][0](tmp_path / "w")
    assert peak_megabytes(tmp_path / "w", "refused") - base_megabytes(reader) < 512


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call a reader that does what its file says."""
    monkeypatch.setattr(foreign_weights, "START_SECONDS", 2.0)

    def call(what: str) -> Any:
        path = tmp_path / "file"
        path.write_text(what)
        return foreign_weights.call_confined(obey, (path,), megabytes=200, seconds=1.0)

    return call


def test_the_answer_comes_back_and_nothing_else(call: Any, tmp_path: Path, capfd: Any) -> None:
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        name, open_files = call("answer")
    assert name == "file"
    assert not any(str(tmp_path) in place for place in open_files)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("refuse", CheckpointError, "file: is wrong"),
        ("full", OutputError, "disk full"),
        pytest.param("memory", CheckpointError, "needs more than 200 MB", marks=linux),
        pytest.param("slowly more memory", CheckpointError, "needs more than 200 MB", marks=linux),
        ("busy", CheckpointError, "took more than 1 s"),
        ("asleep", CheckpointError, "took more than 1 s"),
        ("crash", CheckpointError, r"died \(signal 11\)"),
        ("exit", CheckpointError, r"died \(exit code 3\)"),
        ("bug", CheckpointError, "cannot be read: ZeroDivisionError: of all$"),
    ],
)
def test_the_end_of_the_process_is_an_error_that_names_the_file(
    call: Any, tmp_path: Path, what: str, error: type[S2FError], said: str
) -> None:
    with pytest.raises(error, match=said) as raised:
        call(what)
    assert str(tmp_path / "file") in raised.value.message or what == "full"
    assert raised.value.hint


ASK = """
import sys
sys.path = [place for place in sys.path if place]
from pathlib import Path
from foreign_files import obey
from s2f import foreign_weights
path = Path(sys.argv[1], "file")
foreign_weights.call_confined(obey, (path,), megabytes=int(sys.argv[2]), seconds=900)
"""


def asking(tmp_path: Path, what: str, megabytes: int, shell: str = "") -> subprocess.Popen[bytes]:
    """Start a process that calls a reader."""
    (tmp_path / "file").write_text(what)
    places = [str(Path(__file__).parent), *filter(None, sys.path)]
    command = ["bash", "-c", f'{shell} exec "$0" "$@"', sys.executable, "-c", ASK]
    return subprocess.Popen(
        [*command, str(tmp_path), str(megabytes)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places), "PYTHONSAFEPATH": ""},
        cwd=tmp_path,
    )


@linux
def test_limits_of_the_users_shell_stay_and_its_folder_gives_no_modules(tmp_path: Path) -> None:
    (tmp_path / "socket.py").write_text("raise SystemExit")
    assert asking(tmp_path, "answer", 9000, "ulimit -t 60; ulimit -v 4000000;").wait() == 0


@linux
def test_the_process_ends_with_the_one_that_asked_even_if_that_is_killed(tmp_path: Path) -> None:
    note, asked = tmp_path / "note", asking(tmp_path, "note", 200)
    deadline = time.monotonic() + 30
    while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    asked.kill()
    asked.wait()
    status = Path("/proc", note.read_text(), "stat")

    def is_dead() -> bool:
        try:
            return " Z " in status.read_text()
        except OSError:
            return True

    while not is_dead() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert is_dead()


def store(
    monkeypatch: pytest.MonkeyPatch, path: Path, target: Path | None, *declared: Any
) -> tuple[TensorInfo, ...]:
    """Unpack a file that declares some tensors: name, type, shape, values."""
    tensors = [(TensorInfo(*given), lambda values=values: values) for *given, values in declared]
    monkeypatch.setattr(foreign_weights, "torch_tensors", lambda path: (tensors, [], {}))
    return foreign_weights.unpack(path, "torch", target)[0].tensors


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(bytes(100))
    return path


def test_tensors_lie_in_the_data_at_even_places(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = np.arange(6, dtype=np.float32), np.array([5, 6])
    declared = ("a", "float32", (3, 2), a), ("b", "int64", (2,), b)
    told = store(monkeypatch, source, tmp_path / "data", *declared)
    assert told == (TensorInfo("a", "float32", (3, 2)), TensorInfo("b", "int64", (2,)))
    data = (tmp_path / "data").read_bytes()
    assert data == a.tobytes() + bytes(ALIGN - a.nbytes) + b.tobytes()


def test_as_many_bytes_may_be_declared_as_the_file_can_hold(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = RATIO * 100 + SPARE
    whole = ("a", "uint8", (limit,), None)
    assert store(monkeypatch, source, None, whole) == (TensorInfo("a", "uint8", (limit,)),)
    for other, said in (
        (("b", "uint8", (1,), None), f"declares .*{limit}, and"),
        (("b", "uint8", (2**32, 2**32), None), f"declares .*{limit}, and"),
        (("a", "uint8", (0,), None), "'a' twice"),
    ):
        with pytest.raises(CheckpointError, match=said):
            store(monkeypatch, source, None, whole, other)
    with source.open("wb") as file:
        file.truncate(10**12)  # a sparse file may not fill the disk
    with pytest.raises(CheckpointError, match=f"may declare {MAX_BYTES}"):
        store(monkeypatch, source, tmp_path / "data", ("a", "uint8", (MAX_BYTES + 1,), None))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_the_outputs_fault(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = np.zeros(2**20, np.float32)
    with pytest.raises(OutputError, match="/dev/full: cannot be written"):
        store(monkeypatch, source, Path("/dev/full"), ("a", "float32", (2**20,), zeros))


@pytest.mark.parametrize(("root", "split"), [("", False), ("model_weights", True)])
def test_legacy_files_come_in_the_order_of_their_attributes(
    tmp_path: Path, root: str, split: bool
) -> None:
    layers = some_layers()  # conv2d_10 is before conv2d_2 among the keys, a_dense before all
    path = write_legacy(tmp_path / "w.h5", layers, root=root, split=split, backend=b"tensorflow")
    order, told, found = unpack(path)
    assert order == [*CONVS, "a_dense"]
    assert told.values == {"backend": "tensorflow"}
    assert_same(found, wanted(layers))


ONE = np.ones(2, np.float32)


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ({"conv1_1": {"conv1_1_W": ONE, "conv1_1_b": ONE}}, ["conv1_1/kernel", "conv1_1/bias"]),
        ({"fc6": {"vgg/fc6_2/kernel:0": ONE}}, ["fc6/kernel"]),  # a scope before the name
        ({"fc6": {"fc6/kernel:0": ONE}, "fc6/relu": {}}, ["fc6/kernel"]),  # no weight of fc6
        (  # of a model within the model
            {"top": {"in1/kernel:0": ONE, "in2/kernel:0": ONE}},
            ["top/in1/kernel", "top/in2/kernel"],
        ),
    ],
)
def test_weights_have_the_names_of_today(tmp_path: Path, layers: Layers, names: list[str]) -> None:
    path = write_legacy(tmp_path / "w.h5", layers)
    assert list(unpack(path)[2]) == names


@pytest.mark.parametrize("container", ["layers", "_layer_checkpoint_dependencies"])
def test_new_files_come_by_class_and_number(tmp_path: Path, container: str) -> None:
    layers = dict(some_layers())
    layers["dense"] = layers.pop("a_dense")
    layers["gru"] = {str(k): np.full(1, k, np.float32) for k in range(11)}  # unknown: numbers stay
    path = write_layers(tmp_path / "w.weights.h5", layers, container)
    order, _, found = unpack(path)
    assert order == [*CONVS, "dense", "gru"]
    assert_same(found, wanted(layers))


def test_new_files_that_name_their_layers_are_believed(tmp_path: Path) -> None:
    path = write_layers(tmp_path / "w.weights.h5", some_layers(2))
    with h5py.File(path, "a") as file:
        file["layers/conv2d_1/vars"].attrs["name"] = "conv1_2"
    assert "conv1_2" in unpack(path)[0]


def test_compressed_chunks_are_read_as_they_were(tmp_path: Path) -> None:
    value = np.random.default_rng(0).standard_normal((1000, 300)).astype(np.float32)
    packed = {"chunks": (7, 300), "compression": "gzip", "shuffle": True}
    path = tmp_path / "w.h5"
    one_weight(path, lambda file: file["a"].create_dataset("w", data=value, **packed))
    np.testing.assert_array_equal(unpack(path)[2]["a/w"], value)


def test_floats_become_float32_and_integers_keep_their_size(tmp_path: Path) -> None:
    given = {n: np.array([[1.5, 200]]).astype(n) for n in ("<f2", ">f4", ">f8", "<i8", ">i4", "u1")}
    path = write_legacy(tmp_path / "w.h5", {"a": {f"a/{n}:0": x for n, x in given.items()}})
    for n, value in given.items():
        kept = np.dtype(n).newbyteorder("=") if value.dtype.kind in "iu" else np.float32
        np.testing.assert_array_equal(unpack(path)[2][f"a/{n}"], value.astype(kept), strict=True)


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "d", (4,))
    file["a"].create_virtual_dataset("w", layout)


HDF5_ATTACKS: dict[str, tuple[Any, str]] = {
    "external link": (lambda f: f["a"].__setitem__("w", h5py.ExternalLink("x.h5", "/d")), "link"),
    "soft link": (lambda f: f["a"].__setitem__("w", h5py.SoftLink("/a")), "SoftLink"),
    "virtual dataset": (virtual, "other files"),
    "external storage": (
        lambda f: f["a"].create_dataset("w", (4,), "f4", external=[("/etc/hostname", 0, 16)]),
        "other files",
    ),
    "terabytes": (terabytes, "declares 4000000"),
    "sparse chunks": (
        lambda f: f["a"].create_dataset("w", (10**6, 10**6), "f4", chunks=(100, 100)),
        "declares 1 tensors of 4000000",
    ),
    "a chunk of gigabytes": (
        lambda f: f["a"].create_dataset("w", (2**28,), "f4", chunks=(2**28,), compression=9),
        "chunks of 1073741824",
    ),
    "a strange filter": (
        lambda f: f["a"].create_dataset("w", (4,), "i4", chunks=(4,), scaleoffset=0),
        "packed with filter 6; wanted none",
    ),
    "a group": (lambda f: f["a"].create_group("w"), "no array"),
    "nothing": (lambda f: None, "no such group or dataset"),
    "text": (lambda f: f["a"].__setitem__("w", "text"), "wanted numbers"),
    "complex": (lambda f: f["a"].__setitem__("w", np.zeros(2, complex)), "wanted numbers"),
    "an empty space": (lambda f: f["a"].__setitem__("w", h5py.Empty("f4")), "no array"),
    "NaN": (lambda f: f["a"].__setitem__("w", np.array([np.nan], "f4")), "'a/w' .*no numbers"),
    "a large double": (lambda f: f["a"].__setitem__("w", np.array([1e300])), "no numbers"),
    "no names": (lambda f: f["a"].attrs.__delitem__("weight_names"), "no attribute 'weight_names'"),
    "names that are numbers": (
        lambda f: f["a"].attrs.__setitem__("weight_names", [1, 2]), "not a list of names",
    ),
    "a name twice": (
        lambda f: f["a"].attrs.__setitem__("weight_names", [b"w", b"w"]), "lists a name twice",
    ),
    "a backend that is a number": (lambda f: f.attrs.__setitem__("backend", 3), "is not text"),
    "theano": (lambda f: f.attrs.__setitem__("backend", b"theano"), "Theano"),
    "a path upwards": (
        lambda f: f["a"].attrs.__setitem__("weight_names", [b"../a/w"]), "no such group",
    ),
    "no layers with weights": (
        lambda f: f["a"].attrs.__setitem__("weight_names", np.zeros(0, "S1")), "holds no weights",
    ),
    "a layer that is not there": (lambda f: f.__delitem__("a"), "lists 'a'"),
    "other HDF5": (lambda f: f.attrs.__delitem__("layer_names"), "no Keras weights"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*overflow:RuntimeWarning")
@pytest.mark.parametrize("kind", HDF5_ATTACKS)
def test_what_is_no_plain_array_in_the_file_is_refused(tmp_path: Path, kind: str) -> None:
    attack, said = HDF5_ATTACKS[kind]
    one_weight(tmp_path / "w.h5", attack)
    with pytest.raises(CheckpointError, match=said):
        unpack(tmp_path / "w.h5")


def test_groups_within_themselves_end(tmp_path: Path) -> None:
    path = tmp_path / "w.weights.h5"
    with h5py.File(path, "w") as file:
        layers = file.create_group("layers")
        for k in range(2):
            layers[f"a_{k}"] = file["/"]  # hard links: each layer is the whole file
    with pytest.raises(CheckpointError, match="nests groups more than"):
        unpack(path)


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", None])
def test_a_training_checkpoint_gives_its_model_and_what_is_plain(
    tmp_path: Path, key: str | None
) -> None:
    many: list[Any] = [0] * 10
    for _ in range(12):
        many = [many] * 10  # a list of lists of one list: as JSON it has no end
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}}
    beside = {"epoch": 3, "history": [0.5, 0.25], "optimizer_state_dict": optimizer, "many": many}
    state = some_state()
    path = save(tmp_path / "w.pt", state if key is None else {key: state, **beside})
    order, told, found = unpack(path)
    assert order == []
    assert_same(found, state)
    assert told.values == ({} if key is None else {"epoch": 3, "history": [0.5, 0.25]})


def test_tensors_of_every_kind_hold_their_values(tmp_path: Path) -> None:
    base = torch.arange(40_000.0).reshape(200, 200)
    floats = {str(t): base[:2, :3].to(t) for t in (torch.float16, torch.bfloat16, torch.float64)}
    whole = {str(t): base[:2, :3].to(t) for t in (torch.int64, torch.int32, torch.uint8)}
    state = OrderedDict(
        whole=base, turned=base.t(), part=base[1:, 2:], tied=base, empty=torch.empty(0, 3),
        scalar=torch.tensor(5), parameter=torch.nn.Parameter(torch.ones(2)),
        flags=torch.tensor([True, False]), **floats, **whole,
    )  # fmt: skip
    _, _, found = unpack(save(tmp_path / "w.pt", state))
    expected = {k: v.detach().float() if v.is_floating_point() else v for k, v in state.items()}
    assert_same(found, expected)


REFUSED: dict[str, tuple[Any, str]] = {
    "no names": ([torch.ones(2)], "holds a list"),
    "no tensors": ({"epoch": 3}, "no tensors"),
    "NaN": ({"a.weight": torch.tensor([1, float("nan")])}, "'a.weight' holds values"),
    "complex": ({"a": torch.ones(2, dtype=torch.complex64)}, "complex64"),
    "sparse": ({"a": torch.ones(2, 2).to_sparse()}, "sparse"),
    "meta": ({"a": torch.ones(2, device="meta")}, "has no values"),
    "expanded": ({"a": torch.ones(1).expand(10**12)}, "declares 4000000000000 bytes"),
    "overlapping": ({"a": torch.ones(9).as_strided((9, 9), (0, 1))}, "and holds 36"),
    "no tensor in the state": ({"state_dict": {"a": torch.ones(2), "b": 3}}, "'b' in state_dict"),
    "two of a name": ({"1": torch.ones(2), 1: torch.ones(2)}, "'1' twice"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_plain_tensor_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    value, said = REFUSED[kind]
    with pytest.raises(CheckpointError, match=said):
        unpack(save(tmp_path / "w.pt", value))


def gadgets(canary: str) -> dict[str, Any]:
    """Objects that would call what they name if they were unpickled, and so write a file."""
    touch, code = f"touch {canary}", f"open({canary!r}, 'w').close()"
    return {
        "os.system": Calls(os.system, touch),
        "os.mkdir": Calls(os.mkdir, canary),
        "eval": Calls(builtins.eval, code),
        "open": Calls(builtins.open, canary, "w"),
        "map": Calls(builtins.list, Calls(builtins.map, os.mkdir, [canary])),
        "methodcaller": Calls(operator.methodcaller("touch"), Path(canary)),
        "subprocess.run": Calls(subprocess.run, ["touch", canary]),
        "zipfile": Calls(zipfile.ZipFile, canary, "w"),
        "pickle": Calls(pickle.loads, pickled(Calls(os.mkdir, canary))),
        "torch.save": Calls(torch.save, {}, canary),
        "numpy.save": Calls(np.save, canary, 1),
    }


@pytest.mark.parametrize("name", gadgets("canary"))
def test_a_pickle_that_runs_code_is_refused_and_runs_none(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    gadget = gadgets(str(canary))[name]
    for value in (
        gadget,
        {"a.weight": gadget},
        {"model_state_dict": {}, "epoch": gadget},
        {"model_state_dict": {}, "optimizer_state_dict": {"state": [gadget]}},
    ):
        with pytest.raises(CheckpointError, match="holds more than plain tensors"):
            unpack(write_archive(tmp_path / "w.pt", pickled(value)))
    assert not canary.exists()
    if name != "methodcaller":  # else the above would show nothing
        made = pickle.loads(pickled(gadget))
        if hasattr(made, "close"):
            made.close()
        assert canary.exists() or canary.with_suffix(".npy").exists()


def archive(path: Path, entries: Any, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in entries:
            file.writestr(name, data)
    return path


STATE = ("a/data.pkl", pickled({}))
ARCHIVES: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "no pickle": ([("a/data/0", b"")], "none of torch.save"),
    "two folders": ([STATE, ("b/data.pkl", STATE[1])], "none of torch.save"),
    "upwards": ([STATE, ("a/../../x", b"")], "no name that torch.save gives"),
    "backslash": ([STATE, ("a\\..\\x", b"")], "no name that torch.save gives"),
    "a script": ([STATE, ("a/constants.pkl", STATE[1])], "TorchScript"),
    "a .keras": ([("config.json", b"{}"), ("model.weights.h5", b"")], ".keras archive"),
    "big-endian": ([STATE, ("a/byteorder", b"big")], "byte order"),
    "another zip": ([("word/document.xml", b"<x/>")], "none of torch.save"),
    "two of a name": ([STATE, STATE], "of different names"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ARCHIVES)
def test_other_archives_are_refused(tmp_path: Path, kind: str) -> None:
    entries, said = ARCHIVES[kind]
    with pytest.raises(CheckpointError, match=said):
        unpack(archive(tmp_path / "w.pt", entries))


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """As in bombs of overlapping entries: together they say more than the file has."""
    path = archive(tmp_path / "w.pt", [STATE, ("a/data/0", bytes(1000))])
    data = bytearray(path.read_bytes())
    record = data.rindex(b"PK\x01\x02")
    data[record + 20 : record + 28] = (10**6).to_bytes(4, "little") * 2
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="encrypted, or larger than the file"):
        unpack(path)


@pytest.mark.parametrize("kind", ["keras", "torch"])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "w"
    if kind == "keras":
        write_legacy(path, some_layers())
    else:
        save(path, some_state())
    content = path.read_bytes()
    for keep in (0.2, 0.5, 0.9):
        path.write_bytes(content[: int(keep * len(content))])
        with pytest.raises((CheckpointError, OSError)):  # of h5py, which `call_confined` makes ours
            foreign_weights.unpack(path, kind, None)


def read_mutated(name: str, path: Path, seed: int) -> str:
    """Read a file of which a few bytes are changed, others for every seed."""
    rng, data = np.random.default_rng(seed), bytearray(path.read_bytes())
    for place in rng.integers(0, len(data), rng.integers(1, 9)):
        data[place] = rng.integers(256)
    changed = path.with_name(name)
    changed.write_bytes(data)
    try:
        unpack(changed)
    except Exception:  # any is fine that leaves the process alive
        return "refused"
    assert changed.with_suffix(".out").stat().st_size < 2 * len(data)
    return "read"


@pytest.mark.parametrize(
    ("kind", "n", "crashes"), [("torch", 300, 5), ("legacy", 200, 10), ("layers", 200, 10)]
)
def test_damaged_files_are_refused_even_where_they_crash_the_reader(
    tmp_path: Path, kind: str, n: int, crashes: int
) -> None:
    """HDF5 has bugs that crash; these are why it runs in a process of its own."""
    path = tmp_path / "w"
    if kind == "torch":
        save(path, {"model_state_dict": some_state()})
    else:
        (write_legacy if kind == "legacy" else write_layers)(path, some_layers(3))
    items = [(f"m{seed}", path, seed) for seed in range(n)]
    came = dict(prep.run_in_workers(read_mutated, items, workers=2, preload=["torch"], seconds=20))
    assert len(came) == n
    assert list(came.values()).count("refused") > 50
    crashed = [seed for seed, result in came.items() if isinstance(result, WorkerError)]
    assert len(crashed) < crashes
    for seed in crashed:
        with pytest.raises(CheckpointError, match=f"m{seed}: "):
            read_foreign(tmp_path / f"m{seed}")
