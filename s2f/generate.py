"""Recordings or photos in, pictures out: the work of `s2f generate` and `s2f reconstruct`.

`run` names the files of every source before anything is made, loads the networks if anything is
missing, and goes on past sources that cannot be used. What to draw, from what and to where comes as
`GenerateOptions`. Knows nothing of networks or of what is printed.

Each picture says what made it: the networks, the options, and the SHA-256 of its source. By that a
later run knows it: it keeps what is the same, makes anew what was made otherwise, replaces nothing
else, and never takes a picture of its own for a photo. The stored embedding of a face is known by
its hash in the face's picture. Not told apart: devices, which differ in the last bits.

So shards of a folder need no journal and no lock. Of a million sources the plan keeps their names
alone, and what became of them is told one by one and forgotten.
"""

import contextlib
import dataclasses
import functools
import gc
import hashlib
import io
import os
import signal
import stat
import sys
import time
import unicodedata
from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from s2f import files
from s2f.console import Progress, hush_libraries, one_line, silent
from s2f.device import end_by_signals, shortage, starting_processes
from s2f.errors import (
    AudioError,
    ImageError,
    InputError,
    OutputError,
    S2FError,
    UsageError,
    WorkerError,
)
from s2f.files import (
    PassedOver,
    check_writable,
    composes,
    holds_none,
    read_array,
    unwritable,
    write_bytes,
)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from PIL.Image import Image

    from s2f.checkpoint import Choice
    from s2f.journal import StepShard
    from s2f.pipeline import Face, Forming, Framing, Part, SpeechToFace
    from s2f.visualize import ContactSheet

    Columns = list[tuple[str, Image]]  # of a comparison: captions and pictures
    Faces = Iterator[Face | InputError]

PICTURES = (".png", ".jpg", ".webp")
FACE = "face"  # what a source is first of all made into
ENDINGS = {"landmarks": "_landmarks", "embedding": "_embedding.npy", "compare": "_compare"}
LIVE_FRAME = "frame"  # of a face as it forms: a picture in a folder beside the face's
FRAMES_ENDING = "_frames"  # of that folder
STDIN, RECORDED = Path("-"), Path("<microphone>")
LIVE = {STDIN: "stdin", RECORDED: "recording"}  # sources that are no files, and what they become
FRAMES, FRAME_SECONDS = 24, 0.06  # of a morph
SHEET, MORPH = "sheet", "morph"
MOST_NAMED = 5  # of the faces whose sources went away
AT_ONCE = 256  # sources that are looked at before the first of them is drawn
PATIENCE = 30.0  # seconds in which a process that is told to end has to
# What a picture says of what made it, all of which has to be the same for it to be kept.
MAKERS, SOURCE, EMBEDDING = ("Software", "Networks", "Options"), "Source-SHA256", "Embedding-SHA256"
REMARKS, BETWEEN = "Remarks", " | "  # on the source, which a run says again of a face that it keeps
REPLACE = "give --overwrite to replace it, or another place with -o"
Note = Callable[[str], object]
Show = Callable[["Image"], object]


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """What is drawn, from what, with what, and what is written: the options of the commands.

    Raises a UsageError if there is not one thing to draw from, or options have no use for it.
    """

    sources: Sequence[Path] = ()  # recordings, or photos, folders of them, or `STDIN`
    photos: bool = False
    record: float | None = None  # seconds from the microphone, in the place of sources
    live: bool = False  # whether the face is drawn while it forms, too
    morph: tuple[Path, Path] | None = None  # recordings, in the place of sources
    start: float = 0.0  # of the part of a recording that is heard, seconds
    duration: float | None = None
    trim_silence: float | None = None  # dB below the loudest
    track: int | None = None  # of several sound tracks, from 1
    align: bool = True
    detector: str | None = None
    model: str | None = None  # name or folder; None for the bundled one
    voice_encoder: Path | None = None  # these three: in the place of the model's
    face_encoder: Path | None = None
    face_decoder: Path | None = None
    device: str = "auto"
    precision: str | None = None
    output: Path | None = None  # a picture's name for one source, or a folder
    format: str | None = None  # without a dot; None for that of `output`, or png
    size: int | None = None  # side of the pictures, pixels; None for 224
    landmarks: bool = False
    embedding: bool = False
    compare: Path | None = None  # a photo
    sheet: Path | None = None
    frames: int | None = None  # of the morph
    shard: "StepShard | None" = None  # of the pictures, by their paths below the output folder
    devices: int = 1  # of this machine, on each of which a process draws
    overwrite: bool = False
    is_batch: bool = field(init=False)  # whether there may be more than one source

    def __post_init__(self) -> None:
        if self.live and self.record is None:
            message = "--live draws the face while it is recorded, and nothing is"
            raise UsageError(message, hint="give --record SECONDS too, or leave --live out")
        given = {"speech": self.sources, "record": self.record is not None, "morph": self.morph}
        ways = [way for way, is_given in given.items() if is_given]
        if len(ways) != 1:
            hint = "name recordings, or give --record SECONDS, or --morph A B"
            found = " and ".join(ways) or "nothing"
            raise UsageError(f"there is {found} to generate a face from", hint=hint)
        how = "with" if self.morph else "without"
        pictures = ("format", "landmarks", "embedding", "compare", "sheet")
        for name in pictures if self.morph else ("frames",):
            if getattr(self, name):
                raise UsageError(f"--{name} does not go {how} --morph", hint=f"leave --{name} out")
        if not self.photos and self.compare is None and (self.detector or not self.align):
            message = "--detector and --no-align are for the photo of --compare"
            raise UsageError(message, hint="leave them out")
        files = [source for source in self.sources if source not in LIVE]
        is_batch = len(set(self.sources)) > 1 or any(map(os.path.isdir, files))
        object.__setattr__(self, "is_batch", is_batch)
        shared = "--shard" if self.shard else "--devices" if self.devices > 1 else ""
        if shared and len(files) < max(1, len(self.sources)):
            hint = f"leave {shared} out"
            raise UsageError(f"{shared} shares files out, and there is one source", hint=hint)
        if self.shard and self.sheet:
            hint = "give --sheet to a run without --shard, when all shards are done"
            raise UsageError("--sheet shows all faces, and a shard makes some", hint=hint)

    @property
    def part(self) -> "Part":
        """The part of recordings that is heard."""
        return {
            "start": self.start,
            "duration": self.duration,
            "trim_silence": self.trim_silence,
            "track": self.track,
        }

    @property
    def framing(self) -> "Framing":
        """How faces are found in photos."""
        return {"align": self.align, "detector": self.detector}


