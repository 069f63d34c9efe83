"""Checkpoints: a round trip changes nothing, and whatever is not ours is refused by name."""

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import DECODER, ENCODER, FRONT_END, PARTS, VOICE, some_landmarks
from published_files import AST, needs_transformers

from s2f import ast_encoder, face_decoder, face_encoder, voice_encoder
from s2f.appearance_model import PartsEncoder
from s2f.checkpoint import Card, choose, load, load_model, payload_sha256, save, verify
from s2f.errors import CheckpointError
from s2f.images import PREPROCESSING
from s2f.spectrogram import FRONT_ENDS

CARD = Card("name", data="some", metrics={"loss": 0.5})


def encoder() -> face_encoder.VGGFace:
    return face_encoder.VGGFace(ENCODER, PREPROCESSING["rcmalli"])


def parts_encoder() -> PartsEncoder:
    """One of parts, of random weights, that registers photos to a face."""
    torch.manual_seed(0)
    network = PartsEncoder(PARTS, PREPROCESSING["compact"]).eval()
    network.mean_landmarks.copy_(torch.from_numpy(some_landmarks()))
    for name in ("reading", "shape_code", "shape_axes"):
        getattr(network, name).normal_(std=1e-2)
    return network


def rewrite(path: Path, **changes: object) -> None:
    """Change fields of a checkpoint's header."""
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["s2f"])
    header |= changes
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, {"s2f": json.dumps(header)})


def test_a_voice_encoder_comes_back_as_it_was(tmp_path: Path) -> None:
    network = voice_encoder.VoiceEncoder(VOICE).eval()
    save(tmp_path / "v", network, card=CARD, embedding_space="space", front_end=FRONT_END)
    back = load(tmp_path / "v", "voice_encoder")
    assert (back.front_end, back.embedding_space, back.card) == (FRONT_END, "space", CARD)
    x = torch.randn(2, 1, 128, 100)
    torch.testing.assert_close(back.network(x), network(x).detach())


def test_a_face_encoder_comes_back_with_its_preprocessing(tmp_path: Path) -> None:
    network = encoder().eval()
    space = save(tmp_path / "e", network, card=CARD)
    back = load(tmp_path / "e", "face_encoder")
    assert isinstance(back.network, face_encoder.VGGFace)
    assert back.network.preprocessing == network.preprocessing
    assert back.embedding_space == space
    faces = torch.rand(2, 3, 28, 28)
    torch.testing.assert_close(back.network(faces), network(faces).detach())


@pytest.mark.parametrize("storage", [torch.float32, torch.float16])
def test_an_encoder_of_parts_comes_back_as_a_face_encoder(
    tmp_path: Path, storage: torch.dtype
) -> None:
    network = parts_encoder()
    space = save(tmp_path / "e", network, card=CARD, storage=storage)
    for keep_half in (False, True):
        back = load(tmp_path / "e", "face_encoder", keep_half=keep_half)
        assert isinstance(back.network, PartsEncoder)
        assert (back.network.config, back.network.preprocessing) == (PARTS, network.preprocessing)
        assert back.embedding_space == space
        for name, tensor in network.state_dict().items():
            half = 1e-3 if storage == torch.float16 else 0
            found = back.network.state_dict()[name].to(tensor.dtype)
            torch.testing.assert_close(found, tensor, atol=half, rtol=half, msg=name)
    whole = load(tmp_path / "e", "face_encoder").network
    assert isinstance(whole, PartsEncoder)
    faces = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        close = 0.05 if storage == torch.float16 else 1e-5
        expected = network(faces)
        torch.testing.assert_close(
            whole(faces), expected, atol=close * float(expected.std()), rtol=0
        )


def test_an_encoder_of_parts_that_stays_half_runs_under_autocast(tmp_path: Path) -> None:
    save(tmp_path / "e", parts_encoder(), card=CARD, storage=torch.float16)
    half, whole = (
        load(tmp_path / "e", "face_encoder", keep_half=keep).network for keep in (True, False)
    )
    faces = torch.rand(2, 3, 224, 224)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, expected = half(faces), whole(faces)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.1 * float(expected.std()), rtol=0)


