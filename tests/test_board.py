"""TensorBoard's files, read back by TensorBoard."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from s2f.errors import DependencyError, OutputError
from s2f.training_log import Board, require_tensorboard


def read(folder: Path) -> Any:
    """What TensorBoard knows of a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return events


def test_what_is_told_comes_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install 's2f[train]'")
    board = Board(tmp_path, after=0)
    board.scalars(3, {"train/mse": 0.5, "lr/group0": 0.25})
    board.picture(3, torch.rand(3, 4, 8))
    board.close()
    events = read(tmp_path)
    assert sorted(events.Tags()["scalars"]) == ["lr/group0", "train/mse"]
    (scalar,) = events.Scalars("train/mse")
    assert (scalar.step, scalar.value) == (3, 0.5)
    (image,) = events.Images("samples")
    assert (image.step, image.width, image.height) == (3, 8, 4)


def test_steps_after_the_one_gone_on_from_count_no_more(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install 's2f[train]'")
    for after, values in ((0, {1: 1.0, 2: 2.0, 3: 3.0}), (2, {3: 30.0, 4: 40.0})):
        board = Board(tmp_path, after=after)
        for step, value in values.items():
            board.scalars(step, {"loss": value})
        board.close()
    scalars = [(scalar.step, scalar.value) for scalar in read(tmp_path).Scalars("loss")]
    assert scalars == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install 's2f[train]'")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file/board: cannot be written"):
        Board(tmp_path / "file/board", after=0)


def test_without_tensorboard_the_cure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(DependencyError, match="--tensorboard needs TensorBoard") as caught:
        require_tensorboard()
    assert caught.value.hint == "pip install 's2f[train]'"


def test_tensorflow_stays_out_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install 's2f[train]'")
    script = (
        "import sys; from pathlib import Path; from s2f.training_log import Board; "
        "board = Board(Path(sys.argv[1]), after=0); board.scalars(1, {'a/b': 1.0}); board.close(); "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "board"], check=True)
