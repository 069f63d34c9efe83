"""What is published: what the cards of converted weights say of where they come from.

Only what is known of the weights that people can download. A file is converted for its layers,
whoever made it: its name and hash are in the card beside these.
"""

from typing import Any

_VGG_FACE_LICENCE = (
    "Not stated in the file. VGG-Face is of academic origin, for non-commercial research; the "
    "licence of the repository that the file is published in does not change that."
)
_PIETKUN_LICENCE = "Not stated in the file: ask its authors before any use beyond research."
_PIETKUN_LIMITS = (
    "Trained with embeddings of serengil's VGG-Face on RGB 0..1, squashed: other face encoders, "
    "and this one with other preprocessing, do not fit. Not for recognising anyone."
)
_PIETKUN = "As published with https://github.com/Kacper-Pietkun/Speech-to-face"

FACE_ENCODERS: dict[str, dict[str, Any]] = {
    "serengil": {
        "name": "VGG-Face (serengil/deepface)",
        "description": (
            "As published at https://github.com/serengil/deepface_models/releases/download/v1.0/"
            "vgg_face_weights.h5"
        ),
        "licence": _VGG_FACE_LICENCE,
    },
    "rcmalli": {
        "name": "VGG-Face (rcmalli/keras-vggface)",
        "description": (
            "As published at https://github.com/rcmalli/keras-vggface/releases/download/v2.0/"
            "rcmalli_vggface_tf_vgg16.h5, itself converted from Caffe"
        ),
        "licence": _VGG_FACE_LICENCE,
    },
}
PIETKUN: dict[str, dict[str, Any]] = {
    "face_decoder": {
        "name": "face decoder (Kacper-Pietkun/Speech-to-face)",
        "description": f"{_PIETKUN}; its texture is the face itself, unwarped",
        "licence": _PIETKUN_LICENCE,
        "limits": _PIETKUN_LIMITS,
    },
    "ve_conv": {
        "name": "VE_conv (Kacper-Pietkun/Speech-to-face)",
        "description": f"{_PIETKUN}: the convolutional voice encoder",
        "licence": _PIETKUN_LICENCE,
        "limits": _PIETKUN_LIMITS,
    },
    "ast": {
        "name": "AST (Kacper-Pietkun/Speech-to-face)",
        "description": f"{_PIETKUN}: a fine-tuned MIT/ast-finetuned-audioset-10-10-0.4593",
        "licence": _PIETKUN_LICENCE,
        "limits": _PIETKUN_LIMITS,
    },
}
