"""What visitors of `s2f app` wait for, and what they leave in the memory of the server.

    python benchmarks/app.py [RECORDING ...] [--photo PHOTO] [--json]

The page is served by a process of its own, and asked over HTTP as a browser asks it. Those who
speak send what they have said meanwhile, in pieces of a quarter of a second, one request after the
other; each has a recording, from its beginning again where it is over. Then recordings and photos
are sent whole. Memory is what the server alone holds (USS). Linux only. Fails where a bound is
missed.
"""

import argparse
import http.client
import itertools
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import soundfile
from numpy.typing import NDArray

EXAMPLES = Path(__file__).parents[1] / "examples"
PIECE = 0.25  # seconds of sound that are sent together
TALK = 10.0  # seconds that one speaks
SPEAKERS = 4  # at once
VISITORS, EARLY, LATE = 4, 20, 200  # visitors at once, and answers
FIRST = "first face after the first second of voice, {} at once, s (the slowest)"
RATE = "new faces a second, {} at once (the fewest)"
AT_MOST = {
    "first answer after the address is told, s": 2.0,
    FIRST.format(1): 1.5,
    FIRST.format(SPEAKERS): 1.5,
    f"of {LATE} who spoke, without two faces": 0,
    f"memory after {LATE} who spoke over that after {EARLY}, MB": 10,
    f"of {LATE} recordings and photos, without an answer": 0,
    f"memory after {LATE} answers over that after {EARLY}, MB": 20,
}
AT_LEAST = {RATE.format(1): 2.0, RATE.format(SPEAKERS): 1.0}
Sound = tuple[NDArray[np.int16], int]  # samples, and how many a second
T, S = TypeVar("T"), TypeVar("S")


class Server:
    """The page, served by a process of its own as long as the context lasts.

    Attributes:
        said: what it printed when it was ready.
        process: that serves.
    """

    def __init__(self, *options: object, environment: dict[str, str] | None = None) -> None:
        """Choose the options of `s2f app`, and variables beside those of this process."""
        self.options = [str(option) for option in options]
        self.environment = {**os.environ, **(environment or {})}

    def __enter__(self) -> "Server":
        """Start it, and wait until it is ready."""
        command = [sys.executable, "-m", "s2f", "app", "--port", "0", "--json", *self.options]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            # A shell's background jobs ignore Ctrl-C, and hand that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        self.errors: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        if not line:
            self.process.wait()
            self.reader.join()
            raise RuntimeError("".join(self.errors))
        self.said: dict[str, Any] = json.loads(line)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it."""
        self.end(signal.SIGTERM)

    @property
    def url(self) -> str:
        """Address of the page."""
        return str(self.said["url"])

    def end(self, number: int) -> int:
        """Send it a signal, unless it has ended, and wait for its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout=30)
        self.reader.join()
        assert self.process.stdout and self.process.stderr
        self.process.stdout.close()
        self.process.stderr.close()
        return code

    def memory(self) -> float:
        """What it alone holds (USS), MB."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return sum(int(kb) for kb in re.findall(r"Private_\w+: +(\d+) kB", text)) / 1000

    def _read(self) -> None:
        assert self.process.stderr
        self.errors.extend(self.process.stderr)


class Visitor:
    """One who asks the page over HTTP, as a browser does."""

    def __init__(self, url: str) -> None:
        """Visit a page."""
        self.address = urllib.parse.urlsplit(url).netloc
        self.visit = secrets.token_hex(16)

    def post(self, where: str, body: bytes) -> str:
        """Send something: the answer."""
        connection = http.client.HTTPConnection(self.address, timeout=120)
        try:
            connection.request("POST", where, body)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {text}")
        return text

    def ask(self, where: str, content: bytes) -> bool:
        """Send a file: whether its face comes."""
        return "answer" in json.loads(self.post(where, content).splitlines()[-1])

    def speak(self, samples: NDArray[np.int16], rate: int) -> dict[str, Any]:
        """Send the next sound."""
        where = f"/live?visit={self.visit}&rate={rate}"
        answer: dict[str, Any] = json.loads(self.post(where, samples.astype("<i2").tobytes()))
        return answer


def talk(url: str, sound: Sound) -> tuple[float, float]:
    """Speak, and see faces: the first one's delay, s, and how many came a second from then on."""
    (samples, rate), visitor = sound, Visitor(url)
    pieces = np.split(samples, range(int(PIECE * rate), len(samples), int(PIECE * rate)))
    start, sent, second, faces = time.perf_counter(), 0, 0.0, []
    while sent < len(pieces):
        time.sleep(max(0.0, start + (sent + 1) * PIECE - time.perf_counter()))
        said = min(int((time.perf_counter() - start) / PIECE), len(pieces))
        answer = visitor.speak(np.concatenate(pieces[sent:said]), rate)
        if answer["seconds"] >= 1 and not second:
            second = start + (sent + 1) * PIECE  # at the earliest
        if "face" in answer:
            faces.append(time.perf_counter())
        sent = said
    return faces[0] - second, (len(faces) - 1) / (faces[-1] - faces[0])


