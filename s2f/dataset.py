"""From photos and recordings, as people find them, to trees that training reads, in one run.

In order: `prepare_dataset`, which does what `s2f prep audio`, `faces`, `landmarks`, `names`,
`pair`, `embeddings`, `split`, `stats`, `pack` and `index` do, and tells of everything once; who is
who, found before any file is read; what is made of the files; and the report. Below `out` stand

    pairs/IDENTITY/audios images    waveforms; framed photos with landmarks, embeddings
    split/train val test            what is whole of these, by links; labels.csv, if there are any
    pack/train val test             the same in a few large files, if it is asked for
    stats.json  report.json  report.md  sheet.jpg

Only who has a face and a voice by name is read at all. All steps keep what is up to date, so that
a run that was killed goes on where it stopped.
"""

import csv
import dataclasses
import io
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from s2f import files, layout, pair, split
from s2f.audio import SAMPLE_RATE, map_waveform
from s2f.console import Progress, jsonable, silent
from s2f.device import choose_device
from s2f.errors import DatasetError, UsageError
from s2f.evaluation_data import LABELS, META, read_list, sf2f_split
from s2f.face_data import index_faces
from s2f.face_detection import choose_detector
from s2f.files import Link, PassedOver, by_suffix, write_bytes
from s2f.images import FRAME, encode, open_photo
from s2f.landmarks import draw_landmarks, read_landmarks, refuse_larger_frame
from s2f.layout import SPLITS
from s2f.names import composed
from s2f.pack import pack_tree
from s2f.pair import CLASS, VOICE, Found, MetaPeople, PairPlan
from s2f.prep import Failure, PrepReport, Step, prepare
from s2f.prep_audio import audio_step, log_mel_stats, waveforms_step
from s2f.prep_faces import (
    embeddings_step,
    faces_step,
    landmarks_step,
    maker_of,
    marked_step,
    read_space,
)
from s2f.stores import Place
from s2f.visualize import ContactSheet

META_FILES = {  # that say who is who, and where they are had
    "vox1_meta.csv": "VoxCeleb's site",
    "vox2_meta.csv": "VoxCeleb's site",
    "full_vox2_meta.csv": "HQ-VoxCeleb's repository",
    "identity_meta.csv": "VGGFace2's site",
}
HQ = ("masked_faces", "origin_faces")  # of HQ-VoxCeleb: one photo of a person in both
SHEET_PEOPLE = 100  # on the contact sheet, at most
SHOWN = 20  # names of a kind in report.md


@dataclass(frozen=True)
class Amount:
    """How much there is of a data set, or of a split of it."""

    people: int
    photos: int
    recordings: int
    hours: float  # of the recordings


@dataclass(frozen=True)
class LeftOut:
    """A file that is not in the data set, and why."""

    file: Path  # of the sources
    why: str
    hint: str | None = None


@dataclass(frozen=True)
class DatasetReport:
    """What became of photos and recordings."""

    # What they were taken for, and how many people of it there are.
    faces: Mapping[str, int]
    voices: Mapping[str, int]
    metas: tuple[Path, ...]  # files that said who is who
    whole: Amount
    splits: Mapping[str, Amount]  # by `train`, `val` and `test`
    strata: tuple[Mapping[str, object], ...]  # labels, and people of each split, if there are any
    unlabelled: tuple[str, ...]  # people whom the labels do not know
    renamed: Mapping[str, str]  # identities whose folders have another name, and that
    shared: tuple[str, ...]  # people of both VoxCelebs, each one identity
    collisions: tuple[str, ...]  # people of one name, kept apart by their ids
    people_left_out: Mapping[str, tuple[str, ...]]  # by reason: folders' names
    files_left_out: tuple[LeftOut, ...]  # files of people who are paired
    passed_over: Mapping[str, Mapping[str, int]]  # files of no use in either folder, by suffix
    remarks: Mapping[str, Sequence[str]]  # on recordings, by path below their folder
    detector: str | None  # None if no photo had to be searched
    embedding_space: str | None  # hash of the face encoder, if there was one
    pack: bool  # whether there is one
    stale: tuple[str, ...]  # what stands below `pairs`, and nowhere else: its sources went away


