"""What a visit may cost and leave behind: limits of size, and files that live in one folder.

Gradio writes what a visitor sends to a folder. Here that folder is private, is the program's own
and ends with it; a file leaves it as soon as it is read, at the latest after ten minutes.
"""

import contextlib
import io
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, BinaryIO

from s2f.errors import InputError, OutputError

MAX_MB, MAX_SECONDS = 25.0, 60.0  # of a file; that are heard of a recording
SESSIONS = 100  # whose layout Gradio remembers
FORGOTTEN = 600.0  # seconds after which a file goes that nobody asked about
OVERHEAD = 65_536  # bytes of an upload beside the file: its headers
POLICY = (  # whatever a page of ours or of Gradio's names: nothing outside is asked
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
)
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Make the folder that Gradio keeps files in, for nobody else to read; it goes at the end.

    Raises:
        OutputError: if there is no place for it.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="s2f-page-"))
    except OSError as error:
        raise OutputError(
            f"no folder can be made for what visitors send ({error.strerror or error})",
            hint="free some space, or set TMPDIR to a folder that can be written",
        ) from error
    done = threading.Event()
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    threading.Thread(target=_tidy, args=(folder, done), daemon=True).start()
    try:
        yield folder
    finally:
        done.set()
        del os.environ["GRADIO_TEMP_DIR"]
        if before is not None:
            os.environ["GRADIO_TEMP_DIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


def take(*paths: str | Path) -> list[BinaryIO]:
    """Read what a visitor sent, and delete it: nothing of it lies anywhere while it is answered.

    Raises:
        InputError: if a file is gone. The others are deleted all the same.
    """
    try:
        return [io.BytesIO(Path(path).read_bytes()) for path in paths]
    except FileNotFoundError as error:
        raise InputError(
            "what you sent was deleted already: it was answered, or had waited for long",
            hint="record it or choose it again",
        ) from error
    finally:
        for path in paths:
            Path(path).unlink(missing_ok=True)


def hand_over(component: Any) -> None:
    """Have a component of Gradio give the path of what was sent, and do nothing else with it.

    Otherwise it would hash the file, or open it; or fetch it, if the path is an address.
    """

    async def unmoved(path: str | Path | None) -> str | None:
        return None if path is None else str(path)

    # Of this instance: Gradio writes a file beside the module of each class of components.
    component.async_move_resource_to_block_cache = unmoved
    component.preprocess = lambda sent: sent and sent.path


def sweep(folder: Path, age: float) -> None:
    """Delete the files in a folder that are older than some seconds, and such empty folders."""
    for path in sorted(folder.rglob("*"), reverse=True):  # files before their folders
        with contextlib.suppress(OSError):  # it is gone, or a folder that holds something
            # A folder that is new may just be about to get its file.
            if time.time() - path.stat().st_mtime > age:
                path.rmdir() if path.is_dir() else path.unlink()


def _tidy(folder: Path, done: threading.Event) -> None:
    while not done.wait(60):
        sweep(folder, FORGOTTEN)


def name_uploads_apart() -> None:
    """Have Gradio give each file that is sent a name of its own.

    It names them by their content: two visitors who send the same recording would share one file,
    and the answer of the first would delete it from under the second. What a visitor's file was
    called is not kept either.
    """
    from gradio import route_utils

    sent = route_utils.GradioUploadFile

    class Upload(sent):  # type: ignore[misc, valid-type]
        def __init__(self, file: BinaryIO, *, filename: str | None = None, **others: Any) -> None:
            suffix = Path(filename or "").suffix[:8]
            super().__init__(file, filename=f"{secrets.token_hex(16)}{suffix}", **others)

    route_utils.GradioUploadFile = Upload  # type: ignore[misc]


def forget_answers() -> None:
    """Have Gradio forget what it answered to a visitor, whom it could show it again by a link.

    It would hold it for an hour after the visit: another's faces, in the memory of the server.
    """
    from gradio.state_holder import SessionState

    def forget(session: SessionState, component: int, value: object) -> None:
        """Take the place of what keeps the value of a component."""

    SessionState._update_value_in_config = forget  # type: ignore[method-assign, assignment]


class Guard:
    """Stands before the server: refuses what is too large, and lets no page ask another host."""

    def __init__(self, app: Application, max_bytes: int) -> None:
        """Guard an application.

        Args:
            app: in ASGI.
            max_bytes: of a request.
        """
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, unless it is too large."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "POST" and not self._fits(scope):
            text = b"What you sent is too large, or does not say how large it is."
            headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 413, "headers": headers})
            await send({"type": "http.response.body", "body": text})
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                private = (b"referrer-policy", b"no-referrer")
                message["headers"] = [*message.get("headers", []), policy, private]
            await send(message)

        await self.app(scope, receive, answer)

    def _fits(self, scope: Scope) -> bool:
        length = dict(scope["headers"]).get(b"content-length", b"")
        return length.isdigit() and int(length) <= self.max_bytes + OVERHEAD
