"""What a drawing is asked for, which source becomes which files, what is made, skipped, refused."""

import dataclasses
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from command_line import Done
from conftest import noise, write_photo, write_speech, write_turned
from PIL import Image

import s2f
from s2f import generate
from s2f.audio import SAMPLE_RATE
from s2f.checkpoint import read_header
from s2f.errors import DeviceError, ImageError, OutputError, UsageError, WorkerError
from s2f.files import PassedOver
from s2f.generate import FACE, STDIN, Ending, GenerateOptions, Outcome, plan_outputs, run
from s2f.images import read_text
from s2f.journal import StepShard

pytestmark = pytest.mark.usefixtures("bundled")
Patch = pytest.MonkeyPatch
MARKED = {"landmarks": True, "embedding": True}


def asked(*sources: Path, **options: Any) -> GenerateOptions:
    return GenerateOptions(sources=sources, device="cpu", **options)


def of_photos(*sources: Path, **options: Any) -> GenerateOptions:
    return asked(*sources, photos=True, align=False, **options)


def ran(options: GenerateOptions) -> tuple[list[Outcome], Ending]:
    *outcomes, ending = run(options)
    return outcomes, ending


def statuses(options: GenerateOptions) -> list[str]:
    return [outcome.status for outcome in ran(options)[0]]


def names(options: GenerateOptions) -> list[str]:
    folder = options.output or Path()
    return [str(item.files[FACE].relative_to(folder)) for item in plan_outputs(options)]


