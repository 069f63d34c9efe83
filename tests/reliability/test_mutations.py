"""Damaged files of every format: each is read or refused by name, in time, and costs itself only.

The long part does this with 10,000 a format, or as many as `S2F_MUTATIONS` says.
"""

import contextlib
import functools
import os
import resource
import shutil
import time
from pathlib import Path

import foreign_files
import numpy as np
import pytest
import soundfile
import torch
from conftest import save_model, write_photo
from damage import Count, Took, in_this_process, mutate
from packs import write_pack
from PIL import Image
from recordings import noise, write_av
from torch import nn
from trees import contents

from s2f import audio, checkpoint, foreign_weights, pack, prep, workers
from s2f.errors import S2FError, WorkerError
from s2f.files import File, read_table
from s2f.images import open_photo
from s2f.journal import Journal
from s2f.prep_audio import audio_step
from s2f.prep_faces import resize_step
from s2f.run_dir import Run

SECONDS = 10.0  # of processor time that a file may take
MEGABYTES = 512  # and over what a good one takes
LONG = int(os.environ.get("S2F_MUTATIONS", "10000"))
SOUND = ("wav", "flac", "ogg", "mp3", "m4a", "mp4")
PICTURES = ("jpg", "png", "webp")


def write_media(folder: Path, suffix: str) -> Path:
    path = folder / f"a.{suffix}"
    if suffix in PICTURES:
        photo = Image.open(write_photo(folder / "photo.png")).resize((96, 80))
        (folder / "photo.png").unlink()
        photo.save(path)
    elif suffix in ("m4a", "mp4"):
        write_av(path, noise(44_100)[:, None], video=suffix == "mp4")
    else:  # the pages of Ogg have checksums: some must be whole
        soundfile.write(path, noise(16_000 * (9 if suffix == "ogg" else 1)), 16_000)
    return path


def write_weights(folder: Path, suffix: str) -> Path:
    path = folder / f"a.{suffix}"
    if suffix == "h5":
        return foreign_files.write_legacy(path, foreign_files.some_layers(2))
    torch.save({"model_state": nn.Conv2d(2, 3, 4).state_dict(), "epoch": 7}, path)
    return path


def write_checkpoint(folder: Path) -> Path:
    path = folder / "face_encoder.safetensors"
    return Path(shutil.copy(save_model(folder.with_name("model"), seed=0) / path.name, path))


def write_waveform(folder: Path) -> Path:
    np.save(folder / "a.npy", (1e4 * noise(16_000)).astype(np.int16))
    return folder / "a.npy"


def write_table(folder: Path) -> Path:
    rows = "".join(f'id{k}, "A, {k}", f\n' for k in range(20))
    (folder / "a.csv").write_text(f"id, name, sex\n{rows}")
    return folder / "a.csv"


def write_packed(folder: Path, name: str) -> Path:
    clips, embeddings = np.arange(40, dtype="<i2").reshape(4, 10), np.ones((2, 3), "<f2")
    folder.rmdir()
    write_pack(folder, [clips], [embeddings], [("id0", 4, 2, (3, 1))])
    return folder / name


def write_journal(folder: Path) -> Path:
    with Journal(folder, "audio", {"rate": 16_000}, folder) as journal:
        for k in range(5):
            journal.note("done", f"{k}.npy", File(f"{k}.wav", 10 + k, 111), ["a remark"])
        journal.finish()
    return journal.path


def trained() -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    network = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    return network, optimizer


def write_state(folder: Path) -> Path:
    run = Run(folder, step=1, best_losses={"mse": 0.5})
    run.save(*trained())
    return run.file


def read_sound(path: Path) -> None:
    assert np.isfinite(audio.read_speech(path)).all()


def read_picture(path: Path) -> None:
    assert open_photo(path).mode == "RGB"


