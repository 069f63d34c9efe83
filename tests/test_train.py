"""The loop and the dry run, on a task that is small enough to be checked by hand."""

import itertools
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from line_task import CPU, Killed, Line, LineTask, assert_same_run, config, killing, start
from torch import Tensor, nn

from s2f import train as train_module
from s2f.dataloader import Item, Key, plan_steps
from s2f.errors import DatasetError, DeviceError, S2FError, UsageError
from s2f.files import alone_in
from s2f.train import (
    MEASURED,
    RECALLS,
    Group,
    configure,
    lr_at,
    rehearse,
    train,
    undisturbed,
)

RUN = Path("run")  # of a rehearsal, which does not touch it


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def test_the_loss_falls_and_the_directory_tells_the_story(tmp_path):
    plan = {"steps": 200, "every": 50}
    result = train(LineTask(), tmp_path, config(**plan), device=CPU)
    assert result.losses["mse"] < 0.05 and result.best.is_file()
    records = history(tmp_path)
    assert [record["step"] for record in records] == [50, 100, 150, 200]
    (best,) = [record for record in records if record["step"] == result.step]
    assert (result.train_losses, result.losses) == (best["train"], best["val"])
    assert len(list((tmp_path / "samples").glob("*.png"))) == 4
    assert (result.steps, result.samples) == (200, 800)
    assert result.samples_per_second == pytest.approx(800 / result.seconds)
    with alone_in(tmp_path), pytest.raises(UsageError, match="another s2f is at work there"):
        train(LineTask(), tmp_path, config(**plan), device=CPU)
    # Nothing is left to do, with any number of workers.
    again = train(LineTask(), tmp_path, config(workers=1, **plan), device=CPU)
    assert again == result and again.samples_per_second == 0


@pytest.mark.parametrize("at", [12, 20, 25])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, at):
    def run(name: str, workers: int = 0, **how: Any) -> None:
        plan = config(workers=workers)
        train(LineTask().in_stages(), tmp_path / name, plan, device=CPU, **how)

    run("whole")
    before = {*multiprocessing.active_children()}  # of other tests
    with pytest.raises(Killed) as kept:  # the loop's frames, which must not keep its processes
        run("killed", 1, progress=killing(at))
    assert before.issuperset(multiprocessing.active_children()) and kept.tb
    run("killed")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_what_a_killed_run_left_goes_but_nothing_of_the_users(tmp_path):
    left, own = tmp_path / "last/.s2f-00000000-1-00000000", tmp_path / "notes/.s2f-mine"
    for path in (left, own):
        path.parent.mkdir()
        path.touch()
    with pytest.raises(UsageError, match="is no run"):
        train(LineTask(), tmp_path, config(steps=1), device=CPU)
    assert left.exists() and own.exists()
    (tmp_path / "notes").rename(tmp_path / ".notes"), left.parent.rename(tmp_path / ".last")
    train(LineTask(), tmp_path, config(steps=1), device=CPU)
    assert [path.name for path in tmp_path.rglob(".s2f-*")] == [own.name]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_item_is_named_or_the_next_takes_its_place(tmp_path, workers):
    def run(task: LineTask, max_bad: int, name: str = "run") -> int:
        plan = config(workers=workers, max_bad=max_bad)
        return train(task, tmp_path / name, plan, device=CPU, note=notes.append).bad

    notes: list[str] = []
    with pytest.raises(DatasetError) as caught:
        run(LineTask(Line(bad=[7])), 0)
    assert caught.value.message == "item 7 is broken"
    assert caught.value.hint == "make it again; or go on without it: --max-bad 1"
    for task in (LineTask(Line(bad=[7])), LineTask()):  # the finished run still knows
        assert run(task, 1) == 1  # the same one goes on
    assert notes == ["left out: item 7 is broken"]
    assert run(LineTask(val=Line(bad=[7])), 1, "val") == 1
    with pytest.raises(DatasetError, match="more than 3 items cannot be read; the last: item"):
        run(LineTask(Line(bad=range(16))), 3, "all")


def test_a_reading_process_that_dies_is_told_with_a_cure(tmp_path):
    class Deadly(Line):
        def __getitem__(self, key: Key) -> Item:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    with pytest.raises(DeviceError, match=r"has died: .*Killed"):
        train(LineTask(Deadly()), tmp_path, config(workers=1), device=CPU)


