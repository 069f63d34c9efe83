"""4x4 convolutions with a quarter of the multiplications, for networks on a CPU.

Winograd's minimal filtering F(3x3, 4x4): a tile of 3 x 3 outputs is found from 6 x 6 inputs by 36
multiplications a pair of channels instead of 144, and so are both gradients. Everything is a
matrix multiplication, on so few tiles at a time that they stay in the cache. `accelerate` makes
the convolutions of a network work this way where it pays.

In float32 outputs and gradients are some 2e-6 to 3e-6 of their norm away from the exact ones. The
same input gives the same bits, whatever the number of threads, and an image the same maps
whatever images share its batch.

Source: Lavin and Gray 2015, "Fast Algorithms for Convolutional Neural Networks" (the method).
"""

import collections
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from s2f.face_encoder import BT

KERNEL = 4
TILE = 3  # outputs a side
PATCH = TILE + KERNEL - 1  # inputs a side
TILES = 96  # at a time, in each thread
SUMS = 8  # that a weight gradient is the sum of: one order of addition, whichever is ready first
CHANNELS = 64  # with fewer, in or out, the transforms take longer than they save

# The same points as in `winograd`, so that BT is the same, for a filter of four and three outputs.
G = (
    (1 / 4, 0, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6, 1 / 6),
    (1 / 24, 1 / 12, 1 / 6, 1 / 3),
    (1 / 24, -1 / 12, 1 / 6, -1 / 3),
    (0, 0, 0, 1),
)
AT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 1))


class FastConv2d(nn.Conv2d):
    """An `nn.Conv2d` that is computed by Winograd's method where that pays, else as ever."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        usual = (
            input.device.type != "cpu"
            or input.dim() != 4
            or min(input.shape[2:]) < KERNEL
            or {input.dtype, weight.dtype} != {torch.float32}
            or torch.is_autocast_enabled("cpu")
            or torch.compiler.is_compiling()
        )
        way = super()._conv_forward if usual else convolve
        y: Tensor = way(input, weight, bias)
        return y


def accelerate(network: nn.Module) -> None:
    """Make the convolutions of a network quick where it pays; the rest of it stays as it is.

    Parameters, their names and the modules remain the same objects: only the class of some
    `nn.Conv2d` becomes `FastConv2d`, which is one. On other devices than a CPU, and in other
    precisions than float32, nothing changes. A second call does nothing.

    Args:
        network: any; changed in place.
    """
    for module in network.modules():
        if type(module) is not nn.Conv2d:
            continue
        shape = module.kernel_size, module.stride, module.padding, module.dilation, module.groups
        plain = shape == ((KERNEL, KERNEL), (1, 1), (0, 0), (1, 1), 1)
        if plain and min(module.in_channels, module.out_channels) >= CHANNELS:
            module.__class__ = FastConv2d


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve as `functional.conv2d` does without padding or stride, and differentiably once.

    Args:
        x: [b c h w], float32 or float64, in any memory format; h and w at least 4.
        weight: [k c 4 4].
        bias: [k], or None.

    Returns:
        [b k h-3 w-3], in the channels-last format.
    """
    y: Tensor = _Convolution.apply(x, weight, bias)
    return y


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        y = _correlate(x.permute(0, 2, 3, 1), _filters(weight), bias, margin=0)
        return y.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        gradient = gradient.permute(0, 2, 3, 1)
        if ctx.needs_input_grad[0]:
            turned = _filters(weight.flip(2, 3).transpose(0, 1))
            of_x = _correlate(gradient, turned, None, margin=KERNEL - 1).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(x.permute(0, 2, 3, 1), gradient)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 1, 2))
        return of_x, of_weight, of_bias


