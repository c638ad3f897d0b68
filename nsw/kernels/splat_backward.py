"""The gradient of `splat_forward`: walk each tile's list back to front and undo one splat at a time.

With g = dL/dC and g_A = dL/dA at a pixel, T_i the transmittance before splat i, and the suffix S_i = sum_{j>i} (g.c_j) alpha_j T_j
(to which the background and g_A contribute T_end (g.background - g_A) once),

    dL/dc_i = alpha_i T_i g        dL/dalpha_i = T_i (g.c_i) - S_i / (1 - alpha_i)        T_i = T_{i+1} / (1 - alpha_i)

Going backwards keeps S a sum of what is behind, never a difference of large numbers. A pair's sums over the tile's pixels leave as
one small record in its own slot; adding a splat's slots up in order afterwards makes the result independent of the threads.
"""

from __future__ import annotations

import numpy as np

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.entry_vectors import entry_add, entry_load, entry_store, entry_zero
from nsw.kernels.saturation import STEEPEST, settled
from nsw.kernels.simd import (
    BLOCK_H,
    BLOCK_W,
    LANES,
    absolute,
    any_lane,
    broadcast,
    channel_add,
    channel_dot,
    channel_load,
    channel_read,
    channel_zeros,
    exp2_within,
    load,
    maximum,
    minimum,
    select,
    store,
)
from nsw.kernels.simd_blocks import block_x, block_y, store_sums
from nsw.kernels.simd_rows import fetch, read, take
from nsw.kernels.splat_forward import (
    BLOCKS_X,
    LOG_ALPHA_MAX,
    LOG_ALPHA_MIN,
    ONE,
    PIXELS,
    SOON,
    ZERO,
    block_span,
    in_lines,
    pixel_place,
)
from nsw.kernels.splat_lists import AHEAD, COLOR, record_size
from nsw.kernels.tiles import LOG2E, TILE

f4 = np.float32
HALF, TWO = f4(0.5), f4(2)
N_MOMENTS = 6  # of a pair's sums: the moments 1, x, y, xx, xy, yy of dL/dsigma; two absolute sums if asked for; colours


@helper
def sums_size(n_channels, want_absolute):
    """Floats in a pair's slot, a multiple of four."""
    return (N_MOMENTS + (0 if want_absolute is None else 2) + n_channels + 3) // 4 * 4


@helper
def undo_splat(state, stops, at_stops, records, at, span, left, top, place, want_absolute, like, sums, at_sums):
    """Take one splat out of a tile's state and write its sums over the pixels."""
    y0, y1, x0, x1 = span
    center_x, center_y = f4(left) - read(records, at), f4(top) - read(records, at + 1)
    a, b, c, log_opacity = read(records, at + 2), read(records, at + 3), read(records, at + 4), read(records, at + 5)
    color = channel_read(records, at + COLOR, like)
    peak, dimmest, zero = broadcast(min(log_opacity, LOG_ALPHA_MAX)), broadcast(LOG_ALPHA_MIN), broadcast(ZERO)
    s1, sx, sy, sxx, sxy, syy, abs_x, abs_y = zero, zero, zero, zero, zero, zero, zero, zero
    v_color = channel_zeros(like)
    # d sigma / d mean = -(q0 dx + q1 dy, q1 dx + q2 dy), in terms of the record's base-2 numbers
    q0, q1, q2 = -a * TWO / LOG2E, -b / LOG2E, -c * TWO / LOG2E
    first_dx = block_x() + (center_x + f4(x0 * BLOCK_W))
    for y in range(y0, y1):
        dy = block_y() + (center_y + f4(y * BLOCK_H))
        base, slope, after_dx = dy * dy * c + log_opacity, dy * b, first_dx
        row_1, row_x = zero, zero
        for block in range((y * BLOCKS_X + x0) * LANES, (y * BLOCKS_X + x1) * LANES, LANES):
            dx = after_dx
            after_dx = dx + f4(BLOCK_W)
            exponent = base + dx * (slope + dx * a)
            drawn = (exponent >= dimmest) & (load(stops, at_stops + block) > place)
            if not any_lane(drawn):
                continue
            alpha = exp2_within(minimum(maximum(exponent, dimmest), peak))
            T, S = load(state, block), load(state, PIXELS + block)
            widen = ONE / (ONE - alpha)
            g = channel_load(state, 2 * PIXELS + block, PIXELS, like)
            light = channel_dot(g, color)
            before = T * widen
            weight = select(drawn, alpha * before, zero)
            v_sigma = select(drawn & (exponent <= LOG_ALPHA_MAX), alpha * (S * widen - before * light), zero)
            store(state, block, T + weight)
            store(state, PIXELS + block, S + weight * light)
            v_color = channel_add(v_color, weight, g)
            v_x = v_sigma * dx
            row_1, row_x, sxx = row_1 + v_sigma, row_x + v_x, sxx + v_x * dx
            if want_absolute is not None:
                abs_x = abs_x + absolute(v_x * q0 + v_sigma * (dy * q1))
                abs_y = abs_y + absolute(v_x * q1 + v_sigma * (dy * q2))
        row_y = row_1 * dy
        s1, sx, sy = s1 + row_1, sx + row_x, sy + row_y
        sxy, syy = sxy + row_x * dy, syy + row_y * dy
    if want_absolute is None:
        store_sums(sums, at_sums, (s1, sx, sy, sxx, sxy, syy), v_color)
    else:
        store_sums(sums, at_sums, (s1, sx, sy, sxx, sxy, syy, abs_x, abs_y), v_color)


