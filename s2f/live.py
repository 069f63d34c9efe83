"""The face that forms while somebody speaks.

Sound comes in pieces and is not kept: what is embedded stays as a sum, and of the sound itself only
the last clip. Each new face costs one clip and one drawing, however long it has been going on.
A microphone does not wait for that: `Forming` draws beside the recording.
"""

import concurrent.futures
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from s2f.audio import SAMPLE_RATE, FloatArray, Waveform, hear
from s2f.errors import AudioError, UsageError
from s2f.pipeline import Embedding, Face, SpeechToFace

FIRST_SECONDS = 1.0  # of sound before the first face
STEP_SECONDS = 0.2  # of new sound, at least, for a new face
FRAME_SECONDS = 0.1  # that sound or are silent together
PAUSE_FRAMES = 2  # of what is silent between two that sound, at most, belong to the speech
QUIET = 1e-3  # of the power of the loudest second: 30 dB below it is silence, as in `audio.hear`
RATES = range(8_000, 192_001)  # Hz, of microphones


class Listener:
    """Hears one speaker piece by piece, and draws the face of what was heard so far.

    Silence is left out as it comes, so it changes nothing, but for a pause of up to 0.2 s, which
    belongs to the speech as soon as that goes on. The embedding is the mean of the clips
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
        self._clip = round(model.front_end.clip_samples / SAMPLE_RATE * rate)
        self._frame = round(FRAME_SECONDS * rate)
        self._rest: FloatArray = np.empty(0, np.float32)  # less than a frame
        self._levels: list[float] = []  # powers of the last second's frames
        self._loudest = 0.0  # power of a second
        self._pause: list[FloatArray] = []  # frames since one that sounded
        self._sound: FloatArray = np.empty(0, np.float32)  # the last clip's length
        self._n = 0  # samples that sounded, of all that came
        self._new = 0  # since the last whole clip
        self._undrawn = 0  # and since the last face
        self._total: NDArray[np.floating] | float = 0.0
        self._clips = 0

    @property
    def seconds(self) -> float:
        """How much sounded, of all that came."""
        return self._n / self.rate

    def feed(self, samples: NDArray[np.int16] | FloatArray) -> None:
        """Take the next samples [n], integers of 16 bits or float32 of -1..1."""
        scale = np.float32(32768 if samples.dtype == np.int16 else 1)
        waiting = np.concatenate([self._rest, samples.astype(np.float32) / scale])
        whole = len(waiting) // self._frame * self._frame
        self._rest = waiting[whole:]
        sounding: list[FloatArray] = []
        for frame in waiting[:whole].reshape(-1, self._frame):
            if self._sounds(frame):
                sounding += [*self._pause, frame]
                self._pause = []
            elif (self._n or sounding) and len(self._pause) < PAUSE_FRAMES:
                self._pause.append(frame)
        if sounding:
            self._hear(np.concatenate(sounding))

    def _sounds(self, frame: FloatArray) -> bool:
        """Tell whether a frame is no silence."""
        power = float(np.mean(np.square(np.nan_to_num(frame), dtype=np.float64)))
        self._levels = [*self._levels[1 - round(1 / FRAME_SECONDS) :], power]
        self._loudest = max(self._loudest, sum(self._levels) * FRAME_SECONDS)
        return power > max(QUIET * self._loudest, 1e-9)

    def _hear(self, sound: FloatArray) -> None:
        """Keep what sounds, and embed each clip that is full."""
        for part in np.split(sound, range(self._clip - self._new, len(sound), self._clip)):
            self._sound = np.concatenate([self._sound, part])[-self._clip :]
            self._new += len(part)
            self._undrawn += len(part)
            self._n += len(part)
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


class Forming:
    """Draws the faces of what is being recorded, in a thread: `feed` never waits for one.

    What comes while a face is drawn is heard together for the next, so faces never queue up. When
    the `with` ends, what is left is heard and drawn, and errors of drawing are raised; if another
    error ended it, only the face that is being drawn is waited for.
    """

    def __init__(self, model: SpeechToFace, take: Callable[[Face], object]) -> None:
        """Have `take` given each new face, in the thread."""
        self._model, self._take = model, take
        self._listener: Listener | None = None
        self._waiting: list[FloatArray] = []
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._drawing: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> "Forming":
        """Draw a face for nobody: what libraries load, they load before sound could be lost."""
        noise = 0.1 * np.random.default_rng(0).standard_normal(48_000)
        self._thread.submit(self._model.generate, Waveform(noise, 48_000)).result()
        return self

    def feed(self, sound: Waveform) -> None:
        """Take the next sound, all of one rate; raise a `UsageError` if a `Listener` refuses it."""
        self._listener = self._listener or Listener(self._model, sound.rate)
        self._waiting.append(sound.samples)
        drawing = self._drawing
        if drawing is None or (drawing.done() and not drawing.exception()):
            waiting, self._waiting = self._waiting, []
            self._drawing = self._thread.submit(self._draw, self._listener, waiting)

    def _draw(self, listener: Listener, waiting: list[FloatArray]) -> None:
        listener.feed(np.concatenate(waiting))
        face = listener.draw()
        if face is not None:
            self._take(face)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Wait for the thread."""
        with self._thread:
            if kind is None and self._drawing and self._listener:
                self._drawing.result()
                if self._waiting:
                    self._draw(self._listener, self._waiting)
