"""Plenoxels: the grid and what its rays see, pruning and growing, the optimiser, schedules, and a short training."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from nsw import metrics
from nsw.cameras import Rays, camera_rays, orbit
from nsw.errors import InputError
from nsw.kernels.harmonics import sh_basis
from nsw.kernels.row_rmsprop import RowRMSProp, rmsprop_rows
from nsw.kernels.voxel_march_reference import shade
from nsw.kernels.voxel_tv import total_variation
from nsw.methods import plenoxels, plenoxels_charts, plenoxels_fit, plenoxels_inspect, plenoxels_stages, plenoxels_trust
from nsw.models import load, save
from nsw.models.plenoxel_grid import PlenoxelGrid, PlenoxelGridSettings
from nsw.renderers import render_view
from nsw.scenes import load as load_scene
from nsw.scenes.bundled import data_dir


def _ball(n_voxels: int = 21**3, degree: int = 1, density: float = 40.0, seed: int = 0) -> PlenoxelGrid:
    """A ball of radius 0.5 with random harmonics in negative density."""
    grid = PlenoxelGrid(PlenoxelGridSettings(n_voxels=n_voxels, sh_degree=degree))
    inside = grid.positions().norm(dim=-1).reshape(-1) < 0.5
    with torch.no_grad():
        grid.values[1:, 0] = torch.where(inside, density, -5.0)
        count = 3 * (degree + 1) ** 2
        grid.values[1:, 1 : 1 + count] = torch.randn(grid.links.numel(), count, generator=torch.Generator().manual_seed(seed))
    return grid


def _cameras(size: int = 16, n: int = 3):
    return orbit(n, radius=3.0, width=size, height=size)


@pytest.mark.parametrize("density", [0.1, 1.0, 5.0])
def test_a_box_of_constant_density_lets_exp_minus_sigma_l_through(density):
    grid = PlenoxelGrid(PlenoxelGridSettings(n_voxels=41**3, sh_degree=0, density_init=density))
    rays = camera_rays(_cameras(8, 1))
    where = plenoxels.march_arguments(grid, rays)
    out = plenoxels.render(grid, rays, background=0.0, stop=0.0)
    length = where["far"] - where["near"]
    # the march counts whole steps, so a chord is known to one of them
    slack = 1.01 * density * grid.sample_length
    assert bool(((-out.left.detach().log() - density * length).abs() <= slack).all())
    torch.testing.assert_close(out.rgb.detach(), (0.5 * (1 - out.left.detach()))[:, None].expand(-1, 3), atol=1e-5, rtol=0)


def test_the_world_unit_of_density_is_half_the_longest_edge():
    small = PlenoxelGrid(PlenoxelGridSettings(n_voxels=9**3, density_init=2.0))
    large = PlenoxelGrid(PlenoxelGridSettings(box=(-4, -4, -4, 4, 4, 4), n_voxels=9**3, density_init=2.0))
    origin = torch.zeros(1, 3)
    assert float(small.density(origin).detach()) == pytest.approx(2.0)
    assert float(large.density(origin).detach()) == pytest.approx(0.5)
    assert float(small.density(torch.tensor([[0.0, 0.0, 1.1]])).detach()) == 0.0


def test_turning_scene_and_viewer_together_changes_no_colour():
    """Degree 1 turns like a vector: rotating coefficients (-y, z, -x) and directions alike leaves colours alone."""
    theta = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0)) * 0.3
    directions = torch.cat([torch.eye(3), -torch.eye(3)])
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    vector = torch.stack([-theta[0, 3], -theta[0, 1], theta[0, 2]])  # x, y, z parts, [3, colours]
    turned = turn @ vector
    rotated = torch.stack([theta[0, 0], -turned[1], turned[2], -turned[0]])[None]
    row = lambda t: torch.cat([torch.zeros(6, 1), t.reshape(1, -1).expand(6, -1), torch.zeros(6, 3)], dim=-1)  # noqa: E731
    before = shade(row(theta), sh_basis(1, directions))
    torch.testing.assert_close(shade(row(rotated), sh_basis(1, directions @ turn.T)), before, atol=1e-6, rtol=0)
    assert float((before[0] - before[3]).abs().max()) > 0.05  # it does depend on direction


def test_total_variation_of_a_ramp_is_its_slope():
    grid = PlenoxelGrid(PlenoxelGridSettings(n_voxels=12**3, sh_degree=0))
    with torch.no_grad():
        grid.values[1:, 0] = 7.0 * torch.arange(12.0).repeat_interleave(144)
    rates = torch.zeros(grid.values.shape[1])
    rates[0] = 1.0
    value = total_variation(grid.values, grid.links, grid.vertices, 1, 10**6, rates)
    assert float(value.detach()) == pytest.approx(7.0 * 12 / 256 * 11 / 12, rel=1e-3)  # the last plane has no neighbour


def test_the_fused_picture_is_the_one_of_the_field():
    grid, cameras = _ball(), _cameras(24, 1)
    fused = plenoxels.render_view(grid, cameras)
    field = render_view(grid, cameras, step=0.01, early_stop=0.0)
    inner = (fused.alpha > 0.99) | (fused.alpha < 0.01)
    assert float((fused.rgb - field.rgb)[inner].abs().max()) < 0.12 and float((fused.rgb - field.rgb).abs().mean()) < 0.01
    assert float((fused.depth - field.depth)[fused.alpha > 0.99].abs().max()) < 0.1


def test_whole_pictures_ask_only_rays_that_meet_the_box_and_any_number_at_once():
    grid, cameras = _ball(), _cameras(24, 2)
    rays = camera_rays(cameras)
    at_once, picture = plenoxels.render(grid, rays, stop=1e-4), plenoxels.render_view(grid, cameras)
    assert torch.equal(picture.rgb.view(-1, 3), at_once.rgb.detach())
    assert torch.equal(picture.alpha.view(-1), 1 - at_once.left.detach())
    assert torch.equal(picture.depth.view(-1), at_once.depth.detach() * rays.z_per_t)
    assert torch.equal(plenoxels.render_view(grid, cameras, chunk=50).rgb, picture.rgb)
    beside = orbit(1, radius=3.0, target=(9.0, 9.0, 9.0), width=8, height=8)
    for background in (0.5, torch.tensor([0.1, 0.2, 0.3])):
        shown = plenoxels.render_view(grid, beside, background=background).rgb
        assert torch.equal(shown, torch.zeros(1, 8, 8, 3) + background)


def test_where_autograd_adds_the_gradient_the_optimiser_finds_the_rows_itself():
    """In float64, as on a GPU, no kernel marks what it touched: the grid has to learn all the same."""
    grid = _ball(9**3).double()
    optimizer, before = RowRMSProp(grid.values, 1.0, 1.0), grid.values.detach().clone()
    rays = camera_rays(_cameras(8, 2))
    rays = Rays(*(value.double() for value in (rays.origins, rays.directions, rays.z_per_t)))
    plenoxels.render(grid, rays).rgb.sum().backward()
    met = (grid.values.grad != 0).any(1)
    optimizer.step(grid.touched)
    assert 0 < int(met.sum()) < len(met) and torch.equal((grid.values.detach() != before).any(1), met)
    fast = _ball(9**3)
    plenoxels.render(fast, camera_rays(_cameras(8, 2))).rgb.sum().backward()
    assert int(fast.touched.sum()) > 0


def test_voters_are_all_rays_or_every_kth():
    rays = camera_rays(_cameras(8, 2))
    assert torch.equal(plenoxels_fit.voters(rays, 100).directions, rays.directions)
    assert torch.equal(plenoxels_fit.voters(rays, 30).directions, rays.directions[::4])


def test_pruning_keeps_what_is_seen_and_its_neighbours():
    grid, rays = _ball(), camera_rays(_cameras(32, 6))
    before = plenoxels.render_view(grid, _cameras()).rgb
    weight = plenoxels.visible_weight(grid, rays)
    solid = grid.values.detach()[:, 0][grid.links.long()] > 0
    assert not bool(weight[0, 0, 0] > 0)
    assert float(weight[10, 10, 10]) < 1e-3  # the middle is hidden by the skin
    optimizer = RowRMSProp(grid.values, 1.0, 1.0)
    share = plenoxels.prune(grid, optimizer, weight, plenoxels.prune_threshold(21))
    assert share == pytest.approx(float(grid.kept.float().mean())) and 0.05 < share < 0.9
    assert optimizer.param_groups[0]["params"][0] is grid.values
    skin = (weight > 0.05) & solid
    assert bool(grid.kept[skin].all()) and not bool(grid.kept[0, 0, 0])
    torch.testing.assert_close(plenoxels.render_view(grid, _cameras()).rgb, before, atol=5e-3, rtol=0)


def test_pruning_everything_says_what_to_check():
    grid = _ball()
    with pytest.raises(InputError, match=r"0\.5 on any training ray.*train longer"):
        plenoxels.prune(grid, None, torch.zeros(grid.shape), 0.5)


def test_the_torch_votes_equal_the_compiled_ones():
    grid, rays = _ball(11**3), camera_rays(_cameras(12, 2))
    compiled = plenoxels.visible_weight(grid, rays)
    for chunk in (50, 1 << 12):
        found = plenoxels._visible_weight_reference(grid, rays, 0.0, chunk).detach()
        torch.testing.assert_close(found, compiled, atol=1e-3, rtol=0)


def test_growing_keeps_the_picture_and_prunes_no_neighbour():
    grid = _ball()
    plenoxels.prune(grid, None, plenoxels.visible_weight(grid, camera_rays(_cameras(32, 6))), 0.01)
    before, n_before = plenoxels.render_view(grid, _cameras()).rgb, int(grid.kept.sum())
    grid.resize(41**3)  # every old vertex is a new one, so that interpolation itself changes nothing
    assert grid.shape == (41, 41, 41) and int(grid.kept.sum()) > 7 * n_before
    assert float((plenoxels.render_view(grid, _cameras()).rgb - before).abs().mean()) < 0.01
    assert torch.equal(grid.links.reshape(-1)[grid.vertices[1:]], torch.arange(1, len(grid.values), dtype=torch.int32))
    assert float(grid.values[0].detach().abs().max()) == 0.0


def test_a_pruned_and_grown_grid_comes_back_from_disk(tmp_path):
    grid = _ball(degree=2)
    plenoxels.prune(grid, None, plenoxels.visible_weight(grid, camera_rays(_cameras(16, 3))), 0.01)
    grid.resize(15**3)
    again = load(save(grid, tmp_path))
    points, directions = torch.rand(50, 3) * 2 - 1, torch.nn.functional.normalize(torch.randn(50, 3), dim=-1)
    for own, other in zip(grid.query(points, directions)[:2], again.query(points, directions)[:2], strict=True):
        assert torch.equal(own, other)
    assert torch.equal(plenoxels.render_view(again, _cameras()).rgb, plenoxels.render_view(grid, _cameras()).rgb)
    plenoxels.render(again, camera_rays(_cameras())).rgb.sum().backward()
    assert again.values.grad.shape == again.values.shape


def test_settings_that_make_no_grid_are_refused():
    with pytest.raises(InputError, match="volume"):
        PlenoxelGrid(PlenoxelGridSettings(box=(0, 0, 0, 1, 0, 1)))
    with pytest.raises(InputError, match="sh_degree is 3"):
        PlenoxelGrid(PlenoxelGridSettings(sh_degree=3))


def test_untouched_rows_keep_value_and_memory():
    values = torch.nn.Parameter(torch.ones(5, 16))
    optimizer = RowRMSProp(values, lr=0.5, lr_colour=0.1)
    values.grad = torch.zeros(5, 16)
    values.grad[2] = 3.0
    optimizer.step()
    moved = (values.detach() != 1).any(1)
    assert moved.tolist() == [False, False, True, False, False]
    # the first touch sets the running square to g^2, so that the first step has the length of the rate, whatever g is
    torch.testing.assert_close(values.detach()[2, :2], torch.tensor([0.5, 0.9]), atol=1e-6, rtol=0)
    assert float(values.grad.abs().max()) == 0.0
    before = optimizer.state[values]["square"].clone()
    values.grad[1] = 1.0
    optimizer.step()
    assert torch.equal(optimizer.state[values]["square"][2], before[2])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_compiled_optimiser_equals_the_torch_calls(momentum):
    generator = torch.Generator().manual_seed(0)
    fused = [torch.randn(40, 16, generator=generator) for _ in range(4)]
    fused[2].abs_()
    fused[2][::3] = 0
    exact = [table.double() for table in fused]
    touched, rates = (torch.rand(40, generator=generator) < 0.5).byte(), torch.rand(16, generator=generator)
    fused[1][touched == 0] = 0
    exact[1][touched == 0] = 0
    rmsprop_rows(*fused, touched.clone(), rates, 0.95, 1e-8, momentum)
    rmsprop_rows(*exact, touched.clone(), rates.double(), 0.95, 1e-8, momentum)
    for ours, theirs in zip(fused, exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-5)


def test_rates_start_low_rise_and_fall():
    rates = [plenoxels.lr_density(k / 100) for k in range(101)]
    top = max(range(101), key=rates.__getitem__)
    assert 1 <= top <= 7 and rates[0] == pytest.approx(0.3) and rates[-1] == pytest.approx(0.05)
    assert all(a > b for a, b in zip(rates[top:], rates[top + 1 :], strict=False))
    assert plenoxels.lr_colour(0.0) == pytest.approx(1e-2) and plenoxels.lr_colour(1.0) == pytest.approx(5e-6)


def test_a_dead_cell_stays_dead_and_a_softplus_comes_back():
    assert plenoxels_inspect.fit_opacity(torch.relu, -0.1) == 0.0
    assert plenoxels_inspect.fit_opacity(torch.relu, 0.1) == pytest.approx(0.3, abs=0.02)
    assert plenoxels_inspect.fit_opacity(torch.nn.functional.softplus, -1.0) == pytest.approx(0.3, abs=0.02)


def test_the_density_gradient_has_the_closed_form():
    sigma, colour, delta = torch.tensor([0.3, 2.0, 1.0]), torch.tensor([0.2, 0.7, 0.4]), 0.5
    left = torch.exp(-delta * sigma.cumsum(0))
    weight = torch.exp(-delta * (sigma.cumsum(0) - sigma)) - left
    behind = (weight * colour).flip(0).cumsum(0).flip(0) - weight * colour
    torch.testing.assert_close(plenoxels_inspect.density_gradient(sigma, colour, delta), delta * (left * colour - behind))


needs_toybox = pytest.mark.skipif(not (data_dir() / "toybox").is_dir(), reason="the bundled scene toybox is not here")
RECIPE = plenoxels_fit.Recipe(sizes=(16, 28), n_steps=90, n_rays=500, sh_degree=1, tv_share=0.3, dilate=1)


@pytest.fixture(scope="module")
def toybox():
    return load_scene("toybox", size=24)


def _trained(scene, bank, recipe, seed: int = 0) -> PlenoxelGrid:
    return plenoxels_inspect.trained(scene, bank, recipe, torch.Generator().manual_seed(seed))


@needs_toybox
def test_a_short_training_learns_the_toys_the_same_way_twice(toybox):
    bank = plenoxels_fit.view_bank(toybox)
    first, second = (_trained(toybox, bank, RECIPE) for _ in range(2))
    shots = plenoxels.render_view(first, toybox.views("test"), toybox.near)
    assert metrics.psnr(shots.rgb, toybox.pixels("test")) > 20.0
    assert first.shape != plenoxels_fit.new_grid(toybox.aabb, RECIPE).shape
    assert torch.equal(first.values, second.values)
    heavy = replace(RECIPE, tv_density=10.0, tv_colour=10.0, tv_share=1.0)
    tuned = plenoxels_fit.finetune(first, bank, heavy, toybox.near, n_steps=20, progress=0.8)
    rough, smooth = (
        float(total_variation(g.values, g.links, g.vertices, 1, 10**7, torch.ones(16)).detach()) for g in (first, tuned)
    )
    assert smooth < 0.8 * rough


@needs_toybox
def test_a_resumed_training_ends_in_the_same_grid(toybox, tmp_path):
    import nsw

    bank = plenoxels_fit.view_bank(toybox, 8)
    recipe = replace(RECIPE, n_steps=40)

    def train(run, stop_at: int | None = None) -> PlenoxelGrid:
        model = plenoxels_fit.new_grid(toybox.aabb, recipe)
        optimizer = plenoxels_fit.make_optimizer(model, recipe)
        for step in run.steps(recipe.n_steps, save={"model": model, "optimizer": optimizer}):
            plenoxels_fit.maintain(model, optimizer, step / recipe.n_steps, recipe, bank.rays, toybox.near)
            plenoxels_fit.set_rates(optimizer, step / recipe.n_steps, recipe)
            rays, colours = bank.draw(recipe.n_rays, run.generator)
            out = plenoxels.render(model, rays, toybox.near, jitter=run.generator)
            run.loss(**plenoxels_fit.losses(model, out, colours, recipe, run.generator)).backward()
            optimizer.step(model.row_gradient().touched)
            if step == stop_at:
                raise KeyboardInterrupt
        return model

    whole = train(nsw.start("plx", preset="smoke", out=tmp_path / "a"))
    cut = nsw.start("plx", preset="smoke", out=tmp_path / "b")
    cut.checkpoint_seconds = 0.0
    with pytest.raises(KeyboardInterrupt):
        train(cut, stop_at=27)
    resumed = train(nsw.start("plx", preset="smoke", out=tmp_path / "b", resume=True))
    assert torch.equal(whole.values, resumed.values) and torch.equal(whole.links, resumed.links)


@needs_toybox
def test_free_air_is_in_front_of_surfaces_and_floaters_are_counted_there(toybox):
    camera = toybox.cameras[int(toybox.frames("train")[0])]
    depth = toybox.depth[int(toybox.frames("train")[0])]
    rays, flat = camera_rays(camera), depth.reshape(-1)
    hit = flat > 0
    surface = rays.origins[hit] + (flat[hit] / rays.z_per_t[hit])[:, None] * rays.directions[hit]
    before = surface - 0.4 * rays.directions[hit]
    assert float(plenoxels_inspect.free_air(toybox, before, 0.1).float().mean()) > 0.8
    # at 24 px a few surface points next to an outline are still taken for air
    assert float(plenoxels_inspect.free_air(toybox, surface, 0.1).float().mean()) < 0.1
    grid = PlenoxelGrid(PlenoxelGridSettings(tuple(toybox.aabb.reshape(6).tolist()), n_voxels=16**3, density_init=-1.0))
    free = plenoxels_inspect.free_voxels(grid, toybox)
    assert plenoxels_inspect.floater_mass(grid, free) == 0.0
    with torch.no_grad():
        grid.values[1:, 0] = 1e6
    assert plenoxels_inspect.floater_mass(grid, free) > 1000


@needs_toybox
def test_few_views_are_spread_and_their_rays_meet_the_box(toybox):
    eight, all_views = plenoxels_fit.view_bank(toybox, 8), plenoxels_fit.view_bank(toybox)
    assert len(eight.rays.origins.unique(dim=0)) == 8
    assert len(all_views.rays.origins.unique(dim=0)) == len(toybox.frames("train"))
    where = plenoxels.march_arguments(plenoxels_fit.new_grid(toybox.aabb, RECIPE), eight.rays)
    assert bool((where["far"] > where["near"]).all())


def test_pictures_for_the_notebook_show_what_they_say():
    grid = _ball(degree=2)
    nearest, linear = plenoxels_inspect.lookup_picture(True), plenoxels_inspect.lookup_picture(False)
    assert len(nearest.reshape(-1, 3).unique(dim=0)) <= 25 < len(linear.reshape(-1, 3).unique(dim=0))
    point, up = torch.tensor([[0.0, 0.0, 0.4]]), torch.tensor([[0.0, 0.0, 1.0]])
    plain = plenoxels_inspect.glyphs(grid, point, up, degree=0, size=32)
    rich = plenoxels_inspect.glyphs(grid, point, up, degree=2, size=32)
    middle = slice(10, 22)
    assert float(plain[middle, middle].std(dim=(0, 1)).max()) < 1e-5 < float(rich[middle, middle].std(dim=(0, 1)).max())
    flat = plenoxels_inspect.with_degree(grid, 0)
    assert float(flat.values[:, 4:].detach().abs().max()) == 0.0
    blocky = plenoxels_inspect.with_lookup(grid, True)
    points = torch.rand(20, 3) * 0.2
    assert not torch.equal(blocky.density(points), grid.density(points))
    assert plenoxels_inspect.at_size(grid, 9).shape == (9, 9, 9)
    assert plenoxels_inspect.density_slice(grid, 0.5).shape == (21, 21, 3)
    assert plenoxels_inspect.labelled(torch.zeros(10, 50, 3), "x").shape == (32, 50, 3)
    map_ = plenoxels_inspect.shadows(grid.kept)
    assert map_.shape[1] == 3 * (21 + 4) and 0 <= float(map_.min()) <= float(map_.max()) <= 1
    assert not math.isnan(float(copy.deepcopy(grid).alpha().mean()))


def test_the_cauchy_prior_is_its_formula_and_touches_what_is_dense():
    grid = _ball(9**3)
    value = plenoxels.loss_sparsity(grid, torch.Generator().manual_seed(0), share=1.0)
    sigma = grid.values.detach().clone().requires_grad_()
    expected = torch.log(1 + 2 * sigma[1:, 0].clamp_min(0).square()).mean()
    torch.testing.assert_close(value.detach(), expected.detach())
    (3 * value).backward()
    torch.testing.assert_close(grid.row_gradient().values, torch.autograd.grad(3 * expected, sigma)[0])
    assert torch.equal(grid.touched.bool(), sigma.detach()[:, 0] > 0)
    third = plenoxels.loss_sparsity(grid, torch.Generator().manual_seed(1), share=0.3)
    grid.row_gradient().touched.zero_()
    third.backward()
    assert 0 < int(grid.touched.sum()) <= round(0.3 * (len(grid.values) - 1))


def test_a_ray_is_pulled_to_the_nearer_end():
    left = torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0], requires_grad=True)
    (slope,) = torch.autograd.grad(plenoxels.loss_beta(left), left)
    assert slope[1] > 0 > slope[3] and abs(float(slope[2])) < 1e-6 and bool(slope.isfinite().all())


def test_information_is_the_sum_of_squared_gradients():
    grid, rays = _ball(9**3, degree=0), camera_rays(_cameras(6, 1))
    exact = torch.zeros_like(grid.values)
    for i in range(len(rays)):
        for c in range(3):
            plenoxels.render(grid, rays[i : i + 1], skip=grid.empty_space()).rgb[0, c].backward()
            exact += grid.row_gradient().values.square()
            grid.row_gradient().values.zero_()
    draws = [plenoxels_trust.information(grid, rays, 0.0, torch.Generator().manual_seed(k)) for k in range(400)]
    found = torch.stack(draws).mean(0)
    assert float((found - exact.detach()).abs().sum() / exact.sum()) < 0.1
    assert float(grid.values.grad.abs().max()) == 0.0 and int(grid.touched.sum()) == 0


def test_a_number_of_voxels_is_seen_as_colour_is_seen():
    grid, camera = _ball(), _cameras(16, 1)
    height = grid.positions()[..., 2].reshape(-1)[grid.vertices]
    shown = plenoxels_trust.seen(grid, height, camera, 0.0)
    there = shown.isfinite()
    assert torch.equal(there, plenoxels.render_view(grid, camera).alpha > 0.5)
    assert float(shown[there].min()) >= -0.62 and float(shown[there].max()) <= 0.62
    assert float(shown[0, 5, 8]) > float(shown[0, 10, 8]) + 0.2  # the top of the ball is above its lower half
    assert plenoxels_trust.doubt_map(grid, height, camera, 0.0).shape == (16, 16, 3)
    square = torch.rand(grid.values.shape)
    doubts = plenoxels_trust.measures(square, torch.zeros_like(square))
    apart = doubts["pulled for what is said"] - doubts["still pulled"]  # nothing is said anywhere: the least counts
    torch.testing.assert_close(apart, torch.full_like(apart, math.log(1e3)), atol=1e-4, rtol=0)


@needs_toybox
def test_the_grid_before_growing_is_kept_and_its_stages_lead_to_the_end(toybox):
    bank, recipe = plenoxels_fit.view_bank(toybox, 8), replace(RECIPE, n_steps=30)
    model, before = (plenoxels_fit.new_grid(toybox.aabb, recipe) for _ in range(2))
    first, coarse = model.values.detach().clone(), model.shape
    assert not plenoxels_fit.maintain(model, None, 0.1, recipe, bank.rays, toybox.near, before)
    assert plenoxels_fit.maintain(model, None, 0.5, replace(recipe, prune=0), bank.rays, toybox.near, before)
    assert before.shape == coarse != model.shape and torch.equal(before.values, first)
    stages = plenoxels_stages.stages(before, model, bank, replace(recipe, prune=1e-6), toybox.near, n_steps=2)
    assert list(stages) == ["before", "pruned, grown", "2 steps later", "at the end"]
    assert [grid.shape == model.shape for grid in stages.values()] == [False, True, True, True]
    assert not torch.equal(stages["pruned, grown"].values, stages["2 steps later"].values)
    picture = plenoxels_stages.growth_picture(stages, toybox, 2, 0.3, size=60)
    assert picture.shape[1] == 2 * (60 + 10) and 0 <= float(picture.min()) <= float(picture.max()) <= 1
    trained = _trained(toybox, bank, RECIPE)
    assert abs(plenoxels_trust.agreement(trained, {"chance": torch.rand(len(trained.values))}, toybox)["chance"]) < 0.2


@needs_toybox
def test_a_row_of_measurements_for_each_grid(toybox):
    grid = plenoxels_fit.new_grid(toybox.aabb, RECIPE)
    shots = {"grid": plenoxels.render_view(grid, toybox.views("test"), toybox.near)}
    shots["other"] = shots["grid"]
    found = plenoxels_charts.measured({"grid": grid}, shots, toybox, "metal ball")
    assert found["other"] == found["grid"] | {"floaters": None, "voxels kept": None} and found["grid"]["voxels kept"] == 1.0
    assert set(found["grid"]) == {"PSNR (dB)", "on the metal ball", "depth error", "floaters", "voxels kept"}
    bare = plenoxels_charts.measured({"grid": grid}, shots, replace(toybox, depth=None), "picture")["grid"]
    assert bare["depth error"] is None and bare["on the picture"] == pytest.approx(bare["PSNR (dB)"])
    miss = plenoxels_charts.depth_miss(shots["grid"], toybox)
    assert miss.shape == toybox.depth.shape[1:] and float(miss[toybox.depth[int(toybox.frames("test")[0])] == 0].abs().sum()) == 0
    assert plenoxels_charts.zoomed(grid, toybox.views("test")[0], toybox.near).shape[2] == 3


def test_rates_begin_and_end_where_they_should():
    (t, harmonics) = plenoxels_charts.rates((30.0, 1.0), (0.05, 3e-3))["harmonics"]
    assert (t[0], t[-1]) == (0.0, 1.0) and (harmonics[0], harmonics[-1]) == pytest.approx((0.05, 3e-3))
