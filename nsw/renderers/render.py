"""What every renderer returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Render:
    """Pictures of C cameras.

    Attributes:
        rgb: [C, H, W, 3] display sRGB, background included; not clamped.
        alpha: [C, H, W] opacity in [0, 1].
        depth: [C, H, W] expected camera z in world units, 0 where alpha is 0.
        extras: further maps by name, for example "normals" [C, H, W, 3]; "meta" is the splat rasterizer's dictionary, which
            `to` leaves where it is.
    """

    rgb: Float[Tensor, "C H W 3"]
    alpha: Float[Tensor, "C H W"]
    depth: Float[Tensor, "C H W"]
    extras: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Render:
        extras = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in self.extras.items()}
        return Render(self.rgb.to(device), self.alpha.to(device), self.depth.to(device), extras)


def backdrop(background: float | Tensor, like: Tensor) -> Tensor:
    """Return a background as a tensor beside `like`; a grey level is filled in there, without a copy out of the host's memory.

    >>> backdrop(0.5, torch.zeros(2)).item()
    0.5
    """
    return background.to(like) if isinstance(background, Tensor) else like.new_full((), background)