@dataclass(frozen=True)
class Outcome:
    """What became of one source, a recording or a photo."""

    source: Path
    files: Mapping[str, Path] = field(default_factory=dict)  # by what they hold, `FACE` first
    due: tuple[str, ...] = ()  # of the files: not there, or not the same
    frames: tuple[Path, ...] = ()  # of the face as it formed
    status: str = "planned"  # then `made`, `skipped` (all there, and the same) or `failed`
    error: S2FError | None = None
    clips: int = 0  # of speech, that were averaged
    voice: Mapping[str, float] = field(default_factory=dict)  # as `Face.voice`
    remarks: tuple[str, ...] = ()  # on the source, which was used all the same, and what it became
    seconds: float = 0.0  # that it took
    sha256: str | None = None  # of the source, once it is done; None if that is no file


@dataclass(frozen=True)
class Ending:
    """What a run leaves, when all its sources are done."""

    seconds: float  # that it took
    # What drew: `name`, `device`, `precision`, `cards` by kind; nothing if nothing was to be drawn.
    model: Mapping[str, Any] = field(default_factory=dict)
    written: Path | None = None  # the sheet or the morph
    kept: Path | None = None  # the same, if it was there
    errors: Sequence[S2FError] = ()  # why faces are not on the sheet, or it was not written
    remarks: Sequence[str] = ()  # on the sheet or the morph, and on faces whose sources went away
    passed_over: Mapping[str, int] = field(default_factory=dict)  # files in folders, by suffix


def run(
    options: GenerateOptions,
    *,
    progress: Progress = silent,
    note: Note = lambda text: None,
    show: Show | None = None,
) -> Iterator[Outcome | Ending]:
    """Draw the face of each source and write its files, then the sheet of all; or animate a morph.

    Yields what became of each source, in order, as soon as it is known; last how it ended.
    `progress` is told of each source, or of what happens within the only one, and `note` when the
    microphone listens, and of frames. What is drawn live goes to `show`, the face itself at last;
    without one, each but that becomes a picture NAME_frames/0001.png, ... Raises a UsageError as
    `plan_outputs`, or for a part, sheet or morph that cannot be, and first of all what is wrong
    with model, device, detector, photo or morphed voices.
    """
    started = time.perf_counter()
    part = (options.start, options.duration, options.trim_silence, options.track)
    if part != (0, None, None, None):
        from s2f.audio import check_part

        check_part(**options.part)
    if options.record is not None:
        from s2f.audio import check_seconds

        check_seconds(options.record)
    if options.align and (options.photos or options.compare):
        from s2f.face_detection import choose_detector

        choose_detector(options.detector)
    history = _History(options)
    if options.morph:
        ending = _animate(history, options.morph, progress)
        yield replace(ending, seconds=time.perf_counter() - started)
        return
    if options.devices > 1:
        from s2f.device import choose_device
        from s2f.distributed import check_devices

        check_devices(options.device, options.devices)
        choose_device(options.device)
    passed_over = PassedOver()
    planned = _plan(history, passed_over)
    formed = None
    looked: Iterator[Outcome] = (_look(item, history) for item in planned)
    if options.record is not None:
        item = next(looked)
        if item.status == "planned":
            formed = _Formed(history, item.files[FACE], note, show)
            item = formed.checked(item)
        looked = iter([item])
    sheet, shown = None, list[Outcome]()
    if options.sheet:
        from s2f.images import read_text
        from s2f.visualize import ContactSheet

        _check_place(options.sheet, PICTURES)
        sheet = ContactSheet(len(planned))  # of so few that all of them may be held
        if os.path.lexists(options.sheet) and not options.overwrite:
            said = read_text(options.sheet)
            source = _hash_all([_hashed(item, history) for item in planned], history)
            history.differs(options.sheet, SHEET, said, source)
    strangers, remarks = _strangers(planned, history)
    lost = set(strangers.values())
    n_processes = min(options.devices, len(planned))
    if n_processes > 1:
        outcomes = _draw_in_processes(history, planned, n_processes, progress)
    else:
        outcomes = _outcomes(history, looked, len(planned), progress, note, formed)
    with contextlib.closing(outcomes):
        for item in outcomes:
            lost.discard(item.sha256 or "")
            shown += [item] if sheet else []
            yield item
    ending = _write_sheet(sheet, shown, history) if sheet else Ending(0.0)
    found = [path for path, sha256 in strangers.items() if sha256 in lost]
    if found:
        more = ", ..." if len(found) > MOST_NAMED else ""
        named = ", ".join(found[:MOST_NAMED])
        remarks.append(f"of none of these sources: {len(found)} ({named}{more})")
    remarks = [*ending.remarks, *remarks]
    seconds, drew = time.perf_counter() - started, history.drew
    yield replace(ending, seconds=seconds, model=drew, remarks=remarks, passed_over=passed_over)


def _outcomes(
    history: "_History",
    looked: Iterator[Outcome],
    n: int,
    progress: Progress,
    note: Note,
    formed: "_Formed | None",
) -> Generator[Outcome]:
    """Draw what is due of n items; the networks are loaded when the first of them is."""
    options = history.options
    model = None
    columns: Columns = []
    done = 0
    while some := list(islice(looked, AT_ONCE)):
        wanted = [item.source for item in some if item.status == "planned"]
        faces: Faces = iter(())
        if wanted:
            if model is None:
                for place in filter(None, (options.output or Path(), options.sheet)):
                    check_writable(place)
                model = _load(history)
                history.drew.update(_described(model))
                columns = _columns(model, options)
            # Of one source, its clips are what progress tells.
            faces = _draw(model, wanted, history, progress if n == 1 else silent, note, formed)
        for item in some:
            if n > 1:
                progress(done, n, item.source.name)
            if item.status == "planned":
                item = _make(item, faces, history, columns)
                item = formed.told(item) if formed else item
            done += 1
            yield _hashed(item, history)
        history.hashes.clear()


