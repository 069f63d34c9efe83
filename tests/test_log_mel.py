"""Tests of s2f.spectrogram; each expected value says where it comes from."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise
from hypothesis import given, settings
from hypothesis import strategies as st

from s2f.errors import DatasetError
from s2f.spectrogram import (
    FrontEnd,
    LogMelStats,
    RunningMoments,
    moments,
    read_stats,
    spectrogram,
    write_stats,
)

numbers = st.lists(st.floats(-100, 100), min_size=1, max_size=20)


def moments_of(values: list[float]) -> RunningMoments:
    x = np.array(values)
    return RunningMoments(x.size, float(x.mean()), float(((x - x.mean()) ** 2).sum()))


@given(parts=st.lists(numbers, min_size=1, max_size=5))
def test_the_sum_of_moments_is_the_moments_of_all_numbers(parts):
    total = sum(map(moments_of, parts), start=RunningMoments())
    expected = moments_of(list(itertools.chain(*parts)))
    assert total.count == expected.count
    assert total.mean == pytest.approx(expected.mean, abs=1e-9)
    assert total.m2 == pytest.approx(expected.m2, abs=1e-6)


def test_moments_do_not_cancel_far_from_zero():
    """Sums of squares in place of squared deviations would lose all digits."""
    total = moments_of([1e9, 1e9 + 1]) + moments_of([1e9 + 2, 1e9 + 3])
    assert total.m2 == pytest.approx(5.0)


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(400, 30_000),
    cuts=st.lists(st.integers(0, 30_000), max_size=6),
)
def test_blocks_measure_as_the_whole_does(n, cuts):
    waveform = noise(2)[:n]
    mel = spectrogram(torch.from_numpy(waveform)[None], FrontEnd("ast")).double()
    total = moments(np.split(waveform, sorted(min(cut, n) for cut in cuts)))
    assert total.count == mel.numel()
    assert total.mean == pytest.approx(float(mel.mean()), abs=1e-5)
    assert total.m2 == pytest.approx(float((mel - mel.mean()).square().sum()), rel=1e-5)


def test_less_than_a_frame_counts_nothing():
    assert moments([noise(1)[:399]]) == RunningMoments()


def test_statistics_survive_their_file(tmp_path):
    written = write_stats(tmp_path / "a/stats.json", RunningMoments(256, -6.5, 1024.0), files=3)
    assert written == LogMelStats(mean=-6.5, std=2.0, frames=2, files=3)
    assert read_stats(tmp_path / "a/stats.json") == written


def changed(**values: object) -> str:
    content = {
        "kind": "s2f log-mel statistics",
        "version": 1,
        "of": {"n_mels": 128, "sample_rate": 16_000, "loudness_dbfs": -23.0},
        "mean": -6.0,
        "std": 2.0,
        "frames": 1,
        "files": 1,
    }
    return json.dumps(content | values)


def test_the_file_says_what_it_is_of(tmp_path):
    write_stats(tmp_path / "stats.json", RunningMoments(128, -6.0, 512.0), files=1)
    assert json.loads((tmp_path / "stats.json").read_text()) == json.loads(changed())


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "is no statistics"),
        ("[1]", "is no statistics"),
        ("{}", "is no statistics"),
        ("\udcff", "is no statistics"),
        (changed(kind="a recipe"), "is no statistics"),
        (changed(version=2), "of this version"),
        (changed(of={"n_mels": 64}), "of this version"),
        (changed(std=0.0), "has mean -6.0 and std 0.0"),
        (changed(mean=float("nan")), "has mean nan"),
        (changed(std="2"), "is no statistics"),
        (changed(median=-6.0), "is no statistics"),
    ],
)
def test_a_file_of_something_else_is_refused_with_a_cure(tmp_path, content, part):
    path = tmp_path / "stats.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DatasetError, match=part) as caught:
        read_stats(path)
    assert str(path) in caught.value.message
    assert "s2f prep stats" in caught.value.hint


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        read_stats(tmp_path / "stats.json")
