"""What the buttons of the page do, whatever a visitor sends."""

import logging
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from s2f import app
from s2f.console import Progress
from s2f.errors import AudioError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where visitors' files are."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


def replied(path: Path, answer: app.Answer) -> str:
    path.write_bytes(b"sound")
    told: list[Any] = []
    html = app.reply([str(path)], answer, lambda share, desc: told.append((share, desc)))
    assert not path.exists()
    assert told == [((0, 2), "listening")]
    return html


def test_an_answer_is_given_and_the_file_is_gone_before_it(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"

    def answer(sent: list[BinaryIO], progress: Progress) -> str:
        assert not path.exists()
        progress(0, 2, "listening")
        return sent[0].read().decode()

    assert replied(path, answer) == "sound"


def test_what_cannot_be_used_is_told_in_sentences(tmp_path: Path) -> None:
    def answer(sent: list[BinaryIO], progress: Progress) -> str:
        progress(0, 2, "listening")
        raise AudioError("the recording is broken", hint="record it again")

    html = replied(tmp_path / "a.wav", answer)
    assert 'role="alert"' in html
    assert "The recording is broken. Record it again." in html


def test_a_bug_of_ours_is_a_sentence_there_and_a_trace_here(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(sent: list[BinaryIO], progress: Progress) -> str:
        progress(0, 2, "listening")
        return str(1 / 0)

    with caplog.at_level(logging.ERROR):
        html = replied(tmp_path / "a.wav", answer)
    assert "Something went wrong here" in html
    assert "division" not in html
    assert "ZeroDivisionError" in caplog.text


def test_the_words_say_what_a_face_is_not() -> None:
    assert "never a likeness of the speaker" in app.INTRODUCTION
    assert "10 MB" in app.LIMITS.format(max_mb=10, max_seconds=7)
    assert "7 seconds" in app.LIMITS.format(max_mb=10, max_seconds=7)
