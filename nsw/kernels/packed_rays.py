"""Fused CPU kernels for packed samples: marching rays through a mask of cells, and weights with the light that is left.

They give what `OccGridEstimator.sampling` and `render_weight_from_density` give, in one pass each instead of a dozen torch
calls. Only float32 on the CPU; the plain torch versions are the reference that tests compare with.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from nsw.kernels.compiling import parallel_kernel
from nsw.kernels.occupancy import OccGridEstimator

_ONE = np.float32(1.0)
_HALF = np.float32(0.5)


def march(
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    near: Float[Tensor, "R"],
    far: Float[Tensor, "R"],
    occupied: Bool[Tensor, "x y z"],
    aabb: Float[Tensor, "2 3"],
    step: float,
) -> tuple[Int[Tensor, "M"], Float[Tensor, "M"], Float[Tensor, "M"]]:
    """Return ray index, start and end of the intervals near + k step whose middle lies before `far` in an occupied cell.

    >>> box, cells = torch.tensor([[0.0, 0, 0], [2, 1, 1]]), torch.tensor([False, True]).reshape(2, 1, 1)
    >>> ray = torch.tensor([[0.0, 0.5, 0.5]]), torch.tensor([[1.0, 0, 0]]), torch.zeros(1), torch.full((1,), 9.0)
    >>> march(*ray, cells, box, 0.5)[1].tolist()
    [1.0, 1.5]
    """
    o, d, first, last = (t.detach().contiguous().numpy() for t in (origins, directions, near, far))
    cells = occupied.contiguous().numpy()
    lower, upper = aabb.detach().double().numpy()
    scale = (np.array(cells.shape) / (upper - lower)).astype(np.float32)
    box = (lower.astype(np.float32), upper.astype(np.float32), scale, np.float32(step))
    offsets = np.zeros(len(o) + 1, np.int64)
    _march_count(o, d, first, last, cells, *box, offsets)
    np.cumsum(offsets, out=offsets)
    ray, start = np.empty(offsets[-1], np.int64), np.empty(offsets[-1], np.float32)
    _march_fill(o, d, first, last, cells, *box, offsets, ray, start)
    starts = torch.from_numpy(start)
    return torch.from_numpy(ray), starts, starts + step


def packed_weights(
    optical_depth: Float[Tensor, "M"], ray_indices: Int[Tensor, "M"], n_rays: int
) -> tuple[Float[Tensor, "M"], Float[Tensor, "n_rays"]]:
    r"""Return each sample's weight and the transmittance behind each ray's last sample, differentiable once.

    $$w_i = T_i (1 - e^{-\sigma_i\delta_i}),\quad T_i = e^{-\sum_{j<i}\sigma_j\delta_j}$$  (NeRF, eq. 3)

    Args:
        optical_depth: sigma times delta, >= 0.
        ray_indices: ray of each sample, ascending.

    >>> w, left = packed_weights(torch.tensor([0.6931472, 0.6931472]), torch.tensor([0, 0]), 2)
    >>> w.tolist(), left.tolist()
    ([0.5, 0.25], [0.25, 1.0])
    """
    if optical_depth.device.type != "cpu" or optical_depth.dtype != torch.float32:
        return packed_weights_reference(optical_depth, ray_indices, n_rays)
    return _PackedWeights.apply(optical_depth, ray_indices, n_rays)


def packed_weights_reference(optical_depth: Tensor, ray_indices: Tensor, n_rays: int) -> tuple[Tensor, Tensor]:
    """Return the same from plain torch calls."""
    from nsw.kernels.volume import render_weight_from_density

    zeros = torch.zeros_like(optical_depth)
    weights = render_weight_from_density(zeros, zeros + 1, optical_depth, ray_indices=ray_indices, n_rays=n_rays)[0]
    total = optical_depth.new_zeros(n_rays).index_add(0, ray_indices, optical_depth)
    return weights, torch.exp(-total)


class MaskedOccGrid(OccGridEstimator):
    """The occupancy grid of one level with its march in one kernel."""

    def _march(self, rays_o, rays_d, near, far, step: float, cone_angle: float) -> tuple[Tensor, Tensor, Tensor]:
        if self.levels > 1 or cone_angle > 0 or rays_o.device.type != "cpu" or rays_o.dtype != torch.float32:
            return super()._march(rays_o, rays_d, near, far, step, cone_angle)
        return march(rays_o, rays_d, near, far, self.binaries[0], self.aabbs[0].reshape(2, 3), step)


class _PackedWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx, optical_depth: Tensor, ray_indices: Tensor, n_rays: int):
        depth = optical_depth.detach().contiguous().numpy()
        offsets = np.searchsorted(ray_indices.numpy(), np.arange(n_rays + 1))
        weights, left = np.empty_like(depth), np.empty(n_rays, np.float32)
        _weights_forward(depth, offsets, weights, left)
        ctx.kept = (depth, offsets, weights, left)
        return torch.from_numpy(weights), torch.from_numpy(left)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_weights: Tensor, grad_left: Tensor):
        depth, offsets, weights, left = ctx.kept
        out = np.empty_like(depth)
        _weights_backward(depth, offsets, weights, left, grad_weights.contiguous().numpy(), grad_left.contiguous().numpy(), out)
        return torch.from_numpy(out), None, None


@njit(inline="always")
def _in_occupied_cell(o, d, t, r, cells, lower, upper, scale):
    for a in range(3):
        x = o[r, a] + t * d[r, a]
        if x < lower[a] or x > upper[a]:
            return False
    i = min(int((o[r, 0] + t * d[r, 0] - lower[0]) * scale[0]), cells.shape[0] - 1)
    j = min(int((o[r, 1] + t * d[r, 1] - lower[1]) * scale[1]), cells.shape[1] - 1)
    k = min(int((o[r, 2] + t * d[r, 2] - lower[2]) * scale[2]), cells.shape[2] - 1)
    return cells[i, j, k]


@njit(inline="always")
def _range_in_box(o, d, r, near, far, lower, upper, step):
    """Return the first lattice index worth looking at and how far to go: one step of slack against rounding."""
    enter, leave = near, far
    for a in range(3):
        if d[r, a] != 0:
            at_lower, at_upper = (lower[a] - o[r, a]) / d[r, a], (upper[a] - o[r, a]) / d[r, a]
            enter, leave = max(enter, min(at_lower, at_upper)), min(leave, max(at_lower, at_upper))
    return max(int((enter - near) / step) - 1, 0), min(leave + step, far)


@parallel_kernel()
def _march_count(o, d, near, far, cells, lower, upper, scale, step, counts):
    for r in prange(o.shape[0]):
        k, last = _range_in_box(o, d, r, near[r], far[r], lower, upper, step)
        n = 0
        t = near[r] + (np.float32(k) + _HALF) * step
        while t < last:
            if _in_occupied_cell(o, d, t, r, cells, lower, upper, scale):
                n += 1
            k += 1
            t = near[r] + (np.float32(k) + _HALF) * step
        counts[r + 1] = n


@parallel_kernel()
def _march_fill(o, d, near, far, cells, lower, upper, scale, step, offsets, ray, start):
    for r in prange(o.shape[0]):
        k, last = _range_in_box(o, d, r, near[r], far[r], lower, upper, step)
        n = offsets[r]
        t = near[r] + (np.float32(k) + _HALF) * step
        while t < last and n < offsets[r + 1]:
            if _in_occupied_cell(o, d, t, r, cells, lower, upper, scale):
                ray[n] = r
                start[n] = near[r] + np.float32(k) * step
                n += 1
            k += 1
            t = near[r] + (np.float32(k) + _HALF) * step


@parallel_kernel()
def _weights_forward(depth, offsets, weights, left):
    for r in prange(left.shape[0]):
        before = np.float32(0.0)
        for q in range(offsets[r], offsets[r + 1]):
            weights[q] = -np.expm1(-depth[q]) * np.exp(-before)
            before += depth[q]
        left[r] = np.exp(-before)


@parallel_kernel()
def _weights_backward(depth, offsets, weights, left, grad_weights, grad_left, out):
    for r in prange(left.shape[0]):
        behind = grad_left[r] * left[r]
        trans = left[r]
        before = np.float32(0.0)
        for q in range(offsets[r], offsets[r + 1]):
            before += depth[q]
        for q in range(offsets[r + 1] - 1, offsets[r] - 1, -1):
            trans = np.exp(-before)  # behind this sample
            out[q] = grad_weights[q] * trans - behind
            behind += grad_weights[q] * weights[q]
            before -= depth[q]
