"""Features on the compiled kernels against the float64 reference: values, and gradients of features and of geometry."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from nsw.cameras import orbit
from nsw.methods import feature_3dgs as f3
from nsw.models.feature_gaussians import FeatureGaussians
from nsw.models.gaussians import Gaussians


def a_scene(n_features: int, n: int = 60):
    generator = torch.Generator().manual_seed(0)
    splats = Gaussians.random(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), n, generator, sh_degree=0)
    with torch.no_grad():
        splats.scales.copy_(torch.log(0.05 + 0.2 * torch.rand(n, 3, generator=generator)))
        splats.quats.copy_(torch.randn(n, 4, generator=generator))
        splats.opacities.copy_(3 * torch.randn(n, generator=generator))
    model = FeatureGaussians.around(splats, n_features, 80)
    model.features.data = torch.randn(n, n_features, generator=generator)
    return model, orbit(1, 3.0, 20.0, width=40, height=30), torch.randn(1, 80, 15, 20, generator=generator)


@pytest.mark.parametrize("n_features", [3, 16, 33, 80])
@pytest.mark.parametrize("joint", [False, True])
def test_feature_maps_and_their_gradients(n_features, joint):
    fast, cameras, pull = a_scene(n_features)
    exact = copy.deepcopy(fast).double()
    seen = f3.feature_map(fast, cameras, (15, 20), joint=joint)
    double = replace(cameras, cam_from_world=cameras.cam_from_world.double(), Ks=cameras.Ks.double())
    true = f3.feature_map(exact, double, (15, 20), joint=joint)
    assert torch.allclose(seen.double(), true, atol=2e-5)
    (seen * pull).sum().backward()
    (true * pull.double()).sum().backward()
    for name, parameter in exact.named_parameters():
        mine = fast.get_parameter(name).grad
        if parameter.grad is None:
            assert mine is None and name not in ("features", "decoder.weight")
            continue
        scale = parameter.grad.abs().max().clamp_min(1e-6)
        assert float(((mine.double() - parameter.grad) / scale).abs().max()) < 2e-4, name
    assert (exact.means.grad is not None) == joint


def test_the_gradient_of_a_feature_is_the_sum_of_its_weights():
    r"""$\partial L / \partial f_i = \sum_p \alpha_i T_i\,g(p)$: with g = 1, what one channel of ones composites to."""
    model, cameras, _ = a_scene(4)
    f3.composited(model, cameras, model.features).sum().backward()
    weights = torch.stack([f3.composited(model, cameras, row).sum() for row in torch.eye(len(model))[:, :, None]])
    assert torch.allclose(model.features.grad, weights[:, None].expand(-1, 4), rtol=1e-4, atol=1e-4)
