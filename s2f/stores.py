"""Object stores by fsspec: places in them, whole objects there and back, and a journal kept there.

A store has no folders, no locks and no appending, a request may fail, and an object is there whole
or not at all. From top to bottom: `Store`, a place in one, and `parse_place`, which tells it from a
path; what a worker does where sources or outputs are objects; and `StoreJournal`. Who asks, and
where, fsspec knows: by the environment and its own configuration.
"""

import contextlib
import errno
import fnmatch
import hashlib
import multiprocessing
import os
import random
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from s2f import files
from s2f.errors import DatasetError, DependencyError, InputError, OutputError, S2FError, UsageError
from s2f.files import FULL, File, PassedOver, Wants
from s2f.journal import (
    FOLDER,
    Event,
    Item,
    Journal,
    StepShard,
    StepStatus,
    is_run,
    read_status,
)

# What stores are called, and the packages that fsspec reaches them by.
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "memory": "fsspec"}
CURES = {"s3": "pip install 's2f[cluster]'", "gs": "pip install gcsfs"}
ATTEMPTS = 5  # at what may succeed when it is tried again
WAIT = 0.5  # seconds before the second attempt, twice as long before each after it
UPLOAD_SECONDS = 30.0  # between two of a journal, at least: a kill costs what was done since
UPLOAD_SHARE = 0.05  # of the time, at most, that a journal's uploads take
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/")  # of two letters or more: `C:/` is a disk
# What says of an object that it has changed, the best first.
_TAGS = ("ETag", "etag", "md5Hash", "crc32c", "LastModified", "mtime", "created")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Store:
    """A place in an object store: an object, or the folder of those whose names begin with it.

    `memory://`, of fsspec, is there in one process alone. What fails is tried again, unless that
    is of no use, and is then an `InputError` of what is read and an `OutputError` of what is
    written; a `DependencyError` tells of a package that is missing.
    """

    url: str  # `s3://bucket/folder`

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "Store":
        return Store(f"{self.url}/{name}") if name else self

    @property
    def name(self) -> str:
        """The last part of its name."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> "Store":
        """The folder that it lies in."""
        return Store(self.url.rpartition("/")[0])

    def is_file(self) -> bool:
        """Tell whether it is an object."""

        def look(fs: Any, path: str) -> bool:  # `isfile` says no whatever happens
            try:
                return bool(fs.info(path)["type"] == "file")
            except FileNotFoundError:
                return False

        return self._asked("looked at", look)

    def is_dir(self) -> bool:
        """Tell whether it is no object: a folder is there as soon as something is in it."""
        return not self.is_file()

    def walk(
        self, wants: Wants, *, without: "Store | None" = None, passed_over: PassedOver | None = None
    ) -> Iterator[File]:
        """Give the objects in a folder as `files.walk` does, but for those in the folder `without`.

        Where a file has its time, they have a hash of their ETag. Raises a `DatasetError` if the
        store cannot be asked, or an object could have no such name as a file.
        """
        for path, info in self._objects():
            folders, _, name = path.rpartition("/")
            here = self / folders
            if without and f"{here}/".startswith(f"{without}/"):
                continue
            if not all(map(files.is_seen, path.split("/"))):
                continue
            if not wants(name):
                if passed_over is not None:
                    passed_over[files.suffix(name).lower()] += 1
                continue
            if "" in path.split("/") or "\0" in path or "\\" in path:
                message = f"{self}: holds {path!r}, which can be no file's name"
                raise DatasetError(message, hint="rename or remove that object")
            yield File(path, int(info["size"]), _stamp(info))

    def names(self) -> Iterator[str]:
        """Give the names of objects below a folder, as `walk` does, which raises the same."""
        return (path for path, _ in self._objects())

    def glob(self, pattern: str) -> list["Store"]:
        """List the objects just in a folder whose names fit a pattern."""
        infos = sorted(self.listed().items())
        found = [name for name, info in infos if info["type"] != "directory"]
        return [self / name for name in found if fnmatch.fnmatchcase(name, pattern)]

    def _objects(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Give objects in the order of files, with what the store says of each.

        What is in hidden folders just there is left out. It is asked for folder by folder of the
        first level: a million objects at once take gigabytes.
        """
        for name, info in sorted(self.listed().items()):
            if info["type"] != "directory":
                yield name, info
                continue
            if not files.is_seen(name):
                continue
            found = self.listed(name, "find")
            for path in sorted(found, key=lambda path: path.split("/")):
                yield path, found[path]

    def listed(self, folder: str = "", how: str = "ls") -> dict[str, Mapping[str, Any]]:
        """Give what the store says of what is in a folder below this one, by its name below this.

        With `find` at every depth; none of it is a marker that stands for a folder.
        """

        def ask(fs: Any, path: str) -> dict[str, Mapping[str, Any]]:
            try:
                answer = getattr(fs, how)(f"{path}/{folder}".rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
            infos = answer.values() if isinstance(answer, dict) else answer
            found = {}
            for info in infos:
                name = str(info["name"])[len(path) + 1 :]
                if info["type"] == "directory":
                    name = name.rstrip("/")
                if name and name[-1] != "/":
                    found[name] = info
            return found

        return self._asked("listed", ask, DatasetError)

    def file(self) -> File:
        """Describe an object as `walk` does, by its last name."""
        info = self._asked("looked at", lambda fs, path: dict(fs.info(path)))
        return File(self.name, int(info["size"]), _stamp(info))

    def get(self, local: Path) -> None:
        """Fetch an object into a file, whole; an `OSError` is of the disk, and full."""

        def fetch(fs: Any, path: str) -> None:
            size = fs.info(path)["size"]
            fs.get_file(path, str(local))
            if (found := local.stat().st_size) != size:
                raise OSError(errno.EIO, f"{found} bytes have come of {size}")

        self._asked("fetched", fetch)

    def read_bytes(self) -> bytes:
        """Fetch a small object; a `FileNotFoundError` if there is none."""

        def fetch(fs: Any, path: str) -> bytes | None:
            try:
                size, content = fs.info(path)["size"], bytes(fs.cat_file(path))
            except FileNotFoundError:
                return None
            if len(content) != size:
                raise OSError(errno.EIO, f"{len(content)} bytes have come of {size}")
            return content

        content = self._asked("fetched", fetch)
        if content is None:
            raise FileNotFoundError(errno.ENOENT, "No such object", self.url)
        return content

    def put(self, local: Path) -> None:
        """Store a file as an object, whole, in the place of any of this name."""
        size = local.stat().st_size

        def store(fs: Any, path: str) -> None:
            fs.put_file(str(local), path)
            if (found := fs.info(path)["size"]) != size:
                raise OSError(errno.EIO, f"{found} bytes have come of {size}")

        self._asked("written", store, OutputError)

    def write_bytes(self, content: bytes) -> None:
        """Store an object, whole, in the place of any of this name."""
        self._asked("written", lambda fs, path: fs.pipe_file(path, content), OutputError)

    def unlink(self, missing_ok: bool = True) -> None:
        """Remove an object, if it is there."""

        def remove(fs: Any, path: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(path)

        self._asked("removed", remove, OutputError)

    def _asked(
        self,
        done: str,
        ask: Callable[[Any, str], _Answer],
        error_class: type[S2FError] = InputError,
    ) -> _Answer:
        """Ask the store until it answers; `ask` gets the file system and the object's path in it.

        The client has retries of its own, which know some faults and not others: whatever it
        raises was the store's, or the network's.
        """
        fs = _file_system(self)
        why, hint = "", "check the network and the store's address, and give the command again"
        for attempt in range(ATTEMPTS):
            try:
                return ask(fs, str(fs._strip_protocol(self.url)))
            except FileNotFoundError:
                why, hint = "it is not there", "check its name"
                break
            except PermissionError as error:
                why, hint = str(error) or "access is denied", _credentials(self)
                break
            except Exception as error:
                if isinstance(error, OSError) and error.errno in FULL:
                    raise
                why = f"{type(error).__name__}: {error}".removesuffix(": ")
                if "Credentials" in why:
                    hint = _credentials(self)
                    break
            if attempt + 1 < ATTEMPTS:
                time.sleep(WAIT * 2**attempt * random.uniform(0.5, 1))
        raise error_class(f"{self}: cannot be {done}: {' '.join(why.split())}", hint=hint)


Place = Path | Store
"""Where files are: on a disk, or in an object store."""


def parse_place(text: str) -> Place:
    """Tell for a command a path from the URL of a store, which begins with `s3://` or `gs://`.

    Raises a `UsageError` for any other URL, also of `memory://`, and for one that names no bucket
    or no plain path in it.
    """
    found = _SCHEME.match(text)
    if not found:
        return Path(text)
    scheme = found[1].lower()
    _, _, rest = text.partition("://")
    parts = rest.rstrip("/").split("/")
    if scheme not in PACKAGES:
        known = " or ".join(f"{name}://" for name in PACKAGES if name != "memory")
        hint = f"give a path, or a URL that begins with {known}"
        raise UsageError(f"{text}: is no URL of an object store that s2f knows", hint=hint)
    if not rest or any(part in ("", ".", "..") for part in parts):
        hint = f"give for instance {scheme}://bucket/folder"
        raise UsageError(f"{text}: names no bucket and plain path in it", hint=hint)
    store = Store(f"{scheme}://{'/'.join(parts)}")
    refuse_memory(store)
    return store


def refuse_memory(*places: Place) -> None:
    """Raise a `UsageError` if a place is in the memory of this process: workers have their own."""
    for place in places:
        if isinstance(place, Store) and place.url.startswith("memory:"):
            hint = "give a path, or the URL of a store that all of them reach"
            message = f"{place}: is in the memory of one process, and here several are at work"
            raise UsageError(message, hint=hint)


def packages_of(*places: Place) -> tuple[str, ...]:
    """Name the packages by which stores are reached: for workers, once for all."""
    return tuple({PACKAGES[p.url.partition(":")[0]] for p in places if isinstance(p, Store)})


def write_whole(place: Place, content: bytes) -> None:
    """Write a file as `files.write_bytes` does, or an object."""
    if isinstance(place, Store):
        place.write_bytes(content)
    else:
        files.write_bytes(place, content)


@contextlib.contextmanager
def fetched(place: Place) -> Iterator[Path]:
    """Give a file as it lies there, or an object as a temporary one."""
    if isinstance(place, Path):
        yield place
        return
    with files.scratch_folder() as folder:
        place.get(folder / "object")
        yield folder / "object"


def hash_place(place: Place) -> str:
    """Compute the SHA-256 of a file or an object."""
    with fetched(place) as local:
        return files.hash_file(local)


def copy_to(target: Path, place: Place) -> None:
    """Copy a file or an object into a file; an `OSError` is of that.

    Raises an `InputError` if it cannot be read.
    """
    if isinstance(place, Store):
        place.get(target)
        return
    with target.open("wb") as copy:
        try:
            with place.open("rb") as file:
                while block := file.read(1 << 20):
                    with files.writing(target):
                        copy.write(block)
        except OSError as error:
            message = f"{place}: cannot be read: {error.strerror or error}"
            raise InputError(message, hint="check its permissions") from error


def _file_system(store: Store) -> Any:
    import fsspec  # with aiohttp and botocore behind it, a second

    scheme = store.url.partition("://")[0]
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        message = f"{store}: needs the package {PACKAGES[scheme]}"
        raise DependencyError(message, hint=CURES.get(scheme)) from error


def _credentials(store: Store) -> str:
    if store.url.startswith("s3:"):
        return "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL, or AWS_PROFILE"
    return "check the credentials that fsspec finds for it"


def _stamp(info: Mapping[str, Any]) -> int:
    tag = next((info[name] for name in _TAGS if info.get(name)), "")
    return int.from_bytes(hashlib.blake2b(str(tag).encode(), digest_size=7).digest(), "big")


def told_of(error: S2FError, local: Path, place: object) -> S2FError:
    """Make an error of a temporary file one of the object that it stands for."""

    def of(text: str) -> str:
        return text.replace(str(local), str(place))

    hint = error.hint and of(error.hint)
    return type(error)(of(error.message), hint=hint, details=[*map(of, error.details)])


@contextlib.contextmanager
def _naming(local: Path, place: object) -> Iterator[None]:
    try:
        yield
    except S2FError as error:
        raise told_of(error, local, place) from error


def is_object(given: str) -> bool:
    """Tell whether what a worker is given is an object: no path has two slashes in a row."""
    return "://" in given


def given_place(given: str) -> Place:
    """Give the path or the object that a worker is given."""
    return Store(given) if is_object(given) else Path(given)


def source_beside(part: Path, given: str) -> Path:
    """Name the file that an object is fetched into, beside the temporary file of its output."""
    return part.with_name(f"{part.stem}-source{files.suffix(given)}")


def work_on_objects(
    work: Callable[[Path, Path], Any],
    output_of: Callable[[str], str],
    out: Store | None,
    is_kept: bool,
    given: str,
    part: Path,
) -> Any:
    """Do in a worker the `work` of a step whose sources or outputs are objects.

    A source that is one is fetched beside `part`, and stays there if it `is_kept`. With `out`, what
    `work` wrote is put there under the name that `output_of` gives it, and `part` is gone.
    """
    part.parent.mkdir(parents=True, exist_ok=True)  # a worker may be on another machine
    if out:  # a worker that is thought lost may still write when another does its work
        part = part.with_name(f"{secrets.token_hex(4)}-{part.name}")
    place = given_place(given)
    source = place if isinstance(place, Path) else source_beside(part, given)
    done = False
    try:
        if isinstance(place, Store):
            place.get(source)
        with _naming(source, given):
            value = work(source, part)
        if out:
            run = multiprocessing.parent_process()
            if run and not run.is_alive():  # what it was for may be made otherwise by now
                raise OutputError(f"{given}: the run that wanted it has ended")
            (out / output_of(given)).put(part)
            part.unlink()
        done = True
    finally:
        if isinstance(place, Store) and not (done and is_kept):
            source.unlink(missing_ok=True)
    return value


def let_go(given: str, part: Path, outcome: Any) -> Any:
    """Delete what was fetched of an object and kept; an error that came of it names the object."""
    source = source_beside(part, given)
    source.unlink(missing_ok=True)
    return told_of(outcome, source, given) if isinstance(outcome, S2FError) else outcome


class StoreJournal(Journal):
    """The journal of outputs that are objects.

    Every run is one of a shard, without one of 1/1: it has a journal of its own, which is written
    on this machine and put into the store whole, as `OUT/.s2f/STEP.1-of-1.RUN.journal`, at least
    `UPLOAD_SECONDS` apart, and when the run ends. An object of the same name without the ending
    says that it is at work, in the place of a folder. Before anything is made, the journal claims
    all that will be: it is due, and may be replaced. So what a killed run made after the last
    upload is known to be ours, and is made again.
    """

    def __init__(
        self,
        out: Store,
        step: str,
        settings: Mapping[str, Any],
        root: str | None = None,
        shard: StepShard | None = None,
    ) -> None:
        """Open the journal as `Journal` does; `root` is where sources are, by a whole path or URL.

        Raises a `UsageError` while a run with other settings or sources is at work there.
        """
        self._out, self._there = out, set[str]()
        self._known: dict[str, int] = {}
        self._next_upload = 0.0
        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(files.scratch_folder())
            _fetch_journals(out, scratch, self._known)
            try:
                with _naming(scratch, out):
                    super().__init__(scratch, step, settings, root, shard or StepShard(1, 1))
            except BaseException:  # there was no such run
                for name in self._own_names():
                    with contextlib.suppress(S2FError):
                        (out / FOLDER / name).unlink()
                raise
            self._scratch = stack.pop_all()

    def _own_names(self) -> tuple[str, ...]:
        """Name the objects of this run: what says that it is at work, and its journal."""
        parts: Path | None = getattr(self, "parts", None)
        return (parts.name, f"{parts.name}.journal") if parts else ()

    def _upload(self) -> None:
        began = time.monotonic()
        (self._out / FOLDER / self.path.name).put(self.path)
        took = time.monotonic() - began
        self._next_upload = began + max(UPLOAD_SECONDS, took / UPLOAD_SHARE)

    def read_again(self) -> None:
        """Read what the journals of other runs say by now; it raises what opening raises."""
        (self._out / FOLDER / self.parts.name).write_bytes(b"at work\n")
        self._upload()
        self._there = set(self._out.names())  # first: what is there was claimed before
        _fetch_journals(self._out, self.folder, self._known, self._own_names())
        with _naming(self.folder, self._out):
            super().read_again()

    def is_there(self, output: str) -> bool:
        """Tell whether an object stood there when this run looked, or was put there by it."""
        return output in self._there

    def is_due(self, item: Item, overwrite: bool = False, **how: bool) -> bool:
        """Tell what `Journal.is_due` tells; it raises the same."""
        with _naming(self.folder, self._out):
            return super().is_due(item, overwrite, **how)

    def claim(self, items: Sequence[Item]) -> None:
        """Say in the store what will be made, before any of it is there."""
        if not items:
            return
        for item in items:
            super().note("due", item.output, item.source)
        self._upload()

    def note(self, event: Event, output: str, source: File, note: Any = None) -> None:
        """Note as `Journal` does, but for starts, which are claimed."""
        if event == "start":
            return
        super().note(event, output, source, note)
        if event == "done" and time.monotonic() >= self._next_upload:
            self._upload()

    def place(self, item: Item, part: str, note: Any = None, *, over_source: bool = False) -> None:
        """Put the temporary file `part`, if no worker has, and note that its output is done."""
        assert not over_source
        made = Path(part)
        if made.exists():
            (self._out / item.output).put(made)
            made.unlink()
        self._there.add(item.output)
        self.note("done", item.output, item.source, note)

    def finish(self) -> None:
        """Note that the run has come to its end, where others see it."""
        super().finish()
        self._upload()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._scratch:
            try:
                if error is not None:  # else it has finished
                    self._upload()
                (self._out / FOLDER / self.parts.name).unlink()
            except S2FError:
                if error is None:
                    raise
            finally:
                super().__exit__(kind, error, trace)


def _fetch_journals(
    out: Store, folder: Path, known: dict[str, int], own: tuple[str, ...] = ()
) -> None:
    """Bring a folder up to date with what the journals in a store say, but for a run's own."""
    (folder / FOLDER).mkdir(exist_ok=True)
    there = (out / FOLDER).listed()
    for name, info in there.items():
        if name in own or not is_run(name.removesuffix(".journal")):
            continue
        if not name.endswith(".journal"):
            (folder / FOLDER / name).mkdir(exist_ok=True)
        elif known.get(name) != (stamp := _stamp(info)):
            (out / FOLDER / name).get(folder / FOLDER / name)
            known[name] = stamp
    for path in (folder / FOLDER).iterdir():
        if path.is_dir() and path.name not in {*there, *own}:
            path.rmdir()


def open_journal(
    out: Place,
    step: str,
    settings: Mapping[str, Any],
    root: Place | None = None,
    shard: StepShard | None = None,
) -> Journal:
    """Open the journal of a folder of outputs, wherever that is; it raises what those raise."""
    from_everywhere = str(root) if isinstance(root, Store) else None
    if isinstance(out, Path):
        own = root if isinstance(root, Path) else from_everywhere
        return Journal(out, step, settings, own, shard)
    if isinstance(root, Path):
        from_everywhere = os.path.realpath(root)
    return StoreJournal(out, step, settings, from_everywhere, shard)


def status_of(out: Place) -> tuple[StepStatus, ...]:
    """Read what `read_status` does, wherever the outputs are; it raises the same."""
    if isinstance(out, Path):
        return read_status(out)
    with files.scratch_folder() as folder, _naming(folder, out):
        _fetch_journals(out, folder, {})
        return read_status(folder)
