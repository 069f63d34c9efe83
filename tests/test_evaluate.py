"""A whole evaluation: of tiny networks on a made tree, and what it tells of them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise
from PIL import Image

from s2f import SpeechToFace, face_encoder
from s2f.checkpoint import Card, Checkpoint
from s2f.errors import DatasetError, UsageError
from s2f.evaluate import evaluate
from s2f.evaluation_data import WHOLE, build_case, maker_of, read_people
from s2f.images import PREPROCESSING
from s2f.report import Matrix, Picture, Report, Table
from s2f.retrieval import matched, retrieval


def write_tree(tree: Path) -> Path:
    """Eight people in two splits: men have the lower half of the tones, women the upper."""
    rows = ["name,sex"]
    for split, names in (("test", "abcdefgh"), ("train", "ijklmnop")):
        for k, name in enumerate(names):
            folder = tree / f"{split}/{name}"
            (folder / "audios").mkdir(parents=True)
            for n in range(2):
                np.save(folder / f"audios/{n}.npy", noise(7, seed=k + 10 * n))
            (folder / "images").mkdir()
            patches = np.random.default_rng(len(rows)).integers(0, 256, (7, 7, 3), dtype=np.uint8)
            photo = Image.fromarray(patches).resize((224, 224), Image.Resampling.BICUBIC)
            photo.save(folder / "images/0.png")
            rows.append(f"{name},{'FM'[k % 2]}")
    (tree / "labels.csv").write_text("\n".join(rows))
    return tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def model(bundled: Path) -> SpeechToFace:
    return SpeechToFace.load(device="cpu")


def parts(report: Report) -> dict[str, object]:
    return {part.title: part for section in report.sections for part in section.parts}


def test_everything_is_measured(model: SpeechToFace, tree: Path) -> None:
    told: set[str] = set()
    report = evaluate(model, tree, progress=lambda done, total, what: told.add(what))
    titles = [section.title for section in report.sections]
    assert titles == [
        "Similarity", "Retrieval", "Matching", "Geometry", "Attributes", "Quality", "Faces",
    ]  # fmt: skip
    assert report.facts["model"] == "demo" and report.facts["people"] == "8"
    assert report.facts["recordings"] == "16"
    for values in report.samples.values():
        assert set(values) <= set("abcdefgh") and all(np.isfinite(list(values.values())))
    assert {"angle, degrees", "R@1, %", "R@10, %", "sharpness"} <= set(report.samples)
    found = parts(report)
    assert sum(isinstance(part, Picture) for part in found.values()) == 3
    recalls = found["Recall among all 8 people"]
    assert isinstance(recalls, Table)
    assert recalls.rows[-1][:2] == ("chance", "")
    assert recalls.rows[-1][2:14:3] == (1 / 8, 2 / 8, 5 / 8, 1.0)
    assert any("listening" in what for what in told)


def test_the_same_evaluation_gives_the_same_report(model: SpeechToFace, tree: Path) -> None:
    assert evaluate(model, tree) == evaluate(model, tree)


def test_a_planted_model_is_perfect(model: SpeechToFace, tree: Path) -> None:
    maker = maker_of(model)
    people = read_people(tree, "test", maker, most=5)
    case = build_case(model, people, {}, maker)
    planted = people.means()[people.speakers]
    case = dataclasses.replace(case, heard={WHOLE: planted}, voices_again=planted)
    (recalls, *_), (right,) = retrieval(case)[0].parts, matched(case)[0].parts
    assert isinstance(recalls, Table) and isinstance(right, Table)
    assert recalls.rows[0][:3] == (f"voice, {WHOLE}", "cosine", 1)
    assert {row[2] for row in right.rows} == {1}


def test_labels_that_nobody_has_are_left_out_by_name(model: SpeechToFace, tree: Path) -> None:
    (section,) = [s for s in evaluate(model, tree).sections if s.title == "Attributes"]
    assert any(isinstance(part, Matrix) for part in section.parts)
    with pytest.raises(UsageError, match="no label 'height'"):
        evaluate(model, tree, columns=["height"])


def test_a_classifier_gives_the_vgg_face_score(model: SpeechToFace, tree: Path) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(
        model.model.checkpoints["face_encoder"].network.config, identities=5
    )
    network = face_encoder.VGGFace(config, PREPROCESSING["seed"]).eval()
    classifier = Checkpoint(Path("a"), "face_encoder", network, None, "", Card("a"), "")
    table = parts(evaluate(model, tree, classifier=classifier))["Faces as pictures"]
    assert isinstance(table, Table)
    scores = {row[0]: row[-1] for row in table.rows}
    assert 1 <= scores["VGGFace score"] <= 5
    without = model.model.checkpoints["face_encoder"]
    with pytest.raises(UsageError, match="has no logits"):
        evaluate(model, tree, classifier=without)


def test_a_recording_without_speech_is_left_out_by_name(
    model: SpeechToFace, tmp_path: Path
) -> None:
    tree = write_tree(tmp_path)
    silent = tree / "test/b/audios/1.npy"
    np.save(silent, np.zeros(70_000, np.int16))
    report = evaluate(model, tree)
    assert report.facts["recordings"] == "15"
    assert str(silent) in report.facts["left out"]
    assert set(report.samples["angle, degrees"]) == set("abcdefgh")


def test_a_broken_photo_costs_itself(model: SpeechToFace, tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    (tree / "train/k/images/0.png").write_text("text")
    (tree / "test/c/images/1.png").write_text("text")
    report = evaluate(model, tree)
    assert report.facts["photos"] == "8" and "1.png" in report.facts["left out"]
    (section,) = [s for s in report.sections if s.title == "Attributes"]
    assert any("0.png" in text for text in section.text)


def test_nobody_judges_whom_it_was_fitted_on(model: SpeechToFace, tree: Path) -> None:
    report = evaluate(model, tree, split="train")
    (section,) = [s for s in report.sections if s.title == "Attributes"]
    assert section.parts == () and any("No judges" in text for text in section.text)


def test_sex_is_known_however_its_column_is_written(model: SpeechToFace, tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    labels = tree / "labels.csv"
    labels.write_text(labels.read_text().replace("sex", "Gender "))
    table = parts(evaluate(model, tree))["One voice, some faces"]
    assert isinstance(table, Table)
    within = [row for row in table.rows if row[0] == "of the same sex"]
    assert [row[1] for row in within] == [2, 4]  # of four people each


def test_a_tree_that_is_none_is_refused(model: SpeechToFace, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no folder test"):
        evaluate(model, tmp_path)
