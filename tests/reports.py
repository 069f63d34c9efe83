"""Reports for the tests: one with every kind of part, and names that want to be markup."""

import io

from PIL import Image

from s2f.report import Curves, Matrix, Picture, Report, Section, Table

HOSTILE = "</style><script>alert('a\"b')</script>\n| &lt; \u202e \udcff http://x.y"


def png(width: int = 6, height: int = 4) -> bytes:
    """A red picture."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, format="PNG")
    return file.getvalue()


def full(name: str = "voice") -> Report:
    """A report with every kind of part, all of whose texts hold a name."""
    table = Table(
        f"Retrieval of {name}",
        ("metric", "R@1 %", "N", f"of {name}"),
        ((f"cosine {name}", 0.1092, 5000, 1.5), (None, float("nan"), 100, None)),
        note=f"Chance of {name}",
    )
    matrix = Matrix(f"Sex of {name}", (f"F {name}", "M", "none"), ((9, 1, 0), (3, 6, 0), (0, 0, 0)))
    picture = Picture(f"Best of {name}", png(), f"faces of {name}")
    line = [(k, k / 100) for k in range(1, 101)]
    curves = Curves(
        f"Recall of {name}", "K", f"recall of {name} %", {name: line, "chance": [(1, 0.01)]}
    )
    return Report(
        f"Evaluation of {name}",
        {"model": name, "data": "vox", f"key {name}": "value"},
        (
            Section(f"Tables of {name}", (f"What {name} is.",), (table, matrix)),
            Section("Pictures", (), (picture, curves)),
        ),
        samples={f"recall {name}": {f"id {name}": 0.25, "id2": 1.0}, "angle": {"id2": 45.75}},
        lower=frozenset({"angle"}),
    )
