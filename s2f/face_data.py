"""Photos of a face tree: as a torch Dataset, mixed with faces that look alike, and registered.

`FaceDataset` reads a photo with its landmarks and what a decoder is to draw of it, and another face
to mix it with. `FaceData` holds the photos of both splits, registers them to the mean shape, mixes
morphs, and starts decoders at their linear model: all tasks on faces start from the same one, so
that the embedding of the face encoder is what the decoder draws.
"""

import dataclasses
import functools
import os
import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from s2f import files, layout
from s2f.appearance_model import PartsCode, PartsEncoder, before_ground, placed
from s2f.console import Progress, silent
from s2f.dataloader import Item, Key
from s2f.distributed import ALONE, Ranks
from s2f.embeddings import CHECKED, Gallery, Maker, check_embeddings, read_embedding
from s2f.errors import DatasetError, ImageError, together
from s2f.face_decoder import FaceDecoder, FaceDecoderConfig
from s2f.files import Names, VerifyReport
from s2f.images import Fit, load_face
from s2f.landmarks import (
    OF_72,
    TEMPLATE_POINTS,
    map_68,
    place,
    read_landmarks,
    refuse_larger_frame,
)
from s2f.layout import FaceFiles
from s2f.warp import warp

NEIGHBOURS = 10  # that a face is mixed with one of
CELLS = 2**24  # cosines held at a time
PEOPLE = 128  # others, nearest on the whole, whose faces are compared with a person's
AT_ONCE = 1024  # people that are compared at a time
COMPARED = 2**28  # values of embeddings that are compared as they are; of more, their
AXES = 128  # values along the axes on which most lies,
SAMPLED = 16384  # of so many embeddings
INDEX_FILE, INDEX_VERSION = "index.json", 3
START = 700  # photos that a linear start is fitted to
NAMED = 5  # files that a note names


