"""Plain names: ASCII, nothing lost, and one for all spellings."""

import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2f.errors import DatasetError
from s2f.names import MAX_BYTES, bare, key, plain

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
    ("name", "new"),
    [("Carlos_Sainz,_Jr.", "Carlos_Sainz_Jr."), ("..", "_.."), (",.Ann", "_.Ann")],
)
def test_a_bare_name_is_a_folder_that_is_seen(name: str, new: str) -> None:
    assert bare(name) == new


def test_commas_are_no_bare_name() -> None:
    with pytest.raises(DatasetError, match="nothing but commas"):
        bare(",,")
    assert key(",,") != key(",")


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
