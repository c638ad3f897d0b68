"""DVGO: box, view counts, mask, losses, masked Adam, growing, and both stages on a small scene."""

from __future__ import annotations

import math

import pytest
import torch

from nsw import metrics
from nsw.cameras import Cameras, Rays, camera_rays, intrinsics, look_at, orbit
from nsw.errors import InputError
from nsw.kernels.masked_adam import MaskedAdam, adam_update
from nsw.methods import dvgo, dvgo_stages
from nsw.methods.instant_ngp import meets
from nsw.models.dense_grid import DenseGrid, DenseGridSettings
from nsw.models.mlp import NerfMLP, NerfSettings
from nsw.renderers import volume
from nsw.scenes import load
from nsw.scenes.bundled import data_dir


def _ball(n_voxels: int = 20**3, **settings) -> DenseGrid:
    """A solid ball of radius 0.5 in free space."""
    grid = DenseGrid(DenseGridSettings(n_voxels=n_voxels, **settings))
    grid.raw_density.data[..., 0] = 40.0 * (0.5 - grid.vertices().norm(dim=-1)) - grid.shift
    return grid


def _cameras(size: int = 12) -> Cameras:
    return orbit(6, radius=3.0, width=size, height=size)


def test_untouched_voxels_keep_value_and_moments():
    parameter = torch.nn.Parameter(torch.ones(4, 1))
    optimizer = MaskedAdam([parameter], lr=0.1)
    for touched in ([0, 1], [1, 2], [1]):
        parameter.grad = torch.zeros(4, 1)
        parameter.grad[touched] = 0.5
        kept = parameter.detach().clone()
        moments = {k: v.clone() for k, v in optimizer.state[parameter].items() if isinstance(v, torch.Tensor)}
        optimizer.step()
        rest = [i for i in range(4) if i not in touched]
        assert torch.equal(parameter.detach()[rest], kept[rest])
        assert not torch.equal(parameter.detach()[touched], kept[touched])
        for name, before in moments.items():
            assert torch.equal(optimizer.state[parameter][name][rest], before[rest])
        assert float(parameter.grad.abs().max()) == 0.0


def test_masked_adam_is_adam_where_every_gradient_is_there():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(50, 3)) for _ in range(2))
    masked, plain = MaskedAdam([ours], lr=0.05), torch.optim.Adam([theirs], lr=0.05, betas=(0.9, 0.99))
    for _ in range(20):
        ours.grad = torch.randn(50, 3, generator=generator)
        theirs.grad = ours.grad.clone()
        masked.step()
        plain.step()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("skip_zero", [True, False])
def test_the_fused_sweep_equals_the_torch_calls(skip_zero):
    generator = torch.Generator().manual_seed(1)
    first = [torch.randn(6, 5, 4, 3, generator=generator).abs() for _ in range(4)]
    first[1][::2] = 0.0
    rate = torch.rand(6, 5, 4, 1, generator=generator)
    second = [t.double() for t in first]
    constants = (0.1, 0.9, 0.99, 1.5, 1e-8, skip_zero)
    adam_update(*first, rate, *constants)
    adam_update(*second, rate.double(), *constants)
    for fused, reference in zip(first, second, strict=True):
        torch.testing.assert_close(fused.double(), reference, atol=1e-5, rtol=1e-5)


def test_rates_scale_the_first_step():
    grid = DenseGrid(DenseGridSettings(n_voxels=3**3))
    counts = torch.zeros(grid.shape, dtype=torch.long)
    counts[0], counts[1] = 4, 2
    assert dvgo.view_rate(counts)[:, 0, 0, 0].tolist() == [1.0, 0.5, 0.0]
    optimizer = dvgo.make_optimizer(grid, lr=0.1, counts=counts)
    grid.raw_density.grad = torch.ones_like(grid.raw_density)
    optimizer.step()
    moved = -grid.raw_density.detach()[:, 0, 0, 0]
    torch.testing.assert_close(moved, torch.tensor([0.1, 0.05, 0.0]), atol=1e-6, rtol=1e-5)


def test_the_box_holds_every_ray_between_near_and_far():
    cameras = _cameras()
    box = dvgo.frusta_box(cameras, 2.0, 4.0)
    rays = camera_rays(cameras)
    for distance in (2.0, 3.1, 4.0):
        points = rays.origins + distance * rays.directions
        slack = 0.02  # rays between the nine of a picture
        assert bool(((points >= box[0] - slack) & (points <= box[1] + slack)).all())


