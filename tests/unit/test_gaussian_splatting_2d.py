"""2D Gaussians: discs stay discs, the surface terms are what the paper writes, and training lowers them."""

from __future__ import annotations

import math

import pytest
import torch

from nsw import scenes
from nsw.cameras import camera_rays, orbit
from nsw.errors import InputError
from nsw.methods import density_control as density
from nsw.methods import gaussian_splatting as gs
from nsw.methods import gaussian_splatting_2d as gs2d
from nsw.methods import gaussian_splatting_2d_fusion as fusion
from nsw.methods import gaussian_splatting_2d_inspect as inspect
from nsw.models import io
from nsw.models.gaussians import GaussiansSettings
from nsw.models.parts import part_of
from nsw.models.surfels import THIN, Surfels
from nsw.renderers import render_view as render_any
from nsw.renderers.render import Render
from nsw.renderers.surfels import normals_from_depth, render_view
from nsw.scenes.surface import surface_points

RANGE = (2.0, 6.0)


def a_model(n: int = 80, seed: int = 0) -> Surfels:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(n, 3, generator=generator) - 0.5
    return Surfels.from_points(points, torch.rand(n, 3, generator=generator), generator=generator, sh_degree=1, opacity=0.6)


def a_wall(tilt: float = 0.5) -> Surfels:
    """One large disc through the origin, turned about z; its normal is (cos, sin, 0) of the tilt."""
    half = torch.tensor(tilt / 2)
    about_y = torch.tensor([0.5**0.5, 0.0, 0.5**0.5, 0.0])  # t_w from z to x
    w, z = half.cos(), half.sin()
    quat = torch.stack([w * about_y[0], -z * about_y[2], w * about_y[2], z * about_y[0]])
    return Surfels.from_values([[0, 0, 0]], [[2.0, 2.0, 1.0]], quat[None], [0.99], [[0.5, 0.5, 0.5]])


@pytest.fixture(scope="module")
def scene():
    return scenes.load("toybox", size=32)


def test_discs_have_no_third_axis_and_keep_it_through_density_control():
    model = a_model()
    assert (model.scales[:, 2] == THIN).all() and not (model.scales[:, :2] < -10).any()
    training = gs2d.Training(model, 1.0, 10)
    planes, means = model.normals.detach().clone(), model.means.detach().clone()
    chosen = torch.arange(80) < 20
    density.split(model.params, training.optimizers, training.rows, chosen, torch.Generator().manual_seed(0))
    children = (model.means[60:] - means[:20].repeat(2, 1)) * planes[:20].repeat(2, 1)
    assert len(model) == 100 and children.sum(-1).abs().max() < 1e-4  # split within the plane
    with pytest.raises(InputError, match="isotropic"):
        Surfels(GaussiansSettings(isotropic=True))


def test_starts_look_everywhere_and_repeat():
    normals = a_model(2000).normals
    assert normals.mean(0).norm() < 0.06 and torch.equal(normals, a_model(2000).normals)


def test_saved_surfels_come_back_as_surfels(tmp_path):
    model = a_model()
    back = io.load(io.save(model, tmp_path))
    assert type(back) is Surfels and torch.equal(back.quats, model.quats)


def test_depth_and_normals_of_a_tilted_wall_are_those_of_its_plane():
    wall, camera = a_wall(0.5), orbit(1, 4.0, 0.0, width=48, height=48)  # the camera stands at x = 4
    normal = wall.normals[0].detach()
    assert torch.allclose(normal.abs(), torch.tensor([0.8776, 0.4794, 0.0]), atol=1e-3)
    normal = normal if normal[0] > 0 else -normal
    rays = camera_rays(camera)
    z = (-(rays.origins @ normal) / (rays.directions @ normal) * rays.z_per_t).view(1, 48, 48)
    with torch.no_grad():
        render = render_view(wall, camera)
    inside = render.alpha > 0.4
    assert torch.allclose(render.depth[inside], z[inside], atol=2e-4) and (z[inside].max() - z[inside].min()) > 0.5
    assert torch.allclose(render.extras["median"][inside & (render.alpha > 0.6)], z[inside & (render.alpha > 0.6)], atol=2e-4)
    drawn = render.extras["normals"] / render.alpha[..., None].clamp_min(1e-6)
    assert torch.allclose(drawn[inside], normal.expand(int(inside.sum()), 3), atol=1e-4)
    of_depth = normals_from_depth(z, camera)
    assert torch.allclose(of_depth[0, 1:-1, 1:-1], normal.expand(46, 46, 3), atol=1e-3) and (of_depth[0, 0] == 0).all()
    with torch.no_grad():
        centre = render_view(wall, camera, ray_depth=False).depth[inside]
    assert torch.allclose(centre, torch.full_like(centre, 4.0), atol=1e-5)


