"""What the cards of the demo's training data say, and with them those of the bundled model.

Where the data come from, under which licence, what the networks that learn from them can do and
what they must not be used for.
"""

_LICENCE = (
    "CC BY 4.0 for what is derived from the data: Face Research Lab London Set (DeBruine and "
    "Jones 2017, doi 10.6084/m9.figshare.5047666); LibriSpeech (Panayotov et al. 2015, "
    "openslr.org/12). The program is MIT."
)
FACES_CARD = {
    "description": "Drawn from and to registered faces; 20 % of the people kept out of training.",
    "data": (
        "84 photographed adults of the Face Research Lab London Set, framed, neutral and "
        "smiling, and synthetic mixes of them (shape and texture mixed apart within a sex)."
    ),
    "licence": _LICENCE,
    "limits": (
        "Frontal, well-lit, framed adult faces before a plain wall. Hair that leaves the head's "
        "outline, glasses, beards beyond stubble and jewellery are not drawn. Faces far from the "
        "84 are drawn as their nearest mixes. Not for recognising anyone."
    ),
}
VOICES_CARD = {
    "description": (
        "A demonstration of the pipeline. Voices and faces belong to different people: a voice "
        "was given a face of its sex, as masculine among those as its pitch is low. Which of "
        "these faces it was, skin, hair and features, follows timbre by an arbitrary rule."
    ),
    "data": (
        "Voices: 220 readers of LibriSpeech train-clean-100, 14 s each, 20 % of them kept out. "
        "Faces: mixes of the Face Research Lab London Set."
    ),
    "licence": _LICENCE,
    "limits": (
        "Knows sex and pitch, and nothing else about anyone: not age, not origin, not looks. "
        "Read English speech of adults. A deep female voice may show a man and a high male voice "
        "a woman; children, singing, shouting and music show anything. It must not be used to "
        "identify, profile or judge a person."
    ),
}
