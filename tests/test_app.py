"""The page: what visitors are answered, that faces are those of `generate`, and that they move."""

import asyncio
import contextlib
import ctypes
import dataclasses
import http.client
import io
import itertools
import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch
from conftest import noise, save_model, write_photo, write_speech, write_turned
from PIL import Image
from visitors import RefusedError, Visitor, picture, pixels, vector

from s2f import SpeechToFace, app, app_server, face_detection
from s2f.app import Page, answer_photo, answer_voice, decode_photo, decode_recording, offered
from s2f.app_server import Settings, check_settings
from s2f.audio import SAMPLE_RATE, Heard, hear
from s2f.augment import moved
from s2f.checkpoint import Card, Checkpoint, choose, load_model
from s2f.errors import (
    AudioError,
    CheckpointError,
    DeviceError,
    ImageError,
    OutputError,
    UsageError,
    WorkerError,
)
from s2f.face_detection import FoundFace
from s2f.images import provenance
from s2f.pipeline import Listener
from s2f.workers import Worker

EXAMPLE = Path(__file__).parents[1] / "examples" / "speech.wav"


@pytest.fixture(scope="module")
def model(models: Path) -> SpeechToFace:
    return SpeechToFace.load(models / "demo", device="cpu")


def answered(model: SpeechToFace, content: bytes, max_seconds: float = 60) -> dict[str, Any]:
    """The answer to a recording."""
    return answer_voice(model, decode_recording(content, max_seconds), max_seconds)


def written(waveform: np.ndarray, form: str = "WAV") -> bytes:
    content = io.BytesIO()
    soundfile.write(content, waveform, SAMPLE_RATE, format=form)
    return content.getvalue()


def test_the_faces_are_those_that_generate_draws(model, tmp_path):
    path = write_speech(tmp_path / "a.wav", 7)
    answer, face = answered(model, path.read_bytes()), model.generate(path)
    assert picture(answer["face"]) == face.encoded()
    assert np.array_equal(vector(answer["embedding"]), face.embedding)
    assert np.abs(answer["landmarks"] - face.landmarks).max() < 0.051  # one decimal
    for first in answer["beginnings"]:
        face = model.generate(path, duration=first["seconds"])
        assert picture(first["face"]) == face.encoded(".webp")
        assert np.array_equal(vector(first["embedding"]), face.embedding)
    assert [first["seconds"] for first in answer["beginnings"]] == [1, 3, 6]
    assert pixels(picture(answer["sound"])).shape[1] > 100


@pytest.mark.parametrize(
    ("seconds", "moments", "remarks"),
    [
        (0.9, [], []),
        (1, [], []),
        (2.5, [1], []),
        (6, [1, 3], []),
        (9.1, [1, 3, 6], ["only its first 9 s were heard"]),
    ],
)
def test_what_was_heard_is_said_and_beginnings_are_shorter(
    model, tmp_path, seconds, moments, remarks
):
    path, told = write_speech(tmp_path / "a.wav", seconds), []
    heard = decode_recording(path.read_bytes(), 9)
    answer = answer_voice(model, heard, 9, lambda *what: told.append(what))
    assert (answer["heard"], answer["clip"]) == (min(seconds, 9), 1)  # as the tiny model's clips
    assert [first["seconds"] for first in answer["beginnings"]] == moments
    assert answer["remarks"] == remarks
    assert picture(answer["face"]) == model.generate(path, duration=9).encoded()
    assert told and all(done < total and what for done, total, what in told)


def here(monkeypatch):
    """Have this process decode, where it can be looked at."""
    monkeypatch.setattr(app, "_decode", lambda function, *item: function(*item))


def test_hours_are_not_even_decoded_and_the_rest_is_once(model, monkeypatch):
    """FLAC of an hour, of which soundfile is asked for no more than the limit and a block."""
    here(monkeypatch)
    hours = io.BytesIO()
    with soundfile.SoundFile(hours, "w", SAMPLE_RATE, 1, format="FLAC") as file:
        for _ in range(60):
            file.write(noise(60))
    read, counted = soundfile.SoundFile.read, []

    def reading(*args: object, **options: object) -> np.ndarray:
        block = read(*args, **options)
        counted.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", reading)
    answer = answered(model, hours.getvalue(), 2)
    assert answer["remarks"] == ["only its first 2 s were heard"]
    assert sum(counted) <= 2 * SAMPLE_RATE + 2 * max(counted)


