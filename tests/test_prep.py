"""Trees made of trees, by a step that turns text to upper case; the workers; and the journal."""

import errno
import functools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from trees import grow, interruptible

from s2f import journal, prep, workers
from s2f.errors import DatasetError, DeviceError, InputError, OutputError, UsageError, WorkerError
from s2f.files import File
from s2f.journal import Journal, StepShard, read_status
from s2f.prep import Step


def shout(log, source, part):
    """Write a text in upper case, or do what it says; the log tells what was made again."""
    text = source.read_text()
    with Path(log).open("a") as file:
        file.write(f"{source.name!a}\n")
    if text == "bad":
        raise InputError(f"{source}: is bad")
    if text == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if text == "full":
        raise OSError(28, "No space left on device")
    time.sleep(0.004)
    part.write_text(text.upper())
    return {"length": len(text)} if text.startswith("long") else None


def read(source, part):
    return source.read_text()


def lengths(texts):
    return [f"{len(text)} of {len(texts)}" if text else InputError("is empty") for text in texts]


def save(text, part):
    if text.startswith("4 of 1"):
        raise OSError(28, "No space left on device")
    part.write_text(text)


@pytest.fixture
def tree(tmp_path):
    for name in ("a/1", "a/2", "b/1"):
        grow(tmp_path / "in", [f"{name}.txt"], f"text {name}".encode())
    return tmp_path


def prepare(tree, out="out", source="in", step=None, **options):
    defaults = {
        "name": "shout",
        "wants": lambda name: name.endswith((".txt", ".text")),
        "sources": "texts",
        "rename": lambda path: f"{path.rpartition('.')[0]}.out",
        "settings": {"loud": True},
        "work": functools.partial(shout, str(tree / "made")),
    }
    return prep.prepare(Step(**defaults | (step or {})), tree / source, tree / out, **options)


def everything(folder):
    return {p.relative_to(folder): p.is_file() and p.read_bytes() for p in folder.rglob("*")}


def contents(folder):
    files = {path: data for path, data in everything(folder).items() if data is not False}
    return {str(path): data.decode() for path, data in files.items() if ".s2f" not in path.parts}


def made(tree):
    log = tree / "made"
    names = sorted(map(eval, log.read_text().splitlines())) if log.exists() else []
    log.unlink(missing_ok=True)
    return names


@pytest.mark.skipif(sys.platform != "linux", reason="others have no such times")
def test_a_file_of_a_far_year_is_a_file(tree):
    """Nanoseconds since 1970 in 64 bits, signed, end in 2262; those of file systems do not."""
    os.utime(tree / "in/a/2.txt", ns=(10**19, 10**19))
    if (tree / "in/a/2.txt").stat().st_mtime_ns != 10**19:
        pytest.skip("this file system has no such times")
    assert [prepare(tree).made, prepare(tree).skipped] == [3, 3]


def test_a_tree_is_mirrored_and_only_what_changed_or_is_gone_is_made_again(tree):
    seen = []
    name = b"\xff\n\xc3\xa9".decode(errors="surrogateescape")  # no text
    (tree / "in" / f"{name}.txt").write_text("odd")
    report = prepare(tree, progress=lambda *event: seen.append(event))
    outputs = {"a/1.out": "TEXT A/1", "a/2.out": "TEXT A/2", "b/1.out": "TEXT B/1"}
    assert contents(tree / "out") == {**outputs, f"{name}.out": "ODD"}
    assert (report.made, report.skipped, report.failed, report.notes) == (4, 0, (), {})
    assert seen[-1][:2] == (4, 4) and len(made(tree)) == 4
    before = everything(tree / "out")
    again = prepare(tree)
    assert (again.made, again.skipped, made(tree)) == (0, 4, [])
    assert everything(tree / "out") == before
    (tree / "in/a/1.txt").write_text("new")
    (tree / "in/a/2.txt").write_text("texT a/2")  # of the same size, and older
    os.utime(tree / "in/a/2.txt", (1, 1))
    (tree / "out/b/1.out").unlink()
    report = prepare(tree)
    assert (report.made, report.skipped, contents(tree / "out")["a/1.out"]) == (3, 1, "NEW")
    assert prepare(tree, step={"settings": {"loud": False}}).made == 4


def test_a_bad_source_costs_itself_only_and_is_tried_again(tree):
    (tree / "in/a/1.txt").write_text("bad")
    (tree / "in/a/2.txt").write_text("kill")
    os.mkfifo(tree / "in/pipe.txt")
    (tree / "in/gone.txt").symlink_to("nothing")
    for _ in range(2):
        failed = {failure.source.name: failure.error for failure in prepare(tree).failed}
        assert list(failed) == ["1.txt", "2.txt", "gone.txt", "pipe.txt"]
        assert "is bad" in failed["1.txt"].message and isinstance(failed["2.txt"], WorkerError)
        assert "is no regular file" in failed["pipe.txt"].message
    assert contents(tree / "out") == {"b/1.out": "TEXT B/1"}
    (tree / "in/a/1.txt").write_text("good")
    (tree / "in/b/1.txt").write_text("bad")
    report = prepare(tree)
    assert (report.made, report.skipped, len(report.failed)) == (1, 0, 4)
    (tree / "in/b/1.txt").write_text("mended")  # and over what was made before, no --overwrite
    assert prepare(tree).made == 1
    assert contents(tree / "out") == {"a/1.out": "GOOD", "b/1.out": "MENDED"}


