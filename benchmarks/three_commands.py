"""From photos and recordings as they are found to a face, in three commands, killed on the way too.

    python benchmarks/three_commands.py DATA WORK [--kills 5] [--json]

DATA holds `faces` and `voices` (`../shared/data`). The photographed people get made-up names; an
eighth of them have no photo, an eighth no recording, and three files are broken. `prep dataset`,
`train model` and `generate` are typed once, undisturbed; and again, the three from the first as
often as `kill -9` takes them at a random moment of the whole way: the parent alone, or all of its
processes. Fails if the first way takes 40 minutes, or the second ends with a byte that differs or
a file more (locks and the journals of `prep`, which know when a file was made, left out). WORK must
not exist.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

SPEECH = Path(__file__).parents[1] / "examples/speech.wav"
MINUTES = 40.0
SOME_FAILED = 6  # what `prep dataset` ends with, of the broken files
COMMANDS = (
    (["prep", "dataset", "../faces", "../voices", "data"], SOME_FAILED),
    (["train", "model", "data", "-o", "mine", "--device", "cpu"], 0),
    (["generate", str(SPEECH), "--model", "mine", "-o", "face.png"], 0),
)


def make_sources(data: Path, work: Path) -> None:
    """Write `faces` and `voices` of made-up names, as a stranger finds them."""
    photos, readers = (
        sorted(path for path in (data / kind).iterdir() if path.is_dir())
        for kind in ("faces", "voices")
    )
    names = [f"Zoë {k:02}" for k in range(len(photos))]
    for k, (name, person, reader) in enumerate(zip(names, photos, readers, strict=False)):
        if k % 8 != 1:
            (work / "faces" / name).mkdir(parents=True)
            for kind in ("neutral", "smiling"):
                shutil.copy(person / f"{kind}.jpg", work / "faces" / name)
        if k % 8 != 2:
            shutil.copytree(reader, work / "voices" / name)
    cut = work / "faces" / names[0] / "neutral.jpg"
    cut.write_bytes(cut.read_bytes()[:5000])
    Image.new("RGB", (300, 300), "grey").save(work / "faces" / names[3] / "wall.png")
    (work / "voices" / names[4] / "text.flac").write_text("no recording")


def walk(folder: Path, seconds: float = float("inf"), *, whole_group: bool = True) -> str | None:
    """Type the commands in a folder; tell which was killed, as the time was over, or None."""
    end = time.monotonic() + seconds
    for words, code in COMMANDS:
        process = subprocess.Popen(
            [sys.executable, "-m", "s2f", *words, "--quiet"], cwd=folder, start_new_session=True
        )
        try:
            left = None if seconds == float("inf") else max(0.0, end - time.monotonic())
            ended = process.wait(left)
        except subprocess.TimeoutExpired:
            if whole_group:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
            return " ".join(words[:2])
        if ended != code:
            raise SystemExit(f"s2f {' '.join(words)} ended with {ended}")
    return None


def kept(folder: Path) -> dict[Path, bytes]:
    """Read every file but locks and journals."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock" and ".s2f" not in path.parts
    }


def main() -> None:
    """Walk both ways, print the figures, and fail if they differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    given.work.mkdir(parents=True)
    make_sources(given.data.resolve(), given.work)
    undisturbed, disturbed = given.work / "undisturbed", given.work / "disturbed"
    undisturbed.mkdir()
    disturbed.mkdir()
    began = time.monotonic()
    walk(undisturbed)
    took = time.monotonic() - began
    chance, killed = random.Random(0), []
    # From short to long, so that the first command is killed too, and the others are come to.
    shares = [chance.uniform(math.log(0.003), math.log(0.3)) for _ in range(given.kills)]
    for share in sorted(map(math.exp, shares)):
        where = walk(disturbed, share * took, whole_group=len(killed) % 2 == 0)
        if where is None:
            raise SystemExit(f"it was done after {len(killed)} kills")
        killed.append(where)
    walk(disturbed)
    one, other = kept(undisturbed), kept(disturbed)
    differ = sorted(
        str(path) for path in one.keys() | other.keys() if one.get(path) != other.get(path)
    )
    figures = {
        "minutes, undisturbed": round(took / 60, 1),
        "killed in": killed,
        "files": len(one),
        "files that differ": differ,
    }
    print(json.dumps(figures) if given.json else "\n".join(f"{k}: {v}" for k, v in figures.items()))
    if took > 60 * MINUTES or differ:
        raise SystemExit(f"wanted: {MINUTES:g} minutes or less, and no file that differs")


if __name__ == "__main__":
    main()
