"""Whatever bytes, text or JSON stand where s2f reads its own: taken, or refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import Count
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s2f import audio, pack
from s2f.checkpoint import Card, read_header
from s2f.errors import S2FError
from s2f.files import read_array, read_table, sealed, unsealed
from s2f.foreign_weights import recognise
from s2f.journal import Journal
from s2f.journal import _check as journal_check
from s2f.report import read_report
from s2f.run_dir import Run
from s2f.spectrogram import read_stats

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.sampled_from(
    "version kind sha256 clips embeddings identities name of mean std format task steps title "
    "sections samples lower facts data".split()
)
JSON = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner), max_leaves=12
)
OBJECTS = st.dictionaries(KEYS | st.text(max_size=4), JSON, max_size=8)


def header(text: str, body: bytes = b"") -> bytes:
    """What may be a file of safetensors."""
    data = text.encode(errors="surrogatepass")
    return len(data).to_bytes(8, "little") + data + body


def npy(text: str) -> bytes:
    data = text.encode("latin1", "replace")[:60_000]
    return b"\x93NUMPY\1\0" + len(data).to_bytes(2, "little") + data + bytes(64)


def line(fields: Any) -> bytes:
    """A journal, whose one line has the check that it should have."""
    text = json.dumps(fields).encode()
    return b'{"version": 1}\n' + text + b" " + journal_check(text) + b"\n"


TUPLES = st.tuples(st.sampled_from(["done", "start", "due"]), JSON, JSON, JSON, JSON, JSON)
SHAPES = (
    st.sampled_from(["(3,)", "(2**70,)", "(-1, 4)", "()", "True", "(1e9,)", "((1,),)"]) | st.text()
)
NPY = st.builds(
    "{{'descr': {!r}, 'fortran_order': {}, 'shape': {}}}".format,
    st.sampled_from(["<f4", "<i2", "|O", "<U9", ">f8", "|V3", "x"]) | st.text(max_size=5),
    st.booleans(),
    SHAPES,
)
FILES = (
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass"))
    | JSON.map(lambda value: json.dumps(value).encode())
    | OBJECTS.map(sealed)
    | TUPLES.map(line)
    | NPY.map(npy)
    | JSON.map(lambda value: header(json.dumps({"__metadata__": {"s2f": json.dumps(value)}})))
    | st.text(max_size=80).map(header)
)


def read_journal(path: Path) -> None:
    with Journal(path.parents[1], "audio", {}):
        pass


# By where the file stands: what reads it there.
READERS = {
    "t.csv": read_table,
    "stats.json": read_stats,
    "report.json": read_report,
    "config.json": lambda path: Run(path.parent).config(),
    "index.json": lambda path: pack.read_index(path.parent),
    "card.json": lambda path: Card.of_data(path.parent, "a"),
    "a.npy": read_array,
    "b.npy": audio.map_waveform,
    "a.safetensors": lambda path: read_header(path, "voice_encoder"),
    "a.h5": recognise,
    ".s2f/audio.journal": read_journal,
}


@pytest.mark.parametrize(
    "n",
    [30, pytest.param(5_000, marks=[pytest.mark.reliability, pytest.mark.timeout(36_000)])],
)
def test_whatever_stands_there_is_taken_or_refused_by_name(tmp_path, n):
    counts = {name: Count() for name in READERS}
    (tmp_path / ".s2f").mkdir()

    @settings(max_examples=n, database=None, suppress_health_check=list(HealthCheck))
    @given(FILES)
    def read(data: bytes) -> None:
        for name, reader in READERS.items():
            path = tmp_path / name
            path.write_bytes(data)
            try:
                reader(path)
            except S2FError as error:
                counts[name].add(tmp_path, error)
            else:
                counts[name].add(tmp_path, None)
            path.unlink()

    read()
    for name, count in counts.items():
        print(f"{name}: {count}")
        assert count.tried >= n


@given(OBJECTS.map(lambda fields: {k: v for k, v in fields.items() if k != "sha256"}), st.data())
def test_what_is_sealed_comes_back_and_nothing_else(fields, data):
    content = sealed(fields)
    np.testing.assert_equal(unsealed(content), json.loads(json.dumps(fields)))
    at = data.draw(st.integers(0, len(content) - 1))
    broken = bytearray(content)
    broken[at] ^= 1 << data.draw(st.integers(0, 7))
    if b'"sha256"' in content[max(0, at - 8) : at + 9]:  # is no hash any more
        return
    with pytest.raises(ValueError):
        unsealed(bytes(broken))
