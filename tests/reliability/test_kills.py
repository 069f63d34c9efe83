"""`kill -9` of commands that make trees and runs, at any touch of a file and at random moments.

After another run the bytes are those of an undisturbed one, nothing temporary is left, and of what
was begun at most one item a worker (and the batch of a network) is begun twice. The long part does
so at 100 moments of each, or as many as `S2F_KILLS` says. And two runs at once in one folder, and
shards of one.
"""

import dataclasses
import json
import os
import random
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import Ended, Run, Runs
from sources import shared

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and kills groups")
MOMENTS = int(os.environ.get("S2F_KILLS", "100"))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared(tmp_path_factory)[0]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return shared(tmp_path_factory)[1]


@dataclasses.dataclass
class Case:
    """A command; `{s}` are the sources, `{o}` what it makes, `{w}` how many processes it has."""

    words: str
    workers: tuple[int, ...] = ()
    ranks: int = 1
    copied: str = ""  # source that is changed where it lies
    batch: int = 0  # items of a network that are at work beside those of the workers
    code: int = 0
    aside: bool = False  # it is made beside its place and moved there whole, where nothing may be
    other: str = r"\.s2f/"  # pattern in names of files of which only the names are compared

    def args(self, sources: Path, out: Path, workers: int) -> list[str]:
        return self.words.format(s=sources, o=out, w=workers).split()


ENCODER = "--face-encoder {s}/models/demo/face_encoder.safetensors"
DECODER = "--face-decoder {s}/models/demo/face_decoder.safetensors"
TRAINED = "--steps 6 --every 2 --batch-size 2 --device cpu -q -o {o}"
CASES = {
    "audio": Case("prep audio {s}/sound {o} --workers {w} -q", (1, 4), other="-"),
    "stats": Case("prep stats {s}/sound -o {o}/stats.json --workers {w} -q", (1, 4), other="-"),
    "resize": Case("prep resize {s}/photos {o} --workers {w} -q", (1, 4), other="-"),
    "faces": Case("prep faces {s}/photos {o} --workers {w} -q", (1, 4), batch=16, other="-"),
    "landmarks": Case(
        "prep landmarks {s}/photos {o} --workers {w} -q", (1, 4), batch=16, other="-"
    ),
    "embeddings": Case(
        f"prep embeddings {{s}}/plain {{o}} {ENCODER} --workers {{w}} --batch-size 2 -q",
        (1, 4),
        batch=2,
        other="-",
    ),
    "pack": Case(
        f"prep pack {{s}}/packed {{o}} {ENCODER} --clip-seconds 0.5 --workers {{w}} -q",
        (1, 4),
        other="-",
    ),
    "pair": Case("prep pair --faces {s}/faces --voices {s}/voices {o} -q"),
    "pair, copies": Case("prep pair --faces {s}/faces --voices {s}/voices {o} --link copy -q"),
    "split": Case("prep split {s}/people {o} -q"),
    "split, copies": Case("prep split {s}/people {o} --link copy -q"),
    "split, links": Case("prep split {s}/people {o} --link symlink -q"),
    "names": Case("prep names {o} --merge -q", copied="names"),
    "index": Case("prep index {o} -q", copied="packed", other="-"),
    "dataset": Case(
        f"prep dataset {{s}}/faces {{s}}/voices {{o}} {ENCODER} --pack --split 0.5 --link copy "
        "--workers {w} -q",
        (1, 4),
        batch=16,
        other=r"\.journal$|\.s2f/index/.*/(index\.json|times\.npy)$",  # of files that were made
    ),
    "demo": Case(
        "prep demo {s}/demo/faces {s}/demo/voices {s}/demo/speaker.safetensors {o} "
        "--identities 2 -q",
        aside=True,
    ),
    "train decoder": Case(f"train decoder {{s}}/packed {ENCODER} {TRAINED}"),
    "train decoder, 2 ranks": Case(f"train decoder {{s}}/packed {ENCODER} {TRAINED}", ranks=2),
    "train voice": Case(f"train voice {{s}}/packed {ENCODER} {DECODER} {TRAINED}"),
    "train voice, 2 ranks": Case(
        f"train voice {{s}}/packed {ENCODER} {DECODER} {TRAINED}", ranks=2
    ),
    "train encoder": Case(f"train encoder {{s}}/packed {TRAINED}"),
    "train model": Case(
        "train model {s}/plain --decoder-steps 4 --voice-steps 6 --device cpu -q -o {o}"
    ),
}


