"""Checkpoints: one safetensors file a network, with everything needed to run it.

The file's metadata holds one JSON: format version, kind, config, preprocessing, the embedding
space, a card, and the SHA-256 of the tensors. The embedding space, a hash of the face encoder's
tensors and preprocessing, ties a voice encoder and a decoder to it. A model is a folder of
checkpoints, KIND.safetensors each. Headers and models need no torch, which is slow to import.
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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import s2f
from s2f.errors import CheckpointError, DependencyError, UsageError
from s2f.files import atomic_path, unwritable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from s2f.ast_encoder import ASTEncoder
    from s2f.face_decoder import FaceDecoder
    from s2f.face_encoder import FaceEncoder
    from s2f.spectrogram import FrontEnd
    from s2f.voice_encoder import VoiceEncoder

    AnyVoiceEncoder: TypeAlias = VoiceEncoder | ASTEncoder
    Network: TypeAlias = AnyVoiceEncoder | FaceEncoder | FaceDecoder
else:  # only annotations name them
    AnyVoiceEncoder = Network = Any

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
    },
    "face_encoder": {
        "vgg": ("face_encoder", "VGGFace"),
        "parts": ("appearance_model", "PartsEncoder"),
    },
    "face_decoder": {"": ("face_decoder", "FaceDecoder")},
}
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


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
    sha256: str  # as the header has it; whether that is true, `verify` says


def read_header(path: Path, kind: str | None = None) -> dict[str, Any]:
    """Read the header of a checkpoint, the `FIELDS`; whether it fits the tensors, `verify` says.

    Raises a `CheckpointError` if the file is missing, not ours, or of another version or kind.
    """
    with _opened(path, kind, "np") as (_, header):
        return header


def verify(path: Path) -> Facts:
    """Read what a checkpoint says of itself, and check that its tensors have its SHA-256.

    Raises a `CheckpointError` if the file is missing, damaged, not ours, or named as another kind.
    """
    # A name that says what it is has to be right: a model is found by it.
    with _opened(path, path.stem if path.stem in KINDS else None, "pt") as (file, header):
        _checked_tensors(path, file, header)
        return _facts(path, file, header)


def _facts(path: Path, file: Any, header: Mapping[str, Any]) -> Facts:
    slices = [file.get_slice(name) for name in file.keys()]
    floats = [tensor for tensor in slices if tensor.get_dtype() in _DTYPES]
    return Facts(
        path=path,
        parameters=sum(math.prod(tensor.get_shape()) for tensor in floats),
        n_bytes=path.stat().st_size,
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
    wanted = "wanted a .safetensors file that s2f train wrote"
    try:
        with safe_open(path, framework=framework) as file:
            metadata = file.metadata() or {}
            if "s2f" not in metadata:
                message = f"{path}: is a safetensors file, but not one that s2f wrote"
                raise CheckpointError(message, hint=wanted)
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
        message = f"{path}: is not a checkpoint of s2f: {error}"
        raise CheckpointError(message, hint=wanted) from error


def payload_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and values of tensors, in the order of their names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checked_tensors(path: Path, file: Any, header: Mapping[str, Any]) -> dict[str, Tensor]:
    """Map the tensors of an open file into memory; they are those its header was written for."""
    tensors = {name: file.get_tensor(name) for name in file.keys()}
    if payload_sha256(tensors) != header["sha256"]:
        message = f"{path}: is damaged: its tensors do not have the SHA-256 in its header"
        raise CheckpointError(message, hint="copy or download the file again")
    return tensors


def check_space(checkpoints: Sequence[Facts | Checkpoint]) -> None:
    """Raise a `CheckpointError` unless checkpoints were made for one and the same face encoder."""
    if len({checkpoint.embedding_space for checkpoint in checkpoints}) > 1:
        seen = ", ".join(f"{c.path} of space {c.embedding_space[:8]}" for c in checkpoints)
        message = f"networks of different embedding spaces do not fit together: {seen}"
        hint = "use networks that were trained with the same face encoder"
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
    float32. Raises an `OutputError` if it cannot be written.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from s2f.face_encoder import FaceEncoder

    storage = storage or torch.float32
    tensors = {
        name: (tensor.to(storage) if tensor.is_floating_point() else tensor).contiguous().cpu()
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
            save_file(tensors, temporary, {"s2f": json.dumps(header, sort_keys=True)})
        except SafetensorError as error:  # how it says that the disk is full
            raise unwritable(path, OSError(str(error))) from error
    return space


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
    linear layers and convolutions, for autocast. Raises a `CheckpointError` as `verify`, or if they
    do not fit the config, and a `DependencyError` for AST without transformers.
    """
    import torch

    # Header and tensors are of one open file, whatever takes its name meanwhile. Not seen: bytes
    # that change in the file itself while it is used.
    with _opened(path, kind, "pt") as (file, header):
        tensors = _checked_tensors(path, file, header)
    other = "it was made by another version of s2f"
    try:
        network, front_end = _build(kind, header["config"], header["preprocessing"])
        card = Card(**header["card"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"{path}: its header does not describe a {kind}: {error}"
        raise CheckpointError(message, hint=other) from error
    wanted = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if wanted != found:
        name = min(n for n in wanted | found if wanted.get(n) != found.get(n))
        message = f"{path}: tensor {name!r} is {found.get(name)}; its config wants"
        raise CheckpointError(f"{message} {wanted.get(name)}", hint=other)
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


def _build(
    kind: str, config: dict[str, Any], preprocessing: dict[str, Any] | None
) -> tuple[Network, FrontEnd | None]:
    """Make the network that a header describes, without its values, and its front end."""
    import torch

    from s2f.images import Preprocessing
    from s2f.spectrogram import FRONT_ENDS, FrontEnd

    config, preprocessing = _tuples(config), _tuples(preprocessing or {})
    known = _ARCHITECTURES[kind]
    architecture = config.pop("architecture", next(iter(known)))
    if architecture not in known:
        raise ValueError(f"its architecture is {architecture!r}; wanted {' or '.join(known)}")
    prepared = (Preprocessing(**preprocessing),) if kind == "face_encoder" else ()
    front_end = None
    if kind == "voice_encoder":
        # Our own log-mel was called `ast` too, when torchaudio's was not used for AST.
        of_ast = preprocessing.get("clip_samples") == FRONT_ENDS["ast"].clip_samples
        if preprocessing.get("kind") == "ast" and not of_ast:
            preprocessing["kind"] = "log_mel"
        front_end = FrontEnd(**preprocessing)
        heard = front_end.n_channels, front_end.n_freqs
        frames = front_end.n_frames(front_end.clip_samples)
    module, name = known[architecture]
    home = importlib.import_module(f"s2f.{module}")
    with torch.device("meta"):  # no time spent on random weights that `assign` replaces
        network = getattr(home, name)(getattr(home, f"{name}Config")(**config), *prepared)
    if architecture == "vgg":  # a buffer that no file holds
        network.mean = torch.tensor(network.preprocessing.mean).view(3, 1, 1)
    if front_end:
        if heard != (network.config.in_channels, network.config.n_freqs):
            raise ValueError(f"its front end gives {heard[0]} x {heard[1]} frequencies")
        network.config.check_frames(frames)
    return network, front_end


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
    mixed = [f"{kind} of {path.absolute().parent.name}/{path.name}" for kind, path in given.items()]
    name, paths = " + ".join(mixed), given
    if given.keys() != set(kinds):
        own, folder, _ = _find(model)
        name = f"{own}, but {name}" if given else own
        paths = {kind: given.get(kind, folder / f"{kind}.safetensors") for kind in kinds}
    for kind, path in paths.items():
        read_header(path, kind)  # refused now, not after a second of importing torch
    return Choice(name, paths)


def entries(*models: str | Path) -> list[Entry]:
    """List what some models hold; by default all that are bundled or in the cache.

    Raises a `CheckpointError` if there is no such model; a damaged file is listed instead.
    """
    bundled = _models(MODELS)
    found = [_find(model) for model in models]
    if not models:
        found = [(name, folder, "bundled") for name, folder in bundled.items()]
        for name, folder in _models(cache()).items():  # behind a bundled name, by its path alone
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
    bundled, cached, name = _models(MODELS), _models(cache()), str(model)
    for where, known in (("bundled", bundled), ("cache", cached)):
        if model in known:
            return name, known[name], where
    if os.path.isdir(model):
        return Path(model).resolve().name, Path(model), "folder"
    lacks = f"is neither a bundled model ({', '.join(bundled)}), nor one in the cache {cache()}"
    raise CheckpointError(
        f"{model}: {lacks} ({', '.join(cached) or 'none'}), nor a folder of checkpoints",
        hint=f"a model folder holds {', '.join(f'{kind}.safetensors' for kind in KINDS)}",
    )


def _models(folder: Path) -> dict[str, Path]:
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


def locate(url: str, sha256: str) -> Path:
    """Find a published file in `checkpoints` of the torch hub folder (under $TORCH_HOME).

    It is fetched if it is not there. Raises a `DependencyError` if it cannot be, or does not have
    the wanted SHA-256, hexadecimal, and an `OutputError` if the folder cannot be written.
    """
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
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
