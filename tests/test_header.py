"""Headers of checkpoints, read alone. How they are damaged is in test_checkpoint."""

import json
from pathlib import Path

import pytest
from test_architecture import imported_by

from s2f import checkpoint
from s2f.checkpoint import FIELDS, hash_file, read_facts, read_header, verify
from s2f.errors import CheckpointError


def test_a_header_says_what_the_whole_checkpoint_says(models: Path) -> None:
    path = models / "demo/voice_encoder.safetensors"
    header, whole = read_header(path, "voice_encoder"), checkpoint.load(path, "voice_encoder")
    assert header.keys() >= FIELDS.keys()
    assert header["embedding_space"] == whole.embedding_space
    assert header["sha256"] == whole.sha256
    assert header["preprocessing"]["clip_samples"] == whole.front_end.clip_samples  # type: ignore[union-attr]


def test_damaged_tensors_are_not_its_concern(models: Path, tmp_path: Path) -> None:
    content = bytearray((models / "demo/face_encoder.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "e").write_bytes(content)
    read_header(tmp_path / "e", "face_encoder")
    for check in (verify, lambda path: checkpoint.load(path, "face_encoder")):
        with pytest.raises(CheckpointError, match="is damaged"):
            check(tmp_path / "e")


def test_another_kind_is_refused(models: Path) -> None:
    with pytest.raises(CheckpointError, match="is a face_decoder; wanted a face_encoder"):
        read_header(models / "demo/face_decoder.safetensors", "face_encoder")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nothing of the kind", "is not a checkpoint of s2f"),
        (None, "no such checkpoint"),
        ({}, "not one that s2f wrote"),
        ({"s2f": "{"}, "is not a checkpoint of s2f"),
        ({"s2f": "[]"}, "has format version"),
        ({"s2f": "[" * 100_000}, "is not a checkpoint of s2f"),
        ({"s2f": '{"version": 99}'}, "has format version 99; this program reads 1"),
        ({"s2f": '{"version": 1, "kind": "face_encoder"}'}, "lacks card, config"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "e"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        header = json.dumps({"__metadata__": content}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match=message):
        read_header(path, "face_encoder")


def test_reading_a_header_does_not_import_torch(models: Path) -> None:
    path = models / "demo/face_encoder.safetensors"
    code = "from pathlib import Path; from s2f.checkpoint import read_header\n"
    code += f"read_header(Path({str(path)!r}), 'face_encoder')"
    assert not {"torch", "numpy", "safetensors"} & imported_by(code)


def test_facts_are_those_of_the_network(models: Path) -> None:
    path = models / "demo/face_encoder.safetensors"
    facts, whole = verify(path), checkpoint.load(path, "face_encoder")
    tensors = whole.network.state_dict().values()
    assert facts.kind == whole.kind
    assert facts.parameters == sum(t.numel() for t in tensors if t.is_floating_point())
    assert (facts.n_bytes, facts.storage) == (path.stat().st_size, "float32")
    assert facts.card == {**vars(whole.card)}
    assert (facts.embedding_space, facts.sha256) == (whole.embedding_space, whole.sha256)
    assert hash_file(path) == facts.sha256
    assert read_facts(path) == facts


@pytest.mark.parametrize(
    "change",
    [
        *({"kind": "cat"}, {"kind": 1}, {"card": []}, {"config": None}, {"sha256": 0}),
        *({"embedding_space": []}, {"preprocessing": "none"}),
    ],
)
def test_a_header_of_other_types_is_refused(
    models: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    path = models / "demo/face_encoder.safetensors"
    header = read_header(path) | change
    text = json.dumps({"__metadata__": {"s2f": json.dumps(header)}}).encode()
    (tmp_path / "e").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError, match=r"e: is a cat; wanted|e: its header does not desc"):
        read_header(tmp_path / "e")
