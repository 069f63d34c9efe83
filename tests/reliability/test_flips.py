"""Any bit flipped in what s2f stores is found when it is read.

Of checkpoints that is in `test_checkpoint`, of packs in `test_pack`.
"""

import numpy as np
import pytest
import torch
from damage import Count
from torch import nn

from s2f.errors import DatasetError
from s2f.files import File
from s2f.prep import Journal
from s2f.run_dir import Run

CPU = torch.device("cpu")
ALL = pytest.param(None, marks=[pytest.mark.reliability, pytest.mark.timeout(3600)])


def flips(data: bytes, n: int | None):
    """Yield copies with one bit flipped, each once or `n` by chance, and where it is."""
    bits = np.arange(8 * len(data))
    for bit in bits if n is None else np.random.default_rng(0).choice(bits, n, replace=False):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        yield int(bit // 8), bytes(broken)


@pytest.mark.parametrize("n", [400, ALL])
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


@pytest.mark.parametrize("n", [400, ALL])
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
