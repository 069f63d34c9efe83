"""Who is who in VoxCeleb1/2 and VGGFace(2): the meta files, and people by id, class or name.

Read are vox1_meta.csv (`VoxCeleb1 ID`, `VGGFace1 ID`, which is the person's name), both
vox2_meta.csv (`VoxCeleb2 ID`, `VGGFace2 ID`, with `Name` or without), full_vox2_meta.csv and
VGGFace2's identity_meta.csv (`Class_ID`, `Name`). The digits of a voice id (id00012) and of a
class (n000012) have nothing to do with each other: only rows join them.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from s2f import tables
from s2f.errors import DatasetError
from s2f.spelling import bare, composed, key
from s2f.tables import Table, canonical

VOICE = re.compile(r"id\d{5}")  # a speaker of VoxCeleb1 (id1....) or VoxCeleb2 (id0....)
CLASS = re.compile(r"n\d{6}")  # a person of VGGFace2

_COLUMNS = {  # what a column is, by its letters and digits
    "voice": ("voxceleb1id", "voxceleb2id", "voxcelebid"),
    "class": ("vggface2id", "classid"),
    "name": ("name", "vggface1id"),
}


@dataclass(frozen=True)
class Person:
    """One person of the meta files.

    Attributes:
        identity: a folder's name: the person's in plain ASCII without commas, or the voice id.
        voices: ids of the person's voices, sorted: one, or one in each of both VoxCelebs.
    """

    identity: str
    voices: tuple[str, ...]

    @property
    def datasets(self) -> tuple[str, ...]:
        """Name the sets that the person's voices are from: `vox1`, `vox2`."""
        return tuple(sorted({dataset_of(voice) for voice in self.voices}))


@dataclass(frozen=True)
class People:
    """All people of the meta files.

    Attributes:
        people: sorted by identity.
        by_id: by the id of a voice, and by class.
        by_name: by all names, composed (NFC).
        by_key: by what all spellings of a name have in common.
        names: of classes: VGGFace2's own.
        collisions: identities that would have had one name, and are kept apart by their ids.
    """

    people: tuple[Person, ...] = ()
    by_id: Mapping[str, tuple[Person, ...]] = field(default_factory=dict)
    by_name: Mapping[str, tuple[Person, ...]] = field(default_factory=dict)
    by_key: Mapping[str, tuple[Person, ...]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    collisions: tuple[str, ...] = ()

    def find(self, label: str) -> tuple[tuple[Person, ...], str]:
        """Find whom a folder's name means: an id, a class, or a name in any spelling.

        Returns:
            The people (none: not known; several: it cannot be told), and how they were found:
            `id`, `name` or `transliterated`.
        """
        if label in self.by_id:
            return self.by_id[label], "id"
        name = self.names.get(label, label)
        if composed(name) in self.by_name:
            return self.by_name[composed(name)], "name"
        return self.by_key.get(key(name), ()), "transliterated"


def dataset_of(voice: str) -> str:
    """Tell the set of a voice id: VoxCeleb1 begins at id10001, VoxCeleb2 ends at id09272."""
    return "vox1" if voice.startswith("id1") else "vox2"


@dataclass
class _Row:
    """What all files say of one voice."""

    names: list[str] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)


def read(paths: Sequence[Path]) -> People:
    """Read meta files together.

    Voices of one name, one in VoxCeleb1 and one in VoxCeleb2, are one person: kept apart, a split
    might train on one and test on the other. Voices of one name in the same set are different
    people, whose names mean nobody.

    Raises:
        DatasetError: if a file cannot be read, has neither voice ids nor classes, a cell is no
            id, or rows disagree about a voice.
    """
    rows: dict[str, _Row] = defaultdict(_Row)
    names: dict[str, str] = {}
    for path in paths:
        for voice, class_, name, where in _cells(tables.read(path)):
            if not voice:
                if class_ and name:
                    names[class_] = name
                continue
            row = rows[voice]
            if class_ and row.classes - {class_}:
                raise _disagree(where, voice, class_, min(row.classes))
            if name and row.names and key(name) != key(row.names[0]):
                raise _disagree(where, voice, name, row.names[0])
            row.classes |= {class_} - {""}
            row.names += [name] if name else []
    for row in rows.values():
        if not row.names:
            row.names += [names[class_] for class_ in row.classes if class_ in names]
    return _people(rows, names)


def _cells(table: Table) -> list[tuple[str, str, str, str]]:
    """Give voice, class and name of each row, where it has them, and where it is."""
    places = {
        what: [k for k, column in enumerate(table.columns) if canonical(column) in known]
        for what, known in _COLUMNS.items()
    }
    if not places["voice"] and not places["class"]:
        raise DatasetError(
            f"{table.path}: has no ids, but {', '.join(table.columns)}",
            hint="wanted a column such as VoxCeleb1 ID, VoxCeleb2 ID or Class_ID",
        )
    found = []
    for cells, line in zip(table.rows, table.lines, strict=True):
        row = {what: next((cells[k] for k in ks if cells[k]), "") for what, ks in places.items()}
        for what, pattern in (("voice", VOICE), ("class", CLASS)):
            if row[what] and not pattern.fullmatch(row[what]):
                raise DatasetError(
                    f"{table.path}: line {line}: {row[what]!r} is no id",
                    hint="wanted ids such as id00012 for voices and n000012 for faces",
                )
        found.append((row["voice"], row["class"], row["name"], f"{table.path}: line {line}"))
    return found


def _disagree(where: str, voice: str, seen: str, before: str) -> DatasetError:
    return DatasetError(
        f"{where}: {voice} is {seen!r}, and {before!r} in another row",
        hint="give meta files of one version",
    )


def _people(rows: Mapping[str, _Row], names: Mapping[str, str]) -> People:
    groups: dict[str, list[str]] = defaultdict(list)
    for voice in sorted(rows):
        said = rows[voice].names
        groups[key(said[0]) if said else voice].append(voice)
    people, collisions = [], []
    by_id, by_name, by_key = (defaultdict[str, list[Person]](list) for _ in range(3))
    for group in groups.values():
        is_one = max(Counter(map(dataset_of, group)).values()) == 1
        for voices in [tuple(group)] if is_one else [(voice,) for voice in group]:
            person = Person(_identity(rows[voices[0]].names, voices[0], apart=not is_one), voices)
            people.append(person)
            collisions += [] if is_one else [person.identity]
            said = [name for voice in voices for name in rows[voice].names]
            classes = {class_ for voice in voices for class_ in rows[voice].classes}
            for index, entries in (
                (by_id, {*voices, *classes}),
                (by_name, {composed(name) for name in said}),
                (by_key, {key(name) for name in said}),
            ):
                for entry in entries:
                    index[entry].append(person)
    return People(
        tuple(sorted(people, key=lambda person: person.identity)),
        by_id={entry: tuple(who) for entry, who in by_id.items()},
        by_name={entry: tuple(who) for entry, who in by_name.items()},
        by_key={entry: tuple(who) for entry, who in by_key.items()},
        names=names,
        collisions=tuple(sorted(collisions)),
    )


def _identity(names: Sequence[str], voice: str, *, apart: bool) -> str:
    if not names:
        return voice
    try:
        name = bare(names[0])
    except DatasetError:
        return voice
    return f"{name}_{voice}" if apart else name
