"""Pretrained ASTs. Oracle: transformers, which wrote the folders that are read."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published_files
import pytest
import safetensors.torch
import torch
from published_files import needs_transformers

from s2f.ast_encoder import ASTEncoder, ASTEncoderConfig, _quiet, read_ast
from s2f.errors import CheckpointError, DependencyError, S2FError

pytestmark = needs_transformers
TINY = ASTEncoderConfig(n_frames=98, width=24, layers=2, heads=3, mlp=40)


def hugging_face(folder: Path, *, classifier: bool, config: ASTEncoderConfig = TINY) -> Any:
    """Write an AST with random weights as transformers does, and return it."""
    import transformers

    made = transformers.ASTConfig(
        max_length=config.n_frames,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp,
        num_labels=5,
    )
    kind = transformers.ASTForAudioClassification if classifier else transformers.ASTModel
    model = published_files.randomise(kind(made))
    model.save_pretrained(folder)
    return model


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("classifier", [True, False])
def test_the_body_computes_what_transformers_computes(tmp_path: Path, classifier: bool) -> None:
    model = hugging_face(tmp_path, classifier=classifier)
    start = read_ast(str(tmp_path))
    assert start.config == TINY and start.features is None
    encoder = ASTEncoder(start.config).eval()
    head = [p.clone() for p in encoder.head()]
    start.begin(encoder)
    body = model.audio_spectrogram_transformer if classifier else model
    spectrogram = torch.randn(2, 98, 128)
    with torch.inference_mode():
        expected = body.eval()(spectrogram).pooler_output
        torch.testing.assert_close(encoder.ast(spectrogram).pooler_output, expected)
    assert all(torch.equal(a, b) for a, b in zip(head, encoder.head(), strict=True))


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    hugging_face(tmp_path, classifier=True).half().save_pretrained(tmp_path)
    assert {t.dtype for t in read_ast(str(tmp_path)).body.values()} == {torch.float32}


def test_the_features_are_normalised_as_the_model_says(tmp_path: Path) -> None:
    hugging_face(tmp_path, classifier=True)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"mean": -5.5, "std": 3.1, "sampling_rate": 16000}))
    assert read_ast(str(tmp_path)).features == (-5.5, 3.1)
    change_json(path, do_normalize=False)
    assert read_ast(str(tmp_path)).features == (0.0, 0.5)


def unpickling(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")


def lacking(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors["audio_spectrogram_transformer.embeddings.cls_token"]
    safetensors.torch.save_file(tensors, path)


def config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "config.json", **changes)


def features(**content: object) -> Callable[[Path], None]:
    return lambda folder: (folder / "preprocessor_config.json").write_text(json.dumps(content))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: cannot be read"),
        (lambda folder: (folder / "config.json").write_text("3"), "config.json: cannot be read"),
        (config(model_type="vit"), "its model_type is 'vit'"),
        (config(hidden_act="relu"), "its hidden_act is 'relu'; wanted 'gelu'"),
        (config(time_stride=16), "its time_stride is 16; wanted 10"),
        (config(hidden_size="wide"), "is no AST"),
        (config(hidden_size=-24), "is no AST"),
        (config(num_attention_heads=0), "is no AST"),
        (config(num_hidden_layers=10**9), "weights of 1000000000 layers"),
        (config(num_hidden_layers=3), "'encoder.layer.2.*' is None; its config wants"),
        (config(num_hidden_layers=1), r"'encoder.layer.1.*' is \[.*\]; its config wants None"),
        (config(max_length=198), r"position_embeddings' is \[1, 110, 24\]"),
        (config(num_mel_bins=64), "it hears 64 mel bands; the front end has 128"),
        (lacking, "tensor 'embeddings.cls_token' is None"),
        (unpickling, "model.safetensors: no such file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "is damaged"),
        (features(sampling_rate=8000, mean=0.0, std=1.0), "its sampling_rate is 8000"),
        (features(mean=0.0, std=0.0), "features have mean 0.0 and std 0.0"),
        (features(), "features have mean None"),
        (features(mean=float("nan"), std=1.0), "features have mean nan"),
    ],
)
def test_what_is_no_ast_is_refused_with_a_cure(
    tmp_path: Path, spoil: Callable[[Path], None], part: str
) -> None:
    folder = tmp_path / "model"
    hugging_face(folder, classifier=True)
    spoil(folder)
    with pytest.raises(CheckpointError, match=part) as caught:
        read_ast(str(folder))
    assert str(folder) in caught.value.message and caught.value.hint


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep Hugging Face's library from the network, and from what it has kept."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("no_network")
def test_an_id_needs_the_network(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match="hub cannot be reached") as caught:
        read_ast("someone/some-ast")
    assert "give its folder" in (caught.value.hint or "")
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("no_network")
def test_a_model_of_the_hub_is_read_where_their_library_keeps_it(tmp_path: Path) -> None:
    kept = tmp_path / "cache" / "models--someone--some-ast"
    hugging_face(kept / "snapshots" / "abc", classifier=True)
    (kept / "snapshots/abc/preprocessor_config.json").write_text('{"mean": -1.5, "std": 2.5}')
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    start = read_ast("someone/some-ast")
    assert start.config == TINY and start.features == (-1.5, 2.5)


class Refusal(OSError):
    """As their library's, where the hub answers that there is no such model."""


def test_a_hub_that_refuses_is_told_without_a_word_of_its_library(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    def refuse(*_: object) -> str:
        logging.getLogger("huggingface_hub.utils").warning("Retrying in 1s")
        raise Refusal("401 Client Error")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(CheckpointError, match="no model that Hugging Face's hub would give"):
        read_ast("someone/private")
    assert capfd.readouterr() == ("", "")


def test_their_library_speaks_again_afterwards() -> None:
    from huggingface_hub import utils

    logger = logging.getLogger("huggingface_hub")
    before = (logger.level, utils.are_progress_bars_disabled())
    with pytest.raises(KeyError), _quiet():
        assert logger.level == logging.CRITICAL and utils.are_progress_bars_disabled()
        raise KeyError
    assert (logger.level, utils.are_progress_bars_disabled()) == before


def test_without_transformers_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DependencyError) as caught:
        read_ast("someone/some-ast")
    assert isinstance(caught.value, S2FError) and "s2f[ast]" in (caught.value.hint or "")
