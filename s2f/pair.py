"""Faces and voices of the same people, found in trees and brought together in one.

In order: `pair_identities`, which gives the files the places of `plan_pairs`; `find_people`, which
groups a tree's files by the part of their path that names somebody; `match_people`, which decides
who that is, or why it cannot be told; and `read_meta`, which reads who is who. Only names are read.

Read are vox1_meta.csv (`VoxCeleb1 ID`, `VGGFace1 ID`, which is the person's name), both
vox2_meta.csv (`VoxCeleb2 ID`, `VGGFace2 ID`, with `Name` or without), full_vox2_meta.csv and
VGGFace2's identity_meta.csv (`Class_ID`, `Name`). The digits of a voice id (id00012) and of a
class (n000012) have nothing to do with each other: only rows join them.
"""

import contextlib
import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from s2f import files
from s2f.audio import is_voice
from s2f.console import Progress, silent
from s2f.errors import DatasetError, InputError, UsageError
from s2f.files import Folder, Link, PassedOver, canonical, read_table
from s2f.layout import BESIDE_PHOTOS, PHOTO_SUFFIXES, is_level
from s2f.names import bare, composed, key

VOICE = re.compile(r"id\d{5}")  # a speaker of VoxCeleb1 (id1....) or VoxCeleb2 (id0....)
CLASS = re.compile(r"n\d{6}")  # a person of VGGFace2
OWN = "own"  # the set of people who are in no meta file
TreeKind = Literal["voice", "face"]

_BEGINS = re.compile(rf"{VOICE.pattern}(?!\d)")
_HOW = ("id", "name", "transliterated")  # how a folder is found to be a person's, the weakest last
_COLUMNS = {  # what a column of a meta file is, by its letters and digits
    "voice": ("voxceleb1id", "voxceleb2id", "voxcelebid"),
    "class": ("vggface2id", "classid"),
    "name": ("name", "vggface1id"),
}


@dataclass(frozen=True)
class Person:
    """One person of the meta files."""

    identity: str  # a folder's name: the person's in plain ASCII without commas, or the voice id
    voices: tuple[str, ...]  # ids, sorted: one, or one in each of both VoxCelebs

    @property
    def datasets(self) -> tuple[str, ...]:
        """Name the sets that the person's voices are from: `vox1`, `vox2`."""
        return tuple(sorted(map(dataset_of, self.voices)))


@dataclass(frozen=True)
class MetaPeople:
    """All people of the meta files."""

    people: tuple[Person, ...] = ()  # sorted by identity
    # By how they are known and as what: `id` and a voice or class, `name` and a name, composed
    # (NFC), `transliterated` and what all spellings of a name have in common.
    index: Mapping[tuple[str, str], tuple[Person, ...]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)  # of classes: VGGFace2's own
    collisions: tuple[str, ...] = ()  # identities of one name in one set, kept apart by their ids

    def find(self, label: str) -> tuple[tuple[Person, ...], str]:
        """Find whom a folder's name means: an id, a class, or a name in any spelling.

        Gives the people (none: not known; several: it cannot be told), and how they were found:
        `id`, `name` or `transliterated`.
        """
        name = self.names.get(label, label)
        for how, entry in (("id", label), ("name", composed(name))):
            if (how, entry) in self.index:
                return self.index[how, entry], how
        return self.index.get(("transliterated", key(name)), ()), "transliterated"


@dataclass(frozen=True)
class Found:
    """Files of one kind below a folder that names somebody."""

    kind: TreeKind
    label: str | None  # the folder's name, or an id that the files' names begin with
    root: Path  # the tree
    inside: str  # the folder, by its path below the tree
    names: tuple[str, ...]  # the files, by their paths below the folder, sorted

    @property
    def folder(self) -> str:
        """Name the folder by its whole path."""
        return os.path.join(self.root, self.inside)


Matches = dict[str, list[tuple[Found, str]]]
"""By identity, the folders found to be this person's, and how: `id`, `name`, `transliterated`."""


