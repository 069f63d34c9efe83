"""Make Keras files with Keras itself, in a process of its own: keras_files.py FOLDER ORIGIN.

Writes the weights of a narrow VGG-Face in three layouts (save_weights of Keras 1 and 2, a whole
model, `.weights.h5` of Keras 3) and `taps.npz`: images and what the network makes of them.
"""

import os
import sys
from pathlib import Path

import numpy as np

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
CHANNELS = ((4, 4), (8, 8), (16, 16, 16), (32, 32, 32), (32, 32, 32))
HIDDEN, EMBEDDING, IDENTITIES = 24, 20, 13


def serengil(keras):
    layers = keras.layers
    model = keras.Sequential([keras.Input((224, 224, 3))])
    for block in CHANNELS:
        for channels in block:
            model.add(layers.ZeroPadding2D(1))
            model.add(layers.Conv2D(channels, 3, activation="relu"))
        model.add(layers.MaxPooling2D(2))
    features = len(model.layers) - 1
    model.add(layers.Conv2D(HIDDEN, 7, activation="relu"))
    model.add(layers.Dropout(0.5))
    model.add(layers.Conv2D(EMBEDDING, 1, activation="relu"))
    embedding = len(model.layers) - 1
    model.add(layers.Dropout(0.5))
    model.add(layers.Conv2D(IDENTITIES, 1))
    model.add(layers.Flatten())
    logits = len(model.layers) - 1
    model.add(layers.Activation("softmax"))
    return model, [model.layers[i].output for i in (features, embedding, logits)]


def rcmalli(keras):
    layers = keras.layers
    x = image = keras.Input((224, 224, 3))
    for b, block in enumerate(CHANNELS, start=1):
        for c, channels in enumerate(block, start=1):
            conv = layers.Conv2D(
                channels, 3, padding="same", activation="relu", name=f"conv{b}_{c}"
            )
            x = conv(x)
        x = layers.MaxPooling2D(2, name=f"pool{b}")(x)
    taps = [x]
    x = layers.Flatten(name="flatten")(x)
    x = layers.Activation("relu", name="fc6_relu")(layers.Dense(HIDDEN, name="fc6")(x))
    x = layers.Activation("relu", name="fc7_relu")(layers.Dense(EMBEDDING, name="fc7")(x))
    taps.append(x)
    x = layers.Dense(IDENTITIES, name="fc8")(x)
    taps.append(x)
    return keras.Model(image, layers.Activation("softmax", name="fc8_softmax")(x)), taps


def main(folder: Path, origin: str) -> None:
    import h5py
    from tensorflow import keras

    model, taps = {"serengil": serengil, "rcmalli": rcmalli}[origin](keras)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        shapes = [weight.shape for weight in layer.get_weights()]
        layer.set_weights(
            [rng.standard_normal(s) * (2 / max(1, np.prod(s[:-1]))) ** 0.5 * 0.9 for s in shapes]
        )
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    with h5py.File(folder / "legacy.h5", "w") as file:
        save_weights_to_hdf5_group(file, model)
    model.save(folder / "model.h5")
    model.save_weights(folder / "new.weights.h5")
    images = rng.uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32)
    found = [np.asarray(tap) for tap in keras.Model(model.inputs[0], taps)(images, training=False)]
    features, embedding, logits = (tap.squeeze() for tap in found)
    np.savez(
        folder / "taps.npz", images=images, features=features, embedding=embedding, logits=logits
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
