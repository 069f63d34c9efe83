"""Tensors on their way out: what is declared is bounded, what is written is what was declared."""

from pathlib import Path

import numpy as np
import pytest

from s2f.errors import CheckpointError, OutputError
from s2f.foreign_weights import ALIGN, DATA, MAX_BYTES, RATIO, SPARE, Unpacked


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(bytes(100))
    return path


def test_pieces_become_the_tensors_that_were_declared(source: Path, tmp_path: Path) -> None:
    first = np.arange(6, dtype=np.float32).reshape(3, 2)
    second = np.array([5, 6], dtype=np.int64)
    with Unpacked(source, tmp_path, True) as out:
        assert out.declare("a", "float32", (3, 2))
        out.write([first[:1], first[1:]])
        assert out.declare("b", "int64", (2,))
        out.write([second])
    data = (tmp_path / DATA).read_bytes()
    (_, _, shape, start), (_, _, _, later) = out.tensors
    assert (shape, start, later) == ([3, 2], 0, ALIGN)
    assert data[: first.nbytes] == first.tobytes()
    assert data[later:] == second.tobytes()


def test_nothing_is_written_if_only_the_list_is_wanted(source: Path, tmp_path: Path) -> None:
    with Unpacked(source, tmp_path, False) as out:
        assert not out.declare("a", "float32", (3, 2))
    assert not (tmp_path / DATA).exists()


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", ">f8"])
def test_floats_of_any_size_and_byte_order_become_float32(
    source: Path, tmp_path: Path, dtype: str
) -> None:
    values = np.array([1.5, -2, 0.25])
    with Unpacked(source, tmp_path, True) as out:
        out.declare("a", "float32", (3,))
        out.write([values.astype(dtype)])
    np.testing.assert_array_equal(np.fromfile(tmp_path / DATA, np.float32), values)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_refused_with_its_tensor(
    source: Path, tmp_path: Path, value: float
) -> None:
    with Unpacked(source, tmp_path, True) as out:
        out.declare("fc6/kernel", "float32", (2,))
        with pytest.raises(CheckpointError, match="'fc6/kernel' holds values that are no numbers"):
            out.write([np.array([0, value], dtype=np.float32)])


def test_as_many_bytes_may_be_declared_as_the_file_can_hold(source: Path, tmp_path: Path) -> None:
    limit = RATIO * 100 + SPARE
    with Unpacked(source, tmp_path, False) as out:
        out.declare("a", "uint8", (limit,))
        with pytest.raises(CheckpointError, match=f"{limit}, and"):
            out.declare("b", "uint8", (1,))


def test_a_sparse_file_may_not_fill_the_disk(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10**12)
    with (
        Unpacked(tmp_path / "sparse", tmp_path, True) as out,
        pytest.raises(CheckpointError, match=f"may declare {MAX_BYTES}"),
    ):
        out.declare("a", "uint8", (MAX_BYTES + 1,))


def test_an_absurd_shape_does_not_wrap_around(source: Path, tmp_path: Path) -> None:
    with Unpacked(source, tmp_path, False) as out, pytest.raises(CheckpointError, match="declares"):
        out.declare("a", "float32", (2**32, 2**32))


@pytest.mark.parametrize("n", [1, 3])
def test_fewer_or_more_values_than_declared_are_refused(
    source: Path, tmp_path: Path, n: int
) -> None:
    with Unpacked(source, tmp_path, True) as out:
        out.declare("a", "float32", (2,))
        with pytest.raises(CheckpointError, match="fewer or more"):
            out.write([np.zeros(n, np.float32)])


def test_a_name_may_stand_once(source: Path, tmp_path: Path) -> None:
    with Unpacked(source, tmp_path, False) as out:
        out.declare("a", "float32", (2,))
        with pytest.raises(CheckpointError, match="'a' twice"):
            out.declare("a", "float32", (2,))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_the_outputs_fault(source: Path, tmp_path: Path) -> None:
    (tmp_path / DATA).symlink_to("/dev/full")
    with Unpacked(source, tmp_path, True) as out:
        out.declare("a", "float32", (2**20,))
        with pytest.raises(OutputError, match="cannot be written"):
            out.write([np.zeros(2**20, np.float32)])
