"""Which files a model's name stands for. How they are read is in test_checkpoint."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import save_model
from test_architecture import imported_by

from s2f import checkpoint
from s2f.checkpoint import KINDS, cache, choose, entries, read_header
from s2f.errors import CheckpointError, UsageError

ENCODER, DECODER, VOICE = (
    f"{kind}.safetensors" for kind in ("face_encoder", "face_decoder", "voice_encoder")
)


@pytest.fixture
def cached(bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a model `mine`, a `half` one, and what is none."""
    folder = tmp_path / "cache"
    save_model(folder / "mine", seed=2)
    (folder / "half").mkdir()
    (folder / "half" / DECODER).write_bytes((folder / "mine" / DECODER).read_bytes())
    (folder / "empty").mkdir()
    (folder / "notes.txt").touch()
    save_model(folder / ".s2f-unfinished", seed=2)
    monkeypatch.setenv("S2F_MODELS", str(folder))
    return folder


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"S2F_MODELS": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"S2F_MODELS": "", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/s2f/models"),
        ({"HOME": "/c"}, "/c/.cache/s2f/models"),
    ],
)
def test_where_the_cache_is(
    variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("S2F_MODELS", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache() == Path(folder)


def test_a_choice_names_files_and_has_their_hashes(bundled: Path) -> None:
    choice = choose("demo")
    assert choice.name == "demo"
    assert choice.paths == {kind: bundled / f"demo/{kind}.safetensors" for kind in KINDS}
    for kind, path in choice.paths.items():
        assert choice.hashes[kind].result() == read_header(path)["sha256"]


def test_a_bundled_name_goes_before_the_cache_and_that_before_a_folder(
    cached: Path, bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(cached / "other", seed=3)
    for name in ("demo", "mine", "here"):
        save_model(tmp_path / name, seed=4)
    monkeypatch.chdir(tmp_path)
    places = {name: choose(name).paths["face_encoder"].parent for name in ("demo", "other")}
    assert places == {"demo": bundled / "demo", "other": bundled / "other"}
    assert choose("mine").paths["face_encoder"] == cached / "mine" / ENCODER
    assert choose("here").paths["face_encoder"] == Path("here", ENCODER)
    assert choose("./demo").paths["face_encoder"] == Path("demo", ENCODER)
    assert choose(Path("demo")).paths["face_encoder"] == Path("demo", ENCODER)


def test_this_folder_is_a_model_folder_too(
    models: Path, bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models / "other")
    assert choose(".", ("face_encoder",)).name == "other"


@pytest.mark.parametrize("name", ["cat", "a" * 300, "", "../cache/mine", "notes.txt", "empty"])
def test_an_unknown_model_is_refused_and_the_known_are_named(cached: Path, name: str) -> None:
    with pytest.raises(
        CheckpointError,
        match=r": is neither a bundled model \(demo, other\), .* \(half, mine\), nor a folder",
    ):
        choose(name or "none")


def test_what_a_model_lacks_is_named_at_once(cached: Path) -> None:
    choose("half", ("face_decoder",))
    with pytest.raises(CheckpointError, match=rf"{VOICE}: no such checkpoint"):
        choose("half", ("voice_encoder", "face_decoder"))


def test_single_files_take_the_place_of_the_models_own(bundled: Path) -> None:
    voice = bundled / "other" / VOICE
    choice = choose("demo", ("voice_encoder", "face_decoder"), files={"voice_encoder": voice})
    assert choice.paths == {"voice_encoder": voice, "face_decoder": bundled / "demo" / DECODER}
    assert choice.name == f"demo, but voice_encoder of other/{VOICE}"


def test_where_every_network_is_a_file_the_model_is_not_looked_at(bundled: Path) -> None:
    files = {kind: bundled / f"demo/{kind}.safetensors" for kind in KINDS}
    choice = choose("no such model", files=files)
    assert choice.paths == files
    assert choice.name == " + ".join(f"{kind} of demo/{kind}.safetensors" for kind in KINDS)


def test_a_file_that_would_not_be_used_is_refused(bundled: Path) -> None:
    with pytest.raises(UsageError, match="is given as face_encoder; only voice_encoder and face"):
        choose(
            "demo",
            ("voice_encoder", "face_decoder"),
            files={"face_encoder": bundled / "demo" / ENCODER},
        )


def test_a_file_of_another_kind_is_refused_before_anything_is_hashed(bundled: Path) -> None:
    with pytest.raises(CheckpointError, match="is a face_decoder; wanted a voice_encoder"):
        choose("demo", files={"voice_encoder": bundled / "demo" / DECODER})


def test_a_file_that_goes_while_it_is_hashed_is_an_error_of_ours(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "read_header", lambda path, kind: {})
    (future,) = choose(tmp_path, ("face_encoder",)).hashes.values()
    with pytest.raises(CheckpointError, match=rf"{ENCODER}: is not a checkpoint of s2f"):
        future.result()


def test_the_list_has_what_is_bundled_and_what_is_cached(cached: Path, bundled: Path) -> None:
    listed = {entry.name: entry for entry in entries()}
    assert list(listed) == ["demo", "other", "half", "mine"]
    assert [entry.where for entry in listed.values()] == ["bundled"] * 2 + ["cache"] * 2
    assert tuple(listed["demo"].networks) == KINDS
    assert set(listed["half"].networks) == {"face_decoder"}
    assert listed["mine"].folder == cached / "mine"
    assert listed["demo"].networks["face_decoder"].card["name"] == "tiny"
    (folder,) = entries(cached / "mine")
    assert (folder.name, folder.where, folder.networks) == (
        *("mine", "folder"),
        listed["mine"].networks,
    )


def test_a_damaged_file_is_listed_with_its_error(cached: Path) -> None:
    (cached / "half" / DECODER).write_bytes(b"nothing of the kind")
    (cached / "mine" / ENCODER).write_bytes((cached / "mine" / DECODER).read_bytes())
    listed = {entry.name: entry for entry in entries()}
    assert "is not a checkpoint" in listed["half"].errors["face_decoder"].message
    assert "is a face_decoder" in listed["mine"].errors["face_encoder"].message
    assert set(listed["mine"].networks) == {"voice_encoder", "face_decoder"}


def test_choosing_does_not_import_torch(models: Path) -> None:
    code = "from pathlib import Path; from s2f.checkpoint import choose, entries\n"
    code += f"choice = choose(Path({str(models / 'demo')!r})); entries()\n"
    code += "[future.result() for future in choice.hashes.values()]"
    assert not {"torch", "numpy", "safetensors"} & imported_by(code)


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "os.kill(os.getpid(), signal.SIGINT)"])
def test_a_program_that_ends_does_not_wait_for_hashes(models: Path, end: str) -> None:
    code = f"""
import os, signal, time
from pathlib import Path
from s2f import catalogue
catalogue.hash_file = lambda path: time.sleep(60)
catalogue.choose(Path({str(models / "demo")!r}))
{end}
"""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert time.perf_counter() - started < 20
