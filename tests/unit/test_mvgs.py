"""MVGS: rays that meet where they must, clones in the boxes and nowhere else, and 3DGS when everything is off."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nsw.cameras import look_at, orbit, project
from nsw.methods import density_control as density
from nsw.methods import gaussian_splatting as gs
from nsw.methods import mvgs, mvgs_train
from nsw.methods import mvgs_inspect as inspect
from nsw.models.gaussians import Gaussians
from nsw.renderers.splats import render_view
from nsw.scenes.scene import Scene
from nsw.widgets.pull_chart import pull_figure


def a_scene(n_frames: int = 6, size: int = 24) -> Scene:
    """Return pictures of a few coloured balls from around."""
    generator = torch.Generator().manual_seed(1)
    balls = torch.rand(8, 3, generator=generator) - 0.5, torch.full((8, 3), 0.15), torch.tensor([[1.0, 0, 0, 0]] * 8)
    truth = Gaussians.from_values(*balls, torch.full((8,), 0.9), torch.rand(8, 3, generator=generator))
    cameras = orbit(n_frames, 2.5, 20.0, width=size, height=size)
    with torch.no_grad():
        render = render_view(truth, cameras)
    images = (torch.cat([render.rgb, render.alpha[..., None]], dim=-1).clamp(0, 1) * 255).byte()
    splits = {"train": torch.arange(n_frames - 1), "val": torch.arange(0), "test": torch.tensor([n_frames - 1])}
    return Scene("balls", images, cameras, splits, torch.tensor([[-0.7] * 3, [0.7] * 3]), 1.0, 4.0)


def splats(n: int = 40, seed: int = 0) -> Gaussians:
    return Gaussians.random(torch.tensor([[-0.6] * 3, [0.6] * 3]), n, torch.Generator().manual_seed(seed), sh_degree=1)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return a_scene()


def control(**changes) -> density.DensityControl:
    return replace(density.DensityControl(grow_gradient=1e-5, max_splats=120), **changes)


def test_closest_points_are_where_lines_are_closest():
    generator = torch.Generator().manual_seed(0)
    o0, d0, o1, d1 = torch.randn(4, 50, 3, generator=generator, dtype=torch.float64)
    t0, t1, crossed = mvgs.closest_points(o0, d0, o1, d1)
    assert crossed.all()
    gap = (o1 + t1[:, None] * d1) - (o0 + t0[:, None] * d0)
    for d in (d0, d1):  # the shortest connection is at a right angle to both
        torch.testing.assert_close((gap * d).sum(-1), torch.zeros(50, dtype=torch.float64), atol=1e-9, rtol=0)


def test_lines_through_a_point_meet_there_and_parallel_ones_nowhere():
    point, origins = torch.tensor([0.3, -0.2, 0.5]), torch.tensor([[2.0, 0, 0], [0, 2.0, 1.0]])
    d = torch.nn.functional.normalize(point - origins, dim=-1)
    t0, t1, crossed = mvgs.closest_points(origins[0], d[0], origins[1], d[1])
    assert bool(crossed)
    torch.testing.assert_close(origins[0] + t0 * d[0], point)
    torch.testing.assert_close(origins[1] + t1 * d[1], point)
    t0, t1, crossed = mvgs.closest_points(origins[0], d[0], origins[1], d[0])
    assert not bool(crossed) and bool(torch.isfinite(t0) & torch.isfinite(t1))


def test_corner_rays_pass_through_their_pixels():
    cameras = orbit(4, 3.0, 30.0, width=40, height=30)
    corners = torch.rand(4, 4, 2, generator=torch.Generator().manual_seed(2)) * torch.tensor([40.0, 30.0])
    points = cameras.origins[:, None] + 2.0 * mvgs.corner_rays(cameras, corners)
    for i in range(4):
        uv, z = project(cameras[i : i + 1], points[i])
        torch.testing.assert_close(uv[0], corners[i], atol=1e-3, rtol=0)
        assert (z > 0).all()


def test_worst_window_is_the_one_with_the_largest_mean():
    errors = torch.zeros(2, 12, 20)
    errors[0, 4:8, 5:10] = 1.0  # exactly one window of 4 x 5
    errors[1, 11, 19] = 0.4
    corners, value = mvgs.worst_windows(errors, 4, 5)
    assert corners[0].tolist() == [[5, 4], [10, 4], [10, 8], [5, 8]]
    assert corners[1].tolist() == [[15, 8], [20, 8], [20, 12], [15, 12]]
    torch.testing.assert_close(value, torch.tensor([1.0, 0.02]))


def windows_around(cameras, point: torch.Tensor, half: float = 2.0) -> torch.Tensor:
    uv, _ = project(cameras, point[None])
    return uv + half * torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])


def test_windows_on_one_point_give_a_small_box_around_it():
    cameras, point = orbit(3, 3.0, 30.0, width=40, height=40), torch.tensor([0.2, 0.1, 0.3])
    boxes = mvgs.crossing_boxes(cameras, windows_around(cameras, point), extent=3.0, guard=mvgs.Guard())
    assert len(boxes) == 3 and mvgs.inside(point[None], boxes).all()
    assert (boxes[:, 1] - boxes[:, 0]).max() < 1.0
    assert not mvgs.inside(torch.tensor([[5.0, 5.0, 5.0]]), boxes).any()


def test_the_guard_refuses_what_lies_behind_a_camera_and_what_is_huge():
    eyes = look_at(torch.tensor([[2.0, 0, 0], [2.0, 1.0, 0]]), torch.tensor([[0.0, -1.0, 0], [0.0, 2.0, 0]]))
    cameras = replace(orbit(2, 3.0, 0.0, width=40, height=40), cam_from_world=eyes)  # they look away from each other
    corners = torch.tensor([[15.0, 15], [25, 15], [25, 25], [15, 25]]).expand(2, 4, 2)
    assert len(mvgs.crossing_boxes(cameras, corners, 3.0, None)) == 1
    assert len(mvgs.crossing_boxes(cameras, corners, 3.0, mvgs.Guard(gap=1e6, size=1e6))) == 0
    around, point = orbit(3, 3.0, 30.0, width=40, height=40), torch.zeros(3)
    wide = windows_around(around, point, half=15.0)
    assert len(mvgs.crossing_boxes(around, wide, 3.0, mvgs.Guard(gap=1e6, size=0.05))) == 0


def test_the_threshold_is_halved_beyond_sixty_degrees_around_the_centre():
    for angle, halved in ((50.0, False), (70.0, True)):
        a = torch.deg2rad(torch.tensor(angle))
        centre = torch.tensor([10.0, 5.0, 0.0])
        places = centre + 3 * torch.stack([torch.tensor([1.0, 0, 0]), torch.stack([a.cos(), a.sin(), torch.zeros(())])])
        cameras = replace(orbit(2, 3.0, 0.0), cam_from_world=look_at(places, centre.expand(2, 3)))
        r = mvgs.spread(cameras, centre)
        assert r == pytest.approx(2 * float(torch.sin(a / 2)), abs=1e-5)
        assert (mvgs.growth_threshold(2e-4, r) == 1e-4) is halved


@pytest.mark.parametrize("n_views", [1, 2, 3, 7])
def test_every_frame_comes_once_before_any_comes_again(n_views):
    n = 7
    per_epoch = n // n_views
    for epoch in range(3):
        drawn = torch.cat([gs.frames_at(epoch * per_epoch + i, n, 3, n_views) for i in range(per_epoch)])
        assert len(drawn) == per_epoch * n_views == len(drawn.unique())


def test_stages_follow_each_other_with_pictures_and_intrinsics_to_match(scene):
    stages = mvgs_train.pyramid(scene, (6, 12, 24), (4, 2, 1), (3, 0, 5))
    assert [(s.scene.cameras.width, s.n_views, s.n_steps) for s in stages] == [(6, 4, 3), (24, 1, 5)]
    assert [mvgs_train.stage_at(step, stages)[1] for step in (0, 2, 3, 7, 9)] == [0, 2, 0, 4, 6]
    torch.testing.assert_close(stages[0].scene.cameras.Ks[:, :2] * 4, scene.cameras.Ks[:, :2])


def test_one_view_and_nothing_added_is_3dgs(scene):
    """Every parameter after some steps with growth, bit for bit."""
    n, every = 24, dict(every=5, start=2, stop=20)
    alone = gs.Training(splats(), scene.scale, n, control=control().for_budget(n, **every), seed=3)
    gs.fit(alone, scene, range(n), seed=3)
    stages = [mvgs_train.Stage(scene, 1, n)]
    many = mvgs_train.MultiView(splats(), stages, control(), window=None, tau=float("inf"), seed=3, **every)
    mvgs_train.fit(many, range(n), seed=3)
    assert len(many.gaussians) == len(alone.gaussians) > 40
    for name, value in alone.gaussians.params.items():
        assert torch.equal(many.gaussians.params[name], value), name


def test_statistics_are_those_of_the_views_one_by_one(scene):
    """A step of three views must not look three times as restless as the three views do."""
    cameras, target, _ = mvgs_train.Stage(scene, 3, 1).views(0, 0, "cpu")
    apart, at_once = (density.new_rows(40) for _ in range(2))
    for i in range(3):
        render = render_view(splats(), cameras[i : i + 1], depth=False)
        gs.loss_photometric(render.rgb, target[i : i + 1]).backward()
        density.accumulate(apart, render.extras["meta"])
    render = render_view(splats(), cameras, depth=False)
    (3 * gs.loss_photometric(render.rgb, target)).backward()
    density.accumulate(at_once, render.extras["meta"] | {"n_cameras": 1})
    torch.testing.assert_close(at_once["grad2d"], apart["grad2d"], rtol=1e-3, atol=1e-7)
    assert torch.equal(at_once["count"], apart["count"])


def chooser(boxes: torch.Tensor, scene: Scene, **changes) -> tuple[mvgs_train.MultiView, tuple[torch.Tensor, torch.Tensor]]:
    training = mvgs_train.MultiView(splats(), [mvgs_train.Stage(scene, 2, 10)], control(**changes))
    training.boxes, training.beta = boxes, 1e9  # no gradient is that large
    training.rows["grad2d"] = torch.arange(40.0)
    return training, training._choose(training.gaussians.params, training.rows, training.base, scene.scale)


def test_clones_are_exactly_the_splats_inside_the_boxes(scene):
    boxes = torch.tensor([[[-0.6, -0.6, -0.6], [0.0, 0.6, 0.6]]])
    training, (to_clone, to_split) = chooser(boxes, scene)
    within = training.gaussians.means[:, 0] <= 0
    assert 0 < int(within.sum()) < 40 and torch.equal(to_clone, within) and not to_split.any()


def test_clones_of_boxes_stop_at_the_limit_the_most_pulled_first(scene):
    everything = torch.tensor([[[-9.0] * 3, [9.0] * 3]])
    _, (to_clone, _) = chooser(everything, scene, max_splats=45)
    assert to_clone.nonzero()[:, 0].tolist() == [35, 36, 37, 38, 39]
    assert not chooser(everything, scene, max_splats=40)[1][0].any()


def test_a_resumed_training_ends_as_an_uninterrupted_one(scene):
    def make():
        return mvgs_train.MultiView(splats(), mvgs_train.pyramid(scene, (12, 24), (3, 2), (8, 12)), control(), every=4, start=1)

    whole, first, second = make(), make(), make()
    mvgs_train.fit(whole, range(20))
    mvgs_train.fit(first, range(11))
    second.load_state_dict(first.state_dict())
    mvgs_train.fit(second, range(11, 20))
    for name, value in whole.gaussians.params.items():
        assert torch.equal(second.gaussians.params[name], value), name


def test_agreement_is_a_mean_cosine():
    wanted = torch.tensor([2.0, 0.0])
    assert inspect.agreement(torch.tensor([[5.0, 0.0], [0.0, 0.1], [-3.0, 0.0], [1.0, 0.0]]), wanted) == pytest.approx(0.25)


def test_adam_steps_are_those_of_torch_whatever_the_factor_on_the_gradient():
    draws = torch.randn(30, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    adam, places = torch.optim.Adam([x], lr=1.0, eps=1e-15), [torch.zeros(7, dtype=torch.float64)]
    for g in draws:
        x.grad = -g
        adam.step()
        places.append(x.detach().clone())
    torch.testing.assert_close(inspect.adam_steps(draws), torch.stack(places).diff(dim=0))
    torch.testing.assert_close(inspect.adam_steps(4 * draws), inspect.adam_steps(draws))


def test_pulls_are_of_the_split_asked_for_and_none_comes_from_masked_pixels(scene):
    assert inspect.pulls(splats(), scene).shape == (5, 40, 3) and inspect.pulls(splats(), scene, "test").shape == (1, 40, 3)
    hidden = replace(scene, masks=torch.zeros(scene.images.shape[:3], dtype=torch.bool))
    assert torch.equal(inspect.pulls(splats(), scene, most=3), inspect.pulls(splats(), scene)[:, [0, 20, 39]])
    assert inspect.pulls(splats(), hidden).abs().max() < 1e-5 * inspect.pulls(splats(), scene).abs().max()


def test_near_misses_are_kept_and_refused_for_every_reason():
    for t0, t1, p0, p1, extent in inspect.near_misses():
        kept = mvgs.Guard()(t0, t1, p0, p1, extent)
        assert kept.any() and not kept.all()
    t0, t1, p0, p1, extent = inspect.near_misses()[-1]
    for changes in (dict(gap=0.05), dict(size=0.2)):
        assert (kept & ~mvgs.Guard(**changes)(t0, t1, p0, p1, extent)).any()
    assert (mvgs.Guard()(t0.abs(), t1.abs(), p0, p1, extent) & ~kept).any()


def test_any_function_may_guard_the_boxes():
    cameras, point = orbit(3, 3.0, 30.0, width=40, height=40), torch.tensor([0.2, 0.1, 0.3])
    corners = windows_around(cameras, point)
    first_only = lambda t0, *rest: torch.arange(len(t0)) == 0  # noqa: E731
    assert torch.equal(mvgs.crossing_boxes(cameras, corners, 3.0, first_only), mvgs.crossing_boxes(cameras, corners, 3.0)[:1])


def test_small_pictures_cost_few_pixels(scene):
    stages = mvgs_train.pyramid(scene, (12, 24), (3, 2), (8, 12))
    found = mvgs_train.cost(10, stages)
    assert found["steps"] == 10 and found["rendered views"] == 8 * 3 + 2 * 2
    assert found["megapixels"] == pytest.approx((24 * 12**2 + 4 * 24**2) / 1e6)


def test_a_masked_pixel_is_in_no_worst_window():
    errors = torch.zeros(1, 8, 8)
    errors[0, 0, 0], errors[0, 4, 4] = torch.nan, 0.1
    corners, value = mvgs.worst_windows(errors, 4, 4)
    assert corners[0, 0].tolist() == [4, 4] and float(value) == pytest.approx(0.1 / 16)


def test_a_frame_is_drawn_around_its_window_and_nowhere_else():
    corners, _ = mvgs.worst_windows(torch.eye(8)[None] * torch.tensor([0.0] * 4 + [1.0] * 4), 4, 4)
    marked = inspect.framed(torch.zeros(8, 8, 3), corners[0], scale=3)
    drawn = marked.sum(-1) > 0
    assert marked.shape == (24, 24, 3) and drawn.sum() == 15 * 15 - 12 * 12 and not drawn[12:, 12:].any()


def test_the_sphere_joins_the_cameras_that_are_far_apart():
    cameras = orbit(4, 3.0, 0.0)  # a square on the equator: sides sqrt 2, diagonals 2
    counts = [len(inspect.sphere(cameras, torch.zeros(3), tau)) for tau in (1.0, 1.5, 2.1)]
    assert counts == [4 + 6, 4 + 2, 4]


def test_the_chart_of_pulls_has_a_line_for_each_view_and_their_mean():
    chart = pull_figure(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    assert [(trace.x[1], trace.y[1]) for trace in chart.data] == [(1.0, 0.0), (0.0, 2.0), (0.5, 1.0)]
    assert [trace.name for trace in chart.data if trace.showlegend] == ["one view", "their mean"]
