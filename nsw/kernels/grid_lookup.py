"""Trilinear lookup of a voxel grid: a fused CPU kernel and its plain torch reference.

Grids are laid out [X, Y, Z, C], channels last, so that one voxel's channels share a cache line. Vertex (0, 0, 0) sits on
the lower corner of the box and vertex (X-1, Y-1, Z-1) on its upper corner. Points outside take the value at the border.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.entry_vectors import entry_add, entry_dot, entry_load, entry_store, entry_zero
from nsw.kernels.memory import empty
from nsw.kernels.saturation import STEEPEST, settled
from nsw.kernels.simd_rows import take
from nsw.kernels.threads import n_threads, run_shared, run_shares

_BLOCK = 1024
_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)


def grid_lookup_reference(
    grid: Float[Tensor, "X Y Z C"], points: Float[Tensor, "N 3"], aabb: Float[Tensor, "2 3"]
) -> Float[Tensor, "N C"]:
    """Return the trilinear interpolation of `grid` at `points`; the definition that the kernel is tested against.

    V(x) = sum over the 8 corners of the cell of V_corner * prod_a (1 - |x_a - corner_a|), x in voxel units.

    Args:
        grid: values at the vertices.
        points: world coordinates.
        aabb: the grid's box, lower corner then upper corner, world units.
    """
    unit = (points - aabb[0]) / (aabb[1] - aabb[0])
    xyz = (2.0 * unit - 1.0).flip(-1)[None, None, None]  # grid_sample names the last axis first
    volume = grid.permute(3, 0, 1, 2)[None]
    out = torch.nn.functional.grid_sample(volume, xyz, mode="bilinear", padding_mode="border", align_corners=True)
    return out.flatten(0, 3).T  # no index: the gradient of one fills a tensor with zeros first


def grid_lookup(
    grid: Float[Tensor, "X Y Z C"],
    points: Float[Tensor, "N 3"],
    aabb: Float[Tensor, "2 3"],
    gradient_into: Float[Tensor, "X Y Z C"] | None = None,
) -> Float[Tensor, "N C"]:
    """Return the trilinear interpolation of `grid` at world `points`, differentiable once in both.

    float32 on the CPU runs in one fused kernel; everything else runs `grid_lookup_reference`. Gradients are added
    point by point in a fixed order, so the result does not depend on the number of threads.

    Args:
        grid: values at the vertices.
        points: world coordinates; outside the box the border's value is returned.
        aabb: the grid's box, lower corner then upper corner, world units.
        gradient_into: add the grid's gradient to this tensor and hand none to autograd. A caller that keeps one buffer
            per grid saves a grid-sized allocation a step; pass `grid.grad` when an optimiser empties it in place.

    >>> corners = torch.arange(2.0).reshape(2, 1, 1, 1)
    >>> grid_lookup(corners, torch.tensor([[0.25, 0.0, 0.0]]), torch.tensor([[0.0, 0, 0], [1, 1, 1]])).item()
    0.25
    """
    tensors = (grid, points)
    if any(t.device.type != "cpu" or t.dtype != torch.float32 for t in tensors):
        return grid_lookup_reference(grid, points, aabb)
    return _GridLookup.apply(grid, points, aabb, gradient_into)


class _GridLookup(torch.autograd.Function):
    """Autograd around the kernels below."""

    @staticmethod
    def forward(ctx, grid: Tensor, points: Tensor, aabb: Tensor, gradient_into: Tensor | None) -> Tensor:
        values = grid.detach().contiguous().numpy()
        xyz = points.detach().contiguous().numpy()
        lower, scale = _affine(aabb, values.shape)
        out, channels = empty((len(xyz), values.shape[3])), (_ZERO,) * values.shape[3]
        box = (values.shape, xyz, lower, scale)
        run_shared(_forward, _workers(len(xyz)), values.reshape(-1), *box, channels, out.reshape(-1))
        ctx.save_for_backward(grid, points)
        ctx.box, ctx.channels, ctx.gradient_into = (lower, scale), channels, gradient_into
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor):
        grid, points = ctx.saved_tensors
        xyz = points.detach().contiguous().numpy()
        grad = grad_out.contiguous().view(-1).numpy()
        box = (tuple(grid.shape), xyz, *ctx.box)
        grad_grid = grad_points = None
        if ctx.needs_input_grad[0]:
            target = ctx.gradient_into
            if target is None:
                target = grad_grid = torch.zeros(grid.shape)
            slabs = _slabs(xyz, *ctx.box, grid.shape[0])
            run_shares(_grid_backward, len(slabs) - 1, target.view(-1).numpy(), *box, grad, ctx.channels, slabs)
        if ctx.needs_input_grad[1]:
            out, values = empty(xyz.shape), grid.detach().contiguous().view(-1).numpy()
            run_shared(_points_backward, _workers(len(xyz)), values, *box, grad, ctx.channels, out)
            grad_points = torch.from_numpy(out)
        return grad_grid, grad_points, None, None


def _affine(aabb: Tensor, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower corner and voxels per world unit."""
    lower, upper = aabb.detach().double().numpy()
    return lower.astype(np.float32), ((np.array(shape[:3]) - 1) / (upper - lower)).astype(np.float32)


