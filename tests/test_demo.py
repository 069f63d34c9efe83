"""The recipe of the bundled model, on made people and voices whose properties are known."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import write_photo
from PIL import Image

from s2f import audio, demo, layout
from s2f.demo import (
    MASCULINITY_SPREAD,
    SEX_MARGIN,
    FaceSpace,
    PhotographedPeople,
    mirror_order,
    on_background,
    train_demo,
)
from s2f.errors import DatasetError, UsageError
from s2f.face_data import FaceDataset
from s2f.pipeline import SpeechToFace
from s2f.train import TrainConfig

RNG = np.random.default_rng(0)


# Symmetric about x = 111.5: 94 pairs of points and one in the middle.
RIGHT = RNG.uniform((115, 20), (200, 200), (94, 2))
MEAN = np.concatenate([RIGHT, [[111.5, 100]], [223, 0] + RIGHT * [-1, 1]]).astype(np.float32)


def people(n: int = 40) -> PhotographedPeople:
    """People of two sexes: men have wider faces and darker photos."""
    sexes = np.array(["F", "M"] * (n // 2))
    width = np.where(sexes == "M", 1.05, 0.95) + RNG.normal(0, 0.01, n)
    shapes = np.repeat(MEAN[None], n, axis=0) + RNG.normal(0, 0.5, (n, 189, 2))
    shapes[..., 0] = (shapes[..., 0] - 111.5) * width[:, None] + 111.5
    photos = RNG.integers(0, 40, (n, 2, 3, 224, 224))
    photos += np.where(sexes == "M", 60, 160)[:, None, None, None, None]
    return PhotographedPeople(
        [str(k) for k in range(n)],
        sexes,
        torch.from_numpy(photos.astype(np.uint8)),
        torch.from_numpy(shapes.astype(np.float32)),
    )


@pytest.fixture(scope="module")
def folk() -> PhotographedPeople:
    return people()


@pytest.fixture(scope="module")
def space(folk: PhotographedPeople) -> FaceSpace:
    return FaceSpace(folk, folk.shapes.mean(0))


def test_a_mirror_twice_is_no_mirror(folk: PhotographedPeople) -> None:
    order, few = mirror_order(MEAN), folk.subset(np.arange(4))
    both = few.with_mirrored(order)
    assert both.names == ["0", "1", "2", "3", "0m", "1m", "2m", "3m"]
    twice = both.subset(np.arange(4, 8)).with_mirrored(order).subset(np.arange(4, 8))
    assert torch.equal(twice.photos, few.photos)
    torch.testing.assert_close(twice.shapes, few.shapes)


def test_partners_in_the_mirror_are_found() -> None:
    order = mirror_order(MEAN)
    np.testing.assert_array_equal(order, [*range(95, 189), 94, *range(94)])


def test_templates_that_are_not_symmetric_are_refused() -> None:
    lopsided = MEAN.copy()
    lopsided[:95, 1] += RNG.normal(0, 60, 95)
    with pytest.raises(DatasetError, match="not symmetric"):
        mirror_order(lopsided)


@pytest.mark.parametrize("sex", ["F", "M"])
def test_weights_of_mixes_and_draws_sum_to_one_within_the_sex(space: FaceSpace, sex: str) -> None:
    other = space.of_sex("F" if sex == "M" else "M")
    for weights in (space.mix(sex, RNG), space.draw(sex, RNG, 0.8)):
        np.testing.assert_allclose(weights.sum(1), 1)
        assert (weights[:, other] == 0).all()
    assert (space.mix(sex, RNG) >= 0).all()


def test_men_are_more_masculine_than_women(space: FaceSpace) -> None:
    women, men = (space.masculinity[space.of_sex(sex)] for sex in "FM")
    assert women.max() < men.min()


@pytest.mark.parametrize("sex", ["F", "M"])
def test_the_higher_the_voice_the_less_masculine_its_face(space: FaceSpace, sex: str) -> None:
    timbre = np.zeros(4)
    scores = [
        float(space.masculinity @ space.voiced(sex, rank, timbre, RNG)[0])
        for rank in (0.0, 0.3, 0.7, 1.0)
    ]
    real = space.masculinity[space.of_sex(sex)]
    expected = np.quantile(real, [1.0, 0.7, 0.3, 0.0]) - np.median(real)
    found = np.array(scores) - np.median(real)
    assert found[0] > found[1] > found[2] > found[3]
    # And all by as much further from the other sex.
    women, men = (space.masculinity[space.of_sex(each)].mean() for each in "FM")
    margin = SEX_MARGIN * (men - women) * (1 if sex == "M" else -1)
    np.testing.assert_allclose(found, MASCULINITY_SPREAD * expected + margin, rtol=1e-6)


def test_different_timbres_get_different_faces_of_the_same_masculinity(space: FaceSpace) -> None:
    a, b = (space.voiced("F", 0.5, RNG.standard_normal(4), RNG) for _ in range(2))
    assert np.abs(a - b).max() > 0.01
    np.testing.assert_allclose(space.masculinity @ a[0], space.masculinity @ b[0], rtol=1e-6)


def test_a_person_alone_is_drawn_as_the_person(space: FaceSpace) -> None:
    weights = np.zeros((2, 40))
    weights[:, 3] = 1
    texture, shape, photo = space.render(weights)
    torch.testing.assert_close(texture, space.textures[3])
    torch.testing.assert_close(shape, space.shapes[3])
    assert photo.shape == (3, 224, 224)


def test_what_is_outside_the_outline_becomes_the_plain_background() -> None:
    textures = on_background(torch.zeros(1, 3, 224, 224), torch.from_numpy(MEAN))
    np.testing.assert_allclose(textures[0, :, 0, 0], (0.845, 0.858, 0.855), rtol=1e-4)


def tone(pitch: float, harmonics: int = 8) -> np.ndarray:
    """A waveform [n] of two seconds."""
    t = np.arange(32_000) / audio.SAMPLE_RATE
    parts = [np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, harmonics + 1)]
    return (sum(parts) * 0.1).astype(np.float32)


def test_the_pitch_of_a_tone_is_its_frequency() -> None:
    assert demo.median_pitch(tone(150)) == pytest.approx(150, rel=0.01)


def test_a_brighter_tone_has_more_of_the_upper_spectrum() -> None:
    dull, bright = (demo.timbre_of(tone(150, harmonics)) for harmonics in (2, 20))
    assert dull.shape == bright.shape == (128,)
    assert bright[64:].mean() > dull[64:].mean()


def test_silence_between_words_does_not_change_the_timbre() -> None:
    speech = tone(150)
    paused = np.concatenate([speech, np.zeros(len(speech) // 2, np.float32)])
    a, b = demo.timbre_of(speech), demo.timbre_of(paused)
    assert np.abs(a - b).mean() < 0.1 * a.std()


def voices(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Timbres [n 128] that follow pitch in part, and pitches [n], Hz."""
    rng = np.random.default_rng(0)
    pitch = rng.uniform(80, 250, n)
    return rng.standard_normal((n, 128)) + 10 * np.log(pitch)[:, None], pitch


