"""The recipe of the bundled model, on a few of the real people and speakers."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from s2f import demo, layout
from s2f.errors import DatasetError, UsageError
from s2f.face_data import FaceDataset

DATA = Path(__file__).parents[2] / "shared/data"
real = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason="needs the real faces and voices"),
]


def some(source: Path, table: str, target: Path, n: int) -> Path:
    """Copy the first n women and men of a source."""
    target.mkdir()
    with (source / table).open() as file:
        rows = list(csv.DictReader(file))
    column = "person" if table == "people.csv" else "speaker"
    chosen = [r for sex in "FM" for r in [row for row in rows if row["sex"] == sex][:n]]
    for row in chosen:
        shutil.copytree(source / row[column], target / row[column])
    lines = [f"{column},sex", *(f"{row[column]},{row['sex']}" for row in chosen)]
    (target / table).write_text("\n".join(lines))
    return target


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sources")
    faces = some(DATA / "faces", "people.csv", folder / "faces", 10)
    return faces, some(DATA / "voices", "speakers.csv", folder / "voices", 10)


@pytest.fixture(scope="module")
def tree(sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "tree"
    demo.prepare_demo(*sources, out, identities=4)
    return out


class TestRecipe:
    pytestmark = real

    def test_the_trees_can_be_trained_on(self, tree: Path) -> None:
        faces = FaceDataset(layout.split(tree / "faces", "train"), landmarks=189)
        assert faces.registered
        assert len(faces) == 4 + 2 * 16 * 2  # mixes, and two photos of people and their mirrors
        for split, n in (("train", 14), ("val", 2), ("test", 4)):
            speakers, left_out = layout.speakers(layout.split(tree / "voices", split))
            assert len(speakers) == n and not any(left_out.values())

    def test_nobody_is_in_two_splits(self, tree: Path, sources: tuple[Path, Path]) -> None:
        for kind, table, source in (
            ("faces", "people.csv", sources[0]),
            ("voices", "speakers.csv", sources[1]),
        ):
            splits = [
                {path.name.rstrip("m") for path in (tree / kind / split).iterdir()}
                for split in ("train", "val", "test")
            ]
            assert not splits[0] & splits[2] and not splits[1] & splits[2]
            assert splits[2] == set(demo.kept_out(source / table))
            if kind == "voices":
                assert splits[1] == set(demo.kept_out(source / table, "val"))

    def test_a_real_person_is_there_in_one_view_of_each_photo(self, tree: Path) -> None:
        real = [path for path in (tree / "faces/train").iterdir() if path.name[:3] != "mix"]
        assert len(real) == 2 * 16
        for person in [*real, *(tree / "faces/test").iterdir()]:
            assert sorted(path.name for path in person.iterdir()) == [
                "neutral.jpg",
                "neutral_landmarks.npy",
                "neutral_template.npy",
                "neutral_texture.jpg",
                "smiling.jpg",
            ]

    def test_most_mixes_have_the_texture_of_one_person(self, tree: Path) -> None:
        def textures(folders: list[Path]) -> NDArray[np.float32]:
            return np.stack(
                [
                    np.asarray(Image.open(f / "neutral_texture.jpg").reduce(4), np.float32)
                    for f in folders
                ]
            )

        train = sorted((tree / "faces/train").iterdir())
        real = textures([path for path in train if path.name[:3] != "mix"])
        mixes = [path for path in train if path.name[:3] == "mix"]
        mixes += sorted((tree / "faces/val").iterdir())
        assert len(mixes) == 4 + demo.VAL_IDENTITIES
        nearest = np.array([np.abs(real - one).mean((1, 2, 3)).min() for one in textures(mixes)])
        mixed, whole = np.split(nearest.reshape(13, 8), [2], axis=1)  # in the recipe's order
        assert whole.max() < 0.5  # of 255
        assert (mixed > 2).mean() > 0.9  # now and then somebody is mixed with the same person

    def test_the_space_of_the_recipe_can_be_had_without_its_trees(
        self, tree: Path, sources: tuple[Path, Path]
    ) -> None:
        space = demo.training_space(sources[0])
        real = [p for p in (tree / "faces/train").iterdir() if p.name[:3] != "mix"]
        shapes = np.stack([np.load(path / "neutral_template.npy") for path in real])
        np.testing.assert_allclose(space.mean_shape, shapes.mean(0), atol=1e-3)
        assert len(space.textures) == len(real)

    def test_the_recipe_gives_the_same_tree_again(
        self, tree: Path, sources: tuple[Path, Path], tmp_path: Path
    ) -> None:
        demo.prepare_demo(*sources, tmp_path / "again", identities=4)
        first, again = (
            {p.relative_to(t): p.read_bytes() for p in t.rglob("*") if p.is_file()}
            for t in (tree, tmp_path / "again")
        )
        assert first == again

    def test_more_identities_change_neither_splits_nor_voices(
        self, tree: Path, sources: tuple[Path, Path], tmp_path: Path
    ) -> None:
        demo.prepare_demo(*sources, tmp_path / "more", identities=8)
        for part in ("voices", "faces/test"):
            first, more = (
                {p.relative_to(t): p.read_bytes() for p in (t / part).rglob("*") if p.is_file()}
                for t in (tree, tmp_path / "more")
            )
            assert first == more

    def test_an_existing_tree_is_refused(self, tree: Path, sources: tuple[Path, Path]) -> None:
        with pytest.raises(UsageError, match="exists already"):
            demo.prepare_demo(*sources, tree)

    def test_an_interrupted_recipe_leaves_nothing(
        self, sources: tuple[Path, Path], tmp_path: Path
    ) -> None:
        def stop(done: int, total: int, what: str) -> None:
            if done > 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            demo.prepare_demo(*sources, tmp_path / "out", identities=4, progress=stop)
        assert list(tmp_path.iterdir()) == []


def test_a_source_without_its_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"people\.csv: cannot be read"):
        demo.prepare_demo(tmp_path, tmp_path, tmp_path / "out")


def test_a_table_without_its_columns_is_named(tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text("name\nann\n")
    with pytest.raises(DatasetError, match=r"has columns name; wanted person, sex"):
        demo.prepare_demo(tmp_path, tmp_path, tmp_path / "out")


def test_a_sex_that_the_recipe_cannot_pair_is_named(tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text("person,sex\nann,female\n")
    with pytest.raises(DatasetError, match="column sex holds female; wanted F or M"):
        demo.prepare_demo(tmp_path, tmp_path, tmp_path / "out")
