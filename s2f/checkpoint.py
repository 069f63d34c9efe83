"""The tensors of a checkpoint as bytes: hashed, written and listed, in safetensors' format.

One tensor at a time, so that saving a network needs no second copy of it in memory; safetensors'
own writers either return the whole file or put another file in the place of the one they are given.
A file is hashed from its bytes, without torch: that may take a while, and can be done meanwhile.

Source: the format is safetensors' (8 bytes of header length, a JSON header, the data).

What a checkpoint says of itself: the JSON in its file, read without its tensors or torch.

Published weight files of others: found in the cache of torch hub, or fetched there once.

A file is used only if its SHA-256 is the wanted one.

What models there are and where: bundled, in the cache, in a folder. Without torch.

A model is a folder of checkpoints, KIND.safetensors each. The cache is a folder of models.

Checkpoints: one safetensors file a network, with everything needed to run it.

The file's metadata holds one JSON: format version, kind, config, preprocessing, the embedding
space, a card, and the SHA-256 of the payload. Plain tensors and JSON: nothing is unpickled.

The embedding space is a hash of the face encoder's payload and preprocessing. It ties a voice
encoder and a decoder to the face encoder that they were made for.
"""

import dataclasses
import hashlib
import http.client
import json
import math
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal, NoReturn, Protocol

import safetensors
import torch
from safetensors import SafetensorError
from torch import nn

import s2f
from s2f import ast_encoder, face_decoder, face_encoder, voice_encoder
from s2f.appearance_model import PartsEncoder, PartsEncoderConfig
from s2f.errors import CheckpointError, DependencyError, UsageError
from s2f.files import atomic_write
from s2f.images import Preprocessing
from s2f.spectrogram import FRONT_ENDS, FrontEnd

if TYPE_CHECKING:
    from torch import Tensor


# By torch's names: those of safetensors, and bytes a value; in the order that it writes them.
_TYPES = {
    "int64": ("I64", 8), "float64": ("F64", 8), "float32": ("F32", 4), "int32": ("I32", 4),
    "bfloat16": ("BF16", 2), "float16": ("F16", 2), "int16": ("I16", 2),
    "int8": ("I8", 1), "uint8": ("U8", 1), "bool": ("BOOL", 1),
}  # fmt: skip
_ORDER = list(_TYPES)
_NAMES = {short: (name, n_bytes) for name, (short, n_bytes) in _TYPES.items()}
_MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
_BUFFER = 1 << 22  # bytes read at once: smaller ones wait for the lock of a busy interpreter


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in a file.

    Attributes:
        dtype: as torch calls it, `float32`.
        shape: of the tensor; () for a scalar.
        start: its first byte in the file.
        n_bytes: of its data.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    n_bytes: int


@dataclass(frozen=True)
class Contents:
    """What the header of a file says: texts, and tensors by name."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Stored]


def payload_sha256(tensors: "Mapping[str, Tensor]") -> str:
    """Hash names, types, shapes and values of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(_title(name, _type(tensor), tuple(tensor.shape)))
        digest.update(_data(tensor))
    return digest.hexdigest()


def file_sha256(path: Path, told: Callable[[int], object] | None = None) -> str:
    """Hash the tensors in a file as `payload_sha256` hashes them, in bounded memory.

    Args:
        path: of a safetensors file.
        told: called with the bytes of tensors hashed so far, now and then.

    Raises:
        ValueError: if it is not such a file, whole and with nothing more in it.
        OSError: if it cannot be read.
    """
    digest = hashlib.sha256()
    # Read, not mapped: pages of a map would count as this process's memory.
    buffer = memoryview(bytearray(_BUFFER))
    done = 0
    with path.open("rb", buffering=0) as file:
        tensors = read_contents(file).tensors
        for name in sorted(tensors):
            tensor = tensors[name]
            digest.update(_title(name, tensor.dtype, tensor.shape))
            file.seek(tensor.start)
            left = tensor.n_bytes
            while left:
                n = file.readinto(buffer[:left])
                if not n:
                    raise ValueError("it became shorter while it was read")
                digest.update(buffer[:n])
                left -= n
                done += n
                if told:
                    told(done)
    return digest.hexdigest()


