"""VGG-Face as Keras itself builds and loads it: the judge that `s2f convert --verify` asks.

The only module that imports TensorFlow, and only in a process of its own. Knows nothing of torch,
checkpoints or our names: a file and prepared images become three taps.

Source: the layers of serengil/deepface and rcmalli/keras-vggface, built with Keras' own.
"""

import importlib.util
import multiprocessing
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from s2f.errors import CheckpointError, DependencyError

Origin = Literal["serengil", "rcmalli"]
Array = NDArray[np.float32]


def require_tensorflow() -> None:
    """Raise a `DependencyError` if TensorFlow is not installed; does not import it."""
    if importlib.util.find_spec("tensorflow") is None:
        hint = (
            "pip install 's2f[convert]', or leave it out: every conversion is proven in NumPy too"
        )
        raise DependencyError("--verify needs TensorFlow, which is not installed", hint=hint)


def keras_taps(
    path: Path, origin: Origin, sizes: Mapping[str, Any], images: Array
) -> dict[str, Array]:
    """Build a network in Keras, load a file with Keras' own loader, and run images [b h w 3].

    The sizes are the fields of a `VGGFaceConfig`, the images prepared. Returns features [b 7 7 c],
    embedding [b d] (after its ReLU) and logits [b i]; raises a `CheckpointError` if Keras refuses
    the file, or its process dies.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_run, path, origin, sizes, images).result()
        except BrokenProcessPool as error:
            hint = "is there memory for TensorFlow? Without --verify it is not needed"
            died = f"{path}: the process in which Keras reads it died"
            raise CheckpointError(died, hint=hint) from error


def _run(path: Path, origin: Origin, sizes: Mapping[str, Any], images: Array) -> dict[str, Array]:
    os.environ["KERAS_BACKEND"] = "tensorflow"
    # what TensorFlow's C++ tells of itself is not for the user's terminal
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    import h5py
    from tensorflow import keras

    model, outputs = build_keras(keras, origin, sizes)
    with h5py.File(path) as file:
        names = [*file.attrs, *file]
    legacy = any(name.startswith(("layer_names", "model_weights")) for name in names)
    try:
        with tempfile.TemporaryDirectory() as folder:  # Keras goes by a file's name
            link = Path(folder, "file.h5" if legacy else "file.weights.h5")
            link.symlink_to(path.resolve())
            model.load_weights(str(link))
    except (ValueError, KeyError, OSError) as error:
        seen = f"{path}: Keras does not load it into the network of {origin}: "
        seen += " ".join(str(error).split())[:300]
        hint = "is it the file of another network? See s2f convert inspect"
        raise CheckpointError(seen, hint=hint) from None  # whose classes only Keras can unpickle
    run = keras.Model(model.inputs[0], outputs)
    found = [np.asarray(tensor) for tensor in run(images, training=False)]
    return dict(zip(("features", "embedding", "logits"), found, strict=True))


def build_keras(keras: Any, origin: Origin, sizes: Mapping[str, Any]) -> tuple[Any, Sequence[Any]]:
    """Build VGG-Face, fc6 to fc8 as convolutions (serengil) or Dense after a Flatten (rcmalli).

    Returns the model, whose weights Keras finds by the order of the layers, whatever their names,
    and its outputs: features, embedding and logits.
    """
    layers = keras.layers
    x = inputs = keras.Input((sizes["image_size"], sizes["image_size"], 3))
    for layer in sizes["layers"]:
        if layer == "M":
            x = layers.MaxPooling2D(2)(x)
        else:
            x = layers.Conv2D(layer, 3, padding="same", activation="relu")(x)
    outputs = [x]
    side = x.shape[1]
    x = x if origin == "serengil" else layers.Flatten()(x)
    for name, kernel in (("hidden", side), ("embedding", 1), ("identities", 1)):
        kind = "linear" if name == "identities" else "relu"
        if origin == "serengil":
            x = layers.Conv2D(sizes[name], kernel, activation=kind)(x)
        else:
            x = layers.Dense(sizes[name], activation=kind)(x)
        if name != "hidden":
            outputs.append(layers.Flatten()(x))
    return keras.Model(inputs, outputs[-1]), outputs
