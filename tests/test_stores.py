"""Object stores: what goes there comes back, and what fails on the way is seen."""

import functools
import importlib
import multiprocessing.forkserver
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from command_line import Done, assert_refused, commands
from conftest import write_photo, write_speech
from stores import Faulty, s3_server
from trees import contents, grow, interruptible

from s2f import layout, prep, stores
from s2f.errors import DatasetError, InputError, OutputError, UsageError
from s2f.files import PassedOver
from s2f.journal import StepShard
from s2f.pack import Pack, pack_tree, stage_pack, verify_pack
from s2f.prep import Step
from s2f.prep_faces import embeddings_step
from s2f.stores import Store, parse_place, status_of

TRAINING = ["--steps", "3", "--batch-size", "2", "--every", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def server():
    """An S3 server behind a proxy, which the environment names; workers know it too."""
    s3fs = pytest.importorskip("s3fs")
    forks = multiprocessing.forkserver._forkserver
    with s3_server() as where, pytest.MonkeyPatch.context() as patch:
        proxy = Faulty(*where)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_address[1]}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setitem(fsspec.config.conf, "s3", waiting(100))
        patch.setattr(stores, "WAIT", 0.01)
        forks._stop()  # that of other tests has another environment
        s3fs.S3FileSystem.clear_instance_cache()
        fsspec.filesystem("s3").mkdir("bucket")
        yield proxy
        forks._stop()
        s3fs.S3FileSystem.clear_instance_cache()
        proxy.shutdown()
        proxy.server_close()


def waiting(seconds):
    """How s3fs is to ask: with so long for an answer, and without botocore's own retries."""
    return {"config_kwargs": {"read_timeout": seconds, "retries": {"max_attempts": 0}}}


@pytest.fixture
def bucket(server, request):
    """An empty folder of a bucket."""
    server.faults, server.seen, server.asked = [], [], []
    return Store(f"s3://bucket/{request.node.name}")


def send(folder, store):
    for path, content in contents(folder).items():
        (store / path).write_bytes(content)


def objects(store):
    """What lies in a store, without what is the journal's."""
    return {name: (store / name).read_bytes() for name in store.names()}


def plain(folder):
    return {name: c for name, c in contents(folder).items() if not name.startswith(".s2f")}


def shout(log, source, part):
    with Path(log).open("a") as file:
        file.write("made\n")
    text = source.read_text()
    if text == "bad":
        raise InputError(f"{source}: is bad", hint=f"mend {source}")
    part.write_text(text.upper())
    return {"length": len(text)}


def slow_shout(log, source, part):
    time.sleep(0.1)
    return shout(log, source, part)


def prepare(log, source, out, work=shout, **options):
    step = Step(
        name="shout",
        wants=lambda name: name.endswith(".txt"),
        sources="texts",
        rename=upper_name,
        settings=options.pop("settings", {}),
        work=functools.partial(work, str(log)),
    )
    return prep.prepare(step, source, out, **{"workers": 2} | options)


def upper_name(path):
    return path.removesuffix(".txt") + ".out"


def made(log):
    n = len(log.read_text().splitlines()) if log.exists() else 0
    log.unlink(missing_ok=True)
    return n


