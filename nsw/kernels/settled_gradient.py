"""Where kernels hand over to plain torch: no finite input makes a NaN in gradients that autograd works out either."""

from __future__ import annotations

import torch
from torch import Tensor


class _SettledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return torch.where(gradient.isnan(), torch.zeros_like(gradient), gradient)


def settle_gradient(tensor: Tensor | None) -> Tensor | None:
    """Return the tensor; a NaN in its gradient, which came through plain torch, becomes 0 on the way back.

    >>> x = torch.tensor([0.0, 3e38], requires_grad=True)
    >>> (settle_gradient(x) ** 2).sqrt().sum().backward()
    >>> x.grad.isnan().any().item()
    False
    """
    return _SettledGradient.apply(tensor) if tensor is not None and tensor.requires_grad else tensor
