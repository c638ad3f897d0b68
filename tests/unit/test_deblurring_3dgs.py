"""Deblurring 3DGS: factors never sharpen, nothing flows back through the network's inputs, copies average to the picture."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from nsw import scenes, widgets
from nsw.cameras import orbit, project
from nsw.methods import deblurring_3dgs as deblur
from nsw.methods import deblurring_3dgs_charts, deblurring_3dgs_fit, deblurring_3dgs_inspect, density_control
from nsw.methods.density_control import accumulate, new_rows
from nsw.models.blur_mlp import BlurMLP, BlurMLPSettings
from nsw.models.gaussians import NAMES, Gaussians
from nsw.models.io import pack, unpack
from nsw.models.learned_exposures import LearnedExposures
from nsw.renderers.splats import render_view
from nsw.scenes import exposures
from nsw.scenes.exposures import Exposure

BOX = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
VIEW = orbit(1, 4.0, 20.0, width=40, height=32)
STRONG = deblur.Blur(scale_weight=0.3, place_weight=0.1, most=2.0)


def a_model(n: int = 50, seed: int = 0) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)
    splats = Gaussians.random(BOX, n, generator, sh_degree=1)
    with torch.no_grad():
        splats.scales.copy_(torch.log(0.05 + 0.2 * torch.rand(n, 3, generator=generator)))
        splats.quats.copy_(torch.randn(n, 4, generator=generator))
    return splats


def a_network(moments: int = 0, spread: float = 1.0) -> BlurMLP:
    """Return a network whose numbers differ from splat to splat by about `spread`."""
    network = BlurMLP(BlurMLPSettings(moments=moments, width=16))
    with torch.no_grad():
        for head in (network.scale_head, network.turn_head, network.place_head):
            if head is not None:
                head.weight.mul_(20 * spread)
    return network


def test_factors_lie_between_one_and_the_limit():
    raw = torch.linspace(-50, 50, 401)
    f = deblur.factors(raw, 0.1, 1.5)
    assert f.min() == 1.0 and f.max() == 1.5
    inside = (raw > 1) & (raw < 6)
    assert torch.allclose(f[inside], 0.1 * raw[inside] + 0.9)


def test_a_factor_at_its_limit_can_leave_it_but_not_pass_it():
    raw = torch.tensor([-3.0, -3.0, 2.0, 2.0, 90.0, 90.0], requires_grad=True)
    pull = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])  # descent lowers where this is positive
    (deblur.factors(raw, 0.1, 1.5) * pull).sum().backward()
    assert torch.allclose(raw.grad, 0.1 * torch.tensor([0.0, -1.0, 1.0, -1.0, 1.0, 0.0]))


@pytest.mark.parametrize("moments", [0, 3])
def test_training_starts_from_the_plain_picture(moments):
    """At the start every copy shows almost what the splats show."""
    splats, network = a_model(), BlurMLP(BlurMLPSettings(moments=moments))
    sets = deblur.copies(network, splats, VIEW, deblur.Blur())
    assert len(sets) == moments + 1
    plain = render_view(splats, VIEW).rgb
    for changed in sets:
        assert torch.allclose(render_view(changed, VIEW).rgb, plain, atol=0.02)


@pytest.mark.parametrize("moments", [0, 3])
def test_no_gradient_flows_back_through_what_the_network_reads(moments):
    splats, network = a_model(), a_network(moments)
    outputs = network(splats, VIEW.origins[0])
    sum(x.square().sum() for x in outputs).backward()
    assert all(splats.params[name].grad is None for name in NAMES)
    assert all(p.grad is not None for p in network.parameters())
    assert [tuple(x.shape) for x in outputs] == [(moments + 1, 50, 3), (moments + 1, 50, 4), (moments, 50, 3)]


def test_defocus_enlarges_every_splat_and_changes_nothing_else():
    splats = a_model()
    (changed,) = deblur.copies(a_network(), splats, VIEW, STRONG)
    ratio = changed.activated_scales / splats.activated_scales
    assert ratio.min() >= 1 - 1e-6 and ratio.max() <= 2 + 1e-6 and ratio.std() > 0.01
    assert torch.equal(changed.means, splats.means) and torch.equal(changed.sh, splats.sh)
    assert torch.equal(changed.activated_opacities, splats.activated_opacities)
    upright = deblur.copies(a_network(), splats, VIEW, deblur.Blur(turn=False))[0]
    assert torch.equal(upright.quats, splats.quats) and not torch.equal(changed.quats, splats.quats)


def test_the_last_copy_of_a_shake_stays_in_place():
    splats, network = a_model(), a_network(3)
    *moved, last = deblur.copies(network, splats, VIEW, STRONG)
    assert torch.equal(last.means, splats.means) and all(not torch.equal(m.means, splats.means) for m in moved)
    places = network(splats, VIEW.origins[0])[2]
    assert torch.allclose(moved[1].means, splats.means + 0.1 * places[1])


def test_light_and_display_values_invert_each_other_with_finite_gradients():
    values = torch.linspace(0, 1, 101, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(deblur.to_display(deblur.to_light(values)), values, atol=1e-6)
    (gradient,) = torch.autograd.grad(deblur.to_display(deblur.to_light(values)).sum(), values)
    assert torch.allclose(gradient[1:], torch.ones(100, dtype=torch.float64), atol=1e-2)
    dark = torch.zeros(3, requires_grad=True)
    deblur.to_display(dark).sum().backward()
    assert torch.isfinite(dark.grad).all() and (dark.grad > 0).all()


def a_pair(x: float = 0.0):
    """Return a black wall-filling splat set and an empty one, as two moments of an exposure."""
    wall = Gaussians.from_values([[x, 0, 0]], [[9.0] * 3], [[1.0, 0, 0, 0]], [0.9999], [[0.0] * 3])
    gone = Gaussians.from_values([[x, 0, 90.0]], [[0.01] * 3], [[1.0, 0, 0, 0]], [0.9999], [[0.0] * 3])
    return [wall, gone]


def test_the_average_is_of_display_values_or_of_light():
    """Half of the time black, half of the time the white wall: 0.5 in display values, sRGB's 0.7354 in light."""
    plain, _ = deblur.blurred_view(a_pair(), VIEW, deblur.Blur())
    light, metas = deblur.blurred_view(a_pair(), VIEW, deblur.Blur(light=True))
    assert len(metas) == 2 and plain.shape == light.shape == (1, 32, 40, 3)
    assert plain[0, 16, 20, 0].item() == pytest.approx(0.5, abs=1e-2)
    assert light[0, 16, 20, 0].item() == pytest.approx(0.7354, abs=1e-2)


