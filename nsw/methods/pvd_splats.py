"""3D Gaussians as a teacher and as a student of Progressive Volume Distillation.

Splats answer for rays and not for points, so the levels of the volume are not there to be compared: both ways go through
pictures. A field becomes splats that start on its surface; splats become a field by the colour, opacity and depth that they show.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nsw.cameras import Rays
from nsw.errors import InputError
from nsw.kernels.packed_rays import packed_weights
from nsw.losses import loss_l1, loss_mse
from nsw.methods import gaussian_splatting as gs
from nsw.methods import pvd
from nsw.methods.pvd_teacher import Plan, Teacher, pictures_of
from nsw.models.gaussians import Gaussians
from nsw.renderers.parts import all_rays
from nsw.renderers.volume import march_cells


def gaussians(
    teacher: Teacher, plan: Plan, generator: torch.Generator, n_splats: int = 4000, sh_degree: int = 1, n_pictures: int = 48
) -> pvd.Learner:
    """Return splats that start on the surface that a teacher renders, and train on its pictures.

    Raises:
        InputError: for a teacher that is nowhere opaque.
    """
    pictures = teacher.pictures
    if pictures is None:
        pictures = pictures_of(teacher.model, teacher.cameras[slice(0, n_pictures)], teacher.aabb, teacher.near)
    if not bool((pictures.depth > 0).any()):
        raise InputError(
            f"The {type(teacher.model).__name__} is nowhere opaque, so splats find no surface to start on: train it first."
        )
    seed = int(torch.randint(1 << 30, (1,), generator=generator, device=generator.device))
    points = gs.starting_points(pictures, n_splats, seed)
    splats = Gaussians.from_points(points, sh_degree=sh_degree, opacity=0.5).to(teacher.aabb.device)
    training = gs.Training(splats, pictures.scale, plan.n_steps, seed=seed)

    def step(k: int) -> dict[str, Tensor]:
        gs.fit(training, pictures, [k], seed)
        return {}

    return pvd.Learner(splats, plan.n_steps, step)


@dataclass(frozen=True)
class SeenRays:
    """Rays of a teacher's pictures: rgb [P, 3] times opacity, opacity [P], distance [P] to the surface, 0 where unknown."""

    rays: Rays
    rgb: Float[Tensor, "P 3"]
    alpha: Float[Tensor, "P"]
    distance: Float[Tensor, "P"]

    def draw(self, n_rays: int, generator: torch.Generator) -> SeenRays:
        """Return random ones."""
        index = torch.randint(len(self.alpha), (n_rays,), generator=generator, device=self.alpha.device)
        return SeenRays(self.rays[index], self.rgb[index], self.alpha[index], self.distance[index])


def picture_rays(teacher: Teacher) -> SeenRays:
    """Return every ray of the pictures of splats."""
    pictures, device = teacher.pictures, teacher.aabb.device
    rays = all_rays(pictures.cameras, device)
    distance = pictures.depth.reshape(-1).to(device) / rays.z_per_t
    rgb, alpha = pictures.pixels("train", 0.0).reshape(-1, 3), pictures.alphas("train").reshape(-1)
    return SeenRays(rays, rgb.to(device), alpha.to(device), distance)


def picture_losses(
    model: nn.Module, teacher: Teacher, seen: SeenRays, generator: torch.Generator, depth: float = 0.02
) -> tuple[dict[str, Float[Tensor, ""]], int]:
    """Return how far a field is from what splats show on some rays, and how many samples were asked.

    The colour is compared over random backgrounds, so opacity is too; the distance where the splats are opaque.

    Args:
        depth: weight of the distance, in halves of the box.
    """
    n, device = len(seen.rays), seen.alpha.device
    ray_indices, t, points = march_cells(teacher, seen.rays, teacher.cells, teacher.step, teacher.near, generator)
    behind = torch.rand(n, 3, generator=generator, device=device)
    reading = pvd.read(model, points, seen.rays, ray_indices)
    weights, left = packed_weights(reading.log_density.exp() * teacher.step, ray_indices, n)
    rgb = left[:, None] * behind + torch.zeros_like(behind).index_add(0, ray_indices, weights[:, None] * reading.rgb)
    distance = torch.zeros_like(left).index_add(0, ray_indices, weights * t) / (1 - left).clamp_min(1e-3)
    solid = (seen.alpha > 0.9) & (seen.distance > 0)
    terms = {"picture": loss_mse(rgb, seen.rgb + (1 - seen.alpha)[:, None] * behind)}
    if bool(solid.any()):
        terms["depth"] = depth * loss_l1(distance[solid], seen.distance[solid]) / teacher.half
    return terms, len(t)
