"""Faces from speech and photos, through the Python interface, with tiny networks."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import FRONT_END, noise, write_photo, write_speech
from PIL import Image

from s2f import SpeechToFace, audio, decoding, layout
from s2f.errors import AudioError, UsageError
from s2f.infer import plan, run

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


def test_the_same_input_gives_the_same_face(s2f: SpeechToFace, speech: Path) -> None:
    assert s2f.generate(speech).image.tobytes() == s2f.generate(speech).image.tobytes()


def test_longer_speech_averages_the_embeddings_of_its_clips(
    s2f: SpeechToFace, tmp_path: Path
) -> None:
    # Parts of equal loudness, or normalising the whole would not be normalising each.
    parts = [audio.normalise_loudness(noise(1, seed)) for seed in (1, 2, 3)]
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


def test_a_plan_mirrors_the_tree_and_tells_equal_names_apart(tmp_path: Path) -> None:
    write_speech(tmp_path / "in/x/a.wav")
    write_speech(tmp_path / "in/x/a.flac")
    write_speech(tmp_path / "in/b.wav")
    planned = plan([tmp_path / "in"], tmp_path / "out", audio.find)
    targets = [item.target and item.target.relative_to(tmp_path / "out") for item in planned]
    assert targets == [Path("b.png"), Path("x/a.flac.png"), Path("x/a.wav.png")]


def test_a_single_file_may_name_its_picture(tmp_path: Path, speech: Path) -> None:
    (item,) = plan([speech], tmp_path / "me.png", audio.find)
    assert item.target == tmp_path / "me.png"


def test_one_picture_for_two_files_is_refused(tmp_path: Path, speech: Path) -> None:
    with pytest.raises(UsageError, match="is one picture, but there are 2"):
        plan([speech, tmp_path / "other.wav"], tmp_path / "me.png", audio.find)


def test_two_files_never_become_one_picture(tmp_path: Path) -> None:
    for name in ("x/a.wav", "y/a.wav"):
        write_speech(tmp_path / name)
    with pytest.raises(UsageError, match=r"would be made of both .*x/a\.wav and .*y/a\.wav"):
        plan([tmp_path / "x/a.wav", tmp_path / "y/a.wav"], tmp_path / "out", audio.find)


def test_a_picture_and_an_overlay_never_become_one(tmp_path: Path) -> None:
    for name in ("a.wav", "a_landmarks.wav"):
        write_speech(tmp_path / name)
    with pytest.raises(UsageError, match=r"a_landmarks\.png: would be made of both"):
        plan([tmp_path], tmp_path / "out", audio.find)


def test_a_file_that_is_named_twice_is_made_once(tmp_path: Path, speech: Path) -> None:
    assert len(plan([speech, speech], tmp_path / "out", audio.find)) == 1


@pytest.mark.parametrize("name", ["face.jpg", "there"])
def test_an_output_that_is_neither_png_nor_folder_is_refused(
    tmp_path: Path, speech: Path, name: str
) -> None:
    (tmp_path / "there").touch()
    with pytest.raises(UsageError, match=r"is neither a \.png file nor a folder"):
        plan([speech], tmp_path / name, audio.find)


def test_a_batch_goes_on_past_what_is_broken(s2f: SpeechToFace, tmp_path: Path) -> None:
    write_photo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_text("text")
    write_photo(tmp_path / "c.jpg")
    planned = plan([tmp_path, tmp_path / "d.jpg"], tmp_path / "out", layout.find_photos)
    outcomes = list(run(s2f.reconstruct, planned))
    assert [item.status for item in outcomes] == ["made", "failed", "made", "failed"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]


def test_a_batch_skips_what_is_there_and_newer(s2f: SpeechToFace, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_photo(tmp_path / f"in/{name}.jpg")
    planned = plan([tmp_path / "in"], tmp_path / "out", layout.find_photos)
    list(run(s2f.reconstruct, planned))
    (tmp_path / "out/b.png").unlink()
    assert [item.status for item in run(s2f.reconstruct, planned)] == ["skipped", "made"]


def test_a_picture_that_is_older_than_its_source_is_not_overwritten(
    s2f: SpeechToFace, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        write_photo(tmp_path / f"in/{name}.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").write_bytes(b"mine")
    os.utime(tmp_path / "out/a.png", (0, 0))
    planned = plan([tmp_path / "in"], tmp_path / "out", layout.find_photos)
    assert [item.status for item in run(s2f.reconstruct, planned)] == ["failed", "made"]
    assert (tmp_path / "out/a.png").read_bytes() == b"mine"
    again = list(run(s2f.reconstruct, planned, overwrite=True))
    assert [item.status for item in again] == ["made", "made"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cpu_and_gpu_draw_the_same_face(speech: Path) -> None:
    faces = [SpeechToFace.load(device=name).generate(speech).image for name in ("cpu", "cuda")]
    a, b = (np.asarray(face, np.int16) for face in faces)
    assert np.abs(a - b).max() < 2
