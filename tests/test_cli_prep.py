"""`s2f prep ...`: what users type, see, and get wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from command_line import Done, assert_refused, assert_wrong_usage
from conftest import write_photo, write_speech
from face_trees import Found
from PIL import Image
from trees import contents, grow, interruptible

from s2f import demo, face_detection, prep_faces
from s2f.images import open_photo


@pytest.fixture
def recordings(tmp_path):
    for k in range(3):
        write_speech(tmp_path / f"in/id{k}/a.wav", seed=k)
    return tmp_path / "in"


def test_audio_stores_waveforms_and_a_bad_file_costs_itself(recordings, tmp_path):
    (recordings / "bad.wav").write_bytes(b"RIFF nonsense")
    grow(recordings, ["id0/notes.TXT", "id0/.hidden.txt", "cover.heic", "id1/back.heic"])
    done = Done("prep", "audio", recordings, tmp_path / "out", "--workers", 1)
    assert (done.code, done.out) == (6, f"{tmp_path / 'out'}\n")
    assert "made 3, up to date 0, failed 1" in done.err and "error: 1 of 4 failed" in done.err
    assert "; passed over: 3 (.heic 2, .txt 1)\n" in done.err
    assert str(recordings / "bad.wav") in done.err and "Traceback" not in done.err
    assert np.load(tmp_path / "out/id0/a.npy").dtype == np.int16
    again = Done("prep", "audio", recordings, tmp_path / "out", "--json")
    assert (again.json["made"], again.json["skipped"], again.err) == (0, 3, "")
    assert again.json["passed_over"] == {".heic": 2, ".txt": 1}
    (failed,) = again.json["failed"]
    assert (failed["source"], failed["error"]) == (str(recordings / "bad.wav"), "AudioError")
    one = Done("prep", "audio", recordings / "bad.wav", tmp_path / "one")
    assert_refused(one, 3, "bad.wav")  # a single one exits with its own error


def test_a_tree_with_each_recording_in_two_formats_takes_the_preferred(recordings, tmp_path):
    """What public scripts for VoxCeleb2 leave, 00001.wav beside 00001.m4a, here as FLAC."""
    for k in range(2):
        soundfile.write(recordings / f"id{k}/a.flac", *soundfile.read(recordings / f"id{k}/a.wav"))
    stats, out = tmp_path / "stats.json", tmp_path / "out"
    for words in (("audio", recordings, out), ("stats", recordings, "-o", stats)):
        refused = Done("prep", *words, "--workers", 1)
        assert refused.code == 3 and "2 names have more than one file (.flac beside" in refused.err
        assert "cure: give --prefer wav or --prefer flac\n" in refused.err
        done = Done("prep", *words, "--workers", 1, "--prefer", "wav", "--json").json
        assert (done["made"], done["failed"], done["passed_over"]) == (3, [], {".flac": 2})
    assert json.loads(stats.read_text())["frames"] == 3 * 98


def test_audio_stores_what_was_asked_for(recordings, tmp_path):
    for options, shape in (
        *(("--preset seed", (2, 257, 601)), ("--store spectrogram", (2, 257, 598))),
        *(("--preset ast --store spectrogram", (1, 128, 1024)), ("--trim-silence 40", (16000,))),
    ):
        out = tmp_path / options
        done = Done("prep", "audio", recordings / "id0", out, "--workers", 1, *options.split())
        assert done.code == 0 and np.load(out / "a.npy").shape == shape


def test_shards_say_which_they_are_and_the_status_adds_them_up(recordings, tmp_path):
    (recordings / "bad.wav").write_bytes(b"RIFF nonsense")
    out = tmp_path / "out"
    assert_refused(Done("prep", "status", out), 3, out)
    words = ("prep", "audio", recordings, out, "--workers", 1, "--shard")
    done = [Done(*words, f"{k}/2") for k in (1, 2)]
    assert sorted(one.code for one in done) == [0, 6]  # one has the bad file
    made = [re.search(r"^shard ([12])/2: made (\d),", one.err, re.MULTILINE) for one in done]
    assert [found[1] for found in made] == ["1", "2"]
    assert sum(int(found[2]) for found in made) == 3
    again = [Done(*words, f"{k}/2", "--json").json for k in (1, 2)]
    assert [one["shard"] for one in again] == ["1/2", "2/2"]
    assert (sum(o["made"] for o in again), sum(o["skipped"] for o in again)) == (0, 3)
    status = Done("prep", "status", out)
    assert (status.code, status.out) == (1, "audio: 3 of 4 done, 1 failed, 0 begun, 0 missing\n")
    assert str(recordings / "bad.wav") in status.err and "Traceback" not in status.err
    (recordings / "bad.wav").unlink()
    assert [Done(*words, f"{k}/3").code for k in (1, 2)] == [0, 0]  # another division
    status = Done("prep", "status", out, "--json")
    (step,) = status.json["steps"]
    assert (status.code, step["absent"], step["is_whole"]) == (1, ["3/3"], False)
    Done(*words, "3/3")
    assert (Done("prep", "status", out).code, Done(*words[:-1]).code) == (0, 0)
    (step,) = Done("prep", "status", out, "--json").json["steps"]
    assert (step["step"], step["done"], step["shards"]) == ("audio", 3, [])


def test_a_wrong_shard_is_refused_and_what_has_none_says_so(recordings, tmp_path):
    for text in ("0/4", "5/4", "x", "1/"):
        done = Done("prep", "audio", recordings, tmp_path / "out", "--shard", text)
        assert_refused(done, 2, f"--shard {text}")
    for words in (
        *(("stats", recordings), ("pair", "--faces", recordings, "--voices", recordings, "out")),
        *(("split", recordings, "out"), ("index", recordings), ("pack", recordings, "out")),
        *(("dataset", recordings, recordings, "out"), ("names", recordings)),
    ):
        for shard in (("--shard", "1/2"), ("--shard=1/2",)):
            done = Done("prep", *words, *shard)
            assert_refused(done, 2, f"s2f prep {words[0]} makes one thing, and no shards")
            assert "cure: run it once" in done.err
    assert not (tmp_path / "out").exists()


def test_the_script_for_slurm_runs_and_is_what_the_readme_shows(recordings, tmp_path):
    root = Path(__file__).parents[1]
    script = root / "examples/slurm_prep.sh"
    assert script.read_text().splitlines()[-1] in (root / "README.md").read_text().splitlines()
    (tmp_path / "bin").mkdir()
    for name, does in (("srun", 'exec "$@"'), ("s2f", f'exec {sys.executable} -m s2f "$@"')):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    env |= {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "1", "PYTHONPATH": str(root)}
    words = ["sh", str(script), str(recordings), str(tmp_path / "out")]
    assert subprocess.run(words, env=env, check=True, capture_output=True).stderr == b""
    (journal,) = (tmp_path / "out/.s2f").glob("audio.2-of-64.*.journal")  # alone in an array of one
    assert journal.read_bytes().startswith(b'{"version": 1')


def test_stats_go_into_the_ast_front_end(recordings, tmp_path):
    stats, out = tmp_path / "stats.json", tmp_path / "out"
    done = Done("prep", "stats", recordings, "-o", stats, "--workers", 1, "--json")
    assert (done.code, done.json["frames"]) == (0, 3 * 98)
    assert json.loads(stats.read_text())["mean"] == done.json["mean"]
    arguments = ("prep", "audio", recordings, out, "--preset", "ast", "--workers", 1)
    assert Done(*arguments, "--stats", stats).code == 0
    stored = np.stack([np.load(path) for path in out.rglob("*.npy")])
    assert stored.shape == (3, 1, 128, 1024) and abs(stored.mean()) < 0.1
    assert stored.std() == pytest.approx(0.5, abs=0.05)  # AST's: (x - mean) / (2 std)


def test_resized_photos_of_two_folders_are_kept_apart_and_old_ones_are_told(tmp_path):
    for folder in "ab":
        write_photo(tmp_path / folder / "1.jpg", seed=ord(folder))
    write_photo(tmp_path / "a/2.jpg")
    out = tmp_path / "out"
    assert Done("prep", "resize", tmp_path / "a", out, "--workers", 1).code == 0
    before = contents(out)
    done = Done("prep", "resize", tmp_path / "b", out, "--workers", 1)
    assert done.code == 6 and contents(out)["1.jpg"] == before["1.jpg"]
    assert f"{out / '1.jpg'}: was made of {tmp_path / 'a/1.jpg'}, not of" in done.err
    (tmp_path / "a/1.jpg").write_bytes(b"no photo any more")
    (tmp_path / "a/2.jpg").unlink()
    arguments = ("prep", "resize", tmp_path / "a", out, "--workers", 1)
    told = "2 old outputs kept, whose sources went bad or away: 1.jpg, 2.jpg\n"
    assert told in Done(*arguments).err
    assert Done(*arguments, "--json").json["stale"] == ["1.jpg", "2.jpg"]
    arguments = ("prep", "resize", tmp_path / "b", out, "--workers", 1, "--overwrite")
    assert Done(*arguments).code == 0 and contents(out)["1.jpg"] != before["1.jpg"]


def test_faces_and_landmarks_of_photos(tmp_path, monkeypatch):
    monkeypatch.setattr(prep_faces, "check_detector", lambda name, device: None)
    monkeypatch.setattr(prep_faces, "load_detector", lambda *name_and_device: Found())
    # The first that is installed, as for `reconstruct`.
    monkeypatch.setattr(face_detection, "choose_detector", lambda name: name or "face-alignment")
    photos = write_photo(tmp_path / "photos/id0/a.jpg").parents[1]
    Image.open(photos / "id0/a.jpg").resize((320, 320)).save(photos / "id0/a.jpg")
    Image.new("RGB", (64, 64)).save(photos / "black.png")
    done = Done("prep", "faces", photos, tmp_path / "out", "--workers", 1)
    assert done.code == 6 and "black.png: no face was found" in done.err
    assert open_photo(tmp_path / "out/id0/a.jpg").size == (224, 224)
    done = Done("prep", "landmarks", photos / "id0", photos / "id0", "--workers", 1)
    assert done.code == 0
    assert np.load(photos / "id0/a_landmarks.npy").shape == (68, 2)


@pytest.mark.parametrize(
    "words",
    [
        *("audio no/where out", "stats no/where", "resize no/where out", "names no/where"),
        *("split no/where out", "demo no/where no/where no/where out"),
        *("pair --faces no/where --voices no/where out", "pack a", "pack a b"),
        *("pack a --face-encoder c", "pack a b --verify"),
    ],
)
def test_what_is_not_there_exits_3_and_half_a_request_2(words):
    refusal = (2, "packing takes TREE") if words.startswith("pack") else (3, "no/where")
    if words.startswith("demo"):
        refusal = (4, "no/where")  # the speaker encoder is read first
    assert_refused(Done("prep", *words.split()), *refusal)


@pytest.mark.parametrize(
    "words",
    [
        *("audio a", "audio a b --preset mine", "audio a b --workers 0", "resize a b --size 3"),
        *("landmarks a b --detector mine", "embeddings a b", "split tree out --train 1.5"),
        *("split tree out --link soft", "pair out", "pack t o --face-encoder e --clip-seconds nan"),
    ],
)
def test_wrong_usage_exits_2(words):
    assert_wrong_usage(Done("prep", *words.split()))


def test_an_interrupt_exits_130_and_the_next_run_goes_on(tmp_path):
    for k in range(200):
        write_speech(tmp_path / f"in/{k}.wav", seed=k % 3)
    words = ["prep", "audio", str(tmp_path / "in"), str(tmp_path / "out"), "--workers", "2"]
    options = {"start_new_session": True, "preexec_fn": interruptible, "text": True}
    command = [sys.executable, "-m", "s2f", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, **options)
    while not list((tmp_path / "out").glob("*.npy")):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in said and "Traceback" not in said
    done = Done(*words, "--json").json
    assert done["skipped"] > 0 and done["made"] + done["skipped"] == 200


def test_names_prints_each_renaming_and_json_has_all_of_the_plan(tmp_path):
    grow(tmp_path, ["é/1", "o/1", "ö/2", "train\n/1"])
    done = Done("prep", "names", tmp_path, "--dry-run", "--json")
    assert (done.code, done.err) == (6, "")
    renamed = [(item["parent"], item["old"], item["new"]) for item in done.json["renamed"]]
    assert renamed == [(str(tmp_path), ["train\n"], "train_"), (str(tmp_path), ["é"], "e")]
    assert done.json["failed"][0]["error"] == "DatasetError"
    assert set(contents(tmp_path)) == {"é/1", "o/1", "ö/2", "train\n/1"}
    done = Done("prep", "names", tmp_path)
    assert (done.code, done.out) == (6, "'train\\n' -> 'train_'\n'é' -> 'e'\n")
    assert "2 were renamed" in done.err
    merged = Done("prep", "names", tmp_path, "--merge", "--quiet")
    assert (merged.code, merged.err) == (0, "")
    assert set(contents(tmp_path)) == {"e/1", "o/1", "o/2", "train_/1"}


def test_split_takes_all_its_options(tmp_path):
    tree = grow(tmp_path / "tree", [f"p{k}/1.jpg" for k in range(10)])
    labels = tmp_path / "l.csv"
    labels.write_text("id,sex,note\n" + "".join(f"p{k},F,x{k}\n" for k in range(8)))
    options = ("--by", labels, "--columns", "sex, note", "--seed", 3, "--val", 0.2)
    done = Done("prep", "split", tree, tmp_path / "o", *options, "--link", "symlink", "--json")
    assert (done.code, done.json["unlabelled"]) == (0, ["p8", "p9"])
    assert [len(done.json["splits"][name]) for name in ("train", "val", "test")] == [8, 2, 0]
    assert all(path.is_symlink() for path in (tmp_path / "o").rglob("*.jpg"))
    done = Done("prep", "split", tree, tmp_path / "o", *options, "--link", "symlink")
    assert "\n2 people without labels: p8, p9\n" in done.err


def test_a_folder_above_the_people_is_not_split(tmp_path):
    """That of VoxCeleb's archives as they unpack."""
    grow(tmp_path, ["vox1/wav/id10001/a/1.wav", "vox1/dev/1.txt"])
    done = Done("prep", "split", tmp_path / "vox1", tmp_path / "out")
    assert_refused(done, 3, "'dev', 'wav' are parts of a data set, and no people")
    assert not (tmp_path / "out").exists()