def test_any_renderer_draws_surfels_as_discs():
    wall, camera = a_wall(0.5), orbit(1, 4.0, 0.0, width=24, height=24)
    with torch.no_grad():
        assert torch.equal(render_any(wall, camera).extras["normals"], render_view(wall, camera).extras["normals"])


def fake(normals, surface, alpha):
    maps = {"normals": normals, "surface_normals": surface, "distortion": torch.full_like(alpha, 0.5)}
    return Render(torch.zeros(*alpha.shape, 3), alpha, alpha, maps)


def test_normal_term_is_alpha_times_one_minus_cosine():
    up, slant = torch.tensor([0.0, 0, 1]), torch.tensor([0.6, 0, 0.8])
    alpha = torch.tensor([[[1.0, 0.5]]])
    render = fake(alpha[..., None] * up, slant.expand(1, 1, 2, 3), alpha)
    expected = ((1 - 0.8) + (0.5 - 0.5 * 0.8 * 0.5)) / 2  # the drawn normal is as long as alpha, and so is the other one
    assert float(gs2d.loss_normal(render)) == pytest.approx(expected)
    first = torch.tensor([[[True, False]]])
    assert float(gs2d.loss_normal(render, first)) == pytest.approx(0.1) and float(gs2d.loss_distortion(render, first)) == 0.25
    assert float(gs2d.loss_normal(fake(render.extras["normals"], torch.zeros(1, 1, 2, 3), alpha))) == 0.0


def test_fading_does_not_lower_the_normal_term_by_itself():
    alpha = torch.tensor([[[0.7]]], requires_grad=True)
    render = fake(0.7 * torch.tensor([0.0, 0, 1]).expand(1, 1, 1, 3), torch.tensor([0.0, 0, -1]).expand(1, 1, 1, 3), alpha)
    loss = gs2d.loss_normal(render)
    assert not loss.requires_grad


def test_ray_inspector_and_rasterizer_agree_on_a_pixel():
    model, camera = a_model(), orbit(1, 4.0, 20.0, width=40, height=40)
    with torch.no_grad():
        render = render_view(model, camera, distortion_range=RANGE)
    for row, column in ((20, 20), (15, 22), (26, 18)):
        hits = inspect.ray_hits(model, camera, row, column, RANGE)
        assert float(hits.weight.sum()) == pytest.approx(float(render.alpha[0, row, column]), abs=1e-5)
        assert hits.expected == pytest.approx(float(render.depth[0, row, column]), abs=1e-4)
        assert hits.distortion == pytest.approx(float(render.extras["distortion"][0, row, column]), abs=1e-6)
        near, far = RANGE
        m = far / (far - near) * (1 - near / hits.depth)
        assert float(gs2d.distortion_pairs(hits.weight, m)) == pytest.approx(hits.distortion, abs=1e-6)


def test_regularisers_act_from_their_steps_and_cost_nothing_before(scene):
    terms = gs2d.Regularisers.for_budget(300, scene, distortion=5.0)
    assert (terms.normal_from, terms.distortion_from, terms.depth_range) == (70, 30, (scene.near, scene.far))
    assert terms.at(29) == (0.0, 0.0) and terms.at(30) == (0.0, 5.0) and terms.at(70) == (0.05, 5.0)
    model, camera = a_model(), scene.views("train")[0]
    names = [sorted(gs2d.surface_terms(gs2d.draw(model, camera, step, terms), step, terms)) for step in (0, 30, 70)]
    assert names == [[], ["distortion"], ["distortion", "normal"]]


def test_density_statistic_is_depth_times_the_pull_on_the_centre():
    model, camera = a_model(), orbit(1, 4.0, 20.0, width=40, height=40)
    training = gs2d.Training(model, 1.0, 100, control=density.DensityControl(start=50, stop=90, every=10))
    render = render_view(model, camera)
    render.rgb.square().mean().backward()
    pull = render.extras["meta"]["gradient_2dgs"].grad
    training.step(0, render.extras["meta"])
    assert torch.allclose(training.rows["grad2d"], (pull[0] * 20).norm(dim=-1), rtol=1e-5) and training.rows["grad2d"].max() > 0


