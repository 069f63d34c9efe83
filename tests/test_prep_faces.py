"""The steps on photos: resized, framed, marked, embedded. What finds faces has its own tests."""

import dataclasses
import importlib.util
import pickle
from importlib.util import find_spec as find
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ENCODER, write_photo, write_turned
from face_trees import Found
from PIL import Image

from s2f import checkpoint, errors, face_encoder, prep_faces
from s2f.embeddings import CHECKED
from s2f.images import PREPROCESSING, load_face
from s2f.prep_faces import embeddings_step, faces_step, landmarks_step, resize_step

FACES = Path(__file__).parents[2] / "shared/data/faces"
DLIB = ("dlib", "face_recognition_models")
SIDE = 224
# What the README of the faces says of their framing: the pupils, points 0 and 1 of the template.
PUPILS = SIDE * np.array([[0.5 - 0.135, 0.46], [0.5 + 0.135, 0.46]])


def gradient(width, height):
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def make(step, source):
    """Run a step without a net on one source, as `prep` does."""
    part = source.with_name(f"part{Path(step.rename(source.name)).suffix}")
    assert step.work(source, part) is None
    return part


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *((mode, suffix) for mode in ("RGB", "L") for suffix in ("JPEG", "png", "webp", "bmp")),
        *(("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("RGBA", "webp"), ("P", "bmp")),
    ],
)
def test_a_photo_is_squashed_to_the_size_and_once_only(tmp_path, mode, suffix):
    source, step = tmp_path / f"a.{suffix}", resize_step()
    for size in ((300, 200), (30, 90)):
        gradient(*size).convert(mode).save(source)
        part = make(step, source)
        with Image.open(part) as seen:
            wanted = Image.registered_extensions()[f".{suffix.lower()}"]
            assert (seen.size, seen.mode, seen.format) == ((224, 224), "RGB", wanted)
            squashed = gradient(224, 224).convert(mode).convert("RGB")
            if mode in ("RGB", "L"):
                assert np.abs(np.asarray(seen, float) - np.asarray(squashed, float)).mean() < 4
        once = part.read_bytes()
        source.write_bytes(once)
        assert make(step, source).read_bytes() == once


