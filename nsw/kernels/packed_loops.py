"""Compiled sums and products along packed rays, and the gradient of the products: see `packed.py`.

Running values are kept in float64: a conversion is free beside the memory traffic, and long rays lose no digits.
"""

from __future__ import annotations

from nsw.kernels.compiling import kernel

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


@kernel
def product_gradient(values, starts, counts, exclusive, grad, out, share, n_shares):
    """Gradient of a running product without a division, so that factors of zero are served too.

    With E_i the product before i, d/dx_i = E_i S_i, where S collects from behind: S_i = g_i + x_(i+1) S_(i+1), or
    S_i = g_(i+1) + x_(i+1) S_(i+1) for the exclusive product, in which x_i does not appear at i itself.
    """
    n_rays = starts.shape[0]
    for block in range(share, (n_rays + RAYS - 1) // RAYS, n_shares):
        for r in range(block * RAYS, min(n_rays, (block + 1) * RAYS)):
            first, end = starts[r], starts[r] + counts[r]
            before = 1.0
            for q in range(first, end):
                out[q] = before
                before *= values[q]
            behind = 0.0
            for q in range(end - 1, first - 1, -1):
                if exclusive:
                    out[q] *= behind
                    behind = grad[q] + values[q] * behind
                else:
                    behind = grad[q] + behind
                    out[q] *= behind
                    behind *= values[q]