def at_once(function: Callable[[T], S], items: Iterable[T], visitors: int) -> list[S]:
    """Call a function of each item, so many at once; the results in order."""
    with ThreadPoolExecutor(visitors) as pool:
        return list(pool.map(function, items))


def measure(recordings: list[Path], photo: Path) -> dict[str, float]:
    """Ask as many visitors do."""
    figures: dict[str, float] = {}
    sounds = [soundfile.read(path, dtype="int16", always_2d=True) for path in recordings]
    heard = [(np.resize(mixed[:, 0], int(TALK * rate)), rate) for mixed, rate in sounds]
    files = [("/voice", path.read_bytes()) for path in recordings] + [
        ("/photo", photo.read_bytes())
    ]
    with Server("--quiet") as server:
        told = time.perf_counter()
        Visitor(server.url).ask(*files[0])
        figures["first answer after the address is told, s"] = time.perf_counter() - told
        for n in (1, SPEAKERS):
            talkers = list(itertools.islice(itertools.cycle(heard), n))
            seen = at_once(lambda sound: talk(server.url, sound), talkers, n)
            figures[FIRST.format(n)] = max(first for first, _ in seen)
            figures[RATE.format(n)] = min(often for _, often in seen)

        def speaks(k: int) -> bool:
            (samples, rate), visitor = heard[k % len(heard)], Visitor(server.url)
            pieces = np.array_split(samples[: 3 * rate], 12)
            return sum("face" in visitor.speak(piece, rate) for piece in pieces) > 1

        def asks(k: int) -> bool:
            return Visitor(server.url).ask(*files[k % len(files)])

        for asking, of, told_of in (
            (speaks, "who spoke", f"of {LATE} who spoke, without two faces"),
            (asks, "answers", f"of {LATE} recordings and photos, without an answer"),
        ):
            start = time.perf_counter()
            good = at_once(asking, range(EARLY), VISITORS)
            figures[f"{EARLY} {of}, {VISITORS} at once, s"] = time.perf_counter() - start
            early = server.memory()
            good += at_once(asking, range(EARLY, LATE), VISITORS)
            late = server.memory()
            figures[told_of] = good.count(False)
            figures[f"memory after {EARLY} {of}, MB"] = early
            figures[f"memory after {LATE} {of}, MB"] = late
            figures[f"memory after {LATE} {of} over that after {EARLY}, MB"] = late - early
    return figures


def require(
    figures: Mapping[str, float], at_most: Mapping[str, float], at_least: Mapping[str, float]
) -> None:
    """Fail where a bound is missed."""
    missed = [name for name, bound in at_most.items() if figures[name] > bound]
    missed += [name for name, bound in at_least.items() if figures[name] < bound]
    if missed:
        raise SystemExit(f"missed: {', '.join(missed)}")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings", nargs="*", type=Path, default=[EXAMPLES / "speech.wav"])
    parser.add_argument("--photo", type=Path, default=EXAMPLES / "face.png")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.recordings, options.photo)
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        print("| figure | value | bound |\n|---|---|---|")
        for name, value in figures.items():
            print(f"| {name} | {value:.3g} | {AT_MOST.get(name, AT_LEAST.get(name, ''))} |")
    require(figures, AT_MOST, AT_LEAST)


if __name__ == "__main__":
    main()
