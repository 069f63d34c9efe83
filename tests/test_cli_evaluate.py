"""`s2f evaluate`: the report, and what it refuses."""

from pathlib import Path

import pytest
from command_line import Done, assert_refused, files
from evaluation_cases import write_people

pytestmark = pytest.mark.usefixtures("bundled")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("tree"))


def test_a_report_is_a_page_markdown_and_json(tree: Path, tmp_path: Path) -> None:
    done = Done("evaluate", tree, "-o", tmp_path / "report")
    made = [tmp_path / f"report/report.{suffix}" for suffix in ("html", "md", "json")]
    assert (done.code, done.out.splitlines()) == (0, [str(path) for path in made])
    assert "Recall among all 8 people" in done.err
    html, markdown, _ = (path.read_text(encoding="utf-8") for path in made)
    assert "data:image/png;base64," in html and "<script" not in html
    assert "| chance" in markdown
    refused = Done("evaluate", tree, "-o", tmp_path / "report")
    assert_refused(refused, 2, made[0])
    assert_refused(Done("evaluate", tree, "-o", made[0]), 2, "is a file")
    done = Done("evaluate", tree, "-o", tmp_path / "report", "--overwrite", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["facts"]["people"] == "8" and done.json["samples"]["R@1, %"]


def test_two_models_stand_side_by_side(tree: Path, tmp_path: Path, bundled: Path) -> None:
    for name in ("demo", "other"):
        report = tmp_path / name
        assert Done("evaluate", tree, "--model", name, "-o", report).code == 0
    both = ["--compare", tmp_path / "demo", tmp_path / "other/report.json"]
    done = Done("evaluate", *both, "-o", tmp_path / "both", "--json")
    assert done.code == 0
    tables = {part["title"]: part for s in done.json["sections"] for part in s["parts"]}
    metrics = {row[0]: row for row in tables["Metrics"]["rows"]}
    assert {"angle, degrees", "R@1, %"} <= set(metrics)
    assert metrics["angle, degrees"][-2] == 8  # people


@pytest.mark.parametrize(
    ("args", "code", "why"),
    [
        (["--quiet"], 2, "nothing to evaluate"),
        (["{tree}", "--compare", "a", "b"], 2, "both DATA and --compare"),
        (["{tmp}/nowhere"], 3, "nowhere"),
        (["{tmp}"], 3, "no folder test"),
        (["{tree}", "--columns", "height"], 2, "height"),
        (["{tree}", "--model", "nobody"], 4, "nobody"),
        (["--compare", "{tmp}/a", "{tmp}/b"], 3, "is no report"),
        (["--compare", "{tmp}/a", "{tmp}/b", "--model", "demo"], 2, "--model"),
        (["{tree}", "--labels", "{tmp}/none.csv"], 3, "none.csv"),
        (["{tree}", "--detector", "nothing"], 2, "nothing"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    args: list[str], code: int, why: str, tree: Path, tmp_path: Path
) -> None:
    filled = [arg.format(tree=tree, tmp=tmp_path) for arg in args]
    done = Done("evaluate", *filled, "-o", tmp_path / "report")
    assert done.code == code and why in done.err and "Traceback" not in done.err
    assert files(tmp_path) == set()
