"""The face encoder: a photo becomes the embedding that defines the space of faces.

VGG-Face is VGG-16 with 2622 identities (Parkhi et al. 2015, "Deep Face Recognition"); the small
bundled encoder is the `PartsEncoder` of `appearance_model`. `batch_embedder` makes either ready for
very many photos. Knows nothing of files; how a picture must be prepared travels in `Preprocessing`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from s2f.appearance_model import PartsEncoder, averaged_down
from s2f.images import Preprocessing

VGG16 = (64, 64, "M", 128, 128, "M", *3 * (256,), "M", *3 * (512,), "M", *3 * (512,), "M")


@dataclass(frozen=True)
class VGGFaceConfig:
    """The shape of a face encoder. The defaults are VGG-Face."""

    layers: tuple[int | str, ...] = VGG16  # channels of padded 3x3 convolutions; "M" max pools 2x2
    image_size: int = 224  # side of the square input, pixels; pictures come as a multiple of it
    hidden: int = 4096  # channels of fc6
    embedding: int = 4096  # values of fc7, the embedding
    identities: int = 2622  # logits of fc8; 0 leaves fc8 out
    final_relu: bool = True  # whether the embedding ends in a ReLU, as VGG-Face's does
    batch_norm: bool = False  # after each convolution; VGG-Face has none, small nets learn faster

    def __post_init__(self) -> None:
        if unknown := [layer for layer in self.layers if isinstance(layer, str) and layer != "M"]:
            raise ValueError(f"{unknown[0]!r} is no layer; wanted channels, or M")
        halvings = self.layers.count("M")
        if self.image_size % 2**halvings:
            unhalved = f"image_size {self.image_size} cannot be halved {halvings} times"
            raise ValueError(f"{unhalved} without a rest")

    @property
    def map_size(self) -> int:
        """Side of the last feature map: fc6 is one convolution over all of it."""
        return self.image_size >> self.layers.count("M")


CONFIGS: dict[str, VGGFaceConfig] = {"paper": VGGFaceConfig()}


class VGGFace(nn.Module):
    """A photo to features, embedding and identity logits: three named taps.

    fc6, fc7 and fc8 are convolutions, as in the published weights.
    """

    mean: Tensor

    def __init__(self, config: VGGFaceConfig, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.config, self.preprocessing = config, preprocessing
        layers: list[nn.Module] = []
        channels = 3
        for layer in config.layers:
            if isinstance(layer, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(channels, layer, 3, padding=1, bias=not config.batch_norm))
            if config.batch_norm:
                layers.append(nn.BatchNorm2d(layer))
            layers.append(nn.ReLU(inplace=True))
            channels = layer
        self.convs = nn.Sequential(*layers)
        self.fc6 = nn.Conv2d(channels, config.hidden, config.map_size)
        self.fc7 = nn.Conv2d(config.hidden, config.embedding, 1)
        if config.identities:
            self.fc8 = nn.Conv2d(config.embedding, config.identities, 1)
        mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)

    def preprocess(self, faces: Tensor) -> Tensor:
        """Bring [b 3 h w] RGB 0..1 to this network's size, channel order and range.

        Raises ValueError if a side is no multiple of the size.
        """
        faces = averaged_down(faces, self.config.image_size)
        if self.preprocessing.channels == "BGR":
            faces = faces.flip(1)
        return faces * self.preprocessing.scale - self.mean

    def features(self, faces: Tensor) -> Tensor:
        """Last convolutional map, [b c 7 7] for VGG-Face."""
        features: Tensor = self.convs(self.preprocess(faces))
        return features

    def embed(self, features: Tensor) -> Tensor:
        """Embed the last convolutional map, to [b d]."""
        # As matrices: a convolution over all of the map would be ten times as slow on a CPU, which
        # brings the weights into another order each time. In that which they have in memory: in
        # the other one, they would be copied each time.
        weight = self.fc6.weight
        if not weight.is_contiguous():  # but channels-last
            features, weight = features.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1)
        x = functional.linear(features.flatten(1), weight.flatten(1), self.fc6.bias).relu()
        x = functional.linear(x, self.fc7.weight.flatten(1), self.fc7.bias)
        return x.relu() if self.config.final_relu else x

    def forward(self, faces: Tensor) -> Tensor:
        """Embed faces [b 3 h w] RGB 0..1, h and w a multiple of the size, to [b d]."""
        return self.embed(self.features(faces))

    def logits(self, embedding: Tensor) -> Tensor:
        """Identity scores of embeddings, [b d] to [b i], before any softmax."""
        return functional.linear(embedding, self.fc8.weight.flatten(1), self.fc8.bias)


FaceEncoder = VGGFace | PartsEncoder


def batch_embedder(
    network: FaceEncoder, *, device: torch.device, batch_size: int
) -> Callable[[Tensor], Tensor]:
    """Make a network ready to embed very many photos: it is taken over, and moved to the device.

    Gives a function from [b 3 h w], RGB 0..1, b <= batch_size, to [b d] on the device. Its result
    differs from `forward`'s by rounding, some 1e-6 of its norm, and the embedding of a photo is the
    same to the bit whatever photos share its batch.
    """
    network = network.to(device).eval()
    if isinstance(network, PartsEncoder):
        return network.one_by_one
    on_cpu = device.type == "cpu"
    side = network.config.image_size
    layers: list[nn.Module] = []
    for layer in network.convs:
        if isinstance(layer, nn.MaxPool2d):
            side //= 2
        elif on_cpu and isinstance(layer, nn.Conv2d) and side % TILE == 0:
            if layer.in_channels >= WINOGRAD_CHANNELS:
                layer = WinogradConv2d(layer)
        layers.append(layer)
    convs = nn.Sequential(*layers)
    convs.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def embed(faces: Tensor) -> Tensor:
        x = network.preprocess(faces.to(device)).contiguous(memory_format=torch.channels_last)
        if on_cpu:  # one by one, the maps stay in the cache
            x = torch.cat([convs(face) for face in torch.split(x, 1)])
        # Matrices of one shape are multiplied in one order.
        x = functional.pad(x, (0,) * 6 + (0, batch_size - len(faces)))
        return network.embed(x if on_cpu else convs(x))[: len(faces)]

    return embed


WINOGRAD_CHANNELS = 128  # with fewer, its transforms take longer than it saves
TILE = 4  # outputs a side


class WinogradConv2d(nn.Module):
    """A padded 3x3 convolution of stride 1: [b c h w] to [b k h w], h and w multiples of 4.

    Made of such an `nn.Conv2d`, whose weights it holds transformed, in four times the space;
    without gradients. 4 x 4 outputs are found from 6 x 6 inputs by 36 multiplications a pair of
    channels instead of 144. In float32 the error is about three times a direct convolution's: some
    2e-6 of the norm. Quickest in the channels-last format, which its result has.

    Source: Lavin and Gray 2015, "Fast Algorithms for Convolutional Neural Networks", F(4x4, 3x3).
    """

    filters: Tensor
    bias: Tensor
    taking: Tensor
    giving: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = conv.weight.detach()
        # Polynomials are evaluated at five points and at infinity, multiplied there, and found
        # again from their values; products of differences make the numbers small and whole.
        points = torch.tensor([0, 1, -1, 2, -2], dtype=torch.float64, device=weight.device)
        apart = (points[:, None] - points).fill_diagonal_(1).prod(1)
        scale = functional.pad(apart, (0, 1), value=1.0)[:, None]

        def values(n: int) -> Tensor:
            infinity = functional.one_hot(torch.tensor([n - 1]), n).to(points)
            return torch.cat([torch.vander(points, n, increasing=True), infinity])

        patch, taps, tile = values(6).inverse().T * scale, values(3) / scale, values(TILE).T
        filters = torch.einsum("pi,kcij,qj->pqck", taps, weight.double(), taps)
        bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach()
        self.register_buffer("filters", filters.flatten(0, 1).to(weight).contiguous())  # [36 c k]
        self.register_buffer("bias", bias)
        self.register_buffer("taking", torch.kron(patch, patch).to(weight))  # [36 36]
        self.register_buffer("giving", torch.kron(tile, tile).to(weight))  # [16 36]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        b, c, h, w = x.shape
        rows, columns = h // TILE, w // TILE
        x = functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
        image, row, column, _ = x.stride()
        patches = x.as_strided(  # of 6 x 6, which overlap by 2
            (6, 6, b, rows, columns, c), (row, column, image, TILE * row, TILE * column, 1)
        )
        taken = self.taking @ patches.reshape(36, -1)
        products = torch.bmm(taken.view(36, -1, c), self.filters)  # [36 tiles k]
        tiles = self.giving @ products.view(36, -1)
        tiles = tiles.view(TILE, TILE, b, rows, columns, -1).permute(2, 3, 0, 4, 1, 5)
        return (tiles.reshape(b, h, w, -1) + self.bias).permute(0, 3, 1, 2)
