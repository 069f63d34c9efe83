"""Names: ASCII, nothing lost, one for all spellings; and folders renamed without losing a file."""

import contextlib
import functools
import itertools
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

NFC, NFD = "Ž", "Z\u030c"


def spelled(name):
    with contextlib.suppress(DatasetError):
        return plain(name)


ASCII = st.text(string.ascii_letters + string.digits + "._-'`,()&+", min_size=1, max_size=60)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), ASCII)
def test_a_plain_name_is_one_that_any_file_system_takes_and_loses_nothing(name, stays):
    """As many characters come out as letters and digits of any script go in, or more."""
    assert plain(stays) == stays
    new = spelled(name)
    composed, decomposed = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    assert spelled(composed) == spelled(decomposed)
    if new is not None:
        assert new.isascii() and new.isprintable() and not set(new) & set('/\\:*?"<>| ')
        assert new != ".." and 0 < len(new) <= MAX_BYTES and plain(new) == new
        letters = [c for c in composed if unicodedata.category(c)[0] in "LN"]
        assert len(new) >= len([c for c in letters if c != "\N{ARABIC TATWEEL}"])


@pytest.mark.parametrize(
    ("name", "new"),
    [
        *(("Žydrūnas_Savickas", "Zydrunas_Savickas"), ("A.J._Buckley", "A.J._Buckley")),
        *(("Łukasz Żal", "Lukasz_Zal"), ("Ελένη", "Eleni"), ("سارة", "sarh")),
        (unicodedata.normalize("NFD", "한국"), "HanGug"),  # stored in single letters
        *(("\u202eAnn", "Ann"), ("a\nb\tc", "a_b_c"), ("a\N{FULLWIDTH SOLIDUS}b", "a_b")),
        *(("\N{FULLWIDTH FULL STOP}" * 2, "_.."), ("…etc", "_...etc"), ("-rf", "-rf")),
    ],
)
def test_names_are_transliterated(name, new):
    """Expected values by hand, from the usual romanisations."""
    assert plain(name) == new


def test_a_name_without_a_bare_form_is_refused_and_equal_to_itself_only():
    for name, why in (
        *(("Jos\udce9", "not text"), ("\u200b", "nothing"), ("a\ue000", "without an ASCII form")),
        *(("👩" * 60, "over 255"), (",,", "nothing but commas")),
    ):
        with pytest.raises(DatasetError, match=why):
            bare(name)
        assert key(name) == key(name) != key(name + "\udce8")


def test_spellings_of_one_name_have_one_key_and_are_seen():
    for name, new, other in (
        ("Carlos_Sainz,_Jr.", "Carlos_Sainz_Jr.", "Carlos_Sainz_Jr."),
        ("Z\u030cydru\u0304nas", "Zydrunas", "zydrunas"),
        *(("A.J. Buckley", "A.J._Buckley", "A.J._Buckley"), (",.Ann", "_.Ann", "_.ann")),
        ("..", "_..", "_.."),
    ):
        assert bare(name) == new and key(name) == key(other)


def folders(tree):
    return sorted(path.name for path in tree.iterdir())


def test_folders_get_plain_names_and_keep_their_files(tmp_path):
    grow(tmp_path, [f"{NFC}ydrūnas/1.jpg", "Ann/1.jpg", "王力宏/x/1.jpg", ".hidden/é", "é.txt"])
    report = rename_identities(tmp_path)
    assert folders(tmp_path) == [".hidden", "Ann", "WangLiHong", "Zydrunas", "é.txt"]
    assert contents(tmp_path / "WangLiHong") == {"x/1.jpg": "王力宏/x/1.jpg".encode()}
    renamed = [((f"{NFC}ydrūnas",), "Zydrunas"), (("王力宏",), "WangLiHong")]
    assert [(item.old, item.new) for item in report.renamed] == renamed
    assert (report.unchanged, report.failed) == (1, ())


@pytest.mark.parametrize("pair", [(NFC, NFD), (NFC, "Z"), ("Ann", "ann"), ("É", "e")])
def test_collisions_are_reported_and_merged_when_asked_for(pair, tmp_path):
    grow(tmp_path, [f"{name}/x/{k}" for k, name in enumerate(pair)])
    grow(tmp_path, [f"{name}/.same" for name in pair], b"same")
    for name in pair:
        (tmp_path / name / "link").symlink_to("nowhere")
    before = contents(tmp_path)
    (error,) = rename_identities(tmp_path).failed
    assert all(repr(name) in error.message for name in pair)
    planned = rename_identities(tmp_path, merge=True, dry_run=True)
    assert contents(tmp_path) == before
    (item,) = rename_identities(tmp_path, merge=True).merged
    assert planned.merged == (item,)
    assert folders(tmp_path) == [item.new] and (tmp_path / item.new / "link").is_symlink()
    files = {f"x/{k}": os.fsencode(f"{name}/x/{k}") for k, name in enumerate(pair)}
    assert contents(tmp_path / item.new) == {".same": b"same"} | files


