from __future__ import annotations

import math

import pytest
import torch

from nsw.cameras import Cameras, intrinsics, look_at, orbit
from nsw.errors import InputError
from nsw.methods import gaussian_splatting as gs
from nsw.methods.density_control import DensityControl
from nsw.models.gaussians import Gaussians
from nsw.renderers import render_view as render_any
from nsw.renderers.splats import render_view
from nsw.scenes.scene import Scene


def one_splat(opacity: float = 0.8, scale: float = 0.1) -> Gaussians:
    rgb = torch.tensor([[0.9, 0.3, 0.1]])
    quat = torch.tensor([[1.0, 0, 0, 0]])
    return Gaussians.from_values(torch.zeros(1, 3), torch.full((1, 3), scale), quat, torch.tensor([opacity]), rgb)


def front(size: int = 33, distance: float = 2.0) -> Cameras:
    return Cameras(look_at(torch.tensor([[0.0, -distance, 0.0]])), intrinsics(40.0, size, size), size, size)


def a_scene(n: int = 6, size: int = 24) -> Scene:
    """A ring of views of three coloured balls, rendered by the renderer itself: a fit of it must approach them."""
    truth = Gaussians.from_values(
        torch.tensor([[-0.4, 0, 0], [0.4, 0, 0], [0, 0, 0.4]]),
        torch.full((3, 3), 0.15),
        torch.tensor([[1.0, 0, 0, 0]]).expand(3, 4),
        torch.full((3,), 0.95),
        torch.eye(3),
    )
    cameras = orbit(n, 2.5, 25.0, width=size, height=size)
    with torch.no_grad():
        render = render_view(truth, cameras, background=0.0)
    alpha = render.alpha[..., None].clamp(0, 1)
    rgba = torch.cat([render.rgb / alpha.clamp_min(1e-6), alpha], dim=-1).clamp(0, 1)
    splits = {"train": torch.arange(n - 1), "test": torch.tensor([n - 1])}
    box = torch.tensor([[-0.8, -0.8, -0.8], [0.8, 0.8, 0.8]])
    return Scene("balls", (rgba * 255).round().byte(), cameras, splits, box, 1.0, 4.0, depth=render.depth * (render.alpha > 0.5))


def test_centre_pixel_of_one_splat_is_what_the_formula_says():
    with torch.no_grad():
        render = render_view(one_splat(0.8), front(), background=1.0)
    assert render.rgb.shape == (1, 33, 33, 3)
    assert math.isclose(float(render.alpha[0, 16, 16]), 0.8, abs_tol=1e-4)
    expected = 0.8 * torch.tensor([0.9, 0.3, 0.1]) + 0.2
    assert torch.allclose(render.rgb[0, 16, 16], expected, atol=1e-4)
    assert math.isclose(float(render.depth[0, 16, 16]), 2.0, abs_tol=1e-4)
    assert float(render.depth[0, 0, 0]) == 0.0
    assert render.rgb[0, 0, 0].tolist() == [1.0, 1.0, 1.0]


def test_width_on_screen_is_focal_times_scale_over_depth():
    cameras = front(65)
    render = render_view(one_splat(0.9, 0.1), cameras, eps2d=0.0)
    sigma = float(cameras.Ks[0, 0, 0]) * 0.1 / 2.0
    row = render.alpha[0, 32]
    assert math.isclose(float(row[32 + 8] / row[32]), math.exp(-0.5 * (8 / sigma) ** 2), rel_tol=2e-3)


def test_dilation_fattens_and_antialiasing_pays_it_back():
    small, far = one_splat(0.9, 0.005), front(33, 4.0)
    plain, wide = (render_view(small, far, eps2d=e).alpha.sum() for e in (0.0, 0.3))
    paid = render_view(small, far, eps2d=0.3, antialiased=True).alpha.sum()
    assert float(wide) > float(paid) > 0
    assert abs(float(paid) - 0.9 * 2 * math.pi * (float(far.Ks[0, 0, 0]) * 0.005 / 4) ** 2) < 0.1 * float(wide)
    assert float(plain) >= 0


def test_gradients_reach_every_raw_parameter_and_the_screen():
    splats = Gaussians.random(torch.tensor([[-0.5] * 3, [0.5] * 3]), 30, torch.Generator().manual_seed(0), sh_degree=1)
    with torch.no_grad():
        splats.scales += 0.3 * torch.randn(30, 3, generator=torch.Generator().manual_seed(1))
        splats.shN += 0.1
    render = render_view(splats, front())
    (render.rgb.square().sum() + render.depth.sum()).backward()
    for name, parameter in splats.params.items():
        assert float(parameter.grad.abs().sum()) > 0, name
    assert render.extras["meta"]["means2d"].grad.shape == (1, 30, 2)


def test_absolute_gradients_are_kept_when_asked_for():
    splats = Gaussians.random(torch.tensor([[-0.5] * 3, [0.5] * 3]), 30, torch.Generator().manual_seed(0), sh_degree=0)
    render = render_view(splats, front(), absgrad=True, depth=False)
    render.rgb.square().sum().backward()
    means2d = render.extras["meta"]["means2d"]
    assert bool((means2d.absgrad >= means2d.grad.abs() - 1e-4).all())
    assert float(means2d.absgrad.sum()) > float(means2d.grad.abs().sum())


