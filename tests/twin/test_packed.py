"""The CPU's packed and batched kernels against plain loops, against each other, and against nerfacc where that runs on a CPU."""

from __future__ import annotations

import nerfacc
import pytest
import torch

import nsw.kernels as kernels

COUNTS = torch.tensor([3, 0, 5, 1, 0])
N_RAYS, N = len(COUNTS), int(COUNTS.sum())
RAY_INDICES = torch.repeat_interleave(torch.arange(N_RAYS), COUNTS)


def _packed(seed: int = 0, *shape) -> torch.Tensor:
    return torch.rand(N, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _batch(seed: int, *shape) -> torch.Tensor:
    return torch.rand(6, 9, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _intervals() -> tuple[torch.Tensor, torch.Tensor]:
    edges = torch.rand(6, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64).sort(dim=-1).values
    return edges[:, :-1].contiguous(), edges[:, 1:].contiguous()


def test_pack_info_has_start_and_count_of_every_ray():
    assert kernels.pack_info(RAY_INDICES, N_RAYS).tolist() == [[0, 3], [3, 0], [3, 5], [8, 1], [9, 0]]
    assert kernels.pack_info(RAY_INDICES).tolist() == [[0, 3], [3, 0], [3, 5], [8, 1]]
    assert kernels.pack_info(torch.zeros(0, dtype=torch.long), 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("name", ["inclusive_sum", "exclusive_sum", "inclusive_prod", "exclusive_prod"])
def test_packed_scans_are_the_batched_scan_of_each_ray(name):
    scan, info, values = getattr(kernels, name), kernels.pack_info(RAY_INDICES, N_RAYS), _packed() + 0.5
    expected = torch.cat([scan(values[s : s + n][None])[0] for s, n in info.tolist() if n])
    assert torch.allclose(scan(values, info), expected, rtol=0, atol=1e-13)
    assert torch.allclose(scan(_batch(1)), getattr(nerfacc, name)(_batch(1)), rtol=0, atol=1e-13)
    assert len(scan(values[:0], torch.zeros(3, 2, dtype=torch.long))) == 0


@pytest.mark.parametrize("name", ["inclusive_sum", "exclusive_sum", "inclusive_prod", "exclusive_prod"])
def test_packed_scans_have_the_right_first_and_second_gradient(name):
    info, values = kernels.pack_info(RAY_INDICES, N_RAYS), (_packed() + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: getattr(kernels, name)(v, info), values)
    assert torch.autograd.gradgradcheck(lambda v: getattr(kernels, name)(v, info), values)


def test_the_gradient_of_a_product_with_a_zero_factor_is_right():
    values = torch.tensor([0.5, 0.0, 0.25, 2.0], dtype=torch.float64, requires_grad=True)
    info = torch.tensor([[0, 3], [3, 1]])
    assert torch.autograd.gradcheck(lambda v: kernels.inclusive_prod(v, info), values)


def test_a_ray_with_infinity_or_nan_leaves_the_others_alone():
    info = torch.tensor([[0, 2], [2, 2], [4, 2]])
    values = torch.tensor([1.0, 2.0, float("inf"), float("nan"), 3.0, 4.0])
    assert kernels.exclusive_sum(values, info)[[0, 1, 2, 4, 5]].tolist() == [0.0, 1.0, 0.0, 0.0, 3.0]


@pytest.mark.parametrize(
    "name", ["render_weight_from_density", "render_transmittance_from_density", "render_visibility_from_density"]
)
def test_batched_density_calls_equal_nerfacc(name):
    t_starts, t_ends = _intervals()
    options = dict(early_stop_eps=0.3, alpha_thre=0.1) if "visibility" in name else {}
    ours = getattr(kernels, name)(t_starts, t_ends, 20 * _batch(4), **options)
    theirs = getattr(nerfacc, name)(t_starts, t_ends, 20 * _batch(4), **options)
    for a, b in zip(*((x,) if isinstance(x, torch.Tensor) else x for x in (ours, theirs)), strict=True):
        assert a.dtype == b.dtype and torch.allclose(a.double(), b.double(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["render_weight_from_alpha", "render_transmittance_from_alpha", "render_visibility_from_alpha"])
def test_batched_alpha_calls_equal_nerfacc(name):
    options = dict(early_stop_eps=0.05, alpha_thre=0.1) if "visibility" in name else {}
    ours, theirs = (getattr(m, name)(_batch(5), prefix_trans=_batch(6), **options) for m in (kernels, nerfacc))
    for a, b in zip(*((x,) if isinstance(x, torch.Tensor) else x for x in (ours, theirs)), strict=True):
        assert a.dtype == b.dtype and torch.allclose(a.double(), b.double(), rtol=0, atol=1e-13)


def test_accumulation_equals_nerfacc_batched_and_packed():
    for args in ((_batch(7), _batch(8, 3)), (_batch(7), None), (_packed(1), _packed(2, 3), RAY_INDICES, N_RAYS)):
        ours, theirs = kernels.accumulate_along_rays(*args), nerfacc.accumulate_along_rays(*args)
        assert ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=0, atol=1e-13)


def test_rendering_equals_nerfacc_batched():
    t_starts, t_ends = _intervals()
    for key in ("rgb_sigma_fn", "rgb_alpha_fn"):
        options = {key: lambda a, b, r: (_batch(9, 3), _batch(10)), "render_bkgd": torch.tensor([0.1, 0.2, 0.3]).double()}
        ours, theirs = kernels.rendering(t_starts, t_ends, **options), nerfacc.rendering(t_starts, t_ends, **options)
        assert ours[3].keys() == theirs[3].keys()
        for a, b in zip(ours[:3], theirs[:3], strict=True):
            assert a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=1e-12)


def test_packed_rendering_equals_batched_rendering_with_gradients():
    t_starts, t_ends = _intervals()
    rows = torch.arange(6).repeat_interleave(9)
    gradients = []
    for packed in (False, True):
        sigma, rgb = (20 * _batch(4)).requires_grad_(), _batch(9, 3).requires_grad_()
        values = (rgb.view(-1, 3), sigma.view(-1)) if packed else (rgb, sigma)
        t = (t_starts.view(-1), t_ends.view(-1), rows, 6) if packed else (t_starts, t_ends)
        colours, opacities, depths, _ = kernels.rendering(
            *t, rgb_sigma_fn=lambda *_, v=values: v, render_bkgd=torch.ones(3).double()
        )
        (colours.square().sum() + opacities.sum() + (depths * opacities).sum()).backward()
        gradients.append((colours, opacities, depths, sigma.grad, rgb.grad))
    for batched, flat in zip(*gradients, strict=True):
        assert torch.allclose(batched, flat, rtol=0, atol=1e-12)


def test_box_intersection_equals_nerfaccs_reference():
    generator = torch.Generator().manual_seed(0)
    origins = torch.rand(200, 3, generator=generator, dtype=torch.float64) * 4 - 2
    directions = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator, dtype=torch.float64), dim=-1)
    boxes = torch.tensor([[-1.0, -1, -1, 1, 1, 1], [0.0, 0.2, -0.5, 0.5, 0.4, 1.5]], dtype=torch.float64)
    ours = kernels.ray_aabb_intersect(origins, directions, boxes, 0.1, 3.0, -1.0)
    theirs = nerfacc.grid._ray_aabb_intersect(origins, directions, boxes, 0.1, 3.0, -1.0)
    assert 20 < ours[2].sum() < 380
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=0, atol=1e-12)