def crash(name: str, *_: object) -> None:
    ctypes.string_at(0)


def hang(name: str, *_: object) -> None:
    time.sleep(60)


def test_a_decoder_that_crashes_or_hangs_costs_one_answer(monkeypatch, tmp_path):
    sound = write_speech(tmp_path / "a.wav").read_bytes()
    photo = write_photo(tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(app, "_decode", Worker(seconds=1))
    for broken, said in ((crash, "signal 11"), (hang, "took more than 1 s")):
        with monkeypatch.context() as patch:
            patch.setattr(app, "_hear", broken)
            patch.setattr(app, "_look", broken)
            with pytest.raises(WorkerError, match=f"the recording: .*{said}"):
                decode_recording(sound, 9)
            with pytest.raises(WorkerError, match=f"the photo: .*{said}"):
                decode_photo(photo, None)
    monkeypatch.setattr(app._decode, "_seconds", 60)
    assert decode_recording(sound, 9)[0].seconds == 1
    app._decode.close()


def test_what_was_left_out_or_cut_off_is_said(model, monkeypatch):
    here(monkeypatch)
    pause = np.zeros(9 * SAMPLE_RATE, np.float32)
    late = written(np.concatenate([pause, noise(3)]), "FLAC")
    remarks, answer = hear(io.BytesIO(late)).remarks, answered(model, late)
    assert remarks and answer["remarks"] == list(remarks)
    assert answer["heard"] == pytest.approx(3.3, abs=0.06)  # of the pause 0.25 s stay at its end
    assert answer["beginnings"] == []  # in which there is no speech


def test_a_silent_beginning_has_no_face(model, monkeypatch):
    here(monkeypatch)
    silence = np.zeros(round(1.5 * SAMPLE_RATE), np.float32)
    answer = answered(model, written(np.concatenate([silence, noise(3)])))
    assert len(answer["beginnings"]) == 1 and answer["beginnings"][0]["seconds"] == 3


def test_what_is_no_speech_is_refused(monkeypatch):
    here(monkeypatch)
    speech = written(noise(2))
    silence = written(np.zeros(SAMPLE_RATE, np.float32))
    for content in (b"", b"no sound\n" * 20, bytes(5000), speech[:30], silence):
        with pytest.raises(AudioError):
            decode_recording(content, 9)


def test_a_photo_is_drawn_again(model, tmp_path):
    photo = write_photo(tmp_path / "a.png")
    answer = answer_photo(model, decode_photo(photo.read_bytes(), None), None)
    face = model.reconstruct(photo, align=False)
    assert picture(answer["face"]) == face.encoded()
    assert answer["remarks"] == list(face.remarks)
    own = pixels(picture(answer["photo"]))
    assert np.abs(pixels(photo.read_bytes()) - own).mean() < 4  # it is a WebP


@pytest.mark.parametrize("detector", [None, "dlib"])
def test_a_phone_photo_is_drawn_as_it_stands_upright(model, tmp_path, monkeypatch, detector):
    """EXIF's eight orientations, with a finder in whose place a face is all of the photo."""
    here(monkeypatch)
    whole = np.float32([[0, 0], [223, 223]] * 34)
    whole[36:42], whole[42:48] = (82.5, 104.8), (142.5, 104.8)  # about where eyes are framed
    face = FoundFace(np.float32([0, 0, 224, 224]), whole)
    monkeypatch.setattr(face_detection, "load_detector", lambda *_: lambda photos: [[face]])
    x, y = np.meshgrid(np.arange(224), np.arange(224))
    upright = Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))
    answers = []
    for path in write_turned(tmp_path, upright).values():
        answer = answer_photo(model, decode_photo(path.read_bytes(), detector), detector)
        assert np.abs(pixels(picture(answer["photo"])) - upright).mean() < 4
        answers.append(answer["face"])
    assert len(set(answers)) == 1


def test_what_is_no_photo_or_of_too_many_pixels_is_refused(monkeypatch):
    here(monkeypatch)
    bomb = io.BytesIO()
    Image.new("1", (8000, 8000)).save(bomb, "PNG")
    with pytest.raises(ImageError, match="8000 x 8000 pixels; at most 50 mega"):
        decode_photo(bomb.getvalue(), "dlib")
    for content in (b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(99)):
        with pytest.raises(ImageError, match="the photo: "):
            decode_photo(content, None)


