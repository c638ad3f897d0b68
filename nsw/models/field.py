"""What a radiance field answers: the one protocol that volume rendering needs."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor, nn


class FieldOutput(NamedTuple):
    """Values at N points seen along N directions: density [N] (1 / world unit, >= 0), rgb [N, 3] in [0, 1], and the feature [N, G]
    that the field's colour network reads there, None where it has no such network or keeps it to itself.

    >>> import torch
    >>> [round(s, 2) for s in FieldOutput(torch.tensor([1.0, 0.0]), torch.zeros(2, 3)).log_density.tolist()]
    [0.0, -27.63]
    """

    density: Float[Tensor, "N"]
    rgb: Float[Tensor, "N 3"]
    feature: Float[Tensor, "N G"] | None = None

    @property
    def log_density(self) -> Float[Tensor, "N"]:
        """Natural logarithm of the density; that of 1e-12 where there is less."""
        return self.density.clamp_min(1e-12).log()


def host_box(model: nn.Module) -> Float[Tensor, "2 3"]:
    """Return a model's `aabb` in the host's memory; from a GPU it is fetched once, and again when somebody has changed it.

    A step asks several times for lengths that follow from the box, and each answer from a GPU waits until that has done all else.
    """
    box = model.aabb.detach()
    if not box.is_cuda:
        return box
    known = vars(model).get("_host_box")
    if known is None or known[0] is not model.aabb or known[1] != model.aabb._version:
        known = (model.aabb, model.aabb._version, box.cpu())
        object.__setattr__(model, "_host_box", known)  # no buffer: it follows from one
    return known[2]


class Field(Protocol):
    """A density and a colour at every point; `aabb` [2, 3] bounds where density may be above zero.

    That is all that is asked of a field. One whose colour follows from a feature may offer both halves too, for those who ask for
    colours at fewer points than densities, or at many points of a ray: `geometry(points)` gives density and feature, and
    `colour(feature, directions, ray_indices)` the rgb. With None for a feature, `colour_at(points, directions, ray_indices)` does.
    """

    aabb: Float[Tensor, "2 3"]

    def query(self, points_world: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]) -> FieldOutput:
        """Return density, colour and, where there is one, feature; `directions` are unit vectors from the camera."""
        ...

    def density(self, points_world: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        """Return the density alone, without evaluating colour."""
        ...
