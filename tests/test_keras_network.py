"""Keras as the judge: what it refuses, and that it stays in its process."""

import sys
from pathlib import Path

import numpy as np
import published_files as files
import pytest
from published_files import needs_tensorflow

from s2f import keras_check, prep
from s2f.errors import CheckpointError, DependencyError

SHAPE = keras_check.Shape(files.LAYERS, 224, (files.HIDDEN, files.EMBEDDING, files.IDENTITIES))
IMAGES = np.zeros((1, 224, 224, 3), np.float32)


@needs_tensorflow
@pytest.mark.parametrize("content", ["rcmalli", "text"])
def test_keras_refuses_a_file_of_another_net(tmp_path: Path, content: str) -> None:
    path = tmp_path / "w.h5"
    if content == "text":
        path.write_text("none")
    else:
        files.write_keras(path, content)
    ((_, error),) = prep.run_in_workers(
        keras_check.taps, [(path, "serengil", SHAPE, IMAGES)], workers=1
    )
    assert isinstance(error, CheckpointError)
    assert str(path) in error.message
    assert "tensorflow" not in sys.modules


def test_without_tensorflow_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(DependencyError, match="TensorFlow") as caught:
        keras_check.require_tensorflow()
    assert "pip install 's2f[convert]'" in (caught.value.hint or "")


@needs_tensorflow
def test_with_tensorflow_nothing_is_imported() -> None:
    keras_check.require_tensorflow()
    assert "tensorflow" not in sys.modules