@contextlib.contextmanager
def as_much_memory_as_confined():
    """Have this process take no more than `call_confined` lets another, on Linux."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + foreign_weights.MEGABYTES * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@as_much_memory_as_confined()
def read_weights(path: Path) -> None:
    """As `read_foreign` in the process that it confines, which this one is."""
    foreign_weights.call_confined = lambda read, path, *given, **limits: read(path, *given)
    try:
        kind = foreign_weights.recognise(path)
        if kind in foreign_weights.FORMATS:
            foreign_weights.read_foreign(path, kind)
    except S2FError as error:
        if str(path) not in error.message:  # which `call_confined` adds
            raise type(error)(f"{path}: {error.message}") from error
        raise
    except Exception as error:  # likewise
        raise S2FError(f"{path}: {error}") from error


def read_confined(path: Path) -> None:
    began = time.monotonic()
    try:
        foreign_weights.read_foreign(path, foreign_weights.recognise(path))
    finally:  # of processor time it may take 6 s, and to start a process is more than that
        assert time.monotonic() - began < foreign_weights.START_SECONDS + SECONDS


def read_checkpoint(path: Path) -> None:
    checkpoint.verify(path)
    raise AssertionError("damage was not found")


def read_waveform(path: Path) -> None:
    audio.check_waveform(audio.map_waveform(path), str(path))


def read_packed(path: Path) -> None:
    try:
        pack.Pack(path.parent)[0]
    finally:
        (damaged,) = pack.verify_pack(path.parent).damaged
    raise damaged


def read_journal(path: Path) -> None:
    with Journal(path.parent.parent, "audio", {"rate": 16_000}, path.parent.parent) as read:
        for name, entry in read.entries.items():
            k = int(name.removesuffix(".npy"))
            assert entry[1:3] == (10 + k, 111) and entry.note in (["a remark"], None)


def read_state(path: Path) -> None:
    Run(path.parent.parent).restore(*trained(), torch.device("cpu"))
    raise AssertionError("damage was not found")


FORMATS = {suffix: (functools.partial(write_media, suffix=suffix), read_sound) for suffix in SOUND}
FORMATS |= {
    suffix: (functools.partial(write_media, suffix=suffix), read_picture) for suffix in PICTURES
}
FORMATS |= {
    suffix: (functools.partial(write_weights, suffix=suffix), read_weights)
    for suffix in ("h5", "pt")
}
FORMATS |= {
    "safetensors": (write_checkpoint, read_checkpoint),
    "npy": (write_waveform, read_waveform),
    "csv": (write_table, read_table),
    "pack": (functools.partial(write_packed, name="clips-00000.npy"), read_packed),
    "embedded": (functools.partial(write_packed, name="embeddings-00000.npy"), read_packed),
    "index": (functools.partial(write_packed, name="index.json"), read_packed),
    "journal": (write_journal, read_journal),
    "state": (write_state, read_state),
}


def read_damaged(copy, folder, inside, read, seeds):
    """Damage copies, and read them; gives of each why it is refused, seconds and megabytes."""
    outcomes = []
    for seed in seeds:
        shutil.rmtree(copy, ignore_errors=True)  # of one at which the process died
        shutil.copytree(folder, copy)
        path, error = copy / inside, None
        path.write_bytes(mutate(path.read_bytes(), np.random.default_rng(seed)))
        with Took() as took:  # for the clock, there is the limit of each call
            try:
                read(path)
            except S2FError as refused:
                error = refused
        outcomes.append((error, took.seconds, took.megabytes))
    shutil.rmtree(copy)
    return outcomes


@pytest.mark.parametrize(
    "n", [8, pytest.param(LONG, marks=[pytest.mark.reliability, pytest.mark.timeout(360_000)])]
)
def test_a_damaged_file_is_read_or_refused_by_name(tmp_path, n):
    """Many a call: where the process dies, or one takes too long, each once more by itself."""
    counts, due = {form: Count() for form in FORMATS}, []
    for form, (write, read) in FORMATS.items():
        folder = tmp_path / form / "whole"
        folder.mkdir(parents=True)
        inside = write(folder).relative_to(folder)
        chunks = [range(k, min(n, k + 25)) for k in range(0, n, 25)]
        due += [(folder.with_name("copy"), folder, inside, read, seeds) for seeds in chunks]
    while due:
        items, due = due, []
        for place, outcome in workers.run_in_workers(read_damaged, items, workers=1, seconds=60):
            copy, *given, seeds = items[place]
            count = counts[copy.parent.name]
            if not isinstance(outcome, WorkerError):
                for error, seconds, megabytes in outcome:
                    count.add(copy, error, seconds)
                    count.largest = max(count.largest, megabytes)
            elif len(seeds) > 1:
                due += [(copy, *given, range(k, k + 1)) for k in seeds]
            else:  # HDF5 dies of some and reads others for ever: therefore it is confined in use
                assert copy.parent.name == "h5", outcome.message
                count.crashed += 1
                path = shutil.copytree(given[0], copy, dirs_exist_ok=True) / given[1]
                path.write_bytes(mutate(path.read_bytes(), np.random.default_rng(seeds[0])))
                count.read(path, read_confined)
    for form, count in counts.items():
        print(f"{form}: {count}")
    for count in counts.values():
        assert count.tried == n and count.refused > 0
        assert count.slowest < SECONDS and count.largest < MEGABYTES


@pytest.mark.parametrize(
    "n", [6, pytest.param(LONG // 10, marks=[pytest.mark.reliability, pytest.mark.timeout(36_000)])]
)
@pytest.mark.parametrize(
    ("step", "suffixes"),
    [(audio_step(store="waveform"), SOUND), (resize_step(64), PICTURES)],
    ids=["sound", "faces"],
)
def test_a_batch_makes_of_damaged_files_all_or_nothing(tmp_path, monkeypatch, step, suffixes, n):
    """Of good ones beside them the same as alone, and no file but the outputs is left."""
    good, out, count = tmp_path / "good", tmp_path / "out", Count()
    good.mkdir()
    for suffix in suffixes:
        write_media(good, suffix).rename(good / f"{suffix}.{suffix}")
    with monkeypatch.context() as patch:
        patch.setattr(prep, "run_in_workers", in_this_process)
        assert not prep.prepare(step, good, tmp_path / "alone").failed
    both = Path(shutil.copytree(good, tmp_path / "both"))
    for k in range(n):
        for suffix in suffixes:
            data = (good / f"{suffix}.{suffix}").read_bytes()
            damaged = mutate(data, np.random.default_rng([k, len(data)]))
            (both / f"{suffix}-{k}.{suffix}").write_bytes(damaged)
    report = prep.prepare(step, both, out, workers=1)
    for failure in report.failed:
        count.add(failure.source, failure.error)
        count.crashed += isinstance(failure.error, WorkerError)
    refused = {failure.source.stem for failure in report.failed}
    made = {Path(name).name: data for name, data in contents(out).items() if ".s2f" not in name}
    assert {Path(name).stem for name in made} == {p.stem for p in both.iterdir()} - refused
    assert {path.name for path in (out / ".s2f").iterdir()} == {f"{step.name}.journal"} | {
        path.name for path in (out / ".s2f").glob("*.lock")
    }
    alone = {
        name: data for name, data in contents(tmp_path / "alone").items() if ".s2f" not in name
    }
    count.lost = sum(made.get(name) != data for name, data in alone.items())
    count.tried, count.done = n * len(suffixes), n * len(suffixes) - count.refused
    print(f"prep {step.name}: {count}")
    assert count.lost == count.crashed == 0 < count.refused and count.done > 0
