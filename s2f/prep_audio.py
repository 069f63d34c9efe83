"""Recordings -> arrays that training reads, and the statistics of their log-mel.

`audio_step` is what `s2f prep audio` makes of each recording, and `log_mel_stats` measures a tree.
Imports neither torch nor a decoder before a worker needs them.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from s2f import audio
from s2f.audio import FloatArray, read_speech
from s2f.console import Progress, silent
from s2f.errors import DatasetError, OutputError, UsageError
from s2f.files import map_waveform
from s2f.layout import renamed
from s2f.prep import PrepReport, Step, prepare
from s2f.spectrogram import (
    FRONT_ENDS,
    STATS_OF,
    FrontEnd,
    LogMelStats,
    RunningMoments,
    moments,
    read_stats,
    spectrogram,
    write_stats,
)

FORMAT = 1  # of what the steps make; another one makes everything anew
BLOCK_SAMPLES = 1 << 16  # of a prepared waveform, read at once
PRELOAD = ("s2f.prep_audio", "av", "soundfile", "soxr")


def audio_step(
    *,
    store: Literal["waveform", "spectrogram"],
    preset: str = "paper",
    stats: Path | None = None,
    trim_silence: float | None = None,
) -> Step:
    """Make a .npy file of each recording, at -23 dBFS.

    Args:
        store: `waveform`, int16 [n] of the whole recording at 16 kHz; or `spectrogram`, float32
            [c f t] of its first clip, looped where it is shorter.
        preset: of `FRONT_ENDS`; spectrograms only.
        stats: a file of `log_mel_stats`, whose mean and standard deviation take the place of
            AudioSet's; spectrograms of the preset `ast` only.
        trim_silence: as in `audio.read_speech`.

    Raises:
        UsageError: if these contradict each other.
        DatasetError: as in `read_stats`.
    """
    audio.check_part(trim_silence=trim_silence)
    if stats is not None and (store, preset) != ("spectrogram", "ast"):
        message = f"statistics do not go into a {store} of preset {preset}"
        raise UsageError(message, hint="they are for spectrograms of the preset ast")
    settings: dict[str, Any] = {
        "format": FORMAT,
        "store": store,
        "loudness_dbfs": audio.LOUDNESS_DBFS,
        "resampler": "soxr HQ",
        "trim_silence": trim_silence,
    }
    if store == "waveform":
        work = functools.partial(_save_waveform, trim_silence=trim_silence)
    else:
        if preset not in FRONT_ENDS:
            known = ", ".join(FRONT_ENDS)
            raise UsageError(f"{preset!r} is no preset of a front end", hint=f"choose of {known}")
        front_end = FRONT_ENDS[preset]
        if stats is not None:
            measured = read_stats(stats)
            front_end = dataclasses.replace(front_end, mean=measured.mean, std=measured.std)
        settings["front_end"] = dataclasses.asdict(front_end)
        work = functools.partial(_save_spectrogram, front_end=front_end, trim_silence=trim_silence)
    return Step(
        name="audio",
        wants=audio.is_recording,
        sources="recordings",
        rename=functools.partial(renamed, ending=".npy"),
        settings=settings,
        work=work,
        preload=PRELOAD if store == "waveform" else (*PRELOAD, "torch"),
    )


def _save_waveform(source: Path, part: Path, *, trim_silence: float | None) -> None:
    speech = read_speech(source, trim_silence=trim_silence)
    with part.open("wb") as file:
        header = {"descr": "<i2", "fortran_order": False, "shape": (speech.n_samples,)}
        np.lib.format.write_array_header_1_0(file, header)
        for block in speech.blocks():
            file.write(audio.to_int16(block).astype("<i2").tobytes())


def _save_spectrogram(
    source: Path, part: Path, *, front_end: FrontEnd, trim_silence: float | None
) -> None:
    import torch

    torch.set_num_threads(1)  # there is a worker a core
    speech = read_speech(source, trim_silence=trim_silence)
    clip = next(speech.clips(front_end.clip_samples))
    np.save(part, spectrogram(torch.from_numpy(clip[None]), front_end)[0].numpy())


def stats_step() -> Step:
    """Measure the log-mel of each recording, or of each waveform that `audio_step` stored."""
    return Step(
        name="stats",
        wants=audio.is_voice,
        sources="waveforms (.npy) or recordings",
        rename=None,
        settings={"format": FORMAT, **STATS_OF},
        work=_measure,
        preload=(*PRELOAD, "torch"),
    )


def _measure(source: Path, part: Path) -> dict[str, float]:
    """Return the `Moments` of a file; writes nothing."""
    import torch

    torch.set_num_threads(1)  # there is a worker a core
    if source.suffix == ".npy":
        return dataclasses.asdict(moments(_stored_blocks(source)))
    return dataclasses.asdict(moments(read_speech(source).blocks()))


def _stored_blocks(path: Path) -> Iterator[FloatArray]:
    """Yield a stored waveform, as it is, in blocks: mono [n], -1..1."""
    waveform, power = map_waveform(path), 0.0
    if len(waveform) < audio.MIN_SECONDS * audio.SAMPLE_RATE:
        found = f"{path}: holds {len(waveform)} samples at 16 kHz"
        raise DatasetError(f"{found}; wanted {audio.MIN_SECONDS:g} s or more", hint="leave it out")
    for start in range(0, len(waveform), BLOCK_SAMPLES):
        block = np.array(waveform[start : start + BLOCK_SAMPLES])
        block = np.float32(2**-15) * block if block.dtype == np.int16 else block.astype(np.float32)
        power += float(np.square(block, dtype=np.float64).sum()) / len(waveform)
        if not math.isfinite(power):
            raise DatasetError(f"{path}: holds NaN or infinite samples", hint="make it again")
        yield block
    if power < 10 ** (audio.SILENCE_DBFS / 10):
        raise DatasetError(f"{path}: holds only silence; wanted speech", hint="leave it out")


def log_mel_stats(
    tree: Path,
    out_file: Path,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> tuple[LogMelStats | None, PrepReport]:
    """Measure the log-mel over a training set and write it as JSON for `audio_step(stats=...)`.

    Whole utterances count, without padding: recordings at -23 dBFS, stored waveforms as they are.

    Args:
        tree: of recordings, or of waveforms that `audio_step` stored.
        out_file: the JSON; one that is there already is brought up to date.
        workers: processes; default: one a core.
        overwrite: also if `out_file` is something else, and measure every file again.
        progress: what to report to.

    Returns:
        The statistics, or None if no file could be used, when nothing is written; and the report.

    Raises:
        OutputError: if `out_file` is something else or cannot be written.
        S2FError: as in `prepare`.
    """
    if out_file.exists() and not overwrite:
        try:
            read_stats(out_file)
        except DatasetError as error:
            hint = "add --overwrite, or choose another name"
            raise OutputError(f"{out_file}: holds something else already", hint=hint) from error
    report = prepare(
        stats_step(), tree, out_file.parent, workers=workers, overwrite=overwrite, progress=progress
    )
    total = RunningMoments()
    for _, note in sorted(report.notes.items()):
        total += RunningMoments(**note)
    if not total.count:
        return None, report
    return write_stats(out_file, total, files=len(report.notes)), report