def image(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"), np.int16)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "nothing to generate"),
        ({"sources": [STDIN], "record": 6.0}, "speech and record"),
        ({"sources": [STDIN], "morph": (STDIN, STDIN)}, "speech and morph"),
        ({"sources": [STDIN], "frames": 9}, "--frames does not go without --morph"),
        ({"morph": (STDIN, STDIN), "landmarks": True}, "--landmarks does not go with --morph"),
        ({"sources": [STDIN], "align": False}, "are for the photo of --compare"),
        ({"sources": [STDIN], "detector": "dlib"}, "are for the photo of --compare"),
        ({"record": 0.1}, "0.1 s"),
        ({"sources": [STDIN], "start": -1.0}, "-1 s"),
        ({"sources": [STDIN], "duration": 0.0}, "0 s"),
    ],
)
def test_options_that_cannot_be_are_refused_first(options: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        next(run(GenerateOptions(model="nobody", **options)))


def test_a_plan_mirrors_the_tree_and_tells_equal_names_apart(tmp_path: Path) -> None:
    for name in ("x/a.wav", "x/a.flac", "b.wav"):
        write_speech(tmp_path / "in" / name)
    options = asked(tmp_path / "in", output=tmp_path / "out", format="webp")
    assert names(options) == ["b.webp", "x/a.flac.webp", "x/a.wav.webp"]


def test_one_source_may_name_its_picture_and_so_its_format(speech: Path) -> None:
    for name in ("me.png", "me.jpg", "me.JPEG", "me.webp"):
        (item,) = plan_outputs(asked(speech, output=Path(name), **MARKED))
        marked = f"me_landmarks.{name.split('.')[1]}"
        assert [str(path) for path in item.files.values()] == [name, marked, "me_embedding.npy"]


def test_a_file_is_made_once_and_what_was_made_is_not_read(tmp_path: Path, speech: Path) -> None:
    (tmp_path / "x").mkdir()
    output = tmp_path / "out"
    again = speech.parent / "x" / ".." / speech.name
    assert len(plan_outputs(asked(speech, speech, again, output=output))) == 1
    assert len(plan_outputs(asked(tmp_path, speech, output=output))) == 1
    (tmp_path / "link.wav").symlink_to(speech)  # which is a file of its own
    assert len(plan_outputs(asked(tmp_path, output=output))) == 2
    own = {"output": tmp_path / "made", "sheet": tmp_path / "sheet.png"}  # of an earlier run
    for path in (tmp_path / "made/b.png", own["sheet"]):
        write_photo(path)
    write_photo(tmp_path / "a.jpg")
    assert names(of_photos(tmp_path, **own)) == ["a.png"]


@pytest.mark.parametrize(
    ("sources", "options", "why"),
    [
        (["a.jpg"], {"output": "me.png", "format": "jpg"}, "does not end as --format jpg"),
        (["a.jpg"], {"output": "face.gif"}, "is neither a .png, .jpg or .webp file"),
        (["a.jpg"], {"output": "there"}, "is neither a .png, .jpg or .webp file"),
        (["a.jpg", "x/a.jpg"], {"output": "me.png"}, "me.png: is one picture"),
        (["a.jpg", "x/a.jpg"], {"output": "out"}, "would be made of both"),
        (["x"], {"output": "out", "landmarks": True}, "a_landmarks.png: would be made of both"),
        (["a.jpg"], {"output": "out", "sheet": "out/a.png"}, "made of both all of them and"),
        (["a.jpg"], {"output": "a.jpg"}, "a.jpg: is read, and would be written too"),
        (["a.jpg"], {"output": "link.png"}, "link.png: is read, and would be written too"),
        (["x"], {"output": "x", "format": "jpg"}, "is read, and would be written too"),
        (["a.jpg"], {"output": "me.png", "compare": "me_compare.png"}, "me_compare.png: is read"),
    ],
)
def test_an_output_that_would_cost_another_file_is_refused(
    sources: list[str], options: Any, why: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "x/a.jpg", "x/a_landmarks.jpg", "me_compare.png"):
        write_photo(tmp_path / name)
    Path("there").touch()
    Path("link.png").symlink_to("a.jpg")
    places = {name: Path(options[name]) for name in options if name not in ("format", "landmarks")}
    with pytest.raises(UsageError, match=re.escape(why)):
        plan_outputs(of_photos(*map(Path, sources), **{**options, **places}))


def test_the_files_of_a_face_lie_beside_it(tmp_path: Path, speech: Path) -> None:
    (made,), ending = ran(asked(speech, output=tmp_path / "me.png", size=64, **MARKED))
    assert (made.status, made.clips, made.error) == ("made", 1, None) and made.seconds > 0
    assert ending.model["name"] == "demo" and ending.seconds > made.seconds
    face, marked, embedding = made.files.values()
    assert image(face).shape == image(marked).shape == (64, 64, 3)
    assert (image(face) != image(marked)).any()
    wanted = s2f.SpeechToFace.load(device="cpu").embed_voice(speech)
    np.testing.assert_array_equal(np.load(embedding), wanted)


def test_a_batch_goes_on_past_what_is_broken_or_cannot_be_written(tmp_path: Path) -> None:
    for name in ("a", "c", "x/e"):
        write_photo(tmp_path / f"in/{name}.jpg")
    (tmp_path / "in/b.jpg").write_text("text")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x").touch()  # where a folder is needed
    nowhere = Path("a" * 300 + ".jpg")
    outcomes, _ = ran(of_photos(tmp_path / "in", nowhere, output=tmp_path / "out"))
    errors = [type(item.error) for item in outcomes if item.status != "made"]
    assert [item.status for item in outcomes] == ["made", "failed", "made", "failed", "failed"]
    assert errors == [ImageError, OutputError, ImageError]
    assert "does not exist" in str(outcomes[-1].error)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png", "x"]


@pytest.fixture
def half_done(tmp_path: Path) -> GenerateOptions:
    """Two photos, of which the first has its picture."""
    for seed, name in enumerate(("a", "b")):
        write_photo(tmp_path / f"in/{name}.jpg", seed)
    options = of_photos(tmp_path / "in", output=tmp_path / "out")
    assert statuses(options) == ["made", "made"]
    (tmp_path / "out/b.png").unlink()
    return options


def test_a_batch_makes_what_is_missing_and_loads_no_model_if_nothing_is(
    half_done: GenerateOptions, tmp_path: Path, monkeypatch: Patch
) -> None:
    first = (tmp_path / "out/a.png").stat()
    assert statuses(half_done) == ["skipped", "made"]
    marked = dataclasses.replace(half_done, landmarks=True)
    assert statuses(marked) == ["made", "made"]
    assert os.path.samestat((tmp_path / "out/a.png").stat(), first)  # it is the same
    beside = dataclasses.replace(half_done, **MARKED)
    assert statuses(beside) == ["made", "made"]
    assert np.load(tmp_path / "out/a_embedding.npy").shape == (8,)
    monkeypatch.delattr(generate, "_load")
    os.utime(tmp_path / "in/a.jpg")  # what is in it is what counts, not its time
    outcomes, ending = ran(beside)
    assert [item.status for item in outcomes] == ["skipped", "skipped"]
    assert ending.model == {}


def test_what_s2f_did_not_make_or_of_another_source_stays(
    half_done: GenerateOptions, tmp_path: Path
) -> None:
    write_photo(tmp_path / "other/a.jpg", 3)
    other = dataclasses.replace(half_done, sources=[tmp_path / "other", tmp_path / "none"])
    before = (tmp_path / "out/a.png").read_bytes()
    (refused, _), _ = ran(other)
    assert "a.png: exists already, made of another source" in str(refused.error)
    assert statuses(half_done) == ["skipped", "made"]
    write_photo(tmp_path / "in/a.jpg", 2)  # made again
    assert statuses(half_done) == ["failed", "skipped"]
    assert (tmp_path / "out/a.png").read_bytes() == before
    face = s2f.SpeechToFace.load(device="cpu").reconstruct(tmp_path / "in/a.jpg", align=False)
    face.save(tmp_path / "out/a.png")
    refused, _ = ran(half_done)[0]
    assert "exists already, and does not say of which source" in str(refused.error)
    np.save(tmp_path / "out/b_embedding.npy", face.embedding)
    _, refused = ran(dataclasses.replace(half_done, embedding=True))[0]
    assert "npy: exists already, and is not of the face beside it" in str(refused.error)
    (tmp_path / "out/a.png").write_bytes(b"mine")
    (tmp_path / "out/b_landmarks.png").symlink_to("nowhere")
    marked = dataclasses.replace(half_done, landmarks=True)
    for item in ran(marked)[0]:
        assert "exists already, and is no whole picture that s2f made" in str(item.error)
    assert (tmp_path / "out/a.png").read_bytes() == b"mine"
    assert statuses(dataclasses.replace(half_done, overwrite=True)) == ["made", "made"]
    assert image(tmp_path / "out/a.png").shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("format", "changed", "old"),
    [
        ("png", {"size": 64}, "was made with size 224"),
        ("jpg", {"size": 64}, "size 224"),
        ("webp", {"start": 0.5}, "was made without start 0.5"),
        ("png", {"duration": 0.6}, "without duration 0.6"),
        ("png", {"trim_silence": 30.0}, "without trim_silence 30"),
        ("jpg", {"model": "other"}, "voice_encoder"),
        ("png", {"precision": "fp32"}, "without precision fp32"),
    ],
)
def test_other_options_make_anew_what_they_change(
    format: str, changed: Any, old: str, tmp_path: Path
) -> None:
    write_speech(tmp_path / "in/a.wav", seconds=2)
    options = asked(tmp_path / "in", output=tmp_path / "out", format=format, **MARKED)
    assert statuses(options) == ["made"]
    face, marked, embedding = (
        tmp_path / f"out/a{end}" for end in (f".{format}", f"_landmarks.{format}", "_embedding.npy")
    )
    assert statuses(options) == ["skipped"]
    # Nobody asks for what lies beside the face now, and still it is kept in step.
    (made,), _ = ran(dataclasses.replace(options, landmarks=False, embedding=False, **changed))
    assert made.status == "made"
    assert any(f"{face} is made anew" in said and old in said for said in made.remarks)
    fresh = asked(tmp_path / "in", output=tmp_path / "new", format=format, **MARKED, **changed)
    assert statuses(fresh) == ["made"]
    for path in (face, marked, embedding):
        assert path.read_bytes() == (tmp_path / "new" / path.name).read_bytes()
    assert statuses(dataclasses.replace(options, **changed)) == ["skipped"]


