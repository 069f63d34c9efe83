"""The run directory: whose it is, and that what was saved there comes back."""

import dataclasses
import json
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


def saved(folder: Path, **changes: object) -> Run:
    run = Run(folder, step=2, best=0.5, best_step=1, best_losses={"mse": 0.5})
    run = dataclasses.replace(run, running={"mse": 2.0}, **changes)
    run.save(*trained(2))
    return run


def test_a_directory_belongs_to_the_config_that_was_first_there(tmp_path: Path) -> None:
    config = {"task": "line", "betas": (0.9, 0.999), "loss_weights": {"mse": 1.0}}
    for name in ("slurm-1.out", "train.log", ".s2f-left-by-a-kill"):
        (tmp_path / name).touch()  # which may be there
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


@pytest.mark.parametrize("name", ["best.safetensors", "last/state.safetensors", "index.json"])
def test_a_folder_of_other_things_is_no_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=rf"is no run: it holds {name.split('/')[0]} and no conf"):
        Run(tmp_path).claim({"task": "line"})
    assert (tmp_path / name).read_text() == "mine"
    assert not (tmp_path / "config.json").exists()


def test_the_config_of_something_else_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UsageError, match="something else than a run"):
        Run(tmp_path).claim({"task": "line"})
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(CheckpointError, match=r"config\.json: is not the config of a run"):
        Run(tmp_path).claim({})


@pytest.mark.parametrize("weights", [{}, {"mse": 2.5}], ids=["given", "calibrated"])
def test_what_was_saved_comes_back(tmp_path: Path, weights: dict[str, float]) -> None:
    before = saved(tmp_path, loss_weights=weights, bad=["a.npy: is broken"], ended=True)
    run, (network, optimizer) = Run(tmp_path), trained(0)
    run.restore(network, optimizer, CPU)
    assert run == before
    again = dataclasses.replace(run, folder=tmp_path / "again")
    again.save(network, optimizer)
    assert again.file.read_bytes() == before.file.read_bytes()


def test_the_state_of_another_network_or_none_is_refused_with_its_cure(tmp_path: Path) -> None:
    run = saved(tmp_path)
    for network in (nn.Linear(2, 4), nn.Sequential(nn.Linear(2, 3))):
        optimizer = torch.optim.AdamW(network.parameters())
        with pytest.raises(CheckpointError, match="is not a state of this run"):
            Run(tmp_path).restore(network, optimizer, CPU)
    for content in (b"broken", safetensors.torch.save({"a": torch.ones(1)})):
        run.file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"state.safetensors: is not a state") as caught:
            Run(tmp_path).restore(*trained(0), CPU)
        assert caught.value.hint == f"remove {tmp_path} to train anew"


def test_what_was_logged_after_the_last_save_is_logged_anew(tmp_path: Path) -> None:
    network, optimizer = trained(1)
    run = Run(tmp_path)
    for run.step in (1, 2):
        run.log(0.1, {"mse": 1.0})
        if run.step == 1:
            run.save(network, optimizer)
    again = Run(tmp_path)
    again.restore(network, optimizer, CPU)
    again.step = 3
    again.log(0.1, {"mse": 2.0}, solved=True)
    assert [record["step"] for record in again.history()] == [1, 3]
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {
        "step": 3,
        "lr": 0.1,
        "train": {},
        "val": {"mse": 2.0},
        "solved": True,
    }


def test_a_damaged_history_is_gone_on_with_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_bytes(b"\xff\xfe\n")
    run = Run(tmp_path, logged=1)
    run.log(0.1, {"mse": 1.0})
    assert (tmp_path / "history.jsonl").read_bytes().startswith(b"\xff\xfe\n{")
    with pytest.raises(CheckpointError, match=r"history\.jsonl: is not the history of a run"):
        run.history()
