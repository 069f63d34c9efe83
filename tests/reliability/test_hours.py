"""Recordings of three hours, in memory and in full; longer ones are in `test_bombs`."""

import io
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from conftest import noise
from recordings import write_av

from s2f.audio import SAMPLE_RATE

HOURS, MEGABYTES = 3, 700  # over what a recording of a minute takes
# Of all processes of a command, workers too: of those that were waited for. Not of this one, which
# would have what the tests ever took.
WATCH = """
import ctypes, os, resource, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
done = subprocess.run([sys.executable, "-m", "s2f", *sys.argv[1:]], capture_output=True, text=True)
assert done.returncode == 0, done.stderr
try:
    while True:
        os.wait()
except ChildProcessError:
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


def write_wav(path: Path, minutes: int) -> Path:
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "PCM_16") as file:
        for k in range(minutes):
            file.write(noise(60, seed=k % 3))
    return path


def write_m4a(path: Path, minutes: int) -> Path:
    """Encode a minute, and repeat its packets, which last a little longer."""
    rate = 44_100
    times = np.arange(60 * rate) / rate
    minute = np.interp(times, np.arange(60 * SAMPLE_RATE) / SAMPLE_RATE, noise(60))
    write_av(path, minute.astype(np.float32)[:, None], rate=rate)
    with av.open(io.BytesIO(path.read_bytes())) as source, av.open(str(path), "w") as target:
        sound = source.streams.audio[0]
        packets = [bytes(packet) for packet in source.demux(sound) if packet.size]
        stream = target.add_stream_from_template(sound)
        for k in range(minutes * len(packets)):
            packet = av.Packet(packets[k % len(packets)])
            packet.pts = packet.dts = 1024 * k
            packet.duration, packet.time_base, packet.stream = 1024, Fraction(1, rate), stream
            target.mux(packet)
    return path


def peak(*command: object) -> float:
    """Megabytes of the largest process of a command."""
    words = [sys.executable, "-c", WATCH, *map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.reliability
@pytest.mark.timeout(3600)
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak")
@pytest.mark.parametrize("write", [write_wav, write_m4a])
def test_three_hours_take_no_more_memory_than_their_samples(tmp_path, write):
    suffix = write.__name__.removeprefix("write_")
    short, long = (write(tmp_path / f"{n}.{suffix}", n) for n in (1, 60 * HOURS))
    for command, out in (
        (("prep", "audio", "--workers", 1), ()),
        (("generate",), ("-o", tmp_path / "a.png", "--overwrite")),
    ):
        peaks = []
        for path in (short, long):
            place = out or (tmp_path / f"{path.name}-out",)
            peaks.append(peak(*command, path, *place))
        print(f"{' '.join(map(str, command[:2]))}, {suffix}: {peaks[0]:.0f} and {peaks[1]:.0f} MB")
        assert peaks[1] - peaks[0] < MEGABYTES
    (made,) = (tmp_path / f"{long.name}-out").glob("*.npy")
    assert 0 <= len(np.load(made, mmap_mode="r")) / SAMPLE_RATE - 3600 * HOURS < 10
