"""Several processes that train as one: what they compute is what one process computes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from line_task import ENV, start
from torch import Tensor

from s2f import distributed
from s2f.distributed import launch
from s2f.errors import DeviceError

SCRIPT = """
    import sys, json, torch, dataclasses
    from pathlib import Path
    from torch import nn
    import line_task
    from s2f import distributed, losses, train
    from s2f.errors import S2FError

    def seen(*args, **kwargs):
        for batch in plan(*args, **kwargs):
            keys.append([key.item for key in batch])
            yield batch

    keys, plan = [], train.plan_steps
    train.plan_steps = seen

    class Task(line_task.LineTask):
        def __init__(self):
            super().__init__(dropout=0.0)
            torch.manual_seed(1)
            norm = [nn.BatchNorm1d(16)] if "norm" in sys.argv else []
            # A bias before BatchNorm has no gradient but rounding, which Adam would follow.
            first = nn.Linear(1, 16, bias=not norm)
            self.network = nn.Sequential(first, *norm, nn.Tanh(), nn.Linear(16, 3))
            self.groups = [train_group(self.network)]
            self.loss_weights = {"mse": 1.0, "contrastive/infonce": 0.1}

        def losses(self, batch, *, augmented):
            out = self.network(batch["x"])
            values = {"mse": (out[:, :1] - batch["y"]).square().mean(1)}
            target = torch.cat([batch["y"], batch["x"], 1 - batch["x"]], 1)
            people = batch["x"][:, 0].mul(16).long() % 5
            values["contrastive/infonce"] = losses.infonce(out, target, people)
            return values

    def train_group(network):
        from s2f.train import Group
        return Group(list(network.parameters()))

    config = line_task.config(steps=50, batch_size=8, lr=0.005, every=10, eps=1e-4)
    with distributed.join_ranks(torch.device("cpu")) as (mine, device):
        folder = Path(sys.argv[1])
        result = train.train(Task(), folder, config, device=device, ranks=mine)
        told = mine.gather(keys)
    if mine.first:
        joined = [sum((theirs[k] for theirs in told), []) for k in range(len(keys))]
        (folder / "told.json").write_text(json.dumps([joined, dict(result.losses)]))
"""


def told(size: int, folder: Path, *options: str) -> tuple[list[list[int]], dict[str, float]]:
    """Train under torchrun; give the samples of each step, and the last validation losses."""
    run = start(size, SCRIPT, folder, *options)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    keys, losses = json.loads((folder / "told.json").read_text())
    return keys, losses


@pytest.mark.parametrize(
    ("options", "within"),
    [((), 1e-5), (("norm",), 1e-4)],  # BatchNorm amplifies rounding
    ids=["plain", "batch norm"],
)
def test_two_processes_learn_what_one_does(
    tmp_path: Path, options: tuple[str, ...], within: float
) -> None:
    keys, losses = told(1, tmp_path / "one", *options)
    theirs, found = told(2, tmp_path / "two", *options)
    assert theirs == keys and len(keys) == 50
    assert found == pytest.approx(losses, rel=within)
    one, two = (
        [json.loads(line) for line in (tmp_path / n / "history.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    )
    assert [record["step"] for record in two] == [10, 20, 30, 40, 50]
    for a, b in zip(one, two, strict=True):
        assert b["train"] == pytest.approx(a["train"], rel=within)
        assert b["val"] == pytest.approx(a["val"], rel=within)


BATCH_NORM = """
    import sys, torch
    from torch import nn
    from s2f import distributed
    torch.manual_seed(0)
    x, aim = torch.randn(8, 4, 5, 3), torch.randn(8, 4, 5, 3)
    whole = nn.Sequential(nn.BatchNorm2d(4)); part = nn.Sequential(nn.BatchNorm2d(4))
    parameters = list(part.parameters())
    with distributed.join_ranks(torch.device("cpu")) as (mine, _):
        distributed.synchronise_batch_norm(part, torch.device("cpu"))
        assert parameters == list(part.parameters())
        for _ in range(3):
            rows = slice(4 * mine.rank, 4 * mine.rank + 4)
            full, own = x.clone().requires_grad_(), x[rows].clone().requires_grad_()
            whole.zero_grad(); part.zero_grad()
            ((whole(full) - aim) ** 2).sum().backward()
            ((part(own) - aim[rows]) ** 2).sum().backward()
            torch.testing.assert_close(own.grad, full.grad[rows], rtol=1e-4, atol=1e-5)
            weight = sum(mine.gather(part[0].weight.grad))
            torch.testing.assert_close(weight, whole[0].weight.grad, rtol=1e-4, atol=1e-4)
        for name, buffer in whole.state_dict().items():
            torch.testing.assert_close(part.state_dict()[name], buffer)
        whole.eval(), part.eval()
        torch.testing.assert_close(part(x), whole(x))
