"""The command that serves the web page: `s2f app`."""

import threading
import webbrowser
from collections.abc import Mapping
from typing import Annotated, Any

import typer

import s2f
from s2f.hosting import Settings, check, serving, warm
from s2f.options import INTERRUPTED, DeviceOpt, JsonOpt, QuietOpt, choose_console, examples, option
from s2f.runtime import ended_by_sigterm
from s2f.use_batch import load
from s2f.use_options import (
    AlignOpt,
    DetectorOpt,
    FaceDecoderOpt,
    FaceEncoderOpt,
    ModelOpt,
    PrecisionOpt,
    VoiceEncoderOpt,
)
from s2f.visits import MAX_MB, MAX_SECONDS
from s2f.workers import keep_memory

app = typer.Typer()


@app.command(
    "app",
    rich_help_panel="Use",
    epilog=examples(
        "s2f app", "s2f app --open --max-seconds 30", "s2f app --host 0.0.0.0 --port 0"
    ),
)
def _app(
    ctx: typer.Context,
    host: Annotated[
        str, option("Run", "Address to serve at (127.0.0.1: this machine alone).", "--host")
    ] = "127.0.0.1",
    port: Annotated[
        int, option("Run", "Port (7860); 0: any that is free.", "--port", min=0, max=65535)
    ] = 7860,
    share: Annotated[
        bool, option("Run", "Also a public link, through servers of Gradio's.", "--share")
    ] = False,
    browser: Annotated[bool, option("Run", "Open the page in the browser.", "--open")] = False,
    max_mb: Annotated[
        float, option("Input", "Of a file that is sent, MB (25).", "--max-mb", min=0.1, max=1000)
    ] = MAX_MB,
    max_seconds: Annotated[
        float,
        option("Input", "Heard of a recording, seconds (60).", "--max-seconds", min=1, max=600),
    ] = MAX_SECONDS,
    align: AlignOpt = True,
    detector: DetectorOpt = None,
    model: ModelOpt = None,
    voice_encoder: VoiceEncoderOpt = None,
    face_encoder: FaceEncoderOpt = None,
    face_decoder: FaceDecoderOpt = None,
    device: DeviceOpt = "auto",
    precision: PrecisionOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Serve a web page: record a voice or give a photo, and see the faces. Ctrl-C ends it."""
    console = choose_console(ctx, as_json, quiet)
    from s2f.alignment import choose_detector
    from s2f.catalogue import KINDS

    settings = check(
        Settings(
            host=host,
            port=port,
            share=share,
            max_mb=max_mb,
            max_seconds=max_seconds,
            align=align,
            detector=detector,
        )
    )
    if align and detector:
        choose_detector(detector)
    networks = load(ctx.params, KINDS)
    keep_memory(largest=2**22, spare=2**25)  # a server lives long, and has many threads
    console.note("warming up")
    warm(networks, settings)
    try:
        with ended_by_sigterm(), serving(networks, settings, _evaluation(ctx.params)) as addresses:
            url, public = addresses
            if public:
                console.note(
                    "the public link works for anyone who has it, for up to a week; what visitors "
                    "send passes through servers of Gradio's"
                )
            elif host not in ("127.0.0.1", "localhost", "::1"):
                console.note(
                    "whoever reaches this machine reaches the page; browsers record only on this "
                    "machine itself or over https, and take files everywhere"
                )
            for address in addresses:
                if address:
                    console.line(address)
            console.note("Ctrl-C ends it")
            console.summary(
                {
                    "s2f": s2f.__version__,
                    "url": url,
                    "public_url": public,
                    "model": networks.model.name,
                    "device": str(networks.device),
                    "max_mb": max_mb,
                    "max_seconds": max_seconds,
                }
            )
            if browser:
                webbrowser.open(url)
            threading.Event().wait()
    except KeyboardInterrupt:
        console.note("closed; nothing of its visitors is kept")
        raise typer.Exit(INTERRUPTED) from None


def _evaluation(params: Mapping[str, Any]) -> str | None:
    """Read what was measured of the model, unless files take the place of its networks."""
    from s2f.catalogue import KINDS, entries

    if any(params[kind] for kind in KINDS):
        return None
    (entry,) = entries(params["model"] or "demo")
    return entry.evaluation
