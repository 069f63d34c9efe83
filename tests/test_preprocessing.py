"""How pictures are made ready: orders and means against each other, and what travels in files."""

import dataclasses
import json

import pytest

from s2f import appearance_model, face_decoder, face_encoder
from s2f.images import PREPROCESSING, Preprocessing


def test_the_papers_mean_is_rcmallis_in_the_other_order_of_channels() -> None:
    paper, rcmalli = PREPROCESSING["paper"], PREPROCESSING["rcmalli"]
    assert (paper.channels, rcmalli.channels) == ("RGB", "BGR")
    assert paper.mean == rcmalli.mean[::-1] and paper.scale == rcmalli.scale == 255


def test_pictures_that_are_wanted_as_they_are_need_nothing() -> None:
    assert PREPROCESSING["compact"] == PREPROCESSING["seed"] == Preprocessing("RGB", 1, (0, 0, 0))


def test_every_face_encoder_that_can_be_trained_has_its_own() -> None:
    trained = set(face_encoder.CONFIGS) | set(appearance_model.CONFIGS)
    assert trained <= set(PREPROCESSING) and trained <= set(face_decoder.CONFIGS)


@pytest.mark.parametrize("name", PREPROCESSING)
def test_it_is_plain_enough_for_a_checkpoints_header(name: str) -> None:
    fields = json.loads(json.dumps(dataclasses.asdict(PREPROCESSING[name])))
    fields["mean"] = tuple(fields["mean"])
    assert Preprocessing(**fields) == PREPROCESSING[name]
