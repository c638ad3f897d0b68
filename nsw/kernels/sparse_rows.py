"""Take rows of a tensor so that backward answers with a sparse gradient: only the rows that were taken, beside their numbers.

A dense gradient of a million splats of which a camera sees ten thousand is almost all zeros, and an optimiser would walk through
all of them. `torch.sparse_coo_tensor` holds the ten thousand; `torch.optim.SparseAdam` knows what to do with it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, rows):
        ctx.save_for_backward(rows)
        ctx.shape = values.shape
        return values[rows]

    @staticmethod
    def backward(ctx, v_rows):
        (rows,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(rows[None], v_rows, ctx.shape, check_invariants=False), None


def gather_rows(values: Float[Tensor, "n *c"], rows: Int[Tensor, "r"]) -> Float[Tensor, "r *c"]:
    """Do `values[rows]`, but send back a sparse COO gradient; a row taken twice is in it twice until it is coalesced.

    >>> x = torch.zeros(4, 2, requires_grad=True)
    >>> gather_rows(x, torch.tensor([2, 2])).sum().backward()
    >>> x.grad.is_sparse, x.grad.coalesce().indices().tolist(), x.grad.coalesce().values().tolist()
    (True, [[2]], [[2.0, 2.0]])
    """
    return _GatherRows.apply(values, rows)
