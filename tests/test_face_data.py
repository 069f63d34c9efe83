"""Photos as items, faces that look alike, and drawings that are registered; on small made trees."""

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DECODER, STAGED, some_landmarks
from face_trees import write_face, write_tree
from line_task import Two
from PIL import Image
from task_checks import CPU, batch_of
from torch.nn import functional

from s2f import face_data, files, layout
from s2f.appearance_model import GROUND_COLOUR
from s2f.dataloader import Key
from s2f.embeddings import Maker
from s2f.errors import CheckpointError, DatasetError, ImageError
from s2f.face_data import FaceData, FaceDataset, index_faces, nearest, verify_index
from s2f.face_decoder import FaceDecoder
from s2f.images import load_face
from s2f.landmarks import MAP_72
from s2f.warp import warp

MAKER = Maker("the face encoder", 3, "squash", lambda photos: photos.mean((2, 3)) - 0.45)


def one(folder, landmarks=68, **options):
    """The first photo of a tree."""
    return FaceDataset(folder, landmarks=landmarks, **options)[Key(0, 0)]


def test_a_face_comes_with_landmarks_and_drawing(tmp_path):
    write_face(tmp_path / "a/0", seed=0)
    item = one(tmp_path)
    assert set(item) == {"face", "drawing", "landmarks", "identity", "own"}
    assert item["face"].shape == (3, 224, 224) and item["face"].dtype == torch.uint8
    assert torch.equal(item["drawing"], item["face"])  # nothing else is to be drawn
    np.testing.assert_array_equal(item["landmarks"], some_landmarks(0))
    Image.new("RGB", (224, 224)).save(tmp_path / "a/0_texture.jpg")
    item = one(tmp_path)
    assert item["drawing"].max() == 0 and item["face"].float().mean() > 50
    item = one(tmp_path, whole=True)
    assert torch.equal(item["drawing"], item["face"])
    Image.new("RGB", (224, 112), (200, 100, 50)).save(tmp_path / "a/0.jpg")
    item = one(tmp_path, whole=True, fit="letterbox")  # of the face, not of the drawing
    assert item["face"][:, :50].max() < 10 and item["face"][0, 60:160].min() > 190
    assert item["drawing"][0].min() > 190


def test_a_texture_comes_with_its_opacity_or_before_the_ground(tmp_path):
    write_face(tmp_path / "a/0", seed=0)
    Image.new("RGB", (224, 224), (200, 100, 50)).save(tmp_path / "a/0_texture.jpg")
    channel = Image.new("L", (224, 224), 255)
    channel.paste(0, (112, 0, 224, 224))
    channel.save(tmp_path / "a/0_opacity.jpg")
    with_it, without = (one(tmp_path, opacity=wanted)["drawing"] for wanted in (True, False))
    assert with_it.shape == (4, 224, 224) and with_it[3, 100, 50] > 250 > 5 > with_it[3, 100, 200]
    assert with_it[0, 100, 200] == pytest.approx(200, abs=3)
    assert without.shape == (3, 224, 224)
    assert without[:, 100, 50].tolist() == pytest.approx([200, 100, 50], abs=3)
    ground = [255 * value for value in GROUND_COLOUR]
    assert without[:, 100, 200].tolist() == pytest.approx(ground, abs=1)
    write_face(tmp_path / "b/0", seed=0, texture=True)
    with pytest.raises(DatasetError, match=r"0 has no NAME_opacity\.jpg and 0 has one"):
        FaceDataset(tmp_path, landmarks=68)


def test_other_numbers_of_landmarks_are_read_where_they_are_wanted(tmp_path):
    write_face(tmp_path / "a/0", seed=3)
    template = np.tile(np.float32([[100], [150]]), (1, 2)).repeat([94, 95], axis=0)
    template[18:34, 1], template[71:83, 1] = 60, 40  # eyes and brows
    template[[18, 19, 21, 22, 28, 30], 0] = 50
    np.save(tmp_path / "a/0_template.npy", template)
    mean = FaceDataset(tmp_path, landmarks=189).mean_landmarks()
    torch.testing.assert_close(mean, torch.from_numpy(template))
    points = one(tmp_path, 72)["landmarks"]  # the seed's, which follow from the 68
    decoder = FaceDecoder(dataclasses.replace(DECODER, landmarks=72, landmarks_68=MAP_72))
    assert points.shape == (72, 2)
    np.testing.assert_array_equal(decoder.landmarks_68(points[None])[0], some_landmarks(3))


