"""Faces and voices of the same people, found in trees and brought together in one.

In order: `pair_identities`, which gives the files their places, `OUT/IDENTITY/audios/**` and
`OUT/IDENTITY/images/**`; `find_people`, which groups a tree's files by the part of their path that
names somebody; `match_people`, which decides who that is, or why it cannot be told; and
`read_meta`, which reads who is who.

Read are vox1_meta.csv (`VoxCeleb1 ID`, `VGGFace1 ID`, which is the person's name), both
vox2_meta.csv (`VoxCeleb2 ID`, `VGGFace2 ID`, with `Name` or without), full_vox2_meta.csv and
VGGFace2's identity_meta.csv (`Class_ID`, `Name`). The digits of a voice id (id00012) and of a
class (n000012) have nothing to do with each other: only rows join them.

Knows nothing of sound or pictures: only names are read.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from s2f import files
from s2f.audio import is_voice
from s2f.console import Progress, silent
from s2f.errors import DatasetError, InputError, UsageError
from s2f.files import Folder, Link
from s2f.labels import canonical, read_table
from s2f.layout import BESIDE_PHOTOS, PHOTO_SUFFIXES, SPLIT_FOLDERS
from s2f.names import bare, composed, key

VOICE = re.compile(r"id\d{5}")  # a speaker of VoxCeleb1 (id1....) or VoxCeleb2 (id0....)
CLASS = re.compile(r"n\d{6}")  # a person of VGGFace2
OWN = "own"  # the set of people who are in no meta file
TreeKind = Literal["voice", "face"]

_BEGINS = re.compile(rf"{VOICE.pattern}(?!\d)")
_HOW = ("id", "name", "transliterated")  # from strong to weak
_COLUMNS = {  # what a column of a meta file is, by its letters and digits
    "voice": ("voxceleb1id", "voxceleb2id", "voxcelebid"),
    "class": ("vggface2id", "classid"),
    "name": ("name", "vggface1id"),
}
_LEVELS = {  # folders above the identities, in small letters: they name nobody
    *SPLIT_FOLDERS,
    *("dev", "wav", "aac", "mp4", "audios", "images", "faces", "voices", "raw_wav"),
    *("vox1", "vox2", "voxceleb1", "voxceleb2", "hq-voxceleb", "vggface", "vggface2"),
    *("masked_faces", "origin_faces"),
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
class MetaPeople:
    """All people of the meta files.

    Attributes:
        people: sorted by identity.
        index: by how they are known and as what: `id` and a voice or class, `name` and a name,
            composed (NFC), `transliterated` and what all spellings of a name have in common.
        names: of classes: VGGFace2's own.
        collisions: identities that would have had one name, and are kept apart by their ids.
    """

    people: tuple[Person, ...] = ()
    index: Mapping[tuple[str, str], tuple[Person, ...]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    collisions: tuple[str, ...] = ()

    def find(self, label: str) -> tuple[tuple[Person, ...], str]:
        """Find whom a folder's name means: an id, a class, or a name in any spelling.

        Returns:
            The people (none: not known; several: it cannot be told), and how they were found:
            `id`, `name` or `transliterated`.
        """
        name = self.names.get(label, label)
        for how, entry in (("id", label), ("name", composed(name))):
            if (how, entry) in self.index:
                return self.index[how, entry], how
        return self.index.get(("transliterated", key(name)), ()), "transliterated"


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

    kind: TreeKind
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
    found: dict[TreeKind, list[Found]] = field(default_factory=lambda: {"voice": [], "face": []})

    def add(self, found: Found, how: str) -> None:
        """Take a folder as this person's."""
        self.hows.add(how)
        self.found[found.kind].append(found)


@dataclass(frozen=True)
class Unmatched:
    """A folder or a loose file of nobody who has both kinds, and why."""

    kind: TreeKind
    name: str
    folder: str
    why: str


@dataclass(frozen=True)
class Pair:
    """A person with faces and voices.

    Attributes:
        identity: the folder in the new tree: plain ASCII.
        datasets: of the voices: `vox1`, `vox2`; `own` without a meta row.
        how: the weakest step that joined a folder to the person: `id`, `name` or `transliterated`.
        voices: folders of the person's voices.
        faces: folders of the person's faces.
        n_voices: files in these.
        n_faces: likewise.
    """

    identity: str
    datasets: tuple[str, ...]
    how: str
    voices: tuple[str, ...]
    faces: tuple[str, ...]
    n_voices: int
    n_faces: int


@dataclass(frozen=True)
class PairReport:
    """Who was paired, and what became of the files.

    Attributes:
        out: the new tree.
        pairs: sorted by identity.
        unmatched: sorted by kind and folder.
        datasets: for each set, how many people are in the meta files, and have voices, faces, both.
        shared: identities in both VoxCelebs, each one folder.
        collisions: people of one name in one set, kept apart by their ids.
        made: files that were placed.
        kept: files that were there.
        failed: files that could not be placed.
        dry_run: whether this only says what would be done.
    """

    out: Path
    pairs: tuple[Pair, ...]
    unmatched: tuple[Unmatched, ...]
    datasets: Mapping[str, Mapping[str, int]]
    shared: tuple[str, ...]
    collisions: tuple[str, ...]
    made: int
    kept: int
    failed: tuple[InputError, ...]
    dry_run: bool


