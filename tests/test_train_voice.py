"""The voice encoder: presets, options, plans and the task. Recipes: FACTS.md, sections 1 and 2."""

import dataclasses
import math
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import DECODER, ENCODER, STAGED, VOICE
from line_task import Killed, assert_same_run, killing
from PIL import Image
from published_files import SHORT_AST, hugging_face_ast, needs_transformers
from task_checks import CPU, check_duplicates, check_gradients, check_learning, sample_batch
from torch.nn import functional

from s2f import checkpoint, embeddings, layout
from s2f.ast_encoder import ASTEncoder
from s2f.checkpoint import Card
from s2f.dataloader import Key
from s2f.errors import CheckpointError, DatasetError, UsageError
from s2f.face_decoder import FaceDecoder, draw_faces
from s2f.face_encoder import VGGFace
from s2f.images import PREPROCESSING, Preprocessing, load_face
from s2f.pack import pack_tree, read_index
from s2f.spectrogram import FRONT_ENDS, RunningMoments, spectrogram, write_stats
from s2f.train import TrainConfig, train
from s2f.train_voice import NOTHING_ELSE, PRESETS, VoiceEncoderTask, VoiceOptions, plan_voice

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
    ],
)
def test_what_contradicts_itself_is_refused(preset, options, part):
    with pytest.raises(UsageError, match=part) as caught:
        made(preset, options)
    assert caught.value.hint
    assert made("compact", VoiceOptions(head_steps=0)).groups[0].start == 0  # as it is anyway


def test_the_presets_are_the_published_recipes():
    paper = dict(PRESETS["conv", "paper"].training)
    assert PRESETS["conv", "seed"].training == {**paper, "schedule": "constant", "batch_size": 4}
    optimizer = [paper.pop(name) for name in ("optimizer", "betas", "eps", "weight_decay")]
    assert optimizer == ["adam", (0.5, 0.999), 1e-4, 0.0]
    assert paper == {"lr": 1e-3, "schedule": "paper", "batch_size": 8}


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
        assert recipe.shortest is None and found.settings == {"arch": "ast"}
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
    options = VoiceOptions("ast", pretrained, head_steps=7, unfreeze=last)
    found = plan_voice("paper", options, embedding=8)
    head, *body = found.groups
    assert [id(p) for p in head.parameters] == [id(p) for p in found.network.head()]
    assert (head.start, head.lr) == (0, 1.0)
    assert [(group.start, group.lr) for group in body] == ([] if last == 0 else [(7, 0.1)])
    wanted = {id(p) for p in found.network.body(2 if last is None else last)}
    assert {id(p) for group in body for p in group.parameters} == wanted
    assert found.settings["head_steps"] == 7 and found.settings["unfreeze"] == last
    with pytest.raises(UsageError, match=r"--unfreeze 3: .* has 2 transformer layers"):
        plan_voice("paper", dataclasses.replace(options, unfreeze=3), embedding=8)


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
        assert found.recipe.augment == usual and found.settings == {} and found.notes == []
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
    assert chosen.recipe.shortest == least and chosen.settings == {"min_seconds": least / 16_000}
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
        options = options or VoiceOptions(**more)
        return VoiceEncoderTask(data, preset, *pair, Card("tiny"), device=CPU, options=options)

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
    for augmented in (True, False):
        a, b = (task.losses(batch, augmented=augmented)["embedding/l2"] for _ in range(2))
        assert torch.equal(a, b) != augmented


def test_networks_that_do_not_fit_and_one_identity_are_refused(voices, models, make):
    with pytest.raises(CheckpointError, match="different embedding spaces"):
        make(pair=networks(models, "other"))
    encoder, decoder = networks(models)
    config = dataclasses.replace(DECODER, embedding=9, trunk=(18,))
    decoder = dataclasses.replace(decoder, network=FaceDecoder(config))
    with pytest.raises(CheckpointError, match=r"draws from embeddings of 9 values; .* gives 8"):
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
    [("calibrated", (4, 5)), pytest.param("two stages", (3, 5), marks=needs_transformers)],
)
def test_a_run_killed_around_a_change_ends_as_ever(make, staged, tmp_path, kind, stops, request):
    options, calibrate_at = VoiceOptions(loss_weights="auto", contrastive=0.5), 4
    if kind == "two stages":
        pretrained, calibrate_at = request.getfixturevalue("pretrained"), None
        options = VoiceOptions("ast", pretrained, head_steps=3, unfreeze=1)
    config = TrainConfig(steps=7, batch_size=3, every=2, calibrate_at=calibrate_at)
    notes = []

    def run(name, stop):
        task, told = make("paper", options, pair=staged), {"note": notes.append}
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
    assert set(plain) == {"preset", "recordings", "face_encoder", "face_decoder"}
    assert make("paper").settings == {**plain, "preset": "paper"}
    chosen = make(**options, min_seconds=0.5)
    assert (chosen.train_data.pairs.choices == 1).all()
    assert chosen.settings == {**plain, **options, "min_seconds": 0.5}
    for share, n in ((0.0, 8_000), (1.0, 16_000)):
        batch = {k: v[None] for k, v in chosen.train_data[Key(0, 0, share)].items()}
        assert batch["waveform"].shape == (1, n) and chosen.losses(batch, augmented=True)
    packed = make(data=pack_of).settings
    assert packed["train_pack"] == read_index(pack_of / "train").sha256
    assert packed["val_pack"] == read_index(pack_of / "val").sha256


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
    assert task.finish(lambda k: iter([batch]))
    assert not torch.equal(task.network.embedding.weight, before)


