"""The page of `s2f app` in a process of its own, and those who ask it over HTTP."""

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


class Visitor:
    """One who asks the page over HTTP, as a browser does."""

    def __init__(self, server: Server) -> None:
        self.address = urllib.parse.urlsplit(json.loads(server.said)["url"]).netloc

    def request(self, method, where, body=None, kind="application/json") -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.address, timeout=120)
        with contextlib.closing(connection):
            connection.request(method, where, body, {"Content-Type": kind} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

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
        return self.ask_of(question, *[self.send(content, name)[1] for content in contents])

    def ask_of(self, question: str, *paths: str | None, **kind: Any) -> str:
        """Wait for what the page answers to files that lie on the server."""
        kind = kind or {"meta": {"_type": "gradio.FileData"}}
        data = [path and {"path": path, **kind} for path in paths]
        where = f"/gradio_api/call/{question}"
        _, text = self.request("POST", where, json.dumps({"data": data}).encode())
        _, text = self.request("GET", f"{where}/{json.loads(text)['event_id']}")
        event, value = re.findall(r"event: (\w+)\ndata: (.*)", text)[-1]
        if event != "complete":
            raise RuntimeError(f"{event}: {value}")
        return str(json.loads(value)[0])
