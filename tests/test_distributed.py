"""Several processes that train as one: what they compute is what one process computes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import FRONT_END, STAGED, VOICE, noise, write_photo
from line_task import CPU, ENV, Killed, assert_same_run, config, killing, start
from torch import Tensor, nn

from s2f import checkpoint, distributed, train, train_voice
from s2f.checkpoint import KINDS, Card
from s2f.dataloader import Item
from s2f.distributed import ALONE, Ranks, launch
from s2f.errors import DeviceError
from s2f.face_decoder import FaceDecoder
from s2f.train_voice import VoiceEncoderTask, VoiceOptions

STEPS, SAMPLES = 20, 8  # of a step, in as many parts as there are processes and turns
LOSSES = {"decoder/l1": 0.1, "embedding/l2": 1.0, "contrastive/infonce": 0.5}


class Everything(VoiceEncoderTask):
    """What hears is disturbed in all ways, with dropout and InfoNCE; with BatchNorm or without.

    Of recordings of 1.2 s it hears 0.5 to 1 s, from anywhere.
    """

    def __init__(self, folder: Path, *, norm: bool) -> None:
        torch.manual_seed(1)
        network = dataclasses.replace(VOICE, hidden=16, dropout=0.3)
        usual = train_voice.PRESETS["conv", "paper"]
        recipe = dataclasses.replace(usual, network=network, front_end=FRONT_END, anywhere=True)
        made = [checkpoint.load(folder / "model/demo" / f"{k}.safetensors", k) for k in KINDS[1:]]
        made[1] = dataclasses.replace(made[1], network=FaceDecoder(STAGED).eval())
        options = VoiceOptions(augment="all", contrastive=0.5, min_seconds=0.5)
        with mock.patch.dict(train_voice.PRESETS, {("conv", "paper"): recipe}):
            super().__init__(
                folder / "voices", "paper", *made, Card("all"), device=CPU, options=options
            )
        self.loss_weights = LOSSES
        if not norm:
            self.network.convs[0][2] = self.network.norm = nn.Identity()

    def sample(self, batch: Item) -> Tensor:
        return torch.zeros(3, 4, 8)  # or most of the time would go into pictures


def learn(
    folder: Path, run: Path, ranks: Ranks = ALONE, *, norm: bool, turns: int, stop: int = -1
) -> None:
    """Train in a run of its own, perhaps up to a step, and try a dry run before it."""
    task = Everything(folder, norm=norm)
    plan = config(
        steps=STEPS,
        batch_size=SAMPLES,
        accumulate=turns,
        lr=1e-3,
        eps=1e-4,
        every=4,
        clip=5.0,
        calibrate_at=10,
        loss_weights=LOSSES,
    )
    told = train.rehearse(Everything(folder, norm=norm), run, plan, device=CPU, ranks=ranks)
    train.train(task, run, plan, device=CPU, ranks=ranks, progress=killing(stop))
    if ranks.first:
        (run / "told.json").write_text(json.dumps(told))


TOGETHER = """
    import sys, torch
    from pathlib import Path
    from test_distributed import CPU, learn
    from s2f.distributed import join_ranks
    folder = Path(sys.argv[1])
    with join_ranks("cpu") as (ranks, device):
        for norm in (True, False):
            learn(folder, folder / f"two{norm}", ranks, norm=norm, turns=2)
        learn(folder, folder / "mixed", ranks, norm=False, turns=1)
"""


def finished(size: int, script: str, *arguments: object) -> None:
    run = start(size, script, *arguments)
    _, err = run.communicate(timeout=200)
    assert run.returncode == 0, err


@pytest.fixture(scope="module")
def runs(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes make of trainings in two turns each, with BatchNorm and without."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "model").symlink_to(models)
    for k in range(10):
        person = folder / "voices" / ("val" if k > 5 else "train") / f"id{k}"
        write_photo(person / "images/a.jpg", seed=k)
        (person / "audios").mkdir()
        np.save(person / "audios/a.npy", noise(1.2, seed=k % 6))
    with pytest.raises(Killed):
        learn(folder, folder / "mixed", norm=False, turns=4, stop=16)
    finished(2, TOGETHER, folder)
    return folder


@pytest.mark.parametrize(("norm", "turns"), [(True, 2), (False, 1), (False, 4)])
def test_two_processes_learn_what_one_does(runs, norm, turns):
    """With all disturbances, dropout, InfoNCE and calibrated weights, in any number of parts.

    But with BatchNorm in as many turns: it normalises over what is computed in one.
    """
    learn(runs, one := runs / f"one{norm}{turns}", norm=norm, turns=turns)
    told = [json.loads((f / "told.json").read_text()) for f in (one, runs / f"two{norm}")]
    assert [some["devices"] for some in told] == [1, 2]
    assert told[1]["losses"] == pytest.approx(told[0]["losses"], rel=1e-5)
    assert_same_losses(one, runs / f"two{norm}")


def test_a_run_changes_its_devices_and_parts_on_the_way(runs):
    """Begun by one process in four parts, and ended by two in one."""
    assert_same_losses(runs / "twoFalse", runs / "mixed")


def assert_same_losses(*folders: Path) -> None:
    logs = [(folder / "history.jsonl").read_text().splitlines() for folder in folders]
    assert len(logs[0]) == STEPS // 4
    for a, b in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert a["step"] == b["step"]
        for part in ("train", "val", "loss_weights")[: 2 + (a["step"] > 10)]:
            assert set(a[part]) and b[part] == pytest.approx(a[part], rel=1e-5)


def test_devices_that_are_not_there_are_counted_before_processes_start():
    with pytest.raises(DeviceError, match=r"999 CUDA devices are wanted; this machine has \d+"):
        launch(999, "cuda", [])
    with pytest.raises(DeviceError, match="2 MPS devices are wanted; this machine has 1"):
        launch(2, "mps", [])
    with pytest.raises(DeviceError, match="'banana' is not available"):
        launch(2, "banana", [])


CHILDREN = Path(f"/proc/self/task/{os.getpid()}/children")
MODEL = Path(distributed.__file__).parent / "models" / "demo"


def command(voices: Path, run: Path, steps: int = 30) -> list[str]:
    """Train the bundled model's voice encoder a little, on two devices."""
    line = f"-m s2f train voice {voices} -o {run} --steps {steps} --every 5 --batch-size 4"
    line += f" --face-encoder {MODEL}/face_encoder.safetensors --device cpu --devices 2"
    line += f" --face-decoder {MODEL}/face_decoder.safetensors --loss-weights embedding/mse=1"
    return [sys.executable, *line.split()]