def test_pictures_say_which_networks_made_them_and_no_path(
    speech: Path, photo: Path, tmp_path: Path, models: Path
) -> None:
    model = tmp_path / "private/name"
    shutil.copytree(models / "demo", model)
    shutil.move(model / "voice_encoder.safetensors", tmp_path / "private/own.safetensors")
    options = asked(
        speech,
        tmp_path / "none.wav",
        output=tmp_path / "out",
        model=str(model),
        voice_encoder=tmp_path / "private/own.safetensors",
        compare=photo,
        align=False,
        landmarks=True,
        sheet=tmp_path / "sheet.png",
    )
    assert statuses(options) == ["made", "failed"]
    kinds = ("voice_encoder", "face_encoder", "face_decoder")
    hashes = {k: read_header(models / f"demo/{k}.safetensors")["sha256"][:12] for k in kinds}
    ran(
        GenerateOptions(
            morph=(speech, speech),
            frames=2,
            output=tmp_path / "m.webp",
            model=str(model),
            voice_encoder=tmp_path / "private/own.safetensors",
            device="cpu",
        )
    )
    for path in (*(tmp_path / "out").iterdir(), tmp_path / "sheet.png", tmp_path / "m.webp"):
        said = read_text(path)
        assert said["Model"] == f"name, but voice_encoder {hashes['voice_encoder']}"
        used = [k for k in kinds if k != "face_encoder" or "compare" in path.name]
        assert set(said["Networks"].split(", ")) == {f"{k} {hashes[k]}" for k in used}
        assert b"private" not in path.read_bytes() and b"speech.wav" not in path.read_bytes()