def test_an_output_that_cannot_have_its_name_costs_itself_only(tree):
    (tree / "folder/a/1.out/x").mkdir(parents=True)
    report = prepare(tree, "folder", overwrite=True)
    assert report.made == 2 and "a/1.out: cannot be written" in report.failed[0].error.message
    (tree / "in" / f"{'x' * 251}.txt").write_text("long name")

    def rename(path):
        return f"{path.rpartition('.')[0]}{'_longer' * (len(path) > 99)}.out"

    for made_now, skipped in ((3, 0), (0, 3)):
        report = prepare(tree, step={"rename": rename})
        assert (report.made, report.skipped) == (made_now, skipped)
        (failure,) = report.failed
        assert failure.source.name.startswith("xx") and isinstance(failure.error, InputError)


def test_outputs_in_one_place_are_refused_before_any_work(tree):
    for path, why in (
        ("y.out/deep/er/z.txt", r"y\.out: would be made of y\.txt, and be a folder"),
        ("y.out/z.txt", r"y\.out: would be made of y\.txt, and be a folder"),
        ("a/1.text", r"in: 1 name has more than one file \(\.text beside \.txt 1\), such as a/1\."),
    ):
        grow(tree / "in", ["y.txt", path])
        with pytest.raises(DatasetError, match=why):
            prepare(tree)
    assert (made(tree), contents(tree / "out")) == ([], {})


def test_of_sources_of_one_name_all_are_counted_and_one_is_chosen(tree):
    """Notes, too, are of one of them: a voice that counts twice is weighed twice."""
    grow(tree / "in", ["a/1.text", "b/1.text", "b/2.text"])
    for step in ({"has_twins": True}, {"has_twins": True, "rename": None}):
        with pytest.raises(
            DatasetError, match=r"2 names have .* \(\.text beside \.txt 2\)"
        ) as caught:
            prepare(tree, step=step)
        assert caught.value.hint == "give --prefer txt or --prefer text"
        report = prepare(tree, step=step, prefer=".TXT" if "rename" in step else "txt")
        assert (report.made, report.passed_over) == (4, {".text": 2})
    assert contents(tree / "out")["a/1.out"] == "TEXT A/1"
    assert contents(tree / "out")["b/2.out"] == "B/2.TEXT"
    with pytest.raises(UsageError, match="'wav' is no suffix of texts"):
        prepare(tree, prefer="wav")
    grow(tree / "in", ["a/1.TXT"])
    step = {"has_twins": True, "wants": lambda name: name.lower().endswith(".txt")}
    with pytest.raises(DatasetError, match="1 name has more than one file") as caught:
        prepare(tree, step=step, prefer="txt")
    assert caught.value.hint == "rename or remove all but one of each name"


def test_one_file_may_be_the_source_and_only_if_told_replaces_anothers(tree):
    (tree / "in/odd").write_text("odd")
    grow(tree / "out", ["odd.out"], b"by hand")
    (tree / "empty").mkdir()
    options = {"source": "in/odd", "step": {"rename": lambda path: f"{path}.out"}}
    (failure,) = prepare(tree, **options).failed
    assert "was not made by this command" in failure.error.message
    assert contents(tree / "out") == {"odd.out": "by hand"}
    assert prepare(tree, **options, overwrite=True).made == 1
    assert contents(tree / "out") == {"odd.out": "ODD"}
    for source, message in (("nothing", "does not exist"), ("empty", "holds no texts")):
        with pytest.raises(DatasetError, match=message):
            prepare(tree, source=source)


def test_files_of_one_path_below_two_folders_never_replace_each_other_untold(tree):
    grow(tree / "other", ["a/1.txt", "c/1.txt"])
    prepare(tree)
    (tree / "in/a/1.txt").write_text("one")
    (tree / "other/a/1.txt").write_text("two")  # of equal size, and time
    for path in ("in/a/1.txt", "other/a/1.txt"):
        os.utime(tree / path, (1, 1))
    outputs = {"a/1.out": "ONE", "a/2.out": "TEXT A/2", "b/1.out": "TEXT B/1"}
    assert (prepare(tree).made, contents(tree / "out")) == (1, outputs)
    for settings in ({"loud": True}, {"loud": False}):
        report = prepare(tree, source="other", step={"settings": settings})
        (failure,) = report.failed
        assert isinstance(failure.error, UsageError) and report.made == 1
        wanted = f"was made of {tree / 'in/a/1.txt'}, not of {tree / 'other/a/1.txt'}"
        assert wanted in failure.error.message and "--overwrite" in failure.error.hint
    assert contents(tree / "out")["a/1.out"] == "ONE"
    assert prepare(tree, source="other", overwrite=True).failed == ()
    assert contents(tree / "out")["a/1.out"] == "TWO"
    assert len(prepare(tree).failed) == 1  # now it is of the other


def test_two_files_of_one_folder_and_one_name_do_not_replace_each_other_either(tree):
    grow(tree / "in", ["a/1.text"])
    assert prepare(tree, source="in/a/1.txt").made == 1
    (failure,) = prepare(tree, source="in/a/1.text").failed
    assert "1.out: was made of" in failure.error.message
    assert contents(tree / "out") == {"1.out": "TEXT A/1"}
    assert prepare(tree, source="in/a", prefer="text").made == 2  # chosen by name
    assert contents(tree / "out")["1.out"] == "A/1.TEXT"
    (tree / "in/a/1.text").rename(tree / "in/a/1.x.txt")
    assert prepare(tree, source="in/a/1.txt").made == 1  # the other is gone