@pytest.mark.parametrize("architecture", ["resnet", None, 3])
def test_a_face_encoder_of_unknown_architecture_is_refused(
    tmp_path: Path, architecture: object
) -> None:
    save(tmp_path / "e", parts_encoder(), card=CARD)
    config = {**dataclasses.asdict(PARTS), "architecture": architecture}
    rewrite(tmp_path / "e", config=config)
    with pytest.raises(CheckpointError, match="wanted vgg or parts"):
        load(tmp_path / "e", "face_encoder")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"embedding": 4}, "an embedding of 4 has no room for 2² windows of 1 values"),
        ({"landmarks": 72}, "its config wants"),
        ({"windows": 1}, "its config wants"),
        ({"finder": [4, 4]}, "does not describe a face_encoder"),
    ],
)
def test_an_encoder_of_parts_that_does_not_fit_its_config_is_refused(
    tmp_path: Path, change: dict[str, object], part: str
) -> None:
    save(tmp_path / "e", parts_encoder(), card=CARD)
    rewrite(tmp_path / "e", config={**dataclasses.asdict(PARTS), **change})
    with pytest.raises(CheckpointError, match=part):
        load(tmp_path / "e", "face_encoder")


def test_the_same_weights_define_another_space_where_pictures_are_prepared_otherwise(
    tmp_path: Path,
) -> None:
    network = encoder()
    space = save(tmp_path / "e", network, card=CARD)
    other = face_encoder.VGGFace(ENCODER, PREPROCESSING["seed"])
    other.load_state_dict(network.state_dict())
    assert save(tmp_path / "o", other, card=CARD) != space
    other.preprocessing = network.preprocessing
    assert save(tmp_path / "o", other, card=CARD) == space


@needs_transformers
def test_an_ast_encoder_comes_back_as_a_voice_encoder(tmp_path: Path) -> None:
    network = ast_encoder.ASTEncoder(AST).eval()
    front_end = FRONT_ENDS["ast"]
    save(tmp_path / "v", network, card=CARD, embedding_space="space", front_end=front_end)
    back = load(tmp_path / "v", "voice_encoder")
    assert isinstance(back.network, ast_encoder.ASTEncoder)
    assert (back.network.config, back.front_end) == (AST, front_end)
    x = torch.randn(1, 1, 128, 1024)
    torch.testing.assert_close(back.network(x), network(x).detach())


@needs_transformers
def test_an_ast_encoder_with_clips_of_other_length_is_refused(tmp_path: Path) -> None:
    network = ast_encoder.ASTEncoder(AST)
    save(tmp_path / "v", network, card=CARD, embedding_space="space", front_end=FRONT_END)
    with pytest.raises(CheckpointError, match="98 frames do not fit: this encoder needs 1024"):
        load(tmp_path / "v", "voice_encoder")


@pytest.mark.parametrize("architecture", ["rnn", None, 3])
def test_an_unknown_architecture_is_refused(tmp_path: Path, architecture: object) -> None:
    network = voice_encoder.VoiceEncoder(VOICE)
    save(tmp_path / "v", network, card=CARD, embedding_space="space", front_end=FRONT_END)
    config = {**dataclasses.asdict(VOICE), "architecture": architecture}
    rewrite(tmp_path / "v", config=config)
    with pytest.raises(CheckpointError, match="wanted conv or ast"):
        load(tmp_path / "v", "voice_encoder")


def test_a_decoder_comes_back_with_its_mean_shape(tmp_path: Path) -> None:
    config = dataclasses.replace(DECODER, landmarks_68=((0, 1, 0.5),) * 68)
    network = face_decoder.FaceDecoder(config).eval()
    network.mean_landmarks.fill_(3.0)
    save(tmp_path / "d", network, card=CARD, embedding_space="space")
    back = load(tmp_path / "d", "face_decoder").network
    assert back.config == config
    x = torch.randn(2, 8)
    for a, b in zip(back(x), network(x), strict=True):
        torch.testing.assert_close(a, b.detach())


