"""The hash encoding for tensors on a GPU: the corners of all levels in one gather, and one scatter back.

The reference walks level by level and corner by corner, some twenty small calls each, whose launches cost a GPU more than
their work, and autograd sorts the rows of every gather on the way back. Here both ways are a handful of large calls.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nsw.kernels.hash_encoding import PRIMES, HashLevels

CHUNK = 1 << 18  # points at once where no gradient is asked: 16 levels of 8 corners make 32 M rows of them


def corners_of_all_levels(
    points_unit: Float[Tensor, "N 3"], levels: HashLevels
) -> tuple[Int[Tensor, "N L 8"], Float[Tensor, "N L 8"]]:
    """Return the table rows of the eight corners around each point at each level, and their trilinear weights.

    What one axis adds is worked out for its two vertices, not for eight corners: memory is what this takes time for.
    """
    device, dtype = points_unit.device, points_unit.dtype
    scales = torch.tensor(levels.scales, device=device, dtype=dtype)
    first, n, hashed = (torch.tensor(x, device=device)[:, None] for x in (levels.first_rows, levels.n_vertices, levels.hashed))
    position = points_unit.clamp(0, 1)[:, None] * scales[:, None] + 0.5
    cell = position.floor()
    upper = position - cell
    x, y, z = torch.stack([1 - upper, upper], dim=-1).unbind(2)
    i, j, k = (cell.long()[..., None] + torch.arange(2, device=device)).unbind(2)
    along = lambda op, a, b, c: op(op(a[..., :, None, None], b[..., None, :, None]), c[..., None, None, :])  # noqa: E731
    mixed = along(torch.bitwise_xor, i * PRIMES[0], j * PRIMES[1], k * PRIMES[2]) & (first.diff(dim=0) - 1)[..., None, None]
    stored = along(torch.add, i * (n * n), j * n, k)
    rows = first[:-1, :, None, None] + torch.where(hashed[..., None, None], mixed, stored)
    return rows.flatten(2), along(torch.mul, x, y, z).flatten(2)


class GatherEncoding(torch.autograd.Function):
    """Autograd around the gather; the gradient of the table is scattered, in no fixed order where atomics do it."""

    @staticmethod
    def forward(ctx, table: Tensor, points: Tensor, levels: HashLevels, gradient_into, known: Tensor | None) -> Tensor:
        ctx.save_for_backward(points)
        ctx.kept = table.shape, levels, gradient_into
        if known is not None:
            return known.clone()
        out = [_read(table, some, levels) for some in points.split(CHUNK)]
        return torch.cat(out) if out else table.new_zeros(0, len(levels) * table.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor):
        (points,) = ctx.saved_tensors
        shape, levels, target = ctx.kept
        into = grad_out.new_zeros(shape) if target is None else target
        for some, grad in zip(points.split(CHUNK), grad_out.split(CHUNK), strict=True):
            rows, weights = corners_of_all_levels(some, levels)
            shares = weights[..., None] * grad.view(len(some), len(levels), 1, shape[1])
            into.index_add_(0, rows.reshape(-1), shares.reshape(-1, shape[1]))
        return into if target is None else None, None, None, None, None


def _read(table: Tensor, points: Tensor, levels: HashLevels) -> Tensor:
    rows, weights = corners_of_all_levels(points, levels)
    return (table[rows] * weights[..., None]).sum(2).flatten(1)