def test_an_interruption_ends_the_solving_too(tmp_path):
    class Solved(LineTask):
        solves = True

        def finish(self, batches: Callable[[int], Iterator[Item]]) -> None:
            for number, _ in enumerate(batches(10)):
                if number == 2 and asked:
                    asked.clear()
                    signal.raise_signal(signal.SIGTERM)

    asked = [True]
    with pytest.raises(KeyboardInterrupt):
        train(Solved(), tmp_path / "stopped", config(), device=CPU)
    for name in ("whole", "stopped"):
        train(Solved(), tmp_path / name, config(), device=CPU)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert history(tmp_path / "whole")[-1]["solved"] is True


class Solved(LineTask):
    """Solves for the bias in the end, by the mean of what is left: never worse."""

    solves = True

    @torch.no_grad()
    def finish(self, batches: object) -> None:
        x = torch.arange(16)[:, None] / 16
        self.network.eval()
        self.network[2].bias += (2 * x + 1 - self.network(x)).mean()
        self.network.train()


@pytest.mark.parametrize("kind", [LineTask, Solved])
@pytest.mark.parametrize("schedule", ["constant", "paper"])
def test_a_finished_run_is_lengthened_as_if_it_had_been_so_long(tmp_path, kind, schedule):
    def run(name: str, steps: int, stop: int = -1, **changes: Any) -> int:
        plan, how = config(steps=steps, schedule=schedule, **changes), {"progress": killing(stop)}
        return train(kind(), tmp_path / name, plan, device=CPU, note=notes.append, **how).steps

    notes: list[str] = []
    assert run("whole", 80) == 80 and not notes
    assert history(tmp_path / "whole")[-1].get("kept") is (True if kind is Solved else None)
    run("short", 20)
    with pytest.raises(Killed):
        run("short", 60, 35)
    assert run("short", 60) == 60 and run("short", 80) == 80
    assert_same_run(tmp_path / "whole", tmp_path / "short")
    assert notes == ["steps 60, which was 20", "steps 80, which was 60"]
    with pytest.raises(UsageError, match="holds a run with steps 80; this one has 60"):
        run("short", 60)
    # Where the first end was no validation of the longer run, it counts as one all the same.
    run("odd", 25)
    run("odd", 80)
    assert [record["step"] for record in history(tmp_path / "odd")][:4] == [10, 20, 25, 30]
    assert notes[-1] == "step 25 was validated as the last, and counts"


def test_what_was_solved_for_is_taken_back_where_a_run_is_lengthened(tmp_path):
    """What is solved for is far worse, and lies in `solved`; a run that an earlier s2f ended."""

    class Worse(Solved):
        def finish(self, batches: object) -> None:
            self.network[2].bias.data += 9.0

    plan = config(steps=20, schedule="constant")
    train(Worse(), tmp_path, plan, device=CPU)
    assert (tmp_path / "solved/best.safetensors").is_file()
    with pytest.raises(Killed):
        train(
            Solved(), tmp_path, config(steps=60, schedule="constant"), device=CPU,
            progress=killing(25),
        )  # fmt: skip
    assert not (tmp_path / "solved/best.safetensors").exists()
    state = tmp_path / "old/last/state.safetensors"
    train(Solved(), tmp_path / "old", plan, device=CPU)
    with safetensors.safe_open(state, "pt") as file:
        numbers = json.loads(file.metadata()["run"])
        tensors = {k: file.get_tensor(k) for k in file.keys() if not k.startswith("best.")}
    del numbers["unsolved"]
    safetensors.torch.save_file(tensors, state, {"run": json.dumps(numbers)})
    with pytest.raises(UsageError, match="cannot be lengthened: an earlier s2f has") as caught:
        train(Solved(), tmp_path / "old", config(steps=60, schedule="constant"), device=CPU)
    assert "--init" in caught.value.hint


def test_a_cosine_that_is_lengthened_is_that_of_the_new_steps_and_that_is_said(tmp_path):
    notes: list[str] = []
    for steps in (20, 80):
        plan = config(steps=steps, every=5)
        train(LineTask(), tmp_path, plan, device=CPU, note=notes.append)
    rates = {record["step"]: record["lr"] for record in history(tmp_path)}
    assert rates[20] == lr_at(19, config(steps=20)) < rates[25] == lr_at(24, config(steps=80))
    seen, rate = json.loads((tmp_path / "config.json").read_text()), lr_at(20, config(steps=80))
    assert (seen["steps"], seen["lengthened_from"]) == (80, [20])
    assert f"from here on: at step 20 it goes from 0.0002 to {rate:.3g}, and the end" in notes[-1]
    again = train(LineTask(), tmp_path, plan, device=CPU, note=notes.append)
    assert again.steps == 80 and len(notes) == 2  # said once


