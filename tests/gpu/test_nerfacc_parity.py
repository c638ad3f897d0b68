"""The CPU's packed kernels and renderer against nerfacc on a CUDA device."""

from __future__ import annotations

import pytest
import torch

import nsw.kernels as kernels
from nsw.cameras import camera_rays, orbit
from nsw.models.mlp import NerfMLP, NerfSettings
from nsw.renderers.volume import occupancy_grid, packed_backend, render_rays

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="nerfacc's packed calls need a CUDA device; torch finds none here"
)

COUNTS = torch.tensor([5, 0, 9, 1, 30])
RAY_INDICES = torch.repeat_interleave(torch.arange(5), COUNTS)


def _values(seed: int, *shape) -> torch.Tensor:
    return torch.rand(int(COUNTS.sum()), *shape, generator=torch.Generator().manual_seed(seed))


def _both(name: str, *args, **options):
    nerfacc = pytest.importorskip("nerfacc")
    here = getattr(kernels, name)(*args, **options)
    moved = [a.cuda() if isinstance(a, torch.Tensor) else a for a in args]
    there = getattr(nerfacc, name)(*moved, **{k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in options.items()})
    pairs = [(here, there)] if isinstance(here, torch.Tensor) else zip(here, there, strict=True)
    for a, b in pairs:
        assert a.shape == b.shape and torch.allclose(a.float(), b.cpu().float(), atol=1e-5)


@pytest.mark.parametrize("name", ["inclusive_sum", "exclusive_sum", "inclusive_prod", "exclusive_prod"])
def test_packed_scans(name):
    _both("pack_info", RAY_INDICES, 5)
    _both(name, _values(0), kernels.pack_info(RAY_INDICES, 5))


def test_packed_weights_and_visibility():
    where = dict(ray_indices=RAY_INDICES, n_rays=5)
    t = _values(1).cumsum(0)
    _both("render_weight_from_density", t, t + 0.1, 9 * _values(2), **where)
    _both("render_weight_from_alpha", _values(3), **where)
    _both("render_visibility_from_density", t, t + 0.1, 9 * _values(2), **where, early_stop_eps=0.2, alpha_thre=0.3)
    _both("accumulate_along_rays", _values(4), _values(5, 3), **where)


def test_box_intersection():
    rays = camera_rays(orbit(2, radius=3.0, width=16, height=16))
    _both("ray_aabb_intersect", rays.origins, rays.directions, torch.tensor([[-1.0, -1, -1, 1, 1, 1]]), 0.0, 10.0, 0.0)


