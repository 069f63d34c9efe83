"""Published weights become checkpoints.

Oracles: torch's layers put together as the seed does, transformers; Keras in `test_keras_check`.
"""

import functools
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conftest
import convert as benchmark
import numpy as np
import published_files as files
import pytest
import torch
from foreign_files import write_legacy
from published_files import narrow, needs_transformers, published
from torch import Tensor

from s2f import checkpoint, convert
from s2f.audio import clips, read_speech
from s2f.checkpoint import KINDS, choose
from s2f.convert import (
    PUBLISHED_SPACE,
    VGG16_NAMES,
    convert_pietkun,
    convert_resemblyzer,
    convert_vgg_face,
    prove,
)
from s2f.errors import CheckpointError, OutputError, S2FError, UsageError
from s2f.images import PREPROCESSING
from s2f.pipeline import SpeechToFace
from s2f.spectrogram import FRONT_ENDS, spectrogram

pytestmark = pytest.mark.usefixtures("narrow")
__all__ = ["narrow", "published"]
assert_close = functools.partial(torch.testing.assert_close, atol=1e-5, rtol=1e-4)


def load(folder: Path, kind: str) -> Any:
    return checkpoint.load(folder / f"{kind}.safetensors", kind)


def keras_tensors(origin: str) -> dict[str, Tensor]:
    tensors = {}
    for name, (kernel, bias) in zip(VGG16_NAMES, files.keras_arrays(origin), strict=True):
        tensors |= {f"{name}/kernel": torch.tensor(kernel), f"{name}/bias": torch.tensor(bias)}
    return tensors


CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda t: t.pop("conv3_2/bias"), "it lacks conv3_2/bias"),
    "extra": (lambda t: t.update({"fc9/bias": torch.ones(1)}), "holds fc9/bias beside them"),
    "wider": (
        lambda t: t.update({"fc7/kernel": torch.ones(1, 1, 24, 21)}),
        r"fc7/kernel is torch.float32 \(1, 1, 24, 21\); it cannot become fc7.weight, which is "
        r"torch.float32 \(20, 24, 1, 1\)",
    ),
    "flat": (lambda t: t.update({"fc7/kernel": torch.ones(480)}), r"fc7/kernel is .*\(480,\)"),
    "of the other VGG-Face": (lambda t: t.update(keras_tensors("rcmalli")), "fc6/kernel is"),
    "whole": (lambda t: t.update({"fc8/bias": torch.ones(13, dtype=torch.int64)}), "torch.int64"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_refused_by_name(change: str) -> None:
    tensors = keras_tensors("serengil")
    CHANGES[change][0](tensors)
    made = convert.published_vgg_face("serengil", VGG16_NAMES, PREPROCESSING["seed"])
    with pytest.raises(CheckpointError, match=f"^some.h5: .*{CHANGES[change][1]}"):
        convert.fill(made, "keras", tensors, Path("some.h5"))


def test_a_proof_is_of_every_value() -> None:
    for expected, found, error in (
        ([4.0, -8.0], [4.0, -8.0004], 5e-5),  # relative to the largest value
        ([4.0, -8.0], [4.0, -8.8], 0.1),
        ([0.0, 0.0], [0.0, 0.0], math.inf),  # proves nothing
        ([1.0, math.nan], [1.0, 1.0], math.inf),
        ([1.0], [math.nan], math.inf),
        ([1.0], [1.0, 1.0], math.inf),
    ):
        given = {"a": np.array([expected])}, {"a": torch.tensor([found], dtype=torch.float64)}
        if error < convert.TOLERANCE:
            assert prove(Path("w"), "NumPy", *given) == pytest.approx({"a": error})
            continue
        with pytest.raises(CheckpointError, match=f"w: .* NumPy .* errors a {error:.1e}; wanted"):
            prove(Path("w"), "NumPy", *given)


WRONG_LAYOUTS: Any = [  # of the right shape: height and width change places, or fc6 is C H W
    ("serengil", "", lambda kernel, _: kernel.permute(3, 2, 1, 0)),
    ("rcmalli", "flat map", lambda kernel, shape: kernel.t().reshape(shape)),
]


@pytest.mark.parametrize("k", [0, 1])
def test_wrong_layouts_are_caught(
    published: Path, tmp_path: Path, monkeypatch: Any, k: int
) -> None:
    origin, layout, wrong = WRONG_LAYOUTS[k]
    monkeypatch.setitem(convert.LAYOUTS, ("keras", layout), wrong)
    with pytest.raises(CheckpointError, match="does not give what NumPy makes of the file"):
        convert_vgg_face(published / f"{origin}.h5", tmp_path / "out", origin=origin)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "a.strange.one."]
)
def test_what_all_names_begin_with_is_taken_off_and_said(
    published: Path, tmp_path: Path, prefix: str
) -> None:
    """Wrapped and prefixed, the same decoder comes of it, to the bit."""
    state = files.randomise(files.SeedDecoder()).state_dict()
    torch.save({"model": {f"{prefix}{k}": v for k, v in state.items()}}, tmp_path / "w.pt")
    (made,) = convert_pietkun(tmp_path / "model", face_decoder=tmp_path / "w.pt")
    said = f"all names begin with {prefix!r}, which was taken off"
    assert made.remarks == ("the weights lie under 'model'", said)
    (plain,) = convert_pietkun(tmp_path / "plain", face_decoder=published / "decoder.pt")
    assert plain.remarks == ("the weights lie under 'model_state_dict'",)
    sha256 = {checkpoint.verify(converted.path).sha256 for converted in (made, plain)}
    assert len(sha256) == 1


