"""The payload of checkpoints: safetensors' own writer and reader are the oracle."""

import io
import json
import random
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from test_architecture import imported_by

from s2f import checkpoint
from s2f.checkpoint import file_sha256, payload_sha256, read_contents, write_safetensors

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
    "short": torch.arange(5, dtype=torch.int16),
    "signed": torch.arange(-3, 3, dtype=torch.int8).reshape(1, 2, 3),
    "int": torch.tensor([[7]], dtype=torch.int32),
}


def written(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    file = io.BytesIO()
    write_safetensors(file, tensors, metadata)
    return file.getvalue()


@pytest.mark.parametrize("note", ["", "a", "ab", "abc", 'quote " and ä', "x" * 100])
def test_the_bytes_are_those_that_safetensors_writes(note: str) -> None:
    assert written(TENSORS, {"s2f": note}) == safetensors.torch.save(TENSORS, {"s2f": note})


def test_a_view_is_written_and_hashed_as_what_it_shows() -> None:
    wide = torch.arange(12.0).reshape(3, 4)
    views, plain = {"a": wide.t()}, {"a": wide.t().contiguous()}
    assert written(views, {}) == written(plain, {})
    assert payload_sha256(views) == payload_sha256(plain)


def saved(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    safetensors.torch.save_file(tensors, path, {"a": "b"})
    return path


def test_a_file_has_the_hash_of_its_tensors(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", TENSORS)
    assert file_sha256(path) == payload_sha256(safetensors.torch.load_file(path))


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(
            st.sampled_from(sorted(checkpoint._TYPES)), st.lists(st.integers(0, 3), max_size=3)
        ),
        max_size=6,
    )
)
def test_any_tensors_have_one_hash(
    tmp_path_factory: pytest.TempPathFactory, described: dict[str, tuple[str, list[int]]]
) -> None:
    tensors = {
        name: torch.randint(0, 2, shape).to(getattr(torch, dtype))
        for name, (dtype, shape) in described.items()
    }
    path = tmp_path_factory.getbasetemp() / "any"
    with path.open("wb") as file:
        write_safetensors(file, tensors, {})
    assert file_sha256(path) == payload_sha256(tensors)
    with path.open("rb") as file:
        contents = read_contents(file).tensors
    assert {n: (t.dtype, list(t.shape)) for n, t in contents.items()} == described


def test_hashing_needs_a_small_buffer_and_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a", TENSORS)
    whole = file_sha256(path)
    monkeypatch.setattr(checkpoint, "_BUFFER", 5)
    told: list[int] = []
    assert file_sha256(path, told.append) == whole
    assert told == sorted(told)
    assert told[-1] == sum(tensor.nbytes for tensor in TENSORS.values())


def test_hashing_does_not_import_torch(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", TENSORS)
    code = "from pathlib import Path; from s2f.checkpoint import file_sha256\n"
    assert not {"torch", "numpy", "safetensors"} & imported_by(
        f"{code}file_sha256(Path({str(path)!r}))"
    )


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(*offsets: object, dtype: object = "F32", shape: object = (1,)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        (1 << 63).to_bytes(8, "little") + b"{}",
        (3).to_bytes(8, "little") + b"{}",
        with_header(b"[]"),
        with_header(b"{"),
        with_header(b"{\xff}"),
        with_header(b'{"a":' * 100_000),
        with_header(b'{"a": NaN}'),
        with_header(b'{"__metadata__": {"a": "\\ud800"}}'),
        with_header({"__metadata__": []}),
        with_header({"__metadata__": {"a": 1}}),
        with_header({"a": 1}),
        with_header({"a": tensor(0)}, bytes(4)),
        with_header({"a": tensor(0, 4, dtype="F8")}, bytes(4)),
        with_header({"a": tensor(0, 4, dtype=[])}, bytes(4)),
        with_header({"a": tensor(0, 4, shape=1)}, bytes(4)),
        with_header({"a": tensor(0, 4, shape=[1.0])}, bytes(4)),
        with_header({"a": tensor(0, 4, shape=[True])}, bytes(4)),
        with_header({"a": tensor(0, 4, shape=[-1, -1])}, bytes(4)),
        with_header({"a": tensor(0, 0, shape=[0, 10**30])}),
        with_header({"a": tensor(0, 4, shape=[2])}, bytes(4)),
        with_header({"a": tensor(4, 0)}, bytes(4)),
        with_header({"a": tensor(0, 4)}, bytes(3)),
        with_header({"a": tensor(0, 4)}, bytes(5)),
        with_header({"a": tensor(4, 8)}, bytes(8)),
        with_header({"a": tensor(0, 4), "b": tensor(0, 4)}, bytes(4)),
        with_header({"a": tensor(0, 4), "b": tensor(2, 6)}, bytes(6)),
        with_header(b'{"a": 1, "a": 2}'),
    ],
)
def test_what_is_no_whole_file_of_tensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError):
        file_sha256(tmp_path / "a")
    if content != with_header(b'{"a": 1, "a": 2}'):
        with pytest.raises(SafetensorError):
            safetensors.torch.load_file(tmp_path / "a")


def test_what_safetensors_refuses_is_refused(tmp_path: Path) -> None:
    """Any bit of the header flipped: accepted only if safetensors accepts it, with one hash."""
    path = saved(tmp_path / "a", TENSORS)
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    rng = random.Random(0)
    accepted = 0
    for _ in range(500):
        broken = bytearray(whole)
        broken[rng.randrange(length)] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        try:
            sha256 = file_sha256(path)
        except ValueError:
            continue
        assert sha256 == payload_sha256(safetensors.torch.load_file(path))
        accepted += 1
    assert accepted  # names and metadata may be anything


def test_a_file_that_shrinks_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a", TENSORS)
    monkeypatch.setattr(checkpoint, "_BUFFER", 1)
    with pytest.raises(ValueError, match="shorter"):
        file_sha256(path, lambda done: path.write_bytes(b""))
