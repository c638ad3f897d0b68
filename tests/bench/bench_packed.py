"""Ratio of the compiled packed calls to the plain torch ones, values and gradients, both measured in this one run.

python tests/bench/bench_packed.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

import nsw.kernels as kernels
from nsw.kernels.accumulation import accumulate_reference
from nsw.kernels.boxes import ray_aabb_intersect_reference
from nsw.kernels.compositing import weights_from_alpha_reference, weights_from_density_reference
from nsw.kernels.packed_reference import scan_reference

BOX = torch.tensor([-1.0, -1, -1, 1, 1, 1])
Pair = tuple[Callable[[], object], Callable[[], object]]  # compiled, plain


def seconds(pair: Pair, repeats: int = 9) -> tuple[float, float]:
    """Return both median times, the two taking turns; the first round compiles."""
    times = ([], [])
    for _ in range(repeats + 1):
        for call, into in zip(pair, times, strict=True):
            start = time.perf_counter()
            call()
            into.append(time.perf_counter() - start)
    return median(times[0][1:]), median(times[1][1:])


def rays(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rays from a sphere of radius 3 towards the box."""
    generator = torch.Generator().manual_seed(0)
    origins = 3 * torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    aims = torch.rand(n, 3, generator=generator) * 1.4 - 0.7
    return origins, torch.nn.functional.normalize(aims - origins, dim=-1)


def ball_grid(resolution: int, levels: int) -> kernels.OccGridEstimator:
    """Return a grid whose occupied cells are a shell, as a trained one's are."""
    grid = kernels.OccGridEstimator(BOX, resolution, levels)
    for level in range(levels):
        low, high = grid.aabbs[level, :3], grid.aabbs[level, 3:]
        radius = (low + (grid.grid_coords + 0.5) / resolution * (high - low)).norm(dim=-1)
        grid.binaries[level] = ((radius > 0.55) & (radius < 0.65)).view(grid.binaries.shape[1:])
    return grid


def plain_march(grid: kernels.OccGridEstimator, origins: torch.Tensor, directions: torch.Tensor, step: float):
    """March one level with torch calls: all lattice points inside the box, then a lookup."""
    near, far, hits = ray_aabb_intersect_reference(origins, directions, BOX[None], 0.0, 1e10, 0.0)
    first = (near[:, 0] / step).floor()
    n = int(((far[:, 0] / step) - first).max()) + 1
    middle = (first[:, None] + torch.arange(n) + 0.5) * step
    row, column = (hits & (middle >= near) & (middle < far)).nonzero(as_tuple=True)
    t = middle[row, column]
    cell = ((origins[row] + t[:, None] * directions[row] + 1) / 2 * grid.resolution).long().clamp(0, grid.binaries.shape[1] - 1)
    kept = grid.binaries[0][tuple(cell.unbind(-1))]
    return row[kept], t[kept] - step / 2, t[kept] + step / 2


def samples(n_rays: int = 8192, longest: int = 96) -> tuple[torch.Tensor, int]:
    """Return ray indices of packed samples, some rays empty."""
    counts = torch.randint(longest, (n_rays,), generator=torch.Generator().manual_seed(1))
    counts[::5] = 0
    return torch.repeat_interleave(torch.arange(n_rays), counts), n_rays


def gradient(outputs, *inputs: torch.Tensor) -> None:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.autograd.grad(sum(o.sum() for o in outputs), inputs)


