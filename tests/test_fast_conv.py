"""Winograd's convolution and its gradients against the direct one in float64."""

import copy
import dataclasses
import pickle
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from s2f import fast_conv
from s2f.face_encoder import BT
from s2f.fast_conv import AT, SUMS, FastConv2d, G, accelerate, convolve
from s2f.voice_encoder import CONFIGS, VoiceEncoder, VoiceEncoderConfig

SMALL = dataclasses.replace(
    CONFIGS["paper"],
    n_freqs=24,
    channels=(64, 64, 64, 64),
    strides=(1, 1, 1, 2),
    pools=((1, 1), (1, 2), (1, 1), (1, 1)),
    hidden=16,
    embedding=16,
)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def network(*, fast: bool) -> VoiceEncoder:
    torch.manual_seed(0)
    made = VoiceEncoder(SMALL)
    if fast:
        accelerate(made)
    return made


def values(x: Tensor, conv: nn.Conv2d, *, fast: bool) -> list[Tensor]:
    """Maps, and the gradients of x, the weight and the bias, of one made gradient."""
    x = x.detach().requires_grad_()
    y = convolve(x, conv.weight, conv.bias) if fast else conv(x)
    torch.manual_seed(1)
    wanted = [x, *conv.parameters()]
    gradient = torch.randn(y.shape, dtype=torch.float64).to(y)
    return [y.detach(), *torch.autograd.grad(y, wanted, gradient)]


