"""`s2f convert`: what is said of a file, to people and to programs, and what is made of it."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Done, assert_refused, commands, files
from foreign_files import write_legacy
from published_files import narrow, published

from s2f import checkpoint, keras_check

pytestmark = pytest.mark.usefixtures("narrow")
__all__ = ["narrow", "published"]
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
    shapes = {"fc6/kernel": [2, 3], "fc6/bias": [3]}
    tensors = [{"name": name, "dtype": "float32", "shape": shapes[name]} for name in shapes]
    values = {"backend": "tensorflow"}
    found = {"path": str(path), "kind": "keras", "values": values, "wrapper": ""}
    assert Done("convert", "inspect", path, "--json").json == found | {"tensors": tensors}


def test_inspect_shows_the_card_of_a_checkpoint(models: Path) -> None:
    path = models / "demo" / "face_decoder.safetensors"
    done = Done("convert", "inspect", path)
    assert f"{path}: face_decoder, " in done.out
    assert 'card: {"data": "", "description": "random weights"' in done.out
    found = Done("convert", "inspect", path, "--json").json
    back = checkpoint.load(path, "face_decoder")
    assert found["values"]["embedding_space"] == back.embedding_space
    tensors = {tensor["name"]: tensor["shape"] for tensor in found["tensors"]}
    assert tensors == {name: [*t.shape] for name, t in back.network.state_dict().items()}


def test_no_terminal_obeys_a_strangers_names(tmp_path: Path) -> None:
    layers = {"a\x1b[2J": {"b\nc": np.ones(2, np.float32)}}
    done = Done("convert", "inspect", write_legacy(tmp_path / "w.h5", layers, backend="\x1b[2J"))
    assert done.code == 0
    assert "\x1b" not in done.out
    assert len(done.out.splitlines()) == 3


def test_the_examples_run_as_printed(published: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    copies = {"serengil.h5": "vgg_face_weights.h5", "rcmalli.h5": "rcmalli_vggface_tf_vgg16.h5"}
    copies |= {"decoder.pt": "face_decoder.pt", "ve.pt": "ve.pt", "serengil.pt": "vgg.pt"}
    copies["pretrained.pt"] = "pretrained.pt"
    for source, name in copies.items():
        shutil.copy(published / source, name)
    shutil.copy("vgg_face_weights.h5", "weights.h5")
    for path, command in commands():
        for line in command.epilog.splitlines() if path[0] == "convert" else ():
            if line.startswith("`s2f"):
                quiet = [] if path[1] == "inspect" else ["--quiet", "--overwrite"]
                done = Done(*shlex.split(line.strip("`"))[1:], *quiet)
                assert (done.code, done.err) == (0, ""), line


def test_a_conversion_prints_its_path_and_its_proof(published: Path, tmp_path: Path) -> None:
    source, out = published / "rcmalli.h5", tmp_path / "out"
    command = ("convert", "rcmalli", source, "-o", out, "--preprocessing", "seed")
    done = Done(*command)
    assert (done.code, done.out) == (0, f"{out}\n")
    assert done.err.startswith("equals NumPy on rcmalli.h5: errors features ")
    assert len(done.err.splitlines()) == 1
    done = Done(*command, "--overwrite", "--json")
    assert (done.code, done.err) == (0, "")
    (made,) = done.json["converted"]
    back = checkpoint.load(out, "face_encoder")
    expected = {"path": str(out), "source": str(source), "kind": "face_encoder"}
    expected |= {"embedding_space": back.embedding_space, "verified": None, "remarks": []}
    assert {name: value for name, value in made.items() if name != "proven"} == expected
    assert set(made["proven"]) == {"features", "embedding", "logits"}
    assert back.network.preprocessing.channels == "RGB"  # type: ignore[union-attr]
    voice = ("--face-decoder", published / "decoder.pt", "--ve-conv", published / "ve.pt")
    done = Done("convert", "pietkun", *voice, "-o", tmp_path / "model", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert {Path(line) for line in done.out.splitlines()} == files(tmp_path / "model")


def test_a_missing_package_exits_with_5(published: Path, tmp_path: Path, monkeypatch: Any) -> None:
    decoder, out = published / "decoder.pt", ("-o", tmp_path / "out")
    monkeypatch.setattr(keras_check.importlib.util, "find_spec", lambda name: None)
    done = Done("convert", "serengil", decoder, *out, "--verify")
    assert_refused(done, 5, "TensorFlow")
    assert "pip install 's2f[convert]'" in done.err
    monkeypatch.setitem(sys.modules, "transformers", None)
    done = Done("convert", "pietkun", "--face-decoder", decoder, "--ast", decoder, *out)
    assert_refused(done, 5, "transformers")
    assert files(tmp_path) == set()


def test_a_wrong_file_exits_with_4_and_leaves_nothing(published: Path, tmp_path: Path) -> None:
    source, out = published / "rcmalli.h5", tmp_path / "out"  # of another net
    done = Done("convert", "serengil", source, "-o", out, "--json")
    assert (done.code, done.json["error"]) == (4, "CheckpointError")
    (tmp_path / "w").write_bytes(source.read_bytes()[:9999])
    assert_refused(Done("convert", "inspect", tmp_path / "w"), 4, tmp_path / "w")
    assert files(tmp_path) == {tmp_path / "w"}
