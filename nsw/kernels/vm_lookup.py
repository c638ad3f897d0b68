"""Lookup of a vector-matrix (VM) factored grid (TensoRF, Chen et al. 2022): fused CPU kernels and their torch reference.

A grid with R components a mode is three planes and three lines. Component r of mode m is worth the product of a plane, read at two
of a point's coordinates, and of a line, read at the third. Channels lie last, so that a vertex's components share cache lines:
planes [n_a, n_b, R] along the axes (0, 1), (0, 2), (1, 2), lines [n_c, R] along 2, 1, 0. The first vertex sits on the box's lower
corner, the last on the upper one; points outside read the border.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import grid_sample, pad

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

FIRST, SECOND, LINE = (0, 0, 1), (1, 2, 2), (2, 1, 0)  # axes of each mode's plane, and of its line
Into = tuple[Tensor, ...]


def sample_places(points: Float[Tensor, "N 3"], aabb: Float[Tensor, "2 3"]) -> Float[Tensor, "N 4"]:
    """Return (0, z, y, x) of each point, from -1 to 1 across the box: what `grid_sample` takes is two of these columns.

    It names the last axis first, and for it a line is a plane one vertex wide, on which everything lies at 0. Two columns are a
    view, where each list of axes would be sent to a GPU in every step.
    """
    return pad((2.0 * (points - aabb[0]) / (aabb[1] - aabb[0]) - 1.0).flip(-1), (1, 0))


def vm_lookup_reference(
    planes: Sequence[Float[Tensor, "a b R"]],
    lines: Sequence[Float[Tensor, "c R"]],
    points: Float[Tensor, "N 3"],
    aabb: Float[Tensor, "2 3"],
    summed: bool = False,
) -> Float[Tensor, "N 3R"]:
    """Return the products from plain torch calls; the definition that the kernel is tested against."""
    place, how = sample_places(points, aabb), dict(mode="bilinear", padding_mode="border", align_corners=True)
    from_planes, from_lines = [], []
    for plane, line, a, b, c in zip(planes, lines, FIRST, SECOND, LINE, strict=True):
        on_plane, on_line = place[:, 3 - b : 4 - a : b - a], place[:, 0 : 4 - c : 3 - c]
        from_planes.append(grid_sample(plane.permute(2, 0, 1)[None], on_plane[None, None], **how).flatten(0, 2))
        from_lines.append(grid_sample(line.T[None, :, :, None], on_line[None, None], **how).flatten(0, 2))
    products = torch.cat(from_planes) * torch.cat(from_lines)
    return products.sum(0)[:, None] if summed else products.T


def vm_lookup(
    planes: Sequence[Float[Tensor, "a b R"]],
    lines: Sequence[Float[Tensor, "c R"]],
    points: Float[Tensor, "N 3"],
    aabb: Float[Tensor, "2 3"],
    summed: bool = False,
    gradients_into: Into | None = None,
    known: Float[Tensor, "N 3R"] | None = None,
) -> Float[Tensor, "N 3R"]:
    r"""Return the products of planes and lines at world `points`; differentiable once in factors and points.

    $$\Big[\,v^{m}_{r}(x_m)\,M^{m}_{r}(x_{\bar m})\,\Big]_{m,r}$$  (TensoRF, eq. 4 and 5), or their sum, which is a density.

    float32 on the CPU runs in fused kernels, everything else runs `vm_lookup_reference`. Each factor's gradient is added up by one
    thread, point by point, so it does not depend on the number of threads.

    Args:
        planes, lines: one of each for each mode.
        points: world coordinates.
        aabb: the grid's box, lower corner then upper corner, world units.
        summed: sum over modes and components: [N, 1] instead of [N, 3R].
        gradients_into: six tensors (planes, then lines) to which the factors' gradients are added; autograd is handed none. A
            caller whose optimiser empties `.grad` in place saves an allocation of all factors a step.
        known: the result, from an earlier call without gradients: the forward pass then only hands it on.

    Raises:
        InputError: for factors whose sizes do not belong together.

    >>> ones = [torch.ones(2, 3, 4), torch.ones(2, 5, 4), torch.ones(3, 5, 4)], [torch.ones(n, 4) for n in (5, 3, 2)]
    >>> vm_lookup(*ones, torch.rand(7, 3), torch.tensor([[0.0, 0, 0], [1, 1, 1]]), summed=True)[0].item()
    12.0
    """
    shape, rank = (*planes[0].shape[:2], lines[0].shape[0]), lines[0].shape[1]
    expected = [(shape[a], shape[b], rank) for a, b in zip(FIRST, SECOND, strict=True)] + [(shape[c], rank) for c in LINE]
    check_factors(shape, rank, (*planes, *lines), tuple(expected))
    if not runs_compiled(*planes, *lines, points):
        spared = known is not None and not torch.is_grad_enabled()
        return known if spared else vm_lookup_reference(planes, lines, points, aabb, summed)
    return _VMLookup.apply(points, affine(aabb, shape), summed, gradients_into, known, *planes, *lines)


class _VMLookup(torch.autograd.Function):
    """Autograd around the kernels below."""

    @staticmethod
    def forward(ctx, points: Tensor, box, summed: bool, into: Into | None, known: Tensor | None, *factors: Tensor) -> Tensor:
        rank = factors[-1].shape[1]
        ctx.save_for_backward(points, *factors)
        ctx.kept = box, summed, into
        if known is not None:
            return known.clone()
        out = np.zeros((len(points), 1 if summed else 3 * rank), np.float32)
        arrays = _arrays(points, factors, box)
        run_shares(_forward, shares(len(points)), *arrays, rank, channels_of(rank), summed, out.reshape(-1))
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor):
        points, *factors = ctx.saved_tensors
        box, summed, into = ctx.kept
        rank, grad, arrays = factors[-1].shape[1], flat(grad_out), _arrays(points, factors, box)
        common = (rank, channels_of(rank), summed, grad)
        grad_points, handed = None, (None,) * 6
        if any(ctx.needs_input_grad[5:]):
            targets, handed = gradients_for(factors, ctx.needs_input_grad[5:], into)
            targets = [flat(t) for t in targets]
            n_shares = min(shares(len(points)), 3 * rank // len(channels_of(rank)))
            run_shares(_factors_backward, n_shares, *arrays, *common, tuple(targets[:3]), tuple(targets[3:]))
        if ctx.needs_input_grad[0]:
            out = np.empty((len(points), 3), np.float32)
            run_shares(_points_backward, shares(len(points)), *arrays, *common, out)
            grad_points = torch.from_numpy(out)
        return grad_points, None, None, None, None, *handed


def _arrays(points: Tensor, factors: Sequence[Tensor], box) -> tuple:
    arrays = [flat(f) for f in factors]
    return (tuple(arrays[:3]), tuple(arrays[3:]), points.detach().contiguous().numpy(), *box)


@helper
def _read_plane(plane, at, row, rank, f, g, channels):
    """Return a plane's components between four vertices; `at` is where the first one's begin, `row` how far the next row is."""
    total = entry_add(entry_zero(channels), (ONE - f) * (ONE - g), entry_load(plane, at, channels))
    total = entry_add(total, (ONE - f) * g, entry_load(plane, at + rank, channels))
    total = entry_add(total, f * (ONE - g), entry_load(plane, at + row, channels))
    return entry_add(total, f * g, entry_load(plane, at + row + rank, channels))


@helper
def _read_line(line, at, rank, h, channels):
    total = entry_add(entry_zero(channels), ONE - h, entry_load(line, at, channels))
    return entry_add(total, h, entry_load(line, at + rank, channels))


@helper
def _deposit(gradient, at, weight, entry, channels):
    entry_store(gradient, at, entry_add(entry_load(gradient, at, channels), weight, entry))


@kernel
def _forward(planes, lines, xyz, lower, scale, shape, rank, channels, summed, out, share, n_shares):
    n, width = xyz.shape[0], len(channels)
    for block in range(share, (n + BLOCK - 1) // BLOCK, n_shares):
        for m in range(3):
            plane, line, a, b, c = planes[m], lines[m], FIRST[m], SECOND[m], LINE[m]
            row = shape[b] * rank
            for q in range(block * BLOCK, min(n, (block + 1) * BLOCK)):
                i, f = place(xyz[q, a], lower[a], scale[a], shape[a])
                j, g = place(xyz[q, b], lower[b], scale[b], shape[b])
                k, h = place(xyz[q, c], lower[c], scale[c], shape[c])
                total = ZERO
                for first in range(0, rank, width):
                    p = _read_plane(plane, i * row + j * rank + first, row, rank, f, g, channels)
                    v = _read_line(line, k * rank + first, rank, h, channels)
                    if summed:
                        total += entry_dot(p, v)
                    else:
                        entry_store(out, (q * 3 + m) * rank + first, entry_mul(p, v))
                if summed:
                    out[q] = settled(out[q] + total, LARGEST)


@kernel
def _factors_backward(planes, lines, xyz, lower, scale, shape, rank, channels, summed, grad, to_planes, to_lines, share, n_shares):
    width = len(channels)
    n_vectors = rank // width
    for piece in range(share, 3 * n_vectors, n_shares):  # one thread has some components of a mode to itself
        m, first = piece // n_vectors, piece % n_vectors * width
        plane, line, a, b, c = planes[m], lines[m], FIRST[m], SECOND[m], LINE[m]
        to_plane, to_line, row = to_planes[m], to_lines[m], shape[b] * rank
        for q in range(xyz.shape[0]):
            i, f = place(xyz[q, a], lower[a], scale[a], shape[a])
            j, g = place(xyz[q, b], lower[b], scale[b], shape[b])
            k, h = place(xyz[q, c], lower[c], scale[c], shape[c])
            at, on = i * row + j * rank + first, k * rank + first
            upstream = entry_fill(grad[q], channels) if summed else entry_load(grad, (q * 3 + m) * rank + first, channels)
            for_line = entry_settled(entry_mul(upstream, _read_plane(plane, at, row, rank, f, g, channels)), STEEPEST)
            for_plane = entry_settled(entry_mul(upstream, _read_line(line, on, rank, h, channels)), STEEPEST)
            _deposit(to_plane, at, (ONE - f) * (ONE - g), for_plane, channels)
            _deposit(to_plane, at + rank, (ONE - f) * g, for_plane, channels)
            _deposit(to_plane, at + row, f * (ONE - g), for_plane, channels)
            _deposit(to_plane, at + row + rank, f * g, for_plane, channels)
            _deposit(to_line, on, ONE - h, for_line, channels)
            _deposit(to_line, on + rank, h, for_line, channels)


@kernel
def _points_backward(planes, lines, xyz, lower, scale, shape, rank, channels, summed, grad, out, share, n_shares):
    n, width = xyz.shape[0], len(channels)
    for block in range(share, (n + BLOCK - 1) // BLOCK, n_shares):
        for q in range(block * BLOCK, min(n, (block + 1) * BLOCK)):
            out[q, 0] = out[q, 1] = out[q, 2] = ZERO
            for m in range(3):
                plane, line, a, b, c = planes[m], lines[m], FIRST[m], SECOND[m], LINE[m]
                row = shape[b] * rank
                i, f = place(xyz[q, a], lower[a], scale[a], shape[a])
                j, g = place(xyz[q, b], lower[b], scale[b], shape[b])
                k, h = place(xyz[q, c], lower[c], scale[c], shape[c])
                for first in range(0, rank, width):
                    at, on = i * row + j * rank + first, k * rank + first
                    upstream = entry_fill(grad[q], channels) if summed else entry_load(grad, (q * 3 + m) * rank + first, channels)
                    worth = entry_mul(upstream, _read_line(line, on, rank, h, channels))
                    # what each corner's weight is worth: the gradient of the interpolation is linear in these four
                    v00 = entry_dot(worth, entry_load(plane, at, channels))
                    v01 = entry_dot(worth, entry_load(plane, at + rank, channels))
                    v10 = entry_dot(worth, entry_load(plane, at + row, channels))
                    v11 = entry_dot(worth, entry_load(plane, at + row + rank, channels))
                    on_line = entry_mul(upstream, _read_plane(plane, at, row, rank, f, g, channels))
                    slope = entry_dot(on_line, entry_load(line, on + rank, channels)) - entry_dot(
                        on_line, entry_load(line, on, channels)
                    )
                    out[q, a] += scale[a] * ((ONE - g) * (v10 - v00) + g * (v11 - v01))
                    out[q, b] += scale[b] * ((ONE - f) * (v01 - v00) + f * (v11 - v10))
                    out[q, c] += scale[c] * slope
            for axis in range(3):
                inside = within(xyz[q, axis], lower[axis], scale[axis], shape[axis])
                out[q, axis] = settled(out[q, axis], STEEPEST) if inside else ZERO