def test_a_tree_that_was_moved_or_copied_is_up_to_date(tree):
    prepare(tree)
    before = everything(tree / "out")
    shutil.copytree(tree / "in", tree / "copy")
    (tree / "link").symlink_to("in")
    for source in ("copy", "link", "in"):
        assert prepare(tree, source=source).skipped == 3
    (tree / "in").rename(tree / "moved")
    shutil.rmtree(tree / "copy")
    assert prepare(tree, source="moved").skipped == 3
    (tree / "new").mkdir()
    for name in ("moved", "out"):  # both together
        (tree / name).rename(tree / "new" / name)
    report = prepare(tree, "new/out", source="new/moved")
    assert (report.skipped, report.stale) == (3, ())
    assert {path: before[path] for path in before if path.suffix == ".out"} == {
        path: data for path, data in everything(tree / "new/out").items() if path.suffix == ".out"
    }
    journal = tree / "new/out/.s2f/shout.journal"  # of an earlier version, without folders
    bare = re.sub(r"(?m) [0-9a-f]{8}$", "", journal.read_text())  # without checksums
    lines = [json.loads(line) for line in bare.splitlines()]
    assert {line[5] for line in lines[1:]} == {"../moved/*.txt"}
    journal.write_text("\n".join(map(json.dumps, [lines[0], *(x[:4] for x in lines[1:])])) + "\n")
    assert prepare(tree, "new/out", source="new/moved").skipped == 3


def test_a_source_that_went_bad_or_away_is_told_with_its_old_output(tree):
    prepare(tree)
    (tree / "in/a/1.txt").write_text("bad")
    (tree / "in/a/2.txt").unlink()
    (tree / "in/new.txt").write_text("bad")
    for _ in range(2):
        report = prepare(tree)
        assert (len(report.failed), report.stale) == (2, ("a/1.out", "a/2.out"))
    assert contents(tree / "out")["a/1.out"] == "TEXT A/1"  # kept
    assert prepare(tree, source="in/b").stale == ()  # a part of it says nothing of the rest
    assert prepare(tree, source="in/b/1.txt").stale == ()
    (tree / "out/a/2.out").unlink()
    (tree / "in/a/1.txt").write_text("good")
    assert prepare(tree).stale == ()
    notes = {"rename": None}
    (tree / "in/a/1.txt").write_text("long text")
    assert prepare(tree, "notes", step=notes).notes == {"a/1.txt": {"length": 9}}
    (tree / "in/b/1.txt").unlink()
    (tree / "in/a/1.txt").write_text("bad")
    for gone in (("b/1.txt",), ()):  # told once: nothing stands there
        report = prepare(tree, "notes", step=notes)
        assert (report.notes, report.stale) == ({}, gone)


def test_sources_are_replaced_only_if_told_and_only_once(tree):
    same = {"rename": lambda path: path}
    with pytest.raises(UsageError, match="would be replaced"):
        prepare(tree, "in", step=same)
    assert made(tree) == []
    for _ in range(2):  # outputs inside the sources are none
        report = prepare(tree, "in/out", step=same)
        assert report.made + report.skipped == 3
    shutil.rmtree(tree / "in/out")
    assert prepare(tree, "in", step=same, overwrite=True).made == 3
    assert contents(tree / "in")["a/1.txt"] == "TEXT A/1"
    assert prepare(tree, "in", step=same, overwrite=True).skipped == 3


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_kill_before_or_after_a_source_is_replaced_makes_it_once(tree, monkeypatch, is_replaced):
    replace = Path.replace

    def be_killed(part, target):
        if is_replaced:
            replace(part, target)
        raise KeyboardInterrupt

    options = {"step": {"rename": lambda path: path}, "overwrite": True, "workers": 1}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", be_killed)
        prepare(tree, "in", **options)
    (tree / "in/b/1.txt").write_text("changed meanwhile")
    report = prepare(tree, "in", **options)
    assert (report.made, report.skipped) == ((2, 1) if is_replaced else (3, 0))
    outputs = {"a/1.txt": "TEXT A/1", "a/2.txt": "TEXT A/2", "b/1.txt": "CHANGED MEANWHILE"}
    assert contents(tree / "in") == outputs


def test_made_kept_failed_and_passed_over_are_all_files(tree):
    grow(tree / "in", ["c/1.heic", "c/2.HEIC", "readme", ".hidden.heic"])
    (tree / "in/a/1.txt").write_text("bad")
    beside = {"rename": lambda path: f"{path.rpartition('.')[0]}.out"}
    for out in ("out", "in/out", "in"):
        for _ in range(2):  # what was made beside its sources is made, and not passed over
            report = prepare(tree, out, step=beside)
            assert (report.made + report.skipped, len(report.failed)) == (2, 1)
            assert report.passed_over == {".heic": 2, "": 1}
        shutil.rmtree(tree / "in/out", ignore_errors=True)
    grow(tree / "in", ["by_hand.out"])
    assert prepare(tree, "in", step=beside).passed_over == {".heic": 2, "": 1, ".out": 1}
    assert prepare(tree, "in", source="in/b/1.txt", step=beside).passed_over == {}
    shutil.rmtree(tree / "in/a")
    shutil.rmtree(tree / "in/b")
    with pytest.raises(DatasetError, match=r"in: holds no texts; passed over: \d \(.*\.heic 2"):
        prepare(tree)