@pytest.mark.parametrize(
    ("paths", "why"),
    [
        *((paths, "different files '1'") for paths in (["é/1", "e/1"], ["é/1/x", "e/1"])),
        *((["é/1", "e/1/x"], "different files '1'"), (["é/1", "e"], "no folder")),
        *((["\udce9/1"], "not text"), (["\u200b/1"], "leaves nothing")),
    ],
)
def test_what_cannot_get_its_name_stays_and_is_named(paths, why, tmp_path):
    grow(tmp_path, [*paths, "ö/1", "o/2"])
    report = rename_identities(tmp_path, merge=True)
    assert {path: os.fsencode(path) for path in paths}.items() <= contents(tmp_path).items()
    assert [item.new for item in report.merged] == ["o"]
    (error,) = report.failed
    assert str(tmp_path) in error.message and why in error.message


def test_folders_that_are_no_people_are_not_counted_as_plain(tmp_path):
    grow(tmp_path, ["wav/é/1", "ann/1"])
    with pytest.raises(DatasetError, match="'wav' are parts of a data set"):
        rename_identities(tmp_path)
    assert set(contents(tmp_path)) == {"wav/é/1", "ann/1"}


def test_links_are_not_merged_and_splits_are_renamed_below(tmp_path):
    grow(tmp_path, ["tree/e/1", "else/2", "split/train/é/1", "split/val/é/1"])
    (tmp_path / "tree/é").symlink_to(tmp_path / "else")
    report = rename_identities(tmp_path / "tree", merge=True)
    assert (tmp_path / "else/2").is_file() and "links" in report.failed[0].message
    rename_identities(tmp_path / "split")
    assert set(contents(tmp_path / "split")) == {"train/e/1", "val/e/1"}


FILES = st.sampled_from(["1", "2", "x/1", "x/2"])
INSIDE = st.dictionaries(FILES, st.binary(max_size=1), min_size=1)
PEOPLE = st.from_regex("[aAéÉežzß王](\u0301|\u030c)?[,_]?", fullmatch=True)


def by_person(root):
    """Whose file, its name, its bytes: what no renaming changes."""
    files = [(*path.split("/", 1), data) for path, data in contents(root).items()]
    return {(plain(who).casefold(), name, data) for who, name, data in files}


@given(st.dictionaries(PEOPLE, INSIDE, min_size=1, max_size=6), st.booleans())
def test_no_file_is_ever_lost(tree, merge):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for folder, path, data in ((who, *file) for who in tree for file in tree[who].items()):
            grow(root, [f"{folder}/{path}"], data)
        before = by_person(root)
        report = rename_identities(root, merge=merge)
        assert by_person(root) == before
        assert report.failed or all(path.name.isascii() for path in root.iterdir())
        again = rename_identities(root, merge=merge)
        assert (again.renamed, again.merged, len(again.failed)) == ((), (), len(report.failed))


@pytest.mark.parametrize("kill_at", range(12))
def test_a_killed_run_is_finished_by_the_same_run(kill_at, tmp_path, monkeypatch):
    """Killed before each change of the tree in turn: the end is that of an undisturbed run."""
    paths = [f"{NFC}/1", f"{NFD}/2", f"{NFD}/x/3", "é/1", "É/2"]
    for tree in ("killed", "whole"):
        grow(tmp_path / tree, paths)
        grow(tmp_path / tree, [f"{NFC}/same", f"{NFD}/same"], b"same")
    rename_identities(tmp_path / "whole", merge=True)
    changes = itertools.count()

    def change_or_die(path, change, *args, **options):
        if next(changes) >= kill_at:
            raise KeyboardInterrupt
        return change(path, *args, **options)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        for method in ("replace", "unlink", "rmdir"):
            change = functools.partialmethod(change_or_die, getattr(Path, method))
            patch.setattr(Path, method, change)
        rename_identities(tmp_path / "killed", merge=True)
    rename_identities(tmp_path / "killed", merge=True)
    assert folders(tmp_path / "killed") == folders(tmp_path / "whole")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_tree_that_cannot_be_read_or_written_is_named(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Permission denied", "é/1")

    grow(tmp_path, ["é/1", "e/1"], b"same")
    with monkeypatch.context() as patch:
        patch.setattr("filecmp.open", refuse, raising=False)
        (error,) = rename_identities(tmp_path, merge=True).failed
    assert "é/1: cannot be read: Permission denied" in error.message
    monkeypatch.setattr(Path, "rmdir", refuse)
    with pytest.raises(OutputError, match=r"é/1: cannot be moved to .*e: Permission denied"):
        rename_identities(tmp_path, merge=True)