@pytest.fixture(scope="module")
def own() -> SpeechToFace:
    """The bundled model."""
    return SpeechToFace.load(device="cpu")


@pytest.fixture(scope="module")
def example() -> Heard:
    return hear(EXAMPLE)


@pytest.mark.parametrize("which", ["own", "model"])
def test_shape_axes_are_along_what_moves_landmarks_most(which, request, example):
    """Expected of the decoder's landmarks at each unit vector, as it is linear in an embedding."""
    model = request.getfixturevalue(which)
    decoder = model.model.checkpoints["face_decoder"].network
    start = model.embed_voice(example)
    with torch.no_grad():
        points = decoder.points(torch.eye(len(start))) - decoder.points(torch.zeros(1, len(start)))
    slopes = points.flatten(1).numpy().astype(float)  # [d 2k]
    lengths = np.linalg.svd(slopes, compute_uv=False)
    axes = app.shape_axes(model, start)
    assert [axis["name"] for axis in axes] == [f"Shape, axis {k}" for k in (1, 2, 3)]
    steps = [[vector(step) for step in axis["steps"]] for axis in axes]
    for length, (one, other) in zip(lengths[:3], steps, strict=True):
        assert np.array_equal(one, -other)
        ways = (other @ slopes).reshape(-1, 2)  # [k 2]: how far each landmark moves
        assert np.sqrt((ways**2).sum(axis=1).mean()) == pytest.approx(app.SHAPE_PIXELS, rel=1e-3)
        gain = np.linalg.norm(ways) / np.linalg.norm(other)
        assert gain == pytest.approx(length, rel=1e-3)
    cosines = [first[1] @ last[1] for first, last in itertools.pairwise(steps)]
    assert np.abs(cosines).max() < 1e-3 * np.square(steps[0][1]).sum()


def test_what_a_shape_axis_does_is_seen_in_the_face(own, example):
    face = own.generate(example)
    for axis in app.shape_axes(own, face.embedding):
        for step in axis["steps"]:
            far = own.decode(face.embedding + vector(step))
            ways = np.linalg.norm(far.landmarks - face.landmarks, axis=1)
            # Of the 68 that are told, of more that are moved.
            assert np.sqrt(np.square(ways).mean()) == pytest.approx(app.SHAPE_PIXELS, rel=0.2)


def test_a_model_that_computes_in_half_precision_has_the_same_axes(own, example):
    half = SpeechToFace(load_model(choose(), keep_half=True), torch.device("cpu"))
    assert half.precision == "fp16"  # as on a GPU
    start = own.embed_voice(example)
    for one, other in zip(app.shape_axes(own, start), app.shape_axes(half, start), strict=True):
        for a, b in zip(one["steps"], other["steps"], strict=True):
            assert np.abs(vector(a) - vector(b)).max() < 0.01 * np.abs(vector(a)).max()


def test_a_shape_that_changes_in_fewer_ways_has_fewer_axes(models):
    model = SpeechToFace.load(models / "demo", device="cpu")
    decoder, start = model.model.checkpoints["face_decoder"].network, np.zeros(8, np.float32)
    (last,) = [layer for layer in decoder.landmarks.modules() if isinstance(layer, torch.nn.Linear)]
    for ways in (1, 0):
        with torch.no_grad():
            last.weight[ways:] = 0  # so many coordinates move
        assert len(app.shape_axes(model, start)) == ways


def test_the_voice_axis_goes_to_the_voice_lower_and_higher(own, example):
    """It is the embedding of the recording moved, of which the encoder itself tells the pitch.

    It hears 89 Hz where the voice of 105 Hz is at 74 Hz: lower than that it has hardly learned of.
    """
    face = own.generate(example)
    (axis,) = app.voice_axes(own, example, face.embedding)
    assert axis["ends"] == ["6 semitones lower", "6 semitones higher"]
    pitches = []
    for step, factor in zip(axis["steps"], (2**-0.5, 2**0.5), strict=True):
        other = dataclasses.replace(example, waveform=moved(example.waveform, factor))
        end = own.generate(other)
        assert np.allclose(face.embedding + vector(step), end.embedding, atol=1e-5)
        pitches.append(end.voice["pitch_hz"] / face.voice["pitch_hz"])
    assert pitches[0] < 0.9 and pitches[1] > 1.3


