"""Files as others publish them, narrow, with asymmetric random weights: Keras' and the seed's.

The seed's modules are written here in our own words, of torch's layers and with its names: what
they compute is what conversions must keep. Keras' files hold the weights of the same modules.
"""

import functools
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s2f import ast_encoder, face_decoder, face_encoder, foreign_weights, voice_encoder
from s2f.ast_encoder import ASTEncoderConfig
from s2f.convert import VGG16_NAMES
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
EMBEDDING = 20
VGG = VGGFaceConfig(
    layers=(4, 4, "M", 8, 8, "M", *3 * (16,), "M", *3 * (32,), "M", *3 * (32,), "M"),
    image_size=64,
    hidden=24,
    embedding=EMBEDDING,
    identities=13,
)
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
SHORT_AST = ASTEncoderConfig(n_frames=98, width=24, layers=2, heads=3, mlp=40)
AUTOMATIC = ("conv2d", *(f"conv2d_{n}" for n in range(1, 16)))
KerasArrays = list[tuple[np.ndarray, np.ndarray]]


def randomise(module: nn.Module, seed: int = 0) -> Any:
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
    return module.eval().requires_grad_(False)


class SeedVGG(nn.Module):
    """VGGFace_serengil: features, embedding and logits of prepared pictures."""

    def __init__(self) -> None:
        super().__init__()
        before, n = 3, 0
        for layer in VGG.layers:
            if isinstance(layer, str):
                getattr(self, f"layer{n}").append(nn.MaxPool2d(2, 2))
                continue
            n += 1
            conv = nn.Conv2d(before, layer, 3)
            setattr(self, f"layer{n}", nn.Sequential(nn.ZeroPad2d(1), conv, nn.ReLU()))
            before = layer
        fc6 = nn.Conv2d(before, VGG.hidden, VGG.map_size)
        self.layer14 = nn.Sequential(fc6, nn.ReLU(), nn.Dropout())
        self.layer15 = nn.Sequential(nn.Conv2d(VGG.hidden, EMBEDDING, 1), nn.ReLU())
        self.layer16 = nn.Sequential(nn.Dropout(), nn.Conv2d(EMBEDDING, VGG.identities, 1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        taps = {}
        x = images
        for n in range(1, 17):
            x = getattr(self, f"layer{n}")(x)
            if n in (13, 15, 16):
                taps[{13: "features", 15: "embedding", 16: "logits"}[n]] = x
        flat = {tap: taps[tap].flatten(1) for tap in ("embedding", "logits")}
        return {"features": taps["features"].permute(0, 2, 3, 1)} | flat


def keras_arrays(origin: str) -> KerasArrays:
    """(kernel, bias) of the 16 layers of the random `SeedVGG`, as Keras lays them out."""
    state = list(randomise(SeedVGG()).state_dict().values())
    arrays = []
    for weight, bias in zip(state[::2], state[1::2], strict=True):
        kernel = weight.permute(2, 3, 1, 0).contiguous()
        if origin == "rcmalli" and len(arrays) >= 13:  # after a Flatten, which is h w c
            kernel = kernel.flatten(0, 2)
        arrays.append((kernel.numpy(), bias.numpy()))
    return arrays


def write_keras(path: Path, origin: str, arrays: KerasArrays | None = None) -> Path:
    """Write weights as Keras' `save_weights` does: a group a layer, names in attributes."""
    names = AUTOMATIC if origin == "serengil" else VGG16_NAMES
    arrays = keras_arrays(origin) if arrays is None else arrays
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [*(name.encode() for name in names[: len(arrays)]), b"flatten"]
        file.attrs["backend"] = b"tensorflow"
        file.create_group("flatten").attrs["weight_names"] = np.zeros(0, "S1")
        for name, (kernel, bias) in zip(names, arrays, strict=False):
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/kernel:0".encode(), f"{name}/bias:0".encode()]
            group[f"{name}/kernel:0"], group[f"{name}/bias:0"] = kernel, bias
    return path


def scrambled_rcmalli() -> dict[str, Tensor]:
    """The seed's torch file of rcmalli's weights: every matrix transposed, no axis reordered."""
    names = [*(f"layer{n}.0" for n in range(1, 14)), "layer14.1", "layer15.0", "layer16.0"]
    state = {}
    for name, (kernel, bias) in zip(names, keras_arrays("rcmalli"), strict=True):
        axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
        state[f"{name}.weight"] = torch.from_numpy(kernel.transpose(axes).copy())
        state[f"{name}.bias"] = torch.from_numpy(bias)
    return state


class SeedDecoder(nn.Module):
    """The seed's face decoder: landmarks [b 144] and texture."""

    def __init__(self) -> None:
        super().__init__()

        def block(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())

        def up(a: int, b: int) -> nn.ConvTranspose2d:
            return nn.ConvTranspose2d(a, b, 5, stride=2, padding=2, output_padding=1)

        w1, w2 = DECODER.trunk
        h1, h2, h3 = DECODER.landmark_hidden
        c0 = DECODER.seed_channels
        c1, c2, c3, c4 = (stage[0] for stage in DECODER.stages[:4])
        self.pre_layers = nn.Sequential(block(EMBEDDING, w1), block(w1, w2))
        last = nn.Sequential(nn.Linear(h3, 2 * DECODER.landmarks))
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

    def __init__(self) -> None:
        super().__init__()
        before = 2
        for n, c in enumerate(VOICE.channels[:8], start=1):
            layers = [nn.Conv2d(before, c, 4, stride=2 if n == 8 else 1), nn.ReLU()]
            layers.append(nn.BatchNorm2d(c))
            layers += [nn.MaxPool2d((1, 2))] if n in (3, 4, 5, 6) else []
            setattr(self, f"layer{n}", nn.Sequential(*layers))
            before = c
        c = VOICE.channels[8]
        pooling = nn.AdaptiveAvgPool2d((None, 1))
        conv = nn.Conv2d(before, c, 4, stride=2)
        self.layer9 = nn.Sequential(conv, pooling, nn.ReLU(), nn.BatchNorm2d(c))
        self.layer10 = nn.Sequential(nn.Flatten(), nn.Linear(57 * c, VOICE.hidden), nn.ReLU())
        self.layer11 = nn.Sequential(nn.Linear(VOICE.hidden, EMBEDDING), nn.ReLU())

    def forward(self, spectrogram: Tensor) -> Tensor:
        x = spectrogram
        for n in range(1, 12):
            x = getattr(self, f"layer{n}")(x)
        return x


def hugging_face_ast(config: ASTEncoderConfig, *, classifier: bool) -> Any:
    """An AST of transformers with random weights. Wants transformers."""
    import transformers

    made = transformers.ASTConfig(
        max_length=config.n_frames,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp,
        num_labels=config.embedding,
    )
    kind = transformers.ASTForAudioClassification if classifier else transformers.ASTModel
    return randomise(kind(made))


def seed_ast() -> Any:
    """The seed's AST: transformers' classifier, whose head ends in a ReLU. Wants transformers."""
    model = hugging_face_ast(AST, classifier=True)
    model.classifier = nn.Sequential(model.classifier, nn.ReLU())
    return model


def training_checkpoint(path: Path, module: nn.Module) -> Path:
    """Write a training checkpoint as the seed does."""
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.001}]}
    contents = {"epoch": 3, "loss": 0.5, "model_state_dict": module.state_dict()}
    torch.save(contents | {"optimizer_state_dict": optimizer, "history": [0.7, 0.5]}, path)
    return path


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """Make the published networks narrow, and read a file once: each reading starts a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(face_encoder.CONFIGS, "paper", VGG)
        patch.setitem(face_decoder.CONFIGS, "seed", DECODER)
        patch.setitem(voice_encoder.CONFIGS, "seed", VOICE)
        patch.setitem(ast_encoder.CONFIGS, "seed", AST)
        read = functools.cache(foreign_weights.read_foreign)
        patch.setattr(foreign_weights, "read_foreign", read)
        yield


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files as their authors publish them. Not to be changed."""
    folder = tmp_path_factory.mktemp("published")
    for origin in ("serengil", "rcmalli"):
        write_keras(folder / f"{origin}.h5", origin)
    training_checkpoint(folder / "decoder.pt", randomise(SeedDecoder()))
    training_checkpoint(folder / "ve.pt", randomise(SeedVoice()))
    torch.save(randomise(SeedVGG()).state_dict(), folder / "serengil.pt")
    torch.save(scrambled_rcmalli(), folder / "rcmalli.pt")
    if find_spec("transformers"):
        training_checkpoint(folder / "ast.pt", seed_ast())
    return folder