def test_training_lowers_every_term_and_prunes_faint_discs(scene):
    n_steps = 80
    control = gs2d.density_control(n_steps, start=5, stop=60, every=20, max_splats=500)
    assert control.prune_opacity == gs2d.PRUNE_OPACITY

    def start():
        return Surfels.from_points(gs.starting_points(scene, 300), sh_degree=0, generator=gs.generator_at(0, 0, 5))

    views, always = (
        scene.views("test")[[0, 5, 10]],
        gs2d.Regularisers.for_budget(n_steps, scene, normal_from=0, distortion_from=0, distortion=10.0),
    )

    def terms(model):
        with torch.no_grad():
            render = render_view(model, views, distortion_range=always.depth_range)
        target = scene.pixels(scene.splits["test"][[0, 5, 10]])
        return [float(x) for x in ((render.rgb - target).abs().mean(), gs2d.loss_normal(render), gs2d.loss_distortion(render))]

    trained = [gs2d.fit(gs2d.Training(start(), scene.scale, n_steps, control=control), scene, range(n_steps), given).gaussians
               for given in (always, gs2d.Regularisers(0.0, 0.0))]  # fmt: skip
    before, (_, normal, distortion), (colour, plain_normal, plain_distortion) = terms(start()), *map(terms, trained)
    assert colour < 0.6 * before[0] and normal < plain_normal and distortion < plain_distortion
    assert float(trained[0].activated_opacities.detach().min()) > 0.01 and len(trained[0]) > 300


def test_mesh_of_a_wall_lies_in_its_plane(scene):
    wall = a_wall(0.0)
    box = torch.tensor([[-0.6, -0.6, -0.6], [0.6, 0.6, 0.6]])
    small = type(scene)(
        "wall", scene.images[:3], orbit(6, 4.0, 25.0, width=32, height=32)[[0, 1, 5]], {"train": torch.arange(3)}, box, 2.0, 6.0
    )
    for depth in ("expected", "median"):
        mesh = gs2d.mesh_of(lambda cameras: render_view(wall, cameras), small, 0.1, depth=depth, least_faces=1)
        off = torch.as_tensor(mesh.vertices).float() @ wall.normals[0].detach()
        assert len(mesh.faces) > 100 and float(off.abs().median()) < 0.03


def test_disc_picture_and_scores(scene):
    wall, camera = a_wall(0.0), orbit(1, 4.0, 0.0, width=48, height=48)
    picture = inspect.disc_picture(wall, camera, radius=0.4)
    filled = float((picture[..., 0] < 0.99).float().mean())
    focal = float(camera.Ks[0, 0, 0])
    assert filled == pytest.approx(5 * math.sin(math.pi / 5) * (0.8 * focal / 4 / 48) ** 2, rel=0.05)


def test_judging_the_truth_itself_finds_little_and_the_start_much(scene):
    truth = surface_points(scene, 0.03)
    shape = dict(voxel=0.08, truncation=0.16)

    def exact(cameras):
        frame = int((scene.cameras.cam_from_world == cameras.cam_from_world[0]).flatten(1).all(1).nonzero()[0, 0])
        depth = scene.depth[frame][None].float()
        return Render(torch.zeros(1, 32, 32, 3), (depth > 0).float(), depth, {"normals": scene.normals[frame][None].float()})

    best = inspect.judge(exact, scene, truth, **shape)
    assert best.depth == 0.0 and best.rendered < 0.1 and best.from_depth < 50 and best.surface.chamfer < 0.05
    with torch.no_grad():
        bad = inspect.judge(lambda cameras: render_view(a_model(), cameras), scene, truth, **shape)
    assert bad.surface.chamfer > 2 * best.surface.chamfer and bad.depth > 0.1 and bad.rendered > 20
    assert inspect.true_mesh(scene, 0.08, 0.16).area == pytest.approx(best.mesh.area, rel=1e-3)
    ours, exact_row = inspect.rows_of({"exact": best}, best.mesh, truth)
    assert (ours["variant"], ours["depth error"]) == ("exact", 0.0) and ours["Chamfer"] == exact_row[
        "Chamfer"
    ] == best.surface.chamfer


