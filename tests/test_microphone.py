"""Tests of s2f.audio, with a module in the place of sounddevice.

Assumed of the real one, as its source of version 0.5.6 has it: importing it raises OSError without
PortAudio. `query_devices(kind="input")` gives a dict with `name` and `default_samplerate`, a float;
it raises PortAudioError where there is no device and ValueError where the default one has no input.
`InputStream(samplerate, channels, dtype)` opens, `start` starts and `close` also stops.
`read(n)` waits for n frames and returns them as [n c] with whether some were dropped before them.
"""

import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from s2f import audio
from s2f.audio import record
from s2f.errors import DependencyError, DeviceError, UsageError


class PortAudioError(Exception):
    pass


class Stream:
    """Counts the samples that were asked for, and gives them these numbers."""

    def __init__(self, rate: float, calls: list[str], fail: dict[str, BaseException]) -> None:
        self.rate, self.calls, self.fail, self.position = rate, calls, fail, 0

    def __call__(self, samplerate: float, channels: int, dtype: str) -> "Stream":
        self._call("open")
        assert (samplerate, channels, dtype) == (self.rate, 1, "float32")
        return self

    def start(self) -> None:
        self._call("start")

    def read(self, frames: int) -> tuple[np.ndarray, bool]:
        if self.position >= self.rate:
            self._call("read")
        assert frames > 0
        data = np.arange(self.position, self.position + frames, dtype=np.float32)
        self.position += frames
        return data[:, np.newaxis] / np.float32(2**24), self.position > self.rate / 2

    def close(self) -> None:
        self.calls.append("close")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fail:
            raise self.fail[name]


def pretend(
    monkeypatch: pytest.MonkeyPatch, rate: float = 44_100.0, **fail: BaseException
) -> list[str]:
    """Install a sounddevice; return the list of what will be called."""
    calls: list[str] = []
    fake = types.ModuleType("sounddevice")

    def query_devices(device: int | None = None, kind: str | None = None) -> dict[str, object]:
        assert (device, kind) == (None, "input")
        if "query" in fail:
            raise fail["query"]
        return {"name": "USB microphone", "default_samplerate": rate, "max_input_channels": 1}

    fake.PortAudioError = PortAudioError
    fake.query_devices = query_devices
    fake.InputStream = Stream(rate, calls, fail)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return calls


@pytest.mark.parametrize("rate", [16_000.0, 44_100.0, 48_000.0])
@pytest.mark.parametrize("seconds", [0.5, 1, 2.345])
def test_the_samples_of_the_device_are_recorded_in_a_row(monkeypatch, rate, seconds):
    """Also where the device dropped some, which it says of the second half second."""
    calls = pretend(monkeypatch, rate)
    waveform = record(seconds)
    assert waveform.rate == rate and isinstance(waveform.rate, int)
    assert waveform.samples.dtype == np.float32
    expected = np.arange(round(seconds * rate)) / 2**24
    np.testing.assert_array_equal(waveform.samples, expected.astype(np.float32))
    assert calls[:2] == ["open", "start"] and calls[-1] == "close"


def test_what_is_recorded_is_speech(monkeypatch):
    pretend(monkeypatch)
    with audio.open_speech(record(2)) as speech:
        assert speech.n_samples == 32_000


def test_progress_is_told_in_seconds(monkeypatch):
    pretend(monkeypatch)
    told = []
    record(2.5, progress=lambda *now: told.append(now))
    assert [done for done, _, _ in told] == [0] * 10 + [1] * 10 + [2] * 5 + [3]
    assert {now[1:] for now in told} == {(3, "recording from USB microphone")}


@pytest.mark.parametrize("seconds", [0.49, 0, -1, 600.1, float("nan"), float("inf")])
def test_too_short_or_too_long_is_refused_before_anything_is_opened(monkeypatch, seconds):
    calls = pretend(monkeypatch)
    with pytest.raises(UsageError, match=r"wanted 0\.5 to 600"):
        record(seconds)
    assert not calls


def test_without_the_package_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(DependencyError, match="needs the package sounddevice") as caught:
        record(1)
    assert caught.value.hint == "pip install 's2f[record]'"


def test_without_portaudio_the_cure_is_named(monkeypatch, tmp_path):
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(DependencyError, match=r"\(PortAudio library not found\)") as caught:
        record(1)
    assert caught.value.hint and "apt install libportaudio2" in caught.value.hint


def test_a_sound_system_that_does_not_start_is_named(monkeypatch, tmp_path):
    """PortAudio is started by the import, which fails then with an exception of the module."""
    code = "class PortAudioError(Exception): pass\nraise PortAudioError('Host error')\n"
    (tmp_path / "sounddevice.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(DeviceError, match="cannot be used: Host error"):
        record(1)


@pytest.mark.parametrize("at", ["query", "open", "start", "read"])
@pytest.mark.parametrize("kind", [PortAudioError, ValueError])
def test_a_device_that_is_not_there_or_refuses_is_named_and_closed(monkeypatch, at, kind):
    calls = pretend(monkeypatch, **{at: kind("Device unavailable [PaErrorCode -9985]")})
    with pytest.raises(DeviceError, match="no sound can be recorded: Device unavailable") as caught:
        record(2)
    assert caught.value.hint
    assert ("close" in calls) is (at in ("start", "read"))


def test_ctrl_c_closes_the_stream(monkeypatch):
    calls = pretend(monkeypatch, read=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        record(5)
    assert calls == ["open", "start", "read", "close"]


def test_the_module_imports_neither_sounddevice_nor_torch():
    code = "import sys, s2f.audio; print({'sounddevice', 'torch'} & set(sys.modules))"
    run = [sys.executable, "-c", code]
    done = subprocess.run(
        run, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout == "set()\n"