def read_contents(file: BinaryIO | IO[bytes]) -> Contents:
    """Read the header of a safetensors file, and check that the data are as long as it says.

    Args:
        file: open for reading, at its beginning.

    Raises:
        ValueError: if it is not such a file, or not whole.
    """
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise ValueError("it does not begin with the length of a header")
    text = file.read(length)
    if not text.startswith(b"{"):
        raise ValueError("it has no header in JSON")
    try:
        header = json.loads(
            text.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except RecursionError as error:
        raise ValueError("its header is nested too deep") from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata are not texts")
    for words in metadata.items():
        "".join(words).encode()  # half a surrogate pair is no text
    tensors = {name: _stored(name, entry, 8 + length) for name, entry in header.items()}
    end = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].n_bytes)):
        if tensor.start != end:
            raise ValueError(f"tensor {name!r} does not begin where the one before it ends")
        end += tensor.n_bytes
    if end != size:
        raise ValueError(f"it has {size} bytes; its header wants {end}")
    return Contents(metadata, tensors)


def write_safetensors(
    file: IO[bytes], tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]
) -> None:
    """Write tensors and metadata as one safetensors file, the same bytes as safetensors writes."""
    names = sorted(tensors, key=lambda name: (_ORDER.index(_type(tensors[name])), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _TYPES[_type(tensor)][0],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        file.write(_data(tensors[name]))


def _title(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    """What is hashed of a tensor before its data."""
    return f"{name} torch.{dtype} {shape}\n".encode()


def _type(tensor: "Tensor") -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _data(tensor: "Tensor") -> memoryview:
    import torch  # slow, and most that hash files do without

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data: memoryview = flat.view(torch.uint8).numpy().data
    return data


def _stored(name: str, entry: Any, base: int) -> Stored:
    """Read what a header says of one tensor whose data begin after byte `base`."""
    try:
        short, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        dtype, n_bytes = _NAMES[short]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its header does not describe the tensor {name!r}") from error
    numbers = [start, end, *shape] if isinstance(shape, list) else [None]
    if not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        raise ValueError(f"its header does not give the place of the tensor {name!r}")
    if end - start != n_bytes * math.prod(shape):
        raise ValueError(f"tensor {name!r} has {end - start} bytes: not what its shape needs")
    name.encode()  # half a surrogate pair is no name
    return Stored(dtype, tuple(shape), base + start, end - start)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("its header names something twice")
    return names


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"its header holds {name}")


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


@dataclass(frozen=True)
class Facts:
    """What a checkpoint's file says, for people to read.

    Attributes:
        path: the file.
        kind: as in `KINDS`.
        parameters: values of its floating-point tensors, running statistics among them.
        n_bytes: of the file.
        storage: types of its floating-point tensors, `float32` or `float16, float32`.
        card: what it was made from, what it measures and how it fails: not trusted, any JSON.
        embedding_space: hash of the face encoder that defines the embedding.
        sha256: of the tensors, as the header has it; whether that is true, `verify` says.
    """

    path: Path
    kind: str
    parameters: int
    n_bytes: int
    storage: str
    card: Mapping[str, Any]
    embedding_space: str
    sha256: str


class Spaced(Protocol):
    """What was made for one embedding space."""

    @property
    def path(self) -> Path:
        """The file that says so."""

    @property
    def embedding_space(self) -> str:
        """Hash of the face encoder that defines it."""


def read_header(path: Path, kind: str | None = None) -> dict[str, Any]:
    """Read the header of a checkpoint; whether the tensors agree with it, `verify` says.

    Args:
        path: the file.
        kind: that it has to be of, as in `KINDS`; by default any of them.

    Returns:
        The header, with the `FIELDS`.

    Raises:
        CheckpointError: if the file is missing, not whole, not ours, or of another kind or version.
    """
    return check_header(path, _contents(path).metadata, kind)


def read_facts(path: Path, kind: str | None = None) -> Facts:
    """Read what the file of a checkpoint says of itself.

    Raises:
        CheckpointError: as `read_header`.
    """
    contents = _contents(path)
    header = check_header(path, contents.metadata, kind)
    floats = [t for t in contents.tensors.values() if "float" in t.dtype]
    return Facts(
        path=path,
        kind=header["kind"],
        parameters=sum(math.prod(tensor.shape) for tensor in floats),
        n_bytes=path.stat().st_size,
        storage=", ".join(sorted({tensor.dtype for tensor in floats})),
        card=header["card"],
        embedding_space=header["embedding_space"],
        sha256=header["sha256"],
    )


def check_header(path: Path, metadata: Mapping[str, str], kind: str | None) -> dict[str, Any]:
    """Find the header of a checkpoint in the metadata of its file; as `read_header`."""
    try:
        header = json.loads(metadata["s2f"])
    except (ValueError, RecursionError) as error:
        raise not_a_checkpoint(path, error) from error
    except KeyError as error:
        raise CheckpointError(
            f"{path}: is a safetensors file, but not one that s2f wrote",
            hint="wanted a .safetensors file that s2f train wrote",
        ) from error
    if not isinstance(header, dict) or header.get("version") != VERSION:
        seen = header.get("version") if isinstance(header, dict) else header
        raise CheckpointError(
            f"{path}: has format version {seen}; this program reads {VERSION}",
            hint="install the version of s2f that made it",
        )
    missing = FIELDS.keys() - header.keys()
    if missing:
        raise CheckpointError(
            f"{path}: its header lacks {', '.join(sorted(missing))}",
            hint="it was not written by s2f as it stands",
        )
    for name, types in FIELDS.items():
        if not isinstance(header[name], types):
            raise CheckpointError(
                f"{path}: its header does not describe a checkpoint: {name} is a "
                f"{type(header[name]).__name__}",
                hint="it was not written by s2f as it stands",
            )
    if header["kind"] not in ((kind,) if kind else KINDS):
        raise CheckpointError(
            f"{path}: is a {header['kind']}; wanted a {kind or ' or '.join(KINDS)}",
            hint="check the order of the files",
        )
    return header


def hash_file(path: Path, told: Callable[[int], object] | None = None) -> str:
    """Hash the tensors of a checkpoint: `checkpoint.file_sha256`, with our errors.

    Raises:
        CheckpointError: if it is not a file of tensors, or cannot be read.
    """
    try:
        return file_sha256(path, told)
    except (ValueError, OSError) as error:
        raise not_a_checkpoint(path, error) from error


def check_sha256(path: Path, header: Mapping[str, Any], sha256: str) -> None:
    """Make sure that the tensors of a file are those that its header was written for.

    Raises:
        CheckpointError: if they are not.
    """
    if sha256 != header["sha256"]:
        raise CheckpointError(
            f"{path}: is damaged: its tensors do not have the SHA-256 in its header",
            hint="copy or download the file again",
        )


def verify(path: Path, told: Callable[[int], object] | None = None) -> Facts:
    """Read what a checkpoint says of itself, and check that its tensors have its SHA-256.

    Args:
        path: the file.
        told: called with the bytes hashed so far, now and then.

    Raises:
        CheckpointError: if the file is missing, damaged, not ours, or named as another kind.
    """
    # A name that says what it is has to be right: a model is found by it.
    facts = read_facts(path, path.stem if path.stem in KINDS else None)
    check_sha256(path, {"sha256": facts.sha256}, hash_file(path, told))
    return facts


def check_space(checkpoints: Sequence[Spaced]) -> None:
    """Make sure that checkpoints were made for one and the same face encoder.

    Raises:
        CheckpointError: if two of them were not.
    """
    if len({checkpoint.embedding_space for checkpoint in checkpoints}) > 1:
        seen = ", ".join(f"{c.path} of space {c.embedding_space[:8]}" for c in checkpoints)
        raise CheckpointError(
            f"networks of different embedding spaces do not fit together: {seen}",
            hint="use networks that were trained with the same face encoder",
        )


def not_a_checkpoint(path: Path, error: Exception) -> CheckpointError:
    """Return the error of a file that is no checkpoint."""
    return CheckpointError(
        f"{path}: is not a checkpoint of s2f: {error}",
        hint="wanted a .safetensors file that s2f train wrote",
    )


def _contents(path: Path) -> Contents:
    if not path.is_file():
        found = "is no regular file" if path.exists() else "no such checkpoint"
        raise CheckpointError(f"{path}: {found}", hint="check the path: a .safetensors file")
    try:
        with path.open("rb") as file:
            return read_contents(file)
    except (ValueError, OSError) as error:
        raise not_a_checkpoint(path, error) from error


TIMEOUT = 30  # seconds that a server may stay silent
CHUNK = 2**20  # bytes


@dataclass(frozen=True)
class WeightFile:
    """A published file: where it is, and the SHA-256 of what it holds, hexadecimal."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """Its name, in the cache too."""
        return self.url.rsplit("/", 1)[-1]


def locate(weights: WeightFile) -> Path:
    """Find a file in `checkpoints` of the torch hub folder (under $TORCH_HOME); else fetch it.

    Raises:
        DependencyError: if it is not there and cannot be fetched, or is another file.
        OutputError: if the folder cannot be written.
    """
    import torch  # takes seconds, and who plans a tree needs no weights yet

    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.name
    hint = f"put {weights.url} there, as {path}"
    try:
        with path.open("rb") as file:
            seen = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        _fetch(weights, path, hint)
        return path
    except OSError as error:
        raise DependencyError(f"{path}: cannot be read: {error.strerror}", hint=hint) from error
    if seen != weights.sha256:
        raise DependencyError(
            f"{path}: its SHA-256 is {seen}; wanted {weights.sha256}",
            hint="remove it: it was not received whole, or is another file",
        )
    return path


def _fetch(weights: WeightFile, path: Path, hint: str) -> None:
    received = hashlib.sha256()
    with atomic_write(path) as file:
        for chunk in _download(weights, path, hint):
            received.update(chunk)
            file.write(chunk)
        if received.hexdigest() != weights.sha256:
            raise DependencyError(
                f"{weights.url}: gave a file whose SHA-256 is {received.hexdigest()}; "
                f"wanted {weights.sha256}",
                hint=hint,
            )


def _download(weights: WeightFile, path: Path, hint: str) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(weights.url, timeout=TIMEOUT) as response:
            while chunk := response.read(CHUNK):
                yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise DependencyError(
            f"{path}: is not there, and {weights.url} cannot be fetched: {error}", hint=hint
        ) from error


MODELS = Path(__file__).parent / "models"  # the bundled ones, a folder each
EVALUATION = "evaluation.md"
Where = Literal["bundled", "cache", "folder"]


@dataclass(frozen=True)
class Choice:
    """The files that a model is to be loaded from: there, of their kinds, not yet checked whole.

    Attributes:
        name: of the model.
        paths: of the checkpoints, by kind.
        hashes: of their tensors; threads work at them since the choice was made.
    """

    name: str
    paths: Mapping[str, Path]
    hashes: Mapping[str, "Future[str]"]


@dataclass(frozen=True)
class Entry:
    """A model and what the files in its folder say.

    Attributes:
        name: that `choose` knows it by.
        folder: where its checkpoints are.
        where: `bundled`, in the `cache`, or a `folder` elsewhere.
        networks: by kind; it may have only some.
        errors: what is wrong with the checkpoints that cannot be read, by kind.
        evaluation: what `s2f evaluate` found, its report.md, if it lies there as `EVALUATION`.
    """

    name: str
    folder: Path
    where: Where
    networks: Mapping[str, Facts]
    errors: Mapping[str, CheckpointError]
    evaluation: str | None


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
    """Find the checkpoints of a model, and begin to hash them.

    The threads that hash end with the program, whatever becomes of it.

    Args:
        model: a name, of a bundled model or else of one in the cache; or the path of a folder.
        kinds: networks that are wanted, as in `KINDS`.
        files: checkpoints by kind that take the place of the model's own. With one for every
            kind the model is not looked at.

    Raises:
        CheckpointError: if there is no such model, it lacks a network, or a file is not a
            checkpoint of its kind.
        UsageError: if a file is given of a kind that is not wanted.
    """
    given = {kind: Path(path) for kind, path in (files or {}).items()}
    for kind in given:
        if kind not in kinds:
            raise UsageError(
                f"{given[kind]}: is given as {kind}; only {' and '.join(kinds)} are used here",
                hint="leave it out",
            )
    mixed = [f"{kind} of {path.absolute().parent.name}/{path.name}" for kind, path in given.items()]
    name, paths = " + ".join(mixed), given
    if given.keys() != set(kinds):
        own, folder, _ = _find(model)
        name = f"{own}, but {name}" if given else own
        paths = {kind: given.get(kind, folder / f"{kind}.safetensors") for kind in kinds}
    for kind, path in paths.items():
        read_header(path, kind)  # refused now, not after a second of importing torch
    return Choice(name, paths, {kind: _hash(path) for kind, path in paths.items()})


def entries(*models: str | Path) -> list[Entry]:
    """List what some models hold; by default all that are bundled or in the cache.

    Raises:
        CheckpointError: if there is no such model; a damaged file is listed instead.
    """
    found = [_find(model) for model in models]
    if not models:
        found = [(name, folder, "bundled") for name, folder in _models(MODELS).items()]
        bundled = {name for name, _, _ in found}
        for name, folder in _models(cache()).items():  # behind a bundled name, by its path alone
            found.append((str(folder) if name in bundled else name, folder, "cache"))
    listed = []
    for name, folder, where in found:
        networks, errors = {}, {}
        for kind in _kinds(folder):
            try:
                networks[kind] = read_facts(folder / f"{kind}.safetensors", kind)
            except CheckpointError as error:
                errors[kind] = error
        text = folder / EVALUATION
        evaluation = text.read_text(encoding="utf-8", errors="replace") if text.is_file() else None
        listed.append(Entry(name, folder, where, networks, errors, evaluation))
    return listed


def _find(model: str | Path) -> tuple[str, Path, Where]:
    """Find the name, the folder and the kind of place of a model."""
    bundled = _models(MODELS)
    if model in bundled:
        return str(model), MODELS / model, "bundled"
    cached = _models(cache())
    if model in cached:
        return str(model), cached[str(model)], "cache"
    if os.path.isdir(model):
        return Path(model).resolve().name, Path(model), "folder"
    raise CheckpointError(
        f"{model}: is neither a bundled model ({', '.join(bundled)}), nor one in the cache "
        f"{cache()} ({', '.join(cached) or 'none'}), nor a folder of checkpoints",
        hint=f"a model folder holds {', '.join(f'{kind}.safetensors' for kind in KINDS)}",
    )


def _models(folder: Path) -> dict[str, Path]:
    """List the models in a folder of models by name; one is a folder with a checkpoint."""
    if not os.path.isdir(folder):
        return {}
    return {p.name: p for p in sorted(folder.iterdir()) if p.name[0] != "." and _kinds(p)}


def _kinds(folder: Path) -> list[str]:
    return [kind for kind in KINDS if os.path.lexists(folder / f"{kind}.safetensors")]


def _hash(path: Path) -> "Future[str]":
    """Hash a file in a thread that nobody waits for when the program ends: no executor's."""
    future: Future[str] = Future()

    def work() -> None:
        try:
            future.set_result(hash_file(path))
        except BaseException as error:  # whoever asks for the result gets it
            future.set_exception(error)

    threading.Thread(target=work, name=f"hash {path.name}", daemon=True).start()
    return future


AnyVoiceEncoder = voice_encoder.VoiceEncoder | ast_encoder.ASTEncoder
Network = AnyVoiceEncoder | face_encoder.FaceEncoder | face_decoder.FaceDecoder


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
    def of_data(cls, data: Path, name: str) -> "Card":
        """Start the card of a model trained on a data tree, from the tree's `card.json` if any.

        Raises:
            CheckpointError: if that file is not a card.
        """
        path = data / "card.json"
        if not path.is_file():
            return cls(name)
        try:
            return cls(**{"name": name, **json.loads(path.read_text(encoding="utf-8"))})
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: is not a card: {error}",
                hint="wanted a JSON object of description, data, licence and limits",
            ) from error


@dataclass(frozen=True)
class Checkpoint:
    """A network read from a file, with what the file says of it.

    Attributes:
        path: the file.
        network: in evaluation mode, on the CPU; float32 unless half precision was kept.
        front_end: the spectrogram that a voice encoder hears; None for the other kinds.
        embedding_space: hash of the face encoder that defines the embedding.
        sha256: of this file's payload.
    """

    path: Path
    kind: str
    network: Network
    front_end: FrontEnd | None
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
    storage: torch.dtype = torch.float32,
) -> str:
    """Write a network as a checkpoint, whole or not at all.

    Args:
        path: where to.
        network: its class decides the kind.
        card: what it was made from.
        embedding_space: of the face encoder that a voice encoder or a decoder was made for. A
            face encoder defines its own.
        front_end: of a voice encoder.
        storage: type of the floating-point tensors in the file.

    Returns:
        The embedding space.

    Raises:
        OutputError: if the file cannot be written.
    """
    tensors = {
        name: (tensor.to(storage) if tensor.is_floating_point() else tensor).contiguous().cpu()
        for name, tensor in network.state_dict().items()
    }
    sha256 = payload_sha256(tensors)
    preparation = (
        network.preprocessing if isinstance(network, face_encoder.FaceEncoder) else front_end
    )
    preprocessing = dataclasses.asdict(preparation) if preparation else None
    space = embedding_space
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
    with atomic_write(path) as file:
        write_safetensors(file, tensors, {"s2f": json.dumps(header, sort_keys=True)})
    return space


