"""NeRDF: bases, the network of whole rays, its renderer, random cameras, the loss, training and the instruments."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

import nsw
from nsw import widgets
from nsw.cameras import Cameras, Rays, camera_rays, check, intrinsics, look_at, orbit
from nsw.methods import instant_ngp as ngp
from nsw.methods import nerdf
from nsw.methods import nerdf_charts as charts
from nsw.methods import nerdf_fit as fitting
from nsw.methods import nerdf_inspect as look
from nsw.methods.instant_ngp_fit import Plan
from nsw.models import io
from nsw.models.field import FieldOutput
from nsw.models.ray_basis import cosine_basis, fourier_basis, gaussian_basis
from nsw.models.ray_distribution import CosineDistribution, LightField, RayDistribution, RaySettings
from nsw.renderers import render_view, volume, whole_rays
from nsw.scenes import bundled

SMALL = dict(depth=3, width=16, skip=2, n_points=4, levels=3, degree=1, n_terms=6, n_samples=12)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _student(kind=RayDistribution, **changes):
    torch.manual_seed(0)
    return kind(RaySettings(**(SMALL | changes)))


def _rays(n: int = 20) -> Rays:
    generator = seeded()
    origins = 3 * torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    aims = torch.rand(n, 3, generator=generator) - 0.5
    return Rays(origins, torch.nn.functional.normalize(aims - origins, dim=-1), torch.ones(n))


@pytest.fixture(scope="module")
def teacher(scene):
    sizes = dict(n_levels=5, n_features=2, log2_entries=12, n_max=48, width=16, n_cells=24)
    return fitting.teacher_of(scene, Plan(150, 4096, update_every=8, decay=0.6), 0, 64, **sizes)


# ---- bases -------------------------------------------------------------------------------------------------------------


def test_fourier_functions_are_orthogonal_on_a_uniform_grid():
    tau = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    phi = fourier_basis(tau, 24)
    expected = torch.diag(torch.tensor([1.0] + [0.5] * 23, dtype=torch.float64))
    torch.testing.assert_close(phi.T @ phi / 64, expected, atol=1e-12, rtol=0)


def test_fourier_functions_are_the_paper_s():
    tau = torch.linspace(0, 1, 7, dtype=torch.float64)
    phi = fourier_basis(tau, 5)
    for k in range(5):
        wave = torch.cos(k * math.pi * tau) if k % 2 == 0 else torch.sin((k + 1) * math.pi * tau)
        torch.testing.assert_close(phi[:, k], wave, atol=1e-12, rtol=0)


def test_fourier_wraps_around_and_cosines_do_not():
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    near, far = fourier_basis(ends, 12)
    torch.testing.assert_close(near, far, atol=1e-12, rtol=0)
    near, far = cosine_basis(ends, 12)
    assert float((near - far).abs().max()) == pytest.approx(2.0)


@pytest.mark.parametrize("basis", [fourier_basis, cosine_basis, gaussian_basis])
def test_more_terms_are_nearer_to_a_slab(basis):
    errors = []
    for terms in (4, 12, 24, 48):
        _, slab, summed = look.slab_fit(terms, 0.4, 0.2, 0.0, basis)
        errors.append(float((summed - slab).square().mean()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.25 * errors[0]


def test_a_margin_keeps_the_far_end_from_the_near_end():
    assert "where none should be" in widgets.slab_chart(24, 0.9, 0.2, 0.0).layout.title.text
    tau, _, wrapped = look.slab_fit(24, 0.9, 0.2, 0.0, fourier_basis)
    _, _, apart = look.slab_fit(24, 0.9, 0.2, 0.1, fourier_basis)
    assert float(wrapped[:8].max()) > 0.4 and float(apart[:8].max()) < 0.2


# ---- the network of whole rays --------------------------------------------------------------------------------------------


def test_decoding_is_the_direct_sum():
    model = _student(damping=0.5, margin=0.1, softplus=False).double()
    tau, weights = torch.rand(12, dtype=torch.float64), torch.randn(5, 4, 6, dtype=torch.float64)
    density, rgb = model.decode(weights, model.at(tau))
    for s in range(12):
        inner = 0.1 + 0.8 * tau[s]
        phi = [math.cos(k * math.pi * inner) if k % 2 == 0 else math.sin((k + 1) * math.pi * inner) for k in range(6)]
        phi = torch.tensor([p / (1 + (k + 1) // 2) ** 0.5 for k, p in enumerate(phi)], dtype=torch.float64)
        torch.testing.assert_close(density[:, s], model.settings.density_scale * (weights[:, 0] @ phi).relu())
        torch.testing.assert_close(rgb[:, s], (weights[:, 1:] @ phi).sigmoid())


def test_rendering_is_the_shared_compositor_at_the_shared_samples():
    model, rays = _student(), _rays()
    ours = whole_rays.render_rays(model, rays, background=0.3)

    class Told:  # a field that knows what the student says at each sample, in order
        aabb = model.aabb

        def query(self, points, directions):
            return FieldOutput(ours.densities.reshape(-1), ours.rgbs.reshape(-1, 3))

    theirs = volume.render_rays(Told(), rays, n_samples=model.settings.n_samples, background=0.3)
    for name in ("t", "weights", "rgb", "alpha", "depth"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("softplus", [True, False])
def test_gradients_of_a_pixel_are_right(softplus):
    model = _student(softplus=softplus, density_scale=4.0)
    tau = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    edges = volume.edges_around(tau[None], torch.zeros(1).double(), torch.ones(1).double())
    weights = torch.randn(3, 4, 6, dtype=torch.float64, generator=seeded(), requires_grad=True)
    pixel = lambda w: volume.composite(*model.decode(w, model.at(tau)), edges, 0.5)[0]  # noqa: E731
    assert torch.autograd.gradcheck(pixel, weights)


def test_a_pixel_asks_the_network_once():
    model, cameras = _student(), orbit(2, radius=3.0, width=9, height=7)
    per_pixel, shot = look.questions_a_pixel(model, cameras, 0.0), whole_rays.render_view(model, cameras)
    rays = camera_rays(cameras)
    hits = int(volume.ray_bounds(model, rays)[2].sum())
    assert per_pixel == hits / len(rays) and 0 < per_pixel <= 1
    assert shot.rgb.shape == (2, 7, 9, 3) and float(shot.alpha.max()) <= 1


def test_rays_that_miss_the_box_show_the_background():
    rays = Rays(torch.tensor([[0.0, 0.0, 5.0]]), torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1))
    out = whole_rays.render_rays(_student(), rays, background=0.25)
    assert torch.equal(out.rgb, torch.full((1, 3), 0.25)) and float(out.alpha.detach()) == 0


@pytest.mark.parametrize("kind", [RayDistribution, CosineDistribution, LightField])
def test_every_kind_renders_and_survives_the_disk(kind, tmp_path):
    model, cameras = _student(kind), orbit(1, radius=3.0, width=6, height=5)
    again = io.load(io.save(model, tmp_path / "m"))
    shot = render_view(model, cameras, background=0.0)
    assert type(again) is kind and torch.equal(render_view(again, cameras, background=0.0).rgb, shot.rgb)
    assert bool(torch.isfinite(shot.rgb).all()) and float(shot.rgb.min()) >= 0 and float(shot.rgb.max()) <= 1


# ---- cameras, lesson, loss ------------------------------------------------------------------------------------------------


def _wall_cameras() -> Cameras:
    eyes = torch.rand(8, 3, generator=seeded()) * torch.tensor([1.0, 0.2, 0.5]) + torch.tensor([0.0, -3.0, 0.0])
    return Cameras(look_at(eyes, (0.5, 0.0, 0.2)), intrinsics(50.0, 12, 10, 8), 12, 10)


@pytest.mark.parametrize("draw", [nerdf.boxed_cameras, nerdf.blended_cameras])
def test_new_cameras_stand_among_the_given_ones_and_upright(draw):
    given = _wall_cameras()
    cameras = check(draw(given, 50, seeded()))
    low, high = given.origins.amin(0), given.origins.amax(0)
    assert bool(((cameras.origins >= low - 1e-5) & (cameras.origins <= high + 1e-5)).all())
    axes = cameras.world_from_cam[:, :3, 2]
    assert bool((axes[:, 1] > 0.9).all()) and bool((cameras.world_from_cam[:, 2, 1] < -0.9).all())
    assert torch.equal(draw(given, 50, seeded()).cam_from_world, cameras.cam_from_world)
    assert float(cameras.origins.std(0).min()) > 0 and cameras.width == 12


def test_on_a_dome_only_blended_cameras_look_at_the_scene():
    given = orbit(12, radius=4.0, elevation_degrees=30.0, width=8, height=8)[[11, 0, 1]]
    miss = {}
    for draw in (nerdf.boxed_cameras, nerdf.blended_cameras):
        poses = draw(given, 200, seeded()).world_from_cam
        towards = torch.nn.functional.normalize(-poses[:, :3, 3], dim=-1)
        miss[draw] = float(torch.acos((towards * poses[:, :3, 2]).sum(-1).clamp(-1, 1)).mean())
    assert miss[nerdf.blended_cameras] < 0.05 < 0.15 < miss[nerdf.boxed_cameras]


def test_rays_are_kept_only_where_they_meet_the_box():
    cameras, box = _wall_cameras(), torch.tensor([[0.0, -0.2, 0.0], [0.4, 0.2, 0.4]])
    every = nerdf.random_rays(cameras, 300, seeded())
    some = nerdf.random_rays(cameras, 300, seeded(), box)
    assert len(every) == 300 and 0 < len(some) < 300


def test_the_constraint_sees_shapes_and_not_sizes():
    values, solid = torch.rand(6, 9, generator=seeded()), torch.ones(6)
    assert float(nerdf.loss_profile(values, 37.0 * values, solid)) < 1e-12
    assert float(nerdf.loss_profile(values, values.flip(-1), solid)) > 1e-3
    assert float(nerdf.loss_profile(values, values.flip(-1), 0 * solid)) == 0
    nothing = torch.zeros(6, 9, requires_grad=True)
    nerdf.loss_profile(nothing, torch.zeros(6, 9), solid).backward()
    assert float(nothing.grad.abs().max()) == 0


def test_the_constraint_does_not_care_for_density_inside_of_things():
    out = whole_rays.render_rays(_student(), _rays())
    wall = torch.zeros_like(out.densities.detach())
    wall[:, 5:] = 1e3
    deep = wall.clone()
    deep[:, 8:] = 1e6
    lessons = [nerdf.Lesson(out.rgb.detach(), torch.ones(len(out.rgb)), densities) for densities in (wall, deep)]
    ours = [float(nerdf.loss_visible(out, lesson).detach()) for lesson in lessons]
    papers = [float(look.loss_paper(out, lesson, 1.0).detach()) for lesson in lessons]
    assert ours[0] == pytest.approx(ours[1], rel=1e-5) and papers[0] != pytest.approx(papers[1], rel=1e-3)


def test_a_lesson_is_composited_and_carries_no_gradient(scene, teacher):
    rays = nerdf.random_rays(scene.views("train"), 64, seeded(), teacher.aabb)
    student = _student(box=tuple(teacher.aabb.flatten().tolist()))
    tau = whole_rays.positions(12, "cpu")
    t = whole_rays.distances(student, rays, tau, scene.near)
    lesson = nerdf.ask(teacher, lambda rays: ngp.render(teacher, rays, scene.near, 0.0), rays, t)
    assert not lesson.rgb.requires_grad and lesson.densities.shape == (len(rays), 12)
    torch.testing.assert_close(lesson.over(1.0), ngp.render(teacher, rays, scene.near, 1.0).rgb.detach(), atol=1e-5, rtol=0)
    out = whole_rays.render_rays(student, rays, near=scene.near, tau=tau)
    torch.testing.assert_close(out.t, t)
    assert set(nerdf.loss_terms(out, lesson, 1.0)) == {"colour", "opacity", "density"}
    assert set(nerdf.loss_terms(out, lesson, 1.0, 0.0)) == {"colour", "opacity"}
    assert set(nerdf.loss_terms(whole_rays.render_rays(_student(LightField), rays), lesson, 1.0)) == {"colour"}


def test_the_released_constraint_acts_on_another_function():
    """A student that already agrees with its teacher has nothing to lose, unless its numbers are read as something else."""
    out = whole_rays.render_rays(_student(), _rays())
    lesson = nerdf.Lesson(out.rgb.detach() + out.alpha.detach()[:, None] - 1, out.alpha.detach(), out.densities.detach())
    agreed = [float(loss(out, lesson, 1.0).detach()) for loss in (fitting.loss_whole, look.loss_paper, look.loss_released)]
    assert agreed[0] < 1e-9 and agreed[1] < 1e-9 and agreed[2] > 1e-4
    assert float(look.loss_drawn(seeded())(out, lesson, 1.0).detach()) < 1e-9


def test_backgrounds_are_drawn_by_their_own_generator_alone():
    out = whole_rays.render_rays(_student(), _rays())
    lesson = nerdf.Lesson(0.5 * out.rgb.detach(), 0.5 * out.alpha.detach(), out.densities.detach())
    state, loss = torch.get_rng_state(), look.loss_drawn(seeded())
    first, second = (float(loss(out, lesson, 1.0).detach()) for _ in range(2))
    assert first != second and float(look.loss_drawn(seeded())(out, lesson, 1.0).detach()) == first
    assert torch.equal(torch.get_rng_state(), state)


# ---- training and instruments -----------------------------------------------------------------------------------------------


def _taught(scene, teacher, n_steps, losses=None, **students):
    frames, held, _ = fitting.cone(scene, -10.0, 35.0, 35.0, 30.0)
    poses = lambda n, generator: nerdf.blended_cameras(scene.views(frames), n, generator)  # noqa: E731
    fitting.distil(students, teacher, poses, fitting.Course(n_steps, 256, 16, 4e-3), seeded(), scene.near, losses)
    return scene.views(held)


def test_students_learn_from_the_teacher_alone(scene, teacher):
    box = tuple(teacher.aabb.flatten().tolist())
    student, light = _student(box=box, width=32), _student(LightField, box=box, width=32)
    cameras = _taught(scene, teacher, 80, nerdf=student, light=light)
    truth = ngp.render_view(teacher, cameras, scene.near)
    plain = float((truth.rgb - truth.rgb.mean((0, 1, 2))).square().mean())
    for model in (student, light):
        assert float((whole_rays.render_view(model, cameras, near=scene.near).rgb - truth.rgb).square().mean()) < 0.5 * plain


def test_training_repeats_bit_by_bit_and_depends_on_no_other_student(scene, teacher):
    box = tuple(teacher.aabb.flatten().tolist())
    alone, beside, other = _student(box=box), _student(box=box), _student(LightField, box=box)
    _taught(scene, teacher, 4, a=alone)
    _taught(scene, teacher, 4, {"b": fitting.loss_free}, b=other, a=beside)
    for one, two in zip(alone.parameters(), beside.parameters(), strict=True):
        assert torch.equal(one, two)


def test_only_a_light_field_cares_for_the_backdrop(scene, teacher):
    box, learned = tuple(teacher.aabb.flatten().tolist()), {}
    for backdrop in (1.0, torch.tensor([0.2, 0.5, 0.7])):
        cameras = replace(scene.views("train"), background=backdrop)
        students = {"nerdf": _student(box=box), "light": _student(LightField, box=box)}
        poses = lambda n, generator: nerdf.blended_cameras(cameras, n, generator)  # noqa: B023, E731
        fitting.distil(students, teacher, poses, fitting.Course(4, 256, 16, 4e-3), seeded(), scene.near)
        learned[str(backdrop)] = [[p.clone() for p in student.parameters()] for student in students.values()]
    (ours, light), (ours_too, light_too) = learned.values()
    assert all(torch.equal(a, b) for a, b in zip(ours, ours_too, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(light, light_too, strict=True))
    assert all(bool(torch.isfinite(p).all()) for p in light_too)


def test_fewer_terms_are_a_shorter_series():
    model = _student()
    rays = _rays()
    first, last, _ = volume.ray_bounds(model, rays)
    full, three = model.coefficients(rays, first, last), look.with_terms(model, 3).coefficients(rays, first, last)
    assert torch.equal(three[..., :3], full[..., :3]) and float(three[..., 3:].detach().abs().max()) == 0
    sparse = whole_rays.render_rays(look.with_terms(model, 3, 5), rays)
    assert sparse.weights.shape == (len(rays), 5) and model.settings.n_samples == 12


def test_depth_of_a_true_surface_does_not_flicker():
    """A sphere of radius 1: rays to a point on it from eyes that see it end there."""
    points = torch.tensor([[0.0, -1.0, 0.0]])
    eyes = torch.tensor([[x, -3.0, 0.2] for x in (-0.5, 0.0, 0.5)])

    def sphere(rays: Rays):
        b = (rays.origins * rays.directions).sum(-1)
        return -b - (b.square() - rays.origins.square().sum(-1) + 1).clamp_min(0).sqrt()

    assert float(look.depth_flicker(sphere, points, eyes)) < 1e-3  # all eyes agree
    assert torch.equal(look.depth_flicker(sphere, points, eyes, chunk=2), look.depth_flicker(sphere, points, eyes))
    assert float(look.depth_flicker(lambda rays: rays.origins[:, 0], points, eyes)) > 0.1


def test_changes_are_added_to_every_ray_s_weights():
    model, rays, changes = _student(), _rays(), torch.randn(4, 6, generator=seeded())
    first, last, _ = volume.ray_bounds(model, rays)
    plain, changed = (m.coefficients(rays, first, last) for m in (model, look.with_changes(model, changes)))
    torch.testing.assert_close(changed - plain, changes.expand_as(plain))


def test_a_chart_shows_the_ray_that_was_asked_for_and_its_changed_pixel(scene, teacher):
    student, camera = _student(box=tuple(teacher.aabb.flatten().tolist())), scene.views("test")[0]
    grey = json.loads(widgets.ray_chart(student, teacher, camera, scene.near, 12, 12).to_json())
    assert [trace["type"] for trace in grey["data"]] == ["bar"] * 4 + ["scatter"] * 7
    assert "row 12, column 12" in grey["layout"]["title"]["text"]
    wall = [[50.0, 0, 0, 0, 0, 0], [30.0, 0, 0, 0, 0, 0], [-30.0, 0, 0, 0, 0, 0], [-30.0, 0, 0, 0, 0, 0]]
    red = json.loads(widgets.ray_chart(student, teacher, camera, scene.near, 12, 12, wall).to_json())
    pixels = dict(zip(red["data"][-1]["y"], red["data"][-1]["marker"]["color"], strict=True))
    assert pixels["changed"] == "rgb(255,0,0)" and pixels["network"] == grey["data"][-1]["marker"]["color"][1]
    assert red["data"][0]["y"][0] == pytest.approx(grey["data"][0]["y"][0] + 50, abs=1e-4)
    beside = look.sway(camera, 1, 0.0)
    for away in (
        widgets.ray_chart(student, teacher, beside, scene.near, 0, 0),
        widgets.teacher_chart(teacher, beside, scene.near, 0, 0, 6, fourier_basis),
    ):
        assert "misses the box" in away.layout.title.text and len(away.data) == 0


def test_a_ray_s_series_ends_at_its_pixel_and_sees_nothing_behind_the_surface():
    """A ray through blue air and a red cloud, and a green wall behind it that no light reaches."""
    edges = torch.linspace(0, 2, 129)
    middle = (edges[1:] + edges[:-1])[None] / 2
    density, rgbs = 28 * torch.exp(-((middle - 1) / 0.1).square()), torch.tensor([1.0, 0, 0]).expand(1, 128, 3).clone()
    rgbs[:, :45], rgbs[:, 100:] = torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 1, 0])
    density[:, 100:] = 900.0
    rgb, alpha, weights = volume.composite(density, rgbs, edges[None])
    ray = volume.RayRender(rgb, alpha, alpha, weights, edges[None, :-1], edges[None, :-1], edges[None, 1:], density, rgbs)
    seen, sums, pixels = look.terms_fit(ray, 120, fourier_basis)
    assert 20 < float(seen.max()) < 28.1 and float(seen[100:].max()) == 0
    assert sums.shape == (120, 128) and pixels.shape == (120, 3)
    torch.testing.assert_close(sums[0], seen.mean().expand(128))
    misfit = (sums - seen).square().sum(-1)
    assert bool((misfit.diff() <= 1e-2).all()) and float(misfit[-1]) < 0.1 * float(misfit[3])
    off = (pixels - rgb).abs().mean(-1)
    assert float(off[-1]) < 0.02 < 0.2 < float(off[0])


def test_the_chart_of_a_teacher_s_ray_marks_the_terms_that_were_asked_for(scene, teacher):
    chart = widgets.teacher_chart(teacher, scene.views("test")[0], scene.near, 12, 12, 7, fourier_basis, most=20)
    curve, mark = chart.data[3:5]
    assert len(curve.y) == 20 and mark.x == (7,) and mark.y[0] == curve.y[6]
    assert f"7 terms: pixel off by {curve.y[6]:.3f}" in chart.layout.title.text


def test_pixels_are_air_outlines_or_surfaces():
    depth = torch.zeros(1, 7, 7)
    depth[0, 1:6, 1:6] = 2.0
    kinds = look.kinds_of_pixels(depth)
    assert {name: int(mask.sum()) for name, mask in kinds.items()} == {"air": 24, "outlines": 16, "surfaces": 9}
    assert set(look.kinds_of_pixels(torch.ones(1, 4, 4))) == {"surfaces"}


def test_depth_error_counts_known_pixels_only():
    truth = torch.tensor([[[0.0, 2.0, 4.0]]])
    assert fitting.depth_error(torch.tensor([[[9.0, 3.0, 4.0]]]), truth) == 0.5
    assert fitting.constant_depth_error(truth) == 1.0


def test_swaying_cameras_stay_inside_the_box_of_the_given_ones():
    given = _wall_cameras()
    cameras = check(look.sway(given, 7))
    assert bool(((cameras.origins >= given.origins.amin(0) - 1e-5) & (cameras.origins <= given.origins.amax(0) + 1e-5)).all())


def test_seen_points_are_where_the_depth_map_is_all_of_them_or_every_kth(scene):
    frame = int(scene.frames("test")[0])
    camera, depth = scene.views([frame]), scene.depth[frame]
    whole, some = look.seen_points(camera, depth), look.seen_points(camera, depth, about=20)
    assert len(whole) == int((depth > 0).sum()) and 20 <= len(some) < 40
    assert torch.equal(some, whole[:: len(whole) // 20])
    rays = camera_rays(camera)
    torch.testing.assert_close(whole, rays.at_depth(depth.reshape(-1))[depth.reshape(-1) > 0])


def test_depth_is_drawn_from_nearest_to_farthest_and_white_where_unknown():
    first, other = torch.tensor([[0.0, 2.0, 4.0]]), torch.tensor([[1.0, 9.0, 0.0]])
    grey = look.shaded({"first": first, "other": other})
    assert torch.equal(grey["first"], torch.tensor([[1.0, 0.0, 0.85]]))
    assert torch.equal(grey["other"], torch.tensor([[0.0, 0.85, 1.0]]))
    assert torch.equal(look.shaded({"nothing": torch.zeros(1, 2)})["nothing"], torch.ones(1, 2))


# ---- any scene --------------------------------------------------------------------------------------------------------------


def _angles(scene, frames, axis) -> torch.Tensor:
    return torch.rad2deg(torch.acos((-scene.cameras[frames].world_from_cam[:, :3, 2] @ axis).clamp(-1, 1)))


def test_a_cone_of_the_toys_looks_from_the_direction_that_was_asked_for(scene):
    some, held, far = fitting.cone(scene, -10.0, 35.0, 35.0, 27.0)
    azimuth, elevation = math.radians(-10.0), math.radians(35.0)
    axis = torch.tensor([math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)])
    assert set(some.tolist()) == {i for i in scene.frames("train").tolist() if _angles(scene, [i], axis) <= 35}
    assert len(held) == 6 and float(_angles(scene, held, axis).max()) <= 27 and float(_angles(scene, far, axis)) > 90


@pytest.mark.parametrize("name", ["tea", "room", "town", "shelf"])
def test_other_scenes_have_a_cone_of_their_own(name):
    if not (bundled.data_dir() / name).is_dir():
        pytest.skip(f"the bundled scene {name} is not in {bundled.data_dir()}")
    other = nsw.scenes.load(name, size=16)
    some, held, far = fitting.cone(other, -10.0, 35.0, 35.0, 27.0)
    assert len(some) >= 3 and len(held) >= 1 and len(far) == 1
    assert not set(some.tolist()) & set(held.tolist())


def test_a_cone_of_few_photographs_has_the_three_nearest_to_train_and_one_held_out(scene):
    splits = {"train": torch.tensor([0, 15, 30, 45, 50]), "test": scene.frames("test")[:1]}
    some, held, far = fitting.cone(replace(scene, splits=splits), -10.0, 35.0, 1.0, 1.0)
    assert held.tolist() == far.tolist() == splits["test"].tolist()
    angles = _angles(scene, splits["train"], -scene.cameras[held].world_from_cam[0, :3, 2])
    assert set(some.tolist()) == set(splits["train"][angles.argsort()[:3]].tolist())


def test_where_no_depth_is_known_the_teacher_s_takes_its_place(scene, teacher, capsys):
    frames = scene.frames("test")[:2]
    name, depth = fitting.reference_depth(scene, frames, teacher)
    assert name == "true depth" and torch.equal(depth, scene.depth[frames]) and not capsys.readouterr().out
    name, seen = fitting.reference_depth(replace(scene, depth=None), frames, teacher)
    assert name == "teacher" and "without true depth" in capsys.readouterr().out
    assert seen.shape == depth.shape and 0 < int((seen > 0).sum()) < seen.numel()
    both = (seen > 0) & (depth > 0)
    assert float((seen - depth)[both].abs().median()) < 0.2


def test_untrained_waves_are_calmer_with_damping_and_a_row_is_told_as_the_network_hears_it():
    sizes, cameras = RaySettings(**SMALL), orbit(1, radius=3.0, width=9, height=7)
    torch.manual_seed(0)
    waves = charts.untrained_waves(sizes, {"damped": 2.0, "undamped": 0.0}, _rays(2), 0.0, n=40)
    assert list(waves) == ["damped, ray 0", "damped, ray 1", "undamped, ray 0", "undamped, ray 1"]
    assert float(waves["damped, ray 0"][1].std()) < float(waves["undamped, ray 0"][1].std())
    told = charts.told_of_a_row(sizes, cameras, 0.0)
    assert told.shape == (3 * (1 + 2 * sizes.levels), 9) and torch.equal(told[0], told[2])