def test_pair_prints_where_the_tree_is(tmp_path):
    grow(tmp_path, ["f/ann/1.jpg", "v/ann/1.wav", "v/ann/1.m4a", "v/bob/1.wav"])
    grow(tmp_path, ["f/people.csv"])
    trees = ("--faces", tmp_path / "f", "--voices", tmp_path / "v")
    arguments = ("prep", "pair", *trees, "--prefer", "wav")
    planned = Done(*arguments, tmp_path / "out", "--dry-run")
    assert (planned.code, planned.out) == (0, "ann: 1 voices, 1 files of faces, by name\n")
    done = Done(*arguments, tmp_path / "out")
    assert (done.code, done.out) == (0, f"{tmp_path / 'out'}\n")
    assert "1 voice folders left out, no face: bob" in done.err
    assert done.err.endswith("passed over: 2 (.csv 1, .m4a 1)\n")
    report = Done(*arguments, tmp_path / "out", "--json").json
    assert (report["pairs"][0]["identity"], report["unmatched"][0]["why"]) == ("ann", "no face")


def test_prep_demo_prints_where_the_trees_are(tmp_path, monkeypatch):
    def prepare(faces, voices, speaker, out, **options):
        options.pop("progress")(1, 2, "a")
        assert options == {"more": tmp_path / "m", "identities": 3, "seed": 1}
        return demo.DemoReport(out, {"train": 3}, {"train": 1})

    monkeypatch.setattr(demo, "prepare_demo", prepare)
    sources, more = ("f", "v", "s.safetensors"), ("--more", tmp_path / "m")
    done = Done("prep", "demo", *sources, tmp_path / "out", *more, "--identities", 3, "--seed", 1)
    assert (done.code, done.out) == (0, f"{tmp_path / 'out'}\n")


