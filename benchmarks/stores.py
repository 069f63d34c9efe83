"""A pack in an object store beside one on disk: time to put and to stage it, batches a second.

    python benchmarks/stores.py

S3 is moto's server, on loopback, in a process of its own. The pack is random: what is read is not
looked at. Batches of 32 clips with an embedding each are read at random from the pack on disk and
from its staged copy, by turns. Fails where that gives less than 0.8 of the batches of the disk.
"""

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CLIPS, PER_FILE, SAMPLES, PEOPLE, EMBEDDING = 1000, 250, 96_000, 100, 512
BATCH, BATCHES, TURNS = 32, 50, 20
LEAST = 0.8
SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


def write_pack(folder: Path) -> None:
    """Write one split of random clips and embeddings."""
    from s2f import pack

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    shards: dict[str, list[pack.Shard]] = {"clips": [], "embeddings": []}
    parts = [("clips", PER_FILE, SAMPLES, "<i2")] * (CLIPS // PER_FILE)
    for table, rows, width, dtype in [*parts, ("embeddings", PEOPLE, EMBEDDING, "<f2")]:
        path = folder / f"{table}-{len(shards[table]):05}.npy"
        np.save(path, rng.integers(-9999, 9999, (rows, width)).astype(dtype))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        shards[table].append(pack.Shard(path.name, rows, sha256))
    each = CLIPS // PEOPLE
    one = (pack.Identity(f"{k:03}", each, 1, (each,)) for k in range(PEOPLE))
    people = pack.Identities.of(one)
    clips, embeddings = (tuple(shards[table]) for table in ("clips", "embeddings"))
    index = pack.Index(SAMPLES, EMBEDDING, "0" * 64, 10**9, people, clips, embeddings)
    pack.write_index(folder, index)


def batches_a_second(folder: Path, seed: int) -> float:
    """Read random batches, as float32, as training does."""
    from s2f.pack import Pack

    pack, rng = Pack(folder), np.random.default_rng(seed)
    began = time.perf_counter()
    for _ in range(BATCHES):
        for number in rng.integers(0, len(pack), BATCH).tolist():
            clip, faces = pack[number]
            clip.astype(np.float32)
            pack.embedding(faces.start)
    return BATCHES / (time.perf_counter() - began)


def figures(folder: Path) -> dict[str, float]:
    """Measure all with the server that the environment names."""
    import fsspec

    from s2f.pack import stage_pack
    from s2f.stores import Store

    fs = fsspec.filesystem("s3")
    fs.mkdir("bucket")
    disk, store = folder / "pack", Store("s3://bucket/pack")
    write_pack(disk / "train")
    files = sorted(path for path in disk.rglob("*") if path.is_file())
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    began = time.perf_counter()
    for path in files:
        (store / path.relative_to(disk).as_posix()).put(path)
    put = time.perf_counter() - began
    began = time.perf_counter()
    staged = stage_pack(store, folder / "cache")
    stage = time.perf_counter() - began
    began = time.perf_counter()
    assert stage_pack(store, folder / "cache") == staged
    again = time.perf_counter() - began
    # A file written at one go lies in large pages of memory until it is read from the disk again,
    # and is then read faster than any copy: both begin on the disk.
    for path in [*disk.rglob("*.npy"), *staged.rglob("*.npy")]:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    rates: dict[str, list[float]] = {"disk": [], "staged": []}
    for turn in range(-1, TURNS):  # the first one is not counted
        for name, place in (("disk", disk), ("staged", staged))[:: 1 if turn % 2 else -1]:
            rate = batches_a_second(place / "train", turn + 1)
            if turn >= 0:
                rates[name].append(rate)
    pairs = zip(rates["staged"], rates["disk"], strict=True)
    return {
        "pack, MB": megabytes,
        "put, MB/s": megabytes / put,
        "staged and checked, MB/s": megabytes / stage,
        "staged already, s": again,
        "batches/s from disk": statistics.median(rates["disk"]),
        "batches/s from the staged copy": statistics.median(rates["staged"]),
        "ratio": statistics.median(a / b for a, b in pairs),
    }


def main() -> int:
    """Print the figures, and fail if the bound is missed."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout and server.stdin
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{int(server.stdout.readline())}"
        os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        with tempfile.TemporaryDirectory() as folder:
            found = figures(Path(folder))
        server.stdin.close()
    print(json.dumps({name: round(value, 3) for name, value in found.items()}, indent=1))
    return 0 if found["ratio"] >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
