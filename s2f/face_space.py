"""A linear space of faces: real people, registered, and every mix of them.

Shapes are landmark templates [189 2] in the 224 frame; textures are photos warped to the mean
shape. A face is a weighted sum of people's textures, warped to a weighted sum of their shapes:
sharp, because registered, and with landmarks that are exact.

Source: Cole et al. 2017 (morphing of faces as data augmentation); the linear model
is that of Cootes et al. 1998, "Active Appearance Models".
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from s2f.errors import DatasetError
from s2f.images import FRAME
from s2f.warp import warp

BACKGROUND = (0.845, 0.858, 0.855)  # the studio's grey, mean of the photos' lower corners
# Of the faces given to voices, in deviations of the real people: along the axes that follow the
# timbre, which a voice encoder can learn, and along all others, which it cannot.
TIMBRE_SCALE, REST_SCALE = 0.5, 0.15
MASCULINITY_SPREAD = 2.0  # of those faces, in terms of the real people's
SEX_MARGIN = 0.25  # of the way between the mean faces, by which they are further from the other sex
MAX_UNEVENNESS = 15  # pixels; the London set's mean has 4
# Outline of neck, jaw, ears and hair, template points; what lies outside becomes background.
_OUTLINE = (
    *(145, 126, 125, 119, 118, 117, 116, 115, 148, 149, 150, 151),
    *(152, 153, 154, 120, 121, 122, 123, 124, 133, 132, 157),
)


@dataclass(frozen=True)
class People:
    """Photographed people in the 224 frame.

    Attributes:
        names, sexes: one a person.
        photos: uint8 [n v 3 224 224]: neutral, smiling.
        shapes: [n 189 2] of the neutral photos.
    """

    names: list[str]
    sexes: NDArray[np.str_]
    photos: Tensor
    shapes: Tensor

    def mirrored(self, order: NDArray[np.intp]) -> "People":
        """The same people in a mirror; `order` names each template point's partner."""
        shapes = self.shapes[:, torch.from_numpy(order)].clone()
        shapes[..., 0] = FRAME - 1 - shapes[..., 0]
        names = [f"{name}m" for name in self.names]
        return People(names, self.sexes, self.photos.flip(-1), shapes)

    def subset(self, rows: NDArray[np.intp]) -> "People":
        """Some of the people."""
        index = torch.from_numpy(rows)
        names = [self.names[i] for i in rows]
        return People(names, self.sexes[rows], self.photos[index], self.shapes[index])


