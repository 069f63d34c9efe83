"""The losses, what they weigh, and the paper's rule that finds their weights.

Each loss is one value a sample [b], which depends on nothing else in the batch, but for InfoNCE.
What is learned is one flat dict of losses, by names like `decoder/l1`, times one dict of weights.
Knows losses by name and nothing of networks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from s2f.distributed import Ranks, gather_rows
from s2f.errors import UsageError

TEMPERATURE = 2.0  # of the distillation's softmax
CONTRAST_TEMPERATURE = 0.07  # of InfoNCE's softmax over cosines; CLIP's initial one, kept
CONTRASTIVE = "contrastive/infonce"
AUTO = "auto"
CALIBRATE_AT = 1000  # steps done before the weights are found. Source: Oh et al. 2019
# The paper sums the decoder's term over its layer, the seed takes the mean. That the seed sums the
# distillation over the batch, so that its weight grows with it, is not repeated.
# Source: Oh et al. 2019; Kacper-Pietkun/Speech-to-face, the calls of `S2FLoss`.
# For `--loss-weights NAME`; what a preset weighs by is in `train_voice`.
PUBLISHED_WEIGHTS = {
    "paper": {"decoder/l1": 1.0, "embedding/l2": 0.025, "encoder/distill": 200.0},
    "seed": {"decoder/l1": 1.0, "embedding/l2": 0.025, "encoder/distill": 200.0},
    "seed-ast": {"decoder/l1": 50.0, "embedding/l2": 30.0, "encoder/distill": 2.0},
}


def decoder_l1(predicted: Tensor, target: Tensor) -> Tensor:
    """L1 between first decoder layers [b w], summed over the layer. Source: Oh et al. 2019."""
    return (predicted - target).abs().sum(1)


def embedding_l2(predicted: Tensor, target: Tensor) -> Tensor:
    """Squared L2 between embeddings [b d] of unit length, 0..4. Source: Oh et al. 2019."""
    predicted = functional.normalize(predicted, dim=1)
    return (predicted - functional.normalize(target, dim=1)).square().sum(1)


def embedding_mse(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference between embeddings [b d]."""
    return (predicted - target).square().mean(1)


