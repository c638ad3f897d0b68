"""March rays through a sparse voxel grid, compiled: skip what is known to be empty, look up, composite, remember the samples.

A sample costs 8 cache-line reads a vector of channels; nothing else comes near that. So density is asked first, for the samples
that the table of empty cells leaves over, and coefficients only where density is positive.
"""

from __future__ import annotations

import math

import numpy as np

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.saturation import LARGEST, settled3
from nsw.kernels.simd import LANES, broadcast, load, sum_lanes
from nsw.kernels.voxel_march_reference import DENSITY_MIN

f4 = np.float32
CHUNK = 32  # rays whose samples lie side by side in memory
RECORD = 5  # floats a sample: distance, weight, colour
_ZERO, _HALF, _ONE = f4(0), f4(0.5), f4(1)
_THIN = f4(DENSITY_MIN)
_TINY = f4(1e-12)


@helper
def write_basis(basis, n, degree, x, y, z):
    """Write Y_k to where the coefficients of harmonic k stand in a row, once for each colour: basis [3 n]."""
    for c in range(3):
        at = c * n + 1 + c
        basis[at] = f4(0.28209479177387814)
        if degree >= 1:
            basis[at + 3] = f4(-0.4886025119029199) * y
            basis[at + 6] = f4(0.4886025119029199) * z
            basis[at + 9] = f4(-0.4886025119029199) * x
        if degree >= 2:
            basis[at + 12] = f4(1.0925484305920792) * x * y
            basis[at + 15] = f4(-1.0925484305920792) * y * z
            basis[at + 18] = f4(0.9461746957575601) * z * z - f4(0.31539156525252)
            basis[at + 21] = f4(-1.0925484305920792) * x * z
            basis[at + 24] = f4(0.5462742152960396) * (x * x - y * y)


@helper
def cell(place, n, nearest):
    """Return the lower vertex along one axis and the part of the way to the next; `place` is in voxels."""
    p = min(max(place, _ZERO), f4(n - 1))
    first = min(int(p), n - 2)
    part = p - f4(first)
    if nearest:
        part = _ONE if part >= _HALF else _ZERO
    return first, part


@helper
def leave_empty(o, d, t, a, n):
    """Return how far along the ray the cells up to n - 1 beside cell `a` reach, for one axis in units of cells."""
    border = f4(a + n) if d >= _ZERO else f4(a - n + 1)
    return (border - (o + t * d)) / (d if abs(d) > _TINY else _TINY)


@helper
def shade_sample(values, basis, n, r, w):
    """Return the three colours of a sample from its rows r and their weights w: interpolate, weigh by harmonics, add up."""
    red, green, blue = broadcast(_ZERO), broadcast(_ZERO), broadcast(_ZERO)
    for at in range(0, n, LANES):
        v = load(values, r[0] + at) * w[0] + load(values, r[1] + at) * w[1] + load(values, r[2] + at) * w[2]
        v = v + load(values, r[3] + at) * w[3] + load(values, r[4] + at) * w[4] + load(values, r[5] + at) * w[5]
        v = v + load(values, r[6] + at) * w[6] + load(values, r[7] + at) * w[7]
        red = red + v * load(basis, at)
        green = green + v * load(basis, n + at)
        blue = blue + v * load(basis, 2 * n + at)
    colors = settled3(_HALF + sum_lanes(red), _HALF + sum_lanes(green), _HALF + sum_lanes(blue), LARGEST)
    return max(colors[0], _ZERO), max(colors[1], _ZERO), max(colors[2], _ZERO)


@helper
def corner_rows(links, i, j, k, n):
    """Return where the rows of a cell's 8 vertices begin."""
    return (
        np.int64(links[i, j, k]) * n, np.int64(links[i, j, k + 1]) * n,
        np.int64(links[i, j + 1, k]) * n, np.int64(links[i, j + 1, k + 1]) * n,
        np.int64(links[i + 1, j, k]) * n, np.int64(links[i + 1, j, k + 1]) * n,
        np.int64(links[i + 1, j + 1, k]) * n, np.int64(links[i + 1, j + 1, k + 1]) * n,
    )  # fmt: skip


@helper
def corner_weights(x, y, z):
    """Return the trilinear weights of a cell's 8 vertices, in the order of `corner_rows`."""
    a, b, c, d = (_ONE - x) * (_ONE - y), (_ONE - x) * y, x * (_ONE - y), x * y
    u = _ONE - z
    return a * u, a * z, b * u, b * z, c * u, c * z, d * u, d * z


@helper
def density_at(values, r, w):
    """Return the density between a cell's 8 vertices."""
    density = values[r[0]] * w[0] + values[r[1]] * w[1] + values[r[2]] * w[2] + values[r[3]] * w[3]
    return density + values[r[4]] * w[4] + values[r[5]] * w[5] + values[r[6]] * w[6] + values[r[7]] * w[7]


