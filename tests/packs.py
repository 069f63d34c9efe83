"""Packs written by hand."""

import dataclasses
import hashlib
import json
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
    if people and len(people[0]) == 3:
        write_old_index(folder, 1, *widths, people, shards)
        return
    identities = pack.Identities.of(pack.Identity(*person) for person in people)
    index = pack.Index(*widths, "space", 1, identities, *map(tuple, shards.values()))
    pack.write_index(folder, index)


def write_old_index(folder, version, clip_samples, embedding, people, shards):
    """Write index.json as s2f wrote it in versions 1 and 2: JSON, with the hash of all else."""
    fields = {"version": version, "clip_samples": clip_samples, "embedding": embedding}
    fields |= {"embedding_space": "space", "shard_bytes": 1, "identities": people}
    fields |= {table: [dataclasses.asdict(one) for one in some] for table, some in shards.items()}
    sha256 = hashlib.sha256(json.dumps(fields).encode()).hexdigest()
    (folder / "index.json").write_text(json.dumps({**fields, "sha256": sha256}) + "\n")