def test_scores_of_timbre_are_normal_and_free_of_pitch() -> None:
    timbres, pitch = voices(200)
    scores = demo.normal_scores(timbres, pitch, np.arange(200))
    assert scores.shape == (200, demo.TIMBRE_AXES)
    np.testing.assert_allclose(scores.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(scores.std(0), 1, atol=0.05)
    for axis in scores.T:
        assert abs(np.corrcoef(axis, np.log(pitch))[0, 1]) < 0.1


def test_a_score_does_not_depend_on_who_else_was_not_fitted() -> None:
    timbres, pitch = voices(60)
    fitted = np.arange(40)
    all_of_them = demo.normal_scores(timbres, pitch, fitted)
    fewer = demo.normal_scores(timbres[:50], pitch[:50], fitted)
    np.testing.assert_allclose(all_of_them[:50], fewer)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Seven women and men, smooth pictures with templates, and as many voices, which are tones."""
    folder, rng = tmp_path_factory.mktemp("sources"), np.random.default_rng(1)
    people, speakers = ["person,sex"], ["speaker,sex"]
    for k in range(14):
        person, sex = folder / f"faces/{k:03d}", "FM"[k % 2]
        person.mkdir(parents=True)
        for view in ("neutral", "smiling"):
            shades = rng.integers(60 * (k % 2), 190 + 60 * (k % 2), (4, 4, 3), dtype=np.uint8)
            face = Image.fromarray(shades).resize((256, 256), Image.Resampling.BICUBIC)
            face.save(person / f"{view}.jpg", quality=95)
        template = (MEAN + rng.normal(0, 1, MEAN.shape)) * 256 / 224
        np.save(person / "neutral_template.npy", template.astype(np.float32))
        voice = folder / f"voices/{100 + k}"
        voice.mkdir(parents=True)
        pitch = rng.uniform(150, 250) if sex == "F" else rng.uniform(80, 140)
        soundfile.write(voice / "a.wav", tone(pitch, harmonics=4 + k), audio.SAMPLE_RATE)
        people.append(f"{person.name},{sex}")
        speakers.append(f"{voice.name},{sex}")
    (folder / "faces/people.csv").write_text("\n".join(people))
    (folder / "voices/speakers.csv").write_text("\n".join(speakers))
    return folder / "faces", folder / "voices"


@pytest.fixture(autouse=True, scope="module")
def few() -> Iterator[None]:
    """Fewer synthetic people for validation than the recipe makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "VAL_IDENTITIES", 12)
        yield


