"""What evaluations in tests are of: a tree of made people, and cases whose figures are known."""

import dataclasses
import resource
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import noise, some_landmarks, write_photo, write_speech
from PIL import Image

from s2f import attributes, evaluation_data, image_quality, retrieval
from s2f.attributes import attributes_section
from s2f.audio import Waveform
from s2f.embeddings import Maker
from s2f.evaluation_data import WHOLE, Case, Examples, People, Photos, Stored, build_case
from s2f.image_quality import faces_section, geometry_section, quality_section, search_faces
from s2f.images import FRAME
from s2f.pipeline import Embedded, Face
from s2f.retrieval import PROTOCOLS

N, D = 40, 8  # people, values of an embedding
SEXES = {f"{k:02}": "FM"[k % 2] for k in range(N)}


def write_people(tree: Path) -> Path:
    """Eight people in two splits: men have the lower half of the tones, women the upper."""
    rows = ["name,sex"]
    for split, names in (("test", "abcdefgh"), ("train", "ijklmnop")):
        for k, name in enumerate(names):
            folder = tree / f"{split}/{name}"
            (folder / "audios").mkdir(parents=True)
            for n, seconds in enumerate((7, 2)):
                np.save(folder / f"audios/{n}.npy", noise(seconds, seed=k + 10 * n))
            (folder / "images").mkdir()
            patches = np.random.default_rng(len(rows)).integers(0, 256, (7, 7, 3), dtype=np.uint8)
            photo = Image.fromarray(patches).resize((224, 224), Image.Resampling.BICUBIC)
            photo.save(folder / "images/0.png")
            rows.append(f"{name},{'FM'[k % 2]}")
    (tree / "labels.csv").write_text("\n".join(rows))
    return tree


def drawn_face(k: int, noise: float = 0.0) -> Face:
    """The face of a person: landmarks and pixels of their own; men are dark below, women above."""
    own = np.random.default_rng(k)
    points = some_landmarks(k) + own.normal(0, noise, (68, 2)).astype(np.float32)
    pixels = own.integers(90, 160, (28, 28, 3)).astype(np.uint8)
    half = slice(14, None) if k % 2 else slice(None, 14)
    pixels[half] //= 3
    image = Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC)
    return Face(image, points, np.zeros(D, np.float32), "speech", 1, "planted")


def case_of(faces: np.ndarray, voices: np.ndarray) -> Case:
    """People [n d] with one photo and as many voices each; men and women take turns."""
    n, each = len(faces), len(voices) // len(faces)
    names = tuple(f"{k:02}" for k in range(n))
    people = People(
        names,
        tuple(Path(f"{k}.npy") for k in range(len(voices))),
        np.repeat(np.arange(n), each),
        (None,) * n,
        faces,
        np.arange(n),
        faces,
        (),
    )
    sexes = {"sex": {name: "FM"[k % 2] for k, name in enumerate(names)}}
    return Case(people, sexes, {"3 s": voices, WHOLE: voices}, [], [], voices, faces)


def with_photos(case: Case, photos: np.ndarray) -> Case:
    """The same people with other photos, [n m d]."""
    n, m, d = photos.shape
    lengths = np.linalg.norm(photos, axis=2, keepdims=True)
    people = dataclasses.replace(
        case.people,
        photos=(None,) * (n * m),
        embeddings=photos.reshape(-1, d),
        owners=np.repeat(np.arange(n), m),
        centres=(photos / lengths).mean(1),
    )
    return dataclasses.replace(case, people=people)


def given_away() -> Case:
    """Voices that give away all but a little of the face; the first value tells the sex."""
    rows = np.random.default_rng(1).standard_normal((N, D)).astype(np.float32)
    rows[:, 0] = [5 if k % 2 else -5 for k in range(N)]
    faces, again = [drawn_face(k) for k in range(N)], [drawn_face(k, 0.5) for k in range(N)]
    return dataclasses.replace(case_of(rows, rows), from_voices=again, from_photos=faces)


def write_lists(root: Path, vox1: list[str], vox2: list[str]) -> None:
    """The lists of people as VoxCeleb1 and HQ-VoxCeleb have them; every second one is a woman."""
    rows = [f"id1{k:04}\t{name}\t{'fm'[k % 2]}\tIreland\tdev" for k, name in enumerate(vox1)]
    header = "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet"
    for part in ("vox1", "vox2"):
        (root / part).mkdir(parents=True, exist_ok=True)
    (root / "vox1/vox1_meta.csv").write_text("\n".join([header, *rows]))
    rows = [
        f'n{k:06},"{name}",9,1,f,id0{k:04},n{k:06},{"fm"[k % 2]},dev' for k, name in enumerate(vox2)
    ]
    header = "Class_ID,Name,Sample_Num,Flag,Gender_x,VoxCeleb2ID,VGGFace2ID,Gender_y,Set"
    (root / "vox2/full_vox2_meta.csv").write_text("\n".join([header, *rows]), encoding="utf-8")


