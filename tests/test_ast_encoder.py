"""The AST voice encoder. Oracles: transformers' classifier, and the names of published weights."""

import dataclasses
import re
import sys

import published_files
import pytest
import torch
from published_files import needs_transformers

from s2f.ast_encoder import CONFIGS, ASTEncoder, ASTEncoderConfig, published_name
from s2f.errors import DependencyError
from s2f.spectrogram import FRONT_ENDS

TINY = published_files.AST

# Of one layer of MIT/ast-finetuned-audioset-10-10-0.4593, as transformers 4 names it.
LAYER = {
    f"encoder.layer.0.{part}.{kind}"
    for part in (
        *(f"attention.attention.{x}" for x in ("query", "key", "value")),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
        *("layernorm_before", "layernorm_after"),
    )
    for kind in ("weight", "bias")
}
OUTSIDE = {
    *(f"embeddings.{x}" for x in ("cls_token", "distillation_token", "position_embeddings")),
    *(f"embeddings.patch_embeddings.projection.{kind}" for kind in ("weight", "bias")),
    *("layernorm.weight", "layernorm.bias"),
}


@needs_transformers
def test_the_embedding_is_that_of_transformers_classifier_with_a_relu() -> None:
    model = published_files.randomise(published_files.seed_ast())
    encoder = ASTEncoder(TINY).eval()
    encoder.ast.load_state_dict(model.audio_spectrogram_transformer.state_dict())
    encoder.norm.load_state_dict(model.classifier[0].layernorm.state_dict())
    encoder.embedding.load_state_dict(model.classifier[0].dense.state_dict())
    spectrogram = torch.randn(2, 1, 128, 1024)
    with torch.inference_mode():
        expected = model(spectrogram[:, 0].transpose(1, 2)).logits
        torch.testing.assert_close(encoder(spectrogram), expected, atol=1e-5, rtol=1e-5)
    assert (expected > 0).any()


@needs_transformers
def test_the_state_has_published_names_whatever_version_is_installed() -> None:
    state = ASTEncoder(dataclasses.replace(TINY, layers=1)).state_dict()
    ours = {"norm.weight", "norm.bias", "embedding.weight", "embedding.bias"}
    assert set(state) == {f"ast.{name}" for name in LAYER | OUTSIDE} | ours


@needs_transformers
def test_a_state_comes_back_as_it_was() -> None:
    one, other = ASTEncoder(TINY).eval(), ASTEncoder(TINY).eval()
    other.load_state_dict(one.state_dict())
    spectrogram = torch.randn(1, 1, 128, 1024)
    with torch.inference_mode():
        torch.testing.assert_close(one(spectrogram), other(spectrogram))


@needs_transformers
def test_a_state_that_lacks_a_layer_is_refused() -> None:
    encoder = ASTEncoder(TINY)
    state = encoder.state_dict()
    del state["ast.encoder.layer.1.attention.attention.key.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        encoder.load_state_dict(state)


@needs_transformers
def test_the_seeds_ast_is_the_published_one() -> None:
    # 86.2 M of the body (AST-base), and the head of 4096.
    with torch.device("meta"):
        state = ASTEncoder(CONFIGS["seed"]).state_dict()
    assert len(state) == len(OUTSIDE) + 12 * len(LAYER) + 4
    assert state["ast.embeddings.position_embeddings"].shape == (1, 1214, 768)
    assert state["embedding.weight"].shape == (4096, 768)


@pytest.mark.parametrize(
    ("installed", "published"),
    [
        ("layers.11.attention.q_proj.weight", "encoder.layer.11.attention.attention.query.weight"),
        ("a.layers.0.attention.o_proj.bias", "a.encoder.layer.0.attention.output.dense.bias"),
        ("layers.3.mlp.fc1.weight", "encoder.layer.3.intermediate.dense.weight"),
        ("layers.3.mlp.fc2.weight", "encoder.layer.3.output.dense.weight"),
        ("layers.3.layernorm_after.bias", "encoder.layer.3.layernorm_after.bias"),
    ],
)
def test_new_names_become_the_published_and_those_stay(installed: str, published: str) -> None:
    assert published_name(installed) == published
    assert published_name(published) == published


@needs_transformers
def test_a_clip_of_other_length_is_refused() -> None:
    with pytest.raises(ValueError, match="598 frames do not fit: this encoder needs 1024"):
        ASTEncoder(TINY)(torch.randn(1, 1, 128, 598))


def test_the_front_end_gives_the_frames_that_the_encoder_wants() -> None:
    front_end, config = FRONT_ENDS["ast"], CONFIGS["seed"]
    assert (front_end.n_channels, front_end.n_freqs) == (config.in_channels, config.n_freqs)
    config.check_frames(front_end.n_frames(front_end.clip_samples))


@pytest.mark.parametrize(
    ("change", "part"),
    [({"n_frames": 8}, "less than one patch"), ({"heads": 7}, "no multiple of 7 heads")],
)
def test_a_shape_that_cannot_be_is_refused(change: dict[str, int], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        dataclasses.replace(ASTEncoderConfig(), **change)


def test_without_transformers_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DependencyError, match="need transformers") as caught:
        ASTEncoder(TINY)
    assert re.search(r"s2f\[ast\]", caught.value.hint or "")
