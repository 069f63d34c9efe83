"""The options that the training commands share, said once.

A command that is decorated with `trains` has its own options and these; what is not given is for
`TrainConfig`, or for the task's own defaults, to decide.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s2f.errors import UsageError
from s2f.options import DeviceOpt, JsonOpt, QuietOpt, SeedOpt, given, option, sharing

if TYPE_CHECKING:
    from s2f.recipe import TrainConfig
    from s2f.task import Task


class Preset(StrEnum):
    """Shapes of networks that can be trained."""

    PAPER = "paper"
    SEED = "seed"
    COMPACT = "compact"


class EncoderPreset(StrEnum):
    """Shapes of face encoders that can be trained."""

    PAPER = "paper"
    COMPACT = "compact"


DataArg = Annotated[Path, typer.Argument(help="Folder that holds train and val.")]
PresetOpt = Annotated[
    Preset, option("Model", "Shape of the network (default: compact).", "--preset")
]
EncoderPresetOpt = Annotated[
    EncoderPreset, option("Model", "Shape of the network (default: compact).", "--preset")
]
StepsOpt = Annotated[int | None, option("Training", "Optimizer steps (10000).", "--steps", min=1)]
EpochsOpt = Annotated[
    float | None, option("Training", "Times through the data, instead of --steps.", "--epochs")
]
BatchSizeOpt = Annotated[
    int | None,
    option("Training", "Samples a step, of all devices.", "--batch-size", min=1),
]
AccumulateOpt = Annotated[
    int | None, option("Training", "Parts that a device computes them in.", "--accumulate", min=1)
]
OptimizerOpt = Annotated[str | None, option("Training", "adam or adamw.", "--optimizer")]
LrOpt = Annotated[float | None, option("Training", "Peak learning rate.", "--lr", min=0)]
BetasOpt = Annotated[
    tuple[float, float] | None, option("Training", "The optimizer's two.", "--betas")
]
EpsOpt = Annotated[float | None, option("Training", "The optimizer's.", "--eps", min=0)]
WeightDecayOpt = Annotated[
    float | None, option("Training", "The optimizer's.", "--weight-decay", min=0)
]
_SCHEDULES = "cosine, constant, or paper: x 0.95 every 10,000 steps."
ScheduleOpt = Annotated[str | None, option("Training", _SCHEDULES, "--schedule")]
ClipOpt = Annotated[float | None, option("Training", "Largest gradient norm (5).", "--clip", min=0)]
PatienceOpt = Annotated[
    int | None,
    option("Training", "End after so many validations without a better one.", "--patience", min=1),
]
LossWeightOpt = Annotated[
    list[str] | None,
    option("Training", "Of a loss; may be repeated.", "--loss-weight", metavar="NAME=VALUE"),
]
EveryOpt = Annotated[
    int | None, option("Run", "Steps between validations and saves (500).", "--every", min=1)
]
ResumeOpt = Annotated[
    bool,
    option("Run", "Go on with a run that is there (default).", "--resume/--no-resume"),
]
DryRunOpt = Annotated[
    bool, option("Run", "Try a batch, tell what training would take, and end.", "--dry-run")
]
MaxBadOpt = Annotated[
    int | None, option("Run", "Unreadable items to go on without (0).", "--max-bad", min=0)
]
WorkersOpt = Annotated[
    int | None, option("Run", "Processes a device that read; 0: its own.", "--workers", min=0)
]
DevicesOpt = Annotated[
    int | None, option("Run", "Devices of this machine to train on together.", "--devices", min=1)
]
PrecisionOpt = Annotated[str | None, option("Run", "fp32 (default) or bf16.", "--precision")]
CompileOpt = Annotated[bool | None, option("Run", "Compile the network.", "--compile")]
DeterministicOpt = Annotated[
    bool | None, option("Run", "Have a GPU repeat itself exactly.", "--deterministic")
]
TensorBoardOpt = Annotated[
    bool, option("Output", "Write TensorBoard's files too.", "--tensorboard")
]
HalfOpt = Annotated[bool | None, option("Output", "Store the best in half precision.", "--half")]


def _shared(
    *,
    steps: StepsOpt = None,
    epochs: EpochsOpt = None,
    batch_size: BatchSizeOpt = None,
    accumulate: AccumulateOpt = None,
    optimizer: OptimizerOpt = None,
    lr: LrOpt = None,
    betas: BetasOpt = None,
    eps: EpsOpt = None,
    weight_decay: WeightDecayOpt = None,
    schedule: ScheduleOpt = None,
    clip: ClipOpt = None,
    patience: PatienceOpt = None,
    loss_weights: LossWeightOpt = None,
    seed: SeedOpt = None,
    every: EveryOpt = None,
    resume: ResumeOpt = True,
    dry_run: DryRunOpt = False,
    max_bad: MaxBadOpt = None,
    workers: WorkersOpt = None,
    device: DeviceOpt = "auto",
    devices: DevicesOpt = None,
    precision: PrecisionOpt = None,
    compile: CompileOpt = None,
    deterministic: DeterministicOpt = None,
    tensorboard: TensorBoardOpt = False,
    half: HalfOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Only its signature counts."""


trains = sharing(_shared)


def read_loss_weights(assignments: Sequence[str]) -> dict[str, float]:
    """Read NAME=VALUE options.

    Raises:
        UsageError: if one is something else.
    """
    weights: dict[str, float] = {}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            weights[name] = math.nan
        if not 0 <= weights[name] < math.inf:
            raise UsageError(
                f"--loss-weight {assignment}: is not NAME=VALUE with a value of 0 or more",
                hint="give for instance --loss-weight texture/mae=10",
            )
    return weights


def check_epochs(epochs: float | None, steps: int | None) -> None:
    """Make sure that --epochs is a number, and the only one.

    Raises:
        UsageError: if it is not.
    """
    if epochs is not None and steps is not None:
        raise UsageError("--epochs and --steps say the same", hint="give one of them")
    if epochs is not None and not 0 < epochs < math.inf:
        raise UsageError(f"--epochs {epochs}: is not above 0", hint="give for instance --epochs 3")


def prepare(params: Mapping[str, Any], build: "Callable[[], Task]") -> "tuple[Task, TrainConfig]":
    """Make the task and its config.

    Args:
        params: the options, by name.
        build: makes the task; the random state is that of the seed.

    Raises:
        UsageError: if an option is wrong or contradicts another.
    """
    import torch

    from s2f.recipe import TrainConfig

    fields = (field.name for field in dataclasses.fields(TrainConfig))
    options = given(**{name: params.get(name) for name in fields})
    options["loss_weights"] = read_loss_weights(options.get("loss_weights", ()))
    epochs = params["epochs"]
    check_epochs(epochs, params["steps"])
    # What is wrong with it is better known before the data are read.
    torch.manual_seed(TrainConfig(**options).seed)  # of the new network's weights
    task = build()
    options = {**task.defaults, **options}
    if epochs is not None:
        size = options.get("batch_size", TrainConfig.batch_size)
        options["steps"] = math.ceil(epochs * len(task.train_data) / size)
    config = TrainConfig(**options)
    for name in config.loss_weights:
        if name not in task.loss_weights:
            raise UsageError(
                f"--loss-weight {name}: is no loss of this task; "
                f"wanted one of {', '.join(sorted(task.loss_weights))}",
                hint="correct the name",
            )
    return task, config
