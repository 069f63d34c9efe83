"""Recordings -> embeddings, whose clips share batches whosever they are."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from s2f.audio import open_speech
from s2f.checkpoint import AnyVoiceEncoder
from s2f.decoding import FloatArray, Waveform
from s2f.errors import InputError, UsageError
from s2f.front_end import FrontEnd, spectrogram
from s2f.precision import computing
from s2f.runtime import Progress, one_thread, silent

Speech = str | Path | BinaryIO | Waveform | tuple[NDArray[Any], int]
BATCH = 16  # clips, on a GPU


@dataclass
class Embedded:
    """What became of a recording.

    Attributes:
        clips: of speech, whose embeddings are averaged.
        error: why it has none; None if all went well.
        total: sum of the embeddings [d] of the clips that are embedded.
        waiting: clips that are not yet.
        is_read: whether all its clips are known.
    """

    clips: int = 0
    error: InputError | None = None
    total: NDArray[np.float64] | float = 0.0
    waiting: int = 0
    is_read: bool = False

    @property
    def is_done(self) -> bool:
        """Whether nothing is missing."""
        return self.is_read and (self.error is not None or not self.waiting)

    @property
    def embedding(self) -> NDArray[np.float32]:
        """The mean of its clips' embeddings, [d]."""
        return np.asarray(self.total / self.clips, np.float32)


@dataclass(frozen=True)
class VoiceEmbedder:
    """A voice encoder and its front end, ready for recordings of any length.

    The embedding of a recording has the same bits whatever else is embedded, and however many
    threads there are.

    Attributes:
        batch_size: clips that are embedded together. A CPU is quickest with one.
    """

    encoder: AnyVoiceEncoder
    front_end: FrontEnd
    device: torch.device
    precision: str = "fp32"
    batch_size: int = BATCH

    def embed(
        self,
        recordings: Iterable[Speech],
        *,
        start: float = 0.0,
        duration: float | None = None,
        trim_silence: float | None = None,
        progress: Progress = silent,
    ) -> Iterator[Embedded]:
        """Embed recordings, reading as many as fill a batch.

        Args:
            recordings: files, binary streams, or samples [n] or [n c] and their rate.
            start: of the part of each that is wanted, seconds.
            duration: of that part, seconds.
            trim_silence: as `audio.open_speech` takes it.
            progress: told of each clip of a recording.

        Yields:
            What became of each, in order, as soon as its clips are embedded.

        Raises:
            UsageError: as `audio.open_speech`, and for what is no recording.
        """
        unfinished: deque[Embedded] = deque()
        batch: list[tuple[Embedded, FloatArray]] = []
        for recording in recordings:
            item = Embedded()
            unfinished.append(item)
            try:
                with open_speech(
                    _source(recording), start=start, duration=duration, trim_silence=trim_silence
                ) as speech:
                    n_clips = speech.n_clips(self.front_end.clip_samples)
                    for clip in speech.clips(self.front_end.clip_samples):
                        progress(item.clips, n_clips, speech.name)
                        item.clips += 1
                        item.waiting += 1
                        batch.append((item, clip))
                        if len(batch) == self.batch_size:
                            self._embed(batch)
            except InputError as error:
                item.error = error
            item.is_read = True
            while unfinished and unfinished[0].is_done:
                yield unfinished.popleft()
        if batch:
            self._embed(batch)
        yield from unfinished

    def _embed(self, batch: list[tuple[Embedded, FloatArray]]) -> None:
        """Embed the clips of a batch, which is empty afterwards."""
        with computing(self.device):
            waveforms = torch.from_numpy(np.stack([clip for _, clip in batch])).to(self.device)
            # Batches of one size are computed in one way, whoever shares them.
            fill = self.batch_size - len(batch)
            waveforms = torch.nn.functional.pad(waveforms, (0, 0, 0, fill))
            with one_thread():  # several would share the sums of the transform
                spectrograms = spectrogram(waveforms, self.front_end)
        with computing(self.device, self.precision):
            embeddings = self.encoder(spectrograms)[: len(batch)].cpu().double().numpy()
        for (item, _), embedding in zip(batch, embeddings, strict=True):
            item.total = item.total + embedding
            item.waiting -= 1
        batch.clear()


def _source(speech: Speech) -> Path | BinaryIO | Waveform:
    if isinstance(speech, str):
        return Path(speech)
    if isinstance(speech, tuple) and len(speech) == 2:
        return Waveform(*speech)
    if isinstance(speech, Path) or hasattr(speech, "read"):
        return speech
    raise UsageError(
        f"speech cannot be read from {type(speech).__name__}",
        hint="give a path, a binary stream, or Waveform(samples, rate)",
    )
