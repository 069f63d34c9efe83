"""Serves a page of Gradio's: its address, what a visit may cost, and that nothing of it stays.

What a visitor sends lies in a folder that is private, is the program's own and ends with it, or,
if it is killed, when the next one starts; a file leaves it as soon as it is read, at the latest
after ten minutes. Who sends slowly, or does not read, is broken off, and what waits for him is
forgotten.

Knows nothing of what is on the page. Some of this reaches into parts of Gradio that it does not
promise to keep: see `GRADIO`.
"""

import asyncio
import contextlib
import contextvars
import dataclasses
import errno
import functools
import io
import ipaddress
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
import types
import urllib.parse
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Hashable,
    Iterator,
    Mapping,
    MutableMapping,
)
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from s2f.console import one_line
from s2f.errors import DependencyError, DeviceError, InputError, OutputError, UsageError
from s2f.files import put_away_at_the_end

if TYPE_CHECKING:
    import gradio as gr

GRADIO = "6.31"  # whose own parts `_patch` and `hand_over` change; pyproject asks for no other
MAX_MB, MAX_SECONDS = 25.0, 60.0  # of a file; that are heard of a recording
SESSIONS = 100  # whose layout Gradio remembers
FORGOTTEN = 600.0  # seconds after which a file goes that nobody asked about
PATIENCE = 60.0  # seconds that one may take to send a request's head, or to read on
CROWD = 32  # connections that send nothing, or are not read: then a few seconds have to do
PREFIX = "s2f-visitors-"  # of the folder's name
OVERHEAD = 65_536  # bytes of an upload beside the file: its headers
TOGETHER = 20  # uploads of the largest size that may wait to be asked about
POSTED = ("/upload", "/queue/join", "/call/", "/cancel", "/reset")  # what the page sends to
OFF = ("run_history", "enable_monitoring", "mcp_server", "ssr_mode", "pwa")  # of the page
NOT_READ = ("file=http", "file/http", "proxy=", "deep_link", "/monitoring")
POLICY = (  # whatever a page of ours or of Gradio's names: nothing outside is asked
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
)
TOO_LARGE = "What you sent is too large, or does not say how large it is."
NOT_OURS = (
    "This page is asked by the address that `s2f app` prints. If a proxy has it under another "
    "name, start it with that, such as --root-path https://example.org/s2f."
)
ELSEWHERE = (
    "Another site's page asked this. If a proxy has this page under a name of its own, start "
    "`s2f app` with that, such as --root-path https://example.org/s2f."
)
Message = MutableMapping[str, Any]  # of ASGI, and its scope
Send = Callable[[Message], Awaitable[None]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where the page is served, and what a visitor may send."""

    host: str = "127.0.0.1"  # address that is listened at, one of IPv6 perhaps in brackets
    port: int = 7860  # there; 0 for one that is free
    root_path: str = ""  # under which a proxy has the page, such as /s2f, or a whole address
    share: bool = False  # whether Gradio's servers give it a public address too
    max_mb: float = MAX_MB  # of a file
    max_seconds: float = MAX_SECONDS  # that are heard of a recording
    align: bool = True  # whether faces are found in photos, and framed
    detector: str | None = None  # that finds them; by default the one that is installed


def check_settings(settings: Settings) -> Settings:
    """Make sure that the page can be served, before anything slow is done; choose a port for 0.

    Raises DependencyError if Gradio is not installed, or another version of it; UsageError if
    nothing can listen there, or no proxy can have it under that path.
    """
    cure = "pip install 's2f[app]'"
    try:
        version = metadata.version("gradio")
    except metadata.PackageNotFoundError as error:
        message = "the page needs the package gradio, which is not installed"
        raise DependencyError(message, hint=cure) from error
    if not f"{version}.".startswith(f"{GRADIO}."):
        message = f"the page needs gradio {GRADIO}, of which it changes what would keep visitors'"
        raise DependencyError(f"{message} files; installed is {version}", hint=cure)
    host, root = settings.host, settings.root_path
    if root and not re.fullmatch(r"(https?://[^/?#\s]+)?(/[^/?#\s]+)*/?", root):
        message = f"{root} is no path that a proxy could have the page under"
        raise UsageError(message, hint="--root-path /s2f, or --root-path https://example.org/s2f")
    if host.startswith("[") and host.endswith("]"):  # as addresses of pages have them
        host = host[1:-1]
    port = _free_port(host, settings.port)
    while host != "127.0.0.1":  # where Gradio tries a port too, wherever it listens
        try:
            _free_port("127.0.0.1", port)
            break
        except UsageError:
            if settings.port:
                raise
            port = _free_port(host, 0)
    # As browsers say where a page is from: without the port that goes without saying.
    plain = "^(http://[^/]+):80(?=/|$)|^(https://[^/]+):443(?=/|$)"
    root = re.sub(plain, r"\1\2", root.rstrip("/"))
    return dataclasses.replace(settings, host=host, port=port, root_path=root)


def _free_port(host: str, port: int) -> int:
    """Listen at a port for a moment, at any free one for 0; raises a UsageError if it cannot."""
    try:
        kind, passive = socket.SOCK_STREAM, socket.AI_PASSIVE
        family, _, protocol, _, address = socket.getaddrinfo(host, port, 0, kind, 0, passive)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            trial.listen(1)
            return int(trial.getsockname()[1])
    except OSError as error:
        place, hint = f"port {port} of {host}", "choose another with --port, or --port 0"
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"{place} is taken by another program", hint=hint) from error
        if error.errno == errno.EACCES:
            raise UsageError(f"{place} may not be used", hint=f"{hint}, 1024 or more") from error
        message = f"{host} is no address of this machine ({error.strerror or error})"
        hint = "--host 127.0.0.1 is for this machine alone, --host 0.0.0.0 for the whole network"
        raise UsageError(message, hint=hint) from error


@contextlib.contextmanager
def serve(
    lay_out: Callable[[], tuple["gr.Blocks", Mapping[str, Any]]], settings: Settings
) -> Iterator[tuple[str, str | None]]:
    """Serve a page for as long as the context lasts, which gives its address and its public one.

    `lay_out`, by which Gradio is imported, gives the page, and its `css`, `head` and `theme`. The
    settings are those that `check_settings` gave back. Raises OutputError as `private_folder`, and
    DeviceError if the page cannot be shared.
    """
    # Gradio reads these when it is imported.
    variables = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "True"}
    for name in ("NO_PROXY", "no_proxy"):  # it asks its own address whether all is well
        hosts = [os.environ.get(name, ""), "127.0.0.1", "localhost", settings.host]
        variables[name] = ",".join(filter(None, hosts))
    with private_folder() as folder, _environment(variables):
        from starlette.middleware import Middleware

        _patch()
        page, look = lay_out()
        off: dict[str, Any] = dict.fromkeys(OFF, False)
        max_bytes = round(settings.max_mb * 2**20)  # as Gradio counts
        room = functools.partial(has_room, folder, TOGETHER * max_bytes)
        root = urllib.parse.urlsplit(settings.root_path)
        names = {"localhost", "127.0.0.1", "::1", settings.host.lower(), _host(root.netloc)} - {""}
        guard: Any = functools.partial(
            Guard,
            max_bytes=2 * max_bytes,
            room=room,
            root=root.path,
            own=root.netloc,
            hosts=names if is_here_alone(settings.host) else None,
            watch=lambda: watch(page),
        )
        name = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # ours is for results
                page.launch(
                    server_name=name,
                    server_port=settings.port,
                    root_path=settings.root_path,
                    share=settings.share,
                    prevent_thread_lock=True,
                    quiet=True,
                    footer_links=[],
                    state_session_capacity=SESSIONS,
                    max_file_size=max_bytes,
                    app_kwargs={"middleware": [Middleware(guard)]},
                    **off,
                    **look,
                )
            if settings.share and not page.share_url:
                message = "no public link could be made: the servers of Gradio's cannot be reached"
                raise DeviceError(message, hint="look at the network, or leave --share out")
            if page.share_url:
                names.add(urllib.parse.urlsplit(page.share_url).netloc)
            # That of all addresses is none to visit; of IPv4's, 0.0.0.0, Gradio knows it.
            yield str(page.local_url).replace("//[::]", "//[::1]"), page.share_url
        finally:
            # First: whoever is in a hurry now interrupts what follows.
            shutil.rmtree(folder, ignore_errors=True)
            if page.is_running:
                # Pages that are open would hold it for seconds; that they are cut off is no news.
                page.server.force_exit = True
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            page.close(verbose=False)


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Make the folder that Gradio keeps files in, for nobody else to read; it goes at the end.

    Those go too that servers have left which were killed. Raises OutputError if there is no place
    for it.
    """
    try:
        folder, lock = _own_folder()
    except OSError as error:
        message = f"no folder can be made for what visitors send ({error.strerror or error})"
        hint = "free some space, or set TMPDIR to a folder that can be written"
        raise OutputError(message, hint=hint) from error
    done = threading.Event()

    def tidy() -> None:
        while not done.wait(60):
            try:
                sweep(folder, FORGOTTEN)
            except OSError:  # too many open files, say: later there is room again
                logging.getLogger(__name__).exception("old files could not be looked for")

    threading.Thread(target=tidy, daemon=True).start()
    try:
        with put_away_at_the_end(folder), _environment({"GRADIO_TEMP_DIR": str(folder)}):
            yield folder
    finally:
        done.set()
        if lock is not None:
            os.close(lock)


def _own_folder() -> tuple[Path, int | None]:
    """Make a folder, and lock it, where there are such locks; remove those that nobody holds."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if (lock := _locked(left)) is not None:
            if (again := _locked(left)) is None:  # or locks keep nobody out here
                shutil.rmtree(left, ignore_errors=True)
            else:
                os.close(again)
            os.close(lock)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        lock = _locked(folder)
        if folder.exists():  # or another server took it for one that was left
            return folder, lock
        if lock is not None:
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """Lock a folder for as long as its descriptor is open; None if it cannot be, or is already."""
    try:
        import fcntl
    except ImportError:  # on Windows
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # another user's, or no folder
        return None
    try:
        if os.fstat(descriptor).st_uid == os.getuid():  # root may open all
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment, and give them back as they were."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def sweep(folder: Path, age: float) -> None:
    """Delete the files in a folder that are older than some seconds, and such empty folders.

    Gradio's own `delete_cache` would leave what was sent in part before a visitor broke off.
    """
    for path in sorted(folder.rglob("*"), reverse=True):  # files before their folders
        with contextlib.suppress(OSError):  # it is gone, or a folder that holds something
            # A folder that is new may just be about to get its file.
            if time.time() - path.stat().st_mtime > age:
                path.rmdir() if path.is_dir() else path.unlink()


def has_room(folder: Path, max_bytes: int) -> bool:
    """Tell whether a folder holds less than some bytes."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it is gone
            total += path.stat().st_size
    return total < max_bytes


def take(*paths: str | Path) -> list[BinaryIO]:
    """Read what a visitor sent, and delete it: nothing of it lies anywhere while it is answered.

    A request may name any path: one that is not of a file in the private folder is neither read nor
    deleted. It raises an InputError, as a file that is gone does; the others are deleted all the
    same.
    """
    folder = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    real = [Path(path).resolve() for path in paths]
    sent = [path for path in real if path.is_relative_to(folder) and path.is_file()]
    try:
        if len(sent) < len(real):
            raise FileNotFoundError
        return [io.BytesIO(path.read_bytes()) for path in sent]
    except FileNotFoundError as error:
        message = "what you sent was deleted already: it was answered, or had waited for long"
        raise InputError(message, hint="record it or choose it again") from error
    finally:
        for path in sent:
            path.unlink(missing_ok=True)


def hand_over(component: Any) -> None:
    """Have a component of Gradio give the path of what was sent, and do nothing else with it.

    Otherwise it would hash the file, or open it; or fetch it, if the path is an address.
    """

    async def unmoved(path: str | Path | None) -> str | None:
        return None if path is None else str(path)

    # Of this instance: Gradio writes a file beside the module of each class of components.
    component.async_move_resource_to_block_cache = unmoved
    component.preprocess = lambda sent: sent and sent.path


def _tell(error: BaseException | None) -> None:
    """Say in one line what a request came to that is none of the page's."""
    said = f"a request could not be understood: {error!r}"
    logging.getLogger(__name__).warning("%s", one_line(said)[:300])


def _patch() -> None:
    """Have Gradio name each file that is sent apart, and forget what it answered.

    It names files by their content: two visitors who send the same recording would share one file,
    and the answer of the first would delete it from under the second. What a visitor's file was
    called is not kept either. And it would hold an answer for an hour after the visit, to show it
    again by a link: another's faces, in the memory of the server. It also prints a traceback for
    every question that it cannot make out, which anyone may ask at will.
    """
    from gradio import queueing, route_utils, state_holder

    sent = route_utils.GradioUploadFile

    class Upload(sent):  # type: ignore[misc, valid-type]
        def __init__(self, file: BinaryIO, *, filename: str | None = None, **others: Any) -> None:
            suffix = Path(filename or "").suffix[:8]
            super().__init__(file, filename=f"{secrets.token_hex(16)}{suffix}", **others)
            _sent.get().append(file.name)

    def forget(session: object, component: int, value: object) -> None:
        """Take the place of what keeps the value of a component."""

    route_utils.GradioUploadFile = Upload  # type: ignore[misc]
    assert hasattr(vars(queueing)["traceback"], "print_exc")
    vars(queueing)["traceback"] = types.SimpleNamespace(print_exc=lambda: _tell(sys.exception()))
    assert hasattr(state_holder.SessionState, "_update_value_in_config")
    state_holder.SessionState._update_value_in_config = forget  # type: ignore[method-assign, assignment]


_sent: contextvars.ContextVar[list[str]] = contextvars.ContextVar("files of a request")


class Patience:
    """Tells what has been as it is for more than some seconds; it looks now and then."""

    def __init__(self) -> None:
        self._since: dict[Hashable, tuple[Hashable, float]] = {}

    def ends_for(self, states: Mapping[Any, Hashable], seconds: float = PATIENCE) -> list[Any]:
        """Look again: of things and the states they are in, which have not moved for too long."""
        now, before = time.monotonic(), self._since
        self._since = {
            key: before[key] if key in before and before[key][0] == state else (state, now)
            for key, state in states.items()
        }
        return [key for key, (_, since) in self._since.items() if now - since > seconds]


async def watch(page: "gr.Blocks", pause: float = 5.0) -> None:
    """Break off who is too slow, and forget what Gradio keeps for who does not come for it.

    It is of the loop that serves the page, and ends with it.
    """
    connections, sessions, uploads = Patience(), Patience(), Patience()
    while True:
        await asyncio.sleep(pause)
        try:
            slow = stalled(page.server.server_state.connections)
            for connection in connections.ends_for(slow, PATIENCE if len(slow) < CROWD else 0):
                connection.transport.abort()
            queue = page._queue
            for session in sessions.ends_for(unread(queue)):
                await queue.clean_events(session_hash=session)
                queue.pending_messages_per_session.pop(session, None)
                queue.pending_event_ids_session.pop(session, None)
            _forget_uploads(page, uploads)
        except Exception:  # the page is served all the same
            logging.getLogger(__name__).exception("slow visitors could not be looked for")


def stalled(connections: Collection[Any]) -> dict[Any, Hashable]:
    """Find connections of uvicorn's that send no request, or do not read; each with its state."""
    states: dict[Any, Hashable] = {}
    for connection in connections:
        cycle = getattr(connection, "cycle", None)  # of WebSockets there is none
        unsent = connection.transport.get_write_buffer_size()
        if cycle is None or cycle.response_complete or unsent:
            states[connection] = id(cycle), unsent
    return states


def unread(queue: Any) -> dict[str, Hashable]:
    """Find sessions of a queue of Gradio's whose messages nobody takes, or that ask nothing."""
    asking = queue.pending_event_ids_session
    waiting = {key: sent.qsize() for key, sent in queue.pending_messages_per_session.items()}
    idle = (key for key in {*waiting, *asking} if waiting.get(key) or not asking.get(key))
    return dict.fromkeys(idle, True)


def _forget_uploads(page: "gr.Blocks", uploads: Patience) -> None:
    """Forget how far uploads have come, and the paths of files that are gone."""
    from gradio import routes

    progress = routes.file_upload_statuses
    lengths = {
        key: sum(unit.chunk_size for unit in tracked.deque) if tracked else 0
        for key, tracked in ((k, progress._statuses.get(k)) for k in list(progress._signals))
    }
    for key in uploads.ends_for(lengths):
        progress._signals.pop(key, None)
        progress._statuses.pop(key, None)
    gone = {path for path in page.upload_file_set if not os.path.exists(path)}
    page.upload_file_set.difference_update(gone)


class Guard:
    """Stands before the server, in ASGI: lets through what the page needs, and only where it fits.

    Gradio has more routes than the page asks for: some write files elsewhere, or have the server
    fetch any address. An upload has at most `max_bytes`, and passes while there is `room`. Some
    proxies leave the path before a request's that they have the page under: `root`.

    A page of another site may ask nothing, whether a browser knows it for one (Fetch Metadata;
    else by its origin, which is ours, or `own` where a proxy has it), or takes its name for this
    machine's (DNS rebinding): the page is asked by one of `hosts`, or if None by any name.
    """

    def __init__(
        self,
        app: Any,
        max_bytes: int,
        room: Callable[[], bool] = lambda: True,
        root: str = "",
        own: str = "",
        hosts: Collection[str] | None = None,
        watch: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Stand before `app`; `watch` is run beside it."""
        self.app, self.max_bytes, self.room, self.root = app, max_bytes, room, root
        self.own, self.hosts, self.watch = own, hosts, watch

    async def __call__(self, scope: Message, receive: Any, send: Send) -> None:
        """Pass a request on, unless there is something against it."""
        if scope["type"] == "lifespan":
            watching = self.watch and asyncio.ensure_future(self.watch())
            try:
                await self.app(scope, receive, send)
            finally:
                if watching:
                    watching.cancel()
            return
        if scope["type"] != "http":  # the page has no WebSockets
            await send({"type": "websocket.close"})
            return
        if self.root and f"{scope['path']}/".startswith(f"{self.root}/"):
            scope = {**scope, "path": scope["path"].removeprefix(self.root) or "/"}
        if refused := self._refused(scope):
            await _refuse(send, *refused)
            return
        is_answered, left = False, self._most(scope["path"])
        late: tuple[int, str] | None = None  # what was wrong with the rest of the request
        end = time.monotonic() + FORGOTTEN
        is_whole = scope["method"] != "POST"

        async def hear() -> Message:
            """Receive; who is too slow, breaks off or sends more than he said has gone."""
            nonlocal is_whole, left, late
            message: Message
            if is_whole:  # only that he goes may come
                message = await receive()
                return message
            try:
                patience = min(PATIENCE, end - time.monotonic())
                message = await asyncio.wait_for(receive(), patience)
            except TimeoutError:
                message = {"type": "http.disconnect"}
            left -= len(message.get("body", b""))
            if left < 0:
                late = 413, TOO_LARGE
            elif message["type"] == "http.disconnect":
                late = 408, "What you sent did not arrive in time."
            is_whole = not message.get("more_body", False)
            if late:
                message = {"type": "http.disconnect"}
            return message

        async def answer(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                is_answered = True
                policy = (b"content-security-policy", POLICY.encode())
                private = (b"referrer-policy", b"no-referrer")
                message["headers"] = [*message.get("headers", []), policy, private]
            await send(message)

        sent = _sent.set([])
        try:
            await self.app(scope, hear, answer)
        except Exception as error:
            if not late:
                _tell(error)
                late = 400, "What you sent could not be understood."
            if not is_answered:
                await _refuse(send, *late)
        finally:
            for path in _sent.get():  # what Gradio took has another name by now
                Path(path).unlink(missing_ok=True)
            _sent.reset(sent)

    def _refused(self, scope: Message) -> tuple[int, str] | None:
        """Say with which status and sentence a request is refused, for what its head says."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        if refused := self._strange(scope["method"], headers):
            return refused
        path = str(scope["path"]).lower()
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            known = not any(part in path for part in NOT_READ)
        else:
            known = scope["method"] == "POST" and any(part in path for part in POSTED)
        if not known:
            return 404, "There is nothing here."
        if scope["method"] != "POST":
            return None
        (length, *more) = headers.get(b"content-length", [b""])
        if b"transfer-encoding" in headers or more or not length.isdigit():
            return 413, TOO_LARGE
        if int(length) > self._most(path):
            return 413, TOO_LARGE
        if path.endswith("/upload") and not self.room():
            return 507, "Too much has been sent that was not asked about yet. Try again later."
        return None

    def _most(self, path: str) -> int:
        """Say how many bytes a request may have."""
        return OVERHEAD + (self.max_bytes if path.lower().endswith("/upload") else 0)

    def _strange(self, method: str, headers: Mapping[bytes, list[bytes]]) -> tuple[int, str] | None:
        """Refuse what another site's page asks."""
        asked = [value.decode("latin-1").lower() for value in headers.get(b"host", [])]
        if self.hosts is not None and not (asked and all(_host(a) in self.hosts for a in asked)):
            return 421, NOT_OURS
        site = headers.get(b"sec-fetch-site", [b""])[-1]
        if site not in (b"", b"none", b"same-origin"):
            goes = headers.get(b"sec-fetch-mode") == [b"navigate"]  # from there to here
            return None if goes and method in ("GET", "HEAD") else (403, ELSEWHERE)
        origin = headers.get(b"origin", [b""])[-1].decode("latin-1").lower()
        known = {*asked, self.own.lower()} - {""}
        if method == "POST" and origin and not site:
            return None if origin.partition("://")[2] in known else (403, ELSEWHERE)
        return None


async def _refuse(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def _host(address: str) -> str:
    """Give the name in `name:port`, as in a Host header; of IPv6, without brackets."""
    return re.sub(r":\d*$", "", address.lower()).removeprefix("[").removesuffix("]")


def is_here_alone(host: str) -> bool:
    """Tell whether only this machine reaches what is served at an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which `check_settings` has looked up
        kind = socket.SOCK_STREAM
        return all(
            ipaddress.ip_address(str(address[0])).is_loopback
            for *_, address in socket.getaddrinfo(host, 0, type=kind)
        )
