"""Checkpoints, models and their names, and weight files of others, fetched from a folder."""

import hashlib
import json
import math
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import foreign_files
import pytest
import safetensors.torch
import torch
from command_line import Done, assert_refused, files
from conftest import DECODER, ENCODER, FRONT_END, PARTS, VOICE, save_model, some_landmarks
from published_files import AST, needs_transformers

from s2f import ast_encoder, checkpoint, face_decoder, face_encoder, voice_encoder
from s2f.appearance_model import PartsEncoder
from s2f.checkpoint import KINDS, Card, choose, entries, load, load_model, read_header, save, verify
from s2f.errors import CheckpointError, DependencyError, OutputError, UsageError
from s2f.images import PREPROCESSING
from s2f.pipeline import SpeechToFace
from s2f.spectrogram import FRONT_ENDS, FrontEnd

CARD = Card("name", data="some", metrics={"loss": 0.5})
VOICE_FILE, ENCODER_FILE, DECODER_FILE = (f"{kind}.safetensors" for kind in KINDS)


def encoder() -> face_encoder.VGGFace:
    return face_encoder.VGGFace(ENCODER, PREPROCESSING["rcmalli"])


def parts_encoder() -> PartsEncoder:
    """One of parts, of random weights, that registers photos to a face."""
    torch.manual_seed(0)
    network = PartsEncoder(PARTS, PREPROCESSING["compact"])
    network.mean_landmarks.copy_(torch.from_numpy(some_landmarks()))
    for name in ("reading", "shape_code", "shape_axes"):
        getattr(network, name).normal_(std=1e-2)
    return network


def decoder() -> face_decoder.FaceDecoder:
    network = face_decoder.FaceDecoder(replace(DECODER, landmarks_68=((0, 1, 0.5),) * 68))
    network.mean_landmarks.fill_(3.0)
    return network


def save_voice(path: Path, front_end: FrontEnd, network: Any = None) -> None:
    network = network or voice_encoder.VoiceEncoder(VOICE)
    save(path, network, card=CARD, embedding_space="space", front_end=front_end)


# There and back


@pytest.mark.parametrize(
    ("kind", "x", "make", "front_end"),
    [
        ("face_encoder", (2, 3, 28, 28), encoder, None),
        ("face_encoder", (2, 3, 224, 224), parts_encoder, None),
        ("face_decoder", (2, 8), decoder, None),
        ("voice_encoder", (2, 1, 128, 100), lambda: voice_encoder.VoiceEncoder(VOICE), FRONT_END),
        pytest.param(
            *("voice_encoder", (2, 1, 128, 1024), lambda: ast_encoder.ASTEncoder(AST)),
            FRONT_ENDS["ast"],
            marks=needs_transformers,
        ),
    ],
)
def test_a_network_comes_back_frozen_and_ready_for_use(tmp_path, kind, x, make, front_end):
    network, own = make().eval(), None if kind == "face_encoder" else "space"
    space = save(tmp_path / "e", network, card=CARD, embedding_space=own, front_end=front_end)
    back = load(tmp_path / "e", kind)
    assert (back.front_end, back.embedding_space, back.card) == (front_end, space, CARD)
    assert type(back.network) is type(network) and back.network.config == network.config
    assert getattr(back.network, "preprocessing", None) == getattr(network, "preprocessing", None)
    given = torch.rand(x)
    for found, wanted in zip(back.network(given), network(given), strict=True):
        torch.testing.assert_close(found, wanted.detach())
    assert not back.network.training
    assert not any(p.requires_grad for p in back.network.parameters())


def test_half_precision_is_kept_if_that_is_asked_for(tmp_path):
    path, network = tmp_path / "e", encoder()
    for storage, keep in ((torch.float32, True), (torch.float64, True), (torch.float16, False)):
        save(path, network, card=CARD, storage=storage)
        whole = load(path, "face_encoder", keep_half=keep).network
        assert {t.dtype for t in whole.parameters()} == {torch.float32}
    back = load(path, "face_encoder", keep_half=True).network
    stored = safetensors.torch.load_file(path)
    matrices = {"convs.0.weight", "convs.4.weight", "fc6.weight", "fc7.weight"}
    for name, tensor in back.state_dict().items():
        half = torch.float16 if name in matrices else torch.float32
        assert tensor.dtype in (half, torch.int64), name
        torch.testing.assert_close(tensor, stored[name].to(tensor.dtype))
    assert back.mean.dtype == torch.float32  # not of the file


