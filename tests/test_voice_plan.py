"""Voice encoders to train: network, front end and recipe. Full-size ones have no values here."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from published_files import needs_transformers
from test_pretrained import TINY, hugging_face

from s2f import ast_encoder, voice_encoder
from s2f.ast_encoder import ASTEncoder, published_name
from s2f.augment import VoiceAugment
from s2f.errors import DatasetError, DependencyError, UsageError
from s2f.spectrogram import FRONT_ENDS, RunningMoments, write_stats
from s2f.train_voice import NOTHING_ELSE, VoiceOptions, VoicePlan, plan_voice
from s2f.voice_encoder import VoiceEncoder

CONV = ("paper", "seed", "compact")
RANDOM = VoiceOptions("ast", random_init=True)


def made(preset: str, options: VoiceOptions = NOTHING_ELSE) -> VoicePlan:
    """Plan without giving the network values."""
    with torch.device("meta"):
        return plan_voice(preset, options, embedding=8)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ASTs that start at random tiny."""
    for preset, config in ast_encoder.CONFIGS.items():
        small = dataclasses.replace(TINY, final_relu=config.final_relu)
        monkeypatch.setitem(ast_encoder.CONFIGS, preset, small)


@pytest.fixture
def pretrained(tmp_path: Path) -> str:
    """The folder of a pretrained AST, tiny, of two layers."""
    hugging_face(tmp_path / "ast", classifier=True)
    return str(tmp_path / "ast")


@pytest.mark.parametrize("preset", CONV)
def test_a_convolutional_encoder_fits_its_front_end_and_embedding(preset: str) -> None:
    found = made(preset)
    config = found.network.config
    assert isinstance(found.network, VoiceEncoder)
    assert (config.in_channels, config.n_freqs) == (
        found.front_end.n_channels,
        found.front_end.n_freqs,
    )
    config.check_frames(found.front_end.n_frames(found.front_end.clip_samples))
    assert config.embedding == 8 and config.final_relu == (preset == "seed")
    assert found.front_end.kind == ("log_mel" if preset == "compact" else preset)
    assert found.passes == (25 if preset == "compact" else 0)
    (group,) = found.groups
    assert group.start == 0 and group.lr == 1.0
    assert {id(p) for p in group.parameters} == {id(p) for p in found.network.parameters()}


@needs_transformers
@pytest.mark.parametrize("preset", CONV)
def test_an_ast_hears_as_many_frames_as_it_has_positions_for(preset: str) -> None:
    found = made(preset, RANDOM)
    config = found.network.config
    assert isinstance(found.network, ASTEncoder)
    config.check_frames(found.front_end.n_frames(found.front_end.clip_samples))
    seconds = {"compact": 6.0}.get(preset, 10.26)
    assert found.front_end == dataclasses.replace(
        FRONT_ENDS["ast"], clip_samples=round(16_000 * seconds)
    )
    assert config.embedding == 8 and config.final_relu == (preset == "seed")
    assert found.shortest is None and found.passes == 0
    assert found.settings == {"arch": "ast"}


@needs_transformers
def test_the_small_ast_is_small() -> None:
    network = made("compact", VoiceOptions("ast")).network
    layer = 4 * (192**2 + 192) + 2 * 192 * 768 + 768 + 192 + 4 * 192
    patches, positions = 16 * 16 * 192 + 192, (8 * 37 + 2) * 192
    rest = 2 * 192 + 2 * 192 + 2 * 192 + 192 * 8 + 8  # tokens, two LayerNorms, the embedding of 8
    assert sum(p.numel() for p in network.parameters()) == 4 * layer + patches + positions + rest


@needs_transformers
@pytest.mark.usefixtures("tiny")
def test_an_ast_that_starts_at_random_learns_all_at_once() -> None:
    found = plan_voice("paper", RANDOM, embedding=8)
    head, body = found.groups
    assert head.start == body.start == 0 and (head.lr, body.lr) == (1.0, 0.1)
    parameters = list(found.network.parameters())
    assert len(head.parameters) + len(body.parameters) == len(parameters)
    assert all(p.requires_grad for p in parameters)


@needs_transformers
@pytest.mark.parametrize("preset", CONV)
def test_a_pretrained_ast_has_its_own_shape_and_weights(preset: str, pretrained: str) -> None:
    found = plan_voice(preset, VoiceOptions("ast", pretrained), embedding=8)
    assert found.network.config == dataclasses.replace(
        TINY, embedding=8, final_relu=preset == "seed"
    )
    assert found.front_end.clip_samples == 16_000
    other = plan_voice(preset, VoiceOptions("ast", pretrained), embedding=8)
    mine, theirs = found.network.state_dict(), other.network.state_dict()
    same = {name for name in mine if torch.equal(mine[name], theirs[name])}
    assert {name for name in mine if name.startswith("ast.")} <= same
    assert "embedding.weight" not in same
    assert found.settings["pretrained"] == other.settings["pretrained"]


LAYERS = {  # that are trained, of embeddings, two layers, and the LayerNorm after them
    None: {"embeddings", "0", "1", "layernorm"},
    2: {"embeddings", "0", "1", "layernorm"},
    1: {"1", "layernorm"},
    0: set(),
}