def test_a_model_within_a_model_is_read(published: Path, tmp_path: Path) -> None:
    """Of Keras: all layers are one layer's."""
    layers: dict[str, Any] = {}
    for name, (kernel, bias) in zip(VGG16_NAMES, files.keras_arrays("rcmalli"), strict=True):
        layers |= {f"{name}/kernel:0": kernel, f"{name}/bias:0": bias}
    write_legacy(tmp_path / "w.h5", {"vgg": layers}, backend=b"tensorflow")
    made = convert_vgg_face(tmp_path / "w.h5", tmp_path / "out", origin="rcmalli")
    assert made.remarks == ("all names begin with 'vgg/', which was taken off",)


def test_channels_first_are_named(tmp_path: Path) -> None:
    """Kernels out in h w, of a file that does not say so."""
    layers: dict[str, Any] = {}
    for name, (kernel, bias) in zip(VGG16_NAMES, files.keras_arrays("rcmalli"), strict=True):
        first = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel
        layers[name] = {f"{name}_W": first, f"{name}_b": bias}
    path = write_legacy(tmp_path / "rcmalli_vggface_th_vgg16.h5", layers)
    with pytest.raises(CheckpointError, match=r"conv1_1/kernel has its channels first") as caught:
        convert_vgg_face(path, tmp_path / "out", origin="rcmalli")
    assert "tf in its name" in str(caught.value.hint)


@pytest.mark.parametrize("how", ["itself", "other spelling", "symlink", "hard link"])
def test_the_source_is_never_the_output(
    published: Path, tmp_path: Path, monkeypatch: Any, how: str
) -> None:
    """Not even if it may be replaced."""
    monkeypatch.chdir(tmp_path)
    source = Path(shutil.copy(published / "rcmalli.h5", tmp_path / "face_encoder.safetensors"))
    before, out = source.read_bytes(), tmp_path / "out"
    if how == "symlink":
        out.symlink_to(source)
    elif how == "hard link":
        out.hardlink_to(source)
    else:
        out = source if how == "itself" else Path("../") / tmp_path.name / source.name
    with pytest.raises(OutputError, match="is the source"):
        convert_vgg_face(source, out, origin="rcmalli", overwrite=True)
    folder = tmp_path / "model"
    folder.mkdir()
    inside = folder / "face_decoder.safetensors"
    source.replace(inside)
    given = Path("linked") if how == "symlink" else inside
    if how == "symlink":
        given.symlink_to(inside)
    with pytest.raises(OutputError, match="is the source"):
        convert_pietkun(folder, face_decoder=given, overwrite=True)
    assert inside.read_bytes() == before


