"""What a drawing is asked for, which source becomes which files, what is made, skipped, refused."""

import dataclasses
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_photo, write_speech
from PIL import Image

import s2f
from s2f import generate
from s2f.errors import ImageError, OutputError, UsageError
from s2f.generate import FACE, STDIN, Ending, GenerateOptions, Outcome, plan_outputs, run

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
    assert ending.model and ending.model.model.name == "demo" and ending.seconds > made.seconds
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
    (tmp_path / "out/a.png").write_bytes(b"mine")
    return options


def test_a_batch_makes_what_is_missing_and_loads_no_model_if_nothing_is(
    half_done: GenerateOptions, tmp_path: Path, monkeypatch: Patch
) -> None:
    assert statuses(half_done) == ["skipped", "made"]
    beside = dataclasses.replace(half_done, **MARKED)
    assert statuses(beside) == ["made", "made"]
    assert (tmp_path / "out/a.png").read_bytes() == b"mine"  # it is up to date
    assert np.load(tmp_path / "out/a_embedding.npy").shape == (8,)
    monkeypatch.delattr(generate, "_load")
    outcomes, ending = ran(beside)
    assert [item.status for item in outcomes] == ["skipped", "skipped"]
    assert ending.model is None


def test_what_is_older_than_its_source_stays(half_done: GenerateOptions, tmp_path: Path) -> None:
    os.utime(tmp_path / "out/a.png", (0, 0))
    assert statuses(half_done) == ["failed", "made"]
    assert (tmp_path / "out/a.png").read_bytes() == b"mine"
    assert statuses(dataclasses.replace(half_done, overwrite=True)) == ["made", "made"]
    assert image(tmp_path / "out/a.png").shape == (224, 224, 3)


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
        assert Path("stdin.png").read_bytes() == Path("file.png").read_bytes()
    assert statuses(asked(STDIN)) == ["failed"]  # it is there
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="standard input is closed"):
        ran(asked(STDIN, output=tmp_path / "b.png"))


def test_compare_shows_photo_and_both_faces(speech: Path, photo: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("text")
    options = asked(speech, output=tmp_path / "face.png", compare=bad, align=False)
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        ran(options)
    assert not (tmp_path / "face.png").exists()
    assert statuses(dataclasses.replace(options, compare=photo)) == ["made"]
    sheet = image(tmp_path / "face_compare.png")
    gap = (sheet.shape[1] - 3 * 224) // 4
    columns = [sheet[gap : gap + 224, x : x + 224] for x in range(gap, 3 * 224, gap + 224)]
    model = s2f.SpeechToFace.load(device="cpu")
    wanted = [photo, model.reconstruct(photo, align=False).image, tmp_path / "face.png"]
    for column, shown in zip(columns, wanted, strict=True):
        expected = image(shown) if isinstance(shown, Path) else np.asarray(shown, np.int16)
        np.testing.assert_array_equal(column, expected)


def test_the_sheet_shows_the_faces_of_a_batch(half_done: GenerateOptions, tmp_path: Path) -> None:
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
    with pytest.raises(UsageError, match="exists already"):
        ran(options)
    (tmp_path / "out/b.png").write_text("text")  # a face that is there, and is none
    _, ending = ran(dataclasses.replace(half_done, sheet=tmp_path / "2.png"))
    assert ending.written and len(ending.errors) == 1
    (tmp_path / "file").touch()
    _, ending = ran(dataclasses.replace(half_done, sheet=tmp_path / "file/sheet.png"))
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
    with Image.open(target) as movie:
        assert movie.size == (112, 112)  # of its frames, those that look the same are one
        for frame, path in ((0, ends[0]), (movie.n_frames - 1, ends[1])):
            movie.seek(frame)
            shown = np.asarray(movie.convert("RGB"), np.int16)
            ran(asked(path, output=tmp_path / "f.png", size=112, overwrite=True))
            assert np.abs(image(tmp_path / "f.png") - shown).mean() < 6  # of lossy noise


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
