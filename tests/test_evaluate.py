"""A whole evaluation: of tiny networks on a made tree, and what it tells of them."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import some_landmarks
from evaluation_cases import write_hq_voxceleb, write_people
from PIL import Image
from published_figures import check_published

from s2f import SpeechToFace, face_detection, face_encoder
from s2f.checkpoint import Card, Checkpoint
from s2f.errors import DatasetError, UsageError
from s2f.evaluate import evaluate, evaluate_dataset
from s2f.face_detection import FoundFace
from s2f.images import PREPROCESSING, open_photo
from s2f.report import GLANCE, Matrix, Picture, Report, Table


@pytest.fixture(scope="module")
def model(models: Path) -> SpeechToFace:
    return SpeechToFace.load(models / "demo", device="cpu")


def of_title(report: Report, title: str) -> Any:
    parts = [part for section in report.sections for part in (section, *section.parts)]
    (found,) = [part for part in parts if part.title == title]
    return found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return write_people(tmp_path_factory.mktemp("people"))


def detect(pictures: Sequence[np.ndarray], /) -> list[list[FoundFace]]:
    """Some points in each picture, by its pixels."""
    box = np.zeros(4, np.float32)
    return [[FoundFace(box, some_landmarks(int(one.sum()) % 99))] for one in pictures]


@pytest.fixture(scope="module")
def whole(model: SpeechToFace, tree: Path) -> Report:
    """All that there is: a classifier, too, and a detector."""
    torch.manual_seed(0)
    encoder = model.model.checkpoints["face_encoder"].network
    config = dataclasses.replace(encoder.config, identities=5)
    network = face_encoder.VGGFace(config, PREPROCESSING["seed"]).eval()
    classifier = Checkpoint(Path("a"), "face_encoder", network, None, "", Card("a"), "")
    return evaluate(model, tree, classifier=classifier, detector=detect)


def test_published_figures_stand_beside_the_models_own(whole: Report) -> None:
    parts = [part for section in whole.sections for part in section.parts]
    check_published([part for part in parts if isinstance(part, Table)])


def test_all_is_measured_and_a_classifier_adds_one(
    model: SpeechToFace, tree: Path, whole: Report
) -> None:
    told, again = set[str](), whole
    progress = lambda done, total, what: told.add(what)  # noqa: E731
    report = evaluate(model, tree, detector=detect, progress=progress)
    assert any("listening" in what for what in told)
    assert report.facts.items() >= {"model": "demo", "people": "8", "recordings": "16"}.items()
    for values in report.samples.values():
        assert set(values) <= set("abcdefgh") and all(np.isfinite(list(values.values())))
    assert {"angle, degrees", "R@1, %", "R@10, %", "sharpness"} <= set(report.samples)
    assert all(isinstance(part, Picture) for part in of_title(report, "Faces").parts)
    assert any(isinstance(part, Matrix) for part in of_title(report, "Attributes").parts)
    recalls = of_title(report, "Ours: recall among all 8 people")
    assert recalls.rows[-1][:2] == ("chance", "")
    assert recalls.rows[-1][2:14:3] == (1 / 8, 2 / 8, 5 / 8, 1.0)

    scores = {row[0]: row[3] for row in of_title(again, "Faces as pictures").rows}
    assert 1 <= scores["VGGFace score"] <= 5
    assert again.facts == report.facts and again.samples == report.samples
    first, *sections, last = report.sections
    kinds = [type(part).__name__ for part in first.parts]
    assert (first.title, kinds) == (GLANCE, ["Table", "Curves", "Picture"])
    headline: Any = first.parts[0]
    chance = {row[0]: row[4] for row in headline.rows}
    assert len(chance) == 9 and "Ours: R@10 among 8, %" in chance
    assert chance["SF2F: R@10 among 8, %"] == 100
    assert chance["Wen: 1 of 2, same sex, %"] == chance["sex agrees, %"] == 50
    assert last.title == "Cards"
    protocols = ["Oh et al. 2019", "SF2F (Bai et al. 2022)", "Wen et al. 2019", "Ours"]
    others = "Geometry Attributes Quality Faces".split()
    assert [part.title for part in sections] == [*protocols, *others]
    pairs = zip(report.sections, again.sections, strict=True)
    assert [old.title for old, new in pairs if new != old] == [protocols[1], "Quality"]
    drawn = of_title(again, "SF2F: generated faces among all 8 people").rows[0]
    assert drawn[-3:-1] == (scores["VGGFace score"], scores["its deviation over five parts"])
    with pytest.raises(UsageError, match="has no logits"):
        evaluate(model, tree, classifier=model.model.checkpoints["face_encoder"])
    judged = of_title(evaluate(model, tree, split="train"), "Attributes")  # fitted on them
    assert judged.parts == () and any("No judges" in text for text in judged.text)


@pytest.mark.parametrize(("protocol", "every"), [("sf2f", True), ("wen", True), ("oh", False)])
def test_a_protocol_alone_has_the_photos_that_it_has_among_all(
    model: SpeechToFace, tree: Path, monkeypatch: pytest.MonkeyPatch, protocol: str, every: bool
) -> None:
    """SF2F's gallery and Wen et al.'s are means of all photos of a person, however asked for."""
    read = Mock(side_effect=DatasetError("enough"))
    monkeypatch.setattr("s2f.evaluate.read_people", read)
    with pytest.raises(DatasetError, match="enough"):
        evaluate(model, tree, protocols=(protocol,))
    assert read.call_args.kwargs["every"] == every


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
        r for r in of_title(report, "Ours: one voice, some faces").rows if r[0] == "of the same sex"
    ]
    assert [row[1] for row in within] == [2, 4]  # of four people each
    for path in tree.glob("test/*/audios/*.npy"):
        np.save(path, np.zeros(70_000, np.int16))
    with pytest.raises(DatasetError, match=r"no recording holds speech: .*0\.npy"):
        evaluate(model, tree)


def test_a_data_set_is_evaluated_as_it_is_downloaded(
    model: SpeechToFace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_hq_voxceleb(tmp_path / "VoxCeleb")
    large = root / "HQ-VoxCeleb/HQ-VoxCeleb/vox1/masked_faces/Ann_18/0.jpg"
    open_photo(large).resize((500, 500)).save(large)
    asked: list[Path] = []

    def cut(path: Path, *, detector: str, device: str) -> Image.Image:
        assert (detector, device) == ("dlib", "cpu")
        asked.append(path)
        return open_photo(path).resize((224, 224))

    monkeypatch.setattr(face_detection, "choose_detector", lambda name: name or "dlib")
    monkeypatch.setattr(face_detection, "cut_face", cut)
    report = evaluate_dataset(model, "hq-voxceleb", root)
    assert asked == [large]  # those of 224 x 224 are framed already
    facts = {name: report.facts[name] for name in ("people", "recordings", "left out", "data")}
    assert facts == {
        "people": "4",
        "recordings": "8",
        "left out": "nobody",
        "data": "VoxCeleb, test of hq-voxceleb",
    }
    assert report.facts["published"] == "378 people, 794 photos, 68,354 segments of speech"
    rows = of_title(report, "SF2F: generated faces among all 4 people").rows
    assert [row[-1] for row in rows if row[0] == "published: Vox2Face"] == [378]
    assert "of the same sex" in {
        row[0] for row in of_title(report, "Ours: one voice, some faces").rows
    }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_grows_neither_with_the_recordings_nor_with_the_people() -> None:
    """300 more recordings, and people, are 90 MB of faces and 24 of photos; 32 are read at a time.

    The first time is for what is imported; glibc's malloc has to give back what is freed.
    """
    code = "from evaluation_cases import peak_of_evaluation as peak\n"
    code += "print(*(peak(n, people, 4096, 32) for n, people in ((60, 20), (60, 20), (360, 320))))"
    run = [sys.executable, "-c", code]
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    here = Path(__file__).parent
    done = subprocess.run(run, cwd=here, env=env, capture_output=True, text=True, check=True)
    _, few, many = map(float, done.stdout.split())
    assert many - few < 15
