"""3x3 convolutions with a quarter of the multiplications, for networks that are not trained.

Winograd's minimal filtering F(4x4, 3x3): every tile of 4 x 4 outputs is found from 6 x 6 inputs
by 36 multiplications a pair of channels instead of 144. Both transforms and the products are
matrix multiplications, at which every backend is quick. In float32 the result is about three
times as far from the exact one as a direct convolution's: some 2e-6 of its norm.

Source: Lavin and Gray 2015, "Fast Algorithms for Convolutional Neural Networks" (the method).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

TILE = 4  # outputs a side
PATCH = TILE + 2  # inputs a side

# The rows evaluate a polynomial at 0, 1, -1, 2, -2 and infinity; BT takes a patch there, G a
# filter, and AT brings their product back.
BT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
AT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


class WinogradConv2d(nn.Module):
    """A padded 3x3 convolution of stride 1: [b c h w] to [b k h w], h and w multiples of 4.

    Made of an `nn.Conv2d`, whose weights it holds transformed, in four times the space. Without
    gradients. Quickest in the channels-last format, which its result has.
    """

    filters: Tensor
    bias: Tensor
    taking: Tensor
    giving: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        """Transform the weights of a convolution.

        Raises:
            ValueError: if it is another kind of convolution.
        """
        super().__init__()
        shape = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
        if shape != ((3, 3), (1, 1), (1, 1), (1, 1), 1) or conv.padding_mode != "zeros":
            raise ValueError(f"wanted a 3x3 convolution of stride 1 with a padding of 1: {conv}")
        weight = conv.weight.detach()
        g, bt, at = (
            torch.tensor(m, dtype=torch.float64, device=weight.device) for m in (G, BT, AT)
        )
        filters = torch.einsum("pi,kcij,qj->pqck", g, weight.double(), g)
        bias = weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.register_buffer("filters", filters.flatten(0, 1).to(weight).contiguous())  # [36 c k]
        self.register_buffer("bias", bias)
        self.register_buffer("taking", torch.kron(bt, bt).to(weight))  # [36 36]
        self.register_buffer("giving", torch.kron(at, at).to(weight))  # [16 36]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Raises:
            ValueError: if height or width is no multiple of 4.
        """
        b, c, h, w = x.shape
        if h % TILE or w % TILE:
            raise ValueError(f"{h} x {w} is not made of tiles of {TILE} x {TILE}")
        rows, columns = h // TILE, w // TILE
        x = functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
        image, row, column, _ = x.stride()
        patches = x.as_strided(  # they overlap by 2
            (PATCH, PATCH, b, rows, columns, c), (row, column, image, TILE * row, TILE * column, 1)
        )
        taken = self.taking @ patches.reshape(PATCH**2, -1)
        products = torch.bmm(taken.view(PATCH**2, -1, c), self.filters)  # [36 tiles k]
        tiles = self.giving @ products.view(PATCH**2, -1)
        tiles = tiles.view(TILE, TILE, b, rows, columns, -1).permute(2, 3, 0, 4, 1, 5)
        return (tiles.reshape(b, h, w, -1) + self.bias).permute(0, 3, 1, 2)
