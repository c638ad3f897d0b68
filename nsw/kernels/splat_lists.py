"""List the splats of one picture by tile, compiled: the lists that `splat_forward.py` draws from.

Same lists as `tiles_reference.py` in purpose, but tighter: a tile that the splat's ellipse misses is left out, although the box
around the ellipse touches it. No pixel changes, since the splat is below 1/255 in all of such a tile.

The splats are first put in order of depth; a splat's place in that order is its rank. The ranks are cut into parts. Threads count,
part by part, how often each tile is hit; after adding the counts up, each part knows where in every tile's list its own entries
begin, and threads fill the lists. However many parts there are, the lists come out the same.
"""

from __future__ import annotations

import numpy as np

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.simd import LANES, broadcast, load, maximum, minimum, select
from nsw.kernels.simd_rows import ceil, fetch, floor, log2, read, square_root, store_across, take, whole_bits
from nsw.kernels.tiles import LOG2_255, LOG2E, MAX_BITS, TILE, WELL_CONDITIONED

f4 = np.float32
AHEAD = 32  # rows to ask for before their turn
COLOR = 10  # where the colours begin in a record
ZERO, HALF, ONE, TWO = f4(0), f4(0.5), f4(1), f4(2)


@helper
def record_size(n_channels):
    """Floats in a record: whole cache lines, one for up to six channels."""
    return (COLOR + n_channels + 15) // 16 * 16


@helper
def read_group(group, order, start, last, first_row, means2d, conics, radii, opacities):
    """Bring LANES splats' numbers side by side: x, y, a, b, c, opacity, two radii; beyond the last splat, repeat it."""
    for lane in range(LANES):
        row = first_row + read(order, min(start + lane, last - 1))
        group[lane], group[LANES + lane] = means2d[row, 0], means2d[row, 1]
        group[2 * LANES + lane], group[3 * LANES + lane], group[4 * LANES + lane] = conics[row, 0], conics[row, 1], conics[row, 2]
        group[5 * LANES + lane] = opacities[row]
        group[6 * LANES + lane], group[7 * LANES + lane] = radii[row, 0], radii[row, 1]


@helper
def half_sizes(a, b, c, opacity, log_opacity, radius_x, radius_y):
    """How far from their centres LANES splats may reach 1/255.

    The radii are rounded up to whole pixels, which for a small splat is far too much: the conic gives the exact half sizes, a hair
    widened so that rounding cannot cut a pixel off. For needles its determinant is all cancellation, and the radii must do.
    """
    reach = maximum(log_opacity + LOG2_255, broadcast(ZERO)) * (TWO / LOG2E)
    det, product = a * c - b * b, a * c
    exact = det > product * WELL_CONDITIONED
    exact_x, exact_y = square_root(reach * c / det) * f4(1.0002) + f4(0.001), square_root(reach * a / det) * f4(1.0002) + f4(0.001)
    beyond = opacity > ONE  # its 3.33 sigma, which the radii stand for, end before 1/255 does
    return select(beyond, exact_x, select(exact, exact_x, radius_x)), select(beyond, exact_y, select(exact, exact_y, radius_y))


@helper
def pixel_span(centre, half, radius, opacity, size):
    """Pixels [first, end) along one side of the picture, `size` pixels long, that LANES splats may reach; an empty span for a NaN.

    A splat with an opacity above 1 is cut to the tiles that its contract's box, of 3.33 sigma, touches.
    """
    tile, beyond, zero = f4(TILE), opacity > ONE, broadcast(ZERO)
    first, end = ceil(centre - half - HALF), floor(centre + half - HALF) + ONE
    first = select(beyond, maximum(first, floor((centre - radius) / tile) * tile), first)
    end = select(beyond, minimum(end, ceil((centre + radius) / tile) * tile), end)
    side = broadcast(f4(size))
    return whole_bits(minimum(maximum(first, zero), side)), whole_bits(minimum(maximum(end, zero), side))


