"""Names: ASCII, nothing lost, one for all spellings; and folders renamed without losing a file."""

import os
import string
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import contents, grow

from s2f.errors import DatasetError, OutputError
from s2f.names import MAX_BYTES, bare, key, plain, rename_identities

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


def spelled(name: str) -> str | None:
    try:
        return plain(name)
    except DatasetError:
        return None


@given(NAMES)
def test_a_plain_name_is_ascii_that_any_file_system_takes(name: str) -> None:
    new = spelled(name)
    if new is not None:
        assert new.isascii()
        assert new.isprintable()
        assert not set(new) & set('/\\:*?"<>| ')
        assert new not in ("", "..") and 0 < len(new) <= MAX_BYTES


@given(NAMES)
def test_a_plain_name_is_its_own_plain_name(name: str) -> None:
    new = spelled(name)
    if new is not None:
        assert plain(new) == new


@given(NAMES)
def test_composed_and_decomposed_accents_are_one_name(name: str) -> None:
    forms = {spelled(unicodedata.normalize(form, name)) for form in ("NFC", "NFD")}
    assert len(forms) == 1


def test_decomposed_syllables_are_composed_first() -> None:
    """Hangul is stored in single letters by some systems; romanised, 한국 is HanGug."""
    assert plain(unicodedata.normalize("NFD", "한국")) == plain("한국") == "HanGug"


@given(NAMES)
def test_no_letter_or_digit_is_deleted(name: str) -> None:
    """As many characters come out as letters and digits of any script go in, or more."""
    new = spelled(name)
    if new is not None:
        letters = [
            c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c)[0] in "LN"
        ]
        assert len(new) >= len([c for c in letters if c != "\N{ARABIC TATWEEL}"])


@given(st.text(string.ascii_letters + string.digits + "._-'`,()&+", min_size=1, max_size=60))
def test_ascii_stays_as_it_is(name: str) -> None:
    assert plain(name) == name


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("Žydrūnas_Savickas", "Zydrunas_Savickas"),
        ("A.J._Buckley", "A.J._Buckley"),
        ("Łukasz Żal", "Lukasz_Zal"),
        ("Ελένη", "Eleni"),
        ("سارة", "sarh"),
        ("\u202eAnn", "Ann"),
        ("a\nb\tc", "a_b_c"),
        ("a\N{FULLWIDTH SOLIDUS}b", "a_b"),
        ("\N{FULLWIDTH FULL STOP}" * 2, "_.."),
        ("…etc", "_...etc"),
        ("-rf", "-rf"),
    ],
)
def test_names_are_transliterated(name: str, new: str) -> None:
    """Expected values by hand, from the usual romanisations."""
    assert plain(name) == new


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Jos\udce9", "not text"),
        ("\u200b", "nothing"),
        ("a\ue000", "without an ASCII form"),
        ("👩" * 60, "over 255"),
    ],
)
def test_a_name_without_a_plain_form_is_refused(name: str, why: str) -> None:
    with pytest.raises(DatasetError, match=why):
        plain(name)


@pytest.mark.parametrize(
    ("name", "new"), [("Carlos_Sainz,_Jr.", "Carlos_Sainz_Jr."), ("..", "_.."), (",.Ann", "_.Ann")]
)
def test_a_bare_name_is_a_folder_that_is_seen(name: str, new: str) -> None:
    assert bare(name) == new


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Carlos_Sainz,_Jr.", "Carlos_Sainz_Jr."),
        ("Z\u030cydru\u0304nas", "zydrunas"),
        ("A.J. Buckley", "A.J._Buckley"),
    ],
)
def test_spellings_of_one_name_have_one_key(one: str, other: str) -> None:
    assert key(one) == key(other)


def test_a_name_without_a_plain_form_is_equal_to_itself_only() -> None:
    assert key("Jos\udce9") == key("Jos\udce9") != key("Jos\udce8")
    with pytest.raises(DatasetError, match="nothing but commas"):
        bare(",,")
    assert key(",,") != key(",")


NFC, NFD = "Ž", "Z\u030c"


def folders(tree: Path) -> list[str]:
    return sorted(path.name for path in tree.iterdir())


def test_folders_get_plain_names_and_keep_their_files(tmp_path: Path) -> None:
    grow(tmp_path, [f"{NFC}ydrūnas/1.jpg", "Ann/1.jpg", "王力宏/x/1.jpg", ".hidden/é", "é.txt"])
    report = rename_identities(tmp_path)
    assert folders(tmp_path) == [".hidden", "Ann", "WangLiHong", "Zydrunas", "é.txt"]
    assert contents(tmp_path / "WangLiHong") == {"x/1.jpg": "王力宏/x/1.jpg".encode()}
    assert [(item.old, item.new) for item in report.renamed] == [
        ((f"{NFC}ydrūnas",), "Zydrunas"),
        (("王力宏",), "WangLiHong"),
    ]
    assert (report.unchanged, report.failed) == (1, ())


def test_a_dry_run_says_the_same_and_changes_nothing(tmp_path: Path) -> None:
    grow(tmp_path, ["é/1", f"{NFC}/1", f"{NFD}/2"])
    before = contents(tmp_path)
    planned = rename_identities(tmp_path, merge=True, dry_run=True)
    assert contents(tmp_path) == before
    done = rename_identities(tmp_path, merge=True)
    assert (planned.renamed, planned.merged) == (done.renamed, done.merged)


@pytest.mark.parametrize("pair", [(NFC, NFD), ("É", "e")])
def test_collisions_are_reported_and_left_alone(pair: tuple[str, str], tmp_path: Path) -> None:
    grow(tmp_path, [f"{name}/{k}" for k, name in enumerate(pair)])
    before = contents(tmp_path)
    report = rename_identities(tmp_path)
    assert contents(tmp_path) == before
    (error,) = report.failed
    assert all(repr(name) in error.message for name in pair)


