"""From two folders of anything to a tree that every command reads."""

import numpy as np
import pytest
from command_line import Done
from conftest import noise, some_landmarks, write_photo

from s2f import layout

TRAINING = ["--steps", "1", "--batch-size", "2", "--every", "1", "--device", "cpu"]


@pytest.mark.slow
@pytest.mark.usefixtures("bundled", "presets")
def test_what_pair_and_split_make_is_read_by_every_command(models, tmp_path):
    """One tree; nothing is split a second time."""
    faces, voices, pairs, tree = (tmp_path / name for name in ("f", "v", "pairs", "split"))
    for k in range(8):
        stem = write_photo(faces / f"p{k}" / "1.jpg", seed=k).with_suffix("")
        np.save(layout.beside(stem, layout.LANDMARKS), some_landmarks(k))
        (voices / f"p{k}").mkdir(parents=True)
        np.save(voices / f"p{k}" / "1.npy", noise(1, seed=k))
    assert Done("prep", "pair", "--faces", faces, "--voices", voices, pairs).code == 0
    assert Done("prep", "split", pairs, tree, "--train", 0.5).code == 0
    model = models / "demo"
    encoder = ["--face-encoder", model / "face_encoder.safetensors"]
    decoder = ["--face-decoder", model / "face_decoder.safetensors"]
    assert Done("prep", "embeddings", tree, tree, *encoder, "--workers", 1).code == 0
    commands = {
        "encoder": ["train", "encoder", tree],
        "decoder": ["train", "decoder", tree, *encoder],
        "voice": ["train", "voice", tree, *encoder, *decoder],
        "packed": ["train", "voice", tmp_path / "pack", *encoder, *decoder],
    }
    packing = ["prep", "pack", tree, tmp_path / "pack", *encoder, "--clip-seconds", 1]
    assert Done(*packing, "--workers", 1, "--json").json["embeddings"] == 8
    for name, command in commands.items():
        run = tmp_path / name
        done = Done(*command, *TRAINING, "-o", run)
        assert (done.code, done.out) == (0, f"{run / 'best.safetensors'}\n"), done.err
    report = ["evaluate", tree, "--model", model, "-o", tmp_path / "report", "--device", "cpu"]
    assert Done(*report, "--protocol", "ours").code == 0
    marked = Done("prep", "stats", tree / "train", "-o", tmp_path / "stats.json", "--json").json
    assert marked["made"] == 4


def test_faces_are_embeddings_of_either_name_in_training_and_in_a_pack(models, tmp_path):
    """`NAME.npy`, embeddings without a photo, and of both the one that says what it is."""
    tree, encoder = tmp_path / "tree", models / "demo/face_encoder.safetensors"
    rows = np.eye(8, dtype=np.float32)
    for split in ("train", "val"):
        for k, name in enumerate(("1.npy", "1_embedding.npy")):
            images = tree / split / f"p{k}" / "images"
            for folder in (images, images.parent / "audios"):
                folder.mkdir(parents=True)
            np.save(images.parent / "audios" / "1.npy", noise(1, seed=k))
            np.save(images / name, rows[k])
        np.save(images / "1.npy", rows[7])  # of p1, who has the other
    packing = ["prep", "pack", tree, tmp_path / "pack", "--face-encoder", encoder]
    done = Done(*packing, "--clip-seconds", 1, "--workers", 1)
    assert "4 identities, 4 clips, 4 embeddings; passed over: 2 (.npy 2)\n" in done.err
    assert "4 embeddings without a photo: nothing tells who made them" in done.err
    (shard,) = (tmp_path / "pack/train").glob("embeddings*.npy")
    np.testing.assert_array_equal(np.load(shard), rows[:2])
    (one, two), _ = layout.speakers(tree / "train")
    found = [face.embedding for who in (one, two) for face in who.faces]
    assert found == ["p0/images/1.npy", "p1/images/1_embedding.npy"]
    write_photo(tree / "train/p0/images/1.jpg")  # whose embedding is another
    done = Done(*packing, "--clip-seconds", 1, "--overwrite", "--workers", 1)
    assert done.code == 0  # of the same files: nothing is due
    np.save(tree / "train/p0/images/1.npy", rows[3])
    done = Done(*packing, "--clip-seconds", 1, "--overwrite", "--workers", 1)
    assert done.code == 4 and "is not what" in done.err


def test_photos_lie_in_the_folder_of_a_person_or_in_images(tmp_path):
    for name in ("1", "images/1", "images/video/2"):
        stem = write_photo(tmp_path / "ann" / f"{name}.jpg").with_suffix("")
        np.save(layout.beside(stem, layout.LANDMARKS), some_landmarks())
    write_photo(tmp_path / "ann/images/3.jpg")
    write_photo(tmp_path / "ann/audios/4.jpg")  # a cover, and no photo of the tree
    found = [
        photo.path.relative_to(tmp_path / "ann").as_posix() for photo in layout.photos(tmp_path)
    ]
    assert found == ["1.jpg", "images/1.jpg", "images/3.jpg", "images/video/2.jpg"]
    targets = [photo.target.relative_to(tmp_path / "ann") for photo in layout.photos(tmp_path)]
    assert [str(target) for target in targets] == ["1", "images/1", "1", "images/video/2"]