def test_patience_ends_a_longer_run_at_the_same_step_and_may_be_changed(tmp_path):
    notes: list[str] = []

    def run(steps: int, **changes: Any) -> int:
        plan = config(steps=steps, lr=1e-12, schedule="constant", **changes)
        return train(LineTask(), tmp_path, plan, device=CPU, note=notes.append).steps

    ended = run(400, patience=3)
    assert ended < 400 and run(500, patience=3) == ended
    assert notes[-1].startswith(f"more steps change nothing: --patience 3 ended it at step {ended}")
    assert run(500, patience=4) == ended + 10 and run(510) == 510


def test_what_is_equal_for_the_result_may_be_changed_on_the_way(tmp_path):
    def run(name: str, stop: int = -1, make: Any = LineTask, **changes: Any) -> Any:
        task = make() if make is not LineTask else LineTask(dropout=0.0)
        plan, how = config(batch_size=8, **changes), {"progress": killing(stop)}
        return train(task, tmp_path / name, plan, device=CPU, note=notes.append, **how)

    notes: list[str] = []
    run("whole")
    with pytest.raises(Killed):
        run("changed", 15)
    run("changed", accumulate=4, every=5)
    assert notes == ["accumulate 4, which was 1", "every 5, which was 10"]
    whole, changed = (
        {r["step"]: r for r in history(tmp_path / name)} for name in ("whole", "changed")
    )
    assert sorted(changed) == [10, 15, 20, 25, 30, 35, 40]
    for step, record in whole.items():
        for part in ("train", "val"):
            assert changed[step][part] == pytest.approx(record[part], rel=1e-4), step
    assert json.loads((tmp_path / "changed/config.json").read_text())["accumulate"] == 4
    # BatchNorm normalises over the parts: there it is another training, and refused as such.
    with pytest.raises(Killed):
        run("norm", 15, with_batch_norm)
    with pytest.raises(UsageError, match="holds a run with accumulate 1; this one has 2"):
        run("norm", make=with_batch_norm, accumulate=2)


def values(path: Path) -> list[float]:
    tensors = safetensors.torch.load_file(path)
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)]).tolist()


