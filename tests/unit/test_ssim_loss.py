"""The fast SSIM loss is the plain one: an 11x11 window by one two-dimensional convolution."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d

from nsw.losses import loss_ssim


def plain(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    offsets = torch.arange(11, dtype=predicted.dtype) - 5
    line = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2)[None, None].expand(3, 1, 11, 11)
    x, y = predicted.permute(0, 3, 1, 2), target.permute(0, 3, 1, 2)

    def blur(z):
        return conv2d(z, window, padding=5, groups=3)

    mu_x, mu_y = blur(x), blur(y)
    s_x, s_y, s_xy = blur(x * x) - mu_x**2, blur(y * y) - mu_y**2, blur(x * y) - mu_x * mu_y
    return 1 - (((2 * mu_x * mu_y + 1e-4) * (2 * s_xy + 9e-4)) / ((mu_x**2 + mu_y**2 + 1e-4) * (s_x + s_y + 9e-4))).mean()


@pytest.mark.parametrize("size", [(11, 11), (24, 37), (8, 20)])
def test_value_and_gradient_are_those_of_the_plain_form(size):
    generator = torch.Generator().manual_seed(0)
    predicted = torch.rand(2, *size, 3, generator=generator, dtype=torch.double, requires_grad=True)
    target = torch.rand(2, *size, 3, generator=generator, dtype=torch.double)
    fast, slow = loss_ssim(predicted, target), plain(predicted, target)
    assert torch.allclose(fast, slow, atol=1e-12)
    gradients = [torch.autograd.grad(value, predicted)[0] for value in (fast, slow)]
    assert torch.allclose(*gradients, atol=1e-12)
