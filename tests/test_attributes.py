"""Judges of embeddings and pixels: planted classes, chance, and scikit-learn as the oracle."""

import dataclasses

import numpy as np
import pytest
from evaluation_cases import SEXES, D, N, drawn_face, given_away
from PIL import Image
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import balanced_accuracy_score

from s2f.attributes import EmbeddingProbe, PixelProbe, attributes_section
from s2f.errors import UsageError
from s2f.evaluation_data import WHOLE, Examples, Photos
from s2f.report import Matrix, Table

Labelled = tuple[np.ndarray, list[str]]


def planted(counts: dict[str, int], d: int, apart: float, seed: int) -> Labelled:
    """Embeddings [n d] of classes `apart` deviations apart in one direction each, and labels."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(np.random.default_rng(99).normal(size=(d, len(counts))))[0].T
    labels = [name for name, count in counts.items() for _ in range(count)]
    rows = np.repeat(centres * apart, list(counts.values()), axis=0)
    return rows + rng.normal(size=(len(labels), d)), labels


@pytest.mark.parametrize("each", [80, 8])  # more than the values of one, and fewer
def test_embeddings_are_judged_by_the_shrunk_discriminant_of_scikit_learn(each: int) -> None:
    """Theirs weighs classes' covariances by the priors: equal where the classes are."""
    rng = np.random.default_rng(1)
    x, labels = planted({"a": each, "b": each, "c": each}, 40, 2, 0)
    x = x @ rng.normal(size=(40, 40)) * rng.uniform(0.1, 9, 40) + 5
    y = np.array(labels)
    within = np.concatenate([x[y == k] - x[y == k].mean(0) for k in "abc"])
    shrinkage = float(ledoit_wolf_shrinkage(within, assume_centered=True))
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x, y)
    probe = EmbeddingProbe.fit(x, labels)
    found, expected = (  # what all classes have in common decides nothing
        scores - scores.mean(1, keepdims=True)
        for scores in (x @ probe.weight + probe.bias, oracle.decision_function(x))
    )
    assert 0.01 < shrinkage < 0.9
    np.testing.assert_allclose(found, expected, atol=1e-3 * expected.std())
    assert probe.classes == ("a", "b", "c") and probe.predict(x[:0]) == []
    for said, few in (
        ("1 class: a", "aaaa"),
        ("2 examples .* 'b' has one", "aaab"),
        ("0 class", ""),
    ):
        with pytest.raises(UsageError, match=said):
            EmbeddingProbe.fit(np.zeros((len(few), 3)), list(few))
    EmbeddingProbe.fit(np.ones((4, 3)), list("aabb"))  # all alike: no harm


@pytest.mark.parametrize(
    ("counts", "d", "apart", "dull", "least"),
    [
        ({"a": 100, "b": 100, "c": 100}, 32, 20, 0, 0.999),
        ({"common": 800, "rare": 30}, 400, 5, 0, 0.85),  # a rare class is not lost
        ({"a": 50, "b": 50}, 1000, 10, 0, 0.9),  # fewer examples than features
        # Each dull one would weigh as much as the others if all were brought to one deviation.
        ({"a": 30, "b": 30}, 20, 8, 1000, 0.95),
    ],
)
def test_new_embeddings_are_told(
    counts: dict[str, int], d: int, apart: float, dull: int, least: float
) -> None:
    def examples(seed: int) -> Labelled:
        x, labels = planted(counts, d, apart, seed)
        noise = 0.01 * np.random.default_rng(seed + 9).normal(size=(len(x), dull))
        return np.concatenate([x, noise, np.full((len(x), 9), 7)], 1), labels

    x, labels = examples(1)
    said = EmbeddingProbe.fit(*examples(0)).predict(x)
    assert balanced_accuracy_score(labels, said) > least


def photos(n: int, labels: tuple[str, ...], seed: int = 0) -> tuple[list[Image.Image], list[str]]:
    """Noise with a bright bar, across for "across" and along for "along", and the labels."""
    chosen = [labels[k % len(labels)] for k in range(n)]
    made = []
    for k, label in enumerate(chosen):
        rng = np.random.default_rng(seed + k)
        pixels, at = rng.integers(80, 120, (224, 224, 3)), rng.integers(100, 120)
        if label != "none":
            (pixels if label == "across" else pixels.transpose(1, 0, 2))[at : at + 30] += 60
        made.append(Image.fromarray(pixels.astype(np.uint8)))
    return made, chosen


