"""What is known about intervals and samples along rays, batched [n_rays, n] or packed [all]; nerfacc's two containers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class RaySamples:
    """Samples of rays: `vals` is [n_rays, n_samples], or [all_samples] with `packed_info` or `ray_indices`.

    Attributes:
        is_valid: which entries of packed memory hold a sample, where more was reserved than used.
    """

    vals: Tensor
    packed_info: Tensor | None = None
    ray_indices: Tensor | None = None
    is_valid: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.vals.device


@dataclass
class RayIntervals:
    """Interval edges of rays: `vals` is [n_rays, n_edges], or [all_edges] with `packed_info` or `ray_indices`.

    Attributes:
        is_left, is_right: which packed edges begin and which end an interval; an edge between two neighbours does both.
    """

    vals: Tensor
    packed_info: Tensor | None = None
    ray_indices: Tensor | None = None
    is_left: Tensor | None = None
    is_right: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.vals.device