def test_a_photo_of_the_size_is_a_copy_only_if_it_is_stored_as_it_would_be(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # sideways
    gradient(64, 64).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    with Image.open(make(resize_step(64), tmp_path / "a.png")) as seen:
        assert not seen.getexif() and np.array_equal(np.asarray(seen), np.asarray(gradient(64, 64)))
    gradient(64, 64).save(tmp_path / "a.jpg", format="PNG")
    with Image.open(make(resize_step(64), tmp_path / "a.jpg")) as seen:
        assert seen.format == "JPEG"
    Image.new("1", (10_000, 9_500)).save(tmp_path / "a.png")  # large: no warning
    with Image.open(make(resize_step(64), tmp_path / "a.png")) as seen:
        assert seen.size == (64, 64)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(errors.ImageError, match=r"a\.png: cannot be read"):
        make(resize_step(64), tmp_path / "a.png")


@pytest.mark.parametrize("how", ["exif", "comment", "profile", "behind", "webp xmp"])
def test_a_photo_of_the_size_is_no_copy_if_something_is_stored_beside_its_pixels(tmp_path, how):
    source = tmp_path / ("a.webp" if how.startswith("webp") else "a.jpg")
    bare, exif = gradient(64, 64), Image.Exif()
    exif[0x8825] = {2: (48.0, 51.0, 30.0)}  # where it was taken
    beside = {
        "exif": {"exif": exif},
        "comment": {"comment": "secret"},
        "profile": {"icc_profile": b"secret"},
        "webp xmp": {"xmp": b"secret"},
    }
    bare.save(source, quality=95, **beside.get(how, {}))
    if how == "behind":
        source.write_bytes(source.read_bytes() + b"a film")
    made = make(resize_step(64), source)
    assert len(made.read_bytes()) != len(source.read_bytes())
    assert not {"secret", "film"} & set(made.read_text("latin-1").split("\0"))
    with Image.open(made) as seen:
        assert not seen.getexif() and not {"comment", "icc_profile", "xmp"} & set(seen.info)


def test_pictures_that_are_not_written_become_png_and_hide_none_of_the_same_name():
    for step in (resize_step(), faces_step("dlib")) if all(map(find, DLIB)) else (resize_step(),):
        names = ["a.jpg", "a.tif", "a.avif", "b/a.HEIC", "a.jfif"]
        assert [step.rename(name) for name in names] == [
            *("a.jpg", "a.tif.png", "a.avif.png", "b/a.HEIC.png", "a.jfif")
        ]
        assert all(map(step.wants, names)) and not step.wants("a.txt")


def scene(photo, turn, zoom, x, y, size):
    """Put a photo of 256 pixels into a blurred scene: turned (degrees), its centre at (x, y)."""
    rng = np.random.default_rng(1)
    ground = Image.fromarray(rng.integers(90, 170, (8, 8, 3), dtype=np.uint8)).resize(size)
    if zoom < 1:
        photo = photo.resize(2 * (round(256 * zoom),), Image.Resampling.LANCZOS)
    turned = photo.width / 256 / zoom * np.exp(-1j * np.radians(turn))  # from scene to photo
    c, s, x, y = turned.real, turned.imag, x + 0.5, y + 0.5
    data = (c, -s, photo.width / 2 - c * x + s * y, s, c, photo.width / 2 - s * x - c * y)
    affine = Image.Transform.AFFINE
    warped = photo.transform(size, affine, data, Image.Resampling.BICUBIC)
    ground.paste(warped, (0, 0), Image.new("L", photo.size, 255).transform(size, affine, data))
    return ground


def eyes_off(seen, wanted):
    """How far (pixels) eyes lie from a framed one's, and how alike: by correlation, the worse."""
    offsets = [(dx, dy) for dy in range(-6, 7) for dx in range(-6, 7)]
    distances, likenesses = [], []
    for x, y in np.rint(PUPILS).astype(int):
        eye = wanted[y - 12 : y + 13, x - 20 : x + 21].ravel()
        there = [seen[y + b - 12 : y + b + 13, x + a - 20 : x + a + 21].ravel() for a, b in offsets]
        likeness = [np.corrcoef(one, eye)[0, 1] for one in there]
        distances.append(np.hypot(*offsets[np.argmax(likeness)]))
        likenesses.append(max(likeness))
    return max(distances), min(likenesses)


@pytest.mark.data
@pytest.mark.skipif(
    not (FACES.is_dir() and all(map(importlib.util.find_spec, DLIB))),
    reason="needs the real faces beside the repository, and the extra dlib",
)
@pytest.mark.parametrize(
    ("turn", "zoom", "x", "y", "size"),
    [
        *((20, 1.5, 400, 330, (900, 700)), (-20, 1.5, 400, 330, (900, 700))),
        *((0, 1.0, 1300, 900, (1600, 1200)), (-7, 4.0, 1200, 1100, (2400, 2000))),
        *((12, 0.6, 500, 120, (640, 480)), (5, 1.2, 150, 170, (700, 300))),
    ],
)
def test_a_face_in_the_wild_is_framed_like_its_photo(tmp_path, turn, zoom, x, y, size):
    off = []
    for landmarks in sorted(FACES.glob("*/neutral_landmarks.npy"))[::12]:
        photo = Image.open(landmarks.with_name("neutral.jpg")).convert("RGB")
        scene(photo, turn, zoom, x, y, size).save(tmp_path / "a.png")
        framed = photo.resize((SIDE, SIDE), Image.Resampling.LANCZOS)  # as the set frames them
        with Image.open(make(faces_step("dlib"), tmp_path / "a.png")) as face:
            off.append(eyes_off(np.asarray(face, float), np.asarray(framed, float)))
    distance, likeness = np.array(off).T
    assert distance.mean() < 1.5 and distance.max() <= 2.3 and likeness.min() > 0.85


@pytest.fixture
def net(monkeypatch):
    """Put points that are known in the place of face-alignment."""
    monkeypatch.setattr(prep_faces, "check_detector", lambda name, device: None)
    monkeypatch.setattr(prep_faces, "load_detector", lambda *name_and_device: Found())


@pytest.mark.usefixtures("net")
@pytest.mark.parametrize("detector", ["dlib", "face-alignment"])
@pytest.mark.parametrize(("build", "suffix"), [(faces_step, ".png"), (landmarks_step, ".npy")])
def test_each_photo_gets_its_own_result_or_error(tmp_path, build, suffix, detector):
    step, part = build(detector), tmp_path / f"part{suffix}"
    photos = {level: tmp_path / f"{level}.png" for level in (10, 0, 30)}
    for level, photo in photos.items():
        Image.new("RGB", (448, 112), (level, 0, 0)).save(photo)
    if step.net:
        assert step.batch_size > 1
        read = [pickle.loads(pickle.dumps(step.work(path, part))) for path in photos.values()]
        values = dict(zip(photos, step.net(read), strict=True))
        assert isinstance(values[0], errors.ImageError) and "0.png: no face" in str(values[0])
    else:  # in the workers
        with pytest.raises(errors.ImageError, match=r"0\.png: no face"):
            step.work(photos[0], part)
    for level in (10, 30):
        step.save(values[level], part) if step.net else step.work(photos[level], part)
        if suffix == ".npy":
            wanted = (Found.points + (level, 0) + 0.5) * (0.5, 2) - 0.5
            np.testing.assert_allclose(np.load(part), wanted, rtol=1e-5)
        else:
            with Image.open(part) as face:
                assert face.size == (224, 224) and face.getpixel((100, 100)) == (level, 0, 0)


@pytest.mark.usefixtures("net")
def test_a_phone_photo_is_turned_once_by_every_step(encoder, tmp_path):
    """EXIF's eight orientations: what is made is that of the upright photo, to the bit."""
    upright, size = gradient(640, 500), 64
    upright.save(tmp_path / "upright.png")
    steps = [resize_step(size), faces_step("dlib"), landmarks_step("dlib")]
    read = embeddings_step(encoder, "cpu").work
    for path in write_turned(tmp_path, upright).values():
        for step in steps:
            made, wanted = (
                make(step, one).read_bytes() for one in (path, tmp_path / "upright.png")
            )
            assert made == wanted
        assert np.array_equal(read(path, path), read(tmp_path / "upright.png", path))
        items = [faces_step("face-alignment").work(path, path)]
        assert items[0][1].tobytes() == np.asarray(upright).tobytes()
    small = gradient(size, size)
    small.save(tmp_path / "upright.png")
    for path in write_turned(tmp_path, small).values():  # of the size already
        made, wanted = (
            make(steps[0], one).read_bytes() for one in (path, tmp_path / "upright.png")
        )
        assert made == wanted


@pytest.mark.usefixtures("net")
def test_a_network_gets_all_of_a_large_photo_in_which_it_found_nothing(tmp_path, monkeypatch):
    searched = []

    class Small(Found):
        """Sees a face only in a picture of more than 2048 pixels; 5000 are too many for it."""

        def __call__(self, pictures):
            searched.extend(picture.shape for picture in pictures)
            if searched[-1][1] == 5000:
                raise MemoryError
            found = super().__call__(pictures)
            return [f if p.shape[1] > 2048 else [] for f, p in zip(found, pictures, strict=True)]

    monkeypatch.setattr(prep_faces, "load_detector", lambda *name_and_device: Small())
    step = faces_step("face-alignment")
    sizes = {"large": (4096, 1024), "whole": (2048, 512), "huge": (5000, 100), "gone": (4096, 512)}
    for name, size in sizes.items():
        Image.new("RGB", size, (10, 0, 0)).save(tmp_path / f"{name}.png")
    read = [step.work(tmp_path / f"{name}.png", tmp_path) for name in sizes]
    (tmp_path / "gone.png").unlink()
    large, whole, huge, gone = step.net(read)
    for error, why in ((whole, "no face"), (huge, "more memory"), (gone, "no such file")):
        assert isinstance(error, errors.ImageError) and why in str(error)
    assert large.size == (224, 224) and large.getpixel((100, 100)) == (10, 0, 0)
    assert [shape[1] for shape in searched] == [2048, 2048, 2048, 2048, 4096, 5000]


@pytest.mark.usefixtures("net")
def test_steps_know_what_their_outputs_depend_on_and_a_net_gets_bounded_pictures(tmp_path):
    for detector in ("dlib", "face-alignment"):
        for step in (faces_step(detector), landmarks_step(detector)):
            assert pickle.loads(pickle.dumps(step.work)) and step.settings["detector"] == detector
    assert resize_step(64).settings == {"size": 64}
    assert landmarks_step("dlib").rename("id/a.b.jpg") == "id/a.b_landmarks.npy"
    assert faces_step("dlib").rename("id/a.b.JPG") == "id/a.b.JPG"
    gradient(5000, 200).save(tmp_path / "a.jpg")
    source, picture, is_copy = faces_step("face-alignment").work(tmp_path / "a.jpg", tmp_path)
    assert source == str(tmp_path / "a.jpg") and picture.shape == (82, 2048, 3) and is_copy


@pytest.fixture
def encoder(models):
    return models / "demo/face_encoder.safetensors"


def save_encoder(path, **changes):
    preprocessing = dataclasses.replace(PREPROCESSING["paper"], **changes)
    checkpoint.save(path, face_encoder.VGGFace(ENCODER, preprocessing), card=checkpoint.Card("t"))
    return path


def test_photos_get_what_the_encoder_makes_of_them(encoder, tmp_path):
    photos = [write_photo(tmp_path / f"{k}.jpg", seed=k) for k in range(3)]
    step = embeddings_step(encoder, "cpu", batch_size=2)
    work = pickle.loads(pickle.dumps(step.work))  # as workers get it
    network = checkpoint.load(encoder, "face_encoder").network
    for some in (photos[:2], photos[2:]):
        values = step.net([work(path, tmp_path / "part") for path in some])
        for path, value in zip(some, values, strict=True):
            step.save(value, tmp_path / "part.npy")
            saved = np.load(tmp_path / "part.npy")
            expected = network(load_face(path)[None] / 255)[0]
            assert saved.dtype == np.float32 and saved.shape == (8,)
            torch.testing.assert_close(torch.from_numpy(saved), expected, rtol=1e-5, atol=1e-5)


def test_the_checkpoint_decides_the_fit_and_the_settings(models, tmp_path):
    Image.new("RGB", (100, 50), (255, 255, 255)).save(tmp_path / "wide.png")
    for fit, dark in (("squash", False), ("letterbox", True)):
        step = embeddings_step(save_encoder(tmp_path / fit, fit=fit), "cpu")
        pixels = step.work(tmp_path / "wide.png", tmp_path / "part")
        assert pixels.shape == (3, 224, 224) and pixels.dtype == np.uint8
        assert (pixels.min() == 0) == dark
    assert step.rename("id1/images/a.b.jpg") == "id1/images/a.b_embedding.npy"
    paths = [models / f"{m}/face_encoder.safetensors" for m in ("demo", "other")]
    for channels in ("RGB", "BGR"):
        torch.manual_seed(5)
        paths.append(save_encoder(tmp_path / channels, channels=channels))
    settings = [embeddings_step(path, "cpu").settings for path in paths]
    assert all(a != b for i, a in enumerate(settings) for b in settings[:i])
    assert embeddings_step(paths[0], "cpu", batch_size=5).settings == settings[0]


def test_what_cannot_work_is_refused_before_anything_is_planned(
    encoder, models, tmp_path, monkeypatch
):
    with pytest.raises(errors.CheckpointError, match="wanted a face_encoder"):
        embeddings_step(models / "demo/face_decoder.safetensors", "cpu")
    with pytest.raises(errors.DeviceError):
        embeddings_step(encoder, "nowhere")
    with pytest.raises(errors.CheckpointError, match="does not describe a face encoder: fit"):
        embeddings_step(save_encoder(tmp_path / "e", fit="stretch"), "cpu")
    with pytest.raises(errors.UsageError, match="no detector"):
        faces_step("haar")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.DependencyError, match="needs the package dlib"):
        landmarks_step("dlib")


