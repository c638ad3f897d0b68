"""Packed samples on the CPU: nerfacc's `pack_info` and scans, by the same names, arguments and returns.

Rays that carry different numbers of samples are stored one after another in flat tensors; `packed_info` [n_rays, 2]
holds where each ray's chunk starts and how many samples it has. float32 runs in `packed_loops.py`, everything else in
`packed_reference.py`; batched sums are torch's own. Gradients of all of them can be differentiated again.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.kernels import packed_loops
from nsw.kernels.chunks import batched_chunks, compiled, index_chunks, n_shares, packed_chunks
from nsw.kernels.packed_reference import batched_scan, scan_reference
from nsw.kernels.threads import run_shares


@torch.no_grad()
def pack_info(ray_indices: Int[Tensor, "M"], n_rays: int | None = None) -> Int[Tensor, "n_rays 2"]:
    """Return the start and count of each ray's samples.

    Args:
        ray_indices: ray of each sample, ascending.
        n_rays: number of rays; by default the largest index plus one.

    >>> pack_info(torch.tensor([0, 0, 2]), n_rays=3).tolist()
    [[0, 2], [2, 0], [2, 1]]
    """
    assert ray_indices.dim() == 1, "ray_indices must have one dimension, one index for each sample."
    if n_rays is None:
        n_rays = int(ray_indices.max()) + 1 if len(ray_indices) else 0
    if ray_indices.device.type == "cpu":
        chunks = index_chunks(ray_indices, n_rays)
        if chunks is not None:
            return chunks.packed_info.to(ray_indices.dtype)
    counts = counts_of(ray_indices, n_rays)
    return torch.stack([counts.cumsum(0) - counts, counts], dim=-1)


def counts_of(ray_indices: Int[Tensor, "M"], n_rays: int) -> Int[Tensor, "n_rays"]:
    """Return how many samples each ray has; `torch.bincount` would halt a GPU to look for the largest index.

    >>> counts_of(torch.tensor([0, 0, 2]), 3).tolist()
    [2, 0, 1]
    """
    return ray_indices.new_zeros(n_rays).index_add_(0, ray_indices, torch.ones_like(ray_indices))


def inclusive_sum(inputs: Float[Tensor, "*shape"], packed_info: Int[Tensor, "n_rays 2"] | None = None) -> Float[Tensor, "*shape"]:
    """Return running sums along the last dimension, or along each ray of a packed tensor.

    >>> inclusive_sum(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([[0, 2], [2, 1]])).tolist()
    [1.0, 3.0, 5.0]
    """
    return _scan(inputs, packed_info, product=False, exclusive=False)


def exclusive_sum(inputs: Float[Tensor, "*shape"], packed_info: Int[Tensor, "n_rays 2"] | None = None) -> Float[Tensor, "*shape"]:
    """Return running sums of what lies before each element.

    >>> exclusive_sum(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([[0, 2], [2, 1]])).tolist()
    [0.0, 1.0, 0.0]
    """
    return _scan(inputs, packed_info, product=False, exclusive=True)


def inclusive_prod(inputs: Float[Tensor, "*shape"], packed_info: Int[Tensor, "n_rays 2"] | None = None) -> Float[Tensor, "*shape"]:
    """Return running products along the last dimension, or along each ray of a packed tensor.

    >>> inclusive_prod(torch.tensor([3.0, 2.0, 5.0]), torch.tensor([[0, 2], [2, 1]])).tolist()
    [3.0, 6.0, 5.0]
    """
    return _scan(inputs, packed_info, product=True, exclusive=False)


def exclusive_prod(inputs: Float[Tensor, "*shape"], packed_info: Int[Tensor, "n_rays 2"] | None = None) -> Float[Tensor, "*shape"]:
    """Return running products of what lies before each element.

    >>> exclusive_prod(torch.tensor([0.5, 0.5, 0.1]), torch.tensor([[0, 2], [2, 1]])).tolist()
    [1.0, 0.5, 1.0]
    """
    return _scan(inputs, packed_info, product=True, exclusive=True)


def _scan(inputs: Tensor, packed_info: Tensor | None, product: bool, exclusive: bool) -> Tensor:
    if packed_info is None and product and compiled(inputs) and inputs.dim() > 0:
        return _Product.apply(inputs.reshape(-1), batched_chunks(inputs.shape).packed_info, exclusive, False).view(inputs.shape)
    if packed_info is None:
        return batched_scan(inputs, product, exclusive)
    assert inputs.dim() == 1, "inputs must be flattened where packed_info is given."
    assert packed_info.dim() == 2 and packed_info.shape[-1] == 2, "packed_info must have the shape (n_rays, 2)."
    if not compiled(inputs):
        return scan_reference(inputs, packed_info, product, exclusive)
    return (_Product if product else _Sum).apply(inputs, packed_info, exclusive, False)


def _run_scan(inputs: Tensor, packed_info: Tensor, product: bool, exclusive: bool, reverse: bool) -> Tensor:
    values = inputs.detach().contiguous().numpy()
    out = np.zeros_like(values)
    chunks = packed_chunks(packed_info, len(values))
    run_shares(packed_loops.scan, n_shares(len(values)), values, *chunks, product, exclusive, reverse, out)
    return torch.from_numpy(out)


class _Sum(torch.autograd.Function):
    """The gradient of a running sum is the running sum of the gradient from the other end."""

    @staticmethod
    def forward(ctx, inputs: Tensor, packed_info: Tensor, exclusive: bool, reverse: bool) -> Tensor:
        ctx.save_for_backward(packed_info)
        ctx.direction = (exclusive, reverse)
        return _run_scan(inputs, packed_info, False, exclusive, reverse)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        exclusive, reverse = ctx.direction
        return _Sum.apply(gradient, ctx.saved_tensors[0], exclusive, not reverse), None, None, None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs: Tensor, packed_info: Tensor, exclusive: bool, reverse: bool) -> Tensor:
        ctx.save_for_backward(inputs, packed_info)
        ctx.exclusive = exclusive
        return _run_scan(inputs, packed_info, True, exclusive, reverse)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        inputs, packed_info = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            found = scan_reference(inputs, packed_info, product=True, exclusive=ctx.exclusive)
            return torch.autograd.grad(found, inputs, gradient, create_graph=True)[0], None, None, None
        values, grad = (t.detach().contiguous().numpy() for t in (inputs, gradient))
        out = np.zeros_like(values)
        chunks = packed_chunks(packed_info, len(values))
        run_shares(packed_loops.product_gradient, n_shares(len(values)), values, *chunks, ctx.exclusive, grad, out)
        return torch.from_numpy(out), None, None, None
