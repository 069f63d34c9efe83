"""The published networks in NumPy, on the arrays as their files hold them.

An independent way to what a converted network must give: other code, other layouts (channels
last, as in Keras), the foreign names. Returned are a few taps by name; `compare` tells how far a
converted network is from them. Knows nothing of files, torch or our names.

Source: the layers of serengil/deepface, rcmalli/keras-vggface and Kacper-Pietkun/Speech-to-face;
Gong et al. 2021 (AST).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Arrays = Mapping[str, Array]

TOLERANCE = 1e-4
_VGG_POOLS = (2, 4, 7, 10, 13)  # after these convolutions
_VOICE_POOLS, _VOICE_STRIDED = (3, 4, 5, 6), (8, 9)  # layers with max pooling and with stride 2


def compare(expected: Arrays, found: Arrays) -> dict[str, float]:
    """Measure each tap's largest error, relative to its largest value.

    A tap that is zero everywhere, or not finite, proves nothing: its error is infinite.
    """
    errors = {}
    for tap, wanted in expected.items():
        size = float(np.abs(wanted).max())
        usable = size > 0 and wanted.shape == found[tap].shape
        error = float(np.abs(found[tap] - wanted).max()) / size if usable else math.inf
        errors[tap] = error if math.isfinite(error) else math.inf
    return errors


def vgg(layers: Sequence[tuple[Array, Array]], images: Array) -> dict[str, Array]:
    """Run VGG-Face.

    Args:
        layers: (kernel, bias) of the 16 layers in Keras' layout; those of fc6 to fc8 may be of
            convolutions or of Dense layers after a Flatten.
        images: [b h w 3], prepared.

    Returns:
        features [b 7 7 c], embedding [b d] (after its ReLU) and logits [b i].
    """
    x = images
    for n, (kernel, bias) in enumerate(layers[:13], start=1):
        x = _relu(_conv(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), kernel) + bias)
        if n in _VGG_POOLS:
            x = _max_pool(x, 2, 2)
    features = x
    fc6, fc7, fc8 = layers[13:]
    embedding = _relu(_head(_relu(_head(x, *fc6)), *fc7))
    logits = _head(embedding, *fc8)
    flat = {"embedding": embedding, "logits": logits}
    return {"features": features} | {tap: x.reshape(len(x), -1) for tap, x in flat.items()}


def keras_layout(weight: Array) -> Array:
    """Lay the weight of a torch Linear or convolution out as Keras does."""
    return weight.T if weight.ndim == 2 else weight.transpose(2, 3, 1, 0)


def face_decoder(arrays: Arrays, embedding: Array) -> dict[str, Array]:
    """Run the seed's face decoder on embeddings [b d].

    Returns:
        landmarks [b 2k] and texture [b h w 3].
    """
    x = embedding
    for i in range(2):
        x = _relu(_norm(_linear(x, arrays, f"pre_layers.{i}.0"), arrays, f"pre_layers.{i}.1"))
    y = x
    for i in range(3):
        layer = f"landmark_layers.{i}"
        y = _relu(_norm(_linear(y, arrays, f"{layer}.0"), arrays, f"{layer}.1"))
    taps = {"landmarks": _linear(y, arrays, "landmark_layers.3.0")}
    x = _relu(_linear(x, arrays, "texture_layers.0.0"))
    channels = len(arrays["texture_layers.1.1.weight"])
    side = math.isqrt(x.shape[1] // channels)
    x = x.reshape(len(x), channels, side, side).transpose(0, 2, 3, 1)
    for layer in ("1.1", "2.0", "3.0", "4.0"):
        weight, bias = (arrays[f"texture_layers.{layer}.{part}"] for part in ("weight", "bias"))
        x = _relu(_transposed_conv(x, weight) + bias)
    kernel = keras_layout(arrays["texture_layers.5.0.weight"])
    x = _conv(x, kernel) + arrays["texture_layers.5.0.bias"]
    taps["texture"] = (1 / (1 + np.exp(-x))).astype(np.float32)
    return taps


def voice_encoder(arrays: Arrays, spectrogram: Array) -> dict[str, Array]:
    """Run the seed's convolutional voice encoder on [b f t 2].

    Returns:
        features [b m], pooled over time, and embedding [b d].
    """
    x = spectrogram
    for n in range(1, 9):
        kernel = keras_layout(arrays[f"layer{n}.0.weight"])
        x = _relu(_conv(x, kernel, 1 + (n in _VOICE_STRIDED)) + arrays[f"layer{n}.0.bias"])
        x = _norm(x, arrays, f"layer{n}.2")
        if n in _VOICE_POOLS:
            x = _max_pool(x, 1, 2)
    x = _conv(x, keras_layout(arrays["layer9.0.weight"]), 2) + arrays["layer9.0.bias"]
    x = _norm(_relu(x.mean(axis=2)), arrays, "layer9.3")  # [b f c]
    features = x.transpose(0, 2, 1).reshape(len(x), -1)
    x = _relu(_linear(features, arrays, "layer10.1"))
    return {"features": features, "embedding": _relu(_linear(x, arrays, "layer11.0"))}


def ast_encoder(
    arrays: Arrays, spectrogram: Array, *, heads: int, stride: int, eps: float
) -> dict[str, Array]:
    """Run the seed's AST on [b t f].

    Returns:
        embedding [b d].
    """
    start = "audio_spectrogram_transformer"
    kernel = arrays[f"{start}.embeddings.patch_embeddings.projection.weight"]
    images = spectrogram.transpose(0, 2, 1)[..., None]  # [b f t 1]
    x = _conv(images, keras_layout(kernel), stride)
    x = x.reshape(len(x), -1, x.shape[-1])
    x = x + arrays[f"{start}.embeddings.patch_embeddings.projection.bias"]
    tokens = [arrays[f"{start}.embeddings.{kind}_token"] for kind in ("cls", "distillation")]
    x = np.concatenate([*(np.repeat(token, len(x), axis=0) for token in tokens), x], axis=1)
    x = x + arrays[f"{start}.embeddings.position_embeddings"]
    layer = 0
    while f"{start}.encoder.layer.{layer}.layernorm_before.weight" in arrays:
        name = f"{start}.encoder.layer.{layer}"
        y = _layer_norm(x, arrays, f"{name}.layernorm_before", eps)
        q, k, v = (
            np.stack(np.split(_linear(y, arrays, f"{name}.attention.attention.{part}"), heads, -1))
            for part in ("query", "key", "value")
        )  # [heads b n d]
        scores = _softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]))
        mixed = np.concatenate(list(scores @ v), axis=-1)
        x = x + _linear(mixed, arrays, f"{name}.attention.output.dense")
        y = _layer_norm(x, arrays, f"{name}.layernorm_after", eps)
        y = _gelu(_linear(y, arrays, f"{name}.intermediate.dense"))
        x = x + _linear(y, arrays, f"{name}.output.dense")
        layer += 1
    x = _layer_norm(x, arrays, f"{start}.layernorm", eps)[:, :2].mean(axis=1)
    x = _layer_norm(x, arrays, "classifier.0.layernorm", eps)
    return {"embedding": _relu(_linear(x, arrays, "classifier.0.dense"))}


def _head(x: Array, kernel: Array, bias: Array) -> Array:
    """Apply a Dense layer after a Flatten, or a convolution."""
    head: Array = x.reshape(len(x), -1) @ kernel if kernel.ndim == 2 else _conv(x, kernel)
    return head + bias


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _gelu(x: Array) -> Array:
    from scipy.special import erf

    gelu: Array = x * np.float32(0.5) * (1 + erf(x / np.float32(math.sqrt(2))))
    return gelu


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    softmax: Array = e / e.sum(axis=-1, keepdims=True)
    return softmax


def _linear(x: Array, arrays: Arrays, name: str) -> Array:
    linear: Array = x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]
    return linear


def _norm(x: Array, arrays: Arrays, name: str) -> Array:
    """Apply a BatchNorm, as in use, to the last axis; torch's epsilon."""
    scale = arrays[f"{name}.weight"] / np.sqrt(arrays[f"{name}.running_var"] + np.float32(1e-5))
    norm: Array = (x - arrays[f"{name}.running_mean"]) * scale + arrays[f"{name}.bias"]
    return norm


