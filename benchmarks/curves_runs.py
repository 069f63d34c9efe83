"""The runs that `curves` compares: what is trained, on which people, and what is measured."""

import dataclasses
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from s2f import dataloader, layout, losses
from s2f.checkpoint import Card, Checkpoint, choose, load, load_model
from s2f.dataloader import Item, Key
from s2f.train import Task, TrainConfig, train
from s2f.train_faces import FaceDecoderTask
from s2f.train_voice import VoiceEncoderTask

CPU = torch.device("cpu")
TERMS = {
    "mse": "embedding/mse",
    "l2": "embedding/l2",
    "l1": "decoder/l1",
    "nce": losses.CONTRASTIVE,
}
IDENTITY = "identity/cosine"
FOLDS = 4  # that the people of train and val are divided into; a seed keeps out one
N_FACES = 60  # validation faces of the decoder
Curve = list[dict[str, float]]
Figures = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is trained, and with which other it is compared.

    Attributes:
        terms: of the voice encoder's loss, as keys of `TERMS`, or what the decoder has besides
            landmarks and texture: `identity`, `morph`.
    """

    name: str
    against: str
    terms: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Part:
    """One of the two comparisons.

    Attributes:
        measures: and whether more is better.
        learned: measures that have to end better than at the start.
        config: of each run.
    """

    name: str
    measures: dict[str, bool]
    learned: tuple[str, ...]
    variants: tuple[Variant, ...]
    config: TrainConfig


ADDED = [Variant(f"mse + {term}", "mse", ("mse", term)) for term in ("l2", "l1", "nce")]
LEFT_OUT = [
    Variant(f"all - {out}", "all", tuple(term for term in TERMS if term != out)) for out in TERMS
]
VOICE = Part(
    "voice",
    {"angle, degrees": False, "R@1": True, "R@5": True},
    ("angle, degrees",),
    (Variant("mse", "mse", ("mse",)), *ADDED, Variant("all", "mse", tuple(TERMS)), *LEFT_OUT),
    TrainConfig(steps=120, batch_size=16, every=20, lr=2e-3, weight_decay=0.05),
)
DECODER = Part(
    "decoder",
    {"landmarks, RMS pixels": False, "texture, MAE": False, "identity, cosine": True},
    ("landmarks, RMS pixels", "texture, MAE"),
    (
        Variant("landmarks + texture", "landmarks + texture", ()),
        Variant("+ identity", "landmarks + texture", ("identity",)),
        Variant("+ morphs", "landmarks + texture", ("morph",)),
        Variant("+ identity + morphs", "+ identity", ("identity", "morph")),
    ),
    TrainConfig(steps=60, batch_size=8, every=15, lr=5e-4),
)
PARTS = {part.name: part for part in (VOICE, DECODER)}


class _Bare:
    """A task without solved layers, and without pictures, which would take most of the time."""

    def finish(self, batches: Callable[[int], Iterator[Item]]) -> bool:
        return False

    def sample(self, batch: Item) -> Tensor:
        return torch.zeros(3, 8, 8)


class Voice(_Bare, VoiceEncoderTask):
    """The voice encoder's task, with what is measured as losses of no weight."""

    def __init__(self, data: Path, bundled: dict[str, Checkpoint], weights: Figures) -> None:
        chosen = {TERMS[term]: weight for term, weight in weights.items()}
        contrastive = chosen.pop(losses.CONTRASTIVE, None)
        super().__init__(
            *(data, "compact", bundled["face_encoder"], bundled["face_decoder"], Card("curves")),
            device=CPU,
            loss_weights=",".join(f"{name}={weight}" for name, weight in chosen.items()),
            contrastive=contrastive,
        )
        self.loss_weights |= dict.fromkeys(VOICE.measures, 0.0)

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Losses of a batch; in validation the measures too."""
        values = super().losses(batch, augmented=augmented)
        if self.network.training:
            return values
        target = batch["embedding"]
        own = functional.cosine_similarity(self.predicted, target)
        faces = functional.normalize(torch.from_numpy(self.val_data.table))  # one a person
        others = functional.normalize(self.predicted) @ faces.T
        rank = (others > own[:, None] + 1e-6).sum(1)
        measured = (own.clamp(-1, 1).acos().rad2deg(), rank < 1, rank < 5)
        return values | dict(zip(VOICE.measures, (m.float() for m in measured), strict=True))


class Decoder(_Bare, FaceDecoderTask):
    """The decoder's task, with or without the identity loss."""

    with_identity = True

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Losses of a batch; the identity's without a gradient where it is not to be learned."""
        values = super().losses(batch, augmented=augmented)
        if not self.with_identity:
            values[IDENTITY] = values[IDENTITY].detach()
        return values


@dataclasses.dataclass(frozen=True)
class Job:
    """One run, for a process of its own; `weights` are those of the voice's terms."""

    part: str
    variant: Variant
    seed: int
    folder: Path
    weights: Figures
    config: TrainConfig