def _slabs(xyz: np.ndarray, lower: np.ndarray, scale: np.ndarray, n_x: int) -> np.ndarray:
    """Return borders along x that share the points evenly: a thread owns a slab of voxels and writes nowhere else."""
    n_slabs = n_threads() if len(xyz) >= 4 * _BLOCK else 1
    if n_slabs == 1:
        return np.array([0, n_x])
    x = np.clip((xyz[::16, 0] - lower[0]) * scale[0], 0, n_x - 1)
    inner = np.quantile(x, np.arange(1, n_slabs) / n_slabs).astype(np.int64) + 1
    return np.concatenate([[0], np.maximum.accumulate(np.clip(inner, 0, n_x)), [n_x]])


def _workers(n_points: int) -> int:
    return n_threads() if n_points >= 4 * _BLOCK else 1


@helper
def _axis(x, lower, scale, n):
    """The lower and upper vertex along one axis and the position between them in [0, 1]."""
    p = min(max((x - lower) * scale, _ZERO), np.float32(n - 1))
    first = min(int(p), max(n - 2, 0))
    return first, min(first + 1, n - 1), p - np.float32(first)


@helper
def _cell(xyz, q, lower, scale, shape):
    """A point's cell: vertices i, j, k and i1, j1, k1, and the position (x, y, z) between them."""
    i, i1, x = _axis(xyz[q, 0], lower[0], scale[0], shape[0])
    j, j1, y = _axis(xyz[q, 1], lower[1], scale[1], shape[1])
    k, k1, z = _axis(xyz[q, 2], lower[2], scale[2], shape[2])
    return i, i1, j, j1, k, k1, x, y, z


@helper
def _place(shape, i, j, k):
    """Where a vertex's channels begin in the flat grid."""
    return ((i * shape[1] + j) * shape[2] + k) * shape[3]


@helper
def _add_corners(total, grid, shape, i, j, j1, k, k1, weight, y, z, channels):
    """Add the four vertices of one face of a cell, weighted."""
    low, high = weight * (_ONE - y), weight * y
    total = entry_add(total, low * (_ONE - z), entry_load(grid, _place(shape, i, j, k), channels))
    total = entry_add(total, low * z, entry_load(grid, _place(shape, i, j, k1), channels))
    total = entry_add(total, high * (_ONE - z), entry_load(grid, _place(shape, i, j1, k), channels))
    return entry_add(total, high * z, entry_load(grid, _place(shape, i, j1, k1), channels))


@kernel
def _forward(next_block, grid, shape, xyz, lower, scale, channels, out):
    """Interpolate at every point; `channels` is a tuple as long as a vertex has channels."""
    n, n_c = xyz.shape[0], len(channels)
    block = take(next_block)
    while block * _BLOCK < n:
        for q in range(block * _BLOCK, min(n, (block + 1) * _BLOCK)):
            i, i1, j, j1, k, k1, x, y, z = _cell(xyz, q, lower, scale, shape)
            value = _add_corners(entry_zero(channels), grid, shape, i, j, j1, k, k1, _ONE - x, y, z, channels)
            entry_store(out, q * n_c, _add_corners(value, grid, shape, i1, j, j1, k, k1, x, y, z, channels))
        block = take(next_block)


