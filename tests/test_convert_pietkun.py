"""The seed's checkpoints. Oracles: its modules, in our own words, with its names."""

import functools
from pathlib import Path

import conftest
import numpy as np
import published_files as files
import pytest
import torch
from published_files import narrow, needs_transformers, reading_once

from s2f import checkpoint
from s2f.audio import clips, read_speech
from s2f.checkpoint import KINDS, choose
from s2f.convert import AST_FRONT_END, PUBLISHED_SPACE, convert_pietkun
from s2f.errors import CheckpointError, OutputError, S2FError, UsageError
from s2f.images import PREPROCESSING
from s2f.pipeline import SpeechToFace
from s2f.spectrogram import FRONT_ENDS, spectrogram

pytestmark = pytest.mark.usefixtures("narrow", "reading_once")
__all__ = ["narrow", "reading_once"]
assert_close = functools.partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files as the seed's author publishes them."""
    folder = tmp_path_factory.mktemp("published")
    for name, module in (("decoder", files.SeedDecoder()), ("ve", files.SeedVoice())):
        state = files.randomise(module).state_dict()
        files.training_checkpoint(folder / f"{name}.pt", state)
    torch.save(files.randomise(files.SeedVGG("serengil")).state_dict(), folder / "serengil.pt")
    torch.save(files.scrambled_rcmalli(files.keras_weights("rcmalli")), folder / "rcmalli.pt")
    return folder


def network(folder: Path, kind: str) -> torch.nn.Module:
    return checkpoint.load(folder / f"{kind}.safetensors", kind).network


