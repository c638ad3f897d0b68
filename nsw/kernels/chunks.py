"""Where each ray's samples lie in flat memory: one start and one count a ray, for batched and for packed samples alike.

A batched tensor [R, S] is flat memory whose ray r starts at r * S and has S samples, so one kernel serves both layouts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nsw.kernels.compiling import kernel

LEAST_WORK = 1 << 14  # fewer samples than this in a share cost more to hand over than to do


class Chunks(NamedTuple):
    """Start and count of each ray's samples, int64 [n_rays]."""

    starts: np.ndarray
    counts: np.ndarray

    @property
    def packed_info(self) -> Tensor:
        return torch.from_numpy(np.stack([self.starts, self.counts], axis=-1))


def compiled(*tensors: Tensor) -> bool:
    """Return whether the differentiable kernels serve these tensors: float32 in the CPU's memory."""
    return all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)


def n_shares(n_samples: int) -> int:
    """Return among how many threads to divide a kernel's work.

    >>> n_shares(100)
    1
    """
    return max(1, min(torch.get_num_threads(), n_samples // LEAST_WORK))


def batched_chunks(shape: torch.Size) -> Chunks:
    """Return the chunks of a contiguous batched tensor, one for each row of its last dimension.

    >>> batched_chunks(torch.Size([2, 3])).starts.tolist()
    [0, 3]
    """
    n_rays = int(np.prod(shape[:-1], dtype=np.int64))
    return Chunks(np.arange(n_rays, dtype=np.int64) * shape[-1], np.full(n_rays, shape[-1], np.int64))


def packed_chunks(packed_info: Tensor, n_samples: int) -> Chunks:
    """Return the chunks that `packed_info` names, after a check that all of them lie inside the tensor."""
    starts, counts = np.ascontiguousarray(packed_info.detach().long().numpy().T)
    if len(starts) and (min(starts.min(), counts.min()) < 0 or (starts + counts).max() > n_samples):
        raise ValueError(f"packed_info names samples outside of the {n_samples} that there are.")
    return Chunks(starts, counts)


def index_chunks(ray_indices: Tensor, n_rays: int) -> Chunks | None:
    """Return the chunks of ascending ray indices, or None where they do not ascend.

    Raises:
        IndexError: an index is negative, or not less than `n_rays`.
    """
    rays = ray_indices.detach().long().contiguous().numpy()
    starts = np.empty(n_rays + 1, np.int64)
    found = _find_starts(rays, starts)
    if found == _OUTSIDE:
        raise IndexError(f"ray_indices holds indices outside of the {n_rays} rays.")
    return Chunks(starts[:-1], np.diff(starts)) if found == _ASCENDING else None


_ASCENDING, _UNSORTED, _OUTSIDE = 0, 1, 2


@kernel
def _find_starts(rays, starts):
    n, n_rays = rays.shape[0], starts.shape[0] - 1
    last = -1
    descents = 0
    for i in range(n):
        if rays[i] != last or i == 0:
            if rays[i] < 0 or rays[i] >= n_rays:
                return 2
            descents += rays[i] < last
            for r in range(last + 1, rays[i] + 1):
                starts[r] = i
            last = rays[i]
    for r in range(last + 1, n_rays + 1):
        starts[r] = n
    return 1 if descents else 0
