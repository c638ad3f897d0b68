"""What NeRDF's notebook draws of untrained students: their waves, and what they are told of a row of rays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import Cameras, Rays, camera_rays
from nsw.models.ray_distribution import RayDistribution, RaySettings
from nsw.renderers import whole_rays
from nsw.renderers.volume import ray_bounds


@torch.no_grad()
def untrained_waves(
    sizes: RaySettings, dampings: Mapping[str, float], rays: Rays, near: float, n: int = 200
) -> dict[str, tuple[Float[Tensor, "n"], Float[Tensor, "n"]]]:
    """Return positions in [0, 1] and densities, 1 / world unit, along each ray as students with other damping begin.

    Args:
        dampings: name -> power of the damping.
        n: positions along the ray.
    """
    tau, waves = whole_rays.positions(n, rays.origins.device), {}
    for name, damping in dampings.items():
        student = RayDistribution(replace(sizes, damping=damping)).to(rays.origins.device)
        densities = whole_rays.render_rays(student, rays, near=near, tau=tau).densities
        waves |= {f"{name}, ray {i}": (tau, density) for i, density in enumerate(densities)}
    return waves


@torch.no_grad()
def told_of_a_row(sizes: RaySettings, camera: Cameras, near: float) -> Float[Tensor, "L W"]:
    """Return what a network is told of the rays of a picture's middle row: one coordinate of each ray's middle point, encoded.

    Every row of the map is one number of the encoding, three times as high as a pixel is wide; values are in [-1, 1] but for the
    coordinate itself.
    """
    network = RayDistribution(sizes).network.to(camera.Ks.device)
    row = camera_rays(camera)[camera.width * (camera.height // 2) :][: camera.width]
    told = network.encode(row, *ray_bounds(network, row, near)[:2]).T
    return told[3 * (sizes.n_points // 2) + 1 :: 3 * (sizes.n_points + 1)].repeat_interleave(3, 0)
