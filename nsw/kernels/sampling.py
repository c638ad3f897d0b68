"""Resampling intervals on the CPU: nerfacc's `importance_sampling` for batched rays, by the same name and arguments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class RayIntervals:
    """Interval edges of rays; `vals` is [n_rays, n_edges]."""

    vals: Tensor
    packed_info: Tensor | None = None
    ray_indices: Tensor | None = None
    is_left: Tensor | None = None
    is_right: Tensor | None = None


@dataclass
class RaySamples:
    """Samples of rays; `vals` is [n_rays, n_samples]."""

    vals: Tensor
    packed_info: Tensor | None = None
    ray_indices: Tensor | None = None
    is_valid: Tensor | None = None


@torch.no_grad()
def importance_sampling(
    intervals: RayIntervals, cdfs: Float[Tensor, "n_rays n_edges"], n_intervals_per_ray: int, stratified: bool = False
) -> tuple[RayIntervals, RaySamples]:
    """Return intervals and samples drawn from a distribution given by its cumulative sums at the interval edges.

    The i-th sample inverts the cumulative distribution at the middle of the i-th of n equal parts of its range, moved by
    one random shift a ray when stratified. New edges lie half-way between samples, and as far beyond the outer ones,
    inside the old range.

    Args:
        intervals: batched edges, ascending along each ray.
        cdfs: cumulative distribution at the edges, ascending.
        n_intervals_per_ray: how many intervals each ray gets.

    Raises:
        NotImplementedError: for packed intervals, or a tensor of counts, which need CUDA.

    >>> edges, cdf = RayIntervals(torch.tensor([[0.0, 1.0, 2.0]])), torch.tensor([[0.0, 0.5, 1.0]])
    >>> new, samples = importance_sampling(edges, cdf, 2)
    >>> new.vals.tolist(), samples.vals.tolist()
    ([[0.0, 1.0, 2.0]], [[0.5, 1.5]])
    """
    t = intervals.vals
    if t.ndim != 2 or intervals.packed_info is not None or not isinstance(n_intervals_per_ray, int):
        raise NotImplementedError(
            "On the CPU importance_sampling takes batched [n_rays, n_edges] intervals and one count for all rays."
        )
    n = n_intervals_per_ray
    first, last = cdfs[:, :1], cdfs[:, -1:]
    shift = torch.rand_like(first) if stratified else torch.full_like(first, 0.5)
    u = first + (torch.arange(n, device=t.device, dtype=t.dtype) + shift) / n * (last - first)
    right = torch.searchsorted(cdfs.contiguous(), u, right=True).clamp(1, t.shape[1] - 1)
    low, high = cdfs.gather(1, right - 1), cdfs.gather(1, right)
    t_low, t_high = t.gather(1, right - 1), t.gather(1, right)
    flat = high - low <= torch.finfo(t.dtype).eps  # a bin without mass has no slope to invert
    share = torch.where(flat, 0.5, (u - low) / torch.where(flat, 1.0, high - low)).clamp(0, 1)
    samples = t_low + share * (t_high - t_low)
    between = (samples[:, 1:] + samples[:, :-1]) / 2
    edges = (
        torch.cat([2 * samples[:, :1] - between[:, :1], between, 2 * samples[:, -1:] - between[:, -1:]], 1)
        if n > 1
        else t[:, [0, -1]]
    )
    return RayIntervals(edges.clamp(t[:, :1], t[:, -1:])), RaySamples(samples)