def _both_axes(matrix: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    """A transform of one axis as one of two, which are flattened."""
    exact = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(exact, exact).to(like)


def _filters(weight: Tensor) -> Tensor:
    """Transform filters [k c 4 4] to [36 c k]."""
    k, c = weight.shape[:2]
    taps = weight.permute(2, 3, 1, 0).reshape(KERNEL**2, c * k)
    return (_both_axes(G, weight) @ taps).view(PATCH**2, c, k)


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of a process, each of which multiplies matrices alone."""
    everyone = threading.Barrier(threads)

    def begin() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread looks once: before its number is set back
        everyone.wait()

    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "fast-conv", initializer=begin)
    wait([pool.submit(int) for _ in range(threads)])
    torch.set_num_threads(before)  # torch's own threads, which `begin` changes too
    return pool


def _each(job: Callable[[int], None], n: int) -> None:
    """Do n jobs, by number, none of which depends on another.

    Threads that share the jobs are quicker than threads that share each product, as those wait
    for each other every time; all the more where other programs run.
    """

    def run(number: int) -> None:
        with torch.inference_mode():  # jobs only write into what was made outside
            job(number)

    threads = torch.get_num_threads()
    done = map(run, range(n)) if threads == 1 else _pool(threads, os.getpid()).map(run, range(n))
    collections.deque(done, maxlen=0)


def _lines(image: Tensor, first: int, n: int, left: int, right: int) -> Tensor:
    """Lines of an image [h w c] from `first` on, [n left+w+right c]: zeros where it has none."""
    start, end = max(0, first), min(len(image), first + n)
    around = 0, 0, left, right, start - first, first + n - end
    return functional.pad(image[start:end], around).contiguous()


def _patches(lines: Tensor, rows: int, columns: int) -> Tensor:
    """The patches [36 tiles*c] of rows and columns of tiles [h w c]; they overlap by 3."""
    line, column, _ = lines.stride()
    size = PATCH, PATCH, rows, columns, lines.shape[2]
    strides = line, column, TILE * line, TILE * column, 1
    return lines.as_strided(size, strides).reshape(PATCH**2, -1)


def _bands(images: int, rows: int, columns: int) -> list[tuple[int, int, int]]:
    """Image, first row of tiles and number of rows of what is treated at a time."""
    step = max(1, TILES // columns)
    return [(i, row, min(step, rows - row)) for i in range(images) for row in range(0, rows, step)]


def _correlate(x: Tensor, filters: Tensor, bias: Tensor | None, *, margin: int) -> Tensor:
    """Slide filters [36 c k] over maps [b h w c] with zeros around them, to [b h' w' k]."""
    b, h, w, c = x.shape
    k = filters.shape[2]
    h, w = h + 2 * margin - KERNEL + 1, w + 2 * margin - KERNEL + 1
    columns = -(-w // TILE)
    taking, giving = _both_axes(BT, x), _both_axes(AT, x)
    y = x.new_empty(b, h, w, k)
    bands = _bands(b, -(-h // TILE), columns)

    def make(number: int) -> None:
        i, row, n = bands[number]
        first, height = TILE * row - margin, TILE * n + KERNEL - 1
        lines = _lines(x[i], first, height, margin, margin + TILE * columns - w)
        taken = taking @ _patches(lines, n, columns)
        products = torch.bmm(taken.view(PATCH**2, -1, c), filters)  # [36 tiles k]
        tiles = (giving @ products.view(PATCH**2, -1)).view(TILE, TILE, n, columns, k)
        made = tiles.permute(2, 0, 3, 1, 4).reshape(TILE * n, TILE * columns, k)
        out = y[i, TILE * row : TILE * (row + n)]
        made = made[: len(out), :w]
        if bias is None:
            out.copy_(made)
        else:
            torch.add(made, bias, out=out)

    _each(make, len(bands))
    return y


def _weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """Gradient [k c 4 4] of the filters that made maps [b h-3 w-3 k] of maps [b h w c]."""
    c = x.shape[3]
    b, h, w, k = gradient.shape
    columns = -(-w // TILE)
    rest = TILE * columns - w
    taking, giving = _both_axes(BT, x), _both_axes(AT, x).T.contiguous()
    sums = x.new_zeros(SUMS, PATCH**2, c, k)
    bands = _bands(b, -(-h // TILE), columns)

    def add(number: int) -> None:
        for i, row, n in bands[number::SUMS]:
            lines = _lines(x[i], TILE * row, TILE * n + KERNEL - 1, 0, rest)
            taken = (taking @ _patches(lines, n, columns)).view(PATCH**2, -1, c)
            tiles = _lines(gradient[i], TILE * row, TILE * n, 0, rest)
            tiles = tiles.view(n, TILE, columns, TILE, k).permute(1, 3, 0, 2, 4)
            of_products = (giving @ tiles.reshape(TILE**2, -1)).view(PATCH**2, -1, k)
            sums[number].baddbmm_(taken.transpose(1, 2), of_products)

    _each(add, SUMS)
    of_taps = _both_axes(G, x).T @ sums.sum(0).view(PATCH**2, -1)
    return of_taps.view(KERNEL, KERNEL, c, k).permute(3, 2, 0, 1)
