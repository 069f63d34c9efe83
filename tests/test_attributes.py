"""Judges of embeddings and pixels: planted classes, chance, and scikit-learn as the oracle."""

import dataclasses

import numpy as np
import pytest
from evaluation_cases import SEXES, D, N, case_of, drawn_face
from PIL import Image
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import balanced_accuracy_score

from s2f.attributes import EmbeddingProbe, PixelProbe, attributes_section
from s2f.errors import UsageError
from s2f.evaluation_data import Case, Examples
from s2f.report import Matrix, Table


def planted(
    counts: dict[str, int], d: int, apart: float, seed: int = 0
) -> tuple[np.ndarray, list[str]]:
    """Embeddings [n d] of classes `apart` deviations apart in one direction each, and labels."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(np.random.default_rng(99).normal(size=(d, len(counts))))[0].T
    labels = [name for name, count in counts.items() for _ in range(count)]
    rows = np.repeat(centres * apart, list(counts.values()), axis=0)
    return rows + rng.normal(size=(len(labels), d)), labels


def share(true: list[str], said: list[str]) -> float:
    return float(np.mean(np.array(true) == np.array(said)))


class TestEmbeddingProbe:
    def test_what_is_planted_is_found(self) -> None:
        x, labels = planted({"a": 200, "b": 200, "c": 200}, 32, 20)
        probe = EmbeddingProbe.fit(x[::2], labels[::2])
        assert probe.classes == ("a", "b", "c")
        assert probe.predict(x[1::2]) == labels[1::2] and probe.predict(x[:0]) == []

    def test_it_is_the_shrunk_discriminant_of_scikit_learn(self) -> None:
        """Theirs weighs classes' covariances by the priors: equal where the classes are."""
        rng = np.random.default_rng(1)
        x, labels = planted({"a": 80, "b": 80, "c": 80}, 40, 2)
        x = x @ rng.normal(size=(40, 40)) * rng.uniform(0.1, 9, 40) + 5
        y = np.array(labels)
        within = np.concatenate([x[y == k] - x[y == k].mean(0) for k in "abc"])
        shrinkage = float(ledoit_wolf_shrinkage(within, assume_centered=True))
        oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x, y)
        probe = EmbeddingProbe.fit(x, labels)
        found, expected = x @ probe.weight + probe.bias, oracle.decision_function(x)
        # What all classes have in common decides nothing.
        found -= found.mean(1, keepdims=True)
        expected -= expected.mean(1, keepdims=True)
        assert 0.01 < shrinkage < 0.9
        np.testing.assert_allclose(found, expected, atol=1e-3 * expected.std())

    @pytest.mark.parametrize(
        ("counts", "d", "apart", "least"),
        [
            ({"common": 800, "rare": 30}, 400, 5, 0.85),  # a rare class is not lost
            ({"a": 50, "b": 50}, 1000, 10, 0.9),  # fewer examples than features
        ],
    )
    def test_new_examples_are_told(
        self, counts: dict[str, int], d: int, apart: float, least: float
    ) -> None:
        probe = EmbeddingProbe.fit(*planted(counts, d, apart))
        x, labels = planted(counts, d, apart, seed=1)
        assert balanced_accuracy_score(labels, probe.predict(x)) > least

    def test_many_features_of_little_noise_do_not_drown_the_rest(self) -> None:
        """Each alone would weigh as much as the others if all were brought to one deviation."""
        rng = np.random.default_rng(0)
        x, labels = planted({"a": 60, "b": 60}, 20, 8)
        x = np.concatenate([x, 0.01 * rng.normal(size=(120, 1000)), np.full((120, 9), 7)], 1)
        probe = EmbeddingProbe.fit(x[::2], labels[::2])
        assert share(labels[1::2], probe.predict(x[1::2])) > 0.95

    def test_examples_that_are_all_alike_do_no_harm(self) -> None:
        probe = EmbeddingProbe.fit(np.repeat(np.eye(2), 3, axis=0), list("aaabbb"))
        assert probe.predict(np.eye(2)) == ["a", "b"]
        EmbeddingProbe.fit(np.ones((4, 3)), list("aabb"))

    @pytest.mark.parametrize(
        ("labels", "said"),
        [("aaaa", "1 class: a"), ("aaab", "2 examples at least, and 'b' has one"), ("", "0 class")],
    )
    def test_labels_that_tell_nothing_apart_are_refused(self, labels: str, said: str) -> None:
        with pytest.raises(UsageError, match=said):
            EmbeddingProbe.fit(np.zeros((len(labels), 3)), list(labels))


def photos(n: int, labels: tuple[str, ...], seed: int = 0) -> tuple[list[Image.Image], list[str]]:
    """Noise with a bright bar, across for "across" and along for "along", and the labels."""
    chosen = [labels[k % len(labels)] for k in range(n)]
    made = []
    for k, label in enumerate(chosen):
        rng = np.random.default_rng(seed + k)
        pixels = rng.integers(80, 120, (224, 224, 3))
        at = rng.integers(100, 120)
        if label == "across":
            pixels[at : at + 30] += 60
        elif label == "along":
            pixels[:, at : at + 30] += 60
        made.append(Image.fromarray(pixels.astype(np.uint8)))
    return made, chosen


