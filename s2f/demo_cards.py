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
    "description": (
        "Landmarks are found, the photo is registered to the mean shape and its parts are read "
        "and drawn window by window, by the axes along which the registered faces of training "
        "vary; what smiles change is taken off. 20 % of the people were kept out of training."
    ),
    "data": (
        "84 photographed adults of the Face Research Lab London Set, framed, neutral and "
        "smiling, and synthetic people with the skin and hair of one of them, or a mix, in "
        "shapes mixed of 2 to 4 of a sex."
    ),
    "licence": _LICENCE,
    "limits": (
        "Frontal, well-lit, framed adult faces before a plain wall, of few ages and origins: "
        "others are drawn less well. Hair that leaves the head's outline is cut off, heads with "
        "less hair than most get a bright rim; glasses, beards beyond stubble, wrinkles and "
        "jewellery are drawn faintly or not at all. It looks like the person in the photo, and is "
        "not for recognising anyone."
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
        "Faces: mixes of the Face Research Lab London Set, a little more womanly or manly than "
        "its people."
    ),
    "licence": _LICENCE,
    "limits": (
        "Knows sex and pitch, and nothing else about anyone: not age, not origin, not looks. "
        "Read English speech of adults. A deep female voice may show a man and a high male voice "
        "a woman; children, singing, shouting and music show anything. It must not be used to "
        "identify, profile or judge a person."
    ),
}
