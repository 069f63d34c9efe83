"""The voice encoder: a spectrogram becomes the embedding of a face.

The paper's convolutional network and the small bundled one: the config alone decides.
Source: Oh et al. 2019 (layers in the order Conv, ReLU, BatchNorm).
"""

import itertools
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class VoiceEncoderConfig:
    """The shape of a voice encoder. The defaults are the paper's."""

    in_channels: int = 2  # of the spectrogram: 2 for `paper` and `seed`, 1 for `ast`
    n_freqs: int = 257  # of the spectrogram
    kernel: int = 4  # side of every convolution, unpadded
    channels: tuple[int, ...] = (64, 64, 128, 128, 128, 256, 512, 512, 512)  # out of each
    strides: tuple[int, ...] = (1, 1, 1, 1, 1, 1, 1, 2, 2)  # over both axes
    # (frequency, time) max pooling after each convolution; (1, 1) is none
    pools: tuple[tuple[int, int], ...] = 2 * ((1, 1),) + 4 * ((1, 2),) + 3 * ((1, 1),)
    hidden: int = 4096  # width of the first linear layer
    embedding: int = 4096
    final_relu: bool = False  # at the end of the embedding: the seed's has one
    dropout: float = 0.0  # of the first linear layer's outputs, in training; the paper has none

    def __post_init__(self) -> None:
        if not len(self.channels) == len(self.strides) == len(self.pools):
            lengths = [len(self.channels), len(self.strides), len(self.pools)]
            raise ValueError(f"channels, strides and pools want one value a convolution: {lengths}")
        if min(self.kernel, *self.channels, *self.strides, *itertools.chain(*self.pools)) < 1:
            raise ValueError(f"kernel, channels, strides and pools want 1 or more: {self}")
        if self._out(self.n_freqs, 0) < 1:
            raise ValueError(f"{self.n_freqs} frequencies are too few for these convolutions")

    def _out(self, size: int, axis: int) -> int:
        for stride, pool in zip(self.strides, self.pools, strict=True):
            size = ((size - self.kernel) // stride + 1) // pool[axis]
        return size

    @property
    def out_freqs(self) -> int:
        """Frequencies of the last feature map; they are flattened into the linear layer."""
        return self._out(self.n_freqs, 0)

    @property
    def min_frames(self) -> int:
        """The fewest frames that leave one in the last feature map (259 for the paper's)."""
        frames = 1
        for stride, pool in zip(reversed(self.strides), reversed(self.pools), strict=True):
            frames = (frames * pool[1] - 1) * stride + self.kernel
        return frames

    def check_frames(self, frames: int) -> None:
        """Raise a `ValueError` if a spectrogram of so many frames is too short."""
        if frames < self.min_frames:
            raise ValueError(f"{frames} frames are too few: this encoder needs {self.min_frames}")


CONFIGS: dict[str, VoiceEncoderConfig] = {
    "paper": VoiceEncoderConfig(),
    "seed": VoiceEncoderConfig(final_relu=True),
    "compact": VoiceEncoderConfig(
        in_channels=1,
        n_freqs=128,
        kernel=3,
        channels=(24, 48, 64, 96, 128),
        strides=(2, 1, 1, 1, 1),
        pools=((1, 2), (2, 2), (2, 2), (1, 1), (1, 1)),
        hidden=1024,
        embedding=1024,
        dropout=0.3,
    ),
}


class VoiceEncoder(nn.Module):
    """Spectrogram [b c f t] to embedding [b d], pooling over time: t >= `config.min_frames`."""

    def __init__(self, config: VoiceEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.convs = nn.ModuleList()
        last = len(config.channels) - 1
        channels = config.in_channels
        plan = zip(config.channels, config.strides, config.pools, strict=True)
        for i, (out, stride, pool) in enumerate(plan):
            layers: list[nn.Module] = [nn.Conv2d(channels, out, config.kernel, stride)]
            if i < last:  # the last ReLU and BatchNorm follow the pooling over time
                layers += [nn.ReLU(), nn.BatchNorm2d(out)]
            if pool != (1, 1):
                layers += [nn.MaxPool2d(pool)]
            self.convs.append(nn.Sequential(*layers))
            channels = out
        self.norm = nn.BatchNorm2d(channels)
        self.hidden = nn.Linear(channels * config.out_freqs, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.embedding = nn.Linear(config.hidden, config.embedding)

    def forward(self, spectrogram: Tensor, chances: Tensor | None = None) -> Tensor:
        """Embed spectrograms, or raise a `ValueError` if they are too short.

        In training `chances` [b hidden], 0..1, decide which of the hidden values are dropped out:
        those below the dropout's share. Where there are none, torch's generator decides.
        """
        return self.from_features(self.features(spectrogram), chances)

    def from_features(self, features: Tensor, chances: Tensor | None = None) -> Tensor:
        """Embed what `features` gives, [b m]."""
        x = drop_out(self.hidden(features).relu(), self.dropout, chances)
        embedding: Tensor = self.embedding(x)
        return embedding.relu() if self.config.final_relu else embedding

    def head(self) -> list[nn.Parameter]:
        """Parameters of the head: what follows the features."""
        return [*self.hidden.parameters(), *self.embedding.parameters()]

    def features(self, spectrogram: Tensor) -> Tensor:
        """The convolutions' features, pooled over time: [b c f t] to [b m]."""
        self.config.check_frames(spectrogram.shape[-1])
        x = spectrogram
        for conv in self.convs:
            x = conv(x)  # [b c f t]
        pooled: Tensor = self.norm(x.mean(dim=3, keepdim=True).relu())  # [b c f 1]
        return pooled.flatten(1)


def drop_out(x: Tensor, dropout: nn.Dropout, chances: Tensor | None) -> Tensor:
    """Drop out those of x whose chances, 0..1, are below the share; torch's choice without any."""
    if chances is None:
        dropped: Tensor = dropout(x)
        return dropped
    return x * (chances >= dropout.p) / (1 - dropout.p)
