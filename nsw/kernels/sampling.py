"""Searching and resampling intervals along rays on the CPU: nerfacc's `searchsorted` and `importance_sampling`."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.kernels import sampling_loops
from nsw.kernels.chunks import Chunks, batched_chunks, index_chunks, n_shares, packed_chunks
from nsw.kernels.ray_segments import RayIntervals, RaySamples
from nsw.kernels.threads import run_shares

Segments = RayIntervals | RaySamples


def _chunks(segments: Segments) -> Chunks:
    """Return where each ray's values lie, for batched segments of any number of dimensions and for packed ones."""
    if segments.vals.device.type != "cpu":
        raise NotImplementedError("nsw.kernels samples on the CPU: move the tensors there, or call nerfacc on CUDA tensors.")
    if segments.vals.ndim > 1:
        return batched_chunks(segments.vals.shape)
    if segments.packed_info is not None:
        return packed_chunks(segments.packed_info, len(segments.vals))
    if segments.ray_indices is None:
        raise RuntimeError("flattened values need packed_info or ray_indices.")
    rays = segments.ray_indices
    chunks = index_chunks(rays, int(rays.max()) + 1 if len(rays) else 0)
    if chunks is None:
        raise RuntimeError("ray_indices must ascend.")
    return chunks


@torch.no_grad()
def searchsorted(sorted_sequence: Segments, values: Segments) -> tuple[Int[Tensor, "*shape"], Int[Tensor, "*shape"]]:
    """Return between which two entries of a ray's ascending sequence each of its values lies.

    A value outside of the range gets the two places at that end. Places count from the ray's first entry where the
    values are batched, and from the first of the flat tensor where they are packed.

    >>> sequence = RayIntervals(torch.tensor([0.0, 1.0, 0.0, 1.0, 2.0]), packed_info=torch.tensor([[0, 2], [2, 3]]))
    >>> values = RayIntervals(torch.tensor([0.5, 1.5, 2.5]), packed_info=torch.tensor([[0, 1], [1, 2]]))
    >>> [ids.tolist() for ids in searchsorted(sequence, values)]
    [[0, 3, 3], [1, 4, 4]]
    """
    keys, queries = (s.vals.detach().contiguous().numpy().reshape(-1) for s in (sorted_sequence, values))
    chunks, asked = _chunks(sorted_sequence), _chunks(values)
    if len(chunks.starts) < len(asked.starts):
        raise RuntimeError(f"{len(asked.starts)} rays have values, but {len(chunks.starts)} a sequence to search in.")
    batched = values.vals.ndim > 1
    rays = np.empty(0, np.int64) if batched else np.repeat(np.arange(len(asked.starts), dtype=np.int64), asked.counts)
    left, right = np.empty(len(queries), np.int64), np.empty(len(queries), np.int64)
    options = (values.vals.shape[-1] if batched else 1, batched, left, right)
    run_shares(sampling_loops.search, n_shares(len(queries)), keys, *chunks, queries, rays, *options)
    return tuple(torch.from_numpy(ids).view(values.vals.shape) for ids in (left, right))


@torch.no_grad()
def importance_sampling(
    intervals: RayIntervals,
    cdfs: Float[Tensor, "*shape"],
    n_intervals_per_ray: Int[Tensor, "n_rays"] | int,
    stratified: bool = False,
) -> tuple[RayIntervals, RaySamples]:
    """Return intervals and samples drawn from a distribution given by its cumulative sums at the interval edges.

    The i-th sample inverts the cumulative distribution at the middle of the i-th of n equal parts of its range, moved by
    one random shift a ray when stratified. New edges lie half-way between samples, and as far beyond the outer ones,
    inside the old range.

    Args:
        intervals: edges, ascending along each ray, batched or packed.
        cdfs: cumulative distribution at the edges, ascending.
        n_intervals_per_ray: how many intervals each ray gets. A number gives batched results, a tensor [n_rays] packed ones.

    >>> edges, cdf = RayIntervals(torch.tensor([[0.0, 1.0, 2.0]])), torch.tensor([[0.0, 0.5, 1.0]])
    >>> new, samples = importance_sampling(edges, cdf, 2)
    >>> new.vals.tolist(), samples.vals.tolist()
    ([[0.0, 1.0, 2.0]], [[0.5, 1.5]])
    """
    if cdfs.numel() != intervals.vals.numel():
        raise RuntimeError(f"cdfs must have one entry for each of {intervals.vals.numel()} edges, not {cdfs.numel()}.")
    chunks = _chunks(intervals)
    n_rays, packed = len(chunks.starts), isinstance(n_intervals_per_ray, Tensor)
    counts = n_intervals_per_ray.long().reshape(-1).numpy() if packed else np.full(n_rays, int(n_intervals_per_ray), np.int64)
    if len(counts) != n_rays:
        raise RuntimeError(f"n_intervals_per_ray must have one entry for each of {n_rays} rays, not {len(counts)}.")
    out = Chunks(np.cumsum(counts) - counts, counts)
    gap = np.cumsum(counts > 0) - (counts > 0)
    vals = intervals.vals.detach().contiguous()
    shifts = torch.rand(n_rays, dtype=vals.dtype) if stratified else torch.full((n_rays,), 0.5, dtype=vals.dtype)
    samples, edges = vals.new_zeros(int(counts.sum())), vals.new_zeros(int((counts + (counts > 0)).sum()))
    arrays = [t.detach().to(vals.dtype).contiguous().numpy().reshape(-1) for t in (vals, cdfs)]
    outputs = (samples.numpy(), edges.numpy(), gap)
    run_shares(sampling_loops.resample, n_shares(len(samples)), *arrays, *chunks, shifts.numpy(), *out, *outputs)
    if packed:
        return _packed(edges, samples, out)
    rows = intervals.vals.shape[:-1] if intervals.vals.ndim > 1 else (n_rays,)
    n = int(n_intervals_per_ray)
    return RayIntervals(edges.view(*rows, n + 1 if n else 0)), RaySamples(samples.view(*rows, n))


def _packed(edges: Tensor, samples: Tensor, out: Chunks) -> tuple[RayIntervals, RaySamples]:
    """Return packed containers for rays that got different numbers of samples."""
    info, rays = out.packed_info, torch.arange(len(out.counts))
    counts = info[:, 1] + (info[:, 1] > 0)
    edge_info = torch.stack([counts.cumsum(0) - counts, counts], dim=-1)
    edge_rays = torch.repeat_interleave(rays, counts)
    place = torch.arange(len(edges)) - edge_info[edge_rays, 0]
    flags = place < counts[edge_rays] - 1, place > 0
    return (
        RayIntervals(edges, edge_info, edge_rays, *flags),
        RaySamples(samples, info, torch.repeat_interleave(rays, info[:, 1])),
    )
