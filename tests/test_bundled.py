"""The bundled model: what it is, and what it does on people and speakers it has never met."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from bundled import CONDITIONS, distance, measure
from PIL import Image
from recordings import write_av

from s2f import SpeechToFace, checkpoint

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared/data"
SPEECH = ROOT / "examples/speech.wav"
BUDGET = 24 * 2**20  # bytes in the package


@pytest.fixture(scope="module")
def model() -> SpeechToFace:
    return SpeechToFace.load(device="cpu")


def test_it_fits_its_budget() -> None:
    sizes = [path.stat().st_size for path in checkpoint.MODELS.rglob("*.safetensors")]
    assert len(sizes) == 3 and sum(sizes) <= BUDGET


def test_its_cards_say_what_it_is_and_name_its_sources(model: SpeechToFace) -> None:
    for kind, loaded in model.model.checkpoints.items():
        card = loaded.card
        assert "Face Research Lab London Set" in card.data + card.licence, kind
        assert "CC BY 4.0" in card.licence and card.limits and card.metrics, kind
    voice = model.model.checkpoints["voice_encoder"].card
    assert "belong to different people" in voice.description
    assert "LibriSpeech" in voice.data
    assert "real photographs only" in voice.metrics["judge"]


def test_the_example_gives_a_face_and_the_same_one_again(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        command = [sys.executable, "-m", "s2f", "generate", SPEECH, "-o", tmp_path / f"{name}.png"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(tmp_path / f"{name}.png")
        made.append((tmp_path / f"{name}.png").read_bytes())
    assert made[0] == made[1]
    with Image.open(tmp_path / "a.png") as face:
        assert face.size == (224, 224)
        assert np.asarray(face).std() > 30  # not one colour


def test_it_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert SpeechToFace.load(device="cpu").generate(SPEECH).image.size == (224, 224)


def test_the_landmarks_lie_on_the_face(model: SpeechToFace) -> None:
    points = model.generate(SPEECH).landmarks
    left_eye, right_eye, mouth, jaw = (
        points[of].mean(0) for of in (range(36, 42), range(42, 48), range(48, 68), range(6, 11))
    )
    # The framing of the sources: eyes level, 27 % of the width apart, at 46 % of the height.
    np.testing.assert_allclose(right_eye - left_eye, (0.27 * 224, 0), atol=6)
    np.testing.assert_allclose((left_eye + right_eye) / 2, (112, 0.46 * 224), atol=6)
    assert left_eye[1] < mouth[1] < jaw[1] < 224


@pytest.fixture(scope="module")
def figures(model: SpeechToFace) -> dict[str, float]:
    pytest.importorskip("dlib", reason="the judge of identity is dlib's face descriptor")
    return measure(model, DATA)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real faces and voices")
class TestOnPeopleKeptOut:
    def test_the_judge_knows_real_people(self, figures: dict[str, float]) -> None:
        assert figures["judge accuracy on real people"] > 0.9

    def test_the_sex_shown_is_the_speakers(self, figures: dict[str, float]) -> None:
        assert figures["sex agreement"] >= 0.95

    @pytest.mark.parametrize("condition", CONDITIONS)
    def test_it_stays_so_in_worse_recordings(
        self, figures: dict[str, float], condition: str
    ) -> None:
        assert figures[f"sex agreement {condition}"] >= 0.93

    @pytest.mark.parametrize("sex", ["women", "men"])
    def test_higher_voices_give_more_feminine_faces(
        self, figures: dict[str, float], sex: str
    ) -> None:
        assert figures[f"pitch and femininity, {sex} (rank correlation)"] > 0.5

    def test_different_voices_give_different_faces(self, figures: dict[str, float]) -> None:
        assert figures["distance of voices' faces / of morphs"] >= 0.5

    def test_two_photos_of_one_person_land_close(self, figures: dict[str, float]) -> None:
        same = figures["cosine of neutral and smiling, same person"]
        assert same > figures["cosine of different people"] + 0.5
        assert figures["smiling photo finds its person first"] >= 0.9

    @pytest.mark.parametrize("view", ["neutral", "smiling"])
    def test_a_reconstruction_looks_like_the_person(
        self, figures: dict[str, float], view: str
    ) -> None:
        first = f"reconstruction of a {view} photo: right person of 84 in the first"
        assert figures[f"{first} 1"] >= 0.7
        assert figures[f"{first} 5"] >= 0.9

    def test_faces_are_sharp(self, figures: dict[str, float]) -> None:
        assert figures["sharpness of reconstructions / photos"] >= 0.6
        assert figures["sharpness of faces from voices / photos"] >= 0.6

    def test_all_their_landmarks_are_found(self, figures: dict[str, float]) -> None:
        assert figures["voices' faces with all 68 points"] == 1
        assert figures["reconstructions in which a face is found"] == 1


def test_distance_of_black_and_white_is_255() -> None:
    assert distance([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "white")]) == 255


def test_the_json_of_a_face_carries_the_card(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "s2f", "generate", SPEECH, "--json", "-o", tmp_path / "a.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    cards = json.loads(done.stdout)["model"]["cards"]
    assert set(cards) == {"voice_encoder", "face_decoder"}


def test_a_recording_gives_nearly_the_same_face_in_another_format(
    model: SpeechToFace, tmp_path: Path
) -> None:
    voices = [
        path for reader in ("103", "1034", "1040") for path in DATA.glob(f"voices/{reader}/*")
    ]
    for k, speech in enumerate([SPEECH, *voices]):
        samples, rate = soundfile.read(speech, dtype="float32")
        soundfile.write(tmp_path / f"{k}.wav", samples, rate)
        soundfile.write(tmp_path / f"{k}.flac", samples, rate)
        write_av(tmp_path / f"{k}.m4a", samples[:, np.newaxis], rate=rate)
        wav, flac, m4a = (
            np.asarray(model.generate(tmp_path / f"{k}.{suffix}").image, np.int16)
            for suffix in ("wav", "flac", "m4a")
        )
        assert (wav == flac).all()
        assert np.abs(wav - m4a).mean() < 6  # of 255


def test_it_comes_with_what_its_evaluation_found() -> None:
    (entry,) = checkpoint.entries("demo")
    assert entry.evaluation is not None
    for words in ("Recall among all 44 people", "chance", "Voices and faces belong", "CC BY 4.0"):
        assert words.lower() in entry.evaluation.lower(), words