def packed_pairs() -> dict[str, Pair]:
    """Return the calls on packed samples, forward and backward."""
    index, n = samples()
    info = kernels.pack_info(index, n)
    x = torch.rand(len(index), requires_grad=True)
    rgb = torch.rand(len(index), 3, requires_grad=True)
    zeros, ones = torch.zeros(len(index)), torch.ones(len(index))
    print(f"{len(index)} packed samples of {n} rays")

    def rendering_plain() -> None:
        packing = _plain_pack(index, n)
        weights, _, _ = weights_from_density_reference(x * (ones - zeros), packing)
        sums = [accumulate_reference(weights, v, index, n) for v in (rgb, None, ((zeros + ones) / 2)[:, None])]
        gradient((sums[0], sums[1], sums[2] / sums[1].clamp_min(1e-7)), x, rgb)

    def rendering_fused() -> None:
        gradient(kernels.rendering(zeros, ones, index, n, rgb_sigma_fn=lambda *_: (rgb, x))[:3], x, rgb)

    where = dict(packed_info=info)
    return {
        "pack_info": (lambda: kernels.pack_info(index, n), lambda: _plain_pack(index, n)),
        "exclusive_sum, f+b": (
            lambda: gradient(kernels.exclusive_sum(x, info), x),
            lambda: gradient(scan_reference(x, info, False, True), x),
        ),
        "inclusive_prod, f+b": (
            lambda: gradient(kernels.inclusive_prod(x, info), x),
            lambda: gradient(scan_reference(x, info, True), x),
        ),
        "weights of density": (
            lambda: kernels.render_weight_from_density(zeros, ones, x.detach(), **where),
            lambda: weights_from_density_reference(x.detach() * (ones - zeros), info),
        ),
        "weights of density, f+b": (
            lambda: gradient(kernels.render_weight_from_density(zeros, ones, x, **where)[0], x),
            lambda: gradient(weights_from_density_reference(x * (ones - zeros), info)[0], x),
        ),
        "weights of alpha, f+b": (
            lambda: gradient(kernels.render_weight_from_alpha(x, **where)[0], x),
            lambda: gradient(weights_from_alpha_reference(x, info)[0], x),
        ),
        "accumulate colours, f+b": (
            lambda: gradient(kernels.accumulate_along_rays(x, rgb, index, n), x, rgb),
            lambda: gradient(accumulate_reference(x, rgb, index, n), x, rgb),
        ),
        "rendering, f+b": (rendering_fused, rendering_plain),
    }


def _plain_pack(index: torch.Tensor, n: int) -> torch.Tensor:
    counts = torch.bincount(index, minlength=n)
    return torch.stack([counts.cumsum(0) - counts, counts], dim=-1)


def batched_pairs() -> dict[str, Pair]:
    """Return the calls on batched samples and on rays."""
    depth = torch.rand(4096, 64, requires_grad=True)
    zeros, ones = torch.zeros(4096, 64), torch.ones(4096, 64)
    edges = torch.rand(4096, 65).sort(-1).values
    cdf = torch.nn.functional.pad(torch.rand(4096, 64).cumsum(-1), (1, 0))
    o, d = rays(8192)
    grid = ball_grid(128, 1)

    def plain_resample() -> None:
        u = (torch.arange(128) + 0.5) / 128 * cdf[:, -1:]
        right = torch.searchsorted(cdf, u, right=True).clamp(1, 64)
        low, high, t0, t1 = cdf.gather(1, right - 1), cdf.gather(1, right), edges.gather(1, right - 1), edges.gather(1, right)
        t = t0 + (u - low) / (high - low).clamp_min(1e-7) * (t1 - t0)
        middle = (t[:, 1:] + t[:, :-1]) / 2
        torch.cat([2 * t[:, :1] - middle[:, :1], middle, 2 * t[:, -1:] - middle[:, -1:]], 1)

    return {
        "batched weights, f+b": (
            lambda: gradient(kernels.render_weight_from_density(zeros, ones, depth)[0], depth),
            lambda: gradient(weights_from_density_reference(depth * (ones - zeros), None)[0], depth),
        ),
        "importance_sampling": (lambda: kernels.importance_sampling(kernels.RayIntervals(edges), cdf, 128), plain_resample),
        "ray_aabb_intersect": (
            lambda: kernels.ray_aabb_intersect(o, d, BOX[None]),
            lambda: ray_aabb_intersect_reference(o, d, BOX[None]),
        ),
        "sampling 128^3, step 0.02": (
            lambda: grid.sampling(o, d, render_step_size=0.02),
            lambda: plain_march(grid, o, d, 0.02),
        ),
        "sampling 128^3, step 0.005": (
            lambda: grid.sampling(o, d, render_step_size=0.005),
            lambda: plain_march(grid, o, d, 0.005),
        ),
    }


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'call':>28} {'compiled':>10} {'plain':>10} {'ratio':>7}")
    for name, pair in {**packed_pairs(), **batched_pairs()}.items():
        fused, plain = seconds(pair)
        print(f"{name:>28} {1e3 * fused:7.2f} ms {1e3 * plain:7.2f} ms {plain / fused:6.1f}x", flush=True)
    o, d = rays(8192)
    for levels, cone in ((1, 0.0), (4, 0.0), (4, 0.004)):
        grid = ball_grid(128, levels)
        own, _ = seconds((lambda: grid.sampling(o, d, render_step_size=0.01, cone_angle=cone), lambda: None))  # noqa: B023
        print(f"{f'{levels} levels, cone {cone:g}':>28} {1e3 * own:7.2f} ms")


if __name__ == "__main__":
    main()
