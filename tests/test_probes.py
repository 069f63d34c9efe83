"""Probes of embeddings and pixels: planted classes, chance, and scikit-learn as the oracle."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from s2f import attributes
from s2f.attributes import EmbeddingProbe, PixelProbe, confusion
from s2f.errors import UsageError


def planted(
    counts: dict[str, int], d: int, apart: float, seed: int = 0
) -> tuple[np.ndarray, list[str]]:
    """Embeddings [n d] of classes `apart` deviations apart in one direction each, and labels."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(np.random.default_rng(99).normal(size=(d, len(counts))))[0].T
    labels = [name for name, count in counts.items() for _ in range(count)]
    rows = np.repeat(centres * apart, list(counts.values()), axis=0)
    return rows + rng.normal(size=(len(labels), d)), labels


class TestConfusion:
    def test_rows_are_the_truth(self) -> None:
        found = confusion(["F", "F", "F", "M"], ["F", "F", "M", "M"], ["F", "M", "other"])
        assert found.classes == ("F", "M", "other")
        assert found.counts.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
        np.testing.assert_allclose(found.shares, [[2 / 3, 1 / 3, 0], [0, 1, 0], [0, 0, 0]])
        assert found.agreement == 3 / 4
        assert found.balanced == pytest.approx((2 / 3 + 1) / 2)

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1))
    def test_every_example_is_counted_once(self, pairs: list[tuple[str, str]]) -> None:
        true, predicted = zip(*pairs, strict=True)
        found = confusion(true, predicted)
        assert found.counts.sum() == len(pairs)
        assert found.agreement == np.mean([a == b for a, b in pairs])
        assert confusion(true, true).agreement == confusion(true, true).balanced == 1

    def test_always_the_same_answer_is_balanced_to_chance(self) -> None:
        found = confusion(["a"] * 90 + ["b"] * 10, ["a"] * 100)
        assert (found.agreement, found.balanced) == (0.9, 0.5)

    def test_a_label_that_is_no_class_is_named(self) -> None:
        with pytest.raises(UsageError, match="'c' is none of the classes a, b"):
            confusion(["a"], ["c"], ["a", "b"])

    def test_nothing_cannot_be_compared(self) -> None:
        with pytest.raises(UsageError, match="no labels"):
            confusion([], [])


class TestEmbeddingProbe:
    def test_what_is_planted_is_found(self) -> None:
        x, labels = planted({"a": 200, "b": 200, "c": 200}, 32, 20)
        probe = EmbeddingProbe.fit(x[::2], labels[::2])
        assert probe.classes == ("a", "b", "c")
        assert probe.predict(x[1::2]) == labels[1::2]

    def test_where_nothing_is_planted_it_guesses(self) -> None:
        """Chance is 1/2; 4 deviations of a share of 1000 are 0.063."""
        x, labels = planted({"a": 600, "b": 600}, 64, 0)
        probe = EmbeddingProbe.fit(x[::6], labels[::6])
        new = np.flatnonzero(np.arange(1200) % 6)
        found = confusion([labels[k] for k in new], probe.predict(x[new]))
        assert found.agreement == pytest.approx(0.5, abs=0.063)

    def test_it_is_the_shrunk_discriminant_of_scikit_learn(self) -> None:
        """Theirs weighs classes' covariances by the priors: equal where the classes are."""
        rng = np.random.default_rng(1)
        x, labels = planted({"a": 80, "b": 80, "c": 80}, 40, 2)
        x = x @ rng.normal(size=(40, 40)) * rng.uniform(0.1, 9, 40) + 5
        y = np.array(labels)
        within = np.concatenate([x[y == k] - x[y == k].mean(0) for k in "abc"])
        share = float(ledoit_wolf_shrinkage(within, assume_centered=True))
        oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=share).fit(x, y)
        probe = EmbeddingProbe.fit(x, labels)
        found, expected = x @ probe.weight + probe.bias, oracle.decision_function(x)
        # What all classes have in common decides nothing.
        found -= found.mean(1, keepdims=True)
        expected -= expected.mean(1, keepdims=True)
        assert 0.01 < share < 0.9
        np.testing.assert_allclose(found, expected, atol=1e-3 * expected.std())

    def test_a_rare_class_is_not_lost(self) -> None:
        counts = {"common": 800, "rare": 30}
        probe = EmbeddingProbe.fit(*planted(counts, 400, 5))
        x, labels = planted(counts, 400, 5, seed=1)
        assert confusion(labels, probe.predict(x)).shares.diagonal().min() > 0.85

    def test_it_needs_fewer_examples_than_features(self) -> None:
        counts = {"a": 50, "b": 50}
        probe = EmbeddingProbe.fit(*planted(counts, 1000, 10))
        x, labels = planted(counts, 1000, 10, seed=1)
        assert confusion(labels, probe.predict(x)).agreement > 0.9

    def test_scale_place_order_and_what_is_read_at_once_change_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x, labels = planted({"a": 70, "b": 40, "c": 40}, 10, 2)
        expected = EmbeddingProbe.fit(x, labels).predict(x)
        order = np.random.default_rng(0).permutation(150)
        monkeypatch.setattr(attributes, "_ROWS", 17)
        moved = 1e3 * x + 5e3
        probe = EmbeddingProbe.fit(moved[order], [labels[k] for k in order])
        assert probe.predict(moved) == expected

    def test_many_features_of_little_noise_do_not_drown_the_rest(self) -> None:
        """Each alone would weigh as much as the others if all were brought to one deviation."""
        rng = np.random.default_rng(0)
        x, labels = planted({"a": 60, "b": 60}, 20, 8)
        x = np.concatenate([x, 0.01 * rng.normal(size=(120, 1000)), np.full((120, 9), 7)], 1)
        probe = EmbeddingProbe.fit(x[::2], labels[::2])
        assert confusion(labels[1::2], probe.predict(x[1::2])).agreement > 0.95

    def test_single_precision_from_a_file_is_as_good(self, tmp_path: Path) -> None:
        x, labels = planted({"a": 70, "b": 40}, 10, 3)
        np.save(tmp_path / "x.npy", x.astype(np.float32))
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        probe = EmbeddingProbe.fit(mapped, labels)
        assert probe.predict(mapped) == EmbeddingProbe.fit(x, labels).predict(x)

    def test_examples_that_are_all_alike_do_no_harm(self) -> None:
        probe = EmbeddingProbe.fit(np.repeat(np.eye(2), 3, axis=0), list("aaabbb"))
        assert probe.predict(np.eye(2)) == ["a", "b"]
        EmbeddingProbe.fit(np.ones((4, 3)), list("aabb"))

    def test_nothing_to_predict(self) -> None:
        assert EmbeddingProbe.fit(*planted({"a": 9, "b": 9}, 3, 3)).predict(np.empty((0, 3))) == []

    @pytest.mark.parametrize(
        ("labels", "said"),
        [("aaaa", "1 class: a"), ("aaab", "2 examples at least, and 'b' has one"), ("", "0 class")],
    )
    def test_labels_that_tell_nothing_apart_are_refused(self, labels: str, said: str) -> None:
        with pytest.raises(UsageError, match=said):
            EmbeddingProbe.fit(np.zeros((len(labels), 3)), list(labels))


