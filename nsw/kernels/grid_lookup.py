"""Trilinear lookup of a voxel grid: a fused CPU kernel and its plain torch reference.

Grids are laid out [X, Y, Z, C], channels last, so that one voxel's channels share a cache line. Vertex (0, 0, 0) sits on
the lower corner of the box and vertex (X-1, Y-1, Z-1) on its upper corner. Points outside take the value at the border.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numba import get_num_threads, njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from nsw.kernels.compiling import parallel_kernel

_FAST = {"nnan", "ninf", "nsz", "arcp", "contract", "reassoc"}
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
    return out[0, :, 0, 0].T


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
        out = np.empty((len(xyz), values.shape[3]), np.float32)
        _forward(values, xyz, lower, scale, out)
        ctx.save_for_backward(grid, points)
        ctx.box, ctx.gradient_into = (lower, scale), gradient_into
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor):
        grid, points = ctx.saved_tensors
        xyz = points.detach().contiguous().numpy()
        grad = grad_out.contiguous().numpy()
        grad_grid = grad_points = None
        if ctx.needs_input_grad[0]:
            target = ctx.gradient_into
            if target is None:
                target = grad_grid = torch.zeros(grid.shape)
            _grid_backward(target.numpy(), xyz, *ctx.box, grad, _slabs(xyz, *ctx.box, grid.shape[0]))
        if ctx.needs_input_grad[1]:
            out = np.empty_like(xyz)
            _points_backward(grid.detach().contiguous().numpy(), xyz, *ctx.box, grad, out)
            grad_points = torch.from_numpy(out)
        return grad_grid, grad_points, None, None


def _affine(aabb: Tensor, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower corner and voxels per world unit."""
    lower, upper = aabb.detach().double().numpy()
    return lower.astype(np.float32), ((np.array(shape[:3]) - 1) / (upper - lower)).astype(np.float32)


def _slabs(xyz: np.ndarray, lower: np.ndarray, scale: np.ndarray, n_x: int) -> np.ndarray:
    """Return borders along x that share the points evenly: a thread owns a slab of voxels and writes nowhere else."""
    n_slabs = get_num_threads() if len(xyz) >= 4 * _BLOCK else 1
    if n_slabs == 1:
        return np.array([0, n_x])
    x = np.clip((xyz[::16, 0] - lower[0]) * scale[0], 0, n_x - 1)
    inner = np.quantile(x, np.arange(1, n_slabs) / n_slabs).astype(np.int64) + 1
    return np.concatenate([[0], np.maximum.accumulate(np.clip(inner, 0, n_x)), [n_x]])


@njit(inline="always")
def _cell(x, lower, scale, n):
    """Return the lower and upper vertex along one axis and the position between them in [0, 1]."""
    p = min(max((x - lower) * scale, _ZERO), np.float32(n - 1))
    first = min(int(p), max(n - 2, 0))
    return first, min(first + 1, n - 1), p - np.float32(first)


