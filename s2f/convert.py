"""What is published: what the cards of converted weights say of where they come from.

Only what is known of the weights that people can download. A file is converted for its layers,
whoever made it: its name and hash are in the card beside these.

The published networks in NumPy, on the arrays as their files hold them.

An independent way to what a converted network must give: other code, other layouts (channels
last, as in Keras), the foreign names. Returned are a few taps by name; `compare` tells how far a
converted network is from them. Knows nothing of files, torch or our names.

Source: the layers of serengil/deepface, rcmalli/keras-vggface and Kacper-Pietkun/Speech-to-face;
Gong et al. 2021 (AST).

Published weights to ours: a table a network, foreign name -> (our name, transform).

A transform is pure and only lays a tensor out anew. `fill` applies a table: the names must be the
same on both sides, every shape must fit, every value must be finite. Knows nothing of files.

Keras lays the kernel of a convolution out as H W in out, and of a Dense layer as in out; torch as
out in H W, and out in. A Flatten before a Dense layer gives H W C in Keras and C H W in torch.

Source: the layers of serengil/deepface, rcmalli/keras-vggface and Kacper-Pietkun/Speech-to-face.

What every conversion shares: reading, proving, and the card of what comes out.

Knows nothing of any one published file: those are `convert_keras` and `convert_pietkun`.

Keras weights of VGG-Face become a checkpoint: `s2f convert serengil` and `rcmalli`.

foreign file -> `foreign` -> `weight_tables` -> network -> `proof`, and Keras itself -> checkpoint

A check that fails leaves an error and no file.

The seed's published checkpoints become a model folder: `s2f convert pietkun`.

foreign files -> `foreign` -> `weight_tables` -> networks -> `proof` -> checkpoints in one folder

A check that fails leaves an error and no folder.
"""

import contextlib
import functools
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from s2f import (
    ast_encoder,
    face_decoder,
    face_encoder,
    foreign_weights,
    keras_check,
    prep,
    voice_encoder,
)
from s2f.ast_encoder import published_name
from s2f.checkpoint import KINDS, Card, Network, kind_of, save
from s2f.console import Progress, silent
from s2f.errors import CheckpointError, OutputError, S2FError, UsageError
from s2f.face_decoder import FaceDecoder
from s2f.face_encoder import VGGFaceConfig
from s2f.files import atomic_folder
from s2f.images import PREPROCESSING
from s2f.keras_check import Origin
from s2f.spectrogram import FRONT_ENDS, FrontEnd

_VGG_FACE_LICENCE = (
    "Not stated in the file. VGG-Face is of academic origin, for non-commercial research; the "
    "licence of the repository that the file is published in does not change that."
)
_PIETKUN_LICENCE = "Not stated in the file: ask its authors before any use beyond research."
_PIETKUN_LIMITS = (
    "Trained with embeddings of serengil's VGG-Face on RGB 0..1, squashed: other face encoders, "
    "and this one with other preprocessing, do not fit. Not for recognising anyone."
)
_PIETKUN = "As published with https://github.com/Kacper-Pietkun/Speech-to-face"

FACE_ENCODERS: dict[str, dict[str, Any]] = {
    "serengil": {
        "name": "VGG-Face (serengil/deepface)",
        "description": (
            "As published at https://github.com/serengil/deepface_models/releases/download/v1.0/"
            "vgg_face_weights.h5"
        ),
        "licence": _VGG_FACE_LICENCE,
    },
    "rcmalli": {
        "name": "VGG-Face (rcmalli/keras-vggface)",
        "description": (
            "As published at https://github.com/rcmalli/keras-vggface/releases/download/v2.0/"
            "rcmalli_vggface_tf_vgg16.h5, itself converted from Caffe"
        ),
        "licence": _VGG_FACE_LICENCE,
    },
}
PIETKUN: dict[str, dict[str, Any]] = {
    "face_decoder": {
        "name": "face decoder (Kacper-Pietkun/Speech-to-face)",
        "description": f"{_PIETKUN}; its texture is the face itself, unwarped",
        "licence": _PIETKUN_LICENCE,
        "limits": _PIETKUN_LIMITS,
    },
    "ve_conv": {
        "name": "VE_conv (Kacper-Pietkun/Speech-to-face)",
        "description": f"{_PIETKUN}: the convolutional voice encoder",
        "licence": _PIETKUN_LICENCE,
        "limits": _PIETKUN_LIMITS,
    },
    "ast": {
        "name": "AST (Kacper-Pietkun/Speech-to-face)",
        "description": f"{_PIETKUN}: a fine-tuned MIT/ast-finetuned-audioset-10-10-0.4593",
        "licence": _PIETKUN_LICENCE,
        "limits": _PIETKUN_LIMITS,
    },
}

