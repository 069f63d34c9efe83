"""A training tried out: that it tells the truth about the real one, and leaves nothing behind."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from line_task import CPU, ENV, Broken, Hopeless, LineTask, Poisoned, config, start
from torch import nn

from s2f.errors import DatasetError, UsageError
from s2f.train import Group, Rehearsal, rehearse, train

PLAN = config(steps=40, batch_size=4, every=10)


class WideTask(LineTask):
    """One whose steps take time, and memory for what they keep for the gradients."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(1, 20_000), *(nn.Tanh() for _ in range(8)), nn.Linear(20_000, 1)]
        self.network = nn.Sequential(*layers)
        self.groups = [Group(list(self.network.parameters()))]


def stages() -> LineTask:
    task = LineTask()
    body, _, head = task.network
    task.groups = [Group(list(head.parameters())), Group(list(body.parameters()), 15, 0.1)]
    return task


def facts(rehearsal: Rehearsal) -> dict[str, str]:
    return dict(rehearsal.facts())


def test_nothing_is_written_and_a_run_that_is_there_is_left_alone(tmp_path: Path) -> None:
    rehearse(LineTask(), tmp_path / "run", PLAN, device=CPU)
    assert not list(tmp_path.iterdir())
    train(LineTask(), tmp_path, PLAN, device=CPU)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    rehearse(LineTask(), tmp_path, config(lr=0.5), device=CPU)  # which that run is not
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_counts_are_exact() -> None:
    told = rehearse(LineTask(), Path("run"), PLAN, device=CPU)
    assert told.data == {"train": {"samples": 16}, "val": {"samples": 16}}
    assert told.parameters == 16 + 16 + 16 + 1
    assert (told.steps, told.epochs) == (40, 10.0)
    assert told.memory["weights"] == told.memory["gradients"] == 4 * 49
    assert told.memory["optimizer"] == 2 * 4 * 49 + 4 * 4  # two moments, and four step counts
    # 4 samples: the input of the second layer, 16 wide, after dropout; its mask; the target.
    assert 4 * 16 * 4 <= told.memory["activations"] <= 4 * 16 * (4 + 4 + 1) + 100


def test_the_sizes_of_files_are_those_of_a_real_run(tmp_path: Path) -> None:
    told = rehearse(WideTask(), tmp_path, config(steps=1, every=1, half=True), device=CPU)
    result = train(WideTask(), tmp_path, config(steps=1, every=1, half=True), device=CPU)
    assert told.checkpoint_bytes == pytest.approx(result.best.stat().st_size, rel=0.02)
    state = tmp_path / "last/state.safetensors"
    assert told.state_bytes == pytest.approx(state.stat().st_size, rel=0.02)


def test_the_losses_are_those_of_the_first_step(tmp_path: Path) -> None:
    told = rehearse(LineTask(), tmp_path, PLAN, device=CPU)
    train(LineTask(), tmp_path, config(steps=1, batch_size=4, every=1), device=CPU)
    record = json.loads((tmp_path / "history.jsonl").read_text())
    # A warm-up of 4 steps or none changes the learning rate, and the first loss knows none.
    assert told.losses == record["train"]


def test_each_stage_is_tried() -> None:
    told = rehearse(stages(), Path("run"), PLAN, device=CPU)
    assert [(s.start, s.steps, s.trained) for s in told.stages] == [(0, 15, 17), (15, 25, 49)]
    rows = [value for _, value in told.facts()]
    assert any("17 trained from step 0" in row for row in rows)
    assert any("49 trained from step 15" in row for row in rows)
    assert told.memory["gradients"] == 4 * 49
    with pytest.raises(UsageError, match="from step 15 on never are"):
        rehearse(stages(), Path("run"), config(steps=10), device=CPU)


def test_the_speed_is_that_of_a_real_run(tmp_path: Path) -> None:
    plan = config(steps=10, batch_size=64, every=10)
    told = rehearse(WideTask(), tmp_path, plan, device=CPU)
    result = train(WideTask(), tmp_path, plan, device=CPU)
    assert 1 / 3 < told.samples_per_second / result.samples_per_second < 3
    assert told.seconds == pytest.approx(
        640 / told.samples_per_second + told.validation_seconds, rel=1e-6
    )


def test_reading_bounds_the_speed_where_it_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    class Slow(Broken):
        def __getitem__(self, key: Any) -> Any:
            time.sleep(0.02)
            return super(Broken, self).__getitem__(key)

    def told(workers: int) -> Rehearsal:
        task = LineTask()
        task.train_data = Slow()
        return rehearse(task, Path("run"), config(steps=10, workers=workers), device=CPU)

    alone, helped = told(0), told(2)
    assert 0.08 < alone.read_seconds < 0.16
    assert alone.samples_per_second < 4 / 0.08
    assert helped.samples_per_second == pytest.approx(4 / (helped.read_seconds / 2))


