"""The AST voice encoder: a transformer on patches of a log-mel spectrogram.

The body is transformers' `ASTModel`, which the extra `ast` brings; it is built from the config
alone, or read by `read_ast` from a folder as Hugging Face lays it out, or by its id from their
hub. Knows nothing of sample rates, devices or our checkpoints.

Source: Gong et al. 2021, "AST: Audio Spectrogram Transformer"; transformers' `ASTModel`; the head
is that of Kacper-Pietkun/Speech-to-face.
"""

import contextlib
import dataclasses
import importlib.util
import io
import json
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from s2f.audio import SAMPLE_RATE
from s2f.errors import CheckpointError, DependencyError
from s2f.spectrogram import N_MELS


@dataclass(frozen=True)
class ASTEncoderConfig:
    """The shape of an AST voice encoder. The defaults are those of the seed's."""

    n_freqs: int = 128  # mel bands of the spectrogram
    n_frames: int = 1024  # of the spectrogram; the table of positions holds neither more nor fewer
    patch: int = 16  # side of a square patch
    stride: int = 10  # distance between patches, over both axes
    width: int = 768  # of the tokens
    layers: int = 12  # of the transformer
    heads: int = 12  # of attention
    mlp: int = 3072  # width of the hidden layer of each block
    embedding: int = 4096  # its values
    final_relu: bool = True  # whether the embedding ends in a ReLU (the seed's does)
    architecture: Literal["ast"] = "ast"  # what no `VoiceEncoderConfig` in a checkpoint has

    def __post_init__(self) -> None:
        if min(self.n_freqs, self.n_frames) < self.patch:
            seen = f"{self.n_freqs} bands x {self.n_frames} frames"
            raise ValueError(f"{seen} are less than one patch of {self.patch}")
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} is no multiple of {self.heads} heads")

    @property
    def in_channels(self) -> int:
        """Channels of the spectrogram."""
        return 1

    def check_frames(self, frames: int) -> None:
        """Raise a `ValueError` if a spectrogram has other frames than this encoder hears."""
        if frames != self.n_frames:
            raise ValueError(f"{frames} frames do not fit: this encoder needs {self.n_frames}")


_PAPER = ASTEncoderConfig(final_relu=False)  # AST-base, with the paper's linear embedding
CONFIGS: dict[str, ASTEncoderConfig] = {
    "paper": _PAPER,
    "seed": ASTEncoderConfig(),
    # For a laptop: 6 s of speech, patches side by side, a body of the width of DeiT-tiny.
    "compact": dataclasses.replace(
        _PAPER, n_frames=598, stride=16, width=192, layers=4, heads=3, mlp=768, embedding=256
    ),
}

LAYER_NORM_EPS = 1e-12  # transformers' default for AST
FIELDS = {  # of `ASTEncoderConfig`, by their names in transformers'
    "num_mel_bins": "n_freqs", "max_length": "n_frames", "patch_size": "patch",
    "frequency_stride": "stride", "hidden_size": "width", "num_hidden_layers": "layers",
    "num_attention_heads": "heads", "intermediate_size": "mlp",
}  # fmt: skip
FIXED: dict[str, Any] = {"hidden_act": "gelu", "layer_norm_eps": LAYER_NORM_EPS, "qkv_bias": True}

