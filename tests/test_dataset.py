"""From two folders of anything to a tree that every command reads."""

import contextlib
import hashlib
import json
import random
import shutil
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from command_line import Done, assert_refused
from conftest import FACES, noise, real_faces, some_landmarks, write_photo, write_speech
from PIL import Image
from trees import contents, grow

from s2f import checkpoint, layout
from s2f.console import jsonable
from s2f.dataset import find_who, prepare_dataset, published_splits
from s2f.errors import DatasetError, UsageError
from s2f.evaluation_data import find_sources
from s2f.files import Link
from s2f.pack import Pack, pack_tree
from s2f.split import sort_out

TRAINING = ["--steps", "1", "--batch-size", "2", "--every", "1", "--device", "cpu"]


@pytest.mark.slow
@pytest.mark.usefixtures("bundled", "presets")
def test_what_pair_and_split_make_is_read_by_every_command(models, tmp_path):
    """One tree; nothing is split a second time."""
    faces, voices, pairs, tree = (tmp_path / name for name in ("f", "v", "pairs", "split"))
    for k in range(8):
        stem = write_photo(faces / f"p{k}" / "1.jpg", seed=k).with_suffix("")
        np.save(layout.beside(stem, layout.LANDMARKS), some_landmarks(k))
        (voices / f"p{k}").mkdir(parents=True)
        np.save(voices / f"p{k}" / "1.npy", noise(1, seed=k))
    assert Done("prep", "pair", "--faces", faces, "--voices", voices, pairs).code == 0
    assert Done("prep", "split", pairs, tree, "--train", 0.5).code == 0
    model = models / "demo"
    encoder = ["--face-encoder", model / "face_encoder.safetensors"]
    decoder = ["--face-decoder", model / "face_decoder.safetensors"]
    assert Done("prep", "embeddings", tree, tree, *encoder, "--workers", 1).code == 0
    commands = {
        "encoder": ["train", "encoder", tree],
        "decoder": ["train", "decoder", tree, *encoder],
        "voice": ["train", "voice", tree, *encoder, *decoder],
        "packed": ["train", "voice", tmp_path / "pack", *encoder, *decoder],
    }
    packing = ["prep", "pack", tree, tmp_path / "pack", *encoder, "--clip-seconds", 1]
    assert Done(*packing, "--workers", 1, "--json").json["embeddings"] == 8
    for name, command in commands.items():
        run = tmp_path / name
        done = Done(*command, *TRAINING, "-o", run)
        assert (done.code, done.out) == (0, f"{run / 'best.safetensors'}\n"), done.err
    report = ["evaluate", tree, "--model", model, "-o", tmp_path / "report", "--device", "cpu"]
    assert Done(*report, "--protocol", "ours").code == 0
    marked = Done("prep", "stats", tree / "train", "-o", tmp_path / "stats.json", "--json").json
    assert marked["made"] == 4


def test_faces_are_embeddings_of_either_name_in_training_and_in_a_pack(models, tmp_path):
    """`NAME.npy`, embeddings without a photo, and of both the one that says what it is."""
    tree, encoder = tmp_path / "tree", models / "demo/face_encoder.safetensors"
    rows = np.eye(8, dtype=np.float32)
    for split in ("train", "val"):
        for k, name in enumerate(("1.npy", "1_embedding.npy")):
            images = tree / split / f"p{k}" / "images"
            for folder in (images, images.parent / "audios"):
                folder.mkdir(parents=True)
            np.save(images.parent / "audios" / "1.npy", noise(1, seed=k))
            np.save(images / name, rows[k])
        np.save(images / "1.npy", rows[7])  # of p1, who has the other
    packing = ["prep", "pack", tree, tmp_path / "pack", "--face-encoder", encoder]
    done = Done(*packing, "--clip-seconds", 1, "--workers", 1)
    assert "4 identities, 4 clips, 4 embeddings; passed over: 2 (.npy 2)\n" in done.err
    assert "4 embeddings without a photo: nothing tells who made them" in done.err
    (shard,) = (tmp_path / "pack/train").glob("embeddings*.npy")
    np.testing.assert_array_equal(np.load(shard), rows[:2])
    (one, two), _ = layout.speakers(tree / "train")
    found = [face.embedding for who in (one, two) for face in who.faces]
    assert found == ["p0/images/1.npy", "p1/images/1_embedding.npy"]
    write_photo(tree / "train/p0/images/1.jpg")  # whose embedding is another
    done = Done(*packing, "--clip-seconds", 1, "--overwrite", "--workers", 1)
    assert done.code == 0  # of the same files: nothing is due
    np.save(tree / "train/p0/images/1.npy", rows[3])
    done = Done(*packing, "--clip-seconds", 1, "--overwrite", "--workers", 1)
    assert done.code == 4 and "is not what" in done.err