Array = NDArray[np.float32]
Arrays = Mapping[str, Array]

TOLERANCE = 1e-4
_VGG_POOLS = (2, 4, 7, 10, 13)  # after these convolutions
_VOICE_POOLS, _VOICE_STRIDED = (3, 4, 5, 6), (8, 9)  # layers with max pooling and with stride 2


def compare_taps(expected: Arrays, found: Arrays) -> dict[str, float]:
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


def numpy_face_decoder(arrays: Arrays, embedding: Array) -> dict[str, Array]:
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


def numpy_voice_encoder(arrays: Arrays, spectrogram: Array) -> dict[str, Array]:
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


def numpy_ast_encoder(
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


Transform = Callable[[Tensor], Tensor]
WeightTable = dict[str, tuple[str, Transform]]

VGG16_LAYERS = (
    *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3", "conv4_1"),
    *("conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3", "fc6", "fc7", "fc8"),
)
"""The layers of VGG-16 with weights, by the names that rcmalli's file has."""

_AUTOMATIC = re.compile(r"(conv2d|convolution2d|dense)(_\d+)?")  # names that Keras gave


def as_is(tensor: Tensor) -> Tensor:
    """Keep the layout."""
    return tensor


def conv(kernel: Tensor) -> Tensor:
    """Turn a Keras convolution's kernel into torch's."""
    return kernel.permute(3, 2, 0, 1)


def dense_conv(kernel: Tensor) -> Tensor:
    """Turn a Keras Dense kernel into that of a 1x1 convolution."""
    return kernel.t()[:, :, None, None]


def dense_map_conv(side: int) -> Transform:
    """Make the transform of a Dense kernel after Flatten, into a convolution over all the map."""

    def transform(kernel: Tensor) -> Tensor:
        return conv(kernel.view(side, side, -1, kernel.shape[1]))

    return transform


def linear_conv(weight: Tensor) -> Tensor:
    """Turn a torch Linear's weight into that of a 1x1 convolution."""
    return weight[:, :, None, None]


def scrambled_map_conv(side: int) -> Transform:
    """Make the transform of a Linear whose inputs the seed left in Keras' order."""

    def transform(weight: Tensor) -> Tensor:
        return weight.view(len(weight), side, side, -1).permute(0, 3, 1, 2)

    return transform


def transposed(weight: Tensor) -> Tensor:
    """Turn a 1x1 convolution's weight into that of a transposed one."""
    return weight.transpose(0, 1)


def _vgg(config: VGGFaceConfig) -> list[str]:
    """Our names of VGG-16's layers with weights."""
    names, place = [], 0
    for layer in config.layers:
        if layer != "M":
            names.append(f"convs.{place}")
        place += 1 if layer == "M" else 2  # a ReLU follows each convolution
    return [*names, "fc6", "fc7", "fc8"]


def _pairs(
    names: Iterable[str], config: VGGFaceConfig, kernel: str, transforms: Sequence[Transform]
) -> WeightTable:
    """Make a table of 16 layers; `transforms` are those of the convolutions, fc6, fc7 and fc8."""
    bias = re.sub("weight|kernel", "bias", kernel)
    each = [*(len(VGG16_LAYERS) - 3) * [transforms[0]], *transforms[1:]]
    table: WeightTable = {}
    for theirs, ours, transform in zip(names, _vgg(config), each, strict=True):
        table[theirs + kernel] = f"{ours}.weight", transform
        table[theirs + bias] = f"{ours}.bias", as_is
    return table


def keras_layers(origin: str, order: Sequence[str]) -> tuple[str, ...]:
    """Name the layers of a Keras file in the order of VGG-16's.

    serengil's Sequential has automatic names, and so has every Keras 3 file: there the order is
    the file's. rcmalli's layers have names of their own, which are wanted then.

    Args:
        origin: `serengil` or `rcmalli`.
        order: the file's layers with weights.
    """
    automatic = all(_AUTOMATIC.fullmatch(name) for name in order)
    if len(order) == len(VGG16_LAYERS) and (origin == "serengil" or automatic):
        return tuple(order)
    return VGG16_LAYERS  # `fill` then says which of them the file lacks


def keras_vgg(origin: str, layers: Sequence[str], config: VGGFaceConfig) -> WeightTable:
    """Make the table of a Keras file, fc6 to fc8 convolutions (serengil) or Dense (rcmalli)."""
    dense = (dense_map_conv(config.map_size), dense_conv, dense_conv)
    heads = (conv, conv, conv) if origin == "serengil" else dense
    return _pairs(layers, config, "/kernel", (conv, *heads))


def torch_layers(origin: str) -> tuple[str, ...]:
    """Name the layers of the seed's VGG-Face files in the order of VGG-16's."""
    inner = "1" if origin == "serengil" else "0"  # a padding layer stands before
    heads = ("14.0", "15.0", "16.1") if origin == "serengil" else ("14.1", "15.0", "16.0")
    return tuple(f"layer{n}" for n in (*(f"{k}.{inner}" for k in range(1, 14)), *heads))


def torch_vgg(origin: str, config: VGGFaceConfig) -> WeightTable:
    """Make the table of one of the seed's VGG-Face files; rcmalli's has fc6 scrambled."""
    linear = (scrambled_map_conv(config.map_size), linear_conv, linear_conv)
    heads = (as_is, as_is, as_is) if origin == "serengil" else linear
    return _pairs(torch_layers(origin), config, ".weight", (as_is, *heads))


def _group(theirs: str, ours: str, *, norm: bool = False) -> WeightTable:
    """Make the table of one layer of the seed's, or of one BatchNorm."""
    parts = ["weight", "bias"]
    if norm:
        parts += ["running_mean", "running_var", "num_batches_tracked"]
    return {f"{theirs}.{part}": (f"{ours}.{part}", as_is) for part in parts}


def face_decoder_table(network: FaceDecoder) -> WeightTable:
    """Make the table of the seed's face decoder."""
    config = network.config
    table: WeightTable = {}
    for theirs, ours, count in (
        ("pre_layers", "trunk", len(config.trunk)),
        ("landmark_layers", "landmarks", len(config.landmark_hidden)),
    ):
        for i in range(count):
            table |= _group(f"{theirs}.{i}.0", f"{ours}.{i}.0")
            table |= _group(f"{theirs}.{i}.1", f"{ours}.{i}.1", norm=True)
    last = len(config.landmark_hidden)
    table |= _group(f"landmark_layers.{last}.0", f"landmarks.{last}")
    table |= _group("texture_layers.0.0", "seed.0")
    for i in range(len(config.stages)):  # an Unflatten stands before the first
        table |= _group(f"texture_layers.{i + 1}.{int(i == 0)}", f"stages.{i}")
    rgb = f"texture_layers.{len(config.stages)}.0.weight"
    return table | {rgb: (table[rgb][0], transposed)}


def voice_encoder_table() -> WeightTable:
    """Make the table of the seed's convolutional voice encoder, VE_conv."""
    table: WeightTable = {}
    for n in range(1, 9):
        table |= _group(f"layer{n}.0", f"convs.{n - 1}.0")
        table |= _group(f"layer{n}.2", f"convs.{n - 1}.2", norm=True)
    table |= _group("layer9.0", "convs.8.0") | _group("layer9.3", "norm", norm=True)
    return table | _group("layer10.1", "hidden") | _group("layer11.0", "embedding")


def ast_encoder_table(network: nn.Module, names: Iterable[str]) -> WeightTable:
    """Make the table of the seed's AST, for a file whose names are of any transformers."""
    theirs = {published_name(name): name for name in names}
    table: WeightTable = {}
    for ours in network.state_dict():
        name = re.sub("^ast[.]", "audio_spectrogram_transformer.", ours)
        name = re.sub("^norm[.]", "classifier.0.layernorm.", name)
        name = re.sub("^embedding[.]", "classifier.0.dense.", name)
        table[theirs.get(name, name)] = ours, as_is
    return table


def fill(
    network: nn.Module, table: WeightTable, tensors: Mapping[str, Tensor], origin: str
) -> None:
    """Give a network, which may be on `meta`, the weights of a table, copied: the file can go.

    Buffers that no foreign tensor is for keep their values.

    Args:
        network: to be filled.
        table: names all the parameters of the network.
        tensors: foreign, by name.
        origin: what the tensors are from, for messages.

    Raises:
        CheckpointError: if the names are not exactly the table's, a shape does not fit, or a
            value is not finite.
    """
    hint = "is it the file of another network? See s2f convert inspect"
    missing, unknown = sorted(table.keys() - tensors.keys()), sorted(tensors.keys() - table.keys())
    if missing or unknown:
        seen = f"it lacks {_some(missing)}" if missing else f"it holds {_some(unknown)} beside them"
        raise CheckpointError(f"{origin}: has not the layers that were wanted: {seen}", hint=hint)
    state = network.state_dict()
    for name, (ours, transform) in table.items():
        found, wanted = tensors[name], state[ours]
        try:
            laid_out = transform(found)
        except (RuntimeError, IndexError):  # torch's, for another number of axes or of values
            laid_out = found
        same_type = found.is_floating_point() == wanted.is_floating_point()
        if laid_out.shape != wanted.shape or not same_type:
            raise CheckpointError(
                f"{origin}: {name} is {found.dtype} {tuple(found.shape)}; it cannot become {ours}, "
                f"which is {wanted.dtype} {tuple(wanted.shape)}",
                hint=hint,
            )
        if found.numel() and not all(torch.isfinite(m) for m in torch.aminmax(found)):
            raise CheckpointError(
                f"{origin}: {name} holds values that are not finite", hint="download it again"
            )
        state[ours] = _copied(laid_out, wanted.dtype)
    network.load_state_dict(state, assign=True)
    assert not any(tensor.is_meta for tensor in network.state_dict().values())


def _copied(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Copy a view, a few input channels at a time: of fc6, that takes half the time."""
    copy = torch.empty(tensor.shape, dtype=dtype)
    if tensor.ndim < 2:
        return copy.copy_(tensor)
    for target, part in zip(torch.split(copy, 8, 1), torch.split(tensor, 8, 1), strict=True):
        target.copy_(part)
    return copy


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


@dataclass(frozen=True)
class Converted:
    """A network that was converted.

    Attributes:
        path: the checkpoint.
        source: the foreign file.
        kind: as in `checkpoint.KINDS`.
        embedding_space: that it defines, or was made for.
        proven: largest error of each tap against NumPy, relative to the tap's largest value.
        verified: the same against Keras; None where that was not asked for.
    """

    path: Path
    source: Path
    kind: str
    embedding_space: str
    proven: Mapping[str, float]
    verified: Mapping[str, float] | None = None


def read_weights(source: Path, kind: str) -> foreign_weights.Weights:
    """Read foreign weights that must be of one kind, `keras` or `torch`.

    Raises:
        CheckpointError: as `foreign_weights.read_foreign`, or if they are of the other kind.
    """
    weights = foreign_weights.read_foreign(source)
    if weights.kind != kind:
        names = {"keras": "Keras (.h5)", "torch": "torch (.pt)"}
        raise CheckpointError(
            f"{source}: holds weights of {names[weights.kind]}; wanted those of {names[kind]}",
            hint="is it the file of another network? See s2f convert inspect",
        )
    return weights


def numpy_arrays(weights: foreign_weights.Weights) -> dict[str, Array]:
    """Give the tensors to NumPy, without copying them."""
    return {name: tensor.numpy() for name, tensor in weights.tensors.items()}


def empty_vgg_face(preprocessing: str) -> face_encoder.VGGFace:
    """Make a full-size VGG-Face without weights, with a preset of `PREPROCESSING`."""
    preparation = PREPROCESSING[preprocessing]
    with torch.device("meta"):
        network = face_encoder.VGGFace(face_encoder.CONFIGS["paper"], preparation)
    network.mean = torch.tensor(preparation.mean).view(3, 1, 1)
    return network


def noise(*shape: int) -> Tensor:
    """Make asymmetric input, the same every time: normally distributed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def some_faces(network: face_encoder.VGGFace, n: int) -> Tensor:
    """Make pictures [n 3 h w], RGB 0..1, of noise for VGG-Face."""
    size = network.config.image_size
    return noise(n, 3, size, size).mul(0.25).add(0.5).clamp(0, 1)


def prepared(network: face_encoder.VGGFace, faces: Tensor) -> Array:
    """Prepare pictures [n 3 h w] as a network does, channels last: [n h w 3]."""
    images: Array = network.preprocess(faces).permute(0, 2, 3, 1).contiguous().numpy()
    return images


@torch.inference_mode()
def vgg_face_taps(network: face_encoder.VGGFace, faces: Tensor) -> dict[str, Tensor]:
    """Run VGG-Face: features [n 7 7 c], embedding [n d] and logits [n i]."""
    features = network.eval().features(faces)
    embedding = network.embed(features)
    logits = network.logits(embedding)
    return {"features": features.permute(0, 2, 3, 1), "embedding": embedding, "logits": logits}


def prove(
    source: Path, judge: str, expected: Arrays, found: Mapping[str, Tensor]
) -> dict[str, float]:
    """Make sure that a converted network gives what a judge makes of the foreign file.

    Returns:
        The largest error of each tap, relative to the tap's largest value.

    Raises:
        CheckpointError: if one is over `convert.TOLERANCE`.
    """
    errors = compare_taps(expected, {tap: tensor.numpy() for tap, tensor in found.items()})
    if max(errors.values()) > TOLERANCE:
        seen = ", ".join(f"{tap} {error:.1e}" for tap, error in errors.items())
        raise CheckpointError(
            f"{source}: the converted network does not give what {judge} makes of the file: "
            f"relative errors {seen}; wanted at most {TOLERANCE:g}",
            hint="nothing was written; are its weights those of a trained network?",
        )
    return errors


def converted_card(origin: dict[str, Any], source: Path) -> Card:
    """Make the card of a converted network: what is published, and which file this one is of."""
    with source.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Card(**origin, data=f"Converted from {source.name}, SHA-256 {sha256}.")


def convert_vgg_face(
    source: Path,
    out: Path,
    *,
    origin: Origin,
    preprocessing: str | None = None,
    verify: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Converted:
    """Convert the Keras weights of a VGG-Face.

    Args:
        source: the file, in legacy HDF5 or Keras 3's.
        out: the checkpoint.
        origin: `serengil` (deepface) or `rcmalli` (keras-vggface).
        preprocessing: a name in `face_encoder.PREPROCESSING`; by default the origin's.
        verify: whether to compare with Keras itself too.
        overwrite: whether `out` is replaced if it is there.
        progress: told what happens.

    Raises:
        CheckpointError: if the file is not of such weights, or the proof fails.
        DependencyError: if `verify` is given and TensorFlow is not installed.
        OutputError: if `out` is there already or cannot be written.
    """
    if verify:
        keras_check.require_tensorflow()
    if out.is_dir() or (out.exists() and not overwrite):
        raise _is_there(out)
    steps = 4 + verify
    progress(0, steps, "reading")
    weights = read_weights(source, "keras")
    progress(1, steps, "converting")
    network = empty_vgg_face(preprocessing or origin)
    layers = keras_layers(origin, weights.order)
    table = keras_vgg(origin, layers, network.config)
    fill(network, table, weights.tensors, str(source))
    progress(2, steps, "proving")
    faces, arrays = some_faces(network, 1), numpy_arrays(weights)
    pairs = [(arrays[f"{name}/kernel"], arrays[f"{name}/bias"]) for name in layers]
    expected = vgg(pairs, prepared(network, faces))
    del weights, arrays, pairs  # before torch, too, needs memory of its own
    found = vgg_face_taps(network, faces)
    proven = prove(source, "NumPy", expected, found)
    verified = None
    if verify:
        progress(3, steps, "verifying with Keras")
        verified = _verify(source, origin, network)
    progress(steps - 1, steps, "writing")
    space = save(out, network, card=converted_card(FACE_ENCODERS[origin], source))
    return Converted(out, source, "face_encoder", space, proven, verified)


def _verify(source: Path, origin: Origin, network: face_encoder.VGGFace) -> dict[str, float]:
    """Ask Keras, in a process of its own, what it makes of the same file and images."""
    config = network.config
    heads = config.hidden, config.embedding, config.identities
    shape = keras_check.Shape(config.layers, config.image_size, heads)
    faces = some_faces(network, 2)
    found = vgg_face_taps(network, faces)
    item = (source, origin, shape, prepared(network, faces))
    for _, expected in prep.run_in_workers(keras_check.taps, [item], workers=1):
        if isinstance(expected, S2FError):
            raise CheckpointError(expected.message, hint=expected.hint) from expected
        return prove(source, "Keras", expected, found)
    raise AssertionError("one item gives one result")


def _is_there(out: Path) -> OutputError:
    if out.is_dir():
        return OutputError(f"{out}: is a folder", hint="name the file to write with -o")
    return OutputError(
        f"{out}: is there already", hint="give --overwrite to replace it, or another name"
    )


PUBLISHED_SPACE = "pietkun: embeddings of serengil's VGG-Face, preprocessing seed"
"""The embedding space of the seed's published networks where their face encoder is not given."""

# Features of the published AST: Kacper-Pietkun/Speech-to-face.
AST_FRONT_END = FrontEnd(
    "ast", clip_samples=FRONT_ENDS["ast"].clip_samples, mean=-5.460994, std=3.1129124
)


def convert_pietkun(
    out: Path,
    *,
    face_decoder: Path,
    ast: Path | None = None,
    ve_conv: Path | None = None,
    face_encoder: Path | None = None,
    kind: Origin | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> list[Converted]:
    """Convert the checkpoints of Kacper-Pietkun/Speech-to-face into a model folder.

    Decoder and voice encoder were made for serengil's VGG-Face with preprocessing `seed`: they
    share its embedding space if it is given, or else `PUBLISHED_SPACE`. A face encoder of kind
    `rcmalli` has a space of its own, so that the folder's decoder does not fit it; it is put right
    in the file, and must not be mixed with what was trained on the scrambled one.

    Args:
        out: the model folder.
        face_decoder: the file of the face decoder.
        ast: of the AST voice encoder; at most one of this and `ve_conv`.
        ve_conv: of the convolutional voice encoder.
        face_encoder: of the VGG-Face, as the seed converted it to torch.
        kind: which VGG-Face that is.
        overwrite: whether a model folder that is there is replaced.
        progress: told what happens.

    Raises:
        CheckpointError: if a file is not of such weights, or a proof fails.
        DependencyError: if `ast` is given and transformers is not installed.
        OutputError: if `out` is there already or cannot be written.
        UsageError: if both voice encoders are given, or one of face encoder and kind is missing.
    """
    if ast and ve_conv:
        raise UsageError("a model has one voice encoder: AST and VE_conv were both given")
    if (face_encoder is None) != (kind is None):
        raise UsageError("a face encoder and its kind go together: only one of them was given")
    if ast:
        ast_encoder.require_transformers()
    jobs: list[tuple[Path, dict[str, Any], _Convert, FrontEnd | None]] = []
    if face_encoder and kind:
        card = FACE_ENCODERS[kind]
        jobs.append((face_encoder, card, functools.partial(_torch_vgg_face, origin=kind), None))
    jobs.append((face_decoder, PIETKUN["face_decoder"], _face_decoder, None))
    if ve_conv:
        jobs.append((ve_conv, PIETKUN["ve_conv"], _ve_conv, FRONT_ENDS["seed"]))
    if ast:
        jobs.append((ast, PIETKUN["ast"], _ast, AST_FRONT_END))
    made = []
    published_space = PUBLISHED_SPACE
    with _model_folder(out, overwrite) as folder:
        for done, (source, card, convert, front_end) in enumerate(jobs):
            progress(done, len(jobs), source.name)
            network, proven = convert(source)
            name = kind_of(network)
            space = save(
                folder / f"{name}.safetensors",
                network,
                card=converted_card(card, source),
                embedding_space=None if name == "face_encoder" else published_space,
                front_end=front_end,
            )
            if name == "face_encoder" and kind == "serengil":
                published_space = space
            made.append(Converted(out / f"{name}.safetensors", source, name, space, proven))
            del network  # before the next needs its memory
    return made


_Convert = Callable[[Path], tuple[Network, dict[str, float]]]


def _torch_vgg_face(source: Path, *, origin: Origin) -> tuple[Network, dict[str, float]]:
    weights = read_weights(source, "torch")
    network = empty_vgg_face("seed")
    table = torch_vgg(origin, network.config)
    fill(network, table, weights.tensors, str(source))
    faces, arrays = some_faces(network, 1), numpy_arrays(weights)
    layers = [
        (keras_layout(arrays[f"{name}.weight"]), arrays[f"{name}.bias"])
        for name in torch_layers(origin)
    ]
    expected = vgg(layers, prepared(network, faces))
    del weights, arrays, layers  # before torch, too, needs memory of its own
    found = vgg_face_taps(network, faces)
    return network, prove(source, "NumPy", expected, found)


def _face_decoder(source: Path) -> tuple[Network, dict[str, float]]:
    weights = read_weights(source, "torch")
    with torch.device("meta"):
        network = face_decoder.FaceDecoder(face_decoder.CONFIGS["seed"])
    network.mean_landmarks = torch.zeros(network.config.landmarks, 2)
    table = face_decoder_table(network)
    fill(network, table, weights.tensors, str(source))
    embedding = noise(2, network.config.embedding).relu()
    expected = numpy_face_decoder(numpy_arrays(weights), embedding.numpy())
    del weights
    with torch.inference_mode():
        landmarks, texture = network.eval()(embedding)
    found = {"landmarks": landmarks.flatten(1), "texture": texture.permute(0, 2, 3, 1)}
    return network, prove(source, "NumPy", expected, found)


def _ve_conv(source: Path) -> tuple[Network, dict[str, float]]:
    weights = read_weights(source, "torch")
    config = voice_encoder.CONFIGS["seed"]
    with torch.device("meta"):
        network = voice_encoder.VoiceEncoder(config)
    fill(network, voice_encoder_table(), weights.tensors, str(source))
    heard = noise(1, config.in_channels, config.n_freqs, config.min_frames)
    expected = numpy_voice_encoder(numpy_arrays(weights), heard.permute(0, 2, 3, 1).numpy())
    del weights
    with torch.inference_mode():
        found = {"features": network.eval().features(heard), "embedding": network(heard)}
    return network, prove(source, "NumPy", expected, found)


def _ast(source: Path) -> tuple[Network, dict[str, float]]:
    weights = read_weights(source, "torch")
    config = ast_encoder.CONFIGS["seed"]
    with torch.device("meta"):
        network = ast_encoder.ASTEncoder(config)
    table = ast_encoder_table(network, weights.tensors)
    fill(network, table, weights.tensors, str(source))
    heard = noise(1, 1, config.n_freqs, config.n_frames)
    with torch.inference_mode():
        found = {"embedding": network.eval()(heard)}
    arrays = {ast_encoder.published_name(name): a for name, a in numpy_arrays(weights).items()}
    eps, features = ast_encoder.LAYER_NORM_EPS, heard[:, 0].permute(0, 2, 1).numpy()
    expected = numpy_ast_encoder(
        arrays, features, heads=config.heads, stride=config.stride, eps=eps
    )
    return network, prove(source, "NumPy", expected, found)


@contextlib.contextmanager
def _model_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """Make a model folder, whole or not at all, in the place of one that is there if allowed."""
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if (out.exists() and not out.is_dir()) or there - {f"{k}.safetensors" for k in KINDS}:
        raise OutputError(f"{out}: is there and is no model folder", hint="choose another place")
    if there and not overwrite:
        raise OutputError(
            f"{out}: is there already", hint="give --overwrite to replace it, or another folder"
        )
    with atomic_folder(out, replace=overwrite) as folder:
        yield folder
