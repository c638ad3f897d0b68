"""What a radiance field answers: the one protocol that volume rendering needs."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor


class FieldOutput(NamedTuple):
    """Values at N points seen along N directions: density [N] (1 / world unit, >= 0) and rgb [N, 3] in [0, 1].

    Hash grids, factored grids and trunks also have `geometry(points)`: density, and the feature that their colour network reads.

    >>> import torch
    >>> [round(s, 2) for s in FieldOutput(torch.tensor([1.0, 0.0]), torch.zeros(2, 3)).log_density.tolist()]
    [0.0, -27.63]
    """

    density: Float[Tensor, "N"]
    rgb: Float[Tensor, "N 3"]

    @property
    def log_density(self) -> Float[Tensor, "N"]:
        """Natural logarithm of the density; that of 1e-12 where there is less."""
        return self.density.clamp_min(1e-12).log()


class Field(Protocol):
    """A density and a colour at every point; `aabb` [2, 3] bounds where density may be above zero."""

    aabb: Float[Tensor, "2 3"]

    def query(self, points_world: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]) -> FieldOutput:
        """Return density and colour; `directions` are unit vectors from the camera."""
        ...

    def density(self, points_world: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        """Return the density alone, without evaluating colour."""
        ...