@dataclass(frozen=True)
class FaceIndex:
    """What is to be known of a split's photos before any is read.

    It is listed from the tree, or read where `s2f prep index` has written it. Then the landmarks
    were looked at too, and who looks alike may be known; and all that has a value a photo is
    mapped, so that an index of many is open at once.
    """

    folder: Path
    people: Names  # identities, sorted
    paths: Names  # [n] photos below the folder, by person
    who: NDArray[np.int32]  # [n] whose each is
    rows: NDArray[np.int32]  # [n] which of the targets has its landmarks
    targets: NDArray[np.int32]  # [m] the photos that have landmarks of their own
    beside: NDArray[np.bool_]  # [4 m] which of these targets have each of `BESIDE_TARGETS`
    counts: Mapping[str, int]  # how many have it, by ending
    files: str  # digest of the paths, as `layout.digest` has it
    means: Mapping[str, Tensor]  # mean landmarks [k 2], by ending, where they were looked at
    neighbours: NDArray[np.int32] | None = None  # [m q] targets that each is like
    space: str = ""  # of the embeddings that these were found by
    stale: str = ""  # which folder is newer than an index that is there, and was not used

    @classmethod
    def of(cls, folder: Path) -> "FaceIndex":
        """Read the index of a split's folder if it is up to date, else list the tree.

        It is, if no folder of the tree has changed since. Raises a DatasetError if an index cannot
        be read, or as `layout.photos`.
        """
        index, stale = _index_of(folder) / INDEX_FILE, ""
        if index.is_file():
            try:
                told = files.unsealed(index.read_bytes())
                stale = "" if told["version"] == INDEX_VERSION else INDEX_FILE
                if not stale:
                    arrays = files.map_arrays(told["arrays"], index.parent, index)
                    stale = _changed(folder, _names(arrays, "folders"), arrays.pop("times"), index)
                if not stale:
                    return cls._of_arrays(folder, arrays, told)
            except (LookupError, OSError, TypeError, ValueError) as error:
                message = f"{index}: is no index that can be read: {error}"
                raise DatasetError(message, hint=_again(folder)) from error
        return dataclasses.replace(cls.listed(folder), stale=stale)

    @classmethod
    def _of_arrays(
        cls, folder: Path, arrays: dict[str, Any], told: Mapping[str, Any]
    ) -> "FaceIndex":
        people, paths = (_names(arrays, name) for name in ("people", "paths"))
        means = {end: torch.tensor(points) for end, points in told["means"].items()}
        same = {name: told[name] for name in ("counts", "files", "space")}
        return cls(folder, people, paths, **arrays, **same, means=means)

    @classmethod
    def listed(cls, folder: Path) -> "FaceIndex":
        """List the tree of a split; raises a DatasetError as `layout.photos`."""
        people: list[bytes] = []
        who, rows, targets = array("i"), array("i"), array("i")
        have: list[frozenset[str]] = []
        stems: dict[Path, int] = {}
        identity = ""

        def photos() -> Iterator[bytes]:
            nonlocal identity, stems
            for k, photo in enumerate(layout.photos(folder)):
                if photo.identity != identity:
                    identity, stems = photo.identity, {}  # rows of this person's targets
                    people.append(os.fsencode(identity))
                row = stems.setdefault(photo.target, len(targets))
                if row == len(targets):
                    targets.append(-1)
                    have.append(photo.beside)
                if photo.path.with_suffix("") == photo.target:
                    targets[row], have[row] = k, photo.beside
                who.append(len(people) - 1)
                rows.append(row)
                yield os.fsencode(photo.path.relative_to(folder).as_posix())

        paths = Names.of(photos())
        beside = np.array([[e in some for some in have] for e in layout.BESIDE_TARGETS], np.bool_)
        return cls(
            *(folder, Names.of(people), paths),
            who=np.array(who, np.int32),
            rows=np.array(rows, np.int32),
            targets=np.array(targets, np.int32),
            beside=beside,
            counts=dict(zip(layout.BESIDE_TARGETS, beside.sum(1).tolist(), strict=True)),
            files=layout.digest(paths),
            means={},
        )

    def name(self, photo: int) -> str:
        """Name a photo below the folder; raises a DatasetError if an index that was read is bad."""
        self._refuse_beyond(photo, len(self.paths))
        name = os.fsdecode(self.paths[photo])
        files.refuse_outside(self.folder, name, self._teller)
        return name

    def path(self, photo: int) -> str:
        """Name a photo with its folder, as text: a `Path` takes as long as all else to make."""
        return self._before + self.name(photo)

    def target(self, row: int) -> str:
        """Name a photo that has landmarks of its own as `path` does; both raise as `name`."""
        self._refuse_beyond(row, len(self.targets))
        return self.path(int(self.targets[row]))

    @functools.cached_property
    def _before(self) -> str:
        return str(self.folder / "name").removesuffix("name")

    @functools.cached_property
    def _teller(self) -> Path:
        return _index_of(self.folder) / "paths.npy"

    def _refuse_beyond(self, number: int, end: int) -> None:
        if not 0 <= number < end:  # of an array that was not compared with its hash
            message = f"{_index_of(self.folder)}: is damaged: it has no photo {number}, of {end}"
            raise DatasetError(message, hint=_again(self.folder))

    def has(self, ending: str) -> NDArray[np.bool_]:
        """Tell which targets [m] have a file of this ending."""
        found: NDArray[np.bool_] = self.beside[layout.BESIDE_TARGETS.index(ending)]
        return found

    def write(self, folders: Sequence[tuple[str, int]]) -> None:
        """Write it where `of` finds it; `folders` are the tree's, and when each had changed last.

        Raises an OutputError.
        """
        named = Names.of(os.fsencode(name) for name, _ in folders)
        arrays: dict[str, Any] = {"times": np.array([time for _, time in folders], np.int64)}
        for name, one in (("folders", named), ("people", self.people), ("paths", self.paths)):
            arrays |= {name: one.text, f"{name}_starts": one.starts}
        for name in ("who", "rows", "targets", "beside", "neighbours"):
            if getattr(self, name) is not None:
                arrays[name] = getattr(self, name)
        told: dict[str, Any] = {"version": INDEX_VERSION, "files": self.files, "space": self.space}
        told |= {"means": {end: mean.tolist() for end, mean in self.means.items()}}
        told |= {"counts": self.counts}
        place = _index_of(self.folder)
        with files.atomic_folder(place, replace=True) as new:
            told["arrays"] = files.write_arrays(arrays, new)
            files.write_bytes(new / INDEX_FILE, files.sealed(told))


