"""How pictures are made ready for the face encoders: a property of their weights."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Preprocessing:
    """How a picture is made ready for one set of weights.

    Attributes:
        channels: order in which the network reads colours.
        scale: the value that 1.0 (white) becomes.
        mean: taken away after scaling, in the network's channel order.
        fit: `squash` resizes both sides to the input size; `letterbox` keeps the proportions
            and fills with black. Only `images` looks at this.
    """

    channels: Literal["RGB", "BGR"] = "RGB"
    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    fit: Literal["squash", "letterbox"] = "squash"


PREPROCESSING: dict[str, Preprocessing] = {
    # serengil/deepface, modules/preprocessing.py: "base" normalisation
    "serengil": Preprocessing(channels="BGR", fit="letterbox"),
    # rcmalli/keras-vggface, utils.py: version 1
    "rcmalli": Preprocessing(channels="BGR", scale=255.0, mean=(93.5940, 104.7624, 129.1863)),
    # what the seed fed both of them, and its published decoder was trained with
    "seed": Preprocessing(),
    # for training VGG-Face from scratch: rcmalli's figures in the order of our pictures
    "paper": Preprocessing(scale=255.0, mean=(129.1863, 104.7624, 93.5940)),
    "compact": Preprocessing(),
}
