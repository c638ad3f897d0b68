"""Fused weights of packed samples against the plain torch calls they stand for, and rays that a march may stumble over."""

from __future__ import annotations

import pytest
import torch

from nsw.kernels.occupancy import OccGridEstimator
from nsw.kernels.packed_rays import packed_weights, packed_weights_reference


def test_axis_parallel_rays_and_rays_from_inside():
    estimator = OccGridEstimator([0.0, 0, 0, 1, 1, 1], 4)
    estimator.binaries.fill_(True)
    origins = torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.5, -1.0], [0.5, 2.0, 0.5]])
    directions = torch.tensor([[1.0, 0, 0], [0.0, 0, 1], [1.0, 0, 0]])
    rays, starts, ends = estimator.sampling(origins, directions, far_plane=10.0, render_step_size=0.25, early_stop_eps=0.0)
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