def test_the_same_network_is_stored_in_the_same_bytes(tmp_path):
    network = encoder()
    paths = [tmp_path / str(k) for k in range(12)]  # safetensors alone orders metadata by chance
    for path in paths:
        save(path, network, card=CARD)
    assert len({path.read_bytes() for path in paths}) == 1


def test_what_half_precision_cannot_hold_is_stored_whole(tmp_path):
    """Beyond 65,504 it is infinite, and such a file would be refused; vectors are few and exact."""
    path, network = tmp_path / "e", encoder()
    with torch.no_grad():
        network.fc6.weight[0, 0] = 7e4
        network.convs[1].running_var[0] = 1e9
        network.fc6.bias[0] = 4097.0  # float16 counts by fours there
    save(path, network, card=CARD, storage=torch.float16)
    back = load(path, "face_encoder").network
    for name, p in back.state_dict().items():
        if name == "fc6.weight" or p.ndim < 2:
            assert torch.equal(p, network.state_dict()[name]), name
    stored = safetensors.torch.load_file(path)
    assert stored["fc7.weight"].dtype == torch.float16 != stored["fc6.weight"].dtype


def test_the_same_weights_define_a_space_by_how_pictures_are_prepared(tmp_path):
    network, spaces = encoder(), []
    for name in ("rcmalli", "seed", "rcmalli"):
        network.preprocessing = PREPROCESSING[name]
        spaces.append(save(tmp_path / "e", network, card=CARD))
    assert spaces[0] == spaces[2] != spaces[1]


def test_what_was_called_ast_and_is_our_own_log_mel_is_called_so(tmp_path):
    """Files of before torchaudio's features: `ast` with clips of another length than AST's."""
    for clip_samples, kind in ((16_000, "log_mel"), (164_160, "ast")):
        front_end = replace(FRONT_ENDS["ast"], clip_samples=clip_samples)
        save_voice(tmp_path / "v", front_end)
        found = load(tmp_path / "v", "voice_encoder").front_end
        assert found == replace(front_end, kind=kind)
    (path,) = choose("demo", ("voice_encoder",)).paths.values()  # the bundled: no torchaudio
    assert load(path, "voice_encoder").front_end.kind == "speaker"


