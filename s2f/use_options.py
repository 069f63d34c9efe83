"""The options that `s2f generate` and `s2f reconstruct` share."""

from pathlib import Path
from typing import Annotated, Literal

from s2f.options import DeviceOpt, JsonOpt, QuietOpt, option, sharing

_WHERE = "A picture for one file, or a folder (default: this one) that mirrors the input's."
OutputOpt = Annotated[Path | None, option("Output", _WHERE, "--output", "-o")]
FormatOpt = Annotated[
    Literal["png", "jpg", "webp"] | None,
    option("Output", "Of the pictures: png (default), jpg or webp.", "--format"),
]
SizeOpt = Annotated[int | None, option("Output", "Side, pixels.", "--size", min=16, max=4096)]
LandmarksOpt = Annotated[
    bool, option("Output", "Also NAME_landmarks: the 68 points drawn on it.", "--landmarks")
]
EmbeddingOpt = Annotated[
    bool, option("Output", "Also NAME_embedding.npy: what it was drawn from.", "--embedding")
]
SheetOpt = Annotated[
    Path | None, option("Output", "Also a contact sheet of all faces.", "--sheet", metavar="FILE")
]
OverwriteOpt = Annotated[bool, option("Output", "Replace files that are there.", "--overwrite")]
ModelOpt = Annotated[
    str | None, option("Model", "A name that s2f models knows, or a folder.", "--model")
]
VoiceEncoderOpt = Annotated[
    Path | None, option("Model", "In the place of the model's.", "--voice-encoder", metavar="FILE")
]
FaceEncoderOpt = Annotated[
    Path | None, option("Model", "In the place of the model's.", "--face-encoder", metavar="FILE")
]
FaceDecoderOpt = Annotated[
    Path | None, option("Model", "In the place of the model's.", "--face-decoder", metavar="FILE")
]
DetectorOpt = Annotated[
    Literal["face-alignment", "dlib"] | None,
    option(
        "Input", "Of faces in photos: dlib (default, if installed), face-alignment.", "--detector"
    ),
]
AlignOpt = Annotated[
    bool,
    option("Input", "Find and frame the face in a photo (default), or not.", "--align/--no-align"),
]
PrecisionOpt = Annotated[
    Literal["fp32", "bf16", "fp16"] | None,
    option("Run", "fp32 (default; on a GPU the files' own), bf16 or fp16.", "--precision"),
]


def _shared(
    *,
    detector: DetectorOpt = None,
    align: AlignOpt = True,
    model: ModelOpt = None,
    face_encoder: FaceEncoderOpt = None,
    face_decoder: FaceDecoderOpt = None,
    output: OutputOpt = None,
    format: FormatOpt = None,
    size: SizeOpt = None,
    landmarks: LandmarksOpt = False,
    embedding: EmbeddingOpt = False,
    sheet: SheetOpt = None,
    overwrite: OverwriteOpt = False,
    device: DeviceOpt = "auto",
    precision: PrecisionOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Only its signature counts."""


draws = sharing(_shared)