def pair_identities(
    faces: Sequence[Path],
    voices: Sequence[Path],
    out: Path,
    *,
    metas: Sequence[Path] = (),
    link: Link = Link.HARD,
    dry_run: bool = False,
    progress: Progress = silent,
) -> PairReport:
    """Bring faces and voices of the same people together.

    A folder is a person's by the first of its path's names that is an id (`id00012`, `n000012`), a
    name in the meta files, or neither a split nor another level that datasets have. Names are
    compared composed (NFC), then in plain ASCII without commas. Folders of people in no meta file
    are joined by equal names. A person of both VoxCelebs becomes one identity, so that a split
    cannot put them on both sides. Where a person has several folders of a kind, each keeps its
    path. What cannot be told apart is left out and reported. A second run changes nothing.

    Args:
        faces: folders of photos, with `_landmarks.npy`, `_template.npy` and `_embedding.npy`
            beside them.
        voices: folders of recordings, or of `.npy` files made of them.
        out: new folder, or one of the same pairs.
        metas: meta files of VoxCeleb and VGGFace.
        link: how files get their places.
        dry_run: whether to change nothing and only report.
        progress: told of files.

    Raises:
        DatasetError: if a folder holds no photo or no recording, a meta file cannot be used, or
            nobody has both.
        UsageError: if folders overlap, two files would get one place, or `out` holds others or
            another run is at work there.
        OutputError: if `out` cannot be written.
    """
    for root in (*faces, *voices):
        files.refuse_overlap(root, out)
    people = read_meta(metas)
    roots: dict[TreeKind, Sequence[Path]] = {"voice": voices, "face": faces}
    found = [
        one for kind in roots for root in roots[kind] for one in find_people(root, kind, people)
    ]
    sides, unmatched = match_people(found, people)
    both = {who: side for who, side in sorted(sides.items()) if all(side.found.values())}
    plan = [folder for who, side in both.items() for folder in _folders(out / who, side, roots)]
    _refuse_collisions(plan)
    others = set(files.folders(out)) - set(both) if out.is_dir() else set()
    if others:
        raise UsageError(
            f"{out / min(others)}: is in no pair of this run",
            hint="choose another folder, or remove what other options made there",
        )
    placed = files.PlaceReport(0, 0, ())
    if not dry_run:
        if not both:
            raise DatasetError(
                f"nobody of {len(sides)} people has both faces and voices",
                hint="see why with --dry-run; ids and names are joined by --meta",
            )
        with files.alone_in(out):
            placed = files.place_all(plan, link, progress=progress)
    return PairReport(
        out=out,
        pairs=tuple(_pair(who, side) for who, side in both.items()),
        unmatched=tuple(sorted(unmatched, key=lambda one: (one.kind, one.folder, one.name))),
        datasets=_count(sides, people),
        shared=tuple(who for who, side in both.items() if len(side.datasets) > 1),
        collisions=people.collisions,
        made=placed.made,
        kept=placed.kept,
        failed=placed.failed,
        dry_run=dry_run,
    )


def _pair(identity: str, side: Side) -> Pair:
    voices, faces = side.found["voice"], side.found["face"]
    return Pair(
        identity=identity,
        datasets=side.datasets,
        how=max(side.hows, key=_HOW.index),
        voices=tuple(one.folder for one in voices),
        faces=tuple(one.folder for one in faces),
        n_voices=sum(len(one.names) for one in voices),
        n_faces=sum(len(one.names) for one in faces),
    )


def _folders(
    identity: Path, side: Side, roots: Mapping[TreeKind, Sequence[Path]]
) -> Iterator[Folder]:
    """Give a person's folders their places; several of a kind keep their paths."""
    for kind, found in side.found.items():
        place = identity / ("audios" if kind == "voice" else "images")
        for one in found:
            above = one.root.name if len(roots[kind]) > 1 else ""
            inside = Path(above, one.inside) if len(found) > 1 else Path()
            yield Folder(one.folder, str(place / inside), one.names)


def _refuse_collisions(plan: Sequence[Folder]) -> None:
    """Refuse two folders in one place; the files of one folder have different names anyway."""
    sources: dict[str, str] = {}
    for folder in plan:
        other = sources.setdefault(folder.target.casefold(), folder.source)
        if other != folder.source:
            raise UsageError(
                f"{other} and {folder.source} would both be {folder.target}",
                hint="rename one of the folders",
            )


