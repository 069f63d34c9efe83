"""The published networks in NumPy. Oracles: torch's layers, and einsum over windows."""

import math

import numpy as np
import published_files as files
import pytest
import torch
from published_files import needs_transformers

from s2f import ast_encoder, convert


def arrays(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def assert_equal(found: np.ndarray, expected: torch.Tensor | np.ndarray) -> None:
    expected = torch.as_tensor(expected)
    assert expected.abs().max() > 0
    torch.testing.assert_close(torch.as_tensor(found), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("origin", ["serengil", "rcmalli"])
def test_vgg_face_in_keras_layout_is_einsum_over_windows(origin: str) -> None:
    weights = files.keras_weights(origin)
    images = np.random.default_rng(1).uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32)
    found = convert.vgg(weights, images)
    expected = files.run_keras(weights, images)
    assert_equal(found["features"], expected["features"])
    for tap in ("embedding", "logits"):
        assert_equal(found[tap], expected[tap].reshape(2, -1))


def test_the_seeds_vgg_face_is_its_module() -> None:
    module = files.randomise(files.SeedVGG("serengil"))
    faces = torch.rand(1, 3, 224, 224)
    state = arrays(module)
    names = [*(f"layer{n}.1" for n in range(1, 14)), "layer14.0", "layer15.0", "layer16.1"]
    layers = [(convert.keras_layout(state[f"{n}.weight"]), state[f"{n}.bias"]) for n in names]
    found = convert.vgg(layers, faces.permute(0, 2, 3, 1).numpy())
    assert_equal(found["embedding"], module(faces).detach())


def test_the_seeds_decoder_is_its_module() -> None:
    module = files.randomise(files.SeedDecoder())
    embedding = torch.rand(3, files.EMBEDDING)
    landmarks, texture = (tensor.detach() for tensor in module(embedding))
    found = convert.numpy_face_decoder(arrays(module), embedding.numpy())
    assert_equal(found["landmarks"], landmarks)
    assert_equal(found["texture"], texture.permute(0, 2, 3, 1))


@pytest.mark.parametrize("frames", [259, 280])
def test_the_seeds_voice_encoder_is_its_module(frames: int) -> None:
    module = files.randomise(files.SeedVoice())
    heard = torch.randn(1, 2, 257, frames)
    found = convert.numpy_voice_encoder(arrays(module), heard.permute(0, 2, 3, 1).numpy())
    assert_equal(found["embedding"], module(heard).detach())


@needs_transformers
def test_the_seeds_ast_is_transformers() -> None:
    module = files.randomise(files.seed_ast())
    heard = torch.randn(2, 1024, 128)
    named = {ast_encoder.published_name(name): array for name, array in arrays(module).items()}
    found = convert.numpy_ast_encoder(
        named, heard.numpy(), heads=files.AST.heads, stride=10, eps=1e-12
    )
    assert_equal(found["embedding"], module(heard).logits.detach())


def test_errors_are_relative_to_the_largest_value_of_a_tap() -> None:
    expected = {"a": np.array([[4.0, -8.0]]), "b": np.array([1.0])}
    found = {"a": np.array([[4.0, -8.8]]), "b": np.array([1.0])}
    assert convert.compare_taps(expected, found) == pytest.approx({"a": 0.1, "b": 0.0})


@pytest.mark.parametrize(
    ("expected", "found"),
    [([0.0, 0.0], [0.0, 0.0]), ([1.0, math.nan], [1.0, 1.0]), ([1.0], [math.nan]), ([1.0], [1, 1])],
)
def test_a_tap_that_proves_nothing_has_an_infinite_error(
    expected: list[float], found: list[float]
) -> None:
    errors = convert.compare_taps({"a": np.array(expected)}, {"a": np.array(found)})
    assert errors == {"a": math.inf}