def test_in_one_dimension_it_is_a_filter_of_four() -> None:
    # Oracle: the sum over the four taps, written out.
    torch.manual_seed(0)
    bt, g, at = (torch.tensor(m, dtype=torch.float64) for m in (BT, G, AT))
    patch, taps = torch.randn(6, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    expected = [float((patch[i : i + 4] * taps).sum()) for i in range(3)]
    torch.testing.assert_close(at @ ((g @ taps) * (bt @ patch)), torch.tensor(expected).double())


@settings(deadline=None, max_examples=40)
@given(
    size=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    channels=st.tuples(*[st.integers(1, 5)] * 2),
    batch=st.integers(1, 3),
    bias=st.booleans(),
    channels_last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_maps_and_gradients_are_those_of_a_convolution_of_any_size(
    size: tuple[int, int],
    channels: tuple[int, int],
    batch: int,
    bias: bool,
    channels_last: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(*channels, 4, bias=bias).double()
    x = torch.randn(batch, channels[0], *size, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for found, expected in zip(
        values(x, conv, fast=True), values(x, conv, fast=False), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    shapes = (2, 2, 8, 5), (3, 2, 4, 4), (3,)
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(convolve, inputs)


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_gradient_that_nobody_wants_is_not_made(
    monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    shapes = (1, 2, 7, 7), (3, 2, 4, 4), (3,)
    inputs = [torch.randn(shape, requires_grad=i == kept) for i, shape in enumerate(shapes)]
    y = convolve(inputs[0], inputs[1], inputs[2])
    unwanted = {0: "_weight_gradient", 1: "_correlate", 2: "_correlate"}[kept]
    monkeypatch.delattr(fast_conv, unwanted)
    y.sum().backward()
    assert [x.grad is not None for x in inputs] == [i == kept for i in range(3)]


def test_a_gradient_without_memory_of_its_own_is_taken() -> None:
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64, requires_grad=True)
    conv = nn.Conv2d(3, 4, 4).double()
    (found,) = torch.autograd.grad(convolve(x, conv.weight, conv.bias).sum(), [x])
    (expected,) = torch.autograd.grad(conv(x).sum(), [x])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("channels", [(64, 64), (128, 256), (256, 512)])
def test_in_float32_the_errors_are_below_5e_6_of_the_norm(channels: tuple[int, int]) -> None:
    torch.manual_seed(0)
    exact = nn.Conv2d(*channels, 4).double()
    conv = copy.deepcopy(exact).float()
    x = torch.randn(1, channels[0], 45, 50)
    found, expected = values(x, conv, fast=True), values(x.double(), exact, fast=False)
    for a, b in zip(found, expected, strict=True):
        assert 1e-9 < float((a - b).norm() / b.norm()) < 5e-6


def test_an_image_has_the_same_bits_in_any_batch() -> None:
    torch.manual_seed(0)
    x, conv = torch.randn(3, 64, 20, 31), nn.Conv2d(64, 64, 4)
    y = convolve(x, conv.weight, conv.bias)
    for i in range(3):
        assert torch.equal(convolve(x[i : i + 1], conv.weight, conv.bias)[0], y[i])


def test_the_bits_are_the_same_again_and_with_more_threads() -> None:
    torch.manual_seed(0)
    x, conv = torch.randn(2, 64, 40, 61), nn.Conv2d(64, 64, 4)
    assert 2 * 13 * 20 / fast_conv.TILES > SUMS / 2  # several bands, for several threads
    runs = []
    before = torch.get_num_threads()
    for threads in (1, 2, 2, 3, 1):
        torch.set_num_threads(threads)
        runs.append(values(x, conv, fast=True)[:3])  # torch adds up the bias's
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.usefixtures("two_threads")
def test_what_fails_in_a_thread_fails_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr(fast_conv, "_patches", fail)
    with pytest.raises(MemoryError, match="no memory"):
        convolve(torch.zeros(1, 1, 7, 7), torch.zeros(1, 1, 4, 4), None)


@pytest.mark.usefixtures("two_threads")
def test_it_works_in_inference_mode_and_gives_tensors_to_train_with_outside() -> None:
    x, conv = torch.randn(1, 2, 7, 8), nn.Conv2d(2, 3, 4)
    with torch.inference_mode():
        inside = convolve(x, conv.weight, conv.bias)
    outside = convolve(x, conv.weight, conv.bias)
    assert torch.equal(inside, outside) and not outside.is_inference()
    assert not torch.autograd.grad(outside.sum(), [conv.weight])[0].is_inference()


def test_nothing_but_the_class_of_a_convolution_changes() -> None:
    plain, fast = network(fast=False), network(fast=True)
    modules = dict(fast.named_modules())
    kinds = {name: type(module) for name, module in plain.named_modules()}
    assert [name for name, module in modules.items() if type(module) is not kinds[name]] == [
        "convs.1.0",
        "convs.2.0",
    ]  # not the first, of 2 channels, nor the last, of stride 2
    assert all(isinstance(module, kinds[name]) for name, module in modules.items())
    assert isinstance(fast.convs[1][0], FastConv2d)
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert list(dict(fast.named_parameters())) == list(dict(plain.named_parameters()))
    plain.load_state_dict(fast.state_dict())


def test_parameters_stay_the_same_objects_and_a_second_call_does_nothing() -> None:
    made = network(fast=False)
    before = list(made.parameters())
    accelerate(made)
    accelerate(made)
    assert all(a is b for a, b in zip(made.parameters(), before, strict=True))
    assert type(made.convs[1][0]) is FastConv2d


def test_a_copy_and_a_pickle_are_as_quick_and_as_right() -> None:
    fast = network(fast=True).eval()
    x = torch.randn(1, 2, 24, 40)
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert type(again.convs[1][0]) is FastConv2d
        assert torch.equal(again(x), fast(x))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 4, stride=2),
        nn.Conv2d(64, 64, 4, padding=1),
        nn.Conv2d(64, 64, 4, padding="same"),
        nn.Conv2d(64, 64, 4, dilation=2),
        nn.Conv2d(128, 128, 4, groups=2),
        nn.Conv2d(2, 64, 4),
        nn.ConvTranspose2d(64, 64, 4),
    ],
)
def test_another_convolution_is_left_as_it_is(conv: nn.Module) -> None:
    kind = type(conv)
    accelerate(nn.Sequential(conv))
    assert type(conv) is kind


@pytest.mark.parametrize("where", ["meta", "float64", "bfloat16", "autocast", "unbatched", "short"])
def test_where_it_does_not_pay_the_usual_way_is_taken(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(fast_conv, "convolve")
    conv, x = nn.Conv2d(64, 64, 4), torch.randn(1, 64, 8, 8)
    accelerate(conv)
    if where == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            assert conv(x).dtype == torch.bfloat16
    elif where == "unbatched":
        assert conv(x[0]).shape == (64, 5, 5)
    elif where == "short":
        with pytest.raises(RuntimeError, match="Kernel size"):
            conv(x[:, :, :3])
    else:
        to = where if where == "meta" else getattr(torch, where)
        assert conv.to(to)(x.to(to)).shape == (1, 64, 5, 5)


def test_a_compiled_network_is_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(fast_conv, "convolve")
    conv = nn.Conv2d(64, 64, 4)
    accelerate(conv)
    compiled = torch.compile(conv, backend="eager", fullgraph=True)
    assert compiled(torch.randn(1, 64, 8, 8)).shape == (1, 64, 5, 5)


def curve(config: VoiceEncoderConfig, x: Tensor, steps: int, *, fast: bool) -> list[float]:
    """Losses of training towards random embeddings.

    The steps are small: where a maximum or a ReLU turns over, gradients jump, and with steps of
    1e-3 the two memory formats of the usual convolution already part by a tenth in four steps.
    """
    torch.manual_seed(0)
    trained = VoiceEncoder(config)
    if fast:
        accelerate(trained)
    target = torch.randn(len(x), config.embedding)
    optimizer = torch.optim.Adam(trained.parameters(), lr=1e-4, eps=1e-4)
    losses = []
    for _ in range(steps):
        loss = functional.mse_loss(trained(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.usefixtures("two_threads")
def test_training_goes_as_with_the_usual_convolutions() -> None:
    torch.manual_seed(1)
    x = torch.randn(4, 2, 24, 60)
    usual, fast = (curve(SMALL, x, 6, fast=fast) for fast in (False, True))
    assert fast[-1] < 0.9 * fast[0]
    assert fast == pytest.approx(usual, rel=1e-4)
    assert fast != usual  # or the quick way was not taken


@pytest.mark.slow
def test_the_papers_encoder_trains_as_with_the_usual_convolutions() -> None:
    config = CONFIGS["paper"]
    torch.manual_seed(1)
    x = torch.randn(2, 2, config.n_freqs, config.min_frames)
    usual, fast = (curve(config, x, 3, fast=fast) for fast in (False, True))
    assert fast == pytest.approx(usual, rel=1e-3) and fast != usual
