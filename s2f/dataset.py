"""Torch datasets over the trees of `layout`, and the order in which training goes through them.

An item is asked for by (index, seed), so that what is random about it depends on nothing but the
training step: a resumed run sees exactly what an unbroken one would have seen.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from s2f import layout
from s2f.arrays import map_waveform, read_array
from s2f.decoding import SAMPLE_RATE
from s2f.errors import CheckpointError, DatasetError, S2FError
from s2f.images import Fit, load_face
from s2f.packed import Pack

Item = dict[str, Tensor]


class Order(Sampler[list[tuple[int, int]]]):
    """Batches of (index, seed): a new permutation each epoch, from step `start` to `steps`."""

    def __init__(self, n: int, batch_size: int, *, seed: int, start: int, steps: int) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.start, self.steps = start, steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, torch.empty(0, dtype=torch.long)
        for step in range(self.start, self.steps):
            batch = []
            for place in range(step * self.batch_size, (step + 1) * self.batch_size):
                if place // self.n != epoch:
                    epoch = place // self.n
                    generator = torch.Generator().manual_seed(self.seed + epoch)
                    order = torch.randperm(self.n, generator=generator)
                batch.append((int(order[place % self.n]), self.seed + place))
            yield batch

    def __len__(self) -> int:
        return self.steps - self.start


def collate(loaded: list[Item | S2FError]) -> Item | S2FError:
    """Stack items [...] to a batch [b ...]; an error takes the place of its whole batch."""
    items = []
    for item in loaded:
        if isinstance(item, S2FError):
            return item
        items.append(item)
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


class Careful(Dataset[Item | S2FError]):
    """A dataset that gives our errors as items.

    Raised in a worker process, an error would reach the loop as another one, with the worker's
    traceback in its message.
    """

    def __init__(self, data: Dataset[Item]) -> None:
        self.data = data

    def __getitem__(self, key: tuple[int, int]) -> Item | S2FError:
        try:
            return self.data[key]
        except S2FError as error:
            return error


class Faces(Dataset[Item]):
    """Photos of a face tree, each with its landmarks and the picture that the decoder draws.

    Attributes:
        registered: whether the drawings are textures, registered to the mean shape by whoever
            made the tree; otherwise they are photos, still to be warped from their landmarks.
    """

    def __init__(self, folder: Path, *, landmarks: int, fit: Fit = "squash") -> None:
        """List the tree.

        Args:
            folder: of one split.
            landmarks: points a photo, 68 or those of the template.
            fit: how the face encoder wants photos that are no squares, as for `load_face`. Only
                `face` follows it: landmarks and drawings are of the squashed photo.

        Raises:
            DatasetError: as `layout.photos`, or if there are no points of the wanted number.
        """
        self.photos = layout.photos(folder)
        self.landmarks, self.fit = landmarks, fit
        self.suffix = layout.LANDMARKS if landmarks == 68 else layout.TEMPLATE
        self.registered = all(
            layout.beside(photo.target, layout.TEXTURE).is_file() for photo in self.photos
        )
        self.photo_of = {photo.path.with_suffix(""): photo.path for photo in self.photos}
        names = sorted({photo.identity for photo in self.photos})
        self.identities = {name: index for index, name in enumerate(names)}

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """Give `face` and `drawing`, uint8 [3 224 224], `landmarks` [k 2] and `identity` []."""
        photo = self.photos[key[0]]
        drawing = (
            layout.beside(photo.target, layout.TEXTURE)
            if self.registered
            else self.photo_of[photo.target]
        )
        return {
            "face": load_face(photo.path, fit=self.fit),
            "drawing": load_face(drawing),
            "landmarks": torch.from_numpy(self.points(photo)),
            "identity": torch.tensor(self.identities[photo.identity]),
        }

    def points(self, photo: layout.Photo) -> NDArray[np.float32]:
        """Read the landmarks [k 2] of a photo.

        Raises:
            DatasetError: if they are missing or are not k points.
        """
        path = layout.beside(photo.target, self.suffix)
        points = read_array(path).astype(np.float32)
        if points.shape != (self.landmarks, 2) or not np.isfinite(points).all():
            raise DatasetError(
                f"{path}: holds an array {list(points.shape)}; wanted {[self.landmarks, 2]} "
                "finite values",
                hint="make the landmarks again",
            )
        return points

    def mean_landmarks(self) -> Tensor:
        """Average the landmarks of all photos, [k 2]: the shape that textures are drawn in."""
        targets = {photo.target: photo for photo in self.photos}.values()
        return torch.from_numpy(np.mean([self.points(photo) for photo in targets], axis=0))


class Voices(Dataset[Item]):
    """Recordings of a voice tree, each with the embedding of a face of the same identity.

    Attributes:
        n_identities: people in it.
    """

    def __init__(self, folder: Path, embeddings: Sequence[Tensor], *, clip_samples: int) -> None:
        """List the tree.

        Args:
            folder: of one split.
            embeddings: one [m d] for each speaker, in the order of `layout.speakers`.
            clip_samples: length of the clips.

        Raises:
            DatasetError: as `layout.speakers`.
        """
        self.speakers = layout.speakers(folder)
        self.items = [(k, path) for k, s in enumerate(self.speakers) for path in s.audios]
        self.embeddings = embeddings
        self.clip_samples, self.n_identities = clip_samples, len(self.speakers)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """Give `waveform` [n], a clip that starts anywhere, `embedding` [d] and `identity` []."""
        index, seed = key
        generator = torch.Generator().manual_seed(seed)
        speaker, path = self.items[index]
        samples = map_waveform(path)
        spare = max(1, len(samples) - self.clip_samples + 1)
        start = int(torch.randint(spare, (), generator=generator))
        clip = np.resize(samples[start : start + self.clip_samples], self.clip_samples)
        if clip.dtype == np.int16:
            clip = clip.astype(np.float32) / 32768
        if not np.isfinite(clip).all():
            raise DatasetError(f"{path}: holds NaN or infinite samples", hint="make it again")
        choices = self.embeddings[speaker]
        choice = int(torch.randint(len(choices), (), generator=generator))
        return {
            "waveform": torch.from_numpy(np.ascontiguousarray(clip, np.float32)),
            "embedding": choices[choice],
            "identity": torch.tensor(speaker),
        }


class PackedVoices(Dataset[Item]):
    """Clips of a pack, each with the embedding of a face of the same identity.

    Attributes:
        sha256: of the pack's index, which knows the hashes of all its files.
        n_identities: people in it.
    """

    def __init__(self, folder: Path, *, clip_samples: int, embedding_space: str) -> None:
        """Open the pack of one split.

        Args:
            folder: of the split.
            clip_samples: length of the clips, at most that of the pack's.
            embedding_space: that the embeddings have to be of.

        Raises:
            DatasetError: as `packed.Pack`, or if the pack's clips are shorter.
            CheckpointError: if its embeddings are of another space.
        """
        self.pack = Pack(folder)
        index = self.pack.index
        if index.embedding_space != embedding_space:
            raise CheckpointError(
                f"{folder}: its embeddings are of the space {index.embedding_space[:8]}; "
                f"the face encoder's is {embedding_space[:8]}",
                hint="give the face encoder that it was packed with, or pack the tree again",
            )
        if index.clip_samples < clip_samples:
            raise DatasetError(
                f"{folder}: its clips have {index.clip_samples} samples; wanted {clip_samples}",
                hint=f"pack the tree again, with clips of {clip_samples / SAMPLE_RATE:g} s",
            )
        self.clip_samples, self.sha256 = clip_samples, index.sha256
        self.n_identities = len(index.identities)

    def __len__(self) -> int:
        return len(self.pack)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """Give `waveform` [n], from anywhere in a longer clip, `embedding` [d], `identity` []."""
        index, seed = key
        generator = torch.Generator().manual_seed(seed)
        clip, embeddings = self.pack[index]
        start = int(torch.randint(len(clip) - self.clip_samples + 1, (), generator=generator))
        choice = int(torch.randint(len(embeddings), (), generator=generator))
        return {
            "waveform": torch.from_numpy(
                clip[start : start + self.clip_samples].astype(np.float32) / 32768
            ),
            "embedding": torch.from_numpy(self.pack.embedding(embeddings[choice])),
            "identity": torch.tensor(self.pack.identity(index)),
        }
