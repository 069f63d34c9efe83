"""s2f: the face that a voice suggests."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2f.audio import Waveform
    from s2f.pipeline import Face, SpeechToFace


__version__ = "0.1.0"
__all__ = ["Face", "SpeechToFace", "Waveform", "__version__"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `s2f --help` does not pay for importing torch.
    if name == "SpeechToFace":
        from s2f.pipeline import SpeechToFace

        return SpeechToFace
    if name == "Face":
        from s2f.pipeline import Face

        return Face
    if name == "Waveform":
        from s2f.audio import Waveform

        return Waveform
    raise AttributeError(f"module 's2f' has no attribute {name!r}")
