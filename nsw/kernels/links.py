"""What a point gathers along its links to other points: a weighted sum, or the lowest values. `embedding_bag` in sweeps of its own.

torch finds the same; its maximum writes where every value came from one value at a time, and took a third of a training step.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from nsw.kernels.compiling import kernel
from nsw.kernels.entry_vectors import entry_add, entry_load, entry_store, entry_zero
from nsw.kernels.threads import n_threads, run_shares

ALONE = 2000  # points below which waking a thread costs more than it saves


def linked_sum(
    values: Float[Tensor, "M C"], others: Int[Tensor, "E"], starts: Int[Tensor, "N"], weights: Float[Tensor, "E"]
) -> Float[Tensor, "N C"]:
    r"""Return $\sum_{e} w_e\,v_{o(e)}$ over each point's links, in their order; not differentiable where the kernel runs.

    Args:
        others: the point at the other end of every link, sorted by the point that gathers.
        starts: where each point's links begin.

    >>> linked_sum(torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1, 1]), torch.tensor([0, 2]), torch.tensor([1.0, 0.5, 3.0]))
    tensor([[2.],
            [6.]])
    """
    if not _is_fast(values, weights):
        return embedding_bag(others, values, starts, mode="sum", per_sample_weights=weights.to(values))
    n, width = len(starts), values.shape[1]
    out = np.empty((n, width), np.float32)
    arrays = (values.detach().contiguous().numpy().reshape(-1), others.numpy(), starts.numpy(), weights.detach().numpy())
    run_shares(_sum, n_threads() if n >= ALONE else 1, *arrays, (0,) * width, out.reshape(-1))
    return torch.from_numpy(out)


def linked_lowest(values: Float[Tensor, "M C"], others: Int[Tensor, "E"], starts: Int[Tensor, "N"]) -> Float[Tensor, "N C"]:
    """Return the lowest value over each point's links, channel by channel, 0 without a link.

    Of equal values the first one gets the gradient.

    Args:
        others, starts: as in `linked_sum`.

    >>> linked_lowest(torch.tensor([[1.0], [-2.0]]), torch.tensor([0, 0, 1]), torch.tensor([0, 1]))
    tensor([[ 1.],
            [-2.]])
    """
    if not _is_fast(values):
        return -embedding_bag(others, -values, starts, mode="max")
    return _Lowest.apply(values, others, starts)


def _is_fast(*values: Tensor) -> bool:
    return all(value.device.type == "cpu" and value.dtype == torch.float32 for value in values)


class _Lowest(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, others: Tensor, starts: Tensor) -> Tensor:
        shape = len(starts), values.shape[1]
        out, found = np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
        threads = n_threads() if shape[0] >= ALONE else 1
        run_shares(_lowest, threads, values.detach().contiguous().numpy(), others.numpy(), starts.numpy(), out, found)
        ctx.found, ctx.shape = found, values.shape
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        out = torch.zeros(ctx.shape)
        _send_back(grad.detach().contiguous().numpy(), ctx.found, out.numpy())
        return out, None, None


# `channels` is a tuple of as many zeros as a point has values: its type tells the compiler how wide an entry is.


@kernel
def _sum(values, others, starts, weights, channels, out, share, n_shares):
    n, width = len(starts), len(channels)
    for i in range(n * share // n_shares, n * (share + 1) // n_shares):
        total = entry_zero(channels)
        for link in range(starts[i], starts[i + 1] if i + 1 < n else len(others)):
            total = entry_add(total, weights[link], entry_load(values, others[link] * width, channels))
        entry_store(out, i * width, total)


@kernel
def _lowest(values, others, starts, out, found, share, n_shares):
    n, width = out.shape
    for i in range(n * share // n_shares, n * (share + 1) // n_shares):
        first, end = starts[i], starts[i + 1] if i + 1 < n else len(others)
        if first < end:
            for c in range(width):
                out[i, c], found[i, c] = values[others[first], c], np.int32(others[first])
        for link in range(first + 1, end):
            j = others[link]
            for c in range(width):
                lower = values[j, c] < out[i, c]
                out[i, c] = values[j, c] if lower else out[i, c]
                found[i, c] = np.int32(j) if lower else found[i, c]


@kernel
def _send_back(grad, found, out):
    for i in range(grad.shape[0]):  # point after point: sums do not depend on the number of threads
        for c in range(grad.shape[1]):
            if found[i, c] >= 0:
                out[found[i, c], c] += grad[i, c]
