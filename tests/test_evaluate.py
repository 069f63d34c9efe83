"""A whole evaluation: of tiny networks on a made tree, and what it tells of them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_cases import write_people

from s2f import SpeechToFace, face_encoder
from s2f.checkpoint import Card, Checkpoint
from s2f.errors import DatasetError, UsageError
from s2f.evaluate import evaluate
from s2f.images import PREPROCESSING
from s2f.report import Matrix, Picture, Report


@pytest.fixture(scope="module")
def model(models: Path) -> SpeechToFace:
    return SpeechToFace.load(models / "demo", device="cpu")


def of_title(report: Report, title: str) -> Any:
    parts = [part for section in report.sections for part in (section, *section.parts)]
    (found,) = [part for part in parts if part.title == title]
    return found


def test_all_is_measured_and_a_classifier_adds_one(model: SpeechToFace, tmp_path: Path) -> None:
    tree, told = write_people(tmp_path), set[str]()
    report = evaluate(model, tree, progress=lambda done, total, what: told.add(what))
    assert any("listening" in what for what in told)
    assert report.facts.items() >= {"model": "demo", "people": "8", "recordings": "16"}.items()
    for values in report.samples.values():
        assert set(values) <= set("abcdefgh") and all(np.isfinite(list(values.values())))
    assert {"angle, degrees", "R@1, %", "R@10, %", "sharpness"} <= set(report.samples)
    assert all(isinstance(part, Picture) for part in of_title(report, "Faces").parts)
    assert any(isinstance(part, Matrix) for part in of_title(report, "Attributes").parts)
    recalls = of_title(report, "Recall among all 8 people")
    assert recalls.rows[-1][:2] == ("chance", "")
    assert recalls.rows[-1][2:14:3] == (1 / 8, 2 / 8, 5 / 8, 1.0)

    torch.manual_seed(0)
    without = model.model.checkpoints["face_encoder"]
    config = dataclasses.replace(without.network.config, identities=5)
    network = face_encoder.VGGFace(config, PREPROCESSING["seed"]).eval()
    classifier = Checkpoint(Path("a"), "face_encoder", network, None, "", Card("a"), "")
    again = evaluate(model, tree, classifier=classifier)
    scores = {row[0]: row[-1] for row in of_title(again, "Faces as pictures").rows}
    assert 1 <= scores["VGGFace score"] <= 5
    assert again.facts == report.facts and again.samples == report.samples
    titles = "Similarity Retrieval Matching Geometry Attributes Quality Faces".split()
    assert [part.title for part in report.sections] == titles
    pairs = zip(report.sections, again.sections, strict=True)
    assert [old.title for old, new in pairs if new != old] == ["Quality"]
    with pytest.raises(UsageError, match="has no logits"):
        evaluate(model, tree, classifier=without)
    judged = of_title(evaluate(model, tree, split="train"), "Attributes")  # fitted on them
    assert judged.parts == () and any("No judges" in text for text in judged.text)


def test_what_is_broken_or_silent_is_left_out_by_name(model: SpeechToFace, tmp_path: Path) -> None:
    tree = write_people(tmp_path)
    labels = tree / "labels.csv"
    labels.write_text(labels.read_text().replace("sex", "Gender_"))  # known all the same
    silent = tree / "test/b/audios/1.npy"
    np.save(silent, np.zeros(70_000, np.int16))
    (tree / "train/k/images/0.png").write_text("text")
    (tree / "test/c/images/1.png").write_text("text")
    report = evaluate(model, tree)
    assert (report.facts["recordings"], report.facts["photos"]) == ("15", "8")
    assert str(silent) in report.facts["left out"] and "1.png" in report.facts["left out"]
    assert set(report.samples["angle, degrees"]) == set("abcdefgh")
    assert any("0.png" in text for text in of_title(report, "Attributes").text)
    within = [
        r for r in of_title(report, "One voice, some faces").rows if r[0] == "of the same sex"
    ]
    assert [row[1] for row in within] == [2, 4]  # of four people each
    for path in tree.glob("test/*/audios/*.npy"):
        np.save(path, np.zeros(70_000, np.int16))
    with pytest.raises(DatasetError, match=r"no recording holds speech: .*0\.npy"):
        evaluate(model, tree)