def test_a_folder_of_photos_is_read_without_what_s2f_drew(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "x/b")):
        write_photo(tmp_path / f"{name}.jpg", seed)
    options = of_photos(Path(), landmarks=True, embedding=True, sheet=Path("sheet.webp"))
    assert statuses(options) == ["made", "made"]
    shutil.copytree("x", "copies")
    Path("copies/b.jpg").unlink()
    Path("notes.txt").touch()
    outcomes, ending = ran(options)
    assert [item.status for item in outcomes] == ["skipped", "skipped"]
    assert ending.kept == Path("sheet.webp") and ending.written is None
    n_files = sum(path.is_file() for path in tmp_path.rglob("*"))
    assert len(outcomes) + sum(ending.passed_over.values()) == n_files
    assert ending.passed_over == {".png of s2f": 6, ".npy": 3, ".webp of s2f": 1, ".txt": 1}
    plan = of_photos(Path(), Path("x"), tmp_path / "x", landmarks=True)
    passed_over = PassedOver()
    assert len(plan_outputs(plan, passed_over=passed_over)) == 2
    assert passed_over == ending.passed_over  # each counts once, however it is reached
    (drawn,), _ = ran(of_photos(Path("a.png"), output=Path("again.png")))
    assert drawn.status == "made" and "is no photo: s2f drew it" in drawn.remarks
    (none,), _ = ran(of_photos(Path("copies")))
    assert "holds no photos; passed over: 3 (.png of s2f 2, .npy 1)" in str(none.error)


