"""Compiled searching and resampling along rays: see `sampling.py`."""

from __future__ import annotations

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.saturation import LARGEST, cut


@helper
def first_above(values, base, last, wanted):
    """The first place from base up to last whose value exceeds the wanted one; last where none before it does."""
    while base < last:
        middle = base + ((last - base) >> 1)
        if values[middle] > wanted:
            last = middle
        else:
            base = middle + 1
    return base


@kernel
def search(keys, starts, counts, queries, rays, per_ray, relative, left, right, share, n_shares):
    """left and right neighbour of each query among the keys of its ray; rays are `rays`, or query number // per_ray."""
    n = queries.shape[0]
    for q in range(share * n // n_shares, (share + 1) * n // n_shares):
        r = rays[q] if rays.size else q // per_ray
        base, last = starts[r], starts[r] + counts[r] - 1
        place = first_above(keys, base, last, queries[q])
        shift = base if relative else 0
        left[q] = max(min(place - 1, last), base) - shift
        right[q] = max(min(place, last), base) - shift


@kernel
def resample(edges, cdfs, starts, counts, shifts, out_starts, out_counts, samples, new_edges, gap, share, n_shares):
    """Invert each ray's cumulative distribution at equal steps; `gap` edges more than samples lie before each ray's first one."""
    n_rays = starts.shape[0]
    for r in range(share * n_rays // n_shares, (share + 1) * n_rays // n_shares):
        n, first = out_counts[r], out_starts[r]
        if n == 0 or counts[r] == 0:
            continue
        base, last = starts[r], starts[r] + counts[r] - 1
        floor, stride = cdfs[base], (cdfs[last] - cdfs[base]) / n
        place, before, slope = base, base, 0.0
        for i in range(n):
            u = floor + (i + shifts[r]) * stride
            if i == 0 or (place < last and cdfs[place] <= u):
                while place < last and cdfs[place] <= u:
                    place += 1
                before = max(place - 1, base)
                mass = cdfs[place] - cdfs[before]
                flat = mass < 1e-10  # a bin without mass has no slope to invert
                slope = 0.0 if flat else (edges[place] - edges[before]) / mass
                start = (edges[before] + edges[place]) * 0.5 if flat else edges[before]
            found = start + (u - cdfs[before]) * slope
            samples[first + i] = cut(found if found == found else start, LARGEST)
        out = first + gap[r]
        if n == 1:
            new_edges[out], new_edges[out + 1] = edges[base], edges[last]
            continue
        new_edges[out] = max(samples[first] - (samples[first + 1] - samples[first]) * 0.5, edges[base])
        for i in range(1, n):
            new_edges[out + i] = cut((samples[first + i] + samples[first + i - 1]) * 0.5, LARGEST)
        end = first + n - 1
        new_edges[out + n] = min(samples[end] + (samples[end] - samples[end - 1]) * 0.5, edges[last])