def write_hq_voxceleb(root: Path) -> Path:
    """Four people of test and six of training, as the parts of HQ-VoxCeleb are downloaded."""
    vox1 = [f"Ann_{k}" for k in range(20)]
    vox2 = [f"Zoe_{k}" for k in range(20)]
    vox1[8], vox2[8], vox2[18] = "Harry_Connick_Jr.", "Harry_Connick_Jr.", "Žydrūnas_Savickas,_Jr."
    write_lists(root, vox1, vox2)
    nested = root / "HQ-VoxCeleb/HQ-VoxCeleb"
    for k in (0, 1, 2, 8, 9, 18):
        for n in range(k % 3 + 1):  # photos
            write_photo(nested / f"vox1/masked_faces/{vox1[k]}/{n}.jpg", seed=k + n)
            there = unicodedata.normalize("NFD", vox2[k]).replace(",", "")
            write_photo(nested / f"vox2/masked_faces/{there}/{n}.jpg", seed=k + n + 1)
        write_photo(nested / f"vox1/origin_faces/{vox1[k]}/9.jpg", seed=k)
        for n in range(2):
            at = root / f"raw_wav/vox1/dev/id1{k:04}/video/{n:05}.wav"
            write_speech(at, seconds=2, seed=k + n)
            at = root / f"raw_wav/vox2/test/aac/id0{k:04}/video/{n:05}.wav"
            write_speech(at, seconds=2, seed=k + n + 1)
    return root


class Silent:
    """A model that hears noise in all recordings, and draws noise: what it takes is not its own."""

    def __init__(self, d: int) -> None:
        self.d, self.rng = d, np.random.default_rng(0)
        self.pixels = self.rng.integers(0, 256, (FRAME, FRAME, 3), dtype=np.uint8)

    def embed_voices(self, waveforms: Iterable[Waveform]) -> Iterator[Embedded]:
        for _ in waveforms:
            yield Embedded(1, total=self.rng.standard_normal(self.d))

    def decode(self, embedding: np.ndarray) -> Face:
        image = Image.fromarray(np.roll(self.pixels, int(1000 * abs(embedding[0])), axis=0))
        return Face(image, some_landmarks(), embedding, "an embedding", 0, "silent")


def peak_of_evaluation(recordings: int, people: int, d: int, at_once: int | None) -> float:
    """Evaluate people of five photos; give the most memory that this process ever had, MB.

    So many of a kind are read, compared or judged at a time, by default as usual.
    """
    for module in (evaluation_data, image_quality, attributes, retrieval) if at_once else ():
        for name in {"MOST", "ROWS", "QUERIES", "PHOTOS", "AT_ONCE"} & vars(module).keys():
            if module is not image_quality or name == "MOST":
                setattr(module, name, at_once)
    rng = np.random.default_rng(1)
    owners, names = np.repeat(np.arange(people), 5), [f"{k:04}" for k in range(people)]
    few = min(people, 20)  # who are shown, and learned from
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder, "sound.npy")
        np.save(sound, noise(1))
        speakers = np.sort(np.arange(recordings) % people)
        photos, centres = (Stored(Path(folder, name), (d,)) for name in ("photos", "centres"))
        for k in range(5 * people):
            photos.append(row := rng.standard_normal(d, np.float32))
            if k % 5 == 0:
                centres.append(row)
        everyone = People(
            *(tuple(names), (str(sound),) * recordings, speakers, (None,) * len(owners)),
            *(photos, owners, centres, (), centres),
        )
        maker = Maker("noise", d, "squash", lambda some: torch.randn(len(some), d))
        labels = {"sex": {name: "FM"[k % 2] for k, name in enumerate(names)}}
        model: Any = Silent(d)
        case = build_case(model, everyone, labels, maker, Path(folder))
        for make in PROTOCOLS.values():
            make(case)
        shown = Photos([model.decode(row).image for row in photos[:few]], names[:few])
        others = [f"{name} of training" for name in names[:few]]
        known = {"sex": {who: labels["sex"][who[:4]] for who in others}}
        learnt = Photos(shown.images, others)
        examples = Examples(others, photos[:few], known, learnt, known, shown, shown)
        attributes_section(case, examples)
        searched = search_faces(case, [], None)
        geometry_section(case, searched)
        quality_section(case, shown.images, searched, case.voices_again)
        faces_section(case)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
