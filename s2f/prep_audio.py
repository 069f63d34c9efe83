"""Recordings -> arrays that training reads, and the statistics of their log-mel.

`audio_step` is what `s2f prep audio` makes of each recording, `waveforms_step` takes what that has
made already, and `log_mel_stats` measures a tree.
Imports neither torch nor a decoder before a worker needs them.
"""

import dataclasses
import functools
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np

from s2f import audio
from s2f.audio import Waveform, hear
from s2f.console import Progress, silent
from s2f.errors import AudioError, DatasetError, OutputError, UsageError
from s2f.files import save_array
from s2f.layout import is_array, renamed
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
from s2f.stores import Place

FORMAT = 2  # of what the steps make; another one makes everything anew
BLOCK_SAMPLES = 1 << 16  # of a waveform that are written at once
PRELOAD = ("s2f.prep_audio", "av", "soundfile", "soxr")


def audio_step(
    *,
    store: Literal["waveform", "spectrogram"],
    preset: str = "paper",
    stats: Path | None = None,
    trim_silence: float | None = None,
    track: int | None = None,
) -> Step:
    """Make a .npy file of what sounds of each recording, at -23 dBFS; its remarks are its notes.

    A `waveform` is int16 [n] of the whole recording at 16 kHz; a `spectrogram`, of a preset of
    `FRONT_ENDS`, is float32 [c f t] of its first clip, looped where it is shorter. `stats`, a file
    of `log_mel_stats`, takes the place of AudioSet's mean and deviation in the preset `ast`.
    `trim_silence` and `track` are those of `hear`. Raises a `UsageError` if these contradict each
    other, and a `DatasetError` as `read_stats`.
    """
    part = {"trim_silence": trim_silence, "track": track}
    audio.check_part(trim_silence=trim_silence, track=track)
    if stats is not None and (store, preset) != ("spectrogram", "ast"):
        message = f"statistics do not go into a {store} of preset {preset}"
        raise UsageError(message, hint="they are for spectrograms of the preset ast")
    settings: dict[str, Any] = {"format": FORMAT, "store": store}
    settings |= {"loudness_dbfs": audio.LOUDNESS_DBFS, "resampler": "soxr HQ"}
    settings |= part
    if store == "waveform":
        work = functools.partial(_save_waveform, wanted=part)
    else:
        if preset not in FRONT_ENDS:
            known = ", ".join(FRONT_ENDS)
            raise UsageError(f"{preset!r} is no preset of a front end", hint=f"choose of {known}")
        front_end = FRONT_ENDS[preset]
        if stats is not None:
            measured = read_stats(stats)
            front_end = dataclasses.replace(front_end, mean=measured.mean, std=measured.std)
        settings["front_end"] = dataclasses.asdict(front_end)
        work = functools.partial(_save_spectrogram, front_end=front_end, wanted=part)
    return Step(
        name="audio",
        wants=audio.is_recording,
        sources="recordings",
        rename=functools.partial(renamed, ending=".npy"),
        settings=settings,
        work=work,
        preload=PRELOAD if store == "waveform" else (*PRELOAD, "torch"),
        has_twins=True,
    )


def _save_waveform(source: Path, part: Path, *, wanted: dict[str, Any]) -> tuple[str, ...] | None:
    heard = hear(source, **wanted)
    waveform = heard.waveform
    with part.open("wb") as file:  # in blocks: no second copy of hours of speech
        header = {"descr": "<i2", "fortran_order": False, "shape": waveform.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(waveform), BLOCK_SAMPLES):
            block = audio.to_int16(waveform[start : start + BLOCK_SAMPLES])
            file.write(block.astype("<i2").tobytes())
    return heard.remarks or None


def _save_spectrogram(
    source: Path, part: Path, *, front_end: FrontEnd, wanted: dict[str, Any]
) -> tuple[str, ...] | None:
    import torch

    torch.set_num_threads(1)  # there is a worker a core
    heard = hear(source, **wanted)
    clip = audio.clips(heard.waveform, front_end.clip_samples)[0]
    save_array(spectrogram(torch.from_numpy(clip[None]), front_end)[0].numpy(), part)
    return heard.remarks or None


def waveforms_step() -> Step:
    """Copy waveforms that are stored already, if training would take them."""
    return Step(
        name="waveforms",
        wants=is_array,
        sources="waveforms",
        rename=str,
        settings={"format": FORMAT},
        work=_copy_waveform,
        preload=("s2f.prep_audio",),
    )


def _copy_waveform(source: Path, part: Path) -> None:
    audio.check_waveform(audio.map_waveform(source), str(source))
    shutil.copyfile(source, part)


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
        has_twins=True,
    )


def _measure(source: Path, part: Path) -> dict[str, float]:
    """Return the `RunningMoments` of a file; writes nothing."""
    import torch

    torch.set_num_threads(1)  # there is a worker a core
    stored = source.suffix == ".npy"
    sound: Path | Waveform = source
    if stored:
        samples = audio.map_waveform(source)
        audio.check_waveform(samples, str(source))
        sound = Waveform(samples, audio.SAMPLE_RATE)
    try:
        waveform = hear(sound, name=str(source), as_recorded=stored).waveform
    except AudioError as error:
        if not stored:
            raise
        raise DatasetError(error.message, hint="leave it out, or make it again") from error
    return dataclasses.asdict(moments(waveform))


def log_mel_stats(
    tree: Place,
    out_file: Path,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    prefer: str | None = None,
    progress: Progress = silent,
) -> tuple[LogMelStats | None, PrepReport]:
    """Measure the log-mel over a training set and write it as JSON for `audio_step(stats=...)`.

    Whole utterances count, without padding: recordings at -23 dBFS, stored waveforms as they are.
    Without a usable file nothing is written. `prefer` is that of `prepare`. Raises as that; an
    `OutputError` if `out_file` is something else and not to `overwrite`, with which every file is
    measured again.
    """
    if out_file.exists() and not overwrite:
        try:
            read_stats(out_file)
        except DatasetError as error:
            hint = "add --overwrite, or choose another name"
            raise OutputError(f"{out_file}: holds something else already", hint=hint) from error
    report = prepare(
        stats_step(),
        tree,
        out_file.parent,
        workers=workers,
        overwrite=overwrite,
        prefer=prefer,
        progress=progress,
    )
    notes = (RunningMoments(**note) for _, note in sorted(report.notes.items()))
    total = sum(notes, start=RunningMoments())
    if not total.count:
        return None, report
    return write_stats(out_file, total, files=len(report.notes)), report