def _layer_norm(x: Array, arrays: Arrays, name: str, eps: float) -> Array:
    centred: Array = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    scale = arrays[f"{name}.weight"] / np.sqrt(variance + np.float32(eps))
    norm: Array = centred * scale + arrays[f"{name}.bias"]
    return norm


def _conv(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolve [b h w i], unpadded, with a kernel [kh kw i o]."""
    kh, kw = kernel.shape[:2]
    h, w = (x.shape[1] - kh) // stride + 1, (x.shape[2] - kw) // stride + 1
    out = np.zeros((len(x) * h * w, kernel.shape[3]), np.float32)
    for i in range(kh):
        rows = slice(i, i + stride * (h - 1) + 1, stride)
        for j in range(kw):
            seen = x[:, rows, j : j + stride * (w - 1) + 1 : stride]
            out += seen.reshape(-1, x.shape[3]) @ kernel[i, j]
    return out.reshape(len(x), h, w, -1)


def _transposed_conv(x: Array, weight: Array) -> Array:
    """Double [b h w i] with a torch weight [i o 5 5]: stride 2, padding 2, output padding 1."""
    b, h, w, _ = x.shape
    canvas = np.zeros((b, 2 * h + 3, 2 * w + 3, weight.shape[1]), np.float32)
    for i in range(5):
        for j in range(5):
            canvas[:, i : i + 2 * h : 2, j : j + 2 * w : 2] += x @ weight[:, :, i, j]
    return canvas[:, 2 : 2 + 2 * h, 2 : 2 + 2 * w]


def _max_pool(x: Array, height: int, width: int) -> Array:
    b, h, w, c = x.shape
    x = x[:, : h // height * height, : w // width * width]
    pooled: Array = x.reshape(b, h // height, height, w // width, width, c).max(axis=(2, 4))
    return pooled