LOADED = """
import resource, sys, torch
from pathlib import Path
from s2f.checkpoint import choose, load_model
for choice in (choose(Path(folder), ("face_encoder",)) for folder in sys.argv[1:]):
    for tensor in load_model(choice).checkpoints["face_encoder"].network.state_dict().values():
        tensor.sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_a_large_network_takes_its_memory_once(tmp_path):
    config = replace(face_encoder.CONFIGS["paper"], hidden=1024)  # 160 MB
    path = tmp_path / ENCODER_FILE
    save(path, face_encoder.VGGFace(config, PREPROCESSING["serengil"]), card=CARD)
    n_bytes = path.stat().st_size
    assert n_bytes > 1.5e8

    def peak(*arguments: Path) -> int:
        command = [sys.executable, "-c", LOADED, *arguments]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    assert peak(tmp_path) < peak() + 1.25 * n_bytes
    path.unlink()  # pytest keeps folders


# What is not ours, or does not fit


@pytest.mark.parametrize("where", ["payload", "header"])
def test_a_flipped_bit_is_found_and_no_crash(tmp_path, where):
    """Of the payload and of the header, the words of the card too."""
    path = tmp_path / "e"
    save(path, encoder(), card=CARD)
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    start = 8 + int.from_bytes(whole[:8], "little")
    places, n = ((start, len(whole)), 200) if where == "payload" else ((0, start), 400)
    for _ in range(n):
        broken = bytearray(whole)
        broken[rng.randrange(*places)] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        for check in (verify, lambda path: load(path, "face_encoder")):
            try:
                check(path)
            except CheckpointError as error:
                assert error.message.startswith(str(path))
                refused += where == "header" or "is damaged" in error.message
    assert refused == 2 * n


def test_a_header_without_its_hash_is_one_of_before_there_was_one(tmp_path):
    path = tmp_path / "e"
    save(path, encoder(), card=CARD)
    with safetensors.safe_open(path, "pt") as file:
        said, tensors = file.metadata(), safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, {"s2f": said["s2f"]})
    assert verify(path).card == asdict(CARD)
    for wrong in ({"sha256": "0"}, {"sha257": said["sha256"]}):
        safetensors.torch.save_file(tensors, path, {"s2f": said["s2f"], **wrong})
        with pytest.raises(CheckpointError, match="e: is damaged: its header"):
            verify(path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"version": 99}, "has format version 99; this program reads 1"),
        ({"kind": "cat"}, "is a cat; wanted a face_encoder"),
        ({"card": []}, "its header does not describe a checkpoint: card is a list"),
        ({"preprocessing": "none"}, "its header does not describe a checkpoint"),
        ({"config": {"layers": [4]}}, "its config wants"),
        ({"config": {"cats": 9}}, "does not describe a face_encoder"),
        ({"config": {"architecture": "resnet"}}, "'resnet'; wanted vgg or parts"),
        ({"card": {"cats": 9}}, "does not describe a face_encoder"),
        ({"sha256": "0"}, "is damaged"),
        ({"embedding": 4}, "an embedding of 4 has no room for 2² windows of 1 values"),
        ({"landmarks": 72}, "its config wants"),
        ({"finder": [4, 4]}, "does not describe a face_encoder"),
        ({"architecture": "parts", "axes": True}, "axes of its config is True"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path, change, part):
    """Of a face encoder; the last four are of one of parts, whose config is changed."""
    path, config = tmp_path / "e", asdict(PARTS)
    of_parts = bool(config.keys() & change.keys())
    save(path, parts_encoder() if of_parts else encoder(), card=CARD)
    header = read_header(path) | ({"config": config | change} if of_parts else change)
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, {"s2f": json.dumps(header)})
    with pytest.raises(CheckpointError, match=part):
        load(path, "face_encoder")


@needs_transformers
def test_a_front_end_that_does_not_fit_its_encoder_is_refused(tmp_path):
    save_voice(tmp_path / "v", FRONT_ENDS["paper"])
    with pytest.raises(CheckpointError, match="its front end gives 2 x 257"):
        load(tmp_path / "v", "voice_encoder")
    save_voice(tmp_path / "v", FRONT_END, ast_encoder.ASTEncoder(AST))
    with pytest.raises(CheckpointError, match="98 frames do not fit: this encoder needs 1024"):
        load(tmp_path / "v", "voice_encoder")


POOLS, STAGE = [[4, 2], [2, 2]], [3, 16, 8]
IMPOSSIBLE: list[tuple[str, dict[str, Any], str]] = [  # what: field by field; how it is refused
    ("voice_encoder", {"channels": [10**9, 4]}, r"channels of its config is \(1000000000, 4\)"),
    ("voice_encoder", {"channels": [-4, 4]}, r"channels of its config is \(-4, 4\)"),
    ("voice_encoder", {"channels": [4.0, 4]}, r"channels of its config is \(4\.0, 4\)"),
    ("voice_encoder", {"channels": "44"}, "channels of its config is '44'"),
    ("voice_encoder", {"hidden": 2**20}, r"'embedding.weight' .* its config wants \(8, 1048576\)"),
    ("voice_encoder", {"embedding": 2**20, "hidden": 2**20, "n_freqs": 2**20}, "front end gives"),
    ("voice_encoder", {"strides": [0, 2]}, "strides and pools want 1 or more"),
    ("voice_encoder", {"pools": [[4, 2], [2, 10**6]]}, "frames are too few"),
    ("voice_encoder", {"pools": [[4], [2]]}, "pools of its config is"),
    ("voice_encoder", {"dropout": math.nan}, "dropout of its config is nan"),
    ("face_encoder", {"layers": [4, "X", 4, "M"]}, "'X' is no layer"),
    ("face_encoder", {"layers": [4] * 200}, r"has 200 layers, and the file 1\d tensors"),
    ("face_encoder", {"image_size": 24}, "24 pixels a side"),
    ("face_encoder", {"batch_norm": False}, "tensor 'convs.0.bias' is missing"),
    ("face_encoder", {"identities": 3}, "tensor 'fc8.bias' is missing; its config wants"),
    ("face_decoder", {"seed_size": 14, "windows": 1}, "faces have 112 pixels a side; wanted 224"),
    ("face_decoder", {"windows": 2**18, "axes": 2**20}, "has no room"),
    ("face_decoder", {"output": "tanh"}, "output of its config is 'tanh'"),
    ("face_decoder", {"landmarks_68": [[0, 68, 0.5]] * 68}, "points beyond the 68"),
    ("face_decoder", {"landmarks_68": [[0, -1, 0.5]] * 68}, "landmarks_68 of its config is"),
    ("face_decoder", {"stages": [], "windows": 0}, "gives no RGB"),
    ("face_decoder", {"detail": False}, "'detail.strengths' is .*; its config wants missing"),
    ("front end", {"clip_samples": 10**10}, "clip_samples of its front end is 10000000000"),
    ("front end", {"clip_samples": "long"}, "clip_samples of its front end is 'long'"),
    ("front end", {"mean": math.inf}, "mean of its front end is inf"),
    ("front end", {"kind": "mfcc"}, "kind of its front end is 'mfcc'"),
    ("preprocessing", {"mean": [0.0, 0.0]}, "mean of its preprocessing is"),
    ("preprocessing", {"fit": "crop"}, "fit of its preprocessing is 'crop'"),
    ("preprocessing", {"scale": True}, "scale of its preprocessing is True"),
]  # fmt: skip


def rewritten(
    path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]
) -> Path:
    """Change header and tensors of a checkpoint; the SHA-256 is made anew."""
    header, tensors = read_header(path), safetensors.torch.load_file(path)
    change(header, tensors)
    header["sha256"] = checkpoint.payload_sha256(tensors)
    safetensors.torch.save_file(tensors, path, {"s2f": json.dumps(header)})
    return path


@pytest.fixture
def own(models: Path, tmp_path: Path) -> Path:
    """A model of its own."""
    return Path(shutil.copytree(models / "demo", tmp_path / "own"))


def assert_refused_alike(path: Path, kind: str, message: str) -> None:
    for read in (verify, lambda path: load(path, kind)):
        with pytest.raises(CheckpointError, match=message) as caught:
            read(path)
        assert caught.value.message.startswith(f"{path}: ") and caught.value.hint
        assert "\n" not in caught.value.message


@pytest.mark.parametrize(("what", "change", "message"), IMPOSSIBLE)
def test_a_config_that_can_be_none_is_refused_and_nothing_is_made(own, what, change, message):
    """All by the same check: at load, and by `verify`."""
    kind = {"front end": "voice_encoder", "preprocessing": "face_encoder"}.get(what, what)
    part = "config" if what == kind else "preprocessing"
    path = rewritten(own / f"{kind}.safetensors", lambda header, _: header[part].update(change))
    assert_refused_alike(path, kind, message)


def test_as_many_layers_as_tensors_are_made_of_ast(tmp_path):
    pytest.importorskip("transformers")
    path = tmp_path / "v"
    save_voice(path, FRONT_ENDS["ast"], ast_encoder.ASTEncoder(AST))
    rewritten(path, lambda header, _: header["config"].update(layers=10**6))
    assert_refused_alike(path, "voice_encoder", "has 1000000 layers, and the file")


TENSORS: dict[str, tuple[Any, str]] = {
    "NaN": (lambda t: t["fc7.weight"][2].fill_(math.nan), "'fc7.weight' holds .*no numbers"),
    "infinite": (lambda t: t["convs.1.running_var"][:1].fill_(math.inf), "running_var' holds"),
    "half": (
        lambda t: t.update({"fc7.bias": torch.full((8,), -math.inf).half()}), "'fc7.bias' holds"
    ),
    "too large": (
        lambda t: t.update({"fc7.bias": torch.full((8,), 1e300, dtype=torch.double)}), "holds"
    ),
    "all NaN": (lambda t: [x.fill_(math.nan) for x in t.values() if x.ndim], "holds"),
    "missing": (lambda t: t.pop("fc7.bias"), r"'fc7.bias' is missing; its config wants \(8,\)"),
    "more": (lambda t: t.update(a=torch.ones(2)), r"'a' is \(2,\); its config wants missing"),
    "whole": (lambda t: t.update({"fc7.bias": t["fc7.bias"].int()}), "int32; its config wants"),
    "no count": (
        lambda t: t.update({"convs.1.num_batches_tracked": torch.tensor(1.0)}), "wants .* int64"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_values_are_numbers_and_tensors_those_of_the_config(own, name):
    path = rewritten(own / ENCODER_FILE, lambda _, tensors: TENSORS[name][0](tensors))
    assert_refused_alike(path, "face_encoder", TENSORS[name][1])


def test_a_value_that_is_no_number_is_found_in_every_piece(monkeypatch):
    monkeypatch.setattr(checkpoint, "PIECE", 5)
    for place in range(12):
        tensor = torch.zeros(3, 4)
        whole = checkpoint.payload_sha256({"a": tensor})
        tensor.view(-1)[place] = math.nan
        sha256, broken = checkpoint._hashed({"a": tensor, "b": torch.zeros(0)})
        assert broken == "a" and sha256 != whole


def test_networks_of_one_space_have_embeddings_of_one_size(own):
    """Whose header was changed: the space of another model's decoder, of 9 values."""
    wider = face_decoder.FaceDecoder(replace(DECODER, embedding=9))
    space = read_header(own / ENCODER_FILE)["embedding_space"]
    save(own / DECODER_FILE, wider, card=CARD, embedding_space=space)
    message = rf"{DECODER_FILE} of 9 values"
    with pytest.raises(CheckpointError, match=message):
        load_model(choose(own))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.check_space([verify(own / name) for name in (ENCODER_FILE, DECODER_FILE)])


