"""The recipe of the bundled model, on made people and voices whose properties are known."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import write_photo
from PIL import Image
from trees import contents

from s2f import audio, demo, layout
from s2f.demo import FaceSpace, PhotographedPeople, mirror_order, train_demo
from s2f.errors import DatasetError, UsageError
from s2f.face_data import FaceDataset
from s2f.pipeline import SpeechToFace
from s2f.train import TrainConfig

RNG = np.random.default_rng(0)
# Symmetric about x = 111.5: 94 pairs of points and one in the middle.
RIGHT = RNG.uniform((115, 20), (200, 200), (94, 2))
MEAN = np.concatenate([RIGHT, [[111.5, 100]], [223, 0] + RIGHT * [-1, 1]]).astype(np.float32)


@pytest.fixture(scope="module")
def folk(n: int = 40) -> PhotographedPeople:
    """People of two sexes: men have wider faces and darker photos."""
    sexes = np.array(["F", "M"] * (n // 2))
    width = np.where(sexes == "M", 1.05, 0.95) + RNG.normal(0, 0.01, n)
    shapes = np.repeat(MEAN[None], n, axis=0) + RNG.normal(0, 0.5, (n, 189, 2))
    shapes[..., 0] = (shapes[..., 0] - 111.5) * width[:, None] + 111.5
    photos = RNG.integers(0, 40, (n, 2, 3, 224, 224))
    photos += np.where(sexes == "M", 60, 160)[:, None, None, None, None]
    tensors = torch.from_numpy(photos.astype(np.uint8)), torch.from_numpy(shapes).float()
    return PhotographedPeople([str(k) for k in range(n)], sexes, *tensors)


@pytest.fixture(scope="module")
def space(folk: PhotographedPeople) -> FaceSpace:
    return FaceSpace(folk, folk.shapes.mean(0))


def test_a_mirror_twice_is_no_mirror(folk):
    order, few = mirror_order(MEAN), folk.subset(np.arange(4))
    np.testing.assert_array_equal(order, [*range(95, 189), 94, *range(94)])
    both = few.with_mirrored(order)
    assert both.names == ["0", "1", "2", "3", "0m", "1m", "2m", "3m"]
    twice = both.subset(np.arange(4, 8)).with_mirrored(order).subset(np.arange(4, 8))
    assert torch.equal(twice.photos, few.photos)
    torch.testing.assert_close(twice.shapes, few.shapes)
    lopsided = MEAN + np.array([[0, y] for y in RNG.normal(0, 60, 189)], np.float32)
    with pytest.raises(DatasetError, match="not symmetric"):
        mirror_order(lopsided)


@pytest.mark.parametrize("sex", ["F", "M"])
def test_the_higher_the_voice_the_less_masculine_its_face(space, sex):
    women, men = (space.masculinity[space.of_sex(each)] for each in "FM")
    assert women.max() < men.min()
    faces = [space.voiced(sex, rank, np.zeros(4), RNG)[0] for rank in (0.0, 0.3, 0.7, 1.0)]
    real = women if sex == "F" else men
    expected = np.quantile(real, [1.0, 0.7, 0.3, 0.0]) - np.median(real)
    # And all by as much further from the other sex.
    margin = demo.SEX_MARGIN * (men.mean() - women.mean()) * (1 if sex == "M" else -1)
    found = np.array(faces) @ space.masculinity - np.median(real)
    assert (np.diff(found) < 0).all()
    np.testing.assert_allclose(found, demo.MASCULINITY_SPREAD * expected + margin, rtol=1e-6)


def tone(pitch: float, harmonics: int = 8) -> np.ndarray:
    """A waveform [n] of two seconds."""
    t = np.arange(32_000) / audio.SAMPLE_RATE
    parts = [np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, harmonics + 1)]
    return (sum(parts) * 0.1).astype(np.float32)


def test_pitch_is_the_frequency_and_timbre_the_spectrum_without_silence():
    assert demo.median_pitch(tone(150)) == pytest.approx(150, rel=0.01)
    dull, bright = (demo.timbre_of(tone(150, harmonics)) for harmonics in (2, 20))
    assert dull.shape == bright.shape == (128,)
    assert bright[64:].mean() > dull[64:].mean()
    paused = np.concatenate([tone(150), np.zeros(16_000, np.float32)])
    a, b = demo.timbre_of(tone(150)), demo.timbre_of(paused)
    assert np.abs(a - b).mean() < 0.1 * a.std()


def test_scores_of_timbre_are_normal_free_of_pitch_and_of_who_was_not_fitted():
    rng = np.random.default_rng(0)
    pitch = rng.uniform(80, 250, 200)  # Hz, that timbres follow in part
    timbres = rng.standard_normal((200, 128)) + 10 * np.log(pitch)[:, None]
    scores = demo.normal_scores(timbres, pitch, np.arange(200))
    assert scores.shape == (200, demo.TIMBRE_AXES)
    np.testing.assert_allclose(scores.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(scores.std(0), 1, atol=0.05)
    for axis in scores.T:
        assert abs(np.corrcoef(axis, np.log(pitch))[0, 1]) < 0.1
    of_60, of_50 = (demo.normal_scores(timbres[:n], pitch[:n], np.arange(40)) for n in (60, 50))
    np.testing.assert_allclose(of_60[:50], of_50)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Seven women and men, smooth pictures with templates, and as many voices, which are tones."""
    folder, rng = tmp_path_factory.mktemp("sources"), np.random.default_rng(1)
    people, speakers = ["person,sex"], ["speaker,sex"]
    for k in range(14):
        person, voice, sex = folder / f"faces/{k:03d}", folder / f"voices/{100 + k}", "FM"[k % 2]
        person.mkdir(parents=True)
        voice.mkdir(parents=True)
        for view in ("neutral", "smiling"):
            shades = rng.integers(60 * (k % 2), 190 + 60 * (k % 2), (4, 4, 3), dtype=np.uint8)
            face = Image.fromarray(shades).resize((256, 256), Image.Resampling.BICUBIC)
            face.save(person / f"{view}.jpg", quality=95)
        template = (MEAN + rng.normal(0, 1, MEAN.shape)) * 256 / 224
        np.save(person / "neutral_template.npy", template.astype(np.float32))
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


