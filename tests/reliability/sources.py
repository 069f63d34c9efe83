"""What the commands of the hard suite read, and the process that forks their runs: made once."""

import atexit
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import noise, save_model, some_landmarks, write_photo, write_speech
from demo_sources import write_sources
from PIL import Image
from published_files import Resemblyzers, randomise, write_pretrained
from runs import Run, Runs

_MADE: list[tuple[Path, Runs]] = []


def shared(factory: pytest.TempPathFactory) -> tuple[Path, Runs]:
    """Give the folder of sources, which nothing changes, and the process; it ends with the tests.

    There are recordings, photos, people in folders, trees that are split, with embeddings of the
    model there and without, names, published weights, and the bundled model's sources.
    """
    if _MADE:
        return _MADE[0]
    folder = factory.mktemp("sources")
    save_model(folder / "models/demo", seed=0)
    for k in range(7):
        write_speech(folder / f"sound/{k % 2}/{k}.wav", 0.6, seed=k)
        enlarge(write_photo(folder / f"photos/{k % 2}/{k}.jpg", seed=k))
    for split, k in itertools.product(("train", "val"), range(3)):
        for tree in (folder / "people" / f"{split}{k}", folder / "plain" / split / f"id{k}"):
            write_photo(tree / "images/a.jpg", seed=k)
            np.save(tree / "images/a_landmarks.npy", some_landmarks(k))
            (tree / "audios").mkdir()
            np.save(tree / "audios/a.npy", noise(1, seed=k))
        write_photo(folder / f"faces/p{k}{split}/1.jpg", seed=k)
        np.save(folder / f"faces/p{k}{split}/1_landmarks.npy", some_landmarks(k))
        enlarge(write_photo(folder / f"faces/p{k}{split}/2.jpg", seed=k + 1))
        write_speech(folder / f"voices/p{k}{split}/1.wav", 1, seed=k)
    for k, name in enumerate(("Žoë", "Zoe", "Ann", "Ärne")):
        write_photo(folder / f"names/{name}/{k}.jpg", seed=k)
        write_photo(folder / f"names/{name}/below/same.jpg")
    shutil.copytree(folder / "plain", folder / "packed")
    write_sources(folder / "demo")
    write_pretrained(folder / "pretrained.pt", randomise(Resemblyzers()).state_dict())
    runs = Runs(folder / "models").__enter__()
    atexit.register(runs.__exit__)
    encoder = folder / "models/demo/face_encoder.safetensors"
    words = "prep embeddings {0} {0} --workers 1 -q --face-encoder {1}"
    ended = runs(Run(words.format(folder / "packed", encoder).split()))
    assert ended.code == 0, ended.err
    shutil.rmtree(folder / "packed/.s2f")
    _MADE.append((folder, runs))
    return folder, runs


def enlarge(path: Path) -> None:
    """Make room for the landmarks that `Found` finds: the farther right, the brighter it is."""
    Image.open(path).resize((320, 320)).point(lambda value: value // 4).save(path)
