"""What visitors of `s2f app` wait for, and what they leave in the memory of the server.

    python benchmarks/app.py [RECORDING] [--photo PHOTO] [--json]

The page is served by a process of its own, and asked over HTTP as a browser asks it: the recording
is sent, then the answer awaited. Memory is what the server alone holds (USS). Linux only. Fails
where a bound is missed. The tests of the page send their requests with `Server` and `Visitor` too.
"""

import argparse
import http.client
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

EXAMPLE = Path(__file__).parents[1] / "examples" / "speech.wav"
VISITORS, PARALLEL, LATER = 4, 20, 200  # visitors at once, and requests
AT_MOST = {
    "first answer after the address is told, s": 2.0,
    f"requests of {PARALLEL} by {VISITORS} visitors without an answer": 0,
    f"memory after {LATER} requests over that after {PARALLEL}, MB": 20,
}


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

    def send(self, content: bytes, name: str) -> tuple[int, Any]:
        """Send a file: the status, and where it lies on the server or what is wrong with it."""
        boundary = secrets.token_hex(8)
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"'
        body = b"%b\r\n\r\n%b\r\n--%b--\r\n" % (head.encode(), content, boundary.encode())
        kind = f"multipart/form-data; boundary={boundary}"
        status, text = self.request("POST", "/gradio_api/upload", body, kind)
        return status, json.loads(text)[0] if status == 200 else text

    def ask(self, question: str, *contents: bytes, name: str = "speech.wav") -> str:
        """Send files, and wait for what the page answers: HTML."""
        paths = [self.send(content, name)[1] for content in contents]
        return self.ask_of(question, *paths)

    def ask_of(self, question: str, *paths: str | None) -> str:
        """Wait for what the page answers to files that lie on the server."""
        data = [path and {"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]
        where = f"/gradio_api/call/{question}"
        body = json.dumps({"data": data}).encode()
        _, text = self.request("POST", where, body, "application/json")
        _, text = self.request("GET", f"{where}/{json.loads(text)['event_id']}")
        event, value = re.findall(r"event: (\w+)\ndata: (.*)", text)[-1]
        if event != "complete":
            raise RuntimeError(f"{event}: {value}")
        return str(json.loads(value)[0])

    def request(
        self, method: str, where: str, body: bytes | None = None, kind: str = ""
    ) -> tuple[int, str]:
        """Ask for something: status and text."""
        connection = http.client.HTTPConnection(self.address, timeout=120)
        try:
            connection.request(method, where, body, {"Content-Type": kind} if kind else {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


def ask_many(url: str, questions: list[tuple[str, tuple[bytes, ...]]], visitors: int) -> list[str]:
    """Have visitors ask at once, each one question after the other; the answers in order."""

    def one(question: tuple[str, tuple[bytes, ...]]) -> str:
        try:
            return Visitor(url).ask(question[0], *question[1])
        except (OSError, RuntimeError) as error:
            return f"no answer: {error}"

    with ThreadPoolExecutor(visitors) as pool:
        return list(pool.map(one, questions))


def measure(recording: Path, photo: Path | None) -> dict[str, float]:
    """Ask as many visitors do."""
    speech = recording.read_bytes()
    kinds = [("voice", (speech,)), ("voices", (speech, speech[: len(speech) // 2]))]
    if photo:
        kinds.append(("photo", (photo.read_bytes(),)))
    with Server("--quiet") as server:
        told = time.perf_counter()
        Visitor(server.url).ask("voice", speech)
        seconds = time.perf_counter() - told
        questions = [kinds[k % len(kinds)] for k in range(LATER)]
        started = time.perf_counter()
        answers = ask_many(server.url, questions[:PARALLEL], VISITORS)
        together = time.perf_counter() - started
        early = server.memory()
        answers += ask_many(server.url, questions[PARALLEL:], VISITORS)
        late = server.memory()
    good = ["data:image/" in answer for answer in answers]
    return {
        "first answer after the address is told, s": seconds,
        f"{PARALLEL} requests of {VISITORS} visitors, s": together,
        f"requests of {PARALLEL} by {VISITORS} visitors without an answer": good[:PARALLEL].count(
            False
        ),
        f"requests of {LATER} without an answer": good.count(False),
        f"memory after {PARALLEL} requests, MB": early,
        f"memory after {LATER} requests, MB": late,
        f"memory after {LATER} requests over that after {PARALLEL}, MB": late - early,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recording", nargs="?", type=Path, default=EXAMPLE)
    parser.add_argument("--photo", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.recording, options.photo)
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        for name, value in figures.items():
            bound = f" (bound {AT_MOST[name]})" if name in AT_MOST else ""
            print(f"{value:10.3g} {name}{bound}")
    missed = [name for name, bound in AT_MOST.items() if figures[name] > bound]
    if missed:
        raise SystemExit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
