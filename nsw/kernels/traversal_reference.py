"""The rules of `traversal.py`, one ray at a time in plain Python and float64: what the compiled walk is tested against.

Where the walk steps from wall to wall, this one lists all distances at which a ray crosses any wall of a grid and sorts them:
between two neighbours in that list lies one cell, found from the point half-way.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.kernels.boxes import ray_aabb_intersect_reference

Stretch = tuple[float, float, bool]  # from, to, occupied


def samples_reference(
    origin: Float[Tensor, "3"],
    direction: Float[Tensor, "3"],
    binaries: Bool[Tensor, "m x y z"],
    aabbs: Float[Tensor, "m 6"],
    near: float,
    far: float,
    step: float,
    cone_angle: float = 0.0,
    limit: int = 0,
) -> tuple[list[tuple[float, float, bool]], float]:
    """Return start, end and joined of each sample of one ray, and where the ray was left."""
    cells = stretches(origin.double(), direction.double(), binaries, aabbs.double(), near, far)
    samples: list[tuple[float, float, bool]] = []
    t, k, continuous, reached = near, 0, False, near

    def interval() -> tuple[float, float]:
        if step > 0 and cone_angle <= 0:
            return near + k * step, near + (k + 1) * step
        return t, t + max(step, t * cone_angle)

    def skip(target: float) -> None:
        nonlocal t, k
        if step <= 0:
            t = target
        elif cone_angle <= 0:
            while sum(interval()) / 2 < target:
                k += 1
            t = interval()[0]
        else:
            length = max(step, t * cone_angle)  # held while skipping
            while t + length / 2 < target:
                t += length

    for begin, end, occupied in cells:
        continuous = continuous and begin == reached
        reached = end
        if not continuous:
            skip(begin)
        if not occupied:
            skip(end)
            continuous = False
            continue
        while not (limit and len(samples) >= limit):
            first, last = (t, end) if step <= 0 else interval()
            if (step > 0 and (first + last) / 2 >= end) or last <= first:
                break
            samples.append((first, last, continuous))
            t, k, continuous = last, k + 1, True
        if limit and len(samples) >= limit:
            return samples, t
    if step > 0:
        skip(reached)
    return samples, t if step > 0 else reached


def stretches(origin: Tensor, direction: Tensor, binaries: Tensor, aabbs: Tensor, near: float, far: float) -> list[Stretch]:
    """Return the cells that a ray passes between its planes, in order, each of the grid that rules there."""
    t_mins, t_maxs, hits = (x[0].tolist() for x in ray_aabb_intersect_reference(origin[None], direction[None], aabbs))
    crossings = sorted([(t, i) for i, t in enumerate(t_mins + t_maxs) if math.isfinite(t)])
    found: list[Stretch] = []
    for (begin, index), (end, after) in zip(crossings, crossings[1:], strict=False):
        level = index if index < len(hits) else after - len(hits)
        begin, end = max(begin, near), min(end, far)
        if level >= 0 and begin < end:
            found += cells_reference(origin, direction, binaries[level], aabbs[level], begin, end)
    return found


def cells_reference(origin: Tensor, direction: Tensor, cells: Tensor, box: Tensor, begin: float, end: float) -> list[Stretch]:
    """Return the cells of one grid between two distances."""
    shape, low = torch.tensor(cells.shape), box[:3]
    size = (box[3:] - low) / shape
    walls = [begin, end]
    for a in range(3):
        if direction[a] != 0:
            t = (low[a] + torch.arange(shape[a] + 1) * size[a] - origin[a]) / direction[a]
            walls += t[(t > begin + 1e-11) & (t < end - 1e-11)].tolist()  # a wall on the box's face is no wall
    walls = sorted(set(walls))
    found = []
    for first, last in zip(walls, walls[1:], strict=False):
        index = ((origin + (first + last) / 2 * direction - low) / size).floor().long().clamp_min(0).minimum(shape - 1)
        found.append((first, last, bool(cells[tuple(index)])))
    return found
