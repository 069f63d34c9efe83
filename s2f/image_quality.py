"""How good pictures of faces are, whoever they show: sharp, different, faces at all.

Pictures in, numbers out. Last stand the sections of a report: geometry, quality and pictures.
Source: Oh et al. 2019, Figure 5; SF2F for the VGGFace score.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s2f.errors import ImageError, UsageError
from s2f.evaluation_data import MOST, WHOLE, Case, Samples, spread
from s2f.images import FRAME, open_photo
from s2f.metrics import compare_embeddings, correlation, craniofacial
from s2f.report import Picture, Row, Section, Table

if TYPE_CHECKING:
    from s2f.face_detection import Detector

INNER = (62, 78, 162, 203)
"""Left, top, right, bottom of the inner face in the 224 frame: brows to chin, no hair."""
AT_ONCE = 2**23  # values of pictures that are compared at once
PHOTOS = 32  # that a detector is given at once
SHOWN, SIDE = 8, 112  # faces in a row of a picture, and pixels of one
SHUFFLES = 100

Vector = NDArray[np.float64]
Logits = NDArray[np.float32]


def sharpness(image: Image.Image) -> float:
    """Deviation of the Laplacian of the inner face's brightness, 0..255.

    A share of what real photos have in the same frame tells, never itself: noise is sharp, too.
    """
    from scipy import ndimage

    inner = image.convert("L").resize((FRAME, FRAME)).crop(INNER)
    return float(ndimage.laplace(np.asarray(inner, np.float64)).std())


def diversity(images: Sequence[Image.Image]) -> Vector:
    """Mean absolute difference, 0..255, of each picture to all others, [n]; exact.

    Their mean is that of all pairs. 0 where there is one alone. Beside up to some thousand pictures
    it takes some 300 MB. Raises UsageError if they are of different sizes.
    """
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        message = f"pictures of different sizes cannot be compared: {sorted(sizes)}"
        raise UsageError(message, hint="bring them to one size first")
    n = len(images)
    if n < 2:
        return np.zeros(n)
    width, height = sizes.pop()
    total = np.zeros(n, np.int64)
    band = max(1, AT_ONCE // (3 * width * max(n, 256)))
    for top in range(0, height, band):
        box = (0, top, width, min(top + band, height))
        rows = [np.asarray(image.crop(box).convert("RGB")).reshape(-1) for image in images]
        total += _to_the_others(np.stack(rows))
    return total / (3 * width * height * (n - 1))


def _to_the_others(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Sum of absolute differences of each row of [n p] to all others, [n].

    There are 256 values only: what each differs by is tabulated once a column.
    """
    p = values.shape[1]
    places = values + 256 * np.arange(p)  # [n p], where each value stands in the tables
    counts = np.bincount(places.ravel(), minlength=256 * p).reshape(p, 256)
    levels = np.arange(256)
    below, sums = counts.cumsum(1), (counts * levels).cumsum(1)
    n, whole = below[:, -1:], sums[:, -1:]
    table = levels * below - sums + (whole - sums) - levels * (n - below)
    differences: NDArray[np.int64] = table.ravel()[places].sum(1)
    return differences


def all_points_found(images: Sequence[Image.Image], detector: "Detector") -> NDArray[np.bool_]:
    """Tell in which pictures a detector finds a face all of whose points lie inside, [n].

    To be read beside the share among real photos in the same frame: where a frame is tight, the
    chins of long faces lie below it.

    Source: Duarte et al. 2019, "Wav2Pix", who measure by it how many pictures are faces.
    """
    found: list[bool] = []
    for start in range(0, len(images), PHOTOS):
        part = images[start : start + PHOTOS]
        seen = detector([np.asarray(image.convert("RGB")) for image in part])
        for image, faces in zip(part, seen, strict=True):
            # (0, 0) is the centre of the first pixel: the picture begins half a pixel before it.
            places = [face.points + 0.5 for face in faces]
            found.append(any(((p >= 0) & (p <= image.size)).all() for p in places))
    return np.array(found, bool)


def vgg_face_score(logits: NDArray[np.floating], *, splits: int = 5) -> tuple[float, float]:
    """Score how clearly faces are somebody, and how many different people they are.

    exp of the mean KL divergence of each picture's distribution over the identities of a face
    classifier, of logits [n i], to the mean distribution: 1 where all are alike, up to the number
    of identities. Gives mean and deviation over splits, drawn whatever the order of the pictures.
    None can reach more than the pictures it holds: compare only scores of equally many pictures and
    splits. Raises UsageError if there are no pictures.

    Source: the VGGFace score of Bai et al. 2022, "SF2F", who take 5 splits and a ResNet-50
    trained on VGGFace2; the form is that of the Inception score, Salimans et al. 2016.
    """
    from scipy.special import log_softmax, logsumexp

    n = len(logits)
    if n == 0:
        raise UsageError("there are no faces to score", hint="give at least one")
    rng = np.random.default_rng(0)
    # In an order of their own first, so that the draw does not depend on the given one.
    own = np.argsort(logits @ rng.standard_normal(logits.shape[1]), kind="stable")
    scores = []
    for part in np.array_split(own[rng.permutation(n)], min(splits, n)):
        log_p = log_softmax(np.asarray(logits[part], np.float64), axis=1)
        mean = logsumexp(log_p, axis=0) - np.log(len(part))
        divergence = (np.exp(log_p) * (log_p - mean)).sum(1)
        scores.append(float(np.exp(divergence.mean())))
    return float(np.mean(scores)), float(np.std(scores))


