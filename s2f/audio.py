"""Any recording -> mono at 16 kHz -> what sounds of it, at the loudness of training -> clips.

libsndfile decodes what it knows, FFmpeg the rest. `hear` listens before anything is embedded: what
it finds wrong with a recording that can be used all the same is in its remarks. Sound is held in
memory whole, 230 MB an hour; more than `MAX_HOURS` are refused.
"""

import contextlib
import io
import itertools
import math
import os
import re
import struct
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from s2f import files
from s2f.console import Progress, silent
from s2f.device import give_memory_back
from s2f.errors import (
    AudioError,
    DatasetError,
    DependencyError,
    DeviceError,
    OutputError,
    UsageError,
)

SAMPLE_RATE = 16_000  # Hz: of every waveform, once a recording is read
FRAME_SAMPLES = SAMPLE_RATE // 100  # 10 ms: what powers are measured in; no front end's hop
LOUDNESS_DBFS = -23.0  # RMS
SILENCE_DBFS = -90.0  # RMS: below the quantisation noise of 16-bit audio
PEAK = 2.0  # of a stored waveform of -1..1: what resampling may add, and more
PLAIN_POWER = 1e-4  # mean square, -40 dBFS: speech is louder, pauses hardly are
MIN_SECONDS, MAX_RECORDED_SECONDS = 0.5, 600.0
MAX_HOURS = 4.0  # of a recording, or of the part of it that is wanted
UNTOLD_HOURS = 2.0  # that are held, 460 MB, of what does not say that it has more

PAUSE_SECONDS, MARGIN_SECONDS = 2.0, 0.25  # a silence so long is no speech, but for its ends
PAUSE_DB = 30.0  # below the loudest second: silence
NOISE_DB, CLEAR_DB = 6.0, 10.0  # so near the quietest tenth too, if that is so far below speech
EVENT_DB = 20.0  # by so much some sound is louder than all beside it: no part of the speech
FAINT_DB = 50.0  # and by so much it is the speech, and all beside it its room
POP_DB = 18.0  # above the mean, a frame counts as no louder
STEADY_DB = 4.0  # speech rises and falls by more
ANTIPHASE_DB, ANTIPHASE_SHARE = 20.0, 0.05  # the mix so far below a channel, in so much of it
WILD, WILD_SHARE = 32.0, 0.01  # +30 dB over full scale: no sound, but damage or no -1..1
GAP_SECONDS, LOST_CLOCK_SECONDS = 0.1, 3600.0  # less is jitter; more in all is no clock

RECORDING_SUFFIXES = frozenset(
    ".wav .wave .bwf .rf64 .w64 .flac .ogg .oga .spx .mp3 .mp2 .mp1 .mpga .m4a .m4b .aac .adts "
    ".opus .weba .webm .mka .mp4 .m4v .mkv .mov .qt .avi .divx .3gp .3g2 .wma .wmv .asf .mpg .mpeg "
    ".ts .mts .m2ts .flv .f4v .vob .ogv .aif .aiff .aifc .amr .awb .caf .au .snd .sph .nist .voc "
    ".ac3 .eac3 .wv .tta .ape".split()
)

# FFmpeg would also open playlists (ffconcat, m3u8), which make it read other files of this machine.
_AV_FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,"
    "nistsphere,ogg,tta,voc,w64,wav,wv"
)
# Those with timestamps, and those whose header tells their length: of others FFmpeg makes them up.
_HAVE_CLOCK = frozenset("mov matroska mpegts mpeg asf avi flv ogg".split())
_TELL_LENGTH = frozenset("mov matroska asf avi flac flv caf wav aiff w64 wv tta ape mp3".split())
# Where a packet's header tells its size: of these, FFmpeg decodes half a packet, and says nothing.
_TELL_SIZE = {"mp1": slice(3), "mp2": slice(3), "mp3": slice(3), "mp3float": slice(3)}
_TELL_SIZE |= {"ac3": slice(4, 5), "eac3": slice(2, 4)}
_BLOCK_VALUES = 1 << 16  # that are treated at once, all channels together
# What follows an ID3 tag that is not the file's own.
_AFTER_ID3 = frozenset(
    b"RIFF RIFX RF64 FORM fLaC OggS caff #!AM riff wvpk TTA1 .snd \x1aE\xdf\xa3".split()
)
# FFmpeg's weights of channels in mono (swresample's rematrix.c): surround, the default, is half.
_MIX = {"FL": 0.5**0.5, "FR": 0.5**0.5, "FLC": 0.5**0.5, "FRC": 0.5**0.5, "FC": 1.0}
_MIX |= {"LFE": 0.0, "LFE2": 0.0}
_SPEAKERS = {6: "FL FR FC LFE BL BR".split(), 8: "FL FR FC LFE BL BR SL SR".split()}
_OGG_PAGE = 27 + 255 + 255 * 255  # bytes, at most
_CHANNELS = 64  # of an array; more is one whose channels come first
_16_BIT = frozenset({"PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW"})  # what FFmpeg decodes to that
_HOUR = 3600 * SAMPLE_RATE
# Of Matroska: IDs of what holds all, of what holds sound, and of what FFmpeg reads as a whole.
_EBML, _SEGMENT, _CLUSTER = (bytes.fromhex(x) for x in ("1a45dfa3", "18538067", "1f43b675"))
_HEADERS = frozenset(
    bytes.fromhex(x)
    for x in ("1254c367", "1c53bb6b", "1654ae6b", "1043a770", "114d9b74", "1549a966", "1941a469")
)
_ELEMENTS = re.compile(b"|".join(map(re.escape, [_SEGMENT, _CLUSTER, *sorted(_HEADERS)])))
# And of what says where headers are, of files within one, such as fonts, and of what these hold.
_SEEK_HEAD, _SEEK, _FILES, _FILE, _FILLED = (
    bytes.fromhex(x) for x in ("114d9b74", "53ac", "1941a469", "61a7", "465c")
)
_MOST_HEADERS, _MOST_ELEMENTS = 8 * 2**20, 2**21
OPEN_SECONDS = 10.0  # of processor time, that FFmpeg may take before it gives a sample
_MOST_PACKETS = 1 << 23  # of MP4: FFmpeg holds 35 bytes of each in memory; 12 h of film have 5e6
# In the header of an MP4, how many packets a track has, or a fragment, how many parts of them are
# played, and how many packets last how long: one entry, and one sample of PCM.
_PACKETS = re.compile(rb"st(?:sz|z2).{8}(.{4})|trun.{4}(.{4})", re.DOTALL)
_EDITS = re.compile(rb"elst.{4}(.{4})", re.DOTALL)
_LASTS = re.compile(rb"stts.{4}(.{4}).{4}(.{4})", re.DOTALL)
_ONE_SAMPLE = (b"\0\0\0\1", b"\0\0\0\1")
_RATES = range(4_000, 768_001)  # Hz; a false 1 Hz would resample to 16,000 times the file's size
_RECORDING = "a recording such as WAV, FLAC, OGG, MP3 or M4A, or a video with sound"
_SAVE_AGAIN = "Play it to check it, then save it again as WAV."

FloatArray = npt.NDArray[np.float32]


class Waveform(NamedTuple):
    """Sound that is an array already: of a microphone, or of other Python code."""

    samples: npt.NDArray[Any]  # [n] or [n c]: of about -1..1, or integers of their type's range
    rate: int  # samples a second


def find_recordings(
    paths: Sequence[Path], *, passed_over: files.PassedOver | None = None
) -> list[Path]:
    """List the recordings among files and folders; raises an `AudioError` as `files.find_files`."""
    return files.find_files(paths, is_recording, "recordings", AudioError, passed_over=passed_over)


def is_recording(name: str) -> bool:
    """Tell by a file's name whether it is a recording, or a video with sound."""
    return files.suffix(name).lower() in RECORDING_SUFFIXES


def is_voice(name: str) -> bool:
    """Tell by a file's name whether it is a recording, or an array made of one."""
    from s2f.layout import is_array  # who only reads recordings needs no trees

    return is_recording(name) or is_array(name)


