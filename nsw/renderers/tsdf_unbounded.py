r"""Fusion without a box: space outside a ball is folded into a shell around it, and the grid covers both (Huang et al. 2024).

$$c(x) = x \;\text{ for } |x| \le 1, \qquad c(x) = \big(2 - 1/|x|\big)\, x / |x| \;\text{ else}$$  (Barron et al. 2022, eq. 10)

Cells of the shell are as large as what they hold is far away, and so is their truncation.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.cameras import Cameras
from nsw.errors import InputError
from nsw.models.meshes import grid_points, level_set, without_crumbs
from nsw.renderers.tsdf import mean_distance

OUTERMOST = 1.95  # radius in folded space that is still asked: 20 radii away


def unfolded(points: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
    """Return where points of folded space, |c| < 2, stand in space: the inverse of c.

    >>> unfolded(torch.tensor([[0.5, 0.0, 0.0], [1.5, 0.0, 0.0]])).tolist()
    [[0.5, 0.0, 0.0], [2.0, 0.0, 0.0]]
    """
    radius = points.norm(dim=-1, keepdim=True)
    return torch.where(radius > 1, points / (radius * (2 - radius)).clamp_min(1e-6), points)


def unbounded_mesh(
    depth: Float[Tensor, "C H W"],
    cameras: Cameras,
    centre: Float[Tensor, "3"],
    radius: float,
    voxel: float,
    truncation: float | None = None,
    empty: Bool[Tensor, "C H W"] | None = None,
    least_views: int = 2,
    **crumbs,
):
    r"""Return the mesh of the surface that depth maps agree on, near and far; see `tsdf.fused_mesh`.

    The truncation is t inside the ball, $t / (2 - |c|)$ in folded space outside it.

    Args:
        centre, radius: of the ball that is not folded, world units; what the cameras look at.
        voxel, truncation: inside the ball, world units.

    Raises:
        InputError: for a radius that is not above 0, and as `tsdf.fuse` does.
    """
    if not radius > 0:
        raise InputError(f"unbounded_mesh() needs a ball with a radius above 0, got {radius}.")
    box = torch.tensor([[-OUTERMOST] * 3, [OUTERMOST] * 3])
    folded, _ = grid_points(box, voxel / radius, depth.device)
    shell = folded.norm(dim=-1)
    points = centre.to(folded) + radius * unfolded(folded)
    reach = (truncation or 4 * voxel) * torch.where(shell > 1, 1 / (2 - shell).clamp_min(1e-3), 1.0)
    asked = shell < OUTERMOST
    mean, count = torch.ones_like(shell), torch.zeros_like(shell)
    mean[asked], count[asked] = mean_distance(points[asked], depth, cameras, reach[asked], empty)
    mesh = level_set(mean.cpu(), box, 0.0, (count >= least_views).cpu())
    if len(mesh.faces):
        mesh.vertices = (centre.cpu() + radius * unfolded(torch.as_tensor(mesh.vertices).float())).double().numpy()
    return without_crumbs(mesh, **crumbs)
