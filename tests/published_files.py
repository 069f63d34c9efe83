"""Files as others publish them, narrow, with asymmetric random weights: Keras' and the seed's.

The seed's modules are written here in our own words, from FACTS.md section 8, with its names.
"""

import functools
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s2f import ast_encoder, face_decoder, face_encoder, foreign_weights, voice_encoder
from s2f.ast_encoder import ASTEncoderConfig
from s2f.face_decoder import FaceDecoderConfig
from s2f.face_encoder import VGGFaceConfig
from s2f.landmarks import MAP_72
from s2f.voice_encoder import VoiceEncoderConfig

needs_transformers = pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers (the extra ast) is not installed"
)
needs_tensorflow = pytest.mark.skipif(
    find_spec("tensorflow") is None, reason="TensorFlow (the extra convert) is not installed"
)
CHANNELS = (4, 4, 8, 8, 16, 16, 16, 32, 32, 32, 32, 32, 32)
POOLS = (2, 4, 7, 10, 13)
HIDDEN, EMBEDDING, IDENTITIES = 24, 20, 13
LAYERS = tuple(
    layer for n, c in enumerate(CHANNELS, 1) for layer in ((c, "M") if n in POOLS else (c,))
)
VGG = VGGFaceConfig(layers=LAYERS, hidden=HIDDEN, embedding=EMBEDDING, identities=IDENTITIES)
VOICE = VoiceEncoderConfig(
    channels=(4, 4, 8, 8, 8, 16, 32, 32, 32), hidden=24, embedding=EMBEDDING, final_relu=True
)
DECODER = FaceDecoderConfig(
    embedding=EMBEDDING,
    trunk=(24, 16),
    landmarks=72,
    landmark_hidden=(14, 12, 10),
    seed_channels=16,
    stages=((8, 5, 2), (4, 5, 2), (2, 5, 2), (2, 5, 2), (3, 1, 1)),
    batch_norm=True,
    is_face=True,
    landmarks_68=MAP_72,
)
AST = ASTEncoderConfig(width=24, layers=2, heads=3, mlp=40, embedding=EMBEDDING)
NAMES = (
    *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"),
    *("conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3", "fc6", "fc7", "fc8"),
)
AUTOMATIC = ("conv2d", *(f"conv2d_{n}" for n in range(1, 16)))


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give a module weights of a trained one's size, and BatchNorm statistics; for use."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            elif name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            else:
                fan_in = tensor[0].numel() if tensor.ndim > 1 else 100
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5)
    return module.eval()


def keras_weights(origin: str, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """(kernel, bias) of the 16 layers, in Keras' layout."""
    rng = np.random.default_rng(seed)
    last, side = CHANNELS[-1], 7
    shapes: list[tuple[int, ...]] = []
    channels = 3
    for c in CHANNELS:
        shapes.append((3, 3, channels, c))
        channels = c
    if origin == "serengil":
        shapes += [(side, side, last, HIDDEN), (1, 1, HIDDEN, EMBEDDING)]
        shapes += [(1, 1, EMBEDDING, IDENTITIES)]
    else:
        shapes += [(side * side * last, HIDDEN), (HIDDEN, EMBEDDING), (EMBEDDING, IDENTITIES)]
    weights = []
    for shape in shapes:
        kernel = rng.standard_normal(shape) * (2 / np.prod(shape[:-1])) ** 0.5
        bias = 0.1 * rng.standard_normal(shape[-1])
        weights.append((kernel.astype(np.float32), bias.astype(np.float32)))
    return weights


def write_keras(
    path: Path, origin: str, weights: Sequence[tuple[np.ndarray, np.ndarray]] | None = None
) -> Path:
    """Write weights as Keras' `save_weights` does: a group a layer, names in attributes."""
    names = AUTOMATIC if origin == "serengil" else NAMES
    weights = keras_weights(origin) if weights is None else weights
    with h5py.File(path, "w") as file:
        pairs = list(zip(names[: len(weights)], weights, strict=True))
        file.attrs["layer_names"] = [name.encode() for name, _ in [*pairs, ("flatten", None)]]
        file.attrs["backend"] = b"tensorflow"
        file.create_group("flatten").attrs["weight_names"] = np.zeros(0, "S1")
        for name, (kernel, bias) in pairs:
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/kernel:0".encode(), f"{name}/bias:0".encode()]
            group[f"{name}/kernel:0"], group[f"{name}/bias:0"] = kernel, bias
    return path


def run_keras(
    weights: Sequence[tuple[np.ndarray, np.ndarray]], images: np.ndarray
) -> dict[str, np.ndarray]:
    """Run VGG-Face on [b h w 3] with einsum over windows: features, embedding and logits."""

    def conv(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))
        return np.einsum("bhwcij,ijco->bhwo", windows, kernel, optimize=True) + bias

    x = images
    for n, (kernel, bias) in enumerate(weights[:13], start=1):
        x = np.maximum(conv(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), kernel, bias), 0)
        if n in POOLS:
            x = np.stack([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]).max(0)
    taps = {"features": x}
    for name, (kernel, bias) in zip(("fc6", "embedding", "logits"), weights[13:], strict=True):
        x = np.ravel(x).reshape(len(x), -1) @ kernel.reshape(-1, kernel.shape[-1]) + bias
        taps[name] = x = x if name == "logits" else np.maximum(x, 0)
    return taps


