"""The hash encoding for tensors on a GPU. As in Instant-NGP, a program takes a block of points at one level.

All programs of a level start before those of the next, so that one level's entries at a time are wanted from the cache.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nsw.kernels import saturation
from nsw.kernels.hash_encoding import PRIMES, HashLevels
from nsw.kernels.triton_launch import launch

BLOCK = 256
OF_J, OF_K = tl.constexpr(PRIMES[1]), tl.constexpr(PRIMES[2])
STEEPEST = tl.constexpr(float(saturation.STEEPEST))


class TritonEncoding(torch.autograd.Function):
    """Autograd around the kernels below; the table's gradient is added up by atomics, in no fixed order."""

    @staticmethod
    def forward(ctx, table: Tensor, points: Tensor, levels: HashLevels, gradient_into, known: Tensor | None) -> Tensor:
        ctx.save_for_backward(table, points)
        ctx.kept = levels, gradient_into
        return values_at(table, points, levels) if known is None else known.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor):
        table, points = ctx.saved_tensors
        levels, target = ctx.kept
        grad_table = grad_points = None
        if ctx.needs_input_grad[0]:
            if target is None:
                target = grad_table = table.new_zeros(table.shape)
            add_to_table(target, points, levels, grad_out)
        if ctx.needs_input_grad[1]:
            grad_points = gradient_of_points(table, points, levels, grad_out)
        return grad_table, grad_points, None, None, None


def values_at(table: Tensor, points: Tensor, levels: HashLevels) -> Tensor:
    """Return the features [N, LF] of points [N, 3]."""
    n, n_features = len(points), table.shape[1]
    out = table.new_empty(n, len(levels) * n_features)
    _over(_read, n, len(levels), table.contiguous(), points.contiguous(), *_on(levels, table.device), out, n, **_sizes(n_features))
    return out


def add_to_table(into: Tensor, points: Tensor, levels: HashLevels, grad: Tensor) -> None:
    """Add the gradient of a table [rows, F] to the contiguous tensor `into`, given the gradient of the features [N, LF]."""
    n, about = len(points), _on(levels, into.device)
    _over(_scatter, n, len(levels), into, points.contiguous(), *about, grad.contiguous(), n, **_sizes(into.shape[1]))


def gradient_of_points(table: Tensor, points: Tensor, levels: HashLevels, grad: Tensor) -> Tensor:
    """Return the gradient [N, 3] of points, given the gradient of the features [N, LF]; 0 along axes where a point is outside."""
    n, out = len(points), torch.empty_like(points, memory_format=torch.contiguous_format)
    tensors = (table.contiguous(), points.contiguous(), *_on(levels, table.device), grad.contiguous(), out)
    _over(_slope, n, 1, *tensors, n, L=len(levels), **_sizes(table.shape[1]))
    return out


def _over(kernel, n: int, n_levels: int, *args, **constants) -> None:
    if n > 0:
        launch(kernel, (triton.cdiv(n, BLOCK), n_levels), *args, **constants, BLOCK=BLOCK)


def _sizes(n_features: int) -> dict[str, int]:
    return dict(F=n_features, WIDE=triton.next_power_of_2(n_features))


