"""Ratio of the fused trilinear lookup to torch's grid_sample, values and gradients, both measured in this one run.

python tests/bench/bench_grid_lookup.py
"""

from __future__ import annotations

import time
from statistics import median

import torch

from nsw.kernels.grid_lookup import grid_lookup, grid_lookup_reference

BOX = torch.tensor([[0.0, 0, 0], [1, 1, 1]])


def ray_points(n_rays: int = 4000, n_samples: int = 50) -> torch.Tensor:
    """Return points in the order in which rays visit them."""
    generator = torch.Generator().manual_seed(0)
    origins = torch.rand(n_rays, 1, 3, generator=generator)
    directions = torch.nn.functional.normalize(torch.randn(n_rays, 1, 3, generator=generator), dim=-1)
    return (origins + directions * torch.linspace(0, 0.4, n_samples)[None, :, None]).reshape(-1, 3).clamp(0, 1)


def seconds(lookup, grid: torch.Tensor, points: torch.Tensor, backward: bool, repeats: int = 5) -> float:
    """Return the median time of one lookup."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        out = lookup(grid, points, BOX)
        if backward:
            torch.autograd.grad(out.sum(), grid)
        times.append(time.perf_counter() - start)
    return median(times[1:])


def main() -> None:
    points = ray_points()
    print(f"{len(points)} points in ray order, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'grid':>16} {'forward':>10} {'ratio':>7} {'fwd+bwd':>10} {'ratio':>7}")
    for size in (64, 96):
        for channels in (1, 4, 12):
            grid = torch.randn(size, size, size, channels, requires_grad=True)
            row = [[seconds(f, grid, points, b) for f in (grid_lookup, grid_lookup_reference)] for b in (False, True)]
            cells = "".join(f" {1e3 * fused:7.1f} ms {reference / fused:6.1f}x" for fused, reference in row)
            print(f"{size:>10}^3 x{channels:>3}{cells}", flush=True)


if __name__ == "__main__":
    main()
