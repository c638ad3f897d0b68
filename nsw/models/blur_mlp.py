"""The small network of Deblurring 3DGS: from a splat and a camera to how that camera's blur changes the splat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nsw.models.encodings import encoded_size, frequency_encoding
from nsw.models.gaussians import Gaussians


@dataclass(frozen=True)
class BlurMLPSettings:
    """Sizes of a `BlurMLP`; the defaults are the paper's, for defocus.

    Attributes:
        moments: M, how many moved copies of the splats there are besides the unmoved one; 0 is defocus, the paper's shake has 4.
        hidden, width: hidden layers and their units.
        levels_position, levels_camera: octaves of the two encodings.
        size: world length that is encoded as 1.
    """

    moments: int = 0
    hidden: int = 3
    width: int = 64
    levels_position: int = 3
    levels_camera: int = 10
    size: float = 1.0


class BlurMLP(nn.Module):
    """Raw numbers for M + 1 copies of N splats: 3 for the scales, 4 for the rotation, and 3 for the place of M of them.

    A head's bias is 1 where the number becomes a factor, so that training starts from factors of about 1. The paper starts from
    0, where its clip at 1 lets no gradient through.
    """

    def __init__(self, settings: BlurMLPSettings | None = None, seed: int = 0):
        super().__init__()
        self.settings = s = settings or BlurMLPSettings()
        inputs = encoded_size(3, s.levels_position) + encoded_size(3, s.levels_camera) + 7
        widths = [inputs] + [s.width] * s.hidden
        self.trunk = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.scale_head = nn.Linear(s.width, 3 * (s.moments + 1))
        self.turn_head = nn.Linear(s.width, 4 * (s.moments + 1))
        self.place_head = nn.Linear(s.width, 3 * s.moments) if s.moments else None
        generator = torch.Generator().manual_seed(seed)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                head = layer not in self.trunk
                nn.init.xavier_normal_(layer.weight, gain=0.1 if head else 1.0, generator=generator)
                nn.init.constant_(layer.bias, float(head and layer is not self.place_head))

    def forward(
        self, gaussians: Gaussians, centre: Float[Tensor, "3"]
    ) -> tuple[Float[Tensor, "K N 3"], Float[Tensor, "K N 4"], Float[Tensor, "M N 3"]]:
        """Return what the heads say of every splat seen from a camera at `centre`; K = M + 1.

        The splats are read, not changed: no gradient flows back into them from here.
        """
        s, means = self.settings, gaussians.means.detach()
        quats = nn.functional.normalize(gaussians.quats.detach(), dim=-1)
        seen_from = frequency_encoding(centre.detach() / s.size, s.levels_camera).expand(len(means), -1)
        h = torch.cat(
            [frequency_encoding(means / s.size, s.levels_position), seen_from, gaussians.activated_scales.detach() / s.size, quats],
            1,
        )
        for layer in self.trunk:
            h = nn.functional.relu(layer(h), inplace=True)
        places = self.place_head(h) if self.place_head is not None else h.new_zeros(len(h), 0)
        return tuple(_per_copy(x, n) for x, n in ((self.scale_head(h), 3), (self.turn_head(h), 4), (places, 3)))


def _per_copy(values: Float[Tensor, "N KD"], n: int) -> Float[Tensor, "K N D"]:
    return values.view(len(values), -1, n).transpose(0, 1)
