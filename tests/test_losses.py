"""The losses: hand numbers, what must not change them, and where gradients go."""

import math

import pytest
import torch

from s2f import losses

PAIRS = {
    "decoder_l1": (6,),
    "embedding_l2": (6,),
    "embedding_mse": (6,),
    "encoder_distill": (6,),
    "landmarks_mse": (4, 2),
    "landmarks_huber": (4, 2),
    "texture_mae": (3, 5, 5),
    "identity_cosine": (6,),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_sample_counts_the_same_alone_and_in_a_batch(name: str) -> None:
    loss = getattr(losses, name)
    a, b = torch.rand(3, *PAIRS[name]), torch.rand(3, *PAIRS[name])
    alone = torch.cat([loss(a[i : i + 1], b[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(loss(a, b), alone)
    assert loss(a, b).shape == (3,)


@pytest.mark.parametrize("name", PAIRS)
def test_duplicating_the_batch_changes_no_total(name: str) -> None:
    loss = getattr(losses, name)
    a, b = torch.rand(3, *PAIRS[name]), torch.rand(3, *PAIRS[name])
    once = losses.total({name: loss(a, b)}, {name: 2.0})
    twice = losses.total({name: loss(torch.cat([a, a]), torch.cat([b, b]))}, {name: 2.0})
    torch.testing.assert_close(once, twice)


@pytest.mark.parametrize("name", sorted(set(PAIRS) - {"encoder_distill"}))
def test_equal_tensors_lose_nothing(name: str) -> None:
    a = torch.rand(2, *PAIRS[name]) + 0.1
    value = getattr(losses, name)(a, a)
    torch.testing.assert_close(value, torch.zeros(2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", PAIRS)
def test_the_prediction_gets_a_gradient(name: str) -> None:
    a = torch.rand(2, *PAIRS[name], requires_grad=True)
    getattr(losses, name)(a, torch.rand(2, *PAIRS[name])).sum().backward()
    assert a.grad is not None and a.grad.abs().sum() > 0


def test_the_l1_is_summed_over_the_layer() -> None:
    value = losses.decoder_l1(torch.tensor([[1.0, -2.0, 3.0]]), torch.zeros(1, 3))
    assert float(value) == 6.0


def test_the_l2_looks_at_directions_only() -> None:
    a = torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    b = torch.tensor([[7.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    expected = torch.tensor([0.0, 2.0, 4.0])  # 2 - 2 cos
    torch.testing.assert_close(losses.embedding_l2(a, b), expected)


def test_the_distillation_is_least_at_the_target_where_it_is_its_entropy() -> None:
    target = torch.tensor([[0.0, 2 * math.log(3)]])  # softened by T = 2: 1/4 and 3/4
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    at = losses.encoder_distill(target, target)
    torch.testing.assert_close(at, torch.tensor([entropy]))
    assert losses.encoder_distill(target + torch.tensor([[0.0, 0.5]]), target) > at


def test_landmarks_are_measured_in_squared_pixels() -> None:
    a = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])
    assert float(losses.landmarks_mse(a, torch.zeros(1, 2, 2))) == 12.5


def test_landmarks_are_squared_below_a_pixel_and_absolute_above() -> None:
    a = torch.tensor([[[0.5, 0.0], [-3.0, 1.0]], [[-0.5, 0.0], [11.0, 0.0]]])
    # d² / 2 below a pixel, |d| - 1/2 above, averaged over the coordinates
    expected = torch.tensor([(0.125 + 0 + 2.5 + 0.5) / 4, (0.125 + 0 + 10.5 + 0) / 4])
    torch.testing.assert_close(losses.landmarks_huber(a, torch.zeros(2, 2, 2)), expected)


def test_a_point_that_is_far_off_pulls_no_harder_than_one_a_pixel_away() -> None:
    a = torch.tensor([[[100.0, 0.0], [-2.0, 0.25]]], requires_grad=True)
    losses.landmarks_huber(a, torch.zeros(1, 2, 2)).sum().backward()
    expected = torch.tensor([[[1.0, 0.0], [-1.0, 0.25]]]) / 4
    assert a.grad is not None
    torch.testing.assert_close(a.grad, expected)


def directions(*degrees: float) -> torch.Tensor:
    """Embeddings [b 2] of some length that point there."""
    angles = torch.tensor(degrees).deg2rad()
    return 3 * torch.stack([angles.cos(), angles.sin()], 1)


def test_infonce_is_the_mean_of_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CONTRAST_TEMPERATURE", 0.5)
    predicted, target = directions(0, 90), directions(0, 60)
    # Cosines [[1, 1/2], [0, cos 30]], doubled: rows are voice to face, columns face to voice.
    c = 2 * math.cos(math.radians(30))
    rows = [math.log(1 + math.exp(1 - 2)), math.log(1 + math.exp(0 - c))]
    columns = [math.log(1 + math.exp(0 - 2)), math.log(1 + math.exp(1 - c))]
    expected = torch.tensor([(r + k) / 2 for r, k in zip(rows, columns, strict=True)])
    torch.testing.assert_close(losses.infonce(predicted, target, torch.tensor([4, 9])), expected)


def test_infonce_counts_all_of_an_identity_as_positives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CONTRAST_TEMPERATURE", 1.0)
    predicted, target = directions(0, 90, 180), directions(0, 90, 180)
    value = losses.infonce(predicted, target, torch.tensor([0, 0, 1]))[0]
    e = math.e  # cosines of the first: 1, 0, -1; the second is its own identity
    assert float(value) == pytest.approx(-math.log((e + 1) / (e + 1 + 1 / e)), rel=1e-5)


def test_duplicating_the_batch_changes_no_infonce_nor_its_gradient() -> None:
    torch.manual_seed(0)
    a, b, identity = torch.randn(5, 6), torch.randn(5, 6), torch.tensor([0, 1, 2, 2, 3])
    once, twice = a.clone().requires_grad_(), a.repeat(2, 1).requires_grad_()
    one = losses.infonce(once, b, identity)
    two = losses.infonce(twice, b.repeat(2, 1), identity.repeat(2))
    torch.testing.assert_close(two, one.repeat(2))
    one.mean().backward()
    two.mean().backward()
    assert once.grad is not None and twice.grad is not None
    torch.testing.assert_close(twice.grad[:5] + twice.grad[5:], once.grad)


def test_infonce_teaches_the_prediction_and_never_the_target() -> None:
    a, b = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    losses.infonce(a, b, torch.arange(3)).sum().backward()
    assert a.grad is not None and (a.grad.abs().sum(1) > 0).all() and b.grad is None


def test_one_identity_has_nothing_to_contrast() -> None:
    a = torch.randn(3, 4, requires_grad=True)
    value = losses.infonce(a, torch.randn(3, 4), torch.zeros(3, dtype=torch.long))
    value.sum().backward()
    torch.testing.assert_close(value, torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(a.grad, torch.zeros(3, 4), atol=1e-6, rtol=0)


def test_the_total_is_the_weighted_sum_of_means() -> None:
    values = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([10.0, 20.0])}
    assert float(losses.total(values, {"a": 1.0, "b": 0.1})) == 3.5


def test_a_loss_without_weight_is_an_error() -> None:
    with pytest.raises(KeyError, match="b"):
        losses.total({"b": torch.ones(1)}, {"a": 1.0})
