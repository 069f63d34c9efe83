"""How long training takes to its first batch at VGGFace2's scale, and how much memory it takes.

    python benchmarks/start.py FOLDER [--photos 3300000] [--recordings 1100000] [--json]

For `train decoder --preset paper --morph 0.5` and `train voice --preset paper` with the full-size
networks: a fresh process each, from its start to the first batch, read and joined, and its peak
memory. Fails where one takes more than 60 s or 4 GB.

Synthetic: the folders of 9,131 people are real, and so is the index, as `s2f prep index` writes it,
but of its photos only those of the first batch and whom they may be mixed with are there; whom a
photo is like is drawn at random. Recordings and embeddings are a pack of sparse files, with noise
in the clips of the first batch. Weights are random. The time to find who is alike is that of a
fiftieth of the people, with as many photos each and random directions, times fifty.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from PIL import Image
from torch.nn import functional

from s2f import face_decoder, face_encoder, layout, pack, train_voice
from s2f.checkpoint import Card, load, save
from s2f.dataloader import load_batches, plan_steps
from s2f.face_data import AXES, NEIGHBOURS, FaceIndex, folders_of, index_faces, nearest
from s2f.files import Names
from s2f.images import PREPROCESSING
from s2f.train import TrainConfig
from s2f.train_faces import FaceDecoderTask
from s2f.train_voice import VoiceEncoderTask

PEOPLE = 9131  # of VGGFace2
BATCH, CLIP, WIDTH, SHARD = 32, 96_000, 4096, 5000
SECONDS, BYTES = 60, 4e9
CPU = torch.device("cpu")


def write_photo(stem: Path, rng: np.random.Generator) -> None:
    """Write a picture and 68 points in a frame."""
    pixels = rng.integers(0, 255, (7, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((224, 224)).save(stem.with_suffix(".jpg"))
    grid = np.stack(np.meshgrid(np.arange(9), np.arange(8)), -1).reshape(-1, 2)[:68]
    np.save(layout.beside(stem, layout.LANDMARKS), (60 + 13 * grid).astype(np.float32))


def write_faces(data: Path, n: int) -> None:
    """Write the index of train, what it needs of the tree, and a val of a few people."""
    rng = np.random.default_rng(0)
    who = np.sort(rng.integers(0, PEOPLE, n, dtype=np.int32))
    place = np.arange(n) - np.searchsorted(who, who)
    people = tuple(f"n{k:06d}" for k in range(PEOPLE))
    for name in people:
        (data / "train" / name / "images").mkdir(parents=True)
    paths = [b"n%06d/images/%04d_01.jpg" % one for one in zip(who, place, strict=True)]
    neighbours = rng.integers(0, n, (n, NEIGHBOURS), dtype=np.int32)
    (keys,) = plan_steps(n, BATCH, seed=TrainConfig.seed, steps=range(1))
    for row in {*(key.item for key in keys), *neighbours[[key.item for key in keys]].flatten()}:
        write_photo((data / "train" / paths[row].decode()).with_suffix(""), rng)
    for k in range(6):
        (data / f"val/n{k + PEOPLE:06d}/images").mkdir(parents=True)
        write_photo(data / f"val/n{k + PEOPLE:06d}/images/0", rng)
    index_faces_of_val(data)
    rows = np.arange(n, dtype=np.int32)
    index = FaceIndex(
        *(data / "train", Names.of(name.encode() for name in people), Names.of(paths)),
        *(who, rows, rows, np.zeros((len(layout.BESIDE_TARGETS), n), np.bool_)),
        *(dict.fromkeys(layout.BESIDE_TARGETS, 0), layout.digest(paths)),
        {layout.LANDMARKS: torch.full((68, 2), 112.0) + torch.arange(68)[:, None]},
        neighbours,
        load(data / "encoder.safetensors", "face_encoder").embedding_space,
    )
    index.write(folders_of(data / "train"))


def index_faces_of_val(data: Path) -> None:
    """Index val alone: the photos of train are not there."""
    (data / "train").rename(data / "aside")
    index_faces(data, device=CPU)
    (data / "aside").rename(data / "train")


def write_pack(folder: Path, recordings: int, faces: int, people: int, space: str) -> None:
    """Write a split of a pack of sparse files; the clips of the first batch sound."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    shards: dict[str, list[pack.Shard]] = {"clips": [], "embeddings": []}
    batch = train_voice.PRESETS["conv", "paper"].training["batch_size"]
    (keys,) = plan_steps(recordings, batch, seed=TrainConfig.seed, steps=range(1))  # type: ignore[arg-type]
    for table, n, width in (("clips", recordings, CLIP), ("embeddings", faces, WIDTH)):
        rows_of = SHARD if table == "clips" else 25 * SHARD
        for start in range(0, n, rows_of):
            rows, name = min(rows_of, n - start), f"{table}-{start // rows_of:05d}.npy"
            values = open_memmap(folder / name, "w+", pack.DTYPES[table], (rows, width))
            for key in keys if table == "clips" else ():
                if 0 <= key.item - start < rows:
                    values[key.item - start] = rng.normal(0, 3000, CLIP)
            shards[table].append(pack.Shard(name, rows, "0" * 64))
    sizes = recordings, faces
    owned = [[len(part) for part in np.array_split(np.arange(n), people)] for n in sizes]
    those = pack.Identities.of(
        pack.Identity(f"n{k:06d}", clips, n, (1,) * clips)
        for k, (clips, n) in enumerate(zip(*owned, strict=True))
    )
    index = pack.Index(CLIP, WIDTH, space, 10**9, those, *(tuple(s) for s in shards.values()))
    pack.write_index(folder, index)