def test_what_is_made_of_objects_and_put_there_is_what_files_give(bucket, tmp_path):
    for k in range(3):
        write_speech(tmp_path / f"in/p{k % 2}/{k}.wav", seed=k)
    grow(tmp_path / "in", ["p0/bad.wav", "p1/.hidden.wav", "note.txt"], b"RIFF")
    send(tmp_path / "in", bucket / "in")
    fsspec.filesystem("s3").pipe(f"{(bucket / 'in/p0').url}/", b"")  # as consoles mark folders
    here = Done("prep", "audio", tmp_path / "in", tmp_path / "out", "--json")
    there = Done("prep", "audio", bucket / "in", bucket / "out", "--json")
    mixed = Done("prep", "audio", bucket / "in", tmp_path / "mixed", "--json")
    wanted = plain(tmp_path / "out")
    assert objects(bucket / "out") == wanted and len(wanted) == 3
    assert plain(tmp_path / "mixed") == wanted
    for done in (here, there, mixed):
        assert (done.code, done.json["made"], done.json["passed_over"]) == (6, 3, {".txt": 1})
    ((mine,), (its,)) = here.json["failed"], there.json["failed"]
    assert its["source"] == f"{bucket}/in/p0/bad.wav"
    assert its["message"] == mine["message"].replace(str(tmp_path), str(bucket))

    again = Done("prep", "audio", bucket / "in", bucket / "out", "--json")
    assert (again.json["made"], again.json["skipped"]) == (0, 3)
    write_speech(tmp_path / "new.wav", seed=9)
    (bucket / "in/p0/0.wav").put(tmp_path / "new.wav")
    (bucket / "out/p1/1.npy").unlink()
    third = Done("prep", "audio", bucket / "in", bucket / "out", "--json")
    assert (third.json["made"], third.json["skipped"]) == (2, 1)
    status = Done("prep", "status", bucket / "out")
    assert (status.code, status.out) == (1, "audio: 3 of 4 done, 1 failed, 0 begun, 0 missing\n")
    single = Done("prep", "audio", bucket / "in/p0/bad.wav", tmp_path / "single")
    assert_refused(single, 3, f"{bucket}/in/p0/bad.wav")
    assert_refused(Done("prep", "audio", bucket / "none", tmp_path / "o"), 3, f"{bucket}/none")


def test_photos_go_through_a_network_and_back(bucket, tmp_path, models):
    for k in range(2):
        write_photo(tmp_path / f"in/{k}.jpg", seed=k)
    grow(tmp_path / "in", ["bad.jpg"], b"no photo")
    send(tmp_path / "in", bucket)
    options = "--face-encoder", models / "demo/face_encoder.safetensors", "--device", "cpu"
    Done("prep", "embeddings", tmp_path / "in", tmp_path / "in", *options)
    done = Done("prep", "embeddings", bucket, bucket, *options, "--json")
    assert (done.code, done.json["made"]) == (6, 2)
    assert done.json["failed"][0]["message"].startswith(f"{bucket}/bad.jpg: ")
    assert objects(bucket) == plain(tmp_path / "in")


def test_shards_add_up_and_what_is_not_ours_stays(bucket, tmp_path):
    log, names = tmp_path / "log", [f"{k}/{k}.txt" for k in range(12)]
    for name in names:
        (bucket / "in" / name).write_bytes(f"text {name}".encode())
    (bucket / "in/bad.txt").write_bytes(b"bad")
    (bucket / "out/3/3.out").write_bytes(b"mine")
    for k in (1, 2):
        report = prepare(log, bucket / "in", bucket / "out", shard=StepShard(k, 2))
        assert report.shard == StepShard(k, 2)
    (status,) = status_of(bucket / "out")
    assert (status.items, status.done, status.failed, status.missing) == (13, 11, 2, 0)
    assert made(log) == 12
    whole = prepare(log, bucket / "in", bucket / "out")
    assert (whole.made, whole.skipped, made(log)) == (0, 11, 1)
    told = {str(one.source): one.error.message for one in whole.failed}
    assert told[f"{bucket}/in/bad.txt"] == f"{bucket}/in/bad.txt: is bad"
    assert told[f"{bucket}/in/3/3.txt"].startswith(f"{bucket}/out/3/3.out: exists already")
    assert (bucket / "out/3/3.out").read_bytes() == b"mine"
    assert prepare(log, bucket / "in", bucket / "out", overwrite=True).made == 1
    assert (bucket / "out/3/3.out").read_bytes() == b"TEXT 3/3.TXT"
    assert prepare(log, bucket / "in", bucket / "out", settings={"a": 1}).made == 12
    assert not (bucket / "out/.s2f").glob("*[!l]")  # nobody is at work


