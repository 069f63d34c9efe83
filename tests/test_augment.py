"""Disturbances: same shape and range, different every time, the same for the same seed."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch.nn import functional

from s2f import augment
from s2f.augment import _STEP, Noise, _mixed
from s2f.errors import UsageError

TONE = torch.sin(torch.arange(48_000) * (2 * math.pi * 1000 / 16_000))[None] * 0.1
WAYS = [*(way for way in augment.WAYS if way != "spec"), augment.WAYS]


def noise(n, seed=0):
    return Noise(1000 * seed + torch.arange(n))


def test_noise_is_splitmix64():
    """Steele, Lea and Flood 2014; the values of the seed 1234567 are those of its test vectors."""
    assert [x % 2**64 for x in _mixed(1234567 + _STEP * torch.arange(1, 4)).tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_noise_is_even_or_normal_and_no_two_seeds_or_draws_alike():
    seeds = torch.cat([torch.arange(200), 2**40 + torch.arange(200)])
    some = Noise(seeds)
    draws = [some.uniform(0, 1, 500), some.uniform(0, 1, 500)]
    rows = torch.cat(draws).double()
    assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 6 / 500**0.5
    assert torch.corrcoef(rows.T).fill_diagonal_(0).abs().max() < 6 / 800**0.5
    normal = some.normal(3, 99)
    assert normal.shape == (400, 3, 99) and normal.dtype == torch.float32
    for x, kind in ((draws[0], "uniform"), (draws[1], "uniform"), (normal, "norm")):
        # Kolmogorov and Smirnov: chance alone is beyond it once in 1,000 times.
        apart = scipy.stats.kstest(x.flatten().numpy(), kind).statistic
        assert apart < 1.95 / x.numel() ** 0.5
    assert all(0 <= x.min() and x.max() < 1 for x in draws)


@pytest.mark.parametrize(
    ("disturb", "batch"),
    [
        (augment.faces, torch.rand(4, 3, 32, 32)),
        (augment.lit, torch.rand(4, 3, 32, 32)),
        (lambda x, n: augment.bent(x, torch.zeros(len(x), 1, 2), n)[0], torch.rand(4, 3, 32, 32)),
        *((lambda x, n, w=w: augment.voices(x, w, n), TONE.expand(32, -1)) for w in WAYS),
        (augment.masked, torch.randn(4, 2, 128, 100)),
    ],
)
def test_the_seed_of_a_sample_decides_whatever_its_batch(disturb, batch):
    n = len(batch)
    first = disturb(batch, noise(n))
    assert torch.equal(first, disturb(batch, noise(n)))
    assert first.shape == batch.shape and first.isfinite().all()
    other = disturb(batch, noise(n, seed=1))
    changed = [not torch.equal(a, b) for a, b in zip(first, other, strict=True)]
    assert any(changed) and (n > 4 or all(changed))
    order = torch.arange(n).flip(0)
    parts = [disturb(batch[k], Noise(k)) for k in torch.split(order, n // 2)]
    torch.testing.assert_close(torch.cat(parts).flip(0), first, rtol=1e-5, atol=1e-5)


def dots(points, size):
    """A picture [b k s s] a point of points [b k 2]: a dot there."""
    grid = torch.arange(float(size))
    x, y = points[..., 0, None, None], points[..., 1, None, None]
    return torch.exp(-((grid - x) ** 2 + (grid[:, None] - y) ** 2) / 8)


def middles(pictures):
    """Where the dots of pictures [b k s s] are, [b k 2]."""
    grid = torch.arange(float(pictures.shape[-1]))
    total = pictures.sum((2, 3))
    x, y = (pictures.sum(2) * grid).sum(-1) / total, (pictures.sum(3) * grid).sum(-1) / total
    return torch.stack([x, y], -1)


def test_points_go_where_the_picture_goes():
    torch.manual_seed(0)
    points = 36 + 40 * torch.rand(16, 3, 2)  # of 112 pixels: they stay inside
    pictures, places = augment.bent(dots(points, 112), points, noise(16))
    apart = (middles(pictures) - places).norm(dim=2)
    assert apart.mean() < 0.1 and apart.max() < 0.5  # a dot is bent itself
    moves = places - points
    assert moves.norm(dim=2).mean() > 2
    # each picture is moved in its own way, and bent: no two points by the same
    assert moves.std(0).min() > 0.5 and moves.std(1).mean() > 0.5
    # gently: no point goes far
    x = torch.arange(16.0) * 6 + 10
    points = torch.stack(torch.meshgrid(x, x, indexing="xy"), -1).view(1, -1, 2).expand(32, -1, -1)
    _, places = augment.bent(torch.rand(32, 3, 112, 112), points, noise(32))
    assert (places - points).norm(dim=2).max() < 0.2 * 112
    # Neighbours stay neighbours, in their order: the picture is nowhere folded.
    grid = places.view(32, 16, 16, 2)
    assert (grid[:, :, 1:, 0] > grid[:, :, :-1, 0]).all()
    assert (grid[:, 1:, :, 1] > grid[:, :-1, :, 1]).all()


def test_under_another_light_nothing_moves_and_faces_stay_near_themselves():
    torch.manual_seed(0)
    points = 8 + 16 * torch.rand(32, 3, 2)
    given = 0.2 + 0.6 * dots(points, 32)
    seen = augment.lit(given, noise(32))
    # Compare above the ground, without the noise: the heaviest places of smooth pictures.
    smooth = functional.avg_pool2d(seen, 3, stride=1, padding=1)
    bright = (smooth - smooth.amax((2, 3), keepdim=True) * 0.6).clamp_min(0)
    assert (middles(bright) - points).norm(dim=2).max() < 0.5
    assert (seen - given).abs().mean() > 0.01
    # faces stay within white and black, and near themselves
    picture = functional.interpolate(torch.rand(16, 3, 4, 4), size=64, mode="bilinear")
    disturbed = augment.faces(picture, noise(16))
    assert 0 <= disturbed.min() and disturbed.max() <= 1
    assert (disturbed - picture).abs().mean() < 0.2


def test_voices_are_disturbed_within_bounds():
    torch.manual_seed(0)
    speech = TONE.expand(64, -1)
    added = augment.voices(speech, ["noise"], noise(64)) - speech  # at least 5 dB below
    ratio = 10 * torch.log10(speech.square().mean(1) / added.square().mean(1).clamp_min(1e-12))
    assert ratio.min() > 4.9
    assert (added.abs().amax(1) == 0).any()  # some are left alone
    # the gain is a factor a recording
    decibels = (
        20 * (augment.voices(speech, ["gain"], noise(64)).norm(dim=1) / speech.norm(dim=1)).log10()
    )
    assert decibels.min() >= -6.01 and decibels.max() <= 3.01 and decibels.std() > 1
    # the pitch moves by as much as was asked for
    power = torch.fft.rfft(augment._resampled(TONE.expand(32, -1), torch.linspace(0.96, 1.04, 32)))
    peaks = power.abs().argmax(1) * 16_000 / 48_000
    np.testing.assert_allclose(peaks, np.linspace(960, 1040, 32), atol=2)


def test_masks_hide_whole_bands_and_spells_behind_the_channels_mean():
    torch.manual_seed(0)
    heard = torch.randn(64, 2, 128, 100)
    seen = augment.masked(heard, noise(64))
    hidden = seen != heard
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    means = heard.mean((2, 3), keepdim=True).expand_as(heard)
    assert torch.equal(seen[hidden], means[hidden])
    bands, spells = hidden[:, 0].all(2), hidden[:, 0].all(1)  # [b f] and [b t]
    assert torch.equal(hidden[:, 0], bands[:, :, None] | spells[:, None])
    # Two of each at most, and no wider than an eighth of the bands and a tenth of the frames.
    for lines, most in ((bands, 16), (spells, 10)):
        assert 0 < lines.sum(1).float().mean() < lines.sum(1).max() <= 2 * most
        starts = lines.int().diff(dim=1, prepend=torch.zeros(64, 1)).clamp_min(0).sum(1)
        assert starts.max() == 2


def test_ways_are_read_in_their_order_and_those_switched_off_change_nothing():
    unused = noise(1)
    assert augment.voices(TONE, (), unused) is augment.voices(TONE, ["spec"], unused) is TONE
    assert unused.drawn == 0
    assert augment.read_ways("gain,noise") == ("noise", "gain")
    assert augment.read_ways("none") == () and augment.read_ways("all") == augment.WAYS
    for text in ("nois", "", "noise,,gain", "noise, gain", "all,noise"):
        with pytest.raises(UsageError, match="is none of noise, gain, speed, band, spec"):
            augment.read_ways(text)
