"""How good pictures of faces are, whoever they show: sharp, different, faces at all.

Pictures in, numbers out. Last stand the sections of a report: geometry, quality and pictures.
Source: Oh et al. 2019, Figure 5; SF2F for the VGGFace score.
"""

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s2f.errors import ImageError, UsageError
from s2f.evaluation_data import (
    MOST,
    WHOLE,
    Case,
    Chosen,
    Embeddings,
    Samples,
    Stored,
    pieces,
    spread,
)
from s2f.files import scratch_folder
from s2f.images import FRAME, open_photo
from s2f.metrics import correlate_people, craniofacial, estimate
from s2f.report import Picture, Row, Section, Table

if TYPE_CHECKING:
    from s2f.face_detection import Detector

INNER = (62, 78, 162, 203)
"""Left, top, right, bottom of the inner face in the 224 frame: brows to chin, no hair."""
AT_ONCE = 2**21  # values of pictures that are compared at once
FEW = 150  # pictures, below which pairs take less than tables
PHOTOS = 32  # that a detector is given at once
SHOWN, SIDE = 8, 112  # faces in a row of a picture, and pixels of one
PUBLISHED_R = {  # Oh et al. 2019, Figure 5: 1,000 samples, landmarks by DEST, all p < 0.001
    "upper lip height": 0.16,
    "lateral upper lip heights": 0.26,
    "jaw width": 0.11,
    "nose height": 0.14,
    "nose width": 0.35,
    "labio-oral region": 0.17,
    "mandibular index": 0.20,
    "intercanthal index": 0.21,
    "nasal index": 0.38,
    "vermilion height index": 0.29,
    "mouth-face width index": 0.20,
    "nose area": 0.28,
}
PUBLISHED_BY_CHANCE = 0.02  # r, in the same figure
UNPRINTED = {"philtrum width": (0.038, "0.239")}  # r and p, in the file of these that they released
ALL_FOUND = 0.9025  # of faces from other speech; Duarte et al. 2019, "Wav2Pix"

Vector = NDArray[np.float64]


def sharpness(image: Image.Image) -> float:
    """Deviation of the Laplacian of the inner face's brightness, 0..255.

    A share of what real photos have in the same frame tells, never itself: noise is sharp, too.
    """
    from scipy import ndimage

    inner = image.convert("L").resize((FRAME, FRAME)).crop(INNER)
    return float(ndimage.laplace(np.asarray(inner, np.float64)).std())


