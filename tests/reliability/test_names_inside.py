"""Names in files that are read: none leads a command out of what the user named.

Where a name would lead stands what the command wants, so that who followed it would go on.
"""

import dataclasses
import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Done, assert_refused
from conftest import noise, some_landmarks, write_photo, write_speech
from damage import Count
from packs import write_pack
from trees import contents

from s2f import checkpoint, pack
from s2f.checkpoint import Card
from s2f.errors import InputError
from s2f.face_data import index_faces
from s2f.files import File, Names, sealed, write_arrays
from s2f.journal import Journal
from s2f.report import Report, Section, Table, write_report
from s2f.speaker_encoder import SpeakerEncoder, SpeakerEncoderConfig
from s2f.spectrogram import FRONT_ENDS

# What leads to the folder `else`, from one that is as deep as a tree of people.
WAYS = ["../else", "../../{root}/else", "a/../../else", "{path}/else", "./../else"]


def ways(root: Path) -> list[str]:
    return [way.format(root=root.name, path=root) for way in WAYS]


def refuse(root: Path, words: tuple[object, ...], name: object, count: Count) -> None:
    """Give a command, which is to name a file, what it says, and to write nothing."""
    before = contents(root)
    done = Done(*words)
    assert_refused(done, 3, name)
    assert contents(root) == before
    count.tried += 1
    count.refused += 1


@pytest.fixture
def ears(tmp_path: Path) -> Path:
    path = tmp_path / "speaker.safetensors"
    network = SpeakerEncoder(SpeakerEncoderConfig(layers=1, width=16))
    told = {"embedding_space": "of no face", "front_end": FRONT_ENDS["speaker"]}
    checkpoint.save(path, network, card=Card("ears"), **told)
    return path


def write_person(folder: Path) -> None:
    """Write all that `prep demo` wants of a person, and of a speaker."""
    for view in ("neutral", "smiling"):
        write_photo(folder / f"{view}.jpg")
    np.save(folder / "neutral_template.npy", 100 + np.arange(378.0).reshape(189, 2) / 9)
    write_speech(folder / "a.wav")


@pytest.mark.parametrize("table", ["people", "speakers", "more", "more's files"])
def test_people_and_speakers_of_the_sources(tmp_path, ears, table):
    write_person(tmp_path / "else")
    write_person(tmp_path / "faces/ann")
    write_person(tmp_path / "voices/ann")
    write_person(tmp_path / "more/ann")
    count, more = Count(), "ann,ann/a.wav,F,40,9,s"
    for name in [*ways(tmp_path), ".", "..", "ann/b"]:
        people = speakers = "ann"
        if table == "people":
            people = name
        elif table == "speakers":
            speakers = name
        elif table == "more":
            more = f"{name},ann/a.wav,F,40,9,s"
        elif name in (".", "ann/b"):  # which may be the name of a file
            continue
        else:
            more = f"ann,{name}/a.wav,F,40,9,s"
        (tmp_path / "faces/people.csv").write_text(f"person,sex\nann,F\n{people},M\n")
        (tmp_path / "voices/speakers.csv").write_text(f"speaker,sex\nann,F\n{speakers},M\n")
        (tmp_path / "more/speakers.csv").write_text(
            f"speaker,file,sex,age,seconds,source\n{more}\n"
        )
        words = (tmp_path / "faces", tmp_path / "voices", ears, tmp_path / "out")
        refuse(
            tmp_path,
            ("prep", "demo", *words, "--more", tmp_path / "more"),
            {"people": "faces/people.csv", "speakers": "voices/speakers.csv"}.get(
                table, "more/speakers.csv"
            ),
            count,
        )
    print(f"names in {table}: {count}")


@pytest.mark.parametrize("table", ["voices/speakers.csv", "imagined/faces.csv"])
def test_tables_of_the_demo(tmp_path, table):
    data, count = tmp_path / "data", Count()
    for name in ("faces", "voices", "imagined"):
        (data / name).mkdir(parents=True)
    write_photo(tmp_path / "else/a.jpg")
    (tmp_path / "else/audios").mkdir()
    for name in ways(tmp_path):
        name = f"../{name}" if name.startswith(".") else name
        speaker, face = ("ann", f"{name}/a") if "faces" in table else (name, "a")
        (data / "voices/speakers.csv").write_text(f"speaker,kind,split\n{speaker},F,train\n")
        (data / "imagined/faces.csv").write_text(f"face,sex,rank\n{face},F,0.5\n")
        refuse(tmp_path, ("train", "demo", data, "-o", tmp_path / "out"), data / table, count)
    print(f"names in {table}: {count}")


