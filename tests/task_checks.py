"""What is asked of every training task: that its losses teach its network, and only that."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from s2f import losses
from s2f.dataloader import Item, Key, load_batches
from s2f.train import Task, TrainConfig, train

CPU = torch.device("cpu")


def batch_of(data: Any, most: int = 99) -> Item:
    """The first samples of a data set."""
    keys = [Key(i, i) for i in range(min(most, len(data)))]
    (loaded,) = load_batches(data, [keys], CPU, workers=0, max_bad=0)
    assert loaded.items is not None
    return loaded.items


def sample_batch(task: Task) -> Item:
    """Up to eight samples of the validation data."""
    return batch_of(task.val_data, 8)


def check_gradients(task: Task, frozen: list[nn.Module]) -> None:
    """Every loss reaches the network, and none reaches those that must not change."""
    batch = sample_batch(task)
    for loss in task.losses(batch, augmented=True):
        task.network.zero_grad()
        task.losses(batch, augmented=True)[loss].sum().backward()
        reached = sum(
            float(p.grad.abs().sum()) for p in task.network.parameters() if p.grad is not None
        )
        assert reached > 0, loss
    for network in frozen:
        assert all(p.grad is None and not p.requires_grad for p in network.parameters())
        assert not network.training


def check_duplicates(task: Task) -> None:
    """A batch that is doubled has the same loss."""
    task.network.eval()
    batch = sample_batch(task)
    twice = {k: torch.cat([v, v]) for k, v in batch.items()}
    once = losses.total(task.losses(batch, augmented=False), task.loss_weights)
    torch.testing.assert_close(
        losses.total(task.losses(twice, augmented=False), task.loss_weights), once
    )


def check_learning(task: Task, run: Path) -> None:
    """A task learns its few examples, and shows them."""
    task.network.eval()
    with torch.no_grad():
        values = task.losses(sample_batch(task), augmented=False)
        before = float(losses.total(values, task.loss_weights))
    config = TrainConfig(steps=60, batch_size=3, lr=0.02, every=60, augment=False)
    result = train(task, run, config, device=CPU)
    after = sum(task.loss_weights[k] * v for k, v in result.losses.items())
    assert after < 0.7 * before
    assert (run / "samples/0000060.png").is_file()