def _hashed(item: Outcome, history: "_History") -> Outcome:
    """Say of which bytes the source of an item is, if it is a file."""
    if item.source in LIVE or not item.files:
        return item
    return replace(item, sha256=history.hash_source(item.source))


def _described(model: "SpeechToFace") -> dict[str, Any]:
    cards = model.model.checkpoints.items()
    return {
        "name": model.model.name,
        "device": str(model.device),
        "precision": model.precision,
        "cards": {kind: dataclasses.asdict(checkpoint.card) for kind, checkpoint in cards},
    }


def _draw_in_processes(
    history: "_History", planned: "_Plan", n: int, progress: Progress
) -> Generator[Outcome]:
    """Draw every n-th of the items in each of n processes, and tell of them in order.

    Each has a GPU of its own, if there are any. A process that dies costs what it had not told of.
    """
    import multiprocessing
    from multiprocessing import connection

    import torch

    options = history.options
    is_cuda = options.device.startswith("cuda") or (
        options.device == "auto" and torch.cuda.is_available()
    )
    context = multiprocessing.get_context("spawn")  # of a process with threads none can be forked
    processes: list[SpawnProcess] = []
    ends: dict[Any, int] = {}  # of pipes, by which each tells
    arrived = [deque[Outcome]() for _ in range(n)]

    def receive() -> None:
        ready: list[Any] = connection.wait(list(ends))
        for end in ready:
            try:
                told = end.recv()
            except (EOFError, OSError):  # it has ended
                processes[ends.pop(end)].join(PATIENCE)
                continue
            if isinstance(told, S2FError):
                raise told
            if isinstance(told, Outcome):
                arrived[ends[end]].append(told)
            else:
                history.drew.update(told, devices=n)

    try:
        for k in range(n):
            device = f"cuda:{k}" if is_cuda else options.device
            own = replace(options, device=device, devices=1, shard=None, sheet=None)
            part = planned.only(range(k, len(planned), n))
            here, there = context.Pipe(duplex=False)
            arguments = own, part, history.taken, torch.get_num_threads(), there
            process = context.Process(target=_draw_part, args=arguments, daemon=True)
            with starting_processes():
                process.start()
            there.close()
            processes.append(process)
            ends[here] = k
        for place, item in enumerate(planned):
            progress(place, len(planned), item.source.name)
            k = place % n
            while not arrived[k] and k in ends.values():
                receive()
            if arrived[k]:
                yield arrived[k].popleft()
                continue
            code = processes[k].exitcode or 0
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            hint = "if memory ran out, give fewer --devices; the same command goes on"
            message = f"{item.source}: process {k + 1} of {n}, which had it, ended with {how}"
            yield replace(item, status="failed", error=WorkerError(message, hint=hint))
        while ends:
            receive()
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(PATIENCE)
            process.kill()


def _draw_part(
    options: GenerateOptions,
    planned: "_Plan",
    taken: "_Names",
    threads: int,
    told: "Connection[Any, Any]",
) -> None:
    """Draw in a process of several, and tell the first of each outcome, and of what drew.

    It computes on as many threads as that would, for the same bits.
    """
    hush_libraries()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first, which ends the others
    end_by_signals(files.put_away)
    history = _History(options, taken)
    looked = (_look(item, history) for item in planned)
    try:
        import torch

        torch.set_num_threads(threads)
        for item in _outcomes(history, looked, len(planned), silent, lambda text: None, None):
            told.send(item)
        if history.drew:
            told.send(history.drew)
    except S2FError as error:
        told.send(error)
    except (BrokenPipeError, KeyboardInterrupt):  # the first is gone, or ends this
        pass
    except Exception as error:
        if (short := shortage(error)) is None:
            raise
        told.send(short)


def plan_outputs(
    options: GenerateOptions, *, passed_over: PassedOver | None = None
) -> list[Outcome]:
    """Decide which source becomes which files, and which are there, before anything is made.

    A file that is named twice is made once. Of folders, what s2f drew is not read, wherever it lies
    and whatever it is called, nor what lies in the output folder; it counts, as all that is no
    source, to `passed_over`. A picture of s2f's that is named itself is read, with a remark. A file
    NAME.* becomes NAME.png in the output folder (by default the current one), a folder's files keep
    their places below it; where two would become the same picture, both keep their suffix
    (NAME.wav.png). One source may also be given its picture's own name. Other files lie beside the
    picture.

    The outcomes are `planned`, `skipped` where all is there and the same, or `failed` where there
    is no such source, or a file in its place that is not s2f's, or of another source. Raises a
    UsageError if the output is neither a picture nor a folder, one file would be made of several
    sources, or in the place of one that is read; a CheckpointError if there is no such model to
    tell what is there by.
    """
    history = _History(options)
    planned = _plan(history, PassedOver() if passed_over is None else passed_over)
    return [_look(item, history) for item in planned]


class _Names:
    """Names of files, as hashes, of which a million take 100 MB, and as a file system has them.

    Some fold case, and some compose accents.
    """

    def __init__(self, *, composed: bool = False) -> None:
        self.is_composed = composed
        self._hashes: set[int] = set()

    def fold(self, name: str) -> str:
        """Give what names of one file have in common."""
        return (unicodedata.normalize("NFC", name) if self.is_composed else name).casefold()

    def _hash(self, name: str) -> int:
        folded = self.fold(name).encode(errors="surrogatepass")
        return int.from_bytes(hashlib.blake2b(folded, digest_size=8).digest())

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, name: str) -> bool:
        return self._hash(name) in self._hashes

    def add(self, name: str) -> bool:
        """Put a name there; tell whether it is new."""
        before = len(self._hashes)
        self._hashes.add(self._hash(name))
        return len(self._hashes) > before


