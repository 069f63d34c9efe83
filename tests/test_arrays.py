"""Arrays in files, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from s2f.errors import DatasetError
from s2f.files import map_waveform, read_array


@pytest.mark.parametrize("mmap", [False, True])
def test_an_array_comes_back(tmp_path: Path, mmap: bool) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "a.npy", values)
    np.testing.assert_array_equal(read_array(tmp_path / "a.npy", mmap=mmap), values)


@pytest.mark.parametrize("content", [None, b"", b"nothing of the kind", b"\x93NUMPY"])
def test_what_is_no_array_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.npy").write_bytes(content)
    for mmap in (False, True):
        with pytest.raises(DatasetError, match=r"a\.npy: cannot be read as an array"):
            read_array(tmp_path / "a.npy", mmap=mmap)


def test_a_file_that_is_no_array_is_not_called_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"garbage")
    with pytest.raises(DatasetError, match=r"it is no \.npy file of numbers"):
        read_array(tmp_path / "a.npy")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DatasetError, match="cannot be read as an array"):
        read_array(tmp_path / "a.npy")


@pytest.mark.parametrize("dtype", [np.int16, np.float16, np.float32, np.float64])
def test_a_waveform_is_mapped_as_it_is_stored(tmp_path: Path, dtype: type) -> None:
    np.save(tmp_path / "a.npy", np.arange(9).astype(dtype))
    waveform = map_waveform(tmp_path / "a.npy")
    assert waveform.dtype == dtype and isinstance(waveform, np.memmap)


@pytest.mark.parametrize("values", [np.zeros(0), np.zeros((2, 5)), np.zeros(3, np.int32)])
def test_what_is_no_waveform_is_named(tmp_path: Path, values: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(DatasetError, match=r"a\.npy: (holds|cannot)"):
        map_waveform(tmp_path / "a.npy")