# Everywhere that a checkpoint can be given: its kind, and the command; {own} is a folder with it
ENTRANCES = {
    "verify": ("face_decoder", "verify {file}"),
    "verify a folder": ("face_decoder", "verify {own}"),
    "generate": ("face_decoder", "generate speech.wav -o new.png --face-decoder {file}"),
    "its voice": ("voice_encoder", "generate speech.wav -o new.png --voice-encoder {file}"),
    "a model": ("voice_encoder", "generate speech.wav -o new.png --model {own}"),
    "reconstruct": ("face_encoder", "reconstruct photo.jpg --no-align --face-encoder {file}"),
    "evaluate": ("face_encoder", "evaluate voices --model {own}"),
    "its classifier": ("face_encoder", "evaluate voices --classifier {file} --split val"),
    "app": ("face_decoder", "app --port 0 --no-align --face-decoder {file}"),
    "prep": ("face_encoder", "prep embeddings faces new --face-encoder {file}"),
    "start": (
        "face_decoder", "train decoder faces --face-encoder demo/face_encoder.safetensors "
        "--start {file} -o new --steps 2 --device cpu",
    ),
    "init": (
        "voice_encoder", "train voice voices --face-encoder demo/face_encoder.safetensors "
        "--face-decoder demo/face_decoder.safetensors --init {file} -o new",
    ),
    "for a decoder": ("face_encoder", "train decoder faces --face-encoder {file} -o new"),
    "for a voice": (
        "face_decoder", "train voice voices --face-encoder demo/face_encoder.safetensors "
        "--face-decoder {file} -o new",
    ),
}  # fmt: skip


