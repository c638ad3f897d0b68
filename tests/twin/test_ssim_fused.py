"""The compiled SSIM and L1 against the plain form in float64: values, gradients, borders, threads."""

from __future__ import annotations

import pytest
import torch

from nsw.kernels.ssim import ssim_l1
from nsw.losses import loss_l1, loss_photometric, loss_ssim


def plain_ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 1 - loss_ssim(x, y, compiled=False)


def _pair(n: int, height: int, width: int, colours: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(height * width)
    target = torch.rand(n, height, width, colours, generator=generator)
    noise = torch.rand(target.shape, generator=generator)
    return (0.7 * target + 0.3 * noise).clamp(0, 1), target


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 2), (1, 11, 11), (2, 24, 37), (3, 5, 40), (1, 64, 7), (1, 100, 100)])
@pytest.mark.parametrize("colours", [1, 3, 4])
def test_values_and_gradients_are_those_of_float64(shape, colours):
    x, y = _pair(*shape, colours)
    y[0, 0, 0] = x[0, 0, 0]  # where they are equal, L1 pulls nowhere
    results = []
    for dtype, fused in ((torch.float32, True), (torch.float64, False)):
        p, t = x.to(dtype).requires_grad_(), y.to(dtype)
        ssim, l1 = ssim_l1(p, t) if fused else (plain_ssim(p, t), loss_l1(p, t))
        both = [torch.autograd.grad(value, p, retain_graph=True)[0] for value in (ssim, l1)]
        results.append([ssim, l1, *both, torch.autograd.grad(0.3 * ssim - 2 * l1, p)[0]])
    for found, wanted in zip(*results, strict=True):
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= 1e-6 + 2e-5 * wanted.abs().max()


def test_flat_black_and_equal_pictures_have_finite_gradients():
    for value in (0.0, 0.5, 1.0):
        x = torch.full((1, 20, 20, 3), value, requires_grad=True)
        loss = loss_photometric(x, torch.full((1, 20, 20, 3), value))
        loss.backward()
        assert abs(loss.item()) < 1e-5 and torch.isfinite(x.grad).all() and x.grad.abs().max() < 1e-4


def test_the_losses_take_the_compiled_way_and_agree_with_the_plain_one():
    x, y = _pair(2, 30, 41)
    x.requires_grad_()
    fused, plain = loss_ssim(x, y), loss_ssim(x, y, compiled=False)
    assert "SsimL1" in type(fused.grad_fn.next_functions[0][0]).__name__
    assert torch.allclose(fused, plain, atol=1e-6)
    gradients = [torch.autograd.grad(value, x)[0] for value in (fused, plain)]
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-8)
    together = 0.8 * loss_l1(x, y) + 0.2 * loss_ssim(x, y)
    assert torch.allclose(loss_photometric(x, y), together, atol=1e-6)
    assert torch.allclose(loss_photometric(x.double(), y.double()), together.double(), atol=1e-6)


def test_a_target_with_a_gradient_is_served_by_the_plain_form():
    x, y = _pair(1, 16, 16)
    loss_ssim(x, y.requires_grad_()).backward()
    assert y.grad.abs().sum() > 0


def test_threads_change_nothing_and_views_need_no_copy_by_the_caller():
    x, y = _pair(2, 120, 90)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    threads, found = torch.get_num_threads(), []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        loss = loss_photometric(turned, y)
        found.append([loss, torch.autograd.grad(loss, turned)[0]])
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert torch.equal(found[0][0], other[0]) and torch.equal(found[0][1], other[1])


def test_it_can_be_differentiated_twice():
    x, y = _pair(1, 12, 13)
    second = []
    for dtype in (torch.float32, torch.float64):
        p = x.to(dtype).requires_grad_()
        (g,) = torch.autograd.grad(loss_photometric(p, y.to(dtype)), p, create_graph=True)
        second.append(torch.autograd.grad((1e3 * g).square().sum(), p)[0].double())
    assert torch.allclose(*second, rtol=1e-3, atol=1e-4 * second[1].abs().max().item())