def test_what_is_broken_is_named(tmp_path):
    write_face(tmp_path / "a/0", seed=0)
    path = tmp_path / "a/0_landmarks.npy"
    for points, why in (
        (np.zeros((5, 2)), r"holds an array \[5, 2\] of float64; wanted \[68, 2\]"),
        (np.full((68, 2), np.nan), r"holds an array .* finite"),
        (None, "cannot be read"),
    ):
        path.write_bytes(b"broken") if points is None else np.save(path, points)
        with pytest.raises(DatasetError, match=rf"0_landmarks\.npy: {why}"):
            one(tmp_path)
    # and so are a missing texture and a broken photo
    (tmp_path / "a/0.jpg").unlink()
    for name in "ab":
        write_face(tmp_path / name / name, seed=0, texture=name == "a")
    with pytest.raises(DatasetError, match=r"b has no NAME_texture\.jpg and a has one"):
        FaceDataset(tmp_path, landmarks=68)
    (tmp_path / "b/b.jpg").write_bytes(b"broken")
    faces = FaceDataset(tmp_path, landmarks=68, whole=True)
    assert not faces.registered and faces[Key(0, 0)]["face"].any()
    with pytest.raises(ImageError, match=r"b/b\.jpg: is not a picture"):
        faces[Key(1, 0)]
    assert faces.name(1) == str(tmp_path / "b/b.jpg")


def test_a_photo_without_landmarks_has_those_of_the_first(tmp_path):
    for k, name in enumerate(("neutral", "smiling")):
        write_face(tmp_path / "a" / name, seed=k)
    (tmp_path / "a/smiling_landmarks.npy").unlink()
    faces = FaceDataset(tmp_path, landmarks=68)
    first, second = faces[Key(0, 0)], faces[Key(1, 0)]
    assert first["own"] and not second["own"]
    same = {name for name, value in first.items() if torch.equal(value, second[name])}
    assert same == {"landmarks", "drawing", "identity"}


def test_some_items_are_morphs_with_a_neighbour_and_two_weights(tmp_path):
    for k in range(8):  # four people, of two photos each; everybody's neighbour is the next
        write_face(tmp_path / f"id{k // 2}" / str(k), seed=k)
    faces = FaceDataset(tmp_path, landmarks=68)
    faces.share, faces.neighbours = 0.3, (np.arange(8)[:, None] + [2, 3]) % 8
    seen, keys = set(), [Key(5, seed) for seed in range(200)]
    plain = [key for key in keys if not faces[key]["mix"].any()]
    for key in sorted({*keys} - {*plain}):
        item = faces[key]
        (k,) = (k for k in range(8) if np.array_equal(item["other_landmarks"], some_landmarks(k)))
        assert torch.equal(item["other_drawing"], load_face(tmp_path / f"id{k // 2}/{k}.jpg"))
        assert item["mix"].shape == (2,) and ((item["mix"] > 0) & (item["mix"] < 1)).all()
        seen.add((k, *item["mix"].tolist()))
    assert {k for k, *_ in seen} == {7, 0} and len(seen) == 200 - len(plain)
    assert 120 < len(plain) < 160
    for k in (7, 0):
        (tmp_path / f"id{k // 2}/{k}.jpg").unlink()  # only a morph reads another
    item, again = faces[plain[0]], faces[plain[0]._replace(share=0.1)]
    assert torch.equal(item["other_drawing"], item["drawing"])
    assert torch.equal(item["other_landmarks"], item["landmarks"])
    assert all(torch.equal(again[name], value) for name, value in item.items())


