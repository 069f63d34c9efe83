"""Foreign files: values come over as they are, everything else is one line that names the file.

Files are written as Keras lays them out, and by `torch.save`; Keras' own are in `test_keras_check`.
"""

import dataclasses
import functools
import os
import pickle
import select
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_files
import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from foreign_files import Calls, Layers, obey, pickled, some_layers, write_archive, write_legacy

from s2f import foreign_weights, workers
from s2f.errors import CheckpointError, OutputError, S2FError, WorkerError
from s2f.foreign_weights import MAX_BYTES, RATIO, SPARE, TensorInfo, inspect, read_foreign

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory")


def at_once(function: Callable[..., Any], *given: Any, **limits: Any) -> Any:
    """Read in this process, in the place of `call_confined`, which some tests ask for."""
    return function(*given)


@pytest.fixture(autouse=True)
def here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "confined" not in request.fixturenames:
        monkeypatch.setattr(foreign_weights, "call_confined", at_once)


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The first file waits for the modules above, all of torch, which no reader of HDF5 needs."""
    inspect(write_legacy(tmp_path_factory.mktemp("good") / "w.h5", some_layers(2)))


def wanted(layers: Layers) -> dict[str, np.ndarray]:
    found = {}
    for layer, weights in layers.items():
        found |= {f"{layer}/{k.split('/')[-1].split(':')[0]}": v for k, v in weights.items()}
    return found


def assert_same(found: Any, expected: Any) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], np.asarray(value), strict=True)


def some_state() -> dict[str, torch.Tensor]:
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 4), torch.nn.BatchNorm2d(3))
    return net.state_dict()


@pytest.mark.usefixtures("confined")
@pytest.mark.parametrize("kind", ["keras", "torch"])
def test_weights_come_over_as_they_are(tmp_path: Path, monkeypatch: Any, kind: str) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path, layers, state = tmp_path / "w.bin", some_layers(3), some_state()
    values: dict[str, Any] = {"epoch": 7}
    torch.save({"model_state_dict": state, "epoch": 7}, path)
    if kind == "keras":
        values = {"backend": "jax", "keras_version": "2.1"}
        write_legacy(path, layers, keras_version=b"2.1", backend="jax")
    other = "torch" if kind == "keras" else "keras"
    with pytest.raises(CheckpointError, match=f"(?i)w.bin: .* of {kind} .* those of {other}"):
        read_foreign(path, other)
    (tensors, found), listed = read_foreign(path, kind), inspect(path)
    assert found == listed
    path.unlink()
    assert [*tmp_path.iterdir()] == []  # nothing temporary stays
    assert_same(tensors, state if kind == "torch" else wanted(layers))
    assert (listed.path, listed.kind, listed.values) == (path, kind, values)
    for told, tensor in zip(listed.tensors, tensors.values(), strict=True):
        assert (f"torch.{told.dtype}", told.shape) == (str(tensor.dtype), tuple(tensor.shape))
    assert [told.name for told in listed.tensors] == [*tensors]
    first = next(iter(tensors.values()))
    assert first.is_contiguous() and bool((first.fill_(3) == 3).all())  # it may be changed


def test_a_safetensors_file_of_others_is_listed_and_not_converted(tmp_path: Path) -> None:
    path, tensors = tmp_path / "w.safetensors", {"a": torch.ones(2, dtype=torch.float16)}
    safetensors.torch.save_file(tensors, path, {"by": "me"})
    found = inspect(path)
    assert (found.kind, found.values) == ("safetensors", {"by": "me"})
    assert found.tensors == (TensorInfo("a", "float16", (2,)),)
    with pytest.raises(CheckpointError, match="no foreign weights"):
        read_foreign(path, "keras")
    safetensors.torch.save_file(tensors, path, {"s2f": '{"kind": "voice", "version": 99}'})
    assert (inspect(path).kind, inspect(path).values) == ("voice", {"version": 99})
    safetensors.torch.save_file(tensors, path, {"s2f": "[]"})  # no header of ours
    with pytest.raises(CheckpointError, match="what kind"):
        inspect(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="damaged"):
        inspect(path)


def one_weight(make: Callable[[h5py.File], object]) -> Any:
    """Writes a file of one layer `a`, whose weight `w` is as some function makes it."""

    def write(path: Path) -> None:
        write_legacy(path, {"a": {}})
        with h5py.File(path, "a") as file:
            file["a"].attrs["weight_names"] = [b"w"]
            make(file)

    return write


def dataset(*shape: Any, **options: Any) -> Any:
    return one_weight(lambda file: file["a"].create_dataset("w", *shape, **options))


def value(value: Any) -> Any:
    return one_weight(lambda file: file["a"].__setitem__("w", value))


def chunked_bomb(file: h5py.File) -> None:
    """Chunks of zeros that unpack to a thousand times their size, within what is allowed."""
    packed = {"chunks": (10_000_000,), "compression": "gzip", "compression_opts": 1}
    file["a"].create_dataset("w", (200_000_000,), "f4", **packed)[:20_000_000] = 0


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("archive/data.pkl", pickled({}))
        with file.open("archive/data/0", "w") as entry:
            for _ in range(600):
                entry.write(bytes(2**20))


CALL = pickled({"model_state_dict": {}, "optimizer_state_dict": [Calls(os.mkdir, "canary")]})
GREEDY = pickled({"a": Calls(bytearray, 2 * 10**9)})
ATTACKS: dict[str, tuple[str, Any, str]] = {
    "a signature": ("keras", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "cannot be read"),
    "terabytes": ("keras", dataset((10**6, 10**6), "f4"), "declares 4000000000000 byte"),
    "a bomb of chunks": ("keras", one_weight(chunked_bomb), "may declare"),
    "a bomb": ("torch", bomb, "is compressed"),
    "code": ("torch", lambda path: write_archive(path, CALL), r"asks for posix\.mkdir"),
    "memory": ("torch", lambda path: write_archive(path, GREEDY), "more than|cannot be|no tensors"),
}  # fmt: skip


@pytest.mark.usefixtures("confined")
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused_in_time_and_do_nothing(tmp_path: Path, name: str) -> None:
    kind, make, said = ATTACKS[name]
    path = tmp_path / "w.txt"  # a false name
    make(path)
    for job in (functools.partial(read_foreign, kind=kind), inspect):
        start = time.monotonic()
        with pytest.raises(CheckpointError, match=f"^{path}: .*({said})") as raised:
            job(path)
        assert time.monotonic() - start < 10
        assert raised.value.hint and "\n" not in raised.value.message
        assert not Path("canary").exists()


PEAK = """
import multiprocessing, resource, sys
from pathlib import Path
from s2f import foreign_weights
multiprocessing.get_all_start_methods = lambda: ["spawn"]  # the reader is a child of this process
path = Path(sys.argv[1])
try:
    foreign_weights._unpack_confined(path, sys.argv[2], path.with_name("data"))
