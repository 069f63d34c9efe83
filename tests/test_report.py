"""What a report holds, and numbers as people read them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2f.report import MISSING, POINTS, Curves, Matrix, Table, numeric, show


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (45.754, "45.8"),
        (9.999, "10.0"),
        (99.96, "100"),
        (0.5, "0.500"),
        (-0.0321, "-0.0321"),
        (1234.5, "1,234"),  # every digit before the point, though they are four
        (0.0005, "0.000500"),
        (0.00005, "5.00e-05"),
        (0.0, "0"),
        (5000, "5,000"),
        (123456, "123,456"),
        (np.int64(7), "7"),
        (np.float32(0.25), "0.250"),
        ("as it is", "as it is"),
        (None, MISSING),
        (math.nan, MISSING),
        (math.inf, MISSING),
    ],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert show(value) == shown


@pytest.mark.parametrize(
    ("share", "shown"), [(0.1092, "10.9"), (1, "100"), (0, "0"), (0.9, "90.0")]
)
def test_a_share_is_shown_in_percent(share: float, shown: str) -> None:
    assert show(share, "R@1 %") == shown
    assert show(None, "R@1 %") == MISSING


@given(st.floats(-1e12, 1e12))
def test_what_is_shown_is_the_number_to_three_digits(value: float) -> None:
    assert float(show(value).replace(",", "")) == pytest.approx(value, rel=5.1e-3)


def test_rows_and_counts_that_do_not_fit_are_bugs() -> None:
    with pytest.raises(ValueError, match="2 cells under 1 heads"):
        Table("t", ("a",), ((1, 2),))
    with pytest.raises(ValueError, match=r"\[2 2\]"):
        Matrix("m", ("a", "b"), ((1, 2),))


def test_a_column_of_numbers_holds_nothing_else() -> None:
    table = Table("t", ("a", "b", "c", "d"), (("x", 1, None, 1), ("y", None, None, "z")))
    assert [numeric(table, k) for k in range(4)] == [False, True, False, False]


def test_the_table_of_a_matrix_has_the_shares_of_its_rows() -> None:
    table = Matrix("m", ("F", "M", "X"), ((9, 1, 0), (3, 6, 0), (0, 0, 0)), "note").table()
    assert table.heads == ("true", "F %", "M %", "X %", "N")
    assert table.rows[0] == ("F", 0.9, 0.1, 0, 10)
    assert sum(table.rows[1][1:4]) == pytest.approx(1)  # type: ignore[arg-type]
    assert table.rows[2] == ("X", None, None, None, 0)
    assert table.note == "note"


@pytest.mark.parametrize("log_x", [False, True])
def test_the_table_of_curves_has_a_few_points_with_both_ends(log_x: bool) -> None:
    lines = {"a": [(k, k / 2) for k in range(1, 1001)], "b": [(1, 7.0), (1000, 8.0)]}
    table = Curves("c", "K", "recall %", lines, log_x=log_x).table()
    assert table.heads == ("K", "a %", "b %")
    xs = [row[0] for row in table.rows]
    assert len(xs) == POINTS and (xs[0], xs[-1]) == (1, 1000)
    assert all(row[1] == row[0] / 2 for row in table.rows)  # type: ignore[operator]
    assert [row[2] for row in table.rows] == [7, *[None] * (POINTS - 2), 8]
    middle = xs[POINTS // 2]
    assert (middle < 100) is log_x  # type: ignore[operator]


def test_points_that_cannot_be_drawn_are_left_out() -> None:
    line = [(0, 1.0), (1, math.nan), (2, 2.0), (math.inf, 3.0)]
    assert Curves("c", "x", "y", {"a": line}).drawn() == {"a": [(0, 1.0), (2, 2.0)]}
    assert Curves("c", "x", "y", {"a": line}, log_x=True).drawn() == {"a": [(2, 2.0)]}
    assert Curves("c", "x", "y", {}).table().rows == ()
