"""Walking rays through nested grids of cells and putting samples where cells are occupied: nerfacc's `traverse_grids`.

The rules. Between two crossings of the grids' boxes one grid rules: the one just entered, or after an exit the next to be left,
so in nested boxes the innermost. A ray carries intervals that follow each other from its near plane on; an interval becomes a
sample where its middle lies in an occupied cell of the ruling grid.

- `cone_angle` 0: interval k is [near + k step, near + (k+1) step].
- `cone_angle` > 0: an interval that begins at t is max(step, t cone_angle) long; an empty cell is crossed in strides of the
  length that an interval has where the cell begins.
- `step_size` <= 0: one sample for each occupied cell, from wall to wall.

`traversal_reference.py` says the same one ray at a time, in words of Python; `traversal_loops.py` is the compiled walk.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsw.kernels import traversal_loops
from nsw.kernels.boxes import sort_crossings
from nsw.kernels.chunks import n_shares
from nsw.kernels.ray_segments import RayIntervals, RaySamples
from nsw.kernels.threads import run_shares

RAYS = 256  # a thread takes this many rays at once


class Walk(NamedTuple):
    """M samples along rays.

    Attributes:
        rays: [M] ray of each sample, ascending.
        starts, ends: [M] distances.
        joined: [M] whether a sample begins where the one before it ended, with no empty cell between.
        counts: [n_rays] samples of each ray.
        ends_at: [n_rays] where each ray was left.
    """

    rays: Int[Tensor, "M"]
    starts: Float[Tensor, "M"]
    ends: Float[Tensor, "M"]
    joined: Bool[Tensor, "M"]
    counts: Int[Tensor, "n_rays"]
    ends_at: Float[Tensor, "n_rays"]


@torch.no_grad()
def walk(
    rays_o: Float[Tensor, "n_rays 3"],
    rays_d: Float[Tensor, "n_rays 3"],
    binaries: Bool[Tensor, "m x y z"],
    aabbs: Float[Tensor, "m 6"],
    near: Float[Tensor, "n_rays"],
    far: Float[Tensor, "n_rays"],
    step: float,
    cone_angle: float = 0.0,
    limit: int = 0,
    mask: Bool[Tensor, "n_rays"] | None = None,
    crossings: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Walk:
    """Return all samples of all rays by the rules above.

    Args:
        limit: most samples a ray gets; 0 for no limit.
        mask: which rays to walk at all.
        crossings: distances [n_rays, 2m] ascending, their indices (entries before exits) and hits, if known already.

    Raises:
        NotImplementedError: for tensors on another device than the CPU, which nerfacc itself serves.
    """
    if rays_o.device.type != "cpu":
        raise NotImplementedError("nsw.kernels walks rays on the CPU: move rays and grid there, or call nerfacc on CUDA tensors.")
    dtype, n_rays = rays_o.dtype, len(rays_o)
    o, d, boxes, first, last = (t.detach().double().contiguous().numpy() for t in (rays_o, rays_d, aabbs, near, far))
    cells = binaries.detach().bool().contiguous().numpy()
    wanted = np.ones(n_rays, np.bool_) if mask is None else mask.detach().contiguous().numpy()
    if crossings is None:
        t_sorted, t_indices = np.empty((n_rays, 2 * len(boxes))), np.empty((n_rays, 2 * len(boxes)), np.int64)
        hits = np.empty((n_rays, len(boxes)), np.bool_)
        run_shares(sort_crossings, n_shares(8 * n_rays), o, d, boxes, t_sorted, t_indices, hits)
    else:
        t_sorted, t_indices, hits = (
            t.detach().to(kind).contiguous().numpy()
            for t, kind in zip(crossings, (torch.float64, torch.int64, torch.bool), strict=True)
        )
    counts, ends_at = np.zeros(n_rays, np.int64), np.zeros(n_rays)
    arrays = (o, d, wanted, cells, _coarse(cells), boxes, t_sorted, t_indices, hits, first, last)
    options = (float(step), float(cone_angle), int(limit), torch.empty(0, dtype=dtype).numpy(), counts, ends_at)
    blocks = range(0, n_rays, RAYS)
    parts: list = [None] * len(blocks)

    def walk_share(share: int, shares: int) -> None:
        for i in range(share, len(blocks), shares):
            parts[i] = traversal_loops.walk_rays(blocks[i], min(blocks[i] + RAYS, n_rays), *arrays, *options)

    run_shares(walk_share, min(torch.get_num_threads(), max(1, len(blocks))))
    empty = [(options[3], options[3], np.empty(0, np.bool_))]
    starts, ends, joined = (torch.from_numpy(np.concatenate(p)) for p in zip(*(parts or empty), strict=True))
    rays = torch.from_numpy(np.repeat(np.arange(n_rays, dtype=np.int64), counts))
    return Walk(rays, starts, ends, joined, torch.from_numpy(counts), torch.from_numpy(ends_at).to(dtype))


def _coarse(cells: np.ndarray) -> np.ndarray:
    """Return which blocks of 4 x 4 x 4 cells hold an occupied one."""
    shape = [-(-n // (1 << traversal_loops.BITS)) for n in cells.shape[1:]]
    coarse = np.zeros((len(cells), *shape), np.bool_)
    run_shares(traversal_loops.mark_coarse, n_shares(cells.size // 8), cells, coarse)
    return coarse


@torch.no_grad()
def traverse_grids(
    rays_o: Float[Tensor, "n_rays 3"],
    rays_d: Float[Tensor, "n_rays 3"],
    binaries: Bool[Tensor, "m x y z"],
    aabbs: Float[Tensor, "m 6"],
    near_planes: Float[Tensor, "n_rays"] | None = None,
    far_planes: Float[Tensor, "n_rays"] | None = None,
    step_size: float | None = 1e-3,
    cone_angle: float | None = 0.0,
    traverse_steps_limit: int | None = None,
    over_allocate: bool | None = False,
    rays_mask: Bool[Tensor, "n_rays"] | None = None,
    t_sorted: Float[Tensor, "n_rays 2m"] | None = None,
    t_indices: Int[Tensor, "n_rays 2m"] | None = None,
    hits: Bool[Tensor, "n_rays m"] | None = None,
) -> tuple[RayIntervals, RaySamples, Float[Tensor, "n_rays"]]:
    """Return the intervals and samples of rays in occupied cells, packed, and the distance at which each ray was left.

    Args:
        binaries: which cells are occupied, of m grids of one resolution.
        aabbs: their boxes, minimum and maximum corner, nested or apart.
        near_planes, far_planes: where each ray starts and stops; 0 and infinity by default.
        step_size, cone_angle: length of the samples, see the rules above.
        traverse_steps_limit: most samples a ray gets.
        over_allocate: keep memory for `traverse_steps_limit` samples of each ray; `is_valid`, `is_left` and `is_right` then say
            which entries are used, and `packed_info` belongs to the tensors with the unused ones taken out.
        rays_mask: rays to skip are False.
        t_sorted, t_indices, hits: crossings of rays and boxes, if known already: all three or none.

    >>> box, cells = torch.tensor([[0.0, 0, 0, 2, 1, 1]]), torch.tensor([False, True]).reshape(1, 2, 1, 1)
    >>> ray = torch.tensor([[0.0, 0.5, 0.5]]), torch.tensor([[1.0, 0, 0]])
    >>> intervals, samples, ends_at = traverse_grids(*ray, cells, box, step_size=0.5)
    >>> intervals.vals.tolist(), samples.vals.tolist(), ends_at.tolist()
    ([1.0, 1.5, 2.0], [1.25, 1.75], [2.0])
    """
    limit = traverse_steps_limit or 0
    assert not over_allocate or limit > 0, "traverse_steps_limit must be set if over_allocate is True."
    near = torch.zeros_like(rays_o[:, 0]) if near_planes is None else near_planes
    far = torch.full_like(rays_o[:, 0], float("inf")) if far_planes is None else far_planes
    crossings = None if t_sorted is None or t_indices is None or hits is None else (t_sorted, t_indices, hits)
    found = walk(rays_o, rays_d, binaries, aabbs, near, far, step_size, cone_angle, limit, rays_mask, crossings)
    intervals, samples = _intervals(found), _samples(found)
    if over_allocate:
        wanted = torch.ones(len(rays_o), dtype=torch.bool) if rays_mask is None else rays_mask
        intervals, samples = _spread(intervals, 2 * limit, wanted), _spread(samples, limit, wanted)
    return intervals, samples, found.ends_at


def _packed_info(counts: Int[Tensor, "n_rays"]) -> Int[Tensor, "n_rays 2"]:
    return torch.stack([counts.cumsum(0) - counts, counts], dim=-1)


def _samples(found: Walk) -> RaySamples:
    valid = torch.ones(len(found.rays), dtype=torch.bool)
    return RaySamples((found.starts + found.ends) / 2, _packed_info(found.counts), found.rays, valid)


def _intervals(found: Walk) -> RayIntervals:
    n = 2 * len(found.rays) - int(found.joined.sum())
    vals, rays = found.starts.new_empty(n), found.rays.new_empty(n)
    is_left, is_right = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
    arrays = (t.numpy() for t in (found.starts, found.ends, found.joined, found.rays, vals, rays, is_left, is_right))
    traversal_loops.join_edges(*arrays)
    counts = torch.bincount(rays, minlength=len(found.counts))
    return RayIntervals(vals, _packed_info(counts), rays, is_left, is_right)


def _spread(packed: RayIntervals | RaySamples, room: int, wanted: Bool[Tensor, "n_rays"]) -> RayIntervals | RaySamples:
    """Return the same in memory that holds `room` entries of each wanted ray, zeros where there are fewer."""
    slot = (wanted.cumsum(0) - wanted.long()) * room
    place = slot[packed.ray_indices] + torch.arange(len(packed.ray_indices)) - packed.packed_info[packed.ray_indices, 0]

    def spread(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.new_zeros(int(wanted.sum()) * room).index_put((place,), values)

    moved = {name: spread(value) for name, value in vars(packed).items() if name != "packed_info"}
    return type(packed)(**moved, packed_info=packed.packed_info)