def photo(label: str, seed: int) -> Image.Image:
    """Noise with a bright bar, across for "across" and along for "along"."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(80, 120, (224, 224, 3))
    at = rng.integers(100, 120)
    if label == "across":
        pixels[at : at + 30] += 60
    elif label == "along":
        pixels[:, at : at + 30] += 60
    return Image.fromarray(pixels.astype(np.uint8))


def photos(n: int, labels: tuple[str, ...], seed: int = 0) -> tuple[list[Image.Image], list[str]]:
    chosen = [labels[k % len(labels)] for k in range(n)]
    return [photo(label, seed + k) for k, label in enumerate(chosen)], chosen


class TestPixelProbe:
    def test_what_is_planted_is_found_on_people_it_has_not_met(self) -> None:
        made, labels = photos(48, ("across", "along"))
        probe = PixelProbe.fit(iter(made), labels, [k // 4 for k in range(48)])
        assert probe.accuracy == probe.balanced == 1
        assert probe.held_out.counts.tolist() == [[24, 0], [0, 24]]
        others, expected = photos(10, ("along", "across"), seed=1000)
        assert probe.predict(others) == expected
        assert ((probe.score(others) > 0) == (np.array(expected) == "along")).all()

    def test_people_who_are_known_give_nothing_away(self) -> None:
        """Each person's photos are alike and their label is chance: 1/2 +- 4 deviations of 40."""
        rng = np.random.default_rng(0)
        made = [photo("none", seed) for seed in range(40) for _ in range(3)]
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

    def test_a_class_of_two_people_is_enough(self) -> None:
        made, labels = photos(24, ("across",))
        more, others = photos(2, ("along",))
        probe = PixelProbe.fit(made + more, labels + others, range(26))
        assert probe.held_out.counts.sum() == 26
        few = PixelProbe.fit(
            [*made[:2], *more], ["across", "across", "along", "along"], ["p", "q", "p", "q"]
        )
        assert few.held_out.counts.sum() == 4

    def test_a_picture_of_one_colour_is_judged_too(self) -> None:
        made, labels = photos(16, ("across", "along"))
        probe = PixelProbe.fit(made, labels, range(16))
        assert np.isfinite(probe.score([Image.new("RGB", (64, 64))])).all()
        assert probe.predict([]) == [] and probe.score([]).shape == (0,)

    def test_a_class_that_is_one_person_is_refused(self) -> None:
        made, labels = photos(8, ("across", "along"))
        with pytest.raises(UsageError, match="2 people at least, and 'across' has one"):
            PixelProbe.fit(made, labels, ["p", "q"] * 4)