@pytest.mark.parametrize(("moved", "kept"), [(0.0, True), (9.0, False)])
def test_the_best_is_the_best_in_validation_whatever_is_solved_for(tmp_path, moved, kept):
    """The rate is so large that the last step is not the best; what is solved moves the bias."""

    class Solved(LineTask):
        solves = True

        def finish(self, batches: object) -> None:
            found.extend(torch.cat([p.detach().flatten() for _, p in self.ordered()]).tolist())
            self.network[2].bias.data += moved

        def ordered(self) -> list[tuple[str, nn.Parameter]]:
            return sorted(self.network.named_parameters())

    found: list[float] = []
    notes: list[str] = []
    plan, parts = config(steps=40, every=2, lr=0.5), Solved(dropout=0.0)
    result = train(parts, tmp_path, plan, device=CPU, note=notes.append)
    *steps, solved = history(tmp_path)
    best = min(steps, key=lambda record: record["val"]["mse"])
    assert best["step"] < 40 and solved["solved"] and solved["kept"] is kept
    # It is solved for in the network that was best, and this is in best.safetensors.
    unsolved = tmp_path / "unsolved"
    plain = train(LineTask(dropout=0.0), unsolved, plan, device=CPU)
    assert plain.step == best["step"] and found == values(plain.best)
    if kept:
        assert solved["val"] == best["val"] == result.losses and not notes
        assert not (tmp_path / "solved").exists()
    else:
        assert solved["val"]["mse"] > 2 * best["val"]["mse"] and result.losses == best["val"]
        assert (
            f"worse in validation ({solved['val']['mse']:.6g}) than step {best['step']}" in notes[0]
        )
        far = values(tmp_path / "solved/best.safetensors")
        assert max(a - b for a, b in zip(far, found, strict=True)) == pytest.approx(9)
    assert values(result.best) == found and (result.step == best["step"]) is not kept
    assert train(Solved(), tmp_path, plan, device=CPU) == result  # nothing is left to do
    # A run that was stopped knows the best as well.
    with pytest.raises(Killed):
        train(Solved(dropout=0.0), tmp_path / "killed", plan, device=CPU, progress=killing(35))
    train(Solved(dropout=0.0), tmp_path / "killed", plan, device=CPU)
    for file in ("best.safetensors", "last/state.safetensors", "history.jsonl"):
        assert (tmp_path / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()


def test_a_training_that_diverges_names_the_item_and_keeps_the_last_state(tmp_path):
    def last(seed: int) -> list[int]:  # 16 points in batches of 4: each comes in step 1 to 4
        *_, keys = plan_steps(16, 4, seed=seed, steps=range(4))
        return [key.item for key in keys]

    plan = config(every=2, seed=next(seed for seed in range(99) if 7 in last(seed)))
    with pytest.raises(UsageError, match=r"at step 4 the loss is mse nan, .* for point 7$"):
        train(LineTask(Line(poisoned=7)), tmp_path, plan, device=CPU)
    state = safetensors.torch.load_file(tmp_path / "last/state.safetensors")
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert [record["step"] for record in history(tmp_path)] == [2]
    with pytest.raises(UsageError, match=r"at step 10 the validation losses are .*nan"):
        train(LineTask(val=Line(poisoned=7)), tmp_path / "other", config(), device=CPU)
    assert not (tmp_path / "other/best.safetensors").exists()
    with pytest.raises(UsageError, match=r"at step 1 the loss is mse nan, .* for point 7$"):
        rehearse(LineTask(Line(poisoned=7)), RUN, config(batch_size=16), device=CPU)


def with_batch_norm() -> LineTask:
    return LineTask(network=nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)))


