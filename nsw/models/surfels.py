"""A scene as N oriented discs, each with a 2D Gaussian in its own plane: Gaussians whose third axis has no length.

The columns of a splat's rotation are the axes t_u and t_v of the disc and its normal t_w. Everything that takes `Gaussians` takes
these too (density control, `.ply` export, viewers); `nsw.renderers.surfels` draws them as discs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.errors import InputError
from nsw.kernels.projection_reference import rotation_from_quaternion
from nsw.kernels.surfels_reference import LOW_PASS
from nsw.models.gaussians import Gaussians, GaussiansSettings

THIN = math.log(1e-6)  # the third raw scale: read by nobody who draws discs, harmless to those who draw ellipsoids


@dataclass(frozen=True)
class SurfelsSettings(GaussiansSettings):
    """What a set of surfels is besides its numbers.

    Attributes:
        low_pass: standard deviation in pixels, up to 0.71, of the blob that a disc becomes where its picture is smaller. The
            default, the official code's, suits photographs in which discs are many pixels wide; in small pictures it takes a
            good part of all discs for blobs, which have neither plane nor slant.
    """

    low_pass: float = LOW_PASS


class Surfels(Gaussians):
    """N surfels with the raw parameters of `Gaussians`; the third log scale is `THIN` and gets no gradient.

    >>> surfels = Surfels.from_points(torch.rand(10, 3), sh_degree=1)
    >>> len(surfels), round(surfels.normals.norm(dim=1).mean().item(), 4)
    (10, 1.0)
    """

    settings: SurfelsSettings

    def __init__(self, settings: GaussiansSettings | None = None):
        settings = settings or SurfelsSettings()
        if not isinstance(settings, SurfelsSettings):
            settings = SurfelsSettings(settings.sh_degree, settings.isotropic)
        super().__init__(settings)
        if self.settings.isotropic:
            raise InputError("Surfels cannot be isotropic: a ball has no plane; use Gaussians.")

    @property
    def normals(self) -> Float[Tensor, "N 3"]:
        """Unit normals t_w in the world; which of the two sides they point to means nothing."""
        return rotation_from_quaternion(self.quats)[:, :, 2]

    @torch.no_grad()
    def fill(self, **raw: Tensor) -> Surfels:
        super().fill(**raw)
        self.scales[:, 2] = THIN
        return self

    @classmethod
    def from_points(
        cls, points, rgb=None, *, generator: torch.Generator | None = None, low_pass: float = LOW_PASS, **options
    ) -> Surfels:
        """Start a round disc of the local point spacing at every point, turned at random, as the official code does.

        Args:
            generator: of the turns, on the CPU. low_pass: of the settings. Others as in `Gaussians.from_points`.
        """
        surfels = super().from_points(points, rgb, **options)
        surfels.settings = replace(surfels.settings, low_pass=low_pass)
        with torch.no_grad():
            turns = torch.randn(surfels.quats.shape, generator=generator)
            surfels.quats.copy_(torch.nn.functional.normalize(turns, dim=-1))
        return surfels
