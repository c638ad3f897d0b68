r"""What the compiled surfel compositor reads of a splat: the inverse of its transform, and the pixels that it may touch.

With $k=xT_w-T_u$ and $l=yT_w-T_v$ the crossing $\zeta=k\times l$ looks quadratic in the pixel, but $T_w\times T_w=0$ leaves it
linear. From the picture of the centre $s$ on, where $\delta=(x,y)-s$, $T'_u=T_u-s_xT_w$ and $T'_v=T_v-s_yT_w$,

$$\zeta=\delta_xA+\delta_yB+C,\qquad A=T'_v\times T_w,\quad B=T_w\times T'_u,\quad C=T'_u\times T'_v$$

Nine numbers a splat, a multiply-add for each component and pixel, one division. Only the ratios of $\zeta$ matter, so the nine are
scaled to at most 1: a disk of a millionth of a unit stays far from the ends of float32. Counting pixels from s keeps their digits.
"""

from __future__ import annotations

import math

import numpy as np

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.projection import ALPHA_MIN
from nsw.kernels.tiles import MAX_BITS, TILE, clip

f4 = np.float32
ZERO, HALF, ONE, TWO = f4(0), f4(0.5), f4(1), f4(2)
# Of a record: s (2), A, B, C (9), centre of the blob (2), log2 of opacity, depth of the centre, T_w (3), scale of A, B, C.
CENTRE, A, B, C, BLOB, OPACITY, DEPTH, TW, SCALE, COLOR = 0, 2, 5, 8, 11, 13, 14, 15, 18, 19
TINY, HUGE = f4(1e-30), f4(1e30)


@helper
def tile_range(box):
    """Tiles [tx0, tx1) x [ty0, ty1) of a pixel box, and whether each must be tested (a box in one tile needs no test)."""
    x0, x1, y0, y1 = box[0], box[1], box[2], box[3]
    if x0 >= x1 or y0 >= y1:
        return 0, 0, 0, 0, False
    tx0, tx1, ty0, ty1 = x0 // TILE, (x1 - 1) // TILE + 1, y0 // TILE, (y1 - 1) // TILE + 1
    return tx0, tx1, ty0, ty1, (tx1 - tx0) * (ty1 - ty0) > 1


@helper
def cross(a, b):
    """The cross product of two triples."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@helper
def centred_rows(T):
    """The picture of the centre s, and the rows T'_u, T'_v, T_w of a transform (nine floats) seen from there."""
    Tw = (T[6], T[7], T[8])
    safe = abs(T[8]) > f4(1e-12)
    sx, sy = (T[2] / T[8], T[5] / T[8]) if safe else (ZERO, ZERO)
    if not (abs(sx) < HUGE and abs(sy) < HUGE):
        sx, sy = ZERO, ZERO
    Tu = (T[0] - sx * Tw[0], T[1] - sx * Tw[1], T[2] - sx * Tw[2])
    Tv = (T[3] - sy * Tw[0], T[4] - sy * Tw[1], T[5] - sy * Tw[2])
    return sx, sy, Tu, Tv, Tw


@helper
def write_surfel(record, mean2d, T, depth, opacity, color):
    """Fill a record; return whether it can be drawn (floats did not overflow, the disk is no point)."""
    sx, sy, Tu, Tv, Tw = centred_rows(T)
    a, b, c = cross(Tv, Tw), cross(Tw, Tu), cross(Tu, Tv)
    largest = ZERO
    for i in range(3):
        largest = max(largest, max(abs(a[i]), max(abs(b[i]), abs(c[i]))))
    if not (largest > TINY and largest < HUGE and opacity >= ALPHA_MIN):  # also false for NaN
        return False
    scale = ONE / largest
    record[CENTRE], record[CENTRE + 1], record[SCALE] = sx, sy, scale
    for i in range(3):
        record[A + i], record[B + i], record[C + i], record[TW + i] = a[i] * scale, b[i] * scale, c[i] * scale, Tw[i]
    record[BLOB], record[BLOB + 1], record[OPACITY], record[DEPTH] = mean2d[0], mean2d[1], math.log2(opacity), depth
    for channel in range(color.shape[0]):
        record[COLOR + channel] = color[channel]
    return True


@helper
def reach_box(mean2d, T, opacity, width, height):
    """Pixels [x0, x1) x [y0, y1) where disk or blob may reach 1/255.

    The disk's part is the exact box of the circle where it does, as long as all of it lies in front of the camera; a disk that
    crosses the camera's plane has no closed picture and may show anywhere.
    """
    r2 = TWO * math.log(opacity / ALPHA_MIN)
    sx, sy, Tu, Tv, Tw = centred_rows(T)
    span = r2 * (Tw[0] * Tw[0] + Tw[1] * Tw[1])
    denominator = span - Tw[2] * Tw[2]
    if not denominator < f4(-1e-3) * Tw[2] * Tw[2]:
        return 0, width, 0, height
    f, g = r2 / denominator, -ONE / denominator
    cx = f * (Tu[0] * Tw[0] + Tu[1] * Tw[1]) + g * Tu[2] * Tw[2]
    cy = f * (Tv[0] * Tw[0] + Tv[1] * Tw[1]) + g * Tv[2] * Tw[2]
    hx = math.sqrt(max(cx * cx - f * (Tu[0] * Tu[0] + Tu[1] * Tu[1]) - g * Tu[2] * Tu[2], ZERO)) * f4(1.001) + f4(0.01)
    hy = math.sqrt(max(cy * cy - f * (Tv[0] * Tv[0] + Tv[1] * Tv[1]) - g * Tv[2] * Tv[2], ZERO)) * f4(1.001) + f4(0.01)
    blob = math.sqrt(r2 * HALF) + f4(0.01)
    low_x, high_x = min(sx + cx - hx, mean2d[0] - blob), max(sx + cx + hx, mean2d[0] + blob)
    low_y, high_y = min(sy + cy - hy, mean2d[1] - blob), max(sy + cy + hy, mean2d[1] + blob)
    if not (high_x - low_x < HUGE and high_y - low_y < HUGE):
        return 0, width, 0, height
    x0, x1 = clip(np.ceil(low_x - HALF), 0, width), clip(np.floor(high_x - HALF) + ONE, 0, width)
    return x0, x1, clip(np.ceil(low_y - HALF), 0, height), clip(np.floor(high_y - HALF) + ONE, 0, height)


@helper
def contract_tiles(box, mean2d, radii, width, height):
    """Cut a pixel box to the tiles that the contract's box touches: beyond them a splat is not drawn, however far it reaches."""
    x, y, rx, ry, size = mean2d[0], mean2d[1], f4(radii[0]), f4(radii[1]), f4(TILE)
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    x0 = max(box[0], TILE * clip(np.floor(x / size - rx / size), 0, tiles_x))
    x1 = min(box[1], TILE * clip(np.ceil(x / size + rx / size), 0, tiles_x))
    y0 = max(box[2], TILE * clip(np.floor(y / size - ry / size), 0, tiles_y))
    return x0, x1, y0, min(box[3], TILE * clip(np.ceil(y / size + ry / size), 0, tiles_y))


