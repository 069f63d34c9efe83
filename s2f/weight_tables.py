"""Published weights to ours: a table a network, foreign name -> (our name, transform).

A transform is pure and only lays a tensor out anew. `fill` applies a table: the names must be the
same on both sides, every shape must fit, every value must be finite. Knows nothing of files.

Keras lays the kernel of a convolution out as H W in out, and of a Dense layer as in out; torch as
out in H W, and out in. A Flatten before a Dense layer gives H W C in Keras and C H W in torch.

Source: the layers of serengil/deepface, rcmalli/keras-vggface and Kacper-Pietkun/Speech-to-face.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from s2f.ast_encoder import published_name
from s2f.errors import CheckpointError
from s2f.face_decoder import FaceDecoder
from s2f.face_encoder import VGGFaceConfig

Transform = Callable[[Tensor], Tensor]
Table = dict[str, tuple[str, Transform]]

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
) -> Table:
    """Make a table of 16 layers; `transforms` are those of the convolutions, fc6, fc7 and fc8."""
    bias = re.sub("weight|kernel", "bias", kernel)
    each = [*(len(VGG16_LAYERS) - 3) * [transforms[0]], *transforms[1:]]
    table: Table = {}
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


def keras_vgg(origin: str, layers: Sequence[str], config: VGGFaceConfig) -> Table:
    """Make the table of a Keras file, fc6 to fc8 convolutions (serengil) or Dense (rcmalli)."""
    dense = (dense_map_conv(config.map_size), dense_conv, dense_conv)
    heads = (conv, conv, conv) if origin == "serengil" else dense
    return _pairs(layers, config, "/kernel", (conv, *heads))


def torch_layers(origin: str) -> tuple[str, ...]:
    """Name the layers of the seed's VGG-Face files in the order of VGG-16's."""
    inner = "1" if origin == "serengil" else "0"  # a padding layer stands before
    heads = ("14.0", "15.0", "16.1") if origin == "serengil" else ("14.1", "15.0", "16.0")
    return tuple(f"layer{n}" for n in (*(f"{k}.{inner}" for k in range(1, 14)), *heads))


def torch_vgg(origin: str, config: VGGFaceConfig) -> Table:
    """Make the table of one of the seed's VGG-Face files; rcmalli's has fc6 scrambled."""
    linear = (scrambled_map_conv(config.map_size), linear_conv, linear_conv)
    heads = (as_is, as_is, as_is) if origin == "serengil" else linear
    return _pairs(torch_layers(origin), config, ".weight", (as_is, *heads))


def _group(theirs: str, ours: str, *, norm: bool = False) -> Table:
    """Make the table of one layer of the seed's, or of one BatchNorm."""
    parts = ["weight", "bias"]
    if norm:
        parts += ["running_mean", "running_var", "num_batches_tracked"]
    return {f"{theirs}.{part}": (f"{ours}.{part}", as_is) for part in parts}


def face_decoder(network: FaceDecoder) -> Table:
    """Make the table of the seed's face decoder."""
    config = network.config
    table: Table = {}
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


def voice_encoder() -> Table:
    """Make the table of the seed's convolutional voice encoder, VE_conv."""
    table: Table = {}
    for n in range(1, 9):
        table |= _group(f"layer{n}.0", f"convs.{n - 1}.0")
        table |= _group(f"layer{n}.2", f"convs.{n - 1}.2", norm=True)
    table |= _group("layer9.0", "convs.8.0") | _group("layer9.3", "norm", norm=True)
    return table | _group("layer10.1", "hidden") | _group("layer11.0", "embedding")


def ast_encoder(network: nn.Module, names: Iterable[str]) -> Table:
    """Make the table of the seed's AST, for a file whose names are of any transformers."""
    theirs = {published_name(name): name for name in names}
    table: Table = {}
    for ours in network.state_dict():
        name = re.sub("^ast[.]", "audio_spectrogram_transformer.", ours)
        name = re.sub("^norm[.]", "classifier.0.layernorm.", name)
        name = re.sub("^embedding[.]", "classifier.0.dense.", name)
        table[theirs.get(name, name)] = ours, as_is
    return table


def fill(network: nn.Module, table: Table, tensors: Mapping[str, Tensor], origin: str) -> None:
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
