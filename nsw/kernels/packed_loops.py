"""Compiled sums and products along packed rays, and the gradient of the products: see `packed.py`.

Running values are kept in float64: a conversion is free beside the memory traffic, and long rays lose no digits.
"""

from __future__ import annotations

import numpy as np

from nsw.kernels.compiling import kernel
from nsw.kernels.compositing_loops import longest
from nsw.kernels.saturation import HUGE, STEEPEST, cut, settled

STEEP = np.float64(STEEPEST)
RAYS = 64  # a thread takes this many rays at once


@kernel
def scan(values, starts, counts, product, exclusive, reverse, out, share, n_shares):
    """out[q] = the sum (or product) of its ray's values up to q."""
    n_rays = starts.shape[0]
    for block in range(share, (n_rays + RAYS - 1) // RAYS, n_shares):
        for r in range(block * RAYS, min(n_rays, (block + 1) * RAYS)):
            q = starts[r] + counts[r] - 1 if reverse else starts[r]
            stride = -1 if reverse else 1
            total = 1.0 if product else 0.0
            for _ in range(counts[r]):
                before = total
                total = total * values[q] if product else total + values[q]
                out[q] = before if exclusive else total
                q += stride
            if product and not abs(total) <= HUGE:  # too large somewhere, which stays so to the end: once more, with care
                total, q = 1.0, starts[r] + counts[r] - 1 if reverse else starts[r]
                for _ in range(counts[r]):
                    before = total
                    total = cut(total * values[q], HUGE)
                    out[q] = before if exclusive else total
                    q += stride


@kernel
def product_gradient(values, starts, counts, exclusive, grad, out, share, n_shares):
    """Gradient of a running product without a division, so that factors of zero are served too.

    With E_i the product before i, d/dx_i = E_i S_i, where S collects from behind: S_i = g_i + x_(i+1) S_(i+1), or
    S_i = g_(i+1) + x_(i+1) S_(i+1) for the exclusive product, in which x_i does not appear at i itself.
    """
    n_rays = starts.shape[0]
    befores = np.empty(longest(counts), np.float64)
    for block in range(share, (n_rays + RAYS - 1) // RAYS, n_shares):
        for r in range(block * RAYS, min(n_rays, (block + 1) * RAYS)):
            first, n = starts[r], counts[r]
            before = 1.0
            for i in range(n):
                befores[i] = before
                before *= values[first + i]
            behind = 0.0
            for i in range(n - 1, -1, -1):
                q = first + i
                if exclusive:
                    out[q] = settled(befores[i] * behind, STEEP)
                    behind = grad[q] + values[q] * behind
                else:
                    behind = grad[q] + behind
                    out[q] = settled(befores[i] * behind, STEEP)
                    behind *= values[q]
