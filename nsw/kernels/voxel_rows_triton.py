"""What Plenoxels does to rows of its table beside marching, on a CUDA device: total variation, and a step of RMSProp."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nsw.kernels.saturation import LARGEST_STEP
from nsw.kernels.triton_launch import launch

_VERTICES = 16  # of a program that sums differences
_ROWS = 64  # of a program that takes a step
_MOST = tl.constexpr(float(LARGEST_STEP))


class TritonVariation(torch.autograd.Function):
    """Total variation of rows; arguments as of `nsw.kernels.voxel_tv.total_variation`, epsilon last."""

    @staticmethod
    def forward(
        ctx, values: Float[Tensor, "K C"], links: Int[Tensor, "X Y Z"], vertices: Int[Tensor, "K"], first: int | Tensor, count: int,
        rates: Float[Tensor, "C"], into, epsilon: float,
    ) -> Float[Tensor, ""]:  # fmt: skip
        first = first.reshape(1) if isinstance(first, Tensor) else torch.full((1,), first, device=values.device)
        arguments = (links.contiguous(), vertices, first, count, rates, epsilon)
        sums = values.new_zeros(triton.cdiv(max(count, 1), _VERTICES))
        _sweep(_variation, values.detach(), (sums,), *arguments)
        ctx.save_for_backward(values)
        ctx.kept = arguments, into
        return sums.sum() / max(count, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (values,) = ctx.saved_tensors
        arguments, into = ctx.kept
        if into is None:
            target, touched = torch.zeros_like(values), torch.zeros(len(values), dtype=torch.uint8, device=values.device)
        else:
            target, touched = into.values, into.touched
        _sweep(_variation_backward, values.detach(), (grad.contiguous(), target, touched), *arguments)
        return (target if into is None else None,) + (None,) * 7


def _sweep(kernel, values, outputs, links, vertices, first, count, rates, epsilon) -> None:
    if count > 0:
        sizes = (*links.shape, len(values), count, *(n / 256 for n in links.shape), float(epsilon))
        constants = dict(C=values.shape[1], WIDTH=triton.next_power_of_2(values.shape[1]), BLOCK=_VERTICES, num_warps=2)
        grid = (triton.cdiv(count, _VERTICES),)
        launch(kernel, grid, values, links, vertices, first, rates, *outputs, *sizes, **constants)


@triton.jit
def _beside(values, links, at, row, own, there, inside, STRIDE, C: tl.constexpr, channel, used, scale):
    """Return the row beside, 0 for none, and the difference to it, scaled and cut to what can be squared."""
    other = tl.load(links + at + STRIDE, mask=there & inside, other=0).to(tl.int64)
    other_or_own = tl.where(other > 0, other, row)  # a row's difference to itself is nothing
    mask = there[:, None] & used[None, :]
    difference = (tl.load(values + other_or_own[:, None] * C + channel[None, :], mask=mask, other=0.0) - own) * scale
    return other, tl.minimum(tl.maximum(difference, -_MOST), _MOST)


@triton.jit
def _differences(
    values, links, vertices, first, X, Y, Z, K, count, sx, sy, sz, C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """Return rows of a program, their three neighbours', which there are, channels, and the three differences."""
    m = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = m < count
    row = 1 + (tl.load(first) - 1 + m) % (K - 1)
    at = tl.load(vertices + row, mask=there, other=0)
    plane = Y.to(tl.int64) * Z
    channel = tl.arange(0, WIDTH)
    used = channel < C
    own = tl.load(values + row[:, None] * C + channel[None, :], mask=there[:, None] & used[None, :], other=0.0)
    row_x, dx = _beside(values, links, at, row, own, there, at // plane + 1 < X, plane, C, channel, used, sx)
    row_y, dy = _beside(values, links, at, row, own, there, at // Z % Y + 1 < Y, Z, C, channel, used, sy)
    row_z, dz = _beside(values, links, at, row, own, there, at % Z + 1 < Z, 1, C, channel, used, sz)
    return row, row_x, row_y, row_z, there, channel, used, dx, dy, dz


@triton.jit(do_not_specialize=["X", "Y", "Z", "K", "count"])
def _variation(
    values, links, vertices, first, rates, sums, X, Y, Z, K, count, sx, sy, sz, epsilon,
    C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, row_x, row_y, row_z, there, channel, used, dx, dy, dz = _differences(
        values, links, vertices, first, X, Y, Z, K, count, sx, sy, sz, C, WIDTH, BLOCK
    )
    rate = tl.load(rates + channel, mask=used, other=0.0)
    value = tl.where(there[:, None], rate[None, :] * tl.sqrt(dx * dx + dy * dy + dz * dz + epsilon), 0.0)
    tl.store(sums + tl.program_id(0), tl.sum(tl.sum(value, axis=1), axis=0))


@triton.jit
def _add(into, touched, row, part, there, channel, used, C: tl.constexpr, BLOCK: tl.constexpr):
    """Add one vertex's part of the gradient to its row, and mark it."""
    kept = there & (row > 0)
    tl.store(touched + row, tl.full((BLOCK,), 1, tl.uint8), mask=kept)
    tl.atomic_add(into + row[:, None] * C + channel[None, :], part, mask=kept[:, None] & used[None, :], sem="relaxed")


@triton.jit(do_not_specialize=["X", "Y", "Z", "K", "count"])
def _variation_backward(
    values, links, vertices, first, rates, grad, into, touched, X, Y, Z, K, count, sx, sy, sz, epsilon,
    C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, row_x, row_y, row_z, there, channel, used, dx, dy, dz = _differences(
        values, links, vertices, first, X, Y, Z, K, count, sx, sy, sz, C, WIDTH, BLOCK
    )
    rate = tl.load(rates + channel, mask=used, other=0.0) * (tl.load(grad) / count)
    g = rate[None, :] / tl.sqrt(dx * dx + dy * dy + dz * dz + epsilon)
    part_x, part_y, part_z = dx * g * sx, dy * g * sy, dz * g * sz
    _add(into, touched, row, -(part_x + part_y + part_z), there, channel, used, C, BLOCK)
    _add(into, touched, row_x, part_x, there, channel, used, C, BLOCK)
    _add(into, touched, row_y, part_y, there, channel, used, C, BLOCK)
    _add(into, touched, row_z, part_z, there, channel, used, C, BLOCK)


def rmsprop_step(values, grad, square, mean, touched, rates, beta: float, eps: float, momentum: float) -> None:
    """Take one step in place; arguments as of `nsw.kernels.row_rmsprop.rmsprop_rows`, all contiguous."""
    tables = (values.detach(), grad, square, square if mean is None else mean, touched, rates)
    numbers, n_channels = (len(values), float(beta), float(eps), float(momentum)), values.shape[1]
    constants = dict(C=n_channels, MOMENTUM=momentum > 0, WIDTH=triton.next_power_of_2(n_channels), BLOCK=_ROWS, num_warps=4)
    launch(_rmsprop, (triton.cdiv(len(values), _ROWS),), *tables, *numbers, **constants)
    torch.autograd.graph.increment_version(values)  # a kernel's writing goes unseen


@triton.jit(do_not_specialize=["K"])
def _rmsprop(
    values, grad, square, mean, touched, rates, K, beta, eps, momentum,
    C: tl.constexpr, MOMENTUM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    marked = tl.load(touched + row, mask=row < K, other=0) != 0
    if tl.max(marked.to(tl.int32), axis=0) > 0:
        channel = tl.arange(0, WIDTH)
        at, mask = row[:, None] * C + channel[None, :], marked[:, None] & (channel < C)[None, :]
        g = tl.load(grad + at, mask=mask, other=0.0)
        g = tl.where(g > _MOST, _MOST, tl.where(g < -_MOST, -_MOST, g))  # a NaN stays, so that whoever put it in finds it
        old = tl.load(square + at, mask=mask, other=0.0)
        new = tl.where(old == 0.0, g * g, beta * old + (1.0 - beta) * g * g)
        tl.store(square + at, new, mask=mask)
        if MOMENTUM:
            g = momentum * tl.load(mean + at, mask=mask, other=0.0) + (1.0 - momentum) * g
            tl.store(mean + at, g, mask=mask)
        rate = tl.load(rates + channel, mask=channel < C, other=0.0)
        change = rate[None, :] * g / (tl.sqrt(new) + eps)
        tl.store(values + at, tl.load(values + at, mask=mask, other=0.0) - change, mask=mask)
        tl.store(grad + at, tl.zeros((BLOCK, WIDTH), tl.float32), mask=mask)
        tl.store(touched + row, tl.zeros((BLOCK,), tl.uint8), mask=marked)
