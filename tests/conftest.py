"""A tiny model, tiny data trees and small recordings, so that every test takes milliseconds."""

import dataclasses
import importlib.util
import multiprocessing.context
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import settings
from PIL import Image, ImageDraw
from torch.nn import functional

from s2f import (
    appearance_model,
    checkpoint,
    face_decoder,
    face_encoder,
    train,
    train_voice,
    voice_encoder,
)
from s2f.audio import SAMPLE_RATE
from s2f.checkpoint import Card
from s2f.images import PREPROCESSING
from s2f.spectrogram import FRONT_ENDS

# Asserted in, but no tests themselves.
pytest.register_assert_rewrite("command_line", "published_figures", "task_checks")
# A deadline measures the machine, and it is busy.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
# As a terminal has it, whoever started pytest: nohup has it ignored, and processes inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Workers of all tests are forked from one process, which has what any of them imports: the first to
# be started decides, and others would import theirs anew each time.
PRELOAD = ["s2f.prep_audio", "s2f.prep_faces", "s2f.pack", "torch", "av", "soxr", "h5py"]
PRELOAD += ["dlib"] if importlib.util.find_spec("dlib") else []
set_preload = multiprocessing.context.BaseContext.set_forkserver_preload
multiprocessing.context.BaseContext.set_forkserver_preload = lambda self, _: set_preload(
    self, PRELOAD
)
# Threads that wait for each other cost tiny networks more than they gain.
torch.set_num_threads(1)