class SeedVGG(nn.Module):
    """VGGFace_serengil or VGGFace16_rcmalli; gives the embedding."""

    def __init__(self, origin: str, channels: Sequence[int] = CHANNELS, *heads: int) -> None:
        super().__init__()
        hidden, embedding, identities = heads or (HIDDEN, EMBEDDING, IDENTITIES)
        serengil, before = origin == "serengil", 3
        for n, c in enumerate(channels, start=1):
            conv = nn.Conv2d(before, c, 3, padding=0 if serengil else 1)
            padding = [nn.ZeroPad2d(1)] if serengil else []
            pool = [nn.MaxPool2d(2, 2)] if n in POOLS else []
            setattr(self, f"layer{n}", nn.Sequential(*padding, conv, nn.ReLU(), *pool))
            before = c
        if serengil:
            self.layer14 = nn.Sequential(nn.Conv2d(before, hidden, 7), nn.ReLU(), nn.Dropout())
            self.layer15 = nn.Sequential(nn.Conv2d(hidden, embedding, 1), nn.ReLU())
            self.layer16 = nn.Sequential(nn.Dropout(), nn.Conv2d(embedding, identities, 1))
        else:
            flat = nn.Linear(49 * before, hidden)
            self.layer14 = nn.Sequential(nn.Flatten(), flat, nn.ReLU())
            self.layer15 = nn.Sequential(nn.Linear(hidden, embedding), nn.ReLU())
            self.layer16 = nn.Sequential(nn.Linear(embedding, identities))

    def forward(self, faces: Tensor) -> Tensor:
        x = faces
        for n in range(1, 16):
            x = getattr(self, f"layer{n}")(x)
        return x.flatten(1)


def scrambled_rcmalli(weights: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Tensor]:
    """The seed's torch file of rcmalli's weights: every matrix transposed, no axis reordered."""
    names = [*(f"layer{n}.0" for n in range(1, 14)), "layer14.1", "layer15.0", "layer16.0"]
    state = {}
    for name, (kernel, bias) in zip(names, weights, strict=True):
        axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
        state[f"{name}.weight"] = torch.from_numpy(kernel.transpose(axes).copy())
        state[f"{name}.bias"] = torch.from_numpy(bias)
    return state


