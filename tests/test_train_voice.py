"""The voice encoder: presets, options, plans and the task. Recipes: FACTS.md, sections 1 and 2."""

import copy
import dataclasses
import json
import math
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import scipy.signal
import torch
from conftest import DECODER, ENCODER, FRONT_END, STAGED, VOICE, noise
from line_task import Killed, assert_same_run, killing
from PIL import Image
from published_files import SHORT_AST, hugging_face_ast, needs_transformers
from sklearn.linear_model import Ridge
from task_checks import CPU, check_duplicates, check_gradients, check_learning, sample_batch
from torch._dynamo.testing import CompileCounter
from torch.nn import functional

from s2f import checkpoint, embeddings, layout, losses, voice_encoder
from s2f.ast_encoder import ASTEncoder
from s2f.augment import Noise
from s2f.checkpoint import Card
from s2f.dataloader import Key, load_batches
from s2f.errors import CheckpointError, DatasetError, UsageError
from s2f.face_decoder import FaceDecoder, draw_faces
from s2f.face_encoder import VGGFace
from s2f.images import PREPROCESSING, Preprocessing, load_face
from s2f.losses import RIDGES
from s2f.pack import pack_tree, read_index
from s2f.speaker_encoder import (
    CONFIGS,
    AttributeEncoder,
    AttributeEncoderConfig,
    SpeakerEncoder,
    SpeakerEncoderConfig,
    body_of,
)
from s2f.spectrogram import FRONT_ENDS, RunningMoments, spectrogram, write_stats
from s2f.train import TrainConfig, configure, train
from s2f.train_voice import (
    NOTHING_ELSE,
    PRESETS,
    WEIGHTS,
    VoiceEncoderTask,
    VoiceOptions,
    plan_voice,
)

PAPER = PRESETS["conv", "paper"]
# What the settings of a preset's run hold.
OF = {(preset, arch): {} for arch, preset in PRESETS} | {("paper", "conv"): {"clips": "first"}}
OF |= {("seed", arch): {"compared": 2} for arch in ("conv", "ast")}
KIND = "voice_encoder"
EACH = pytest.mark.parametrize("preset", ["paper", "seed", "compact"])
RANDOM = VoiceOptions("ast", random_init=True)
BOTH = pytest.mark.parametrize(
    "options", [NOTHING_ELSE, pytest.param(RANDOM, marks=needs_transformers)], ids=["conv", "ast"]
)


def made(preset, options=NOTHING_ELSE):
    """Plan without giving the network values."""
    with torch.device("meta"):
        return plan_voice(preset, options, embedding=8)


@pytest.mark.parametrize(
    ("preset", "options", "part"),
    [
        ("paper", VoiceOptions("ast"), "either from pretrained weights or at random, and nothing"),
        ("seed", VoiceOptions("ast", pretrained="a", random_init=True), "and both"),
        ("paper", VoiceOptions(pretrained="a"), "--pretrained: a convolutional encoder"),
        ("paper", VoiceOptions(unfreeze=0), "--unfreeze: a convolutional encoder"),
        ("compact", VoiceOptions("ast", head_steps=3), "--head-steps: weights that start at"),
        ("seed", VoiceOptions("ast", random_init=True, unfreeze=0), "--unfreeze: weights that"),
        ("compact", VoiceOptions("ast", min_seconds=3), "--min-seconds: AST's table"),
        ("paper", VoiceOptions(stats=Path("s.json")), "the preset paper hears no log-mel"),
        ("compact", VoiceOptions("speaker"), "--arch speaker starts either .*, and nothing"),
        ("compact", VoiceOptions("speaker", pretrained="a", random_init=True), "and both"),
        ("compact", VoiceOptions("speaker", random_init=True, unfreeze=1), "--unfreeze: weights"),
        ("seed", VoiceOptions("speaker", random_init=True), "--preset seed: there is none of"),
        ("paper", VoiceOptions("speaker", random_init=True), "--preset paper: there is none of"),
        ("compact", VoiceOptions("speaker", "a", stats=Path("s.json")), "hears no log-mel"),
        ("compact", VoiceOptions(hidden=3), "--hidden 3: only --arch speaker has a head with"),
        ("paper", VoiceOptions("ast", "a", hidden=3), "--hidden 3: only --arch speaker has"),
        ("compact", VoiceOptions("speaker", "a", hidden=0), "--hidden 0: is no hidden layer"),
    ],
)
def test_what_contradicts_itself_is_refused(preset, options, part):
    with pytest.raises(UsageError, match=part) as caught:
        made(preset, options)
    assert caught.value.hint
    assert made("compact", VoiceOptions(head_steps=0)).groups[0].start == 0  # as it is anyway


# Every value of the presets that carry another's name. OH: Oh et al. 2019 (FACTS.md, 1). REPO:
# Kacper-Pietkun/Speech-to-face, src/train.
OH = {
    "optimizer": "adam",  # OH
    "betas": (0.5, 0.999),  # OH; the second is not published, and Adam's own
    "eps": 1e-4,  # OH
    "lr": 1e-3,  # OH
    "schedule": "paper",  # OH: x 0.95 every 10,000 iterations; `lr_at` has its test
    "weight_decay": 0.0,  # OH name none
    "clip": 0.0,  # OH name none
    "batch_size": 8,  # OH
    "epochs": 3,  # OH
    "calibrate_at": 1000,  # OH: gradients were compared at the 1000th iteration
}
OF_SEED = {"schedule": "constant", "batch_size": 4, "epochs": 100}  # REPO, train_ve_conv.py


def test_each_value_of_a_preset_has_its_source():
    paper, seed = PRESETS["conv", "paper"], PRESETS["conv", "seed"]
    assert paper.training == OH
    assert seed.training == {k: v for k, v in (OH | OF_SEED).items() if k != "calibrate_at"}
    # OH: a sum over the decoder's first layer, lambda 1 and lambda 2
    assert paper.losses == {"decoder/l1": 1.0, "embedding/l2": 0.025, "encoder/distill": 200.0}
    assert (paper.compared, losses.TEMPERATURE) == (1, 2.0)
    # REPO, losses.py: a mean over both pre_layers; a sum over the batch, of 4, where ours is a mean
    assert seed.losses == {"decoder/mae": 1.0, "embedding/l2": 0.025, "encoder/distill": 800.0}
    assert seed.compared == PRESETS["ast", "seed"].compared == 2
    # REPO, train_ast.py: 50, 30 and 2 times the sum over a batch of 8
    of_ast = {"decoder/mae": 50.0, "embedding/l2": 30.0, "encoder/distill": 16.0}
    assert PRESETS["ast", "seed"].losses == of_ast
    named = {name: (of.losses, of.compared) for name, of in WEIGHTS.items()}
    assert named == {
        "published": (paper.losses, 1), "seed": (seed.losses, 2), "seed-ast": (of_ast, 2)
    }  # fmt: skip
    # OH: the first 6 s, looped; no augmentation; nothing is solved in the end
    assert (paper.front_end, paper.front_end.clip_samples) == (FRONT_ENDS["paper"], 96_000)
    assert (paper.anywhere, paper.shortest, paper.augment, paper.passes) == (False, None, (), 0)
    assert (seed.anywhere, seed.shortest, seed.augment, seed.passes) == (True, None, (), 0)