def test_a_loaded_network_is_frozen_and_ready_for_use(tmp_path: Path) -> None:
    save(tmp_path / "e", encoder(), card=CARD)
    network = load(tmp_path / "e", "face_encoder").network
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_half_precision_is_stored_and_widened(tmp_path: Path) -> None:
    network = encoder()
    save(tmp_path / "whole", network, card=CARD)
    save(tmp_path / "half", network, card=CARD, storage=torch.float16)
    assert (tmp_path / "half").stat().st_size < 0.7 * (tmp_path / "whole").stat().st_size
    back = load(tmp_path / "half", "face_encoder").network
    for a, b in zip(back.parameters(), network.parameters(), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b.detach(), atol=1e-3, rtol=1e-3)


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    network = encoder()
    for name in ("a", "b"):
        save(tmp_path / name, network, card=CARD)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_hash_sees_names_values_shapes_and_types() -> None:
    base = {"a": torch.arange(4.0)}
    others = [
        {"b": torch.arange(4.0)},
        {"a": torch.arange(4.0) + 1},
        {"a": torch.arange(4.0).view(2, 2)},
        {"a": torch.arange(4.0).half()},
    ]
    hashes = {payload_sha256(tensors) for tensors in [base, *others]}
    assert len(hashes) == 5


def test_every_flipped_bit_of_the_payload_is_found(tmp_path: Path) -> None:
    path = tmp_path / "e"
    save(path, encoder(), card=CARD)
    whole = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(whole[:8], "little")
    rng = random.Random(0)
    for _ in range(200):
        broken = bytearray(whole)
        broken[rng.randrange(start, len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        for check in (verify, lambda path: load(path, "face_encoder")):
            with pytest.raises(CheckpointError, match="is damaged"):
                check(path)


def test_no_flipped_bit_of_the_header_is_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "e"
    save(path, encoder(), card=CARD)
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    rng = random.Random(0)
    refused = 0
    for _ in range(400):
        broken = bytearray(whole)
        broken[rng.randrange(length)] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        for check in (verify, lambda path: load(path, "face_encoder")):
            try:
                check(path)
            except CheckpointError as error:
                assert error.message.startswith(str(path))
                refused += 1
    assert refused > 400  # the words of a card are nobody's but its writer's


def test_another_hash_than_the_headers_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "e", encoder(), card=CARD)
    whole = load(tmp_path / "e", "face_encoder")
    load(tmp_path / "e", "face_encoder", sha256=whole.sha256)
    with pytest.raises(CheckpointError, match="is damaged"):
        load(tmp_path / "e", "face_encoder", sha256="0" * 64)


def test_a_file_that_takes_the_place_of_a_chosen_one_is_refused(
    models: Path, tmp_path: Path
) -> None:
    name = "face_encoder.safetensors"
    (tmp_path / name).write_bytes((models / "demo" / name).read_bytes())
    choice = choose(tmp_path, ("face_encoder",))
    choice.hashes["face_encoder"].result()
    (tmp_path / "new").write_bytes((models / "other" / name).read_bytes())
    (tmp_path / "new").replace(tmp_path / name)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_model(choice)


def test_half_precision_is_kept_if_that_is_asked_for(tmp_path: Path) -> None:
    network = encoder().eval()
    save(tmp_path / "half", network, card=CARD, storage=torch.float16)
    back = load(tmp_path / "half", "face_encoder", keep_half=True).network
    stored = safetensors.torch.load_file(tmp_path / "half")
    matrices = {"convs.0.weight", "convs.4.weight", "fc6.weight", "fc7.weight"}
    for name, tensor in back.state_dict().items():
        half = torch.float16 if name in matrices else torch.float32
        assert tensor.dtype in (half, torch.int64), name
        torch.testing.assert_close(tensor, stored[name].to(tensor.dtype))
    assert back.mean.dtype == torch.float32  # not of the file
    for dtype in (torch.float32, torch.float64):
        save(tmp_path / "whole", network, card=CARD, storage=dtype)
        whole = load(tmp_path / "whole", "face_encoder", keep_half=True).network
        assert {t.dtype for t in whole.parameters()} == {torch.float32}


LOADED = """
import resource, sys
from pathlib import Path
from s2f.checkpoint import choose
choice = choose(Path(sys.argv[1]), ("face_encoder",)) if sys.argv[1:] else None
import torch
from s2f.checkpoint import load_model
if choice:
    for tensor in load_model(choice).checkpoints["face_encoder"].network.state_dict().values():
        tensor.sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_a_full_size_network_takes_its_memory_once(tmp_path: Path) -> None:
    network = face_encoder.VGGFace(face_encoder.CONFIGS["paper"], PREPROCESSING["serengil"])
    path = tmp_path / "face_encoder.safetensors"
    save(path, network, card=CARD)
    n_bytes = path.stat().st_size
    assert n_bytes > 5e8

    def peak(*arguments: Path) -> int:
        command = [sys.executable, "-c", LOADED, *arguments]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    try:
        assert peak(tmp_path) < peak() + 1.25 * n_bytes
    finally:
        path.unlink()  # pytest keeps folders


@pytest.mark.parametrize("content", [b"", b"not ours", bytes(1000), b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match="x: is not a checkpoint of s2f"):
        load(tmp_path / "x", "face_encoder")


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "e", encoder(), card=CARD)
    whole = (tmp_path / "e").read_bytes()
    (tmp_path / "e").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="e: is not a checkpoint of s2f"):
        load(tmp_path / "e", "face_encoder")


def test_a_safetensors_file_of_someone_else_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="not one that s2f wrote"):
        load(tmp_path / "x", "face_encoder")


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none: no such checkpoint"):
        load(tmp_path / "none", "face_encoder")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"version": 99}, "has format version 99; this program reads 1"),
        ({"kind": "cat"}, "is a cat; wanted a face_encoder"),
        ({"config": {"layers": [4]}}, "its config wants"),
        ({"config": {"cats": 9}}, "does not describe a face_encoder"),
        ({"card": {"cats": 9}}, "does not describe a face_encoder"),
        ({"sha256": "0"}, "is damaged"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, object], part: str
) -> None:
    save(tmp_path / "e", encoder(), card=CARD)
    rewrite(tmp_path / "e", **change)
    with pytest.raises(CheckpointError, match=part):
        load(tmp_path / "e", "face_encoder")


def test_a_model_is_found_by_name_and_by_folder(models: Path, bundled: Path) -> None:
    by_name = load_model(choose("demo", ("face_encoder", "face_decoder")))
    by_folder = load_model(choose(models / "demo", ("face_encoder", "face_decoder")))
    assert by_name.name == by_folder.name == "demo"
    assert set(by_name.checkpoints) == {"face_encoder", "face_decoder"}


def test_networks_of_two_embedding_spaces_do_not_mix(models: Path, tmp_path: Path) -> None:
    for kind, model in (("voice_encoder", "demo"), ("face_decoder", "other")):
        name = f"{kind}.safetensors"
        (tmp_path / name).write_bytes((models / model / name).read_bytes())
    with pytest.raises(CheckpointError, match="different embedding spaces"):
        load_model(choose(tmp_path, ("voice_encoder", "face_decoder")))


def test_the_card_of_a_data_tree_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text('{"data": "six cats", "licence": "MIT"}')
    assert Card.of_data(tmp_path, "cats") == Card("cats", data="six cats", licence="MIT")
    (tmp_path / "card.json").write_text('{"cats": 6}')
    with pytest.raises(CheckpointError, match=r"card\.json: is not a card"):
        Card.of_data(tmp_path, "cats")


def test_a_front_end_that_does_not_fit_its_encoder_is_refused(tmp_path: Path) -> None:
    paper = FRONT_ENDS["paper"]
    network = voice_encoder.VoiceEncoder(VOICE)
    save(tmp_path / "v", network, card=CARD, embedding_space="space", front_end=paper)
    with pytest.raises(CheckpointError, match="its front end gives 2 x 257"):
        load(tmp_path / "v", "voice_encoder")