"""


def test_synchronised_batch_norm_counts_everybodys_samples() -> None:
    run = start(2, BATCH_NORM)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err


GATHER = """
    import torch
    from s2f import distributed
    with distributed.join_ranks(torch.device("cpu")) as (mine, _):
        rows = torch.full((2, 3), float(mine.rank + 1), requires_grad=True)
        everyone = distributed.gather_rows(rows)
        assert everyone[:, 0, 0].tolist() == [1, 2, 3]
        (everyone * (10 ** mine.rank)).sum().backward()
        assert (rows.grad == 111).all()  # what all three have for it
"""


def test_rows_are_gathered_with_everybodys_gradients() -> None:
    run = start(3, GATHER)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err


TOLD = """
    import sys, torch
    from s2f import distributed
    from s2f.errors import DatasetError
    try:
        with distributed.join_ranks(torch.device("cpu")) as (mine, _):
            if mine.rank == 1:
                raise DatasetError("b.npy: is broken", hint="make it again")
            mine.gather(0)
    except DatasetError as error:
        print(mine.rank, error.message, error.hint, flush=True)
        sys.exit(error.exit_code)
"""


def test_every_process_learns_why_one_has_ended() -> None:
    run = start(2, TOLD)
    out, _ = run.communicate(timeout=120)
    told = [f"{rank} b.npy: is broken make it again" for rank in range(2)]
    assert sorted(out.splitlines()) == told


def test_devices_that_are_not_there_are_counted_before_processes_start() -> None:
    with pytest.raises(DeviceError, match=r"999 CUDA devices are wanted; this machine has \d+"):
        launch(999, "cuda", [])
    with pytest.raises(DeviceError, match="2 MPS devices are wanted; this machine has 1"):
        launch(2, "mps", [])
    with pytest.raises(DeviceError, match="'banana' is not available"):
        launch(2, "banana", [])


def test_alone_everything_is_ones_own() -> None:
    with distributed.join_ranks(torch.device("cpu")) as (mine, device):
        assert (mine.rank, mine.size, mine.first, device.type) == (0, 1, True, "cpu")
        assert mine.gather("a") == ["a"]
    rows: Tensor = torch.ones(2, 3)
    assert torch.equal(distributed.gather_rows(rows), rows[None])


MODEL = Path(distributed.__file__).parent / "models" / "demo"


def command(voices: Path, run: Path, steps: int = 12) -> list[str]:
    """Train the bundled model's voice encoder a little, on two devices."""
    line = f"-m s2f train voice {voices} -o {run} --steps {steps} --every 3 --batch-size 4"
    line += f" --face-encoder {MODEL}/face_encoder.safetensors --device cpu --devices 2"
    line += f" --face-decoder {MODEL}/face_decoder.safetensors --loss-weights embedding/mse=1"
    return [sys.executable, *line.split()]