@pytest.mark.parametrize("kind", ["clips", "embeddings"])
def test_files_of_a_pack(tmp_path, presets, bundled, kind):
    """Of a right size and hash: `verify`, and training, would read them."""
    clips, embeddings = np.ones((4, 10), "<i2"), np.ones((2, 3), "<f2")
    write_pack(tmp_path / "pack/train", [clips], [embeddings], [("id0", 4, 2, (3, 1))])
    shutil.copytree(tmp_path / "pack/train", tmp_path / "else")
    shutil.copytree(tmp_path / "pack/train", tmp_path / "pack/val")
    index, count = pack.read_index(tmp_path / "pack/train"), Count()
    (shard,) = getattr(index, kind)
    for name in [f"{way}/{shard.name}" for way in ways(tmp_path)] + ["../val/" + shard.name, ""]:
        one = pack.Shard(name.replace("../else", "../../else"), shard.rows, shard.sha256)
        told = dataclasses.replace(index, **{kind: (one,)})
        pack.write_index(tmp_path / "pack/train", told)
        done = Done("prep", "pack", "--verify", tmp_path / "pack")
        assert done.code == 6 and "train/index.json: is damaged" in done.err, (done.code, done.err)
        words = ("train", "voice", tmp_path / "pack", "-o", tmp_path / "run", *networks(bundled))
        refuse(tmp_path, words, tmp_path / "pack/train/index.json", count)
    print(f"names in a pack, {kind}: {count}")


def lead(place: Path, root: Path, what: str, way: str) -> None:
    """Have an index of photos name what is elsewhere, and be whole."""
    told = json.loads((place / "index.json").read_bytes())
    del told["sha256"]
    name = {"photos": "paths", "folders": "folders"}.get(what, "who")
    if what == "arrays":
        told["arrays"][f"{way}/who"] = told["arrays"].pop("who")
    else:
        names = [*Names(*(np.load(place / f"{name}{end}.npy") for end in ("", "_starts")))]
        named = [f"{way}/{Path(os.fsdecode(path)).name}".encode() for path in names]
        if what == "folders":
            named = [*names, way.encode()]
            times = np.append(np.load(place / "times.npy"), (root / "else").stat().st_mtime_ns)
            told["arrays"] |= write_arrays({"times": times}, place)
        led = Names.of(named)
        told["arrays"] |= write_arrays({name: led.text, f"{name}_starts": led.starts}, place)
    (place / "index.json").write_bytes(sealed(told))


@pytest.mark.parametrize("what", ["photos", "arrays", "folders"])
def test_the_index_of_a_tree(tmp_path, presets, bundled, what):
    tree, count = tmp_path / "tree", Count()
    for person in ("train/ann", "train/bob", "val/ann", "val/bob"):
        write_photo(tree / person / "images/1.jpg")
        np.save(tree / person / "images/1_landmarks.npy", some_landmarks())
    shutil.copytree(tree / "train/ann/images", tmp_path / "else")
    index_faces(tree, device=torch.device("cpu"))
    place = tree / ".s2f/index/train"
    whole = contents(place)
    for way in ways(tmp_path):
        shutil.copy(place / "who.npy", tmp_path / "else")
        shutil.rmtree(place)
        for name, data in whole.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
        lead(place, tmp_path, what, way.replace("../else", "../../else"))
        encoder = bundled / "demo/face_encoder.safetensors"
        words = ("train", "decoder", tree, "--face-encoder", encoder, "--steps", 1, "--device")
        before = contents(tmp_path / "else")
        done = Done(*words, "cpu", "--batch-size", 1, "-o", tmp_path / "run")
        name = "paths.npy" if what == "photos" else "index.json"
        assert done.code == 3 and f"{place / name}: names" in done.err, (done.code, done.err)
        assert contents(tmp_path / "else") == before
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        count.tried += 1
        count.refused += 1
    print(f"names in the index of a tree, {what}: {count}")


def test_a_journal(tmp_path):
    write_speech(tmp_path / "in/a.wav")
    write_speech(tmp_path / "else/a.wav")
    count = Count()
    words = ("prep", "audio", tmp_path / "in", tmp_path / "out", "--workers", 1)
    assert Done(*words).code == 0
    (path,) = (tmp_path / "out/.s2f").glob("*.journal")
    settings = json.loads(path.read_bytes().split(b"\n")[0])["settings"]
    whole = path.read_bytes()
    for way in ways(tmp_path):
        with Journal(tmp_path / "out", "audio", settings, tmp_path / "in") as journal:
            journal.note("done", f"{way}/a.wav", File("a.wav", 1, 1))
        assert path.read_bytes() != whole
        refuse(tmp_path, words, path, count)
        path.write_bytes(whole)
    print(f"names in a journal: {count}")


NAMES = ["../else", "../../else/x", "/etc/passwd", "..", ".", "a/../../else", "~root", "C:\\else"]