@parallel_kernel(fastmath=_FAST)
def _forward(grid, xyz, lower, scale, out):
    n_x, n_y, n_z, n_c = grid.shape
    n = xyz.shape[0]
    for block in prange((n + _BLOCK - 1) // _BLOCK):
        for q in range(block * _BLOCK, min(n, (block + 1) * _BLOCK)):
            i, i1, fx = _cell(xyz[q, 0], lower[0], scale[0], n_x)
            j, j1, fy = _cell(xyz[q, 1], lower[1], scale[1], n_y)
            k, k1, fz = _cell(xyz[q, 2], lower[2], scale[2], n_z)
            w00, w01, w10, w11 = (_ONE - fx) * (_ONE - fy), (_ONE - fx) * fy, fx * (_ONE - fy), fx * fy
            gz = _ONE - fz
            for c in range(n_c):
                out[q, c] = (
                    w00 * (gz * grid[i, j, k, c] + fz * grid[i, j, k1, c])
                    + w01 * (gz * grid[i, j1, k, c] + fz * grid[i, j1, k1, c])
                    + w10 * (gz * grid[i1, j, k, c] + fz * grid[i1, j, k1, c])
                    + w11 * (gz * grid[i1, j1, k, c] + fz * grid[i1, j1, k1, c])
                )


@njit(inline="always")
def _add_edge(grad_grid, i, j, k, k1, w, fz, grad, q):
    """Add one point's gradient to the two vertices of a cell edge along z."""
    lo, hi = w * (_ONE - fz), w * fz
    for c in range(grad.shape[1]):
        grad_grid[i, j, k, c] += lo * grad[q, c]
    for c in range(grad.shape[1]):
        grad_grid[i, j, k1, c] += hi * grad[q, c]


@parallel_kernel(fastmath=_FAST)
def _grid_backward(grad_grid, xyz, lower, scale, grad, slabs):
    n_x, n_y, n_z, _ = grad_grid.shape
    for s in prange(slabs.shape[0] - 1):
        begin, end = slabs[s], slabs[s + 1]
        for q in range(xyz.shape[0]):
            i, i1, fx = _cell(xyz[q, 0], lower[0], scale[0], n_x)
            if i1 < begin or i >= end:
                continue
            j, j1, fy = _cell(xyz[q, 1], lower[1], scale[1], n_y)
            k, k1, fz = _cell(xyz[q, 2], lower[2], scale[2], n_z)
            if i >= begin:
                _add_edge(grad_grid, i, j, k, k1, (_ONE - fx) * (_ONE - fy), fz, grad, q)
                _add_edge(grad_grid, i, j1, k, k1, (_ONE - fx) * fy, fz, grad, q)
            if begin <= i1 < end:
                _add_edge(grad_grid, i1, j, k, k1, fx * (_ONE - fy), fz, grad, q)
                _add_edge(grad_grid, i1, j1, k, k1, fx * fy, fz, grad, q)


@parallel_kernel(fastmath=_FAST)
def _points_backward(grid, xyz, lower, scale, grad, out):
    n_x, n_y, n_z, n_c = grid.shape
    n = xyz.shape[0]
    for block in prange((n + _BLOCK - 1) // _BLOCK):
        for q in range(block * _BLOCK, min(n, (block + 1) * _BLOCK)):
            i, i1, fx = _cell(xyz[q, 0], lower[0], scale[0], n_x)
            j, j1, fy = _cell(xyz[q, 1], lower[1], scale[1], n_y)
            k, k1, fz = _cell(xyz[q, 2], lower[2], scale[2], n_z)
            dx = dy = dz = _ZERO
            for c in range(n_c):
                a, b = grid[i, j, k, c], grid[i, j, k1, c]
                near0, slope0 = a + fz * (b - a), b - a
                a, b = grid[i, j1, k, c], grid[i, j1, k1, c]
                near1, slope1 = a + fz * (b - a), b - a
                a, b = grid[i1, j, k, c], grid[i1, j, k1, c]
                far0, slope2 = a + fz * (b - a), b - a
                a, b = grid[i1, j1, k, c], grid[i1, j1, k1, c]
                far1, slope3 = a + fz * (b - a), b - a
                g = grad[q, c]
                dx += g * ((far0 - near0) * (_ONE - fy) + (far1 - near1) * fy)
                dy += g * ((near1 - near0) * (_ONE - fx) + (far1 - far0) * fx)
                dz += g * ((slope0 * (_ONE - fy) + slope1 * fy) * (_ONE - fx) + (slope2 * (_ONE - fy) + slope3 * fy) * fx)
            # a clamped coordinate does not move the value
            px, py, pz = (xyz[q, 0] - lower[0]) * scale[0], (xyz[q, 1] - lower[1]) * scale[1], (xyz[q, 2] - lower[2]) * scale[2]
            out[q, 0] = dx * scale[0] if px > _ZERO and px < n_x - 1 else _ZERO
            out[q, 1] = dy * scale[1] if py > _ZERO and py < n_y - 1 else _ZERO
            out[q, 2] = dz * scale[2] if pz > _ZERO and pz < n_z - 1 else _ZERO
