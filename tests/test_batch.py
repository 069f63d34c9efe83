"""Many files: which becomes which picture, and what is made, skipped and refused."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from conftest import write_photo, write_speech

from s2f import audio, layout
from s2f.console import Progress
from s2f.errors import ImageError, InputError, OutputError, UsageError
from s2f.generate import FACE, LIVE, STDIN, Outcome, Product, make_files, plan_outputs

MARKED = {"landmarks": "_landmarks", "embedding": "_embedding.npy"}


def copies(paths: Iterable[Path], tell: Progress) -> Iterator[Product | InputError]:
    """Stands for networks: a face is the bytes of its source."""
    for path in paths:
        content = path.read_bytes()
        tell(1, 2, f"within {path.name}")
        if content == b"text":
            yield ImageError(f"{path}: is not a picture", hint="give one")
        else:
            yield Product({FACE: content, "landmarks": content + b" marked", "embedding": b"[]"})


def targets(planned: list[Outcome], folder: Path) -> list[str]:
    return [str(item.files[FACE].relative_to(folder)) for item in planned]


def test_a_plan_mirrors_the_tree_and_tells_equal_names_apart(tmp_path: Path) -> None:
    write_speech(tmp_path / "in/x/a.wav")
    write_speech(tmp_path / "in/x/a.flac")
    write_speech(tmp_path / "in/b.wav")
    planned = plan_outputs([tmp_path / "in"], tmp_path / "out", audio.find_recordings)
    assert targets(planned, tmp_path / "out") == ["b.png", "x/a.flac.png", "x/a.wav.png"]


def test_a_single_file_may_name_its_picture(tmp_path: Path, speech: Path) -> None:
    (item,) = plan_outputs([speech], tmp_path / "me.png", audio.find_recordings)
    assert item.files == {FACE: tmp_path / "me.png"}


@pytest.mark.parametrize("name", ["me.png", "me.jpg", "me.JPEG", "me.webp"])
def test_the_name_of_a_picture_tells_its_format(tmp_path: Path, speech: Path, name: str) -> None:
    (item,) = plan_outputs([speech], tmp_path / name, audio.find_recordings, endings=MARKED)
    suffix = name.split(".")[1]
    assert [path.name for path in item.files.values()] == [
        name,
        f"me_landmarks.{suffix}",
        "me_embedding.npy",
    ]


def test_a_format_is_that_of_every_picture(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_speech(tmp_path / f"in/{name}.wav")
    planned = plan_outputs(
        [tmp_path / "in"], tmp_path / "out", audio.find_recordings, suffix=".webp"
    )
    assert targets(planned, tmp_path / "out") == ["a.webp", "b.webp"]


def test_a_format_that_contradicts_the_name_is_refused(tmp_path: Path, speech: Path) -> None:
    with pytest.raises(UsageError, match=r"me\.png: does not end as --format jpg"):
        plan_outputs([speech], tmp_path / "me.png", audio.find_recordings, suffix=".jpg")
    assert plan_outputs([speech], tmp_path / "me.jpeg", audio.find_recordings, suffix=".jpg")


def test_standard_input_has_a_picture_of_its_own(tmp_path: Path) -> None:
    planned = plan_outputs([STDIN], tmp_path, audio.find_recordings, endings=MARKED)
    assert targets(planned, tmp_path) == ["stdin.png"]


def test_one_picture_for_two_files_is_refused(tmp_path: Path, speech: Path) -> None:
    with pytest.raises(UsageError, match="is one picture"):
        plan_outputs([speech, tmp_path / "other.wav"], tmp_path / "me.png", audio.find_recordings)


def test_two_files_never_become_one_picture(tmp_path: Path) -> None:
    for name in ("x/a.wav", "y/a.wav"):
        write_speech(tmp_path / name)
    with pytest.raises(UsageError, match=r"would be made of both .*x/a\.wav and .*y/a\.wav"):
        plan_outputs(
            [tmp_path / "x/a.wav", tmp_path / "y/a.wav"], tmp_path / "out", audio.find_recordings
        )


def test_a_picture_and_an_overlay_never_become_one(tmp_path: Path) -> None:
    for name in ("a.wav", "a_landmarks.wav"):
        write_speech(tmp_path / name)
    with pytest.raises(UsageError, match=r"a_landmarks\.png: would be made of both"):
        plan_outputs([tmp_path], tmp_path / "out", audio.find_recordings, endings=MARKED)


def test_a_file_that_is_named_twice_is_made_once(tmp_path: Path, speech: Path) -> None:
    (tmp_path / "x").mkdir()
    sources = [speech, speech, speech.parent / "x" / ".." / speech.name]
    assert len(plan_outputs(sources, tmp_path / "out", audio.find_recordings)) == 1
    assert len(plan_outputs([tmp_path, speech], tmp_path / "out", audio.find_recordings)) == 1
    (tmp_path / "link.wav").symlink_to(speech)  # which is a file of its own
    assert len(plan_outputs([tmp_path], tmp_path / "out", audio.find_recordings)) == 2


def test_what_an_earlier_run_wrote_is_not_read(tmp_path: Path) -> None:
    write_photo(tmp_path / "in/a.jpg")
    args = ([tmp_path / "in"], tmp_path / "in/out", layout.find_photos)
    sheet = tmp_path / "in/sheet.png"
    list(make_files(copies, plan_outputs(*args, sheet=sheet)))
    write_photo(sheet)
    assert targets(plan_outputs(*args, sheet=sheet), tmp_path / "in/out") == ["a.png"]


def test_a_place_that_cannot_be_written_costs_its_own_files(tmp_path: Path) -> None:
    for name in ("a/x", "b/x"):
        write_photo(tmp_path / f"in/{name}.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").touch()  # where a folder is needed
    planned = plan_outputs([tmp_path / "in"], tmp_path / "out", layout.find_photos)
    outcomes = list(make_files(copies, planned))
    assert [item.status for item in outcomes] == ["failed", "made"]
    assert isinstance(outcomes[0].error, OutputError)


@pytest.mark.parametrize("name", ["face.gif", "there"])
def test_an_output_that_is_neither_picture_nor_folder_is_refused(
    tmp_path: Path, speech: Path, name: str
) -> None:
    (tmp_path / "there").touch()
    with pytest.raises(UsageError, match=r"is neither a \.png, \.jpg or \.webp file"):
        plan_outputs([speech], tmp_path / name, audio.find_recordings)


def test_a_batch_goes_on_past_what_is_broken(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_text("text")
    write_photo(tmp_path / "c.jpg")
    planned = plan_outputs([tmp_path, tmp_path / "d.jpg"], tmp_path / "out", layout.find_photos)
    outcomes = list(make_files(copies, planned))
    assert [item.status for item in outcomes] == ["made", "failed", "made", "failed"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]


def test_a_batch_skips_what_is_there_and_newer(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_photo(tmp_path / f"in/{name}.jpg")
    planned = plan_outputs([tmp_path / "in"], tmp_path / "out", layout.find_photos)
    list(make_files(copies, planned))
    (tmp_path / "out/b.png").unlink()
    assert [item.status for item in make_files(copies, planned)] == ["skipped", "made"]


def test_a_picture_that_is_older_than_its_source_is_not_overwritten(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_photo(tmp_path / f"in/{name}.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").write_bytes(b"mine")
    os.utime(tmp_path / "out/a.png", (0, 0))
    planned = plan_outputs([tmp_path / "in"], tmp_path / "out", layout.find_photos)
    assert [item.status for item in make_files(copies, planned)] == ["failed", "made"]
    assert (tmp_path / "out/a.png").read_bytes() == b"mine"
    again = list(make_files(copies, planned, overwrite=True))
    assert [item.status for item in again] == ["made", "made"]


def test_other_files_lie_beside_the_picture(tmp_path: Path, photo: Path) -> None:
    planned = plan_outputs([photo], tmp_path / "me.png", layout.find_photos, endings=MARKED)
    (made,) = make_files(copies, planned)
    assert made.files["landmarks"] == tmp_path / "me_landmarks.png"
    assert made.files["landmarks"].read_bytes() == photo.read_bytes() + b" marked"
    assert made.files["embedding"].read_bytes() == b"[]"


def test_what_is_missing_beside_a_picture_is_made(tmp_path: Path) -> None:
    write_photo(tmp_path / "in/a.jpg")
    list(make_files(copies, plan_outputs([tmp_path / "in"], tmp_path / "out", layout.find_photos)))
    (tmp_path / "out/a.png").write_bytes(b"mine")
    planned = plan_outputs([tmp_path / "in"], tmp_path / "out", layout.find_photos, endings=MARKED)
    assert [item.status for item in make_files(copies, planned)] == ["made"]
    assert (tmp_path / "out/a.png").read_bytes() == b"mine"  # it is up to date
    assert (tmp_path / "out/a_embedding.npy").read_bytes() == b"[]"
    assert [item.status for item in make_files(copies, planned)] == ["skipped"]
    assert [item.status for item in make_files(copies, planned, skip=False)] == ["failed"]


def test_a_sheet_never_becomes_a_picture(tmp_path: Path, photo: Path) -> None:
    sheet = tmp_path / "out/photo.png"
    with pytest.raises(UsageError, match=r"photo\.png: would be made of both all of them and"):
        plan_outputs([photo], tmp_path / "out", layout.find_photos, sheet=sheet)


@pytest.mark.parametrize("how", ["itself", "link", "folder"])
def test_nothing_is_written_in_the_place_of_what_is_read(tmp_path: Path, how: str) -> None:
    write_photo(tmp_path / "in/a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").symlink_to(tmp_path / "in/a.png")
    source = tmp_path / "in" if how == "folder" else tmp_path / "in/a.png"
    output = {"itself": source, "link": tmp_path / "out/a.png", "folder": tmp_path / "in"}[how]
    with pytest.raises(UsageError, match=r"a\.png: is read, and would be written too"):
        plan_outputs([source], output, layout.find_photos)


def test_nothing_is_written_in_the_place_of_another_input(tmp_path: Path, photo: Path) -> None:
    other = write_photo(tmp_path / "photo_compare.png")
    with pytest.raises(UsageError, match=r"photo_compare\.png: is read"):
        plan_outputs(
            [photo],
            tmp_path / "photo.png",
            layout.find_photos,
            endings={"compare": "_compare"},
            inputs=[other],
        )
    with pytest.raises(UsageError, match=r"photo_compare\.png: is read"):
        plan_outputs([photo], tmp_path / "x.png", layout.find_photos, sheet=other, inputs=[other])


@pytest.mark.parametrize("source", LIVE)
def test_what_is_no_file_is_not_looked_for(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(source).mkdir()

    def never(paths: object) -> list[Path]:
        raise AssertionError("a file was looked for")

    (item,) = plan_outputs([source], tmp_path / "a.png", never)
    assert item.files == {FACE: tmp_path / "a.png"}
    (tmp_path / "a.png").touch()
    refused = next(make_files(copies, [item]))
    assert refused.error is not None and "exists already" in refused.error.message


def test_nothing_is_asked_for_where_all_is_there(tmp_path: Path, photo: Path) -> None:
    (tmp_path / "out.png").touch()

    def never(paths: Iterable[Path], tell: Progress) -> Iterator[Product | InputError]:
        raise AssertionError("networks were loaded")

    planned = plan_outputs([photo], tmp_path / "out.png", layout.find_photos)
    (refused,) = make_files(never, planned, skip=False)
    assert refused.error is not None and "exists already" in refused.error.message


def test_progress_counts_sources_or_what_happens_in_the_only_one(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []

    def tell(done: int, total: int, what: str) -> None:
        told.append((done, total, what))

    for name in ("a", "b"):
        write_photo(tmp_path / f"in/{name}.jpg")
    list(
        make_files(
            copies, plan_outputs([tmp_path / "in"], tmp_path, layout.find_photos), progress=tell
        )
    )
    assert [t for t in told if "within" not in t[2]] == [
        (0, 2, "a.jpg"),
        (1, 2, "b.jpg"),
        (2, 2, "done"),
    ]
    assert [t for t in told if "within" in t[2]] == [(0, 2, "within a.jpg"), (1, 2, "within b.jpg")]
    told.clear()
    one = plan_outputs([tmp_path / "in/a.jpg"], tmp_path / "x.png", layout.find_photos)
    list(make_files(copies, one, progress=tell))
    assert (1, 2, "within a.jpg") in told


def test_an_overlong_name_is_refused_as_any_missing_file(tmp_path: Path) -> None:
    (item,) = plan_outputs([Path("a" * 300 + ".wav")], tmp_path, audio.find_recordings)
    assert item.error is not None and "does not exist" in item.error.message
