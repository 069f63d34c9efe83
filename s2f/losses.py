"""The losses, what they weigh, and the paper's rule that finds their weights.

Each loss is one value a sample [b], which depends on nothing else in the batch, but for InfoNCE.
What is learned is one flat dict of losses, by names like `decoder/l1`, times one dict of weights.
Knows losses by name and nothing of networks. At the end stands what is minimised without steps:
ridge regression, from sums, so that the data may be any number of batches.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from s2f.distributed import Ranks, gather_rows
from s2f.errors import UsageError

TEMPERATURE = 2.0  # of the distillation's softmax
CONTRAST_TEMPERATURE = 0.07  # of InfoNCE's softmax over cosines; CLIP's initial one, kept
CONTRASTIVE = "contrastive/infonce"
AUTO = "auto"
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # that the last layers are tried with
MARGIN = 12.0  # deviations by which those layers keep clear of the ReLU between them
TOGETHER = 1024  # rows that are summed up at a time: large products are fast ones


def decoder_l1(predicted: Tensor, target: Tensor) -> Tensor:
    """L1 between decoder features [b w], summed over the layer. Source: Oh et al. 2019."""
    return (predicted - target).abs().sum(1)


def decoder_mae(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of decoder features [b w]. Source: Pietkun et al., their L1."""
    return (predicted - target).abs().mean(1)


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

    Of a batch that is computed in parts, the softmax is over all of these, as `Contrast` has it.

    Source: van den Oord et al. 2018, both ways as in Radford et al. 2021; several positives inside
    the logarithm as in Khosla et al. 2020, L_in, but their sum and not their mean.
    """
    if (contrast := _CONTRAST.get()) is not None:
        return contrast.of_part(predicted, target, identity)
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


class Contrast:
    """InfoNCE of a batch that is computed in parts: with the negatives of all, not of one part.

    All parts are computed twice, and have to come out equal. The first time what is contrasted is
    kept; then `join` finds the losses of the whole, and their gradient by each prediction; the
    second time every part gets its losses, and this gradient.

    Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
    Setup" (GradCache).
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []
        self._parts: Iterator[tuple[Tensor, Tensor]] | None = None

    @contextlib.contextmanager
    def over_parts(self) -> Iterator[None]:
        """Have `infonce` be that of the whole batch, for parts that come in the same order."""
        token = _CONTRAST.set(self)
        try:
            yield
        finally:
            _CONTRAST.reset(token)

    def of_part(self, predicted: Tensor, target: Tensor, identity: Tensor) -> Tensor:
        """Keep what is contrasted, and give 0 [b]; or give the losses [b] of the next part."""
        if self._parts is None:
            self._kept.append((predicted.detach(), target.detach(), identity))
            return predicted.new_zeros(len(predicted), dtype=torch.float32)
        value, gradient = next(self._parts)
        along = (predicted.float() * gradient).sum(1)
        return value + (along - along.detach())

    def join(self) -> None:
        """Find the losses of the whole batch from what was kept, and their gradient."""
        predicted, *others = (torch.cat(rows) for rows in zip(*self._kept, strict=True))
        predicted = predicted.float().requires_grad_()
        value = infonce(predicted, *others)
        (gradient,) = torch.autograd.grad(value.sum(), predicted)
        sizes = [len(rows) for rows, *_ in self._kept]
        both = (torch.split(part, sizes) for part in (value.detach(), gradient))
        self._parts = zip(*both, strict=True)


_CONTRAST: ContextVar[Contrast | None] = ContextVar("contrast", default=None)