@dataclass(frozen=True)
class Unmatched:
    """A folder or a loose file of nobody who has both kinds, and why."""

    kind: TreeKind
    name: str
    folder: str
    why: str


@dataclass(frozen=True)
class Pair:
    """A person with faces and voices."""

    identity: str  # the folder in the new tree: plain ASCII
    datasets: tuple[str, ...]  # of the voices: `vox1`, `vox2`; `own` without a meta row
    how: str  # the weakest step that joined a folder: `id`, `name` or `transliterated`
    voices: tuple[str, ...]  # folders
    faces: tuple[str, ...]
    n_voices: int  # files in these
    n_faces: int


@dataclass(frozen=True)
class PairReport:
    """Who was paired, and what became of the files."""

    out: Path
    pairs: tuple[Pair, ...]  # sorted by identity
    unmatched: tuple[Unmatched, ...]  # sorted by kind and folder
    # Of each set, how many people are in the meta files, and have voices, faces, both.
    datasets: Mapping[str, Mapping[str, int]]
    shared: tuple[str, ...]  # identities in both VoxCelebs, each one folder
    collisions: tuple[str, ...]  # people of one name in one set, kept apart by their ids
    made: int  # files that were placed
    kept: int  # files that were there
    failed: tuple[InputError, ...]  # files that could not be placed
    dry_run: bool  # whether this only says what would be done
    passed_over: Mapping[str, int]  # files that are neither, by suffix


