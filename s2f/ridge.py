"""Ridge regression from sums, so that the data may be any number of batches."""

import torch
from torch import Tensor, nn
from torch.nn import functional

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # that the last layers are tried with
MARGIN = 12.0  # deviations by which those layers keep clear of the ReLU between them
TOGETHER = 1024  # rows that are summed up at a time: large products are fast ones


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