finally:
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


def peak_megabytes(path: Path, kind: str, *, refused: bool) -> int:
    """Read a file in a confined process whose parent is small; returns the most it ever took."""
    command = [sys.executable, "-c", PEAK, str(path), kind]
    done = subprocess.run(command, capture_output=True, text=True)
    assert ("CheckpointError" in done.stderr) == refused
    return int(done.stdout)


@linux
@pytest.mark.parametrize("kind", ["keras", "torch"])
def test_a_wrong_file_takes_half_a_gigabyte_at_most(tmp_path: Path, kind: str) -> None:
    path = write_legacy(tmp_path / "w", some_layers(2))
    if kind == "torch":
        torch.save({"a": torch.ones(2)}, path)
    base = peak_megabytes(path, kind, refused=False)  # what reading next to nothing takes
    for its_kind, make, _ in ATTACKS.values():
        if its_kind == kind:
            make(path)
            assert peak_megabytes(path, kind, refused=True) - base < 512


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, confined: None) -> Any:
    """Call a reader that does what its file says."""

    def call(what: str) -> Any:
        if "sleep" in what:  # the others end by themselves, and importing is slow where it is busy
            monkeypatch.setattr(foreign_weights, "START_SECONDS", 2.0)
        (tmp_path / "file").write_text(what)
        return foreign_weights.call_confined(obey, tmp_path / "file", megabytes=200, seconds=1.0)

    return call


