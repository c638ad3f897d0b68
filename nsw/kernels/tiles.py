"""Sort the visible splats of one picture by depth and list them by tile, compiled.

Same lists as `tiles_reference.py` in purpose, but tighter: a tile that the splat's ellipse misses is left out, although the box
around the ellipse touches it. No pixel changes, since the splat is below 1/255 in all of such a tile.

The lists come from a counting sort: hits are counted in the order in which the splats lie in memory, which is fast, and only the
filling of the lists walks them by depth. The number of threads does not show in the result.
"""

from __future__ import annotations

import math

import numpy as np

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.projection import ALPHA_MIN

f4, i4 = np.float32, np.int32
TILE = 16
ZERO, HALF, ONE, TWO = f4(0), f4(0.5), f4(1), f4(2)
LOG2E, LOG2_255 = f4(1.4426950408889634), f4(7.994353436858858)
WELL_CONDITIONED = f4(1e-3)  # det / (a c): below, float32 has lost the digits that tell a needle's width
MAX_BITS = 64
MOST_DIGIT_BITS = 12  # of the radix sort: 4096 counters stay in the first-level cache


@kernel
def sort_by_depth(depth_bits, radii, first_row, last_row, order):
    """Write the visible rows of [first_row, last_row), counted from first_row, into `order`, nearest first; return how many.

    A radix sort, which keeps the order of ties. Counted from the nearest depth, keys need few bits: most scenes take two passes.

    Args:
        depth_bits: uint32 [R], the bits of the (positive) float depths, which sort like the depths.
        order: int32 [last_row - first_row], written.
    """
    size = last_row - first_row
    keys, rows = np.empty((2, size), np.uint32), np.empty((2, size), np.int32)
    n, low, high = 0, np.uint32(0xFFFFFFFF), np.uint32(0)
    for row in range(first_row, last_row):
        if radii[row, 0] > 0 and radii[row, 1] > 0:
            key = depth_bits[row]
            keys[0, n], rows[0, n] = key, row - first_row
            low, high = min(low, key), max(high, key)
            n += 1
    if n == 0:
        return 0
    n_bits, n_passes = 0, 1
    while (high - low) >> np.uint32(n_bits) > 0 and n_bits < 32:
        n_bits += 1
    while n_passes * MOST_DIGIT_BITS < n_bits:
        n_passes += 1
    digit_bits = max((n_bits + n_passes - 1) // n_passes, 1)
    radix, digits = 1 << digit_bits, np.uint32((1 << digit_bits) - 1)
    starts = np.empty(radix, np.int32)
    for step in range(n_passes):
        source, target, shift, total = step % 2, (step + 1) % 2, np.uint32(digit_bits * step), 0
        starts[:] = 0
        for i in range(n):
            starts[((keys[source, i] - low) >> shift) & digits] += 1
        for d in range(radix):
            count = starts[d]
            starts[d] = total
            total += count
        for i in range(n):
            key = keys[source, i]
            d = ((key - low) >> shift) & digits
            at = starts[d]
            starts[d] = at + 1
            keys[target, at], rows[target, at] = key, rows[source, i]
    for i in range(n):
        order[i] = rows[n_passes % 2, i]
    return n


@helper
def clip(value, low, high):
    """A float clamped and cut to an integer; clamped first, since a huge float has no integer."""
    return i4(min(max(value, f4(low)), f4(high)))


@helper
def pixel_box(mean2d, conic, radii, opacity, width, height):
    """Pixels [x0, x1) x [y0, y1) where the splat may reach 1/255, within the tiles that its contract's box touches.

    The radii are rounded up to whole pixels, which for a small splat is far too much: the conic gives the exact half sizes, a hair
    widened so that rounding cannot cut a pixel off. For needles its determinant is all cancellation, and the radii must do.
    """
    x, y, a, b, c = mean2d[0], mean2d[1], conic[0], conic[1], conic[2]
    hx, hy = f4(radii[0]), f4(radii[1])
    reach, det = TWO * math.log(max(opacity / ALPHA_MIN, ONE)), a * c - b * b
    if opacity > ONE or det > WELL_CONDITIONED * a * c:
        hx, hy = math.sqrt(reach * c / det) * f4(1.0002) + f4(0.001), math.sqrt(reach * a / det) * f4(1.0002) + f4(0.001)
    x0, x1 = clip(np.ceil(x - hx - HALF), 0, width), clip(np.floor(x + hx - HALF) + ONE, 0, width)
    y0, y1 = clip(np.ceil(y - hy - HALF), 0, height), clip(np.floor(y + hy - HALF) + ONE, 0, height)
    if opacity > ONE:  # its 3.33 sigma end before 1/255 does: beyond them it shows only in tiles that its box touches
        rx, ry, size = f4(radii[0]), f4(radii[1]), f4(TILE)
        tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
        x0, x1 = (
            max(x0, TILE * clip(np.floor((x - rx) / size), 0, tiles_x)),
            min(x1, TILE * clip(np.ceil((x + rx) / size), 0, tiles_x)),
        )
        y0, y1 = (
            max(y0, TILE * clip(np.floor((y - ry) / size), 0, tiles_y)),
            min(y1, TILE * clip(np.ceil((y + ry) / size), 0, tiles_y)),
        )
    return x0, x1, y0, y1


@helper
def write_record(record, mean2d, conic, opacity, color):
    """What the compositor reads of a splat, in one cache line: with e = r5 + r2 dx^2 + r3 dx dy + r4 dy^2, its alpha is 2^e.

    Working in powers of two folds the 1/2, the sign, log2(e) and the opacity into these four numbers.
    """
    record[0], record[1] = mean2d[0], mean2d[1]
    record[2], record[3], record[4] = -HALF * LOG2E * conic[0], -LOG2E * conic[1], -HALF * LOG2E * conic[2]
    record[5] = math.log2(opacity)
    for channel in range(color.shape[0]):
        record[6 + channel] = color[channel]


@helper
def edge_minimum(a, b, c, dx, low, high):
    """The least of a dx^2 + b dx dy + c dy^2 over dy in [low, high], for one dx."""
    dy = min(max(-HALF * b * dx / c, low), high)
    return a * dx * dx + b * dx * dy + c * dy * dy


@helper
def meets_tile(record, tx, ty):
    """Whether a splat reaches 1/255 somewhere on the tile's pixel centres.

    The exponent's fall is a convex form: unless the centre is inside, it is least on an edge of the tile that faces the centre.
    """
    a, b, c, reach = -record[2], -record[3], -record[4], record[5] + LOG2_255 + f4(0.02)
    if not f4(4) * a * c - b * b > WELL_CONDITIONED * f4(4) * a * c:
        return True
    left, top, span = f4(tx * TILE) + HALF - record[0], f4(ty * TILE) + HALF - record[1], f4(TILE - 1)
    right, bottom = left + span, top + span
    if left <= ZERO and right >= ZERO and top <= ZERO and bottom >= ZERO:
        return True
    best = f4(3e38)
    if left > ZERO or right < ZERO:
        best = edge_minimum(a, b, c, left if left > ZERO else right, top, bottom)
    if top > ZERO or bottom < ZERO:
        best = min(best, edge_minimum(c, b, a, top if top > ZERO else bottom, left, right))
    return not best > reach


@helper
def tile_range(box):
    """Tiles [tx0, tx1) x [ty0, ty1) of a pixel box, and whether each must be tested (a box in one tile needs no test)."""
    x0, x1, y0, y1 = box[0], box[1], box[2], box[3]
    if x0 >= x1 or y0 >= y1:
        return 0, 0, 0, 0, False
    tx0, tx1, ty0, ty1 = x0 // TILE, (x1 - 1) // TILE + 1, y0 // TILE, (y1 - 1) // TILE + 1
    return tx0, tx1, ty0, ty1, (tx1 - tx0) * (ty1 - ty0) > 1


@helper
def find_hits(record, box, counts, tiles_x):
    """Count the tiles a splat touches, add one to each of their counts, and return the count and a bit for each.

    Bit t is the t-th tile of the box, row by row. A box of more than 64 tiles takes all of them.
    """
    tx0, tx1, ty0, ty1, test = tile_range(box)
    n_tiles = (tx1 - tx0) * (ty1 - ty0)
    test = test and n_tiles <= MAX_BITS
    bits, hits, t = np.uint64(0), 0, 0
    for ty in range(ty0, ty1):
        for tx in range(tx0, tx1):
            if not test or meets_tile(record, tx, ty):
                bits |= np.uint64(1) << np.uint64(t & (MAX_BITS - 1))
                counts[ty * tiles_x + tx] += 1
                hits += 1
            t += 1
    return hits, bits


@kernel
def prepare(
    first_row, means2d, conics, radii, opacities, colors, width, height, records, boxes, hit_bits, first_slot, counts,
    share, n_shares,
):  # fmt: skip
    """Write each visible splat's record, pixel box and touched tiles, in the order in which the splats came.

    Args:
        first_row: the picture's rows begin here; outputs are counted from it. opacities etc. have all pictures' rows.
        records [n, 6+D], boxes int32 [n,4], hit_bits uint64 [n], first_slot int64 [n+1] (hits of splat i at i+1): written.
        counts: int64 [n_shares, tiles], written: this share's hits in every tile.
    """
    n, tiles_x, own = boxes.shape[0], (width + TILE - 1) // TILE, counts[share]
    part = (n + n_shares - 1) // n_shares
    for tile in range(own.shape[0]):
        own[tile] = 0
    for i in range(share * part, min((share + 1) * part, n)):
        row, hits = first_row + i, 0
        if radii[row, 0] > 0 and radii[row, 1] > 0:
            write_record(records[i], means2d[row], conics[row], opacities[row], colors[row])
            boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3] = pixel_box(
                means2d[row], conics[row], radii[row], opacities[row], width, height
            )
            hits, hit_bits[i] = find_hits(records[i], boxes[i], own, tiles_x)
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
