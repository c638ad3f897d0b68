"""Compiled SSIM and L1 with the gradient of the first picture: see `ssim.py`.

A blur with a Gaussian window is a blur along rows and then one along columns. Both run over whole rows at once, LANES floats a
step: colours lie side by side, so the neighbour of a float is `colours` floats away. Blurred rows live in a ring of eleven; each
output row takes one new row in and lets the oldest go, so nothing but the pictures and three maps for the gradient goes through
memory.
"""

from __future__ import annotations

import numpy as np

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.saturation import STEEPEST, cut, settled
from nsw.kernels.simd import LANES, broadcast, load, maximum, minimum, store

f4 = np.float32
SIZE, HALF = 11, 5
SIGMA = 1.5
C1, C2 = f4(0.01**2), f4(0.03**2)
ONE, TWO = f4(1), f4(2)
BRIGHTEST = f4(1e9)  # the fourth power of a pixel goes into SSIM: what is beyond is cut to this
_LINE = np.exp(-((np.arange(SIZE) - HALF) ** 2) / (2 * SIGMA**2))
WINDOW = tuple(f4(x) for x in _LINE / _LINE.sum())


@helper
def fill_window():
    window = np.empty(SIZE, f4)
    for k in range(SIZE):
        window[k] = WINDOW[k]
    return window


@helper
def row_stride(n):
    """Floats of a row, filled up to whole vectors."""
    return (n + LANES - 1) // LANES * LANES


@helper
def fill_line(line, pad, picture, first, width):
    """Copy a row of a picture behind its padding, cut to what SSIM can take."""
    whole = width - width % LANES
    for j in range(0, whole, LANES):
        value = maximum(broadcast(-BRIGHTEST), load(picture, first + j))  # in this order, a NaN stays one
        store(line, pad + j, minimum(broadcast(BRIGHTEST), value))
    for j in range(whole, width):
        line[pad + j] = cut(picture[first + j], BRIGHTEST)


@helper
def blur_pair(x, y, window, colours, stride, ring, at):
    """Blur x, y, x^2, y^2 and xy of a padded row into five rows of the ring."""
    for j in range(0, stride, LANES):
        zero = broadcast(f4(0))
        mx, my, xx, yy, xy = zero, zero, zero, zero, zero
        for k in range(SIZE):
            a, b = load(x, j + k * colours), load(y, j + k * colours)
            ga, gb = a * window[k], b * window[k]
            mx, my = mx + ga, my + gb
            xx, yy, xy = xx + ga * a, yy + gb * b, xy + ga * b
        store(ring, at + j, mx)
        store(ring, at + stride + j, my)
        store(ring, at + 2 * stride + j, xx)
        store(ring, at + 3 * stride + j, yy)
        store(ring, at + 4 * stride + j, xy)


@helper
def blur_row(x, window, colours, stride, ring, at):
    """Blur one padded row into a row of the ring."""
    for j in range(0, stride, LANES):
        total = broadcast(f4(0))
        for k in range(SIZE):
            total = total + load(x, j + k * colours) * window[k]
        store(ring, at + j, total)


@helper
def blur_column(ring, offsets, window, j):
    """Blur down the ring at one place."""
    total = broadcast(f4(0))
    for k in range(SIZE):
        total = total + load(ring, offsets[k] + j) * window[k]
    return total


@helper
def ring_offsets(y, rows, offsets):
    """Where in the ring the eleven rows about row y lie."""
    for k in range(SIZE):
        offsets[k] = (y + k) % SIZE * rows


@helper
def compare_row(ring, offsets, window, stride, line, mean, square, product, row):
    """Write SSIM of one row, and how it changes with the blurs of x, x^2 and xy unless those maps are empty."""
    for j in range(0, stride, LANES):
        mx, my = blur_column(ring, offsets, window, j), blur_column(ring, offsets, window, stride + j)
        xx, yy = blur_column(ring, offsets, window, 2 * stride + j), blur_column(ring, offsets, window, 3 * stride + j)
        xy = blur_column(ring, offsets, window, 4 * stride + j)
        mxx, myy, mxy = mx * mx, my * my, mx * my
        a1, a2 = mxy * TWO + C1, (xy - mxy) * TWO + C2
        b1, b2 = mxx + myy + C1, (xx - mxx) + (yy - myy) + C2
        inverse = ONE / (b1 * b2)
        ssim = a1 * a2 * inverse
        store(line, j, ssim)
        if mean.size:
            store(mean, row * stride + j, (my * (a2 - a1) - ssim * mx * (b2 - b1)) * inverse * TWO)
            store(square, row * stride + j, f4(0) - ssim * b1 * inverse)
            store(product, row * stride + j, a1 * inverse * TWO)


