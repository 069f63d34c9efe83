"""Craniofacial measures of faces from their 68 landmarks: what the shape of a face is compared by.

Points in iBUG order, left and right as in the picture. The anthropometrist's points, and where
the 68 hold them:

| point | where | is it? |
|---|---|---|
| n nasion | 27 | about: the first point of the bridge, level with the eyes |
| sn subnasale | 33 | yes |
| al alare | 31, 35 | no: the ends of the nostrils' base, inside the wings' widest place |
| sbal subalare | 31, 35 | about |
| ls, li middle of the lips' borders | 51, 57 | yes |
| ls' border of the upper lip under sbal | 49, 53 | about: between corner and peak |
| cph crista philtri | 50, 52 | yes: the peaks of the upper lip |
| sto stomion | 62, 66 | two points where the lips part: the edge of the lip that is measured |
| ch cheilion | 48, 54 | yes |
| gn gnathion | 8 | yes, if the chin's outline is its lower edge |
| go gonion | 4, 12 | about: the outline at the mouth's height |
| zy zygion | 1, 15 | about: the outline just below the eyes |
| en, ex endo-, exocanthion | 39, 42; 36, 45 | yes |

All are distances in the picture, so a face that is turned has other ones.

Source: the measures are those of Oh et al. 2019, fig. 5, with the philtrum's width, which they
measured and did not print. They give names only; the definitions are those of Farkas 1994,
"Anthropometry of the Head and Face". The labio-oral region, which is a region there, is taken
for the one width measured in it that is not there under another name, the mouth's; the nose's
area, for the outline of the nose from nasion over the nostrils' base.
"""

import numpy as np
from numpy.typing import NDArray

Measures = dict[str, NDArray[np.float64]]
_NOSE = (27, 31, 32, 33, 34, 35)


def measure(points: NDArray[np.floating]) -> Measures:
    """Measure faces, whatever their size, place and turn in the picture.

    Args:
        points: [n 68 2].

    Returns:
        By the measure's name, [n]. NaN where the points that it is divided by coincide.

        | measure | definition | unit |
        |---|---|---|
        | upper lip height | sn - sto | ex - ex |
        | lateral upper lip heights | sbal - ls', mean of both sides | ex - ex |
        | jaw width | go - go | ex - ex |
        | nose height | n - sn | ex - ex |
        | nose width | al - al | ex - ex |
        | labio-oral region | ch - ch | ex - ex |
        | mandibular index | sto - gn | go - go |
        | intercanthal index | en - en | ex - ex |
        | nasal index | al - al | n - sn |
        | vermilion height index | ls - sto | sto - li |
        | mouth-face width index | ch - ch | zy - zy |
        | nose area | of n, al, sn, al | (ex - ex) squared |
        | philtrum width | cph - cph | ex - ex |
    """
    p = np.asarray(points, np.float64)

    def length(i: int, j: int) -> NDArray[np.float64]:
        apart: NDArray[np.float64] = np.linalg.norm(p[:, i] - p[:, j], axis=-1)
        return apart

    eyes, mouth, jaw, nose = length(36, 45), length(48, 54), length(4, 12), length(31, 35)
    height = length(27, 33)
    return {
        "upper lip height": _over(length(33, 62), eyes),
        "lateral upper lip heights": _over((length(31, 49) + length(35, 53)) / 2, eyes),
        "jaw width": _over(jaw, eyes),
        "nose height": _over(height, eyes),
        "nose width": _over(nose, eyes),
        "labio-oral region": _over(mouth, eyes),
        "mandibular index": _over(length(66, 8), jaw),
        "intercanthal index": _over(length(39, 42), eyes),
        "nasal index": _over(nose, height),
        "vermilion height index": _over(length(51, 62), length(66, 57)),
        "mouth-face width index": _over(mouth, length(1, 15)),
        "nose area": _over(_area(p[:, list(_NOSE)]), eyes**2),
        "philtrum width": _over(length(50, 52), eyes),
    }


def _over(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    share: NDArray[np.float64] = np.divide(a, b, out=np.full_like(a, np.nan), where=b > 0)
    return share


def _area(outlines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area [n] inside closed outlines [n k 2]."""
    x, y = outlines[..., 0], outlines[..., 1]
    crossed = x * np.roll(y, -1, axis=-1) - y * np.roll(x, -1, axis=-1)
    area: NDArray[np.float64] = np.abs(crossed.sum(-1)) / 2
    return area
