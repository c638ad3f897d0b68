"""Where rays enter and leave axis-aligned boxes: the slab method, compiled, and its plain torch reference.

A box is where three slabs meet. A ray is inside slab a between (low_a - o_a) / d_a and (high_a - o_a) / d_a, so it enters the
box at the largest of the three entries and leaves it at the smallest of the three exits.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.kernels.chunks import n_shares
from nsw.kernels.compiling import helper, kernel
from nsw.kernels.threads import run_shares


@torch.no_grad()
def ray_aabb_intersect(
    rays_o: Float[Tensor, "n 3"],
    rays_d: Float[Tensor, "n 3"],
    aabbs: Float[Tensor, "m 6"],
    near_plane: float = -float("inf"),
    far_plane: float = float("inf"),
    miss_value: float = float("inf"),
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"], Bool[Tensor, "n m"]]:
    """Return where each ray enters and leaves each box, and whether it meets it in front of its origin.

    Args:
        aabbs: boxes as minimum and maximum corner.
        near_plane, far_plane: distances to which the result is clamped.
        miss_value: what stands for both distances where the ray misses.

    >>> box = torch.tensor([[-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]])
    >>> [x.item() for x in ray_aabb_intersect(torch.tensor([[0.0, 0.0, -3.0]]), torch.tensor([[0.0, 0.0, 1.0]]), box)]
    [2.0, 4.0, True]
    """
    assert rays_o.ndim == 2 and rays_o.shape[-1] == 3, "rays_o must have the shape (n_rays, 3)."
    assert rays_d.ndim == 2 and rays_d.shape[-1] == 3, "rays_d must have the shape (n_rays, 3)."
    assert aabbs.ndim == 2 and aabbs.shape[-1] == 6, "aabbs must have the shape (m, 6)."
    single = all(t.dtype == torch.float32 for t in (rays_o, rays_d, aabbs))
    if rays_o.is_cuda and single and len(rays_o):  # one kernel in the place of twenty; it cannot be started for no rays
        import nerfacc

        return nerfacc.ray_aabb_intersect(rays_o, rays_d, aabbs, near_plane, far_plane, miss_value)
    if rays_o.device.type != "cpu":
        return ray_aabb_intersect_reference(rays_o, rays_d, aabbs, near_plane, far_plane, miss_value)
    origins, directions, boxes = (t.detach().to(rays_o.dtype).contiguous().numpy() for t in (rays_o, rays_d, aabbs))
    shape = (len(origins), len(boxes))
    t_mins, t_maxs, hits = np.empty(shape, origins.dtype), np.empty(shape, origins.dtype), np.empty(shape, np.bool_)
    limits = (float(near_plane), float(far_plane), float(miss_value))
    run_shares(_intersect, n_shares(hits.size), origins, directions, boxes, *limits, t_mins, t_maxs, hits)
    return torch.from_numpy(t_mins), torch.from_numpy(t_maxs), torch.from_numpy(hits)


def ray_aabb_intersect_reference(
    rays_o: Tensor,
    rays_d: Tensor,
    aabbs: Tensor,
    near_plane: float = -float("inf"),
    far_plane: float = float("inf"),
    miss_value: float = float("inf"),
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same from plain torch calls."""
    # A component of exactly zero would give 0 * inf = NaN on a face; a tiny one gives the right signed infinity.
    tiny = torch.finfo(rays_d.dtype).tiny
    inverse = 1.0 / torch.where(rays_d.abs() < tiny, torch.full_like(rays_d, tiny), rays_d)
    at_min = (aabbs[None, :, :3] - rays_o[:, None]) * inverse[:, None]
    at_max = (aabbs[None, :, 3:] - rays_o[:, None]) * inverse[:, None]
    t_mins = torch.minimum(at_min, at_max).amax(-1)
    t_maxs = torch.maximum(at_min, at_max).amin(-1)
    hits = (t_maxs > t_mins) & (t_maxs > 0)
    t_mins, t_maxs = (t.clamp(near_plane, far_plane).masked_fill(~hits, miss_value) for t in (t_mins, t_maxs))
    return t_mins, t_maxs, hits


@helper
def slab(origin, direction, low, high):
    """The part of a ray inside a slab; a ray along it is inside everywhere or nowhere."""
    if abs(direction) < 1e-300:  # its inverse would be infinite
        return (-np.inf, np.inf) if low <= origin <= high else (np.inf, -np.inf)
    inverse = 1.0 / direction
    first, last = (low - origin) * inverse, (high - origin) * inverse
    return (first, last) if first <= last else (last, first)


@helper
def box_range(o, d, r, box, b):
    """Where ray r enters and leaves box b; the entry lies behind the exit if it misses."""
    enter, leave = -np.inf, np.inf
    for a in range(3):
        first, last = slab(np.float64(o[r, a]), np.float64(d[r, a]), np.float64(box[b, a]), np.float64(box[b, a + 3]))
        enter, leave = max(enter, first), min(leave, last)
    return enter, leave


@kernel
def _intersect(o, d, boxes, near, far, miss, t_mins, t_maxs, hits, share, n_shares):
    n = o.shape[0]
    for r in range(share * n // n_shares, (share + 1) * n // n_shares):
        for b in range(boxes.shape[0]):
            enter, leave = box_range(o, d, r, boxes, b)
            hit = enter < leave and leave > 0
            hits[r, b] = hit
            t_mins[r, b] = min(max(enter, near), far) if hit else miss
            t_maxs[r, b] = min(max(leave, near), far) if hit else miss


@kernel
def sort_crossings(o, d, boxes, t_sorted, t_indices, hits, share, n_shares):
    """All entries (index b) and exits (index m + b) of each ray into m boxes by distance; those of a miss at infinity."""
    n, m = o.shape[0], boxes.shape[0]
    for r in range(share * n // n_shares, (share + 1) * n // n_shares):
        for b in range(m):
            enter, leave = box_range(o, d, r, boxes, b)
            hits[r, b] = enter < leave and leave > 0
            t_sorted[r, b] = enter if hits[r, b] else np.inf
            t_sorted[r, m + b] = leave if hits[r, b] else np.inf
        for i in range(2 * m):  # by insertion: a handful of boxes
            t, place = t_sorted[r, i], i
            while place > 0 and t_sorted[r, place - 1] > t:
                t_sorted[r, place], t_indices[r, place] = t_sorted[r, place - 1], t_indices[r, place - 1]
                place -= 1
            t_sorted[r, place], t_indices[r, place] = t, i
