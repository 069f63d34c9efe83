"""The tables of published weights: complete, exact, and each layout trap closed."""

import dataclasses
from collections.abc import Callable

import numpy as np
import published_files as files
import pytest
import torch
from published_files import needs_transformers
from torch import Tensor, nn

from s2f import ast_encoder, convert
from s2f.convert import VGG16_LAYERS, fill
from s2f.errors import CheckpointError
from s2f.face_decoder import FaceDecoder
from s2f.face_encoder import VGGFace
from s2f.images import PREPROCESSING
from s2f.voice_encoder import VoiceEncoder

SEED = PREPROCESSING["seed"]


def vgg() -> VGGFace:
    return VGGFace(files.VGG, SEED)


def foreign(table: convert.WeightTable, module: nn.Module) -> dict[str, Tensor]:
    assert table.keys() == module.state_dict().keys()
    return module.state_dict()


def keras_tensors(origin: str) -> dict[str, Tensor]:
    tensors = {}
    for name, (kernel, bias) in zip(VGG16_LAYERS, files.keras_weights(origin), strict=True):
        tensors |= {f"{name}/kernel": torch.tensor(kernel), f"{name}/bias": torch.tensor(bias)}
    return tensors


@pytest.mark.parametrize("origin", ["serengil", "rcmalli"])
def test_a_keras_table_names_each_of_our_tensors_once(origin: str) -> None:
    table = convert.keras_vgg(origin, VGG16_LAYERS, files.VGG)
    ours = [name for name, _ in table.values()]
    assert sorted(ours) == sorted(vgg().state_dict())
    assert table.keys() == keras_tensors(origin).keys()


@pytest.mark.parametrize("origin", ["serengil", "rcmalli"])
def test_the_table_of_a_seeds_vgg_face_has_its_modules_names(origin: str) -> None:
    table = convert.torch_vgg(origin, files.VGG)
    assert table.keys() == files.SeedVGG(origin).state_dict().keys()
    assert sorted(ours for ours, _ in table.values()) == sorted(vgg().state_dict())


def test_the_table_of_the_decoder_names_all_but_the_mean_shape() -> None:
    network = FaceDecoder(files.DECODER)
    table = convert.face_decoder_table(network)
    assert table.keys() == files.SeedDecoder().state_dict().keys()
    ours = {ours for ours, _ in table.values()}
    assert ours == network.state_dict().keys() - {"mean_landmarks"}
    assert len(ours) == len(table)


def test_the_table_of_the_voice_encoder_names_all() -> None:
    table = convert.voice_encoder_table()
    assert table.keys() == files.SeedVoice().state_dict().keys()
    ours = [ours for ours, _ in table.values()]
    assert sorted(ours) == sorted(VoiceEncoder(files.VOICE).state_dict())


@needs_transformers
def test_the_table_of_ast_takes_names_of_any_transformers() -> None:
    network = ast_encoder.ASTEncoder(files.AST)
    installed = files.seed_ast().state_dict().keys()
    published = {ast_encoder.published_name(name) for name in installed}
    for names in (installed, published):
        table = convert.ast_encoder_table(network, names)
        assert table.keys() == names
        assert {ours for ours, _ in table.values()} == network.state_dict().keys()


def test_a_dense_kernel_after_flatten_reads_height_width_channels() -> None:
    kernel = torch.randn(2 * 2 * 3, 5)
    features = torch.randn(1, 3, 2, 2)
    conv = convert.dense_map_conv(2)(kernel)
    expected = features.permute(0, 2, 3, 1).flatten(1) @ kernel
    torch.testing.assert_close(nn.functional.conv2d(features, conv).flatten(1), expected)


def test_a_scrambled_linear_is_put_right() -> None:
    weight = torch.randn(5, 2 * 2 * 3)
    features = torch.randn(1, 3, 2, 2)
    conv = convert.scrambled_map_conv(2)(weight)
    found = nn.functional.conv2d(features, conv).flatten(1)
    right = nn.functional.linear(features.permute(0, 2, 3, 1).flatten(1), weight)
    wrong = nn.functional.linear(features.flatten(1), weight)
    torch.testing.assert_close(found, right)
    assert not torch.allclose(found, wrong, atol=0.1)


@pytest.mark.parametrize(
    ("origin", "order", "expected"),
    [
        ("serengil", files.AUTOMATIC, files.AUTOMATIC),
        ("rcmalli", files.NAMES, files.NAMES),
        ("rcmalli", files.NAMES[::-1], files.NAMES),  # names decide, where there are any
        ("rcmalli", files.AUTOMATIC, files.AUTOMATIC),
        ("serengil", files.AUTOMATIC[:5], VGG16_LAYERS),  # `fill` says what is missing
    ],
)
def test_layers_go_by_name_or_by_order(
    origin: str, order: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert convert.keras_layers(origin, order) == expected


Change = Callable[[dict[str, Tensor]], object]
CHANGES: dict[str, tuple[Change, str]] = {
    "missing": (lambda t: t.pop("conv3_2/bias"), "it lacks conv3_2/bias"),
    "extra": (lambda t: t.update({"fc9/bias": torch.ones(1)}), "holds fc9/bias beside them"),
    "wider": (
        lambda t: t.update({"fc7/kernel": torch.ones(1, 1, 24, 21)}),
        r"fc7/kernel is torch.float32 \(1, 1, 24, 21\); it cannot become fc7.weight, which is "
        r"torch.float32 \(20, 24, 1, 1\)",
    ),
    "flat": (lambda t: t.update({"fc7/kernel": torch.ones(480)}), r"fc7/kernel is .*\(480,\)"),
    "whole numbers": (
        lambda t: t.update({"fc8/bias": torch.ones(13, dtype=torch.int64)}),
        "fc8/bias is torch.int64",
    ),
    "nan": (lambda t: t["conv1_1/kernel"].view(-1)[7:8].fill_(np.nan), "conv1_1/kernel holds"),
    "infinite": (lambda t: t["fc6/bias"][3:4].fill_(-np.inf), "fc6/bias holds values that"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_refused_by_name(change: str) -> None:
    tensors = keras_tensors("serengil")
    CHANGES[change][0](tensors)
    table = convert.keras_vgg("serengil", VGG16_LAYERS, files.VGG)
    with pytest.raises(CheckpointError, match=CHANGES[change][1]) as caught:
        fill(vgg(), table, tensors, "some.h5")
    assert caught.value.message.startswith("some.h5: ")
    assert caught.value.hint


@pytest.mark.parametrize("origin", ["serengil", "rcmalli"])
def test_the_layers_of_one_vgg_face_do_not_fill_the_other(origin: str) -> None:
    other = "rcmalli" if origin == "serengil" else "serengil"
    table = convert.keras_vgg(origin, VGG16_LAYERS, files.VGG)
    with pytest.raises(CheckpointError, match="fc6/kernel is"):
        fill(vgg(), table, keras_tensors(other), "some.h5")


def test_a_filled_network_is_contiguous_and_off_meta() -> None:
    with torch.device("meta"):
        network = vgg()
    table = convert.keras_vgg("rcmalli", VGG16_LAYERS, files.VGG)
    fill(network, table, keras_tensors("rcmalli"), "some.h5")
    assert all(t.is_contiguous() and not t.is_meta for t in network.state_dict().values())


def test_a_network_without_batch_norm_has_our_names() -> None:
    config = dataclasses.replace(files.VGG, identities=3)
    assert set(convert._vgg(config)) == {
        name.rpartition(".")[0] for name in VGGFace(config, SEED).state_dict()
    }
