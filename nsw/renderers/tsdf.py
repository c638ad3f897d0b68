r"""Depth maps of many views to one surface: the truncated signed distance of Curless and Levoy (SIGGRAPH 1996).

Every view says of a point how far in front of the seen surface it lies, $d = D(\pi(x)) - z(x)$: positive in free space, negative
behind. Far in front it says 1, far behind it says nothing, and the mean over the views is 0 on the surface they agree on.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.cameras import Cameras, project
from nsw.errors import InputError
from nsw.kernels.tsdf_fusion import distance_sums
from nsw.models.meshes import grid_points, level_set, without_crumbs


def fuse(
    depth: Float[Tensor, "C H W"],
    cameras: Cameras,
    aabb: Float[Tensor, "2 3"],
    voxel: float,
    truncation: float | None = None,
    empty: Bool[Tensor, "C H W"] | None = None,
) -> tuple[Float[Tensor, "X Y Z"], Float[Tensor, "X Y Z"]]:
    r"""Average what the views say about the points of a grid.

    $$F(x) = \frac1{|V_x|} \sum_{c \in V_x} \min\!\big(1, (D_c(\pi_c(x)) - z_c(x)) / t\big), \quad
    V_x = \{c : D_c - z_c > -t\}$$  (Curless and Levoy 1996, eq. 3, weights 1)

    Args:
        depth: camera z of the seen surface; pixels with 0 say nothing.
        voxel: distance of the grid's points, world units.
        truncation: t, world units; None takes 4 voxels.
        empty: pixels that are known to see nothing at all; along them every point is in front.

    Returns:
        F in [-1, 1] at the points of `grid_points(aabb, voxel)`, and how many views spoke; F is 1 where none did.
    """
    points, _ = grid_points(aabb, voxel, depth.device)
    mean, count = mean_distance(points.reshape(-1, 3), depth, cameras, truncation or 4 * voxel, empty)
    return mean.view(points.shape[:3]), count.view(points.shape[:3])


def mean_distance(
    points: Float[Tensor, "N 3"],
    depth: Float[Tensor, "C H W"],
    cameras: Cameras,
    reach: float | Float[Tensor, "N"],
    empty: Bool[Tensor, "C H W"] | None = None,
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Return F of `fuse` at any points, with a truncation for all or for each, and how many views spoke."""
    if depth.shape != (len(cameras), cameras.height, cameras.width):
        raise InputError(
            f"Fusion needs one depth map a camera, {[len(cameras), cameras.height, cameras.width]}, got {list(depth.shape)}."
        )
    cameras = cameras.to(depth.device)
    depth = depth if empty is None else torch.where(empty, torch.inf, depth)
    reach = torch.as_tensor(reach, dtype=torch.float32, device=depth.device).expand(len(points))
    sums = distance_sums if depth.device.type == "cpu" else sums_reference
    total, count = sums(points, depth, depth > 0, cameras, reach)
    return torch.where(count > 0, total / count.clamp_min(1), 1.0), count


def sums_reference(
    points: Float[Tensor, "N 3"],
    depth: Float[Tensor, "C H W"],
    known: Bool[Tensor, "C H W"],
    cameras: Cameras,
    reach: Float[Tensor, "N"],
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    r"""Return the sum over the views of each point's truncated distance to what they see, and how many views spoke.

    $$\sum_{c \in V_x} \min\!\big(1, (D_c(\pi_c(x)) - z_c(x)) / t\big), \quad V_x = \{c : D_c - z_c > -t\}$$
    (Curless and Levoy 1996, eq. 3, weights 1)

    `nsw.kernels.tsdf_fusion.distance_sums` is the same, compiled, for the CPU.
    """
    total, count = torch.zeros_like(points[:, 0]), torch.zeros_like(points[:, 0])
    for view in range(len(cameras)):
        pixels, z = project(cameras[view], points)
        seen, ok = sample(depth[view], known[view], pixels[0], reach)
        distance = (seen - z[0]) / reach
        ok &= (z[0] > 0) & (distance > -1)
        total += torch.where(ok, distance.clamp(max=1.0), 0.0)
        count += ok
    return total, count


def sample(
    depth: Float[Tensor, "H W"], known: Bool[Tensor, "H W"], pixels: Float[Tensor, "N 2"], edge: float | Float[Tensor, "N"]
) -> tuple[Float[Tensor, "N"], Bool[Tensor, "N"]]:
    """Return depth at pixel coordinates: bilinear between four known pixels, of the nearest one across an edge.

    Args:
        edge: where the four differ by more than this they belong to different surfaces.

    Returns:
        Depth, and whether it is known there.
    """
    height, width = depth.shape
    x, y = (pixels - 0.5).unbind(-1)  # pixel centres are at +0.5: half a pixel lost here is a bias of the whole mesh
    x0, y0 = x.floor(), y.floor()
    inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
    columns = [(x0 + k).clamp(0, width - 1).long() for k in (0, 1)]
    rows = [(y0 + k).clamp(0, height - 1).long() for k in (0, 1)]
    corners = torch.stack([depth[r, c] for r in rows for c in columns])
    fine = torch.stack([known[r, c] for r in rows for c in columns]).all(0) & (corners.amax(0) < corners.amin(0) + edge)
    fx, fy = x - x0, y - y0
    shares = torch.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy])
    row, column = y.round().clamp(0, height - 1).long(), x.round().clamp(0, width - 1).long()
    value = torch.where(fine, torch.where(fine, corners, 0.0).mul(shares).sum(0), depth[row, column])
    return value, inside & known[row, column]


def fused_mesh(
    depth: Float[Tensor, "C H W"],
    cameras: Cameras,
    aabb: Float[Tensor, "2 3"],
    voxel: float,
    truncation: float | None = None,
    empty: Bool[Tensor, "C H W"] | None = None,
    least_views: int = 2,
    **crumbs,
):
    """Return the mesh of the surface that depth maps agree on; arguments as in `fuse`, `crumbs` as in `without_crumbs`.

    The maps are fused on their device.
    """
    values, count = (grid.cpu() for grid in fuse(depth, cameras, aabb, voxel, truncation, empty))
    return without_crumbs(level_set(values, aabb, 0.0, count >= least_views), **crumbs)
