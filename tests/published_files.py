"""Files as others publish them, narrow, with asymmetric random weights: Keras' and the seed's.

The seed's networks are in our own words, of torch's layers and with its names: what they compute is
what conversions must keep. Keras' files hold the weights of the same networks.
"""

import functools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_files import write_legacy
from torch import Tensor, nn

from s2f import (
    ast_encoder,
    face_decoder,
    face_encoder,
    foreign_weights,
    speaker_encoder,
    voice_encoder,
)
from s2f.ast_encoder import ASTEncoderConfig
from s2f.convert import VGG16_NAMES
from s2f.speaker_encoder import SpeakerEncoderConfig


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


needs_transformers, needs_tensorflow = needs("transformers"), needs("tensorflow")
EMBEDDING = 20
LAYERS = (4, 4, "M", 8, 8, "M", *3 * (16,), "M", *3 * (32,), "M", *3 * (32,))
VGG = face_encoder.VGGFaceConfig(LAYERS, 32, hidden=24, embedding=EMBEDDING, identities=13)
CHANNELS = (4, 4, 8, 8, 8, 16, 32, 32, 32)
VOICE = replace(voice_encoder.CONFIGS["seed"], channels=CHANNELS, hidden=24, embedding=EMBEDDING)
STAGES = ((8, 5, 2), (4, 5, 2), (2, 5, 2), (2, 5, 2), (3, 1, 1))
SIZES: Any = {"trunk": (24, 16), "landmark_hidden": (14, 12, 10), "seed_channels": 16}
DECODER = replace(face_decoder.CONFIGS["seed"], embedding=EMBEDDING, stages=STAGES, **SIZES)
AST = ASTEncoderConfig(width=24, layers=2, heads=3, mlp=40, embedding=EMBEDDING)
SHORT_AST = ASTEncoderConfig(n_frames=98, width=24, layers=2, heads=3, mlp=40)
SPEAKER = SpeakerEncoderConfig(layers=2, width=12, embedding=12)
AUTOMATIC = ("conv2d", *(f"conv2d_{n}" for n in range(1, 16)))


def randomise(module: nn.Module) -> Any:
    """Give a module weights of a trained one's size, and BatchNorm statistics; for use."""
    generator = torch.Generator().manual_seed(0)
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


def in_order(*layers: list[nn.Module]) -> Any:
    """Name layers as the seed does: layer1.0, layer1.1 ..., layer2.0 ..."""
    named = {f"layer{n}": nn.Sequential(*layer) for n, layer in enumerate(layers, start=1)}
    return randomise(nn.Sequential(OrderedDict(named)))


def seed_vgg() -> Any:
    """VGGFace_serengil, of prepared pictures: a map [b d 1 1] of embeddings after 15 layers."""
    layers: list[list[nn.Module]] = []
    before = 3
    for layer in LAYERS:
        if isinstance(layer, str):
            layers[-1].append(nn.MaxPool2d(2, 2))
        else:
            layers.append([nn.ZeroPad2d(1), nn.Conv2d(before, layer, 3), nn.ReLU()])
            before = layer
    layers.append([nn.Conv2d(before, VGG.hidden, VGG.map_size), nn.ReLU(), nn.Dropout()])
    layers.append([nn.Conv2d(VGG.hidden, EMBEDDING, 1), nn.ReLU()])
    return in_order(*layers, [nn.Dropout(), nn.Conv2d(EMBEDDING, VGG.identities, 1)])


def keras_arrays(origin: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(kernel, bias) of the 16 layers of `seed_vgg`, as Keras lays them out."""
    state = list(seed_vgg().state_dict().values())
    arrays = []
    for weight, bias in zip(state[::2], state[1::2], strict=True):
        kernel = weight.permute(2, 3, 1, 0).contiguous()
        if origin == "rcmalli" and len(arrays) >= 13:  # after a Flatten, which is h w c
            kernel = kernel.flatten(0, 2)
        arrays.append((kernel.numpy(), bias.numpy()))
    return arrays


def scrambled_rcmalli() -> dict[str, Tensor]:
    """The seed's torch file of rcmalli's weights: every matrix transposed, no axis reordered."""
    names = [*(f"layer{n}.0" for n in range(1, 14)), "layer14.1", "layer15.0", "layer16.0"]
    state = {}
    for name, (kernel, bias) in zip(names, keras_arrays("rcmalli"), strict=True):
        weight = kernel.transpose((3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)).copy()
        state |= {f"{name}.weight": torch.tensor(weight), f"{name}.bias": torch.tensor(bias)}
    return state


class SeedDecoder(nn.Module):
    """The seed's face decoder: landmarks [b 144] and texture."""

    def __init__(self) -> None:
        super().__init__()

        def mlp(*widths: int) -> nn.Sequential:
            layers = nn.Sequential()
            for a, b in pairwise(widths):
                layers.append(nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()))
            return layers

        self.pre_layers = mlp(EMBEDDING, 24, 16)
        self.landmark_layers = mlp(16, 14, 12, 10).append(nn.Sequential(nn.Linear(10, 144)))
        texture = [nn.Sequential(nn.Linear(16, 16 * 14 * 14), nn.ReLU())]
        for a, b in pairwise((16, 8, 4, 2, 2)):
            up = nn.ConvTranspose2d(a, b, 5, stride=2, padding=2, output_padding=1)
            texture.append(nn.Sequential(up, nn.ReLU()))
        texture[1].insert(0, nn.Unflatten(1, (16, 14, 14)))
        texture.append(nn.Sequential(nn.Conv2d(2, 3, 1), nn.Sigmoid()))
        self.texture_layers = nn.Sequential(*texture)

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pre_layers(embedding)
        return self.landmark_layers(x), self.texture_layers(x)