def test_the_trees_can_be_trained_on_and_nobody_is_in_two_splits(tree, sources):
    faces = FaceDataset(layout.split(tree / "faces", "train"), landmarks=189)
    assert faces.registered
    assert len(faces) == 4 + 2 * 12 * 2  # mixes, and two photos of people and their mirrors
    for split, n in (("train", 10), ("val", 2), ("test", 2)):
        speakers, left_out = layout.speakers(layout.split(tree / "voices", split))
        assert len(speakers) == n and not any(left_out.values())
    tables = {"faces": sources[0] / "people.csv", "voices": sources[1] / "speakers.csv"}
    for kind, table in tables.items():
        train, val, test = (
            {path.name.rstrip("m") for path in (tree / kind / split).iterdir()}
            for split in ("train", "val", "test")
        )
        assert not train & test and not val & test
        assert test == set(demo.kept_out(table))
        if kind == "voices":
            assert val == set(demo.kept_out(table, "val"))


def test_the_same_tree_again_and_more_people_change_no_split_and_no_voice(tree, sources, tmp_path):
    demo.prepare_demo(*sources, tmp_path / "again", identities=4)
    assert contents(tree) == contents(tmp_path / "again")
    demo.prepare_demo(*sources, tmp_path / "more", identities=6)
    for part in ("voices", "faces/test"):
        assert contents(tree / part) == contents(tmp_path / "more" / part)


def test_an_existing_tree_is_refused_and_an_interrupted_recipe_leaves_nothing(sources, tmp_path):
    with pytest.raises(UsageError, match="exists already"):
        demo.prepare_demo(*sources, tmp_path)

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
def test_a_table_that_the_recipe_cannot_use_is_named(tmp_path, table, said):
    if table is not None:
        (tmp_path / "people.csv").write_text(table)
    with pytest.raises(DatasetError, match=said):
        demo.prepare_demo(tmp_path, tmp_path, tmp_path / "out")


def test_a_person_without_the_whole_template_is_named(tmp_path):
    (tmp_path / "people.csv").write_text("person,sex\nann,F\n")
    for view in ("neutral", "smiling"):
        write_photo(tmp_path / "ann" / f"{view}.jpg")
    with pytest.raises(DatasetError, match=r"neutral_template\.npy: no such file"):
        demo.read_photographed(tmp_path)
    np.save(tmp_path / "ann/neutral_template.npy", np.zeros((68, 2)))
    with pytest.raises(DatasetError, match=r"neutral_template\.npy: .*an array \[68, 2\]"):
        demo.read_photographed(tmp_path)


def test_two_trees_become_a_model_that_is_made_once(presets, faces, voices, tmp_path, monkeypatch):
    data, out, cpu = tmp_path / "data", tmp_path / "out", torch.device("cpu")
    data.mkdir()
    with pytest.raises(DatasetError, match="has no folder faces"):
        train_demo(data, out, device=cpu)
    assert not out.exists()
    for name in ("FACES", "VOICES"):
        monkeypatch.setattr(demo, name, TrainConfig(steps=2, batch_size=2, every=1))
    (data / "faces").symlink_to(faces)
    (data / "voices").symlink_to(voices)
    made = train_demo(data, out, device=cpu)
    photo = next((faces / "val").rglob("*.jpg"))
    face = SpeechToFace.load(made.model, device="cpu").reconstruct(photo, align=False)
    assert face.landmarks.shape == (68, 2)
    files = contents(made.model)
    again = train_demo(data, out, device=cpu)
    assert again.encoder.samples_per_second == again.voice.samples_per_second == 0
    assert contents(again.model) == files
