"""The run directory: whose it is, and that what was saved there comes back."""

import json
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from s2f.errors import CheckpointError, UsageError
from s2f.run_dir import Run

CPU = torch.device("cpu")


def trained(steps: int) -> tuple[nn.Linear, torch.optim.AdamW]:
    """A network and its optimizer after some steps."""
    torch.manual_seed(steps)
    network = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(4, 2)).square().sum().backward()
        optimizer.step()
    return network, optimizer


def saved(folder: Path) -> Run:
    run = Run(folder)
    run.step, run.best, run.best_step, run.best_losses = 2, 0.5, 1, {"mse": 0.5}
    run.note({"mse": 2.0})
    run.save(*trained(2))
    return run


def test_a_directory_belongs_to_the_config_that_was_first_there(tmp_path: Path) -> None:
    config = {"task": "line", "betas": (0.9, 0.999), "loss_weights": {"mse": 1.0}}
    Run(tmp_path).claim(config)
    Run(tmp_path).claim(config)
    assert json.loads((tmp_path / "config.json").read_text())["betas"] == [0.9, 0.999]


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"task": "line", "lr": 0.5, "seed": 0}, "holds a run with lr 0.02; this one has 0.5"),
        ({"task": "line", "lr": 0.02}, "holds a run with seed 0; this one has None"),
        (
            {"task": "line", "lr": 0.02, "seed": 0, "preset": "a"},
            "holds a run with preset None; this one has a",
        ),
    ],
)
def test_another_config_is_refused_by_its_difference(
    tmp_path: Path, config: dict[str, object], why: str
) -> None:
    Run(tmp_path).claim({"task": "line", "lr": 0.02, "seed": 0})
    with pytest.raises(UsageError, match=why):
        Run(tmp_path).claim(config)


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(CheckpointError, match=r"config\.json: is not the config of a run"):
        Run(tmp_path).claim({})


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    before = saved(tmp_path)
    run, (network, optimizer) = Run(tmp_path), trained(0)
    run.restore(network, optimizer, CPU)
    assert vars(run) == vars(before)
    again = Run(tmp_path / "again")
    vars(again).update(vars(run) | {"folder": again.folder, "file": again.file})
    again.save(network, optimizer)
    assert again.file.read_bytes() == before.file.read_bytes()


@pytest.mark.parametrize("network", [nn.Linear(2, 4), nn.Sequential(nn.Linear(2, 3))])
def test_the_state_of_another_network_is_refused(tmp_path: Path, network: nn.Module) -> None:
    saved(tmp_path)
    optimizer = torch.optim.AdamW(network.parameters())
    with pytest.raises(CheckpointError, match="is not a state of this run"):
        Run(tmp_path).restore(network, optimizer, CPU)


def test_calibrated_weights_come_back_and_make_earlier_scores_incomparable(tmp_path: Path) -> None:
    run = saved(tmp_path)
    run.reweigh({"mse": 2.5})
    assert run.best == math.inf
    run.save(*trained(2))
    again = Run(tmp_path)
    again.restore(*trained(0), CPU)
    assert vars(again) == vars(run) and again.weights == {"mse": 2.5}


def test_a_damaged_state_is_named_with_its_cure(tmp_path: Path) -> None:
    run = saved(tmp_path)
    run.file.write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"state.safetensors: is not a state of") as caught:
        Run(tmp_path).restore(*trained(0), CPU)
    assert caught.value.hint == f"remove {tmp_path} to train anew"


def test_the_running_losses_follow_slowly(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for value in (1.0, 2.0):
        run.note({"mse": value})
    assert run.running["mse"] == pytest.approx(1.02)
    assert run.summary() == "mse 1.020"


def test_what_was_logged_after_the_last_save_is_logged_anew(tmp_path: Path) -> None:
    network, optimizer = trained(1)
    run = Run(tmp_path)
    for step in (1, 2):
        run.step = step
        run.log(0.1, {"mse": 1.0})
        if step == 1:
            run.save(network, optimizer)
    again = Run(tmp_path)
    again.restore(network, optimizer, CPU)
    again.step = 3
    again.log(0.1, {"mse": 2.0})
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 3]


def test_samples_sort_by_step(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.best == math.inf
    for step in (1000, 20):
        run.step = step
        run.show(torch.zeros(3, 2, 2))
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["0000020.png", "0001000.png"]


def test_a_state_without_its_config_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.file.parent.mkdir()
    run.file.touch()
    with pytest.raises(UsageError, match=r"it holds last and no config\.json"):
        run.claim({})


def test_a_state_that_is_not_ours_is_named(tmp_path: Path) -> None:
    network = nn.Linear(1, 1)
    run = Run(tmp_path)
    run.file.parent.mkdir()
    safetensors.torch.save_file({"a": torch.ones(1)}, run.file)
    with pytest.raises(CheckpointError, match="is not a state of this run"):
        run.restore(network, torch.optim.AdamW(network.parameters()), torch.device("cpu"))


@pytest.mark.parametrize("name", ["best.safetensors", "train/id0/a.jpg", "index.json"])
def test_a_folder_of_other_things_is_no_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="is no run: it holds"):
        Run(tmp_path).claim({"task": "line"})
    assert (tmp_path / name).read_text() == "mine"
    assert not (tmp_path / "config.json").exists()


def test_the_config_of_another_program_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UsageError, match="something else than a run"):
        Run(tmp_path).claim({"task": "line"})


def test_a_run_may_begin_beside_logs(tmp_path: Path) -> None:
    for name in ("slurm-1.out", "train.log", ".s2f-left-by-a-kill"):
        (tmp_path / name).touch()
    Run(tmp_path).claim({"task": "line"})
    assert (tmp_path / "config.json").is_file()


def test_a_damaged_history_is_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_bytes(b"\xff\xfe\n")
    run = Run(tmp_path)
    run.logged = 1
    run.log(0.1, {"mse": 1.0})
    assert (tmp_path / "history.jsonl").read_bytes().startswith(b"\xff\xfe\n{")
