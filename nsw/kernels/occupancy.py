"""Skipping empty space on the CPU: nerfacc's box intersection and occupancy grid, by the same names and arguments.

`OccGridEstimator` keeps nerfacc's buffers, so a state_dict of one loads into the other. Samples lie where nerfacc puts
them: on the lattice near + k * step of each ray, kept where the middle of the interval is in an occupied cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nsw.kernels.volume import render_visibility_from_alpha, render_visibility_from_density


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


class OccGridEstimator(nn.Module):
    """Nested grids of which cells may hold density; level l covers the region of interest enlarged 2^l times.

    Args:
        roi_aabb: region of interest, six numbers: minimum and maximum corner.
        resolution: cells along each axis.
        levels: number of nested grids.
    """

    def __init__(
        self, roi_aabb: Sequence[float] | Float[Tensor, "6"], resolution: int | Sequence[int] | Tensor = 128, levels: int = 1
    ):
        super().__init__()
        resolution = torch.as_tensor([resolution] * 3 if isinstance(resolution, int) else resolution, dtype=torch.int32)
        roi = torch.as_tensor(roi_aabb, dtype=torch.float32).reshape(6)
        centre, half = (roi[:3] + roi[3:]) / 2, (roi[3:] - roi[:3]) / 2
        self.levels = levels
        self.cells_per_lvl = int(resolution.prod())
        self.register_buffer("resolution", resolution)
        self.register_buffer("aabbs", torch.stack([torch.cat([centre - half * 2**i, centre + half * 2**i]) for i in range(levels)]))
        self.register_buffer("occs", torch.zeros(levels * self.cells_per_lvl))
        self.register_buffer("binaries", torch.zeros(levels, *resolution.tolist(), dtype=torch.bool))

    @torch.no_grad()
    def sampling(
        self,
        rays_o: Float[Tensor, "n 3"],
        rays_d: Float[Tensor, "n 3"],
        sigma_fn: Callable | None = None,
        alpha_fn: Callable | None = None,
        near_plane: float = 0.0,
        far_plane: float = 1e10,
        t_min: Float[Tensor, "n"] | None = None,
        t_max: Float[Tensor, "n"] | None = None,
        render_step_size: float = 1e-3,
        early_stop_eps: float = 1e-4,
        alpha_thre: float = 0.0,
        stratified: bool = False,
        cone_angle: float = 0.0,
    ) -> tuple[Int[Tensor, "M"], Float[Tensor, "M"], Float[Tensor, "M"]]:
        """Return ray index, start and end distance of the samples in occupied cells; not differentiable.

        Args:
            sigma_fn, alpha_fn: (t_starts, t_ends, ray_indices) -> density or opacity; when given, samples behind
                transmittance `early_stop_eps` or thinner than `alpha_thre` are dropped.
            t_min, t_max: distances of each ray to start and stop at, besides the two planes.
            render_step_size: length of a sample in world units; grows to t * cone_angle where that is longer.
            stratified: shift each ray's lattice by a random part of a step.
        """
        near = torch.full_like(rays_o[:, 0], near_plane)
        far = torch.full_like(rays_o[:, 0], far_plane)
        near = near if t_min is None else torch.maximum(near, t_min)
        far = far if t_max is None else torch.minimum(far, t_max)
        if stratified:
            near = near + torch.rand_like(near) * render_step_size
        ray_indices, t_starts, t_ends = self._march(rays_o, rays_d, near, far, render_step_size, cone_angle)
        if (sigma_fn is None and alpha_fn is None) or not (alpha_thre > 0 or early_stop_eps > 0):
            return ray_indices, t_starts, t_ends
        options = dict(
            ray_indices=ray_indices,
            n_rays=len(rays_o),
            early_stop_eps=early_stop_eps,
            alpha_thre=min(alpha_thre, self.occs.mean().item()),
        )
        values = (sigma_fn or alpha_fn)(t_starts, t_ends, ray_indices) if len(t_starts) else t_starts
        if sigma_fn is not None:
            visible = render_visibility_from_density(t_starts, t_ends, values, **options)
        else:
            visible = render_visibility_from_alpha(values, **options)
        return ray_indices[visible], t_starts[visible], t_ends[visible]

    def _march(self, rays_o, rays_d, near, far, step: float, cone_angle: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the lattice intervals of each ray whose middle is in an occupied cell."""
        none = torch.zeros(0, dtype=torch.long, device=rays_o.device)
        if len(rays_o) == 0 or not bool(self.binaries.any()):
            return none, near.new_zeros(0), near.new_zeros(0)
        first, last, hits = ray_aabb_intersect(rays_o, rays_d, self._occupied_box()[None])
        first, last = torch.maximum(first[:, 0], near), torch.minimum(last[:, 0], far)
        rays = (hits[:, 0] & (last > first)).nonzero()[:, 0]
        if len(rays) == 0:
            return none, near.new_zeros(0), near.new_zeros(0)
        edges = _lattice(near[rays], first[rays], last[rays], step, cone_angle)
        middle = (edges[:, 1:] + edges[:, :-1]) / 2
        inside = (middle >= first[rays, None]) & (middle < last[rays, None])
        row, column = inside.nonzero(as_tuple=True)
        t = middle[row, column]
        occupied = self._occupied(rays_o[rays[row]] + t[:, None] * rays_d[rays[row]])
        row, column = row[occupied], column[occupied]
        return rays[row], edges[row, column], edges[row, column + 1]

    def _occupied_box(self) -> Float[Tensor, "6"]:
        """Return the box around all occupied cells: rays need no lattice outside of it."""
        corners = []
        for level in range(self.levels):
            cells = self.binaries[level].nonzero()
            if len(cells):
                low, high = self.aabbs[level, :3], self.aabbs[level, 3:]
                size = (high - low) / self.resolution
                corners.append(torch.stack([low + cells.amin(0) * size, low + (cells.amax(0) + 1) * size]))
        corners = torch.stack(corners)
        return torch.cat([corners[:, 0].amin(0), corners[:, 1].amax(0)])

    def _occupied(self, points_world: Float[Tensor, "N 3"]) -> Bool[Tensor, "N"]:
        """Return whether the finest grid that holds each point calls its cell occupied."""
        low, high = self.aabbs[0, :3], self.aabbs[0, 3:]
        if self.levels == 1:
            unit = (points_world - low) / (high - low)
            level, inside = 0, ((unit >= 0) & (unit <= 1)).all(-1)
        else:
            reach = ((points_world - (low + high) / 2) / (high - low)).abs().amax(-1) * 2
            level = reach.clamp_min(1e-6).log2().ceil().clamp_min(0).long()
            inside = level < self.levels
            level = level.clamp_max(self.levels - 1)
            box = self.aabbs[level]
            unit = (points_world - box[:, :3]) / (box[:, 3:] - box[:, :3])
        cell = (unit * self.resolution).long().clamp_min(0).minimum(self.resolution.long() - 1)
        nx, ny, nz = self.binaries.shape[1:]
        flat = ((level * nx + cell[:, 0]) * ny + cell[:, 1]) * nz + cell[:, 2]
        return self.binaries.view(-1)[flat] & inside

    @torch.no_grad()
    def update_every_n_steps(
        self,
        step: int,
        occ_eval_fn: Callable[[Tensor], Tensor],
        occ_thre: float = 1e-2,
        ema_decay: float = 0.95,
        warmup_steps: int = 256,
        n: int = 16,
    ) -> None:
        """Refresh the grid on every n-th training step.

        Args:
            occ_eval_fn: points [N, 3] -> occupancy [N] or [N, 1], usually density times step size.
            occ_thre: cells above min(occ_thre, mean occupancy) count as occupied.
            ema_decay: how fast an unconfirmed cell fades.
            warmup_steps: before this step every cell is asked, after it a quarter of them and the occupied ones.
        """
        if not self.training:
            raise RuntimeError("The occupancy grid is updated in training mode only: call train() first, or `_update()`.")
        if step % n == 0:
            self._update(step, occ_eval_fn, occ_thre, ema_decay, warmup_steps)

    @torch.no_grad()
    def _update(self, step: int, occ_eval_fn, occ_thre: float = 1e-2, ema_decay: float = 0.95, warmup_steps: int = 256) -> None:
        for level in range(self.levels):
            cells = self._cells(level, everything=step < warmup_steps)
            low, high = self.aabbs[level, :3], self.aabbs[level, 3:]
            index = torch.stack(torch.unravel_index(cells, self.binaries.shape[1:]), -1)
            points = low + (index + torch.rand(index.shape, device=low.device)) / self.resolution * (high - low)
            found = occ_eval_fn(points).reshape(-1).to(self.occs)
            ids = level * self.cells_per_lvl + cells
            self.occs[ids] = torch.maximum(self.occs[ids] * ema_decay, found)
        known = self.occs[self.occs >= 0]
        threshold = known.mean().clamp(max=occ_thre) if len(known) else occ_thre
        self.binaries = (self.occs > threshold).view(self.binaries.shape)

    def _cells(self, level: int, everything: bool) -> Int[Tensor, "n"]:
        """Return the cells of a level to ask: all, or a random quarter of all and up to as many occupied ones.

        Cells marked invisible (occupancy below zero) are never asked.
        """
        occs = self.occs[level * self.cells_per_lvl : (level + 1) * self.cells_per_lvl]
        if everything:
            return (occs >= 0).nonzero()[:, 0]
        quarter = self.cells_per_lvl // 4
        uniform = torch.randint(self.cells_per_lvl, (quarter,), device=occs.device)
        occupied = self.binaries[level].reshape(-1).nonzero()[:, 0]
        if len(occupied) > quarter:
            occupied = occupied[torch.randint(len(occupied), (quarter,), device=occs.device)]
        return torch.cat([uniform[occs[uniform] >= 0], occupied]).unique()  # twice the same cell would race


def _lattice(near: Tensor, first: Tensor, last: Tensor, step: float, cone_angle: float) -> Float[Tensor, "R K"]:
    """Return interval edges near + k * step of each ray from the first interval that reaches `first` to past `last`."""
    if cone_angle <= 0:
        skipped = ((first - near) / step).floor().clamp_min(0)
        n = int(((last - near) / step - skipped).max().ceil().clamp_min(0)) + 1
        k = skipped[:, None] + torch.arange(n + 1, device=near.device)
        return near[:, None] + k * step
    edges = [near]
    while bool((edges[-1] < last).any()):
        edges.append(edges[-1] + (edges[-1] * cone_angle).clamp_min(step))
    return torch.stack(edges, dim=-1)
