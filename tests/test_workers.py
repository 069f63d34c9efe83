"""The processes of a cluster: Ray's, started once, with workers and a node that go away."""

import contextlib
import functools
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from cluster_tasks import Count, read, save, shout, slowly
from command_line import Done, assert_refused
from conftest import write_photo, write_speech
from trees import contents, grow, interruptible

from s2f import prep, workers
from s2f.errors import DeviceError, OutputError, WorkerError
from s2f.prep import Step
from s2f.workers import connected_to_ray

NODE = {"num_cpus": 2, "object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def nodes():
    """A cluster of one node, to which others may be added."""
    if sys.platform != "linux":
        pytest.skip("looks for processes in /proc")
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        options = {**NODE, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=options)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def cluster(nodes):
    with connected_to_ray(nodes.address) as connected:
        yield connected


def step_of(tmp_path, **changes):
    settings = {
        "name": "shout",
        "wants": lambda name: name.endswith(".txt"),
        "sources": "texts",
        "rename": lambda path: f"{path.removesuffix('txt')}out",
        "settings": {"loud": True},
        "work": functools.partial(shout, tmp_path / "log"),
    }
    return Step(**settings | changes)


def processes(name):
    """Number the processes of Ray's that do something now, by its name."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(b"ray::" + name.encode()):
                found.append(int(folder.name))
    return found


def kill_at(places, killed):
    """Kill one of the processes that are at work when so many items are done."""
    due = [*places]

    def progress(done, total, what):
        while due and done >= due[0] and (found := processes("_work_on_batch")):
            os.kill(found[0], signal.SIGKILL)
            killed.append(due.pop(0))

    return progress


@pytest.mark.slow
def test_a_cluster_whose_workers_are_killed_leaves_the_bytes_and_the_report_of_one_machine(
    cluster, tmp_path, monkeypatch, capfd
):
    """With paths from the folder that the command was started in, where no worker is."""
    monkeypatch.chdir(tmp_path)
    grow(tmp_path / "in", [f"{k % 3}/{k}.txt" for k in range(150)])
    for k, text in {10: "bad", 20: "kill", 30: "bug"}.items():
        (tmp_path / f"in/{k % 3}/{k}.txt").write_text(text)
    step = step_of(tmp_path)
    local = prep.prepare(step, Path("in"), Path("local"), workers=2)
    killed = []
    progress = kill_at([1, 50, 80, 110], killed)
    there = prep.prepare(step, Path("in"), Path("ray"), cluster=cluster, progress=progress)
    assert killed == [1, 50, 80, 110]
    assert capfd.readouterr() == ("", "")
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert there.made == 147 and len(there.failed) == 3
    told = [[(one.source, str(one.error)) for one in of.failed] for of in (local, there)]
    assert told[0] == told[1]
    assert there.notes == local.notes
    assert prep.prepare(step, Path("in"), Path("ray"), workers=1).skipped == 147


@pytest.mark.slow
def test_a_process_that_is_killed_every_other_second_costs_no_file(cluster, tmp_path):
    """Whatever it does; but where a machine is so slow that nothing was done since, it may live."""
    grow(tmp_path / "in", [f"{k % 7}/{k}.txt" for k in range(250)])
    step, killed, ended, counts = step_of(tmp_path), [], threading.Event(), [-1]

    def kill():
        while not ended.wait(2):
            for process in processes("_work_on_batch")[: counts[-1] > counts[0]]:
                counts[:] = counts[-1:]
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)

    def progress(done, total, what):
        counts.append(done)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        report = prep.prepare(
            step, tmp_path / "in", tmp_path / "out", cluster=cluster, progress=progress
        )
    finally:
        ended.set()
        thread.join()
    assert len(killed) >= 4 and (report.made, report.failed) == (250, ())
    prep.prepare(step, tmp_path / "in", tmp_path / "local", workers=4)
    assert contents(tmp_path / "out") == contents(tmp_path / "local")


@pytest.mark.slow
def test_what_ends_a_run_ends_it_and_a_batch_hangs_as_long_as_one_item(cluster, tmp_path):
    grow(tmp_path / "in", [f"{k}.txt" for k in range(9)], b"full")
    with pytest.raises(OutputError, match="No space left"):
        prep.prepare(step_of(tmp_path), tmp_path / "in", tmp_path / "out", cluster=cluster)
    assert not list((tmp_path / "out/.s2f/shout").glob("*"))
    items = [(0.0,), (60.0,), (0.1,), (0.2,)]
    values = dict(cluster.run(time.sleep, items, total=4, seconds=3))
    assert [values[k] for k in (0, 2, 3)] == [None] * 3
    assert isinstance(values[1], WorkerError) and "took more than 3 s" in str(values[1])


@pytest.mark.slow
def test_few_batches_are_on_their_way_and_they_end_with_the_run(cluster, tmp_path):
    taken = []

    def items():
        for k in range(10**6):
            taken.append(k)
            yield k, tmp_path

    results = cluster.run(slowly, items(), total=10**6)
    assert next(results)[1] is None
    assert len(taken) <= (workers.AHEAD * 2 + 1) * workers.BATCH
    results.close()
    made = contents(tmp_path)
    time.sleep(2)
    assert contents(tmp_path) == made
    assert not processes("_work_on_batch")


@pytest.mark.slow
def test_what_a_node_lacks_ends_the_run_and_is_named(cluster, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def work(*item):\n    return item\n")
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module("mine").work
    for more in ({"function": work}, {"function": len, "finish": work}):
        with pytest.raises(DeviceError, match=r"cannot begin: ModuleNotFoundError.*'mine'"):
            list(cluster.run(items=[("a",)], total=1, **more))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "gone")
    monkeypatch.setattr(Path, "cwd", lambda: tmp_path / "here")  # as this node sees it
    with pytest.raises(DeviceError, match=f"cannot work in {tmp_path / 'here'}"):
        list(cluster.run(len, [("a",)], total=1))


@pytest.mark.slow
def test_a_network_is_in_an_actor_and_a_batch_that_kills_it_costs_one_item(
    cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(workers, "LOSSES", 1)
    grow(tmp_path / "in", [f"{k}.txt" for k in range(30)], b"word")
    (tmp_path / "in/3.txt").write_text("")
    net = {"work": read, "net": Count(tmp_path / "killed"), "save": save, "batch_size": 4}
    step = step_of(tmp_path, **net)
    report = prep.prepare(step, tmp_path / "in", tmp_path / "out", cluster=cluster)
    assert [(one.source.name, str(one.error)) for one in report.failed] == [("3.txt", "is empty")]
    assert report.made == 29 and (tmp_path / "out/4.out").read_text() == "4"
    (tmp_path / "in/7.txt").write_text("poison")
    (tmp_path / "in/8.txt").write_text("lost")
    report = prep.prepare(step, tmp_path / "in", tmp_path / "again", cluster=cluster)
    failed = {one.source.name: one.error for one in report.failed}
    assert report.made == 27 and [*failed] == ["3.txt", "7.txt", "8.txt"]
    for name in ("7.txt", "8.txt"):
        assert isinstance(failed[name], WorkerError)
        assert f"{tmp_path / 'in' / name}: the process that read it was lost" in str(failed[name])


@pytest.mark.slow
def test_embeddings_have_the_bytes_of_this_machine(nodes, tmp_path, models):
    for k in range(5):
        write_photo(tmp_path / f"in/{k}.png", seed=k)
    (tmp_path / "in/bad.png").write_bytes(b"no photo")
    words = ["--face-encoder", models / "demo/face_encoder.safetensors", "--json"]
    words += ["--batch-size", 2]
    local = Done("prep", "embeddings", tmp_path / "in", tmp_path / "a", *words)
    ray = ["--executor", "ray", "--ray-address", nodes.address]
    there = Done("prep", "embeddings", tmp_path / "in", tmp_path / "b", *words, *ray)
    assert (there.code, there.err) == (local.code, local.err) == (6, "")
    assert there.json["failed"] == local.json["failed"] and there.json["made"] == 5
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
    refused = Done("prep", "embeddings", tmp_path / "in", tmp_path / "c", *words[:2], *ray)
    assert refused.code == 6
    gpu = Done(
        "prep", "embeddings", tmp_path / "in", tmp_path / "d", *words[:2], *ray, "--device", "cuda"
    )
    assert_refused(gpu, 5, "no node of the Ray cluster has a GPU")


@pytest.mark.slow
def test_shards_run_on_a_cluster(nodes, tmp_path):
    for k in range(4):
        write_speech(tmp_path / f"in/{k}.wav", seed=k)
    ray = ["--executor", "ray", "--ray-address", nodes.address]
    words = ["prep", "audio", tmp_path / "in"]
    for k in (1, 2):
        assert Done(*words, tmp_path / "out", "--shard", f"{k}/2", *ray).code == 0
    assert Done("prep", "status", tmp_path / "out").code == 0
    assert Done(*words, tmp_path / "out", "--workers", 1).code == 0
    Done(*words, tmp_path / "local", "--workers", 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "local")


@pytest.mark.slow
def test_ctrl_c_ends_it_and_leaves_the_cluster(nodes, tmp_path):
    for k in range(8):
        write_speech(tmp_path / f"in/{k}.wav", seconds=600, seed=k)
    words = ["prep", "audio", tmp_path / "in", tmp_path / "out"]
    words += ["--executor", "ray", "--ray-address", nodes.address]
    command = [sys.executable, "-m", "s2f", *map(str, words)]
    options = {"preexec_fn": interruptible, "start_new_session": True, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **options)
    while process.poll() is None and not processes("_work_on_batch"):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, b"Traceback" in told) == (130, False), told
    assert not list((tmp_path / "out/.s2f/audio").glob("*"))
    with connected_to_ray(nodes.address) as cluster:
        assert [*cluster.run(len, [("abc",)], total=1)] == [(0, 3)]


@pytest.mark.reliability  # Ray takes half a minute to see it
def test_the_work_of_a_node_that_is_lost_is_done_by_another(nodes, tmp_path):
    lost = nodes.add_node(**NODE)
    grow(tmp_path / "in", [f"{k}.txt" for k in range(200)])
    step = step_of(tmp_path)
    gone = []

    def progress(done, total, what):
        if done >= 20 and not gone:
            gone.append(done)
            nodes.remove_node(lost, allow_graceful=False)

    with connected_to_ray(nodes.address) as cluster:
        report = prep.prepare(
            step, tmp_path / "in", tmp_path / "out", cluster=cluster, progress=progress
        )
    assert gone and (report.made, report.failed) == (200, ())
    prep.prepare(step, tmp_path / "in", tmp_path / "local", workers=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "local")


@pytest.mark.slow
def test_a_cluster_of_its_own_is_started_and_ended(tmp_path):
    pytest.importorskip("ray")
    before = {*Path("/tmp", "ray").glob("session_*_*")}
    write_speech(tmp_path / "in/a.wav")
    words = ["prep", "audio", tmp_path / "in", tmp_path / "out", "--workers", 1, "--json"]
    command = [sys.executable, "-m", "s2f", *map(str, words), "--executor", "ray"]
    (long := tmp_path / ("job" * 40)).mkdir()  # in which no socket can have a name
    env = os.environ | {"TMPDIR": str(long)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["made"] == 1
    assert {*Path("/tmp", "ray").glob("session_*_*")} <= before
    Done(*words[:3], tmp_path / "local", *words[4:])
    assert contents(tmp_path / "out") == contents(tmp_path / "local")


@pytest.mark.slow
def test_the_script_for_ray_runs_and_is_what_the_readme_shows(nodes, tmp_path):
    root = Path(__file__).parents[1]
    script = root / "examples/ray_prep.sh"
    assert script.read_text().splitlines()[-1] in (root / "README.md").read_text().splitlines()
    write_speech(tmp_path / "in/a.wav")
    (tmp_path / "bin").mkdir()
    does = {"ray": 'echo "$0 $@" >>"$CALLS"', "srun": '"$@"', "hostname": "echo head"}
    does["s2f"] = f'exec {sys.executable} -m s2f "$@"'
    for name, text in does.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bin/srun").write_text('#!/bin/sh\nshift 6\nexec "$@"\n')
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    env |= {"SLURM_NNODES": "4", "PYTHONPATH": str(root), "RAY_ADDRESS": nodes.address}
    env["CALLS"] = str(tmp_path / "calls")
    words = ["sh", str(script), str(tmp_path / "in"), str(tmp_path / "out")]
    assert subprocess.run(words, env=env, check=True, capture_output=True).stderr == b""
    assert (tmp_path / "out/a.npy").exists()
    calls = [line.split("/bin/")[1] for line in (tmp_path / "calls").read_text().splitlines()]
    assert sorted(calls) == [
        "ray start --address head:6379 --block",
        "ray start --head --port 6379 --include-dashboard false",
    ]


# What is refused: quickly, and with no Ray


@pytest.fixture
def words(tmp_path):
    write_speech(tmp_path / "in/a.wav")
    return ["prep", "audio", tmp_path / "in", tmp_path / "out"]


def test_an_address_that_is_none_or_where_no_cluster_is_is_refused(words, tmp_path):
    ray = [*words, "--executor", "ray", "--ray-address"]
    assert_refused(Done(*words, "--ray-address", "auto"), 2, "--ray-address is for --executor ray")
    for address in ("here", "ray://here:1", "here:", ":1", "1.2.3.4:x"):
        assert_refused(Done(*ray, address), 2, f"--ray-address {address}: wanted host:port")
    with socket.socket() as taken:  # it listens to nobody
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert_refused(Done(*ray, address), 5, f"--ray-address {address}: no Ray cluster answers")
    assert not (tmp_path / "out").exists()


def test_without_ray_the_extra_is_named(words, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = Done(*words, "--executor", "ray")
    assert_refused(done, 5, "needs the package ray")
    assert "cure: pip install 's2f[cluster]'\n" in done.err
