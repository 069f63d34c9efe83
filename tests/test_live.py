"""The face that forms: what a listener hears, and what the command shows, writes and leaves.

The microphone is a module `sounddevice` that plays given samples. The terminals are
pseudo-terminals that answer what textual-image 0.12 asks, as its source has it: sixels by a 4 among
the device attributes (xterm's DA1), kitty's graphics by OK to a query of one pixel.
"""

import doctest
import importlib.util
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from command_line import Done, assert_refused
from conftest import noise, write_photo
from PIL import Image
from recordings import write_microphone
from trees import interruptible

import s2f.pipeline
from s2f import SpeechToFace, Waveform
from s2f.audio import SAMPLE_RATE, hear
from s2f.checkpoint import read_header
from s2f.errors import CheckpointError, OutputError, UsageError
from s2f.generate import FACE, GenerateOptions, run
from s2f.images import read_text
from s2f.pipeline import Forming, Listener

EXAMPLE = Path(__file__).parents[1] / "examples/speech.wav"
CLIP = SAMPLE_RATE  # of the tiny models, one second
VOICE = noise(4)  # loud and soft by turns
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def model(models: Path) -> SpeechToFace:
    return SpeechToFace.load(models / "demo", device="cpu")


def heard(model: SpeechToFace, *pieces: np.ndarray) -> Listener:
    listener = Listener(model, SAMPLE_RATE)
    for piece in pieces:
        listener.feed(piece)
    return listener


def embedding(listener: Listener) -> np.ndarray:
    face = listener.draw()
    assert face
    return face.embedding


@pytest.mark.parametrize("rate", [0, 7_999, 192_001, -16_000])
def test_rates_of_no_microphone_are_refused(model: SpeechToFace, rate: int) -> None:
    with pytest.raises(UsageError, match="wanted 8000 to 192000"):
        Listener(model, rate)


@pytest.mark.parametrize("clips", [1, 2, 4])
def test_after_whole_clips_the_face_is_of_their_mean(model: SpeechToFace, clips: int) -> None:
    """The oracle is what the model embeds of each clip alone."""
    parts = [VOICE[k * CLIP : (k + 1) * CLIP] for k in range(clips)]
    of_each = [model.embed_voice(Waveform(part, SAMPLE_RATE)) for part in parts]
    face = heard(model, *parts).draw()
    assert face
    np.testing.assert_allclose(face.embedding, np.mean(of_each, axis=0), rtol=1e-4, atol=1e-5)
    assert face.image == model.decode(face.embedding).image


def test_what_is_new_since_the_last_clip_counts_by_its_share(model: SpeechToFace) -> None:
    """After 1.5 clips: the mean of the first, and by half of the last clip's length."""
    half = 3 * CLIP // 2
    first, last = (
        model.embed_voice(Waveform(part, SAMPLE_RATE))
        for part in (VOICE[:CLIP], VOICE[half - CLIP : half])
    )
    wanted = (first + last / 2) / 1.5
    np.testing.assert_allclose(embedding(heard(model, VOICE[:half])), wanted, rtol=1e-4, atol=1e-5)


def test_nothing_is_drawn_before_a_second_or_without_enough_that_is_new(
    model: SpeechToFace,
) -> None:
    listener = heard(model, VOICE[: CLIP - 1])
    assert listener.draw() is None
    listener.feed(VOICE[CLIP - 1 : CLIP])
    assert listener.seconds == 1
    assert listener.draw() and listener.draw() is None
    for start, is_new in ((0, False), (1600, True)):  # 0.2 s are enough
        listener.feed(VOICE[CLIP + start : CLIP + start + 1600])
        assert (listener.draw() is not None) == is_new


@pytest.mark.parametrize("level", [0, 1e-4])
def test_silence_changes_nothing(model: SpeechToFace, level: float) -> None:
    """Before, after, and for how long: a pause is 0.2 s of it, once speech goes on."""
    rng = np.random.default_rng(0)

    def silence(seconds: float) -> np.ndarray:
        return (level * rng.standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)

    for before in (0, 3.0):
        listener = heard(model, np.zeros(round(before * SAMPLE_RATE), np.float32), VOICE[:CLIP])
        np.testing.assert_array_equal(embedding(listener), embedding(heard(model, VOICE[:CLIP])))
    for pause in (0.2, 0.3, 5.0):
        listener.feed(silence(pause))
        assert (listener.draw(), listener.seconds) == (None, 1)
    faces = []
    for after in (0, 5.0):
        pause = 0 * silence(0.2)
        listener = heard(model, VOICE[:CLIP], pause, silence(after), VOICE[CLIP : 2 * CLIP])
        assert listener.seconds == pytest.approx(2.2)
        faces.append(embedding(listener))
    np.testing.assert_array_equal(*faces)