def test_a_grown_splat_keeps_its_optical_depth():
    """tau = -log(1 - o) times the area of the two longest axes stays; what does not grow does not change."""
    generator = torch.Generator().manual_seed(0)
    o, old = 0.05 + 0.9 * torch.rand(40, generator=generator), 0.1 + torch.rand(40, 3, generator=generator)
    new = old * (1 + torch.rand(40, 1, generator=generator))
    thin = deblur.thinned(o, old, new)
    area = lambda s: s.sort(dim=1).values[:, 1:].prod(dim=1)  # noqa: E731
    assert torch.allclose(torch.log1p(-thin) * area(new), torch.log1p(-o) * area(old), rtol=1e-4)
    assert torch.allclose(deblur.thinned(o, old, old), o, atol=1e-6) and (thin < o).all()


def test_averaged_copies_count_as_one_view_for_density_control():
    """M + 1 equal copies give the statistics of the one picture: each has a share of the gradient, and all of them count."""
    splats = a_model()
    target = torch.rand(1, 32, 40, 3, generator=torch.Generator().manual_seed(1))
    grown = []
    for copies in (1, 4):
        renders = [render_view(splats, VIEW, depth=False) for _ in range(copies)]
        (torch.cat([r.rgb for r in renders]).mean(0, keepdim=True) - target).square().mean().backward()
        rows = new_rows(len(splats))
        accumulate(rows, deblurring_3dgs_fit.joined([r.extras["meta"] for r in renders]))
        grown.append(rows["grad2d"] / rows["count"].clamp_min(1))
        splats.zero_grad()
    assert torch.allclose(grown[0], grown[1], rtol=1e-3, atol=1e-8) and grown[0].max() > 0


def test_extra_points_lie_near_splats_in_the_box_and_take_their_colours():
    splats = a_model(200)
    with torch.no_grad():
        splats.sh0[:, 0] = torch.where(splats.means[:, :1] > 0, 1.0, -1.0)
    points, rgb = deblur.extra_points(splats, 500, 0.15, generator=torch.Generator().manual_seed(0))
    nearest = torch.cdist(points, splats.means.detach()).min(dim=1).values
    assert 0 < len(points) < 500 and nearest.max() < 0.15
    ordered = splats.means.detach().sort(dim=0).values
    assert (points >= ordered[10]).all() and (points <= ordered[-11]).all()
    assert rgb[points[:, 0] > 0.2].mean() > 0.7 and rgb[points[:, 0] < -0.2].mean() < 0.3
    assert len(deblur.extra_points(splats, 50, 1e-6)[0]) == 0


