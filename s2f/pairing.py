"""Which recording goes with which faces of its person: numbers, and names at most, no files.

Recordings and faces are numbered through, person by person, in the order of their names.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from s2f import layout
from s2f.errors import UsageError
from s2f.layout import Speaker

Pairing = Literal["all-to-all", "one-to-one", "all-to-one", "same-clip"]
SHOWN = 5  # names in a note

_Numbers = NDArray[np.int64]


class Pairs(NamedTuple):
    """The items [n] of a data set.

    Attributes:
        recordings: the recording of each.
        people: whose it is.
        faces: the first of the faces that it may come with.
        choices: how many these are, one after the other.
        notes: sentences on what was left out.
    """

    recordings: _Numbers
    people: _Numbers
    faces: _Numbers
    choices: _Numbers
    notes: list[str]

    def all_faces(self) -> list[int]:
        """List the faces that any recording may come with, sorted."""
        firsts, items = np.unique(self.faces, return_index=True)
        ranges = zip(firsts.tolist(), self.choices[items].tolist(), strict=True)
        return [face for first, n in ranges for face in range(first, first + n)]


def pair(
    recordings: Sequence[int],
    faces: Sequence[int],
    pairing: Pairing = "all-to-all",
    *,
    per_identity: int | None = None,
    same_clip: _Numbers | None = None,
) -> Pairs:
    """Pair recordings with faces of the same people.

    Args:
        recordings: how many each person has.
        faces: how many each person has.
        pairing: `all-to-all`: each recording with any face of the person. `one-to-one`: the first
            recording with the first face and so on; what is over of either is left out.
            `all-to-one`: each recording with the person's first face. `same-clip`: as given.
        per_identity: items that a person has at most, spread evenly over all of them.
        same_clip: for `same-clip`, the face of each recording [m]; -1 where there is none.

    Raises:
        UsageError: if `per_identity` is below 1.
    """
    if per_identity is not None and per_identity < 1:
        raise UsageError(
            f"at most {per_identity} recordings of a person leaves none",
            hint="give --per-identity 1 or more, or leave it out",
        )
    n_recordings, n_faces = np.asarray(recordings, np.int64), np.asarray(faces, np.int64)
    people = np.repeat(np.arange(len(n_recordings)), n_recordings)
    place = _places(people, n_recordings)
    first = (np.cumsum(n_faces) - n_faces)[people]
    choices = np.ones_like(people)
    if pairing == "same-clip":
        assert same_clip is not None
        first, kept = same_clip, same_clip >= 0
    elif pairing == "one-to-one":
        first, kept = first + place, place < n_faces[people]
    else:
        kept = n_faces[people] > 0
        if pairing == "all-to-all":
            choices = n_faces[people]
    items = np.flatnonzero(kept)
    notes = []
    if pairing != "all-to-all":
        unpaired = int(n_faces.sum()) - len(np.unique(first[items]))
        notes = _unpaired(pairing, len(people) - len(items), unpaired)
    if per_identity is not None:
        before = len(items)
        counts = np.bincount(people[items], minlength=len(n_recordings))
        items = items[_spread(_places(people[items], counts), counts[people[items]], per_identity)]
        if len(items) < before:
            few = _count(before - len(items), "recording", "recordings")
            notes.append(f"{few} left out: at most {per_identity} of a person")
    return Pairs(items, people[items], first[items], choices[items], notes)


def _places(people: _Numbers, counts: _Numbers) -> _Numbers:
    """Number the recordings [n] of each person from 0."""
    places: _Numbers = np.arange(len(people)) - (np.cumsum(counts) - counts)[people]
    return places


def _spread(place: _Numbers, count: _Numbers, most: int) -> NDArray[np.bool_]:
    """Tell which of `count` places are floor(j * count / most) for some j: at most `most`."""
    spread: NDArray[np.bool_] = -((place + 1) * -most // count) > -(place * -most // count)
    return spread


def _unpaired(pairing: Pairing, recordings: int, faces: int) -> list[str]:
    over = [_count(recordings, "recording", "recordings")] if recordings else []
    over += [_count(faces, "face", "faces")] if faces else []
    return [f"{' and '.join(over)} left out: the pairing is {pairing}"] if over else []


def pair_speakers(
    speakers: Sequence[Speaker], pairing: Pairing, per_identity: int | None = None
) -> Pairs:
    """Pair the recordings and faces of a voice tree, as `pair`.

    For `same-clip` those whose names match: `audios/VIDEO/1.npy` goes with `images/VIDEO/1.jpg`,
    and so does `images/VIDEO_1.jpg`.

    Raises:
        UsageError: if `per_identity` is below 1.
    """
    same_clip = None
    if pairing == "same-clip":
        faces = [(s.identity, layout.clip(face.name)) for s in speakers for face in s.faces]
        known = {clip: number for number, clip in reversed(list(enumerate(faces)))}
        heard = ((s.identity, layout.clip(path)) for s in speakers for path in s.audios)
        same_clip = np.array([known.get(clip, -1) for clip in heard], np.int64)
    return pair(
        [len(speaker.audios) for speaker in speakers],
        [len(speaker.faces) for speaker in speakers],
        pairing,
        per_identity=per_identity,
        same_clip=same_clip,
    )


def left_out(why: Mapping[str, Sequence[str]]) -> list[str]:
    """Say who is left out: names by reason, such as `without a voice`; no sentence for nobody."""
    reasons = {reason: names for reason, names in why.items() if names}
    if not reasons:
        return []
    people = _count(sum(map(len, reasons.values())), "identity", "identities")
    parts = (f"{len(names)} {reason} ({some(names)})" for reason, names in reasons.items())
    return [f"{people} left out: {', '.join(parts)}"]


def some(names: Sequence[str], between: str = ", ") -> str:
    """Name the first few of many."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return between.join(names[:SHOWN]) + more


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"
