"""A factored grid that ends in the colour network of a hash grid, so that either can take over the other's."""

from __future__ import annotations

from dataclasses import dataclass

from nsw.models.hash_grid import SH_DEGREE, HashGrid, tiny_network
from nsw.models.vm_grid import VMGrid, VMGridSettings


@dataclass(frozen=True)
class HeadedVMGridSettings(VMGridSettings):
    """Sizes of a `HeadedVMGrid`: those of its grid. Its colour network has two hidden layers of `mlp_width` units."""

    n_features: int = 15

    @property
    def n_geometry(self) -> int:
        """Numbers that the colour network reads besides the direction, by the hash grid's name for them."""
        return self.n_features


class HeadedVMGrid(VMGrid):
    """Density and colour from a factored grid, as Progressive Volume Distillation has it; zero outside of its box.

    From the features on, everything is the hash grid's own code, under the same names.
    """

    def __init__(self, settings: HeadedVMGridSettings):
        super().__init__(settings)
        del self.mlp
        self.colour_net = tiny_network(settings.n_features + (SH_DEGREE + 1) ** 2, settings.mlp_width, 2, 3)

    colour = HashGrid.colour
