"""What may be said of a voice encoder. The recipes are those of FACTS.md, sections 1 and 2."""

from pathlib import Path

import pytest

from s2f.errors import UsageError
from s2f.train_voice import DEFAULTS, NOTHING_ELSE, VoiceOptions, check_options


@pytest.mark.parametrize(
    ("preset", "options"),
    [
        *((preset, NOTHING_ELSE) for preset in ("paper", "seed", "compact")),
        ("compact", VoiceOptions("ast")),
        ("compact", VoiceOptions("ast", random_init=True)),
        ("compact", VoiceOptions("ast", pretrained="a/b", head_steps=3, unfreeze=0)),
        ("paper", VoiceOptions("ast", random_init=True, stats=Path("stats.json"))),
        ("seed", VoiceOptions("ast", pretrained="a/b")),
        ("compact", VoiceOptions(stats=Path("stats.json"), min_seconds=3)),
    ],
)
def test_what_fits_together_is_allowed(preset: str, options: VoiceOptions) -> None:
    check_options(preset, options)


@pytest.mark.parametrize(
    ("preset", "options", "part"),
    [
        ("paper", VoiceOptions("ast"), "either from pretrained weights or at random, and nothing"),
        ("seed", VoiceOptions("ast", pretrained="a", random_init=True), "and both"),
        ("paper", VoiceOptions(pretrained="a"), "--pretrained: a convolutional encoder"),
        ("compact", VoiceOptions(random_init=True), "--random-init: a convolutional encoder"),
        ("paper", VoiceOptions(head_steps=3), "--head-steps: a convolutional encoder"),
        ("paper", VoiceOptions(unfreeze=0), "--unfreeze: a convolutional encoder"),
        ("compact", VoiceOptions("ast", head_steps=3), "--head-steps: weights that start at"),
        ("seed", VoiceOptions("ast", random_init=True, unfreeze=0), "--unfreeze: weights that"),
        ("compact", VoiceOptions("ast", min_seconds=3), "--min-seconds: AST's table"),
        ("paper", VoiceOptions(stats=Path("s.json")), "the preset paper hears no log-mel"),
        ("seed", VoiceOptions(stats=Path("s.json")), "the preset seed hears no log-mel"),
    ],
)
def test_what_contradicts_itself_is_refused_with_a_cure(
    preset: str, options: VoiceOptions, part: str
) -> None:
    with pytest.raises(UsageError, match=part) as caught:
        check_options(preset, options)
    assert caught.value.hint


def test_a_start_that_is_not_named_is_cured_by_either() -> None:
    with pytest.raises(UsageError) as caught:
        check_options("paper", VoiceOptions("ast"))
    hint = caught.value.hint or ""
    assert "--pretrained MIT/ast-finetuned-audioset-10-10-0.4593" in hint
    assert "--random-init" in hint


def test_the_papers_recipe_is_the_published_one() -> None:
    paper = DEFAULTS["conv", "paper"]
    assert paper == {
        "optimizer": "adam",
        "betas": (0.5, 0.999),
        "eps": 1e-4,
        "lr": 1e-3,
        "schedule": "paper",
        "weight_decay": 0.0,
        "batch_size": 8,
    }
    seed = DEFAULTS["conv", "seed"]
    assert {k: v for k, v in seed.items() if paper[k] != v} == {
        "schedule": "constant",
        "batch_size": 4,
    }
