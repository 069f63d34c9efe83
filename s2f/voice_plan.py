"""A voice encoder to train: from a preset and options to a network, what it hears, and a recipe.

Knows nothing of data or losses.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from s2f import ast_encoder, voice_encoder
from s2f.augment import VoiceAugment
from s2f.checkpoint import AnyVoiceEncoder
from s2f.decoding import SAMPLE_RATE
from s2f.errors import UsageError
from s2f.front_end import FRONT_ENDS, HOP_LENGTH, WIN_LENGTH, FrontEnd
from s2f.log_mel import read_stats
from s2f.payload import payload_sha256
from s2f.pretrained import PretrainedAST, read_ast
from s2f.task import Group
from s2f.voice_presets import (
    AUGMENT,
    BODY_LR,
    DEFAULTS,
    FRONT_END_OF,
    PASSES,
    VoiceOptions,
    check_options,
)


@dataclass(frozen=True)
class VoicePlan:
    """A voice encoder to train, and how.

    Attributes:
        network: with gradients where training begins with them.
        front_end: what it hears.
        groups: which of its parameters are trained.
        augment: how its recordings are disturbed.
        shortest: samples of the shortest clips; None where all have the front end's length.
        passes: through the data, to solve the last layers in the end; 0 where they are not.
        defaults: fields of TrainConfig.
        settings: of the options that are not at their defaults.
        notes: for people.
    """

    network: AnyVoiceEncoder
    front_end: FrontEnd
    groups: Sequence[Group]
    augment: VoiceAugment
    shortest: int | None
    passes: int
    defaults: Mapping[str, object]
    settings: Mapping[str, object]
    notes: Sequence[str]


def plan(preset: str, options: VoiceOptions, *, embedding: int) -> VoicePlan:
    """Make the network of a preset, and decide how it is trained.

    Args:
        preset: `paper`, `seed` or `compact`. A pretrained AST has its own shape; there the preset
            decides on the final ReLU and the recipe.
        options: what else was said.
        embedding: values of the embedding.

    Raises:
        UsageError: if the options contradict each other, the preset or the network.
        DependencyError: if transformers is needed and not installed.
        CheckpointError: as `pretrained.read_ast`.
        DatasetError: as `log_mel.read_stats`.
    """
    check_options(preset, options)
    settings: dict[str, object] = {}
    notes: list[str] = []
    if options.arch == "conv":
        front_end = usual = FRONT_END_OF[preset]
        network, groups = _conv(preset, front_end, embedding)
    else:
        ast_encoder.require()
        start = None if options.pretrained is None else read_ast(options.pretrained)
        network, groups = _ast(preset, options, start, embedding)
        usual = FRONT_ENDS["ast"]
        # 10.26 s of 1024 frames, 6 s of 598
        front_end = dataclasses.replace(
            usual, clip_samples=HOP_LENGTH * (network.config.n_frames + 2)
        )
        settings["arch"] = "ast"
        if start is not None:
            settings["pretrained"] = payload_sha256(start.body)
            settings["head_steps"], settings["unfreeze"] = options.head_steps, options.unfreeze
            if start.features is not None:
                front_end = dataclasses.replace(
                    front_end, mean=start.features[0], std=start.features[1]
                )
            elif options.stats is None:
                notes.append(
                    f"{options.pretrained} has no preprocessor_config.json: its features are "
                    "taken to be normalised by the mean and std of AudioSet"
                )
    if options.stats is not None:
        stats = read_stats(options.stats)
        front_end = dataclasses.replace(front_end, mean=stats.mean, std=stats.std)
    if (front_end.mean, front_end.std) != (usual.mean, usual.std):
        settings["log_mel"] = [front_end.mean, front_end.std]
    augment = AUGMENT[preset]
    if options.augment is not None:
        augment = VoiceAugment.of(options.augment)
    if augment != AUGMENT[preset]:
        settings["augment"] = str(augment)
    if options.min_seconds is not None:
        settings["min_seconds"] = options.min_seconds
    defaults = dict(DEFAULTS[options.arch, preset])
    if augment == VoiceAugment():
        defaults["augment"] = False
    return VoicePlan(
        *(network, front_end, groups, augment),
        shortest=_shortest(preset, options.min_seconds, network, front_end),
        passes=PASSES.get(preset, 0) if options.arch == "conv" else 0,
        defaults=defaults,
        settings=settings,
        notes=notes,
    )


def _conv(preset: str, front_end: FrontEnd, embedding: int) -> tuple[AnyVoiceEncoder, list[Group]]:
    config = dataclasses.replace(
        voice_encoder.CONFIGS[preset],
        in_channels=front_end.n_channels,
        n_freqs=front_end.n_freqs,
        embedding=embedding,
    )
    if preset in PASSES:  # two linear layers that are to be one regression
        config = dataclasses.replace(config, hidden=embedding)
    network = voice_encoder.VoiceEncoder(config)
    return network, [Group(list(network.parameters()))]


def _ast(
    preset: str, options: VoiceOptions, start: PretrainedAST | None, embedding: int
) -> tuple[ast_encoder.ASTEncoder, list[Group]]:
    """Make an AST with its head, and its body as far as it is trained, as groups."""
    config = ast_encoder.CONFIGS[preset]
    if start is not None:
        config = dataclasses.replace(start.config, final_relu=config.final_relu)
    layers = config.layers
    last = layers if options.unfreeze is None else options.unfreeze
    if not 0 <= last <= layers:
        raise UsageError(
            f"--unfreeze {last}: {options.pretrained} has {layers} transformer layers",
            hint=f"give 0 to {layers}, or leave it out to train all",
        )
    network = ast_encoder.ASTEncoder(dataclasses.replace(config, embedding=embedding))
    if start is not None:
        start.begin(network)
    network.requires_grad_(False)
    groups = [Group(network.head())]
    if last:
        groups.append(Group(network.body(last), options.head_steps, BODY_LR))
    for group in groups:
        for parameter in group.parameters:
            parameter.requires_grad_(group.start == 0)
    return network, groups


def _shortest(
    preset: str, seconds: float | None, network: AnyVoiceEncoder, front_end: FrontEnd
) -> int | None:
    """Decide how many samples the shortest clips have."""
    if isinstance(network, ast_encoder.ASTEncoder):
        return None
    whole = front_end.clip_samples
    least = HOP_LENGTH * (network.config.min_frames - 1)
    if front_end.kind != "seed":  # whose frames reach beyond the ends
        least += WIN_LENGTH
    if seconds is None:
        return max(least, whole // 3) if preset == "compact" else None
    shortest = round(seconds * SAMPLE_RATE) if math.isfinite(seconds) else -1
    if not least <= shortest <= whole:
        bounds = f"{least / SAMPLE_RATE:g} to {whole / SAMPLE_RATE:g}"
        raise UsageError(
            f"--min-seconds {seconds:g}: this encoder learns from clips of {bounds} s",
            hint=f"give {bounds}",
        )
    return shortest
