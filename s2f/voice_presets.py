"""The presets of voice encoders to train, and what can be said besides."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from s2f.augment import VoiceAugment
from s2f.errors import UsageError
from s2f.front_end import FRONT_ENDS

# Presets whose last layers are solved, and how often that goes through the training data, each
# recording disturbed anew. The others are learned by gradient steps alone.
PASSES = {"compact": 25}
FRONT_END_OF = {  # of each preset of the convolutional encoder
    "paper": FRONT_ENDS["paper"],
    "seed": FRONT_ENDS["seed"],
    "compact": dataclasses.replace(FRONT_ENDS["ast"], clip_samples=96_000),
}
# Fields of TrainConfig. Source: Oh et al. 2019, of which beta 2 is not known; the seed's training
# differs in a constant rate and batches of 4.
_PAPER: Mapping[str, object] = {
    "optimizer": "adam",
    "betas": (0.5, 0.999),
    "eps": 1e-4,
    "lr": 1e-3,
    "schedule": "paper",
    "weight_decay": 0.0,
    "batch_size": 8,
}
# A body that learns at 1e-4 by AdamW. Source: Vox2Face, stage I.
_AST: Mapping[str, object] = {
    "optimizer": "adamw",
    "betas": (0.9, 0.999),
    "lr": 1e-3,
    "schedule": "cosine",
    "weight_decay": 1e-4,
}
EXAMPLE = "MIT/ast-finetuned-audioset-10-10-0.4593"  # an id of Hugging Face's hub
HEAD_STEPS = 1000  # that train the head of a pretrained AST alone; ours
BODY_LR = 0.1  # of AST's body: its share of the learning rate, which is the head's
DEFAULTS: Mapping[tuple[str, str], Mapping[str, object]] = {
    ("conv", "paper"): _PAPER,
    ("conv", "seed"): {**_PAPER, "schedule": "constant", "batch_size": 4},
    ("conv", "compact"): {},
    ("ast", "paper"): _AST,
    ("ast", "seed"): _AST,
    ("ast", "compact"): {},
}
AUGMENT = {
    "paper": VoiceAugment(),
    "seed": VoiceAugment(),
    "compact": VoiceAugment(noise=True, gain=True, speed=True, band=True),
}


@dataclass(frozen=True)
class VoiceOptions:
    """What can be said of a voice encoder besides its preset.

    Attributes:
        arch: convolutions as in the paper, or an Audio Spectrogram Transformer.
        pretrained: where AST starts: a folder, or an id of Hugging Face's hub.
        random_init: whether AST starts at random; goes without saying for `compact`.
        head_steps: steps that train the head of a pretrained AST alone.
        unfreeze: transformer layers of a pretrained AST, the last ones, that are trained after
            these; None for all of it.
        stats: file of the mean and standard deviation of the log-mel.
        augment: as `VoiceAugment.of`; None for the preset's.
        min_seconds: length of the shortest clips that are trained on; None for the preset's.
    """

    arch: Literal["conv", "ast"] = "conv"
    pretrained: str | None = None
    random_init: bool = False
    head_steps: int = 0
    unfreeze: int | None = None
    stats: Path | None = None
    augment: str | None = None
    min_seconds: float | None = None


NOTHING_ELSE = VoiceOptions()


def check_options(preset: str, options: VoiceOptions) -> None:
    """Make sure that options fit together and to a preset.

    Raises:
        UsageError: if they do not.
    """
    if options.arch == "conv":
        for name, is_given in (
            ("--pretrained", options.pretrained is not None),
            ("--random-init", options.random_init),
            ("--head-steps", options.head_steps > 0),
            ("--unfreeze", options.unfreeze is not None),
        ):
            if is_given:
                raise UsageError(
                    f"{name}: a convolutional encoder is trained from the beginning, all at once",
                    hint=f"leave it out, or give --arch ast; that is where {name} belongs",
                )
        if options.stats is not None and FRONT_END_OF[preset].kind != "ast":
            raise UsageError(
                f"--stats {options.stats}: the preset {preset} hears no log-mel",
                hint="leave it out, or give --preset compact or --arch ast",
            )
        return
    starts = (options.pretrained is not None) + options.random_init
    if starts == 2 or (starts == 0 and preset != "compact"):
        said = "both --pretrained and --random-init were given" if starts else "nothing says so"
        raise UsageError(
            f"--arch ast starts either from pretrained weights or at random, and {said}",
            hint=f"give --pretrained {EXAMPLE} (or a folder), or --random-init",
        )
    if options.pretrained is None and (options.head_steps or options.unfreeze is not None):
        name = "--head-steps" if options.head_steps else "--unfreeze"
        raise UsageError(
            f"{name}: weights that start at random are all trained from the first step",
            hint=f"leave it out, or give --pretrained {EXAMPLE} (or a folder)",
        )
    if options.min_seconds is not None:
        raise UsageError(
            "--min-seconds: AST's table of positions has one length, so that its clips have too",
            hint="leave it out",
        )