def test_views_are_counted_where_cameras_look():
    camera = Cameras(look_at(torch.tensor([[0.0, -3.0, 0.0]])), intrinsics(40.0, 16, 16), 16, 16)
    grid = DenseGrid(DenseGridSettings(n_voxels=9**3))
    counts = dvgo.count_views(grid, camera, near=1.0, far=10.0)
    assert counts[4, 4, 4] == 1  # the middle
    assert counts[0, 0, 0] == 0  # a near corner, outside of the picture
    assert int(dvgo.count_views(grid, camera, near=1.0, far=2.5).sum()) < int(counts.sum())
    both = Cameras(camera.cam_from_world.repeat(2, 1, 1), camera.Ks.repeat(2, 1, 1), 16, 16)
    assert torch.equal(dvgo.count_views(grid, both, 1.0, 10.0), 2 * counts)


def test_voxels_near_a_camera_or_hardly_seen_become_transparent():
    camera = Cameras(look_at(torch.tensor([[0.0, -1.0, 0.0]])), intrinsics(40.0, 8, 8), 8, 8)
    grid = DenseGrid(DenseGridSettings(n_voxels=9**3))
    counts = torch.full(grid.shape, 3)
    counts[8] = 2
    dvgo.hide_voxels(grid, camera, 0.5, counts)
    hidden = grid.raw_density.detach()[..., 0] == dvgo.HIDDEN
    assert bool(hidden[8].all()) and bool(hidden[4, 0, 4]) and not bool(hidden[4, 8, 4])
    assert float(grid.alpha()[hidden].max()) == 0.0


def test_tight_box_and_mask_hold_the_ball():
    ball = _ball()
    box = dvgo.tight_box(ball)
    assert float(box[0].max()) < -0.45 and float(box[0].min()) > -0.75
    mask = dvgo.free_space_mask(ball, box, (15, 15, 15))
    fine = DenseGrid(DenseGridSettings(tuple(box.reshape(6).tolist()), n_voxels=15**3))
    fine.occupied = mask
    inside = torch.nn.functional.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)), dim=-1) * 0.5
    assert bool(fine.is_occupied(inside).all())
    assert not bool(mask[0, 0, 0])  # the corner of the box is free


def test_an_empty_coarse_stage_says_what_to_check():
    with pytest.raises(InputError, match=r"no voxel more opaque than 0\.001.*near and far.*background"):
        dvgo.tight_box(DenseGrid(DenseGridSettings(n_voxels=8**3)))


def test_the_mask_only_shrinks():
    ball = _ball()
    ball.occupied = torch.rand(12, 12, 12, generator=torch.Generator().manual_seed(0)) > 0.3
    before = ball.occupied.clone()
    share = dvgo.refresh_mask(ball)
    assert 0 < share < float(before.float().mean())
    assert bool((before | ~ball.occupied).all())


def test_an_inherited_density_is_the_coarse_one_above_the_start_and_below_the_top():
    coarse = _ball(12**3)
    fine = DenseGrid(DenseGridSettings((-0.8,) * 3 + (0.8,) * 3, n_voxels=18**3, alpha_init=1e-3))
    start, most = float(fine.sigma(torch.zeros(1, 3)).detach()), 0.9
    dvgo.inherit_density(fine, coarse, most)
    points = fine.vertices().reshape(-1, 3)
    expected = (coarse.density(points) * fine.voxel).clamp(start, -math.log1p(-most))
    torch.testing.assert_close(fine.sigma(points), expected, atol=1e-5, rtol=1e-3)
    kinds = [float((expected == limit).float().mean()) for limit in (expected.min(), expected.max())]
    assert min(*kinds, 1 - sum(kinds)) > 0.01  # outside, inside and the shell between are all there


def test_batches_by_samples_follow_what_a_ray_keeps():
    ball, every = _ball(), camera_rays(_cameras())
    bank, seen = dvgo_stages.RayBank(every, torch.zeros(len(every), 3)), []
    stage = dvgo_stages.Stage(n_steps=6, n_rays=64, n_samples=4000, threshold=1e-4, lr=0.0)
    watch = lambda step, spent, out: seen.append((len(out.rgb), len(out.t)))  # noqa: E731
    dvgo_stages.fit(ball, bank, stage, torch.Generator().manual_seed(0), 0.0, watch=watch)
    assert seen[0][0] == 64 and seen[0][1] < 2000
    assert seen[-1][1] == pytest.approx(4000, rel=0.2)


