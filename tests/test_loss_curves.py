"""What people see of a run, and that it changes nothing of it; TensorBoard reads its own files."""

import os
import subprocess
import sys
from typing import Any

import pytest
from line_task import CPU, Killed, LineTask, assert_same_run, config, killing
from PIL import Image

from s2f import run_dir
from s2f.errors import OutputError
from s2f.run_dir import open_board
from s2f.train import train


@pytest.mark.parametrize(("rest", "pictures"), [(0, 4), (1e9, 2)])
def test_losses_are_drawn_less_often_if_validations_come_fast(
    tmp_path, monkeypatch, rest, pictures
):
    monkeypatch.setattr(run_dir, "REST", rest)
    seen = []

    def look(done: int, total: int, what: str) -> None:
        if done % 10 == 1 and done > 1:
            seen.append((tmp_path / "loss.png").read_bytes())

    train(LineTask(), tmp_path, config(), device=CPU, progress=look)
    assert len(set(seen)) == pictures - 1
    seen.append((tmp_path / "loss.png").read_bytes())
    assert len(set(seen)) == pictures  # the last is of the end in any case
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.format == "PNG"


def test_the_picture_of_a_run_that_was_killed_is_that_of_its_end(tmp_path):
    def run() -> None:
        train(LineTask(), tmp_path, config(every=20), device=CPU)

    run()
    picture = tmp_path / "loss.png"
    whole = picture.read_bytes()
    picture.write_bytes(b"of step 20")  # as a kill between the last save and the picture leaves it
    os.utime(picture, ns=(0, 0))
    run()
    assert picture.read_bytes() == whole
    made = picture.stat().st_mtime_ns
    run()
    assert picture.stat().st_mtime_ns == made  # nothing is new


@pytest.fixture
def events() -> Any:
    """What reads a folder as TensorBoard does."""
    where = "tensorboard.backend.event_processing.event_accumulator"
    return pytest.importorskip(where, reason="pip install 's2f[train]'").EventAccumulator


def test_tensorboard_knows_every_step_once_after_a_kill(tmp_path, events):
    plan, folder = config(steps=50, every=25), tmp_path / "with"
    kill = killing(45)  # 40 was told of; the last save was at 25
    with pytest.raises(Killed):
        train(LineTask(), folder, plan, device=CPU, tensorboard=True, progress=kill)
    train(LineTask(), folder, plan, device=CPU, tensorboard=True)
    told = events(str(folder / "tensorboard")).Reload()
    for name in ("train/mse", "lr/group0", "speed/samples_per_second"):
        assert [scalar.step for scalar in told.Scalars(name)] == [20, 25, 40, 50], name
    assert [scalar.step for scalar in told.Scalars("val/mse")] == [25, 50]
    images = told.Images("samples")
    assert [(image.step, image.width, image.height) for image in images] == [(25, 8, 4), (50, 8, 4)]
    train(LineTask(), tmp_path / "without", plan, device=CPU)
    assert_same_run(folder, tmp_path / "without")


def test_a_board_that_cannot_be_written_is_told(tmp_path, events):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file/board: cannot be written"):
        open_board(tmp_path / "file/board", after=0).__enter__()


def test_tensorflow_stays_out_where_it_is_installed(tmp_path, events):
    script = "import sys; from pathlib import Path; from s2f.run_dir import open_board\n"
    script += "with open_board(Path(sys.argv[1]), after=0) as board: board(1, {'a/b': 1.0}, None)\n"
    script += "assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", script, tmp_path / "board"], check=True)
