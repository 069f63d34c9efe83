"""The page of `s2f app` in a process of its own, and those who ask it over HTTP."""

import base64
import contextlib
import http.client
import io
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from trees import interruptible


def pixels(content: bytes) -> np.ndarray:
    """A picture in a file, [height width 3] from 0 to 255."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), float)


def picture(url: str) -> bytes:
    """The file in a data URL."""
    assert url.startswith("data:image/")
    return base64.b64decode(url.partition(";base64,")[2])


def vector(text: str) -> np.ndarray:
    """An embedding [d], or a step of one, as answers hold it."""
    return np.frombuffer(base64.b64decode(text), "<f4").copy()


class Server(subprocess.Popen[str]):
    """The page, served by a process of its own; `said` is what it printed when it was ready."""

    def __init__(self, *options: object, **environment: str) -> None:
        command = [sys.executable, "-m", "s2f", "app", "--port", "0", "--no-align"]
        command += map(str, options)
        self.notes = tempfile.TemporaryFile("w+")
        where = {"stdout": subprocess.PIPE, "stderr": self.notes, "env": os.environ | environment}
        super().__init__(command, text=True, preexec_fn=interruptible, **where)
        assert self.stdout
        self.said = self.stdout.readline()

    def end(self, number: int) -> tuple[int, str, str]:
        """Send it a signal, if it still runs: its exit code, and what it wrote to both streams."""
        self.send_signal(number)
        out = self.communicate(timeout=30)[0]
        self.notes.seek(0)
        return self.returncode, self.said + out, self.notes.read()

    def __exit__(self, *error: Any) -> None:
        self.kill()  # a test that failed did not end it
        self.notes.close()
        super().__exit__(*error)

    def memory(self) -> float:
        """What it alone holds (USS), MB."""
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return sum(int(kb) for kb in re.findall(r"Private_\w+: +(\d+) kB", text)) / 1000


class RefusedError(Exception):
    """What the page refused, and with which status; that of a refusal that came late is 200."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status, self.said = status, said


class Visitor:
    """One who asks the page over HTTP, as its script does."""

    def __init__(self, server: Server) -> None:
        self.address = urllib.parse.urlsplit(json.loads(server.said)["url"]).netloc
        self.visit = secrets.token_hex(16)

    def fetch(self, method, where, body=None, kind="application/octet-stream"):
        """Ask for anything: the status, the headers, and what came, bytes."""
        connection = http.client.HTTPConnection(self.address, timeout=120)
        with contextlib.closing(connection):
            connection.request(method, where, body, {"Content-Type": kind} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def request(self, method, where, body=None, kind="application/octet-stream") -> tuple[int, str]:
        """Ask for text: the status, and what came."""
        status, _, content = self.fetch(method, where, body, kind)
        return status, content.decode()

    def lines(self, path: str, content: bytes) -> list[dict[str, Any]]:
        """Send a file to `/voice` or `/photo`: all lines of the answer."""
        status, text = self.request("POST", path, content)
        if status != 200:
            raise RefusedError(status, text)
        return [json.loads(line) for line in text.splitlines()]

    def ask(self, path: str, content: bytes) -> dict[str, Any]:
        """Send a file to `/voice` or `/photo`: the answer, which is the last line's."""
        last = self.lines(path, content)[-1]
        if "refused" in last:
            raise RefusedError(200, last["refused"])
        return dict(last["answer"])

    def speak(self, samples: np.ndarray, rate: int) -> dict[str, Any]:
        """Send the next samples [n], of 16 bits, of what this visitor says: the answer."""
        where = f"/live?visit={self.visit}&rate={rate}"
        status, text = self.request("POST", where, samples.astype("<i2").tobytes())
        if status != 200:
            raise RefusedError(status, text)
        return dict(json.loads(text))
