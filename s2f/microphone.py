"""Microphone -> waveform.

Needs the optional package sounddevice, and PortAudio, which it comes with except on Linux.
"""

import contextlib
import math
from typing import Any

import numpy as np

from s2f.decoding import FloatArray, Waveform
from s2f.errors import DependencyError, DeviceError, UsageError
from s2f.runtime import Progress, silent

MIN_SECONDS, MAX_SECONDS = 0.5, 600.0
_BLOCK_SECONDS = 0.1  # so that Ctrl-C does not wait long


def record(seconds: float, *, progress: Progress = silent) -> Waveform:
    """Record from the default input device, at that device's own rate.

    Where the computer cannot keep up, the device drops samples: what is there is joined, and
    recorded until it lasts `seconds`.

    Args:
        seconds: of sound, 0.5 to 600.
        progress: what to report to, in seconds.

    Returns:
        Mono, float32 of -1..1.

    Raises:
        UsageError: if `seconds` is out of range.
        DependencyError: if sounddevice or PortAudio is not installed.
        DeviceError: if there is no input device, or it refuses to record.
    """
    check_seconds(seconds)
    sounddevice = _sounddevice()
    try:
        return _record(sounddevice, seconds, progress)
    # ValueError is what sounddevice says of a default device that has no input.
    except (sounddevice.PortAudioError, ValueError) as error:
        raise DeviceError(
            f"no sound can be recorded: {error}",
            hint="connect a microphone, and choose it in the system's sound settings",
        ) from error


def check_seconds(seconds: float) -> None:
    """Raise a `UsageError` if so many are not recorded."""
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        message = f"{seconds:g} s are to be recorded; wanted {MIN_SECONDS:g} to {MAX_SECONDS:g}"
        raise UsageError(message, hint="6 s are one clip of speech")


def _record(sounddevice: Any, seconds: float, progress: Progress) -> Waveform:
    device = sounddevice.query_devices(kind="input")
    rate = round(device["default_samplerate"])
    n, block, total = round(seconds * rate), round(_BLOCK_SECONDS * rate), math.ceil(seconds)
    samples: FloatArray = np.empty(n, np.float32)
    stream = sounddevice.InputStream(samplerate=rate, channels=1, dtype="float32")
    what = f"recording from {device['name']}"
    with contextlib.closing(stream):  # also when it does not start, which `with stream` leaves open
        stream.start()
        for start in range(0, n, block):
            progress(start // rate, total, what)
            piece, _ = stream.read(min(block, n - start))  # the other: whether samples were dropped
            samples[start : start + block] = piece[:, 0]
    progress(total, total, what)
    return Waveform(samples, rate)


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise DependencyError(
            "recording needs the package sounddevice, which is not installed",
            hint="pip install 's2f[record]'",
        ) from error
    except OSError as error:
        raise DependencyError(
            f"recording needs PortAudio, which cannot be loaded ({error})",
            hint="install it: on Debian and Ubuntu, apt install libportaudio2",
        ) from error
    except Exception as error:  # a PortAudioError, whose class is lost with the module
        raise DeviceError(
            f"the sound system of this machine cannot be used: {error}",
            hint="record with another program, and give the file",
        ) from error
    return sounddevice
