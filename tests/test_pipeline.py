"""Faces from speech and photos through the Python interface, with tiny networks."""

import dataclasses
import doctest
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import noise, some_landmarks, write_speech
from PIL import ExifTags, Image

import s2f.pipeline
from s2f import Face, SpeechToFace, Waveform
from s2f.audio import SAMPLE_RATE, clips, read_speech
from s2f.checkpoint import choose, load_model
from s2f.errors import (
    AudioError,
    CheckpointError,
    DeviceError,
    ImageError,
    InputError,
    OutputError,
    UsageError,
)
from s2f.spectrogram import spectrogram

REPOSITORY = Path(__file__).parents[1]
EXAMPLE = REPOSITORY / "examples/speech.wav"
RNG = np.random.default_rng(0)
SMOOTH = RNG.integers(0, 256, (7, 7, 3), dtype=np.uint8)
FACE = Face(
    Image.fromarray(SMOOTH).resize((224, 224), Image.Resampling.BICUBIC),
    some_landmarks(),
    RNG.standard_normal(8).astype(np.float32),
    "speech",
    2,
    "tiny",
)


@pytest.fixture
def model(bundled: Path) -> SpeechToFace:
    return SpeechToFace.load(device="cpu")


@pytest.fixture(scope="module")
def demo() -> SpeechToFace:
    """The bundled model itself. Not to be changed."""
    return SpeechToFace.load(device="cpu")


def pixels(face: Face) -> bytes:
    return face.image.tobytes()


def values(face: Face) -> np.ndarray:
    return np.asarray(face.image, np.int16)


@pytest.mark.parametrize(("suffix", "form"), [(".png", "PNG"), (".jpg", "JPEG"), (".webp", "WEBP")])
def test_a_face_is_a_picture_that_says_what_it_is(suffix: str, form: str) -> None:
    assert FACE.encoded(suffix) == FACE.encoded(suffix)
    with Image.open(io.BytesIO(FACE.encoded(suffix))) as picture:
        assert (picture.format, picture.mode, picture.size) == (form, "RGB", (224, 224))
        difference = np.asarray(picture, np.int16) - np.asarray(FACE.image, np.int16)
        said = " ".join(str(v) for v in (*picture.info.values(), *picture.getexif().values()))
        software = picture.getexif().get(ExifTags.Base.Software, picture.info.get("Software"))
    assert np.abs(difference).mean() < 3
    for words in ("tiny", "made from speech", "not the likeness of a person"):
        assert words in said
    assert str(software).startswith("s2f ")


def test_the_overlay_scales_with_the_picture() -> None:
    with Image.open(io.BytesIO(FACE.encoded(size=448, overlay=True))) as overlay:
        assert overlay.size == (448, 448)
        x, y = np.rint((FACE.landmarks[30] + 0.5) * 2 - 0.5).astype(int)
        assert overlay.getpixel((int(x), int(y))) == (255, 80, 60)


def test_a_face_is_saved_by_its_suffix(tmp_path: Path) -> None:
    FACE.save(tmp_path / "new/a.webp", size=64)
    with Image.open(tmp_path / "new/a.webp") as picture:
        assert (picture.format, picture.size) == ("WEBP", (64, 64))


def test_what_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        FACE.save(tmp_path / "file/a.png")
    with pytest.raises(UsageError, match="gif"):
        FACE.save(tmp_path / "a.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_speech_or_a_photo_gives_a_face(model: SpeechToFace, speech: Path, photo: Path) -> None:
    face = model.generate(str(speech))
    assert face.image.size == (224, 224) and face.image.mode == "RGB"
    assert face.landmarks.shape == (68, 2) and face.embedding.shape == (8,)
    assert (face.clips, face.model, face.source) == (1, "demo", "speech")
    drawn = model.reconstruct(str(photo), align=False)
    assert (drawn.image.size, drawn.clips, drawn.source) == ((224, 224), 0, "a photo")
    with pytest.raises(AudioError, match="the recording"):
        model.embed_voice(io.BytesIO(b"text"))
    half = SpeechToFace.load(device="cpu", kinds=("face_encoder", "face_decoder"))
    assert list(half.model.checkpoints) == ["face_encoder", "face_decoder"]
    with pytest.raises(UsageError, match="voice_encoder was not loaded"):
        half.generate(speech)


def test_a_face_comes_in_two_steps_as_in_one(
    model: SpeechToFace, speech: Path, photo: Path
) -> None:
    embedding = model.embed_voice(speech)
    assert embedding.shape == (8,) and embedding.dtype == np.float32
    assert pixels(model.decode(embedding)) == pixels(model.generate(speech))
    embedding = model.embed_face(photo, align=False)
    assert pixels(model.decode(embedding.tolist())) == pixels(model.reconstruct(photo, align=False))


def test_speech_may_be_a_file_a_stream_or_an_array(model: SpeechToFace, tmp_path: Path) -> None:
    samples = noise(2)
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE, subtype="FLOAT")
    wanted = model.generate(tmp_path / "a.wav").embedding
    with (tmp_path / "a.wav").open("rb") as stream:
        np.testing.assert_array_equal(model.generate(stream).embedding, wanted)
    array = Waveform(samples, SAMPLE_RATE)
    np.testing.assert_array_equal(model.generate(array).embedding, wanted)