def prepare_dataset(
    faces: Path,
    voices: Path,
    out: Path,
    *,
    metas: Sequence[Path] | None = None,
    detector: str | None = None,
    device: str = "auto",
    face_encoder: Path | None = None,
    shares: tuple[float, float | None] | Literal["sf2f"] = (0.8, None),
    by: Path | None = None,
    columns: Sequence[str] | None = None,
    seed: int = 0,
    pack: bool = False,
    prefer: str = "wav",
    link: Link = Link.HARD,
    workers: int | None = None,
    progress: Progress = silent,
    note: Callable[[str], None] = lambda text: None,
) -> DatasetReport:
    """Make trees for training, at `out`, of photos and recordings of people, by their names.

    Who is who is found as by `pair.pair_identities`; without `metas` those of `META_FILES` are
    taken that lie in or beside the folders. Photos are framed and their landmarks found by the
    `detector`, but for those with NAME_landmarks.npy beside them, and recordings become waveforms,
    but for .npy; these are taken as they are. Of recordings of one name that with the suffix
    `prefer` is taken, and of HQ-VoxCeleb's photos the masked ones. With a `face_encoder` photos are
    embedded, and with `pack` all is packed. `shares` are those of training and validation, or
    "sf2f": the splits of `evaluation_data.hq_voxceleb`; these, `by`, `columns`, `seed` and `link`
    are as for `split.split_tree`. A file that cannot be used costs itself only. Killed at any
    moment and run again, it leaves the same files. `note` is told what the folders are taken for.

    Raises a `DatasetError` if a folder holds no photos or recordings, a meta file is missing that
    would join them, nobody has both, or landmarks are of another frame; a `UsageError` if folders
    overlap, `pack` is asked for without a `face_encoder`, "sf2f" without the lists that it goes by,
    or `out` holds another data set; and as the steps do.
    """
    if pack and face_encoder is None:
        hint = "give --face-encoder FILE, whose embeddings it is to hold"
        raise UsageError("a pack holds embeddings, and there is no face encoder", hint=hint)
    train, val = (0.8, None) if shares == "sf2f" else shares
    split.shares(train, val)
    space = read_space(face_encoder) if face_encoder else None
    for root in (faces, voices):
        if not root.is_dir():
            raise DatasetError(f"{root}: is no folder", hint="check its path")
        files.refuse_overlap(root, out)
    progress(0, 0, "listing")
    prefer = prefer.lower().removeprefix(".")
    who = find_who(faces, voices, out, metas=metas, prefer=prefer)
    members = published_splits(who) if shares == "sf2f" else None
    labels = split.labels_of(by, [one.identity for one in who.plan.pairs], columns)
    for what, found in (("faces", who.faces), ("voices", who.voices)):
        note(f"{what}: {_counted(found)}")
    note(f"{len(who.plan.pairs)} people have both")
    with files.alone_in(out):
        made = _Made(who, faces, voices, out / "pairs", workers, progress)
        made.make_photos(detector, device, face_encoder)
        made.make_waveforms(prefer)
        people = made.whole()
        endings = [layout.LANDMARKS, *([layout.EMBEDDING] if space else [])]
        good = {path for mine in people.values() for kind in mine for path in kind}
        stems = {layout.renamed(photo, "") for _, photos in people.values() for photo in photos}

        def wants(path: str) -> bool:
            ending = next(filter(path.endswith, endings), None)
            return path in good or bool(ending and path.removesuffix(ending) in stems)

        # What an earlier run left: of other options, or of sources that went bad or away.
        left = [*itertools.filterfalse(wants, files.names(out / "pairs"))]
        planned = made.stems() if left else set()
        made.stale &= {*left}
        made.stale |= {path for path in left if _stem(path) not in planned}
        tree = out / "split"
        dealt = split.split_tree(
            *(out / "pairs", tree),
            train=train,
            val=val,
            by=by,
            columns=columns,
            seed=seed,
            link=link,
            wants=wants,
            members=members,
            progress=made.told("split"),
        )
        made.failed += [LeftOut(tree, error.message, error.hint) for error in dealt.failed]
        for name in dealt.splits:
            for path in left:
                (tree / name / path).unlink(missing_ok=True)
        if labels.columns:
            rows = [("identity", *labels.columns)]
            rows += [(name, *(value or "" for value in labels.of(name))) for name in people]
            with io.StringIO(newline="") as table:
                csv.writer(table).writerows(rows)
                write_bytes(tree / LABELS[0], table.getvalue().encode())
        if dealt.splits["train"]:
            told = made.told("stats")
            log_mel_stats(tree / "train", out / "stats.json", workers=workers, progress=told)
        if pack and face_encoder:
            packed = pack_tree(
                *(tree, out / "pack"),
                face_encoder=face_encoder,
                workers=workers,
                progress=made.told("pack"),
            )
            made.failed += map(_left_out, packed.failed)
        on = choose_device(device)
        maker = maker_of(face_encoder, on) if face_encoder else None
        named = space.sha256 if space else ""
        index_faces(tree, maker, named, device=on, progress=made.told("index"))
        hours = {
            path: len(map_waveform(out / "pairs" / path)) / SAMPLE_RATE / 3600
            for audios, _ in people.values()
            for path in audios
        }

        def amount(names: Sequence[str]) -> Amount:
            audios = [path for name in names for path in people[name][0]]
            n_photos = sum(len(people[name][1]) for name in names)
            total = round(sum(map(hours.__getitem__, audios)), 6)
            return Amount(len(names), n_photos, len(audios), total)

        left_out = dict(who.left_out)
        for name, why in made.nobody.items():
            left_out[why] = tuple(sorted((*left_out.get(why, ()), name)))
        strata = [
            {"labels": dict(one.labels), **one.counts} for one in dealt.strata if by is not None
        ]
        report = DatasetReport(
            faces=who.faces,
            voices=who.voices,
            metas=who.metas,
            whole=amount([*people]),
            splits={name: amount(names) for name, names in dealt.splits.items()},
            strata=tuple(strata),
            unlabelled=dealt.unlabelled if by is not None else (),
            renamed=who.renamed,
            shared=tuple(one.identity for one in who.plan.pairs if len(one.datasets) > 1),
            collisions=who.people.collisions,
            people_left_out=dict(sorted(left_out.items())),
            files_left_out=tuple(sorted(made.failed, key=lambda one: str(one.file))),
            passed_over=who.passed_over,
            remarks=dict(sorted(made.remarks.items())),
            detector=made.detector,
            embedding_space=space.sha256 if space else None,
            pack=pack,
            stale=tuple(sorted(made.stale)),
        )
        _write(report, out, people)
    if not pack and (out / "pack").is_dir():
        note(f"{out / 'pack'} is as an earlier run left it: give --pack again, or remove it")
    for name in ("train", "val"):
        if not dealt.splits[name]:
            note(f"nobody is in {name}, which training needs: add people, or choose other shares")
    return report


