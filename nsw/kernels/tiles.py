"""Sort the visible splats of one picture by depth and list them by tile, compiled.

Same lists as `tiles_reference.py` in purpose, but tighter: a tile that the splat's ellipse misses is left out, although the box
around the ellipse touches it. No pixel changes, since the splat is below 1/255 in all of such a tile.

The lists come from a counting sort: hits are counted in the order in which the splats lie in memory, which is fast, and only the
filling of the lists walks them by depth. The number of threads does not show in the result.
"""

from __future__ import annotations

import numpy as np

from nsw.kernels.compiling import helper, kernel

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
