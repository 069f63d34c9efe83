"""The weights of the voice encoder's losses: named sets, explicit ones, and the paper's rule.

The rule: at some step the weights become those that make the gradients of all terms, with respect
to the predicted embedding, equally long. Knows losses by name and nothing of networks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from s2f.errors import UsageError
from s2f.ranks import Ranks

CONTRASTIVE = "contrastive/infonce"
AUTO = "auto"
CALIBRATE_AT = 1000  # steps done before the weights are found. Source: Oh et al. 2019
SETS = ("paper", "seed", "seed-ast")


@runtime_checkable
class Predicts(Protocol):
    """A task whose losses all compare one predicted embedding.

    Attributes:
        predicted: that of the last batch, [b d].
    """

    predicted: Tensor


def named_set(name: str, width: int) -> dict[str, float]:
    """Give one of `SETS`, for losses of which the decoder's is summed over a layer.

    The seed takes the mean over the layer, so its weight is divided by the layer's width. That it
    sums the distillation over the batch, so that its weight grows with it, is not repeated.

    Args:
        name: `paper`, `seed` or `seed-ast`.
        width: of the decoder's first layer.

    Raises:
        KeyError: if there is no set of that name.

    Source: Oh et al. 2019; Kacper-Pietkun/Speech-to-face, the calls of `S2FLoss`.
    """
    l1, l2, distill = {
        "paper": (1.0, 0.025, 200.0),
        "seed": (1.0 / width, 0.025, 200.0),
        "seed-ast": (50.0 / width, 30.0, 2.0),
    }[name]
    return {"decoder/l1": l1, "embedding/l2": l2, "encoder/distill": distill}


def choose_weights(
    choice: str | None, default: Mapping[str, float], known: Sequence[str], width: int
) -> dict[str, float]:
    """Find which losses there are, and the weights that training starts with.

    Args:
        choice: None for the default, `auto`, one of `SETS`, or NAME=VALUE,NAME=VALUE,...: the
            losses that are named and no others. `auto` starts with the default, scaled so that
            the first weight is 1. A set goes without the terms that are not known.
        default: the preset's weights.
        known: names of the losses that these networks have.
        width: of the decoder's first layer.

    Raises:
        UsageError: if the choice names no set and no known losses, one twice, or with a value
            that is not above 0.
    """
    if choice is None:
        return dict(default)
    if choice == AUTO:
        first = next(iter(default.values()))
        return {name: weight / first for name, weight in default.items()}
    if choice in SETS:
        chosen = named_set(choice, width)
        return {name: weight for name, weight in chosen.items() if name in known}
    if "=" not in choice:
        raise UsageError(
            f"--loss-weights {choice}: is none of {', '.join((AUTO, *SETS))}",
            hint="name one, or give for instance --loss-weights decoder/l1=1,embedding/l2=0.025",
        )
    weights: dict[str, float] = {}
    for assignment in choice.split(","):
        name, _, text = assignment.partition("=")
        if name not in known:
            raise UsageError(
                f"--loss-weights {name}: is no loss of this task; "
                f"wanted some of {', '.join(sorted(known))}",
                hint="--contrastive adds InfoNCE" if name == CONTRASTIVE else "correct the name",
            )
        value = _number(text)
        if name in weights or not 0 < value < math.inf:
            raise UsageError(
                f"--loss-weights {assignment}: is not NAME=VALUE with a value above 0, "
                "each name once",
                hint="leave a loss out to train without it",
            )
        weights[name] = value
    return weights


def calibration_step(choice: str | None, step: int | None, single: Sequence[str]) -> int | None:
    """Decide after which step the weights are calibrated, None for never.

    Args:
        choice: as for `choose_weights`.
        step: that was asked for; None for the paper's, where there is something to calibrate.
        single: weights of single losses that were given besides.

    Raises:
        UsageError: if these contradict each other.
    """
    if choice == AUTO and single:
        raise UsageError(
            f"--loss-weight {single[0]}: --loss-weights {AUTO} finds the weights itself",
            hint="leave one of them out",
        )
    if choice != AUTO and step is not None:
        raise UsageError(
            f"--calibrate-at {step}: there is nothing to calibrate",
            hint=f"give --loss-weights {AUTO} too",
        )
    return CALIBRATE_AT if choice == AUTO and step is None else step


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def check_weights(
    task: object, weights: Mapping[str, float], *, batch_size: int, calibrated: bool
) -> None:
    """Make sure, before training, that the losses have what they need.

    Raises:
        UsageError: if a batch is one sample and there is a contrastive loss, or if the weights
            are to be calibrated and the task has no predicted embedding.
    """
    if CONTRASTIVE in weights and batch_size < 2:
        raise UsageError(
            f"{CONTRASTIVE}: a batch of {batch_size} has nothing to contrast",
            hint="give --batch-size 2 or more, or no --contrastive",
        )
    if calibrated and not isinstance(task, Predicts):
        raise UsageError(
            "the weights of these losses cannot be calibrated: they share no predicted embedding",
            hint="give them with --loss-weight",
        )


def gradient_norms(values: Mapping[str, Tensor], predicted: Tensor) -> dict[str, float]:
    """Measure how long the gradient of each loss's mean is with respect to the prediction.

    Args:
        values: losses, each [b]; their graph is kept.
        predicted: [b d], which they follow from.
    """
    norms = {}
    for name, value in values.items():
        (gradient,) = torch.autograd.grad(
            value.mean(), predicted, retain_graph=True, materialize_grads=True
        )
        norms[name] = float(gradient.double().norm())
    return norms


def equal_weights(norms: Mapping[str, float]) -> dict[str, float]:
    """Give the weights that make gradients equally long; the first is 1.

    Raises:
        UsageError: if a gradient is 0 or not finite, so that no weight does.
    """
    for name, norm in norms.items():
        if not 0 < norm < math.inf:
            raise UsageError(
                f"--loss-weights {AUTO}: the gradient of {name} is {norm:g} where the weights are "
                "calibrated: no weight makes it as long as the others",
                hint="give another --calibrate-at, or weights, and another folder",
            )
    first = next(iter(norms.values()))
    return {name: first / norm for name, norm in norms.items()}


def calibrate(task: object, values: Mapping[str, Tensor], ranks: Ranks) -> dict[str, float]:
    """Find by the paper's rule the weights of a task's losses, at the batch it has just compared.

    InfoNCE is left out: its weight is one that was given.

    Args:
        task: one that `Predicts`, as `check_weights` makes sure.
        values: what its `losses` returned last.
        ranks: the processes, each with a part of the batch.

    Raises:
        UsageError: as `equal_weights`.

    Source: Oh et al. 2019, the choice of lambda 1 and lambda 2.
    """
    assert isinstance(task, Predicts)
    terms = {name: value for name, value in values.items() if name != CONTRASTIVE}
    told = ranks.gather(gradient_norms(terms, task.predicted))
    # The batch's gradient is those of its parts in a row, each times the same number.
    return equal_weights({name: math.hypot(*(norms[name] for norms in told)) for name in terms})


def told(weights: Mapping[str, float]) -> str:
    """Write weights as `choose_weights` reads them, in 6 digits."""
    return ",".join(f"{name}={weight:.6g}" for name, weight in weights.items())