def _names(arrays: dict[str, Any], name: str) -> Names:
    return Names(arrays.pop(name), arrays.pop(f"{name}_starts"))


def _index_of(folder: Path) -> Path:
    return folder.parent / ".s2f" / "index" / folder.name


def _again(folder: Path) -> str:
    return f"give s2f prep index {folder.parent} again, or remove {_index_of(folder)}"


def verify_index(data: Path, *, progress: Progress = silent) -> VerifyReport:
    """Read all of the indices of a tree, and compare their arrays with their hashes.

    Raises a DatasetError if there is none.
    """
    data = layout.tree_of(data)
    places = [_index_of(data / name) / INDEX_FILE for name in layout.SPLIT_FOLDERS]
    places = [index for index in places if index.is_file()]
    if not places:
        message = f"{data}: has no index of train, val or test"
        raise DatasetError(message, hint=f"make it with s2f prep index {data}")
    hashes: list[tuple[Path, str]] = []
    damaged: list[DatasetError] = []
    for index in places:
        try:
            told = files.unsealed(index.read_bytes())
            hashes += files.array_hashes(told["arrays"], index.parent, index)
        except (LookupError, OSError, TypeError, ValueError, AttributeError) as error:
            message = f"{index}: is no index that can be read: {error}"
            damaged.append(DatasetError(message, hint=f"give s2f prep index {data} again"))
    report = files.verify_hashes(hashes, f"give s2f prep index {data} again", progress=progress)
    return VerifyReport(report.files + len(places), (*damaged, *report.damaged))


def _changed(folder: Path, names: Names, times: NDArray[np.int64], index: Path) -> str:
    """Name a folder that has changed since, or is gone; "" if there is none."""
    for name, time in zip(map(os.fsdecode, names), times.tolist(), strict=True):
        files.refuse_outside(folder, name, index)
        try:
            changed = (folder / name).stat().st_mtime_ns
        except OSError:
            return name
        if changed != time:
            return name
    return ""


def folders_of(folder: Path) -> list[tuple[str, int]]:
    """List the folders that photos of a split may lie in, and when each has changed last."""
    found, seen = [(".", folder.stat().st_mtime_ns)], set()
    for identity in layout.identities(folder):
        found.append((identity.name, identity.stat().st_mtime_ns))
        for name, below, _ in os.walk(identity / "images", followlinks=True):
            path = Path(name)
            there = path.stat()
            if (there.st_dev, there.st_ino) in seen:
                below.clear()  # links may lead in a circle
                continue
            seen.add((there.st_dev, there.st_ino))
            found.append((path.relative_to(folder).as_posix(), there.st_mtime_ns))
    return found


@dataclass(frozen=True)
class IndexReport:
    """What was indexed."""

    data: Path
    photos: Mapping[str, int]  # of each split
    landmarks: Mapping[str, int]  # files of these
    people: Mapping[str, int]
    alike: int  # photos of train whose neighbours are known