@pytest.mark.parametrize(
    ("said", "calibrate_at"),
    [(None, 1000), ("auto", 1000), ("published", None), ("embedding/l2=1", None)],
)
def test_weights_are_found_at_the_papers_step_or_a_tenth_of_a_shorter_run(make, said, calibrate_at):
    task = make("paper", loss_weights=said)
    assert make(loss_weights=said).defaults.get("calibrate_at") == (
        1000 if said == "auto" else None
    )
    for steps in (20_000, 9_000, 5):
        at = calibrate_at and min(calibrate_at, steps // 10)
        assert configure(task, {"steps": steps}).calibrate_at == at
    assert configure(task, {"calibrate_at": 2}, epochs=9).calibrate_at == 2
    assert configure(task, {"calibrate_at": None}).calibrate_at is None
    assert configure(task, {}).steps == 2  # 3 epochs of 3 recordings, 8 a step
    assert configure(task, {"batch_size": 1}).steps == 9
    assert configure(task, {}, epochs=8 / 3).steps == 1


@pytest.mark.parametrize(
    ("preset", "weights", "compared"),
    [
        ("paper", None, 1),
        ("paper", "seed", 2),
        ("paper", "seed-ast", 2),
        ("seed", "published", 1),
        ("seed", "auto", 2),
        ("seed", "decoder/l1=1", 2),  # a weight alone says nothing of layers
    ],
)
def test_weights_that_have_a_name_bring_the_layers_that_they_compare(preset, weights, compared):
    found = made(preset, VoiceOptions(loss_weights=weights))
    assert found.recipe.compared == compared
    assert found.settings.get("compared", 1) == compared


@BOTH
@EACH
def test_a_network_fits_its_front_end_and_embedding(preset, options):
    found, seconds = made(preset, options), 6.0
    config, recipe = found.network.config, found.recipe
    config.check_frames(recipe.front_end.n_frames(recipe.front_end.clip_samples))
    assert config.embedding == 8 and config.final_relu == (preset == "seed")
    assert not any(group.start for group in found.groups)
    trained = [id(p) for group in found.groups for p in group.parameters]
    assert sorted(trained) == sorted(id(p) for p in found.network.parameters())
    kind, rates, small = preset, [1.0], preset == "compact"
    if isinstance(found.network, ASTEncoder):
        kind, rates, seconds = "ast", [1.0, 0.1], 6.0 if small else 10.26
        assert recipe.shortest is None and found.settings == {"arch": "ast", **OF[preset, "ast"]}
    front_end = FRONT_ENDS["ast" if small else kind]
    kind, clip_samples = "log_mel" if small else kind, round(16_000 * seconds)
    assert recipe.front_end == dataclasses.replace(front_end, kind=kind, clip_samples=clip_samples)
    assert [group.lr for group in found.groups] == rates
    assert recipe.passes == (25 if small and options.arch == "conv" else 0)


@pytest.fixture
def pretrained(tmp_path):
    """The folder of a pretrained AST, tiny, of two layers."""
    hugging_face_ast(SHORT_AST, classifier=True).save_pretrained(tmp_path / "ast")
    return str(tmp_path / "ast")


@needs_transformers
@EACH
def test_a_pretrained_ast_has_its_own_shape_and_weights(preset, pretrained):
    planned = lambda: plan_voice(preset, VoiceOptions("ast", pretrained), embedding=8)  # noqa: E731
    found, other, path = planned(), planned(), Path(pretrained) / "model.safetensors"
    expected = dataclasses.replace(SHORT_AST, embedding=8, final_relu=preset == "seed")
    assert found.network.config == expected
    assert found.recipe.front_end.clip_samples == 16_000
    mine, theirs = found.network.state_dict(), other.network.state_dict()
    same = {name for name in mine if torch.equal(mine[name], theirs[name])}
    assert {name for name in mine if name.startswith("ast.")} <= same
    assert "embedding.weight" not in same and found.settings == other.settings
    assert len(found.notes) == 1 and "mean and std of AudioSet" in found.notes[0]
    weights = {name: tensor + 1 for name, tensor in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(weights, path)
    assert planned().settings["pretrained"] != found.settings["pretrained"]


@needs_transformers
@pytest.mark.parametrize("last", [None, 1, 0])
def test_the_last_layers_follow_the_head(pretrained, last):
    steps = None if last == 0 else 7
    options = VoiceOptions("ast", pretrained, head_steps=steps, unfreeze=last)
    found = plan_voice("paper", options, embedding=8)
    head, *body = found.groups
    assert [id(p) for p in head.parameters] == [id(p) for p in found.network.head()]
    assert (head.start, head.lr) == (0, 1.0)
    assert [(group.start, group.lr) for group in body] == ([] if last == 0 else [(7, 0.1)])
    wanted = {id(p) for p in found.network.body(2 if last is None else last)}
    assert {id(p) for group in body for p in group.parameters} == wanted
    assert found.settings["unfreeze"] == (2 if last is None else last)
    assert found.settings.get("head_steps") == steps
    with pytest.raises(UsageError, match=r"--unfreeze 3: .* has 2 transformer layers"):
        plan_voice("paper", dataclasses.replace(options, unfreeze=3), embedding=8)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """A pretrained speaker encoder, tiny, of two layers, that hears clips of one window."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("speaker") / "speaker.safetensors"
    network = SpeakerEncoder(SpeakerEncoderConfig(layers=2, width=12, embedding=12))
    front_end = dataclasses.replace(FRONT_ENDS["speaker"], clip_samples=25_440)
    card = Card("ears", data="Of some.", licence="Apache-2.0.", limits="No faces.")
    checkpoint.save(path, network, card=card, embedding_space="d-vectors", front_end=front_end)
    return str(path)


def test_a_pretrained_speaker_encoder_stays_as_it_is_below_a_new_head(speaker):
    options = VoiceOptions("speaker", speaker)
    found, start = plan_voice("compact", options, embedding=8), checkpoint.load(Path(speaker), KIND)
    wanted = SpeakerEncoderConfig(layers=2, width=12, embedding=8)
    assert (found.network.config, found.recipe.front_end) == (wanted, start.front_end)
    body = body_of(start.network)
    assert all(torch.equal(body[name], w) for name, w in body_of(found.network).items())
    (head,) = found.groups
    assert {id(p) for p in head.parameters} == {id(p) for p in found.network.embedding.parameters()}
    assert found.start == start.card and found.recipe.passes == 10
    small = plan_voice("compact", dataclasses.replace(options, hidden=5), embedding=8)
    assert small.network.config == dataclasses.replace(wanted, hidden=5, dropout=0.3)
    assert small.recipe.passes == 0  # what is not linear is not solved
    settings = {"arch": "speaker", "clip_samples": 25_440, "unfreeze": 0}
    settings["pretrained"] = checkpoint.payload_sha256(body)
    assert found.settings == settings and small.settings == settings | {"hidden": 5}


@pytest.mark.parametrize("last", [None, 0, 1, 2])
def test_the_last_layers_of_a_speaker_encoder_follow_the_head(speaker, last):
    """Of two LSTM layers; by default none. What follows them is trained with the last."""
    steps = 7 if last else None
    options = VoiceOptions("speaker", speaker, head_steps=steps, unfreeze=last, hidden=5)
    found = plan_voice("compact", options, embedding=8)
    head, *body = found.groups
    assert found.settings["unfreeze"] == (last or 0)  # said or not: the same run
    assert found.settings.get("head_steps") == steps
    assert len(head.parameters) == 4 and (head.start, head.lr) == (0, 1.0)
    assert [(group.start, group.lr) for group in body] == ([(7, 0.1)] if last else [])
    names = {id(p): name for name, p in found.network.named_parameters()}
    known = {names[id(p)] for group in body for p in group.parameters}
    layer = "lstm.weight_ih_l{0} lstm.weight_hh_l{0} lstm.bias_ih_l{0} lstm.bias_hh_l{0}"
    layers = {1: (1,), 2: (0, 1)}.get(last, ())
    wanted = {name for k in layers for name in layer.format(k).split()}
    assert known == wanted | ({"linear.weight", "linear.bias"} if last else set())
    with pytest.raises(UsageError, match=r"--unfreeze 3: .* has 2 LSTM layers"):
        plan_voice("compact", dataclasses.replace(options, unfreeze=3), embedding=8)


def begun(init, preset="compact", options=NOTHING_ELSE, embedding=8, space=None):
    space = init.embedding_space if space is None else space
    return plan_voice(preset, options, embedding=embedding, init=init, space=space)


def taken(found, init):
    """Names of the tensors that are those of the start, and what the note says of the others."""
    mine, theirs = found.network.state_dict(), init.network.state_dict()
    same = {k for k in mine if k in theirs and torch.equal(mine[k], theirs[k])}
    (note,) = (n for n in found.notes if n.startswith(f"the weights start as those of {init.path}"))
    return same, set(mine) - same, note.partition("; ")[2]


def test_a_voice_encoder_starts_as_a_trained_one(models, presets, monkeypatch):
    init = checkpoint.load(models / "demo/voice_encoder.safetensors", KIND)
    found = begun(init)
    _, new, told = taken(found, init)
    assert (new, told) == (set(), "none are new")
    assert (found.settings, found.start) == ({"init": init.sha256}, init.card)
    assert all(p.requires_grad for p in found.network.parameters())
    # Another face encoder, of as many values or of more: what leads to its embedding is new.
    _, new, told = taken(begun(init, space="other"), init)
    assert new == {"embedding.weight", "embedding.bias"}
    assert told == "new are embedding.bias [8], embedding.weight [8, 8]"
    _, new, told = taken(begun(init, embedding=9), init)  # `compact` has as many hidden ones
    assert new == {f"{a}.{b}" for a in ("hidden", "embedding") for b in ("weight", "bias")}
    assert "hidden.weight [9, " in told
    for changes, numbers in (
        ({"channels": (4, 6)}, r"convs.1.0.bias is \[4\]; this one's \[6\]"),
        ({"channels": (4, 4, 4), "strides": (2, 2, 1), "pools": 3 * ((1, 1),)}, "missing; this"),
    ):
        shape = dataclasses.replace(VOICE, **changes)
        other = dataclasses.replace(PRESETS["conv", "compact"], network=shape)
        monkeypatch.setitem(PRESETS, ("conv", "paper"), other)
        with pytest.raises(CheckpointError, match=rf"another body: its .*{numbers}") as caught:
            begun(init, "paper")
        assert str(init.path) in caught.value.message and "--preset" in caught.value.hint
    heard = dataclasses.replace(init, front_end=dataclasses.replace(FRONT_END, mean=-7.0, std=3.0))
    assert begun(heard).settings["log_mel"] == [-7.0, 3.0]  # by which its weights were learned
    heard = dataclasses.replace(init, front_end=FRONT_ENDS["speaker"])
    with pytest.raises(CheckpointError, match="by the front end speaker; this one by log_mel"):
        begun(heard)
    with pytest.raises(CheckpointError, match="architecture is conv; this one's is speaker"):
        begun(init, options=VoiceOptions("speaker"))
    with pytest.raises(UsageError, match="--init and --random-init were given"):
        begun(dataclasses.replace(init), options=VoiceOptions("ast", random_init=True))


def test_a_speaker_encoder_starts_as_one_with_another_head(speaker):
    init, options = checkpoint.load(Path(speaker), KIND), VoiceOptions("speaker")
    whole = begun(init, options=options, embedding=12)
    assert taken(whole, init)[1] == set() and whole.settings["unfreeze"] == 0
    last = dataclasses.replace(options, unfreeze=1)
    assert [g.start for g in begun(init, options=last, embedding=12).groups] == [0, 0]
    hidden = begun(init, options=dataclasses.replace(last, hidden=5))
    assert taken(hidden, init)[1] == set(hidden.network.state_dict()) - set(body_of(init.network))
    assert [g.start for g in hidden.groups] == [0, 1000]  # first what is new
    deep = AttributeEncoder(AttributeEncoderConfig(layers=2, width=12, embedding=8))
    deep = begun(dataclasses.replace(init, network=deep), options=options, space="")
    assert "new are embedding.bias [8], embedding.weight [8, 12]" in deep.notes[0]
    mine, theirs = body_of(deep.network), body_of(begun(init, options=options).network)
    assert deep.network.config.width == 12 and mine.keys() == theirs.keys()


@needs_transformers
@pytest.mark.parametrize(("last", "starts"), [(None, [0, 0]), (0, [0])])
def test_a_transformer_starts_as_a_trained_one_and_may_stay_frozen(pretrained, last, starts):
    """The shape is the start's, not the preset's; with --unfreeze 0 the head alone is trained."""
    network = plan_voice("paper", VoiceOptions("ast", pretrained), embedding=8).network
    front_end = dataclasses.replace(FRONT_ENDS["ast"], kind="log_mel", clip_samples=16_000)
    init = checkpoint.Checkpoint(Path("a"), KIND, network, front_end, "s", Card("a"), "sha")
    found = begun(init, "compact", VoiceOptions("ast", unfreeze=last))
    assert taken(found, init)[1] == set() and found.network.config == network.config
    assert [g.start for g in found.groups] == starts
    assert found.recipe.front_end.clip_samples == 16_000
    _, new, _ = taken(begun(init, "compact", VoiceOptions("ast"), space="t"), init)
    assert new == {"embedding.weight", "embedding.bias"}


def test_steps_of_the_head_alone_want_layers_that_follow(speaker):
    for last, steps in ((None, 7), (0, 7), (None, 0)):
        options = VoiceOptions("speaker", speaker, head_steps=steps, unfreeze=last)
        with pytest.raises(UsageError, match=rf"--head-steps {steps}: nothing is .* but") as e:
            plan_voice("compact", options, embedding=8)
        assert "--unfreeze 1 to 2" in e.value.hint
    at_once = VoiceOptions("speaker", speaker, head_steps=0, unfreeze=2)
    found = plan_voice("compact", at_once, embedding=8)
    assert "head_steps" not in found.settings and not any(group.start for group in found.groups)


def test_a_speaker_encoder_learns_from_the_clips_of_a_pack_that_hold_a_window():
    """A window is 1.59 s, 25,440 samples; its own clips 99,360."""
    options = VoiceOptions("speaker", random_init=True)
    for longest, wanted in ((96_000, 96_000), (25_440, 25_440), (25_439, None), (160_000, None)):
        with torch.device("meta"):
            found = plan_voice("compact", options, embedding=8, longest=longest)
        assert found.recipe.front_end.clip_samples == (wanted or 99_360)
        assert found.settings == {"arch": "speaker", **({"clip_samples": wanted} if wanted else {})}
        told = [f"clips have {longest / 16_000:g} s, as in the pack, and not 6.21 s"]
        assert found.notes == (told if wanted else [])


def test_a_speaker_encoder_that_starts_at_random_is_trained_whole():
    found = made("compact", VoiceOptions("speaker", random_init=True))
    assert found.network.config == dataclasses.replace(CONFIGS["resemblyzer"], embedding=8)
    assert found.recipe.front_end == FRONT_ENDS["speaker"] and found.settings == {"arch": "speaker"}
    trained = [id(p) for group in found.groups for p in group.parameters]
    assert sorted(trained) == sorted(id(p) for p in found.network.parameters())
    assert not any(group.start for group in found.groups) and found.start is None
    for seconds, clip in ((1.59, 25_440), (6.21, 99_360)):  # a window; the whole
        options = VoiceOptions("speaker", random_init=True, min_seconds=seconds)
        assert made("compact", options).recipe.shortest == clip
    with pytest.raises(UsageError, match=r"clips of 1.59 to 6.21 s"):
        made("compact", dataclasses.replace(options, min_seconds=1.5))


def test_what_is_no_speaker_encoder_is_no_start(models, tmp_path):
    other = models / "demo/voice_encoder.safetensors"
    with pytest.raises(CheckpointError, match="none with the body of a speaker enc") as caught:
        plan_voice("compact", VoiceOptions("speaker", str(other)), embedding=8)
    assert "s2f convert resemblyzer" in caught.value.hint
    torch.save({"a": torch.ones(2)}, tmp_path / "pretrained.pt")
    with pytest.raises(CheckpointError, match="holds weights of torch") as caught:
        plan_voice("compact", VoiceOptions("speaker", str(tmp_path / "pretrained.pt")), embedding=8)
    assert "s2f convert" in caught.value.hint


@needs_transformers
def test_statistics_go_before_those_of_a_pretrained_ast(pretrained, tmp_path):
    write_stats(tmp_path / "stats.json", RunningMoments(1280, -7.0, 9.0 * 1280), files=1)
    (Path(pretrained) / "preprocessor_config.json").write_text('{"mean": -1.0, "std": 2.0}')
    for stats, (mean, std) in ((None, (-1.0, 2.0)), (tmp_path / "stats.json", (-7.0, 3.0))):
        found = plan_voice("paper", VoiceOptions("ast", pretrained, stats=stats), embedding=8)
        assert (found.recipe.front_end.mean, found.recipe.front_end.std) == (mean, std)
        assert found.settings["log_mel"] == [mean, std] and found.notes == []


@EACH
def test_only_the_small_preset_is_disturbed_unless_told_otherwise(preset):
    usual = ("noise", "gain", "speed", "band") if preset == "compact" else ()
    for options in (NOTHING_ELSE, VoiceOptions(augment=",".join(usual) or "none")):
        found = made(preset, options)
        assert found.recipe.augment == usual and found.settings == OF[preset, "conv"]
        assert found.notes == []
        assert found.recipe.training.get("augment", True) == bool(usual)
    chosen = made(preset, VoiceOptions(augment="spec,noise"))
    assert ",".join(chosen.recipe.augment) == chosen.settings["augment"] == "noise,spec"
    assert "augment" not in chosen.recipe.training
    assert made("compact", VoiceOptions(augment="none")).settings == {"augment": "none"}


@EACH
def test_clips_are_no_shorter_than_the_network_needs(preset):
    found = made(preset)
    assert found.recipe.shortest == (32_000 if preset == "compact" else None)  # 2 s of 6
    frames, front_end = found.network.config.min_frames, found.recipe.front_end
    least = next(n for n in range(400, 96_000, 80) if front_end.n_frames(n) >= frames)
    chosen = made(preset, VoiceOptions(min_seconds=least / 16_000))
    assert chosen.recipe.shortest == least
    assert chosen.settings == {"min_seconds": least / 16_000, **OF[preset, "conv"]}
    for seconds in (least / 16_000 - 0.001, 6.001, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match=f"clips of {least / 16_000:g} to 6 s"):
            made(preset, VoiceOptions(min_seconds=seconds))


def networks(models, other="demo"):
    encoder = checkpoint.load(models / "demo/face_encoder.safetensors", "face_encoder")
    return encoder, checkpoint.load(models / other / "face_decoder.safetensors", "face_decoder")


@pytest.fixture
def make(voices, models, presets):
    def make(preset="compact", options=None, data=voices, pair=networks(models), **more):  # noqa: B008
        torch.manual_seed(0)
        init = more.pop("init", None)
        options = options or VoiceOptions(**more)
        where = {"device": CPU, "options": options, "init": init}
        return VoiceEncoderTask(data, preset, *pair, Card("tiny"), **where)

    return make


@pytest.fixture
def staged(models):
    """An encoder that knows identities, and a decoder that has first layers, as the paper's."""
    torch.manual_seed(4)
    encoder = VGGFace(dataclasses.replace(ENCODER, identities=6), PREPROCESSING["paper"])
    made = encoder.eval().requires_grad_(False), FaceDecoder(STAGED).eval().requires_grad_(False)
    pairs = zip(networks(models), made, strict=True)
    return [dataclasses.replace(old, network=new) for old, new in pairs]


@pytest.fixture
@torch.no_grad()
def pack_of(voices, models, tmp_path):
    """The voice tree as a pack."""
    for photo in voices.rglob("*.jpg"):
        embedding = networks(models)[0].network(load_face(photo)[None] / 255)[0].numpy()
        np.save(layout.beside(photo.with_suffix(""), layout.EMBEDDING), embedding)
    path = models / "demo/face_encoder.safetensors"
    pack_tree(voices, tmp_path / "pack", face_encoder=path, clip_seconds=1, workers=1)
    return tmp_path / "pack"


@pytest.mark.parametrize("data", ["voices", "pack_of"])
def test_it_learns(data, make, tmp_path, request):
    task = make(data=request.getfixturevalue(data))
    check_gradients(task, [task.encoder, task.decoder])
    check_duplicates(task)
    check_learning(task, tmp_path / "run")


def test_a_head_on_a_frozen_speaker_encoder_learns(make, speaker, tmp_path):
    task = make(options=VoiceOptions("speaker", speaker))
    before = {name: w.clone() for name, w in body_of(task.network).items()}
    check_gradients(task, [task.encoder, task.decoder])
    check_duplicates(task)
    check_learning(task, tmp_path / "run")
    assert all(torch.equal(before[name], w) for name, w in body_of(task.network).items())
    best = checkpoint.load(tmp_path / "run/best.safetensors", KIND)
    assert (best.front_end, best.network.config) == (task.front_end, task.network.config)
    assert best.card.data == "Its weights started as those of ears. Of some."
    assert (best.card.licence, best.card.limits) == ("Apache-2.0.", "No faces.")


def test_a_linear_head_is_solved_for(make, speaker):
    """scikit-learn's Ridge, of the d-vectors of the batches, with the ridge best in validation."""
    task = make(options=VoiceOptions("speaker", speaker, augment="none"))
    batches = [sample_batch(task) for _ in range(2)]
    task.finish(lambda k: iter(batches * (k == 10)))
    assert task.network.training and task.solves
    heard = spectrogram(torch.cat([b["waveform"] for b in batches]), task.front_end)
    x = task.network.features(heard).detach().double().numpy()
    y = torch.cat([b["embedding"] for b in batches]).double().numpy()
    scale = x.std(0).clip(1e-4)  # some values of the d-vectors are always 0
    predicted = [
        Ridge(alpha=ridge * len(x)).fit(x / scale, y).predict(x / scale) for ridge in RIDGES
    ]
    errors = np.stack([np.square(p - y) for p in predicted])
    found = task.network.from_features(task.network.features(heard)).detach().numpy()
    # No worse than any one ridge for all, by what decides: as good as the best for each way.
    assert np.square(found - y).mean() < errors.mean((1, 2)).min() * 1.01
    assert np.square(found - y).mean() > errors.min(0).mean() * 0.5


def test_the_contrastive_loss_and_masks_are_for_training_alone(make):
    task = make(contrastive=0.5)
    usual = {"embedding/mse": 1.0, "embedding/l2": 0.1}
    assert task.loss_weights == {**usual, "contrastive/infonce": 0.5}
    check_gradients(task, [task.encoder, task.decoder])
    check_duplicates(task)
    task.network.eval()
    assert "contrastive/infonce" not in task.losses(sample_batch(task), augmented=False)
    for weight in (0.0, math.nan, math.inf):
        with pytest.raises(UsageError, match=r"--contrastive .*: is no weight above 0"):
            make(contrastive=weight)
    # and so are masks
    task = make("paper", augment="spec")
    task.network.eval()
    batch = sample_batch(task)
    other = batch | {"seed": batch["seed"] + 99}
    for augmented in (True, False):
        a, b = (task.losses(x, augmented=augmented)["embedding/l2"] for x in (batch, other))
        assert torch.equal(a, b) != augmented


def test_recall_and_infonce_are_as_by_hand(make, pack_of):
    """By plain loops: 12 embeddings, near to the faces of three people or not; batches of 5."""
    task, packed = make(contrastive=0.5), make(data=pack_of)
    for a, b in zip(task.gallery, packed.gallery, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3)  # packs keep half precision
    faces, who = (torch.from_numpy(part) for part in task.gallery)
    assert who.tolist() == [0, 1, 2]
    rng = torch.Generator().manual_seed(3)
    identity = torch.arange(12) % 3
    predicted = faces[identity] + 0.5 * torch.randn(12, 8, generator=rng)
    rows = {"predicted": predicted, "target": faces[identity], "identity": identity}
    measured, recall = task.judge(rows, batch_size=5)
    places = []
    for row, own in zip(predicted, identity.tolist(), strict=True):
        cosines = [float(functional.cosine_similarity(row, face, dim=0)) for face in faces]
        places.append(sum(c >= cosines[own] for k, c in enumerate(cosines) if k != own))
    assert 0 < sum(place == 0 for place in places) < 12
    assert recall == {"people": 3, "samples": 12, "r1": places.count(0) / 12, "r5": 1, "r10": 1}
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    expected = []
    for part in (order[:5], order[5:10], order[10:]):
        voice, face = (functional.normalize(rows[k][part], dim=1) for k in ("predicted", "target"))
        logits = (voice @ face.T / 0.07).double().exp()
        same = identity[part][:, None] == identity[part]
        for way in (logits, logits.T):
            expected += (-((way * same).sum(1) / way.sum(1)).log() / 2).tolist()
    assert measured == {"contrastive/infonce": pytest.approx(sum(expected) / 12, rel=1e-5)}
    assert task.judge(rows, batch_size=99)[1] == recall
    assert make().judge(rows, batch_size=5)[0] == {}


def test_a_run_logs_recall_and_infonce_and_its_card_has_them(make, tmp_path):
    task = make(contrastive=0.5)
    config = TrainConfig(steps=4, batch_size=3, every=2, best_by="r1")
    result = train(task, run := tmp_path / "run", config, device=CPU)
    records = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    for record in records:
        assert set(record["val"]) == set(record["train"]) == set(task.loss_weights)
        assert record["recall"]["people"] == record["recall"]["samples"] == 3
    best = checkpoint.load(result.best, KIND).card.metrics
    assert result.recall == {k: best[f"val/{k}"] for k in ("people", "samples", "r1", "r5", "r10")}
    assert best["val/contrastive/infonce"] == result.losses["contrastive/infonce"]


def write_people(folder, n, seed):
    """Write made people: a pitch and two formants each, and a face that follows from them.

    Two recordings of 1 s a person, harmonics in noise; the embedding [8] is a fixed smooth function
    of the three, of spread 1.
    """
    rng, mix = np.random.default_rng(seed), np.random.default_rng(0).standard_normal((2, 3, 8))
    times = np.arange(16_000) / 16_000
    for k in range(n):
        who = rng.uniform(-1, 1, 3)
        hertz = 150 * 2 ** who[0]
        peaks = (500 * 2 ** (0.6 * who[1]), 2000 * 2 ** (0.6 * who[2]))
        person = folder / f"id{k:03}"
        for name in ("audios", "images"):
            (person / name).mkdir(parents=True)
        face = np.tanh(who @ mix[0] + np.sin(2 * who) @ mix[1] / 2)
        np.save(person / "images/a.npy", face.astype(np.float32))
        for recording in "ab":
            harmonics = hertz * np.arange(1, int(7000 / hertz)) * rng.uniform(0.98, 1.02)
            loud = sum(np.exp(-((np.log2(harmonics / peak) / 0.4) ** 2)) for peak in peaks)
            phases = rng.uniform(0, 2 * np.pi, len(harmonics))
            tones = np.sin(2 * np.pi * harmonics[:, None] * times + phases[:, None])
            sound = 0.05 * loud @ tones + 0.05 * rng.standard_normal(len(times))
            np.save(person / f"audios/{recording}.npy", sound.astype(np.float32))


@pytest.mark.slow
def test_fifty_steps_from_a_trained_one_beat_five_hundred_from_none(make, tmp_path, monkeypatch):
    """On made voices and faces (`write_people`): R@10 among 60 people that neither has learned.

    The start has learned from 100 others, who are in none of the new data, which has 12.
    """
    shape = dataclasses.replace(VOICE, channels=(8, 16), hidden=32)
    tiny = dataclasses.replace(PRESETS["conv", "paper"], network=shape)
    monkeypatch.setitem(PRESETS, ("conv", "paper"), tiny)
    for split, n, seed in (("old/train", 100, 1), ("old/val", 5, 2), ("new/train", 12, 3)):
        write_people(tmp_path / split, n, seed)
    write_people(tmp_path / "new/val", 60, 4)

    def run(name, steps, init=None):
        options = VoiceOptions(loss_weights="embedding/mse=1")
        task = make("paper", options, data=tmp_path / name[:3], init=init)
        config = TrainConfig(steps=steps, batch_size=16, every=steps, lr=2e-3)
        return train(task, tmp_path / "runs" / name, config, device=CPU)

    best = run("old", 700).best
    scratch = run("new of none", 500)
    warm = run("new of old", 50, checkpoint.load(best, KIND))
    assert warm.recall["people"] == 60 and warm.recall["r10"] > scratch.recall["r10"] > 10 / 60


def test_masks_of_a_speaker_encoder_are_silent(make, speaker):
    """Behind them no power, as a filter that is not there gives: no more than without them."""
    task = make(options=VoiceOptions("speaker", speaker, augment="spec"))
    batch = sample_batch(task)
    plain, hidden = (
        task._hear(batch["waveform"], seeds)
        for seeds in (None, Noise(torch.arange(len(batch["waveform"]))))
    )
    changed = hidden != plain
    assert changed.any() and (hidden[changed] == 0).all()


def test_networks_that_do_not_fit_and_one_identity_are_refused(voices, models, make):
    with pytest.raises(CheckpointError, match="different embedding spaces"):
        make(pair=networks(models, "other"))
    encoder, decoder = networks(models)
    config = dataclasses.replace(DECODER, embedding=9, trunk=(18,))
    decoder = dataclasses.replace(decoder, network=FaceDecoder(config))
    with pytest.raises(CheckpointError, match=r"of 8 values, .* of 9 values"):
        make(pair=(encoder, decoder))
    for k in (1, 2):
        shutil.rmtree(voices / f"val/id{k}")
    assert make().val_data.n_identities == 1
    shutil.rmtree(voices / "train/id1")
    (voices / "train/id2/audios/a.npy").unlink()
    with pytest.raises(DatasetError, match="train: has one identity with a voice and a face"):
        make()


@pytest.mark.parametrize(
    ("kind", "stops"),
    [
        ("calibrated", (4, 5)),
        ("speaker", (3, 5)),
        pytest.param("two stages", (3, 5), marks=needs_transformers),
    ],
)
def test_a_run_killed_around_a_change_ends_as_ever(make, staged, tmp_path, kind, stops, request):
    options, calibrate_at = VoiceOptions(loss_weights="auto", contrastive=0.5), 4
    if kind == "two stages":
        pretrained, calibrate_at = request.getfixturevalue("pretrained"), None
        options = VoiceOptions("ast", pretrained, head_steps=3, unfreeze=1)
    preset = "paper"
    if kind == "speaker":  # two stages, and what is dropped out of the head's hidden layer
        start, calibrate_at = request.getfixturevalue("speaker"), None
        preset = "compact"
        options = VoiceOptions("speaker", start, head_steps=3, unfreeze=1, hidden=5)
    config = TrainConfig(steps=7, batch_size=3, every=2, calibrate_at=calibrate_at)
    notes = []

    def run(name, stop):
        # Of their own, as those of a command are: a training brings them into another order of
        # memory, in which what they embed is rounded otherwise.
        pair, told = copy.deepcopy(staged), {"note": notes.append}
        task = make(preset, options, pair=pair)
        return train(task, tmp_path / name, config, device=CPU, progress=killing(stop), **told)

    whole = run("whole", -1)
    if kind == "calibrated":
        assert len(notes) == 1 and "loss weights from step 4 on: decoder/l1=1," in notes[0]
        assert whole.loss_weights["contrastive/infonce"] == 0.5 and len(whole.loss_weights) == 4
    for stop in stops:
        with pytest.raises(Killed):
            run(f"killed{stop}", stop)
        assert run(f"killed{stop}", -1).loss_weights == whole.loss_weights
        assert_same_run(tmp_path / f"killed{stop}", tmp_path / "whole")


def test_faces_are_fitted_as_wanted(make, models, monkeypatch):
    loads = mock.Mock(side_effect=load_face)
    monkeypatch.setattr(embeddings, "load_face", loads)
    pair = networks(models)
    pair[0].network.preprocessing = Preprocessing(fit="letterbox")
    make(pair=pair)
    assert {call.kwargs["fit"] for call in loads.mock_calls} == {"letterbox"}


def test_a_run_knows_the_options_that_are_used_and_its_packs(pack_of, make):
    plain, options = make().settings, {"pairing": "one-to-one", "per_identity": 2}
    known = {"preset", "recordings", "train_files", "val_files", "face_encoder", "face_decoder"}
    assert set(plain) == known
    assert make("paper").settings == {**plain, "preset": "paper", "clips": "first"}
    chosen = make(**options, min_seconds=0.5)
    assert (chosen.train_data.pairs.choices == 1).all()
    assert chosen.settings == {**plain, **options, "min_seconds": 0.5}
    for share, n in ((0.0, 8_000), (1.0, 16_000)):
        (loaded,) = load_batches(chosen.train_data, [[Key(0, 0, share)]], CPU, workers=0, max_bad=0)
        batch = loaded.items
        assert batch["waveform"].shape == (1, n) and chosen.losses(batch, augmented=True)
    packed = make(data=pack_of).settings
    assert packed["train_pack"] == read_index(pack_of / "train").sha256
    assert packed["val_pack"] == read_index(pack_of / "val").sha256


def test_a_pack_of_shorter_clips_serves_a_speaker_encoder(voices, models, pack_of, make, tmp_path):
    """Of 1.6 s; those of 1 s hold no window."""
    options = VoiceOptions("speaker", random_init=True)
    with pytest.raises(DatasetError, match="clips have 16000 samples; wanted 99360"):
        make(options=options, data=pack_of)
    path, out = models / "demo/face_encoder.safetensors", tmp_path / "longer"
    pack_tree(voices, out, face_encoder=path, clip_seconds=1.6, workers=1)
    task = make(options=options, data=out)
    assert task.front_end.clip_samples == task.settings["clip_samples"] == 25_600
    assert sample_batch(task)["waveform"].shape[1] == 25_600
    assert "clips have 1.6 s, as in the pack, and not 6.21 s" in task.notes


def test_the_papers_preset_hears_the_same_of_a_pack_as_of_its_tree(voices, make, request):
    """OH: the first seconds of each recording, here of 2.6 and 1 s."""
    for path in voices.glob("*/*/audios"):
        np.save(path / "a.npy", np.int16(32768 * noise(2.6, seed=3)))
        np.save(path / "b.npy", np.int16(32768 * noise(1, seed=4)))
    packed = request.getfixturevalue("pack_of")
    assert read_index(packed / "train").identities[0].clips == 4
    heard = []
    for data in (voices, packed):
        task = make("paper", data=data)
        assert len(task.train_data) == 6 and not any("clip" in note for note in task.notes)
        heard.append([task.train_data[Key(i, 5)]["waveform"] for i in range(6)])
        wanted = np.int16(32768 * noise(2.6, seed=3))[:16_000]
        assert np.array_equal(heard[-1][0] * 32768, wanted)
    assert all(torch.equal(a, b) for a, b in zip(*heard, strict=True))


def test_a_sample_shows_photo_embedding_and_voice(voices, pack_of, make):
    task = make()
    batch = sample_batch(task)
    (voices / "val/id1/images/a.jpg").write_bytes(b"no picture")
    picture = task.sample(batch)
    assert picture.shape == (3, 3 * 224, 3 * 224) and task.network.training
    for k in range(3):  # grey where there is no photo any more
        photo = torch.full((3, 224, 224), 0.5)
        if k != 1:
            photo = load_face(voices / f"val/id{k}/images/a.jpg") / 255
        torch.testing.assert_close(picture[:, :224, k * 224 : (k + 1) * 224], photo)
    task.network.eval()
    voice = task.network(spectrogram(batch["waveform"], task.front_end))
    for row, embedding in enumerate((batch["embedding"], voice), 1):
        drawn = torch.cat([*draw_faces(task.decoder, embedding)[1]], dim=2)
        torch.testing.assert_close(picture[:, row * 224 : (row + 1) * 224], drawn)
    packed = make(data=pack_of)
    assert packed.sample(sample_batch(packed)).shape == (3, 2 * 224, 3 * 224)  # without photos


def test_what_cannot_be_read_is_no_obstacle_to_solving(voices, make):
    task = make()
    batch = sample_batch(task)
    (voices / "val/id1/audios/a.npy").write_bytes(b"no waveform")
    before = task.network.embedding.weight.clone()
    assert task.solves
    task.finish(lambda k: iter([batch]))
    assert not torch.equal(task.network.embedding.weight, before)


def test_under_bfloat16_losses_are_single_and_near(make, staged):
    task = make("paper", loss_weights="seed-ast", pair=staged)
    assert task.loss_weights == {
        "decoder/mae": 50.0,
        "embedding/l2": 30.0,
        "encoder/distill": 16.0,
    }
    check_gradients(task, [task.encoder, task.decoder])
    task.network.eval()
    batch = sample_batch(task)
    expected = task.losses(batch, augmented=False)
    with torch.autocast("cpu", torch.bfloat16):
        found = task.losses(batch, augmented=False)
        heard = task._hear(batch["waveform"])
    assert task.predicted.dtype == torch.float32 and len(found) == 3
    # What is compared is computed in float32 from the embedding that the network gave.
    predicted, target = task.predicted, batch["embedding"]
    first = [task.decoder.first_layers(e, task.recipe.compared) for e in (predicted, target)]
    logits = [task.encoder.logits(e) for e in (predicted, target)]
    single = {
        "decoder/l1": losses.decoder_l1(*first),
        "embedding/l2": losses.embedding_l2(predicted, target),
        "encoder/distill": losses.encoder_distill(*logits),
    }
    assert set(found) <= {*single, "decoder/mae"}
    for name in set(found) & set(single):
        assert torch.equal(found[name], single[name])
    torch.testing.assert_close(heard, spectrogram(batch["waveform"], task.front_end))
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=0.05, atol=0.02)


@pytest.fixture
def eight(tmp_path):
    """A voice tree of eight people with one recording each, the same in train and val."""
    times = np.arange(16_000, dtype=np.float32) / 16_000
    for k in range(8):
        rng = np.random.default_rng(k)
        blocks = Image.fromarray(rng.integers(0, 255, (8, 8, 3)).astype(np.uint8))
        voice = 0.2 * np.sin(2 * np.pi * 200 * 1.5**k * times) + 0.01 * rng.standard_normal(16_000)
        person = tmp_path / "eight/train" / f"id{k}"
        for name in ("images", "audios"):
            (person / name).mkdir(parents=True)
        blocks.resize((224, 224)).save(person / "images/a.png")
        np.save(person / "audios/a.npy", voice.astype(np.float32))
    shutil.copytree(tmp_path / "eight/train", tmp_path / "eight/val")
    return tmp_path / "eight"


@BOTH
def test_eight_pairs_are_learned_by_heart(eight, make, tmp_path, options, monkeypatch):
    shape = dataclasses.replace(SHORT_AST, final_relu=False)
    if options.arch == "conv":
        shape = dataclasses.replace(VOICE, channels=(8, 16), hidden=64)
    key = options.arch, "paper"
    monkeypatch.setitem(PRESETS, key, dataclasses.replace(PRESETS[key], network=shape))
    options = dataclasses.replace(options, loss_weights="embedding/mse=1,embedding/l2=1")
    task = make("paper", options, data=eight)
    with torch.no_grad():
        before = task.losses(sample_batch(task), augmented=False)
    config = TrainConfig(steps=200, batch_size=8, lr=0.01, every=200, augment=False, weight_decay=0)
    after = train(task, tmp_path / "run", config, device=CPU).losses
    for name, value in before.items():
        assert after[name] < 2e-3 * float(value.mean()), name


def papers_loop(waveforms, n, targets, w, fc8, f_dec, steps, calibrate_at):
    """The first steps of Oh et al. 2019, in plain torch and double precision.

    From the first `n` samples of recordings, the face features [b d] of their speakers, the voice
    encoder's weights by name, and a weight and a bias each of the face encoder's last layer and the
    decoder's first. Changes `w`, and gives the lambdas that were found at a step.
    """
    # 25 ms of Hann window every 10 ms, 512 frequencies; a power law on either part of the spectrum
    clips = [np.resize(x[:n], n).astype(np.float64) for x in waveforms]
    starts = range(0, n - 400 + 1, 160)
    frames = np.stack([[x[i : i + 400] for i in starts] for x in clips])
    spectra = np.fft.rfft(frames * scipy.signal.get_window("hann", 400), 512).transpose(0, 2, 1)
    parts = np.stack([spectra.real, spectra.imag], 1)
    heard = torch.from_numpy(np.sign(parts) * np.abs(parts) ** 0.3)

    def normalised(x, name, *over):
        variance, mean = torch.var_mean(x, over, correction=0, keepdim=True)
        shape = [1, -1] + (x.ndim - 2) * [1]
        scale, shift = (w[f"{name}.{k}"].view(shape) for k in ("weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def voice(x):
        for i in range(9):  # Conv, ReLU, BatchNorm; four are followed by a pool in time
            stride = 2 if i > 6 else 1
            x = functional.conv2d(x, w[f"convs.{i}.0.weight"], w[f"convs.{i}.0.bias"], stride)
            x = normalised(x.relu(), f"convs.{i}.2", 0, 2, 3) if i < 8 else x
            x = functional.max_pool2d(x, (1, 2)) if 2 <= i <= 5 else x
        x = normalised(x.mean(3).relu(), "norm", 0, 2).flatten(1)
        x = (x @ w["hidden.weight"].T + w["hidden.bias"]).relu()
        return x @ w["embedding.weight"].T + w["embedding.bias"]

    def terms(v_s):
        first = [(v @ f_dec[0].T + f_dec[1]).relu() for v in (v_s, targets)]
        unit = [v / v.norm(dim=1, keepdim=True) for v in (v_s, targets)]
        scores = [(v @ fc8[0].T + fc8[1]) / 2 for v in (v_s, targets)]  # T = 2
        distill = -(scores[1].softmax(1) * scores[0].log_softmax(1)).sum(1)
        l1, l2 = (first[0] - first[1]).abs().sum(1), (unit[0] - unit[1]).square().sum(1)
        return [term.mean() for term in (l1, l2, distill)]

    lambdas = [1.0, 0.025, 200.0]
    moments = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in w.items()}
    for step in range(steps):
        v_s = voice(heard)
        losses = terms(v_s)
        if step == calibrate_at:  # gradients by v_s are made equally long
            sizes = [
                float(torch.autograd.grad(x, v_s, retain_graph=True)[0].norm()) for x in losses
            ]
            lambdas = [sizes[0] / size for size in sizes]
        loss = sum(weight * value for weight, value in zip(lambdas, losses, strict=True))
        for (name, p), g in zip(w.items(), torch.autograd.grad(loss, [*w.values()]), strict=True):
            m, v = moments[name]  # Adam: beta 0.5 and 0.999, epsilon 1e-4
            m.mul_(0.5).add_(0.5 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            root = (v / (1 - 0.999 ** (step + 1))).sqrt()
            with torch.no_grad():
                p -= 1e-3 * 0.95 ** (step // 10_000) * m / (1 - 0.5 ** (step + 1)) / (root + 1e-4)
    return lambdas


def test_the_papers_preset_takes_the_papers_first_steps(tmp_path, make, staged, monkeypatch):
    tree, rng, waveforms = tmp_path / "three", np.random.default_rng(0), []
    for k in range(3):
        person = tree / "train" / f"id{k}"
        samples = 16_000 * (2 + k)
        coloured = np.convolve(rng.normal(0, 0.1, samples), [1, 0.5 * k - 0.8], "same")
        waveforms.append(coloured.astype(np.float32))
        for name in ("audios", "images"):
            (person / name).mkdir(parents=True)
        np.save(person / "audios/a.npy", waveforms[-1])
        pixels = rng.integers(0, 255, (224, 224, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(person / "images/a.png")
    shutil.copytree(tree / "train", tree / "val")
    shape = dataclasses.replace(
        voice_encoder.CONFIGS["paper"], channels=(2, 2, 3, 3, 3, 4, 4, 4, 4), hidden=16
    )
    short = dataclasses.replace(PAPER.front_end, clip_samples=48_000)  # 3 s are quicker than 6
    tiny = dataclasses.replace(PAPER, network=shape, front_end=short)
    monkeypatch.setitem(PRESETS, ("conv", "paper"), tiny)
    task = make("paper", data=tree, pair=staged)
    # In float32 some of a million rectifiers and maxima turn over, and Adam follows a sign.
    task.network.double()
    hear = task._hear
    monkeypatch.setattr(task, "_hear", lambda x, noise=None: hear(x.double(), noise))
    w = {k: p.detach().clone().requires_grad_() for k, p in task.network.named_parameters()}
    before = {k: p.detach().clone() for k, p in w.items()}
    config = configure(task, {"batch_size": 3, "steps": 3, "every": 3, "calibrate_at": 1})
    found = train(task, tmp_path / "run", config, device=CPU).loss_weights
    photos = [load_face(tree / f"train/id{k}/images/a.png") for k in range(3)]
    with torch.no_grad():
        targets = task.encoder(torch.stack(photos) / 255).double()
    frozen = [
        [p.detach().double().squeeze() for p in layer.parameters()]
        for layer in (task.encoder.fc8, task.decoder.trunk[0][0])
    ]
    expected = papers_loop(waveforms, 48_000, targets, w, *frozen, 3, 1)
    assert list(found.values()) == pytest.approx(expected, rel=1e-3)
    for name, value in task.network.named_parameters():
        torch.testing.assert_close(value, w[name], rtol=0, atol=1e-5, msg=name)
        assert (value - before[name]).abs().max() > 1e-4, name


def test_the_seed_compares_what_two_layers_make_of_it(make, staged, monkeypatch):
    """REPO: get_predifined_layer_activation goes through both, and L1Loss takes the mean."""
    config = dataclasses.replace(STAGED, trunk=(7, 5), batch_norm=True)
    decoder = FaceDecoder(config).eval().requires_grad_(False)
    for norm in (decoder.trunk[0][1], decoder.trunk[1][1]):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(1, 2)
    tiny = dataclasses.replace(PRESETS["conv", "seed"], network=VOICE, front_end=FRONT_END)
    monkeypatch.setitem(PRESETS, ("conv", "seed"), tiny)
    task = make("seed", pair=[staged[0], dataclasses.replace(staged[1], network=decoder)])
    batch = sample_batch(task)
    found = task.losses(batch, augmented=False)

    def features(x):
        for linear, norm, relu in decoder.trunk:
            x = x @ linear.weight.T + linear.bias
            x = relu((x - norm.running_mean) / (norm.running_var + 1e-5).sqrt())
        return x

    voice, face = features(task.predicted), features(batch["embedding"])
    assert voice.shape[1] == 5 and list(found) == [*tiny.losses]
    torch.testing.assert_close(found["decoder/mae"], (voice - face).abs().mean(1))


@needs_transformers
def test_the_head_learns_first(make, tmp_path, pretrained):
    def after(steps):
        """The head, the last layer with what follows it, the rest; and whether the last learns."""
        task = make("paper", VoiceOptions("ast", pretrained, head_steps=3, unfreeze=1))
        config = TrainConfig(steps=7, batch_size=3, schedule="constant", augment=False)
        if steps:
            with pytest.raises(Killed):
                train(task, tmp_path / f"{steps}", config, device=CPU, progress=killing(steps))
        head, last = task.network.head(), task.network.body(1)
        known = {id(p) for p in (*head, *last)}
        rest = [p for p in task.network.parameters() if id(p) not in known]
        groups = {"head": head, "last": last, "rest": rest}
        values = {k: torch.cat([p.detach().flatten() for p in v]) for k, v in groups.items()}
        heard = task._hear(sample_batch(task)["waveform"])
        return values, task.network.ast(heard[:, 0].mT).pooler_output.requires_grad

    before, _ = after(0)
    first, learns = after(3)
    assert not learns  # nothing of the body is kept for a backward
    moved = {k: (first[k] - before[k]).abs().max() for k in first}
    assert moved["head"] > 1e-4 and moved["last"] == moved["rest"] == 0
    second, learns = after(6)
    assert learns
    moved = {k: (second[k] - first[k]).abs().max() for k in first}
    assert moved["head"] > 1e-4 and moved["last"] > 1e-5 and moved["rest"] == 0
    assert moved["last"] < 0.2 * moved["head"]  # a tenth of the rate


@pytest.mark.slow
@BOTH
def test_full_size_encoders_take_a_step(voices, make, tmp_path, options, monkeypatch):
    """Of as little as they can: the weights are many, and each second of sound is work."""
    for k in (1, 2):
        shutil.rmtree(voices / f"val/id{k}")
    usual, least = PRESETS["conv", "seed"], 1  # sample a step; two where BatchNorm has to compare
    if options.arch == "conv":
        short = dataclasses.replace(usual.front_end, clip_samples=48_000)
        monkeypatch.setitem(PRESETS, ("conv", "seed"), dataclasses.replace(usual, front_end=short))
        least = 2
    task, config = make("seed", options), TrainConfig(steps=1, batch_size=least, augment=False)
    result = train(task, tmp_path / "run", config, device=CPU)
    assert all(map(math.isfinite, result.losses.values()))
    size = sum(p.numel() for p in task.network.parameters())
    assert size > (100e6 if options.arch == "conv" else 85e6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_clips_of_random_lengths_are_compiled_a_few_times(make, tmp_path, monkeypatch):
    """Not once a length: the graphs of eight lengths in training, and of whole clips in validation.

    What makes code of the graphs is left out; it needs a compiler.
    """
    counter, compile_ = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda method: compile_(method, backend=counter))
    monkeypatch.setenv("CXX", "none")
    told = []
    for name, compiled in (("plain", False), ("compiled", True)):
        config = TrainConfig(steps=8, batch_size=3, every=4, compile=compiled)
        told.append(train(make(), tmp_path / name, config, device=CPU).losses)
    assert told[1] == pytest.approx(told[0], rel=1e-4)
    assert 2 <= counter.frame_count <= 6


def test_networks_that_stay_as_they_are_are_compiled_and_channels_last_too(
    make, staged, tmp_path, monkeypatch
):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda method: compiled.append(method) or method)
    task = make("paper", pair=staged)
    config = TrainConfig(steps=1, batch_size=3, compile=True)
    train(task, tmp_path / "run", config, device=CPU)
    names = [(method.__self__, method.__name__) for method in compiled]
    assert names == [
        (task.network, "forward"), (task.decoder, "first_layers"), (task.encoder, "logits")
    ]  # fmt: skip
    for network in (task.network, task.encoder, task.decoder):
        for p in network.parameters():
            assert p.ndim != 4 or p.is_contiguous(memory_format=torch.channels_last)
