"""What a million costs: preparing recordings, and opening an index, measured at sizes and fitted.

    python benchmarks/scale.py VOICES [--sizes 1000 4000 16000] [--json]
    python benchmarks/scale.py --rows 1000000 10000000 100000000 [--json]

With VOICES, a folder of recordings at 16 kHz, such as LibriSpeech's: `s2f prep audio` of so many
m4a files of 7.7 s, as long as VoxCeleb2's on average (links to 40 different ones), by 1 and by 2
workers, by two shards at once, and by Ray where there is `--executor ray`; then `prep stats` and
`prep pack` of what was made. Of each: files a second, core-seconds of all its processes, and the
memory of the largest; a line fitted to the core-seconds tells what a million cost, with the
standard error of the slope, and what VoxCeleb2 would.

With --rows: the index of a tree of photos, and of a pack, of so many: the time to open it, the
memory that this adds, and the time to look up a row at random; and the start of training from the
pack, up to 10 million. Indices are synthetic, of 2,000 people, without photos, and clips are sparse
files. Fails where the bounds are missed. Linux only.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SECONDS = 7.7  # of a recording: 2,400 hours over 1.1 million
CLIP, WIDTH, SHARD = 96_000, 4096, 5208  # samples, values of an embedding, clips in a file of 1 GB
PEOPLE = 2000
TRAINED = 10_000_000  # rows whose pairs are held in memory, 20 bytes each
LOOKS = 20_000
VOXCELEB2 = 1_128_246  # utterances
BOUNDS = {"s": 2.0, "MB": 1000.0, "a row, us": 20.0}

# Counts a command and all that it starts, which become this one's to wait for where they outlive
# their parents, as what forks workers does.
COUNTED = """
import ctypes, json, os, resource, subprocess, sys, time
ctypes.CDLL(None).prctl(36, 1)
began = time.perf_counter()
done = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in json.loads(sys.argv[1])]
codes = [one.wait() for one in done]
seconds = time.perf_counter() - began
try:
    while True:
        os.wait()
