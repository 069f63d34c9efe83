"""`s2f convert`: what is said of a file, to people and to programs, and what is made of it."""

import shlex
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import published_files as published
import pytest
import torch
from command_line import Done, assert_refused, assert_wrong_usage, commands, files
from foreign_files import write_legacy
from published_files import narrow

from s2f import checkpoint, convert, keras_check

__all__ = ["narrow"]

LAYERS = {"fc6": {"fc6/kernel:0": np.ones((2, 3), np.float32), "fc6/bias:0": np.ones(3)}}


def test_inspect_lists_the_tensors_of_a_file(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "w.h5", LAYERS, backend=b"tensorflow")
    done = Done("convert", "inspect", path)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        f"{path}: keras, 2 tensors, 9 values",
        "backend: tensorflow",
        "fc6/kernel  float32  2 x 3",
        "fc6/bias    float32  3",
    ]


def test_inspect_prints_one_json_object(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "w.h5", LAYERS)
    assert Done("convert", "inspect", path, "--json").json == {
        "path": str(path),
        "kind": "keras",
        "values": {},
        "tensors": [
            {"name": "fc6/kernel", "dtype": "float32", "shape": [2, 3]},
            {"name": "fc6/bias", "dtype": "float32", "shape": [3]},
        ],
    }


def test_inspect_shows_the_card_of_a_checkpoint(models: Path) -> None:
    out = Done("convert", "inspect", models / "demo" / "face_decoder.safetensors").out
    assert "face_decoder, " in out
    assert 'card: {"data": "", "description": "random weights"' in out


def test_no_terminal_obeys_a_strangers_names(tmp_path: Path) -> None:
    layers = {"a\x1b[2J": {"b\nc": np.ones(2, np.float32)}}
    done = Done("convert", "inspect", write_legacy(tmp_path / "w.h5", layers, backend="\x1b[2J"))
    assert done.code == 0
    assert "\x1b" not in done.out
    assert len(done.out.splitlines()) == 3


def test_inspect_refuses_what_holds_no_weights(tmp_path: Path) -> None:
    (tmp_path / "w.h5").write_text("none")
    assert_refused(Done("convert", "inspect", tmp_path / "w.h5"), 4, tmp_path / "w.h5")
    assert Done("convert", "inspect", tmp_path, "--json").json["error"] == "CheckpointError"


def test_the_examples_of_conversions_run_as_printed(
    narrow: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(Path(__file__).parents[1] / "examples", "examples")
    published.write_keras(Path("vgg_face_weights.h5"), "serengil")
    published.write_keras(Path("rcmalli_vggface_tf_vgg16.h5"), "rcmalli")
    published.write_keras(Path("weights.h5"), "rcmalli")
    for name, module in (
        *(("face_decoder.pt", published.SeedDecoder()), ("ve.pt", published.SeedVoice())),
        ("vgg.pt", published.SeedVGG("serengil")),
    ):
        published.training_checkpoint(Path(name), published.randomise(module).state_dict())
    for path, command in commands():
        if path[0] != "convert":
            continue
        for line in command.epilog.splitlines():
            if line.startswith("`s2f"):
                done = Done(*shlex.split(line.strip("`"))[1:], "--quiet", "--overwrite")
                if path[1] == "inspect":
                    done = Done(*shlex.split(line.strip("`"))[1:])
                assert (done.code, done.err) == (0, "")


def test_a_conversion_prints_its_path_and_its_proof(narrow: None, tmp_path: Path) -> None:
    source = published.write_keras(tmp_path / "w.h5", "serengil")
    done = Done("convert", "serengil", source, "-o", tmp_path / "out")
    assert (done.code, done.out) == (0, f"{tmp_path / 'out'}\n")
    assert done.err.startswith("equals NumPy on w.h5: errors features ")
    assert len(done.err.splitlines()) == 1


def test_a_conversion_prints_one_json_object(narrow: None, tmp_path: Path) -> None:
    source, out = published.write_keras(tmp_path / "w.h5", "rcmalli"), tmp_path / "out"
    options = ("--preprocessing", "seed", "--json")
    done = Done("convert", "rcmalli", source, "-o", out, *options)
    assert (done.code, done.err) == (0, "")
    (made,) = done.json["converted"]
    back = checkpoint.load(out, "face_encoder")
    assert made["path"] == str(out)
    assert made["embedding_space"] == back.embedding_space
    assert set(made["proven"]) == {"features", "embedding", "logits"}
    assert made["verified"] is None
    assert back.network.preprocessing.channels == "RGB"  # type: ignore[union-attr]


def test_a_model_is_printed_network_by_network(narrow: None, tmp_path: Path) -> None:
    decoder, voice = tmp_path / "d.pt", tmp_path / "v.pt"
    for path, module in ((decoder, published.SeedDecoder()), (voice, published.SeedVoice())):
        published.training_checkpoint(path, published.randomise(module).state_dict())
    out = tmp_path / "model"
    options = ("--face-decoder", decoder, "--ve-conv", voice, "-o", out)
    done = Done("convert", "pietkun", *options, "--quiet")
    made = [out / "face_decoder.safetensors", out / "voice_encoder.safetensors"]
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [str(path) for path in made]
    assert files(out) == set(made)
    assert_refused(Done("convert", "pietkun", *options), 2, out)
    assert Done("convert", "pietkun", *options, "--overwrite").code == 0


def test_wrong_usage_is_refused(narrow: None, tmp_path: Path) -> None:
    source = published.write_keras(tmp_path / "w.h5", "serengil")
    for arguments in (
        ("serengil", source),
        ("serengil", "-o", tmp_path / "out"),
        ("serengil", source, "-o", tmp_path / "out", "--preprocessing", "cat"),
        ("pietkun", "-o", tmp_path / "out"),
        ("pietkun", "--face-decoder", source, "-o", tmp_path / "out", "--kind", "cat"),
    ):
        assert_wrong_usage(Done("convert", *arguments))
    pair = ("--ast", source, "--ve-conv", source)
    done = Done("convert", "pietkun", "--face-decoder", source, "-o", tmp_path / "out", *pair)
    assert_refused(done, 2, "one voice encoder")
    assert_refused(Done("convert", "serengil", source, "-o", source), 2, source)
    assert files(tmp_path) == {source}


def test_verifying_without_tensorflow_exits_with_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras_check.importlib.util, "find_spec", lambda name: None)
    done = Done("convert", "serengil", tmp_path / "w.h5", "-o", tmp_path / "out", "--verify")
    assert_refused(done, 5, "TensorFlow")
    assert "pip install 's2f[convert]'" in done.err