def link(names: Iterable[Path], folder: Path) -> None:
    """Make a tree of links to the folders of people."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name.name).symlink_to(name.resolve(), target_is_directory=True)


def divide(data: Path, folder: Path, seeds: int) -> None:
    """Make the trees: voices divided anew for each seed; the real people's faces, some mixes."""
    people = sorted(
        itertools.chain(*(layout.identities(data / "voices" / s) for s in ("train", "val"))),
        key=lambda person: person.name,
    )
    for seed in range(seeds):
        kept_out = people[seed % FOLDS :: FOLDS]
        link(kept_out, folder / f"voices{seed}/val")
        link(
            (person for person in people if person not in kept_out), folder / f"voices{seed}/train"
        )
    faces = layout.identities(data / "faces/train")
    link((face for face in faces if not face.name.startswith("mix")), folder / "faces/train")
    link(layout.identities(data / "faces/val")[:N_FACES], folder / "faces/val")


def bundled() -> dict[str, Checkpoint]:
    """Read the bundled face encoder and decoder."""
    return dict(load_model(choose("demo", ("face_encoder", "face_decoder"))).checkpoints)


def read(data: object, keys: list[Key]) -> Item:
    """Read one batch."""
    (loaded,) = dataloader.load_batches(data, [keys], CPU, workers=0, max_bad=0)
    if loaded.items is None:
        raise loaded.bad[0]
    return loaded.items


@torch.no_grad()
def at_start(task: Task) -> Figures:
    """Measure what is validated before there is a step."""
    task.network.eval()
    keys = [Key(i, i) for i in range(len(task.val_data))]
    values = task.losses(read(task.val_data, keys), augmented=False)
    task.network.train()
    return {name: float(value.mean()) for name, value in values.items()}


def measured(part: str, values: Figures) -> Figures:
    """Take the measures from the validation losses."""
    if part == "voice":
        return {name: values[name] for name in VOICE.measures}
    found = (values["landmarks/mse"] ** 0.5, values["texture/mae"], 1 - values[IDENTITY])
    return dict(zip(DECODER.measures, found, strict=True))


def make_task(job: Job) -> Task:
    """Make the task of a job; the same seed gives the same network."""
    torch.manual_seed(job.seed)
    networks = bundled()
    if job.part == "voice":
        weights = {term: job.weights.get(term, 1.0) for term in job.variant.terms}
        return Voice(job.folder / f"voices{job.seed}", networks, weights)
    task = Decoder(
        *(job.folder / "faces", "compact", networks["face_encoder"]),
        load(job.folder / "start.safetensors", "face_decoder"),
        Card("curves"),
        device=CPU,
        morph=0.5 * ("morph" in job.variant.terms),
    )
    task.with_identity = "identity" in job.variant.terms
    return task


def curve(job: Job) -> tuple[Job, Curve]:
    """Train, and tell the measures at the start and at each validation."""
    task = make_task(job)
    points = [{"step": 0.0, **measured(job.part, at_start(task))}]
    with tempfile.TemporaryDirectory(dir=job.folder) as run:
        train(task, Path(run), job.config, device=CPU)
        for line in (Path(run) / "history.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            points.append({"step": record["step"], **measured(job.part, record["val"])})
    return job, points


def calibrate(job: Job) -> tuple[Figures, Figures]:
    """Find the weights, and what there is to know of the data.

    The weights make the gradients of all terms as long as that of the first, with respect to the
    predicted embedding, after half of the steps with the first alone: the paper's rule, with
    InfoNCE under it.
    """
    task = make_task(job)
    assert isinstance(task, Voice)
    unused = dict.fromkeys([TERMS[term] for term in list(TERMS)[1:]], 0.0)
    steps = job.config.steps // 2
    config = dataclasses.replace(job.config, steps=steps, every=steps, loss_weights=unused)
    with tempfile.TemporaryDirectory(dir=job.folder) as run:
        train(task, Path(run), config, device=CPU)
    n = len(task.train_data)
    batch = read(task.train_data, [Key(i, i) for i in range(0, n, n // 64)])
    norms = losses.gradient_norms(task.losses(batch, augmented=True), task.predicted)
    found = losses.equal_weights(norms)
    faces, mean = (torch.from_numpy(d.table) for d in (task.val_data, task.train_data))
    cosines = functional.cosine_similarity(faces, mean.mean(0, keepdim=True))
    known = {
        "people kept out": float(len(faces)),
        "angle of the mean training face": float(cosines.acos().rad2deg().mean()),
    }
    return {term: found[name] for term, name in TERMS.items()}, known


def write_start(data: Path, folder: Path) -> None:
    """Write the decoder that all start from: the demo's linear model, at half strength.

    The bundled face encoder's embedding is the code of that model, which draws faces so well at
    once that there is nothing to learn; at half strength it draws them half-way to the mean face.
    """
    encoder = bundled()["face_encoder"]
    task = FaceDecoderTask(*(data / "faces", "compact", encoder, None, Card("curves")), device=CPU)
    with torch.no_grad():
        for weight in (task.network.landmarks[0].weight, task.network.local.axes):
            weight.mul_(0.5)
        task.network.detail.strengths.zero_()  # nothing that is halved is to be amplified again
    task.save(folder / "start.safetensors", torch.float32, {})
