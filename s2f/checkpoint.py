"""Checkpoints: one safetensors file a network, with everything needed to run it.

The file's metadata holds one JSON: format version, kind, config, preprocessing, the embedding
space, a card, and the SHA-256 of the tensors; beside it stands the SHA-256 of this JSON, which
older files lack. The embedding space, a hash of the face encoder's tensors and preprocessing, ties
a voice encoder and a decoder to it. A model is a folder of checkpoints, KIND.safetensors each.
Headers and models need no torch, which is slow to import.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import http.client
import importlib
import json
import math
import os
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import s2f
from s2f.errors import CheckpointError, DependencyError, UsageError
from s2f.files import atomic_path, unwritable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from s2f.ast_encoder import ASTEncoder
    from s2f.face_decoder import FaceDecoder
    from s2f.face_encoder import FaceEncoder
    from s2f.speaker_encoder import AttributeEncoder, SpeakerEncoder
    from s2f.spectrogram import FrontEnd
    from s2f.voice_encoder import VoiceEncoder

    AnyVoiceEncoder: TypeAlias = VoiceEncoder | ASTEncoder | SpeakerEncoder | AttributeEncoder
    Network: TypeAlias = AnyVoiceEncoder | FaceEncoder | FaceDecoder
else:  # only annotations name them
    AnyVoiceEncoder = Network = Any

Made = TypeVar("Made")

MODELS = Path(__file__).parent / "models"  # the bundled ones, a folder each
EVALUATION = "evaluation.md"
VERSION = 1
KINDS = ("voice_encoder", "face_encoder", "face_decoder")
# And what JSON has in their place; `preprocessing` is of a decoder, which has none, null.
FIELDS: Mapping[str, tuple[type, ...]] = {
    "kind": (str,),
    "config": (dict,),
    "preprocessing": (dict, type(None)),
    "embedding_space": (str,),
    "card": (dict,),
    "sha256": (str,),
}
# Where the class of each is, and that of its config; the first of a kind goes without saying. Those
# that a model does not have are not imported.
_ARCHITECTURES = {
    "voice_encoder": {
        "conv": ("voice_encoder", "VoiceEncoder"),
        "ast": ("ast_encoder", "ASTEncoder"),
        "speaker": ("speaker_encoder", "SpeakerEncoder"),
        "attributes": ("speaker_encoder", "AttributeEncoder"),
    },
    "face_encoder": {
        "vgg": ("face_encoder", "VGGFace"),
        "parts": ("appearance_model", "PartsEncoder"),
    },
    "face_decoder": {"": ("face_decoder", "FaceDecoder")},
}
_WHOLE = ("speaker", "attributes")  # architectures that calculate in float32 under autocast too
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CONVERT = "published weights become checkpoints by s2f convert; s2f convert inspect lists a file's"
OURS = "wanted a .safetensors file that s2f train wrote, whole"
MOST = 2**20  # of any number of channels, values, samples ... in a config
LAYERS = 100  # that a config may list, or else as many as there are tensors
PIECE = 2**22  # values that are hashed at a time, and looked at while they are at hand
# What constructors make of a config that cannot be.
_IMPOSSIBLE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Facts:
    """What a checkpoint's file says, for people to read."""

    path: Path
    kind: str
    parameters: int  # values of its floating-point tensors, running statistics among them
    n_bytes: int
    storage: str  # types of those tensors, `float32` or `float16, float32`
    card: Mapping[str, Any]  # not trusted: any JSON
    embedding_space: str
    embedding: Any  # values of one, by the config; None where that does not say
    sha256: str  # as the header has it; whether that is true, `verify` says


def read_header(path: Path, kind: str | None = None) -> dict[str, Any]:
    """Read the header of a checkpoint, the `FIELDS`; whether it fits the tensors, `verify` says.

    Raises a `CheckpointError` if the file is missing, not ours, or of another version or kind.
    """
    with _opened(path, kind, "np") as (_, header):
        return header


