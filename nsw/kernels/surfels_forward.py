"""Composite surfels tile by tile, compiled: the rules of `surfels_reference.py`, LANES pixels at a time.

A tile's state lies in one small array, block of LANES pixels after block, and of each block side by side: transmittance T (negated
once the pixel has stopped), the list position that stopped it, depth, distortion, median depth, two running sums for the
distortion, and the channels. So what a splat touches of a block lies together: a store and a load that lie 4096 bytes apart look
alike to a core, which then lets the load wait. What was loaded goes back through products and sums with 0 and 1: a `select` between
it and a new value would become a masked store, which takes some cores 20 cycles.
"""

from __future__ import annotations

import numpy as np

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.saturation import LARGEST
from nsw.kernels.simd import (
    BLOCK_H,
    BLOCK_W,
    LANES,
    absolute,
    any_lane,
    broadcast,
    channel_accumulate,
    channel_read,
    exp2,
    load,
    minimum,
    select,
    store,
)
from nsw.kernels.simd_blocks import block_x, block_y
from nsw.kernels.splat_forward import BLOCKS_X, CHECK_EVERY, NEVER, ONE, PIXELS, T_MIN, ZERO, in_lines, pixel_place
from nsw.kernels.surfels_lists import BLOB, CENTRE, COLOR, DEPTH, OPACITY, TW, A, B, C
from nsw.kernels.tiles import LOG2_255, LOG2E, TILE

f4 = np.float32
ALPHA_MIN, ALPHA_MAX, HALF = f4(1.0 / 255.0), f4(0.999), f4(0.5)
TWO, HALF_LOG2E = f4(2), -HALF * LOG2E
STOP, SUM, DISTORT, MEDIAN, M1, M2, FIRST = (i * LANES for i in range(1, 8))  # places in a block; T is at 0
NO_DISTORTION, CENTRE_DISTORTION, RAY_DISTORTION = 0, 1, 2


@helper
def block_span(box, left, top):
    """The blocks a splat's box touches in a tile: block rows [y0, y1) and block columns [x0, x1); equal where it touches none."""
    x0, x1, y0, y1 = max(box[0] - left, 0), min(box[1] - left, TILE), max(box[2] - top, 0), min(box[3] - top, TILE)
    if x0 >= x1 or y0 >= y1:
        return 0, 0, 0, 0
    return y0 // BLOCK_H, (y1 - 1) // BLOCK_H + 1, x0 // BLOCK_W, (x1 - 1) // BLOCK_W + 1


@helper
def place_in(x, y, block):
    """Where a tile's pixel lies in a state whose blocks take so many floats."""
    pixel = pixel_place(x, y)
    return pixel // LANES * block + pixel % LANES


@helper
def all_stopped(state, block):
    """Whether no pixel of the tile takes light any more."""
    for at in range(0, state.shape[0], block):  # noqa: SIM110 - numba compiles a loop, not a generator
        if any_lane(load(state, at) > ZERO):
            return False
    return True


@helper
def add_distortion(state, at, kind, weight, depth, opaque, ray):
    """Add weight times the distance to all that lies in front, and keep the running sums."""
    first = load(state, M1 + at)
    if kind == CENTRE_DISTORTION:
        store(state, DISTORT + at, load(state, DISTORT + at) + weight * TWO * (depth * opaque - first))
        store(state, M1 + at, first + weight * depth)
        return
    m = ray[1] - ray[2] / select(weight > ZERO, depth, broadcast(ONE))
    second = load(state, M2 + at)
    store(state, DISTORT + at, load(state, DISTORT + at) + weight * (m * m * opaque + second - TWO * (m * first)))
    store(state, M1 + at, first + weight * m)
    store(state, M2 + at, second + weight * m * m)


@helper
def meet_block(dx, blob_x, a0, a1, a2, row0, row1, row2, far_y, sharp):
    """Where a block's rays meet the disk: u, v, zeta_2 and its inverse; then rho on the disk and in the blob."""
    z2 = dx * a2 + row2
    inverse = ONE / z2
    u, v = (dx * a0 + row0) * inverse, (dx * a1 + row1) * inverse
    return u, v, z2, inverse, u * u + v * v, blob_x * blob_x * sharp + far_y


@helper
def depth_on_ray(record, u, v, on_disk, in_blob, drawn, ray_depth, ray):
    """Whether a splat is drawn where its depth is asked for, and that depth: of its centre, or where the ray meets the disk."""
    depth = broadcast(record[DEPTH])
    if ray is not None and ray_depth:
        depth = select(on_disk <= in_blob, u * record[TW] + v * record[TW + 1] + record[TW + 2], broadcast(record[TW + 2]))
        drawn, depth = drawn & (depth >= ray[0]), minimum(depth, broadcast(LARGEST))
    return drawn, depth


@helper
def largest_rho(log_opacity):
    """A hair more than the rho at which a splat falls below 1/255."""
    return (log_opacity + LOG2_255) * (TWO / LOG2E) + f4(0.01)


@helper
def meet_row(record, row, sharp):
    """Return what blocks of one row share: dy to the disc's centre and to the blob's, zeta at the centre's x, and rho's part."""
    dy, blob_y = block_y() + (row - record[CENTRE + 1]), block_y() + (row - record[BLOB + 1])
    row0, row1, row2 = record[C] + dy * record[B], record[C + 1] + dy * record[B + 1], record[C + 2] + dy * record[B + 2]
    return dy, blob_y, row0, row1, row2, sharp * blob_y * blob_y


