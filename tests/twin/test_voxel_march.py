"""The fused march through a sparse voxel grid, and total variation, against their float64 torch references."""

from __future__ import annotations

import pytest
import torch

from nsw.errors import InputError
from nsw.kernels.voxel_march import RowGradient, empty_cells, march_voxels, max_weights
from nsw.kernels.voxel_march_reference import march_voxels_reference, n_channels, total_variation_reference
from nsw.kernels.voxel_tv import total_variation

BOX = torch.tensor([[-1.0, -2.0, 0.5], [2.0, 1.0, 1.5]])


def _grid(shape=(9, 7, 8), degree: int = 1, keep: float = 0.7, seed: int = 0):
    """Random rows for a random part of the vertices, half of the densities negative."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(shape, generator=generator) < keep
    links = torch.zeros(shape, dtype=torch.int32)
    links[kept] = torch.arange(1, int(kept.sum()) + 1, dtype=torch.int32)
    values = torch.randn(int(kept.sum()) + 1, n_channels(degree), generator=generator)
    values[:, 0] *= 3
    values[0] = 0
    values[:, 1 + 3 * (degree + 1) ** 2 :] = 0
    return values, links


def _rays(n: int, seed: int = 1) -> dict:
    """Rays from all around, some of which miss, some of which start inside."""
    generator = torch.Generator().manual_seed(seed)
    origins = 3 * torch.randn(n, 3, generator=generator)
    targets = BOX[0] + torch.rand(n, 3, generator=generator) * (BOX[1] - BOX[0])
    directions = torch.nn.functional.normalize(targets - origins, dim=-1)
    if n:
        directions[0] = torch.tensor([0.0, 0.0, 1.0])  # along an axis: the leaps divide by direction
    near = torch.rand(n, generator=generator)
    far = near + 8 * torch.rand(n, generator=generator) - 0.5  # some end before they begin
    offset = torch.rand(n, generator=generator)
    return dict(origins=origins, directions=directions, near=near, far=far, offset=offset)


def _run(march, values, links, rays, dtype, degree, upstream, stop=1e-4, nearest=False, **more):
    table = values.to(dtype, copy=True).requires_grad_()
    given = {name: tensor.to(dtype) for name, tensor in rays.items()}
    out = march(
        table, links, **given, aabb=BOX.to(dtype), step=0.11, delta=0.15, sh_degree=degree, stop=stop, nearest=nearest, **more
    )
    (gradient,) = torch.autograd.grad(out[:2], table, [u.to(dtype) for u in upstream])
    return [tensor.detach().double() for tensor in (*out, gradient[1:])]


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("n", [0, 1, 300])
def test_values_and_gradients_match_float64(degree, nearest, n):
    (values, links), rays = _grid(degree=degree), _rays(n)
    generator = torch.Generator().manual_seed(2)
    upstream = torch.randn(n, 3, generator=generator), torch.randn(n, generator=generator)
    arguments = (degree, upstream, 1e-4, nearest)
    fused = _run(march_voxels, values, links, rays, torch.float32, *arguments, skip=empty_cells(values, links))
    reference = _run(march_voxels_reference, values, links, rays, torch.float64, *arguments)
    for ours, theirs in zip(fused, reference, strict=True):
        scale = max(1.0, float(theirs.abs().max())) if theirs.numel() else 1.0
        # a sample within rounding of a voxel's border, of far or of the ReLU may fall on the other side: compare the others
        error = (ours - theirs).abs() / scale
        assert error.numel() == 0 or float((error > 1e-4).double().mean()) < 2e-3
        assert torch.isfinite(ours).all()


def test_the_reference_differentiates_itself():
    values, links = _grid((2, 2, 3), degree=0, keep=1.0)
    rays = {name: tensor.double() for name, tensor in _rays(3).items()}
    fixed = dict(aabb=BOX.double(), step=0.4, delta=0.4, sh_degree=0)
    function = lambda table: march_voxels_reference(table, links, **rays, **fixed)[:2]  # noqa: E731
    assert torch.autograd.gradcheck(function, values.double().requires_grad_())


def test_leaping_over_empty_cells_changes_nothing():
    values, links = _grid((33, 30, 31), degree=2, keep=1.0)
    values[1:, 0] = -1.0
    for place in ((3, 4, 5), (29, 20, 8), (15, 28, 30)):  # three specks in a negative grid
        values[int(links[place]), 0] = 9.0
    rays = _rays(2000)
    options = dict(aabb=BOX, step=0.05, delta=1.0, sh_degree=2)
    skip = empty_cells(values, links)
    leaping = march_voxels(values, links, **rays, **options, skip=skip)
    walking = march_voxels(values, links, **rays, **options)
    assert float((skip == 0).float().mean()) < 0.05 < float((leaping[1] < 1).float().mean()) + 0.05
    for a, b in zip(leaping, walking, strict=True):
        assert torch.equal(a, b)


def test_the_table_tells_how_far_the_nearest_full_cell_is():
    links = torch.arange(1, 21**3 + 1, dtype=torch.int32).view(21, 21, 21)
    values = torch.full((21**3 + 1, 16), -1.0)
    values[int(links[10, 10, 10])] = 1.0
    skip = empty_cells(values, links)
    full = (skip == 0).nonzero().double()
    everywhere = torch.cartesian_prod(*[torch.arange(n) for n in skip.shape]).double()
    distance = torch.cdist(everywhere, full, p=float("inf")).amin(1).view(skip.shape)
    assert torch.equal(skip.double(), distance.clamp(max=9))


def test_repeats_are_equal_bit_for_bit_and_so_are_thread_counts():
    (values, links), rays = _grid((20, 20, 20)), _rays(3000)
    upstream = torch.ones(3000, 3), torch.ones(3000)
    before, results = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2, 2):
            torch.set_num_threads(n_threads)
            results.append(_run(march_voxels, values, links, rays, torch.float32, 1, upstream))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_given_buffer_receives_the_gradient_and_the_marks():
    (values, links), rays = _grid(), _rays(300)
    upstream = torch.ones(300, 3), torch.zeros(300)
    expected = _run(march_voxels, values, links, rays, torch.float32, 1, upstream)[-1]
    table, into = values.clone().requires_grad_(), RowGradient.like(values)
    out = march_voxels(table, links, **rays, aabb=BOX, step=0.11, delta=0.15, sh_degree=1, stop=1e-4, into=into)
    out[0].sum().backward()
    assert table.grad is None
    assert torch.equal(into.values[1:].double(), expected)
    assert bool(((into.values[1:] != 0).any(1) <= (into.touched[1:] == 1)).all())
    assert float(into.values[0].abs().max()) == 0.0


def test_rows_that_are_no_whole_cache_lines_are_refused_before_anything_is_written_beside_them():
    links, far = torch.ones(2, 2, 2, dtype=torch.int32), torch.ones(1)
    for channels, degree in ((28, 2), (16, 2), (12, 1)):
        with pytest.raises(InputError, match=f"these have {channels}"):
            march_voxels(
                torch.zeros(2, channels), links, torch.zeros(1, 3), torch.eye(3)[:1], 0 * far, far, far, BOX, 0.1, 0.1, degree
            )


def test_largest_weights_match_the_samples():
    (values, links), rays = _grid(), _rays(200)
    best = max_weights(values, links, **rays, aabb=BOX, step=0.11, delta=0.15)
    size = torch.tensor(links.shape)
    expected = torch.zeros(links.shape)
    n = 90
    t = rays["near"][:, None] + (torch.arange(n) + rays["offset"][:, None]) * 0.11
    points = rays["origins"][:, None] + t[..., None] * rays["directions"][:, None]
    place = ((points - BOX[0]) / (BOX[1] - BOX[0]) * (size - 1)).clamp_min(0).minimum((size - 1).float())
    first = place.long().minimum(size - 2)
    from nsw.kernels.voxel_march_reference import corners

    rows, weights = corners(links, points.reshape(-1, 3), BOX)
    depth = (values[:, 0][rows] * weights).sum(-1).view(t.shape).clamp_min(0) * 0.15 * (t < rays["far"][:, None])
    weight = torch.exp(-(depth.cumsum(1) - depth)) * -torch.expm1(-depth)
    for corner in torch.cartesian_prod(*[torch.arange(2)] * 3):
        i, j, k = (first + corner).reshape(-1, 3).unbind(-1)
        expected.view(-1).scatter_reduce_(0, (i * size[1] + j) * size[2] + k, weight.reshape(-1), "amax")
    assert float((best - expected).abs().gt(1e-5).float().mean()) < 2e-3
    assert float(best.max()) > 0.5


@pytest.mark.parametrize("first, count", [(1, 10**6), (100, 60), (250, 200)])
def test_total_variation_matches_float64(first, count):
    values, links = _grid()
    vertices = torch.cat([torch.zeros(1, dtype=torch.long), (links.reshape(-1) > 0).nonzero()[:, 0]])
    rates = torch.rand(values.shape[1], generator=torch.Generator().manual_seed(3))
    fused = values.clone().requires_grad_()
    value = total_variation(fused, links, vertices, first, count, rates)
    (gradient,) = torch.autograd.grad(3 * value, fused)
    exact = values.double().requires_grad_()
    n_rows = len(values) - 1
    rows = (torch.arange(min(count, n_rows)) + first - 1) % n_rows + 1
    reference = total_variation_reference(exact, links, rows, rates.double())
    (expected,) = torch.autograd.grad(3 * reference, exact)
    torch.testing.assert_close(value.double(), reference, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-8)