def _count(sides: Mapping[str, Side], people: MetaPeople) -> dict[str, dict[str, int]]:
    counts = {}
    for name in ("vox1", "vox2", OWN):
        here = [side.found for side in sides.values() if name in side.datasets]
        counts[name] = {
            "people": sum(name in person.datasets for person in people.people),
            "voices": sum(bool(found["voice"]) for found in here),
            "faces": sum(bool(found["face"]) for found in here),
            "pairs": sum(all(found.values()) for found in here),
        }
    return counts


def is_face_file(name: str) -> bool:
    """Tell whether a file is a photo, or landmarks or an embedding beside one."""
    return os.path.splitext(name)[1].lower() in PHOTO_SUFFIXES or name.endswith(BESIDE_PHOTOS)


def find_people(root: Path, kind: TreeKind, people: MetaPeople) -> list[Found]:
    """Group the files of a tree by who their paths name.

    That is the topmost folder that is an id or a class, else the topmost that is a known name, else
    an id that the file's own name begins with, else the topmost folder that is no level of a
    dataset (`train`, `wav`, `vox1`, ...).

    Raises:
        DatasetError: if there are none, or a folder cannot be listed.
    """
    groups: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    places: dict[str, tuple[str, str | None, bool]] = {}
    for path in files.names(root, is_face_file if kind == "face" else is_voice):
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


def _place(folder: str, people: MetaPeople) -> tuple[str, str | None, bool]:
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


def match_people(
    found: Sequence[Found], people: MetaPeople
) -> tuple[dict[str, Side], list[Unmatched]]:
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


def _why(one: Found, missing: str, side: Side, people: MetaPeople) -> str:
    has_row = side.datasets != (OWN,) or one.label in people.names
    return f"no {missing}" if has_row or not people.people else "no meta row"


def _left(one: Found, why: str) -> Unmatched:
    return Unmatched(one.kind, one.label or one.names[0], one.folder, why)


@dataclass
class _Row:
    """What all files say of one voice."""

    names: list[str] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)


def read_meta(paths: Sequence[Path]) -> MetaPeople:
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
        for voice, class_, name, where in _cells(path):
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


def _cells(path: Path) -> list[tuple[str, str, str, str]]:
    """Give voice, class and name of each row, where it has them, and where it is."""
    table = read_table(path)
    places = {
        what: [k for k, column in enumerate(table.columns) if canonical(column) in known]
        for what, known in _COLUMNS.items()
    }
    if not places["voice"] and not places["class"]:
        raise DatasetError(
            f"{path}: has no ids, but {', '.join(table.columns)}",
            hint="wanted a column such as VoxCeleb1 ID, VoxCeleb2 ID or Class_ID",
        )
    found = []
    for cells, line in zip(table.rows, table.lines, strict=True):
        row = {what: next((cells[k] for k in ks if cells[k]), "") for what, ks in places.items()}
        for what, pattern in (("voice", VOICE), ("class", CLASS)):
            if row[what] and not pattern.fullmatch(row[what]):
                raise DatasetError(
                    f"{path}: line {line}: {row[what]!r} is no id",
                    hint="wanted ids such as id00012 for voices and n000012 for faces",
                )
        found.append((row["voice"], row["class"], row["name"], f"{path}: line {line}"))
    return found


def _disagree(where: str, voice: str, seen: str, before: str) -> DatasetError:
    return DatasetError(
        f"{where}: {voice} is {seen!r}, and {before!r} in another row",
        hint="give meta files of one version",
    )


def _people(rows: Mapping[str, _Row], names: Mapping[str, str]) -> MetaPeople:
    groups: dict[str, list[str]] = defaultdict(list)
    for voice in sorted(rows):
        said = rows[voice].names
        groups[key(said[0]) if said else voice].append(voice)
    people, collisions = [], []
    index: dict[tuple[str, str], list[Person]] = defaultdict(list)
    for group in groups.values():
        is_one = max(Counter(map(dataset_of, group)).values()) == 1
        for voices in [tuple(group)] if is_one else [(voice,) for voice in group]:
            person = Person(_identity(rows[voices[0]].names, voices[0], apart=not is_one), voices)
            people.append(person)
            collisions += [] if is_one else [person.identity]
            said = [name for voice in voices for name in rows[voice].names]
            entries = {("id", one) for voice in voices for one in (voice, *rows[voice].classes)}
            entries |= {("name", composed(name)) for name in said}
            entries |= {("transliterated", key(name)) for name in said}
            for entry in entries:
                index[entry].append(person)
    return MetaPeople(
        tuple(sorted(people, key=lambda person: person.identity)),
        {entry: tuple(who) for entry, who in index.items()},
        names,
        tuple(sorted(collisions)),
    )


def _identity(names: Sequence[str], voice: str, *, apart: bool) -> str:
    if not names:
        return voice
    try:
        name = bare(names[0])
    except DatasetError:
        return voice
    return f"{name}_{voice}" if apart else name


def dataset_of(voice: str) -> str:
    """Tell the set of a voice id: VoxCeleb1 begins at id10001, VoxCeleb2 ends at id09272."""
    return "vox1" if voice.startswith("id1") else "vox2"
