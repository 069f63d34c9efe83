"""Files made to do harm: pickles that call, media that name other places, names that confuse."""

import contextlib
import gzip
import importlib
import operator
import os
import pickle
import runpy
import shutil
import socket
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_files
import numpy as np
import pytest
import torch
import typer.testing
from command_line import Done, files
from conftest import noise, write_photo, write_speech
from damage import Count, in_this_process
from face_trees import Found
from foreign_files import Calls, pickled, write_archive
from sources import enlarge
from trees import contents

from s2f import checkpoint, face_detection, foreign_weights, pack, prep, prep_faces, workers
from s2f.audio import map_waveform, read_speech
from s2f.errors import CheckpointError, DatasetError
from s2f.files import read_array, read_table
from s2f.images import open_photo
from s2f.prep_audio import audio_step

CODE = "open('canary', 'w').close()"
CALLS: dict[str, Any] = {
    "system": Calls(os.system, "touch canary"),
    "popen": Calls(os.popen, "touch canary"),
    "Popen": Calls(subprocess.Popen, ["touch", "canary"]),
    "eval": Calls(eval, CODE),
    "exec": Calls(exec, CODE),
    "open": Calls(open, "canary", "w"),
    "mkdir": Calls(os.mkdir, "canary"),
    "copy": Calls(shutil.copy, "w.py", "canary"),
    "run a file": Calls(runpy.run_path, "w.py"),
    "import": Calls(importlib.import_module, "w"),
    "a chain": Calls(
        operator.methodcaller("mkdir", "canary"), Calls(importlib.import_module, "os")
    ),
    "a loop": Calls(list, Calls(map, eval, [CODE])),
    "torch": Calls(torch.save, 1, "canary"),
    "a load": Calls(np.load, "w.pkl", None, True),
}