def test_photos_lie_in_the_folder_of_a_person_or_in_images(tmp_path):
    for name in ("1", "images/1", "images/video/2"):
        stem = write_photo(tmp_path / "ann" / f"{name}.jpg").with_suffix("")
        np.save(layout.beside(stem, layout.LANDMARKS), some_landmarks())
    write_photo(tmp_path / "ann/images/3.jpg")
    write_photo(tmp_path / "ann/audios/4.jpg")  # a cover, and no photo of the tree
    found = [
        photo.path.relative_to(tmp_path / "ann").as_posix() for photo in layout.photos(tmp_path)
    ]
    assert found == ["1.jpg", "images/1.jpg", "images/3.jpg", "images/video/2.jpg"]
    targets = [photo.target.relative_to(tmp_path / "ann") for photo in layout.photos(tmp_path)]
    assert [str(target) for target in targets] == ["1", "images/1", "1", "images/video/2"]


# Two hundred people of VoxCeleb. Each row of a meta file is in the dialect that its name says; the
# digits of ids and classes have nothing to do with each other, and some are equal by chance.
VOX1 = {k: f"Ann_{k:03}" for k in range(80)}
VOX2 = {k: f"Žydrūnas_{k:03}" if k % 3 else f"Bob,_Jr._{k:03}" for k in range(120)}
VOX1[79] = VOX2[119]  # who is in both


def id1(k):
    return f"id{10001 + k}"


def id2(k):
    return f"id{12 + 3 * k:05}"


def class2(k):
    return f"n{12 + 3 * (119 - k):06}"


def has_face(k):
    return k % 4 != 1


def has_voice(k):
    return k % 5 != 2


def mark(photo):
    """Write landmarks beside a photo, which needs no detector then."""
    np.save(layout.beside(photo.with_suffix(""), layout.LANDMARKS), some_landmarks())


@pytest.fixture(scope="module")
def voxceleb(tmp_path_factory):
    """FACES with HQ-VoxCeleb's and VGGFace2's photos, VOICES, and a folder of meta files."""
    root = tmp_path_factory.mktemp("voxceleb")
    speech = write_speech(root / "speech.wav").read_bytes()
    photo = write_photo(root / "photo.jpg")
    mark(photo)
    marks = (root / f"photo{layout.LANDMARKS}").read_bytes()
    faces, voices, photos = root / "faces", root / "voices", []
    for k in filter(has_voice, range(120)):
        for video in ("aa", "bb"):
            grow(voices, [f"vox2/dev/aac/{id2(k)}/{video}/00001.wav"], speech)
        grow(voices, [f"vox2/dev/aac/{id2(k)}/aa/00001.m4a"], b"as a script left it")
        if k < 80:
            grow(voices, [f"vox1/wav/{id1(k)}/aa/00001.wav"], speech)
    for k in filter(has_face, range(120)):
        name = unicodedata.normalize("NFD" if k % 2 else "NFC", VOX2[k])
        name = name.replace(",", "") if k % 6 == 0 else name  # as the other list has it
        folder = f"vggface2/train/{class2(k)}" if k < 40 else f"vox2/masked_faces/{name}"
        photos += [f"{folder}/{n}" for n in range(1 + k % 2)]
        if k < 80:
            photos.append(f"vox1/masked_faces/{VOX1[k]}/1")
            grow(faces, [f"vox1/origin_faces/{VOX1[k]}/1.jpg"], b"with its ground")
    grow(faces, [f"{stem}.jpg" for stem in photos], photo.read_bytes())
    grow(faces, [f"{stem}{layout.LANDMARKS}" for stem in photos], marks)
    grow(faces, ["vox1/README.txt"])
    metas = root / "metas"
    metas.mkdir()
    texts = {
        "vox1_meta.csv": "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n",
        "vox2_meta.csv": "VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \n",
        "old_vox2_meta.csv": "Name \tVoxCeleb2 ID \tVGGFace2 ID \tGender \tSet\n",
        "full_vox2_meta.csv": "Class_ID,Name,Sample_Num,Flag,Gender_x,VoxCeleb2ID,VGGFace2ID,"
        "Gender_y,Set\n",
    }
    for k, name in VOX1.items():
        texts["vox1_meta.csv"] += f"{id1(k)}\t{name}\tm\tIreland\tdev\n"
    for k, name in VOX2.items():
        if k < 40:
            texts["vox2_meta.csv"] += f"{id2(k)} ,{class2(k)} ,f ,dev \n"
        elif k < 80:
            texts["old_vox2_meta.csv"] += f"{name} \t{id2(k)} \t{class2(k)} \tf \tdev\n"
        else:
            row = f'{class2(k)},"{name}",100,1,f,{id2(k)},{class2(k)},f,dev\n'
            texts["full_vox2_meta.csv"] += row
    for name, text in texts.items():
        (metas / name).write_text(text, encoding="utf-8")
    return faces, voices, metas