@pytest.mark.parametrize("format", ["png", "jpg"])
def test_what_is_to_be_said_of_a_source_is_said_of_a_kept_face_too(
    format: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    sound = np.concatenate([noise(2), np.zeros(5 * SAMPLE_RATE, np.float32)])
    soundfile.write(tmp_path / "in/a.wav", sound, SAMPLE_RATE)
    options = asked(tmp_path / "in", output=tmp_path / "out", format=format)
    (made,), _ = ran(options)
    (kept,), _ = ran(options)
    assert (made.status, kept.status) == ("made", "skipped")
    assert kept.remarks == made.remarks and "of silence are left out" in " ".join(kept.remarks)


def test_a_source_that_went_bad_or_away_is_told_with_its_old_face(
    half_done: GenerateOptions, tmp_path: Path
) -> None:
    _, ending = ran(half_done)
    assert ending.remarks == []
    (tmp_path / "in/a.jpg").unlink()
    (tmp_path / "in/b.jpg").write_text("broken")
    (tmp_path / "out/x").mkdir()  # where this run writes nothing, and so does not look
    shutil.copy(tmp_path / "out/a.png", tmp_path / "out/x/a.png")
    (item,), ending = ran(dataclasses.replace(half_done, overwrite=True))
    assert item.status == "failed" and item.remarks == (f"{tmp_path / 'out/b.png'} is of before",)
    assert ending.remarks == [f"of none of these sources: 1 ({tmp_path / 'out/a.png'})"]


def test_a_photo_that_breaks_costs_itself_only(tmp_path: Path, monkeypatch: Patch) -> None:
    for name in ("a", "b"):
        write_photo(tmp_path / f"in/{name}.jpg")

    def reconstruct(self: object, photo: Path, **framing: object) -> s2f.Face:
        if photo.stem == "a":
            raise MemoryError
        return real(self, photo, **framing)

    real = s2f.SpeechToFace.reconstruct
    monkeypatch.setattr(s2f.SpeechToFace, "reconstruct", reconstruct)
    outcomes, _ = ran(of_photos(tmp_path / "in", output=tmp_path / "out"))
    assert [item.status for item in outcomes] == ["failed", "made"]
    assert "a.jpg: takes more memory than there is" in str(outcomes[0].error)


def test_progress_counts_sources_or_the_clips_of_the_only_one(tmp_path: Path) -> None:
    paths = [write_speech(tmp_path / f"in/{name}.wav", seconds=3) for name in ("a", "b")]
    for source, wanted in (
        (tmp_path / "in", [(0, 2, "a.wav"), (1, 2, "b.wav")]),
        (paths[0], [(k, 3, str(paths[0])) for k in range(3)]),
    ):
        told: list[object] = []
        options = asked(source, output=tmp_path / "out", overwrite=True)
        list(run(options, progress=lambda *what, told=told: told.append(what)))
        assert told == wanted


def test_standard_input_is_a_recording_or_a_photo(
    speech: Path, photo: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-").mkdir()  # which is not looked for
    for make, path in ((asked, speech), (of_photos, photo)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
        assert statuses(make(path, output=Path("file.png"), overwrite=True)) == ["made"]
        (made,), _ = ran(make(STDIN, overwrite=True))
        assert made.files == {FACE: Path("stdin.png")}
        assert (image(Path("stdin.png")) == image(Path("file.png"))).all()
    assert statuses(asked(STDIN)) == ["failed"]  # it is there
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="standard input is closed"):
        ran(asked(STDIN, output=tmp_path / "b.png"))


def test_compare_turns_a_phone_photo_once(speech: Path, tmp_path: Path) -> None:
    x, y = np.meshgrid(np.arange(224), np.arange(224))
    upright = Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))
    sheets = []
    for orientation, path in write_turned(tmp_path, upright).items():
        target = tmp_path / f"{orientation}.png"
        assert statuses(asked(speech, output=target, compare=path, align=False)) == ["made"]
        sheets.append(image(tmp_path / f"{orientation}_compare.png"))
        gap = (sheets[0].shape[1] - 3 * 224) // 4
        np.testing.assert_array_equal(sheets[0][gap : gap + 224, gap : gap + 224], upright)
    for sheet in sheets:
        np.testing.assert_array_equal(sheet, sheets[0])


