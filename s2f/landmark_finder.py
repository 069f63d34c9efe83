"""Finds the landmarks of a framed face: one map of likelihood a point, and its centre of mass.

Tensors in, tensors out. Every point is found by what surrounds it, not by what faces are like on
average, so that what sets a face apart is not lost.

Source: Ronneberger et al. 2015, "U-Net" (the shape of the network); Sun et al. 2018, "Integral
Human Pose Regression" (the centre of mass, which knows parts of a pixel and has gradients).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

REACH = 1.2  # of the frame's side that places span: some points lie outside the frame


def _conv(a: int, b: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(a, b, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(b), nn.ReLU(inplace=True))


class LandmarkFinder(nn.Module):
    """Faces [b 3 s s], RGB 0..1, to landmarks [b k 2], xy pixels of these pictures.

    The side s is a multiple of 16. Points may lie outside by a twelfth of it.
    """

    def __init__(self, landmarks: int, channels: tuple[int, ...]) -> None:
        """Build the network.

        Args:
            landmarks: points to find.
            channels: of the first convolution, of four stages at a half to a sixteenth of the
                side, and of two on the way back to a quarter.
        """
        super().__init__()
        first, half, quarter, eighth, sixteenth, back_eighth, back_quarter = channels
        self.down = nn.ModuleList(
            [
                nn.Sequential(_conv(3, first, 5, 2), _conv(first, half)),
                nn.Sequential(_conv(half, quarter), _conv(quarter, quarter)),
                nn.Sequential(_conv(quarter, eighth), _conv(eighth, eighth)),
                nn.Sequential(_conv(eighth, sixteenth), _conv(sixteenth, sixteenth)),
            ]
        )
        self.up = nn.ModuleList(
            [_conv(sixteenth + eighth, back_eighth), _conv(back_eighth + quarter, back_quarter)]
        )
        self.maps = nn.Conv2d(back_quarter, landmarks, 1)

    def forward(self, faces: Tensor) -> Tensor:
        """Find the landmarks of faces; in float32 at least."""
        size = faces.shape[-1]
        x = (faces * 4 - 2).contiguous(memory_format=torch.channels_last)
        kept = []
        for i, stage in enumerate(self.down):
            x = stage(functional.max_pool2d(x, 2) if i else x)
            kept.append(x)
        for stage, beside in zip(self.up, (kept[2], kept[1]), strict=True):
            x = stage(torch.cat([functional.interpolate(x, scale_factor=2), beside], 1))
        maps = self.maps(x)
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32)).contiguous()
        n = maps.shape[-1]
        places = (torch.arange(n, device=maps.device, dtype=maps.dtype) + 0.5) / n - 0.5
        places = (0.5 + places * REACH) * size - 0.5
        share = maps.flatten(2).softmax(-1).view_as(maps)
        return torch.stack([(share.sum(2) * places).sum(-1), (share.sum(3) * places).sum(-1)], -1)
