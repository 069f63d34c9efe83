"""The weights of the losses: the sets' numbers, and gradients that become equally long."""

import pytest
import torch

from s2f import losses
from s2f.distributed import ALONE
from s2f.errors import UsageError

DEFAULT = {"decoder/l1": 0.01, "embedding/l2": 1.0, "encoder/distill": 1.0}
KNOWN = ["decoder/l1", "embedding/l2", "embedding/mse", "encoder/distill"]


def choose(choice: str | None, known: list[str] = KNOWN) -> dict[str, float]:
    return losses.choose_weights(choice, DEFAULT, known, 1000)


def test_without_a_choice_the_weights_are_the_presets() -> None:
    assert choose(None) == DEFAULT


@pytest.mark.parametrize(
    ("name", "weights"),  # FACTS: Oh et al. 2019; the seed's L1 is a mean, ours a sum of 1000
    [
        ("paper", (1.0, 0.025, 200.0)),
        ("seed", (0.001, 0.025, 200.0)),
        ("seed-ast", (0.05, 30.0, 2.0)),
    ],
)
def test_a_set_has_its_published_numbers(name: str, weights: tuple[float, ...]) -> None:
    assert choose(name) == dict(zip(DEFAULT, weights, strict=True))


def test_a_set_goes_without_a_loss_that_the_networks_do_not_have() -> None:
    assert set(choose("paper", KNOWN[:3])) == {"decoder/l1", "embedding/l2"}


def test_auto_starts_with_the_presets_proportions() -> None:
    assert choose("auto") == pytest.approx(
        {"decoder/l1": 1.0, "embedding/l2": 100.0, "encoder/distill": 100.0}
    )


def test_explicit_weights_leave_out_what_they_do_not_name() -> None:
    assert choose("embedding/l2=0.5,decoder/l1=2") == {"embedding/l2": 0.5, "decoder/l1": 2.0}
    assert choose(losses.weights_text(DEFAULT)) == DEFAULT


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        ("papers", "is none of auto, paper, seed, seed-ast"),
        ("texture/mae=1", "wanted some of decoder/l1, embedding/l2, embedding/mse, encoder/dis"),
        ("contrastive/infonce=1", "is no loss of this task"),
        ("decoder/l1=1,", "is no loss of this task"),
        ("decoder/l1=0", "value above 0"),
        ("decoder/l1=nan", "value above 0"),
        ("decoder/l1=inf", "value above 0"),
        ("decoder/l1=much", "value above 0"),
        ("decoder/l1=1,decoder/l1=2", "each name once"),
    ],
)
def test_weights_that_cannot_be_are_refused(choice: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        choose(choice)


def test_auto_calibrates_at_the_papers_step_unless_told_another() -> None:
    assert losses.calibration_step("auto", None, ()) == 1000
    assert losses.calibration_step("auto", 0, ()) == 0
    assert losses.calibration_step("paper", None, ["decoder/l1=1"]) is None


@pytest.mark.parametrize("arguments", [("paper", 5, ()), (None, 5, ()), ("auto", 5, ["a=1"])])
def test_contradictions_about_calibration_are_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(UsageError, match=r"nothing to calibrate|finds the weights itself"):
        losses.calibration_step(*arguments)  # type: ignore[arg-type]


class Task:
    """Predicts a tensor."""

    def __init__(self) -> None:
        self.predicted = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)


def values_of(predicted: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "a": predicted.sum(1),
        "b": 4 * predicted[:, 0],
        losses.CONTRASTIVE: 9 * predicted[:, 1],
    }


def test_gradient_norms_are_those_by_hand() -> None:
    predicted = Task().predicted
    # Of means over 2 samples: "a" is 1/2 four times, "b" 4/2 twice.
    expected = {"a": 1.0, "b": 8**0.5, losses.CONTRASTIVE: 9 / 2**0.5}
    assert losses.gradient_norms(values_of(predicted), predicted) == pytest.approx(expected)


def test_calibrated_weights_are_relative_to_the_first_and_leave_infonce_alone() -> None:
    task = Task()
    weights = losses.calibrate(task, values_of(task.predicted), ALONE)
    assert weights == pytest.approx({"a": 1.0, "b": 8**-0.5})


def test_duplicating_the_batch_changes_no_calibrated_weight() -> None:
    task, twice = Task(), Task()
    twice.predicted = twice.predicted.detach().repeat(2, 1).requires_grad_()
    once = losses.calibrate(task, values_of(task.predicted), ALONE)
    assert losses.calibrate(twice, values_of(twice.predicted), ALONE) == pytest.approx(once)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_gradient_that_no_weight_can_lengthen_is_named(value: float) -> None:
    task = Task()
    values = {"a": task.predicted.sum(1), "b": value * task.predicted.sum(1)}
    with pytest.raises(UsageError, match="the gradient of b is"):
        losses.calibrate(task, values, ALONE)


def test_a_loss_that_does_not_follow_from_the_prediction_has_no_gradient() -> None:
    task = Task()
    with pytest.raises(UsageError, match="the gradient of b is 0"):
        values = {"a": task.predicted.sum(1), "b": torch.ones(2, requires_grad=True)}
        losses.calibrate(task, values, ALONE)


def test_a_batch_of_one_has_nothing_to_contrast() -> None:
    weights = {"a": 1.0, losses.CONTRASTIVE: 1.0}
    losses.check_weights(Task(), weights, batch_size=2, calibrated=True)
    losses.check_weights(Task(), {"a": 1.0}, batch_size=1, calibrated=True)
    with pytest.raises(UsageError, match="a batch of 1 has nothing to contrast"):
        losses.check_weights(Task(), weights, batch_size=1, calibrated=False)


def test_a_task_without_a_prediction_cannot_be_calibrated() -> None:
    losses.check_weights(object(), {}, batch_size=1, calibrated=False)
    with pytest.raises(UsageError, match="share no predicted embedding"):
        losses.check_weights(object(), {}, batch_size=1, calibrated=True)
