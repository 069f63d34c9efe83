"""Time and memory of planning: 200,000 files, and a second run that has nothing to do.

    python benchmarks/prep_listing.py

And of VoxCeleb2's 1.13 million, planned and journalled, where the work on them takes no time, and,
in the same process, the journal reopened; and of a second run there, which plans them again. Empty
files stand for recordings: they are listed and planned like any other. Fails where a bound is
missed.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

N = 200_000
FOLDERS = 2_000
MANY = 1_130_000
BOUNDS = {"planning, s": 20, "planning, MB": 300, "nothing to do, s": 20, "nothing to do, MB": 300}
BOUNDS |= {"1.13 million planned, journalled, reopened, s": 60, "1.13 million, MB": 600}

PLAN = """
import sys
from pathlib import Path
from s2f.prep import prepare
from s2f.prep_audio import audio_step
class Planned(Exception): pass
def progress(done, total, what):
    if total:
        raise Planned
try:
    prepare(audio_step(store="waveform"), Path(sys.argv[1]), Path(sys.argv[2]), progress=progress)
except Planned:
    pass
"""

MILLION = """
import dataclasses, json, sys, time
from pathlib import Path
from s2f import prep
from s2f.prep_audio import audio_step
from s2f.stores import open_journal
def at_once(function, items, **options):
    yield from ((place, None) for place, _ in enumerate(items))
prep.run_in_workers = at_once
step = dataclasses.replace(audio_step(store="waveform"), rename=None)  # notes, and no files
source, out = map(Path, sys.argv[1:])
started = time.perf_counter()
made = prep.prepare(step, source, out).made
with open_journal(out, step.name, step.settings, source) as journal:
    reopened = time.perf_counter() - started
    assert len(journal.entries) == made
del journal
report = prep.prepare(step, source, out)
print(json.dumps({"skipped": report.skipped, "reopened": reopened, "again": report.seconds}))
"""


def figures() -> dict[str, float]:
    """Measure both, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "source", Path(folder) / "out"
        grow(source, N, FOLDERS)
        planning = cost([sys.executable, "-c", PLAN, str(source), str(out)])
        finish(source, out)
        command = [sys.executable, "-m", "s2f", "prep", "audio", str(source), str(out), "--json"]
        nothing = cost(command)
        check(nothing, N)
        grow(Path(folder) / "many", MANY, FOLDERS)
        notes = str(Path(folder) / "notes")
        million = cost([sys.executable, "-c", MILLION, str(Path(folder) / "many"), notes])
        check(million, MANY)
    return {
        "planning, s": planning["s"],
        "planning, MB": planning["MB"],
        "nothing to do, s": nothing["s"],
        "nothing to do, MB": nothing["MB"],
        "1.13 million planned, journalled, reopened, s": million["reopened"],
        "planned again, nothing to do, s": million["again"],
        "1.13 million, MB": million["MB"],
    }


def grow(source: Path, files: int, folders: int) -> None:
    """Make a tree of empty files."""
    for k in range(folders):
        inside = source / f"id{k:05d}" / "video"
        inside.mkdir(parents=True)
        for n in range(files // folders):
            (inside / f"{n:05d}.wav").touch()


def finish(source: Path, out: Path) -> None:
    """Leave what a run over all files would have left, without reading any of them."""
    from s2f import files
    from s2f.journal import Journal
    from s2f.prep_audio import audio_step

    step = audio_step(store="waveform")
    assert step.rename
    with Journal(out, step.name, dict(step.settings)) as journal:
        for file in files.list_files(source, step.wants):
            target = out / step.rename(file.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
            journal.note("done", step.rename(file.path), file)
        journal.finish()


# A process starts with the peak of the one that starts it: so a small one does.
SMALL = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, check=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([time.perf_counter() - started, peak, done.stdout.decode()]))
"""


def cost(command: list[str]) -> dict[str, float]:
    """Wall time of a command, seconds, its peak memory, MB, and what it says of itself."""
    done = subprocess.run([sys.executable, "-c", SMALL, *command], capture_output=True, check=True)
    seconds, peak, said = json.loads(done.stdout)
    peak /= 1024 if sys.platform == "linux" else 1024**2
    return (json.loads(said) if said else {}) | {"s": seconds, "MB": peak}


def check(said: dict[str, float], files: int) -> None:
    """See that it had nothing to do."""
    if said["skipped"] != files:
        raise SystemExit(f"there was something to do: {said}")


def main() -> None:
    """Print the figures."""
    measured = figures()
    print(json.dumps({name: round(value, 2) for name, value in measured.items()}, indent=1))
    missed = [name for name, bound in BOUNDS.items() if measured[name] > bound]
    if missed:
        raise SystemExit(f"over the bound: {', '.join(missed)}")


if __name__ == "__main__":
    main()
