"""The order of the house: who may import whom, who may print, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "s2f"
ROOT = {"pipeline", "audio"}  # what `s2f/__init__.py` hands on, lazily
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
HEAVY = {"torch", "numpy", "scipy", "librosa", "soundfile", "av", "PIL", "safetensors", "h5py"}
HEAVY |= {"tensorflow", "keras", "transformers", "sklearn"}


def parse(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def edges(tree: ast.Module) -> set[str]:
    """Modules of the package that a module imports, anywhere in it; "" is the root."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in (alias.name.split(".") for alias in node.names):
                if name[0] == "s2f":
                    found.add(name[1] if len(name) > 1 else "")
        elif isinstance(node, ast.ImportFrom):
            path = (node.module or "").split(".")
            if node.level:
                path = ["s2f", *(part for part in path if part)]
            if path == ["s2f"]:
                found |= {a.name if a.name in MODULES else "" for a in node.names}
            elif path[0] == "s2f":
                found.add(path[1])
    return found


def prints(tree: ast.Module) -> list[int]:
    """Lines where a module writes to the terminal."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "print":
                lines.append(node.lineno)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in {("sys", "stdout"), ("sys", "stderr")}:
                lines.append(node.lineno)
        elif isinstance(node, ast.ImportFrom) and node.module == "sys":
            if {"stdout", "stderr"} & {alias.name for alias in node.names}:
                lines.append(node.lineno)
    return lines


def imported_by(source: str) -> set[str]:
    """Top-level packages that a fresh interpreter has imported after running some code."""
    code = f"{source}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_no_module_imports_itself_by_way_of_others() -> None:
    below = {module: edges(parse(module)) - {""} for module in MODULES}
    while below:
        bottom = {module for module, others in below.items() if not others & set(below)}
        assert bottom, f"they import each other in a circle: {sorted(below)}"
        below = {module: others for module, others in below.items() if module not in bottom}


def test_a_public_name_means_one_thing() -> None:
    homes: dict[str, list[str]] = {}
    for module in MODULES:
        for node in parse(module).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module)
    assert not {name: found for name, found in homes.items() if len(found) > 1}


def test_there_are_no_more_modules_than_subjects() -> None:
    assert len(MODULES) + 1 <= 64


def test_the_options_know_no_library() -> None:
    assert edges(parse("options")) <= {"console", "errors"}


def test_the_root_hands_on_no_more_than_it_says() -> None:
    assert edges(parse("__init__")) <= ROOT


@pytest.mark.parametrize("name", ["cli", ""])
@pytest.mark.parametrize("source", ["import s2f.{}", "from s2f import {}", "from . import {}"])
def test_an_import_inside_a_function_is_an_edge(source: str, name: str) -> None:
    """That of the root alone is nobody's floor."""
    code = source.format(name) if name else source.format("__version__").replace(".__version__", "")
    assert edges(ast.parse(f"def f():\n    {code}")) == {name}


@pytest.mark.parametrize("module", [m for m in [*MODULES, "__init__"] if m != "console"])
def test_only_the_console_prints(module: str) -> None:
    assert prints(parse(module)) == []


@pytest.mark.parametrize(
    "source", ["print(1)", "import sys\nsys.stdout.write('a')", "from sys import stderr"]
)
def test_printing_is_found(source: str) -> None:
    assert prints(ast.parse(source))


@pytest.mark.parametrize("source", ["import s2f", "import s2f.cli", "import s2f.console"])
def test_importing_is_cheap(source: str) -> None:
    assert not (HEAVY | {"rich"} if source.endswith("console") else HEAVY) & imported_by(source)


def test_the_help_imports_nothing_heavy() -> None:
    source = "from typer.testing import CliRunner; from s2f.cli import app"
    assert not HEAVY & imported_by(f"{source}; CliRunner().invoke(app, ['train', '--help'])")


@pytest.mark.parametrize("command", ["models", "models demo --json"])
def test_to_list_models_takes_no_torch(command: str) -> None:
    words = command.split()
    source = "from typer.testing import CliRunner; from s2f.cli import app\n"
    source += f"assert CliRunner().invoke(app, {words}).exit_code == 0"
    assert "torch" not in imported_by(source)


def test_no_module_imports_click() -> None:
    """Typer carries its own: a plain install has none."""
    for module in MODULES:
        for node in ast.walk(parse(module)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any(name.split(".")[0] == "click" for name in names), module