def test_compare_shows_photo_and_both_faces(speech: Path, photo: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("text")
    options = asked(speech, output=tmp_path / "face.png", compare=bad, align=False)
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        ran(options)
    assert not (tmp_path / "face.png").exists()
    assert statuses(dataclasses.replace(options, compare=photo)) == ["made"]
    assert statuses(dataclasses.replace(options, compare=photo)) == ["skipped"]
    later = dataclasses.replace(options, compare=None, align=True)
    assert ran(later)[0][0].remarks == ()
    (made,), _ = ran(dataclasses.replace(later, overwrite=True))
    assert made.remarks == (
        f"{tmp_path / 'face_compare.png'} is of before: give --compare to make it anew",
    )
    other = write_photo(tmp_path / "other.jpg", 3)
    (made,), _ = ran(dataclasses.replace(options, compare=other))
    assert made.due == ("compare",) and "made with photo " in made.remarks[0]
    assert statuses(dataclasses.replace(options, compare=photo)) == ["made"]
    sheet = image(tmp_path / "face_compare.png")
    gap = (sheet.shape[1] - 3 * 224) // 4
    columns = [sheet[gap : gap + 224, x : x + 224] for x in range(gap, 3 * 224, gap + 224)]
    model = s2f.SpeechToFace.load(device="cpu")
    wanted = [photo, model.reconstruct(photo, align=False).image, tmp_path / "face.png"]
    for column, shown in zip(columns, wanted, strict=True):
        expected = image(shown) if isinstance(shown, Path) else np.asarray(shown, np.int16)
        np.testing.assert_array_equal(column, expected)


def test_the_sheet_shows_the_faces_of_a_batch(
    half_done: GenerateOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in/broken.jpg").write_text("text")
    (tmp_path / "out/a.png").unlink()
    assert statuses(half_done) == ["made", "made", "failed"]  # and are skipped below
    options = dataclasses.replace(half_done, sheet=tmp_path / "sheet.png")
    _, ending = ran(options)
    assert (ending.written, ending.errors) == (options.sheet, [])
    shown = image(tmp_path / "sheet.png")
    for name in ("a", "b"):
        face = image(tmp_path / f"out/{name}.png")
        corners = np.argwhere((shown[:-223, :-223] == face[0, 0]).all(-1))
        assert sum((shown[y : y + 224, x : x + 224] == face).all() for y, x in corners) == 1
    (tmp_path / "in/broken.jpg").unlink()
    _, ending = ran(options)  # of one source less
    assert ending.written == options.sheet
    anew = "is made anew: it was made of other sources, or of these before they changed"
    assert ending.remarks == [f"{options.sheet} {anew}"]
    assert ran(options)[1].kept == options.sheet
    shutil.copy(tmp_path / "out/a.png", tmp_path / "4.png")  # a face, which is no sheet
    with pytest.raises(UsageError, match="exists already, made of another source"):
        ran(dataclasses.replace(options, sheet=tmp_path / "4.png"))
    _, ending = ran(dataclasses.replace(options, size=64))
    assert ending.written == options.sheet
    assert ending.remarks == [f"{options.sheet} is made anew: it was made with size 224"]
    whole = (tmp_path / "out/b.png").read_bytes()  # a face that is there
    end = whole[-12:]  # which is whole by its end alone
    (tmp_path / "out/b.png").write_bytes(whole[: len(whole) // 2] + end)
    _, ending = ran(dataclasses.replace(half_done, size=64, sheet=tmp_path / "2.png"))
    assert ending.written and len(ending.errors) == 1
    (tmp_path / "3.png").touch()
    with pytest.raises(UsageError, match="exists already, and is no whole picture that s2f made"):
        ran(dataclasses.replace(half_done, sheet=tmp_path / "3.png"))
    (tmp_path / "file").touch()
    nowhere = dataclasses.replace(half_done, sheet=tmp_path / "file/sheet.png")
    with pytest.raises(OutputError, match="cannot be written"):
        ran(nowhere)
    monkeypatch.setattr("s2f.generate.check_writable", lambda _: None)  # until the end it can be
    _, ending = ran(nowhere)
    assert ending.written is None and isinstance(ending.errors[-1], OutputError)
    for place, why in (("sheet.txt", "does not end in"), ("out", "is a folder")):
        with pytest.raises(UsageError, match=why):
            ran(dataclasses.replace(half_done, sheet=tmp_path / place))


def test_a_morph_goes_from_one_face_to_another(tmp_path: Path) -> None:
    ends = [write_speech(tmp_path / f"{k}.wav", seed=k) for k in (0, 1)]
    target, told = tmp_path / "m.webp", []
    options = GenerateOptions(morph=(ends[0], ends[1]), frames=7, size=112, output=target)
    (ending,) = run(options, progress=lambda *what: told.append(what))
    assert ending.written == target
    assert told == [(0, 1, str(path)) for path in ends] + [(k, 7, "m.webp") for k in range(7)]
    (ending,) = run(options)
    assert (ending.written, ending.kept, ending.model) == (None, target, {})
    with Image.open(target) as movie:
        assert movie.size == (112, 112)  # of its frames, those that look the same are one
        for frame, path in ((0, ends[0]), (movie.n_frames - 1, ends[1])):
            movie.seek(frame)
            shown = np.asarray(movie.convert("RGB"), np.int16)
            ran(asked(path, output=tmp_path / "f.png", size=112, overwrite=True))
            assert np.abs(image(tmp_path / "f.png") - shown).mean() < 6  # of lossy noise


def test_a_morph_is_made_anew_if_it_would_be_another(tmp_path: Path) -> None:
    ends = [write_speech(tmp_path / f"{k}.wav", seed=k) for k in (0, 1)]
    options = GenerateOptions(morph=(ends[0], ends[1]), frames=3, output=tmp_path / "m.webp")
    ran(options)
    (ending,) = run(dataclasses.replace(options, frames=2))
    assert ending.written and ending.remarks == [
        f"{options.output} is made anew: it was made with frames 3"
    ]
    with pytest.raises(UsageError, match="exists already, made of another source"):
        ran(dataclasses.replace(options, morph=(ends[1], ends[0])))


def test_a_morph_costs_no_file(tmp_path: Path) -> None:
    speech = write_speech(tmp_path / "a.wav").rename(tmp_path / "a.webp")  # by its content a WAV
    (tmp_path / "folder.webp").mkdir()
    (tmp_path / "folder.webp/morph.webp").symlink_to(speech)
    for output, why in (
        ("a.webp", "exists already"),
        ("a.png", "does not end in .webp"),
        ("folder.webp", "is read, and would be written too"),
    ):
        overwrite = output == "folder.webp"
        with pytest.raises(UsageError, match=why):
            ran(GenerateOptions(morph=(speech,) * 2, output=tmp_path / output, overwrite=overwrite))


def tree_of(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Six recordings, of which two differ in their suffix only, and one that is none."""
    for seed, name in enumerate(("a.wav", "a.flac", "x/b.wav", "x/c.wav", "y/b.wav", "d.ogg")):
        write_speech(tmp_path / "in" / name, seed=seed)
    (tmp_path / "in/broken.wav").write_text("text")
    return tmp_path / "in"


def test_shards_at_once_killed_and_repeated_leave_what_one_run_leaves(
    recordings: Path, tmp_path: Path
) -> None:
    whole = asked(recordings, output=tmp_path / "whole", **MARKED)
    assert sorted(statuses(whole)) == ["failed"] + 6 * ["made"]
    others = dataclasses.replace(whole, output=tmp_path / "out")
    shards = {k: dataclasses.replace(others, shard=StepShard(k, 3)) for k in (1, 2, 3)}
    begun = {k: run(shards[k]) for k in (2, 1)}  # and left where they are, as if killed
    firsts = [next(one) for one in begun.values()]
    told = {k: ran(shard)[0] for k, shard in shards.items()}
    for k, outcomes in told.items():
        for item in outcomes:
            below = item.files[FACE].relative_to(tmp_path / "out").as_posix()
            assert StepShard(k, 3).has(below)
    sources = [item.source for outcomes in told.values() for item in outcomes]
    assert len(sources) == len(set(sources)) == 7
    assert {one.source for one in firsts} <= set(sources)
    (tmp_path / "out/x/c_embedding.npy").unlink()  # of one that was killed between two files
    last, ending = ran(dataclasses.replace(others, sheet=tmp_path / "sheet.png"))
    assert sorted(item.status for item in last) == ["failed", "made"] + 5 * ["skipped"]
    assert tree_of(tmp_path / "out") == tree_of(tmp_path / "whole")
    ran(dataclasses.replace(whole, sheet=tmp_path / "of the whole.png"))
    assert (tmp_path / "of the whole.png").read_bytes() == (tmp_path / "sheet.png").read_bytes()
    assert ending.remarks == []


def test_a_shard_says_nothing_of_faces_that_others_made(recordings: Path, tmp_path: Path) -> None:
    whole = asked(recordings, output=tmp_path / "out")
    ran(whole)
    (recordings / "x/b.wav").unlink()
    shards = [dataclasses.replace(whole, shard=StepShard(k, 2)) for k in (1, 2)]
    assert [ran(shard)[1].remarks for shard in shards] == [[], []]
    assert ran(whole)[1].remarks == [f"of none of these sources: 1 ({tmp_path / 'out/x/b.png'})"]


def test_each_shard_fails_where_a_source_is_not_there(tmp_path: Path) -> None:
    nowhere, one = tmp_path / "not mounted", write_speech(tmp_path / "a.wav")
    whole = asked(nowhere, one, output=tmp_path / "out")
    shards = [statuses(dataclasses.replace(whole, shard=StepShard(k, 2))) for k in (1, 2)]
    assert sorted(shards) == [["failed"], ["failed", "made"]]


def test_what_cannot_be_shared_out_is_refused() -> None:
    for options in ({"shard": StepShard(1, 2)}, {"devices": 2}):
        for ways in ({"record": 6.0}, {"sources": [STDIN]}, {"morph": (STDIN, STDIN)}):
            with pytest.raises(UsageError, match="shares files out"):
                GenerateOptions(**options, **ways)
    with pytest.raises(UsageError, match="--sheet shows all faces, and a shard makes some"):
        asked(Path("in"), shard=StepShard(1, 2), sheet=Path("sheet.png"))
    with pytest.raises(DeviceError, match="999 CUDA devices are wanted"):
        next(run(GenerateOptions(sources=[Path("in")], devices=999, device="cuda")))


def test_a_plan_of_many_is_their_names_alone(tmp_path: Path) -> None:
    n = 2000
    for k in range(n):
        path = tmp_path / f"in/{k % 20}/{k:05}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    options = asked(tmp_path / "in", output=tmp_path / "out", shard=StepShard(1, 999_999))
    ran(options)  # imports
    tracemalloc.start()
    outcomes, _ = ran(options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert outcomes == []
    assert peak < 400 * n  # with paths and outcomes it was 2,000


@pytest.mark.slow
def test_processes_leave_the_bytes_and_the_report_of_one(
    recordings: Path, tmp_path: Path, bundled: Path
) -> None:
    line = ["generate", recordings, "--model", bundled / "demo", "--device", "cpu", "--json"]
    told = []
    for name, more in (("one", []), ("two", ["--devices", 2])):
        done = Done(*line, "-o", tmp_path / name, *more, "--sheet", tmp_path / f"{name}.png")
        assert done.code == 6
        report = json.loads(done.out.replace(f"{tmp_path}/two", f"{tmp_path}/one"))
        assert report["model"].pop("devices", 1) == (2 if more else 1)
        for item in (report, *report["results"]):
            del item["seconds"]
        told.append(report)
    assert told[0] == told[1]
    assert tree_of(tmp_path / "one") == tree_of(tmp_path / "two")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.slow
def test_a_process_that_dies_is_named_and_all_end_with_the_first(
    recordings: Path, tmp_path: Path, bundled: Path
) -> None:
    options = asked(recordings, output=tmp_path / "out", model=str(bundled / "demo"), devices=2)

    def kill_the_second(done: int, total: int, what: str) -> None:
        if done == 0:
            second = max(multiprocessing.active_children(), key=lambda one: one.pid or 0)
            os.kill(second.pid or 0, signal.SIGKILL)

    *outcomes, _ = run(options, progress=kill_the_second)
    lost = [item for item in outcomes if isinstance(item.error, WorkerError)]
    assert len(outcomes) == 7 and lost == outcomes[1::2]
    assert "process 2 of 2, which had it, ended with signal 9" in str(lost[0].error)
    begun = run(dataclasses.replace(options, overwrite=True))
    next(begun)
    assert len(multiprocessing.active_children()) == 2
    begun.close()  # as Ctrl-C does
    assert multiprocessing.active_children() == []
    assert sorted(statuses(dataclasses.replace(options, devices=1))).count("made") <= 3
    assert len(list((tmp_path / "out").rglob("*.png"))) == 6
    assert not list(tmp_path.rglob(".s2f-*"))