@pytest.fixture(scope="module")
def tree(sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "tree"
    report = demo.prepare_demo(*sources, out, identities=4)
    assert report.out == out
    assert report.faces == {"train": 28, "val": 12, "test": 2}
    assert report.voices == {"train": 10, "val": 2, "test": 2}
    return out


def contents(tree: Path, part: str = "") -> dict[Path, bytes]:
    return {p.relative_to(tree): p.read_bytes() for p in (tree / part).rglob("*") if p.is_file()}


def test_the_trees_can_be_trained_on(tree: Path) -> None:
    faces = FaceDataset(layout.split(tree / "faces", "train"), landmarks=189)
    assert faces.registered
    assert len(faces) == 4 + 2 * 12 * 2  # mixes, and two photos of people and their mirrors
    for split, n in (("train", 10), ("val", 2), ("test", 2)):
        speakers, left_out = layout.speakers(layout.split(tree / "voices", split))
        assert len(speakers) == n and not any(left_out.values())


def test_nobody_is_in_two_splits(tree: Path, sources: tuple[Path, Path]) -> None:
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


def test_a_real_person_is_there_in_one_view_of_each_photo(tree: Path) -> None:
    real = [path for path in (tree / "faces/train").iterdir() if path.name[:3] != "mix"]
    assert len(real) == 2 * 12
    for person in [*real, *(tree / "faces/test").iterdir()]:
        assert sorted(path.name for path in person.iterdir()) == [
            "neutral.jpg",
            "neutral_landmarks.npy",
            "neutral_template.npy",
            "neutral_texture.jpg",
            "smiling.jpg",
        ]


def test_most_mixes_have_the_texture_of_one_person(tree: Path) -> None:
    def textures(folders: list[Path]) -> np.ndarray:
        opened = [Image.open(folder / "neutral_texture.jpg").reduce(4) for folder in folders]
        return np.stack([np.asarray(texture, np.float32) for texture in opened])

    train = sorted((tree / "faces/train").iterdir())
    real = textures([path for path in train if path.name[:3] != "mix"])
    mixes = [path for path in train if path.name[:3] == "mix"]
    mixes += sorted((tree / "faces/val").iterdir())
    nearest = np.array([np.abs(real - one).mean((1, 2, 3)).min() for one in textures(mixes)])
    mixed, whole = np.split(nearest.reshape(2, 8), [2], axis=1)  # in the recipe's order
    assert whole.max() < 0.5 < mixed.min()  # of 255


def test_the_space_of_the_recipe_can_be_had_without_its_trees(
    tree: Path, sources: tuple[Path, Path]
) -> None:
    space = demo.training_space(sources[0])
    real = [p for p in (tree / "faces/train").iterdir() if p.name[:3] != "mix"]
    shapes = np.stack([np.load(path / "neutral_template.npy") for path in real])
    np.testing.assert_allclose(space.mean_shape, shapes.mean(0), atol=1e-3)
    assert len(space.textures) == len(real)


def test_the_same_tree_again_and_more_identities_change_neither_splits_nor_voices(
    tree: Path, sources: tuple[Path, Path], tmp_path: Path
) -> None:
    demo.prepare_demo(*sources, tmp_path / "again", identities=4)
    assert contents(tree) == contents(tmp_path / "again")
    demo.prepare_demo(*sources, tmp_path / "more", identities=6)
    for part in ("voices", "faces/test"):
        assert contents(tree, part) == contents(tmp_path / "more", part)


def test_an_existing_tree_is_refused(tree: Path, sources: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="exists already"):
        demo.prepare_demo(*sources, tree)


def test_an_interrupted_recipe_leaves_nothing(sources: tuple[Path, Path], tmp_path: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        assert done < total
        if done > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.prepare_demo(*sources, tmp_path / "out", identities=4, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (None, r"people\.csv: cannot be read"),
        ("name\nann\n", "of columns name; wanted person, sex"),
        ("person,sex\n", "has 0 rows"),
        ("person,sex\nann,female\n", "column sex holds female; wanted F or M"),
    ],
)
def test_a_table_that_the_recipe_cannot_use_is_named(
    tmp_path: Path, table: str | None, said: str
) -> None:
    if table is not None:
        (tmp_path / "people.csv").write_text(table)
    with pytest.raises(DatasetError, match=said):
        demo.prepare_demo(tmp_path, tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("template", "said"), [(None, "no such file"), (np.zeros((68, 2)), r"an array \[68, 2\]")]
)
def test_a_person_without_the_whole_template_is_named(
    tmp_path: Path, template: np.ndarray | None, said: str
) -> None:
    (tmp_path / "people.csv").write_text("person,sex\nann,F\n")
    for view in ("neutral", "smiling"):
        write_photo(tmp_path / "ann" / f"{view}.jpg")
    if template is not None:
        np.save(tmp_path / "ann/neutral_template.npy", template)
    with pytest.raises(DatasetError, match=rf"neutral_template\.npy: .*{said}"):
        demo.read_photographed(tmp_path)


CPU = torch.device("cpu")


def test_two_trees_become_a_model_and_are_not_learned_from_again(
    presets: None, faces: Path, voices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = TrainConfig(steps=2, batch_size=2, every=1)
    monkeypatch.setattr(demo, "FACES", short)
    monkeypatch.setattr(demo, "VOICES", short)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/faces").symlink_to(faces)
    (tmp_path / "data/voices").symlink_to(voices)
    made = train_demo(tmp_path / "data", tmp_path / "out", device=CPU)
    photo = next((faces / "val").rglob("*.jpg"))
    face = SpeechToFace.load(made.model, device="cpu").reconstruct(photo, align=False)
    assert face.landmarks.shape == (68, 2)
    files = {path.name: path.read_bytes() for path in made.model.iterdir()}
    again = train_demo(tmp_path / "data", tmp_path / "out", device=CPU)
    assert again.encoder.samples_per_second == again.voice.samples_per_second == 0
    assert {path.name: path.read_bytes() for path in again.model.iterdir()} == files


def test_a_tree_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no folder faces"):
        train_demo(tmp_path, tmp_path / "out", device=CPU)
    assert not (tmp_path / "out").exists()
