"""Serves the page: its address, who may ask, and what a visit may cost.

What a visitor sends is in memory alone while it is answered, and in no file. Who sends slowly, or
does not read, is broken off. Knows nothing of what is on the page.
"""

import asyncio
import contextlib
import dataclasses
import errno
import ipaddress
import logging
import re
import socket
import threading
import time
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
from typing import Any

from s2f.console import one_line
from s2f.errors import DeviceError, UsageError

MAX_MB, MAX_SECONDS = 25.0, 60.0  # of a file; that are heard of a recording
MB = 2**20
FORGOTTEN = 600.0  # seconds that sending may take in all
PATIENCE = 60.0  # seconds that one may take to send a request's head, or to read on
LINGER = 1.0  # seconds that what is refused may still be sent
CROWD = 32  # connections that send nothing, or are not read: then a few seconds have to do
TOGETHER = 20  # files of the largest size that may be under way at a time
POLICY = (  # the page's own files, and pictures in its answers; nothing outside is asked
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'self'; form-action 'none'; base-uri 'self'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
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
App = Callable[[Message, Any, Any], Awaitable[None]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where the page is served, and what a visitor may send."""

    host: str = "127.0.0.1"  # address that is listened at, one of IPv6 perhaps in brackets
    port: int = 7860  # there; 0 for one that is free
    root_path: str = ""  # under which a proxy has the page, such as /s2f, or a whole address
    max_mb: float = MAX_MB  # of a file
    max_seconds: float = MAX_SECONDS  # that are heard of a recording
    align: bool = True  # whether faces are found in photos, and framed
    detector: str | None = None  # that finds them; by default the one that is installed

    @property
    def max_bytes(self) -> int:
        """Bytes of a file, at most."""
        return round(self.max_mb * MB)

    @property
    def root(self) -> str:
        """The path that a proxy has the page under, without a slash at its end."""
        return urllib.parse.urlsplit(self.root_path).path


def check_settings(settings: Settings) -> Settings:
    """Make sure that the settings can be, before anything slow is done, and bring them to one form.

    Raises UsageError if no proxy can have the page under that path.
    """
    host, root = settings.host, settings.root_path
    if root and not re.fullmatch(r"(https?://[^/?#\s]+)?(/[^/?#\s]+)*/?", root):
        message = f"{root} is no path that a proxy could have the page under"
        raise UsageError(message, hint="--root-path /s2f, or --root-path https://example.org/s2f")
    if host.startswith("[") and host.endswith("]"):  # as addresses of pages have them
        host = host[1:-1]
    # As browsers say where a page is from: without the port that goes without saying.
    plain = "^(http://[^/]+):80(?=/|$)|^(https://[^/]+):443(?=/|$)"
    root = re.sub(plain, r"\1\2", root.rstrip("/"))
    return dataclasses.replace(settings, host=host, root_path=root)


def listen(settings: Settings) -> socket.socket:
    """Listen at the address: who asks waits until the page is served there.

    Raises UsageError if nothing can listen there.
    """
    host, port = settings.host, settings.port
    try:
        kind, passive = socket.SOCK_STREAM, socket.AI_PASSIVE
        family, *_, address = socket.getaddrinfo(host, port, 0, kind, 0, passive)[0]
        return socket.create_server(address[:2], family=family)
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
def serve(app: App, settings: Settings, listening: socket.socket) -> Iterator[str]:
    """Serve an ASGI app for as long as the context lasts, which gives the page's address.

    The settings are those that `check_settings` gave back, and `listening` what `listen` did.
    Raises DeviceError if the server does not start.
    """
    import uvicorn

    own = urllib.parse.urlsplit(settings.root_path).netloc
    names = {"localhost", "127.0.0.1", "::1", settings.host.lower(), _host(own)} - {""}
    guarded = Guard(
        app,
        most=settings.max_bytes,
        root=settings.root,
        own=own,
        hosts=names if is_here_alone(settings.host) else None,
    )
    config = uvicorn.Config(
        guarded, http="h11", ws="none", lifespan="on", log_config=None, access_log=False
    )  # of the other parser of HTTP, which may be installed, heads have no limit
    server = uvicorn.Server(config)
    guarded.watch = lambda: watch(server)
    # In a thread of its own, where it leaves signals alone.
    sockets = [listening]
    thread = threading.Thread(target=server.run, args=(sockets,), name="page", daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise DeviceError("the page cannot be served", hint="look at what is said above")
            time.sleep(0.01)
        # That of all addresses is none to visit.
        host = {"::": "::1", "0.0.0.0": "127.0.0.1"}.get(settings.host, settings.host)
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{listening.getsockname()[1]}{settings.root}/"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


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


async def watch(server: Any, pause: float = 5.0) -> None:
    """Break off who is too slow, of those who are connected to a uvicorn server, until it ends."""
    connections = Patience()
    while True:
        await asyncio.sleep(pause)
        try:
            slow = stalled(server.server_state.connections)
            for connection in connections.ends_for(slow, PATIENCE if len(slow) < CROWD else 0):
                connection.transport.abort()
        except Exception:  # the page is served all the same
            logging.getLogger(__name__).exception("slow visitors could not be looked for")


def stalled(connections: Collection[Any]) -> dict[Any, Hashable]:
    """Find connections of uvicorn's that send no request, or do not read; each with its state."""
    states: dict[Any, Hashable] = {}
    for connection in connections:
        cycle = connection.cycle
        unsent = connection.transport.get_write_buffer_size()
        if cycle is None or cycle.response_complete or unsent:
            states[connection] = id(cycle), unsent
    return states


class Guard:
    """Stands before an ASGI app: lets through who may ask, and only what fits.

    What is sent has at most `most` bytes, and says how many. Some proxies leave the path before a
    request's that they have the page under: `root`.

    A page of another site may ask nothing, whether a browser knows it for one (Fetch Metadata;
    else by its origin, which is ours, or `own` where a proxy has it), or takes its name for this
    machine's (DNS rebinding): the page is asked by one of `hosts`, or if None by any name.
    """

    def __init__(
        self,
        app: App,
        most: int,
        root: str = "",
        own: str = "",
        hosts: Collection[str] | None = None,
        watch: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Stand before `app`; `watch` is run beside it."""
        self.app, self.most = app, most
        self.root = urllib.parse.unquote(root)  # as a path comes
        self.own, self.hosts, self.watch = own, hosts, watch
        self.under_way = 0  # bytes that are being sent, or answered

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
            path = scope["path"].removeprefix(self.root) or "/"
            scope = {**scope, "path": path, "raw_path": path.encode()}
        length = 0
        try:
            length = self._length(scope)
            if self.under_way + length > TOGETHER * self.most:
                raise _RefusedError(503, "Too much is being sent at the moment. Try again later.")
        except _RefusedError as refused:
            status, text = refused.args
            await _refuse(send, status, text, receive if scope["method"] == "POST" else None)
            return
        self.under_way += length
        try:
            await self._pass(scope, receive, send, length)
        finally:
            self.under_way -= length

    async def _pass(self, scope: Message, receive: Any, send: Send, left: int) -> None:
        """Pass on a request that sends so many bytes."""
        is_answered, is_whole = False, scope["method"] != "POST"
        late: tuple[int, str] | None = None  # what was wrong with the rest of the request
        end = time.monotonic() + FORGOTTEN

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
            return {"type": "http.disconnect"} if late else message

        async def answer(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                is_answered = True
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        try:
            await self.app(scope, hear, answer)
        except Exception as error:
            if not late:
                said = f"a request could not be understood: {error!r}"
                logging.getLogger(__name__).warning("%s", one_line(said)[:300])
                late = 400, "What you sent could not be understood."
            if not is_answered:
                await _refuse(send, *late)

    def _length(self, scope: Message) -> int:
        """Tell how many bytes a request sends; raise if it is refused for what its head says."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        self._know(scope["method"], headers)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise _RefusedError(405, "There is nothing to do so with here.")
        (length, *more) = headers.get(b"content-length", [b""])
        if scope["method"] != "POST":
            return 0
        is_plain = length.isdigit() and not more and b"transfer-encoding" not in headers
        if not is_plain or int(length) > self.most:
            raise _RefusedError(413, TOO_LARGE)
        return int(length)

    def _know(self, method: str, headers: Mapping[bytes, list[bytes]]) -> None:
        """Raise for what another site's page asks."""
        asked = [value.decode("latin-1").lower() for value in headers.get(b"host", [])]
        if self.hosts is not None and not (asked and all(_host(a) in self.hosts for a in asked)):
            raise _RefusedError(421, NOT_OURS)
        site = headers.get(b"sec-fetch-site", [b""])[-1]
        origin = headers.get(b"origin", [b""])[-1].decode("latin-1").lower()
        if site not in (b"", b"none", b"same-origin"):
            goes = headers.get(b"sec-fetch-mode") == [b"navigate"]  # from there to here
            if not (goes and method in ("GET", "HEAD")):
                raise _RefusedError(403, ELSEWHERE)
        elif method == "POST" and origin and not site:
            known = {*asked, self.own.lower()} - {""}
            if origin.partition("://")[2] not in known:
                raise _RefusedError(403, ELSEWHERE)


class _RefusedError(Exception):
    """With which status and sentence a request is refused."""


async def _refuse(send: Send, status: int, text: str, receive: Any = None) -> None:
    """Refuse a request; what is still being sent is taken for a moment, and dropped.

    Closed at once, a connection would be reset, and the sentence never read.
    """
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close"), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    body: Message = {"type": "http.response.body", "body": text.encode()}
    await send({**body, "more_body": receive is not None})
    if receive:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b""})


def _host(address: str) -> str:
    """Give the name in `name:port`, as in a Host header; of IPv6, without brackets."""
    return re.sub(r":\d*$", "", address.lower()).removeprefix("[").removesuffix("]")


def is_here_alone(host: str) -> bool:
    """Tell whether only this machine reaches what is served at an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, at which the page is listened for
        kind = socket.SOCK_STREAM
        return all(
            ipaddress.ip_address(str(address[0])).is_loopback
            for *_, address in socket.getaddrinfo(host, 0, type=kind)
        )
