"""What people see of a run, and that it changes nothing of it."""

import sys
from pathlib import Path

import pytest
from PIL import Image
from test_board import read
from test_train import CPU, Killed, LineTask, config

from s2f import training_log
from s2f.train import train

KEPT = ("best.safetensors", "last/state.safetensors", "history.jsonl")


def drawn(folder: Path) -> list[bytes]:
    """Train; give `loss.png` as it was after each of four validations."""
    seen = []

    def look(done: int, total: int, what: str) -> None:
        if done % 10 == 1 and done > 1:
            seen.append((folder / "loss.png").read_bytes())

    train(LineTask(), folder, config(), device=CPU, progress=look)
    return [*seen, (folder / "loss.png").read_bytes()]


@pytest.mark.parametrize(("rest", "pictures"), [(0, 4), (1e9, 2)])
def test_the_losses_are_drawn_anew_at_every_validation_and_less_often_if_these_come_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest: float, pictures: int
) -> None:
    pytest.importorskip("matplotlib", reason="pip install 's2f[train]'")
    monkeypatch.setattr(training_log, "REST", rest)
    seen = drawn(tmp_path)
    assert len(set(seen)) == pictures  # the last is of the end in any case
    assert len(set(seen[:-1])) == pictures - 1
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.format == "PNG"


def test_the_picture_of_a_run_that_was_killed_is_that_of_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="pip install 's2f[train]'")

    plan, folder = config(every=20), tmp_path / "killed"
    picture, draw = folder / "loss.png", training_log.Display.draw

    def kill(self: training_log.Display, *, now: bool = False) -> None:
        if self.state.ended:
            raise Killed
        draw(self, now=now)

    train(LineTask(), tmp_path / "whole", plan, device=CPU)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training_log.Display, "draw", kill)
        train(LineTask(), folder, plan, device=CPU)
    before = picture.read_bytes()  # of step 20, though all is trained and saved
    train(LineTask(), folder, plan, device=CPU)
    assert picture.read_bytes() == (tmp_path / "whole/loss.png").read_bytes() != before
    made = picture.stat().st_mtime_ns
    train(LineTask(), folder, plan, device=CPU)
    assert picture.stat().st_mtime_ns == made  # nothing is new


def test_without_matplotlib_the_run_is_the_same_and_the_cure_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(LineTask(), tmp_path / "with", config(), device=CPU)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    notes: list[str] = []
    train(LineTask(), tmp_path / "without", config(), device=CPU, note=notes.append)
    assert notes == ["loss.png needs matplotlib: pip install 's2f[train]'"]
    assert not (tmp_path / "without/loss.png").exists()
    for file in KEPT:
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()


def test_tensorboard_knows_every_step_once_after_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install 's2f[train]'")

    def kill(done: int, total: int, what: str) -> None:
        if done == 45:  # 40 was told of; the last save was at 25
            raise Killed

    plan = config(steps=50, every=25)
    with pytest.raises(Killed):
        train(LineTask(), tmp_path, plan, device=CPU, tensorboard=True, progress=kill)
    train(LineTask(), tmp_path, plan, device=CPU, tensorboard=True)
    events = read(tmp_path / "tensorboard")
    for name, steps in (
        ("train/mse", [20, 25, 40, 50]),
        ("lr/group0", [20, 25, 40, 50]),
        ("speed/samples_per_second", [20, 25, 40, 50]),
        ("val/mse", [25, 50]),
    ):
        assert [scalar.step for scalar in events.Scalars(name)] == steps, name
    assert [image.step for image in events.Images("samples")] == [25, 50]


def test_tensorboard_changes_nothing_of_a_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install 's2f[train]'")
    train(LineTask(), tmp_path / "without", config(), device=CPU)
    train(LineTask(), tmp_path / "with", config(), device=CPU, tensorboard=True)
    for file in (*KEPT, "config.json"):
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()
