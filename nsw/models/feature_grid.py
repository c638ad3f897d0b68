"""A hash grid that answers with a feature besides density and colour (feature fields, Kobayashi et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from nsw.models.hash_grid import HashGrid, HashGridSettings, tiny_network


@dataclass(frozen=True)
class FeatureGridSettings(HashGridSettings):
    """As `HashGridSettings`, with the channels of a point's feature, F, and those of the teacher, M."""

    n_geometry: int = 31
    n_point: int = 16
    n_channels: int = 64


class FeatureGrid(HashGrid):
    """A hash grid with a third network, from what the density network says to a feature that is the same from all sides.

    Features are composited at F channels and lifted to the teacher's M by `decoder`, W f + b, as those of splats are.
    """

    settings: FeatureGridSettings

    def __init__(self, settings: FeatureGridSettings | None = None):
        super().__init__(settings or FeatureGridSettings())
        s = self.settings
        self.feature_net = tiny_network(s.n_geometry, s.width, 1, s.n_point)
        self.decoder = nn.Linear(s.n_point, s.n_channels)

    def feature(self, geometry: Float[Tensor, "N G"]) -> Float[Tensor, "N F"]:
        """Return the features of points from what `geometry` returned for them."""
        return self.feature_net(geometry)