def index_faces(
    data: Path,
    maker: Maker | None = None,
    space: str = "",
    *,
    device: torch.device,
    progress: Progress = silent,
) -> IndexReport:
    """Write down what training has to know of the photos of `data`, so that it need not look.

    Of each split that is there: the photos, which landmarks they have, that all of these can be
    used, and their mean. With a `maker`, whose embeddings of this `space` stand beside the photos
    of train that have landmarks, also which of these look alike, for morphs. Training looks again
    where a folder has changed since; files that are rewritten where they stand it does not notice
    before it reads them. Raises a DatasetError if there is no split, landmarks cannot be used (it
    names all), or an embedding is not there or cannot be read; a CheckpointError if another face
    encoder made them; or an OutputError.
    """
    data = layout.tree_of(data)
    folders = [data / name for name in layout.SPLIT_FOLDERS if (data / name).is_dir()]
    if not folders:
        layout.split(data, "train")  # which says so
    files.check_writable(data)
    photos, landmarks, people, alike = {}, {}, {}, 0
    for folder in folders:
        progress(0, 0, f"listing {folder.name}")
        seen = folders_of(folder)  # before it is listed: what changes meanwhile is newer
        index = FaceIndex.listed(folder)
        for end in (layout.LANDMARKS, layout.TEMPLATE):
            if end == layout.TEMPLATE and index.counts[end] < len(index.targets):
                continue
            k = TEMPLATE_POINTS if end == layout.TEMPLATE else 68
            dataset = FaceDataset(folder, landmarks=k, whole=True, index=index)
            if broken := dataset.look(progress=progress):
                raise together(f"{folder}: of {len(index.targets)} files of landmarks", broken)
            index = dataset.index
        if maker is not None and folder.name in layout.SPLITS["train"]:
            groups = torch.from_numpy(index.who[index.targets].astype(np.int64)).to(device)
            if len(torch.unique(groups)) > 1:
                directions = _directions(index, maker, progress).to(device)
                progress(0, 0, "looking for who looks alike")
                near = nearest(directions, groups, NEIGHBOURS).cpu().numpy().astype(np.int32)
                index, alike = dataclasses.replace(index, neighbours=near, space=space), len(near)
        index.write(seen)
        name = folder.name
        photos[name], landmarks[name] = len(index.paths), len(index.targets)
        people[name] = len(index.people)
    return IndexReport(data, photos, landmarks, people, alike)


