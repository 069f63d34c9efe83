"""Keras's HDF5: every layout gives the same names, order and values; nothing leads out of it."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from foreign_files import Layers, mutate, some_layers, write_layers, write_legacy

from s2f import foreign_weights, prep
from s2f.errors import CheckpointError, S2FError, WorkerError
from s2f.foreign_weights import DATA

CONVS = ["conv2d", *(f"conv2d_{k}" for k in range(1, 12))]
Found = dict[str, np.ndarray]


def unpack(path: Path) -> tuple[dict[str, Any], Found]:
    """Read a file in this process; returns what is told and the arrays by name."""
    folder = path.with_suffix(".out")
    folder.mkdir()
    told = foreign_weights.unpack_keras(path, folder, True)
    data = (folder / DATA).read_bytes()
    arrays = {
        name: np.frombuffer(data, dtype, int(np.prod(shape)), start).reshape(shape)
        for name, dtype, shape, start in told["tensors"]
    }
    return told, arrays


def wanted(layers: Layers) -> Found:
    return {
        f"{layer}/{name.split('/')[-1].removesuffix(':0')}": value
        for layer, weights in layers.items()
        for name, value in weights.items()
    }


def assert_same(found: Found, layers: Layers) -> None:
    assert list(found) == list(wanted(layers))
    for name, value in wanted(layers).items():
        np.testing.assert_array_equal(found[name], value, strict=True)


@pytest.mark.parametrize("root", ["", "model_weights"])
@pytest.mark.parametrize("split", [False, True])
def test_legacy_files_come_in_the_order_of_their_attributes(
    tmp_path: Path, root: str, split: bool
) -> None:
    layers = some_layers()  # conv2d_10 is before conv2d_2 among the keys, a_dense before all
    path = write_legacy(tmp_path / "w.h5", layers, root=root, split=split, backend=b"tensorflow")
    told, found = unpack(path)
    assert told["kind"] == "keras"
    assert told["order"] == [*CONVS, "a_dense"]
    assert told["values"] == {"backend": "tensorflow"}
    assert_same(found, layers)


def test_old_names_of_weights_become_those_of_today(tmp_path: Path) -> None:
    kernel, bias = np.ones((2, 3), np.float32), np.zeros(3, np.float32)
    layers = {"conv1_1": {"conv1_1_W": kernel, "conv1_1_b": bias}}
    _, found = unpack(write_legacy(tmp_path / "w.h5", layers))
    assert list(found) == ["conv1_1/kernel", "conv1_1/bias"]


def test_a_scope_before_the_name_of_a_weight_is_left_out(tmp_path: Path) -> None:
    layers = {"fc6": {"vgg/fc6_2/kernel:0": np.ones((2, 3), np.float32)}}
    _, found = unpack(write_legacy(tmp_path / "w.h5", layers))
    assert list(found) == ["fc6/kernel"]


def test_a_layer_named_as_a_part_of_another_is_no_weight_of_it(tmp_path: Path) -> None:
    layers = {"fc6": {"fc6/kernel:0": np.ones((2, 3), np.float32)}, "fc6/relu": {}}
    told, found = unpack(write_legacy(tmp_path / "w.h5", layers))
    assert (told["order"], list(found)) == (["fc6"], ["fc6/kernel"])


def test_layers_of_a_model_within_keep_their_names(tmp_path: Path) -> None:
    one = np.ones(2, np.float32)
    layers = {"top": {"in1/kernel:0": one, "in2/kernel:0": 2 * one}}
    _, found = unpack(write_legacy(tmp_path / "w.h5", layers))
    assert list(found) == ["top/in1/kernel", "top/in2/kernel"]


def test_names_may_be_text(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "w.h5", some_layers(2), backend="tensorflow")
    with h5py.File(path, "a") as file:
        file.attrs["layer_names"] = np.array(["conv2d", "a_dense"], dtype=h5py.string_dtype())
    assert unpack(path)[0]["order"] == ["conv2d", "a_dense"]


@pytest.mark.parametrize("container", ["layers", "_layer_checkpoint_dependencies"])
def test_new_files_come_by_class_and_number(tmp_path: Path, container: str) -> None:
    layers = dict(some_layers())
    layers["dense"] = layers.pop("a_dense")
    told, found = unpack(write_layers(tmp_path / "w.weights.h5", layers, container))
    assert told["order"] == [*CONVS, "dense"]
    assert_same(found, layers)


def test_new_files_that_name_their_layers_are_believed(tmp_path: Path) -> None:
    path = write_layers(tmp_path / "w.weights.h5", some_layers(2))
    with h5py.File(path, "a") as file:
        file["layers/conv2d_1/vars"].attrs["name"] = "conv1_2"
    assert "conv1_2" in unpack(path)[0]["order"]


def test_weights_of_unknown_layers_keep_their_numbers(tmp_path: Path) -> None:
    layers = {"gru": {str(k): np.full(1, k, np.float32) for k in range(11)}}
    _, found = unpack(write_layers(tmp_path / "w.weights.h5", layers))
    assert list(found) == [f"gru/{k}" for k in range(11)]


def test_compressed_chunks_are_read_as_they_were(tmp_path: Path) -> None:
    value = np.random.default_rng(0).standard_normal((1000, 300)).astype(np.float32)
    path = write_legacy(tmp_path / "w.h5", {"a": {"a/kernel:0": value}})
    with h5py.File(path, "a") as file:
        del file["a/a/kernel:0"]
        file["a"].create_dataset(
            "a/kernel:0", data=value, chunks=(7, 300), compression="gzip", shuffle=True
        )
    np.testing.assert_array_equal(unpack(path)[1]["a/kernel"], value)


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", ">f8"])
def test_floats_of_any_size_and_byte_order_become_float32(tmp_path: Path, dtype: str) -> None:
    value = np.array([[1.5, -2, 0.25]])
    path = write_legacy(tmp_path / "w.h5", {"a": {"a/kernel:0": value.astype(dtype)}})
    np.testing.assert_array_equal(
        unpack(path)[1]["a/kernel"], value.astype(np.float32), strict=True
    )


@pytest.mark.parametrize("dtype", ["<i8", ">i4", "u1"])
def test_integers_keep_their_size(tmp_path: Path, dtype: str) -> None:
    path = write_legacy(tmp_path / "w.h5", {"a": {"a/n:0": np.array([1, 200], dtype)}})
    found = unpack(path)[1]["a/n"]
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    assert found.tolist() == [1, 200]


def test_a_scalar_is_a_tensor(tmp_path: Path) -> None:
    _, found = unpack(write_legacy(tmp_path / "w.h5", {"a": {"a/scale:0": np.float32(3)}}))
    assert found["a/scale"] == 3


def one_layer(path: Path) -> h5py.File:
    """A file of one layer `a` whose weight `w` is yet to be made."""
    write_legacy(path, {"a": {}})
    file = h5py.File(path, "a")
    file["a"].attrs["weight_names"] = [b"w"]
    return file


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "d", (4,))
    file["a"].create_virtual_dataset("w", layout)


def external(file: h5py.File) -> None:
    file["a"].create_dataset("w", (4,), "f4", external=[("/etc/hostname", 0, 16)])


def loop(file: h5py.File) -> None:
    file["a/w"] = h5py.SoftLink("/a/w")


ATTACKS: dict[str, tuple[Any, str]] = {
    "external link": (lambda f: f["a"].__setitem__("w", h5py.ExternalLink("x.h5", "/d")), "link"),
    "soft link": (lambda f: f["a"].__setitem__("w", h5py.SoftLink("/a")), "SoftLink"),
    "soft link loop": (loop, "SoftLink"),
    "virtual dataset": (virtual, "other files"),
    "external storage": (external, "other files"),
    "terabytes": (lambda f: f["a"].create_dataset("w", (10**6, 10**6), "f4"), "declares 4000000"),
    "sparse chunks": (
        lambda f: f["a"].create_dataset("w", (10**6, 10**6), "f4", chunks=(100, 100)),
        "declares 1 tensors of 4000000",
    ),
    "a chunk of gigabytes": (
        lambda f: f["a"].create_dataset("w", (2**28,), "f4", chunks=(2**28,), compression=9),
        "chunks of 1073741824",
    ),
    "a group": (lambda f: f["a"].create_group("w"), "no array"),
    "nothing": (lambda f: None, "no such group or dataset"),
    "text": (lambda f: f["a"].__setitem__("w", "text"), "wanted numbers"),
    "complex": (lambda f: f["a"].__setitem__("w", np.zeros(2, complex)), "wanted numbers"),
    "references": (lambda f: f["a"].__setitem__("w", f["a"].ref), "wanted numbers"),
    "an empty space": (lambda f: f["a"].__setitem__("w", h5py.Empty("f4")), "no array"),
    "NaN": (lambda f: f["a"].__setitem__("w", np.array([np.nan], "f4")), "no numbers"),
    "a large double": (lambda f: f["a"].__setitem__("w", np.array([1e300])), "no numbers"),
    "no names": (lambda f: f["a"].attrs.__delitem__("weight_names"), "no attribute 'weight_names'"),
    "names that are numbers": (
        lambda f: f["a"].attrs.__setitem__("weight_names", [1, 2]), "not a list of names",
    ),
    "a name twice": (
        lambda f: f["a"].attrs.__setitem__("weight_names", [b"w", b"w"]), "lists a name twice",
    ),
    "theano": (lambda f: f.attrs.__setitem__("backend", b"theano"), "Theano"),
    "a path upwards": (
        lambda f: f["a"].attrs.__setitem__("weight_names", [b"../a/w"]), "no such group",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*overflow:RuntimeWarning")
@pytest.mark.parametrize("kind", ATTACKS)
def test_what_is_no_plain_array_in_the_file_is_refused(tmp_path: Path, kind: str) -> None:
    attack, said = ATTACKS[kind]
    path = tmp_path / "w.h5"
    with one_layer(path) as file:
        attack(file)
    with pytest.raises(CheckpointError, match=said):
        unpack(path)


def test_a_layer_that_is_listed_must_be_there(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "w.h5", some_layers(2))
    with h5py.File(path, "a") as file:
        del file["conv2d_1"]
    with pytest.raises(CheckpointError, match="lists 'conv2d_1'"):
        unpack(path)


def test_groups_within_themselves_end(tmp_path: Path) -> None:
    path = tmp_path / "w.weights.h5"
    with h5py.File(path, "w") as file:
        layers = file.create_group("layers")
        for k in range(2):
            layers[f"a_{k}"] = file["/"]  # hard links: each layer is the whole file
    with pytest.raises(CheckpointError, match="nests groups more than"):
        unpack(path)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, keep: float) -> None:
    path = write_legacy(tmp_path / "w.h5", some_layers())
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises((CheckpointError, OSError)):
        unpack(path)


def test_other_hdf5_files_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(CheckpointError, match="no Keras weights"):
        unpack(tmp_path / "w.h5")


def read_mutated(name: str, original: bytes, seed: int, folder: str) -> str:
    """Read a mutation of a file; says what came of it."""
    path = Path(folder, f"{seed}.h5")
    path.write_bytes(mutate(original, seed))
    (Path(folder) / name).mkdir()
    try:
        foreign_weights.unpack_keras(path, Path(folder) / name, True)
    except (S2FError, OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError):
        return "refused"
    return "read"


@pytest.mark.parametrize("write", [write_legacy, write_layers])
def test_damaged_files_are_refused_even_where_they_crash_the_reader(
    tmp_path: Path, write: Any
) -> None:
    original = write(tmp_path / "w.h5", some_layers(3)).read_bytes()
    items = [(f"m{seed}", original, seed, str(tmp_path)) for seed in range(200)]
    came = dict(prep.run_in_workers(read_mutated, items, workers=2, seconds=10))
    crashed = [seed for seed, result in came.items() if isinstance(result, WorkerError)]
    assert [came[seed] for seed in range(200)].count("refused") > 50
    assert len(crashed) < 10  # HDF5 has such bugs; these are why it runs in a process of its own
    for seed in crashed:
        with pytest.raises(CheckpointError, match=f"{seed}.h5: "):
            foreign_weights.read_foreign(tmp_path / f"{seed}.h5")


KERAS = """
import sys
import numpy as np, h5py, keras
from keras import layers as L
model = keras.Sequential([keras.Input((6, 6, 2)),
    *(layer for k in range(11) for layer in (L.ZeroPadding2D(1), L.Conv2D(2, 3))),
    L.Flatten(), L.Dropout(0.5), L.Dense(3), L.BatchNormalization()])
rng = np.random.default_rng(0)
model.set_weights([rng.standard_normal(w.shape).astype("f4") for w in model.get_weights()])
model.save(sys.argv[1] + "/model.h5")
model.save_weights(sys.argv[1] + "/new.weights.h5")
weighty = [layer for layer in model.layers if layer.weights]
np.savez(sys.argv[1] + "/truth.npz", **{f"{layer.name}/{w.name}": np.asarray(w)
    for layer in weighty for w in layer.weights})
"""


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("tensorflow"), reason="needs the extra `convert`")
def test_files_of_keras_itself_hold_what_the_model_held(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KERAS, tmp_path], check=True, capture_output=True)
    truth = np.load(tmp_path / "truth.npz")
    told, legacy = unpack(tmp_path / "model.h5")
    assert list(legacy) == list(truth)
    assert told["values"]["backend"] == "tensorflow"
    told, new = unpack(tmp_path / "new.weights.h5")
    assert set(new) == set(truth)
    convs = [name for name in told["order"] if name.startswith("conv")]
    assert convs == [name.split("/")[0] for name in truth if name.endswith("kernel")][:11]
    for name in truth:
        np.testing.assert_array_equal(legacy[name], truth[name])
        np.testing.assert_array_equal(new[name], truth[name])