def seen(out: Path, other: str) -> dict[str, object]:
    """Everything below a folder but locks: bytes, or where links lead; of `other` names only."""
    found: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if name.endswith(".lock"):
            continue
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file():
            found[name] = len(found) if re.search(other, name) else path.read_bytes()
        else:
            found[name] = "folder"
    return found


def begun(out: Path) -> int:
    """Count the items that were begun and are not done, as journals tell."""
    n = 0
    for journal in out.rglob("*.journal"):
        last = {}
        for line in journal.read_bytes().splitlines()[1:]:
            if line.rpartition(b" ")[0].endswith(b"]"):
                event, output, *_ = json.loads(line.rpartition(b" ")[0])
                last[output] = event
        n += list(last.values()).count("start")
    return n


@dataclasses.dataclass
class Tally:
    """What kills came to, to be printed."""

    killed: int = 0
    compared: int = 0  # runs that ended, after some kills
    begun: int = 0  # most items that were begun and not done at a kill
    lost: int = 0  # files that differ
    seconds: float = 0.0

    def __str__(self) -> str:
        told = dataclasses.asdict(self)
        return ", ".join(f"{name} {round(value, 2):g}" for name, value in told.items())


class Place:
    """A case, what it makes undisturbed, and folders to make it in again."""

    def __init__(self, name: str, workers: int, sources: Path, runs: Runs, folder: Path) -> None:
        self.case, self.workers, self.sources, self.runs = CASES[name], workers, sources, runs
        self.folder, self.n, self.tally = folder, 0, Tally()
        out = self.new()
        ended = self.run(out)
        assert ended.code == self.case.code, ended.err
        self.whole = seen(out, self.case.other)
        self.touches, self.seconds = ended.touches, ended.seconds
        assert not [name for name in self.whole if ".s2f-" in name]
        assert begun(out) == 0

    def new(self) -> Path:
        """Name a folder, with the sources in it that are changed where they lie."""
        self.n += 1
        out = self.folder / f"{self.n:04}" / "out"
        out.parent.mkdir(parents=True)
        if self.case.copied:
            shutil.copytree(self.sources / self.case.copied, out)
        return out

    def run(self, out: Path, **how: object) -> Ended:
        return self.runs(self.of(out, **how))

    def of(self, out: Path, **how: object) -> Run:
        args = self.case.args(self.sources, out, self.workers)
        return Run(args, out.parent if self.case.aside else out, ranks=self.case.ranks, **how)

    def is_done(self, ended: Ended) -> bool:
        """Tell whether a run ended well, or found that one before it had."""
        found = self.case.aside and (ended.code, "exists already" in ended.err) == (2, True)
        return ended.code == self.case.code or found

    def kill(self, out: Path, **how: object) -> bool:
        """Kill a run; tell whether it had not ended before."""
        ended = self.run(out, **how)
        assert ended.code == -9 or self.is_done(ended), (how, ended)
        at_work = begun(out)
        self.tally.begun = max(self.tally.begun, at_work)
        assert at_work <= self.workers + self.case.batch, how
        self.tally.killed += ended.code == -9
        return ended.code == -9

    def compare(self, out: Path, *told: object, **how: object) -> None:
        """Run to the end, and find what an undisturbed run made."""
        ended = self.run(out, **how)
        assert self.is_done(ended), (told, ended.err)
        self.check(out, *told)

    def check(self, out: Path, *told: object) -> None:
        there = seen(out, self.case.other)
        wrong = {n for n in there.keys() | self.whole.keys() if there.get(n) != self.whole.get(n)}
        wrong |= {path.name for path in out.parent.iterdir() if path != out}
        self.tally.lost += len(wrong)
        self.tally.compared += 1
        assert not wrong, (told, sorted(wrong))
        shutil.rmtree(out.parent)