@pytest.mark.parametrize("cells", [1, 400, 10**6])
def test_the_nearest_are_those_of_a_plain_comparison(cells):
    rows = functional.normalize(torch.randn(60, 16, generator=torch.Generator().manual_seed(0)))
    found = nearest(rows, torch.arange(60) // 3, 10, cells=cells).tolist()
    for i in range(60):
        order = [j for j in np.argsort(-(rows @ rows[i]).numpy()) if j // 3 != i // 3]
        assert found[i] == order[:10]
    # they are readable, and no more than everyone has
    assert nearest(torch.eye(5), torch.tensor([0, 0, 0, 1, 2]), 10).shape == (5, 2)
    found = nearest(torch.eye(6), torch.tensor([0, 1, -1, 2, -1, 3]), 10)
    assert found.shape == (6, 3) and not {2, 4} & set(found.flatten().tolist())


def test_of_many_people_the_nearest_are_mostly_found():
    """By all pairs, of 200 people as alike as chance has it: the hardest, for nobody is like all.

    Photos of one person have cosines of 0.64. Who is found in the place of another is as alike.
    """
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(200, 1, 64, generator=draw)
    rows = centres + 0.75 * torch.randn(200, 6, 64, generator=draw)
    rows = functional.normalize(rows.flatten(0, 1), dim=1)
    groups = torch.arange(200).repeat_interleave(6)
    groups[7] = -1
    whole = nearest(rows, groups, 10, people=999)
    found = nearest(rows, groups, 10, people=64, cells=2000)
    alike = [float((rows[:, None] * rows[some]).sum(2).mean()) for some in (whole, found)]
    shared = [len({*a} & {*b}) for a, b in zip(whole.tolist(), found.tolist(), strict=True)]
    assert np.mean(shared) > 8.5 and alike[1] > 0.98 * alike[0]
    assert not (groups[found] == groups[:, None])[groups >= 0].any() and 7 not in found


def index(tree, **how):
    return index_faces(tree, **how, device=CPU)


def test_with_an_index_nothing_is_opened_at_the_start(tmp_path, monkeypatch):
    tree = write_tree(tmp_path, 4, photos=3)
    (tree / "train/id1/2_landmarks.npy").unlink()
    plain = FaceData(tree, 68, "squash")
    told = index(tree)
    assert (told.photos["train"], told.landmarks["train"], told.people["train"]) == (12, 11, 4)
    seen = set()

    def opens(path, *_, **__):
        seen.add(path)
        raise DatasetError(f"{path}: was opened", hint="")

    for name in ("read_landmarks", "load_face", "read_embedding"):
        monkeypatch.setattr(face_data, name, opens)
    monkeypatch.setattr(layout, "photos", opens)
    data = FaceData(tree, 68, "squash")
    assert torch.equal(data.new_decoder(DECODER).mean_landmarks, plain.train.mean_landmarks())
    assert torch.equal(data.train.mean_landmarks(), plain.train.mean_landmarks())
    assert not seen and not data.notes
    monkeypatch.undo()
    for key in (Key(k, k) for k in range(12)):
        items = data.train[key], plain.train[key]
        assert all(torch.equal(items[0][name], items[1][name]) for name in items[1])


def test_an_index_that_is_older_than_its_tree_is_not_used(tmp_path):
    tree = write_tree(tmp_path, 3)
    index(tree)
    write_face(tree / "train/id2/1", seed=8)
    data = FaceData(tree, 68, "squash")
    assert len(data.train) == 4
    assert data.notes[0].startswith("the index of train is older than id2, and was not used")
    index(tree)
    data = FaceData(tree, 68, "squash")
    assert (len(data.train), data.notes) == (4, [])
    shutil.rmtree(tree / "train/id0")
    assert len(FaceData(tree, 68, "squash").train) == 3
    (tree / ".s2f/index/val/index.json").write_text("{")
    with pytest.raises(DatasetError, match=r"val/index\.json: is no index that can be read"):
        FaceData(tree, 68, "squash")


def test_arrays_that_are_not_read_at_once_are_verified(tmp_path, monkeypatch):
    tree = write_tree(tmp_path, 3)
    index(tree)
    place = tree / ".s2f/index/train"
    report = verify_index(tree)
    assert report.files == len([*place.parent.rglob("*.*")]) and not report.damaged
    whole = (place / "rows.npy").read_bytes()
    (place / "rows.npy").write_bytes(whole[:-1] + b"\x80")  # the last is negative
    with pytest.raises(DatasetError, match=r"rows\.npy: its SHA-256 is another"):
        FaceData(tree, 68, "squash")
    monkeypatch.setattr(files, "CHECKED", 0)
    faces = FaceData(tree, 68, "squash").train
    assert faces[Key(1, 1)]["own"]
    with pytest.raises(DatasetError, match=r"index/train: is damaged: it has no photo -\d+, of 3"):
        faces[Key(2, 2)]
    (error,) = verify_index(tree).damaged
    assert error.message == f"{place / 'rows.npy'}: is damaged: its SHA-256 is another"
    for content in (whole[:-4], whole.replace(b"'<i4'", b"'<u4'")):  # are looked at at once
        (place / "rows.npy").write_bytes(content)
        with pytest.raises(DatasetError, match=r"is no index that can be read: .*rows\.npy"):
            FaceData(tree, 68, "squash")
    with pytest.raises(DatasetError, match="has no index of train, val or test"):
        verify_index(tmp_path / "none")


def test_an_index_of_before_is_not_used_and_said_so(tmp_path):
    tree = write_tree(tmp_path, 2)
    index(tree)
    place = tree / ".s2f/index/train/index.json"
    told = files.unsealed(place.read_bytes())
    place.write_bytes(files.sealed({**told, "version": 2}))
    data = FaceData(tree, 68, "squash")
    (note,) = data.notes
    assert "older than index.json, and was not used: s2f prep index" in note
    assert len(data.train) == 2


def test_an_index_knows_who_looks_alike(tmp_path, monkeypatch):
    tree = write_tree(tmp_path, 6, photos=2)
    with pytest.raises(DatasetError, match=r"0\.jpg: has no NAME_embedding\.npy; 12 photos"):
        index(tree, maker=MAKER, space="s")
    for path in tree.rglob("*.jpg"):
        photo = load_face(path)[None] / 255
        np.save(layout.beside(path.with_suffix(""), layout.EMBEDDING), MAKER.embed(photo)[0])
    other = dataclasses.replace(MAKER, embed=lambda photos: -photos.mean((2, 3)))
    with pytest.raises(CheckpointError, match="is not what the face encoder makes"):
        index(tree, maker=other)
    plain = FaceDataset(tree / "train", landmarks=68)
    plain.mix(0.5, MAKER, device=CPU)
    assert index(tree, maker=MAKER, space="s").alike == 12
    faces = FaceDataset(tree / "train", landmarks=68)
    assert not faces.mix(0.5, None, "s", device=CPU)  # nobody is asked
    np.testing.assert_array_equal(faces.neighbours, plain.neighbours)
    faces = FaceDataset(tree / "train", landmarks=68)
    faces.mix(0.5, MAKER, "of another encoder", device=CPU)
    np.testing.assert_array_equal(faces.neighbours, plain.neighbours)
    # of more embeddings than fit into memory, some axes are compared: here all three that there are
    monkeypatch.setattr(face_data, "COMPARED", 10)
    index(tree, maker=MAKER, space="s")
    found = FaceDataset(tree / "train", landmarks=68).index.neighbours
    np.testing.assert_array_equal(found, plain.neighbours)


def test_each_process_looks_at_a_share_of_the_landmarks(tmp_path, monkeypatch):
    tree = write_tree(tmp_path, 5)
    alone = FaceDataset(tree / "train", landmarks=68)
    mean, seen, read = alone.mean_landmarks(), [], face_data.read_landmarks
    monkeypatch.setattr(face_data, "read_landmarks", lambda p, k: seen.append(p) or read(p, k))

    def look(rank):
        dataset = FaceDataset(tree / "train", landmarks=68)
        return [error.message for error in dataset.look(Two(rank, 2))], dataset.index.means

    with ThreadPoolExecutor(2) as both:
        for errors, means in both.map(look, range(2)):
            assert not errors
            torch.testing.assert_close(means[layout.LANDMARKS], mean)
    assert len(seen) == len({*seen}) == 5
    for k in (1, 2):
        np.save(tree / f"train/id{k}/0_landmarks.npy", np.zeros((68, 2)))
    with ThreadPoolExecutor(2) as both:
        (first, _), (second, _) = both.map(look, range(2))
    assert first == second and [f"id{k}" in why for k, why in zip((1, 2), first, strict=True)] == [
        True,
        True,
    ]


def test_landmarks_that_cannot_be_used_are_in_no_index(tmp_path):
    tree = write_tree(tmp_path, 3)
    for k in (0, 2):
        np.save(tree / f"train/id{k}/0_landmarks.npy", np.zeros((68, 2)))
    with pytest.raises(DatasetError, match="of 3 files of landmarks") as raised:
        index(tree)
    assert [f"id{k}" in why for k, why in zip((0, 2), raised.value.details, strict=True)] == [1, 1]
    assert not (tree / ".s2f").exists()


def test_the_neighbours_of_photos_are_those_of_their_embeddings(tmp_path):
    faces = FaceDataset(write_tree(tmp_path, 40, photos=2) / "train", landmarks=68)
    targets = [Path(faces.index.target(row)) for row in range(80)]
    photos = torch.stack([load_face(path) for path in targets]) / 255
    groups = torch.from_numpy(faces.index.who[faces.index.targets].astype(np.int64))
    expected = nearest(functional.normalize(MAKER.embed(photos)), groups, 10).numpy()
    stored = targets.index(tmp_path / "train/id3/0.jpg")
    np.save(tmp_path / "train/id3/0_embedding.npy", MAKER.embed(photos)[stored])
    faces = FaceDataset(tmp_path / "train", landmarks=68)
    told = set()
    tell = lambda done, total, what: told.add((what, total))  # noqa: E731
    assert not faces.mix(0.5, MAKER, device=CPU, progress=tell)
    np.testing.assert_array_equal(faces.neighbours, expected)
    assert faces.share == 0.5 and ("embedding photos", 79) in told  # one embedding is there


def test_photos_that_cannot_be_read_are_told_and_nobodys_neighbours(tmp_path):
    faces = FaceDataset(write_tree(tmp_path, 4) / "train", landmarks=68)
    (tmp_path / "train/id2/0.jpg").write_bytes(b"broken")
    (error,) = faces.mix(0.5, MAKER, device=CPU)
    assert "id2/0.jpg" in error.message
    assert faces.neighbours.shape == (4, 2) and 2 not in faces.neighbours
    for k in (0, 1):
        (tmp_path / f"train/id{k}/0.jpg").write_bytes(b"broken")
    with pytest.raises(DatasetError, match="photos that can be read are of one identity"):
        faces.mix(0.5, MAKER, device=CPU)


def open_tree(tree, mix, *, texture, is_face=False):
    """A tree of two, a batch of each mixed with the other, and a decoder."""
    data = FaceData(write_tree(tree, 2, texture=texture), 68, "squash", whole=is_face)
    data.train.share, data.train.neighbours = 1.0, np.array([[1], [0]])
    batch = batch_of(data.train) | {"mix": torch.tensor(mix)}
    return data, batch, data.new_decoder(dataclasses.replace(STAGED, is_face=is_face))


@pytest.mark.parametrize("texture", [False, True], ids=["photos", "textures"])
@pytest.mark.parametrize("is_face", [False, True])
def test_a_morph_of_nothing_is_none(tmp_path, texture, is_face):
    data, batch, network = open_tree(tmp_path, [[0.0, 0.0]] * 2, texture=texture, is_face=is_face)
    plain = {k: v for k, v in batch.items() if not k.startswith(("other", "mix"))}
    found, expected = data.example(batch, network), data.example(plain, network)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_shape_and_texture_are_mixed_each_with_its_weight(tmp_path):
    data, batch, network = open_tree(tmp_path / "a", [[0.25, 0.5], [0.0, 1.0]], texture=True)
    face, drawing, landmarks = data.example(batch, network)
    points, drawn = batch["landmarks"], batch["drawing"]
    torch.testing.assert_close(landmarks[0], 0.75 * points[0] + 0.25 * points[1])
    torch.testing.assert_close(drawing[0], (drawn[0] + drawn[1]) / 2)
    torch.testing.assert_close((landmarks[1], drawing[1]), (points[1], drawn[0]))
    expected = warp(drawing, network.mean_landmarks[None], landmarks).clamp(0, 1)
    torch.testing.assert_close(face, expected)
    # without warp, the morphed face is what is drawn
    half = [[0.5, 0.5], [0.0, 0.0]]
    data, batch, network = open_tree(tmp_path / "b", half, texture=True, is_face=True)
    assert not data.train.registered
    face, drawing, _ = data.example(batch, network)
    assert torch.equal(face[0], drawing[0]) and not torch.equal(drawing[0], batch["drawing"][0])
    assert torch.equal(drawing[1], batch["drawing"][1])


def started(tree, *, whole=False):
    """The data, a decoder that is their linear model, its code and its textures."""
    data = FaceData(tree, 68, "squash", whole=whole)
    decoder = data.new_decoder(DECODER)
    mean = torch.stack([data.train.points(k) for k in range(len(data.train))]).mean(0)
    torch.testing.assert_close(decoder.mean_landmarks, mean)
    return data, decoder, *data.start_linear(decoder)


def test_a_linear_start_is_that_of_the_textures_even_where_photos_are_drawn(tmp_path):
    tree = write_tree(tmp_path / "a", 4, texture=True)
    (data, decoder, _, textures), again = (started(tree, whole=w) for w in (False, True))
    assert torch.equal(textures, batch_of(data.train)["drawing"])
    one, other = decoder.state_dict(), again[1].state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    # photos without textures are registered for it
    data, decoder, _, textures = started(write_tree(tmp_path / "b", 3))
    batch = batch_of(data.train)
    expected = warp(batch["drawing"], batch["landmarks"], decoder.mean_landmarks[None])
    torch.testing.assert_close(textures, expected, atol=1e-3, rtol=0)


def test_a_linear_start_leaves_out_what_cannot_be_read_and_says_so(tmp_path):
    tree = write_tree(tmp_path, 7)
    for path in (broken := [tree / f"train/id{k}/0.jpg" for k in range(6)]):
        path.write_bytes(b"broken")
    (note,) = started(tree)[0].notes
    assert note.startswith("the linear start leaves out 6 photos: ")
    assert all(str(path) in note for path in broken[:5]) and note.endswith(", and 1 more")
    (tree / "train/id6/0.jpg").write_bytes(b"broken")
    with pytest.raises(ImageError, match=r"id0/0\.jpg"):
        started(tree)


def test_data_that_teach_nothing_are_refused(tmp_path):
    tree = write_tree(tmp_path, 2, texture=True)
    shutil.rmtree(tree / "val/id1")
    assert len(FaceData(tree, 68, "squash").val) == 1  # enough for validation
    (tree / "val/id0/0_texture.jpg").unlink()
    with pytest.raises(DatasetError, match=r"some photos have a _texture\.jpg beside"):
        FaceData(tree, 68, "squash")
    shutil.rmtree(tree / "train/id1")
    with pytest.raises(DatasetError, match="train: has one identity: there is nothing to tell"):
        FaceData(tree, 68, "squash")


def test_landmarks_of_no_face_are_all_named_before_training(tmp_path):
    tree = write_tree(tmp_path, people=3)
    wrong = {"train/id0": 1024 / 224, "train/id2": 1 / 224, "val/id1": np.nan}
    for folder, factor in wrong.items():
        path = tree / folder / "0_landmarks.npy"
        np.save(path, np.load(path) * np.float32(factor))
    with pytest.raises(DatasetError, match="of 6 files of landmarks 3 cannot be used") as raised:
        FaceData(tree, 68, "squash")
    named = [detail.partition(": ")[0] for detail in raised.value.details]
    assert named == [str(tree / folder / "0_landmarks.npy") for folder in wrong]
    assert "outside the frame of 224 x 224" in raised.value.details[0]
    assert "squashed to 224 x 224" in raised.value.hint


def test_landmarks_of_a_frame_of_256_pixels_are_told_by_all_of_them_together(tmp_path):
    """As the London set has its own: no file alone shows it."""
    tree = write_tree(tmp_path, people=3)
    face = some_landmarks()
    face = face + np.float32((112 - face[:, 0].mean(), 216 - face[:, 1].max()))  # its chin at 216
    for path in tree.rglob("*_landmarks.npy"):
        np.save(path, face)
    FaceData(tree, 68, "squash")
    for path in tree.rglob("*_landmarks.npy"):
        np.save(path, np.load(path) * np.float32(256 / 224))
    with pytest.raises(DatasetError) as raised:
        FaceData(tree, 68, "squash")
    assert "are of a larger frame" in raised.value.details[0]