def test_a_run_that_was_killed_is_gone_on_with(bucket, tmp_path):
    """No upload of the journal came after its first: all is made again, and none refused."""
    log = tmp_path / "log"
    for k in range(12):
        (bucket / f"in/{k}.txt").write_bytes(f"text {k}".encode())
    code = (
        "import sys; sys.path[:0] = ['tests', 'benchmarks']; import test_stores as t\n"
        f"t.prepare({str(log)!r}, t.Store('{bucket}/in'), t.Store('{bucket}/out'), t.slow_shout)\n"
    )
    root = Path(__file__).parents[1]
    run = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, preexec_fn=interruptible, start_new_session=True
    )
    while not (log.exists() and len(log.read_text().splitlines()) > 4):
        assert run.poll() is None
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    n = made(log)
    assert 0 < len(list((bucket / "out").names())) <= n < 12
    with pytest.raises(UsageError, match="settings") as refused:  # as far as other machines know
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("s2f.files.is_left", lambda name: False)
            prepare(log, bucket / "in", bucket / "out", settings={"other": True})
    (marker,) = (bucket / "out/.s2f").glob("*[!l]")
    assert f"remove {marker}" in refused.value.hint
    report = prepare(log, bucket / "in", bucket / "out")
    assert (report.made, report.failed, made(log)) == (12, (), 12)
    wanted = {f"{k}.out": f"TEXT {k}".encode() for k in range(12)}
    assert objects(bucket / "out") == wanted


def test_a_journal_that_was_put_spares_its_work(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "UPLOAD_SECONDS", 0)
    monkeypatch.setattr(stores, "UPLOAD_SHARE", 1e9)
    log = tmp_path / "log"
    for k in range(6):
        (bucket / f"in/{k}.txt").write_bytes(b"text")
    whole = stores.StoreJournal.note

    def note(journal, event, *of):
        whole(journal, event, *of)
        if event == "done" and of[0] == "3.out":
            journal._upload = lambda: None  # as after a kill: nothing more reaches the store
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stores.StoreJournal, "note", note)
        prepare(log, bucket / "in", bucket / "out", workers=1)
    assert made(log) == 4
    assert prepare(log, bucket / "in", bucket / "out").made == 2


@pytest.mark.parametrize("kind", ["503", "hang", "half", "cut"])
def test_a_fault_that_passes_costs_nothing(kind, bucket, server, tmp_path, monkeypatch):
    content = bytes(range(256)) * 4000
    (bucket / "a").write_bytes(content)
    if kind == "hang":
        monkeypatch.setitem(fsspec.config.conf, "s3", waiting(3))
    server.faults = [(kind, "GET", "/a")] * 2
    if kind in ("503", "hang"):  # the others are of what comes back
        server.faults += [(kind, "PUT", "/b")] * 2
    if kind == "503":
        server.faults += [(kind, "GET", "list-type")] * 2 + [(kind, "HEAD", "/b")]
    n = len(server.faults)
    (bucket / "a").get(tmp_path / "a")
    (bucket / "b").put(tmp_path / "a")
    assert list(bucket.names()) == ["a", "b"]
    assert (tmp_path / "a").read_bytes() == (bucket / "b").read_bytes() == content
    assert server.seen == [kind] * n


