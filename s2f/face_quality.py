"""How good pictures of faces are, whoever they show: sharp, different, faces at all.

Pictures in, numbers out; nothing here knows how a picture was made.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s2f.detection import Detector, FoundFace
from s2f.errors import UsageError
from s2f.images import FRAME

INNER = (62, 78, 162, 203)
"""Left, top, right, bottom of the inner face in the 224 frame: brows to chin, no hair."""
_AT_ONCE = 2**23  # values of pictures that are compared at once
_PHOTOS = 32  # that a detector is given at once

Vector = NDArray[np.float64]


def sharpness(image: Image.Image) -> float:
    """Deviation of the Laplacian of the inner face's brightness, 0..255.

    To be read as a share of what real photos have in the same frame, never alone: noise and
    compression are sharp, too.
    """
    from scipy import ndimage

    inner = image.convert("L").resize((FRAME, FRAME)).crop(INNER)
    return float(ndimage.laplace(np.asarray(inner, np.float64)).std())


def diversity(images: Sequence[Image.Image]) -> Vector:
    """Mean absolute difference, 0..255, of each picture to all others, [n]; exact.

    The mean of them is the mean distance of two different pictures. 0 where there is one alone.
    Beside the pictures it takes some 300 MB for up to some thousand of them.

    Raises:
        UsageError: if the pictures are of different sizes.
    """
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise UsageError(
            f"pictures of different sizes cannot be compared: {sorted(sizes)}",
            hint="bring them to one size first",
        )
    n = len(images)
    if n < 2:
        return np.zeros(n)
    width, height = sizes.pop()
    total = np.zeros(n, np.int64)
    band = max(1, _AT_ONCE // (3 * width * max(n, 256)))
    for top in range(0, height, band):
        box = (0, top, width, min(top + band, height))
        rows = [np.asarray(image.crop(box).convert("RGB")).reshape(-1) for image in images]
        total += _to_the_others(np.stack(rows))
    return total / (3 * width * height * (n - 1))


def _to_the_others(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Sum of absolute differences of each row of [n p] to all others, [n].

    There are 256 values only: what each differs from all others by is tabulated once a column,
    and no pair of rows is ever compared.
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


def all_points_found(images: Sequence[Image.Image], detector: Detector) -> NDArray[np.bool_]:
    """Tell in which pictures a detector finds a face all of whose points lie inside, [n].

    To be read beside the share among real photos in the same frame: where a frame is tight, the
    chins of long faces lie below it.

    Source: Duarte et al. 2019, "Wav2Pix", who measure by it how many pictures are faces.

    Args:
        images: pictures of any size.
        detector: of `detection.load_detector`.
    """
    found: list[bool] = []
    for start in range(0, len(images), _PHOTOS):
        part = [np.asarray(image.convert("RGB")) for image in images[start : start + _PHOTOS]]
        for picture, faces in zip(part, detector(part), strict=True):
            found.append(any(_inside(face, *picture.shape[:2]) for face in faces))
    return np.array(found, bool)


def _inside(face: FoundFace, height: int, width: int) -> bool:
    # (0, 0) is the centre of the first pixel: the picture begins half a pixel before it.
    places = face.points + 0.5
    return bool(((places >= 0) & (places <= (width, height))).all())


def vgg_face_score(
    logits: NDArray[np.floating], *, splits: int = 5, seed: int = 0
) -> tuple[float, float]:
    """Score how clearly faces are somebody, and how many different people they are.

    exp of the mean KL divergence of each picture's distribution over the identities of a face
    classifier to the mean distribution: 1 where all are alike, up to the number of identities.
    Each split is scored alone, and none can reach more than the pictures it holds: compare only
    scores of equally many pictures and splits. Does not depend on the order of the pictures.

    Source: the VGGFace score of Bai et al. 2022, "SF2F", who take 5 splits and a ResNet-50
    trained on VGGFace2; the form is that of the Inception score, Salimans et al. 2016.

    Args:
        logits: [n i] before the softmax.
        splits: parts of the pictures, drawn at random; no more than pictures.
        seed: of the draw.

    Returns:
        (mean, deviation) over the splits.

    Raises:
        UsageError: if there are no pictures.
    """
    from scipy.special import log_softmax, logsumexp

    n = len(logits)
    if n == 0:
        raise UsageError("there are no faces to score", hint="give at least one")
    rng = np.random.default_rng(seed)
    # In an order of their own first, so that the draw does not depend on the given one.
    own = np.argsort(logits @ rng.standard_normal(logits.shape[1]), kind="stable")
    scores = []
    for part in np.array_split(own[rng.permutation(n)], min(splits, n)):
        log_p = log_softmax(np.asarray(logits[part], np.float64), axis=1)
        mean = logsumexp(log_p, axis=0) - np.log(len(part))
        divergence = (np.exp(log_p) * (log_p - mean)).sum(1)
        scores.append(float(np.exp(divergence.mean())))
    return float(np.mean(scores)), float(np.std(scores))