def test_names_of_meta_files_become_plain_folders(tmp_path):
    """Of VoxCeleb's list: a person is called so, and gets a folder below the output."""
    rows, count = ["VoxCeleb1 ID\tVGGFace1 ID\tGender"], Count()
    for k, name in enumerate(NAMES):
        rows.append(f"id1000{k}\t{name}\tf")
        write_speech(tmp_path / f"voices/id1000{k}/a/1.wav")
        write_photo(tmp_path / f"faces/id1000{k}/1.jpg")
    meta = tmp_path / "vox1_meta.csv"
    meta.write_text("\n".join(rows))
    before = contents(tmp_path)
    words = ("--faces", tmp_path / "faces", "--voices", tmp_path / "voices", "--meta", meta)
    done = Done("prep", "pair", *words, tmp_path / "out/tree")
    assert done.code == 0, done.err
    made = contents(tmp_path).keys() - before.keys()
    assert all(name.startswith("out/tree/") for name in made)
    people = {path.name for path in (tmp_path / "out/tree").iterdir() if path.is_dir()}
    assert len(people) == len(NAMES) and not any(name.startswith(".") for name in people)
    count.tried = count.done = len(people)
    print(f"names in a meta file: {count}")


@pytest.mark.parametrize("name", ["labels.csv", "split.json"])
def test_labels_and_records_of_splits_only_tell(tmp_path, name):
    """Who is not in the tree is a stranger, whatever leads to him; a record is compared."""
    for k in range(3):
        write_photo(tmp_path / f"tree/p{k}/1.jpg", seed=k)
    write_photo(tmp_path / "else/1.jpg")
    rows = "".join(f"{who},f\n" for who in [*NAMES, *ways(tmp_path)])
    (tmp_path / "labels.csv").write_text(f"name,sex\np0,f\n{rows}")
    words = ["prep", "split", tmp_path / "tree", tmp_path / "out", "--by", tmp_path / "labels.csv"]
    if name == "split.json":
        assert Done(*words, "--columns", "sex").code == 0
        told = json.loads((tmp_path / "out/split.json").read_bytes())
        for key, value in told.items():
            if isinstance(value, dict):
                told[key] = {**value, "../../else": "train"}
        told["../else"] = "../else"
        (tmp_path / "out/split.json").write_text(json.dumps(told))
    before = contents(tmp_path)
    done = Done(*words, "--columns", "sex")
    if name == "split.json":
        assert_refused(done, 2, tmp_path / "out")
        assert contents(tmp_path) == before
        return
    assert done.code == 0, done.err
    made = contents(tmp_path).keys() - before.keys()
    assert {Path(one).parts[2] for one in made if one.endswith(".jpg")} == {"p0", "p1", "p2"}
    assert all(one.startswith("out/") for one in made)


def networks(bundled: Path) -> list[str]:
    names = {"face-encoder": "face_encoder", "face-decoder": "face_decoder"}
    return [f"--{name}={bundled}/demo/{file}.safetensors" for name, file in names.items()]


def test_the_config_of_a_run_is_compared_and_not_followed(tmp_path, presets, bundled):
    """Each name in it stands for what this run was given, or it is another run's."""
    tree, run = tmp_path / "tree", tmp_path / "run"
    for split, k in itertools.product(("train", "val"), range(2)):
        write_photo(tree / split / f"p{k}/images/a.jpg", seed=k)
        (tree / split / f"p{k}/audios").mkdir()
        np.save(tree / split / f"p{k}/audios/a.npy", noise(1, seed=k))
    words = ("train", "voice", tree, *networks(bundled), "-o", run, "--steps", 1)
    words = (*words, "--device", "cpu", "--batch-size", 2)
    done = Done(*words)
    assert done.code == 0, done.err
    config, count = json.loads((run / "config.json").read_bytes()), Count()
    del config["sha256"]
    texts = [key for key, value in config.items() if isinstance(value, str)]
    for key in [*texts[::5], "else"]:
        (run / "config.json").write_bytes(sealed(config | {key: "../else"}))
        before = contents(tmp_path)
        done = Done(*words)
        assert done.code == 2 and f"{run}" in done.err, (key, done.err)
        assert contents(tmp_path) == before
        count.add(run, InputError(done.err))
    print(f"names in a run's config: {count}")


def test_an_evaluation_is_shown_and_not_followed(tmp_path):
    table = Table("../../else", ("/etc/passwd",), (("../else",),), note="../else")
    sections = (Section("../../else", ("![](../else/a.jpg)",), (table,)),)
    samples = {"../else": {"/etc/passwd": 1.0, "../else": 0.5}}
    report = Report("../else", {"model": "/etc/passwd"}, sections, samples)
    write_report(report, tmp_path / "report")
    (tmp_path / "report/networks.json").write_text('{"voice_encoder": "../else"}')
    before = contents(tmp_path)
    reports = (tmp_path / "report", tmp_path / "report")
    done = Done("evaluate", "--compare", *reports, "-o", tmp_path / "out")
    made = contents(tmp_path).keys() - before.keys()
    assert done.code == 0 and made and all(one.startswith("out/") for one in made), done.err
    for path in (tmp_path / "out").iterdir():
        assert "root:x:" not in path.read_text() and 'src="..' not in path.read_text()