@dataclass(frozen=True)
class Who:
    """Who has faces and voices, by the names of folders and files alone."""

    people: MetaPeople
    plan: PairPlan
    faces: Mapping[str, int]  # people of each data set that was recognised
    voices: Mapping[str, int]
    metas: tuple[Path, ...]
    renamed: Mapping[str, str]
    left_out: Mapping[str, tuple[str, ...]]  # names of folders, by reason
    passed_over: Mapping[str, Mapping[str, int]]


def find_who(
    faces: Path, voices: Path, out: Path, *, metas: Sequence[Path] | None, prefer: str = "wav"
) -> Who:
    """Find who has faces and voices, and which data sets these are.

    Raises a `DatasetError` as `pair.pair_identities`, or if a file of `META_FILES` is missing that
    would say who is who, which it names.
    """
    there = find_metas((faces, voices)) if metas is None else tuple(metas)
    people = pair.read_meta(there)
    passed_over = {"faces": PassedOver(), "voices": PassedOver()}
    heard = pair.find_people(voices, "voice", people, passed_over["voices"], prefer=prefer)
    seen, n_dropped = _masked_alone(pair.find_people(faces, "face", people, passed_over["faces"]))
    plan = pair.plan_pairs([*heard, *seen], people, out / "pairs")
    _refuse_missing_meta(heard, seen, people, plan)
    if not plan.pairs:
        message = f"nobody of {plan.n_people} people has both a face and a voice"
        such = [next((o.label or o.names[0] for o in kind), "") for kind in (heard, seen)]
        hint = f"name the folders of one person alike; voices are such as {such[0]!r}, faces such "
        hint += f"as {such[1]!r}"
        if not plan.n_people:
            hint = f"put the files of each person, such as {such[0]!r}, into a folder of their name"
        raise DatasetError(message, hint=hint)
    left_out: dict[str, set[str]] = defaultdict(set)
    for alone in plan.unmatched:
        left_out[f"{alone.kind}: {alone.why}"].add(alone.name)
    if n_dropped:
        passed_over["faces"][f"in {HQ[1]}, beside {HQ[0]}"] += n_dropped
    labels = {one.folder: one.label or "" for one in (*heard, *seen)}
    renamed = {
        composed(label): one.identity
        for one in plan.pairs
        for label in (labels[folder] for folder in (*one.voices, *one.faces))
        if label != one.identity and not VOICE.fullmatch(label) and not CLASS.fullmatch(label)
    }
    return Who(
        people,
        plan,
        _recognised(seen, people),
        _recognised(heard, people),
        there,
        dict(sorted(renamed.items())),
        {why: tuple(sorted(names)) for why, names in left_out.items()},
        {kind: dict(sorted(counts.items())) for kind, counts in passed_over.items()},
    )


