"""A confined process: its answer comes back, its death and its excess become errors by name."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from s2f import foreign_weights
from s2f.errors import CheckpointError, OutputError

READER = """
import os, signal, sys, time
from s2f.errors import CheckpointError, OutputError
held = []
def unpack(path, folder, write):
    what = path.read_text()
    if what == "answer":
        return {"name": path.name, "folder": str(folder), "write": write}
    if what == "refuse": raise CheckpointError(f"{path}: is wrong", hint="mend it")
    if what == "full": raise OutputError("disk full", hint="free some")
    if what == "memory": held.append(bytearray(300_000_000))
    if what == "slowly more memory":
        while True: held.append(bytearray(1_000_000))
    if what == "busy":
        while True: pass
    if what == "asleep": time.sleep(60)
    if what == "crash": os.kill(os.getpid(), signal.SIGSEGV)
    if what == "exit": os._exit(3)
    if what == "bug": raise ZeroDivisionError("of all\\nthings")
    if what == "deep": return unpack_deeper()
    if what == "descriptors": return {"open": os.listdir("/proc/self/fd")}
    if what == "noise": print("noise"); sys.stderr.write("noise")
    return {}
def unpack_deeper(): return unpack_deeper()
"""


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call a reader that does what its file says."""
    (tmp_path / "obedient.py").write_text(READER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(foreign_weights, "START_SECONDS", 2.0)

    def call(what: str, *, megabytes: int = 200, seconds: float = 1.0) -> dict[str, Any]:
        (tmp_path / "file").write_text(what)
        folder = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        limits = {"megabytes": megabytes, "seconds": seconds}
        return foreign_weights.call("obedient", tmp_path / "file", folder, write=True, **limits)

    return call


def test_the_answer_comes_back(call: Any) -> None:
    answer = call("answer")
    assert answer["name"] == "file"
    assert answer["write"] is True


def test_what_the_reader_prints_goes_nowhere(call: Any, capfd: Any) -> None:
    assert call("noise") == {}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("what", "error"), [("refuse", CheckpointError), ("full", OutputError)])
def test_our_errors_come_back_whole(call: Any, what: str, error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        call(what)
    assert raised.value.args[0].endswith(("is wrong", "disk full"))
    assert raised.value.hint  # type: ignore[attr-defined]


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        pytest.param("memory", "needs more than 200 MB", marks=linux),
        pytest.param("slowly more memory", "needs more than 200 MB", marks=linux),
        ("busy", "took more than 1 s"),
        ("asleep", "took more than 1 s"),
        ("crash", r"died \(signal 11\)"),
        ("exit", r"died \(exit code 3\)"),
        ("bug", "cannot be read: ZeroDivisionError: of all$"),
        ("deep", "cannot be read: RecursionError"),
    ],
)
def test_the_end_of_the_process_is_an_error_that_names_the_file(
    call: Any, tmp_path: Path, what: str, said: str
) -> None:
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=said) as raised:
        call(what)
    assert str(tmp_path / "file") in raised.value.message
    assert raised.value.hint
    assert time.monotonic() - start < 6


@linux
def test_limits_of_the_users_shell_stay(call: Any, tmp_path: Path) -> None:
    run = f"import sys; sys.path[:0] = [{str(Path(foreign_weights.__file__).parents[1])!r}];"
    run += f"from pathlib import Path; from s2f import confined; p = Path({str(tmp_path)!r});"
    run += "f = p / 'o'; f.mkdir(); (p / 'file').write_text('answer');"
    run += "confined.call('obedient', p / 'file', f, write=True, megabytes=9000, seconds=900)"
    shell = f'ulimit -t 60; ulimit -v 4000000; exec "{sys.executable}" -c "{run}"'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@linux
def test_the_process_inherits_no_open_file(call: Any, tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        assert len(call("descriptors")["open"]) <= 4  # three standard ones and the listing


def test_nothing_is_imported_from_the_current_folder(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "json.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(here)
    assert call("answer")["name"] == "file"


def test_a_module_that_cannot_be_imported_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"exit code 1\): ModuleNotFoundError"):
        foreign_weights.call(
            "nowhere", tmp_path / "file", tmp_path, write=True, megabytes=1, seconds=1
        )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_process_ends_with_the_one_that_asked_even_if_that_is_killed(
    call: Any, tmp_path: Path
) -> None:
    note = tmp_path / "reader"
    (tmp_path / "noted.py").write_text(
        "import os, time\n"
        "def unpack(path, folder, write):\n"
        f"    open({str(note)!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(60)\n"
    )
    code = (
        "from pathlib import Path; from s2f import confined; p = Path('.'); "
        "confined.call('noted', p, p, write=True, megabytes=200, seconds=60)"
    )
    asking = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 20
    while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    asking.kill()
    asking.wait()
    status = Path("/proc", note.read_text(), "stat")
    while status.exists() and " Z " not in status.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not status.exists() or " Z " in status.read_text()