def test_embeddings_lie_beside_their_photos_and_are_packed_and_checked(voices, models, tmp_path):
    encoder, pack = models / "demo/face_encoder.safetensors", tmp_path / "pack"
    arguments = ("prep", "embeddings", voices, voices, "--workers", 1, "--face-encoder")
    other = models / "other/face_encoder.safetensors"
    assert Done(*arguments, other, "--batch-size", 2, "--device", "cpu").code == 0
    assert np.load(voices / "train/id0/images/a_embedding.npy").shape == (8,)
    assert Done(*arguments, encoder, "--json").json["made"] == 6
    arguments = ("prep", "pack", voices, pack, "--face-encoder", encoder, "--clip-seconds", 1)
    done = Done(*arguments, "--workers", 1, "--verify")
    assert (done.code, done.out) == (0, f"{pack}\n")
    assert "6 identities, 6 clips, 6 embeddings; passed over: 6 (.jpg 6)\n" in done.err
    assert "0 damaged" in done.err
    again = Done(*arguments, "--json").json
    assert (again["made"], again["clips"], again["failed"]) == (0, 6, [])
    shard = sorted((pack / "train").glob("clips*.npy"))[0]
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    done = Done("prep", "pack", pack, "--verify")
    assert done.code == 6 and str(shard) in done.err
    assert len(Done("prep", "pack", pack, "--verify", "--json").json["damaged"]) == 1


