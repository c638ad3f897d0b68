from __future__ import annotations

import pytest
import torch

from nsw.cameras import Cameras, intrinsics, look_at, orbit
from nsw.errors import InputError
from nsw.methods.density_control import CLONE, SPLIT, START
from nsw.models.gaussians import Gaussians
from nsw.renderers import splat_probe as probe
from nsw.renderers.splats import render_view


def cloud(n: int = 60) -> Gaussians:
    generator = torch.Generator().manual_seed(0)
    splats = Gaussians.random(torch.tensor([[-0.6] * 3, [0.6] * 3]), n, generator, sh_degree=1, opacity=0.6)
    with torch.no_grad():
        splats.shN.normal_(std=0.2, generator=generator)
        splats.scales += 0.5 * torch.randn(n, 3, generator=generator)
    return splats


@pytest.mark.parametrize("pixel", [(12, 15), (20, 9), (3, 3)])
def test_the_blend_of_a_pixel_is_the_pixel(pixel):
    splats, camera = cloud(), orbit(1, 2.5, width=32, height=24)
    with torch.no_grad():
        render = render_view(splats, camera, background=0.3)
    inside = probe.pixel_splats(splats, camera, *pixel, background=0.3)
    assert torch.allclose(inside.total, render.rgb[0, pixel[0], pixel[1]], atol=2e-3)
    assert abs(1 - inside.left - float(render.alpha[0, pixel[0], pixel[1]])) < 1e-3
    assert bool((inside.depth.diff() >= 0).all())
    assert torch.allclose(inside.weight, inside.alpha * inside.transmittance)


def test_a_pixel_outside_is_refused_and_an_empty_one_is_background():
    splats, camera = cloud(1), orbit(1, 50.0, width=32, height=24)
    empty = probe.pixel_splats(splats, camera, 0, 0, background=0.25)
    assert empty.total.tolist() == [0.25, 0.25, 0.25]
    assert torch.equal(empty.strip(cell=2), torch.full((6, 2, 3), 0.25))
    with pytest.raises(InputError, match="outside"):
        probe.pixel_splats(splats, camera, 24, 0)


def test_the_strip_ends_in_the_pixels_colour():
    splats, camera = cloud(), orbit(1, 2.5, width=32, height=24)
    inside = probe.pixel_splats(splats, camera, 12, 15, background=0.0)
    assert len(inside) > 3
    strip = inside.strip(cell=4)
    assert strip.shape == (12, 4 * len(inside), 3)
    assert torch.allclose(strip[-1, -1], inside.total.clamp(0, 1), atol=1e-5)
    first = inside.strip(stop_after=1, cell=1)
    assert torch.allclose(first[2, -1], (inside.weight[0] * inside.rgb[0]).clamp(0, 1))


def ball(x: float) -> tuple[Gaussians, Cameras]:
    """Return one ball at (x, 0, 0) and a camera two units in front of the origin that looks straight ahead."""
    splats = Gaussians.from_values(
        torch.tensor([[x, 0.0, 0.0]]),
        torch.full((1, 3), 0.12),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.tensor([0.9]),
        torch.ones(1, 3),
    )
    return splats, Cameras(look_at(torch.tensor([[0.0, -2.0, 0.0]])), intrinsics(90.0, 96, 96), 96, 96)


def test_ewa_is_exact_in_the_middle_and_drifts_outwards():
    errors = []
    for x in (0.0, 1.0, 1.7):
        splats, camera = ball(x)
        exact = probe.exact_alphas(splats, camera)[0, 0]
        ewa = render_view(splats, camera, eps2d=0.0).alpha[0]
        errors.append(float((exact - ewa).abs().max().detach()))
    assert errors[0] < 0.01
    assert errors[2] > errors[1] > 2 * errors[0]


def test_the_exact_outline_of_a_ball_is_its_silhouette():
    """A ray that touches the sphere of radius k sigma has its peak at exp(-k^2 / 2): check against plane geometry."""
    splats, camera = ball(0.0)
    alpha = probe.exact_alphas(splats, camera)[0, 0].detach()
    focal = float(camera.Ks[0, 0, 0])
    column = 60
    tangent = (column + 0.5 - 48) / focal
    distance = 2.0 * torch.sin(torch.atan(torch.tensor(tangent * (1 + (0.5 / focal / tangent) ** 2) ** 0.5)))
    assert abs(float(alpha[48, column]) - 0.9 * float(torch.exp(-0.5 * (distance / 0.12) ** 2))) < 1e-4


def test_a_splat_behind_the_camera_is_not_seen():
    splats, camera = ball(0.0)
    with torch.no_grad():
        splats.means[0, 1] = -4.0
    assert float(probe.exact_alphas(splats, camera).detach().max()) == 0.0


def test_recolouring_changes_nothing_but_colour():
    splats, camera = cloud(), orbit(1, 2.5, width=32, height=24)
    grey = probe.recoloured(splats, torch.full((60, 3), 0.25))
    with torch.no_grad():
        one, other = render_view(splats, camera, background=0.25), render_view(grey, camera, background=0.25)
    assert torch.allclose(one.alpha, other.alpha, atol=1e-5)
    assert torch.allclose(other.rgb, torch.full_like(other.rgb, 0.25), atol=1e-5)


def test_origins_have_three_colours():
    colours = probe.origin_colours(torch.tensor([START, CLONE, SPLIT, CLONE], dtype=torch.int32))
    assert len(torch.unique(colours, dim=0)) == 3
    assert torch.equal(colours[1], colours[3])


def test_a_film_outlives_a_restart():
    film, again = probe.Film(), probe.Film()
    film.add(torch.full((4, 5, 3), 0.5))
    film.add(torch.full((4, 5, 3), 2.0))
    again.load_state_dict(film.state_dict())
    assert len(again) == 2
    assert float(again[1].max()) == 1.0


def test_a_film_watches_a_training():
    film, done = probe.Film(), []
    for step in film.watching(range(7), 3, lambda: torch.full((2, 2, 3), len(done) / 10)):
        done.append(step)
    assert done == list(range(7)) and [round(float(frame[0, 0, 0]), 1) for frame in film] == [0.1, 0.4, 0.7]