@helper
def write_records(records, at, size, group, width, height):
    """What the compositor reads of LANES splats: with e = r5 + r2 dx^2 + r3 dx dy + r4 dy^2, a splat's alpha is 2^e.

    Working in powers of two folds the 1/2, the sign, log2(e) and the opacity into these four numbers. r6 to r9 are the box
    [x0, x1) x [y0, y1) in whole pixels, as integers; colours follow.
    """
    x, y, a, b, c = load(group, 0), load(group, LANES), load(group, 2 * LANES), load(group, 3 * LANES), load(group, 4 * LANES)
    opacity, radius_x, radius_y = load(group, 5 * LANES), load(group, 6 * LANES), load(group, 7 * LANES)
    log_opacity = log2(opacity)
    half_x, half_y = half_sizes(a, b, c, opacity, log_opacity, radius_x, radius_y)
    x0, x1 = pixel_span(x, half_x, radius_x, opacity, width)
    y0, y1 = pixel_span(y, half_y, radius_y, opacity, height)
    scale = -HALF * LOG2E
    store_across(records, at, size, (x, y, a * scale, b * -LOG2E, c * scale, log_opacity, x0, x1, y0, y1))


@helper
def fall_at(a, b, c, dx, dy):
    """By how much the exponent at (dx, dy) lies below that at the centre."""
    return dx * (a * dx + b * dy) + c * dy * dy


@helper
def least_fall(a, b, c, tilt_x, tilt_y, left, right, top, bottom):
    """The least fall on a tile whose pixel centres span [left, right] x [top, bottom], seen from the splat's centre.

    The fall is convex: unless the centre is in the tile, it is least on an edge that faces the centre. Without branches, which
    nobody could predict: a coordinate clamped into the tile is that of the facing edge, or 0.

    Args:
        tilt_x, tilt_y: -b / (2 a) and -b / (2 c), the slopes of the lines where the fall is least for a given dy, dx.
    """
    dx, dy = min(max(ZERO, left), right), min(max(ZERO, top), bottom)
    beside = fall_at(a, b, c, dx, min(max(tilt_y * dx, top), bottom))
    above = fall_at(a, b, c, min(max(tilt_x * dy, left), right), dy)
    return min(beside, above)


@helper
def tile_range(bounds, at):
    """Tiles [tx0, tx1) x [ty0, ty1) of a pixel box."""
    x0, x1, y0, y1 = read(bounds, at), read(bounds, at + 1), read(bounds, at + 2), read(bounds, at + 3)
    if x0 >= x1 or y0 >= y1:
        return 0, 0, 0, 0
    return x0 // TILE, (x1 - 1) // TILE + 1, y0 // TILE, (y1 - 1) // TILE + 1


@helper
def find_hits(records, bounds, at, counts, tiles_x):
    """Count the tiles a splat touches, add one to each of their counts, and return the count and a bit for each.

    Bit t is the t-th tile of the box, row by row. A box of more than 64 tiles takes all of them, as does a needle.
    """
    tx0, tx1, ty0, ty1 = tile_range(bounds, at + 6)
    n_tiles = (tx1 - tx0) * (ty1 - ty0)
    if n_tiles == 1:
        counts[ty0 * tiles_x + tx0] += 1
        return 1, np.uint64(1)
    x, y, a, b, c = read(records, at), read(records, at + 1), -read(records, at + 2), -read(records, at + 3), -read(records, at + 4)
    test = n_tiles <= MAX_BITS and f4(4) * a * c - b * b > WELL_CONDITIONED * f4(4) * a * c
    reach = read(records, at + 5) + LOG2_255 + f4(0.02) if test else f4(np.inf)
    tilt_x, tilt_y, span = -HALF * b / a, -HALF * b / c, f4(TILE - 1)
    bits, hits, t = np.uint64(0), 0, 0
    for ty in range(ty0, ty1):
        top = f4(ty * TILE) + HALF - y
        for tx in range(tx0, tx1):
            left = f4(tx * TILE) + HALF - x
            missed = least_fall(a, b, c, tilt_x, tilt_y, left, left + span, top, top + span) > reach
            hit = 0 if missed else 1
            bits |= np.uint64(hit) << np.uint64(t & (MAX_BITS - 1))
            counts[ty * tiles_x + tx] += hit
            hits += hit
            t += 1
    return hits, bits


