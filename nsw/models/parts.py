"""A part of a set of Gaussians, and several sets as one."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from nsw.errors import InputError
from nsw.models.gaussians import NAMES, Gaussians
from nsw.models.surfels import Surfels


def like(gaussians: Gaussians) -> Gaussians:
    """Return an empty model of the same kind, discs or ellipsoids, on the same device; what others carry besides is left out."""
    kind = Surfels if isinstance(gaussians, Surfels) else Gaussians
    return kind(gaussians.settings).to(gaussians.means.device)


@torch.no_grad()
def part_of(gaussians: Gaussians, keep: Bool[Tensor, "N"] | Int[Tensor, "M"] = ...) -> Gaussians:
    """Return the chosen splats as a model of their own: a mask or indices say which; by default all, a copy.

    >>> three = Gaussians.from_points(torch.rand(3, 3), sh_degree=0)
    >>> len(part_of(three, torch.tensor([True, False, True]))), len(part_of(three))
    (2, 3)
    """
    return like(gaussians).fill(**{name: gaussians.params[name][keep] for name in NAMES})


@torch.no_grad()
def joined(*parts: Gaussians) -> Gaussians:
    """Return the splats of several parts of one kind as one model, in their order.

    Raises:
        InputError: when degrees differ.
    """
    if len({part.settings for part in parts}) > 1:
        raise InputError(f"Parts to be joined need one kind of splats, got {[part.settings for part in parts]}.")
    return like(parts[0]).fill(**{name: torch.cat([part.params[name] for part in parts]) for name in NAMES})