def test_a_tree_of_voxceleb_becomes_what_was_reckoned_by_hand(voxceleb, tmp_path):
    """48 people of VoxCeleb1 and 72 of VoxCeleb2 have both, one of them in both sets: 119."""
    faces, voices, metas = voxceleb
    out = tmp_path / "out"
    words = [word for path in sorted(metas.iterdir()) for word in ("--meta", path)]
    done = Done("prep", "dataset", faces, voices, out, *words, "--link", "symlink", "--json")
    assert done.code == 0, done.err
    told = done.json

    def plain(name):
        return name.replace("Žydrūnas", "Zydrunas").replace(",", "")

    both = [k for k in range(120) if has_face(k) and has_voice(k)]
    of = {id2(k) if k < 40 else plain(VOX2[k]): (2, 1 + k % 2) for k in both}
    shared = plain(VOX1[79])
    for k in both:
        if k < 79:
            of[VOX1[k]] = (1, 1)
    of[shared] = (3, 3)
    assert (len(both), len(of)) == (72, 48 + 72 - 1)
    n_audios, n_photos = (sum(counts) for counts in zip(*of.values(), strict=True))
    assert (n_audios, n_photos) == (48 + 2 * 72, 48 + 72 + sum(k % 2 for k in both))
    whole = {"people": 119, "photos": n_photos, "recordings": n_audios}
    assert told["whole"] == whole | {"hours": pytest.approx(n_audios / 3600, abs=1e-6)}
    assert told["voices"] == {"VoxCeleb1": 64, "VoxCeleb2": 96}
    assert told["faces"] == {"HQ-VoxCeleb": 60 + 60 - 1, "VGGFace2": 30}
    assert told["shared"] == [shared] and told["collisions"] == []
    everyone = [(name(k), k) for name, n in ((id1, 80), (id2, 120)) for k in range(n)]
    alone = {why: set(names) for why, names in told["people_left_out"].items()}
    unseen = {who for who, k in everyone if has_voice(k) and not has_face(k)}
    assert alone["voice: no face"] == unseen
    unheard = [k for k in range(120) if has_face(k) and not has_voice(k)]
    names = {class2(k) if k < 40 else plain(VOX2[k]) for k in unheard}
    names |= {VOX1[k] for k in unheard if k < 80}
    found = {unicodedata.normalize("NFC", name) for name in alone.pop("face: no voice")}
    assert {plain(name) for name in found} == names and len(alone) == 1
    left = {".m4a": 96}, {".txt": 1, "in origin_faces, beside masked_faces": 60}
    assert (told["passed_over"]["voices"], told["passed_over"]["faces"]) == left
    assert (told["files_left_out"], told["detector"], told["pack"]) == ([], None, False)
    renamed = {plain(VOX2[k]) for k in both if k >= 40 and (k % 3 or k % 2)}
    assert set(told["renamed"].values()) == renamed  # letters; commas, where the folder has one
    # Who goes where: in the order of a hash of the seed and the name, by the largest remainder.
    order = sorted(of, key=lambda name: hashlib.sha256(json.dumps([0, name]).encode()).digest())
    dealt = {"train": order[:95], "val": order[95:107], "test": order[107:]}
    for split, people in dealt.items():
        folders = sorted(path.name for path in (out / "split" / split).iterdir())
        assert folders == sorted(people)
        counts = [sum(of[who][kind] for who in people) for kind in (0, 1)]
        amount = told["splits"][split]
        assert [amount["people"], amount["recordings"], amount["photos"]] == [len(people), *counts]
    photos = [path for path in contents(out / "split") if path.endswith(".jpg")]
    marks = [path for path in contents(out / "split") if path.endswith(layout.LANDMARKS)]
    assert len(photos) == len(marks) == n_photos
    assert f"| all | 119 | {n_photos} | {n_audios} | 0.05 |" in (out / "report.md").read_text()
    assert (
        json.loads((out / "stats.json").read_text())["files"]
        == told["splits"]["train"]["recordings"]
    )


