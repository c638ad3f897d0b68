"""The gradient of `rasterize_forward`: walk each tile's list back to front and undo one splat at a time.

With g = dL/dC and g_A = dL/dA at a pixel, T_i the transmittance before splat i, and the suffix S_i = sum_{j>i} (g.c_j) alpha_j T_j
(to which the background and g_A contribute T_end (g.background - g_A) once),

    dL/dc_i = alpha_i T_i g        dL/dalpha_i = T_i (g.c_i) - S_i / (1 - alpha_i)        T_i = T_{i+1} / (1 - alpha_i)

Going backwards keeps S a sum of what is behind, never a difference of large numbers. A pair's sums over the tile's pixels leave as
one small record in its own slot; adding a splat's slots up in order afterwards makes the result independent of the threads.
"""

from __future__ import annotations

import numpy as np

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.rasterize_forward import ALPHA_MAX, ALPHA_MIN, HALF, ONE, PIXELS, ZERO, block_span
from nsw.kernels.simd import (
    LANES,
    absolute,
    broadcast,
    channel_add,
    channel_dot,
    channel_load,
    channel_read,
    channel_store_sums,
    channel_zeros,
    exp2,
    lane_centres,
    load,
    minimum,
    select,
    store,
    sum_lanes,
)
from nsw.kernels.tiles import LOG2E, TILE

f4 = np.float32
N_SUMS = 8  # of a pair's record: 1, x, y, xx, xy, yy moments of dL/dsigma, two absolute sums; colours follow


@helper
def undo_splat(state, record, color, span, left, top, position, want_absolute, like, sums, at_sums):
    """Take one splat out of a tile's state and write its sums over the pixels."""
    y0, y1, b0, b1 = span
    peak, zero = broadcast(record[5]), broadcast(ZERO)
    s1, sx, sy, sxx, sxy, syy, abs_x, abs_y = zero, zero, zero, zero, zero, zero, zero, zero
    v_color = channel_zeros(like)
    # d sigma / d mean = -(a dx + b dy, b dx + c dy), in terms of the record's base-2 numbers
    a, b, c = -record[2] * f4(2) / LOG2E, -record[3] / LOG2E, -record[4] * f4(2) / LOG2E
    for y in range(y0, y1):
        dy = f4(top + y) + HALF - record[1]
        base, slope = record[5] + dy * dy * record[4], dy * record[3]
        row_1, row_x = zero, zero
        for block in range(b0, b1):
            at = y * TILE + block * LANES
            dx = lane_centres() + (f4(left + block * LANES) - record[0])
            raw = exp2(minimum(base + dx * (slope + dx * record[2]), peak))
            alpha = minimum(raw, broadcast(ALPHA_MAX))
            drawn = (alpha >= ALPHA_MIN) & (load(state, 2 * PIXELS + at) > f4(position))
            T, S = load(state, at), load(state, PIXELS + at)
            widen = ONE / (ONE - alpha)
            T = select(drawn, T * widen, T)
            weight = select(drawn, alpha * T, zero)
            g = channel_load(state, 3 * PIXELS + at, PIXELS, like)
            light = channel_dot(g, color)
            v_sigma = select(drawn & (raw <= ALPHA_MAX), raw * (S * widen - T * light), zero)
            store(state, at, T)
            store(state, PIXELS + at, S + weight * light)
            v_color = channel_add(v_color, weight, g)
            v_x = v_sigma * dx
            row_1, row_x, sxx = row_1 + v_sigma, row_x + v_x, sxx + v_x * dx
            if want_absolute:
                abs_x = abs_x + absolute(v_x * a + v_sigma * (b * dy))
                abs_y = abs_y + absolute(v_x * b + v_sigma * (c * dy))
        s1, sx = s1 + row_1, sx + row_x
        sy, sxy, syy = sy + row_1 * dy, sxy + row_x * dy, syy + row_1 * (dy * dy)
    sums[at_sums], sums[at_sums + 1], sums[at_sums + 2] = sum_lanes(s1), sum_lanes(sx), sum_lanes(sy)
    sums[at_sums + 3], sums[at_sums + 4], sums[at_sums + 5] = sum_lanes(sxx), sum_lanes(sxy), sum_lanes(syy)
    sums[at_sums + 6], sums[at_sums + 7] = sum_lanes(abs_x), sum_lanes(abs_y)
    channel_store_sums(sums, at_sums + N_SUMS, v_color)


