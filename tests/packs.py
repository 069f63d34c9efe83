"""Packs written by hand."""

import hashlib
from pathlib import Path

import numpy as np

from s2f import pack


def write_pack(folder: Path, clip_files: list, embedding_files: list, people: list) -> None:
    """Write a split of a pack of arrays; `people` are names and counts of clips and embeddings.

    And, unless it is to be of version 1, the clips of each recording.
    """
    folder.mkdir(parents=True)
    shards: dict[str, list] = {"clips": [], "embeddings": []}
    for table, arrays in (("clips", clip_files), ("embeddings", embedding_files)):
        for k, array in enumerate(arrays):
            path = folder / f"{table}-{k:05}.npy"
            np.save(path, array)
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            shards[table].append(pack.Shard(path.name, len(array), sha256))
    widths = clip_files[0].shape[1], embedding_files[0].shape[1]
    identities = tuple(pack.Identity(*person) for person in people)
    index = pack.Index(*widths, "space", 1, identities, *map(tuple, shards.values()))
    (folder / "index.json").write_bytes(index.encode())