def encoder_distill(predicted: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy between identity logits [b i], softened by T = 2. Source: Oh et al. 2019.

    Least, but not zero, where they are equal: there it is the entropy of the target.
    """
    p = (target / TEMPERATURE).softmax(1)
    return -(p * (predicted / TEMPERATURE).log_softmax(1)).sum(1)


def landmarks_mse(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance of landmarks [b k 2], in pixels squared. Source: Cole et al. 2017."""
    return (predicted - target).square().sum(2).mean(1)


def landmarks_huber(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean Huber loss of the coordinates of landmarks [b k 2], in pixels beyond one.

    Least squares below a pixel, distances above: points that are hidden by hair do not rule.
    """
    return functional.smooth_l1_loss(predicted, target, reduction="none").mean((1, 2))


def texture_mae(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of textures [b 3 h w], 0..1. Source: Cole et al. 2017."""
    return (predicted - target).abs().flatten(1).mean(1)


def identity_cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine between embeddings [b d], 0..2. Source: Cole et al. 2017."""
    return 1 - functional.cosine_similarity(predicted, target, dim=1)


def identity_cross_entropy(logits: Tensor, identity: Tensor) -> Tensor:
    """Cross-entropy of identity logits [b i] with the identities' indices [b]."""
    return functional.cross_entropy(logits, identity, reduction="none")


def infonce(predicted: Tensor, target: Tensor, identity: Tensor) -> Tensor:
    """Contrast each prediction [b d] with the targets [b d] of the batch, and each target likewise.

    The mean of two cross-entropies, voice to face and face to voice, over cosines divided by
    `CONTRAST_TEMPERATURE`: minus the logarithm of the share that all samples of one's own identity
    [b] have in the softmax over the batch, that of all processes. So samples of one identity are no
    negatives of each other, duplicating the batch changes nothing, and a batch of one identity
    gives 0. The target gets no gradient.

    Source: van den Oord et al. 2018, both ways as in Radford et al. 2021; several positives inside
    the logarithm as in Khosla et al. 2020, L_in, but their sum and not their mean.
    """
    predicted = functional.normalize(predicted.float(), dim=1)
    directions = functional.normalize(target.detach().float(), dim=1)
    everyone = gather_rows(predicted), gather_rows(directions), gather_rows(identity)
    theirs, targets, people = (rows.flatten(0, 1) for rows in everyone)
    other = people != identity[:, None]  # [b n]
    value = predicted.new_zeros(len(predicted))
    with torch.autocast(predicted.device.type, enabled=False):  # bfloat16 is too coarse a cosine
        for logits in (predicted @ targets.T, directions @ theirs.T):
            logits = logits / CONTRAST_TEMPERATURE
            own = logits.masked_fill(other, -torch.inf).logsumexp(1)
            value = value - (own - logits.logsumexp(1)) / 2
    return value


def per_sample(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Weighted sum [b] of the losses, each of which has a weight."""
    return torch.stack([weights[name] * value for name, value in losses.items()]).sum(0)


def total(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Mean over the samples of the weighted sum of the losses."""
    return per_sample(losses, weights).mean()


def choose_weights(
    choice: str | None, default: Mapping[str, float], known: Sequence[str], width: int
) -> dict[str, float]:
    """Find which losses there are, and the weights that training starts with.

    `choice` is None for the preset's `default`; `auto` for that, scaled so that the first weight is
    1; one of `PUBLISHED_WEIGHTS`, without the losses that are not `known`; or NAME=VALUE,...: the
    losses that are named and no others. `width` is that of the decoder's first layer. Raises a
    UsageError if it names no set and no known loss, one twice, or with a value not above 0.
    """
    if choice is None:
        return dict(default)
    if choice == AUTO:
        first = next(iter(default.values()))
        return {name: weight / first for name, weight in default.items()}
    if choice in PUBLISHED_WEIGHTS:
        chosen = dict(PUBLISHED_WEIGHTS[choice])
        if choice != "paper":  # the seed takes the mean over the layer, and this the sum
            chosen["decoder/l1"] /= width
        return {name: weight for name, weight in chosen.items() if name in known}
    if "=" not in choice:
        message = f"--loss-weights {choice}: is none of {', '.join((AUTO, *PUBLISHED_WEIGHTS))}"
        hint = "name one, or give for instance --loss-weights decoder/l1=1,embedding/l2=0.025"
        raise UsageError(message, hint=hint)
    weights: dict[str, float] = {}
    for assignment in choice.split(","):
        name, _, text = assignment.partition("=")
        if name not in known:
            raise UsageError(
                f"--loss-weights {name}: is no loss of this task; "
                f"wanted some of {', '.join(sorted(known))}",
                hint="--contrastive adds InfoNCE" if name == CONTRASTIVE else "correct the name",
            )
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if name in weights or not 0 < value < math.inf:
            message = f"{assignment}: is not NAME=VALUE with a value above 0, each name once"
            hint = "leave a loss out to train without it"
            raise UsageError(f"--loss-weights {message}", hint=hint)
        weights[name] = value
    return weights


def weights_text(weights: Mapping[str, float]) -> str:
    """Write weights as `choose_weights` reads them, in 6 digits."""
    return ",".join(f"{name}={weight:.6g}" for name, weight in weights.items())


def calibration_step(choice: str | None, step: int | None, single: Sequence[str]) -> int | None:
    """Decide after which step the weights of a `choice` are calibrated; None is never.

    `step` was asked for, None for the paper's; `single` weights were given besides. Raises a
    UsageError if these contradict each other.
    """
    if choice == AUTO and single:
        raise UsageError(
            f"--loss-weight {single[0]}: --loss-weights {AUTO} finds the weights itself",
            hint="leave one of them out",
        )
    if choice != AUTO and step is not None:
        message = f"--calibrate-at {step}: there is nothing to calibrate"
        raise UsageError(message, hint=f"give --loss-weights {AUTO} too")
    return CALIBRATE_AT if choice == AUTO and step is None else step


def check_weights(
    task: object, weights: Mapping[str, float], *, batch_size: int, calibrated: bool
) -> None:
    """Raise a UsageError if there is nothing to contrast, or no embedding to calibrate by."""
    if CONTRASTIVE in weights and batch_size < 2:
        message = f"{CONTRASTIVE}: a batch of {batch_size} has nothing to contrast"
        raise UsageError(message, hint="give --batch-size 2 or more, or no --contrastive")
    if calibrated and not hasattr(task, "predicted"):
        message = "the weights of these losses cannot be calibrated: they share no predicted "
        raise UsageError(f"{message}embedding", hint="give them with --loss-weight")


def calibrate(task: Any, values: Mapping[str, Tensor], ranks: Ranks) -> dict[str, float]:
    """Find the weights that make the gradients of a task's losses equally long; the first is 1.

    The gradients are those of the means of `values`, what its `losses` returned last, each [b],
    whose graph is kept, with respect to `predicted`, the embedding [b d] that these compared; of
    all processes. InfoNCE is left out: its weight is one that was given. Raises a UsageError if
    a gradient is 0 or not finite. Source: Oh et al. 2019, the choice of lambda 1 and lambda 2.
    """
    mine = {}
    for name, value in values.items():
        if name != CONTRASTIVE:
            (gradient,) = torch.autograd.grad(
                value.mean(), task.predicted, retain_graph=True, materialize_grads=True
            )
            mine[name] = float(gradient.double().norm())
    told = ranks.gather(mine)
    # The batch's gradient is those of its parts in a row, each times the same number.
    norms = {name: math.hypot(*(part[name] for part in told)) for name in mine}
    for name, norm in norms.items():
        if not 0 < norm < math.inf:
            message = f"--loss-weights {AUTO}: the gradient of {name} is {norm:g} where the weights"
            message += " are calibrated: no weight makes it as long as the others"
            hint = "give another --calibrate-at, or weights, and another folder"
            raise UsageError(message, hint=hint)
    first = next(iter(norms.values()))
    return {name: first / norm for name, norm in norms.items()}
