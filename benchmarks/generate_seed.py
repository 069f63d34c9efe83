"""One face from one recording in the way of the public reimplementation, for `generate.py`.

    python benchmarks/generate_seed.py RECORDING VOICE_ENCODER.pt FACE_DECODER.pt FACE.png

Its recipe: the programs ffmpeg and ffmpeg-normalize, librosa, networks that are made and then
filled from its checkpoints (torch.load of dicts that hold the optimizer's state too), an eager
forward pass, matplotlib. The networks are ours, which have its layers, made as modules usually are.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import librosa
import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from s2f import face_decoder, voice_encoder


def main() -> None:
    """Draw the face."""
    recording, voice_weights, face_weights, target = sys.argv[1:]
    voice = voice_encoder.VoiceEncoder(voice_encoder.CONFIGS["seed"])
    face = face_decoder.FaceDecoder(face_decoder.CONFIGS["seed"])
    for network, weights in ((face, face_weights), (voice, voice_weights)):
        network.load_state_dict(torch.load(weights, map_location="cpu")["model_state_dict"])
        network.eval()
    with tempfile.TemporaryDirectory() as folder:
        plain, loud = f"{folder}/plain.wav", f"{folder}/loud.wav"
        for command in (
            ["ffmpeg", "-y", "-i", recording, "-ac", "1", "-ar", "16000", plain],
            ["ffmpeg-normalize", plain, "-nt", "rms", "-t", "-23", "-f", "-o", loud],
        ):
            subprocess.run(command, check=True, capture_output=True)
        samples, _ = librosa.load(loud, sr=16000)
    samples = np.resize(samples, 96_000)
    spectrum = librosa.stft(samples, n_fft=512, hop_length=160, win_length=400)
    magnitude, phase = np.abs(spectrum), np.angle(spectrum)
    both = np.stack([magnitude**0.3, np.sign(phase) * np.abs(phase) ** 0.3])
    with torch.no_grad():
        _, picture = face(voice(torch.from_numpy(both[None].astype(np.float32))))
    plt.imshow(picture[0].permute(1, 2, 0).clamp(0, 1).numpy())
    plt.axis("off")
    plt.savefig(Path(target))


if __name__ == "__main__":
    main()