@needs_transformers
@pytest.mark.parametrize("unfreeze", LAYERS)
def test_the_last_layers_follow_the_head(pretrained: str, unfreeze: int | None) -> None:
    options = VoiceOptions("ast", pretrained, head_steps=7, unfreeze=unfreeze)
    found = plan_voice("paper", options, embedding=8)
    named = {id(p): published_name(n) for n, p in found.network.named_parameters()}
    head, *body = found.groups
    assert {named[id(p)] for p in head.parameters} == {
        f"{part}.{kind}" for part in ("norm", "embedding") for kind in ("weight", "bias")
    }
    assert (head.start, head.lr) == (0, 1.0) and all(p.requires_grad for p in head.parameters)
    assert [(group.start, group.lr) for group in body] == ([] if unfreeze == 0 else [(7, 0.1)])
    parts = {
        name.split(".")[3 if ".layer." in name else 1]
        for name in (named[id(p)] for group in body for p in group.parameters)
    }
    assert parts == LAYERS[unfreeze]
    trained = {name for name, p in found.network.named_parameters() if p.requires_grad}
    assert len(trained) == 4  # the head's, until the loop unfreezes others
    assert found.settings["head_steps"] == 7 and found.settings["unfreeze"] == unfreeze


@needs_transformers
@pytest.mark.parametrize("unfreeze", [-1, 3])
def test_layers_that_are_not_there_cannot_be_unfrozen(pretrained: str, unfreeze: int) -> None:
    with pytest.raises(UsageError, match=f"--unfreeze {unfreeze}: .* has 2 transformer layers"):
        plan_voice("paper", VoiceOptions("ast", pretrained, unfreeze=unfreeze), embedding=8)


@pytest.fixture
def stats(tmp_path: Path) -> Path:
    """Statistics of a log-mel: mean -7, standard deviation 3."""
    write_stats(tmp_path / "stats.json", RunningMoments(1280, -7.0, 9.0 * 1280), files=1)
    return tmp_path / "stats.json"


def test_statistics_go_into_the_front_end_and_the_settings(stats: Path) -> None:
    found = made("compact", VoiceOptions(stats=stats))
    assert (found.front_end.mean, found.front_end.std) == (-7.0, 3.0)
    assert found.settings == {"log_mel": [-7.0, 3.0]}


@needs_transformers
def test_statistics_go_before_those_of_a_pretrained_ast(pretrained: str, stats: Path) -> None:
    (Path(pretrained) / "preprocessor_config.json").write_text('{"mean": -1.0, "std": 2.0}')
    theirs = plan_voice("paper", VoiceOptions("ast", pretrained), embedding=8)
    assert (theirs.front_end.mean, theirs.front_end.std) == (-1.0, 2.0)
    assert theirs.settings["log_mel"] == [-1.0, 2.0] and theirs.notes == []
    ours = plan_voice("paper", VoiceOptions("ast", pretrained, stats=stats), embedding=8)
    assert (ours.front_end.mean, ours.front_end.std) == (-7.0, 3.0)


@needs_transformers
def test_people_are_told_where_statistics_are_assumed(pretrained: str, stats: Path) -> None:
    (note,) = plan_voice("paper", VoiceOptions("ast", pretrained), embedding=8).notes
    assert "mean and std of AudioSet" in note
    told = VoiceOptions("ast", pretrained, stats=stats)
    assert plan_voice("paper", told, embedding=8).notes == []


def test_statistics_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        made("compact", VoiceOptions(stats=tmp_path / "none.json"))


def test_only_the_small_preset_is_disturbed_unless_told_otherwise() -> None:
    for preset in ("paper", "seed"):
        assert made(preset).augment == VoiceAugment()
        assert made(preset).defaults["augment"] is False
    assert str(made("compact").augment) == "noise,gain,speed,band"
    assert "augment" not in made("compact").defaults
    chosen = made("paper", VoiceOptions(augment="spec,noise"))
    assert str(chosen.augment) == chosen.settings["augment"] == "noise,spec"
    assert "augment" not in chosen.defaults
    nothing = made("compact", VoiceOptions(augment="none"))
    assert nothing.defaults == {"augment": False} and nothing.settings == {"augment": "none"}


@pytest.mark.parametrize("preset", CONV)
def test_a_run_that_uses_no_option_has_the_settings_of_before(preset: str) -> None:
    assert made(preset).settings == {} and made(preset).notes == []
    usual = "noise,gain,speed,band" if preset == "compact" else "none"
    assert made(preset, VoiceOptions(augment=usual)).settings == {}


def test_the_shortest_clips_have_two_seconds_of_six() -> None:
    assert made("compact").shortest == 32_000
    assert made("paper").shortest is None and made("seed").shortest is None


@pytest.mark.parametrize("preset", CONV)
def test_clips_are_no_shorter_than_the_network_needs(preset: str) -> None:
    found = made(preset)
    assert isinstance(found.network, VoiceEncoder)
    frames, front_end = found.network.config.min_frames, found.front_end
    least = next(n for n in range(400, 96_000, 80) if front_end.n_frames(n) >= frames)
    chosen = made(preset, VoiceOptions(min_seconds=least / 16_000))
    assert chosen.shortest == least and chosen.settings == {"min_seconds": least / 16_000}
    for seconds in (least / 16_000 - 0.001, 6.001, 0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match=f"clips of {least / 16_000:g} to 6 s"):
            made(preset, VoiceOptions(min_seconds=seconds))


def test_a_paper_sized_clip_needs_2_6_seconds() -> None:
    with pytest.raises(UsageError, match=r"--min-seconds 2\.5: .* clips of 2\.605 to 6 s"):
        made("paper", VoiceOptions(min_seconds=2.5))


def test_settings_are_plain(stats: Path) -> None:
    options = VoiceOptions(stats=stats, augment="spec", min_seconds=3)
    assert json.loads(json.dumps(made("compact", options).settings)) == {
        "log_mel": [-7.0, 3.0],
        "augment": "spec",
        "min_seconds": 3,
    }


def test_an_ast_without_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DependencyError, match="need transformers"):
        made("compact", VoiceOptions("ast"))


def test_the_presets_have_all_networks() -> None:
    assert set(voice_encoder.CONFIGS) == set(ast_encoder.CONFIGS) == set(CONV)