def test_the_published_splits_are_those_of_the_rows_of_the_lists(voxceleb, tmp_path):
    """SF2F: of each list row 8, 18, ... is test, row 9, 19, ... val; counted from 0."""
    faces, voices, metas = voxceleb
    found = find_who(faces, voices, tmp_path, metas=sorted(metas.iterdir()))
    members = published_splits(found)
    for k in range(79):
        assert members[VOX1[k]] == {8: "test", 9: "val"}.get(k % 10, "train")
    for k in range(80, 119):  # from row 0 of full_vox2_meta.csv
        name = VOX2[k].replace("Žydrūnas", "Zydrunas").replace(",", "")
        assert members[name] == {8: "test", 9: "val"}.get(k % 10, "train")
    shared = VOX1[79].replace("Žydrūnas", "Zydrunas")
    assert members[shared] == "val"  # row 79 of one list, row 39 of the other
    lacking = find_who(
        faces, voices, tmp_path, metas=[metas / "vox1_meta.csv", metas / "vox2_meta.csv"]
    )
    with pytest.raises(UsageError, match=r"go by the rows of full_vox2_meta\.csv"):
        published_splits(lacking)
    people = {f"p{k}": () for k in range(3)}
    dealt, counts = sort_out(people, {"p0": "test", "p9": "val"})
    assert dealt == {"train": ("p1", "p2"), "val": (), "test": ("p0",)}
    assert counts == {(): {"train": 2, "val": 0, "test": 1}}


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ([], "VoxCeleb1, .*without vox1_meta.csv"),
        (["vox1_meta.csv", "vox2_meta.csv"], None),  # VoxCeleb2's is joined by classes
        (["vox1_meta.csv"], "without full_vox2_meta.csv"),
        (["full_vox2_meta.csv"], "without vox1_meta.csv"),
    ],
)
def test_a_missing_meta_file_is_asked_for_by_its_name(given, missing, voxceleb, tmp_path):
    faces, voices, metas = voxceleb
    paths = [metas / name for name in given]
    if missing is None:
        assert find_who(faces, voices, tmp_path, metas=paths).plan.pairs
        return
    with pytest.raises(DatasetError, match=missing) as caught:
        find_who(faces, voices, tmp_path, metas=paths)
    assert "give --meta" in caught.value.hint


