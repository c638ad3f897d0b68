"""From the gradient of pixels to the gradient of voxels, compiled: once along each ray, once over the voxels' slabs.

Many rays meet in one voxel. So that no two threads add to the same number, and so that sums come out the same every time, each
share of the work owns a slab of voxels across x, walks over all samples and adds only what falls into its own slab.
"""

from __future__ import annotations

import numpy as np

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.saturation import STEEPEST, settled, settled3
from nsw.kernels.simd import LANES, load, store
from nsw.kernels.voxel_march_forward import CHUNK, cell, corner_weights, write_basis

f4 = np.float32
_ZERO, _ONE = f4(0), f4(1)


@kernel
def rays_backward(counts, records, left, grad_rgb, grad_left, delta, grads, share, n_shares):
    """Write for each sample the gradient of its raw density and of its three colours, grads [M, 4].

    With tau the optical depth of sample i and g the pixel's gradient: dL/dtau = T_{i+1} g.c_i - sum_{j>i} w_j g.c_j - g_left T_end.
    """
    n_rays = counts.shape[0]
    for chunk in range(share, (n_rays + CHUNK - 1) // CHUNK, n_shares):
        for ray in range(chunk * CHUNK, min(n_rays, (chunk + 1) * CHUNK)):
            g0, g1, g2 = settled3(grad_rgb[ray, 0], grad_rgb[ray, 1], grad_rgb[ray, 2], STEEPEST)
            behind = grad_left[ray] * left[ray]
            T = left[ray]
            for q in range(counts[ray, 1] - 1, counts[ray, 0] - 1, -1):
                weight = records[q, 1]
                along = settled(g0 * records[q, 2] + g1 * records[q, 3] + g2 * records[q, 4], STEEPEST)
                grads[q, 0] = settled(delta * (T * along - behind), STEEPEST)
                grads[q, 1] = weight * g0 if records[q, 2] > _ZERO else _ZERO
                grads[q, 2] = weight * g1 if records[q, 3] > _ZERO else _ZERO
                grads[q, 3] = weight * g2 if records[q, 4] > _ZERO else _ZERO
                behind += weight * along
                T += weight


@kernel
def count_along_x(rays, counts, records, n_x, every, histogram, share, n_shares):
    """Count every so many samples by their cell's place along x."""
    for ray in range(0, rays.shape[0]):
        for q in range(counts[ray, 0], counts[ray, 1], every):
            i, _ = cell(rays[ray, 0] + records[q, 0] * rays[ray, 3], n_x, False)
            histogram[i] += 1


@helper
def _add_pair(into, at, rows, w0, w1, g):
    """Add one vector of gradients to the two vertices of a cell edge along z."""
    if rows[0] > 0:
        store(into, rows[0] + at, load(into, rows[0] + at) + g * w0)
    if rows[1] > 0:
        store(into, rows[1] + at, load(into, rows[1] + at) + g * w1)


@helper
def _edge(links, touched, i, j, k, n):
    """Return where the rows of an edge along z begin, and mark them as touched."""
    first, second = np.int64(links[i, j, k]), np.int64(links[i, j, k + 1])
    touched[first] = 1
    touched[second] = 1
    return first * n, second * n


@kernel
def scatter(links, rays, directions, counts, records, grads, slabs, n, degree, nearest, into, touched, share, n_shares):
    """Add the samples' gradients to the rows of `into` [K n] whose vertices lie in this share's slab, and mark them.

    A row's gradient is one outer product: density in lane 0, and a colour's where `basis` has its harmonics.
    """
    n_x, n_y, n_z = links.shape
    begin, end = slabs[share], slabs[share + 1]
    basis = np.zeros(3 * n, np.float32)
    first_lane = np.zeros(n, np.float32)
    first_lane[0] = _ONE
    for ray in range(rays.shape[0]):
        if counts[ray, 0] == counts[ray, 1]:
            continue
        write_basis(basis, n, degree, directions[ray, 0], directions[ray, 1], directions[ray, 2])
        for q in range(counts[ray, 0], counts[ray, 1]):
            t = records[q, 0]
            i, fx = cell(rays[ray, 0] + t * rays[ray, 3], n_x, nearest)
            if i + 1 < begin or i >= end:
                continue
            j, fy = cell(rays[ray, 1] + t * rays[ray, 4], n_y, nearest)
            k, fz = cell(rays[ray, 2] + t * rays[ray, 5], n_z, nearest)
            w = corner_weights(fx, fy, fz)
            ds, d0, d1, d2 = grads[q, 0], grads[q, 1], grads[q, 2], grads[q, 3]
            lower, upper = i >= begin, i + 1 < end
            a = b = c = d = (0, 0)
            if lower:
                a, b = _edge(links, touched, i, j, k, n), _edge(links, touched, i, j + 1, k, n)
            if upper:
                c, d = _edge(links, touched, i + 1, j, k, n), _edge(links, touched, i + 1, j + 1, k, n)
            for at in range(0, n, LANES):
                g = load(basis, at) * d0 + load(basis, n + at) * d1 + load(basis, 2 * n + at) * d2 + load(first_lane, at) * ds
                if lower:
                    _add_pair(into, at, a, w[0], w[1], g)
                    _add_pair(into, at, b, w[2], w[3], g)
                if upper:
                    _add_pair(into, at, c, w[4], w[5], g)
                    _add_pair(into, at, d, w[6], w[7], g)


@kernel
def largest_weights(rays, counts, records, slabs, best, share, n_shares):
    """Raise `best` [X, Y, Z] to the largest weight of any sample in a cell that the vertex belongs to."""
    begin, end = slabs[share], slabs[share + 1]
    for ray in range(rays.shape[0]):
        for q in range(counts[ray, 0], counts[ray, 1]):
            t, weight = records[q, 0], records[q, 1]
            i, _ = cell(rays[ray, 0] + t * rays[ray, 3], best.shape[0], False)
            if i + 1 < begin or i >= end:
                continue
            j, _ = cell(rays[ray, 1] + t * rays[ray, 4], best.shape[1], False)
            k, _ = cell(rays[ray, 2] + t * rays[ray, 5], best.shape[2], False)
            for x in range(max(i, begin), min(i + 2, end)):
                for y in range(j, j + 2):
                    for z in range(k, k + 2):
                        best[x, y, z] = max(best[x, y, z], weight)