@functools.lru_cache(maxsize=64)
def _on(levels: HashLevels, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the levels' scales [L], and [L, 4] first row, number of rows, vertices along an axis, whether hashed."""
    first, last = levels.first_rows[:-1], levels.first_rows[1:]
    sizes = [end - begin for begin, end in zip(first, last, strict=True)]
    about = torch.tensor(list(zip(first, sizes, levels.n_vertices, levels.hashed, strict=True)), dtype=torch.int64, device=device)
    return torch.tensor(levels.scales, dtype=torch.float32, device=device), about


@triton.jit
def _place(points, at, inside, axis: tl.constexpr, scale):
    """Return the lower vertex along one axis and the position above it in [0, 1); a broken number goes to 0."""
    x = tl.load(points + at * 3 + axis, mask=inside, other=0.0)
    x = tl.where(x > 0.0, x, 0.0)
    position = tl.where(x < 1.0, x, 1.0) * scale + 0.5
    lower = position.to(tl.int32)
    return lower, position - lower.to(tl.float32)


@triton.jit
def _cell(points, at, inside, scale):
    """Return the lower vertices along the three axes and the positions above them."""
    i, x = _place(points, at, inside, 0, scale)
    j, y = _place(points, at, inside, 1, scale)
    k, z = _place(points, at, inside, 2, scale)
    return i, j, k, x, y, z


@triton.jit
def _level(about, level):
    """Return a level's first row, the mask of its hash, its vertices along an axis, and whether it is hashed."""
    first = tl.load(about + level * 4)
    last_row = (tl.load(about + level * 4 + 1) - 1).to(tl.uint32)
    return first, last_row, tl.load(about + level * 4 + 2).to(tl.int32), tl.load(about + level * 4 + 3) != 0


@triton.jit
def _row(corner: tl.constexpr, i, j, k, n, last_row, hashed):
    """Return which row of its level is a cell's corner, 0 to 7, the last axis changing fastest; 32 bits hold the hash."""
    i, j, k = i + (corner >> 2), j + ((corner >> 1) & 1), k + (corner & 1)
    of_j, of_k = j.to(tl.uint32) * tl.cast(OF_J, tl.uint32), k.to(tl.uint32) * tl.cast(OF_K, tl.uint32)
    mixed = (i.to(tl.uint32) ^ of_j ^ of_k) & last_row
    return tl.where(hashed, mixed.to(tl.int32), (i * n + j) * n + k).to(tl.int64)


@triton.jit
def _share(side: tl.constexpr, x):
    """Return the weight of the upper or of the lower vertex along one axis."""
    if side == 1:
        return x
    else:
        return 1.0 - x


@triton.jit
def _weight(corner: tl.constexpr, x, y, z):
    return _share(corner >> 2, x) * _share((corner >> 1) & 1, y) * _share(corner & 1, z)


@triton.jit(do_not_specialize=["n_points"])
def _read(table, points, scales, about, out, n_points, F: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    level, n_levels = tl.program_id(1), tl.num_programs(1)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    feature, inside = tl.arange(0, WIDE)[None, :], at < n_points
    both = inside[:, None] & (feature < F)
    first, last_row, n, hashed = _level(about, level)
    i, j, k, x, y, z = _cell(points, at, inside, tl.load(scales + level))
    total = tl.zeros([BLOCK, WIDE], tl.float32)
    for corner in tl.static_range(8):
        rows = first + _row(corner, i, j, k, n, last_row, hashed)
        total += _weight(corner, x, y, z)[:, None] * tl.load(table + rows[:, None] * F + feature, mask=both, other=0.0)
    tl.store(out + (at * n_levels + level)[:, None] * F + feature, total, mask=both)


@triton.jit(do_not_specialize=["n_points"])
def _scatter(into, points, scales, about, grad, n_points, F: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    level, n_levels = tl.program_id(1), tl.num_programs(1)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    feature, inside = tl.arange(0, WIDE)[None, :], at < n_points
    both = inside[:, None] & (feature < F)
    first, last_row, n, hashed = _level(about, level)
    i, j, k, x, y, z = _cell(points, at, inside, tl.load(scales + level))
    pull = tl.load(grad + (at * n_levels + level)[:, None] * F + feature, mask=both, other=0.0)
    for corner in tl.static_range(8):
        rows = first + _row(corner, i, j, k, n, last_row, hashed)
        share = _weight(corner, x, y, z)[:, None] * pull
        tl.atomic_add(into + rows[:, None] * F + feature, share, mask=both, sem="relaxed")


@triton.jit(do_not_specialize=["n_points"])
def _slope(
    table, points, scales, about, grad, out, n_points, L: tl.constexpr, F: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    feature, inside = tl.arange(0, WIDE)[None, :], at < n_points
    both = inside[:, None] & (feature < F)
    dx, dy, dz = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for level in range(L):
        scale = tl.load(scales + level)
        first, last_row, n, hashed = _level(about, level)
        i, j, k, x, y, z = _cell(points, at, inside, scale)
        pull = tl.load(grad + (at * L + level)[:, None] * F + feature, mask=both, other=0.0)
        for corner in tl.static_range(8):
            rows = first + _row(corner, i, j, k, n, last_row, hashed)
            # what the corner's weight is worth, times how the weight grows along each axis
            worth = scale * tl.sum(pull * tl.load(table + rows[:, None] * F + feature, mask=both, other=0.0), axis=1)
            along_x, along_y, along_z = _share(corner >> 2, x), _share((corner >> 1) & 1, y), _share(corner & 1, z)
            dx += (2.0 * (corner >> 2) - 1.0) * along_y * along_z * worth
            dy += (2.0 * ((corner >> 1) & 1) - 1.0) * along_x * along_z * worth
            dz += (2.0 * (corner & 1) - 1.0) * along_x * along_y * worth
    _store_slope(out, points, at, inside, 0, dx)
    _store_slope(out, points, at, inside, 1, dy)
    _store_slope(out, points, at, inside, 2, dz)


@triton.jit
def _store_slope(out, points, at, inside, axis: tl.constexpr, d):
    """Store a finite slope; a point outside of the cube was moved to its border, and moving it along that axis changes nothing."""
    x = tl.load(points + at * 3 + axis, mask=inside, other=0.0)
    d = tl.where(d > STEEPEST, STEEPEST, tl.where(d < -STEEPEST, -STEEPEST, tl.where(d == d, d, 0.0)))
    tl.store(out + at * 3 + axis, tl.where((x >= 0.0) & (x <= 1.0), d, 0.0), mask=inside)
