"""The AST voice encoder. Oracles: transformers, its folders, and the names of published weights."""

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import AST, SHORT_AST, hugging_face_ast, needs_transformers

from s2f.ast_encoder import CONFIGS, ASTEncoder, published_name, read_ast
from s2f.errors import CheckpointError, DependencyError
from s2f.spectrogram import FRONT_ENDS

# Of one layer of MIT/ast-finetuned-audioset-10-10-0.4593, as transformers 4 names it.
PARTS = ["attention.output.dense", "intermediate.dense", "output.dense", "layernorm_before"]
PARTS += ["layernorm_after", *(f"attention.attention.{x}" for x in ("query", "key", "value"))]
LAYER = {f"encoder.layer.0.{part}.{kind}" for part in PARTS for kind in ("weight", "bias")}
OUTSIDE = {"layernorm.weight", "layernorm.bias"}
OUTSIDE |= {f"embeddings.patch_embeddings.projection.{kind}" for kind in ("weight", "bias")}
OUTSIDE |= {f"embeddings.{x}" for x in ("cls_token", "distillation_token", "position_embeddings")}


@needs_transformers
def test_torchaudio_has_its_constants_where_the_encoder_is_built_without_weights() -> None:
    code = (
        "import torch; from s2f.ast_encoder import CONFIGS, ASTEncoder\n"
        "with torch.device('meta'): ASTEncoder(CONFIGS['compact'])\n"
        "from torchaudio.compliance.kaldi import fbank\n"
        "assert not fbank(torch.randn(1, 16000)).is_meta"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_transformers
def test_a_state_has_published_names_and_comes_back_as_it_was() -> None:
    one, other = (ASTEncoder(dataclasses.replace(AST, layers=1)) for _ in range(2))
    state = one.state_dict()
    ours = {"norm.weight", "norm.bias", "embedding.weight", "embedding.bias"}
    assert set(state) == {f"ast.{name}" for name in LAYER | OUTSIDE} | ours
    assert all(published_name(name) == name for name in state)
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    del state["ast.encoder.layer.0.attention.attention.key.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(state)


@needs_transformers
def test_the_seeds_ast_is_the_published_one() -> None:
    with torch.device("meta"):  # AST-base, and the head of 4096
        state = ASTEncoder(CONFIGS["seed"]).state_dict()
    assert len(state) == len(OUTSIDE) + 12 * len(LAYER) + 4
    assert state["ast.embeddings.position_embeddings"].shape == (1, 1214, 768)
    assert state["embedding.weight"].shape == (4096, 768)


@needs_transformers
@pytest.mark.parametrize(("last", "rest"), [(0, 0), (1, 2), (2, 2 + 5)])
def test_the_body_is_given_from_its_end(last: int, rest: int) -> None:
    encoder = ASTEncoder(dataclasses.replace(SHORT_AST, embedding=4))
    found = {id(parameter) for parameter in encoder.body(last)}
    assert len(found) == last * len(LAYER) + rest
    assert found <= {id(parameter) for parameter in encoder.ast.parameters()}


def test_what_cannot_be_is_refused() -> None:
    front_end, config = FRONT_ENDS["ast"], CONFIGS["seed"]
    assert (front_end.n_channels, front_end.n_freqs) == (config.in_channels, config.n_freqs)
    config.check_frames(front_end.n_frames(front_end.clip_samples))
    with pytest.raises(ValueError, match="598 frames do not fit: this encoder needs 1024"):
        config.check_frames(598)
    for wrong, said in (({"n_frames": 8}, "one patch"), ({"heads": 7}, "no multiple of 7 heads")):
        with pytest.raises(ValueError, match=said):
            dataclasses.replace(config, **wrong)


def test_without_transformers_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for start in (lambda: ASTEncoder(AST), lambda: read_ast("someone/some-ast")):
        with pytest.raises(DependencyError, match="need transformers") as caught:
            start()
        assert "s2f[ast]" in (caught.value.hint or "")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an AST that classifies, as transformers writes it. Not to be changed."""
    folder = tmp_path_factory.mktemp("classifier")
    hugging_face_ast(SHORT_AST, classifier=True).save_pretrained(folder)
    return folder


@needs_transformers
@pytest.mark.parametrize("kind", ["classifier", "body", "half precision"])
def test_it_computes_what_transformers_does(tmp_path: Path, kind: str, capfd: Any) -> None:
    model = hugging_face_ast(SHORT_AST, classifier=kind != "body")
    model = model.half() if kind == "half precision" else model
    model.save_pretrained(tmp_path)
    capfd.readouterr()
    before = logging.root.manager.disable, sys.stderr
    start = read_ast(str(tmp_path))
    assert capfd.readouterr() == ("", "")
    assert (logging.root.manager.disable, sys.stderr) == before  # their library speaks again
    assert start.config == SHORT_AST and start.features is None
    assert {tensor.dtype for tensor in start.body.values()} == {torch.float32}
    encoder = ASTEncoder(start.config).eval()
    head = [p.clone() for p in encoder.head()]
    start.begin(encoder)
    assert all(torch.equal(a, b) for a, b in zip(head, encoder.head(), strict=True))
    body = model if kind == "body" else model.audio_spectrogram_transformer
    heard = torch.randn(2, 98, 128)
    with torch.inference_mode():
        expected = body.float().eval()(heard).pooler_output
        torch.testing.assert_close(encoder.ast(heard).pooler_output, expected)
        if kind == "classifier":  # which has the seed's head, but for the ReLU
            encoder.norm.load_state_dict(model.classifier.layernorm.state_dict())
            encoder.embedding.load_state_dict(model.classifier.dense.state_dict())
            found, expected = encoder(heard.transpose(1, 2)[:, None]), model(heard).logits.relu()
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
            assert (found > 0).any()


def unpickling(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")


def config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def features(**content: object) -> Callable[[Path], object]:
    return lambda folder: (folder / "preprocessor_config.json").write_text(json.dumps(content))


@needs_transformers
@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON file"),
        (config(model_type="vit"), "its model_type is 'vit'"),
        (config(time_stride=16), "its time_stride is 16; wanted 10"),
        (config(hidden_size="wide"), "cannot be read as an AST: .*hidden_size"),
        (config(num_hidden_layers=10**9), "it has 1000000000 layers; wanted 1 to 1000"),
        (config(num_hidden_layers=3), "it has not 'encoder.layer.2.*' of its config"),
        (config(num_hidden_layers=1), "has no place for '.*encoder.layer.1.*' of its config"),
        (config(max_length=198), "another shape of 'embeddings.position_embeddings'"),
        (config(num_mel_bins=64), "its num_mel_bins is 64; wanted 128"),
        (unpickling, "no file named model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "SafetensorError"),
        (features(sampling_rate=8000, mean=0.0, std=1.0), "its sampling_rate is 8000"),
        (features(mean=0.0, std=0.0), "features have mean 0.0 and std 0.0"),
        (features(mean=float("nan"), std=1.0), "features have mean nan"),
    ],
)
def test_what_is_no_ast_is_refused(classifier: Path, tmp_path: Path, spoil: Any, part: str) -> None:
    folder = shutil.copytree(classifier, tmp_path / "model")
    spoil(folder)
    with pytest.raises(CheckpointError, match=f"^{folder}.*{part}") as caught:
        read_ast(str(folder))
    assert caught.value.hint and "\n" not in caught.value.message


@needs_transformers
def test_a_model_of_the_hub_is_read(classifier: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="couldn't connect") as caught:
        read_ast("someone/some-ast")
    assert "where there is no network, a folder" in (caught.value.hint or "")
    kept = tmp_path / "models--someone--some-ast"
    folder = shutil.copytree(classifier, kept / "snapshots" / "abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    features(mean=-1.5, std=2.5, sampling_rate=16000)(folder)
    start = read_ast("someone/some-ast")
    assert start.config == SHORT_AST and start.features == (-1.5, 2.5)
    features(mean=-5.5, std=3.1, do_normalize=False)(folder)
    assert read_ast("someone/some-ast").features == (0.0, 0.5)  # (x - 0) / (2 * 0.5)