@dataclass(eq=False)
class Heard:
    """Speech, and what was found in the recording that it is of."""

    waveform: FloatArray = field(default_factory=lambda: np.empty(0, np.float32))  # [n], 16 kHz
    seconds: float = 0.0  # that were decoded, by the player's clock
    declared: float = 0.0  # seconds that the file says it has, 0 if it does not
    silence: float = 0.0  # seconds of pauses that are not in the waveform
    constant: float = 0.0  # a mean of the samples that was taken off, of full scale
    track: int = 1  # of the sound tracks, that is heard
    tracks: int = 1
    channel: int | None = None  # the one that is heard, from 1, as the mix cancels; None for all
    damaged: bool = False  # whether some of it could not be decoded
    is_cut: bool = False  # whether FFmpeg found the end of its track to be half a packet
    wild: int = 0  # samples far beyond full scale, which are silenced
    events: float = 0.0  # seconds that are far louder than the speech beside them
    is_steady: bool = False  # whether its loudness hardly changes
    is_16_bit: bool = False  # decoded to integers of 16 bits, as FFmpeg does

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is to be said of it, a short sentence each; nothing of most recordings."""
        told = []
        if self.tracks > 1:
            told.append(f"sound track {self.track} of {self.tracks} is heard")
        if self.channel:
            told.append(f"its channels cancel each other: channel {self.channel} alone is heard")
        if self.declared - self.seconds > max(0.5, 0.02 * self.declared):
            told.append(f"only {self.seconds:.1f} of {self.declared:.1f} s can be decoded")
        elif self.damaged:
            told.append(f"is damaged: what can be decoded of its {self.seconds:.1f} s is heard")
        if self.wild:
            told.append(f"samples far beyond full scale are silenced: {self.wild}")
        if self.constant:
            told.append(f"a constant of {self.constant:.2g} (DC) is taken off")
        if self.silence:
            told.append(f"{self.silence:.1f} s of silence are left out")
        if self.events >= 0.5:
            told.append(f"{self.events:.1f} s are far louder than the speech: beeps or laughter")
        if self.is_steady:
            told.append("its loudness hardly changes: this may be noise, and no voice")
        return tuple(told)


def read_speech(source: Path | BinaryIO | Waveform, **options: Any) -> FloatArray:
    """Return the waveform [n] that `hear` hears, with its options."""
    return hear(source, **options).waveform


def hear(
    source: Path | BinaryIO | Waveform,
    *,
    name: str | None = None,
    start: float = 0.0,
    duration: float | None = None,
    trim_silence: float | None = None,
    track: int | None = None,
    as_recorded: bool = False,
) -> Heard:
    """Hear the speech of a recording or a video of any format: mono [n] at 16 kHz, n >= 8,000.

    It is heard at an RMS of -23 dBFS, clipped at full scale, or `as_recorded` (then about -1..1).
    A stream that cannot seek is copied to a temporary file first. Error messages call it `name`.
    Only the part from `start` that lasts `duration` is wanted, seconds rounded to 10 ms by the
    clock of a player, for which a gap in the sound lasts; what comes after it is not read. Frames
    of 10 ms more than `trim_silence` dB below the loudest one are cut from both ends of it.

    What is heard, and told in the remarks:

    - Of several sound tracks `track`, from 1, or the first that sounds.
    - The mean of the channels, or FFmpeg's mix of more than two. Where that lies 20 dB below the
      loudest channel (antiphase) in a twentieth of the sound or more, this channel alone.
    - What sounds: of pauses of 2 s or more only the 0.25 s at their ends. Silent are frames 30 dB
      below the loudest second, and those within 6 dB of the quietest tenth if this lies 10 dB or
      more below the loudest second. Louder frames that last less than 50 ms in 250 are clicks.
      What is 20 dB louder than all beside it, and no longer, is an event, and not the loudest.
    - Without a constant (DC) of a tenth of its RMS or more, or what it drifts by.
    - Its RMS is that of all samples that are heard, but a frame counts for no more than 18 dB above
      it, if that makes 0.5 dB: a pop. Speech without any of these is measured as the source says.
    - What can be decoded of damaged and cut-off files. Samples of more than 32 times full scale are
      silenced.

    Raises a `UsageError` if the part makes no sense; an `AudioError` if it is missing, no regular
    file, empty, no sound or NaN, if there is no such track, if more than one sample in a hundred is
    beyond 32 times full scale, if it ends before `start`, if it lasts longer than `MAX_HOURS` or
    says so, and no `duration` is given, or if what sounds lasts less than 0.5 s or is silence to 16
    bits, below -90 dBFS; and an `OutputError` if there is no room for the copy of a stream.

    Source: `ffmpeg-normalize -nt rms -t -23`, which the seed applies: FFmpeg's filter astats over
        all samples in double precision, to 6 decimals of a dB and with 16-bit samples divided by
        32767; then its filter volume in single precision, no limiter. `to_int16` of sound that is
        mono at 16 kHz has its very samples; other sound is measured after it became that.
    """
    check_part(start, duration, trim_silence, track)
    name = name or (str(source) if isinstance(source, Path) else "the recording")
    first, stop = round(start * 100) * FRAME_SAMPLES, sys.maxsize
    if duration is not None:
        stop = first + round(duration * 100) * FRAME_SAMPLES

    def listen(heard: Heard) -> Heard:
        return _listened(heard, name, start, trim_silence, as_recorded)

    return _read(source, name, first, stop, track, listen)


def hear_beginnings(
    source: Path | BinaryIO | Waveform, moments: Sequence[float], *, name: str | None = None
) -> list[Heard | AudioError]:
    """Hear the first so many seconds of a recording, or what is wrong with them, for each of some.

    As `hear` with each as its `duration`, but it is decoded once, and so the track and the channel
    that are heard are those of the longest.
    """
    name = name or (str(source) if isinstance(source, Path) else "the recording")
    stops = [round(moment * 100) * FRAME_SAMPLES for moment in moments]

    def listen(heard: Heard) -> Heard:
        if heard.tracks > 1:  # or it is not the one that is heard
            whole = _listened(replace(heard, waveform=heard.waveform.copy()), name)
            heard.is_steady = whole.is_steady
        return heard

    try:
        whole = _read(source, name, 0, max(stops), None, listen)
    except AudioError as error:
        return [error for _ in moments]
    found: list[Heard | AudioError] = []
    for stop in stops:
        heard = replace(whole, waveform=whole.waveform[:stop].copy())
        if stop < len(whole.waveform):
            heard.seconds, heard.declared = stop / SAMPLE_RATE, 0.0
        try:
            found.append(_listened(heard, name))
        except AudioError as error:
            found.append(error)
    return found


def _listened(
    heard: Heard,
    name: str,
    start: float = 0.0,
    trim_silence: float | None = None,
    as_recorded: bool = False,
) -> Heard:
    """Make of what was decoded what `hear` gives."""
    waveform = heard.waveform
    with np.errstate(invalid="ignore"):  # inf - inf
        powers = _powers(heard, name)
    _check_length(waveform, name, start)
    if trim_silence is not None:
        loud = np.flatnonzero(powers >= powers.max() * 10 ** (-trim_silence / 10))
        waveform = waveform[loud[0] * FRAME_SAMPLES : (loud[-1] + 1) * FRAME_SAMPLES]
        powers = powers[loud[0] : loud[-1] + 1]
    waveform, powers = _without_pauses(heard, waveform, powers)
    _check_length(waveform, name, start, " without its silence")
    power = _power(heard, powers, len(waveform))
    if power < 10 ** (SILENCE_DBFS / 10):
        found = f"holds only silence (RMS below {SILENCE_DBFS:g} dBFS)"
        raise _unusable(name, found, "speech", "Check the microphone and record again.")
    if not as_recorded:
        rms = math.sqrt(power) * (32768 / 32767 if heard.is_16_bit else 1)
        gain = np.float32(10 ** ((LOUDNESS_DBFS - round(20 * math.log10(rms), 6)) / 20))
        np.clip(np.multiply(waveform, gain, out=waveform), -1.0, 1.0, out=waveform)
    heard.waveform = waveform
    return heard


def check_part(
    start: float = 0.0,
    duration: float | None = None,
    trim_silence: float | None = None,
    track: int | None = None,
) -> None:
    """Raise a `UsageError` if `hear` takes no such part of a recording."""
    if not 0 <= start < math.inf:
        message = f"speech is to start at {start:g} s; wanted 0 s or later"
        raise UsageError(message, hint="leave it out to start at the beginning")
    if duration is not None and not MIN_SECONDS <= duration < math.inf:
        message = f"speech is to last {duration:g} s; wanted {MIN_SECONDS:g} s or more"
        raise UsageError(message, hint="leave it out to use all of a recording")
    if duration is not None and duration > MAX_HOURS * 3600:
        message = f"speech is to last {duration:g} s; wanted {MAX_HOURS * 3600:g} s or less"
        raise UsageError(message, hint=f"at most {MAX_HOURS:g} h are heard at once")
    if trim_silence is not None and not 0 < trim_silence < math.inf:
        message = f"silence is to be trimmed {trim_silence:g} dB below the loudest frame"
        raise UsageError(f"{message}; wanted more than 0 dB", hint="60 is usual")
    if track is not None and track < 1:
        message = f"sound track {track} is to be heard; wanted 1 or more"
        raise UsageError(message, hint="leave it out to hear the first that sounds")


def clips(waveform: npt.NDArray[Any], clip_samples: int) -> list[npt.NDArray[Any]]:
    """Cut speech [n], n >= 1, into clips [clip_samples], one or more, which are views of it.

    Shorter speech is looped. Longer speech gives consecutive clips; a rest of half a clip or more
    becomes a clip too, filled with the speech before it, and a shorter rest is dropped.
    """
    n = len(waveform)
    if n < clip_samples:
        return [np.resize(waveform, clip_samples)]
    starts = list(range(0, n - clip_samples + 1, clip_samples))
    if 2 * (n % clip_samples) >= clip_samples:
        starts.append(n - clip_samples)
    return [waveform[start : start + clip_samples] for start in starts]


def map_waveform(path: Path) -> npt.NDArray[Any]:
    """Map a stored waveform [n], n >= 8,000, int16 or floating point, or raise a `DatasetError`.

    Its samples are not looked at; `check_waveform` does that.
    """
    samples: npt.NDArray[Any] = files.read_array(path, mmap=True)
    known = samples.dtype in (np.int16, np.float16, np.float32, np.float64)
    if samples.ndim != 1 or not known:
        found = f"{path}: holds {samples.dtype} values {list(samples.shape)}"
        hint = "save it as int16 or float32, one channel, 16 kHz"
        raise DatasetError(f"{found}; wanted a waveform [n], int16 or floating point", hint=hint)
    if len(samples) < MIN_SECONDS * SAMPLE_RATE:
        found = f"{path}: lasts {len(samples) / SAMPLE_RATE:.2f} s"
        raise DatasetError(f"{found}; wanted {MIN_SECONDS:g} s or more", hint="leave it out")
    return samples


def check_waveform(samples: npt.NDArray[Any], name: str, *, most: int = sys.maxsize) -> None:
    """Raise a `DatasetError` unless a stored waveform [n] holds sound of -1..1.

    That is if a sample is not finite or beyond `PEAK`, or if it is silent: less than 0.5 s of it
    sound, or a quarter of a shorter one than 2 s. Of one that is longer than `most` samples so many
    from its middle are looked at, and all if these are no plain sound.
    """
    n = len(samples)
    if n > most:
        first = (n - most) // 2
        if is_plain(samples[first : first + most]):
            return
    found, hint = "", "leave it out, or make it again"
    powers = np.empty(0)
    with np.errstate(over="ignore", invalid="ignore"):  # which is what is looked for
        powers = stored_powers(samples)
        if samples.dtype != np.int16:
            peak = float(max(samples.max(), -samples.min()))
            if not math.isfinite(peak):
                found = "holds samples that are NaN or infinite"
            elif peak > PEAK:
                found = f"holds samples of up to {peak:.6g}; wanted -1 to 1"
                hint = "divide by 32768 what came from 16-bit integers, and save it again"
    if not found:
        heard = np.count_nonzero(sounding(powers)) * FRAME_SAMPLES
        if powers.sum() < n * 10 ** (SILENCE_DBFS / 10):
            found = f"holds only silence (below {SILENCE_DBFS:g} dBFS); wanted speech"
        elif heard < (least := least_sound(n)):
            found = f"holds hardly any sound: {heard / SAMPLE_RATE:.2f} of {n / SAMPLE_RATE:.1f} s"
            found += f"; wanted {least / SAMPLE_RATE:.2g} s or more"
    if found:
        raise DatasetError(f"{name}: {found}", hint=hint)


def least_sound(n: int) -> int:
    """Tell how many of n samples have to sound so that they are not silent."""
    return min(round(MIN_SECONDS * SAMPLE_RATE), n // 4)


def is_plain(samples: npt.NDArray[Any]) -> bool:
    """Tell whether a stretch [n] of a stored waveform surely is sound of -1..1, at a quick look.

    Of which 0.5 s, or a quarter of a shorter one, are not below -40 dBFS.
    """
    n = min(len(samples), FRAME_SAMPLES * 10)
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.asarray(samples, np.float32)
        frames = values[: len(values) // n * n].reshape(-1, n)
        powers = np.einsum("ij,ij->i", frames, frames) / n
        if samples.dtype == np.int16:
            powers /= 32768.0**2
        at_most_1 = float(powers.sum()) < len(powers)  # not with one NaN or 1e30
    loud = int(np.count_nonzero(powers > PLAIN_POWER))
    return at_most_1 and loud >= max(1, min(5, len(powers) // 4))


def stored_powers(samples: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the sums of the squares of each 10 ms of a stored waveform, but for a rest."""
    n = len(samples) // FRAME_SAMPLES
    powers = np.empty(n)
    for first in range(0, n, 400):
        part = samples[first * FRAME_SAMPLES : min(n, first + 400) * FRAME_SAMPLES]
        frames = part.reshape(-1, FRAME_SAMPLES).astype(np.float32)
        powers[first : first + 400] = np.einsum("ij,ij->i", frames, frames)
    return powers / 32768.0**2 if samples.dtype == np.int16 else powers


