"""The fused march and weights against the plain torch calls they stand for."""

from __future__ import annotations

import pytest
import torch

from nsw.kernels.occupancy import OccGridEstimator
from nsw.kernels.packed_rays import MaskedOccGrid, march, packed_weights, packed_weights_reference

BOX = (-1.0, -0.5, -2.0, 1.0, 1.0, 2.0)


def _rays(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    origins = 3.0 * torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    aims = torch.rand(n, 3, generator=generator) * 3 - 1.5
    return origins, torch.nn.functional.normalize(aims - origins, dim=-1)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_march_gives_the_samples_of_the_estimator(share):
    origins, directions = _rays(300)
    cells = torch.rand(8, 5, 11, generator=torch.Generator().manual_seed(0)) < share
    found = []
    for estimator in (OccGridEstimator(BOX, [8, 5, 11]), MaskedOccGrid(BOX, [8, 5, 11])):
        estimator.binaries = cells[None]
        near = torch.linspace(0.0, 2.0, 300)
        found.append(estimator.sampling(origins, directions, t_min=near, t_max=near + 4, render_step_size=0.07, early_stop_eps=0.0))
    slow, fast = ([(int(r), round(float(t), 3)) for r, t in zip(f[0], f[1], strict=True)] for f in found)
    differing = set(slow) ^ set(fast)  # a middle within rounding of a cell's wall may fall on either side
    assert len(differing) <= 0.002 * max(len(slow), 1)
    assert (share > 0) == (len(fast) > 0)


def test_axis_parallel_rays_and_rays_from_inside():
    cells = torch.ones(4, 4, 4, dtype=torch.bool)
    box = torch.tensor([[0.0, 0, 0], [1, 1, 1]])
    origins = torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.5, -1.0], [0.5, 2.0, 0.5]])
    directions = torch.tensor([[1.0, 0, 0], [0.0, 0, 1], [1.0, 0, 0]])
    rays, starts, ends = march(origins, directions, torch.zeros(3), torch.full((3,), 10.0), cells, box, 0.25)
    assert torch.bincount(rays, minlength=3).tolist() == [2, 4, 0]
    assert torch.allclose(ends - starts, torch.full_like(starts, 0.25))


@pytest.mark.parametrize("n_rays, n", [(1, 0), (5, 0), (40, 600)])
def test_weights_and_gradients_match_float64(n_rays, n):
    generator = torch.Generator().manual_seed(n)
    rays = torch.randint(n_rays, (n,), generator=generator).sort().values
    depth = torch.rand(n, generator=generator) ** 3 * 2
    up_weights, up_left = torch.randn(n, generator=generator), torch.randn(n_rays, generator=generator)
    results = []
    for function, dtype in ((packed_weights, torch.float32), (packed_weights_reference, torch.float64)):
        x = depth.to(dtype, copy=True).requires_grad_()
        weights, left = function(x, rays, n_rays)
        (gradient,) = torch.autograd.grad((weights * up_weights.to(dtype)).sum() + (left * up_left.to(dtype)).sum(), x)
        results.append((weights.detach(), left.detach(), gradient))
    for fused, reference in zip(*results, strict=True):
        torch.testing.assert_close(fused.double(), reference, atol=3e-5, rtol=1e-4)


def test_weights_of_opaque_and_infinite_samples_stay_finite():
    depth = torch.tensor([1e4, 1.0, 0.0, 0.5], requires_grad=True)
    weights, left = packed_weights(depth, torch.tensor([0, 0, 1, 1]), 3)
    (weights.sum() + left.sum()).backward()
    assert weights.tolist()[:2] == [1.0, 0.0] and left.tolist()[2] == 1.0
    assert torch.isfinite(depth.grad).all()