def test_fewer_bands_are_those_of_the_lower_degree():
    splats = Gaussians.random(torch.tensor([[-0.5] * 3, [0.5] * 3]), 20, torch.Generator().manual_seed(0), sh_degree=3)
    with torch.no_grad():
        splats.shN.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.2)
    low = render_view(splats, front(), sh_degree=1).rgb
    with torch.no_grad():
        full = render_view(splats, front()).rgb
        splats.shN[:, 3:] = 0
        cut = render_view(splats, front()).rgb
    assert torch.allclose(low, cut, atol=1e-5)
    assert not torch.allclose(low, full, atol=1e-3)


def test_the_common_call_picks_splats_and_many_cameras_agree_with_one_at_a_time():
    splats = Gaussians.random(torch.tensor([[-0.5] * 3, [0.5] * 3]), 25, torch.Generator().manual_seed(0), sh_degree=2)
    cameras = orbit(3, 2.5, width=20, height=16)
    background = torch.tensor([0.1, 0.5, 0.9])
    with torch.no_grad():
        together = render_any(splats, cameras, background=background)
        single = render_any(splats, cameras[2], background=background)
    assert together.rgb.shape == (3, 16, 20, 3)
    assert torch.allclose(together.rgb[2], single.rgb[0], atol=1e-5)
    assert torch.allclose(together.depth[2], single.depth[0], atol=1e-4)


def test_backends_that_do_not_fit_the_device_say_so():
    with pytest.raises(InputError, match="needs CUDA"):
        render_view(one_splat(), front(), backend="gsplat")
    with pytest.raises(InputError, match="Unknown splat backend"):
        render_view(one_splat(), front(), backend="metal")


def fit(scene: Scene, n_steps: int, stop_at: int | None = None, training: gs.Training | None = None, start: int = 0):
    if training is None:
        splats = Gaussians.from_points(gs.starting_points(scene, 60), sh_degree=1)
        control = DensityControl(start=5, stop=30, every=10, reset_every=0, grow_gradient=1e-4)
        training = gs.Training(splats, scene.scale, n_steps, control=control)
    losses = []
    for step in range(start, stop_at or n_steps):
        camera, target, background = gs.training_view(scene, step)
        degree = gs.sh_degree_at(step, n_steps, 1)
        render = render_view(training.gaussians, camera, background=background, sh_degree=degree, depth=False)
        loss = (render.rgb - target).abs().mean()
        loss.backward()
        training.step(step, render.extras["meta"])
        losses.append(float(loss.detach()))
    return training, losses


def test_a_short_training_halves_the_error_and_changes_the_number_of_splats():
    training, losses = fit(a_scene(), 60)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert len(training.gaussians) != 60


def test_resuming_from_saved_state_is_bit_identical():
    scene = a_scene()
    whole, _ = fit(scene, 40)
    half, _ = fit(scene, 40, stop_at=25)
    state = half.state_dict()
    empty = Gaussians.from_points(gs.starting_points(scene, 60), sh_degree=1)
    resumed = gs.Training(empty, scene.scale, 40, control=half.control)
    resumed.load_state_dict(state)
    resumed, _ = fit(scene, 40, training=resumed, start=25)
    assert len(resumed.gaussians) == len(whole.gaussians) != 60
    for name, parameter in whole.gaussians.params.items():
        assert torch.equal(parameter, resumed.gaussians.params[name]), name
    assert torch.equal(whole.rows["origin"], resumed.rows["origin"])


def test_starting_points_lie_on_the_surfaces_that_depth_shows():
    scene = a_scene(size=48)
    points = gs.starting_points(scene, 200)
    centres = torch.tensor([[-0.4, 0, 0], [0.4, 0, 0], [0, 0, 0.4]])
    assert float(torch.cdist(points.xyz, centres).min(dim=1).values.max()) < 0.4
    assert torch.equal(points.xyz, gs.starting_points(scene, 200).xyz)
    assert not torch.equal(points.xyz, gs.starting_points(scene, 200, seed=1).xyz)


def test_every_view_is_used_once_an_epoch_in_an_order_that_changes():
    epochs = [[int(gs.frames_at(step, 7, seed=3)) for step in range(e * 7, e * 7 + 7)] for e in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert [int(gs.frames_at(step, 7, seed=4)) for step in range(7)] != epochs[0]


def test_pictures_with_alpha_get_a_new_background_each_step():
    scene = a_scene()
    (_, one, first), (_, _, second) = gs.training_view(scene, 0), gs.training_view(scene, 1)
    assert not torch.equal(first, second)
    assert torch.allclose(one[0, 0, 0], first, atol=1e-3)
    assert gs.training_view(scene, 0, background=1.0)[2].tolist() == [1.0, 1.0, 1.0]


def test_rates_decay_to_the_runs_own_end():
    paper = gs.LearningRates()
    assert math.isclose(paper.at(0, 30_000, 2.0)["means"], 3.2e-4)
    assert math.isclose(paper.at(30_000, 30_000, 2.0)["means"], 3.2e-6)
    assert paper.at(29_999, 30_000, 2.0)["sh0"] == paper.sh0
    assert gs.LearningRates.for_budget(30_000) == paper
    short = gs.LearningRates.for_budget(500)
    assert short.means > paper.means
    assert short.at(500, 500, 1.0)["scales"] < short.scales
