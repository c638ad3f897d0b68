"""Spherical-harmonics colours, compiled, forward and backward, degrees 0 to 3: see `harmonics.py` for what they are.

Backward differentiates the basis in (x, y, z) as polynomials and then removes the part along the direction, since only the
direction's turn can change the colour, not its length.
"""

from __future__ import annotations

import math

import numpy as np

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.entry_vectors import entry_add, entry_fill, entry_load, entry_store, entry_zero
from nsw.kernels.saturation import LARGEST, STEEPEST, cut, settled, settled3
from nsw.kernels.simd_rows import read

f4 = np.float32
MAX_DEGREE = 3
BLOCK = 512
ZERO, HALF, ONE, TWO, THREE, FOUR, FIVE = f4(0), f4(0.5), f4(1), f4(2), f4(3), f4(4), f4(5)
C0, C1 = f4(0.28209479177387814), f4(0.4886025119029199)
C2A, C2B, C2C, C2D = f4(1.0925484305920792), f4(0.9461746957575601), f4(0.31539156525252), f4(0.5462742152960396)
C3A, C3B, C3C, C3D, C3E = (
    f4(0.5900435899266435),
    f4(2.890611442640554),
    f4(0.4570457994644658),
    f4(0.3731763325901154),
    f4(1.445305721320277),
)


@helper
def fill_basis(degree, x, y, z, out):
    """The (degree+1)^2 basis functions at a unit direction."""
    out[0] = C0
    if degree >= 1:
        out[1], out[2], out[3] = -C1 * y, C1 * z, -C1 * x
    if degree >= 2:
        out[4], out[5], out[6] = C2A * x * y, -C2A * y * z, C2B * z * z - C2C
        out[7], out[8] = -C2A * x * z, C2D * (x * x - y * y)
    if degree >= 3:
        xx, yy, zz = x * x, y * y, z * z
        out[9], out[10], out[11] = -C3A * y * (THREE * xx - yy), C3B * x * y * z, -C3C * y * (FIVE * zz - ONE)
        out[12], out[13] = C3D * z * (FIVE * zz - THREE), -C3C * x * (FIVE * zz - ONE)
        out[14], out[15] = C3E * z * (xx - yy), -C3A * x * (xx - THREE * yy)


@helper
def basis_slope(degree, x, y, z, g):
    """sum_k g_k dB_k / d(x, y, z): how the colour gradient g pulls on the direction."""
    dx, dy, dz = ZERO, ZERO, ZERO
    if degree >= 1:
        dx, dy, dz = -C1 * g[3], -C1 * g[1], C1 * g[2]
    if degree >= 2:
        dx += C2A * (y * g[4] - z * g[7]) + TWO * C2D * x * g[8]
        dy += C2A * (x * g[4] - z * g[5]) - TWO * C2D * y * g[8]
        dz += -C2A * (y * g[5] + x * g[7]) + TWO * C2B * z * g[6]
    if degree >= 3:
        xx, yy, zz = x * x, y * y, z * z
        shell = FIVE * zz - ONE
        dx += -C3A * (f4(6) * x * y * g[9] + THREE * (xx - yy) * g[15]) + C3B * y * z * g[10]
        dx += -C3C * shell * g[13] + TWO * C3E * x * z * g[14]
        dy += -C3A * (THREE * (xx - yy) * g[9] - f4(6) * x * y * g[15]) + C3B * x * z * g[10]
        dy += -C3C * shell * g[11] - TWO * C3E * y * z * g[14]
        dz += C3B * x * y * g[10] - f4(10) * C3C * z * (y * g[11] + x * g[13])
        dz += C3D * (f4(15) * zz - THREE) * g[12] + C3E * (xx - yy) * g[14]
    return dx, dy, dz


@helper
def unit_direction(means, b, n, centres, k):
    """From camera k of scene b to splat n, of length 1, and 1/length; zero if both are in one place.

    Whole arrays are handed down: a row of one, cut out for every splat, costs as much as all the arithmetic.
    """
    x, y, z = means[b, n, 0] - centres[b, k, 0], means[b, n, 1] - centres[b, k, 1], means[b, n, 2] - centres[b, k, 2]
    inverse = ONE / max(math.sqrt(x * x + y * y + z * z), f4(1e-12))
    return x * inverse, y * inverse, z * inverse, inverse