def test_a_ray_along_an_axis_meets_a_box_it_grazes_or_crosses():
    boxes = torch.tensor([[-1.0, -1, -1, 1, 1, 1]])
    t0, t1, hit = kernels.ray_aabb_intersect(
        torch.tensor([[0.5, 0.5, -3.0], [1.5, 0.0, -3.0]]), torch.tensor([[0.0, 0.0, 1.0]]).expand(2, 3), boxes
    )
    assert hit[:, 0].tolist() == [True, False] and t0[0].item() == 2.0 and t1[0].item() == 4.0


def test_importance_sampling_equals_nerfaccs_torch_version():
    edges = torch.rand(5, 8, generator=torch.Generator().manual_seed(0)).sort(dim=-1).values
    weights = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) + 0.01
    cdf = torch.nn.functional.pad((weights / weights.sum(-1, keepdim=True)).cumsum(-1), (1, 0))
    cdf[:, -1] = 1.0
    new, samples = kernels.importance_sampling(kernels.RayIntervals(edges), cdf, 12)
    expected_edges, expected = nerfacc.pdf._sample_from_weighted(edges, weights, 12)
    assert torch.allclose(samples.vals, expected, atol=1e-5)
    assert torch.allclose(new.vals[:, 1:-1], expected_edges[:, 1:-1], atol=1e-5)
    assert new.vals.shape == (5, 13) and (new.vals.diff(dim=-1) >= 0).all()