@kernel
def ssim_forward(x, y, n_rows, height, colours, mean, square, product, ssims, differences, share, n_shares):
    """Sums over each row of SSIM and of |x - y|, and the maps for the gradient."""
    width = x.shape[1]
    stride = row_stride(width)
    rows = 5 * stride
    ring, window, offsets = np.empty(SIZE * rows, f4), fill_window(), np.empty(SIZE, np.int64)
    pad = HALF * colours
    line_x, line_y = np.zeros(stride + 2 * pad, f4), np.zeros(stride + 2 * pad, f4)
    flat_x, flat_y = x.reshape(-1), y.reshape(-1)
    line = np.empty(stride, f4)
    row, last = share * n_rows // n_shares, (share + 1) * n_rows // n_shares
    while row < last:
        top = row // height * height  # first row of this picture
        until = min(last, top + height)
        for taken in range(row - HALF, until + HALF):
            at = (taken - top + HALF) % SIZE * rows
            if taken < top or taken >= top + height:
                ring[at : at + rows] = f4(0)
            else:
                fill_line(line_x, pad, flat_x, taken * width, width)
                fill_line(line_y, pad, flat_y, taken * width, width)
                blur_pair(line_x, line_y, window, colours, stride, ring, at)
            done = taken - HALF
            if done >= row:
                ring_offsets(done - top, rows, offsets)
                compare_row(ring, offsets, window, stride, line, mean, square, product, done)
                total, difference = 0.0, 0.0
                for j in range(width):
                    total += line[j]
                    difference += abs(np.float64(x[done, j]) - np.float64(y[done, j]))
                ssims[done], differences[done] = total, difference
        row = until


@kernel
def ssim_backward(x, y, n_rows, height, colours, mean, square, product, g_ssim, g_l1, out, share, n_shares):
    """Gradient of x: blur the three maps and weigh them by 1, 2x and y; the sign of x - y for L1."""
    width = x.shape[1]
    stride = row_stride(width)
    rows = 3 * stride
    ring, window, offsets = np.empty(SIZE * rows, f4), fill_window(), np.empty(SIZE, np.int64)
    pad = HALF * colours
    lines = (np.zeros(stride + 2 * pad, f4), np.zeros(stride + 2 * pad, f4), np.zeros(stride + 2 * pad, f4))
    blurred = (np.empty(stride, f4), np.empty(stride, f4), np.empty(stride, f4))
    row, last = share * n_rows // n_shares, (share + 1) * n_rows // n_shares
    while row < last:
        top = row // height * height
        until = min(last, top + height)
        for taken in range(row - HALF, until + HALF):
            at = (taken - top + HALF) % SIZE * rows
            if taken < top or taken >= top + height:
                ring[at : at + rows] = f4(0)
            else:
                first = taken * stride
                for j in range(width):
                    lines[0][pad + j], lines[1][pad + j] = mean[first + j], square[first + j]
                    lines[2][pad + j] = product[first + j]
                for i in range(3):
                    blur_row(lines[i], window, colours, stride, ring, at + i * stride)
            done = taken - HALF
            if done >= row:
                ring_offsets(done - top, rows, offsets)
                for i in range(3):
                    for j in range(0, stride, LANES):
                        store(blurred[i], j, blur_column(ring, offsets, window, i * stride + j))
                for j in range(width):
                    a, b = x[done, j], y[done, j]
                    slope = f4(a > b) - f4(a < b)
                    out[done, j] = g_ssim * (blurred[0][j] + TWO * a * blurred[1][j] + b * blurred[2][j]) + g_l1 * slope
                for j in range(width):  # apart, so that the loop above is rounded as ever
                    out[done, j] = settled(out[done, j], STEEPEST)
        row = until