def test_what_decodes_ends_where_nothing_is_served(model, monkeypatch):
    decode = mock.Mock(side_effect=lambda function, *item: function(*item))
    monkeypatch.setattr(app, "_decode", decode)
    settings, loaders = Settings(align=False), {"demo": lambda: (model, None)}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model, "reconstruct", mock.Mock(side_effect=KeyboardInterrupt))
        with app.serving(loaders, settings, mock.Mock()):
            pass
    assert decode.close.call_count == 1
    refused = mock.Mock(side_effect=OutputError("it cannot be"))
    monkeypatch.setattr(app.app_server, "serve", refused)
    with pytest.raises(OutputError), app.serving(loaders, settings, mock.Mock()):
        pass
    assert decode.close.call_count == 2


def test_the_page_is_warmed_up_with_every_answer(model, monkeypatch):
    asked: list[dict[str, Any]] = []

    def reconstruct(photo: Image.Image, **framing: Any) -> None:
        asked.append(framing)
        if framing.get("align", True):
            raise ImageError("no face")

    monkeypatch.setattr(model, "reconstruct", reconstruct)
    for detector in ("dlib", "face-alignment"):
        app.warm(model, Settings(detector=detector))
    assert asked == [{"align": False}, {"detector": "dlib"}, {"align": False}]
    for installed in ("dlib", None):  # faces are looked for with what is there
        monkeypatch.setattr(app, "installed_detector", lambda name=installed: name)
        assert app.finder(Settings()) == installed
        assert app.finder(Settings(detector="face-alignment")) == "face-alignment"
        assert app.finder(Settings(align=False)) is None


EVALUATION = "| a | b |\n|---|--:|\n| 1 | 2 |\n\n<script>alert(2)</script> <b style='color:red'>"


def test_a_card_is_escaped_and_the_same_words_are_said_once(model):
    html = app.about(model, None)
    assert html.count("<h4>") == 1 and "random weights" in html and "<table" not in html
    assert "The network that listens and the network that looks at photos and" in html
    checkpoints = dict(model.model.checkpoints)
    own = checkpoints["voice_encoder"]
    strange = Card("x", limits="<script>alert(1)</script>")
    checkpoints["voice_encoder"] = Checkpoint(**{**vars(own), "card": strange})
    other: Any = SimpleNamespace(model=SimpleNamespace(name="<i>", checkpoints=checkpoints))
    html = app.about(other, EVALUATION)
    assert html.count("<h4>") == 2 and "alert(1)" in html and "alert(2)" in html
    assert '<td class="right">2</td>' in html
    # Styles within HTML are what the page's policy forbids.
    assert not [tag for tag in ("<script", "<i>", "<b ", 'style="') if tag in html]


@pytest.mark.parametrize(
    ("error", "said", "logged"),
    [
        (AudioError("it is <b>", hint="send it again"), "It is <b>. Send it again.", ""),
        (UsageError("a. b."), "A. b.", ""),
        (WorkerError("the photo: died", hint="give fewer --workers"), "The photo: died. Try", ""),
        (ZeroDivisionError("division"), "Something went wrong here", "ZeroDivisionError"),
        (
            CheckpointError("m/face_decoder.safetensors: damaged"),
            "Something went wrong here",
            "m/face_decoder.safetensors: damaged",
        ),
        (DeviceError("cuda: has too little memory"), "Something went wrong here", "too little"),
    ],
)
def test_a_refusal_tells_of_no_option_and_no_path(caplog, error, said, logged):
    with caplog.at_level(logging.ERROR):
        text = app.refusal(error)
    assert text.startswith(said) and text.endswith(".")
    assert not [word for word in ("--", "division", "safetensors", "cuda") if word in text]
    assert logged in caplog.text and bool(logged) == bool(caplog.records)