def test_ast_without_transformers_exits_with_5(
    narrow: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    decoder = published.randomise(published.SeedDecoder()).state_dict()
    source = published.training_checkpoint(tmp_path / "d.pt", decoder)
    options = ("--face-decoder", source, "--ast", source, "-o", tmp_path / "model")
    done = Done("convert", "pietkun", *options)
    assert_refused(done, 5, "transformers")
    assert files(tmp_path) == {source}


def test_a_failed_proof_exits_with_4_and_leaves_nothing(
    narrow: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = published.write_keras(tmp_path / "w.h5", "serengil")
    monkeypatch.setattr(convert, "conv", lambda kernel: kernel.permute(3, 2, 1, 0))
    done = Done("convert", "serengil", source, "-o", tmp_path / "out")
    assert_refused(done, 4, source)
    assert files(tmp_path) == {source}


class Gadget:
    """Writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.canary, "sprung")


def truncated(path: Path) -> None:
    whole = published.write_keras(path, "serengil").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def layer_missing(path: Path) -> None:
    published.write_keras(path, "serengil", published.keras_weights("serengil")[:15])


def changed(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    weights = published.keras_weights("serengil")
    kernel, bias = weights[4]
    weights[4] = change(kernel), bias
    published.write_keras(path, "serengil", weights)


def terabytes(path: Path) -> None:
    published.write_keras(path, "serengil", [])
    with h5py.File(path, "a") as file:
        file.attrs["layer_names"] = [b"conv2d"]
        group = file.create_group("conv2d")
        group.attrs["weight_names"] = [b"kernel:0"]
        group.create_dataset("kernel:0", (10**6, 10**6), "f4", chunks=(1024, 1024))


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**8))


WRONG: dict[str, Callable[[Path], object]] = {
    "truncated": truncated,
    "of another net": lambda path: published.write_keras(path, "rcmalli"),
    "text": lambda path: path.write_text("no weights"),
    "a layer missing": layer_missing,
    "a shape changed": lambda path: changed(path, lambda kernel: kernel[:, :, :, :-1]),
    "nan": lambda path: changed(path, lambda kernel: kernel * np.float32(np.nan)),
    "a gadget": lambda path: torch.save({"a": Gadget(path.with_name("canary"))}, path),
    "terabytes": terabytes,
    "a zip bomb": zip_bomb,
    "missing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_file_exits_with_4_and_leaves_nothing(
    narrow: None, tmp_path: Path, wrong: str
) -> None:
    source, out = tmp_path / "w", tmp_path / "out"
    WRONG[wrong](source)
    before = files(tmp_path)
    assert_refused(Done("convert", "serengil", source, "-o", out), 4, source)
    options = ("--face-decoder", source, "-o", out)
    assert_refused(Done("convert", "pietkun", *options), 4, source)
    assert files(tmp_path) == before  # neither an output nor a canary
    assert not out.exists()