def verify(path: Path) -> Facts:
    """Read what a checkpoint says of itself, and make sure that it can be used, as `load` does.

    Raises what `load` does, and a `CheckpointError` if the file is named as another kind.
    """
    # A name that says what it is has to be right: a model is found by it.
    with _opened(path, path.stem if path.stem in KINDS else None, "pt") as (file, header):
        _read(path, file, header)
        return _facts(path, file, header)


def _facts(path: Path, file: Any, header: Mapping[str, Any]) -> Facts:
    slices = [file.get_slice(name) for name in file.keys()]
    floats = [tensor for tensor in slices if tensor.get_dtype() in _DTYPES]
    return Facts(
        path=path,
        parameters=sum(math.prod(tensor.get_shape()) for tensor in floats),
        n_bytes=path.stat().st_size,
        embedding=header["config"].get("embedding"),
        storage=", ".join(sorted({_DTYPES[tensor.get_dtype()] for tensor in floats})),
        **{name: header[name] for name in ("kind", "card", "embedding_space", "sha256")},
    )


@contextlib.contextmanager
def _opened(path: Path, kind: str | None, framework: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open a safetensors file of ours, and read its header."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        found = "is no regular file" if path.exists() else "no such checkpoint"
        raise CheckpointError(f"{path}: {found}", hint="check the path: a .safetensors file")
    try:
        path.open("rb").close()
    except OSError as error:  # safetensors would not say why
        message = f"{path}: cannot be read: {error.strerror}"
        raise CheckpointError(message, hint="check its permissions") from error
    try:
        with safe_open(path, framework=framework) as file:
            metadata = file.metadata() or {}
            if "run" in metadata:
                message = f"{path}: is the state of a run, to go on with, and no checkpoint"
                raise CheckpointError(message, hint="give the best.safetensors of that run")
            if "s2f" not in metadata:
                message = f"{path}: is a safetensors file, but not one that s2f wrote"
                raise CheckpointError(message, hint=f"wanted one of s2f train; {CONVERT}")
            sha256 = _text_sha256(metadata["s2f"])
            # Another name may be a damaged `sha256`: nothing else of ours stands there.
            if metadata.keys() - {"s2f", "sha256"} or metadata.get("sha256", sha256) != sha256:
                message = f"{path}: is damaged: its header does not have the SHA-256 beside it"
                raise CheckpointError(message, hint="copy or download the file again")
            header = json.loads(metadata["s2f"])
            version = header.get("version") if isinstance(header, dict) else header
            if not isinstance(header, dict) or version != VERSION:
                message = f"{path}: has format version {version}; this program reads {VERSION}"
                raise CheckpointError(message, hint="install the version of s2f that made it")
            for name, types in FIELDS.items():
                value = header.get(name, ...)
                if not isinstance(value, types):
                    found = "missing" if value is ... else f"a {type(value).__name__}"
                    message = f"{path}: its header does not describe a checkpoint: {name}"
                    hint = "it was not written by s2f as it stands"
                    raise CheckpointError(f"{message} is {found}", hint=hint)
            if header["kind"] not in ((kind,) if kind else KINDS):
                message = f"{path}: is a {header['kind']}; wanted a {kind or ' or '.join(KINDS)}"
                raise CheckpointError(message, hint="check the order of the files")
            yield file, header
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        _refuse_foreign(path)
        message = f"{path}: is not a checkpoint of s2f: {error}"
        raise CheckpointError(message, hint=OURS) from error


def _refuse_foreign(path: Path) -> None:
    """Raise a `CheckpointError` that says what a file is, if it is no safetensors file."""
    from s2f.foreign_weights import FORMATS, WANTED, recognise  # not before something is wrong

    try:
        kind = recognise(path)
    except CheckpointError as error:
        if WANTED not in str(error.hint):
            raise
        raise CheckpointError(error.message, hint=OURS) from error  # here no other weights are
    if kind != "safetensors":
        message = f"{path}: holds weights of {FORMATS[kind]}, and is no checkpoint of s2f"
        raise CheckpointError(message, hint=CONVERT)


def _text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _order(path: Path, text: str) -> None:
    """Put the header's JSON first in the metadata: safetensors writes its two in either order."""
    start, json_of, sha256 = b'{"__metadata__":{', json.dumps(text), _text_sha256(text)
    parts = f'"s2f":{json_of}'.encode(), f'"sha256":"{sha256}"'.encode()
    first, other = (start + b",".join(some) + b"}" for some in (parts, parts[::-1]))
    with path.open("r+b") as file:
        file.seek(8)
        if file.read(len(other)) == other:
            file.seek(8)
            file.write(first)


def payload_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and values of tensors, in the order of their names."""
    return _hashed(tensors)[0]


def _hashed(tensors: Mapping[str, Tensor]) -> tuple[str, str | None]:
    """Hash tensors, and name the first with floats that are not finite in float32, if any is."""
    import torch

    digest, broken = hashlib.sha256(), None
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for piece in torch.split(tensor.detach().cpu().contiguous().reshape(-1), PIECE):
            digest.update(piece.view(torch.uint8).numpy().data)
            if broken is None and not is_finite(piece):
                broken = name
    return digest.hexdigest(), broken


def is_finite(tensor: Tensor) -> bool:
    """Tell whether no value of a tensor is NaN, or infinite in float32; quicker than all."""
    import torch

    if not tensor.is_floating_point() or not tensor.numel():
        return True
    ends = torch.stack(tensor.aminmax())  # NaN where there is one
    return bool(ends.float().isfinite().all())


def check_space(checkpoints: Sequence[Facts | Checkpoint]) -> None:
    """Raise a `CheckpointError` unless checkpoints were made for one and the same face encoder.

    What they embed, or draw, is of as many values, too.
    """
    if len({checkpoint.embedding_space for checkpoint in checkpoints}) > 1:
        seen = ", ".join(f"{c.path} of space {c.embedding_space[:8]}" for c in checkpoints)
        message = f"networks of different embedding spaces do not fit together: {seen}"
        hint = "use networks that were trained with the same face encoder"
        raise CheckpointError(message, hint=hint)
    sizes = {c.path: c.embedding for c in checkpoints if c.embedding is not None}
    if len({*sizes.values()}) > 1:
        seen = ", ".join(f"{path} of {n} values" for path, n in sizes.items())
        message = f"networks of one embedding space differ in its values: {seen}"
        hint = "the header of one was changed: use the files as they were made"
        raise CheckpointError(message, hint=hint)


@dataclass(frozen=True)
class Card:
    """What a model was made from, what it measures and how it fails."""

    name: str
    description: str = ""
    data: str = ""
    licence: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    limits: str = ""

    @classmethod
    def of_data(cls, data: Path, name: str) -> Card:
        """Start the card of a model trained on a data tree, from the tree's `card.json` if any.

        Raises a `CheckpointError` if that file is not a card.
        """
        path = data / "card.json"
        if not path.is_file():
            return cls(name)
        try:
            return cls(**{"name": name, **json.loads(path.read_text(encoding="utf-8"))})
        except (TypeError, ValueError) as error:
            hint = "wanted a JSON object of description, data, licence and limits"
            raise CheckpointError(f"{path}: is not a card: {error}", hint=hint) from error

    def begun_from(self, start: Card) -> Card:
        """Say also what a network is made of that started as another; nothing is said twice."""
        said = f"{self.data} Its weights started as those of {start.name}.".strip()
        told: dict[str, Any] = {}
        for name in ("data", "licence", "limits"):
            mine, theirs = getattr(self, name), getattr(start, name)
            begun = said if name == "data" else mine
            told[name] = begun if theirs in mine else f"{begun} {theirs}".strip()
        return dataclasses.replace(self, **told)


@dataclass(frozen=True)
class Checkpoint:
    """A network read from a file, with what the file says of it."""

    path: Path
    kind: str
    network: Network  # in evaluation mode, on the CPU; float32 unless half precision was kept
    front_end: FrontEnd | None  # of a voice encoder
    embedding_space: str
    card: Card
    sha256: str

    @property
    def embedding(self) -> int:
        """Values of an embedding."""
        return self.network.config.embedding


def save(
    path: Path,
    network: Network,
    *,
    card: Card,
    embedding_space: str | None = None,
    front_end: FrontEnd | None = None,
    storage: torch.dtype | None = None,
) -> str:
    """Write a network as a checkpoint, whole or not at all, and return its embedding space.

    A voice encoder, which has a `front_end`, or a decoder was made for an `embedding_space`; a face
    encoder defines its own. Floating-point tensors become `storage` in the file, by default
    float32; in half precision vectors (biases, BatchNorm's statistics) and tensors with values
    beyond its range stay float32. Raises an `OutputError` if it cannot be written.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from s2f.face_encoder import FaceEncoder

    storage = storage or torch.float32
    tensors = {
        name: _stored(tensor, storage).contiguous().cpu()
        for name, tensor in network.state_dict().items()
    }
    sha256, space = payload_sha256(tensors), embedding_space
    preparation = network.preprocessing if isinstance(network, FaceEncoder) else front_end
    preprocessing = dataclasses.asdict(preparation) if preparation else None
    if space is None:  # the same weights embed pictures that are prepared otherwise elsewhere
        prepared = json.dumps(preprocessing, sort_keys=True)
        space = hashlib.sha256(f"{sha256} {prepared}".encode()).hexdigest()
    header = {
        "version": VERSION,
        "kind": kind_of(network),
        "config": dataclasses.asdict(network.config),
        "preprocessing": preprocessing,
        "embedding_space": space,
        "card": dataclasses.asdict(card),
        "sha256": sha256,
        "s2f": s2f.__version__,
    }
    with atomic_path(path) as temporary:
        try:
            text = json.dumps(header, sort_keys=True)
            save_file(tensors, temporary, {"s2f": text, "sha256": _text_sha256(text)})
            _order(temporary, text)
        except SafetensorError as error:  # how it says that the disk is full
            raise unwritable(path, OSError(str(error))) from error
    return space


def _stored(tensor: Tensor, storage: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    stored = tensor.to(storage)
    fits = storage.itemsize > 2 or (tensor.ndim > 1 and is_finite(stored))
    return stored if fits else tensor.float()


def kind_of(network: Network) -> str:
    """Name the kind of a network, as in `KINDS`."""
    from s2f.face_decoder import FaceDecoder
    from s2f.face_encoder import FaceEncoder

    if isinstance(network, FaceEncoder):
        return "face_encoder"
    return "face_decoder" if isinstance(network, FaceDecoder) else "voice_encoder"


def load(path: Path, kind: str, *, keep_half: bool = False) -> Checkpoint:
    """Read a checkpoint, check it, and build its network of a kind of `KINDS`.

    Tensors used as stored are mapped into memory: float32, and with `keep_half` float16 weights of
    linear layers and convolutions, for autocast; not in `speaker` and `attributes`.

    Raises a `CheckpointError` if the file is missing, not ours or damaged, a value is not finite,
    its config can be none, or its tensors are not exactly those that this wants; a
    `DependencyError` for AST without transformers.
    """
    import torch

    # Header and tensors are of one open file, whatever takes its name meanwhile. Not seen: bytes
    # that change in the file itself while it is used.
    with _opened(path, kind, "pt") as (file, header):
        network, front_end, card, tensors = _read(path, file, header)
    keep_half = keep_half and getattr(network.config, "architecture", "") not in _WHOLE
    layers = torch.nn.Linear | torch.nn.Conv2d | torch.nn.ConvTranspose2d
    large = {f"{name}.weight" for name, m in network.named_modules() if isinstance(m, layers)}
    for name, tensor in tensors.items():
        stays = keep_half and name in large and tensor.dtype == torch.float16
        if tensor.is_floating_point() and not stays:
            tensors[name] = tensor.float()
    network.load_state_dict(tensors, assign=True)
    network.requires_grad_(False).eval()
    return Checkpoint(
        path, kind, network, front_end, header["embedding_space"], card, header["sha256"]
    )


def _read(
    path: Path, file: Any, header: Mapping[str, Any]
) -> tuple[Network, FrontEnd | None, Card, dict[str, Tensor]]:
    """Read all of an open file: the network, without its values, and these, mapped into memory."""
    tensors = {name: file.get_tensor(name) for name in file.keys()}
    sha256, broken = _hashed(tensors)
    if sha256 != header["sha256"]:
        message = f"{path}: is damaged: its tensors do not have the SHA-256 in its header"
        raise CheckpointError(message, hint="copy or download the file again")
    if broken is not None:
        message = f"{path}: tensor {broken!r} holds values that are no numbers (NaN or infinite)"
        hint = "the training that made it went wrong: use a checkpoint from before that"
        raise CheckpointError(message, hint=hint)
    kind, other = header["kind"], "it was made by another version of s2f, or changed since"
    try:
        given = header["config"], header["preprocessing"], len(tensors)
        network, front_end = _build(kind, *given)
        card = Card(**header["card"])
    except _IMPOSSIBLE as error:
        why = (str(error).splitlines() or [""])[0]
        message = f"{path}: its header does not describe a {kind}: {why}"
        raise CheckpointError(message, hint=other) from error
    state = network.state_dict()
    for name in sorted(state | tensors):
        wanted, found = (_typed(some.get(name)) for some in (state, tensors))
        if wanted != found:
            message = f"{path}: tensor {name!r} is {found}; its config wants {wanted}"
            raise CheckpointError(message, hint=other)
    return network, front_end, card, tensors


def _typed(tensor: Tensor | None) -> str:
    """Say the shape of a tensor, and its type where that is not one of the floats stored."""
    if tensor is None:
        return "missing"
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{tuple(tensor.shape)}{'' if dtype in _DTYPES.values() else f' {dtype}'}"


def _build(
    kind: str, config: dict[str, Any], preprocessing: dict[str, Any] | None, n_tensors: int
) -> tuple[Network, FrontEnd | None]:
    """Make the network that a header describes, without its values, and its front end."""
    import torch

    from s2f.images import FRAME, Preprocessing
    from s2f.spectrogram import FRONT_ENDS, FrontEnd

    config, preprocessing = dict(config), dict(preprocessing or {})
    known = _ARCHITECTURES[kind]
    architecture = config.pop("architecture", next(iter(known)))
    if architecture not in known:
        raise ValueError(f"its architecture is {architecture!r}; wanted {' or '.join(known)}")
    prepared: tuple[Preprocessing, ...] = ()
    if kind == "face_encoder":
        prepared = (_made(Preprocessing, preprocessing, "preprocessing"),)
    front_end = None
    if kind == "voice_encoder":
        # Our own log-mel was called `ast` too, when torchaudio's was not used for AST.
        of_ast = preprocessing.get("clip_samples") == FRONT_ENDS["ast"].clip_samples
        if preprocessing.get("kind") == "ast" and not of_ast:
            preprocessing["kind"] = "log_mel"
        front_end = _made(FrontEnd, preprocessing, "front end")
        heard = front_end.n_channels, front_end.n_freqs
        frames = front_end.n_frames(front_end.clip_samples)
    module, name = known[architecture]
    home = importlib.import_module(f"s2f.{module}")
    made = _made(getattr(home, f"{name}Config"), config, "config")
    lists = [len(value) for value in vars(made).values() if isinstance(value, tuple)]
    counted = architecture in ("ast", "speaker", "attributes")
    if (n := made.layers if counted else max(lists)) > max(n_tensors, LAYERS):
        raise ValueError(f"its config has {n} layers, and the file {n_tensors} tensors")
    side = FRAME if kind == "voice_encoder" else made.image_size
    if FRAME % side if kind == "face_encoder" else side != FRAME:
        raise ValueError(f"its faces have {side} pixels a side; wanted {FRAME}")
    with torch.device("meta"):  # no time spent on random weights that `assign` replaces
        network = getattr(home, name)(made, *prepared)
    if architecture == "vgg":  # a buffer that no file holds
        network.mean = torch.tensor(network.preprocessing.mean).view(3, 1, 1)
    if front_end:
        if heard != (network.config.in_channels, network.config.n_freqs):
            raise ValueError(f"its front end gives {heard[0]} x {heard[1]} frequencies")
        network.config.check_frames(frames)
    return network, front_end


def _made(kind: type[Made], given: Mapping[str, Any], name: str) -> Made:
    """Make a dataclass of what JSON has; a `ValueError` if a field can be no such thing."""
    types_of = typing.get_type_hints(kind)
    values = _tuples(given)
    for key, value in values.items():
        if key in types_of and not _is_of(value, types_of[key]):
            raise ValueError(f"{key} of its {name} is {reprlib.repr(value)}")
    return kind(**values)


def _is_of(value: Any, wanted: Any) -> bool:
    """Tell whether a value is of an annotated type, and a number one that can be."""
    origin, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is typing.Literal:
        return value in parts
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, part) for part in parts)
    if origin is tuple:
        parts = parts[:1] * len(value) if parts[-1] is ... and isinstance(value, tuple) else parts
        fits = isinstance(value, tuple) and len(value) == len(parts)
        return fits and all(map(_is_of, value, parts))
    if wanted is int:
        return type(value) is int and 0 <= value <= MOST
    if wanted is float:
        return type(value) in (int, float) and abs(value) < math.inf
    return isinstance(value, origin or wanted)


def _tuples(value: Any) -> Any:
    """Turn lists, as JSON has them, back into the tuples that they were."""
    if isinstance(value, dict):
        return {name: _tuples(v) for name, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class Choice:
    """The files of a model to load, by kind: there, of their kinds, not yet checked whole."""

    name: str
    paths: Mapping[str, Path]
    sha256: Mapping[str, str]  # by kind, as the headers have it


@dataclass(frozen=True)
class Model:
    """The networks of a model that a command asked for, by kind; they share one space."""

    name: str
    checkpoints: Mapping[str, Checkpoint]


@dataclass(frozen=True)
class Entry:
    """A model and what the files in its folder say."""

    name: str  # that `choose` knows it by
    folder: Path
    where: str  # that is: `bundled`, in the `cache`, or a `folder` elsewhere
    networks: Mapping[str, Facts]  # by kind; it may have only some
    errors: Mapping[str, CheckpointError]  # of the files that cannot be read
    evaluation: str | None  # the report.md of `s2f evaluate`, if it lies there as `EVALUATION`


def cache() -> Path:
    """Name the folder of models that are not bundled; it need not be there."""
    if own := os.environ.get("S2F_MODELS"):
        return Path(own)
    # A user without a home has no cache, which is no error: `~` then stays as it is.
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(caches, "s2f", "models")


def choose(
    model: str | Path = "demo",
    kinds: Sequence[str] = KINDS,
    *,
    files: Mapping[str, Path] | None = None,
) -> Choice:
    """Find the checkpoints of a model: a bundled one, or else in the cache, or else a folder.

    Only networks of these `kinds` are wanted, and `files` take the place of the model's own, which
    is not looked at if they are all. Raises a `CheckpointError` if there is no such model or file,
    or it is no checkpoint of its kind, and a `UsageError` for a file of a kind not wanted.
    """
    given = {kind: Path(path) for kind, path in (files or {}).items()}
    for kind in given:
        if kind not in kinds:
            wanted = f"only {' and '.join(kinds)} are used here"
            raise UsageError(f"{given[kind]}: is given as {kind}; {wanted}", hint="leave it out")
    own, paths = "", given
    if given.keys() != set(kinds):
        own, folder, _ = _find(model)
        paths = {kind: given.get(kind, folder / f"{kind}.safetensors") for kind in kinds}
    # Read, and refused, now: not after a second of importing torch.
    sha256 = {kind: read_header(path, kind)["sha256"] for kind, path in paths.items()}
    mixed = " + ".join(f"{kind} {sha256[kind][:12]}" for kind in given)  # no path, which is private
    return Choice(", but ".join(filter(None, (own, mixed))), paths, sha256)


def entries(*models: str | Path) -> list[Entry]:
    """List what some models hold; by default all that are bundled or in the cache.

    Raises a `CheckpointError` if there is no such model; a damaged file is listed instead.
    """
    bundled = models_in(MODELS)
    found = [_find(model) for model in models]
    if not models:
        found = [(name, folder, "bundled") for name, folder in bundled.items()]
        for name, folder in models_in(cache()).items():  # behind a bundled name, by its path alone
            found.append((str(folder) if name in bundled else name, folder, "cache"))
    return [_entry(*place) for place in found]


def _entry(name: str, folder: Path, where: str) -> Entry:
    networks, errors = {}, {}
    for kind in _kinds(folder):
        try:
            path = folder / f"{kind}.safetensors"
            with _opened(path, kind, "np") as opened:
                networks[kind] = _facts(path, *opened)
        except CheckpointError as error:
            errors[kind] = error
    text = folder / EVALUATION
    evaluation = text.read_text(encoding="utf-8", errors="replace") if text.is_file() else None
    return Entry(name, folder, where, networks, errors, evaluation)


def _find(model: str | Path) -> tuple[str, Path, str]:
    bundled, cached, name = models_in(MODELS), models_in(cache()), str(model)
    for where, known in (("bundled", bundled), ("cache", cached)):
        if model in known:
            return name, known[name], where
    if os.path.isdir(model):
        if not _kinds(Path(model)):
            for path in sorted(Path(model).iterdir()):
                if path.suffix in (".h5", ".pt", ".pth", ".bin", ".ckpt") and path.is_file():
                    _refuse_foreign(path)
        return Path(model).resolve().name, Path(model), "folder"
    if os.path.isfile(model):  # noqa: PTH113 (a long name is no error)
        kind = read_header(Path(model))["kind"]
        hint = f"give it as --{kind.replace('_', '-')}, or the folder that it is in"
        message = f"{model}: is one checkpoint, a {kind}; wanted a model, a folder of them"
        raise CheckpointError(message, hint=hint)
    lacks = f"is neither a bundled model ({', '.join(bundled)}), nor one in the cache {cache()}"
    raise CheckpointError(
        f"{model}: {lacks} ({', '.join(cached) or 'none'}), nor a folder of checkpoints",
        hint=f"a model folder holds {', '.join(f'{kind}.safetensors' for kind in KINDS)}",
    )


def models_in(folder: Path) -> dict[str, Path]:
    """List the models in a folder of models by name; one is a folder with a checkpoint."""
    if not os.path.isdir(folder):
        return {}
    return {p.name: p for p in sorted(folder.iterdir()) if p.name[0] != "." and _kinds(p)}


def _kinds(folder: Path) -> list[str]:
    return [kind for kind in KINDS if os.path.lexists(folder / f"{kind}.safetensors")]


def load_model(choice: Choice, *, keep_half: bool = False) -> Model:
    """Read the networks that `choose` found, each as `load` does, and `check_space` of them."""
    with ThreadPoolExecutor() as pool:  # to hash a large file takes as long as all else
        read = functools.partial(load, keep_half=keep_half)
        networks = dict(
            zip(choice.paths, pool.map(read, choice.paths.values(), choice.paths), strict=True)
        )
    check_space(list(networks.values()))
    return Model(choice.name, networks)


def place_of(url: str) -> Path:
    """Say where `locate` looks for a published file."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def locate(url: str, sha256: str) -> Path:
    """Find a published file in `checkpoints` of the torch hub folder (under $TORCH_HOME).

    It is fetched if it is not there. Raises a `DependencyError` if it cannot be, or does not have
    the wanted SHA-256, hexadecimal, and an `OutputError` if the folder cannot be written.
    """
    import torch

    path = place_of(url)
    hint = f"put {url} there, as {path}"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            torch.hub.download_url_to_file(url, str(path), sha256, progress=False)
        except RuntimeError as error:  # tells the SHA-256 that was wanted, and the one it has
            found = f"{url}: gave a file of another SHA-256: {error}"
            raise DependencyError(found, hint=hint) from error
        except (OSError, http.client.HTTPException) as error:
            found = f"{path}: is not there, and {url} cannot be fetched: {error}"
            raise DependencyError(found, hint=hint) from error
        return path
    try:
        with path.open("rb") as file:
            seen = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DependencyError(f"{path}: cannot be read: {error.strerror}", hint=hint) from error
    if seen != sha256:
        hint = "remove it: it was not received whole, or is another file"
        raise DependencyError(f"{path}: its SHA-256 is {seen}; wanted {sha256}", hint=hint)
    return path
