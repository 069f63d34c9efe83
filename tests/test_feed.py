"""The order of the samples, and what becomes of bad ones."""

import torch

from s2f.dataloader import Careful, Item, Key, Order
from s2f.errors import DatasetError


def test_every_epoch_is_a_permutation() -> None:
    keys = [key for batch in Order(7, 3, seed=0, start=0, steps=7) for key in batch]
    indices = [index for index, _, _ in keys]
    for epoch in range(3):
        assert sorted(indices[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert indices[:7] != indices[7:14]
    assert len({seed for _, seed, _ in keys}) == len(keys)


def test_a_resumed_order_goes_on_where_it_stopped() -> None:
    whole = list(Order(10, 4, seed=3, start=0, steps=9))
    assert list(Order(10, 4, seed=3, start=5, steps=9)) == whole[5:]


class Third:
    """A dataset of which only item 3 can be read."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, key: Key) -> Item:
        if key.item != 3:
            raise DatasetError(f"item {key.item} is broken")
        return {"x": torch.zeros(1)}


def test_an_item_in_the_place_of_a_bad_one_goes_by_its_own_key() -> None:
    loaded = Careful(Third(), max_bad=4)[Key(4, 7, 0.5)]
    assert loaded.keys == [Key(3, 7, 0.5)] and loaded.items is not None
    assert [error.message for error in loaded.bad] == [f"item {k} is broken" for k in (4, 0, 1, 2)]
