"""Keras as the judge of conversions: of files that it wrote, and of what it refuses."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import published_files as files
import pytest
import torch
from published_files import narrow, needs_tensorflow, published

from s2f import checkpoint, convert, keras_check
from s2f.convert import convert_vgg_face
from s2f.errors import CheckpointError
from s2f.images import PREPROCESSING

pytestmark = pytest.mark.usefixtures("narrow")
__all__ = ["narrow", "published"]
SIZES = dataclasses.asdict(files.VGG)

# Writes the weights of a narrow VGG-Face in three layouts (save_weights of Keras 1 and 2, a whole
# model, `.weights.h5` of Keras 3) and images with what Keras makes of them.
WRITE = """
import dataclasses, pathlib, sys, h5py, published_files, numpy as np
from tensorflow import keras
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group
from s2f.keras_check import build_keras
for origin in ("serengil", "rcmalli"):
    folder = pathlib.Path(sys.argv[1], origin)
    folder.mkdir()
    model, taps = build_keras(keras, origin, dataclasses.asdict(published_files.VGG))
    model.set_weights([w for pair in published_files.keras_arrays(origin) for w in pair])
    with h5py.File(folder / "legacy.h5", "w") as file:
        save_weights_to_hdf5_group(file, model)
    model.save(folder / "model.h5")
    model.save_weights(folder / "new.weights.h5")
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    features, embedding, logits = keras.Model(model.inputs[0], taps)(images, training=False)
    np.savez(folder / "taps.npz", images, features, embedding, logits)
"""


@pytest.fixture(scope="session")
def by_keras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a folder an origin, of files that Keras wrote."""
    folder = tmp_path_factory.mktemp("keras")
    places = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    command, environment = [sys.executable, "-c", WRITE, folder], {"PYTHONPATH": places}
    subprocess.run(command, check=True, capture_output=True, env=os.environ | environment)
    return folder


@needs_tensorflow
@pytest.mark.parametrize("layout", ["legacy.h5", "model.h5", "new.weights.h5"])
@pytest.mark.parametrize("origin", ["serengil", "rcmalli"])
def test_files_of_keras_give_what_it_gave(
    by_keras: Path, origin: Any, layout: str, tmp_path: Path
) -> None:
    convert_vgg_face(by_keras / origin / layout, tmp_path / "out", origin=origin)
    network: Any = checkpoint.load(tmp_path / "out", "face_encoder").network
    network.preprocessing = PREPROCESSING["seed"]  # the images are prepared
    network.mean.zero_()
    images, *wanted = np.load(by_keras / origin / "taps.npz").values()
    features = network.features(torch.from_numpy(images).permute(0, 3, 1, 2))
    embedding = network.embed(features)
    found = features.permute(0, 2, 3, 1), embedding, network.logits(embedding)
    for tensor, expected in zip(found, wanted, strict=True):
        size = np.abs(expected).max()
        assert size > 0
        np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-4 * size, rtol=0)


@needs_tensorflow
def test_keras_finds_what_numpy_does_not(
    published: Path, tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    source, out = published / "serengil.h5", tmp_path / "out"
    asked = []
    ask = keras_check.keras_taps
    monkeypatch.setattr(convert, "keras_taps", lambda *given: asked.append(ask(*given)) or asked[0])
    made = convert_vgg_face(source, out, origin="serengil", verify=True)
    assert made.verified is not None
    assert set(made.verified) == {"features", "embedding", "logits"}
    assert max(made.verified.values()) < 1e-4
    assert capfd.readouterr() == ("", "")  # TensorFlow's own words among them
    assert not {"tensorflow", "keras"} & set(sys.modules)
    order = list(files.AUTOMATIC)
    order[8], order[9] = order[9], order[8]  # of the same shape
    monkeypatch.setattr(convert, "keras_names", lambda origin, names: tuple(order))
    monkeypatch.setattr(convert, "keras_taps", lambda *given: asked[0])  # each time takes seconds
    out.unlink()
    with pytest.raises(CheckpointError, match="what Keras makes of the file"):
        convert_vgg_face(source, out, origin="serengil", verify=True)
    assert not out.exists()


@needs_tensorflow
def test_keras_refuses_a_file_of_another_net(by_keras: Path) -> None:
    images, source = np.zeros((1, 32, 32, 3), np.float32), by_keras / "rcmalli/new.weights.h5"
    with pytest.raises(CheckpointError, match="does not load it into the network of") as caught:
        keras_check.keras_taps(source, "serengil", SIZES, images)
    assert str(source) in caught.value.message


def die(*_: object) -> None:
    os._exit(3)


def test_the_death_of_kerass_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras_check, "_run", die)
    with pytest.raises(CheckpointError, match="w: the process in which Keras reads it died"):
        keras_check.keras_taps(Path("w"), "serengil", SIZES, np.zeros((1, 32, 32, 3), np.float32))
