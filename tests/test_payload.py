"""The payload of checkpoints: safetensors' own writer is the oracle."""

import io

import pytest
import safetensors.torch
import torch

from s2f.payload import payload_sha256, write

TENSORS = {
    "b": torch.arange(6).reshape(2, 3),
    "a": torch.randn(3, generator=torch.Generator().manual_seed(0)),
    "ä": torch.ones(5).half(),
    "scalar": torch.tensor(3),
    "empty": torch.zeros(0, 2),
    "flag": torch.tensor([True, False, True]),
    "byte": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "wide": torch.ones(2, dtype=torch.float64),
    "brain": torch.ones(2, dtype=torch.bfloat16),
}


def written(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    file = io.BytesIO()
    write(file, tensors, metadata)
    return file.getvalue()


@pytest.mark.parametrize("note", ["", "a", "ab", "abc", 'quote " and ä', "x" * 100])
def test_the_bytes_are_those_that_safetensors_writes(note: str) -> None:
    assert written(TENSORS, {"s2f": note}) == safetensors.torch.save(TENSORS, {"s2f": note})


def test_a_view_is_written_and_hashed_as_what_it_shows() -> None:
    wide = torch.arange(12.0).reshape(3, 4)
    views, plain = {"a": wide.t()}, {"a": wide.t().contiguous()}
    assert written(views, {}) == written(plain, {})
    assert payload_sha256(views) == payload_sha256(plain)
