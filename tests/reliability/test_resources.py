"""What a machine may lack: room on the disk, permissions, folders, open files, memory.

It is found before the work where it can be, the exit code says so, what was there before stays as
it was, nothing half-made is left, and the same command completes when there is enough.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from runs import Ended, Run, Runs, can_mount
from sources import shared

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="namespaces and limits of Linux"),
    pytest.mark.timeout(600),
]
mounts = pytest.mark.skipif(not can_mount(), reason="no namespace of mounts can be had here")
LEVELS = 20
FACES = "--face-encoder {s}/models/demo/face_encoder.safetensors"
VOICE = f"{FACES} --face-decoder {{s}}/models/demo/face_decoder.safetensors"


@dataclasses.dataclass
class Case:
    """A command; `{s}` are the sources, `{o}` what it makes, in a folder with other files."""

    words: str
    other: str = "-"  # in names of files whose bytes differ from run to run
    there: int = 0  # exit code where all is there already


CASES = {
    "generate": Case("generate {s}/sound/0/0.wav --device cpu -q -o {o}/face.png"),
    "generate many": Case(
        "generate {s}/sound --device cpu -q -o {o} --landmarks --embedding --sheet {o}/sheet.png"
    ),
    "reconstruct": Case(
        "reconstruct {s}/photos/0/0.jpg --no-align --device cpu -q -o {o}/face.png"
    ),
    "audio": Case("prep audio {s}/sound {o} --workers 2 -q"),
    "faces": Case("prep faces {s}/photos {o} --workers 2 -q"),
    "stats": Case("prep stats {s}/sound -o {o}/stats.json --workers 2 -q"),
    "pack": Case(f"prep pack {{s}}/packed {{o}} {FACES} --clip-seconds 0.5 --workers 2 -q"),
    "pair": Case("prep pair --faces {s}/faces --voices {s}/voices {o} --link copy -q"),
    "split": Case("prep split {s}/people {o} --link copy -q"),
    "dataset": Case(
        f"prep dataset {{s}}/faces {{s}}/voices {{o}} {FACES} --pack --link copy --workers 2 -q",
        ".s2f/",
    ),
    "train decoder": Case(
        f"train decoder {{s}}/packed {FACES} --steps 4 --every 2 --batch-size 2 --device cpu -q "
        "-o {o}"
    ),
    "train voice": Case(
        f"train voice {{s}}/packed {VOICE} --steps 4 --every 2 --batch-size 2 --device cpu -q "
        "-o {o}"
    ),
    "train model": Case(
        "train model {s}/plain --decoder-steps 2 --voice-steps 2 --device cpu -q -o {o}"
    ),
    "convert": Case("convert resemblyzer {s}/pretrained.pt -q -o {o}/ears.safetensors", there=2),
    "evaluate": Case("evaluate {s}/plain --split val --device cpu -q -o {o}", there=2),
}


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared(tmp_path_factory)[0]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return shared(tmp_path_factory)[1]


def words(name: str, sources: Path, out: object) -> list[str]:
    return CASES[name].words.format(s=sources, o=out).split()


def seen(folder: Path, other: str) -> dict[str, bytes]:
    """All files below a folder but locks, and of `other` ones only the names."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: b"" if other in name else path.read_bytes()
        for name, path in names.items()
        if not name.endswith(".lock")
    }


def assert_told(ended: Ended, code: int, *said: str) -> None:
    """An error by name, with its exit code and no traceback."""
    assert ended.code == code, ended
    assert ended.err.startswith(("error: ", "warning: ")), ended.err
    assert all(one in ended.err for one in said), ended.err
    assert "Traceback" not in ended.err and "bug of s2f" not in ended.err, ended.err


# A disk that is full