FACES = Path(__file__).parents[2] / "shared/data/faces"
real_faces = pytest.mark.skipif(not FACES.is_dir(), reason="needs the real faces")
EMBEDDING = 8
FRONT_END = dataclasses.replace(FRONT_ENDS["ast"], kind="log_mel", clip_samples=SAMPLE_RATE)
VOICE = voice_encoder.VoiceEncoderConfig(
    in_channels=1,
    n_freqs=128,
    kernel=3,
    channels=(4, 4),
    strides=(2, 2),
    pools=((4, 2), (2, 2)),
    hidden=8,
    embedding=EMBEDDING,
)
ENCODER = face_encoder.VGGFaceConfig(
    layers=(4, "M", 4, "M"),
    image_size=28,
    hidden=8,
    embedding=EMBEDDING,
    identities=0,
    final_relu=False,
    batch_norm=True,
)
DECODER = face_decoder.FaceDecoderConfig(
    embedding=EMBEDDING,
    trunk=(),
    landmark_hidden=(),
    seed_size=28,
    windows=2,
    axes=1,
    detail=True,
    stages=(),
    output="linear",
)
# As the paper's: one that is learned, and no linear model.
STAGED = face_decoder.FaceDecoderConfig(
    embedding=EMBEDDING,
    trunk=(64,),
    landmark_hidden=(32,),
    seed_size=28,
    seed_channels=24,
    seed_relu=False,
    stages=((3, 16, 8),),
)
PARTS = appearance_model.PartsEncoderConfig(
    embedding=EMBEDDING, landmarks=68, windows=2, axes=1, finder=(4, 4, 4, 4, 4, 8, 8)
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes hours, unless it is asked for by name; -m '' is of everything else."""
    if "reliability" not in config.option.markexpr:
        long = [item for item in items if item.get_closest_marker("reliability")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def some_landmarks(seed: int = 0) -> np.ndarray:
    """68 points that lie apart, somewhere in the middle of the frame."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(9), np.arange(8)), axis=-1).reshape(-1, 2)[:68]
    return (60 + 13 * grid + rng.uniform(-2, 2, (68, 2))).astype(np.float32)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mixes(ways: torch.Tensor, n: int, seed: int = 0) -> torch.Tensor:
    """N normal mixes of some ways to be different."""
    return torch.einsum("nk,k...->n...", normal(n, len(ways), seed=seed), ways)


def some_faces(n: int = 30, ways: int = 3, size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Textures [n 3 size size] of plain blocks, and landmarks [n 5 2], that vary in a few ways."""
    textures = mixes(normal(ways, 3, size // 8, size // 8, seed=1), n)
    landmarks = mixes(normal(ways, 5, 2, seed=3), n, seed=2)
    return 0.5 + 0.1 * functional.interpolate(textures, scale_factor=8), 50 + 5 * landmarks


def save_model(folder: Path, seed: int) -> Path:
    """Write a model of three random networks that share one embedding space."""
    torch.manual_seed(seed)
    encoder = face_encoder.VGGFace(ENCODER, PREPROCESSING["paper"])
    decoder = face_decoder.FaceDecoder(DECODER)
    voice = voice_encoder.VoiceEncoder(VOICE)
    decoder.mean_landmarks.copy_(torch.from_numpy(some_landmarks()))
    with torch.no_grad():  # random networks hardly tell one input from another
        voice.embedding.weight *= 100
    card = Card("tiny", description="random weights", licence="none")
    space = checkpoint.save(folder / "face_encoder.safetensors", encoder, card=card)
    checkpoint.save(folder / "face_decoder.safetensors", decoder, card=card, embedding_space=space)
    checkpoint.save(
        folder / "voice_encoder.safetensors",
        voice,
        card=card,
        embedding_space=space,
        front_end=FRONT_END,
    )
    return folder


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Have the tests of a file, which share servers, clusters and trees, run in one process."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "loadfile"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models: `demo`, and `other` with another embedding space. Not to be changed."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "demo", seed=0)
    save_model(folder / "other", seed=1)
    return folder


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for temporary files of a server."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture
def bundled(models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the tiny models in the place of the bundled ones, and start anywhere."""
    monkeypatch.setattr(checkpoint, "MODELS", models)
    monkeypatch.setenv("S2F_MODELS", str(models / "none"))  # not the user's
    return models


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have trainings tell of every step, not only of some in half a second."""
    monkeypatch.setattr(train, "PAUSE", 0)


@pytest.fixture
def presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `compact` and `paper` tiny networks with the 68 landmarks."""
    shrink(monkeypatch)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what `presets` does, also where there are no fixtures."""
    monkeypatch.setitem(face_encoder.CONFIGS, "paper", ENCODER)
    monkeypatch.setitem(appearance_model.CONFIGS, "compact", PARTS)
    monkeypatch.setitem(face_decoder.CONFIGS, "compact", DECODER)
    monkeypatch.setitem(face_decoder.CONFIGS, "paper", STAGED)
    for preset, shortest in (("compact", SAMPLE_RATE // 3), ("paper", None)):
        tiny = dataclasses.replace(
            train_voice.PRESETS["conv", preset],
            network=VOICE,
            front_end=FRONT_END,
            shortest=shortest,
        )
        monkeypatch.setitem(train_voice.PRESETS, ("conv", preset), tiny)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """A waveform [n] that is no silence: noise, and a tone that is higher for a higher seed.

    It is loud and soft by turns, as speech is.
    """
    rng = np.random.default_rng(seed)
    times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tone = np.sin(2 * np.pi * 300 * (1 + 4 * seed) * times)
    waveform = 0.2 * tone + 0.01 * rng.standard_normal(len(times))
    return (waveform * np.where(times // 0.2 % 2, 0.3, 1)).astype(np.float32)


def write_speech(path: Path, seconds: float = 1, seed: int = 0) -> Path:
    """Write noise as a recording."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(seconds, seed), SAMPLE_RATE)
    return path


def write_photo(path: Path, seed: int = 0) -> Path:
    """Write a drawn face."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shade = 40 * seed % 200
    face = Image.new("RGB", (224, 224), (210, 215, 220))
    pen = ImageDraw.Draw(face)
    pen.ellipse((50, 30, 174, 210), fill=(200, shade, 120))
    for x in (84, 140):
        pen.ellipse((x - 8, 95, x + 8, 111), fill=(40, 40, 40))
    face.save(path)
    return path


def write_turned(folder: Path, picture: Image.Image) -> dict[int, Path]:
    """Write a picture as a camera held in each way stores it, by EXIF's orientation 1 to 8."""
    turns = Image.Transpose
    stored = {2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM}
    stored |= {5: turns.TRANSPOSE, 6: turns.ROTATE_90, 7: turns.TRANSVERSE, 8: turns.ROTATE_270}
    exif, paths = Image.Exif(), {}
    for orientation in range(1, 9):
        exif[0x0112], turn = orientation, stored.get(orientation)
        paths[orientation] = folder / f"turned{orientation}.png"
        (picture if turn is None else picture.transpose(turn)).save(paths[orientation], exif=exif)
    return paths


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """A recording."""
    return write_speech(tmp_path / "speech.wav")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photo."""
    return write_photo(tmp_path / "photo.jpg")


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """A face tree of three identities a split."""
    tree = tmp_path / "faces"
    for split in ("train", "val"):
        for k in range(3):
            write_photo(tree / split / f"id{k}" / "a.jpg", seed=k)
            np.save(tree / split / f"id{k}" / "a_landmarks.npy", some_landmarks(k))
    return tree


def write_voices(tree: Path) -> Path:
    """Write a voice tree of three identities a split."""
    for split in ("train", "val"):
        for k in range(3):
            write_photo(tree / split / f"id{k}" / "images" / "a.jpg", seed=k)
            (tree / split / f"id{k}" / "audios").mkdir()
            np.save(tree / split / f"id{k}" / "audios" / "a.npy", noise(1, seed=k))
    return tree


@pytest.fixture
def voices(tmp_path: Path) -> Path:
    """A voice tree of three identities a split."""
    return write_voices(tmp_path / "voices")
