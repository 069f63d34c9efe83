"""An S3 server on loopback, and a proxy before it that makes faults."""

import http.client
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from moto.server import ThreadedMotoServer


@contextmanager
def s3_server() -> Iterator[tuple[str, int]]:
    """Serve S3 from memory, and give where."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()
    finally:
        server.stop()


class Faulty(ThreadingHTTPServer):
    """Hands requests on to a server, but first does to some what `faults` has for them.

    A fault is `503`, `hang`, `half` (of a body) or `cut` (a body shorter than it is said to be);
    it takes the next request whose method and path fit, and is gone.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self.behind, self.faults, self.seen, self.asked = (host, port), [], [], []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def fault(self, method: str, path: str) -> str:
        self.asked.append((method, path))
        for k, (kind, its_method, its_path) in enumerate(self.faults):
            if method == its_method and its_path in path:
                del self.faults[k]
                self.seen.append(kind)
                return kind
        return ""

    def handle_error(self, request, client_address) -> None:
        """Say nothing: clients go away when they are tired of waiting."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Faulty

    def log_message(self, *args) -> None:
        """Say nothing."""

    def handle_any(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        fault = self.server.fault(self.command, self.path)
        if fault == "503":
            text = b"<Error><Code>ServiceUnavailable</Code><Message>later</Message></Error>"
            return self.answer(503, [("Content-Type", "application/xml")], text)
        if fault == "hang":
            time.sleep(9)  # longer than anybody waits
            self.close_connection = True
            return None
        there = http.client.HTTPConnection(*self.server.behind)
        there.request(self.command, self.path, body, dict(self.headers))
        answer = there.getresponse()
        content = answer.read()
        there.close()
        left_out = {"content-length", "transfer-encoding", "connection"}
        heads = [(k, v) for k, v in answer.getheaders() if k.lower() not in left_out]
        if self.command == "HEAD":
            heads += [("Content-Length", answer.getheader("Content-Length", "0"))]
            return self.answer(answer.status, heads, None)
        if fault == "cut":
            content = content[: len(content) // 2]
        return self.answer(answer.status, heads, content, half=fault == "half")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    def answer(self, status: int, heads: list, body: bytes | None, half: bool = False) -> None:
        self.send_response(status)
        for head in heads:
            self.send_header(*head)
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body:
            self.wfile.write(body[: len(body) // 2] if half else body)
        if half:
            self.wfile.flush()
            self.close_connection = True