def test_the_answer_comes_back_and_nothing_else(call: Any, tmp_path: Path, capfd: Any) -> None:
    noise = "sys.stderr.write('noise'); os.write(1, b'noise')"
    listed = "[str(fd.readlink()) for fd in Path('/proc/self/fd').iterdir() if fd.is_symlink()]"
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        open_files = call(f"{noise}; answer = {listed}")
    assert open_files and not any(str(tmp_path) in place for place in open_files)
    assert capfd.readouterr() == ("", "")


@linux
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("raise CheckpointError('is wrong', hint='mend it')", "is wrong"),
        ("raise OutputError('file: disk full', hint='free some')", "disk full"),
        ("bytearray(3 * 10**8)", "needs more than 200 MB"),
        ("held = [bytearray(10**6) for _ in range(10**6)]", "needs more than 200 MB"),
        ("while True: pass", "took more than 1 s"),
        ("time.sleep(60)", "took more than 1 s"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", r".* died \(signal 11\)"),
        ("os._exit(3)", r".* died \(exit code 3\)"),
        ("raise ZeroDivisionError('a\\nb')", "cannot be read: ZeroDivisionError: a$"),
    ],
)
def test_the_end_of_the_process_is_told_of_the_file(call: Any, what: str, said: str) -> None:
    with pytest.raises(S2FError, match=f"file: {said}") as raised:
        call(what)
    assert isinstance(raised.value, OutputError if "OutputError" in what else CheckpointError)
    assert raised.value.hint


ASK = """
import sys
sys.path = [place for place in sys.path if place]
from pathlib import Path
from foreign_files import obey
from s2f import foreign_weights
foreign_weights.call_confined(obey, Path("file"), megabytes=9000, seconds=900)
"""


