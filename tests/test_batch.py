"""Many files: which becomes which picture, and what is made, skipped and refused."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import write_photo, write_speech

from s2f import audio, layout
from s2f.batch import plan, run
from s2f.errors import ImageError, UsageError


@dataclass(frozen=True)
class Copy:
    """The picture of a file: its own bytes. Stands for a face, which needs networks."""

    content: bytes
    clips: int = 0

    def save(self, path: Path, *, size: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.content)

    def save_overlay(self, path: Path, *, size: int) -> None:
        path.write_bytes(self.content + b" marked")


def copy(path: Path) -> Copy:
    if path.read_bytes() == b"text":
        raise ImageError(f"{path}: is not a picture", hint="give one")
    return Copy(path.read_bytes())


def test_a_plan_mirrors_the_tree_and_tells_equal_names_apart(tmp_path: Path) -> None:
    write_speech(tmp_path / "in/x/a.wav")
    write_speech(tmp_path / "in/x/a.flac")
    write_speech(tmp_path / "in/b.wav")
    planned = plan([tmp_path / "in"], tmp_path / "out", audio.find)
    targets = [item.target and item.target.relative_to(tmp_path / "out") for item in planned]
    assert targets == [Path("b.png"), Path("x/a.flac.png"), Path("x/a.wav.png")]


def test_a_single_file_may_name_its_picture(tmp_path: Path, speech: Path) -> None:
    (item,) = plan([speech], tmp_path / "me.png", audio.find)
    assert item.target == tmp_path / "me.png"


def test_one_picture_for_two_files_is_refused(tmp_path: Path, speech: Path) -> None:
    with pytest.raises(UsageError, match="is one picture, but there are 2"):
        plan([speech, tmp_path / "other.wav"], tmp_path / "me.png", audio.find)


def test_two_files_never_become_one_picture(tmp_path: Path) -> None:
    for name in ("x/a.wav", "y/a.wav"):
        write_speech(tmp_path / name)
    with pytest.raises(UsageError, match=r"would be made of both .*x/a\.wav and .*y/a\.wav"):
        plan([tmp_path / "x/a.wav", tmp_path / "y/a.wav"], tmp_path / "out", audio.find)


def test_a_picture_and_an_overlay_never_become_one(tmp_path: Path) -> None:
    for name in ("a.wav", "a_landmarks.wav"):
        write_speech(tmp_path / name)
    with pytest.raises(UsageError, match=r"a_landmarks\.png: would be made of both"):
        plan([tmp_path], tmp_path / "out", audio.find)


def test_a_file_that_is_named_twice_is_made_once(tmp_path: Path, speech: Path) -> None:
    assert len(plan([speech, speech], tmp_path / "out", audio.find)) == 1


@pytest.mark.parametrize("name", ["face.jpg", "there"])
def test_an_output_that_is_neither_png_nor_folder_is_refused(
    tmp_path: Path, speech: Path, name: str
) -> None:
    (tmp_path / "there").touch()
    with pytest.raises(UsageError, match=r"is neither a \.png file nor a folder"):
        plan([speech], tmp_path / name, audio.find)


def test_a_batch_goes_on_past_what_is_broken(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_text("text")
    write_photo(tmp_path / "c.jpg")
    planned = plan([tmp_path, tmp_path / "d.jpg"], tmp_path / "out", layout.find_photos)
    outcomes = list(run(copy, planned))
    assert [item.status for item in outcomes] == ["made", "failed", "made", "failed"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]


def test_a_batch_skips_what_is_there_and_newer(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_photo(tmp_path / f"in/{name}.jpg")
    planned = plan([tmp_path / "in"], tmp_path / "out", layout.find_photos)
    list(run(copy, planned))
    (tmp_path / "out/b.png").unlink()
    assert [item.status for item in run(copy, planned)] == ["skipped", "made"]


def test_a_picture_that_is_older_than_its_source_is_not_overwritten(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_photo(tmp_path / f"in/{name}.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").write_bytes(b"mine")
    os.utime(tmp_path / "out/a.png", (0, 0))
    planned = plan([tmp_path / "in"], tmp_path / "out", layout.find_photos)
    assert [item.status for item in run(copy, planned)] == ["failed", "made"]
    assert (tmp_path / "out/a.png").read_bytes() == b"mine"
    again = list(run(copy, planned, overwrite=True))
    assert [item.status for item in again] == ["made", "made"]


def test_an_overlay_lies_beside_its_picture(tmp_path: Path, photo: Path) -> None:
    (made,) = run(copy, plan([photo], tmp_path / "me.png", layout.find_photos), overlay=True)
    assert made.overlay == tmp_path / "me_landmarks.png"
    assert made.overlay.read_bytes() == photo.read_bytes() + b" marked"


def test_an_overlong_name_is_refused_as_any_missing_file(tmp_path: Path) -> None:
    (item,) = plan([Path("a" * 300 + ".wav")], tmp_path, audio.find)
    assert item.error is not None and "does not exist" in item.error.message