def test_far_splats_are_spared():
    z = torch.tensor([2.0, 3.0, 4.0])
    assert torch.allclose(deblur.spared(z, 0.06), torch.tensor([0.06, 0.03, 0.02]))
    assert torch.allclose(deblur.spared(z, 0.06, 1.0), torch.full((3,), 0.06))
    assert torch.allclose(deblur.spared(torch.ones(3), 0.06), torch.full((3,), 0.06))


def a_training(moments: int = 0, cloud=None, steps: int = 30, **blur):
    scene = scenes.load("toybox_defocus", size=32)
    splats = Gaussians.from_points(scene.points.xyz[::20], scene.points.rgb[::20], sh_degree=1)
    control = density_control.DensityControl().for_budget(1000, max_splats=300, reset_every=0, every=10, start=5)
    network = BlurMLP(BlurMLPSettings(moments=moments, width=16, size=scene.scale))
    blur = deblur.Blur(scale_weight=0.1, most=2.0, **blur)
    training = deblurring_3dgs_fit.Deblurring(
        splats, scene.scale, steps, scene.views("train"), network, blur, cloud, control=control
    )
    return scene, training


def test_points_are_added_once_faint_and_in_step():
    cloud = deblurring_3dgs_fit.Cloud(add_at=4, n_add=300, reach=0.1)
    scene, training = a_training(cloud=cloud)
    deblurring_3dgs_fit.fit(training, scene, range(4))
    before = len(training.gaussians)
    deblurring_3dgs_fit.fit(training, scene, range(4, 6))
    new = training.rows["origin"] == deblurring_3dgs_fit.ADDED
    assert len(training.gaussians) > before and int(new.sum()) == len(training.gaussians) - before
    assert {len(v) for v in training.rows.values()} == {len(training.gaussians)}
    assert (training.gaussians.activated_opacities[new] < 0.2).all()
    for name, optimizer in training.optimizers.items():
        assert optimizer.param_groups[0]["params"] == [training.gaussians.params[name]]
    assert len(training.old_places) == before and len(training.new_places) == int(new.sum())
    old, added, left = widgets.cloud_figure(training).data
    assert (len(old["x"]), len(added["y"]), len(left["x"])) == (before, int(new.sum()), int(new.sum()))
    _, resumed = a_training(cloud=cloud)
    resumed.load_state_dict(training.state_dict())
    assert torch.equal(resumed.new_places, training.new_places) and torch.equal(resumed.old_places, training.old_places)


def test_pruning_by_depth_removes_near_and_keeps_far():
    _, training = a_training(cloud=deblurring_3dgs_fit.Cloud(add_at=-1, spare=4.0))
    splats = training.gaussians
    z = splats.means.detach() @ training.toward[:3] + training.toward[3]
    with torch.no_grad():
        splats.opacities.fill_(torch.logit(torch.tensor(0.6 * training.lowest)).item())
        splats.opacities[z.argmin()] = 0.0  # opaque: a near one that stays
    near, far = z < z.quantile(0.1), z > z.quantile(0.9)
    places = splats.means.detach().clone()
    training.prune_near()
    left = {tuple(p) for p in splats.means.tolist()}
    kept = torch.tensor([tuple(p) in left for p in places.tolist()])
    assert kept[far].all() and kept[near].sum() == 1 and training.control.prune_opacity == pytest.approx(training.lowest / 4)