def begin(voices: Path, run: Path, steps: int = 30) -> subprocess.Popen[str]:
    """Start a training or go on with it, and wait until it has saved once."""
    line, state = command(voices, run, steps), run / "last/state.safetensors"
    before = state.stat().st_mtime_ns if state.is_file() else None
    training = subprocess.Popen(line, env=ENV, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not state.is_file() or state.stat().st_mtime_ns == before:
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
def test_processes_whose_launcher_ends_save_and_go_on(voices, tmp_path):
    for number in (signal.SIGTERM, signal.SIGKILL):
        training = begin(voices, tmp_path / "ended/run")
        training.send_signal(number)
        _, err = training.communicate(timeout=60)  # until the last of them has closed it
        assert training.returncode == (130 if number == signal.SIGTERM else -number)
        assert "interrupted; the state of the training is saved in" in err
        assert "Traceback" not in err and "W1" not in err
    for name in ("whole", "ended"):
        subprocess.run(command(voices, tmp_path / name / "run"), env=ENV, check=True)
    assert_same_run(tmp_path / "whole/run", tmp_path / "ended/run")


SIGNALLED = """
    import signal, sys
    from pathlib import Path
    from line_task import CPU, LineTask, config
    from s2f.device import end_by_signals
    from s2f.distributed import join_ranks
    from s2f.train import train

    class Task(LineTask):
        solves, seen = True, 0

        def losses(self, batch, *, augmented):
            self.seen += 1
            if ranks.rank and when == "training" and self.seen == 13:
                signal.raise_signal(signal.SIGTERM)
            return super().losses(batch, augmented=augmented)

        def finish(self, batches):
            for k, _ in enumerate(batches(3)):
                assert k < 9
                if ranks.rank and when == "solving" and k == 7:
                    signal.raise_signal(signal.SIGTERM)

    folder, told = Path(sys.argv[1]), []
    try:
        with join_ranks("cpu") as (ranks, _):
            for when in ("training", "solving"):
                try:
                    train(Task(), folder / when, config(), device=CPU, ranks=ranks)
                except KeyboardInterrupt:
                    told.append(when)
            end_by_signals(lambda: None)
            if ranks.rank:
                signal.raise_signal(signal.SIGTERM)
            ranks.gather("reading")
    except KeyboardInterrupt:
        told.append("reading")
    (folder / f"rank{ranks.rank}").write_text(" ".join(told))
"""


@pytest.mark.slow
def test_a_signal_that_one_process_gets_ends_all(tmp_path):
    finished(2, SIGNALLED, tmp_path)
    told = [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)]
    assert told == 2 * ["training solving reading"]
    assert (tmp_path / "training/last/state.safetensors").is_file()
    # The solving, of 12 batches, went on in none; the last save was before it.
    logs = [(tmp_path / w / "history.jsonl").read_text() for w in ("training", "solving")]
    assert logs[0].count("step") < logs[1].count("step") and "solved" not in logs[1]


KILLED = """
    import os, random, signal, socket, sys, time, traceback
    import torch._dynamo  # as an optimizer does when it is made
    from pathlib import Path
    from line_task import CPU, LineTask, config
    from s2f.distributed import join_ranks
    from s2f.train import train

    def learn(folder, told):
        with join_ranks("cpu") as (mine, device):
            how = {"progress": lambda *_: os.write(told, b".")} if mine.first else {}
            plan = config(steps=1500, batch_size=4, every=25)
            train(LineTask(), folder, plan, device=device, ranks=mine, **how)

    def ends(folder, kill):
        # Forked, or each would import torch anew. What torchrun tells its processes they are told.
        with socket.create_server(("localhost", 0)) as free:
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])
        (steps, told), children = os.pipe(), []
        for rank in range(size):
            os.environ["RANK"] = str(rank)
            if not (child := os.fork()):
                try:
                    learn(folder, told)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            children.append(child)
        os.close(told)
        assert os.read(steps, 1), "it did not begin"
        if kill:
            time.sleep(rng.uniform(0, 0.15))
            for child in children:
                os.kill(child, signal.SIGKILL)
        codes = {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children}
        os.close(steps)
        return codes

    root, size, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    os.environ |= {"MASTER_ADDR": "localhost", "WORLD_SIZE": str(size)}
    rng = random.Random(size)
    assert ends(root / "whole", kill=False) == {0}
    for _ in range(kills):
        assert ends(root / "killed", kill=True) == {-signal.SIGKILL}, "it ended: train longer"
    assert ends(root / "killed", kill=False) == {0}
"""


@pytest.mark.slow
@pytest.mark.parametrize(("size", "kills"), [(1, 20), (2, 5)])
def test_kills_at_random_moments_change_no_byte(tmp_path, size, kills):
    finished(1, KILLED, tmp_path, size, kills)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert not list((tmp_path / "whole").rglob(".s2f-*"))
