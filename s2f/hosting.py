"""Where the web page lives: an address and a port, a folder for what is sent, a warm model.

What is on the page is for `app`; what may be sent, and when it is deleted, for `visits`.
"""

import contextlib
import dataclasses
import errno
import importlib.util
import io
import logging
import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

from s2f import visits
from s2f.errors import DependencyError, DeviceError, ImageError, UsageError

if TYPE_CHECKING:
    from s2f.infer import SpeechToFace


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where the page is served, and what a visitor may send.

    Attributes:
        host: address that is listened at.
        port: there; 0 for one that is free.
        share: whether Gradio's servers give it a public address too.
        max_mb: of a file.
        max_seconds: that are heard of a recording.
        align: whether faces are found in photos, and framed.
        detector: that finds them; by default the one that is installed.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False
    max_mb: float = visits.MAX_MB
    max_seconds: float = visits.MAX_SECONDS
    align: bool = True
    detector: str | None = None

    @property
    def finder(self) -> str | None:
        """The detector of faces in photos; None if they have to be framed already."""
        from s2f.alignment import installed_detector

        return (self.detector or installed_detector()) if self.align else None


def check(settings: Settings) -> Settings:
    """Make sure that the page can be served, before anything slow is done; choose a port for 0.

    Raises:
        DependencyError: if Gradio is not installed.
        UsageError: if nothing can listen there.
    """
    if importlib.util.find_spec("gradio") is None:
        raise DependencyError(
            "the page needs the package gradio, which is not installed",
            hint="pip install 's2f[app]'",
        )
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            trial.listen(1)
            found = int(trial.getsockname()[1])
    except OSError as error:
        place, hint = f"port {port} of {host}", "choose another with --port, or --port 0"
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"{place} is taken by another program", hint=hint) from error
        if error.errno == errno.EACCES:
            raise UsageError(f"{place} may not be used", hint=f"{hint}, 1024 or more") from error
        raise UsageError(
            f"{host} is no address of this machine ({error.strerror or error})",
            hint="--host 127.0.0.1 is for this machine alone, --host 0.0.0.0 for the whole network",
        ) from error
    return dataclasses.replace(settings, port=found)


def warm(model: "SpeechToFace", settings: Settings) -> None:
    """Answer once to nobody, so that the first visitor does not wait for what is made only once."""
    import numpy as np
    import soundfile
    from PIL import Image

    from s2f import answer_html, answers
    from s2f.decoding import SAMPLE_RATE

    longest = settings.max_seconds
    rng = np.random.default_rng(0)
    sound = io.BytesIO()
    soundfile.write(sound, 0.1 * rng.standard_normal(SAMPLE_RATE), SAMPLE_RATE, format="WAV")
    answer_html.heard(answers.hear(model, sound, max_seconds=longest), longest)
    blank = Image.new("RGB", (224, 224), "grey")
    model.reconstruct(blank, align=False)
    if settings.finder == "dlib":  # the other one may want a network
        with contextlib.suppress(ImageError):  # there is no face
            model.reconstruct(blank, detector="dlib")


@contextlib.contextmanager
def serving(
    model: "SpeechToFace", settings: Settings, evaluation: str | None = None
) -> Iterator[tuple[str, str | None]]:
    """Serve the page for as long as the context lasts.

    Args:
        model: with all three networks.
        settings: that `check` gave back.
        evaluation: of the model, Markdown.

    Yields:
        The address of the page, and its public one if it is shared.

    Raises:
        OutputError: as `visits.private_folder`.
        DeviceError: if the page cannot be shared.
    """
    with visits.private_folder() as folder:
        # Gradio reads these when it is imported.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        for name in ("NO_PROXY", "no_proxy"):  # it asks its own address whether all is well
            known = os.environ.get(name, "")
            os.environ[name] = ",".join(
                filter(None, [known, "127.0.0.1", "localhost", settings.host])
            )
        from starlette.middleware import Middleware

        from s2f import app

        visits.name_uploads_apart()
        visits.forget_answers()
        page = app.build(
            model,
            max_mb=settings.max_mb,
            max_seconds=settings.max_seconds,
            detector=settings.finder,
            evaluation=evaluation,
        )
        max_bytes = round(settings.max_mb * 2**20)  # as Gradio counts
        guard = Middleware(
            visits.Guard,
            max_bytes=2 * max_bytes,
            room=lambda: visits.has_room(folder, visits.TOGETHER * max_bytes),
        )
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # ours is for results
                page.launch(
                    server_name=settings.host,
                    server_port=settings.port,
                    share=settings.share,
                    prevent_thread_lock=True,
                    quiet=True,
                    footer_links=[],
                    run_history=False,
                    enable_monitoring=False,
                    mcp_server=False,
                    ssr_mode=False,
                    pwa=False,
                    state_session_capacity=visits.SESSIONS,
                    max_file_size=max_bytes,
                    app_kwargs={"middleware": [guard]},
                    css=app.STYLE,
                    head=app.HEAD,
                    theme=app.theme(),
                )
            if settings.share and not page.share_url:
                raise DeviceError(
                    "no public link could be made: the servers of Gradio's cannot be reached",
                    hint="look at the network, or leave --share out",
                )
            yield str(page.local_url), page.share_url
        finally:
            if page.is_running:
                # Pages that are open would hold it for seconds; that they are cut off is no news.
                page.server.force_exit = True
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            page.close(verbose=False)