def sounding(powers: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Tell which frames of 10 ms sound, by the sums of their squares: what `hear` calls silent."""
    levels = _levels(powers, 10)
    speech, quiet = _speech_level(powers, levels)[0], _quiet(levels)
    limit = speech - PAUSE_DB
    if quiet <= speech - CLEAR_DB:
        limit = max(limit, quiet + NOISE_DB)
    loud = _average(powers > FRAME_SAMPLES * 10 ** (limit / 10), 25) * 25 >= 5
    sounds: npt.NDArray[np.bool_] = loud & (levels > limit)
    return sounds


def _speech_level(
    powers: npt.NDArray[np.float64], levels: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """Return the level of the loudest second, dBFS, or of the loudest beside mere events.

    And how many seconds these last. Beeps, slams and laughter are events: what is 20 dB louder than
    any second without them, and lasts no longer than what sounds beside them. That lies 20 to 50 dB
    below the loudest second, and 10 dB above the quietest tenth, so that it is no pause. `levels`
    are those of 10 frames around each.
    """
    loudest = float(_levels(powers, 100).max())
    loud = levels > loudest - EVENT_DB
    beside = _average(loud, 100) == 0  # the middles of seconds without
    # Anew: of hours they take 3 MB each, of which there are few at a time.
    speech = float(_levels(powers, 100).max(where=beside, initial=-math.inf))
    if not EVENT_DB < loudest - speech < FAINT_DB or speech - _quiet(levels) <= CLEAR_DB:
        return loudest, 0.0
    lasts = np.count_nonzero(levels[~loud] > speech - CLEAR_DB)
    n_events = np.count_nonzero(levels > speech + CLEAR_DB)
    return (speech, n_events / 100) if n_events <= lasts else (loudest, 0.0)


def _quiet(levels: npt.NDArray[np.float64]) -> float:
    """Return the level that the quietest tenth is below, of all that is no digital silence."""
    levels = levels[levels > SILENCE_DBFS]
    return float(np.percentile(levels, 10)) if len(levels) else -math.inf


def _levels(powers: npt.NDArray[np.float64], frames: int) -> npt.NDArray[np.float64]:
    """Average over so many frames around each, dBFS."""
    levels = _average(powers, frames)
    levels /= FRAME_SAMPLES
    levels += 1e-20
    np.log10(levels, out=levels)
    levels *= 10
    return levels


def _average(values: npt.NDArray[Any], frames: int) -> npt.NDArray[np.float64]:
    n, before, after = len(values), frames // 2, -(-frames // 2)
    means = np.empty(n)
    sums, known = np.zeros(1), 0  # of all values before each of those from `known` - its length on
    for start in range(0, n, _BLOCK_VALUES):  # sums of all of them would be as large as the means
        stop = min(n, start + _BLOCK_VALUES)
        more = values[known : stop + after]
        sums = np.concatenate([sums[:-1], np.cumsum(np.concatenate([sums[-1:], more]))])
        known += len(more)
        sums = sums[max(0, len(sums) - 1 - known + start - before) :]
        offset = known + 1 - len(sums)
        at = np.arange(start, stop)
        first, last = np.maximum(at - before, 0), np.minimum(at + after, n)
        means[at] = (sums[last - offset] - sums[first - offset]).clip(0.0) / (last - first)
    return means


def clips_that_sound(waveform: npt.NDArray[Any], clip_samples: int) -> list[npt.NDArray[Any]]:
    """Cut a stored waveform [n] as `clips` does, and leave out what is silent.

    That is of which less than 0.5 s sound, or a quarter of a shorter clip than 2 s. Where all are,
    those of which most sounds are kept.
    """
    frames = sounding(stored_powers(waveform))
    heard = np.resize(np.repeat(frames, FRAME_SAMPLES), len(waveform))
    sounds = [int(part.sum()) for part in clips(heard, clip_samples)]
    least = min(max(sounds), least_sound(clip_samples))
    pieces = zip(clips(waveform, clip_samples), sounds, strict=True)
    return [clip for clip, n in pieces if n >= least]


def to_int16(waveform: FloatArray) -> npt.NDArray[np.int16]:
    """Turn samples of -1..1 into integers of 16 bits: x 32768, rounded half to even, clipped."""
    scaled: FloatArray = np.rint(waveform * np.float32(32768))
    return scaled.clip(-32768, 32767).astype(np.int16)


def _check_length(waveform: FloatArray, name: str, start: float, without: str = "") -> None:
    if (seconds := len(waveform) / SAMPLE_RATE) < MIN_SECONDS:
        where = (f" from {start:g} s on" if start else "") + without
        cure = "Start earlier." if start else "Record a sentence or two."
        wanted = f"{MIN_SECONDS:g} s of speech or more"
        raise _unusable(name, f"lasts {seconds:.2f} s{where}", wanted, cure)


def _powers(heard: Heard, name: str) -> npt.NDArray[np.float64]:
    """Take off a constant; return the sums of the squares of each `FRAME_SAMPLES`, or of the rest.

    Where the means of seconds differ, what is between them is taken off. Raises an `AudioError` for
    samples that are not finite.
    """
    waveform, n = heard.waveform, len(heard.waveform)
    powers, sums = (np.empty(-(-n // FRAME_SAMPLES)) for _ in range(2))
    frames = 400

    def measure() -> None:
        for frame in range(0, len(powers), frames):
            part = waveform[frame * FRAME_SAMPLES : (frame + frames) * FRAME_SAMPLES]
            starts = np.arange(0, len(part), FRAME_SAMPLES)
            squares = np.square(part, dtype=np.float64)
            powers[frame : frame + frames] = np.add.reduceat(squares, starts)
            sums[frame : frame + frames] = np.add.reduceat(part, starts)

    measure()
    if not np.isfinite(powers).all():
        raise _unusable(name, "holds samples that are NaN or infinite", "finite ones")
    power, mean = powers.sum() / n, sums.sum() / n
    means = _average(sums, 100)[50::100] / FRAME_SAMPLES
    if power <= 10 ** (SILENCE_DBFS / 10):
        return powers
    if len(means) > 1 and np.var(means) >= 0.01 * power:
        heard.constant = float(np.abs(means).max())
        places = (np.arange(len(means)) + 0.5) * SAMPLE_RATE
        for first in range(0, n, frames * FRAME_SAMPLES):
            part = waveform[first : first + frames * FRAME_SAMPLES]
            part -= np.interp(np.arange(first, first + len(part)), places, means)
        measure()
    elif mean**2 >= 0.01 * power:
        heard.constant = abs(float(mean))
        waveform -= np.float32(mean)
        measure()
    return powers


def _without_pauses(
    heard: Heard, waveform: FloatArray, powers: npt.NDArray[np.float64]
) -> tuple[FloatArray, npt.NDArray[np.float64]]:
    """Leave out of a waveform, in its place, and of its powers what `hear` calls pauses."""
    n = len(powers)
    sounds, levels = sounding(powers), _levels(powers, 10)
    edges = np.flatnonzero(np.diff(sounds, prepend=False, append=False))
    margin = round(MARGIN_SECONDS * SAMPLE_RATE / FRAME_SAMPLES)
    pause = round(PAUSE_SECONDS * SAMPLE_RATE / FRAME_SAMPLES)
    kept: list[list[int]] = []
    for first, last in edges.reshape(-1, 2):
        if kept and first - kept[-1][1] < pause:
            kept[-1][1] = int(last)
        else:
            kept.append([int(first), int(last)])
    if not kept:  # clicks alone
        kept = [[0, n]]
    if kept[0][0] < pause:  # the ends are no pauses either if they are short
        kept[0][0] = 0
    if n - kept[-1][1] < pause:
        kept[-1][1] = n
    kept = [[max(0, first - margin), min(n, last + margin)] for first, last in kept]
    levels = np.concatenate([levels[first:last] for first, last in kept])
    heard.is_steady = bool(np.ptp(np.percentile(levels, [10, 90])) < STEADY_DB)
    size = 0
    for first, last in kept:
        piece = waveform[first * FRAME_SAMPLES : last * FRAME_SAMPLES]
        if first * FRAME_SAMPLES > size:
            waveform[size : size + len(piece)] = piece
        size += len(piece)
    heard.silence = (len(waveform) - size) / SAMPLE_RATE
    powers = np.concatenate([powers[first:last] for first, last in kept])
    return waveform[:size], powers


def _power(heard: Heard, powers: npt.NDArray[np.float64], n: int) -> float:
    """Return the mean square of n samples, of which no frame counts for a pop or another event."""
    most = FRAME_SAMPLES * 10 ** (POP_DB / 10)
    power = plain = float(powers.sum()) / n
    speech, heard.events = _speech_level(powers, _levels(powers, 10))
    if heard.events:
        powers = np.minimum(powers, most * 10 ** (speech / 10))
        power = float(powers.sum()) / n
    while (capped := float(np.minimum(powers, most * power).sum()) / n) < 0.98 * power:
        power = capped
    return plain if power > 0.9 * plain else power  # less than 0.5 dB is no pop


class _Block(NamedTuple):
    """Samples [n c] as they are in the file, about -1..1."""

    rate: int
    is_16_bit: bool  # decoded to integers of 16 bits, as FFmpeg does
    samples: FloatArray
    speakers: Sequence[str] = ()  # of its channels, where they are known


def _read(
    source: Path | BinaryIO | Waveform,
    name: str,
    start: int,
    stop: int,
    track: int | None,
    listen: Callable[[Heard], Heard],
) -> Heard:
    """Decode the samples from `start` to `stop` at 16 kHz, and listen to them.

    That is to a track, or to the first to which it can be done and which is no steady noise.
    """
    if isinstance(source, Waveform):
        heard = Heard()
        _decode_pieces([source], heard, name, start, stop)
        return listen(heard)
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(source, Path):
                if source.exists() and not source.is_file():  # opening a pipe would wait for ever
                    found = "is a folder" if source.is_dir() else "is not a regular file"
                    raise _unusable(name, found, hint="Name a recording.")
                source = stack.enter_context(source.open("rb"))
            elif not source.seekable():
                source = _copied(source, name, stack)
            if not source.seek(0, io.SEEK_END):
                raise _unusable(name, "is empty (0 bytes)", hint="Copy or record it again.")
            steady, failure = None, None
            for number in itertools.count(track or 1):
                heard = Heard(track=number)
                try:
                    _decode(source, heard, name, start, stop)
                    heard = listen(heard)
                    if track or heard.tracks == 1 or not heard.is_steady:
                        return heard
                    steady = steady or heard
                except AudioError as error:
                    failure = failure or error
                if track or number >= heard.tracks:
                    break
            if steady:
                return steady
            assert failure
            raise failure
    except OSError as error:
        found = f"cannot be read ({error.strerror or error})"
        raise _unusable(name, found, hint="Check its path and its permissions.") from error


def _decode(data: BinaryIO, heard: Heard, name: str, start: int, stop: int) -> None:
    """Decode a track of a file, which may be several recordings in a row."""
    first = _after_id3(data)
    failure = None
    try:
        whole = _Joined(data, name, [(first, sys.maxsize)]) if first else [data]
        _decode_pieces(whole, heard, name, start, stop)
    except AudioError as error:
        failure = error
    if failure or heard.seconds * SAMPLE_RATE < stop:  # else the rest is not even looked at
        size = data.seek(0, io.SEEK_END)  # forgets where a descriptor was that libsndfile moved
        starts = _joints(data, first)
        if len(starts) > 1:
            spans = list(itertools.pairwise([*starts, size]))
            joined = Heard(track=heard.track)
            try:
                _decode_pieces(_Joined(data, name, spans), joined, name, start, stop)
            except AudioError:
                if failure:
                    raise
            if failure or joined.seconds > heard.seconds:  # else they were none
                vars(heard).update(vars(joined))
        elif failure:
            raise failure


def _after_id3(data: BinaryIO) -> int:
    """Return where a file begins that ID3 tags were put before, which are not its own; else 0."""
    start = 0
    while True:
        data.seek(start)
        head = data.read(10)
        if head[:3] != b"ID3" or len(head) < 10:
            return start if head[:4] in _AFTER_ID3 else 0
        a, b, c, d = head[6:]  # of seven bits each; a footer is as long as the header
        start += 10 + (a << 21 | b << 14 | c << 7 | d) + 10 * bool(head[5] & 16)


def _joints(data: BinaryIO, first: int) -> list[int]:
    """Find where recordings of a file begin: the links of a chained Ogg, or FLACs in a row."""
    starts = {first}
    data.seek(first)
    head = data.read(4)
    if head == b"fLaC":
        starts |= {at for at, _ in _found(data, re.compile(rb"fLaC[\x00\x80]\0\0\x22"), 8)}
    elif head == b"OggS":
        pages = _found(data, re.compile(rb"OggS\0(.)", re.DOTALL), 6)
        opens = [(at, bool(page[5] & 2)) for at, page in pages]  # a stream; many may in a row
        starts |= {at for (_, before), (at, now) in itertools.pairwise(opens) if now and not before}
    return sorted(at for at in starts if at >= first)


def _found(
    data: BinaryIO, pattern: re.Pattern[bytes], size: int, place: int = 0
) -> Iterator[tuple[int, bytes]]:
    """Find a pattern of `size` bytes in a file, from a place on."""
    data.seek(place)
    text = b""
    while chunk := data.read(1 << 20):
        text += chunk
        for match in pattern.finditer(text):
            yield place + match.start(), match[0]
        place += len(text) - min(len(text), size - 1)
        text = text[-(size - 1) :]


class _Joined:
    """Recordings in a row in one file; each is copied to a file of its own while it is read."""

    def __init__(self, data: BinaryIO, name: str, spans: Sequence[tuple[int, int]]) -> None:
        self._data, self._name, self._spans = data, name, spans

    def __len__(self) -> int:
        return len(self._spans)

    def __iter__(self) -> Iterator[BinaryIO]:
        for start, stop in self._spans:
            with contextlib.ExitStack() as stack:
                self._data.seek(start)
                yield _copied(self._data, self._name, stack, stop - start)


def _copied(
    stream: BinaryIO, name: str, stack: contextlib.ExitStack, size: int = sys.maxsize
) -> BinaryIO:
    """Copy a stream, or `size` bytes of it, to a file without a name, which the stack closes."""
    file, piece = None, b""
    while file is None or piece:
        try:
            file = file or stack.enter_context(tempfile.TemporaryFile(prefix="s2f-"))
            file.write(piece)
            file.flush()
        except OSError as error:
            why = error.strerror or error
            raise OutputError(
                f"{name} cannot be copied to the folder for temporary files ({why})",
                hint="Free some space there, or set TMPDIR to a folder on a larger disk.",
            ) from error
        size -= len(piece)
        piece = stream.read(min(size, 1 << 20))
    return file


def _decode_pieces(
    pieces: "Sequence[BinaryIO | Waveform] | _Joined",
    heard: Heard,
    name: str,
    start: int,
    stop: int,
) -> None:
    """Decode pieces in a row to mono; where channels cancel each other, once more to one of them.

    libsndfile is asked first. What is none of its formats, or damaged, is for FFmpeg.
    """
    import soundfile

    heard.damaged, heard.is_cut, heard.wild, heard.channel = False, False, 0, None
    tally = _Tally()
    try:
        _fill(pieces, heard, tally, name, start, stop)
    except soundfile.LibsndfileError:
        was_decoding = tally.count > 0
        tally, heard.wild = _Tally(by_ffmpeg=True), 0
        _fill(pieces, heard, tally, name, start, stop)
        heard.damaged |= was_decoding and heard.declared > heard.seconds + 0.02
    if heard.wild > WILD_SHARE * tally.count:
        found = f"holds samples of up to {tally.peak:.6g}"
        raise _unusable(name, found, "-1 to 1", "Divide integers of 16 bits by 32768.")
    if channel := tally.cancelled():
        heard.channel, heard.wild = channel, 0
        _fill(pieces, heard, tally, name, start, stop)


def _fill(
    pieces: "Sequence[BinaryIO | Waveform] | _Joined",
    heard: Heard,
    tally: "_Tally",
    name: str,
    start: int,
    stop: int,
    *,
    is_counted: bool = False,
) -> None:
    """Fill in the mono waveform from `start` to `stop`, and read no further.

    What goes on after its declared length, if it has one, and after `UNTOLD_HOURS`, is counted
    before more of it is held, unless it `is_counted`: what lasts too long takes no more memory.
    """

    def blocks() -> Iterator[_Block]:
        for piece in pieces:
            if isinstance(piece, Waveform):
                yield from _array_blocks(piece, name)
            elif not tally.by_ffmpeg:
                yield from _soundfile_blocks(piece, heard, name)
            else:
                try:
                    yield from _av_blocks(piece, heard, name)
                except AudioError:
                    if len(pieces) == 1:
                        raise
                    heard.damaged = True
            if not isinstance(piece, Waveform) and len(pieces) == 1:
                longer.append(_declared_share(piece))
                heard.damaged |= heard.is_cut or _is_cut_off(piece)

    longer: list[float] = []
    waveform, n_read = bytearray(), 0  # which grows in place: there is no second copy
    n_wild, counts = heard.wild, False
    most = (MAX_HOURS if is_counted else UNTOLD_HOURS) * _HOUR
    for mono in _resampled(blocks(), heard, tally, name):
        declared, read = heard.declared * SAMPLE_RATE, n_read + len(mono)
        if stop == sys.maxsize and max(declared, read) - start > MAX_HOURS * _HOUR:
            found = f"lasts longer than {MAX_HOURS:g} h"
            if declared > read:
                found = f"says that it lasts {declared / _HOUR:.5g} h"
            wanted = f"{MAX_HOURS:g} h at most, as sound is held in memory"
            cure = "Cut it into parts, or give --duration, where that is an option."
            raise _unusable(name, found, wanted, cure)
        if not counts:
            waveform += mono[max(0, start - n_read) : max(0, stop - n_read)].tobytes()
            if stop == sys.maxsize and declared < read - start > most:
                waveform, counts = bytearray(), True
        n_read += len(mono)
        if n_read % _HOUR < len(mono):  # what it grew out of is free
            give_memory_back()
        if n_read >= stop:
            break
    if n_read > _HOUR:  # so is FFmpeg's list of packets
        give_memory_back()
    if counts:  # it is no bomb, and is decoded anew
        heard.wild = n_wild
        vars(tally).update(vars(_Tally(by_ffmpeg=tally.by_ffmpeg)))
        return _fill(pieces, heard, tally, name, start, stop, is_counted=True)
    if not n_read:
        raise _unusable(name, "holds no samples")
    if not waveform:
        found, wanted = f"lasts {n_read / SAMPLE_RATE:.2f} s", f"{start / SAMPLE_RATE:g} s"
        raise _unusable(name, found, f"more than {wanted}, to start there", "Start earlier.")
    heard.waveform, heard.seconds = np.frombuffer(waveform, np.float32), n_read / SAMPLE_RATE
    if n_read >= stop or len(pieces) > 1:
        heard.declared = 0.0  # of which no more was wanted, or of the last piece alone
    elif max(longer, default=1.0) > 1:
        heard.declared = max(longer) * heard.seconds


@dataclass
class _Tally:
    """What decoding finds out of a track, to mix it and to look at the mix."""

    by_ffmpeg: bool = False
    count: int = 0  # of samples, all channels together
    peak: float = 0.0  # of the wild ones
    # Sums over blocks, less their means: of the squares of each channel, of those of the loudest
    # channel, and of the same where the mix lies far below it.
    channels: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(_CHANNELS))
    loudest: float = 0.0
    lost: float = 0.0

    def mono(self, block: _Block, heard: Heard) -> FloatArray:
        """Mix the channels of a block, or choose the one that is to be heard; silence wild ones."""
        samples, n_channels = block.samples, block.samples.shape[1]
        self.count += samples.size
        products = samples.T @ samples  # of channels: one product of matrices for all that follows
        if not (np.trace(products) <= WILD**2 or np.abs(samples).max() <= WILD):
            levels = np.abs(samples)
            wild = np.isfinite(levels) & (levels > WILD)  # others are refused in the end
            if wild.any():
                heard.wild += int(wild.sum())
                self.peak = max(self.peak, float(levels[wild].max()))
                samples = np.where(wild, np.float32(0), samples)
                products = samples.T @ samples
        if n_channels == 1:
            return samples[:, 0]
        if heard.channel:
            return samples[:, min(heard.channel, n_channels) - 1]
        speakers = block.speakers or _SPEAKERS.get(n_channels, ())
        weights = np.array([_MIX.get(speaker, 0.5) for speaker in speakers], np.float32)
        if n_channels <= 2 or not weights.any():
            weights = np.ones(n_channels, np.float32)
        weights /= weights.sum()
        mix: FloatArray = samples @ weights
        if len(mix) and n_channels <= _CHANNELS:
            sums = np.ones(len(mix), np.float32) @ samples
            squares = products.diagonal() - sums**2 / len(mix)
            top = float(squares.max())
            self.channels[:n_channels] += squares
            self.loudest += top
            mixed = float(weights @ products @ weights - (sums @ weights) ** 2 / len(mix))
            if mixed < top * 10 ** (-ANTIPHASE_DB / 10):
                self.lost += top
        return mix

    def cancelled(self) -> int | None:
        """Return the loudest channel, from 1, if the mix loses a twentieth of the sound or more."""
        if self.lost <= ANTIPHASE_SHARE * self.loudest:
            return None
        return int(self.channels.argmax()) + 1


def _resampled(
    blocks: Iterator[_Block], heard: Heard, tally: _Tally, name: str
) -> Iterator[FloatArray]:
    """Yield the mix of the channels at 16 kHz; the rate may change between blocks."""
    import soxr

    is_first = True
    for rate, group in itertools.groupby(blocks, key=lambda block: block.rate):
        if rate not in _RATES:
            wanted = f"{_RATES[0]} to {_RATES[-1]}"
            raise _unusable(name, f"claims {rate} samples a second", wanted)
        stream = None
        if rate != SAMPLE_RATE:
            stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        for block in group:
            if is_first:
                heard.is_16_bit, is_first = block.is_16_bit, False
            with np.errstate(over="ignore", invalid="ignore"):  # inf - inf: `_powers` refuses it
                mono = tally.mono(block, heard)
            yield stream.resample_chunk(mono) if stream else mono
        if stream:
            yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def _soundfile_blocks(data: BinaryIO, heard: Heard, name: str) -> Iterator[_Block]:
    """Yield the blocks of a file that libsndfile knows, else raise a `LibsndfileError`."""
    import soundfile

    data.seek(0)
    if _is_mpeg(data.read(4)):
        # libmpg123 gives the samples that FFmpeg does, and writes what it finds odd to stderr.
        raise soundfile.LibsndfileError(1)
    data.seek(0)
    opened: Any = data
    # While libsndfile calls back for a stream's bytes it would swallow a Ctrl-C or SIGTERM. A file
    # it reads by a descriptor, which needs no name: a page's visitor's has none any more.
    if isinstance(getattr(data, "raw", None), io.FileIO):
        opened = os.dup(data.fileno())
        os.lseek(opened, 0, os.SEEK_SET)
    with soundfile.SoundFile(opened) as file:
        # FFmpeg reads on where nobody came back to write the length, and knows the speakers.
        if not file.frames or file.format == "MP3" or file.channels > 2:
            raise soundfile.LibsndfileError(1)
        if heard.track > 1:
            raise _no_track(name, heard)
        # Of a FLAC from a pipe, which does not say, it is the largest number that there is.
        heard.declared = file.frames / file.samplerate if file.frames < 1 << 48 else 0.0
        n, is_16_bit = max(1, _BLOCK_VALUES // file.channels), file.subtype in _16_BIT
        while len(block := file.read(n, dtype="float32", always_2d=True)):
            yield _Block(file.samplerate, is_16_bit, block)


def _is_mpeg(head: bytes) -> bool:
    return head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0)


def _declared_share(data: BinaryIO) -> float:
    """Return how much longer the sound is by the file's header than it is, 1 or more.

    Of WAV, RF64, W64, AIFF, CAF, AU and SPHERE; of others 1.
    """
    size = data.seek(0, io.SEEK_END)
    data.seek(0)
    head = data.read(1024)
    magic, length = head[:4], 0
    if magic == b".snd" and len(head) >= 12:
        place, length = struct.unpack_from(">II", head, 4)
        data.seek(place)
    elif magic == b"NIST":
        told = {key: int(n) for key, n in re.findall(rb"(\w+) -i (\d+)", head)}
        keys = (b"sample_count", b"channel_count", b"sample_n_bytes")
        length = math.prod(told.get(key, 0) for key in keys)
    elif magic in _CHUNKS:
        first, form, extra, step, names = _CHUNKS[magic]
        data.seek(first)
        while len(chunk := data.read(struct.calcsize(form))) == struct.calcsize(form):
            name, length = struct.unpack(form, chunk)
            length -= extra
            if name in names:
                break
            if not 0 <= length < size:
                return 1.0
            data.seek(-(-length // step) * step, io.SEEK_CUR)
        if magic == b"RF64" and head[12:16] == b"ds64" and len(head) >= 36:
            (length,) = struct.unpack_from("<Q", head, 28)
    there = size - data.tell()
    # Who writes to a pipe writes the largest lengths, or none.
    unknown = length < 0 or 0x7F000000 <= length < 1 << 32 or length >= 1 << 48
    return float(length / there) if 0 < there < length and not unknown else 1.0


# By a file's first bytes: where its first chunk is, the form of the name and length of one, how
# much of the length is these themselves, what it is rounded up to, and the names of the sound's.
_CHUNKS = {
    b"RIFF": (12, "<4sI", 0, 2, {b"data"}),
    b"RIFX": (12, ">4sI", 0, 2, {b"data"}),
    b"RF64": (12, "<4sI", 0, 2, {b"data"}),
    b"FORM": (12, ">4sI", 0, 2, {b"SSND"}),
    b"caff": (8, ">4sq", 0, 1, {b"data"}),
    b"riff": (40, "<4s12xq", 24, 8, {b"data"}),  # W64
}


def _is_cut_off(data: BinaryIO) -> bool:
    """Tell whether a file ends within a page, a packet, a block or an element.

    Of Ogg, MPEG-TS, VOC, AVI and Matroska; of others it is not known here.
    """
    size = data.seek(0, io.SEEK_END)
    data.seek(0)
    head = data.read(64)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return int.from_bytes(head[4:8], "little") + 8 > size + 1
    if head[:4] == b"\x1aE\xdf\xa3":
        place = head.find(b"\x18S\x80g") + 4  # the segment, which all else is in
        if place > 4 and head[place : place + 1] == b"\1":  # its length takes 7 bytes, as usual
            length = int.from_bytes(head[place + 1 : place + 8])
            return size < place + 8 + length < 1 << 48  # all ones: not known
    if head[:1] == b"G" and size > 188 and data.seek(188) and data.read(1) == b"G":
        return size % 188 > 0  # packets of MPEG-TS, of which one begins in 188 begins by chance
    if head[:19] == b"Creative Voice File":
        place, kind = int.from_bytes(head[20:22], "little"), 1
        while kind and place < size:
            data.seek(place)
            block = data.read(4)
            kind = block[0] if block else 0
            place += 4 + int.from_bytes(block[1:], "little") if kind else 1
        return place > size
    if head[:4] == b"OggS":
        data.seek(-min(size, _OGG_PAGE), io.SEEK_END)
        end = data.read()
        page = end[max(0, end.rfind(b"OggS\0")) :]
        n = page[26] if len(page) > 26 else 255
        return len(page) < 27 + n or 27 + n + sum(page[27 : 27 + n]) > len(page)
    return False


def _no_track(name: str, heard: Heard) -> AudioError:
    found = f"has sound tracks: {heard.tracks}"
    return _unusable(name, found, f"track {heard.track}", "Leave --track out, or name another.")


def _av_blocks(data: BinaryIO, heard: Heard, name: str) -> Iterator[_Block]:
    """Yield the blocks of a file, or of the sound track of a video, that FFmpeg knows."""
    import av

    layouts: dict[str, tuple[str, ...]] = {}  # to ask each frame for its speakers is slow

    def kind(item: tuple[int, float, Any]) -> tuple[int, int, str, str]:
        segment, _, frame = item
        layout = frame.layout
        if layout.name not in layouts:
            layouts[layout.name] = tuple(channel.name for channel in layout.channels)
        return segment, frame.sample_rate, layout.name, frame.format.name

    items = _av_frames(data, heard, name)
    for (_, rate, layout, form), group in itertools.groupby(items, key=kind):
        speakers = layouts[layout]
        n_channels = len(speakers)
        block = _Block(
            rate,
            is_16_bit=form in ("u8", "u8p", "s16", "s16p"),
            samples=np.empty((0, n_channels), np.float32),
            speakers=() if "NONE" in speakers else speakers,
        )
        # Arrays of many frames at once are quicker; of 8 planes and more PyAV 18.1 makes none.
        resampler = av.AudioResampler("flt", frame_size=max(1, _BLOCK_VALUES // n_channels))
        for _, gap, frame in itertools.chain(group, [(0, 0.0, None)]):
            for second in np.arange(0, gap) if gap else ():
                n = round(min(1.0, gap - second) * rate)
                yield block._replace(samples=np.zeros((n, n_channels), np.float32))
            try:
                resampled = resampler.resample(frame)
            except av.FFmpegError as error:  # of more than 64
                found = f"holds sound of {n_channels} channels that cannot be converted"
                raise _unusable(name, found) from error
            for joined in resampled:
                packed: Any = joined.to_ndarray()  # [1 n*c]
                yield block._replace(samples=packed.reshape(-1, n_channels))


class _Stream:
    """A file for FFmpeg, which may seek to where a damaged file says, before or behind its ends."""

    def __init__(self, data: BinaryIO) -> None:
        self.tell, self._data = data.tell, data
        self._size = data.seek(0, io.SEEK_END)
        self.is_given_up = False
        data.seek(0)

    def read(self, n: int) -> bytes:
        """Read as a file does, unless nobody waits for it any more."""
        if self.is_given_up:
            raise EOFError
        return self._data.read(n)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Seek within the file, as a file does."""
        offset += {io.SEEK_CUR: self._data.tell(), io.SEEK_END: self._size}.get(whence, 0)
        return self._data.seek(min(max(offset, 0), self._size))


def _check_headers(data: BinaryIO, name: str) -> None:
    """Raise an `AudioError` if a Matroska file or WebM has more headers than FFmpeg should hold.

    It holds all that they say, in about 30 times their size, but files within the file as they are.
    Those of a film of hours take 1 MB. It goes wherever a header is said to be.
    Source: RFC 8794 (EBML) and RFC 9559 (Matroska), for the IDs and the lengths of elements.
    """
    size = data.seek(0, io.SEEK_END)
    data.seek(0)
    if data.read(4) != _EBML:
        return
    place = headers = segment = 0
    ends = {_FILES: 0, _FILE: 0}
    sought: list[int] = []
    told: set[int] = set()  # that were or are sought: a seek head may name itself
    counted: set[int] = set()
    for _ in range(_MOST_ELEMENTS):
        goes_on = place < size
        if not (goes_on or sought):
            return
        at = place if goes_on else sought.pop()
        data.seek(at)
        element, begins, lasts = _element(data.read(12))
        content = at + begins
        end = size if lasts is None else min(content + lasts, size)
        is_open = element in (_SEGMENT, _CLUSTER) or lasts is None  # what is in it comes next
        if element == _SEGMENT:
            segment = content
        elif element == _FILES and goes_on:
            counted.add(at)
            ends[_FILES], is_open = end, True
        elif element in _HEADERS and at not in counted:
            counted.add(at)
            headers += end - at
        elif at < ends[_FILES] and goes_on:
            headers += (content if element in (_FILE, _FILLED) else end) - at
            if element == _FILE:
                ends[_FILE], is_open = end, True
            elif element == _FILLED:  # FFmpeg reads no more of it than there is
                end = min(end, ends[_FILE])
        if headers > _MOST_HEADERS:
            found = f"declares {headers / 2**20:.0f} MB of headers"
            raise _unusable(name, found, f"{_MOST_HEADERS // 2**20} MB at most")
        if element == _SEEK_HEAD:
            data.seek(content)
            new = {segment + to for to in _positions(data.read(end - content))} - told
            sought += new
            told |= new
        if goes_on and begins:
            place = content if is_open else end
        elif goes_on:  # nothing that is known: FFmpeg goes on at the next that is
            later = (at for at, _ in _found(data, _ELEMENTS, 4, place + 1))
            place = next(later, size)
    raise _unusable(name, f"has more than {_MOST_ELEMENTS} elements", "fewer")


def _positions(seek_head: bytes) -> Iterator[int]:
    """Find where a seek head says that elements are, from the segment's content on."""
    at = seek_head.find(_SEEK)
    while at >= 0:
        _, begins, lasts = _element(seek_head[at : at + 12])
        content = at + begins
        if begins and lasts is not None and lasts <= 8:
            yield int.from_bytes(seek_head[content : content + lasts])
        at = seek_head.find(_SEEK, at + 2)


def _element(head: bytes) -> tuple[bytes, int, int | None]:
    """Read an element's beginning: its ID, bytes before its content, and of that if it is known.

    No bytes stand before it where there is no element.
    """
    n = 9 - head[0].bit_length() if head else 9
    if n > 4 or len(head) <= n:
        return b"", 0, 0
    m = 9 - head[n].bit_length()
    if m > 8 or len(head) < n + m:
        return b"", 0, 0
    most = (1 << 7 * m) - 1
    lasts = int.from_bytes(head[n : n + m]) & most
    return head[:n], n + m, None if lasts == most else lasts


def _check_index(data: BinaryIO, name: str) -> None:
    """Raise an `AudioError` if an MP4 or MOV declares more packets than FFmpeg should list.

    It would list them all before it reads one: 9 kB can declare 1e8, which take gigabytes. Not
    those of PCM, of which it lists none.
    """
    place, packets, edits = 0, 0, 1
    size = data.seek(0, io.SEEK_END)
    while place < size:
        data.seek(place)
        length, kind, long = struct.unpack(">I4sQ", data.read(16).ljust(16, b"\0"))
        length = long if length == 1 else length or size
        if length < 8:
            break
        if kind in (b"moov", b"moof"):
            data.seek(place)
            box = data.read(min(length, size))
            if (packed := box.find(b"cmvd")) >= 0:  # packed with zlib, as QuickTime once did
                with contextlib.suppress(zlib.error):
                    box = zlib.decompressobj().decompress(box[packed + 8 :], 1 << 26)
            for track in box.split(b"trak"):
                edits = max([edits, *(int.from_bytes(n) for n in _EDITS.findall(track))])
                is_sound = b"soun" in track and b"vide" not in track
                if not (is_sound and set(_LASTS.findall(track)) == {_ONE_SAMPLE}):
                    packets += sum(int.from_bytes(n or m) for n, m in _PACKETS.findall(track))
        place += length
    if packets * edits > _MOST_PACKETS:
        found = f"declares {packets} packets" + (f" in {edits} parts" if edits > 1 else "")
        raise _unusable(name, found, f"{_MOST_PACKETS} at most")


def _av_frames(data: BinaryIO, heard: Heard, name: str) -> Iterator[tuple[int, float, Any]]:
    """Yield the frames of a track; broken packets are passed over.

    Before each stands which run of frames without a gap it is of, and the seconds of the gap before
    it by a player's clock, which begins with whatever track begins first.
    """
    import av

    _check_index(data, name)
    _check_headers(data, name)
    try:
        container = _opened(_Stream(data), name)
    except av.FFmpegError as error:
        found = f"holds no sound that can be decoded ({error.strerror})"
        raise _unusable(name, found) from error
    with container:
        # Decoding a stream without a codec crashes the process.
        tracks = [one for one in container.streams.audio if one.codec_context is not None]
        heard.tracks = max(1, len(tracks))
        if not tracks:
            kinds = sorted({other.type for other in container.streams})
            found = f"has no sound track, only {', '.join(kinds) or 'nothing'}"
            if "audio" in kinds:
                found = "has a sound track that cannot be decoded"
            raise _unusable(name, found, hint="Give the recording, or a video with sound.")
        if heard.track > len(tracks):
            raise _no_track(name, heard)
        track = tracks[heard.track - 1]
        began = (container.start_time or 0) / av.time_base
        heard.declared = _declared_seconds(container, track, data, began)
        packets, damage = container.demux(track), None
        segment, seconds, filled = 0, 0.0, 0.0
        sizes: dict[bytes, int] = {}  # of packets, by what in their headers tells it
        telling = _TELL_SIZE.get(track.codec_context.name)
        has_clock = not _HAVE_CLOCK.isdisjoint(container.format.name.split(","))
        while True:
            try:
                packet = next(packets)
                if telling and packet.size:
                    header = bytes(packet)[telling]
                    heard.is_cut = packet.size < sizes.setdefault(header, packet.size)
                frames: list[Any] = packet.decode()
            except StopIteration:
                break
            except av.FFmpegError as error:  # pass over this packet, as the ffmpeg command does
                damage, frames = error, []
                heard.damaged = True
            for frame in frames:
                gap = 0.0
                if has_clock and frame.time is not None:
                    gap = frame.time - began - seconds
                if GAP_SECONDS < gap < LOST_CLOCK_SECONDS - filled:
                    segment += 1
                    filled += gap
                    seconds += gap
                else:
                    gap = 0.0
                seconds += frame.samples / frame.sample_rate
                frame.pts = None  # joined as they come
                yield segment, gap, frame
        if damage and not seconds:
            raise _unusable(name, "is damaged: none of its sound can be decoded") from damage


def _opened(stream: _Stream, name: str) -> Any:
    """Open a file by FFmpeg, or raise an `AudioError` if that takes too long.

    It compares each tag with all before it: a hundred thousand, in 2 MB, take minutes, in which it
    cannot be stopped. So it is left alone, in a thread that does not keep the program from ending.
    """
    import av

    opened: Future[Any] = Future()

    def run() -> None:
        options = {"format_whitelist": _AV_FORMATS, "protocol_whitelist": "none"}
        try:  # with a tag that is not UTF-8, strict (the default) fails
            file: Any = stream
            opened.set_result(av.open(file, "r", metadata_errors="ignore", options=options))
        except BaseException as error:
            opened.set_exception(error)

    thread = threading.Thread(target=run, name="open", daemon=True)
    began = time.monotonic()
    thread.start()
    while True:
        with contextlib.suppress(TimeoutError):
            return opened.result(OPEN_SECONDS / 10)
        took = time.monotonic() - began
        if took > OPEN_SECONDS and hasattr(time, "pthread_getcpuclockid"):  # is it at work?
            with contextlib.suppress(OSError):  # it has just ended
                took = time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0))
        if took > OPEN_SECONDS and not opened.done():
            stream.is_given_up = True
            found = f"takes more than {OPEN_SECONDS:g} s to open: it may have very many tags"
            raise _unusable(name, found)