def published_splits(who: Who) -> dict[str, str]:
    """Put people of the VoxCelebs into SF2F's splits; of two the one farthest from training.

    Raises a `UsageError` if the list is missing by whose rows that goes, or a `DatasetError` as
    `evaluation_data.read_list`.
    """
    lists = {part: path for part, name in META.items() for path in who.metas if path.name == name}
    for one in who.plan.pairs:
        if missing := sorted((set(one.datasets) & set(META)) - set(lists)):
            message = f"{one.identity}: SF2F's splits go by the rows of {META[missing[0]]}"
            raise UsageError(message, hint=f"give --meta {META[missing[0]]}, or shares to --split")
    members: dict[str, str] = {}
    for path in lists.values():
        for row, (_, voice, _) in enumerate(read_list(path)):
            for person in who.people.find(voice)[0]:
                before = members.get(person.identity, "train")
                members[person.identity] = max(before, sf2f_split(row), key=[*SPLITS].index)
    return members


def find_metas(roots: Sequence[Path]) -> tuple[Path, ...]:
    """Find the files of `META_FILES` in folders, one level below, or beside them; each once."""
    found: dict[str, Path] = {}
    for root in roots:
        inside = [root / name for name in files.folders(root)] if root.is_dir() else []
        for folder in (root, root.parent, *inside):
            for name in META_FILES:
                if (folder / name).is_file():
                    found.setdefault(os.path.realpath(folder / name), folder / name)
    return tuple(found.values())


def _masked_alone(found: Sequence[Found]) -> tuple[list[Found], int]:
    """Leave out HQ-VoxCeleb's photos with their ground, where they are masked too; and count."""
    masked = {one.folder for one in found if HQ[0] in Path(one.folder).parts}
    kept, n_dropped = [], 0
    for one in found:
        parts = Path(one.folder).parts
        twin = str(Path(*(HQ[0] if part == HQ[1] else part for part in parts)))
        if HQ[1] in parts and twin in masked:
            n_dropped += len(one.names)
        else:
            kept.append(one)
    return kept, n_dropped


def _recognised(found: Sequence[Found], people: MetaPeople) -> dict[str, int]:
    """Count the people of each data set."""
    whose: dict[str, set[str]] = defaultdict(set)
    for one in found:
        whose[_dataset(one, people)].add(composed(one.label or one.folder))
    return {name: len(labels) for name, labels in sorted(whose.items())}


def _dataset(one: Found, people: MetaPeople) -> str:
    """Name the data set that a folder is of."""
    label = one.label
    if label is None:
        return "files of nobody"
    if VOICE.fullmatch(label):
        return {"vox1": "VoxCeleb1", "vox2": "VoxCeleb2"}[pair.dataset_of(label)]
    if CLASS.fullmatch(label):
        return "VGGFace2"
    if one.kind == "face" and set(HQ) & set(Path(one.folder).parts):
        return "HQ-VoxCeleb"
    if one.kind == "face" and people.find(label)[0]:
        return "VGGFace"  # whose folders have the names of VoxCeleb1's list
    return "folders of names"


