"""The step that embeds photos, with a tiny face encoder."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ENCODER, write_photo
from PIL import Image

from s2f import checkpoint, face_encoder
from s2f.embeddings import CHECKED
from s2f.errors import CheckpointError, DatasetError, DeviceError, ImageError
from s2f.images import PREPROCESSING, load_face
from s2f.prep_faces import check_embeddings, embeddings_step, read_space


@pytest.fixture
def encoder(models: Path) -> Path:
    return models / "demo/face_encoder.safetensors"


def save_encoder(path: Path, **changes: object) -> Path:
    preprocessing = dataclasses.replace(PREPROCESSING["paper"], **changes)
    checkpoint.save(path, face_encoder.VGGFace(ENCODER, preprocessing), card=checkpoint.Card("t"))
    return path


def test_photos_get_what_the_encoder_makes_of_them(encoder: Path, tmp_path: Path) -> None:
    photos = [write_photo(tmp_path / f"{k}.jpg", seed=k) for k in range(3)]
    step = embeddings_step(encoder, "cpu", batch_size=2)
    network = checkpoint.load(encoder, "face_encoder").network
    for some in (photos[:2], photos[2:]):
        values = step.net([step.work(path, tmp_path / "part") for path in some])
        for path, value in zip(some, values, strict=True):
            step.save(value, tmp_path / "part.npy")
            saved = np.load(tmp_path / "part.npy")
            expected = network(load_face(path)[None] / 255)[0]
            assert saved.dtype == np.float32 and saved.shape == (8,)
            torch.testing.assert_close(torch.from_numpy(saved), expected, rtol=1e-5, atol=1e-5)


def test_the_fit_is_the_checkpoints(tmp_path: Path) -> None:
    Image.new("RGB", (100, 50), (255, 255, 255)).save(tmp_path / "wide.png")
    for fit, dark in (("squash", False), ("letterbox", True)):
        step = embeddings_step(save_encoder(tmp_path / fit, fit=fit), "cpu")
        pixels = step.work(tmp_path / "wide.png", tmp_path / "part")
        assert pixels.shape == (3, 224, 224) and pixels.dtype == np.uint8
        assert (pixels.min() == 0) == dark


def test_an_embedding_is_named_after_its_photo(encoder: Path) -> None:
    step = embeddings_step(encoder, "cpu")
    assert step.rename("id1/images/a.b.jpg") == "id1/images/a.b_embedding.npy"
    wanted = {"a.jpg": True, "a.PNG": True, "a_texture.jpg": False, "a_landmarks.npy": False}
    assert {name: step.wants(name) for name in wanted} == wanted


def test_other_weights_or_preprocessing_are_other_settings(models: Path, tmp_path: Path) -> None:
    paths = [models / f"{m}/face_encoder.safetensors" for m in ("demo", "other")]
    torch.manual_seed(5)
    paths += [save_encoder(tmp_path / "a")]
    torch.manual_seed(5)
    paths += [save_encoder(tmp_path / "b", channels="BGR")]
    settings = [embeddings_step(path, "cpu").settings for path in paths]
    assert all(a != b for i, a in enumerate(settings) for b in settings[:i])
    assert embeddings_step(paths[0], "cpu", batch_size=5).settings == settings[0]


def test_planning_reads_no_weights(encoder: Path, tmp_path: Path) -> None:
    content = bytearray(encoder.read_bytes())
    content[-1] ^= 1
    (tmp_path / "damaged").write_bytes(content)
    step = embeddings_step(tmp_path / "damaged", "cpu")
    photo = step.work(write_photo(tmp_path / "a.jpg"), tmp_path / "part")
    with pytest.raises(CheckpointError, match="is damaged"):
        step.net([photo])


def test_work_can_be_sent_to_a_worker(encoder: Path, tmp_path: Path) -> None:
    step = embeddings_step(encoder, "cpu")
    work = pickle.loads(pickle.dumps(step.work))
    assert work(write_photo(tmp_path / "a.jpg"), tmp_path / "part").flags.c_contiguous


def test_a_file_that_is_no_photo_is_named(encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no photo")
    with pytest.raises(ImageError, match=r"a\.jpg"):
        embeddings_step(encoder, "cpu").work(tmp_path / "a.jpg", tmp_path / "part")


def test_what_cannot_work_is_refused_before_anything_is_planned(
    models: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="wanted a face_encoder"):
        embeddings_step(models / "demo/face_decoder.safetensors", "cpu")
    with pytest.raises(DeviceError):
        embeddings_step(models / "demo/face_encoder.safetensors", "nowhere")
    with pytest.raises(CheckpointError, match="does not describe a face encoder: fit"):
        embeddings_step(save_encoder(tmp_path / "e", fit="stretch"), "cpu")


@pytest.fixture
def embeddings(encoder: Path, tmp_path: Path) -> list[Path]:
    """Embeddings beside their photos, twice as many as are checked."""
    step, paths = embeddings_step(encoder, "cpu"), []
    for k in range(2 * CHECKED):
        photo = write_photo(tmp_path / f"{k:02}.jpg", seed=k)
        paths.append(tmp_path / f"{k:02}_embedding.npy")
        (value,) = step.net([step.work(photo, photo)])
        np.save(paths[-1], value.astype(np.float16))
    return paths


def test_embeddings_of_their_encoder_pass(embeddings: list[Path], encoder: Path) -> None:
    check_embeddings(embeddings, encoder)
    check_embeddings(embeddings[:1], encoder)


@pytest.mark.parametrize("change", [1.1, np.nan, None])
def test_an_embedding_that_is_not_the_encoders_is_named(
    embeddings: list[Path], encoder: Path, change: float | None
) -> None:
    path = embeddings[CHECKED]
    np.save(path, np.zeros(3, np.float32) if change is None else change * np.load(path))
    with pytest.raises(CheckpointError, match=f"{path.name}: is not what .* makes of its photo"):
        check_embeddings(embeddings, encoder)


def test_the_checked_ones_are_spread_over_the_tree(embeddings: list[Path], encoder: Path) -> None:
    for path in embeddings[1::2]:
        path.unlink()
    check_embeddings(embeddings, encoder)  # every other one


def test_an_embedding_without_its_photo_cannot_be_checked(
    embeddings: list[Path], encoder: Path
) -> None:
    embeddings[0].with_name("00.jpg").unlink()
    with pytest.raises(DatasetError, match=r"00_embedding\.npy: has no photo beside it"):
        check_embeddings(embeddings, encoder)


def test_a_space_is_what_the_checkpoint_says(encoder: Path) -> None:
    whole, space = checkpoint.load(encoder, "face_encoder"), read_space(encoder)
    assert (space.sha256, space.embedding) == (whole.embedding_space, ENCODER.embedding)
    assert space.fit == whole.network.preprocessing.fit