def test_training_on_with_more_distortion_makes_rays_thinner_and_leaves_the_model_alone(scene):
    model, camera = a_model(), scene.views("test")[0]
    before, depth_range = model.means.detach().clone(), (scene.near, scene.far)
    after = {w: inspect.trained_on(model, scene, gs2d.Regularisers(0.0, w, 0, 0, depth_range), 8) for w in (0.0, 1000.0)}
    thick = {w: float(inspect.thickness(one, camera, depth_range)[:, : camera.width].mean()) for w, one in after.items()}
    assert thick[1000.0] < thick[0.0] and torch.equal(model.means, before)


def test_maps_of_the_lesson():
    maps = inspect.tilted_disc(0.0, 0.4)
    assert torch.allclose(maps["exact depth"], maps["EWA depth"], atol=0.01)  # facing the camera both are right
    maps = inspect.tilted_disc(60.0, 0.4)
    seen = maps["exact depth"][:, 36] < 1
    assert float(maps["exact depth"][:, 36][seen].std()) > 10 * float(maps["EWA depth"][:, 36][maps["EWA depth"][:, 36] < 1].std())
    degrees = inspect.angles(torch.tensor([[0.0, 0, 2], [1, 0, 0]]), torch.tensor([[0.0, 0.6, 0.8], [0, 0, 0]]))
    assert float(degrees[0]) == pytest.approx(36.87, abs=0.01) and bool(degrees[1].isnan())
    camera = orbit(1, 4.0, width=20, height=16)
    assert inspect.thickness(a_model(), camera, RANGE).shape == (16, 40, 3)
    panes = inspect.panes(render_view(a_model(), camera))
    filmed = inspect.film_panes(torch.cat([*panes.values()], dim=1), torch.zeros(16, 20, 3))
    assert [*filmed] == [*panes, "true normals"] and all(torch.equal(filmed[name], pane) for name, pane in panes.items())
    assert list(inspect.tilted_profile(50.0, 0.5)) == ["disc", "ellipsoid"]


def test_without_the_blob_a_disc_seen_from_its_edge_fades():
    maps = inspect.tilted_disc(89.0, 0.3)
    assert float(maps["no low-pass"].sum()) < 0.65 * float(maps["exact opacity"].sum())


def test_normals_that_are_not_turned_cancel():
    camera = orbit(1, 4.0, 0.0, width=24, height=24)
    front = a_wall(0.0)
    back = part_of(front)
    back.quats.data[:] = torch.stack([-front.quats[:, 1], front.quats[:, 0], front.quats[:, 3], -front.quats[:, 2]], dim=1)
    assert torch.allclose(back.normals, -front.normals, atol=1e-5)
    turned = [render_view(model, camera).extras["normals"][0, 12, 12] for model in (front, back)]
    raw = [inspect.normals_as_they_come(model, camera)[12, 12] for model in (front, back)]
    assert torch.allclose(turned[0], turned[1], atol=1e-4) and torch.allclose(raw[0], -raw[1], atol=1e-3)
    assert float(raw[0].norm()) > 0.9


def test_views_of_one_wall_agree_and_those_of_a_shifted_one_do_not():
    wall, cameras = a_wall(0.0), orbit(8, 4.0, 10.0, width=32, height=32)[[0, 1, 7]]
    drawn = render_view(wall, cameras)
    box = torch.tensor([[-1.0] * 3, [1.0] * 3])
    maps = gs2d.DepthMaps(drawn.depth.detach(), drawn.extras["median"].detach(), drawn.alpha > 0.5, cameras, box)
    mine = maps.expected[0], maps.solid[0], cameras[0]
    same = fusion.disagreement(*mine, maps, 0.2)
    moved = fusion.disagreement(mine[0] + 0.1, *mine[1:], maps, 0.2)
    assert float(same.nanmedian()) < 0.01 and float(moved.nanmedian()) == pytest.approx(0.1, abs=0.03)
    assert bool(same[~maps.solid[0]].isnan().all())


def test_the_error_of_a_mesh_and_the_exact_maps(scene):
    truth = surface_points(scene, 0.05)
    mesh = inspect.true_mesh(scene, 0.1, 0.2)
    off, scores = fusion.error_of_mesh(mesh, truth, 2000)
    assert len(off) == len(mesh.faces) and float(off.median()) < 0.06 and scores.accuracy < 0.06
    apart = fusion.disagreements({}, {}, scene.views("test")[0], scene, 0.1)["truth"]
    assert apart.shape == (32, 32) and 0 < float(apart.nanmedian()) < 0.06
