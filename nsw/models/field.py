"""What a radiance field answers: the one protocol that volume rendering needs."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor


class FieldOutput(NamedTuple):
    """Values at N points seen along N directions: density [N] (1 / world unit, >= 0) and rgb [N, 3] in [0, 1]."""

    density: Float[Tensor, "N"]
    rgb: Float[Tensor, "N 3"]


class Field(Protocol):
    """A density and a colour at every point; `aabb` [2, 3] bounds where density may be above zero."""

    aabb: Float[Tensor, "2 3"]

    def query(self, points_world: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]) -> FieldOutput:
        """Return density and colour; `directions` are unit vectors from the camera."""
        ...

    def density(self, points_world: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        """Return the density alone, without evaluating colour."""
        ...