def geometry_section(case: Case) -> tuple[Section, Samples]:
    """Correlate measures of the faces from voices with those of the faces from photos."""
    there, at = np.unique(case.people.speakers, return_inverse=True)  # people, not recordings
    heard = craniofacial(np.stack([face.landmarks for face in case.from_voices]))
    seen = craniofacial(np.stack([face.landmarks for face in case.from_photos]))
    rng = np.random.default_rng(0)
    shuffled = [rng.permutation(there) for _ in range(SHUFFLES)]
    rows: list[Row] = []
    for name, values in heard.items():
        values = np.bincount(at, values) / np.bincount(at)
        r, p, n = correlation(seen[name][there], values)
        by_chance = np.mean([correlation(seen[name][other], values)[0] for other in shuffled])
        rows.append((name, r, p, float(by_chance), n))
    mean, chance = np.array([[row[1], row[3]] for row in rows], float).mean(0).tolist()
    rows.append(("mean", mean, None, chance, len(there)))
    table = Table(
        "Craniofacial measures: the face from a voice and the face from the speaker's photos",
        ("measure", "Pearson r", "p", "r of shuffled people", "N"),
        tuple(rows),
        "Lengths are relative to the distance of the outer eye corners. The landmarks are those "
        "that the decoder drew; each person's voices are averaged, and N counts people.",
    )
    text = "Whether a voice gives away the proportions of the face, as far as the decoder goes."
    return Section("Geometry", (text,), (table,)), {}


def quality_section(
    case: Case, photos: Sequence[Image.Image], detector: "Detector | None", logits: Logits | None
) -> tuple[Section, Samples]:
    """Measure generated faces beside real photos; logits [q i] are of the faces from voices."""
    kinds = [photos, *([f.image for f in faces] for faces in (case.from_photos, case.from_voices))]
    some = [spread(images, MOST) for images in kinds]  # of which pairs are compared, or searched
    measured: dict[str, list[NDArray[Any]]] = {}
    samples: Samples = {}
    if photos:
        sharp = [np.array([sharpness(image) for image in images]) for images in kinds]
        relative = [values / sharp[0].mean() for values in sharp]
        measured["sharpness, that of real photos being 1"] = relative
        samples["sharpness"] = case.by_person(relative[2])
    measured["mean distance of two faces, of 255"] = [diversity(images) for images in some]
    if detector is not None:
        found = [all_points_found(images, detector) for images in some]
        measured["share with all 68 points found"] = found
    rows: list[Row] = []
    for name, values in measured.items():
        rows.append((name, *(float(one.mean()) if len(one) else None for one in values)))
    if logits is not None:
        score, deviation = vgg_face_score(logits)
        rows.append(("VGGFace score", None, None, score))
        rows.append(("its deviation over five parts", None, None, deviation))
    rows.append(("faces", *map(len, kinds)))
    heads = ("measure", "real photos", "faces from photos", "faces from voices")
    text = "Sharpness is the deviation of the Laplacian of the inner face's brightness. "
    text += "" if detector else "No detector of landmarks is installed. "
    text += "" if logits is not None else "The VGGFace score needs a face encoder with logits."
    return Section("Quality", (text,), (Table("Faces as pictures", heads, tuple(rows)),)), samples


def faces_section(case: Case) -> tuple[Section, Samples]:
    """Show the best, middling and worst voices by angle."""
    people = case.people
    true = people.means()[people.speakers]
    order = np.argsort(compare_embeddings(true, case.heard[WHOLE])["angle"], kind="stable")
    n = min(SHOWN, len(order))
    middle = (len(order) - n) // 2
    parts = {"best": order[:n], "middle": order[middle : middle + n], "worst": order[-n:]}
    pictures = []
    for name, voices in parts.items():
        page = Image.new("RGB", (SIDE * n, SIDE * 3), "white")
        for x, voice in enumerate(voices):
            who = int(people.speakers[voice])
            column = (_photo(case, who), case.from_photos[who].image, case.from_voices[voice].image)
            for y, picture in enumerate(column):
                if picture is not None:
                    small = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
                    page.paste(small, (SIDE * x, SIDE * y))
        buffer = io.BytesIO()
        page.save(buffer, format="PNG")
        alt = f"photo, face from the photo, face from the voice of the {n} {name} voices"
        pictures.append(Picture(f"The {name} {n}", buffer.getvalue(), alt))
    text = (
        "Rows: a photo, the face drawn from the photos' embedding, and the face drawn from the "
        "voice; voices are ordered by the angle between the two embeddings."
    )
    return Section("Faces", (text,), tuple(pictures)), {}


def _photo(case: Case, person: int) -> Image.Image | None:
    for photo, owner in zip(case.people.photos, case.people.owners, strict=True):
        if owner == person and photo is not None:
            with contextlib.suppress(ImageError):  # it has a stored embedding, and is not needed
                return open_photo(photo)
    return None
