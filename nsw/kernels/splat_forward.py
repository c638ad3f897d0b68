"""Composite a picture tile by tile, compiled: the rules of `rasterize_reference.py`, LANES pixels at a time.

A tile's 256 pixels live in one row of `state`, which stays in the first-level cache while the tile is drawn: transmittance T, the
colour channels, and the place in the tile's list of the splat that stopped the pixel, each as 256 floats, block of LANES pixels
after block. A splat visits only the blocks that its box covers.

Stopping without a branch: a stopped pixel's T is stored negated. T (1 - alpha) is then negative, fails the test against 1e-4 and
changes nothing any more.
"""

from __future__ import annotations

import math

import numpy as np

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.simd import (
    BLOCK_H,
    BLOCK_W,
    LANES,
    any_lane,
    broadcast,
    channel_accumulate,
    channel_read,
    exp2_within,
    load,
    maximum,
    minimum,
    select,
    store,
)
from nsw.kernels.simd_blocks import block_x, block_y, but_not, lesser, negative_where
from nsw.kernels.simd_rows import fetch, read, take
from nsw.kernels.splat_lists import COLOR, record_size
from nsw.kernels.tiles import TILE

f4 = np.float32
PIXELS = TILE * TILE
# The colours' planes follow T's, and the stops' plane comes last: a store and a load that lie 4096 bytes apart look alike to a
# core, which then lets the load wait. So what a splat touches of a three-colour picture spans no more than that.
BLOCKS_X = TILE // BLOCK_W
LOG_ALPHA_MIN, LOG_ALPHA_MAX = f4(math.log2(1.0 / 255.0)), f4(math.log2(0.999))
T_MIN = f4(1e-4)
ZERO, ONE = f4(0), f4(1)
NEVER = f4(1e9)  # "no splat stopped this pixel"; places in a list stay below 2^24, where float32 is exact
SOON = 6  # records to ask for before their turn
CHECK_EVERY = 16  # splats between two looks at whether the whole tile has stopped


@helper
def block_span(bounds, at, left, top):
    """The blocks a splat's box touches in a tile: block rows [y0, y1) and block columns [x0, x1)."""
    x0, x1 = max(read(bounds, at) - left, 0), min(read(bounds, at + 1) - left, TILE)
    y0, y1 = max(read(bounds, at + 2) - top, 0), min(read(bounds, at + 3) - top, TILE)
    return y0 // BLOCK_H, (y1 - 1) // BLOCK_H + 1, x0 // BLOCK_W, (x1 - 1) // BLOCK_W + 1


@helper
def draw_splat(state, pixels, records, at, span, left, top, place, like, want_stops):
    """Blend one splat, whose record begins at `at`, into the tile whose state begins at `pixels`."""
    y0, y1, x0, x1 = span
    center_x, center_y = f4(left) - read(records, at), f4(top) - read(records, at + 1)
    a, b, c, log_opacity = read(records, at + 2), read(records, at + 3), read(records, at + 4), read(records, at + 5)
    color = channel_read(records, at + COLOR, like)
    # Rounding must not lift the exponent above its value at the centre (the rule's "sigma < 0").
    peak, dimmest = broadcast(min(log_opacity, LOG_ALPHA_MAX)), broadcast(LOG_ALPHA_MIN)
    first_dx = block_x() + (center_x + f4(x0 * BLOCK_W))
    for y in range(y0, y1):
        dy = block_y() + (center_y + f4(y * BLOCK_H))
        base, slope, dx = dy * dy * c + log_opacity, dy * b, first_dx
        for block in range(pixels + (y * BLOCKS_X + x0) * LANES, pixels + (y * BLOCKS_X + x1) * LANES, LANES):
            exponent = base + dx * (slope + dx * a)
            dx = dx + f4(BLOCK_W)
            bright = exponent >= dimmest
            T = load(state, block)
            drawn = exp2_within(minimum(maximum(exponent, dimmest), peak)) * T
            after = T - drawn
            goes_on = after > T_MIN
            weight = select(bright & goes_on, drawn, broadcast(ZERO))
            stops = but_not(bright, goes_on)
            channel_accumulate(state, block + PIXELS, PIXELS, weight, color)
            store(state, block, negative_where(stops, T - weight))
            if want_stops is not None:  # a pixel that has stopped meets this again: the first place is the one that stopped it
                at_stops = block + (1 + len(like)) * PIXELS
                store(state, at_stops, lesser(select(stops, broadcast(place), broadcast(NEVER)), load(state, at_stops)))


