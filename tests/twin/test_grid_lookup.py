"""The fused trilinear lookup against its float64 torch reference: values, both gradients, borders, thread counts."""

from __future__ import annotations

import threading

import pytest
import torch

from nsw.kernels.grid_lookup import grid_lookup, grid_lookup_reference

BOX = torch.tensor([[-1.0, -2.0, 0.5], [2.0, 1.0, 1.5]])


def _points(n: int, margin: float, seed: int = 0) -> torch.Tensor:
    unit = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) * (1 + 2 * margin) - margin
    return BOX[0] + unit * (BOX[1] - BOX[0])


@pytest.mark.parametrize("shape", [(5, 7, 6, 1), (9, 4, 8, 3), (6, 6, 6, 12), (7, 7, 1, 2), (2, 2, 2, 5), (1, 1, 1, 4)])
@pytest.mark.parametrize("n", [0, 1, 37, 9000])
def test_values_and_gradients_match_float64(shape, n):
    generator = torch.Generator().manual_seed(n)
    grid = torch.randn(shape, generator=generator)
    points = _points(n, margin=0.2)
    upstream = torch.randn(n, shape[3], generator=generator)
    results = {}
    for name, lookup, dtype in (("fused", grid_lookup, torch.float32), ("reference", grid_lookup_reference, torch.float64)):
        g, p = grid.to(dtype, copy=True).requires_grad_(), points.to(dtype, copy=True).requires_grad_()
        out = lookup(g, p, BOX.to(dtype))
        results[name] = (out.detach(), *torch.autograd.grad(out, (g, p), upstream.to(dtype)))
    for fused, reference in zip(results["fused"], results["reference"], strict=True):
        assert fused.shape == reference.shape
        scale = max(1.0, float(reference.abs().max())) if reference.numel() else 1.0
        # a point within rounding of a cell border may take the slope of the neighbouring cell: compare the others
        error = (fused.double() - reference).abs() / scale
        assert error.numel() == 0 or float((error > 2e-5).double().mean()) < 1e-3
        assert torch.isfinite(fused).all()


def test_vertices_return_their_own_values():
    grid = torch.randn(4, 5, 6, 2, generator=torch.Generator().manual_seed(1))
    axes = [torch.linspace(float(BOX[0, a]), float(BOX[1, a]), grid.shape[a]) for a in range(3)]
    vertices = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    torch.testing.assert_close(grid_lookup(grid, vertices, BOX), grid.reshape(-1, 2), atol=1e-5, rtol=0)


def test_a_linear_function_is_reproduced_and_its_slope_is_the_gradient():
    slope = torch.tensor([0.5, -1.0, 2.0])
    axes = [torch.linspace(float(BOX[0, a]), float(BOX[1, a]), 6) for a in range(3)]
    grid = (torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) @ slope)[..., None]
    points = _points(100, margin=-0.01).requires_grad_()
    value = grid_lookup(grid, points, BOX)
    torch.testing.assert_close(value[:, 0], points @ slope, atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(value.sum(), points)
    torch.testing.assert_close(gradient, slope.expand(100, 3), atol=1e-4, rtol=1e-4)


def test_the_gradient_does_not_depend_on_the_number_of_threads():
    grid = torch.zeros(16, 16, 16, 4, requires_grad=True)
    points, upstream = _points(20000, margin=0.0), torch.randn(20000, 4, generator=torch.Generator().manual_seed(2))
    before, gradients = torch.get_num_threads(), []
    try:
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            gradients.append(torch.autograd.grad(grid_lookup(grid, points, BOX), grid, upstream)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(gradients[0], gradients[1])


def test_a_given_buffer_receives_what_autograd_would_have_accumulated():
    grid = torch.randn(5, 5, 5, 3, generator=torch.Generator().manual_seed(3), requires_grad=True)
    points = _points(500, margin=0.0)
    grid_lookup(grid, points, BOX).square().sum().backward()
    expected = grid.grad.clone()
    grid.grad.zero_()
    grid_lookup(grid, points, BOX, gradient_into=grid.grad).square().sum().backward()
    torch.testing.assert_close(grid.grad, expected, atol=1e-6, rtol=1e-6)


def test_other_types_take_the_reference_path():
    grid = torch.randn(4, 4, 4, 2, dtype=torch.float64, requires_grad=True)
    points = _points(20, margin=-0.05).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda g, p: grid_lookup(g, p, BOX.double()), (grid, points))


def test_threads_may_look_up_at_once():
    """A viewer draws while a loop trains."""
    grid, points, equal = torch.rand(16, 16, 16, 4), _points(20_000, margin=0.0), []
    expected = grid_lookup(grid, points, BOX)

    def work():
        for _ in range(20):
            equal.append(torch.equal(grid_lookup(grid, points, BOX), expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(equal) == 80 and all(equal)
