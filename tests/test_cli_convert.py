"""`s2f convert`: what is said of a file, to people and to programs, and what is made of it."""

import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import Done, assert_refused, assert_wrong_usage, commands, files
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
    tensors = [
        {"name": "fc6/kernel", "dtype": "float32", "shape": [2, 3]},
        {"name": "fc6/bias", "dtype": "float32", "shape": [3]},
    ]
    found = {"path": str(path), "kind": "keras", "values": {"backend": "tensorflow"}}
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


def test_the_examples_run_as_printed(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for source, name in (
        *(("serengil.h5", "vgg_face_weights.h5"), ("rcmalli.h5", "rcmalli_vggface_tf_vgg16.h5")),
        *(("rcmalli.h5", "weights.h5"), ("decoder.pt", "face_decoder.pt")),
        *(("ve.pt", "ve.pt"), ("serengil.pt", "vgg.pt")),
    ):
        shutil.copy(published / source, name)
    for path, command in commands():
        for line in command.epilog.splitlines() if path[0] == "convert" else ():
            if line.startswith("`s2f"):
                quiet = [] if path[1] == "inspect" else ["--quiet", "--overwrite"]
                done = Done(*shlex.split(line.strip("`"))[1:], *quiet)
                assert (done.code, done.err) == (0, ""), line


def test_a_conversion_prints_its_path_and_its_proof_or_one_json_object(
    published: Path, tmp_path: Path
) -> None:
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
    assert (made["path"], made["source"]) == (str(out), str(source))
    assert made["embedding_space"] == back.embedding_space
    assert set(made["proven"]) == {"features", "embedding", "logits"}
    assert made["verified"] is None
    assert back.network.preprocessing.channels == "RGB"  # type: ignore[union-attr]


def test_a_model_is_printed_network_by_network(published: Path, tmp_path: Path) -> None:
    out, decoder, voice = tmp_path / "model", published / "decoder.pt", published / "ve.pt"
    command = ("convert", "pietkun", "--face-decoder", decoder, "--ve-conv", voice, "-o", out)
    done = Done(*command, "--quiet")
    made = [out / "face_decoder.safetensors", out / "voice_encoder.safetensors"]
    assert (done.code, done.err, done.out.splitlines()) == (0, "", [str(path) for path in made])
    assert files(out) == set(made)
    again = Done(*command, "--overwrite", "--json")
    assert [row["kind"] for row in again.json["converted"]] == ["face_decoder", "voice_encoder"]


def test_wrong_usage_is_refused(published: Path, tmp_path: Path) -> None:
    source = published / "serengil.h5"
    cat = ("convert", "serengil", source, "-o", tmp_path / "out", "--preprocessing", "cat")
    for arguments in (cat, cat[:3], ("convert", "pietkun", "-o", tmp_path / "out")):
        assert_wrong_usage(Done(*arguments))
    assert_refused(Done("convert", "serengil", source, "-o", source), 2, source)
    assert files(tmp_path) == set()


def test_a_missing_package_exits_with_5_and_names_the_cure(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert_refused(Done("convert", "pietkun", "--face-decoder", source, "-o", out), 4, source)
    done = Done("convert", "serengil", source, "-o", out, "--json")
    assert (done.code, done.json["error"]) == (4, "CheckpointError")
    (tmp_path / "w").write_bytes(source.read_bytes()[:9999])
    assert_refused(Done("convert", "inspect", tmp_path / "w"), 4, tmp_path / "w")
    assert files(tmp_path) == {tmp_path / "w"}