def _declared_seconds(container: Any, track: Any, data: BinaryIO, began: float) -> float:
    """Return when a track ends by the file's header, or 0 if that does not say."""
    known, place = set(container.format.name.split(",")), data.tell()
    if known & {"mp3"}:
        data.seek(0)
        head = data.read(1 << 16)
        place_of = max(head.find(b"Xing"), head.find(b"Info"))
        # The tag counts the frames and the bytes, of this file alone and not of one behind it.
        flags, _, n_bytes = struct.unpack_from(">3I", head.ljust(1 << 16, b"\0"), place_of + 4)
        if place_of < 0 or flags & 3 != 3 or n_bytes < 0.98 * data.seek(0, io.SEEK_END):
            known = set()
    data.seek(place)
    if not known & _TELL_LENGTH:
        return 0.0
    if track.duration:
        return float((track.duration + (track.start_time or 0)) * track.time_base) - began
    if container.duration and len(container.streams) == 1:
        import av

        return float(container.duration / av.time_base) - began
    return 0.0


def _array_blocks(waveform: Waveform, name: str) -> Iterator[_Block]:
    """Yield the blocks that a file of the same samples gives."""
    samples, rate = waveform
    found, hint = "", "Convert it."
    if not isinstance(samples, np.ndarray):
        found = f"is of type {type(samples).__name__}"
    elif samples.dtype.kind not in "iuf":
        found = f"is an array of {samples.dtype}"
    elif samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[1] > _CHANNELS):
        found = f"is an array {list(samples.shape)}"
        hint = "Give one recording at a time, with its samples along the first dimension."
    if found:
        wanted = "a NumPy array [n] or [n c] of integers, or of floating point of about -1..1"
        raise _unusable(name, found, wanted, hint)
    if not samples.size:
        return
    samples = samples.reshape(len(samples), -1)
    n = max(1, _BLOCK_VALUES // samples.shape[1])
    is_integer = samples.dtype.kind in "iu"
    for start in range(0, len(samples), n):
        block = samples[start : start + n]
        if is_integer:
            full_scale = 2.0 ** (8 * samples.itemsize - 1)
            block = block / full_scale - (samples.dtype.kind == "u")
        with np.errstate(over="ignore"):  # it becomes infinite, which is refused later
            block = block.astype(np.float32)
        yield _Block(rate, is_integer and samples.itemsize <= 2, block)


def _unusable(
    name: str, found: str, wanted: str = _RECORDING, hint: str = _SAVE_AGAIN
) -> AudioError:
    return AudioError(f"{name} {found}; wanted {wanted}", hint=hint)


def record(
    seconds: float,
    *,
    progress: Progress = silent,
    heard: Callable[[Waveform], object] = lambda sound: None,
) -> Waveform:
    """Record mono float32, -1..1, from the default input device at that device's own rate.

    It lasts `seconds`, 0.5 to 600, else a `UsageError`; what the device dropped meanwhile is not in
    it. Progress is told in seconds; `heard` is given each tenth of a second as it comes, and has to
    return at once, or the device drops what follows. Raises a `DependencyError` without sounddevice
    or PortAudio, and a `DeviceError` if there is no input device or it refuses to record.
    """
    check_seconds(seconds)
    sounddevice = _sounddevice()
    try:
        device = sounddevice.query_devices(kind="input")
        rate = round(device["default_samplerate"])
        n, block = round(seconds * rate), round(0.1 * rate)  # Ctrl-C waits for a block
        total, what = math.ceil(seconds), f"recording from {device['name']}"
        samples: FloatArray = np.empty(n, np.float32)
        stream = sounddevice.InputStream(samplerate=rate, channels=1, dtype="float32")
        with contextlib.closing(stream):  # also if it does not start, unlike `with stream`
            stream.start()
            for start in range(0, n, block):
                progress(start // rate, total, what)
                piece, _ = stream.read(min(block, n - start))  # the other: whether some are lost
                samples[start : start + block] = piece[:, 0]
                heard(Waveform(samples[start : start + block], rate))
    # ValueError is what sounddevice says of a default device that has no input.
    except (sounddevice.PortAudioError, ValueError) as error:
        hint = "connect a microphone, and choose it in the system's sound settings"
        raise DeviceError(f"no sound can be recorded: {error}", hint=hint) from error
    progress(total, total, what)
    return Waveform(samples, rate)


def check_seconds(seconds: float) -> None:
    """Raise a `UsageError` if so many are not recorded."""
    if not MIN_SECONDS <= seconds <= MAX_RECORDED_SECONDS:
        message = f"{seconds:g} s are to be recorded; wanted {MIN_SECONDS:g} to"
        raise UsageError(f"{message} {MAX_RECORDED_SECONDS:g}", hint="6 s are one clip of speech")


def _sounddevice() -> Any:
    try:
        import sounddevice

        return sounddevice
    except ImportError as error:
        found = "recording needs the package sounddevice, which is not installed"
        raise DependencyError(found, hint="pip install 's2f[record]'") from error
    except OSError as error:
        found = f"recording needs PortAudio, which cannot be loaded ({error})"
        hint = "install it: on Debian and Ubuntu, apt install libportaudio2"
        raise DependencyError(found, hint=hint) from error
    except Exception as error:  # a PortAudioError, whose class is lost with the module
        found = f"the sound system of this machine cannot be used: {error}"
        raise DeviceError(found, hint="record with another program, and give the file") from error
