"""The speaker encoder: a pretrained network that tells speakers apart, and a head to the face.

Windows of a mel spectrogram become d-vectors, whose mean a small head turns into the embedding of a
face. Whose weights the network starts from is not known here: `convert` reads those of Resemblyzer.

Source: Wan et al. 2018, "Generalized end-to-end loss for speaker verification"; the sizes, the
windows and the ReLU are those of Resemblyzer.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from s2f.spectrogram import N_BANDS, WINDOW_FRAMES, WINDOW_STEP
from s2f.voice_encoder import drop_out


@dataclass(frozen=True)
class SpeakerEncoderConfig:
    """The shape of a speaker encoder. The defaults are Resemblyzer's, with a linear head."""

    n_freqs: int = N_BANDS  # mel bands of the spectrogram
    layers: int = 3  # of the LSTM
    width: int = 256  # of each, and of a d-vector
    hidden: int = 0  # width of the head's hidden layer, with a ReLU; 0: the head is linear
    dropout: float = 0.0  # of the hidden layer's outputs, in training
    embedding: int = 256  # its values
    final_relu: bool = False  # whether the embedding ends in a ReLU
    architecture: Literal["speaker"] = "speaker"  # what no `VoiceEncoderConfig` has

    def __post_init__(self) -> None:
        if min(self.n_freqs, self.layers, self.width, self.embedding) < 1 or self.hidden < 0:
            raise ValueError(f"bands, layers, width and embedding want 1 or more: {self}")
        if not 0 <= self.dropout < 1 or (self.dropout and not self.hidden):
            raise ValueError(f"dropout is {self.dropout}, of {self.hidden} hidden values")

    @property
    def in_channels(self) -> int:
        """Channels of the spectrogram."""
        return 1

    @property
    def min_frames(self) -> int:
        """The fewest frames of a spectrogram: one window."""
        return WINDOW_FRAMES

    def check_frames(self, frames: int) -> None:
        """Raise a `ValueError` if a spectrogram of so many frames is too short."""
        if frames < self.min_frames:
            raise ValueError(f"{frames} frames are too few: this encoder needs {self.min_frames}")


CONFIGS = {"resemblyzer": SpeakerEncoderConfig()}