@pytest.fixture
def enter(
    own: Path, tmp_path: Path, presets: None, speech: Path, photo: Path, faces: Path, voices: Path,
    models: Path, bundled: Path, monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str, Path], Done]:  # fmt: skip
    """Give a file at an entrance; nothing may be made of it."""
    shutil.copytree(models / "demo", tmp_path / "demo")
    monkeypatch.chdir(tmp_path)

    def enter(entrance: str, file: Path) -> Done:
        kind, command = ENTRANCES[entrance]
        if "{own}" in command:
            file = Path(shutil.copy(file, own / f"{kind}.safetensors"))
        before = files(tmp_path)
        done = Done(*command.format(file=file, own=own).split())
        made = {path for path in files(tmp_path) - before if ".s2f" not in path.parts}
        assert made <= {tmp_path / "new/config.json"}
        return done

    return enter


@pytest.mark.parametrize(
    "entrance",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "prep" else name  # it has workers
        for name in ENTRANCES
    ],
)
def test_values_that_are_no_numbers_are_refused_everywhere(own, tmp_path, enter, entrance):
    kind, _ = ENTRANCES[entrance]
    path = rewritten(
        Path(shutil.copy(own / f"{kind}.safetensors", tmp_path / "nan.safetensors")),
        lambda _, tensors: [t.fill_(math.nan) for t in tensors.values() if t.is_floating_point()],
    )
    done = enter(entrance, path)
    if entrance == "verify a folder":
        assert done.code == 6 and f"{own / kind}.safetensors: tensor" in done.err
    else:
        assert_refused(done, 4, "holds values that are no numbers (NaN or infinite)")
    given = {"files": {kind: path}} if kind != "voice_encoder" else {"model": own}
    if kind == "voice_encoder":
        shutil.copy(path, own / VOICE_FILE)
    with pytest.raises(CheckpointError, match="are no numbers"):
        SpeechToFace.load(**given)