def bare(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def archive(path: Path, data: bytes) -> None:
    write_archive(path, data)


def old(path: Path, data: bytes) -> None:
    """In the place of what `torch.save` of before 1.6 saved."""
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    parts = foreign_files.old_parts(path)
    path.write_bytes(b"".join([*parts[:3], data, *parts[4:]]))


def convert(path: Path) -> None:
    foreign_weights.read_foreign(path, foreign_weights.recognise(path))


ENTRANCES: dict[str, Callable[[Path], object]] = {
    "w.pt": convert,
    "w.safetensors": checkpoint.verify,
    "w.h5": foreign_weights.inspect,
    "w.npy": read_array,
}


def at_once(read: Any, path: Path, *given: Any, **limits: Any) -> Any:
    """Read here, where nothing confines it, as hard as can be."""
    try:
        return read(path, *given)
    except Exception as error:
        raise CheckpointError(f"{path}: {error}") from error


def test_the_pickles_would_do_harm(tmp_path, monkeypatch):
    """To whoever obeys: here, this test."""
    Path(tmp_path / "w.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pkl").write_bytes(pickled(Calls(eval, CODE)))
    for name in (
        "eval",
        "exec",
        "mkdir",
        "copy",
        "run a file",
        "a chain",
        "a loop",
        "torch",
        "a load",
    ):
        pickle.loads(pickled(CALLS[name]))
        canary = tmp_path / "canary"
        assert canary.exists(), name
        canary.rmdir() if canary.is_dir() else canary.unlink()


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_no_pickle_is_obeyed(tmp_path, monkeypatch, entrance):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(foreign_weights, "call_confined", at_once)
    Path("w.py").write_text(CODE)
    Path("w.pkl").write_bytes(pickled(Calls(eval, CODE)))
    before, count, path = contents(tmp_path), Count(), tmp_path / entrance
    for call in CALLS.values():
        for write in (bare, archive, old):
            write(path, pickled({"model": {"a": call}}))
            count.read(path, ENTRANCES[entrance])
            path.unlink()
            assert contents(tmp_path) == before
    print(f"hostile pickles as {entrance}: {count}")
    assert count.refused == count.tried == 3 * len(CALLS)


URL = "http://127.0.0.1:9/own.wav"
PLACES = {
    "playlist": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{}'\n",
    "pls": "[playlist]\nFile1={}\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\na={}\n",
    "dash": "<?xml version='1.0'?><MPD><Period><BaseURL>{}</BaseURL></Period></MPD>",
    "smil": "<smil><body><audio src='{}'/></body></smil>",
    "edl": "# mpv EDL v0\n{}\n",
}


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Where a connection was asked for, or a name looked up; none is made."""
    asked: list[Any] = []
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family == getattr(socket, "AF_UNIX", None):  # of worker processes
            return connect(self, address)
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **_: refuse_name(asked, given))
    return asked


def refuse_name(asked: list[Any], given: Any) -> None:
    asked.append(given)
    raise OSError("no network")


def test_media_that_name_other_places_are_refused(tmp_path, monkeypatch, connections):
    """Within files, under every name; and as the name of a file."""
    monkeypatch.chdir(tmp_path)
    own, count = write_speech(tmp_path / "own.wav"), Count()
    places = ["own.wav", str(own), own.as_uri(), f"concat:{own}|{own}", URL, f"subfile,,:{own}"]
    for text in PLACES.values():
        for place in places:
            for name in ("a.m3u8", "a.wav", "a.mp4", "a.mp3"):
                path = tmp_path / name
                path.write_text(text.format(place))
                count.read(path, read_speech)
                path.unlink()
    for place in places[2:]:
        count.read(Path(place), read_speech)
    print(f"media that name other places: {count}")
    assert count.refused == count.tried and not connections


GZIPPED: dict[str, Callable[[Path], object]] = {
    "own.wav": read_speech,
    "own.jpg": open_photo,
    "own.npy": map_waveform,
    "own.csv": read_table,
    "own.safetensors": checkpoint.verify,
    "own.h5": foreign_weights.inspect,
}


@pytest.mark.parametrize("name", GZIPPED)
def test_what_is_packed_with_gzip_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(bytes(10**8)))
    count = Count()
    count.read(tmp_path / name, GZIPPED[name])
    assert count.refused == 1 and count.slowest < 10


ODD = [
    "\u00e9", "e\u0301", "ﬁ", "😀", "👩‍👩‍👧", "شخص", "\u202egnp", "\u200b", "a\u0300\u0301", "ß",
    "İ",
    "a\nb", "a\tb", "a\rb", "\x1b[31mred", "\x1b]0;title\x07", "\x7f", "\x9b31m", "-", "--", "-rf",
    "--help", "-o", "~", "~root", "$HOME", "$(touch canary)", "`touch canary`", ";", "|", "&", "*",
    "?", "[a]", "{a}", "%s", "%n", "{0}", "\\", "a\\b", "..a", "a..", "...", " ", " a", "a ", "'",
    '"', "<b>", "[bold]x[/bold]", "[link=http://a]", "CON", "nul", "aux.txt", "a:b", "a=b", "#",
    "http:", "file:a", "concat:a|b", "pipe:0", "x" * 250, "😀" * 62, "\udcff", "a\udc80b", "0",
    "-1", "None", "null", "true", "1e5",
]  # fmt: skip


def test_hostile_names_are_done_or_named_and_do_nothing_to_a_terminal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good, count = write_speech(tmp_path / "good.wav"), Count()
    names = [*ODD, *(f"{name}{k}" for k in range(2) for name in ODD)]
    tree = tmp_path / "in"
    for k, name in enumerate(dict.fromkeys(names)):
        folder = tree / f"id{k % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copy(good, os.fsdecode(os.fsencode(folder / f"{name}.wav")))
        except OSError:  # too long for this file system
            continue
        count.tried += 1
    os.mkfifo(tree / "id0/pipe.wav")
    (tree / "id0/loop.wav").symlink_to("loop.wav")
    (tree / "id1/loop").symlink_to(tree)
    before = files(tmp_path)
    done = Done("prep", "audio", tree, tmp_path / "out", "--workers", 1)
    made = [path for path in files(tmp_path) - before if ".s2f" not in path.parts]
    assert all(path.is_relative_to(tmp_path / "out") for path in made)
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert done.code == 6 and done.err.count("pipe.wav") and done.err.count("loop.wav")
    for text in (done.out, done.err):
        assert not [c for c in text if c != "\n" and not c.isprintable()], text
    count.done = len(made)
    hidden = sum(name.startswith(".") for name in dict.fromkeys(names))
    count.lost = count.tried - hidden - count.done - (done.err.count("\n  ") - 2)
    print(f"hostile names: {count}, hidden {hidden}")
    assert count.lost == 0 and not Path("canary").exists()


NAMES = list(dict.fromkeys([*ODD, *(f"{name}{k}" for k in range(2) for name in ODD)]))


def grow_hostile(tree: Path, source: Path, step: int) -> list[Path]:
    """Copy a file under hostile names, one in `step`, that this file system takes; gives those."""
    made = []
    for k, name in enumerate(NAMES[::step]):
        path = tree / f"id{k % 7}" / f"{name}{source.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # too long, or no bytes that it takes
            shutil.copy(source, path)
            made.append(path)
    return made


def grow_strange(folder: Path, suffix: str) -> list[str]:
    """Make a pipe, a socket, links in a circle and to nowhere; gives the names of all these."""
    folder.mkdir(parents=True, exist_ok=True)
    os.mkfifo(folder / f"pipe{suffix}")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / f"socket{suffix}"))
    (folder / f"loop{suffix}").symlink_to(f"loop{suffix}")
    (folder / f"nowhere{suffix}").symlink_to("/nowhere/at/all")
    (folder / "round").symlink_to(folder.parent)
    return [f"{name}{suffix}" for name in ("pipe", "socket", "loop", "nowhere")]


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what a command prints go to a terminal, as it must take it for."""
    stream = typer.testing._NamedTextIOWrapper  # type: ignore[attr-defined]
    monkeypatch.setattr(stream, "isatty", lambda self: self.name == "<stdout>", raising=False)


def test_there_are_200_hostile_names():
    assert len(set(NAMES)) >= 200
    forms = {unicodedata.normalize("NFC", name) for name in NAMES}
    assert len(forms) < len(NAMES)  # pairs that only normalisation tells apart


COMMANDS: dict[str, tuple[str, tuple[object, ...], str]] = {
    "faces": (".jpg", ("prep", "faces", "IN", "OUT", "--workers", 1), ".jpg"),
    "landmarks": (".jpg", ("prep", "landmarks", "IN", "OUT", "--workers", 1), ".npy"),
    "split": (".jpg", ("prep", "split", "IN", "OUT"), ".jpg"),
    "generate": (".wav", ("generate", "IN", "-o", "OUT", "--model", "MODEL"), ".png"),
    "reconstruct": (
        ".jpg",
        ("reconstruct", "IN", "-o", "OUT", "--no-align", "--model", "MODEL"),
        ".png",
    ),
    "resize": (".jpg", ("prep", "resize", "IN", "OUT", "--workers", 1), ".jpg"),
    "embeddings": (
        ".jpg",
        ("prep", "embeddings", "IN", "OUT", "--workers", 1, "--face-encoder", "MODEL"),
        ".npy",
    ),
}


def find_by_brightness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put `Found` in the place of who finds faces."""
    monkeypatch.setattr(prep_faces, "check_detector", lambda name, device: None)
    monkeypatch.setattr(prep_faces, "load_detector", lambda *name_and_device: Found())
    monkeypatch.setattr(face_detection, "choose_detector", lambda name: name or "face-alignment")


@pytest.mark.parametrize(
    ("what", "step"),
    [
        *(("generate", 24), ("faces", 24), ("split", 24)),
        *(pytest.param(what, 1, marks=pytest.mark.reliability) for what in COMMANDS),
    ],
)
def test_every_file_of_a_hostile_name_is_done_or_named(
    tmp_path, monkeypatch, bundled, speech, photo, what, step
):
    """By each command that takes a folder; nothing is written beside its output."""
    monkeypatch.chdir(tmp_path)
    find_by_brightness(monkeypatch)
    if step > 1:
        monkeypatch.setattr(prep, "run_in_workers", in_this_process)
    if what in ("faces", "landmarks"):  # whose photos are larger than a face
        enlarge(photo)
    suffix, command, ending = COMMANDS[what]
    tree, out = tmp_path / "in", tmp_path / "out"
    made = grow_hostile(tree, speech if suffix == ".wav" else photo, step)
    strange = grow_strange(tree / "id0", suffix)
    before = {path: os.lstat(path) for path in tmp_path.rglob("*")}
    model = bundled / "demo"
    if what == "embeddings":
        model /= "face_encoder.safetensors"
    words = [{"IN": tree, "OUT": out, "MODEL": model}.get(str(word), word) for word in command]
    on_terminal(monkeypatch)
    done = Done(*words)
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert done.code == 6, (done.code, done.err[-2000:])
    for text in (done.out, done.err):
        assert not [c for c in text if c != "\n" and not c.isprintable()], text
    new = [path for path in tmp_path.rglob("*") if path not in before and ".s2f" not in path.parts]
    assert all(path.is_relative_to(out) for path in new)
    assert all(os.lstat(path).st_mtime_ns == was.st_mtime_ns for path, was in before.items())
    count = Count(len(made) + len(strange), sum(path.suffix == ending for path in new))
    count.refused = sum(name in done.err for name in strange)
    hidden = sum(path.name.startswith(".") for path in made)
    named = sum(line.startswith("  ") for line in done.err.splitlines()) - count.refused
    count.lost = count.tried - count.done - count.refused - hidden - max(0, named)
    print(f"{what}: {count}, hidden {hidden}, {named} more named")
    assert count.refused == len(strange) and count.lost == 0


def people_of_hostile_names(tree: Path) -> list[str]:
    """Grow a voice tree of people of these names, one spelling of each; gives who is seen."""
    made: dict[str, str] = {}
    for k, name in enumerate(NAMES):
        folder, one = tree / name, unicodedata.normalize("NFC", name).casefold()
        with contextlib.suppress(OSError):  # too long, or no bytes that it takes
            if "/" in name or one in made or len(os.fsencode(name)) > 200:
                continue
            for kind in ("images", "audios"):
                (folder / kind).mkdir(parents=True)
            write_photo(tree.with_name("photo.jpg"), seed=k).rename(folder / f"images/{name}.jpg")
            np.save(folder / f"audios/{name}.npy", noise(0.6, seed=k))
            made[one] = name
    return [name for name in made.values() if not name.startswith(".")]


@pytest.mark.reliability
@pytest.mark.timeout(1800)
def test_people_of_hostile_names_are_split_packed_and_measured(tmp_path, monkeypatch, bundled):
    """By each command after the other: all of them, and nothing beside what it is to write."""
    monkeypatch.chdir(tmp_path)
    on_terminal(monkeypatch)
    tree, split, count = tmp_path / "tree", tmp_path / "split", Count()
    people = people_of_hostile_names(tree)
    encoder = bundled / "demo/face_encoder.safetensors"
    by = ("--face-encoder", encoder)
    commands: list[tuple[tuple[object, ...], Path | None]] = [
        (("prep", "split", tree, split, "--train", "0.5", "--val", "0.5"), split),
        (("prep", "embeddings", split, split, "--workers", 1, *by), split),
        (("prep", "pack", split, tmp_path / "pack", "--workers", 1, *by), tmp_path / "pack"),
        (("prep", "pack", tmp_path / "pack", "--verify"), None),
    ]
    report, model = tmp_path / "report", ("--model", bundled / "demo")
    commands.append((("evaluate", split, "--split", "val", *model, "-o", report), report))
    for words, place in commands:
        before = files(tmp_path)
        done = Done(*words)
        assert done.code == 0, (words, done.err[-2000:])
        for text in (done.out, done.err):
            assert not [c for c in text if c != "\n" and not c.isprintable()], text
        new = files(tmp_path) - before
        assert all(place and path.is_relative_to(place) for path in new), new
        count.tried += 1
        count.done += 1
    placed = {path.name for name in ("train", "val") for path in (split / name).iterdir()}
    packed = {
        person.name
        for name in ("train", "val")
        for person in pack.read_index(tmp_path / "pack" / name).identities
    }
    assert placed == packed == set(people)
    page = (tmp_path / "report/report.html").read_text(encoding="utf-8")
    assert "<b>" not in page and "\x1b" not in page
    count.lost = len(people) - len(packed)
    print(f"commands on {len(people)} people of hostile names: {count}")
    assert not Path("canary").exists()


def test_pictures_whose_names_are_one_where_they_go_are_refused(
    tmp_path, monkeypatch, bundled, speech, photo
):
    """As `test_names_that_are_one_where_outputs_go_are_refused`, of generate and reconstruct."""
    for name in ("\u00e9", "e\u0301"):
        for source in (speech, photo):
            (tmp_path / "in").mkdir(exist_ok=True)
            shutil.copy(source, tmp_path / "in" / f"{name}{source.suffix}")
    model, out = ("--model", bundled / "demo"), tmp_path / "out"
    commands = ("generate", tmp_path / "in"), ("reconstruct", tmp_path / "in", "--no-align")
    for words in commands:
        done = Done(*words, *model, "-o", out)
        assert done.code == 0 and len(list(out.glob("*.png"))) == 2, done.err
        shutil.rmtree(out)
    fold_accents(monkeypatch)
    for words in commands:
        done = Done(*words, *model, "-o", out)
        assert done.code == 2 and "would be made of both" in done.err
        assert not out.exists() and not list(tmp_path.glob(".s2f*"))


OPENED: list[str] | None = None  # by this process, while it is a list


def note_opened(event: str, given: tuple[Any, ...]) -> None:
    if event == "open" and OPENED is not None and isinstance(given[0], str | bytes | os.PathLike):
        OPENED.append(os.path.realpath(os.fsdecode(given[0])))


sys.addaudithook(note_opened)


def test_files_that_change_during_a_run_cost_themselves_and_nothing_else_is_read(
    tmp_path, monkeypatch
):
    """One vanishes, one is another as soon as it was listed, one is a link to elsewhere."""
    tree, out, kept = tmp_path / "in", tmp_path / "out", tmp_path / "kept"
    for k, name in enumerate(("gone", "grown", "same")):
        write_speech(tree / f"{name}.wav", seed=k)
    (tree / "link.wav").symlink_to(write_speech(kept / "a.wav", seed=3))
    write_speech(kept / "b.wav", seed=4)

    def inline(function: Any, items: Any, **_: Any) -> Any:
        for place, item in enumerate(items):
            if (tree / "gone.wav").exists():
                (tree / "gone.wav").unlink()
                write_speech(tree / "grown.wav", seconds=2, seed=1)
            yield place, workers._attempt(function, item)

    monkeypatch.setattr(prep, "run_in_workers", inline)
    monkeypatch.setitem(globals(), "OPENED", [])
    report = prep.prepare(audio_step(store="waveform"), tree, out)
    opened, globals()["OPENED"] = {Path(path) for path in OPENED or ()}, None
    ours = {path for path in opened if path.is_relative_to(tmp_path)}
    assert {path.name for path in ours if path.is_relative_to(kept)} == {"a.wav"}
    assert all(p.is_relative_to(tree) or p.is_relative_to(out) for p in ours - {kept / "a.wav"})
    (failure,) = report.failed
    assert failure.source == tree / "gone.wav" and "gone.wav" in failure.error.message
    assert report.made == 3
    again = prep.prepare(audio_step(store="waveform"), tree, out)
    assert again.made == 1 and not again.failed  # that which had grown, which was due
    alone = prep.prepare(audio_step(store="waveform"), tree, tmp_path / "alone").out
    made = {name: data for name, data in contents(out).items() if name.endswith(".npy")}
    assert made == {n: data for n, data in contents(alone).items() if n.endswith(".npy")}


def fold_accents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that a letter with its accent is one name in one character and in two."""
    exists = os.path.exists

    def folding(path: Any) -> bool:
        folder, name = os.path.split(path)
        there = Path(folder).iterdir() if os.path.isdir(folder) else ()
        forms = {unicodedata.normalize("NFC", one.name) for one in there}
        return exists(path) or unicodedata.normalize("NFC", name) in forms

    monkeypatch.setattr(os.path, "exists", folding)


def test_names_that_are_one_where_outputs_go_are_refused(tmp_path, monkeypatch):
    """As on some of a Mac, here pretended: a letter with its accent, in one character or two."""
    for name in ("\u00e9", "e\u0301"):
        write_speech(tmp_path / "in" / f"{name}.wav")
    fold_accents(monkeypatch)
    with pytest.raises(DatasetError, match="would be made of both"):
        prep.prepare(audio_step(store="waveform"), tmp_path / "in", tmp_path / "out", workers=1)
    assert not list((tmp_path / "out").glob("*.npy"))


def test_commands_make_no_connection(tmp_path, monkeypatch, bundled, speech, photo, connections):
    """Nor does what their workers do, here done in this process."""
    monkeypatch.setattr(prep, "run_in_workers", in_this_process)
    model = ("--model", bundled / "demo")
    for command in (
        ("models",),
        ("verify", bundled / "demo"),
        ("generate", speech, *model, "-o", tmp_path / "face.png"),
        ("convert", "inspect", bundled / "demo/face_encoder.safetensors"),
        ("prep", "audio", speech, tmp_path / "sound", "--workers", 1),
        ("prep", "resize", photo, tmp_path / "small", "--workers", 1),
    ):
        done = Done(*command)
        assert done.code == 0 and not connections, (command, done.code, done.err)
