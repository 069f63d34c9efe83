"""Small files that declare, or unpack to, very much: refused by a limit that is named, or done.

Each in a process of its own, which tells what it took. Weights that do this are in
`test_foreign_weights`, what is packed with gzip is in `test_hostile`.
"""

import json
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from damage import Count
from PIL import ExifTags, Image
from recordings import noise, write_av

from s2f.errors import AudioError, DatasetError, ImageError

SECONDS, MEGABYTES = 10, 512  # of processor time, and over what a good file takes
KINDS = {"sound": AudioError, "picture": ImageError, "whole": ImageError, "array": DatasetError}
READ = """
import json, sys
from pathlib import Path
from damage import Took
from s2f.audio import map_waveform, read_speech
from s2f.errors import S2FError
from s2f.images import open_photo
whole = lambda path: open_photo(path, enough=None)
readers = {"sound": read_speech, "picture": open_photo, "whole": whole, "array": map_waveform}
for kind, path in json.load(sys.stdin):
    said = None
    with Took() as took:
        try:
            readers[kind](Path(path))
        except S2FError as error:
            said = type(error).__name__, error.message, error.hint
    print(json.dumps([said, took.seconds, took.megabytes]), flush=True)
"""


def read_all(files: list[tuple[str, Path]]) -> list[tuple[list[str] | None, float, float]]:
    """Read files in one process; gives of each what was said, seconds, and megabytes."""
    told = json.dumps([(kind, str(path)) for kind, path in files])
    done = subprocess.run(
        [sys.executable, "-c", READ],
        input=told,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def png(path: Path, width: int, height: int, depth: int = 1, colours: int = 0) -> None:
    """Write a PNG of zeros: black, or without a colour."""
    pack = zlib.compressobj(1)
    row = bytes(1 + -(-width * depth * {0: 1, 2: 3, 6: 4}[colours] // 8))
    rows = max(1, 10**7 // len(row))
    done = [pack.compress(row * min(rows, height - k)) for k in range(0, height, rows)]
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", b"".join([*done, pack.flush()])), (b"IEND", b"")
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        check = zlib.crc32(kind + body)
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)
    path.write_bytes(data)


def saved(path: Path, megapixels: int, form: str = "PNG", turn: int = 1) -> None:
    """Write a grey picture, which EXIF turns."""
    side = round((megapixels * 10**6) ** 0.5)
    facts = Image.Exif()
    facts[ExifTags.Base.Orientation] = turn
    how = {"WEBP": {"method": 0}, "PNG": {"compress_level": 1}}.get(form, {})
    Image.new("RGB", (side, side), "grey").save(path, form, exif=facts.tobytes(), **how)


def matroska(path: Path, size: int, rubbish: int = 0) -> None:
    """Write 2 s of speech, and before its first cluster (or at its end) tags without a text."""
    data = write_av(path.with_suffix(".mka"), noise(32_000)[:, None]).read_bytes()
    tag = bytes.fromhex("7373 88 67c8 85 45a3 82 4141")
    tags = bytes.fromhex("1254c367 01") + size.to_bytes(7) + tag * (size // len(tag))
    head = data.index(bytes.fromhex("18538067"))
    # The segment goes on to the end of the file: of which it does not say how long it is.
    data = data[: head + 4] + bytes.fromhex("01ffffffffffffff") + data[head + 12 :]
    at = len(data) if rubbish else data.index(bytes.fromhex("1f43b675"))
    path.write_bytes(data[:at] + bytes(rubbish) + tags + data[at:])


def flac(path: Path, hours: float, *, says: bool = True) -> None:
    """Write silence, and perhaps do not say how long it lasts, as who writes to a pipe."""
    with soundfile.SoundFile(path, "w", 4_000, 1, "PCM_16", format="FLAC") as file:
        minute = np.zeros(60 * 4_000, np.int16)
        for _ in range(round(60 * hours)):
            file.write(minute)
    if not says:
        data = bytearray(path.read_bytes())
        data[21] &= 0xF0
        data[22:26] = bytes(4)
        path.write_bytes(data)


def wav(path: Path, *, data: int | None = None, **false: int) -> None:
    """Write 2 s, with another length of the data, or other fields of the format."""
    fields = {"channels": 1, "rate": 16_000, "bytes": 32_000, "align": 2, "bits": 16} | false
    sound = (noise(32_000) * 32768).astype("<i2").tobytes()
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, *fields.values())
    head += b"data" + struct.pack("<I", len(sound) if data is None else data)
    size = len(head + sound) if data is None else min(data + 36, 2**32 - 1)
    path.write_bytes(b"RIFF" + struct.pack("<I", size) + head + sound)


def m4a(path: Path, packets: int, parts: int = 1) -> None:
    """Declare packets of one byte each, all in one chunk, which are played so many times."""
    data = bytearray(write_av(path.with_suffix(".m4a"), noise(44_100)[:, None]).read_bytes())
    counts = (b"stsz", "II", (1, packets)), (b"stsc", "IIII", (1, 1, packets, 1))
    for name, form, values in (*counts, (b"stts", "III", (1, packets, 1024))):
        struct.pack_into(f">{form}", data, data.index(name) + 8, *values)
    if parts > 1:  # in the place of the one part, at the end of the header's box
        at = data.index(b"elst")
        (length,) = struct.unpack_from(">I", data, at - 4)
        part = data[at + 12 : at - 4 + length] * parts
        data[at + 4 : at - 4 + length] = struct.pack(">II", 0, parts) + part
        grown = len(part) + 12 - (length - 4)
        for box in (b"elst", b"edts", b"trak", b"moov"):
            at = data.index(box) - 4
            struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] + grown)
    path.write_bytes(data)


def npy(path: Path, shape: str, kind: str = "<f4") -> None:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + b"1234")