@pytest.mark.parametrize("kind", ["503", "cut"])
def test_a_fault_that_stays_is_told_of_its_object(kind, bucket, server, tmp_path):
    (bucket / "in/a.txt").write_bytes(b"text " * 1000)
    server.faults = [(kind, "GET", "/a.txt")] * 99
    with pytest.raises(
        InputError, match=f"^{re.escape(str(bucket))}/in/a.txt: cannot be fetched: "
    ) as refused:
        (bucket / "in/a.txt").get(tmp_path / "a")
    assert "network" in refused.value.hint
    (tmp_path / "a").write_bytes(b"text")
    server.faults = [("503", "PUT", "/b")] * 99
    with pytest.raises(OutputError, match=f"^{re.escape(str(bucket))}/b: cannot be written: "):
        (bucket / "b").put(tmp_path / "a")
    server.faults = [("503", "PUT", ".journal")] * 99  # nothing is made that it does not claim
    with pytest.raises(
        OutputError, match=f"^{re.escape(str(bucket))}/out/.s2f/.*: cannot be written: "
    ):
        prepare(tmp_path / "log", bucket / "in", bucket / "out")
    assert made(tmp_path / "log") == 0


def test_who_may_not_look_hears_which_names_are_asked_for(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")
    fs = type(fsspec.filesystem("s3"))
    fs.clear_instance_cache()
    with pytest.raises(DatasetError, match="cannot be listed") as refused:
        list(bucket.names())
    fs.clear_instance_cache()
    assert "AWS_ACCESS_KEY_ID" in refused.value.hint


def test_names_that_no_file_could_have_are_refused_and_hidden_ones_passed(bucket):
    for name in ("a.txt", "b/.x/c.txt", "../out.txt", "b/../../d.txt", "b/z.md", "out/o.txt"):
        fsspec.filesystem("s3").pipe(f"{bucket}/{name}", b"1")
    others = PassedOver()
    found = bucket.walk(
        lambda name: name.endswith(".txt"), without=bucket / "out", passed_over=others
    )
    assert [(file.path, file.size) for file in found] == [("a.txt", 1)]
    assert others == {".md": 1}
    fsspec.filesystem("s3").pipe(f"{bucket}/b//e.txt", b"1")
    with pytest.raises(DatasetError, match=r"b//e\.txt"):
        list(bucket.walk(lambda name: True))


CLIP = 1.0  # seconds


@pytest.fixture
def tree(voices, models):
    """A voice tree with embeddings."""
    step = embeddings_step(models / "demo/face_encoder.safetensors", "cpu")
    for photo in voices.rglob("*.jpg"):
        (value,) = step.net([step.work(photo, photo)])
        np.save(layout.beside(photo.with_suffix(""), layout.EMBEDDING), value)
    grow(voices, ["card.json"], b'{"licence": "none"}')
    return voices


def packed(tree, out, models, **options):
    encoder = models / "demo/face_encoder.safetensors"
    options = {"clip_seconds": CLIP, "shard_bytes": 100_000, "workers": 1} | options
    return pack_tree(tree, out, face_encoder=encoder, **options)


def test_a_pack_in_a_store_trains_as_from_disk(
    bucket, server, tree, models, bundled, presets, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    encoder = ["--face-encoder", models / "demo/face_encoder.safetensors"]
    packed(tree, tmp_path / "pack", models)
    done = Done(
        "prep",
        "pack",
        tree,
        bucket,
        *encoder,
        "--clip-seconds",
        CLIP,
        "--workers",
        1,
        "--verify",
        "--json",
    )
    assert (done.code, done.json["out"], done.json["damaged"]) == (0, str(bucket), [])
    packed(tree, bucket, models, overwrite=True)
    assert packed(tree, bucket, models).made == 0
    assert objects(bucket) == plain(tmp_path / "pack")
    with pytest.raises(UsageError, match="clip_samples"):
        packed(tree, bucket, models, clip_seconds=2.0)
    networks = [*encoder, "--face-decoder", models / "demo/face_decoder.safetensors"]
    runs = []
    for name, data in (
        ("disk", [tmp_path / "pack"]),
        ("store", [bucket]),
        ("nfs", [tmp_path / "pack", "--stage", tmp_path / "near"]),
    ):
        runs.append(tmp_path / name)
        done = Done("train", "voice", *data, *networks, *TRAINING, "-o", runs[-1])
        assert done.code == 0, done.err
    disk, *others = [contents(run) for run in runs]
    for other in others:
        assert other["history.jsonl"] == disk["history.jsonl"]
    (staged,) = (tmp_path / "cache/s2f/packs").iterdir()
    assert contents(staged).keys() - {".lock"} == plain(tmp_path / "pack").keys()
    n = len(server.asked)
    assert stage_pack(bucket, tmp_path / "cache/s2f/packs") == staged
    assert not [path for _, path in server.asked[n:] if path.endswith(".npy")]


def test_a_pack_is_staged_whole_or_not_at_all(tree, models, tmp_path):
    """In memory, where one process is enough."""
    store = Store(f"memory://{tmp_path.name}/pack")
    packed(tree, store, models)
    assert verify_pack(store).damaged == ()
    clips = store / "train/clips-00000.npy"
    whole = clips.read_bytes()
    clips.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert [error.message.split(":")[2] for error in verify_pack(store).damaged] == [" is damaged"]
    with pytest.raises(DatasetError, match=f"{clips}: is damaged"):
        stage_pack(store, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    assert not list(folder.rglob("index.json")) and not list(folder.rglob("clips-*"))
    clips.write_bytes(whole)
    assert stage_pack(store, tmp_path / "cache") == folder
    assert len(Pack(folder / "train")) == len(Pack(packed_here(tree, models, tmp_path) / "train"))
    (store / "train/index.json").unlink()
    with pytest.raises(DatasetError, match="was not finished"):
        stage_pack(store, tmp_path / "cache")
    with pytest.raises(DatasetError, match="is no pack"):
        stage_pack(Store("memory://none"), tmp_path / "cache")


def packed_here(tree, models, tmp_path):
    packed(tree, tmp_path / "pack", models)
    return tmp_path / "pack"


def test_texts_are_paths_or_stores():
    assert parse_place("a/b") == Path("a/b") and parse_place("C:/a") == Path("C:/a")
    assert (
        parse_place("S3://bucket/a/") == Store("s3://bucket/a")
        and str(parse_place("gs://b")) == "gs://b"
    )
    for wrong in ("s3:/bucket", "s3://", "s3://b//a", "s3://b/../a", "http://a/b", "file:///a"):
        with pytest.raises(UsageError, match=wrong):
            parse_place(wrong)
    with pytest.raises(UsageError, match="memory of one process"):
        prepare("log", Store("memory://a"), Path("out"))


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    registry = importlib.import_module("fsspec.registry")  # the package has an attribute so named
    monkeypatch.delitem(registry._registry, "s3", raising=False)
    done = Done("prep", "status", "s3://bucket/out")
    assert_refused(done, 5, "s3://bucket/out/.s2f: needs the package s3fs")
    assert "s2f[cluster]" in done.err


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_no_command_makes_a_folder_of_a_url(path, tmp_path, monkeypatch):
    """What may be a URL is refused where it cannot be reached, and everything else that is one."""
    monkeypatch.chdir(tmp_path)
    params = dict(commands())[path].params
    for one in params:
        takes = one.type_descriptor.annotation
        if "Path" in repr(takes):
            url = "s3://bucket/a"
        elif takes is str and one.name in ("src", "out", "tree", "data"):
            url = "memory://bucket/a"
        else:
            continue
        others = [p for p in params if p.required and p is not one]
        done = Done(*path, *(w for p in params for w in _given(p, url, one, others)))
        assert done.code in (2, 4), (one.name, done.err)  # what comes first is refused first
        assert url in done.err or takes is str
    assert list(tmp_path.iterdir()) == []


def _given(param, url, one, others):
    if param is not one and param not in others:
        return []
    words = [url if param is one else "none"] * (param.nargs if param.nargs > 0 else 1)
    return words if param.param_type_name == "argument" else [param.opts[-1], *words]
