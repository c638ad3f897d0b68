"""Composite a picture tile by tile, compiled: the rules of `rasterize_reference.py`, LANES pixels at a time.

A tile's 256 pixels live in one small array that never leaves the first-level cache: transmittance T, the index of the splat that
stopped the pixel, and the colour channels, each as 256 floats. A splat visits only the rows of pixels that its box covers.

Stopping without a branch per pixel: a stopped pixel's T is stored negated. T (1 - alpha) is then negative, fails the test against
1e-4 and changes nothing any more.
"""

from __future__ import annotations

import numpy as np

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.simd import (
    LANES,
    any_lane,
    broadcast,
    channel_accumulate,
    channel_read,
    exp2,
    lane_centres,
    load,
    minimum,
    select,
    store,
)
from nsw.kernels.tiles import TILE

f4 = np.float32
PIXELS = TILE * TILE
ROW_BLOCKS = TILE // LANES  # vectors a row of a tile
ALPHA_MIN, ALPHA_MAX, T_MIN = f4(1.0 / 255.0), f4(0.999), f4(1e-4)
ZERO, HALF, ONE = f4(0), f4(0.5), f4(1)
NEVER = f4(1e9)  # "no splat stopped this pixel"; list positions stay below 2^24, where float32 is exact
CHECK_EVERY = 16  # splats between two looks at whether the whole tile has stopped


@helper
def block_span(box, left, top):
    """The vectors a splat's box touches in a tile: rows [y0, y1) and block columns [b0, b1)."""
    b0, b1 = max(box[0] - left, 0) // LANES, (min(box[1] - left, TILE) - 1) // LANES + 1
    return max(box[2] - top, 0), min(box[3] - top, TILE), b0, b1


@helper
def draw_splat(state, record, color, span, left, top, position):
    """Blend one splat into a tile's state."""
    y0, y1, b0, b1 = span
    peak = broadcast(record[5])
    for y in range(y0, y1):
        dy = f4(top + y) + HALF - record[1]
        base, slope = record[5] + dy * dy * record[4], dy * record[3]
        for block in range(b0, b1):
            at = y * TILE + block * LANES
            dx = lane_centres() + (f4(left + block * LANES) - record[0])
            # minimum: rounding must not lift the exponent above its value at the centre (the rule's "sigma < 0").
            alpha = minimum(exp2(minimum(base + dx * (slope + dx * record[2]), peak)), broadcast(ALPHA_MAX))
            T = load(state, at)
            drawn = alpha * T
            after, bright = T - drawn, alpha >= ALPHA_MIN
            weight = select(bright & (after > T_MIN), drawn, broadcast(ZERO))
            channel_accumulate(state, 2 * PIXELS + at, PIXELS, weight, color)
            stops = bright & (after <= T_MIN) & (after > ZERO)
            if any_lane(stops):
                store(state, PIXELS + at, select(stops, broadcast(f4(position)), load(state, PIXELS + at)))
                store(state, at, select(stops, broadcast(ZERO) - T, T - weight))
            else:
                store(state, at, T - weight)


@helper
def all_stopped(state):
    """Whether no pixel of the tile takes light any more."""
    for at in range(0, PIXELS, LANES):  # noqa: SIM110 - numba compiles a loop, not a generator
        if any_lane(load(state, at) > ZERO):
            return False
    return True


@helper
def clear_tile(state, left, top, width, height):
    """T = 1 inside the picture; pixels beyond its border count as stopped."""
    for pixel in range(PIXELS):
        inside = left + pixel % TILE < width and top + pixel // TILE < height
        state[pixel] = ONE if inside else -ONE
        state[PIXELS + pixel] = NEVER
    for i in range(2 * PIXELS, state.shape[0]):
        state[i] = ZERO


@helper
def write_tile(state, left, top, background, picture, transmittance, stops):
    """Copy a finished tile into the picture, with the background in what light is left."""
    height, width, n_channels = picture.shape
    for y in range(min(TILE, height - top)):
        for x in range(min(TILE, width - left)):
            pixel = y * TILE + x
            T = abs(state[pixel])
            transmittance[top + y, left + x], stops[top + y, left + x] = T, state[PIXELS + pixel]
            for c in range(n_channels):
                picture[top + y, left + x, c] = state[(2 + c) * PIXELS + pixel] + T * background[c]


@kernel
def rasterize_forward(
    tile_start, members, records, boxes, background, like, picture, transmittance, stops, tile_stop, share, n_shares
):
    """Composite one picture.

    Args:
        tile_start int64 [tiles+1], members int32 [M]: each tile's list, front to back. records [n, 6+D], boxes int32 [n,4].
        background: [D]. like: a tuple of D floats, whose length tells the compiler how many channels there are.
        picture [H,W,D], transmittance [H,W], stops [H,W] (list position where a pixel stopped), tile_stop int64 [tiles]: written.
        share, n_shares: this call takes tiles share, share + n_shares, ..., so that a crowded corner is spread over all.
    """
    height, width = transmittance.shape
    tiles_x, n_tiles = (width + TILE - 1) // TILE, tile_start.shape[0] - 1
    state = np.empty((2 + len(like)) * PIXELS, np.float32)
    for tile in range(share, n_tiles, n_shares):
        left, top, first, last = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE, tile_start[tile], tile_start[tile + 1]
        clear_tile(state, left, top, width, height)
        tile_stop[tile] = last
        for k in range(first, last):
            j = members[k]
            color = channel_read(records[j], 6, like)
            draw_splat(state, records[j], color, block_span(boxes[j], left, top), left, top, k - first)
            if (k - first) % CHECK_EVERY == CHECK_EVERY - 1 and all_stopped(state):
                tile_stop[tile] = k + 1
                break
        write_tile(state, left, top, background, picture, transmittance, stops)