def test_vggface2_with_voices_by_name_or_id_wants_the_list_that_joins_them(tmp_path):
    grow(tmp_path, ["f/n000012/1.jpg", "v/id00012/a/1.wav", "w/Ann/1.wav", "x/id10001/a/1.wav"])
    for voices, name in (("v", "vox2"), ("w", "identity"), ("x", "vox1")):
        with pytest.raises(DatasetError, match=f"without {name}_meta.csv"):
            find_who(tmp_path / "f", tmp_path / voices, tmp_path / "out", metas=None)
    (tmp_path / "identity_meta.csv").write_text('Class_ID, Name\nn000012, "Ann"\n')
    who = find_who(tmp_path / "f", tmp_path / "w", tmp_path / "out", metas=None)  # found beside
    assert [one.identity for one in who.plan.pairs] == ["Ann"]
    assert who.metas == (tmp_path / "identity_meta.csv",)
    with pytest.raises(DatasetError, match="nobody of 2 people") as caught:
        find_who(grow(tmp_path / "g", ["Bob/1.jpg"]), tmp_path / "w", tmp_path / "o", metas=None)
    assert "'Ann'" in caught.value.hint and "'Bob'" in caught.value.hint
    flat = grow(tmp_path / "flat", ["Ann.jpg", "Ann.wav"])
    with pytest.raises(DatasetError, match="nobody of 0 people") as caught:
        find_who(flat, flat, tmp_path / "out", metas=[])
    assert "'Ann.wav', into a folder of their name" in caught.value.hint


def write_people(root, n=8):
    """Folders of names: p0 has no voice, p1 no face, others both; two files are broken."""
    for k in range(n):
        if k != 1:
            for name in ("1.jpg", "2.png"):
                mark(write_photo(root / "faces" / f"p{k}" / name, seed=k))
        if k != 0:
            ending = "flac" if k == 4 else "wav"
            write_speech(root / "voices" / f"p{k}" / f"1.{ending}", seed=k)
            np.save(root / "voices" / f"p{k}" / "2.npy", noise(1, seed=k))
    grow(root, ["faces/p2/broken.jpg", "voices/p2/broken.wav", "faces/p3/notes.txt"])
    mark(root / "faces/p2/broken.jpg")
    (root / "labels.csv").write_text(
        "who,sex\n" + "".join(f"p{k},{'mf'[k % 2]}\n" for k in range(n))
    )
    return root / "faces", root / "voices"