def test_rays_that_miss_the_mask_show_the_background():
    ball, rays = _ball(), camera_rays(_cameras())
    ball.occupied = dvgo.free_space_mask(ball, ball.aabb, (16, 16, 16))
    hit = dvgo.hits_mask(ball, rays)
    out = dvgo.render(ball, rays, background=0.25)
    assert 0 < int(hit.sum()) < len(rays)
    torch.testing.assert_close(out.rgb[~hit], torch.full((int((~hit).sum()), 3), 0.25))
    assert float(out.left.detach()[hit].min()) < 0.01


def test_fast_rendering_agrees_with_the_volume_renderer():
    from nsw.renderers import volume

    ball = _ball(n_features=4, mlp_width=8)
    cameras = _cameras()[:2]
    ours = dvgo.render_view(ball, cameras)
    theirs = volume.render_view(ball, cameras)
    torch.testing.assert_close(ours.rgb, theirs.rgb, atol=5e-3, rtol=0)
    torch.testing.assert_close(ours.alpha, theirs.alpha, atol=5e-3, rtol=0)
    solid = theirs.alpha > 0.99
    torch.testing.assert_close(ours.depth[solid], theirs.depth[solid], atol=2e-2, rtol=0)


def test_per_point_loss_by_hand_and_without_gradient_to_the_weights():
    ball, rays = _ball(), Rays(torch.tensor([[0.0, -3.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]]), torch.ones(1))
    out = dvgo.render(ball, rays)
    colours = torch.tensor([[0.25, 0.5, 0.5]])
    loss = dvgo.loss_per_point(out, colours)  # grey samples: (0.25^2) times an opacity of one
    assert loss.item() == pytest.approx(0.0625 * float(out.weights.detach().sum()), rel=1e-4)
    loss.backward()
    assert ball.raw_density.grad is None or float(ball.raw_density.grad.abs().max()) == 0.0
    assert float(ball.features.grad.abs().max()) > 0


def test_growing_keeps_training_and_a_second_state_resumes_it():
    sizes = dict(n_voxels=16**3, alpha_init=1e-2, n_features=3, mlp_width=8)
    stage = dvgo_stages.Stage(n_steps=6, n_rays=64, threshold=1e-4, grow=(2,), **sizes)
    every = camera_rays(_cameras())
    bank = dvgo_stages.RayBank(every, torch.rand(len(every), 3, generator=torch.Generator().manual_seed(3)))

    def start():
        torch.manual_seed(0)
        model = DenseGrid(DenseGridSettings(n_start=8**3, **sizes))
        return model, dvgo.make_optimizer(model), torch.Generator().manual_seed(0)

    def go(model, optimizer, generator, steps):
        for step in steps:
            dvgo_stages.maintain(model, optimizer, step, stage)
            dvgo.decay(optimizer, step / stage.n_steps)
            rays, colours = bank.draw(stage.n_rays, generator)
            out = dvgo.render(model, rays, 0.0, 1.0, generator)
            sum(dvgo_stages.losses(out, colours, stage).values()).backward()
            optimizer.step()

    whole = start()
    go(*whole, range(6))
    first = start()
    go(*first, range(4))
    second = start()
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    second[2].set_state(first[2].get_state())
    go(*second, range(4, 6))
    assert second[0].shape == (16, 16, 16)
    for name, value in whole[0].state_dict().items():
        assert torch.equal(value, second[0].state_dict()[name]), name


@pytest.mark.skipif(not (data_dir() / "toybox" / "manifest.json").is_file(), reason="the bundled scene toybox is not there")
def test_a_bank_made_picture_by_picture_holds_the_rays_of_all_at_once():
    from nsw.methods import dvgo_inspect as look

    scene = load("toybox", size=24)
    bank, rays, colours = dvgo_stages.ray_bank(scene), camera_rays(scene.views("train")), scene.pixels("train").reshape(-1, 3)
    inside, hits = dvgo_stages.ray_bank(scene, aabb=scene.aabb), meets(rays, scene.aabb)
    for found, wanted in ((bank, slice(None)), (inside, hits)):
        assert torch.equal(found.colours, colours[wanted])
        for name in ("origins", "directions", "z_per_t"):
            assert torch.equal(getattr(found.rays, name), getattr(rays, name)[wanted])
    assert 0 < len(inside) < len(bank)
    points, normals = look.surface_points(scene, n=100)
    depths = [scene.depth[frame].reshape(-1) for frame in scene.frames("test")]
    shown = torch.cat([camera_rays(scene.views([i])).at_depth(z)[z > 0] for i, z in zip(scene.frames("test"), depths, strict=True)])
    assert float(torch.cdist(points, shown).amin(1).max()) < 1e-3
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(100))


