"""The lock file of CI holds what the package allows, for each Python it supports."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / ".ci/requirements.txt").read_text().replace("\\\n", "")
LINES = [line for line in LOCK.splitlines() if line and not line.startswith("#")]


def wanted() -> Iterator[Requirement]:
    """What the package and its extras ask for."""
    extras = PROJECT["optional-dependencies"].values()
    for text in (*PROJECT["dependencies"], *(text for extra in extras for text in extra)):
        requirement = Requirement(text)
        if requirement.name != PROJECT["name"]:
            yield requirement


def pinned(python: str) -> dict[str, str]:
    """Names and versions that are installed with a Python on Linux."""
    environment = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
    }
    pins = [Requirement(re.sub(r"--hash=\S+", "", line)) for line in LINES]
    pins = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    assert len(versions) == len(pins)
    return versions


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_file_pins_all_that_is_asked_for_and_allowed(python):
    versions = pinned(python)
    for requirement in wanted():
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


def test_each_pinned_file_has_its_hashes():
    assert len(LINES) > 100
    for line in LINES:
        assert re.fullmatch(r"\S+==\S+( ; .+?)? +(--hash=sha256:[0-9a-f]{64} *)+", line), line