def _directions(index: FaceIndex, maker: Maker, progress: Progress) -> Tensor:
    """Read the embeddings of all targets, each brought to length 1: [m d], or of many [m a].

    These are along the axes on which most of the others lies, so that they fit into memory.
    """
    have, m = index.has(layout.EMBEDDING), len(index.targets)
    if not have.all():
        lacks = index.target(int(have.argmin()))
        message = f"{lacks}: has no NAME{layout.EMBEDDING}; {int((~have).sum())} photos have none"
        raise DatasetError(message, hint="make them with s2f prep embeddings, or give no encoder")
    chosen = [k * m // CHECKED for k in range(CHECKED)]
    photos = {_embedding(index, row): Path(index.target(row)) for row in chosen}
    check_embeddings(maker, list(photos), photos.__getitem__)

    def read(rows: range, what: str) -> Tensor:
        table = np.empty((len(rows), maker.width), np.float32)
        for k, row in enumerate(rows):
            table[k] = read_embedding(_embedding(index, row), maker.width)
        progress(rows[-1], m, what)
        return functional.normalize(torch.from_numpy(table), dim=1)

    if m * maker.width <= COMPARED:
        return read(range(m), "reading embeddings")
    some = read(range(0, m, -(-m // SAMPLED)), "reading some embeddings")
    axes = torch.linalg.eigh(some.T @ some)[1][:, -AXES:]
    parts = [range(start, min(start + AT_ONCE, m)) for start in range(0, m, AT_ONCE)]
    return torch.cat([read(rows, "reading embeddings") @ axes for rows in parts])


def _embedding(index: FaceIndex, row: int) -> Path:
    return Path(layout.renamed(index.target(row), layout.EMBEDDING))


class FaceDataset(Dataset[Item]):
    """Photos of a face tree, each with its landmarks and the picture that the decoder draws."""

    share = 0.0  # of items that are morphs
    neighbours: NDArray[np.int64] | NDArray[np.int32]  # [m q], targets that each is mixed with

    def __init__(
        self,
        folder: Path,
        *,
        landmarks: int,
        fit: Fit = "squash",
        whole: bool = False,
        opacity: bool = False,
        index: FaceIndex | None = None,
    ) -> None:
        """List the tree of one split, or take its index.

        A photo has 68 landmarks, the seed's 72, which follow from them, or those of the template.
        The face encoder wants photos that are no squares to `fit`; landmarks and drawings are of
        the squashed photo. Drawings are the textures that whoever made the tree has registered to
        the mean shape; where there are none, or with `whole`, the photos. A texture's opacity, if
        there is one, is its fourth channel with `opacity`, and else it stands before the ground.
        Raises a DatasetError if only some photos have textures or opacities, or as `FaceIndex.of`.
        """
        self.folder, self.index = folder, index or FaceIndex.of(folder)
        self.landmarks, self.fit = landmarks, fit
        self.suffix = layout.LANDMARKS if landmarks in (68, 72) else layout.TEMPLATE
        self.registered = not whole and self._all_have(layout.TEXTURE)
        self.cut_out = self.registered and self._all_have(layout.OPACITY)
        self.opacity = opacity and self.cut_out
        self.counts = {"identities": len(self.index.people)}
        self.files = self.index.files

    def _all_have(self, suffix: str) -> bool:
        n = self.index.counts[suffix]
        if 0 < n < len(self.index.targets):
            have = self.index.has(suffix)
            lacks, has = (Path(self._stem(int(k))).name for k in (have.argmin(), have.argmax()))
            raise DatasetError(
                f"{self.folder}: {lacks} has no NAME{suffix} and {has} has one",
                hint="remove them, or make all",
            )
        return n > 0

    def __len__(self) -> int:
        return len(self.index.paths)

    def __getitem__(self, key: Key) -> Item:
        """Read a photo.

        Gives `face` uint8 [3 224 224], `drawing` [c 224 224], c 4 with its opacity, `landmarks`
        [k 2], `identity` [], and `own` [], whether the landmarks are the photo's own. If there are
        morphs also `other_drawing`, `other_landmarks` and `mix` [2], 0..1: the other's share in the
        shape and in the texture, 0 for an item that is no morph. Raises an ImageError if a picture
        cannot be read, or as `points`.
        """
        row, path = int(self.index.rows[key.item]), self.index.path(key.item)
        item = {
            "face": load_face(Path(path), fit=self.fit),
            "drawing": self._drawing(row),
            "landmarks": self.points(row),
            "identity": torch.tensor(int(self.index.who[key.item])),
            "own": torch.tensor(files.stem(path) == self._stem(row)),
        }
        if not self.share:
            return item
        drawn = random.Random(f"morph {key.seed}")
        if drawn.random() >= self.share:
            other, points, mix = item["drawing"], item["landmarks"], (0.0, 0.0)
        else:
            near = int(drawn.choice(self.neighbours[row]))
            other, points = self._drawing(near), self.points(near)
            mix = drawn.random(), drawn.random()
        return item | {"other_drawing": other, "other_landmarks": points, "mix": torch.tensor(mix)}

    def name(self, index: int) -> str:
        """Name the photo of an item."""
        return self.index.path(index)

    def _stem(self, row: int) -> str:
        return files.stem(self.index.target(row))

    def _beside(self, row: int, suffix: str) -> Path:
        return Path(f"{self._stem(row)}{suffix}")

    def _drawing(self, row: int) -> Tensor:
        registered = self._beside(row, layout.TEXTURE) if self.registered else None
        drawing = load_face(registered or Path(self.index.target(row)))
        if not self.cut_out:
            return drawing
        channel = load_face(self._beside(row, layout.OPACITY))[:1]
        whole = torch.cat([drawing, channel])
        return whole if self.opacity else (before_ground(whole[None] / 255)[0] * 255).round().byte()

    def points(self, row: int) -> Tensor:
        """Read the landmarks [k 2] of a target, xy pixels of the photo squashed to 224 x 224.

        Raises a DatasetError if they are no k points, or none of a face.
        """
        path = self._beside(row, self.suffix)
        found = read_landmarks(path, 68 if self.landmarks == 72 else self.landmarks)
        points = torch.from_numpy(found)
        return points[list(OF_72)] if self.landmarks == 72 else points

    def look(self, ranks: Ranks = ALONE, progress: Progress = silent) -> list[DatasetError]:
        """Look at the landmarks of all targets, each of `ranks` at its share, for their mean.

        Gives why some, or all together, cannot be used. Those of an index have been looked at.
        """
        if self.suffix in self.index.means:
            return []
        mine = range(ranks.rank, len(self.index.targets), ranks.size)
        total = torch.zeros(()).double()
        places: list[tuple[float, bool]] = []
        errors: dict[int, DatasetError] = {}
        for k, row in enumerate(mine):
            progress(k, len(mine), "looking at landmarks")
            try:
                points = self.points(row)
            except DatasetError as error:
                errors[row] = error
            else:
                total = total + points.double()
                places.append(place(points.numpy()))
        told = ranks.gather((total, places, errors))
        places = [one for _, some, _ in told for one in some]
        errors = {row: error for *_, some in told for row, error in some.items()}
        found = [errors[row] for row in sorted(errors)]
        try:
            refuse_larger_frame(self.folder, places)
        except DatasetError as error:
            found.append(error)
        if not found:
            mean = torch.stack([one for one, *_ in told if one.ndim]).sum(0) / len(places)
            means = {**self.index.means, self.suffix: mean.float()}
            self.index = dataclasses.replace(self.index, means=means)
        return found

    def mean_landmarks(self) -> Tensor:
        """Average the landmarks of all targets, [k 2]: the shape that textures are drawn in.

        Raises a DatasetError as `look` gives it.
        """
        if errors := self.look():
            raise errors[0]
        mean = self.index.means[self.suffix]
        return mean[list(OF_72)] if self.landmarks == 72 and len(mean) == 68 else mean

    def texture(self, drawings: Tensor, landmarks: Tensor, mean: Tensor) -> Tensor:
        """Register drawings [b c 224 224] to the mean shape [k 2], where they are not yet."""
        if self.registered:
            return drawings
        return warp(drawings, landmarks, mean[None]).clamp(0, 1)  # bicubic: it overshoots

    def mix(
        self,
        share: float,
        maker: Maker,
        space: str = "",
        *,
        device: torch.device,
        progress: Progress = silent,
    ) -> list[ImageError]:
        """Make a share of the items morphs, each with a face of another person that looks alike.

        Which look alike is found by the embeddings of a face encoder, or known from an index by one
        of its `space`. Returns why photos that cannot be read are nobody's neighbours; raises a
        DatasetError if the others are of one person, or as `Gallery.add`.
        """
        if self.index.neighbours is not None and self.index.space == space:
            self.share, self.neighbours = share, self.index.neighbours
            return []
        gallery, faces = Gallery(self.folder, maker, progress), []
        for photo, there in zip(
            self.index.targets.tolist(), self.index.has(layout.EMBEDDING), strict=True
        ):
            path = self.index.name(photo)
            stored = layout.renamed(path, layout.EMBEDDING)
            faces.append(FaceFiles(path, path, stored if there else None))
        failed = gallery.add(faces)
        table, rows = gallery.table(faces)
        directions = functional.normalize(torch.from_numpy(table[rows]), dim=1)
        groups = torch.from_numpy(self.index.who[self.index.targets].astype(np.int64))
        unreadable = torch.from_numpy(rows < 0)
        directions[unreadable], groups[unreadable] = 0.0, -1
        if len(torch.unique(groups[~unreadable])) < 2:
            message = f"{self.folder}: its photos that can be read are of one identity: there are"
            hint = "add people, or leave --morph out"
            raise DatasetError(f"{message} no neighbours to mix faces with", hint=hint)
        near = nearest(directions.to(device), groups.to(device), NEIGHBOURS)
        self.share, self.neighbours = share, near.cpu().numpy()
        return list(failed.values())


def nearest(
    directions: Tensor, groups: Tensor, k: int, *, people: int = PEOPLE, cells: int = CELLS
) -> Tensor:
    """Find for each row [n d] of length 1 the k rows of other groups with the largest cosines.

    The nearest come first; there are fewer where fewer rows lie outside the largest group. A row
    whose group [n], int64, is negative is nobody's neighbour. Holds `cells` cosines at a time. Of
    more than `people` other groups only the rows of those whose mean directions are nearest to that
    of the row's own are looked at: not all pairs, of which 3.3 million faces have 10 millions of
    millions, but for each face some 46,000 of them.
    """
    sizes = torch.bincount(groups[groups >= 0])
    k = min(k, int(sizes.sum() - sizes.max()))
    there = torch.nonzero(sizes)[:, 0]
    if len(there) <= people + 1:
        rows = max(1, cells // len(groups))
        found = []
        for part, own in zip(torch.split(directions, rows), torch.split(groups, rows), strict=True):
            cosines = part @ directions.T
            cosines.masked_fill_((own[:, None] == groups) | (groups < 0), -torch.inf)
            found.append(cosines.topk(k, dim=1).indices)
        return torch.cat(found)
    known = groups >= 0
    centres = directions.new_zeros(len(sizes), directions.shape[1])
    centres.index_add_(0, groups[known], directions[known])
    centres = functional.normalize(centres[there], dim=1)
    order = torch.argsort(groups, stable=True)[int((~known).sum()) :]
    members = torch.split(order, sizes[there].tolist())
    table = order[:k].repeat(len(groups), 1)  # of rows that are nobody's neighbours
    for start in range(0, len(there), AT_ONCE):
        likeness = centres[start : start + AT_ONCE] @ centres.T
        own = torch.arange(start, start + len(likeness), device=likeness.device)
        likeness[own - start, own] = -torch.inf
        alike = likeness.topk(people, dim=1).indices.tolist()
        for mine, near in zip(own.tolist(), alike, strict=True):
            others = torch.cat([members[other] for other in near])
            looked = directions[others]
            for rows_ in torch.split(members[mine], max(1, cells // len(others))):
                best = (directions[rows_] @ looked.T).topk(k, dim=1).indices
                table[rows_] = others[best]
    return table


class FaceData:
    """The photos of both splits, and drawings registered to the mean shape."""

    def __init__(
        self,
        data: Path,
        k: int,
        fit: Fit,
        *,
        whole: bool = False,
        opacity: bool = False,
        ranks: Ranks = ALONE,
        progress: Progress = silent,
    ) -> None:
        """Open the trees of train and val for a decoder that predicts k landmarks.

        Of the dense template's the data may have none: then it is to predict 68. The rest is as for
        `FaceDataset`; each of `ranks` looks at a share of the landmarks, unless an index tells that
        they were looked at. Raises a DatasetError as that, if there is one person only, or if
        landmarks of either cannot be used: it names all of these.
        """
        folders = [layout.split(data, split) for split in ("train", "val")]
        train, val = map(FaceIndex.of, folders)
        if k == TEMPLATE_POINTS and not train.has(layout.TEMPLATE)[0]:
            k = 68
        self.landmarks = k
        how: dict[str, Any] = {"landmarks": k, "fit": fit, "opacity": opacity}
        self.train, self.val = (
            FaceDataset(index.folder, whole=whole, index=index, **how) for index in (train, val)
        )
        # The embedding is a code of registered faces even where the photos are to be drawn.
        self._start = FaceDataset(folders[0], index=train, **how) if whole else self.train
        self.notes: list[str] = []  # what people should know of them
        for index in (train, val):
            if index.stale:
                message = f"the index of {index.folder.name} is older than {index.stale}, and was "
                self.notes.append(f"{message}not used: s2f prep index {data} renews it")
        if len(train.people) < 2:
            message = f"{folders[0]}: has one identity: there is nothing to tell apart"
            hint = "wanted photos of two people at least, IDENTITY/NAME.jpg"
            raise DatasetError(message, hint=hint)
        broken = [e for split in (self.train, self.val) for e in split.look(ranks, progress)]
        if broken:
            n = len(train.targets) + len(val.targets)
            raise together(f"{data}: of {n} files of landmarks", broken)
        if self.train.registered != self.val.registered:
            message = f"{data}: some photos have a {layout.TEXTURE} beside them and some have none"
            raise DatasetError(message, hint="remove them, or make all")

    @torch.no_grad()
    def example(self, batch: Item, decoder: FaceDecoder) -> tuple[Tensor, Tensor, Tensor]:
        """Make what a decoder learns from: face and drawing [b c 224 224], landmarks [b k 2].

        The face is what the face encoder sees, the drawing the registered texture, or the face
        where the decoder draws that. A morph is a face drawn anew: two registered textures and two
        sets of landmarks, mixed, and the one warped to the other. It has what surrounds the faces
        in their drawings, and is of the squashed photo whatever the encoder wants.

        Source: Cole et al. 2017 (morphing of faces as data augmentation). That shape and texture
        are mixed each with a weight of its own is ours.
        """
        mean, is_face = decoder.mean_landmarks, decoder.config.is_face
        face, drawing, landmarks = batch["face"], batch["drawing"], batch["landmarks"]
        if is_face and "mix" not in batch:
            return face, drawing, landmarks
        texture = self.train.texture(drawing, landmarks, mean)
        if "mix" not in batch:
            return face, texture, landmarks
        other, other_landmarks = batch["other_drawing"], batch["other_landmarks"]
        in_shape, in_texture = batch["mix"].T[:, :, None, None]
        other = self.train.texture(other, other_landmarks, mean)
        texture = torch.lerp(texture, other, in_texture[..., None])
        landmarks = torch.lerp(landmarks, other_landmarks, in_shape)
        morph = placed(texture, mean[None], landmarks).clamp(0, 1)
        is_morph = batch["mix"].any(1)[:, None, None, None]
        drawing = torch.where(is_morph, morph, drawing) if is_face else texture
        return torch.where(is_morph, morph, face), drawing, landmarks

    def new_decoder(self, config: FaceDecoderConfig) -> FaceDecoder:
        """Make a decoder of as many landmarks as the data have, at their mean shape."""
        mean = self.train.mean_landmarks()
        opacity = config.opacity and self._start.opacity
        config = dataclasses.replace(config, landmarks=self.landmarks, opacity=opacity)
        if self.landmarks == TEMPLATE_POINTS:
            config = dataclasses.replace(config, landmarks_68=map_68(mean.numpy()))
        decoder = FaceDecoder(config)
        decoder.mean_landmarks.copy_(mean)
        return decoder

    def start_linear(
        self, decoder: FaceDecoder, encoder: PartsEncoder | None = None
    ) -> tuple[PartsCode, Tensor]:
        """Make a new decoder the linear model of up to `START` photos.

        Where the embedding of the `encoder` is the code of other faces, what is drawn from it is
        solved for. Returns the code of these, and the textures [n c 224 224] that it is of. Raises
        an ImageError if none of the photos can be read.
        """
        n = len(self._start)
        faces: list[Tensor] = []
        textures, landmarks, bad = [], [], []
        for i in range(0, n, -(-n // START)):
            try:
                item = self._start[Key(i, i)]
            except ImageError as error:
                bad.append(error)
                continue
            drawing, points = item["drawing"][None] / 255, item["landmarks"][None]
            textures.append(self._start.texture(drawing, points, decoder.mean_landmarks))
            landmarks.append(points)
            faces.append(item["face"])
        if not textures:
            raise bad[0]
        self.note("the linear start leaves out", bad)
        drawn, shapes = torch.cat(textures), torch.cat(landmarks)
        code = decoder.start_linear(drawn, shapes)
        if encoder is not None and not encoder.reads(code):
            device = encoder.reading.device
            embedded = [encoder.one_by_one(face[None].to(device) / 255).cpu() for face in faces]
            decoder.draw_from(torch.cat(embedded), drawn, shapes)
        return code, drawn

    def note(self, what: str, bad: Sequence[ImageError]) -> None:
        """Note photos that could not be read, if there are any."""
        if bad:
            more = f", and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
            reasons = "; ".join(error.message for error in bad[:NAMED])
            self.notes.append(f"{what} {len(bad)} photos: {reasons}{more}")