# What each is, how it is made, and what is said of it; None where it is read.
Bombs = dict[str, tuple[str, Callable[[Path], object], str | None]]
BOMBS: Bombs = {
    "20,000 square": ("picture", lambda p: png(p, 20_000, 20_000), "at most 100 megapixels"),
    "100,000,000 x 1": ("picture", lambda p: png(p, 10**8, 1), "at most 65535 pixels a side"),
    "1 x 100,000,000": ("picture", lambda p: png(p, 1, 10**8), "at most 65535 pixels a side"),
    "5 h": ("sound", lambda p: flac(p, 5), "says that it lasts 5 h; wanted 4 h at most"),
    "all of 4 GB": ("sound", lambda p: wav(p, data=2**32 - 1), None),
    "2 GB": ("sound", lambda p: wav(p, data=2**31), None),
    "no length": ("sound", lambda p: wav(p, data=0), None),
    "65,535 channels": ("sound", lambda p: wav(p, channels=65_535, align=65_534), "channels|dec"),
    "1 Hz": ("sound", lambda p: wav(p, rate=1), "claims 1 samples a second; wanted 4000 to"),
    "4 GHz": ("sound", lambda p: wav(p, rate=2**32 - 1), "samples a second|decoded"),
    "1e8 packets": ("sound", lambda p: m4a(p, 10**8), "declares 100000000 packets; wanted 8388608"),
    "parts": ("sound", lambda p: m4a(p, 10**5, 1000), "declares 100000 packets in 1000 parts"),
    "4 TB": ("array", lambda p: npy(p, "(1000000000000,)"), "claims more values than its"),
    "2e18": ("array", lambda p: npy(p, "(2000000000000000000,)"), "claims more values than its"),
    "1e30": ("array", lambda p: npy(p, f"({10**30},)"), "claims more values than its"),
    "-1": ("array", lambda p: npy(p, "(-1,)"), "cannot be read as an array"),
    "nested": ("array", lambda p: npy(p, "(" * 500 + ")" * 500), "cannot be read as an array"),
    "text": ("array", lambda p: npy(p, "(1,)", "<U2000000000"), "cannot be read as an array"),
}  # fmt: skip
LARGE: Bombs = {
    "24 h": ("sound", lambda p: flac(p, 24), "says that it lasts 24 h; wanted 4 h at most"),
    "a colour picture": ("picture", lambda p: png(p, 20_000, 20_000, 8, 2), "100 megapixels"),
    "100 megapixels": ("picture", lambda p: png(p, 10_000, 10_000, 8, 2), None),
    "100 grey ones": ("picture", lambda p: png(p, 10_000, 10_000, 8, 0), None),
    "100 to be turned": ("picture", lambda p: saved(p, 100, turn=6), "at most 67 megapixels"),
    "64 to be turned": ("picture", lambda p: saved(p, 64, turn=6), None),
    "a JPEG of 100": ("whole", lambda p: saved(p, 100, "JPEG", turn=6), None),
    "100 transparent": ("picture", lambda p: png(p, 10_000, 10_000, 8, 6), "at most 41 megap"),
    "41 transparent": ("picture", lambda p: png(p, 6_400, 6_400, 8, 6), None),
    "100 as WebP": ("picture", lambda p: saved(p, 100, "WEBP"), "at most 33 megapixels"),
    "33 as WebP": ("picture", lambda p: saved(p, 33, "WEBP"), None),
    "60 MB of tags": ("sound", lambda p: matroska(p, 60 * 2**20), "declares 60 MB of headers"),
    "tags behind rubbish": ("sound", lambda p: matroska(p, 60 * 2**20, 99), "MB of headers"),
    "8 MB of tags": ("sound", lambda p: matroska(p, 8 * 2**20 - 4000), None),
}


