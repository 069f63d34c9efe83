"""The speaker encoder. Oracles: the package resemblyzer with its own weights, and torch's layers.

resemblyzer wants webrtcvad, which wants a C compiler: of the package only what no voice is detected
with is used, so that `pip install --no-deps resemblyzer` does. Without it these tests are skipped.
"""

import dataclasses
import importlib.util
import math
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from s2f import checkpoint, convert
from s2f.audio import clips, hear
from s2f.checkpoint import Card
from s2f.speaker_encoder import (
    CONFIGS,
    AttributeEncoder,
    AttributeEncoderConfig,
    SpeakerEncoder,
    SpeakerEncoderConfig,
    body_of,
)
from s2f.spectrogram import FRONT_ENDS, spectrogram

SPEECH = Path(__file__).parents[1] / "examples/speech.wav"
DATA = Path(__file__).parents[2] / "shared/data/voices_more"
needs_resemblyzer = pytest.mark.skipif(
    importlib.util.find_spec("resemblyzer") is None,
    reason="resemblyzer is not installed: pip install --no-deps resemblyzer",
)
FRONT_END = FRONT_ENDS["speaker"]


def tiny(**changes: Any) -> SpeakerEncoderConfig:
    return dataclasses.replace(SpeakerEncoderConfig(layers=2, width=12, embedding=6), **changes)


def encoder_of(config: SpeakerEncoderConfig) -> SpeakerEncoder:
    torch.manual_seed(0)
    return SpeakerEncoder(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def resemblyzer() -> Iterator[Any]:
    name = "scipy.ndimage.morphology"  # from where scipy moved away
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "webrtcvad", types.ModuleType("webrtcvad"))
        patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setattr(sys.modules[name], "binary_dilation", None, raising=False)
        yield importlib.import_module("resemblyzer")


@pytest.fixture(scope="module")
def converted(resemblyzer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `s2f convert resemblyzer` makes of the package's own file, read back."""
    path = tmp_path_factory.mktemp("speaker") / "speaker.safetensors"
    convert.convert_resemblyzer(Path(resemblyzer.__file__).with_name("pretrained.pt"), path)
    return checkpoint.load(path, "voice_encoder")


def at_level(waveform: np.ndarray) -> np.ndarray:
    """At -30 dBFS, where Resemblyzer would bring it if it were softer, and leave it."""
    rms = np.sqrt(np.mean(waveform.astype(np.float64) ** 2))
    return (waveform * (10 ** (-30 / 20) / rms)).astype(np.float32)


REAL = sorted(DATA.rglob("*.flac"))[::60]  # some, of three corpora and of telephones
RECORDINGS = [SPEECH, *(pytest.param(p, marks=pytest.mark.data, id=p.stem) for p in REAL)]


@needs_resemblyzer
@pytest.mark.parametrize("recording", RECORDINGS)
def test_real_recordings_get_the_d_vectors_and_the_mel_that_resemblyzer_gives(
    resemblyzer: Any, converted: Any, recording: Path
) -> None:
    theirs = resemblyzer.VoiceEncoder("cpu", verbose=False)
    waveform = at_level(hear(recording).waveform)
    # as it is, shorter than a window, and ends that are filled or left out
    for n in (len(waveform), 12_000, 31_000, 32_000, 45_000):
        cut = at_level(waveform[:n])
        expected, _, slices = theirs.embed_utterance(cut, return_partials=True)
        heard = spectrogram(torch.from_numpy(cut)[None], FRONT_END)
        found = converted.network(heard)[0].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)
        filled = np.pad(cut, (0, max(0, slices[-1].stop - len(cut))))
        mel = resemblyzer.wav_to_mel_spectrogram(filled).T
        frames = min(mel.shape[1], heard.shape[-1])
        assert frames >= slices[-1].stop // 160
        np.testing.assert_allclose(heard[0, 0, :, :frames], mel[:, :frames], atol=1e-5 * mel.max())


