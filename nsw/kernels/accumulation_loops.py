"""Compiled weighted sums along rays, forward and backward: see `accumulation.py`."""

from __future__ import annotations

import numpy as np

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.saturation import LARGEST, STEEPEST, cut, settled

f4 = np.float32
RAYS = 64
MOST = np.float64(LARGEST)


@helper
def settle_sum(found, weights, values, first, end, k):
    """A ray's sum, cut to what float32 holds; added up again in float64 where terms of both signs were too large."""
    if not abs(found) <= MOST:
        found = 0.0
        for q in range(first, end):
            found += np.float64(weights[q]) * np.float64(values[q, k])
    return cut(found, MOST)


@kernel
def accumulate_forward(weights, values, starts, counts, out, share, n_shares):
    """out[r] = sum of weight * values over the samples of ray r; of the weights where values has no columns."""
    n_rays, width = starts.shape[0], values.shape[1]
    for block in range(share, (n_rays + RAYS - 1) // RAYS, n_shares):
        for r in range(block * RAYS, min(n_rays, (block + 1) * RAYS)):
            first, end = starts[r], starts[r] + counts[r]
            if width == 0:
                total = 0.0
                for q in range(first, end):
                    total += weights[q]
                out[r, 0] = cut(total, MOST)
            elif width == 3:  # colours: three registers instead of memory
                a, b, c = 0.0, 0.0, 0.0
                for q in range(first, end):
                    w = weights[q]
                    a, b, c = a + w * values[q, 0], b + w * values[q, 1], c + w * values[q, 2]
                out[r, 0] = settle_sum(a, weights, values, first, end, 0)
                out[r, 1] = settle_sum(b, weights, values, first, end, 1)
                out[r, 2] = settle_sum(c, weights, values, first, end, 2)
            else:
                for q in range(first, end):
                    for k in range(width):
                        out[r, k] += weights[q] * values[q, k]
                for k in range(width):
                    if not abs(out[r, k]) <= LARGEST:
                        out[r, k] = settle_sum(np.float64(out[r, k]), weights, values, first, end, k)


@kernel
def accumulate_backward(weights, values, starts, counts, grad, g_weights, g_values, share, n_shares):
    n_rays, width = starts.shape[0], values.shape[1]
    for block in range(share, (n_rays + RAYS - 1) // RAYS, n_shares):
        for r in range(block * RAYS, min(n_rays, (block + 1) * RAYS)):
            for q in range(starts[r], starts[r] + counts[r]):
                if g_weights.size:
                    slope = grad[r, 0] if width == 0 else f4(0)
                    for k in range(width):
                        slope += values[q, k] * grad[r, k]
                    g_weights[q] = settled(slope, STEEPEST)
                if g_values.size:
                    for k in range(width):
                        g_values[q, k] = weights[q] * grad[r, k]
