"""Faces from speech and photos through the Python interface, with tiny networks."""

import dataclasses
import doctest
import functools
import io
import math
import operator
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import noise, some_landmarks, write_speech, write_turned
from PIL import ExifTags, Image

import s2f.pipeline
from s2f import Face, SpeechToFace, Waveform, checkpoint
from s2f.audio import SAMPLE_RATE, clips, read_speech
from s2f.checkpoint import Card, choose, load_model
from s2f.errors import AudioError, CheckpointError, InputError, OutputError, UsageError
from s2f.face_detection import open_face
from s2f.images import read_text
from s2f.speaker_encoder import AttributeEncoder, AttributeEncoderConfig
from s2f.spectrogram import FRONT_ENDS, spectrogram

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
def test_a_face_is_a_picture_that_says_what_it_is(suffix: str, form: str, tmp_path: Path) -> None:
    FACE.save(tmp_path / f"new/a{suffix}")
    assert (tmp_path / f"new/a{suffix}").read_bytes() == FACE.encoded(suffix)
    with Image.open(io.BytesIO(FACE.encoded(suffix))) as picture:
        assert (picture.format, picture.mode, picture.size) == (form, "RGB", (224, 224))
        assert np.abs(np.asarray(picture, np.int16) - values(FACE)).mean() < 3
        said = " ".join(str(v) for v in (*picture.info.values(), *picture.getexif().values()))
        software = picture.getexif().get(ExifTags.Base.Software, picture.info.get("Software"))
    for words in ("tiny", "made from speech", "not the likeness of a person"):
        assert words in said
    assert str(software).startswith("s2f ")
    with Image.open(io.BytesIO(FACE.encoded(size=448, overlay=True))) as overlay:
        assert overlay.size == (448, 448)
        x, y = np.rint((FACE.landmarks[30] + 0.5) * 2 - 0.5).astype(int)
        assert overlay.getpixel((int(x), int(y))) == (255, 80, 60)


def test_a_face_names_the_networks_it_was_made_with(model: SpeechToFace, tmp_path: Path) -> None:
    face = model.decode(np.zeros(8, np.float32))
    made = {"face_decoder": face, "face_encoder": model.reconstruct(FACE.image, align=False)}
    made["voice_encoder"] = model.generate(EXAMPLE)
    for kind, drawn in made.items():
        drawn.save(tmp_path / "a.png")
        used = dict.fromkeys((kind, "face_decoder"))
        said = [f"{k} {model.model.checkpoints[k].sha256[:12]}" for k in used]
        assert read_text(tmp_path / "a.png")["Networks"] == ", ".join(said)


def test_what_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        FACE.save(tmp_path / "file/a.png")
    with pytest.raises(UsageError, match="gif"):
        FACE.save(tmp_path / "a.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_speech_is_a_file_a_stream_or_an_array(model: SpeechToFace, tmp_path: Path) -> None:
    samples = noise(2)
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE, subtype="FLOAT")
    face = model.generate(str(tmp_path / "a.wav"))
    assert face.image.size == (224, 224) and face.image.mode == "RGB"
    assert face.landmarks.shape == (68, 2) and face.embedding.shape == (8,)
    assert (face.clips, face.model, face.source) == (2, "demo", "speech")
    with (tmp_path / "a.wav").open("rb") as stream:
        for given in (stream, Waveform(samples, SAMPLE_RATE), (samples, SAMPLE_RATE)):
            embedding = model.embed_voice(given)
            assert embedding.dtype == np.float32
            np.testing.assert_array_equal(embedding, face.embedding)
    assert pixels(model.decode(embedding)) == pixels(face)  # in two steps as in one
    for nothing in (samples, 7, [1, 2, 3]):
        with pytest.raises(UsageError, match="speech cannot be read from"):
            model.generate(nothing)
    with pytest.raises(AudioError, match="the recording"):
        model.generate(io.BytesIO(b"text"))