def test_a_run_that_was_stopped_anywhere_ends_with_the_same_files(models, tmp_path):
    """It is stopped by what it tells of its progress, at chance places of all steps."""
    faces, voices = write_people(tmp_path)
    options = {"face_encoder": models / "demo/face_encoder.safetensors", "pack": True}
    options |= {"workers": 1, "device": "cpu", "by": tmp_path / "labels.csv"}
    calls = []
    whole, out = tmp_path / "whole", tmp_path / "out"
    report = prepare_dataset(faces, voices, whole, progress=lambda *_: calls.append(_), **options)
    assert report.whole.people == 6 and report.whole.photos == report.whole.recordings == 12
    assert {call[2].partition(":")[0] for call in calls} >= {"audio", "embeddings", "split", "pack"}
    assert [(one.file, one.why[:12]) for one in report.files_left_out] == [
        (faces / "p2/broken.jpg", "is not a pic"),
        (voices / "p2/broken.wav", report.files_left_out[1].why[:12]),
    ]
    assert sum(of.people for of in report.splits.values()) == 6
    assert {one["labels"]["sex"] for one in report.strata} == {"m", "f"}
    table = (whole / "split/labels.csv").read_text().splitlines()  # which evaluate looks for
    assert table == ["identity,sex", *(f"p{k},{'mf'[k % 2]}" for k in range(2, 8))]
    chance, stopped = random.Random(0), 0
    for _ in range(8):
        left = iter(range(chance.randrange(len(calls) // 2)))

        def stop(*_, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            stopped += 1
            prepare_dataset(faces, voices, out, progress=stop, **options)
            stopped -= 1
    assert stopped >= 4
    again = prepare_dataset(faces, voices, out, **options)
    assert jsonable(vars(again)) == jsonable(vars(report))
    assert seen(out) == seen(whole)
    assert list((out / "split/.s2f/index").iterdir())  # of landmarks, for training
    assert (out / "pack/train/index.json").is_file() and (out / "sheet.jpg").stat().st_size
    write_speech(voices / "p4/1.wav", seed=9)  # beside 1.flac, which it takes the place of
    (faces / "p2/2.png").unlink()
    (voices / "p3/1.wav").write_bytes(b"broken since")
    # All commands take the folder for the tree in it.
    assert layout.split(out, "val") == out / "split/val"
    assert find_sources(out) == (out / "split", out / "split", [out / "split/labels.csv"])
    packed = pack_tree(out, out / "pack", face_encoder=options["face_encoder"])
    assert (packed.made, packed.identities) == (0, 6)
    fewer = prepare_dataset(faces, voices, out, **options)
    assert (fewer.whole.photos, fewer.whole.recordings) == (11, 11)
    assert fewer.passed_over["voices"] == {".flac": 1}
    lost = {one.file.parent.name for one in fewer.files_left_out}
    assert lost == {"p2", "p3"}
    endings = (".png", layout.LANDMARKS, layout.EMBEDDING)
    old = {f"p2/images/2{ending}" for ending in endings} | {"p3/audios/1.npy"}
    assert set(fewer.stale) == old
    for name, *is_there in [
        ("pairs", True),
        *((f"split/{split}", False) for split in fewer.splits),
    ]:
        assert [(out / name / path).exists() for path in old] == is_there * 4


def test_the_splits_hold_what_the_report_says_whatever_was_made_before(models, tmp_path):
    """Embeddings of a face encoder that is given no more, and of a kind of file all that went."""
    faces, voices = write_people(tmp_path)
    encoder, out = models / "demo/face_encoder.safetensors", tmp_path / "out"
    options = {"workers": 1, "device": "cpu"}
    prepare_dataset(faces, voices, out, face_encoder=encoder, **options)
    assert len([*out.glob(f"split/*/*/images/*{layout.EMBEDDING}")]) == 12
    for waveform in voices.rglob("2.npy"):
        waveform.unlink()
    (out / "pack").mkdir()
    told: list[str] = []
    report = prepare_dataset(faces, voices, out, note=told.append, **options)
    assert told[-1].startswith(f"{out / 'pack'} is as an earlier run left it")
    assert (report.whole.photos, report.whole.recordings) == (12, 6)
    assert report.stale == tuple(f"p{k}/audios/2.npy" for k in range(2, 8))
    assert report.embedding_space is None
    inside = [path.name for path in out.glob("split/[tv]*/*/*/*")]
    assert inside.count("1.npy") == 6 and "2.npy" not in inside
    assert sum(name.endswith((".jpg", ".png")) for name in inside) == 12
    assert not [name for name in inside if name.endswith(layout.EMBEDDING)]
    again = prepare_dataset(faces, voices, out, face_encoder=encoder, **options)
    assert again.stale == report.stale
    assert len([*out.glob(f"split/*/*/images/*{layout.EMBEDDING}")]) == 12


def seen(root):
    """All files but journals, which know when their sources were made."""
    return {
        name: data for name, data in contents(root).items() if not {".s2f"} & set(Path(name).parts)
    }


def test_what_cannot_be_a_data_set_is_refused(models, tmp_path):
    faces, voices = write_people(tmp_path)
    with pytest.raises(UsageError, match="there is no face encoder"):
        prepare_dataset(faces, voices, tmp_path / "out", pack=True)
    with pytest.raises(DatasetError, match="none: is no folder"):
        prepare_dataset(faces, tmp_path / "none", tmp_path / "out")
    with pytest.raises(UsageError, match="overlaps"):
        prepare_dataset(faces, voices, faces / "out")
    for split in ("2", "0.5,0.6", "0.8,0.1,0.2", "most"):
        done = Done("prep", "dataset", faces, voices, tmp_path / "out", "--split", split)
        assert done.code == 2 and "Traceback" not in done.err
    assert_refused(
        Done("prep", "dataset", faces, voices, tmp_path / "o", "--by", "x.csv"), 3, "x.csv"
    )
    for command in (["dataset", faces, voices], ["split", faces]):
        done = Done("prep", *command, tmp_path / "o", "--columns", "sex,age")
        assert_refused(done, 2, "--columns sex,age: there is no file of labels")
        assert not (tmp_path / "o/split.json").exists()
    for path in faces.rglob(f"*{layout.LANDMARKS}"):  # of pictures of 314 x 314
        np.save(path, np.load(path) * 1.4)
    with pytest.raises(DatasetError, match="of a larger frame"):
        prepare_dataset(faces, voices, tmp_path / "out", workers=1)
    for path in voices.rglob("*.*"):
        path.write_bytes(b"")
    for path in faces.rglob(f"*{layout.LANDMARKS}"):
        np.save(path, some_landmarks())
    with pytest.raises(DatasetError, match="nobody of 6 people has a photo and a recording"):
        prepare_dataset(faces, voices, tmp_path / "out", workers=1, link=Link.COPY)


@pytest.mark.slow
@real_faces
def test_real_photos_and_recordings_killed_at_any_moment(tmp_path):
    """24 names, six of them on one side only, and three broken files: as a stranger finds them."""
    pytest.importorskip("dlib")
    names = [f"Zoë {k:02}" for k in range(24)]
    photos = sorted(path for path in FACES.iterdir() if path.is_dir())
    readers = sorted(path for path in (FACES.parent / "voices").iterdir() if path.is_dir())
    for k, name in enumerate(names):
        if k % 8 != 1:
            (tmp_path / "faces" / name).mkdir(parents=True)
            for kind in ("neutral", "smiling"):
                shutil.copy(photos[k] / f"{kind}.jpg", tmp_path / "faces" / name)
        if k % 8 != 2:
            shutil.copytree(readers[k], tmp_path / "voices" / name)
    cut = tmp_path / "faces" / names[0] / "neutral.jpg"
    cut.write_bytes(cut.read_bytes()[:5000])
    Image.new("RGB", (300, 300), "grey").save(tmp_path / "faces" / names[3] / "wall.png")
    text = tmp_path / "voices" / names[4] / "text.flac"
    text.write_text("no recording")
    encoder = checkpoint.MODELS / "demo/face_encoder.safetensors"
    words = ["-m", "s2f", "prep", "dataset", "faces", "voices"]
    more = ["--face-encoder", encoder, "--pack", "--quiet"]

    def start(out):
        folded = [sys.executable, *words, out, *map(str, more)]
        return subprocess.Popen(folded, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    began, whole = time.monotonic(), start("whole")
    told = whole.communicate()[1]
    took, chance = time.monotonic() - began, random.Random(0)
    assert whole.returncode == 6 and "3 of 56 failed" in told
    report = json.loads((tmp_path / "whole/report.json").read_text())
    left = [(one["file"], one["why"]) for one in report.pop("files_left_out")]
    assert [file for file, _ in left] == [
        *(f"faces/{names[0]}/neutral.jpg", f"faces/{names[3]}/wall.png"),
        f"voices/{names[4]}/text.flac",
    ]
    assert "no face" in left[1][1] and left[2][1].startswith("holds no sound")
    hours = report["whole"].pop("hours")
    assert report["whole"] == {"people": 18, "photos": 35, "recordings": 18}
    real = [readers[k] for k in range(24) if k % 8 not in (1, 2)]
    seconds = [soundfile.info(path).duration for r in real for path in r.glob("*.flac")]
    assert 0.85 * sum(seconds) < 3600 * hours <= sum(seconds)  # pauses of 2 s are left out
    assert {name: of["people"] for name, of in report["splits"].items()} == {
        "train": 14,
        "val": 2,
        "test": 2,
    }
    assert report["people_left_out"] == {
        "face: no voice": [names[k] for k in (2, 10, 18)],
        "voice: no face": [names[k] for k in (1, 9, 17)],
    }
    assert report["renamed"] == {names[k]: f"Zoe_{k:02}" for k in range(24) if k % 8 not in (1, 2)}
    for part in (0.1, 0.3, 0.6):
        run = start("out")
        time.sleep(part * chance.uniform(0.8, 1) * took)
        run.kill()
        run.communicate()
    last = start("out")
    last.communicate()
    assert last.returncode == 6
    assert seen(tmp_path / "out") == seen(tmp_path / "whole")
    marks = sorted((tmp_path / "out/split").rglob(f"*{layout.LANDMARKS}"))
    assert len(marks) == 35
    assert (
        Pack(tmp_path / "out/pack/train").index.embedding
        == np.load(next((tmp_path / "out/split/train").rglob(f"*{layout.EMBEDDING}"))).size
    )