def seed_voice() -> Any:
    """VE_conv on [b 2 257 t]."""
    layers: list[list[nn.Module]] = []
    for n, (a, b) in enumerate(pairwise((2, *CHANNELS[:8])), start=1):
        conv = nn.Conv2d(a, b, 4, stride=2 if n == 8 else 1)
        layers.append([conv, nn.ReLU(), nn.BatchNorm2d(b)])
        layers[-1] += [nn.MaxPool2d((1, 2))] if n in (3, 4, 5, 6) else []
    c = CHANNELS[8]
    pooling = nn.AdaptiveAvgPool2d((None, 1))
    layers.append([nn.Conv2d(b, c, 4, stride=2), pooling, nn.ReLU(), nn.BatchNorm2d(c)])
    layers.append([nn.Flatten(), nn.Linear(57 * c, VOICE.hidden), nn.ReLU()])
    return in_order(*layers, [nn.Linear(VOICE.hidden, EMBEDDING), nn.ReLU()])


def hugging_face_ast(config: ASTEncoderConfig, *, classifier: bool) -> Any:
    """An AST of transformers with random weights. Wants transformers."""
    import transformers

    sizes = {theirs: getattr(config, ours) for theirs, ours in ast_encoder.FIELDS.items()}
    made = transformers.ASTConfig(**sizes, num_labels=config.embedding)
    kind = transformers.ASTForAudioClassification if classifier else transformers.ASTModel
    return randomise(kind(made))


def seed_ast() -> Any:
    """The seed's AST: transformers' classifier, whose head ends in a ReLU. Wants transformers."""
    model = hugging_face_ast(AST, classifier=True)
    model.classifier = nn.Sequential(model.classifier, nn.ReLU())
    return model


class Resemblyzers(nn.Module):
    """Resemblyzer's network, on windows [k t 40], with the two values of its training's loss."""

    def __init__(self) -> None:
        super().__init__()
        self.similarity_weight, self.similarity_bias = (nn.Parameter(torch.ones(1)) for _ in "wb")
        self.lstm = nn.LSTM(40, SPEAKER.width, SPEAKER.layers, batch_first=True)
        self.linear = nn.Linear(SPEAKER.width, SPEAKER.width)

    def forward(self, windows: Tensor) -> Tensor:
        d_vectors = self.linear(self.lstm(windows)[1][0][-1]).relu()
        return d_vectors / d_vectors.norm(dim=1, keepdim=True)


def write_pretrained(path: Path, state: dict[str, Tensor], step: int = 7) -> None:
    """Write Resemblyzer's pretrained.pt: of torch before 1.6, with the state of an optimizer."""
    beside = {"step": step, "optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}}}
    whole = beside | {"model_state": state}
    torch.save(whole, path, _use_new_zipfile_serialization=False)


def training_checkpoint(path: Path, module: nn.Module) -> None:
    """Write a training checkpoint as the seed does."""
    beside = {"epoch": 3, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(3)}}}}
    torch.save(beside | {"model_state_dict": module.state_dict()}, path)


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """Make the published networks narrow, and read a file once: each reading starts a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(face_encoder.CONFIGS, "paper", VGG)
        patch.setitem(face_decoder.CONFIGS, "seed", DECODER)
        patch.setitem(voice_encoder.CONFIGS, "seed", VOICE)
        patch.setitem(ast_encoder.CONFIGS, "seed", AST)
        patch.setitem(speaker_encoder.CONFIGS, "resemblyzer", SPEAKER)
        patch.setattr(
            foreign_weights, "read_foreign", functools.cache(foreign_weights.read_foreign)
        )
        yield


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files as their authors publish them. Not to be changed."""
    folder = tmp_path_factory.mktemp("published")
    for origin, names in (("serengil", AUTOMATIC), ("rcmalli", VGG16_NAMES)):
        layers: dict[str, dict[str, Any]] = {"flatten": {}}
        for name, (kernel, bias) in zip(names, keras_arrays(origin), strict=True):
            layer = {name: {f"{name}/kernel:0": kernel, f"{name}/bias:0": bias}}
            layers = layers | layer if origin == "serengil" else layer | layers  # names decide
        write_legacy(folder / f"{origin}.h5", layers, backend=b"tensorflow")
    training_checkpoint(folder / "decoder.pt", randomise(SeedDecoder()))
    training_checkpoint(folder / "ve.pt", seed_voice())
    torch.save(seed_vgg().state_dict(), folder / "serengil.pt")
    torch.save(scrambled_rcmalli(), folder / "rcmalli.pt")
    write_pretrained(folder / "pretrained.pt", randomise(Resemblyzers()).state_dict())
    if find_spec("transformers"):
        training_checkpoint(folder / "ast.pt", seed_ast())
    return folder
