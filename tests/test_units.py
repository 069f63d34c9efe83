"""Quantities as people read them."""

import pytest

from s2f import console


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.1234, "0.12 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (18_200, "5 h 3 min"),
        (187_300, "2 d 4 h"),
    ],
)
def test_times(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (17_150, "17.1 k"),
        (999_600, "1 M"),
        (148_100_000, "148 M"),
        (1_130_000_000, "1.13 G"),
    ],
)
def test_numbers(n: int, text: str) -> None:
    assert console.count(n) == text


@pytest.mark.parametrize(
    ("n", "text"), [(12, "12 B"), (17_150, "17.1 kB"), (592_400_000, "592 MB")]
)
def test_bytes(n: int, text: str) -> None:
    assert console.size(n) == text
