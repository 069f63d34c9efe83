"""The loop, on a task that is small enough to be checked by hand, and on the real ones."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from line_task import CPU, Broken, Hopeless, Killed, Line, LineTask, Poisoned, config
from torch import Tensor, nn

from s2f.dataloader import Item, Key, plan_steps
from s2f.errors import DatasetError, DeviceError, UsageError
from s2f.files import alone_in
from s2f.train import Group, lr_at, train


def test_the_loss_falls(tmp_path: Path) -> None:
    result = train(LineTask(), tmp_path, config(steps=200, every=100), device=CPU)
    assert result.losses["mse"] < 0.05
    assert result.best.is_file()


def test_two_equal_runs_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(LineTask(), tmp_path / name, config(), device=CPU)
    for file in ("best.safetensors", "last/state.safetensors", "history.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("at", [10, 25])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, at: int) -> None:
    def kill(done: int, total: int, what: str) -> None:
        if done == at:
            raise Killed

    train(LineTask(), tmp_path / "whole", config(), device=CPU)
    with pytest.raises(Killed):
        train(LineTask(), tmp_path / "killed", config(), device=CPU, progress=kill)
    train(LineTask(), tmp_path / "killed", config(), device=CPU)
    for file in ("best.safetensors", "last/state.safetensors", "history.jsonl"):
        whole = (tmp_path / "whole" / file).read_bytes()
        assert whole == (tmp_path / "killed" / file).read_bytes(), file


def test_the_result_tells_the_losses_of_the_best_step_and_the_time(tmp_path: Path) -> None:
    result = train(LineTask(), tmp_path, config(), device=CPU)
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    (best,) = [r for r in map(json.loads, lines) if r["step"] == result.step]
    assert (result.train_losses, result.losses) == (best["train"], best["val"])
    assert (result.steps, result.samples) == (40, 160)
    assert result.samples_per_second == pytest.approx(160 / result.seconds)
    again = train(LineTask(), tmp_path, config(), device=CPU)
    assert again == result and again.samples_per_second == 0


def test_a_run_that_ends_lets_go_of_its_processes(tmp_path: Path) -> None:
    # Something else that keeps a frame of the loop alive must not keep them.
    kept: list[object] = []

    def keep(done: int, total: int, what: str) -> None:
        kept.append(sys._getframe())
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        train(LineTask(), tmp_path, config(workers=1), device=CPU, progress=keep)
    assert not multiprocessing.active_children()
    train(LineTask(), tmp_path, config(workers=1), device=CPU)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    train(LineTask(), tmp_path, config(), device=CPU)
    seen: list[int] = []
    again = train(
        LineTask(), tmp_path, config(), device=CPU, progress=lambda d, t, w: seen.append(d)
    )
    assert seen == [] and again.best.is_file() and again.losses["mse"] > 0


def test_another_config_in_the_same_folder_is_refused_by_its_difference(tmp_path: Path) -> None:
    train(LineTask(), tmp_path, config(), device=CPU)
    with pytest.raises(UsageError, match=r"holds a run with lr 0.02; this one has 0.5"):
        train(LineTask(), tmp_path, config(lr=0.5), device=CPU)


def test_another_task_in_the_same_folder_is_refused_by_its_difference(tmp_path: Path) -> None:
    train(LineTask(preset="a"), tmp_path, config(), device=CPU)
    with pytest.raises(UsageError, match="holds a run with preset a; this one has b"):
        train(LineTask(preset="b"), tmp_path, config(), device=CPU)


def test_a_run_goes_on_with_another_number_of_workers(tmp_path: Path) -> None:
    result = train(LineTask(), tmp_path, config(), device=CPU)
    assert train(LineTask(), tmp_path, config(workers=1), device=CPU) == result


def test_a_run_that_too_many_bad_items_ended_goes_on_with_a_higher_limit(tmp_path: Path) -> None:
    task = LineTask()
    task.train_data = Broken()
    with pytest.raises(DatasetError, match="item 7 is broken"):
        train(task, tmp_path, config(), device=CPU)
    task = LineTask()
    task.train_data = Broken()
    assert train(task, tmp_path, config(max_bad=1), device=CPU).bad == 1


def test_bad_items_of_the_last_validation_are_told_too(tmp_path: Path) -> None:
    task, notes = LineTask(), []
    task.val_data = Broken()
    result = train(task, tmp_path, config(every=40, max_bad=1), device=CPU, note=notes.append)
    assert result.bad == 1 and notes == ["left out: item 7 is broken"]


def test_a_reading_process_that_dies_is_told_with_a_cure(tmp_path: Path) -> None:
    class Deadly(Line):
        def __getitem__(self, key: Key) -> Item:
            os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(key)

    task = LineTask()
    task.train_data = Deadly()
    with pytest.raises(DeviceError, match=r"has died: .*Killed"):
        train(task, tmp_path, config(workers=1), device=CPU)


def test_an_interruption_ends_the_solving_too(tmp_path: Path) -> None:
    class Solved(LineTask):
        def finish(self, batches: Callable[[int], Iterator[Item]]) -> bool:
            for number, _ in enumerate(batches(100)):
                if number == 2 and asked:
                    asked.clear()
                    signal.raise_signal(signal.SIGTERM)
            return True

    asked = [True]
    with pytest.raises(KeyboardInterrupt):
        train(Solved(), tmp_path / "stopped", config(), device=CPU)
    for name in ("whole", "stopped"):
        train(Solved(), tmp_path / name, config(), device=CPU)
    for file in ("best.safetensors", "last/state.safetensors", "history.jsonl"):
        whole = (tmp_path / "whole" / file).read_bytes()
        assert whole == (tmp_path / "stopped" / file).read_bytes(), file


def test_a_training_that_diverges_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the training diverged: at step"):
        train(LineTask(), tmp_path, config(lr=1e30), device=CPU)
    assert not (tmp_path / "best.safetensors").exists()


def test_what_cannot_be_calibrated_is_refused_before_there_is_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="share no predicted embedding"):
        train(LineTask(), tmp_path / "run", config(calibrate_at=5), device=CPU)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_item_is_named_with_its_cure_from_any_process(
    tmp_path: Path, workers: int
) -> None:
    task = LineTask()
    task.train_data = Broken()
    with pytest.raises(DatasetError) as caught:
        train(task, tmp_path, config(workers=workers), device=CPU)
    assert caught.value.message == "item 7 is broken"
    assert caught.value.hint == "make it again; or go on without it: --max-bad 1"


@pytest.mark.parametrize("workers", [0, 1])
def test_the_next_item_takes_the_place_of_a_bad_one_up_to_the_limit(
    tmp_path: Path, workers: int
) -> None:
    task, notes = LineTask(), []
    task.train_data = Broken()
    plan = config(workers=workers, max_bad=1)

    def left_out() -> list[str]:
        return [text for text in notes if "loss.png" not in text]  # without matplotlib

    result = train(task, tmp_path / "run", plan, device=CPU, note=notes.append)
    assert result.bad == 1 and left_out() == ["left out: item 7 is broken"]
    again = train(LineTask(), tmp_path / "run", plan, device=CPU, note=notes.append)
    assert again.bad == 1 and len(left_out()) == 1  # the finished run still knows


def test_too_many_bad_items_end_the_run(tmp_path: Path) -> None:
    task = LineTask()
    task.train_data = Hopeless()
    with pytest.raises(DatasetError, match="more than 3 items cannot be read; the last: item"):
        train(task, tmp_path, config(max_bad=3), device=CPU)


def test_a_batch_in_parts_is_the_same_step(tmp_path: Path) -> None:
    results = []
    for name, parts in (("whole", 1), ("parts", 4)):
        task = LineTask(dropout=0.0)
        plan = config(accumulate=parts, batch_size=8)
        results.append(train(task, tmp_path / name, plan, device=CPU).losses["mse"])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


@pytest.mark.parametrize(("size", "parts"), [(6, 4), (2, 4)])
def test_a_batch_that_cannot_be_split_is_refused(tmp_path: Path, size: int, parts: int) -> None:
    with pytest.raises(UsageError, match="cannot be split evenly for 1 devices, each in 4 parts"):
        train(LineTask(), tmp_path, config(batch_size=size, accumulate=parts), device=CPU)


def test_weights_that_are_all_0_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing is learned: all losses have weight 0: mse"):
        train(LineTask(), tmp_path, config(loss_weights={"mse": 0.0}), device=CPU)


def test_what_would_never_be_trained_is_refused(tmp_path: Path) -> None:
    task = LineTask()
    body, _, head = task.network
    task.groups = [Group(list(head.parameters())), Group(list(body.parameters()), 40)]
    with pytest.raises(UsageError, match="trained from step 40 on never are: there are 40 steps"):
        train(task, tmp_path, config(), device=CPU)


def test_batch_norm_needs_more_than_one_sample(tmp_path: Path) -> None:
    task = LineTask()
    task.network.append(nn.BatchNorm1d(1))
    for plan in (config(batch_size=1), config(batch_size=4, accumulate=4)):
        with pytest.raises(UsageError, match="BatchNorm cannot normalise over a batch of 1"):
            train(task, tmp_path, plan, device=CPU)


def test_what_starts_later_is_frozen_until_then(tmp_path: Path) -> None:
    class Late(LineTask):
        def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
            if self.network.training:
                seen.append((body.weight.requires_grad, body.weight.detach().clone()))
            return super().losses(batch, augmented=augmented)

    def train_to(name: str, stop: int | None) -> None:
        nonlocal body
        task = Late()
        body, _, head = task.network
        task.groups = [Group(list(head.parameters())), Group(list(body.parameters()), 15, 0.1)]

        def kill(done: int, total: int, what: str) -> None:
            if done == stop:
                raise Killed

        with contextlib.suppress(Killed):
            train(task, tmp_path / name, config(), device=CPU, progress=kill)

    seen: list[tuple[bool, Tensor]] = []
    body: nn.Module
    train_to("whole", None)
    assert [grad for grad, _ in seen] == 15 * [False] + 25 * [True]
    assert all(torch.equal(weight, seen[0][1]) for _, weight in seen[:16])
    assert not torch.equal(seen[16][1], seen[0][1])
    for stop in (12, 25):  # in either stage
        train_to(f"killed{stop}", stop)
        train_to(f"killed{stop}", None)
        for file in ("best.safetensors", "last/state.safetensors"):
            whole = (tmp_path / "whole" / file).read_bytes()
            assert (tmp_path / f"killed{stop}" / file).read_bytes() == whole


def test_a_group_has_its_share_of_the_learning_rate(tmp_path: Path) -> None:
    moved = []
    for share in (1.0, 0.25):
        task = LineTask(dropout=0.0)
        task.groups = [Group(list(task.network.parameters()), lr=share)]
        before = task.network[0].weight.detach().clone()
        train(task, tmp_path / str(share), config(steps=1, weight_decay=0.0), device=CPU)
        moved.append(task.network[0].weight.detach() - before)
    torch.testing.assert_close(moved[1], 0.25 * moved[0], rtol=1e-3, atol=1e-9)


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path) -> None:
    plan = config(steps=400, patience=3, lr=1e-12)
    result = train(LineTask(), tmp_path, plan, device=CPU)
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    scores = [json.loads(line)["val"]["mse"] for line in lines]
    assert scores.index(min(scores)) == result.step // 10 - 1
    assert result.steps == result.step + 30 < 400
    assert train(LineTask(), tmp_path, plan, device=CPU) == result  # nothing is left to do


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_a_step_is_the_optimizers_of_the_whole_batch(tmp_path: Path, kind: str) -> None:
    # The same step by hand, in plain torch.
    task, plain = LineTask(dropout=0.0), LineTask(dropout=0.0).network
    plan = config(steps=1, batch_size=16, optimizer=kind, betas=(0.5, 0.999), eps=1e-4, clip=0.1)
    train(task, tmp_path, plan, device=CPU)
    make = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
    rule = make(plain.parameters(), lr=0.02, betas=(0.5, 0.999), eps=1e-4, weight_decay=1e-4)
    x = torch.arange(16)[:, None] / 16
    (plain(x) - (2 * x + 1)).square().mean().backward()
    norm = torch.stack([p.grad.square().sum() for p in plain.parameters()]).sum().sqrt()
    for p in plain.parameters():
        p.grad *= 0.1 / norm
    rule.step()
    for mine, theirs in zip(task.network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_bf16_trains_in_float32_weights(tmp_path: Path) -> None:
    task = LineTask()
    result = train(task, tmp_path, config(steps=200, precision="bf16"), device=CPU)
    assert result.losses["mse"] < 0.06
    assert {p.dtype for p in task.network.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
def test_a_compiled_network_learns_the_same(tmp_path: Path) -> None:
    losses = [
        train(LineTask(dropout=0.0), tmp_path / str(c), config(compile=c), device=CPU).losses["mse"]
        for c in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_item_that_gave_no_finite_loss_is_named_and_the_last_state_kept(
    tmp_path: Path,
) -> None:
    plan = config(every=2)  # 16 points in batches of 4: the bad one comes in step 1 to 4
    task = LineTask()
    task.train_data = Poisoned()
    seed = next(
        s
        for s in range(99)
        if 7 in [k.item for k in list(plan_steps(16, 4, seed=s, steps=range(4)))[3]]
    )
    plan = dataclasses.replace(plan, seed=seed)
    with pytest.raises(UsageError, match=r"at step 4 the loss is mse nan, .* for point 7$"):
        train(task, tmp_path, plan, device=CPU)
    state = safetensors.torch.load_file(tmp_path / "last/state.safetensors")
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 1


def test_a_run_that_is_at_work_is_left_alone(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(UsageError, match="another s2f is at work there"):
        train(LineTask(), tmp_path, config(), device=CPU)


def test_a_run_directory_tells_its_story(tmp_path: Path) -> None:
    train(LineTask(), tmp_path, config(), device=CPU)
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20, 30, 40]
    assert json.loads(lines[0])["val"]["mse"] > json.loads(lines[-1])["val"]["mse"]
    assert len(list((tmp_path / "samples").glob("*.png"))) == 4
    assert json.loads((tmp_path / "config.json").read_text())["task"] == "line"


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    plan = config(steps=1000, lr=1.0)
    assert lr_at(0, plan) == pytest.approx(1 / 100)
    assert lr_at(100, plan) == pytest.approx(1.0)
    assert lr_at(550, plan) == pytest.approx(0.505)
    assert lr_at(1000, plan) == pytest.approx(0.01)


def test_the_papers_rate_falls_by_a_twentieth_every_10000_steps() -> None:
    plan = config(schedule="paper", lr=1e-3)
    assert lr_at(9_999, plan) == 1e-3
    assert lr_at(20_000, plan) == pytest.approx(1e-3 * 0.95**2)


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"schedule": "linear"}, {"calibrate_at": 40}, {"seed": 2**32}]
)
def test_a_config_that_cannot_run_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        config(**change)