def test_a_step_may_make_notes_only(tree):
    (tree / "in/a/2.txt").write_text("long text")
    for out in ("out", "in/a"):  # inside, too, they are of all the tree
        for made_now in (3, 0):
            report = prepare(tree, out, step={"rename": None})
            assert (report.made, report.notes) == (made_now, {"a/2.txt": {"length": 9}})
    assert contents(tree / "out") == {}
    for _ in range(2):
        assert prepare(tree).notes == {"a/2.out": {"length": 9}}
    (tree / "in/a/2.txt").unlink()
    stale = [prepare(tree, step={"rename": None}).stale for _ in range(2)]
    assert "a/2.txt" in stale[0] and stale[1] == ()  # told once


def test_a_net_gets_batches_and_may_refuse_one_or_all_and_a_full_disk_ends_the_run(tree):
    (tree / "in/a/1.txt").write_text("full")
    with pytest.raises(OutputError, match="No space left"):
        prepare(tree, "full", workers=1)
    with pytest.raises(OutputError, match=r"a/1\.out: cannot be written: No space left"):
        prepare(tree, "full", step={"work": read, "net": lengths, "save": save})
    (tree / "in/a/1.txt").write_text("")
    step = {"work": read, "net": lengths, "save": save, "batch_size": 2}
    report = prepare(tree, step=step, workers=1)
    assert contents(tree / "out") == {"a/2.out": "8 of 2", "b/1.out": "8 of 1"}
    assert [failure.source.name for failure in report.failed] == ["1.txt"]

    def broken(values):
        raise DeviceError("the device is gone")

    with pytest.raises(DeviceError):
        prepare(tree, "other", step={**step, "net": broken})
    assert not (tree / "other/.s2f/shout").exists()


SCRIPT = """
import pathlib, sys, test_prep
test_prep.prepare(pathlib.Path(sys.argv[1]), sys.argv[2], workers=2)
"""


@pytest.mark.slow
def test_killed_at_random_moments_the_tree_is_the_same(tmp_path):
    """`kill -9` twenty times, every other time of the workers too; then a run to the end."""
    for k in range(80):
        text = "bad" if k == 50 else f"text {k}" * k
        grow(tmp_path / "in", [f"{k % 7}/{k}.txt"], text.encode())
    command, here = [sys.executable, "-c", SCRIPT, tmp_path], Path(__file__).parent
    env = os.environ | {"PYTHONPATH": f"{here.parent}:{here}"}
    started = time.perf_counter()
    subprocess.run([*command, "whole"], check=True, env=env)
    seconds = time.perf_counter() - started
    assert sorted(made(tmp_path)) == sorted(f"{k}.txt" for k in range(80))
    rng = np.random.default_rng(0)
    for kill in range(20):
        process = subprocess.Popen([*command, "out"], env=env, start_new_session=True)
        time.sleep(seconds * rng.uniform(0.2, 1))
        os.killpg(process.pid, signal.SIGKILL) if kill % 2 else process.kill()
        process.wait()
    subprocess.run([*command, "out"], check=True, env=env)
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")
    # Each kill costs at most the item of each of the two workers; the bad one is tried each time.
    again = len([name for name in made(tmp_path) if name != "50.txt"]) - 79
    assert 0 <= again <= 2 * 20


def act(name, what):
    return eval(what)


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("what", "message", "hint"),
    [
        ("fail(InputError(f'{name}: is wrong', hint='mend it'))", "item1: is wrong", "mend it"),
        ("os.kill(os.getpid(), 9)", r"item1: .* died \(signal 9\)", "fewer --workers"),
        ("os._exit(3)", r"item1: the process that read it died \(exit code 3\)", "check the file"),
        ("fail(ValueError('why'))", r"item1: ValueError in fail:\d+: why", "report it"),
        ("fail(MemoryError())", "item1: needs more memory", "check the file"),
        ("time.sleep(60)", "item1: took more than 3 s", "damaged"),
        ("lambda: None", "item1: the process that read it died", "check the file"),
    ],
)
def test_what_goes_wrong_costs_its_own_item_only(what, message, hint):
    items = [(f"item{k}", does) for k, does in enumerate(["0", what, "2", "3"])]
    results = dict(workers.run_in_workers(act, items, workers=2, seconds=3))
    error = results.pop(1)
    assert results == {0: 0, 2: 2, 3: 3}
    assert type(error) is (InputError if "InputError" in what else WorkerError)
    assert re.search(message, error.message) and hint in str(error.hint)


def test_a_worker_holds_one_item():
    """What was taken and not answered is at most n, also where several have ended at once."""
    taken = []
    items = ((f"item{k}", "0") for k in range(20) if not taken.append(k))
    for answered, _ in enumerate(workers.run_in_workers(act, items, workers=3), start=1):
        assert len(taken) <= answered + 3
        time.sleep(0.05)
    assert len(taken) == 20