class _Plan(Sequence[Outcome]):
    """Items as strings, made one by one when they are looked at: a million take 100 MB."""

    def __init__(self, options: GenerateOptions) -> None:
        self._suffix, self._named = _suffix(options)
        self._options = options
        self._asked = [what for what in ENDINGS if getattr(options, what)]
        self._tops: list[tuple[str, str] | None] = [None]  # folders: before a path, and its picture
        self._paths: list[str] = []  # below the top
        self._top = array("L")  # whose each path is; 0 of what was named itself
        self.errors: dict[int, InputError] = {}  # of what is no source
        self.remarks: dict[int, tuple[str, ...]] = {}
        self.crowded: set[int] = set()  # whose pictures keep the source's suffix

    def open_folder(self, folder: Path) -> None:
        """Take the paths that come as those below a folder."""
        both = folder / "file", (self._options.output or Path()) / "file"
        before, output = (str(path).removesuffix("file") for path in both)
        self._tops.append((before, output))

    def add(self, path: str, *, is_below: bool) -> None:
        """Put a source there: below the last folder, or one that was named itself."""
        self._paths.append(path)
        self._top.append(len(self._tops) - 1 if is_below else 0)

    def cut(self, n: int) -> None:
        """Keep the first n items alone."""
        del self._paths[n:], self._top[n:]
        self.remarks = {k: said for k, said in self.remarks.items() if k < n}

    def only(self, places: Iterable[int]) -> "_Plan":
        """Keep some items."""
        left = _Plan(self._options)
        left._tops = self._tops
        for place in places:
            if place in self.errors:
                left.errors[len(left)] = self.errors[place]
            if place in self.remarks:
                left.remarks[len(left)] = self.remarks[place]
            if place in self.crowded:
                left.crowded.add(len(left))
            left._paths.append(self._paths[place])
            left._top.append(self._top[place])
        return left

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, place: Any) -> Any:
        return self._item(place)

    def __iter__(self) -> Iterator[Outcome]:
        return map(self._item, range(len(self)))

    def source(self, place: int) -> str:
        """Give the path of a source."""
        top = self._tops[self._top[place]]
        return f"{top[0]}{self._paths[place]}" if top else self._paths[place]

    def picture(self, place: int) -> str:
        """Give the path of an item's picture."""
        if self._named:
            return str(self._named)
        path, top = self._paths[place], self._tops[self._top[place]]
        if top is None:
            name = LIVE.get(Path(path), PurePath(path).stem)
            name = PurePath(path).name if place in self.crowded else name
            return str((self._options.output or Path()) / f"{name}{self._suffix}")
        return f"{top[1]}{path if place in self.crowded else files.stem(path)}{self._suffix}"

    def outputs(self, place: int) -> Iterator[str]:
        """Give the paths of an item's files."""
        yield (picture := self.picture(place))
        for what in self._asked:
            yield str(_beside(Path(picture), what))

    def _item(self, place: int) -> Outcome:
        source = Path(self.source(place))
        if error := self.errors.get(place):
            return Outcome(source, status="failed", error=error)
        face = Path(self.picture(place))
        beside = {what: _beside(face, what) for what in self._asked}
        return Outcome(source, {FACE: face, **beside}, remarks=self.remarks.get(place, ()))


def _plan(history: "_History", passed_over: PassedOver) -> _Plan:
    """Name the files of all sources, of which those of the shard are planned."""
    options = history.options
    plan = _Plan(options)
    sources = [RECORDED] if options.record is not None else options.sources
    _list_sources(plan, sources, options, passed_over)
    every = [place for place in range(len(plan)) if place not in plan.errors]
    composed = _composes(plan, every)
    plan.crowded = _crowded(plan, every, composed=composed)

    def written() -> Iterator[tuple[object, str]]:
        if options.sheet:
            yield "all of them", str(options.sheet)
        for place in every:
            for path in plan.outputs(place):
                yield plan.source(place), path

    def read() -> Iterator[str]:
        live = set(map(str, LIVE))
        yield from (path for path in map(plan.source, every) if path not in live)
        if options.compare:
            yield str(options.compare)

    history.taken = _refuse_loss(written, read, composed=composed)
    if (shard := options.shard) is None:
        return plan
    folder = str((options.output or Path()) / "file").removesuffix("file")

    def has(place: int) -> bool:
        if place in plan.errors:  # as of a folder that is not there: each shard says so
            return True
        return shard.has(PurePath(plan.picture(place).removeprefix(folder)).as_posix())

    return plan.only(filter(has, range(len(plan))))


def _list_sources(
    plan: _Plan, sources: Sequence[Path], options: GenerateOptions, passed_over: PassedOver
) -> None:
    """Put sources, and those in folders, into a plan; each once."""
    kind: type[InputError]
    if options.photos:
        from s2f.layout import is_picture as wants

        what, kind = "photos", ImageError
    else:
        from s2f.audio import is_recording as wants

        what, kind = "recordings", AudioError
    ours = [place.resolve() for place in (options.output, options.sheet) if place]
    known: set[str] = set()  # of several sources
    itself = os.path.abspath  # a link is a file of its own
    tops: set[Path] = set()
    every = {source.resolve() for source in sources}
    for source in dict.fromkeys(sources):
        top, others, start = source.resolve(), PassedOver(), len(plan)
        is_folder = source not in LIVE and os.path.isdir(source)
        inner = [place for place in ours if is_folder and top in place.parents]
        is_within = _within(inner)  # where earlier runs wrote
        n_listed = n_passed = 0
        try:
            paths: Iterable[str] = [str(source)]
            if is_folder:
                plan.open_folder(source)
                paths = files.names(source, wants, passed_over=others)
            elif source not in LIVE:
                files.find_files([source], wants, what, kind)
            for path in paths:
                n_listed += 1
                plan.add(path, is_below=is_folder)
                full = plan.source(len(plan) - 1)
                place = itself(full)
                if place in known:
                    plan.cut(len(plan) - 1)
                    continue
                is_ours = options.photos and source not in LIVE and _is_ours(Path(full))
                if is_folder and (is_ours or is_within(full)):
                    others[files.suffix(path).lower() + (" of s2f" if is_ours else "")] += 1
                    plan.cut(len(plan) - 1)
                    n_passed += 1
                    continue
                if len(sources) > 1:  # a folder lists each once
                    known.add(place)
                if is_ours:
                    plan.remarks[len(plan) - 1] = ("is no photo: s2f drew it",)
            if n_passed == n_listed:
                raise holds_none(source, what, others, kind)
        except InputError as error:
            known.difference_update(itself(plan.source(k)) for k in range(start, len(plan)))
            plan.cut(start)
            plan.errors[start] = error
            plan.add(str(source), is_below=False)
            continue
        if top not in tops and not any(other in top.parents for other in every):
            passed_over += others  # those of a folder in another count there
        tops.add(top)