def _random_grid(resolution, levels: int, seed: int = 0):
    grid = kernels.OccGridEstimator([-1, -1, -1, 1, 1, 1], resolution, levels)
    grid.binaries = torch.rand(grid.binaries.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    return grid


def _rays(n: int = 24):
    generator = torch.Generator().manual_seed(5)
    origins = torch.randn(n, 3, generator=generator) * 2
    return origins, torch.nn.functional.normalize(torch.rand(n, 3, generator=generator) - 0.5 - 0.3 * origins, dim=-1)


@pytest.mark.parametrize(("resolution", "levels"), [(8, 1), ([4, 6, 8], 1), (8, 3)])
def test_marching_takes_every_lattice_interval_in_an_occupied_cell_and_no_other(resolution, levels):
    grid, (origins, directions) = _random_grid(resolution, levels), _rays()
    rays, t_starts, t_ends = grid.sampling(origins, directions, render_step_size=0.05, near_plane=0.1, far_plane=6.98)
    assert torch.allclose(t_ends - t_starts, torch.full_like(t_starts, 0.05), atol=1e-5)
    got = {(int(r), round(float(t), 3)) for r, t in zip(rays, t_starts, strict=True)}
    expected, borderline = set(), set()
    for r in range(len(origins)):
        t = 0.1
        while t < 6.98:
            length = 0.05
            point = origins[r] + (t + length / 2) * directions[r]
            occupied, doubtful = _look_up(grid, point)
            (borderline if doubtful else expected if occupied else set()).add((r, round(t, 3)))
            t += length
    close = {(r, round(t + e, 3)) for r, t in expected | borderline for e in (-0.001, 0, 0.001)}
    assert len(expected) > 100 and got <= close
    assert all(any((r, round(t + e, 3)) in got for e in (-0.001, 0, 0.001)) for r, t in expected)
    assert (rays.diff() >= 0).all()


def _look_up(grid, point) -> tuple[bool, bool]:
    """Return whether the finest level that holds the point is occupied there, and whether rounding could change the answer."""
    for level in range(grid.levels):
        low, high = grid.aabbs[level, :3], grid.aabbs[level, 3:]
        place = (point - low) / (high - low) * grid.resolution
        if ((place >= 0) & (place < grid.resolution)).all():
            doubtful = bool(((place - place.round()).abs() < 1e-3).any())
            return bool(grid.binaries[level][tuple(place.long())]), doubtful
    return False, bool(((place.abs() < 1e-3) | ((place - grid.resolution).abs() < 1e-3)).any())


def test_marching_drops_what_density_hides():
    grid, (origins, directions) = _random_grid(8, 1), _rays()
    grid.occs.fill_(1.0)
    options = dict(render_step_size=0.05, early_stop_eps=0.5)
    kept = grid.sampling(origins, directions, sigma_fn=lambda a, b, r: torch.full_like(a, 20.0), **options)
    same = grid.sampling(origins, directions, alpha_fn=lambda a, b, r: 1 - torch.exp(-20.0 * (b - a)), **options)
    everything = grid.sampling(origins, directions, **options)
    assert torch.equal(kept[0], same[0]) and 0 < len(kept[0]) < len(everything[0])
    assert torch.bincount(kept[0]).max() == 1  # exp(-20 * 0.05) is already below a half


def test_the_grid_learns_where_density_is_and_shares_its_state_with_nerfacc():
    torch.manual_seed(0)
    ours, theirs = kernels.OccGridEstimator([-1, -1, -1, 1, 1, 1], 16, 2), nerfacc.OccGridEstimator([-1, -1, -1, 1, 1, 1], 16, 2)

    def ball(points):
        return (points.norm(dim=-1, keepdim=True) < 0.5).float()

    for grid in (ours, theirs):
        for step in range(0, 400, 16):
            grid.update_every_n_steps(step, ball, occ_thre=0.01)
    assert (ours.binaries == theirs.binaries).float().mean() > 0.99
    middle = ours.binaries[0, 6:10, 6:10, 6:10]  # the cells that lie wholly in the ball
    assert middle.all() and not ours.binaries[0, 0].any() and not ours.binaries[1, 0].any()
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(theirs.binaries, ours.binaries)
    with pytest.raises(RuntimeError, match="training mode"):
        ours.eval().update_every_n_steps(0, ball)
