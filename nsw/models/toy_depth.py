"""The small network that comes with NSW and guesses inverse depth from one picture; `train_toy_depth.py` made it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from nsw.models.teacher import resized
from nsw.models.unet import UNet

MIDDLE = 4.0  # what training calls the median inverse depth of a picture, in mean distances from it: all is positive then


@dataclass(frozen=True)
class ToyDepthSettings:
    """Widths of the network's levels; `side` is the shorter side, in pixels, to which it brings every picture, as in training."""

    side: int = 96
    widths: tuple[int, ...] = (24, 40, 64, 96, 128)
    name: str = "ToyDepth (bundled, trained on path-traced toys and small cities)"


class ToyDepth(UNet):
    """A U-Net from a picture, and where each pixel lies in it, to inverse depth up to an affine map."""

    def __init__(self, settings: ToyDepthSettings | None = None):
        s = settings or ToyDepthSettings()
        super().__init__(5, s.widths)
        self.settings, self.name = s, s.name
        self.head = nn.Conv2d(s.widths[0], 1, 1)
        nn.init.constant_(self.head.bias, MIDDLE)

    def forward(self, pictures: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n H W"]:
        """Return positive maps of the pictures' size."""
        n, _, h, w = pictures.shape
        y, x = torch.meshgrid(*((torch.arange(k, device=pictures.device) + 0.5) / k * 2 - 1 for k in (h, w)), indexing="ij")
        places = torch.stack([x, y]).to(pictures).expand(n, 2, h, w)
        guess = self.head(self.features(torch.cat([2 * pictures - 1, places], 1)))
        return softplus(resized(guess, h, w)[:, 0])

    @torch.no_grad()
    def predict(self, picture: Float[Tensor, "H W 3"]) -> Float[Tensor, "H W"]:
        """Return inverse depth up to an affine map."""
        height, width = picture.shape[:2]
        factor = self.settings.side / min(height, width)
        small = resized(picture.permute(2, 0, 1)[None].to(self.head.weight), round(height * factor), round(width * factor))
        return resized(self(small)[None], height, width)[0, 0]


def toy_depth() -> ToyDepth:
    """Return the bundled network, frozen.

    Raises:
        InputError: when its file is missing, damaged or of another network.
    """
    from nsw.errors import InputError
    from nsw.models import io
    from nsw.scenes.bundled import data_dir

    folder = Path(data_dir()) / "toy_depth"
    model = io.load(folder)
    if not isinstance(model, ToyDepth):
        raise InputError(f"{folder} holds a {type(model).__name__}, expected a ToyDepth: restore data/toy_depth.")
    return model.eval().requires_grad_(False)
