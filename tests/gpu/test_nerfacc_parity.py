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