def _within(folders: Sequence[Path]) -> Callable[[str], bool]:
    """Give what tells whether a path lies in one of some folders, or leads there."""
    real = functools.lru_cache(16)(os.path.realpath)
    places = [str(folder) for folder in folders]

    def is_within(path: str) -> bool:
        if not places:
            return False
        folder, name = os.path.split(path)
        itself = f"{real(folder)}{os.sep}{name}"
        if Path(path).is_symlink():
            itself = os.path.realpath(path)
        return any(f"{itself}{os.sep}".startswith(f"{place}{os.sep}") for place in places)

    return is_within


def _is_ours(path: Path) -> bool:
    """Tell whether s2f drew a picture."""
    from s2f.images import is_ours, read_text

    return is_ours(read_text(path))


def _suffix(options: GenerateOptions) -> tuple[str, Path | None]:
    """Find the suffix of the pictures, and the picture that the output names, if it names one."""
    output, wanted = options.output, options.format and f".{options.format}"
    if output is None or os.path.isdir(output) or not (output.suffix or os.path.exists(output)):
        return wanted or PICTURES[0], None
    seen = ".jpg" if output.suffix.lower() == ".jpeg" else output.suffix.lower()
    if seen not in PICTURES:
        hint = "give -o NAME.png for one picture, or a folder; make one with a dot first"
        raise UsageError(f"{output}: is neither a .png, .jpg or .webp file nor a folder", hint=hint)
    if wanted not in (None, seen):
        hint = "the ending alone is enough: leave --format out"
        raise UsageError(f"{output}: does not end as --format {options.format}", hint=hint)
    if options.is_batch:
        hint = "there may be several recordings or photos: give a folder to -o"
        raise UsageError(f"{output}: is one picture", hint=hint)
    return seen, output


def _composes(plan: _Plan, places: Sequence[int]) -> bool:
    """Tell whether two pictures have names that are one where accents are composed, and are so."""
    if all(plan.picture(place).isascii() for place in places):
        return False
    folded, composed = _Names(), _Names(composed=True)
    for place in places:
        folded.add(plan.picture(place))
        composed.add(plan.picture(place))
    return len(composed) < len(folded) and composes(Path(plan.picture(places[0])).parent)


def _crowded(plan: _Plan, places: Iterable[int], *, composed: bool) -> set[int]:
    """Find the items whose pictures would have the name of another's."""
    names, twice = _Names(composed=composed), _Names(composed=composed)
    for place in places:
        if not names.add(name := plan.picture(place)):
            twice.add(name)
    return {place for place in places if plan.picture(place) in twice} if twice else set()


def _refuse_loss(
    written: Callable[[], Iterable[tuple[object, str]]],
    read: Callable[[], Iterable[str]],
    *,
    composed: bool = False,
) -> _Names:
    """Refuse two files of one name, each behind its maker, and to write what is read; give names.

    Both are asked again where it matters.
    """
    names = _Names(composed=composed)
    known: set[int | None] = set()
    for maker, path in written():
        if not names.add(path):
            same = (who for who, name in written() if names.fold(name) == names.fold(path))
            other = next(same)
            if other != maker:  # else it is chance that their hashes are equal
                hint = "give the folder above both, so that the tree is mirrored, or rename one"
                raise UsageError(f"{path}: would be made of both {other} and {maker}", hint=hint)
        if (identity := _identity(path)) is not None:
            known = known or set(map(_identity, read()))
            if identity in known:
                raise UsageError(
                    f"{path}: is read, and would be written too", hint="give another -o"
                )
    return names


def _identity(path: str) -> int | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev << 64 | status.st_ino