def test_embeddings_of_their_encoder_pass_and_some_of_all_are_checked(encoder, tmp_path):
    """Embeddings beside their photos, twice as many as are checked."""
    step, embeddings = embeddings_step(encoder, "cpu"), []
    for k in range(2 * CHECKED):
        photo = write_photo(tmp_path / f"{k:02}.jpg", seed=k)
        embeddings.append(tmp_path / f"{k:02}_embedding.npy")
        (value,) = step.net([step.work(photo, photo)])
        np.save(embeddings[-1], value.astype(np.float16))
    prep_faces.check_photo_embeddings(embeddings[:1], encoder)
    prep_faces.check_photo_embeddings(embeddings, encoder)
    for path in embeddings[1::2]:
        path.unlink()
    prep_faces.check_photo_embeddings(embeddings, encoder)  # every other one
    np.save(embeddings[CHECKED], 1.1 * np.load(embeddings[CHECKED]))
    with pytest.raises(
        errors.CheckpointError, match=r"08_embed.*: is not what .* makes of its photo"
    ):
        prep_faces.check_photo_embeddings(embeddings, encoder)
    embeddings[0].with_name("00.jpg").unlink()
    with pytest.raises(errors.DatasetError, match=r"00_embedding\.npy: has no photo beside it"):
        prep_faces.check_photo_embeddings(embeddings, encoder)
