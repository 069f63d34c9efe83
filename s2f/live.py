"""The face that forms while somebody speaks.

Sound comes in pieces and is not kept: what is embedded stays as a sum, and of the sound itself only
the last clip. Each new face costs one clip and one drawing, however long it has been going on.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2f.audio import SAMPLE_RATE, FloatArray, Waveform, hear
from s2f.errors import AudioError, UsageError
from s2f.pipeline import Embedding, Face, SpeechToFace

FIRST_SECONDS = 1.0  # of sound before the first face
STEP_SECONDS = 0.2  # of new sound, at least, for a new face
FRAME_SECONDS = 0.1  # that sound or are silent together
HELD_FRAMES = 3  # that belong to speech after one that sounds: the pause between two words
QUIET = 1e-3  # of the power of the loudest second: 30 dB below it is silence, as in `audio.hear`
RATES = range(8_000, 192_001)  # Hz, of microphones


class Listener:
    """Hears one speaker piece by piece, and draws the face of what was heard so far.

    Silence is left out as it comes, so it changes nothing. The embedding is the mean of the clips
    that have passed and of the last clip's length of sound, which counts by its share that is new:
    it moves evenly, and where a clip ends it is the mean of the clips, as `SpeechToFace.generate`
    takes it. That hears the whole recording at once, its loudness and pauses, and has the last
    word. Not for several threads at once.

    Example:
        >>> import soundfile
        >>> from s2f import SpeechToFace
        >>> samples, rate = soundfile.read("examples/speech.wav", dtype="int16")
        >>> listener = Listener(SpeechToFace.load(device="cpu"), rate)
        >>> listener.feed(samples[: rate // 2])
        >>> listener.draw() is None  # not yet
        True
        >>> listener.feed(samples[rate // 2 : 2 * rate])
        >>> listener.draw().image.size
        (224, 224)
        >>> listener.feed(0 * samples)
        >>> listener.draw() is None  # silence has no face, and changes none
        True
    """

    def __init__(self, model: SpeechToFace, rate: int) -> None:
        """Listen at so many samples a second, 8,000 to 192,000, else raise a `UsageError`."""
        if rate not in RATES:
            message = f"sound of {rate} samples a second is to be heard; wanted {RATES[0]}"
            raise UsageError(f"{message} to {RATES[-1]}", hint="most microphones have 48000")
        self.model, self.rate = model, rate
        self.seconds = 0.0  # that sounded, of all that came
        self._clip = round(model.front_end.clip_samples / SAMPLE_RATE * rate)
        self._frame = round(FRAME_SECONDS * rate)
        self._rest: FloatArray = np.empty(0, np.float32)  # less than a frame
        self._levels: list[float] = []  # powers of the last second's frames
        self._loudest = 0.0  # power of a second
        self._held = 0
        self._sound: FloatArray = np.empty(0, np.float32)  # the last clip's length
        self._new, self._undrawn = (
            0,
            0,
        )  # samples since the last whole clip, and since the last face
        self._total: Any = 0.0  # [d]: the sum of the clips' embeddings
        self._clips = 0

    def feed(self, samples: NDArray[np.int16] | FloatArray) -> None:
        """Take the next samples [n], integers of 16 bits or float32 of -1..1."""
        scale = np.float32(32768 if samples.dtype == np.int16 else 1)
        waiting: FloatArray = np.concatenate([self._rest, samples.astype(np.float32) / scale])
        whole = len(waiting) // self._frame * self._frame
        self._rest = waiting[whole:]
        sounding = [
            frame for frame in waiting[:whole].reshape(-1, self._frame) if self._sounds(frame)
        ]
        if sounding:
            self._hear(np.concatenate(sounding))

    def _sounds(self, frame: FloatArray) -> bool:
        """Tell whether a frame is of speech, or of a short pause in it."""
        power = float(np.mean(np.square(np.nan_to_num(frame), dtype=np.float64)))
        self._levels = [*self._levels[1 - round(1 / FRAME_SECONDS) :], power]
        self._loudest = max(self._loudest, float(np.mean(self._levels)))
        sounds = power > max(QUIET * self._loudest, 1e-9)
        self._held = HELD_FRAMES if sounds else self._held - 1
        return self._held > 0

    def _hear(self, sound: FloatArray) -> None:
        """Keep what sounds, and embed each clip that is full."""
        for part in np.split(sound, range(self._clip - self._new, len(sound), self._clip)):
            self._sound = np.concatenate([self._sound, part])[-self._clip :]
            self._new += len(part)
            self._undrawn += len(part)
            self.seconds += len(part) / self.rate
            if self._new == self._clip:
                if (heard := self._embed()) is not None:
                    self._total = self._total + heard
                    self._clips += 1
                self._new = 0

    def _embed(self) -> Embedding | None:
        """Embed the last clip's length of sound; None if it is no voice."""
        try:
            heard = hear(Waveform(self._sound, self.rate), name="what was said")
        except AudioError:
            return None
        if heard.is_steady:
            return None
        (embedded,) = self.model.embed_voices([heard])
        if embedded.error or embedded.voice.get("voice", 1.0) < 0.5:
            return None
        return embedded.embedding

    def draw(self) -> Face | None:
        """Draw the face of what was heard so far; None if nothing new is to be seen.

        So it is in the first second of sound, after less than 0.2 s that are new, and where what is
        new is no voice.
        """
        if self.seconds < FIRST_SECONDS or self._undrawn < STEP_SECONDS * self.rate:
            return None
        self._undrawn = 0
        last = self._embed()
        if last is None:
            return None
        share = self._new / self._clip if self._clips else 1.0
        mean = (self._total + share * last) / (self._clips + share)
        return self.model.decode(np.asarray(mean, np.float32))
