"""The run directory: whose it is, and that what was saved there comes back."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from line_task import start
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


def test_a_run_of_before_there_was_a_choice_says_how_to_go_on(tmp_path):
    (tmp_path / "config.json").write_text('{"task": "decoder"}')  # as an earlier s2f wrote it
    mine = {"task": "decoder", "identity_target": "photo"}
    with pytest.raises(UsageError, match="with identity_target None; this one has photo") as caught:
        Run(tmp_path).claim(mine)
    assert caught.value.hint.startswith("give --identity-target drawn to go on with it")
    assert Run(tmp_path).claim({"task": "decoder"}) == []  # what that option gives
    (tmp_path / "config.json").write_text(json.dumps(mine))
    with pytest.raises(UsageError, match="with identity_target photo; this one has None") as caught:
        Run(tmp_path).claim({"task": "decoder"})
    assert caught.value.hint.startswith("give the same options")


@pytest.mark.parametrize(("key", "value"), [("compared", 2), ("clips", "first")])
def test_a_run_whose_options_meant_something_else_is_not_said_to_go_on_with_them(
    tmp_path, key, value
):
    """The same command tells `key` today: to say "give the same options" leads nowhere."""
    (tmp_path / "config.json").write_text('{"task": "voice"}')  # as an earlier s2f wrote it
    mine = {"task": "voice", key: value}
    with pytest.raises(UsageError, match=f"with {key} None; this one has {value}") as caught:
        Run(tmp_path).claim(mine)
    why = "that run has other options, or is of an earlier s2f"
    assert caught.value.hint == f"give another folder with -o: {why}"
    (tmp_path / "config.json").write_text(json.dumps(mine))
    with pytest.raises(UsageError, match=f"with {key} {value}; this one has None") as caught:
        Run(tmp_path).claim({"task": "voice"})
    assert caught.value.hint.startswith("give the same options")


def test_a_run_of_before_it_told_how_noise_is_drawn_goes_on_and_that_is_said(tmp_path):
    mine = {"task": "voice", "noise": "by sample"}
    (tmp_path / "config.json").write_text('{"task": "voice"}')
    for _ in range(2):  # as often as it goes on
        (note,) = Run(tmp_path).claim(mine)
        assert f"{tmp_path} was begun before runs told how noise is drawn" in note
    assert (tmp_path / "config.json").read_text() == '{"task": "voice"}'
    assert Run(tmp_path / "new").claim(mine) == Run(tmp_path / "new").claim(mine) == []
    with pytest.raises(UsageError, match="with noise by sample; this one has by step"):
        Run(tmp_path / "new").claim(mine | {"noise": "by step"})


@pytest.mark.parametrize("weights", [{}, {"mse": 2.5}], ids=["given", "calibrated"])
def test_what_was_saved_comes_back(tmp_path, weights):
    before = saved(tmp_path, loss_weights=weights, bad=["a.npy: is broken"], ended=True)
    run, whole = Run(tmp_path), before.file.read_bytes()
    run.restore(*(parts := trained(0)), CPU)
    assert run == before
    run.save(*parts)
    assert run.file.read_bytes() == whole


def test_a_state_is_written_as_safetensors_reads_it_in_any_order_and_type(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(2, 1, bias=False))
    network.to(memory_format=torch.channels_last)
    network[2].half()
    run = Run(tmp_path, best_weights={"half": torch.rand(3).bfloat16(), "none": torch.empty(0, 2)})
    run.save(network, torch.optim.SGD(network.parameters()))
    written = safetensors.torch.load_file(run.file)
    wanted = {f"network.{name}": value for name, value in network.state_dict().items()}
    wanted |= {f"best.{name}": value for name, value in run.best_weights.items()}
    assert set(written) == set(wanted)
    for name, value in wanted.items():
        assert written[name].dtype == value.dtype and torch.equal(written[name], value)


MEMORY = """
    import sys, torch
    from pathlib import Path
    from test_train import peak
    from s2f.run_dir import Run

    def held():
        return 1024 * int(Path("/proc/self/statm").read_text().split()[1]) * 4

    # What is only loaded by the first save is none of the state's.
    small = torch.nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last)
    Run(Path(sys.argv[1]) / "small").save(small, torch.optim.SGD(small.parameters()))
    network = torch.nn.Sequential(*(torch.nn.Conv2d(256, 256, 5) for _ in range(12)))
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters())
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
    before = held()
    Run(Path(sys.argv[1])).save(network, optimizer)
    print(peak() - before, sum(p.nbytes for p in network.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures as Linux does")
def test_to_save_takes_no_second_copy_in_memory(tmp_path):
    out, err = start(1, MEMORY, tmp_path).communicate()
    assert out, err
    more, state = map(int, out.split())
    assert more < 0.3 * state


@pytest.mark.parametrize("wide", [3, 4])
def test_another_state_is_refused_with_its_cure(tmp_path, wide):
    run, network = saved(tmp_path), nn.Linear(2, wide)
    if wide == 3:
        run.file.write_bytes(safetensors.torch.save({"a": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"state.safetensors: is not a state") as caught:
        Run(tmp_path).restore(network, torch.optim.AdamW(network.parameters()), CPU)
    assert caught.value.hint == f"remove {tmp_path} to train anew"


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_state_that_is_no_number_is_not_gone_on_with(tmp_path, value):
    run, (network, optimizer) = Run(tmp_path), trained(2)
    with torch.no_grad():
        network.bias[1] = value
    run.save(network, optimizer)
    with pytest.raises(
        CheckpointError, match=r"state.safetensors: .*'network.bias' holds"
    ) as caught:
        run.restore(*trained(0), CPU)
    assert caught.value.hint == f"remove {tmp_path} to train anew"


def test_a_damaged_history_is_gone_on_with_and_not_shown(tmp_path):
    (tmp_path / "history.jsonl").write_bytes(b"\xff\xfe\n")
    run = Run(tmp_path, logged=1)
    run.log(0.1, {"mse": 1.0})
    assert (tmp_path / "history.jsonl").read_bytes().startswith(b"\xff\xfe\n{")
    with pytest.raises(CheckpointError, match=r"history\.jsonl: is not the history of a run"):
        run.history()