@pytest.mark.skipif(not (data_dir() / "toybox" / "manifest.json").is_file(), reason="the bundled scene toybox is not there")
def test_the_mask_of_a_short_coarse_stage_recalls_the_true_surface():
    scene = load("toybox", size=24)
    stage = dvgo_stages.Stage(n_voxels=24**3, n_steps=70, n_rays=256, lr=0.5)
    coarse = dvgo_stages.new_coarse(scene, stage)
    views = scene.views("train")
    counts = dvgo.count_views(coarse, views, scene.near, scene.far)
    dvgo.hide_voxels(coarse, views, scene.near, counts)
    bank = dvgo_stages.ray_bank(scene)
    dvgo_stages.fit(coarse, bank, stage, torch.Generator().manual_seed(0), scene.near, counts)
    fine = dvgo_stages.new_fine(coarse, dvgo_stages.Stage(n_voxels=32**3, alpha_init=1e-2))
    depth = scene.depth[scene.frames("train")].reshape(-1)
    rays = bank.rays[depth > 0]
    surface = rays.origins + (depth[depth > 0] / rays.z_per_t)[:, None] * rays.directions
    assert float(fine.is_occupied(surface).float().mean()) >= 0.99
    assert float(fine.occupied.float().mean()) < 0.95


def test_a_field_trained_for_a_time_tells_how_much_of_it_is_spent(monkeypatch):
    """Thirty seconds, three a step: ten steps, each begun when a tenth more of the time is spent."""
    scene, passed, told, at = load("toybox", size=16), [0.0], [], []

    def slow(*args, **how):
        at.append(len(told))
        passed[0] += 3.0
        return volume.render_rays(*args, **how)

    monkeypatch.setattr(metrics, "clock", lambda: passed[0])
    monkeypatch.setattr(dvgo_stages, "render_rays", slow)
    percents = (told.append(percent) or percent for percent in range(100))
    field = NerfMLP(NerfSettings(depth=2, width=8, skip=1, levels_position=2, levels_direction=1, box=scene.box))
    assert dvgo_stages.fit_field(field, scene, 30.0, torch.Generator().manual_seed(0), 8, 4, percents=percents) == 10
    assert at == list(range(1, 100, 10)) and told == list(range(100))


def test_looking_at_activations():
    from nsw.methods import dvgo_inspect as look

    assert look.one_cell(-40, 30, 10, 60, n=12).shape == (12, 38)
    target = look.disc(32)
    error = [float((look.fit_picture(target, kind, n_steps=150, lr=1.0) - target).square().mean()) for kind in look.ACTIVATIONS]
    assert error[0] < 0.5 * error[1] < 0.5 * error[2]


def test_profiles_of_a_ball_cross_at_its_surface():
    from nsw.methods import dvgo_inspect as look

    ball = _ball(30**3)
    normals = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    t, opacity = look.opacity_profile(ball, 0.5 * normals, normals)
    assert bool((opacity.diff(dim=-1) >= 0).all()) and float(opacity[:, 0].max()) < 0.05 and float(opacity[:, -1].min()) > 0.9
    assert 0.2 < look.transition_width(t, opacity) < 4.0
    whole = look.without_mask(ball)
    ball.occupied = dvgo.free_space_mask(ball, ball.aabb, (16, 16, 16))
    assert look.samples_a_ray(ball, _cameras()[0], 0.0) < look.samples_a_ray(whole, _cameras()[0], 0.0)
    assert look.samples_a_ray(ball, _cameras()[0], 0.0, chunk=7) == look.samples_a_ray(ball, _cameras()[0], 0.0)
    assert look.at_size(ball, 8).shape == (8, 8, 8) and ball.shape == (30, 30, 30)
    assert look.complaint(dvgo.tight_box, ball) == "It found nothing to complain about."
    assert look.near_mass(ball, _cameras(), 1.5, 4.0) < 1e-3
