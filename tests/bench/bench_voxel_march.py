"""Ratio of the fused march through a sparse voxel grid to the same thing in torch calls, both measured in this one run.

python tests/bench/bench_voxel_march.py

"torch" is the definition that tests compare with, on float32: it asks densities of all samples, and coefficients of those that
count, as a careful torch program does. "grid_sample" looks up every sample of a dense grid with torch's own operation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from nsw.cameras import camera_rays, orbit
from nsw.kernels.grid_lookup import grid_lookup_reference
from nsw.kernels.harmonics import sh_basis
from nsw.kernels.voxel_march import RowGradient, empty_cells, march_voxels
from nsw.kernels.voxel_march_reference import march_voxels_reference, shade
from nsw.methods.plenoxels import march_arguments
from nsw.models.plenoxel_grid import PlenoxelGrid, PlenoxelGridSettings


def hollow_ball(size: int, degree: int) -> PlenoxelGrid:
    """Return a grid in which one voxel in ten is positive, as in a scene that has been trained for a while."""
    grid = PlenoxelGrid(PlenoxelGridSettings(n_voxels=size**3, sh_degree=degree))
    radius = grid.positions().norm(dim=-1).reshape(-1)
    with torch.no_grad():
        grid.values[1:, 0] = torch.where((radius < 0.7) & (radius > 0.6), 30.0, -5.0)
    return grid


def rays_of(n: int):
    """Return n rays through random pixels of pictures from all around."""
    rays = camera_rays(orbit(8, radius=3.0, width=100, height=100))
    return rays[torch.randint(len(rays), (n,), generator=torch.Generator().manual_seed(0))]


def with_grid_sample(dense, rays, where, degree: int):
    """Return the colour of rays that look up every sample of a dense grid at once."""
    n = int(((where["far"] - where["near"]).max() / where["step"]).ceil())
    t = where["near"][:, None] + (torch.arange(n) + 0.5) * where["step"]
    points = rays.origins[:, None] + t[..., None] * rays.directions[:, None]
    features = grid_lookup_reference(dense, points.reshape(-1, 3), where["aabb"])
    depth = features[:, 0].view(t.shape).clamp_min(0) * where["delta"] * (t < where["far"][:, None])
    weight = torch.exp(-(depth.cumsum(1) - depth)) * -torch.expm1(-depth)
    colour = shade(features, sh_basis(degree, rays.directions).repeat_interleave(n, 0)).view(*t.shape, 3)
    return (weight[..., None] * colour).sum(1)


def seconds(call: Callable[[], torch.Tensor], backward: bool, repeats: int = 5) -> float:
    """Return the median time of one call, and of its gradient."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        out = call()
        if backward:
            out.sum().backward()
        times.append(time.perf_counter() - start)
    return median(times[1:])


def main() -> None:
    print(f"2048 rays, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'grid':>8} {'SH':>3}" + "".join(f" | {name:>10} {'torch':>7} {'grid_sample':>12}" for name in ("forward", "fwd+bwd")))
    rays = rays_of(2048)
    for size, degree in ((40, 1), (64, 1), (64, 2), (100, 1)):
        grid = hollow_ball(size, degree)
        where, skip = march_arguments(grid, rays), empty_cells(grid.values, grid.links)
        into, dense = RowGradient.like(grid.values.detach()), grid.dense().requires_grad_()
        calls = (
            lambda: march_voxels(grid.values, grid.links, **where, sh_degree=degree, stop=1e-4, skip=skip, into=into)[0],  # noqa: B023
            lambda: march_voxels_reference(grid.values, grid.links, **where, sh_degree=degree, stop=1e-4)[0],  # noqa: B023
            lambda: with_grid_sample(dense, rays, where, degree),  # noqa: B023
        )
        cells = []
        for backward in (False, True):
            fused, torch_calls, sampled = (seconds(call, backward, 5 if i == 0 else 2) for i, call in enumerate(calls))
            cells.append(f"{1e3 * fused:7.1f} ms {torch_calls / fused:6.1f}x {sampled / fused:11.1f}x")
        print(f"{size:>6}^3 {degree:>3} | {cells[0]} | {cells[1]}", flush=True)


if __name__ == "__main__":
    main()
