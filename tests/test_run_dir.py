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


def test_a_directory_belongs_to_the_config_that_was_first_there(tmp_path):
    for name in ("slurm-1.out", "train.log", ".s2f-left-by-a-kill"):
        (tmp_path / name).touch()  # which may be there
    for _ in range(2):
        Run(tmp_path).claim({"task": "line", "betas": (0.9, 0.999), "loss_weights": {"mse": 1.0}})
    assert json.loads((tmp_path / "config.json").read_text())["betas"] == [0.9, 0.999]


@pytest.mark.parametrize(
    ("name", "text", "error", "why"),
    [
        ("config.json", '{"task": "line", "lr": 0.5}', UsageError, "0.5; this one has 0.02"),
        ("config.json", '{"task": "line"}', UsageError, "with lr None; this one has 0.02"),
        ("config.json", '{"task": "line", "lr": 0.02, "a": 1}', UsageError, "a 1; .* has None"),
        ("config.json", '{"model_type": "bert"}', UsageError, "something else than a run"),
        ("config.json", "[1", CheckpointError, r"config\.json: is not the config of a run"),
        ("last/state.safetensors", "mine", UsageError, "is no run: it holds last and no config"),
        ("index.json", "mine", UsageError, "is no run: it holds index.json and no config"),
    ],
)
def test_another_run_or_other_things_are_refused_and_left_alone(tmp_path, name, text, error, why):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(error, match=why):
        Run(tmp_path).claim({"task": "line", "lr": 0.02})
    assert [p.read_text() for p in tmp_path.rglob("*") if p.is_file()] == [text]


@pytest.mark.parametrize("weights", [{}, {"mse": 2.5}], ids=["given", "calibrated"])
def test_what_was_saved_comes_back(tmp_path, weights):
    before = saved(tmp_path, loss_weights=weights, bad=["a.npy: is broken"], ended=True)
    run, whole = Run(tmp_path), before.file.read_bytes()
    run.restore(*(parts := trained(0)), CPU)
    assert run == before
    run.save(*parts)
    assert run.file.read_bytes() == whole


@pytest.mark.parametrize("wide", [3, 4])
def test_another_state_is_refused_with_its_cure(tmp_path, wide):
    run, network = saved(tmp_path), nn.Linear(2, wide)
    if wide == 3:
        run.file.write_bytes(safetensors.torch.save({"a": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"state.safetensors: is not a state") as caught:
        Run(tmp_path).restore(network, torch.optim.AdamW(network.parameters()), CPU)
    assert caught.value.hint == f"remove {tmp_path} to train anew"


def test_a_damaged_history_is_gone_on_with_and_not_shown(tmp_path):
    (tmp_path / "history.jsonl").write_bytes(b"\xff\xfe\n")
    run = Run(tmp_path, logged=1)
    run.log(0.1, {"mse": 1.0})
    assert (tmp_path / "history.jsonl").read_bytes().startswith(b"\xff\xfe\n{")
    with pytest.raises(CheckpointError, match=r"history\.jsonl: is not the history of a run"):
        run.history()
