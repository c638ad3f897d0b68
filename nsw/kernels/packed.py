"""Packed samples on the CPU: nerfacc's `pack_info` and scans, by the same names, arguments and returns.

Rays that carry different numbers of samples are stored one after another in flat tensors; `packed_info` [n_rays, 2]
holds where each ray's chunk starts and how many samples it has. Plain torch, differentiable twice.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


@torch.no_grad()
def pack_info(ray_indices: Int[Tensor, "M"], n_rays: int | None = None) -> Int[Tensor, "n_rays 2"]:
    """Return the start and count of each ray's samples.

    Args:
        ray_indices: ray of each sample, ascending.
        n_rays: number of rays; by default the largest index plus one.

    >>> pack_info(torch.tensor([0, 0, 2]), n_rays=3).tolist()
    [[0, 2], [2, 0], [2, 1]]
    """
    if n_rays is None:
        n_rays = int(ray_indices.max()) + 1 if len(ray_indices) else 0
    counts = torch.bincount(ray_indices, minlength=n_rays).to(ray_indices.dtype)
    return torch.stack([counts.cumsum(0) - counts, counts], dim=-1)


def _slots(packed_info: Int[Tensor, "n_rays 2"], n_samples: int) -> tuple[Int[Tensor, "M"], int]:
    """Return where each sample lies in a table of n_rays x longest ray, and the length of the longest ray."""
    starts, counts = packed_info.unbind(-1)
    longest = int(counts.max()) if len(counts) else 0
    rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts, output_size=n_samples)
    return torch.arange(n_samples, device=counts.device) - starts[rows] + rows * longest, longest


def _scan(values: Tensor, exclusive: bool, reverse: bool) -> Tensor:
    """Return cumulative sums along the last dimension, without the own element if exclusive, from the end if reverse."""
    values = values.flip(-1) if reverse else values
    if exclusive:  # shifted, not `cumsum - values`: an infinite density must not turn into inf - inf
        values = torch.nn.functional.pad(values[..., :-1], (1, 0))
    total = values.cumsum(-1)
    return total.flip(-1) if reverse else total


class _PackedSum(torch.autograd.Function):
    """A scan in a padded table: no ray can leak rounding, infinity or NaN into the next, as one global scan would."""

    @staticmethod
    def forward(ctx, inputs: Tensor, packed_info: Tensor, exclusive: bool, reverse: bool) -> Tensor:
        ctx.save_for_backward(packed_info)
        ctx.direction = (exclusive, reverse)
        if len(inputs) == 0:
            return inputs.clone()
        slots, longest = _slots(packed_info, len(inputs))
        table = inputs.new_zeros(len(packed_info) * longest)
        table[slots] = inputs
        return _scan(table.view(-1, longest), exclusive, reverse).view(-1)[slots]

    @staticmethod
    def backward(ctx, gradient: Tensor):
        exclusive, reverse = ctx.direction
        return _PackedSum.apply(gradient, ctx.saved_tensors[0], exclusive, not reverse), None, None, None


def inclusive_sum(inputs: Float[Tensor, "*shape"], packed_info: Int[Tensor, "n_rays 2"] | None = None) -> Float[Tensor, "*shape"]:
    """Return running sums along the last dimension, or along each ray of a packed tensor.

    >>> inclusive_sum(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([[0, 2], [2, 1]])).tolist()
    [1.0, 3.0, 5.0]
    """
    return inputs.cumsum(-1) if packed_info is None else _PackedSum.apply(inputs, packed_info, False, False)


def exclusive_sum(inputs: Float[Tensor, "*shape"], packed_info: Int[Tensor, "n_rays 2"] | None = None) -> Float[Tensor, "*shape"]:
    """Return running sums of what lies before each element.

    >>> exclusive_sum(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([[0, 2], [2, 1]])).tolist()
    [0.0, 1.0, 0.0]
    """
    return _scan(inputs, True, False) if packed_info is None else _PackedSum.apply(inputs, packed_info, True, False)


def _packed_prod(inputs: Tensor, packed_info: Tensor, exclusive: bool) -> Tensor:
    if len(inputs) == 0:
        return inputs.clone()
    slots, longest = _slots(packed_info, len(inputs))
    table = inputs.new_ones(len(packed_info) * longest).index_put((slots,), inputs).view(-1, longest)
    return _scan_prod(table, exclusive).reshape(-1)[slots]


def _scan_prod(table: Tensor, exclusive: bool) -> Tensor:
    if exclusive:
        table = torch.nn.functional.pad(table[..., :-1], (1, 0), value=1.0)
    return table.cumprod(-1)


def inclusive_prod(inputs: Float[Tensor, "*shape"], packed_info: Int[Tensor, "n_rays 2"] | None = None) -> Float[Tensor, "*shape"]:
    """Return running products along the last dimension, or along each ray of a packed tensor."""
    return inputs.cumprod(-1) if packed_info is None else _packed_prod(inputs, packed_info, False)


def exclusive_prod(inputs: Float[Tensor, "*shape"], packed_info: Int[Tensor, "n_rays 2"] | None = None) -> Float[Tensor, "*shape"]:
    """Return running products of what lies before each element.

    >>> exclusive_prod(torch.tensor([0.5, 0.5, 0.1]), torch.tensor([[0, 2], [2, 1]])).tolist()
    [1.0, 0.5, 1.0]
    """
    return _scan_prod(inputs, True) if packed_info is None else _packed_prod(inputs, packed_info, True)
