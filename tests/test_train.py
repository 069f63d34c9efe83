"""The loop, on a task that is small enough to be checked by hand, and on the real ones."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from s2f.dataset import Item
from s2f.errors import DatasetError, UsageError
from s2f.train import TrainConfig, lr_at, train

CPU = torch.device("cpu")


class Line(Dataset[Item]):
    """Points of y = 2 x + 1."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, key: tuple[int, int]) -> Item:
        x = torch.tensor([key[0] / 16])
        return {"x": x, "y": 2 * x + 1}


class LineTask:
    """Find the line; with dropout, so that the random state counts."""

    name = "line"

    def __init__(self, **settings: object) -> None:
        self.settings = settings
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(1, 16), nn.Dropout(0.1), nn.Linear(16, 1))
        self.train_data = self.val_data = Line()
        self.loss_weights = {"mse": 1.0}

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        return {"mse": (self.network(batch["x"]) - batch["y"]).square().mean(1)}

    def finish(self, batches: object) -> bool:
        return False

    def sample(self, batch: Item) -> Tensor:
        return torch.zeros(3, 4, 8)

    def save(self, path: Path, storage: torch.dtype, metrics: object) -> None:
        tensors = {k: v.to(storage) for k, v in self.network.state_dict().items()}
        safetensors.torch.save_file(tensors, path)


def config(**changes: object) -> TrainConfig:
    base: dict[str, object] = {"steps": 40, "batch_size": 4, "lr": 0.02, "every": 10}
    return TrainConfig(**(base | changes))  # type: ignore[arg-type]


def test_the_loss_falls(tmp_path: Path) -> None:
    result = train(LineTask(), tmp_path, config(steps=200, every=100), device=CPU)
    assert result.losses["mse"] < 0.05
    assert result.best.is_file()


def test_two_equal_runs_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(LineTask(), tmp_path / name, config(), device=CPU)
    for file in ("best.safetensors", "last/state.safetensors", "history.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [10, 25])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, at: int) -> None:
    def kill(done: int, total: int, what: str) -> None:
        if done == at:
            raise Killed

    train(LineTask(), tmp_path / "whole", config(), device=CPU)
    with pytest.raises(Killed):
        train(LineTask(), tmp_path / "killed", config(), device=CPU, progress=kill)
    train(LineTask(), tmp_path / "killed", config(), device=CPU)
    for file in ("best.safetensors", "last/state.safetensors", "history.jsonl"):
        whole = (tmp_path / "whole" / file).read_bytes()
        assert whole == (tmp_path / "killed" / file).read_bytes(), file


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    train(LineTask(), tmp_path, config(), device=CPU)
    seen: list[int] = []
    again = train(
        LineTask(), tmp_path, config(), device=CPU, progress=lambda d, t, w: seen.append(d)
    )
    assert seen == [] and again.best.is_file() and again.losses["mse"] > 0


def test_another_config_in_the_same_folder_is_refused_by_its_difference(tmp_path: Path) -> None:
    train(LineTask(), tmp_path, config(), device=CPU)
    with pytest.raises(UsageError, match=r"holds a run with lr 0.02; this one has 0.5"):
        train(LineTask(), tmp_path, config(lr=0.5), device=CPU)


def test_another_task_in_the_same_folder_is_refused_by_its_difference(tmp_path: Path) -> None:
    train(LineTask(preset="a"), tmp_path, config(), device=CPU)
    with pytest.raises(UsageError, match="holds a run with preset a; this one has b"):
        train(LineTask(preset="b"), tmp_path, config(), device=CPU)


def test_a_run_goes_on_with_another_number_of_workers(tmp_path: Path) -> None:
    result = train(LineTask(), tmp_path, config(), device=CPU)
    assert train(LineTask(), tmp_path, config(workers=1), device=CPU) == result


def test_a_training_that_diverges_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the training diverged: at step"):
        train(LineTask(), tmp_path, config(lr=1e30), device=CPU)
    assert not (tmp_path / "best.safetensors").exists()


def test_what_cannot_be_calibrated_is_refused_before_there_is_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="share no predicted embedding"):
        train(LineTask(), tmp_path / "run", config(calibrate_at=5), device=CPU)
    assert not (tmp_path / "run").exists()


class Broken(Line):
    """A dataset with one unreadable item."""

    def __getitem__(self, key: tuple[int, int]) -> Item:
        if key[0] == 7:
            raise DatasetError("item 7 is broken", hint="make it again")
        return super().__getitem__(key)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_item_is_named_with_its_cure_from_any_process(
    tmp_path: Path, workers: int
) -> None:
    task = LineTask()
    task.train_data = Broken()
    with pytest.raises(DatasetError) as caught:
        train(task, tmp_path, config(workers=workers), device=CPU)
    assert (caught.value.message, caught.value.hint) == ("item 7 is broken", "make it again")


def test_a_run_directory_tells_its_story(tmp_path: Path) -> None:
    train(LineTask(), tmp_path, config(), device=CPU)
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20, 30, 40]
    assert json.loads(lines[0])["val"]["mse"] > json.loads(lines[-1])["val"]["mse"]
    assert len(list((tmp_path / "samples").glob("*.png"))) == 4
    assert json.loads((tmp_path / "config.json").read_text())["task"] == "line"


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    plan = config(steps=1000, lr=1.0)
    assert lr_at(0, plan) == pytest.approx(1 / 100)
    assert lr_at(100, plan) == pytest.approx(1.0)
    assert lr_at(550, plan) == pytest.approx(0.505)
    assert lr_at(1000, plan) == pytest.approx(0.01)


def test_the_papers_rate_falls_by_a_twentieth_every_10000_steps() -> None:
    plan = config(schedule="paper", lr=1e-3)
    assert lr_at(9_999, plan) == 1e-3
    assert lr_at(20_000, plan) == pytest.approx(1e-3 * 0.95**2)


@pytest.mark.parametrize("change", [{"steps": 0}, {"schedule": "linear"}, {"calibrate_at": 40}])
def test_a_config_that_cannot_run_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        config(**change)
