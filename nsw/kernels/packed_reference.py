"""Sums and products along packed rays in plain torch: the definition that the compiled scans are tested against.

Each ray becomes a row of a table as wide as the longest ray. That costs memory where lengths differ much, and it is
differentiable as often as one likes. A single scan over the whole flat tensor would need no table, and would carry one ray's
rounding, infinity or NaN into all rays behind it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def scan_reference(
    inputs: Float[Tensor, "M"],
    packed_info: Int[Tensor, "n_rays 2"],
    product: bool = False,
    exclusive: bool = False,
    reverse: bool = False,
) -> Float[Tensor, "M"]:
    """Return running sums or products along each ray.

    Args:
        exclusive: leave out the element itself.
        reverse: run from each ray's end to its start.

    >>> scan_reference(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([[0, 2], [2, 1]]), reverse=True).tolist()
    [3.0, 2.0, 5.0]
    """
    if inputs.numel() == 0:
        return inputs.clone()
    rows, columns, flat = places(packed_info)
    neutral = 1.0 if product else 0.0
    longest = int(packed_info[:, 1].max())
    table = inputs.new_full((len(packed_info), longest), neutral).index_put((rows, columns), inputs[flat])
    found = batched_scan(table, product, exclusive, reverse)[rows, columns]
    return torch.zeros_like(inputs).index_put((flat,), found)


def places(packed_info: Int[Tensor, "n_rays 2"]) -> tuple[Int[Tensor, "M"], Int[Tensor, "M"], Int[Tensor, "M"]]:
    """Return each sample's ray, its number on the ray, and its place in the packed tensor."""
    starts, counts = packed_info.unbind(-1)
    rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    columns = torch.arange(len(rows), device=counts.device) - (counts.cumsum(0) - counts)[rows]
    return rows, columns, starts[rows] + columns


def batched_scan(table: Tensor, product: bool, exclusive: bool, reverse: bool = False) -> Tensor:
    """Return running sums or products along the last dimension."""
    table = table.flip(-1) if reverse else table
    if exclusive:  # shifted, not `cumsum - values`: an infinite density must not turn into inf - inf
        table = torch.nn.functional.pad(table[..., :-1], (1, 0), value=1.0 if product else 0.0)
    found = table.cumprod(-1) if product else table.cumsum(-1)
    return found.flip(-1) if reverse else found