def test_all_whole_models_of_a_folder_are_offered_and_others_are_named(models, tmp_path):
    for name in ("a", "demo"):
        save_model(tmp_path / name, seed=3 + len(name))
    shutil.copytree(models / "demo", tmp_path / "same")  # as the first one
    shutil.copytree(tmp_path / "a", tmp_path / "half")
    (tmp_path / "half" / "face_decoder.safetensors").unlink()
    (tmp_path / "none").mkdir()
    (tmp_path / "a" / "evaluation.md").write_text("as measured")
    told: list[str] = []
    found = offered(str(models / "demo"), tmp_path, device="cpu", note=told.append)
    assert list(found) == ["demo", "a", "demo (2)"]  # names, and no path
    assert len(told) == 1 and "half" in told[0] and "not offered" in told[0]
    (model, evaluation), (other, nothing) = found["a"](), found["demo (2)"]()
    assert (model.model.name, evaluation, nothing) == ("a", "as measured", None)
    assert (
        other.model.checkpoints["face_decoder"].sha256
        == choose(tmp_path / "demo").sha256["face_decoder"]
    )
    files = {"voice_encoder": tmp_path / "a" / "voice_encoder.safetensors"}
    (first,) = offered(str(tmp_path / "a"), files=files, device="cpu").values()
    assert first()[1] is None  # what was measured is of its own networks


def test_each_model_of_a_folder_has_a_name_of_its_own_that_a_page_can_hold(models, tmp_path):
    for seed, name in enumerate(("demo", "demo (2)", " a  <b>"), 3):
        save_model(tmp_path / name, seed=seed)
    shutil.copytree(tmp_path / "demo", tmp_path / os.fsdecode(b"\xff"))
    told: list[str] = []
    found = offered(str(models / "demo"), tmp_path, device="cpu", note=told.append)
    assert sorted(found) == [" a  <b>", "demo", "demo (2)", "demo (2) (2)"]
    assert len(told) == 1 and "no UTF-8" in told[0]
    # Of the text alone, a browser would give a name without the spaces that are too many.
    assert '<option value=" a  &lt;b&gt;">' in Page(found, Settings()).home()


def test_a_folder_without_a_model_is_refused(models, tmp_path):
    for folder in (tmp_path, tmp_path / "none", models / "demo"):
        with pytest.raises(CheckpointError, match="holds no model with all three") as told:
            offered(str(models / "demo"), folder)
        assert told.value.hint and str(folder) in told.value.message


