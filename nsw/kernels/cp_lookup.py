"""Lookup of a CP factored grid (TensoRF, Chen et al. 2022): fused CPU kernels and their torch reference.

A component is worth the product of three lines, each read at one of a point's coordinates: `nsw.kernels.vm_lookup` with a plane
that is itself a product. Lines are [n, R] along the axes 0, 1, 2, channels last; points outside of the box read the border.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import grid_sample

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.entry_vectors import (
    entry_add,
    entry_dot,
    entry_fill,
    entry_load,
    entry_mul,
    entry_settled,
    entry_store,
    entry_zero,
)
from nsw.kernels.factor_cells import (
    BLOCK,
    ONE,
    ZERO,
    affine,
    channels_of,
    check_factors,
    flat,
    gradients_for,
    place,
    runs_compiled,
    shares,
    within,
)
from nsw.kernels.saturation import LARGEST, STEEPEST, settled
from nsw.kernels.threads import run_shares
from nsw.kernels.vm_lookup import sample_places


def cp_lookup_reference(
    lines: Sequence[Float[Tensor, "n R"]], points: Float[Tensor, "N 3"], aabb: Float[Tensor, "2 3"], summed: bool = False
) -> Float[Tensor, "N R"]:
    """Return the products from plain torch calls; the definition that the kernel is tested against."""
    place, how = sample_places(points, aabb), dict(mode="bilinear", padding_mode="border", align_corners=True)
    on_lines = [place[:, 0 : 4 - axis : 3 - axis][None, None] for axis in range(3)]
    x, y, z = (grid_sample(line.T[None, :, :, None], on, **how).flatten(0, 2) for line, on in zip(lines, on_lines, strict=True))
    products = x * y * z
    return products.sum(0)[:, None] if summed else products.T


def cp_lookup(
    lines: Sequence[Float[Tensor, "n R"]],
    points: Float[Tensor, "N 3"],
    aabb: Float[Tensor, "2 3"],
    summed: bool = False,
    gradients_into: tuple[Tensor, ...] | None = None,
    known: Float[Tensor, "N R"] | None = None,
) -> Float[Tensor, "N R"]:
    r"""Return the products of three lines at world `points`; differentiable once in lines and points.

    $$\Big[\,v^{X}_{r}(x)\,v^{Y}_{r}(y)\,v^{Z}_{r}(z)\,\Big]_{r}$$  (TensoRF, eq. 2), or their sum, which is a density.

    float32 on the CPU runs in fused kernels, everything else runs `cp_lookup_reference`. Arguments are `vm_lookup`'s.

    Raises:
        InputError: for lines of different ranks, or of a single vertex.

    >>> box = torch.tensor([[0.0, 0, 0], [1, 1, 1]])
    >>> cp_lookup([torch.full((n, 2), 2.0) for n in (3, 4, 5)], torch.rand(7, 3), box)[0].tolist()
    [8.0, 8.0]
    """
    shape, rank = tuple(line.shape[0] for line in lines), lines[0].shape[1]
    check_factors(shape, rank, tuple(lines), tuple((n, rank) for n in shape))
    if not runs_compiled(*lines, points):
        spared = known is not None and not torch.is_grad_enabled()
        return known if spared else cp_lookup_reference(lines, points, aabb, summed)
    return _CPLookup.apply(points, affine(aabb, shape), summed, gradients_into, known, *lines)


class _CPLookup(torch.autograd.Function):
    """Autograd around the kernels below."""

    @staticmethod
    def forward(ctx, points: Tensor, box, summed: bool, into, known: Tensor | None, *lines: Tensor) -> Tensor:
        rank = lines[0].shape[1]
        ctx.save_for_backward(points, *lines)
        ctx.kept = box, summed, into
        if known is not None:
            return known.clone()
        out = np.empty((len(points), 1 if summed else rank), np.float32)
        arrays = _arrays(points, lines, box)
        run_shares(_forward, shares(len(points)), *arrays, rank, channels_of(rank), summed, out.reshape(-1))
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor):
        points, *lines = ctx.saved_tensors
        box, summed, into = ctx.kept
        rank, grad, arrays = lines[0].shape[1], flat(grad_out), _arrays(points, lines, box)
        common = (rank, channels_of(rank), summed, grad)
        grad_points, handed = None, (None,) * 3
        if any(ctx.needs_input_grad[5:]):
            targets, handed = gradients_for(lines, ctx.needs_input_grad[5:], into)
            n_shares = min(shares(len(points)), rank // len(channels_of(rank)))
            run_shares(_lines_backward, n_shares, *arrays, *common, tuple(flat(t) for t in targets))
        if ctx.needs_input_grad[0]:
            out = np.empty((len(points), 3), np.float32)
            run_shares(_points_backward, shares(len(points)), *arrays, *common, out)
            grad_points = torch.from_numpy(out)
        return grad_points, None, None, None, None, *handed


def _arrays(points: Tensor, lines: Sequence[Tensor], box) -> tuple:
    return (tuple(flat(line) for line in lines), points.detach().contiguous().numpy(), *box)


@helper
def _read(line, at, rank, h, channels):
    total = entry_add(entry_zero(channels), ONE - h, entry_load(line, at, channels))
    return entry_add(total, h, entry_load(line, at + rank, channels))


@helper
def _deposit(gradient, at, rank, h, entry, channels):
    entry_store(gradient, at, entry_add(entry_load(gradient, at, channels), ONE - h, entry))
    entry_store(gradient, at + rank, entry_add(entry_load(gradient, at + rank, channels), h, entry))


@helper
def _pull(upstream, u, v):
    """What the third line's component is worth; finite, since what is added up goes through 0 as well."""
    return entry_settled(entry_mul(upstream, entry_mul(u, v)), STEEPEST)


