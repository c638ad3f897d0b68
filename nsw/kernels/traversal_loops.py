"""The compiled walk of rays through grids of cells: see `traversal.py` for the rules.

A ray is walked twice: first from cell to cell, which leaves a list of the stretches inside occupied cells (`runs`), then along
these stretches from sample to sample. All geometry is in float64, whatever the rays are in: which cell holds a sample then
depends on no rounding that one could see.
"""

from __future__ import annotations

import math

import numpy as np

from nsw.kernels.compiling import helper, kernel

FAR = 2.0**52  # beyond, a float64 cannot tell one step from the next
BITS = 2  # a coarse cell is 2^BITS cells wide
SLIVER = 1e-12  # what is left of a cell whose wall the ray begins on, up to rounding


@kernel
def mark_coarse(cells, coarse, share, n_shares):
    """Which blocks of cells hold an occupied one: small enough to stay in the cache, so that empty space costs no memory."""
    levels, nx, ny, nz = cells.shape
    width = 1 << BITS
    for row in range(share, levels * coarse.shape[1], n_shares):
        level, i = row // coarse.shape[1], row % coarse.shape[1]
        for x in range(i * width, min(nx, (i + 1) * width)):
            for y in range(ny):
                for k in range(coarse.shape[3]):
                    found = False
                    for z in range(k * width, min(nz, (k + 1) * width)):
                        found |= cells[level, x, y, z]
                    coarse[level, i, y >> BITS, k] |= found


@helper
def steps_until(target, start, length):
    """How many intervals of a length must pass until the middle of the next one is at or beyond the target."""
    return max(math.ceil(min((target - start) / length - 0.5, FAR)), 0.0)


@helper
def ruling_grid(i, t_indices, hits, r, n_grids):
    """Which grid rules between crossing i and the next one, or -1: the one just entered, or after an exit the next to be left."""
    index = t_indices[r, i]
    if not hits[r, index % n_grids]:
        return -1
    if index < n_grids:
        return index
    after = t_indices[r, i + 1]
    return after - n_grids if after >= n_grids and hits[r, after - n_grids] else -1


@helper
def first_cell(o, d, r, a, t, low, size, n):
    """The cell along axis a in which ray r is at t, at the border the last one."""
    return min(max(int(math.floor((o[r, a] + t * d[r, a] - low) / size)), 0), n - 1)


@helper
def walls(o, d, r, a, low, size, cell):
    """The distance at which ray r leaves its cell along axis a, how much later it leaves the next one, and to which side."""
    if d[r, a] == 0:
        return np.inf, 0.0, 0
    if d[r, a] > 0:
        return (low + (cell + 1) * size - o[r, a]) / d[r, a], size / d[r, a], 1
    return (low + cell * size - o[r, a]) / d[r, a], -size / d[r, a], -1


@helper
def cells_between(t, end, o, d, r, cells, coarse, boxes, level, each, runs, full, n):
    """Append the stretches in the cells of one grid between two distances (Amanatides and Woo 1987); returns how many there are.

    Neighbouring occupied cells make one stretch, and empty ones none, unless `each` asks for every cell. Which of the three
    walls comes first is as random as a coin, so the step is taken by arithmetic: a branch would be guessed wrong every other time.
    """
    low = boxes[level]
    nx, ny, nz = cells.shape[1], cells.shape[2], cells.shape[3]
    sx, sy, sz = (low[3] - low[0]) / nx, (low[4] - low[1]) / ny, (low[5] - low[2]) / nz
    x = first_cell(o, d, r, 0, t, low[0], sx, nx)
    y = first_cell(o, d, r, 1, t, low[1], sy, ny)
    z = first_cell(o, d, r, 2, t, low[2], sz, nz)
    tx, gx, ux = walls(o, d, r, 0, low[0], sx, x)
    ty, gy, uy = walls(o, d, r, 1, low[1], sy, y)
    tz, gz, uz = walls(o, d, r, 2, low[2], sz, z)
    while True:
        leave = min(min(tx, ty), min(tz, end))
        if leave > t + SLIVER * (1 + abs(t)):
            occupied = coarse[level, x >> BITS, y >> BITS, z >> BITS] and cells[level, x, y, z]
            if occupied or each:
                if not each and n > 0 and runs[n - 1, 1] == t:
                    runs[n - 1, 1] = leave
                else:
                    runs[n, 0], runs[n, 1], full[n] = t, leave, occupied
                    n += 1
            t = leave
        if leave >= end:
            break
        along_x = tx <= leave
        along_y = (ty <= leave) & (not along_x)
        along_z = (not along_x) & (not along_y)
        x, tx = x + ux if along_x else x, tx + gx if along_x else tx
        y, ty = y + uy if along_y else y, ty + gy if along_y else ty
        z, tz = z + uz if along_z else z, tz + gz if along_z else tz
        if x < 0 or x >= nx or y < 0 or y >= ny or z < 0 or z >= nz:
            break
    if n > 0 and runs[n - 1, 1] == t:  # the last wall and the box's face are one, up to rounding
        runs[n - 1, 1] = end
    return n