@pytest.fixture(scope="module")
def page(
    models: Path, own: SpeechToFace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    """The page of tiny models, one damaged since, and of the bundled one, served; it hears 5 s."""
    folder = tmp_path_factory.mktemp("offered")
    for name in ("other", "spoilt"):
        shutil.copytree(models / "other", folder / name)
    settings = check_settings(Settings(port=0, max_seconds=5, max_mb=1, align=False))
    found = offered(str(models / "demo"), folder, device="cpu")
    page = Page({**found, "bundled": lambda: (own, None)}, settings)
    for path in (folder / "spoilt").iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    with contextlib.closing(app._decode), app_server.listen(settings) as listening:
        with app_server.serve(page.app(), settings, listening) as url:
            page.url = url  # type: ignore[attr-defined]
            yield page


@pytest.fixture
def visitor(page: Any) -> Visitor:
    served: Any = SimpleNamespace(said=json.dumps({"url": page.url}))
    return Visitor(served)


@pytest.fixture
def unhurried(page, monkeypatch):
    """Nobody is forgotten, however busy the machine is."""
    monkeypatch.setattr(page, "forget", lambda: None)
    yield
    page.visits.clear()


def floats(*embeddings: np.ndarray) -> bytes:
    return np.stack(embeddings).astype("<f4").tobytes()


def test_the_page_offers_a_choice_where_there_is_one(page, visitor, model):
    status, text = visitor.request("GET", "/?model=other")
    assert status == 200 and '<option value="other" selected>other</option>' in text
    assert '<option value="demo">demo</option>' in text
    alone = Page({"demo": lambda: (model, None)}, Settings())
    assert "<option" not in alone.home()
    assert visitor.request("GET", "/about?model=other")[1].startswith("<h3>The model other</h3>")
    assert "The model demo" in visitor.request("GET", "/about")[1]


@pytest.mark.parametrize("name", ["nobodys", "..", "%3Cb%3E"])
def test_a_model_that_is_not_offered_is_refused(visitor, model, name):
    said = "There is no model"
    for where in (f"/?model={name}", f"/about?model={name}"):
        status, headers, content = visitor.fetch("GET", where)
        assert status == 404 and content.decode().startswith(said)
        assert headers.get_content_type() == "text/plain"
    with pytest.raises(RefusedError, match=said):
        visitor.ask(f"/voice?model={name}", written(noise(1)))
    embedding = floats(np.zeros(8))
    for where in ("/draw?", "/save?as=face&", f"/live?visit={visitor.visit}&rate=16000&"):
        status, text = visitor.request("POST", f"{where}model={name}", embedding)
        assert status == 400 and text.startswith(said)


def test_a_model_that_cannot_be_read_any_more_is_told_to_who_serves_it_alone(visitor, caplog):
    said = "Something went wrong here"
    with caplog.at_level(logging.ERROR):
        with pytest.raises(RefusedError, match=said):
            visitor.ask("/voice?model=spoilt", written(noise(1)))
        assert visitor.request("GET", "/about?model=spoilt")[1].startswith(said)
        where = f"/live?visit={visitor.visit}&rate=16000&model=spoilt"
        assert visitor.request("POST", where, bytes(100))[1].startswith(said)
    assert caplog.text.count("spoilt") >= 3


def test_what_is_drawn_of_an_answers_embedding_is_its_face(visitor, model):
    answer = visitor.ask("/voice", written(noise(2)))
    embedding = vector(answer["embedding"])
    drawn = json.loads(visitor.request("POST", "/draw", floats(embedding))[1])
    assert drawn["landmarks"] == answer["landmarks"]
    assert drawn["embedding"] == answer["embedding"]
    assert picture(drawn["face"]) == model.decode(embedding).encoded(".webp")
    same = pixels(model.decode(embedding).encoded()), pixels(picture(answer["face"]))
    assert np.array_equal(*same)


def test_what_is_saved_says_what_made_it(visitor, own):
    one, other = (own.embed_voice((noise(1, seed), SAMPLE_RATE)) for seed in (0, 1))
    face = own.decode(one)

    def save(form: str, *embeddings: np.ndarray) -> tuple[str, bytes]:
        where = f"/save?model=bundled&as={form}"
        status, headers, content = visitor.fetch("POST", where, floats(*embeddings))
        assert status == 200
        return headers["content-type"], content

    assert save("face", one) == ("image/png", face.encoded())
    networks = {"face_decoder": own.model.checkpoints["face_decoder"].sha256}
    made = provenance("demo", "an embedding", networks)
    assert "not the likeness" in made["Comment"]

    kind, content = save("animation", one, other)
    film: Any = Image.open(io.BytesIO(content))
    assert (kind, film.format, film.size) == ("image/webp", "WEBP", (224, 224))
    assert film.n_frames == app.FRAMES
    for frame, embedding in ((0, one), (app.FRAMES - 1, other)):
        film.seek(frame)
        wanted = pixels(own.decode(embedding).encoded())
        assert np.abs(np.asarray(film.convert("RGB"), float) - wanted).mean() < 4
    assert made["Comment"].encode() in content

    sheets = []
    for names in ("name=Anna&name=Ben", "name=Anna&name=Eve"):
        kind, content = save(f"sheet&{names}", one, other)
        sheet: Any = Image.open(io.BytesIO(content))
        assert (kind, sheet.text) == ("image/png", made)
        sheets.append(pixels(content))
    height, width, _ = sheets[0].shape
    changed = np.nonzero((sheets[0] != sheets[1]).any(axis=(0, 2)))[0]  # columns
    assert width > height > 224 and changed.min() > width / 2  # the right one's name
    where = "/save?model=bundled&as=sheet&name=Anna"
    status, said = visitor.request("POST", where, floats(one, other))
    assert (status, said) == (400, "2 faces have 1 names.")
    for form in ("", "?as=", "?as=gif"):
        assert visitor.request("POST", f"/save{form}", floats(one))[0] == 404


def test_the_frames_of_an_animation_go_evenly():
    corners = np.float32([[0, 0], [1, 0], [1, 2]])
    between = app.evenly(corners, 5)
    assert between.tolist() == [[0, 0], [0.5, 0], [1, 0], [1, 1], [1, 2]]
    assert app.evenly(corners[:1], 3).tolist() == [[0, 0]] * 3


FAR = {"not a number": np.nan, "infinite": np.inf, "too far": 1e30}


@pytest.mark.parametrize("sent", [b"", bytes(3), bytes(31), bytes(4 * 9), *FAR])
def test_what_is_no_embedding_is_refused(visitor, sent):
    content = floats(np.full(8, FAR[sent])) if isinstance(sent, str) else sent
    for where in ("/draw", "/save?as=face", "/save?as=animation", "/save?as=sheet&name=a"):
        status, said = visitor.request("POST", where, content)
        assert status == 400 and said.endswith("."), where
    assert visitor.request("POST", "/draw", bytes(2 * 32))[0] == 400  # of two there is no one face
    assert visitor.request("POST", "/save?as=animation", bytes(301 * 32))[0] == 400


def spoken(seconds: float, seed: int = 0) -> np.ndarray:
    return (32767 * noise(seconds, seed)).astype(np.int16)


def test_a_face_forms_while_somebody_speaks(visitor, model, unhurried):
    """Faces are those of a `Listener` that is fed the same; what it hears is for test_live."""
    silence = np.zeros(SAMPLE_RATE // 2, np.int16)
    for _ in range(2):
        assert visitor.speak(silence, SAMPLE_RATE) == {"seconds": 0}
    speech, listener = spoken(2.5), Listener(model, SAMPLE_RATE)
    listener.feed(silence)
    listener.feed(silence)
    faces = []
    for piece in np.array_split(speech, 10):  # of 0.25 s
        answer = visitor.speak(piece, SAMPLE_RATE)
        listener.feed(piece)
        assert answer["seconds"] == pytest.approx(listener.seconds)
        face = listener.draw()
        assert ("face" in answer) == (face is not None) == (listener.seconds >= 1)
        if face:
            assert np.array_equal(vector(answer["embedding"]), face.embedding)
            assert picture(answer["face"]) == face.encoded(".webp")
            faces.append(answer["embedding"])
    assert len(set(faces)) == len(faces) > 4
    visitor.speak(silence, SAMPLE_RATE)  # a pause between words is speech
    assert set(visitor.speak(silence, SAMPLE_RATE)) == {"seconds"}


def test_who_speaks_no_more_is_forgotten_within_two_seconds(page, visitor):
    visitor.speak(spoken(0.25), SAMPLE_RATE)
    start = time.monotonic()
    assert visitor.visit in page.visits
    while page.visits:
        assert time.monotonic() - start < 2
        time.sleep(0.02)
    assert visitor.speak(spoken(0.25), SAMPLE_RATE)["seconds"] < 0.3  # one who is new


def test_too_many_who_speak_are_refused(page, visitor, monkeypatch, unhurried):
    monkeypatch.setattr(app, "SPEAKERS", 2)
    page.visits.clear()
    served: Any = SimpleNamespace(said=json.dumps({"url": page.url}))
    one, other = Visitor(served), Visitor(served)
    for each in (one, other):
        each.speak(spoken(0.1), SAMPLE_RATE)
    with pytest.raises(RefusedError, match="Too many are speaking") as refused:
        visitor.speak(spoken(0.1), SAMPLE_RATE)
    assert refused.value.status == 503 and set(page.visits) == {one.visit, other.visit}
    assert other.speak(spoken(0.1), SAMPLE_RATE)


GOOD = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("visit", "rate", "body"),
    [
        *((name, "16000", 2) for name in ("", "a" * 31, "a" * 33, "g" * 32, GOOD.upper(), "../a")),
        *((GOOD, rate, 2) for rate in ("", "-16000", "1e4", "16000.5", "7999", "192001", "9" * 20)),
        (GOOD, "16000", 3),
    ],
)
def test_what_is_no_sound_of_a_visitors_is_refused(page, visitor, visit, rate, body):
    status, said = visitor.request("POST", f"/live?visit={visit}&rate={rate}", bytes(body))
    assert status == 400 and said.endswith(".") and visit not in page.visits


def test_who_speaks_longer_than_is_heard_is_refused(visitor, unhurried):
    """It hears 5 s, and one more of which a page does not yet know."""
    for _ in range(2):
        visitor.speak(np.zeros(3 * 8000, np.int16), 8000)
    for _ in range(2):
        with pytest.raises(RefusedError, match="Only 5 seconds are heard") as refused:
            visitor.speak(np.zeros(800, np.int16), 8000)
        assert refused.value.status == 413


def test_one_piece_of_sound_comes_after_the_other(page, visitor, monkeypatch):
    began, end, hear_on = threading.Event(), threading.Event(), app._hear_on

    def slow(*what: Any) -> Any:
        began.set()
        assert end.wait(60)
        return hear_on(*what)

    monkeypatch.setattr(app, "_hear_on", slow)
    answers: list[Any] = []
    speak = threading.Thread(target=lambda: answers.append(visitor.speak(spoken(1.5), SAMPLE_RATE)))
    speak.start()
    assert began.wait(60)
    with pytest.raises(RefusedError, match="comes after the other") as refused:
        visitor.speak(spoken(0.1), SAMPLE_RATE)
    assert refused.value.status == 409
    end.set()
    speak.join()
    assert answers[0]["seconds"] == 1.5 and "face" in answers[0]


def test_who_waits_is_told_his_place_and_too_many_are_refused(page, visitor, monkeypatch):
    """Of two who may wait beside the one who is answered; one of them goes."""
    end, content = threading.Event(), written(noise(1))

    def slow(*_: object) -> dict[str, str]:
        assert end.wait(60)
        return {"face": "drawn"}

    monkeypatch.setattr(app, "answer_voice", slow)
    monkeypatch.setattr(app, "WAITING", 2)

    def ask() -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(visitor.address, timeout=60)
        connection.request("POST", "/voice", content)
        return connection, connection.getresponse()

    with contextlib.ExitStack() as stack:
        stack.callback(end.set)
        asked = []
        for place in range(3):
            connection, answer = ask()
            stack.callback(connection.close)
            assert json.loads(answer.readline()) == {"before": place}
            asked.append((connection, answer))
        assert visitor.request("POST", "/voice", content)[0] == 503
        assert "Too many are waiting" in visitor.request("POST", "/photo", content)[1]
        asked[1][1].close()
        asked[1][0].close()
        assert json.loads(asked[2][1].readline()) == {"before": 1}
        connection, answer = ask()
        stack.callback(connection.close)
        assert answer.status == 200 and json.loads(answer.readline()) == {"before": 2}
        end.set()
        for told in (asked[0][1], asked[2][1], answer):
            *_, last = told.read().splitlines()
            assert json.loads(last) == {"answer": {"face": "drawn"}}


def test_who_goes_while_he_waits_leaves_no_task():
    ended = threading.Event()

    async def go() -> set[str]:
        page, place = Page({}, Settings()), object()
        page._waiting[place] = None
        lines = page._lines(ended.wait, lambda decoded, tell: {}, place)
        await anext(lines)
        waiting = asyncio.ensure_future(anext(lines))
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.wait([waiting])
        await lines.aclose()
        ended.set()
        await asyncio.sleep(0.1)
        return {task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()}}

    assert asyncio.run(go()) == set()


