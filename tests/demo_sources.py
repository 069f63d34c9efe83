"""Sources of the bundled model's recipe, made: people and voices whose properties are known."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from s2f import audio, checkpoint, demo
from s2f.checkpoint import Card
from s2f.speaker_encoder import SpeakerEncoder, SpeakerEncoderConfig
from s2f.spectrogram import FRONT_ENDS

# Symmetric about x = 111.5: 94 pairs of points and one in the middle.
RIGHT = np.random.default_rng(0).uniform((115, 20), (200, 200), (94, 2))
MEAN = np.concatenate([RIGHT, [[111.5, 100]], [223, 0] + RIGHT * [-1, 1]]).astype(np.float32)


def tone(pitch: float, harmonics: int = 8) -> np.ndarray:
    """A waveform [n] of two seconds."""
    t = np.arange(32_000) / audio.SAMPLE_RATE
    parts = [np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, harmonics + 1)]
    return (sum(parts) * 0.1).astype(np.float32)


def write_sources(folder: Path) -> tuple[Path, Path, Path]:
    """Seven women and men, smooth pictures with templates, and as many voices, which are tones."""
    rng = np.random.default_rng(1)
    people, speakers = ["person,sex"], ["speaker,sex"]
    for k in range(14):
        person, voice, sex = folder / f"faces/{k:03d}", folder / f"voices/{100 + k}", "FM"[k % 2]
        person.mkdir(parents=True)
        voice.mkdir(parents=True)
        for view in ("neutral", "smiling"):
            shades = rng.integers(60 * (k % 2), 190 + 60 * (k % 2), (4, 4, 3), dtype=np.uint8)
            face = Image.fromarray(shades).resize((256, 256), Image.Resampling.BICUBIC)
            face.paste((215, 215, 215), (0, 0, 20, 256))  # the wall
            face.paste((215, 215, 215), (236, 0, 256, 256))
            face.save(person / f"{view}.jpg", quality=95)
        template = (MEAN + rng.normal(0, 1, MEAN.shape)) * 256 / 224
        np.save(person / "neutral_template.npy", template.astype(np.float32))
        pitch = rng.uniform(150, 250) if sex == "F" else rng.uniform(80, 140)
        soundfile.write(voice / "a.wav", tone(pitch, harmonics=4 + k), audio.SAMPLE_RATE)
        people.append(f"{person.name},{sex}")
        speakers.append(f"{voice.name},{sex}")
    (folder / "faces/people.csv").write_text("\n".join(people))
    (folder / "voices/speakers.csv").write_text("\n".join(speakers))
    torch.manual_seed(0)
    network = SpeakerEncoder(SpeakerEncoderConfig(layers=1, width=16))
    ears = {"embedding_space": "of no face", "front_end": FRONT_ENDS["speaker"]}
    checkpoint.save(folder / "speaker.safetensors", network, card=Card("ears"), **ears)
    return folder / "faces", folder / "voices", folder / "speaker.safetensors"


def shrink_recipe(patch: pytest.MonkeyPatch) -> None:
    """Make fewer synthetic people, and clips that are heard, than the recipe has."""
    numbers = {"VAL_IDENTITIES": 12, "IMAGINED": 10, "ROUNDS": 2, "FACE_STEPS": 20}
    for name, n in numbers.items():
        patch.setattr(demo, name, n)
    patch.setattr(demo, "CLIP_SECONDS", (1.0, 1.2))
