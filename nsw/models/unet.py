"""A small U-Net: the body of the bundled networks that look at one picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate


def _stage(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    """Return two 3 x 3 convolutions; groups are normalised, so that one picture is encoded as it is in a batch."""
    first = [nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.GroupNorm(8, n_out), nn.ReLU()]
    return nn.Sequential(*first, nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.GroupNorm(8, n_out), nn.ReLU())


class UNet(nn.Module):
    """Stages that halve the picture, one a width, and stages that double it again up to half its size.

    Args:
        n_in: channels of the picture.
        widths: channels of the levels, multiples of 8.
    """

    def __init__(self, n_in: int, widths: Sequence[int]):
        super().__init__()
        self.down = nn.ModuleList(_stage(a, b, 2) for a, b in zip((n_in, *widths), widths, strict=False))
        self.up = nn.ModuleList(_stage(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))

    def features(self, x: Float[Tensor, "n c H W"]) -> Float[Tensor, "n f h w"]:
        """Return the last stage's maps, at half the picture's size."""
        skips = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        for stage, skip in zip(self.up, skips[-2::-1], strict=True):
            x = stage(torch.cat([interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False), skip], 1))
        return x