def keras_weights(path: Path) -> None:
    foreign_files.write_legacy(path, foreign_files.some_layers(2))


FOREIGN = {
    name: foreign_files.NOT_WEIGHTS[name]
    for name in ("quota page", "LFS", "TorchScript", "MATLAB 7", "zip", "cut off", "empty")
} | {
    "Keras": (keras_weights, "holds weights of Keras (.h5)", "checkpoints by s2f convert"),
    "torch": (
        lambda path: torch.save({"a": torch.ones(2)}, path),
        "holds weights of torch (.pt), and is no checkpoint", "checkpoints by s2f convert",
    ),
    "safetensors": (
        lambda path: safetensors.torch.save_file({"a": torch.ones(2)}, path),
        "but not one that s2f wrote", "checkpoints by s2f convert",
    ),
    "random bytes": (
        lambda path: path.write_bytes(bytes(range(255, 0, -1)) * 9),
        "it starts with", "wanted a .safetensors file that s2f train wrote",
    ),
    "a run": (
        lambda path: safetensors.torch.save_file({"a": torch.ones(2)}, path, {"run": "{}"}),
        "is the state of a run", "best.safetensors",
    ),
}  # fmt: skip
EVERY = [(name, "generate") for name in FOREIGN] + [(name, entrance) for entrance in ENTRANCES
    for name in ("Keras", "quota page")]  # fmt: skip


@pytest.mark.parametrize(("name", "entrance"), dict.fromkeys(EVERY))
def test_what_is_no_checkpoint_is_called_what_it_is(enter, tmp_path, name, entrance):
    write, said, cure = FOREIGN[name]
    path = tmp_path / "w"
    write(path)
    done = enter(entrance, path)
    if entrance == "verify a folder":
        assert done.code == 6 and said in done.err
    else:
        assert_refused(done, 4, said)
    assert cure in done.err


def test_a_file_given_as_a_model_is_called_what_it_is(own, tmp_path):
    for name, (write, said, cure) in FOREIGN.items():
        if name != "TorchScript":  # takes long to make
            path = tmp_path / f"{name}.pt"
            write(path)
            with pytest.raises(CheckpointError) as caught:
                SpeechToFace.load(path)
            assert said in caught.value.message and cure in str(caught.value.hint)
    with pytest.raises(CheckpointError, match="is one checkpoint, a face_decoder") as caught:
        SpeechToFace.load(own / DECODER_FILE)
    assert "--face-decoder" in str(caught.value.hint)
    (tmp_path / "theirs").mkdir()
    keras_weights(tmp_path / "theirs/vgg_face_weights.h5")
    with pytest.raises(CheckpointError, match=r"vgg_face_weights\.h5: holds weights of Keras"):
        SpeechToFace.load(tmp_path / "theirs")


NOT_OURS = "e: is not a checkpoint of s2f"


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "e"
    save(path, encoder(), card=CARD)
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.unlink()
    for content, message in [
        (None, "no such checkpoint"),
        (b"", "e: is empty"),
        (half, NOT_OURS),
        ({}, "not one that s2f wrote"),
        ({"s2f": "[]"}, "has format version"),
        ({"s2f": "[" * 100_000}, NOT_OURS),
        ({"s2f": '{"version": 1, "kind": "face_encoder"}'}, "checkpoint: config is missing"),
    ]:
        if isinstance(content, dict):
            header = json.dumps({"__metadata__": content}).encode()
            path.write_bytes(len(header).to_bytes(8, "little") + header)
        elif content is not None:
            path.write_bytes(content)
        for read in (read_header, load):
            with pytest.raises(CheckpointError, match=message):
                read(path, "face_encoder")


def test_a_checkpoint_that_may_not_be_read_is_no_other_file(tmp_path, monkeypatch):
    save(tmp_path / "e", encoder(), card=CARD)
    # Of the system's own; whoever tests may be root, whom nothing is denied.
    denied = mock.Mock(side_effect=PermissionError(13, "Permission denied"))
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(CheckpointError, match="e: cannot be read: Permission denied") as caught:
        read_header(tmp_path / "e")
    assert caught.value.hint == "check its permissions"