class SpeakerEncoder(nn.Module):
    """Spectrogram [b 1 f t] of the front end `speaker`, t >= 160, to embedding [b d]."""

    def __init__(self, config: SpeakerEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.lstm = nn.LSTM(config.n_freqs, config.width, config.layers, batch_first=True)
        self.linear = nn.Linear(config.width, config.width)
        hidden = nn.Linear(config.width, config.hidden) if config.hidden else None
        self.hidden: nn.Linear | None = hidden
        self.dropout = nn.Dropout(config.dropout)
        self.embedding = nn.Linear(config.hidden or config.width, config.embedding)

    def forward(self, spectrogram: Tensor, chances: Tensor | None = None) -> Tensor:
        """Embed spectrograms, or raise a `ValueError` if they are too short.

        `chances` are as for `VoiceEncoder`, of a head that has a hidden layer.
        """
        return self.from_features(self.features(spectrogram), chances)

    def d_vectors(self, spectrogram: Tensor) -> Tensor:
        """Tell speakers apart: [b width], not negative, of length 1.

        The mean of the d-vectors of windows of 160 frames, one every 77; a rest is left out. All in
        float32, under autocast too: power has more range than half precision.
        """
        self.config.check_frames(spectrogram.shape[-1])
        windows = spectrogram.squeeze(1).unfold(2, WINDOW_FRAMES, WINDOW_STEP)  # [b f k 160]
        b, f, k, t = windows.shape
        with torch.autocast(spectrogram.device.type, enabled=False):
            rows = windows.permute(0, 2, 3, 1).reshape(b * k, t, f)
            _, (state, _) = self.lstm(rows)
            each = functional.normalize(self.linear(state[-1]).relu(), dim=1)
            return functional.normalize(each.view(b, k, -1).mean(dim=1), dim=1)

    def features(self, spectrogram: Tensor) -> Tensor:
        """The d-vectors, of a mean square of 1: what the head sees."""
        return self.d_vectors(spectrogram) * math.sqrt(self.config.width)

    def from_features(self, features: Tensor, chances: Tensor | None = None) -> Tensor:
        """Embed what `features` gives: the head."""
        x = features
        if self.hidden is not None:
            x = drop_out(self.hidden(x).relu(), self.dropout, chances)
        embedding: Tensor = self.embedding(x)
        return embedding.relu() if self.config.final_relu else embedding

    def head(self) -> list[nn.Parameter]:
        """Parameters of the head."""
        hidden = () if self.hidden is None else self.hidden.parameters()
        return [*hidden, *self.embedding.parameters()]

    def body(self, last: int) -> list[nn.Parameter]:
        """Parameters of the last layers of the LSTM and of what follows them; with 0, none."""
        first = self.config.layers - last
        lstm = [
            parameter
            for name, parameter in self.lstm.named_parameters()  # as weight_ih_l0
            if int(name.rpartition("_l")[2]) >= first
        ]
        return [*lstm, *self.linear.parameters()] if last else []

    def begin(self, body: dict[str, Tensor]) -> None:
        """Take the weights of another's body, `body_of` it; the head stays as it is."""
        self.load_state_dict(self.state_dict() | body)


# What an `AttributeEncoder` says of a voice: how likely it is a man's, how likely it is a voice and
# no music or noise, and the median of its pitch.
ATTRIBUTES = ("male", "voice", "pitch_hz")


@dataclass(frozen=True)
class AttributeEncoderConfig:
    """The shape of an encoder by attributes; the first four are the speaker encoder's."""

    n_freqs: int = N_BANDS
    layers: int = 3
    width: int = 256
    frames: int = 100  # of a window
    # Frames between the beginnings of two. If they leave sound out, where a pause was cut out of
    # a recording decides what is heard, and its face is another's.
    step: int = WINDOW_STEP
    timbre: int = 8  # axes of timbre
    hidden: int = 128  # values between the attributes and the embedding, for either sex
    embedding: int = 1024
    architecture: Literal["attributes"] = "attributes"

    in_channels: ClassVar[int] = 1
    final_relu: ClassVar[bool] = False

    def __post_init__(self) -> None:
        sizes = (self.n_freqs, self.layers, self.width, self.frames, self.step, self.timbre)
        if min(*sizes, self.hidden, self.embedding) < 1:
            raise ValueError(f"an encoder by attributes wants sizes of 1 or more: {self}")

    @property
    def min_frames(self) -> int:
        """The fewest frames of a spectrogram: one window."""
        return self.frames

    def check_frames(self, frames: int) -> None:
        """Raise a `ValueError` if a spectrogram of so many frames is too short."""
        if frames < self.min_frames:
            raise ValueError(f"{frames} frames are too few: this encoder needs {self.min_frames}")


class AttributeEncoder(nn.Module):
    """Spectrogram [b 1 f t] of the front end `speaker` to embedding [b d], by what a voice is like.

    The network of a speaker encoder hears it; a linear layer says how likely the voice is a
    woman's, a man's, or a child's, which tells neither; how high it is, and its timbre. A woman's
    and a man's face follow from the rank of the pitch within the sex and from timbre, and are
    weighed by how likely either is: where the voice does not decide, the face lies between.
    """

    pitch: Tensor  # [2 2]: mean and deviation of the logarithm of the pitch of women and men, Hz

    def __init__(self, config: AttributeEncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.lstm = nn.LSTM(config.n_freqs, width, config.layers, batch_first=True)
        self.linear = nn.Linear(width, width)
        # Logits of a woman, a man and a child; that of a voice; logarithm of the pitch; timbre.
        self.said = nn.Linear(2 * width, 5 + config.timbre)
        self.hidden = nn.Linear(1 + config.timbre, 2 * config.hidden)
        self.embedding = nn.Linear(2 * config.hidden + 1, config.embedding)
        self.register_buffer("pitch", torch.tensor([[5.3, 0.15], [4.75, 0.2]]))

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Embed spectrograms, or raise a `ValueError` if they are too short."""
        return self.from_features(self.features(spectrogram))

    def features(self, spectrogram: Tensor) -> Tensor:
        """What the network has heard, [b 2 width]: last outputs, and mean states of its last layer.

        Both are averaged over windows. In float32 throughout.
        """
        frames, step = self.config.frames, self.config.step
        self.config.check_frames(spectrogram.shape[-1])
        windows = spectrogram.squeeze(1).unfold(2, frames, step)  # [b f k frames]
        b, f, k, t = windows.shape
        with torch.autocast(spectrogram.device.type, enabled=False):
            states, (last, _) = self.lstm(windows.permute(0, 2, 3, 1).reshape(b * k, t, f))
            each = torch.cat([self.linear(last[-1]), states.mean(1)], 1)
            return each.view(b, k, -1).mean(1)

    def from_features(self, features: Tensor) -> Tensor:
        """Embed what `features` gives; in float32, under autocast too."""
        with torch.autocast(features.device.type, enabled=False):
            said = self.said(features)
            return self.faces(self._male(said), said[:, 4], said[:, 5:])

    def faces(self, male: Tensor, log_pitch: Tensor, timbre: Tensor) -> Tensor:
        """Embed the faces [b d] of voices: how likely a man's [b], log of Hz [b], timbre [b a]."""
        mean, deviation = self.pitch.unbind(1)
        ranks = torch.special.ndtr((log_pitch[:, None] - mean) / deviation)  # [b 2]
        weights = torch.stack([1 - male, male], 1)
        known = torch.cat([ranks[:, :, None], timbre[:, None].expand(-1, 2, -1)], 2)  # [b 2 1+a]
        of_women, of_men = self.hidden(known).relu().chunk(2, 2)
        each = torch.stack([of_women[:, 0], of_men[:, 1]], 1) * weights[:, :, None]
        embedding: Tensor = self.embedding(torch.cat([each.flatten(1), male[:, None]], 1))
        return embedding

    def attributes(self, features: Tensor) -> Tensor:
        """Say `ATTRIBUTES` of what `features` gives, [b 3]."""
        with torch.autocast(features.device.type, enabled=False):
            said = self.said(features)
            return torch.stack([self._male(said), said[:, 3].sigmoid(), said[:, 4].exp()], 1)

    def _male(self, said: Tensor) -> Tensor:
        likely = said[:, :3].softmax(1)
        return likely[:, 1] + likely[:, 2] / 2


def body_of(encoder: SpeakerEncoder | AttributeEncoder) -> dict[str, Tensor]:
    """Weights of what comes before the head, by their names."""
    state: dict[str, Tensor] = encoder.state_dict()
    return {name: w for name, w in state.items() if name.split(".")[0] in ("lstm", "linear")}