@helper
def draw_surfel(state, record, color, span, left, top, position, sharp, ray_depth, kind, ray):
    """Blend one surfel into a tile's state.

    sharp: 1 over the variance of the blob, pixels^-2.
    ray: nearest depth of an intersection, and a, b of m = a - b / d. None where neither is asked for: numba then compiles a kernel
    without those branches, which keeps more in registers.
    """
    y0, y1, x0, x1 = span
    a0, a1, a2 = record[A], record[A + 1], record[A + 2]
    shift, reach = record[CENTRE] - record[BLOB], largest_rho(record[OPACITY])
    for y in range(y0, y1):
        _, _, row0, row1, row2, far_y = meet_row(record, f4(top + y * BLOCK_H), sharp)
        for block in range(x0, x1):
            at = (y * BLOCKS_X + block) * (FIRST + len(color) * LANES)
            dx = block_x() + (f4(left + block * BLOCK_W) - record[CENTRE])
            u, v, z2, _, on_disk, in_blob = meet_block(dx, dx + shift, a0, a1, a2, row0, row1, row2, far_y, sharp)
            rho, T = minimum(on_disk, in_blob), load(state, at)
            if not any_lane((rho < reach) & (T > ZERO)):
                continue
            alpha = minimum(exp2(rho * HALF_LOG2E + record[OPACITY]), broadcast(ALPHA_MAX))
            bright = (alpha >= ALPHA_MIN) & (absolute(z2) > ZERO) & (T > ZERO)
            bright, depth = depth_on_ray(record, u, v, on_disk, in_blob, bright, ray_depth, ray)
            drawn = alpha * T
            after = T - drawn
            weight = select(bright & (after > T_MIN), drawn, broadcast(ZERO))
            channel_accumulate(state, FIRST + at, LANES, weight, color)
            seen = weight > ZERO
            depth = select(seen, depth, broadcast(ZERO))
            store(state, SUM + at, load(state, SUM + at) + weight * depth)
            earlier = select(seen & (T > HALF), broadcast(ZERO), broadcast(ONE))
            store(state, MEDIAN + at, load(state, MEDIAN + at) * earlier + depth * (ONE - earlier))
            if ray is not None and kind != NO_DISTORTION:
                add_distortion(state, at, kind, weight, depth, ONE - T, ray)
            stops = bright & (after <= T_MIN)
            if any_lane(stops):
                store(state, STOP + at, select(stops, broadcast(f4(position)), load(state, STOP + at)))
                store(state, at, select(stops, broadcast(ZERO) - T, T - weight))
            else:
                store(state, at, T - weight)


@helper
def clear_surfel_tile(state, block, left, top, width, height):
    """T = 1 inside the picture; pixels beyond its border count as stopped."""
    for i in range(state.shape[0]):
        state[i] = ZERO
    for y in range(TILE):
        for x in range(TILE):
            pixel = place_in(x, y, block)
            state[pixel] = ONE if left + x < width and top + y < height else -ONE
            state[STOP + pixel] = NEVER


@helper
def write_surfel_tile(state, block, left, top, background, picture, maps):
    """Copy a finished tile into the picture, with the background in what light is left, and into the maps."""
    height, width, n_channels = picture.shape
    for y in range(min(TILE, height - top)):
        for x in range(min(TILE, width - left)):
            pixel = place_in(x, y, block)
            T = abs(state[pixel])
            maps[0, top + y, left + x] = T
            for i in range(1, 7):
                maps[i, top + y, left + x] = state[i * LANES + pixel]
            for c in range(n_channels):
                picture[top + y, left + x, c] = state[FIRST + c * LANES + pixel] + T * background[c]


@kernel
def surfels_forward(
    tile_start, members, records, boxes, background, sharp, like, ray_depth, kind, ray, picture, maps, tile_stop, share, n_shares
):
    """Composite one picture.

    Args:
        tile_start int64 [tiles+1], members int32 [M]: each tile's list, front to back. records, boxes: see `prepare_surfels`.
        background: [D]. like: a tuple of D floats, whose length tells the compiler how many channels there are.
        sharp, ray_depth, kind (of distortion), ray [3] or None: see `draw_surfel`.
        picture [H,W,D], maps [7,H,W] (transmittance, stop, depth, distortion, median, two sums), tile_stop int64 [tiles]: written.
    """
    height, width = maps.shape[1:]
    tiles_x, n_tiles = (width + TILE - 1) // TILE, tile_start.shape[0] - 1
    block = FIRST + len(like) * LANES
    state = in_lines(PIXELS // LANES * block)
    for tile in range(share, n_tiles, n_shares):
        left, top, first, last = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE, tile_start[tile], tile_start[tile + 1]
        clear_surfel_tile(state, block, left, top, width, height)
        tile_stop[tile] = last
        for k in range(first, last):
            j = members[k]
            span = block_span(boxes[j], left, top)
            if span[0] < span[1]:
                color = channel_read(records[j], COLOR, like)
                draw_surfel(state, records[j], color, span, left, top, k - first, sharp, ray_depth, kind, ray)
            if (k - first) % CHECK_EVERY == CHECK_EVERY - 1 and all_stopped(state, block):
                tile_stop[tile] = k + 1
                break
        write_surfel_tile(state, block, left, top, background, picture, maps)
