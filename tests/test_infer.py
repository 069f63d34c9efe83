"""Faces from speech and photos, through the Python interface, with tiny networks."""

import dataclasses
import doctest
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import FRONT_END, noise, write_speech
from PIL import Image

import s2f.pipeline
from s2f import Face, SpeechToFace, Waveform, audio
from s2f.checkpoint import choose, load_model
from s2f.errors import AudioError, CheckpointError, DeviceError, ImageError, UsageError
from s2f.face_detection import open_face

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def model(bundled: Path) -> SpeechToFace:
    return SpeechToFace.load(device="cpu")


def pixels(face: Face) -> bytes:
    return face.image.tobytes()


def test_speech_gives_a_face(model: SpeechToFace, speech: Path) -> None:
    face = model.generate(str(speech))
    assert face.image.size == (224, 224) and face.image.mode == "RGB"
    assert face.landmarks.shape == (68, 2) and face.embedding.shape == (8,)
    assert (face.clips, face.model, face.source) == (1, "demo", "speech")


def test_a_photo_gives_a_face(model: SpeechToFace, photo: Path) -> None:
    face = model.reconstruct(str(photo), align=False)
    assert face.image.size == (224, 224)
    assert (face.clips, face.source) == (0, "a photo")


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
    soundfile.write(tmp_path / "a.wav", samples, audio.SAMPLE_RATE, subtype="FLOAT")
    wanted = model.generate(tmp_path / "a.wav").embedding
    with (tmp_path / "a.wav").open("rb") as stream:
        np.testing.assert_array_equal(model.generate(stream).embedding, wanted)
    array = Waveform(samples, audio.SAMPLE_RATE)
    np.testing.assert_array_equal(model.generate(array).embedding, wanted)


def test_a_photo_may_be_a_file_a_stream_an_image_or_an_array(
    model: SpeechToFace, photo: Path
) -> None:
    wanted = model.embed_face(photo, align=False)
    with Image.open(photo) as image, photo.open("rb") as stream:
        for given in (stream, image, np.asarray(image)):
            np.testing.assert_array_equal(model.embed_face(given, align=False), wanted)


def test_a_part_of_a_recording_is_heard_alone(model: SpeechToFace) -> None:
    samples = noise(3)
    part = model.generate(Waveform(samples, 16_000), start=1, duration=1)
    alone = model.generate(Waveform(samples[16_000:32_000], 16_000))
    np.testing.assert_array_equal(part.embedding, alone.embedding)
    assert part.clips == 1


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


def test_the_largest_face_of_a_photo_is_found() -> None:
    pytest.importorskip("dlib")
    person = REPOSITORY.parent / "shared/data/faces/001/neutral.jpg"
    if not person.is_file():
        pytest.skip("the real faces (shared/data/faces) are not beside the repository")
    with Image.open(person) as framed:
        wide = Image.new("RGB", (700, 500), (90, 120, 150))
        wide.paste(framed.resize((200, 200)).rotate(20, fillcolor=(90, 120, 150)), (400, 150))
    cut = open_face(wide)
    assert cut.size == (224, 224)
    # Against the set's own framing, which is by pupils, not by contours of the eyes.
    with Image.open(person) as framed:
        small = np.asarray(framed.resize((224, 224)).crop((70, 70, 154, 180)), np.float32)
    assert np.abs(np.asarray(cut.crop((70, 70, 154, 180)), np.float32) - small).mean() < 12


def test_a_photo_without_a_face_is_refused(model: SpeechToFace, tmp_path: Path) -> None:
    pytest.importorskip("dlib")
    Image.new("RGB", (300, 300), "gray").save(tmp_path / "wall.png")
    with pytest.raises(ImageError, match=r"wall\.png: no face"):
        model.reconstruct(tmp_path / "wall.png", detector="dlib")


def test_the_same_input_gives_the_same_face(model: SpeechToFace, speech: Path) -> None:
    assert pixels(model.generate(speech)) == pixels(model.generate(speech))


