"""Any bit flipped in what s2f stores and reads again is found when it is read.

Of checkpoints, the text of the card too, that is in `test_checkpoint`. What is meant for people to
edit has no hash: csv tables, `card.json`. Nor have single arrays (waveforms, landmarks, embeddings)
but in a pack; nor has a run's `history.jsonl`, of which nothing but a picture is made.
"""

import dataclasses
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import some_landmarks, write_photo
from damage import Count
from packs import write_pack
from torch import nn

from s2f import files, pack
from s2f.errors import DatasetError, S2FError
from s2f.face_data import FaceIndex, index_faces, verify_index
from s2f.files import File
from s2f.journal import Journal
from s2f.report import Report, Section, Table, read_report, write_report
from s2f.run_dir import Run
from s2f.spectrogram import RunningMoments, read_stats, write_stats

CPU = torch.device("cpu")
ALL = pytest.param(None, marks=[pytest.mark.reliability, pytest.mark.timeout(3600)])


def flips(data: bytes, n: int | None):
    """Yield copies with one bit flipped, each once or `n` by chance, and where it is."""
    bits = np.arange(8 * len(data))
    for bit in bits if n is None else np.random.default_rng(0).choice(bits, n, replace=False):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        yield int(bit // 8), bytes(broken)


CONFIG = {"task": "line", "lr": 0.02, "steps": 200, "train": "voices", "losses": {"mse": 1.0}}


def claim(path: Path) -> object:
    run = Run(path.parent)
    return run.claim(CONFIG), run.changed


def write_config(folder: Path) -> Path:
    Run(folder).claim(CONFIG)
    return folder / "config.json"


def write_statistics(folder: Path) -> Path:
    write_stats(folder / "stats.json", RunningMoments(256, -6.5, 1024.0), files=3)
    return folder / "stats.json"


def write_evaluation(folder: Path) -> Path:
    table = Table("Recall", ("metric", "of r"), (("R@1", 0.25),), note="of two")
    report = Report("r", {"model": "m"}, (Section("s", (), (table,)),), {"r": {"a": 0.25}})
    write_report(report, folder, overwrite=True)
    return folder / "report.json"


def write_index(folder: Path) -> Path:
    for name in ("a", "b"):
        write_photo(folder / "train" / name / "images" / "1.jpg")
        np.save(folder / "train" / name / "images" / "1_landmarks.npy", some_landmarks())
    index_faces(folder, device=CPU)
    return folder / ".s2f/index/train/index.json"


def face_index(path: Path) -> object:
    index = FaceIndex.of(path.parents[3] / "train")
    assert not index.stale  # or the tree was looked at anew
    told = {name: str(value) for name, value in dataclasses.asdict(index).items()}
    return told | {"people": [*index.people], "paths": [*index.paths]}


def write_index_array(folder: Path) -> Path:
    return write_index(folder).with_name("paths.npy")


def verify_array(path: Path) -> None:
    """Of an array of more than 128 MiB: here, of any."""
    with mock.patch.object(files, "CHECKED", 0):
        for error in verify_index(path.parents[3]).damaged:
            raise error


def write_packed(folder: Path, name: str = pack.INDEX) -> Path:
    clips, embeddings = np.arange(40, dtype="<i2").reshape(4, 10), np.ones((2, 3), "<f2")
    write_pack(folder / "pack", [clips], [embeddings], [("id0", 4, 2, (3, 1))])
    return folder / "pack" / name


def verify_pack(path: Path) -> None:
    folder = path.parent if path.parent.name == "pack" else path.parents[1]
    if path.name == pack.INDEX or folder != path.parent:
        pack.Pack(folder)  # finds it, too
    for error in pack.verify_pack(folder).damaged:
        raise error


STORED = {
    "the config of a run": (write_config, claim),
    "statistics": (write_statistics, read_stats),
    "an evaluation": (write_evaluation, read_report),
    "the index of a tree": (write_index, face_index),
    "an array of the index of a tree": (write_index_array, face_index),
    "an array of the index of a large tree": (write_index_array, verify_array),
    "the index of a pack": (write_packed, verify_pack),
    "an array of the index of a pack": (
        lambda folder: write_packed(folder, "index.arrays/starts.npy"),
        verify_pack,
    ),
    "the clips of a pack": (lambda folder: write_packed(folder, "clips-00000.npy"), verify_pack),
    "the embeddings of a pack": (
        lambda folder: write_packed(folder, "embeddings-00000.npy"),
        verify_pack,
    ),
}


@pytest.mark.parametrize("n", [60, ALL])
@pytest.mark.parametrize("what", STORED)
def test_in_what_is_stored(tmp_path, what, n):
    """A name of the hash that is damaged may leave the rest as it was without one: the same."""
    write, read = STORED[what]
    path, count = write(tmp_path), Count()
    whole, wanted = path.read_bytes(), read(path)
    for at, broken in flips(whole, n):
        path.write_bytes(broken)
        try:
            found = read(path)
        except S2FError as error:
            count.add(path.parent, error)  # in which damage may be told of, as of one thing
            continue
        count.add(path, None)
        assert found == wanted and b'"sha256"' in whole[at - 8 : at + 9], (at, broken)
    print(f"flips in {what}: {count}")
    assert count.refused > count.tried * 0.9


@pytest.mark.parametrize("n", [60, ALL])
def test_in_the_state_of_a_run(tmp_path, n):
    network = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    run, count = Run(tmp_path, step=1, best_losses={"mse": 0.5}), Count()
    run.save(network, optimizer)
    whole = run.file.read_bytes()
    for _, broken in flips(whole, n):
        run.file.write_bytes(broken)
        count.read(run.file, lambda _: Run(tmp_path).restore(network, optimizer, CPU))
    run.file.write_bytes(whole)
    Run(tmp_path).restore(network, optimizer, CPU)
    print(f"flips in the state of a run: {count}")
    assert count.refused == count.tried > 0


@pytest.mark.parametrize("n", [150, ALL])
def test_in_a_journal(tmp_path, n):
    """What is taken from it is true: it is damaged, or things are due, or no longer known."""
    settings, count = {"rate": 16_000}, Count()
    with Journal(tmp_path, "audio", settings, tmp_path / "in") as journal:
        for k in range(4):
            journal.note("done", f"{k}.npy", File(f"{k}.wav", 10 + k, 111), ["a remark"])
        journal.finish()
        entries = journal.entries
    whole = journal.path.read_bytes()
    for at, broken in flips(whole, n):
        journal.path.write_bytes(broken)
        try:
            with Journal(tmp_path, "audio", settings, tmp_path / "in") as read:
                known = read.entries
        except DatasetError as error:
            count.add(journal.path, error)
            continue
        count.add(journal.path, None)
        assert at <= whole.index(b"\n") or at == len(whole) - 1  # in the settings, or cut off
        for name, entry in known.items():
            assert entry in (entries[name], entries[name]._replace(event="due", note=None))
    print(f"flips in a journal: {count}")
    assert count.refused > count.done


def test_a_journal_of_before_there_were_checksums_is_read(tmp_path):
    old = b'{"version": 1, "step": "audio", "settings": {}}\n["done", "a.npy", 1, 2]\n'
    with Journal(tmp_path, "audio", {}) as journal:
        pass
    journal.path.write_bytes(old)
    with Journal(tmp_path, "audio", {}) as journal:
        assert journal.entries["a.npy"][:3] == ("done", 1, 2)