@kernel
def prepare_surfels(
    first_row, means2d, transforms, depths, radii, opacities, colors, width, height, given, records, boxes, hit_bits, first_slot,
    counts, share, n_shares,
):  # fmt: skip
    """Write each splat's record, pixel box and touched tiles, in the order in which the splats came.

    Args:
        first_row: the picture's rows begin here; outputs are counted from it. transforms: [R, 9].
        given: the lists are the caller's: radii do not matter and no tiles are counted.
        records [n, 19+D], boxes int32 [n,4], hit_bits uint64 [n], first_slot int64 [n+1] (hits of splat i at i+1), and
        counts int64 [n_shares, tiles] (this share's hits in every tile): written.
    """
    n, tiles_x, own = boxes.shape[0], (width + TILE - 1) // TILE, counts[share]
    part = (n + n_shares - 1) // n_shares
    for tile in range(own.shape[0]):
        own[tile] = 0
    for i in range(share * part, min((share + 1) * part, n)):
        row, hits = first_row + i, 0
        boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3] = 0, 0, 0, 0
        seen = given or (radii[row, 0] > 0 and radii[row, 1] > 0)
        if seen and write_surfel(records[i], means2d[row], transforms[row], depths[row], opacities[row], colors[row]):
            box = reach_box(means2d[row], transforms[row], opacities[row], width, height)
            if not given:
                box = contract_tiles(box, means2d[row], radii[row], width, height)
            boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3] = box
            if not given:
                tx0, tx1, ty0, ty1, _ = tile_range(boxes[i])
                for ty in range(ty0, ty1):
                    for tx in range(tx0, tx1):
                        own[ty * tiles_x + tx] += 1
                hits = (tx1 - tx0) * (ty1 - ty0)
                hit_bits[i] = ~np.uint64(0) if hits <= MAX_BITS else np.uint64(0)
        first_slot[i + 1] = hits


@kernel
def add_up(first_slot, counts, tile_start):
    """Turn counts into places, where each splat's slots and each tile's list begin; return the number of pairs."""
    first_slot[0] = 0
    for i in range(first_slot.shape[0] - 1):
        first_slot[i + 1] += first_slot[i]
    total = 0
    for tile in range(counts.shape[1]):
        tile_start[tile] = total
        for p in range(counts.shape[0]):
            total += counts[p, tile]
    tile_start[counts.shape[1]] = total
    return total


@kernel
def fill_lists(order, n, boxes, hit_bits, first_slot, width, next_place, members, slots, share, n_shares):
    """Write the tiles' lists: members (which splat) and slots (where that pair's gradient will go), both int32 [pairs].

    Every share walks all splats, nearest first, and fills the tile rows share, share + n_shares, ...: no list has two writers.
    """
    tiles_x = (width + TILE - 1) // TILE
    for j in range(n):
        i = order[j]
        tx0, tx1, ty0, ty1, _ = tile_range(boxes[i])
        every = (tx1 - tx0) * (ty1 - ty0) > MAX_BITS
        slot, bits = first_slot[i], hit_bits[i]
        for ty in range(ty0, ty1):
            mine = ty % n_shares == share
            for tx in range(tx0, tx1):
                if every or bits & np.uint64(1):
                    if mine:
                        place = next_place[ty * tiles_x + tx]
                        next_place[ty * tiles_x + tx] = place + 1
                        members[place], slots[place] = i, slot
                    slot += 1
                bits >>= np.uint64(1)