def kind_of(network: Network) -> str:
    """Name the kind of a network, as in `KINDS`."""
    if isinstance(network, AnyVoiceEncoder):
        return "voice_encoder"
    return "face_encoder" if isinstance(network, face_encoder.FaceEncoder) else "face_decoder"


def load(
    path: Path, kind: str, *, sha256: str | None = None, keep_half: bool = False
) -> Checkpoint:
    """Read a checkpoint, check it, and build its network.

    The tensors stay in the file, and are mapped into memory where they are used as stored.

    Args:
        path: the file.
        kind: of network, as in `KINDS`.
        sha256: of the file's tensors, by `checkpoint.hash_file`, if that is known already.
        keep_half: whether the weights of linear layers and convolutions that are float16 stay so,
            for autocast. All else becomes float32.

    Raises:
        CheckpointError: if the file is missing, damaged, not ours, of another kind or version, or
            its tensors do not fit its config.
        DependencyError: if it is an AST voice encoder and transformers is not installed.
    """
    read_header(path, kind)
    sha256 = sha256 or hash_file(path)
    try:
        # Header and tensors of one open file: another that takes its name after it was hashed is
        # refused. Not seen: bytes that change in the file itself, now or while it is used.
        with safetensors.safe_open(path, framework="pt") as file:
            header = check_header(path, file.metadata() or {}, kind)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise not_a_checkpoint(path, error) from error
    check_sha256(path, header, sha256)
    try:
        network, front_end = _build(kind, header["config"], header["preprocessing"])
        card = Card(**header["card"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its header does not describe a {kind}: {error}",
            hint="it was made by another version of s2f",
        ) from error
    wanted = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if wanted != found:
        name = min(n for n in wanted | found if wanted.get(n) != found.get(n))
        raise CheckpointError(
            f"{path}: tensor {name!r} is {found.get(name)}; its config wants {wanted.get(name)}",
            hint="it was made by another version of s2f",
        )
    kept = _weights(network) if keep_half else set()
    for name, tensor in tensors.items():
        stays = name in kept and tensor.dtype == torch.float16
        if tensor.is_floating_point() and not stays:
            tensors[name] = tensor.float()
    network.load_state_dict(tensors, assign=True)
    network.requires_grad_(False).eval()
    return Checkpoint(path, kind, network, front_end, header["embedding_space"], card, sha256)


def _weights(network: nn.Module) -> set[str]:
    """Name the weights of linear layers and convolutions: what is large, and bears rounding."""
    layers = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
    return {f"{name}.weight" for name, m in network.named_modules() if isinstance(m, layers)}


def _build(
    kind: str, config: dict[str, Any], preprocessing: dict[str, Any] | None
) -> tuple[Network, FrontEnd | None]:
    config = {name: _tuples(value) for name, value in config.items()}
    with torch.device("meta"):  # no time spent on random weights that `assign` replaces
        if kind == "voice_encoder":
            voice = _voice_encoder(**config)
            front_end = FrontEnd(**(preprocessing or {}))
            if front_end.kind == "ast" and front_end.clip_samples != FRONT_ENDS["ast"].clip_samples:
                front_end = dataclasses.replace(front_end, kind="log_mel")  # its name until 0.1
            heard = front_end.n_channels, front_end.n_freqs
            if heard != (voice.config.in_channels, voice.config.n_freqs):
                raise ValueError(f"its front end gives {heard[0]} x {heard[1]} frequencies")
            voice.config.check_frames(front_end.n_frames(front_end.clip_samples))
            return voice, front_end
        if kind == "face_decoder":
            return face_decoder.FaceDecoder(face_decoder.FaceDecoderConfig(**config)), None
    preparation = {name: _tuples(value) for name, value in (preprocessing or {}).items()}
    with torch.device("meta"):
        face = _face_encoder(Preprocessing(**preparation), **config)
    if isinstance(face, face_encoder.VGGFace):
        face.mean = torch.tensor(face.preprocessing.mean).view(3, 1, 1)
    return face, None


def _face_encoder(
    preprocessing: Preprocessing, architecture: str = "vgg", **config: Any
) -> face_encoder.FaceEncoder:
    """Make the face encoder that a config names; `vgg` goes without saying."""
    if architecture == "parts":
        return PartsEncoder(PartsEncoderConfig(**config), preprocessing)
    if architecture == "vgg":
        return face_encoder.VGGFace(face_encoder.VGGFaceConfig(**config), preprocessing)
    raise ValueError(f"its architecture is {architecture!r}; wanted vgg or parts")


def _voice_encoder(architecture: str = "conv", **config: Any) -> AnyVoiceEncoder:
    """Make the voice encoder that a config names; `conv` goes without saying."""
    if architecture == "ast":
        return ast_encoder.ASTEncoder(ast_encoder.ASTEncoderConfig(**config))
    if architecture == "conv":
        return voice_encoder.VoiceEncoder(voice_encoder.VoiceEncoderConfig(**config))
    raise ValueError(f"its architecture is {architecture!r}; wanted conv or ast")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Model:
    """The networks of a model that a command asked for; they share one space."""

    name: str
    checkpoints: Mapping[str, Checkpoint]


def load_model(choice: Choice, *, keep_half: bool = False) -> Model:
    """Read the networks that `checkpoint.choose` found.

    Args:
        choice: whose hashes are waited for.
        keep_half: as for `load`.

    Raises:
        CheckpointError: if the networks were made for different face encoders, or as `load`.
    """
    checkpoints = {
        kind: load(path, kind, sha256=choice.hashes[kind].result(), keep_half=keep_half)
        for kind, path in choice.paths.items()
    }
    check_space(list(checkpoints.values()))
    return Model(choice.name, checkpoints)