@helper
def read_tile(state, end, at_end, left, top, background, v_picture, v_alpha, n_channels):
    """Load a tile's end state and its gradients; pixels beyond the border get none."""
    height, width, _ = v_picture.shape
    for y in range(TILE):
        for x in range(TILE):
            pixel = pixel_place(x, y)
            inside = left + x < width and top + y < height
            T, behind = abs(read(end, at_end + pixel)), ZERO
            if inside:
                behind = -v_alpha[top + y, left + x, 0]
                for c in range(n_channels):
                    g = v_picture[top + y, left + x, c]
                    state[(2 + c) * PIXELS + pixel] = g
                    behind += g * background[c]
            else:
                for c in range(n_channels):
                    state[(2 + c) * PIXELS + pixel] = ZERO
            state[pixel], state[PIXELS + pixel] = T, T * behind


@kernel
def rasterize_backward(
    next_tile, tile_start, tile_stop, members, slots, records, bounds, background, end, v_picture, v_alpha, want_absolute, like,
    sums,
):  # fmt: skip
    """Write every (splat, tile) pair's sums into its slot; called by every thread at once.

    Args:
        end: the `state` that forward left. v_picture [H,W,D], v_alpha [H,W,1]: gradients. want_absolute: None or True.
        sums: [M * sums_size], written completely. The rest as in `splat_forward`.
    """
    width, n_channels = v_picture.shape[1], len(like)
    tiles_x, n_tiles = (width + TILE - 1) // TILE, tile_start.shape[0] - 1
    size, n_sums = record_size(n_channels), sums_size(n_channels, want_absolute)
    state = in_lines((2 + n_channels) * PIXELS)
    tile = take(next_tile)
    while tile < n_tiles:
        left, top, first = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE, tile_start[tile]
        at_end = tile * (2 + n_channels) * PIXELS
        for k in range(tile_stop[tile], tile_start[tile + 1]):  # behind the last pixel's stop
            for i in range(slots[k] * n_sums, (slots[k] + 1) * n_sums):
                sums[i] = ZERO
        if tile_stop[tile] > first:
            read_tile(state, end, at_end, left, top, background, v_picture, v_alpha, n_channels)
        for k in range(tile_stop[tile] - 1, first - 1, -1):
            fetch(records, read(members, max(k - SOON, first)) * size)
            at = read(members, k) * size
            undo_splat(
                state, end, at_end + (1 + n_channels) * PIXELS, records, at, block_span(bounds, at + 6, left, top), left, top,
                f4(np.int32(k - first)), want_absolute, like, sums, read(slots, k) * n_sums,
            )  # fmt: skip
        tile = take(next_tile)


@kernel
def gather_gradients(
    next_task, first_row, order, first_slot, sums, conics, opacities, want_absolute, v_means2d, v_conics, v_opacities, v_colors,
    absgrad,
):  # fmt: skip
    """Add each splat's slots up, in order, and turn moments into gradients of centre, conic, opacity and colour.

    With v = dL/dsigma and (dx, dy) from the centre to the pixel: dL/dmean = -Q sum v (dx, dy), dL/d(a, b, c) = sum v (dx^2/2,
    dx dy, dy^2/2), dL/do = -sum v / o. Splats in no list keep the zeros of the outputs.
    """
    n, n_channels = first_slot.shape[0] - 1, v_colors.shape[1]
    size = sums_size(n_channels, want_absolute)
    at_color = N_MOMENTS + (0 if want_absolute is None else 2)
    block, like_four, totals = 1024, (ZERO, ZERO, ZERO, ZERO), np.empty(size, np.float32)
    task = take(next_task)
    while task * block < n:
        end = min((task + 1) * block, n)
        for rank in range(task * block, end):
            ahead = first_row + read(order, min(rank + AHEAD, end - 1))
            fetch(conics, ahead)
            fetch(opacities, ahead)
            fetch(v_means2d, ahead)
            fetch(v_conics, ahead)
            fetch(v_opacities, ahead)
            fetch(v_colors, ahead)
            first, last = first_slot[rank] * size, first_slot[rank + 1] * size
            if first == last:
                continue
            row = first_row + order[rank]
            for part in range(0, size, 4):
                four = entry_zero(like_four)
                for at in range(first + part, last, size):
                    four = entry_add(four, ONE, entry_load(sums, at, like_four))
                entry_store(totals, part, four)
            s1, sx, sy, sxx, sxy, syy = totals[0], totals[1], totals[2], totals[3], totals[4], totals[5]
            a, b, c = conics[row, 0], conics[row, 1], conics[row, 2]
            v_means2d[row, 0], v_means2d[row, 1] = -(a * sx + b * sy), -(b * sx + c * sy)
            v_conics[row, 0], v_conics[row, 1], v_conics[row, 2] = HALF * sxx, sxy, HALF * syy
            v_opacities[row] = settled(-s1 / opacities[row], STEEPEST)
            if want_absolute is not None:
                absgrad[row, 0], absgrad[row, 1] = settled(totals[6], STEEPEST), settled(totals[7], STEEPEST)
            for s in range(n_channels):
                v_colors[row, s] = settled(totals[at_color + s], STEEPEST)
        task = take(next_task)