def diversity(images: Iterable[Image.Image]) -> Vector:
    """Mean absolute difference, 0..255, of each picture to all others, [n]; exact.

    Their mean is that of all pairs. 0 where there is one alone. They lie in a temporary file: 1,000
    take some 100 MB, as 300 do. Raises UsageError if they are of different sizes, and an
    `OutputError` as `scratch_folder` and `Stored.append`.
    """
    with scratch_folder() as folder:
        pixels: Stored | None = None
        for image in images:
            values = np.asarray(image.convert("RGB"))
            if pixels is None:
                pixels = Stored(folder / "pixels", values.shape, np.uint8)
            if values.shape != pixels.shape[1:]:
                sizes = sorted({pixels.shape[2:0:-1], image.size})
                message = f"pictures of different sizes cannot be compared: {sizes}"
                raise UsageError(message, hint="bring them to one size first")
            pixels.append(values)
        n = 0 if pixels is None else len(pixels)
        if pixels is None or n < 2:
            return np.zeros(n)
        _, height, width, _ = pixels.shape
        total = np.zeros(n, np.int64)
        band = max(1, AT_ONCE // (3 * width * max(n, 256)))
        for top in range(0, height, band):
            total += _to_the_others(pixels[:, top : top + band].reshape(n, -1))
    return total / (3 * width * height * (n - 1))


def _to_the_others(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Sum of absolute differences of each row of [n p] to all others, [n].

    There are 256 values only: of many rows, what each differs by is tabulated once a column.
    """
    from scipy.spatial.distance import pdist, squareform

    if len(values) < FEW:
        sums: NDArray[np.int64] = squareform(pdist(values, "cityblock")).sum(1).astype(np.int64)
        return sums
    p = values.shape[1]
    places = values + 256 * np.arange(p)  # [n p], where each value stands in the tables
    counts = np.bincount(places.ravel(), minlength=256 * p).reshape(p, 256)
    levels = np.arange(256)
    below, sums = counts.cumsum(1), (counts * levels).cumsum(1)
    n, whole = below[:, -1:], sums[:, -1:]
    table = levels * below - sums + (whole - sums) - levels * (n - below)
    differences: NDArray[np.int64] = table.ravel()[places].sum(1)
    return differences


def find_points(images: Iterable[Image.Image], detector: "Detector") -> Vector:
    """Find the 68 points of the largest face in each picture, [n 68 2]; NaN where there is none."""
    found: list[NDArray[np.floating]] = []
    left = iter(images)
    while some := [np.asarray(image.convert("RGB")) for image in islice(left, PHOTOS)]:
        for faces in detector(some):
            found.append(faces[0].points if faces else np.full((68, 2), np.nan))
    return np.array(found, np.float64).reshape(-1, 68, 2)


def all_points_inside(
    points: NDArray[np.floating], size: tuple[int, int] = (FRAME, FRAME)
) -> NDArray[np.bool_]:
    """Tell of which faces all points [n 68 2] lie in a picture of a width and height, [n].

    To be read beside the share among real photos in the same frame: where a frame is tight, the
    chins of long faces lie below it.

    Source: Duarte et al. 2019, "Wav2Pix", who measure by it how many pictures are faces.
    """
    # (0, 0) is the centre of the first pixel: the picture begins half a pixel before it.
    places = np.asarray(points, np.float64) + 0.5
    return np.asarray(((places >= 0) & (places <= size)).all((1, 2)))


@dataclass(frozen=True)
class Searched:
    """Where the points of drawn faces lie: as a detector finds them, or as the decoder says."""

    voices: NDArray[np.int64]  # recordings whose faces were searched, [k]
    speakers: NDArray[np.int64]  # people who speak there, the faces of whose photos were, [m]
    from_voices: Vector  # [k 68 2]; NaN where no face is found
    from_photos: Vector  # [m 68 2]
    photos: Vector | None  # of real photos, [p 68 2]; None if the points are the decoder's own


def search_faces(
    case: Case, photos: Sequence[Image.Image], detector: "Detector | None"
) -> Searched:
    """Look for the points of drawn faces, at most 1,000 of voices, and of as many real photos.

    Without a detector they are those by which the decoder drew, which tells less: a face need not
    have come out as it was meant.
    """
    voices = np.array(spread(range(len(case.from_voices)), MOST))
    speakers = np.unique(case.people.speakers[voices])
    found: list[Vector] = []
    for faces, some in ((case.from_voices, voices), (case.from_photos, speakers)):
        if detector is None:
            found.append(np.stack([faces[k].landmarks for k in some]).astype(np.float64))
        else:
            found.append(find_points((faces[k].image for k in some), detector))
    real = None
    if detector is not None:
        real = find_points((photos[k] for k in spread(range(len(photos)), MOST)), detector)
    return Searched(voices, speakers, found[0], found[1], real)


def vgg_face_score(logits: Embeddings, *, splits: int = 5) -> tuple[float, float]:
    """Score how clearly faces are somebody, and how many different people they are.

    exp of the mean KL divergence of each picture's distribution over the identities of a face
    classifier, of logits [n i], to the mean distribution: 1 where all are alike, up to the number
    of identities. Gives mean and deviation over splits, drawn whatever the order of the pictures.
    None can reach more than the pictures it holds: compare only scores of equally many pictures and
    splits. Raises UsageError if there are no pictures.

    Source: the VGGFace score of Bai et al. 2022, "SF2F", who take 5 splits and a ResNet-50
    trained on VGGFace2; the form is that of the Inception score, Salimans et al. 2016.
    """
    from scipy.special import log_softmax, xlogy

    n = len(logits)
    if n == 0:
        raise UsageError("there are no faces to score", hint="give at least one")
    rng = np.random.default_rng(0)
    # In an order of their own first, so that the draw does not depend on the given one.
    way = rng.standard_normal(logits.shape[1])
    own = np.argsort(np.concatenate([part @ way for _, part in pieces(logits)]), kind="stable")
    scores = []
    for part in np.array_split(own[rng.permutation(n)], min(splits, n)):
        within, mean = 0.0, np.zeros(logits.shape[1])  # the mean of p log p, and of p
        for _, some in pieces(Chosen(logits, part)):
            log_p = log_softmax(np.asarray(some, np.float64), axis=1)
            p = np.exp(log_p)
            within += float((p * log_p).sum()) / len(part)
            mean += p.sum(0) / len(part)
        scores.append(float(np.exp(within - xlogy(mean, mean).sum())))
    return float(np.mean(scores)), float(np.std(scores))


def geometry_section(case: Case, searched: Searched) -> tuple[Section, Samples]:
    """Correlate measures of the faces from voices with those of the faces from photos."""
    speakers = case.people.speakers[searched.voices]
    whose = np.searchsorted(searched.speakers, speakers)
    heard, seen = craniofacial(searched.from_voices), craniofacial(searched.from_photos)
    found = {name: correlate_people(seen[name], heard[name], whose) for name in seen}
    published = [found[name] for name in PUBLISHED_R]
    r = float(np.mean([one.r for one in published]))
    by_chance = np.abs(np.mean([one.by_chance for one in published], axis=0))
    p = (1 + int(np.sum(by_chance >= abs(r)))) / (1 + len(by_chance))
    n = max(one.n for one in published)
    by_oh = float(np.mean([*PUBLISHED_R.values()]))
    rows: list[Row] = [("mean of the twelve", r, p, _far(by_chance), by_oh, None, n)]
    for name, one in found.items():
        theirs = UNPRINTED.get(name) or (PUBLISHED_R[name], "< 0.001")
        rows.append((name, one.r, one.p, _far(np.abs(one.by_chance)), *theirs, one.n))
    shuffled = float(np.mean([np.abs(one.by_chance).mean() for one in published]))
    chance = "chance: mean |r| of the twelve, people shuffled"
    rows.append((chance, shuffled, None, None, PUBLISHED_BY_CHANCE, None, n))
    without = int(np.isnan(searched.from_voices).any((1, 2)).sum())
    note = (
        "Each recording counts: the face drawn from it beside the one drawn from the photos of its "
        "speaker. Lengths are relative to the distance of the outer eye corners. "
    )
    if searched.photos is None:
        note += (
            "The landmarks are those that the decoder drew by, as no detector was at hand: "
            "whether the faces came out so, and how r would be of points found in them, is not "
            "known. "
        )
    else:
        note += (
            "The landmarks are those that a detector finds in the drawn faces; it finds none in "
            f"{without} of {len(searched.voices)} from voices. "
        )
    note += (
        "Of people shuffled at random, 95 % of |r| lie below the figure given, and a share p is as "
        "far from 0 as r. Oh et al. 2019, Figure 5: 1,000 recordings, landmarks by DEST; the "
        "philtrum's width stands in a file of theirs, they did not print it, and it is not in the "
        "mean."
    )
    far, oh = "95 % quantile of |r|, shuffled", "Oh et al."
    heads = ("measure", "Pearson r", "p", far, oh, f"{oh}, p", "N")
    title = "Craniofacial measures: the face from a voice and the face from the speaker's photos"
    text = "Whether a voice gives away the proportions of the face, as far as the decoder goes."
    name = "craniofacial measures, mean r (chance: 95 % are below)"
    figure = (name, r, None, None, rows[0][3], f"{by_oh:.3g} (Oh)")
    table = Table(title, heads, tuple(rows), note)
    return Section("Geometry", (text,), (table,), (figure,)), {}


def _far(by_chance: Vector) -> float:
    return float(np.quantile(by_chance, 0.95))


def quality_section(
    case: Case, photos: Sequence[Image.Image], searched: Searched, logits: Embeddings | None
) -> tuple[Section, Samples]:
    """Measure generated faces beside real photos; logits [q i] are of the faces from voices."""
    drawn = case.from_photos, case.from_voices
    measured: dict[str, list[NDArray[Any]]] = {}
    samples: Samples = {}
    figures: list[Row] = []
    if photos:
        every = (photos, *((face.image for face in faces) for faces in drawn))
        sharp = [np.array([sharpness(image) for image in images]) for images in every]
        relative = [values / sharp[0].mean() for values in sharp]
        measured["sharpness, that of real photos being 1"] = relative
        samples["sharpness"] = case.by_person(relative[2])
    measured["mean distance of two faces, of 255"] = [
        diversity(photos[k] for k in spread(range(len(photos)), MOST)),
        *(diversity(faces[k].image for k in spread(range(len(faces)), MOST)) for faces in drawn),
    ]
    if searched.photos is not None:
        found = (searched.photos, searched.from_photos, searched.from_voices)
        inside = [*map(all_points_inside, found)]
        measured["share with all 68 points found"] = inside
        share = estimate(inside[2].astype(float), case.people.speakers[searched.voices], share=True)
        ends = (100 * share.value, 100 * share.low, 100 * share.high)
        seen = f"{100 * ALL_FOUND:.4g} (wav2pix)"
        figures.append(("all 68 points found, %", *ends, None, seen))
    rows: list[Row] = []
    for name, values in measured.items():
        means = [float(one.mean()) if len(one) else None for one in values]
        rows.append((name, *means, ALL_FOUND if "68 points" in name else None))
    if logits is not None:
        score, deviation = vgg_face_score(logits)
        rows.append(("VGGFace score", None, None, score, None))
        rows.append(("its deviation over five parts", None, None, deviation, None))
    rows.append(("faces", len(photos), *map(len, drawn), None))
    heads = ("measure", "real photos", "faces from photos", "faces from voices")
    text = "Sharpness is the deviation of the Laplacian of the inner face's brightness. "
    text += "" if searched.photos is not None else "No detector of landmarks is installed. "
    text += "" if logits is not None else "The VGGFace score needs a face encoder with logits."
    note = "Published: from voices, by Duarte et al. 2019 (wav2pix), of ten people."
    table = Table("Faces as pictures", (*heads, "published"), tuple(rows), note)
    return Section("Quality", (text,), (table,), tuple(figures)), samples


def faces_section(case: Case) -> tuple[Section, Samples]:
    """Show the best, middling and worst voices by angle."""
    order = _by_angle(case)
    n = min(SHOWN, len(order))
    middle = (len(order) - n) // 2
    parts = {"best": order[:n], "middle": order[middle : middle + n], "worst": order[-n:]}
    pictures = []
    for name, voices in parts.items():
        alt = f"photo, face from the photo, face from the voice of the {n} {name} voices"
        pictures.append(Picture(f"The {name} {n}", _page(case, voices), alt))
    text = (
        "Rows: a photo, the face drawn from the photos' embedding, and the face drawn from the "
        "voice; voices are ordered by the angle between the two embeddings."
    )
    return Section("Faces", (text,), tuple(pictures)), {}


def contact_sheet(case: Case) -> Picture:
    """Show voices from the best to the worst by angle, evenly chosen."""
    voices = spread(_by_angle(case).tolist(), SHOWN)
    title = "A photo; the face from the photo; the face from the voice"
    alt = f"photo, face from the photo, face from the voice of {len(voices)} voices"
    note = "Evenly chosen of all voices, those whose embedding is nearest to the face's first."
    return Picture(title, _page(case, voices), alt, note)


def _by_angle(case: Case) -> NDArray[np.intp]:
    angles = case.compare(case.people.means(), case.heard[WHOLE])["angle"]
    return np.argsort(angles, kind="stable")


def _page(case: Case, voices: Sequence[int] | NDArray[np.intp]) -> bytes:
    """Draw a column for each voice: a photo, the face from the photos, the face from the voice."""
    page = Image.new("RGB", (SIDE * len(voices), SIDE * 3), "white")
    for x, voice in enumerate(voices):
        who = int(case.people.speakers[voice])
        column = (_photo(case, who), case.from_photos[who].image, case.from_voices[voice].image)
        for y, picture in enumerate(column):
            if picture is not None:
                small = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
                page.paste(small, (SIDE * x, SIDE * y))
    buffer = io.BytesIO()
    page.save(buffer, format="PNG")
    return buffer.getvalue()


def _photo(case: Case, person: int) -> Image.Image | None:
    for photo, owner in zip(case.people.photos, case.people.owners, strict=True):
        if owner == person and photo is not None:
            with contextlib.suppress(ImageError):  # it has a stored embedding, and is not needed
                return open_photo(photo)
    return None
