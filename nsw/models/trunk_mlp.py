"""A radiance field in a plain network that ends in the two heads of a hash grid, so that either can take over the other's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

from nsw.kernels.occupancy import OccGridEstimator
from nsw.models.encodings import encoded_size, frequency_encoding
from nsw.models.hash_grid import SH_DEGREE, HashGrid, tiny_network
from nsw.models.wide_linear import WideLinear


@dataclass(frozen=True)
class TrunkMLPSettings:
    """Sizes of a `TrunkMLP`; the defaults are those of Progressive Volume Distillation.

    Attributes:
        box: minimum and maximum corner in world units, six numbers.
        depth: layers of the trunk, the last one included, which makes `n_head` numbers.
        width: units of the others.
        skip: the encoded position is joined again to the output of this many layers; 0 or >= depth leaves it out.
        levels: octaves of the encoded position.
        n_head: numbers that the heads read; of a hash grid, levels times features.
        head_width: units of a hidden layer of both heads.
        n_geometry: numbers that the density head hands to the colour head, besides the density.
        n_cells: cells of the occupancy grid along an axis.
        step: length of a sample in world units; 0 is a 1024th of the box's diagonal.
        shift: b in sigma = exp(h0 - b), as of a hash grid.
    """

    box: tuple[float, ...] = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
    depth: int = 8
    width: int = 256
    skip: int = 4
    levels: int = 10
    n_head: int = 28
    head_width: int = 64
    n_geometry: int = 15
    n_cells: int = 64
    step: float = 0.0
    shift: float = 1.0


class TrunkMLP(nn.Module):
    """Density and colour from one network; zero outside of its box.

    A hash grid whose table is replaced by a network over the encoded position: from `encode` on, everything is the hash grid's
    own code, under the same names, so parameters of equal name and shape can be copied from one to the other.

    Attributes:
        occupancy: which cells may hold density; it starts full. Part of the state.
    """

    def __init__(self, settings: TrunkMLPSettings):
        super().__init__()
        self.settings = s = settings
        self.register_buffer("aabb", torch.tensor(s.box, dtype=torch.float32).reshape(2, 3))
        n_position = encoded_size(3, s.levels)
        outputs = [s.width] * (s.depth - 1) + [s.n_head]
        inputs = [n_position] + [s.width + (n_position if i == s.skip else 0) for i in range(1, s.depth)]
        self.trunk = nn.ModuleList(WideLinear(a, b) for a, b in zip(inputs, outputs, strict=True))
        for layer in self.trunk:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        self.density_net = tiny_network(s.n_head, s.head_width, 1, 1 + s.n_geometry)
        self.colour_net = tiny_network(s.n_geometry + (SH_DEGREE + 1) ** 2, s.head_width, 2, 3)
        self.occupancy = OccGridEstimator(s.box, s.n_cells)
        self.occupancy.binaries.fill_(True)

    def encode(self, points_world: Float[Tensor, "N 3"], known: Float[Tensor, "N H"] | None = None) -> Float[Tensor, "N H"]:
        """Return what the heads read. Numbers known from an earlier call are no help here: gradients need the whole trunk."""
        low, high = self.aabb
        encoded = frequency_encoding((points_world - (low + high) / 2) / ((high - low).amax() / 2), self.settings.levels)
        h = encoded
        for i, layer in enumerate(self.trunk):
            h = layer(torch.cat([h, encoded], dim=-1) if i == self.settings.skip and i > 0 else h)
            h = relu(h, inplace=True) if i < len(self.trunk) - 1 else h
        return h

    _inside, _activated, _first_output = HashGrid._inside, HashGrid._activated, HashGrid._first_output
    geometry, density = HashGrid.geometry, HashGrid.density
    colour, query = HashGrid.colour, HashGrid.query
    sample_length, render_defaults, sampler = HashGrid.sample_length, HashGrid.render_defaults, HashGrid.sampler
