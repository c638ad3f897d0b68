"""The fused hash encoding against its float64 torch reference, and the reference against 32-bit arithmetic and grid_sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nsw.errors import InputError
from nsw.kernels.hash_encoding import PRIMES, hash_encode, hash_encode_reference, hash_levels, hash_rows

SHAPES = [(1, 4, 4, 8, 2), (4, 4, 32, 9, 2), (6, 8, 96, 12, 2), (5, 16, 200, 10, 4), (3, 3, 50, 6, 3), (2, 2, 2, 14, 4)]


def _points(n: int, margin: float, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) * (1 + 2 * margin) - margin


def _both(levels, n_features: int, n: int, margin: float = 0.1):
    generator = torch.Generator().manual_seed(n)
    table, points = torch.randn(levels.n_rows, n_features, generator=generator), _points(n, margin)
    upstream = torch.randn(n, len(levels) * n_features, generator=generator)
    results = []
    for dtype in (torch.float32, torch.float64):
        t, p = table.to(dtype, copy=True).requires_grad_(), points.to(dtype, copy=True).requires_grad_()
        out = hash_encode(t, p, levels) if dtype == torch.float32 else hash_encode_reference(t, p, levels)
        results.append((out.detach(), *torch.autograd.grad(out, (t, p), upstream.to(dtype))))
    return zip(*results, strict=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [0, 1, 700, 5000])
def test_values_and_gradients_match_float64(shape, n):
    *sizes, n_features = shape
    for fused, reference in _both(hash_levels(*sizes), n_features, n):
        assert fused.shape == reference.shape and torch.isfinite(fused).all()
        if reference.numel():
            scale = max(1.0, float(reference.abs().max()))
            # a point within rounding of a cell border may take the neighbouring cell's slope: compare the others
            error = (fused.double() - reference).abs() / scale
            assert float((error > 1e-4).double().mean()) < 2e-3


def test_gradcheck_of_the_reference():
    levels = hash_levels(3, 3, 9, 6)
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(levels.n_rows, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    points = torch.rand(6, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t, p: hash_encode(t, p, levels), (table, points))


def test_hash_equals_32_bit_arithmetic():
    levels = hash_levels(2, 16, 2048, 14)
    vertices = np.random.default_rng(0).integers(0, 2049, (2000, 3))
    i, j, k = vertices.astype(np.uint32).T
    with np.errstate(over="ignore"):
        expected = (i * np.uint32(PRIMES[0])) ^ (j * np.uint32(PRIMES[1])) ^ (k * np.uint32(PRIMES[2]))
    rows = hash_rows(torch.from_numpy(vertices), levels, 1) - levels.first_rows[1]
    assert levels.hashed[1] and rows.tolist() == (expected % (1 << 14)).tolist()


def test_a_dense_level_is_grid_sample_with_the_half_offset():
    levels = hash_levels(1, 7, 7, 12)
    n, scale = levels.n_vertices[0], levels.scales[0]
    assert not levels.hashed[0] and (n, scale) == (8, 6.0)
    table, points = torch.randn(n**3, 2, generator=torch.Generator().manual_seed(1)), _points(300, margin=0.0)
    at_vertices = (points * scale + 0.5) / (n - 1) * 2 - 1
    volume = table.view(n, n, n, 2).permute(3, 0, 1, 2)[None]
    expected = torch.nn.functional.grid_sample(volume, at_vertices.flip(-1)[None, None, None], align_corners=True)[0, :, 0, 0].T
    torch.testing.assert_close(hash_encode(table, points, levels), expected, atol=1e-5, rtol=1e-5)


def test_no_cell_reaches_beyond_its_level():
    for sizes in ((4, 2, 40, 8), (8, 16, 256, 15), (16, 16, 2048, 14), (5, 5, 7, 30)):
        levels = hash_levels(*sizes)
        for level, scale in enumerate(levels.scales):
            last = int(np.float32(1.0) * np.float32(scale) + np.float32(0.5)) + 1
            assert last <= levels.n_vertices[level] - 1
            rows = hash_rows(torch.full((1, 3), last), levels, level)
            assert levels.first_rows[level] <= int(rows) < levels.first_rows[level + 1]


def test_repeats_are_bit_equal_and_do_not_depend_on_the_threads():
    levels = hash_levels(6, 8, 96, 10)
    table = torch.randn(levels.n_rows, 2, generator=torch.Generator().manual_seed(2), requires_grad=True)
    points, upstream = _points(20_000, 0.0), torch.randn(20_000, 12, generator=torch.Generator().manual_seed(3))
    before, results = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2, 2, 3):
            torch.set_num_threads(n_threads)
            out = hash_encode(table, points, levels)
            results.append((out.detach(), torch.autograd.grad(out, table, upstream)[0]))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0]) and torch.equal(results[0][1], other[1])


def test_broken_and_distant_points_stay_inside_the_table():
    levels = hash_levels(4, 4, 32, 8)
    table = torch.ones(levels.n_rows, 2, requires_grad=True)
    points = torch.tensor([[float("nan")] * 3, [float("inf")] * 3, [-1e30, 1e30, 0.5]], requires_grad=True)
    out = hash_encode(table, points, levels)
    torch.testing.assert_close(out, torch.ones(3, 8))
    gradients = torch.autograd.grad(out.sum(), (table, points))
    assert all(torch.isfinite(g).all() for g in gradients) and float(gradients[0].sum()) == pytest.approx(24.0, rel=1e-5)


def test_outside_of_the_cube_the_border_holds_and_pulls_nothing():
    levels = hash_levels(3, 4, 16, 8)
    table = torch.randn(levels.n_rows, 2, generator=torch.Generator().manual_seed(4))
    outside = torch.tensor([[1.5, 0.3, 0.6]], requires_grad=True)
    out = hash_encode(table, outside, levels)
    torch.testing.assert_close(out, hash_encode(table, torch.tensor([[1.0, 0.3, 0.6]]), levels))
    (slope,) = torch.autograd.grad(out.sum(), outside)
    assert float(slope[0, 0]) == 0.0 and bool((slope[0, 1:] != 0).all())


def test_a_given_buffer_receives_what_autograd_would_have_accumulated():
    levels = hash_levels(4, 4, 32, 8)
    table, points = torch.randn(levels.n_rows, 2, requires_grad=True), _points(500, 0.0)
    hash_encode(table, points, levels).square().sum().backward()
    expected = table.grad.clone()
    table.grad.zero_()
    hash_encode(table, points, levels, gradient_into=table.grad).square().sum().backward()
    torch.testing.assert_close(table.grad, expected, atol=1e-6, rtol=1e-6)


def test_known_values_are_handed_on_with_gradients():
    levels = hash_levels(4, 4, 32, 8)
    table, points = torch.randn(levels.n_rows, 2, requires_grad=True), _points(500, 0.0)
    plain = hash_encode(table, points, levels)
    handed = hash_encode(table, points, levels, known=plain.detach())
    assert torch.equal(plain, handed)
    gradients = [torch.autograd.grad(out.square().sum(), table)[0] for out in (plain, handed)]
    assert torch.equal(*gradients)


def test_bad_sizes_are_refused():
    levels = hash_levels(2, 4, 8, 8)
    with pytest.raises(InputError, match="rows"):
        hash_encode(torch.zeros(3, 2), torch.zeros(1, 3), levels)
    with pytest.raises(InputError, match="contiguous"):
        hash_encode(torch.zeros(levels.n_rows, 2), torch.zeros(1, 3), levels, torch.zeros(2, levels.n_rows).T)
    for sizes in ((0, 4, 8, 8), (2, 1, 8, 8), (2, 8, 4, 8), (2, 4, 8, 0)):
        with pytest.raises(InputError, match="level"):
            hash_levels(*sizes)