except ChildProcessError:
    pass
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([codes, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""

Figures = dict[str, float]


def counted(*commands: list[str | Path]) -> Figures:
    """Run s2f commands at once, and tell seconds, core-seconds, and MB of the largest process."""
    all_of_them = [[sys.executable, "-m", "s2f", *map(str, words)] for words in commands]
    told = subprocess.run(
        [sys.executable, "-c", COUNTED, json.dumps(all_of_them)], capture_output=True, check=True
    )
    codes, seconds, cores, peak = json.loads(told.stdout)
    if any(codes):
        raise SystemExit(f"{commands}: exit codes {codes}: {told.stderr.decode()[-500:]}")
    return {"s": seconds, "core-s": cores, "MB": peak}


def write_recordings(voices: Path, folder: Path) -> list[Path]:
    """Write 40 m4a files of real speech."""
    import soundfile
    from prep import RECORDINGS, write_m4a

    found = []
    for source in sorted(voices.rglob("*.flac")):
        samples, _ = soundfile.read(source, dtype="int16")
        if len(samples) >= SECONDS * 16_000:
            found.append(folder / f"{len(found):02}.m4a")
            write_m4a(found[-1], samples[: round(SECONDS * 16_000)])
        if len(found) == RECORDINGS:
            return found
    raise SystemExit(f"{voices}: holds {len(found)} recordings of {SECONDS} s; wanted {RECORDINGS}")


def prepared(recordings: list[Path], n: int, folder: Path) -> dict[str, Figures]:
    """Prepare n recordings in each way, then sum up and pack what was made."""
    source = folder / "source"
    for k in range(n):
        place = source / f"id{k // 185:05}/audios/{k % 185 // 8:02}/{k % 8:05}.m4a"
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(recordings[k % len(recordings)], place)
    audio: list[str | Path] = ["prep", "audio", source]
    shards = [["--shard", f"{k}/2", "--workers", "1", "-q"] for k in (1, 2)]
    ways: dict[str, list[list[str]]] = {
        "audio, 1 worker": [["--workers", "1", "-q"]],
        "audio, 2 workers": [["--workers", "2", "-q"]],
        "audio, 2 shards": shards,
    }
    helped = subprocess.run(
        [sys.executable, "-m", "s2f", "prep", "audio", "--help"], capture_output=True, check=True
    )
    if b"--executor" in helped.stdout:
        ways["audio, Ray"] = [["--executor", "ray", "-q"]]
    told = {}
    for way, options in ways.items():
        out = folder / way.replace(", ", "-").replace(" ", "-")
        told[way] = counted(*([*audio, out, *words] for words in options))
        made = sum(1 for _ in out.rglob("*.npy"))
        if made != n:
            raise SystemExit(f"{way}: made {made} of {n}")
        if way != "audio, 1 worker":
            shutil.rmtree(out)
    made_of = folder / "audio-1-worker"
    told["audio, 1 worker"]["bytes"] = bytes_below(made_of)
    told["stats"] = counted(["prep", "stats", made_of, "-o", folder / "stats.json", "-q"])
    encoder = Path(__file__).parents[1] / "s2f/models/demo/face_encoder.safetensors"
    width = embedding_width(encoder)
    for person in made_of.glob("id*"):
        (person / "images").mkdir()
        np.save(person / "images/0_embedding.npy", np.ones(width, np.float32))
    packed = folder / "pack"
    told["pack"] = counted(["prep", "pack", made_of, packed, "--face-encoder", encoder, "-q"])
    told["pack"]["bytes"] = bytes_below(packed)
    return {way: {"files": n, "files/s": n / of["s"], **of} for way, of in told.items()}


def bytes_below(folder: Path) -> int:
    """Add up the sizes of the files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def embedding_width(encoder: Path) -> int:
    """Read how many values the embeddings of a face encoder have."""
    from s2f.prep_faces import read_space

    return read_space(encoder).embedding


def fitted(measured: dict[int, dict[str, Figures]]) -> dict[str, Figures]:
    """Fit a line to the core-seconds of each way: what a million and VoxCeleb2 cost, core-hours."""
    from scipy.stats import linregress

    told = {}
    for way in next(iter(measured.values())):
        sizes = [*measured]
        line = linregress(sizes, [measured[n][way]["core-s"] for n in sizes])
        hours = line.slope / 3600
        error = line.stderr / 3600 if len(sizes) > 2 else float("nan")
        told[way] = {"core-h a million": hours * 1e6, "+-": error * 1e6}
        told[way] |= {"VoxCeleb2, core-h": hours * VOXCELEB2, "start, core-s": line.intercept}
        if "bytes" in measured[sizes[-1]][way]:
            each = measured[sizes[-1]][way]["bytes"] / sizes[-1]
            told[way]["VoxCeleb2, GB"] = each * VOXCELEB2 / 1e9
    return told


class Made:
    """An array that is made part by part, as it is written."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, rows: Callable[[int, int], Any]) -> None:
        """Take what makes the rows from one number up to another."""
        self.shape, self.dtype, self.rows = shape, np.dtype(dtype), rows

    def __getitem__(self, part: slice) -> Any:
        """Make some rows."""
        return self.rows(part.start, min(part.stop, self.shape[0]))


def counting(n: int, dtype: Any, step: int = 1) -> Any:
    """Give the array of n multiples of a step."""
    return Made((n,), dtype, lambda a, b: np.arange(a, b, dtype=dtype) * np.dtype(dtype).type(step))


NAME = b"p%05d/images/%09d.jpg\0"


def photo_names(n: int) -> tuple[Any, int]:
    """Name n photos, as one text, and how long a name is; some thousand names recur."""
    width, some = len(NAME % (0, 0)), b"".join(NAME % (k % PEOPLE, k) for k in range(10_000))
    block = np.frombuffer(some * (1 + (1 << 25) // len(some)), np.uint8)

    def text(start: int, end: int) -> NDArray[np.uint8]:
        return block[start % len(some) :][: end - start]

    return Made((n * width,), np.uint8, text), width


def write_faces(data: Path, n: int) -> None:
    """Write the index of n photos, and the folders that they would be in."""
    import torch

    from s2f import layout
    from s2f.face_data import FaceIndex, folders_of
    from s2f.files import Names

    people = [b"p%05d" % k for k in range(PEOPLE)]
    for name in people:
        (data / "train" / name.decode() / "images").mkdir(parents=True)
    text, width = photo_names(n)
    who = Made((n,), np.int32, lambda a, b: (np.arange(a, b) * PEOPLE // n).astype(np.int32))
    ends = layout.BESIDE_TARGETS
    rows: Any = counting(n, np.int32)
    beside: Any = Made((len(ends), n), np.bool_, lambda a, b: np.zeros((b - a, n), np.bool_))
    index = FaceIndex(
        *(data / "train", Names.of(people), Names(text, counting(n + 1, np.int64, width))),
        *(who, rows, rows, beside, dict.fromkeys(ends, 0), "0" * 64),  # type: ignore[arg-type]
        {layout.LANDMARKS: torch.full((68, 2), 112.0)},
    )
    index.write(folders_of(data / "train"))


def write_pack(folder: Path, n: int) -> None:
    """Write the index of n recordings of one clip each, and sparse files."""
    from s2f import pack
    from s2f.files import Names

    folder.mkdir(parents=True)
    shards: dict[str, list[pack.Shard]] = {"clips": [], "embeddings": []}
    for table, rows, width, each in (
        ("clips", n, CLIP, SHARD),
        ("embeddings", PEOPLE, WIDTH, PEOPLE),
    ):
        for start in range(0, rows, each):
            shape = min(each, rows - start), width
            name, kind = f"{table}-{start // each:05}.npy", pack.DTYPES[table]
            with (folder / name).open("wb") as file:
                fields = {"descr": kind.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, fields)
                file.truncate(file.tell() + shape[0] * width * kind.itemsize)
            shards[table].append(pack.Shard(name, shape[0], "0" * 64))
    clips = np.arange(PEOPLE + 1) * n // PEOPLE
    starts = np.stack([clips, np.arange(PEOPLE + 1), clips])
    people = pack.Identities(
        Names.of(b"p%05d" % k for k in range(PEOPLE)), starts, counting(n + 1, np.int64)
    )
    some = shards["clips"], shards["embeddings"]
    pack.write_index(folder, pack.Index(CLIP, WIDTH, "space", 10**9, people, *map(tuple, some)))


def memory() -> float:
    """Largest memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def looked_up(look: Callable[[int], object], n: int) -> float:
    """Microseconds to look up a row, of rows drawn at random."""
    rows = np.random.default_rng(0).integers(0, n, LOOKS).tolist()
    for row in rows[:100]:
        look(row)
    began = time.perf_counter()
    for row in rows:
        look(row)
    return 1e6 * (time.perf_counter() - began) / LOOKS


def opened(kind: str, folder: Path) -> Figures:
    """Open an index in this process, which has imported what it needs, and look rows up."""
    from s2f.embeddings import Maker
    from s2f.face_data import FaceDataset
    from s2f.pack import Pack
    from s2f.voice_data import Sampling, Voices

    maker = Maker("the face encoder", WIDTH, "squash", lambda photos: photos)
    before, began, cores = memory(), time.perf_counter(), time.process_time()
    look: Callable[[int], object]
    if kind == "faces":
        faces = FaceDataset(folder / "train", landmarks=68)
        n, index = len(faces), faces.index
        look = lambda k: (index.path(k), index.who[k], index.target(int(index.rows[k])))  # noqa: E731
        if index.stale:
            raise SystemExit(f"the index was not used: {index.stale}")
    elif kind == "pack":
        pack = Pack(folder)
        n, people = len(pack), pack.index.identities
        look = lambda k: (people.name(pack.identity(k)), people.starts[1, pack.identity(k)])  # noqa: E731
    else:
        voices = Voices(folder, Sampling(CLIP, anywhere=False), maker, "space")
        n, pairs = len(voices), voices.pairs
        look = lambda k: (pairs.recordings[k], pairs.people[k], pairs.faces[k])  # noqa: E731
    took = {"rows": n, "s": time.perf_counter() - began, "core-s": time.process_time() - cores}
    took["MB"] = memory() - before
    took["a row, us"] = looked_up(look, n)
    return took


def of_rows(n: int, folder: Path) -> dict[str, Figures]:
    """Write and open indices of n rows, each in a process of its own."""
    told = {}
    for what, write in (("faces", write_faces), ("pack", write_pack)):
        place = folder / what
        began = time.perf_counter()
        write(place, n)
        wrote = time.perf_counter() - began
        size = bytes_below(place / (".s2f" if what == "faces" else "index.arrays"))
        kinds = ["faces"] if what == "faces" else ["pack"]
        if what == "pack" and n <= TRAINED:
            kinds.append("training")
        for kind in kinds:
            command = [sys.executable, __file__, "--open", kind, str(place)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            told[kind] = {**json.loads(done.stdout), "GB": size / 1e9, "written, s": wrote}
            print(kind, told[kind], file=sys.stderr, flush=True)
        shutil.rmtree(place)
    return told


def main() -> None:
    """Print the figures; fail where a bound is missed."""
    how = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("voices", type=Path, nargs="?")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 4000, 16_000])
    parser.add_argument("--rows", type=int, nargs="+", default=[])
    parser.add_argument("--folder", type=Path, help="where temporary files go")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--open", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.open:
        print(json.dumps(opened(args.open[0], Path(args.open[1]))))
        return

    def tell(what: str, figures: Figures) -> None:
        if not args.json:
            told = ", ".join(f"{value:.4g} {name}" for name, value in figures.items())
            print(f"{what}: {told}", flush=True)

    whole: dict[str, Any] = {"prep": {}, "index": {}}
    missed = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if args.voices:
            (there := Path(folder) / "recordings").mkdir()
            recordings = write_recordings(args.voices, there)
            for n in args.sizes:
                whole["prep"][n] = prepared(recordings, n, Path(folder) / str(n))
                shutil.rmtree(Path(folder) / str(n))
                for way, figures in whole["prep"][n].items():
                    tell(way, figures)
            if len(args.sizes) > 1:
                whole["fitted"] = fitted(whole["prep"])
                for way, figures in whole["fitted"].items():
                    tell(way, figures)
        for n in args.rows:
            whole["index"][n] = of_rows(n, Path(folder))
            for kind, figures in whole["index"][n].items():
                tell(f"index, {kind}", figures)
                bad = [name for name, bound in BOUNDS.items() if figures[name] > bound]
                missed += [f"{kind} of {n}: {name}" for name in bad if kind != "training"]
    if args.json:
        print(json.dumps(whole, indent=1))
    sys.exit(f"over the bound: {', '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()
