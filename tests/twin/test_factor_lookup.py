"""The fused VM and CP lookups against their float64 references: values, all gradients, borders, threads."""

from __future__ import annotations

import pytest
import torch

from nsw.errors import InputError
from nsw.kernels.cp_lookup import cp_lookup, cp_lookup_reference
from nsw.kernels.vm_lookup import FIRST, LINE, SECOND, vm_lookup, vm_lookup_reference

BOX = torch.tensor([[-1.0, -2.0, 0.5], [2.0, 1.0, 1.5]])


def _points(n: int, margin: float, seed: int = 0) -> torch.Tensor:
    unit = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) * (1 + 2 * margin) - margin
    return BOX[0] + unit * (BOX[1] - BOX[0])


def vm_factors(shape, rank: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    planes = [torch.randn(shape[a], shape[b], rank, generator=generator) for a, b in zip(FIRST, SECOND, strict=True)]
    return planes + [torch.randn(shape[c], rank, generator=generator) for c in LINE]


def cp_factors(shape, rank: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, rank, generator=generator) for n in shape]


def _vm(factors, *arguments, **options):
    return vm_lookup(factors[:3], factors[3:], *arguments, **options)


def _vm_reference(factors, *arguments, **options):
    return vm_lookup_reference(factors[:3], factors[3:], *arguments, **options)


BOTH = [(vm_factors, _vm, _vm_reference), (cp_factors, cp_lookup, cp_lookup_reference)]
both = pytest.mark.parametrize(("make", "lookup", "reference"), BOTH, ids=["vm", "cp"])


@both
@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize(("shape", "rank"), [((5, 7, 6), 8), ((9, 4, 8), 24), ((2, 2, 2), 16), ((6, 3, 11), 3)])
@pytest.mark.parametrize("n", [0, 37, 5000])
def test_values_and_gradients_match_float64(make, lookup, reference, summed, shape, rank, n):
    points, factors, results = _points(n, margin=0.2), make(shape, rank), []
    for look, dtype in ((lookup, torch.float32), (reference, torch.float64)):
        inputs = [t.to(dtype, copy=True).requires_grad_() for t in (*factors, points)]
        out = look(inputs[:-1], inputs[-1], BOX.to(dtype), summed=summed)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        results.append((out.detach(), *torch.autograd.grad(out, inputs, upstream)))
    for fused, expected in zip(*results, strict=True):
        assert fused.shape == expected.shape and torch.isfinite(fused).all()
        scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
        # a point within rounding of a cell border may take the slope of the neighbouring cell: compare the others
        error = (fused.double() - expected).abs() / scale
        assert error.numel() == 0 or float((error > 2e-5).double().mean()) < 1e-3


@both
def test_gradcheck_of_the_reference(make, lookup, reference):
    factors = [f.double().requires_grad_() for f in make((3, 4, 5), 2)]
    points = _points(6, margin=-0.05).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p, *f: lookup(list(f), p, BOX.double()), (points, *factors))


@both
def test_repeats_are_bit_equal_and_do_not_depend_on_the_threads(make, lookup, reference):
    factors = [f.requires_grad_() for f in make((16, 12, 20), 24)]
    points, before, results = _points(20_000, margin=0.0), torch.get_num_threads(), []
    try:
        for n_threads in (1, 2, 2, 3):
            torch.set_num_threads(n_threads)
            out = lookup(factors, points, BOX)
            results.append((out.detach(), *torch.autograd.grad(out.square().sum(), factors)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@both
def test_given_buffers_receive_what_autograd_would_have_accumulated(make, lookup, reference):
    factors, points = [f.requires_grad_() for f in make((5, 6, 7), 4)], _points(500, margin=0.0)
    lookup(factors, points, BOX).square().sum().backward()
    expected = [f.grad.clone() for f in factors]
    for f in factors:
        f.grad.zero_()
    lookup(factors, points, BOX, gradients_into=tuple(f.grad for f in factors)).square().sum().backward()
    for f, gradient in zip(factors, expected, strict=True):
        torch.testing.assert_close(f.grad, gradient, atol=1e-5, rtol=1e-5)


@both
def test_known_values_are_handed_on_with_gradients(make, lookup, reference):
    factors, points = [f.requires_grad_() for f in make((5, 6, 7), 8)], _points(500, margin=0.0)
    plain = lookup(factors, points, BOX, summed=True)
    handed = lookup(factors, points, BOX, summed=True, known=plain.detach())
    assert torch.equal(plain, handed)
    for a, b in zip(*[torch.autograd.grad(out.square().sum(), factors) for out in (plain, handed)], strict=True):
        assert torch.equal(a, b)


@both
def test_broken_and_distant_points_stay_inside(make, lookup, reference):
    factors = [torch.ones_like(f).requires_grad_() for f in make((4, 5, 6), 4)]
    points = torch.tensor([[float("nan")] * 3, [float("inf")] * 3, [-1e30, 1e30, 0.5]], requires_grad=True)
    out = lookup(factors, points, BOX)
    torch.testing.assert_close(out, torch.ones_like(out))
    gradients = torch.autograd.grad(out.sum(), [*factors, points])
    assert all(torch.isfinite(g).all() for g in gradients)
    assert float(gradients[0].sum()) == pytest.approx(12.0, rel=1e-5)


def test_rank_one_is_the_outer_product():
    shape = (4, 5, 6)
    factors = vm_factors(shape, 1)
    axes = [torch.linspace(float(BOX[0, a]), float(BOX[1, a]), shape[a]) for a in range(3)]
    vertices = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    (xy, xz, yz), (z, y, x) = ([f[..., 0] for f in part] for part in (factors[:3], factors[3:]))
    expected = [torch.einsum("xy,z->xyz", xy, z), torch.einsum("xz,y->xyz", xz, y), torch.einsum("yz,x->xyz", yz, x)]
    found = _vm(factors, vertices, BOX).view(*shape, 3)
    torch.testing.assert_close(found, torch.stack(expected, dim=-1), atol=1e-4, rtol=1e-4)
    lines = cp_factors(shape, 1)
    expected = torch.einsum("x,y,z->xyz", *[line[:, 0] for line in lines])
    torch.testing.assert_close(cp_lookup(lines, vertices, BOX).view(shape), expected, atol=1e-4, rtol=1e-4)


def test_factors_that_do_not_belong_together_are_refused():
    factors, points = vm_factors((4, 5, 6), 2), _points(3, 0.0)
    with pytest.raises(InputError, match="make no grid"):
        vm_lookup([factors[0].transpose(0, 1), *factors[1:3]], factors[3:], points, BOX)
    with pytest.raises(InputError, match="make no grid"):
        cp_lookup([torch.ones(1, 2), torch.ones(4, 2), torch.ones(4, 2)], points, BOX)