def begin(voices: Path, run: Path) -> subprocess.Popen[str]:
    """Start a long training, and wait until it has saved once."""
    training = subprocess.Popen(
        command(voices, run, steps=10_000), env=ENV, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (run / "last/state.safetensors").is_file():
        assert training.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return training


@pytest.mark.slow
def test_a_dead_process_ends_the_run_with_a_message_and_a_good_state(
    voices: Path, tmp_path: Path
) -> None:
    training = begin(voices, tmp_path / "run")
    children = Path(f"/proc/{training.pid}/task/{training.pid}/children")
    if not children.is_file():
        training.kill()
        pytest.skip("/proc does not tell a process's children here")
    os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
    _, err = training.communicate(timeout=60)
    assert training.returncode == DeviceError.exit_code
    assert "another process of this run has ended" in err or "was killed by signal 9" in err
    assert "Traceback" not in err
    state = safetensors.torch.load_file(tmp_path / "run/last/state.safetensors")
    assert all(tensor.isfinite().all() for tensor in state.values())


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["all of it", "a recording"])
def test_two_processes_give_one_message(voices: Path, tmp_path: Path, broken: str) -> None:
    if broken == "a recording":  # that one of them reads
        (voices / "train/id1/audios/a.npy").write_bytes(b"no waveform")
    else:
        voices = tmp_path / "nowhere"
    line = [*command(voices, tmp_path / "run"), "--json"]
    done = subprocess.run(line, env=ENV, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")
    assert json.loads(done.stdout)["error"] == "DatasetError"


@pytest.mark.slow
def test_sigterm_saves_on_all_devices_before_the_run_ends(voices: Path, tmp_path: Path) -> None:
    training = begin(voices, tmp_path / "run")
    training.terminate()
    _, err = training.communicate(timeout=60)
    assert training.returncode == 130
    assert "interrupted; the state of the training is saved in" in err
    assert "Traceback" not in err and "W1" not in err


@pytest.mark.slow
def test_processes_whose_launcher_was_killed_save_and_end(voices: Path, tmp_path: Path) -> None:
    training = begin(voices, tmp_path / "run")
    training.kill()
    _, err = training.communicate(timeout=60)  # until the last of them has closed it
    assert "interrupted; the state of the training is saved in" in err


@pytest.mark.slow
def test_a_killed_run_of_two_devices_ends_with_the_same_bytes(voices: Path, tmp_path: Path) -> None:
    subprocess.run(command(voices, tmp_path / "whole/run"), env=ENV, check=True)
    training = subprocess.Popen(command(voices, tmp_path / "killed/run"), env=ENV)
    while not (tmp_path / "killed/run/last/state.safetensors").is_file():
        assert training.poll() is None
        time.sleep(0.02)
    training.terminate()
    training.wait(timeout=60)
    assert training.returncode == 130
    subprocess.run(command(voices, tmp_path / "killed/run"), env=ENV, check=True)
    for file in ("best.safetensors", "last/state.safetensors", "history.jsonl"):
        whole = (tmp_path / "whole/run" / file).read_bytes()
        assert (tmp_path / "killed/run" / file).read_bytes() == whole, file


KILLED = """
    import sys, torch
    from pathlib import Path
    import os, test_train
    from s2f import distributed, train
    print(os.getpid(), flush=True)
    config = line_task.config(steps=1500, batch_size=4, every=25)
    with distributed.join_ranks(torch.device("cpu")) as (mine, device):
        def tell(done, total, what):
            if mine.first:
                print("step", flush=True)
        train.train(
            line_task.LineTask(), Path(sys.argv[1]), config,
            device=device, ranks=mine, progress=tell,
        )
"""


@pytest.mark.slow
@pytest.mark.parametrize(("size", "kills"), [(1, 20), (2, 5)])
def test_kills_at_random_moments_change_no_byte(tmp_path: Path, size: int, kills: int) -> None:
    rng = random.Random(size)
    whole = start(size, KILLED, tmp_path / "whole")
    whole.communicate(timeout=200)
    assert whole.returncode == 0
    for _ in range(kills):
        run = start(size, KILLED, tmp_path / "killed")
        assert run.stdout is not None and run.stderr is not None
        processes = {int(run.stdout.readline()) for _ in range(size)} | {run.pid}
        assert run.stdout.readline() == "step\n"
        time.sleep(rng.uniform(0, 0.15))
        for process in processes:
            os.kill(process, signal.SIGKILL)
        run.communicate()
        assert run.returncode == -signal.SIGKILL, "it had ended: let it train longer"
    last = start(size, KILLED, tmp_path / "killed")
    last.communicate(timeout=200)
    for file in ("best.safetensors", "last/state.safetensors", "history.jsonl", "config.json"):
        expected = (tmp_path / "whole" / file).read_bytes()
        assert (tmp_path / "killed" / file).read_bytes() == expected, file
    assert not list((tmp_path / "whole").rglob(".s2f-*"))
