"""Weighted sums along rays: V_r = sum_i w_i v_i over the samples of ray r, batched or packed, in one compiled pass each way."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.kernels import accumulation_loops
from nsw.kernels.chunks import Chunks, batched_chunks, compiled, index_chunks, n_shares
from nsw.kernels.threads import run_shares


def accumulate_along_rays(
    weights: Float[Tensor, "*s"],
    values: Float[Tensor, "*s D"] | None = None,
    ray_indices: Int[Tensor, "M"] | None = None,
    n_rays: int | None = None,
) -> Float[Tensor, "n_rays D"]:
    """Return the weighted sum of values along each ray, or of the weights themselves (D = 1) without values.

    Args:
        weights: batched [n_rays, n_samples], or packed with `ray_indices` and `n_rays`.
        values: what is summed, one dimension more than the weights.

    >>> accumulate_along_rays(torch.tensor([0.5, 0.5, 1.0]), None, torch.tensor([0, 0, 2]), 3).tolist()
    [[1.0], [0.0], [1.0]]
    """
    if values is not None:
        assert values.dim() == weights.dim() + 1, "values need one dimension more than weights."
        assert weights.shape == values.shape[:-1], "values and weights must have the same samples."
    if ray_indices is not None:
        assert n_rays is not None, "n_rays must be provided with ray_indices."
        assert weights.dim() == 1, "weights must be flattened where ray_indices are given."
    if compiled(weights, *([] if values is None else [values])):
        chunks = batched_chunks(weights.shape) if ray_indices is None else index_chunks(ray_indices, n_rays)
        if chunks is not None:
            return accumulate_chunks(weights, values, chunks)
    return accumulate_reference(weights, values, ray_indices, n_rays)


def accumulate_reference(
    weights: Tensor, values: Tensor | None = None, ray_indices: Tensor | None = None, n_rays: int | None = None
) -> Tensor:
    """Return the same from plain torch calls; ray indices may come in any order."""
    source = weights[..., None] if values is None else weights[..., None] * values
    if ray_indices is None:
        return source.sum(-2)
    return source.new_zeros(n_rays, source.shape[-1]).index_add(0, ray_indices, source)


def accumulate_chunks(weights: Tensor, values: Tensor | None, chunks: Chunks) -> Tensor:
    """Return the sums for float32 tensors in the CPU's memory whose chunks are known."""
    return _Accumulate.apply(weights, values, chunks)


class _Accumulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights: Tensor, values: Tensor | None, chunks: Chunks) -> Tensor:
        ctx.save_for_backward(weights, values)
        ctx.chunks = chunks
        arrays = _arrays(weights, values)
        out = np.zeros((len(chunks.starts), max(arrays[1].shape[1], 1 if values is None else 0)), np.float32)
        run_shares(accumulation_loops.accumulate_forward, n_shares(weights.numel()), *arrays, *chunks, out)
        return torch.from_numpy(out).view(*(weights.shape[:-1] if weights.dim() > 1 else (len(out),)), out.shape[1])

    @staticmethod
    def backward(ctx, gradient: Tensor):
        weights, values = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            return *_differentiable(weights, values, ctx.chunks, gradient, ctx.needs_input_grad), None
        arrays = _arrays(weights, values)
        g_weights, g_values = (np.empty((0,) * a.ndim, np.float32) for a in arrays)
        if ctx.needs_input_grad[0]:
            g_weights = np.zeros_like(arrays[0])
        if values is not None and ctx.needs_input_grad[1]:
            g_values = np.zeros_like(arrays[1])
        grad = gradient.contiguous().numpy().reshape(len(ctx.chunks.starts), gradient.shape[-1])
        run_shares(
            accumulation_loops.accumulate_backward, n_shares(weights.numel()), *arrays, *ctx.chunks, grad, g_weights, g_values
        )
        of_weights = torch.from_numpy(g_weights).view(weights.shape) if ctx.needs_input_grad[0] else None
        of_values = torch.from_numpy(g_values).view(values.shape) if values is not None and ctx.needs_input_grad[1] else None
        return of_weights, of_values, None


def _arrays(weights: Tensor, values: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    flat = weights.detach().contiguous().numpy().reshape(-1)
    if values is None:
        return flat, np.empty((len(flat), 0), np.float32)
    return flat, values.detach().contiguous().numpy().reshape(len(flat), values.shape[-1])


def _differentiable(weights, values, chunks: Chunks, gradient: Tensor, needed) -> list[Tensor | None]:
    rays = torch.repeat_interleave(torch.arange(len(chunks.starts)), torch.from_numpy(chunks.counts))
    per_sample = gradient.reshape(len(chunks.starts), gradient.shape[-1])[rays].view(*weights.shape, gradient.shape[-1])
    of_weights = per_sample[..., 0] if values is None else (values * per_sample).sum(-1)
    of_values = None if values is None else weights[..., None] * per_sample
    return [of_weights if needed[0] else None, of_values if needed[1] else None]