@pytest.mark.parametrize(("name", "kills"), [("audio", 2), ("split, copies", 3)])
def test_what_is_killed_at_some_touches_ends_as_if_it_had_not_been(
    name, kills, made, runs, tmp_path
):
    place = Place(name, 2, made, runs, tmp_path)
    for k in np.linspace(place.touches, 2, kills + 2).astype(int)[1:-1].tolist():
        out = place.new()
        assert place.kill(out, kill_at=k)
        place.compare(out, k)


# Long: 100 kills of each, of which up to five hit one tree, one after the other.

LONG = [(name, n) for name, case in CASES.items() for n in case.workers or (1,)]


@pytest.mark.reliability
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "workers"), LONG)
def test_what_is_killed_at_any_moment_ends_as_if_it_had_not_been(
    name, workers, made, runs, tmp_path
):
    """Half of the moments are touches of files, each a time; half are of the clock."""
    runs.warm()
    place, rng = Place(name, workers, made, runs, tmp_path), random.Random(0)
    began, out, moments = time.monotonic(), place.new(), []
    while place.tally.killed < MOMENTS:
        moment: dict[str, object] = {"kill_after": rng.uniform(0, place.seconds)}
        if len(moments) % 2:
            moment = {"kill_at": rng.randint(1, place.touches)}
        moments.append(moment)
        if not place.kill(out, **moment) or len(moments) == 5:
            place.compare(out, moments)
            out, moments = place.new(), []
    place.tally.seconds = time.monotonic() - began
    print(f"{name}, {workers} workers: {place.tally}")


