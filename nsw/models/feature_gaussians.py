"""Gaussians that carry a feature each besides colour, and the 1 x 1 convolution that lifts rendered features.

| raw | shape | meaning |
|---|---|---|
| `features` | [N, F] | f_i, the same from all sides, no activation |
| `decoder` | F -> M | W f + b, for every pixel or splat alone; nothing where F = M |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nsw.models.gaussians import Gaussians, GaussiansSettings


@dataclass(frozen=True)
class FeatureGaussiansSettings(GaussiansSettings):
    """As `GaussiansSettings`, with the channels of a splat's feature, F, and those of the teacher, M.

    F < M adds the decoder. F = 0 leaves features out.
    """

    n_features: int = 64
    n_channels: int = 64


class FeatureGaussians(Gaussians):
    """N Gaussians with features that start at zero; density control copies and removes them with their splats.

    >>> splats = FeatureGaussians.around(Gaussians.from_points(torch.rand(10, 3), sh_degree=1), 4, 16)
    >>> tuple(splats.features.shape), tuple(splats.decoded(splats.features).shape)
    ((10, 4), (10, 16))
    """

    settings: FeatureGaussiansSettings

    def __init__(self, settings: FeatureGaussiansSettings | None = None):
        super().__init__(settings or FeatureGaussiansSettings())
        s = self.settings
        self.features = nn.Parameter(torch.zeros(0, s.n_features))
        self.decoder = nn.Linear(s.n_features, s.n_channels) if 0 < s.n_features < s.n_channels else nn.Identity()

    @classmethod
    def around(cls, gaussians: Gaussians, n_features: int, n_channels: int, seed: int = 0) -> FeatureGaussians:
        """Return a copy of the splats with features of zero; `seed` draws the decoder's start."""
        s = gaussians.settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(FeatureGaussiansSettings(s.sh_degree, s.isotropic, n_features, n_channels))
        model.fill(**gaussians.params)
        model.features = nn.Parameter(torch.zeros(len(gaussians), n_features))
        return model.to(gaussians.means.device)

    def decoded(self, features: Float[Tensor, "*n F"]) -> Float[Tensor, "*n M"]:
        """Return features of the teacher's length, channels last: what a 1 x 1 convolution does."""
        return self.decoder(features)