def test_leaving_early_ends_the_processes(tmp_path):
    note = tmp_path / "b"
    endless = f"Path({str(note)!r}).write_text(str(os.getpid())) and time.sleep(600)"
    run = workers.run_in_workers(act, [("a", "os.getpid()"), ("b", endless)], workers=2)
    _, pid = next(run)
    while not (note.exists() and note.read_text()):
        time.sleep(0.01)
    run.close()
    for ended in (pid, int(note.read_text())):
        with pytest.raises(ProcessLookupError):
            os.kill(ended, 0)


INTERRUPTED = """
from s2f import workers
try:
    list(workers.run_in_workers(print, [(1,)], workers=1, preload=["slow_start"]))
except KeyboardInterrupt:
    pass
"""


def test_an_interruption_while_processes_start_is_for_the_parent_alone(tmp_path):
    (tmp_path / "slow_start.py").write_text("import time\nprint(flush=True)\ntime.sleep(3)")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    options = {"env": {**os.environ, "PYTHONPATH": path}, "preexec_fn": interruptible}
    options |= {"start_new_session": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], **options)
    process.stdout.readline()  # the module is being imported
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (0, b"")


# Shards

HOSTILE = [b"\xff\n\xc3\xa9", b"e\xcc\x81", b" ", b"-x", b"3-of-8.journal", b"%s\\", b"'\"$(x)"]


@pytest.fixture
def forest(tree):
    """Twenty texts more, of odd names too; one is bad, and the undisturbed outputs are there."""
    names = [name.decode(errors="surrogateescape") for name in HOSTILE]
    grow(tree / "in", [f"c/{name}.txt" for name in [*names, *map(str, range(13))]], b"long text")
    (tree / "in/c/5.txt").write_text("bad")
    prepare(tree, "whole")
    made(tree)
    return tree


def shards(n):
    return [StepShard(k, n) for k in range(1, n + 1)]


def at(k, does):
    """Make a progress that does something when so many items are done, once."""
    waiting = [does]

    def progress(done, total, what):
        if done == k and total and waiting:
            waiting.pop()()

    return progress


def interrupt():
    raise KeyboardInterrupt


def counts(tree, out="out"):
    (step,) = read_status(tree / out)
    return step.items, step.done, step.failed, step.begun, step.missing, step.is_whole


def with_turn(journal, turn):
    """Give a journal of another turn: its first line, and the CRC-32 of that, are written anew."""
    first, rest = journal.split(b"\n", 1)
    header = json.loads(first.rpartition(b" ")[0]) | {"turn": turn}
    text = json.dumps(header).encode()
    return b"%s %08x\n%s" % (text, zlib.crc32(text), rest)


def from_elsewhere(folder, shard):
    """Make a run of a shard one of another machine, that was killed or is at work there."""
    place = f"shout.{shard.number}-of-{shard.count}."
    (journal,) = (folder / ".s2f").glob(f"{place}*.journal")
    away = folder / f".s2f/{place}00000000-1-00000000"
    away.mkdir()
    return journal.rename(f"{away}.journal"), away


def test_shards_are_the_same_on_every_machine_and_of_one_size():
    """Expected values: `b2sum -l 64` of the bytes; of sizes, four of their standard deviations."""
    known = {"a/1.npy": 5, "id10001/1zcIwhmdeo4/00001.npy": 6, "\u00e9.npy": 8, "e\u0301.npy": 8}
    known |= {"\udcff.npy": 5}
    for name, number in known.items():
        assert [shard.number for shard in shards(8) if shard.has(name)] == [number], name
    names = [f"id{k // 100:05}/v{k % 10}/{k % 100:05}.npy" for k in range(20_000)]
    for n in (2, 8, 10):
        sizes = [sum(map(shard.has, names)) for shard in shards(n)]
        assert sum(sizes) == 20_000
        assert max(abs(size - 20_000 / n) for size in sizes) < 4 * (20_000 / n) ** 0.5
    for text in ("0/4", "5/4", "x", "1/0", "1", "-1/4", "1/4/4", "1.0/4", "", "\u0661/4"):
        with pytest.raises(UsageError, match=f"--shard {re.escape(text)}: wanted"):
            StepShard.parse(text)
    assert (StepShard.parse("3/8"), str(StepShard(3, 8))) == (StepShard(3, 8), "3/8")


def test_shards_and_one_run_more_are_as_one_run(forest):
    reports = [prepare(forest, shard=shard, workers=1) for shard in shards(4)]
    assert sum(report.made for report in reports) == 22 and len(made(forest)) == 23
    assert [str(report.shard) for report in reports] == ["1/4", "2/4", "3/4", "4/4"]
    assert sum(len(report.failed) for report in reports) == 1
    again = [prepare(forest, shard=shard, workers=1) for shard in shards(4)]
    assert [report.skipped for report in again] == [report.made for report in reports]
    assert made(forest) == ["5.txt"]  # which is tried each time
    notes = {}
    for report in again:
        notes |= report.notes
    assert not (forest / "out/.s2f/shout.journal").exists()
    report = prepare(forest, workers=1)
    assert (report.made, report.skipped, report.notes) == (0, 22, notes)
    assert made(forest) == ["5.txt"] and report.shard is None
    assert everything(forest / "out") == everything(forest / "whole")