@pytest.mark.parametrize(
    "bombs", [BOMBS, pytest.param(LARGE, marks=pytest.mark.reliability)], ids=["fast", "large"]
)
def test_a_bomb_is_refused_by_a_limit_or_done(tmp_path, bombs):
    goods = {
        "sound": tmp_path / "g.wav",
        "picture": tmp_path / "g.png",
        "array": tmp_path / "g.npy",
    }
    wav(goods["sound"])
    png(goods["picture"], 500, 500)
    np.save(goods["array"], np.ones(16_000, np.float32))
    write_av(tmp_path / "g.m4a", noise(44_100)[:, None])
    files = [*goods.items(), ("sound", tmp_path / "g.m4a")]
    n_good, count = len(files), Count()
    for k, (kind, write, _) in enumerate(bombs.values()):
        path = tmp_path / f"{k}.{'npy' if kind == 'array' else 'bomb'}"
        write(path)
        files.append((kind, path))
    came = read_all(files)
    assert len(came) == len(files)
    assert all(said is None for said, _, _ in came[:n_good])
    for (kind, path), (name, bomb), (said, seconds, more) in zip(
        files[n_good:], bombs.items(), came[n_good:], strict=True
    ):
        print(f"{name}: {said and said[1]}, {seconds:.2f} s, {more:.0f} MB")
        assert (said is None) == (bomb[2] is None), name
        error = KINDS[kind](said[1], hint=said[2]) if said else None
        count.add(path, error, seconds)
        count.largest = max(count.largest, more)
        if said:
            assert said[0] == KINDS[kind].__name__ and re.search(bomb[2], said[1]), (name, said)
    print(f"bombs: {count}")
    assert count.slowest < SECONDS and count.largest < MEGABYTES


@pytest.mark.reliability
@pytest.mark.timeout(600)
def test_silence_that_does_not_say_how_long_it_is_ends_at_the_limit(tmp_path):
    """Of which 2 h are held, 460 MB, and the others counted."""
    flac(tmp_path / "a.flac", 24, says=False)
    wav(tmp_path / "g.wav")
    _, (said, seconds, more) = read_all([("sound", tmp_path / n) for n in ("g.wav", "a.flac")])
    print(f"24 h that are not declared: {said}, {seconds:.1f} s, {more:.0f} MB")
    assert said and "lasts longer than 4 h; wanted 4 h at most" in said[1]
    assert seconds < SECONDS and more < MEGABYTES
