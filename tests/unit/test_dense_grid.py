"""The dense grid: activations, resizing that keeps what rays see, masks, state of another size."""

from __future__ import annotations

import pytest
import torch

from nsw.cameras import Rays
from nsw.errors import InputError
from nsw.kernels.volume import render_weight_from_density
from nsw.models.dense_grid import (
    ACTIVATIONS,
    DenseGrid,
    DenseGridSettings,
    alpha_from_raw,
    grid_shape,
    in_activation,
    lattice,
    post_activation,
    pre_activation,
    shift_for_alpha,
)
from nsw.renderers.volume import render_rays


def _slab(n_voxels: int = 24**3) -> DenseGrid:
    """A solid wall between x = -0.2 and 0.2, soft at the borders, in free space."""
    grid = DenseGrid(DenseGridSettings(n_voxels=n_voxels, alpha_init=1e-6, n_features=0))
    x = grid.vertices()[..., 0]
    grid.raw_density.data[..., 0] = 14.0 - 60.0 * (x.abs() - 0.2).clamp_min(-0.1)
    return grid


def _rays(n: int = 50) -> Rays:
    generator = torch.Generator().manual_seed(0)
    origins = torch.cat([torch.full((n, 1), -3.0), torch.rand(n, 2, generator=generator) - 0.5], dim=-1)
    aims = torch.cat([torch.zeros(n, 1), torch.rand(n, 2, generator=generator) - 0.5], dim=-1)
    return Rays(origins, torch.nn.functional.normalize(aims - origins, dim=-1), torch.ones(n))


@pytest.mark.parametrize("delta", [0.25, 0.5, 1.0, 2.0])
def test_closed_form_equals_the_softplus_path(delta):
    raw = torch.linspace(-20, 15, 400)
    x = raw.double() + shift_for_alpha(1e-2)
    closed = 1 - (1 + x.exp()) ** (-delta)
    softplus_path = 1 - torch.exp(-torch.nn.functional.softplus(x) * delta)
    torch.testing.assert_close(closed, softplus_path, atol=1e-6, rtol=0)
    torch.testing.assert_close(alpha_from_raw(raw, shift_for_alpha(1e-2), delta).double(), closed, atol=1e-6, rtol=0)


@pytest.mark.parametrize("alpha_init", [1e-7, 1e-6, 1e-2, 0.3])
def test_raw_zero_has_the_opacity_asked_for(alpha_init):
    assert alpha_from_raw(torch.zeros(1), shift_for_alpha(alpha_init)).item() == pytest.approx(alpha_init, rel=1e-4)


@pytest.mark.parametrize("wrong", [0.0, 1.0, -0.1, 2.0])
def test_an_impossible_alpha_init_is_refused(wrong):
    with pytest.raises(InputError, match="between 0 and 1"):
        shift_for_alpha(wrong)


def test_activations_agree_where_the_grid_is_constant_and_at_vertices():
    grid = DenseGrid(DenseGridSettings(n_voxels=5**3, alpha_init=1e-2))
    grid.raw_density.data.normal_(generator=torch.Generator().manual_seed(0))
    vertices = grid.vertices().reshape(-1, 3)
    sigmas = []
    for activation in ACTIVATIONS:
        grid.use_activation(activation)
        sigmas.append(grid.sigma(vertices))
    torch.testing.assert_close(sigmas[1], sigmas[0], atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(sigmas[2], sigmas[0], atol=1e-5, rtol=1e-3)


def test_each_activation_is_the_mean_of_what_it_interpolates():
    raw, shift = torch.tensor([-1.0, 3.0]).reshape(2, 1, 1, 1), 0.5

    def middle(values):
        """Interpolate half way between the two vertices."""
        return values.reshape(2, 1).mean(dim=0, keepdim=True)

    soft = torch.nn.functional.softplus
    assert post_activation(middle, raw, shift).item() == pytest.approx(soft(torch.tensor(1.5)).item())
    assert in_activation(middle, raw, shift).item() == pytest.approx(soft(torch.tensor([-0.5, 3.5])).mean().item())
    alpha = 1 - torch.exp(-soft(torch.tensor([-0.5, 3.5])) * 0.5)
    assert pre_activation(middle, raw, shift).item() == pytest.approx(-torch.log(1 - alpha.mean()).item() / 0.5, rel=1e-5)


def test_only_post_activation_holds_a_sharp_edge_within_a_cell():
    grid = DenseGrid(DenseGridSettings(n_voxels=2**3, alpha_init=1e-6))
    grid.raw_density.data[0] = -400.0
    grid.raw_density.data[1] = 400.0
    x = torch.linspace(-0.99, 0.99, 400)
    points = torch.stack([x, torch.zeros(400), torch.zeros(400)], dim=-1)
    width = {}
    for activation in (post_activation, in_activation, pre_activation):
        grid.use_activation(activation)
        alpha = 1 - torch.exp(-grid.sigma(points))
        width[activation] = float(((alpha > 0.1) & (alpha < 0.9)).float().mean())
    assert width[post_activation] < 0.01
    assert width[pre_activation] > 10 * width[post_activation]


def test_doubling_the_voxels_keeps_the_opacity_of_a_slab_within_one_percent():
    grid, rays = _slab(), _rays()
    before = render_rays(grid, rays, n_samples=400).alpha
    grid.resize(2 * 24**3)
    doubled = render_rays(grid, rays, n_samples=400).alpha
    grid.resize(8 * 24**3)
    eightfold = render_rays(grid, rays, n_samples=400).alpha
    assert grid.shape == (48, 48, 48)
    assert float(before.detach().min()) > 0.5
    torch.testing.assert_close(doubled, before, atol=0, rtol=0.01)
    torch.testing.assert_close(eightfold, before, atol=0, rtol=0.01)


def test_a_thin_slab_too_where_forgetting_the_ratio_would_show():
    grid, rays = _slab(25**3), _rays()
    grid.raw_density.data -= 8.0  # translucent: about half the light passes
    before = render_rays(grid, rays, n_samples=400).alpha
    assert 0.05 < float(before.detach().mean()) < 0.95
    grid.resize(49**3)  # every old vertex is a new one, so that interpolation itself changes nothing
    torch.testing.assert_close(render_rays(grid, rays, n_samples=400).alpha, before, atol=0, rtol=0.01)


def test_nothing_outside_of_the_box_or_in_free_cells():
    grid = _slab()
    points = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.5], [0.0, -1.01, 0.0]])
    assert (grid.density(points) > 0).tolist() == [True, False, False]
    grid.occupied = torch.zeros(4, 4, 4, dtype=torch.bool)
    assert float(grid.density(points).detach().abs().max()) == 0.0
    assert render_rays(grid, _rays(4), **grid.render_defaults).alpha.tolist() == [0.0] * 4