class SeedDecoder(nn.Module):
    """The seed's face decoder: landmarks [b 144] and texture."""

    def __init__(self, config: FaceDecoderConfig = DECODER) -> None:
        super().__init__()

        def block(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())

        def up(a: int, b: int) -> nn.ConvTranspose2d:
            return nn.ConvTranspose2d(a, b, 5, stride=2, padding=2, output_padding=1)

        w1, w2 = config.trunk
        h1, h2, h3 = config.landmark_hidden
        c0 = config.seed_channels
        c1, c2, c3, c4 = (stage[0] for stage in config.stages[:4])
        self.pre_layers = nn.Sequential(block(config.embedding, w1), block(w1, w2))
        last = nn.Sequential(nn.Linear(h3, 2 * config.landmarks))
        self.landmark_layers = nn.Sequential(block(w2, h1), block(h1, h2), block(h2, h3), last)
        self.texture_layers = nn.Sequential(
            nn.Sequential(nn.Linear(w2, c0 * 14 * 14), nn.ReLU()),
            nn.Sequential(nn.Unflatten(1, (c0, 14, 14)), up(c0, c1), nn.ReLU()),
            nn.Sequential(up(c1, c2), nn.ReLU()),
            nn.Sequential(up(c2, c3), nn.ReLU()),
            nn.Sequential(up(c3, c4), nn.ReLU()),
            nn.Sequential(nn.Conv2d(c4, 3, 1), nn.Sigmoid()),
        )

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pre_layers(embedding)
        return self.landmark_layers(x), self.texture_layers(x)


class SeedVoice(nn.Module):
    """VE_conv on [b 2 257 t]."""

    def __init__(self, config: VoiceEncoderConfig = VOICE) -> None:
        super().__init__()
        before = 2
        for n, c in enumerate(config.channels[:8], start=1):
            layers = [nn.Conv2d(before, c, 4, stride=2 if n == 8 else 1), nn.ReLU()]
            layers.append(nn.BatchNorm2d(c))
            layers += [nn.MaxPool2d((1, 2))] if n in (3, 4, 5, 6) else []
            setattr(self, f"layer{n}", nn.Sequential(*layers))
            before = c
        c = config.channels[8]
        pooling = nn.AdaptiveAvgPool2d((None, 1))
        conv = nn.Conv2d(before, c, 4, stride=2)
        self.layer9 = nn.Sequential(conv, pooling, nn.ReLU(), nn.BatchNorm2d(c))
        self.layer10 = nn.Sequential(nn.Flatten(), nn.Linear(57 * c, config.hidden), nn.ReLU())
        self.layer11 = nn.Sequential(nn.Linear(config.hidden, config.embedding), nn.ReLU())

    def forward(self, spectrogram: Tensor) -> Tensor:
        x = spectrogram
        for n in range(1, 12):
            x = getattr(self, f"layer{n}")(x)
        return x


def seed_ast(config: ASTEncoderConfig = AST) -> nn.Module:
    """The seed's AST: transformers' classifier, whose head ends in a ReLU. Wants transformers."""
    import transformers

    model = transformers.ASTForAudioClassification(
        transformers.ASTConfig(
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp,
            num_labels=config.embedding,
        )
    )
    model.classifier = nn.Sequential(model.classifier, nn.ReLU())
    return model


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the published networks narrow."""
    monkeypatch.setitem(face_encoder.CONFIGS, "paper", VGG)
    monkeypatch.setitem(face_decoder.CONFIGS, "seed", DECODER)
    monkeypatch.setitem(voice_encoder.CONFIGS, "seed", VOICE)
    monkeypatch.setitem(ast_encoder.CONFIGS, "seed", AST)


_read = functools.cache(foreign_weights.read_foreign)


@pytest.fixture
def reading_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a file that several tests convert once: each reading starts a process."""
    monkeypatch.setattr(foreign_weights, "read_foreign", _read)


def training_checkpoint(path: Path, state: dict[str, Tensor]) -> Path:
    """Write a training checkpoint as the seed does."""
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.001}]}
    contents = {"epoch": 3, "loss": 0.5, "best_loss": 0.4, "model_state_dict": state}
    contents |= {"optimizer_state_dict": optimizer, "history": [0.7, 0.5]}
    torch.save(contents | {"fine_tune_epoch_start": 2}, path)
    return path
