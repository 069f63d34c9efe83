"""Embeddings of recordings: the mean of their clips', whoever shares their batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FRONT_END, VOICE, noise, write_speech

from s2f.audio import Waveform, clips, read_speech
from s2f.errors import AudioError, InputError
from s2f.pipeline import Embedded, VoiceEmbedder
from s2f.spectrogram import spectrogram
from s2f.voice_encoder import VoiceEncoder


def embedder(batch_size: int) -> VoiceEmbedder:
    torch.manual_seed(0)
    encoder = VoiceEncoder(VOICE).eval()
    return VoiceEmbedder(encoder, FRONT_END, torch.device("cpu"), batch_size=batch_size)


def recordings(folder: Path) -> list[Path]:
    """Recordings of 1, 3, 2 and 5 clips; the third of five is broken."""
    paths = [write_speech(folder / f"{k}.wav", k, seed=k) for k in (1, 3)]
    (folder / "broken.wav").write_text("text")
    return [*paths, folder / "broken.wav", *(write_speech(folder / f"{k}.wav", k) for k in (2, 5))]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
def test_a_recording_is_the_mean_of_its_clips(tmp_path: Path, batch_size: int) -> None:
    paths = recordings(tmp_path)
    done = list(embedder(batch_size).embed(paths))
    assert [item.clips for item in done if not item.error] == [1, 3, 2, 5]
    assert isinstance(done[2].error, AudioError) and "broken.wav" in done[2].error.message
    for path, item in zip(paths, done, strict=True):
        if item.error:
            continue
        whole = torch.from_numpy(clips(read_speech(path).waveform(), FRONT_END.clip_samples))
        with torch.no_grad():  # oracle: all clips at once
            wanted = embedder(1).encoder(spectrogram(whole, FRONT_END)).double().mean(0)
        np.testing.assert_allclose(item.embedding, wanted.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_company_changes_no_bit(tmp_path: Path, batch_size: int) -> None:
    paths = [path for path in recordings(tmp_path) if path.name != "broken.wav"]
    together = [item.embedding for item in embedder(batch_size).embed(paths)]
    alone = [next(embedder(batch_size).embed([path])).embedding for path in paths]
    np.testing.assert_array_equal(together, alone)


def test_results_come_as_soon_as_they_may(tmp_path: Path) -> None:
    asked: list[int] = []

    def one_by_one() -> "list[Path]":
        for k, path in enumerate(recordings(tmp_path)):
            asked.append(k)
            yield path

    done = embedder(1).embed(one_by_one())
    next(done)
    assert asked == [0]
    assert len(list(done)) == 4
    done = embedder(4).embed(one_by_one())
    asked.clear()
    next(done)
    assert asked == [0, 1]  # 1 + 3 clips fill a batch of 4


def test_progress_tells_each_clip(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []

    def tell(done: int, total: int, what: str) -> None:
        told.append((done, total, what))

    path = write_speech(tmp_path / "a.wav", 3)
    list(embedder(1).embed([path], progress=tell))
    assert told == [(k, 3, str(path)) for k in range(3)]


def test_a_part_is_done_as_a_recording_of_its_own(tmp_path: Path) -> None:
    samples = noise(4)
    part = next(embedder(1).embed([Waveform(samples, 16_000)], start=1.0, duration=2.0))
    alone = next(embedder(1).embed([Waveform(samples[16_000:48_000], 16_000)]))
    assert part.clips == alone.clips == 2
    np.testing.assert_array_equal(part.embedding, alone.embedding)


def test_only_what_is_wrong_with_an_input_is_kept() -> None:
    (done,) = embedder(1).embed([Path("nowhere.wav")])
    assert isinstance(done, Embedded) and isinstance(done.error, InputError)
