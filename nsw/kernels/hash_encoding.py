"""Multiresolution hash encoding (Instant-NGP, Mueller et al. 2022): a fused CPU kernel and its plain torch reference.

A point reads every level of a pyramid of grids. Coarse levels store all of their vertices; a fine level has more vertices
than entries, so its vertices are sent to entries by a hash and some of them share one. Nothing resolves such collisions:
training does, because the vertices that matter send the larger gradients.

All levels live in one table [rows, F], level after level, so that one optimiser state and one gradient serve them all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nsw.errors import InputError
from nsw.kernels import triton_launch
from nsw.kernels.compiling import helper, kernel
from nsw.kernels.entry_vectors import entry_add, entry_dot, entry_load, entry_store, entry_zero
from nsw.kernels.saturation import STEEPEST, settled3
from nsw.kernels.threads import n_threads, run_shares

PRIMES = (1, 2654435761, 805459861)
_BLOCK = 512
_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)


@dataclass(frozen=True)
class HashLevels:
    """Where the levels of a hash table lie.

    Attributes:
        scales: cells along an axis of the unit cube, N_min b^l - 1.
        n_vertices: vertices along an axis, N_l + 1.
        first_rows: each level's first row of the table, and at the end the number of rows.
        hashed: whether a level has more vertices than rows.
    """

    scales: tuple[float, ...]
    n_vertices: tuple[int, ...]
    first_rows: tuple[int, ...]
    hashed: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.scales)

    @property
    def n_rows(self) -> int:
        return self.first_rows[-1]


def hash_levels(n_levels: int, n_min: int, n_max: int, log2_entries: int) -> HashLevels:
    r"""Return the geometry of a pyramid from `n_min` to `n_max` cells with at most 2^log2_entries rows a level.

    $$b = e^{(\ln N_{\max} - \ln N_{\min}) / (L - 1)},\quad s_l = N_{\min} b^l - 1,\quad N_l = \lceil s_l \rceil + 1$$
    (Instant-NGP, eq. 2 and 3; the -1 is the official code's.) A level with (N_l + 1)^3 <= T vertices is stored densely.

    >>> levels = hash_levels(3, 4, 16, 9)
    >>> levels.n_vertices, levels.hashed, levels.n_rows
    ((5, 9, 17), (False, True, True), 1149)
    """
    if n_levels < 1 or not 2 <= n_min <= n_max or not 1 <= log2_entries <= 30:
        raise InputError(
            f"A hash table needs at least one level, 2 <= n_min <= n_max and 1 to 30 bits, not {n_levels} levels "
            f"from {n_min} to {n_max} with {log2_entries} bits."
        )
    growth = math.exp((math.log(n_max) - math.log(n_min)) / max(n_levels - 1, 1))
    # b^l misses whole numbers by a rounding error, which ceil would turn into a vertex more
    scales = tuple(round(n_min * growth**level, 9) - 1.0 for level in range(n_levels))
    n_vertices = tuple(math.ceil(scale) + 2 for scale in scales)
    rows = [min(n**3, 1 << log2_entries) for n in n_vertices]
    first_rows = tuple(int(n) for n in np.concatenate([[0], np.cumsum(rows)]))
    return HashLevels(scales, n_vertices, first_rows, tuple(n**3 > r for n, r in zip(n_vertices, rows, strict=True)))


def hash_rows(vertices: Int[Tensor, "*n 3"], levels: HashLevels, level: int) -> Int[Tensor, "*n"]:
    r"""Return the table rows of a level's vertices (i, j, k).

    $$h = (i \oplus 2654435761\,j \oplus 805459861\,k) \bmod T$$  (Instant-NGP, eq. 4), or (i N + j) N + k where all fit.

    64-bit integers hold the products exactly, and their low bits are those of the paper's 32-bit arithmetic.
    """
    i, j, k = vertices.long().unbind(-1)
    n, first = levels.n_vertices[level], levels.first_rows[level]
    if not levels.hashed[level]:
        return first + (i * n + j) * n + k
    mixed = (i * PRIMES[0]) ^ (j * PRIMES[1]) ^ (k * PRIMES[2])
    return first + (mixed & (levels.first_rows[level + 1] - first - 1))


def hash_encode_reference(
    table: Float[Tensor, "rows F"], points_unit: Float[Tensor, "N 3"], levels: HashLevels
) -> Float[Tensor, "N LF"]:
    """Return the encoding from plain torch calls; the definition that the kernel is tested against."""
    features = []
    for level, scale in enumerate(levels.scales):
        position = points_unit.clamp(0, 1) * scale + 0.5  # the half moves the levels' vertices apart
        cell = position.detach().floor()
        upper = position - cell
        total = 0
        for corner in torch.cartesian_prod(*[torch.arange(2, device=table.device)] * 3):
            weight = torch.where(corner.bool(), upper, 1 - upper).prod(-1)
            total = total + weight[:, None] * table[hash_rows(cell.long() + corner, levels, level)]
        features.append(total)
    return torch.cat(features, dim=-1)


def hash_encode(
    table: Float[Tensor, "rows F"],
    points_unit: Float[Tensor, "N 3"],
    levels: HashLevels,
    gradient_into: Float[Tensor, "rows F"] | None = None,
    known: Float[Tensor, "N LF"] | None = None,
) -> Float[Tensor, "N LF"]:
    """Return each point's features at all levels, trilinearly interpolated; differentiable once in table and points.

    float32 on the CPU runs in fused kernels: a level's gradient is added up by one thread, point by point, so it does not
    depend on the number of threads. float32 on a GPU runs `hash_encoding_triton`, where Triton runs; atomics add its table's
    gradient up, in no fixed order. Everything else runs `hash_encode_reference`.

    Args:
        table: entries of all levels, `levels.n_rows` of them.
        points_unit: positions in the unit cube; outside of it the border's value is returned.
        levels: from `hash_levels`.
        gradient_into: add the table's gradient to this tensor and hand none to autograd; pass `table.grad` when an
            optimiser empties it in place. The reference leaves it to autograd.
        known: the result, where an earlier call without gradients has worked it out: only the gradients are then new.

    >>> levels = hash_levels(2, 4, 8, 10)
    >>> hash_encode(torch.ones(levels.n_rows, 2), torch.rand(5, 3), levels).shape
    torch.Size([5, 4])
    """
    if table.shape[0] != levels.n_rows:
        raise InputError(f"The table has {table.shape[0]} rows, its levels need {levels.n_rows}: build both from one setting.")
    if gradient_into is not None and not gradient_into.is_contiguous():
        raise InputError("gradient_into has to be contiguous: the kernel adds to its memory as it lies.")
    if triton_launch.serves(table, points_unit):
        from nsw.kernels.hash_encoding_triton import TritonEncoding

        return TritonEncoding.apply(table, points_unit, levels, gradient_into, known)
    if any(t.device.type != "cpu" or t.dtype != torch.float32 for t in (table, points_unit)):
        return hash_encode_reference(table, points_unit, levels)
    return _HashEncoding.apply(table, points_unit, levels, gradient_into, known)


class _HashEncoding(torch.autograd.Function):
    """Autograd around the kernels below."""

    @staticmethod
    def forward(ctx, table: Tensor, points: Tensor, levels: HashLevels, gradient_into, known: Tensor | None) -> Tensor:
        values, xyz, channels = _flat(table), points.detach().contiguous().numpy(), (0,) * table.shape[1]
        shape = _arrays(levels)
        ctx.save_for_backward(table, points)
        ctx.kept = shape, channels, gradient_into
        if known is not None:
            return known.clone()
        out = np.empty((len(xyz), len(levels) * table.shape[1]), np.float32)
        run_shares(_forward, _shares(len(xyz)), values, xyz, *shape, channels, out.reshape(-1))
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor):
        table, points = ctx.saved_tensors
        shape, channels, target = ctx.kept
        xyz, grad = points.detach().contiguous().numpy(), _flat(grad_out)
        grad_table = grad_points = None
        if ctx.needs_input_grad[0]:
            if target is None:
                target = grad_table = torch.zeros(table.shape)
            run_shares(_table_backward, min(_shares(len(xyz)), len(shape[0])), _flat(target), xyz, *shape, channels, grad)
        if ctx.needs_input_grad[1]:
            out = np.empty_like(xyz)
            run_shares(_points_backward, _shares(len(xyz)), _flat(table), xyz, *shape, channels, grad, out)
            grad_points = torch.from_numpy(out)
        return grad_table, grad_points, None, None, None


def _arrays(levels: HashLevels) -> tuple[np.ndarray, ...]:
    return (
        np.array(levels.scales, np.float32),
        np.array(levels.n_vertices, np.int64),
        np.array(levels.first_rows, np.int64),
        np.array(levels.hashed, np.bool_),
    )


def _flat(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy().reshape(-1)


def _shares(n_points: int) -> int:
    return n_threads() if n_points >= 2 * _BLOCK else 1


@helper
def _place(x, scale):
    """Return the lower vertex along one axis and the position above it in [0, 1); a broken number goes to 0."""
    inside = x if x > _ZERO else _ZERO
    position = (inside if inside < _ONE else _ONE) * scale + _HALF
    lower = np.int64(position)
    return lower, position - np.float32(lower)


@helper
def _corners(i, j, k, n, first, mask, hashed, n_features):
    """Return where the entries of a cell's eight corners begin, the last axis changing fastest."""
    if hashed:
        i1, j0, k0 = i + 1, j * 2654435761, k * 805459861
        j1, k1 = j0 + 2654435761, k0 + 805459861
        return (
            (first + ((i ^ j0 ^ k0) & mask)) * n_features,
            (first + ((i ^ j0 ^ k1) & mask)) * n_features,
            (first + ((i ^ j1 ^ k0) & mask)) * n_features,
            (first + ((i ^ j1 ^ k1) & mask)) * n_features,
            (first + ((i1 ^ j0 ^ k0) & mask)) * n_features,
            (first + ((i1 ^ j0 ^ k1) & mask)) * n_features,
            (first + ((i1 ^ j1 ^ k0) & mask)) * n_features,
            (first + ((i1 ^ j1 ^ k1) & mask)) * n_features,
        )
    corner, right, back, far = (first + (i * n + j) * n + k) * n_features, n_features, n * n_features, n * n * n_features
    beyond = corner + far
    return (
        corner,
        corner + right,
        corner + back,
        corner + back + right,
        beyond,
        beyond + right,
        beyond + back,
        beyond + back + right,
    )


@helper
def _deposit(gradient, at, weight, entry, channels):
    entry_store(gradient, at, entry_add(entry_load(gradient, at, channels), weight, entry))


# `channels` is a tuple of as many zeros as an entry has features: its type tells the compiler how wide an entry is.


@kernel
def _forward(table, xyz, scales, n_vertices, first_rows, hashed, channels, out, share, n_shares):
    n, n_levels = xyz.shape[0], scales.shape[0]
    for block in range(share, (n + _BLOCK - 1) // _BLOCK, n_shares):
        for level in range(n_levels):
            first, mask = first_rows[level], first_rows[level + 1] - first_rows[level] - 1
            for q in range(block * _BLOCK, min(n, (block + 1) * _BLOCK)):
                i, x = _place(xyz[q, 0], scales[level])
                j, y = _place(xyz[q, 1], scales[level])
                k, z = _place(xyz[q, 2], scales[level])
                a, b, c, d, e, f, g, h = _corners(i, j, k, n_vertices[level], first, mask, hashed[level], len(channels))
                w00, w01, w10, w11 = (_ONE - x) * (_ONE - y), (_ONE - x) * y, x * (_ONE - y), x * y
                u = _ONE - z
                total = entry_add(entry_zero(channels), w00 * u, entry_load(table, a, channels))
                total = entry_add(total, w00 * z, entry_load(table, b, channels))
                total = entry_add(total, w01 * u, entry_load(table, c, channels))
                total = entry_add(total, w01 * z, entry_load(table, d, channels))
                total = entry_add(total, w10 * u, entry_load(table, e, channels))
                total = entry_add(total, w10 * z, entry_load(table, f, channels))
                total = entry_add(total, w11 * u, entry_load(table, g, channels))
                total = entry_add(total, w11 * z, entry_load(table, h, channels))
                entry_store(out, (q * n_levels + level) * len(channels), total)


@kernel
def _table_backward(grad_table, xyz, scales, n_vertices, first_rows, hashed, channels, grad, share, n_shares):
    n_levels = scales.shape[0]
    for level in range(share, n_levels, n_shares):
        first, mask = first_rows[level], first_rows[level + 1] - first_rows[level] - 1
        for q in range(xyz.shape[0]):
            i, x = _place(xyz[q, 0], scales[level])
            j, y = _place(xyz[q, 1], scales[level])
            k, z = _place(xyz[q, 2], scales[level])
            a, b, c, d, e, f, g, h = _corners(i, j, k, n_vertices[level], first, mask, hashed[level], len(channels))
            w00, w01, w10, w11 = (_ONE - x) * (_ONE - y), (_ONE - x) * y, x * (_ONE - y), x * y
            u = _ONE - z
            v = entry_load(grad, (q * n_levels + level) * len(channels), channels)
            _deposit(grad_table, a, w00 * u, v, channels)
            _deposit(grad_table, b, w00 * z, v, channels)
            _deposit(grad_table, c, w01 * u, v, channels)
            _deposit(grad_table, d, w01 * z, v, channels)
            _deposit(grad_table, e, w10 * u, v, channels)
            _deposit(grad_table, f, w10 * z, v, channels)
            _deposit(grad_table, g, w11 * u, v, channels)
            _deposit(grad_table, h, w11 * z, v, channels)


@kernel
def _points_backward(table, xyz, scales, n_vertices, first_rows, hashed, channels, grad, out, share, n_shares):
    n, n_levels = xyz.shape[0], scales.shape[0]
    for block in range(share, (n + _BLOCK - 1) // _BLOCK, n_shares):
        for q in range(block * _BLOCK, min(n, (block + 1) * _BLOCK)):
            dx = dy = dz = _ZERO
            for level in range(n_levels):
                first, mask, scale = first_rows[level], first_rows[level + 1] - first_rows[level] - 1, scales[level]
                i, x = _place(xyz[q, 0], scale)
                j, y = _place(xyz[q, 1], scale)
                k, z = _place(xyz[q, 2], scale)
                a, b, c, d, e, f, g, h = _corners(i, j, k, n_vertices[level], first, mask, hashed[level], len(channels))
                v = entry_load(grad, (q * n_levels + level) * len(channels), channels)
                # what each corner's weight is worth: the gradient of the interpolation is linear in these eight
                v000, v001 = entry_dot(v, entry_load(table, a, channels)), entry_dot(v, entry_load(table, b, channels))
                v010, v011 = entry_dot(v, entry_load(table, c, channels)), entry_dot(v, entry_load(table, d, channels))
                v100, v101 = entry_dot(v, entry_load(table, e, channels)), entry_dot(v, entry_load(table, f, channels))
                v110, v111 = entry_dot(v, entry_load(table, g, channels)), entry_dot(v, entry_load(table, h, channels))
                s00, s01, s10, s11 = v001 - v000, v011 - v010, v101 - v100, v111 - v110
                v00, v01, v10, v11 = v000 + z * s00, v010 + z * s01, v100 + z * s10, v110 + z * s11
                dx += scale * ((_ONE - y) * (v10 - v00) + y * (v11 - v01))
                dy += scale * ((_ONE - x) * (v01 - v00) + x * (v11 - v10))
                dz += scale * ((_ONE - x) * ((_ONE - y) * s00 + y * s01) + x * ((_ONE - y) * s10 + y * s11))
            dx, dy, dz = settled3(dx, dy, dz, STEEPEST)
            # a point outside of the cube was moved to its border: moving it along that axis changes nothing
            out[q, 0] = dx if _ZERO <= xyz[q, 0] <= _ONE else _ZERO
            out[q, 1] = dy if _ZERO <= xyz[q, 1] <= _ONE else _ZERO
            out[q, 2] = dz if _ZERO <= xyz[q, 2] <= _ONE else _ZERO
