"""Total variation of a sparse voxel grid on some of its rows, value and gradient in one compiled pass."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.saturation import LARGEST_STEP, cut
from nsw.kernels.threads import n_threads, run_shares
from nsw.kernels.voxel_march import RowGradient, marks_rows
from nsw.kernels.voxel_march_reference import total_variation_reference

EPSILON = 1e-9
STEEPEST_SUM = 1e32  # divided by the square root of EPSILON, still a float32


def total_variation(
    values: Float[Tensor, "K C"],
    links: Int[Tensor, "X Y Z"],
    vertices: Int[Tensor, "K"],
    first: int | Int[Tensor, "1"],
    count: int,
    rates: Float[Tensor, "C"],
    into: RowGradient | None = None,
) -> Float[Tensor, ""]:
    r"""Return how much rows `first` ... `first + count - 1` (cyclic, row 0 left out) differ from their upper neighbours.

    $$\frac1{|\mathcal V|} \sum_{v \in \mathcal V, q} \lambda_q \sqrt{\Delta_x^2 + \Delta_y^2 + \Delta_z^2 + \epsilon}, \qquad
    \Delta_x = \tfrac{X}{256} (q_{i+1,j,k} - q_{i,j,k})$$  (Plenoxels, eq. 3 and appendix; epsilon 1e-9)

    The gradient is this formula's own. A neighbour outside of the grid or pruned makes no difference.

    Args:
        vertices: place of each row's vertex in `links.view(-1)`, ascending from row 1 on.
        first: on a GPU it may lie there too.
        rates: lambda of each channel.
        into: add the gradient there and hand none to autograd.
    """
    count = min(count, len(values) - 1)
    if values.is_cuda and marks_rows(values) and links.dtype == torch.int32:
        from nsw.kernels.voxel_rows_triton import TritonVariation

        return TritonVariation.apply(values, links, vertices, first, count, rates, into, EPSILON)
    if values.device.type != "cpu" or values.dtype != torch.float32:
        rows = (torch.arange(count, device=values.device) + first - 1) % max(1, len(values) - 1) + 1
        return total_variation_reference(values, links, rows, rates, EPSILON, vertices)
    return _TotalVariation.apply(values, links, vertices, first, count, rates, into)


class _TotalVariation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, links, vertices, first, count, rates, into):
        ctx.arguments = (values.shape, links, vertices, first, count, rates, into)
        ctx.save_for_backward(values)
        return torch.tensor(_run(values, links, vertices, first, count, rates, None, 0.0))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        shape, links, vertices, first, count, rates, into = ctx.arguments
        (values,) = ctx.saved_tensors
        target = RowGradient(torch.zeros(shape), torch.zeros(shape[0], dtype=torch.uint8)) if into is None else into
        _run(values, links, vertices, first, count, rates, target, float(grad))
        return (target.values if into is None else None,) + (None,) * 6


def _run(values, links, vertices, first, count, rates, target: RowGradient | None, scale: float) -> float:
    """Walk over the rows once: for the value without a target, for the gradient times `scale` with one."""
    if count <= 0:
        return 0.0
    workers = n_threads()
    size = np.array(links.shape)
    sums = np.zeros(workers)
    # Rows are in the order of x, so a share of rows is a slab; its gradient reaches one plane beyond, which its owner adds.
    borders = np.linspace(1, len(values), workers + 1).astype(np.int64)
    table = torch.zeros(1, values.shape[1]), torch.zeros(1, dtype=torch.uint8)
    into, touched = table if target is None else (target.values, target.touched)
    run_shares(
        _sweep, workers, values.detach().numpy(), links.reshape(-1).numpy(), vertices.numpy(), size, first - 1, count,
        rates.numpy(), (size / 256).astype(np.float32), np.float32(EPSILON), borders, target is not None,
        np.float32(np.clip(scale / count, -STEEPEST_SUM, STEEPEST_SUM)), into.numpy(), touched.numpy(), sums,
    )  # fmt: skip
    return float(sums.sum() / count)


@helper
def _add(into, touched, row, part, sign):
    """Add one vertex's part of the gradient to its row."""
    touched[row] = 1
    for c in range(part.shape[0]):
        into[row, c] += sign * part[c]


@kernel
def _sweep(
    values, links, vertices, size, first, count, rates, scale, epsilon, borders, backward, factor, into, touched, sums,
    share, n_shares,
):  # fmt: skip
    begin, end = borders[share], borders[share + 1]
    n_rows, n = values.shape
    parts = np.zeros((4, n), np.float32)
    total = 0.0
    stride_x, stride_y = size[1] * size[2], size[2]
    for m in range(count):
        row = 1 + (first + m) % (n_rows - 1)
        at = vertices[row]
        x, y, z = at // stride_x, (at // stride_y) % size[1], at % stride_y
        beside_x = links[at + stride_x] if x + 1 < size[0] else 0
        beside_y = links[at + stride_y] if y + 1 < size[1] else 0
        beside_z = links[at + 1] if z + 1 < size[2] else 0
        mine = begin <= row < end
        if not (mine or (backward and (begin <= beside_x < end or begin <= beside_y < end or begin <= beside_z < end))):
            continue
        rx, ry, rz = beside_x or row, beside_y or row, beside_z or row  # a row's difference to itself is nothing
        value = np.float32(0)
        for c in range(n):  # without a branch, so that the compiler makes vectors of it
            own = values[row, c]
            dx, dy, dz = (values[rx, c] - own) * scale[0], (values[ry, c] - own) * scale[1], (values[rz, c] - own) * scale[2]
            dx, dy, dz = cut(dx, LARGEST_STEP), cut(dy, LARGEST_STEP), cut(dz, LARGEST_STEP)
            root = np.sqrt(dx * dx + dy * dy + dz * dz + epsilon)
            g = factor * rates[c] / root
            parts[0, c], parts[1, c], parts[2, c] = dx * g * scale[0], dy * g * scale[1], dz * g * scale[2]
            parts[3, c] = parts[0, c] + parts[1, c] + parts[2, c]
            value += rates[c] * root
        total += value
        if backward:
            if mine:
                _add(into, touched, row, parts[3], np.float32(-1))
            if begin <= beside_x < end:
                _add(into, touched, beside_x, parts[0], np.float32(1))
            if begin <= beside_y < end:
                _add(into, touched, beside_y, parts[1], np.float32(1))
            if begin <= beside_z < end:
                _add(into, touched, beside_z, parts[2], np.float32(1))
    sums[share] = total