def pair_identities(
    faces: Sequence[Path],
    voices: Sequence[Path],
    out: Path,
    *,
    metas: Sequence[Path] = (),
    link: Link = Link.HARD,
    prefer: str | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> PairReport:
    """Bring faces (photos and what lies beside them) and voices of the same people together.

    That is in `OUT/IDENTITY/images/**` and `OUT/IDENTITY/audios/**`.

    A folder is a person's by the first of its path's names that is an id (`id00012`, `n000012`), a
    name in the meta files, or neither a split nor another level that datasets have. Names are
    compared composed (NFC), then in plain ASCII without commas. Folders of people in no meta file
    are joined by equal names. A person of both VoxCelebs becomes one identity, so that a split
    cannot put them on both sides. Where a person has several folders of a kind, each keeps its
    path. What cannot be told apart is left out and reported. Of voices of one name, as 1.m4a and
    1.wav, that with the suffix `prefer` (`wav`) is taken. A second run changes nothing.

    Raises a `DatasetError` if a folder holds no photo or no recording, or several voices of one
    name and `prefer` does not choose, a meta file cannot be used, or nobody has both; a
    `UsageError` if `prefer` is no suffix of voices, folders overlap, two files would get one place,
    or `out` holds others or another run is at work there; an `OutputError` if `out` cannot be
    written.
    """
    for root in (*faces, *voices):
        files.refuse_overlap(root, out)
    people = read_meta(metas)
    passed_over = files.PassedOver()
    found: list[Found] = []
    for root in voices:
        found += find_people(root, "voice", people, passed_over, prefer=prefer)
    for root in faces:
        found += find_people(root, "face", people, passed_over)
    plan = plan_pairs(found, people, out)
    pairs = plan.pairs
    others = set(files.folders(out) if out.is_dir() else ()) - {pair.identity for pair in pairs}
    if others:
        hint = "choose another folder, or remove what other options made there"
        raise UsageError(f"{out / min(others)}: is in no pair of this run", hint=hint)
    placed = files.PlaceReport(0, 0, ())
    if not dry_run:
        if not pairs:
            message = f"nobody of {plan.n_people} people has both faces and voices"
            hint = "see why with --dry-run; ids and names are joined by --meta"
            raise DatasetError(message, hint=hint)
        with files.alone_in(out):
            placed = files.place_all(plan.folders, link, progress=progress)
    return PairReport(
        out=out,
        pairs=pairs,
        unmatched=plan.unmatched,
        datasets=plan.datasets,
        shared=tuple(pair.identity for pair in pairs if len(pair.datasets) > 1),
        collisions=people.collisions,
        **vars(placed),
        dry_run=dry_run,
        passed_over=dict(passed_over),
    )


@dataclass(frozen=True)
class PairPlan:
    """Who has faces and voices, and where their files are to be."""

    pairs: tuple[Pair, ...]  # sorted by identity
    folders: tuple[Folder, ...]  # of their files
    unmatched: tuple[Unmatched, ...]  # sorted by kind and folder
    datasets: Mapping[str, Mapping[str, int]]  # as in `PairReport`
    n_people: int  # who have either


def plan_pairs(found: Sequence[Found], people: MetaPeople, out: Path) -> PairPlan:
    """Decide who is paired, and give their files places in `OUT/IDENTITY/audios` and `images`.

    Raises a `UsageError` if two folders would get one place.
    """
    matches, unmatched = match_people(found, people)
    datasets = {person.identity: person.datasets for person in people.people}
    roots = {kind: {one.root for one in found if one.kind == kind} for kind in ("voice", "face")}
    pairs: list[Pair] = []
    plan: list[Folder] = []
    for who, matched in sorted(matches.items()):
        heard = [one for one, _ in matched if one.kind == "voice"]
        seen = [one for one, _ in matched if one.kind == "face"]
        if heard and seen:
            pair = Pair(
                identity=who,
                datasets=datasets.get(who, (OWN,)),
                how=max((how for _, how in matched), key=_HOW.index),
                voices=tuple(one.folder for one in heard),
                faces=tuple(one.folder for one in seen),
                n_voices=sum(len(one.names) for one in heard),
                n_faces=sum(len(one.names) for one in seen),
            )
            pairs.append(pair)
            for name, mine, kind in (("audios", heard, "voice"), ("images", seen, "face")):
                plan += _places(out / who / name, mine, several_trees=len(roots[kind]) > 1)
    sources: dict[str, str] = {}  # files of one folder have different names anyway
    for folder in plan:
        other = sources.setdefault(folder.target.casefold(), folder.source)
        if other != folder.source:
            message = f"{other} and {folder.source} would both be {folder.target}"
            raise UsageError(message, hint="rename one of the folders")
    return PairPlan(
        pairs=tuple(pairs),
        folders=tuple(plan),
        unmatched=tuple(sorted(unmatched, key=lambda one: (one.kind, one.folder, one.name))),
        datasets=_count(matches, people, datasets),
        n_people=len(matches),
    )


def _places(target: Path, found: Sequence[Found], *, several_trees: bool) -> list[Folder]:
    """Give a person's folders of one kind their places; several keep their paths."""
    plan = []
    for one in found:
        above = one.root.name if several_trees else ""
        place = target / above / one.inside if len(found) > 1 else target
        plan.append(Folder(one.folder, str(place), one.names))
    return plan


def _count(
    matches: Matches, people: MetaPeople, datasets: Mapping[str, tuple[str, ...]]
) -> dict[str, dict[str, int]]:
    counts = {}
    for name in ("vox1", "vox2", OWN):
        here = [who for who in matches if name in datasets.get(who, (OWN,))]
        kinds = [{one.kind for one, _ in matches[who]} for who in here]
        counts[name] = {
            "people": sum(name in person.datasets for person in people.people),
            "voices": sum("voice" in has for has in kinds),
            "faces": sum("face" in has for has in kinds),
            "pairs": sum(len(has) == 2 for has in kinds),
        }
    return counts


def is_face_file(name: str) -> bool:
    """Tell whether a file is a photo, or landmarks or an embedding beside one."""
    return os.path.splitext(name)[1].lower() in PHOTO_SUFFIXES or name.endswith(BESIDE_PHOTOS)


def find_people(
    root: Path,
    kind: TreeKind,
    people: MetaPeople,
    passed_over: PassedOver | None = None,
    *,
    prefer: str | None = None,
) -> list[Found]:
    """Group the files of a tree by who their paths name.

    That is the topmost folder that is an id or a class, else the topmost that is a known name, else
    an id that the file's own name begins with, else the topmost folder that is no level of a
    dataset (`train`, `wav`, `vox1`, ...). Other files, and voices for which there is one of the
    suffix `prefer`, are `passed_over`. Raises a `DatasetError` if there are no files, a folder
    cannot be listed, or voices of one name are left; a `UsageError` as `files.preferred`.
    """
    passed_over = PassedOver() if passed_over is None else passed_over
    wants = is_face_file if kind == "face" else is_voice
    prefer = files.preferred(prefer, wants, f"{kind}s")
    paths = list(files.names(root, wants, passed_over=passed_over))
    if kind == "voice":
        named = zip(map(files.stem, paths), paths, strict=True)
        dropped = files.drop_twins(named, root, passed_over, prefer=prefer)
        paths = [path for path in paths if path not in dropped]
    groups: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    places: dict[str, tuple[str, str | None, bool]] = {}
    for path in paths:
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
        raise files.holds_none(root, f"{kind}s", passed_over, DatasetError)
    return [Found(kind, label, root, at, tuple(names)) for (at, label), names in groups.items()]


def _place(folder: str, people: MetaPeople) -> tuple[str, str | None, bool]:
    """Find the part of a path that names somebody: the path to it, itself, and if it is known."""
    parts = folder.split("/") if folder else []
    ids = (k for k, part in enumerate(parts) if VOICE.fullmatch(part) or CLASS.fullmatch(part))
    named = (k for k, part in enumerate(parts) if people.find(part)[0])
    others = (k for k, part in enumerate(parts) if not is_level(part))
    known = next(itertools.chain(ids, named), None)
    k = next(others, None) if known is None else known
    if k is None:
        return folder, None, False
    return "/".join(parts[: k + 1]), parts[k], known is not None


def match_people(found: Sequence[Found], people: MetaPeople) -> tuple[Matches, list[Unmatched]]:
    """Decide whose each folder is: what was found of each identity, and what is in no pair.

    A folder is a person's of the meta files where exactly one fits. The others are joined by equal
    names; two spellings of one name are joined only if one has the voices and the other the faces.
    """
    matches: Matches = defaultdict(list)
    own: dict[str, dict[str, list[Found]]] = defaultdict(lambda: defaultdict(list))
    left: list[tuple[Found, str]] = []
    for one in found:
        if one.label is None:
            left.append((one, "not in an identity's folder"))
            continue
        who, how = people.find(one.label)
        if len(who) == 1:
            matches[who[0].identity].append((one, how))
        elif who:
            several = ", ".join(person.identity for person in who)
            left.append((one, f"ambiguous: may be {several}"))
        else:
            name = people.names.get(one.label, one.label)
            own[key(name)][composed(name)].append(one)
    for spellings in own.values():
        kinds = [{one.kind for one in group} for group in spellings.values()]
        everyone = [one for group in spellings.values() for one in group]
        try:
            if len(kinds) > 1 and sorted(map(sorted, kinds)) != [["face"], ["voice"]]:
                names = ", ".join(sorted(spellings))
                raise DatasetError(f"ambiguous: {names} are one name")
            how = "name" if len(kinds) == 1 else "transliterated"
            matches[bare(min(spellings))] += [(one, how) for one in everyone]
        except DatasetError as error:
            left += [(one, error.message) for one in everyone]
    in_meta = {person.identity for person in people.people}
    for identity, matched in matches.items():
        if len({one.kind for one, _ in matched}) == 1:
            for one, _ in matched:
                has_row = identity in in_meta or one.label in people.names
                missing = "face" if one.kind == "voice" else "voice"
                known = has_row or not people.people
                left.append((one, f"no {missing}" if known else "no meta row"))
    return matches, [Unmatched(o.kind, o.label or o.names[0], o.folder, why) for o, why in left]


def read_meta(paths: Sequence[Path]) -> MetaPeople:
    """Read meta files together.

    Voices of one name, one in VoxCeleb1 and one in VoxCeleb2, are one person: kept apart, a split
    might train on one and test on the other. Voices of one name in the same set are different
    people, whose names mean nobody. Raises a `DatasetError` if a file cannot be read, has neither
    voice ids nor classes, a cell is no id, or rows disagree about a voice.
    """
    said: dict[str, list[str]] = {}  # names of each voice
    classes: dict[str, str] = {}  # of voices
    names: dict[str, str] = {}  # of classes
    for path in paths:
        for voice, class_, name, where in _cells(path):
            if not voice:
                if class_ and name:
                    names[class_] = name
                continue
            known = said.setdefault(voice, [])
            if class_ and classes.setdefault(voice, class_) != class_:
                raise _disagree(where, voice, class_, classes[voice])
            if name and known and key(name) != key(known[0]):
                raise _disagree(where, voice, name, known[0])
            known += [name] if name else []
    for voice, known in said.items():
        if not known and classes.get(voice) in names:
            known.append(names[classes[voice]])
    return _people(said, classes, names)


def _cells(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """Give voice, class and name of each row, where it has them, and where it is."""
    table = read_table(path)
    places = {
        what: [k for k, column in enumerate(table.columns) if canonical(column) in known]
        for what, known in _COLUMNS.items()
    }
    if not places["voice"] and not places["class"]:
        message = f"{path}: has no ids, but {', '.join(table.columns)}"
        hint = "wanted a column such as VoxCeleb1 ID, VoxCeleb2 ID or Class_ID"
        raise DatasetError(message, hint=hint)
    for cells, line in zip(table.rows, table.lines, strict=True):
        row = {what: next((cells[k] for k in ks if cells[k]), "") for what, ks in places.items()}
        for what, pattern in (("voice", VOICE), ("class", CLASS)):
            if row[what] and not pattern.fullmatch(row[what]):
                message = f"{path}: line {line}: {row[what]!r} is no id"
                hint = "wanted ids such as id00012 for voices and n000012 for faces"
                raise DatasetError(message, hint=hint)
        yield row["voice"], row["class"], row["name"], f"{path}: line {line}"


def _disagree(where: str, voice: str, seen: str, before: str) -> DatasetError:
    message = f"{where}: {voice} is {seen!r}, and {before!r} in another row"
    return DatasetError(message, hint="give meta files of one version")


def _people(
    said: Mapping[str, Sequence[str]], classes: Mapping[str, str], names: Mapping[str, str]
) -> MetaPeople:
    """Join the voices of one name, and index everybody by all that they are known as."""
    groups: dict[str, list[str]] = defaultdict(list)
    for voice in sorted(said):
        groups[key(said[voice][0]) if said[voice] else voice].append(voice)
    people, collisions = [], []
    index: dict[tuple[str, str], list[Person]] = defaultdict(list)
    for group in groups.values():
        is_one = max(Counter(map(dataset_of, group)).values()) == 1
        for voices in [tuple(group)] if is_one else [(voice,) for voice in group]:
            identity = voices[0]
            with contextlib.suppress(DatasetError, IndexError):  # without a name, or a bare one
                name = bare(said[voices[0]][0])
                identity = name if is_one else f"{name}_{identity}"
            person = Person(identity, voices)
            people.append(person)
            collisions += [] if is_one else [person.identity]
            entries = {("id", voice) for voice in voices}
            entries |= {("id", classes[voice]) for voice in voices if voice in classes}
            for name in (name for voice in voices for name in said[voice]):
                entries |= {("name", composed(name)), ("transliterated", key(name))}
            for entry in entries:
                index[entry].append(person)
    people.sort(key=lambda person: person.identity)
    known_as = {entry: tuple(who) for entry, who in index.items()}
    return MetaPeople(tuple(people), known_as, names, tuple(sorted(collisions)))


def dataset_of(voice: str) -> str:
    """Tell the set of a voice id: VoxCeleb1 begins at id10001, VoxCeleb2 ends at id09272."""
    return "vox1" if voice.startswith("id1") else "vox2"