def test_of_a_crowd_that_comes_at_once_no_more_wait_than_may(page, visitor, monkeypatch):
    end = threading.Event()
    monkeypatch.setattr(app, "answer_voice", lambda *_: {"waited": end.wait(60)})
    monkeypatch.setattr(app, "WAITING", 2)
    host, port = visitor.address.rsplit(":", 1)
    head = f"POST /voice HTTP/1.1\r\nHost: {visitor.address}\r\nContent-Length: 99\r\n\r\n"
    with contextlib.ExitStack() as stack:
        stack.callback(end.set)
        crowd = [socket.create_connection((host, int(port)), timeout=60) for _ in range(20)]
        for each in crowd:
            stack.enter_context(each).sendall(head.encode() + bytes(99))
        statuses = [int(each.recv(12).split()[1]) for each in crowd]
    assert sorted(statuses) == [200] * 3 + [503] * 17


def test_a_bug_costs_one_answer(page, visitor, monkeypatch, caplog):
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(app, "answer_voice", mock.Mock(side_effect=ZeroDivisionError("division")))
        with pytest.raises(RefusedError, match="not your fault") as refused:
            visitor.ask("/voice", written(noise(1)))
    assert "division" not in refused.value.said and "ZeroDivisionError" in caplog.text
    assert visitor.ask("/voice", written(noise(1)))["heard"] == 1
