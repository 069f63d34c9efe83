"""VGG-Face as Keras itself builds and loads it: the judge of a conversion.

The only module that imports TensorFlow, and only inside functions: it runs in a process of its own
(`workers`), for `s2f convert --verify` and nothing else.

Source: the layers of serengil/deepface and rcmalli/keras-vggface, built with Keras' own.
"""

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from s2f.errors import CheckpointError, DependencyError

Origin = Literal["serengil", "rcmalli"]


@dataclass(frozen=True)
class Shape:
    """The sizes of a VGG-Face network.

    Attributes:
        layers: channels of each 3x3 convolution, "M" for max pooling.
        image_size: side of the input, pixels.
        heads: channels of fc6, fc7 and fc8.
    """

    layers: tuple[int | str, ...]
    image_size: int
    heads: tuple[int, int, int]


def require_tensorflow() -> None:
    """Make sure that TensorFlow is installed, without importing it.

    Raises:
        DependencyError: if it is not.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise DependencyError(
            "--verify needs TensorFlow, which is not installed",
            hint="pip install 's2f[convert]', or leave --verify out: every conversion is proven "
            "in NumPy too",
        )


def taps(
    path: Path, origin: Origin, shape: Shape, images: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """Build a network in Keras, load a file with Keras' own loader, and run images.

    Args:
        path: Keras weights, legacy HDF5 or Keras 3's.
        origin: whose network it is.
        shape: its sizes.
        images: [b h w 3], prepared.

    Returns:
        features [b 7 7 c], embedding [b d] (after its ReLU) and logits [b i].

    Raises:
        CheckpointError: if Keras refuses the file.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    with _silence():
        from tensorflow import keras

        build = _serengil if origin == "serengil" else _rcmalli
        model, outputs = build(keras, shape)
        try:
            _load(model, path)
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(
                f"{path}: Keras does not load it into the network of {origin}: "
                f"{' '.join(str(error).split())[:300]}",
                hint="is it the file of another network? See s2f convert inspect",
            ) from error
        run = keras.Model(model.inputs[0], outputs)
        found = [np.asarray(tensor) for tensor in run(images, training=False)]
    return dict(zip(("features", "embedding", "logits"), found, strict=True))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what TensorFlow's C++ tells of itself from the user's terminal."""
    stderr = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _load(model: Any, path: Path) -> None:
    """Load a file by what it holds; Keras goes by its name."""
    import h5py

    with h5py.File(path) as file:
        names = [*file.attrs, *file]
    legacy = any(name.startswith(("layer_names", "model_weights")) for name in names)
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / ("file.h5" if legacy else "file.weights.h5")
        link.symlink_to(path.resolve())
        model.load_weights(str(link))


def _serengil(keras: Any, shape: Shape) -> tuple[Any, Sequence[Any]]:
    """A Sequential of padded convolutions, fc6 to fc8 among them."""
    layers = keras.layers
    model = keras.Sequential([keras.Input((shape.image_size, shape.image_size, 3))])
    for layer in shape.layers:
        if isinstance(layer, str):
            model.add(layers.MaxPooling2D((2, 2), strides=(2, 2)))
            continue
        model.add(layers.ZeroPadding2D((1, 1)))
        model.add(layers.Conv2D(layer, (3, 3), activation="relu"))
    outputs = [model.outputs[0]]
    fc6, fc7, fc8 = shape.heads
    side = model.output_shape[1]
    model.add(layers.Conv2D(fc6, (side, side), activation="relu"))
    model.add(layers.Dropout(0.5))
    model.add(layers.Conv2D(fc7, (1, 1), activation="relu"))
    outputs.append(layers.Flatten()(model.outputs[0]))
    model.add(layers.Dropout(0.5))
    model.add(layers.Conv2D(fc8, (1, 1)))
    model.add(layers.Flatten())
    return model, [*outputs, model.outputs[0]]


def _rcmalli(keras: Any, shape: Shape) -> tuple[Any, Sequence[Any]]:
    """A functional model with named layers, and Dense ones after a Flatten."""
    layers = keras.layers
    block, place = 1, 1
    x = inputs = keras.Input((shape.image_size, shape.image_size, 3))
    for layer in shape.layers:
        if isinstance(layer, str):
            x = layers.MaxPooling2D((2, 2), strides=(2, 2), name=f"pool{block}")(x)
            block, place = block + 1, 1
            continue
        name = f"conv{block}_{place}"
        x = layers.Conv2D(layer, (3, 3), padding="same", activation="relu", name=name)(x)
        place += 1
    outputs = [x]
    fc6, fc7, fc8 = shape.heads
    x = layers.Flatten(name="flatten")(x)
    x = layers.Activation("relu", name="fc6_relu")(layers.Dense(fc6, name="fc6")(x))
    x = layers.Activation("relu", name="fc7_relu")(layers.Dense(fc7, name="fc7")(x))
    outputs.append(x)
    outputs.append(layers.Dense(fc8, name="fc8")(x))
    return keras.Model(inputs, outputs[-1]), outputs
