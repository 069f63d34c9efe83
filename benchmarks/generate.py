"""Time and memory of `s2f generate`, as ratios and differences in one run on this machine.

    python benchmarks/generate.py [RECORDING] [--json]

Commands run alone, in turns; the smallest wall time of each counts, as noise only ever adds. The
recipe that the full-size networks are compared with (`generate_seed.py`) needs the programs ffmpeg
and ffmpeg-normalize and the package matplotlib. The full-size networks have random weights; 4.4 GB
are written to the temporary folder. Fails where a bound is missed.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUNS = 5
BATCH = 200  # recordings in a folder
EXAMPLE = Path(__file__).parents[1] / "examples" / "speech.wav"
AT_MOST = {
    "s2f --help, s": 0.3,
    "full size, wall time over the recipe's": 0.30,
    "full size, peak memory over the recipe's": 0.55,
    "bundled, cold start over import torch, s": 0.8,
    "bundled, peak MB": 900,
    "3 h of speech, peak MB over 1 min's": 60,
}
AT_LEAST = {
    "bundled, warm clips of 6 s a second": 15,
    f"a folder of {BATCH} over {BATCH} cold starts": 10,
}
Command = list[str | Path]


def cost(*commands: Command, runs: int = RUNS) -> list[tuple[float, float]]:
    """Smallest wall time, seconds, and peak memory, MB, of commands that take turns."""
    costs = [(float("inf"), 0.0)] * len(commands)
    for _ in range(runs):
        for k, command in enumerate(commands):
            started = time.perf_counter()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - started
            peak = usage.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
            if status:
                raise SystemExit(f"{command} failed")
            costs[k] = min(costs[k][0], seconds), max(costs[k][1], peak)
    return costs


def s2f(*arguments: str | Path) -> Command:
    """The command line of `s2f`."""
    return [sys.executable, "-m", "s2f", *arguments]


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own.

    The peak memory of a process counts from before it becomes another program: from that of the
    process that started it, which therefore has to stay small.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def write_full_size(folder: Path) -> None:
    """Write full-size networks of random weights as a model, and as the recipe's checkpoints.

    Those are what its training writes: they hold the state of Adam too, two values a weight.
    """
    import torch

    from s2f import checkpoint, face_decoder, voice_encoder
    from s2f.spectrogram import FRONT_ENDS

    torch.manual_seed(0)
    networks = {
        "voice_encoder": voice_encoder.VoiceEncoder(voice_encoder.CONFIGS["seed"]),
        "face_decoder": face_decoder.FaceDecoder(face_decoder.CONFIGS["seed"]),
    }
    for kind, network in networks.items():
        checkpoint.save(
            folder / "model" / f"{kind}.safetensors",
            network,
            card=checkpoint.Card("random"),
            embedding_space="random",
            front_end=FRONT_ENDS["seed"] if kind == "voice_encoder" else None,
        )
        moments = {
            k: {"step": torch.tensor(1.0), "exp_avg": p.data, "exp_avg_sq": p.data**2}
            for k, p in enumerate(network.parameters())
        }
        training = {"epoch": 1, "loss": 0.0, "best_loss": 0.0, "history": {}}
        training["model_state_dict"] = network.state_dict()
        training["optimizer_state_dict"] = {"state": moments, "param_groups": []}
        for values in moments.values():  # torch.save would store shared memory once
            values["exp_avg"] = values["exp_avg"].clone()
        torch.save(training, folder / f"{kind}.pt")


def full_size(recording: Path, folder: Path) -> dict[str, float]:
    """The full-size networks on one clip beside the recipe: cold processes, in turns."""
    apart(write_full_size, folder)
    model, weights = folder / "model", [folder / "voice_encoder.pt", folder / "face_decoder.pt"]
    clip = folder / "clip.wav"
    cut = ["ffmpeg", "-y", "-i", recording, "-t", "6", clip]
    subprocess.run(cut, check=True, capture_output=True)
    seed = [sys.executable, Path(__file__).with_name("generate_seed.py")]
    ours, recipe = cost(
        s2f("generate", clip, "-o", folder / "ours.png", "--model", model, "--overwrite"),
        [*seed, clip, *weights, folder / "recipe.png"],
        runs=3,
    )
    return {
        "full size, s": ours[0],
        "the recipe, s": recipe[0],
        "full size, wall time over the recipe's": ours[0] / recipe[0],
        "full size, peak MB": ours[1],
        "the recipe, peak MB": recipe[1],
        "full size, peak memory over the recipe's": ours[1] / recipe[1],
    }


def bundled(recording: Path, folder: Path) -> dict[str, float]:
    """The bundled model: cold, warm, and on a folder of recordings."""
    (torch_alone, _), (helped, _), (cold, memory) = cost(
        [sys.executable, "-c", "import torch"],
        s2f("--help"),
        s2f("generate", recording, "-o", folder / "face.png", "--overwrite"),
    )
    many = folder / "recordings"
    many.mkdir()
    for k in range(BATCH):
        shutil.copy(recording, many / f"{k}{recording.suffix}")
    ((together, _),) = cost(s2f("generate", many, "-o", folder / "faces", "--overwrite"), runs=1)
    return {
        "import torch, s": torch_alone,
        "s2f --help, s": helped,
        "bundled, cold start, s": cold,
        "bundled, cold start over import torch, s": cold - torch_alone,
        "bundled, peak MB": memory,
        "bundled, warm clips of 6 s a second": apart(warm, recording),
        f"a folder of {BATCH}, s": together,
        f"a folder of {BATCH} over {BATCH} cold starts": BATCH * cold / together,
    }


def hours(recording: Path, folder: Path) -> dict[str, float]:
    """Speech of three hours beside speech of a minute."""
    import soundfile

    samples, rate = soundfile.read(recording, dtype="int16")
    paths = []
    for name, seconds in (("minute", 60), ("hours", 3 * 3600)):
        paths.append(folder / f"{name}.flac")
        with soundfile.SoundFile(paths[-1], "w", rate, 1) as file:
            for _ in range(round(seconds * rate / len(samples))):
                file.write(samples)
    commands = [s2f("generate", path, "-o", path.with_suffix(".png")) for path in paths]
    (_, minute), (seconds, peak) = cost(*commands, runs=1)
    return {"3 h of speech, s": seconds, "3 h of speech, peak MB over 1 min's": peak - minute}


def warm(recording: Path) -> float:
    """Clips a second of a loaded model, reading and drawing included."""
    from s2f import SpeechToFace

    model = SpeechToFace.load(device="cpu")
    clips = model.generate(recording).clips
    started, n = time.perf_counter(), 20
    for _ in range(n):
        model.generate(recording).encoded()
    return n * clips / (time.perf_counter() - started)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recording", nargs="?", type=Path, default=EXAMPLE)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = bundled(options.recording, Path(folder))
        figures |= hours(options.recording, Path(folder))
        figures |= full_size(options.recording, Path(folder))
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        for name, value in figures.items():
            bound = AT_MOST.get(name, AT_LEAST.get(name))
            print(f"{value:10.3g} {name}" + (f" (bound {bound})" if bound else ""))
    missed = [name for name, bound in AT_MOST.items() if figures[name] > bound]
    missed += [name for name, bound in AT_LEAST.items() if figures[name] < bound]
    if missed:
        raise SystemExit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
