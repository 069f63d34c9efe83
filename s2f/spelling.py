"""Spellings of names: plain ASCII by transliteration, and when two spellings are one name.

`plain` is what an identity's folder is called, `key` what a folder and a row of a meta file are
compared by. Knows nothing of files.
"""

import unicodedata

from s2f.errors import DatasetError

MAX_BYTES = 255  # of one name, on the file systems in use
_RESERVED = '/\\:*?"<>|'  # not in a name on every file system
_MISSING = {"\N{ARABIC LETTER ALEF}": "a", "\N{ARABIC TATWEEL}": ""}  # anyascii has none for these
_SOUNDLESS = ("Mn", "Mc", "Me", "Cf", "Sk")  # marks, joiners, directions: no letters of their own


def composed(name: str) -> str:
    """Give the one spelling (NFC) of all that differ only in how their accents are stored."""
    return unicodedata.normalize("NFC", name)


def plain(name: str) -> str:
    r"""Spell a name in ASCII that every file system takes, by transliteration.

    Every letter, digit and sign becomes one or more ASCII characters: `Žydrūnas_Savickas` is
    `Zydrunas_Savickas`, whether its accents are stored composed or not. White space, control
    characters and / \ : * ? " < > | become underscores; all other ASCII stays as it is. A name
    is never made hidden: one that would begin with a dot begins with an underscore. Plain names
    are their own plain names, so that renaming to them needs no order.

    Raises:
        DatasetError: if the name is not text (bytes that are no UTF-8), has a character without
            an ASCII form, nothing is left of it, or the result is longer than 255 bytes.
    """
    from anyascii import anyascii

    pieces = []
    for character in composed(name):
        piece = _MISSING.get(character, anyascii(character))
        category = unicodedata.category(character)
        if category == "Cs":
            raise _unspeakable(name, "is not text: its bytes are no UTF-8")
        if category in ("Cc", "Zl", "Zp"):
            piece = "_"
        elif not piece and character not in _MISSING and category not in _SOUNDLESS:
            raise _unspeakable(name, f"has a character without an ASCII form, {character!a}")
        pieces.append("".join("_" if c.isspace() or c in _RESERVED else c for c in piece))
    spelled = "".join(pieces)
    if not spelled:
        raise _unspeakable(name, "leaves nothing in ASCII")
    if spelled.startswith(".") and not name.startswith("."):
        spelled = f"_{spelled}"
    if len(spelled) > MAX_BYTES:
        raise _unspeakable(name, f"is {len(spelled)} characters long in ASCII, over {MAX_BYTES}")
    return spelled


def bare(name: str) -> str:
    """Spell a name plain and without commas, which some lists of people have and others lack.

    Where it would begin with a dot, it begins with an underscore: it is to be seen, and no `..`.

    Raises:
        DatasetError: as `plain`, or if it is made of commas only.
    """
    spelled = plain(name).replace(",", "")
    if not spelled:
        raise _unspeakable(name, "is nothing but commas")
    return f"_{spelled}" if spelled.startswith(".") else spelled


def key(name: str) -> str:
    """Give what all spellings of a name have in common: bare, in small letters.

    A name that has no bare form is only equal to itself.
    """
    try:
        return bare(name).casefold()
    except DatasetError:
        return composed(name)


def _unspeakable(name: str, why: str) -> DatasetError:
    return DatasetError(f"{name}: {why}", hint="rename it by hand")
