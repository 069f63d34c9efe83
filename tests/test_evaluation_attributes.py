"""Labels that faces show or do not show, as judges see them."""

import dataclasses

import numpy as np
from test_evaluation_faces import SEXES, D, N, case, drawn

from s2f.attributes import Learnt, attributes
from s2f.evaluation_data import Case
from s2f.report import Matrix, Table

__all__ = ["case"]  # the fixture


def learnt(labels: dict[str, str]) -> Learnt:
    people = [f"t{k}" for k in range(60)]
    embeddings = np.random.default_rng(2).standard_normal((60, D)).astype(np.float32)
    embeddings[:, 0] = [5 if k % 2 else -5 for k in range(60)]
    photos = [drawn(100 + k).image for k in range(60)]
    own = [drawn(k).image for k in range(N)], list(SEXES)
    fresh = [drawn(200 + k).image for k in range(6)], [f"f{k}" for k in range(6)]
    shown = {**labels, **{f"f{k}": "FM"[k % 2] for k in range(6)}} if labels else {}
    return Learnt(people, embeddings, {"sex": labels}, photos, people, {"sex": shown}, own, fresh)


def test_attributes_that_faces_show_are_judged_right(case: Case) -> None:
    labels = {f"t{k}": "FM"[k % 2] for k in range(60)}
    section, samples = attributes(case, learnt(labels))
    table, *matrices = section.parts
    assert isinstance(table, Table)
    # True face, from photo, from voice; balanced; and half of them are of the commonest.
    assert {row[1]: row[2:] for row in table.rows} == {
        "embeddings": (1, 1, 1, 1, 0.5),
        "pixels": (1, 1, 1, 1, 0.5),
    }
    assert any("on 100.0 % of 6 photos of new people" in text for text in section.text)
    assert len(matrices) == 6
    assert all(isinstance(part, Matrix) and part.classes == ("F", "M") for part in matrices)
    assert samples["sex agrees, %"] == dict.fromkeys(SEXES, 100.0)


def test_what_one_person_alone_has_is_left_out(case: Case) -> None:
    labels = {f"t{k}": "FM"[k % 2] for k in range(60)} | {"t7": "unknown"}
    section, _ = attributes(case, learnt(labels))
    assert "Left out of sex, as one person has it: unknown." in section.text
    assert len(section.parts) == 7


def test_judges_that_cannot_be_fitted_are_left_out_by_name(case: Case) -> None:
    section, samples = attributes(case, learnt({}))
    assert section.parts == () and samples == {}
    assert sum("left out" in text for text in section.text) == 2


def test_without_labels_the_section_says_so(case: Case) -> None:
    section, samples = attributes(dataclasses.replace(case, labels={}), learnt({}))
    assert (section.parts, samples) == ((), {})
    assert "--labels" in section.text[0]
