"""Two reports: a planted difference is found, chance is not, and tables stand side by side."""

import dataclasses
import math

import numpy as np
import pytest
from reports import full

from s2f.errors import UsageError
from s2f.report import (
    LEVEL,
    ROUNDS,
    Report,
    Section,
    Table,
    compare_reports,
    from_json,
    to_html,
    to_json,
)

N = 200
METRICS = ("metric", "old", "new", "difference", "from", "to", "p", "N", "new is")


def report(values: np.ndarray, *, data: str = "vox", lower: bool = False, first: int = 0) -> Report:
    """A report of one metric, by identity."""
    samples = {"m": {f"id{first + k}": float(value) for k, value in enumerate(values)}}
    return Report("r", {"data": data}, (), samples, frozenset({"m"} if lower else ()))


def found(a: Report, b: Report) -> dict[str, object]:
    """The row of the one metric."""
    table = compare_reports(a, b, "old", "new").sections[0].parts[0]
    assert isinstance(table, Table) and table.heads == METRICS
    (row,) = table.rows
    return dict(zip(METRICS, row, strict=True))


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=N)


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("shift", [-0.3, 0.3])
def test_a_planted_difference_is_found(shift: float, lower: bool) -> None:
    """0.3 is some 6 standard errors of the mean of 200 paired differences of deviation 0.7."""
    old = noise(0)
    new = old + shift + 0.7 * noise(1)
    row = found(report(old, lower=lower), report(new, lower=lower))
    assert row["new is"] == ("better" if (shift > 0) != lower else "worse")
    assert row["difference"] == pytest.approx(np.mean(new - old))
    assert (row["old"], row["new"]) == pytest.approx((old.mean(), new.mean()))
    assert row["p"] == 1 / ROUNDS and row["N"] == N


def test_the_interval_is_that_of_the_normal_approximation() -> None:
    """With 200 normal differences: the mean, 1.96 standard errors to each side."""
    old, new = noise(0), noise(1)
    row = found(report(old), report(new))
    gains = new - old
    error = 1.96 * gains.std() / math.sqrt(N)
    assert row["from"] == pytest.approx(gains.mean() - error, abs=0.1 * error)
    assert row["to"] == pytest.approx(gains.mean() + error, abs=0.1 * error)


def test_chance_is_called_a_difference_as_often_as_said() -> None:
    """Of 100 comparisons without a difference about 5 seem to have one; 0 to 11 in 99 %."""
    rows = [found(report(noise(2 * k)), report(noise(2 * k + 1))) for k in range(100)]
    ps = [float(str(row["p"])) for row in rows]
    seen = [row["new is"] != "no difference" for row in rows]
    assert seen == [p < LEVEL for p in ps]
    assert sum(seen) <= 11
    assert 0.35 < np.mean(ps) < 0.65  # evenly spread over 0..1


def test_equal_runs_do_not_differ() -> None:
    row = found(report(noise(0)), report(noise(0)))
    assert (row["difference"], row["from"], row["to"], row["p"]) == (0, 0, 0, 1)
    assert row["new is"] == "no difference"


def test_one_identity_proves_nothing() -> None:
    row = found(report(np.zeros(1)), report(np.ones(1)))
    assert (row["difference"], row["p"], row["new is"]) == (1, 1, "no difference")


def test_the_order_of_identities_does_not_matter() -> None:
    old, new = report(noise(0)), report(noise(1))
    turned = {"m": dict(reversed(new.samples["m"].items()))}
    assert found(old, new) == found(old, dataclasses.replace(new, samples=turned))


def test_only_common_identities_with_numbers_are_compared() -> None:
    values = noise(0)
    values[:10] = math.nan
    row = found(report(values), report(noise(1), data="other", first=5))
    assert row["N"] == N - 10


def test_different_data_are_told() -> None:
    same, other = report(noise(0)), report(noise(0), data="other", first=50)
    assert compare_reports(same, same, "old", "new").sections[0].text == ()
    differences = compare_reports(same, other, "old", "new")
    assert "different data" in differences.sections[0].text[0]
    assert differences.facts == {"data (old)": "vox", "data (new)": "other"}
    with pytest.raises(UsageError, match="no identity has a metric in both"):
        compare_reports(same, report(noise(0), first=N), "old", "new")


def test_many_identities_take_bounded_memory_and_the_same_draws() -> None:
    values = np.tile(noise(0), 100)
    row = found(report(values), report(values + 1))
    assert row["difference"] == pytest.approx(1) == row["from"]


def test_tables_stand_side_by_side_and_equal_columns_once() -> None:
    heads = ("metric", "R@1 %", "N")
    a = Table("Retrieval", heads, (("cos", 0.1, 50), ("l2", 0.2, 50), ("cos", 0.3, 50)), "note")
    b = Table("Retrieval", heads, (("cos", 0.4, 50), ("cos", 0.5, 50), ("l2", 0.6, 50)), "note")
    alone, other = Table("Alone", ("x",), ()), Table("Retrieval", ("metric",), ())
    old, new = (
        dataclasses.replace(report(noise(0)), sections=(Section("s", (), parts),))
        for parts in ((a, alone), (b,))
    )
    both = compare_reports(old, new, "old", "new").sections[1]
    assert both == Section(
        "s",
        (),
        (
            Table(
                "Retrieval",
                ("metric", "old: R@1 %", "new: R@1 %", "N"),
                (("cos", 0.1, 0.4, 50), ("l2", 0.2, 0.6, 50), ("cos", 0.3, 0.5, 50)),
                "note",
            ),
        ),
    )
    changed = dataclasses.replace(new, sections=(Section("s", (), (other,)),))
    assert len(compare_reports(old, changed, "old", "new").sections) == 1


def test_a_row_of_one_alone_has_gaps() -> None:
    tables = [Table("t", ("x", "y"), ((name, 1.0),)) for name in "ab"]
    old, new = (
        dataclasses.replace(report(noise(0)), sections=(Section("s", (), (table,)),))
        for table in tables
    )
    (table,) = compare_reports(old, new, "old", "new").sections[1].parts
    assert isinstance(table, Table) and table.rows == (("a", 1.0, None), ("b", None, 1.0))


def test_reports_from_files_compare_and_are_reports_again() -> None:
    back = from_json(to_json(full()), "report.json")
    both = compare_reports(back, back, "old", "new")
    assert "no difference" in to_html(both)
    assert from_json(to_json(both), "") == both
