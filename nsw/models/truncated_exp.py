"""The exponential that turns a network's output into density, with a gradient that stays finite."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

LARGEST = 15.0  # of the gradient's exponent: e^15 is about 3 million


class _TruncatedExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * x.clamp(max=LARGEST).exp()


def truncated_exp(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    r"""Return e^x, whose gradient counts as $g\,e^{\min(x, 15)}$.

    Density behind a surface hardly changes the picture, so nothing holds it back there: its exponent drifts up until a plain
    exponential's gradient overflows. The cut keeps the gradient's direction and bounds its size.

    >>> x = torch.tensor([0.0, 20.0], requires_grad=True)
    >>> truncated_exp(x).sum().backward()
    >>> x.grad.log().tolist()
    [0.0, 15.0]
    """
    return _TruncatedExp.apply(x)