@pytest.mark.parametrize("pair", [(NFC, NFD), (NFC, "Z"), ("Ann", "ann"), ("É", "e")])
def test_collisions_are_merged_when_asked_for(pair: tuple[str, str], tmp_path: Path) -> None:
    grow(tmp_path, [f"{name}/x/{k}" for k, name in enumerate(pair)])
    grow(tmp_path, [f"{name}/.same" for name in pair], b"same")
    for name in pair:
        (tmp_path / name / "link").symlink_to("nowhere")
    report = rename_identities(tmp_path, merge=True)
    (item,) = report.merged
    assert folders(tmp_path) == [item.new]
    assert (tmp_path / item.new / "link").is_symlink()
    assert contents(tmp_path / item.new) == {
        ".same": b"same",
        "x/0": os.fsencode(f"{pair[0]}/x/0"),
        "x/1": os.fsencode(f"{pair[1]}/x/1"),
    }


@pytest.mark.parametrize(
    "paths", [["é/1", "e/1"], ["é/1/x", "e/1"], ["é/1", "e/1/x"]], ids=["files", "folder", "file"]
)
def test_different_files_of_one_name_are_not_merged(paths: list[str], tmp_path: Path) -> None:
    grow(tmp_path, [*paths, "ö/1", "o/2"])
    report = rename_identities(tmp_path, merge=True)
    assert {path: os.fsencode(path) for path in paths}.items() <= contents(tmp_path).items()
    assert [item.new for item in report.merged] == ["o"]
    (error,) = report.failed
    assert "'1'" in error.message


def test_a_folder_that_is_a_link_is_not_merged(tmp_path: Path) -> None:
    grow(tmp_path, ["tree/e/1", "else/2"])
    (tmp_path / "tree/é").symlink_to(tmp_path / "else")
    report = rename_identities(tmp_path / "tree", merge=True)
    assert (tmp_path / "else/2").is_file()
    assert "links" in report.failed[0].message


def test_a_name_that_a_file_has_is_not_taken(tmp_path: Path) -> None:
    grow(tmp_path, ["é/1", "e"])
    report = rename_identities(tmp_path, merge=True)
    assert contents(tmp_path) == {"e": b"e", "é/1": "é/1".encode()}
    assert "no folder" in report.failed[0].message


def test_a_name_without_a_plain_form_is_reported(tmp_path: Path) -> None:
    grow(tmp_path, ["\udce9/1", "\u200b/1", "é/1"])
    report = rename_identities(tmp_path)
    assert len(report.failed) == 2
    assert all(str(tmp_path) in error.message for error in report.failed)
    assert "e/1" in contents(tmp_path)


def test_a_tree_of_splits_is_renamed_below_them(tmp_path: Path) -> None:
    grow(tmp_path, ["train/é/1", "val/é/1"])
    rename_identities(tmp_path)
    assert set(contents(tmp_path)) == {"train/e/1", "val/e/1"}


TREES = st.dictionaries(
    st.from_regex("[aAéÉežzß王](\u0301|\u030c)?[,_]?", fullmatch=True),
    st.dictionaries(st.sampled_from(["1", "2", "x/1", "x/2"]), st.binary(max_size=1), min_size=1),
    min_size=1,
    max_size=6,
)


def by_person(root: Path) -> set[tuple[str, str, bytes]]:
    """Whose file, its name, its bytes: what no renaming changes."""
    return {
        (plain(path.split("/")[0]).casefold(), path.split("/", 1)[1], data)
        for path, data in contents(root).items()
    }


@given(TREES, st.booleans())
def test_no_file_is_ever_lost(tree: dict[str, dict[str, bytes]], merge: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for folder, inside in tree.items():
            for path, data in inside.items():
                grow(root, [f"{folder}/{path}"], data)
        before = by_person(root)
        report = rename_identities(root, merge=merge)
        assert by_person(root) == before
        assert report.failed or all(path.name.isascii() for path in root.iterdir())
        again = rename_identities(root, merge=merge)
        assert (again.renamed, again.merged, len(again.failed)) == ((), (), len(report.failed))


@pytest.mark.parametrize("kill_at", range(12))
def test_a_killed_run_is_finished_by_the_same_run(
    kill_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each change of the tree in turn: the end is that of an undisturbed run."""
    paths = [f"{NFC}/1", f"{NFC}/same", f"{NFD}/2", f"{NFD}/x/3", f"{NFD}/same", "é/1", "É/2"]
    for tree in ("killed", "whole"):
        grow(tmp_path / tree, [path for path in paths if not path.endswith("same")])
        grow(tmp_path / tree, [path for path in paths if path.endswith("same")], b"same")
    rename_identities(tmp_path / "whole", merge=True)
    left = kill_at

    class KillError(BaseException):
        pass

    def dying(method: str) -> None:
        real = getattr(Path, method)

        def change(path: Path, *args: object, **options: object) -> object:
            nonlocal left
            if left == 0:
                raise KillError
            left -= 1
            return real(path, *args, **options)

        monkeypatch.setattr(Path, method, change)

    for method in ("replace", "unlink", "rmdir"):
        dying(method)
    with pytest.raises(KillError):
        rename_identities(tmp_path / "killed", merge=True)
        raise KillError
    monkeypatch.undo()
    rename_identities(tmp_path / "killed", merge=True)
    assert folders(tmp_path / "killed") == folders(tmp_path / "whole")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_tree_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    grow(tmp_path, ["é/1"])
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        rename_identities(tmp_path)