@pytest.mark.parametrize(("origin", "prepared"), [("serengil", "seed"), ("rcmalli", None)])
def test_a_keras_file_is_converted(
    published: Path, tmp_path: Path, origin: Any, prepared: str | None
) -> None:
    source, out = published / f"{origin}.h5", tmp_path / "out"
    made = convert_vgg_face(source, out, origin=origin, preprocessing=prepared)
    assert max(made.proven.values()) < 1e-5
    assert made.verified is None
    back: Any = checkpoint.load(out, "face_encoder")
    assert back.embedding_space == made.embedding_space
    assert back.network.preprocessing == PREPROCESSING[prepared or origin]
    assert f"github.com/{origin}/" in back.card.description
    assert "academic origin" in back.card.licence
    assert f"{origin}.h5, SHA-256 " in back.card.data
    faces = torch.rand(2, 3, 32, 32)
    expected = files.seed_vgg()[:15](back.network.preprocess(faces)).flatten(1)
    assert_close(back.network(faces), expected, atol=1e-4 * expected.max().item())


@pytest.mark.slow
def test_a_full_size_file_is_converted_in_1600_mb(tmp_path: Path) -> None:
    """The time is the benchmark's to judge: a busy machine would fail it here."""
    source, out = benchmark.write(tmp_path / "w.h5", "serengil"), tmp_path / "out"
    command = [sys.executable, "-m", "s2f", "convert", "serengil", str(source), "-o", str(out)]
    assert benchmark.peak([*command, "-q"]) < benchmark.BOUNDS["MB"]
    assert out.stat().st_size > 4 * 145_002_878


def test_what_is_there_stays_unless_it_may_be_replaced(published: Path, tmp_path: Path) -> None:
    source, out = published / "serengil.h5", tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(OutputError, match="out: is there already"):
        convert_vgg_face(source, out, origin="serengil")
    assert out.read_text() == "mine"
    assert convert_vgg_face(source, out, origin="serengil", overwrite=True).path == out
    with pytest.raises(OutputError, match="is a folder"):
        convert_vgg_face(source, tmp_path, origin="serengil", overwrite=True)


def convert_all(published: Path, out: Path, origin: Any = None) -> Path:
    """Convert decoder, VE_conv and, if an origin is given, that VGG-Face."""
    encoder = origin and published / f"{origin}.pt"
    networks = {"face_decoder": published / "decoder.pt", "ve_conv": published / "ve.pt"}
    made = convert_pietkun(out, face_encoder=encoder, kind=origin, **networks)
    assert all(max(converted.proven.values()) < 1e-5 for converted in made)
    return out


