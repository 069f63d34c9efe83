"""What the faces are like: geometry, quality and pictures, as sections of a report.

Source: Oh et al. 2019, Figure 5; SF2F for the VGGFace score.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s2f import craniofacial, face_quality
from s2f.detection import Detector
from s2f.errors import ImageError
from s2f.estimates import correlation, similarity
from s2f.evaluation_case import WHOLE, Case, Samples
from s2f.evaluation_data import spread
from s2f.images import open_photo
from s2f.report import Picture, Row, Section, Table

SHOWN = 8  # faces in a row of a picture
SHUFFLES = 100
MOST = 1000  # faces of a kind that are compared with each other, and searched for points
SIDE = 112  # pixels of a face there


def geometry(case: Case) -> tuple[Section, Samples]:
    """Correlate measures of the faces from voices with those of the faces from photos."""
    there, at = np.unique(case.people.speakers, return_inverse=True)  # people, not recordings
    heard = craniofacial.measure(np.stack([face.landmarks for face in case.from_voices]))
    seen = craniofacial.measure(np.stack([face.landmarks for face in case.from_photos]))
    rng = np.random.default_rng(0)
    shuffled = [rng.permutation(there) for _ in range(SHUFFLES)]
    rows: list[Row] = []
    for name, values in heard.items():
        values = np.bincount(at, values) / np.bincount(at)
        got = correlation(seen[name][there], values)
        by_chance = np.mean([correlation(seen[name][other], values).r for other in shuffled])
        rows.append((name, got.r, got.p, float(by_chance), got.n))
    means = np.array([[row[1], row[3]] for row in rows], float).mean(0)
    rows.append(("mean", float(means[0]), None, float(means[1]), len(there)))
    table = Table(
        "Craniofacial measures: the face from a voice and the face from the speaker's photos",
        ("measure", "Pearson r", "p", "r of shuffled people", "N"),
        tuple(rows),
        "Lengths are relative to the distance of the outer eye corners. The landmarks are those "
        "that the decoder drew; each person's voices are averaged, and N counts people.",
    )
    text = ("Whether a voice gives away the proportions of the face, as far as the decoder goes.",)
    return Section("Geometry", text, (table,)), {}


def quality(
    case: Case,
    photos: Sequence[Image.Image],
    detector: Detector | None,
    logits: NDArray[np.float32] | None,
) -> tuple[Section, Samples]:
    """Measure generated faces as pictures.

    Args:
        case: whose faces.
        photos: real ones, which sharpness and diversity are relative to.
        detector: of landmarks.
        logits: of the faces from voices by a face classifier, [q i].
    """
    kinds = [photos, *([f.image for f in faces] for faces in (case.from_photos, case.from_voices))]
    some = [spread(images, MOST) for images in kinds]  # of which pairs are compared, or searched
    rows: list[Row] = []
    samples: dict[str, dict[str, float]] = {}
    if photos:
        sharp = [np.array([face_quality.sharpness(image) for image in images]) for images in kinds]
        relative = [values / sharp[0].mean() for values in sharp]
        rows.append(("sharpness, that of real photos being 1", *_means(relative)))
        samples["sharpness"] = case.by_person(relative[2])
    apart = [face_quality.diversity(images) if images else np.empty(0) for images in some]
    rows.append(("mean distance of two faces, of 255", *_means(apart)))
    if detector is not None:
        found = [face_quality.all_points_found(images, detector) for images in some]
        rows.append(("share with all 68 points found", *_means(found)))
    if logits is not None:
        score, deviation = face_quality.vgg_face_score(logits)
        rows.append(("VGGFace score", None, None, score))
        rows.append(("its deviation over five parts", None, None, deviation))
    rows.append(("faces", *map(len, kinds)))
    heads = ("measure", "real photos", "faces from photos", "faces from voices")
    table = Table("Faces as pictures", heads, tuple(rows))
    text = (
        "Sharpness is the deviation of the Laplacian of the inner face's brightness. "
        + ("" if detector else "No detector of landmarks is installed. ")
        + ("" if logits is not None else "The VGGFace score needs a face encoder with logits."),
    )
    return Section("Quality", text, (table,)), samples


def _means(values: Sequence[NDArray[Any]]) -> list[float | None]:
    return [float(one.mean()) if len(one) else None for one in values]


def sheets(case: Case) -> Section:
    """Show the best, middling and worst voices by angle."""
    people = case.people
    true = people.means()[people.speakers]
    order = np.argsort(similarity(true, case.heard[WHOLE])["angle"], kind="stable")
    n = min(SHOWN, len(order))
    middle = (len(order) - n) // 2
    parts = {"best": order[:n], "middle": order[middle : middle + n], "worst": order[-n:]}
    pictures = []
    for name, which in parts.items():
        rows: list[list[Image.Image | None]] = [
            [_photo(case, int(people.speakers[q])) for q in which],
            [case.from_photos[int(people.speakers[q])].image for q in which],
            [case.from_voices[int(q)].image for q in which],
        ]
        alt = f"photo, face from the photo, face from the voice of the {n} {name} voices"
        pictures.append(Picture(f"The {name} {n}", _grid(rows), alt))
    text = (
        "Rows: a photo, the face drawn from the photos' embedding, and the face drawn from the "
        "voice; voices are ordered by the angle between the two embeddings.",
    )
    return Section("Faces", text, tuple(pictures))


def _photo(case: Case, person: int) -> Image.Image | None:
    for photo, owner in zip(case.people.photos, case.people.owners, strict=True):
        if owner == person and photo is not None:
            with contextlib.suppress(ImageError):  # it has a stored embedding, and is not needed
                return open_photo(photo)
    return None


def _grid(rows: Sequence[Sequence[Image.Image | None]]) -> bytes:
    """Lay pictures out in rows, as a PNG."""
    page = Image.new("RGB", (SIDE * len(rows[0]), SIDE * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            if picture is not None:
                small = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
                page.paste(small, (SIDE * x, SIDE * y))
    buffer = io.BytesIO()
    page.save(buffer, format="PNG")
    return buffer.getvalue()