def test_pixels_tell_what_is_planted_on_people_the_judge_has_not_met() -> None:
    made, labels = photos(48, ("across", "along"))
    probe = PixelProbe.fit(iter(made), labels, [k // 4 for k in range(48)])
    assert probe.accuracy == 1
    others, expected = photos(10, ("along", "across"), seed=1000)
    assert probe.predict(others) == expected
    assert ((probe.score(others) > 0) == (np.array(expected) == "along")).all()
    assert np.isfinite(probe.score([Image.new("RGB", (64, 64))])).all()  # of one colour
    assert probe.predict([]) == [] and probe.score([]).shape == (0,)
    made, labels = photos(24, ("across", "along", "none"))
    assert PixelProbe.fit(made, labels, range(24)).accuracy > 0.8
    made, labels = photos(24, ("across",))
    more, others = photos(2, ("along",))
    assert PixelProbe.fit(made + more, labels + others, range(26)).accuracy > 0.9
    few = [*made[:2], *more], ["across", "across", "along", "along"]
    PixelProbe.fit(*few, ["p", "q", "p", "q"])  # a class of two people is enough, and one is not
    with pytest.raises(UsageError, match="2 people at least, and 'across' has one"):
        PixelProbe.fit(*few, ["p", "p", "q", "r"])


def test_people_who_are_known_give_nothing_away() -> None:
    """Each person's photos are alike and their label is chance: 1/2 +- 4 deviations of 40."""
    made = [photo for photo in photos(40, ("none",))[0] for _ in range(3)]
    rng = np.random.default_rng(0)
    labels = [str(label) for label in rng.permutation(["a", "b"] * 20) for _ in range(3)]
    probe = PixelProbe.fit(made, labels, [k // 3 for k in range(120)])
    assert probe.accuracy == pytest.approx(0.5, abs=0.32)
    assert probe.predict(made) == labels  # learned by heart: why people are held out


def examples(labels: dict[str, str]) -> Examples:
    """Sixty other people, of whom the first value and the pixels tell the sex."""
    people = [f"t{k}" for k in range(60)]
    embeddings = np.random.default_rng(2).standard_normal((60, D)).astype(np.float32)
    embeddings[:, 0] = [5 if k % 2 else -5 for k in range(60)]
    fresh = {f"f{k}": "FM"[k % 2] for k in range(6)}
    theirs, shown, new = (
        Photos([drawn_face(first + k).image for k in range(len(names))], names)
        for first, names in ((100, people), (0, [*SEXES]), (200, [*fresh]))
    )
    known = {"sex": labels | fresh if labels else {}}
    return Examples(people, embeddings, {"sex": labels}, theirs, known, shown, new)


def test_attributes_that_faces_show_are_judged_right_and_without_labels_left_out() -> None:
    case = given_away()
    labels = {f"t{k}": "FM"[k % 2] for k in range(60)} | {"t7": "unknown"}
    section, samples = attributes_section(case, examples(labels))
    table, each, *matrices = section.parts
    # True face, from photo, from voice; balanced; and half of them are of the commonest.
    wanted = (1, 1, 1, 1, 0.5)
    own = {row[1]: row[2:] for row in table.rows if "published" not in row[1]}
    assert own == {"embeddings": wanted, "pixels": wanted}
    told = [row for row in each.rows if "published" not in row[2]]
    assert [row[:3] for row in told] == [
        ("sex", sex, judge) for judge in ("embeddings", "pixels") for sex in "FM"
    ]
    assert all(row[3:] == (1, 1, 1, N // 2) for row in told)
    assert any("on 100.0 % of 6 photos of new people" in text for text in section.text)
    assert "Left out of sex, as one person has it: unknown." in section.text
    assert len(matrices) == 6
    for part in matrices:
        assert isinstance(part, Matrix) and part.classes == ("F", "M")
        assert part.counts == ((N // 2, 0), (0, N // 2))
    assert samples["sex agrees, %"] == dict.fromkeys(SEXES, 100.0)

    for known, said, times in ((case.labels, "left out", 2), ({}, "--labels", 1)):
        section, samples = attributes_section(dataclasses.replace(case, labels=known), examples({}))
        assert (section.parts, samples) == ((), {})
        assert sum(said in text for text in section.text) == times


def test_agreement_is_given_by_true_label() -> None:
    """Ten of 20 men have a woman's voice, and one of 20 women is drawn as a man."""
    case = given_away()
    heard, drawn = case.heard[WHOLE][:], case.photos_again[:].copy()
    heard = np.where((np.arange(N) % 4 == 1)[:, None], heard - 10 * np.eye(1, D), heard)
    drawn[0, 0] = 5
    case = dataclasses.replace(case, heard={WHOLE: heard.astype(np.float32)}, photos_again=drawn)
    section, _ = attributes_section(case, examples({f"t{k}": "FM"[k % 2] for k in range(60)}))
    _, each, *_ = section.parts
    assert isinstance(each, Table)
    assert [row for row in each.rows if row[2] == "embeddings"] == [
        ("sex", "F", "embeddings", 19 / 20, 1.0, 1.0, 20),
        ("sex", "M", "embeddings", 1.0, 0.5, 10 / 21, 20),
    ]