def _refuse_missing_meta(
    heard: Sequence[Found], seen: Sequence[Found], people: MetaPeople, plan: PairPlan
) -> None:
    """Raise a `DatasetError` if a whole data set is joined to nobody for want of a meta file."""
    paired = {folder for one in plan.pairs for folder in (*one.voices, *one.faces)}
    groups: dict[str, list[Found]] = defaultdict(list)
    for one in (*heard, *seen):
        groups[f"{one.kind} {_dataset(one, people)}"].append(one)
    by_name = any(_dataset(one, people) not in ("VGGFace2", "files of nobody") for one in seen)
    knows_classes = any(how == "id" and CLASS.fullmatch(entry) for how, entry in people.index)
    named = {
        pair.dataset_of(voice)
        for (how, _), several in people.index.items()
        for person in several
        for voice in person.voices
        if how == "name"
    }
    for group, members in groups.items():
        if any(one.folder in paired for one in members):
            continue
        missing = ""
        if group == "voice VoxCeleb1" and "vox1" not in named:
            missing = "vox1_meta.csv"
        elif group == "voice VoxCeleb2" and by_name and "vox2" not in named:
            missing = "full_vox2_meta.csv"
        elif group == "voice VoxCeleb2" and not by_name and not knows_classes:
            missing = "vox2_meta.csv"
        elif group == "face VGGFace2" and not knows_classes and not people.names:
            ours = "voice VoxCeleb2" in groups
            missing = "vox2_meta.csv" if ours else "identity_meta.csv"
        elif group == "voice VoxCeleb1" and not by_name and not people.names:
            missing = "identity_meta.csv"
        if missing:
            kind, _, name = group.partition(" ")
            such = members[0]
            message = f"{such.root}: {len(members)} folders of {name}, such as {such.label}, are "
            message += f"joined to no {'face' if kind == 'voice' else 'voice'} without {missing}"
            hint = f"give --meta {missing}, from {META_FILES[missing]}, or put it into that folder"
            raise DatasetError(message, hint=hint)


