"""Skipping empty space on the CPU: nerfacc's occupancy grid, by the same names and arguments.

`OccGridEstimator` keeps nerfacc's buffers, so a state_dict of one loads into the other. Samples lie where nerfacc puts
them: on the lattice near + k * step of each ray, kept where the middle of the interval is in an occupied cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nsw.kernels.boxes import ray_aabb_intersect
from nsw.kernels.traversal import walk
from nsw.kernels.volume import render_visibility_from_alpha, render_visibility_from_density

__all__ = ["OccGridEstimator", "ray_aabb_intersect"]


class OccGridEstimator(nn.Module):
    """Nested grids of which cells may hold density; level l covers the region of interest enlarged 2^l times.

    Args:
        roi_aabb: region of interest, six numbers: minimum and maximum corner.
        resolution: cells along each axis.
        levels: number of nested grids.
    """

    DIM: int = 3

    def __init__(
        self,
        roi_aabb: Sequence[float] | Float[Tensor, "6"],
        resolution: int | Sequence[int] | Tensor = 128,
        levels: int = 1,
        **kwargs,
    ):
        super().__init__()
        if "contraction_type" in kwargs:
            raise ValueError("`contraction_type` is not supported anymore: nerfacc took it out with version 0.4.0.")
        if isinstance(resolution, int):
            resolution = [resolution] * self.DIM
        if isinstance(resolution, list | tuple):
            resolution = torch.tensor(resolution, dtype=torch.int32)
        assert isinstance(resolution, Tensor), f"Invalid type: {resolution}!"
        assert resolution.shape[0] == self.DIM, f"Invalid shape: {resolution}!"
        if isinstance(roi_aabb, list | tuple):
            roi_aabb = torch.tensor(roi_aabb, dtype=torch.float32)
        assert isinstance(roi_aabb, Tensor), f"Invalid type: {roi_aabb}!"
        assert roi_aabb.shape[0] == 2 * self.DIM, f"Invalid shape: {roi_aabb}!"
        centre, half = (roi_aabb[:3] + roi_aabb[3:]) / 2, (roi_aabb[3:] - roi_aabb[:3]) / 2
        boxes = [torch.cat([centre - half * 2**level, centre + half * 2**level]) for level in range(levels)]
        self.levels = levels
        self.cells_per_lvl = int(resolution.prod())
        self.register_buffer("resolution", resolution)
        self.register_buffer("aabbs", torch.stack(boxes))
        self.register_buffer("occs", torch.zeros(levels * self.cells_per_lvl))
        self.register_buffer("binaries", torch.zeros(levels, *resolution.tolist(), dtype=torch.bool))
        coordinates = torch.cartesian_prod(*(torch.arange(n) for n in resolution.tolist()))
        self.register_buffer("grid_coords", coordinates, persistent=False)
        self.register_buffer("grid_indices", torch.arange(self.cells_per_lvl), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.occs.device

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
        found = walk(rays_o, rays_d, self.binaries, self.aabbs, near, far, render_step_size, cone_angle)
        ray_indices, t_starts, t_ends = found.rays, found.starts, found.ends
        if (sigma_fn is None and alpha_fn is None) or not (alpha_thre > 0 or early_stop_eps > 0):
            return ray_indices, t_starts, t_ends
        options = dict(
            ray_indices=ray_indices,
            n_rays=len(rays_o),
            early_stop_eps=early_stop_eps,
            alpha_thre=min(alpha_thre, self.occs.mean().item()),
        )
        values = (sigma_fn or alpha_fn)(t_starts, t_ends, ray_indices) if len(t_starts) else t_starts
        assert values.shape == t_starts.shape, f"one density or opacity is needed for each sample, got {tuple(values.shape)}"
        if sigma_fn is not None:
            visible = render_visibility_from_density(t_starts, t_ends, values, **options)
        else:
            visible = render_visibility_from_alpha(values, **options)
        return ray_indices[visible], t_starts[visible], t_ends[visible]

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
    def mark_invisible_cells(
        self,
        K: Float[Tensor, "c 3 3"],
        c2w: Float[Tensor, "n *34 4"],
        width: int,
        height: int,
        near_plane: float = 0.0,
        chunk: int = 32**3,
    ) -> None:
        """Set the occupancy of cells that no camera sees to -1, which keeps them empty; call it once before training.

        A cell is seen where its grid point projects into a picture at a depth of at least `near_plane`, and in no picture nearer.

        Args:
            K: intrinsics, one for all cameras or one each, in pixels.
            c2w: world from camera, OpenCV axes, [n, 3, 4] or [n, 4, 4].
            chunk: cells projected at once.
        """
        assert K.dim() == 3 and K.shape[1:] == (3, 3), "K must have the shape (n, 3, 3) or (1, 3, 3)."
        assert c2w.dim() == 3 and c2w.shape[1:] in ((3, 4), (4, 4)), "c2w must have the shape (n, 3, 4) or (n, 4, 4)."
        assert K.shape[0] in (1, c2w.shape[0]), "there must be one K, or one for each camera."
        cam_from_world = c2w[:, :3, :3].mT
        for level, cells in enumerate(self._get_all_cells()):
            low, high = self.aabbs[level, :3], self.aabbs[level, 3:]
            for some in cells.split(chunk):
                points_world = low + self.grid_coords[some] / (self.resolution - 1) * (high - low)
                points_cam = cam_from_world @ (points_world.T - c2w[:, :3, 3:])  # [n, 3, cells]
                u, v, depth = (K @ points_cam).unbind(1)
                u, v = u / depth, v / depth
                pictured = (depth >= 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
                seen = (pictured & (depth >= near_plane)).any(0) & ~(pictured & (depth < near_plane)).any(0)
                self.occs[level * self.cells_per_lvl + some] = torch.where(seen, 0.0, -1.0)

    @torch.no_grad()
    def _update(self, step: int, occ_eval_fn, occ_thre: float = 1e-2, ema_decay: float = 0.95, warmup_steps: int = 256) -> None:
        everything = step < warmup_steps
        asked = self._get_all_cells() if everything else self._sample_uniform_and_occupied_cells(self.cells_per_lvl // 4)
        for level, cells in enumerate(asked):
            low, high = self.aabbs[level, :3], self.aabbs[level, 3:]
            index = self.grid_coords[cells]
            points = low + (index + torch.rand(index.shape, device=low.device)) / self.resolution * (high - low)
            found = occ_eval_fn(points).reshape(-1).to(self.occs)
            ids = level * self.cells_per_lvl + cells
            self.occs[ids] = torch.maximum(self.occs[ids] * ema_decay, found)
        known = self.occs[self.occs >= 0]
        threshold = known.mean().clamp(max=occ_thre) if len(known) else occ_thre
        self.binaries = (self.occs > threshold).view(self.binaries.shape)

    def _get_all_cells(self) -> list[Int[Tensor, "n"]]:
        """Return the cells of each level that were not marked invisible (occupancy below zero)."""
        return [(occs >= 0).nonzero()[:, 0] for occs in self.occs.view(self.levels, -1)]

    def _sample_uniform_and_occupied_cells(self, n: int) -> list[Int[Tensor, "n"]]:
        """Return of each level n random cells and up to n occupied ones, each once: twice the same cell would race."""
        found = []
        for level, occs in enumerate(self.occs.view(self.levels, -1)):
            uniform = torch.randint(self.cells_per_lvl, (n,), device=occs.device)
            occupied = self.binaries[level].reshape(-1).nonzero()[:, 0]
            if len(occupied) > n:
                occupied = occupied[torch.randint(len(occupied), (n,), device=occs.device)]
            picked = torch.zeros(self.cells_per_lvl, dtype=torch.bool, device=occs.device)
            picked[uniform[occs[uniform] >= 0]] = True
            picked[occupied] = True
            found.append(picked.nonzero()[:, 0])
        return found