@pytest.mark.parametrize("moments", [0, 2])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(moments):
    scene, whole = a_training(moments, light=True)
    deblurring_3dgs_fit.fit(whole, scene, range(6))
    _, first = a_training(moments, light=True)
    deblurring_3dgs_fit.fit(first, scene, range(3))
    _, second = a_training(moments, light=True)
    second.load_state_dict(first.state_dict())
    deblurring_3dgs_fit.fit(second, scene, range(3, 6))
    for name in NAMES:
        assert torch.equal(whole.gaussians.params[name], second.gaussians.params[name])
    for a, b in zip(whole.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_training_sent_away_ends_as_one_that_stayed(tmp_path):
    scene, _ = a_training()
    control = density_control.DensityControl(start=1, stop=9, every=3, max_splats=60, reset_every=0)
    make = lambda: deblurring_3dgs_fit.Deblurring(  # noqa: E731
        a_model(), scene.scale, 6, scene.views("train"), control=control, seed=2
    )

    def run_all(work, inputs):
        for i, given in enumerate(inputs):
            work(unpack(pack(given), ""), tmp_path / f"{i}.safetensors")
        return sorted(tmp_path.glob("*.safetensors"))

    stays, goes = make(), make()
    back = deblurring_3dgs_fit.fitted_apart({"it": (goes, scene)}, run_all, seed=1)["it"]
    deblurring_3dgs_fit.fit(stays, scene, range(6), 1)
    assert back is goes and back.seconds > 0 and len(back.rows["origin"]) == len(back.gaussians)
    for name in NAMES:
        assert torch.equal(stays.gaussians.params[name], back.gaussians.params[name])


def test_the_network_is_not_in_the_test_picture():
    scene, training = a_training()
    deblurring_3dgs_fit.fit(training, scene, range(8))
    before = render_view(training.gaussians, VIEW).rgb
    blurred = training.picture(VIEW, 8)
    with torch.no_grad():
        for p in training.network.parameters():
            p.zero_()
    assert torch.equal(render_view(training.gaussians, VIEW).rgb, before) and not torch.equal(training.picture(VIEW, 8), blurred)


def test_sharpness_falls_with_blur_and_knows_a_step():
    picture = torch.rand(1, 24, 24, 3, generator=torch.Generator().manual_seed(0))
    softer = torch.nn.functional.avg_pool2d(picture.permute(0, 3, 1, 2), 3, 1, 1).permute(0, 2, 3, 1)
    assert deblurring_3dgs_inspect.sharpness(softer) < 0.2 * deblurring_3dgs_inspect.sharpness(picture)
    step = torch.zeros(1, 10, 12, 3)
    step[:, :, 6:] = 1.0  # the Laplacian is +1 and -1 in two of ten inner columns
    assert deblurring_3dgs_inspect.sharpness(step) == pytest.approx(0.2 * 80 / 79, rel=1e-6)


def test_the_path_of_a_shake_is_centred_on_the_stored_pose():
    shake = Exposure(shift=((0.3, 0.0, 0.0), (0.0, 0.2, 0.1)), turn=((0.0, 0.1, 0.0), (0.02, 0.0, 0.0)))
    pose = orbit(1, 4.0, 30.0).world_from_cam[0]
    path = exposures.poses(shake, pose, 400)
    assert torch.allclose(path[:, :3, 3].mean(0), pose[:3, 3], atol=1e-5)
    R = path[:, :3, :3].double()
    assert torch.allclose(R.mT @ R, torch.eye(3, dtype=torch.float64).expand(400, 3, 3), atol=1e-6)
    local = torch.linalg.inv(pose) @ path[-1]
    assert torch.allclose(local[:3, 3], torch.tensor([0.3, 0.4 / 3, 0.2 / 3]), atol=2e-3)
    angle = torch.acos((torch.trace(local[:3, :3]) - 1) / 2)
    assert float(angle) == pytest.approx((0.1**2 + (0.04 / 3) ** 2) ** 0.5, rel=0.01)
    assert torch.equal(exposures.poses(Exposure(), pose, 9), pose[None])


def test_a_thin_lens_is_sharp_at_its_focus_and_bounded_at_infinity():
    lens = Exposure(aperture=0.1, focus=2.0)
    c = exposures.circle_of_confusion(lens, torch.tensor([2.0, 1.0, 4.0, 1e9]), 100.0)
    assert torch.allclose(c, torch.tensor([0.0, 10.0, 5.0, 10.0]))


def a_lens() -> LearnedExposures:
    learned = LearnedExposures(orbit(3, 4.0, 20.0).origins)
    with torch.no_grad():
        learned.log_aperture[0], learned.inverse_focus[0] = math.log(0.3), 1 / 3.0
    return learned


def test_a_learned_lens_adds_the_variance_of_its_circle_of_confusion():
    """c^2 / 16 pixels squared, and c / f z is the circle's diameter in world units at camera z."""
    learned, view = a_lens(), orbit(3, 4.0, 20.0)[0]
    told = learned.exposure(0)
    assert (told.aperture, told.focus) == pytest.approx((0.3, 3.0), rel=1e-5)
    z, focal = torch.tensor([2.0, 3.0, 5.0]), 100.0
    c = exposures.circle_of_confusion(told, z, focal) * z / focal
    assert torch.allclose(learned.spread(view.origins[0], z), c.square() / 16, atol=1e-7)
    assert learned.view(orbit(3, 4.0, 20.0)[2].origins[0]) == 2


def test_a_learned_lens_enlarges_splats_but_for_those_in_focus():
    splats = a_model()
    (changed,) = deblur.camera_copies(a_lens(), splats, VIEW, deblur.Blur())
    added = changed.activated_scales.square() - splats.activated_scales.square()
    z = (splats.means @ VIEW.cam_from_world[0, 2, :3] + VIEW.cam_from_world[0, 2, 3]).detach()
    assert (added >= -1e-6).all() and torch.allclose(added[:, 0], 0.25 * 0.09 * (1 - z / 3).square(), atol=1e-5)
    assert torch.equal(changed.means, splats.means)


def test_a_learned_path_moves_splats_as_moving_cameras_see_them():
    shake = Exposure(shift=((0.05, 0.02, 0.0), (0.0, 0.03, 0.0)), turn=((0.004, 0.0, 0.01), (0.0, 0.002, 0.0)))
    learned, splats = LearnedExposures(VIEW.origins, moments=4, lens=False), a_model()
    with torch.no_grad():
        learned.shift.copy_(torch.tensor([shake.shift]))
        learned.turn.copy_(torch.tensor([shake.turn]))
    sets = deblur.camera_copies(learned, splats, VIEW, deblur.Blur())
    cameras = torch.linalg.inv(exposures.poses(shake, VIEW.world_from_cam[0], 5))
    assert len(sets) == 5 and learned.exposure(0).moves
    for changed, camera in zip(sets, cameras, strict=True):
        seen = project(VIEW, changed.means)[0]
        assert torch.allclose(seen, project(replace(VIEW, cam_from_world=camera[None]), splats.means)[0], atol=0.02)


def test_a_learned_lens_of_pinholes_is_the_lens_of_pinhole_cameras():
    lens, splats = Exposure(aperture=0.3, focus=3.5), a_model()
    learned = LearnedExposures(VIEW.origins, moments=6, focus=lens.focus, aperture=lens.aperture)
    sets = deblur.camera_copies(learned, splats, VIEW, deblur.Blur())
    cameras = deblurring_3dgs_inspect.lens_cameras(VIEW, lens, 7)
    for i, changed in enumerate(sets):
        assert torch.allclose(project(VIEW, changed.means)[0], project(cameras[i], splats.means)[0], atol=1e-3)


def test_pinholes_on_a_lens_keep_the_plane_in_focus_and_fill_the_circle_of_confusion():
    lens = Exposure(aperture=0.3, focus=4.0)
    cameras = deblurring_3dgs_inspect.lens_cameras(VIEW, lens, 400)
    forward, centre = VIEW.world_from_cam[0, :3, 2], VIEW.origins[0]
    pixels = project(cameras, torch.stack([centre + z * forward for z in (4.0, 6.0)]))[0]
    assert pixels[:, 0].std(dim=0).max() < 1e-3
    c = exposures.circle_of_confusion(lens, torch.tensor(6.0), VIEW.Ks[0, 0, 0].item()).item()
    assert pixels[:, 1].var(dim=0).tolist() == pytest.approx([c**2 / 16] * 2, rel=0.02)


def test_paths_are_centred_and_start_on_the_left():
    places = torch.tensor([[3.0, 1.0], [1.0, 0.0], [2.0, 0.5]])
    path = deblurring_3dgs_inspect.in_order(places)
    assert torch.allclose(path, torch.tensor([[-1.0, -0.5], [0.0, 0.0], [1.0, 0.5]]), atol=1e-6)


@pytest.mark.parametrize("moments", [0, 3])
def test_the_learned_blur_can_be_turned_down_to_nothing(moments):
    splats, network = a_model(), a_network(moments)
    off, on = (deblurring_3dgs_inspect.explained(network, splats, VIEW, STRONG, strength) for strength in (0.0, 1.0))
    assert torch.allclose(off, render_view(splats, VIEW).rgb[0], atol=1e-5)
    whole = deblur.blurred_view(deblur.copies(network, splats, VIEW, STRONG), VIEW, STRONG)[0][0]
    assert torch.allclose(on, whole, atol=1e-5) and (on - off).abs().max() > 1e-3


def test_the_map_of_growth_shows_factors_and_one_where_nothing_is():
    splats = Gaussians.from_values([[0, 0, 0]], [[0.5] * 3], [[1.0, 0, 0, 0]], [0.999], [[0.5] * 3])
    network = a_network()
    factor = (deblur.copies(network, splats, VIEW, STRONG)[0].activated_scales / 0.5).mean().item()
    picture = deblurring_3dgs_inspect.growth_map(network, splats, VIEW, STRONG)
    assert picture[0, 0].item() == pytest.approx(1.0) and picture.max().item() == pytest.approx(factor, abs=0.01)


def test_true_lenses_are_those_that_took_the_pictures():
    scene = scenes.load("toybox_defocus", size=32)
    told, lenses = exposures.exposures(scene), deblurring_3dgs_inspect.true_lenses(scene)
    for i in (0, 9, 25):
        assert lenses.exposure(i).focus == pytest.approx(told[i].focus, rel=1e-5)
        assert lenses.view(scene.cameras[i].origins[0]) == i


def test_an_unsharp_mask_steepens_edges_and_leaves_even_grey_alone():
    picture = torch.full((1, 16, 16, 3), 0.4)
    assert torch.allclose(deblurring_3dgs_inspect.unsharp(picture), picture, atol=1e-6)
    picture[:, :, 8:] = 0.6
    sharper = deblurring_3dgs_inspect.unsharp(picture)
    assert deblurring_3dgs_inspect.sharpness(sharper) > 1.5 * deblurring_3dgs_inspect.sharpness(picture)


def test_the_map_of_learned_blur_sees_the_spread_of_copies():
    """Copies spread by the true lens cover its circle of confusion."""
    lens, splats = Exposure(aperture=0.3, focus=3.0), a_model(400)
    learned = LearnedExposures(VIEW.origins, moments=200, focus=lens.focus, aperture=lens.aperture)
    blur = deblur.Blur(scale_weight=0.0, turn=False)
    with torch.no_grad():
        splats.opacities.fill_(2.0)
    z, disc = deblurring_3dgs_inspect.learned_discs(learned, splats, VIEW, blur, explain=deblur.camera_copies)
    assert torch.allclose(disc, exposures.circle_of_confusion(lens, z, VIEW.Ks[0, 0, 0].item()), rtol=0.1)


def test_the_aperture_of_true_lenses_is_recovered():
    """Copies in many places of the true lenses have the true discs: the dots lie on the line, the legend says the aperture."""
    scene, training = a_training()
    training.network, training.explain = deblurring_3dgs_inspect.true_lenses(scene, 200), deblur.camera_copies
    training.blur = deblur.Blur(scale_weight=0.0, turn=False)
    with torch.no_grad():
        training.gaussians.opacities.fill_(2.0)
    dots, line = widgets.lens_figure({"truth": training}, scene).data
    assert len(dots["x"]) == 8 * len(scene.splits["train"]) and line["name"] == "true: aperture 0.40"
    assert float(dots["name"].split()[-1]) == pytest.approx(0.4, abs=0.02)
    assert torch.tensor(dots["y"]).sub(torch.tensor(dots["x"])).abs().median() < 0.1
    curves = deblurring_3dgs_charts.disc_curves(training, scene, [2])
    assert list(curves) == ["view 2: learned", "view 2: true"] and torch.equal(*(z for z, _ in curves.values()))


def test_one_blur_for_all_views_leaves_nothing_to_explain():
    shots = torch.rand(3, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    best = deblurring_3dgs_inspect.unexplained(shots)
    assert best == pytest.approx(shots.std(dim=0, correction=0).square().mean().sqrt().item(), rel=1e-5)
    assert deblurring_3dgs_inspect.unexplained(shots[:1].expand(3, -1, -1, -1)) == 0.0


def test_a_profile_is_one_row_of_greys():
    picture = torch.arange(12.0).reshape(4, 1, 3).expand(4, 5, 3)
    columns, grey = deblurring_3dgs_charts.profiles({"ramp": picture}, 0.55)["ramp"]
    assert list(columns) == list(range(5)) and grey.tolist() == [7.0] * 5


def test_a_mixed_scene_has_the_pictures_of_both_in_turns():
    lens, hand = (scenes.load(f"toybox_{kind}", size=32) for kind in ("defocus", "motion"))
    mixed = deblurring_3dgs_inspect.alternating(lens, hand)
    assert torch.equal(mixed.pixels([2, 3]), torch.cat([lens.pixels([2]), hand.pixels([3])]))
    assert torch.equal(lens.cameras.cam_from_world, hand.cameras.cam_from_world)
    assert not torch.equal(lens.pixels([3]), hand.pixels([3]))