def test_a_photo_may_be_a_file_a_stream_an_image_or_an_array(
    model: SpeechToFace, photo: Path
) -> None:
    wanted = model.embed_face(photo, align=False)
    with Image.open(photo) as image, photo.open("rb") as stream:
        for given in (stream, image, np.asarray(image)):
            np.testing.assert_array_equal(model.embed_face(given, align=False), wanted)


def test_silence_around_speech_is_left_out(model: SpeechToFace) -> None:
    samples = noise(1)
    quiet = 1e-4 * noise(0.5, seed=1)
    around = Waveform(np.concatenate([quiet, samples, quiet]), 16_000)
    trimmed = model.embed_voice(around, trim_silence=40)
    alone = model.embed_voice(Waveform(samples, 16_000))
    np.testing.assert_allclose(trimmed, alone, atol=1e-4)
    assert not np.allclose(model.embed_voice(around), alone, atol=1e-2)


def test_a_photo_is_fitted_as_the_face_encoder_wants_it(
    model: SpeechToFace, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    tall = Image.fromarray(rng.integers(0, 256, (224, 112, 3), dtype=np.uint8))
    boxed = Image.new("RGB", (224, 224))
    boxed.paste(tall, (56, 0))
    wanted = model.embed_face(boxed, align=False)
    assert not np.allclose(model.embed_face(tall, align=False), wanted, atol=1e-3)
    encoder = model.model.checkpoints["face_encoder"].network
    encoder.preprocessing = dataclasses.replace(encoder.preprocessing, fit="letterbox")
    np.testing.assert_array_equal(model.embed_face(tall, align=False), wanted)


def test_a_photo_without_a_face_is_refused(model: SpeechToFace, tmp_path: Path) -> None:
    pytest.importorskip("dlib")
    Image.new("RGB", (300, 300), "gray").save(tmp_path / "wall.png")
    with pytest.raises(ImageError, match=r"wall\.png: no face"):
        model.reconstruct(tmp_path / "wall.png", detector="dlib")


def recordings(folder: Path) -> list[Path]:
    """Recordings of 1, 3, 2 and 5 clips; the third of five is broken."""
    paths = [write_speech(folder / f"{k}.wav", k, seed=k) for k in (1, 3)]
    (folder / "broken.wav").write_text("text")
    return [*paths, folder / "broken.wav", *(write_speech(folder / f"{k}.wav", k) for k in (2, 5))]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
def test_a_recording_is_the_mean_of_its_clips_in_any_company(
    model: SpeechToFace, tmp_path: Path, batch_size: int
) -> None:
    paths = recordings(tmp_path)
    model.batch_size = batch_size
    done = list(model.embed_voices(paths))
    assert [item.clips for item in done if not item.error] == [1, 3, 2, 5]
    assert isinstance(done[2].error, AudioError) and "broken.wav" in done[2].error.message
    encoder, front_end = model.model.checkpoints["voice_encoder"].network, model.front_end
    for path, item in zip(paths, done, strict=True):
        if item.error:
            continue
        whole = torch.from_numpy(np.stack(clips(read_speech(path), front_end.clip_samples)))
        with torch.no_grad():  # oracle: all clips at once
            wanted = encoder(spectrogram(whole, front_end)).double().mean(0)
        np.testing.assert_allclose(item.embedding, wanted.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(item.embedding, model.embed_voice(path))


def test_embeddings_come_as_soon_as_they_may(model: SpeechToFace, tmp_path: Path) -> None:
    asked: list[int] = []

    def one_by_one() -> Iterator[Path]:
        for k, path in enumerate(recordings(tmp_path)):
            asked.append(k)
            yield path

    for batch_size, read in ((1, [0]), (4, [0, 1])):  # 1 + 3 clips fill a batch of 4
        model.batch_size = batch_size
        asked.clear()
        done = model.embed_voices(one_by_one())
        next(done)
        assert asked == read
        assert len(list(done)) == 4


def test_faces_of_many_recordings_are_those_of_each(model: SpeechToFace, tmp_path: Path) -> None:
    paths = recordings(tmp_path)
    for path, face in zip(paths, model.generate_all(paths), strict=True):
        if path.name == "broken.wav":
            assert isinstance(face, InputError)
        else:
            assert pixels(face) == pixels(model.generate(path))


def test_a_part_is_heard_as_a_recording_of_its_own(model: SpeechToFace) -> None:
    samples = noise(4)
    part = model.generate(Waveform(samples, 16_000), start=1, duration=2)
    alone = model.generate(Waveform(samples[16_000:48_000], 16_000))
    assert part.clips == alone.clips == 2
    np.testing.assert_array_equal(part.embedding, alone.embedding)


def test_threads_change_no_bit(demo: SpeechToFace) -> None:
    # The bundled networks, as tiny ones are computed on one thread anyway.
    faces = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            faces.append(demo.generate(EXAMPLE))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for face in faces[1:]:
        np.testing.assert_array_equal(face.embedding, faces[0].embedding)
        assert pixels(face) == pixels(faces[0])


def test_longer_speech_averages_the_embeddings_of_its_clips(model: SpeechToFace) -> None:
    # Parts of equal loudness, or normalising the whole would not be normalising each.
    parts = [noise(1, seed) for seed in (1, 2, 3)]
    waves = [Waveform(part, SAMPLE_RATE) for part in (*parts, np.concatenate(parts))]
    faces = [model.generate(wave) for wave in waves]
    assert faces[3].clips == 3
    mean = np.mean([face.embedding for face in faces[:3]], axis=0)
    np.testing.assert_allclose(faces[3].embedding, mean, atol=1e-4)


def test_a_morph_goes_from_one_face_to_another(model: SpeechToFace) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    faces = list(model.morph(a, b, 5))
    assert len(faces) == 5
    assert pixels(faces[0]) == pixels(model.decode(a))
    assert pixels(faces[-1]) == pixels(model.decode(b))
    np.testing.assert_allclose(faces[2].embedding, (a + b) / 2, atol=1e-6)
    with pytest.raises(UsageError, match="1 frames cannot show two faces"):
        list(model.morph(a, b, 1))


@pytest.mark.parametrize("bad", [np.zeros(7), np.zeros((1, 8)), np.full(8, np.nan), []])
def test_what_is_no_embedding_is_refused(model: SpeechToFace, bad: np.ndarray) -> None:
    with pytest.raises(UsageError, match="cannot be drawn"):
        model.decode(bad)


def test_one_checkpoint_may_take_the_place_of_another(bundled: Path, speech: Path) -> None:
    other = {"voice_encoder": bundled / "other" / "voice_encoder.safetensors"}
    with pytest.raises(CheckpointError, match="different embedding spaces"):
        SpeechToFace.load(device="cpu", files=other)
    same = {"voice_encoder": bundled / "demo" / "voice_encoder.safetensors"}
    mixed = SpeechToFace.load(device="cpu", files=same)
    assert pixels(mixed.generate(speech)) == pixels(
        SpeechToFace.load(device="cpu").generate(speech)
    )
    assert mixed.model.name != "demo"


def test_weights_that_stay_half_cost_no_precision_of_points() -> None:
    # What a CUDA device does by default, as far as a CPU can: it has autocast to float16 too.
    files = choose("demo", ("face_decoder",)), choose("demo", ("face_decoder",))
    half = SpeechToFace(load_model(files[0], keep_half=True), torch.device("cpu"))
    full = SpeechToFace(load_model(files[1]), torch.device("cpu"))
    assert (half.precision, full.precision) == ("fp16", "fp32")
    embedding = 0.3 * np.random.default_rng(0).standard_normal(1024)
    a, b = half.decode(embedding), full.decode(embedding)
    assert a.landmarks.dtype == np.float32
    assert np.abs(a.landmarks - b.landmarks).max() < 0.05
    assert np.abs(values(a) - values(b)).mean() < 1


def test_values_that_are_not_finite_are_no_face(model: SpeechToFace, speech: Path) -> None:
    network = model.model.checkpoints["voice_encoder"].network
    network.embedding.weight.fill_(float("inf"))
    with pytest.raises(CheckpointError, match="not finite in fp32"):
        model.generate(speech)


def test_what_is_no_speech_is_refused(model: SpeechToFace) -> None:
    for speech in (noise(1), 7, [1, 2, 3]):
        with pytest.raises(UsageError, match="speech cannot be read from"):
            model.generate(speech)
    assert model.generate((noise(1), 16_000)).clips == 1


def test_half_precision_draws_nearly_the_same_face(demo: SpeechToFace) -> None:
    half = SpeechToFace.load(device="cpu", precision="bf16").generate(EXAMPLE)
    full = demo.generate(EXAMPLE)
    assert 0 < np.abs(values(full) - values(half)).mean() < 2
    assert np.abs(full.landmarks - half.landmarks).max() < 1


def test_a_precision_or_a_device_that_is_not_there_is_refused(bundled: Path) -> None:
    for options in ({"precision": "fp16"}, {"device": "cuda:99"}):
        with pytest.raises(DeviceError):
            SpeechToFace.load(**{"device": "cpu", **options})


def test_the_examples_of_the_interface_are_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    result = doctest.testmod(s2f.pipeline)
    assert result.attempted >= 8 and not result.failed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cpu_and_gpu_draw_the_same_face(bundled: Path, speech: Path) -> None:
    cpu, cuda = (SpeechToFace.load(device=name).generate(speech) for name in ("cpu", "cuda"))
    assert np.abs(values(cpu) - values(cuda)).max() < 2