def test_marching_through_the_same_grid_gives_the_same_samples():
    nerfacc = pytest.importorskip("nerfacc")
    here = kernels.OccGridEstimator([-1, -1, -1, 1, 1, 1], 16)
    here.binaries = torch.rand(here.binaries.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    there = nerfacc.OccGridEstimator([-1, -1, -1, 1, 1, 1], 16)
    there.load_state_dict(here.state_dict())
    there.cuda()
    rays = camera_rays(orbit(2, radius=3.0, width=16, height=16))
    a = here.sampling(rays.origins, rays.directions, render_step_size=0.03)
    b = there.sampling(rays.origins.cuda(), rays.directions.cuda(), render_step_size=0.03)
    counts = [torch.bincount(r.cpu(), minlength=len(rays)) for r in (a[0], b[0])]
    assert (counts[0] == counts[1]).float().mean() > 0.97  # a middle on a cell's face may fall either way
    assert abs(len(a[0]) - len(b[0])) < 0.005 * len(a[0])


def test_float32_weights_from_opacities_and_the_gradients_of_all():
    nerfacc = pytest.importorskip("nerfacc")
    for name in ("render_weight_from_density", "render_weight_from_alpha", "exclusive_sum", "inclusive_prod"):
        found = []
        for module, device in ((kernels, "cpu"), (nerfacc, "cuda")):
            x = (0.9 * _values(6) + 0.05).to(device).requires_grad_()
            index, t = RAY_INDICES.to(device), torch.zeros(len(RAY_INDICES), device=device)
            if name == "render_weight_from_density":
                out = module.render_weight_from_density(t, t + 1, x, ray_indices=index, n_rays=5)
            elif name == "render_weight_from_alpha":
                out = module.render_weight_from_alpha(x, ray_indices=index, n_rays=5)
            else:
                out = (getattr(module, name)(x, module.pack_info(index, 5)),)
            up = [_values(7 + i).to(device) for i in range(len(out))]
            found.append([*out, *torch.autograd.grad(sum((o * u).sum() for o, u in zip(out, up, strict=True)), x)])
        for a, b in zip(*found, strict=True):
            assert torch.allclose(a, b.cpu(), rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize(("levels", "cone_angle", "step"), [(1, 0.0, 0.03), (3, 0.0, 0.03), (3, 0.02, 0.03), (2, 0.0, 0.0)])
def test_traversal_of_nested_grids(levels, cone_angle, step):
    nerfacc = pytest.importorskip("nerfacc")
    cells = torch.rand(levels, 12, 12, 12, generator=torch.Generator().manual_seed(levels)) < 0.3
    boxes = torch.tensor([[-1.0, -1, -1, 1, 1, 1]]) * 2.0 ** torch.arange(levels)[:, None]
    rays = camera_rays(orbit(2, radius=3.0, width=16, height=16))
    options = dict(step_size=step, cone_angle=cone_angle)
    here = kernels.traverse_grids(rays.origins, rays.directions, cells, boxes, **options)
    there = nerfacc.traverse_grids(rays.origins.cuda(), rays.directions.cuda(), cells.cuda(), boxes.cuda(), **options)
    counts = [x[1].packed_info[:, 1].cpu() for x in (here, there)]
    same = counts[0] == counts[1]
    assert same.float().mean() > 0.9  # a middle on a cell's face may fall either way
    middles = [x[1].vals.cpu()[same[x[1].ray_indices.cpu()]] for x in (here, there)]
    assert (middles[0] - middles[1]).abs().median() < 1e-4
    edges = [x[0].packed_info[:, 1].cpu()[same] for x in (here, there)]
    assert (edges[0] == edges[1]).float().mean() > 0.95


def test_over_allocated_traversal_fills_the_same_places():
    nerfacc = pytest.importorskip("nerfacc")
    cells, boxes = torch.ones(1, 4, 4, 4, dtype=torch.bool), torch.tensor([[-1.0, -1, -1, 1, 1, 1]])
    rays = camera_rays(orbit(1, radius=3.0, width=8, height=8))
    mask = torch.arange(64) % 3 > 0
    found = []
    for module, device in ((kernels, "cpu"), (nerfacc, "cuda")):
        args = (x.to(device) for x in (rays.origins, rays.directions, cells, boxes))
        options = dict(step_size=0.1, traverse_steps_limit=5, over_allocate=True, rays_mask=mask.to(device))
        found.append(module.traverse_grids(*args, **options))
    for name in ("vals", "ray_indices", "is_valid", "packed_info"):
        a, b = (getattr(x[1], name).cpu() for x in found)
        assert a.shape == b.shape
        if name != "packed_info":
            assert (a.float() - b.float()).abs().max() < 1e-4
        else:
            assert torch.equal(a[mask], b[mask])


def test_searching_and_resampling():
    nerfacc = pytest.importorskip("nerfacc")
    edges = torch.rand(9, 12, generator=torch.Generator().manual_seed(0)).sort(-1).values
    cdf = torch.rand(9, 12, generator=torch.Generator().manual_seed(1)).cumsum(-1)
    found = []
    for module, device in ((kernels, "cpu"), (nerfacc, "cuda")):
        intervals = module.RayIntervals(edges.to(device))
        new, samples = module.importance_sampling(intervals, cdf.to(device), 7)
        found.append([new.vals, samples.vals, *module.searchsorted(intervals, new)])
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape
        if a.dtype == torch.long:
            assert (a == b.cpu()).float().mean() > 0.97  # an edge may equal a bin's border up to rounding
        else:
            assert torch.allclose(a, b.cpu(), atol=1e-4)


@pytest.mark.parametrize("sampling_type", ["uniform", "lindisp"])
def test_proposals_sample_and_lose_the_same(sampling_type):
    nerfacc = pytest.importorskip("nerfacc")
    found = []
    for module, device in ((kernels, "cpu"), (nerfacc, "cuda")):
        scale = torch.tensor(1.5, device=device, requires_grad=True)
        estimator = module.PropNetEstimator(torch.optim.SGD([scale], lr=0.1)).to(device)
        options = dict(n_rays=6, near_plane=0.5, far_plane=6.0, sampling_type=sampling_type, requires_grad=True)
        t_starts, t_ends = estimator.sampling([lambda a, b, s=scale: s * (a + b).sin().square()], [20], 10, **options)
        loss = estimator.compute_loss(torch.exp(-0.5 * t_starts))
        found.append([t_starts, t_ends, loss, *torch.autograd.grad(loss, scale)])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b.cpu(), rtol=1e-2, atol=1e-4)


def test_a_field_renders_the_same_on_both_devices_with_gradients():
    torch.manual_seed(0)
    model = NerfMLP(NerfSettings(depth=3, width=32, skip=2, levels_position=3, levels_direction=2))
    grid = kernels.OccGridEstimator([-1, -1, -1, 1, 1, 1], 16)
    grid.binaries.fill_(True)
    rays = camera_rays(orbit(1, radius=3.0, width=16, height=16))
    results = []
    for device in ("cpu", "cuda"):
        model.to(device).zero_grad(set_to_none=True)
        out = render_rays(model, rays.to(device), occupancy=_grid_on(grid, device), step=0.05)
        out.rgb.square().sum().backward()
        results.append([out.rgb, out.alpha, out.depth] + [p.grad for p in model.parameters()])
    assert packed_backend(torch.device("cuda")).__name__ == "nerfacc"
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a.cpu(), b.cpu(), rtol=1e-3, atol=1e-3)


def _grid_on(grid: kernels.OccGridEstimator, device: str):
    there = occupancy_grid(grid.aabbs[0].view(2, 3).to(device), 16)
    there.load_state_dict(grid.state_dict())
    return there
