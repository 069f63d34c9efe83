"""s2f: the face that a voice suggests."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2f.audio import Waveform
    from s2f.pipeline import Face, SpeechToFace

__version__ = "0.1.0"
__all__ = ["Face", "SpeechToFace", "Waveform", "__version__"]
_HOMES = {"Face": "s2f.pipeline", "SpeechToFace": "s2f.pipeline", "Waveform": "s2f.audio"}


def __getattr__(name: str) -> Any:
    # Lazy, so that `s2f --help` does not pay for importing torch.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 's2f' has no attribute {name!r}")