@helper
def part_of(part, n_parts, n):
    """The ranks [first, last) of a part: equal shares, in whole groups of LANES."""
    size = ((n + n_parts - 1) // n_parts + LANES - 1) // LANES * LANES
    return min(part * size, n), min((part + 1) * size, n)


@kernel
def list_hits(
    next_part, first_row, order, means2d, conics, radii, opacities, colors, width, height, records, bounds, hit_bits, first_slot,
    counts,
):  # fmt: skip
    """Write the record of every rank, and find the tiles it touches; called by every thread at once.

    Args:
        first_row: the picture's rows begin here. order: int32 [n], its visible rows, nearest first, counted from there.
        records [(n + LANES) * record_size], bounds (the same memory as int32), hit_bits uint64 [n]: written.
        first_slot: int64 [n+1], written: at rank + 1, the hits of this rank and those before it in its part.
        counts: int32 [parts, tiles], written: each part's hits in every tile.
    """
    n, size, tiles_x = order.shape[0], record_size(colors.shape[1]), (width + TILE - 1) // TILE
    group, n_parts, n_channels = np.empty(8 * LANES, np.float32), counts.shape[0], colors.shape[1]
    part = take(next_part)
    while part < n_parts:
        first, last = part_of(part, n_parts, n)
        own, total = counts[part], 0
        own[:] = 0
        for start in range(first, last, LANES):
            for rank in range(start + AHEAD, min(start + AHEAD + LANES, last)):
                row = first_row + read(order, rank)
                fetch(means2d, row)
                fetch(conics, row)
                fetch(radii, row)
                fetch(opacities, row)
                fetch(colors, row)
            read_group(group, order, start, last, first_row, means2d, conics, radii, opacities)
            write_records(records, start * size, size, group, width, height)
            for rank in range(start, min(start + LANES, last)):
                at, row = rank * size, first_row + order[rank]
                for channel in range(n_channels):
                    records[at + COLOR + channel] = colors[row, channel]
                hits, hit_bits[rank] = find_hits(records, bounds, at, own, tiles_x)
                total += hits
                first_slot[rank + 1] = total
        part = take(next_part)


@kernel
def add_up(n, first_slot, counts, part_slot, tile_start):
    """Turn counts into places: where each part's slots, each tile's list, and each part's share of that list begin.

    Args:
        counts: in: hits; out: the place of a part's next entry in the list of a tile. part_slot: int64 [parts], written.

    Returns:
        The number of (splat, tile) pairs.
    """
    n_parts, n_tiles = counts.shape
    first_slot[0], slot = 0, 0
    for part in range(n_parts):
        first, last = part_of(part, n_parts, n)
        part_slot[part] = slot
        if last > first:
            slot += first_slot[last]
    total = 0
    for tile in range(n_tiles):
        tile_start[tile] = total
        for part in range(n_parts):
            count = counts[part, tile]
            counts[part, tile] = total
            total += count
    tile_start[n_tiles] = total
    return total


@kernel
def fill_lists(next_part, n, bounds, size, hit_bits, width, first_slot, part_slot, next_place, members, slots):
    """Write the tiles' lists: members (which rank) and slots (where that pair's gradient will go), both int32 [pairs].

    Each part fills its own stretch of every list, so no place has two writers; called by every thread at once. `first_slot` comes
    with counts within a part, and leaves with places in all.
    """
    tiles_x, n_parts = (width + TILE - 1) // TILE, next_place.shape[0]
    part = take(next_part)
    while part < n_parts:
        first, last = part_of(part, n_parts, n)
        places, slot = next_place[part], part_slot[part]
        for rank in range(first, last):
            tx0, tx1, ty0, ty1 = tile_range(bounds, rank * size + 6)
            every = (tx1 - tx0) * (ty1 - ty0) > MAX_BITS
            bits = hit_bits[rank]
            for ty in range(ty0, ty1):
                for tx in range(tx0, tx1):
                    if every or bits & np.uint64(1):
                        place = places[ty * tiles_x + tx]
                        places[ty * tiles_x + tx] = place + 1
                        members[place], slots[place] = rank, slot
                        slot += 1
                    bits >>= np.uint64(1)
            first_slot[rank + 1] = slot
        part = take(next_part)
