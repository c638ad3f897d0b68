"""Colour that depends on direction, as real spherical harmonics: the helpers that models share.

The basis itself lives with the kernels; signs are those of gsplat and of `.ply` files.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from nsw.kernels.harmonics import sh_basis

__all__ = ["SH0", "rgb_from_sh0", "sh0_from_rgb", "sh_basis"]

SH0 = 0.28209479177387814  # the constant harmonic, 1 / (2 sqrt(pi))


def sh0_from_rgb(rgb: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
    """Return the coefficient of the constant harmonic that shows `rgb` from all sides: (rgb - 0.5) / SH0."""
    return (rgb - 0.5) / SH0


def rgb_from_sh0(sh0: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
    """Undo `sh0_from_rgb`; clamped at 0 below, as renderers do.

    >>> import torch
    >>> rgb_from_sh0(sh0_from_rgb(torch.tensor([0.25, 0.5, 1.0])))
    tensor([0.2500, 0.5000, 1.0000])
    """
    return (0.5 + SH0 * sh0).clamp_min(0.0)
