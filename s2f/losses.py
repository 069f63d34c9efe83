"""The losses, each one value a sample [b], and their weighted sum.

A value never depends on what else is in the batch; InfoNCE, which contrasts the samples of a batch
with each other, is the one exception. Tensors in, tensors out.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from s2f.ranks import gather_rows

TEMPERATURE = 2.0  # of the distillation's softmax
CONTRAST_TEMPERATURE = 0.07  # of InfoNCE's softmax over cosines; CLIP's initial one, kept


def decoder_l1(predicted: Tensor, target: Tensor) -> Tensor:
    """L1 between first decoder layers [b w]: summed over the layer.

    Source: Oh et al. 2019, the decoder's term of the loss.
    """
    return (predicted - target).abs().sum(1)


def embedding_l2(predicted: Tensor, target: Tensor) -> Tensor:
    """Squared L2 between embeddings [b d] brought to unit length, 0..4.

    Source: Oh et al. 2019, the term on unit vectors.
    """
    predicted = functional.normalize(predicted, dim=1)
    return (predicted - functional.normalize(target, dim=1)).square().sum(1)


def embedding_mse(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference between embeddings [b d]."""
    return (predicted - target).square().mean(1)


def encoder_distill(predicted: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy between softened identity logits [b i].

    Least, but not zero, where they are equal: there it is the entropy of the target.

    Source: Oh et al. 2019, the distillation term, with T = 2.
    """
    p = (target / TEMPERATURE).softmax(1)
    return -(p * (predicted / TEMPERATURE).log_softmax(1)).sum(1)


def landmarks_mse(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance between landmarks [b k 2], in squared pixels.

    Source: Cole et al. 2017.
    """
    return (predicted - target).square().sum(2).mean(1)


def landmarks_huber(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean Huber loss of the coordinates of landmarks [b k 2], in pixels beyond one.

    Least squares below a pixel, distances above: points that are hidden by hair do not rule.
    """
    loss = functional.smooth_l1_loss(predicted, target, reduction="none")
    return loss.flatten(1).mean(1)


def texture_mae(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference between registered textures [b 3 h w], 0..1.

    Source: Cole et al. 2017.
    """
    return (predicted - target).abs().flatten(1).mean(1)


def identity_cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine between embeddings [b d], 0..2.

    Source: Cole et al. 2017, of the warped face's embedding.
    """
    return 1 - functional.cosine_similarity(predicted, target, dim=1)


def identity_cross_entropy(logits: Tensor, identity: Tensor) -> Tensor:
    """Cross-entropy of identity logits [b i] with the identities' indices [b]."""
    return functional.cross_entropy(logits, identity, reduction="none")


def infonce(predicted: Tensor, target: Tensor, identity: Tensor) -> Tensor:
    """Contrast each prediction with the targets of the batch, and each target with its predictions.

    The mean of two cross-entropies, voice to face and face to voice, over cosines divided by
    `CONTRAST_TEMPERATURE`: minus the logarithm of the share that all samples of one's own
    identity have in the softmax over the batch. So samples of one identity are no negatives of
    each other, and duplicating the batch changes nothing. 0, with no gradient, where the batch
    has one identity only. The target gets no gradient. Where several processes train, the batch is
    that of all of them.

    Args:
        predicted: embeddings [b d].
        target: embeddings [b d].
        identity: [b] int64; samples with equal ones are positives of each other.

    Returns:
        [b], 0 or more.

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
    """Weighted sum [b] of the losses.

    Raises:
        KeyError: if a loss has no weight.
    """
    return torch.stack([weights[name] * value for name, value in losses.items()]).sum(0)


def total(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Mean over the samples of the weighted sum of the losses.

    Raises:
        KeyError: if a loss has no weight.
    """
    return torch.stack([weights[name] * value.mean() for name, value in losses.items()]).sum()
