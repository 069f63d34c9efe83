"""The step, apart from the loop; what a whole run makes of it is in `test_train`."""

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from test_train import CPU, LineTask, config

from s2f.distributed import ALONE, Ranks
from s2f.run_dir import Run
from s2f.train import MEASURED, Learner, Watch, undisturbed


@given(n=st.integers(0, 300))
def test_every_item_is_measured_once_in_full_length(n: int) -> None:
    batches = undisturbed(n)
    assert [key.item for batch in batches for key in batch] == list(range(n))
    assert all(0 < len(batch) <= MEASURED for batch in batches)
    assert {key.share for batch in batches for key in batch} <= {1.0}


def test_the_parts_of_all_processes_make_up_a_step() -> None:
    state, wanted = Run(Path("run"), writes=False), config(batch_size=8)
    (whole,) = Learner(LineTask(), wanted, state, CPU, ALONE).order(3, 4)
    plan, found = config(batch_size=8, accumulate=2), []
    for rank in range(2):
        found += Learner(LineTask(), plan, state, CPU, Ranks(rank, 2)).order(3, 4)
    assert [len(part) for part in found] == [2, 2, 2, 2]
    assert [key for part in found for key in part] == whole


def test_a_step_tells_what_it_saw_and_moves_the_network() -> None:
    plan = config(batch_size=4, loss_weights={"mse": 3.0})
    state = Run(Path("run"), writes=False)
    task = LineTask(dropout=0.0)
    learner = Learner(task, plan, state, CPU, ALONE)
    before = [p.detach().clone() for p in task.network.parameters()]
    order = learner.order(0, 1)
    (keys,) = list(order)
    batches = Watch(task.train_data, plan, state, ALONE).read(task.train_data, order, CPU)
    done = learner.step(batches, lambda text: None)
    assert (done.step, state.step, done.keys) == (1, 1, keys)
    x = torch.tensor([[key.item / 16] for key in keys])
    with torch.no_grad():
        for parameter, value in zip(task.network.parameters(), before, strict=True):
            parameter.copy_(value)
        expected = (task.network(x) - (2 * x + 1)).square().mean(1)
    torch.testing.assert_close(done.values["mse"], expected)
    torch.testing.assert_close(done.total, 3 * expected)
    assert learner.rates == [0.02 / 4]  # the first of 4 steps of warm-up