class TestPixelProbe:
    def test_what_is_planted_is_found_on_people_it_has_not_met(self) -> None:
        made, labels = photos(48, ("across", "along"))
        probe = PixelProbe.fit(iter(made), labels, [k // 4 for k in range(48)])
        assert probe.accuracy == probe.balanced == 1
        others, expected = photos(10, ("along", "across"), seed=1000)
        assert probe.predict(others) == expected
        assert ((probe.score(others) > 0) == (np.array(expected) == "along")).all()
        assert np.isfinite(probe.score([Image.new("RGB", (64, 64))])).all()  # of one colour
        assert probe.predict([]) == [] and probe.score([]).shape == (0,)

    def test_people_who_are_known_give_nothing_away(self) -> None:
        """Each person's photos are alike and their label is chance: 1/2 +- 4 deviations of 40."""
        made = [photo for photo in photos(40, ("none",))[0] for _ in range(3)]
        rng = np.random.default_rng(0)
        labels = [str(label) for label in rng.permutation(["a", "b"] * 20) for _ in range(3)]
        probe = PixelProbe.fit(made, labels, [k // 3 for k in range(120)])
        assert probe.accuracy == pytest.approx(0.5, abs=0.32)
        assert probe.predict(made) == labels  # learned by heart: why people are held out

    def test_three_classes_have_no_score(self) -> None:
        made, labels = photos(24, ("across", "along", "none"))
        probe = PixelProbe.fit(made, labels, range(24))
        assert probe.accuracy > 0.8
        with pytest.raises(UsageError, match="across, along, none"):
            probe.score(made)

    def test_a_class_of_two_people_is_enough_and_one_is_not(self) -> None:
        made, labels = photos(24, ("across",))
        more, others = photos(2, ("along",))
        assert PixelProbe.fit(made + more, labels + others, range(26)).accuracy > 0.9
        few = [*made[:2], *more], ["across", "across", "along", "along"]
        PixelProbe.fit(*few, ["p", "q", "p", "q"])
        with pytest.raises(UsageError, match="2 people at least, and 'across' has one"):
            PixelProbe.fit(*few, ["p", "p", "q", "r"])


@pytest.fixture(scope="module")
def case() -> Case:
    """Voices that give away all but a little of the face; the first value tells the sex."""
    embeddings = np.random.default_rng(1).standard_normal((N, D)).astype(np.float32)
    embeddings[:, 0] = [5 if k % 2 else -5 for k in range(N)]
    faces, again = [drawn_face(k) for k in range(N)], [drawn_face(k, 0.5) for k in range(N)]
    planted = case_of(embeddings, embeddings)
    return dataclasses.replace(planted, from_voices=again, from_photos=faces)


def examples(labels: dict[str, str]) -> Examples:
    """Sixty other people, of whom the first value and the pixels tell the sex."""
    people = [f"t{k}" for k in range(60)]
    embeddings = np.random.default_rng(2).standard_normal((60, D)).astype(np.float32)
    embeddings[:, 0] = [5 if k % 2 else -5 for k in range(60)]
    fresh = {f"f{k}": "FM"[k % 2] for k in range(6)}
    return Examples(
        people,
        embeddings,
        {"sex": labels},
        [(drawn_face(100 + k).image, who) for k, who in enumerate(people)],
        {"sex": labels | fresh if labels else {}},
        [(drawn_face(k).image, who) for k, who in enumerate(SEXES)],
        [(drawn_face(200 + k).image, who) for k, who in enumerate(fresh)],
    )


LABELS = {f"t{k}": "FM"[k % 2] for k in range(60)}


def test_attributes_that_faces_show_are_judged_right(case: Case) -> None:
    section, samples = attributes_section(case, examples(LABELS | {"t7": "unknown"}))
    table, *matrices = section.parts
    assert isinstance(table, Table)
    # True face, from photo, from voice; balanced; and half of them are of the commonest.
    assert {row[1]: row[2:] for row in table.rows} == {
        "embeddings": (1, 1, 1, 1, 0.5),
        "pixels": (1, 1, 1, 1, 0.5),
    }
    assert any("on 100.0 % of 6 photos of new people" in text for text in section.text)
    assert "Left out of sex, as one person has it: unknown." in section.text
    assert len(matrices) == 6
    for part in matrices:
        assert isinstance(part, Matrix) and part.classes == ("F", "M")
        assert part.counts == ((N // 2, 0), (0, N // 2))
    assert samples["sex agrees, %"] == dict.fromkeys(SEXES, 100.0)


def test_judges_that_cannot_be_fitted_are_left_out_by_name(case: Case) -> None:
    section, samples = attributes_section(case, examples({}))
    assert section.parts == () and samples == {}
    assert sum("left out" in text for text in section.text) == 2
    section, samples = attributes_section(dataclasses.replace(case, labels={}), examples({}))
    assert (section.parts, samples) == ((), {})
    assert "--labels" in section.text[0]
