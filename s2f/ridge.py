"""Ridge regression from sums, so that the data may be any number of batches.

Tensors in, tensors out.
"""

import torch
from torch import Tensor


class Moments:
    """Sums of features and of what they shall predict, from which any ridge regression follows."""

    def __init__(self) -> None:
        self.n, self.device = 0, torch.device("cpu")
        self.xx = self.xy = self.x = self.y = torch.zeros(())
        self.waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Count features [b f] and targets [b d] in."""
        self.waiting.append((x, y))
        self.device = x.device
        if sum(len(part) for part, _ in self.waiting) >= 1024:  # large products are fast ones
            self._flush()

    def _flush(self) -> None:
        if not self.waiting:
            return
        x, y = (torch.cat(parts) for parts in zip(*self.waiting, strict=True))
        self.waiting = []
        self.n += len(x)
        self.xx, self.xy = self.xx + (x.T @ x).double(), self.xy + (x.T @ y).double()
        self.x, self.y = self.x + x.double().sum(0), self.y + y.double().sum(0)

    def _centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self._flush()
        x, y = self.x / self.n, self.y / self.n
        return x, y, self.xx / self.n - torch.outer(x, x), self.xy / self.n - torch.outer(x, y)

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Weight [f d] and bias [d]; the ridge is in units of each feature's variance."""
        x, y, xx, xy = self._centred()
        scale = xx.diagonal().clamp_min(1e-8).sqrt()
        system = xx / torch.outer(scale, scale)
        system.diagonal().add_(ridge)
        factor = torch.linalg.cholesky(system)
        weight = torch.cholesky_solve(xy / scale[:, None], factor) / scale[:, None]
        return weight.float(), (y - x @ weight).float()

    def deviation(self, weight: Tensor) -> Tensor:
        """How far predictions [d] with a weight [f d] vary, and how far their mean is off 0."""
        x, _, xx, _ = self._centred()
        w = weight.double()
        spread = ((xx @ w) * w).sum(0).clamp_min(0).sqrt()
        return (spread + (x @ w).abs()).float()
