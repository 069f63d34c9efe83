"""How well voices lead to faces: similarity, retrieval and matching, as sections of a report.

Source: Oh et al. 2019, Tables 2 and 3; Wen et al. 2019 for matching.
"""

import numpy as np
from numpy.typing import NDArray

from s2f.distances import Metric
from s2f.estimates import estimate
from s2f.estimates import similarity as compare_embeddings
from s2f.evaluation_case import WHOLE, Case, Samples
from s2f.report import Curves, Section, Table
from s2f.retrieval import Placed, chance, matching, place, recall, recall_of_candidates

KS = (1, 2, 5, 10)
METRICS: tuple[Metric, ...] = ("cosine", "l1", "l2")
CANDIDATES = 100
WAYS = (2, 5, 10)
ANGLE = "angle, degrees"
AGAIN = "face drawn from the voice, embedded"


def similarity(case: Case) -> tuple[Section, Samples]:
    """Angle and distances between true embeddings and those of voices."""
    people = case.people
    true = people.means()[people.speakers]
    strangers = people.means()[(people.speakers + 1) % len(people.names)]
    rows: list[tuple[str | float | int | None, ...]] = []
    measured = {}
    queries = [(name, true, heard) for name, heard in case.heard.items()]
    queries += [
        (AGAIN, true, case.voices_again),
        ("another person's voice", strangers, case.heard[WHOLE]),
    ]
    for name, wanted, found in queries:
        values = compare_embeddings(wanted, found)
        cells: list[float] = []
        for measure in ("angle", "l2", "l1"):
            got = estimate(values[measure], people.speakers)
            cells += [got.value, got.deviation]
            if measure == "angle":
                cells += [got.low, got.high]
        rows.append((name, *cells, len(found)))
        measured[name] = values["angle"]
    heads: tuple[str, ...] = ("heard", "angle, degrees", "deviation", "low", "high")
    heads += ("L2", "deviation", "L1", "deviation", "N")
    table = Table(
        "Embeddings of voices and of faces",
        heads,
        tuple(rows),
        "Angle between a voice's embedding and the mean embedding of the person's photos; low and "
        "high bound 95 % by bootstrap over people. L2 and L1 are of vectors of length 1.",
    )
    text = (
        "How near the embedding of a voice is to that of the speaker's face. 3 s and 6 s are the "
        "first seconds of each recording, looped to the length that the model hears.",
    )
    return Section("Similarity", text, (table,)), {ANGLE: case.by_person(measured[WHOLE])}


def retrieval(case: Case) -> tuple[Section, Samples]:
    """Recall of the speaker's face among the faces of all people."""
    people = case.people
    queries = {**{f"voice, {name}": rows for name, rows in case.heard.items()}}
    queries[AGAIN] = case.voices_again
    full: list[tuple[str | float | int | None, ...]] = []
    some: list[tuple[str | float | int | None, ...]] = []
    placed: Placed | None = None
    lines: dict[str, list[tuple[float, float]]] = {}
    samples: dict[str, dict[str, float]] = {}
    n = len(people.names)
    depth = range(1, min(n, CANDIDATES) + 1)
    for query, rows in queries.items():
        for metric in METRICS:
            placed = place(rows, people.speakers, people.embeddings, people.owners, metric=metric)
            full.append((query, metric, *_recalls(case, [recall(placed, k) for k in KS]), n))
            among = [recall_of_candidates(placed, k, CANDIDATES)[0] for k in KS]
            some.append((query, metric, *_recalls(case, among), min(n, CANDIDATES)))
            if metric == "cosine" and query in (f"voice, {WHOLE}", AGAIN):
                lines[query] = [(k, float(recall(placed, k).mean())) for k in depth]
            if metric == "cosine" and query == f"voice, {WHOLE}":
                for k in (1, 10):
                    samples[f"R@{k}, %"] = case.by_person(100 * recall(placed, k))
    assert placed is not None
    for rows_of, by_chance, size in (
        (full, [chance(placed, k) for k in KS], n),
        (some, [chance(placed, k, CANDIDATES) for k in KS], min(n, CANDIDATES)),
    ):
        cells = [cell for value in by_chance for cell in (value, None, None)]
        rows_of.append(("chance", "", *cells, None, size))
    lines["chance"] = [(k, chance(placed, k)) for k in depth]
    heads: tuple[str, ...] = ("query", "metric")
    heads += tuple(head for k in KS for head in (f"R@{k} %", "low %", "high %"))
    heads += ("queries", "N")
    parts: list[Table | Curves] = [Table(f"Recall among all {n} people", heads, tuple(full))]
    if n > CANDIDATES:
        note = f"The exact mean over all galleries of {CANDIDATES} people that hold the speaker."
        title = f"Recall among {CANDIDATES} candidates, averaged"
        parts.append(Table(title, heads, tuple(some), note))
    parts.append(Curves("Recall by depth, cosine", "k", "R@k %", lines))
    text = (
        "The speaker's own face is looked for among the faces of all people, by the distance "
        "between embeddings. A person is as near as the nearest of their photos. N is the size of "
        "the gallery in people: chance is k of N. Low and high bound 95 % by bootstrap over "
        "people."
        + (
            "" if n > CANDIDATES else f" With {CANDIDATES} people or fewer, all are the candidates."
        ),
    )
    return Section("Retrieval", text, tuple(parts)), samples


def _recalls(case: Case, hits: list[NDArray[np.float64]]) -> tuple[float | int, ...]:
    """Make the cells of the recalls of `KS`: each mean and its interval, and the queries."""
    found = [estimate(values, case.people.speakers) for values in hits]
    cells = [cell for item in found for cell in (item.value, item.low, item.high)]
    return (*cells, len(hits[0]))


def matched(case: Case) -> tuple[Section, Samples]:
    """Share of voices whose face is chosen among a few."""
    people, sexes = case.people, case.sexes
    placed = place(
        case.heard[WHOLE],
        people.speakers,
        people.embeddings,
        people.owners,
        metric="cosine",
        groups=sexes,
    )
    rows: list[tuple[str | float | int | None, ...]] = []
    samples: dict[str, dict[str, float]] = {}
    for within in (False, True) if sexes is not None else (False,):
        others = "of the same sex" if within else "anyone"
        most = len(people.names)
        if within and sexes is not None:  # as many as there are of the rarer sex
            most = int(np.bincount(sexes[sexes >= 0]).min())
        for ways in dict.fromkeys((*WAYS, most)):
            if ways < 2:
                continue
            right = matching(placed, ways, within=within)
            there = ~np.isnan(right)
            if not there.any():
                continue
            got = estimate(right[there], people.speakers[there])
            row = (others, ways, got.value, got.low, got.high, 1 / ways, int(there.sum()))
            rows.append(row)
            if ways == WAYS[0]:
                samples[f"1:{WAYS[0]} matching, {others}, %"] = case.by_person(100 * right)
    heads = ("other faces", "faces", "right %", "low %", "high %", "chance %", "voices")
    table = Table("One voice, some faces", heads, tuple(rows))
    text = (
        "How often the speaker's face is nearer to the voice than all of some other faces, drawn "
        "at random: the exact mean over all draws. Within one sex, sex alone is of no help."
        + ("" if sexes is not None else " No label says who is of which sex."),
    )
    return Section("Matching", text, (table,)), samples