def test_a_place_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    full = safetensors.SafetensorError("I/O error: No space left on device (os error 28)")
    monkeypatch.setattr(safetensors.torch, "save_file", mock.Mock(side_effect=full))
    with pytest.raises(OutputError, match="e: cannot be written: I/O error: No space left"):
        save(tmp_path / "e", encoder(), card=CARD)
    assert not list(tmp_path.iterdir())


def test_the_card_of_a_data_tree_is_taken_over(tmp_path):
    assert Card.of_data(tmp_path, "cats") == Card("cats")
    (tmp_path / "card.json").write_text('{"data": "six cats"}')
    assert Card.of_data(tmp_path, "cats") == Card("cats", data="six cats")
    (tmp_path / "card.json").write_text('{"cats": 6}')
    with pytest.raises(CheckpointError, match=r"card\.json: is not a card"):
        Card.of_data(tmp_path, "cats")


def test_the_hash_is_that_of_old_files_whatever_the_type():
    """By hand: name, type and shape in a line, then the bytes, in the order of the names."""
    tensors = {"b": torch.arange(6).reshape(2, 3), "a": torch.ones(5).half()}
    tensors |= {"brain": torch.ones(2).bfloat16(), "flag": torch.tensor([True, False])}
    digest = hashlib.sha256(b"a torch.float16 (5,)\n" + 5 * b"\x00\x3c")
    digest.update(b"b torch.int64 (2, 3)\n" + b"".join(k.to_bytes(8, "little") for k in range(6)))
    digest.update(b"brain torch.bfloat16 (2,)\n" + 2 * b"\x80\x3f")
    digest.update(b"flag torch.bool (2,)\n\x01\x00")
    assert checkpoint.payload_sha256(tensors) == digest.hexdigest()
    view = torch.arange(12.0).reshape(3, 4).t()  # is hashed as what it shows
    hashes = {checkpoint.payload_sha256({"a": tensor}) for tensor in (view, view.contiguous())}
    assert len(hashes) == 1


# Models


