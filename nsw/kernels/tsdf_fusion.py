"""The sums of a truncated signed distance over many depth maps, in one compiled pass over the points of a grid.

`nsw.renderers.tsdf.fuse` says what they mean, and its `sums_reference` is the same in torch calls.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.cameras import Cameras
from nsw.kernels.compiling import kernel
from nsw.kernels.threads import n_threads, run_shares


def distance_sums(
    points: Float[Tensor, "N 3"],
    depth: Float[Tensor, "C H W"],
    known: Bool[Tensor, "C H W"],
    cameras: Cameras,
    reach: Float[Tensor, "N"],
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Return the sum of truncated distances at each point, in units of its `reach`, and how many views spoke; CPU.

    Args:
        depth: camera z; infinite where a pixel is known to see nothing.
        known: pixels that say something.
        reach: truncation at each point, world units.
    """
    total, count = torch.zeros(len(points)), torch.zeros(len(points))
    poses, Ks = (matrix.contiguous().float().numpy() for matrix in (cameras.cam_from_world, cameras.Ks))
    maps = depth.contiguous().float().numpy(), known.contiguous().numpy()
    places = points.contiguous().float().numpy(), reach.contiguous().float().numpy()
    run_shares(_sums, n_threads(), *places, *maps, poses, Ks, total.numpy(), count.numpy())
    return total, count


@kernel
def _sums(points, reaches, depth, known, poses, Ks, total, count, share, n_shares):
    n_views, height, width = depth.shape
    n = len(points)
    one, half = np.float32(1), np.float32(0.5)
    for i in range(n * share // n_shares, n * (share + 1) // n_shares):
        px, py, pz = points[i]
        reach = reaches[i]
        for c in range(n_views):
            R, K = poses[c], Ks[c]
            z = R[2, 0] * px + R[2, 1] * py + R[2, 2] * pz + R[2, 3]
            if not z > 0:
                continue
            u = (R[0, 0] * px + R[0, 1] * py + R[0, 2] * pz + R[0, 3]) / z
            v = (R[1, 0] * px + R[1, 1] * py + R[1, 2] * pz + R[1, 3]) / z
            x, y = K[0, 0] * u + K[0, 1] * v + K[0, 2] - half, K[1, 0] * u + K[1, 1] * v + K[1, 2] - half
            if not (x > -half and x < width - one + half and y > -half and y < height - one + half):
                continue
            column, row = min(max(int(np.rint(x)), 0), width - 1), min(max(int(np.rint(y)), 0), height - 1)
            if not known[c, row, column]:
                continue
            x0, y0 = int(np.floor(x)), int(np.floor(y))
            left, right = max(x0, 0), min(x0 + 1, width - 1)
            top, bottom = max(y0, 0), min(y0 + 1, height - 1)
            seen = depth[c, row, column]
            if known[c, top, left] and known[c, top, right] and known[c, bottom, left] and known[c, bottom, right]:
                a, b, d, e = depth[c, top, left], depth[c, top, right], depth[c, bottom, left], depth[c, bottom, right]
                if max(a, b, d, e) < min(a, b, d, e) + reach:  # one surface; two infinite ones are none
                    fx, fy = x - np.float32(x0), y - np.float32(y0)
                    seen = (one - fy) * ((one - fx) * a + fx * b) + fy * ((one - fx) * d + fx * e)
            distance = (seen - z) / reach
            if distance > -one:
                total[i] += min(distance, one)
                count[i] += one
