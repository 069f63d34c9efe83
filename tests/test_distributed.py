"""Several processes that train as one: what they compute is what one process computes."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import FRONT_END, STAGED, VOICE, noise, write_photo, write_voices
from line_task import (
    CPU,
    ENV,
    TESTS,
    Killed,
    Two,
    assert_same_run,
    config,
    free_port,
    killing,
    start,
)
from torch import Tensor, nn
from torch.distributed import HashStore, Store

from s2f import checkpoint, distributed, train, train_voice
from s2f.checkpoint import KINDS, Card
from s2f.console import described
from s2f.dataloader import Item
from s2f.distributed import ALONE, Ranks, launch
from s2f.errors import DeviceError, UsageError
from s2f.face_decoder import FaceDecoder
from s2f.run_dir import Run
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


def command(voices: Path, run: Path) -> list[str]:
    """Train the bundled model's voice encoder a little, on two devices."""
    line = f"-m s2f train voice {voices} -o {run} --steps 30 --every 5 --batch-size 4"
    line += f" --face-encoder {MODEL}/face_encoder.safetensors --device cpu --devices 2"
    line += f" --face-decoder {MODEL}/face_decoder.safetensors --loss-weights embedding/mse=1"
    return [sys.executable, *line.split()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `voices`, and `run`, which is what becomes of them."""
    folder = write_voices(tmp_path_factory.mktemp("undisturbed") / "voices").parent
    subprocess.run(command(folder / "voices", folder / "run"), env=ENV, check=True)
    return folder


def begin(voices: Path, run: Path) -> subprocess.Popen[str]:
    """Start a training or go on with it, and wait until it has saved once."""
    line, state = command(voices, run), run / "last/state.safetensors"
    before = state.stat().st_mtime_ns if state.is_file() else None
    training = subprocess.Popen(line, env=ENV, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not state.is_file() or state.stat().st_mtime_ns == before:
        assert training.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return training


def test_a_killed_process_is_started_again_three_times_and_others_are_not(monkeypatch):
    told: list[str] = []
    attempts = [{0: distributed.LOST, 1: -9}] * 2 + [{0: 3, 1: -15}]
    monkeypatch.setattr(distributed, "_launch_once", lambda size, arguments: attempts.pop(0))
    monkeypatch.setenv(distributed.LAUNCHED, "0")  # which is set, and put back
    assert launch(2, "cpu", [], told.append) == 3
    again = "all are started again, and go on from the last save"
    assert told == 2 * [f"process 1 of 2 was killed by signal 9; {again}"]
    attempts += [{1: -9}] * 4
    with pytest.raises(DeviceError, match="process 1 of 2 was killed by signal 9"):
        launch(2, "cpu", [])
    assert not attempts


@pytest.mark.slow
@pytest.mark.skipif(not CHILDREN.is_file(), reason="/proc does not tell a process's children here")
def test_a_run_of_which_a_process_is_killed_goes_on(undisturbed, tmp_path):
    training = begin(undisturbed / "voices", tmp_path / "run")
    children = Path(f"/proc/{training.pid}/task/{training.pid}/children").read_text()
    os.kill(int(children.split()[-1]), signal.SIGKILL)
    _, err = training.communicate(timeout=200)
    assert training.returncode == 0
    assert "was killed by signal 9; all are started again" in err and "error" not in err
    assert_same_run(undisturbed / "run", tmp_path / "run")


def met(store: Store, rank: int) -> Future[list[dict[str, str]]]:
    """Have one of two processes come to the meeting, in a thread."""
    told = {"node": f"node{rank}", "s2f": "1", "device": "cpu"}
    return POOL.submit(lambda: distributed._meet(store, rank, 2, told)[1])


POOL = ThreadPoolExecutor(8)


def test_processes_that_are_started_again_meet_anew(monkeypatch):
    """In a store that still has what the others before them said."""
    store = HashStore()
    first = [met(store, rank) for rank in (0, 1)]
    assert [one["node"] for one in first[0].result(10)] == ["node0", "node1"]
    late = met(store, 1)  # the second is started again, and the first still believes in the other
    assert not wait([late], 0.3).done
    again = met(store, 0).result(10)
    assert again == late.result(10) and again != first[0].result()
    monkeypatch.setattr(distributed, "MEETING", 0.2)
    for rank, missing in ((0, 1), (1, 0)):
        with pytest.raises(DeviceError, match=f"process {missing} of 2 has not come in 0.2 s"):
            met(HashStore(), rank).result(10)


def test_unlike_processes_are_refused_by_node():
    alike = [{"node": f"node{k}", "s2f": "1", "device": "cpu"} for k in range(3)]
    distributed._refuse_unlike(alike)
    for key, value in (("device", "cuda"), ("s2f", "2")):
        with pytest.raises(UsageError, match=f"process 2 on node2 has {key} {value}; the first"):
            distributed._refuse_unlike([*alike[:2], alike[2] | {key: value}])
    failed = {"error": described(DeviceError("no GPU", hint="mend it"))}
    with pytest.raises(DeviceError, match=r"^on node1: no GPU$"):
        distributed._refuse_unlike([alike[0], alike[1] | failed])


@pytest.mark.slow
def test_two_processes_give_one_message(voices, tmp_path):
    # One of them reads it, and the other hears of it.
    (voices / "train/id1/audios/a.npy").write_bytes(b"no waveform")
    line = [*command(voices, tmp_path / "run"), "--json"]
    done = subprocess.run(line, env=ENV, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")
    assert json.loads(done.stdout)["error"] == "DatasetError"


@pytest.mark.slow
def test_processes_whose_launcher_ends_save_and_go_on(undisturbed, tmp_path):
    for number in (signal.SIGTERM, signal.SIGKILL):
        training = begin(undisturbed / "voices", tmp_path / "run")
        training.send_signal(number)
        _, err = training.communicate(timeout=60)  # until the last of them has closed it
        assert training.returncode == (130 if number == signal.SIGTERM else -number)
        assert "interrupted; the state of the training is saved in" in err
        assert "Traceback" not in err and "W1" not in err
    subprocess.run(command(undisturbed / "voices", tmp_path / "run"), env=ENV, check=True)
    assert_same_run(undisturbed / "run", tmp_path / "run")


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
    import os, random, signal, sys, time, traceback
    import torch._dynamo  # as an optimizer does when it is made
    from pathlib import Path
    from line_task import CPU, LineTask, config, free_port
    from s2f.distributed import join_ranks
    from s2f.train import train

    def learn(folder, told):
        with join_ranks("cpu") as (mine, device):
            how = {"progress": lambda *_: os.write(told, b".")} if mine.first else {}
            plan = config(steps=1500, batch_size=4, every=25)
            train(LineTask(), folder, plan, device=device, ranks=mine, **how)

    def ends(folder, kill):
        # Forked, or each would import torch anew. What torchrun tells its processes they are told.
        os.environ["MASTER_PORT"] = str(free_port())
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
@pytest.mark.parametrize(("size", "kills"), [(1, 20), (2, 3)])
def test_kills_at_random_moments_change_no_byte(tmp_path, size, kills):
    finished(1, KILLED, tmp_path, size, kills)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert not list((tmp_path / "whole").rglob(".s2f-*"))


def refusals(act: Callable[[Two], None]) -> set[str]:
    """What a UsageError says in each of two processes, which are threads."""
    raised = [POOL.submit(act, Two(rank, 2)).exception for rank in (0, 1)]
    return {str(error) for get in raised if isinstance(error := get(20), UsageError)}


def test_processes_that_do_not_agree_or_see_one_folder_are_refused(tmp_path, monkeypatch):
    assert refusals(lambda ranks: ranks.agree({"steps": 1})) == set()
    (said,) = refusals(lambda ranks: ranks.agree({"steps": 1 + ranks.rank}))
    assert "process 1 on" in said and said.endswith("has steps 2; the first has steps 1")
    Run(tmp_path / "0").claim({"task": "line"})
    assert refusals(lambda ranks: train._share(Run(tmp_path / "0"), ranks)) == set()
    monkeypatch.setattr(train, "SHARED_AFTER", 0.0)
    told = refusals(lambda ranks: train._share(Run(tmp_path / str(ranks.rank)), ranks))
    assert len(told) == 2 and all("does not see what the first wrote there" in t for t in told)


RESTARTED = """
    import os, signal, sys
    from pathlib import Path
    from line_task import LineTask, config
    from s2f.distributed import join_ranks
    from s2f.train import train

    class Task(LineTask):
        seen = 0

        def losses(self, batch, *, augmented):
            self.seen += 1
            if when == "killed" and self.seen == 25 and ranks.rank and not ranks.restarted:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().losses(batch, augmented=augmented)

    folder = Path(sys.argv[1])
    with join_ranks("cpu") as (ranks, device):
        for when in ("whole", "killed"):
            train(Task(), folder / when, config(), device=device, ranks=ranks)
    (folder / f"ended{ranks.rank}").write_text(f"{ranks.size} {ranks.restarted}")
"""


@contextlib.contextmanager
def two_nodes(*lines: list[object], static: bool = True) -> Iterator[list[subprocess.Popen[str]]]:
    """Run two commands under torchrun as on two nodes, which are two groups of processes here."""
    port, nodes = free_port(), []
    for k, line in enumerate(lines):
        where = ["--master-addr", "127.0.0.1", "--master-port", port, "--node-rank", k]
        if not static:
            where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
            where += ["--rdzv-id", "s2f", "--local-addr", "127.0.0.1"]
        words = [sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, *where]
        words += ["--nproc-per-node", 1, "--max-restarts", 2, "--no-python", sys.executable, *line]
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        nodes.append(subprocess.Popen(list(map(str, words)), env=ENV, text=True, **pipes))
    try:
        yield nodes
    finally:
        for node in nodes:  # where one failed the other may wait for it
            node.terminate()
            node.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("static", [True, False])
def test_two_nodes_survive_a_killed_process(static, tmp_path):
    """What is killed in the middle ends as what was not, of the same number of processes."""
    line: list[object] = ["-c", textwrap.dedent(RESTARTED), tmp_path]
    with two_nodes(line, line, static=static) as nodes:
        for node in nodes:
            _, err = node.communicate(timeout=300)
            assert node.returncode == 0, err
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert "2 True" in [(tmp_path / f"ended{k}").read_text() for k in range(2)]


@pytest.mark.slow
@pytest.mark.skipif(not CHILDREN.is_file(), reason="where there is no /proc torchrun tries again")
@pytest.mark.parametrize("what", ["steps", "data"])
def test_what_differs_between_two_nodes_is_said_once_and_not_tried_again(what, voices, tmp_path):
    here, there = (command(d, tmp_path / "run") for d in (voices, tmp_path / "nowhere"))
    if what == "steps":
        there = [*here, "--steps", "40"]
    lines = [
        [word for word in line[1:] if word not in ("--devices", "2")] for line in (here, there)
    ]
    told = ["", ""]
    with two_nodes(*lines) as nodes:
        for k, node in enumerate(nodes):
            _, told[k] = node.communicate(timeout=300)
            assert node.returncode == 1  # torchrun's own, whatever its processes ended with
    said = {"steps": "has steps 40; the first has steps 30", "data": f"{tmp_path / 'nowhere'}"}
    (line,) = (line for line in (told[0] + told[1]).splitlines() if line.startswith("error:"))
    assert line in told[0] and said[what] in line
    assert not (tmp_path / "run/last").exists()


@pytest.mark.slow
def test_two_nodes_may_have_their_data_in_different_places(voices, tmp_path):
    elsewhere = tmp_path / "elsewhere" / voices.name
    elsewhere.parent.mkdir()
    elsewhere.symlink_to(voices)
    lines = [command(data, tmp_path / "run")[1:] for data in (voices, elsewhere)]
    lines = [[word for word in line if word not in ("--devices", "2")] for line in lines]
    with two_nodes(*lines) as nodes:
        for node in nodes:
            _, told = node.communicate(timeout=300)
            assert (node.returncode, "error:" in told) == (0, False), told
    assert (tmp_path / "run/best.safetensors").is_file()


@pytest.mark.slow
def test_the_script_for_slurm_runs_and_is_what_the_readme_shows(tmp_path):
    root = TESTS.parent
    script = root / "examples/slurm_train.sh"
    assert script.read_text().splitlines()[-1] in (root / "README.md").read_text().splitlines()
    commands = {"srun": 'exec "$@"', "scontrol": "echo localhost; echo other"}
    commands["torchrun"] = (
        f'exec {sys.executable} -m torch.distributed.run --local-addr localhost "$@"'
    )
    for name, does in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    env = ENV | {"PATH": f"{tmp_path}:{ENV['PATH']}", "SLURM_NNODES": "1", "SLURM_JOB_ID": "7"}
    env |= {"SLURM_JOB_NODELIST": "node[0-1]"}
    line = ["sh", str(script), "voice", "--help"]
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "--face-decoder" in done.stdout, done.stderr