def test_a_bump_before_does_not_make_silence_of_a_voice(model: SpeechToFace) -> None:
    """The loudest second counts, as in `hear`: a tenth at full level is 30 dB above 1 % of it."""
    bump = np.random.default_rng(0).uniform(-1, 1, SAMPLE_RATE // 10).astype(np.float32)
    voice = VOICE * np.float32(0.02 * np.sqrt(1 / 3) / np.sqrt(np.mean(np.square(VOICE))))
    listener = heard(model, bump, np.zeros(SAMPLE_RATE, np.float32), voice)
    assert listener.seconds > 0.8 * len(VOICE) / SAMPLE_RATE


def test_what_is_no_voice_has_no_face(model: SpeechToFace) -> None:
    steady = np.random.default_rng(0).normal(0, 0.1, 2 * CLIP).astype(np.float32)
    assert hear(Waveform(steady, SAMPLE_RATE)).is_steady
    listener = heard(model, steady)
    assert listener.seconds == 2 and listener.draw() is None


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_pieces_of_any_size_and_kind_give_the_same_faces(model: SpeechToFace, rate: int) -> None:
    integers = (soxr.resample(noise(2.4), SAMPLE_RATE, rate) * 32768).astype(np.int16)
    found = []
    for samples in (integers, integers.astype(np.float32) / 32768):
        for size in (len(samples), rate // 10, 997, 1):
            listener = Listener(model, rate)
            for start in range(0, len(samples), size):
                listener.feed(samples[start : start + size])
            found.append((listener.seconds, embedding(listener)))
    for seconds, one in found[1:]:
        assert seconds == found[0][0] == pytest.approx(2.4, abs=0.1)
        np.testing.assert_array_equal(one, found[0][1])


def test_a_new_face_costs_the_same_however_long_it_has_been_going_on(
    model: SpeechToFace, monkeypatch: Patch
) -> None:
    """One clip is embedded for each face, and one for each clip that is full."""
    lengths: list[int] = []
    embed = model.embed_voices

    def counted(speeches: Any) -> Iterator[Any]:
        lengths.extend(len(one.waveform) for one in speeches)
        return embed(speeches)

    monkeypatch.setattr(model, "embed_voices", counted)
    listener = Listener(model, SAMPLE_RATE)
    n_faces = 0
    for _ in range(5):
        for start in range(0, len(VOICE), CLIP // 4):
            listener.feed(VOICE[start : start + CLIP // 4])
            n_faces += listener.draw() is not None
    assert (n_faces, len(lengths)) == (4 * 20 - 3, 4 * 20 - 3 + 20)
    assert max(lengths) <= CLIP


def test_the_example_is_true(monkeypatch: Patch) -> None:
    monkeypatch.chdir(EXAMPLE.parents[1])
    result = doctest.testmod(s2f.pipeline)
    assert result.attempted > 8 and not result.failed


# Beside a recording


def test_faces_never_queue_up_and_what_is_left_is_heard(model: SpeechToFace) -> None:
    """A hundred pieces come while the first face is being taken: they make one more."""
    faces: list[np.ndarray] = []

    def take(face: Any) -> None:
        faces.append(face.embedding)
        while len(faces) == 1 and not fed:
            time.sleep(0.01)

    fed = False
    with Forming(model, take) as forming:
        forming.feed(Waveform(VOICE[:CLIP], SAMPLE_RATE))
        while not faces:
            time.sleep(0.01)
        for part in np.split(VOICE[CLIP:], 100):
            forming.feed(Waveform(part, SAMPLE_RATE))
        fed = True
    first, last = faces
    np.testing.assert_array_equal(first, embedding(heard(model, VOICE[:CLIP])))
    listener = heard(model, VOICE[:CLIP])
    listener.draw()
    listener.feed(VOICE[CLIP:])
    np.testing.assert_array_equal(last, embedding(listener))


def test_an_error_of_drawing_is_raised_when_all_is_recorded(model: SpeechToFace) -> None:
    n_taken = 0

    def take(face: Any) -> None:
        nonlocal n_taken
        n_taken += 1
        raise CheckpointError("not finite")

    forming = Forming(model, take)
    with pytest.raises(CheckpointError, match="not finite"), forming:
        for _ in range(3):
            forming.feed(Waveform(VOICE, SAMPLE_RATE))
            time.sleep(0.1)
    assert n_taken == 1
    with pytest.raises(UsageError, match="wanted 8000"), Forming(model, take) as forming:
        forming.feed(Waveform(VOICE, 4_000))
    with pytest.raises(KeyboardInterrupt), Forming(model, take) as forming:
        raise KeyboardInterrupt


# The command


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A folder with a module sounddevice, twice as fast as time."""
    return write_microphone(tmp_path / "device", VOICE, pace=2)


@pytest.fixture
def microphone(bundled: Path, device: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """That device in this process, which works in a folder of its own."""
    monkeypatch.syspath_prepend(device)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)


def faces_of(folder: str) -> list[Path]:
    return sorted(Path(folder).iterdir())


def test_live_is_for_what_is_recorded() -> None:
    assert_refused(Done("generate", "--live"), 2, "nothing is")
    done = Done("generate", "a.wav", "--live")
    assert_refused(done, 2, "--live")
    assert "give --record SECONDS too" in done.err


@pytest.mark.usefixtures("microphone")
def test_frames_are_written_where_no_terminal_is(models: Path) -> None:
    done = Done("generate", "--record", 4, "--live", "--size", 64)
    made = faces_of("recording_frames")
    assert (done.code, done.out) == (0, "recording.png\n")
    assert done.err == (
        "recording from a test, 4 s: speak now\n"
        f"{len(made)} frames of the face as it formed are in recording_frames\n"
    )
    assert [path.name for path in made] == [f"{k + 1:04}.png" for k in range(len(made))]
    assert len({path.read_bytes() for path in made}) >= 2
    times = [path.stat().st_mtime_ns for path in made]
    assert times == sorted(times)
    kinds = ("voice_encoder", "face_decoder")
    hashes = {k: read_header(models / f"demo/{k}.safetensors")["sha256"][:12] for k in kinds}
    for path in made:
        said = read_text(path)
        assert (said["Options"], said["Source"]) == ("frame, size 64", "made from speech")
        assert set(said["Networks"].split(", ")) == {f"{k} {hashes[k]}" for k in kinds}
        assert "not the likeness" in said["Comment"]
    soundfile.write("recording.wav", VOICE, SAMPLE_RATE, subtype="FLOAT")
    face = Path("recording.png").read_bytes()
    plain = Done("generate", "--record", 4, "--size", 64, "-o", "plain.png")
    assert (plain.code, Path("plain.png").read_bytes()) == (0, face)
    wanted = SpeechToFace.load(device="cpu").generate("recording.wav").sized(64)
    with Path("recording.png").open("rb") as file:
        np.testing.assert_array_equal(np.asarray(Image.open(file)), np.asarray(wanted))


@pytest.mark.usefixtures("microphone")
def test_json_and_quiet_write_frames_and_json_lists_them() -> None:
    done = Done("generate", "--record", 4, "--live", "--json", "-o", "a.webp")
    (result,) = done.json["results"]
    assert (done.code, done.err) == (0, "")
    assert result["frames"] == [str(path) for path in faces_of("a_frames")]
    assert result["frames"][0] == "a_frames/0001.webp" and result["status"] == "made"
    done = Done("generate", "--record", 4, "--live", "--quiet", "-o", "b.png")
    assert (done.code, done.out, done.err) == (0, "b.png\n", "")
    assert faces_of("b_frames")
    assert (
        Done("generate", "--record", 2, "--json", "-o", "c.png").json["results"][0]["frames"] == []
    )


@pytest.mark.usefixtures("microphone")
def test_frames_of_before_are_replaced_only_if_asked_and_then_all_of_them() -> None:
    assert Done("generate", "--record", 4, "--live").code == 0
    n = len(faces_of("recording_frames"))
    first = Path("recording_frames/0001.png").read_bytes()
    Path(f"recording_frames/{n + 1:04}.png").write_bytes(first)  # as of a longer recording
    write_photo(Path("recording_frames/0099.jpg"))  # somebody's
    Path("recording.png").unlink()
    done = Done("generate", "--record", 2, "--live", "--model", "demo")
    assert_refused(done, 2, "recording_frames: exists already")
    assert "give --overwrite to replace it" in done.err
    assert Path("recording_frames/0001.png").read_bytes() == first
    done = Done("generate", "--record", 1, "--live", "--overwrite")
    assert done.code == 0
    assert [path.name for path in faces_of("recording_frames")] == ["0001.png", "0099.jpg"]
    done = Done("generate", "--record", 1, "--overwrite")
    assert "recording_frames is of before\n" in done.err
    for option in ("--sheet", "--compare"):
        place = Path("recording_frames/0001.png")
        done = Done("generate", "--record", 1, "--live", "--overwrite", "--no-align", option, place)
        if option == "--sheet":
            done = Done("generate", "--record", 1, "--live", "--overwrite", option, place)
        assert_refused(done, 2, f"{place}: is where the frames of the face are written")


@pytest.mark.usefixtures("microphone")
def test_a_recording_is_not_lost_with_its_frames(monkeypatch: Patch) -> None:
    from s2f import generate

    write = generate.write_bytes

    def full(path: Path, data: bytes) -> None:
        if path.name == "0002.png":
            raise OutputError(f"{path}: cannot be written: no space")
        write(path, data)

    monkeypatch.setattr(generate, "write_bytes", full)
    (made, _) = run(GenerateOptions(record=4, live=True, device="cpu"))
    assert (made.status, str(made.error)) == (
        "failed",
        "recording_frames/0002.png: cannot be written: no space",
    )
    assert [*made.frames] == faces_of("recording_frames") == [Path("recording_frames/0001.png")]
    assert read_text(made.files[FACE])["Options"] == "face, size 224"


@pytest.mark.usefixtures("microphone")
def test_where_nothing_is_heard_there_is_no_frame_and_that_is_said(device: Path) -> None:
    write_microphone(device, np.concatenate([VOICE[:12_000], np.zeros(CLIP)]))
    done = Done("generate", "--record", 1.7, "--live")
    assert done.code == 0
    assert done.err.splitlines()[1] == "no frame was drawn: a face forms from 1 s of speech on"
    assert not Path("recording_frames").exists()


class Terminal:
    """A program whose stdin and stderr are a terminal, and its stdout a file."""

    def __init__(
        self,
        folder: Path,
        device: Path,
        answers: dict[bytes, bytes],
        size: tuple[int, int] = (30, 80),
    ) -> None:
        import pty
        import termios

        self.folder, self.answers = folder, answers
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(device), os.environ.get("PYTHONPATH", "")]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TERM": "xterm",  # by which there are 16 colours, and no kitty
        }
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, size)
        self.seen = b""

    def start(self, *arguments: object) -> subprocess.Popen[bytes]:
        with (self.folder / "stdout").open("wb") as stdout:
            program = subprocess.Popen(
                [sys.executable, "-m", "s2f", "generate", *map(str, arguments)],
                stdin=self.slave,
                stdout=stdout,
                stderr=self.slave,
                env=self.environment,
                preexec_fn=interruptible,
            )
        os.close(self.slave)
        return program

    def read(self) -> bool:
        """Read some, and answer it; False at the end."""
        if not select.select([self.master], [], [], 60)[0]:
            raise TimeoutError(self.seen)
        try:
            got = os.read(self.master, 65_536)
        except OSError:  # Linux, when the other end is closed
            got = b""
        self.seen += got
        asked = [question for question in self.answers if question in self.seen]
        for question in sorted(asked, key=self.seen.index):  # in the order in which it is asked
            os.write(self.master, self.answers.pop(question))
        return bool(got)

    def run(self, *arguments: object) -> int:
        program = self.start(*arguments)
        while self.read():
            pass
        os.close(self.master)
        return program.wait(60)

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()


SIXEL = {b"\x1b[c": b"\x1b[?62;4;22c", b"\x1b[16t": b"\x1b[6;20;10t"}
KITTY = {b"\x1b[c": b"\x1b[?62;22c", b"a=q": b"\x1b_Gi=1;OK\x1b\\", b"\x1b[16t": b"\x1b[6;20;10t"}
PLAIN = {b"\x1b[c": b"\x1b[?62;22c", b"a=q": b"\x1b[?62c"}
on_terminals = pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
with_pictures = pytest.mark.skipif(
    not importlib.util.find_spec("textual_image"), reason="needs textual-image"
)


@on_terminals
@with_pictures
@pytest.mark.parametrize("kind", ["sixel", "kitty"])
def test_a_terminal_shows_the_face_as_it_forms(kind: str, tmp_path: Path, device: Path) -> None:
    """By the bundled model; in the end the face stays, and results alone are on stdout."""
    samples, rate = soundfile.read(EXAMPLE, dtype="float32")
    write_microphone(device, samples, rate, pace=2)
    terminal = Terminal(tmp_path, device, dict(SIXEL if kind == "sixel" else KITTY))
    assert terminal.run("--record", 6, "--live", "-o", tmp_path / "me.png") == 0, terminal.seen
    assert terminal.stdout == f"{tmp_path / 'me.png'}\n"
    assert not (tmp_path / "me_frames").exists()
    if kind == "sixel":
        sent = re.findall(rb"\x1bP[\d;]*q.*?\x1b\\", terminal.seen, re.DOTALL)
        assert len(set(sent)) >= 3  # of two that form at least, and the face
        assert sent.count(sent[-1]) >= 2  # above the bar, and without it
    else:
        ends = re.findall(rb"\x1b_Gi=(\d+),m=0,f=100", terminal.seen)
        gone = re.findall(rb"\x1b_Ga=d,I=(\d+)", terminal.seen)
        assert len(ends) >= 3 and len(set(ends)) == len(ends)
        assert gone == ends[:-1]  # the last one stays
        # The cells say by their colour which picture they show, its number's lower bytes.
        for number in map(int, ends):
            colour = ";".join(str(number >> shift & 255) for shift in (16, 8, 0))
            assert f"\x1b[38;2;{colour}m\U0010eeee".encode() in terminal.seen
    assert b"speak now" in terminal.seen
    wanted = SpeechToFace.load().generate(Waveform(samples[: 6 * rate], rate)).image
    with Image.open(tmp_path / "me.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(wanted))


@on_terminals
@pytest.mark.parametrize("kind", ["plain", "typing", "no size", "no package", "quiet"])
def test_a_terminal_that_cannot_show_pictures_is_told_of_frames(
    kind: str, tmp_path: Path, device: Path, models: Path
) -> None:
    if kind == "no package":
        (device / "textual_image.py").write_text("raise ImportError")
    elif kind in ("plain", "typing") and not importlib.util.find_spec("textual_image"):
        pytest.skip("needs textual-image")
    answers = {b"\x1b[c": "é".encode()} if kind == "typing" else dict(PLAIN)
    terminal = Terminal(tmp_path, device, answers, (0, 0) if kind == "no size" else (30, 80))
    command = ["--record", 4, "--live", "-o", tmp_path / "me.png", "--model", models / "demo"]
    assert terminal.run(*command, *(["--quiet"] if kind == "quiet" else [])) == 0
    assert terminal.stdout == f"{tmp_path / 'me.png'}\n"
    assert len(list((tmp_path / "me_frames").iterdir())) >= 2
    said = re.sub(rb"\s+", b" ", terminal.seen)
    assert (b"frames of the face as it formed are in" in said) == (kind != "quiet")
    assert (b"pip install 's2f[live]'" in said) == (kind == "no package")
    assert b"\x1bP" not in said and b"U=1" not in said


@on_terminals
@with_pictures
def test_ctrl_c_ends_a_recording_and_nothing_is_half_written(
    tmp_path: Path, device: Path, models: Path
) -> None:
    write_microphone(device, VOICE)
    for answers in (SIXEL, PLAIN):
        terminal = Terminal(tmp_path, device, dict(answers))
        command = ["--record", 4, "--live", "-o", tmp_path / "me.png", "--model", models / "demo"]
        program = terminal.start(*command)
        while (b"\x1bP" if answers is SIXEL else b"speak now") not in terminal.seen:
            assert terminal.read()
        frames = tmp_path / "me_frames"
        while answers is PLAIN and not (frames / "0001.png").exists():
            assert terminal.read()
        program.send_signal(2)
        while terminal.read():
            pass
        os.close(terminal.master)
        assert program.wait(60) == 130
        assert terminal.stdout == "" and b"error: interrupted" in terminal.seen
        assert (device / "closed").exists() and not (tmp_path / "me.png").exists()
        assert frames.exists() == (answers is PLAIN)
    for path in frames.iterdir():
        assert read_text(path)["Options"] == "frame, size 224"