@pytest.mark.reliability
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["audio", "resize"])
def test_workers_may_outlive_the_run_that_is_killed(name, made, runs, tmp_path):
    place, rng, out = Place(name, 4, made, runs, tmp_path), random.Random(0), None
    seconds = place.run(place.new(), forks=False).seconds
    for kill in range(MOMENTS // 5):
        out = out or place.new()
        after = rng.uniform(0.3, 1) * seconds
        killed = place.kill(out, kill_after=after, alone=bool(kill % 2), forks=False)
        if not killed or kill % 4 == 3:
            place.compare(out, after, forks=False)
            out = None
    print(f"{name}, 4 workers that are not killed every other time: {place.tally}")


# Two at once

REFUSED = "another s2f is at work there"


def two_at_once(place: Place, locks: str) -> None:
    """Hold a run in the midst of its work, and start another; then let it end."""
    out = place.new()
    held = place.of(out, locks=locks, hold_at=place.touches // 2)
    first, second = place.runs(held, place.of(out, locks=locks))
    assert (second.code, REFUSED in second.err) == (2, True), second
    assert "Traceback" not in second.err
    assert first.code == place.case.code, first.err
    place.check(out)


def killed_and_gone_on(place: Place, locks: str) -> None:
    """What told of a killed run keeps no other out, and is gone in the end."""
    out = place.new()
    assert place.kill(out, locks=locks, kill_at=place.touches // 2)
    place.compare(out, locks=locks)


def test_of_two_runs_one_is_refused_where_there_are_no_locks(made, runs, tmp_path):
    place = Place("pair, copies", 1, made, runs, tmp_path)
    for locks in ("none", "false"):
        two_at_once(place, locks)
        killed_and_gone_on(place, locks)


HELD = [name for name, case in CASES.items() if not case.copied and not case.aside]


@pytest.mark.reliability
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("locks", ["true", "none", "false"])
@pytest.mark.parametrize("name", HELD)
def test_of_two_runs_one_is_refused(name, locks, made, runs, tmp_path):
    place = Place(name, 2, made, runs, tmp_path)
    two_at_once(place, locks)
    killed_and_gone_on(place, locks)


@pytest.mark.reliability
@pytest.mark.parametrize("name", ["names", "index"])
def test_two_runs_that_change_one_tree_lose_nothing(name, made, runs, tmp_path):
    """These hold nothing: what the one leaves undone, a third does."""
    place = Place(name, 1, made, runs, tmp_path)
    for k in range(1, place.touches + 1):
        out = place.new()
        first, second = runs(place.of(out, hold_at=k), place.of(out))
        assert "Traceback" not in first.err + second.err, (k, first, second)
        place.compare(out, k)


# Shards


def in_shards(place: Place, locks: str, rng: random.Random) -> None:
    """Run four shards at once, two of them killed twice and one twice at once; then all of it.

    Each waits at its fifth touch, its folder and its journal, until those after it have ended.
    """
    out, aside, code = place.new(), place.new(), place.case.code

    def shard(k: int, out: Path = out, **how: object) -> Run:
        run = place.of(out, locks=locks, **how)
        return dataclasses.replace(run, args=[*run.args, "--shard", f"{k}/4"])

    def status() -> Any:
        ended = place.runs(Run(["prep", "status", out, "--json"]))
        (step,) = json.loads(ended.out)["steps"]
        assert ended.code == (0 if step["is_whole"] else 1)
        return step

    place.run(aside)  # makes the folders: so each shard takes at least these touches
    for path in [path for path in aside.rglob("*") if path.is_file()]:
        path.unlink()
    touches = {k: place.runs(shard(k, aside)).touches for k in (1, 2, 3, 4)}
    one, two, three, four = sorted(touches, key=lambda k: -touches[k])
    least = place.runs(shard(one, aside)).touches  # with nothing to do
    kills = [shard(k, hold_at=5, kill_at=rng.randint(6, touches[k])) for k in (one, two)]
    ended = place.runs(*kills, shard(four, hold_at=5), shard(four, hold_at=5), shard(three))
    assert [run.code for run in ended] == [-9, -9, code, code, code], ended
    again = shard(one, hold_at=5, kill_at=rng.randint(6, least))
    ended = place.runs(again, shard(two, kill_at=rng.randint(6, least)))
    assert [run.code for run in ended] == [-9, -9], ended
    states = [shard["state"] for shard in status()["shards"]]  # a kill may come behind the end
    assert len(states) == 4 and {"ended"} <= {*states} <= {"ended", "stopped"}
    assert {place.runs(shard(k)).code for k in (one, two)} == {code}
    step = status()
    assert (step["is_whole"], step["done"], step["missing"]) == (True, step["items"], 0), step
    again = [place.runs(shard(k)) for k in (1, 2, 3, 4)]
    assert max(run.touches for run in again) <= least
    place.tally.killed += 4
    ended = place.run(out, locks=locks)
    assert ended.code == code, ended.err
    assert status()["is_whole"] and not list(out.rglob("*-of-*"))
    place.check(out, touches)
    shutil.rmtree(aside.parent)


def test_shards_that_are_killed_and_run_twice_end_as_one_run(made, runs, tmp_path):
    in_shards(Place("audio", 2, made, runs, tmp_path), "none", random.Random(0))


@pytest.mark.reliability
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("locks", ["true", "none", "false"])
@pytest.mark.parametrize("name", ["audio", "resize", "faces", "landmarks", "embeddings"])
def test_shards_that_are_killed_at_any_moment_end_as_one_run(name, locks, made, runs, tmp_path):
    place, rng = Place(name, 2, made, runs, tmp_path), random.Random(0)
    for _ in range(max(1, MOMENTS // 10)):
        in_shards(place, locks, rng)
    print(f"{name} in shards, locks {locks}: {place.tally}")
