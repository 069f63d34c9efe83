"""The recipe of the bundled model, on made people and voices whose properties are known."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_photo
from demo_sources import MEAN, shrink_recipe, tone, write_sources
from trees import contents

from s2f import Waveform, audio, demo, landmarks, layout
from s2f.appearance_model import PartsEncoder, PartsEncoderConfig
from s2f.demo import FaceSpace, PhotographedPeople, mirror_order, train_demo
from s2f.errors import DatasetError, UsageError
from s2f.face_data import FaceDataset
from s2f.images import PREPROCESSING
from s2f.pipeline import SpeechToFace
from s2f.speaker_encoder import ATTRIBUTES
from s2f.train import TrainConfig

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folk(n: int = 40) -> PhotographedPeople:
    """People of two sexes: men have wider faces and darker photos."""
    sexes = np.array(["F", "M"] * (n // 2))
    width = np.where(sexes == "M", 1.05, 0.95) + RNG.normal(0, 0.01, n)
    shapes = np.repeat(MEAN[None], n, axis=0) + RNG.normal(0, 0.5, (n, 189, 2))
    shapes[..., 0] = (shapes[..., 0] - 111.5) * width[:, None] + 111.5
    photos = RNG.integers(0, 40, (n, 2, 3, 224, 224))
    photos += np.where(sexes == "M", 60, 160)[:, None, None, None, None]
    photos[..., :20] = photos[..., 204:] = 215  # the wall
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


def test_a_person_is_cut_out_of_a_photo_and_their_colours_go_on_beyond_the_outline():
    """A brown disc with a neck and a soft edge, before a wall that gets darker downwards."""
    points = np.full((189, 2), 110.0)
    turn = np.radians(np.linspace(-150, 150, len(demo._OUTLINE)))
    points[list(demo._OUTLINE)] += 58 * np.stack([np.sin(turn), -np.cos(turn)], 1)
    shape = torch.from_numpy(points).float()
    y, x = np.mgrid[:224, :224]
    depth = np.maximum(60 - np.hypot(x - 110, y - 110), np.minimum(30 - abs(x - 110), y - 110))
    alpha = np.clip(depth / 3 + 0.5, 0, 1)
    wall = (0.9 - 0.1 * y / 224) * np.ones((3, 1, 1))
    brown = np.array([0.45, 0.3, 0.2])[:, None, None]
    photo = torch.from_numpy(alpha * brown + (1 - alpha) * wall).float()
    cut = demo.cut_out(photo, shape)
    assert np.abs(cut[3].numpy() - alpha).max() < 0.3
    assert np.abs(cut[3].numpy() - alpha).mean() < 0.005
    assert np.abs(cut[:3].numpy() - brown).max() < 0.05
    distance = demo.outline_distance(cut[3].numpy())
    near = (np.abs(depth) < 12) & (y < 110)
    np.testing.assert_allclose(distance[near], depth[near], atol=1)
    with pytest.raises(DatasetError, match="no plain and pale wall"):
        demo.cut_out(torch.zeros(3, 224, 224), shape)


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


def test_the_outline_of_a_face_that_exaggerates_lies_between_those_of_people(space):
    weights = space.voiced("M", 0.0, np.full(4, 2.0), RNG)
    assert weights[0].min() < 0
    texture = space.render(weights)[0]
    every = space.textures[:, 3]
    assert (texture[3] >= every.amin(0) - 1e-5).all() and (texture[3] <= every.amax(0) + 1e-5).all()
    # the colours are exaggerated
    exact = torch.einsum("n,nchw->chw", torch.from_numpy(weights[0]).float(), space.textures[:, :3])
    torch.testing.assert_close(texture[:3], exact.clamp(0, 1))


def test_shapes_whose_chins_lie_below_the_frame_come_nearer_to_the_mean():
    encoder = PartsEncoder(PartsEncoderConfig(), PREPROCESSING["compact"])
    encoder.mean_landmarks.copy_(torch.from_numpy(MEAN))
    encoder.shape_axes[0] = 1.0  # a unit moves all points by a pixel, down and right
    usual = float(landmarks.to_68(MEAN)[:, 1].max())
    codes = torch.ones(3, 1024)
    codes[:, -44:] = 0
    codes[:, -44] = torch.tensor([-5.0, demo.LOWEST - usual - 1, demo.LOWEST - usual + 50])
    within = demo.within_frame(codes, encoder)
    assert torch.equal(within[:2], codes[:2]) and torch.equal(within[:, :-44], codes[:, :-44])
    assert within[2, -44].item() == pytest.approx(demo.LOWEST - usual, abs=1e-3)


def test_pitch_is_the_frequency():
    assert demo.median_pitch(tone(150)) == pytest.approx(150, rel=0.01)


def test_timbre_is_even_free_of_sex_and_pitch_and_of_who_was_not_fitted():
    rng = np.random.default_rng(0)
    sexes = np.array(["F", "M"] * 100)
    pitch = np.where(sexes == "F", 2, 1) * rng.uniform(80, 125, 200)  # Hz, that timbres follow
    heard = rng.standard_normal((200, 40)) * np.linspace(3, 1, 40) + 10 * np.log(pitch)[:, None]
    heard[sexes == "M"] += 20
    scores = demo.timbre_scores(heard, sexes, pitch, np.arange(200))
    assert scores.shape == (200, demo.TIMBRE_AXES)
    for sex in "FM":
        of = sexes == sex
        np.testing.assert_allclose(scores[of].mean(0), 0, atol=0.05)
        np.testing.assert_allclose(scores[of].std(0), 1, atol=0.05)
        for axis in scores[of].T:
            assert abs(np.corrcoef(axis, np.log(pitch[of]))[0, 1]) < 0.1
    some = [demo.timbre_scores(heard[:n], sexes[:n], pitch[:n], np.arange(40)) for n in (60, 50)]
    np.testing.assert_allclose(some[0][:50], some[1])


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(autouse=True, scope="module")
def few() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        shrink_recipe(patch)
        yield


@pytest.fixture(scope="module")
def tree(sources: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "tree"
    report = demo.prepare_demo(*sources, out, identities=4)
    assert report.out == out
    assert report.faces == {"train": 28, "val": 12, "test": 2}
    assert report.voices == {"train": 10, "val": 2, "test": 2}
    return out


def test_the_trees_can_be_trained_on_and_nobody_is_in_two_splits(tree, sources):
    faces = FaceDataset(layout.split(tree / "faces", "train"), landmarks=189)
    assert faces.registered and faces.cut_out
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
        demo.read_photographed(tmp_path)


def test_a_person_without_the_whole_template_is_named(tmp_path):
    (tmp_path / "people.csv").write_text("person,sex\nann,F\n")
    for view in ("neutral", "smiling"):
        write_photo(tmp_path / "ann" / f"{view}.jpg")
    with pytest.raises(DatasetError, match=r"neutral_template\.npy: no such file"):
        demo.read_photographed(tmp_path)
    np.save(tmp_path / "ann/neutral_template.npy", np.zeros((68, 2)))
    with pytest.raises(DatasetError, match=r"neutral_template\.npy: .*an array \[68, 2\]"):
        demo.read_photographed(tmp_path)


def test_the_trees_become_a_model_that_is_made_once(presets, faces, tree, tmp_path, monkeypatch):
    data, out, cpu = tmp_path / "data", tmp_path / "out", torch.device("cpu")
    data.mkdir()
    with pytest.raises(DatasetError, match="has no folder faces"):
        train_demo(data, out, device=cpu)
    assert not out.exists()
    monkeypatch.setattr(demo, "FACES", TrainConfig(steps=2, batch_size=2, every=1))
    (data / "faces").symlink_to(faces)  # those of the tree have no face's landmarks
    for name in ("voices", "imagined", "speaker.safetensors"):
        (data / name).symlink_to(tree / name)
    made = train_demo(data, out, device=cpu)
    model = SpeechToFace.load(made.model, device="cpu")
    photo = next((faces / "val").rglob("*.jpg"))
    assert model.reconstruct(photo, align=False).landmarks.shape == (68, 2)
    face = model.generate(Waveform(tone(150), audio.SAMPLE_RATE))
    assert list(face.voice) == list(ATTRIBUTES) and 0 <= face.voice["male"] <= 1
    files = contents(made.model)
    heard = {path: path.stat().st_mtime_ns for path in (out / "voice/heard").iterdir()}
    again = train_demo(data, out, device=cpu)
    assert len(heard) == demo.ROUNDS
    assert all(path.stat().st_mtime_ns == time for path, time in heard.items())
    assert again.encoder.samples_per_second == 0
    assert contents(again.model) == files


def more(folder: Path, n: int = 10) -> Path:
    """Write a table of n women, men and children each of two sources, a recording each."""
    rows = ["file,speaker,sex,age,seconds,source"]
    for source in ("phones", "rooms"):
        for k in range(3 * n):
            age = 9 if k % 3 == 2 else ""
            name = f"{source}{k:02d}"
            rows.append(f"{source}/{name}.flac,{name},{'FMF'[k % 3]},{age},5,x/{source}")
    rows.append("rooms/short.flac,short,F,,1.0,x/rooms")
    folder.mkdir()
    (folder / "speakers.csv").write_text("\n".join(rows))
    return folder


def test_of_each_source_women_men_and_children_are_kept_out(tmp_path):
    people = demo.read_speakers(more(tmp_path / "more"))
    assert len(people) == 60  # without the one whose only recording is too short
    for source in ("phones", "rooms"):
        for kind in "FMC":
            splits = [w.split for w in people if (w.source, w.kind) == (source, kind)]
            assert Counter(splits) == {"train": 5, "val": 2, "test": 3}
    kept = demo.kept_out(tmp_path / "more/speakers.csv")
    assert set(kept) == {who.name for who in people if who.split == "test"}


def clips_of(rng: np.random.Generator, n: int = 600, ambiguous: float = 0.0) -> demo.HeardClips:
    """Clips whose features 0, 1, 2 and 3 are sex, voice, pitch and timbre, with noise."""
    kind = rng.choice(list("FMC0"), n, p=[0.35, 0.35, 0.1, 0.2])
    male = np.where(kind == "M", 1.0, np.where(kind == "F", -1.0, 0.0))
    pitch = rng.normal(5, 0.15, n)
    move, timbre = rng.choice([0, 0.2], n), rng.normal(0, 1, (n, demo.TIMBRE_AXES))
    features = rng.normal(0, 0.02, (n, 32))
    sexed = male + ambiguous * rng.standard_normal(n)
    features[:, 0] += sexed
    features[:, 1] += kind == "0"
    features[:, 2] += pitch + move
    features[:, 3 : 3 + demo.TIMBRE_AXES] += timbre
    features[:, 20] += kind == "C"
    features[:, 21:] += sexed[:, None]
    split, source = np.where(np.arange(n) % 2, "train", "val"), np.full(n, "made")
    return demo.HeardClips(features, kind, split, source, pitch, move, timbre)


def test_what_is_said_of_a_voice_is_what_it_is():
    network = demo.AttributeEncoder(demo.AttributeEncoderConfig(width=16)).requires_grad_(False)
    clips = clips_of(np.random.default_rng(0))
    figures = demo.fit_attributes(network, clips)
    for sex in ("women", "men"):
        assert figures[f"validation: sex of {sex}"] == 1
        assert figures[f"validation: pitch of {sex} (rank correlation)"] > 0.9
    assert figures["validation: voice told from noise and music"] > 0.98
    assert figures["validation: timbre explained"] > 0.5  # held back by the ridge
    said = network.attributes(torch.from_numpy(clips.features).float()).numpy()
    voice = clips.kind != "0"
    error = np.log(said[voice, 2]) - (clips.log_pitch + clips.move)[voice]
    assert np.abs(error).mean() < 0.06
    assert ((said[:, 1] > 0.5) == voice).mean() > 0.98
    women, children, men = (said[clips.kind == kind, 0] for kind in "FCM")
    assert women.max() < 0.2 and men.min() > 0.8
    assert women.mean() + 0.1 < children.mean() < men.mean() - 0.1


def test_it_is_as_sure_as_it_is_right():
    network = demo.AttributeEncoder(demo.AttributeEncoderConfig(width=16)).requires_grad_(False)
    figures = demo.fit_attributes(network, clips_of(np.random.default_rng(1), 4000, ambiguous=1.0))
    right = np.mean([figures[f"validation: sex of {sex}"] for sex in ("women", "men")])
    assert 0.75 < right < 0.92  # normal distributions, two deviations apart: 0.84
    assert figures["validation: error of confidence"] < 0.05


def test_a_source_without_children_has_none():
    network = demo.AttributeEncoder(demo.AttributeEncoderConfig(width=16)).requires_grad_(False)
    clips = clips_of(np.random.default_rng(2))
    rows = clips.kind != "C"
    clips = demo.HeardClips(*(part[rows] for part in clips))
    figures = demo.fit_attributes(network, clips)
    assert figures["validation: sex of women"] == figures["validation: sex of men"] == 1
