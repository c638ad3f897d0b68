"""Compiled weights along rays, from densities and from opacities, forward and backward: see `compositing.py`.

A ray's sums run one after the other, its exponentials side by side in vectors: the loop over a ray first fills small arrays that
stay in the cache, padded to whole vectors. An array of length zero stands for an output nobody wants or a gradient that is zero.
"""

from __future__ import annotations

import math

import numpy as np

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.saturation import HUGE, LARGEST, STEEPEST, cut, settled
from nsw.kernels.simd import LANES, load, store
from nsw.kernels.simd_decay import let_through, taken

f4 = np.float32
RAYS = 64
MOST, STEEP, BRIGHTEST = np.float64(LARGEST), np.float64(STEEPEST), 88.0  # exp(88) is about the largest float32


@helper
def longest(counts):
    most = 0
    for n in counts:
        most = max(most, n)
    return most


@kernel
def density_forward(depths, starts, counts, weights, trans, alphas, left, share, n_shares):
    """T_i = exp(-sum of depths before i), alpha_i = 1 - exp(-depth_i), w_i = T_i alpha_i; left = T behind the last sample."""
    n_rays = starts.shape[0]
    room = longest(counts) + LANES
    depth, before, clear = np.empty(room, f4), np.empty(room, f4), np.empty(room, f4)
    for block in range(share, (n_rays + RAYS - 1) // RAYS, n_shares):
        for r in range(block * RAYS, min(n_rays, (block + 1) * RAYS)):
            first, n = starts[r], counts[r]
            total = 0.0
            for i in range(n):
                depth[i] = cut(depths[first + i], LARGEST)
                before[i] = f4(cut(total, MOST))
                total += depth[i]
            for i in range(n, n + LANES):
                depth[i], before[i] = f4(0), f4(0)
            for i in range(0, n, LANES):
                store(clear, i, let_through(load(before, i)))
                store(depth, i, taken(load(depth, i)))
            for i in range(n):
                trans[first + i] = clear[i]
                weights[first + i] = cut(clear[i] * depth[i], LARGEST)
            if alphas.size:
                for i in range(n):
                    alphas[first + i] = depth[i]
            left[r] = math.exp(min(-total, BRIGHTEST))


@kernel
def density_backward(depths, starts, counts, weights, trans, left, g_weights, g_trans, g_alphas, g_left, out, share, n_shares):
    """Gradient of the depths. Behind a sample lies what it dims: d/dx_i = g_a e^(-x_i) + g_w T_(i+1) - sum behind i."""
    n_rays = starts.shape[0]
    for block in range(share, (n_rays + RAYS - 1) // RAYS, n_shares):
        for r in range(block * RAYS, min(n_rays, (block + 1) * RAYS)):
            behind = g_left[r] * left[r] if g_left.size else 0.0
            after = left[r]
            for q in range(starts[r] + counts[r] - 1, starts[r] - 1, -1):
                slope = -behind
                if g_weights.size:
                    slope += g_weights[q] * after
                    behind += g_weights[q] * weights[q]
                if g_trans.size:
                    behind += g_trans[q] * trans[q]
                if g_alphas.size:
                    slope += g_alphas[q] * math.exp(min(-np.float64(depths[q]), BRIGHTEST))
                out[q] = settled(slope, STEEP)
                after = trans[q]


@kernel
def alpha_forward(alphas, starts, counts, weights, trans, share, n_shares):
    """T_i = product of (1 - alpha_j) before i, w_i = T_i alpha_i."""
    n_rays = starts.shape[0]
    for block in range(share, (n_rays + RAYS - 1) // RAYS, n_shares):
        for r in range(block * RAYS, min(n_rays, (block + 1) * RAYS)):
            clear = 1.0
            for q in range(starts[r], starts[r] + counts[r]):
                trans[q] = clear
                weights[q] = clear * alphas[q]
                clear *= 1.0 - alphas[q]
            if not abs(clear) <= HUGE:  # too large somewhere, which stays so to the end: once more, with care
                clear = 1.0
                for q in range(starts[r], starts[r] + counts[r]):
                    trans[q], weights[q] = cut(clear, MOST), cut(clear * alphas[q], MOST)
                    clear = cut(clear * (1.0 - alphas[q]), HUGE)


@kernel
def alpha_backward(alphas, starts, counts, trans, g_weights, g_trans, out, share, n_shares):
    """Gradient of the opacities without a division by 1 - alpha, which may be zero.

    With G_k = g_T + g_w alpha_k: d/dalpha_i = T_i (g_w - R_i), where R_i = G_(i+1) + (1 - alpha_(i+1)) R_(i+1).
    """
    n_rays = starts.shape[0]
    for block in range(share, (n_rays + RAYS - 1) // RAYS, n_shares):
        for r in range(block * RAYS, min(n_rays, (block + 1) * RAYS)):
            behind = 0.0
            for q in range(starts[r] + counts[r] - 1, starts[r] - 1, -1):
                g = g_weights[q] if g_weights.size else f4(0)
                out[q] = settled(trans[q] * (g - behind), STEEP)
                behind = np.float64(g) * alphas[q] + (1.0 - alphas[q]) * behind
                if g_trans.size:
                    behind += g_trans[q]