@dataclass(eq=False)
class _History:
    """What the pictures of a run say of what made them, and what those say that are there."""

    options: GenerateOptions
    taken: _Names = field(default_factory=_Names)  # what the run writes
    drew: dict[str, Any] = field(default_factory=dict)  # as `Ending.model`
    hashes: dict[Path, str | None] = field(default_factory=dict)  # of sources, by `hash_source`
    known: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)  # by `facts`

    @functools.cached_property
    def choice(self) -> "Choice":
        """The networks that the options need; raises as `checkpoint.choose`."""
        from s2f.checkpoint import choose

        options = self.options
        kinds = ["face_encoder" if options.photos else "voice_encoder", "face_decoder"]
        if options.compare:
            kinds.append("face_encoder")
        every = ("voice_encoder", "face_encoder", "face_decoder")
        files = {kind: path for kind in every if (path := getattr(options, kind))}
        return choose(options.model or "demo", kinds, files=files)

    def facts(self, what: str, source: str | None, n: int = 0) -> dict[str, str]:
        """Say what makes a `FACE`, one of `ENDINGS`, `LIVE_FRAME`, `SHEET` of n, or `MORPH`."""
        if (what, n) not in self.known:
            self.known[what, n] = self._facts(what, n)
        return self.known[what, n] | ({SOURCE: source} if source else {})

    def _facts(self, what: str, n: int) -> dict[str, str]:
        from s2f.images import FRAME, provenance

        options, sha256 = self.options, dict(self.choice.sha256)
        if not options.photos and what != "compare":  # for which alone `generate` has one
            sha256.pop("face_encoder", None)
        said: dict[str, Any] = {"size": options.size or FRAME, "precision": options.precision}
        if what == MORPH:
            said["frames"] = options.frames or FRAMES
        if what == SHEET:
            said["faces"] = n
        if what == "compare" and options.compare:
            said["photo"] = (self.hash_source(options.compare) or "")[:12]
        if options.photos or what == "compare":
            said["detector"] = self._detector
        if not options.photos and what != LIVE_FRAME:  # which is of all that came
            said |= options.part
        parts = [what, *(f"{name} {_shown(v)}" for name, v in said.items() if v)]
        of = {"compare": "speech and a photo", MORPH: "speech of two recordings"}
        source = of.get(what, "a photo" if options.photos else "speech")
        facts = provenance(self.choice.name, source, sha256)
        return facts | {"Options": ", ".join(parts)}

    @functools.cached_property
    def _detector(self) -> str:
        if not self.options.align:
            return "none"
        from s2f.face_detection import choose_detector

        return choose_detector(self.options.detector)

    def hash_source(self, path: Path) -> str | None:
        """Hash a source, once until it is done; None if it is no file, or cannot be read."""
        if path not in self.hashes:
            self.hashes[path] = None
            try:
                if stat.S_ISREG(path.stat().st_mode):  # all else could be read only once
                    with path.open("rb") as file:
                        self.hashes[path] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:  # told where it is read
                pass
        return self.hashes[path]

    def differs(
        self, path: Path, what: str, said: Mapping[str, str], source: str | None, n: int = 0
    ) -> str:
        """Tell by what it says how else a file was made, `with size 224`; "" if it is the same.

        Raises a UsageError if s2f did not make it, or not of this source: but a sheet is made anew.
        """
        from s2f.images import is_ours

        found = ""
        if not is_ours(said):
            found = "and is no whole picture that s2f made"
            if path.suffix == ".npy":
                found = "and is not of the face beside it"
        elif SOURCE not in said:
            found = "and does not say of which source"
        elif source is None or said[SOURCE] != source:
            found = "made of another source, or of this one before it changed"
            if what == SHEET == said.get("Options", "").split(", ")[0]:
                return "of other sources, or of these before they changed"
        if found:
            raise UsageError(f"{path}: exists already, {found}", hint=REPLACE)
        wanted = self.facts(what, source, n)
        for name in MAKERS:
            old, new = (text.get(name, "").split(", ") for text in (said, wanted))
            if old != new:
                gone = ", ".join(part for part in old if part not in new)
                come = ", ".join(part for part in new if part not in old)
                return f"with {gone}" if gone else f"without {come}"
        return ""


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _look(item: Outcome, history: _History) -> Outcome:
    """Find which files of an item are due: those that are not there, or were made otherwise.

    So are landmarks and embeddings that an earlier run left beside the face, though not asked for
    now. The item is `skipped` if nothing is due, `failed` if what is there may not be replaced.
    """
    from s2f.images import read_text

    asked, overwrite = item.files, history.options.overwrite
    if not asked:
        return item
    others = {what: _beside(asked[FACE], what) for what in ENDINGS if what not in asked}
    others = {w: path for w, path in others.items() if str(path) not in history.taken}
    every = {**asked, **others}
    there = {what: path for what, path in every.items() if os.path.lexists(path)}
    due = {what for what in asked if overwrite or what not in there}
    source = None if item.source in LIVE or not there else history.hash_source(item.source)
    face = read_text(there[FACE]) if FACE in there else {}
    remarks = list(item.remarks)
    for what, path in there.items():
        if overwrite and what in asked:
            continue
        kind, said = what, face
        if what == "embedding":  # the face that was made with it speaks for it
            kind, said = FACE, said if face.get(EMBEDDING) == _hash_embedding(path) else {}
        elif what != FACE:
            said = read_text(path)
        is_of_kind = said.get("Options", "").split(", ")[0] == kind
        if not (what in asked or is_of_kind):
            continue
        if what == "compare" and what not in asked:  # whose photo is not known
            if FACE in due & there.keys():
                remarks.append(f"{path} is of before: give --compare to make it anew")
            continue
        try:
            other = history.differs(path, kind, said, source)
        except UsageError as error:
            if what in asked:
                return replace(item, status="failed", error=error)
            other = "of another source" if overwrite else ""  # whose face stays, or does not
        if other:
            due.add(what)
            remarks.append(f"{path} is made anew: it was made {other}")
    if "embedding" in due:
        due.add(FACE)
    if not due and REMARKS in face:
        remarks += face[REMARKS].split(BETWEEN)
    return replace(
        item,
        files={what: path for what, path in every.items() if what in asked or what in due},
        due=tuple(what for what in (FACE, *ENDINGS) if what in due),
        status="planned" if due else "skipped",
        remarks=tuple(dict.fromkeys(remarks)),
    )


def _beside(face: Path, what: str) -> Path:
    """Name another file of a face, one of `ENDINGS`."""
    ending = ENDINGS[what] if "." in ENDINGS[what] else ENDINGS[what] + face.suffix
    return face.with_name(f"{face.stem}{ending}")


def _hash_embedding(path: Path) -> str | None:
    try:
        return hashlib.sha256(read_array(path).tobytes()).hexdigest()
    except InputError:  # it is none
        return None


def _hash_all(items: Sequence[Outcome], history: _History) -> str | None:
    """Hash the names and sources of all items; None if one cannot be read again."""
    if any(item.source in LIVE for item in items):
        return None
    lines = [f"{item.sha256} {_caption(item, history)}" for item in items]
    return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()