SCRIPT = """
    import json, re, sys, torch
    from pathlib import Path
    import test_rehearsal
    from s2f.train import rehearse
    from s2f.train import train
    torch.set_num_threads(1)

    def peak():
        return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

    plan = test_rehearsal.config(steps=3, batch_size=256, every=3)
    train(test_rehearsal.LineTask(), Path(sys.argv[1]) / "warm", plan, device=torch.device("cpu"))
    before, task, run = peak(), test_rehearsal.WideTask(), Path(sys.argv[1]) / "run"
    if "rehearse" in sys.argv:
        memory = dict(rehearse(task, run, plan, device=torch.device("cpu")).memory)
    else:
        train(task, run, plan, device=torch.device("cpu"))
        memory = {"before": before, "peak": peak()}
    print(json.dumps(memory))
"""


def memory_of(*arguments: object) -> dict[str, int]:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


@pytest.mark.skipif(sys.platform != "linux", reason="measures as Linux does")
def test_the_memory_is_that_of_a_real_run(tmp_path: Path) -> None:
    # Each in a process of its own, that has held nothing else.
    real, told = memory_of(tmp_path / "a"), memory_of(tmp_path / "b", "rehearse")
    assert told.pop("peak") == pytest.approx(real["peak"], rel=0.15)
    # A training lets the C library keep what is freed, which nobody counts.
    assert 1 / 2 < sum(told.values()) / (real["peak"] - real["before"]) < 1.5
    assert told["activations"] > 8 * 256 * 20_000 * 4  # or there was nothing to measure


def test_weights_of_frozen_networks_are_no_activations() -> None:
    class Judged(LineTask):
        def __init__(self) -> None:
            super().__init__()
            self.judge = nn.Sequential(nn.Linear(1, 999), nn.Linear(999, 999), nn.Linear(999, 1))
            self.judge.requires_grad_(False)

        def losses(self, batch: Any, *, augmented: bool) -> dict[str, torch.Tensor]:
            return {"mse": self.judge(self.network(batch["x"])).square().mean(1)}

    told = rehearse(Judged(), Path("run"), PLAN, device=CPU)
    assert told.memory["activations"] < 100_000 < 999 * 999 * 4


def test_a_broken_item_of_the_batches_is_named() -> None:
    task = LineTask()
    task.train_data = Broken()
    plan = config(batch_size=16, max_bad=1)
    told = rehearse(task, Path("run"), plan, device=CPU)
    assert told.bad == ["item 7 is broken"]
    assert ("left out", "item 7 is broken") in told.facts()
    with pytest.raises(DatasetError, match="item 7 is broken"):
        rehearse(task, Path("run"), config(batch_size=16), device=CPU)
    task.train_data = Hopeless()
    with pytest.raises(DatasetError, match="more than 1 items cannot be read"):
        rehearse(task, Path("run"), plan, device=CPU)


def test_losses_that_are_no_numbers_are_an_error_with_the_item() -> None:
    task = LineTask()
    task.train_data = Poisoned()
    with pytest.raises(UsageError, match=r"at step 1 the loss is mse nan, .* for point 7$"):
        rehearse(task, Path("run"), config(batch_size=16), device=CPU)


def test_a_config_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be split evenly"):
        rehearse(LineTask(), Path("run"), config(batch_size=6, accumulate=4), device=CPU)


def test_people_are_told_everything() -> None:
    task = LineTask()
    task.notes = ["train: 2 people have no face: a, b"]
    told = facts(rehearse(task, Path("run"), PLAN, device=CPU))
    assert told["train"] == "16 samples"
    assert told["steps"] == "40 of 4 samples, 10 epochs"
    assert told["left out"] == "train: 2 people have no face: a, b"
    assert told["memory"].startswith("weights 196 B, gradients 196 B, optimizer 408 B, activ")
    assert told["losses"].startswith("mse ")


RANKS = """
    import json, sys, torch
    from pathlib import Path
    import test_rehearsal
    from s2f import distributed
    from s2f.train import rehearse

    with distributed.join_ranks(torch.device("cpu")) as (mine, device):
        told = rehearse(
            test_rehearsal.LineTask(), Path(sys.argv[1]), test_rehearsal.PLAN,
            device=device, ranks=mine,
        )
        if mine.first:
            Path(sys.argv[1]).write_text(json.dumps([told.devices, told.losses]))
"""


def test_several_processes_rehearse_together(tmp_path: Path) -> None:
    run = start(2, RANKS, tmp_path / "told.json")
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    devices, losses = json.loads((tmp_path / "told.json").read_text())
    assert devices == 2
    alone = rehearse(LineTask(dropout=0.0), Path("run"), PLAN, device=CPU).losses
    assert losses["mse"] == pytest.approx(alone["mse"], rel=0.5)  # dropout differs by the part