@helper
def first_coefficient(coefficients, image, n, n_cameras):
    """Where the coefficients of a splat, as seen by one camera or by all, begin in the flat array."""
    shape = coefficients.shape
    own = 0 if shape[1] == 1 else image % n_cameras
    return (((image // n_cameras) * shape[1] + own) * shape[2] + n) * shape[3] * 3


@helper
def weigh_again(basis, n_bases, numbers, at, rgb):
    """The colours once more, in float64, where terms of both signs are too large for float32; cut to its largest number."""
    for c in range(3):
        total = 0.5
        for i in range(n_bases):
            total += np.float64(basis[i]) * np.float64(numbers[at + 3 * i + c])
        rgb[c] = f4(cut(total, np.float64(LARGEST)))


@kernel
def shade_forward(degree, means, coefficients, centres, seen, colors, share, n_shares):
    """Colours max(0, 0.5 + sum_k B_k h_k) of all splats from all cameras; red, green and blue are one short vector.

    Args:
        means [B,N,3], coefficients [B, C or 1, N, K, 3], centres [B,C,3] of the cameras, seen bool [B*C*N].
        colors: [B*C*N, 3], written; 0 where not seen.
    """
    B, C, N = centres.shape[0], centres.shape[1], means.shape[1]
    n_bases, n_rows, like = (degree + 1) ** 2, B * C * N, (ZERO, ZERO, ZERO)
    numbers, basis, rgb = coefficients.reshape(-1), np.empty(16, np.float32), np.empty(3, np.float32)
    for task in range(share, (n_rows + BLOCK - 1) // BLOCK, n_shares):
        for row in range(task * BLOCK, min((task + 1) * BLOCK, n_rows)):
            color = entry_zero(like)
            if seen[row]:
                image, n = row // N, row % N
                x, y, z, _ = unit_direction(means, image // C, n, centres, image % C)
                fill_basis(degree, x, y, z, basis)
                at, color = first_coefficient(coefficients, image, n, C), entry_fill(HALF, like)
                for i in range(n_bases):
                    color = entry_add(color, basis[i], entry_load(numbers, at + 3 * i, like))
                entry_store(rgb, 0, color)
                if not abs(rgb[0]) + abs(rgb[1]) + abs(rgb[2]) <= LARGEST:
                    weigh_again(basis, n_bases, numbers, at, rgb)
            else:
                entry_store(rgb, 0, color)
            colors[row, 0], colors[row, 1], colors[row, 2] = max(rgb[0], ZERO), max(rgb[1], ZERO), max(rgb[2], ZERO)


@kernel
def shade_backward(degree, means, coefficients, centres, seen, colors, v_colors, v_coefficients, v_directions, share, n_shares):
    """Gradients of `shade_forward`.

    Args:
        v_coefficients: shaped like `coefficients`, written.
        v_directions: [B*C*N, 3], written: gradients of (mean - centre) of every pair.
    """
    B, C, N = centres.shape[0], centres.shape[1], means.shape[1]
    n_splats, used, size = B * N, 3 * (degree + 1) ** 2, 3 * coefficients.shape[3]
    numbers, gradients = coefficients.reshape(-1), v_coefficients.reshape(-1)
    basis, pull = np.empty(16, np.float32), np.empty(16, np.float32)
    for task in range(share, (n_splats + BLOCK - 1) // BLOCK, n_shares):
        for splat in range(task * BLOCK, min((task + 1) * BLOCK, n_splats)):
            b, n = splat // N, splat % N
            for k in range(C):
                image = b * C + k
                row, at = image * N + n, first_coefficient(coefficients, image, n, C)
                first, dx, dy, dz = k == 0 or coefficients.shape[1] > 1, ZERO, ZERO, ZERO
                if first:
                    for i in range(at + (used if seen[row] else 0), at + size):
                        gradients[i] = ZERO
                if seen[row]:
                    # Where the clamp at 0 acted, the colour does not answer.
                    red = settled(v_colors[row, 0], STEEPEST) if colors[row, 0] > ZERO else ZERO
                    green = settled(v_colors[row, 1], STEEPEST) if colors[row, 1] > ZERO else ZERO
                    blue = settled(v_colors[row, 2], STEEPEST) if colors[row, 2] > ZERO else ZERO
                    x, y, z, inverse = unit_direction(means, b, n, centres, k)
                    fill_basis(degree, x, y, z, basis)
                    for i in range(used // 3):
                        place, weight = at + 3 * i, basis[i]
                        before = (ZERO, ZERO, ZERO) if first else (gradients[place], gradients[place + 1], gradients[place + 2])
                        gradients[place], gradients[place + 1] = before[0] + weight * red, before[1] + weight * green
                        gradients[place + 2] = before[2] + weight * blue
                        pull[i] = red * read(numbers, place) + green * read(numbers, place + 1) + blue * read(numbers, place + 2)
                    dx, dy, dz = basis_slope(degree, x, y, z, pull)
                    along = dx * x + dy * y + dz * z
                    dx, dy, dz = (dx - along * x) * inverse, (dy - along * y) * inverse, (dz - along * z) * inverse
                    dx, dy, dz = settled3(dx, dy, dz, STEEPEST)
                v_directions[row, 0], v_directions[row, 1], v_directions[row, 2] = dx, dy, dz