class _Made:
    """What is made of the files of those who are paired, and what of them failed."""

    def __init__(
        self,
        who: Who,
        faces: Path,
        voices: Path,
        pairs: Path,
        workers: int | None,
        progress: Progress,
    ) -> None:
        self.faces, self.voices, self.pairs = faces, voices, pairs
        self.workers, self.progress = workers, progress
        self.identities = [one.identity for one in who.plan.pairs]
        self.failed: list[LeftOut] = []
        self.nobody: dict[str, str] = {}  # people of whom too little is left, and why
        self.remarks: dict[str, Sequence[str]] = {}
        self.stale: set[str] = set()
        self.detector: str | None = None
        # Paths of files below the sources, and of what is made of them, below `pairs`.
        self.audios: dict[str, str] = {}
        self.photos: dict[str, str] = {}
        self.recordings: dict[str, str] = {}
        self.waveforms: dict[str, str] = {}
        self.unframed: dict[str, str] = {}
        self.marked: dict[str, str] = {}
        for folder in who.plan.folders:
            place = Path(folder.target).relative_to(pairs)
            is_voice = place.parts[1] == "audios"
            inside = Path(folder.source).relative_to(voices if is_voice else faces).as_posix()
            below, target = "" if inside == "." else f"{inside}/", place.as_posix()
            if is_voice:
                for name in folder.names:
                    kind = self.waveforms if layout.is_array(name) else self.recordings
                    kind[f"{below}{name}"] = f"{target}/{name}"
            else:
                self._place_photos(folder.names, below, target)

    def _place_photos(self, names: Sequence[str], below: str, target: str) -> None:
        """Give each photo a name of its own, also where two differ in their suffix only."""
        there, taken = set(names), set[str]()
        for name in filter(layout.is_photo, names):
            stem, suffix = files.stem(name), name[len(files.stem(name)) :]
            is_first = stem.casefold() not in taken
            own = stem if is_first else f"{stem}_{suffix[1:]}"
            taken.add(own.casefold())
            marks = f"{stem}{layout.LANDMARKS}"
            if is_first and marks in there:
                self.marked[f"{below}{name}"] = f"{target}/{own}{suffix}"
                self.marked[f"{below}{marks}"] = f"{target}/{own}{layout.LANDMARKS}"
            else:
                self.unframed[f"{below}{name}"] = f"{target}/{own}{suffix}"

    def told(self, step: str) -> Progress:
        """Tell of a step by its name."""
        return lambda done, total, what: self.progress(done, total, f"{step}: {what}")

    def make_photos(self, detector: str | None, device: str, face_encoder: Path | None) -> None:
        """Frame photos, find their landmarks, and embed them; whole ones are in `photos`."""
        embed = embeddings_step(face_encoder, device) if face_encoder else None
        search = []
        if self.unframed:
            self.detector = choose_detector(detector)
            search = [faces_step(self.detector, device), landmarks_step(self.detector, device)]
        made = self._run(marked_step(), self.faces, self.marked)
        places = [note for note in made.notes.values() if note] if made else []
        refuse_larger_frame(self.faces, places)
        bad = {_below(one.source, self.faces) for one in made.failed} if made else set()
        for source, target in self.marked.items():
            if layout.is_photo(source):
                marks = f"{files.stem(source)}{layout.LANDMARKS}"
                if source not in bad and marks not in bad:
                    self.photos[target] = source
                elif source not in bad:
                    why = f"{marks.rpartition('/')[2]} cannot be used"
                    self.failed.append(LeftOut(self.faces / source, why))
        for step in search[:1]:
            done = self._run(step, self.faces, self.unframed)
            bad = {_below(one.source, self.faces) for one in done.failed} if done else set()
            assert step.rename
            framed = {
                step.rename(target): source
                for source, target in self.unframed.items()
                if source not in bad
            }
            for step in search[1:]:
                self.photos |= self._run_beside(step, framed)
        if embed:
            self.photos = self._run_beside(embed, self.photos)

    def make_waveforms(self, prefer: str) -> None:
        """Make waveforms of recordings; good ones are in `audios`."""
        steps = (
            (audio_step(store="waveform"), self.recordings),
            (waveforms_step(), self.waveforms),
        )
        for step, places in steps:
            done = self._run(step, self.voices, places, prefer=prefer)
            if done is None:
                continue
            assert step.rename
            bad = {_below(one.source, self.voices) for one in done.failed}
            outputs = {step.rename(target): source for source, target in places.items()}
            self.audios |= {t: source for t, source in outputs.items() if source not in bad}
            self.remarks |= {
                outputs[target]: note for target, note in done.notes.items() if target in outputs
            }

    def _run(
        self, step: Step, root: Path, places: Mapping[str, str], *, prefer: str | None = None
    ) -> PrepReport | None:
        """Take a step with some files of a folder; those that fail are left out."""
        if not places:
            return None
        done = prepare(
            *(step, root, self.pairs),
            workers=self.workers,
            places=places,
            prefer=prefer if prefer and step.wants(f"name.{prefer}") else None,
            progress=self.told(step.name),
        )
        self.failed += map(_left_out, done.failed)
        self.stale.update(done.stale)
        return done

    def _run_beside(self, step: Step, photos: Mapping[str, str]) -> dict[str, str]:
        """Take a step with photos below `pairs`; give those that did not fail, with sources."""
        if not photos:
            return {}
        places = {photo: photo for photo in photos}
        done = prepare(
            *(step, self.pairs, self.pairs),
            workers=self.workers,
            places=places,
            progress=self.told(step.name),
        )
        self.stale.update(done.stale)
        failed = {_below(one.source, self.pairs): one for one in done.failed}
        for photo, one in failed.items():
            self.failed.append(_left_out(one, self.faces / photos[photo]))
        return {photo: source for photo, source in photos.items() if photo not in failed}

    def stems(self) -> set[str]:
        """Name what is made, or was to be, of all sources, below `pairs`, without endings."""
        sources = (self.recordings, self.waveforms, self.unframed, self.marked)
        return {_stem(target) for places in sources for target in places.values()}

    def whole(self) -> dict[str, tuple[list[str], list[str]]]:
        """List the waveforms and photos, below `pairs`, of each person who has some of both.

        Raises a `DatasetError` if nobody has.
        """
        inside: dict[str, tuple[list[str], list[str]]] = {who: ([], []) for who in self.identities}
        for kind, made in enumerate((self.audios, self.photos)):
            for path in sorted(made):
                inside[path.partition("/")[0]][kind].append(path)
        for who, (audios, photos) in inside.items():
            if not (audios and photos):
                lacks = "photos" if audios else "recordings" if photos else "files"
                self.nobody[who] = f"none of whose {lacks} can be used"
        people = {who: mine for who, mine in inside.items() if who not in self.nobody}
        if not people:
            first = self.failed[0]
            message = f"nobody of {len(inside)} people has a photo and a recording that can be used"
            raise DatasetError(f"{message}; {first.file}: {first.why}", hint=first.hint)
        return people


def _stem(path: str) -> str:
    ending = next((e for e in (layout.LANDMARKS, layout.EMBEDDING) if path.endswith(e)), None)
    return path.removesuffix(ending) if ending else files.stem(path)