@pytest.fixture(scope="module")
def model(narrow: None, published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoder and VE_conv, converted. Not to be changed."""
    return convert_all(published, tmp_path_factory.mktemp("converted") / "model")


def test_the_decoder_draws_what_the_seeds_draws(model: Path) -> None:
    embedding = torch.rand(3, files.EMBEDDING)
    decoder, seeds = load(model, "face_decoder").network, files.randomise(files.SeedDecoder())
    for found, expected in zip(decoder(embedding), seeds(embedding), strict=True):
        assert_close(found, expected.view(found.shape))
    # The 72 are the 68 in the order of face_recognition's dictionary.
    order = [*range(55), 64, 63, 62, 61, 60, *range(54, 60), 48, 60, 67, 66, 65, 64]
    points = torch.randn(1, 68, 2)
    assert_close(decoder.landmarks_68(points[:, order]), points)
    for kind, name in (("face_decoder", "decoder.pt"), ("voice_encoder", "ve.pt")):
        back = load(model, kind)
        assert "Kacper-Pietkun/Speech-to-face" in back.card.description and back.card.licence
        assert f"{name}, SHA-256 " in back.card.data
        assert back.embedding_space == PUBLISHED_SPACE


@pytest.mark.parametrize("frames", [259, 601])
def test_ve_conv_hears_what_the_seeds_hears(model: Path, frames: int) -> None:
    back = load(model, "voice_encoder")
    assert back.front_end == FRONT_ENDS["seed"]
    heard = torch.randn(2, 2, 257, frames)
    expected = files.seed_voice()(heard)
    assert (expected > 0).any() and (expected == 0).any()  # of the final ReLU
    assert_close(back.network(heard), expected)


@needs_transformers
def test_ast_hears_what_transformers_hears(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    convert_pietkun(out, face_decoder=published / "decoder.pt", ast=published / "ast.pt")
    back = load(out, "voice_encoder")
    assert back.front_end == convert.AST_FRONT_END
    assert (back.front_end.mean, back.front_end.std) == (-5.460994, 3.1129124)
    heard = torch.randn(1, 1, 128, 1024)
    with torch.inference_mode():
        assert_close(back.network(heard), files.seed_ast()(heard[:, 0].transpose(1, 2)).logits)


@pytest.mark.parametrize("origin", ["serengil", "rcmalli"])
def test_only_serengils_encoder_has_the_others_space(
    published: Path, tmp_path: Path, origin: str
) -> None:
    """rcmalli's was scrambled: it gives what its weights gave in Keras, and not what the seed's."""
    folder = convert_all(published, tmp_path / "model", origin)
    encoder, faces = load(folder, "face_encoder").network, torch.rand(2, 3, 32, 32)
    assert encoder.preprocessing == PREPROCESSING["seed"]
    assert_close(encoder(faces), files.seed_vgg()[:15](faces).flatten(1))
    spaces = {load(folder, kind).embedding_space for kind in KINDS}
    if origin == "serengil":
        assert len(spaces) == 1 and PUBLISHED_SPACE not in spaces
        checkpoint.load_model(choose(folder))
    else:
        assert len(spaces) == 2 and PUBLISHED_SPACE in spaces
        with pytest.raises(CheckpointError, match="different embedding spaces"):
            checkpoint.load_model(choose(folder, ("face_encoder", "face_decoder")))


def test_the_folder_is_a_model_that_generates(model: Path, tmp_path: Path) -> None:
    speech = conftest.write_speech(tmp_path / "speech.wav", seconds=2)
    face = SpeechToFace.load(model, kinds=("voice_encoder", "face_decoder")).generate(speech)
    heard = load(model, "voice_encoder")
    clip = torch.from_numpy(np.stack(clips(read_speech(speech), heard.front_end.clip_samples)))
    embedding = heard.network(spectrogram(clip, heard.front_end))[0]
    landmarks, texture = files.randomise(files.SeedDecoder())(embedding[None])
    pixels = np.asarray(face.image, np.float32) / 255
    expected = texture[0].permute(1, 2, 0).detach().numpy()
    np.testing.assert_allclose(pixels, expected, atol=0.6 / 255)  # unwarped, rounded
    np.testing.assert_allclose(face.landmarks[:48].ravel(), landmarks[0, :96].detach(), atol=1e-4)


@pytest.mark.parametrize("given", [("ast", "ve_conv"), ("face_encoder",), ("kind",)])
def test_what_contradicts_itself_is_refused(given: tuple[str, ...], tmp_path: Path) -> None:
    options: Any = dict.fromkeys(given, Path("serengil"))
    with pytest.raises(UsageError, match=r"one voice encoder|go together"):
        convert_pietkun(tmp_path / "model", face_decoder=Path("d"), **options)


def test_a_model_folder_gives_way_only_if_asked_and_whole(published: Path, tmp_path: Path) -> None:
    decoder, out = published / "decoder.pt", convert_all(published, tmp_path / "model")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    options: Any
    for options in ({}, {"overwrite": True, "ve_conv": decoder}):
        with pytest.raises(S2FError, match=r"is there already|decoder\.pt: has not the layers"):
            convert_pietkun(out, face_decoder=decoder, **options)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    convert_pietkun(out, face_decoder=decoder, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["face_decoder.safetensors"]
    assert list(tmp_path.iterdir()) == [out]
    (out / "thesis.txt").write_text("mine")  # such a folder never does
    with pytest.raises(OutputError, match="is there and is no model folder"):
        convert_pietkun(out, face_decoder=decoder, overwrite=True)


# Resemblyzer's speaker encoder


def test_a_speaker_encoder_gives_the_d_vectors_of_what_was_published(
    published: Path, tmp_path: Path
) -> None:
    """Of torch's layers put together as theirs: the mean of the windows', of length 1."""
    out = tmp_path / "speaker.safetensors"
    made = convert_resemblyzer(published / "pretrained.pt", out)
    assert (made.path, made.kind) == (out, "voice_encoder")
    assert set(made.proven) == {"windows", "embedding"}
    assert made.remarks == (
        "the weights lie under 'model_state'",
        "similarity_weight and similarity_bias were of its training, and are left out",
    )
    network = files.randomise(files.Resemblyzers())
    heard = spectrogram(torch.rand(2, 60_000) - 0.5, FRONT_ENDS["speaker"])  # 391 frames: 4 windows
    starts = (0, 77, 154, 231)
    each = [network(heard[:, 0, :, start : start + 160].transpose(1, 2)) for start in starts]
    mean = torch.stack(each).mean(0)
    back = checkpoint.load(out, "voice_encoder")
    assert_close(back.network(heard), mean / mean.norm(dim=1, keepdim=True))
    assert back.front_end == FRONT_ENDS["speaker"]
    assert "Apache-2.0" in back.card.licence and "pretrained.pt, SHA-256" in back.card.data
    assert all(name in back.card.data for name in ("LibriSpeech-other", "VoxCeleb1", "VoxCeleb2"))
    assert checkpoint.verify(out).embedding == 12
    decoder = tmp_path / "model"
    convert_pietkun(decoder, face_decoder=published / "decoder.pt")
    spaces = [checkpoint.verify(out), checkpoint.verify(decoder / "face_decoder.safetensors")]
    with pytest.raises(CheckpointError, match="of different embedding spaces"):
        checkpoint.check_space(spaces)


SPEAKER_CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda t: t.pop("lstm.bias_hh_l1"), "it lacks lstm.bias_hh_l1"),
    "more layers": (
        lambda t: t.update({"lstm.bias_hh_l2": torch.ones(48)}),
        "holds lstm.bias_hh_l2 beside them",
    ),
    "narrower": (lambda t: t.update({"linear.bias": torch.ones(8)}), r"linear.bias is .*\(8,\)"),
    "dead": (lambda t: t["linear.bias"].fill_(-100), "does not give what NumPy makes of the file"),
}


@pytest.mark.parametrize("change", SPEAKER_CHANGES)
def test_what_is_no_speaker_encoder_is_refused_by_name(tmp_path: Path, change: str) -> None:
    """Among them one whose d-vectors are all 0 before they get a length."""
    state = files.randomise(files.Resemblyzers()).state_dict()
    SPEAKER_CHANGES[change][0](state)
    files.write_pretrained(tmp_path / "p.pt", state)
    with pytest.raises(CheckpointError, match=f"p.pt: .*{SPEAKER_CHANGES[change][1]}"):
        convert_resemblyzer(tmp_path / "p.pt", tmp_path / "out")
    assert [*tmp_path.iterdir()] == [tmp_path / "p.pt"]


def test_the_output_of_a_speaker_encoder_is_a_new_file(published: Path, tmp_path: Path) -> None:
    source = tmp_path / "pretrained.pt"
    shutil.copy(published / "pretrained.pt", source)
    for out, why in ((tmp_path, "is a folder"), (source, "is the source")):
        with pytest.raises(OutputError, match=why):
            convert_resemblyzer(source, out, overwrite=True)
    (tmp_path / "there").touch()
    with pytest.raises(OutputError, match="is there already"):
        convert_resemblyzer(source, tmp_path / "there")
    with pytest.raises(CheckpointError, match="of Keras"):
        convert_resemblyzer(published / "serengil.h5", tmp_path / "out")
