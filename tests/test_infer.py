"""Faces from speech and photos, through the Python interface, with tiny networks."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import FRONT_END, noise
from PIL import Image

from s2f import SpeechToFace, decoding
from s2f.errors import AudioError

pytestmark = pytest.mark.usefixtures("bundled")


@pytest.fixture
def s2f() -> SpeechToFace:
    return SpeechToFace.load(device="cpu")


def test_speech_gives_a_face(s2f: SpeechToFace, speech: Path) -> None:
    face = s2f.generate(str(speech))
    assert face.image.size == (224, 224) and face.image.mode == "RGB"
    assert face.landmarks.shape == (68, 2) and face.embedding.shape == (8,)
    assert (face.clips, face.model) == (1, "demo")


def test_a_photo_gives_a_face(s2f: SpeechToFace, photo: Path) -> None:
    face = s2f.reconstruct(photo)
    assert face.image.size == (224, 224) and face.clips == 0


def test_a_photo_is_fitted_as_the_face_encoder_wants_it(s2f: SpeechToFace, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tall = Image.fromarray(rng.integers(0, 256, (224, 112, 3), dtype=np.uint8))
    boxed = Image.new("RGB", (224, 224))
    boxed.paste(tall, (56, 0))
    for name, photo in (("tall", tall), ("boxed", boxed)):
        photo.save(tmp_path / f"{name}.png")
    wanted = s2f.reconstruct(tmp_path / "boxed.png").embedding
    assert not np.allclose(s2f.reconstruct(tmp_path / "tall.png").embedding, wanted, atol=1e-3)
    encoder = s2f.model.checkpoints["face_encoder"].network
    encoder.preprocessing = dataclasses.replace(encoder.preprocessing, fit="letterbox")
    np.testing.assert_array_equal(s2f.reconstruct(tmp_path / "tall.png").embedding, wanted)


def test_the_same_input_gives_the_same_face(s2f: SpeechToFace, speech: Path) -> None:
    assert s2f.generate(speech).image.tobytes() == s2f.generate(speech).image.tobytes()


def test_longer_speech_averages_the_embeddings_of_its_clips(
    s2f: SpeechToFace, tmp_path: Path
) -> None:
    # Parts of equal loudness, or normalising the whole would not be normalising each.
    parts = [noise(1, seed) for seed in (1, 2, 3)]
    for k, part in enumerate([*parts, np.concatenate(parts)]):
        soundfile.write(tmp_path / f"{k}.wav", part, decoding.SAMPLE_RATE, subtype="FLOAT")
    faces = [s2f.generate(tmp_path / f"{k}.wav") for k in range(4)]
    assert faces[3].clips == 3
    mean = np.mean([face.embedding for face in faces[:3]], axis=0)
    np.testing.assert_allclose(faces[3].embedding, mean, atol=1e-4)


def test_the_overlay_scales_with_the_picture(
    s2f: SpeechToFace, speech: Path, tmp_path: Path
) -> None:
    face = s2f.generate(speech)
    face.save(tmp_path / "a.png", size=448)
    face.save_overlay(tmp_path / "b.png", size=448)
    with Image.open(tmp_path / "a.png") as plain, Image.open(tmp_path / "b.png") as overlay:
        assert plain.size == overlay.size == (448, 448)
        x, y = np.rint((face.landmarks[30] + 0.5) * 2 - 0.5).astype(int)
        assert overlay.getpixel((int(x), int(y))) == (255, 80, 60)


def test_only_what_is_needed_is_loaded() -> None:
    s2f = SpeechToFace.load(device="cpu", kinds=("voice_encoder", "face_decoder"))
    assert set(s2f.model.checkpoints) == {"voice_encoder", "face_decoder"}
    assert s2f.model.checkpoints["voice_encoder"].front_end == FRONT_END


def test_a_broken_recording_is_refused(s2f: SpeechToFace, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("text")
    with pytest.raises(AudioError, match=r"a\.wav"):
        s2f.generate(tmp_path / "a.wav")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cpu_and_gpu_draw_the_same_face(speech: Path) -> None:
    faces = [SpeechToFace.load(device=name).generate(speech).image for name in ("cpu", "cuda")]
    a, b = (np.asarray(face, np.int16) for face in faces)
    assert np.abs(a - b).max() < 2