@linux
def test_a_reader_keeps_to_the_users_limits_and_ends_with_its_asker(tmp_path: Path) -> None:
    (tmp_path / "socket.py").write_text("raise SystemExit")  # no module of the user's folder
    (tmp_path / "file").write_text("Path('note').write_text(str(os.getpid())); time.sleep(60)")
    os.mkfifo(tmp_path / "note")
    places = [str(Path(__file__).parent), *filter(None, sys.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "PYTHONSAFEPATH": ""}
    limited = 'ulimit -t 60; ulimit -v 4000000; exec "$0" "$@"'
    command = ["bash", "-c", limited, sys.executable, "-c", ASK]
    asked = subprocess.Popen(command, env=environment, cwd=tmp_path)
    reader = os.pidfd_open(int((tmp_path / "note").read_text()))
    asked.kill()
    assert asked.wait() and select.select([reader], [], [], 30)[0]  # it has ended
    os.close(reader)


def test_a_large_attribute_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w", libver="latest") as file:
        file.attrs["backend"] = np.full(2**21, b"a" * 9)
    with pytest.raises(CheckpointError, match=r"declares \(2097152,\) values"):
        inspect(tmp_path / "w.h5")


def test_as_many_bytes_may_be_declared_as_the_file_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    dataset((1,), "u1", chunks=(1000,), maxshape=(None,))(path)
    limit = RATIO * path.stat().st_size + SPARE

    def declare(n: int) -> Path:
        with h5py.File(path, "a") as file:
            file["a/w"].resize((n,))
        return path

    assert inspect(declare(limit)).tensors == (TensorInfo("a/w", "uint8", (limit,)),)
    with pytest.raises(CheckpointError, match=f"declares .*{limit}, and"):
        inspect(declare(limit + 1))
    os.truncate(declare(MAX_BYTES + 1), 10**12)  # a sparse file may not fill the disk
    with pytest.raises(CheckpointError, match=f"may declare {MAX_BYTES}"):
        read_foreign(path, "keras")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_the_outputs_fault(tmp_path: Path) -> None:
    value(np.zeros(2**20, np.float32))(tmp_path / "w.h5")
    with pytest.raises(OutputError, match="/dev/full: cannot be written"):
        foreign_weights.unpack(tmp_path / "w.h5", "keras", Path("/dev/full"))


@pytest.mark.parametrize(("root", "split"), [("", False), ("model_weights", True)])
def test_legacy_files_come_in_their_order(tmp_path: Path, root: str, split: bool) -> None:
    layers = some_layers()  # conv2d_10 is before conv2d_2 among the keys, a_dense before all
    path = write_legacy(tmp_path / "w.h5", layers, root=root, split=split, backend=b"tensorflow")
    assert inspect(path).values == {"backend": "tensorflow"}
    assert_same(read_foreign(path, "keras")[0], wanted(layers))


def test_weights_have_the_names_of_today(tmp_path: Path) -> None:
    one = np.ones(2, np.float32)
    layers = {
        "conv1_1": {"conv1_1_W": one, "conv1_1_b": one},
        "fc6": {"vgg/fc6_2/kernel:0": one},  # a scope before the name
        "fc6/relu": {},  # no weight of fc6
        "a": {"x/kernel:0": one, "y/kernel:0": one},  # of a model within the model
    }
    names = ["conv1_1/kernel", "conv1_1/bias", "fc6/kernel", "a/x/kernel", "a/y/kernel"]
    assert list(read_foreign(write_legacy(tmp_path / "w.h5", layers), "keras")[0]) == names


@pytest.mark.parametrize("container", ["layers", "_layer_checkpoint_dependencies"])
def test_new_files_come_by_class_and_number(tmp_path: Path, container: str) -> None:
    layers = dict(some_layers())
    layers["dense"] = layers.pop("a_dense")
    layers["gru"] = {str(k): np.full(1, k, np.float32) for k in range(11)}  # unknown: numbers stay
    path = foreign_files.write_layers(tmp_path / "w.weights.h5", layers, container)
    assert_same(read_foreign(path, "keras")[0], wanted(layers))
    with h5py.File(path, "a") as file:  # some name their layers
        file[f"{container}/conv2d_1/vars"].attrs["name"] = "conv1_2"
    assert "conv1_2/kernel" in read_foreign(path, "keras")[0]


def test_floats_become_float32_and_integers_keep_their_size(tmp_path: Path) -> None:
    given = {n: np.array([[1.5, 200]]).astype(n) for n in ("<f2", ">f4", ">f8", "<i8", ">i4", "u1")}
    path = write_legacy(tmp_path / "w.h5", {"a": {f"a/{n}:0": x for n, x in given.items()}})
    found, _ = read_foreign(path, "keras")
    for n, value in given.items():
        kept = np.dtype(n).newbyteorder("=") if value.dtype.kind in "iu" else np.float32
        np.testing.assert_array_equal(found[f"a/{n}"], value.astype(kept), strict=True)
    packed = np.random.default_rng(0).random((1000, 300), np.float32)
    dataset(data=packed, chunks=(7, 300), compression="gzip", shuffle=True)(path)
    np.testing.assert_array_equal(read_foreign(path, "keras")[0]["a/w"], packed)


def stored(value: Any) -> Any:
    return lambda path: torch.save(value, path)


def entries(*names: str, **contents: bytes) -> Any:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.writestr(name, contents.get(Path(name).name, pickled({})))

    return write


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "d", (4,))
    file["a"].create_virtual_dataset("w", layout)


def endless(path: Path) -> None:
    with h5py.File(path, "w") as file:
        layers = file.create_group("layers")
        layers["a_0"] = layers["a_1"] = file["/"]  # hard links: each layer is the whole file