@helper
def read_tile(state, left, top, background, transmittance, stops, v_picture, v_alpha):
    """Load a tile's end state and its gradients; pixels beyond the border get none."""
    height, width, n_channels = v_picture.shape
    for pixel in range(PIXELS):
        x, y = left + pixel % TILE, top + pixel // TILE
        inside = x < width and y < height
        behind = -v_alpha[y, x] if inside else ZERO
        for c in range(n_channels):
            g = v_picture[y, x, c] if inside else ZERO
            state[(3 + c) * PIXELS + pixel] = g
            behind += g * background[c]
        T = transmittance[y, x] if inside else ONE
        state[pixel], state[PIXELS + pixel] = T, T * behind
        state[2 * PIXELS + pixel] = stops[y, x] if inside else -ONE


@kernel
def rasterize_backward(
    tile_start, tile_stop, members, slots, records, boxes, background, transmittance, stops, v_picture, v_alpha,
    want_absolute, like, sums, share, n_shares,
):  # fmt: skip
    """Write every (splat, tile) pair's sums into its slot.

    Args:
        v_picture [H,W,D], v_alpha [H,W]: gradients. sums: [M * (8+D)], written completely. The rest as in `rasterize_forward`.
    """
    height, width = transmittance.shape
    tiles_x, n_tiles, size = (width + TILE - 1) // TILE, tile_start.shape[0] - 1, N_SUMS + len(like)
    state = np.empty((3 + len(like)) * PIXELS, np.float32)
    for tile in range(share, n_tiles, n_shares):
        left, top, first = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE, tile_start[tile]
        for k in range(tile_stop[tile], tile_start[tile + 1]):  # behind the last pixel's stop
            for i in range(slots[k] * size, (slots[k] + 1) * size):
                sums[i] = ZERO
        if tile_stop[tile] == first:
            continue
        read_tile(state, left, top, background, transmittance, stops, v_picture, v_alpha)
        for k in range(tile_stop[tile] - 1, first - 1, -1):
            j = members[k]
            color = channel_read(records[j], 6, like)
            span = block_span(boxes[j], left, top)
            undo_splat(state, records[j], color, span, left, top, k - first, want_absolute, like, sums, slots[k] * size)


@kernel
def gather_gradients(
    first_row, first_slot, sums, conics, opacities, want_absolute, v_means2d, v_conics, v_opacities, v_colors, absgrad,
    share, n_shares,
):  # fmt: skip
    """Add each splat's slots up, in order, and turn moments into gradients of centre, conic, opacity and colour.

    With v = dL/dsigma and (dx, dy) from the centre to the pixel: dL/dmean = -Q sum v (dx, dy), dL/d(a, b, c) = sum v (dx^2/2,
    dx dy, dy^2/2), dL/do = -sum v / o. Splats in no list keep the zeros of the outputs.
    """
    n, n_channels = first_slot.shape[0] - 1, v_colors.shape[1]
    size = N_SUMS + n_channels
    part = (n + n_shares - 1) // n_shares
    total = np.empty(size, np.float32)
    for i in range(share * part, min((share + 1) * part, n)):
        if first_slot[i] == first_slot[i + 1]:
            continue
        row = first_row + i
        for s in range(size):
            total[s] = ZERO
        for slot in range(first_slot[i], first_slot[i + 1]):
            for s in range(size):
                total[s] += sums[slot * size + s]
        a, b, c = conics[row, 0], conics[row, 1], conics[row, 2]
        v_means2d[row, 0] = -(a * total[1] + b * total[2])
        v_means2d[row, 1] = -(b * total[1] + c * total[2])
        v_conics[row, 0], v_conics[row, 1], v_conics[row, 2] = HALF * total[3], total[4], HALF * total[5]
        v_opacities[row] = -total[0] / opacities[row]
        if want_absolute:
            absgrad[row, 0], absgrad[row, 1] = total[6], total[7]
        for s in range(n_channels):
            v_colors[row, s] = total[N_SUMS + s]