def test_a_shard_that_is_interrupted_and_one_that_runs_twice_at_once_lose_nothing(forest):
    one, two = shards(2)
    with pytest.raises(KeyboardInterrupt):
        prepare(forest, shard=one, workers=1, progress=at(2, interrupt))
    twice = []

    def also():
        twice.append(prepare(forest, shard=one, workers=1))

    first = prepare(forest, shard=one, workers=1, progress=at(5, also))
    assert first.made + first.skipped + len(first.failed) == twice[0].made + twice[0].skipped + len(
        twice[0].failed
    )
    assert twice[0].skipped >= 4
    prepare(forest, shard=two, workers=1)
    prepare(forest, workers=1)
    assert everything(forest / "out") == everything(forest / "whole")


def test_what_a_twin_made_after_its_journal_was_read_is_no_file_of_the_users(forest, monkeypatch):
    """Between a shard's look at the journals and that at the outputs, the same shard runs."""
    (shard,), read_again, ran = shards(1), Journal.read_again, []

    def and_then(journal):
        read_again(journal)
        if not ran:
            ran.append(True)
            prepare(forest, shard=shard, workers=1)

    monkeypatch.setattr(Journal, "read_again", and_then)
    grow(forest / "out", ["c/1.out"], b"by hand")
    report = prepare(forest, shard=shard, workers=1)
    assert (report.made, report.skipped) == (0, 21)
    assert {failure.source.name for failure in report.failed} == {"1.txt", "5.txt"}
    assert contents(forest / "out")["c/1.out"] == "by hand"


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ESTALE])
def test_a_journal_that_is_gone_is_looked_for_again_and_not_for_ever(forest, monkeypatch, code):
    """As a network file system tells of one that another machine has replaced."""
    (shard,), read, due = shards(1), Journal._refuse_beside, [code] * 3

    def refuse(journal, runs):
        if due:
            raise OSError(due.pop(), "gone")
        read(journal, runs)

    monkeypatch.setattr(Journal, "_refuse_beside", refuse)
    assert prepare(forest, shard=shard, workers=1).made == 22 and not due
    monkeypatch.setattr(journal, "READS", 3)
    due += [code] * 100
    with pytest.raises(OutputError, match="cannot be written: gone"):
        prepare(forest, shard=shard, workers=1)
    assert len(due) == 97
    due.clear()
    assert prepare(forest, shard=shard, workers=1).skipped == 22


def test_a_run_of_all_waits_for_shards_that_are_at_work(forest):
    one, two = shards(2)
    refused = []

    def of_all():
        with pytest.raises(UsageError, match="shout is at work there in shards: 1/2") as caught:
            prepare(forest, workers=1)
        refused.append(caught.value.hint)

    prepare(forest, shard=one, workers=1, progress=at(3, of_all))
    assert "run that shard again, or remove" in refused[0]
    journal, folder = from_elsewhere(forest / "out", one)
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    of_all()
    assert str(folder) in refused[1]
    prepare(forest, shard=two, workers=1)
    of_all()
    prepare(forest, shard=one, workers=1)  # what was killed, again
    later = [path for path in journal.parent.glob("*.1-of-2.*.journal") if path != journal]
    whole = [path.read_bytes() for path in (journal, *later)]
    for path, data in zip((journal, *later), whole, strict=True):  # as if it had come after
        path.write_bytes(with_turn(data, 9 if path == journal else 1))
    of_all()
    for path, data in zip((journal, *later), whole, strict=True):
        path.write_bytes(data)
    prepare(forest, workers=1)
    assert everything(forest / "out") == everything(forest / "whole")
    prepare(forest, "other", shard=one, workers=1)
    journal, folder = from_elsewhere(forest / "other", one)
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    folder.rmdir()  # as it was told
    prepare(forest, "other", workers=1, overwrite=True)
    assert everything(forest / "other") == everything(forest / "whole")


def test_a_run_of_all_sees_what_a_shard_made_that_began_after_it(forest, monkeypatch):
    """The shard runs between the look of the run of all at the journals and that at the outputs."""
    (shard,), is_due = shards(1), Journal.is_due

    def first_the_shard(*args, **options):
        monkeypatch.setattr(Journal, "is_due", is_due)
        prepare(forest, shard=shard, workers=1)
        return is_due(*args, **options)

    monkeypatch.setattr(Journal, "is_due", first_the_shard)
    grow(forest / "out", ["c/1.out"], b"by hand")
    report = prepare(forest, workers=1)
    assert (report.made, report.skipped) == (0, 21)
    assert {failure.source.name for failure in report.failed} == {"1.txt", "5.txt"}
    (forest / "out/c/1.out").unlink()
    assert prepare(forest, workers=1).made == 1
    assert everything(forest / "out") == everything(forest / "whole")


def test_a_run_of_all_is_refused_for_a_shard_that_began_while_it_looked(forest, monkeypatch):
    """Of other settings than this one, which its journal did not say yet."""
    prepare(forest)
    grow(forest / "in", ["new.txt"])
    list_runs, refused = journal._list_runs, []

    def finds_none(*args):
        monkeypatch.setattr(journal, "_list_runs", list_runs)
        return []

    def of_all():
        monkeypatch.setattr(journal, "_list_runs", finds_none)
        with pytest.raises(UsageError, match="is at work there in shards: 1/1") as caught:
            prepare(forest, step={"settings": {"loud": False}})
        refused.append(caught.value)

    prepare(forest, shard=StepShard(1, 1), workers=1, progress=at(23, of_all))
    assert refused
    prepare(forest)
    prepare(forest, "whole")
    assert everything(forest / "out") == everything(forest / "whole")