def overlapping(path: Path) -> None:
    """As in bombs of overlapping entries: together they say more than the file has."""
    entries("a/data.pkl", "a/data/0")(path)
    data = bytearray(path.read_bytes())
    record = data.rindex(b"PK\x01\x02")
    data[record + 20 : record + 28] = (10**6).to_bytes(4, "little") * 2
    path.write_bytes(data)


REFUSED: dict[str, tuple[Any, str]] = {
    "missing": (lambda path: None, "no such file"),
    "a folder": (Path.mkdir, "is a folder"),
    "a text": (lambda path: path.write_text("weights, honestly"), "neither HDF5 nor"),
    "a pipe": (os.mkfifo, "no such file"),
    "a zip signature": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(9)), "damaged zip"),
    "external link": (value(h5py.ExternalLink("x.h5", "/d")), "link"),
    "soft link": (value(h5py.SoftLink("/a")), "SoftLink"),
    "virtual dataset": (one_weight(virtual), "other files"),
    "external": (dataset((4,), "f4", external=[("/etc/hostname", 0, 16)]), "other files"),
    "a long chunk": (dataset((2**28,), "f4", chunks=(2**28,)), "chunks of 1073741824"),
    "a filter": (dataset((4,), "i4", chunks=(4,), scaleoffset=0), "filter 6; wanted none"),
    "a group": (one_weight(lambda f: f["a"].create_group("w")), "no array"),
    "complex": (value(np.zeros(2, complex)), "wanted numbers"),
    "an empty space": (value(h5py.Empty("f4")), "no array"),
    "a large double": (value(np.array([1e300])), "no numbers"),
    "no names": (one_weight(lambda f: f["a"].attrs.clear()), "no attribute 'weight_names'"),
    "numbers": (one_weight(lambda f: f["a"].attrs.update(weight_names=[1, 2])), "is not text"),
    "twice": (one_weight(lambda f: f["a"].attrs.update(weight_names=2 * [b"w"])), "a name twice"),
    "theano": (one_weight(lambda f: f.attrs.update(backend=b"theano")), "Theano"),
    "up": (one_weight(lambda f: f["a"].attrs.update(weight_names=[b"../a/w"])), "no such group"),
    "no weights": (lambda path: write_legacy(path, {"a": {}}), "holds no weights"),
    "a layer that is not there": (one_weight(lambda f: f.__delitem__("a")), "lists 'a'"),
    "other HDF5": (one_weight(lambda f: f.attrs.clear()), "no Keras weights"),
    "groups in themselves": (endless, "nests groups more than"),
    "a list": (stored([torch.ones(2)]), "holds a list"),
    "no tensors": (stored({"epoch": 3}), "no tensors"),
    "a NaN": (stored({"a.weight": torch.tensor([1, float("nan")])}), "'a.weight' holds values"),
    "imaginary": (stored({"a": torch.ones(2, dtype=torch.complex64)}), "complex64"),
    "sparse": (stored({"a": torch.ones(2, 2).to_sparse()}), "sparse"),
    "meta": (stored({"a": torch.ones(2, device="meta")}), "has no values"),
    "strides": (stored({"a": torch.ones(9).as_strided((9, 9), (0, 1))}), "and holds 36"),
    "no tensor": (stored({"state_dict": {"a": torch.ones(2), "b": 3}}), "'b' in state_dict"),
    "two of a name": (stored({"1": torch.ones(2), 1: torch.ones(2)}), "'1' twice"),
    "no pickle": (entries("a/data/0"), "none of torch.save"),
    "two folders": (entries("a/data.pkl", "b/data.pkl"), "none of torch.save"),
    "upwards": (entries("a/data.pkl", "a/../../x"), "no name that torch.save gives"),
    "backslash": (entries("a/data.pkl", "a\\..\\x"), "no name that torch.save gives"),
    "big-endian": (entries("a/data.pkl", "a/byteorder", byteorder=b"big"), "byte order"),
    "two entries of a name": (entries("a/data.pkl", "a/data.pkl"), "of different names"),
    "overlapping": (overlapping, "encrypted, or larger than the file"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*(overflow|Duplicate name|Validating sparse tensor)")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_plain_array_in_the_file_is_refused(tmp_path: Path, kind: str) -> None:
    write, said = REFUSED[kind]
    write(tmp_path / "w")
    with pytest.raises(CheckpointError, match=said):
        read_foreign(tmp_path / "w", foreign_weights.recognise(tmp_path / "w"))


@pytest.mark.parametrize("name", foreign_files.NOT_WEIGHTS)
def test_what_is_not_weights_is_called_what_it_is(tmp_path: Path, name: str) -> None:
    write, said, cure = foreign_files.NOT_WEIGHTS[name]
    path = tmp_path / name
    write(path)
    for read in (inspect, functools.partial(read_foreign, kind="keras")):
        with pytest.raises(CheckpointError) as raised:
            read(path)
        assert raised.value.message.startswith(f"{path}: ") and said in raised.value.message
        assert raised.value.hint and cure in raised.value.hint


def test_a_checkpoint_under_another_name_is_known(tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    safetensors.torch.save_file({"a": torch.ones(2)}, path, {"s2f": '{"kind": "face_encoder"}'})
    with pytest.raises(CheckpointError, match="is a checkpoint of s2f already, a face_encoder"):
        read_foreign(path, "keras")
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(CheckpointError, match="is a SavedModel of TensorFlow"):
        inspect(tmp_path)


def test_what_torch_saved_is_known_however_many_tensors_there_are(tmp_path: Path) -> None:
    path = tmp_path / "w"
    foreign_files.zipped("a/data.pkl", *(f"a/data/{n}" for n in range(20_000)))(path)
    assert path.stat().st_size > foreign_weights.MAX_TAIL
    assert foreign_weights.recognise(path) == "torch"


CHANNELS_FIRST = '{"config": {"layers": [{"config": {"data_format": "channels_first"}}]}}'


@pytest.mark.parametrize(
    "attributes", [{"backend": b"theano"}, {"model_config": CHANNELS_FIRST}], ids=["th", "config"]
)
def test_channels_first_are_refused(tmp_path: Path, attributes: Any) -> None:
    path = write_legacy(tmp_path / "w.h5", some_layers(2), **attributes)
    with pytest.raises(CheckpointError, match="channels first") as raised:
        inspect(path)
    assert raised.value.hint and "tf in its name" in raised.value.hint


@pytest.mark.parametrize(
    ("wrap", "wrapper", "values"),
    [
        (lambda state: {"model": state, "lr": 0.5}, "model", {"lr": 0.5}),
        (lambda state: {"net": state, "model_ema": state}, "net", {}),
        (lambda state: {"generator": state, "epoch": 3}, "generator", {"epoch": 3}),
        (
            lambda state: {"checkpoint": {"model": state, "a": 1}, "b": 2},
            "checkpoint.model", {"a": 1, "b": 2},
        ),
        (lambda state: {"state_dict": {"module": state}}, "state_dict.module", {}),
        (lambda state: {**state, "epoch": 3}, "", {"epoch": 3}),
    ],
)  # fmt: skip
def test_what_weights_are_wrapped_in_is_taken_off(
    tmp_path: Path, wrap: Any, wrapper: str, values: Any
) -> None:
    path, state = tmp_path / "w.pt", some_state()
    torch.save(wrap(state), path)
    tensors, found = read_foreign(path, "torch")
    assert_same(tensors, state)
    assert (found.wrapper, found.values) == (wrapper, values)


def test_of_several_networks_none_is_chosen(tmp_path: Path) -> None:
    torch.save({"encoder": some_state(), "decoder": some_state()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="holds several networks: encoder, decoder"):
        inspect(tmp_path / "w.pt")


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", None])
def test_a_training_checkpoint_gives_its_model(tmp_path: Path, key: str | None) -> None:
    many: list[Any] = [0] * 10
    for _ in range(12):
        many = [many] * 10  # a list of lists of one list: as JSON it has no end
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}}
    beside = {"epoch": 3, "history": [0.5, 0.25], "optimizer_state_dict": optimizer, "many": many}
    beside["long"] = "a" * 1_000_001
    state = some_state()
    path = tmp_path / "w.pt"
    torch.save(state if key is None else {key: state, **beside}, path)
    assert_same(read_foreign(path, "torch")[0], state)
    assert inspect(path).values == ({} if key is None else {"epoch": 3, "history": [0.5, 0.25]})


def test_tensors_of_every_kind_hold_their_values(tmp_path: Path) -> None:
    base = torch.arange(40_000.0).reshape(200, 200)
    floats = {str(t): base[:2, :3].to(t) for t in (torch.float16, torch.bfloat16, torch.float64)}
    whole = {str(t): base[:2, :3].to(t) for t in (torch.int64, torch.int32, torch.uint8)}
    state = OrderedDict(
        whole=base, turned=base.t(), part=base[1:, 2:], tied=base, empty=torch.empty(0, 3),
        scalar=torch.tensor(5), parameter=torch.nn.Parameter(torch.ones(2)),
        flags=torch.tensor([True, False]), **floats, **whole,
    )  # fmt: skip
    expected = {k: v.detach().float() if v.is_floating_point() else v for k, v in state.items()}
    torch.save(state, tmp_path / "w.pt")
    assert_same(read_foreign(tmp_path / "w.pt", "torch")[0], expected)


def read_mutated(name: str, path: Path, kind: str, seed: int) -> str:
    """Read a file of which a few bytes are changed, others for every seed, and some are cut off."""
    rng, data = np.random.default_rng(seed), bytearray(path.read_bytes())
    for place in rng.integers(0, len(data), rng.integers(1, 9)):
        data[place] = rng.integers(256)
    changed = path.with_name(name)
    changed.write_bytes(data[: int(len(data) * (0.2, 0.5, 0.9, 1)[min(seed, 3)])])
    foreign_weights.call_confined = at_once  # a process of its own, this is
    try:
        tensors, _ = read_foreign(changed, kind)
    except Exception:  # any is fine that leaves the process alive
        return "refused"
    assert sum(tensor.nbytes for tensor in tensors.values()) < 2 * len(data)
    return "read"


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_torch_saved_before_1_6_is_read_as_what_it_saves_today(
    tmp_path: Path, wrapped: bool
) -> None:
    state, read = some_state(), []
    for name, zipped in (("new.pt", True), ("old.pt", False)):
        whole = {
            "epoch": 7,
            "optimizer_state": {"state": {0: {"m": torch.ones(2)}}},
            "model_state": state,
        }
        kept = whole if wrapped else state
        torch.save(kept, tmp_path / name, _use_new_zipfile_serialization=zipped)
        read.append(read_foreign(tmp_path / name, "torch"))
    (new, listed), (old, found) = read
    assert_same(old, state)
    assert_same(new, state)
    assert dataclasses.replace(found, path=listed.path) == listed
    assert found.values == ({"epoch": 7} if wrapped else {})


OLD: dict[str, tuple[Any, str]] = {
    "code": (lambda state: {"a": Calls(obey), **state}, "more than plain tensors"),
    "views": (lambda state: {"a": torch.ones(1).expand(9), **state}, "declares 36 bytes"),
    "a list": (lambda state: [*state.values()], "holds a list; wanted a state dict"),
}


@pytest.mark.parametrize("what", OLD)
def test_an_old_file_of_torch_is_trusted_no_more(tmp_path: Path, what: str) -> None:
    make, why = OLD[what]
    torch.save(make(some_state()), tmp_path / "w", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=why):
        read_foreign(tmp_path / "w", "torch")


ONE = (300).to_bytes(8, "little") + np.ones(300, "<f4").tobytes()  # as a storage is stored
FORGED: dict[str, tuple[Any, str]] = {
    "no keys": (
        lambda saved, keys, data: (saved, pickled([]), bytes(8000)),
        "values of 0 storages",
    ),
    "other keys": (lambda saved, keys, data: (saved, pickled(["a", "b"]), data), "are not its 2"),
    "a key twice": (lambda saved, keys, data: (saved, pickled(keys[:1] * 2), data), "lists the"),
    "padding": (lambda saved, keys, data: (saved, pickled(keys), data + b"\0"), "and holds 2417"),
    "cut off": (lambda saved, keys, data: (saved, pickled(keys), data[:-4]), "and holds 2412"),
    "sizes": (
        lambda saved, keys, data: (
            saved.replace(b"M\x2c\x01", b"J\x2c\x01\x10\x00"),
            pickled(keys),
            data,
        ),
        "declares 8391024 bytes of values, and holds 2416",  # twice 8 + 4 * 0x10012c
    ),
}


@pytest.mark.usefixtures("confined")
@pytest.mark.parametrize("what", FORGED)
def test_an_old_file_of_torch_that_declares_what_it_lacks_is_refused(
    tmp_path: Path, what: str
) -> None:
    """PyTorch gives what lay in memory for a storage that the list of keys leaves out."""
    forge, why = FORGED[what]
    path, state = tmp_path / "w", {"a": torch.ones(300), "b": torch.ones(300)}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    *start, saved, listed, data = foreign_files.old_parts(path)
    keys = pickle.loads(listed)
    assert data == ONE * 2 and len(keys) == 2
    path.write_bytes(b"".join([*start, saved, pickled(keys), data]))
    assert_same(read_foreign(path, "torch")[0], state)
    path.write_bytes(b"".join([*start, *forge(saved, keys, data)]))
    with pytest.raises(CheckpointError, match=why):
        read_foreign(path, "torch")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_tensor_that_is_made_by_a_call_is_refused(tmp_path: Path, zipped: bool) -> None:
    """PyTorch lets a file call its types of tensors, which hold what lay in memory."""
    state = {"a": torch.ones(3), "b": Calls(torch.FloatTensor, 1000)}
    torch.save(state, tmp_path / "w", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="makes a tensor by a call"):
        read_foreign(tmp_path / "w", "torch")


def test_an_old_file_of_torch_with_a_storage_of_nothing_for_two_tensors_is_refused(
    tmp_path: Path,
) -> None:
    """PyTorch makes a second storage for it, which grows to the shape and is never filled."""
    nothing = torch.empty(0)
    state = {"a": nothing, "b": nothing.view(0, 1), "c": torch.ones(300)}
    torch.save(state, tmp_path / "w", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="several tensors of the storage"):
        read_foreign(tmp_path / "w", "torch")


@pytest.mark.usefixtures("confined")
@pytest.mark.parametrize(
    ("layout", "n", "crashes"),
    [("torch", 300, 5), ("old", 100, 5), ("legacy", 200, 10), ("layers", 200, 10)],
)
def test_damaged_files_are_refused(tmp_path: Path, layout: str, n: int, crashes: int) -> None:
    """HDF5 has bugs that crash; these are why it runs in a process of its own."""
    path, kind = tmp_path / "w", "torch" if layout in ("torch", "old") else "keras"
    zipped = layout == "torch"
    torch.save({"model_state_dict": some_state()}, path, _use_new_zipfile_serialization=zipped)
    if kind == "keras":
        (write_legacy if layout == "legacy" else foreign_files.write_layers)(path, some_layers(3))
    items = [(f"m{seed}", path, kind, seed) for seed in range(n)]
    came = dict(
        workers.run_in_workers(read_mutated, items, workers=2, preload=["torch"], seconds=20)
    )
    assert len(came) == n
    assert "read" not in (came[0], came[1], came[2])  # those that are cut off
    assert list(came.values()).count("refused") > 50
    crashed = [seed for seed, result in came.items() if isinstance(result, WorkerError)]
    assert len(crashed) < crashes
    for seed in crashed:
        with pytest.raises(CheckpointError, match=f"m{seed}: "):
            read_foreign(tmp_path / f"m{seed}", kind)