@helper
def in_lines(size):
    """Room for so many floats that begins with a cache line: vectors that straddle two lines take half as long again."""
    room = np.empty(size + 16, np.float32)
    first = (-(np.int64(room.ctypes.data) // 4)) % 16
    return room[first : first + size]


@helper
def all_stopped(state, pixels):
    """Whether no pixel of the tile takes light any more."""
    brightest = load(state, pixels)
    for at in range(LANES, PIXELS, LANES):
        brightest = maximum(brightest, load(state, pixels + at))
    return not any_lane(brightest > ZERO)


@helper
def clear_tile(state, pixels, left, top, width, height, n_channels, want_stops):
    """T = 1 inside the picture; pixels beyond its border count as stopped."""
    full = left + TILE <= width and top + TILE <= height
    for at in range(0, PIXELS, LANES):
        store(state, pixels + at, broadcast(ONE))
        if want_stops is not None:
            store(state, pixels + (1 + n_channels) * PIXELS + at, broadcast(NEVER))
        for c in range(n_channels):
            store(state, pixels + (1 + c) * PIXELS + at, broadcast(ZERO))
    if not full:
        for y in range(TILE):
            for x in range(TILE):
                if left + x >= width or top + y >= height:
                    state[pixels + pixel_place(x, y)] = -ONE


@helper
def pixel_place(x, y):
    """Where a tile's pixel lies in a plane of its state."""
    block = (y // BLOCK_H) * BLOCKS_X + x // BLOCK_W
    return block * LANES + (y % BLOCK_H) * BLOCK_W + x % BLOCK_W


@helper
def write_tile(state, pixels, left, top, background, picture, alpha, n_channels):
    """Copy a finished tile into the picture, with the background in what light is left."""
    height, width, _ = picture.shape
    for y in range(min(TILE, height - top)):
        for x in range(min(TILE, width - left)):
            at = pixels + pixel_place(x, y)
            T = abs(read(state, at))
            alpha[top + y, left + x, 0] = ONE - T
            for c in range(n_channels):
                picture[top + y, left + x, c] = read(state, at + (1 + c) * PIXELS) + T * background[c]


@kernel
def rasterize_forward(
    next_tile, tile_start, members, records, bounds, background, like, want_stops, picture, alpha, state, tile_stop
):  # fmt: skip
    """Composite one picture; called by every thread at once, each of which takes one tile after another.

    Args:
        next_tile: int64 [1], 0: counts the tiles that have been taken.
        tile_start int64 [tiles+1], members int32 [M]: each tile's list, front to back.
        records: float32, a row for each splat that `members` may name (see `splat_lists.write_record`); bounds: the same as int32.
        background: [D]. like: a tuple of D floats, whose length tells the compiler how many channels there are.
        want_stops: True, or None for a picture that nobody will differentiate; known to the compiler.
        picture [H,W,D], alpha [H,W,1], state [tiles * (2+D) * 256] (if stops are wanted), tile_stop int64 [tiles] (list position
        after the last splat that was looked at): written.
    """
    (height, width, _), n_channels = picture.shape, len(like)
    tiles_x, n_tiles, size = (width + TILE - 1) // TILE, tile_start.shape[0] - 1, record_size(n_channels)
    if want_stops is None:  # one tile's state after the other in the same place
        state = in_lines((1 + n_channels) * PIXELS)
    tile = take(next_tile)
    while tile < n_tiles:
        left, top, pixels = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE, 0
        if want_stops is not None:
            pixels = tile * (2 + n_channels) * PIXELS
        first, last = tile_start[tile], tile_start[tile + 1]
        clear_tile(state, pixels, left, top, width, height, n_channels, want_stops)
        tile_stop[tile] = last
        for k in range(first, last):
            fetch(records, read(members, min(k + SOON, last - 1)) * size)
            at, place = read(members, k) * size, f4(np.int32(k - first))
            draw_splat(state, pixels, records, at, block_span(bounds, at + 6, left, top), left, top, place, like, want_stops)
            if (k - first) % CHECK_EVERY == CHECK_EVERY - 1 and all_stopped(state, pixels):
                tile_stop[tile] = k + 1
                break
        write_tile(state, pixels, left, top, background, picture, alpha, n_channels)
        tile = take(next_tile)