def write_all(data: Path, photos: int, recordings: int) -> None:
    """Write everything that is not there yet."""
    torch.manual_seed(0)
    data.mkdir()
    card = Card("random weights")
    encoder = face_encoder.VGGFace(face_encoder.CONFIGS["paper"], PREPROCESSING["paper"])
    space = save(data / "encoder.safetensors", encoder, card=card)
    decoder = face_decoder.FaceDecoder(face_decoder.CONFIGS["paper"])
    save(data / "decoder.safetensors", decoder, card=card, embedding_space=space)
    write_faces(data, photos)
    write_pack(data / "pack/train", recordings, photos, PEOPLE, space)
    write_pack(data / "pack/val", 60, 60, 6, space)


def first_batch(data: Path, what: str) -> None:
    """Start a training, read its first batch, and tell the peak memory."""
    encoder, task = load(data / "encoder.safetensors", "face_encoder"), None
    if what == "decoder":
        task = FaceDecoderTask(data, "paper", encoder, None, Card("d"), device=CPU, morph=0.5)
    else:
        decoder = load(data / "decoder.safetensors", "face_decoder")
        task = VoiceEncoderTask(data / "pack", "paper", encoder, decoder, Card("v"), device=CPU)
    size = task.defaults.get("batch_size", BATCH)
    keys = plan_steps(len(task.train_data), size, seed=TrainConfig.seed, steps=range(1))
    for loaded in load_batches(task.train_data, keys, CPU, workers=0, max_bad=0):
        assert loaded.items is not None, loaded.bad
        assert len(loaded.keys) == size
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"items": len(task.train_data), "bytes": peak}))


def alike_seconds(n: int, share: int = 50) -> float:
    """Estimate the seconds that it takes to find who is like n photos, from a share of people."""
    rows = functional.normalize(torch.randn(n // share, AXES), dim=1)
    groups = torch.randint(PEOPLE // share, (n // share,))
    began = time.perf_counter()
    nearest(rows, groups, NEIGHBOURS)
    return share * (time.perf_counter() - began)


def main() -> None:
    """Measure both trainings, and whether they keep the bounds."""
    how = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=3_300_000)
    parser.add_argument("--recordings", type=int, default=1_100_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--start", choices=("decoder", "voice"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        first_batch(args.folder, args.start)
        return
    if not args.folder.exists():
        write_all(args.folder, args.photos, args.recordings)
    told: dict[str, Any] = {}
    for what in ("decoder", "voice"):
        began = time.perf_counter()
        command = [sys.executable, __file__, str(args.folder), "--start", what]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        told[what] = {"seconds": time.perf_counter() - began, **json.loads(done.stdout)}
        if not args.json:
            print(what, told[what])
    told["alike"] = {"seconds, estimated": alike_seconds(args.photos)}
    if args.json:
        print(json.dumps(told, indent=1))
    else:
        print("alike", told["alike"])
    both = {what: told[what] for what in ("decoder", "voice")}
    missed = [w for w, one in both.items() if one["seconds"] > SECONDS or one["bytes"] > BYTES]
    sys.exit(f"over 60 s or 4 GB: {', '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()
