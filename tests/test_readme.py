"""The README: its commands exist as written, its links lead somewhere, its Python runs."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from command_line import commands
from typer.testing import CliRunner

from s2f.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
TASKS = ("encoder", "decoder", "voice")
COMMANDS = sorted(
    {
        line.split("&&")[-1].split("#")[0].strip()
        for block in SHELL
        for line in block.replace("\\\n", " ").splitlines()
        if line.split("&&")[-1].strip().startswith("s2f ")
    }
)


@pytest.mark.parametrize("command", COMMANDS or ["the README has none"])
def test_every_command_and_option_exists(command: str) -> None:
    words = shlex.split(command)[1:]
    name = words[: 2 if words[0] in ("prep", "train", "convert") else 1]
    help_text = CliRunner().invoke(app, [*name, "--help"], env={"COLUMNS": "200"}).output
    for option in (word for word in words if word.startswith("-")):
        assert re.search(rf"(^|[\s,]){option}([\s,]|$)", help_text), option


def test_the_pictures_and_files_it_points_to_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).is_file(), target


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    shutil.copy(ROOT / "examples/speech.wav", tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "face.png").is_file()


def test_the_first_command_ends_with_a_face(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "pip install . && s2f generate examples/speech.wav" in README
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["generate", "examples/speech.wav"])
    assert (done.exit_code, done.stdout) == (0, "speech.png\n")
    assert (tmp_path / "speech.png").is_file()


def test_no_page_names_a_machine() -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("*/*.py")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/(work|home|root|Users|tmp)/[a-z]", text), path


def test_every_command_that_a_message_names_exists() -> None:
    known = {" ".join(path) for path, _ in commands()} | {"train"}
    for path in (ROOT / "s2f").glob("*.py"):
        for words in re.findall(
            r"s2f ((?:prep|train|convert) \w+|generate|reconstruct)", path.read_text()
        ):
            assert words in known or words.startswith("train wrote"), (path.name, words)
