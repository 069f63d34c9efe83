"""Whose each folder of a tree is: by ids, classes and names, with the meta files or without.

`find` groups a tree's files by the part of their path that names somebody, and `join` decides who
that is, or why it cannot be told. Reads names only.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from s2f import listing
from s2f.audio import is_voice
from s2f.errors import DatasetError
from s2f.layout import BESIDE_PHOTOS, PHOTO_SUFFIXES, SPLIT_FOLDERS
from s2f.meta import CLASS, VOICE, People
from s2f.spelling import bare, composed, key

OWN = "own"  # the set of people who are in no meta file
_BEGINS = re.compile(rf"{VOICE.pattern}(?!\d)")
_LEVELS = {  # folders above the identities, in small letters: they name nobody
    *SPLIT_FOLDERS,
    *("dev", "wav", "aac", "mp4", "audios", "images", "faces", "voices", "raw_wav"),
    *("vox1", "vox2", "voxceleb1", "voxceleb2", "hq-voxceleb", "vggface", "vggface2"),
    *("masked_faces", "origin_faces"),
}
Kind = Literal["voice", "face"]


@dataclass(frozen=True)
class Found:
    """Files of one kind below a folder that names somebody.

    Attributes:
        kind: voices or faces.
        label: the name: the folder's, or an id that the files' names begin with; None without.
        root: the tree.
        inside: the folder, by its path below the tree.
        names: the files, by their paths below the folder, sorted.
    """

    kind: Kind
    label: str | None
    root: Path
    inside: str
    names: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Name the folder by its whole path."""
        return os.path.join(self.root, self.inside)


@dataclass
class Side:
    """What was found of one person.

    Attributes:
        datasets: as `Person.datasets`, or `own`.
        hows: ways in which folders were found to be this person's, as `People.find` names them.
        found: the folders.
    """

    datasets: tuple[str, ...]
    hows: set[str] = field(default_factory=set)
    found: dict[Kind, list[Found]] = field(default_factory=lambda: {"voice": [], "face": []})

    def add(self, found: Found, how: str) -> None:
        """Take a folder as this person's."""
        self.hows.add(how)
        self.found[found.kind].append(found)


@dataclass(frozen=True)
class Unmatched:
    """A folder or a loose file of nobody who has both kinds, and why."""

    kind: Kind
    name: str
    folder: str
    why: str


def is_face(name: str) -> bool:
    """Tell whether a file is a photo, or landmarks or an embedding beside one."""
    return os.path.splitext(name)[1].lower() in PHOTO_SUFFIXES or name.endswith(BESIDE_PHOTOS)


def find(root: Path, kind: Kind, people: People) -> list[Found]:
    """Group the files of a tree by who their paths name.

    That is the topmost folder that is an id or a class, else the topmost that is a known name, else
    an id that the file's own name begins with, else the topmost folder that is no level of a
    dataset (`train`, `wav`, `vox1`, ...).

    Raises:
        DatasetError: if there are none, or a folder cannot be listed.
    """
    groups: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    places: dict[str, tuple[str, str | None, bool]] = {}
    for path in listing.names(root, is_face if kind == "face" else is_voice):
        folder, _, name = path.rpartition("/")
        if folder not in places:
            places[folder] = _place(folder, people)
        inside, label, is_known = places[folder]
        begins = None if is_known or not people.people else _BEGINS.match(name)
        if begins:
            groups[folder, begins.group()].append(name)
        else:
            groups[inside, label].append(path.removeprefix(f"{inside}/"))
    if not groups:
        raise DatasetError(f"{root}: holds no {kind}", hint="check the path, and what is in it")
    return [Found(kind, label, root, at, tuple(names)) for (at, label), names in groups.items()]


def _place(folder: str, people: People) -> tuple[str, str | None, bool]:
    """Find the part of a path that names somebody: the path to it, itself, and if it is known."""
    parts = folder.split("/") if folder else []
    tests: list[tuple[Callable[[str], object], bool]] = [
        (lambda part: VOICE.fullmatch(part) or CLASS.fullmatch(part), True),
        (lambda part: people.find(part)[0], True),
        (lambda part: part.lower() not in _LEVELS, False),
    ]
    for test, is_known in tests:
        for k, part in enumerate(parts):
            if test(part):
                return "/".join(parts[: k + 1]), part, is_known
    return folder, None, False


def join(found: Sequence[Found], people: People) -> tuple[dict[str, Side], list[Unmatched]]:
    """Decide whose each folder is.

    A folder is a person's of the meta files where exactly one fits. The others are joined by equal
    names; two spellings of one name are joined only if one has the voices and the other the faces.

    Returns:
        What was found of each identity, and what is in no pair.
    """
    sides: dict[str, Side] = {}
    own: dict[str, dict[str, list[Found]]] = defaultdict(lambda: defaultdict(list))
    unmatched: list[Unmatched] = []
    for one in found:
        if one.label is None:
            unmatched.append(_left(one, "not in an identity's folder"))
            continue
        who, how = people.find(one.label)
        if len(who) == 1:
            sides.setdefault(who[0].identity, Side(who[0].datasets)).add(one, how)
        elif who:
            several = ", ".join(person.identity for person in who)
            unmatched.append(_left(one, f"ambiguous: may be {several}"))
        else:
            name = people.names.get(one.label, one.label)
            own[key(name)][composed(name)].append(one)
    for spellings in own.values():
        unmatched += _join_own(spellings, sides)
    for side in sides.values():
        missing = [kind for kind, found_of in side.found.items() if not found_of]
        for one in (one for found_of in side.found.values() for one in found_of if missing):
            unmatched.append(_left(one, _why(one, missing[0], side, people)))
    return sides, unmatched


def _join_own(spellings: dict[str, list[Found]], sides: dict[str, Side]) -> list[Unmatched]:
    """Join folders of one name in different spellings, or give back what cannot be joined."""
    kinds = [{one.kind for one in group} for group in spellings.values()]
    everyone = [one for group in spellings.values() for one in group]
    if len(kinds) > 1 and sorted(map(sorted, kinds)) != [["face"], ["voice"]]:
        names = ", ".join(sorted(spellings))
        return [_left(one, f"ambiguous: {names} are one name") for one in everyone]
    try:
        identity = bare(min(spellings))
    except DatasetError as error:
        return [_left(one, error.message) for one in everyone]
    side = sides.setdefault(identity, Side((OWN,)))
    for one in everyone:
        side.add(one, "name" if len(kinds) == 1 else "transliterated")
    return []


def _why(one: Found, missing: str, side: Side, people: People) -> str:
    has_row = side.datasets != (OWN,) or one.label in people.names
    return f"no {missing}" if has_row or not people.people else "no meta row"


def _left(one: Found, why: str) -> Unmatched:
    return Unmatched(one.kind, one.label or one.names[0], one.folder, why)
