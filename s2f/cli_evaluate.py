"""The command that judges a model: `s2f evaluate`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

import s2f
from s2f.console import Console
from s2f.errors import UsageError
from s2f.options import DeviceOpt, JsonOpt, QuietOpt, choose_console, examples, given, option
from s2f.use_options import DetectorOpt, ModelOpt, PrecisionOpt

if TYPE_CHECKING:
    from s2f.report import Report

app = typer.Typer()


@app.command(
    "evaluate",
    no_args_is_help=True,
    rich_help_panel="Use",
    epilog=examples(
        "s2f evaluate data/demo -o reports/demo",
        "s2f evaluate data/split --model runs/model --labels labels.csv --columns sex,age",
        "s2f evaluate --compare reports/demo reports/mine -o reports/both",
    ),
)
def _evaluate(
    ctx: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(
            help="A voice tree with a test split, or a folder of voices and faces.", metavar="DATA"
        ),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        option("Input", "Reports of two models, side by side.", "--compare", metavar="A B"),
    ] = None,
    split: Annotated[
        Literal["test", "val", "train"], option("Input", "test (default), val or train.", "--split")
    ] = "test",
    labels: Annotated[
        list[Path] | None,
        option("Input", "A csv of people (default: those in DATA); repeatable.", "--labels"),
    ] = None,
    columns: Annotated[
        str | None, option("Input", "Which labels (default: sex, age, ...).", "--columns")
    ] = None,
    per_identity: Annotated[
        int | None,
        option("Input", "Recordings and photos of a person (5).", "--per-identity", min=1),
    ] = None,
    model: ModelOpt = None,
    classifier: Annotated[
        Path | None,
        option("Model", "A face encoder with logits, for the VGGFace score.", "--classifier"),
    ] = None,
    detector: DetectorOpt = None,
    output: Annotated[
        Path, option("Output", "Folder of the report (default: report).", "--output", "-o")
    ] = Path("report"),
    overwrite: Annotated[bool, option("Output", "Replace a report there.", "--overwrite")] = False,
    device: DeviceOpt = "auto",
    precision: PrecisionOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Measure a model on people kept out of training: the papers' tables, as one page."""
    console = choose_console(ctx, as_json, quiet)
    if (data is None) == (compare is None):
        raise UsageError(
            "there is nothing to evaluate" if data is None else "both DATA and --compare are given",
            hint="name DATA, or give --compare A B",
        )
    if compare is not None:
        for name in ("labels", "columns", "per_identity", "model", "classifier", "detector"):
            if ctx.params[name]:
                raise UsageError(
                    f"--{name.replace('_', '-')} does not go with --compare",
                    hint="two reports are compared as they are",
                )
    from s2f import report_files

    report_files.check_new(output, overwrite=overwrite)
    if compare is not None:
        from s2f.comparison import compare as side_by_side

        first, last = (report_files.read(path) for path in compare)
        made = side_by_side(first, last, str(compare[0]), str(compare[1]))
        _finish(console, made, output, overwrite)
        return
    assert data is not None
    from s2f.alignment import installed_detector
    from s2f.catalogue import choose

    choice = choose(model or "demo")
    from s2f.checkpoint import load
    from s2f.detection import load_detector
    from s2f.evaluate import evaluate
    from s2f.infer import SpeechToFace

    # dlib needs nothing but its package; the other one is for who asks for it.
    finder = detector or ("dlib" if installed_detector() == "dlib" else None)
    networks = SpeechToFace.load(choice, device=device, precision=precision)
    with console.progress("evaluating") as progress:
        made = evaluate(
            networks,
            data,
            split=split,
            labels=labels or (),
            columns=[name.strip() for name in (columns or "").split(",") if name.strip()],
            classifier=load(classifier, "face_encoder") if classifier else None,
            detector=load_detector(finder, "cpu" if finder == "dlib" else device)
            if finder
            else None,
            progress=progress,
            **given(per_identity=per_identity),
        )
    _finish(console, made, output, overwrite)


def _finish(console: Console, made: "Report", output: Path, overwrite: bool) -> None:
    """Write a report, and tell where and what is in it."""
    from s2f.report import Table, show
    from s2f.report_files import to_json, write

    for path in write(made, output, overwrite=overwrite):
        console.line(path)
    for section in made.sections:
        for part in section.parts:
            if isinstance(part, Table):
                console.note(part.title)
                cells = [[*map(show, row, part.heads)] for row in part.rows]
                console.table(cells, part.heads)
    console.summary({"s2f": s2f.__version__, "output": output, **json.loads(to_json(made))})