@helper
def _slope(line, at, rank, entry, channels):
    return entry_dot(entry, entry_load(line, at + rank, channels)) - entry_dot(entry, entry_load(line, at, channels))


@kernel
def _forward(lines, xyz, lower, scale, shape, rank, channels, summed, out, share, n_shares):
    n, width = xyz.shape[0], len(channels)
    for block in range(share, (n + BLOCK - 1) // BLOCK, n_shares):
        for q in range(block * BLOCK, min(n, (block + 1) * BLOCK)):
            i, f = place(xyz[q, 0], lower[0], scale[0], shape[0])
            j, g = place(xyz[q, 1], lower[1], scale[1], shape[1])
            k, h = place(xyz[q, 2], lower[2], scale[2], shape[2])
            total = ZERO
            for first in range(0, rank, width):
                u = _read(lines[0], i * rank + first, rank, f, channels)
                v = _read(lines[1], j * rank + first, rank, g, channels)
                w = _read(lines[2], k * rank + first, rank, h, channels)
                if summed:
                    total += entry_dot(entry_mul(u, v), w)
                else:
                    entry_store(out, q * rank + first, entry_settled(entry_mul(entry_mul(u, v), w), LARGEST))
            if summed:
                out[q] = settled(total, LARGEST)


@kernel
def _lines_backward(lines, xyz, lower, scale, shape, rank, channels, summed, grad, to_lines, share, n_shares):
    width = len(channels)
    for piece in range(share, rank // width, n_shares):  # one thread has some components to itself
        first = piece * width
        for q in range(xyz.shape[0]):
            i, f = place(xyz[q, 0], lower[0], scale[0], shape[0])
            j, g = place(xyz[q, 1], lower[1], scale[1], shape[1])
            k, h = place(xyz[q, 2], lower[2], scale[2], shape[2])
            u = _read(lines[0], i * rank + first, rank, f, channels)
            v = _read(lines[1], j * rank + first, rank, g, channels)
            w = _read(lines[2], k * rank + first, rank, h, channels)
            upstream = entry_fill(grad[q], channels) if summed else entry_load(grad, q * rank + first, channels)
            _deposit(to_lines[0], i * rank + first, rank, f, _pull(upstream, v, w), channels)
            _deposit(to_lines[1], j * rank + first, rank, g, _pull(upstream, u, w), channels)
            _deposit(to_lines[2], k * rank + first, rank, h, _pull(upstream, u, v), channels)


@kernel
def _points_backward(lines, xyz, lower, scale, shape, rank, channels, summed, grad, out, share, n_shares):
    n, width = xyz.shape[0], len(channels)
    for block in range(share, (n + BLOCK - 1) // BLOCK, n_shares):
        for q in range(block * BLOCK, min(n, (block + 1) * BLOCK)):
            i, f = place(xyz[q, 0], lower[0], scale[0], shape[0])
            j, g = place(xyz[q, 1], lower[1], scale[1], shape[1])
            k, h = place(xyz[q, 2], lower[2], scale[2], shape[2])
            out[q, 0] = out[q, 1] = out[q, 2] = ZERO
            for first in range(0, rank, width):
                u = _read(lines[0], i * rank + first, rank, f, channels)
                v = _read(lines[1], j * rank + first, rank, g, channels)
                w = _read(lines[2], k * rank + first, rank, h, channels)
                upstream = entry_fill(grad[q], channels) if summed else entry_load(grad, q * rank + first, channels)
                out[q, 0] += scale[0] * _slope(lines[0], i * rank + first, rank, entry_mul(upstream, entry_mul(v, w)), channels)
                out[q, 1] += scale[1] * _slope(lines[1], j * rank + first, rank, entry_mul(upstream, entry_mul(u, w)), channels)
                out[q, 2] += scale[2] * _slope(lines[2], k * rank + first, rank, entry_mul(upstream, entry_mul(u, v)), channels)
            for axis in range(3):
                inside = within(xyz[q, axis], lower[axis], scale[axis], shape[axis])
                out[q, axis] = settled(out[q, axis], STEEPEST) if inside else ZERO