def test_a_photo_is_a_file_a_stream_an_image_or_an_array(model: SpeechToFace, photo: Path) -> None:
    face = model.reconstruct(str(photo), align=False)
    assert (face.image.size, face.clips, face.source) == ((224, 224), 0, "a photo")
    with Image.open(photo) as image, photo.open("rb") as stream:
        for given in (photo, stream, image, np.asarray(image)):
            embedding = model.embed_face(given, align=False)
            np.testing.assert_array_equal(embedding, face.embedding)
    assert pixels(model.decode(embedding.tolist())) == pixels(face)


def test_a_phone_photo_that_is_framed_already_is_turned_once(
    model: SpeechToFace, tmp_path: Path
) -> None:
    x, y = np.meshgrid(np.arange(224), np.arange(224))
    upright = Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))
    wanted = model.embed_face(upright, align=False)
    for path in write_turned(tmp_path, upright).values():
        with Image.open(path) as image, path.open("rb") as stream:
            for given in (path, stream, image, open_face(path, align=False)):
                seen = model.embed_face(given, align=False)
                np.testing.assert_array_equal(seen, wanted)


def test_a_photo_in_black_and_white_is_said_to_be(model: SpeechToFace) -> None:
    x, y = np.meshgrid(np.arange(224), np.arange(224))
    colours = np.stack([120 + x / 4, 90 + y / 4, 80 + x / 8], axis=-1).astype(np.uint8)
    grey = Image.fromarray(colours).convert("L")
    jpeg = io.BytesIO()
    grey.convert("RGB").save(jpeg, "JPEG", quality=80)
    for photo in (grey, jpeg, np.asarray(grey)):
        said = model.reconstruct(photo, align=False).remarks
        assert sum(text.startswith("is black and white: ") for text in said) == 1
    assert "black and white" not in " ".join(model.reconstruct(colours, align=False).remarks)


def test_only_a_part_is_heard_or_all_but_silence(model: SpeechToFace) -> None:
    samples = noise(4)
    part = model.generate(Waveform(samples, 16_000), start=1, duration=2)
    alone = model.generate(Waveform(samples[16_000:48_000], 16_000))
    assert part.clips == alone.clips == 2
    np.testing.assert_array_equal(part.embedding, alone.embedding)
    speech, quiet = noise(1), 1e-4 * noise(0.5, seed=1)
    around = Waveform(np.concatenate([quiet, speech, quiet]), 16_000)
    wanted = model.embed_voice(Waveform(speech, 16_000))
    np.testing.assert_allclose(model.embed_voice(around, trim_silence=40), wanted, atol=1e-4)
    assert not np.allclose(model.embed_voice(around), wanted, atol=1e-2)


def test_a_photo_is_fitted_as_the_face_encoder_wants_it(model: SpeechToFace) -> None:
    rng = np.random.default_rng(0)
    tall = Image.fromarray(rng.integers(0, 256, (224, 112, 3), dtype=np.uint8))
    boxed = Image.new("RGB", (224, 224))
    boxed.paste(tall, (56, 0))
    wanted = model.embed_face(boxed, align=False)
    assert not np.allclose(model.embed_face(tall, align=False), wanted, atol=1e-3)
    encoder = model.model.checkpoints["face_encoder"].network
    encoder.preprocessing = dataclasses.replace(encoder.preprocessing, fit="letterbox")
    np.testing.assert_array_equal(model.embed_face(tall, align=False), wanted)


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
    faces = list(model.generate_all(paths))
    encoder, front_end = model.model.checkpoints["voice_encoder"].network, model.front_end
    for path, face, n_clips in zip(paths, faces, (1, 3, 0, 2, 5), strict=True):
        if isinstance(face, InputError):
            assert not n_clips and isinstance(face, AudioError) and "broken.wav" in face.message
            continue
        assert face.clips == n_clips
        whole = torch.from_numpy(np.stack(clips(read_speech(path), front_end.clip_samples)))
        with torch.no_grad():  # oracle: all clips at once
            wanted = encoder(spectrogram(whole, front_end)).double().mean(0)
        np.testing.assert_allclose(face.embedding, wanted.numpy(), rtol=1e-4, atol=1e-5)
        alone = model.generate(path)
        np.testing.assert_array_equal(face.embedding, alone.embedding)
        assert pixels(face) == pixels(alone)