def test_under_bfloat16_losses_are_single_and_near(make, staged):
    task = make("paper", loss_weights="seed-ast", pair=staged)
    first = {"decoder/l1": 50 / 64}  # the tiny decoder's first layer is 64 wide
    assert task.loss_weights == {**first, "embedding/l2": 30.0, "encoder/distill": 2.0}
    check_gradients(task, [task.encoder, task.decoder])
    task.network.eval()
    batch = sample_batch(task)
    expected = task.losses(batch, augmented=False)
    with torch.autocast("cpu", torch.bfloat16):
        found = task.losses(batch, augmented=False)
        heard = task._hear(batch["waveform"], augmented=False)
    assert task.predicted.dtype == torch.float32 and len(found) == 3
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


def test_a_step_is_one_that_is_written_by_hand(voices, make, staged, tmp_path):
    task = make("paper", loss_weights="decoder/l1=0.5,embedding/l2=2", pair=staged)
    w = {name: p.detach().clone() for name, p in task.network.named_parameters()}
    config = TrainConfig(**{**task.defaults, "lr": 5e-4, "batch_size": 3}, steps=1, clip=1e9)
    assert not config.augment and not task.finish(lambda k: iter([sample_batch(task)]))
    train(task, tmp_path / "run", config, device=CPU)

    p = {name: value.double().requires_grad_() for name, value in w.items()}
    waveforms = [np.load(voices / f"train/id{k}/audios/a.npy") for k in range(3)]
    x = spectrogram(torch.from_numpy(np.stack(waveforms)), task.front_end).double()
    photos = [load_face(voices / f"train/id{k}/images/a.jpg") for k in range(3)]
    with torch.no_grad():
        target = task.encoder(torch.stack(photos) / 255).double()

    def normalised(x, *dims):
        variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt()

    # Conv, ReLU, BatchNorm, pool; conv, pool, mean over time, ReLU, BatchNorm; two linear layers.
    x = functional.conv2d(x, p["convs.0.0.weight"], p["convs.0.0.bias"], stride=2).relu()
    x = normalised(x, 0, 2, 3) * p["convs.0.2.weight"].view(1, -1, 1, 1)
    x = functional.max_pool2d(x + p["convs.0.2.bias"].view(1, -1, 1, 1), (4, 2))
    x = functional.conv2d(x, p["convs.1.0.weight"], p["convs.1.0.bias"], stride=2)
    x = functional.max_pool2d(x, (2, 2)).mean(3).relu()  # [b c f]
    x = normalised(x, 0, 2) * p["norm.weight"][:, None] + p["norm.bias"][:, None]
    x = (x.flatten(1) @ p["hidden.weight"].T + p["hidden.bias"]).relu()
    x = x @ p["embedding.weight"].T + p["embedding.bias"]
    weight, bias = (value.double() for value in task.decoder.trunk[0][0].parameters())
    decoded = [(e @ weight.T + bias).relu() for e in (x, target)]
    l1 = (decoded[0] - decoded[1]).abs().sum(1)
    unit = [e / e.norm(dim=1, keepdim=True) for e in (x, target)]
    l2 = (unit[0] - unit[1]).square().sum(1)
    (0.5 * l1 + 2 * l2).mean().backward()
    for name, value in task.network.named_parameters():
        gradient = p[name].grad
        assert gradient is not None
        # Adam's first step, in which both corrections cancel the betas.
        expected = w[name] - 5e-4 * gradient / (gradient.abs() + 1e-4)
        torch.testing.assert_close(value, expected.float(), rtol=0, atol=1e-6, msg=name)
        assert not torch.equal(value, w[name])


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
        heard = task._hear(sample_batch(task)["waveform"], augmented=False)
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
def test_full_size_encoders_take_a_step(voices, make, tmp_path, options):
    for k in (1, 2):
        shutil.rmtree(voices / f"val/id{k}")
    task, config = make("seed", options), TrainConfig(steps=1, batch_size=2, augment=False)
    result = train(task, tmp_path / "run", config, device=CPU)
    assert all(map(math.isfinite, result.losses.values()))
    size = sum(p.numel() for p in task.network.parameters())
    assert size > (100e6 if options.arch == "conv" else 85e6)
