"""How training is fed: which samples a step has, batches of them, and what becomes of bad ones.

A sample is asked for by a `Key`, so that what is random about it depends on nothing but the
training step: a resumed run sees exactly what an unbroken one would have seen, on any number of
devices. Knows nothing of what the samples are.
"""

import contextlib
import random
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from s2f.device import starting_processes
from s2f.errors import DeviceError, InputError, S2FError

Item = dict[str, Tensor]
NO_ROOM = "give the container more (docker run --shm-size 8g), or give --workers 0"


class Key(NamedTuple):
    """What a dataset is asked for."""

    item: int  # its index
    seed: int  # of what is random about it
    # Random, 0..1, but one for all items of a step: for what has to be equal in a batch, such as
    # the length of clips. 1 where nothing is to be random.
    share: float = 1.0


def plan_steps(
    n: int, batch_size: int, *, seed: int, steps: range, parts: int = 1, mine: Iterable[int] = (0,)
) -> Iterator[list[Key]]:
    """Give the keys of training steps, in a new permutation of the `n` samples each epoch.

    Each step's `batch_size` samples, a multiple of `parts`, are split into so many parts, of which
    `mine` are given, a batch each. Which they are and their order depend on no number of parts.
    """
    epoch, order = -1, torch.empty(0, dtype=torch.long)
    size = batch_size // parts
    for step in steps:
        share = random.Random(f"{seed} {step}").random()
        batch = []
        for place in range(step * batch_size, (step + 1) * batch_size):
            if place // n != epoch:
                epoch = place // n
                order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + epoch))
            batch.append(Key(int(order[place % n]), seed + place, share))
        for part in mine:
            yield batch[part * size : (part + 1) * size]


class Loaded(NamedTuple):
    """A batch as it was read, in this process or another: errors travel as values."""

    keys: list[Key]  # of the items, or that were asked for where there are none
    # By name [b ...], and the `seed` [b] of what is random about each; None if there are none.
    items: Item | None
    bad: list[S2FError]  # why items could not be read; others took the place of these


class _Batches(Dataset[Loaded]):
    """Batches by their keys, with the next readable item in the place of one that is not."""

    def __init__(self, data: Any, max_bad: int) -> None:
        self.data, self.max_bad = data, max_bad

    def __getitem__(self, keys: list[Key]) -> Loaded:
        read: list[Key] = []
        items: list[Item] = []
        bad: list[S2FError] = []
        for key in keys:
            for index in range(key.item, key.item + min(self.max_bad + 1, len(self.data))):
                place = key._replace(item=index % len(self.data))
                try:
                    items.append(self.data[place])
                    read.append(place)
                    break
                except InputError as error:
                    bad.append(error)
                except S2FError as error:  # no matter of this item
                    return Loaded(keys, None, [error])
            else:
                return Loaded(keys, None, bad)
        joined = {k: torch.stack([i[k] for i in items]) for k in items[0]}
        joined["seed"] = torch.tensor([key.seed for key in read])
        if get_worker_info() is not None:
            # Here, and not when they are sent: a thread does that, which nobody hears fail, and
            # whoever waits for the batch would wait for ever.
            try:
                for values in joined.values():
                    values.share_memory_()  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                message = f"a process that reads the data cannot send a batch: {error}"
                return Loaded(keys, None, [DeviceError(message, hint=NO_ROOM)])
        return Loaded(read, joined, bad)


def load_batches(
    data: object, keys: Iterable[list[Key]], device: torch.device, *, workers: int, max_bad: int
) -> Iterator[Loaded]:
    """Read batches, in `workers` processes or in this one, and bring them to a device.

    The next readable item takes the place of one that cannot be read, `max_bad` times in a row.
    Pictures travel as bytes and are 0..1 from there on.
    """
    how: dict[str, Any] = {"num_workers": workers, "pin_memory": device.type == "cuda"}
    loader = DataLoader(_Batches(data, max_bad), batch_size=None, sampler=keys, **how)
    with starting_processes():
        batches = iter(loader)
    for loaded in batches:
        if loaded.items is not None:
            moved = {k: v.to(device, non_blocking=True) for k, v in loaded.items.items()}
            items = {k: v.float() / 255 if v.dtype == torch.uint8 else v for k, v in moved.items()}
            loaded = loaded._replace(items=items)
        yield loaded


@contextlib.contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Raise a `DeviceError` where a process that reads has died: the loop hears of it anywhere.

    And where what such processes send would be one open file too many.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        if any(sign in str(error) for sign in ("Too many open files", "items of ancdata")):
            message = "what processes read are more files than may be open at once"
            hint = "let more be open (ulimit -n 4096), or lower --workers; the same command goes on"
            raise DeviceError(message, hint=hint) from error
        if not str(error).startswith("DataLoader worker"):
            raise
        message = f"a process that read the data has died: {error.__cause__ or error}"
        hint = "if memory ran out, lower --workers or --batch-size; the same command goes on"
        if "Bus error" in str(error):  # /dev/shm is full; Docker's has 64 MB
            hint = f"{NO_ROOM}; the same command goes on"
        raise DeviceError(message, hint=hint) from error
