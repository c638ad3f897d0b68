"""Small networks that turn what an anchor knows into one splat, as one camera sees it.

Ververas et al., "SAGS: Structure-Aware 3D Gaussian Splatting", ECCV 2024, section 3.3; sizes as in the official code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from nsw.kernels.hash_encoding import hash_encode, hash_levels
from nsw.models.gaussians import GaussiansSettings, Seen
from nsw.models.sh import sh0_from_rgb

FIRST_OPACITY = 1.0
N_VIEW = 4  # numbers that networks hear of a camera: the unit vector to the anchor and the distance
PLAIN = GaussiansSettings(sh_degree=0)


@dataclass(frozen=True)
class DecoderSettings:
    """Sizes of a `SplatDecoder`; the defaults are the official code's.

    Attributes:
        box: minimum and maximum corner of the hash grid, six numbers.
        n_features: of an anchor.
        shared: join the largest feature of all anchors, channel by channel, to each.
        width: of both hidden layers of opacity, colour and shape; `width_offset`: of the one of the displacement.
        n_levels, n_channels, log2_entries, n_min, n_max: of the hash grid; 0 levels leave it out.
    """

    box: tuple[float, ...] = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
    n_features: int = 32
    shared: bool = True
    width: int = 32
    width_offset: int = 64
    n_levels: int = 16
    n_channels: int = 2
    log2_entries: int = 15
    n_min: int = 16
    n_max: int = 4096

    @property
    def n_encoded(self) -> int:
        return self.n_levels * self.n_channels + self.n_features * (2 if self.shared else 1)


def _network(n_in: int, width: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_in, width), nn.ReLU(inplace=True), nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, n_out)
    )


class SplatDecoder(nn.Module):
    """A hash grid that knows the place, and networks for opacity, colour, shape and displacement.

    Attributes:
        table: [rows, C], entries of all levels of the grid, uniform in +-1e-4 at the start.
        gain, bias: [E], alpha and beta of `encode`.
        opacity, colour, shape: networks that also hear where the camera is; offset: a linear one that does not.
    """

    def __init__(self, settings: DecoderSettings):
        super().__init__()
        self.settings = s = settings
        low, high = torch.tensor(s.box, dtype=torch.float32).reshape(2, 3)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("extent", high - low, persistent=False)
        self.levels = hash_levels(s.n_levels, s.n_min, s.n_max, s.log2_entries) if s.n_levels else None
        self.table = nn.Parameter((2 * torch.rand(self.levels.n_rows if self.levels else 0, s.n_channels) - 1) * 1e-4)
        self.gain, self.bias = nn.Parameter(torch.ones(s.n_encoded)), nn.Parameter(torch.zeros(s.n_encoded))
        self.opacity, self.colour, self.shape = (_network(s.n_encoded + N_VIEW, s.width, n_out) for n_out in (1, 3, 7))
        self.offset = nn.Sequential(nn.Linear(s.n_encoded, s.width_offset), nn.Linear(s.width_offset, 3))
        with torch.no_grad():  # unlike the official code: splats look alike from everywhere until pictures say otherwise
            for network in (self.opacity, self.colour, self.shape):
                network[0].weight[:, -N_VIEW:] = 0.0
        nn.init.constant_(self.opacity[-1].bias, FIRST_OPACITY)  # features say nothing yet: beneath 0 no splat would ever be drawn
        nn.init.zeros_(self.offset[-1].weight)
        nn.init.zeros_(self.offset[-1].bias)

    def located(self, places: Float[Tensor, "n 3"], known: Float[Tensor, "n LC"] | None = None) -> Float[Tensor, "n LC"]:
        r"""Return what the hash grid says of places, $\gamma(p)$; `known`, if an earlier call has worked it out, saves the work."""
        if self.levels is None:
            return places.new_zeros(len(places), 0)
        return hash_encode(self.table, (places - self.low) / self.extent, self.levels, known=known)

    def encode(self, located: Float[Tensor, "n LC"], h: Float[Tensor, "n F"], largest: Float[Tensor, "F"]) -> Float[Tensor, "n E"]:
        r"""Return what each anchor knows of its place, its surroundings and all others together.

        $$\Phi_i = \alpha \odot [\gamma(p_i),\ h_i,\ \max_j f_j] + \beta$$  (official code)

        Args:
            located: what the grid says of each place; h: features that have heard their neighbours; largest: of all features,
                channel by channel.
        """
        parts = [located, h, largest.expand_as(h)] if self.settings.shared else [located, h]
        return self.gain * torch.cat(parts, dim=1) + self.bias

    def displacement(self, encoded: Float[Tensor, "n E"], scales: Float[Tensor, "n 6"]) -> Float[Tensor, "n 3"]:
        r"""Return how far splats stand from their anchors, $e^{l_{1:3}} \odot \Delta(\Phi_i)$: the same for every camera."""
        return scales[:, :3].exp() * self.offset(encoded)

    def decode(
        self, encoded: Float[Tensor, "n E"], scales: Float[Tensor, "n 6"], places: Float[Tensor, "n 3"], origin: Float[Tensor, "3"]
    ) -> Seen:
        r"""Return one splat an anchor, as a camera at `origin` sees it. Where the opacity is 0 there is none.

        $$o = \max(0, \tanh(\cdot)),\quad c = \sigma(\cdot),\quad s = e^{l_{4:6}} \odot \sigma(\cdot),\quad
        \mu = p + e^{l_{1:3}} \odot \Delta(\Phi)$$  (section 3.3 and official code; networks hear $[\Phi, v, \lVert p - o \rVert]$)
        """
        way = places - origin
        distance = way.norm(dim=1, keepdim=True)
        heard = torch.cat([encoded, way / distance.clamp_min(1e-9), distance], dim=1)
        shape, sh0 = self.shape(heard), sh0_from_rgb(self.colour(heard).sigmoid())[:, None]
        return Seen(
            means=places + self.displacement(encoded, scales),
            quats=normalize(shape[:, 3:], dim=1),
            activated_scales=scales[:, 3:].exp() * shape[:, :3].sigmoid(),
            activated_opacities=self.opacity(heard)[:, 0].tanh().relu(),
            sh0=sh0,
            sh=sh0,
            settings=PLAIN,
        )