def test_a_shard_whose_work_was_taken_over_says_so(forest):
    """It was believed dead: another run of it has ended, on a machine that knows nothing of it."""
    (shard,) = shards(1)

    def all_of_it():
        prepare(forest, shard=shard, workers=1)
        prepare(forest, workers=1)

    with pytest.raises(UsageError, match="has taken over") as caught:
        prepare(forest, shard=shard, workers=1, progress=at(4, all_of_it))
    assert "nothing is lost" in caught.value.hint
    assert everything(forest / "out") == everything(forest / "whole")


def test_shards_of_other_settings_or_sources_are_made_anew_but_not_beside_each_other(forest):
    one, two = shards(2)
    other = {"step": {"settings": {"loud": False}}}
    shutil.copytree(forest / "in", forest / "else")
    refused = []

    def beside():
        for options, why in (
            (other, "with other settings"),
            ({"source": "else"}, "of other sources"),
        ):
            with pytest.raises(UsageError, match=f"a run {why} is at work there: shout") as caught:
                prepare(forest, shard=two, **options)
            refused.append(caught.value)

    prepare(forest, shard=one, workers=1, progress=at(3, beside))
    prepare(forest, shard=two, workers=1)
    assert len(refused) == 2 and len(made(forest)) == 23
    reports = [prepare(forest, shard=shard, workers=1, **other) for shard in shards(3)]
    assert sum(report.made for report in reports) == 22 and len(made(forest)) == 23
    (forest / "in/c/1.txt").write_text("changed")
    assert sum(prepare(forest, shard=s, workers=1, **other).made for s in shards(3)) == 1
    assert "1.txt" in made(forest)
    assert sum(prepare(forest, shard=s, workers=1, **other).made for s in shards(3)) == 0
    prepare(forest, "whole", **other)
    made(forest)
    assert prepare(forest, **other).made == 0
    assert everything(forest / "out") == everything(forest / "whole")


def test_what_all_shards_would_refuse_each_refuses(forest):
    grow(forest / "in", ["y.txt", "y.out/z.txt"])
    for shard in shards(3):
        with pytest.raises(DatasetError, match="and be a folder"):
            prepare(forest, shard=shard)
    with pytest.raises(UsageError, match="makes notes only, and no shards"):
        prepare(forest, shard=StepShard(1, 2), step={"rename": None})
    with pytest.raises(UsageError, match="would be replaced, which shards do not"):
        prepare(forest, "in", shard=StepShard(1, 2), step={"rename": str}, overwrite=True)
    assert made(forest) == []


