"""Which files a reader passes on the three paths: a recording, a training step, an evaluation.

`python benchmarks/paths.py` prints, for each, the files of `s2f` in which functions run and how
often the call order changes file, then the size of the house; `--coverage` runs the tests too and
prints the share of lines that they reach. Data are made here. Each path runs in a process of its
own, so that nothing is warm.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import s2f

PACKAGE = Path(s2f.__file__).parent
ROOT = PACKAGE.parent


class Trace:
    """Notes the file of each function of the package that is called, in the order of calls."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self.files: list[str] = []
        self.steps: list[list[str]] = []

    def __call__(self, frame: object, event: str, argument: object) -> None:
        """See one call."""
        code = frame.f_code  # type: ignore[attr-defined]
        if event != "call" or code.co_name == "<module>":
            return
        path = Path(code.co_filename)
        if path.parent != PACKAGE or is_importing(frame):
            return
        if code.co_name == "lr_at":  # called once a step, where it begins
            self.steps.append([])
        self.files.append(path.stem)
        if self.steps:
            self.steps[-1].append(path.stem)


def is_importing(frame: object) -> bool:
    """Tell whether a module of the package is being imported: bodies of classes are no path."""
    while frame := frame.f_back:  # type: ignore[attr-defined]
        code = frame.f_code
        if code.co_name == "<module>" and Path(code.co_filename).parent == PACKAGE:
            return True
    return False


def changes(files: list[str]) -> int:
    """Count the changes of file, the first one entered included."""
    return sum(a != b for a, b in zip([None, *files], files, strict=False))


def traced(arguments: list[str]) -> Trace:
    """Run a command of `s2f` under the trace."""
    from s2f.cli import main

    trace = Trace()
    sys.argv = ["s2f", *arguments]
    sys.setprofile(trace)
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.setprofile(None)
    return trace


def made_people(folder: Path, split: str, people: int) -> None:
    """Write people of two recordings and one drawn face each."""
    import numpy as np
    from PIL import Image, ImageDraw

    for k in range(people):
        rng = np.random.default_rng(k)
        for kind in ("audios", "images"):
            (folder / split / f"id{k}" / kind).mkdir(parents=True)
        for name in ("a", "b"):
            times = np.arange(16000 * 6) / 16000
            sound = 0.2 * np.sin(2 * np.pi * (110 + 12 * k) * times)
            sound += 0.02 * rng.standard_normal(len(times))
            np.save(folder / split / f"id{k}/audios/{name}.npy", (sound * 32767).astype(np.int16))
        face = Image.new("RGB", (224, 224), (210, 215, 220))
        pen = ImageDraw.Draw(face)
        pen.ellipse((50, 30, 174, 210), fill=(200, 150 + 5 * k, 120))
        face.save(folder / split / f"id{k}/images/a.jpg")


def recording(folder: Path) -> dict[str, object]:
    """Trace `s2f generate`."""
    speech = ROOT / "examples/speech.wav"
    files = traced(["generate", str(speech), "-o", str(folder / "face.png"), "--quiet"]).files
    return {"files": len(set(files)), "changes": changes(files), "which": sorted(set(files))}


def training_step(folder: Path) -> dict[str, object]:
    """Trace `s2f train voice`, and look at a step that neither validates nor saves."""
    for split in ("train", "val"):
        made_people(folder / "voices", split, 8)
    demo = PACKAGE / "models/demo"
    command = f"train voice {folder}/voices -o {folder}/run --preset compact --steps 8"
    command += f" --face-encoder {demo}/face_encoder.safetensors"
    command += f" --face-decoder {demo}/face_decoder.safetensors"
    trace = traced([*command.split(), "--batch-size=4", "--workers=0", "--device=cpu", "--quiet"])
    step = min(trace.steps[1:-1], key=lambda files: len(set(files)))
    return {"files": len(set(step)), "changes": changes(step), "which": sorted(set(step))}


def evaluation(folder: Path) -> dict[str, object]:
    """Trace `s2f evaluate` of the bundled model."""
    made_people(folder / "voices", "test", 8)
    files = traced(
        ["evaluate", str(folder / "voices"), "-o", str(folder / "report"), "--quiet"]
    ).files
    return {"files": len(set(files)), "changes": changes(files), "which": sorted(set(files))}


PATHS: dict[str, tuple[Callable[[Path], dict[str, object]], dict[str, int]]] = {
    "recording": (recording, {"files": 18, "changes": 55}),
    "training_step": (training_step, {"files": 8}),
    "evaluation": (evaluation, {"files": 25}),
}


def house() -> dict[str, tuple[int, int | None]]:
    """Measure the house: modules and lines, and their bounds."""

    def lines(folder: Path) -> int:
        return sum(len(path.read_bytes().splitlines()) for path in folder.rglob("*.py"))

    return {
        "modules": (len(list(PACKAGE.glob("*.py"))), 62),
        "lines of s2f": (lines(PACKAGE), 17500),
        "lines of tests": (lines(ROOT / "tests"), 14000),
    }


def coverage() -> str:
    """Run the tests, with the processes that they start, and give the share of lines reached."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "settings")
        settings.write_text(
            "[run]\nsource_pkgs = s2f\nparallel = true\npatch = subprocess\nsigterm = true\n"
            f"concurrency = multiprocessing,thread\ndata_file = {folder}/data\n"
        )
        run = [sys.executable, "-m", "coverage"]
        rc = f"--rcfile={settings}"
        subprocess.run([*run, "run", rc, "-m", "pytest", "-m", "", str(ROOT / "tests")], cwd=ROOT)
        subprocess.run([*run, "combine", rc, "-q", folder], check=True)
        done = subprocess.run(
            [*run, "report", rc, "--format=total", "--precision=2"], capture_output=True, text=True
        )
        return done.stdout.strip()


def main() -> None:
    """Print the measurements; exit 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--coverage", action="store_true", help="run the tests too")
    parser.add_argument("--only", choices=PATHS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(PATHS[arguments.only][0](Path(folder))))
        return
    missed = False
    for name, (_, bounds) in PATHS.items():
        done = subprocess.run(
            [sys.executable, __file__, "--only", name], capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        wanted = ", ".join(f"{key} {found[key]} (bound {bound})" for key, bound in bounds.items())
        missed |= any(found[key] > bound for key, bound in bounds.items())
        print(f"{name}: {wanted}\n    {' '.join(found['which'])}")
    for name, (value, bound) in house().items():
        missed |= bound is not None and value > bound
        print(f"{name}: {value} (bound {bound})")
    if arguments.coverage:
        print(f"lines reached by the tests: {coverage()} %")
    raise SystemExit(missed)


if __name__ == "__main__":
    main()