@kernel
def march_forward(
    values, links, skip, rays, box, steps, n, degree, nearest, keep, starts, out, counts, records, share, n_shares
):  # fmt: skip
    """March this share's rays.

    rays [R, 9]: origin and direction in voxels, near, far, offset; directions [R, 3] as stored in `out` on entry, unit length.
    box: cells of the table per voxel, three numbers. steps: step, optical length of a step, transmittance to stop at.
    degree: of the harmonics, -1 for no colours. starts [chunks]: where a chunk's samples begin in `records`.
    out [R, 5]: colour, transmittance left, sum of weight times t.
    """
    n_x, n_y, n_z = links.shape
    m_x, m_y, m_z = skip.shape
    step, delta, stop = steps[0], steps[1], steps[2]
    basis = np.zeros(3 * n, np.float32)
    n_rays = rays.shape[0]
    n_chunks = (n_rays + CHUNK - 1) // CHUNK
    for chunk in range(share, n_chunks, n_shares):
        q = starts[chunk]
        for ray in range(chunk * CHUNK, min(n_rays, (chunk + 1) * CHUNK)):
            ox, oy, oz, dx, dy, dz = rays[ray, 0], rays[ray, 1], rays[ray, 2], rays[ray, 3], rays[ray, 4], rays[ray, 5]
            first, last = rays[ray, 6] + rays[ray, 8] * step, rays[ray, 7]
            write_basis(basis, n, degree, out[ray, 0], out[ray, 1], out[ray, 2])
            T, red, green, blue, distance = _ONE, _ZERO, _ZERO, _ZERO, _ZERO
            begin, index, t = q, 0, first
            while t < last:
                x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
                a = min(max(int(x * box[0]), 0), m_x - 1)
                b = min(max(int(y * box[1]), 0), m_y - 1)
                c = min(max(int(z * box[2]), 0), m_z - 1)
                empty = np.int64(skip[a, b, c])
                if empty > 0:
                    away = leave_empty(ox * box[0], dx * box[0], t, a, empty)
                    away = min(away, leave_empty(oy * box[1], dy * box[1], t, b, empty))
                    away = min(away, leave_empty(oz * box[2], dz * box[2], t, c, empty))
                    index += int(min(max(away, _ZERO), last - t) / step) + 1
                    t = first + f4(index) * step
                    continue
                i, fx = cell(x, n_x, nearest)
                j, fy = cell(y, n_y, nearest)
                k, fz = cell(z, n_z, nearest)
                r = corner_rows(links, i, j, k, n)
                w = corner_weights(fx, fy, fz)
                density = density_at(values, r, w)
                if density > _THIN:
                    cr, cg, cb = _ZERO, _ZERO, _ZERO
                    if degree >= 0:
                        cr, cg, cb = shade_sample(values, basis, n, r, w)
                    weight = T * f4(-math.expm1(-density * delta))
                    T *= f4(math.exp(-density * delta))
                    red, green, blue, distance = red + weight * cr, green + weight * cg, blue + weight * cb, distance + weight * t
                    if keep:
                        records[q, 0], records[q, 1] = t, weight
                        records[q, 2], records[q, 3], records[q, 4] = cr, cg, cb
                        q += 1
                    if stop > T:
                        break
                index += 1
                t = first + f4(index) * step
            out[ray, 0], out[ray, 1], out[ray, 2], out[ray, 3], out[ray, 4] = red, green, blue, T, distance
            counts[ray, 0], counts[ray, 1] = begin, q


@kernel
def mark_positive(values, links, n, positive, share, n_shares):
    """Mark the vertices of positive density."""
    for i in range(share, links.shape[0], n_shares):
        for j in range(links.shape[1]):
            for k in range(links.shape[2]):
                positive[i, j, k] = values[np.int64(links[i, j, k]) * n] > _ZERO


@kernel
def find_empty_cells(positive, skip, far_away, share, n_shares):
    """Write 0 for cells with a positive corner, `far_away` for the others."""
    for a in range(share, skip.shape[0], n_shares):
        for b in range(skip.shape[1]):
            for c in range(skip.shape[2]):
                found = positive[a, b, c] | positive[a, b, c + 1] | positive[a, b + 1, c] | positive[a, b + 1, c + 1]
                found |= positive[a + 1, b, c] | positive[a + 1, b, c + 1]
                found |= positive[a + 1, b + 1, c] | positive[a + 1, b + 1, c + 1]
                skip[a, b, c] = 0 if found else far_away


@kernel
def spread_distance(before, after, axis, far_away, share, n_shares):
    """Carry the distance to the nearest full cell along one axis: the least max(|k|, before[k]) within `far_away` cells."""
    m = before.shape
    for a in range(share, m[0], n_shares):
        for b in range(m[1]):
            for c in range(m[2]):
                after[a, b, c] = before[a, b, c]
            for away in range(-far_away + 1, far_away):
                x, y = (a + away, b) if axis == 0 else (a, b + away if axis == 1 else b)
                if away == 0 or x < 0 or x >= m[0] or y < 0 or y >= m[1]:
                    continue
                shift = away if axis == 2 else 0
                first, last = max(0, -shift), min(m[2], m[2] - shift)
                own, other = after[a, b, first:last], before[x, y, first + shift : last + shift]
                least = np.uint8(abs(away))
                for c in range(own.shape[0]):
                    own[c] = min(own[c], max(least, other[c]))