def test_index_tells_what_it_has_looked_at(faces, models, tmp_path):
    encoder = models / "demo/face_encoder.safetensors"
    done = Done("prep", "index", faces)
    assert (done.code, done.out) == (0, f"{faces / '.s2f/index'}\n"), done.err
    assert "train: 3 photos, 3 with landmarks, of 3 people" in done.err
    refused = Done("prep", "index", faces, "--face-encoder", encoder, "-q")
    assert_refused(refused, 3, "a.jpg: has no NAME_embedding.npy; 3 photos have none")
    Done("prep", "embeddings", faces, faces, "--face-encoder", encoder, "-q")
    told = Done("prep", "index", faces, "--face-encoder", encoder, "--json").json
    assert (told["alike"], told["photos"]) == (3, {"train": 3, "val": 3})
    assert_refused(Done("prep", "index", tmp_path / "none", "-q"), 3, "has no folder train")
    assert Done("prep", "index", faces, "--verify", "--json").json["damaged"] == []
    (faces / ".s2f/index/train/who.npy").unlink()
    done = Done("prep", "index", faces, "--verify")
    assert done.code == 6 and "who.npy: cannot be read" in done.err and "1 damaged" in done.err
    both = Done("prep", "index", faces, "--verify", "--face-encoder", encoder, "-q")
    assert_refused(both, 2, "--verify makes nothing")
