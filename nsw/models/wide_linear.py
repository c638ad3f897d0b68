"""A linear layer of a wide network: on a GPU its matrix products run in TF32, three of four of which a step of NeRF waits for.

torch's own switch is for all products of a process, those of cameras, neighbours and clusterings too, where ten bits of mantissa
would show. Inside a network they do not: its numbers are of order one, and sums are kept in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear


class WideLinear(nn.Linear):
    """`torch.nn.Linear` with its parameters, start and answers; on a CUDA device products of both ways are in TF32."""

    def forward(self, x: Float[Tensor, "*n in"]) -> Float[Tensor, "*n out"]:
        """Return x W^T + b."""
        return _Product.apply(x, self.weight, self.bias) if x.is_cuda else linear(x, self.weight, self.bias)


class _Product(torch.autograd.Function):
    """The layer and its gradients; autograd may take these again."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        with _tf32():
            return linear(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        with _tf32():
            grad_x = grad @ weight if to_x else None
            grad_weight = rows.T @ x.flatten(0, -2) if to_weight else None
        return grad_x, grad_weight, rows.sum(0) if to_bias else None


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
