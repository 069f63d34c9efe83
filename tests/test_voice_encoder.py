"""The voice encoder. Sizes: the layers of Oh et al. 2019 and a public count."""

import dataclasses

import pytest
import torch

from s2f.spectrogram import FRONT_ENDS
from s2f.voice_encoder import CONFIGS, VoiceEncoder, VoiceEncoderConfig


def tiny(**changes: object) -> VoiceEncoderConfig:
    sizes = {"channels": (2, 2, 4, 4, 4, 8, 16, 16, 16), "hidden": 32, "embedding": 24}
    return dataclasses.replace(CONFIGS["paper"], **sizes | changes)


def test_the_papers_encoder_has_the_papers_number_of_parameters():
    # A public Keras copy of the paper reports 148,067,584 with BatchNorm's running statistics.
    with torch.device("meta"):
        encoder = VoiceEncoder(CONFIGS["paper"])
    trained = sum(p.numel() for p in encoder.parameters())
    running = sum(b.numel() for name, b in encoder.named_buffers() if "running" in name)
    assert trained == 148_062_976  # 148.1 M
    assert trained + running == 148_067_584
    assert CONFIGS["paper"].out_freqs == 57  # 57 * 512 = 29184 into the first linear layer
    names = [type(layer).__name__ for layer in encoder.convs[2]]
    assert names == ["Conv2d", "ReLU", "BatchNorm2d", "MaxPool2d"]


@pytest.mark.parametrize("final_relu", [False, True])
def test_any_length_from_the_shortest_gives_one_embedding(final_relu):
    encoder = VoiceEncoder(tiny(final_relu=final_relu)).eval()
    for frames in (259, 598, 601):
        embedding = encoder(torch.randn(4, 2, 257, frames))
        assert embedding.shape == (4, 24)
        assert bool((embedding < 0).any()) is not final_relu
    with pytest.raises(ValueError, match="258 frames are too few: this encoder needs 259"):
        encoder(torch.randn(1, 2, 257, 258))


def test_chances_decide_what_is_dropped_out():
    torch.manual_seed(0)
    encoder = VoiceEncoder(tiny(dropout=0.25))
    features, chances = torch.randn(3, encoder.hidden.in_features), torch.rand(3, 32)
    hidden = encoder.hidden(features).relu() * (chances >= 0.25) / 0.75
    wanted = encoder.embedding(hidden)
    torch.testing.assert_close(encoder.from_features(features, chances), wanted)
    assert not torch.allclose(encoder.from_features(features), wanted)  # torch's own generator


def test_presets_fit_their_front_ends_and_an_impossible_config_is_refused():
    for config, front_end in (("paper", "paper"), ("compact", "ast")):
        encoder, heard = CONFIGS[config], FRONT_ENDS[front_end]
        assert (encoder.in_channels, encoder.n_freqs) == (heard.n_channels, heard.n_freqs)
    with pytest.raises(ValueError, match=r"one value a convolution: \[9, 2, 9\]"):
        tiny(strides=(1, 1))
    with pytest.raises(ValueError, match="20 frequencies are too few"):
        tiny(n_freqs=20)