def _below(path: Place, root: Path) -> str:
    assert isinstance(path, Path)
    return path.relative_to(root).as_posix()


def _left_out(failure: Failure, source: Path | None = None) -> LeftOut:
    why = failure.error.message.removeprefix(str(failure.source)).removeprefix(":").lstrip()
    is_taken = isinstance(failure.error, UsageError)  # its place, by what another step made
    hint = "remove that, or give another OUT" if is_taken else failure.error.hint
    return LeftOut(source or Path(str(failure.source)), why, hint)


def _write(
    report: DatasetReport, out: Path, people: Mapping[str, tuple[list[str], list[str]]]
) -> None:
    """Write the report, for programs and people, and the contact sheet."""
    fields = jsonable(dataclasses.asdict(report))
    write_bytes(out / "report.json", json.dumps(fields, indent=1, ensure_ascii=False).encode())
    write_bytes(out / "report.md", _page(report).encode())
    write_bytes(out / "sheet.jpg", _sheet(out / "pairs", people))


def _page(report: DatasetReport) -> str:
    """Write the report in Markdown."""
    rows = [("all", report.whole), *report.splits.items()]
    lines = [
        "# The data set",
        "",
        "| | people | photos | recordings | hours |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {of.people} | {of.photos} | {of.recordings} | {of.hours:.2f} |"
        for name, of in rows
    ]
    took = [(what, getattr(report, what)) for what in ("faces", "voices")]
    lines += ["", *(f"- {what} taken for: {_counted(found)}" for what, found in took)]
    lines += [f"- who is who: {', '.join(map(str, report.metas)) or 'by equal names'}"]
    lines += [f"- photos searched with: {report.detector or 'none, all were marked'}"]
    if report.embedding_space is None:
        lines += ["- embeddings: none, as no face encoder was given; training makes them"]
    for what, suffixes in report.passed_over.items():
        lines += [f"- passed over among the {what}: {by_suffix(suffixes)}"] if suffixes else []
    if report.strata:
        lines += ["", "## Labels", ""]
        for stratum in report.strata:
            labels = stratum["labels"]
            assert isinstance(labels, Mapping)
            told = ", ".join(f"{name} {value or 'unknown'}" for name, value in labels.items())
            counts = {name: n for name, n in stratum.items() if name != "labels"}
            lines += [f"- {told}: {', '.join(f'{name} {n}' for name, n in counts.items())}"]
    lists = {
        "People left out": report.people_left_out,
        "Files left out": {
            why: tuple(str(one.file) for one in report.files_left_out if one.why == why)
            for why in dict.fromkeys(one.why for one in report.files_left_out)
        },
        "Names": {
            "renamed": tuple(f"{old} -> {new}" for old, new in report.renamed.items()),
            "in both VoxCelebs, made one": report.shared,
            "of one name, kept apart": report.collisions,
            "without labels": report.unlabelled,
            "made of files that are gone": report.stale,
        },
    }
    for title, reasons in lists.items():
        if any(reasons.values()):
            lines += ["", f"## {title}", ""]
            lines += [f"- {why}, {len(n)}: {_some(n)}" for why, n in reasons.items() if n]
    if report.remarks:
        lines += ["", "## Recordings that are odd", ""]
        some = list(report.remarks.items())[:SHOWN]
        lines += [f"- {name}: {'; '.join(remarks)}" for name, remarks in some]
        more = len(report.remarks) - len(some)
        lines += [f"- and {more} more, in report.json"] if more else []
    told = "Some of the people, with how many photos + recordings there are:"
    return "\n".join([*lines, "", told, "", "![faces with their landmarks](sheet.jpg)", ""])


def _counted(found: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({n} people)" for name, n in found.items())


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _sheet(pairs: Path, people: Mapping[str, tuple[list[str], list[str]]]) -> bytes:
    """Show the first photo of some people, evenly chosen, with its landmarks."""
    names = [*people]
    n = min(SHEET_PEOPLE, len(names))
    sheet = ContactSheet(n)
    for name in (names[k * len(names) // n] for k in range(n)):
        audios, photos = people[name]
        photo = open_photo(pairs / photos[0]).resize((FRAME, FRAME))
        points = read_landmarks(pairs / layout.renamed(photos[0], layout.LANDMARKS))
        caption = f"{name}: {len(photos)} + {len(audios)}"
        sheet.add(caption, draw_landmarks(photo, points))
    return encode(sheet.image(), ".jpg", {})