@helper
def list_runs(o, d, r, cells, coarse, boxes, t_sorted, t_indices, hits, near, far, each, runs, full):
    """Write the stretches of one ray in occupied cells; returns their number and how far the ray was inside of any grid."""
    n, reached, n_grids = 0, near, boxes.shape[0]
    still = d[r, 0] == 0 and d[r, 1] == 0 and d[r, 2] == 0
    if still or not math.isfinite(near):
        return n, reached
    for i in range(2 * n_grids - 1):
        level = ruling_grid(i, t_indices, hits, r, n_grids)
        begin, end = max(t_sorted[r, i], near), min(t_sorted[r, i + 1], far)
        if level >= 0 and begin < end:
            n = cells_between(begin, end, o, d, r, cells, coarse, boxes, level, each, runs, full, n)
            reached = end
    return n, reached


@helper
def lattice_samples(runs, n_runs, reached, near, step, limit, starts, ends, joined, at):
    """Samples near + k step whose middle lies in a run. Returns where writing ended and where the ray was left."""
    k, first = 0.0, at
    for i in range(n_runs):
        last = steps_until(runs[i, 1], near, step)
        k = max(k, steps_until(runs[i, 0], near, step))
        begin = at
        while k < last and not (limit > 0 and at - first >= limit):
            starts[at], ends[at] = near + k * step, near + (k + 1) * step
            joined[at] = at > begin
            at += 1
            k += 1
        if limit > 0 and at - first >= limit:
            return at, near + k * step
    return at, near + max(k, steps_until(reached, near, step)) * step


@helper
def cone_samples(runs, full, n_runs, near, step, cone, limit, starts, ends, joined, at):
    """Samples as long as max(step, cone t). Empty cells are crossed in strides of the length at their entry."""
    t, first, continuous = near, at, False
    for i in range(n_runs):
        continuous = continuous and runs[i, 0] == runs[i - 1, 1]
        if not continuous:
            length = max(t * cone, step)
            t += steps_until(runs[i, 0], t, length) * length
        if not full[i]:
            length = max(t * cone, step)
            t += steps_until(runs[i, 1], t, length) * length
            continuous = False
        while full[i] and not (limit > 0 and at - first >= limit):
            length = max(t * cone, step)
            if t + 0.5 * length >= runs[i, 1]:
                break
            starts[at], ends[at], joined[at] = t, t + length, continuous
            continuous = True
            t += length
            at += 1
        if limit > 0 and at - first >= limit:
            break
    return at, t


@helper
def cell_samples(runs, full, n_runs, reached, limit, starts, ends, joined, at):
    """One sample for each occupied cell, from wall to wall."""
    first = at
    for i in range(n_runs):
        if full[i]:
            starts[at], ends[at] = runs[i, 0], runs[i, 1]
            joined[at] = at > first and full[i - 1] and runs[i, 0] == runs[i - 1, 1]
            at += 1
            if limit > 0 and at - first >= limit:
                return at, runs[i, 1]
    return at, reached


@helper
def samples_needed(runs, full, n_runs, step, limit):
    """No fewer than the samples that a ray can have."""
    if step <= 0:
        return n_runs
    most = 0.0
    for i in range(n_runs):
        if full[i]:
            most += (runs[i, 1] - runs[i, 0]) / step + 2
    return int(min(most, float(limit))) if limit > 0 else int(most)


@helper
def grown(values, size):
    more = np.empty(size, values.dtype)
    more[: values.shape[0]] = values
    return more


@kernel
def walk_rays(
    begin, end, o, d, wanted, cells, coarse, boxes, t_sorted, t_indices, hits, near, far, step, cone, limit, like, counts, ends_at
):
    """Return start, end and joined-to-the-one-before of all samples of the rays from begin to end, one ray after the other."""
    room = 32 * (end - begin)
    starts, ends, joined = np.empty(room, like.dtype), np.empty(room, like.dtype), np.empty(room, np.bool_)
    most = 2 * boxes.shape[0] * (cells.shape[1] + cells.shape[2] + cells.shape[3])
    runs, full = np.empty((most, 2)), np.empty(most, np.bool_)
    each = cone > 0 or step <= 0
    total = 0
    for r in range(begin, end):
        counts[r], ends_at[r] = 0, near[r]
        if not wanted[r]:
            continue
        n, reached = list_runs(o, d, r, cells, coarse, boxes, t_sorted, t_indices, hits, near[r], far[r], each, runs, full)
        before, needed = total, total + samples_needed(runs, full, n, step, limit)
        if needed > room:
            room = max(needed, 2 * room)
            starts, ends, joined = grown(starts, room), grown(ends, room), grown(joined, room)
        if step <= 0:
            total, t_last = cell_samples(runs, full, n, reached, limit, starts, ends, joined, total)
        elif cone > 0:
            total, t_last = cone_samples(runs, full, n, near[r], step, cone, limit, starts, ends, joined, total)
        else:
            total, t_last = lattice_samples(runs, n, reached, near[r], step, limit, starts, ends, joined, total)
        counts[r], ends_at[r] = total - before, t_last
    return starts[:total], ends[:total], joined[:total]


@kernel
def join_edges(starts, ends, joined, rays, vals, edge_rays, is_left, is_right):
    """Write the edges of all intervals; two that touch share one."""
    e = 0
    for i in range(starts.shape[0]):
        if not joined[i]:
            vals[e], edge_rays[e] = starts[i], rays[i]
            e += 1
        is_left[e - 1] = True
        vals[e], edge_rays[e], is_right[e] = ends[i], rays[i], True
        e += 1
