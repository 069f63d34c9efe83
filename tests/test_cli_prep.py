"""`s2f prep`: what reaches the recipe, and what is said of it."""

from pathlib import Path
from typing import Any

import pytest
from command_line import Done, assert_refused

from s2f import demo


def test_prep_demo_prints_where_the_trees_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(faces: Path, voices: Path, out: Path, **options: Any) -> demo.DemoReport:
        options.pop("progress")(1, 2, "a")
        assert options == {"identities": 3, "seed": 1}
        return demo.DemoReport(out, {"train": 3}, {"train": 1})

    monkeypatch.setattr(demo, "prepare", prepare)
    done = Done("prep", "demo", "f", "v", tmp_path / "out", "--identities", 3, "--seed", 1)
    assert (done.code, done.out) == (0, f"{tmp_path / 'out'}\n")


def test_prep_demo_leaves_its_defaults_to_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(faces: Path, voices: Path, out: Path, **options: Any) -> demo.DemoReport:
        assert set(options) == {"progress"}
        return demo.DemoReport(out, {"train": 3}, {"train": 1})

    monkeypatch.setattr(demo, "prepare", prepare)
    done = Done("prep", "demo", "f", "v", tmp_path / "out", "--json")
    assert done.json == {
        "out": str(tmp_path / "out"),
        "faces": {"train": 3},
        "voices": {"train": 1},
    }


def test_prep_demo_refuses_a_source_that_is_none(tmp_path: Path) -> None:
    done = Done("prep", "demo", tmp_path, tmp_path, tmp_path / "out")
    assert_refused(done, 3, tmp_path / "people.csv")