def per_sample(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Weighted sum [b] of the losses, each of which has a weight."""
    return torch.stack([weights[name] * value for name, value in losses.items()]).sum(0)


def total(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Mean over the samples of the weighted sum of the losses."""
    return per_sample(losses, weights).mean()


def choose_weights(
    choice: str | None,
    default: Mapping[str, float],
    known: Sequence[str],
    published: Mapping[str, Mapping[str, float]],
) -> dict[str, float]:
    """Find which losses there are, and the weights that training starts with.

    `choice` is None for the preset's `default`; `auto` for that, scaled so that the first weight is
    1; a name of `published` ones; or NAME=VALUE,...: the losses that are named and no others. Of
    sets, losses that are not `known` are left out. Raises a UsageError if it names no set and no
    known loss, one twice, or with a value not above 0.
    """
    if choice in (None, AUTO, *published):
        chosen = published.get(choice or "", default)
        first = next(iter(chosen.values())) if choice == AUTO else 1.0
        return {name: weight / first for name, weight in chosen.items() if name in known}
    assert choice is not None
    if "=" not in choice:
        message = f"--loss-weights {choice}: is none of {', '.join((AUTO, *published))}"
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


def calibration(
    choice: str | None, step: int | None, single: Sequence[str], *, usual: bool
) -> dict[str, int | None]:
    """Give the `calibrate_at` of a config where options say it: {}, or a step, or None for never.

    `choice` is as for `choose_weights`, `step` was asked for, `single` weights were given besides,
    and `usual` says whether the preset calibrates where nothing is said. Raises a UsageError if
    these contradict each other.
    """
    if choice == AUTO and single:
        raise UsageError(
            f"--loss-weight {single[0]}: --loss-weights {AUTO} finds the weights itself",
            hint="leave one of them out",
        )
    calibrated = choice == AUTO or (choice is None and usual and not single)
    if step is not None and not calibrated:
        message = f"--calibrate-at {step}: there is nothing to calibrate"
        hint = f"give --loss-weights {AUTO} too, and no other weights"
        raise UsageError(message, hint=hint)
    if step is not None:
        return {"calibrate_at": step}
    return {} if calibrated else {"calibrate_at": None}


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


def calibrate(task: Any, parts: Iterable[Mapping[str, Tensor]], ranks: Ranks) -> dict[str, float]:
    """Find the weights that make the gradients of a task's losses equally long; the first is 1.

    The gradients are those of the means of the losses, each [b], over all `parts` of a batch, of
    all processes, with respect to `predicted`, the embedding [b d] that they compared. A part is
    what the task's `losses` returned last when it comes up. InfoNCE is left out: its weight is one
    that was given. Raises a UsageError if a gradient is 0 or not finite. Source: Oh et al. 2019,
    the choice of lambda 1 and lambda 2.
    """
    mine: dict[str, float] = {}
    for values in parts:
        for name, value in values.items():
            if name != CONTRASTIVE:
                (gradient,) = torch.autograd.grad(
                    value.mean(), task.predicted, retain_graph=True, materialize_grads=True
                )
                mine[name] = math.hypot(mine.get(name, 0.0), float(gradient.double().norm()))
    told = ranks.gather(mine)
    # The batch's gradient is those of its parts in a row, each times the same number.
    norms = {name: math.hypot(*(part[name] for part in told)) for name in mine}
    for name, norm in norms.items():
        if not 0 < norm < math.inf:
            message = f"--loss-weights {AUTO}: the gradient of {name} is {norm:g} where the weights"
            message += " are calibrated: no weight makes it as long as the others"
            hint = "give another --calibrate-at or --loss-weights published, and another folder"
            raise UsageError(message, hint=hint)
    first = next(iter(norms.values()))
    return {name: first / norm for name, norm in norms.items()}


class RidgeSums:
    """Sums of features and of what they shall predict, from which any ridge regression follows.

    In double precision: a variance is a small difference of large sums.
    """

    def __init__(self) -> None:
        self.n = 0
        self.xx = self.xy = self.x = self.y = torch.zeros(())
        self.waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Count features [b f] and targets [b d] in."""
        self.waiting.append((x, y))
        if sum(len(part) for part, _ in self.waiting) >= TOGETHER:
            self._flush()

    def _flush(self) -> None:
        x, y = (torch.cat(parts).double() for parts in zip(*self.waiting, strict=True))
        self.waiting = []
        self.n += len(x)
        self.xx, self.xy = self.xx + x.T @ x, self.xy + x.T @ y
        self.x, self.y = self.x + x.sum(0), self.y + y.sum(0)

    def moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means [f] and [d], and covariances [f f] and [f d], in double precision."""
        if self.waiting:
            self._flush()
        x, y = self.x / self.n, self.y / self.n
        return x, y, self.xx / self.n - torch.outer(x, x), self.xy / self.n - torch.outer(x, y)

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Weight [f d] and bias [d]; the ridge is in units of each feature's variance."""
        x, y, xx, xy = self.moments()
        scale = xx.diagonal().clamp_min(1e-8).sqrt()
        system = xx / torch.outer(scale, scale)
        system.diagonal().add_(ridge)
        factor = torch.linalg.cholesky(system)
        weight = torch.cholesky_solve(xy / scale[:, None], factor) / scale[:, None]
        return weight.float(), (y - x @ weight).float()


def solve_last_layers(
    sums: RidgeSums, x: Tensor, y: Tensor, first: nn.Linear | None, second: nn.Linear
) -> None:
    """Make the last layers the ridge regression that does best in validation, x [n f] to y [n d].

    They are two, or one where there is no `first`. The ReLU between two passes everything that a
    shift has made positive. The values between them are the ways in which predictions vary most,
    each with the ridge that is best for it: what is learned well is not held back by what is not.
    """
    mean_x, mean_y, xx, _ = sums.moments()
    solved = [sums.solve(ridge) for ridge in RIDGES]
    widest = solved[0][0].double()
    axes = torch.linalg.eigh(widest.T @ xx @ widest)[1].flip(1).to(y)
    if first is not None:
        axes = axes[:, : first.out_features]
    errors = torch.stack([((x @ w + b - y) @ axes).square().mean(0) for w, b in solved])
    best = errors.argmin(0).tolist()
    weight = torch.stack([solved[r][0] @ axes[:, k] for k, r in enumerate(best)], 1)  # [f h]
    along = torch.stack([solved[r][1] @ axes[:, k] for k, r in enumerate(best)])  # [h]
    centre = mean_y.float()
    beside = centre - axes @ (centre @ axes)  # what no axis changes
    if first is None:
        second.load_state_dict({"weight": axes @ weight.T, "bias": beside + axes @ along})
        return
    w = weight.double()
    deviation = (w.T @ xx @ w).diagonal().clamp_min(0).sqrt() + (mean_x @ w).abs()
    shift = (MARGIN * deviation.float()).ceil()  # whole: exact in half precision
    missing = first.out_features - axes.shape[1]
    weight, along, shift, axes = (
        functional.pad(part, (0, missing)) for part in (weight, along, shift, axes)
    )
    first.load_state_dict({"weight": weight.T.contiguous(), "bias": shift})
    second.load_state_dict({"weight": axes, "bias": beside + axes @ (along - shift)})
