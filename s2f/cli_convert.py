"""The commands that read weights which others published: `s2f convert ...`."""

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from s2f.console import Console
from s2f.options import GROUP, JsonOpt, OverwriteOpt, QuietOpt, choose_console, examples, option

if TYPE_CHECKING:
    from s2f.convert import Converted

app = typer.Typer(help="Turn published weights into checkpoints, and prove it.", **GROUP)

Kind = Literal["serengil", "rcmalli"]


@app.command(
    "rcmalli",
    help="Convert the VGGFace16 of rcmalli/keras-vggface.",
    no_args_is_help=True,
    epilog=examples("s2f convert rcmalli rcmalli_vggface_tf_vgg16.h5 -o face_encoder.safetensors"),
)
@app.command(
    "serengil",
    help="Convert the VGG-Face of serengil/deepface.",
    no_args_is_help=True,
    epilog=examples(
        "s2f convert serengil vgg_face_weights.h5 -o face_encoder.safetensors",
        "s2f convert serengil vgg_face_weights.h5 -o seed.safetensors --preprocessing seed",
    ),
)
def _vgg_face(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Keras weights (.h5).")],
    output: Annotated[Path, option("Output", "Where to write the checkpoint.", "--output", "-o")],
    preprocessing: Annotated[
        Literal["serengil", "rcmalli", "seed"] | None,
        option("Model", "How pictures are prepared (default: as published).", "--preprocessing"),
    ] = None,
    verify: Annotated[bool, option("Run", "Ask Keras, too, of TensorFlow.", "--verify")] = False,
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    console = choose_console(ctx, as_json, quiet)
    from s2f.convert import convert_vgg_face

    with console.progress("converting") as progress:
        made = convert_vgg_face(
            file,
            output,
            origin=cast(Kind, ctx.command.name),
            preprocessing=preprocessing,
            verify=verify,
            overwrite=overwrite,
            progress=progress,
        )
    _report(console, [made])


@app.command(
    "pietkun",
    no_args_is_help=True,
    epilog=examples(
        "s2f convert pietkun --face-decoder face_decoder.pt --ve-conv ve.pt -o models/pietkun",
        "s2f convert pietkun --face-decoder face_decoder.pt --ve-conv ve.pt --face-encoder vgg.pt "
        "--kind serengil -o models/whole",
    ),
)
def _pietkun(
    ctx: typer.Context,
    face_decoder: Annotated[Path, option("Input", "Its face decoder (.pt).", "--face-decoder")],
    output: Annotated[Path, option("Output", "Folder for the model.", "--output", "-o")],
    ast: Annotated[Path | None, option("Input", "Its AST voice encoder.", "--ast")] = None,
    ve_conv: Annotated[Path | None, option("Input", "Or its VE_conv.", "--ve-conv")] = None,
    face_encoder: Annotated[Path | None, option("Input", "Its VGG-Face.", "--face-encoder")] = None,
    kind: Annotated[Kind | None, option("Input", "Which VGG-Face that is.", "--kind")] = None,
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Convert the checkpoints of Kacper-Pietkun/Speech-to-face into a model."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.convert import convert_pietkun

    with console.progress("converting", "networks") as progress:
        made = convert_pietkun(
            output,
            face_decoder=face_decoder,
            ast=ast,
            ve_conv=ve_conv,
            face_encoder=face_encoder,
            kind=kind,
            overwrite=overwrite,
            progress=progress,
        )
    _report(console, made)


@app.command(
    "resemblyzer",
    no_args_is_help=True,
    epilog=examples("s2f convert resemblyzer pretrained.pt -o speaker.safetensors"),
)
def _resemblyzer(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Its pretrained.pt, from the package's wheel.")],
    output: Annotated[Path, option("Output", "Where to write the checkpoint.", "--output", "-o")],
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Convert the speaker encoder of resemble-ai/Resemblyzer, for train voice --pretrained."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.convert import convert_resemblyzer

    with console.progress("converting") as progress:
        made = convert_resemblyzer(file, output, overwrite=overwrite, progress=progress)
    _report(console, [made])


def _report(console: Console, made: "list[Converted]") -> None:
    for converted in made:
        console.line(converted.path)
        for remark in converted.remarks:
            console.note(f"{converted.source.name}: {remark}")
        for judge, errors in (("NumPy", converted.proven), ("Keras", converted.verified)):
            if errors:
                seen = ", ".join(f"{tap} {error:.0e}" for tap, error in errors.items())
                console.note(f"equals {judge} on {converted.source.name}: errors {seen}")
    console.summary({"converted": [dataclasses.asdict(converted) for converted in made]})


@app.command("inspect", no_args_is_help=True, epilog=examples("s2f convert inspect weights.h5"))
def _inspect(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Weights (.h5, .pt), or a checkpoint of ours.")],
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """List what a file of weights holds, without reading the values."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.foreign_weights import inspect

    found = inspect(file)
    sizes = [math.prod(tensor.shape) for tensor in found.tensors]
    console.line(f"{file}: {found.kind}, {len(sizes)} tensors, {sum(sizes):,} values")
    if found.wrapper:
        console.line(f"under: {_shown(found.wrapper)}")
    for name, value in found.values.items():
        console.line(f"{_shown(name)}: {_shown(value)}")
    width = max((len(_shown(tensor.name)) for tensor in found.tensors), default=0)
    for tensor in found.tensors:
        shape = " x ".join(map(str, tensor.shape)) or "1"
        console.line(f"{_shown(tensor.name):{width}}  {tensor.dtype:7}  {shape}")
    console.summary(dataclasses.asdict(found))


def _shown(value: object) -> str:
    """Write what a stranger's file says, so that no terminal obeys it."""
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value)