@pytest.mark.parametrize(
    ("task", "changes", "why"),
    [
        (LineTask, {"batch_size": 6, "accumulate": 4}, "1 devices, each in 4 parts"),
        (LineTask, {"loss_weights": {"mse": 0.0}}, "have weight 0: mse"),
        (LineTask, {"loss_weights": {"mae": 1.0}}, "--loss-weight mae: is no loss"),
        (LineTask, {"calibrate_at": 5}, "share no predicted embedding"),
        (lambda: LineTask().in_stages(), {"steps": 15}, "never are: there are 15"),
        (with_batch_norm, {"batch_size": 1}, "normalise over a batch of 1"),
        (with_batch_norm, {"accumulate": 4}, "normalise over a batch of 1"),
        (lambda: LineTask(val=[]), {}, "there is nothing in val"),
        (LineTask, {"compile": True}, r"needs g\+\+"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_run(tmp_path, monkeypatch, task, changes, why):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    for attempt in (train, rehearse):
        with pytest.raises(S2FError, match=why):
            attempt(task(), tmp_path / "run", config(**changes), device=CPU)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["steps", "schedule", "calibrate_at", "seed", "lr", "betas"])
def test_a_config_that_cannot_run_is_refused(name):
    wrong = {"steps": 0, "schedule": "linear", "calibrate_at": 40, "seed": 2**32, "lr": 0.0}
    with pytest.raises(UsageError, match=name.split("_")[0]):
        config(**{name: (wrong | {"betas": (0.9, 1.0)})[name]})


def test_what_is_clipped_where_nothing_is_said_follows_eps():
    assert [config(eps=eps).clip for eps in (1e-8, 9e-5, 1e-4, 1e-3)] == [5.0, 5.0, 0.0, 0.0]
    assert config(eps=1e-4, clip=3.0).clip == 3.0 and config(clip=0.0).clip == 0.0
    with pytest.raises(UsageError, match=r"clip -1\.0: wanted a number above 0, or 0"):
        config(clip=-1.0)


def test_what_starts_later_is_frozen_until_then(tmp_path):
    class Late(LineTask):
        def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
            if self.network.training:
                weight = self.network[0].weight
                seen.append((weight.requires_grad, weight.detach().clone()))
            return super().losses(batch, augmented=augmented)

    seen: list[tuple[bool, Tensor]] = []
    train(Late().in_stages(), tmp_path, config(), device=CPU)
    assert [grad for grad, _ in seen] == 15 * [False] + 25 * [True]
    assert all(torch.equal(weight, seen[0][1]) for _, weight in seen[:16])
    assert not torch.equal(seen[16][1], seen[0][1])


def test_patience_ends_a_run_that_gets_no_better(tmp_path):
    plan = config(steps=400, patience=3, lr=1e-12)
    result = train(LineTask(), tmp_path, plan, device=CPU)
    scores = [record["val"]["mse"] for record in history(tmp_path)]
    assert scores.index(min(scores)) == result.step // 10 - 1
    assert result.steps == result.step + 30 < 400
    assert train(LineTask(), tmp_path, plan, device=CPU) == result  # nothing is left to do


@pytest.mark.parametrize(("kind", "parts", "clip"), [("adam", 1, 0.1), ("adamw", 4, 0.0)])
def test_a_step_is_the_optimizers_of_the_whole_batch(tmp_path, kind, parts, clip):
    # The same step by hand, in plain torch; the second layer has a quarter of the learning rate.
    task, plain = LineTask(dropout=0.0), LineTask(dropout=0.0).network
    shares = {0: 1.0, 2: 0.25}
    task.groups = [Group(list(task.network[k].parameters()), lr=s) for k, s in shares.items()]
    rule = {"betas": (0.5, 0.999), "eps": 1e-4}
    plan = config(steps=1, batch_size=16, accumulate=parts, optimizer=kind, clip=clip, **rule)
    train(task, tmp_path, plan, device=CPU)
    make = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
    groups = [{"params": plain[k].parameters(), "lr": 0.02 * s} for k, s in shares.items()]
    optimizer = make(groups, weight_decay=1e-4, **rule)
    x = torch.arange(16)[:, None] / 16
    (plain(x) - (2 * x + 1)).square().mean().backward()
    norm = nn.utils.clip_grad_norm_(plain.parameters(), clip or 1e9)
    assert norm > 1  # or there was nothing to clip
    optimizer.step()
    for mine, theirs in zip(task.network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_bf16_trains_in_float32_weights(tmp_path):
    task, plan = LineTask(), config(steps=200, precision="bf16", deterministic=True)
    assert train(task, tmp_path, plan, device=CPU).losses["mse"] < 0.06
    assert {p.dtype for p in task.network.parameters()} == {torch.float32}
    assert not torch.are_deterministic_algorithms_enabled()  # as it was before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
def test_a_compiled_network_learns_the_same(tmp_path):
    losses = [
        train(LineTask(dropout=0.0), tmp_path / str(c), config(compile=c), device=CPU).losses["mse"]
        for c in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("cosine", {0: 1 / 100, 100: 1.0, 550: 0.505, 1000: 0.01}),  # 100 steps of warm-up
        ("paper", {9_999: 1.0, 20_000: 0.95**2}),  # a twentieth less every 10,000
        ("constant", {0: 1.0, 999: 1.0}),
    ],
)
def test_the_rate_follows_its_schedule(schedule, rates):
    plan = config(steps=1000, lr=1.0, schedule=schedule)
    assert {step: lr_at(step, plan) for step in rates} == pytest.approx(rates)


@given(n=st.integers(0, 300))
def test_every_item_is_measured_once_in_full_length(n):
    batches = undisturbed(n)
    assert [key for batch in batches for key in batch] == [Key(i, i, 1.0) for i in range(n)]
    assert all(0 < len(batch) <= MEASURED for batch in batches)


@given(n=st.integers(1, 300), most=st.integers(1, 300))
def test_of_many_some_are_measured_spread_evenly(n, most):
    items = [key.item for batch in undisturbed(n, most) for key in batch]
    assert len(items) == len(set(items)) == min(n, most) and items[0] == 0
    gaps = {b - a for a, b in itertools.pairwise([*items, n])}
    assert items == sorted(items) and max(gaps) - min(gaps) <= 1


class Many(Line):
    """More points, each of which takes a while to read."""

    n, seconds = 4000, 0.0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, key: Key) -> Item:
        time.sleep(self.seconds)
        return super().__getitem__(key._replace(item=key.item % 16))


def test_a_tenth_of_what_is_learned_from_is_measured_unless_told_otherwise():
    task = LineTask(val=Many())

    def most(begun: dict[str, Any] | None = None, **chosen: Any) -> int | None:
        return configure(task, chosen, begun=begun).val_samples

    assert most() == 500 * 32 // 10 and most(every=100, batch_size=8) == 80
    assert most(every=10, batch_size=8) == MEASURED  # at least
    assert most(every=5000) is most(val_samples=4000) is most(val_samples=9999) is None  # all
    assert most(val_samples=7) == most({"task": "line"}, val_samples=7) == 7
    # A run goes on as it was begun, also by an earlier s2f, which measured all.
    assert most({"task": "line", "val_samples": 80}, every=5) == 80
    assert most({"task": "line"}, every=5) is None


def test_validation_takes_at_most_a_tenth_of_the_time_unless_told_otherwise(tmp_path, monkeypatch):
    """Of 1600 points and 4000 for validation, which take half a millisecond each to be read.

    By samples it is 160 of 1760, and eight that are shown; some is left for a busy machine, whose
    pauses lengthen what they fall on: the least of five trainings is taken.
    """
    monkeypatch.setattr(Many, "seconds", 0.0005)

    def share(run: str, **chosen: Any) -> float:
        task = LineTask(Many(), val=Many())
        plan = configure(task, {"steps": 50, "every": 50, **chosen})
        result = train(task, tmp_path / run, plan, device=CPU)
        return result.validation_seconds / result.seconds

    whole = share("whole", val_samples=4000)
    usual = min(share(f"usual {n}") for n in range(5))
    assert 3 * usual < whole
    assert 0 < usual < 0.13


def test_the_state_is_saved_between_validations_too(tmp_path, monkeypatch):
    def run(name: str, stop: int = -1) -> None:
        tell = killing(stop)
        how = {"progress": lambda *told: (steps.append(told[0]), tell(*told))}
        train(LineTask(), tmp_path / name, config(), device=CPU, **how)

    steps: list[int] = []
    run("whole")
    monkeypatch.setattr(train_module, "SAVED_AFTER", 0.0)
    with pytest.raises(Killed):
        run("killed", 17)
    del steps[:]
    run("killed")
    assert steps[0] == 17  # step 16 was saved; the last validation was of step 10
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


class Judged(LineTask):
    """Has a recall, and in validation a loss that is no sample's own, as a table has them."""

    table = (0.2, 0.9, 0.5, 0.9)

    def __init__(self) -> None:
        super().__init__()
        self.loss_weights = {"mse": 1.0, "all": 2.0}

    def embedded(self, batch: Item) -> Item:
        return {"x": batch["x"]}

    def judge(self, rows: Item, *, batch_size: int) -> tuple[dict[str, float], dict[str, float]]:
        assert batch_size == 4 and rows["x"].flatten().tolist() == [k / 16 for k in range(16)]
        seen.append(self.table[len(seen) % 4])
        return {"all": 7.0}, {"people": 2, "samples": 16} | dict.fromkeys(RECALLS, seen[-1])


seen: list[float] = []


def test_the_best_is_that_of_the_highest_recall_where_this_is_asked_for(tmp_path):
    del seen[:]
    result = train(Judged(), tmp_path, config(best_by="r5"), device=CPU)
    records = history(tmp_path)
    assert [record["recall"]["r5"] for record in records] == [0.2, 0.9, 0.5, 0.9]
    assert (result.step, result.recall) == (20, records[1]["recall"])  # the first of equals
    assert [record["val"]["all"] for record in records] == 4 * [7.0]
    again = train(Judged(), tmp_path, config(best_by="r5"), device=CPU)
    assert again == result and len(seen) == 4  # nothing is left to do
    usual = train(Judged(), tmp_path / "usual", config(), device=CPU)
    score = [record["val"]["mse"] for record in history(tmp_path / "usual")]
    assert usual.step == 10 * (1 + score.index(min(score))) and usual.recall
    with pytest.raises(UsageError, match="--best-by r5: there is no recall"):
        train(LineTask(), tmp_path / "other", config(best_by="r5"), device=CPU)
    with pytest.raises(UsageError, match="best_by 'r2': wanted one of r1, r5, r10"):
        config(best_by="r2")


def wide() -> LineTask:
    """Make one whose steps take time, and memory for what they keep for the gradients."""
    layers = [nn.Linear(1, 20_000), *(nn.Tanh() for _ in range(8)), nn.Linear(20_000, 1)]
    return LineTask(network=nn.Sequential(*layers))


def test_a_dry_run_leaves_a_run_alone_and_counts_exactly(tmp_path):
    train(LineTask(), tmp_path, config(steps=1, every=1), device=CPU)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    told = rehearse(LineTask(), tmp_path, config(lr=0.5), device=CPU)  # which that run is not
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    assert told["losses"] == history(tmp_path)[0]["train"]  # the first knows no learning rate
    assert told["data"] == {"train": {"samples": 16}, "val": {"samples": 16}}
    assert told["parameters"] == 16 + 16 + 16 + 1
    assert (told["steps"], told["epochs"]) == (40, 10.0)
    assert told["memory"]["weights"] == told["memory"]["gradients"] == 4 * 49
    assert told["memory"]["optimizer"] == 2 * 4 * 49 + 4 * 4  # two moments, and four step counts
    # 4 samples: the input of the second layer, 16 wide, after dropout; its mask; the target.
    assert 4 * 16 * 4 <= told["memory"]["activations"] <= 4 * 16 * (4 + 4 + 1) + 100
    stages = rehearse(LineTask().in_stages(), RUN, config(), device=CPU)["stages"]
    wanted = [(0, 15, 17), (15, 25, 49)]
    assert [(s["start"], s["steps"], s["trained"]) for s in stages] == wanted


def test_speed_and_sizes_are_those_of_a_real_run(tmp_path):
    plan = config(steps=10, batch_size=64, every=10, half=True)
    told = rehearse(wide(), tmp_path, plan, device=CPU)
    result = train(wide(), tmp_path, plan, device=CPU)
    assert told["checkpoint_bytes"] == pytest.approx(result.best.stat().st_size, rel=0.02)
    state = tmp_path / "last/state.safetensors"
    assert told["state_bytes"] == pytest.approx(state.stat().st_size, rel=0.02)
    assert 1 / 3 < told["samples_per_second"] / result.samples_per_second < 3
    total = 640 / told["samples_per_second"] + told["validation_seconds"]
    assert told["seconds"] == pytest.approx(total, rel=1e-6)


def test_reading_bounds_the_speed_where_it_takes_longer():
    class Slow(Line):
        def __getitem__(self, key: Key) -> Item:
            time.sleep(0.02)
            return super().__getitem__(key)

    told = rehearse(LineTask(Slow()), RUN, config(steps=10, workers=2), device=CPU)
    assert 0.08 < told["read_seconds"] < 0.16
    assert told["samples_per_second"] == pytest.approx(4 / (told["read_seconds"] / 2))


PEAK = """
    import json, sys
    from pathlib import Path
    from line_task import CPU, LineTask, config
    from s2f.train import rehearse, train
    from test_train import peak, wide

    plan, folder = config(steps=3, batch_size=256, every=3), Path(sys.argv[1])
    train(LineTask(), folder / "warm", plan, device=CPU)
    before = peak()
    if sys.argv[2:]:
        memory = rehearse(wide(), folder / "run", plan, device=CPU)["memory"]
    else:
        train(wide(), folder / "run", plan, device=CPU)
        memory = {"before": before, "peak": peak()}
    print(json.dumps(memory))
"""


def peak() -> int:
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


@pytest.mark.skipif(sys.platform != "linux", reason="measures as Linux does")
def test_the_memory_is_that_of_a_real_run(tmp_path):
    # Each in a process of its own, that has held nothing else.
    real, told = (
        json.loads(start(1, PEAK, tmp_path / str(len(how)), *how).communicate()[0])
        for how in ([], ["rehearse"])
    )
    assert told.pop("peak") == pytest.approx(real["peak"], rel=0.15)
    # A training lets the C library keep what is freed, which nobody counts.
    assert 1 / 2 < sum(told.values()) / (real["peak"] - real["before"]) < 1.5
    assert told["activations"] > 8 * 256 * 20_000 * 4  # or there was nothing to measure


def test_weights_of_frozen_networks_are_no_activations():
    class Judged(LineTask):
        def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
            return {"mse": judge(self.network(batch["x"])).square().mean(1)}

    judge = nn.Sequential(nn.Linear(1, 999), nn.Linear(999, 999), nn.Linear(999, 1))
    judge.requires_grad_(False)
    told = rehearse(Judged(), RUN, config(), device=CPU)
    assert told["memory"]["activations"] < 100_000 < 999 * 999 * 4