@helper
def _deposit(gradient, at, weight, entry, channels):
    entry_store(gradient, at, entry_add(entry_load(gradient, at, channels), weight, entry))


@helper
def _deposit_face(gradient, shape, i, j, j1, k, k1, weight, y, z, entry, channels):
    """Add a point's gradient to the four vertices of one face of its cell."""
    low, high = weight * (_ONE - y), weight * y
    _deposit(gradient, _place(shape, i, j, k), low * (_ONE - z), entry, channels)
    _deposit(gradient, _place(shape, i, j, k1), low * z, entry, channels)
    _deposit(gradient, _place(shape, i, j1, k), high * (_ONE - z), entry, channels)
    _deposit(gradient, _place(shape, i, j1, k1), high * z, entry, channels)


@kernel
def _grid_backward(gradient, shape, xyz, lower, scale, grad, channels, slabs, share, n_shares):
    """Add the points' gradients to the vertices of slab `share` of the grid, point by point."""
    begin, end, n_c = slabs[share], slabs[share + 1], len(channels)
    for q in range(xyz.shape[0]):
        i, i1, j, j1, k, k1, x, y, z = _cell(xyz, q, lower, scale, shape)
        if i1 < begin or i >= end:
            continue
        entry = entry_load(grad, q * n_c, channels)
        if i >= begin:
            _deposit_face(gradient, shape, i, j, j1, k, k1, _ONE - x, y, z, entry, channels)
        if begin <= i1 < end:
            _deposit_face(gradient, shape, i1, j, j1, k, k1, x, y, z, entry, channels)


@helper
def _face_slopes(grid, shape, i, j, j1, k, k1, y, z, entry, channels):
    """On one face of a cell: the value, and its slopes along y and z, each multiplied into the gradient `entry`."""
    a = entry_dot(entry_load(grid, _place(shape, i, j, k), channels), entry)
    b = entry_dot(entry_load(grid, _place(shape, i, j, k1), channels), entry)
    c = entry_dot(entry_load(grid, _place(shape, i, j1, k), channels), entry)
    d = entry_dot(entry_load(grid, _place(shape, i, j1, k1), channels), entry)
    low, high = a + z * (b - a), c + z * (d - c)
    return low + y * (high - low), high - low, (b - a) * (_ONE - y) + (d - c) * y


@helper
def _if_inside(slope, x, lower, scale, n):
    """A slope per world unit; none where the coordinate is clamped, since it then does not move the value."""
    p = (x - lower) * scale
    return slope * scale if p > _ZERO and p < np.float32(n - 1) else _ZERO


@kernel
def _points_backward(next_block, grid, shape, xyz, lower, scale, grad, channels, out):
    """Write the gradient of every point."""
    n, n_c = xyz.shape[0], len(channels)
    block = take(next_block)
    while block * _BLOCK < n:
        for q in range(block * _BLOCK, min(n, (block + 1) * _BLOCK)):
            i, i1, j, j1, k, k1, x, y, z = _cell(xyz, q, lower, scale, shape)
            entry = entry_load(grad, q * n_c, channels)
            near, near_y, near_z = _face_slopes(grid, shape, i, j, j1, k, k1, y, z, entry, channels)
            far, far_y, far_z = _face_slopes(grid, shape, i1, j, j1, k, k1, y, z, entry, channels)
            out[q, 0] = _if_inside(far - near, xyz[q, 0], lower[0], scale[0], shape[0])
            out[q, 1] = _if_inside(near_y + x * (far_y - near_y), xyz[q, 1], lower[1], scale[1], shape[1])
            out[q, 2] = _if_inside(near_z + x * (far_z - near_z), xyz[q, 2], lower[2], scale[2], shape[2])
        for q in range(block * _BLOCK, min(n, (block + 1) * _BLOCK)):  # apart, so that the loop above is rounded as ever
            for axis in range(3):
                out[q, axis] = settled(out[q, axis], STEEPEST)
        block = take(next_block)