def test_the_decoder_draws_what_the_seeds_draws(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    (made,) = convert_pietkun(out, face_decoder=published / "decoder.pt")
    embedding = torch.rand(3, files.EMBEDDING)
    landmarks, texture = files.randomise(files.SeedDecoder())(embedding)
    found_landmarks, found_texture = network(out, "face_decoder")(embedding)
    assert_close(found_landmarks.flatten(1), landmarks.detach())
    assert_close(found_texture, texture.detach())
    assert max(made.proven.values()) < 1e-5


def test_the_decoders_landmarks_become_the_68(published: Path, tmp_path: Path) -> None:
    # The 72 are the 68 in the order of face_recognition's dictionary (FACTS.md section 8).
    order = [*range(55), 64, 63, 62, 61, 60, *range(54, 60), 48, 60, 67, 66, 65, 64]
    convert_pietkun(tmp_path / "model", face_decoder=published / "decoder.pt")
    decoder = network(tmp_path / "model", "face_decoder")
    points = torch.randn(1, 68, 2)
    torch.testing.assert_close(decoder.landmarks_68(points[:, order]), points)


@pytest.mark.parametrize("frames", [259, 601])
def test_ve_conv_hears_what_the_seeds_hears(published: Path, tmp_path: Path, frames: int) -> None:
    out = tmp_path / "model"
    convert_pietkun(out, face_decoder=published / "decoder.pt", ve_conv=published / "ve.pt")
    back = checkpoint.load(out / "voice_encoder.safetensors", "voice_encoder")
    assert back.front_end == FRONT_ENDS["seed"]
    heard = torch.randn(2, 2, 257, frames)
    expected = files.randomise(files.SeedVoice())(heard).detach()
    assert (expected > 0).any() and (expected == 0).any()  # of the final ReLU
    assert_close(back.network(heard), expected)


@needs_transformers
def test_ast_hears_what_transformers_hears(published: Path, tmp_path: Path) -> None:
    module, out = files.randomise(files.seed_ast()), tmp_path / "model"
    files.training_checkpoint(tmp_path / "ast.pt", module.state_dict())
    convert_pietkun(out, face_decoder=published / "decoder.pt", ast=tmp_path / "ast.pt")
    back = checkpoint.load(out / "voice_encoder.safetensors", "voice_encoder")
    assert back.front_end == AST_FRONT_END
    assert (AST_FRONT_END.mean, AST_FRONT_END.std) == (-5.460994, 3.1129124)
    heard = torch.randn(2, 1, 128, 1024)
    with torch.inference_mode():
        expected = module(heard[:, 0].transpose(1, 2)).logits
        assert_close(back.network(heard), expected)


def test_serengils_encoder_is_the_seeds(published: Path, tmp_path: Path) -> None:
    convert_pietkun(
        tmp_path / "model",
        face_decoder=published / "decoder.pt",
        face_encoder=published / "serengil.pt",
        kind="serengil",
    )
    encoder = network(tmp_path / "model", "face_encoder")
    assert encoder.preprocessing == PREPROCESSING["seed"]
    faces = torch.rand(2, 3, 224, 224)
    assert_close(encoder(faces), files.randomise(files.SeedVGG("serengil"))(faces).detach())


def test_the_scrambled_fc6_of_rcmalli_is_put_right(published: Path, tmp_path: Path) -> None:
    convert_pietkun(
        tmp_path / "model",
        face_decoder=published / "decoder.pt",
        face_encoder=published / "rcmalli.pt",
        kind="rcmalli",
    )
    faces = torch.rand(1, 3, 224, 224)
    found = network(tmp_path / "model", "face_encoder")(faces)
    images = faces.permute(0, 2, 3, 1).numpy()
    right = files.run_keras(files.keras_weights("rcmalli"), images)["embedding"]
    np.testing.assert_allclose(found.numpy(), right, atol=1e-5, rtol=1e-4)
    seeds = files.SeedVGG("rcmalli").eval()
    seeds.load_state_dict(torch.load(published / "rcmalli.pt", weights_only=True))
    assert not torch.allclose(found, seeds(faces), atol=0.1)


@pytest.mark.parametrize("voice", ["ve_conv", pytest.param("ast", marks=needs_transformers)])
def test_the_folder_is_a_model_that_generates(published: Path, tmp_path: Path, voice: str) -> None:
    source = published / "ve.pt"
    if voice == "ast":
        state = files.randomise(files.seed_ast()).state_dict()
        source = files.training_checkpoint(tmp_path / "ast.pt", state)
    convert_pietkun(tmp_path / "model", face_decoder=published / "decoder.pt", **{voice: source})
    speech = conftest.write_speech(tmp_path / "speech.wav", seconds=2)
    kinds = ("voice_encoder", "face_decoder")
    model = SpeechToFace.load(tmp_path / "model", kinds=kinds)
    face = model.generate(speech)
    heard = model.model.checkpoints["voice_encoder"]
    assert heard.front_end is not None
    clip = torch.from_numpy(clips(read_speech(speech).waveform(), heard.front_end.clip_samples))
    embedding = heard.network(spectrogram(clip, heard.front_end))[0]
    landmarks, texture = files.randomise(files.SeedDecoder())(embedding[None])
    pixels = np.asarray(face.image, np.float32) / 255
    expected = texture[0].permute(1, 2, 0).detach().numpy()
    np.testing.assert_allclose(pixels, expected, atol=0.6 / 255)  # unwarped, rounded
    np.testing.assert_allclose(face.landmarks[:48].ravel(), landmarks[0, :96].detach(), atol=1e-4)


def spaces(folder: Path) -> dict[str, str]:
    kinds = [path.stem for path in folder.iterdir()]
    return {k: checkpoint.load(folder / f"{k}.safetensors", k).embedding_space for k in kinds}


def test_all_share_the_space_of_serengils_encoder(published: Path, tmp_path: Path) -> None:
    made = convert_pietkun(
        tmp_path / "model",
        face_decoder=published / "decoder.pt",
        ve_conv=published / "ve.pt",
        face_encoder=published / "serengil.pt",
        kind="serengil",
    )
    found = spaces(tmp_path / "model")
    assert set(found) == set(KINDS)
    assert len(set(found.values())) == 1
    assert found == {converted.kind: converted.embedding_space for converted in made}
    checkpoint.load_model(choose(tmp_path / "model"))


def test_without_the_encoder_the_others_share_a_space_of_their_own(
    published: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    convert_pietkun(out, face_decoder=published / "decoder.pt", ve_conv=published / "ve.pt")
    assert set(spaces(out).values()) == {PUBLISHED_SPACE}


def test_rcmallis_encoder_does_not_pass_for_the_one_the_decoder_was_made_for(
    published: Path, tmp_path: Path
) -> None:
    convert_pietkun(
        tmp_path / "model",
        face_decoder=published / "decoder.pt",
        face_encoder=published / "rcmalli.pt",
        kind="rcmalli",
    )
    with pytest.raises(CheckpointError, match="different embedding spaces"):
        checkpoint.load_model(choose(tmp_path / "model", ("face_encoder", "face_decoder")))


def test_cards_say_where_the_weights_come_from(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    convert_pietkun(out, face_decoder=published / "decoder.pt", ve_conv=published / "ve.pt")
    for kind, name in (("face_decoder", "decoder.pt"), ("voice_encoder", "ve.pt")):
        card = checkpoint.load(out / f"{kind}.safetensors", kind).card
        assert "Kacper-Pietkun/Speech-to-face" in card.description
        assert f"{name}, SHA-256 " in card.data
        assert card.licence


def test_a_wrong_file_leaves_no_folder(published: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"decoder\.pt: has not the layers"):
        convert_pietkun(
            tmp_path / "model",
            face_decoder=published / "decoder.pt",
            ve_conv=published / "decoder.pt",
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"ast": Path("a"), "ve_conv": Path("b")}, "one voice encoder"),
        ({"face_encoder": Path("a")}, "go together"),
        ({"kind": "serengil"}, "go together"),
    ],
)
def test_what_contradicts_itself_is_refused(
    given: dict[str, object], part: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=part):
        convert_pietkun(tmp_path / "model", face_decoder=Path("d"), **given)  # type: ignore[arg-type]


def test_a_model_folder_gives_way_only_if_asked_and_whole(published: Path, tmp_path: Path) -> None:
    out, decoder = tmp_path / "model", published / "decoder.pt"
    convert_pietkun(out, face_decoder=decoder, ve_conv=published / "ve.pt")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for options in ({}, {"overwrite": True, "ve_conv": decoder}):
        with pytest.raises(S2FError):
            convert_pietkun(out, face_decoder=decoder, **options)  # type: ignore[arg-type]
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    convert_pietkun(out, face_decoder=decoder, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["face_decoder.safetensors"]
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_things_never_gives_way(
    published: Path, tmp_path: Path, overwrite: bool
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="is there and is no model folder"):
        convert_pietkun(tmp_path, face_decoder=published / "decoder.pt", overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