def _caption(item: Outcome, history: _History) -> str:
    """Name an item as the sheet does: by its place in the output folder, without suffix."""
    folder, face = history.options.output or Path(), item.files.get(FACE, Path(item.source.name))
    name = face.relative_to(folder) if folder in face.parents else Path(face.name)
    return str(name.with_suffix(""))


def _check_place(path: Path, suffixes: Sequence[str]) -> None:
    """Refuse to write a folder, or what does not end as it should."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder", hint="give the name of a file")
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{path}: does not end in {' or '.join(suffixes)}", hint="rename it")


def _load(history: _History) -> "SpeechToFace":
    """Load the networks that the options need; raises as `SpeechToFace.load`."""
    choice = history.choice
    gc.disable()  # of torch nothing is garbage: to look for it, now and in the end, takes 0.5 s
    from s2f.pipeline import SpeechToFace

    gc.enable()
    gc.freeze()
    device, precision = history.options.device, history.options.precision
    return SpeechToFace.load(choice, device=device, precision=precision)


def _columns(model: "SpeechToFace", options: GenerateOptions) -> "Columns":
    """The columns of `--compare` that all its sheets share: the photo, and the face from it."""
    if not options.compare:
        return []
    from PIL.Image import Resampling

    from s2f.face_detection import open_face

    photo = open_face(options.compare, **options.framing)
    face = model.reconstruct(photo, align=False).sized(options.size)
    return [("photo", photo.resize(face.size, Resampling.LANCZOS)), ("from the photo", face)]


def _draw(
    model: "SpeechToFace",
    sources: Sequence[Path],
    history: _History,
    progress: Progress,
    note: Note,
    formed: "_Formed | None",
) -> "Faces":
    """Draw the face of each source, or say what is wrong with it."""
    options = history.options
    forming = None
    if options.live and formed:
        from s2f.pipeline import Forming

        forming = Forming(model, formed.take)
    opened = (_opened(source, history, progress, note, forming) for source in sources)
    if not options.photos:
        for made in model.generate_all(opened, progress=progress, **options.part):
            if forming and formed and formed.show and not isinstance(made, InputError):
                formed.show(made.image)
            yield made
        return
    for source, photo in zip(sources, opened, strict=True):
        progress(0, 1, source.name)
        try:
            yield model.reconstruct(photo, **options.framing)
        except InputError as error:
            yield error
        except MemoryError:
            message = f"{source}: takes more memory than there is"
            yield ImageError(message, hint="make it smaller first")


def _opened(
    source: Path, history: _History, progress: Progress, note: Note, forming: "Forming | None"
) -> Any:
    """Give what is read for a source: standard input, the microphone, or the file itself."""
    options = history.options
    if source == STDIN:
        if sys.stdin is None:
            raise UsageError("standard input is closed", hint="pipe something into it")
        return sys.stdin.buffer
    if options.record is None:
        history.hash_source(source)  # now: what changes from here on is another source
        return source
    from s2f.audio import record

    once = functools.cache(note)

    def tell(done: int, total: int, what: str) -> None:
        once(f"{what}, {options.record:g} s: speak now")  # by now it does record
        progress(done, total, what)

    if forming is None:
        return record(options.record, progress=tell)
    with forming:
        return record(options.record, progress=tell, heard=forming.feed)


def _make(item: Outcome, faces: "Faces", history: _History, columns: "Columns") -> Outcome:
    """Draw the face of an item, and write what is due."""
    started = time.perf_counter()
    face = next(faces)
    item = _look(item, history)  # again: since it was planned, others may have written there
    if item.status != "planned":
        return item
    if isinstance(face, InputError):
        left = tuple(f"{p} is of before" for p in item.files.values() if os.path.lexists(p))
        return replace(item, status="failed", error=face, remarks=left)
    source = None if item.source in LIVE else history.hash_source(item.source)
    try:
        if "embedding" in item.due:  # the old one is nobody's once its face is gone
            old, own = item.files["embedding"], hashlib.sha256(face.embedding.tobytes()).hexdigest()
            if _hash_embedding(old) != own:  # as another run at work on it may have written it
                _remove(old)
        for what in item.due:
            path = item.files[what]
            write_bytes(path, _encoded(face, what, path.suffix, history, source, columns))
    except OutputError as error:
        return replace(item, status="failed", error=error)
    seconds = time.perf_counter() - started
    remarks = (*face.remarks, *item.remarks)
    made = replace(item, status="made", clips=face.clips, voice=face.voice)
    return replace(made, remarks=remarks, seconds=seconds)


@dataclass
class _Formed:
    """What becomes of each face while one forms: it is shown, or written as a frame."""

    history: _History
    face: Path  # beside whose picture the frames are
    note: Note
    show: Show | None
    frames: list[Path] = field(default_factory=list)
    error: OutputError | None = None  # why there are no more of them

    @property
    def folder(self) -> Path:
        """Where the frames are."""
        return self.face.with_name(f"{self.face.stem}{FRAMES_ENDING}")

    def checked(self, item: Outcome) -> Outcome:
        """Look for frames of before: the item has failed if they are in the way."""
        options, folder = self.history.options, self.folder
        if self.show or not options.live:  # then they stay
            left = (f"{folder} is of before",) if os.path.isdir(folder) else ()
            return replace(item, remarks=item.remarks + left)
        for path in filter(None, (options.compare, options.sheet)):
            if path.resolve().parent == folder.resolve():
                message = f"{path}: is where the frames of the face are written"
                raise UsageError(message, hint="give another place")
        if self._there() and not options.overwrite:
            error = UsageError(f"{folder}: exists already", hint=REPLACE)
            return replace(item, status="failed", error=error)
        return item

    def _there(self) -> list[Path]:
        try:
            return sorted(self.folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def take(self, face: "Face") -> None:
        """Show a face, or write it; once one cannot be written, none is."""
        if self.show:
            self.show(face.image)
        elif not self.error:
            try:
                self._write(face)
            except OutputError as error:  # what is being said is heard to its end all the same
                self.error = error

    def _write(self, face: "Face") -> None:
        from s2f.images import is_ours, read_text

        for path in self._there() if not self.frames else ():  # of which there may be more
            said = read_text(path)
            if is_ours(said) and said.get("Options", "").split(", ")[0] == LIVE_FRAME:
                _remove(path)
        path = self.folder / f"{len(self.frames) + 1:04}{self.face.suffix}"
        facts, size = self.history.facts(LIVE_FRAME, None), self.history.options.size
        write_bytes(path, face.encoded(path.suffix, size=size, facts=facts))
        self.frames.append(path)

    def told(self, item: Outcome) -> Outcome:
        """Tell of the frames in what became of their source, which has failed without them."""
        if self.frames:
            n = len(self.frames)
            self.note(f"{n} frames of the face as it formed are in {self.folder}")
        elif self.history.options.live and not (self.show or self.error):
            self.note("no frame was drawn: a face forms from 1 s of speech on")
        item = replace(item, frames=tuple(self.frames))
        if self.error and not item.error:
            return replace(item, status="failed", error=self.error)
        return item


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def _encoded(
    face: "Face",
    what: str,
    suffix: str,
    history: _History,
    source: str | None,
    columns: "Columns",
) -> bytes:
    """Encode one of the files of a face."""
    if what == "embedding":
        import numpy as np

        buffer = io.BytesIO()
        np.save(buffer, face.embedding)
        return buffer.getvalue()
    facts, size = history.facts(what, source), history.options.size
    if what == "compare":
        from s2f.images import encode
        from s2f.visualize import side_by_side

        shown = side_by_side([*columns, ("from the voice", face.sized(size))])
        return encode(shown, suffix, facts)
    if what == FACE:
        facts[EMBEDDING] = hashlib.sha256(face.embedding.tobytes()).hexdigest()
        if face.remarks:
            said = one_line(BETWEEN.join(face.remarks))
            facts[REMARKS] = said.replace("; ", ", ")  # by which EXIF's facts end
    return face.encoded(suffix, size=size, overlay=what == "landmarks", facts=facts)


def _write_sheet(sheet: "ContactSheet", done: Sequence[Outcome], history: _History) -> Ending:
    """Lay all faces that there are on the sheet, unless the same sheet is there."""
    from s2f.images import encode, open_photo, read_text

    target = history.options.sheet
    assert target
    shown = [item for item in done if item.status in ("made", "skipped")]
    source = _hash_all(done, history)
    remarks: list[str] = []
    errors: list[S2FError] = []
    try:
        if shown and os.path.lexists(target) and not history.options.overwrite:
            other = history.differs(target, SHEET, read_text(target), source, len(shown))
            if not other:
                return Ending(0.0, kept=target)
            remarks = [f"{target} is made anew: it was made {other}"]
        for item in shown:
            try:
                sheet.add(_caption(item, history), open_photo(item.files[FACE]))
            except InputError as error:
                errors.append(error)
        if sheet.added:
            facts = history.facts(SHEET, source, sheet.added)
            write_bytes(target, encode(sheet.image(), target.suffix, facts))
            return Ending(0.0, {}, target, errors=errors, remarks=remarks)
    except (OutputError, UsageError) as error:
        errors.append(error)
    return Ending(0.0, errors=errors)


def _strangers(planned: _Plan, history: _History) -> tuple[dict[str, str], list[str]]:
    """Find faces in the folders that this run writes in which it does not write.

    Gives what each says of its source, and what is to be said of a folder that cannot be read. A
    shard knows some of the sources only, and does not look.
    """
    from s2f.images import is_ours, read_text

    options = history.options
    if options.shard or not (options.output and any(map(os.path.isdir, options.sources))):
        return {}, []
    places = (place for place in range(len(planned)) if place not in planned.errors)
    there: list[Path] = []
    for folder in map(Path, sorted({os.path.split(planned.picture(k))[0] for k in places})):
        try:
            inside = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES]
        except FileNotFoundError:  # nothing was made there
            continue
        except OSError as error:
            return {}, [f"{folder}: cannot be listed: {error.strerror or error}"]
        there += sorted(path for path in inside if str(path) not in history.taken)
    found = {}
    for path in there:
        said = read_text(path)
        is_face = is_ours(said) and said.get("Options", "").startswith(f"{FACE}, ")
        if is_face and SOURCE in said:
            found[str(path)] = said[SOURCE]
    return found, []


def _animate(history: _History, voices: tuple[Path, Path], progress: Progress) -> Ending:
    """Write an animated WebP; progress is told of each clip that is heard, then of each frame."""
    options = history.options
    remarks: list[str] = []
    target = options.output or Path("morph.webp")
    if target.is_dir():
        target /= "morph.webp"
    _check_place(target, (".webp",))
    hashes = [history.hash_source(voice) for voice in voices]
    source = hashlib.sha256(" ".join(map(str, hashes)).encode()).hexdigest()
    if os.path.lexists(target) and not options.overwrite:
        from s2f.images import read_text

        said = read_text(target)
        other = history.differs(target, MORPH, said, None if None in hashes else source)
        if not other:
            return Ending(0.0, kept=target)
        remarks = [f"{target} is made anew: it was made {other}"]
    _refuse_loss(lambda: [("the recordings", str(target))], lambda: map(str, voices))
    check_writable(target)
    model = _load(history)
    from s2f.visualize import animate

    heard = list(model.embed_voices(voices, progress=progress, **options.part))
    for one in heard:
        if one.error:
            raise one.error
    for voice, one in zip(voices, heard, strict=True):
        remarks += [f"{voice}: {said}" for said in one.remarks]
    first, last = (one.embedding for one in heard)
    n = options.frames or FRAMES

    def pictures() -> "Iterator[Image]":
        for k, face in enumerate(model.morph(first, last, n)):
            progress(k, n, target.name)
            yield face.sized(options.size)

    facts = history.facts(MORPH, None if None in hashes else source)
    write_bytes(target, animate(pictures(), seconds=FRAME_SECONDS * n, text=facts))
    return Ending(0.0, _described(model), target, remarks=remarks)