def test_embeddings_come_as_soon_as_they_may(model: SpeechToFace, tmp_path: Path) -> None:
    paths = recordings(tmp_path)
    for batch_size, read in ((1, 1), (4, 2)):  # 1 + 3 clips fill a batch of 4
        model.batch_size = batch_size
        left = iter(paths)
        done = model.embed_voices(left)
        next(done)
        assert operator.length_hint(left) == 5 - read
        assert len(list(done)) == 4


def test_an_lstm_hears_the_clips_of_a_recording_together_and_of_no_other(
    demo: SpeechToFace, tmp_path: Path
) -> None:
    lengths = (1, 14, 110, 20)  # seconds: the third fills more than a batch
    paths = [write_speech(tmp_path / f"{n}.wav", n, seed=n) for n in lengths]
    left = iter(paths)
    embedded = demo.embed_voices(left)
    first = next(embedded)
    assert operator.length_hint(left) == 3  # no other was waited for
    encoder, front_end = demo.model.checkpoints["voice_encoder"].network, demo.front_end
    for path, item in zip(paths, [first, *embedded], strict=True):
        np.testing.assert_array_equal(item.embedding, demo.embed_voice(path))
        cut = clips(read_speech(path), front_end.clip_samples)
        assert item.clips == len(cut)
        with torch.no_grad():  # oracle: one clip at a time
            rows = [encoder(spectrogram(torch.from_numpy(clip)[None], front_end)) for clip in cut]
        wanted = torch.cat(rows).double().mean(0).numpy()
        np.testing.assert_allclose(item.embedding, wanted, rtol=1e-4, atol=1e-5)


def test_threads_change_no_bit_of_the_bundled_model(
    demo: SpeechToFace, request: pytest.FixtureRequest
) -> None:
    # The bundled networks, as tiny ones are computed on one thread anyway.
    request.addfinalizer(functools.partial(torch.set_num_threads, torch.get_num_threads()))
    spoken = demo.generate(EXAMPLE)
    wanted = demo.reconstruct(spoken.image, align=False)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        face = demo.reconstruct(spoken.image, align=False)
        assert torch.get_num_threads() == threads
        np.testing.assert_array_equal(face.embedding, wanted.embedding)
        assert pixels(face) == pixels(wanted)
        assert pixels(demo.decode(spoken.embedding)) == pixels(spoken)
        face = demo.generate(EXAMPLE)
        np.testing.assert_array_equal(face.embedding, spoken.embedding)
        assert pixels(face) == pixels(spoken)


def test_a_morph_goes_from_one_face_to_another(model: SpeechToFace) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    faces = list(model.morph(a, b, 5))
    assert len(faces) == 5
    assert pixels(faces[0]) == pixels(model.decode(a))
    assert pixels(faces[-1]) == pixels(model.decode(b))
    np.testing.assert_allclose(faces[2].embedding, (a + b) / 2, atol=1e-6)
    with pytest.raises(UsageError, match="1 frames cannot show two faces"):
        list(model.morph(a, b, 1))
    for bad in (np.zeros(7), np.zeros((1, 8)), np.full(8, np.nan), []):
        with pytest.raises(UsageError, match="cannot be drawn"):
            model.decode(bad)


def test_what_is_hardly_a_face_is_remarked_on(demo: SpeechToFace) -> None:
    face = demo.generate(EXAMPLE)
    again = demo.reconstruct(face.image, align=False)
    assert face.remarks == again.remarks == demo.decode(face.embedding).remarks == ()
    squares = Image.fromarray(np.kron(SMOOTH, np.ones((32, 32, 1), np.uint8)))  # no face at all
    upside_down = face.image.rotate(180)
    for picture in (squares, upside_down):
        (said,) = demo.reconstruct(picture, align=False).remarks
        assert re.match(r"lies far from the faces that demo knows: [2-9]\.\d deviations", said)
    far, outside = demo.decode(100 * face.embedding).remarks
    assert far.startswith("lies far from") and "landmarks lie outside the frame" in outside
    for bad in (1e300 * np.ones(1024), "face", [[1], [1, 2]]):
        with pytest.raises(UsageError, match="cannot be drawn"):
            demo.decode(bad)
    with pytest.raises(UsageError, match="too far off to be drawn"):
        demo.decode(1e4 * face.embedding)


