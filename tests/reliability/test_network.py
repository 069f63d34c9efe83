"""No command makes a connection that nobody asked for by name: every one, and all its processes.

The commands run in a pytest of their own, below, whose Python, and that of every process that it
starts, refuses and notes each connection and each name that is looked up: an audit hook, by a
`sitecustomize` that all of them inherit. What is no Python, such as FFmpeg, it does not see;
`unshare -n` is for that (benchmarks/RESULTS.md).
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import Done, commands
from conftest import noise, some_landmarks, write_photo, write_speech
from foreign_files import write_legacy
from published_files import narrow, published
from visitors import Server, Visitor, vector

from s2f import checkpoint, face_detection, layout
from s2f.audio import SAMPLE_RATE
from s2f.distributed import launch

__all__ = ["narrow", "published"]
HOOK = """
import os, sys

PLACE = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1, "socket.getaddrinfo": 0,
         "socket.gethostbyname": 0, "socket.gethostbyaddr": 0, "socket.getnameinfo": 0}
HERE = (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::")

def tell(line):
    with open(os.environ["S2F_ASKED"], "a") as file:
        file.write(line + "\\n")

def look(event, args):
    if event not in PLACE or getattr(args[0], "family", None) == 1:  # AF_UNIX
        return
    place = args[PLACE[event]]
    place = place[0] if isinstance(place, tuple) else place
    if (place.decode() if isinstance(place, bytes) else place) not in HERE:
        tell(f"asked {event} {place!r} {sys.argv}")
        raise OSError("no network")

sys.addaudithook(look)
tell(f"began {os.getpid()}")
"""
HERE = Path(__file__).parent
TRAINING = ["--steps", 1, "--batch-size", 2, "--every", 1, "--device", "cpu"]


def hooked(folder: Path) -> tuple[dict[str, str], Path]:
    """An environment in which every Python tells of itself and of connections in a file."""
    (folder / "hook").mkdir()
    (folder / "hook/sitecustomize.py").write_text(HOOK)
    paths = [folder / "hook", HERE.parents[1], os.getenv("PYTHONPATH")]
    path = os.pathsep.join(str(each) for each in paths if each)
    # As on a machine that has fetched nothing yet, and where nobody has said not to.
    clean = {"PYTHONPATH": path, "S2F_ASKED": str(folder / "asked"), "HOME": str(folder)}
    clean |= {f"{name}_HOME": str(folder / name) for name in ("TORCH", "HF", "XDG_CACHE")}
    left_out = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
    return {k: v for k, v in os.environ.items() if k not in left_out} | clean, folder / "asked"


def asked(path: Path) -> tuple[int, list[str]]:
    """How many processes began, and which places they asked for."""
    lines = path.read_text().splitlines()
    return sum(line.startswith("began") for line in lines), [x for x in lines if x[:5] == "asked"]


def test_the_hook_sees_processes_and_what_they_ask_for(tmp_path):
    environment, path = hooked(tmp_path)
    code = (
        "import multiprocessing, socket, sys, urllib.request\n"
        "def call(where):\n"
        "    try: urllib.request.urlopen(where)\n"
        "    except OSError as error: assert 'no network' in str(error)\n"
        "if __name__ == '__main__':\n"
        "    for method in ('spawn', 'forkserver'):\n"
        "        context = multiprocessing.get_context(method)\n"
        "        process = context.Process(target=call, args=(f'http://{method}.invalid/',))\n"
        "        process.start(); process.join(); assert not process.exitcode\n"
        "    own = socket.create_server(('127.0.0.1', 0))\n"
        "    socket.create_connection(own.getsockname())\n"
    )
    (tmp_path / "code.py").write_text(code)
    subprocess.run([sys.executable, tmp_path / "code.py"], env=environment, check=True)
    began, places = asked(path)
    assert began >= 3 and [x.split()[2] for x in places] == [
        "'spawn.invalid'",
        "'forkserver.invalid'",
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform == "win32", reason="it has other sockets between processes")
def test_no_command_makes_a_connection(tmp_path):
    environment, path = hooked(tmp_path)
    inner = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    inner += ["-p", "no:randomly"]  # the last of them asks whether each command was seen
    inner += [__file__, "-o", "python_functions=every_*", "--basetemp", tmp_path / "inner"]
    done = subprocess.run(
        inner, env=environment, cwd=HERE.parents[1], text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    began, places = asked(path)
    assert not places and began > 4  # with what forks workers, and ranks
    print(f"every command: {began} processes, {len(places)} connections")


SEEN = {("app",)}  # the page, below


def run(*words: object, code: int = 0) -> None:
    (path,) = (own for own, _ in commands() if own == words[: len(own)])
    SEEN.add(path)
    done = Done(*words)
    assert done.code == code, (words, done.code, done.err)


def every_conversion(published, narrow, models, tmp_path):
    run("convert", "inspect", models / "demo/face_encoder.safetensors")
    run("convert", "inspect", write_legacy(tmp_path / "w.h5", {"a": {"b": np.ones(2, np.float32)}}))
    for kind in ("rcmalli", "serengil"):
        run("convert", kind, published / f"{kind}.h5", "-o", tmp_path / f"{kind}.safetensors")
    files = ("--face-decoder", published / "decoder.pt", "--ve-conv", published / "ve.pt")
    run("convert", "pietkun", *files, "-o", tmp_path / "pietkun")
    run("convert", "resemblyzer", published / "pretrained.pt", "-o", tmp_path / "ears.safetensors")


def every_other_command(bundled, presets, faces, voices, speech, photo, tmp_path, monkeypatch):
    """Each does its work, but for the demo's, whose photos and voices are real ones."""
    model = bundled / "demo"
    networks = {kind: model / f"{kind}.safetensors" for kind in ("face_encoder", "face_decoder")}
    encoder = ["--face-encoder", networks["face_encoder"]]
    own = ["--model", model, "--device", "cpu"]
    run("models"), run("models", "demo"), run("verify", model)
    run("generate", speech, *own, "-o", tmp_path / "face.png")
    run("reconstruct", photo, "--no-align", *own, "-o", tmp_path / "again.png")
    # Of detectors only one is there, which has to fetch its weights: not unless it is named.
    with monkeypatch.context() as patch:
        patch.setitem(face_detection.DETECTORS, "dlib", (("no_such_package",), "dlib"))
        patch.setitem(face_detection.DETECTORS, "face-alignment", (("numpy",), "landmarks"))
        run("reconstruct", photo, *own, "-o", tmp_path / "found.png", code=5)
        for step in ("faces", "landmarks"):
            run("prep", step, photo, tmp_path / step, code=5)
        run(
            "evaluate",
            voices,
            *own,
            "-o",
            tmp_path / "other",
            "--split",
            "val",
            "--protocol",
            "ours",
        )
    for k in range(4):
        stem = write_photo(tmp_path / f"f/p{k}/1.jpg", seed=k).with_suffix("")
        np.save(layout.beside(stem, layout.LANDMARKS), some_landmarks(k))
        write_speech(tmp_path / f"v/p{k}/1.wav", seed=k)
    sources = tmp_path / "f", tmp_path / "v"
    run("prep", "audio", sources[1], tmp_path / "sound", "--workers", 2)
    run("prep", "status", tmp_path / "sound")
    run("prep", "resize", sources[0], tmp_path / "small", "--workers", 2)
    run("prep", "stats", tmp_path / "sound", "-o", tmp_path / "stats.json", "--workers", 2)
    run("prep", "names", sources[0], "--dry-run")
    run("prep", "pair", "--faces", sources[0], "--voices", tmp_path / "sound", tmp_path / "pairs")
    run("prep", "split", tmp_path / "pairs", tmp_path / "split", "--train", 0.5)
    run("prep", "embeddings", voices, voices, *encoder, "--workers", 2)
    run("prep", "pack", voices, tmp_path / "pack", *encoder, "--clip-seconds", 1, "--workers", 2)
    run("prep", "index", faces)
    run("prep", "dataset", *sources, tmp_path / "set", *encoder, "--split", "0.5", "--workers", 2)
    run("prep", "demo", tmp_path / "f", tmp_path / "v", tmp_path / "s", tmp_path / "d", code=4)
    run("train", "encoder", faces, *TRAINING, "-o", tmp_path / "e")
    run("train", "decoder", faces, *encoder, *TRAINING, "-o", tmp_path / "d")
    decoder = ["--face-decoder", networks["face_decoder"]]
    run("train", "voice", voices, *encoder, *decoder, *TRAINING, "-o", tmp_path / "r")
    for path in voices.rglob("a.jpg"):
        np.save(layout.beside(path.with_suffix(""), layout.LANDMARKS), some_landmarks())
    steps = ("--decoder-steps", 1, "--voice-steps", 1, "--device", "cpu")
    run("train", "model", voices, "-o", tmp_path / "m", *steps)
    run("train", "demo", tmp_path / "none", "-o", tmp_path / "demo", code=3)
    assert {path for path, _ in commands()} == SEEN  # a new command wants a line here


def every_launch_of_ranks():
    """What torch does to start some; they meet in C++, which the hook does not see."""
    assert launch(2, "cpu", ["models", "--json"]) == 0


CUT_OFF = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


@pytest.mark.slow
def test_where_there_is_no_network_two_ranks_say_nothing_of_it(voices, tmp_path):
    try:
        subprocess.run([*CUT_OFF, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nothing can be cut off from the network here")
    (voices / "train/id1/audios/a.npy").write_bytes(b"no waveform")
    line = ["train", "voice", voices, "-o", tmp_path / "run", *TRAINING, "--devices", 2, "--json"]
    for kind in ("face_encoder", "face_decoder"):
        line += [f"--{kind.replace('_', '-')}", checkpoint.MODELS / f"demo/{kind}.safetensors"]
    command = [*CUT_OFF, sys.executable, "-m", "s2f", *map(str, line)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "") and "a.npy" in done.stdout


@pytest.mark.slow
def test_the_page_makes_no_connection(models, tmp_path):
    """When it starts, answers, hears somebody speak, and ends."""
    environment, path = hooked(tmp_path)
    options = ("--json", "--model", models / "demo")
    with Server(*options, **environment) as server:
        visitor, sound = Visitor(server), (noise(2) * 32767).astype("<i2")
        for place in ("/", "/about"):
            assert visitor.request("GET", place)[0] == 200
        speech, photo = write_speech(tmp_path / "a.wav"), write_photo(tmp_path / "a.jpg")
        face = vector(visitor.ask("/voice", speech.read_bytes())["embedding"])
        assert "photo" in visitor.ask("/photo", photo.read_bytes())
        assert "face" in visitor.speak(sound, SAMPLE_RATE)
        for place in ("/draw", "/save?as=animation"):
            assert visitor.fetch("POST", place, face.tobytes())[0] == 200
        assert server.end(signal.SIGTERM)[0] == 130
    began, places = asked(path)
    assert began > 1 and not places