@needs_resemblyzer
def test_clips_of_one_recording_are_nearer_than_those_of_another_voice(converted: Any) -> None:
    """What d-vectors are for. The other voice is the same, played a third faster."""
    waveform = hear(SPEECH).waveform
    pieces = [torch.from_numpy(at_level(x)) for x in clips(waveform, len(waveform) // 2)]
    other = functional.interpolate(pieces[0][None, None], scale_factor=0.75)[0, 0]
    rows = [converted.network(spectrogram(x[None], FRONT_END))[0] for x in (*pieces, other)]
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.1


# The network


def test_the_published_encoder_has_the_published_number_of_values() -> None:
    """1,423,618 with the loss's two: counted in the file of the wheel resemblyzer 0.1.4."""
    encoder = encoder_of(CONFIGS["resemblyzer"])
    assert sum(weight.numel() for weight in body_of(encoder).values()) == 1_423_618 - 2


@pytest.mark.parametrize(("frames", "windows"), [(160, 1), (236, 1), (237, 2), (391, 4)])
def test_windows_of_all_recordings_are_embedded_together_and_averaged(
    frames: int, windows: int
) -> None:
    """By hand: each window on its own, its d-vector of length 1, and so the mean's."""
    encoder, heard = encoder_of(tiny()), torch.rand(3, 1, 40, frames)
    each = []
    for k in range(windows):
        state = encoder.lstm(heard[:, 0, :, 77 * k : 77 * k + 160].transpose(1, 2))[1][0][-1]
        each.append(functional.normalize(encoder.linear(state).relu(), dim=1))
    mean = torch.stack(each).mean(0)
    found = encoder.d_vectors(heard)
    torch.testing.assert_close(found, mean / mean.norm(dim=1, keepdim=True))
    assert found.shape == (3, 12) and (found >= 0).all()
    torch.testing.assert_close(encoder.features(heard).square().mean(1), torch.ones(3))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(encoder.d_vectors(heard), found)


def test_the_head_is_linear_or_has_a_hidden_layer_whose_chances_decide() -> None:
    features, chances = torch.randn(3, 12), torch.rand(3, 5)
    linear = encoder_of(tiny(final_relu=True))
    torch.testing.assert_close(linear.from_features(features), linear.embedding(features).relu())
    small = encoder_of(tiny(hidden=5, dropout=0.25))
    assert small.hidden is not None
    hidden = small.hidden(features).relu()
    torch.testing.assert_close(small.from_features(features), small.embedding(hidden))
    dropped = hidden * (chances >= 0.25) / 0.75
    wanted = small.embedding(dropped)
    torch.testing.assert_close(small.from_features(features, chances), wanted)
    with pytest.raises(ValueError, match="159 frames are too few: this encoder needs 160"):
        small(torch.zeros(1, 1, 40, 159))
    for wrong in ({"hidden": -1}, {"width": 0}, {"dropout": 0.5}, {"hidden": 4, "dropout": 1.0}):
        with pytest.raises(ValueError, match=r"want 1 or more|dropout is"):
            tiny(**wrong)


def test_silence_gives_an_embedding_all_the_same() -> None:
    heard = spectrogram(torch.zeros(2, 30_000), FRONT_END)
    found = encoder_of(tiny())(heard)
    assert found.isfinite().all() and torch.equal(found[0], found[1])


@pytest.mark.parametrize("hidden", [0, 5])
def test_a_checkpoint_gives_the_same_embeddings(tmp_path: Path, hidden: int) -> None:
    encoder, heard = encoder_of(tiny(hidden=hidden)), torch.rand(2, 1, 40, 240)
    path = tmp_path / "voice_encoder.safetensors"
    checkpoint.save(path, encoder, card=Card("a"), embedding_space="b", front_end=FRONT_END)
    assert checkpoint.verify(path).embedding == 6
    back = checkpoint.load(path, "voice_encoder")
    assert (back.network.config, back.front_end) == (encoder.config, FRONT_END)
    assert torch.equal(back.network(heard), encoder(heard))
    half = tmp_path / "half.safetensors"
    how: Any = {"card": Card("a"), "embedding_space": "b", "front_end": FRONT_END}
    checkpoint.save(half, encoder, storage=torch.float16, **how)
    near = checkpoint.load(half, "voice_encoder").network(heard)
    torch.testing.assert_close(near, encoder(heard), atol=0.01, rtol=0.01)


def attribute_encoder(**changes: Any) -> AttributeEncoder:
    torch.manual_seed(0)
    config = AttributeEncoderConfig(layers=2, width=12, timbre=3, hidden=7, embedding=6)
    made = AttributeEncoder(dataclasses.replace(config, **changes))
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("make", [lambda: encoder_of(tiny(hidden=5)), lambda: attribute_encoder()])
def test_one_stored_in_half_precision_calculates_in_single_under_autocast(
    tmp_path: Path, make: Callable[[], SpeakerEncoder | AttributeEncoder]
) -> None:
    """As on a CUDA device, where files stored so are run: within what 11 bits of a weight tell."""
    path, encoder, heard = tmp_path / "e", make(), torch.rand(2, 1, 40, 240)
    how: Any = {"card": Card("a"), "embedding_space": "b", "front_end": FRONT_END}
    checkpoint.save(path, encoder, storage=torch.float16, **how)
    back: Any = checkpoint.load(path, "voice_encoder", keep_half=True).network
    features = encoder.features(heard)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.inference_mode(), torch.autocast("cpu", dtype):
            found = back.features(heard)
            embedding = back.from_features(found)
        torch.testing.assert_close(found, features, atol=0.01, rtol=0.01)
        assert found.dtype == torch.float32
        near = encoder.from_features(features)
        torch.testing.assert_close(embedding.float(), near, atol=0.05, rtol=0.05)


def test_an_encoder_by_attributes_hears_as_the_speaker_encoder_it_began_with() -> None:
    """Of one window, its features begin with what the ReLU and the length make a d-vector of."""
    speaker = encoder_of(tiny())
    network = attribute_encoder(frames=160)
    network.load_state_dict(network.state_dict() | body_of(speaker))
    heard = torch.rand(3, 1, 40, 160, generator=torch.Generator().manual_seed(0))
    features = network.features(heard)
    assert features.shape == (3, 24)
    found = functional.normalize(features[:, :12].relu(), dim=1)
    torch.testing.assert_close(found, speaker.d_vectors(heard))
    states = speaker.lstm(heard[:, 0].mT)[0].mean(1)
    torch.testing.assert_close(features[:, 12:], states)


def test_an_encoder_by_attributes_averages_its_windows_and_leaves_out_what_is_between() -> None:
    network = attribute_encoder(frames=50, step=80)
    heard = torch.rand(1, 1, 40, 200, generator=torch.Generator().manual_seed(0))
    windows = torch.cat([heard[..., at : at + 50] for at in (0, 80)])
    expected = network.features(windows).mean(0, keepdim=True)
    torch.testing.assert_close(network.features(heard), expected)
    heard[..., 50:80] = heard[..., 130:] = 9
    torch.testing.assert_close(network.features(heard), expected)
    with pytest.raises(ValueError, match="49 frames are too few"):
        network.features(heard[..., :49])


def test_where_a_voice_does_not_decide_the_face_lies_between() -> None:
    network = attribute_encoder()
    pitch, timbre = torch.full((3,), 5.0), torch.ones(3, 3)
    woman, between, man = network.faces(torch.tensor([0.0, 0.5, 1.0]), pitch, timbre)
    torch.testing.assert_close(between, (woman + man) / 2)
    assert (woman - man).abs().max() > 1e-3


def test_a_child_is_neither_a_woman_nor_a_man() -> None:
    network = attribute_encoder()
    network.said.weight.zero_()
    for logits, male in (((9, -9, -9), 0), ((-9, 9, -9), 1), ((-9, -9, 9), 0.5), ((2, 2, -9), 0.5)):
        network.said.bias.copy_(torch.tensor([*logits, 3.0, math.log(200), 0, 0, 0]))
        (said,) = network.attributes(torch.zeros(1, 24)).tolist()
        expected = [male, 1 / (1 + math.exp(-3)), 200]  # the logistic function of 3, and Hz
        assert said == pytest.approx(expected, abs=1e-4, rel=1e-4)


def test_the_face_follows_the_rank_of_the_pitch_within_the_sex() -> None:
    """Two voices each as many deviations from the mean of theirs in one deviation or another."""
    network = attribute_encoder()
    male, timbre = torch.tensor([0.0, 0.0]), torch.zeros(2, 3)
    low = network.faces(male, network.pitch[0, 0] - network.pitch[0, 1] * torch.ones(2), timbre)
    network.pitch.copy_(torch.tensor([[6.0, 0.5], [4.0, 0.1]]))
    again = network.faces(male, torch.full((2,), 5.5), timbre)
    torch.testing.assert_close(low, again)


@pytest.mark.parametrize("changes", [{"timbre": 0}, {"hidden": 0}, {"frames": 0}, {"step": 0}])
def test_an_encoder_by_attributes_wants_sizes(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="sizes of 1 or more"):
        AttributeEncoderConfig(**changes)


def test_a_checkpoint_brings_an_encoder_by_attributes_back(tmp_path: Path) -> None:
    network, path = attribute_encoder(), tmp_path / "voice.safetensors"
    space = {"embedding_space": "made", "front_end": FRONT_END}
    checkpoint.save(path, network, card=Card("made"), storage=torch.float16, **space)
    loaded = checkpoint.load(path, "voice_encoder").network
    assert isinstance(loaded, AttributeEncoder) and loaded.config == network.config
    features = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))
    for say in ("attributes", "from_features"):
        found, expected = (getattr(net, say)(features) for net in (loaded, network))
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
