"""The losses and their weights: hand numbers, what must not change them, where gradients go."""

import math
from types import SimpleNamespace

import pytest
import torch

from s2f import losses
from s2f.distributed import ALONE
from s2f.errors import UsageError

VECTORS = (
    "decoder_l1",
    "decoder_mae",
    "embedding_l2",
    "embedding_mse",
    "encoder_distill",
    "identity_cosine",
)
SHAPES = {"landmarks_mse": (4, 2), "landmarks_huber": (4, 2), "texture_mae": (3, 5, 5)}


@pytest.mark.parametrize("name", [*VECTORS, "identity_cosine", *SHAPES])
def test_a_loss_is_one_value_a_sample_that_teaches_the_prediction(name):
    loss, shape = getattr(losses, name), SHAPES.get(name, (6,))
    a, b = torch.rand(3, *shape, requires_grad=True), torch.rand(3, *shape)
    found = loss(a, b)
    alone = torch.cat([loss(a[i : i + 1], b[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(found, alone)
    assert found.shape == (3,)
    found.sum().backward()
    assert (a.grad.flatten(1).abs().sum(1) > 0).all()
    if name != "encoder_distill":
        torch.testing.assert_close(loss(b + 0.1, b + 0.1), torch.zeros(3), atol=1e-6, rtol=0)


def test_hand_numbers():
    assert float(losses.decoder_l1(torch.tensor([[1.0, -2.0, 3.0]]), torch.zeros(1, 3))) == 6.0
    assert float(losses.decoder_mae(torch.tensor([[1.0, -2.0, 3.0]]), torch.zeros(1, 3))) == 2.0
    a = torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    b = torch.tensor([[7.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    torch.testing.assert_close(losses.embedding_l2(a, b), torch.tensor([0.0, 2.0, 4.0]))  # 2-2 cos
    points = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])
    assert float(losses.landmarks_mse(points, torch.zeros(1, 2, 2))) == 12.5  # squared pixels
    values = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([10.0, 20.0])}
    assert float(losses.total(values, {"a": 1.0, "b": 0.1})) == 3.5  # weighted means
    with pytest.raises(KeyError, match="b"):
        losses.total(values, {"a": 1.0})
    # the distillation is least at the target, where it is its entropy
    target = torch.tensor([[0.0, 2 * math.log(3)]])  # softened by T = 2: 1/4 and 3/4
    at = losses.encoder_distill(target, target)
    assert float(at) == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert losses.encoder_distill(target + torch.tensor([[0.0, 0.5]]), target) > at
    # landmarks are squared below a pixel and absolute above
    a = torch.tensor([[[0.5, 0.0], [-3.0, 1.0]]], requires_grad=True)
    value = losses.landmarks_huber(a, torch.zeros(1, 2, 2))
    # d² / 2 below a pixel, |d| - 1/2 above, averaged over the coordinates
    torch.testing.assert_close(value, torch.tensor([(0.125 + 0 + 2.5 + 0.5) / 4]))
    value.sum().backward()  # a point that is far off pulls no harder than one a pixel away
    torch.testing.assert_close(a.grad, torch.tensor([[[0.5, 0], [-1, 1]]]) / 4)


def directions(*degrees):
    """Embeddings [b 2] of some length that point there."""
    angles = torch.tensor(degrees).deg2rad()
    return 3 * torch.stack([angles.cos(), angles.sin()], 1)


def test_infonce_is_the_mean_of_both_ways(monkeypatch):
    monkeypatch.setattr(losses, "CONTRAST_TEMPERATURE", 0.5)
    predicted, target = directions(0, 90), directions(0, 60)
    # Cosines [[1, 1/2], [0, cos 30]], doubled: rows are voice to face, columns face to voice.
    c = 2 * math.cos(math.radians(30))
    rows = [math.log(1 + math.exp(1 - 2)), math.log(1 + math.exp(0 - c))]
    columns = [math.log(1 + math.exp(0 - 2)), math.log(1 + math.exp(1 - c))]
    expected = torch.tensor([(r + k) / 2 for r, k in zip(rows, columns, strict=True)])
    torch.testing.assert_close(losses.infonce(predicted, target, torch.tensor([4, 9])), expected)
    # all of an identity are positives
    monkeypatch.setattr(losses, "CONTRAST_TEMPERATURE", 1.0)
    target = directions(0, 90, 180)
    predicted = target.clone().requires_grad_()
    value = losses.infonce(predicted, target, torch.tensor([0, 0, 1]))[0]
    e = math.e  # cosines of the first: 1, 0, -1; the second is its own identity
    assert float(value.detach()) == pytest.approx(-math.log((e + 1) / (e + 1 + 1 / e)), rel=1e-5)
    nothing = losses.infonce(predicted, target, torch.zeros(3, dtype=torch.long))
    (gradient,) = torch.autograd.grad(nothing.sum(), predicted)
    assert nothing.abs().max() < 1e-6 and gradient.abs().max() < 1e-6  # of one identity


def test_duplicating_the_batch_changes_no_infonce_nor_its_gradient():
    torch.manual_seed(0)
    a, b = torch.randn(5, 6), torch.randn(5, 6, requires_grad=True)
    identity = torch.tensor([0, 1, 2, 2, 3])
    once, twice = a.clone().requires_grad_(), a.repeat(2, 1).requires_grad_()
    one = losses.infonce(once, b, identity)
    two = losses.infonce(twice, b.repeat(2, 1), identity.repeat(2))
    torch.testing.assert_close(two, one.repeat(2))
    (one.mean() + two.mean()).backward()
    assert b.grad is None and (once.grad.abs().sum(1) > 0).all()
    torch.testing.assert_close(twice.grad[:5] + twice.grad[5:], once.grad)


def test_infonce_in_parts_is_that_of_the_whole_batch_and_so_is_its_gradient():
    torch.manual_seed(0)
    weight, x, target = torch.randn(4, 6), torch.randn(7, 4), torch.randn(7, 6)
    identity = torch.tensor([0, 1, 2, 2, 3, 0, 4])
    whole, cut = (weight.clone().requires_grad_() for _ in range(2))
    value = losses.infonce(x @ whole, target, identity)
    value.sum().backward()
    parts = [part.tensor_split([2, 5]) for part in (x, target, identity)]
    contrast = losses.Contrast()

    def found():
        with contrast.over_parts():
            return [losses.infonce(x @ cut, *others) for x, *others in zip(*parts, strict=True)]

    assert all((part == 0).all() for part in found())
    contrast.join()
    in_parts = torch.cat(found())
    torch.testing.assert_close(in_parts, value)
    in_parts.sum().backward()
    torch.testing.assert_close(cut.grad, whole.grad)
    torch.testing.assert_close(losses.infonce(x @ cut, target, identity), value)  # no more parts


DEFAULT = {"decoder/l1": 0.01, "embedding/l2": 1.0, "encoder/distill": 1.0}
PUBLISHED = {"published": dict(zip(DEFAULT, (1.0, 0.025, 200.0), strict=True))}


def choose(choice, *without):
    known = [name for name in ("embedding/mse", *DEFAULT) if name not in without]
    return losses.choose_weights(choice, DEFAULT, known, PUBLISHED)


@pytest.mark.parametrize(
    ("choice", "weights"),
    [
        (None, (0.01, 1.0, 1.0)),
        ("published", (1.0, 0.025, 200.0)),
        ("auto", (1.0, 100.0, 100.0)),  # the default's proportions
        (losses.weights_text(DEFAULT), (0.01, 1.0, 1.0)),
    ],
)
def test_a_choice_has_its_weights(choice, weights):
    assert choose(choice) == pytest.approx(dict(zip(DEFAULT, weights, strict=True)))
    assert set(choose("published", "encoder/distill")) == {"decoder/l1", "embedding/l2"}
    assert set(choose(None, "encoder/distill")) == {"decoder/l1", "embedding/l2"}
    assert choose("embedding/l2=0.5,decoder/l1=2") == {"embedding/l2": 0.5, "decoder/l1": 2.0}


def test_weights_that_cannot_be_are_refused():
    for choice, why in (
        ("paper", "is none of auto, published"),
        ("texture/mae=1", "wanted some of decoder/l1, embedding/l2, embedding/mse"),
        ("contrastive/infonce=1", "is no loss of this task"),
        *((f"decoder/l1={value}", "value above 0") for value in ("0", "inf", "much")),
        ("decoder/l1=1,decoder/l1=2", "each name once"),
    ):
        with pytest.raises(UsageError, match=why):
            choose(choice)


def test_what_is_calibrated_is_what_nobody_gave():
    def said(choice, step=None, single=(), usual=False):
        return losses.calibration(choice, step, single, usual=usual)

    never = {"calibrate_at": None}
    assert said("auto") == said(None, usual=True) == said("auto", usual=True) == {}  # at the usual
    assert said("auto", 0) == said(None, 0, usual=True) == {"calibrate_at": 0}
    assert said(None) == said("published", usual=True) == never
    assert said(None, None, ["decoder/l1=1"], usual=True) == never
    for choice, single, usual in (("published", (), True), (None, ("a=1",), True), (None, (), 0)):
        with pytest.raises(UsageError, match="there is nothing to calibrate"):
            said(choice, 5, single, usual=usual)
    with pytest.raises(UsageError, match="finds the weights itself"):
        said("auto", 5, ["a=1"])
    # and losses must have what they need
    task, weights = SimpleNamespace(predicted=torch.ones(1)), {"a": 1.0, losses.CONTRASTIVE: 1.0}
    losses.check_weights(task, weights, batch_size=2, calibrated=True)
    losses.check_weights(task, {"a": 1.0}, batch_size=1, calibrated=True)
    losses.check_weights(object(), {}, batch_size=1, calibrated=False)
    with pytest.raises(UsageError, match="a batch of 1 has nothing to contrast"):
        losses.check_weights(task, weights, batch_size=1, calibrated=False)
    with pytest.raises(UsageError, match="share no predicted embedding"):
        losses.check_weights(object(), {}, batch_size=1, calibrated=True)


@pytest.mark.parametrize("times", [1, 2])
def test_calibrated_weights_are_relative_to_the_first_and_leave_infonce_alone(times):
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat(times, 1).requires_grad_()
    task = SimpleNamespace(predicted=x)
    # Gradients of means over 2 samples: "a" is 1/2 four times, of length 1, "b" 4/2 twice.
    values = {"a": x.sum(1), "b": 4 * x[:, 0], losses.CONTRASTIVE: 9 * x[:, 1]}
    assert losses.calibrate(task, [values], ALONE) == pytest.approx({"a": 1.0, "b": 8**-0.5})
    for value in (0.0, math.nan):  # no weight can lengthen such a gradient
        with pytest.raises(UsageError, match="the gradient of b is"):
            losses.calibrate(task, [{"a": x.sum(1), "b": value * x.sum(1)}], ALONE)


def test_weights_are_calibrated_by_all_parts_of_a_batch():
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0], [0.5, 9.0], [7.0, 1.0]], requires_grad=True)
    task = SimpleNamespace(predicted=x)

    def values(x):
        return {"a": x.square().sum(1), "b": x[:, 0] ** 3}

    def parts():
        for task.predicted in x.split(2):
            yield values(task.predicted)

    whole = losses.calibrate(task, [values(x)], ALONE)
    assert losses.calibrate(task, parts(), ALONE) == pytest.approx(whole)
