"""The face encoder; sizes are those of the published VGG-Face weights (2622 identities)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from s2f.face_encoder import CONFIGS, VGGFace, VGGFaceConfig, WinogradConv2d, batch_embedder
from s2f.images import PREPROCESSING

TINY = VGGFaceConfig(layers=(4, "M", 8, "M"), image_size=16, hidden=12, embedding=10, identities=7)


def test_vgg_face_has_145_002_878_parameters_and_the_papers_shapes():
    with torch.device("meta"):
        network = VGGFace(CONFIGS["paper"], PREPROCESSING["serengil"])
        assert sum(p.numel() for p in network.parameters()) == 145_002_878
        with pytest.raises(ValueError, match="cannot be halved 5 times"):
            VGGFaceConfig(image_size=100)
        faces = torch.empty(2, 3, 224, 224)
        assert network.features(faces).shape == (2, 512, 7, 7)
        embedding = network(faces)
        assert embedding.shape == (2, 4096)
        assert network.logits(embedding).shape == (2, 2622)


def test_the_network_is_written_out_vgg():
    # Oracle: the same layers, called one by one.
    network = VGGFace(TINY, PREPROCESSING["seed"])
    faces = torch.rand(3, 3, 16, 16)
    x = faces
    for conv in (network.convs[0], network.convs[3]):
        x = functional.max_pool2d(conv(x).relu(), 2)
    x = functional.linear(x.flatten(1), network.fc6.weight.flatten(1), network.fc6.bias).relu()
    x = functional.linear(x, network.fc7.weight.flatten(1), network.fc7.bias).relu()
    torch.testing.assert_close(network(faces), x)
    logits = functional.linear(x, network.fc8.weight.flatten(1), network.fc8.bias)
    torch.testing.assert_close(network.logits(x), logits)
    before = network(faces).detach()
    network.to(memory_format=torch.channels_last)  # in which the weights lie in another order
    assert not network.fc6.weight.is_contiguous()
    torch.testing.assert_close(network(faces), before)


def test_rcmalli_weights_get_bgr_of_0_to_255_less_the_mean():
    # Figures: keras-vggface, preprocess_input version 1.
    network = VGGFace(TINY, PREPROCESSING["rcmalli"])
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    seen = network.preprocess(red)[0, :, 0, 0]
    torch.testing.assert_close(seen, torch.tensor([-93.5940, -104.7624, 255 - 129.1863]))


LARGER = VGGFaceConfig(layers=(128, 160, "M", 12, "M"), image_size=16, hidden=12, embedding=10)
NORMED = VGGFaceConfig((8, "M", 136, "M"), 112, 256, 256, 0, final_relu=False, batch_norm=True)


@pytest.fixture(params=[(TINY, "rcmalli"), (LARGER, "seed"), (NORMED, "paper")])
def network(request: pytest.FixtureRequest) -> VGGFace:
    """Random networks: without and with Winograd's convolutions, and with BatchNorm, no ReLU."""
    torch.manual_seed(0)
    config, preprocessing = request.param
    network = VGGFace(config, PREPROCESSING[preprocessing]).requires_grad_(False)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def test_batches_are_embedded_as_one_by_one_whatever_shares_them(network):
    faces = torch.rand(5, 3, *2 * (2 * network.config.image_size,))
    expected = torch.cat([network(face) for face in faces.split(1)])
    embed = batch_embedder(network, device=torch.device("cpu"), batch_size=8)
    error = (embed(faces) - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 1e-5
    whole = embed(faces)
    for chosen in ([3], [4, 0], [3, 2, 1]):
        assert torch.equal(embed(faces[chosen]), whole[chosen])


@settings(max_examples=30)
@given(
    shape=st.tuples(*[st.integers(1, 3)] * 2),
    channels=st.tuples(*[st.integers(1, 9)] * 2),
    batch=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_is_a_convolution_of_any_size(shape, channels, batch, bias, seed):
    torch.manual_seed(seed)
    conv = nn.Conv2d(*channels, 3, padding=1, bias=bias).double()
    x = torch.randn(batch, channels[0], 4 * shape[0], 4 * shape[1], dtype=torch.float64)
    torch.testing.assert_close(WinogradConv2d(conv)(x), conv(x).detach(), rtol=0, atol=1e-12)


def test_in_float32_the_error_is_some_2e_6_of_the_norm():
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 64, 3, padding=1)
    x = torch.randn(1, 256, 28, 28).relu()
    exact = functional.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)  # type: ignore[union-attr]
    error = (WinogradConv2d(conv)(x) - exact).norm() / exact.norm()
    assert 1e-7 < error < 4e-6