def test_packed_and_batched_rendering_agree():
    grid, rays = _slab(), _rays()
    grid.features.data.normal_(generator=torch.Generator().manual_seed(1))
    grid.occupied = lattice(grid.aabb, (16, 16, 16), centres=True)[..., 0].abs() < 0.5
    options = {**grid.render_defaults, "step": 0.01, "early_stop": 0.0}
    packed, batched = render_rays(grid, rays, **options), render_rays(grid, rays, n_samples=400)
    assert len(packed.t) < batched.t.numel()
    torch.testing.assert_close(packed.rgb, batched.rgb, atol=5e-3, rtol=0)


@pytest.mark.parametrize("settings", [dict(n_features=4, mlp_width=16), dict(sh_degree=2), dict()])
def test_colours_are_colours_and_everything_learns(settings):
    grid = DenseGrid(DenseGridSettings(n_voxels=6**3, alpha_init=0.1, **settings))
    directions = torch.nn.functional.normalize(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    density, rgb, _ = grid.query(torch.rand(20, 3) * 2 - 1, directions)
    assert density.shape == (20,) and rgb.shape == (20, 3)
    assert float(rgb.min()) >= 0 and float(rgb.max()) <= 1
    (density.sum() + rgb.square().sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in grid.parameters())


def test_state_of_a_grown_grid_loads_into_a_fresh_one(tmp_path):
    from nsw.models import load, save

    settings = DenseGridSettings(n_voxels=12**3, n_start=6**3, n_features=4, mlp_width=8)
    grid = DenseGrid(settings, in_activation)
    grid.raw_density.data.normal_(generator=torch.Generator().manual_seed(0))
    grid.resize(12**3, shift_change=-1.0)
    grid.occupied = torch.rand(7, 8, 9, generator=torch.Generator().manual_seed(1)) > 0.5
    fresh = load(save(grid, tmp_path))
    assert fresh.shape == (12, 12, 12) and fresh.activation is in_activation
    points, directions = torch.rand(50, 3) * 2 - 1, torch.nn.functional.normalize(torch.randn(50, 3), dim=-1)
    for own, other in zip(grid.query(points, directions), fresh.query(points, directions), strict=True):
        assert torch.equal(own, other)
    fresh.query(points, directions).density.sum().backward()
    assert fresh.raw_density.grad.shape == fresh.raw_density.shape


def test_another_number_of_features_is_another_model():
    state = DenseGrid(DenseGridSettings(n_voxels=4**3, sh_degree=1)).state_dict()
    with pytest.raises(RuntimeError, match="features"):
        DenseGrid(DenseGridSettings(n_voxels=4**3)).load_state_dict(state)


def test_shapes_follow_the_box():
    assert grid_shape(torch.tensor([[0.0, 0, 0], [4, 2, 1]]), 8 * 10**3) == (40, 20, 10)
    with pytest.raises(InputError, match="volume"):
        DenseGrid(DenseGridSettings(box=(0, 0, 0, 1, 0, 1)))


def test_weights_agree_with_the_closed_form_alpha():
    grid = _slab()
    t = torch.linspace(2.0, 4.0, 41)
    points = torch.stack([t - 3.0, torch.zeros(41), torch.zeros(41)], dim=-1)
    lengths = (t[1:] - t[:-1])[None]
    middle = (points[1:] + points[:-1]) / 2
    weights, _, alphas = render_weight_from_density(t[None, :-1], t[None, 1:], grid.density(middle)[None])
    raw = grid.interpolate(grid.raw_density, middle)[:, 0]
    expected = alpha_from_raw(raw, grid.shift, float(lengths[0, 0] / grid.voxel))
    torch.testing.assert_close(alphas[0], expected, atol=1e-5, rtol=0)
    assert float(weights.sum()) <= 1.0 + 1e-6
