"""`s2f models` and `s2f verify`."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from command_line import Done, assert_refused
from conftest import save_model
from test_architecture import imported_by

from s2f.checkpoint import KINDS, Card, read_header

pytestmark = pytest.mark.usefixtures("bundled")


def copied(models: Path, folder: Path, name: str = "demo") -> Path:
    shutil.copytree(models / name, folder)
    return folder


def damage(path: Path, place: int = -1) -> Path:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    return path


def test_a_model_shows_what_its_evaluation_found(bundled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(bundled / "demo", folder)
    assert Done("models", folder, "--json").json["models"][0]["evaluation"] is None
    (folder / "evaluation.md").write_text("# Evaluation\n\n| a\x1b | 1 |\n")
    done = Done("models", folder)
    assert "# Evaluation" in done.out.splitlines() and "| a\\x1b | 1 |" in done.out.splitlines()


def test_the_names_are_the_result_and_the_table_is_for_people() -> None:
    done = Done("models")
    assert (done.code, done.out) == (0, "demo\nother\n")
    rows = [line.split() for line in done.err.splitlines() if "bundled" in line]
    assert [row[:3] for row in rows] == [
        [m, "bundled", k] for m in ("demo", "other") for k in KINDS
    ]
    assert Done("models", "--quiet").err == ""


def test_the_json_has_everything(models: Path) -> None:
    listed = Done("models", "--json").json
    assert [model["name"] for model in listed["models"]] == ["demo", "other"]
    network = listed["models"][0]["networks"]["voice_encoder"]
    header = read_header(models / "demo/voice_encoder.safetensors")
    for name in ("card", "sha256", "embedding_space", "kind"):
        assert network[name] == header[name]
    assert Path(listed["cache"]) == Path(os.environ["S2F_MODELS"])


def test_a_name_or_a_folder_shows_the_whole_cards(models: Path) -> None:
    for model in ("demo", models / "demo"):
        done = Done("models", model)
        assert (done.code, done.err) == (0, "")
        assert all(kind in done.out for kind in KINDS)
        assert done.out.count("licence: none") == 3
        assert done.out.count("description: random weights") == 3


def test_a_card_cannot_command_the_terminal(models: Path, tmp_path: Path) -> None:
    from s2f import checkpoint

    path = tmp_path / "face_encoder.safetensors"
    network = checkpoint.load(models / "demo/face_encoder.safetensors", "face_encoder").network
    card = Card("a\x1b[2J", metrics={"x\ny": [1, {"deep": "\x07"}]}, licence="\x1b]0;t\x07")
    checkpoint.save(path, network, card=card)
    done = Done("models", tmp_path)
    assert done.code == 0
    assert "\x1b" not in done.out and "\x07" not in done.out
    assert "  name: a\\x1b[2J\n" in done.out
    assert "    x\\ny: [1, {'deep': '\\x07'}]\n" in done.out


def test_an_unknown_model_is_refused() -> None:
    assert_refused(Done("models", "cat"), 4, "cat")


def test_a_damaged_network_is_listed_but_of_a_named_model_an_error(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S2F_MODELS", str(tmp_path))
    path = copied(models, tmp_path / "mine") / "voice_encoder.safetensors"
    path.write_bytes(b"broken")
    done = Done("models")
    assert (done.code, done.out) == (0, "demo\nother\nmine\n")
    assert "damaged" in done.err and f"{path}: is not a checkpoint" in done.err
    named = Done("models", "mine")
    assert named.code == 6
    assert "face_decoder: " in named.out and "error: 1 of 3 failed" in named.err
    assert set(Done("models", "mine", "--json").json["models"][0]["errors"]) == {"voice_encoder"}
    for kind in ("face_encoder", "face_decoder"):
        (tmp_path / f"mine/{kind}.safetensors").unlink()
    alone = Done("models", "mine", "--json")
    assert (alone.code, alone.json["error"]) == (4, "CheckpointError")


def test_whole_checkpoints_are_ok(models: Path) -> None:
    done = Done("verify", models / "demo", models / "other/face_decoder.safetensors")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert len(lines) == 4
    path = models / "other/face_decoder.safetensors"
    sha256 = read_header(path)["sha256"]
    assert lines[-1] == f"{path}: ok: face_decoder, sha256 {sha256[:12]}"
    results = Done("verify", models / "demo", "--json").json["results"]
    assert [r["status"] for r in results] == ["ok"] * 3
    assert {r["kind"] for r in results} == set(KINDS)


def test_a_single_bad_file_is_its_own_error(models: Path, tmp_path: Path) -> None:
    path = damage(copied(models, tmp_path / "m") / "face_encoder.safetensors")
    assert_refused(Done("verify", path), 4, path)
    done = Done("verify", path, "--json")
    assert (done.code, done.json["error"]) == (4, "CheckpointError")
    assert "is damaged" in done.json["message"]


@pytest.mark.parametrize("name", ["nowhere", "empty", "text"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello")
    assert_refused(Done("verify", tmp_path / name), 4, tmp_path / name)


def test_of_several_the_bad_are_named_at_the_end(models: Path, tmp_path: Path) -> None:
    bad = damage(copied(models, tmp_path / "m") / "face_encoder.safetensors")
    (tmp_path / "empty").mkdir()
    sources = (tmp_path / "m", tmp_path / "empty", tmp_path / "none", models / "demo")
    done = Done("verify", *sources)
    assert done.code == 6
    assert len(done.out.splitlines()) == 5
    assert done.err.startswith("error: 3 of 8 failed\n")
    assert f"{bad}: is damaged" in done.err and f"{tmp_path / 'none'}: no such" in done.err
    results = Done("verify", *sources, "--json").json["results"]
    assert [r["status"] for r in results].count("failed") == 3
    assert all((r["error"] is None) == (r["status"] == "ok") for r in results)


def test_networks_of_two_spaces_in_one_folder_are_found(models: Path, tmp_path: Path) -> None:
    folder = copied(models, tmp_path / "m")
    shutil.copy(models / "other/face_decoder.safetensors", folder)
    done = Done("verify", folder)
    assert done.code == 6
    assert len(done.out.splitlines()) == 3
    assert "different embedding spaces" in done.err
    # In two folders they are two models; by other names they are no model.
    assert Done("verify", models / "demo", models / "other").code == 0
    (folder / "face_decoder.safetensors").rename(folder / "best.safetensors")
    assert Done("verify", folder).code == 0


def test_every_flipped_bit_of_the_payload_is_found(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    whole = (models / "demo/face_encoder.safetensors").read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    rng = random.Random(1)
    for _ in range(20):  # more of them in test_checkpoint
        path.write_bytes(whole)
        assert_refused(Done("verify", damage(path, rng.randrange(start, len(whole)))), 4, path)


@pytest.mark.parametrize("command", ["models", "models DEMO", "verify DEMO", "models DEMO --json"])
def test_neither_imports_torch(tmp_path: Path, command: str) -> None:
    demo = save_model(tmp_path / "demo", seed=0)
    arguments = [str(demo) if word == "DEMO" else word for word in command.split()]
    source = "from typer.testing import CliRunner; from s2f.cli import app\n"
    source += f"done = CliRunner().invoke(app, {json.dumps(arguments)})\n"
    source += "assert done.exit_code == 0, done.output"
    assert not {"torch", "numpy", "safetensors"} & imported_by(source)
