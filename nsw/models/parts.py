"""A part of a set of Gaussians, and several sets as one."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from nsw.errors import InputError
from nsw.models.gaussians import NAMES, Gaussians


@torch.no_grad()
def part_of(gaussians: Gaussians, keep: Bool[Tensor, "N"] | Int[Tensor, "M"] = ...) -> Gaussians:
    """Return the chosen splats as a model of their own: a mask or indices say which; by default all, a copy.

    >>> three = Gaussians.from_points(torch.rand(3, 3), sh_degree=0)
    >>> len(part_of(three, torch.tensor([True, False, True]))), len(part_of(three))
    (2, 3)
    """
    model = Gaussians(gaussians.settings).to(gaussians.means.device)
    return model.fill(**{name: gaussians.params[name][keep] for name in NAMES})


@torch.no_grad()
def joined(*parts: Gaussians) -> Gaussians:
    """Return the splats of several parts of one kind as one model, in their order.

    Raises:
        InputError: when degrees differ.
    """
    if len({part.settings for part in parts}) > 1:
        raise InputError(f"Parts to be joined need one kind of splats, got {[part.settings for part in parts]}.")
    model = Gaussians(parts[0].settings).to(parts[0].means.device)
    return model.fill(**{name: torch.cat([part.params[name] for part in parts]) for name in NAMES})