@pytest.mark.parametrize("shard", [None, StepShard(1, 2)])
def test_a_journal_that_cannot_be_begun_is_an_error_of_the_disk_alone(tree, shard):
    """As where it is full: not one byte more is written to any file."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(
            OutputError, match=r"shout.*\.journal: cannot be written: File too large"
        ):
            prepare(tree, shard=shard)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    left = {path.name for path in (tree / "out/.s2f").iterdir()}
    assert left == (set() if shard else {"shout.journal", "shout.lock"})


def test_old_outputs_and_failures_are_told_by_their_own_shard(forest):
    prepare(forest)
    (forest / "in/c/1.txt").unlink()
    (forest / "in/c/2.txt").write_text("bad")
    reports = [prepare(forest, shard=shard) for shard in shards(3)]
    stale = [name for report in reports for name in report.stale]
    assert sorted(stale) == ["c/1.out", "c/2.out"]
    failed = [failure.source.name for report in reports for failure in report.failed]
    assert sorted(failed) == ["2.txt", "5.txt"]


def test_the_status_adds_shards_up_before_during_and_after(forest):
    with pytest.raises(DatasetError, match="holds no journal"):
        read_status(forest / "out")
    seen = []
    sizes = [prepare(forest, "sizes", shard=s, workers=1).made for s in shards(3)]

    def look():
        seen.append(read_status(forest / "out")[0])

    prepare(forest, shard=StepShard(1, 3), workers=1, progress=at(3, look))
    (status,) = seen
    assert (status.items, status.done + status.failed, status.begun) == (23, 3, 0)
    assert (status.missing, status.is_whole, status.absent) == (20, False, ("2/3", "3/3"))
    assert [(one.shard, one.state) for one in status.shards] == [("1/3", "at work")]
    with pytest.raises(KeyboardInterrupt):
        prepare(forest, shard=StepShard(2, 3), workers=1, progress=at(2, interrupt))
    (status,) = read_status(forest / "out")
    assert [one.state for one in status.shards] == ["ended", "stopped"]
    assert (status.absent, status.is_whole) == (("3/3",), False)
    for shard in shards(3):
        prepare(forest, shard=shard, workers=1)
    (status,) = read_status(forest / "out")
    assert [one.done for one in status.shards] == sizes
    assert (status.done, status.failed, status.missing, status.is_whole) == (22, 1, 0, False)
    assert list(status.failures) == ["c/5.out"] and "is bad" in status.failures["c/5.out"]
    (forest / "in/c/5.txt").write_text("mended")
    bad = next(shard for shard in shards(3) if shard.has("c/5.out"))
    assert prepare(forest, shard=bad, workers=1).made == 1
    assert counts(forest) == (23, 23, 0, 0, 0, True)
    prepare(forest, workers=1)
    assert counts(forest) == (23, 23, 0, 0, 0, True)
    with pytest.raises(KeyboardInterrupt):
        prepare(forest, overwrite=True, step={"settings": {}}, progress=at(2, interrupt))
    assert not counts(forest)[-1]


@pytest.mark.parametrize("name", ["shout.journal", "shout.1-of-1.00000000-1-00000000.journal"])
def test_a_journal_that_cannot_be_read_has_no_status(tree, name):
    """A folder stands for one of another user: tests may run as root, who reads all."""
    (tree / "out/.s2f" / name).mkdir(parents=True)
    with pytest.raises(DatasetError, match=f"{name}: cannot be read: "):
        read_status(tree / "out")


def test_damage_in_the_journal_of_a_shard_is_named(forest):
    prepare(forest, shard=StepShard(1, 1), workers=1)
    (journal,) = (forest / "out/.s2f").glob("*.journal")
    whole = journal.read_bytes()
    for damaged in (
        whole.replace(b"done", b"dune", 1),
        b"{}" + whole,
        whole.replace(b"turn", b"torn"),
    ):
        journal.write_bytes(damaged)
        for does in (prepare, lambda tree: prepare(tree, shard=StepShard(1, 1)), counts):
            with pytest.raises(DatasetError, match=r"-of-1\..*\.journal: is damaged: b'"):
                does(forest)
    text = b'["start", "../x.out", 1, 2]'
    journal.write_bytes(whole + b"%s %08x\n" % (text, zlib.crc32(text)))
    with pytest.raises(DatasetError, match=r"names '\.\./x\.out', which is not below"):
        prepare(forest, shard=StepShard(1, 1))
    journal.write_bytes(whole[:-30])  # cut off, as by a kill
    assert prepare(forest, shard=StepShard(1, 1), workers=1).made == 1


A, B = File("a.wav", 10, 111), File("b.wav", 20, 222)
SETTINGS = {"rate": 16000}


@pytest.mark.parametrize("cut", [1, 8])
def test_a_cut_off_line_is_forgotten_and_other_damage_and_other_runs_are_named(tmp_path, cut):
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        journal.note("done", "a.npy", A)
        journal.note("done", "b.npy", B)
    path = tmp_path / ".s2f/audio.journal"
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        assert list(journal.entries) == ["a.npy"]
        journal.note("done", "b.npy", B)
    assert len(path.read_text().splitlines()) == 3
    path.write_text('{"version')  # and a header
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        journal.finish()
    assert json.loads(path.read_text()) == {"version": 1, "step": "audio", "settings": SETTINGS}
    path.write_bytes(b'{"version": 1}\nnonsense\n["done", "a", 1, 2]\n')
    with pytest.raises(DatasetError, match=r"audio\.journal: is damaged: b'nonsense"):
        Journal(tmp_path, "audio", SETTINGS)
    with pytest.raises(OutputError, match=r"audio\.journal: cannot be written"):
        Journal(path, "audio", SETTINGS)
    with Journal(tmp_path, "other", SETTINGS) as journal, Journal(tmp_path, "third", SETTINGS):
        for _ in range(2):
            with pytest.raises(UsageError, match="another s2f is at work"):
                Journal(tmp_path, "other", SETTINGS)
            journal.finish()  # writes it anew


def test_a_line_that_cannot_be_written_is_named_once(tmp_path):
    """No file may grow larger, as if the disk were full: a part of a line is written, then none."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    written = 0
    try:
        with Journal(tmp_path, "audio", SETTINGS) as journal:
            with pytest.raises(OutputError, match=r"audio\.journal"):
                for written in range(1000):
                    journal.note("start", f"{written}.npy", A)
            resource.setrlimit(resource.RLIMIT_FSIZE, before)  # as if there were room again
            journal.note("start", "late.npy", A)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert 100 < written < 300
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        assert list(journal.entries) == [*(f"{n}.npy" for n in range(written)), "late.npy"]
        assert set(journal.entries.values()) == {("start", 10, 111, None, "")}


def test_a_journal_of_many_and_of_long_lines_is_read_to_its_end(tmp_path):
    """Lines are read some thousand at a time; there may be damage, and older ones, in any of them.

    Of before lines had checks: they are JSON alone.
    """
    path, names = tmp_path / ".s2f/audio.journal", [f"{n}.npy" for n in range(4000)]
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        for name in names:
            journal.note("done", name, A)
        journal.note("done", "long.npy", A, "x" * 100_000)
        journal.note("done", "last.npy", B)
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'["done", "older.npy", 10, 111]\n["done", "cut')
    for _ in range(2):  # what is cut off is cut away
        with Journal(tmp_path, "audio", SETTINGS) as journal:
            assert list(journal.entries) == [*names, "long.npy", "last.npy", "older.npy"]
            assert journal.entries["last.npy"][1:3] == B[1:]
            assert len(journal.entries["long.npy"].note) == 100_000
    assert path.read_bytes().startswith(whole)
    path.write_bytes(whole.replace(b'"3900.npy"', b'"3901.npy"'))
    with pytest.raises(DatasetError, match=r"audio\.journal: is damaged: b'.*3901\.npy"):
        Journal(tmp_path, "audio", SETTINGS)