@pytest.fixture
def cached(bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a model `mine`, a `half` one, and what is none."""
    folder = tmp_path / "cache"
    save_model(folder / "mine", seed=2)
    for name in ("half", "empty"):
        (folder / name).mkdir()
    shutil.copy(folder / "mine" / DECODER_FILE, folder / "half")
    (folder / "notes.txt").touch()
    save_model(folder / ".s2f-unfinished", seed=2)
    monkeypatch.setenv("S2F_MODELS", str(folder))
    return folder


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("HOME", "/c")
    expected = {("/a", "/b"): "/a", ("", "/b"): "/b/s2f/models", ("", ""): "/c/.cache/s2f/models"}
    for (own, xdg), folder in expected.items():
        monkeypatch.setenv("S2F_MODELS", own)
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
        assert checkpoint.cache() == Path(folder)


def test_bundled_goes_before_cached_and_that_before_a_folder(
    cached, bundled, tmp_path, monkeypatch
):
    for folder in (cached / "other", *(tmp_path / name for name in ("demo", "mine", "here"))):
        shutil.copytree(bundled / "demo", folder)
    monkeypatch.chdir(tmp_path)
    places = {"demo": bundled / "demo", "other": bundled / "other", "mine": cached / "mine"}
    places |= {"here": Path("here"), "./demo": Path("demo"), Path("demo"): Path("demo")}
    for name in ("cat", "a" * 300, "../cache/mine", "notes.txt", "empty"):
        known = r"a bundled model \(demo, other\), .* \(half, mine, other\), nor a folder"
        with pytest.raises(CheckpointError, match=f": is neither {known}"):
            choose(name)
    found = {name: choose(name).paths["face_encoder"] for name in places}
    assert found == {name: folder / ENCODER_FILE for name, folder in places.items()}


def test_single_files_take_the_place_of_the_models_own(cached, bundled):
    voice, decoder = bundled / "other" / VOICE_FILE, bundled / "demo" / DECODER_FILE
    kinds, files = ("voice_encoder", "face_decoder"), {"voice_encoder": voice}
    choice = choose("demo", kinds, files=files)
    assert choice.paths == {**files, "face_decoder": decoder}
    sha256 = {kind: read_header(path)["sha256"] for kind, path in choice.paths.items()}
    assert choice.sha256 == sha256
    assert choice.name == f"demo, but voice_encoder {sha256['voice_encoder'][:12]}"  # no path
    with pytest.raises(CheckpointError, match="different embedding spaces"):
        load_model(choice)
    files = {"voice_encoder": voice, "face_decoder": decoder}
    choice = choose("no such model", kinds, files=files)  # which is not looked at
    name = " + ".join(f"{kind} {sha256[kind][:12]}" for kind in kinds)
    assert (choice.paths, choice.name) == (files, name)
    with pytest.raises(UsageError, match="is given as face_encoder; only voice_encoder and face"):
        choose("demo", kinds, files={"face_encoder": decoder})
    choose("half", ("face_decoder",))
    with pytest.raises(CheckpointError, match=rf"{VOICE_FILE}: no such checkpoint"):
        choose("half", kinds)


def test_the_list_has_what_is_bundled_and_what_is_cached_damaged_files_too(cached):
    shutil.copy(cached / "mine" / DECODER_FILE, cached / "mine" / ENCODER_FILE)
    listed = {entry.name: entry for entry in entries()}
    facts = listed["demo"].networks["face_encoder"]
    whole = load(facts.path, "face_encoder")
    floats = [t for t in whole.network.state_dict().values() if t.is_floating_point()]
    assert (facts.kind, facts.card, facts.storage) == (whole.kind, vars(whole.card), "float32")
    assert facts.parameters == sum(t.numel() for t in floats)
    assert facts.n_bytes == facts.path.stat().st_size
    assert (facts.embedding_space, facts.sha256) == (whole.embedding_space, whole.sha256)
    assert verify(facts.path) == facts
    places = ["demo bundled", "other bundled", "half cache", "mine cache"]
    assert [f"{entry.name} {entry.where}" for entry in listed.values()] == places
    assert tuple(listed["demo"].networks) == KINDS
    assert set(listed["half"].networks) == {"face_decoder"}
    assert set(listed["mine"].networks) == {"voice_encoder", "face_decoder"}
    assert "is a face_decoder" in listed["mine"].errors["face_encoder"].message
    (folder,) = entries(cached / "half")
    assert folder == replace(listed["half"], where="folder")


def test_reading_headers_and_choosing_do_not_import_torch(models):
    code = "import sys; from pathlib import Path; from s2f.checkpoint import choose, entries\n"
    code += f"choose(Path({str(models / 'demo')!r})); entries(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"False\n"


# Weight files of others

CONTENT = bytes(range(256)) * 10_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch/hub/checkpoints"


def served(tmp_path: Path, content: bytes = CONTENT) -> tuple[str, str]:
    (tmp_path / "net.pth").write_bytes(content)
    return (tmp_path / "net.pth").as_uri(), SHA256


def test_a_file_is_fetched_once_and_offline_the_error_says_where(hub, tmp_path, monkeypatch):
    wanted = served(tmp_path)
    assert checkpoint.locate(*wanted).read_bytes() == CONTENT
    (tmp_path / "net.pth").unlink()
    assert checkpoint.locate(*wanted) == hub / "net.pth"
    assert [path.name for path in hub.iterdir()] == ["net.pth"]
    monkeypatch.setattr(socket, "socket", mock.Mock(side_effect=OSError("no network")))
    assert checkpoint.locate("https://nowhere/net.pth", SHA256) == hub / "net.pth"
    (hub / "net.pth").unlink()
    with pytest.raises(DependencyError, match=r"net\.pth: is not there, and .* fetched") as caught:
        checkpoint.locate("https://nowhere/net.pth", SHA256)
    assert caught.value.hint == f"put https://nowhere/net.pth there, as {hub / 'net.pth'}"
    assert not list(hub.iterdir())


def test_another_file_and_a_hub_that_cannot_be_used_are_refused(hub, tmp_path):
    with pytest.raises(DependencyError, match=f'of another SHA-256: .*expected "{SHA256}"'):
        checkpoint.locate(*served(tmp_path, b"<html>moved</html>"))
    assert not list(hub.iterdir())
    (hub / "net.pth").write_bytes(CONTENT[:-1])
    with pytest.raises(DependencyError, match=r"net\.pth: its SHA-256 is"):
        checkpoint.locate(*served(tmp_path))
    (hub / "net.pth").unlink()
    (hub / "net.pth").mkdir()
    with pytest.raises(DependencyError, match="cannot be read"):
        checkpoint.locate(*served(tmp_path))
    shutil.rmtree(hub)
    hub.symlink_to(tmp_path / "nowhere/at/all")
    with pytest.raises(OutputError, match="cannot be written"):
        checkpoint.locate(*served(tmp_path))
