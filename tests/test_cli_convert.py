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
    assert Done("convert", "inspect", path, "--json").json == {
        "path": str(path),
        "kind": "keras",
        "values": {"backend": "tensorflow"},
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


def test_a_conversion_prints_its_path_and_its_proof(published: Path, tmp_path: Path) -> None:
    done = Done("convert", "serengil", published / "serengil.h5", "-o", tmp_path / "out")
    assert (done.code, done.out) == (0, f"{tmp_path / 'out'}\n")
    assert done.err.startswith("equals NumPy on serengil.h5: errors features ")
    assert len(done.err.splitlines()) == 1


def test_a_conversion_prints_one_json_object(published: Path, tmp_path: Path) -> None:
    source, out = published / "rcmalli.h5", tmp_path / "out"
    options = ("--preprocessing", "seed", "--json")
    done = Done("convert", "rcmalli", source, "-o", out, *options)
    assert (done.code, done.err) == (0, "")
    (made,) = done.json["converted"]
    back = checkpoint.load(out, "face_encoder")
    assert (made["path"], made["source"]) == (str(out), str(source))
    assert made["embedding_space"] == back.embedding_space
    assert set(made["proven"]) == {"features", "embedding", "logits"}
    assert made["verified"] is None
    assert back.network.preprocessing.channels == "RGB"  # type: ignore[union-attr]


def test_a_model_is_printed_network_by_network(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    sources = ("--face-decoder", published / "decoder.pt", "--ve-conv", published / "ve.pt")
    done = Done("convert", "pietkun", *sources, "-o", out, "--quiet")
    made = [out / "face_decoder.safetensors", out / "voice_encoder.safetensors"]
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [str(path) for path in made]
    assert files(out) == set(made)
    assert_refused(Done("convert", "pietkun", *sources, "-o", out), 2, out)
    again = Done("convert", "pietkun", *sources, "-o", out, "--overwrite", "--json")
    assert [row["kind"] for row in again.json["converted"]] == ["face_decoder", "voice_encoder"]


def test_wrong_usage_is_refused(published: Path, tmp_path: Path) -> None:
    source, out = published / "serengil.h5", ("-o", tmp_path / "out")
    for arguments in (
        ("serengil", source),
        ("serengil", *out),
        ("serengil", source, *out, "--preprocessing", "cat"),
        ("pietkun", *out),
        ("pietkun", "--face-decoder", source, *out, "--kind", "cat"),
    ):
        assert_wrong_usage(Done("convert", *arguments))
    pair = ("--ast", source, "--ve-conv", source)
    done = Done("convert", "pietkun", "--face-decoder", source, *out, *pair)
    assert_refused(done, 2, "one voice encoder")
    assert_refused(Done("convert", "serengil", source, "-o", source), 2, source)
    assert files(tmp_path) == set()


def test_a_missing_package_exits_with_5(
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


@pytest.mark.parametrize("wrong", ["cut off", "of another net"])
def test_a_wrong_file_exits_with_4_and_leaves_nothing(
    published: Path, tmp_path: Path, wrong: str
) -> None:
    source, out = tmp_path / "w", tmp_path / "out"
    content = (published / "rcmalli.h5").read_bytes()
    source.write_bytes(content[: len(content) // 2] if wrong == "cut off" else content)
    before = files(tmp_path)
    assert_refused(Done("convert", "pietkun", "--face-decoder", source, "-o", out), 4, source)
    done = Done("convert", "serengil", source, "-o", out, "--json")
    assert (done.code, done.json["error"]) == (4, "CheckpointError")
    if wrong == "cut off":
        assert_refused(Done("convert", "inspect", source), 4, source)
    assert files(tmp_path) == before
    assert not out.exists()
