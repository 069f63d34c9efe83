"""Keras weights of VGG-Face. Oracles: Keras itself, and einsum in Keras' layout."""

import os
import subprocess
import sys
from pathlib import Path

import convert as benchmark
import numpy as np
import published_files as files
import pytest
import torch
from published_files import narrow, needs_tensorflow, reading_once

from s2f import checkpoint, convert, face_encoder, keras_check
from s2f.convert import convert_vgg_face
from s2f.errors import CheckpointError, DependencyError, OutputError
from s2f.images import PREPROCESSING

pytestmark = pytest.mark.usefixtures("narrow", "reading_once")
__all__ = ["narrow", "reading_once"]
LAYOUTS = ["legacy.h5", "model.h5", "new.weights.h5"]


@pytest.fixture(scope="session")
def by_keras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder an origin, of files that Keras wrote."""
    folders = {}
    for origin in ("serengil", "rcmalli"):
        folders[origin] = folder = tmp_path_factory.mktemp(origin)
        script = Path(__file__).with_name("keras_files.py")
        subprocess.run([sys.executable, script, folder, origin], check=True, capture_output=True)
    return folders


def embed(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """What a checkpoint makes of images [b h w 3] that are prepared already."""
    network = checkpoint.load(path, "face_encoder").network
    assert isinstance(network, face_encoder.VGGFace)
    network.preprocessing = PREPROCESSING["seed"]
    network.mean.zero_()
    faces = torch.from_numpy(images).permute(0, 3, 1, 2)
    features, embedding = network.features(faces), network(faces)
    logits = network.logits(embedding)
    return {
        "features": features.permute(0, 2, 3, 1).numpy(),
        "embedding": embedding.numpy(),
        "logits": logits.numpy(),
    }


def assert_taps(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for tap, values in found.items():
        wanted = expected[tap].reshape(values.shape)
        assert np.abs(wanted).max() > 0
        np.testing.assert_allclose(values, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)


@needs_tensorflow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("origin", ["serengil", "rcmalli"])
def test_what_keras_wrote_gives_what_keras_gave(
    by_keras: dict[str, Path], origin: keras_check.Origin, layout: str, tmp_path: Path
) -> None:
    expected = np.load(by_keras[origin] / "taps.npz")
    out = tmp_path / "out"
    convert_vgg_face(by_keras[origin] / layout, out, origin=origin)
    assert_taps(embed(out, expected["images"]), dict(expected))


@needs_tensorflow
@pytest.mark.parametrize(
    ("origin", "layout"), [("serengil", "legacy.h5"), ("rcmalli", "new.weights.h5")]
)
def test_keras_verifies_the_file_that_was_converted(
    by_keras: dict[str, Path],
    origin: keras_check.Origin,
    layout: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    made = convert_vgg_face(by_keras[origin] / layout, tmp_path / "out", origin=origin, verify=True)
    assert made.verified is not None
    assert set(made.verified) == {"features", "embedding", "logits"}
    assert max(made.verified.values()) < 1e-4
    assert capfd.readouterr() == ("", "")  # TensorFlow's own words among them


@needs_tensorflow
def test_keras_catches_what_the_tables_and_numpy_both_get_wrong(
    by_keras: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = list(files.AUTOMATIC)
    order[8], order[9] = order[9], order[8]  # of the same shape
    source = by_keras["serengil"] / "new.weights.h5"
    monkeypatch.setattr(convert, "keras_layers", lambda origin, names: tuple(order))
    with pytest.raises(CheckpointError, match="what Keras makes of the file"):
        convert_vgg_face(source, tmp_path / "out", origin="serengil", verify=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("origin", ["serengil", "rcmalli"])
def test_a_file_gives_what_its_arrays_give(origin: keras_check.Origin, tmp_path: Path) -> None:
    weights = files.keras_weights(origin)
    images = np.random.default_rng(1).uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)
    source = files.write_keras(tmp_path / "weights.h5", origin, weights)
    made = convert_vgg_face(source, tmp_path / "out", origin=origin)
    assert_taps(embed(tmp_path / "out", images), files.run_keras(weights, images))
    assert max(made.proven.values()) < 1e-5
    assert made.verified is None


@pytest.mark.parametrize("origin", ["serengil", "rcmalli"])
@pytest.mark.parametrize("preprocessing", [None, "seed", "serengil", "rcmalli"])
def test_the_preprocessing_travels_and_is_the_origins_unless_given(
    origin: keras_check.Origin, preprocessing: str | None, tmp_path: Path
) -> None:
    source = files.write_keras(tmp_path / "weights.h5", origin)
    made = convert_vgg_face(source, tmp_path / "out", origin=origin, preprocessing=preprocessing)
    back = checkpoint.load(tmp_path / "out", "face_encoder")
    assert isinstance(back.network, face_encoder.VGGFace)
    wanted = PREPROCESSING[preprocessing or origin]
    assert back.network.preprocessing == wanted
    assert back.embedding_space == made.embedding_space


def test_the_card_says_where_the_weights_come_from(tmp_path: Path) -> None:
    source = files.write_keras(tmp_path / "weights.h5", "serengil")
    convert_vgg_face(source, tmp_path / "out", origin="serengil")
    card = checkpoint.load(tmp_path / "out", "face_encoder").card
    assert "github.com/serengil/deepface_models" in card.description
    assert "academic origin" in card.licence
    assert "weights.h5, SHA-256 " in card.data


@pytest.mark.parametrize("origin", ["serengil", "rcmalli"])
def test_a_wrong_transform_of_the_right_shape_is_caught_by_the_proof(
    origin: keras_check.Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Height and width change places: every shape stays as it is.
    source = files.write_keras(tmp_path / "weights.h5", origin)
    monkeypatch.setattr(convert, "conv", lambda kernel: kernel.permute(3, 2, 1, 0))
    with pytest.raises(CheckpointError, match="does not give what NumPy makes of the file"):
        convert_vgg_face(source, tmp_path / "out", origin=origin)
    assert list(tmp_path.iterdir()) == [source]


def test_the_seeds_scrambling_of_fc6_is_caught_by_the_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scrambled(side: int) -> convert.Transform:
        return lambda kernel: kernel.t().reshape(kernel.shape[1], -1, side, side)

    source = files.write_keras(tmp_path / "weights.h5", "rcmalli")
    monkeypatch.setattr(convert, "dense_map_conv", scrambled)
    with pytest.raises(CheckpointError, match="does not give what NumPy makes of the file"):
        convert_vgg_face(source, tmp_path / "out", origin="rcmalli")
    assert list(tmp_path.iterdir()) == [source]


def test_a_torch_file_is_refused(tmp_path: Path) -> None:
    torch.save(files.SeedVGG("serengil").state_dict(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"holds weights of torch \(\.pt\); wanted those of"):
        convert_vgg_face(tmp_path / "a.pt", tmp_path / "out", origin="serengil")
    assert not (tmp_path / "out").exists()


def test_what_is_there_stays_unless_overwriting_is_asked_for(tmp_path: Path) -> None:
    source = files.write_keras(tmp_path / "weights.h5", "serengil")
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(OutputError, match="out: is there already"):
        convert_vgg_face(source, out, origin="serengil")
    assert out.read_text() == "mine"
    convert_vgg_face(source, out, origin="serengil", overwrite=True)
    checkpoint.load(out, "face_encoder")
    with pytest.raises(OutputError, match="is a folder"):
        convert_vgg_face(source, tmp_path, origin="serengil", overwrite=True)


def test_to_verify_without_tensorflow_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras_check.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match="TensorFlow") as caught:
        convert_vgg_face(tmp_path / "none", tmp_path / "out", origin="serengil", verify=True)
    assert "pip install 's2f[convert]'" in (caught.value.hint or "")


def test_converting_imports_no_tensorflow(tmp_path: Path) -> None:
    source = files.write_keras(tmp_path / "weights.h5", "serengil")
    code = (
        "import sys, published_files as f\n"
        "from pathlib import Path\n"
        "from s2f import face_encoder\n"
        "face_encoder.CONFIGS['paper'] = f.VGG\n"
        "from s2f.convert import convert_vgg_face\n"
        f"convert_vgg_face(Path({str(source)!r}), Path({str(tmp_path / 'o')!r}), "
        "origin='serengil')\n"
        "assert not {'tensorflow', 'keras', 'transformers'} & set(sys.modules)"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": path})


@pytest.mark.slow
@pytest.mark.parametrize("origin", ["serengil", "rcmalli"])
def test_a_full_size_file_is_converted_in_1600_mb(
    origin: keras_check.Origin, tmp_path: Path
) -> None:
    """The time is the benchmark's to judge: a busy machine would fail it here."""
    source, out = benchmark.write(tmp_path / "w.h5", origin), tmp_path / "out"
    command = [sys.executable, "-m", "s2f", "convert", origin, str(source), "-o", str(out), "-q"]
    assert benchmark.peak(command) < benchmark.BOUNDS["MB"]
    assert out.stat().st_size > 4 * 145_002_878
