"""Winograd's convolution against the direct one in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from s2f.face_encoder import AT, BT, G, WinogradConv2d


@settings(deadline=None, max_examples=30)
@given(
    shape=st.tuples(*[st.integers(1, 3)] * 2),
    channels=st.tuples(*[st.integers(1, 9)] * 2),
    batch=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_is_a_convolution_of_any_size(
    shape: tuple[int, int], channels: tuple[int, int], batch: int, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(*channels, 3, padding=1, bias=bias).double()
    x = torch.randn(batch, channels[0], 4 * shape[0], 4 * shape[1], dtype=torch.float64)
    torch.testing.assert_close(WinogradConv2d(conv)(x), conv(x).detach(), rtol=0, atol=1e-12)


def test_in_one_dimension_it_is_a_filter_of_three() -> None:
    # Oracle: the sum over the three taps, written out.
    torch.manual_seed(0)
    bt, g, at = (torch.tensor(m, dtype=torch.float64) for m in (BT, G, AT))
    patch, taps = torch.randn(6, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    expected = [float((patch[i : i + 3] * taps).sum()) for i in range(4)]
    found = at @ ((g @ taps) * (bt @ patch))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_in_float32_the_error_is_some_2e_6_of_the_norm() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 64, 3, padding=1)
    x = torch.randn(1, 256, 28, 28).relu()
    exact = functional.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)  # type: ignore[union-attr]
    error = (WinogradConv2d(conv)(x) - exact).norm() / exact.norm()
    assert 1e-7 < error < 4e-6


def test_its_result_has_its_channels_last() -> None:
    y = WinogradConv2d(nn.Conv2d(4, 8, 3, padding=1))(torch.randn(2, 4, 8, 8))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ],
)
def test_another_convolution_is_refused(conv: nn.Conv2d) -> None:
    with pytest.raises(ValueError, match="wanted a 3x3 convolution"):
        WinogradConv2d(conv)


def test_a_side_that_is_no_multiple_of_4_is_refused() -> None:
    with pytest.raises(ValueError, match="8 x 6 is not made of tiles"):
        WinogradConv2d(nn.Conv2d(1, 1, 3, padding=1))(torch.zeros(1, 1, 8, 6))
