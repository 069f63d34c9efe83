"""The benchmark of scale runs, at a size that takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCALE = Path(__file__).parents[1] / "benchmarks/scale.py"


@pytest.mark.slow
def test_indices_of_a_small_size_are_made_opened_and_told(tmp_path):
    """Its bounds are of time, which is not judged here."""
    command = [sys.executable, SCALE, "--rows", "5000", "--folder", tmp_path, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 or "over the bound" in done.stderr, done.stderr
    told = json.loads(done.stdout)["index"]["5000"]
    assert {*told} == {"faces", "pack", "training"}
    assert all(figures["rows"] == 5000 for figures in told.values())
    assert not [*tmp_path.iterdir()]