def fill(name: str, levels: int, sources: Path, runs: Runs, tmp_path: Path) -> str:
    """Run a command on disks of some sizes, and on each again when there is room."""
    disk, case = tmp_path / "disk", CASES[name]
    args, earlier = words(name, sources, disk / "out"), b"earlier" * 1000

    def on(size: int) -> tuple[list[int], Ended, list[dict[str, bytes]]]:
        kept = Path(tempfile.mkdtemp(dir=tmp_path))
        before = kept / "before"
        before.mkdir()
        (before / "earlier").write_bytes(earlier)
        how = {"full": [str(disk), size, str(before)], "again": True, "kept": str(kept)}
        ended = runs(Run(args, **how))
        codes = json.loads(ended.err.splitlines()[-1])
        found = [seen(kept / str(turn), case.other) for turn in range(2)]
        used = sum(4096 * -(-p.stat().st_size // 4096) for p in (kept / "0").rglob("*.*"))
        shutil.rmtree(kept)
        return codes, ended, [*found, {"used": used}]  # type: ignore[dict-item]

    codes, ended, (whole, again, used) = on(1 << 30)
    assert codes == [0, case.there] and whole == again, ended.err
    most, done = int(used["used"]) + 16384, 0  # type: ignore[call-overload]
    for size in np.linspace(8192 + 4096, most, levels).astype(int).tolist():
        size -= size % 4096
        codes, ended, (first, second, _) = on(size)
        assert "Traceback" not in ended.err and "bug of s2f" not in ended.err, (size, ended.err)
        done += codes[0] == 0
        if codes[0]:
            assert codes[0] in (2, 6), (size, codes, ended.err)
            assert "No space left" in ended.err, (size, ended.err)
        assert first.pop("earlier") == earlier
        assert not [path for path in first if ".s2f-" in path], (size, [*first])
        if name not in GROWING:
            half = [n for n, data in first.items() if whole.get(n) != data and ".s2f/" not in n]
            assert not half, (size, half)
        assert codes[1] == (0 if codes[0] else case.there), (size, codes, ended.err)
        differ = {n for n in whole.keys() | second.keys() if whole.get(n) != second.get(n)}
        assert not differ, (size, sorted(differ))
    return f"{name}: {levels} levels up to {most // 1024} KiB, {done} sufficed"


# Their files are rewritten as they go on: what is there is whole, and of an earlier step.
GROWING = ("train decoder", "train voice", "train model")


@mounts
@pytest.mark.parametrize("name", ["audio"])
def test_on_a_full_disk_nothing_is_lost_and_with_room_it_is_done(name, sources, runs, tmp_path):
    fill(name, 2, sources, runs, tmp_path)


@mounts
@pytest.mark.reliability
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CASES)
def test_on_disks_of_twenty_sizes_nothing_is_lost(name, sources, runs, tmp_path):
    runs.warm()
    print(fill(name, LEVELS, sources, runs, tmp_path))


# Folders that cannot be written, or are not there


@mounts
@pytest.mark.parametrize("name", ["generate", "audio"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(name, sources, runs, tmp_path):
    refused_at_once(name, sources, runs, tmp_path)


@mounts
@pytest.mark.reliability
@pytest.mark.parametrize("name", CASES)
def test_every_output_that_cannot_be_written_is_refused(name, sources, runs, tmp_path):
    refused_at_once(name, sources, runs, tmp_path)


def refused_at_once(name: str, sources: Path, runs: Runs, tmp_path: Path) -> None:
    """On a disk that is read-only, and in a folder without the right to write."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "earlier").write_text("earlier")
    for out in (place / "out", place):
        ended = runs(Run(words(name, sources, out), hidden=[str(place)]))
        assert_told(ended, 2, str(place), "cannot be written")
        place.chmod(0o555)
        try:
            ended = runs(Run(words(name, sources, out), powerless=True))
        finally:
            place.chmod(0o755)
        assert_told(ended, 2, str(place), "cannot be written: Permission denied")
        assert [path.name for path in place.iterdir()] == ["earlier"]
    room = words(name, sources, tmp_path / "room")
    assert runs(Run(room, env={"HOME": "/proc", "XDG_CACHE_HOME": "/proc"})).code == 0


def test_a_sheet_that_cannot_be_written_is_refused_before_a_face_is_drawn(sources, runs, tmp_path):
    args = words("generate many", sources, tmp_path / "out")
    ended = runs(Run([*args[:-1], "/proc/sheet.png"]))
    assert_told(ended, 2, "/proc/sheet.png: cannot be written")
    assert not (tmp_path / "out").exists()


@mounts
@pytest.mark.reliability
@pytest.mark.parametrize("name", CASES)
def test_home_cache_and_working_folder_may_be_read_only_or_gone(name, sources, runs, tmp_path):
    home, out = tmp_path / "home", tmp_path / "out"
    (home / ".cache").mkdir(parents=True)
    env = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "MPLCONFIGDIR": ""}
    how = {"env": env, "hidden": [str(home)], "cwd": str(home)}
    ended = runs(Run(words(name, sources, out), **how))
    assert ended.code == 0 and not ended.err, ended
    gone = runs(Run(words(name, sources, tmp_path / "other"), cwd="gone"))
    assert_told(gone, 2, "the working folder cannot be used")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["generate many"])
def test_a_source_that_may_not_be_read_costs_itself_only(name, sources, runs, tmp_path):
    copied = tmp_path / "s"
    copied.mkdir()
    for path in sources.iterdir():
        (copied / path.name).symlink_to(path)
    (copied / "sound").unlink()
    shutil.copytree(sources / "sound", copied / "sound")
    (copied / "sound/0/2.wav").chmod(0)
    ended = runs(Run(words(name, copied, tmp_path / "out"), powerless=True))
    assert_told(ended, 6, "2.wav", "Permission denied")
    (copied / "sound/0/2.wav").chmod(0o644)
    assert runs(Run(words(name, copied, tmp_path / "out"))).code == 0
    assert runs(Run(words(name, sources, tmp_path / "whole"))).code == 0
    one, other = (seen(tmp_path / place, ".s2f/") for place in ("out", "whole"))
    assert one.keys() == other.keys()


# Few resources


@mounts
@pytest.mark.parametrize("name", ["audio"])
def test_without_shared_memory_it_is_said_or_not_needed(name, sources, runs, tmp_path):
    without_shared_memory(name, sources, runs, tmp_path)


@mounts
@pytest.mark.reliability
@pytest.mark.parametrize("name", CASES)
def test_every_command_without_shared_memory(name, sources, runs, tmp_path):
    print(f"{name}: {without_shared_memory(name, sources, runs, tmp_path)}")


def without_shared_memory(name: str, sources: Path, runs: Runs, tmp_path: Path) -> str:
    """Run where /dev/shm takes nothing; and again where it does."""
    args = words(name, sources, tmp_path / "out")
    ended = runs(Run(args, gone=["/dev/shm"]))
    if ended.code:
        assert_told(ended, 5, "no processes can be started", "/dev/shm")
        assert runs(Run(args)).code == 0
    return "refused" if ended.code else "done"


@pytest.mark.parametrize("name", ["audio"])
def test_a_long_name_of_the_temporary_folder_does(name, sources, runs, tmp_path):
    long_temporary_folder(name, sources, runs, tmp_path)


@pytest.mark.reliability
@pytest.mark.parametrize("name", CASES)
def test_every_command_with_a_long_temporary_folder(name, sources, runs, tmp_path):
    print(f"{name}: {long_temporary_folder(name, sources, runs, tmp_path)}")


def long_temporary_folder(name: str, sources: Path, runs: Runs, tmp_path: Path) -> str:
    """Run where no socket can have a name in TMPDIR, as in folders of a scheduler's jobs."""
    folder = tmp_path / ("job" * 40)
    folder.mkdir()
    args = words(name, sources, tmp_path / "out")
    args += ["--workers", "2"] if args[0] == "train" and args[1] != "model" else []
    ended = runs(Run(args, env={"TMPDIR": str(folder)}, forks=False))
    assert ended.code == 0 and "Traceback" not in ended.err, ended
    return f"done in {ended.seconds:.1f} s"


@pytest.mark.parametrize("name", ["audio"])
def test_few_open_files_suffice_or_it_is_said(name, sources, runs, tmp_path):
    few_files(name, sources, runs, tmp_path)


@pytest.mark.reliability
@pytest.mark.parametrize("name", CASES)
def test_every_command_with_few_open_files(name, sources, runs, tmp_path):
    print(f"{name}: {few_files(name, sources, runs, tmp_path)}")


def few_files(name: str, sources: Path, runs: Runs, tmp_path: Path) -> str:
    """Run with 64 files that may be open, which do, and more processes with fewer."""
    args = words(name, sources, tmp_path / "out")
    processes = args.index("--workers") + 1 if "--workers" in args else None
    if processes:
        args[processes] = "4"
        ended = runs(Run(args, limits={"NOFILE": 24}))
        assert ended.code or name != "audio"
        if ended.code:
            assert_told(ended, 5, "no processes can be started", "oo many open files", "ulimit -n")
    ended = runs(Run(args, limits={"NOFILE": 64}))
    assert ended.code == 0, ended
    if args[0] != "train":
        return "done"
    ended = runs(Run([*args, "--workers", "4"], limits={"NOFILE": 64}))
    if ended.code:
        assert_told(ended, 5, "open", "ulimit -n")
    assert runs(Run(args)).code == 0
    return "refused with 4 workers" if ended.code else "done"


@pytest.mark.reliability
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["generate", "reconstruct", "audio", "stats", "pack", "dataset"])
def test_a_gigabyte_of_addresses_suffices_or_it_is_said(name, sources, runs, tmp_path):
    """In a process of its own: its libraries count. torch for GPUs alone takes more."""
    args = [sys.executable, "-m", "s2f", *words(name, sources, tmp_path / "out")]
    env = os.environ | {"S2F_MODELS": str(sources / "models"), "OMP_NUM_THREADS": "1"}
    command = ["bash", "-c", 'ulimit -v 1048576; exec "$@"', "bash", *args]
    ended = subprocess.run(command, env=env, capture_output=True, text=True)
    print(f"{name}: {ended.returncode}")
    if ended.returncode:
        assert "Traceback" not in ended.stderr and "bug of s2f" not in ended.stderr, ended.stderr
        assert ended.returncode == 5 and "too little memory" in ended.stderr, ended.stderr
