"""Keras weights of VGG-Face become a checkpoint: `s2f convert serengil` and `rcmalli`.

foreign file -> `foreign` -> `weight_tables` -> network -> `proof`, and Keras itself -> checkpoint

A check that fails leaves an error and no file.
"""

from pathlib import Path

from s2f import conversion, face_encoder, keras_network, proof, published, weight_tables, workers
from s2f.checkpoint import save
from s2f.conversion import Converted
from s2f.errors import CheckpointError, OutputError, S2FError
from s2f.keras_network import Origin
from s2f.runtime import Progress, silent


def convert_vgg_face(
    source: Path,
    out: Path,
    *,
    origin: Origin,
    preprocessing: str | None = None,
    verify: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Converted:
    """Convert the Keras weights of a VGG-Face.

    Args:
        source: the file, in legacy HDF5 or Keras 3's.
        out: the checkpoint.
        origin: `serengil` (deepface) or `rcmalli` (keras-vggface).
        preprocessing: a name in `face_encoder.PREPROCESSING`; by default the origin's.
        verify: whether to compare with Keras itself too.
        overwrite: whether `out` is replaced if it is there.
        progress: told what happens.

    Raises:
        CheckpointError: if the file is not of such weights, or the proof fails.
        DependencyError: if `verify` is given and TensorFlow is not installed.
        OutputError: if `out` is there already or cannot be written.
    """
    if verify:
        keras_network.require()
    if out.is_dir() or (out.exists() and not overwrite):
        raise _is_there(out)
    steps = 4 + verify
    progress(0, steps, "reading")
    weights = conversion.read(source, "keras")
    progress(1, steps, "converting")
    network = conversion.empty_vgg_face(preprocessing or origin)
    layers = weight_tables.keras_layers(origin, weights.order)
    table = weight_tables.keras_vgg(origin, layers, network.config)
    weight_tables.fill(network, table, weights.tensors, str(source))
    progress(2, steps, "proving")
    faces, arrays = conversion.some_faces(network, 1), conversion.arrays(weights)
    pairs = [(arrays[f"{name}/kernel"], arrays[f"{name}/bias"]) for name in layers]
    expected = proof.vgg(pairs, conversion.prepared(network, faces))
    del weights, arrays, pairs  # before torch, too, needs memory of its own
    found = conversion.vgg_face_taps(network, faces)
    proven = conversion.prove(source, "NumPy", expected, found)
    verified = None
    if verify:
        progress(3, steps, "verifying with Keras")
        verified = _verify(source, origin, network)
    progress(steps - 1, steps, "writing")
    space = save(out, network, card=conversion.card(published.FACE_ENCODERS[origin], source))
    return Converted(out, source, "face_encoder", space, proven, verified)


def _verify(source: Path, origin: Origin, network: face_encoder.VGGFace) -> dict[str, float]:
    """Ask Keras, in a process of its own, what it makes of the same file and images."""
    config = network.config
    heads = config.hidden, config.embedding, config.identities
    shape = keras_network.Shape(config.layers, config.image_size, heads)
    faces = conversion.some_faces(network, 2)
    found = conversion.vgg_face_taps(network, faces)
    item = (source, origin, shape, conversion.prepared(network, faces))
    for _, expected in workers.run(keras_network.taps, [item], workers=1):
        if isinstance(expected, S2FError):
            raise CheckpointError(expected.message, hint=expected.hint) from expected
        return conversion.prove(source, "Keras", expected, found)
    raise AssertionError("one item gives one result")


def _is_there(out: Path) -> OutputError:
    if out.is_dir():
        return OutputError(f"{out}: is a folder", hint="name the file to write with -o")
    return OutputError(
        f"{out}: is there already", hint="give --overwrite to replace it, or another name"
    )
