"""The options of `s2f train voice` that say how a voice encoder is made and what it hears."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from s2f.options import option


class Arch(StrEnum):
    """Architectures of voice encoders."""

    CONV = "conv"
    AST = "ast"


class Pairing(StrEnum):
    """Ways to pair recordings with faces."""

    ALL_TO_ALL = "all-to-all"
    ONE_TO_ONE = "one-to-one"
    ALL_TO_ONE = "all-to-one"
    SAME_CLIP = "same-clip"


ArchOpt = Annotated[Arch, option("Model", "conv (default), or ast: a transformer.", "--arch")]
PretrainedOpt = Annotated[
    str | None,
    option("Model", "Where AST starts: a folder or id of Hugging Face.", "--pretrained"),
]
RandomInitOpt = Annotated[bool, option("Model", "Start AST at random.", "--random-init")]
StatsOpt = Annotated[
    Path | None, option("Model", "Mean and std of the log-mel, from prep stats.", "--stats")
]
HeadStepsOpt = Annotated[
    int | None,
    option("Training", "Steps of a pretrained AST's head alone (1000).", "--head-steps", min=0),
]
UnfreezeOpt = Annotated[
    int | None,
    option("Training", "Last layers of it that are trained after that (all).", "--unfreeze", min=0),
]
PairingOpt = Annotated[
    Pairing,
    option(
        "Input",
        "Which face a recording comes with: any of the person's (all-to-all, default), one each, "
        "always the first, or that of the same clip.",
        "--pairing",
    ),
]
PerIdentityOpt = Annotated[
    int | None,
    option("Input", "Recordings of a person, at most.", "--per-identity", min=1),
]
MinSecondsOpt = Annotated[
    float | None, option("Training", "Shortest clips (compact: 2; not for ast).", "--min-seconds")
]
DisturbOpt = Annotated[
    str | None,
    option("Training", "all, none, or of noise,gain,speed,band,spec.", "--augment", metavar="LIST"),
]
LossSetOpt = Annotated[
    str | None,
    option(
        "Training",
        "Which losses: paper, seed, seed-ast, auto (equal gradients), or NAME=VALUE,...",
        "--loss-weights",
        metavar="SET",
    ),
]
CalibrateAtOpt = Annotated[
    int | None,
    option("Training", "Step at which auto finds weights (1000).", "--calibrate-at", min=0),
]
ContrastiveOpt = Annotated[
    float | None, option("Training", "Add InfoNCE with this weight.", "--contrastive", metavar="W")
]
