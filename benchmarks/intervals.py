"""How often intervals hold the truth, and how often a comparison finds what is not there.

    python benchmarks/intervals.py
    python benchmarks/intervals.py --rounds 400

Simulated, with the functions that `s2f evaluate` calls, for 17 to 400 people. Shares: rates of 0.02
to 0.98; one recording of each person, or five, or one to five, that are alike within a person not
at all, somewhat, or wholly (a beta law of each one's own rate). Matching: 1:2 to 1:10, among people
drawn anew each time, of faces that voices tell hardly to well, but for some not at all. Means:
normal, skewed, and of unequal numbers of recordings. Comparisons: `--compare` of two models that
are equally good, five metrics that have to do with each other, by their hits or by angles. Fails
where a bound is missed by more than the simulation's own error; ten minutes on one core.
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from s2f.metrics import estimate
from s2f.report import Report, Table, compare_reports
from s2f.retrieval import Placement, matching

PEOPLE = (17, 44, 100, 400)
RATES = (0.02, 0.03, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.97, 0.98)
ALIKE = (0.0, 0.3, 1.0)  # correlation of the recordings of one person
TOLD = ((0.0, 0.0), (0.3, 0.0), (0.8, 0.0), (2.0, 0.0), (6.0, 0.02), (6.0, 0.1))  # but for how many
SHAPES = ("normal", "skewed", "unequal")
COVERED, ALARMED = 0.93, 0.06

Vector = NDArray[np.float64]


def counts(people: int, each: str) -> NDArray[np.int64]:
    """How many recordings each person has."""
    return np.resize([1, 2, 3, 4, 5] if each == "1 to 5" else [int(each)], people)


def own_rates(people: int, rate: float, alike: float, rng: np.random.Generator) -> Vector:
    """Rates of people [n], of which their recordings are alike by that much."""
    if alike == 0:
        return np.full(people, rate)
    if alike == 1:
        return (rng.random(people) < rate).astype(float)
    scale = (1 - alike) / alike
    return rng.beta(rate * scale, (1 - rate) * scale, people)


def share_coverage(
    people: int, rate: float, alike: float, *, each: str = "1 to 5", rounds: int
) -> float:
    """How often the interval of a share holds its rate."""
    rng = np.random.default_rng([people, round(1000 * rate), round(10 * alike), rounds])
    who = np.repeat(np.arange(people), counts(people, each))
    held = 0
    for _ in range(rounds):
        hits = rng.random(len(who)) < own_rates(people, rate, alike, rng)[who]
        found = estimate(hits, who, share=True)
        held += found.low <= rate <= found.high
    return held / rounds


def placed(people: int, told: float, lost: float, rng: np.random.Generator) -> Placement:
    """Place voices among faces that they tell by so much, but for a share of them."""
    faces, noise = rng.standard_normal((2, people, 8))
    voices = np.where(rng.random((people, 1)) < lost, 0, told) * faces + noise
    cosines = voices @ (faces / np.linalg.norm(faces, axis=1, keepdims=True)).T
    return Placement((cosines > cosines.diagonal()[:, None]).sum(1), people - 1)


def matching_coverage(people: int, told: float, lost: float, ways: int, *, rounds: int) -> float:
    """How often the interval of right matches among some people holds that among 16,000."""
    rng = np.random.default_rng([people, round(10 * told), round(100 * lost), ways, rounds])
    true = np.mean([matching(placed(2000, told, lost, rng), ways).mean() for _ in range(8)])
    held = 0
    for _ in range(rounds):
        right = matching(placed(people, told, lost, rng), ways)
        found = estimate(right, np.arange(people), share=True)
        held += found.low <= true <= found.high
    return held / rounds


def mean_coverage(people: int, shape: str, *, rounds: int) -> float:
    """How often the interval of a mean, as of an angle, holds the true one."""
    rng = np.random.default_rng([people, SHAPES.index(shape), rounds])
    who = np.repeat(np.arange(people), counts(people, "1 to 5" if shape == "unequal" else "5"))
    draw: Callable[[int], Vector] = rng.standard_normal
    if shape == "skewed":
        draw = lambda n: rng.gamma(4.0, 1.0, n) / 2 - 2  # noqa: E731  # of skewness 1
    held = 0
    for _ in range(rounds):
        found = estimate(draw(people)[who] + rng.standard_normal(len(who)) / 2, who)
        held += found.low <= 0 <= found.high
    return held / rounds


def false_alarms(people: int, rate: float | None, *, rounds: int) -> float:
    """How often `--compare` says better or worse of any metric of two equally good models.

    Hits at five depths, of a rate at the first, of three recordings each; or, without one, angles.
    """
    rng = np.random.default_rng([people, round(1000 * (rate or 0)), rounds])
    names = [f"{k:03}" for k in range(people)]
    alarms = 0
    for _ in range(rounds):
        both = []
        level = rng.standard_normal(people)[:, None]  # how hard a person is, to either model
        for _ in "ab":
            rank = rng.random((people, 3))
            metrics = {}
            for k in range(1, 6):
                if rate is None:
                    values = 45 + 5 * (level + rank).mean(1) + rng.standard_normal(people)
                else:
                    values = 100 * (rank < min(1, k * rate)).mean(1)
                metrics[f"metric {k}"] = dict(zip(names, map(float, values), strict=True))
            both.append(Report("r", {}, (), metrics))
        table = compare_reports(*both, "a", "b").sections[0].parts[0]
        assert isinstance(table, Table)
        alarms += any(row[-1] != "no difference" for row in table.rows)
    return alarms / rounds


def figures(rounds: int) -> Iterator[tuple[str, int, float, float, int]]:
    """Give each cell: what, people, the bound that it has, its figure, and rounds.

    Means and matching take half of the rounds that shares do, comparisons a quarter.
    """
    half, quarter = rounds // 2, rounds // 4
    for people in PEOPLE:
        for each, alike in (("1", 0.0), *((e, a) for e in ("5", "1 to 5") for a in ALIKE)):
            for rate in RATES:
                found = share_coverage(people, rate, alike, each=each, rounds=rounds)
                said = f"share of {rate}, {each} recordings alike by {alike}"
                yield said, people, COVERED, found, rounds
        for (told, lost), ways in itertools.product(TOLD, (2, 5, 10)):
            found = matching_coverage(people, told, lost, ways, rounds=half)
            said = f"matching 1:{ways}, told by {told} but for {lost}"
            yield said, people, COVERED, found, half
        for shape in SHAPES:
            found = mean_coverage(people, shape, rounds=half)
            yield f"mean, {shape}", people, COVERED, found, half
        for rate in (0.02, 0.1, 0.2, None):
            found = false_alarms(people, rate, rounds=quarter)
            said = "comparison of " + ("angles" if rate is None else f"hits from {rate}")
            yield said, people, ALARMED, found, quarter


def main() -> None:
    """Print the worst cell of each kind and number of people, and the mean."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=2000, help="of a share's cell (2000)")
    kinds: dict[str, list[tuple[float, str]]] = {}
    missed = []
    for said, people, bound, found, rounds in figures(parser.parse_args().rounds):
        kind = f"{said.split(maxsplit=1)[0].strip(',')}, {people} people"
        kinds.setdefault(kind, []).append((found, said))
        slack = 2.6 * math.sqrt(bound * (1 - bound) / rounds)
        if found > bound + slack if bound == ALARMED else found < bound - slack:
            missed.append(f"{said}, {people} people: {found}")
    for kind, cells in kinds.items():
        worst = (max if kind.startswith("comparison") else min)(cells)
        mean = round(float(np.mean([found for found, _ in cells])), 4)
        print(json.dumps({"kind": kind, "mean": mean, "worst": worst[0], "at": worst[1]}))
    if missed:
        raise SystemExit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