class FaceSpace:
    """A linear space of faces: textures and shapes of real people, and how masculine each is.

    A face is a weight for each person's texture and one for each person's shape; either sum to 1.
    """

    def __init__(self, people: People, mean_shape: Tensor) -> None:
        shapes, sexes = people.shapes, people.sexes
        self.photographed = register(people, mean_shape)
        self.textures = on_background(self.photographed, mean_shape)
        textures = self.textures
        self.shapes, self.sexes, self.mean_shape = shapes, sexes, mean_shape
        # Appearance and shape on one scale: principal axes of both, whitened, the first 30 each.
        axes = [_whitened(textures.flatten(1), 30), _whitened(shapes.flatten(1), 30)]
        coordinates = np.concatenate(axes, axis=1)
        male = sexes == "M"
        difference = coordinates[male].mean(0) - coordinates[~male].mean(0)
        within = np.concatenate([coordinates[of] - coordinates[of].mean(0) for of in (male, ~male)])
        covariance = within.T @ within / len(within) + 0.1 * np.eye(within.shape[1])
        masculinity: NDArray[np.float64] = coordinates @ np.linalg.solve(covariance, difference)
        self.masculinity = masculinity  # [n]

    def of_sex(self, sex: str) -> NDArray[np.intp]:
        """Rows of the people of a sex."""
        return np.flatnonzero(self.sexes == sex)

    def mix(self, sex: str, rng: np.random.Generator) -> NDArray[np.float64]:
        """Weights [2 n] of a convex mix of 2 to 4 people of a sex, texture and shape apart."""
        weights = np.zeros((2, len(self.sexes)))
        for row in weights:
            parents = rng.choice(self.of_sex(sex), rng.integers(2, 5), replace=False)
            row[parents] = rng.dirichlet(np.full(len(parents), 1.5))
        return weights

    def draw(self, sex: str, rng: np.random.Generator, scale: float) -> NDArray[np.float64]:
        """Weights [2 n] of a normal draw with the people's covariance times `scale` squared."""
        rows = self.of_sex(sex)
        weights = np.zeros((2, len(self.sexes)))
        noise = rng.standard_normal((2, len(rows))) * scale / np.sqrt(len(rows))
        weights[:, rows] = 1 / len(rows) + noise - noise.mean(axis=1, keepdims=True)
        return weights

    def axes(self, sex: str) -> NDArray[np.float64]:
        """Weights [m m] of the people of a sex on its axes of variation, the largest first.

        Textures and shapes count alike, each divided by its total variance.
        """
        rows = torch.from_numpy(self.of_sex(sex))
        total = np.zeros((len(rows), len(rows)))
        for part in (self.textures, self.shapes):
            centred = part[rows].flatten(1) - part[rows].flatten(1).mean(0)
            products = (centred @ centred.T).double().numpy()
            total += products / products.trace()
        vectors: NDArray[np.float64] = np.linalg.eigh(total)[1][:, ::-1].copy()
        vectors *= np.sign(vectors[0])  # an axis has two directions: always take the same one
        return vectors

    def voiced(
        self, sex: str, rank: float, timbre: NDArray[np.float64], rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Weights [2 n] of the face for a voice.

        Args:
            sex: of the speaker.
            rank: of the voice's pitch within the sex, 0 (lowest) to 1: the lower, the more
                masculine the face, as the real people's ranks are spread but wider, and a
                little further from the other sex.
            timbre: normal scores [a], laid on the a largest axes of variation.
            rng: for the rest.
        """
        rows = self.of_sex(sex)
        left = self.axes(sex)[:, : len(timbre)]
        noise = rng.standard_normal(len(rows)) * REST_SCALE
        # timbre's axes hold timbre alone
        scores = left @ (TIMBRE_SCALE * timbre - left.T @ noise) + noise
        scores -= scores.mean()
        weights: NDArray[np.float64] = np.zeros((2, len(self.sexes)))
        weights[:, rows] = 1 / len(rows) + scores / np.sqrt(len(rows))
        real = np.quantile(self.masculinity[rows], (1 - rank, 0.5))
        wanted = real[1] + MASCULINITY_SPREAD * (real[0] - real[1])
        other = self.of_sex("F" if sex == "M" else "M")
        towards = np.zeros(len(self.sexes))  # from the mean woman to the mean man
        male, female = (rows, other) if sex == "M" else (other, rows)
        towards[male], towards[female] = 1 / len(male), -1 / len(female)
        step = (wanted - self.masculinity @ weights[0]) / (self.masculinity @ towards)
        # A voice that is hard to tell is given a face between: it is still to be on its own side.
        weights += (step + (SEX_MARGIN if sex == "M" else -SEX_MARGIN)) * towards
        return weights

    def render(self, weights: NDArray[np.float64]) -> tuple[Tensor, Tensor, Tensor]:
        """Texture [3 224 224], shape [189 2] and photo [3 224 224] of weights [2 n].

        The texture stands on a plain background; the photo has whatever mix of hair and light
        surrounds the real people, so that a face encoder learns to look past it.
        """
        texture_of, shape_of = torch.from_numpy(weights).float()
        texture, photographed = (
            torch.einsum("n,nchw->chw", texture_of, of).clamp(0, 1)
            for of in (self.textures, self.photographed)
        )
        shape = torch.einsum("n,nkx->kx", shape_of, self.shapes)
        photo = warp(photographed[None], self.mean_shape[None], shape[None])[0]
        return texture, shape, photo


def _whitened(rows: Tensor, axes: int) -> NDArray[np.float64]:
    """Coordinates [n axes] of rows [n m] on their largest principal axes, variance 1."""
    left = torch.linalg.svd(rows.double() - rows.double().mean(0), full_matrices=False)[0]
    scores: NDArray[np.float64] = left[:, :axes].numpy() * np.sqrt(len(rows))
    return scores


def mirror_order(shape: NDArray[np.float32]) -> NDArray[np.intp]:
    """Find each template point's partner in the mirror, [189], from a mean shape [189 2].

    Raises:
        DatasetError: if some point is farther from its partner's reflection than faces are uneven.
    """
    from scipy.optimize import linear_sum_assignment

    mirrored = shape.copy()
    mirrored[:, 0] = 2 * shape[:, 0].mean() - shape[:, 0]
    distances = np.linalg.norm(mirrored[:, None] - shape[None], axis=2)
    order: NDArray[np.intp] = linear_sum_assignment(distances)[1]
    worst = distances[np.arange(len(shape)), order].max()
    if worst > MAX_UNEVENNESS:
        raise DatasetError(
            f"the mean template is not symmetric: a point is {worst:.0f} pixels from its partner; "
            f"wanted at most {MAX_UNEVENNESS}",
            hint="check the order of the points in the templates",
        )
    return order


def join(a: People, b: People) -> People:
    """Two groups of people as one."""
    return People(
        [*a.names, *b.names],
        np.concatenate([a.sexes, b.sexes]),
        torch.cat([a.photos, b.photos]),
        torch.cat([a.shapes, b.shapes]),
    )


def register(people: People, mean_shape: Tensor) -> Tensor:
    """Neutral photos warped to the mean shape, [n 3 224 224]."""
    pairs = zip(people.photos, people.shapes, strict=True)
    return torch.cat([warp(v[:1] / 255, shape[None], mean_shape[None]) for v, shape in pairs])


def on_background(textures: Tensor, mean_shape: Tensor) -> Tensor:
    """Cut people out of registered photos [n 3 224 224] and stand them before a plain grey."""
    background = torch.tensor(BACKGROUND).view(3, 1, 1).expand_as(textures)
    return torch.lerp(background, textures, _person_mask(mean_shape.numpy()))


def _person_mask(shape: NDArray[np.float32]) -> Tensor:
    """1 inside neck, head and hair of a shape [189 2], 0 outside, soft between: [224 224]."""
    fine = 4
    points = shape.copy()
    # The temples: halfway hair of some is background of others; go a quarter of the way in.
    points[[148, 154]] = 0.75 * shape[[148, 154]] + 0.25 * shape[[135, 143]]
    centre = np.float32(FRAME / 2)
    outline = ((points[list(_OUTLINE)] - centre) * 1.02 + centre) * fine
    bottom = np.float32(FRAME * fine + 40)
    polygon = [(outline[0, 0], bottom), *map(tuple, outline), (outline[-1, 0], bottom)]
    mask = Image.new("L", (FRAME * fine, FRAME * fine), 0)
    ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in polygon], fill=255)
    mask = mask.resize((FRAME, FRAME), Image.Resampling.LANCZOS)
    soft = mask.filter(ImageFilter.GaussianBlur(2.5))
    # Hair that reaches the border must end there, or the warp would draw it on and on.
    top = torch.arange(FRAME).div(5).clamp(0, 1)[:, None]
    return torch.from_numpy(np.asarray(soft, np.float32) / 255) * top
