"""The parts of NeRF: encoding, network, batches, schedule, normalised device coordinates, image fitting, diagnosis."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import nsw.models
import nsw.scenes
from nsw.cameras import Rays, camera_rays, orbit, pixel_rays, project
from nsw.errors import InputError
from nsw.losses import loss_mse
from nsw.methods.nerf import (
    encoding_picture,
    fit_image,
    flops_per_picture,
    learning_rate,
    loss_terms,
    ndc_rays,
    ray_batch,
    set_learning_rate,
    spectrum,
    useful_pixels,
)
from nsw.methods.nerf_inspect import (
    as_seen,
    density_points,
    diagnose,
    direction_sphere,
    gradient_share,
    shown_parts,
    surface_point,
    where_shown,
)
from nsw.metrics import psnr
from nsw.models.encodings import encoded_size, frequency_encoding
from nsw.models.field import FieldOutput
from nsw.models.mlp import CoarseFine, CoarseFineSettings, NerfMLP, NerfSettings
from nsw.renderers import render_view
from nsw.renderers.render import Render
from nsw.renderers.volume import RayRender, ray_bounds, render_rays
from nsw.scenes.scene import Scene

SMALL = NerfSettings(depth=3, width=16, skip=2, levels_position=3, levels_direction=1)
PAIR = CoarseFineSettings(depth=3, width=16, skip=2, levels_position=3, levels_direction=1, n_samples=6, n_fine=5)


def _points(n: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    return torch.rand(n, 3, generator=generator) * 2 - 1, directions


def test_the_encoding_is_the_coordinates_and_octaves_of_sines_and_cosines():
    x = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    expected = [0.3, -0.7]
    expected += [f(2**k * v) for f in (math.sin, math.cos) for k in range(3) for v in (0.3, -0.7)]
    assert torch.allclose(frequency_encoding(x, 3)[0], torch.tensor(expected, dtype=torch.float64))
    assert frequency_encoding(x, 0) is x
    assert (
        encoded_size(3, 10) == 63 and encoded_size(3, 4) == 27 and frequency_encoding(torch.zeros(2, 7, 3), 4).shape == (2, 7, 27)
    )


def test_the_default_network_is_the_papers():
    model = NerfMLP(NerfSettings())
    sizes = [(layer.in_features, layer.out_features) for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    assert sizes == [(63, 256)] + [(256, 256)] * 4 + [(319, 256)] + [(256, 256)] * 2 + [(256, 1), (256, 256), (283, 128), (128, 3)]
    assert 0.55e6 < sum(p.numel() for p in model.parameters()) < 0.65e6


def test_density_is_never_negative_zero_outside_the_box_and_the_same_by_both_calls():
    model, (points, directions) = NerfMLP(SMALL), _points()
    density, rgb, _ = model.query(points, directions)
    assert (density > 0).all() and (rgb >= 0).all() and (rgb <= 1).all()
    assert torch.equal(model.density(points), density)
    assert torch.equal(model.density(points + 2.5), torch.zeros(50))


def test_colour_depends_on_direction_only_when_asked_to_and_density_never():
    points, directions = _points()
    for use in (True, False):
        torch.manual_seed(0)
        a, b = (NerfMLP(replace(SMALL, use_directions=use)) for _ in range(2))
        b.load_state_dict(a.state_dict())
        first, second = a.query(points, directions), b.query(points, -directions)
        assert torch.equal(first.density, second.density)
        assert torch.equal(first.rgb, second.rgb) is not use


def test_a_network_does_not_change_when_the_scene_is_moved_and_scaled():
    torch.manual_seed(0)
    unit, moved = NerfMLP(SMALL), NerfMLP(replace(SMALL, box=(8.0, 8.0, 8.0, 12.0, 12.0, 12.0)))
    moved.load_state_dict(unit.state_dict())
    points, directions = _points()
    a, b = unit.query(points, directions), moved.query(points * 2 + 10, directions)
    assert torch.allclose(a.rgb, b.rgb, atol=1e-4) and torch.allclose(a.density, 2 * b.density, rtol=1e-3)


def test_a_relu_that_starts_below_zero_has_no_gradient_and_softplus_has():
    for softplus in (False, True):
        torch.manual_seed(0)
        model = NerfMLP(replace(SMALL, softplus=softplus, density_bias=-5.0))
        out = render_rays(model, camera_rays(orbit(1, radius=3.0, width=4, height=4)), n_samples=8)
        loss_mse(out.rgb, torch.zeros(16, 3)).backward()
        moved = max(float(p.grad.abs().max()) for p in model.parameters())
        assert (moved > 0) is softplus and (float(out.alpha.detach().max()) > 0) is softplus


def test_a_pair_renders_by_its_own_settings_and_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    model, camera = CoarseFine(PAIR), orbit(1, radius=4.0, width=6, height=5)
    picture = render_view(model, camera)
    rays = camera_rays(camera)
    out = render_rays(model, rays, **model.render_defaults)
    assert out.t.shape == (30, 11) and out.coarse.t.shape == (30, 6)
    assert torch.allclose(out.rgb, picture.rgb.view(-1, 3), atol=1e-6)
    coarse = render_rays(model.coarse, rays, n_samples=6)
    assert torch.allclose(coarse.rgb, out.coarse.rgb, atol=1e-6)
    nsw.models.save(model, tmp_path / "pair")
    again = nsw.models.load(tmp_path / "pair")
    assert again.settings == PAIR and torch.equal(render_view(again, camera).rgb, picture.rgb)


def test_both_networks_learn_from_the_two_losses():
    torch.manual_seed(0)
    model = CoarseFine(PAIR)
    out = render_rays(model, camera_rays(orbit(1, radius=4.0, width=6, height=5)), **model.render_defaults)
    loss_mse(out.rgb, torch.zeros(30, 3)).backward(retain_graph=True)
    assert all(p.grad is None for p in model.coarse.parameters())  # sampling passes no gradient to the coarse network
    loss_mse(out.coarse.rgb, torch.zeros(30, 3)).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_batch_of_rays_belongs_to_its_pixels_and_repeats_with_the_generator():
    cameras = orbit(3, width=5, height=4)
    pixels = torch.arange(3 * 4 * 5 * 3.0).view(3, 4, 5, 3)
    rays, colours = ray_batch(pixels, cameras, 40, torch.Generator().manual_seed(1))
    index = (colours[:, 0] / 3).long()
    expected = pixel_rays(cameras, index // 20, index // 5 % 4, index % 5)
    assert torch.equal(rays.directions, expected.directions) and torch.equal(rays.origins, expected.origins)
    assert len(index.unique()) > 20
    assert torch.equal(ray_batch(pixels, cameras, 40, torch.Generator().manual_seed(1))[1], colours)


def test_useful_pixels_are_those_whose_rays_meet_the_box():
    cameras, box = orbit(2, radius=3.0, width=9, height=9), torch.tensor([[-0.5] * 3, [0.5] * 3])
    useful = useful_pixels(cameras, box)
    rays = camera_rays(cameras)
    assert torch.equal(useful, ray_bounds(SimpleNamespace(aabb=box), rays)[2].nonzero()[:, 0])  # asked at once, not one by one
    assert 10 < len(useful) < 120 and 40 in useful and 81 + 40 in useful and 0 not in useful
    pixels = torch.arange(2 * 81 * 3.0).view(2, 9, 9, 3)
    rays, colours = ray_batch(pixels, cameras, 200, torch.Generator().manual_seed(0), among=useful)
    assert set((colours[:, 0] / 3).long().tolist()) <= set(useful.tolist())
    assert ray_bounds(SimpleNamespace(aabb=box), rays)[2].all()


def test_the_learning_rate_falls_tenfold_without_steps():
    rates = [learning_rate(k, 100) for k in range(101)]
    assert rates[0] == 5e-4 and math.isclose(rates[100], 5e-5)
    assert all(math.isclose(b / a, 0.1**0.01) for a, b in zip(rates, rates[1:], strict=False))
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    set_learning_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_ndc_maps_the_frustum_to_the_cube_and_keeps_rays_straight():
    focal, width, height, near = (50.0, 60.0), 80, 60, 1.5
    corners = torch.tensor([[x, y] for x in (-1.0, 1.0) for y in (-1.0, 1.0)], dtype=torch.float64)
    slopes = corners * torch.tensor([width / 2 / focal[0], height / 2 / focal[1]], dtype=torch.float64)
    directions = torch.cat([slopes, torch.ones(4, 1, dtype=torch.float64)], dim=-1)
    origins, turned = ndc_rays(torch.zeros(4, 3, dtype=torch.float64), directions, focal, width, height, near)
    assert torch.allclose(
        origins, torch.cat([corners, -torch.ones(4, 1, dtype=torch.float64)], -1)
    )  # near plane: front of the cube
    assert torch.allclose(origins + turned, torch.cat([corners, torch.ones(4, 1, dtype=torch.float64)], -1))  # infinity: its back
    generator = torch.Generator().manual_seed(0)
    o = torch.rand(20, 3, generator=generator, dtype=torch.float64) - 0.5
    d = torch.nn.functional.normalize(torch.rand(20, 3, generator=generator, dtype=torch.float64) - 0.5, dim=-1)
    d[:, 2] = d[:, 2].abs() + 0.2
    origins, turned = ndc_rays(o, d, focal, width, height, near)
    for t in (2.0, 7.0, 50.0):
        x, y, z = (o + ((near - o[:, 2]) / d[:, 2] + t)[:, None] * d).unbind(-1)
        mapped = torch.stack([focal[0] / (width / 2) * x / z, focal[1] / (height / 2) * y / z, 1 - 2 * near / z], -1)
        t_new = (mapped[:, 2] - origins[:, 2]) / turned[:, 2]
        assert ((t_new > 0) & (t_new < 1)).all() and torch.allclose(origins + t_new[:, None] * turned, mapped, atol=1e-12)


def _checker(size: int = 32) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((rows // 4 + columns // 4) % 2)[..., None].expand(-1, -1, 3).float()


def test_a_checker_is_out_of_reach_without_the_encoding():
    raw, encoded = (fit_image(_checker(), levels, n_steps=100, width=32) for levels in (0, 5))
    assert psnr(encoded, _checker()) > psnr(raw, _checker()) + 5
    assert torch.equal(encoded, fit_image(_checker(), 5, n_steps=100, width=32))


def test_fitting_leaves_the_global_random_numbers_alone_and_runs_without_gradients():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    with torch.no_grad():
        assert fit_image(_checker(8), 1, n_steps=2).shape == (8, 8, 3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_spectrum_of_a_wave_is_two_points():
    wave = torch.cos(2 * math.pi * 5 * torch.arange(32) / 32)[None, :, None].expand(32, 32, 3)
    found = (spectrum(wave) > 1).nonzero().tolist()
    assert found == [[16, 16 - 5], [16, 16 + 5]]


def test_the_encoding_picture_shows_picture_fit_and_both_spectra():
    shown = encoding_picture(_checker(16), 4, n_steps=60, zoom=3)
    assert shown.shape == (48, 192, 3)
    shown = shown[::3, ::3]
    picture, fitted, true_spectrum, fitted_spectrum = shown.split(16, dim=1)
    assert torch.equal(picture, _checker(16)) and (fitted - picture).abs().mean() < 0.3
    assert (true_spectrum >= 0).all() and (true_spectrum <= 1).all() and true_spectrum.std() > 0.05 and fitted_spectrum.std() > 0.05


class Glossy:
    """A ball of density whose colour tells the direction it is seen from."""

    aabb = torch.tensor([[-1.0, -2.0, -1.0], [1.0, 2.0, 1.0]])

    def density(self, points_world):
        return 10.0 * (points_world.norm(dim=-1) < 0.8)

    def query(self, points_world, directions):
        return FieldOutput(self.density(points_world), 0.5 - 0.5 * directions)


def test_the_direction_sphere_shows_each_viewers_colour():
    ball = direction_sphere(Glossy(), torch.zeros(3), torch.tensor([0.0, 0.0, 2.0]), size=33)
    assert torch.allclose(ball[16, 16], torch.tensor([0.5, 0.5, 1.0]), atol=1e-6)  # the viewer above sees the colour of "up"
    assert torch.equal(ball[0, 0], torch.ones(3))
    normals = 2 * ball[4:29, 8:25] - 1
    assert torch.allclose(normals.norm(dim=-1), torch.ones(25, 17), atol=1e-5)


def test_density_points_lie_where_the_density_is():
    points = density_points(Glossy(), threshold=5.0, cells=20)
    assert (points.xyz.norm(dim=-1) < 0.8).all()
    assert abs(len(points) * 16 / 20**3 - 4 / 3 * math.pi * 0.8**3) < 0.15
    assert torch.allclose(points.rgb, torch.tensor([0.5, 0.5, 1.0]))
    assert len(density_points(Glossy(), threshold=50.0, cells=4)) == 0


def test_a_surface_point_is_lifted_from_the_view_that_shows_most_of_it():
    cameras = orbit(3, radius=3.0, width=9, height=7)
    ids, depth = torch.full((3, 7, 9), -1), torch.zeros(3, 7, 9)
    ids[1, 1, 1] = 1
    ids[2, 2:5, 3:6] = 1
    depth[ids == 1] = 2.5
    splits = {"train": torch.tensor([0]), "test": torch.tensor([1, 2])}
    scene = Scene("test", torch.zeros(3, 7, 9, 3, dtype=torch.uint8), cameras, splits,
                  torch.tensor([[-1.0] * 3, [1.0] * 3]), 1.0, 5.0, depth=depth, ids=ids, id_names=("a", "b"),
                  normals=torch.zeros(3, 7, 9, 3))  # fmt: skip
    point, normal = surface_point(scene, "b")
    pixel, z = project(cameras[2], point[None])
    assert torch.allclose(pixel[0, 0], torch.tensor([4.5, 3.5]), atol=1e-4) and abs(z.item() - 2.5) < 1e-5 and normal.shape == (3,)
    for instance in ("a", "nothing"):
        with pytest.raises(InputError, match="take"):
            surface_point(scene, instance)


def test_a_scene_without_truth_shows_what_a_model_sees():
    cameras, size = orbit(5, radius=3.0, width=9, height=7), (5, 7, 9)
    splits = {"train": torch.tensor([0]), "test": torch.tensor([1, 2, 3, 4])}
    bare = Scene("own", torch.zeros(*size, 3, dtype=torch.uint8), cameras, splits, torch.tensor([[-1.0] * 3, [1.0] * 3]), 1.0, 5.0)

    def render(views):
        alpha, depth = torch.zeros(len(views), 7, 9), torch.full((len(views), 7, 9), 2.5)
        alpha[:, 2:5, 3:6], alpha[:, 0, 0], alpha[1, 3] = 0.9, 0.3, 0.9
        return Render(torch.zeros(len(views), 7, 9, 3), alpha, depth)

    seen = as_seen(bare, render, most=3)
    assert seen.id_names == ("test view 0", "test view 2", "test view 3") and as_seen(seen, render) is seen
    assert not seen.depth[[0, 2]].any() and set(seen.depth.unique().tolist()) == {0.0, 2.5} and not seen.depth[1, 0, 0]
    assert shown_parts(seen, ("pot", "cup")) == ("test view 2", "test view 0") and shown_parts(seen, seen.id_names) == seen.id_names
    point, normal = surface_point(seen, "test view 3")
    pixel, z = project(cameras[4], point[None])
    assert torch.allclose(pixel[0, 0], torch.tensor([4.5, 3.5]), atol=1e-4) and abs(z.item() - 2.5) < 1e-5
    assert torch.allclose(point + 2.5 * normal, cameras.origins[4], atol=1e-5)
    assert int(where_shown(seen, "test view 2").sum()) == 15 and where_shown(bare, "pot").all()


def test_the_gradient_share_tells_a_dead_network_from_one_that_learns():
    rays, colours = camera_rays(orbit(1, radius=3.0, width=6, height=6)), torch.zeros(36, 3)
    torch.manual_seed(0)
    alive, dead = NerfMLP(SMALL), NerfMLP(replace(SMALL, softplus=False, density_bias=-5.0))
    assert gradient_share(dead, rays, colours) == 0.0
    assert gradient_share(alive, rays, colours) > 0.5 and all(p.grad is None for p in alive.parameters())


def test_the_loss_has_a_term_for_each_network():
    rays, colours = camera_rays(orbit(1, radius=4.0, width=6, height=5)), torch.rand(30, 3)
    single, pair = NerfMLP(SMALL), CoarseFine(PAIR)
    assert set(loss_terms(render_rays(single, rays, **single.render_defaults), colours)) == {"fine"}
    out = render_rays(pair, rays, **pair.render_defaults)
    terms = loss_terms(out, colours)
    assert torch.equal(terms["fine"], (out.rgb - colours).square().mean())
    assert torch.equal(terms["coarse"], (out.coarse.rgb - colours).square().mean())


def test_flops_count_two_per_weight_and_sample():
    model = NerfMLP(NerfSettings())
    weights = 63 * 256 + 4 * 256 * 256 + 319 * 256 + 2 * 256 * 256 + 256 + 256 * 256 + 283 * 128 + 128 * 3
    assert flops_per_picture(model, 100, 64) == 2 * weights * 6400


def _render(weights: torch.Tensor, colours: torch.Tensor, near: float = 2.0, far: float = 6.0) -> RayRender:
    n, s = weights.shape
    edges = torch.linspace(near, far, s + 1).expand(n, -1)
    t = (edges[:, 1:] + edges[:, :-1]) / 2
    alpha = weights.sum(-1)
    return RayRender(colours, alpha, (weights * t).sum(-1), weights, t, edges[:, :-1], edges[:, 1:], weights, torch.zeros(n, s, 3))


def _one_hot(place: float, n: int = 40, s: int = 50) -> torch.Tensor:
    weights = torch.zeros(n, s)
    weights[:, int(place * s)] = 1.0
    return weights


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (torch.zeros(40, 50), "Density is zero everywhere"),
        (_one_hot(0.99), "wall at far"),
        (_one_hot(0.01), "wall at near"),
        (torch.full((40, 50), 1 / 50), "fog"),
    ],
)
def test_a_failure_is_named(weights, says):
    colours = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    found = diagnose(_render(weights, colours), colours)
    assert len(found) == 1 and says in found[0]


def test_a_sound_render_gets_no_remark_and_other_failures_their_own():
    colours = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    sound = _render(_one_hot(0.4), colours)
    assert diagnose(sound, colours, torch.full((40,), 3.6)) == []
    assert "same colour" in diagnose(replace(sound, rgb=torch.full((40, 3), 0.5)), colours)[0]
    assert "50 % of the true surface" in diagnose(sound, colours, torch.tensor([3.0, 7.0, 0.0, 0.0]).repeat(10))[0]
    assert "not finite" in diagnose(replace(sound, rgb=sound.rgb * float("nan")), colours)[0]
    nowhere = torch.zeros(40, 50)
    assert "No ray meets" in diagnose(replace(sound, t_starts=nowhere, t_ends=nowhere), colours)[0]


def test_a_dead_network_is_named_and_a_fresh_one_is_not():
    torch.manual_seed(0)
    rays = camera_rays(orbit(1, radius=3.0, width=12, height=12, fov_x_degrees=30.0))
    colours = torch.rand(144, 3, generator=torch.Generator().manual_seed(0))
    fresh = diagnose(render_rays(NerfMLP(SMALL), rays, n_samples=32), colours)
    assert all("zero everywhere" not in line for line in fresh)
    dead = NerfMLP(replace(SMALL, softplus=False, density_bias=-5.0))
    assert "zero everywhere" in diagnose(render_rays(dead, rays, n_samples=32), colours)[0]


def test_a_small_network_learns_a_ball_from_its_pictures():
    def truth(cameras):
        rays: Rays = camera_rays(cameras)
        b = (rays.origins * rays.directions).sum(-1)
        inside = b.square() - rays.origins.square().sum(-1) + 0.36
        hit = inside > 0
        normal = (rays.origins + (-b - inside.clamp_min(0).sqrt())[:, None] * rays.directions) / 0.6
        return torch.where(hit[:, None], 0.5 + 0.5 * normal, 1.0).view(len(cameras), cameras.height, cameras.width, 3)

    cameras = orbit(8, radius=3.0, width=20, height=20, fov_x_degrees=35.0)
    unseen = orbit(2, radius=3.0, width=20, height=20, fov_x_degrees=35.0, azimuth_degrees=20.0)
    torch.manual_seed(0)
    generator, model = torch.Generator().manual_seed(0), CoarseFine(replace(PAIR, width=32, n_samples=12, n_fine=12))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(120):
        set_learning_rate(optimizer, learning_rate(step, 120, 1e-2))
        rays, colours = ray_batch(truth(cameras), cameras, 128, generator)
        out = render_rays(model, rays, **model.render_defaults, jitter=generator)
        optimizer.zero_grad()
        sum(loss_terms(out, colours).values()).backward()
        optimizer.step()
    target = truth(unseen)
    assert psnr(render_view(model, unseen).rgb, target) > psnr(target.mean(dim=(0, 1, 2)).expand_as(target), target) + 8
