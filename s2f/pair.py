"""Faces and voices of the same people, found in two trees and brought together in one.

Who is who is for `meta` and `matching`; here the files get their places:
`OUT/IDENTITY/audios/**` and `OUT/IDENTITY/images/**`. Knows nothing of sound or pictures.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from s2f import links, listing, meta
from s2f.errors import DatasetError, InputError, UsageError
from s2f.links import Folder, Link
from s2f.matching import OWN, Kind, Side, Unmatched, find, join
from s2f.meta import People
from s2f.runtime import Progress, alone_in, silent

_HOW = ("id", "name", "transliterated")  # from strong to weak


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
        links.refuse_overlap(root, out)
    people = meta.read(metas)
    roots: dict[Kind, Sequence[Path]] = {"voice": voices, "face": faces}
    found = [one for kind in roots for root in roots[kind] for one in find(root, kind, people)]
    sides, unmatched = join(found, people)
    both = {who: side for who, side in sorted(sides.items()) if all(side.found.values())}
    plan = [
        folder for who, side in both.items() for folder in _folders(out / who, side, faces, voices)
    ]
    _refuse_collisions(plan)
    _refuse_others(out, set(both))
    placed = links.Placed(0, 0, ())
    if not dry_run:
        if not both:
            raise DatasetError(
                f"nobody of {len(sides)} people has both faces and voices",
                hint="see why with --dry-run; ids and names are joined by --meta",
            )
        with alone_in(out):
            placed = links.place_all(plan, link, progress=progress)
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
    identity: Path, side: Side, faces: Sequence[Path], voices: Sequence[Path]
) -> Iterator[Folder]:
    """Give a person's folders their places; several of a kind keep their paths."""
    places: list[tuple[Kind, str, Sequence[Path]]] = [
        ("voice", "audios", voices),
        ("face", "images", faces),
    ]
    for kind, place, roots in places:
        found = side.found[kind]
        for one in found:
            above = one.root.name if len(roots) > 1 else ""
            inside = Path(above, one.inside) if len(found) > 1 else Path()
            yield Folder(one.folder, str(identity / place / inside), one.names)


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


def _refuse_others(out: Path, identities: Collection[str]) -> None:
    others = set(listing.folders(out)) - set(identities) if out.is_dir() else set()
    if others:
        raise UsageError(
            f"{out / min(others)}: is in no pair of this run",
            hint="choose another folder, or remove what other options made there",
        )


def _count(sides: Mapping[str, Side], people: People) -> dict[str, dict[str, int]]:
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