# transformers 5 renamed the parts of its `ASTModel`; published weights have the names before.
_RENAMED = (
    (r"(^|\.)layers\.(\d+)\.", r"\1encoder.layer.\2."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def published_name(name: str) -> str:
    """Give a parameter of transformers' AST, of any version, the name that it had before 5."""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


class ASTEncoder(nn.Module):
    """Spectrogram to embedding: AST's two summary tokens, averaged, then LayerNorm and a Linear.

    `forward` takes [b 1 f t] with f = `config.n_freqs` and t = `config.n_frames`, and returns
    [b d] with d = `config.embedding`. The state dict has the names of published weights (with
    `ast.` for the body), whatever version of transformers is installed. Raises a
    `DependencyError` if none is.
    """

    def __init__(self, config: ASTEncoderConfig) -> None:
        super().__init__()
        self.config = config
        require_transformers()
        # An extra, and slow. Not on `meta`, where the network may be: it imports torchaudio, whose
        # constants would have no values.
        with torch.device("cpu"):
            from transformers import ASTConfig, ASTModel

        shape = {theirs: getattr(config, ours) for theirs, ours in FIELDS.items()}
        shape |= {"time_stride": config.stride, "hidden_dropout_prob": 0.0}
        self.ast = ASTModel(ASTConfig(**shape, **FIXED, attention_probs_dropout_prob=0.0))
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.embedding = nn.Linear(config.width, config.embedding)
        self.register_state_dict_post_hook(_to_published)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_from_published)  # type: ignore[no-untyped-call]

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Embed spectrograms, or raise a `ValueError` if they have not `config.n_frames` frames."""
        return self.from_features(self.features(spectrogram))

    def features(self, spectrogram: Tensor) -> Tensor:
        """Summarise spectrograms, [b width]: the body."""
        self.config.check_frames(spectrogram.shape[-1])
        features: Tensor = self.ast(spectrogram.squeeze(1).transpose(1, 2)).pooler_output
        return features

    def from_features(self, features: Tensor) -> Tensor:
        """Embed what `features` gives: the head."""
        embedding: Tensor = self.embedding(self.norm(features))
        return embedding.relu() if self.config.final_relu else embedding

    def head(self) -> list[nn.Parameter]:
        """Parameters of the head: LayerNorm and Linear."""
        return [*self.norm.parameters(), *self.embedding.parameters()]

    def body(self, last: int) -> list[nn.Parameter]:
        """Parameters of the last transformer layers and of what follows them in the body.

        With all layers, of all that stands before them too; with 0, none.
        """
        first = self.config.layers - last
        found = []
        for name, parameter in self.ast.named_parameters():
            layer = re.match(r"encoder\.layer\.(\d+)\.", published_name(name))
            if layer:
                wanted = int(layer[1]) >= first
            else:
                wanted = last > 0 if name.startswith("layernorm.") else first == 0
            if wanted:
                found.append(parameter)
        return found


def require_transformers() -> None:
    """Raise a `DependencyError` if transformers is not installed; does not import it."""
    if importlib.util.find_spec("transformers") is None:
        missing = "AST voice encoders need transformers, which is not installed"
        raise DependencyError(missing, hint="pip install 's2f[ast]'")


def _to_published(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, _parameter in module.named_parameters():
        state[prefix + published_name(name)] = state.pop(prefix + name)


def _from_published(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, _parameter in module.named_parameters():
        if prefix + published_name(name) in state:
            state[prefix + name] = state.pop(prefix + published_name(name))


WANTED = "give a folder that holds an AST as Hugging Face saves it, or its id on their hub"
MAX_LAYERS = 1000  # a network of millions would be built before a weight is missed


@dataclass(frozen=True)
class PretrainedAST:
    """What a pretrained AST brings."""

    config: ASTEncoderConfig  # its shape; the embedding, which it lacks, is our default
    body: dict[str, Tensor]  # weights of `ASTEncoder.ast`, float32, by their published names
    # Mean and standard deviation by which its features were normalised, for `FrontEnd`; None if it
    # has no `preprocessor_config.json`.
    features: tuple[float, float] | None

    def begin(self, encoder: ASTEncoder) -> None:
        """Put the weights in an encoder of the config's shape, whose head stays as it is."""
        head = {k: v for k, v in encoder.state_dict().items() if not k.startswith("ast.")}
        encoder.load_state_dict(head | {f"ast.{name}": v for name, v in self.body.items()})


def read_ast(source: str) -> PretrainedAST:
    """Read the body of an `ASTModel` or an `ASTForAudioClassification`: a folder, or an id.

    The id is that of a model on Hugging Face's hub, which is downloaded to where their library
    keeps models, if it is not there. Nothing is unpickled and no code of the model is run. Raises a
    `DependencyError` without transformers, and a `CheckpointError` if there is no such model, or it
    is no AST that `ASTEncoder` can be: transformers puts random numbers in the place of weights
    that are missing or do not fit; here both are errors, and so are weights of the body that have
    no place.
    """
    require_transformers()
    import transformers  # an extra, and slow

    def refuse(why: str) -> CheckpointError:
        message = f"{source}: is no AST that a voice encoder can start from: {why}"
        return CheckpointError(message, hint=WANTED)

    if not Path(source).is_dir() and not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source):
        raise CheckpointError(f"{source}: no such folder", hint=WANTED)
    try:
        with _quiet():
            config = transformers.AutoConfig.from_pretrained(source)
            wanted = {"model_type": "audio-spectrogram-transformer", **FIXED}
            wanted["time_stride"] = getattr(config, "frequency_stride", None)
            wanted["num_mel_bins"] = N_MELS
            for name, value in wanted.items():
                if (seen := getattr(config, name, None)) != value:
                    raise refuse(f"its {name} is {seen!r}; wanted {value!r}")
            if not 0 < config.num_hidden_layers <= MAX_LAYERS:
                raise refuse(f"it has {config.num_hidden_layers} layers; wanted 1 to {MAX_LAYERS}")
            ours = ASTEncoderConfig(**{FIELDS[name]: getattr(config, name) for name in FIELDS})
            loaded: Any = transformers.ASTModel.from_pretrained(
                source,
                config=config,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # which says which
                output_loading_info=True,
            )
            features = _features(source)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises anything at all on files that are wrong
        first = (str(error).strip().splitlines() or [""])[0]
        why = f"{source}: cannot be read as an AST: {type(error).__name__}: {first}"
        hint = f"{WANTED}; where there is no network, a folder"
        raise CheckpointError(why, hint=hint) from error
    model, told = loaded
    for what, names in (
        ("has not", told["missing_keys"]),
        ("has another shape of", [key for key, *_ in told["mismatched_keys"]]),
        (
            "has no place for",
            [k for k in told["unexpected_keys"] if k.split(".")[0] != "classifier"],
        ),
    ):
        if names:
            raise refuse(f"it {what} {published_name(min(names))!r} of its config")
    body = {published_name(name): tensor.float() for name, tensor in model.state_dict().items()}
    return PretrainedAST(ours, body, features)


def _features(source: str) -> tuple[float, float] | None:
    from transformers.utils.hub import cached_file

    name = "preprocessor_config.json"
    path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    content = json.loads(Path(path).read_bytes())
    if (rate := content.get("sampling_rate", SAMPLE_RATE)) != SAMPLE_RATE:
        seen = f"{path}: its sampling_rate is {rate!r}; wanted {SAMPLE_RATE}"
        raise CheckpointError(seen, hint=WANTED)
    if content.get("do_normalize") is False:
        return 0.0, 0.5  # (x - mean) / (2 std) is x
    mean, std = content.get("mean"), content.get("std")
    if all(isinstance(x, int | float) and math.isfinite(x) for x in (mean, std)) and std > 0:
        return float(mean), float(std)
    raise CheckpointError(f"{path}: its features have mean {mean!r} and std {std!r}", hint=WANTED)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Hugging Face's libraries from writing to the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # of progress bars
            yield
    finally:
        logging.disable(disabled)
