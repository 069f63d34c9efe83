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
from line_task import ENV, assert_same_run, start

from s2f import distributed
from s2f.distributed import launch
from s2f.errors import DeviceError

TRAINING = """
    import json, sys, torch
    from pathlib import Path
    from torch import nn
    from line_task import LineTask, config
    from s2f import losses, train
    from s2f.distributed import join_ranks

    class Task(LineTask):
        def __init__(self, norm):
            torch.manual_seed(1)
            norm = [nn.BatchNorm1d(16)] if norm else []
            # A bias before BatchNorm has no gradient but rounding, which Adam would follow.
            first = nn.Linear(1, 16, bias=not norm)
            super().__init__(network=nn.Sequential(first, *norm, nn.Tanh(), nn.Linear(16, 3)))
            self.loss_weights = {"mse": 1.0, "contrastive/infonce": 0.1}

        def losses(self, batch, *, augmented):
            out = self.network(batch["x"])
            target = torch.cat([batch["y"], batch["x"], 1 - batch["x"]], 1)
            people = batch["x"][:, 0].mul(16).long() % 5
            mse = (out[:, :1] - batch["y"]).square().mean(1)
            return {"mse": mse, "contrastive/infonce": losses.infonce(out, target, people)}

    config = config(steps=50, batch_size=8, lr=0.005, every=10, eps=1e-4)
    with join_ranks(torch.device("cpu")) as (mine, device):
        for name in ("plain", "norm"):
            folder, norm = Path(sys.argv[1]) / name, name == "norm"
            tried = train.rehearse(Task(norm), folder, config, device=device, ranks=mine)
            train.train(Task(norm), folder, config, device=device, ranks=mine)
            if mine.first:
                (folder / "told.json").write_text(json.dumps(tried))
"""


def finished(size: int, script: str, *arguments: object) -> None:
    run = start(size, script, *arguments)
    _, err = run.communicate(timeout=200)
    assert run.returncode == 0, err


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What one process makes of two trainings, and what two do."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    for size, folder in enumerate(folders, 1):
        finished(size, TRAINING, folder)
    return folders


# BatchNorm amplifies rounding.
@pytest.mark.parametrize(("name", "within"), [("plain", 1e-5), ("norm", 1e-4)])
def test_two_processes_learn_what_one_does(runs, name, within):
    told = [json.loads((run / name / "told.json").read_text()) for run in runs]
    logs = [(run / name / "history.jsonl").read_text().splitlines() for run in runs]
    assert [one["devices"] for one in told] == [1, 2]
    assert told[1]["losses"] == pytest.approx(told[0]["losses"], rel=within)
    for a, b in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert a["step"] == b["step"]
        for part in ("train", "val"):
            assert b[part] == pytest.approx(a[part], rel=within)


def test_devices_that_are_not_there_are_counted_before_processes_start():
    with pytest.raises(DeviceError, match=r"999 CUDA devices are wanted; this machine has \d+"):
        launch(999, "cuda", [])
    with pytest.raises(DeviceError, match="2 MPS devices are wanted; this machine has 1"):
        launch(2, "mps", [])
    with pytest.raises(DeviceError, match="'banana' is not available"):
        launch(2, "banana", [])


CHILDREN = Path(f"/proc/self/task/{os.getpid()}/children")
MODEL = Path(distributed.__file__).parent / "models" / "demo"


def command(voices: Path, run: Path, steps: int = 12) -> list[str]:
    """Train the bundled model's voice encoder a little, on two devices."""
    line = f"-m s2f train voice {voices} -o {run} --steps {steps} --every 3 --batch-size 4"
    line += f" --face-encoder {MODEL}/face_encoder.safetensors --device cpu --devices 2"
    line += f" --face-decoder {MODEL}/face_decoder.safetensors --loss-weights embedding/mse=1"
    return [sys.executable, *line.split()]


def begin(voices: Path, run: Path, steps: int = 12) -> subprocess.Popen[str]:
    """Start a training, and wait until it has saved once."""
    line = command(voices, run, steps)
    training = subprocess.Popen(line, env=ENV, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "last/state.safetensors").is_file():
        assert training.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return training


@pytest.mark.slow
@pytest.mark.skipif(not CHILDREN.is_file(), reason="/proc does not tell a process's children here")
def test_a_dead_process_leaves_a_message_and_a_good_state(voices, tmp_path):
    training = begin(voices, tmp_path / "run", 10_000)
    children = Path(f"/proc/{training.pid}/task/{training.pid}/children").read_text()
    os.kill(int(children.split()[-1]), signal.SIGKILL)
    _, err = training.communicate(timeout=60)
    assert training.returncode == DeviceError.exit_code
    assert "another process of this run has ended" in err or "was killed by signal 9" in err
    assert "Traceback" not in err
    state = safetensors.torch.load_file(tmp_path / "run/last/state.safetensors")
    assert all(tensor.isfinite().all() for tensor in state.values())


@pytest.mark.slow
def test_two_processes_give_one_message(voices, tmp_path):
    # One of them reads it, and the other hears of it.
    (voices / "train/id1/audios/a.npy").write_bytes(b"no waveform")
    line = [*command(voices, tmp_path / "run"), "--json"]
    done = subprocess.run(line, env=ENV, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")
    assert json.loads(done.stdout)["error"] == "DatasetError"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_whose_launcher_ends_save_and_go_on(voices, tmp_path, number):
    training = begin(voices, tmp_path / "ended/run")
    training.send_signal(number)
    _, err = training.communicate(timeout=60)  # until the last of them has closed it
    assert training.returncode == (130 if number == signal.SIGTERM else -number)
    assert "interrupted; the state of the training is saved in" in err
    assert "Traceback" not in err and "W1" not in err
    for name in ("whole", "ended"):
        subprocess.run(command(voices, tmp_path / name / "run"), env=ENV, check=True)
    assert_same_run(tmp_path / "whole/run", tmp_path / "ended/run")


KILLED = """
    import os, sys, torch
    from pathlib import Path
    from line_task import LineTask, config
    from s2f.distributed import join_ranks
    from s2f.train import train
    print(os.getpid(), flush=True)
    with join_ranks(torch.device("cpu")) as (mine, device):
        how = {"progress": lambda *_: print("step", flush=True)} if mine.first else {}
        plan = config(steps=1500, batch_size=4, every=25)
        train(LineTask(), Path(sys.argv[1]), plan, device=device, ranks=mine, **how)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("size", "kills"), [(1, 20), (2, 5)])
def test_kills_at_random_moments_change_no_byte(tmp_path, size, kills):
    rng = random.Random(size)
    finished(size, KILLED, tmp_path / "whole")
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
    finished(size, KILLED, tmp_path / "killed")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert not list((tmp_path / "whole").rglob(".s2f-*"))