def test_one_file_may_take_another_place(model: SpeechToFace, bundled: Path, speech: Path) -> None:
    files = {"voice_encoder": bundled / "demo/voice_encoder.safetensors"}
    mixed = SpeechToFace.load(device="cpu", kinds=("voice_encoder", "face_decoder"), files=files)
    assert pixels(mixed.generate(speech)) == pixels(model.generate(speech))
    assert mixed.model.name != "demo"
    with pytest.raises(UsageError, match="face_encoder was not loaded"):
        mixed.reconstruct(speech)


def test_half_precision_draws_nearly_the_same_face(demo: SpeechToFace) -> None:
    rounded = SpeechToFace.load(device="cpu", precision="bf16").generate(EXAMPLE)
    exact = demo.generate(EXAMPLE)
    assert 0 < np.abs(values(exact) - values(rounded)).mean() < 2
    assert np.abs(exact.landmarks - rounded.landmarks).max() < 1
    # What a CUDA device does by default, as far as a CPU can: it has autocast to float16 too.
    chosen, cpu = choose("demo", ("face_decoder",)), torch.device("cpu")
    half, full = (SpeechToFace(load_model(chosen, keep_half=k), cpu) for k in (True, False))
    assert (half.precision, full.precision) == ("fp16", "fp32")
    embedding = 0.3 * np.random.default_rng(0).standard_normal(1024)
    a, b = half.decode(embedding), full.decode(embedding)
    assert a.landmarks.dtype == np.float32
    assert np.abs(a.landmarks - b.landmarks).max() < 0.05
    assert np.abs(values(a) - values(b)).mean() < 1


def test_values_that_are_not_finite_are_no_face(model: SpeechToFace, speech: Path) -> None:
    model.model.checkpoints["face_decoder"].network.mean_landmarks.fill_(float("inf"))
    with pytest.raises(CheckpointError, match="draws a face that is not finite in fp32"):
        model.generate(speech)
    model.model.checkpoints["voice_encoder"].network.embedding.weight.fill_(float("inf"))
    with pytest.raises(CheckpointError, match="not finite in fp32"):
        model.generate(speech)


def test_the_examples_of_the_interface_are_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    result = doctest.testmod(s2f.pipeline)
    assert result.attempted >= 8 and not result.failed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cpu_and_gpu_draw_the_same_face(bundled: Path, speech: Path) -> None:
    cpu, cuda = (SpeechToFace.load(device=name).generate(speech) for name in ("cpu", "cuda"))
    assert np.abs(values(cpu) - values(cuda)).max() < 2


@pytest.mark.parametrize(
    ("male", "voice", "said"),
    [
        (4.0, 4.0, None),
        (-4.0, 4.0, None),
        (0.5, 4.0, "does not tell the sex (62% sure)"),  # the logistic function of 0.5
        (4.0, -1.0, "sounds like no voice: one is 27% likely"),  # that of -1
    ],
)
def test_what_is_said_of_a_voice_comes_with_the_face(bundled, tmp_path, male, voice, said):
    config = AttributeEncoderConfig(layers=1, width=4, timbre=1, hidden=2, embedding=8)
    encoder = AttributeEncoder(config)
    encoder.said.weight.data.zero_()
    encoder.said.bias.data = torch.tensor([0.0, male, -99.0, voice, math.log(180), 0.0])
    path = tmp_path / "voice.safetensors"
    space = checkpoint.load(bundled / "demo/face_encoder.safetensors", "face_encoder")
    how = {"embedding_space": space.embedding_space, "front_end": FRONT_ENDS["speaker"]}
    checkpoint.save(path, encoder, card=Card("says"), **how)
    face = SpeechToFace.load(device="cpu", files={"voice_encoder": path}).generate(EXAMPLE)
    likely = {"male": male, "voice": voice}
    expected = {name: 1 / (1 + math.exp(-logit)) for name, logit in likely.items()}
    assert face.voice == pytest.approx(expected | {"pitch_hz": 180}, rel=1e-4)
    remarks = [text for text in face.remarks if "sex" in text or "no voice" in text]
    assert bool(remarks) == bool(said) and all(text.startswith(said) for text in remarks)
