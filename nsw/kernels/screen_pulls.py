"""How hard the pictures pull on each splat, added up view by view: the statistic that density control grows by, in one sweep."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.kernels.compiling import kernel
from nsw.kernels.threads import n_threads, run_shares

ALONE = 20_000  # splats below which waking a thread costs more than it saves


@torch.no_grad()
def add_pulls(
    total: Float[Tensor, "N"], count: Float[Tensor, "N"], gradient: Float[Tensor, "*c N 2"], radii: Int[Tensor, "*c N 2"],
    scale_x: float, scale_y: float,
) -> None:  # fmt: skip
    """Where a view sees a splat (both radii > 0), add the length of its scaled gradient to `total`, and 1 to `count`, in place.

    >>> total, count = torch.zeros(2), torch.zeros(2)
    >>> add_pulls(total, count, torch.tensor([[[3.0, 2.0], [1.0, 1.0]]]), torch.tensor([[[1, 1], [0, 0]]]).int(), 1.0, 2.0)
    >>> total.tolist(), count.tolist()
    ([5.0, 0.0], [1.0, 0.0])
    """
    shape = (math.prod(radii.shape[:-2]), len(total), 2)
    gradient, radii = gradient.reshape(shape), radii.reshape(shape)
    if all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (total, count, gradient)) and radii.dtype == torch.int32:
        arrays = [t.detach().numpy() for t in (gradient.contiguous(), radii.contiguous(), total, count)]
        run_shares(_add, n_threads() if len(total) > ALONE else 1, *arrays, np.float32(scale_x), np.float32(scale_y))
        return
    visible = (radii > 0).all(-1)
    lengths = torch.where(visible, torch.hypot(gradient[..., 0] * scale_x, gradient[..., 1] * scale_y), 0.0)
    for seen, length in zip(visible, lengths, strict=True):  # view by view, as the kernel adds
        total += length
        count += seen


@kernel
def _add(gradient, radii, total, count, scale_x, scale_y, share, n_shares):
    n = len(total)
    for i in range(n * share // n_shares, n * (share + 1) // n_shares):
        for view in range(len(gradient)):
            if radii[view, i, 0] > 0 and radii[view, i, 1] > 0:
                # in float64, where squares neither overflow nor vanish
                x, y = np.float64(gradient[view, i, 0] * scale_x), np.float64(gradient[view, i, 1] * scale_y)
                total[i] += np.float32(math.sqrt(x * x + y * y))
                count[i] += np.float32(1)