def test_company_changes_no_bit(model: SpeechToFace, tmp_path: Path) -> None:
    paths = [write_speech(tmp_path / f"{k}.wav", k, seed=k) for k in (1, 3, 2)]
    together = list(model.generate_all([*paths, tmp_path / "none.wav"]))
    assert isinstance(together.pop(), AudioError)
    for face, path in zip(together, paths, strict=True):
        alone = model.generate(path)
        np.testing.assert_array_equal(face.embedding, alone.embedding)
        assert pixels(face) == pixels(alone)


def test_threads_change_no_bit() -> None:
    # The bundled networks, as tiny ones are computed on one thread anyway.
    model = SpeechToFace.load(device="cpu")
    example, faces = REPOSITORY / "examples/speech.wav", []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            faces.append(model.generate(example))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for face in faces[1:]:
        np.testing.assert_array_equal(face.embedding, faces[0].embedding)
        assert pixels(face) == pixels(faces[0])


def test_longer_speech_averages_the_embeddings_of_its_clips(model: SpeechToFace) -> None:
    # Parts of equal loudness, or normalising the whole would not be normalising each.
    parts = [noise(1, seed) for seed in (1, 2, 3)]
    waves = [Waveform(part, audio.SAMPLE_RATE) for part in (*parts, np.concatenate(parts))]
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


def test_a_morph_needs_two_embeddings_and_frames(model: SpeechToFace) -> None:
    for first, last, frames in ((np.zeros(8), np.zeros(7), 3), (np.zeros(8), np.zeros(8), 1)):
        with pytest.raises(UsageError, match="cannot"):
            list(model.morph(first, last, frames))


@pytest.mark.parametrize("bad", [np.zeros(7), np.zeros((1, 8)), np.full(8, np.nan), []])
def test_what_is_no_embedding_is_refused(model: SpeechToFace, bad: np.ndarray) -> None:
    with pytest.raises(UsageError, match="cannot be drawn"):
        model.decode(bad)


def test_only_what_is_needed_is_loaded(bundled: Path) -> None:
    model = SpeechToFace.load(device="cpu", kinds=("voice_encoder", "face_decoder"))
    assert set(model.model.checkpoints) == {"voice_encoder", "face_decoder"}
    assert model.model.checkpoints["voice_encoder"].front_end == FRONT_END


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
    assert np.abs(np.asarray(a.image, np.int16) - np.asarray(b.image, np.int16)).mean() < 1


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


def test_a_network_that_was_not_loaded_is_named(bundled: Path, speech: Path) -> None:
    kinds = ("face_encoder", "face_decoder")
    with pytest.raises(UsageError, match="voice_encoder was not loaded"):
        SpeechToFace.load(device="cpu", kinds=kinds).generate(speech)


def test_half_precision_draws_nearly_the_same_face() -> None:
    example = REPOSITORY / "examples/speech.wav"
    faces = [
        SpeechToFace.load(device="cpu", precision=precision).generate(example)
        for precision in ("fp32", "bf16")
    ]
    a, b = (np.asarray(face.image, np.int16) for face in faces)
    assert 0 < np.abs(a - b).mean() < 2
    assert np.abs(faces[0].landmarks - faces[1].landmarks).max() < 1


def test_a_precision_that_a_device_lacks_is_refused(bundled: Path) -> None:
    with pytest.raises(DeviceError, match="fp16"):
        SpeechToFace.load(device="cpu", precision="fp16")
    with pytest.raises(UsageError, match="int4"):
        SpeechToFace.load(device="cpu", precision="int4")


def test_a_broken_recording_is_refused(model: SpeechToFace, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("text")
    with pytest.raises(AudioError, match=r"a\.wav"):
        model.generate(tmp_path / "a.wav")
    with pytest.raises(AudioError, match="the recording"):
        model.embed_voice(io.BytesIO(b"text"))


def test_the_examples_of_the_interface_are_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    result = doctest.testmod(s2f.pipeline)
    assert result.attempted >= 8 and not result.failed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cpu_and_gpu_draw_the_same_face(bundled: Path, speech: Path) -> None:
    faces = [SpeechToFace.load(device=name).generate(speech).image for name in ("cpu", "cuda")]
    a, b = (np.asarray(face, np.int16) for face in faces)
    assert np.abs(a - b).max() < 2
