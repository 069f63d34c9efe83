"""The order of the samples, and what becomes of bad ones; the loop's side is in test_train."""

from unittest import mock

import pytest
import torch

from s2f.dataloader import Item, Key, load_batches, naming_dead_workers, plan_steps
from s2f.errors import DatasetError, DeviceError


def test_every_epoch_is_a_permutation():
    keys = [key for batch in plan_steps(7, 3, seed=0, steps=range(7)) for key in batch]
    epochs = [[key.item for key in keys[k : k + 7]] for k in (0, 7, 14)]
    assert [sorted(epoch) for epoch in epochs] == 3 * [list(range(7))]
    assert epochs[0] != epochs[1]
    assert len({key.seed for key in keys}) == len(keys)


class Third:
    """A dataset of which only item 3 can be read."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, key: Key) -> Item:
        if key.item != 3:
            raise DatasetError(f"item {key.item} is broken")
        return {"x": torch.tensor([0, 51, 255], dtype=torch.uint8), "seed": torch.tensor(key.seed)}


def test_an_item_in_the_place_of_a_bad_one_goes_by_its_own_key():
    keys, cpu = [[Key(4, 7, 0.5), Key(3, 8, 0.5)]], torch.device("cpu")
    (loaded,) = load_batches(Third(), keys, cpu, workers=0, max_bad=4)
    assert loaded.keys == [Key(3, 7, 0.5), Key(3, 8, 0.5)] and loaded.items is not None
    assert [error.message for error in loaded.bad] == [f"item {k} is broken" for k in (4, 0, 1, 2)]
    torch.testing.assert_close(loaded.items["x"], torch.tensor([[0, 0.2, 1]] * 2))
    assert loaded.items["seed"].tolist() == [7, 8]
    (none,) = load_batches(Third(), keys, cpu, workers=0, max_bad=3)
    assert none.items is None and len(none.bad) == 4


def test_a_worker_that_cannot_send_is_an_error_and_no_wait(monkeypatch):
    """As torch 2 says it where /dev/shm is full; workers are forked, and inherit it."""
    full = "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device"
    monkeypatch.setattr(torch.Tensor, "share_memory_", mock.Mock(side_effect=RuntimeError(full)))
    keys, cpu = [[Key(3, k)] for k in range(6)], torch.device("cpu")
    loaded = list(load_batches(Third(), keys, cpu, workers=1, max_bad=0))
    assert len(loaded) == 6
    for batch in loaded:
        (error,) = batch.bad
        assert batch.items is None and isinstance(error, DeviceError) and full in error.message
        assert "--shm-size" in error.hint and "--workers 0" in error.hint
    killed = "DataLoader worker (pid 7) is killed by signal: Bus error."
    with pytest.raises(DeviceError) as raised, naming_dead_workers():
        raise RuntimeError(killed)
    assert "--shm-size" in raised.value.hint and "--workers 0" in raised.value.hint


def test_too_few_open_files_are_told_with_a_cure() -> None:
    said = "Too many open files. Communication with the workers is no longer possible."
    for error in (RuntimeError(said), OSError(24, "Too many open files"), RuntimeError("other")):
        wanted = RuntimeError if "other" in str(error) else DeviceError
        with pytest.raises(wanted) as caught, naming_dead_workers():
            raise error
        assert wanted is RuntimeError or "ulimit -n" in str(caught.value.hint)
